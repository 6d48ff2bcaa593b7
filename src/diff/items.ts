/**
 * Which items of two data entries differ, regardless of their order, in memory that does not grow with them.
 *
 * Both entries are first read side by side, because most items are usually equal and at the same position. The rest is
 * put aside in parts, by a hash of the key, and each part is compared in memory. If several items of an entry have the
 * same key, the last one counts, as in CRIU's restore and in a replay.
 */

import { copyBytes, cpuParts, equalRange, viewOf } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import { Cursor, type Input } from '../io/input.js';
import { pause } from '../io/pause.js';
import { equalBytes } from '../io/stream.js';
import { KeyFilter, KeyHash } from '../keyhash.js';
import type { ItemDifferences } from './differences.js';
import { Parts } from './parts.js';

/** The items of one data entry. */
export interface Items {
  readonly input: Input;
  /** Positions in the input. */
  readonly keysAt: number;
  readonly valuesAt: number;
  readonly count: number;
  /** Bytes of a key, and of an item's whole value. */
  readonly keySize: number;
  readonly valueSize: number;
}

/** What is special about the items of a map type. */
export interface ItemRules {
  /** Items have no keys; their order is what counts. */
  readonly ordered?: boolean | undefined;
  /** Clears the bits that make no difference in the key at `at`. */
  readonly blankKey?: ((view: DataView, at: number, size: number) => void) | undefined;
  /** Bytes of one CPU's value, if each is padded to a multiple of 8. The padding does not count: Linux 7.2 zeroes it. */
  readonly perCpu?: number | undefined;
  /** Whether two values of one key are the same, if their bytes alone do not decide that. */
  readonly sameValue?: ((key: BufferPart, a: BufferPart, b: BufferPart) => boolean) | undefined;
}

/** Bytes within a buffer. */
export interface BufferPart {
  readonly view: DataView;
  readonly at: number;
  readonly size: number;
}

/** Sizes that decide how items are compared; tests have their own. */
export interface CompareLimits {
  /** Items of this many bytes or more are compared in place. */
  readonly wide: number;
  /** Most bytes of one part's items on one side that are held at once. */
  readonly bytes: number;
  readonly items: number;
  /** Most parts into which items are put aside at once. */
  readonly parts: number;
}

const COMPARE_LIMITS: CompareLimits = {
  wide: 16 * 1024,
  bytes: 12 * 1024 * 1024,
  items: 512 * 1024,
  parts: 128,
};

/**
 * Notes in `found` which items of `a` and `b` differ.
 * @throws BpfimgError if an input ends early
 */
export async function diffItems(
  a: Items,
  b: Items,
  rules: ItemRules,
  found: ItemDifferences,
  limits: CompareLimits = COMPARE_LIMITS,
): Promise<void> {
  if (rules.ordered === true) return new Sequences(a, b, found).compare();
  if (a.keySize !== b.keySize && a.count > 0 && b.count > 0) {
    // No key can be on both sides.
    await diffItems(a, { ...a, count: 0 }, rules, found, limits);
    await diffItems({ ...b, count: 0 }, b, rules, found, limits);
    return;
  }
  const size = (items: Items) => (items.count === 0 ? 0 : items.keySize + items.valueSize);
  if (Math.max(size(a), size(b)) >= limits.wide) return new WideItems(a, b, rules, found).compare();
  return new ManyItems(a, b, rules, found, limits).compare();
}

function shorter(items: Items): BpfimgError {
  return new BpfimgError('badImage', 'it became shorter while it was being read', { subject: items.input.name });
}

// ---------------------------------------------------------------------------------------------------
// Many items

/** Bytes within a value. */
interface ValuePart {
  readonly at: number;
  readonly size: number;
}

/** The parts of a value of `valueSize` bytes in which a difference counts. */
function partsThatCount(valueSize: number, { perCpu }: ItemRules): readonly ValuePart[] {
  const { size, stride, cpus } = cpuParts(valueSize, perCpu);
  return Array.from({ length: cpus }, (_, cpu) => ({ at: cpu * stride, size }));
}

/** Keys and values of an entry. */
class Stream {
  readonly keys: Cursor;
  readonly values: Cursor;

