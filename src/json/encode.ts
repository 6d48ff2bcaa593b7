/**
 * Converts JSON to an image. It recognises the dialect from the text: the crit JSON of Python and of Go, our
 * `items`, and `ndjson`.
 *
 * Items and blobs stream. If the text has them in a different order than the image needs (after
 * `jq -S`, say), they wait in a temporary file.
 */

import { BpfimgError, PointerError } from '../errors.js';
import {
  BPFMAP_DATA,
  HEAD_COMMON,
  HEAD_SERVICE,
  type Head,
  type ImageKind,
  kindNames,
  kindOfName,
} from '../image/kinds.js';
import { messageFields } from '../image/message.js';
import { encodeMessage } from '../image/wire.js';
import { writeHead, writeMessage } from '../image/writer.js';
import type { Input } from '../io/input.js';
import type { Output } from '../io/output.js';
import { pause } from '../io/pause.js';
import { Spool } from '../io/spool.js';
import { copyInput } from '../io/stream.js';
import { isObject, type Json, type JsonObject } from '../value.js';
import { check } from './check.js';
import type { ItemForms } from './forms.js';
import { type ExpectedItems, ItemReader, type ReadItems } from './items.js';
import { JsonReader, type Origin, Sum } from './reader.js';
import type { DocumentTypes } from './types.js';

/** `format` member of a maps document. */
export const MAPS_FORMAT = 'bpfimg-maps/1';

/** Most bytes an entry's keys, or its values, can have: their totals are u32. */
export const MAX_REGION = 0xffffffff;

/** Reads the types in a document; the code for that is loaded only if there are any. */
export async function readTypes(reader: JsonReader): Promise<DocumentTypes> {
  const types = new (await import('./types.js')).DocumentTypes();
  try {
    await types.read(reader);
    return types;
  } catch (error) {
    types.close();
    throw error;
  }
}

/** Encodes one image from any of its JSON forms. */
export async function encodeImage(input: Input, out: Output): Promise<void> {
  const reader = new JsonReader(input);
  await expectJson(reader);
  const header: { kind?: ImageKind; head?: Head } = {};
  let types: DocumentTypes | undefined;
  let entries: { spool: Spool; origin: Origin } | undefined;
  let written = false;
  try {
    for await (const name of reader.members()) {
      await reader.peek();
      if (name === 'magic') header.kind = await readKind(reader);
      else if (name === 'head') {
        if (written) throw reader.bad('must come before "entries"');
        header.head = await readHead(reader);
      } else if (name === 'btf') {
        if (written) throw reader.bad('must come before "entries"');
        types = await readTypes(reader);
      } else if (name === 'entries') {
        if (header.kind) {
          writeHead(out, header.kind, header.head);
          await encodeEntries(reader, header.kind, types, out);
          written = true;
        } else {
          const spool = new Spool();
          entries = { spool, origin: reader.origin() };
          await reader.skip(spool);
        }
      } else if (name === 'format' || name === 'maps') {
        throw new BpfimgError('usage', 'it is a maps document, which describes a whole dump: encode it with -D DIR', {
          subject: reader.name,
        });
      } else {
        throw reader.bad('unknown member, an image has "magic", "head" and "entries"');
      }
    }
    const { kind, head } = header;
    if (kind === undefined) throw reader.bad('member "magic" is missing', 0);
    if (entries !== undefined) {
      writeHead(out, kind, head);
      await encodeEntries(new JsonReader(entries.spool.input(), entries.origin), kind, types, out);
    } else if (!written) {
      // An object without entries is the first line of ndjson.
      writeHead(out, kind, head);
      await encodeLines(reader, kind, types, out);
      return;
    }
  } finally {
    types?.close();
    entries?.spool.close();
  }
  await expectEnd(reader);
}

/** Throws if the input is not JSON, with a guess at what it is. */
export async function expectJson(reader: JsonReader): Promise<void> {
  const first = await reader.peek();
  const { bytes, at, end } = reader.cursor;
  const word = end - at >= 4 ? Buffer.from(bytes.subarray(at, at + 4)).readUInt32LE() : 0;
  if (word === HEAD_COMMON || word === HEAD_SERVICE) {
    throw reader.bad('expected JSON, found an image: `bpfimg decode` converts it to JSON');
  }
  if (first !== 0x7b) throw await reader.expected('a JSON object');
}

