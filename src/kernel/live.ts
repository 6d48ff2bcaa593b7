/**
 * The live maps of this machine: finds them and their holders, and opens them without doing harm.
 *
 * fdinfo and pins are read first. A map without a visible holder or pin is opened only if its type is
 * known and harmless (see `iter.ts`); if its type is unknown, only its id is listed.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { cpuStride, pathBytes, pathText, untilNul } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import { during } from '../phases.js';
import { ATTR, PROG_INFO } from './abi.js';
import { KernelError } from './error.js';
import { mapSubject } from './flags.js';
import { type KernelMap, kernelMaps } from './iter.js';
import { BpfMap, InfoReader, openPin } from './map.js';
import { isPattern, listed, matcher, similarNames } from './pattern.js';
import {
  type Access,
  givenPath,
  type MapFdinfo,
  type MapHolder,
  mapFdinfo,
  mapsOfProcess,
  openMaps,
  pinFiles,
  treeOf,
} from './proc.js';
import { opensSafely } from './rules.js';
import { Attr, ERRNO, pinned, type Sys } from './sys.js';

/** A loaded program. */
export interface Program {
  readonly id: number;
  readonly name: string;
}

/** A live map, as it was when it was read. A member is undefined if it could not be seen. */
export interface LiveMap {
  readonly id: number;
  /** One character per byte. */
  name: string | undefined;
  type: number | undefined;
  keySize: number | undefined;
  valueSize: number | undefined;
  maxEntries: number | undefined;
  flags: number | undefined;
  extra: bigint | undefined;
  frozen: boolean | undefined;
  /** Bytes; of a map without visible pins or holders, {@link addMemory} fills it in. */
  memlock: number | undefined;
  /** 0 if it has none. */
  btfId: number | undefined;
  /** Its items, if the kernel counts them; filled in by {@link LiveMaps.addUsed}. */
  used: number | undefined;
  /** As {@link pathText} writes paths. */
  readonly pins: string[];
  readonly holders: MapHolder[];
  /** Programs that use it; filled in only if it has no visible pins or holders. */
  programs: readonly Program[];
}

/** Hashes up to which they are counted by reading them, and the size of the items of each. */
const MOST_READ = 50;
const MOST_BYTES = 64 * 1024;

/** Names that an error lists. */
const LISTED_NAMES = 5;

/** Selectors. A map is chosen if any of them names it. */
export interface Selectors {
  readonly ids: readonly number[];
  /** Whole names, or patterns. */
  readonly names: readonly string[];
  /** Paths of pins or of folders of pins, as bytes or as {@link pathText} writes them; or patterns. */
  readonly pins: readonly string[];
  readonly pids: readonly number[];
  /** Only these file descriptors of those processes; all of them if empty. */
  readonly fds?: readonly number[];
  /** Also the descendants of these processes. */
  readonly tree?: boolean;
}

/** What could not be seen. */
export interface Unseen {
  /** Ids cannot be walked (no CAP_SYS_ADMIN): other users' maps are missing. */
  readonly ids: boolean;
  /** Number of processes that we have no permission to inspect. */
  readonly processes: number;
  /** Maps of which only the id is known. */
  readonly types: number;
}

/**
 * Ids of all maps or programs, ascending, without opening any.
 * @returns undefined without CAP_SYS_ADMIN
 */
export function walkIds(sys: Sys, command: 'MAP_GET_NEXT_ID' | 'PROG_GET_NEXT_ID'): number[] | undefined {
  const attr = new Attr(ATTR.nextId, sys);
  const ids: number[] = [];
  for (let id = 0; ; ) {
    const result = sys.bpf(command, attr.set('start_id', id));
    if (result === -ERRNO.ENOENT) return ids;
    if (result === -ERRNO.EPERM) return undefined;
    if (result < 0) throw new KernelError('live maps', `BPF_${command}`, -result);
    id = attr.get('next_id');
    ids.push(id);
  }
}

/** Whether a map with this id exists, without opening it; undefined without CAP_SYS_ADMIN. */
export function isLive(sys: Sys, id: number): boolean | undefined {
  const attr = new Attr(ATTR.nextId, sys).set('start_id', id - 1);
  const result = sys.bpf('MAP_GET_NEXT_ID', attr);
  if (result === -ERRNO.EPERM) return undefined;
  return result >= 0 && attr.get('next_id') === id;
}

