/**
 * Numbers, enums, pointers and bit-fields: bytes to JSON and back, without loss for any bytes.
 *
 * A codec is made once for a type and used for millions of values, so all decisions are taken when it is made:
 * closures over plain numbers, and bigints only where 53 bits are too few.
 */

import { exactInteger, hex, unhex, utf8 } from '../bytes.js';
import { type PointerError, pointerPart } from '../errors.js';
import { isObject, type Json, type JsonObject } from '../value.js';
import type { EnumType } from './btf.js';
import { phrase, putInteger, putPhrase, putQuoted64, type Sink } from './sink.js';

/*
 * Decoding returns only JSON that `JSON.stringify` can print: integers beyond 2^53 - 1 are decimal text. Encoding
 * accepts bigints as well.
 */

/** How the values of one type are read and written. */
export interface Codec {
  /** Bytes that {@link decode} reads and {@link encode} sets; for a bit-field, the bytes it touches. */
  readonly size: number;
  /** Reads the value at byte `at`; the caller has checked that all its bytes exist. */
  decode(view: DataView, at: number): Json;
  /** Writes it as JSON text without blanks: the same text as `JSON.stringify` of what {@link decode} returns. */
  print(view: DataView, at: number, out: Sink): void;
  /**
   * Writes the value at byte `at`: all its bytes, or for a bit-field only its bits.
   * @throws PointerError; some of the bytes may then have been written
   */
  encode(value: Json, view: DataView, at: number): void;
  /** A member by name, or an element by index; undefined if there is no such one. Absent for values without parts. */
  part?(name: string | number): CodecPart | undefined;
  /** Names of the members, for messages; of an array, how many elements it has. */
  readonly parts?: readonly string[] | number;
}

/** A member of a structure or union, or an element of an array. */
export interface CodecPart {
  /** Bytes from the whole's start. */
  readonly offset: number;
  readonly codec: Codec;
}

/** Makes the error for a refused value. Only then is the name of the type built. */
export type Refuse = (problem: string, pointer?: string) => PointerError;

/** A short text for the value that was found, for a message. */
export function foundText(value: Json | undefined): string {
  if (value === undefined) return 'nothing';
  if (Array.isArray(value)) return `a list of ${value.length}`;
  if (typeof value === 'object' && value !== null) return 'an object';
  if (typeof value !== 'string') return String(value);
  return JSON.stringify(value.length > 40 ? `${value.slice(0, 40)}…` : value);
}

/** The bytes of `{"$raw": "hex"}`, which can represent a value of any type; undefined for any other JSON. */
export function rawValueBytes(value: Json, size: number, refuse: Refuse): Uint8Array | undefined {
  if (!isObject(value) || !Object.hasOwn(value, '$raw')) return undefined;
  const text = value.$raw as Json;
  const bytes = typeof text === 'string' && text.length === size * 2 ? unhex(text) : undefined;
  if (bytes === undefined) {
    throw refuse(`must be ${size * 2} hex digits (${size} bytes), got ${foundText(text)}`, '/$raw');
  }
  return bytes;
}

/** Bytes `at` to `at + size` of a view, not copied. */
export function bytesAt(view: DataView, at: number, size: number): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset + at, size);
}

/** Bytes as JSON that any codec accepts. */
export function rawJson(view: DataView, at: number, size: number): JsonObject {
  return { $raw: hex(bytesAt(view, at, size)) };
}

/** Writes `{"$raw": …}`, if that is what `value` is. */
function putRaw(value: Json, view: DataView, at: number, size: number, refuse: Refuse): boolean {
  const raw = rawValueBytes(value, size, refuse);
  if (raw === undefined) return false;
  for (const member of Object.keys(value as JsonObject)) {
    if (member !== '$raw') throw refuse('unknown member', pointerPart(member));
  }
  bytesAt(view, at, size).set(raw);
  return true;
}

// ---------------------------------------------------------------------------------------------------
// Position of bits

/** Reads and writes integers of one position and width, whatever they mean; below 2^53 they are numbers. */
interface Bits {
  readonly size: number;
  get(view: DataView, at: number): number | bigint;
  set(view: DataView, at: number, value: number | bigint): void;
}

const TWO_32 = 0x1_0000_0000;

