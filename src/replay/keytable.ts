/**
 * Which keys a map has and which of them were there in the source, in memory that is bounded: not the keys, but 96 bits
 * of a hash that nobody who chooses keys can foresee.
 */
import { viewOf } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import type { MapType } from '../maptype.js';

const random = () => (Math.random() * 0x1_0000_0000) | 0;

/** Bytes one after another as words of 4 bytes, as far as they are aligned and whole; else as bytes. */
export class Words {
  readonly #words: Int32Array | undefined;
  readonly #bytes: DataView;

  /** @param size bytes of each key or value in `bytes` */
  constructor(bytes: Uint8Array, size: number) {
    this.#bytes = viewOf(bytes);
    const aligned = bytes.byteOffset % 4 === 0 && size % 4 === 0;
    this.#words = aligned ? new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length >>> 2) : undefined;
  }

  /** The word at byte `at`; at the end, of fewer bytes. */
  at(at: number, left: number): number {
    if (this.#words !== undefined) return this.#words[at >>> 2] as number;
    if (left >= 4) return this.#bytes.getInt32(at, true);
    let word = 0;
    for (let byte = 0; byte < left; byte++) word |= this.#bytes.getUint8(at + byte) << (8 * byte);
    return word;
  }
}

/** HalfSipHash-1-3 (Aumasson and Bernstein) under a key of its own; of its state, three words are kept and not one. */
export class KeyHash {
  readonly #one = random();
  readonly #two = random();
  a = 0;
  b = 0;
  c = 0;

  /** Sets {@link a}, {@link b} and {@link c} to the hash of `size` bytes at `at`. */
  of(bytes: Words, at: number, size: number): void {
    let v0 = this.#one;
    let v1 = this.#two;
    let v2 = v0 ^ 0x6c796765;
    let v3 = v1 ^ 0x74656462;
    // Sizes are all the same: nothing tells where one ends. Three rounds more in the end.
    for (let done = 0; done < size + 12; done += 4) {
      const input = done < size ? bytes.at(at + done, size - done) : 0;
      if (done >= size && done < size + 4) v2 ^= 0xff;
      v3 ^= input;
      v0 = (v0 + v1) | 0;
      v1 = ((v1 << 5) | (v1 >>> 27)) ^ v0;
      v0 = (v0 << 16) | (v0 >>> 16);
      v2 = (v2 + v3) | 0;
      v3 = ((v3 << 8) | (v3 >>> 24)) ^ v2;
      v0 = (v0 + v3) | 0;
      v3 = ((v3 << 7) | (v3 >>> 25)) ^ v0;
      v2 = (v2 + v1) | 0;
      v1 = ((v1 << 13) | (v1 >>> 19)) ^ v2;
      v2 = (v2 << 16) | (v2 >>> 16);
      v0 ^= input;
    }
    this.a = v1 ^ v3;
    this.b = v0 ^ v2;
    this.c = v1;
  }
}

/** Keys that one table holds: 64 MiB with room to find them fast. Of more, some parts are looked at one after the other. */
export const MOST_KEYS = 2 ** 21;

const WORDS = 4;
/** No place in the table. */
export const ELSEWHERE = -1;
/** Bits of a slot's last word. */
const THERE = 1;
const KEPT = 2;
const DONE = 4;
const STATE = THERE | KEPT | DONE;

/** Keys of a map and of its source. */
export class KeyTable {
  readonly #slots: Int32Array;
  readonly #mask: number;
  readonly #hash: KeyHash;
  readonly #prefix: Buffer | undefined;
  /** Of the value that is being looked at. */
  #value0 = 0;
  #value1 = 0;
  readonly #seed0 = random();
  readonly #seed1 = random();
  #keys = 0;

  /**
   * @param hash the same for all parts
   * @param most keys, about: there is room for some more
   * @param parts the table holds only the keys of one of so many parts, a power of two
   */
  constructor(
    hash: KeyHash,
    readonly keySize: number,
    type: MapType,
    most: number,
    readonly parts = 1,
    readonly part = 0,
  ) {
    const slots = 2 ** Math.ceil(Math.log2(2 * Math.max(16, most)));
    this.#slots = new Int32Array(slots * WORDS);
    this.#mask = slots - 1;
    this.#hash = hash;
    this.#prefix = type.key === 'prefix' ? Buffer.alloc(keySize) : undefined;
  }

  /** Keys that it holds. */
  get size(): number {
    return this.#keys;
  }

  /** Where key number `index` is or would be; {@link ELSEWHERE} for a key of another part. */
  find(keys: Uint8Array, words: Words, index: number): number {
    const { keySize } = this;
    if (this.#prefix === undefined) this.#hash.of(words, index * keySize, keySize);
    else this.#hash.of(new Words(masked(keys, index * keySize, this.#prefix), keySize), 0, keySize);
    const { a, b, c } = this.#hash;
    if (this.parts > 1 && Math.floor((c >>> 0) / (2 ** 32 / this.parts)) !== this.part) return ELSEWHERE;
    const slots = this.#slots;
    for (let at = c & this.#mask; ; at = (at + 1) & this.#mask) {
      const slot = at * WORDS;
      if (((slots[slot + 3] as number) & STATE) === 0) return slot;
      if (slots[slot] === a && slots[slot + 1] === b) return slot;
    }
  }

  #set(slot: number, state: number): void {
    const slots = this.#slots;
    const before = slots[slot + 3] as number;
    if ((before & STATE) !== 0) {
      slots[slot + 3] = before | state;
      return;
    }
    if (this.#keys > 0.9 * this.#mask) throw new BpfimgError('conflict', 'the map changes while it is being read');
    // The hash is still that of this key: `find` was called for it.
    slots[slot] = this.#hash.a;
    slots[slot + 1] = this.#hash.b;
    slots[slot + 3] = state;
    this.#keys++;
  }

  /** 61 bits, of seeds that nobody knows. */
  #hashValue(values: Words, at: number, size: number): void {
    let a = this.#seed0;
    let b = this.#seed1;
    for (let done = 0; done < size; done += 4) {
      const word = values.at(at + done, size - done);
      a = Math.imul(a ^ word, 0x85ebca6b);
      a ^= a >>> 15;
      b = Math.imul(((b << 7) | (b >>> 25)) + word, 0xc2b2ae35);
    }
    this.#value0 = a ^ (b >>> 13);
    this.#value1 = b & ~STATE;
  }

  /** The map has a key, with this value. */
  addThere(slot: number, values: Words, at: number, size: number): void {
    this.#set(slot, THERE);
    this.#hashValue(values, at, size);
    this.#slots[slot + 2] = this.#value0;
    this.#slots[slot + 3] = this.#value1 | ((this.#slots[slot + 3] as number) & STATE);
  }

  /** Whether the map had the key. */
  isThere(slot: number): boolean {
    return ((this.#slots[slot + 3] as number) & THERE) !== 0;
  }

  /** Whether that was with this value. */
  hadValue(slot: number, values: Words, at: number, size: number): boolean {
    this.#hashValue(values, at, size);
    return this.#slots[slot + 2] === this.#value0 && ((this.#slots[slot + 3] as number) & ~STATE) === this.#value1;
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

/** A key of a trie, with zero for the bits behind its prefix, which make no difference. */
function masked(keys: Uint8Array, at: number, into: Buffer): Buffer {
  into.set(keys.subarray(at, at + into.length));
  let left = into.readUInt32LE();
  for (let i = 4; i < into.length; i++, left -= 8) {
    if (left < 8) into[i] = left <= 0 ? 0 : (into[i] as number) & (0xff << (8 - left));
  }
  return into;
}
