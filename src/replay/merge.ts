/**
 * Ways to put items into a map that exists, and to count what becomes of each. Plugins choose among them.
 *
 * The last of several items with one key counts. So the source is read backwards, part by part: an item whose key was
 * there already is left out, and all keys that are written are different ones.
 */
import { availableParallelism } from 'node:os';
import { cpuStride, equalRange, hex, isZero, viewOf } from '../bytes.js';
import { pause } from '../io/pause.js';
import { ELEM_FLAG } from '../kernel/abi.js';
import { KernelError } from '../kernel/error.js';
import type { Batch, BpfMap } from '../kernel/map.js';
import { ERRNO } from '../kernel/sys.js';
import { KeyHash } from '../keyhash.js';
import { blank, type IntoCounts, type IntoWork, type ItemSource } from '../maptype.js';
import { countItems, evictingCpus, itemsInCall } from './fill.js';
import { ELSEWHERE, KeyTable, MOST_KEYS } from './keytable.js';
import { seenKeys } from './seen.js';

/** Why an item is not in the map. */
export const DROPPED = {
  full: 'the map is full',
  range: 'index out of range',
  absent: 'not in the map',
  evicted: 'evicted by the kernel to make room',
} as const;

/** Counts `count` items that are dropped. */
export function drop({ dropped }: Pick<IntoCounts, 'dropped'>, why: string, count = 1): void {
  if (count > 0) dropped.set(why, (dropped.get(why) ?? 0) + count);
}

/** Calls in progress at a time: more would touch more memory, and gain nothing. */
const WRITERS = availableParallelism() === 1 ? 1 : Math.min(8, 1 + availableParallelism());

/** What is to be done with an item of a batch, or was. */
const SKIP = 0;
const INSERT = 1;
const UPDATE = 2;
const SAME = 3;

/** Items on their way from the source into a map. */
class Part {
  readonly batch: Batch;
  /** What the map has now, where that is compared. */
  old?: Batch;
  readonly todo: Uint8Array;
  /** Items in it, at its beginning. */
  count = 0;
  /** Place in the source of the first one. */
  from = 0;

  constructor(
    readonly map: BpfMap,
    room: number,
  ) {
    this.batch = map.batch(room);
    this.todo = new Uint8Array(room);
  }

  key(i: number): Buffer {
    return this.batch.keys.subarray(i * this.map.keySize, (i + 1) * this.map.keySize);
  }

  value(i: number): Buffer {
    return this.batch.values.subarray(i * this.map.valueStride, (i + 1) * this.map.valueStride);
  }

  /** Moves the items that are not to be skipped to the beginning. */
  compact(): void {
    const { keys, values } = this.batch;
    const { keySize, valueStride } = this.map;
    const todo = this.todo.subarray(0, this.count);
    let kept = todo.indexOf(SKIP);
    if (kept < 0) return;
    for (let from = kept + 1, to = from; to <= this.count; from = ++to) {
      while (to < this.count && todo[to] !== SKIP) to++;
      keys.copyWithin(kept * keySize, from * keySize, to * keySize);
      values.copyWithin(kept * valueStride, from * valueStride, to * valueStride);
      todo.copyWithin(kept, from, to);
      kept += to - from;
    }
    this.count = kept;
  }

  /** Counts items `from` to `to - 1` as done. */
  tally(counts: IntoCounts, from: number, to: number): void {
    for (let i = from; i < to; i++) {
      const what = this.todo[i];
      if (what === INSERT) counts.inserted++;
      else if (what === UPDATE) counts.updated++;
      else if (what === SAME) counts.unchanged++;
    }
  }
}

/** How the parts of a source are read and written. */
interface PartWork {
  /** Parts that are written at the same time. */
  readonly writers?: number;
  readonly shares?: number;
  /** Looks at each part in turn. */
  readonly read: (part: Part) => void;
  /** Writes what `read` has left in it. */
  readonly write?: (part: Part) => Promise<void>;
  readonly progress?: (count: number) => void;
}

