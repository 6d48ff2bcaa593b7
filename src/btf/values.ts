/**
 * Values of a type as JSON, and JSON as values, without loss.
 *
 * {@link valueCodec} makes a codec for a type, once. {@link ValueCodec.decode} returns plain JavaScript values,
 * with text for integers that a JSON number cannot hold; {@link ValueCodec.print} writes the same as JSON text
 * into an `Output`.
 *
 * | type | JSON |
 * |---|---|
 * | integers | numbers; decimal text beyond 2^53 - 1. Encoding accepts both, and hex text (`"0x1f"`). `__be32` and its like as the numbers they mean |
 * | `bool` | `true`, `false`; other bytes as a number |
 * | enums | a name; a number where there is no name |
 * | pointers | hex text, `"0x0"` |
 * | `float`, `double` | numbers; `"NaN"`, `"Infinity"`, `"-Infinity"`, `"-0"`; hex text for any other NaN |
 * | `char[N]` | text, if it is clean |
 * | arrays | lists; nested lists for several dimensions |
 * | structures | objects; members of anonymous structures appear among the others |
 * | unions | objects with the widest member; JSON may set any other instead |
 * | locks, timers, kptrs, … | `{"$kernel": "bpf_timer"}` |
 * | text, arrays, structures that none of the above can express | `{"$raw": "hex"}` |
 *
 * Invariant: `encode(decode(bytes))` is `bytes` for any bytes. If an object's members do not cover all of its
 * bytes (mostly because of padding), one more member, `$raw`, has all the bytes of that object. Encoding takes
 * each present member's bytes from the member and all others from `$raw`; without `$raw` they are zero.
 */
import { hex } from '../bytes.js';
import { PointerError, pointerPart } from '../errors.js';
import { isObject, type Json, type JsonObject } from '../value.js';
import {
  type ArrayType,
  type Btf,
  type DatasecType,
  type EnumType,
  type FloatType,
  type IntType,
  MAX_TYPE_DEPTH,
  type Member,
  type RefType,
  type StructType,
} from './btf.js';
import { typeName } from './c.js';
import { declaredOrder, type Meaning, meaningOf, readAs, readingOf } from './meaning.js';
import {
  type BitPosition,
  boolCodec,
  bytesAt,
  type Codec,
  type CodecPart,
  enumCodec,
  floatCodec,
  foundText,
  intCodec,
  looseCodec,
  oneOf,
  opaqueCodec,
  pointerCodec,
  type Refuse,
  rawValueBytes,
  textCodec,
} from './scalars.js';
import { type Phrase, phrase, putByte, putPhrase, type Sink } from './sink.js';
import { SPECIAL_FIELDS, specialKind } from './special.js';

export type { Sink } from './sink.js';

/** Reads and writes values of one type. */
export interface ValueCodec {
  readonly btf: Btf;
  readonly id: number;
  /** As written in C. */
  readonly typeName: string;
  /** Bytes of a value. It comes from the BTF: compare it with the map's before trusting it. */
  readonly size: number;
  /**
   * The value at byte `at` of `view`, which has at least {@link size} bytes from there. One view over many
   * values is faster than one view for each.
   */
  decode(view: DataView, at?: number): Json;
  /**
   * Writes the value to `out` as JSON text without blanks: the same text as `JSON.stringify` of what
   * {@link decode} returns, but several times as fast.
   */
  print(view: DataView, at: number, out: Sink): void;
  /**
   * Writes `value` at byte `at` of `view`: all {@link size} bytes.
   * @throws PointerError for JSON that does not fit; the bytes are then undefined
   */
  encode(value: Json, view: DataView, at?: number): void;
  /** Whether it has members or elements. */
  readonly hasParts: boolean;
  /**
   * The part of a value at `path`: `stats[2].bytes`, also a union's member that decoding does not show.
   * @throws PointerError if there is none
   */
  part(path: string): ValuePart;
}

/** A member or element of a value, however deep. */
export interface ValuePart {
  /** The part of the value at byte `at` of `view`. */
  decode(view: DataView, at?: number): Json;
  /**
   * Sets it within the value at byte `at` of `view`, and no other bits.
   * @throws PointerError for JSON that does not fit
   */
  encode(value: Json, view: DataView, at?: number): void;
}

