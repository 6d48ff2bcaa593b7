/**
 * Items as JSON text and back: the inner loops of every dialect that shows keys and values.
 *
 * An entry's keys and its values are two regions of the image, one after the other. Two cursors walk
 * them side by side; on a pipe the keys are first copied to a spool.
 */

import { type CpuParts, cpuParts, cpuStride, hex, isZero, putHex, takeHex, unhex, viewOf } from '../bytes.js';
import { type BpfimgError, PointerError } from '../errors.js';
import { type Entry, type ImageReader, truncated } from '../image/reader.js';
import type { BpfmapDataEntry } from '../image/schema.gen.js';
import { Cursor, type Input, WINDOW } from '../io/input.js';
import type { Output } from '../io/output.js';
import { pause } from '../io/pause.js';
import { Spool } from '../io/spool.js';
import { isObject, type Json, type JsonObject } from '../value.js';
import { FORM_MOST, formsThatFit, type ItemForms, type ItemShape, type JsonForm, type JsonPrinter } from './forms.js';
import { PRETTY, print } from './print.js';
import { isBlank, type JsonReader } from './reader.js';

/** How one item looks between the brackets of a list or on a line of its own. */
export interface ItemText {
  /** Most bytes of text for an item of this shape. */
  readonly most: number;
  /** Writes the item at both cursors, whose bytes are all in the windows; `out` has room for `most` bytes. */
  put(keys: Cursor, values: Cursor, out: Output): void;
}

/** Text around an item's bytes: with or without blanks, depending on the dialect. */
export interface ItemStyle {
  readonly before: string;
  readonly colon: string;
  readonly comma: string;
  readonly after: string;
  /** How JSON within an item is printed; without blanks when absent. */
  json?(value: Json): string;
}

/** An item on one line, without blanks. */
export const ITEM_COMPACT: ItemStyle = { before: '{', colon: ':', comma: ',', after: '}' };

/** An item indented by four, as an object at `level`. */
export function itemIndented(level: number): ItemStyle {
  const outer = `\n${' '.repeat(4 * level)}`;
  const json = (value: Json) => print(value, PRETTY, level + 1);
  return { before: `{${outer}    `, colon: ': ', comma: `,${outer}    `, after: `${outer}}`, json };
}

/** Plain items: key and value (or each CPU's value) as hex. */
export function hexItems(shape: ItemShape, style: ItemStyle): ItemText {
  const { keySize, valueSize, perCpu } = shape;
  const { stride, cpus } = cpuParts(valueSize, perCpu);
  const opening = Buffer.from(`${style.before}"key"${style.colon}"`);
  const middle = Buffer.from(
    perCpu === undefined ? `"${style.comma}"value"${style.colon}"` : `"${style.comma}"values"${style.colon}["`,
  );
  const between = Buffer.from(`"${style.comma.trimEnd()}"`);
  const closing = Buffer.from(`${perCpu === undefined ? '"' : '"]'}${style.after}`);
  const put = (text: Uint8Array, bytes: Uint8Array, at: number): number => {
    for (let i = 0; i < text.length; i++) bytes[at++] = text[i] as number;
    return at;
  };
  return {
    most: opening.length + middle.length + closing.length + cpus * between.length + 2 * (keySize + valueSize),
    put(keys, values, out) {
      const { bytes, view } = out;
      let at = put(opening, bytes, out.at);
      at = putHex(keys.view, keys.at, keys.at + keySize, view, at);
      at = put(middle, bytes, at);
      if (perCpu === undefined) {
        at = putHex(values.view, values.at, values.at + valueSize, view, at);
      } else {
        for (let cpu = 0; cpu < cpus; cpu++) {
          const start = values.at + cpu * stride;
          // The kernel stores padding as it was written; it is shown only if it is not zero.
          const end = isZero(values.bytes, start + perCpu, start + stride) ? start + perCpu : start + stride;
          if (cpu > 0) at = put(between, bytes, at);
          at = putHex(values.view, start, end, view, at);
        }
      }
      out.at = put(closing, bytes, at);
    },
  };
}