/** Integers of 1, 2, 4 or 8 whole bytes. */
function wholeBytes(size: number, signed: boolean, little: boolean): Bits | undefined {
  switch (size) {
    case 1:
      return signed
        ? { size, get: (v, at) => v.getInt8(at), set: (v, at, value) => v.setInt8(at, Number(value)) }
        : { size, get: (v, at) => v.getUint8(at), set: (v, at, value) => v.setUint8(at, Number(value)) };
    case 2:
      return signed
        ? { size, get: (v, at) => v.getInt16(at, little), set: (v, at, value) => v.setInt16(at, Number(value), little) }
        : {
            size,
            get: (v, at) => v.getUint16(at, little),
            set: (v, at, value) => v.setUint16(at, Number(value), little),
          };
    case 4:
      return signed
        ? { size, get: (v, at) => v.getInt32(at, little), set: (v, at, value) => v.setInt32(at, Number(value), little) }
        : {
            size,
            get: (v, at) => v.getUint32(at, little),
            set: (v, at, value) => v.setUint32(at, Number(value), little),
          };
    case 8:
      return eightBytes(signed, little);
    default:
      return undefined;
  }
}

function eightBytes(signed: boolean, little: boolean): Bits {
  const [lowAt, highAt] = little ? [0, 4] : [4, 0];
  return {
    size: 8,
    // In two halves, because a bigint for each value would take several times as long.
    get(view, at) {
      const low = view.getUint32(at + lowAt, little);
      if (signed) {
        const high = view.getInt32(at + highAt, little);
        if (high >= -0x20_0000 && high < 0x20_0000 && (high > -0x20_0000 || low > 0)) return high * TWO_32 + low;
        return view.getBigInt64(at, little);
      }
      const high = view.getUint32(at + highAt, little);
      return high < 0x20_0000 ? high * TWO_32 + low : view.getBigUint64(at, little);
    },
    set(view, at, value) {
      if (typeof value === 'bigint' || value < 0) view.setBigUint64(at, BigInt.asUintN(64, BigInt(value)), little);
      else {
        view.setUint32(at + lowAt, value % TWO_32, little);
        view.setUint32(at + highAt, Math.floor(value / TWO_32), little);
      }
    },
  };
}

/**
 * Bits at any position: `start` (below 8) bits after the start of the given byte.
 * Big-endian machines count from each byte's highest bit.
 */
function anyBits(start: number, bits: number, signed: boolean, little: boolean): Bits {
  const size = Math.ceil((start + bits) / 8);
  // Number of bits below ours in the integer formed by all the bytes.
  const shift = little ? start : size * 8 - start - bits;
  return size <= 6 ? fewBits(size, shift, bits, signed, little) : manyBits(size, shift, bits, signed, little);
}

/** At most 48 bits including the bits around them, so plain arithmetic is exact. */
function fewBits(size: number, shift: number, bits: number, signed: boolean, little: boolean): Bits {
  const [unit, modulus] = [2 ** shift, 2 ** bits];
  const load = (view: DataView, at: number) => {
    let whole = 0;
    for (let i = 0; i < size; i++) whole = whole * 256 + view.getUint8(little ? at + size - 1 - i : at + i);
    return whole;
  };
  return {
    size,
    get(view, at) {
      const value = Math.floor(load(view, at) / unit) % modulus;
      return signed && value >= modulus / 2 ? value - modulus : value;
    },
    set(view, at, value) {
      const whole = load(view, at);
      const old = Math.floor(whole / unit) % modulus;
      let rest = whole + ((((Number(value) % modulus) + modulus) % modulus) - old) * unit;
      for (let i = 0; i < size; i++) {
        view.setUint8(little ? at + i : at + size - 1 - i, rest % 256);
        rest = Math.floor(rest / 256);
      }
    },
  };
}

function manyBits(size: number, shift: number, bits: number, signed: boolean, little: boolean): Bits {
  const unit = BigInt(shift);
  const load = (view: DataView, at: number) => {
    let whole = 0n;
    for (let i = 0; i < size; i++) whole = (whole << 8n) | BigInt(view.getUint8(little ? at + size - 1 - i : at + i));
    return whole;
  };
  return {
    size,
    get(view, at) {
      const value = load(view, at) >> unit;
      return exactInteger(signed ? BigInt.asIntN(bits, value) : BigInt.asUintN(bits, value));
    },
    set(view, at, value) {
      const whole = load(view, at);
      const old = BigInt.asUintN(bits, whole >> unit);
      let rest = whole + ((BigInt.asUintN(bits, BigInt(value)) - old) << unit);
      for (let i = 0; i < size; i++) {
        view.setUint8(little ? at + i : at + size - 1 - i, Number(rest & 0xffn));
        rest >>= 8n;
      }
    },
  };
}

