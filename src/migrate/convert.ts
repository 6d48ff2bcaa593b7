/**
 * The operations that a migration compiles to, and what runs them.
 *
 * A program is one Int32Array: each operation is a record of {@link WIDTH} numbers, and the body of a loop follows
 * its head. Integers of up to 64 bits are handled as two halves of 32, so that a value costs no allocation.
 */

import { valueCodec } from '../btf/values.js';
import { viewOf } from '../bytes.js';
import { type Node, pathOf } from './layout.js';

/**
 * Why something of a value is lost: a number or text `does not fit`; the new enum has `no such name`; an old member is
 * `dropped`, because the new type has no place for it, and is not zero; array elements `beyond the end` of the new
 * array are not zero; a union that is `not alike` is not zero; a `double` is `not exact` as a `float`.
 */
export type LossReason = 'does not fit' | 'no such name' | 'dropped' | 'beyond the end' | 'not alike' | 'not exact';

/** What one value loses at one place. */
export interface Loss {
  /** The old member: `flows[3].bytes`; empty for the whole value. */
  readonly member: string;
  readonly reason: LossReason;
  /** What it was, as short text. */
  readonly value: string;
  /** How many elements of arrays lose the same; `member` and `value` are the first one's. */
  readonly times: number;
}

/** Where an operation comes from: what its loss is called. */
export interface Site {
  readonly node: Node;
  readonly reason: LossReason;
}

/** Numbers in one operation's record. */
const WIDTH = 14;

/** Operations. What follows the number in the record is in the comments. */
export const OP = {
  /** from, to, bytes */
  COPY: 0,
  /** from, to, mask: some bits of one byte */
  MASK: 1,
  /** from, to, bytes: in the other byte order */
  REVERSE: 2,
  /** place and width of both, see {@link numberOp} */
  NUMBER: 3,
  /** the same */
  ENUM: 4,
  /** the same, of more than 64 bits */
  WIDE: 5,
  /** from, bytes, little, to, bytes, little */
  FLOAT: 6,
  /** from, bytes, mask of the first, mask of the last: must be zero */
  ZERO: 7,
  /** from, to, count, bytes of one, bytes of one there, first index, depth, end */
  LOOP: 8,
} as const;

/** One operation, before it is part of a program. */
export interface Op {
  /** Its number, and what follows it. */
  readonly code: readonly number[];
  readonly site?: Site;
  readonly names?: EnumTable;
  readonly body?: readonly Op[];
}

/** A number as two halves. */
interface Halves {
  readonly low: number;
  readonly high: number;
}

/** How the numbers of one enum become those of another. */
export interface EnumTable {
  /** By old number; null where the new enum has no such name. */
  readonly numbers: ReadonlyMap<number | bigint, Halves | null>;
  /** What may become of a number without a name: kept, unless it is one of these or nothing is known of any. */
  readonly taken: ReadonlySet<number | bigint>;
  readonly renumbered: boolean;
}

const TO_BOOL = 2;
const TO_SIGNED = 1;

/** The record of a number's conversion: first byte, step to the next, shift, bytes, bits, of both. */
export function numberOp(op: number, from: Node, to: Node): number[] {
  return [
    op,
    ...placeOf(from),
    from.signed ? 1 : 0,
    ...placeOf(to),
    roomOf(to),
    (to.signed ? TO_SIGNED : 0) | (to.bool && !from.bool ? TO_BOOL : 0),
  ];
}

/** Bits that a number which is not negative may have. */
export function roomOf({ bits, signed, bool }: Node): number {
  return bool ? 1 : signed ? bits - 1 : bits;
}

function placeOf({ bit, bits, little }: Node): number[] {
  const first = Math.floor(bit / 8);
  const start = bit % 8;
  const bytes = Math.ceil((start + bits) / 8);
  return little ? [first, 1, start, bytes, bits] : [first + bytes - 1, -1, bytes * 8 - start - bits, bytes, bits];
}

/** The halves of a number of at most 64 bits. */
export const halves = (value: bigint): Halves => ({
  low: Number(BigInt.asIntN(32, value)),
  high: Number(BigInt.asIntN(32, value >> 32n)),
});

/** Up to this many bytes, a loop is faster than a call. */
const SHORT = 64;
/** Bytes of the longest value that is shown in a loss. */
const SHOWN_BYTES = 1024;
/** Characters of it. */
const SHOWN = 100;

// The number that was loaded last: a result of two halves without an object for it.
let LOW = 0;
let HIGH = 0;