/** Items of which the key, the values or both have a form. */
function formedItems(shape: ItemShape, style: ItemStyle, forms: ItemForms): ItemText {
  const { keySize, valueSize, perCpu } = shape;
  const { stride, cpus } = cpuParts(valueSize, perCpu);
  const opening = Buffer.from(`${style.before}"key"${style.colon}`);
  const middle = Buffer.from(`${style.comma}"value${perCpu === undefined ? '' : 's'}"${style.colon}`);
  const between = Buffer.from(style.comma.trimEnd());
  const [first, last] = [Buffer.from(perCpu === undefined ? '' : '['), Buffer.from(perCpu === undefined ? '' : ']')];
  const closing = Buffer.from(style.after);
  const put = (out: Output, text: Uint8Array) => {
    out.room(text.length);
    for (let i = 0; i < text.length; i++) out.bytes[out.at++] = text[i] as number;
  };
  const putBytes = (out: Output, from: Cursor, start: number, end: number) => {
    out.room(2 * (end - start) + 2);
    out.bytes[out.at++] = QUOTE;
    out.at = putHex(from.view, start, end, out.view, out.at);
    out.bytes[out.at++] = QUOTE;
  };
  const putForm = (out: Output, form: JsonPrinter, from: Cursor, at: number) => {
    if (style.json === undefined) form.print(from.view, at, out);
    else out.text(style.json(form.show(from.view, at)));
  };
  return {
    most: 0,
    put(keys, values, out) {
      put(out, opening);
      if (forms.key === undefined) putBytes(out, keys, keys.at, keys.at + keySize);
      else putForm(out, forms.key, keys, keys.at);
      put(out, middle);
      put(out, first);
      for (let cpu = 0; cpu < cpus; cpu++) {
        const start = values.at + cpu * stride;
        if (cpu > 0) put(out, between);
        const end = perCpu === undefined ? start + valueSize : start + perCpu;
        if (isZero(values.bytes, end, start + stride)) {
          if (forms.value === undefined) putBytes(out, values, start, end);
          else putForm(out, forms.value, values, start);
        } else if (forms.value === undefined) putBytes(out, values, start, start + stride);
        else putForm(out, rawForm(stride), values, start);
      }
      put(out, last);
      put(out, closing);
    },
  };
}

const QUOTE = 0x22;

/** For bytes that a form would lose, the padding of a CPU's value: `{"$raw": "hex"}`. */
export function rawForm(size: number): JsonPrinter {
  const show = (view: DataView, at: number) => ({
    $raw: hex(new Uint8Array(view.buffer, view.byteOffset + at, size)),
  });
  return { show, print: (view, at, out) => out.text(JSON.stringify(show(view, at))) };
}

/** The bytes of hex text, or of `{"$raw": "hex"}`, if there are `size` of them. */
export function itemBytes(value: Json, size: number): Uint8Array | undefined {
  let text = value;
  if (isObject(value)) {
    text = Object.keys(value).length === 1 ? (value.$raw ?? null) : null;
  }
  return typeof text === 'string' && text.length === size * 2 ? unhex(text) : undefined;
}

/** One entry of bpfmap-data.img. */
export type DataEntry = Entry<BpfmapDataEntry>;

/** Two cursors over an entry's keys and values. */
export class ItemCursors {
  private constructor(
    private readonly input: Input,
    private readonly entry: DataEntry,
    readonly keys: Cursor,
    readonly values: Cursor,
    private readonly spool?: Spool,
  ) {}

  /** Items of an entry in a file or buffer, which can be read at two positions in turn. */
  static over(input: Input, entry: DataEntry): ItemCursors {
    const valuesAt = entry.extraAt + entry.message.keys_bytes;
    const end = entry.extraAt + entry.extraSize;
    return new ItemCursors(input, entry, new Cursor(input, entry.extraAt, valuesAt), new Cursor(input, valuesAt, end));
  }

  /** Items of the entry at `reader`; for a pipe the keys are copied to a spool. Close it before the next entry. */
  static async open(reader: ImageReader, entry: DataEntry): Promise<ItemCursors> {
    const { input, cursor } = reader;
    if (input.size !== undefined) return ItemCursors.over(input, entry);
    const keysBytes = entry.message.keys_bytes;
    const spool = new Spool();
    for (let left = keysBytes; left > 0; ) {
      const ready = Math.min(left, await cursor.fill());
      if (ready === 0) {
        spool.close();
        throw truncated(input, entry, keysBytes - left);
      }
      spool.write(cursor.bytes.subarray(cursor.at, cursor.at + ready));
      cursor.at += ready;
      left -= ready;
    }
    return new ItemCursors(input, entry, new Cursor(spool.input()), cursor, spool);
  }

