/** An image as JSON: the dialects `items`, `crit` and `ndjson`. */
import { BASE64_LINE, BASE64_LINE_TEXT, base64Lines, putBase64Lines } from '../bytes.js';
import { prettyMessage } from '../image/display.js';
import { BPFMAP_DATA, type Kind } from '../image/kinds.js';
import type { JsonObject } from '../image/message.js';
import { type Entry, type ImageReader, truncated } from '../image/reader.js';
import type { Cursor, Input } from '../io/input.js';
import type { Output } from '../io/output.js';
import { pause } from '../io/pause.js';
import { ITEM_COMPACT, ItemCursors, itemIndented, itemShape, writeItems } from './items.js';
import { COMPACT, PYTHON, PYTHON_PRETTY, print, type Style } from './print.js';

export type Dialect = 'items' | 'crit' | 'ndjson';

export interface DecodeOptions {
  readonly dialect: Dialect;
  /** Indent; show flags, addresses and hex fields as crit's `--pretty` does. */
  readonly pretty: boolean;
  /** Leave out keys and values (crit's `--nopl`): the size stands in their place. */
  readonly noPayload: boolean;
  /** Which entries of a BPFMAP_DATA image to show, by map id; all when absent. */
  readonly maps?: ReadonlySet<number>;
}

/** crit's way to say how much was left out: `... <7.8KB>`. */
export function leftOut(size: number): string {
  let value = size;
  for (const unit of ['', 'K', 'M', 'G', 'T', 'P', 'E', 'Z']) {
    if (value < 1024) return `... <${Number.isInteger(value) ? value : value.toFixed(1)}${unit}B>`;
    value /= 1024;
  }
  return `... <${value.toFixed(1)}YB>`;
}

/** The members of an image that stand before its entries. */
export function imageHeader(reader: { kind: Kind; head: string }): JsonObject {
  // crit has no word for a head that is not the usual one (v1.0 images); without it the bytes could not
  // be rebuilt.
  const { kind, head } = reader;
  return head === kind.head ? { magic: kind.name } : { magic: kind.name, head };
}

/** Writes the image as JSON. Ends with a line end, except where crit's output has none. */
export async function decodeImage(reader: ImageReader, out: Output, options: DecodeOptions): Promise<void> {
  if (options.dialect === 'ndjson') return decodeLines(reader, out, options);
  const asItems = options.dialect === 'items' && reader.kind === BPFMAP_DATA;
  const { pretty } = options;
  const style = pretty ? PYTHON_PRETTY : asItems ? COMPACT : PYTHON;
  const [outer, inner] = pretty ? ['\n    ', '\n        '] : ['', asItems ? '\n  ' : ''];
  const header = Object.entries(imageHeader(reader)).map(
    ([name, value]) => `${outer}"${name}"${style.colon}${print(value, style)}`,
  );
  out.text(`{${header.join(style.comma)}${style.comma}${outer}"entries"${style.colon}[`);
  let first = true;
  for await (const entry of chosen(reader, options)) {
    out.text(first ? inner : style.comma + inner);
    first = false;
    if (asItems) await writeItemsEntry(reader, entry, out, options);
    else await writeCritEntry(reader, entry, out, options, style, pretty ? 2 : 0);
  }
  if (!first && pretty) out.text(outer);
  out.text(`]${pretty ? '\n' : ''}}`);
}

async function* chosen(reader: ImageReader, options: DecodeOptions): AsyncGenerator<Entry> {
  for await (const entry of reader.entries()) {
    if (options.maps === undefined || options.maps.has(entry.message.map_id as number)) yield entry;
    await pause();
  }
}

/** One entry as crit prints it: the message's members, then `extra` for kinds that have one. */
async function writeCritEntry(
  reader: ImageReader,
  entry: Entry,
  out: Output,
  options: DecodeOptions,
  style: Style,
  level: number,
): Promise<void> {
  const { kind } = reader;
  const message = options.pretty ? prettyMessage(kind.message, entry.message) : entry.message;
  if (kind.extra === undefined) {
    out.text(print(message, style, level));
    return;
  }
  const text = print({ ...message, extra: options.noPayload ? leftOut(entry.extraSize) : '' }, style, level);
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
 * @param cursor stands at the extra
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
export function itemsHeader(message: JsonObject, keySize: number, valueSize: number): JsonObject {
  const { map_id, count, $raw } = message;
  return {
    map_id: map_id as number,
    ...(count === 0 ? {} : { key_size: keySize, value_size: valueSize }),
    ...($raw === undefined ? {} : { $raw }),
  };
}

/** A data entry with its items, or with crit's `extra` when its totals are not equal parts. */
async function writeItemsEntry(reader: ImageReader, entry: Entry, out: Output, options: DecodeOptions): Promise<void> {
  const { pretty } = options;
  const { count, keys_bytes, values_bytes } = entry.message as Record<string, number>;
  const shape = itemShape(count as number, keys_bytes as number, values_bytes as number);
  const style = pretty ? PYTHON_PRETTY : COMPACT;
  const level = pretty ? 2 : 0;
  if (shape === undefined) return writeCritEntry(reader, entry, out, { ...options, pretty: false }, style, level);
  const header = itemsHeader(entry.message, shape.keySize, shape.valueSize);
  if (options.noPayload) {
    out.text(print({ ...header, items: leftOut(entry.extraSize) }, style, level));
    return;
  }
  const text = print({ ...header, items: [] }, style, level);
  const gap = text.lastIndexOf('[]') + 1;
  out.text(text.slice(0, gap));
  if ((count as number) > 0) {
    const lineStart = pretty ? '\n                ' : '\n    ';
    out.text(lineStart);
    const cursors = await ItemCursors.open(reader, entry);
    try {
      await writeItems(cursors, count as number, shape, pretty ? itemIndented(4) : ITEM_COMPACT, `,${lineStart}`, out);
    } finally {
      cursors.close();
    }
    if (pretty) out.text('\n            ');
  }
  out.text(text.slice(gap));
}

/** One value a line: the image, then each entry; items of a map on lines of their own behind it. */
async function decodeLines(reader: ImageReader, out: Output, options: DecodeOptions): Promise<void> {
  out.text(`${print(imageHeader(reader), COMPACT)}\n`);
  for await (const entry of chosen(reader, options)) {
    const { count, keys_bytes, values_bytes } = entry.message as Record<string, number>;
    const shape =
      reader.kind === BPFMAP_DATA
        ? itemShape(count as number, keys_bytes as number, values_bytes as number)
        : undefined;
    if (shape === undefined) {
      await writeCritEntry(reader, entry, out, { ...options, pretty: false }, COMPACT, 0);
    } else if (options.noPayload) {
      const header = itemsHeader(entry.message, shape.keySize, shape.valueSize);
      out.text(print({ ...header, items: leftOut(entry.extraSize) }, COMPACT));
    } else {
      out.text(print(itemsHeader(entry.message, shape.keySize, shape.valueSize), COMPACT));
      if ((count as number) > 0) {
        out.text('\n');
        const cursors = await ItemCursors.open(reader, entry);
        try {
          await writeItems(cursors, count as number, shape, ITEM_COMPACT, '\n', out);
        } finally {
          cursors.close();
        }
      }
    }
    out.text('\n');
  }
}
