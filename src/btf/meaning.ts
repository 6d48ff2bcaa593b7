/**
 * What the bytes of a type mean to people: numbers in network order, addresses, times. Nothing else decides it.
 *
 * | what | means |
 * |---|---|
 * | `__be16`, `__be32`, `__be64`, also through further typedefs | the number, in JSON too (`__le…` likewise) |
 * | `__be32`, `struct in_addr` | an IPv4 address |
 * | `struct in6_addr` | an IPv6 address |
 * | 6 unsigned bytes whose member or typedef has a name like `mac`, `h_dest`, `h_source`, `eth_addr`, `hwaddr` | a hardware address |
 * | `ktime_t` | a duration |
 *
 * Addresses and times are text only where a person reads them; as input they are taken everywhere. What the user says
 * of a member (`--as`) counts in JSON, too.
 */
import { hex, ipv4Bytes, ipv4Text, ipv6Bytes, ipv6Text, macBytes, macText, unhex } from '../bytes.js';
import type { Json } from '../value.js';
import { type ArrayType, type Btf, type IntType, MAX_TYPE_DEPTH, type RefType } from './btf.js';
import { bytesAt, type Codec, foundText, type Refuse } from './scalars.js';

/** What a user can say that a member is. */
export const MEANINGS = ['ipv4', 'ipv6', 'mac', 'be', 'hex', 'time', 'duration', 'bytes'] as const;
/** One of {@link MEANINGS}. */
export type Meaning = (typeof MEANINGS)[number];

const NAMELESS = new Set(['TYPEDEF', 'VOLATILE', 'CONST', 'RESTRICT', 'TYPE_TAG']);

/** The names of the typedefs that lead to a type, outermost first. */
function* typedefs(btf: Btf, id: number): Generator<string> {
  let at = id;
  for (let steps = 0; steps <= MAX_TYPE_DEPTH + 1; steps++) {
    const kind = btf.kind(at);
    if (kind === 'TYPEDEF') yield btf.nameOf(at);
    else if (!NAMELESS.has(kind)) return;
    at = (btf.type(at) as RefType).type;
  }
}

/** The byte order that the name of an integer's type declares: `__be16`, `__le32`. */
export function declaredOrder(btf: Btf, id: number): 'big' | 'little' | undefined {
  for (const name of typedefs(btf, id)) {
    const [, order] = /^__([bl])e(16|32|64)$/.exec(name) ?? [];
    if (order !== undefined) return order === 'b' ? 'big' : 'little';
  }
  return undefined;
}

/** Names of members and typedefs that are hardware addresses, if they are six unsigned bytes. */
const HARDWARE = /^h_(dest|source)$|(^|_)(s|d|src|dst)?(mac|hw|ll|eth|ether)(_?addr(ess)?)?(_|\d|$)/i;

/** What values of this type mean by themselves. */
export function meaningOf(btf: Btf, id: number, member: string): Meaning | undefined {
  const target = btf.resolve(id);
  switch (btf.kind(target)) {
    case 'INT': {
      const size = btf.size(target);
      if (size !== 4 && size !== 8) return undefined;
      for (const name of typedefs(btf, id)) {
        if (name === '__be32' && size === 4) return 'ipv4';
        if (name === 'ktime_t' && size === 8) return 'duration';
      }
      return undefined;
    }
    case 'STRUCT': {
      const name = btf.nameOf(target);
      if (name === 'in_addr' && btf.size(target) === 4) return 'ipv4';
      return name === 'in6_addr' && btf.size(target) === 16 ? 'ipv6' : undefined;
    }
    case 'ARRAY': {
      if (btf.size(target) !== 6) return undefined;
      const { type: of, count } = btf.type(target) as ArrayType;
      const element = btf.resolve(of);
      if (count !== 6 || btf.kind(element) !== 'INT' || (btf.type(element) as IntType).signed) return undefined;
      return [member, ...typedefs(btf, id)].some((name) => HARDWARE.test(name)) ? 'mac' : undefined;
    }
    default:
      return undefined;
  }
}

/** A text for the values of a type, and back. */
interface Reading {
  /** What it expects, for a message. */
  readonly what: string;
  /** Undefined if a value has no such text. */
  text(view: DataView, at: number): string | undefined;
  /** Writes the value that a text means; false if it means none. */
  put(text: string, view: DataView, at: number): boolean;
}

function ofBytes(
  what: string,
  size: number,
  toText: (bytes: Uint8Array) => string,
  fromText: (text: string) => Uint8Array | undefined,
): Reading {
  return {
    what,
    text: (view, at) => toText(bytesAt(view, at, size)),
    put(text, view, at) {
      const bytes = fromText(text);
      if (bytes?.length !== size) return false;
      bytesAt(view, at, size).set(bytes);
      return true;
    },
  };
}

function ofNumber(
  what: string,
  number: Codec,
  toText: (value: bigint) => string | undefined,
  fromText: (text: string) => bigint | undefined,
): Reading {
  return {
    what,
    text(view, at) {
      const value = number.decode(view, at);
      return typeof value === 'number' || typeof value === 'string' ? toText(BigInt(value)) : undefined;
    },
    put(text, view, at) {
      const value = fromText(text);
      if (value === undefined) return false;
      number.encode(value, view, at);
      return true;
    },
  };
}

/**
 * How a value of `size` bytes is read; undefined if it cannot mean that.
 * @param number the value as a whole number, if it is one
 */
