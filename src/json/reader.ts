/**
 * Reads JSON from a stream: a pull parser over a window, for documents larger than memory.
 *
 * Structure is read member by member; values that can be huge (hex, base64) stream into an output, and
 * small ones come as JavaScript values. Every error names the JSON pointer and, for files, line and column.
 */
import * as fs from 'node:fs';
import { Base64Decoder, takeHex, utf8, viewOf } from '../bytes.js';
import { BpfimgError, type PointerError, pointerPart } from '../errors.js';
import { Cursor, type Input, openInput } from '../io/input.js';
import type { Output } from '../io/output.js';
import { pause } from '../io/pause.js';
import { type Json, type JsonObject, MAX_VALUES, VALUES_OF_WHOLE } from '../value.js';

/**
 * What one value that is built in memory may be, besides {@link MAX_VALUES}: its text, and the strings in it. Enough for
 * whatever the largest message that an image may have (4 MiB) looks like in JSON.
 */
const MAX_VALUE = 256 * 1024 * 1024;
const MAX_STRINGS = 32 * 1024 * 1024;
const MAX_JSON_DEPTH = 64;
/** Most bytes of a member's name, and most members of an object: more than any message or BTF type has. */
const MAX_NAME = 1024;
const MAX_MEMBERS = 70_000;
/** Most text to read ahead for one item before falling back to the slow path. */
export const JSON_WINDOW = 256 * 1024;

/** Bytes to have in the window before trying to read a value as a whole. */
const QUICK = 4096;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const COMMA = 0x2c;
const COLON = 0x3a;
const OPEN_LIST = 0x5b;
const CLOSE_LIST = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;

/** White space, as JSON has it. */
export const isBlank = (byte: number) => byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09;
const isStructure = (byte: number) =>
  byte === COMMA || byte === CLOSE_LIST || byte === CLOSE_OBJECT || byte === COLON || isBlank(byte);

const isDigit = (byte: number) => byte >= 0x30 && byte <= 0x39;
const isHexDigit = (byte: number) => /[0-9a-fA-F]/.test(String.fromCharCode(byte));

const escapes: Readonly<Record<number, number>> = {
  0x22: 0x22,
  0x5c: 0x5c,
  0x2f: 0x2f,
  0x62: 0x08,
  0x66: 0x0c,
  0x6e: 0x0a,
  0x72: 0x0d,
  0x74: 0x09,
};

/** The original position of text that is read from a temporary copy. */
export interface Origin {
  readonly input: Input;
  readonly offset: number;
  readonly path: readonly (string | number)[];
}

/** What has been built in memory: the characters of all strings, and the values as {@link MAX_VALUES} counts them. */
export class Sum {
  strings = 0;
  values = 0;
}

/** Reads one text from its current position. Methods throw BpfimgError `badJson` for unexpected input. */
export class JsonReader {
  readonly cursor: Cursor;
  readonly #origin: Origin | undefined;
  /** Names and indexes that lead to the current position. */
  readonly path: (string | number)[];
  /** Whether a value read since this was last cleared had an integer beyond 2^53-1 (a bigint). */
  sawBigint = false;

  /** The cursor's window, for short texts. */
  #text: Buffer | undefined;
  #sum = new Sum();

  constructor(input: Input, origin?: Origin) {
    this.cursor = new Cursor(input, 0, Number.POSITIVE_INFINITY, JSON_WINDOW);
    this.#origin = origin;
    this.path = [...(origin?.path ?? [])];
  }