/** Reads parts of the source, the last one first. */
async function eachPart(
  map: BpfMap,
  items: ItemSource,
  work: IntoWork,
  { writers = 1, shares = 1, read, write, progress }: PartWork,
): Promise<void> {
  const step = Math.min(itemsInCall(map), Math.max(1, Math.ceil(items.count / shares)));
  let end = items.count;
  let failed = false;
  let turn: Promise<unknown> = Promise.resolve();
  const next = async (part: Part): Promise<number> => {
    if (!failed) work.check();
    const count = failed ? 0 : Math.min(step, end);
    end -= count;
    part.count = count;
    part.from = end;
    if (count === 0) return 0;
    await items.read(end, count, part.batch.keys, part.batch.values);
    read(part);
    return count;
  };
  const writer = async () => {
    const part = new Part(map, step);
    for (;;) {
      const mine = turn.then(() => next(part));
      turn = mine.catch(() => {});
      const count = await mine;
      if (count === 0) return;
      await write?.(part);
      progress?.(count);
      await pause();
    }
  };
  if (writers > 1 && items.count > step) map.sys.spreadPool?.();
  const all = Array.from({ length: Math.max(1, Math.min(writers, Math.ceil(items.count / step))) }, () =>
    writer().catch((error: unknown) => {
      failed = true;
      throw error;
    }),
  );
  for (const one of await Promise.allSettled(all)) if (one.status === 'rejected') throw one.reason;
}

/** The error of an item: its key says which. */
export function refused(error: unknown, key: Uint8Array): unknown {
  return error instanceof KernelError && key.length > 0 ? error.of(`item ${hex(key)}`) : error;
}

/** Why the kernel refuses an item that it might accept at another time; undefined for real failures. */
export function dropReason(error: unknown): string | undefined {
  if (!(error instanceof KernelError)) return undefined;
  if (error.errno === ERRNO.E2BIG || error.errno === ERRNO.ENOSPC) return DROPPED.full;
  if (error.errno === ERRNO.EEXIST || error.errno === ERRNO.ENOENT) return DROPPED.absent;
  return undefined;
}

/** Writes items `from` to the end one by one. A key that is there or missing, contrary to `flags`, is no error. */
async function putEach(part: Part, from: number, { counts }: IntoWork, flags = 0): Promise<void> {
  for (let i = from; i < part.count; i++) {
    try {
      part.map.update(part.key(i), part.value(i), flags);
    } catch (error) {
      const why = dropReason(error);
      if (why === undefined) throw refused(error, part.key(i));
      // Another process was faster.
      if (flags === ELEM_FLAG.NOEXIST && why === DROPPED.absent) counts.unchanged++;
      else drop(counts, why);
      continue;
    }
    part.tally(counts, i, i + 1);
    if (i % 64 === 0) await pause();
  }
}

/** Writes all items of a part; one by one if there are no batches, and after the first one that is dropped. */
async function putAll(part: Part, work: IntoWork, aside: boolean): Promise<void> {
  const { map, batch, count } = part;
  if (count === 0) return;
  // A thread costs more than a short call.
  const long = aside && count * (map.keySize + map.valueStride) > 65_536;
  const { error, count: done } = long ? await map.updateBatchAsync(batch, count) : map.updateBatch(batch, count);
  part.tally(work.counts, 0, done);
  if (error === undefined) return;
  const { errno } = error;
  const none = errno === ERRNO.ENOTSUPP || errno === ERRNO.EINVAL || errno === ERRNO.EOPNOTSUPP;
  if (dropReason(error) === undefined && !(done === 0 && none)) throw refused(error, part.key(done));
  await putEach(part, done, work);
}

// ---------------------------------------------------------------------------------------------------
// Maps that have some keys and not others

/** Whether everything is to be inserted, and fits. */
function isSimple(map: BpfMap, items: ItemSource, { mode, dry, type }: IntoWork): boolean {
  if (dry || type.evicts === true || (mode !== 'upsert' && mode !== 'sync')) return false;
  return items.count <= Math.min(map.maxEntries, MOST_SIMPLE) && map.nextKey(undefined) === undefined;
}

