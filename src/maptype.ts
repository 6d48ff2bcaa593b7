/**
 * Map types as data: a row for each type, collected from the plugins, and the hooks with which a plugin reads
 * and fills maps of its family.
 *
 * Numbers, names and flags are the kernel's (include/uapi/linux/bpf.h), names spelled as bpftool does.
 */
import { SMALLEST_PAGE } from './bytes.js';
import { MAP_FLAG, type MapShape } from './kernel/flags.js';
import type { BpfMap, MapSpec } from './kernel/map.js';
import type { ProgramFacts } from './kernel/objects.js';
import type { Counted, CreateRule, KnownTypes } from './kernel/rules.js';
import type { Sys } from './kernel/sys.js';

export { idAndName, mapSubject, NAME_MOST } from './kernel/flags.js';
export type { ProgramFacts } from './kernel/objects.js';
export { listed } from './kernel/pattern.js';
export { type KnownTypes, typesRefused } from './kernel/rules.js';

/** What the keys of a map type are. */
export type KeyForm =
  /** Any bytes. */
  | 'bytes'
  /** A u32 index below max_entries. */
  | 'index'
  /** A u32 prefix length, then the address. */
  | 'prefix'
  /** A file descriptor of the calling process, which means nothing in an image. */
  | 'fd'
  /** There are no keys: key_size is 0. */
  | 'none';

/** One map type. */
export interface MapType {
  readonly number: number;
  readonly name: string;
  /** Linux version that introduced it. */
  readonly since: string;
  readonly key: KeyForm;
  /** A value is round_up(value_size, 8) bytes for each possible CPU. */
  readonly perCpu?: true;
  /** Every index from 0 to max_entries - 1 always has a value. */
  readonly dense?: true;
  /** When it is full, the kernel evicts least recently used items to make room for new ones. */
  readonly evicts?: true;
  /** Loaders create it with an entry for each possible CPU if a program does not say how many. */
  readonly entryPerCpu?: true;
  /** Its table grows and shrinks with its items, so the kernel offers no batches and it is read key by key. */
  readonly grows?: true;
  /** Reading an item removes it from the map. */
  readonly drains?: true;
  /** Values are ids of other maps, u32. */
  readonly inner?: true;
  /** What user space reads is not what it writes: ids are read, file descriptors are written. */
  readonly holdsReferences?: true;
  /** What an item is in an image, if bpf(2) has no items for the type or its keys have no meaning elsewhere. */
  readonly imageItem?: ImageItem;
  /** Its items refer to open files of processes, which do not exist yet when CRIU restores the map. */
  readonly files?: true;
  /** Flags (of MAP_CREATE) that the kernel itself sets on every map of the type, and rejects from callers. */
  readonly ownFlags?: number;
  /** The part of such a map that processes can map; undefined if they cannot. */
  readonly mapped?: (map: MapShape, pageSize: number) => MappedMemory | undefined;
  /** What MAP_CREATE requires; undefined if that has not been measured. */
  readonly create?: CreateRule;
  /** How the kernel counts its items; undefined if it does not. */
  readonly counted?: Counted;
  /** CRIU 4.2 built with libbpf can dump it. */
  readonly criu?: true;
  /** What bpfimg captures and replays of it; everything by default. */
  readonly carries?: Carries;
}

/** The memory of a map that processes map. */
export interface MappedMemory {
  /** Bytes in total. */
  readonly size: number;
  /** Bytes at its beginning that are mapped on their own. */
  readonly first?: number;
}

/** Bytes of an item's key and value, if they differ from key_size and value_size. */
export interface ImageItem {
  readonly key: number;
  /** `page` is a page of the machine that made the image; the map's own value size by default. */
  readonly value?: number | 'page';
}

/** Bytes of the items that a capture of `map` writes. */
export function itemSizes({ imageItem }: MapType, map: BpfMap): { readonly key: number; readonly value: number } {
  const { key = map.keySize, value = map.valueStride } = imageItem ?? {};
  return { key, value: value === 'page' ? map.sys.pageSize : value };
}

/**
 * Whether items of these sizes, which differ from the map's own, are valid in an image of this type.
 * @param oddValue the value's size is not the map's own
 */
