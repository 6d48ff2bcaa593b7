/**
 * Reads type information from files: raw BTF, and object files (`prog.bpf.o`) with their map definitions.
 *
 * A compiler leaves an object file unfinished: its data sections have no size yet, and the offsets of their
 * variables are in relocations. This module fills them in as BPF loaders do, so that the kernel accepts the blob
 * and values of `.bss` and `.data` can be read.
 */
import { BpfimgError } from '../errors.js';
import { type ArrayType, Btf, type BtfOptions, type EnumType, type RefType, type StructType } from './btf.js';

/** How a program defines a map. Members that the definition leaves out are absent. */
export interface MapDefinition {
  /** As in the source; the kernel keeps only the first 15 characters. */
  readonly name: string;
  /** Ids of the types of keys and values; 0 if the definition names none. */
  readonly keyType: number;
  readonly valueType: number;
  /** Bytes; taken from the type if there is one. */
  readonly keySize?: number;
  readonly valueSize?: number;
  /** Number of the map's type. */
  readonly type?: number;
  readonly maxEntries?: number;
  readonly flags?: number;
  readonly extra?: number;
  readonly numaNode?: number;
  /** The loader pins it under its name (LIBBPF_PIN_BY_NAME). */
  readonly pinned?: true;
  /** For a map of maps: the definition of its inner maps. */
  readonly inner?: MapDefinition;
}

/** A file's types. */
export interface BtfFile {
  readonly btf: Btf;
  /** Maps that the program defines, then those that a loader creates for its data sections (`.bss`). */
  readonly maps: readonly MapDefinition[];
  /**
   * The definition of the map that the kernel calls `name`, which may be cut off after 15 characters. Data
   * sections match by the end of the name (`flowd.bss`). Undefined when no definition matches, or several do.
   */
  find(name: string): MapDefinition | undefined;
  /** Every definition that matches this name: several, if they begin with the same 15 characters. */
  candidates(name: string): readonly MapDefinition[];
}

/**
 * Reads the types in a file: raw BTF of either byte order, or an ELF64 object with a `.BTF` section.
 * @throws BpfimgError `badImage`; `notFound` for an object without types; `unsupported`
 */
export function readBtfFile(bytes: Uint8Array, options: BtfOptions): BtfFile {
  const btf = isElf(bytes) ? new ObjectFile(bytes, options.name).btf(options) : Btf.parse(bytes, options);
  const maps = [...mapDefinitions(btf), ...dataMaps(btf)];
  const candidates = (name: string) => definitionsOf(maps, name);
  const find = (name: string) => {
    const [one, ...others] = candidates(name);
    return others.length === 0 ? one : undefined;
  };
  return { btf, maps, find, candidates };
}

// ---------------------------------------------------------------------------------------------------
// ELF64, as in elf.h

const ELF_MAGIC = 0x7f454c46;
const ELF_HEADER = 64;
const SECTION_HEADER = 64;
const SYMBOL = 24;
const EM_BPF = 247;
const SHT_RELA = 4;
const SHT_NOBITS = 8;
const SHT_REL = 9;
const RELOCATIONS: ReadonlySet<number> = new Set([SHT_REL, SHT_RELA]);
const SHF_COMPRESSED = 0x800;
/**
 * R_BPF_64_ABS32 and R_BPF_64_NODYLD32, and R_BPF_64_32, which LLVM before 13 used instead: add the
 * symbol's value to 32 bits.
 */
const ADDS_32: ReadonlySet<number> = new Set([3, 4, 10]);
/** No section that we look for has a longer name. */
const MAX_SECTION_NAME = 128;
/** Bytes of a map's name in the kernel. */
const MAP_NAME = 15;

function isElf(bytes: Uint8Array): boolean {
  return bytes.length >= 4 && new DataView(bytes.buffer, bytes.byteOffset).getUint32(0) === ELF_MAGIC;
}

interface Section {
  readonly index: number;
  readonly nameAt: number;
  readonly type: number;
  readonly flags: number;
  /** Bytes from the file's start. */
  readonly offset: number;
  readonly size: number;
  readonly link: number;
  readonly info: number;
}

/** An object file. Nothing in it is trusted. */
class ObjectFile {
  readonly #view: DataView;
  readonly #little: boolean;
  readonly #sections: readonly Section[];
  readonly #names: Section;

