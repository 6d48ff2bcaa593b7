/**
 * The operations that a migration compiles to, and what runs them.
 *
 * A program is one Int32Array: each operation is a record of {@link WIDTH} numbers, and the body of a loop follows
 * its head. Integers of up to 64 bits are handled as two halves of 32, so that a value costs no allocation.
 */

import { valueCodec } from '../btf/values.js';
import { copyBytes } from '../bytes.js';
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

/** The record of a number's conversion: the place of both, whether it has a sign, and what fits. */
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

/** First byte, byte order, bits below it (in the integer that the bytes form), bytes, bits. */
function placeOf({ bit, bits, little }: Node): number[] {
  const start = bit % 8;
  const bytes = Math.ceil((start + bits) / 8);
  return [Math.floor(bit / 8), little ? 1 : 0, little ? start : bytes * 8 - start - bits, bytes, bits];
}

/** The halves of a number of at most 64 bits. */
export const halves = (value: bigint): Halves => ({
  low: Number(BigInt.asIntN(32, value)),
  high: Number(BigInt.asIntN(32, value >> 32n)),
});

/** Bytes of the longest value that is shown in a loss. */
const SHOWN_BYTES = 1024;
/** Characters of it. */
const SHOWN = 100;

// The number that was loaded last: a result of two halves without an object for it.
let LOW = 0;
let HIGH = 0;