/** How values are shown. */
export interface CodecOptions {
  /** Addresses and times as text, for people. It is taken as input in any case. */
  readonly readable?: boolean;
  /** What members are, by path without indexes (`flows.saddr`); the empty path is the whole value. */
  readonly as?: ReadonlyMap<string, Meaning>;
}

const codecs = new WeakMap<Btf, Map<string, ValueCodec>>();

/**
 * The codec for values of type `id`.
 * @throws BpfimgError `badImage` for types that have no values or are invalid
 * @throws PointerError for a member that cannot be what {@link CodecOptions.as} says
 */
export function valueCodec(btf: Btf, id: number, { readable = false, as }: CodecOptions = {}): ValueCodec {
  let known = codecs.get(btf);
  if (known === undefined) {
    known = new Map();
    codecs.set(btf, known);
  }
  const name = JSON.stringify([id, readable, as === undefined ? [] : [...as]]);
  let codec = known.get(name);
  if (codec === undefined) {
    codec = checked(btf, id, new Compiler(btf, readable).whole(id, as));
    known.set(name, codec);
  }
  return codec;
}

/**
 * The paths, without indexes, that a user may mean by a member's name: the path itself, or all that end with it.
 * @param most how many are enough
 */
export function memberPaths(btf: Btf, id: number, text: string, most: number): string[] {
  const wanted = text.replaceAll(/\[\d*\]/g, '');
  const found = new Set<string>();
  const seen = new Map<Codec, boolean>();
  // Types may share types many times over: only those that have such a member are entered more than once.
  const has = (codec: Codec): boolean => {
    const known = seen.get(codec);
    if (known !== undefined) return known;
    seen.set(codec, false);
    const is = partsOf(codec).some(([name, part]) => (name !== '' && ends(wanted, name)) || has(part));
    seen.set(codec, is);
    return is;
  };
  const walk = (codec: Codec, path: string): void => {
    if (found.size >= most || !has(codec)) return;
    for (const [name, part] of partsOf(codec)) {
      const here = name === '' ? path : path === '' ? name : `${path}.${name}`;
      if (name !== '' && ends(here, wanted)) found.add(here);
      walk(part, here);
    }
  };
  const whole = new Compiler(btf, false).codec(id, 0);
  walk(whole, '');
  return found.has(wanted) ? [wanted] : [...found];
}

const ends = (path: string, end: string) => path === end || path.endsWith(`.${end}`);

/** The members of a codec by name; of an array, its element. */
function partsOf(codec: Codec): [name: string, codec: Codec][] {
  const { parts = [] } = codec;
  const names = typeof parts === 'number' ? [0] : parts;
  return names.flatMap((name): [string, Codec][] => {
    const part = codec.part?.(name)?.codec;
    return part === undefined ? [] : [[typeof name === 'number' ? '' : name, part]];
  });
}

function checked(btf: Btf, id: number, codec: Codec): ValueCodec {
  const { size, decode, print, encode } = codec;
  const name = typeName(btf, id);
  const check = (view: DataView, at: number) => {
    if (at < 0 || at + size > view.byteLength) {
      throw new RangeError(`${name}: ${size} bytes at ${at} of ${view.byteLength}`);
    }
  };
  return {
    btf,
    id,
    typeName: name,
    size,
    decode(view, at = 0) {
      check(view, at);
      return decode(view, at);
    },
    print(view, at, out) {
      check(view, at);
      print(view, at, out);
    },
    encode(value, view, at = 0) {
      check(view, at);
      encode(value, view, at);
    },
    hasParts: codec.parts !== undefined,
    part(path) {
      const { offset, codec: part } = partAt(codec, path, name);
      return {
        decode(view, at = 0) {
          check(view, at);
          return part.decode(view, at + offset);
        },
        encode(value, view, at = 0) {
          check(view, at);
          try {
            part.encode(value, view, at + offset);
          } catch (error) {
            throw error instanceof PointerError ? error.within(pointerOf(path)) : error;
          }
        },
      };
    },
  };
}

