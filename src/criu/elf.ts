/**
 * What the dynamic loader would go by in a program or shared library: its machine, the libraries it needs, the
 * symbols it has and wants. ELF64 as in elf.h; nothing in the file is trusted.
 */
import * as fs from 'node:fs';
import { BpfimgError, ioError } from '../errors.js';

/** A dynamic symbol. */
export interface DynamicSymbol {
  /** Absent: another object must have it. */
  readonly defined: boolean;
  /** May stay without a definition. */
  readonly weak: boolean;
  /** Bound to a version of one library (`open@GLIBC_2.2.5`). */
  readonly versioned: boolean;
}

/** A program or shared library. */
export interface DynamicObject {
  /** EM_* number. */
  readonly machine: number;
  readonly littleEndian: boolean;
  /** Names of the libraries it needs (DT_NEEDED). */
  readonly needed: readonly string[];
  readonly symbols: ReadonlyMap<string, DynamicSymbol>;
  readonly bytes: Buffer;
}

/** Larger files are no program that anybody means. */
const MOST_BYTES = 256 * 1024 * 1024;
const ELF_MAGIC = 0x7f454c46;
const ELF_HEADER = 64;
const SECTION_HEADER = 64;
const SYMBOL = 24;
const SHT_DYNAMIC = 6;
const SHT_NOBITS = 8;
const SHT_DYNSYM = 11;
const SHT_VERSYM = 0x6fffffff;
const DT_NEEDED = 1;
const STB_WEAK = 2;
/** Longer names are none that anybody looks for. */
const MAX_NAME = 512;
/** Symbol versions below this are none: local, and global without one. */
const FIRST_VERSION = 2;

/**
 * Reads a program or shared library.
 * @throws BpfimgError `badImage` for what the loader would not take: no ELF file, cut off; `notFound`, `io`;
 *   `unsupported` for one of 32 bits or without dynamic symbols
 */
export function readDynamicObject(file: string): DynamicObject {
  return new Reader(readWhole(file), file).read();
}

function readWhole(file: string): Buffer {
  try {
    const { size } = fs.statSync(file);
    if (size > MOST_BYTES) throw new BpfimgError('unsupported', `${file}: ${size} bytes are too many for a program`);
    return fs.readFileSync(file);
  } catch (error) {
    throw ioError(file, 'read it', error);
  }
}

interface Section {
  readonly type: number;
  readonly offset: number;
  readonly size: number;
  readonly link: number;
}

class Reader {
  #little = true;

  constructor(
    readonly bytes: Buffer,
    readonly file: string,
  ) {}

  read(): DynamicObject {
    const { bytes } = this;
    if (bytes.length < 4 || bytes.readUInt32BE() !== ELF_MAGIC) throw this.#bad('it is no ELF file');
    if (bytes.length < ELF_HEADER) throw this.#bad('it is cut off');
    if (bytes[4] !== 2) throw new BpfimgError('unsupported', `${this.file}: it is not for 64 bits`);
    this.#little = bytes[5] === 1;
    const sections = this.#sections();
    const symbols = sections.find(({ type }) => type === SHT_DYNSYM);
    if (symbols === undefined) throw new BpfimgError('unsupported', `${this.file}: it has no dynamic symbols`);
    const versions = sections.find(({ type }) => type === SHT_VERSYM);
    const dynamic = sections.find(({ type }) => type === SHT_DYNAMIC);
    return {
      machine: this.#u16(18),
      littleEndian: this.#little,
      needed: dynamic === undefined ? [] : this.#needed(dynamic, this.#linked(sections, dynamic)),
      symbols: this.#symbols(symbols, this.#linked(sections, symbols), versions),
      bytes,
    };
  }

  #bad(what: string): BpfimgError {
    return new BpfimgError('badImage', `${this.file}: ${what}`);
  }

  #need(at: number, size: number): void {
    if (at + size > this.bytes.length) throw this.#bad('it is cut off');
  }

  #u16(at: number): number {
    this.#need(at, 2);
    return this.#little ? this.bytes.readUInt16LE(at) : this.bytes.readUInt16BE(at);
  }

  #u32(at: number): number {
    this.#need(at, 4);
    return this.#little ? this.bytes.readUInt32LE(at) : this.bytes.readUInt32BE(at);
  }

  /** Numbers beyond 2^53 lose their last bits, and are too large for any file all the same. */
  #u64(at: number): number {
    this.#need(at, 8);
    return Number(this.#little ? this.bytes.readBigUInt64LE(at) : this.bytes.readBigUInt64BE(at));
  }

  #sections(): Section[] {
    const [table, each, count] = [this.#u64(0x28), this.#u16(0x3a), this.#u16(0x3c)];
    if (count > 0 && each !== SECTION_HEADER) throw this.#bad(`section headers of ${each} bytes`);
    this.#need(table, count * SECTION_HEADER);
    return Array.from({ length: count }, (_, i) => {
      const at = table + i * SECTION_HEADER;
      const [type, offset, size] = [this.#u32(at + 4), this.#u64(at + 24), this.#u64(at + 32)];
      if (type !== SHT_NOBITS) this.#need(offset, size);
      return { type, offset, size, link: this.#u32(at + 40) };
    });
  }

  /** The section with the names of another one. */
  #linked(sections: readonly Section[], { link }: Section): Section {
    const found = sections[link];
    if (found === undefined || found.type === SHT_NOBITS) throw this.#bad(`names in section ${link}`);
    return found;
  }

  #text(names: Section, at: number): string {
    const bytes = this.bytes.subarray(names.offset, names.offset + names.size).subarray(at, at + MAX_NAME);
    const end = bytes.indexOf(0);
    return bytes.toString('latin1', 0, end < 0 ? bytes.length : end);
  }

  #needed(dynamic: Section, names: Section): string[] {
    const needed: string[] = [];
    for (let at = dynamic.offset; at + 16 <= dynamic.offset + dynamic.size; at += 16) {
      if (this.#u64(at) === DT_NEEDED) needed.push(this.#text(names, this.#u64(at + 8)));
    }
    return needed;
  }

  #symbols(table: Section, names: Section, versions: Section | undefined): Map<string, DynamicSymbol> {
    const found = new Map<string, DynamicSymbol>();
    const count = Math.floor(table.size / SYMBOL);
    for (let i = 1; i < count; i++) {
      const at = table.offset + i * SYMBOL;
      this.#need(at, SYMBOL);
      const version = versions !== undefined && 2 * i + 2 <= versions.size ? this.#u16(versions.offset + 2 * i) : 0;
      found.set(this.#text(names, this.#u32(at)), {
        defined: this.#u16(at + 6) !== 0,
        weak: (this.bytes[at + 4] as number) >> 4 === STB_WEAK,
        // The highest bit hides a symbol from who asks for none.
        versioned: (version & 0x7fff) >= FIRST_VERSION,
      });
    }
    return found;
  }
}
