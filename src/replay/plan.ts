/** What a replay will create, worked out from a dump before anything is touched. */
import { roundUp8 } from '../bytes.js';
import { type Dump, type DumpMap, dataShape, type FileMessage } from '../dump/model.js';
import { BpfimgError } from '../errors.js';
import type { Input } from '../io/input.js';
import { MAP_FLAG } from '../kernel/abi.js';
import { type MapSpec, mapSubject } from '../kernel/map.js';
import type { Access } from '../kernel/proc.js';
import { breaches } from '../kernel/rules.js';
import type { ItemSource, MapType, MapTypes, Plugin } from '../maptype.js';
import { type CpuFold, foldCpus, imageItems, noItems } from './items.js';
import { memoryNeed } from './memory.js';

/** One map that will be created. */
export interface PlannedMap {
  /** Its id in the dump. */
  readonly mapId: number;
  /** How messages name it. */
  readonly subject: string;
  readonly type: MapType;
  readonly plugin: Plugin;
  readonly spec: MapSpec & { readonly name: string; readonly flags: number };
  readonly items: ItemSource;
  readonly frozen: boolean;
  /** What its file descriptors were good for, when not for reading and writing. */
  readonly access: Access;
  /** Bytes of kernel memory, roughly. */
  readonly memory: number;
  /** What the images cannot give back, each a clause. */
  readonly lacks: readonly string[];
}

export interface PlanOptions {
  /** Instead of each map's own max_entries. */
  readonly maxEntries?: number | undefined;
  readonly perCpu?: CpuFold | undefined;
  /** Possible CPUs here. */
  readonly cpus: number;
}

/** Flags that are not a map's but a caller's, or that describe a file descriptor: an image must not ask for them. */
const NEVER = MAP_FLAG.RDONLY | MAP_FLAG.WRONLY | MAP_FLAG.PATH_FD | MAP_FLAG.TOKEN_FD;

/**
 * Works out one map.
 * @throws BpfimgError for what the images lack or contradict
 */
export function planMap(dump: Dump, map: DumpMap, types: MapTypes, options: PlanOptions): PlannedMap {
  const file = map.files[0]?.message;
  if (file === undefined) {
    throw new BpfimgError('unsupported', `${dump.name}: map ${map.mapId}: it has items, but nothing says what it is`);
  }
  const subject = mapSubject(map.mapId, file.map_name);
  const bad = (what: string) => new BpfimgError('badImage', `${dump.name}: ${subject}: ${what}`);
  for (const { message } of map.files) {
    const odd = SHAPE.find((member) => message[member] !== file[member]);
    if (odd !== undefined) throw bad(`two of its open files disagree about ${odd}`);
  }
  const type = types.get(file.map_type);
  const plugin = types.plugin(file.map_type);
  const flags = file.map_flags & ~NEVER;
  const plain: PlannedMap['spec'] = {
    type: file.map_type,
    keySize: file.key_size,
    valueSize: file.value_size,
    maxEntries: options.maxEntries ?? file.max_entries,
    flags: flags >>> 0,
    name: file.map_name,
    extra: BigInt((file.map_extra ?? 0) as number | bigint),
    ifindex: file.ifindex,
    // The kernel tells the flag, never the node. It is kept, with a node that means any.
    ...((flags & MAP_FLAG.NUMA_NODE) === 0 ? {} : { numaNode: -1 }),
  };
  const spec = { ...plain, ...plugin.attributes?.(plain, type) };
  const items = itemsOf(dump, map, file, types, options, bad);
  const lacks: string[] = [];
  const told = map.meta?.report;
  if (typeof told === 'string') lacks.push(`captured ${told}`);
  const shape = { ...spec, flags: spec.flags ?? 0 };
  return {
    mapId: map.mapId,
    subject,
    type,
    plugin,
    spec: shape,
    items,
    frozen: file.frozen,
    access: accessOf(map),
    memory: memoryNeed(shape, type, items.count, options.cpus),
    lacks,
  };
}

const SHAPE = ['map_type', 'key_size', 'value_size', 'max_entries', 'map_flags', 'frozen'] as const;

/** What all open files of a map were good for. */
function accessOf(map: DumpMap): Access {
  const modes = new Set(map.files.map(({ message }) => message.flags & 3));
  if (modes.size !== 1) return 'rw';
  return modes.has(0) ? 'ro' : modes.has(1) ? 'wo' : 'rw';
}

function itemsOf(
  dump: Dump,
  map: DumpMap,
  file: FileMessage,
  types: MapTypes,
  { perCpu, cpus }: PlanOptions,
  bad: (what: string) => BpfimgError,
): ItemSource {
  const type = types.get(file.map_type);
  const stride = type.perCpu === true ? roundUp8(file.value_size) * cpus : file.value_size;
  // Of several entries CRIU restores the last.
  const data = map.data.at(-1);
  if (data === undefined || data.count === 0) return noItems(file.key_size, stride);
  const { shape, oddKey, oddValue } = dataShape(data, file, types);
  const { count, keysBytes, valuesBytes } = data;
  if (shape === undefined || oddKey || oddValue) {
    const got = `${keysBytes} bytes of keys and ${valuesBytes} of values`;
    throw bad(`its ${count} items have ${got}, expected ${file.key_size} and ${file.value_size} bytes each`);
  }
  const items = imageItems(dump.data as Input, data, shape.keySize, shape.valueSize);
  if (items.valueSize === stride) return items;
  const from = shape.valueSize / roundUp8(file.value_size);
  if (perCpu === undefined) {
    throw new BpfimgError(
      'conflict',
      `${dump.name}: ${mapSubject(map.mapId, file.map_name)}: it has values of ${from} CPUs, this machine has ${cpus} ` +
        'possible CPUs; --percpu first, sum or spread says what becomes of them',
    );
  }
  return foldCpus(items, file.value_size, from, cpus, perCpu);
}

/** Why this kernel would not create the map, as far as the rules of its type tell. */
export function planBreaches({ spec }: PlannedMap): string[] {
  return breaches({
    ...spec,
    extra: spec.extra ?? 0n,
    name: Buffer.from(spec.name, 'latin1'),
    btf: spec.btf !== undefined,
    inner: spec.inner !== undefined,
  });
}
