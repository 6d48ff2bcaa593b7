/** A hash of keys that the author of an image cannot predict, so that no image can make its keys collide. */

const word = () => (Math.random() * 0x1_0000_0000) | 0;

/** HalfSipHash-1-3 (Aumasson and Bernstein) with a random key. It uses 32-bit words, which are fast in JavaScript. */
export class KeyHash {
  readonly #one = word();
  readonly #two = word();

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