/** Most items that are written without a table of keys: of these, repeated keys can be remembered. */
const MOST_SIMPLE = 16 * 1024 * 1024;

/** Puts items into an empty map. Those whose keys may have come before are written last, and only if they had not. */
async function fillEmpty(map: BpfMap, items: ItemSource, work: IntoWork): Promise<void> {
  const seen = seenKeys(items, work.type);
  const again: number[] = [];
  let done = 0;
  const read = (part: Part) => {
    for (let i = part.count - 1; i >= 0; i--) {
      const repeated = seen(part.batch.keys, i);
      part.todo[i] = repeated ? SKIP : INSERT;
      if (repeated) again.push(part.from + i);
    }
    part.compact();
  };
  const write = (part: Part) => putAll(part, work, true);
  const writers = work.type.key === 'prefix' ? 1 : WRITERS;
  const progress = (count: number) => {
    done += count;
    work.progress(done);
  };
  await eachPart(map, items, work, { writers, read, write, progress });
  const part = new Part(map, 1);
  for (const place of again) {
    work.check();
    await items.read(place, 1, part.batch.keys, part.batch.values);
    try {
      map.update(part.key(0), part.value(0), ELEM_FLAG.NOEXIST);
      work.counts.inserted++;
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      // The later one is there, and that one counts.
      if (error.errno === ERRNO.EEXIST) continue;
      const why = dropReason(error);
      if (why === undefined) throw refused(error, part.key(0));
      drop(work.counts, why);
    }
    await pause();
  }
}

/** Keys that others may put into an empty map while it is being filled. */
const SOME = 1024;

/** The table is full. */
class TooManyKeys extends Error {}

/**
 * Puts items into a map that has some keys and not others: hash tables, tries.
 * @param most keys that are looked at in one go, about; tests have fewer
 */
export async function mergeItems(map: BpfMap, items: ItemSource, work: IntoWork, most = MOST_KEYS): Promise<void> {
  if (work.type.evicts !== true || work.dry) return mergeParts(map, items, work, most);
  // The kernel has free elements for each CPU, and evicts when one CPU's are used up. So everything is written from one
  // CPU, or, if each CPU has its own share of the map, each share from its CPU.
  const before = map.sys.getAffinity();
  const cpus = evictingCpus(map, before);
  const places: Places = {
    shares: Math.max(1, cpus.length),
    bind(place) {
      const cpu = cpus[Math.floor((place * cpus.length) / items.count)];
      if (cpu !== undefined) map.sys.setAffinity([cpu]);
    },
  };
  try {
    await mergeParts(map, items, work, most, places);
  } finally {
    if (typeof before !== 'number') map.sys.setAffinity(before);
  }
}

/** The CPUs from which items are written. */
interface Places {
  /** Parts of the source, each of which has its own. */
  readonly shares: number;
  /** Goes to the CPU for the item at this place of the source. */
  bind(place: number): void;
}

const ANYWHERE: Places = { shares: 1, bind() {} };

async function mergeParts(
  map: BpfMap,
  items: ItemSource,
  work: IntoWork,
  most: number,
  places = ANYWHERE,
): Promise<void> {
  if (isSimple(map, items, work)) return fillEmpty(map, items, work);
  const hash = new KeyHash();
  let parts = 1;
  while (items.count / parts > most / 2) parts *= 2;
  const done = { items: 0, held: undefined as number | undefined };
  for (let part = 0; part < parts; ) {
    // For an empty map, a smaller table will do.
    const held = map.nextKey(undefined) === undefined ? SOME : map.maxEntries;
    const [more, few] = [items.count / parts, Math.max(items.count, held) / parts];
    const table = new KeyTable(hash, {
      keySize: map.keySize,
      type: work.type,
      most: Math.min(1.25 * most, more + held),
      parts,
      part,
      few,
    });
    const merge = new Merge(map, items, work, table, places);
    try {
      await merge.look(Math.ceil(items.count / parts), most);
    } catch (error) {
      if (!(error instanceof TooManyKeys)) throw error;
      // Half as many keys in each part; those that are done already are done.
      parts *= 2;
      part *= 2;
      continue;
    }
    done.held ??= merge.held;
    await merge.run(done);
    part++;
  }
  if (work.type.evicts === true) await settle(map, items, work, done.held ?? 0, places);
}

