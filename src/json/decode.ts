/** An image as JSON: the dialects `items`, `crit` and `ndjson`. */

import { BASE64_LINE, BASE64_LINE_TEXT, base64Lines, putBase64Lines } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import { prettyMessage } from '../image/display.js';
import { BPFMAP_DATA, type ImageKind } from '../image/kinds.js';
import { type Entry, type ImageReader, truncated } from '../image/reader.js';
import type { BpfmapDataEntry } from '../image/schema.gen.js';
import type { Cursor, Input } from '../io/input.js';
import type { Output } from '../io/output.js';
import { pause } from '../io/pause.js';
import type { JsonObject } from '../value.js';
import { type ItemShape, itemShape, type MapForms } from './forms.js';
import { type DataEntry, ITEM_COMPACT, ItemCursors, itemIndented, writeItems } from './items.js';
import { COMPACT, PYTHON, PYTHON_PRETTY, print, printTo, type Style } from './print.js';

/** A JSON form of an image: ours, Python crit's, or one value a line (docs/json.md). */
export type Dialect = 'items' | 'crit' | 'ndjson';

/** How an image is printed as JSON. */
export interface DecodeOptions {
  readonly dialect: Dialect;
  /** Indent; show flags, addresses and hex fields as crit's `--pretty` does. */
  readonly pretty: boolean;
  /** Leave out keys and values (crit's `--nopl`) and show only their size. */
  readonly noPayload: boolean;
  /** Which entries of a BPFMAP_DATA image to show, by map id; all when absent. */
  readonly maps?: ReadonlySet<number>;
  /** How to show items other than as plain hex; for BPFMAP_DATA in our own dialects. */
  readonly forms?: FormSource;
}

/** A BTF object for a document's `btf`. */
export interface DocumentBtfObject {
  /** As in a bpfmap_btf_entry; `size` is ignored. */
  readonly message: JsonObject;
  read(): Promise<Uint8Array>;
}

/** How to show items other than as plain hex. */
export interface FormSource {
  /** The BTF objects that the forms of these maps need. */
  readonly objects: readonly DocumentBtfObject[];
  of(mapId: number, keySize: number, valueSize: number): MapForms | undefined;
}

/** Bytes of a blob to write at once: a multiple of 3, for whole groups of base64. */
const BLOB_PART = 48 * 1024;

/**
 * Writes a document's `btf`: a list with a line for each object.
 * @param lines the line start of an object, and of the closing bracket
 */
export async function writeBtf(
  objects: readonly DocumentBtfObject[],
  out: Output,
  style: Style,
  [lineStart, last]: readonly [string, string],
): Promise<void> {
  out.text(`"btf"${style.colon}[`);
  for (const [i, { message, read }] of objects.entries()) {
    const { size: _, ...members } = message;
    const { indent, ...line } = style;
    const text = print({ ...members, blob: '' }, { ...line, comma: indent === undefined ? style.comma : ', ' });
    out.text(`${i === 0 ? '' : style.comma.trimEnd()}${lineStart}${text.slice(0, -2)}`);
    const blob = Buffer.from(await read());
    for (let at = 0; at < blob.length; at += BLOB_PART) {
      out.text(blob.toString('base64', at, Math.min(at + BLOB_PART, blob.length)));
      await out.turn();
    }
    out.text('"}');
  }
  out.text(`${last}]`);
}

/** crit's text for how much was left out: `... <7.8KB>`. */
export function leftOutText(size: number): string {
  let value = size;
  for (const unit of ['', 'K', 'M', 'G', 'T', 'P', 'E', 'Z']) {
    if (value < 1024) return `... <${Number.isInteger(value) ? value : value.toFixed(1)}${unit}B>`;
    value /= 1024;
  }
  return `... <${value.toFixed(1)}YB>`;
}

/** The members of an image that come before its entries. */
export function imageHeader(reader: { kind: ImageKind; head: string }): JsonObject {
  // crit has no member for an unusual head (v1.0 images); without it the bytes could not
  // be rebuilt.
  const { kind, head } = reader;
  return head === kind.head ? { magic: kind.name } : { magic: kind.name, head };
}