/** Position of an integer: from bit `start` (below 8) of the given byte. */
export interface BitPosition {
  readonly start: number;
  readonly bits: number;
  readonly little: boolean;
}

function bitsOf({ start, bits, little }: BitPosition, signed: boolean): Bits {
  const whole = start === 0 && bits % 8 === 0 ? wholeBytes(bits / 8, signed, little) : undefined;
  return whole ?? anyBits(start, bits, signed, little);
}

// ---------------------------------------------------------------------------------------------------
// What bits mean

interface IntegerRange {
  readonly low: number | bigint;
  readonly high: number | bigint;
}

function rangeOf(bits: number, signed: boolean): IntegerRange {
  const [low, high] = signed ? [-(2n ** BigInt(bits - 1)), 2n ** BigInt(bits - 1) - 1n] : [0n, 2n ** BigInt(bits) - 1n];
  return { low: exactInteger(low), high: exactInteger(high) };
}

/** Text in decimal, or in hex with `0x`, slightly longer than 128 bits need. */
const INTEGER = /^-?(0x[0-9a-fA-F]{1,33}|[0-9]{1,40})$/;

/** A whole number within a range, from a JSON number, a bigint, or text. */
function integer(value: Json, { low, high }: IntegerRange, refuse: Refuse, others = () => ''): number | bigint {
  let int: number | bigint | undefined;
  if (typeof value === 'number') {
    if (Number.isSafeInteger(value)) int = value;
    else if (Number.isInteger(value) && value >= low && value <= high) {
      // The number as written is lost: a double holds only a nearby value.
      throw refuse(`${value} must be written as text, because it is beyond 2^53 - 1`);
    }
  } else if (typeof value === 'bigint') int = value;
  else if (typeof value === 'string' && INTEGER.test(value)) {
    int = exactInteger(value.startsWith('-') ? -BigInt(value.slice(1)) : BigInt(value));
  }
  if (int === undefined || int < low || int > high) {
    throw refuse(`must be ${others()}a whole number from ${low} to ${high}, got ${foundText(value)}`);
  }
  return int;
}

const integerJson = (value: number | bigint): Json => (typeof value === 'number' ? value : String(value));

/** A codec that prints what it decodes. */
function printing(codec: Omit<Codec, 'print'>): Codec {
  const { decode } = codec;
  return { ...codec, print: (view, at, out) => out.text(JSON.stringify(decode(view, at))) };
}

/** Integers as numbers; beyond 2^53 - 1, as decimal text. */
export function intCodec(place: BitPosition, signed: boolean, refuse: Refuse): Codec {
  const { size, get, set } = bitsOf(place, signed);
  const range = rangeOf(place.bits, signed);
  const encode = (value: Json, view: DataView, at: number) => set(view, at, integer(value, range, refuse));
  if (size <= 6) {
    const decode = get as (view: DataView, at: number) => number;
    return { size, decode, print: (view, at, out) => putInteger(out, decode(view, at)), encode };
  }
  return {
    size,
    decode(view, at) {
      const value = get(view, at);
      return typeof value === 'number' ? value : String(value);
    },
    print:
      size === 8 && place.bits === 64 && !signed
        ? unsigned64(place.little)
        : (view, at, out) => {
            const value = get(view, at);
            if (typeof value === 'number') putInteger(out, value);
            else out.text(`"${value}"`);
          },
    encode,
  };
}

/** Prints unsigned 64-bit integers from their halves, because times in nanoseconds exceed 2^53. */
function unsigned64(little: boolean): Codec['print'] {
  const [lowAt, highAt] = little ? [0, 4] : [4, 0];
  return (view, at, out) => {
    const [low, high] = [view.getUint32(at + lowAt, little), view.getUint32(at + highAt, little)];
    if (high < 0x20_0000) putInteger(out, high * TWO_32 + low);
    else putQuoted64(out, high, low);
  };
}

