/** Types written in a little C, as BTF with the layout that compilers for BPF give them. */
import { Btf } from '../../src/btf/btf.js';
import { BtfWriter } from './btf-writer.js';

/** A type: its id, and what its members' places depend on. */
interface Placed {
  readonly id: number;
  readonly size: number;
  readonly align: number;
}

const NUMBERS: Readonly<Record<string, readonly [size: number, encoding: number]>> = {
  u8: [1, 0],
  u16: [2, 0],
  u32: [4, 0],
  u64: [8, 0],
  u128: [16, 0],
  s8: [1, 1],
  s16: [2, 1],
  s32: [4, 1],
  s64: [8, 1],
  s128: [16, 1],
  char: [1, 1],
  bool: [1, 4],
};

/** What clang needs before such a text. */
export const C_HEAD = `typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64;
typedef signed char s8; typedef short s16; typedef int s32; typedef long long s64; typedef _Bool bool;
typedef unsigned __int128 u128; typedef __int128 s128;
typedef u16 __be16; typedef u32 __be32; typedef u64 __be64;
`;

/** Types by name. */
export interface CTypes {
  readonly btf: Btf;
  /** `struct s`, `u32`, `u32[4]`. */
  type(name: string): { readonly btf: Btf; readonly id: number };
}

/**
 * Reads definitions of structures, unions and enums: members are `u32 a`, `char b[16]`, `s32 c:3`, `enum e d`,
 * `void *p`, and structures with or without names. An enum is 64 bits wide if one of its numbers needs it.
 * @param wanted types to have besides those that are defined: `u32[4]`
 */
export function cTypes(text: string, wanted: readonly string[] = [], little = true): CTypes {
  const reader = new Reader(text, little);
  while (!reader.ended()) {
    reader.base();
    reader.take(';');
  }
  const ids = new Map(wanted.map((name) => [name, reader.named(name)]));
  const btf = Btf.parse(reader.writer.bytes(), { name: 'c' });
  return {
    btf,
    type(name) {
      const [word = '', tag = ''] = name.split(' ');
      const kind = ({ struct: 'STRUCT', union: 'UNION', enum: 'ENUM' } as const)[word];
      const id = ids.get(name) ?? (kind && (btf.find(kind, tag) ?? btf.find('ENUM64', tag)));
      if (id === undefined) throw new Error(`no ${name}`);
      return { btf, id };
    },
  };
}

class Reader {
  readonly writer: BtfWriter;
  readonly #tokens: string[];
  readonly #known = new Map<string, Placed>();

  constructor(
    text: string,
    readonly little: boolean,
  ) {
    this.writer = new BtfWriter(little);
    this.#tokens = text.match(/-?\w+|[^\s\w]/g) ?? [];
  }

  ended = (): boolean => this.#tokens.length === 0;

  take(token?: string): string {
    const next = this.#tokens.shift();
    if (next === undefined || (token !== undefined && next !== token))
      throw new Error(`expected ${token}, got ${next}`);
    return next;
  }

  #is(token: string): boolean {
    if (this.#tokens[0] !== token) return false;
    this.#tokens.shift();
    return true;
  }

  named(name: string): Placed['id'] {
    this.#tokens.push(...(name.match(/\w+|[^\s\w]/g) as string[]));
    return this.#dimensions(this.base()).id;
  }

  base(): Placed {
    const word = this.take();
    if (word === 'struct' || word === 'union' || word === 'enum') {
      const name = /^\w/.test(this.#tokens[0] ?? '') ? this.take() : '';
      const known = this.#known.get(`${word} ${name}`);
      if (this.#tokens[0] !== '{' && known !== undefined) return known;
      this.take('{');
      const placed = word === 'enum' ? this.#enum(name) : this.#struct(word, name);
      if (name !== '') this.#known.set(`${word} ${name}`, placed);
      return placed;
    }
    return this.#number(word);
  }

  #number(word: string): Placed {
    const known = this.#known.get(word);
    if (known !== undefined) return known;
    const { writer } = this;
    let placed: Placed;
    const order = /^__be(16|32|64)$/.exec(word);
    if (order !== null) {
      const of = this.#number(`u${order[1]}`);
      placed = { ...of, id: writer.typedef(word, of.id) };
    } else if (word === 'void') placed = { id: 0, size: 0, align: 1 };
    else if (word === 'float' || word === 'double') {
      const size = word === 'float' ? 4 : 8;
      placed = { id: writer.float(word, size), size, align: size };
    } else {
      const [size, encoding] = NUMBERS[word] ?? [0, 0];
      if (size === 0) throw new Error(`what is ${word}?`);
      placed = { id: writer.int(word, size, { encoding }), size, align: size };
    }
    this.#known.set(word, placed);
    return placed;
  }

  #enum(name: string): Placed {
    const values: [string, bigint][] = [];
    let next = 0n;
    while (!this.#is('}')) {
      const one = this.take();
      if (this.#is('=')) next = BigInt(this.take().replace(/^-(.*)/, '-$1'));
      values.push([one, next++]);
      this.#is(',');
    }
    const signed = values.some(([, value]) => value < 0n);
    const wide = values.some(([, value]) => value >= 2n ** (signed ? 31n : 32n) || value < -(2n ** 31n));
    const size = wide ? 8 : 4;
    const id = wide
      ? this.writer.enum64(name, 8, Object.fromEntries(values), signed)
      : this.writer.enum(name, 4, Object.fromEntries(values.map(([name, value]) => [name, Number(value)])), signed);
    return { id, size, align: size };
  }

  #dimensions(of: Placed): Placed {
    const counts: number[] = [];
    while (this.#is('[')) {
      counts.push(Number(this.take()));
      this.take(']');
    }
    return counts.reduceRight(
      ({ id, size, align }, count) => ({ id: this.writer.array(id, count), size: size * count, align }),
      of,
    );
  }

  #struct(word: string, name: string): Placed {
    const members: { name: string; type: number; at: number; bits?: number }[] = [];
    const union = word === 'union';
    let [end, most, align] = [0, 0, 1];
    const round = (bit: number, to: number) => Math.ceil(bit / to) * to;
    while (!this.#is('}')) {
      let type = this.base();
      if (this.#is('*')) type = { id: this.writer.ptr(type.id), size: 8, align: 8 };
      const name = this.#tokens[0] === ';' ? '' : this.take();
      type = this.#dimensions(type);
      if (union) end = 0;
      if (this.#is(':')) {
        const bits = Number(this.take());
        if ((end % (type.size * 8)) + bits > type.size * 8) end = round(end, type.size * 8);
        members.push({ name, type: type.id, at: end, bits });
        end += bits;
      } else {
        end = round(end, type.align * 8);
        members.push({ name, type: type.id, at: end });
        end += type.size * 8;
      }
      align = Math.max(align, type.align);
      most = Math.max(most, end);
      this.take(';');
    }
    const size = round(most, align * 8) / 8;
    return { id: this.writer[union ? 'union' : 'struct'](name, size, members), size, align };
  }
}