  constructor(
    readonly items: Items,
    readonly blankKey: ItemRules['blankKey'],
  ) {
    const { input, keysAt, valuesAt, count, keySize, valueSize } = items;
    this.keys = new Cursor(input, keysAt, keysAt + count * keySize);
    this.values = new Cursor(input, valuesAt, valuesAt + count * valueSize);
  }

  /** Reads ahead at most `most` items; returns how many. */
  async ready(most: number): Promise<number> {
    const { keySize, valueSize } = this.items;
    const keys = keySize === 0 ? most : Math.floor((await this.keys.fill(keySize)) / keySize);
    const values = valueSize === 0 ? most : Math.floor((await this.values.fill(valueSize)) / valueSize);
    const count = Math.min(most, keys, values);
    if (count === 0) throw shorter(this.items);
    return count;
  }

  /** Clears what makes no difference in the next `count` keys. */
  blank(count: number): void {
    const { keys, blankKey } = this;
    const { keySize } = this.items;
    if (blankKey !== undefined) for (let i = 0; i < count; i++) blankKey(keys.view, keys.at + i * keySize, keySize);
  }

  skip(count: number): void {
    this.keys.at += count * this.items.keySize;
    this.values.at += count * this.items.valueSize;
  }
}

/** Called for items at the same position in both entries; both streams are at the first of them. */
type Visit = (position: number, count: number, same: boolean) => void;

/** One part's items of one side, in memory: the last one of each key. */
class ItemTable {
  /** Records as {@link Parts} have them: position, key, value. */
  records: Buffer;
  view: DataView;
  count = 0;
  readonly #size: number;
  #hashes: Uint32Array;
  /** Number of a record + 1; 0 is free. */
  #slots: Int32Array;

  #hash = new KeyHash();