function load(
  bytes: Uint8Array,
  first: number,
  step: number,
  shift: number,
  count: number,
  bits: number,
  signed: number,
) {
  let low = 0;
  let high = 0;
  let at = first;
  let place = -shift;
  for (let i = 0; i < count; i++) {
    const byte = bytes[at] as number;
    if (place < 0) low = byte >> -place;
    else if (place < 32) {
      low |= byte << place;
      if (place > 24) high |= byte >> (32 - place);
    } else high |= byte << (place - 32);
    at += step;
    place += 8;
  }
  if (bits <= 32) {
    if (bits < 32) low = signed ? (low << (32 - bits)) >> (32 - bits) : low & ((1 << bits) - 1);
    high = signed ? low >> 31 : 0;
  } else if (bits < 64) {
    high = signed ? (high << (64 - bits)) >> (64 - bits) : high & ((1 << (bits - 32)) - 1);
  }
  LOW = low;
  HIGH = high;
}

/** Adds the lowest `bits` to bytes that are zero there. */
function store(
  bytes: Uint8Array,
  first: number,
  step: number,
  shift: number,
  count: number,
  bits: number,
  low: number,
  high: number,
) {
  let at = first;
  let place = -shift;
  if (bits < 32) low &= (1 << bits) - 1;
  // Of no more than 32 bits the high half is none of it; else what is below it is all of `low`.
  if (bits <= 32) high = 0;
  else if (bits < 64) high &= (1 << (bits - 32)) - 1;
  for (let i = 0; i < count; i++) {
    let byte: number;
    if (place < 0) byte = low << -place;
    else if (place < 32) {
      byte = low >>> place;
      if (place > 24) byte |= high << (32 - place);
    } else byte = place < 64 ? high >>> (place - 32) : 0;
    // The array takes the lowest eight bits.
    bytes[at] = (bytes[at] as number) | byte;
    at += step;
    place += 8;
  }
}

/** Whether the loaded number fits: `room` bits, one more below zero when signed. */
function fits(signedSource: number, bits: number, room: number, signedTarget: boolean): boolean {
  if (signedSource !== 0 && HIGH < 0) {
    if (!signedTarget) return false;
    if (bits >= 64) return true;
    if (bits > 32) return HIGH === (HIGH << (64 - bits)) >> (64 - bits);
    return HIGH === -1 && LOW === (bits === 32 ? LOW | 0x8000_0000 : (LOW << (32 - bits)) >> (32 - bits));
  }
  if (room >= 64) return true;
  if (room > 32) return HIGH >>> (room - 32) === 0;
  return HIGH === 0 && (room === 32 || LOW >>> room === 0);
}

const TWO_32 = 0x1_0000_0000;

/** The loaded number as a key of an {@link EnumTable}. */
function loadedKey(signed: number): number | bigint {
  const high = signed ? HIGH : HIGH >>> 0;
  if (high >= -0x20_0000 && high < 0x20_0000 && (high > -0x20_0000 || LOW !== 0)) return high * TWO_32 + (LOW >>> 0);
  return (BigInt(high) << 32n) | BigInt(LOW >>> 0);
}

/** An integer of any width. */
function loadWide(
  bytes: Uint8Array,
  first: number,
  step: number,
  shift: number,
  count: number,
  bits: number,
  signed: boolean,
): bigint {
  let whole = 0n;
  for (let i = count - 1; i >= 0; i--) whole = (whole << 8n) | BigInt(bytes[first + i * step] as number);
  whole >>= BigInt(shift);
  return signed ? BigInt.asIntN(bits, whole) : BigInt.asUintN(bits, whole);
}

function storeWide(
  bytes: Uint8Array,
  first: number,
  step: number,
  shift: number,
  count: number,
  bits: number,
  value: bigint,
) {
  let rest = BigInt.asUintN(bits, value) << BigInt(shift);
  for (let i = 0; i < count; i++) {
    const at = first + i * step;
    bytes[at] = (bytes[at] as number) | Number(rest & 0xffn);
    rest >>= 8n;
  }
}

/** A compiled program. */
export class Program {
  readonly #code: Int32Array;
  readonly #sites: readonly (Site | undefined)[];
  readonly #names: readonly (EnumTable | undefined)[];
  readonly #end: number;
  /** The index that each loop is at, and what it adds to name an element. */
  readonly #indexes: number[] = [];
  readonly #first: number[] = [];
  #losses: { -readonly [name in keyof Loss]: Loss[name] }[] | undefined;
  #lost: Site[] = [];

  constructor(ops: readonly Op[]) {
    const code: number[] = [];
    const sites: (Site | undefined)[] = [];
    const names: (EnumTable | undefined)[] = [];
    const add = (list: readonly Op[]) => {
      for (const op of list) {
        const at = sites.length;
        for (let i = 0; i < WIDTH; i++) code.push(op.code[i] ?? 0);
        sites.push(op.site);
        names.push(op.names);
        if (op.body === undefined) continue;
        add(op.body);
        code[at * WIDTH + 8] = sites.length;
      }
    };
    add(ops);
    this.#code = Int32Array.from(code);
    this.#sites = sites;
    this.#names = names;
    this.#end = sites.length;
  }

