/**
 * Will CRIU with bpfimg's plugin dump this process tree? Finds every BPF object that its processes hold, and says what
 * will happen to it. It changes nothing: the plugin of a map's type is asked only if reading takes nothing out of it.
 */
import { BpfimgError } from '../errors.js';
import { mapSubject } from '../kernel/flags.js';
import { type LiveMap, LiveMaps, openLive, type Program, programsByMap, type Unseen } from '../kernel/live.js';
import { Programs } from '../kernel/objects.js';
import {
  type Access,
  type AnonymousFile,
  type AnonymousMapping,
  anonymousFiles,
  anonymousMappings,
  bpffsMounts,
  bpffsMountsOf,
  childrenOf,
  commandOf,
  mountNamespaceOf,
  parseFdinfo,
  parseMapFdinfo,
} from '../kernel/proc.js';
import type { Sys } from '../kernel/sys.js';
import {
  type CaptureWork,
  type Carries,
  FULL,
  type ItemSink,
  type MapType,
  type MapTypes,
  type Report,
  reportText,
  type Template,
} from '../maptype.js';
import type { CriuHost } from './criu-program.js';

/** Objects that `keep-programs` keeps. */
const KEPT_KINDS: readonly HeldObject['kind'][] = ['program', 'link', 'btf'];

/** What will happen to an object. */
export type Outcome =
  | { readonly kind: 'full' }
  | { readonly kind: 'partial' | 'metadata only' | 'blocked'; readonly why: string };

/** A BPF object that a process holds. */
export interface HeldObject {
  readonly kind: 'map' | 'mapping' | 'program' | 'link' | 'btf' | 'iterator' | 'token' | 'other';
  /** Its file descriptors; none for a mapping, or for a map that only another map holds. */
  readonly fds: readonly number[];
  readonly access?: Access | undefined;
  readonly id?: number | undefined;
  /** One character per byte; for a link, the name of its program. */
  readonly name?: string | undefined;
  /** Type of the map, program or link. */
  readonly type?: string | undefined;
  readonly map?: LiveMap | undefined;
  /** Maps of maps that hold it, if no file descriptor does. */
  readonly innerOf?: readonly number[] | undefined;
  readonly mapping?: AnonymousMapping | undefined;
  /** Maps whose memory it may be: the kernel does not say. */
  readonly candidates?: readonly number[] | undefined;
  readonly outcome: Outcome;
}

/** A process of the tree. */
export interface CheckedProcess {
  readonly pid: number;
  /** Undefined for the root of the tree. */
  readonly parent: number | undefined;
  readonly command: string;
  readonly objects: readonly HeldObject[];
}

/** What a check found. */
export interface TreeCheck {
  readonly pid: number;
  /** Nothing known stops a dump. */
  readonly dumps: boolean;
  /** The tree, root first. */
  readonly processes: readonly CheckedProcess[];
  /** The blocked objects, one line for each. */
  readonly blocked: readonly string[];
  /** Anything else that stops a dump. */
  readonly blocks: readonly string[];
  readonly warnings: readonly string[];
  /** Open files that are not BPF objects and that CRIU may be unable to dump. */
  readonly otherFiles: number;
  /** What could not be seen. */
  readonly unseen: Unseen;
}

/**
 * Checks process `pid` and its descendants.
 * @param own our own processes, which end before a dump
 * @throws BpfimgError `notFound` if there is no such process, `io` if we may not look at it; KernelError
 */
export async function checkTree(
  sys: Sys,
  pid: number,
  types: MapTypes,
  criu: CriuHost,
  own: readonly number[] = [process.pid],
): Promise<TreeCheck> {
  return new TreeChecker(sys, types, criu, own).tree(pid);
}

// ---------------------------------------------------------------------------------------------------
// Objects

/** A BPF object other than a map: what it is called, and what its fdinfo says. */
interface ObjectKind {
  readonly kind: HeldObject['kind'];
  readonly what: string;
  readonly id?: string;
  readonly type?: string;
}

