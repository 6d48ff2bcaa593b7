/** Types of items in documents: reads and writes the members `types` and `btf`. */
import { BTF_MAX, Btf } from '../btf/btf.js';
import { typeName, typeNamed } from '../btf/c.js';
import type { Meaning } from '../btf/meaning.js';
import { memberPaths, type ValueCodec, valueCodec } from '../btf/values.js';
import { PointerError, pointed, pointerPart } from '../errors.js';
import { BPFMAP_BTF } from '../image/kinds.js';
import { encodeMessage } from '../image/wire.js';
import { Cursor } from '../io/input.js';
import { Spool } from '../io/spool.js';
import type { Json, JsonObject } from '../value.js';
import { check } from './check.js';
import { FORM_MOST, type ItemForms, type JsonForm, type MapForms } from './forms.js';
import { itemBytes } from './items.js';
import { type JsonReader, Sum } from './reader.js';

/**
 * Typed JSON as a form of keys or values. Text with two hex digits for each byte means the bytes, unless it is also
 * how a value of the type is written: a number of 16 decimal digits, say.
 */
export function typedForm(codec: ValueCodec): JsonForm {
  const { size } = codec;
  return {
    size,
    show: (view, at) => codec.decode(view, at),
    print: (view, at, out) => codec.print(view, at, out),
    parse(value, view, at) {
      const bytes = itemBytes(value, size);
      if (bytes === undefined) codec.encode(value, view, at);
      else if (!reads(codec, value, view, at)) new Uint8Array(view.buffer, view.byteOffset + at, size).set(bytes);
    },
    ...(codec.hasParts && { part: (path) => codec.part(path) }),
  };
}

/** Whether `value` is exactly how its bytes are shown. If so, writes the bytes. */
function reads(codec: ValueCodec, value: Json, view: DataView, at: number): boolean {
  if (typeof value !== 'string') return false;
  try {
    codec.encode(value, view, at);
  } catch (error) {
    if (error instanceof PointerError) return false;
    throw error;
  }
  return codec.decode(view, at) === value;
}

/** The types of one map. */
export interface NamedTypes {
  /** Id of their BTF object within the document. */
  readonly btfId: number;
  readonly btf: Btf;
  /** 0 for none. */
  readonly key: number;
  readonly value: number;
  /** What members are, as the user says: by path after `key.` or `value.`, or `key` or `value` for the whole. */
  readonly as?: ReadonlyMap<string, Meaning> | undefined;
}

/** The side and the path there that a member's name with `key.` or `value.` before it means. */
function sideOf(member: string): [side: 'key' | 'value' | undefined, path: string] {
  const [, side, path = ''] = /^(key|value)(?:\.(.*))?$/s.exec(member) ?? [];
  return side === 'key' || side === 'value' ? [side, path] : [undefined, member];
}

/**
 * The whole names, such as `value.stats.saddr`, that `member` means in these types: `key` or `value` with or without a
 * path after it, or a path in either, or its end.
 */
export function membersNamed({ btf, key, value }: NamedTypes, member: string, most: number): string[] {
  const [only, path] = sideOf(member);
  return (['key', 'value'] as const).flatMap((side) => {
    const id = side === 'key' ? key : value;
    if (id === 0 || (only !== undefined && only !== side)) return [];
    if (path === '') return [side];
    return memberPaths(btf, id, path, most).map((one) => `${side}.${one}`);
  });
}

/** What is said of the members of one side, by path. */
function saidOf(side: 'key' | 'value', as: ReadonlyMap<string, Meaning> = new Map()): Map<string, Meaning> {
  const own = [...as].map(([member, is]) => [...sideOf(member), is] as const).filter(([one]) => one === side);
  return new Map(own.map(([, path, is]) => [path, is]));
}

/** What a document says of members, by their whole names. */
function saidWholly(types: NamedTypes, as: Readonly<Record<string, Meaning>>): Map<string, Meaning> {
  const all = Object.entries(as).map(([member, is]): [string, Meaning] => {
    const [name, ...others] = membersNamed(types, member, 2);
    const at = `/as${pointerPart(member)}`;
    if (name === undefined) throw new PointerError(at, `no member ${member}`);
    if (others.length > 0) throw new PointerError(at, `it may be ${[name, ...others].join(' or ')}`);
    return [name, is];
  });
  return new Map(all);
}

/**
 * The forms of items of these types, and the `types` member that names them.
 * @param readable whether they are for people: with addresses and times as text
 * @throws PointerError for members that cannot be shown as `as` says
 */
export function namedForms({ btfId, btf, key, value, as }: NamedTypes, readable = false): MapForms {
  const types: JsonObject = { btf_id: btfId };
  const form = (what: 'key' | 'value', id: number): JsonForm | undefined => {
    if (id === 0) return undefined;
    const name = typeName(btf, id);
    types[what] = name;
    // Arrays, and types that share a name, cannot be found by name.
    if (typeNamed(btf, name) !== id) types[`btf_${what}_type_id`] = id;
    return typedForm(valueCodec(btf, id, { readable, as: saidOf(what, as) }));
  };
  const forms = { key: form('key', key), value: form('value', value) };
  if (as !== undefined && as.size > 0) types.as = Object.fromEntries(as);
  return { ...forms, types };
}