/** Counts what was evicted, and writes items that were evicted though there is room for all. */
async function settle(map: BpfMap, items: ItemSource, work: IntoWork, before: number, places: Places): Promise<void> {
  const { counts } = work;
  const wanted = before + counts.inserted - counts.deleted;
  if (work.dry) return drop(counts, DROPPED.evicted, wanted - map.maxEntries);
  let held = await countItems(map);
  const fits = wanted <= map.maxEntries && work.mode !== 'sum' && work.mode !== 'update';
  for (let left = REFILLS; left > 0 && fits && held < wanted; left--) {
    if ((await writeMissing(map, items, work, places)) === 0) break;
    held = await countItems(map);
  }
  drop(counts, DROPPED.evicted, wanted - held);
}

/** Times the items that the kernel dropped are put in again. */
const REFILLS = 5;

/** Writes the items that are missing; returns how many. */
async function writeMissing(map: BpfMap, items: ItemSource, work: IntoWork, places: Places): Promise<number> {
  const part = new Part(map, Math.min(itemsInCall(map), Math.max(1, items.count)));
  let missing = 0;
  for (let end = items.count; end > 0; ) {
    work.check();
    const count = Math.min(part.batch.room, end);
    end -= count;
    await items.read(end, count, part.batch.keys, part.batch.values);
    for (let i = count - 1; i >= 0; i--) {
      if (map.lookup(part.key(i), 0, map.valueRoom) !== undefined) continue;
      places.bind(end + i);
      map.update(part.key(i), part.value(i));
      missing++;
    }
    await pause();
  }
  return missing;
}

/** One map, one source, the keys of one part. */
class Merge {
  /** Items in the map before. */
  held = 0;
  readonly #ignored: IntoWork['ignored'];
  readonly #blanks: boolean;

  constructor(
    readonly map: BpfMap,
    readonly items: ItemSource,
    readonly work: IntoWork,
    readonly table: KeyTable,
    readonly places: Places,
  ) {
    this.#ignored = [...work.ignored, ...padding(map)];
    this.#blanks = this.#ignored.length > 0;
  }