  /** Runs it on the value at `from`; the bytes at `to` are zero where it writes. Returns what is lost. */
  run(source: Uint8Array, from: number, target: Uint8Array, to: number): readonly Loss[] | undefined {
    this.#losses = undefined;
    this.#run(source, target, 0, this.#end, from, to);
    return this.#losses;
  }

  #run(source: Uint8Array, target: Uint8Array, start: number, end: number, from: number, to: number): void {
    const code = this.#code;
    for (let pc = start; pc < end; pc++) {
      const at = pc * WIDTH;
      const a = code[at + 1] as number;
      const b = code[at + 2] as number;
      const c = code[at + 3] as number;
      switch (code[at]) {
        case OP.COPY: {
          const first = from + a;
          const there = to + b;
          if (c > SHORT) target.set(source.subarray(first, first + c), there);
          else for (let i = 0; i < c; i++) target[there + i] = source[first + i] as number;
          break;
        }
        case OP.MASK:
          target[to + b] = (target[to + b] as number) | ((source[from + a] as number) & c);
          break;
        case OP.REVERSE:
          for (let i = 0; i < c; i++) target[to + b + i] = source[from + a + c - 1 - i] as number;
          break;
        case OP.NUMBER:
          this.#number(source, target, pc, from, to);
          break;
        case OP.ENUM:
          this.#enum(source, target, pc, from, to);
          break;
        case OP.WIDE:
          this.#wide(source, target, pc, from, to);
          break;
        case OP.FLOAT:
          this.#float(source, target, pc, from, to);
          break;
        case OP.ZERO:
          if (!isZeroAt(source, from + a, b, c, code[at + 4] as number)) this.#lose(pc, source, from);
          break;
        case OP.LOOP: {
          const strideFrom = code[at + 4] as number;
          const strideTo = code[at + 5] as number;
          const depth = code[at + 7] as number;
          const bodyEnd = code[at + 8] as number;
          this.#first[depth] = code[at + 6] as number;
          for (let i = 0; i < c; i++) {
            this.#indexes[depth] = i;
            this.#run(source, target, pc + 1, bodyEnd, from + a + i * strideFrom, to + b + i * strideTo);
          }
          pc = bodyEnd - 1;
          break;
        }
      }
    }
  }

  #number(source: Uint8Array, target: Uint8Array, pc: number, from: number, to: number): void {
    const code = this.#code;
    const at = pc * WIDTH;
    const signed = code[at + 6] as number;
    load(
      source,
      from + (code[at + 1] as number),
      code[at + 2] as number,
      code[at + 3] as number,
      code[at + 4] as number,
      code[at + 5] as number,
      signed,
    );
    this.#store(target, pc, to, signed, source, from);
  }

  /** Stores the loaded number, whether it fits or not. */
  #store(target: Uint8Array, pc: number, to: number, signed: number, source: Uint8Array, from: number): void {
    const code = this.#code;
    const at = pc * WIDTH;
    const bits = code[at + 11] as number;
    const flags = code[at + 13] as number;
    let low = LOW;
    if (!fits(signed, bits, code[at + 12] as number, (flags & TO_SIGNED) !== 0)) {
      this.#lose(pc, source, from);
      // As in C.
      if ((flags & TO_BOOL) !== 0) low = 1;
    }
    store(
      target,
      to + (code[at + 7] as number),
      code[at + 8] as number,
      code[at + 9] as number,
      code[at + 10] as number,
      bits,
      low,
      (flags & TO_BOOL) !== 0 ? 0 : HIGH,
    );
  }

  #enum(source: Uint8Array, target: Uint8Array, pc: number, from: number, to: number): void {
    const code = this.#code;
    const at = pc * WIDTH;
    const signed = code[at + 6] as number;
    load(
      source,
      from + (code[at + 1] as number),
      code[at + 2] as number,
      code[at + 3] as number,
      code[at + 4] as number,
      code[at + 5] as number,
      signed,
    );
    const table = this.#names[pc] as EnumTable;
    const key = loadedKey(signed);
    const named = table.numbers.get(key);
    if (named === undefined && !table.renumbered && !table.taken.has(key)) {
      this.#store(target, pc, to, signed, source, from);
      return;
    }
    if (!named) this.#lose(pc, source, from);
    else {
      LOW = named.low;
      HIGH = named.high;
    }
    store(
      target,
      to + (code[at + 7] as number),
      code[at + 8] as number,
      code[at + 9] as number,
      code[at + 10] as number,
      code[at + 11] as number,
      LOW,
      HIGH,
    );
  }

  #wide(source: Uint8Array, target: Uint8Array, pc: number, from: number, to: number): void {
    const [, first, step, shift, bytes, bits, signed, first2, step2, shift2, bytes2, bits2, room, flags] =
      this.#code.subarray(pc * WIDTH, (pc + 1) * WIDTH) as unknown as number[] & { length: 14 };
    let value = loadWide(
      source,
      from + (first as number),
      step as number,
      shift as number,
      bytes as number,
      bits as number,
      signed !== 0,
    );
    const below = ((flags as number) & TO_SIGNED) !== 0 ? -(1n << BigInt(room as number)) : 0n;
    if (value < below || value >= 1n << BigInt(room as number)) {
      this.#lose(pc, source, from);
      if (((flags as number) & TO_BOOL) !== 0) value = 1n;
    }
    storeWide(
      target,
      to + (first2 as number),
      step2 as number,
      shift2 as number,
      bytes2 as number,
      bits2 as number,
      value,
    );
  }

  #float(source: Uint8Array, target: Uint8Array, pc: number, from: number, to: number): void {
    const [, at = 0, size, little, there = 0, , littleThere] = this.#code.subarray(pc * WIDTH, (pc + 1) * WIDTH);
    const [view, out] = [viewOf(source), viewOf(target)];
    if (size === 4) {
      const bits = view.getUint32(from + at, little === 1);
      if ((bits & 0x7fff_ffff) > 0x7f80_0000) {
        // Not a number, but its bits may mean something; processors would change them.
        const wide = (BigInt(bits >>> 31) << 63n) | 0x7ff0_0000_0000_0000n | (BigInt(bits & 0x7f_ffff) << 29n);
        out.setBigUint64(to + there, wide, littleThere === 1);
      } else out.setFloat64(to + there, view.getFloat32(from + at, little === 1), littleThere === 1);
      return;
    }
    const value = view.getFloat64(from + at, little === 1);
    if (Number.isNaN(value)) {
      const bits = view.getBigUint64(from + at, little === 1);
      const payload = Number((bits >> 29n) & 0x7f_ffffn);
      const exact = (bits & 0x1fff_ffffn) === 0n && payload !== 0;
      const narrow = (Number(bits >> 63n) * 2 ** 31 + 0x7f80_0000 + (exact ? payload : payload | 0x40_0000)) >>> 0;
      out.setUint32(to + there, narrow, littleThere === 1);
      if (!exact) this.#lose(pc, source, from);
      return;
    }
    if (Math.fround(value) !== value) this.#lose(pc, source, from);
    out.setFloat32(to + there, value, littleThere === 1);
  }

  #lose(pc: number, source: Uint8Array, from: number): void {
    const site = this.#sites[pc] as Site;
    if (this.#losses === undefined) {
      this.#losses = [];
      this.#lost = [];
    }
    const known = this.#losses[this.#lost.indexOf(site)];
    if (known !== undefined) {
      known.times++;
      return;
    }
    const { node, reason } = site;
    let depth = 0;
    const member = pathOf(node).replace(/\[\]/g, () => {
      const index = (this.#indexes[depth] as number) + (this.#first[depth] as number);
      depth++;
      return `[${index}]`;
    });
    this.#losses.push({ member, reason, value: textOf(node, source, from), times: 1 });
    this.#lost.push(site);
  }
}