/** BPF objects other than maps, by the kernel's names. None of them is dumped. */
const OBJECT_KINDS: Readonly<Record<string, ObjectKind>> = {
  'bpf-prog': { kind: 'program', what: 'programs', id: 'prog_id', type: 'prog_type' },
  bpf_link: { kind: 'link', what: 'links', id: 'link_id', type: 'link_type' },
  btf: { kind: 'btf', what: 'BTF objects', id: 'btf_id' },
  bpf_iter: { kind: 'iterator', what: 'iterators' },
  'bpf-token': { kind: 'token', what: 'tokens' },
};
const OTHER_KIND: ObjectKind = { kind: 'other', what: 'BPF objects of this kind' };

/** BPF_PROG_TYPE_* as bpftool spells them, by number. */
const PROGRAM_TYPES: readonly string[] = [
  'unspec',
  'socket_filter',
  'kprobe',
  'sched_cls',
  'sched_act',
  'tracepoint',
  'xdp',
  'perf_event',
  'cgroup_skb',
  'cgroup_sock',
  'lwt_in',
  'lwt_out',
  'lwt_xmit',
  'sock_ops',
  'sk_skb',
  'cgroup_device',
  'sk_msg',
  'raw_tracepoint',
  'cgroup_sock_addr',
  'lwt_seg6local',
  'lirc_mode2',
  'sk_reuseport',
  'flow_dissector',
  'cgroup_sysctl',
  'raw_tracepoint_writable',
  'cgroup_sockopt',
  'tracing',
  'struct_ops',
  'ext',
  'lsm',
  'sk_lookup',
  'syscall',
  'netfilter',
];

/** Other anonymous files that CRIU dumps itself. */
const CRIUS_OWN: ReadonlySet<string> = new Set([
  '[eventfd]',
  '[eventpoll]',
  'inotify',
  '[fanotify]',
  '[signalfd]',
  '[timerfd]',
  '[pidfd]',
]);

const MAP = 'bpf-map';

function isBpf(kind: string): boolean {
  return kind.startsWith('bpf') || kind === 'btf';
}

/** A process as it was found. */
interface FoundProcess {
  readonly pid: number;
  readonly parent: number | undefined;
  readonly command: string;
  readonly files: readonly AnonymousFile[];
  readonly mappings: readonly AnonymousMapping[];
}

// ---------------------------------------------------------------------------------------------------
// What will happen to them

const MAPPED =
  'CRIU fails on a mapped map before it asks any plugin ("Can\'t open … mapfile link"): unmap it before the dump';

/** Why a CRIU with its own BPF support does not dump a type. */
const refusal = (number: number) =>
  `this CRIU is built with libbpf, and fails: "CRIU does not currently support dumping BPF map type ${number}!"`;

/** The part of a map that processes can map; undefined for a type that cannot be mapped. */
function mappedOf(
  { type, flags = 0, keySize = 0, valueSize = 0, maxEntries = 0 }: LiveMap,
  types: MapTypes,
  page: number,
) {
  return type === undefined
    ? undefined
    : types.row(type)?.mapped?.({ type, flags, keySize, valueSize, maxEntries }, page);
}

/** Bytes of a map that are read to see whether it has anything that would be lost. */
const MOST_READ = 64 * 1024 * 1024;

/** Bytes that a map's items may take. */
function memoryOf(map: LiveMap, types: MapTypes, page: number): number {
  const { keySize = 0, valueSize = 0, maxEntries = 0 } = map;
  return mappedOf(map, types, page)?.size ?? maxEntries * (keySize + valueSize);
}

/** The maps that `mapping` may belong to: those with this end (ring buffers: first page), else all it fits into. */
function candidatesOf(mapping: AnonymousMapping, maps: readonly LiveMap[], types: MapTypes, page: number): LiveMap[] {
  const [offset, length] = [Number(mapping.offset), Number(mapping.end - mapping.start)];
  const fits: LiveMap[] = [];
  const exact: LiveMap[] = [];
  for (const map of maps) {
    const { size, first } = mappedOf(map, types, page) ?? {};
    if (size === undefined || offset + length > size) continue;
    fits.push(map);
    if (offset + length === size || (offset === 0 && length === first)) exact.push(map);
  }
  return exact.length > 0 ? exact : fits;
}

