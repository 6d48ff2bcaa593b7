/**
 * Map types as data: what bpfimg knows of each, row by row, gathered from the plugins, and the hooks by which
 * a plugin reads and fills maps of its family.
 *
 * Numbers, names and flags are the kernel's (include/uapi/linux/bpf.h), names spelled as bpftool does.
 */
import { MAP_FLAG } from './kernel/abi.js';
import type { BpfMap, MapSpec } from './kernel/map.js';

/** What a key of a map type is. */
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
  /** Linux version that brought it. */
  readonly since: string;
  readonly key: KeyForm;
  /** A value is round_up(value_size, 8) bytes for each possible CPU. */
  readonly perCpu?: true;
  /** Every index from 0 to max_entries - 1 always has a value. */
  readonly dense?: true;
  /** When it is full, the kernel drops items that were not used for long to make room for new ones. */
  readonly evicts?: true;
  /** CRIU 4.2 built with libbpf dumps it. */
  readonly criu?: true;
}

/** What was carried over of one map. */
export type Report =
  | { readonly kind: 'full' }
  | {
      readonly kind: 'partial' | 'metadata only' | 'not supported';
      /** What is missing, or why: the end of the line that starts with `kind`. */
      readonly why: string;
    };

export const FULL: Report = { kind: 'full' };

/** A report as the line that people see and images keep. */
export function reportText(report: Report): string {
  return report.kind === 'full' ? report.kind : `${report.kind}: ${report.why}`;
}

/** Takes the items that a capture reads. */
export interface ItemSink {
  /** Items taken so far. */
  readonly count: number;
  /**
   * Takes the next `count` items: keys behind each other, values behind each other, both from the buffers'
   * start. They are the caller's again once it resolves; until then another `put` may be made already.
   */
  put(keys: Uint8Array, values: Uint8Array, count: number): Promise<void>;
}

/** Gives the items that a replay fills in. */
export interface ItemSource {
  readonly count: number;
  /** Bytes of a key. */
  readonly keySize: number;
  /** Bytes of all of an item's value. */
  readonly valueSize: number;
  /** Puts items `from` to `from + count - 1` at the buffers' start, laid out as {@link ItemSink.put} takes them. */
  read(from: number, count: number, keys: Uint8Array, values: Uint8Array): Promise<void>;
}

/** What a hook is told beside its map. */
export interface Work {
  readonly type: MapType;
  /** Called now and then with the number of items done so far. */
  progress(items: number): void;
}

/**
 * A family of map types: which they are, and hooks for what is special about them. A hook that is absent
 * means that bpfimg cannot do this for the family, and says so.
 */
export interface Plugin {
  readonly name: string;
  readonly types: readonly MapType[];
  /** Makes of the attributes that the kernel reported what MAP_CREATE takes. */
  attributes?(spec: MapSpec, type: MapType): MapSpec;
  /** Reads all items of a live map. */
  capture?(map: BpfMap, sink: ItemSink, work: Work): Promise<Report>;
  /** Fills a fresh map. An item that is refused is an {@link ItemError}. */
  replay?(map: BpfMap, items: ItemSource, work: Work): Promise<Report>;
  /** A key as people know it, where hex is not the best they can get. */
  keyText?(key: Uint8Array, type: MapType): string | undefined;
}

/** The map types of all plugins, by number and name. */
export class MapTypes {
  readonly #byNumber = new Map<number, MapType>();
  readonly #byName = new Map<string, MapType>();
  readonly #plugins = new Map<number, Plugin>();

  /** @param plugins of two that serve one type, the later does */
  constructor(plugins: readonly Plugin[]) {
    for (const plugin of plugins) {
      for (const type of plugin.types) {
        this.#byNumber.set(type.number, type);
        this.#byName.set(type.name, type);
        this.#plugins.set(type.number, plugin);
      }
    }
  }

  /** The plugin that serves type `number`; one without hooks for a type that none serves. */
  plugin(number: number): Plugin {
    return this.#plugins.get(number) ?? { name: 'unknown', types: [] };
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

  has(number: number): boolean {
    return this.#byNumber.has(number);
  }

  all(): MapType[] {
    return [...this.#byNumber.values()].sort((a, b) => a.number - b.number);
  }
}

/** Flags of MAP_CREATE by bit, ascending as the kernel's table has them. */
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