/** `true` and `false`; any bits other than 0 and 1 as a number. */
export function boolCodec(place: BitPosition, refuse: Refuse): Codec {
  const { size, get, set } = bitsOf(place, false);
  const range = rangeOf(place.bits, false);
  return printing({
    size,
    decode(view, at) {
      const value = get(view, at);
      return value === 0 ? false : value === 1 ? true : integerJson(value);
    },
    encode(value, view, at) {
      if (typeof value === 'boolean') set(view, at, value ? 1 : 0);
      else
        set(
          view,
          at,
          integer(value, range, refuse, () => 'true, false or '),
        );
    },
  });
}

/** Names where the enum has one for the value, else numbers. */
export function enumCodec(type: EnumType, place: BitPosition, refuse: Refuse): Codec {
  const { size, get, set } = bitsOf(place, type.signed);
  const { bits } = place;
  const range = rangeOf(bits, type.signed);
  // Compilers record signedness only since 2022: an enum that is not marked signed may have negative members.
  const maybe = type.kind === 'ENUM' && !type.signed && type.values.some(({ value }) => BigInt.asIntN(32, value) < 0n);
  const taken = maybe ? { ...range, low: rangeOf(bits, true).low } : range;
  const numbers = new Map<string, number | bigint>();
  const names = new Map<number | bigint, string>();
  for (const { name, value } of type.values) {
    // For a repeated name or number, the first counts. A name that looks like a number could not be encoded again.
    if (name === '' || INTEGER.test(name) || numbers.has(name)) continue;
    const number = exactInteger(type.signed ? BigInt.asIntN(bits, value) : BigInt.asUintN(bits, value));
    // Too wide for a bit-field. But -1 from an old compiler without signedness fits, as its low bits.
    const old = type.kind === 'ENUM' && !type.signed && BigInt.asIntN(bits, value) === BigInt.asIntN(32, value);
    if (BigInt(number) !== value && !old) continue;
    numbers.set(name, number);
    if (!names.has(number)) names.set(number, name);
  }
  const texts = new Map([...names].map(([number, name]) => [number, phrase(JSON.stringify(name))]));
  return {
    size,
    decode(view, at) {
      const value = get(view, at);
      return names.get(value) ?? integerJson(value);
    },
    print(view, at, out) {
      const value = get(view, at);
      const text = texts.get(value);
      if (text !== undefined) putPhrase(out, text);
      else out.text(JSON.stringify(integerJson(value)));
    },
    encode(value, view, at) {
      const number = typeof value === 'string' ? numbers.get(value) : undefined;
      const given = number ?? integer(value, taken, refuse, () => `${oneOf([...numbers.keys()])}, or `);
      set(view, at, given < 0 && !type.signed ? Number(given) + 2 ** bits : given);
    },
  };
}

/** The names for a message; only some of them if there are many. */
export function oneOf(names: readonly string[], most = 8): string {
  const shown = names.slice(0, most).join(', ');
  return names.length > most ? `one of ${shown}, … (${names.length} in all)` : `one of ${shown || 'none'}`;
}

/** Pointers, as hex text. */
export function pointerCodec(place: BitPosition, refuse: Refuse): Codec {
  const { size, get, set } = bitsOf(place, false);
  const range = rangeOf(place.bits, false);
  return {
    size,
    decode: (view, at) => `0x${get(view, at).toString(16)}`,
    print: (view, at, out) => out.text(`"0x${get(view, at).toString(16)}"`),
    encode(value, view, at) {
      set(
        view,
        at,
        integer(value, range, refuse, () => 'an address like "0xffff888003a4c000": '),
      );
    },
  };
}

/**
 * Integers that do not fill their storage (`_BitInt(7)`): numbers if the remaining bits are zero, raw bytes if not.
 */
export function looseCodec(inner: Codec, offset: number, size: number, refuse: Refuse): Codec {
  const probe = new DataView(new ArrayBuffer(size));
  return printing({
    size,
    decode(view, at) {
      const value = inner.decode(view, at + offset);
      bytesAt(probe, 0, size).fill(0);
      inner.encode(value, probe, offset);
      for (let i = 0; i < size; i++) if (probe.getUint8(i) !== view.getUint8(at + i)) return rawJson(view, at, size);
      return value;
    },
    encode(value, view, at) {
      if (putRaw(value, view, at, size, refuse)) return;
      bytesAt(view, at, size).fill(0);
      inner.encode(value, view, at + offset);
    },
  });
}

