/** What differs between the maps of two dumps: which maps there are, their attributes, their items. */

import { equalRange, hex } from '../bytes.js';
import { mapMembers } from '../dump/attributes.js';
import { captureReport, factsOf } from '../dump/facts.js';
import { type Dump, type DumpMap, dataShape, type MapData } from '../dump/model.js';
import type { TypeFinder } from '../dump/types.js';
import type { Input } from '../io/input.js';
import { equalBytes } from '../io/stream.js';
import type { ItemShape } from '../json/forms.js';
import { blankBeyondPrefix } from '../keyhash.js';
import { isBare, type MapTypes, reportText } from '../maptype.js';
import type { Json, JsonObject } from '../value.js';
import { ItemDifferences } from './differences.js';
import { type BufferPart, diffItems, type ItemRules, type Items } from './items.js';
import type { MapPair } from './pairs.js';

/** One of the two dumps. */
export interface Side {
  readonly dump: Dump;
  /** Finds the dump's own types; undefined if it has none. */
  readonly types: TypeFinder | undefined;
}

/** An attribute that differs. */
export interface AttributeChange {
  readonly name: string;
  readonly a: Json;
  readonly b: Json;
}

/** The items of a map on one side, and how a value is cut. */
export interface SideItems extends Items, Pick<ItemShape, 'perCpu'> {}

/** What differs between a map of A and one of B. Close `items`. */
export interface MapDifference {
  readonly attributes: readonly AttributeChange[];
  /** Undefined if items were not compared one by one. */
  readonly items: { readonly a: SideItems; readonly b: SideItems; readonly found: ItemDifferences } | undefined;
  /** Why it is not known whether the items of this map differ. */
  readonly unknown: string | undefined;
}

/** What is compared, and how much of the result is wanted. */
export interface DiffOptions {
  /** Whether to compare who holds a map, and how. */
  readonly holders: boolean;
  /** Most differing items of each kind that are listed; 0 is all. */
  readonly limit: number;
  /** Whether one difference is enough. */
  readonly once: boolean;
}

/** Whether a map has any difference. */
export function isDifferent({ attributes, items }: MapDifference): boolean {
  return attributes.length > 0 || (items !== undefined && items.found.count > 0);
}

/** Attributes that are compared. Ids and memlock change with every replay. */
const COMPARED: readonly string[] = [
  'name',
  'type',
  'key_size',
  'value_size',
  'max_entries',
  'map_flags',
  'map_extra',
  'frozen',
  'ifindex',
];

/** Compares the maps of two dumps, as `pairs` has paired them. */
export class MapComparison {
  /** For each map of B its partner in A, by id. */
  readonly #partners = new Map<number, number>();
  readonly #ids: ReadonlySet<number>;

  constructor(
    readonly a: Side,
    readonly b: Side,
    readonly types: MapTypes,
    readonly options: DiffOptions,
    pairs: readonly MapPair[],
  ) {
    for (const { a: left, b: right } of pairs) if (left && right) this.#partners.set(right.mapId, left.mapId);
    this.#ids = new Set(a.dump.maps.map(({ mapId }) => mapId));
  }