  /**
   * Reads which keys the map has.
   * @param more keys that come from the source, about
   * @param most keys there may be
   * @throws TooManyKeys
   */
  async look(more: number, most: number): Promise<void> {
    const { table, map } = this;
    const compares = this.work.mode !== 'insert' && this.work.mode !== 'sum';
    await this.#each((keys, values, count) => {
      const [keyView, valueView] = [viewOf(keys), viewOf(values)];
      for (let i = 0; i < count; i++) {
        const slot = table.find(keyView, i);
        if (slot === ELSEWHERE) continue;
        if (table.size + more > most * 1.25) throw new TooManyKeys();
        const at = i * map.valueStride;
        if (this.#blanks) blank(values, at, this.#ignored);
        table.addThere(slot, valueView, at, compares ? map.valueStride : 0);
      }
      this.held += count;
    });
  }

  async #each(see: (keys: Uint8Array, values: Uint8Array, count: number) => void): Promise<void> {
    const { work } = this;
    await work.read({
      count: 0,
      async put(keys, values, count) {
        work.check();
        see(keys, values, count);
      },
    });
  }

  /** @param done what is known of earlier parts as well */
  async run(done: { items: number; readonly held: number | undefined }): Promise<void> {
    const { work } = this;
    if (work.mode === 'sync') await this.#deleteOthers();
    const evicts = work.type.evicts === true;
    const left = (done.held ?? 0) - work.counts.deleted + work.counts.inserted;
    const room = { free: evicts ? Number.POSITIVE_INFINITY : this.map.maxEntries - left };
    await this.#write(done, room);
  }

  async #write(done: { items: number }, room: { free: number }): Promise<void> {
    const { work, items, table } = this;
    const batches = work.mode === 'upsert' || work.mode === 'sync';
    // Each part of the keys goes over the whole source.
    const progress = (count: number) => {
      done.items += count;
      work.progress(Math.min(items.count, Math.floor(done.items / table.parts)));
    };
    const write = async (part: Part): Promise<void> => {
      this.places.bind(part.from);
      if (work.dry) this.#foresee(part, room);
      else if (batches) await putAll(part, work, work.type.evicts !== true);
      else if (work.mode === 'sum') await this.#sum(part);
      else await putEach(part, 0, work, work.mode === 'insert' ? ELEM_FLAG.NOEXIST : ELEM_FLAG.EXIST);
    };
    const writers = batches && !work.dry && work.type.evicts !== true && work.type.key !== 'prefix' ? WRITERS : 1;
    const { shares } = this.places;
    const read = (part: Part) => this.#classify(part);
    await eachPart(this.map, items, work, { writers, shares, read, write, progress });
  }

  /** Decides what to do with each item of a part, and leaves out those with nothing to do. */
  #classify(part: Part): void {
    const { table, map, work } = this;
    const { keys, values } = part.batch;
    const [keyView, valueView] = [viewOf(keys), viewOf(values)];
    for (let i = part.count - 1; i >= 0; i--) {
      part.todo[i] = SKIP;
      const slot = table.find(keyView, i);
      if (slot === ELSEWHERE || table.isDone(slot)) continue;
      table.setDone(slot);
      const there = table.isThere(slot);
      const at = i * map.valueStride;
      if (this.#blanks) blank(values, at, this.#ignored);
      if (there && work.mode === 'insert') work.counts.unchanged++;
      else if (!there && work.mode === 'update') drop(work.counts, DROPPED.absent);
      else if (!there) part.todo[i] = INSERT;
      else if (work.mode === 'sum' || !table.hadValue(slot, valueView, at, map.valueStride)) part.todo[i] = UPDATE;
      // In an LRU map, writing an item again makes it one of the newest.
      else if (work.type.evicts === true) part.todo[i] = SAME;
      else work.counts.unchanged++;
    }
    part.compact();
  }

  /** Counts what would become of the items of a part. */
  #foresee(part: Part, room: { free: number }): void {
    const { counts, mode } = this.work;
    for (let i = 0; i < part.count; i++) {
      if (part.todo[i] === INSERT && room.free-- <= 0) drop(counts, DROPPED.full);
      else if (part.todo[i] === INSERT || mode !== 'sum') part.tally(counts, i, i + 1);
      else if (this.#added(part, i)) counts.updated++;
      else counts.unchanged++;
    }
  }

  /** Adds an item's value to that in the map, in `map.valueRoom`; returns whether that changes it. */
  #added(part: Part, i: number): boolean {
    const { map, work } = this;
    if (map.lookup(part.key(i), 0, map.valueRoom) === undefined) return false;
    return work.add(map.valueRoom, 0, part.value(i), 0);
  }

  async #sum(part: Part): Promise<void> {
    const { map, work } = this;
    const { counts } = work;
    for (let i = 0; i < part.count; i++) {
      const key = part.key(i);
      try {
        if (part.todo[i] === INSERT) {
          map.update(key, part.value(i));
          counts.inserted++;
        } else if (this.#added(part, i)) {
          map.update(key, map.valueRoom);
          counts.updated++;
        } else counts.unchanged++;
      } catch (error) {
        const why = dropReason(error);
        if (why === undefined) throw refused(error, key);
        drop(counts, why);
      }
      if (i % 64 === 0) await pause();
    }
  }

  /** Deletes all keys of this part that the source does not have. This comes first because it makes room. */
  async #deleteOthers(): Promise<void> {
    const { table, map, items, work } = this;
    const read = (part: Part) => {
      const keys = viewOf(part.batch.keys);
      for (let i = 0; i < part.count; i++) {
        const slot = table.find(keys, i);
        if (slot !== ELSEWHERE) table.setKept(slot);
      }
    };
    await eachPart(map, items, work, { read });
    // Not while the keys are read: the reading would start again, or miss some.
    const most = Math.max(1, Math.floor(DELETED_BYTES / map.keySize));
    for (let more = true; more; ) {
      const others: Buffer[] = [];
      let count = 0;
      more = false;
      await this.#each((keys, _values, all) => {
        const view = viewOf(keys);
        for (let i = 0; i < all; i++) {
          const slot = table.find(view, i);
          // Only keys that were there when we looked: what others have added since is not ours to delete.
          if (slot === ELSEWHERE || !table.isThere(slot) || table.isKept(slot)) continue;
          if (work.dry) work.counts.deleted++;
          else if (count === most) more = true;
          else {
            count++;
            others.push(Buffer.from(keys.subarray(i * map.keySize, (i + 1) * map.keySize)));
          }
        }
      });
      for (const key of others) {
        if (map.delete(key)) work.counts.deleted++;
        work.check();
        await pause();
      }
    }
  }
}

