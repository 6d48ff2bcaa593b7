/**
 * Reads an image: head, magic, then entries, each `u32 size, message, extra`. All integers are
 * little-endian. An entry's extra is never read as a whole: the caller moves a window through it, and
 * the reader skips what the caller leaves.
 */
import { BpfimgError } from '../errors.js';
import { Cursor, type Input } from '../io/input.js';
import type { JsonObject } from '../value.js';
import {
  critDecodes,
  foreignKind,
  HEAD_COMMON,
  HEAD_SERVICE,
  type Head,
  type ImageKind,
  kindNames,
  kindOfMagic,
} from './kinds.js';
import { decodeMessage, type Text, WireError } from './wire.js';

/** Largest message accepted. CRIU's have some hundred bytes; the limit keeps a wrong size from filling memory. */
export const MAX_MESSAGE = 4 * 1024 * 1024;

/** One entry, its message decoded. */
export interface Entry<M extends JsonObject = JsonObject> {
  /** Number of the entry, from 0. */
  readonly index: number;
  /** Position of its size word in the image. */
  readonly offset: number;
  readonly message: M;
  /** Position and size of what follows the message. */
  readonly extraAt: number;
  readonly extraSize: number;
}

function u32At(bytes: Uint8Array, at: number): number {
  return new DataView(bytes.buffer, bytes.byteOffset + at, 4).getUint32(0, true);
}

function swapped(value: number): number {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes.readUInt32BE();
}

/** The error for an entry; `at` is the wrong byte in it, if that is not the first. */
function badEntry(
  input: Input,
  index: number,
  offset: number,
  message: string,
  { code = 'bad-image', at = offset } = {},
): BpfimgError {
  const text = `entry ${index} at offset ${offset}: ${message}`;
  return new BpfimgError('badImage', text, { subject: input.name, code, offset: at });
}

/** The error for an image that ends after only `got` bytes of the entry's extra. */
export function truncated(input: Input, entry: Entry, got: number): BpfimgError {
  const message = `expected ${entry.extraSize} bytes after its message, got ${got} (is the image truncated?)`;
  return badEntry(input, entry.index, entry.offset, message);
}

/** An image being read. {@link cursor} is at the extra of the entry that {@link next} returned last. */
export class ImageReader {
  #index = 0;
  #entry: Entry | undefined;

  private constructor(
    readonly input: Input,
    readonly cursor: Cursor,
    readonly kind: ImageKind,
    readonly head: Head,
    readonly text: Text,
  ) {}

  /**
   * Reads head and magic.
   * @throws BpfimgError `badImage` when the input is not an image, or of a kind that bpfimg does not decode
   */
  static async open(input: Input, text: Text = 'utf8'): Promise<ImageReader> {
    const cursor = new Cursor(input);
    const start = await cursor.fill(8);
    const name = input.name;
    if (start < 4)
      throw new BpfimgError('badImage', `${start} bytes, expected a 4-byte image magic`, { subject: name, offset: 0 });
    let magic = u32At(cursor.bytes, cursor.at);
    const head: Head = magic === HEAD_COMMON ? 'common' : magic === HEAD_SERVICE ? 'service' : 'none';
    if (head !== 'none') {
      if (start < 8)
        throw new BpfimgError('badImage', `ends after ${start} bytes, expected the magic of its kind at offset 4`, {
          subject: name,
          offset: 4,
        });
      magic = u32At(cursor.bytes, cursor.at + 4);
    }
    const kind = kindOfMagic(magic);
    if (kind === undefined) {
      await cursor.fill(Math.min(TAR.at + TAR.magic.length, cursor.bytes.length));
      throw new BpfimgError('badImage', notAnImage(magic, head, cursor), {
        subject: name,
        offset: head === 'none' ? 0 : 4,
        code: foreignKind(magic) === undefined ? undefined : 'not-decoded',
      });
    }
    cursor.at += head === 'none' ? 4 : 8;
    return new ImageReader(input, cursor, kind, head, text);
  }