const pointerOf = (path: string) =>
  path
    .split(/[.[\]]+/)
    .filter((name) => name !== '')
    .map(pointerPart)
    .join('');

/** Finds a part by its path. Names may have dots, as those of static variables do. */
function partAt(whole: Codec, path: string, type: string): CodecPart {
  let [rest, offset, codec] = [path, 0, whole];
  const refuse = (problem: string) =>
    new PointerError(pointerOf(path.slice(0, path.length - rest.length)), `${type}: ${problem}`);
  while (rest !== '') {
    const { parts } = codec;
    if (parts === undefined) throw refuse(`has no part ${rest}`);
    const [index, digits] = /^\[(\d{1,9})\]\.?/.exec(rest) ?? [];
    const names = index === undefined && typeof parts !== 'number' ? namesAt(rest) : [];
    const name = names.find((one) => codec.part?.(one) !== undefined);
    const part = index === undefined ? codec.part?.(name ?? '') : codec.part?.(Number(digits));
    if (part === undefined) {
      const expected = typeof parts === 'number' ? `expected [0] to [${parts - 1}]` : `expected ${oneOf(parts)}`;
      throw refuse(`no part ${names.at(-1) ?? rest}, ${expected}`);
    }
    offset += part.offset;
    codec = part.codec;
    rest = rest.slice((index ?? name ?? '').length).replace(/^\./, '');
  }
  return { offset, codec };
}