function isZeroAt(bytes: Uint8Array, from: number, count: number, firstMask: number, lastMask: number): boolean {
  if (((bytes[from] as number) & firstMask) !== 0) return false;
  const last = from + count - 1;
  for (let i = from + 1; i < last; i++) if (bytes[i] !== 0) return false;
  return count === 1 || ((bytes[last] as number) & lastMask) === 0;
}

/** A member's value as short text. */
function textOf(node: Node, bytes: Uint8Array, from: number): string {
  if (node.kind === 'number') {
    const [first = 0, step = 0, shift = 0, count = 0, bits = 0] = placeOf(node);
    const number = loadWide(bytes, from + first, step, shift, count, bits, node.signed);
    const same = (other: bigint) => BigInt.asUintN(bits, other) === BigInt.asUintN(bits, number);
    return node.enum?.values.find(({ value }) => same(value))?.name || String(number);
  }
  const size = node.bits / 8;
  if (size > SHOWN_BYTES) return `${size} bytes`;
  const value = valueCodec(node.btf, node.id).decode(viewOf(bytes), from + node.bit / 8);
  return cut(node.kind === 'float' ? String(value) : JSON.stringify(value));
}

const cut = (text: string): string => (text.length > SHOWN ? `${text.slice(0, SHOWN)}…` : text);