export function readingOf(
  meaning: Exclude<Meaning, 'be'>,
  size: number,
  number: Codec | undefined,
): Reading | undefined {
  switch (meaning) {
    case 'ipv4':
      if (size !== 4) return undefined;
      return ofBytes('an IPv4 address like "10.0.0.1"', size, ipv4Text, ipv4Bytes);
    case 'ipv6':
      if (size !== 16) return undefined;
      return ofBytes('an IPv6 address like "fe80::1"', size, ipv6Text, ipv6Bytes);
    case 'mac':
      if (size !== 6) return undefined;
      return ofBytes('a hardware address like "02:00:00:00:00:01"', size, macText, macBytes);
    case 'bytes':
      return ofBytes(`${2 * size} hex digits`, size, hex, (text) => unhex(text.toLowerCase()));
    case 'hex':
      return number && ofNumber('a number like "0x1f"', number, hexNumber, () => undefined);
    case 'time':
      return number && ofNumber('a time like "2026-11-28T09:00:00Z"', number, timeText, timeOf);
    case 'duration':
      return number && ofNumber('a duration like "1h2m3.5s" or "250ms"', number, durationText, durationOf);
  }
}

/**
 * A codec that takes such text as well.
 * @param shown whether it also shows it
 */
export function readAs(inner: Codec, reading: Reading, shown: boolean, refuse: Refuse): Codec {
  const decode = (view: DataView, at: number): Json => reading.text(view, at) ?? inner.decode(view, at);
  return {
    ...inner,
    ...(shown && { decode, print: (view, at, out) => out.text(JSON.stringify(decode(view, at))) }),
    encode(value, view, at) {
      if (typeof value !== 'string') return inner.encode(value, view, at);
      if (reading.put(value, view, at)) return;
      try {
        inner.encode(value, view, at);
      } catch {
        throw refuse(`must be ${reading.what}, got ${foundText(value)}`);
      }
    },
  };
}

const hexNumber = (value: bigint) => `${value < 0n ? '-' : ''}0x${(value < 0n ? -value : value).toString(16)}`;

// ---------------------------------------------------------------------------------------------------
// Times

const UNITS: readonly (readonly [unit: string, nanoseconds: bigint])[] = [
  ['d', 86_400_000_000_000n],
  ['h', 3_600_000_000_000n],
  ['m', 60_000_000_000n],
  ['s', 1_000_000_000n],
  ['ms', 1_000_000n],
  ['us', 1000n],
  ['ns', 1n],
];
const NANOSECONDS = new Map([...UNITS, ['µs', 1000n] as const]);

/** `whole` units of `unit` nanoseconds and the rest as a decimal fraction: `1.5`. */
function decimal(value: bigint, unit: bigint): string {
  const digits = String(unit).length - 1;
  const rest = String(value % unit)
    .padStart(digits, '0')
    .slice(0, digits)
    .replace(/0+$/, '');
  return `${value / unit}${rest === '' ? '' : `.${rest}`}`;
}

/** Nanoseconds as `1d2h3m4.5s`, below a second as `1.5ms`. */
function durationText(value: bigint): string {
  let left = value < 0n ? -value : value;
  const sign = value < 0n ? '-' : '';
  if (left === 0n) return '0s';
  const below = UNITS.slice(4).find(([, unit]) => left >= unit);
  if (left < 1_000_000_000n && below !== undefined) return `${sign}${decimal(left, below[1])}${below[0]}`;
  let text = '';
  for (const [unit, size] of UNITS.slice(0, 3)) {
    if (left >= size) text += `${left / size}${unit}`;
    left %= size;
  }
  return `${sign}${text}${left > 0n ? `${decimal(left, 1_000_000_000n)}s` : ''}`;
}

function durationOf(text: string): bigint | undefined {
  const [, sign, parts = ''] = /^(-?)((?:\d{1,20}(?:\.\d{1,9})?(?:ns|us|µs|ms|s|m|h|d))+)$/.exec(text) ?? [];
  if (parts === '') return undefined;
  let sum = 0n;
  for (const [, whole = '', fraction = '', unit = ''] of parts.matchAll(/(\d+)(?:\.(\d+))?(ns|us|µs|ms|s|m|h|d)/g)) {
    const size = NANOSECONDS.get(unit) as bigint;
    const scale = 10n ** BigInt(fraction.length);
    const part = BigInt(fraction || 0) * size;
    // No fraction of a nanosecond.
    if (part % scale !== 0n) return undefined;
    sum += BigInt(whole) * size + part / scale;
  }
  return sign === '-' ? -sum : sum;
}

/** The units that times are counted in: the digits of their fractions of a second, and the first number too large. */
const CLOCKS: readonly (readonly [digits: number, end: bigint])[] = [
  [0, 10n ** 11n],
  [3, 10n ** 14n],
  [6, 10n ** 17n],
  [9, 10n ** 20n],
];

const clockOf = (value: bigint) => CLOCKS.find(([, end]) => value < end);

/**
 * Time since 1970. How large the number is says what it counts: seconds, or thousandths, millionths or billionths of
 * them. The text has as many digits after the point, so it says the same.
 */
function timeText(value: bigint): string | undefined {
  const clock = value < 0n ? undefined : clockOf(value);
  if (clock === undefined) return undefined;
  const [digits] = clock;
  const unit = 10n ** BigInt(digits);
  const fraction = digits === 0 ? '' : `.${String(value % unit).padStart(digits, '0')}`;
  return `${new Date(Number((value / unit) * 1000n)).toISOString().slice(0, -'.000Z'.length)}${fraction}Z`;
}

function timeOf(text: string): bigint | undefined {
  const [, date, fraction = ''] = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{3}|\d{6}|\d{9}))?Z$/.exec(text) ?? [];
  const at = date === undefined ? Number.NaN : Date.parse(`${date}Z`);
  if (Number.isNaN(at)) return undefined;
  const unit = 10n ** BigInt(fraction.length);
  const value = (BigInt(at) / 1000n) * unit + BigInt(fraction || 0);
  return value >= 0n && clockOf(value)?.[0] === fraction.length ? value : undefined;
}