/**
 * Opens a live map in the way that disturbs least: through its holder, then its pin, and by id only
 * if that is harmless.
 * @param access the access that is needed: `ro` to read
 */
export function openLive(sys: Sys, map: LiveMap, access: 'ro' | 'rw' = 'ro'): BpfMap {
  const fits = (given: Access) => given === 'rw' || given === access;
  const ways: (() => BpfMap)[] = [
    ...map.holders.filter((one) => fits(one.access)).map((one) => () => BpfMap.fromProcess(sys, one.pid, one.fd)),
    ...map.pins.map((path) => () => BpfMap.openPinned(sys, pathBytes(path), access)),
  ];
  // We saw it held, so its type does not matter.
  const held = map.holders.length > 0 || map.pins.length > 0;
  if (map.type !== undefined && (held || opensSafely(sys.types.row(map.type))))
    ways.push(() => BpfMap.openById(sys, map.id, access));
  let failure: unknown;
  for (const way of ways) {
    try {
      const open = way();
      // The file descriptor may belong to another file by now.
      if (open.id === map.id) return open;
      open.close();
    } catch (error) {
      failure ??= error;
    }
  }
  if (failure !== undefined) throw failure;
  const why = 'no visible process or pin holds it, and opening it could harm it, depending on its type';
  throw new BpfimgError('unsupported', why, { subject: mapSubject(map.id, map.name ?? '') });
}

/** Fills in how much memory maps take that no visible pin or holder has, as far as opening them is harmless. */
export function addMemory(sys: Sys, maps: readonly LiveMap[]): void {
  for (const map of maps) {
    if (map.memlock !== undefined || map.type === undefined || !opensSafely(sys.types.row(map.type))) continue;
    const fd = openId(sys, map.id);
    if (fd < 0) continue;
    map.memlock = mapFdinfo('self', fd, sys.proc)?.memlock;
    sys.close(fd);
  }
}

function openId(sys: Sys, id: number): number {
  return sys.bpf('MAP_GET_FD_BY_ID', new Attr(ATTR.mapById, sys).set('map_id', id));
}

/** Processes and all their descendants. */
export function treesOf(pids: readonly number[], proc: string): number[] {
  return [...new Set(pids.flatMap((pid) => treeOf(pid, proc)))];
}

/** What is at a path. If we have no permission to look, opening it will explain that. */
function kindOfFile(file: Buffer): 'nothing' | 'folder' | 'other' {
  try {
    const stat = fs.statSync(file, { throwIfNoEntry: false });
    return stat === undefined ? 'nothing' : stat.isDirectory() ? 'folder' : 'other';
  } catch {
    return 'other';
  }
}

/** Which maps are wanted: those with these ids, and those pinned in these folders, whose ids are added when they are found. */
interface Wanted {
  readonly ids: Set<number>;
  /** Paths as bytes, one character each. */
  readonly folders: ReadonlySet<string>;
}

/** What `selectors` name, if they are ids, pins and folders of pins: patterns, lists and names do not count. */
function wantedBy(sys: Sys, { ids, names, pins, pids }: Selectors): Wanted | undefined {
  if (names.length > 0 || pids.length > 0 || ids.length + pins.length === 0) return undefined;
  const wanted = { ids: new Set(ids), folders: new Set<string>() };
  for (const pin of pins) {
    const file = givenPath(pin);
    const kind = kindOfFile(file);
    if (kind === 'nothing') return undefined;
    if (kind === 'folder') wanted.folders.add(fs.realpathSync(file, { encoding: 'buffer' }).toString('latin1'));
    else {
      using map = BpfMap.openPinned(sys, file, 'ro');
      wanted.ids.add(map.id);
    }
  }
  return wanted;
}

/** The maps that can be seen. */
export class LiveMaps {
  /** In ascending order of id. */
  readonly maps: readonly LiveMap[];
  readonly unseen: Unseen;
  readonly #sys: Sys;
  readonly #kernel: KernelList;
  /** All maps, if {@link find} needed them. */
  #others: ReadonlyMap<number, LiveMap> | undefined;

