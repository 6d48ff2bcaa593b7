/**
 * Maps that are still written to while their items are copied: the old maps are read again, and what has changed in
 * them since the last reading is copied as well. What others have put into a fresh map in the meantime is kept.
 */
import { viewOf } from '../bytes.js';
import { pause } from '../io/pause.js';
import { ELEM_FLAG } from '../kernel/abi.js';
import type { BpfMap } from '../kernel/map.js';
import { KeyHash } from '../keyhash.js';
import { blank, type ItemSource, type Span } from '../maptype.js';
import { readLive, stepsOf } from './items.js';
import { ELSEWHERE, KeyTable, MOST_KEYS } from './keytable.js';
import { DROPPED, drop, dropReason, padding, refused } from './merge.js';
import type { PlannedMap } from './plan.js';
import type { FreshMap } from './replay.js';
import { isPlain } from './reshape.js';

/** What one sweep did with the items of one map. */
export interface SweepCounts {
  inserted: number;
  updated: number;
  deleted: number;
  /** Changed in the old map, but others have changed them in the fresh one too, which stays as it is. */
  kept: number;
  /** Items that the fresh map does not take, by reason. */
  readonly dropped: Map<string, number>;
}

/** What the sweeps did with one map. */
export interface SweptMap {
  readonly sweeps: readonly SweepCounts[];
  /** Why changes of the old map have not followed, or perhaps not all of them: a clause. */
  readonly note: string | undefined;
}

/** The old maps, read once more. */
export interface Reading {
  readonly plans: readonly PlannedMap[];
  close(): void;
}

/** How to sweep. */
export interface SweepOptions {
  /** Sweeps, at most; they end as soon as one finds nothing to do. */
  readonly most: number;
  /** Reads the old maps again; undefined if all of them are gone. */
  read(): Promise<Reading | undefined>;
}

/**
 * Sweeps until nothing is left to do.
 * @param fresh maps that have been filled from their plans
 * @returns what was done with each of them, in their order
 * @throws BpfimgError, KernelError for items that a fresh map refuses, unless it is full
 */
export async function sweep(fresh: readonly FreshMap[], { most, read }: SweepOptions): Promise<SweptMap[]> {
  const all = fresh.map((one) => new Sweeping(one));
  let [last, reading]: (Reading | undefined)[] = [];
  try {
    for (let left = most; left > 0; left--) {
      reading = await read();
      let changed = false;
      for (const one of all) {
        const now = reading?.plans.find(({ mapId }) => mapId === one.fresh.plan.mapId);
        if (await one.sweep(now)) changed = true;
      }
      last?.close();
      [last, reading] = [reading, undefined];
      if (!changed) break;
      if (left === 1) for (const one of all) one.end();
    }
  } finally {
    reading?.close();
    last?.close();
  }
  return all;
}

/** The sweeps of one map. */
class Sweeping implements SweptMap {
  readonly sweeps: SweepCounts[] = [];
  note: string | undefined;
  #before: ItemSource;

  constructor(readonly fresh: FreshMap) {
    this.#before = fresh.plan.items;
  }

  /**
   * @param now the old map, as it has just been read; undefined if it is gone
   * @returns whether anything followed
   */
  async sweep(now: PlannedMap | undefined): Promise<boolean> {
    const { map, hidden } = this.fresh;
    if (now === undefined) {
      this.note = 'the old map is gone';
      return false;
    }
    const [before, { items }] = [this.#before, now];
    this.#before = items;
    if (map.long) {
      this.note = 'its values are too long to be swept';
      return false;
    }
    const why = unswept(now);
    if (why !== undefined) {
      if (await differ(before, items)) this.note = `the old map has changed since it was read: ${why}`;
      return false;
    }
    const counts = await new Follower(map, now, hidden).run(before, items);
    this.sweeps.push(counts);
    return counts.inserted + counts.updated + counts.deleted > 0;
  }

  /** There will be no further sweep, although the last one found something. */
  end(): void {
    const { inserted = 0, updated = 0, deleted = 0 } = this.sweeps.at(-1) ?? {};
    if (inserted + updated + deleted > 0) this.note = 'the old map was still changing';
  }
}

/** Why the changes of a map cannot follow. */
function unswept({ frozen, type, reshaped }: PlannedMap): string | undefined {
  if (frozen) return 'the map is frozen';
  if (!isPlain(type)) return `maps of type ${type.name} are not swept`;
  return reshaped?.collisions === undefined ? undefined : 'several of its keys may become one';
}

/** Whether two readings of a map are not the same, item by item. */
async function differ(a: ItemSource, b: ItemSource): Promise<boolean> {
  if (a.count !== b.count || a.keySize !== b.keySize || a.valueSize !== b.valueSize) return true;
  const others = stepsOf(b);
  for await (const { count, keys, values } of stepsOf(a)) {
    const { value: other } = await others.next();
    if (other === undefined) return true;
    const [keyBytes, valueBytes] = [count * a.keySize, count * a.valueSize];
    if (keys.compare(other.keys, 0, keyBytes, 0, keyBytes) !== 0) return true;
    if (values.compare(other.values, 0, valueBytes, 0, valueBytes) !== 0) return true;
  }
  return false;
}

/** One sweep of one map. */
class Follower {
  readonly #counts: SweepCounts = { inserted: 0, updated: 0, deleted: 0, kept: 0, dropped: new Map() };
  readonly #ignored: readonly Span[];

  /** @param hidden bytes of each value that only the kernel writes */
  constructor(
    readonly map: BpfMap,
    readonly plan: PlannedMap,
    hidden: readonly Span[],
  ) {
    this.#ignored = [...hidden, ...padding(map)];
  }

