/** What a replay will create, worked out from a dump before anything is touched. */
import { cpuStride, SMALLEST_PAGE } from '../bytes.js';
import { captureReport, factsOf } from '../dump/facts.js';
import { type Dump, type DumpBtf, type DumpMap, dataShape } from '../dump/model.js';
import { wholeName } from '../dump/select.js';
import { BpfimgError } from '../errors.js';
import type { BpfmapFileEntry } from '../image/schema.gen.js';
import type { Input } from '../io/input.js';
import { MAP_FLAG, mapSubject, NAME_MOST } from '../kernel/flags.js';
import type { MapSpec } from '../kernel/map.js';
import type { Access } from '../kernel/proc.js';
import { takenEntries } from '../kernel/rules.js';
import {
  type ItemSource,
  isBare,
  isImageItem,
  type MapFacts,
  type MapType,
  type MapTypes,
  type Planned,
  type Plugin,
  reportText,
} from '../maptype.js';
import type { MigrationStep, UnusedOption } from '../migrate/migrate.js';
import { type CpuFold, foldCpus, imageItems, noItems } from './items.js';
import { memoryNeed } from './memory.js';
import type { Losses } from './migrated.js';

/** One map that will be created. */
export interface PlannedMap {
  /** Its id in the dump. */
  readonly mapId: number;
  /** Its whole name, if the dump knows more of it than the kernel keeps. */
  readonly name: string;
  /** How messages name it. */
  readonly subject: string;
  readonly type: MapType;
  /** The whole table of map types. */
  readonly types: MapTypes;
  readonly plugin: Plugin;
  readonly spec: MapSpec & { readonly name: string; readonly flags: number };
  readonly items: ItemSource;
  /** Maps of the dump that must exist before it can be filled. */
  readonly needed: readonly number[];
  /** Those of them that the dump does not have. */
  readonly missing: readonly number[];
  /** The attributes of the others, by their ids in the dump. */
  readonly inner: Planned['inner'];
  /** What the meta image says of it. */
  readonly facts: MapFacts;
  /** The blob of its types. */
  readonly btf?: DumpBtf | undefined;
  readonly frozen: boolean;
  /** Where it was pinned, as {@link pathText} writes paths. */
  readonly pins: readonly string[];
  /** The access its file descriptors gave, if not reading and writing. */
  readonly access: Access;
  /** Rough amount of kernel memory, in bytes. */
  readonly memory: number;
  /** What the images cannot restore, each a clause. */
  readonly lacks: readonly string[];
  /** What differs from the request, each a clause. */
  readonly notes: readonly string[];
  /** If it is made like a map of another source: how its items become that map's. */
  readonly reshaped?: Reshaped;
}

/** What to do with old keys that become the same. */
export type Collisions = 'error' | 'last' | 'sum';

/** How the items of a map become those of another one. */
export interface Reshaped {
  /** What happens to the members of keys and values; none for bytes without types. */
  readonly steps: { readonly key?: readonly MigrationStep[]; readonly value?: readonly MigrationStep[] };
  /** What is lost of the items that have been read. */
  readonly losses: Losses;
  /** Something of some items may be lost. */
  readonly mayLose: boolean;
  /** The items as they were. */
  readonly source: ItemSource;
  /** What to do with old keys that become the same; undefined if none can. */
  readonly collisions: Collisions | undefined;
  /** Options about members that this map does not have; undefined without types. */
  readonly unused: readonly UnusedOption[] | undefined;
}

/** What the user wants for the maps, and facts about this machine. */
export interface PlanOptions {
  /** Overrides each map's max_entries, except for those that {@link planMaps} leaves alone. */
  readonly maxEntries?: number | undefined;
  /** The maps were chosen one by one: `maxEntries` applies to each of them. */
  readonly chosen?: boolean | undefined;
  readonly perCpu?: CpuFold | undefined;
  /** Number of possible CPUs here. */
  readonly cpus: number;
  /** Size of a page here in bytes; 4096 by default. */
  readonly pageSize?: number | undefined;
}