  async compare(a: DumpMap, b: DumpMap): Promise<MapDifference> {
    const attributes = [...this.#attributes(a, b), ...(await this.#typesOf(a, b))];
    const left = this.#dataOf(this.a.dump, a, b);
    const right = this.#dataOf(this.b.dump, b, a);
    if (left === undefined || right === undefined) return { attributes, items: undefined, unknown: undefined };
    if (left.kind === 'unread' || right.kind === 'unread') {
      const why = [left, right].map((one, i) => (one.kind === 'unread' ? `${'AB'[i]}: ${one.why}` : ''));
      return { attributes, items: undefined, unknown: why.filter((text) => text !== '').join('; ') };
    }
    if (left.kind === 'blob' || right.kind === 'blob') {
      if (!(await sameBlobs(left, right))) {
        attributes.push({ name: 'data', a: dataText(left), b: dataText(right) });
      }
      return { attributes, items: undefined, unknown: undefined };
    }
    const none: SideItems = { input: emptyInput, keysAt: 0, valuesAt: 0, count: 0, keySize: 0, valueSize: 0 };
    const [aItems, bItems] = [left.items ?? sized(none, right.items), right.items ?? sized(none, left.items)];
    const { limit, once } = this.options;
    const found = new ItemDifferences(aItems.count, bItems.count, limit, once);
    try {
      await diffItems(aItems, bItems, this.#rules(a, b, aItems, bItems), found);
    } catch (error) {
      found.close();
      throw error;
    }
    return { attributes, items: { a: aItems, b: bItems, found }, unknown: undefined };
  }

  /** Attributes that differ; none if those of one side are not known. */
  #attributes(a: DumpMap, b: DumpMap): AttributeChange[] {
    if (a.files.length === 0 || b.files.length === 0) return [];
    const [left, right] = [mapMembers(a, this.types), mapMembers(b, this.types)];
    const changes: AttributeChange[] = [];
    const compare = (name: string, one: Json, other: Json) => {
      if (JSON.stringify(one) !== JSON.stringify(other)) changes.push({ name, a: one, b: other });
    };
    for (const name of COMPARED) compare(name, left[name] ?? null, right[name] ?? null);
    compare('files', odd(left), odd(right));
    const [leftMeta, rightMeta] = [a.meta, b.meta];
    if (leftMeta?.inner !== undefined && rightMeta?.inner !== undefined) {
      compare('inner', leftMeta.inner, rightMeta.inner);
    }
    if (this.options.holders) compare('holders', holders(a), holders(b));
    return changes;
  }

  /** Types that differ, as in C. Only captures say that a map has no types. */
  async #typesOf(a: DumpMap, b: DumpMap): Promise<AttributeChange[]> {
    const of = async ({ types }: Side, map: DumpMap): Promise<Json | undefined> => {
      const [found] = (await types?.definitions([map])) ?? [];
      if (found === undefined) return map.meta?.kernel_release === undefined ? undefined : null;
      const { key, value, texts } = found;
      return { key: key ?? null, value: value ?? null, c: texts.join('\n') };
    };
    const [left, right] = [await of(this.a, a), await of(this.b, b)];
    if (left === undefined || right === undefined || JSON.stringify(left) === JSON.stringify(right)) return [];
    return [{ name: 'types', a: left, b: right }];
  }

  /** A map's data; undefined if the dump has none. */
  #dataOf(dump: Dump, map: DumpMap, other: DumpMap): Data | undefined {
    const { data: input } = dump;
    const data = map.data.at(-1);
    if (input === undefined) return undefined;
    if (data === undefined) {
      const captured = captureReport(map.meta);
      return isBare(captured) ? { kind: 'unread', why: reportText(captured) } : { kind: 'items', items: undefined };
    }
    const { shape } = dataShape(data, (map.files[0] ?? other.files[0])?.message, this.types);
    if (shape === undefined) return { kind: 'blob', data, input };
    const { keySize, valueSize, perCpu } = shape;
    const keysAt = data.entry.extraAt;
    const items = { input, keysAt, valuesAt: keysAt + data.keysBytes, count: data.count, keySize, valueSize, perCpu };
    return { kind: 'items', items: data.count === 0 ? undefined : (items as SideItems) };
  }

  #rules(a: DumpMap, b: DumpMap, aItems: SideItems, bItems: SideItems): ItemRules {
    const file = a.files[0]?.message ?? b.files[0]?.message;
    const type = file && this.types.get(file.map_type);
    // Keys as in the image: to the kernel, pages of an arena have no keys, but their items have numbers.
    if (aItems.keySize === 0 && bItems.keySize === 0) return { ordered: true };
    if (type === undefined) return {};
    return {
      perCpu: padded(aItems, bItems),
      blankKey: type.key === 'prefix' ? blankBeyondPrefix : undefined,
      sameValue: type.inner ? this.#sameInner : type.holdsReferences ? sameReference(a, b) : undefined,
    };
  }

  /** Whether two ids of inner maps are those of paired maps. */
  readonly #sameInner = (_key: BufferPart, a: BufferPart, b: BufferPart): boolean => {
    if (a.size !== 4 || b.size !== 4) return sameBytes(a, b);
    const id = a.view.getUint32(a.at, true);
    const other = b.view.getUint32(b.at, true);
    const partner = this.#partners.get(other);
    if (partner !== undefined) return partner === id;
    // If the maps are not in the dumps, only their ids are known.
    return id === other && !this.#ids.has(id);
  };
}

/** Bytes of one CPU's value, if it is followed by padding on both sides. */
function padded({ perCpu }: SideItems, other: SideItems): number | undefined {
  return perCpu !== undefined && perCpu % 8 !== 0 && perCpu === other.perCpu ? perCpu : undefined;
}

