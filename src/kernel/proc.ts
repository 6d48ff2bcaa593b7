/**
 * What procfs, sysfs and mounts tell about BPF maps without opening any: fdinfo, holders, BPF file systems, CPUs.
 *
 * Processes come and go meanwhile: those that have ended are left out, those that we have no permission to
 * inspect are counted.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { pathBytes, pathText } from '../bytes.js';
import { BpfimgError, errnoOf, ioError } from '../errors.js';
import { BPF_FS_MAGIC, MAP_LINK, type MapShape } from './abi.js';

/** Mount point of procfs; tests have their own. */
export const PROC = '/proc';

/** Access through a file descriptor of a map: reading and writing, only reading, only writing. */
export type Access = 'rw' | 'ro' | 'wo';

/** A map as /proc/PID/fdinfo/FD shows it. Undefined if this kernel does not show it. */
export interface MapFdinfo extends MapShape {
  readonly id: number;
  /** Since Linux 5.16. */
  readonly extra: bigint | undefined;
  /** Bytes. */
  readonly memlock: number | undefined;
  /** Since Linux 5.2. */
  readonly frozen: boolean | undefined;
  /** The access that this file descriptor gives. */
  readonly access: Access;
  /** Closed on exec. */
  readonly cloexec: boolean;
}

/** One open file that is a map. */
export interface MapHolder {
  readonly pid: number;
  /** The name the process has given itself (comm). */
  readonly command: string;
  readonly fd: number;
  readonly access: Access;
  readonly cloexec: boolean;
}

/** The lines of an fdinfo file by name, because kernels add lines and change their order. */
export function parseFdinfo(text: string): Map<string, string> {
  const fields = new Map<string, string>();
  for (const line of text.split('\n')) {
    const colon = line.indexOf(':');
    if (colon > 0) fields.set(line.slice(0, colon), line.slice(colon + 1).trim());
  }
  return fields;
}

/** fdinfo of a map; undefined if it is something else. */
export function parseMapFdinfo(text: string): MapFdinfo | undefined {
  // Without parseFdinfo(), because there may be thousands of maps.
  const lines = `\n${text}\n`;
  const field = (name: string) => {
    const at = lines.indexOf(`\n${name}:`);
    return at < 0 ? undefined : lines.slice(at + name.length + 2, lines.indexOf('\n', at + 1)).trim();
  };
  const number = (name: string) => {
    const value = field(name);
    return value !== undefined && /^(0x[0-9a-f]+|\d+)$/.test(value) ? Number(value) : undefined;
  };
  const [id, type] = [number('map_id'), number('map_type')];
  if (id === undefined || type === undefined) return undefined;
  const extra = field('map_extra');
  const frozen = number('frozen');
  const open = Number.parseInt(field('flags') ?? '02', 8);
  const mode = open & 3; // O_ACCMODE
  return {
    id,
    type,
    keySize: number('key_size') ?? 0,
    valueSize: number('value_size') ?? 0,
    maxEntries: number('max_entries') ?? 0,
    flags: number('map_flags') ?? 0,
    extra: extra === undefined ? undefined : BigInt(extra),
    memlock: number('memlock'),
    frozen: frozen === undefined ? undefined : frozen !== 0,
    access: mode === 0 ? 'ro' : mode === 1 ? 'wo' : 'rw',
    cloexec: (open & 0o2000000) !== 0,
  };
}

const buffer = Buffer.alloc(4096);

/** Reads the start of a small file of procfs, faster than readFileSync. */
function readSmall(file: string): string {
  const fd = fs.openSync(file, 'r');
  try {
    return buffer.toString('latin1', 0, fs.readSync(fd, buffer, 0, buffer.length, 0));
  } finally {
    fs.closeSync(fd);
  }
}

/** These must not count as a missing file: then everything would seem to be missing. */
function rethrowOutOfFiles(error: unknown): void {
  const code = errnoOf(error);
  if (code !== 'EMFILE' && code !== 'ENFILE') return;
  throw ioError((error as NodeJS.ErrnoException).path ?? 'procfs', 'read it', error);
}