/** The names that a path may begin with, the longest first. */
function namesAt(path: string): string[] {
  const ends = [...path.matchAll(/[.[]/g)].map(({ index }) => index).filter((index) => index > 0);
  return [path.length, ...ends.reverse()].map((end) => path.slice(0, end));
}

/** One member in JSON: a member of the structure, or of an anonymous member of it. */
interface Slot {
  /** Its name in JSON. */
  readonly name: string;
  /** Bits from the structure's start. */
  readonly bitOffset: number;
  readonly bits: number;
  readonly codec: Codec;
  /** Bytes from the structure's start to where the codec reads. */
  readonly offset: number;
  /** Decoding shows it: it is in no union, or in the union's widest member. */
  readonly shown: boolean;
  /** The unions it is in, outermost first: the union's number and the member's number in it. */
  readonly choices: readonly (readonly [union: number, option: number])[];
}

/** Most members and enum names that all types reached from one may have together. The kernel's largest have thousands. */
const MAX_PARTS = 100_000;
/** Names that a member cannot have in JSON: our own, and one that is special in JavaScript objects. */
const RESERVED = [['$raw', 2] as const, ['__proto__', 2] as const];

/** What a user has said of a member, and of the members in it. */
interface Said {
  is?: Meaning;
  readonly path: string;
  readonly members: Map<string, Said>;
}

function saidOf(as: ReadonlyMap<string, Meaning>): Said {
  const root: Said = { path: '', members: new Map() };
  for (const [path, is] of as) {
    let at = root;
    for (const name of path === '' ? [] : path.split('.')) {
      let next = at.members.get(name);
      if (next === undefined) {
        next = { path: at.path === '' ? name : `${at.path}.${name}`, members: new Map() };
        at.members.set(name, next);
      }
      at = next;
    }
    at.is = is;
  }
  return root;
}

/** What is said of a member; its name may have dots, as those of static variables do. */
function saidIn(said: Said | undefined, name: string): Said | undefined {
  let at = said;
  for (const part of said === undefined ? [] : name.split('.')) at = at?.members.get(part);
  return at;
}

/** Makes codecs for a type and all types it contains. */
class Compiler {
  readonly #btf: Btf;
  readonly #readable: boolean;
  readonly #done = new Map<number, Codec>();
  #parts = 0;

  constructor(btf: Btf, readable: boolean) {
    this.#btf = btf;
    this.#readable = readable;
  }

  whole(id: number, as: ReadonlyMap<string, Meaning> | undefined): Codec {
    return this.#member(id, '', 0, as && as.size > 0 ? saidOf(as) : undefined);
  }

  #refuse(id: number): Refuse {
    return (problem, pointer = '') => new PointerError(pointer, `${typeName(this.#btf, id)}: ${problem}`);
  }

  /** @param id not resolved, because messages use its name */
  codec(id: number, depth: number): Codec {
    let codec = this.#done.get(id);
    if (codec === undefined) {
      if (depth > MAX_TYPE_DEPTH)
        throw this.#btf.bad(id, `contains itself, or nests structures more than ${MAX_TYPE_DEPTH} deep`);
      codec = this.#make(id, depth);
      this.#done.set(id, codec);
    }
    return codec;
  }

  /** The codec of a member, whose name may say what it is. */
  #member(id: number, name: string, depth: number, said: Said | undefined): Codec {
    if (said !== undefined) return this.#said(id, depth, said);
    const codec = this.codec(id, depth);
    const meaning = meaningOf(this.#btf, id, name);
    // Without a name, it means the same anywhere.
    return meaning === meaningOf(this.#btf, id, '') ? codec : this.#read(codec, id, meaning);
  }

  /** The codec of a value that means something by itself. */
  #read(codec: Codec, id: number, meaning: Meaning | undefined): Codec {
    if (meaning === undefined || meaning === 'be') return codec;
    const reading = readingOf(meaning, codec.size, codec);
    return reading === undefined ? codec : readAs(codec, reading, this.#readable, this.#refuse(id));
  }

  /** The codec of a member of which, or of whose members, the user has said something. */
  #said(id: number, depth: number, said: Said): Codec {
    const btf = this.#btf;
    if (depth > MAX_TYPE_DEPTH)
      throw btf.bad(id, `contains itself, or nests structures more than ${MAX_TYPE_DEPTH} deep`);
    const target = btf.resolve(id);
    const kind = btf.kind(target);
    const refuse = this.#refuse(id);
    if (kind === 'VAR') return this.#said((btf.type(target) as RefType).type, depth + 1, said);
    if (said.is !== undefined) {
      const codec = this.#as(id, depth, said.is);
      if (codec !== undefined) return codec;
    }
    const special = specialKind(btf, target) !== undefined;
    if (kind === 'ARRAY' && btf.size(target) > 0) {
      const { type: of, count } = btf.type(target) as ArrayType;
      const element = btf.resolve(of);
      const text = btf.kind(element) === 'INT' && (btf.type(element) as IntType).char;
      if (!text) return arrayCodec(this.#said(of, depth + 1, said), count, refuse);
    } else if (said.is === undefined && !special && ['STRUCT', 'UNION', 'DATASEC'].includes(kind)) {
      return this.#struct(id, target, btf.size(id), depth, said);
    }
    throw this.#misfit(id, said);
  }

  #misfit(id: number, { path, is }: Said): PointerError {
    return new PointerError('', `${path === '' ? '' : `${path}: `}${typeName(this.#btf, id)} cannot be shown as ${is}`);
  }

  /** The codec of a value as the user wants it; undefined if the value as a whole cannot be that. */
  #as(id: number, depth: number, is: Meaning): Codec | undefined {
    const btf = this.#btf;
    const target = btf.resolve(id);
    if (btf.size(target) === 0 || specialKind(btf, target) !== undefined) return undefined;
    const number = this.#plainNumber(id, is === 'be' ? false : this.#littleEndian(id));
    if (is === 'be') return number;
    const codec = this.codec(id, depth);
    const reading = readingOf(is, codec.size, number);
    return reading && readAs(codec, reading, true, this.#refuse(id));
  }

  /** An integer of whole bytes, an enum or a pointer as a number; undefined for anything else. */
  #plainNumber(id: number, little: boolean): Codec | undefined {
    const btf = this.#btf;
    const target = btf.resolve(id);
    const kind = btf.kind(target);
    const size = btf.size(target);
    if (kind !== 'INT' && kind !== 'ENUM' && kind !== 'ENUM64' && kind !== 'PTR') return undefined;
    const type = kind === 'PTR' ? undefined : (btf.type(target) as IntType | EnumType);
    if (type?.kind === 'INT' && type.bits !== size * 8) return undefined;
    return intCodec({ start: 0, bits: size * 8, little }, type?.signed ?? false, this.#refuse(id));
  }

  /** The byte order of a number, as the name of its type says. */
  #littleEndian(id: number): boolean {
    const declared = declaredOrder(this.#btf, id);
    return declared === undefined ? this.#btf.littleEndian : declared === 'little';
  }

  #make(id: number, depth: number): Codec {
    const codec = this.#bare(id, depth);
    return this.#read(codec, id, meaningOf(this.#btf, id, ''));
  }

  #bare(id: number, depth: number): Codec {
    const btf = this.#btf;
    const refuse = this.#refuse(id);
    const size = btf.size(id);
    const target = btf.resolve(id);
    // Types are read in full only if needed, because thousands may refer to one with thousands of members.
    const kind = btf.kind(target);
    if (kind === 'VAR') return this.codec((btf.type(target) as RefType).type, depth + 1);
    if (size === 0) return emptyCodec(kind === 'ARRAY', refuse);
    const special = specialKind(btf, target);
    if (special !== undefined) return opaqueCodec(special, SPECIAL_FIELDS[special].size, refuse);
    switch (kind) {
      case 'INT':
      case 'ENUM':
      case 'ENUM64':
        return this.#number(btf.type(target) as IntType | EnumType, this.#littleEndian(id), refuse);
      case 'FLOAT':
        // Reading it checks its size.
        return floatCodec((btf.type(target) as FloatType).size, btf.littleEndian, refuse);
      case 'PTR':
        return pointerCodec({ start: 0, bits: size * 8, little: btf.littleEndian }, refuse);
      case 'ARRAY': {
        const { type: of, count } = btf.type(target) as ArrayType;
        const element = btf.resolve(of);
        if (btf.kind(element) === 'INT' && (btf.type(element) as IntType).char) return textCodec(count, refuse);
        return arrayCodec(this.codec(of, depth + 1), count, refuse);
      }
      case 'STRUCT':
      case 'UNION':
      case 'DATASEC':
        return this.#struct(id, target, size, depth);
      default:
        throw btf.bad(id, 'has no values');
    }
  }

  /** A number that is not a bit-field. */
  #number(type: IntType | EnumType, little: boolean, refuse: Refuse): Codec {
    if (type.kind !== 'INT' || type.bits === type.size * 8) {
      return this.#bits(type, { start: 0, bits: type.size * 8, little }, refuse);
    }
    // Counted from the lowest bit, but on big-endian machines positions count from the highest.
    const from = little ? type.bitOffset : type.size * 8 - type.bitOffset - type.bits;
    const place = { start: from % 8, bits: type.bits, little };
    return looseCodec(this.#bits(type, place, refuse), Math.floor(from / 8), type.size, refuse);
  }

  #bits(type: IntType | EnumType, place: BitPosition, refuse: Refuse): Codec {
    if (type.kind !== 'INT') {
      this.#count(type.id, type.values.length);
      return enumCodec(type, place, refuse);
    }
    return type.bool ? boolCodec(place, refuse) : intCodec(place, type.signed, refuse);
  }

  /** Counts parts of types: types that share types could otherwise expand to more than fits in memory. */
  #count(id: number, parts: number): void {
    this.#parts += parts;
    if (this.#parts > MAX_PARTS) throw this.#btf.bad(id, `has more than ${MAX_PARTS} members, nested ones included`);
  }

  #struct(id: number, target: number, size: number, depth: number, said?: Said): Codec {
    const found = { slots: [] as Slot[], names: new Map<string, number>(RESERVED), unions: 0 };
    this.#collect(target, { bitOffset: 0, shown: true, choices: [], depth, said }, found);
    const { slots } = found;
    const gaps = this.#gaps(id, size, slots);
    return structCodec(size, slots, gaps, this.#refuse(id));
  }

  /**
   * Adds the members of structure `id` to `found`.
   * @param place where its first bit is, and whether and by which choices its members are shown
   */
  #collect(
    id: number,
    place: Pick<Slot, 'bitOffset' | 'shown' | 'choices'> & { readonly depth: number; readonly said: Said | undefined },
    found: { readonly slots: Slot[]; readonly names: Map<string, number>; unions: number },
  ): void {
    const { shown, choices, depth, said } = place;
    const btf = this.#btf;
    if (depth > MAX_TYPE_DEPTH)
      throw btf.bad(id, `contains itself, or nests structures more than ${MAX_TYPE_DEPTH} deep`);
    const type = btf.type(id);
    const members = type.kind === 'DATASEC' ? sectionMembers(btf, type) : (type as StructType).members;
    const all = members.map((member) => {
      const bits = type.kind === 'DATASEC' ? btf.size(member.type) * 8 : btf.memberBits(type as StructType, member);
      return { member, bits };
    });
    const union = type.kind === 'UNION' ? found.unions++ : undefined;
    const widest = all.reduce((most, { bits }) => Math.max(most, bits), 0);
    const first = all.findIndex(({ bits }) => bits === widest);
    for (const [i, { member, bits }] of all.entries()) {
      this.#count(id, 1);
      const bitOffset = place.bitOffset + member.bitOffset;
      const here = shown && (union === undefined || i === first);
      const way: Slot['choices'] = union === undefined ? choices : [...choices, [union, i]];
      const target = btf.resolve(member.type);
      if (member.name === '') {
        // Any other member without a name is padding.
        const kind = btf.kind(target);
        if ((kind === 'STRUCT' || kind === 'UNION') && member.bits === 0) {
          this.#collect(target, { bitOffset, shown: here, choices: way, depth: depth + 1, said }, found);
        }
        continue;
      }
      const name = unused(member.name, found.names);
      const own = saidIn(said, name);
      found.slots.push({
        name,
        bitOffset,
        bits,
        // A member without bytes carries no information.
        shown: here && bits > 0,
        choices: way,
        offset: Math.floor(bitOffset / 8),
        codec:
          member.bits > 0
            ? this.#bitField(member.type, bitOffset, bits, own)
            : this.#member(member.type, member.name, depth + 1, own),
      });
    }
  }

  #bitField(id: number, bitOffset: number, bits: number, said: Said | undefined): Codec {
    const type = this.#btf.type(this.#btf.resolve(id)) as IntType | EnumType;
    const place = { start: bitOffset % 8, bits, little: this.#btf.littleEndian };
    const refuse = this.#refuse(id);
    const codec = this.#bits(type, place, refuse);
    if (said === undefined) return codec;
    const reading = said.is === 'hex' && readingOf('hex', codec.size, intCodec(place, type.signed, refuse));
    if (!reading) throw this.#misfit(id, said);
    return readAs(codec, reading, true, refuse);
  }

  /** The bits that no shown member covers. Compilers make no members that share bits. */
  #gaps(id: number, size: number, slots: readonly Slot[]): Gaps {
    const sorted = slots.filter(({ shown }) => shown).sort((a, b) => a.bitOffset - b.bitOffset);
    const gaps: [from: number, to: number][] = [];
    let end = 0;
    for (const { bitOffset, bits, name } of sorted) {
      if (bitOffset < end) throw this.#btf.bad(id, `member ${name} overlaps the one before it`);
      if (bitOffset > end) gaps.push([end, bitOffset]);
      end = bitOffset + bits;
    }
    if (end < size * 8) gaps.push([end, size * 8]);
    return gapsOf(gaps, this.#btf.littleEndian);
  }
}

