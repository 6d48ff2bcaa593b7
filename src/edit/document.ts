/** A source as a document that people edit, and their changes on its way back. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { cpuParts, hex, unhex, viewOf } from '../bytes.js';
import { diffDumps } from '../diff/dumps.js';
import type { ItemEdit } from '../dump/change.js';
import type { DocumentForms } from '../dump/document.js';
import { writeDocument } from '../dump/document.js';
import { encodeDocument } from '../dump/encode.js';
import type { Item } from '../dump/items.js';
import { type Dump, type DumpMap, openDump } from '../dump/model.js';
import { mapName } from '../dump/select.js';
import { BpfimgError } from '../errors.js';
import { ImageReader } from '../image/reader.js';
import type { Input } from '../io/input.js';
import { state } from '../io/journal.js';
import { type Output, openOutput } from '../io/output.js';
import { decodeImage } from '../json/decode.js';
import { encodeImage } from '../json/encode.js';
import type { ItemShape } from '../json/forms.js';
import { mapSubject } from '../kernel/flags.js';
import type { MapTypes } from '../maptype.js';
import { encodeIntoArchive, fileState } from '../source/pack.js';
import { privateFolder } from '../source/private.js';
import { mapsOf, openSource, type Source, type SourceHost } from '../source/source.js';
import type { Json } from '../value.js';
import { type ItemStore, openItems } from './items.js';

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
    if (source.form === 'document' || source.form === 'object') {
      const what = source.form === 'object' ? 'an object file' : 'a JSON document, which any editor can change';
      throw new BpfimgError('unsupported', `it is ${what}: expected a dump, an image or live maps`, {
        subject: source.name,
      });
    }
    if (source.kind === 'image') return new ImageEditing(source);
    const dump = await mapsOf(source);
    try {
      const maps = options.pick(dump);
      const forms = await options.forms(dump, maps, types);
      const given = { source, dump, maps, forms, types };
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

/** Refuses to replace what somebody else has changed since it was opened. */
function refuseChanged(name: string, before: string, now: string): void {
  if (before === now) return;
  throw new BpfimgError('conflict', 'somebody else has changed it in the meantime; nothing is written', {
    subject: name,
    code: CHANGED,
  });
}

/** The code of the error for a source that has changed: no edit of the document helps. */
export const CHANGED = 'changed-meanwhile';

class ImageEditing implements Editing {
  readonly name: string;
  readonly #before: string;

  constructor(readonly source: Source & { readonly kind: 'image' }) {
    this.name = source.name;
    this.#before = fileState(this.name);
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
      refuseChanged(this.name, this.#before, fileState(this.name));
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
  readonly source: Source & { readonly kind: 'dump' };
  readonly dump: Dump;
  readonly maps: readonly DumpMap[];
  readonly forms: DocumentForms | undefined;
  readonly types: MapTypes;
}

class DumpEditing implements Editing {
  readonly name: string;
  readonly #before: string;

  constructor(readonly given: GivenDump) {
    this.name = given.source.name;
    this.#before = this.#state();
  }

  #state(): string {
    const { form, files } = this.given.source;
    if (form === 'archive') return fileState(this.name);
    return form === 'folder' ? state(files.name) : '';
  }

  async write(out: Output): Promise<void> {
    const { dump, maps, types, forms } = this.given;
    await writeDocument(dump, maps, types, out, { lines: false, pretty: true, noPayload: false, forms });
    out.text('\n');
  }

  async apply(document: Input): Promise<Applied> {
    const { source, types } = this.given;
    refuseChanged(this.name, this.#before, this.#state());
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
        const subject = (map: DumpMap) => mapSubject(map.mapId, mapName(map) ?? '');
        if (b === undefined) continue;
        if (a === undefined) throw refused(subject(b), 'it is not among the maps that are edited');
        if (unknown !== undefined) throw refused(subject(a), unknown);
        const [attribute] = attributes;
        if (attribute !== undefined) throw refused(subject(a), `${attribute.name} of a live map cannot change`);
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
 * Puts the changes of one map, but for items that a program has changed since they were read.
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
    if (same(now[i], before)) edits.push({ key, value: after });
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

/** The bytes of a key or value as a document without types has it: in hex, or the id of a map. */
function bytesOf(json: Json, size: number): Uint8Array {
  const bytes = new Uint8Array(size);
  if (typeof json === 'string') bytes.set(unhex(json) as Uint8Array);
  else if (json !== null && typeof json === 'object' && !Array.isArray(json)) {
    if (typeof json.map_id === 'number') viewOf(bytes).setUint32(0, json.map_id, true);
    else bytes.set(unhex(String(json.$raw)) as Uint8Array);
  }
  return bytes;
}

function valueBytes({ value, values }: Item, shape: ItemShape): Uint8Array {
  if (values === undefined) return bytesOf(value, shape.valueSize);
  const { stride } = cpuParts(shape.valueSize, shape.perCpu);
  return Buffer.concat(values.map((one) => bytesOf(one, stride)));
}