  async run(before: ItemSource, now: ItemSource): Promise<SweepCounts> {
    const { map, plan } = this;
    const hash = new KeyHash();
    const all = before.count + now.count;
    let parts = 1;
    while (all / parts > MOST_KEYS) parts *= 2;
    for (let part = 0; part < parts; part++) {
      const table = (keys: number) =>
        new KeyTable(hash, { keySize: map.keySize, type: plan.type, most: Math.ceil(keys / parts), parts, part });
      const there = plan.type.key === 'prefix' ? await this.#keysOf(table(all + map.maxEntries)) : undefined;
      await this.#part(table(all), before, now, there);
    }
    return this.#counts;
  }

  /** The keys that the fresh map has: looking up a prefix would find shorter ones as well. */
  async #keysOf(table: KeyTable): Promise<KeyTable> {
    const { map, plan } = this;
    await readLive(map, plan.plugin, plan.type, {
      count: 0,
      async put(keys, _values, count) {
        const view = viewOf(keys);
        for (let i = 0; i < count; i++) {
          const slot = table.find(view, i);
          if (slot !== ELSEWHERE) table.setDone(slot);
        }
      },
    });
    return table;
  }

  /**
   * Copies the changes of some keys.
   * @param old becomes a table of what the fresh map has got from us
   * @param there the keys that it has, if looking them up does not tell
   */
  async #part(old: KeyTable, before: ItemSource, now: ItemSource, there: KeyTable | undefined): Promise<void> {
    const { map } = this;
    const size = map.valueStride;
    // If an item was read twice, the last one counts.
    await this.#each(old, before, (slot, { values }, i) => old.addThere(slot, values, i * size, size));
    await this.#each(old, now, (slot) => {
      if (old.isThere(slot)) old.setKept(slot);
    });
    // Deleting comes first: it makes room.
    await this.#each(old, before, (slot, { key }, i) => {
      if (!old.isThere(slot) || old.isKept(slot) || old.isDone(slot)) return;
      old.setDone(slot);
      this.#delete(old, slot, key(i), there);
    });
    await this.#each(old, now, (slot, item, i) => {
      if (!old.isThere(slot) || !old.hadValue(slot, item.values, i * size, size)) this.#put(old, slot, item, i, there);
    });
  }

  /** Calls `see` with each item whose key belongs to this table. */
  async #each(table: KeyTable, items: ItemSource, see: (slot: number, item: Seen, i: number) => void): Promise<void> {
    const { keySize, valueStride } = this.map;
    for await (const { count, keys, values } of stepsOf(items)) {
      const view = viewOf(keys);
      for (let i = 0; i < count; i++) blank(values, i * valueStride, this.#ignored);
      const item: Seen = {
        values: viewOf(values),
        key: (i) => keys.subarray(i * keySize, (i + 1) * keySize),
        value: (i) => values.subarray(i * valueStride, (i + 1) * valueStride),
      };
      for (let i = 0; i < count; i++) {
        const slot = table.find(view, i);
        if (slot !== ELSEWHERE) see(slot, item, i);
        if (i % 1024 === 0) await pause();
      }
    }
  }

  /** The value that the fresh map has now; undefined if it has none. */
  #current(key: Buffer, there: KeyTable | undefined): Buffer | undefined {
    const { map } = this;
    if (there !== undefined && !there.isDone(there.find(viewOf(key), 0))) return undefined;
    const { valueRoom } = map;
    if (map.lookup(key, 0, valueRoom) === undefined) return undefined;
    blank(valueRoom, 0, this.#ignored);
    return valueRoom;
  }

  /** Whether `value` is what the fresh map has got from us. */
  #isOurs(old: KeyTable, slot: number, value: Buffer): boolean {
    return old.isThere(slot) && old.hadValue(slot, viewOf(value), 0, this.map.valueStride);
  }

  #delete(old: KeyTable, slot: number, key: Buffer, there: KeyTable | undefined): void {
    if (this.plan.type.key === 'index') return;
    const current = this.#current(key, there);
    if (current === undefined) return;
    if (!this.#isOurs(old, slot, current)) this.#counts.kept++;
    else if (this.map.delete(key)) this.#counts.deleted++;
  }

  #put(old: KeyTable, slot: number, item: Seen, i: number, there: KeyTable | undefined): void {
    const { map } = this;
    const counts = this.#counts;
    const [key, value] = [item.key(i), item.value(i)];
    const known = old.isThere(slot);
    const current = this.#current(key, there);
    if (current?.equals(value)) return;
    if (current === undefined && this.plan.type.key === 'index') {
      drop(counts, DROPPED.range);
      return;
    }
    if (current === undefined ? known : !this.#isOurs(old, slot, current)) {
      counts.kept++;
      return;
    }
    try {
      map.update(key, value, known ? ELEM_FLAG.EXIST : ELEM_FLAG.NOEXIST);
    } catch (error) {
      const why = dropReason(error);
      if (why === undefined) throw refused(error, key);
      // Another process was faster than we were.
      if (why === DROPPED.absent) counts.kept++;
      else drop(counts, why);
      return;
    }
    if (known) counts.updated++;
    else counts.inserted++;
    // If the same key comes again, it finds what we have written.
    old.addThere(slot, item.values, i * map.valueStride, map.valueStride);
  }
}

/** The items that are being looked at. */
interface Seen {
  readonly values: DataView;
  key(i: number): Buffer;
  value(i: number): Buffer;
}
