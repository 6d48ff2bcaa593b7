/**
 * A maps document back into a dump: a fresh one, or the BPF parts of a CRIU dump that stands there.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { BpfimgError } from '../errors.js';
import { BPFMAP_DATA, BPFMAP_FILE, BPFMAP_META, FILES, type Kind } from '../image/kinds.js';
import type { Json, JsonObject } from '../image/message.js';
import { ImageReader } from '../image/reader.js';
import { encodeMessage, ValueError } from '../image/wire.js';
import { writeHead, writeMessage } from '../image/writer.js';
import { Cursor, type Input, openInput } from '../io/input.js';
import { FolderOutput, type Output } from '../io/output.js';
import { pause } from '../io/pause.js';
import { Spool } from '../io/spool.js';
import { check } from '../json/check.js';
import { expectEnd, expectJson, itemTotals, MAPS_FORMAT, readItemLines, refuseLeftOut } from '../json/encode.js';
import { type ExpectedItems, ItemReader } from '../json/items.js';
import { JsonReader } from '../json/reader.js';
import type { MapTypes } from '../maptype.js';
import { AttributeError, fileMessage } from './attributes.js';
import { type Dump, type DumpMap, IMAGE, openDump } from './model.js';

/** One data entry of the document: its message, and where its keys and values wait. */
interface Body {
  readonly message: JsonObject;
  readonly parts: readonly Spool[];
}

/** One map of the document, its data still open. */
interface DocumentMap {
  readonly header: JsonObject;
  /** In image order: copies first, then what CRIU restores. */
  readonly bodies: Body[];
  /** The error for a member of this map, by its pointer from the map down. */
  bad(pointer: string, message: string): Promise<BpfimgError>;
}

/** Where the maps of a document go. */
interface Target {
  map(map: DocumentMap): Promise<void>;
  commit(): Promise<void>;
  abort(): Promise<void>;
}

/**
 * Encodes a maps document into `folder`.
 * @param force replace the BPF parts of a dump that stands there
 * @throws BpfimgError; the folder is then as it was
 */
export async function encodeDocument(input: Input, folder: string, force: boolean, types: MapTypes): Promise<void> {
  const target = await openTarget(folder, force, types);
  try {
    await new DocumentReader(input, types, target).read();
    await target.commit();
  } catch (error) {
    await target.abort();
    throw error;
  }
}

async function openTarget(folder: string, force: boolean, types: MapTypes): Promise<Target> {
  const names = fs.statSync(folder, { throwIfNoEntry: false })?.isDirectory() ? fs.readdirSync(folder) : [];
  const images = names.filter((name) => name.endsWith('.img'));
  if (images.length > 0 && !force) {
    throw new BpfimgError('conflict', `${folder}: it holds images already; --force replaces their BPF maps`);
  }
  if (names.length > 0 && images.length === 0) {
    throw new BpfimgError('conflict', `${folder}: not empty and no dump, expected a new or empty folder`);
  }
  if (names.includes(IMAGE.files)) return new ChangedDump(folder, await openDump(folder), types);
  return new FreshDump(folder, types);
}

// ---------------------------------------------------------------------------------------------------
// Reading the document

class DocumentReader {
  readonly #reader: JsonReader;
  readonly #seen = new Set<number>();

  constructor(
    input: Input,
    readonly types: MapTypes,
    readonly target: Target,
  ) {
    this.#reader = new JsonReader(input);
  }

  async read(): Promise<void> {
    const reader = this.#reader;
    await expectJson(reader);
    let format: Json | undefined;
    let maps = false;
    for await (const name of reader.members()) {
      await reader.peek();
      const start = reader.offset;
      if (name === 'format') {
        format = await reader.value();
        if (format !== MAPS_FORMAT) throw reader.bad(`must be "${MAPS_FORMAT}"`, start);
      } else if (name === 'maps') {
        maps = true;
        for await (const _ of reader.elements()) await this.#map(reader);
      } else if (name === 'magic' || name === 'entries') {
        throw new BpfimgError('usage', `${reader.name}: it is one image, -D takes a maps document: encode it with -o`);
      } else {
        throw reader.bad('unknown member, a maps document has "format" and "maps"', start);
      }
    }
    if (format === undefined) throw reader.bad('member "format" is missing', 0);
    if (!maps) await this.#lines();
    await expectEnd(reader);
  }