  private constructor(sys: Sys, maps: readonly LiveMap[], unseen: Unseen, kernel: KernelList) {
    this.#sys = sys;
    this.maps = maps;
    this.unseen = unseen;
    this.#kernel = kernel;
  }

  /**
   * Inspects the machine. Opens each map at most once and closes it at once.
   * @param selectors what will be selected: if they say which maps that are, only those are found, which takes less time
   */
  static look(sys: Sys, selectors?: Selectors): LiveMaps {
    return during('finding the live maps', () => LiveMaps.#look(sys, selectors && wantedBy(sys, selectors)));
  }

  static #look(sys: Sys, wanted: Wanted | undefined): LiveMaps {
    // Ids first: a map that is held now and stays held shows up in what is read afterwards.
    const ids = walkIds(sys, 'MAP_GET_NEXT_ID');
    const found = new MapCollector(sys, wanted);
    // Then pins, which tell the ids of what is pinned in a folder.
    found.addPins();
    const { open, hidden } = openMaps(sys.proc);
    for (const { holder, map } of open) if (found.wants(map.id)) found.add(map).holders.push(holder);
    found.addNames(ids !== undefined);
    const rest = (ids ?? []).filter((id) => found.wants(id) && !found.maps.has(id));
    if (rest.length > 0) found.addUnheld(rest);
    const maps = [...found.maps.values()].sort((a, b) => a.id - b.id);
    const types = maps.filter((map) => map.type === undefined).length;
    return new LiveMaps(sys, maps, { ids: ids === undefined, processes: hidden, types }, found.kernel);
  }

  /** A map that another map refers to; undefined if it cannot be seen. */
  find(id: number): LiveMap | undefined {
    const map = this.maps.find((one) => one.id === id);
    if (map !== undefined) return map;
    this.#others ??= new Map(LiveMaps.look(this.#sys).maps.map((one) => [one.id, one]));
    return this.#others.get(id);
  }

  /** The maps that these processes hold, without pins or other holders. */
  static ofProcesses(sys: Sys, pids: readonly number[]): LiveMaps {
    const found = new MapCollector(sys);
    let hidden = 0;
    for (const pid of pids) {
      const open = mapsOfProcess(pid, sys.proc);
      if (open === 'hidden') hidden++;
      else if (open !== 'gone') for (const { holder, map } of open) found.add(map).holders.push(holder);
    }
    found.addNames(false);
    const maps = [...found.maps.values()].sort((a, b) => a.id - b.id);
    return new LiveMaps(sys, maps, { ids: false, processes: hidden, types: 0 }, found.kernel);
  }