  /** The error for an image that ends before its last value. */
  truncated(): BpfimgError {
    const { input, entry, values } = this;
    return truncated(input, entry, values.position + values.ready - entry.extraAt);
  }

  close(): void {
    this.spool?.close();
  }
}

/** How a map's items are written. */
export interface ItemsLook {
  readonly shape: ItemShape;
  readonly style: ItemStyle;
  /** What is between two items. */
  readonly separator: string;
  /** Used where they fit the sizes. */
  readonly forms?: ItemForms | undefined;
}

/** Writes `count` items. Those larger than a window are written in parts. */
export async function writeItems(cursors: ItemCursors, count: number, look: ItemsLook, out: Output): Promise<void> {
  const { shape, style, separator } = look;
  const { keySize, valueSize, perCpu } = shape;
  const { keys, values } = cursors;
  const forms = formsThatFit(look.forms, keySize, perCpu ?? valueSize);
  const text = forms === undefined ? hexItems(shape, style) : formedItems(shape, style, forms);
  const between = Buffer.from(separator);
  const big = keySize > WINDOW / 4 || valueSize > WINDOW / 4 || text.most + between.length > WINDOW;
  for (let i = 0; i < count; ) {
    if (big) {
      if (i > 0) out.write(between);
      await writeBigItem(cursors, shape, style, out, forms);
      i++;
      continue;
    }
    const ready = Math.min(
      keySize === 0 ? count : Math.floor((await keys.fill(keySize)) / keySize),
      valueSize === 0 ? count : Math.floor((await values.fill(valueSize)) / valueSize),
      count - i,
    );
    if (ready === 0) throw cursors.truncated();
    for (const end = i + ready; i < end; i++) {
      out.room(text.most + between.length);
      if (i > 0) {
        for (let b = 0; b < between.length; b++) out.bytes[out.at++] = between[b] as number;
      }
      text.put(keys, values, out);
      keys.at += keySize;
      values.at += valueSize;
    }
    await out.turn();
  }
}

async function writeBigItem(
  cursors: ItemCursors,
  shape: ItemShape,
  style: ItemStyle,
  out: Output,
  forms: ItemForms = {},
): Promise<void> {
  const { perCpu, keySize, valueSize } = shape;
  /** One key or (CPU's) value; with a form it is read as a whole. */
  const put = async (from: Cursor, size: number, form: JsonForm | undefined) => {
    if (form === undefined) {
      out.text('"');
      await writeHex(cursors, from, size, out);
      out.text('"');
      return;
    }
    const bytes = await from.take(size);
    if (bytes.length < size) throw cursors.truncated();
    const shown = isZero(bytes, form.size) ? form : rawForm(size);
    if (style.json === undefined) shown.print(viewOf(bytes), 0, out);
    else out.text(style.json(shown.show(viewOf(bytes), 0)));
    await out.turn();
  };
  const { stride, cpus } = cpuParts(valueSize, perCpu);
  out.text(`${style.before}"key"${style.colon}`);
  await put(cursors.keys, keySize, forms.key);
  out.text(`${style.comma}"value${perCpu === undefined ? '' : 's'}"${style.colon}`);
  for (let cpu = 0; cpu < cpus; cpu++) {
    if (perCpu !== undefined) out.text(cpu === 0 ? '[' : style.comma.trimEnd());
    await put(cursors.values, stride, forms.value);
  }
  out.text(`${perCpu === undefined ? '' : ']'}${style.after}`);
}

async function writeHex(cursors: ItemCursors, from: Cursor, size: number, out: Output): Promise<void> {
  for (let left = size; left > 0; ) {
    const part = Math.min(left, await from.fill(), WINDOW / 4);
    if (part === 0) throw cursors.truncated();
    out.room(part * 2);
    out.at = putHex(from.view, from.at, from.at + part, out.view, out.at);
    from.at += part;
    left -= part;
    await out.turn();
  }
}