/** Flags of a caller or a file descriptor rather than of a map: an image must not request them. */
const NEVER = MAP_FLAG.RDONLY | MAP_FLAG.WRONLY | MAP_FLAG.PATH_FD | MAP_FLAG.TOKEN_FD;

/** Flags of a map as MAP_CREATE expects them. */
function takenFlags(flags: number, type: MapType): number {
  return (flags & ~(NEVER | (type.ownFlags ?? 0))) >>> 0;
}

/** What the meta image says of a map. */
export function mapFacts({ meta }: DumpMap, types: MapTypes): MapFacts {
  const { template, ...facts } = factsOf(meta);
  const flags = template && takenFlags(template.flags, types.get(template.type));
  return {
    ...facts,
    template: template && { ...template, flags: flags as number },
    boot: meta?.boot_id,
  };
}

/** Bytes that a template of inner maps needs temporarily. */
function templateMemory({ template }: MapFacts, types: MapTypes, cpus: number): number {
  return template === undefined ? 0 : memoryNeed(template, types.get(template.type), 0, cpus);
}

/** The arguments of MAP_CREATE for the map that `file` describes. */
export function mapSpec(file: BpfmapFileEntry, types: MapTypes, maxEntries = file.max_entries): PlannedMap['spec'] {
  const type = types.get(file.map_type);
  const flags = takenFlags(file.map_flags, type);
  // The kernel reads no further than a NUL, and loaders cut off what is too long: a pin may have the whole name.
  const name = file.map_name.split('\0', 1)[0]?.slice(0, NAME_MOST) ?? '';
  const plain: PlannedMap['spec'] = {
    type: file.map_type,
    ...(types.row(file.map_type) ? { since: type.since } : {}),
    keySize: file.key_size,
    valueSize: file.value_size,
    maxEntries,
    flags,
    name,
    extra: BigInt(file.map_extra ?? 0),
    ifindex: file.ifindex,
    // The kernel shows the flag, never the node. The flag is kept, with a node that means any.
    ...((flags & MAP_FLAG.NUMA_NODE) === 0 ? {} : { numaNode: -1 }),
  };
  const spec = { ...plain, ...types.plugin(file.map_type).attributes?.(plain, type) };
  return { ...spec, flags: spec.flags ?? 0 };
}

/**
 * Plans one map.
 * @throws BpfimgError for what the images lack or contradict
 */
export function planMap(dump: Dump, map: DumpMap, types: MapTypes, options: PlanOptions): PlannedMap {
  const file = map.files[0]?.message;
  if (file === undefined) {
    throw new BpfimgError('unsupported', `map ${map.mapId}: no image describes it`, { subject: dump.name });
  }
  const whole = wholeName(map) ?? '';
  const subject = mapSubject(map.mapId, whole);
  for (const { message } of map.files) {
    const odd = SHAPE.find((member) => message[member] !== file[member]);
    if (odd !== undefined) throw badMap(dump, subject, `two of its open files disagree about ${odd}`);
  }
  const type = types.get(file.map_type);
  const plugin = types.plugin(file.map_type);
  const lacks: string[] = [];
  const notes: string[] = [];
  let maxEntries = options.maxEntries ?? file.max_entries;
  if (options.maxEntries !== undefined) {
    maxEntries = takenEntries(type, options.maxEntries, options.pageSize ?? SMALLEST_PAGE);
    if (maxEntries !== options.maxEntries) {
      const why = `a ${type.name} needs a power of two that is a multiple of the page size`;
      notes.push(`max_entries is rounded up from ${options.maxEntries} to ${maxEntries}: ${why}`);
    }
  }
  const spec = mapSpec(file, types, maxEntries);
  if (file.map_name.length > NAME_MOST) notes.push(`its name is cut off after ${NAME_MOST} bytes, as loaders do`);
  if (file.map_name.includes('\0')) lacks.push('its name is cut off at a NUL byte');
  const items = itemSource(dump, map, file, types, options);
  if (types.row(file.map_type) === undefined) lacks.push(STRANGE);
  const captured = captureReport(map.meta);
  if (captured.kind !== 'full') lacks.push(`captured ${reportText(captured)}`);
  if (map.data.length === 0 && !isBare(captured)) {
    lacks.push('no items, because the dump has no data entry for it');
  }
  const facts = mapFacts(map, types);
  if (facts.types !== undefined && (facts.types.key !== 0 || facts.types.value !== 0)) {
    if (type.create?.btf === 'no') lacks.push(takesNoTypes(type));
    else if (!dump.btf.has(facts.types.btf)) lacks.push('its types, which no image contains');
  }
  return {
    mapId: map.mapId,
    types,
    name: whole.split('\0', 1)[0] as string,
    subject,
    type,
    plugin,
    spec,
    items,
    needed: [],
    missing: [],
    inner: new Map(),
    facts,
    btf: facts.types && dump.btf.get(facts.types.btf),
    frozen: file.frozen,
    pins: map.meta?.pins ?? [],
    access: accessOf(map),
    memory: memoryNeed(spec, type, items.count, options.cpus) + templateMemory(facts, types, options.cpus),
    lacks,
    notes,
  };
}

