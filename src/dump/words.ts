/**
 * Keys and values as people type them: JSON, a number, text, `member=value,…`, hex as `show` and `decode` print it, or
 * an address.
 */
import { cpuParts, ipv4Bytes, ipv6Bytes, macBytes, unhex, viewOf } from '../bytes.js';
import { BpfimgError, PointerError } from '../errors.js';
import { bufferInput } from '../io/input.js';
import type { ItemForms, ItemShape, JsonForm } from '../json/forms.js';
import { JsonReader } from '../json/reader.js';
import type { MapType, MapTypes } from '../maptype.js';
import type { Json } from '../value.js';

/** What a word stands for: bytes of this size, and how they look if their type is known. */
export interface WordTarget {
  /** `key` or `value`, for messages. */
  readonly what: string;
  readonly size: number;
  readonly form: JsonForm | undefined;
  /** Other texts that mean bytes of this size. */
  readonly text?: ((word: string) => Uint8Array | undefined) | undefined;
  /** A number comes before hex digits, as for an index. */
  readonly number?: boolean;
}

/** The word as JSON; undefined if it is none. */
async function jsonOf(word: string): Promise<Json | undefined> {
  if (!/^\s*([[{"\d-]|true\b|false\b|null\b)/.test(word)) return undefined;
  const input = bufferInput(Buffer.from(word), 'it');
  try {
    const reader = new JsonReader(input);
    await reader.peek();
    const value = await reader.value();
    return (await reader.peek()) === -1 ? value : undefined;
  } catch (error) {
    if (error instanceof BpfimgError) return undefined;
    throw error;
  }
}

/** Hex digits, in groups as people see them or without blanks, if they are `size` bytes. */
function hexOf(word: string, size: number): Uint8Array | undefined {
  const digits = word.replace(/ +/g, '');
  return size > 0 && digits.length === 2 * size ? unhex(digits.toLowerCase()) : undefined;
}

/** A whole number in `size` bytes, in the byte order of this machine and of images: little-endian. */
function numberBytes(word: string, size: number): Uint8Array | undefined {
  if (!/^(-?(0|[1-9]\d*)|0x[0-9a-f]+)$/i.test(word) || size === 0 || size > 8) return undefined;
  const bits = BigInt(8 * size);
  const value = word.startsWith('-') ? -BigInt(word.slice(1)) : BigInt(word);
  if (value >= 1n << bits || value < -(1n << (bits - 1n))) return undefined;
  const bytes = new Uint8Array(size);
  for (let i = 0; i < size; i++) bytes[i] = Number((value >> BigInt(8 * i)) & 0xffn);
  return bytes;
}

/** The bytes of an IPv4, IPv6 or hardware address. */
function addressOf(word: string, size: number): Uint8Array | undefined {
  if (size === 4) return ipv4Bytes(word);
  return size === 16 ? ipv6Bytes(word) : size === 6 ? macBytes(word) : undefined;
}

/** What a word may be, for a message. */
function expected({ size, number, text }: WordTarget): string {
  const numbers = size <= 8 ? `a number, or ` : '';
  const digits = size > 64 ? 'in hex' : `as ${2 * size} hex digits`;
  if (number === true) return `a number from 0 to ${2 ** (8 * size) - 1}`;
  return `${numbers}${size} ${size === 1 ? 'byte' : 'bytes'} ${digits}${text === undefined ? '' : ', or an address'}`;
}

/**
 * The bytes of a whole key or value.
 * @throws BpfimgError `usage`
 */
export async function wordBytes(word: string, target: WordTarget): Promise<Uint8Array> {
  const { size, form, what } = target;
  const plain = target.text?.(word);
  if (plain !== undefined) return plain;
  if (form === undefined) {
    const [first, second] = target.number ? [numberBytes, hexOf] : [hexOf, numberBytes];
    const bytes = first(word, size) ?? second(word, size) ?? addressOf(word, size);
    if (bytes !== undefined) return bytes;
    throw refused(what, word, `expected ${expected(target)}`);
  }
  const bytes = new Uint8Array(form.size);
  const digits = hexOf(word, size);
  if (digits !== undefined && word.includes(' ')) return digits;
  const given = form.part === undefined ? undefined : members(word);
  if (given !== undefined) {
    const missing = missingParts(form, given);
    if (missing.length > 0)
      throw refused(what, word, `${missing.join(', ')} ${missing.length === 1 ? 'is' : 'are'} missing`);
    await setParts(bytes, [word], target);
    return bytes;
  }
  try {
    await put(word, (value) => form.parse(value, viewOf(bytes), 0));
    return bytes;
  } catch (error) {
    throw error instanceof PointerError ? bad(what, word, error) : error;
  }
}

/**
 * Has `encode` write what a word means: JSON, or else text.
 * @throws PointerError
 */
async function put(word: string, encode: (value: Json) => void): Promise<void> {
  const json = await jsonOf(word);
  try {
    encode(json ?? word);
  } catch (error) {
    // `80` and `true` may also be text.
    const isScalar = typeof json === 'number' || typeof json === 'bigint' || typeof json === 'boolean';
    if (!(error instanceof PointerError) || !isScalar) throw error;
    try {
      encode(word);
    } catch {
      throw error;
    }
  }
}

/** The members that people see of a value of this form, and that `given` does not mention. */
function missingParts(form: JsonForm, given: readonly (readonly [path: string, value: string])[]): string[] {
  const shown = form.show(new DataView(new ArrayBuffer(form.size)), 0);
  if (typeof shown !== 'object' || shown === null || Array.isArray(shown)) return [];
  const isPart = (path: string, name: string) => path.startsWith(name) && /^([.[]|$)/.test(path.slice(name.length));
  return Object.keys(shown).filter((name) => !given.some(([path]) => isPart(path, name)));
}

/** `MEMBER=VALUE`, several of them separated by commas; undefined if the word does not begin so. */
export function members(word: string): [path: string, value: string][] | undefined {
  const found: [string, string][] = [];
  let rest: string | undefined = word;
  while (rest !== undefined) {
    const match: RegExpExecArray | null = /^([\w$#.[\]]+)=(.*)$/s.exec(rest);
    if (match === null) return undefined;
    const [, path = '', after = ''] = match;
    // A comma ends the value only if another member follows it: text and lists have commas, too.
    const plain = /^["[{]/.test(after)
      ? after.replace(/"(?:[^"\\]|\\.)*"/gs, (text) => '"'.repeat(text.length))
      : after;
    const end = plain.search(/,[\w$#.[\]]+=/);
    found.push([path, end < 0 ? after : after.slice(0, end)]);
    rest = end < 0 ? undefined : after.slice(end + 1);
  }
  return found;
}

/**
 * Sets members of a key or value to what the words say, and leaves all other bits.
 * @throws BpfimgError `usage`
 */
export async function setParts(bytes: Uint8Array, words: readonly string[], target: WordTarget): Promise<void> {
  const { what, form } = target;
  for (const word of words) {
    for (const [path, text] of members(word) ?? []) {
      try {
        const part = form?.part?.(path);
        if (part === undefined) throw refused(what, word, `its type is not known, or has no members`);
        await put(text, (value) => part.encode(value, viewOf(bytes), 0));
      } catch (error) {
        throw error instanceof PointerError ? bad(what, word, error) : error;
      }
    }
  }
}

const refused = (what: string, word: string, text: string) =>
  new BpfimgError('usage', text, { subject: `${what} ${word === '' ? "''" : word}` });

const bad = (what: string, word: string, { pointer, text }: PointerError) =>
  refused(what, word, pointer === '' ? text : `${pointer}: ${text}`);

/** Turns the words of a command line into the keys and values of one map. */
export class ItemWords {
  readonly #key: WordTarget;
  readonly #value: WordTarget;

  /**
   * @param shape sizes of the map's items
   * @param forms how they look, if their types are known; those that fit the sizes
   * @param type the map's type, if it is known
   * @param types has other texts for keys, such as a prefix
   */
  constructor(
    readonly shape: ItemShape,
    forms: ItemForms | undefined,
    type: MapType | undefined,
    types: MapTypes,
  ) {
    const { size } = cpuParts(shape.valueSize, shape.perCpu);
    const keyBytes = type && types.plugin(type.number).keyBytes;
    this.#key = {
      what: 'key',
      size: shape.keySize,
      form: forms?.key,
      ...(type?.key === 'index' && { number: true }),
      text: keyBytes && ((word) => keyBytes(word, shape.keySize)),
    };
    this.#value = { what: 'value', size, form: forms?.value };
  }

  /** @throws BpfimgError `usage` */
  key(word: string): Promise<Uint8Array> {
    return wordBytes(word, this.#key);
  }

  /** Whether words change members of a value instead of being one. */
  changes(words: readonly string[]): boolean {
    if (this.#value.form?.part === undefined && this.shape.perCpu === undefined) return false;
    return words.every((word) => members(word) !== undefined);
  }

  /**
   * The value that the words mean: all of it, for each CPU alike or as a list with one per CPU; or `before` with
   * members changed.
   * @param before the value as it is, if there is an item
   * @throws BpfimgError `usage`; `notFound` to change members of an item that does not exist
   */
  async value(words: readonly string[], before: Uint8Array | undefined): Promise<Uint8Array> {
    const { shape } = this;
    const { size, stride, cpus } = cpuParts(shape.valueSize, shape.perCpu);
    const bytes = new Uint8Array(shape.valueSize);
    const [word = '', ...more] = words;
    if (this.changes(words)) {
      if (before === undefined) {
        throw new BpfimgError('notFound', 'there is no item with this key: to add one, give all of its value', {
          subject: word,
        });
      }
      bytes.set(before);
      for (const [path, text] of words.flatMap((one) => members(one) ?? [])) await this.#change(bytes, path, text);
      return bytes;
    }
    if (more.length > 0)
      throw new BpfimgError('usage', 'a value is one word, or each word is MEMBER=VALUE', { subject: more[0] });
    const list = shape.perCpu === undefined ? undefined : await jsonOf(word);
    if (Array.isArray(list) && list.length !== cpus) {
      throw refused('value', word, `expected one value, or a list of ${cpus}: one for each possible CPU`);
    }
    // Padding of CPUs' values is part of no word, but may be given in a list.
    if (before !== undefined)
      for (let at = size; at < bytes.length; at += stride) bytes.set(before.subarray(at, at - size + stride), at);
    for (let cpu = 0; cpu < cpus; cpu++) {
      const at = cpu * stride;
      if (Array.isArray(list)) await this.#put(bytes.subarray(at, at + stride), list[cpu] as Json, word);
      else bytes.set(await wordBytes(word, this.#value), at);
    }
    return bytes;
  }

  /** Sets one CPU's value to JSON of a list, which may also be bytes with their padding. */
  async #put(bytes: Uint8Array, json: Json, word: string): Promise<void> {
    const { form, size } = this.#value;
    const whole = json !== null && typeof json === 'object' && '$raw' in json ? unhex(String(json.$raw)) : undefined;
    if (whole?.length === bytes.length) bytes.set(whole);
    else if (form === undefined) bytes.set(await wordBytes(String(json), this.#value));
    else {
      try {
        form.parse(json, viewOf(bytes.subarray(0, size)), 0);
      } catch (error) {
        throw error instanceof PointerError ? bad('value', word, error) : error;
      }
    }
  }

  /** Sets a member, in the value of one CPU (`[1].hits`) or of all. */
  async #change(bytes: Uint8Array, path: string, text: string): Promise<void> {
    const { size, stride, cpus } = cpuParts(this.shape.valueSize, this.shape.perCpu);
    const [index = '', digits] = (this.shape.perCpu !== undefined && /^\[(\d{1,9})\]\.?/.exec(path)) || [];
    const only = digits === undefined ? undefined : Number(digits);
    if (only !== undefined && only >= cpus) {
      throw refused('value', `${path}=${text}`, `expected a CPU from [0] to [${cpus - 1}]`);
    }
    for (let cpu = 0; cpu < cpus; cpu++) {
      if (only !== undefined && cpu !== only) continue;
      const value = bytes.subarray(cpu * stride, cpu * stride + size);
      const member = path.slice(index.length);
      if (member === '') value.set(await wordBytes(text, this.#value));
      else await setParts(value, [`${member}=${text}`], this.#value);
    }
  }
}
