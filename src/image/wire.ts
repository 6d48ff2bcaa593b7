/**
 * The protobuf messages of CRIU's images, as JSON and back, byte for byte.
 *
 * Messages become JSON objects with the members crit prints: fields in ascending number, absent ones
 * left out, enums by name, bytes as base64. If those members cannot rebuild a message's bytes (unknown
 * fields, over-long varints, fields out of order, text that is not UTF-8), one more member, `$raw`, has
 * the bytes in hex. Encoding takes every byte that was not edited from `$raw`.
 */
import { base64Lines, exactInteger, hex, pathBytes, pathText, unbase64, unhex, utf8 } from '../bytes.js';
import { PointerError, pointerPart } from '../errors.js';
import { type Json, type JsonObject, MAX_VALUES, VALUES_OF_WHOLE } from '../value.js';
import { parseShown, quotedPrintable, unquotePrintable } from './display.js';
import { enumOf, type MessageField, messageFields } from './message.js';

/** Broken protobuf: what is wrong, at which byte of the message, in which field. */
export class WireError extends Error {
  constructor(
    /** Byte position within the bytes that were decoded. */
    readonly offset: number,
    /** Dotted field names from the entry down; empty for the entry itself. */
    readonly field: string,
    message: string,
  ) {
    super(message);
  }
}

/**
 * How strings of a message are read: as UTF-8 (as crit does), or one character for each byte. The `conv` of one of
 * our own fields overrides this.
 */
export type Text = 'utf8' | 'latin1';

/** The fields of a message by number, and their names. */
interface FieldTable {
  readonly byNumber: ReadonlyMap<number, MessageField>;
  readonly names: ReadonlySet<string>;
}
const tables = new Map<string, FieldTable>();
function tableOf(message: string): FieldTable {
  let table = tables.get(message);
  if (table === undefined) {
    const fields = messageFields(message);
    table = {
      byNumber: new Map(fields.map((field) => [field.no, field])),
      names: new Set(fields.map((field) => field.name)),
    };
    tables.set(message, table);
  }
  return table;
}

const VARINT = 0;
const FIXED64 = 1;
const BYTES = 2;
const FIXED32 = 5;
const WIRE_NAMES = ['varint', '64-bit', 'bytes', 'group', 'group end', '32-bit'];

function wireOf(field: MessageField): number {
  switch (field.type) {
    case 'message':
    case 'string':
    case 'bytes':
      return BYTES;
    case 'fixed32':
    case 'sfixed32':
      return FIXED32;
    case 'fixed64':
    case 'sfixed64':
      return FIXED64;
    default:
      return VARINT;
  }
}

// ---------------------------------------------------------------------------------------------------
// Bytes to JSON

/** One field on the wire: its number and wire type, all its bytes, and where its value is. */
interface WireRecord {
  readonly no: number;
  readonly wire: number;
  readonly start: number;
  readonly value: number;
  readonly end: number;
}

interface Varint {
  readonly value: bigint | number;
  readonly end: number;
}

/** Reads a varint of at most 64 bits; a number while it is below 2^53, as most are. */
function varint(bytes: Uint8Array, at: number, limit: number, field: string): Varint {
  let value = 0;
  let scale = 1;
  for (let i = at; i < limit; i++) {
    const byte = bytes[i] as number;
    // 7 bytes hold 49 bits, exact in a double; longer ones are read again as a bigint.
    if (i - at === 7) return bigVarint(bytes, at, limit, field);
    value += (byte & 0x7f) * scale;
    if (byte < 0x80) return { value, end: i + 1 };
    scale *= 128;
  }
  throw new WireError(at, field, 'a varint runs past the end of its message');
}

function bigVarint(bytes: Uint8Array, at: number, limit: number, field: string): Varint {
  let value = 0n;
  for (let i = at; i < limit; i++) {
    const byte = bytes[i] as number;
    if (i - at === 9 && byte > 1) break;
    value |= BigInt(byte & 0x7f) << BigInt(7 * (i - at));
    if (byte < 0x80) {
      return { value: value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value, end: i + 1 };
    }
  }
  if (limit - at < 10) throw new WireError(at, field, 'a varint runs past the end of its message');
  throw new WireError(at, field, 'a varint is longer than 64 bits');
}