/** The items that were read: their number and sizes, and their bytes in two spools. */
export interface ReadItems {
  readonly keys: Spool;
  readonly values: Spool;
  readonly count: number;
  keySize: number;
  valueSize: number;
}

/** What is known about a map's items before the first is read. */
export interface ExpectedItems {
  readonly keySize?: number | undefined;
  readonly valueSize?: number | undefined;
  /** For per-CPU maps: bytes of one CPU's value without padding. */
  readonly perCpu?: number | undefined;
  readonly forms?: ItemForms | undefined;
}

/** The forms, if they fit the sizes that the header gives. */
function expectedForms({ keySize, valueSize, perCpu, forms }: ExpectedItems): ItemForms {
  const key = forms?.key?.size ?? 0;
  const value = forms?.value?.size ?? 0;
  return formsThatFit(forms, keySize ?? key, perCpu ?? valueSize ?? value) ?? {};
}

/** Bytes of a key or of one (CPU's) value, without and with its padding. */
type PartSize = Pick<CpuParts, 'size' | 'stride'>;

const LETTERS = { key: Buffer.from('"key"'), value: Buffer.from('"value"') };

/** Reads items into two spools, checking that all have the same size. */
export class ItemReader implements ReadItems {
  readonly keys = new Spool();
  readonly values = new Spool();
  count = 0;
  keySize = -1;
  valueSize = -1;
  readonly #perCpu: number | undefined;
  readonly #forms: ItemForms;
  readonly #reader: JsonReader;

  constructor(reader: JsonReader, expected: ExpectedItems = {}) {
    this.#reader = reader;
    const forms = expectedForms(expected);
    this.#forms = forms;
    this.keySize = expected.keySize ?? forms.key?.size ?? -1;
    this.valueSize = expected.valueSize ?? -1;
    this.#perCpu = expected.perCpu;
    if (this.#perCpu === undefined && this.valueSize < 0) this.valueSize = forms.value?.size ?? -1;
  }

  /** Whether any part of an item is more than hex. */
  get #formed(): boolean {
    return this.#forms.key !== undefined || this.#forms.value !== undefined;
  }

  close(): void {
    this.keys.close();
    this.values.close();
  }

  /** Reads a list of items. */
  async list(): Promise<void> {
    const { path } = this.#reader;
    for await (const _ of this.#reader.elements()) {
      const before = this.count;
      await this.some(true);
      // The list itself counts one element.
      (path[path.length - 1] as number) += this.count - before - 1;
    }
  }

  /**
   * Reads the item at the reader's position, and those after it that are already in the window.
   * @param commas whether items are separated by commas (a list) or by white space (ndjson)
   */
  async some(commas: boolean): Promise<void> {
    const { cursor } = this.#reader;
    await pause();
    const fast = () => (this.#formed ? this.#fastFormed(commas) : this.#fast(commas));
    if (fast()) return;
    // The item may just be cut off by the end of the window: try a full window before the slow path.
    if (cursor.ready < cursor.bytes.length) {
      await cursor.fill(cursor.bytes.length);
      if (fast()) return;
    }
    await this.#slow();
  }

  /** Reads items with forms as long as they are complete in the window. Stops before the first unusual one. */
  #fastFormed(commas: boolean): boolean {
    const { cursor } = this.#reader;
    const { bytes, end } = cursor;
    let taken = 0;
    for (let next = cursor.at; ; next++) {
      while (next < end && isBlank(bytes[next] as number)) next++;
      if (next >= end || bytes[next] !== 0x7b) break;
      const before = cursor.at;
      cursor.at = next;
      const item = this.#reader.ready();
      if (item === undefined || !this.#putWhole(item as JsonObject)) {
        cursor.at = before;
        break;
      }
      taken++;
      next = cursor.at;
      if (!commas) {
        next--;
        continue;
      }
      while (next < end && isBlank(bytes[next] as number)) next++;
      if (next >= end || bytes[next] !== 0x2c) break;
    }
    this.count += taken;
    return taken > 0;
  }