/** Bit patterns of the default NaN, in bits 32 and up; any other NaN is kept as its bits. */
const NAN_32 = 0x7fc0_0000;
const NAN_64 = 0x7ff8_0000;
const SPECIAL_FLOATS: Readonly<Record<string, number>> = {
  NaN: NaN,
  Infinity: Infinity,
  '-Infinity': -Infinity,
  '-0': -0,
};

/**
 * Floating point: numbers; `"NaN"`, `"Infinity"`, `"-Infinity"` and `"-0"`, which JSON numbers cannot express;
 * hex text of the bits for any other NaN and for sizes other than 4 and 8 bytes.
 */
export function floatCodec(size: number, little: boolean, refuse: Refuse): Codec {
  const bits = bitsOf({ start: 0, bits: size * 8, little }, false);
  const bitRange = rangeOf(size * 8, false);
  const hexOf = (view: DataView, at: number) =>
    `0x${bits
      .get(view, at)
      .toString(16)
      .padStart(size * 2, '0')}`;
  const isHex = (value: Json): value is string => typeof value === 'string' && /^0x[0-9a-fA-F]{1,32}$/.test(value);
  if (size !== 4 && size !== 8) {
    return printing({
      size,
      decode: hexOf,
      encode(value, view, at) {
        if (!isHex(value)) throw refuse(`must be the bits as hex text like "0x3c00", got ${foundText(value)}`);
        bits.set(view, at, integer(value, bitRange, refuse));
      },
    });
  }
  const read = (view: DataView, at: number) => (size === 4 ? view.getFloat32(at, little) : view.getFloat64(at, little));
  const usual = (view: DataView, at: number) =>
    size === 4
      ? view.getUint32(at, little) === NAN_32
      : view.getUint32(little ? at + 4 : at, little) === NAN_64 && view.getUint32(little ? at : at + 4, little) === 0;
  return printing({
    size,
    decode(view, at) {
      const value = read(view, at);
      if (Number.isFinite(value)) return value === 0 && Object.is(value, -0) ? '-0' : value;
      if (!Number.isNaN(value)) return String(value);
      return usual(view, at) ? 'NaN' : hexOf(view, at);
    },
    encode(value, view, at) {
      if (isHex(value)) {
        bits.set(view, at, integer(value, bitRange, refuse));
        return;
      }
      let number: number | undefined;
      if (typeof value === 'number') number = value;
      else if (typeof value === 'bigint') number = Number(value);
      else if (typeof value === 'string' && Object.hasOwn(SPECIAL_FLOATS, value)) number = SPECIAL_FLOATS[value];
      if (
        number === undefined ||
        (typeof value !== 'string' && !Number.isFinite(size === 4 ? Math.fround(number) : number))
      ) {
        const most = size === 4 ? 3.4028234663852886e38 : Number.MAX_VALUE;
        const special = Object.keys(SPECIAL_FLOATS).join(', ');
        throw refuse(`must be a number from -${most} to ${most}, hex text, or ${special}, got ${foundText(value)}`);
      }
      // Written by its bits, because processors differ in which NaN they produce.
      if (Number.isNaN(number)) bits.set(view, at, size === 4 ? NAN_32 : BigInt(NAN_64) << 32n);
      else if (size === 4) view.setFloat32(at, number, little);
      else view.setFloat64(at, number, little);
    },
  });
}

// ---------------------------------------------------------------------------------------------------
// Text

/** Longer texts are read at once; shorter ones are read faster character by character. */
const SHORT_TEXT = 24;