export function isImageItem({ imageItem }: MapType, keySize: number, valueSize: number, oddValue: boolean): boolean {
  if (imageItem === undefined || keySize !== imageItem.key) return false;
  if (imageItem.value === 'page') return valueSize > 0 && valueSize % SMALLEST_PAGE === 0;
  return imageItem.value === undefined ? !oddValue : valueSize === imageItem.value;
}

/** What is captured and replayed of a map type, if not everything. */
export interface Carries {
  readonly captured: 'items' | 'some items' | 'metadata only';
  readonly replayed: 'items' | 'some items' | 'empty';
  /** What is lost, as a clause. */
  readonly lost: string;
}

/** How much of one map was captured or replayed. */
export type Report =
  | { readonly kind: 'full' }
  | {
      readonly kind: 'partial' | 'metadata only' | 'not supported';
      /** What is missing, or why: the end of the line that starts with `kind`. */
      readonly why: string;
    };

/** Nothing is missing. */
export const FULL: Report = { kind: 'full' };

/** A report as the line that people see and images keep. */
export function reportText(report: Report): string {
  return report.kind === 'full' || report.why === '' ? report.kind : `${report.kind}: ${report.why}`;
}

/** The report in a line of {@link reportText}; any other line becomes `partial`. */
export function parseReport(line: string): Report {
  const [, kind, why = ''] = /^(full|partial|metadata only|not supported)(?:: (.*))?$/s.exec(line) ?? [];
  if (kind === undefined) return { kind: 'partial', why: line };
  return kind === 'full' ? FULL : { kind: kind as Exclude<Report['kind'], 'full'>, why };
}

/** A report with one more missing thing. */
export function withMissing(report: Report, what: string): Report {
  return report.kind === 'full' ? { kind: 'partial', why: what } : { ...report, why: `${report.why}; ${what}` };
}

/** Whether no items were captured. */
export function isBare({ kind }: Report): boolean {
  return kind === 'metadata only' || kind === 'not supported';
}

/** What is reported of a map of this type that is left empty, when the dump has `count` items of it. */
export function leftEmpty(type: MapType, count: number): Report {
  // Of a map that had nothing, nothing is lost.
  if (type.carries?.captured === 'items' && count === 0) return FULL;
  return { kind: 'metadata only', why: `lost: ${type.carries?.lost ?? 'its items'}` };
}

/** A `replay` hook that leaves the map empty. */
export async function leaveEmpty(_map: BpfMap, items: ItemSource, { type }: Work): Promise<Report> {
  return leftEmpty(type, items.count);
}

/** A `capture` hook that reads no items. */
export async function metadataOnly(_map: BpfMap, _sink: ItemSink, { type }: Work): Promise<Report> {
  return { kind: 'metadata only', why: `lost: ${type.carries?.lost ?? 'its items'}` };
}

/** Bytes of a value, from its start; for an array, the same bytes of each element. */
export interface Span {
  readonly offset: number;
  readonly size: number;
  /** 1 by default. */
  readonly count?: number;
  /** Bytes from one to the next. */
  readonly stride?: number;
}

/** Sets the bytes of the value at `at` that `spans` name to zero, as far as they are in `values`: it may begin before. */
export function blank(values: Uint8Array, at: number, spans: readonly Span[]): void {
  const zero = (from: number, size: number) => {
    const end = Math.min(values.length, from + size);
    if (end > 0 && from < end) values.fill(0, Math.max(0, from), end);
  };
  for (const { offset, size, count = 1, stride = size } of spans) {
    const from = at + offset;
    if (stride === size) zero(from, count * size);
    else {
      const first = Math.max(0, Math.floor(-from / stride));
      for (let i = first; i < count && from + i * stride < values.length; i++) zero(from + i * stride, size);
    }
  }
}

/** Receives the items that a capture reads. */
export interface ItemSink {
  /** Items received so far. */
  readonly count: number;
  /**
   * Receives the next `count` items: the keys one after the other, and the values one after the other, each from its
   * buffer's start. The caller may reuse the buffers once it resolves; it may call `put` again before that.
   */
  put(keys: Uint8Array, values: Uint8Array, count: number): Promise<void>;
}

