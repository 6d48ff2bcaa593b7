/** Hashes of keys that the author of an image cannot predict, so that no image can make its keys collide; sets of keys. */

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