/** Splits `bytes[start..end)` into fields. */
function* wireRecords(bytes: Uint8Array, start: number, end: number, path: string): Generator<WireRecord> {
  for (let at = start; at < end; ) {
    const tag = varint(bytes, at, end, path);
    if (typeof tag.value === 'bigint' || tag.value > 0xffffffff || tag.value < 8) {
      throw new WireError(at, path, `field tag ${tag.value} is not valid in protobuf`);
    }
    const wire = tag.value % 8;
    const no = Math.floor(tag.value / 8);
    let value = tag.end;
    let size: number | bigint;
    if (wire === VARINT) size = varint(bytes, value, end, path).end - value;
    else if (wire === FIXED64) size = 8;
    else if (wire === FIXED32) size = 4;
    else if (wire === BYTES) {
      const length = varint(bytes, value, end, path);
      value = length.end;
      size = length.value;
    } else {
      throw new WireError(
        at,
        path,
        `field ${no} has wire type ${wire} (${WIRE_NAMES[wire] ?? 'unknown'}), which CRIU never writes`,
      );
    }
    if (size > end - value) {
      throw new WireError(at, path, `field ${no} needs ${size} bytes, ${end - value} left in its message`);
    }
    const next = value + Number(size);
    yield { no, wire, start: at, value, end: next };
    at = next;
  }
}

const joinPath = (path: string, name: string) => (path === '' ? name : `${path}.${name}`);

/** Bytes being decoded, and how. */
interface WireInput {
  readonly bytes: Uint8Array;
  readonly text: Text;
  /** Whether messages get a `$raw` if they need one. */
  readonly raw: boolean;
  /** Values that it may still have. */
  readonly left: { values: number };
}

const allLeft = () => ({ values: MAX_VALUES });

/** Counts what is about to be built: memory grows with the number of values, not with their bytes. */
function count({ left }: WireInput, values: number, at: number, path: string): void {
  left.values -= values;
  if (left.values < 0) throw new WireError(at, path, 'more values than bpfimg takes in one entry');
}

/**
 * Decodes one message.
 * @param name message name in images/*.proto
 * @returns members in ascending field number, then `$raw` when they do not rebuild `bytes`
 * @throws WireError
 */
export function decodeMessage(name: string, bytes: Uint8Array, text: Text = 'utf8'): JsonObject {
  // Nearly always the members rebuild everything, including nested messages: one comparison shows that.
  // Only if they do not is each message compared separately.
  const object = decodeFields(name, { bytes, text, raw: false, left: allLeft() }, 0, bytes.length, '');
  if (rebuilds(name, object, bytes, text)) return object;
  return decode(name, { bytes, text, raw: true, left: allLeft() }, 0, bytes.length, '');
}

function decode(name: string, source: WireInput, start: number, end: number, path: string): JsonObject {
  const object = decodeFields(name, source, start, end, path);
  if (!source.raw) return object;
  const original = source.bytes.subarray(start, end);
  if (!rebuilds(name, object, original, source.text)) {
    count(source, 1, start, path);
    object.$raw = hex(original);
  }
  return object;
}

function rebuilds(name: string, object: JsonObject, original: Uint8Array, text: Text): boolean {
  try {
    return Buffer.compare(encodeMessage(name, object, text), original) === 0;
  } catch (error) {
    if (error instanceof PointerError) return false;
    throw error;
  }
}