/** The value of `read`, or undefined if a process, file descriptor or file is gone or not accessible. */
function attempt<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    rethrowOutOfFiles(error);
    return undefined;
  }
}

/** The list that `read` returns, or the name of its errno. */
function orErrno(read: () => string[]): string[] | string {
  try {
    return read();
  } catch (error) {
    rethrowOutOfFiles(error);
    return errnoOf(error) ?? '';
  }
}

function isForbidden(errno: string): boolean {
  return errno === 'EACCES' || errno === 'EPERM';
}

/** fdinfo of file descriptor `fd` of a process; undefined if it is not a map, is gone, or is not readable. */
export function mapFdinfo(pid: number | 'self', fd: number, proc = PROC): MapFdinfo | undefined {
  const text = attempt(() => readSmall(`${proc}/${pid}/fdinfo/${fd}`));
  return text === undefined ? undefined : parseMapFdinfo(text);
}

/** What readlink shows for our own `fd`. */
export function fdLink(fd: number, proc = PROC): string | undefined {
  return attempt(() => fs.readlinkSync(`${proc}/self/fd/${fd}`));
}

/** The name a process has given itself (comm): at most 15 bytes, of any value. */
export function commandOf(pid: number, proc = PROC): string {
  return attempt(() => fs.readFileSync(`${proc}/${pid}/comm`, 'utf8').replace(/\n$/, '')) ?? '';
}

/** An open map of a process. */
export interface OpenMap {
  readonly holder: MapHolder;
  readonly map: MapFdinfo;
}

/** What {@link openMaps} could see. */
export interface Scan {
  readonly open: readonly OpenMap[];
  /** Number of processes whose files we have no permission to see. */
  readonly hidden: number;
}

/** Ids of all processes. */
export function processes(proc = PROC): number[] {
  return fs
    .readdirSync(proc)
    .filter((name) => /^[1-9]\d*$/.test(name))
    .map(Number);
}

/** The process that traces `pid`; 0 if none does, undefined if `pid` is gone. */
export function tracerOf(pid: number, proc = PROC): number | undefined {
  const text = attempt(() => readSmall(`${proc}/${pid}/status`));
  const tracer = /^TracerPid:\s*(\d+)/m.exec(text ?? '')?.[1];
  return tracer === undefined ? undefined : Number(tracer);
}

/** The boot id of the kernel: map ids are valid within one boot. Undefined if it is not readable. */
export function bootId(proc = PROC): string | undefined {
  return attempt(() => readSmall(`${proc}/sys/kernel/random/boot_id`).trim());
}

/** The open maps of a process: `gone`, `hidden` (no permission), or the maps in ascending order of file descriptor. */
export function mapsOfProcess(pid: number, proc = PROC): OpenMap[] | 'gone' | 'hidden' {
  const folder = `${proc}/${pid}/fd`;
  const fds = orErrno(() => fs.readdirSync(folder));
  if (typeof fds === 'string') return isForbidden(fds) ? 'hidden' : 'gone';
  const open: OpenMap[] = [];
  let command: string | undefined;
  for (const name of fds) {
    // Most files are not maps, and reading their link is far cheaper than reading their fdinfo.
    const link = orErrno(() => [fs.readlinkSync(`${folder}/${name}`)]);
    // Root without capabilities may list other users' files, but not read them.
    if (typeof link === 'string' && isForbidden(link)) return 'hidden';
    if (link[0] !== MAP_LINK) continue;
    const fd = Number(name);
    const map = mapFdinfo(pid, fd, proc);
    if (map === undefined) continue;
    command ??= commandOf(pid, proc);
    open.push({ holder: { pid, command, fd, access: map.access, cloexec: map.cloexec }, map });
  }
  return open.sort((a, b) => a.holder.fd - b.holder.fd);
}