/** Variables of a data section as members. */
export function sectionMembers(btf: Btf, type: DatasecType): Member[] {
  return type.vars.flatMap(({ type: id, offset, size }) => {
    if (btf.kind(id) !== 'VAR') return [];
    // The compiler keeps only the part of a variable that programs use; the type does not say which part.
    if (btf.size(id) !== size || offset + size > type.size) return [];
    return [{ name: btf.nameOf(id), type: id, bitOffset: offset * 8, bits: 0 }];
  });
}

/**
 * `name`, with a number appended if it is taken: static variables of different functions may share a name.
 * @param names the names taken, each with the number to try next
 */
export function unused(name: string, names: Map<string, number>): string {
  let free = name;
  for (let next = names.get(name); names.has(free); next = (next ?? 2) + 1) {
    free = `${name}#${next}`;
    names.set(name, (next ?? 2) + 1);
  }
  names.set(free, 2);
  return free;
}

// ---------------------------------------------------------------------------------------------------
// Padding

/** Bits that no member shows: single bytes with a mask, and runs of whole bytes. */
interface Gaps {
  readonly bytes: readonly number[];
  readonly masks: readonly number[];
  /** Start and end of each run, alternating. */
  readonly runs: readonly number[];
}

function gapsOf(gaps: readonly (readonly [from: number, to: number])[], little: boolean): Gaps {
  const bytes: number[] = [];
  const masks: number[] = [];
  const runs: number[] = [];
  const partial = (from: number, to: number) => {
    if (from === to) return;
    let mask = 0;
    for (let bit = from; bit < to; bit++) mask |= little ? 1 << (bit % 8) : 0x80 >> (bit % 8);
    bytes.push(Math.floor(from / 8));
    masks.push(mask);
  };
  for (const [from, to] of gaps) {
    const [first, last] = [Math.ceil(from / 8), Math.floor(to / 8)];
    if (first > last) partial(from, to);
    else {
      partial(from, first * 8);
      if (first < last) runs.push(first, last);
      partial(last * 8, to);
    }
  }
  return { bytes, masks, runs };
}