/** The worse of two reports: what is captured, and what is restored. */
function joined(captured: Report, restored: Report): Outcome {
  if (captured.kind === 'not supported') return { kind: 'blocked', why: captured.why };
  if (restored.kind === 'not supported') return { kind: 'blocked', why: restored.why };
  const first = captured.kind === 'full' ? restored : captured;
  if (first.kind === 'full' || first.kind === 'not supported') return FULL as Outcome;
  return { kind: first.kind, why: first.why };
}

/** What a replay leaves out of every map of this type. */
function lostAtRestore({ carries }: MapType): Report {
  if (carries === undefined || carries.replayed === 'items') return FULL;
  return { kind: carries.replayed === 'empty' ? 'metadata only' : 'partial', why: `lost: ${carries.lost}` };
}

class TreeChecker {
  readonly #blocked: string[] = [];
  readonly #blocks: string[] = [];
  readonly #warnings: string[] = [];
  /** All maps of the machine, by id. */
  readonly #live = new Map<number, LiveMap>();
  readonly #outcomes = new Map<number, Outcome>();
  /** Maps that were read and had no items. */
  readonly #empty = new Set<number>();
  /** Maps that are in a map of maps. */
  readonly #inner = new Map<number, readonly number[]>();
  readonly #programs: Programs;
  /** CRIU dumps all maps itself. */
  readonly #native: boolean;

  constructor(
    readonly sys: Sys,
    readonly types: MapTypes,
    readonly criu: CriuHost,
    readonly own: readonly number[],
  ) {
    this.#programs = new Programs(sys);
    this.#native = criu.libbpf === true && !(criu.plugin !== undefined && criu.config.takeOver);
  }

  async tree(root: number): Promise<TreeCheck> {
    const found = this.#walk(root);
    // After the files, so that every map that is still open is found.
    const live = LiveMaps.look(this.sys);
    for (const map of live.maps) this.#live.set(map.id, map);
    const processes: CheckedProcess[] = [];
    for (const one of found) processes.push(await this.#process(one));
    this.#judgeMounts(found);
    this.#warnOfMaps(processes);
    const otherFiles = this.#warnOfStrangers(found);
    this.#judgeHost(processes);
    const [blocked, blocks, warnings] = [this.#blocked, this.#blocks, this.#warnings];
    const dumps = blocked.length + blocks.length === 0;
    return { pid: root, dumps, processes, blocked, blocks, warnings, otherFiles, unseen: live.unseen };
  }

  /** The processes, parents first, children in ascending process id. */
  #walk(root: number): FoundProcess[] {
    const found: FoundProcess[] = [];
    const queue: [pid: number, parent: number | undefined][] = [[root, undefined]];
    const seen = new Set<number>([root]);
    // The list grows during the loop.
    for (const [pid, parent] of queue) {
      if (this.own.includes(pid)) {
        this.#warnings.push('bpfimg itself runs in that tree: CRIU must run outside the tree it dumps');
        continue;
      }
      const process = this.#look(pid, parent);
      const children = process === undefined ? 'gone' : childrenOf(pid, this.sys.proc);
      if (process === undefined || children === 'gone') {
        if (pid === root) throw new BpfimgError('notFound', 'no such process', { subject: `process ${pid}` });
        continue;
      }
      found.push(process);
      for (const child of children) if (!seen.has(child)) queue.push([child, pid]);
      for (const child of children) seen.add(child);
    }
    return found;
  }

  #look(pid: number, parent: number | undefined): FoundProcess | undefined {
    const { proc } = this.sys;
    const files = anonymousFiles(pid, proc);
    const mappings = files === 'gone' ? files : anonymousMappings(pid, proc);
    if (files === 'gone' || mappings === 'gone') return undefined;
    if (files === 'hidden' || mappings === 'hidden') {
      const hidden = new BpfimgError('io', 'no permission to inspect its files (needs CAP_SYS_PTRACE)', {
        subject: `process ${pid}`,
      });
      if (parent === undefined) throw hidden;
      this.#blocks.push(hidden.message);
      return { pid, parent, command: commandOf(pid, proc), files: [], mappings: [] };
    }
    return { pid, parent, command: commandOf(pid, proc), files, mappings };
  }