  constructor(
    readonly bytes: Uint8Array,
    readonly name: string,
  ) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    if (bytes.length < ELF_HEADER) throw this.#bad(`its header needs ${ELF_HEADER} bytes, got ${bytes.length}`);
    if (bytes[4] !== 2)
      throw new BpfimgError('unsupported', `ELF: expected class 2 (64 bits), got ${bytes[4]}`, { subject: name });
    if (bytes[5] !== 1 && bytes[5] !== 2) throw this.#bad(`expected byte order 1 or 2 at offset 5, got ${bytes[5]}`);
    this.#little = bytes[5] === 1;
    const [table, each] = [this.#u64(0x28), this.#u16(0x3a)];
    if (table === 0) throw new BpfimgError('notFound', 'ELF: no sections, so no .BTF', { subject: name });
    if (each !== SECTION_HEADER) throw this.#bad(`section headers of ${each} bytes, expected ${SECTION_HEADER}`);
    // When there are too many sections for the ELF header, the first section's header has the numbers.
    const first = this.#section(table, 0);
    const count = this.#u16(0x3c) || first.size;
    const names = this.#u16(0x3e) === 0xffff ? first.link : this.#u16(0x3e);
    if (count > (bytes.length - table) / SECTION_HEADER) {
      throw this.#bad(`${count} section headers at offset ${table}, but the file has ${bytes.length} bytes`);
    }
    this.#sections = Array.from({ length: count }, (_, i) => this.#section(table, i));
    const found = this.#sections[names];
    if (found === undefined) throw this.#bad(`section names in section ${names} of ${count}`);
    this.#names = found;
  }