function decodeFields(name: string, source: WireInput, start: number, end: number, path: string): JsonObject {
  const { bytes } = source;
  const { byNumber } = tableOf(name);
  count(source, VALUES_OF_WHOLE, start, path);
  const found = new Map<MessageField, Json>();
  /** Start and end of each piece of a message, which can only be decoded when all pieces are known. */
  const pieces = new Map<MessageField, number[]>();
  for (const record of wireRecords(bytes, start, end, path)) {
    const field = byNumber.get(record.no);
    if (field === undefined) continue;
    const wire = wireOf(field);
    const inner = joinPath(path, field.name);
    if (record.wire !== wire && !(field.label === 'repeated' && record.wire === BYTES)) {
      const names = WIRE_NAMES;
      const message = `wire type ${record.wire} (${names[record.wire]}), expected ${wire} (${names[wire]})`;
      throw new WireError(record.start, inner, message);
    }
    if (field.label === 'repeated') {
      const list = (found.get(field) ?? []) as Json[];
      if (list.length === 0) count(source, VALUES_OF_WHOLE, record.start, inner);
      if (record.wire === wire) list.push(decodeValue(field, source, record, inner));
      else unpack(field, source, record, inner, list);
      found.set(field, list);
    } else if (field.type === 'message') {
      const list = pieces.get(field) ?? [];
      list.push(record.value, record.end);
      pieces.set(field, list);
    } else {
      found.set(field, decodeValue(field, source, record, inner));
    }
  }
  const object: JsonObject = {};
  for (const field of messageFields(name)) {
    const list = pieces.get(field);
    const value = list ? decodePieces(field, source, list, joinPath(path, field.name)) : found.get(field);
    if (value !== undefined) object[field.name] = value;
    else if (field.label === 'required') {
      throw new WireError(start, path, `required field ${field.name} (${field.no}) is missing in ${name}`);
    }
  }
  return object;
}

/** Protobuf merges a message that comes in pieces, which is the same as decoding them joined. */
function decodePieces(field: MessageField, source: WireInput, list: readonly number[], path: string): JsonObject {
  const [start = 0, end = 0] = list;
  if (list.length === 2) return decode(field.of as string, source, start, end, path);
  const whole = new Wire();
  for (let i = 0; i < list.length; i += 2) whole.put(source.bytes.subarray(list[i], list[i + 1]));
  return decode(field.of as string, { ...source, bytes: whole.done() }, 0, whole.length, path);
}

/** Reads the values of a packed list. */
function unpack(field: MessageField, source: WireInput, record: WireRecord, path: string, values: Json[]): void {
  const { bytes } = source;
  const { no } = field;
  const wire = wireOf(field);
  for (let at = record.value; at < record.end; ) {
    const next = wire === VARINT ? varint(bytes, at, record.end, path).end : at + (wire === FIXED32 ? 4 : 8);
    if (next > record.end) throw new WireError(at, path, 'a packed list ends within a value');
    values.push(decodeValue(field, source, { no, wire, start: at, value: at, end: next }, path));
    at = next;
  }
}

function decodeValue(field: MessageField, source: WireInput, record: WireRecord, path: string): Json {
  const { bytes } = source;
  const { value: at, end } = record;
  if (field.type !== 'message') count(source, 1, record.start, path);
  const view = () => new DataView(bytes.buffer, bytes.byteOffset + at, end - at);
  switch (field.type) {
    case 'message':
      return decode(field.of as string, source, at, end, path);
    case 'string':
      return decodeText(bytes.subarray(at, end), textOf(field, source.text));
    case 'bytes':
      return field.show?.conv === 'unix_name'
        ? quotedPrintable(bytes.subarray(at, end))
        : base64Lines(bytes.subarray(at, end));
    case 'fixed32':
      return view().getUint32(0, true);
    case 'sfixed32':
      return view().getInt32(0, true);
    case 'fixed64':
      return exactInteger(view().getBigUint64(0, true));
    case 'sfixed64':
      return exactInteger(view().getBigInt64(0, true));
    case 'float':
    case 'double':
      throw new Error(`${path}: floating point is not used in CRIU's images`);
    default:
      break;
  }
  const raw = varint(bytes, at, end, path).value;
  switch (field.type) {
    case 'bool':
      return raw !== 0;
    case 'enum':
      return enumName(field.of as string, Number(BigInt.asIntN(32, BigInt(raw))));
    case 'uint64':
      return raw;
    case 'int64':
      return exactInteger(BigInt.asIntN(64, BigInt(raw)));
    case 'sint64':
    case 'sint32': {
      const zigzag = BigInt(raw);
      const value = exactInteger((zigzag >> 1n) ^ -(zigzag & 1n));
      if (field.type === 'sint32' && !inRange(value, -0x80000000, 0x7fffffff))
        throw tooWide(record, path, field, value);
      return value;
    }
    case 'int32': {
      const value = exactInteger(BigInt.asIntN(64, BigInt(raw)));
      if (!inRange(value, -0x80000000, 0x7fffffff)) throw tooWide(record, path, field, value);
      return value;
    }
    default:
      if (!inRange(raw, 0, 0xffffffff)) throw tooWide(record, path, field, raw);
      return raw;
  }
}