/** Provides the items that a replay writes. */
export interface ItemSource {
  readonly count: number;
  /** Bytes of a key. */
  readonly keySize: number;
  /** Bytes of an item's whole value. */
  readonly valueSize: number;
  /** Puts items `from` to `from + count - 1` at the buffers' start, laid out as {@link ItemSink.put} takes them. */
  read(from: number, count: number, keys: Uint8Array, values: Uint8Array): Promise<void>;
  /**
   * Puts the key of one item into `key`, and the bytes of its value from `offset` into `value`. Absent if the source
   * cannot do that. If it can, {@link read} with no room in `values` returns only keys.
   */
  readPart?(item: number, key: Uint8Array, offset: number, value: Uint8Array): Promise<void>;
}

/** The current activity, for progress display. */
export interface Doing {
  readonly map: string;
  /** Items so far, and the most expected. */
  readonly items: number;
  readonly most: number;
  /** Bytes of an item. */
  readonly itemSize: number;
}

/** What a hook gets besides its map. */
export interface Work {
  readonly type: MapType;
  /** The map's name in messages. */
  readonly subject: string;
  /** Called now and then with the number of items done so far. */
  progress(items: number): void;
}

/** What the inner maps of a map of maps must be like. */
export interface Template {
  readonly type: number;
  readonly keySize: number;
  readonly valueSize: number;
  readonly maxEntries: number;
  readonly flags: number;
  /** The types of their keys and values, if a program defines them. */
  readonly types?: TypeFacts | undefined;
}

/** What an item's value refers to, if it is a number that has no meaning elsewhere. */
export interface Reference {
  readonly key: Uint8Array;
  readonly program?: ProgramFacts | undefined;
  readonly ifindex?: number | undefined;
  /** As `pathText` writes it. */
  readonly ifname?: string | undefined;
  readonly cookie?: bigint | undefined;
  /** Path below the cgroup file system's mount point, as `pathText` writes it. */
  readonly cgroup?: string | undefined;
}

/** The types of a map's keys and values, by their ids within a BTF object. */
export interface TypeFacts {
  /** The object's id in the dump (or in the kernel). */
  readonly btf: number;
  /** 0 for none. */
  readonly key: number;
  readonly value: number;
}

/** A type of the kernel's own BTF, whose id changes with every build of a kernel. */
export interface KernelTypeFacts {
  readonly id: number;
  /** Undefined if the kernel's BTF cannot be read. */
  readonly name: string | undefined;
}

/** Facts that CRIU's images have no fields for; they are kept in bpfmap-meta.img. */
export interface MapFacts {
  /** For values that are structures of the kernel (struct_ops). */
  readonly kernelType?: KernelTypeFacts | undefined;
  readonly types?: TypeFacts | undefined;
  readonly template?: Template | undefined;
  readonly references?: readonly Reference[] | undefined;
  /** The boot they belong to, if they have no meaning in another one. */
  readonly boot?: string | undefined;
}

/** How to capture maps in which reading removes items. */
export type Drain =
  /** Not at all. */
  | 'no'
  /** The removed items are put back in the same order. */
  | 'restore'
  /** They stay empty. */
  | 'keep-empty';

/** What a capture hook gets, and may ask for. */
export interface CaptureWork extends Work {
  readonly drain: Drain;
  /** A folder on the disk where the images will be, for temporary files. */
  readonly folder: string;
  /**
   * Requests the capture of an inner map, and holds it open until then.
   * @returns what it is like; undefined if it is gone or cannot be opened
   */
  follow(id: number): Template | undefined;
  /** Reports the inner maps whose ids are in the items: this map's line will name those that could not be captured. */
  innerMaps(ids: ReadonlySet<number>): void;
  /** Registers `end`, called when the images are complete (`whole`) or the capture has failed. Its error is reported. */
  atEnd(end: (whole: boolean) => void): void;
  /** Keeps facts along with the items. */
  keep(facts: MapFacts): void;
}