  /**
   * Fills in the number of items of `maps`, as far as the kernel counts them. A few small ones are read instead: that
   * takes less time than to find in the kernel's types how it counts.
   */
  addUsed(maps: readonly LiveMap[]): void {
    const counted = maps.filter(({ type }) => type !== undefined && this.#sys.types.row(type)?.counted !== undefined);
    const few = !this.#kernel.isRead && counted.length <= MOST_READ;
    if (few) for (const map of counted) map.used = this.#read(map);
    const rest = counted.filter(({ used }) => used === undefined);
    if (rest.length === 0) return;
    const kernel = this.#kernel.maps();
    for (const map of rest) map.used = kernel?.get(map.id)?.used;
  }

  /** The number of items of a small hash; undefined if it must be counted in another way. */
  #read(live: LiveMap): number | undefined {
    const { type = -1, keySize = 0, valueSize = 0, maxEntries = Infinity } = live;
    const row = this.#sys.types.row(type);
    const size = maxEntries * (keySize + (row?.perCpu ? cpuStride(valueSize) * this.#sys.cpus : valueSize));
    if (row?.counted?.by !== 'elements' || size > MOST_BYTES) return undefined;
    try {
      using map = openLive(this.#sys, live);
      const { count, end } = map.lookupBatch(map.cursor(), map.batch(maxEntries));
      return end ? count : undefined;
    } catch (error) {
      if (error instanceof BpfimgError) return undefined;
      throw error;
    }
  }

  /**
   * The maps that `selectors` name, in ascending order of id; all of them if there are no selectors.
   * @throws BpfimgError `notFound`, or `usage` for a name that several maps share; KernelError
   */
  select(selectors: Selectors): LiveMap[] {
    const { ids, names, pins, pids, fds = [], tree = false } = selectors;
    if (ids.length + names.length + pins.length + pids.length === 0) return [...this.maps];
    const chosen = new Set<number>(ids);
    for (const id of ids) if (!this.maps.some((map) => map.id === id)) throw this.#missing(`map ${id}`, 'no such map');
    const named = (name: string) => this.maps.some((map) => map.name === name) || isPattern(name);
    for (const name of names.flatMap((text) => listed(text, named)))
      for (const map of this.#named(name)) chosen.add(map.id);
    const isThere = (pin: string) => kindOfFile(givenPath(pin)) !== 'nothing' || isPattern(pin);
    for (const pin of pins.flatMap((text) => listed(text, isThere))) for (const id of this.#pinned(pin)) chosen.add(id);
    for (const pid of tree ? treesOf(pids, this.#sys.proc) : pids) {
      const open = mapsOfProcess(pid, this.#sys.proc);
      if (open === 'gone' && !pids.includes(pid)) continue;
      if (open === 'gone') throw new BpfimgError('notFound', 'no such process', { subject: `process ${pid}` });
      if (open === 'hidden') {
        throw new BpfimgError(
          'io',
          'no permission to inspect its files (needs the right to trace it: CAP_SYS_PTRACE, and no fewer capabilities than it has)',
          { subject: `process ${pid}` },
        );
      }
      for (const fd of fds) {
        if (open.some(({ holder }) => holder.fd === fd)) continue;
        throw new BpfimgError('notFound', `its fd ${fd} is not a BPF map`, { subject: `process ${pid}` });
      }
      for (const { map, holder } of open) if (fds.length === 0 || fds.includes(holder.fd)) chosen.add(map.id);
    }
    return this.maps.filter((map) => chosen.has(map.id));
  }

  /** Ids of the maps whose pin is `given`, is in the folder `given`, or matches the pattern `given`. */
  #pinned(given: string): number[] {
    const file = givenPath(given);
    const what = kindOfFile(file);
    if (what === 'folder') {
      const folder = pathText(fs.realpathSync(file, { encoding: 'buffer' }));
      const found = this.maps.filter(({ pins }) => pins.some((pin) => path.posix.dirname(pin) === folder));
      if (found.length === 0) throw this.#missing(given, 'no map is pinned in this folder');
      return found.map(({ id }) => id);
    }
    if (what === 'nothing' && isPattern(given)) {
      const fits = matcher(path.resolve(given));
      const found = this.maps.filter(({ pins }) => pins.some(fits));
      if (found.length === 0) throw this.#missing(given, 'no map is pinned at such a path');
      return found.map(({ id }) => id);
    }
    if (what === 'nothing') {
      const pins = this.maps.flatMap((map) => map.pins);
      const like = similarNames(
        path.basename(given),
        pins.map((pin) => path.posix.basename(pin)),
      );
      const paths = pins.filter((pin) => like.includes(path.posix.basename(pin))).slice(0, LISTED_NAMES);
      throw this.#missing(given, 'nothing is pinned there', paths);
    }
    using map = BpfMap.openPinned(this.#sys, file, 'ro');
    if (!this.maps.some((one) => one.id === map.id)) throw this.#missing(given, 'it was pinned just now');
    return [map.id];
  }

  /** The map with that name, or all whose names match a pattern. */
  #named(name: string): LiveMap[] {
    const found = this.maps.filter((map) => map.name === name);
    if (found.length === 1) return found;
    const names = this.maps.flatMap((map) => map.name ?? []);
    if (found.length === 0) {
      const fits = isPattern(name) ? matcher(name) : () => false;
      const all = this.maps.filter((map) => map.name !== undefined && fits(map.name));
      if (all.length > 0) return all;
      throw this.#missing(`--name ${name}`, 'no map has this name', similarNames(name, names));
    }
    const list = found.slice(0, 20).map((map) => map.id);
    const more = found.length > list.length ? ', …' : '';
    throw new BpfimgError('usage', `${found.length} maps have that name, choose by id: ${list.join(', ')}${more}`, {
      subject: `--name ${name}`,
    });
  }

  /** @param like similar names, for the message */
  #missing(what: string, why: string, like: readonly string[] = []): BpfimgError {
    const doubt = this.unseen.ids ? ' that can be seen without CAP_SYS_ADMIN' : '';
    const others = like.length === 0 ? '' : `; there is ${like.join(', ')}`;
    return new BpfimgError('notFound', `${why}${doubt}${others}`, { subject: what });
  }
}

/** The kernel's own list of maps, which is read once, if it is needed. */
class KernelList {
  #read: { readonly maps: Map<number, KernelMap> | undefined } | undefined;

  constructor(readonly sys: Sys) {}

  get isRead(): boolean {
    return this.#read !== undefined;
  }

  /** Undefined if it cannot be read. */
  maps(): Map<number, KernelMap> | undefined {
    this.#read ??= { maps: kernelMaps(this.sys) };
    return this.#read.maps;
  }
}

/** What is known of each map so far. */
class MapCollector {
  readonly maps = new Map<number, LiveMap>();
  readonly kernel: KernelList;
  readonly #info: InfoReader;

  constructor(
    readonly sys: Sys,
    /** Undefined for all. */
    readonly wanted?: Wanted | undefined,
  ) {
    this.kernel = new KernelList(sys);
    this.#info = new InfoReader(sys);
  }

  wants(id: number): boolean {
    return this.wanted === undefined || this.wanted.ids.has(id);
  }

  /** The map that an fdinfo shows. */
  add(fdinfo: MapFdinfo): LiveMap {
    let map = this.maps.get(fdinfo.id);
    if (map === undefined) {
      map = { ...unknownMap(fdinfo.id), ...known(fdinfo) };
      this.maps.set(fdinfo.id, map);
    }
    return map;
  }

  /** Opens every file of the BPF file systems. A pin holds its object, so opening it briefly changes nothing. */
  addPins(): void {
    const inFolder = (file: Buffer) =>
      this.wanted?.folders.has(file.toString('latin1', 0, file.lastIndexOf(path.sep))) === true;
    const files = [...pinFiles(this.sys.proc)].map((file) => ({ file, within: inFolder(file) }));
    // Folders first: what is pinned there may also be pinned elsewhere.
    for (const { file, within } of [...files.filter((one) => one.within), ...files.filter((one) => !one.within)]) {
      let fd = openPin(this.sys, file);
      if (fd < 0) fd = enough(openPin(this.sys, file, 'ro'), 'BPF_OBJ_GET');
      if (fd < 0) continue;
      try {
        if (!within && this.wanted !== undefined && !this.wants(this.#info.id(fd))) continue;
        const fdinfo = mapFdinfo('self', fd, this.sys.proc);
        // A program, for example.
        if (fdinfo === undefined) continue;
        this.wanted?.ids.add(fdinfo.id);
        const map = this.add(fdinfo);
        map.pins.push(pathText(file));
        if (map.name === undefined) this.#ask(map, fd);
      } finally {
        this.sys.close(fd);
      }
    }
    for (const map of this.maps.values()) map.pins.sort();
  }

  /** Fills in what only the kernel knows; false if `fd` is another map or no map. */
  #ask(map: LiveMap, fd: number): boolean {
    try {
      const info = this.#info.read(fd, `map ${map.id}`);
      // The holder may have reused the number by now.
      if (info.id !== map.id || info.type !== map.type) return false;
      Object.assign(map, { name: info.name, btfId: info.btfId, extra: info.extra });
      return true;
    } catch {
      return false;
    }
  }

  /**
   * Names and BTF of maps that processes hold. Borrows the holders' own open files, so that closing them
   * has no side effects.
   */
  addNames(byId: boolean): void {
    const pidfds = new Map<number, number>();
    try {
      for (const map of this.maps.values()) {
        if (map.name !== undefined) continue;
        const learnt = map.holders.some(({ pid, fd }) => {
          const pidfd = pidfds.get(pid) ?? enough(this.sys.pidfdOpen(pid), 'pidfd_open');
          pidfds.set(pid, pidfd);
          return pidfd >= 0 && this.#askAndClose(map, enough(this.sys.pidfdGetfd(pidfd, fd), 'pidfd_getfd'));
        });
        if (!learnt && byId && map.type !== undefined && opensSafely(this.sys.types.row(map.type)))
          this.#askAndClose(map, openId(this.sys, map.id));
      }
    } finally {
      for (const pidfd of pidfds.values()) if (pidfd >= 0) this.sys.close(pidfd);
    }
  }

  #askAndClose(map: LiveMap, fd: number): boolean {
    if (fd < 0) return false;
    try {
      return this.#ask(map, fd);
    } finally {
      this.sys.close(fd);
    }
  }

  /** Maps without a visible holder or pin: kept by programs, other maps or mappings. */
  addUnheld(ids: readonly number[]): void {
    const kernel = this.kernel.maps();
    for (const id of ids) {
      const seen = kernel?.get(id);
      // It went away after its id was walked.
      if (kernel !== undefined ? seen === undefined : !isLive(this.sys, id)) continue;
      this.maps.set(id, Object.assign(unknownMap(id), seen && iteratorFacts(seen)));
    }
    const users = programsByMap(this.sys, new Set(ids));
    for (const id of ids) {
      const map = this.maps.get(id);
      if (map !== undefined) map.programs = users.get(id) ?? [];
    }
  }
}

/** Throws if we ran out of file descriptors: maps would otherwise seem to have no names. */
function enough(result: number, call: string): number {
  if (result === -ERRNO.EMFILE) throw new KernelError('live maps', call, -result);
  return result;
}

function unknownMap(id: number): LiveMap {
  return {
    id,
    name: undefined,
    type: undefined,
    keySize: undefined,
    valueSize: undefined,
    maxEntries: undefined,
    flags: undefined,
    extra: undefined,
    frozen: undefined,
    memlock: undefined,
    btfId: undefined,
    used: undefined,
    pins: [],
    holders: [],
    programs: [],
  };
}

function known(fdinfo: MapFdinfo): Partial<LiveMap> {
  const { type, keySize, valueSize, maxEntries, flags, extra, memlock, frozen } = fdinfo;
  return { type, keySize, valueSize, maxEntries, flags, extra, memlock, frozen };
}

function iteratorFacts(map: KernelMap): Partial<LiveMap> {
  const { name, type, keySize, valueSize, maxEntries, flags, extra, frozen, btfId } = map;
  return { name, type, keySize, valueSize, maxEntries, flags, extra, frozen, btfId };
}

/** Programs by the ids of the maps they use, for the maps in `wanted`. Opening a program has no side effects. */
export function programsByMap(sys: Sys, wanted: ReadonlySet<number>): Map<number, Program[]> {
  const users = new Map<number, Program[]>();
  let ids = pinned(4 * 64);
  for (const id of walkIds(sys, 'PROG_GET_NEXT_ID') ?? []) {
    const fd = sys.bpf('PROG_GET_FD_BY_ID', new Attr(ATTR.progById, sys).set('prog_id', id));
    if (fd < 0) continue;
    try {
      for (;;) {
        const info = new Attr(PROG_INFO, sys).set('nr_map_ids', ids.length / 4).point('map_ids', ids);
        const attr = new Attr(ATTR.info, sys)
          .set('bpf_fd', fd)
          .set('info_len', info.bytes.length)
          .point('info', info.bytes);
        if (sys.bpf('OBJ_GET_INFO_BY_FD', attr) < 0) break;
        const count = info.get('nr_map_ids');
        if (count > ids.length / 4) {
          ids = pinned(4 * count);
          continue;
        }
        const program = { id, name: untilNul(info.getBytes('name')) };
        for (let i = 0; i < count; i++) {
          const map = ids.readUInt32LE(4 * i);
          if (wanted.has(map)) users.set(map, [...(users.get(map) ?? []), program]);
        }
        break;
      }
    } finally {
      sys.close(fd);
    }
  }
  return users;
}
