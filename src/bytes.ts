/**
 * Text forms of bytes: hex and base64, written into and read from byte buffers.
 *
 * bpfimg never holds a map as one string, so these functions work on windows: from one buffer into
 * another, leaving what does not fit to the next call.
 */
import { isUtf8 } from 'node:buffer';
import { oneLine } from './errors.js';

/** Two hex digits of each byte, first digit in the low half. */
const hexOfByte = new Uint16Array(256);
/** 0..15, or 0x80 and more for a byte that is not a hex digit, so that an OR over many bytes detects one. */
const byteOfHex = new Uint8Array(256).fill(0x80);
for (let i = 0; i < 256; i++) {
  const text = i.toString(16).padStart(2, '0');
  hexOfByte[i] = text.charCodeAt(0) | (text.charCodeAt(1) << 8);
}
for (let i = 0; i < 16; i++) {
  byteOfHex[i.toString(16).charCodeAt(0)] = i;
  byteOfHex[i.toString(16).toUpperCase().charCodeAt(0)] = i;
}

/**
 * Tables over 16 bits make long loops two to five times faster, but take a millisecond to fill. They are
 * made only after this many bytes have been converted.
 */
const WORTH_TABLES = 128 * 1024;
let hexDone = 0;
let hexOfPair: Uint32Array | undefined;
let pairOfHex: Uint16Array | undefined;

/** Counts `bytes` more converted bytes, and makes the tables when that is worthwhile. */
function countHex(bytes: number): void {
  hexDone += bytes;
  if (hexDone > WORTH_TABLES) makeHexTables();
}

function makeHexTables(): void {
  hexOfPair = new Uint32Array(65536);
  pairOfHex = new Uint16Array(65536);
  for (let i = 0; i < 65536; i++) {
    hexOfPair[i] = ((hexOfByte[i & 255] as number) | ((hexOfByte[i >> 8] as number) << 16)) >>> 0;
    const high = byteOfHex[i & 255] as number;
    const low = byteOfHex[i >> 8] as number;
    pairOfHex[i] = (high | low) >= 0x80 ? 0x100 : (high << 4) | low;
  }
}

/** Writes `from[start..end)` as lower-case hex into `to` at `at`; returns the position after it. */
export function putHex(from: DataView, start: number, end: number, to: DataView, at: number): number {
  let i = start;
  if (hexOfPair !== undefined) {
    for (; i + 2 <= end; i += 2) {
      to.setUint32(at, hexOfPair[from.getUint16(i, true)] as number, true);
      at += 4;
    }
  } else countHex(end - start);
  for (; i < end; i++) {
    to.setUint16(at, hexOfByte[from.getUint8(i)] as number, true);
    at += 2;
  }
  return at;
}

/**
 * Reads hex digits `from[start..end)` (an even number of them) into `to` at `at`.
 * @returns whether all were hex digits; if not, the contents of `to` are undefined.
 */
export function takeHex(from: DataView, start: number, end: number, to: Uint8Array, at: number): boolean {
  let seen = 0;
  if (pairOfHex !== undefined) {
    for (let i = start; i < end; i += 2) {
      const byte = pairOfHex[from.getUint16(i, true)] as number;
      seen |= byte;
      to[at++] = byte;
    }
    return seen < 0x100;
  }
  countHex(end - start);
  for (let i = start; i < end; i += 2) {
    const high = byteOfHex[from.getUint8(i)] as number;
    const low = byteOfHex[from.getUint8(i + 1)] as number;
    seen |= high | low;
    to[at++] = (high << 4) | low;
  }
  return seen < 0x80;
}

/** A view over the same bytes. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** From this many bytes on, a call is faster than a loop. */
const LONG = 512;
/** Copies bytes: short ones by four, which is faster than a call. */
export function copyBytes(source: DataView, at: number, target: DataView, to: number, count: number): void {
  if (count > LONG) {
    const bytes = new Uint8Array(source.buffer, source.byteOffset + at, count);
    new Uint8Array(target.buffer, target.byteOffset + to, count).set(bytes);
    return;
  }
  let i = 0;
  for (; i + 4 <= count; i += 4) target.setInt32(to + i, source.getInt32(at + i));
  for (; i < count; i++) target.setUint8(to + i, source.getUint8(at + i));
}

