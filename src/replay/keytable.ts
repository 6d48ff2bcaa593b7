/**
 * Remembers which keys a map has and which of them the source has, in bounded memory: instead of the keys it keeps
 * 96 bits of a hash that nobody who chooses keys can predict.
 */
import { copyBytes, viewOf } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import { blankBeyondPrefix, KeyHash } from '../keyhash.js';
import type { MapType } from '../maptype.js';

/** Keys that one table holds, in about 47 MiB. If there are more, they are handled in several parts, one by one. */
export const MOST_KEYS = 2 ** 21;

const WORDS = 4;
/** Slots for each key that is expected. */
const SPARE = 1.4;
/** Keys that are looked for at a time. */
const WINDOW = 256;
/** No place in the table. */
export const ELSEWHERE = -1;
/** Bits of a slot's last word. */
const THERE = 1;
const KEPT = 2;
const DONE = 4;
const STATE = THERE | KEPT | DONE;

/** Which keys a table is for. */
export interface KeyTableOptions {
  readonly keySize: number;
  readonly type: Pick<MapType, 'key'>;
  /** About how many keys; there is room for some more. */
  readonly most: number;
  /** The table holds only the keys of one of so many parts, a power of two. */
  readonly parts?: number;
  readonly part?: number;
  /** How many keys there probably are: memory that is never used costs nothing. */
  readonly few?: number;
}

/** Keys of a map and of its source. */
export class KeyTable {
  readonly #slots: Int32Array;
  /** Slots of the first `#few` keys; further keys are in those behind them. */
  readonly #first: number;
  readonly #few: number;
  readonly #most: number;
  readonly #hash: KeyHash;
  readonly #valueHash = new KeyHash();
  readonly #prefix: DataView | undefined;
  /** Hashes of some keys that follow each other, and whose they are. */
  readonly #window = new Int32Array(WINDOW * 3);
  #from = 0;
  #view: DataView | undefined;
  /** Place of the last key in the window. */
  #at = 0;
  #keys = 0;
  /** Not used: it keeps V8 from leaving out the reads that make it. */
  touched = 0;

  readonly keySize: number;
  readonly parts: number;
  readonly part: number;

  /** @param hash the same for all parts */
  constructor(hash: KeyHash, { keySize, type, most, parts = 1, part = 0, few = most }: KeyTableOptions) {
    this.keySize = keySize;
    this.parts = parts;
    this.part = part;
    const near = Math.min(few, most);
    const slots = (keys: number) => Math.ceil(SPARE * Math.max(16, keys));
    this.#first = slots(near);
    const more = near < most ? slots(most - near) : 0;
    this.#few = more > 0 ? Math.floor(near) : Number.POSITIVE_INFINITY;
    this.#most = more > 0 ? this.#few + Math.floor(0.9 * more) : Math.floor(0.9 * this.#first);
    this.#slots = new Int32Array((this.#first + more) * WORDS);
    this.#hash = hash;
    this.#prefix = type.key === 'prefix' ? viewOf(Buffer.alloc(keySize)) : undefined;
  }

  /** Keys that it holds. */
  get size(): number {
    return this.#keys;
  }

  /**
   * Where key number `index` is or would be; {@link ELSEWHERE} for a key of another part.
   * @param keys one after the other; if they have changed, another view
   */
  find(keys: DataView, index: number): number {
    if (keys !== this.#view || index < this.#from || index >= this.#from + WINDOW) this.#move(keys, index);
    const slots = this.#slots;
    const at = 3 * (index - this.#from);
    this.#at = at;
    const [a, b, c] = [this.#window[at], this.#window[at + 1], this.#window[at + 2] as number];
    if (this.parts > 1 && Math.floor((c >>> 0) / (2 ** 32 / this.parts)) !== this.part) return ELSEWHERE;
    let [from, end] = [0, this.#first];
    for (;;) {
      let slot = from + place(c, end - from);
      for (; ((slots[WORDS * slot + 3] as number) & STATE) !== 0; slot = slot + 1 === end ? from : slot + 1) {
        if (slots[WORDS * slot] === a && slots[WORDS * slot + 1] === b) return WORDS * slot;
      }
      if (from > 0 || this.#keys < this.#few) return WORDS * slot;
      [from, end] = [end, slots.length / WORDS];
    }
  }

  /** Hashes the keys around number `index`, and has their slots read from memory: together, which is much faster. */
  #move(keys: DataView, index: number): void {
    const { keySize } = this;
    const [hash, window, slots, prefix] = [this.#hash, this.#window, this.#slots, this.#prefix];
    const from = index - (index % WINDOW);
    const count = Math.min(WINDOW, Math.floor(keys.byteLength / keySize) - from);
    for (let i = 0; i < count; i++) {
      const at = (from + i) * keySize;
      if (prefix === undefined) hash.of(keys, at, keySize);
      else {
        copyBytes(keys, at, prefix, 0, keySize);
        blankBeyondPrefix(prefix, 0, keySize);
        hash.of(prefix, 0, keySize);
      }
      window[3 * i] = hash.a;
      window[3 * i + 1] = hash.b;
      window[3 * i + 2] = hash.c;
    }
    let touched = 0;
    for (let i = 0; i < count; i++) touched ^= slots[WORDS * place(window[3 * i + 2] as number, this.#first)] as number;
    this.touched = touched;
    this.#view = keys;
    this.#from = from;
  }

  #set(slot: number, state: number): void {
    const slots = this.#slots;
    const before = slots[slot + 3] as number;
    if ((before & STATE) !== 0) {
      slots[slot + 3] = before | state;
      return;
    }
    if (this.#keys >= this.#most) throw new BpfimgError('conflict', 'the map changes while it is being read');
    // The last key that `find` was called for is this one.
    slots[slot] = this.#window[this.#at] as number;
    slots[slot + 1] = this.#window[this.#at + 1] as number;
    slots[slot + 3] = state;
    this.#keys++;
  }

  /** The map has a key, with this value: 61 bits of its hash. */
  addThere(slot: number, values: DataView, at: number, size: number): void {
    this.#set(slot, THERE);
    const [hash, slots] = [this.#valueHash, this.#slots];
    hash.of(values, at, size);
    slots[slot + 2] = hash.a;
    slots[slot + 3] = (hash.b & ~STATE) | ((slots[slot + 3] as number) & STATE);
  }

  /** Whether the map had the key. */
  isThere(slot: number): boolean {
    return ((this.#slots[slot + 3] as number) & THERE) !== 0;
  }

  /** Whether it had the key with this value. */
  hadValue(slot: number, values: DataView, at: number, size: number): boolean {
    const [hash, slots] = [this.#valueHash, this.#slots];
    hash.of(values, at, size);
    return slots[slot + 2] === hash.a && (((slots[slot + 3] as number) ^ hash.b) & ~STATE) === 0;
  }

  /** Whether something was done with the key. */
  isDone(slot: number): boolean {
    return ((this.#slots[slot + 3] as number) & DONE) !== 0;
  }

  /** Something is done with the key. Right after {@link find}. */
  setDone(slot: number): void {
    this.#set(slot, DONE);
  }

  /** The source has the key, so that it is not to be deleted. Right after {@link find}. */
  setKept(slot: number): void {
    this.#set(slot, KEPT);
  }

  isKept(slot: number): boolean {
    return ((this.#slots[slot + 3] as number) & KEPT) !== 0;
  }
}

/** One of `count` places, from a word of a hash. */
function place(word: number, count: number): number {
  return Math.floor(((Math.imul(word, 0x9e3779b1) >>> 0) * count) / 2 ** 32);
}