  async #process({ pid, parent, command, files, mappings }: FoundProcess): Promise<CheckedProcess> {
    const maps = this.#heldMaps(files);
    const mapped = mappings.filter(({ kind }) => kind === MAP).map((one) => this.#mapping(one, maps));
    const objects: HeldObject[] = [];
    const inner = new Map<number, number[]>();
    for (const { map, access, fds } of maps) {
      const by = mapped.find(({ candidates }) => candidates?.length === 1 && candidates[0] === map.id);
      const outcome = await this.#outcome(map);
      objects.push(
        this.#mapRow(map, fds, by ? by.outcome : this.#native ? this.#nativeAccess(outcome, access) : outcome, access),
      );
      for (const id of this.#inner.get(map.id) ?? []) inner.set(id, [...new Set([...(inner.get(id) ?? []), map.id])]);
    }
    for (const [id, innerOf] of inner) {
      const map = this.#live.get(id);
      if (map === undefined || maps.some((one) => one.map.id === id)) continue;
      objects.push({ ...this.#mapRow(map, [], await this.#outcome(map)), innerOf });
    }
    objects.push(...mapped, ...this.#otherObjects(files));
    const place = ({ fds }: HeldObject) => fds[0] ?? Number.POSITIVE_INFINITY;
    objects.sort((a, b) => (place(a) === place(b) ? 0 : place(a) - place(b)));
    const here = `process ${pid} (${command})`;
    for (const object of objects) {
      if (object.outcome.kind === 'blocked')
        this.#blocked.push(`${here}, ${objectText(object)}: ${object.outcome.why}`);
    }
    return { pid, parent, command, objects };
  }

  // -------------------------------------------------------------------------------------------------
  // Maps

  /** The maps among `files`; files of one map with the same access are one entry. */
  #heldMaps(files: readonly AnonymousFile[]): { map: LiveMap; access: Access; fds: number[] }[] {
    const held = new Map<string, { map: LiveMap; access: Access; fds: number[] }>();
    for (const { fd, kind, fdinfo } of files) {
      const info = kind === MAP ? parseMapFdinfo(fdinfo) : undefined;
      const map = info && this.#live.get(info.id);
      // It has been closed since.
      if (info === undefined || map === undefined) continue;
      const key = `${info.id} ${info.access}`;
      const known = held.get(key);
      if (known === undefined) held.set(key, { map, access: info.access, fds: [fd] });
      else known.fds.push(fd);
    }
    return [...held.values()];
  }

  #mapRow(map: LiveMap, fds: readonly number[], outcome: Outcome, access?: Access): HeldObject {
    const type = map.type === undefined ? undefined : this.types.get(map.type).name;
    return { kind: 'map', fds, access, id: map.id, name: map.name, type, map, outcome };
  }

  async #outcome(map: LiveMap): Promise<Outcome> {
    const known = this.#outcomes.get(map.id);
    if (known !== undefined) return known;
    const outcome = this.#native ? this.#nativeOutcome(map) : await this.#pluginOutcome(map);
    this.#outcomes.set(map.id, outcome);
    return outcome;
  }

  /** What CRIU's own BPF support does with a map. */
  #nativeOutcome({ type, btfId }: LiveMap): Outcome {
    if (type === undefined || this.types.get(type).criu !== true) return { kind: 'blocked', why: refusal(type ?? 0) };
    if (btfId !== undefined && btfId !== 0) return { kind: 'partial', why: 'lost: its types (BTF)' };
    return { kind: 'full' };
  }