function tooWide(record: WireRecord, path: string, field: MessageField, value: number | bigint): WireError {
  return new WireError(record.start, path, `${value} does not fit ${field.type}`);
}

function inRange(value: number | bigint, low: number, high: number): value is number {
  return typeof value === 'number' && value >= low && value <= high;
}

/** How the strings of a field are read. */
function textOf({ show }: MessageField, text: Text): Text | 'path' {
  return show?.conv === 'path' || show?.conv === 'utf8' ? show.conv : text;
}

function decodeText(bytes: Uint8Array, text: Text | 'path'): string {
  if (text === 'path') return pathText(bytes);
  if (text === 'utf8') {
    try {
      return utf8.decode(bytes);
    } catch {
      // Not UTF-8: shown as one character for each byte, and kept exactly in `$raw`.
    }
  }
  return Buffer.from(bytes).toString('latin1');
}

function enumName(name: string, value: number): string | number {
  for (const [key, number] of Object.entries(enumOf(name))) if (number === value) return key;
  return value;
}

/** Total size of the fields in `raw` that message `name` does not have. */
export function unknownBytes(name: string, raw: Uint8Array): number {
  const { byNumber } = tableOf(name);
  let size = 0;
  for (const { no, start, end } of wireRecords(raw, 0, raw.length, '')) if (!byNumber.has(no)) size += end - start;
  return size;
}

// ---------------------------------------------------------------------------------------------------
// JSON to bytes

/**
 * The plain numbers of a message without a table, by field number.
 * @throws WireError
 */
export function varintFields(bytes: Uint8Array): ReadonlyMap<number, number> {
  const fields = new Map<number, number>();
  for (const { no, wire, value, end } of wireRecords(bytes, 0, bytes.length, '')) {
    if (wire === VARINT) fields.set(no, Number(varint(bytes, value, end, '').value));
  }
  return fields;
}

/**
 * The bytes of a field of a message that no table knows: a message itself, or text.
 * @throws WireError
 */
export function bytesField(bytes: Uint8Array, field: number): Uint8Array | undefined {
  for (const { no, wire, value, end } of wireRecords(bytes, 0, bytes.length, '')) {
    if (no === field && wire === BYTES) return bytes.subarray(value, end);
  }
  return undefined;
}

class Wire {
  #bytes = new Uint8Array(64);
  length = 0;