/** Throws if text follows the end of the document. */
export async function expectEnd(reader: JsonReader): Promise<void> {
  if ((await reader.peek()) !== -1) throw await reader.expected('the end of the document');
}

async function readKind(reader: JsonReader): Promise<ImageKind> {
  const start = reader.offset;
  const value = await reader.value();
  const kind = typeof value === 'string' ? kindOfName(value) : undefined;
  if (kind === undefined) {
    const found = typeof value === 'string' ? ` "${value.slice(0, 40)}"` : '';
    throw reader.bad(`unknown image kind${found}, expected one of ${kindNames().join(', ')}`, start);
  }
  return kind;
}

async function readHead(reader: JsonReader): Promise<Head> {
  const start = reader.offset;
  const value = await reader.value();
  if (value === 'none' || value === 'common' || value === 'service') return value;
  throw reader.bad('must be none, common or service', start);
}

async function encodeEntries(
  reader: JsonReader,
  kind: ImageKind,
  types: DocumentTypes | undefined,
  out: Output,
): Promise<void> {
  for await (const _ of reader.elements()) {
    await encodeEntry(reader, kind, types, out);
    await pause();
  }
}

/** ndjson after its first line: entries, each map's followed by lines with its items. */
async function encodeLines(
  reader: JsonReader,
  kind: ImageKind,
  types: DocumentTypes | undefined,
  out: Output,
): Promise<void> {
  while ((await reader.peek()) !== -1) {
    await encodeEntry(reader, kind, types, out, (items) => readItemLines(reader, items));
    await pause();
  }
}

/** Reads the item lines that come next. */
export async function readItemLines(reader: JsonReader, items: ItemReader): Promise<void> {
  while (await atItem(reader)) await items.some(false);
}