/** What a replay hook gets. */
export interface ReplayWork extends Work {
  readonly facts: MapFacts;
  /** What to do with a reference to something that this host does not have. */
  readonly unresolved: 'fail' | 'skip';
  /** The ids that {@link Plugin.needs} returned. */
  readonly needed: readonly number[];
  /** The fresh map made from map `id` of the dump. It exists already if {@link Plugin.needs} returned it. */
  fresh(id: number): BpfMap | undefined;
}

/**
 * How items are put into a map that exists: `upsert` sets them all; `insert` leaves keys that are there as they are;
 * `update` sets only those; `sync` also deletes every other key; `sum` adds their numbers to those that are there.
 */
export type IntoMode = 'upsert' | 'insert' | 'update' | 'sync' | 'sum';

/** What became of items that were put into a map. Of several with one key, the last counts, and only that one is counted. */
export interface IntoCounts {
  inserted: number;
  updated: number;
  /** Its value was the same, or was to stay. */
  unchanged: number;
  deleted: number;
  /** Numbers of items that are not in the map, by the reason. */
  readonly dropped: Map<string, number>;
}

/** What an `into` hook gets. */
export interface IntoWork extends Work {
  readonly mode: IntoMode;
  /** Nothing is to be written, only counted. */
  readonly dry: boolean;
  /** To be counted up whenever something is written: if the run fails, these numbers are reported. */
  readonly counts: IntoCounts;
  /** Bytes of each value that the kernel keeps for itself, or that do not count. */
  readonly ignored: readonly Span[];
  /** Puts the map's items into `sink`. */
  read(sink: ItemSink): Promise<void>;
  /** Adds the numbers of the value at `from` of `more` to the one at `at` of `values`; returns whether that changes it. */
  add(values: Uint8Array, at: number, more: Uint8Array, from: number): boolean;
  /** Fails when the run is to stop. To be called between parts. */
  check(): void;
  /** Map `id` of the source, which {@link Plugin.needs} returned, as a fresh map; undefined if it is not in the source. */
  fresh(id: number): Promise<BpfMap | undefined>;
  /** Puts the items of that map into `map`, in the same mode, if it is like that map; returns whether it is. */
  reuse(id: number, map: BpfMap): Promise<boolean>;
}

/** What is known about a replay before anything is created. */
export interface Planned {
  readonly type: MapType;
  readonly spec: MapSpec & { readonly flags: number };
  readonly items: ItemSource;
  readonly facts: MapFacts;
  /** The maps of {@link Plugin.needs} that the dump has, by their ids in it and in that order. */
  readonly inner: ReadonlyMap<number, MapSpec & { readonly flags: number }>;
  /** The whole table of map types. */
  readonly types: KnownTypes;
  /** The kernel that is to make the map, to be asked what kernels differ in; undefined if the dump alone counts. */
  readonly sys?: Sys | undefined;
}

/** What a replay will do, as far as the dump alone shows. */
export interface Foreseen {
  /** Why it will fail, each a clause. */
  readonly problems: readonly string[];
  /** What it will report if it does not fail. */
  readonly report: Report;
}

/**
 * A family of map types: their rows, and hooks for what is special about them. If a hook is absent, bpfimg cannot
 * do this for the family, and says so.
 */
export interface Plugin {
  readonly name: string;
  readonly types: readonly MapType[];
  /** Turns the attributes that the kernel reported into those that MAP_CREATE accepts. */
  attributes?(spec: MapSpec, type: MapType): MapSpec;
  /** Creates a map, if that needs more than its attributes. The caller owns it. */
  create?(sys: Sys, spec: MapSpec, work: ReplayWork): BpfMap | Promise<BpfMap>;
  /** Reads all items of a live map. */
  capture?(map: BpfMap, sink: ItemSink, work: CaptureWork): Promise<Report>;
  /** Ids of the maps of the same dump that must exist before this one can be filled. */
  needs?(items: ItemSource): Promise<readonly number[]>;
  /** What {@link replay} will report; undefined if the type's row is enough to know that. */
  foresee?(plan: Planned): Promise<Foreseen | undefined>;
  /** Fills a fresh map. The error for a refused item names its key. */
  replay?(map: BpfMap, items: ItemSource, work: ReplayWork): Promise<Report>;
  /** Puts items into a map that exists, and counts what becomes of each. */
  into?(map: BpfMap, items: ItemSource, work: IntoWork): Promise<void>;
  /** A key in a form more readable than hex. */
  keyText?(key: Uint8Array, type: MapType): string | undefined;
  /** The key of `size` bytes that such a text means; undefined if it means none. */
  keyBytes?(text: string, size: number): Uint8Array | undefined;
}

