/** A maps document back into a dump: read map by map, each passed on to the dump that takes it. */
import { BpfimgError } from '../errors.js';
import type { Json, JsonObject } from '../image/message.js';
import type { Input } from '../io/input.js';
import { pause } from '../io/pause.js';
import { Spool } from '../io/spool.js';
import { check } from '../json/check.js';
import { expectEnd, expectJson, itemTotals, MAPS_FORMAT, readItemLines, refuseLeftOut } from '../json/encode.js';
import { type ExpectedItems, ItemReader } from '../json/items.js';
import { JsonReader } from '../json/reader.js';
import type { MapTypes } from '../maptype.js';
import { type Body, type DocumentMap, openTarget, type Target } from './target.js';

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
