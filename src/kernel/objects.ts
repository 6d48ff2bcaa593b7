/**
 * What user space can see of the kernel objects that maps refer to, programs, network interfaces and sockets,
 * and how to find them again: sockets as long as the machine runs, the others also on another day or another host.
 *
 * Cgroups and perf events are missing here: the kernel tells nothing of them.
 */
import * as fs from 'node:fs';
import { hex, pathBytes, pathText } from '../bytes.js';
import { ATTR, PROG_INFO, PROG_LINK } from './abi.js';
import { KernelError } from './error.js';
import { walkIds } from './live.js';
import { kernelName, openPin } from './map.js';
import { fdLink, interfacesOf, networkOf, openMaps, pinFiles, processes } from './proc.js';
import { Attr, ERRNO, type Result, type Sys } from './sys.js';

/** A loaded program. */
export interface LoadedProgram {
  readonly id: number;
  /** BPF_PROG_TYPE_*. */
  readonly type: number;
  /** One character a byte; often empty, and never unique. */
  readonly name: string;
  /** The kernel's hash of its instructions, 8 bytes: the same on every host, whatever maps it uses. */
  readonly tag: Uint8Array;
}

/** What a program is looked for by. */
export interface WantedProgram {
  readonly id?: number | undefined;
  readonly type?: number | undefined;
  readonly name?: string | undefined;
  readonly tag?: Uint8Array | undefined;
  /** As {@link pathText} writes them. */
  readonly pins?: readonly string[] | undefined;
}

/** A program that is the wanted one, as far as one can tell, and how to open it. */
export interface Candidate {
  readonly program: LoadedProgram;
  /** @returns a file descriptor, the caller's to close, or a negated errno */
  open(): Result;
}

/** How messages name a program, by what is known of it: `program 57 xdp_main tag 3b185187f1855c4c`. */
export function programText({ id, name, tag }: WantedProgram): string {
  const parts = ['program', id, name === '' ? undefined : name, tag && `tag ${hex(tag)}`];
  return parts.filter((part) => part !== undefined).join(' ');
}

/** What the kernel says of the program behind `fd`; undefined when that is none. */
export function programInfo(sys: Sys, fd: number): LoadedProgram | undefined {
  if ((fdLink(fd, sys.proc) ?? PROG_LINK) !== PROG_LINK) return undefined;
  const info = new Attr(PROG_INFO, sys);
  const attr = new Attr(ATTR.info, sys).set('bpf_fd', fd).set('info_len', info.bytes.length).point('info', info.bytes);
  if (sys.bpf('OBJ_GET_INFO_BY_FD', attr) < 0) return undefined;
  return {
    id: info.get('id'),
    type: info.get('type'),
    name: kernelName(info.getBytes('name')),
    tag: Uint8Array.from(info.getBytes('tag')),
  };
}

/** The programs of this machine. Opening one has no side effects; what was seen once is remembered. */
export class Programs {
  readonly #known = new Map<number, LoadedProgram | undefined>();
  #pins: Map<number, string[]> | undefined;
  #all: LoadedProgram[] | undefined;

  constructor(readonly sys: Sys) {}

  /** Opens a program by its id. Needs CAP_SYS_ADMIN. */
  open(id: number): Result {
    return this.sys.bpf('PROG_GET_FD_BY_ID', new Attr(ATTR.progById, this.sys).set('prog_id', id));
  }

  /** The program with this id; undefined when it is gone, or when it is not pinned and we may not open it. */
  get(id: number): LoadedProgram | undefined {
    if (this.#known.get(id) === undefined) this.#known.set(id, this.#ask(this.open(id)));
    if (this.#known.get(id) === undefined) this.pins(id);
    return this.#known.get(id);
  }

  /** Where a program is pinned, as {@link pathText} writes it. The BPF file systems are walked once. */
  pins(id: number): readonly string[] {
    this.#pins ??= this.#walkPins();
    return this.#pins.get(id) ?? [];
  }

  /** All loaded programs in ascending id; undefined without CAP_SYS_ADMIN. */
  all(): readonly LoadedProgram[] | undefined {
    const ids = this.#all === undefined ? walkIds(this.sys, 'PROG_GET_NEXT_ID') : [];
    if (ids === undefined) return undefined;
    this.#all ??= ids.map((id) => this.get(id)).filter((program) => program !== undefined);
    return this.#all;
  }

  /**
   * Programs that may be the wanted one, the likeliest first: pinned where it was, with its tag; with its id,
   * tag, name and type; then the newest with these. Without a tag none is: names and ids say too little.
   */
  find(wanted: WantedProgram): Candidate[] {
    const { tag, pins = [] } = wanted;
    if (tag === undefined) return [];
    const same = (one: LoadedProgram) =>
      Buffer.compare(one.tag, tag) === 0 && (wanted.type === undefined || wanted.type === one.type);
    const found = pins.flatMap((path): Candidate[] => {
      const open = () => this.#openPin(pathBytes(path));
      const program = this.#ask(open());
      return program !== undefined && same(program) ? [{ program, open }] : [];
    });
    const loaded = (this.all() ?? [])
      .filter((one) => same(one) && one.name === wanted.name && !found.some(({ program }) => program.id === one.id))
      .sort((a, b) => Number(b.id === wanted.id) - Number(a.id === wanted.id) || b.id - a.id);
    return [...found, ...loaded.map((program) => ({ program, open: () => this.open(program.id) }))];
  }

  /** The program behind `fd`, which is closed. */
  #ask(fd: Result): LoadedProgram | undefined {
    if (fd < 0) return undefined;
    try {
      return programInfo(this.sys, fd);
    } finally {
      this.sys.close(fd);
    }
  }

  #openPin(path: Buffer): Result {
    const fd = openPin(this.sys, path);
    // A file system that is mounted read-only, or a file without permission to write.
    return fd < 0 && fd !== -ERRNO.ENOENT ? openPin(this.sys, path, 'ro') : fd;
  }