/** Loads the number whose place is in `code` at `pc`. */
function load(view: DataView, from: number, code: Int32Array, pc: number): void {
  const at = from + (code[pc] as number);
  const little = code[pc + 1] === 1;
  const shift = code[pc + 2] as number;
  const bytes = code[pc + 3] as number;
  const bits = code[pc + 4] as number;
  const signed = code[pc + 5] === 1;
  if (bits === bytes * 8) {
    switch (bits) {
      case 8:
        LOW = signed ? view.getInt8(at) : view.getUint8(at);
        HIGH = LOW >> 31;
        return;
      case 16:
        LOW = signed ? view.getInt16(at, little) : view.getUint16(at, little);
        HIGH = LOW >> 31;
        return;
      case 32:
        LOW = view.getInt32(at, little);
        HIGH = signed ? LOW >> 31 : 0;
        return;
      case 64:
        LOW = view.getInt32(little ? at : at + 4, little);
        HIGH = view.getInt32(little ? at + 4 : at, little);
        return;
    }
  }
  let low = 0;
  let high = 0;
  let place = -shift;
  for (let i = 0; i < bytes; i++) {
    const byte = view.getUint8(little ? at + i : at + bytes - 1 - i);
    if (place < 0) low = byte >> -place;
    else if (place < 32) {
      low |= byte << place;
      if (place > 24) high |= byte >> (32 - place);
    } else high |= byte << (place - 32);
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

/** Writes the loaded number, as far as its place in `code` at `pc` has bits; bits around it in its bytes stay. */
function store(view: DataView, to: number, code: Int32Array, pc: number): void {
  const at = to + (code[pc] as number);
  const little = code[pc + 1] === 1;
  const shift = code[pc + 2] as number;
  const bytes = code[pc + 3] as number;
  const bits = code[pc + 4] as number;
  if (bits === bytes * 8) {
    switch (bits) {
      case 8:
        view.setInt8(at, LOW);
        return;
      case 16:
        view.setInt16(at, LOW, little);
        return;
      case 32:
        view.setInt32(at, LOW, little);
        return;
      case 64:
        view.setInt32(little ? at : at + 4, LOW, little);
        view.setInt32(little ? at + 4 : at, HIGH, little);
        return;
    }
  }
  const low = bits < 32 ? LOW & ((1 << bits) - 1) : LOW;
  const high = bits <= 32 ? 0 : bits < 64 ? HIGH & ((1 << (bits - 32)) - 1) : HIGH;
  let place = -shift;
  for (let i = 0; i < bytes; i++) {
    let byte: number;
    if (place < 0) byte = low << -place;
    else if (place < 32) {
      byte = low >>> place;
      if (place > 24) byte |= high << (32 - place);
    } else byte = place < 64 ? high >>> (place - 32) : 0;
    const there = little ? at + i : at + bytes - 1 - i;
    // It takes the lowest eight bits.
    view.setUint8(there, view.getUint8(there) | byte);
    place += 8;
  }
}

/** Whether the loaded number fits: `room` bits, one more below zero when signed. */
function fits(signedSource: boolean, bits: number, room: number, signedTarget: boolean): boolean {
  if (signedSource && HIGH < 0) {
    if (!signedTarget) return false;
    if (bits >= 64) return true;
    if (bits > 32) return HIGH === (HIGH << (64 - bits)) >> (64 - bits);
    return HIGH === -1 && LOW < 0 && LOW === (LOW << (32 - bits)) >> (32 - bits);
  }
  if (room >= 64) return true;
  if (room > 32) return HIGH >>> (room - 32) === 0;
  return HIGH === 0 && (room === 32 || LOW >>> room === 0);
}

const TWO_32 = 0x1_0000_0000;

/** The loaded number as a key of an {@link EnumTable}. */
function loadedKey(signed: boolean): number | bigint {
  const high = signed ? HIGH : HIGH >>> 0;
  if (high >= -0x20_0000 && high < 0x20_0000 && (high > -0x20_0000 || LOW !== 0)) return high * TWO_32 + (LOW >>> 0);
  return (BigInt(high) << 32n) | BigInt(LOW >>> 0);
}

/** A number of any width, whose place is in `code` at `pc`. */
function loadWide(view: DataView, from: number, code: ArrayLike<number>, pc: number): bigint {
  const at = from + (code[pc] as number);
  const little = code[pc + 1] === 1;
  const bytes = code[pc + 3] as number;
  let whole = 0n;
  for (let i = bytes - 1; i >= 0; i--) {
    whole = (whole << 8n) | BigInt(view.getUint8(little ? at + i : at + bytes - 1 - i));
  }
  whole >>= BigInt(code[pc + 2] as number);
  const bits = code[pc + 4] as number;
  return code[pc + 5] === 1 ? BigInt.asIntN(bits, whole) : BigInt.asUintN(bits, whole);
}

function storeWide(view: DataView, to: number, code: Int32Array, pc: number, value: bigint): void {
  const at = to + (code[pc] as number);
  const little = code[pc + 1] === 1;
  const bytes = code[pc + 3] as number;
  let rest = BigInt.asUintN(code[pc + 4] as number, value) << BigInt(code[pc + 2] as number);
  for (let i = 0; i < bytes; i++) {
    const there = little ? at + i : at + bytes - 1 - i;
    view.setUint8(there, view.getUint8(there) | Number(rest & 0xffn));
    rest >>= 8n;
  }
}

const NOTHING = new DataView(new ArrayBuffer(0));

/** A compiled program. */
export class Program {
  readonly #code: Int32Array;
  readonly #sites: readonly (Site | undefined)[];
  readonly #names: readonly (EnumTable | undefined)[];
  readonly #end: number;
  #source: DataView = NOTHING;
  #target: DataView = NOTHING;
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
  run(source: DataView, from: number, target: DataView, to: number): readonly Loss[] | undefined {
    this.#losses = undefined;
    this.#source = source;
    this.#target = target;
    this.#run(0, this.#end, from, to);
    return this.#losses;
  }

  /** Runs the operations `start` to `end - 1`. */
  #run(start: number, end: number, from: number, to: number): void {
    const code = this.#code;
    const source = this.#source;
    const target = this.#target;
    for (let pc = start; pc < end; pc++) {
      const at = pc * WIDTH;
      const a = code[at + 1] as number;
      const b = code[at + 2] as number;
      const c = code[at + 3] as number;
      switch (code[at]) {
        case OP.COPY:
          copyBytes(source, from + a, target, to + b, c);
          break;
        case OP.MASK:
          target.setUint8(to + b, target.getUint8(to + b) | (source.getUint8(from + a) & c));
          break;
        case OP.REVERSE:
          for (let i = 0; i < c; i++) target.setUint8(to + b + i, source.getUint8(from + a + c - 1 - i));
          break;
        case OP.NUMBER:
          load(source, from, code, at + 1);
          this.#number(pc, from, to);
          break;
        case OP.ENUM:
          load(source, from, code, at + 1);
          this.#enum(pc, from, to);
          break;
        case OP.WIDE:
          this.#wide(pc, from, to);
          break;
        case OP.FLOAT:
          this.#float(pc, from, to);
          break;
        case OP.ZERO:
          if (!isZeroAt(source, from + a, b, c, code[at + 4] as number)) this.#lose(pc, from);
          break;
        case OP.LOOP: {
          const strideFrom = code[at + 4] as number;
          const strideTo = code[at + 5] as number;
          const depth = code[at + 7] as number;
          const bodyEnd = code[at + 8] as number;
          this.#first[depth] = code[at + 6] as number;
          for (let i = 0; i < c; i++) {
            this.#indexes[depth] = i;
            this.#run(pc + 1, bodyEnd, from + a + i * strideFrom, to + b + i * strideTo);
          }
          pc = bodyEnd - 1;
          break;
        }
      }
    }
  }

  /** Stores the loaded number, whether it fits or not. */
  #number(pc: number, from: number, to: number): void {
    const code = this.#code;
    const at = pc * WIDTH;
    const flags = code[at + 13] as number;
    if (!fits(code[at + 6] === 1, code[at + 11] as number, code[at + 12] as number, (flags & TO_SIGNED) !== 0)) {
      this.#lose(pc, from);
      // As in C.
      if ((flags & TO_BOOL) !== 0) LOW = 1;
    }
    if ((flags & TO_BOOL) !== 0) HIGH = 0;
    store(this.#target, to, code, at + 7);
  }

  #enum(pc: number, from: number, to: number): void {
    const code = this.#code;
    const at = pc * WIDTH;
    const table = this.#names[pc] as EnumTable;
    const key = loadedKey(code[at + 6] === 1);
    const named = table.numbers.get(key);
    if (named === undefined && !table.renumbered && !table.taken.has(key)) {
      this.#number(pc, from, to);
      return;
    }
    if (!named) this.#lose(pc, from);
    else {
      LOW = named.low;
      HIGH = named.high;
    }
    store(this.#target, to, code, at + 7);
  }

  #wide(pc: number, from: number, to: number): void {
    const code = this.#code;
    const at = pc * WIDTH;
    let value = loadWide(this.#source, from, code, at + 1);
    const [end, flags] = [1n << BigInt(code[at + 12] as number), code[at + 13] as number];
    if (value >= end || value < ((flags & TO_SIGNED) !== 0 ? -end : 0n)) {
      this.#lose(pc, from);
      if ((flags & TO_BOOL) !== 0) value = 1n;
    }
    storeWide(this.#target, to, code, at + 7, value);
  }

  #float(pc: number, from: number, to: number): void {
    const code = this.#code;
    const source = this.#source;
    const target = this.#target;
    const word = (i: number) => code[pc * WIDTH + i] as number;
    const [at, little, there, littleThere] = [from + word(1), word(3) === 1, to + word(4), word(6) === 1];
    if (word(2) === 4) {
      const bits = source.getUint32(at, little);
      if ((bits & 0x7fff_ffff) > 0x7f80_0000) {
        // Not a number, but its bits may mean something; processors would change them.
        const wide = (BigInt(bits >>> 31) << 63n) | 0x7ff0_0000_0000_0000n | (BigInt(bits & 0x7f_ffff) << 29n);
        target.setBigUint64(there, wide, littleThere);
      } else target.setFloat64(there, source.getFloat32(at, little), littleThere);
      return;
    }
    const value = source.getFloat64(at, little);
    if (Number.isNaN(value)) {
      const bits = source.getBigUint64(at, little);
      const payload = Number((bits >> 29n) & 0x7f_ffffn);
      const exact = (bits & 0x1fff_ffffn) === 0n && payload !== 0;
      const narrow = Number(bits >> 63n) * 2 ** 31 + 0x7f80_0000 + (exact ? payload : payload | 0x40_0000);
      target.setUint32(there, narrow, littleThere);
      if (!exact) this.#lose(pc, from);
      return;
    }
    if (Math.fround(value) !== value) this.#lose(pc, from);
    target.setFloat32(there, value, littleThere);
  }

  #lose(pc: number, from: number): void {
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
    this.#losses.push({ member, reason, value: textOf(node, this.#source, from), times: 1 });
    this.#lost.push(site);
  }
}

function isZeroAt(view: DataView, from: number, count: number, firstMask: number, lastMask: number): boolean {
  if ((view.getUint8(from) & firstMask) !== 0) return false;
  const last = from + count - 1;
  for (let i = from + 1; i < last; i++) if (view.getUint8(i) !== 0) return false;
  return count === 1 || (view.getUint8(last) & lastMask) === 0;
}

/** A member's value as short text. */
function textOf(node: Node, view: DataView, from: number): string {
  if (node.kind === 'number') {
    const number = loadWide(view, from, [...placeOf(node), node.signed ? 1 : 0], 0);
    const same = (other: bigint) => BigInt.asUintN(node.bits, other) === BigInt.asUintN(node.bits, number);
    return node.enum?.values.find(({ value }) => same(value))?.name || String(number);
  }
  const size = node.bits / 8;
  if (size > SHOWN_BYTES) return `${size} bytes`;
  const value = valueCodec(node.btf, node.id).decode(view, from + node.bit / 8);
  return cut(node.kind === 'float' ? String(value) : JSON.stringify(value));
}

const cut = (text: string): string => (text.length > SHOWN ? `${text.slice(0, SHOWN)}…` : text);
