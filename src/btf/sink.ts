/** JSON text written straight into a buffer: for streams of millions of values. */

/** A destination for text; `Output` in src/io is one. */
export interface Sink {
  /** The buffer, as bytes and as a view; both may change after {@link room} or {@link text}. */
  readonly bytes: Uint8Array;
  readonly view: DataView;
  /** Position in the buffer of the next byte. */
  at: number;
  /** Makes sure that `size` bytes can be written at {@link at}. */
  room(size: number): void;
  /** Writes text as UTF-8. */
  text(text: string): void;
}

/** Writes one byte. */
export function putByte(out: Sink, byte: number): void {
  out.room(1);
  out.bytes[out.at++] = byte;
}

/** A short text that is written often, as 32-bit words; the last word may extend past the text's end. */
export interface Phrase {
  readonly words: Uint32Array;
  readonly length: number;
}

/** Prepares a text, as UTF-8, to be written many times. */
export function phrase(text: string): Phrase {
  const bytes = Buffer.from(text);
  const view = new DataView(new ArrayBuffer(Math.ceil(bytes.length / 4) * 4));
  for (const [i, byte] of bytes.entries()) view.setUint8(i, byte);
  const words = Uint32Array.from({ length: view.byteLength / 4 }, (_, i) => view.getUint32(i * 4, true));
  return { words, length: bytes.length };
}

/** Writes a prepared text. Overwrites up to three free bytes after it. */
export function putPhrase(out: Sink, { words, length }: Phrase): void {
  out.room(length + 4);
  const { view, at } = out;
  for (let i = 0; i < words.length; i++) view.setUint32(at + i * 4, words[i] as number, true);
  out.at = at + length;
}

/** Two decimal digits of each number below 100, first digit in the low half. */
const PAIRS = Uint16Array.from({ length: 100 }, (_, i) => 0x3030 + Math.floor(i / 10) + ((i % 10) << 8));

/** Digits of an integer below 10^8. */
function digitsOf(value: number): number {
  if (value < 1e4) return value < 100 ? (value < 10 ? 1 : 2) : value < 1000 ? 3 : 4;
  return value < 1e6 ? (value < 1e5 ? 5 : 6) : value < 1e7 ? 7 : 8;
}

/** Writes the last `count` digits of an integer below 10^8 at `at`, padded with leading zeros. */
function putLast(view: DataView, at: number, value: number, count: number): void {
  let rest = value | 0;
  let end = at + count;
  for (; end >= at + 2; end -= 2) {
    const high = (rest / 100) | 0;
    view.setUint16(end - 2, PAIRS[rest - high * 100] as number, true);
    rest = high;
  }
  if (end > at) view.setUint8(at, 0x30 + rest);
}

/** Writes an integer from 0 to 2^53 - 1; the caller has made room. Returns the position after it. */
function putDigits(view: DataView, at: number, value: number): number {
  if (value < 1e8) {
    const count = digitsOf(value);
    putLast(view, at, value, count);
    return at + count;
  }
  // Below 2^53 / 10^8: both halves are 32-bit arithmetic.
  const high = Math.floor(value / 1e8);
  const count = digitsOf(high);
  putLast(view, at, high, count);
  putLast(view, at + count, value - high * 1e8, 8);
  return at + count + 8;
}

/** Bytes of the longest integer below 2^53, with its sign. */
const LONGEST_INTEGER = 17;
/** Bytes of the longest 64-bit integer in quotes. */
const LONGEST_64 = 22;

/** Writes an integer between -(2^53 - 1) and 2^53 - 1. */
export function putInteger(out: Sink, value: number): void {
  out.room(LONGEST_INTEGER);
  const { view, at } = out;
  if (value < 0) {
    view.setUint8(at, 0x2d);
    out.at = putDigits(view, at + 1, -value);
  } else {
    out.at = putDigits(view, at, value);
  }
}

/** Writes an unsigned 64-bit integer from 2^53 on, given as its halves, as text in quotes. */
export function putQuoted64(out: Sink, high: number, low: number): void {
  // Divided by 10^6, because the remainder times 2^32 is still exact.
  const top = Math.floor(high / 1e6);
  const rest = (high - top * 1e6) * 0x1_0000_0000 + low;
  const middle = Math.floor(rest / 1e6);
  out.room(LONGEST_64);
  const { view } = out;
  view.setUint8(out.at, 0x22);
  const at = putDigits(view, out.at + 1, top * 0x1_0000_0000 + middle);
  putLast(view, at, rest - middle * 1e6, 6);
  view.setUint8(at + 6, 0x22);
  out.at = at + 7;
}