function zeroIn({ bytes, masks, runs }: Gaps, view: DataView, at: number): boolean {
  for (let i = 0; i < bytes.length; i++) {
    if ((view.getUint8(at + (bytes[i] as number)) & (masks[i] as number)) !== 0) return false;
  }
  for (let i = 0; i < runs.length; i += 2) {
    const end = at + (runs[i + 1] as number);
    for (let place = at + (runs[i] as number); place < end; place++) if (view.getUint8(place) !== 0) return false;
  }
  return true;
}

// ---------------------------------------------------------------------------------------------------
// Structures and arrays

const [OPEN, CLOSE, OPEN_LIST, CLOSE_LIST, COMMA] = [0x7b, 0x7d, 0x5b, 0x5d, 0x2c];
/** Up to this many bytes, a loop is faster than an array view. */
const SHORT = 128;

function structCodec(size: number, slots: readonly Slot[], gaps: Gaps, refuse: Refuse): Codec {
  const shown = slots.filter((slot) => slot.shown);
  const count = shown.length;
  const names = shown.map(({ name }) => name);
  const decoders = shown.map(({ codec }) => codec.decode);
  const printers = shown.map(({ codec }) => codec.print);
  const offsets = shown.map(({ offset }) => offset);
  const padded = gaps.bytes.length > 0 || gaps.runs.length > 0;
  const byName = new Map(slots.map((slot) => [slot.name, slot]));

  const heads = names.map((name, i) => phrase(`${i === 0 ? '{' : ','}${JSON.stringify(name)}:`));

  const put = (slot: Slot, value: Json, view: DataView, at: number) => {
    try {
      slot.codec.encode(value, view, at + slot.offset);
    } catch (error) {
      throw error instanceof PointerError ? error.within(pointerPart(slot.name)) : error;
    }
  };

  return {
    size,
    decode(view, at) {
      const object: JsonObject = {};
      for (let i = 0; i < count; i++) {
        object[names[i] as string] = (decoders[i] as Codec['decode'])(view, at + (offsets[i] as number));
      }
      if (padded && !zeroIn(gaps, view, at)) object.$raw = hex(bytesAt(view, at, size));
      return object;
    },
    print(view, at, out) {
      for (let i = 0; i < count; i++) {
        putPhrase(out, heads[i] as Phrase);
        (printers[i] as Codec['print'])(view, at + (offsets[i] as number), out);
      }
      if (padded && !zeroIn(gaps, view, at)) {
        out.text(`${count === 0 ? '{' : ','}"$raw":"${hex(bytesAt(view, at, size))}"`);
      } else if (count === 0) putByte(out, OPEN);
      putByte(out, CLOSE);
    },
    encode(value, view, at) {
      if (!isObject(value)) throw refuse(`must be an object, got ${foundText(value)}`);
      const raw = rawValueBytes(value, size, refuse);
      if (raw !== undefined) bytesAt(view, at, size).set(raw);
      else if (size <= SHORT) for (let i = 0; i < size; i++) view.setUint8(at + i, 0);
      else bytesAt(view, at, size).fill(0);
      const given = Object.keys(value);
      const choices: Slot[] = [];
      for (let i = 0; i < given.length; i++) {
        const name = given[i] as string;
        // Nearly always in the order that decoding produces.
        const slot = name === names[i] ? shown[i] : byName.get(name);
        if (slot === undefined) {
          if (name === '$raw') continue;
          throw refuse(`unknown member, expected ${oneOf([...byName.keys()])}`, pointerPart(name));
        }
        if (slot.choices.length > 0) choices.push(slot);
        else put(slot, value[name] as Json, view, at);
      }
      if (choices.length === 0) return;
      const choose = (slot: Slot) => put(slot, value[slot.name] as Json, view, at);
      if (compete(choices)) settle(choices, raw !== undefined, bytesAt(view, at, size), choose, refuse);
      else for (const slot of choices) choose(slot);
    },
    parts: [...byName.keys()],
    part: (name) => byName.get(String(name)),
  };
}