/** The open maps of all processes that we have permission to inspect, in ascending order of process id. */
export function openMaps(proc = PROC): Scan {
  const open: OpenMap[] = [];
  let hidden = 0;
  // Since Linux 6.2 the size of the folder is how many files are open: kernel threads, which are many, have none.
  const files = (pid: number | 'self') => attempt(() => fs.statSync(`${proc}/${pid}/fd`).size);
  const counted = files('self') !== 0;
  for (const pid of processes(proc).sort((a, b) => a - b)) {
    if (counted && files(pid) === 0) continue;
    const found = mapsOfProcess(pid, proc);
    if (found === 'hidden') hidden++;
    else if (found !== 'gone') for (const one of found) open.push(one);
  }
  return { open, hidden };
}

// ---------------------------------------------------------------------------------------------------
// Process trees, and what a process holds that belongs to no file system

/** Link prefix of a file that belongs to no file system. */
const ANONYMOUS = 'anon_inode:';
/** The link of a BPF token names its BPF file system and a file that does not exist there. */
const TOKEN = '/bpf-token (deleted)';

/** What `link` says of an anonymous file: `bpf-map`, `[eventpoll]`; undefined for other files. */
function anonymousKind(link: string): string | undefined {
  if (link === TOKEN) return 'bpf-token';
  return link.startsWith(ANONYMOUS) ? link.slice(ANONYMOUS.length) : undefined;
}

/** An open file of a process that belongs to no file system. */
export interface AnonymousFile {
  readonly fd: number;
  /** As the kernel names it: `bpf-map`, `bpf_link`, `[eventpoll]`. */
  readonly kind: string;
  /** The text of its fdinfo, at most 4 KiB. */
  readonly fdinfo: string;
}

/** The anonymous files of a process in ascending order of file descriptor: `gone`, or `hidden` (no permission). */
export function anonymousFiles(pid: number, proc = PROC): AnonymousFile[] | 'gone' | 'hidden' {
  const folder = `${proc}/${pid}/fd`;
  const fds = orErrno(() => fs.readdirSync(folder));
  if (typeof fds === 'string') return isForbidden(fds) ? 'hidden' : 'gone';
  const found: AnonymousFile[] = [];
  for (const name of fds) {
    const link = orErrno(() => [fs.readlinkSync(`${folder}/${name}`)]);
    if (typeof link === 'string' && isForbidden(link)) return 'hidden';
    const kind = anonymousKind(link[0] as string);
    if (kind === undefined) continue;
    const fdinfo = attempt(() => readSmall(`${proc}/${pid}/fdinfo/${name}`));
    if (fdinfo !== undefined) found.push({ fd: Number(name), kind, fdinfo });
  }
  return found.sort((a, b) => a.fd - b.fd);
}

/** A part of a process's memory that maps an anonymous file. */
export interface AnonymousMapping {
  readonly start: bigint;
  readonly end: bigint;
  /** Offset in the file, in bytes. */
  readonly offset: bigint;
  readonly access: Access;
  /** As in {@link AnonymousFile}. */
  readonly kind: string;
}

/** The anonymous files that a process has mapped, by address: `gone`, or `hidden` (no permission). */
export function anonymousMappings(pid: number, proc = PROC): AnonymousMapping[] | 'gone' | 'hidden' {
  const lines = orErrno(() => fs.readFileSync(`${proc}/${pid}/maps`, 'latin1').split('\n'));
  if (typeof lines === 'string') return isForbidden(lines) ? 'hidden' : 'gone';
  return lines.flatMap((line): AnonymousMapping[] => {
    // start-end, permissions, offset, device, inode, name
    const match = /^([\da-f]+)-([\da-f]+) (..).. ([\da-f]+) \S+ \d+ +anon_inode:(.+)$/.exec(line);
    if (match === null) return [];
    const [, start, end, permissions, offset, kind = ''] = match;
    const access = permissions === 'rw' ? 'rw' : permissions === '-w' ? 'wo' : 'ro';
    const number = (hex = '') => BigInt(`0x${hex}`);
    return [{ start: number(start), end: number(end), offset: number(offset), access, kind }];
  });
}

