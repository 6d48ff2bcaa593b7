/**
 * What user space can see of the programs, network interfaces and sockets that maps refer to, and how to find
 * them again: sockets until the machine shuts down, the others also later or on another host.
 *
 * Cgroups and perf events are missing: the kernel reveals nothing about them.
 */
import * as fs from 'node:fs';
import { hex, pathBytes, pathText, untilNul } from '../bytes.js';
import { ATTR, PROG_INFO, PROG_LINK } from './abi.js';
import { KernelError } from './error.js';
import { walkIds } from './live.js';
import { openPin } from './map.js';
import { fdLink, interfacesOf, networkOf, openMaps, pinFiles, processes } from './proc.js';
import { Attr, ERRNO, type Result, type Sys } from './sys.js';

/** A loaded program. */
export interface LoadedProgram {
  readonly id: number;
  /** BPF_PROG_TYPE_*. */
  readonly type: number;
  /** One character per byte; often empty, and never unique. */
  readonly name: string;
  /** The kernel's hash of its instructions, 8 bytes: the same on every host, whatever maps it uses. */
  readonly tag: Uint8Array;
}

/** A loaded program, as far as it is known. */
export interface ProgramFacts {
  readonly id?: number | undefined;
  /** BPF_PROG_TYPE_*. */
  readonly type?: number | undefined;
  readonly name?: string | undefined;
  /** The kernel's hash of its instructions, 8 bytes: the same on every host. */
  readonly tag?: Uint8Array | undefined;
  /** As {@link pathText} writes them. */
  readonly pins?: readonly string[] | undefined;
}

/** A program that seems to be the wanted one, and how to open it. */
export interface Candidate {
  readonly program: LoadedProgram;
  /** @returns a file descriptor that the caller owns, or a negated errno */
  open(): Result;
}

/** How messages name a program, from what is known of it: `program 57 xdp_main tag 3b185187f1855c4c`. */
export function programText({ id, name, tag }: ProgramFacts): string {
  const parts = ['program', id, name === '' ? undefined : name, tag && `tag ${hex(tag)}`];
  return parts.filter((part) => part !== undefined).join(' ');
}

/** What the kernel says of the program behind `fd`; undefined if it is not a program. */
export function programInfo(sys: Sys, fd: number): LoadedProgram | undefined {
  if ((fdLink(fd, sys.proc) ?? PROG_LINK) !== PROG_LINK) return undefined;
  const info = new Attr(PROG_INFO, sys);
  const attr = new Attr(ATTR.info, sys).set('bpf_fd', fd).set('info_len', info.bytes.length).point('info', info.bytes);
  if (sys.bpf('OBJ_GET_INFO_BY_FD', attr) < 0) return undefined;
  return {
    id: info.get('id'),
    type: info.get('type'),
    name: untilNul(info.getBytes('name')),
    tag: Uint8Array.from(info.getBytes('tag')),
  };
}

/** The programs of this machine. Opening one has no side effects; results are cached. */
export class Programs {
  readonly #known = new Map<number, LoadedProgram | undefined>();
  #pins: Map<number, string[]> | undefined;
  #all: LoadedProgram[] | undefined;

  constructor(readonly sys: Sys) {}

  /** Opens a program by its id. Needs CAP_SYS_ADMIN. */
  open(id: number): Result {
    return this.sys.bpf('PROG_GET_FD_BY_ID', new Attr(ATTR.progById, this.sys).set('prog_id', id));
  }

  /** The program with this id; undefined if it is gone, or if it is not pinned and we have no permission to open it. */
  get(id: number): LoadedProgram | undefined {
    if (this.#known.get(id) === undefined) this.#known.set(id, this.#ask(this.open(id)));
    if (this.#known.get(id) === undefined) this.pins(id);
    return this.#known.get(id);
  }

  /** Where a program is pinned, as {@link pathText} writes paths. The BPF file systems are walked once. */
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
   * Programs that may be the wanted one, the likeliest first: pinned at the same place with the same tag; same id, tag,
   * name and type; then the newest with the same tag, name and type. None without a tag: names and ids are too weak.
   */
  find(wanted: ProgramFacts): Candidate[] {
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

  /** The program behind `fd`. Closes `fd`. */
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
    // The file system is mounted read-only, or we have no permission to write the file.
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
   * The interfaces that a map's indexes mean: those of our own network namespace or, if it has none of them, those
   * of the namespace of a process that holds the map.
   */
  static ofMap(sys: Sys, mapId: number): Interfaces {
    const own = networkOf('self', sys.proc);
    const pids = new Set(
      openMaps(sys.proc)
        .open.filter(({ map }) => map.id === mapId)
        .map(({ holder }) => holder.pid),
    );
    // We hold it ourselves, to read it.
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

/** The option that returns a socket's cookie, which is unique from boot to shutdown. */
const SO_COOKIE = 57;

/** An open socket of a process. */
interface OpenSocket {
  readonly pid: number;
  readonly fd: number;
}

/** The open sockets of this machine's processes, as far as we have permission to see them. */
export class Sockets {
  #found: ReadonlyMap<bigint, OpenSocket> | undefined;

  constructor(readonly sys: Sys) {}

  /** Cookies of all of them. */
  cookies(): Iterable<bigint> {
    this.#found ??= this.#walk();
    return this.#found.keys();
  }

  /**
   * Opens the socket with this cookie: the same socket that a process has.
   * @returns a file descriptor that the caller owns; undefined if no process has it
   */
  open(cookie: bigint): number | undefined {
    this.#found ??= this.#walk();
    const found = this.#found.get(cookie);
    const fd = found === undefined ? undefined : this.#get(found);
    // The file descriptor may belong to another file by now.
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
    // Without file descriptors of our own, it would seem that there are no sockets.
    if (own === -ERRNO.EMFILE) throw new KernelError('open sockets', 'pidfd_getfd', -own);
    return own < 0 ? undefined : own;
  }

  #walk(): Map<bigint, OpenSocket> {
    const found = new Map<bigint, OpenSocket>();
    /** Links that were already inspected: many processes can share a socket. */
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

/** The open sockets of a process with their links; none if it has ended or we have no permission. */
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
