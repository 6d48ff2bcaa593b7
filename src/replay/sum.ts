/** Adds values as numbers. */
import { Btf, MAX_TYPE_DEPTH } from '../btf/btf.js';
import { declaredOrder } from '../btf/meaning.js';
import { specialKind } from '../btf/special.js';
import { viewOf } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import { pause } from '../io/pause.js';
import { type BpfMap, valueParts } from '../kernel/map.js';
import { KeyHash } from '../keyhash.js';
import { FULL, type IntoWork, type ItemSource, type Report, type Span } from '../maptype.js';
import { addNumber, type Step, stepOf, stepsOf } from './items.js';
import { ELSEWHERE, KeyTable, MOST_KEYS } from './keytable.js';
import { refused } from './merge.js';
import type { PlannedMap } from './plan.js';

/** The types of a map's values. */
export interface ValueType {
  readonly btf: Btf;
  readonly id: number;
}

/** Numbers in one value, at most. */
const MOST_NUMBERS = 65_536;

/**
 * How the values of `map` are added: their integer members where they have a type, else the whole value if it has 1, 2,
 * 4 or 8 bytes, else its words of 8 or 4 bytes. Sums wrap. In per-CPU maps, CPU by CPU.
 * @throws BpfimgError `unsupported` for values without numbers
 */
export function summing(map: BpfMap, type: ValueType | undefined): IntoWork['add'] {
  const numbers = type === undefined ? words(map) : integers(type, map.subject);
  const { stride, cpus } = valueParts(map);
  return (values, at, more, from) => {
    const [to, added] = [viewOf(values), viewOf(more)];
    let changed = false;
    for (let cpu = 0; cpu < cpus; cpu++) {
      for (const { offset, size, count = 1, stride: step = size } of numbers) {
        for (let i = 0; i < count; i++) {
          const place = cpu * stride + offset + i * step;
          if (addNumber(to, at + place, added, from + place, size)) changed = true;
        }
      }
    }
    return changed;
  };
}

/** The numbers of values without a type. */
function words({ valueSize, subject }: BpfMap): Span[] {
  if (valueSize === 1 || valueSize === 2) return [{ offset: 0, size: valueSize }];
  const size = valueSize % 8 === 0 ? 8 : 4;
  if (valueSize % size === 0) return [{ offset: 0, size, count: valueSize / size, stride: size }];
  const why = `its values have ${valueSize} bytes and no types, so which of them are numbers is unknown`;
  throw new BpfimgError('unsupported', why, { subject });
}

/** The integers in values of a type: no characters, truth values, enums, bit-fields, pointers, nor in unions. */
function integers({ btf, id }: ValueType, subject: string): Span[] {
  const found: Span[] = [];
  const tooMany = () =>
    new BpfimgError('unsupported', `its values have more than ${MOST_NUMBERS} numbers to add`, { subject });
  const walk = (id: number, offset: number, depth: number): void => {
    if (depth > MAX_TYPE_DEPTH || found.length > MOST_NUMBERS) throw tooMany();
    // A number in network order is an address or a port, and no counter.
    if (declaredOrder(btf, id) === 'big' || specialKind(btf, id) !== undefined) return;
    const type = btf.type(btf.resolve(id));
    if (type.kind === 'INT') {
      const plain = !type.char && !type.bool;
      const size = btf.size(id);
      if (plain && (size === 1 || size === 2 || size === 4 || size === 8)) found.push({ offset, size });
    } else if (type.kind === 'STRUCT') {
      for (const member of type.members) {
        if (member.bits === 0) walk(member.type, offset + member.bitOffset / 8, depth + 1);
      }
    } else if (type.kind === 'DATASEC') {
      for (const one of type.vars) walk(one.type, offset + one.offset, depth + 1);
    } else if (type.kind === 'VAR') {
      walk(type.type, offset, depth + 1);
    } else if (type.kind === 'ARRAY') {
      const size = btf.size(type.type);
      const before = found.length;
      walk(type.type, offset, depth + 1);
      const each = found.splice(before);
      const [only] = each;
      if (each.length === 1 && only !== undefined && only.count === undefined) {
        found.push({ ...only, count: type.count, stride: size });
      } else if (each.length > 0) {
        if (each.length * type.count > MOST_NUMBERS) throw tooMany();
        for (let i = 0; i < type.count; i++) {
          for (const span of each) found.push({ ...span, offset: span.offset + i * size });
        }
      }
    }
  };
  walk(id, 0, 0);
  if (found.length > 0) return found;
  throw new BpfimgError('unsupported', 'its values have no integers to add', { subject });
}

/**
 * Fills a fresh map with items whose keys may have become the same: their values are added.
 * @param old the items before they were converted; of several with the same key, the last counts
 */
export async function sumCollisions(map: BpfMap, plan: PlannedMap, old: ItemSource): Promise<Report> {
  const { btf, facts, items } = plan;
  const blob = facts.types === undefined ? undefined : await btf?.read();
  const type = blob && { btf: Btf.parse(blob, { name: btf?.name ?? '' }), id: facts.types?.value ?? 0 };
  const add = summing(map, type === undefined || type.id === 0 ? undefined : type);
  const hash = new KeyHash();
  let parts = 1;
  while (old.count / parts > MOST_KEYS) parts *= 2;
  const number = Buffer.alloc(8);
  const numbered = viewOf(number);
  const step = Math.min(stepOf(old), stepOf(items));
  for (let part = 0; part < parts; part++) {
    const most = Math.ceil(old.count / parts);
    const last = new KeyTable(hash, { keySize: old.keySize, type: plan.type, most, parts, part });
    const each = async ({ from, count, keys }: Step, see: (slot: number, i: number) => void) => {
      const view = viewOf(keys);
      for (let i = 0; i < count; i++) {
        const slot = last.find(view, i);
        number.writeDoubleLE(from + i);
        if (slot !== ELSEWHERE) see(slot, i);
        if (i % 1024 === 0) await pause();
      }
    };
    for await (const one of stepsOf(old)) await each(one, (slot) => last.addThere(slot, numbered, 0, 8));
    const fresh = stepsOf(items, step);
    for await (const one of stepsOf(old, step)) {
      const { value: now } = await fresh.next();
      await each(one, (slot, i) => {
        if (now !== undefined && last.hadValue(slot, numbered, 0, 8)) addItem(map, now, i, add);
      });
    }
  }
  return FULL;
}

/** Adds an item's value to that of its key, or sets it. */
function addItem(map: BpfMap, { keys, values }: Step, i: number, add: IntoWork['add']): void {
  const { keySize, valueStride, valueRoom } = map;
  const key = keys.subarray(i * keySize, (i + 1) * keySize);
  const value = values.subarray(i * valueStride, (i + 1) * valueStride);
  try {
    if (map.lookup(key, 0, valueRoom) === undefined) map.update(key, value);
    else if (add(valueRoom, 0, value, 0)) map.update(key, valueRoom);
  } catch (error) {
    throw refused(error, key);
  }
}