/**
 * The children of all threads of a process, in ascending order of process id; `gone` if it has ended.
 * @throws BpfimgError `unsupported` if the kernel does not list them (CONFIG_PROC_CHILDREN)
 */
export function childrenOf(pid: number, proc = PROC): number[] | 'gone' {
  const folder = `${proc}/${pid}/task`;
  const children: number[] = [];
  for (const task of attempt(() => fs.readdirSync(folder)) ?? []) {
    const text = attempt(() => fs.readFileSync(`${folder}/${task}/children`, 'latin1'));
    if (text !== undefined) for (const [child] of text.matchAll(/\d+/g)) children.push(Number(child));
    else if (attempt(() => fs.statSync(`${folder}/${task}/stat`)) !== undefined) {
      const why = 'this kernel does not list the children of a process (it lacks CONFIG_PROC_CHILDREN)';
      throw new BpfimgError('unsupported', why, { subject: `${folder}/${task}/children` });
    }
  }
  return attempt(() => fs.statSync(folder)) === undefined ? 'gone' : children.sort((a, b) => a - b);
}

/** A process and all its descendants, nearer ones first. */
export function treeOf(root: number, proc = PROC): number[] {
  const tree = new Set([root]);
  // The list grows during the loop.
  for (const pid of tree) {
    const children = childrenOf(pid, proc);
    if (children !== 'gone') for (const child of children) tree.add(child);
  }
  return [...tree];
}

// ---------------------------------------------------------------------------------------------------
// Network interfaces

/** The network namespace of a process; undefined if it is gone or not accessible. */
export function networkOf(pid: number | 'self', proc = PROC): string | undefined {
  return attempt(() => fs.readlinkSync(`${proc}/${pid}/ns/net`));
}

/**
 * Network interfaces of a process's network namespace: index and name (as {@link pathText} writes it).
 *
 * The indexes are read from IPv6 files, because procfs follows the process into its namespace. Sysfs shows the
 * namespace of whoever mounted it, so it only adds interfaces without IPv6, if it shows the same others.
 */
export function interfacesOf(pid: number | 'self', proc = PROC, sys = '/sys/class/net'): [number, string][] {
  const text = attempt(() => fs.readFileSync(`${proc}/${pid}/net/dev`, 'latin1')) ?? '';
  const names = [...text.matchAll(/^ *([^\s:|]+):/gm)].map(([, name = '']) => name);
  const numberIn = (folder: string, name: string, file: string, pattern: RegExp) => {
    const bytes = Buffer.from(`${folder}/${name}${file}`, 'latin1');
    const match = pattern.exec(attempt(() => fs.readFileSync(bytes, 'latin1')) ?? '');
    return match ? Number(match[1]) : undefined;
  };
  const snmp = names.map((name) => numberIn(`${proc}/${pid}/net/dev_snmp6`, name, '', /^ifIndex\s+(\d+)/));
  let sysfs: (number | undefined)[] = [];
  if (snmp.includes(undefined)) {
    const shown = attempt(() => fs.readdirSync(Buffer.from(sys), 'latin1')) ?? [];
    sysfs = names.map((name) => numberIn(sys, name, '/ifindex', /^(\d+)/));
    const same = names.every((name) => shown.includes(name)) && snmp.every((one, i) => (one ?? sysfs[i]) === sysfs[i]);
    if (!same) sysfs = [];
  }
  return names.flatMap((name, i): [number, string][] => {
    const index = snmp[i] ?? sysfs[i];
    return index === undefined ? [] : [[index, pathText(Buffer.from(name, 'latin1'))]];
  });
}

// ---------------------------------------------------------------------------------------------------
// BPF file systems

/**
 * Mount points of BPF file systems that this process sees, as {@link pathText} writes them: one per file system, and one
 * for several that are mounted over each other, of which only the last is seen.
 */