/** The map types of all plugins, by number and name. */
export class MapTypes implements KnownTypes {
  readonly #byNumber = new Map<number, MapType>();
  readonly #byName = new Map<string, MapType>();
  readonly #plugins = new Map<number, Plugin>();

  /**
   * @param plugins if several serve one type, the last one wins
   * @param unknownTypes serves all other types
   */
  constructor(
    plugins: readonly Plugin[],
    readonly unknownTypes: Plugin = { name: 'unknown', types: [] },
  ) {
    for (const plugin of plugins) {
      for (const type of plugin.types) {
        // What the kernel requires and does, does not depend on the plugin.
        const { create, ownFlags, counted } = this.#byNumber.get(type.number) ?? {};
        const row = { ...(create && { create }), ...(ownFlags && { ownFlags }), ...(counted && { counted }), ...type };
        this.#byNumber.set(type.number, row);
        this.#byName.set(type.name, row);
        this.#plugins.set(type.number, plugin);
      }
    }
  }

  /** The plugin that serves type `number`; the one for unknown types if none does. */
  plugin(number: number): Plugin {
    return this.#plugins.get(number) ?? this.unknownTypes;
  }

  /** The row of type `number`; one that is newer than bpfimg is plain bytes, named `type_N`. */
  get(number: number): MapType {
    return this.#byNumber.get(number) ?? { number, name: `type_${number}`, since: 'unknown', key: 'bytes' };
  }

  /** Number of a type given by name, as `type_N` or as a number; undefined for other words. */
  parse(text: string | number): number | undefined {
    if (typeof text === 'number') return text;
    const match = /^(?:type_)?(\d{1,10})$/.exec(text);
    const number = match ? Number(match[1]) : this.#byName.get(text)?.number;
    return number !== undefined && number <= 0xffffffff ? number : undefined;
  }

  /** The row of type `number` from a plugin; undefined if none has it. */
  row(number: number): MapType | undefined {
    return this.#byNumber.get(number);
  }

  all(): MapType[] {
    return [...this.#byNumber.values()].sort((a, b) => a.number - b.number);
  }
}

/** Flags of MAP_CREATE by ascending bit, as in the kernel's table. */
const MAP_FLAGS: readonly (readonly [bit: number, name: string])[] = Object.entries(MAP_FLAG).map(([name, bit]) => [
  bit,
  `BPF_F_${name}`,
]);

/** map_flags as names in ascending bit, unknown bits as one `0x…` at the end. */
export function mapFlagNames(flags: number): string[] {
  const names = MAP_FLAGS.filter(([bit]) => (flags & bit) !== 0).map(([, name]) => name);
  const known = MAP_FLAGS.reduce((sum, [bit]) => sum | bit, 0);
  const rest = (flags & ~known) >>> 0;
  return rest === 0 ? names : [...names, `0x${rest.toString(16)}`];
}

/** Names of {@link mapFlagNames} as tables show them: `no_prealloc mmapable`. */
export function flagWords(names: readonly string[]): string {
  return names.map((name) => name.replace('BPF_F_', '').toLowerCase()).join(' ');
}

/** The reverse of {@link mapFlagNames}; undefined when a word is neither a name nor a number. */
export function parseMapFlags(names: readonly (string | number)[]): number | undefined {
  let flags = 0;
  for (const name of names) {
    const known = MAP_FLAGS.find(([, text]) => text === name)?.[0];
    const bits = known ?? (/^(0x[0-9a-fA-F]{1,8}|\d{1,10})$/.test(String(name)) ? Number(name) : undefined);
    if (bits === undefined || bits > 0xffffffff) return undefined;
    flags = (flags | bits) >>> 0;
  }
  return flags;
}