/** The text about a map whose type no plugin names. */
export const STRANGE = 'its type is unknown to bpfimg, and maybe to this kernel: its keys and values are plain bytes';

/**
 * Plans `maps`, the maps of the dump that they refer to, and the order in which to create them.
 *
 * A new max_entries applies to `maps`, not to maps they refer to. Unless the maps were chosen one by one, it also
 * does not apply to inner maps, which must match their outer map, nor to types with a fixed max_entries.
 * @throws BpfimgError for what the images lack or contradict
 */
export async function planMaps(
  dump: Dump,
  maps: readonly DumpMap[],
  types: MapTypes,
  options: PlanOptions,
): Promise<PlannedMap[]> {
  const planned: { readonly map: DumpMap; readonly plan: PlannedMap }[] = [];
  /** Ids that were begun, so that a map that refers back to itself ends there. */
  const begun = new Set<number>();
  const inner = new Set<number>();
  const { maxEntries, chosen = false, ...rest } = options;
  const add = async (map: DumpMap): Promise<void> => {
    if (begun.has(map.mapId)) return;
    begun.add(map.mapId);
    const plan = planMap(dump, map, types, chosen && maps.includes(map) ? options : rest);
    const needs = await needsOf(dump, plan, types);
    const wanted = new Set(needs.needed);
    for (const id of wanted) inner.add(id);
    for (const one of wanted.size === 0 ? [] : dump.maps) if (wanted.has(one.mapId)) await add(one);
    planned.push({ map, plan: { ...plan, ...needs } });
  };
  for (const map of maps) await add(map);
  const plans = planned.map(({ map, plan }) => {
    const resized = maxEntries !== undefined && !chosen && maps.includes(map) && !inner.has(map.mapId);
    const { needed, missing } = plan;
    return resized && isSizable(plan) ? { ...planMap(dump, map, types, options), needed, missing } : plan;
  });
  return withInnerSpecs(plans);
}

/** Plans whose inner maps have the attributes that these plans give them. */
export function withInnerSpecs(plans: readonly PlannedMap[]): PlannedMap[] {
  const specs = new Map(plans.map(({ mapId, spec }) => [mapId, spec]));
  return plans.map((plan) => ({
    ...plan,
    inner: new Map([...plan.inner.keys()].map((id) => [id, specs.get(id) as PlannedMap['spec']])),
  }));
}

/** The text about the types of a map whose map type allows none. */
export function takesNoTypes({ name }: MapType): string {
  return `its types: the kernel accepts none for a map of type ${name}`;
}