/** Writes the image as JSON. Ends with a line end, except where crit's output has none. */
export async function decodeImage(reader: ImageReader, out: Output, options: DecodeOptions): Promise<void> {
  if (options.dialect === 'ndjson') return decodeLines(reader, out, options);
  const asItems = options.dialect === 'items' && reader.kind === BPFMAP_DATA;
  const { pretty } = options;
  const python = pretty ? PYTHON_PRETTY : PYTHON;
  const style: Style = options.dialect === 'crit' ? python : asItems && !pretty ? COMPACT : { ...python, wide: 'text' };
  const [outer, inner] = pretty ? ['\n    ', '\n        '] : ['', asItems ? '\n  ' : ''];
  const header = Object.entries(imageHeader(reader)).map(
    ([name, value]) => `${outer}"${name}"${style.colon}${print(value, style)}`,
  );
  out.text(`{${header.join(style.comma)}${style.comma}${outer}`);
  const objects = asItems ? (options.forms?.objects ?? []) : [];
  if (objects.length > 0) {
    await writeBtf(objects, out, style, pretty ? [inner, outer] : [inner, '']);
    out.text(style.comma + outer);
  }
  out.text(`"entries"${style.colon}[`);
  let first = true;
  for await (const entry of chosenEntries(reader, options)) {
    out.text(first ? inner : style.comma + inner);
    first = false;
    const data = asItems ? dataEntry(reader, entry) : undefined;
    if (data !== undefined) await printDataEntry(reader, data, out, options);
    else await writeCritEntry(reader, entry, out, options, { style, level: pretty ? 2 : 0 });
  }
  if (!first && pretty) out.text(outer);
  out.text(`]${pretty ? '\n' : ''}}`);
}

/** `entry` as a data entry if the image is bpfmap-data; else undefined. */
function dataEntry(reader: ImageReader, entry: Entry): DataEntry | undefined {
  // Decoding has checked its message.
  return reader.kind === BPFMAP_DATA ? (entry as DataEntry) : undefined;
}

async function* chosenEntries(reader: ImageReader, options: DecodeOptions): AsyncGenerator<Entry> {
  const wanted = new Set(options.maps);
  for await (const entry of reader.entries()) {
    const id = Number(entry.message.map_id);
    wanted.delete(id);
    if (options.maps === undefined || options.maps.has(id)) yield entry;
    await pause();
  }
  const [missing] = wanted;
  if (missing !== undefined)
    throw new BpfimgError('notFound', `no map ${missing} in it`, { subject: reader.input.name });
}

/** One entry as crit prints it: the message's members, then `extra` for kinds that have one. */
async function writeCritEntry(
  reader: ImageReader,
  entry: Entry,
  out: Output,
  options: DecodeOptions,
  { style, level }: { readonly style: Style; readonly level: number },
): Promise<void> {
  const { kind } = reader;
  const message = options.pretty ? prettyMessage(kind.message, entry.message) : entry.message;
  if (kind.extra === undefined) {
    printTo(message, style, (part) => out.text(part), level);
    return;
  }
  const text = print({ ...message, extra: options.noPayload ? leftOutText(entry.extraSize) : '' }, style, level);
  if (options.noPayload) {
    out.text(text);
    return;
  }
  const gap = text.lastIndexOf('""') + 1;
  out.text(text.slice(0, gap));
  await writeBase64(reader.input, reader.cursor, entry, out);
  out.text(text.slice(gap));
}

/**
 * Streams an entry's extra as base64 with `\n` escapes after each line of 76 and at the end.
 * @param cursor positioned at the extra
 */
export async function writeBase64(input: Input, cursor: Cursor, entry: Entry, out: Output): Promise<void> {
  let left = entry.extraSize;
  while (left > 0) {
    const ready = Math.min(left, await cursor.fill(Math.min(left, BASE64_LINE)));
    if (ready < Math.min(left, BASE64_LINE)) throw truncated(input, entry, entry.extraSize - left + ready);
    const whole = Math.floor(ready / BASE64_LINE);
    for (let lines = whole; lines > 0; ) {
      out.room(BASE64_LINE_TEXT);
      const part = Math.min(lines, Math.floor((out.bytes.length - out.at) / BASE64_LINE_TEXT));
      out.at = putBase64Lines(cursor.view, cursor.at, part, out.view, out.at);
      cursor.at += part * BASE64_LINE;
      lines -= part;
    }
    left -= whole * BASE64_LINE;
    if (left < BASE64_LINE && left > 0 && cursor.ready >= left) {
      const last = base64Lines(cursor.bytes.subarray(cursor.at, cursor.at + left));
      out.text(last.replaceAll('\n', '\\n'));
      cursor.at += left;
      left = 0;
    }
    await out.turn();
  }
}

