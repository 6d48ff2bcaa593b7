/** Random types, what a next version makes of them, their values, and what should become of these: by way of JSON. */
import * as fs from 'node:fs';
import { valueCodec } from '../../src/btf/values.js';
import { viewOf } from '../../src/bytes.js';
import type { Json, JsonObject } from '../../src/value.js';
import { type CTypes, cTypes } from './c-types.js';
import type { Random } from './random.js';

export type Shape =
  | { readonly is: 'int'; readonly name: string; readonly size: number; readonly signed: boolean }
  | { readonly is: 'bits'; readonly size: number; readonly signed: boolean; readonly bits: number }
  | { readonly is: 'bool' }
  | { readonly is: 'float'; readonly size: 4 | 8 }
  | { readonly is: 'enum'; readonly names: Readonly<Record<string, number>> }
  | { readonly is: 'text'; readonly count: number }
  | { readonly is: 'array'; readonly of: Shape; readonly count: number }
  | { readonly is: 'struct'; readonly members: readonly Member[]; readonly anonymous: boolean };

interface Member {
  readonly name: string;
  readonly shape: Shape;
}

export const INTS = ['u8', 'u16', 'u32', 'u64', 'u128', 's8', 's16', 's32', 's64', 's128'].map((name) => ({
  is: 'int' as const,
  name,
  size: Number(name.slice(1)),
  signed: name.startsWith('s'),
}));

let tag = 0;
const NAMES = ['IDLE', 'BUSY', 'DONE', 'DEAD', 'LOST'];

function randomEnum(random: Random): Shape {
  const names: Record<string, number> = {};
  const numbers = new Set<number>();
  for (const name of NAMES) {
    const number = random.below(4) === 0 ? -1 - random.below(3) : random.below(300);
    // An enum needs a name.
    if (numbers.has(number) || (numbers.size > 0 && random.below(4) === 0)) continue;
    numbers.add(number);
    names[name] = number;
  }
  return { is: 'enum', names };
}

function randomShape(random: Random, depth: number): Shape {
  switch (random.below(depth > 0 ? 10 : 7)) {
    case 0:
      return { is: 'bool' };
    case 1:
      return { is: 'float', size: random.of([4, 8] as const) };
    case 2:
      return randomEnum(random);
    case 3:
      return { is: 'text', count: 1 + random.below(12) };
    case 4: {
      const size = random.of([8, 16, 32, 64]);
      return { is: 'bits', size, signed: random.below(2) === 0, bits: 1 + random.below(size) };
    }
    case 7:
      return { is: 'array', of: arrayable(randomShape(random, depth - 1)), count: 1 + random.below(4) };
    case 8:
    case 9:
      return randomStruct(random, depth - 1, random.below(4) === 0);
    default:
      return random.of(INTS);
  }
}

/** Elements are no bit-fields, and have a name. */
function arrayable(shape: Shape): Shape {
  if (shape.is === 'bits') return random64;
  return shape.is === 'struct' ? { ...shape, anonymous: false } : shape;
}
const random64: Shape = INTS[3] as Shape;

export function randomStruct(random: Random, depth: number, anonymous: boolean): Shape {
  const members = Array.from({ length: 1 + random.below(5) }, () => ({
    name: `m${tag++}`,
    shape: randomShape(random, depth),
  }));
  return { is: 'struct', members, anonymous };
}

export function shapeText(shape: Shape, name: string): string {
  switch (shape.is) {
    case 'int':
      return `${shape.name} ${name}`;
    case 'bits':
      return `${shape.signed ? 's' : 'u'}${shape.size} ${name}:${shape.bits}`;
    case 'bool':
      return `bool ${name}`;
    case 'float':
      return `${shape.size === 4 ? 'float' : 'double'} ${name}`;
    case 'enum':
      return `enum { ${Object.entries(shape.names).map(([name, number]) => `${name} = ${number}`)} } ${name}`;
    case 'text':
      return `char ${name}[${shape.count}]`;
    case 'array': {
      const of = shapeText(shape.of, name);
      // The outer dimension comes first.
      const at = of.lastIndexOf(name) + name.length;
      return `${of.slice(0, at)}[${shape.count}]${of.slice(at)}`;
    }
    case 'struct': {
      const members = shape.members.map(({ name, shape }) => `${shapeText(shape, name)};`).join(' ');
      return `struct { ${members} } ${shape.anonymous ? '' : name}`;
    }
  }
}