/** Makes bytes zero. */
export function clearBytes(target: DataView, to: number, count: number): void {
  if (count > LONG) {
    new Uint8Array(target.buffer, target.byteOffset + to, count).fill(0);
    return;
  }
  let i = 0;
  for (; i + 4 <= count; i += 4) target.setInt32(to + i, 0);
  for (; i < count; i++) target.setUint8(to + i, 0);
}

/** Whether `size` bytes are equal. */
export function equalRange(a: DataView, aAt: number, b: DataView, bAt: number, size: number): boolean {
  let i = 0;
  for (; i + 4 <= size; i += 4) if (a.getInt32(aAt + i, true) !== b.getInt32(bAt + i, true)) return false;
  for (; i < size; i++) if (a.getUint8(aAt + i) !== b.getUint8(bAt + i)) return false;
  return true;
}

/** Bytes as lower-case hex text. */
export function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('hex');
}

/** The text before the first NUL, one character per byte. */
export function untilNul(bytes: Buffer): string {
  const end = bytes.indexOf(0);
  return bytes.toString('latin1', 0, end < 0 ? bytes.length : end);
}

/** Hex text as bytes; undefined if it is not pairs of hex digits. */
export function unhex(text: string): Uint8Array | undefined {
  return text.length % 2 === 0 && /^[0-9a-fA-F]*$/.test(text) ? Buffer.from(text, 'hex') : undefined;
}

const BASE64 = Buffer.from('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/');
/** Two base64 digits for each 12 bits, first digit in the low half: one look-up writes two characters. */
const base64OfPair = new Uint16Array(4096);
/** 0..63, or a higher value for a character that is not a base64 digit. */
const decodeBase64Table = new Uint8Array(256).fill(0xff);
for (let i = 0; i < 4096; i++) {
  base64OfPair[i] = (BASE64[i >> 6] as number) | ((BASE64[i & 63] as number) << 8);
}
for (let i = 0; i < 64; i++) decodeBase64Table[BASE64[i] as number] = i;

const NOT_BASE64 = 0x8000;
let pairOfBase64: Uint16Array | undefined;
/** 12 bits for each two base64 digits, {@link NOT_BASE64} for any other two characters. */
function base64Pairs(): Uint16Array {
  if (pairOfBase64 === undefined) {
    pairOfBase64 = new Uint16Array(65536).fill(NOT_BASE64);
    for (let i = 0; i < 4096; i++) pairOfBase64[base64OfPair[i] as number] = i;
  }
  return pairOfBase64;
}

/** Bytes of input in one line of MIME base64 (76 digits), the form Python's `encodebytes` and crit use. */
export const BASE64_LINE = 57;
/** Bytes of output for one such line when its line end is written as the JSON escape `\n`. */
export const BASE64_LINE_TEXT = 78;

/**
 * Writes whole lines of base64, each followed by the two characters `\n`, as crit's JSON has them.
 * @param lines number of lines of {@link BASE64_LINE} bytes
 * @returns the position after them
 */
export function putBase64Lines(from: DataView, start: number, lines: number, to: DataView, at: number): number {
  const pairs = base64OfPair;
  let i = start;
  for (let line = 0; line < lines; line++) {
    // Six bytes per turn, with as few loads and stores as possible; a line is nine turns and three bytes.
    for (const end = i + BASE64_LINE - 3; i < end; i += 6) {
      const high = from.getInt32(i);
      const low = from.getUint16(i + 4);
      const second = (pairs[(high >>> 8) & 0xfff] as number) << 16;
      to.setInt32(at, (pairs[high >>> 20] as number) | second, true);
      const fourth = (pairs[low & 0xfff] as number) << 16;
      to.setInt32(at + 4, (pairs[((high & 0xff) << 4) | (low >> 12)] as number) | fourth, true);
      at += 8;
    }
    const bits = (from.getUint16(i) << 8) | from.getUint8(i + 2);
    to.setInt32(at, (pairs[bits >> 12] as number) | ((pairs[bits & 0xfff] as number) << 16), true);
    to.setUint16(at + 4, 0x6e5c, true); // backslash, n
    i += 3;
    at += 6;
  }
  return at;
}

