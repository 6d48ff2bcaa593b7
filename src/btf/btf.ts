/**
 * BTF, the type information of BPF programs and of the kernel, as values.
 *
 * {@link Btf.parse} only finds where each type begins: for the kernel's own 5 MB this takes some ten milliseconds.
 * A type is read and checked when a caller asks for it. Blobs come from untrusted files, so every id, offset,
 * size and count is checked before it is used.
 *
 * The format is described in the kernel's Documentation/bpf/btf.rst. Names are bytes (the kernel accepts
 * Latin-1 letters), so each character of a name here is one byte.
 */
import { BpfimgError } from '../errors.js';

/** The kinds of types, by their BTF number; 0 is `void`. */
export const BTF_KINDS = [
  'VOID',
  'INT',
  'PTR',
  'ARRAY',
  'STRUCT',
  'UNION',
  'ENUM',
  'FWD',
  'TYPEDEF',
  'VOLATILE',
  'CONST',
  'RESTRICT',
  'FUNC',
  'FUNC_PROTO',
  'VAR',
  'DATASEC',
  'FLOAT',
  'DECL_TAG',
  'TYPE_TAG',
  'ENUM64',
] as const;

/** A kind by its name in include/uapi/linux/btf.h, without BTF_KIND_; `VOID` for type 0. */
export type BtfKind = (typeof BTF_KINDS)[number];

/** The members of every type. */
export interface Common {
  readonly id: number;
  /** Empty for a type without a name. */
  readonly name: string;
}

/** An integer, `bool` or `char`. */
export interface IntType extends Common {
  readonly kind: 'INT';
  /** Bytes of storage, 1 to 16. */
  readonly size: number;
  /** Significant bits, from {@link bitOffset} on. Fewer than the storage has only in old-style bit-fields. */
  readonly bits: number;
  readonly bitOffset: number;
  readonly signed: boolean;
  readonly bool: boolean;
  /** Whether it is `char`. Compilers show that by the name alone; they hardly ever set the flag. */
  readonly char: boolean;
}

/** A type that refers to one other type. */
export interface RefType extends Common {
  readonly kind: 'PTR' | 'TYPEDEF' | 'VOLATILE' | 'CONST' | 'RESTRICT' | 'TYPE_TAG' | 'FUNC' | 'VAR' | 'DECL_TAG';
  readonly type: number;
  /** For FUNC and VAR: 0 static, 1 global, 2 extern. */
  readonly linkage: number;
  /** For DECL_TAG: the index of the member or parameter that it tags, -1 for the whole type. */
  readonly component: number;
  /** For TYPE_TAG and DECL_TAG: the name is a full attribute, not the argument of `btf_type_tag`. Since 6.15. */
  readonly attribute: boolean;
}

/** An array: `count` elements of `type`. `index` is the type of its indexes, which carries no information. */
export interface ArrayType extends Common {
  readonly kind: 'ARRAY';
  readonly type: number;
  readonly index: number;
  readonly count: number;
}

/** A member of a structure. */
export interface Member {
  /** Empty for anonymous structures and unions. */
  readonly name: string;
  readonly type: number;
  /** Bits from the structure's start; on big-endian machines, counted from each byte's highest bit. */
  readonly bitOffset: number;
  /** Width of a bit-field; 0 for any other member. */
  readonly bits: number;
}

/** A structure or union. */
export interface StructType extends Common {
  readonly kind: 'STRUCT' | 'UNION';
  /** Bytes. */
  readonly size: number;
  readonly members: readonly Member[];
}

/** An enum. */
export interface EnumType extends Common {
  readonly kind: 'ENUM' | 'ENUM64';
  /** Bytes: 1, 2, 4 or 8. */
  readonly size: number;
  /** Recorded by compilers since 2022 (LLVM 15, pahole 1.24); before that, negative values read as large ones. */
  readonly signed: boolean;
  readonly values: readonly { readonly name: string; readonly value: bigint }[];
}

/** A structure or union that is declared but not defined. */
export interface FwdType extends Common {
  readonly kind: 'FWD';
  readonly union: boolean;
}

/** A function's type. */
export interface FuncProtoType extends Common {
  readonly kind: 'FUNC_PROTO';
  /** The type it returns. */
  readonly type: number;
  /** A last parameter without name and type is `...`. */
  readonly params: readonly { readonly name: string; readonly type: number }[];
}