/** What is known about a map's data on one side. */
type Data =
  | { readonly kind: 'unread'; readonly why: string }
  | { readonly kind: 'items'; readonly items: SideItems | undefined }
  | { readonly kind: 'blob'; readonly data: MapData; readonly input: Input };

const emptyInput: Input = { name: 'nothing', size: 0, path: undefined, read: () => 0, close() {} };

/** No items, with the sizes of the other side's. */
function sized(none: SideItems, other: SideItems | undefined): SideItems {
  if (other === undefined) return none;
  const { keySize, valueSize, perCpu } = other;
  return { ...none, keySize, valueSize, ...(perCpu === undefined ? {} : { perCpu }) };
}

async function sameBlobs(a: Data, b: Data): Promise<boolean> {
  if (a.kind !== 'blob' || b.kind !== 'blob') return false;
  const members = ['count', 'keysBytes', 'valuesBytes'] as const;
  if (members.some((name) => a.data[name] !== b.data[name])) return false;
  const { extraAt, extraSize } = a.data.entry;
  return equalBytes(a.input, extraAt, b.input, b.data.entry.extraAt, extraSize);
}

function dataText(data: Data): string {
  if (data.kind === 'blob')
    return `${data.data.entry.extraSize} bytes that do not divide into ${data.data.count} equal items`;
  return data.kind === 'items' ? `${data.items?.count ?? 0} items` : 'not read';
}

/** Attributes in which further open files differ from the first. */
function odd(members: JsonObject): Json {
  const files = (members.files ?? []) as JsonObject[];
  const all = files.map((file) =>
    Object.fromEntries(COMPARED.filter((name) => Object.hasOwn(file, name)).map((name) => [name, file[name] as Json])),
  );
  return all
    .filter((one) => Object.keys(one).length > 0)
    .sort((a, b) => (JSON.stringify(a) < JSON.stringify(b) ? -1 : 1));
}

const ACCESS = ['ro', 'wo', 'rw'] as const;

/** `22137:3 rw`: who holds a map, and how it is open there. */
function holders(map: DumpMap): Json {
  const all = map.files.flatMap(({ message, holders: some }) =>
    some.map(({ pid, fd }) => [pid, fd, ACCESS[message.flags & 3] ?? 'rw'] as const),
  );
  return all.sort(([a, x], [b, y]) => a - b || x - y).map(([pid, fd, access]) => `${pid}:${fd} ${access}`);
}

function sameBytes(a: BufferPart, b: BufferPart): boolean {
  return a.size === b.size && equalRange(a.view, a.at, b.view, b.at, a.size);
}

/** What an item refers to, and the numbers in its value that mean this on its own host only. */
interface ItemReference {
  readonly text: string;
  readonly ids: ReadonlySet<number>;
}

/** References of a map's items, by their keys in hex. */
function itemReferences(map: DumpMap): Map<string, ItemReference> {
  const targets = new Map<string, ItemReference>();
  for (const { key, program, ifindex, ifname } of factsOf(map.meta).references ?? []) {
    const { id, type, name, tag } = program ?? {};
    const known = tag !== undefined || name !== undefined;
    const text = JSON.stringify([
      program && (known ? [type, name, tag && hex(tag)] : id),
      ifname === undefined ? ifindex : [ifname],
    ]);
    targets.set(hex(key), { text, ids: new Set([id, ifindex].filter((one) => one !== undefined)) });
  }
  return targets;
}

/**
 * Whether two values refer to the same thing, as far as the images say what that is: programs and interfaces have
 * other ids on another host or after the next boot.
 */
function sameReference(a: DumpMap, b: DumpMap): ItemRules['sameValue'] {
  const [left, right] = [itemReferences(a), itemReferences(b)];
  if (left.size === 0 || right.size === 0) return undefined;
  return (key, x, y) => {
    if (sameBytes(x, y)) return true;
    const bytes = hex(new Uint8Array(key.view.buffer, key.view.byteOffset + key.at, key.size));
    const [one, other] = [left.get(bytes), right.get(bytes)];
    if (one === undefined || other === undefined || one.text !== other.text) return false;
    // The parts of these values that are not ids, such as the length of a queue, are compared as they are.
    if (x.size !== y.size || x.size % 4 !== 0) return false;
    for (let i = 0; i < x.size; i += 4) {
      const [word, otherWord] = [x.view.getUint32(x.at + i, true), y.view.getUint32(y.at + i, true)];
      if (word !== otherWord && !(one.ids.has(word) && other.ids.has(otherWord))) return false;
    }
    return true;
  };
}