/** Bytes of text handled in one call of an inner loop. */
const SHORT_CALL = 8 * 1024;

/** Bytes the last {@link takeBase64Runs} wrote: a second result without an object for it. */
let runsWritten = 0;

/**
 * Decodes groups of four digits, and line ends between them, until anything else comes: the inner
 * loop of {@link Base64Decoder}. It uses only plain numbers, so that it compiles well.
 * @returns the position where it stopped
 */
function takeBase64Runs(from: DataView, start: number, end: number, to: DataView, begin: number): number {
  const pairs = base64Pairs();
  let i = start;
  let at = begin;
  for (;;) {
    // Unrolled once, which also keeps V8 from inlining it where it would run slower.
    while (i + 8 <= end) {
      const left = from.getInt32(i, true);
      const right = from.getInt32(i + 4, true);
      const a = pairs[left & 0xffff] as number;
      const b = pairs[left >>> 16] as number;
      const c = pairs[right & 0xffff] as number;
      const d = pairs[right >>> 16] as number;
      if ((a | b | c | d) >= NOT_BASE64) break;
      to.setInt32(at, (a << 20) | (b << 8) | (c >> 4));
      to.setUint16(at + 4, ((c & 15) << 12) | d);
      at += 6;
      i += 8;
      if (i + 8 > end) break;
      const left2 = from.getInt32(i, true);
      const right2 = from.getInt32(i + 4, true);
      const e = pairs[left2 & 0xffff] as number;
      const f = pairs[left2 >>> 16] as number;
      const g = pairs[right2 & 0xffff] as number;
      const h = pairs[right2 >>> 16] as number;
      if ((e | f | g | h) >= NOT_BASE64) break;
      to.setInt32(at, (e << 20) | (f << 8) | (g >> 4));
      to.setUint16(at + 4, ((g & 15) << 12) | h);
      at += 6;
      i += 8;
    }
    if (i + 4 <= end) {
      const four = from.getInt32(i, true);
      const a = pairs[four & 0xffff] as number;
      const b = pairs[four >>> 16] as number;
      if ((a | b) < NOT_BASE64) {
        to.setInt32(at, (a << 20) | (b << 8));
        at += 3;
        i += 4;
      }
    }
    // A line end, as JSON escapes it: backslash, n.
    if (i + 2 > end || from.getUint16(i, true) !== 0x6e5c) break;
    i += 2;
  }
  runsWritten = at - begin;
  return i;
}

/** Reads base64 that arrives in pieces, line ends and blanks between its digits allowed. */
export class Base64Decoder {
  /** Bytes the last {@link push} or {@link end} wrote. */
  written = 0;
  #bits = 0;
  #digits = 0;
  #padding = 0;

  /** Bytes to keep free for `digits` more characters: their result, and what a wide store overwrites after it. */
  static room(digits: number): number {
    return Math.ceil((digits + 3) / 4) * 3 + 1;
  }