/** A section of an object file, with the variables in it. */
export interface DatasecType extends Common {
  readonly kind: 'DATASEC';
  /** Bytes; 0 in object files that no linker or loader has processed. */
  readonly size: number;
  /** `type` is a VAR, or a FUNC of the kernel (in `.ksyms`); offset and size are in bytes. */
  readonly vars: readonly { readonly type: number; readonly offset: number; readonly size: number }[];
}

/** A floating-point number. */
export interface FloatType extends Common {
  readonly kind: 'FLOAT';
  /** Bytes: 2, 4, 8, 12 or 16. */
  readonly size: number;
}

/** `void`, which has the id 0 and no entry in the blob. */
export interface VoidType extends Common {
  readonly kind: 'VOID';
}

/** A type, which names other types by their ids; `kind` says which members it has. */
export type BtfType =
  | VoidType
  | IntType
  | RefType
  | ArrayType
  | StructType
  | EnumType
  | FwdType
  | FuncProtoType
  | DatasecType
  | FloatType;

/** The first two bytes of a blob, in the byte order of the machine that it is for. */
export const BTF_MAGIC = 0xeb9f;
/** Bytes of the longest blob that the kernel loads (BTF_MAX_SIZE). */
export const BTF_MAX = 16 * 1024 * 1024;
const VERSION = 1;
/** struct btf_header: magic u16, version u8, flags u8, hdr_len, type_off, type_len, str_off, str_len. */
export const BTF_HEADER_SIZE = 24;
/** struct btf_type: name_off, info (vlen, kind, kind_flag), and a size or the id of a type. */
const TYPE_WORDS = 3;
const KIND_FLAG = 0x8000_0000;

/** What follows struct btf_type, in 32-bit words: a fixed number, and a number for each of the `vlen` parts. */
const FOLLOWS: readonly (readonly [fixed: number, each: number])[] = BTF_KINDS.map((kind) => {
  switch (kind) {
    case 'INT':
    case 'VAR':
    case 'DECL_TAG':
      return [1, 0];
    case 'ARRAY':
      return [3, 0];
    case 'STRUCT':
    case 'UNION':
    case 'DATASEC':
    case 'ENUM64':
      return [0, 3];
    case 'ENUM':
    case 'FUNC_PROTO':
      return [0, 2];
    default:
      return [0, 0];
  }
});
const FOLLOWS_FIXED = Uint8Array.from(FOLLOWS, ([fixed]) => fixed);
const FOLLOWS_EACH = Uint8Array.from(FOLLOWS, ([, each]) => each);

const kindNo = (kind: BtfKind): number => BTF_KINDS.indexOf(kind);
const [PTR, ARRAY, FUNC, VAR] = [kindNo('PTR'), kindNo('ARRAY'), kindNo('FUNC'), kindNo('VAR')];

/** Kinds that do not affect the layout of a value, by number. */
const SKIPPED = Uint8Array.from(BTF_KINDS, (kind) =>
  ['TYPEDEF', 'VOLATILE', 'CONST', 'RESTRICT', 'TYPE_TAG'].includes(kind) ? 1 : 0,
);
/** Kinds whose third word is their size in bytes. */
const SIZED = Uint8Array.from(BTF_KINDS, (kind) =>
  ['INT', 'STRUCT', 'UNION', 'ENUM', 'ENUM64', 'FLOAT', 'DATASEC'].includes(kind) ? 1 : 0,
);

/**
 * Longest chain of references between types: anything longer is a cycle or not made by a compiler. The
 * kernel stops there too (MAX_RESOLVE_DEPTH).
 */
export const MAX_TYPE_DEPTH = 32;
/** Bytes of the longest name. The kernel accepts 511 (KSYM_NAME_LEN). */
const MAX_TYPE_NAME = 1024;

const INT_SIGNED = 1;
const INT_CHAR = 2;
const INT_BOOL = 4;

const HOST_LITTLE = new Uint8Array(Uint32Array.of(1).buffer)[0] === 1;

/** What a blob does not contain. */
export interface BtfOptions {
  /** Its name in messages: a file's name, `BTF 57`. */
  readonly name: string;
  /** The base of split BTF (of a kernel module). */
  readonly base?: Btf;
  /** Bytes of a pointer: 4 only for kernels of 32-bit machines, BPF programs always have 8. */
  readonly pointerSize?: 4 | 8;
}

