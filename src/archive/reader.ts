/**
 * Reads a tar archive entry by entry, in order: joins a header with those before it that describe
 * the same entry, and reads or skips the bytes.
 */
import { pathText } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import { Cursor, type Input } from '../io/input.js';
import { BLOCK, type Header, isZero, padding, parseHeader, parseRecords } from './header.js';

/** The type of an entry. A hard link counts as a link. */
export type EntryType = 'file' | 'folder' | 'link' | 'device' | 'sparse' | 'other';

/** One entry of an archive. */
export interface Entry {
  /** Without leading `./` and trailing `/`; one character per byte. */
  readonly name: string;
  readonly type: EntryType;
  /** Bytes that follow its headers, without the padding of the last block. */
  readonly size: number;
  /** Seconds since 1970. */
  readonly mtime: number;
  /** Offsets of its headers and its bytes in the uncompressed archive. */
  readonly offset: number;
  readonly dataAt: number;
}

/** A block of {@link ArrivingEntry.headers}, and the bytes of a header that describes the next one. */
export interface HeaderBlock {
  readonly type: string;
  readonly block: Uint8Array;
  /** With the padding of the last block. */
  readonly body: Uint8Array;
  readonly size: number;
}

/** An entry whose bytes come next. */
export interface ArrivingEntry extends Entry {
  /** The blocks before its bytes. */
  readonly headers: readonly HeaderBlock[];
  /** Its bytes, to be read in order and before the next entry. What is not read is skipped. */
  readonly body: Input;
  /** The same, with the padding of the last block. */
  readonly padded: Input;
}

/** Most entries in an archive: checkpoints have hundreds. */
const MAX_ENTRIES = 100_000;
/** Most bytes in a name, as in a path in Linux; and in all names of an archive. */
const MAX_NAME = 4096;
const MAX_NAMES = 32 * 1024 * 1024;
/** Most bytes in a header that describes the next one, and most such headers in a row. */
const MAX_EXTENSION = 1024 * 1024;
const MAX_EXTENSIONS = 16;

const TYPES: Readonly<Record<string, EntryType>> = {
  '\0': 'file',
  '0': 'file',
  '7': 'file',
  '1': 'link',
  '2': 'link',
  '3': 'device',
  '4': 'device',
  '5': 'folder',
  '6': 'device',
  S: 'sparse',
};

/** The name of an entry as messages show it. */
export function entryText(name: string): string {
  return pathText(Buffer.from(name, 'latin1'));
}

/** A name in the form used for comparison: `./checkpoint//files.img` becomes `checkpoint/files.img`. */
function plainName(name: string): string {
  return name
    .replaceAll(/\/{2,}/g, '/')
    .replaceAll(/(?<=^|\/)(\.\/)+/g, '')
    .replace(/\/$/, '');
}

/** What the headers before an entry say of it. */
interface More {
  name?: string | undefined;
  size?: number | undefined;
  sparse?: boolean;
}

/** Reads an uncompressed archive. */
export class TarReader {
  readonly #cursor: Cursor;
  readonly #name: string;
  #entries = 0;
  #names = 0;
  /** Offset of the next header. */
  #next = 0;

  /** @param input read in order if it has no size; otherwise only the headers and the bytes that are wanted */
  constructor(input: Input) {
    // Small, because most of what lies between the headers of an archive is never read.
    this.#cursor = new Cursor(input, 0, Number.POSITIVE_INFINITY, input.size === undefined ? undefined : 16 * 1024);
    this.#name = input.name;
  }

  /** @throws BpfimgError if it stops being a tar archive, or is cut off */
  async *entries(): AsyncGenerator<ArrivingEntry, void, undefined> {
    for (;;) {
      const entry = await this.#entry();
      if (entry === undefined) return;
      yield entry;
      await this.#skipTo(entry.dataAt + entry.size + padding(entry.size), entry);
    }
  }

  /** Checks what follows the block that ends the archive. */
  rest(): Input {
    const cursor = this.#cursor;
    return {
      name: this.#name,
      size: undefined,
      path: undefined,
      read: async (into) => {
        const ready = Math.min(await cursor.fill(), into.length);
        into.set(cursor.bytes.subarray(cursor.at, cursor.at + ready));
        cursor.at += ready;
        return ready;
      },
      close() {},
    };
  }

