/**
 * Random messages of images/*.proto.
 *
 * A *model* is a message as plain values: numbers, bigints for 64 bits, bytes, enum numbers. From it come
 * the bytes (through protobufjs, the witness) and the JSON they should decode to.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import protobuf from 'protobufjs';
import { pathText } from '../../src/bytes.js';
import { quotedPrintable } from '../../src/image/display.js';
import { enumOf, type MessageField, messageFields } from '../../src/image/message.js';
import type { Json, JsonObject } from '../../src/value.js';

export type Value = number | bigint | boolean | string | Uint8Array | Model | Value[];
export interface Model {
  [name: string]: Value;
}

/** What of the messages to make. */
export interface Choice {
  /** Leaves out fields that this refuses, such as those an older crit does not know. */
  readonly fields?: (message: string, field: MessageField) => boolean;
  /** Which numbers of an enum may occur besides `any`; all numbers by default. */
  readonly enums?: (name: string) => readonly number[];
  /** Addresses have one word or four; else lists of any length. */
  readonly addresses?: boolean;
}

const u32 = fc.oneof(
  { weight: 3, arbitrary: fc.nat(20) },
  { weight: 1, arbitrary: fc.constantFrom(0x7f, 0x80, 0x3fff, 0x4000, 0x7fffffff, 0x80000000, 0xffffffff) },
  { weight: 2, arbitrary: fc.integer({ min: 0, max: 0xffffffff }) },
);
const i32 = fc.oneof(
  fc.constantFrom(0, -1, 1, -0x80000000, 0x7fffffff),
  fc.integer({ min: -0x80000000, max: 0x7fffffff }),
);
const u64 = fc.oneof(
  fc.bigInt({ min: 0n, max: 300n }),
  fc.constantFrom(2n ** 49n, 2n ** 53n - 1n, 2n ** 53n, 2n ** 53n + 1n, 2n ** 63n, 2n ** 64n - 1n),
  fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
);
/** ASCII, control characters, every other plane, and what JSON and shells like to trip over. */
const text = fc.oneof(
  fc.string({ maxLength: 20 }),
  fc.string({ unit: 'binary', maxLength: 12 }),
  fc.constantFrom('', '\x7f', '\u2028', '\ufeff', '"\\/\b\f\n\r\t', 'flüsse', '\u{1f41d}', '\0'),
);
/** Bytes that matter to quoted-printable, often. */
const name = fc.oneof(
  fc.uint8Array({ maxLength: 108 }),
  fc
    .array(fc.constantFrom(...Buffer.from(' \t\r\n=._-/ax~\0\x7f\x80\xff', 'latin1')), { maxLength: 120 })
    .map((bytes) => Uint8Array.from(bytes)),
  fc.integer({ min: 70, max: 160 }).map((size) => Buffer.alloc(size, 'x')),
);
/** Words of addresses: IPv4, and IPv6 with runs of zeroes for `::`. */
const address = fc.oneof(
  fc.tuple(u32),
  fc
    .array(fc.constantFrom(0, 0, 0, 1, 0xff, 0x8000, 0xffff), { minLength: 8, maxLength: 8 })
    // Addresses of IPv4 in IPv6 (::ffff:0:0/96) crit prints with dots from Python 3.13 on, without before.
    .filter((groups) => groups[5] !== 0xffff || groups.slice(0, 5).some((group) => group !== 0))
    .map((groups) => {
      const bytes = Buffer.alloc(16);
      for (const [i, group] of groups.entries()) bytes.writeUInt16BE(group, i * 2);
      return [0, 4, 8, 12].map((at) => bytes.readUInt32LE(at));
    }),
);