export function bpffsMounts(proc = PROC): string[] {
  const mounts = new Map<string, string>();
  for (const { what, point } of bpffsMountsOf('self', proc)) if (!mounts.has(what)) mounts.set(what, point);
  return [...new Set(mounts.values())];
}

/** A mount of a BPF file system. */
export interface BpffsMount {
  /** What is mounted: the same text for the same folder of the same file system. */
  readonly what: string;
  /** As {@link pathText} writes it. */
  readonly point: string;
}

/** Decodes a mount point as mount tables write it: one character per byte, some in octal. */
export function mountPoint(point: string): Buffer {
  const raw = point.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
  return Buffer.from(raw, 'latin1');
}

/** All mounts of BPF file systems that process `pid` sees. */
export function bpffsMountsOf(pid: number | 'self', proc = PROC): BpffsMount[] {
  const text = attempt(() => fs.readFileSync(`${proc}/${pid}/mountinfo`, 'latin1')) ?? '';
  return text.split('\n').flatMap((line) => {
    // id, parent, device, root, mount point, options, optional fields, -, type, …
    const [head = '', tail = ''] = line.split(' - ', 2);
    const [, , device = '', root = '', point = ''] = head.split(' ');
    if (tail.split(' ', 1)[0] !== 'bpf') return [];
    return [{ what: `${device} ${root}`, point: pathText(mountPoint(point)) }];
  });
}

/** The mount namespace of a process; undefined if it is gone or not accessible. */
export function mountNamespaceOf(pid: number | 'self', proc = PROC): string | undefined {
  return attempt(() => fs.readlinkSync(`${proc}/${pid}/ns/mnt`));
}

/** Whether `file` (or folder) is on a BPF file system; undefined if it does not exist. */
export function isBpffs(file: string | Buffer): boolean | undefined {
  return attempt(() => fs.statfsSync(file).type === BPF_FS_MAGIC);
}

/** The mount point of a BPF file system, or advice how to mount one. */
export function bpffsHint(proc = PROC): string {
  const [first] = bpffsMounts(proc);
  return first === undefined ? 'mount one with: mount -t bpf bpf /sys/fs/bpf' : `one is mounted at ${first}`;
}

/** A path from the user: taken literally if it exists, else decoded from the form that {@link pathText} writes. */
export function givenPath(text: string): Buffer {
  return fs.existsSync(text) ? Buffer.from(text) : pathBytes(text);
}

/** All files of the BPF file systems, as bytes, because names need not be text. Does not follow links. */
export function* pinFiles(proc = PROC): Generator<Buffer> {
  const folders = bpffsMounts(proc).map(pathBytes);
  for (let folder = folders.pop(); folder !== undefined; folder = folders.pop()) {
    const here = folder;
    const entries = attempt(() => fs.readdirSync(here, { withFileTypes: true, encoding: 'buffer' })) ?? [];
    for (const entry of entries) {
      const file = Buffer.concat([here, Buffer.from(path.sep), entry.name]);
      if (entry.isDirectory()) folders.push(file);
      else if (entry.isFile()) yield file;
    }
  }
}

// ---------------------------------------------------------------------------------------------------
// CPUs

/** The number of CPUs in a list such as `0-3,8`. */
export function cpuCount(list: string): number {
  let count = 0;
  for (const part of list.trim().split(',')) {
    const match = /^(\d+)(?:-(\d+))?$/.exec(part);
    if (match) count += Number(match[2] ?? match[1]) - Number(match[1]) + 1;
  }
  return count;
}

/**
 * Number of possible CPUs of this machine: in a per-CPU map, each key has this many values, online or not.
 * @throws Error if sysfs does not say: too low a guess would let the kernel write past a buffer's end
 */
export function possibleCpus(file = '/sys/devices/system/cpu/possible'): number {
  let list: string;
  try {
    list = fs.readFileSync(file, 'utf8');
  } catch (error) {
    throw ioError(file, 'read it', error);
  }
  const count = cpuCount(list);
  if (count === 0) throw new Error(`${file}: expected a list of CPUs`);
  return count;
}