  /** And with a file descriptor that is read-only or write-only. */
  #nativeAccess(outcome: Outcome, access: Access): Outcome {
    if (outcome.kind === 'blocked' || access === 'rw') return outcome;
    if (access === 'wo')
      return { kind: 'blocked', why: 'CRIU reads through the fd it dumps, and this one is write-only' };
    const lost = outcome.kind === 'full' ? '' : `; ${outcome.why}`;
    return { kind: 'partial', why: `its fd comes back writable${lost}` };
  }

  async #pluginOutcome(map: LiveMap): Promise<Outcome> {
    if (map.type === undefined) return { kind: 'blocked', why: 'its type cannot be determined' };
    const type = this.types.get(map.type);
    const captured = await this.#captured(map, type);
    if (captured.kind !== 'full' && captured.kind !== 'not supported' && this.criu.config.partial === 'fail') {
      return { kind: 'blocked', why: `${reportText(captured)} ("partial fail" in ${this.criu.configFile})` };
    }
    return joined(captured, this.#restored(map, type));
  }

  /** What a capture would report. */
  async #captured(map: LiveMap, type: MapType): Promise<Report> {
    const unable: Report = { kind: 'not supported', why: `bpfimg cannot capture ${type.name} maps` };
    if (this.types.plugin(type.number).capture === undefined) return unable;
    if (type.drains === true) {
      if (map.frozen === true) return { kind: 'not supported', why: 'it is frozen, so its items cannot be popped' };
      if (this.criu.config.drain) return FULL;
      const why = `reading it removes its items, and ${this.criu.configFile} says "drain no"`;
      return { kind: 'not supported', why };
    }
    if (this.types.row(type.number) === undefined) {
      return {
        kind: 'partial',
        why: 'bpfimg does not know this type: it copies the items as plain bytes, if that is possible',
      };
    }
    // Every item of the other types is kept.
    if (type.carries === undefined && type.inner !== true) return FULL;
    if (type.inner !== true && memoryOf(map, this.types, this.sys.pageSize) > MOST_READ) {
      const { captured, lost } = type.carries as Carries;
      return captured === 'items'
        ? FULL
        : { kind: captured === 'metadata only' ? captured : 'partial', why: `lost: ${lost}` };
    }
    return this.#probe(map, type);
  }

  /** Captures a map into nothing. */
  async #probe(live: LiveMap, type: MapType): Promise<Report> {
    const ends: ((whole: boolean) => void)[] = [];
    const inner = new Set<number>();
    const sink = new CountingSink();
    const work: CaptureWork = {
      type,
      subject: mapSubject(live.id, live.name ?? ''),
      drain: 'no',
      folder: '',
      follow: (id) => {
        inner.add(id);
        const found = this.#live.get(id);
        return found && templateOf(found);
      },
      innerMaps: () => {},
      atEnd: (end) => ends.push(end),
      keep: () => {},
      progress: () => {},
    };
    try {
      using map = openLive(this.sys, live);
      const report = await this.types.plugin(type.number).capture?.(map, sink, work);
      this.#inner.set(live.id, [...inner]);
      if (sink.count === 0) this.#empty.add(live.id);
      return report ?? FULL;
    } catch (error) {
      if (!(error instanceof BpfimgError)) throw error;
      return { kind: 'not supported', why: error.message };
    } finally {
      for (const end of ends) end(false);
    }
  }

  /** What a restore would leave out, as far as we can tell now. */
  #restored(map: LiveMap, type: MapType): Report {
    const plugin = this.types.plugin(type.number);
    if (plugin.replay === undefined) {
      return { kind: 'not supported', why: `it could not be restored: bpfimg cannot fill ${type.name} maps` };
    }
    const { name = '', keySize = 0, valueSize = 0, maxEntries = 0, flags = 0 } = map;
    try {
      plugin.attributes?.({ type: type.number, name, keySize, valueSize, maxEntries, flags }, type);
    } catch (error) {
      if (!(error instanceof BpfimgError)) throw error;
      return { kind: 'not supported', why: `it could not be restored: ${error.message}` };
    }
    return this.#empty.has(map.id) ? FULL : lostAtRestore(type);
  }

  #mapping(mapping: AnonymousMapping, held: readonly { map: LiveMap }[]): HeldObject {
    const maps = new Map(held.map(({ map }) => [map.id, map]));
    const candidates = candidatesOf(mapping, [...maps.values()], this.types, this.sys.pageSize).map(({ id }) => id);
    return { kind: 'mapping', fds: [], mapping, candidates, outcome: { kind: 'blocked', why: MAPPED } };
  }

  // -------------------------------------------------------------------------------------------------
  // Other objects

  #otherObjects(files: readonly AnonymousFile[]): HeldObject[] {
    const held = new Map<string, HeldObject & { fds: number[] }>();
    for (const { fd, kind, fdinfo } of files) {
      if (kind === MAP || !isBpf(kind)) continue;
      const row = OBJECT_KINDS[kind] ?? OTHER_KIND;
      const fields = parseFdinfo(fdinfo);
      const number = (name: string | undefined) => {
        const text = name === undefined ? undefined : fields.get(name);
        return text !== undefined && /^\d+$/.test(text) ? Number(text) : undefined;
      };
      const id = number(row.id);
      const key = id === undefined ? `fd ${fd}` : `${kind} ${id}`;
      const known = held.get(key);
      if (known !== undefined) {
        known.fds.push(fd);
        continue;
      }
      const program = number('prog_id');
      const typeText = row.type === undefined ? undefined : fields.get(row.type);
      held.set(key, {
        kind: row.kind,
        fds: [fd],
        id,
        name: program === undefined ? undefined : this.#programs.get(program)?.name,
        type:
          row.kind === 'program' ? (PROGRAM_TYPES[Number(typeText)] ?? typeText) : (typeText ?? otherName(row, kind)),
        outcome:
          this.criu.config.keepPrograms && KEPT_KINDS.includes(row.kind)
            ? { kind: 'partial', why: 'it stays in the kernel: the restore must be on this host, before its next boot' }
            : {
                kind: 'blocked',
                why: `${row.what} cannot be dumped: close it before the dump and open it again after the restore`,
              },
      });
    }
    return [...held.values()];
  }

  // -------------------------------------------------------------------------------------------------
  // Warnings

  /** What is lost because a restored process has new maps. */
  #warnOfMaps(processes: readonly CheckedProcess[]): void {
    const tree = new Set(processes.map(({ pid }) => pid));
    const objects = processes.flatMap((one) => one.objects.filter(({ kind }) => kind === 'map'));
    const maps = new Map(objects.map(({ map }) => [(map as LiveMap).id, map as LiveMap]));
    const users = programsByMap(this.sys, new Set(maps.keys()));
    const { reuse } = this.criu.config;
    for (const map of [...maps.values()].sort((a, b) => a.id - b.id)) {
      const subject = mapSubject(map.id, map.name ?? '');
      const outside = map.holders.filter(({ pid }) => !tree.has(pid) && !this.own.includes(pid));
      const left = [pinsText(map.pins), programsText(users.get(map.id) ?? []), processesText(outside)].filter(
        (text) => text !== '',
      );
      if (left.length > 0) {
        const after = reuse
          ? 'a restore reuses the map if it still exists; otherwise these keep the old map, and the process gets a new one'
          : 'after a restore these keep the old map, and the process gets a new one';
        this.#warnings.push(`${subject}: ${left.join('; ')}: ${after}`);
      }
      if (
        map.type !== undefined &&
        this.types.get(map.type).drains === true &&
        this.#outcomes.get(map.id)?.kind === 'full'
      ) {
        this.#warnings.push(
          `${subject}: a dump removes its items and puts them back while the processes are frozen; nothing else may use it during that time`,
        );
      }
      // Only kcmp(2) says whether two file descriptors are one open file.
      const files = objects.filter(({ id }) => id === map.id).flatMap(({ fds }) => fds);
      if (this.#native && files.length > 1 && this.#outcomes.get(map.id)?.kind !== 'blocked') {
        this.#warnings.push(
          `${subject}: it has several file descriptors; unless they are duplicates, they come back as different maps`,
        );
      }
    }
  }

  /** Adds open files that we know nothing about; returns how many there are. */
  #warnOfStrangers(found: readonly FoundProcess[]): number {
    let count = 0;
    for (const { pid, command, files, mappings } of found) {
      const kinds = new Map<string, string[]>();
      const add = (kind: string, where: string) => kinds.set(kind, [...(kinds.get(kind) ?? []), where]);
      const isStrange = (kind: string) => !isBpf(kind) && !CRIUS_OWN.has(kind);
      for (const { fd, kind } of files) if (isStrange(kind)) add(kind, `fd ${fd}`);
      for (const { kind } of mappings) {
        if (isStrange(kind) && !(kinds.get(kind) ?? []).includes('mapped')) add(kind, 'mapped');
      }
      for (const [kind, where] of kinds) {
        count++;
        this.#warnings.push(
          `process ${pid} (${command}), ${where.join(', ')}: anon_inode:${kind} is not a BPF object, and CRIU may be unable to dump it`,
        );
      }
    }
    return count;
  }

  /** BPF file systems in other mount namespaces than CRIU's, where it dumps mounts. It cannot dump these. */
  #judgeMounts(found: readonly FoundProcess[]): void {
    const { proc } = this.sys;
    const seen = new Set([mountNamespaceOf('self', proc), undefined]);
    for (const { pid, command } of found) {
      const namespace = mountNamespaceOf(pid, proc);
      if (seen.has(namespace)) continue;
      seen.add(namespace);
      const points = bpffsMountsOf(pid, proc).map(({ point }) => point);
      if (points.length === 0) continue;
      const where = points.join(' and ');
      const options = (option: (point: string, name: string) => string) =>
        points.map((point, i) => `--external 'mnt[${option(point, i === 0 ? 'bpffs' : `bpffs${i + 1}`)}'`).join(' ');
      const [here = '/sys/fs/bpf'] = bpffsMounts(proc);
      const dump = options((point, name) => `${point}]:${name}`);
      const restore = options((_, name) => `${name}]:${here}`);
      this.#blocks.push(
        `process ${pid} (${command}): CRIU cannot dump the BPF file system at ${where} in its mount namespace ("FS mnt … unsupported"), except with: criu dump ${dump}, then criu restore ${restore}`,
      );
    }
  }

  /** Adds what is wrong with this host's CRIU. */
  #judgeHost(processes: readonly CheckedProcess[]): void {
    const maps = processes.some(({ objects }) => objects.some(({ kind }) => kind === 'map'));
    for (const { stops, text } of this.criu.findings) {
      const blocks = stops === 'every dump' || (stops === 'maps' && maps && !this.#native);
      (blocks ? this.#blocks : this.#warnings).push(text);
    }
    if (this.#native && maps) {
      const how = 'it is built with libbpf: it dumps hash and array maps its own way, and fails on all others';
      const plugin = `bpfimg's plugin dumps all types once ${this.criu.configFile} says "take-over yes"`;
      this.#warnings.push(`${this.criu.program}: ${how}; ${plugin}`);
    }
  }
}

