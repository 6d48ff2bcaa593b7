/** What has changed in a map between two looks: the largest changes, and how fast numbers grow. */
import { viewOf } from '../bytes.js';
import type { MapDifference } from '../diff/diff.js';
import type { DumpMap } from '../dump/model.js';
import type { ItemForms } from '../json/forms.js';
import { isObject, type Json } from '../value.js';
import { ItemsView, partChanges } from './diff-report.js';

/** A part of a value that has changed. */
export interface ChangedPart {
  /** Empty for the whole value. */
  readonly path: string;
  readonly a: Json | undefined;
  readonly b: Json | undefined;
  /** What was added to a number. */
  readonly growth: number | undefined;
}

/** An item that has changed, or is new or gone. */
export interface ChangedItem {
  readonly change: 'changed' | 'added' | 'removed';
  readonly key: Json;
  /** Values; those of per-CPU maps are added up as far as they are numbers. */
  readonly a?: Json;
  readonly b?: Json;
  readonly parts: readonly ChangedPart[];
}

/** One map in one look. */
export interface MapTick {
  readonly map: DumpMap;
  /** Undefined if its items are not read. */
  readonly items: number | undefined;
  readonly changed: number;
  readonly added: number;
  readonly removed: number;
  /** The largest changes first, then items that are new or gone, as far as the limit allows. */
  readonly shown: readonly ChangedItem[];
  /** Changed items that were not looked at and so cannot be among those shown. */
  readonly skipped: number;
}

/** What one look has found. */
export interface Tick {
  /** Since the look before. */
  readonly seconds: number;
  readonly maps: readonly MapTick[];
  readonly gone: readonly { readonly id: number; readonly name: string }[];
}

type FoundItems = NonNullable<MapDifference['items']>;

/** Bytes of a key, and of a value without types, that are looked at. */
const MOST_KEY = 64;
const MOST_VALUE = 4096;

/** Finds the largest changes of one map. */
export class Changes {
  /** Changed items of a map that are looked at: more would take longer than a look may. */
  static readonly most = 20_000;

  constructor(
    readonly forms: ItemForms | undefined,
    readonly seconds: number,
    /** Items of each kind that are kept. */
    readonly limit: number,
  ) {}

  async of(map: DumpMap, items: FoundItems | undefined): Promise<MapTick> {
    const read = map.data.length > 0 || items !== undefined;
    const count = read ? (map.data.at(-1)?.count ?? 0) : undefined;
    if (items === undefined) {
      return { map, items: count, changed: 0, added: 0, removed: 0, shown: [], skipped: 0 };
    }
    const { found } = items;
    const shown = [...(await this.#changed(items)), ...(await this.#others(items))];
    const [changed, added, removed] = [found.changed.count, found.added.count, found.removed.count];
    return { map, items: count, changed, added, removed, shown, skipped: Math.max(0, changed - Changes.most) };
  }

  /** The items with the largest changes. */
  async #changed({ a, b, found }: FoundItems): Promise<ChangedItem[]> {
    const [left, right] = [new ItemsView(a, this.forms), new ItemsView(b, this.forms)];
    let best: { readonly size: number; readonly item: ChangedItem }[] = [];
    if (this.limit === 0) return [];
    for await (const [position, other] of found.changed.list()) {
      const [one, two] = [await value(left, position), await value(right, other)];
      const parts = changedParts(one, two);
      const size = parts.reduce((sum, { growth = 0 }) => sum + Math.abs(growth), 0);
      if (best.length >= 2 * this.limit) best = largest(best, this.limit);
      best.push({ size, item: { change: 'changed', key: await key(right, other), a: one, b: two, parts } });
    }
    return largest(best, this.limit).map(({ item }) => item);
  }

  async #others({ a, b, found }: FoundItems): Promise<ChangedItem[]> {
    const items: ChangedItem[] = [];
    for (const [change, name, side] of [
      ['added', 'b', b],
      ['removed', 'a', a],
    ] as const) {
      const view = new ItemsView(side, this.forms);
      let left = this.limit;
      if (left === 0) continue;
      for await (const [position] of found[change].list()) {
        items.push({ change, key: await key(view, position), [name]: await value(view, position), parts: [] });
        if (--left === 0) break;
      }
    }
    return items;
  }
}