/** Types, by number from 1; 0 is `void`. */
export class Btf {
  readonly name: string;
  readonly base: Btf | undefined;
  /** The blob. It is not copied, so it must not change. */
  readonly bytes: Uint8Array;
  /** Byte order of the blob and of values of its types. */
  readonly littleEndian: boolean;
  readonly pointerSize: number;
  /** Id of the first type of this blob: 1, or for split BTF the id after its base's last. */
  readonly firstId: number;
  /** Number of types, including the base's; ids go from 1 to this. */
  readonly typeCount: number;

  /** The type section, in this machine's byte order. */
  readonly #words: Uint32Array;
  /** Where each type of this blob begins in {@link #words}. */
  readonly #starts: Uint32Array;
  readonly #typesAt: number;
  readonly #strings: Buffer;
  /** Name offsets below this are the base's. */
  readonly #stringsFrom: number;

  private constructor(bytes: Uint8Array, options: BtfOptions) {
    const { name, base } = options;
    this.name = name;
    this.base = base;
    this.bytes = bytes;
    this.pointerSize = options.pointerSize ?? base?.pointerSize ?? 8;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const header = this.#header(view);
    this.littleEndian = header.little;
    if (base !== undefined && base.littleEndian !== header.little) {
      throw this.#bad('its byte order differs from that of its base');
    }
    this.#strings = Buffer.from(bytes.buffer, bytes.byteOffset + header.stringsAt, header.stringsSize);
    this.#stringsFrom = base === undefined ? 0 : base.#stringsFrom + base.#strings.length;
    this.#checkStrings();
    this.#typesAt = header.typesAt;
    this.#words = wordsOf(bytes, header.typesAt, header.typesSize, header.little === HOST_LITTLE);
    this.firstId = base === undefined ? 1 : base.typeCount + 1;
    this.#starts = this.#index();
    this.typeCount = this.firstId - 1 + this.#starts.length;
  }

  /**
   * Reads a blob of either byte order. `bytes` is not copied and must not change while the result is used.
   * @throws BpfimgError `badImage`; `unsupported` for newer kinds of types and versions
   */
  static parse(bytes: Uint8Array, options: BtfOptions): Btf {
    return new Btf(bytes, options);
  }

  /** @throws BpfimgError `unsupported` for types of the other byte order, which would misread the values in images */
  checkByteOrder(): void {
    if (this.littleEndian) return;
    const why = 'its types are big-endian, the values in images are little-endian';
    throw new BpfimgError('unsupported', why, { subject: this.name });
  }

  // -------------------------------------------------------------------------------------------------
  // The blob