/** What a new version makes of a type: other members, other widths, other numbers. */
export function changed(random: Random, shape: Shape, renames: Map<string, string>): Shape {
  const keep = random.below(3) === 0;
  switch (shape.is) {
    case 'int':
    case 'bool':
    case 'bits':
      if (keep) return shape;
      if (random.below(8) === 0)
        return { is: 'struct', members: [{ name: 'v', shape: random.of(INTS) }], anonymous: false };
      if (random.below(5) === 0) return { is: 'bool' };
      if (random.below(4) === 0) {
        const size = random.of([8, 16, 32, 64]);
        return { is: 'bits', size, signed: random.below(2) === 0, bits: 1 + random.below(size) };
      }
      return random.of(INTS);
    case 'enum':
      if (keep) return shape;
      return random.below(6) === 0 ? random.of(INTS) : randomEnum(random);
    case 'float':
      return keep ? shape : { is: 'float', size: random.of([4, 8] as const) };
    case 'text':
      return keep ? shape : { is: 'text', count: 1 + random.below(12) };
    case 'array':
      return {
        is: 'array',
        of: arrayable(changed(random, shape.of, renames)),
        count: keep ? shape.count : 1 + random.below(5),
      };
    case 'struct': {
      const members: Member[] = [];
      for (const member of shape.members) {
        const next = changed(random, member.shape, renames);
        if (random.below(10) === 0) continue;
        const named = !(next.is === 'struct' && next.anonymous) && random.below(8) === 0;
        if (named) renames.set(member.name, `r${member.name}`);
        members.push({ name: named ? `r${member.name}` : member.name, shape: next });
      }
      if (random.below(2) === 0) members.push({ name: `m${tag++}`, shape: randomShape(random, 1) });
      if (random.below(2) === 0) members.sort(() => random.below(2) - 0.5);
      if (members.length === 0) return shape;
      return { ...shape, members };
    }
  }
}

/** The members of a structure, past anonymous ones. */
const membersOf = (shape: Shape): readonly Member[] =>
  shape.is !== 'struct'
    ? []
    : shape.members.flatMap((member) =>
        member.shape.is === 'struct' && member.shape.anonymous ? membersOf(member.shape) : [member],
      );

const widthOf = (shape: Shape) =>
  shape.is === 'int' || shape.is === 'bits'
    ? { bits: shape.is === 'bits' ? shape.bits : shape.size, signed: shape.signed }
    : {
        bits: shape.is === 'bool' ? 8 : 32,
        signed: shape.is === 'enum' && Object.values(shape.names).some((n) => n < 0),
      };

/** A number of a type as JSON, from any number: its lowest bits. */
function cut(shape: Shape, number: bigint): Json {
  const { bits, signed } = widthOf(shape);
  const value = signed ? BigInt.asIntN(bits, number) : BigInt.asUintN(bits, number);
  return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
}