/** Whether any two of the members belong to the same union. */
function compete(slots: readonly Slot[]): boolean {
  const chosen = new Map<number, number>();
  for (const { choices } of slots) {
    for (const [union, option] of choices) {
      const other = chosen.get(union);
      if (other !== undefined && other !== option) return true;
      chosen.set(union, option);
    }
  }
  return false;
}

/**
 * Writes members, some of which share bytes. Members equal to their bytes in `$raw` were not edited and are ignored;
 * all others must agree.
 */
function settle(
  given: readonly Slot[],
  edits: boolean,
  out: Uint8Array,
  put: (slot: Slot) => void,
  refuse: Refuse,
): void {
  const before = out.slice();
  const changes = (slot: Slot, bytes: Uint8Array) => {
    put(slot);
    return Buffer.compare(out, bytes) !== 0;
  };
  const edited = given.filter((slot) => {
    const changed = changes(slot, before);
    out.set(before);
    return changed || !edits;
  });
  for (const slot of edited) put(slot);
  const after = out.slice();
  for (const slot of edited) {
    if (!changes(slot, after)) continue;
    const names = edited.map(({ name }) => name);
    throw refuse(`members of a union that share bytes must agree: give only ${oneOf(names)}`);
  }
}

function arrayCodec(element: Codec, count: number, refuse: Refuse): Codec {
  const { size: each, decode, print, encode } = element;
  const size = each * count;
  return {
    size,
    decode(view, at) {
      const list: Json[] = [];
      for (let i = 0; i < count; i++) list.push(decode(view, at + i * each));
      return list;
    },
    print(view, at, out) {
      putByte(out, OPEN_LIST);
      for (let i = 0; i < count; i++) {
        if (i > 0) putByte(out, COMMA);
        print(view, at + i * each, out);
      }
      putByte(out, CLOSE_LIST);
    },
    encode(value, view, at) {
      if (!Array.isArray(value)) {
        const raw = rawValueBytes(value, size, refuse);
        if (raw === undefined) throw refuse(`must be a list of ${count}, got ${foundText(value)}`);
        bytesAt(view, at, size).set(raw);
        return;
      }
      if (value.length !== count) throw refuse(`must be a list of ${count}, got ${foundText(value)}`);
      for (let i = 0; i < count; i++) {
        try {
          encode(value[i] as Json, view, at + i * each);
        } catch (error) {
          throw error instanceof PointerError ? error.within(`/${i}`) : error;
        }
      }
    },
    parts: count,
    part: (index) =>
      typeof index === 'number' && index < count ? { offset: index * each, codec: element } : undefined,
  };
}

/** Types without bytes: `char data[]`, `struct {}`. */
function emptyCodec(list: boolean, refuse: Refuse): Codec {
  return {
    size: 0,
    decode: () => (list ? [] : {}),
    print: (_view, _at, out) => out.text(list ? '[]' : '{}'),
    encode(value) {
      const empty = typeof value === 'object' ? value !== null && Object.keys(value).length === 0 : value === '';
      if (!empty)
        throw refuse(`must be ${list ? 'an empty list' : '{}'}, because it has no bytes, got ${foundText(value)}`);
    },
  };
}