/** What an object of an unknown kind is called. */
function otherName({ kind }: ObjectKind, link: string): string | undefined {
  return kind === 'other' ? link : undefined;
}

/** How a line names an object. */
function objectText({ kind, fds, id, name = '', mapping, innerOf = [], candidates = [] }: HeldObject): string {
  if (mapping !== undefined) return `mapping at 0x${mapping.start.toString(16)}${candidatesText(candidates)}`;
  const what = id === undefined ? kind : `${kind} ${id}${name === '' ? '' : ` ${name}`}`;
  if (fds.length === 0) return `${what} in map ${innerOf.join(', ')}`;
  return `fd ${fds.join(', ')} (${what})`;
}

/** Which maps a mapping may belong to, as the end of a line. */
function candidatesText(candidates: readonly number[]): string {
  if (candidates.length === 0) return ', of a map whose fd is closed';
  return ` of map ${candidates.join(' or ')}`;
}

function templateOf({ type, keySize, valueSize, maxEntries, flags }: LiveMap): Template | undefined {
  if (type === undefined || keySize === undefined || valueSize === undefined) return undefined;
  if (maxEntries === undefined || flags === undefined) return undefined;
  return { type, keySize, valueSize, maxEntries, flags };
}

/** Several names as one line. */
const NAMED_THINGS = 5;

function listText(list: readonly string[]): string {
  const more = list.length - NAMED_THINGS;
  return [...list.slice(0, NAMED_THINGS), ...(more > 0 ? [`${more} more`] : [])].join(', ');
}

function pinsText(pins: readonly string[]): string {
  return pins.length === 0 ? '' : `pinned at ${listText(pins)}`;
}

function programsText(programs: readonly Program[]): string {
  if (programs.length === 0) return '';
  return `used by program ${listText(programs.map(({ id, name }) => (name === '' ? `${id}` : `${id} (${name})`)))}`;
}

function processesText(holders: LiveMap['holders']): string {
  if (holders.length === 0) return '';
  const processes = new Map(holders.map(({ pid, command }) => [pid, `${pid} (${command})`]));
  return `held by process ${listText([...processes.values()])}`;
}

/** Accepts items and keeps none. */
class CountingSink implements ItemSink {
  count = 0;

  async put(_keys: Uint8Array, _values: Uint8Array, count: number): Promise<void> {
    this.count += count;
  }
}