/** A BTF object in a document. */
export interface CarriedBtf {
  /** As in a bpfmap_btf_entry. */
  readonly message: JsonObject;
  /** Where the blob begins in {@link DocumentTypes.blobs}. */
  readonly at: number;
  readonly size: number;
}

/** The types in a document. */
export class DocumentTypes {
  /** All blobs, one after the other. */
  readonly blobs = new Spool();
  readonly objects = new Map<number, CarriedBtf>();
  readonly #parsed = new Map<number, Btf>();

  close(): void {
    this.blobs.close();
  }

  /** Reads the list that comes next, a document's `btf`. */
  async read(reader: JsonReader): Promise<void> {
    for await (const _ of reader.elements()) {
      await reader.peek();
      const start = reader.offset;
      const message: JsonObject = Object.create(null) as JsonObject;
      const sum = new Sum();
      const at = this.blobs.length;
      let size: number | undefined;
      for await (const name of reader.members()) {
        await reader.peek();
        const offset = reader.offset;
        if (name === 'blob') {
          size = await reader.base64Into(this.blobs);
          if (size > BTF_MAX) throw reader.bad(`a BTF object of ${size} bytes, expected at most ${BTF_MAX}`, offset);
        } else message[name] = await reader.value(sum);
      }
      if (size === undefined) throw reader.bad('member "blob" is missing', start);
      const problem = await check('btf_object', message, true);
      if (problem) throw await reader.badAt(problem, start);
      const id = message.btf_id as number;
      if (this.objects.has(id))
        throw await reader.badAt(new PointerError('/btf_id', `BTF object ${id} appears twice`), start);
      const whole: JsonObject = { ...message, size };
      try {
        encodeMessage(BPFMAP_BTF.message, whole, 'latin1');
      } catch (error) {
        if (error instanceof PointerError) throw await reader.badAt(error, start);
        throw error;
      }
      this.objects.set(id, { message: whole, at, size });
    }
  }

  /**
   * The ids of the types that a map's `types` names.
   * @throws PointerError with a pointer relative to `types`
   */
  async resolve(types: Json): Promise<NamedTypes> {
    const problem = await check('item_types', types, true);
    if (problem) throw problem;
    const { btf_id, as = {}, ...names } = types as { btf_id: number; as?: Record<string, Meaning> } & JsonObject;
    const btf = await this.#btf(btf_id);
    const id = (what: 'key' | 'value'): number => {
      const [name, said] = [names[what] as string | undefined, names[`btf_${what}_type_id`] as number | undefined];
      if (said !== undefined) {
        const is = typeName(btf, said);
        if (name === undefined || name === is) return said;
        throw new PointerError(`/btf_${what}_type_id`, `type ${said} is ${is}, "${what}" says ${name}`);
      }
      const found = name === undefined ? 0 : typeNamed(btf, name);
      if (found === undefined) throw new PointerError(`/${what}`, `no type ${name} in ${btf.name}`);
      return found;
    };
    try {
      const named = { btfId: btf_id, btf, key: id('key'), value: id('value') };
      return { ...named, as: saidWholly(named, as) };
    } catch (error) {
      throw pointed(error);
    }
  }

  /**
   * The forms of a map's items.
   * @param header of the map; its sizes must match its types
   * @throws PointerError with a pointer relative to the map
   */
  async forms(header: JsonObject): Promise<ItemForms> {
    try {
      const { btf, key, value, as } = await this.resolve(header.types as Json);
      const form = (what: 'key' | 'value', id: number): JsonForm | undefined => {
        if (id === 0) return undefined;
        const codec = valueCodec(btf, id, { as: saidOf(what, as) });
        const size = header[`${what}_size`];
        if (typeof size === 'number' && size !== codec.size) {
          throw new PointerError(`/${what}`, `${codec.typeName} has ${codec.size} bytes, ${what}_size is ${size}`);
        }
        return codec.size > FORM_MOST ? undefined : typedForm(codec);
      };
      return { key: form('key', key), value: form('value', value) };
    } catch (error) {
      throw pointed(error, '/types');
    }
  }

  async #btf(id: number): Promise<Btf> {
    let btf = this.#parsed.get(id);
    if (btf !== undefined) return btf;
    const object = this.objects.get(id);
    if (object === undefined) {
      throw new PointerError('/btf_id', `no BTF object ${id} in the document's "btf", which must come before its maps`);
    }
    const { at, size, message } = object;
    const blob = await new Cursor(this.blobs.input(), at, at + size).take(size);
    const { name } = message;
    try {
      btf = Btf.parse(blob, { name: typeof name === 'string' && name !== '' ? `BTF ${id} (${name})` : `BTF ${id}` });
      btf.checkByteOrder();
    } catch (error) {
      throw pointed(error, '/btf_id');
    }
    this.#parsed.set(id, btf);
    return btf;
  }
}