  /**
   * Decodes from `from[start..end)` into `to` at `at`, up to the first character that is not base64 or
   * white space. The two characters backslash and n, as they stand for a line end in JSON text, count as
   * white space.
   * @returns the position of the character that stopped it, or `end`.
   */
  push(from: DataView, start: number, end: number, to: DataView, at: number): number {
    const table = decodeBase64Table;
    const begin = at;
    let i = start;
    while (i < end) {
      if (this.#digits === 0 && this.#padding === 0) {
        // In many short calls, not one long one: V8 would optimise the loop while it runs, before it has seen
        // it end, and fall back to slow code each time it does end.
        const part = Math.min(end, i + SHORT_CALL);
        const stop = takeBase64Runs(from, i, part, to, at);
        at += runsWritten;
        const all = stop >= part - 8 && stop < end && stop > i;
        i = stop;
        if (all) continue;
        if (i >= end) break;
      }
      const char = from.getUint8(i);
      const digit = table[char] as number;
      if (digit <= 63) {
        if (this.#padding > 0) break;
        this.#bits = (this.#bits << 6) | digit;
        if (++this.#digits === 4) {
          to.setUint16(at, (this.#bits >> 8) & 0xffff);
          to.setUint8(at + 2, this.#bits & 0xff);
          at += 3;
          this.#bits = this.#digits = 0;
        }
      } else if (char === 0x5c && i + 1 < end && from.getUint8(i + 1) === 0x6e) {
        i++;
      } else if (char === 0x3d && this.#digits >= 2 && this.#digits + this.#padding < 4) {
        this.#padding++;
      } else if (char !== 0x0a && char !== 0x0d && char !== 0x20 && char !== 0x09) {
        break;
      }
      i++;
    }
    this.written = at - begin;
    return i;
  }

  /** Writes the last one or two bytes; false when digits or padding are missing. */
  end(to: DataView, at: number): boolean {
    this.written = 0;
    if (this.#digits === 0) return true;
    if (this.#digits + this.#padding !== 4) return false;
    const bits = this.#bits << (6 * this.#padding);
    to.setUint8(at, (bits >> 16) & 0xff);
    if (this.#digits === 3) to.setUint8(at + 1, (bits >> 8) & 0xff);
    this.written = this.#digits - 1;
    return true;
  }
}

/** Base64 of a small blob as crit writes it: a line end after every 76 digits and at the end. */
export function base64Lines(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    .toString('base64')
    .replace(/.{1,76}/g, '$&\n');
}

/** Bytes of base64 text with or without line ends, or undefined when it is not base64. */
export function unbase64(text: string): Uint8Array | undefined {
  const bytes = Buffer.from(text, 'utf8');
  const out = new Uint8Array(Base64Decoder.room(bytes.length) + 3);
  const view = viewOf(out);
  const decoder = new Base64Decoder();
  if (decoder.push(viewOf(bytes), 0, bytes.length, view, 0) !== bytes.length) return undefined;
  const length = decoder.written;
  return decoder.end(view, length) ? out.subarray(0, length + decoder.written) : undefined;
}

/** Whether every byte of `bytes[start..end)` is zero. */
export function isZero(bytes: Uint8Array, start = 0, end = bytes.length): boolean {
  for (let i = start; i < end; i++) if (bytes[i] !== 0) return false;
  return true;
}

/** `value` rounded up to a multiple of 8. */
export function roundUp8(value: number): number {
  return Math.ceil(value / 8) * 8;
}

/** Bytes from one CPU's value to the next in an item of a per-CPU map; the kernel pads each to a multiple of 8. */
export function cpuStride(valueSize: number): number {
  return roundUp8(valueSize);
}

/** How the value of an item is divided. */
export interface CpuParts {
  /** Bytes of each part without its padding. */
  readonly size: number;
  /** Bytes from one part to the next. */
  readonly stride: number;
  readonly cpus: number;
}

/**
 * The parts of a value of `total` bytes: one for each CPU in a per-CPU map, else the value itself.
 * @param perCpu bytes of one CPU's value; undefined if the map is not per-CPU
 */
export function cpuParts(total: number, perCpu: number | undefined): CpuParts {
  if (perCpu === undefined) return { size: total, stride: total, cpus: 1 };
  const stride = cpuStride(perCpu);
  return { size: perCpu, stride, cpus: Math.floor(total / stride) };
}

/**
 * The bytes of a path or another name as text: UTF-8, with `\\xNN` for each byte that is not valid UTF-8, is a
 * backslash, or must not reach a terminal. No two paths have the same text.
 */
export function pathText(bytes: Uint8Array): string {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const plain = (text: string) => !text.includes('\\') && oneLine(text) === text;
  const whole = isUtf8(buffer) ? buffer.toString() : '\\';
  if (plain(whole)) return whole;
  let text = '';
  for (let at = 0; at < buffer.length; ) {
    const lead = buffer[at] as number;
    const size = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    const char = buffer.subarray(at, at + size);
    // In an invalid sequence, the bytes after the first may begin a character.
    const taken = isUtf8(char) ? char : char.subarray(0, 1);
    text += isUtf8(taken) && plain(taken.toString()) ? taken.toString() : taken.toString('hex').replace(/../g, '\\x$&');
    at += taken.length;
  }
  return text;
}

/** The bytes of {@link pathText}'s text. A backslash that does not begin `\\xNN` is kept. */
export function pathBytes(text: string): Buffer {
  const parts = text.split(/\\x([0-9a-fA-F]{2})/);
  return Buffer.concat(parts.map((part, i) => Buffer.from(part, i % 2 === 0 ? 'utf8' : 'hex')));
}

/** 16 bytes as IPv6 text (RFC 5952): the longest run of zero groups shortened, the first of equal runs. */
export function ipv6Text(bytes: Uint8Array): string {
  const groups = Array.from({ length: 8 }, (_, i) => viewOf(bytes).getUint16(i * 2));
  let best = { start: 0, length: 1 };
  for (let start = 0; start < 8; start++) {
    let length = 0;
    while (groups[start + length] === 0) length++;
    if (length > best.length) best = { start, length };
  }
  const text = (part: number[]) => part.map((group) => group.toString(16)).join(':');
  if (best.length < 2) return text(groups);
  return `${text(groups.slice(0, best.start))}::${text(groups.slice(best.start + best.length))}`;
}

/** 4 bytes as IPv4 text. */
export function ipv4Text(bytes: Uint8Array): string {
  return bytes.join('.');
}

/** The 4 bytes of IPv4 text, `10.0.0.1`; undefined for any other text. */
export function ipv4Bytes(text: string): Uint8Array | undefined {
  if (!/^(?:(?:0|[1-9]\d{0,2})\.){3}(?:0|[1-9]\d{0,2})$/.test(text)) return undefined;
  const parts = text.split('.').map(Number);
  return parts.every((part) => part <= 255) ? Uint8Array.from(parts) : undefined;
}

/** The 16 bytes of IPv6 text, `fe80::1` or `::ffff:10.0.0.1`; undefined for any other text. */
export function ipv6Bytes(text: string): Uint8Array | undefined {
  const last = text.slice(text.lastIndexOf(':') + 1);
  const ipv4 = last.includes('.') ? ipv4Bytes(last) : undefined;
  const bare = ipv4 === undefined ? text : `${text.slice(0, -last.length)}0:0`;
  const halves = bare.split('::');
  const [head = [], tail] = halves.map((half) => (half === '' ? [] : half.split(':')));
  const given = [...head, ...(tail ?? [])];
  if (halves.length > 2 || !given.every((group) => /^[0-9a-f]{1,4}$/i.test(group))) return undefined;
  const missing = 8 - given.length;
  if (tail === undefined ? missing !== 0 : missing < 1) return undefined;
  const bytes = new Uint8Array(16);
  const at = [...head.keys(), ...(tail ?? []).map((_, i) => head.length + missing + i)];
  for (const [i, group] of given.entries()) viewOf(bytes).setUint16((at[i] as number) * 2, Number.parseInt(group, 16));
  if (ipv4 !== undefined) bytes.set(ipv4, 12);
  return bytes;
}

/** Bytes as the text of a hardware address: `02:00:00:00:00:01`. */
export function macText(bytes: Uint8Array): string {
  return hex(bytes).replace(/..(?=.)/g, '$&:');
}

/** The 6 bytes of a hardware address; undefined for any other text. */
export function macBytes(text: string): Uint8Array | undefined {
  return /^(?:[0-9a-f]{2}:){5}[0-9a-f]{2}$/i.test(text) ? unhex(text.replaceAll(':', '')) : undefined;
}

/** Decodes UTF-8 as it is, a byte order mark included; throws a TypeError for bytes that are not UTF-8. */
export const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

const SAFE = BigInt(Number.MAX_SAFE_INTEGER);

/** A bigint as a number if that is exact. */
export function exactInteger(value: bigint): number | bigint {
  return value <= SAFE && value >= -SAFE ? Number(value) : value;
}

/** Bytes of the smallest page of any machine that Linux runs on. */
export const SMALLEST_PAGE = 4096;