  /** Reads an item in its usual form; for any other, returns false and consumes nothing. */
  #putWhole(item: JsonObject): boolean {
    const { keys, values } = this;
    const { key, value, values: cpus } = item;
    const perCpu = this.#perCpu;
    const given = perCpu === undefined ? value : cpus;
    if (key === undefined || given === undefined || Object.keys(item).length !== 2) return false;
    if (this.keySize < 0 || (perCpu === undefined && this.valueSize < 0)) return false;
    const list = perCpu === undefined ? undefined : given;
    if (list !== undefined && !Array.isArray(list)) return false;
    const part = cpuParts(this.valueSize, perCpu);
    const total = list === undefined ? part.stride : list.length * part.stride;
    if (this.valueSize >= 0 && this.valueSize !== total) return false;
    // The sizes are the header's claim; larger items are read piece by piece.
    if (this.keySize > FORM_MOST || total > FORM_MOST) return false;
    keys.room(this.keySize);
    values.room(total);
    try {
      this.#parse(this.#forms.key, key, cpuParts(this.keySize, undefined), keys);
      for (let i = 0; i < (list?.length ?? 1); i++) {
        const one = list === undefined ? (given as Json) : (list[i] as Json);
        this.#parse(this.#forms.value, one, part, values, i * part.stride);
      }
    } catch (error) {
      if (error instanceof PointerError) return false;
      throw error;
    }
    keys.at += this.keySize;
    values.at += total;
    this.valueSize = total;
    return true;
  }

  /** Writes a key or value `ahead` bytes into what is free of `into`, and zeros as padding unless the JSON has it. */
  #parse(form: JsonForm | undefined, value: Json, { size, stride }: PartSize, into: Spool, ahead = 0): void {
    const { view } = into;
    const at = into.at + ahead;
    const padded = stride === size ? undefined : itemBytes(value, stride);
    if (padded !== undefined) {
      for (let i = 0; i < stride; i++) view.setUint8(at + i, padded[i] as number);
      return;
    }
    if (form !== undefined) form.parse(value, view, at);
    else {
      const bytes = typeof value === 'string' ? itemBytes(value, size) : undefined;
      if (bytes === undefined) throw new PointerError('', `must be ${size} bytes in hex, two digits each`);
      for (let i = 0; i < size; i++) view.setUint8(at + i, bytes[i] as number);
    }
    for (let i = size; i < stride; i++) view.setUint8(at + i, 0);
  }

  /** Reads a key or a (CPU's) value that has a form. */
  async #put(form: JsonForm, part: PartSize, into: Spool): Promise<number> {
    const reader = this.#reader;
    await reader.peek();
    const offset = reader.offset;
    const value = await reader.value();
    into.room(part.stride);
    try {
      this.#parse(form, value, part, into);
    } catch (error) {
      if (error instanceof PointerError) throw await reader.badAt(error, offset);
      throw error;
    }
    into.at += part.stride;
    return part.stride;
  }

  /**
   * Reads items of the form `{"key":"…","value":"…"}`, with optional white space, as long as they are complete in
   * the window. Stops before the first that has another form.
   */
  #fast(commas: boolean): boolean {
    if (this.#perCpu !== undefined) return false;
    const { cursor } = this.#reader;
    const { bytes, view, end } = cursor;
    const { keys, values } = this;
    let at = cursor.at;
    let taken = 0;
    const blank = () => {
      while (at < end && isBlank(bytes[at] as number)) at++;
    };
    /** Moves past a name and colon up to the first hex digit; false when they are not there. */
    const name = (letters: Buffer): boolean => {
      blank();
      for (let i = 0; i < letters.length; i++) if (bytes[at + i] !== letters[i]) return false;
      at += letters.length;
      blank();
      if (bytes[at] !== 0x3a) return false;
      at++;
      blank();
      if (bytes[at] !== 0x22) return false;
      at++;
      return at < end;
    };
    for (;;) {
      blank();
      if (at >= end || bytes[at] !== 0x7b) break;
      at++;
      if (!name(LETTERS.key)) break;
      const keyAt = at;
      const keyEnd = this.keySize >= 0 ? at + 2 * this.keySize : bytes.indexOf(0x22, at);
      if (keyEnd < 0 || keyEnd >= end || bytes[keyEnd] !== 0x22 || (keyEnd - keyAt) % 2 !== 0) break;
      at = keyEnd + 1;
      blank();
      if (bytes[at] !== 0x2c) break;
      at++;
      if (!name(LETTERS.value)) break;
      const valueAt = at;
      const valueEnd = this.valueSize >= 0 ? at + 2 * this.valueSize : bytes.indexOf(0x22, at);
      if (valueEnd < 0 || valueEnd >= end || bytes[valueEnd] !== 0x22 || (valueEnd - valueAt) % 2 !== 0) break;
      at = valueEnd + 1;
      blank();
      if (at >= end || bytes[at] !== 0x7d) break;
      at++;
      const keySize = (keyEnd - keyAt) / 2;
      const valueSize = (valueEnd - valueAt) / 2;
      // A spool's buffer is smaller than a window; such an item takes the slow path.
      if (keySize > 32 * 1024 || valueSize > 32 * 1024) break;
      keys.room(keySize);
      values.room(valueSize);
      if (!takeHex(view, keyAt, keyEnd, keys.bytes, keys.at)) break;
      if (!takeHex(view, valueAt, valueEnd, values.bytes, values.at)) break;
      keys.at += keySize;
      values.at += valueSize;
      this.keySize = keySize;
      this.valueSize = valueSize;
      taken++;
      cursor.at = at;
      if (commas) {
        blank();
        if (at >= end || bytes[at] !== 0x2c) break;
        at++;
      }
    }
    this.count += taken;
    return taken > 0;
  }

  /** Reads one item member by member, in any order and of any size, and reports what is wrong with it. */
  async #slow(): Promise<void> {
    const reader = this.#reader;
    await reader.peek();
    const start = reader.offset;
    const { key, value } = this.#forms;
    let keySize: number | undefined;
    let valueSize: number | undefined;
    for await (const name of reader.members()) {
      await reader.peek();
      const offset = reader.offset;
      if (name === 'key') {
        keySize = key
          ? await this.#put(key, cpuParts(key.size, undefined), this.keys)
          : await reader.hexInto(this.keys);
        this.#same('keySize', keySize, 'the key', offset);
      } else if (name === 'value' && valueSize === undefined) {
        valueSize =
          value && this.#perCpu === undefined
            ? await this.#put(value, cpuParts(value.size, undefined), this.values)
            : await reader.hexInto(this.values);
        this.#same('valueSize', valueSize, 'the value', offset);
      } else if (name === 'values' && valueSize === undefined && this.#perCpu !== undefined) {
        valueSize = await this.#cpus(this.#perCpu);
        this.#same('valueSize', valueSize, 'the values of all CPUs', offset);
      } else if (name === 'value' || (name === 'values' && this.#perCpu !== undefined)) {
        throw reader.bad('an item has either "value" or "values"', offset);
      } else if (name === 'values') {
        throw reader.bad('only the items of a per-CPU map have "values"', offset);
      } else {
        throw reader.bad(
          `unknown member, an item has "key" and "${this.#perCpu === undefined ? 'value' : 'values'}"`,
          offset,
        );
      }
    }
    if (keySize === undefined) throw reader.bad('member "key" is missing', start);
    if (valueSize === undefined) {
      throw reader.bad(`member "${this.#perCpu === undefined ? 'value' : 'values'}" is missing`, start);
    }
    this.count++;
  }

  #same(which: 'keySize' | 'valueSize', size: number, what: string, offset: number): void {
    if (this[which] < 0) this[which] = size;
    if (this[which] === size) return;
    throw this.#reader.bad(`${what} has ${size} bytes, expected ${this[which]} as in the rest of the map`, offset);
  }

  /** One value per CPU, each with or without its padding to 8 bytes. Returns their total size. */
  async #cpus(size: number): Promise<number> {
    const reader = this.#reader;
    const stride = cpuStride(size);
    const form = this.#forms.value;
    let total = 0;
    for await (const _ of reader.elements()) {
      if (form !== undefined) {
        total += await this.#put(form, { size, stride }, this.values);
        continue;
      }
      await reader.peek();
      const offset = reader.offset;
      const got = await reader.hexInto(this.values);
      if (got !== size && got !== stride) {
        const padded = stride === size ? '' : ` (or ${stride} with padding)`;
        throw reader.bad(`a CPU's value has ${got} bytes, expected ${size}${padded}`, offset);
      }
      this.values.write(new Uint8Array(stride - got));
      total += stride;
    }
    return total;
  }
}
