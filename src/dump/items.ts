/** The items of a dump's map one by one, for programs: as bytes, or as the JSON of documents. */
import { cpuStride, hex, isZero, viewOf } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import type { Cursor } from '../io/input.js';
import { pause } from '../io/pause.js';
import { formsThatFit, type ItemForms, type ItemShape, type JsonPrinter } from '../json/forms.js';
import { ItemCursors, rawForm } from '../json/items.js';
import { mapIdForm } from '../json/map-id.js';
import type { MapTypes } from '../maptype.js';
import type { Json } from '../value.js';
import { type Dump, type DumpMap, dataShape, type MapData } from './model.js';
import type { TypeFinder } from './types.js';

export type { ItemShape } from '../json/forms.js';

/** An item as bytes. They belong to the caller and do not change. */
export interface RawItem {
  readonly key: Uint8Array;
  /** The whole value: in a per-CPU map one value per possible CPU, each padded to a multiple of 8 bytes. */
  readonly value: Uint8Array;
  /** In a per-CPU map: the value of each possible CPU without padding, as parts of {@link value}. */
  readonly values?: readonly Uint8Array[] | undefined;
}

/** An item as in a maps document: bytes in hex, or JSON of their types. */
export type Item =
  | { readonly key: Json; readonly value: Json; readonly values?: undefined }
  /** In a per-CPU map: one per possible CPU. */
  | { readonly key: Json; readonly value?: undefined; readonly values: readonly Json[] };

/**
 * The items of `map`, a map of `dump`, as bytes and in the order of the image; none if the dump has no data of it.
 * Only one item at a time is in memory. The dump must stay open meanwhile.
 * @throws BpfimgError `badImage` for data that is not a whole number of items, or that ends early
 */
export async function* rawItems(dump: Dump, map: DumpMap, types: MapTypes): AsyncGenerator<RawItem, void, undefined> {
  const found = foundItems(dump, map, types);
  if (found !== undefined) yield* readItems(found);
}

/**
 * The items of `map`, a map of `dump`, as `decode` shows them. Otherwise like {@link rawItems}.
 * @param finder finds types of keys and values; without a type they are hex
 */
export async function* items(
  dump: Dump,
  map: DumpMap,
  types: MapTypes,
  finder?: TypeFinder,
): AsyncGenerator<Item, void, undefined> {
  const found = foundItems(dump, map, types);
  if (found === undefined) return;
  const forms = await formsOf(map, types, finder, found.shape);
  for await (const item of readItems(found)) yield shownItem(item, forms);
}

/** How items of this shape are shown. */
export async function formsOf(
  map: DumpMap,
  types: MapTypes,
  finder: TypeFinder | undefined,
  { keySize, valueSize, perCpu }: ItemShape,
): Promise<ItemForms | undefined> {
  const typed = await finder?.forms([map]);
  return formsThatFit(itemForms(map, types, typed?.of(map)), keySize, perCpu ?? valueSize);
}

/** An item as in a document, from its already printed key and value. */
export function shownItem({ key, value, values }: RawItem, forms: ItemForms | undefined): Item {
  if (values === undefined) return { key: itemJson(forms?.key, key), value: itemJson(forms?.value, value) };
  return { key: itemJson(forms?.key, key), values: values.map((one) => cpuJson(forms?.value, one)) };
}

/** An item of these bytes. */
export function rawItem(key: Uint8Array, value: Uint8Array, perCpu: number | undefined): RawItem {
  return perCpu === undefined ? { key, value } : { key, value, values: [...cpuValues(value, perCpu)] };
}

/** How to show the items of a map in a document: by their types, if known, or as inner maps. */
export function itemForms(map: DumpMap, types: MapTypes, typed: ItemForms | undefined): ItemForms | undefined {
  const type = map.files[0]?.message.map_type;
  if (typed !== undefined || type === undefined) return typed;
  return types.get(type).inner === true ? { value: mapIdForm } : undefined;
}

/** The items of one data entry, and the cursors that read them. */
export interface FoundItems {
  readonly cursors: ItemCursors;
  readonly count: number;
  readonly shape: ItemShape;
}

/**
 * Finds the items of a data entry of `map`; undefined if it has none.
 * @param data the entry; by default the last one, from which CRIU restores
 * @throws BpfimgError `badImage` for data that is not a whole number of items
 */
export function foundItems(
  dump: Dump,
  map: DumpMap,
  types: MapTypes,
  data: MapData | undefined = map.data.at(-1),
): FoundItems | undefined {
  if (dump.data === undefined || data === undefined || data.count === 0) return undefined;
  const { shape } = dataShape(data, map.files[0]?.message, types);
  if (shape === undefined) {
    const what = `${data.keysBytes} bytes of keys and ${data.valuesBytes} of values are not ${data.count} equal items`;
    const code = 'not-divisible';
    throw new BpfimgError('badImage', `map ${map.mapId}: ${what}`, { subject: dump.name, code });
  }
  return { cursors: ItemCursors.over(dump.data, data.entry), count: data.count, shape };
}

/** The items of an entry, as in {@link rawItems}. */
export async function* readItems({ cursors, count, shape }: FoundItems): AsyncGenerator<RawItem, void, undefined> {
  const { keySize, valueSize, perCpu } = shape;
  for (let i = 0; i < count; i++) {
    const key = taken(cursors.keys, keySize) ?? (await take(cursors, cursors.keys, keySize));
    const value = taken(cursors.values, valueSize) ?? (await take(cursors, cursors.values, valueSize));
    yield rawItem(key, value, perCpu);
  }
}

/** The next bytes of a cursor, if they are in its window. */
function taken(from: Cursor, size: number): Uint8Array | undefined {
  if (from.ready < size) return undefined;
  const bytes = from.bytes.slice(from.at, from.at + size);
  from.at += size;
  return bytes;
}

/** The next bytes of a cursor, read first. */
async function take(cursors: ItemCursors, from: Cursor, size: number): Promise<Uint8Array> {
  await pause();
  if (size <= from.bytes.length) await from.fill(size);
  const bytes = taken(from, size) ?? (await from.take(size));
  if (bytes.length < size) throw cursors.truncated();
  return new Uint8Array(bytes.buffer, bytes.byteOffset, size);
}

function* cpuValues(value: Uint8Array, size: number): Generator<Uint8Array> {
  for (let at = 0; at < value.length; at += cpuStride(size)) yield value.subarray(at, at + size);
}

function itemJson(form: JsonPrinter | undefined, bytes: Uint8Array): Json {
  return form === undefined ? hex(bytes) : form.show(viewOf(bytes), 0);
}

/** One CPU's value; with its padding unless that is zero, because the kernel keeps what was written. */
function cpuJson(form: JsonPrinter | undefined, value: Uint8Array): Json {
  const stride = cpuStride(value.length);
  const padded = new Uint8Array(value.buffer, value.byteOffset, stride);
  if (isZero(padded, value.length)) return itemJson(form, value);
  return itemJson(form && rawForm(stride), padded);
}