  /** ndjson: the lines behind the document's first. */
  async #lines(): Promise<void> {
    const reader = this.#reader;
    // A map's data is complete only when no further line of it follows.
    let waiting: { map: DocumentMap; last: Body | undefined } | undefined;
    const flush = async () => {
      if (waiting === undefined) return;
      const { map, last } = waiting;
      if (last) map.bodies.push(last);
      waiting = undefined;
      await this.#pass(map);
    };
    while ((await reader.peek()) !== -1) {
      const one = await this.#object(reader, async (items) => readItemLines(reader, items));
      const { copy } = one.map.header;
      if (copy === undefined) {
        await flush();
        waiting = { map: one.map, last: one.last };
      } else {
        if (waiting === undefined || one.last === undefined || waiting.map.header.map_id !== one.map.header.map_id) {
          throw await one.map.bad('/copy', 'follows the map it is a copy of');
        }
        waiting.map.bodies.push(one.last);
      }
    }
    await flush();
  }

  async #map(reader: JsonReader): Promise<void> {
    const { map, last } = await this.#object(reader);
    if (last) map.bodies.push(last);
    await this.#pass(map);
  }

  async #pass(map: DocumentMap): Promise<void> {
    try {
      const id = map.header.map_id as number;
      if (this.#seen.has(id)) throw await map.bad('/map_id', `map ${id} stands twice`);
      this.#seen.add(id);
      await this.target.map(map);
    } finally {
      close(map.bodies);
    }
    await pause();
  }

  /**
   * Reads one map (or one copy of its data).
   * @param lines ndjson: reads the items that follow
   */
  async #object(
    reader: JsonReader,
    lines?: (items: ItemReader) => Promise<void>,
  ): Promise<{ map: DocumentMap; last: Body | undefined }> {
    await reader.peek();
    const start = reader.offset;
    const path = [...reader.path];
    const header: JsonObject = Object.create(null) as JsonObject;
    const bodies: Body[] = [];
    let data: DataSource | undefined;
    reader.sawBigint = false;
    const bad = (pointer: string, message: string) => {
      // The reader has moved on when a target finds fault with a map.
      reader.path.splice(0, reader.path.length, ...path);
      return reader.badAt(message, start, pointer);
    };
    const map: DocumentMap = { header, bodies, bad };
    try {
      for await (const name of reader.members()) {
        await reader.peek();
        if ((name === 'items' && lines === undefined) || name === 'extra') {
          if (data) throw reader.bad('a map has either "items" or "extra"');
          data = await this.#data(reader, name, header);
        } else if (name === 'copies' && lines === undefined) {
          for await (const _ of reader.elements()) {
            const copy = await this.#copy(reader, header);
            bodies.push(copy);
          }
        } else {
          header[name] = await reader.value();
        }
      }
      const problem = await check('map_header', header, reader.sawBigint);
      if (problem) throw await bad(problem.pointer, problem.message);
      if (lines !== undefined && data === undefined && header.data !== false) {
        const items = new ItemReader(reader, this.#expected(header));
        data = { items, blob: undefined };
        await lines(items);
      }
      return { map, last: data && (await this.#finish(header, data, bad)) };
    } catch (error) {
      close(bodies);
      data?.items?.close();
      data?.blob?.close();
      throw error;
    }
  }

  async #copy(reader: JsonReader, header: JsonObject): Promise<Body> {
    const own: JsonObject = Object.create(null) as JsonObject;
    let data: DataSource | undefined;
    await reader.peek();
    const start = reader.offset;
    const inherited = () => ({ ...header, ...own });
    try {
      for await (const name of reader.members()) {
        await reader.peek();
        if (name === 'items' || name === 'extra') data = await this.#data(reader, name, inherited());
        else own[name] = await reader.value();
      }
      if (data === undefined) throw reader.bad('member "items" (or "extra") is missing', start);
      const { type, value_size, key_size, map_id } = header;
      const all = { map_id: map_id as number, ...own } as JsonObject;
      for (const [name, value] of Object.entries({ type, value_size, key_size })) {
        if (value !== undefined) all[name] = value;
      }
      return await this.#finish(all, data, (pointer, message) => reader.badAt(message, start, pointer));
    } catch (error) {
      data?.items?.close();
      data?.blob?.close();
      throw error;
    }
  }

  /** What the header says of the items behind it. */
  #expected(header: JsonObject): ExpectedItems {
    const size = (value: Json | undefined) => (typeof value === 'number' && value >= 0 ? value : undefined);
    const number = header.type === undefined ? undefined : this.types.parse(header.type as string | number);
    const keySize = size(header.data_key_size ?? header.key_size);
    const odd = size(header.data_value_size);
    if (odd !== undefined || number === undefined) return { keySize, valueSize: odd };
    const valueSize = size(header.value_size);
    return this.types.get(number).perCpu ? { keySize, perCpu: valueSize } : { keySize, valueSize };
  }

  /** Reads the items or the blob the reader stands at. */
  async #data(reader: JsonReader, name: string, header: JsonObject): Promise<DataSource> {
    await refuseLeftOut(reader);
    if (name === 'extra') {
      const blob = new Spool();
      await reader.base64Into(blob);
      return { items: undefined, blob };
    }
    if (header.value_size !== undefined || header.data_value_size !== undefined || header.type !== undefined) {
      const items = new ItemReader(reader, this.#expected(header));
      await items.list();
      return { items, blob: undefined };
    }
    // Items that stand before what explains them (`jq -S` sorts so): their text waits in a file.
    const text = new Spool();
    const origin = reader.origin();
    await reader.skip(text);
    const later = async (all: JsonObject): Promise<ItemReader> => {
      const items = new ItemReader(new JsonReader(text.input(), origin), this.#expected(all));
      try {
        await items.list();
        return items;
      } finally {
        text.close();
      }
    };
    return { items: undefined, blob: undefined, later };
  }

  /** Makes the data entry's message from the items, or from the totals beside a blob. */
  async #finish(
    header: JsonObject,
    data: DataSource,
    bad: (pointer: string, message: string) => Promise<BpfimgError>,
  ): Promise<Body> {
    const items = data.later ? await data.later(header) : data.items;
    const message: JsonObject = { map_id: header.map_id as number };
    if (header.$raw !== undefined) message.$raw = header.$raw;
    if (items !== undefined) {
      let problem: string | undefined;
      const totals = itemTotals(items, (text) => {
        problem = text;
        return new Error(text);
      });
      if (problem !== undefined) throw await bad('/items', problem);
      Object.assign(message, totals);
      return { message, parts: [items.keys, items.values] };
    }
    const { count, keys_bytes, values_bytes } = header;
    if (count === undefined || keys_bytes === undefined || values_bytes === undefined) {
      throw await bad('', '"extra" needs "count", "keys_bytes" and "values_bytes"');
    }
    const blob = data.blob as Spool;
    const total = Number(keys_bytes) + Number(values_bytes);
    if (blob.length !== total) {
      throw await bad('/extra', `has ${blob.length} bytes, keys_bytes + values_bytes says ${total}`);
    }
    Object.assign(message, { count, keys_bytes, values_bytes });
    return { message, parts: [blob] };
  }
}

