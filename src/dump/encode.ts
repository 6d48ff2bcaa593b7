/** Encodes a maps document into a dump: reads it map by map and passes each one to the destination. */
import { BpfimgError, PointerError } from '../errors.js';
import type { Input } from '../io/input.js';
import { pause } from '../io/pause.js';
import { Spool } from '../io/spool.js';
import { check } from '../json/check.js';
import {
  expectEnd,
  expectJson,
  itemTotals,
  MAPS_FORMAT,
  readItemLines,
  readTypes,
  refuseLeftOut,
} from '../json/encode.js';
import { type ExpectedItems, ItemReader } from '../json/items.js';
import { mapIdForm } from '../json/map-id.js';
import { JsonReader, type Origin, Sum } from '../json/reader.js';
import type { DocumentTypes } from '../json/types.js';
import type { MapTypes, TypeFacts } from '../maptype.js';
import type { Json, JsonObject } from '../value.js';
import { type Body, type DumpDestination, type MapToWrite, openTarget } from './destination.js';
import type { MapHeader } from './maps-document.js';

/**
 * Encodes a maps document into `folder`.
 * @param force replace the BPF parts of an existing dump
 * @throws BpfimgError; the folder is then unchanged
 */
export async function encodeDocument(input: Input, folder: string, force: boolean, types: MapTypes): Promise<void> {
  const target = await openTarget(folder, force, types);
  const reader = new DocumentReader(input, types, target);
  try {
    await reader.read();
    await target.commit();
  } catch (error) {
    await target.abort();
    throw error;
  } finally {
    reader.close();
  }
}

class DocumentReader {
  readonly #reader: JsonReader;
  readonly #seen = new Set<number>();
  /** The types that the document contains, once they have been read. */
  #btf: DocumentTypes | undefined;

  constructor(
    input: Input,
    readonly types: MapTypes,
    readonly target: DumpDestination,
  ) {
    this.#reader = new JsonReader(input);
  }