  /** Byte position of the next unread byte, in the text the user gave. */
  get offset(): number {
    return this.cursor.position + (this.#origin?.offset ?? 0);
  }

  get name(): string {
    return (this.#origin?.input ?? this.cursor.input).name;
  }

  /** JSON pointer of the current position. */
  get pointer(): string {
    return this.path.map(pointerPart).join('');
  }

  /** The current position, as the origin of text that is copied out from here on. */
  origin(): Origin {
    return { input: this.#origin?.input ?? this.cursor.input, offset: this.offset, path: [...this.path] };
  }

  /**
   * The error for the text at `offset`: file, pointer, message, line and column. Use it as
   * `throw reader.bad(…)`.
   */
  bad(message: string, offset = this.offset, pointer = this.pointer): BpfimgError {
    const { input } = this.#origin ?? this.cursor;
    const at = lineAndColumn(input, offset);
    const where = at === undefined ? `byte ${offset}` : `line ${at.line}, column ${at.column}`;
    return new BpfimgError('badJson', `${message} (${where})`, { subject: input.name, pointer, offset, ...at });
  }

  /**
   * The error for wrong JSON inside the value that starts at `offset` and has the pointer `outer`.
   * Reads the file once more to find the line.
   */
  async badAt(inner: PointerError, offset: number, outer = this.pointer): Promise<BpfimgError> {
    const { pointer, text } = inner.within(outer);
    const { input } = this.#origin ?? this.cursor;
    if (input.path === undefined) return this.bad(text, offset, pointer);
    const again = await openInput(input.path);
    try {
      const found = await new JsonReader(again, undefined).find(offset, inner.pointer);
      return this.bad(text, found, pointer);
    } finally {
      again.close();
    }
  }

  /** Offset of the value that `pointer` names inside the value at `offset`, or of its nearest parent. */
  private async find(offset: number, pointer: string): Promise<number> {
    await this.cursor.skip(offset);
    let found = offset;
    for (const part of pointer.split('/').slice(1)) {
      const name = part.replaceAll('~1', '/').replaceAll('~0', '~');
      const first = await this.peek();
      let next: number | undefined;
      if (first === OPEN_OBJECT) {
        for await (const member of this.members()) {
          await this.peek();
          if (member === name) {
            next = this.offset;
            break;
          }
          await this.skip();
        }
      } else if (first === OPEN_LIST) {
        for await (const index of this.elements()) {
          await this.peek();
          if (String(index) === name) {
            next = this.offset;
            break;
          }
          await this.skip();
        }
      }
      if (next === undefined) return found;
      found = next;
    }
    return found;
  }

  /** The next byte that is not white space, without consuming it; -1 at the end. */
  async peek(): Promise<number> {
    const { cursor } = this;
    for (;;) {
      const { bytes, end } = cursor;
      let at = cursor.at;
      while (at < end && isBlank(bytes[at] as number)) at++;
      cursor.at = at;
      if (at < end) return bytes[at] as number;
      if ((await cursor.fill()) === 0) return -1;
    }
  }

  async #expect(byte: number, what: string): Promise<void> {
    if ((await this.peek()) !== byte) throw await this.#unexpected(what);
    this.cursor.at++;
  }

  async #unexpected(what: string): Promise<BpfimgError> {
    const byte = await this.peek();
    if (byte === -1) return this.bad(`the text ends here, expected ${what}`);
    const found = byte > 0x20 && byte < 0x7f ? `"${String.fromCharCode(byte)}"` : `byte 0x${byte.toString(16)}`;
    return this.bad(`expected ${what}, found ${found}`);
  }

  /** The error for a value of the wrong kind. */
  expected(what: string): Promise<BpfimgError> {
    return this.#unexpected(what);
  }

  /** Steps through an object. The caller must read each member's value before it asks for the next. */
  async *members(): AsyncGenerator<string> {
    await this.#expect(OPEN_OBJECT, 'an object');
    const seen = new Set<string>();
    if ((await this.peek()) === CLOSE_OBJECT) {
      this.cursor.at++;
      return;
    }
    for (;;) {
      if ((await this.peek()) !== QUOTE) throw await this.#unexpected('a member name');
      const start = this.offset;
      const name = await this.string(MAX_NAME);
      if (seen.size === MAX_MEMBERS) throw this.bad(`more than ${MAX_MEMBERS} members`, start);
      if (seen.has(name)) throw this.bad(`member "${name}" appears twice`, start);
      seen.add(name);
      await this.#expect(COLON, '":"');
      this.path.push(name);
      yield name;
      this.path.pop();
      const byte = await this.peek();
      if (byte === CLOSE_OBJECT) break;
      if (byte !== COMMA) throw await this.#unexpected('"," or "}"');
      this.cursor.at++;
    }
    this.cursor.at++;
  }

  /** Steps through a list, yielding each index. The caller must read each element. */
  async *elements(): AsyncGenerator<number> {
    await this.#expect(OPEN_LIST, 'a list');
    if ((await this.peek()) === CLOSE_LIST) {
      this.cursor.at++;
      return;
    }
    const depth = this.path.push(0) - 1;
    for (;;) {
      yield this.path[depth] as number;
      const byte = await this.peek();
      if (byte === CLOSE_LIST) break;
      if (byte !== COMMA) throw await this.#unexpected('"," or "]"');
      this.cursor.at++;
      (this.path[depth] as number)++;
    }
    this.path.length = depth;
    this.cursor.at++;
  }

  /**
   * A string, as text.
   * @param most limit for its bytes plus `held`
   */
  async string(most = MAX_STRINGS, held = 0): Promise<string> {
    let whole = Buffer.allocUnsafe(64);
    let size = 0;
    const start = this.offset;
    await this.#pieces((bytes, from, to) => {
      const end = size + to - from;
      if (held + end > most) throw this.bad(`text of more than ${most} bytes${held > 0 ? ' in one value' : ''}`, start);
      if (end > whole.length) {
        const larger = Buffer.allocUnsafe(Math.max(end, whole.length * 2));
        larger.set(whole.subarray(0, size));
        whole = larger;
      }
      whole.set(bytes.subarray(from, to), size);
      size = end;
      return true;
    }, 'text');
    try {
      return utf8.decode(whole.subarray(0, size));
    } catch {
      throw this.bad('text is not UTF-8', start);
    }
  }

  /** Streams a string's bytes, with escapes resolved. `take` returns false to reject its input. */
  async #pieces(take: (bytes: Uint8Array, from: number, to: number) => boolean, what: string): Promise<void> {
    await this.#expect(QUOTE, what);
    const { cursor } = this;
    for (;;) {
      if ((await cursor.fill()) === 0) throw this.bad('the text ends inside a string');
      const { bytes, end } = cursor;
      let at = cursor.at;
      for (let byte = bytes[at] as number; at < end; byte = bytes[++at] as number) {
        if (byte === QUOTE || byte === BACKSLASH || byte < 0x20) break;
      }
      if (at > cursor.at && !take(bytes, cursor.at, at)) throw this.bad(`must be ${what}`);
      cursor.at = at;
      if (at === end) continue;
      const byte = bytes[at] as number;
      if (byte === QUOTE) {
        cursor.at++;
        return;
      }
      if (byte !== BACKSLASH) throw this.bad(`control character 0x${byte.toString(16)} in a string`);
      const unescaped = await this.#escape();
      if (!take(unescaped, 0, unescaped.length)) throw this.bad(`must be ${what}`);
    }
  }

  /** Reads one escape (or a surrogate pair) and returns its UTF-8 bytes. */
  async #escape(): Promise<Uint8Array> {
    const { cursor } = this;
    if ((await cursor.fill(2)) < 2) throw this.bad('the text ends inside a string');
    const letter = cursor.bytes[cursor.at + 1] as number;
    if (letter !== 0x75) {
      const byte = escapes[letter];
      if (byte === undefined) throw this.bad(`"\\${String.fromCharCode(letter)}" is not an escape`);
      cursor.at += 2;
      return Uint8Array.of(byte);
    }
    const first = await this.#unit(0);
    let text = String.fromCharCode(first);
    cursor.at += 6;
    if (first >= 0xd800 && first < 0xdc00 && (await cursor.fill(2)) >= 2) {
      if (cursor.bytes[cursor.at] === BACKSLASH && cursor.bytes[cursor.at + 1] === 0x75) {
        const second = await this.#unit(0);
        if (second >= 0xdc00 && second < 0xe000) {
          text += String.fromCharCode(second);
          cursor.at += 6;
        }
      }
    }
    if (/\p{Surrogate}/u.test(text)) throw this.bad('half of a surrogate pair in a string');
    return Buffer.from(text);
  }

  async #unit(ahead: number): Promise<number> {
    const { cursor } = this;
    const ready = await cursor.fill(ahead + 6);
    const digits = Buffer.from(cursor.bytes.subarray(cursor.at + ahead + 2, cursor.at + ahead + 6)).toString('latin1');
    if (ready < ahead + 6 || !/^[0-9a-fA-F]{4}$/.test(digits)) throw this.bad('"\\u" needs four hex digits');
    return Number.parseInt(digits, 16);
  }

  /** A number, true, false or null. */
  async #scalar(): Promise<Json> {
    const { cursor } = this;
    let text = '';
    for (;;) {
      const { bytes, end } = cursor;
      const from = cursor.at;
      let at = from;
      while (at < end && !isStructure(bytes[at] as number)) at++;
      text += Buffer.from(bytes.subarray(from, at)).toString('latin1');
      if (text.length > 400) throw this.bad('expected a JSON value');
      if (at < end) {
        cursor.at = at;
        break;
      }
      cursor.at = at;
      if ((await cursor.fill()) === 0) break;
    }
    const value = this.#word(text);
    if (value !== undefined) return value;
    const short = text.length > 40 ? `${text.slice(0, 40)}…` : text;
    throw this.bad(`expected a JSON value, found ${JSON.stringify(short)}`, this.offset - text.length);
  }

  /** The value of an unquoted word; undefined if it has none. */
  #word(text: string): Json | undefined {
    if (text === 'true') return true;
    if (text === 'false') return false;
    if (text === 'null') return null;
    if (!/^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$/.test(text)) return undefined;
    const number = Number(text);
    if (Number.isSafeInteger(number) || !/^-?[0-9]+$/.test(text)) return number;
    this.sawBigint = true;
    return BigInt(text);
  }

  /**
   * Reads the next object or list if all of it is in the window: like {@link value}, but without waiting and
   * several times as fast. Returns undefined and consumes nothing if it is cut off or unusual.
   * @param level its depth in the value being built
   */
  ready(level = 0): Json | undefined {
    const { cursor } = this;
    const { bytes, end } = cursor;
    let at = cursor.at;
    let depth = 0;
    let members = 0;
    let ascii = true;
    do {
      if (at >= end) return undefined;
      const byte = bytes[at++] as number;
      if (byte === QUOTE) {
        for (let inner = bytes[at++]; inner !== QUOTE; inner = bytes[at++]) {
          if (inner === BACKSLASH) {
            // Perhaps half of a surrogate pair: `\uD8…`.
            if (bytes[at] === 0x75 && ((bytes[at + 1] as number) | 0x20) === 0x64) return undefined;
            at++;
          } else if ((inner as number) >= 0x80) ascii = false;
          if (at >= end) return undefined;
        }
      } else if (byte === COLON) members++;
      else if (byte === OPEN_OBJECT || byte === OPEN_LIST) depth++;
      else if (byte === CLOSE_OBJECT || byte === CLOSE_LIST) depth--;
      else if (byte >= 0x30 && byte <= 0x39) {
        const from = at;
        while (isDigit(bytes[at] as number)) at++;
        // With 16 digits it may be beyond 2^53.
        if (at - from >= 15) return undefined;
      }
      if (level + depth > MAX_JSON_DEPTH) return undefined;
    } while (depth > 0);
    return at > end ? undefined : this.#parsed(at, members, ascii);
  }

  /** The text up to `end` as JSON; undefined if it is invalid, or the result has fewer members than the text. */
  #parsed(end: number, members: number, ascii: boolean): Json | undefined {
    const { cursor } = this;
    this.#text ??= Buffer.from(cursor.bytes.buffer, cursor.bytes.byteOffset, cursor.bytes.length);
    const sum = this.#sum;
    const { strings, values } = sum;
    try {
      const text = ascii
        ? this.#text.toString('latin1', cursor.at, end)
        : utf8.decode(cursor.bytes.subarray(cursor.at, end));
      const value = JSON.parse(text) as Json;
      // A duplicate member is an error, which the slow path reports.
      if (this.#count(value) === members) {
        cursor.at = end;
        return value;
      }
    } catch {
      // The slow path reports this too.
    }
    Object.assign(sum, { strings, values });
    return undefined;
  }

  /** Counts the contents of a value; returns the number of members of all objects, NaN if a name is too long. */
  #count(value: Json): number {
    if (typeof value !== 'object' || value === null) {
      this.#sum.values++;
      if (typeof value === 'string') this.#sum.strings += value.length;
      return 0;
    }
    this.#sum.values += VALUES_OF_WHOLE;
    let members = 0;
    if (Array.isArray(value)) {
      for (let i = 0; i < value.length; i++) members += this.#count(value[i] as Json);
      return members;
    }
    for (const name in value) members += name.length > MAX_NAME ? Number.NaN : 1 + this.#count(value[name] as Json);
    return members;
  }

  /**
   * Any value, built in memory; for values that are always small.
   * @param sum of the values that it is kept together with
   */
  async value(sum = new Sum()): Promise<Json> {
    const { cursor } = this;
    const start = cursor.position;
    const build = async (depth: number): Promise<Json> => {
      if (cursor.position - start > MAX_VALUE) throw this.bad(`a value of more than ${MAX_VALUE} bytes`);
      if (depth > MAX_JSON_DEPTH) throw this.bad(`nested deeper than ${MAX_JSON_DEPTH} levels`);
      const first = await this.peek();
      const isWhole = first === OPEN_OBJECT || first === OPEN_LIST;
      await cursor.fill(Math.min(QUICK, cursor.bytes.length));
      const ready = isWhole ? this.ready(depth) : undefined;
      if (ready === undefined) sum.values += isWhole ? VALUES_OF_WHOLE : 1;
      if (sum.values > MAX_VALUES) throw this.bad('more values than any entry can have');
      if (sum.strings > MAX_STRINGS) throw this.bad(`text of more than ${MAX_STRINGS} bytes in one value`);
      await pause();
      if (ready !== undefined) return ready;
      if (first === OPEN_OBJECT) {
        const object: JsonObject = Object.create(null) as JsonObject;
        for await (const name of this.members()) object[name] = await build(depth + 1);
        return object;
      }
      if (first === OPEN_LIST) {
        const list: Json[] = [];
        for await (const _ of this.elements()) list.push(await build(depth + 1));
        return list;
      }
      if (first === QUOTE) {
        const text = await this.string(MAX_STRINGS, sum.strings);
        sum.strings += text.length;
        return text;
      }
      if (first === -1) throw await this.#unexpected('a value');
      return this.#scalar();
    };
    this.#sum = sum;
    const value = await build(0);
    this.#sum = new Sum();
    return value;
  }

  /**
   * Skips a value of any size, and copies its text to `copy` if given. Checks only brackets and
   * strings, because a copy is parsed later.
   */
  async skip(copy?: Output): Promise<void> {
    const { cursor } = this;
    const first = await this.peek();
    if (first !== OPEN_OBJECT && first !== OPEN_LIST && first !== QUOTE) {
      const text = await this.#scalar();
      copy?.text(String(text));
      return;
    }
    let depth = 0;
    let inString = false;
    let escaped = false;
    for (;;) {
      if ((await cursor.fill()) === 0) throw this.bad('the text ends within a value');
      const { bytes, end, at: from } = cursor;
      for (let at = from; at < end; at++) {
        const byte = bytes[at] as number;
        if (inString) {
          if (escaped) escaped = false;
          else if (byte === BACKSLASH) escaped = true;
          else if (byte === QUOTE) inString = false;
        } else if (byte === QUOTE) inString = true;
        else if (byte === OPEN_OBJECT || byte === OPEN_LIST) depth++;
        else if (byte === CLOSE_OBJECT || byte === CLOSE_LIST) depth--;
        if (depth === 0 && !inString) {
          copy?.write(bytes.subarray(from, at + 1));
          cursor.at = at + 1;
          return;
        }
      }
      copy?.write(bytes.subarray(from, end));
      cursor.at = end;
    }
  }

  /** Streams a string of hex digits into `out` as bytes; returns their number. */
  async hexInto(out: Output): Promise<number> {
    const what = 'bytes in hex, two digits each';
    let count = 0;
    const pair = new Uint8Array(2);
    const pairView = viewOf(pair);
    let half = false;
    await this.peek();
    const start = this.offset;
    const refuse = (bytes: Uint8Array, from: number): false => {
      const { cursor } = this;
      // Leaves the cursor at the character that is not a digit, for the message.
      if (bytes === cursor.bytes) for (cursor.at = from; isHexDigit(bytes[cursor.at] as number); ) cursor.at++;
      return false;
    };
    await this.#pieces((bytes, from, to) => {
      const view = bytes === this.cursor.bytes ? this.cursor.view : viewOf(bytes);
      let at = from;
      if (half) {
        pair[1] = bytes[at++] as number;
        out.room(1);
        if (!takeHex(pairView, 0, 2, out.bytes, out.at)) return refuse(bytes, from);
        out.at++;
        count++;
      }
      while (to - at >= 2) {
        const part = Math.min((to - at) & ~1, 64 * 1024);
        out.room(part / 2);
        if (!takeHex(view, at, at + part, out.bytes, out.at)) return refuse(bytes, at);
        out.at += part / 2;
        count += part / 2;
        at += part;
      }
      half = at < to;
      if (half) pair[0] = bytes[at] as number;
      return true;
    }, what);
    if (half) throw this.bad(`must be ${what}, got an odd number of digits`, start);
    return count;
  }

  /** Streams a string of base64 (line ends allowed) into `out` as bytes; returns their number. */
  async base64Into(out: Output): Promise<number> {
    const what = 'bytes in base64';
    await this.#expect(QUOTE, what);
    const { cursor } = this;
    const decoder = new Base64Decoder();
    let count = 0;
    const push = (from: DataView, start: number, end: number): number => {
      out.room(Base64Decoder.room(end - start));
      const stop = decoder.push(from, start, end, out.view, out.at);
      out.at += decoder.written;
      count += decoder.written;
      return stop;
    };
    for (;;) {
      // At least two bytes, so that no escape is split; one is enough for the closing quote.
      if ((await cursor.fill(2)) === 0) throw this.bad('the text ends inside a string');
      const { bytes, end } = cursor;
      // The output of one push must fit into the smallest output buffer.
      const part = Math.min(end, cursor.at + 64 * 1024);
      cursor.at = push(cursor.view, cursor.at, part);
      if (cursor.at === part) {
        await out.turn();
        continue;
      }
      const byte = bytes[cursor.at] as number;
      if (byte === QUOTE) break;
      if (byte !== BACKSLASH) throw this.bad(`must be ${what}`);
      if (cursor.at + 1 === end && (await cursor.fill(2)) === 2) continue;
      const offset = this.offset;
      const unescaped = await this.#escape();
      if (push(viewOf(unescaped), 0, unescaped.length) !== unescaped.length) throw this.bad(`must be ${what}`, offset);
    }
    cursor.at++;
    out.room(3);
    if (!decoder.end(out.view, out.at)) throw this.bad(`must be ${what}, the last digits are missing`);
    out.at += decoder.written;
    return count + decoder.written;
  }
}

/** `line 3, column 7` in a file that can be read again, `byte 1234` elsewhere. */
function lineAndColumn(input: Input, offset: number): { line: number; column: number } | undefined {
  if (input.path === undefined) return undefined;
  let line = 1;
  let lineStart = 0;
  try {
    const fd = fs.openSync(input.path, 'r');
    try {
      const bytes = Buffer.alloc(64 * 1024);
      for (let at = 0; at < offset; ) {
        const read = fs.readSync(fd, bytes, 0, Math.min(bytes.length, offset - at), at);
        if (read === 0) break;
        const part = bytes.subarray(0, read);
        for (let i = part.indexOf(0x0a); i !== -1; i = part.indexOf(0x0a, i + 1)) {
          line++;
          lineStart = at + i + 1;
        }
        at += read;
      }
    } finally {
      fs.closeSync(fd);
    }
  } catch {
    return undefined;
  }
  return { line, column: offset - lineStart + 1 };
}
