/** Makes a source a document that people edit, and writes their changes back. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { cpuParts, hex, viewOf } from '../bytes.js';
import { diffDumps } from '../diff/dumps.js';
import type { ItemEdit } from '../dump/change.js';
import type { DocumentForms } from '../dump/document.js';
import { writeDocument } from '../dump/document.js';
import { encodeDocument } from '../dump/encode.js';
import type { Item } from '../dump/items.js';
import { type Dump, type DumpMap, openDump } from '../dump/model.js';
import { subjectOf } from '../dump/select.js';
import { BpfimgError } from '../errors.js';
import { ImageReader } from '../image/reader.js';
import type { Input } from '../io/input.js';
import { type Output, openOutput } from '../io/output.js';
import { decodeImage } from '../json/decode.js';
import { encodeImage } from '../json/encode.js';
import type { ItemShape } from '../json/forms.js';
import { itemBytes } from '../json/items.js';
import { mapIdForm } from '../json/map-id.js';
import type { MapTypes } from '../maptype.js';
import { encodeIntoArchive } from '../source/pack.js';
import { privateFolder } from '../source/private.js';
import { type DumpSource, type ImageSource, mapsOf, openSource, type SourceHost } from '../source/source.js';
import type { Json } from '../value.js';
import { type ItemStore, openItems } from './items.js';
import { Writable } from './writable.js';

/** A source while it is edited. Close it. */
export interface Editing {
  readonly name: string;
  /** Writes the document, in a form for people. */
  write(out: Output): Promise<void>;
  /**
   * Makes the changes of an edited document; those of a live map one by one.
   * @returns what people should know
   * @throws BpfimgError for a wrong document, or if somebody else has changed the source; nothing has changed then
   */
  apply(document: Input): Promise<Applied>;
  close(): void;
}

/** What has become of an edited document. */
export interface Applied {
  readonly lines: readonly string[];
  /** Whether all of it was done. */
  readonly whole: boolean;
}

/** What the document shows. */
export interface EditingOptions {
  /** The maps to edit. */
  pick(dump: Dump): readonly DumpMap[];
  /** How their items look. */
  forms(dump: Dump, maps: readonly DumpMap[], types: MapTypes): Promise<DocumentForms | undefined>;
}

const DONE: Applied = { lines: [], whole: true };

/**
 * Opens `text` to edit it.
 * @throws BpfimgError for what cannot be changed
 */
export async function openEditing(text: string, host: SourceHost, options: EditingOptions): Promise<Editing> {
  const types = await host.types();
  const source = await openSource(text, host);
  try {
    const writable = new Writable(source);
    if (source.kind === 'image') return new ImageEditing(source, writable);
    const dump = await mapsOf(source);
    try {
      const maps = options.pick(dump);
      const forms = await options.forms(dump, maps, types);
      const given = { source, dump, maps, forms, types, writable };
      return source.form === 'live' ? new LiveEditing(given, host) : new DumpEditing(given);
    } catch (error) {
      dump.close();
      throw error;
    }
  } catch (error) {
    source.close();
    throw error;
  }
}

class ImageEditing implements Editing {
  readonly name: string;

  constructor(
    readonly source: ImageSource,
    readonly writable: Writable,
  ) {
    this.name = source.name;
  }

  async write(out: Output): Promise<void> {
    const reader = await ImageReader.open(this.source.input);
    await decodeImage(reader, out, { dialect: 'items', pretty: true, noPayload: false });
    out.text('\n');
  }

  async apply(document: Input): Promise<Applied> {
    const out = await openOutput(this.name);
    try {
      await encodeImage(document, out);
      this.writable.refuseChanged();
      await out.commit();
    } catch (error) {
      await out.abort();
      throw error;
    }
    return DONE;
  }

  close(): void {
    this.source.close();
  }
}

/** What is edited of a dump. */
interface GivenDump {
  readonly source: DumpSource;
  readonly dump: Dump;
  readonly maps: readonly DumpMap[];
  readonly forms: DocumentForms | undefined;
  readonly types: MapTypes;
  readonly writable: Writable;
}

class DumpEditing implements Editing {
  readonly name: string;

  constructor(readonly given: GivenDump) {
    this.name = given.source.name;
  }

  async write(out: Output): Promise<void> {
    const { dump, maps, types, forms } = this.given;
    await writeDocument(dump, maps, types, out, { lines: false, pretty: true, noPayload: false, forms });
    out.text('\n');
  }