/** Maps that must exist before that of `plan` can be filled, and those of them that the dump does not have. */
export async function needsOf(
  dump: Dump,
  plan: PlannedMap,
  types: MapTypes,
): Promise<Pick<PlannedMap, 'needed' | 'missing' | 'inner'>> {
  const needed = (await plan.plugin.needs?.(plan.items)) ?? [];
  const maps = new Map((needed.length === 0 ? [] : dump.maps).map((map) => [map.mapId, map]));
  const missing = new Set<number>();
  const inner = new Map<number, PlannedMap['spec']>();
  for (const id of needed) {
    const map = maps.get(id);
    const file = map?.files[0]?.message;
    if (map === undefined) missing.add(id);
    else if (file !== undefined) inner.set(id, mapSpec(file, types));
  }
  return { needed, missing: [...missing], inner };
}

/** Whether maps of this type can have different max_entries. */
function isSizable({ type }: PlannedMap): boolean {
  const entries = type.create?.entries;
  return entries === undefined || entries.min < entries.max;
}

const SHAPE = ['map_type', 'key_size', 'value_size', 'max_entries', 'map_flags', 'frozen'] as const;

/** The access that all open files of a map gave. */
function accessOf(map: DumpMap): Access {
  const modes = new Set(map.files.map(({ message }) => message.flags & 3));
  if (modes.size !== 1) return 'rw';
  return modes.has(0) ? 'ro' : modes.has(1) ? 'wo' : 'rw';
}

const badMap = (dump: Dump, subject: string, what: string) =>
  new BpfimgError('badImage', `${subject}: ${what}`, { subject: dump.name });

function itemSource(
  dump: Dump,
  map: DumpMap,
  file: BpfmapFileEntry,
  types: MapTypes,
  { perCpu, cpus }: PlanOptions,
): ItemSource {
  const subject = mapSubject(map.mapId, wholeName(map) ?? '');
  const type = types.get(file.map_type);
  const stride = type.perCpu === true ? cpuStride(file.value_size) * cpus : file.value_size;
  // Of several entries CRIU restores the last.
  const data = map.data.at(-1);
  if (data === undefined || (data.count === 0 && data.keysBytes === 0 && data.valuesBytes === 0))
    return noItems(file.key_size, stride);
  const { shape, oddKey, oddValue } = dataShape(data, file, types);
  const { count, keysBytes, valuesBytes } = data;
  const odd = oddKey || oddValue;
  if (
    shape === undefined ||
    (type.imageItem === undefined ? odd : !isImageItem(type, shape.keySize, shape.valueSize, oddValue))
  ) {
    const got = `${keysBytes} bytes of keys and ${valuesBytes} of values`;
    const { key = file.key_size, value = file.value_size } = type.imageItem ?? {};
    throw badMap(
      dump,
      subject,
      `it has ${got} for ${count} item${count === 1 ? '' : 's'}, expected ${key} and ${value === 'page' ? 'a page of' : value} bytes each`,
    );
  }
  const items = imageItems(dump.data as Input, data, shape.keySize, shape.valueSize);
  if (items.valueSize === stride || type.imageItem !== undefined) return items;
  const from = shape.valueSize / cpuStride(file.value_size);
  if (from > MOST_CPUS) throw badMap(dump, subject, `it has values of ${from} CPUs, expected at most ${MOST_CPUS}`);
  if (perCpu === undefined) {
    throw new BpfimgError(
      'conflict',
      `${subject}: it has values of ${from} CPUs, this machine has ${cpus} possible CPUs; ` +
        '--percpu first, sum or spread says what to do with them',
      { subject: dump.name },
    );
  }
  try {
    return foldCpus(items, file.value_size, from, cpus, perCpu);
  } catch (error) {
    throw error instanceof BpfimgError
      ? new BpfimgError(error.kind, `${subject}: ${error.message}`, { subject: dump.name })
      : error;
  }
}

/** Most CPUs that Linux can have (NR_CPUS, of any architecture). */
const MOST_CPUS = 8192;