  #grow(size: number): void {
    if (this.length + size <= this.#bytes.length) return;
    const larger = new Uint8Array(Math.max(this.#bytes.length * 2, this.length + size));
    larger.set(this.#bytes);
    this.#bytes = larger;
  }

  put(bytes: Uint8Array): void {
    this.#grow(bytes.length);
    this.#bytes.set(bytes, this.length);
    this.length += bytes.length;
  }

  /** The shortest varint of an unsigned value below 2^64. */
  varint(value: number | bigint): void {
    this.#grow(10);
    if (typeof value === 'number') {
      while (value >= 0x80) {
        this.#bytes[this.length++] = (value % 128) | 0x80;
        value = Math.floor(value / 128);
      }
      this.#bytes[this.length++] = value;
      return;
    }
    while (value >= 0x80n) {
      this.#bytes[this.length++] = Number(value & 0x7fn) | 0x80;
      value >>= 7n;
    }
    this.#bytes[this.length++] = Number(value);
  }

  delimited(bytes: Uint8Array): void {
    this.varint(bytes.length);
    this.put(bytes);
  }

  done(): Uint8Array {
    return this.#bytes.subarray(0, this.length);
  }
}

/**
 * Encodes one message: fields in ascending number, required ones always written, as CRIU does.
 * A member that is not a field of the message is an error; so is a missing required field.
 * @throws PointerError
 */
export function encodeMessage(name: string, object: JsonObject, text: Text = 'utf8', pointer = ''): Uint8Array {
  const out = new Wire();
  putMessage(name, object, text, pointer, out);
  return out.done();
}

function putMessage(name: string, object: JsonObject, text: Text, pointer: string, out: Wire): void {
  const { names } = tableOf(name);
  for (const member of Object.keys(object)) {
    if (member !== '$raw' && !names.has(member)) {
      throw new PointerError(pointer + pointerPart(member), `unknown member, ${name} has no such field`);
    }
  }
  const parts = object.$raw === undefined ? undefined : new Map<MessageField, Uint8Array>();
  for (const field of messageFields(name)) {
    const value = object[field.name];
    if (value === undefined) {
      if (field.label === 'required') throw new PointerError(pointer, `required member "${field.name}" is missing`);
    } else if (parts === undefined) putField(field, value, text, `${pointer}/${field.name}`, out);
    else parts.set(field, encodeField(field, value, text, `${pointer}/${field.name}`));
  }
  if (parts !== undefined) mergeRaw(name, { raw: object.$raw as Json, text, pointer: `${pointer}/$raw` }, parts, out);
}

/**
 * Writes the original bytes, `$raw` at `pointer`, but with the edited fields replaced.
 * @param parts the bytes of every field as in the JSON now
 */
function mergeRaw(
  name: string,
  { raw, text, pointer }: { readonly raw: Json; readonly text: Text; readonly pointer: string },
  parts: ReadonlyMap<MessageField, Uint8Array>,
  out: Wire,
): void {
  const original = typeof raw === 'string' ? unhex(raw) : undefined;
  if (original === undefined) throw new PointerError(pointer, 'must be pairs of hex digits');
  let before: JsonObject;
  try {
    before = decodeFields(name, { bytes: original, text, raw: true, left: allLeft() }, 0, original.length, '');
  } catch (error) {
    if (error instanceof WireError) throw new PointerError(pointer, `is not a ${name}: ${error.message}`);
    throw error;
  }
  const { byNumber } = tableOf(name);
  const unchanged = new Map<MessageField, boolean>();
  for (const [field, part] of parts) {
    const was = before[field.name];
    unchanged.set(field, was !== undefined && Buffer.compare(encodeField(field, was, text, pointer), part) === 0);
  }
  const written = new Set<MessageField>();
  for (const record of wireRecords(original, 0, original.length, '')) {
    const field = byNumber.get(record.no);
    if (field === undefined || unchanged.get(field) === true) {
      out.put(original.subarray(record.start, record.end));
    } else if (!written.has(field)) {
      // Edited or removed: write the new bytes once, where the first old ones were.
      const part = parts.get(field);
      if (part) out.put(part);
    }
    if (field) written.add(field);
  }
  for (const [field, part] of parts) if (!written.has(field)) out.put(part);
}

function encodeField(field: MessageField, value: Json, text: Text, pointer: string): Uint8Array {
  const out = new Wire();
  putField(field, value, text, pointer, out);
  return out.done();
}

function putField(field: MessageField, value: Json, text: Text, pointer: string, out: Wire): void {
  if (field.label === 'repeated') {
    const list = parseShown(field, value);
    if (!Array.isArray(list)) throw new PointerError(pointer, `must be a list, got ${kindOf(value)}`);
    if (field.packed && list.length > 0) {
      const packed = new Wire();
      list.forEach((element, i) => {
        encodeValue(field, element, text, `${pointer}/${i}`, packed);
      });
      out.varint(field.no * 8 + BYTES);
      out.delimited(packed.done());
    } else {
      list.forEach((element, i) => {
        out.varint(field.no * 8 + wireOf(field));
        encodeValue(field, element, text, `${pointer}/${i}`, out);
      });
    }
  } else {
    out.varint(field.no * 8 + wireOf(field));
    encodeValue(field, value, text, pointer, out);
  }
}

function encodeValue(field: MessageField, value: Json, text: Text, pointer: string, out: Wire): void {
  switch (field.type) {
    case 'message':
      if (typeof value !== 'object' || value === null || Array.isArray(value)) {
        throw new PointerError(pointer, `must be an object, got ${kindOf(value)}`);
      }
      out.delimited(encodeMessage(field.of as string, value, text, pointer));
      return;
    case 'string':
      if (typeof value !== 'string') throw new PointerError(pointer, `must be text, got ${kindOf(value)}`);
      out.delimited(encodeText(value, textOf(field, text), pointer));
      return;
    case 'bytes': {
      const bytes =
        typeof value !== 'string'
          ? undefined
          : field.show?.conv === 'unix_name'
            ? unquotePrintable(value)
            : unbase64(value);
      if (bytes === undefined) {
        const form = field.show?.conv === 'unix_name' ? 'quoted-printable' : 'base64';
        throw new PointerError(pointer, `must be ${form} text, got ${kindOf(value)}`);
      }
      out.delimited(bytes);
      return;
    }
    case 'bool':
      if (typeof value !== 'boolean') throw new PointerError(pointer, `must be true or false, got ${kindOf(value)}`);
      out.varint(value ? 1 : 0);
      return;
    case 'enum': {
      const values = enumOf(field.of as string);
      const number = typeof value !== 'string' ? value : Object.hasOwn(values, value) ? values[value] : undefined;
      if (number === undefined) {
        const names = Object.keys(values).join(', ');
        throw new PointerError(pointer, `must be a number or one of ${names}, got ${kindOf(value)}`);
      }
      const int = integerOf(number, -0x80000000, 0x7fffffff, pointer);
      out.varint(int < 0 ? BigInt.asUintN(64, BigInt(int)) : int);
      return;
    }
    default:
      encodeInteger(field.type, parseShown(field, value), pointer, out);
  }
}

function encodeInteger(type: string, value: Json, pointer: string, out: Wire): void {
  const wide = type.endsWith('64');
  const unsigned = type.startsWith('u') || type.startsWith('f');
  const low = unsigned ? 0 : wide ? -(2n ** 63n) : -0x80000000;
  const high = wide ? (unsigned ? 2n ** 64n - 1n : 2n ** 63n - 1n) : unsigned ? 0xffffffff : 0x7fffffff;
  const int = integerOf(value, low, high, pointer);
  if (type.includes('fixed')) {
    const bytes = new Uint8Array(wide ? 8 : 4);
    const view = new DataView(bytes.buffer);
    if (wide) view.setBigUint64(0, BigInt.asUintN(64, BigInt(int)), true);
    else view.setUint32(0, Number(BigInt.asUintN(32, BigInt(int))), true);
    out.put(bytes);
  } else if (type.startsWith('s')) {
    const big = BigInt(int);
    out.varint((big << 1n) ^ (big >> 63n));
  } else {
    out.varint(int < 0 ? BigInt.asUintN(64, BigInt(int)) : int);
  }
}

/** A JSON integer (number, or text in decimal or 0x form, as crit accepts them) within a range. */
function integerOf(value: Json, low: number | bigint, high: number | bigint, pointer: string): number | bigint {
  let int: number | bigint | undefined;
  if (typeof value === 'bigint') int = value;
  else if (typeof value === 'number' && Number.isInteger(value)) int = value;
  else if (typeof value === 'string' && /^-?(0x[0-9a-fA-F]{1,16}|[0-9]{1,20})$/.test(value)) {
    int = exactInteger(value.startsWith('-') ? -BigInt(value.slice(1)) : BigInt(value));
  }
  if (int === undefined || int < low || int > high) {
    throw new PointerError(pointer, `must be a whole number from ${low} to ${high}, got ${kindOf(value)}`);
  }
  return int;
}

function encodeText(value: string, text: Text | 'path', pointer: string): Uint8Array {
  if (text === 'path') return pathBytes(value);
  if (text === 'latin1') {
    for (const char of value) {
      if (char > '\xff')
        throw new PointerError(pointer, 'has a character above U+00FF: each character is one byte here');
    }
    return Buffer.from(value, 'latin1');
  }
  return Buffer.from(value, 'utf8');
}

/** A short text for the value that was found, for a message. */
export function kindOf(value: Json | undefined): string {
  if (value === undefined) return 'nothing';
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'object') return 'an object';
  if (typeof value !== 'string') return String(value);
  const short = value.length > 40 ? `${value.slice(0, 40)}…` : value;
  return JSON.stringify(short);
}