  #bad(index: number, offset: number, message: string): BpfimgError {
    return badEntry(this.input, index, offset, message);
  }

  /** The next entry, or undefined at the end. Skips what is left of the entry before. */
  async next(): Promise<Entry | undefined> {
    const { cursor, kind, input } = this;
    if (this.#entry !== undefined) {
      const last = this.#entry;
      const left = last.extraAt + last.extraSize - cursor.position;
      const skipped = await cursor.skip(left);
      if (skipped < left) throw truncated(input, last, last.extraSize - left + skipped);
    }
    const index = this.#index;
    const offset = cursor.position;
    const ready = await cursor.fill(4);
    if (ready === 0) return undefined;
    if (ready < 4) {
      const message = `${ready} bytes left, expected a 4-byte entry size`;
      throw badEntry(input, index, offset, message, { code: 'trailing-bytes' });
    }
    const size = u32At(cursor.bytes, cursor.at);
    cursor.at += 4;
    const left = input.size === undefined ? undefined : input.size - cursor.position;
    if (left !== undefined && size > left) throw this.#bad(index, offset, `message needs ${size} bytes, ${left} left`);
    if (size > MAX_MESSAGE) {
      throw this.#bad(index, offset, `message of ${size} bytes, bpfimg reads at most ${MAX_MESSAGE}`);
    }
    const bytes = await cursor.take(size);
    if (bytes.length < size) throw this.#bad(index, offset, `message needs ${size} bytes, ${bytes.length} left`);
    let message: JsonObject;
    try {
      message = decodeMessage(kind.message, bytes, this.text);
    } catch (error) {
      if (!(error instanceof WireError)) throw error;
      const field = error.field === '' ? '' : `${error.field}: `;
      const at = offset + 4 + error.offset;
      throw badEntry(input, index, offset, `${field}${error.message} (byte ${at})`, { at });
    }
    const extraSize = kind.extra ? kind.extra(message) : 0;
    const entry: Entry = { index, offset, message, extraAt: cursor.position, extraSize };
    if (left !== undefined && extraSize > left - size) throw truncated(input, entry, left - size);
    this.#index++;
    this.#entry = entry;
    return entry;
  }

  /** All entries that follow, in order. */
  async *entries(): AsyncGenerator<Entry> {
    for (let entry = await this.next(); entry !== undefined; entry = await this.next()) yield entry;
  }

  /**
   * All entries that follow, in an image that must be of `kind`.
   * @throws BpfimgError `badImage` for another kind
   */
  entriesOf<M extends JsonObject>(kind: ImageKind<M>): AsyncGenerator<Entry<M>> {
    if (this.kind.name !== kind.name) {
      const what = `it is a ${this.kind.name} image, expected ${kind.name}`;
      throw new BpfimgError('badImage', what, { subject: this.input.name });
    }
    // Decoding has checked the message against its fields.
    return this.entries() as AsyncGenerator<Entry<M>>;
  }
}

/** The magic of a tar archive, and its offset. */
const TAR = { at: 257, magic: 'ustar' };

/** First bytes of gzip, zstd, xz and bzip2 files. */
const PACKED = ['\x1f\x8b', '\x28\xb5\x2f\xfd', '\xfd7zX', 'BZh'];

/** Guesses what a file without a known magic is. */
function notAnImage(magic: number, head: Head, cursor: Cursor): string {
  const foreign = foreignKind(magic);
  if (foreign !== undefined) {
    return `it is a ${foreign} image, which bpfimg does not decode${critDecodes(foreign) ? ' (crit does)' : ''}`;
  }
  const hex = `0x${magic.toString(16).padStart(8, '0')}`;
  if (head !== 'none') return `unknown image kind ${hex} at offset 4, expected one of ${kindNames().join(', ')}`;
  const other = swapped(magic);
  if (other === HEAD_COMMON || other === HEAD_SERVICE || kindOfMagic(other)) {
    return 'it is a big-endian image (from s390x?), bpfimg reads little-endian ones';
  }
  const start = Buffer.from(cursor.bytes.subarray(cursor.at, cursor.end)).toString('latin1');
  if (start.startsWith(TAR.magic, TAR.at)) return 'it is a tar archive: unpack it first';
  const first = start.slice(0, 4);
  const guess = /^\s*[{[]/.test(first)
    ? 'it looks like JSON: `bpfimg encode` converts it to an image'
    : first.startsWith('\x7fELF')
      ? 'it is an ELF file'
      : PACKED.some((magic) => first.startsWith(magic))
        ? 'it is compressed: unpack it first'
        : 'it is probably raw data such as memory pages (pages-*.img), which no tool decodes';
  return `first word ${hex} is not an image magic; ${guess}`;
}