/** Whether the next object is an item and not the header of another map. */
async function atItem(reader: JsonReader): Promise<boolean> {
  if ((await reader.peek()) !== 0x7b) return false;
  const { cursor } = reader;
  // Looks for `{`, blanks, `"key"` or `"value"` without consuming anything.
  await cursor.fill(Math.min(cursor.bytes.length, 256));
  const start = Buffer.from(cursor.bytes.subarray(cursor.at, Math.min(cursor.end, cursor.at + 256))).toString('latin1');
  return /^\{\s*"(key|values?)"/.test(start);
}

/** Where an entry starts, for errors in it that are found only later. */
interface EntryStart {
  readonly offset: number;
  readonly pointer: string;
}

/**
 * Encodes the entry at the reader's position.
 * @param lines for ndjson: reads the items that follow the entry's header line
 */
async function encodeEntry(
  reader: JsonReader,
  kind: ImageKind,
  types: DocumentTypes | undefined,
  out: Output,
  lines?: (items: ItemReader) => Promise<void>,
): Promise<void> {
  await reader.peek();
  const start: EntryStart = { offset: reader.offset, pointer: reader.pointer };
  reader.sawBigint = false;
  const sum = new Sum();
  const header: JsonObject = Object.create(null) as JsonObject;
  let items: ItemReader | undefined;
  let aside: { spool: Spool; origin: Origin } | undefined;
  let blob: Spool | undefined;
  const expected = async () => ({ ...expectedItems(header), forms: await entryForms(reader, header, types, start) });
  /** Bytes of `extra` that went straight into the image. */
  let streamed: number | undefined;
  try {
    for await (const name of reader.members()) {
      await reader.peek();
      if (streamed !== undefined) throw reader.bad('must come before "extra"');
      if (name === 'extra' && kind.extra) {
        await refuseLeftOut(reader);
        if (kind === BPFMAP_DATA && items === undefined && isWhole(header)) {
          writeMessage(out, await encodeHeader(reader, kind, header, start));
          streamed = await reader.base64Into(out);
          expectExtra(reader, kind, header, streamed, start);
        } else {
          blob = new Spool();
          await reader.base64Into(blob);
        }
      } else if (name === 'items' && kind === BPFMAP_DATA && lines === undefined) {
        await refuseLeftOut(reader);
        if (types !== undefined && header.types === undefined) {
          // The members that explain them may come later (after `jq -S`), so their text waits in a file.
          aside = { spool: new Spool(), origin: reader.origin() };
          await reader.skip(aside.spool);
          continue;
        }
        items = new ItemReader(reader, await expected());
        await items.list();
      } else if (name === 'items' && kind === BPFMAP_DATA) {
        await refuseLeftOut(reader);
        throw reader.bad('in ndjson, items have their own lines, after the line of their map');
      } else {
        const field = isMember(kind, name) ? name : protoName(kind.message, name);
        if (field === undefined) throw reader.bad(`unknown member, ${kind.message} has no such field`);
        if (header[field] !== undefined) throw reader.bad(`member "${field}" appears twice`);
        header[field] = await reader.value(sum);
      }
    }
    if (streamed !== undefined) return;
    if (aside !== undefined) {
      items = new ItemReader(new JsonReader(aside.spool.input(), aside.origin), await expected());
      await items.list();
    }
    if (kind === BPFMAP_DATA && lines !== undefined && blob === undefined) {
      items = new ItemReader(reader, await expected());
      await lines(items);
    }
    if (items !== undefined) {
      if (blob !== undefined) throw reader.bad('an entry has either "items" or "extra"', start.offset);
      await encodeItems(reader, header, items, start, out);
      return;
    }
    // go-criu's crit leaves out an `extra` without bytes.
    if (kind === BPFMAP_DATA && blob === undefined && !isWhole(header)) {
      throw reader.bad('member "items" (in crit, "extra") is missing', start.offset);
    }
    const message = await encodeHeader(reader, kind, header, start);
    if (kind.extra) expectExtra(reader, kind, header, blob?.length ?? 0, start);
    writeMessage(out, message);
    if (blob) await copyInput(blob.input(), 0, blob.length, out);
  } finally {
    items?.close();
    aside?.spool.close();
    blob?.close();
  }
}

/** The forms of an entry's items, from the types that its header names. */
async function entryForms(
  reader: JsonReader,
  header: JsonObject,
  types: DocumentTypes | undefined,
  start: EntryStart,
): Promise<ItemForms | undefined> {
  if (header.types === undefined) return undefined;
  try {
    if (types === undefined) throw new PointerError('/types', 'the image has no "btf" before it');
    return await types.forms(header);
  } catch (error) {
    if (error instanceof PointerError) throw await reader.badAt(error, start.offset, start.pointer);
    throw error;
  }
}

/** Members that exist only in our own dialects. */
const ITEMS_MEMBERS: ReadonlySet<string> = new Set(['key_size', 'value_size', 'types']);

/** Whether an entry of `kind` may have a member `name`, in some dialect. */
function isMember(kind: ImageKind, name: string): boolean {
  if (name === '$raw' || (kind === BPFMAP_DATA && ITEMS_MEMBERS.has(name))) return true;
  return messageFields(kind.message).some((field) => field.name === name);
}

/** The field that go-criu's crit before v7.1 calls `name`. It uses protobuf's JSON names: `mapId` for `map_id`. */
function protoName(message: string, name: string): string | undefined {
  const inJson = (field: string) => field.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase());
  return messageFields(message).find((field) => inJson(field.name) === name)?.name;
}

/** A message's JSON with protobuf's JSON names replaced by field names. */
function withProtoNames(message: string, object: JsonObject): JsonObject {
  const named: JsonObject = {};
  for (const [member, value] of Object.entries(object)) {
    const name = messageFields(message).some((field) => field.name === member) ? member : protoName(message, member);
    const field = messageFields(message).find((one) => one.name === name);
    const inner = (one: Json): Json => (isObject(one) ? withProtoNames(field?.of as string, one) : one);
    // A duplicate is kept, for the check to find.
    const free = name !== undefined && (name === member || object[name] === undefined);
    named[free ? name : member] =
      field?.type !== 'message' ? value : Array.isArray(value) ? value.map(inner) : inner(value);
  }
  return named;
}

/** Whether all members that a data entry's message needs have been read. */
function isWhole(header: JsonObject): boolean {
  return ['map_id', 'keys_bytes', 'values_bytes', 'count'].every((name) => header[name] !== undefined);
}

