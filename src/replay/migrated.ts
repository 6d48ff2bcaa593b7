/** Converts items to those of a map with other types, while a replay reads them. */
import { hex } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import type { ItemSource } from '../maptype.js';
import type { Loss, Migration } from '../migrate/migrate.js';
import { stepsOf } from './items.js';

/** How a key or a value is converted. */
export type Conversion = Pick<Migration, 'from' | 'to' | 'same' | 'mayLose' | 'convert'>;

/** Items of one map before they are converted, and their layout. */
export interface MigratedItems {
  readonly items: ItemSource;
  readonly key: Conversion;
  /** Of the value, or of each CPU's. */
  readonly value: Conversion;
  /** Values in an item, there and here: the number of CPUs, or 1. If only one of them is more than 1, the rest is zero. */
  readonly cpus: { readonly from: number; readonly to: number };
  /** Bytes from one value to the next, there and here. */
  readonly stride: { readonly from: number; readonly to: number };
  /** The map in messages. */
  readonly subject: string;
  /** What is lost is counted; else it is an error. */
  readonly lossy: boolean;
}

/** Bytes of items that are converted at a time. */
const STEP_BYTES = 1024 * 1024;

/** Converts bytes that have no types: as they are, with zeros behind them if there is more room. */
export function copied(from: number, to: number): Conversion {
  return {
    from,
    to,
    same: from === to,
    mayLose: false,
    convert(source, at, target, there) {
      target.set(source.subarray(at, at + from), there);
      target.fill(0, there + from, there + to);
      return undefined;
    },
  };
}

/** What was lost of a map's items. */
export class Losses {
  readonly #times = new Map<string, number>();
  /** Items before this one have been counted: a replay may read some twice. */
  #counted = 0;

  constructor(
    readonly subject: string,
    readonly lossy: boolean,
  ) {}

  /** @throws BpfimgError unless losses are allowed */
  add(item: number, where: 'key' | 'value', key: Uint8Array, losses: readonly Loss[]): void {
    for (const { member, reason, value, times } of losses) {
      const name = member === '' ? `its ${where}` : member;
      if (!this.lossy) {
        const text = `item ${hex(key)}: ${name} ${reason}: ${value}; --lossy migrates it anyway`;
        throw new BpfimgError('conflict', text, { subject: this.subject });
      }
      const line = `${name.replaceAll(/\[\d+\]/g, '[]')} ${reason}`;
      if (item >= this.#counted) this.#times.set(line, (this.#times.get(line) ?? 0) + times);
    }
  }

  /** All items before `end` have been read. */
  upTo(end: number): void {
    this.#counted = Math.max(this.#counted, end);
  }

  /** A clause; undefined if nothing was lost. */
  text(): string | undefined {
    if (this.#times.size === 0) return undefined;
    return `lost: ${[...this.#times].map(([what, times]) => `${what} (${times === 1 ? 'once' : `${times} times`})`).join(', ')}`;
  }

  /** What was lost, and how often. */
  get times(): ReadonlyMap<string, number> {
    return this.#times;
  }
}

/** The converted items, and what is lost of those that have been read. */
export function migratedItems(given: MigratedItems): { readonly items: ItemSource; readonly losses: Losses } {
  const { items, key, value, cpus, stride } = given;
  const losses = new Losses(given.subject, given.lossy);
  const { count } = items;
  const [keySize, valueSize] = [key.to, cpus.to * stride.to];
  const plain = key.same && value.same && cpus.from === cpus.to && stride.from === stride.to;
  if (plain) return { items, losses };
  const own = items.keySize + items.valueSize;
  const step = Math.max(1, Math.floor(STEP_BYTES / Math.max(1, own)));
  const used = Math.min(cpus.from, cpus.to);
  const convert = (first: number, some: number, keys: Uint8Array, values: Uint8Array, to: Target): void => {
    for (let i = 0; i < some; i++) {
      const at = i * items.keySize;
      const lost = key.convert(keys, at, to.keys, to.at * keySize + i * keySize);
      if (lost !== undefined) losses.add(first + i, 'key', keys.subarray(at, at + items.keySize), lost);
      for (let cpu = 0; cpu < used; cpu++) {
        const from = i * items.valueSize + cpu * stride.from;
        const there = (to.at + i) * valueSize + cpu * stride.to;
        const less = value.convert(values, from, to.values, there);
        if (less !== undefined) losses.add(first + i, 'value', keys.subarray(at, at + items.keySize), less);
      }
    }
  };
  return {
    losses,
    items: {
      count,
      keySize,
      valueSize,
      async read(from, some, keys, values) {
        const part = Math.min(some, step);
        const [oldKeys, oldValues] = [Buffer.alloc(part * items.keySize), Buffer.alloc(part * items.valueSize)];
        // Padding, and CPUs without a value.
        if (valueSize !== used * value.to) values.fill(0, 0, some * valueSize);
        for (let done = 0; done < some; done += part) {
          const now = Math.min(part, some - done);
          await items.read(from + done, now, oldKeys, oldValues);
          convert(from + done, now, oldKeys, oldValues, { keys, values, at: done });
        }
        losses.upTo(from + some);
      },
    },
  };
}

interface Target {
  readonly keys: Uint8Array;
  readonly values: Uint8Array;
  /** Number of the first item there. */
  readonly at: number;
}

/** Reads all items, so that what is lost of them is counted. */
export async function countLosses(items: ItemSource): Promise<void> {
  for await (const _ of stepsOf(items));
}