export function randomValue(random: Random, shape: Shape): Json {
  switch (shape.is) {
    case 'int':
    case 'bits': {
      const { bits } = widthOf(shape);
      const some = BigInt(`0x${random.bytes(16).toString('hex')}`);
      // Mostly small ones, or close to where a width ends.
      const edge = 1n << BigInt(random.below(bits + 1));
      return cut(shape, random.of([some, BigInt(random.below(3)), edge - 1n, edge, -edge, -edge - 1n, 0n, -1n]));
    }
    case 'bool':
      return random.below(10) === 0 ? 2 + random.below(254) : random.below(2) === 1;
    case 'enum':
      return random.below(6) === 0 ? cut(shape, BigInt(random.below(300))) : random.of(Object.keys(shape.names));
    case 'float':
      return random.of([0, '-0', 1.5, 'Infinity', -3, shape.size === 4 ? 0.25 : 0.1]);
    case 'text':
      return random.below(8) === 0
        ? { $raw: random.bytes(shape.count).toString('hex') }
        : 'abcdefghijkl'.slice(0, random.below(shape.count + 1));
    case 'array':
      return Array.from({ length: shape.count }, () =>
        random.below(3) === 0 ? zeroOf(shape.of) : randomValue(random, shape.of),
      );
    case 'struct':
      return Object.fromEntries(
        membersOf(shape).map(({ name, shape }) => [
          name,
          random.below(4) === 0 ? zeroOf(shape) : randomValue(random, shape),
        ]),
      );
  }
}

export function zeroOf(shape: Shape): Json {
  if (shape.is === 'struct')
    return Object.fromEntries(membersOf(shape).map(({ name, shape }) => [name, zeroOf(shape)]));
  if (shape.is === 'array') return Array.from({ length: shape.count }, () => zeroOf(shape.of));
  if (shape.is === 'text') return '';
  return 0;
}

/** The number that a JSON value is. */
function numberOf(shape: Shape, value: Json): bigint {
  if (typeof value === 'boolean') return value ? 1n : 0n;
  const named = shape.is === 'enum' && typeof value === 'string' ? shape.names[value] : undefined;
  return BigInt(named ?? (value as string | number));
}

/** The bytes of a text. */
function bytesOf(value: Json, count: number): Buffer {
  const bytes = Buffer.alloc(count);
  if (typeof value === 'string') bytes.write(value);
  else bytes.set(Buffer.from((value as { $raw: string }).$raw, 'hex'));
  return bytes;
}

/** How many things of a value are not zero. */
function countOf(shape: Shape, value: Json): number {
  switch (shape.is) {
    case 'struct':
      return membersOf(shape).reduce(
        (sum, { name, shape }) => sum + countOf(shape, (value as JsonObject)[name] as Json),
        0,
      );
    case 'array':
      return (value as Json[]).reduce<number>((sum, one) => sum + countOf(shape.of, one), 0);
    case 'text':
      return bytesOf(value, shape.count).some((byte) => byte !== 0) ? 1 : 0;
    case 'float':
      return value === 0 ? 0 : 1;
    default:
      return numberOf(shape, value) === 0n ? 0 : 1;
  }
}

