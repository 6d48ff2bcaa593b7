/** Hashes of keys, and sets of keys. */

/**
 * HalfSipHash-1-3 (Aumasson and Bernstein) with a random key, so that no author of an image can make its keys collide.
 * It uses 32-bit words, which are fast in JavaScript.
 */
export class KeyHash {
  readonly #one = randomWord();
  readonly #two = randomWord();
  /** The last hash: {@link of} returns this word, and the next two make it longer. */
  a = 0;
  b = 0;
  c = 0;

  /**
   * The hash of `size` bytes at `at`, an unsigned number of 32 bits.
   * @param after whether the bytes follow those of the last call, and the hash is that of all
   */
  of(view: DataView, at: number, size: number, after = false): number {
    const words = size >>> 2;
    let v0 = after ? this.#one ^ this.a : this.#one;
    let v1 = after ? this.#two ^ this.b : this.#two;
    let v2 = v0 ^ 0x6c796765;
    let v3 = v1 ^ 0x74656462;
    // The words, one more for the remaining bytes and the length, then three rounds.
    for (let i = 0; i < words + 4; i++) {
      let input = 0;
      if (i < words) input = view.getInt32(at + 4 * i, true);
      else if (i === words) {
        input = size << 24;
        for (let byte = 4 * words; byte < size; byte++) input |= view.getUint8(at + byte) << (8 * (byte & 3));
      } else if (i === words + 1) v2 ^= 0xff;
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
    return this.a >>> 0;
  }
}

function randomWord(): number {
  return (Math.random() * 0x1_0000_0000) | 0;
}

const QUICK_START = 0x3c6ef372;

function mixed(hash: number, word: number): number {
  const next = Math.imul(hash ^ word, 0x85ebca6b);
  return next ^ (next >>> 13);
}

/** For hashes that cost time with every item, and where keys that collide cost little more: twice as fast. */
export class QuickHash {
  #keys: Uint8Array | undefined;
  /** The keys as words, if they are aligned. */
  #words: Int32Array | undefined;

  /** The hash of `size` bytes at `at`, a multiple of `size`: an unsigned number of 32 bits. */
  of(keys: Uint8Array, at: number, size: number): number {
    if (keys !== this.#keys) {
      this.#keys = keys;
      this.#words =
        keys.byteOffset % 4 === 0 ? new Int32Array(keys.buffer, keys.byteOffset, keys.length >>> 2) : undefined;
    }
    const words = this.#words;
    let hash = QUICK_START;
    if (words !== undefined && (size & 3) === 0) {
      for (let i = at >>> 2; i < (at + size) >>> 2; i++) hash = mixed(hash, words[i] as number);
    } else for (let i = at; i < at + size; i++) hash = mixed(hash, keys[i] as number);
    const next = Math.imul(hash, 0xc2b2ae35);
    return (next ^ (next >>> 16)) >>> 0;
  }
}

/** Clears the bits after the prefix of a trie's key: keys that differ only there are one key to the kernel. */
export function blankBeyondPrefix(view: DataView, at: number, size: number): void {
  if (size < 4) return;
  let left = view.getUint32(at, true);
  for (let i = at + 4; i < at + size; i++, left -= 8) {
    if (left >= 8) continue;
    view.setUint8(i, left <= 0 ? 0 : view.getUint8(i) & (0xff << (8 - left)));
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
