/** Finds and changes single items of a dump's maps by key; everything else in the image keeps its bytes. */
import { hex } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import { Cursor, type Input } from '../io/input.js';
import type { Output } from '../io/output.js';
import { pause } from '../io/pause.js';
import { copyInput } from '../io/stream.js';
import { type ItemShape, itemShape } from '../json/forms.js';
import type { JsonObject } from '../value.js';
import type { Dump, DumpMap, MapData } from './model.js';
import type { ImageChanges, NewEntry } from './rewrite.js';

const sameSizes = (a: ItemShape, b: ItemShape) => a.keySize === b.keySize && a.valueSize === b.valueSize;

/** A change of one item. */
export interface ItemEdit {
  readonly key: Uint8Array;
  /** Its value now; undefined if there is no such item. */
  readonly before: Uint8Array | undefined;
  /** Its new value; undefined deletes it. */
  readonly value: Uint8Array | undefined;
}

/** Bytes of keys that are searched at a time. */
const SEARCHED = 1024 * 1024;

/**
 * Positions of the items with each of `keys`, in order. An image may have a key twice; the last one counts.
 * @param shape sizes of the items of `data`
 */
export async function positionsOf(
  input: Input,
  data: MapData,
  { keySize }: ItemShape,
  keys: readonly Uint8Array[],
): Promise<number[][]> {
  const found: number[][] = keys.map(() => []);
  // Keys come from a command line, whose words are shorter.
  if (keySize === 0 || keySize > SEARCHED) return found;
  const { extraAt } = data.entry;
  const window = Math.floor(SEARCHED / keySize) * keySize;
  const cursor = new Cursor(input, extraAt, extraAt + data.count * keySize, window);
  for (let first = 0; first < data.count; ) {
    const ready = await cursor.fill(Math.min(window, (data.count - first) * keySize));
    const count = Math.floor(ready / keySize);
    if (count === 0) throw new BpfimgError('badImage', 'it ends within the keys of a map', { subject: input.name });
    const bytes = Buffer.from(cursor.bytes.buffer, cursor.bytes.byteOffset + cursor.at, count * keySize);
    for (const [i, key] of keys.entries()) {
      for (let at = bytes.indexOf(key); at >= 0; ) {
        const item = Math.ceil(at / keySize);
        if (item * keySize === at) found[i]?.push(first + item);
        // Within one key and the next, the same bytes mean nothing.
        at = bytes.indexOf(key, item * keySize === at ? at + keySize : item * keySize);
      }
    }
    cursor.at += count * keySize;
    first += count;
    await pause();
  }
  return found;
}

/** The value of the item at `position`. */
export async function valueAt(input: Input, data: MapData, shape: ItemShape, position: number): Promise<Uint8Array> {
  const { valueSize } = shape;
  const at = data.entry.extraAt + data.keysBytes + position * valueSize;
  const value = await new Cursor(input, at, at + valueSize, valueSize).take(valueSize);
  if (value.length === valueSize) return value;
  throw new BpfimgError('badImage', 'it ends within the values of a map', { subject: input.name });
}

/** What becomes of the items of one entry. */
interface EntryEdits {
  /** New values, by position, in ascending order. */
  readonly values: readonly (readonly [position: number, value: Uint8Array])[];
  /** Positions, in ascending order. */
  readonly removed: readonly number[];
  readonly added: readonly { readonly key: Uint8Array; readonly value: Uint8Array }[];
}

function entryEdits(edits: readonly ItemEdit[], positions: readonly (readonly number[])[]): EntryEdits {
  const values: [number, Uint8Array][] = [];
  let removed: number[] = [];
  const added: { key: Uint8Array; value: Uint8Array }[] = [];
  for (const [i, { key, value }] of edits.entries()) {
    const places = positions[i] ?? [];
    const last = places.at(-1);
    // If an earlier one stayed, it would count again.
    if (value === undefined) removed = removed.concat(places);
    else if (last === undefined) added.push({ key, value });
    else values.push([last, value]);
  }
  return { values: values.sort(([a], [b]) => a - b), removed: removed.sort((a, b) => a - b), added };
}

/** The edits, one for each key: of several the last counts. */
export function eachOnce(edits: readonly ItemEdit[]): ItemEdit[] {
  return [...new Map(edits.map((edit) => [hex(edit.key), edit])).values()];
}

/** Copies a region of equal parts, some left out or replaced. */
async function copyParts(
  input: Input,
  at: number,
  region: { readonly size: number; readonly count: number },
  changed: readonly (readonly [position: number, bytes: Uint8Array | undefined])[],
  out: Output,
): Promise<void> {
  const { size, count } = region;
  let next = 0;
  for (const [position, bytes] of changed) {
    await copyInput(input, at + next * size, (position - next) * size, out);
    if (bytes !== undefined) out.write(bytes);
    next = position + 1;
  }
  await copyInput(input, at + next * size, (count - next) * size, out);
}

/** The new entry for one that has these items. */
function editedEntry(input: Input, data: MapData, shape: ItemShape, edits: EntryEdits): NewEntry {
  const { entry, count, keysBytes } = data;
  const { keySize, valueSize } = shape;
  const { values, removed, added } = edits;
  const gone = removed.map((position) => [position, undefined] as const);
  const changed = [...values, ...gone].sort(([a], [b]) => a - b);
  const left = count - removed.length + added.length;
  const message: JsonObject = {
    ...entry.message,
    count: left,
    keys_bytes: left * keySize,
    values_bytes: left * valueSize,
  };
  const extra = async (out: Output) => {
    await copyParts(input, entry.extraAt, { size: keySize, count }, gone, out);
    for (const { key } of added) out.write(key);
    await copyParts(input, entry.extraAt + keysBytes, { size: valueSize, count }, changed, out);
    for (const { value } of added) out.write(value);
  };
  return { message, extra };
}

/**
 * The changes to the data image of `dump` that make `edits` in `map`. An image may have the items of a map several
 * times, once for each open file: all of them change.
 * @param shape sizes of the map's items
 * @throws BpfimgError `badImage` if one of them has items of other sizes
 */
export async function dataChanges(
  dump: Dump,
  map: DumpMap,
  shape: ItemShape,
  given: readonly ItemEdit[],
): Promise<ImageChanges> {
  const edits = eachOnce(given);
  const entries = new Map<number, () => NewEntry>();
  const keys = edits.map(({ key }) => key);
  for (const data of map.data) {
    const input = dump.data as Input;
    const own = itemShape(data.count, data.keysBytes, data.valuesBytes);
    if (own === undefined || (data.count > 0 && !sameSizes(own, shape))) {
      const what = `entry ${data.entry.index}: its data is not items of ${shape.keySize} and ${shape.valueSize} bytes`;
      throw new BpfimgError('badImage', what, { subject: input.name });
    }
    const positions = await positionsOf(input, data, shape, keys);
    const all = entryEdits(edits, positions);
    entries.set(data.entry.index, () => editedEntry(input, data, shape, all));
  }
  if (map.data.length > 0) return { entries, added: [] };
  const { added } = entryEdits(edits, []);
  if (added.length === 0) return { entries, added: [] };
  const { keySize, valueSize } = shape;
  const message = {
    map_id: map.mapId,
    keys_bytes: added.length * keySize,
    values_bytes: added.length * valueSize,
    count: added.length,
  };
  const extra = async (out: Output) => {
    for (const { key } of added) out.write(key);
    for (const { value } of added) out.write(value);
  };
  return { entries, added: [{ message, extra }] };
}
