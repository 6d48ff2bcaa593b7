/** Hashes of keys that the author of an image cannot predict, so that no image can make its keys collide; sets of keys. */

import { viewOf } from './bytes.js';

/** 32 random bits, as a number with a sign. */
export function randomWord(): number {
  return (Math.random() * 0x1_0000_0000) | 0;
}

/** HalfSipHash-1-3 (Aumasson and Bernstein) with a random key. It uses 32-bit words, which are fast in JavaScript. */
export class KeyHash {
  readonly #one = randomWord();
  readonly #two = randomWord();

  /** The hash of `size` bytes at `at`, an unsigned number of 32 bits. */
  of(view: DataView, at: number, size: number): number {
    const words = size >>> 2;
    let a = this.#one;
    let b = this.#two;
    let c = a ^ 0x6c796765;
    let d = b ^ 0x74656462;
    // The words, one more for the remaining bytes and the length, then three rounds.
    for (let i = 0; i < words + 4; i++) {
      let input = 0;
      if (i < words) input = view.getInt32(at + 4 * i, true);
      else if (i === words) {
        input = size << 24;
        for (let byte = 4 * words; byte < size; byte++) input |= view.getUint8(at + byte) << (8 * (byte & 3));
      } else if (i === words + 1) c ^= 0xff;
      d ^= input;
      a = (a + b) | 0;
      b = ((b << 5) | (b >>> 27)) ^ a;
      a = (a << 16) | (a >>> 16);
      c = (c + d) | 0;
      d = ((d << 8) | (d >>> 24)) ^ c;
      a = (a + d) | 0;
      d = ((d << 7) | (d >>> 25)) ^ a;
      c = (c + b) | 0;
      b = ((b << 13) | (b >>> 19)) ^ c;
      c = (c << 16) | (c >>> 16);
      a ^= input;
    }
    return (b ^ d) >>> 0;
  }
}

/**
 * Bytes one after another as words of 4 bytes, as far as they are aligned and whole; else as bytes. Of keys that are looked
 * for in a table: for bytes that have changed, make new ones.
 */
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

  /** Whether `size` bytes at `at` are the same as those of `other`. */
  same(other: Words, at: number, size: number): boolean {
    for (let done = 0; done < size; done += 4) {
      if (this.at(at + done, size - done) !== other.at(at + done, size - done)) return false;
    }
    return true;
  }
}

/** As {@link KeyHash}, of which three words are kept and not one; it reads words that are aligned faster. */
export class WideKeyHash {
  readonly #one = randomWord();
  readonly #two = randomWord();
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

/** Keys that came before, by their hashes: a Bloom filter whose three bits of a key are in one word. */
export class KeyFilter {
  readonly #words: Int32Array;
  readonly #shift: number;

  /**
   * @param words 32 bits each: with one per key, about one key in a thousand is mistaken for another
   * @param most words, as a power of two
   */
  constructor(words: number, most: number) {
    const bits = Math.min(most, Math.max(8, Math.ceil(Math.log2(Math.max(1, words)))));
    this.#words = new Int32Array(1 << bits);
    this.#shift = 32 - bits;
  }

  /** Adds a key; returns whether it came before. May wrongly say yes, never no. */
  add(hash: number): boolean {
    const mine = bitsOf(hash);
    const at = hash >>> this.#shift;
    const word = this.#words[at] as number;
    this.#words[at] = word | mine;
    return (word & mine) === mine;
  }

  /** Whether a key came before; as {@link add}, without adding it. */
  has(hash: number): boolean {
    const mine = bitsOf(hash);
    return ((this.#words[hash >>> this.#shift] as number) & mine) === mine;
  }
}

function bitsOf(hash: number): number {
  const more = Math.imul(hash, 0x2c1b3c6d);
  return (1 << (more >>> 27)) | (1 << ((more >>> 22) & 31)) | (1 << ((more >>> 17) & 31));
}