/** Bytes of keys that are remembered to be deleted. */
const DELETED_BYTES = 4 * 1024 * 1024;

/** What fills each CPU's value up to a multiple of 8 bytes: some kernels keep it, some do not. */
export function padding({ valueSize, valueStride }: BpfMap): IntoWork['ignored'] {
  const stride = cpuStride(valueSize);
  if (valueStride === valueSize || stride === valueSize) return [];
  return [{ offset: valueSize, size: stride - valueSize, count: valueStride / stride, stride }];
}

// ---------------------------------------------------------------------------------------------------
// Arrays

/** Indexes that are remembered, at most: 64 MiB of bits. */
const MOST_INDEXES = 2 ** 29;

/** Puts items into an array, whose indexes are all there. */
export async function mergeIndexes(map: BpfMap, items: ItemSource, work: IntoWork): Promise<void> {
  const { counts, mode } = work;
  const done = new Int32Array(Math.ceil(Math.min(map.maxEntries, MOST_INDEXES) / 32));
  const isDone = (index: number) => ((done[index >>> 5] ?? 0) & (1 << (index & 31))) !== 0;
  const read = (part: Part) => {
    const keys = viewOf(part.batch.keys);
    for (let i = part.count - 1; i >= 0; i--) {
      const index = keys.getUint32(4 * i, true);
      part.todo[i] = SKIP;
      if (index >= map.maxEntries) {
        // There is no place for it, nor need for one if it is zero.
        if (isZero(part.value(i))) counts.unchanged++;
        else drop(counts, DROPPED.range);
      } else if (!isDone(index)) {
        if (index < MOST_INDEXES) done[index >>> 5] = (done[index >>> 5] as number) | (1 << (index & 31));
        if (mode === 'insert') counts.unchanged++;
        else part.todo[i] = UPDATE;
      }
    }
    part.compact();
  };
  const compare = new Compare(map, work);
  const put = async (part: Part) => {
    await compare.leaveOutSame(part);
    if (work.dry) part.tally(counts, 0, part.count);
    else await putAll(part, work, true);
  };
  let written = 0;
  const writers = map.long ? 1 : WRITERS;
  const progress = (count: number) => {
    written += count;
    work.progress(written);
  };
  await eachPart(map, items, work, { writers, read, write: put, progress });
  if (mode !== 'sync') return;
  // What the source does not have is zero, as in a fresh array.
  const part = new Part(map, Math.min(itemsInCall(map), map.maxEntries));
  const before = { ...counts };
  for (let from = 0; from < map.maxEntries; from += part.batch.room) {
    work.check();
    part.count = 0;
    for (let index = from; index < Math.min(map.maxEntries, from + part.batch.room); index++) {
      if (!isDone(index)) part.batch.keys.writeUInt32LE(index, 4 * part.count++);
    }
    part.todo.fill(UPDATE);
    part.batch.values.fill(0);
    await put(part);
    // People would call that neither an update nor an unchanged item.
    counts.deleted += counts.updated - before.updated;
    Object.assign(counts, { updated: before.updated, unchanged: before.unchanged });
    await pause();
  }
}