/** The members of a data entry in our own dialects, without its items. */
function itemsHeader(message: BpfmapDataEntry, keySize: number, valueSize: number): JsonObject {
  const { map_id, count, $raw } = message;
  return {
    map_id,
    ...(count === 0 ? {} : { key_size: keySize, value_size: valueSize }),
    ...($raw === undefined ? {} : { $raw }),
  };
}

/** The header of a data entry's items, and their forms. */
function formed(
  message: BpfmapDataEntry,
  shape: ItemShape,
  options: DecodeOptions,
): { header: JsonObject; forms: MapForms | undefined } {
  const header = itemsHeader(message, shape.keySize, shape.valueSize);
  const empty = message.count === 0;
  const forms = empty ? undefined : options.forms?.of(message.map_id, shape.keySize, shape.valueSize);
  return { header: forms === undefined ? header : { ...header, types: forms.types }, forms };
}

/** A data entry with its items, or with crit's `extra` if its totals do not divide into equal items. */
async function printDataEntry(
  reader: ImageReader,
  entry: DataEntry,
  out: Output,
  options: DecodeOptions,
): Promise<void> {
  const { pretty } = options;
  const { count, keys_bytes, values_bytes } = entry.message;
  const shape = itemShape(count, keys_bytes, values_bytes);
  const style: Style = pretty ? { ...PYTHON_PRETTY, wide: 'text' } : COMPACT;
  const level = pretty ? 2 : 0;
  if (shape === undefined) return writeCritEntry(reader, entry, out, { ...options, pretty: false }, { style, level });
  const { header, forms } = formed(entry.message, shape, options);
  if (options.noPayload) {
    out.text(print({ ...header, items: leftOutText(entry.extraSize) }, style, level));
    return;
  }
  const text = print({ ...header, items: [] }, style, level);
  const gap = text.lastIndexOf('[]') + 1;
  out.text(text.slice(0, gap));
  if (count > 0) {
    const lineStart = pretty ? '\n                ' : '\n    ';
    out.text(lineStart);
    const cursors = await ItemCursors.open(reader, entry);
    try {
      const items = pretty ? itemIndented(4) : ITEM_COMPACT;
      await writeItems(cursors, count, { shape, style: items, separator: `,${lineStart}`, forms }, out);
    } finally {
      cursors.close();
    }
    if (pretty) out.text('\n            ');
  }
  out.text(text.slice(gap));
}

/** One value per line: the image, then each entry; each item of a map has its own line after the map's. */
async function decodeLines(reader: ImageReader, out: Output, options: DecodeOptions): Promise<void> {
  const text = print(imageHeader(reader), COMPACT);
  const objects = reader.kind === BPFMAP_DATA ? (options.forms?.objects ?? []) : [];
  if (objects.length === 0) out.text(text);
  else {
    out.text(`${text.slice(0, -1)},`);
    await writeBtf(objects, out, COMPACT, ['', '']);
    out.text('}');
  }
  out.text('\n');
  for await (const entry of chosenEntries(reader, options)) {
    const data = dataEntry(reader, entry);
    const { count = 0, keys_bytes = 0, values_bytes = 0 } = data?.message ?? {};
    const shape = data && itemShape(count, keys_bytes, values_bytes);
    if (data === undefined || shape === undefined) {
      await writeCritEntry(reader, entry, out, { ...options, pretty: false }, { style: COMPACT, level: 0 });
    } else if (options.noPayload) {
      const { header } = formed(data.message, shape, options);
      out.text(print({ ...header, items: leftOutText(entry.extraSize) }, COMPACT));
    } else {
      const { header, forms } = formed(data.message, shape, options);
      out.text(print(header, COMPACT));
      if (count > 0) {
        out.text('\n');
        const cursors = await ItemCursors.open(reader, data);
        try {
          await writeItems(cursors, count, { shape, style: ITEM_COMPACT, separator: '\n', forms }, out);
        } finally {
          cursors.close();
        }
      }
    }
    out.text('\n');
  }
}