/** What becomes of a value, and how much is lost; undefined where the types do not convert. */
export function becomes(
  old: Shape,
  fresh: Shape,
  value: Json,
): { readonly value: Json; readonly lost: number } | undefined {
  if (old.is === 'struct' || fresh.is === 'struct') {
    if (old.is === 'struct' && fresh.is === 'struct') {
      const object: JsonObject = {};
      let lost = 0;
      const rest = new Map(membersOf(old).map((member) => [member.name, member.shape]));
      for (const { name, shape } of membersOf(fresh)) {
        // Renamed there, or back.
        const was = [name, name.replace(/^rm/, 'm'), `r${name}`].find((one) => rest.has(one)) ?? name;
        const from = rest.get(was);
        rest.delete(was);
        const one =
          from === undefined
            ? { value: zeroOf(shape), lost: 0 }
            : becomes(from, shape, (value as JsonObject)[was] as Json);
        if (one === undefined) return undefined;
        object[name] = one.value;
        lost += one.lost;
      }
      for (const [name, shape] of rest) lost += countOf(shape, (value as JsonObject)[name] as Json);
      return { value: object, lost };
    }
    const [only, ...others] = membersOf(old.is === 'struct' ? old : fresh);
    if (only === undefined || others.length > 0) return undefined;
    if (old.is === 'struct') return becomes(only.shape, fresh, (value as JsonObject)[only.name] as Json);
    const one = becomes(old, only.shape, value);
    return one && { value: { [only.name]: one.value }, lost: one.lost };
  }
  if (old.is === 'array' && fresh.is === 'array') {
    const list: Json[] = [];
    let lost = 0;
    for (const [i, one] of (value as Json[]).entries()) {
      const next = becomes(old.of, fresh.of, one);
      if (next === undefined) return undefined;
      if (i < fresh.count) list.push(next.value);
      lost += i < fresh.count ? next.lost : countOf(old.of, one);
    }
    while (list.length < fresh.count) list.push(zeroOf(fresh.of));
    return { value: list, lost };
  }
  if (old.is === 'text' && fresh.is === 'text') {
    const bytes = bytesOf(value, old.count);
    const kept = Buffer.alloc(fresh.count);
    bytes.copy(kept);
    return {
      value: { $raw: kept.toString('hex') },
      lost: bytes.subarray(fresh.count).some((byte) => byte !== 0) ? 1 : 0,
    };
  }
  if (old.is === 'float' && fresh.is === 'float') {
    const exact = typeof value !== 'number' || fresh.size === 8 || Math.fround(value) === value;
    return { value: exact ? value : Math.fround(value as number), lost: exact ? 0 : 1 };
  }
  if (['array', 'text', 'float'].some((is) => old.is === is || fresh.is === is)) return undefined;
  const number = numberOf(old, value);
  if (old.is === 'enum' && fresh.is === 'enum') {
    const name = Object.entries(old.names).find(([, one]) => BigInt(one) === number)?.[0];
    const target = name === undefined ? undefined : fresh.names[name];
    if (target !== undefined) return { value: target, lost: 0 };
    const moved = Object.entries(old.names).some(
      ([name, one]) => fresh.names[name] !== undefined && fresh.names[name] !== one,
    );
    const known = Object.values(fresh.names).some((one) => BigInt(one) === number);
    const fits = name === undefined && !moved && !known && BigInt(cut(fresh, number) as string) === number;
    return { value: cut(fresh, number), lost: fits ? 0 : 1 };
  }
  if (fresh.is === 'bool' && old.is !== 'bool')
    return { value: number !== 0n, lost: number === 0n || number === 1n ? 0 : 1 };
  const kept = cut(fresh, number);
  return { value: kept, lost: BigInt(kept as string) === number ? 0 : 1 };
}

/** The C types of a random structure, as `struct s`. */
export function typesOf(shape: Shape): CTypes {
  const text = shapeText(shape, 'top').replace('struct', 'struct s').replace(/ top$/, '');
  return cTypes(`${text};`, ['u32']);
}

/** The bytes of a value of `struct s`, in hex. */
export function valueHex(c: CTypes, value: Json): string {
  const { btf, id } = c.type('struct s');
  const codec = valueCodec(btf, id);
  const bytes = Buffer.alloc(codec.size);
  codec.encode(value, viewOf(bytes));
  return bytes.toString('hex');
}

/** A key of a u32, in hex. */
export const keyHex = (n: number): string => Buffer.from(Uint32Array.of(n).buffer).toString('hex');

/** Writes a maps document with one hash map, from u32 to `struct s`; items are in hex. */
export function typedDocument(
  file: string,
  c: CTypes,
  items: Iterable<readonly [key: string, value: string]>,
  most: number,
): void {
  const { btf, id } = c.type('struct s');
  const map = {
    map_id: 1,
    name: 'm',
    type: 'hash',
    key_size: 4,
    value_size: valueCodec(btf, id).size,
    max_entries: most,
    map_flags: [],
    map_extra: '0x0',
    frozen: false,
    ifindex: 0,
    files: [{ id: 1, flags: 'O_RDWR', fds: [] }],
    meta: { btf_id: 1, btf_key_type_id: c.type('u32').id, btf_value_type_id: id },
    items: [...items].map(([key, value]) => ({ key, value })),
  };
  const blob = Buffer.from(btf.bytes).toString('base64');
  const btfs = [{ btf_id: 1, name: '', blob }];
  fs.writeFileSync(file, JSON.stringify({ format: 'bpfimg-maps/1', btf: btfs, maps: [map] }));
}