  #walkPins(): Map<number, string[]> {
    const pins = new Map<number, string[]>();
    for (const file of pinFiles(this.sys.proc)) {
      const program = this.#ask(this.#openPin(file));
      if (program === undefined) continue;
      this.#known.set(program.id, program);
      pins.set(program.id, [...(pins.get(program.id) ?? []), pathText(file)].sort());
    }
    return pins;
  }
}

/** The network interfaces of one network namespace. */
export class Interfaces {
  readonly #names: ReadonlyMap<number, string>;
  readonly #indexes: ReadonlyMap<string, number>;

  /** @param where how messages name the namespace */
  constructor(
    interfaces: readonly (readonly [index: number, name: string])[],
    readonly where: string,
  ) {
    this.#names = new Map(interfaces);
    this.#indexes = new Map(interfaces.map(([index, name]) => [name, index]));
  }

  /** Those of our own network namespace. */
  static own(sys: Sys): Interfaces {
    return new Interfaces(interfacesOf('self', sys.proc), 'this network namespace');
  }

  /**
   * Those that a map's indexes mean: of our own network namespace; of that of a process which holds the map
   * where none of them is in ours.
   */
  static ofMap(sys: Sys, mapId: number): Interfaces {
    const own = networkOf('self', sys.proc);
    const pids = new Set(
      openMaps(sys.proc)
        .open.filter(({ map }) => map.id === mapId)
        .map(({ holder }) => holder.pid),
    );
    // We have it open ourselves, to read it.
    pids.delete(process.pid);
    const others = [...pids].filter((pid) => networkOf(pid, sys.proc) !== undefined);
    const [first] = others;
    if (first === undefined || others.some((pid) => networkOf(pid, sys.proc) === own)) return Interfaces.own(sys);
    return new Interfaces(interfacesOf(first, sys.proc), `the network namespace of process ${first}`);
  }

  /** As {@link pathText} writes it. */
  nameOf(index: number): string | undefined {
    return this.#names.get(index);
  }

  indexOf(name: string): number | undefined {
    return this.#indexes.get(name);
  }
}

/** The option that tells a socket's number: no two sockets have the same from boot to shutdown. */
const SO_COOKIE = 57;

/** An open socket of a process. */
interface OpenSocket {
  readonly pid: number;
  readonly fd: number;
}

/** The sockets that processes of this machine have open, as far as we may look at them. */
export class Sockets {
  #found: ReadonlyMap<bigint, OpenSocket> | undefined;

  constructor(readonly sys: Sys) {}

  /** Cookies of all of them. */
  cookies(): Iterable<bigint> {
    this.#found ??= this.#walk();
    return this.#found.keys();
  }

  /**
   * Opens the socket with this cookie: the same one that a process has.
   * @returns a file descriptor, the caller's to close; undefined when no process has it
   */
  open(cookie: bigint): number | undefined {
    this.#found ??= this.#walk();
    const found = this.#found.get(cookie);
    const fd = found === undefined ? undefined : this.#get(found);
    // The file descriptor may be another file's by now.
    if (fd === undefined || this.#cookieOf(fd) === cookie) return fd;
    this.sys.close(fd);
    return undefined;
  }

  #cookieOf(fd: number): bigint | undefined {
    const bytes = Buffer.alloc(8);
    return this.sys.getsockopt(fd, SO_COOKIE, bytes) < 0 ? undefined : bytes.readBigUInt64LE();
  }

  #get({ pid, fd }: OpenSocket): number | undefined {
    const pidfd = this.sys.pidfdOpen(pid);
    if (pidfd < 0) return undefined;
    const own = this.sys.pidfdGetfd(pidfd, fd);
    this.sys.close(pidfd);
    // With too few file descriptors of our own no socket would seem to be there.
    if (own === -ERRNO.EMFILE) throw new KernelError('open sockets', 'pidfd_getfd', -own);
    return own < 0 ? undefined : own;
  }

  #walk(): Map<bigint, OpenSocket> {
    const found = new Map<bigint, OpenSocket>();
    /** Links to those that were looked at: a socket can be in many hands. */
    const seen = new Set<string>();
    for (const pid of processes(this.sys.proc)) {
      for (const [fd, link] of socketLinks(pid, this.sys.proc)) {
        if (seen.has(link)) continue;
        const own = this.#get({ pid, fd });
        if (own === undefined) continue;
        seen.add(link);
        const cookie = this.#cookieOf(own);
        this.sys.close(own);
        if (cookie !== undefined) found.set(cookie, { pid, fd });
      }
    }
    return found;
  }
}

/** The open sockets of a process with what their links say; none of one that has ended or is not for us. */
function socketLinks(pid: number, proc: string): [fd: number, link: string][] {
  const folder = `${proc}/${pid}/fd`;
  try {
    return fs.readdirSync(folder).flatMap((name): [number, string][] => {
      try {
        const link = fs.readlinkSync(`${folder}/${name}`);
        return link.startsWith('socket:') ? [[Number(name), link]] : [];
      } catch {
        return [];
      }
    });
  } catch {
    return [];
  }
}