  async apply(document: Input): Promise<Applied> {
    const { source, types, writable } = this.given;
    writable.refuseChanged();
    if (source.form === 'archive') await encodeIntoArchive(document, this.name, types);
    else await encodeDocument(document, source.files.name, true, types);
    return DONE;
  }

  close(): void {
    this.given.dump.close();
    this.given.source.close();
  }
}

/** The changes to one live map, and what the items were when they were read. */
interface LiveChanges {
  readonly map: DumpMap;
  readonly changes: readonly { readonly before: Item | undefined; readonly after: Item | undefined }[];
}

class LiveEditing extends DumpEditing {
  constructor(
    given: GivenDump,
    readonly host: SourceHost,
  ) {
    super(given);
  }

  override async apply(document: Input): Promise<Applied> {
    const lines: string[] = [];
    let whole = true;
    for (const one of await this.#changes(document)) {
      const items = await openItems(`id:${one.map.mapId}`, this.host, {
        write: true,
        pick: (dump) => dump.maps.find(({ mapId }) => mapId === one.map.mapId) as DumpMap,
        finder: async () => undefined,
      });
      try {
        const left = await put(items, one, lines);
        if (left > 0) whole = false;
      } finally {
        items.close();
      }
    }
    return { lines, whole };
  }

  /** What the document changes. Refuses what a live map cannot become before anything is written. */
  async #changes(document: Input): Promise<LiveChanges[]> {
    const { dump, types } = this.given;
    const folder = privateFolder();
    let edited: Dump | undefined;
    try {
      const target = path.join(folder.path, 'edited');
      await encodeDocument(document, target, false, types);
      // A document without maps makes no images.
      if (!fs.existsSync(target)) return [];
      edited = await openDump(target);
      const all: LiveChanges[] = [];
      for await (const { a, b, attributes, unknown, changes } of diffDumps(dump, edited, types)) {
        if (b === undefined) continue;
        if (a === undefined) throw refused(subjectOf(b), 'it is not among the maps that are edited');
        if (unknown !== undefined) throw refused(subjectOf(a), unknown);
        const [attribute] = attributes;
        if (attribute !== undefined) throw refused(subjectOf(a), `${attribute.name} of a live map cannot change`);
        const found = [];
        for await (const { a: before, b: after } of changes()) found.push({ before, after });
        all.push({ map: a, changes: found });
      }
      return all;
    } finally {
      edited?.close();
      folder.close();
    }
  }
}

const refused = (subject: string, what: string) => new BpfimgError('conflict', what, { subject });

/**
 * Makes the changes of one map, except to items that a program has changed since they were read.
 * @param lines receives what was done, and what was not
 * @returns how many items were left alone
 */
async function put(items: ItemStore, { changes }: LiveChanges, lines: string[]): Promise<number> {
  const { shape, subject } = items;
  const edits: ItemEdit[] = [];
  let left = 0;
  const all = changes.map(({ before, after }) => ({
    key: bytesOf(((after ?? before) as Item).key, shape.keySize),
    before: before && valueBytes(before, shape),
    after: after && valueBytes(after, shape),
  }));
  const now = await items.get(all.map(({ key }) => key));
  for (const [i, { key, before, after }] of all.entries()) {
    if (same(now[i], before)) edits.push({ key, before, value: after });
    else if (!same(now[i], after)) {
      left++;
      const is = now[i] === undefined ? 'it is gone' : `its value is ${hex(now[i])}`;
      lines.push(`${subject}: item ${hex(key)} has changed in the meantime and is left alone: ${is}`);
    }
  }
  await items.change(edits);
  lines.push(`${subject}: ${edits.length === 1 ? '1 item' : `${edits.length} items`} changed`);
  return left;
}

function same(a: Uint8Array | undefined, b: Uint8Array | undefined): boolean {
  return a === undefined || b === undefined ? a === b : Buffer.compare(a, b) === 0;
}

/** The bytes of a key or value as a document without types has it. */
function bytesOf(json: Json, size: number): Uint8Array {
  const bytes = itemBytes(json, size);
  if (bytes !== undefined) return bytes;
  const inner = new Uint8Array(size);
  mapIdForm.parse(json, viewOf(inner), 0);
  return inner;
}

function valueBytes({ value, values }: Item, { valueSize, perCpu }: ItemShape): Uint8Array {
  if (values === undefined) return bytesOf(value, valueSize);
  const { size, stride } = cpuParts(valueSize, perCpu);
  const bytes = new Uint8Array(valueSize);
  // With its padding, unless that is zero.
  for (const [cpu, one] of values.entries()) bytes.set(itemBytes(one, size) ?? bytesOf(one, stride), cpu * stride);
  return bytes;
}