interface DataSource {
  readonly items: ItemReader | undefined;
  readonly blob: Spool | undefined;
  /** Items whose text was put aside until the whole header is known. */
  readonly later?: (header: JsonObject) => Promise<ItemReader>;
}

function close(bodies: readonly Body[]): void {
  for (const body of bodies) for (const part of body.parts) part.close();
}

// ---------------------------------------------------------------------------------------------------
// Writing a dump

/** Encodes a message; what does not fit is news about `pointer` within the map. */
async function encoded(kind: Kind, message: JsonObject, map: DocumentMap, pointer: string): Promise<Uint8Array> {
  try {
    return encodeMessage(kind.message, message, 'latin1');
  } catch (error) {
    if (error instanceof ValueError) throw await map.bad(pointer + error.pointer, error.message);
    throw error;
  }
}

/** The message of one file of `map`, `file` being its member of the document's `files`. */
async function messageOf(
  before: JsonObject | undefined,
  id: number,
  map: DocumentMap,
  index: number,
  types: MapTypes,
): Promise<JsonObject> {
  const file = filesOf(map)[index] ?? {};
  try {
    return fileMessage(before, id, map.header, file, types);
  } catch (error) {
    if (!(error instanceof AttributeError)) throw error;
    const own = error.member !== '' && file[error.member.slice(1)] !== undefined;
    throw await map.bad(`${own ? `/files/${index}` : ''}${error.member}`, error.message);
  }
}