/** Compares items with the values that an array has now. */
class Compare {
  readonly #ignored: IntoWork['ignored'];

  constructor(
    readonly map: BpfMap,
    readonly work: IntoWork,
  ) {
    this.#ignored = [...work.ignored, ...padding(map)];
  }

  /** Leaves out the items of `part` that change nothing, and counts them; in mode `sum`, the others get their sums. */
  async leaveOutSame(part: Part): Promise<void> {
    const { map, work } = this;
    if (part.count === 0) return;
    part.old ??= map.batch(part.batch.room);
    await readOld(part, part.old);
    const [values, olds] = [part.batch.values, part.old.values];
    const size = part.count * map.valueStride;
    if (work.mode !== 'sum' && this.#ignored.length === 0 && values.compare(olds, 0, size, 0, size) === 0) {
      work.counts.unchanged += part.count;
      part.count = 0;
      return;
    }
    const [view, oldView] = [viewOf(values), viewOf(olds)];
    for (let i = 0, at = 0; i < part.count; i++, at += map.valueStride) {
      if (this.#ignored.length > 0) blank(values, at, this.#ignored);
      if (work.mode === 'sum') {
        const changed = work.add(olds, at, values, at);
        values.set(olds.subarray(at, at + map.valueStride), at);
        if (changed) continue;
      } else {
        if (this.#ignored.length > 0) blank(olds, at, this.#ignored);
        if (!equalRange(view, at, oldView, at, map.valueStride)) continue;
      }
      work.counts.unchanged++;
      part.todo[i] = SKIP;
    }
    part.compact();
  }
}

/** Reads the values that the keys of `part` have now into the same places of `old`. */
async function readOld({ map, batch, count }: Part, old: Batch): Promise<void> {
  const keys = viewOf(batch.keys);
  const first = keys.getUint32(0, true);
  let i = 1;
  while (i < count && keys.getUint32(4 * i, true) === first + i) i++;
  // Where a part begins, a whole run of indexes is read at once.
  const run = i === 1 ? undefined : await map.lookupBatchAsync(map.cursor(first === 0 ? undefined : first - 1), old, i);
  if (run?.error !== undefined || run?.count !== i) i = 0;
  for (; i < count; i++) {
    const value = old.values.subarray(i * map.valueStride, (i + 1) * map.valueStride);
    if (map.lookup(batch.keys.subarray(4 * i, 4 * i + 4), 0, value) === undefined) value.fill(0);
    if (i % 1024 === 0) await pause();
  }
}

// ---------------------------------------------------------------------------------------------------
// Maps without keys

/** Adds items to a map without keys: queues, stacks, Bloom filters. */
export async function appendItems(map: BpfMap, items: ItemSource, work: IntoWork): Promise<void> {
  const { counts } = work;
  const asks = work.type.drains !== true;
  const step = Math.min(itemsInCall(map), Math.max(1, items.count));
  const part = new Part(map, step);
  for (let done = 0; done < items.count; done += part.count) {
    work.check();
    part.count = Math.min(step, items.count - done);
    await items.read(done, part.count, part.batch.keys, part.batch.values);
    for (let i = 0; i < part.count; i++) {
      map.valueRoom.set(part.value(i));
      if (asks && map.lookup(undefined, 0, map.valueRoom) !== undefined) counts.unchanged++;
      else if (work.dry && !asks && counts.inserted >= map.maxEntries) drop(counts, DROPPED.full);
      else if (work.dry) counts.inserted++;
      else {
        try {
          map.update(undefined, part.value(i));
          counts.inserted++;
        } catch (error) {
          if (dropReason(error) === undefined) throw error;
          // No later item may overtake it.
          drop(counts, DROPPED.full, items.count - done - i);
          return;
        }
      }
      if (i % 64 === 0) await pause();
    }
    work.progress(done + part.count);
  }
}