function fieldValue(field: MessageField, choice: Choice): fc.Arbitrary<Value> {
  switch (field.type) {
    case 'message':
      return messageOf(field.of as string, choice);
    case 'string':
      return text;
    case 'bytes':
      return field.show?.conv === 'unix_name' ? name : fc.uint8Array({ maxLength: 130 });
    case 'bool':
      return fc.boolean();
    case 'enum': {
      const known = choice.enums?.(field.of as string) ?? Object.values(enumOf(field.of as string));
      return choice.enums ? fc.constantFrom(...known) : fc.oneof(fc.constantFrom(...known), i32);
    }
    case 'uint32':
      return u32;
    case 'int32':
    case 'sint32':
      return i32;
    case 'uint64':
    case 'fixed64':
      return u64;
    default:
      throw new Error(`no values for fields of type ${field.type}`);
  }
}

/** Random models of message `message`. */
export function messageOf(message: string, choice: Choice = {}): fc.Arbitrary<Model> {
  const arbitraries: Record<string, fc.Arbitrary<Value>> = {};
  const required: string[] = [];
  for (const field of messageFields(message)) {
    if (choice.fields?.(message, field) === false) continue;
    const one = fieldValue(field, choice);
    if (field.label === 'required') required.push(field.name);
    // protobufjs writes nothing for an empty list, and so does everyone else.
    if (field.label !== 'repeated') arbitraries[field.name] = one;
    else if (field.show?.ipadd && choice.addresses) arbitraries[field.name] = address;
    else arbitraries[field.name] = fc.array(one, { minLength: 1, maxLength: 5 });
  }
  return fc.record(arbitraries, { requiredKeys: required }) as fc.Arbitrary<Model>;
}

/** A model as the JSON that its bytes decode to. */
export function jsonOf(message: string, model: Model): JsonObject {
  const object: JsonObject = {};
  for (const field of messageFields(message)) {
    const value = model[field.name];
    if (value === undefined) continue;
    object[field.name] = Array.isArray(value) ? value.map((one) => jsonValue(field, one)) : jsonValue(field, value);
  }
  return object;
}

function jsonValue(field: MessageField, value: Value): Json {
  if (field.type === 'message') return jsonOf(field.of as string, value as Model);
  if (field.type === 'bytes') {
    const bytes = Buffer.from(value as Uint8Array);
    if (field.show?.conv === 'unix_name') return quotedPrintable(bytes);
    return bytes.toString('base64').replace(/.{1,76}/g, '$&\n');
  }
  if (field.show?.conv === 'path') return pathText(Buffer.from(value as string));
  if (field.type === 'enum') {
    return Object.entries(enumOf(field.of as string)).find(([, number]) => number === value)?.[0] ?? (value as number);
  }
  return typeof value === 'bigint' && value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : (value as Json);
}

const images = fileURLToPath(new URL('../../../images/', import.meta.url));

/** images/*.proto as protobufjs reads them. */
const root = new protobuf.Root();
root.resolvePath = (_origin, target) =>
  target.startsWith('google/')
    ? fileURLToPath(new URL(target, import.meta.resolve('protobufjs/package.json')))
    : path.join(images, path.basename(target));
root.loadSync(
  fs.readdirSync(images).filter((file) => file.endsWith('.proto')),
  { keepCase: true },
);

/** Names of all messages in images/*.proto. */
export const allMessages: readonly string[] = root.nestedArray
  .filter((one) => one instanceof protobuf.Type && one.name !== 'CRIU_Opts')
  .map((one) => one.name);

/** A model's bytes, made by protobufjs. */
export function bytesOf(message: string, model: Model): Buffer {
  const type = root.lookupType(message);
  return Buffer.from(type.encode(forProtobufjs(model) as Record<string, unknown>).finish());
}

/** protobufjs takes wide integers as two halves; a bigint it would write as 0. */
function forProtobufjs(value: Value): unknown {
  if (typeof value === 'bigint')
    return { low: Number(value & 0xffffffffn), high: Number(value >> 32n), unsigned: true };
  if (Array.isArray(value)) return value.map(forProtobufjs);
  if (typeof value !== 'object' || value instanceof Uint8Array) return value;
  return Object.fromEntries(Object.entries(value).map(([key, member]) => [key, forProtobufjs(member)]));
}