  #bad(what: string): BpfimgError {
    return new BpfimgError('badImage', `ELF: ${what}`, { subject: this.name });
  }

  /** Checks that the file has `size` bytes at `at`. */
  #need(at: number, size: number): void {
    if (at + size <= this.bytes.length) return;
    throw this.#bad(`needs ${size} bytes at offset ${at}, but the file has ${this.bytes.length}`);
  }

  #u16(at: number): number {
    this.#need(at, 2);
    return this.#view.getUint16(at, this.#little);
  }

  #u32(at: number): number {
    this.#need(at, 4);
    return this.#view.getUint32(at, this.#little);
  }

  /** Numbers above 2^53 lose their last bits, but they are too large for any file anyway. */
  #u64(at: number): number {
    this.#need(at, 8);
    return Number(this.#view.getBigUint64(at, this.#little));
  }

  #section(table: number, index: number): Section {
    const at = table + index * SECTION_HEADER;
    this.#need(at, SECTION_HEADER);
    return {
      index,
      nameAt: this.#u32(at),
      type: this.#u32(at + 4),
      flags: this.#u64(at + 8),
      offset: this.#u64(at + 24),
      size: this.#u64(at + 32),
      link: this.#u32(at + 40),
      info: this.#u32(at + 44),
    };
  }

  /** Sections by name: the first one of each name. */
  #byName(): Map<string, Section> {
    const names = Buffer.from(this.#bytesOf(this.#names, 'the section names'));
    const found = new Map<string, Section>();
    for (const section of this.#sections) {
      const start = section.nameAt;
      const end = names.subarray(start, start + MAX_SECTION_NAME).indexOf(0);
      const name = end < 0 ? '' : names.toString('latin1', start, start + end);
      if (!found.has(name)) found.set(name, section);
    }
    return found;
  }

  #bytesOf(section: Section, what: string): Uint8Array {
    const { type, flags, offset, size } = section;
    if (type === SHT_NOBITS) throw this.#bad(`${what}: has no bytes in the file`);
    if (Math.floor(flags / SHF_COMPRESSED) % 2 === 1) {
      throw new BpfimgError('unsupported', `ELF: ${what}: is compressed`, { subject: this.name });
    }
    if (offset + size > this.bytes.length) {
      throw this.#bad(`${what}: ${size} bytes at offset ${offset}, but the file has ${this.bytes.length}`);
    }
    return this.bytes.subarray(offset, offset + size);
  }

  /** The types, with sizes and offsets of data sections filled in. */
  btf(options: BtfOptions): Btf {
    const named = this.#byName();
    const section = named.get('.BTF');
    if (section === undefined) {
      throw new BpfimgError('notFound', 'ELF: no .BTF section: compile with -g', { subject: this.name });
    }
    const blob = new Uint8Array(this.#bytesOf(section, '.BTF'));
    if (this.#u16(18) === EM_BPF) this.#relocate(section, blob);
    const btf = Btf.parse(blob, options);
    // Filling in changes the blob, so it is parsed again.
    return this.#fillSections(btf, blob, named) ? Btf.parse(blob, options) : btf;
  }

  #relocate(target: Section, blob: Uint8Array): void {
    const view = new DataView(blob.buffer, blob.byteOffset, blob.byteLength);
    const section = this.#sections.find(({ info, type }) => info === target.index && RELOCATIONS.has(type));
    if (section === undefined) return;
    const each = section.type === SHT_REL ? 16 : 24;
    const what = `section ${section.index} (relocations of .BTF)`;
    const { byteLength } = this.#bytesOf(section, what);
    const symbols = this.#sections[section.link];
    if (symbols === undefined) throw this.#bad(`${what}: symbols in section ${section.link}`);
    const count = Math.floor(this.#bytesOf(symbols, 'symbols').length / SYMBOL);
    for (let i = 0; i + each <= byteLength; i += each) {
      const at = section.offset + i;
      const place = this.#u64(at);
      const [low, high] = [this.#u32(at + 8), this.#u32(at + 12)];
      const [type, symbol] = this.#little ? [low, high] : [high, low];
      if (!ADDS_32.has(type)) throw this.#bad(`${what}: type ${type}, expected ${[...ADDS_32].join(', ')}`);
      if (symbol >= count) throw this.#bad(`${what}: symbol ${symbol} of ${count}`);
      if (place + 4 > blob.length) throw this.#bad(`${what}: offset ${place}, but .BTF has ${blob.length} bytes`);
      // Values and addends have 64 bits; only the lower half is used.
      const half = this.#little ? 0 : 4;
      const value = this.#u32(symbols.offset + symbol * SYMBOL + 8 + half);
      const addend = each === 24 ? this.#u32(at + 16 + half) : view.getUint32(place, this.#little);
      view.setUint32(place, value + addend, this.#little);
    }
  }

  /** Sets the sizes of data sections and sorts their variables; returns whether anything was set. */
  #fillSections(btf: Btf, blob: Uint8Array, named: ReadonlyMap<string, Section>): boolean {
    const view = new DataView(blob.buffer, blob.byteOffset, blob.byteLength);
    const little = btf.littleEndian;
    let filled = false;
    for (let id = btf.firstId; id <= btf.typeCount; id++) {
      if (btf.kind(id) !== 'DATASEC' || btf.size(id) !== 0) continue;
      const section = named.get(btf.nameOf(id));
      const type = btf.type(id);
      if (type.kind !== 'DATASEC' || section === undefined) continue;
      if (section.size > 0xffff_ffff)
        throw this.#bad(`${type.name}: ${section.size} bytes, expected at most 4294967295`);
      const at = btf.offsetOf(id);
      view.setUint32(at + 8, section.size, little);
      const vars = [...type.vars].sort((a, b) => a.offset - b.offset);
      for (const [i, { type, offset, size }] of vars.entries()) {
        for (const [j, word] of [type, offset, size].entries()) view.setUint32(at + 12 + i * 12 + j * 4, word, little);
      }
      filled = true;
    }
    return filled;
  }
}

// ---------------------------------------------------------------------------------------------------
// Map definitions

/** The maps in section `.maps`: variables of structures whose members' types are the attributes. */
function mapDefinitions(btf: Btf): MapDefinition[] {
  const section = btf.find('DATASEC', '.maps');
  const type = section === undefined ? undefined : btf.type(section);
  if (type?.kind !== 'DATASEC') return [];
  const structs = new Structs(btf);
  return type.vars.flatMap(({ type: id }) => {
    const variable = btf.type(id);
    const struct = variable.kind === 'VAR' ? structs.get(btf.resolve(variable.type)) : undefined;
    return struct === undefined ? [] : [mapDefinition(btf, variable.name, struct, structs)];
  });
}

/** Members of the largest structure that may be a map's definition. libbpf knows a dozen. */
const MAX_DEFINITION_MEMBERS = 64;

/** Structures that define maps. Each is read once, because thousands of variables may share a large one. */
class Structs {
  readonly #known = new Map<number, StructType | undefined>();
  constructor(readonly btf: Btf) {}

  get(id: number): StructType | undefined {
    if (!this.#known.has(id)) {
      const type = this.btf.kind(id) === 'STRUCT' ? (this.btf.type(id) as StructType) : undefined;
      this.#known.set(id, type !== undefined && type.members.length <= MAX_DEFINITION_MEMBERS ? type : undefined);
    }
    return this.#known.get(id);
  }
}

/** Numeric attributes, by the name of their member. */
const NUMBERS = {
  type: 'type',
  key_size: 'keySize',
  value_size: 'valueSize',
  max_entries: 'maxEntries',
  map_flags: 'flags',
  map_extra: 'extra',
  numa_node: 'numaNode',
} as const satisfies Readonly<Record<string, keyof MapDefinition>>;

/** LIBBPF_PIN_BY_NAME, the only value that `pinning` has. */
const PIN_BY_NAME = 1;

/** @param structs used for the inner maps of a map of maps; left out for inner maps */
function mapDefinition(btf: Btf, name: string, struct: StructType, structs?: Structs): MapDefinition {
  const numbers: { -readonly [N in (typeof NUMBERS)[keyof typeof NUMBERS]]?: number } = {};
  const types = { keyType: 0, valueType: 0 };
  let inner: MapDefinition | undefined;
  let pinned = false;
  for (const member of struct.members) {
    const target = btf.resolve(member.type);
    if (Object.hasOwn(NUMBERS, member.name)) {
      const number = numberOf(btf, target);
      if (number !== undefined) numbers[NUMBERS[member.name as keyof typeof NUMBERS]] = number;
    } else if (member.name === 'key' || member.name === 'value') {
      const id = pointee(btf, target);
      if (id === undefined || id === 0) continue;
      types[member.name === 'key' ? 'keyType' : 'valueType'] = id;
      numbers[member.name === 'key' ? 'keySize' : 'valueSize'] ??= btf.size(id);
    } else if (member.name === 'pinning') {
      pinned = numberOf(btf, target) === PIN_BY_NAME;
    } else if (member.name === 'values' && structs !== undefined) {
      inner = innerDefinition(btf, name, target, structs);
    }
  }
  return { name, ...types, ...numbers, ...(pinned && { pinned }), ...(inner && { inner }) };
}

/** A number written as a type: `int (*max_entries)[1024]`, or since libbpf 1.5 an enum with one value. */
function numberOf(btf: Btf, id: number): number | undefined {
  const kind = btf.kind(id);
  if (kind === 'ENUM' || kind === 'ENUM64') {
    const value = (btf.type(id) as EnumType).values[0]?.value;
    return value === undefined ? undefined : Number(value);
  }
  const array = pointee(btf, id);
  if (array === undefined) return undefined;
  const target = btf.resolve(array);
  return btf.kind(target) === 'ARRAY' ? (btf.type(target) as ArrayType).count : undefined;
}

function pointee(btf: Btf, id: number): number | undefined {
  return btf.kind(id) === 'PTR' ? (btf.type(id) as RefType).type : undefined;
}

/** `struct inner *values[]` of maps of maps. In program arrays these are functions. */
function innerDefinition(btf: Btf, name: string, id: number, structs: Structs): MapDefinition | undefined {
  if (btf.kind(id) !== 'ARRAY') return undefined;
  const target = pointee(btf, btf.resolve((btf.type(id) as ArrayType).type));
  const struct = target === undefined ? undefined : structs.get(btf.resolve(target));
  return struct === undefined ? undefined : mapDefinition(btf, `${name}.inner`, struct);
}

const ARRAY = 2;

/** For each section of global variables, loaders create an array with one entry. */
function dataMaps(btf: Btf): MapDefinition[] {
  const maps: MapDefinition[] = [];
  for (let id = btf.firstId; id <= btf.typeCount; id++) {
    if (btf.kind(id) !== 'DATASEC') continue;
    const name = btf.nameOf(id);
    if (!/^\.(bss|data|rodata|kconfig)(\.|$)/.test(name)) continue;
    const valueSize = btf.size(id);
    maps.push({ name, keyType: 0, valueType: id, type: ARRAY, keySize: 4, valueSize, maxEntries: 1 });
  }
  return maps;
}

function definitionsOf(maps: readonly MapDefinition[], name: string): readonly MapDefinition[] {
  const exact = maps.find((map) => map.name === name);
  if (exact !== undefined) return [exact];
  const cut = maps.filter((map) => name.length === MAP_NAME && map.name.slice(0, MAP_NAME) === name);
  if (cut.length > 0) return cut;
  // `flowd.bss` is the program's name (or its beginning) followed by the section's.
  const ends = (map: MapDefinition) => map.name.startsWith('.') && name.endsWith(map.name.slice(0, MAP_NAME));
  return maps
    .filter(ends)
    .sort((a, b) => b.name.length - a.name.length)
    .slice(0, 1);
}
