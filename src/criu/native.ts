/**
 * What CRIU's own BPF support (CRIU built with libbpf, up to 4.2) does when it restores a map: it creates a map of any
 * type, writes all items in one batch from one CPU, and freezes it.
 */

import { cpuStride } from '../bytes.js';
import { captureReport, factsOf } from '../dump/facts.js';
import { type Dump, type DumpMap, dataShape, type MapFile } from '../dump/model.js';
import type { BpfmapFileEntry } from '../image/schema.gen.js';
import { MAP_FLAG } from '../kernel/flags.js';
import { type MapType, type MapTypes, reportText } from '../maptype.js';

/** What a native restore brings back of a map; `problem` says why it must not be tried. */
export interface NativeFate {
  readonly problem?: string | undefined;
  /** What is lost or different, each a clause. */
  readonly lacks: readonly string[];
}

/** Types whose items CRIU can write back, and types that it can only create empty. */
const RESTORES: Readonly<Record<string, 'items' | 'empty'>> = {
  hash: 'items',
  array: 'items',
  percpu_hash: 'items',
  percpu_array: 'items',
  lru_hash: 'items',
  lru_percpu_hash: 'items',
  lpm_trie: 'items',
  queue: 'empty',
  stack: 'empty',
};

/** Why CRIU can restore no other type. */
function whyNot(type: MapType): string {
  if (type.inner) return 'its values are maps, which CRIU does not create';
  if (type.holdsReferences) return 'its values are numbers that mean nothing to a fresh map';
  if (type.key === 'fd') return 'its keys are file descriptors of another process';
  return 'CRIU cannot create and fill it';
}

/** Most elements that the kernel reserves for each CPU; other CPUs then find an LRU map full. */
const LRU_KEPT_APART = 128;

/** Open modes that CRIU does not restore. */
const MODES: readonly (readonly [mode: number, text: string])[] = [
  [0, 'read-only'],
  [1, 'write-only'],
];

/** What a native restore does with `map`, of a dump made by the plugin. */
export function nativeFate(dump: Dump, map: DumpMap, types: MapTypes): NativeFate {
  const open = map.files.filter(({ message }) => dump.plugin?.files.has(message.id));
  const file = open[0]?.message;
  if (file === undefined) return { lacks: ['not restored, because no process had it open'] };
  const type = types.get(file.map_type);
  const problem = badType(map, type) ?? badItems(map, file, types) ?? badShare(map, file, type);
  return { problem, lacks: [...itemLacks(map, file, types), ...fileLacks(map, file, open)] };
}

function itemCount(map: DumpMap): number {
  return map.data.at(-1)?.count ?? 0;
}

function badType(map: DumpMap, type: MapType): string | undefined {
  const restores = RESTORES[type.name];
  if (restores === undefined) return whyNot(type);
  const count = itemCount(map);
  return restores === 'empty' && count > 0 ? `it has ${count} items, but CRIU can only create it empty` : undefined;
}

function badItems(map: DumpMap, file: BpfmapFileEntry, types: MapTypes): string | undefined {
  const data = map.data.at(-1);
  if (data === undefined || data.count === 0) return undefined;
  if (data.count > file.max_entries) return `it has ${data.count} items, but max_entries is ${file.max_entries}`;
  const { shape, oddKey, oddValue } = dataShape(data, file, types);
  if (shape === undefined || oddKey || oddValue) return 'its items do not match its key_size and value_size';
  const cpus = cpusOf(map, file, types);
  const recorded = map.meta?.nr_cpus;
  // CRIU reads as many values as there are CPUs, even past the end of its buffer.
  if (cpus === undefined || recorded === undefined || recorded === cpus) return undefined;
  return `its values are for ${cpus} CPUs, but the dumped host had ${String(recorded)}`;
}

/** For how many CPUs a per-CPU map has values; undefined for other maps. */
function cpusOf(map: DumpMap, file: BpfmapFileEntry, types: MapTypes): number | undefined {
  const data = map.data.at(-1);
  if (data === undefined || types.get(file.map_type).perCpu !== true) return undefined;
  const { shape } = dataShape(data, file, types);
  return shape === undefined || data.count === 0 ? undefined : shape.valueSize / cpuStride(file.value_size);
}

/** With BPF_F_NO_COMMON_LRU each CPU has its own share of the elements, and CRIU writes from one. */
function badShare(map: DumpMap, file: BpfmapFileEntry, type: MapType): string | undefined {
  if (type.evicts !== true || (file.map_flags & MAP_FLAG.NO_COMMON_LRU) === 0) return undefined;
  const count = itemCount(map);
  const share = Math.floor(file.max_entries / cpusRecorded(map));
  return count > share
    ? `it has ${count} items, but CRIU can write only ${share} of them (BPF_F_NO_COMMON_LRU)`
    : undefined;
}

function cpusRecorded(map: DumpMap): number {
  return Math.max(1, map.meta?.nr_cpus ?? 1);
}

function itemLacks(map: DumpMap, file: BpfmapFileEntry, types: MapTypes): string[] {
  const lacks: string[] = [];
  const captured = captureReport(map.meta);
  if (captured.kind !== 'full') lacks.push(`captured ${reportText(captured)}`);
  else if (map.data.length === 0) lacks.push('no items, because the dump has no data entry for it');
  const cpus = cpusOf(map, file, types);
  if (cpus !== undefined) lacks.push(`right only on a host with ${cpus} possible CPUs`);
  const shared = types.get(file.map_type).evicts === true && (file.map_flags & MAP_FLAG.NO_COMMON_LRU) === 0;
  if (shared && itemCount(map) > file.max_entries - LRU_KEPT_APART * cpusRecorded(map)) {
    lacks.push('nearly full, so the kernel may drop items');
  }
  return lacks;
}

function fileLacks(map: DumpMap, file: BpfmapFileEntry, open: readonly MapFile[]): string[] {
  const lacks: string[] = [];
  if (open.length > 1) lacks.push(`${open.length} open files become ${open.length} maps`);
  for (const [mode, text] of MODES) {
    if (open.some(({ message }) => (message.flags & 3) === mode)) lacks.push(`${text} fds become read-write`);
  }
  if (factsOf(map.meta).types !== undefined) lacks.push('without its types (BTF)');
  if ((file.map_flags & MAP_FLAG.NUMA_NODE) !== 0) lacks.push('on NUMA node 0');
  return lacks;
}