function largest<T extends { readonly size: number }>(items: readonly T[], most: number): T[] {
  return [...items].sort((a, b) => b.size - a.size).slice(0, most);
}

async function key(view: ItemsView, position: number): Promise<Json> {
  const { keySize } = view.items;
  if (keySize === 0) return position;
  const at = view.keyAt(position);
  return (
    (await view.json(view.forms.key, at, keySize)) ?? plain(await view.bytes(at, Math.min(keySize, MOST_KEY)), keySize)
  );
}

/** A value as JSON; the values of several CPUs as one. */
async function value(view: ItemsView, position: number): Promise<Json> {
  const values: Json[] = [];
  for (let cpu = 0; cpu < view.cpus; cpu++) {
    const at = view.valueAt(position, cpu);
    const typed = await view.json(view.forms.value, at, view.stride);
    values.push(typed ?? plain(await view.bytes(at, Math.min(view.size, MOST_VALUE)), view.size));
  }
  return view.items.perCpu === undefined ? (values[0] ?? '') : together(values);
}

/** Bytes without a type: a number if they have the size of one, otherwise hex. */
function plain(bytes: Uint8Array, size: number): Json {
  const view = viewOf(bytes);
  if (size === 1) return view.getUint8(0);
  if (size === 2) return view.getUint16(0, true);
  if (size === 4) return view.getUint32(0, true);
  if (size === 8) return json(view.getBigUint64(0, true));
  return Buffer.from(bytes).toString('hex');
}

/** A number as typed JSON has it. */
function json(number: bigint): Json {
  return number >= -MOST_SAFE && number <= MOST_SAFE ? Number(number) : String(number);
}

const MOST_SAFE = BigInt(Number.MAX_SAFE_INTEGER);

/** The number that JSON means: itself, or text of one that is too large. */
function numberIn(value: Json | undefined): number | bigint | undefined {
  if (typeof value === 'number') return value;
  if (typeof value !== 'string' || !/^-?\d{16,20}$/.test(value)) return undefined;
  const number = BigInt(value);
  return json(number) === value ? number : undefined;
}

/** The values of several CPUs as one: numbers are added up; what differs otherwise is a list. */
function together(values: readonly Json[]): Json {
  const [first] = values;
  const numbers = values.map(numberIn);
  if (numbers.every((number) => number !== undefined)) {
    if (numbers.every((number) => Number.isInteger(Number(number)))) {
      return json(numbers.reduce<bigint>((sum, number) => sum + BigInt(number), 0n));
    }
    return numbers.reduce<number>((sum, number) => sum + Number(number), 0);
  }
  if (Array.isArray(first) && values.every((one) => Array.isArray(one) && one.length === first.length)) {
    return first.map((_, i) => together(values.map((one) => (one as Json[])[i] as Json)));
  }
  if (isObject(first) && values.every((one) => isObject(one))) {
    return Object.fromEntries(
      Object.keys(first).map((name) => [
        name,
        together(values.map((one) => (one as { [name: string]: Json })[name] ?? null)),
      ]),
    );
  }
  const text = JSON.stringify(first);
  return values.every((one) => JSON.stringify(one) === text) ? (first as Json) : [...values];
}

function changedParts(a: Json, b: Json): ChangedPart[] {
  return [...partChanges(a, b)].map(({ path, a: one, b: two }) => {
    const [before, after] = [numberIn(one), numberIn(two)];
    const known = before !== undefined && after !== undefined;
    const whole = typeof before === 'bigint' || typeof after === 'bigint';
    const growth = !known ? undefined : whole ? Number(BigInt(after) - BigInt(before)) : Number(after) - Number(before);
    return { path: path.replace(/^\./, ''), a: one, b: two, growth };
  });
}