/** `char[count]` as text if it is clean: UTF-8 without control characters, then only zero bytes to the end. */
export function textCodec(count: number, refuse: Refuse): Codec {
  return {
    size: count,
    decode: (view, at) => textAt(view, at, count) ?? rawJson(view, at, count),
    print(view, at, out) {
      const length = plainText(view, at, count);
      if (length < 0) {
        out.text(JSON.stringify(textAt(view, at, count) ?? rawJson(view, at, count)));
        return;
      }
      out.room(length + 2);
      const { bytes } = out;
      bytes[out.at++] = 0x22;
      for (let i = 0; i < length; i++) bytes[out.at++] = view.getUint8(at + i);
      bytes[out.at++] = 0x22;
    },
    encode(value, view, at) {
      if (putRaw(value, view, at, count, refuse)) return;
      const out = bytesAt(view, at, count);
      if (Array.isArray(value)) {
        putCharacters(value, out, refuse);
        return;
      }
      if (typeof value !== 'string') throw refuse(`must be text of at most ${count} bytes, got ${foundText(value)}`);
      if (value.includes('\0'))
        throw refuse('has a zero byte, which would end the text: write {"$raw": "hex"} instead');
      if (/\p{Surrogate}/u.test(value)) throw refuse('has half a surrogate pair, which is not a character');
      const bytes = Buffer.from(value, 'utf8');
      if (bytes.length > count) throw refuse(`text of ${bytes.length} bytes, expected at most ${count}`);
      out.set(bytes);
      out.fill(0, bytes.length);
    },
  };
}

/** Text up to the first zero byte, if it is clean and only zero bytes follow. */
function textAt(view: DataView, at: number, count: number): string | undefined {
  let length = 0;
  let ascii = true;
  for (; length < count; length++) {
    const byte = view.getUint8(at + length);
    if (byte === 0) break;
    if (byte < 0x20 ? byte < 0x09 || byte > 0x0d : byte === 0x7f) return undefined;
    if (byte >= 0x80) ascii = false;
  }
  for (let i = length + 1; i < count; i++) if (view.getUint8(at + i) !== 0) return undefined;
  if (ascii && length <= SHORT_TEXT) {
    let text = '';
    for (let i = 0; i < length; i++) text += CHARS[view.getUint8(at + i)];
    return text;
  }
  const bytes = bytesAt(view, at, length);
  if (ascii) return Buffer.from(bytes.buffer, bytes.byteOffset, length).toString('latin1');
  try {
    const text = utf8.decode(bytes);
    return CONTROLS.test(text) ? undefined : text;
  } catch {
    return undefined;
  }
}

/** Length of text that needs no change in JSON (printable ASCII, nothing to escape); -1 for any other. */
function plainText(view: DataView, at: number, count: number): number {
  let length = 0;
  for (; length < count; length++) {
    const byte = view.getUint8(at + length);
    if (byte === 0) break;
    if (byte < 0x20 || byte >= 0x7f || byte === 0x22 || byte === 0x5c) return -1;
  }
  for (let i = length + 1; i < count; i++) if (view.getUint8(at + i) !== 0) return -1;
  return length;
}

const CHARS: readonly string[] = Array.from({ length: 128 }, (_, code) => String.fromCharCode(code));
/** Control characters beyond ASCII, which a terminal may interpret as commands. */
const CONTROLS = /[\u0080-\u009f]/;

/** Characters given as numbers, signed or not. */
function putCharacters(values: readonly Json[], out: Uint8Array, refuse: Refuse): void {
  if (values.length !== out.length) throw refuse(`must have ${out.length} numbers, got ${foundText([...values])}`);
  for (const [i, value] of values.entries()) {
    const within: Refuse = (problem, pointer = '') => refuse(problem, pointerPart(i) + pointer);
    out[i] = Number(integer(value, { low: -128, high: 255 }, within));
  }
}

/** Fields that only the kernel sets (locks, timers, …): the name of the field, and its bytes if they are not zero. */
export function opaqueCodec(what: string, size: number, refuse: Refuse): Codec {
  return printing({
    size,
    decode(view, at) {
      for (let i = 0; i < size; i++) {
        if (view.getUint8(at + i) !== 0) return { $kernel: what, ...rawJson(view, at, size) };
      }
      return { $kernel: what };
    },
    encode(value, view, at) {
      const raw = rawValueBytes(value, size, refuse);
      if (!isObject(value)) throw refuse(`must be {"$kernel": "${what}"}, because only the kernel sets it`);
      for (const [member, is] of Object.entries(value)) {
        if (member === '$raw' || (member === '$kernel' && is === what)) continue;
        throw refuse(
          member === '$kernel' ? `must be "${what}", got ${foundText(is)}` : 'unknown member',
          pointerPart(member),
        );
      }
      const out = bytesAt(view, at, size);
      if (raw === undefined) out.fill(0);
      else out.set(raw);
    },
  });
}