  constructor(
    readonly keySize: number,
    valueSize: number,
    readonly limits: CompareLimits,
  ) {
    this.#size = 4 + keySize + valueSize;
    this.records = Buffer.from(new ArrayBuffer(64 * this.#size));
    this.view = viewOf(this.records);
    this.#hashes = new Uint32Array(64);
    this.#slots = new Int32Array(256);
  }

  /** Removes all records. */
  clear(hash: KeyHash): void {
    this.#hash = hash;
    this.#slots.fill(0);
    this.count = 0;
  }

  /** Adds the record at `at`; false if there is no room for it. */
  put(from: DataView, at: number): boolean {
    const hash = this.#hash.of(from, at + 4, this.keySize);
    const slot = this.#slot(from, at + 4, hash);
    const known = this.#slots[slot] as number;
    if (known > 0) {
      const place = (known - 1) * this.#size;
      if (from.getUint32(at, true) > this.view.getUint32(place, true))
        copyBytes(from, at, this.view, place, this.#size);
      return true;
    }
    if (this.count === this.limits.items || (this.count + 1) * this.#size > this.limits.bytes) return false;
    if (this.count === this.#hashes.length) this.#grow();
    copyBytes(from, at, this.view, this.count * this.#size, this.#size);
    this.#hashes[this.count] = hash;
    this.#slots[slot] = ++this.count;
    if (this.count * 2 > this.#slots.length) this.#rehash();
    return true;
  }

  /** The record with the key at `at`; -1 if there is none. */
  find(from: DataView, at: number): number {
    return (this.#slots[this.#slot(from, at, this.#hash.of(from, at, this.keySize))] as number) - 1;
  }

  /** Position of a record in {@link records}. */
  at(record: number): number {
    return record * this.#size;
  }

  /** The slot that the key at `at` has or would get. */
  #slot(from: DataView, at: number, hash: number): number {
    const mask = this.#slots.length - 1;
    for (let slot = hash & mask; ; slot = (slot + 1) & mask) {
      const record = (this.#slots[slot] as number) - 1;
      if (record < 0) return slot;
      if (this.#hashes[record] !== hash) continue;
      if (equalRange(from, at, this.view, record * this.#size + 4, this.keySize)) return slot;
    }
  }

  #grow(): void {
    const records = Buffer.from(new ArrayBuffer(2 * this.records.length));
    records.set(this.records);
    this.records = records;
    this.view = viewOf(records);
    const hashes = new Uint32Array(2 * this.#hashes.length);
    hashes.set(this.#hashes);
    this.#hashes = hashes;
  }

  #rehash(): void {
    this.#slots = new Int32Array(4 * this.#slots.length);
    const mask = this.#slots.length - 1;
    for (let record = 0; record < this.count; record++) {
      let slot = (this.#hashes[record] as number) & mask;
      while (this.#slots[slot] !== 0) slot = (slot + 1) & mask;
      this.#slots[slot] = record + 1;
    }
  }
}

/** Most words of a filter of keys, as a power of two: 32 MiB. */
const FILTER_WORDS = 23;

/** Levels of parts within parts; no hash needs more, whatever the keys are. */
const MOST_LEVELS = 12;

class ManyItems {
  readonly #hash = new KeyHash();
  /** The part of either side that is being compared. */
  readonly #tables: readonly [ItemTable, ItemTable];
  readonly #counts: readonly ValuePart[];

  constructor(
    readonly a: Items,
    readonly b: Items,
    readonly rules: ItemRules,
    readonly found: ItemDifferences,
    readonly limits: CompareLimits,
  ) {
    this.#tables = [new ItemTable(a.keySize, a.valueSize, limits), new ItemTable(b.keySize, b.valueSize, limits)];
    this.#counts = partsThatCount(a.valueSize, rules);
  }

  async compare(): Promise<void> {
    const { a, b, limits } = this;
    const bytes = Math.max(...[a, b].map(({ count, keySize, valueSize }) => count * (4 + keySize + valueSize)));
    const wanted = Math.max((2 * bytes) / limits.bytes, (2 * Math.max(a.count, b.count)) / limits.items);
    const sides = this.#parts(Math.min(limits.parts, Math.max(1, Math.ceil(wanted))));
    try {
      if (await this.#putAside(sides)) await this.#join(sides, this.#hash, 0);
    } finally {
      for (const side of sides) side.close();
    }
  }

  #parts(count: number): [Parts, Parts] {
    const { a, b } = this;
    return [new Parts(count, 4 + a.keySize + a.valueSize), new Parts(count, 4 + b.keySize + b.valueSize)];
  }

  /** Puts aside items that differ from those at the same position, and all others with their keys; false if none. */
  async #putAside(sides: readonly [Parts, Parts]): Promise<boolean> {
    const { a, b } = this;
    const shared = Math.min(a.count, b.count);
    const filter = new KeyFilter((a.count + b.count) / 2, FILTER_WORDS);
    let streams: [Stream, Stream] = this.#streams();
    const hashOf = ({ keys, items }: Stream, i: number) =>
      this.#hash.of(keys.view, keys.at + i * items.keySize, items.keySize);
    const put = (side: 0 | 1, position: number, i: number, hash: number) => {
      const { items, keys, values } = streams[side];
      const { keySize, valueSize } = items;
      const parts = sides[side];
      const at = parts.slot(Math.floor((hash * parts.count) / 0x1_0000_0000));
      parts.view.setUint32(at, position, true);
      copyBytes(keys.view, keys.at + i * keySize, parts.view, at + 4, keySize);
      copyBytes(values.view, values.at + i * valueSize, parts.view, at + 4 + keySize, valueSize);
    };
    let aside = 0;
    const differ = (side: 0 | 1, position: number, i: number) => {
      const hash = hashOf(streams[side], i);
      filter.add(hash);
      put(side, position, i, hash);
      aside++;
    };
    let passed = 0;
    await this.#lockStep(streams, shared, (position, count, same) => {
      if (same) {
        passed += count;
        return;
      }
      for (let i = 0; i < count; i++) {
        differ(0, position + i, i);
        differ(1, position + i, i);
      }
    });
    for (const side of [0, 1] as const) {
      const stream = streams[side];
      for (let position = shared; position < stream.items.count; ) {
        const ready = await stream.ready(stream.items.count - position);
        stream.blank(ready);
        for (let i = 0; i < ready; i++) differ(side, position + i, i);
        stream.skip(ready);
        position += ready;
        await pause();
      }
    }
    if (aside === 0) return false;
    if (passed === 0) return true;
    // An entry may have a key twice: once where both sides are the same, and once where they are not.
    streams = this.#streams();
    await this.#lockStep(streams, shared, (position, count, same) => {
      if (!same) return;
      for (let i = 0; i < count; i++) {
        const hash = hashOf(streams[0], i);
        if (!filter.has(hash)) continue;
        put(0, position + i, i, hash);
        put(1, position + i, i, hash);
      }
    });
    return true;
  }

  #streams(): [Stream, Stream] {
    const { blankKey } = this.rules;
    return [new Stream(this.a, blankKey), new Stream(this.b, blankKey)];
  }

  /** Goes through the first `shared` items of both. */
  async #lockStep([a, b]: readonly [Stream, Stream], shared: number, visit: Visit): Promise<void> {
    const { keySize, valueSize } = this.a;
    const bytesAlone = this.rules.sameValue === undefined && valueSize === this.b.valueSize;
    const part = (cursor: Cursor, size: number) => cursor.bytes.subarray(cursor.at, cursor.at + size);
    const same = (left: Cursor, right: Cursor, size: number) =>
      Buffer.compare(part(left, size), part(right, size)) === 0;
    for (let done = 0; done < shared; ) {
      const ready = Math.min(await a.ready(shared - done), await b.ready(shared - done));
      a.blank(ready);
      b.blank(ready);
      if (bytesAlone && same(a.keys, b.keys, ready * keySize) && same(a.values, b.values, ready * valueSize)) {
        visit(done, ready, true);
        a.skip(ready);
        b.skip(ready);
      } else {
        for (let i = 0; i < ready; i++) {
          const sameKey = equalRange(a.keys.view, a.keys.at, b.keys.view, b.keys.at, keySize);
          visit(done + i, 1, sameKey && this.#sameValue(a.keys.view, a.keys.at, a.values, b.values));
          a.skip(1);
          b.skip(1);
        }
      }
      done += ready;
      await pause();
    }
  }

  #sameValue(
    key: DataView,
    keyAt: number,
    { view: a, at: aAt }: { view: DataView; at: number },
    { view: b, at: bAt }: { view: DataView; at: number },
  ): boolean {
    const [aSize, bSize] = [this.a.valueSize, this.b.valueSize];
    const { sameValue } = this.rules;
    if (sameValue !== undefined) {
      const keyPlace = { view: key, at: keyAt, size: this.a.keySize };
      return sameValue(keyPlace, { view: a, at: aAt, size: aSize }, { view: b, at: bAt, size: bSize });
    }
    if (aSize !== bSize) return false;
    return this.#counts.every(({ at, size }) => equalRange(a, aAt + at, b, bAt + at, size));
  }

  async #join(sides: readonly [Parts, Parts], hash: KeyHash, level: number): Promise<void> {
    for (let part = 0; part < sides[0].count && !this.found.enough; part++) {
      const [a, b] = this.#tables;
      const fits = (await this.#load(sides[0], part, a, hash)) && (await this.#load(sides[1], part, b, hash));
      if (fits) this.#compare(a, b);
      else await this.#split(sides, part, level + 1);
      await pause();
    }
  }

  /** Adds a part's items; false if there are too many. */
  async #load(parts: Parts, part: number, table: ItemTable, hash: KeyHash): Promise<boolean> {
    table.clear(hash);
    for await (const page of parts.read(part)) {
      const view = viewOf(page);
      for (let at = 0; at < page.length; at += parts.size) if (!table.put(view, at)) return false;
      await pause();
    }
    return true;
  }

  #compare(a: ItemTable, b: ItemTable): void {
    const { found } = this;
    const { keySize, valueSize } = this.a;
    const { perCpu, sameValue } = this.rules;
    const bytesAlone = valueSize === this.b.valueSize && sameValue === undefined && perCpu === undefined;
    const matched = new Uint8Array(b.count);
    for (let record = 0; record < a.count; record++) {
      const at = a.at(record);
      const other = b.find(a.view, at + 4);
      if (other < 0) {
        found.removed.add(a.view.getUint32(at, true), 0);
        continue;
      }
      matched[other] = 1;
      const otherAt = b.at(other);
      const [left, right] = [
        { view: a.view, at: at + 4 + keySize },
        { view: b.view, at: otherAt + 4 + keySize },
      ];
      if (bytesAlone) {
        if (equalRange(left.view, left.at, right.view, right.at, valueSize)) continue;
      } else if (this.#sameValue(a.view, at + 4, left, right)) continue;
      found.changed.add(a.view.getUint32(at, true), b.view.getUint32(otherAt, true));
    }
    for (let record = 0; record < b.count; record++) {
      if (matched[record] === 0) found.added.add(b.view.getUint32(b.at(record), true), 0);
    }
  }

  /** Divides a part that is too large for memory into smaller ones, and compares those. */
  async #split(sides: readonly [Parts, Parts], part: number, level: number): Promise<void> {
    if (level > MOST_LEVELS) throw new Error(`parts of ${this.a.input.name} do not get smaller`);
    const hash = new KeyHash();
    const smaller = this.#parts(Math.min(this.limits.parts, 16));
    try {
      for (const [side, parts] of smaller.entries()) {
        const from = sides[side] as Parts;
        for await (const page of from.read(part)) {
          const view = viewOf(page);
          for (let at = 0; at < page.length; at += from.size) {
            const of = hash.of(view, at + 4, this.a.keySize);
            const to = parts.slot(Math.floor((of * parts.count) / 0x1_0000_0000));
            copyBytes(view, at, parts.view, to, from.size);
          }
          await pause();
        }
      }
      await this.#join(smaller, hash, level);
    } finally {
      for (const one of smaller) one.close();
    }
  }
}

// ---------------------------------------------------------------------------------------------------
// Wide items

/** Bytes that are compared in one piece. */
const PIECE = 64 * 1024;

/** Items so large that there cannot be many: they are found by hashes of their keys and compared in place. */
class WideItems {
  readonly #hash = new KeyHash();

  constructor(
    readonly a: Items,
    readonly b: Items,
    readonly rules: ItemRules,
    readonly found: ItemDifferences,
  ) {}

  async compare(): Promise<void> {
    const { a, b, found } = this;
    const left = await this.#index(a);
    const right = await this.#index(b);
    const matched = new Uint8Array(b.count);
    for (const position of left.values()) {
      if (found.enough) return;
      const { known: other } = await this.#find(right, b, a, position);
      if (other === undefined) found.removed.add(position, 0);
      else {
        matched[other] = 1;
        if (!(await this.#sameValue(position, other))) found.changed.add(position, other);
      }
    }
    for (const position of right.values()) if (matched[position] === 0) found.added.add(position, 0);
  }

  /** Positions of the last item of each key, by a digest of the key. */
  async #index(items: Items): Promise<Map<number, number>> {
    const index = new Map<number, number>();
    for (let position = 0; position < items.count; position++) {
      index.set((await this.#find(index, items, items, position)).digest, position);
      await pause();
    }
    return index;
  }

  /**
   * Finds the item in an index that has the key of item `position` of `other`.
   * @returns its position, and the digest that it has or would get: the next free one if two keys have the same digest
   */
  async #find(
    index: ReadonlyMap<number, number>,
    items: Items,
    other: Items,
    position: number,
  ): Promise<{ digest: number; known: number | undefined }> {
    for (let digest = await this.#digest(other, position); ; digest++) {
      const known = index.get(digest);
      if (known === undefined || (await this.#sameKey(items, known, other, position))) return { digest, known };
    }
  }

  /** A key that is small enough to be read in one piece. */
  async #key(items: Items, position: number): Promise<DataView | undefined> {
    const { input, keysAt, keySize } = items;
    if (keySize > PIECE) return undefined;
    const view = viewOf(await piece(items, input, keysAt + position * keySize, keySize));
    this.rules.blankKey?.(view, 0, keySize);
    return view;
  }

  async #digest(items: Items, position: number): Promise<number> {
    const { input, keysAt, keySize } = items;
    const hash = this.#hash;
    const whole = await this.#key(items, position);
    if (whole !== undefined) hash.of(whole, 0, keySize);
    for (let done = 0; whole === undefined && done < keySize; done += PIECE) {
      const size = Math.min(PIECE, keySize - done);
      const bytes = await piece(items, input, keysAt + position * keySize + done, size);
      hash.of(viewOf(bytes), 0, size, done > 0);
    }
    // 53 bits.
    return (hash.a >>> 0) * 0x20_0000 + (hash.b >>> 11);
  }

  async #sameKey(a: Items, position: number, b: Items, other: number): Promise<boolean> {
    const { keySize } = a;
    const left = await this.#key(a, position);
    const right = await this.#key(b, other);
    if (left !== undefined && right !== undefined) return equalRange(left, 0, right, 0, keySize);
    return equalBytes(a.input, a.keysAt + position * keySize, b.input, b.keysAt + other * keySize, keySize);
  }

  async #sameValue(position: number, other: number): Promise<boolean> {
    const { a, b } = this;
    const [aAt, bAt] = [a.valuesAt + position * a.valueSize, b.valuesAt + other * b.valueSize];
    if (a.valueSize !== b.valueSize) return false;
    for (const { at, size } of partsThatCount(a.valueSize, this.rules)) {
      if (!(await equalBytes(a.input, aAt + at, b.input, bAt + at, size))) return false;
    }
    return true;
  }
}

async function piece(items: Items, input: Input, at: number, size: number): Promise<Uint8Array> {
  const bytes = await new Cursor(input, at, at + size, size).take(size);
  if (bytes.length < size) throw shorter(items);
  return bytes;
}

// ---------------------------------------------------------------------------------------------------
// Sequences

/**
 * Values without keys, whose order counts. If both sides have the same number, they are compared position by position.
 * Otherwise the values that both begin or end with are the same, and those between were removed or added.
 */
class Sequences {
  constructor(
    readonly a: Items,
    readonly b: Items,
    readonly found: ItemDifferences,
  ) {}

  async compare(): Promise<void> {
    const { a, b, found } = this;
    const most = Math.min(a.count, b.count);
    if (most === 0 || a.valueSize !== b.valueSize) return this.#between(0, a.count, b.count);
    if (a.count === b.count) {
      return this.#differing(0, 0, most, (position) => {
        found.changed.add(position, position);
        return true;
      });
    }
    let front = most;
    await this.#differing(0, 0, most, (position) => {
      front = position;
      return false;
    });
    // Aligned at the ends, starting after the common beginning of both.
    const aligned = most - front;
    let back = aligned;
    await this.#differing(a.count - aligned, b.count - aligned, aligned, (position) => {
      back = aligned - 1 - position;
      return true;
    });
    this.#between(front, a.count - back, b.count - back);
  }

  /** Values from `from` up to the common end were removed or added. */
  #between(from: number, aEnd: number, bEnd: number): void {
    for (let i = from; i < aEnd; i++) this.found.removed.add(i, 0);
    for (let i = from; i < bEnd; i++) this.found.added.add(i, 0);
  }

  /**
   * Calls `visit` for each of `count` positions whose values differ, until it returns false. On each side the first
   * position is its `from`; values may be larger than a window.
   */
  async #differing(aFrom: number, bFrom: number, count: number, visit: (place: number) => boolean): Promise<void> {
    const size = this.a.valueSize;
    const bytes = count * size;
    const cursor = ({ input, valuesAt }: Items, from: number) =>
      new Cursor(input, valuesAt + from * size, valuesAt + (from + count) * size);
    const [a, b] = [cursor(this.a, aFrom), cursor(this.b, bFrom)];
    let told = -1;
    for (let at = 0; at < bytes; ) {
      const ready = Math.min(await a.fill(), await b.fill());
      if (ready === 0) throw shorter(a.ready === 0 ? this.a : this.b);
      for (const end = at + ready; at < end; ) {
        const place = Math.floor(at / size);
        const part = Math.min(end, (place + 1) * size) - at;
        if (place !== told && !equalRange(a.view, a.at, b.view, b.at, part)) {
          told = place;
          if (!visit(place)) return;
        }
        at += part;
        a.at += part;
        b.at += part;
      }
      await pause();
    }
  }
}