  close(): void {
    this.#btf?.close();
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
      } else if (name === 'btf') {
        if (maps) throw reader.bad('must come before "maps"', start);
        this.#btf = await readTypes(reader);
        for (const { message, at, size } of this.#btf.objects.values()) {
          await this.target.btf(message, this.#btf.blobs.input(), at, size);
        }
      } else if (name === 'maps') {
        maps = true;
        for await (const _ of reader.elements()) await this.#map(reader);
      } else if (name === 'magic' || name === 'entries') {
        throw new BpfimgError('usage', 'it is one image, -D takes a maps document: encode it with -o', {
          subject: reader.name,
        });
      } else {
        throw reader.bad('unknown member, a maps document has "format", "btf" and "maps"', start);
      }
    }
    if (format === undefined) throw reader.bad('member "format" is missing', 0);
    if (!maps) await this.#lines();
    await expectEnd(reader);
  }

  /** ndjson: the lines after the document's first. */
  async #lines(): Promise<void> {
    const reader = this.#reader;
    // A map's data is complete only if no further line of it follows.
    let waiting: { map: MapToWrite; last: Body | undefined } | undefined;
    const flush = async () => {
      if (waiting === undefined) return;
      const { map, last } = waiting;
      if (last) map.bodies.push(last);
      waiting = undefined;
      await this.#pass(map);
    };
    while ((await reader.peek()) !== -1) {
      const one = await this.#object(reader, async (items) => readItemLines(reader, items), waiting?.map.header);
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

  async #pass(map: MapToWrite): Promise<void> {
    try {
      const id = map.header.map_id;
      if (this.#seen.has(id)) throw await map.bad('/map_id', `map ${id} is listed twice`);
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
   * @param before ndjson: header of the previous map, which a copy of its data shares
   */
  async #object(
    reader: JsonReader,
    lines?: (items: ItemReader) => Promise<void>,
    before?: JsonObject,
  ): Promise<{ map: MapToWrite; last: Body | undefined }> {
    await reader.peek();
    const start = reader.offset;
    const path = [...reader.path];
    const header: JsonObject = Object.create(null) as JsonObject;
    const bodies: Body[] = [];
    let data: DataSource | undefined;
    let copies: SpooledText | undefined;
    reader.sawBigint = false;
    const sum = new Sum();
    const bad: Bad = (pointer, message) => {
      // The reader has moved on by the time the destination rejects a map.
      reader.path.splice(0, reader.path.length, ...path);
      return reader.badAt(new PointerError(pointer, message), start);
    };
    // Not used before the check below.
    const map: MapToWrite = { header: header as MapHeader, bodies, bad };
    try {
      for await (const name of reader.members()) {
        await reader.peek();
        if ((name === 'items' && lines === undefined) || name === 'extra') {
          if (data) throw reader.bad('a map has either "items" or "extra"');
          data = await this.#data(reader, name, header, bad);
        } else if (name === 'copies' && lines === undefined) {
          if (this.#explained(header)) await this.#copies(reader, header, bodies);
          else copies = await putAside(reader);
        } else {
          header[name] = await reader.value(sum);
        }
      }
      const problem = await check('map_header', header, reader.sawBigint);
      if (problem) throw await bad(problem.pointer, problem.text);
      if (header.types !== undefined) map.types = await this.#typesOf(header, bad);
      if (copies !== undefined) await this.#copies(new JsonReader(copies.text.input(), copies.origin), header, bodies);
      if (lines !== undefined && data === undefined && header.data !== false) {
        const shared = header.copy === undefined ? header : inherited(before, header);
        const items = new ItemReader(reader, await this.#expected(shared, bad));
        data = { items, blob: undefined };
        await lines(items);
      }
      return { map, last: data && (await this.#finish(header, data, bad)) };
    } catch (error) {
      close(bodies);
      data?.items?.close();
      data?.blob?.close();
      throw error;
    } finally {
      copies?.text.close();
    }
  }

  /** Whether the part of the header read so far is enough to parse the items. */
  #explained(header: JsonObject): boolean {
    if (this.#btf !== undefined) return header.types !== undefined;
    // Values of per-CPU maps and of maps of maps look different, except for values of an odd size.
    const { type, data_value_size } = header;
    return type !== undefined || (data_value_size !== undefined && data_value_size !== mapIdForm.size);
  }

  async #copies(reader: JsonReader, header: JsonObject, bodies: Body[]): Promise<void> {
    for await (const _ of reader.elements()) bodies.push(await this.#copy(reader, header));
  }

  async #copy(reader: JsonReader, header: JsonObject): Promise<Body> {
    const own: JsonObject = Object.create(null) as JsonObject;
    const sum = new Sum();
    let data: DataSource | undefined;
    await reader.peek();
    const start = reader.offset;
    const bad: Bad = (pointer, message) => reader.badAt(new PointerError(pointer, message), start);
    try {
      for await (const name of reader.members()) {
        await reader.peek();
        if (name === 'items' || name === 'extra') data = await this.#data(reader, name, inherited(header, own), bad);
        else own[name] = await reader.value(sum);
      }
      if (data === undefined) throw reader.bad('member "items" (or "extra") is missing', start);
      return await this.#finish(inherited(header, own), data, bad);
    } catch (error) {
      data?.items?.close();
      data?.blob?.close();
      throw error;
    }
  }

  /** The ids of the types that a map's header names. */
  async #typesOf(header: JsonObject, bad: Bad): Promise<TypeFacts> {
    try {
      const { btfId, key, value } = await this.#carried().resolve(header.types as Json);
      return { btf: btfId, key, value };
    } catch (error) {
      if (error instanceof PointerError) throw await bad(`/types${error.pointer}`, error.text);
      throw error;
    }
  }

  /** @throws PointerError if there are none */
  #carried(): DocumentTypes {
    if (this.#btf !== undefined) return this.#btf;
    throw new PointerError('', 'the document has no "btf" before its maps');
  }

  /** What the header says of the items after it. */
  async #expected(header: JsonObject, bad: Bad): Promise<ExpectedItems> {
    const sizes = this.#sizes(header);
    if (header.types === undefined) {
      const type = this.#type(header);
      return type !== undefined && this.types.get(type).inner ? { ...sizes, forms: { value: mapIdForm } } : sizes;
    }
    try {
      return { ...sizes, forms: await this.#carried().forms(header) };
    } catch (error) {
      if (error instanceof PointerError) throw await bad(error.pointer || '/types', error.text);
      throw error;
    }
  }

  /** The number of the map's type. Items may precede the check of the header, so an invalid type is ignored here. */
  #type({ type }: JsonObject): number | undefined {
    return typeof type === 'string' || typeof type === 'number' ? this.types.parse(type) : undefined;
  }

  #sizes(header: JsonObject): ExpectedItems {
    const size = (value: Json | undefined) => (typeof value === 'number' && value >= 0 ? value : undefined);
    const number = this.#type(header);
    const keySize = size(header.data_key_size ?? header.key_size);
    const odd = size(header.data_value_size);
    if (odd !== undefined || number === undefined) return { keySize, valueSize: odd };
    const valueSize = size(header.value_size);
    return this.types.get(number).perCpu ? { keySize, perCpu: valueSize } : { keySize, valueSize };
  }

  /** Reads the items or the blob at the reader's position. */
  async #data(reader: JsonReader, name: string, header: JsonObject, bad: Bad): Promise<DataSource> {
    await refuseLeftOut(reader);
    if (name === 'extra') {
      const blob = new Spool();
      await reader.base64Into(blob);
      return { items: undefined, blob };
    }
    if (this.#explained(header)) {
      const items = new ItemReader(reader, await this.#expected(header, bad));
      await items.list();
      return { items, blob: undefined };
    }
    // The items come before the members that explain them (as sorted by `jq -S`).
    const { text, origin } = await putAside(reader);
    const later = async (all: JsonObject): Promise<ItemReader> => {
      const items = new ItemReader(new JsonReader(text.input(), origin), await this.#expected(all, bad));
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
  async #finish(header: JsonObject, data: DataSource, bad: Bad): Promise<Body> {
    const items = data.later ? await data.later(header) : data.items;
    const message: JsonObject = { map_id: header.map_id as number };
    if (header.$raw !== undefined) message.$raw = header.$raw;
    if (items !== undefined) {
      try {
        Object.assign(message, itemTotals(items));
      } catch (error) {
        if (error instanceof PointerError) throw await bad('/items', error.text);
        throw error;
      }
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

/** Makes the error for a member of a map, given its pointer within the map. */
type Bad = (pointer: string, message: string) => Promise<BpfimgError>;

/** Members of a map that also apply to the items of its copies. */
const SHARED = ['map_id', 'type', 'value_size', 'key_size', 'types'] as const;

/** The header of a copy of a map's data, with the members it shares with the map. */
function inherited(map: JsonObject | undefined, own: JsonObject): JsonObject {
  const all: JsonObject = { ...own };
  for (const name of SHARED) {
    const value = map?.[name];
    if (value !== undefined) all[name] ??= value;
  }
  return all;
}

/** Text of a document that is kept in a file. */
interface SpooledText {
  readonly text: Spool;
  readonly origin: Origin;
}

/** Puts the next value aside. */
async function putAside(reader: JsonReader): Promise<SpooledText> {
  await reader.peek();
  const aside = { text: new Spool(), origin: reader.origin() };
  await reader.skip(aside.text);
  return aside;
}

interface DataSource {
  readonly items: ItemReader | undefined;
  readonly blob: Spool | undefined;
  /** Items whose text is kept aside until the whole header is known. */
  readonly later?: (header: JsonObject) => Promise<ItemReader>;
}

function close(bodies: readonly Body[]): void {
  for (const body of bodies) for (const part of body.parts) part.close();
}