  async #skipTo(position: number, { name, size }: { readonly name: string; readonly size: number }): Promise<void> {
    const cursor = this.#cursor;
    await cursor.skip(position - cursor.position);
    // The padding of the last block may be missing.
    if (cursor.position < position - padding(size)) this.#cutOff(name, position - padding(size) - cursor.position);
    this.#next = cursor.position;
  }

  #cutOff(name: string | undefined, missing: number): never {
    const { position } = this.#cursor;
    throw new BpfimgError('badImage', `the archive ends at byte ${position}, expected ${missing} more`, {
      subject: this.#name,
      part: name === undefined ? undefined : entryText(name),
      offset: position,
    });
  }

  #fail(text: string, offset: number, part?: string): never {
    throw new BpfimgError('badImage', `${text} (at byte ${offset})`, { subject: this.#name, part, offset });
  }

  /** The next block; undefined at the end of the archive. */
  async #block(inside: string | undefined): Promise<Uint8Array | undefined> {
    const cursor = this.#cursor;
    const at = cursor.position;
    const block = await cursor.take(BLOCK);
    if (block.length === BLOCK && !isZero(block)) return block;
    if (block.length === BLOCK && inside === undefined) return undefined;
    if (block.length === BLOCK) this.#fail('the archive ends where a header should follow', at, inside);
    if (block.length === 0 && inside === undefined) {
      this.#fail('the archive has no end mark, so it is cut off', at);
    }
    return this.#cutOff(inside, BLOCK - block.length);
  }

  async #entry(): Promise<ArrivingEntry | undefined> {
    const offset = this.#next;
    const headers: HeaderBlock[] = [];
    const more: More = {};
    for (;;) {
      const at = this.#cursor.position;
      const block = await this.#block(headers.length === 0 ? undefined : 'a header');
      if (block === undefined) return undefined;
      const header = this.#parsed(() => parseHeader(block), at);
      if (++this.#entries > MAX_ENTRIES) this.#fail(`more than ${MAX_ENTRIES} headers`, at);
      if (!/[xgLKX]/.test(header.type)) return await this.#made(header, more, offset, headers, block);
      if (headers.length === MAX_EXTENSIONS) this.#fail(`more than ${MAX_EXTENSIONS} headers of one entry`, at);
      if (header.type === 'x' && headers.some(({ type }) => type === 'x')) {
        this.#fail('a second PAX header of one entry', at);
      }
      headers.push(await this.#extension(header, block, more, at));
    }
  }

  #parsed<T>(parse: () => T, at: number): T {
    try {
      return parse();
    } catch (error) {
      if (error instanceof BpfimgError) this.#fail(error.text, at);
      throw error;
    }
  }

  /** A header that describes the next one. */
  async #extension({ type, size }: Header, block: Uint8Array, more: More, at: number): Promise<HeaderBlock> {
    if (size > MAX_EXTENSION) this.#fail(`a header of type ${type} has ${size} bytes, most are ${MAX_EXTENSION}`, at);
    const whole = size + padding(size);
    const body = await this.#cursor.take(whole);
    if (body.length < whole) this.#cutOff(undefined, whole - body.length);
    const bytes = Buffer.from(body.buffer, body.byteOffset, size);
    if (type === 'L') more.name = bytes.toString('latin1').replace(/\0.*$/s, '');
    if (type === 'x' || type === 'X' || type === 'g') {
      for (const [name, value] of this.#parsed(() => parseRecords(bytes), at)) {
        if (!/^(path|size|GNU\.sparse\..*)$/.test(name)) continue;
        if (type === 'g') this.#fail(`a header for all that follows says ${name}, which is not supported`, at);
        if (name === 'path') more.name = value;
        else if (name === 'GNU.sparse.name') [more.name, more.sparse] = [value, true];
        else if (name !== 'size') more.sparse = true;
        else {
          more.size = /^[0-9]+$/.test(value) ? Number(value) : Number.NaN;
          if (!Number.isSafeInteger(more.size))
            this.#fail(`a PAX header has no size, but ${JSON.stringify(value)}`, at);
        }
      }
    }
    return { type, block, body, size };
  }

  async #made(
    header: Header,
    more: More,
    offset: number,
    headers: HeaderBlock[],
    block: Uint8Array,
  ): Promise<ArrivingEntry> {
    const cursor = this.#cursor;
    const given = more.name ?? header.name;
    const name = plainName(given);
    this.#names += name.length;
    if (name.length > MAX_NAME) this.#fail(`a name of ${name.length} bytes, the longest have ${MAX_NAME}`, offset);
    if (this.#names > MAX_NAMES) this.#fail(`names of more than ${MAX_NAMES} bytes`, offset);
    const folder = given.endsWith('/') && /[\0 0]/.test(header.type);
    const type = folder ? 'folder' : more.sparse ? 'sparse' : (TYPES[header.type] ?? 'other');
    headers.push({ type: header.type, block, body: await this.#sparseMap(header, block, name), size: 0 });
    // Go's writers and readers give these no bytes.
    const size = /[1-6]/.test(header.type) || folder ? 0 : (more.size ?? header.size);
    const dataAt = cursor.position;
    const known = cursor.input.size;
    if (!Number.isSafeInteger(dataAt + size)) this.#fail(`a size of ${size} bytes`, offset, entryText(name));
    if (known !== undefined && dataAt + size > known) {
      this.#fail(`the archive ends at byte ${known}, expected ${dataAt + size - known} more`, offset, entryText(name));
    }
    const [body, padded] = [size, size + padding(size)].map((all) => this.#body(name, dataAt, all)) as [Input, Input];
    return { name, type, size, mtime: header.mtime, offset, dataAt, headers, body, padded };
  }

  /** GNU's old map of a sparse file, as far as it follows the header. */
  async #sparseMap({ type }: Header, header: Uint8Array, name: string): Promise<Uint8Array> {
    const blocks: Uint8Array[] = [];
    for (let goesOn = type === 'S' && header[482] === 1; goesOn; ) {
      const block = await this.#cursor.take(BLOCK);
      if (block.length < BLOCK) this.#cutOff(name, BLOCK - block.length);
      if (blocks.length * BLOCK >= MAX_EXTENSION) this.#fail('a sparse file in too many parts', this.#cursor.position);
      blocks.push(block);
      goesOn = block[504] === 1;
    }
    return Buffer.concat(blocks);
  }

  #body(name: string, from: number, size: number): Input {
    const cursor = this.#cursor;
    return {
      name: `${this.#name}:${entryText(name)}`,
      size: undefined,
      path: undefined,
      read: async (into) => {
        const left = from + size - cursor.position;
        if (left <= 0) return 0;
        const ready = await cursor.fill();
        if (ready === 0) this.#cutOff(name, left);
        const part = cursor.bytes.subarray(cursor.at, cursor.at + Math.min(ready, left, into.length));
        into.set(part);
        cursor.at += part.length;
        return part.length;
      },
      close() {},
    };
  }
}