function filesOf(map: DocumentMap): JsonObject[] {
  return (map.header.files ?? []) as JsonObject[];
}

async function writeBody(body: Body, map: DocumentMap, out: Output): Promise<void> {
  writeMessage(out, await encoded(BPFMAP_DATA, body.message, map, ''));
  for (const part of body.parts) await copyInput(part.input(), 0, part.length, out);
}

async function copyInput(input: Input, from: number, size: number, out: Output): Promise<void> {
  const cursor = new Cursor(input, from, from + size);
  while ((await cursor.fill()) > 0) {
    out.write(cursor.bytes.subarray(cursor.at, cursor.end));
    cursor.at = cursor.end;
    await out.turn();
  }
}

/** A new dump of our own images; in place of such a dump when it stood there. */
class FreshDump implements Target {
  readonly #folder: FolderOutput;
  readonly #files: Output;
  readonly #data: Output;
  readonly #meta: Output;
  readonly #ids = new Set<number>();

  constructor(
    folder: string,
    readonly types: MapTypes,
  ) {
    this.#folder = new FolderOutput(folder);
    this.#files = this.#folder.file(IMAGE.bpfmapFile);
    this.#data = this.#folder.file(IMAGE.data);
    this.#meta = this.#folder.file(IMAGE.meta);
    writeHead(this.#files, BPFMAP_FILE);
    writeHead(this.#data, BPFMAP_DATA);
    writeHead(this.#meta, BPFMAP_META);
  }

  async map(map: DocumentMap): Promise<void> {
    const { header } = map;
    const holders: JsonObject[] = [];
    // Data without a file is kept as that; a map that says what it is gets a file to be restored from.
    const files = header.files === undefined && header.type !== undefined ? [{}] : filesOf(map);
    for (const [index, file] of files.entries()) {
      const id = (file.id as number | undefined) ?? this.#freeId();
      if (this.#ids.has(id)) throw await map.bad(`/files/${index}/id`, `file ${id} stands twice in the document`);
      this.#ids.add(id);
      const message = await messageOf(undefined, id, map, index, this.types);
      writeMessage(this.#files, await encoded(BPFMAP_FILE, message, map, ''));
      for (const { pid, fd, cloexec } of (file.fds ?? []) as JsonObject[]) {
        holders.push({ file_id: id, pid: pid as number, fd: fd as number, ...(cloexec ? { fd_flags: 1 } : {}) });
      }
    }
    const meta: JsonObject = { ...(header.meta as JsonObject | undefined), map_id: header.map_id as number };
    if (holders.length > 0) meta.holders = holders;
    writeMessage(this.#meta, await encoded(BPFMAP_META, meta, map, '/meta'));
    for (const body of map.bodies) await writeBody(body, map, this.#data);
  }

  #freeId(): number {
    let id = this.#ids.size + 1;
    while (this.#ids.has(id)) id++;
    return id;
  }

  commit(): Promise<void> {
    return this.#folder.commit();
  }

  abort(): Promise<void> {
    return this.#folder.abort();
  }
}

/** A data entry that waits in the store. */
interface Stored {
  readonly at: number;
  readonly size: number;
}

/**
 * A CRIU dump whose maps change. Entries keep their order and everything else its bytes; maps the
 * document does not mention stay as they are.
 */
class ChangedDump implements Target {
  /** New data entries, whole, in the order of the document. */
  readonly #store = new Spool();
  readonly #files = new Map<number, JsonObject>();
  /** New data by the map id that the dump has now. */
  readonly #data = new Map<number, Stored[]>();
  #output: FolderOutput | undefined;

  constructor(
    readonly folder: string,
    readonly dump: Dump,
    readonly types: MapTypes,
  ) {}

  async map(map: DocumentMap): Promise<void> {
    const here = await this.#here(map);
    for (const [index, file] of filesOf(map).entries()) {
      const before = here.files.find(({ message }) => message.id === file.id);
      if (before === undefined) {
        throw await map.bad(`/files/${index}/id`, `no open file ${String(file.id)} of this map in ${this.folder}`);
      }
      const fds = JSON.stringify(((file.fds ?? []) as JsonObject[]).map(({ pid, fd }) => [pid, fd]));
      if (file.fds !== undefined && fds !== JSON.stringify(before.holders.map(({ pid, fd }) => [pid, fd]))) {
        throw await map.bad(`/files/${index}/fds`, 'who holds a map stands in fdinfo-*.img, which is left alone');
      }
      const message = await messageOf(before.message, before.message.id, map, index, this.types);
      await encoded(BPFMAP_FILE, message, map, '');
      this.#files.set(before.message.id, message);
    }
    if (map.bodies.length > 0) this.#data.set(here.mapId, await this.#keep(map, here));
  }

  /** The dump's map that the document's is: by its open files, else by id. */
  async #here(map: DocumentMap): Promise<DumpMap> {
    const ids = new Set(filesOf(map).map((file) => file.id));
    const byFile = this.dump.maps.find((one) => one.files.some(({ message }) => ids.has(message.id)));
    const here = byFile ?? this.dump.maps.find((one) => one.mapId === map.header.map_id);
    if (here !== undefined) return here;
    throw await map.bad('/map_id', `no map ${String(map.header.map_id)} in ${this.folder}, and nothing there would hold it`);
  }

  /** Puts the map's data aside, as many entries as the dump has of it. */
  async #keep(map: DocumentMap, here: DumpMap): Promise<Stored[]> {
    const stored: Stored[] = [];
    for (const body of map.bodies) {
      const at = this.#store.length;
      await writeBody(body, map, this.#store);
      stored.push({ at, size: this.#store.length - at });
    }
    const entries = Math.max(1, here.data.length);
    if (stored.length > 1 && stored.length !== entries) {
      throw await map.bad('/copies', `${stored.length - 1} of them, ${this.folder} has ${entries} data entries of this map`);
    }
    return stored.length === 1 ? new Array<Stored>(entries).fill(stored[0] as Stored) : stored;
  }

  async commit(): Promise<void> {
    this.#output = new FolderOutput(this.folder);
    await this.#rewrite(IMAGE.files, FILES, 'bpf');
    await this.#rewrite(IMAGE.bpfmapFile, BPFMAP_FILE);
    await this.#rewriteData();
    await this.#output.commit();
    this.#end();
  }

  /** Copies an image of open files with the changed ones replaced. */
  async #rewrite(name: string, kind: Kind, member?: string): Promise<void> {
    if (!fs.existsSync(path.join(this.folder, name))) return;
    const input = await openInput(path.join(this.folder, name));
    try {
      const reader = await ImageReader.open(input, 'latin1');
      const out = (this.#output as FolderOutput).file(name);
      writeHead(out, kind, reader.head);
      for await (const { message } of reader.entries()) {
        const inner = (member === undefined ? message : message[member]) as JsonObject | undefined;
        const changed = inner && this.#files.get(inner.id as number);
        const entry = changed === undefined ? message : member === undefined ? changed : { ...message, [member]: changed };
        writeMessage(out, encodeMessage(kind.message, entry, 'latin1'));
        await out.turn();
      }
    } finally {
      input.close();
    }
  }

  async #rewriteData(): Promise<void> {
    const { data } = this.dump;
    if (data === undefined && this.#data.size === 0) return;
    const out = (this.#output as FolderOutput).file(IMAGE.data);
    const taken = new Map<number, number>();
    if (data === undefined) {
      writeHead(out, BPFMAP_DATA);
    } else {
      const reader = await ImageReader.open(data, 'latin1');
      writeHead(out, BPFMAP_DATA, reader.head);
      for await (const entry of reader.entries()) {
        const id = entry.message.map_id as number;
        const stored = this.#data.get(id);
        const turn = taken.get(id) ?? 0;
        taken.set(id, turn + 1);
        const fresh = stored?.[turn];
        if (fresh) await copyInput(this.#store.input(), fresh.at, fresh.size, out);
        else await copyInput(data, entry.offset, entry.extraAt + entry.extraSize - entry.offset, out);
      }
    }
    for (const [id, stored] of this.#data) {
      if (taken.has(id)) continue;
      for (const { at, size } of stored) await copyInput(this.#store.input(), at, size, out);
    }
  }

  async abort(): Promise<void> {
    await this.#output?.abort();
    this.#end();
  }

  #end(): void {
    this.#store.close();
    this.dump.close();
  }
}