  #bad(what: string): BpfimgError {
    return new BpfimgError('badImage', `BTF: ${what}`, { subject: this.name });
  }

  /** The error for an invalid type. */
  bad(id: number, what: string): BpfimgError {
    let named = '';
    try {
      const name = this.#nameAt(this.#word(id, 0) as number, id);
      if (name !== '') named = ` ${name}`;
    } catch {
      // The name is invalid too.
    }
    return this.#bad(`type ${id} (${this.kind(id)}${named}): ${what}`);
  }

  #header(view: DataView) {
    if (view.byteLength < BTF_HEADER_SIZE)
      throw this.#bad(`a header needs ${BTF_HEADER_SIZE} bytes, got ${view.byteLength}`);
    const little = view.getUint16(0, true) === BTF_MAGIC;
    if (!little && view.getUint16(0, false) !== BTF_MAGIC) {
      const magic = view.getUint16(0, true).toString(16);
      throw this.#bad(`expected the magic number 0xeb9f at offset 0, got 0x${magic}`);
    }
    const version = view.getUint8(2);
    if (version !== VERSION) {
      throw new BpfimgError('unsupported', `BTF: expected version ${VERSION}, got ${version}`, { subject: this.name });
    }
    if (view.getUint8(3) !== 0) {
      throw new BpfimgError('unsupported', `BTF: expected no flags, got ${view.getUint8(3)}`, { subject: this.name });
    }
    const size = view.getUint32(4, little);
    const rest = view.byteLength - size;
    if (size < BTF_HEADER_SIZE || rest < 0) {
      throw this.#bad(`header length ${size} at offset 4, expected ${BTF_HEADER_SIZE} to ${view.byteLength}`);
    }
    for (let at = BTF_HEADER_SIZE; at < size; at++) {
      if (view.getUint8(at) !== 0) {
        throw new BpfimgError('unsupported', `BTF: unknown header fields at offset ${at}`, {
          subject: this.name,
        });
      }
    }
    const [typeOff, typeLen, strOff, strLen] = [8, 12, 16, 20].map((at) => view.getUint32(at, little)) as [
      ...[number, number, number, number],
    ];
    if (typeOff % 4 !== 0 || typeLen % 4 !== 0) {
      throw this.#bad(`types at ${typeOff}, ${typeLen} bytes: expected multiples of 4`);
    }
    if (typeOff + typeLen > strOff) {
      throw this.#bad(`types at ${typeOff}, ${typeLen} bytes, reach into the strings at ${strOff}`);
    }
    if (strOff + strLen > rest) {
      throw this.#bad(`strings at ${strOff}, ${strLen} bytes, but ${rest} bytes follow the header`);
    }
    return {
      little,
      typesAt: size + typeOff,
      typesSize: typeLen,
      stringsAt: size + strOff,
      stringsSize: strLen,
    };
  }

  #checkStrings(): void {
    const strings = this.#strings;
    if (strings.length === 0) {
      if (this.base === undefined) throw this.#bad('no strings: expected at least one zero byte');
      return;
    }
    if (strings[strings.length - 1] !== 0) throw this.#bad('the strings do not end with a zero byte');
    if (this.base === undefined && strings[0] !== 0) throw this.#bad('the first string is not empty');
  }

  /** Finds where each type begins. Checks that all kinds are known and that no type is cut off. */
  #index(): Uint32Array {
    const words = this.#words;
    const starts = new Uint32Array(Math.floor(words.length / TYPE_WORDS));
    let count = 0;
    let at = 0;
    while (at < words.length) {
      const left = words.length - at;
      const info = left < TYPE_WORDS ? 0 : (words[at + 1] as number);
      const kind = (info >>> 24) & 0x1f;
      const vlen = info & 0xffff;
      if (left < TYPE_WORDS || kind === 0 || kind >= BTF_KINDS.length || (info & 0x60ff_0000) !== 0) {
        throw this.#badStart(this.firstId + count, left, info);
      }
      const needs = TYPE_WORDS + (FOLLOWS_FIXED[kind] as number) + (FOLLOWS_EACH[kind] as number) * vlen;
      if (needs > left) {
        const what = `type ${this.firstId + count} (${BTF_KINDS[kind]}) needs ${needs * 4} bytes, ${left * 4} left`;
        throw this.#bad(what);
      }
      starts[count++] = at;
      at += needs;
    }
    return starts.subarray(0, count);
  }

  #badStart(id: number, left: number, info: number): BpfimgError {
    if (left < TYPE_WORDS) return this.#bad(`type ${id} needs ${TYPE_WORDS * 4} bytes, ${left * 4} left`);
    const kind = (info >>> 24) & 0x1f;
    if (kind >= BTF_KINDS.length) {
      const known = `expected 1 to ${BTF_KINDS.length - 1}`;
      const text = `type ${id} is of kind ${kind}, ${known}: made by a newer compiler or kernel`;
      return new BpfimgError('unsupported', `BTF: ${text}`, { subject: this.name });
    }
    return this.#bad(`type ${id}: info is 0x${info.toString(16)}, which is not a known kind`);
  }

  /** Where type `id` of this blob begins, in bytes from the blob's start: 12 bytes, then what its kind adds. */
  offsetOf(id: number): number {
    const start = this.#starts[id - this.firstId];
    if (start === undefined) throw this.#bad(`it does not define type ${id} itself`);
    return this.#typesAt + start * 4;
  }

  /** Word `at` of type `id`, which must exist. */
  #word(id: number, at: number): number | undefined {
    if (id < this.firstId) return this.base === undefined ? undefined : this.base.#word(id, at);
    const start = this.#starts[id - this.firstId];
    return start === undefined ? undefined : this.#words[start + at];
  }

  #nameAt(offset: number, id: number): string {
    if (offset < this.#stringsFrom) return (this.base as Btf).#nameAt(offset, id);
    if (offset === 0) return '';
    const start = offset - this.#stringsFrom;
    if (start >= this.#strings.length) {
      const size = this.#stringsFrom + this.#strings.length;
      throw this.#bad(`type ${id}: a name at offset ${offset}, expected below ${size}`);
    }
    const end = this.#strings.subarray(start, start + MAX_TYPE_NAME + 1).indexOf(0);
    if (end < 0) throw this.#bad(`type ${id}: a name at offset ${offset} of more than ${MAX_TYPE_NAME} bytes`);
    return this.#strings.toString('latin1', start, start + end);
  }

  // -------------------------------------------------------------------------------------------------
  // Types

  /**
   * The kind of type `id`.
   * @throws BpfimgError `badImage` when there is no such type
   */
  kind(id: number): BtfKind {
    return BTF_KINDS[this.#kind(id)] as BtfKind;
  }

  #kind(id: number): number {
    if (id === 0) return 0;
    const info = this.#word(id, 1);
    if (info === undefined) throw this.#bad(`there is no type ${id}, ids go from 0 to ${this.typeCount}`);
    return (info >>> 24) & 0x1f;
  }

  /** A type's own name; empty when it has none. */
  nameOf(id: number): string {
    return id === 0 || this.#kind(id) === ARRAY ? '' : this.#nameAt(this.#word(id, 0) as number, id);
  }

  /**
   * A type with all its parts, checked: the types it refers to exist, names are within the strings, and members
   * begin within their structure.
   * @throws BpfimgError `badImage`
   */
  type(id: number): BtfType {
    if (id !== 0 && id < this.firstId && this.base !== undefined) return this.base.type(id);
    // Not cached: a crafted blob, read in full, could take hundreds of times its own size in memory.
    return this.#read(id);
  }

  /** The type behind typedefs, qualifiers and type tags. */
  resolve(id: number): number {
    let at = id;
    for (let steps = 0; SKIPPED[this.#kind(at)] === 1; steps++) {
      if (steps > MAX_TYPE_DEPTH)
        throw this.bad(id, `refers to itself, or passes through more than ${MAX_TYPE_DEPTH} types`);
      at = this.#word(at, 2) as number;
    }
    return at;
  }

  /**
   * Bytes of a value of type `id`.
   * @throws BpfimgError `badImage` for types without values: `void`, functions, types that are only declared
   */
  size(id: number): number {
    let factor = 1;
    let at = id;
    for (let steps = 0; ; steps++) {
      at = this.resolve(at);
      const kind = this.#kind(at);
      let size: number | undefined;
      if (SIZED[kind] === 1) size = this.#word(at, 2) as number;
      else if (kind === PTR) size = this.pointerSize;
      else if (kind === ARRAY) {
        factor *= this.#word(at, 5) as number;
        at = this.#word(at, 3) as number;
      } else if (kind === VAR) at = this.#word(at, 2) as number;
      else
        throw this.bad(
          id,
          `has no size, because it is ${at === id ? '' : 'made of '}${kind === 0 ? 'void' : BTF_KINDS[kind]}`,
        );
      if (size !== undefined) {
        const total = factor * size;
        if (total > 0xffff_ffff) throw this.bad(id, `${total} bytes, expected at most 4294967295`);
        return total;
      }
      if (steps > MAX_TYPE_DEPTH) throw this.bad(id, `contains itself, or more than ${MAX_TYPE_DEPTH} dimensions`);
    }
  }

  /**
   * The first type with this kind and name.
   * @param name one character for each byte
   */
  find(kind: BtfKind, name: string): number | undefined {
    for (const id of this.named(name)) if (this.kind(id) === kind) return id;
    return undefined;
  }

  /**
   * All types with this name, in ascending order. Takes about as long as reading through the blob once. It
   * builds no table, because most callers look up one name.
   */
  named(name: string): number[] {
    const places = this.#placesOf(name);
    const ids = this.base?.named(name) ?? [];
    if (places.size === 0) return ids;
    const words = this.#words;
    const starts = this.#starts;
    for (let i = 0; i < starts.length; i++) {
      if (places.has(words[starts[i] as number] as number)) ids.push(this.firstId + i);
    }
    return ids;
  }

  /** Offsets of `name` in the base's strings and ours, including those inside a longer name that ends with it. */
  #placesOf(name: string): Set<number> {
    const places = this.base === undefined ? new Set<number>() : this.base.#placesOf(name);
    const bytes = Buffer.from(`${name}\0`, 'latin1');
    // A character above U+00FF is not a byte, and an empty name means no name.
    if (name === '' || name.includes('\0') || bytes.toString('latin1', 0, name.length) !== name) return places;
    for (let at = this.#strings.indexOf(bytes); at >= 0; at = this.#strings.indexOf(bytes, at + 1)) {
      places.add(this.#stringsFrom + at);
    }
    return places;
  }

  /**
   * Reads and checks every type of this blob, but not those of its base.
   * @throws BpfimgError `badImage` for the first invalid one
   */
  check(): void {
    for (let id = this.firstId; id <= this.typeCount; id++) {
      const type = this.#read(id);
      if (SKIPPED[kindNo(type.kind)] === 1) this.resolve(id);
      else if (type.kind === 'ARRAY') this.size(id);
      else if (type.kind === 'STRUCT' || type.kind === 'UNION') {
        for (const member of type.members) this.memberBits(type, member);
      }
    }
  }

  /**
   * Bits that a member occupies: those of a bit-field, or all of its type's bytes.
   * @throws BpfimgError `badImage` when it ends after its structure
   */
  memberBits(struct: StructType, member: Member): number {
    const bits = member.bits || this.size(member.type) * 8;
    if (member.bitOffset + bits > struct.size * 8) {
      const end = Math.ceil((member.bitOffset + bits) / 8);
      throw this.bad(struct.id, `member ${member.name} ends at byte ${end}, expected at most ${struct.size}`);
    }
    return bits;
  }

  // -------------------------------------------------------------------------------------------------
  // Reading one type

  #read(id: number): BtfType {
    if (id === 0) return { kind: 'VOID', id, name: '' };
    const kind = this.kind(id);
    const start = this.#starts[id - this.firstId] as number;
    const words = this.#words;
    const word = (at: number) => words[start + at] as number;
    const info = word(1);
    const vlen = info & 0xffff;
    const flag = (info & KIND_FLAG) !== 0;
    const name = this.#nameAt(word(0), id);
    const third = word(2);
    if (vlen !== 0 && FOLLOWS_EACH[kindNo(kind)] === 0 && kindNo(kind) !== FUNC) {
      throw this.bad(id, `has ${vlen} parts, expected none`);
    }
    switch (kind) {
      case 'INT':
        return this.#int(id, name, third, word(3));
      case 'ARRAY':
        return { kind, id, name: '', type: this.#ref(id, word(3)), index: this.#ref(id, word(4)), count: word(5) };
      case 'STRUCT':
      case 'UNION':
        return { kind, id, name, size: third, members: this.#members(id, start, vlen, flag, third) };
      case 'ENUM':
      case 'ENUM64':
        return this.#enum({ kind, id, name, size: third, signed: flag }, start, vlen);
      case 'FWD':
        return { kind, id, name, union: flag };
      case 'FUNC_PROTO': {
        const params = Array.from({ length: vlen }, (_, i) => {
          const at = TYPE_WORDS + i * 2;
          return { name: this.#nameAt(word(at), id), type: this.#ref(id, word(at + 1)) };
        });
        return { kind, id, name, type: this.#ref(id, third), params };
      }
      case 'DATASEC': {
        const vars = Array.from({ length: vlen }, (_, i) => {
          const at = TYPE_WORDS + i * 3;
          const [type, offset, size] = [this.#ref(id, word(at)), word(at + 1), word(at + 2)];
          const of = this.kind(type);
          if (of !== 'VAR' && of !== 'FUNC') throw this.bad(id, `variable ${i} is of kind ${of}, expected VAR or FUNC`);
          if (third !== 0 && offset + size > third) {
            throw this.bad(id, `variable ${i} ends at byte ${offset + size}, expected at most ${third}`);
          }
          return { type, offset, size };
        });
        return { kind, id, name, size: third, vars };
      }
      case 'FLOAT':
        if (![2, 4, 8, 12, 16].includes(third)) throw this.bad(id, `${third} bytes, expected 2, 4, 8, 12 or 16`);
        return { kind, id, name, size: third };
      case 'VOID':
        return { kind, id, name };
      default:
        return {
          kind,
          id,
          name,
          type: this.#ref(id, third),
          linkage: kind === 'FUNC' ? vlen : kind === 'VAR' ? word(3) : 0,
          component: kind === 'DECL_TAG' ? word(3) | 0 : -1,
          attribute: flag && (kind === 'TYPE_TAG' || kind === 'DECL_TAG'),
        };
    }
  }

  #ref(id: number, type: number): number {
    if (type > this.typeCount) throw this.bad(id, `refers to type ${type}, expected at most ${this.typeCount}`);
    return type;
  }

  #int(id: number, name: string, size: number, data: number): IntType {
    const [encoding, bitOffset, bits] = [(data >>> 24) & 0xf, (data >>> 16) & 0xff, data & 0xff];
    if (size < 1 || size > 16) throw this.bad(id, `${size} bytes, expected 1 to 16`);
    if (bits < 1 || bitOffset + bits > size * 8) {
      throw this.bad(id, `${bits} bits from bit ${bitOffset}, expected 1 to ${size * 8}`);
    }
    return {
      kind: 'INT',
      id,
      name,
      size,
      bits,
      bitOffset,
      signed: (encoding & INT_SIGNED) !== 0,
      bool: (encoding & INT_BOOL) !== 0,
      char: size === 1 && bits === 8 && (name === 'char' || (encoding & INT_CHAR) !== 0),
    };
  }

  #members(id: number, start: number, count: number, flag: boolean, size: number): Member[] {
    const members: Member[] = [];
    for (let i = 0; i < count; i++) {
      const at = start + TYPE_WORDS + i * 3;
      const name = this.#nameAt(this.#words[at] as number, id);
      const type = this.#ref(id, this.#words[at + 1] as number);
      const place = this.#words[at + 2] as number;
      const member = this.#member(name, type, place, flag);
      const { bitOffset, bits } = member;
      if (bitOffset > size * 8 || (bits === 0 && bitOffset % 8 !== 0)) {
        throw this.bad(id, `member ${name || i} at bit ${bitOffset} of ${size} bytes`);
      }
      members.push(member);
    }
    return members;
  }

  /**
   * A member from its word of place. If the structure's flag is set, that word has offset and width. If not, it
   * has only the offset, and a bit-field is a member whose INT has fewer bits than its storage; these may begin
   * some bits after the offset.
   */
  #member(name: string, type: number, place: number, flag: boolean): Member {
    if (flag && place >>> 24 !== 0) {
      const [bitOffset, bits] = [place & 0xff_ffff, place >>> 24];
      const target = this.resolve(type);
      const kind = this.kind(target);
      const int = kind === 'INT' ? (this.type(target) as IntType) : undefined;
      const most = int?.bits ?? (kind === 'ENUM' || kind === 'ENUM64' ? this.size(target) * 8 : 0);
      if (bits > most) throw this.bad(type, `makes a bit-field ${name} of ${bits} bits, expected at most ${most}`);
      return { name, type, bitOffset, bits };
    }
    const bitOffset = flag ? place & 0xff_ffff : place;
    const target = this.resolve(type);
    if (!flag && this.kind(target) === 'INT') {
      const int = this.type(target) as IntType;
      if (int.bits !== int.size * 8) return { name, type, bitOffset: bitOffset + int.bitOffset, bits: int.bits };
    }
    return { name, type, bitOffset, bits: 0 };
  }

  #enum(type: Omit<EnumType, 'values'>, start: number, count: number): EnumType {
    const { kind, id, size, signed } = type;
    if (![1, 2, 4, 8].includes(size)) throw this.bad(id, `${size} bytes, expected 1, 2, 4 or 8`);
    const each = kind === 'ENUM64' ? 3 : 2;
    const bits = each === 3 ? 64 : 32;
    const values = Array.from({ length: count }, (_, i) => {
      const at = start + TYPE_WORDS + i * each;
      const low = BigInt(this.#words[at + 1] as number);
      const value = each === 3 ? (BigInt(this.#words[at + 2] as number) << 32n) | low : low;
      return {
        name: this.#nameAt(this.#words[at] as number, id),
        value: signed ? BigInt.asIntN(bits, value) : value,
      };
    });
    return { ...type, values };
  }
}

/** Bytes as 32-bit words of this machine: a view of the same bytes where possible. */
function wordsOf(bytes: Uint8Array, at: number, size: number, native: boolean): Uint32Array {
  const offset = bytes.byteOffset + at;
  if (native && offset % 4 === 0) return new Uint32Array(bytes.buffer, offset, size / 4);
  const copy = Buffer.from(new ArrayBuffer(size));
  copy.set(bytes.subarray(at, at + size));
  if (!native) copy.swap32();
  return new Uint32Array(copy.buffer, copy.byteOffset, size / 4);
}