function expectedItems(header: JsonObject): ExpectedItems {
  const size = (value: Json | undefined) =>
    typeof value === 'number' && Number.isInteger(value) && value >= 0 ? value : undefined;
  return { keySize: size(header.key_size), valueSize: size(header.value_size) };
}

function incompleteEntry(reader: JsonReader, offset: number): BpfimgError {
  return reader.bad('keys and values were left out (--nopl), there is nothing to encode', offset);
}

/** Throws at the text that --nopl writes instead of a payload. */
export async function refuseLeftOut(reader: JsonReader): Promise<void> {
  await reader.peek();
  const { cursor } = reader;
  await cursor.fill(6);
  if (Buffer.from(cursor.bytes.subarray(cursor.at, cursor.at + 6)).toString('latin1') === '"... <') {
    throw incompleteEntry(reader, reader.offset);
  }
}

async function encodeHeader(
  reader: JsonReader,
  kind: ImageKind,
  read: JsonObject,
  start: EntryStart,
): Promise<Uint8Array> {
  let header = read;
  const problem = await check(kind.message, header, reader.sawBigint);
  if (problem) header = withProtoNames(kind.message, header);
  if (problem && (await check(kind.message, header, reader.sawBigint))) {
    throw await reader.badAt(problem, start.offset, start.pointer);
  }
  try {
    return encodeMessage(kind.message, header);
  } catch (error) {
    if (error instanceof PointerError) throw await reader.badAt(error, start.offset, start.pointer);
    throw error;
  }
}

/** `extra` must have as many bytes as the message says, or the next entry would be read from a wrong offset. */
function expectExtra(reader: JsonReader, kind: ImageKind, header: JsonObject, got: number, start: EntryStart): void {
  const numbers = Object.fromEntries(Object.entries(header).map(([name, value]) => [name, Number(value)]));
  const expected = kind.extra?.(numbers) ?? 0;
  if (got === expected) return;
  const totals = kind === BPFMAP_DATA ? 'keys_bytes + values_bytes' : 'size';
  throw reader.bad(`"extra" has ${got} bytes, ${totals} says ${expected}`, start.offset, start.pointer);
}

async function encodeItems(
  reader: JsonReader,
  header: JsonObject,
  items: ReadItems,
  start: EntryStart,
  out: Output,
): Promise<void> {
  const problem = await check('items_header', header, reader.sawBigint);
  if (problem) throw await reader.badAt(problem, start.offset, start.pointer);
  for (const [member, size] of [
    ['key_size', items.keySize],
    ['value_size', items.valueSize],
  ] as const) {
    const said = header[member];
    if (items.count > 0 && said !== undefined && said !== size) {
      const odd = new PointerError(`/${member}`, `says ${String(said)}, but the items have ${size}`);
      throw await reader.badAt(odd, start.offset, start.pointer);
    }
  }
  const message: JsonObject = { map_id: header.map_id as number };
  let bytes: Uint8Array;
  try {
    Object.assign(message, itemTotals(items));
    if (header.$raw !== undefined) message.$raw = header.$raw;
    bytes = encodeMessage(BPFMAP_DATA.message, message);
  } catch (error) {
    if (error instanceof PointerError) throw await reader.badAt(error, start.offset, start.pointer);
    throw error;
  }
  await writeItemsEntry(bytes, items, out);
}

/**
 * Count and totals of a data entry, computed from its items.
 * @throws PointerError if an entry cannot have them
 */
export function itemTotals(items: ReadItems): JsonObject {
  const { keys, values, count } = items;
  for (const [what, size] of [
    ['keys', keys.length],
    ['values', values.length],
    ['items', count],
  ] as const) {
    if (size > MAX_REGION) {
      const has = `${size} ${what === 'items' ? what : `bytes of ${what}`}`;
      throw new PointerError('', `${has}, an entry holds at most ${MAX_REGION}`);
    }
  }
  if (count > 0 && keys.length + values.length === 0)
    throw new PointerError('', 'its items have neither key nor value bytes');
  return { keys_bytes: keys.length, values_bytes: values.length, count };
}

/** Writes a data entry: message, keys, values. */
export async function writeItemsEntry(message: Uint8Array, items: ReadItems, out: Output): Promise<void> {
  writeMessage(out, message);
  for (const part of [items.keys, items.values]) await copyInput(part.input(), 0, part.length, out);
}
