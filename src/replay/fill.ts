/** Ways to fill a fresh map, fastest first. Plugins choose among them. */
import { availableParallelism } from 'node:os';
import { hex, isZero, roundUp8 } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import { pause } from '../io/pause.js';
import { ELEM_FLAG, MAP_FLAG } from '../kernel/abi.js';
import { KernelError } from '../kernel/error.js';
import type { Batch, BpfMap, Mapping } from '../kernel/map.js';
import { ERRNO } from '../kernel/sys.js';
import { FULL, type ItemSource, type Report, type Work } from '../maptype.js';

/** Threads that fill one map side by side; more than four would wait for Node's pool. */
const WRITERS = Math.min(4, availableParallelism());
/** Bytes of items in one call. */
const WRITE_BYTES = 1024 * 1024;
const WRITE_ITEMS = 16_384;

/** Items of this map that one call writes. */
function room(map: BpfMap): number {
  const fit = Math.floor(WRITE_BYTES / (map.keySize + map.valueStride));
  return Math.max(16, Math.min(WRITE_ITEMS, fit));
}

function keyOf(map: BpfMap, batch: Batch, index: number): Buffer {
  return batch.keys.subarray(index * map.keySize, (index + 1) * map.keySize);
}

function valueAt(map: BpfMap, batch: Batch, index: number): Buffer {
  return batch.values.subarray(index * map.valueStride, (index + 1) * map.valueStride);
}

/** The error of an item: its key says which. */
function refused(error: unknown, key: Uint8Array): unknown {
  return error instanceof KernelError ? error.of(`item ${hex(key)}`) : error;
}

/** Writes `count` items of a batch one by one. */
function updateEach(map: BpfMap, batch: Batch, count: number, flags = 0): void {
  for (let i = 0; i < count; i++) {
    const key = keyOf(map, batch, i);
    try {
      map.update(key, valueAt(map, batch, i), flags);
    } catch (error) {
      throw refused(error, key);
    }
  }
}

/** Writes `count` items of a batch, on another thread when `aside`; one by one where there are no batches. */
async function update(map: BpfMap, batch: Batch, count: number, aside: boolean): Promise<void> {
  if (count === 0) return;
  const result = aside ? await map.updateBatchAsync(batch, count) : map.updateBatch(batch, count);
  const { error, count: done } = result;
  if (error === undefined) return;
  const { errno } = error;
  if (done === 0 && (errno === ERRNO.ENOTSUPP || errno === ERRNO.EINVAL || errno === ERRNO.EOPNOTSUPP)) {
    updateEach(map, batch, count);
    return;
  }
  throw refused(error, keyOf(map, batch, done));
}

/** Leaves out what an array has anyway; returns how many items stay. */
type Sieve = (map: BpfMap, batch: Batch, count: number) => number;

/** Fills a map from its image in parts, `writers` of them at a time. */
async function fill(map: BpfMap, items: ItemSource, work: Work, writers: number, sieve?: Sieve): Promise<Report> {
  const step = Math.min(room(map), Math.max(1, items.count));
  let next = 0;
  let done = 0;
  const writer = async () => {
    const batch = map.batch(step);
    while (next < items.count) {
      const from = next;
      const count = Math.min(step, items.count - from);
      next += count;
      await items.read(from, count, batch.keys, batch.values);
      const kept = sieve === undefined ? count : sieve(map, batch, count);
      // A thread costs more than a short call.
      await update(map, batch, kept, kept * (map.keySize + map.valueStride) > 65_536);
      done += count;
      work.progress(done);
      await pause();
    }
  };
  const all = Array.from({ length: Math.min(writers, Math.ceil(items.count / step)) }, writer);
  // All of them, before an error is told: none may go on with a map that is closed.
  for (const end of await Promise.allSettled(all)) if (end.status === 'rejected') throw end.reason;
  return FULL;
}

/** Fills in the image's order: for maps whose writers would only wait for each other. */
export function fillInOrder(map: BpfMap, items: ItemSource, work: Work): Promise<Report> {
  return fill(map, items, work, 1);
}

// ---------------------------------------------------------------------------------------------------
// Arrays

/** Moves items whose value is not all zero to the batch's beginning: a fresh array is zero. */
function withoutZeros(map: BpfMap, batch: Batch, count: number): number {
  const { keys, values } = batch;
  const stride = map.valueStride;
  let kept = 0;
  for (let i = 0; i < count; i++) {
    if (values[i * stride] === 0 && isZero(values, i * stride, (i + 1) * stride)) continue;
    if (kept !== i) {
      keys.copy(keys, kept * 4, i * 4, i * 4 + 4);
      values.copy(values, kept * stride, i * stride, (i + 1) * stride);
    }
    kept++;
  }
  return kept;
}

/** Fills a fresh array, with several writers. */
export function fillIndexes(map: BpfMap, items: ItemSource, work: Work): Promise<Report> {
  return fill(map, items, work, WRITERS, withoutZeros);
}

/** Bytes of a map's memory that are mapped at a time. */
const WINDOW = 256 * 1024 * 1024;
/** The largest page of a machine bpfimg knows (arm64, ppc64). */
const PAGE = 65_536;

/** Fills an array with BPF_F_MMAPABLE by copying into its memory; others, and what cannot be mapped, by calls. */
export async function fillMemory(map: BpfMap, items: ItemSource, work: Work): Promise<Report> {
  if ((map.flags & MAP_FLAG.MMAPABLE) === 0 || map.info().btfId !== 0) return fillIndexes(map, items, work);
  const window = new Window(map);
  try {
    if (items.count > 0) window.at(0);
  } catch (error) {
    // BPF_F_RDONLY_PROG: user space may write it, but not through memory.
    if (error instanceof KernelError) return fillIndexes(map, items, work);
    throw error;
  }
  try {
    const batch = map.batch(room(map));
    for (let done = 0; done < items.count; done += batch.room) {
      const count = Math.min(batch.room, items.count - done);
      await items.read(done, count, batch.keys, batch.values);
      for (let i = 0; i < count; i++) window.put(batch.keys.readUInt32LE(4 * i), valueAt(map, batch, i));
      work.progress(done + count);
      await pause();
    }
  } finally {
    // Before it is frozen: that fails while it is mapped for writing.
    window.close();
  }
  return FULL;
}

/** The part of an array's memory that is mapped just now. */
class Window {
  readonly #stride: number;
  readonly #step: number;
  #memory: Mapping | undefined;
  #bytes: Buffer = Buffer.alloc(0);
  #from = 0;
  #to = 0;

  constructor(readonly map: BpfMap) {
    this.#stride = roundUp8(map.valueSize);
    let unit = 1;
    while ((unit * this.#stride) % PAGE !== 0) unit *= 2;
    this.#step = Math.max(1, Math.floor(WINDOW / (this.#stride * unit))) * unit;
  }

  /** Maps the part where `index` is. */
  at(index: number): void {
    if (index >= this.#from && index < this.#to) return;
    this.close();
    const from = Math.floor(index / this.#step) * this.#step;
    const to = Math.min(this.map.maxEntries, from + this.#step);
    const length = (to - from) * this.#stride;
    this.#memory = this.map.mmap({ writable: true, offset: from * this.#stride, length, populate: true });
    this.#bytes = this.#memory.bytes;
    this.#from = from;
    this.#to = to;
  }

  put(index: number, value: Uint8Array): void {
    const { map } = this;
    if (index >= map.maxEntries) {
      const key = Buffer.alloc(4);
      key.writeUInt32LE(index);
      throw refused(new KernelError(map.subject, 'BPF_MAP_UPDATE_ELEM', ERRNO.E2BIG), key);
    }
    this.at(index);
    this.#bytes.set(value, (index - this.#from) * this.#stride);
  }

  close(): void {
    this.#bytes = Buffer.alloc(0);
    this.#memory?.close();
    this.#memory = undefined;
    this.#from = this.#to = 0;
  }
}

// ---------------------------------------------------------------------------------------------------
// Hash tables

/** Fills a hash table of any kind. */
export function fillHash(map: BpfMap, items: ItemSource, work: Work): Promise<Report> {
  if (work.type.evicts === true) return fillEvicting(map, items, work);
  // With a fixed seed, the order of items is that of insertion, newest first: so it becomes the image's.
  if ((map.flags & MAP_FLAG.ZERO_SEED) !== 0) return fill(map, backwards(items), work, 1);
  return fill(map, items, work, WRITERS);
}

/** The same items, last one first. */
function backwards(items: ItemSource): ItemSource {
  const { count, keySize, valueSize } = items;
  return {
    count,
    keySize,
    valueSize,
    async read(from, some, keys, values) {
      await items.read(count - from - some, some, keys, values);
      for (const [bytes, size] of [[keys, keySize] as const, [values, valueSize] as const]) {
        for (let i = 0, j = some - 1; i < j; i++, j--) {
          const one = Uint8Array.from(bytes.subarray(i * size, (i + 1) * size));
          bytes.copyWithin(i * size, j * size, (j + 1) * size);
          bytes.set(one, j * size);
        }
      }
    },
  };
}

/** Times the items that the kernel dropped are put in again. Two were enough for every size that was measured. */
const REFILLS = 5;

/**
 * Fills a map that evicts. Every update succeeds, and yet items are lost: the kernel takes free elements in
 * chunks for each CPU, and makes some by eviction when the last chunk is short. So all are written from one
 * CPU, and what is missing then is written again. With BPF_F_NO_COMMON_LRU each CPU has its own share of the
 * elements: then each writes its share of the items.
 */
async function fillEvicting(map: BpfMap, items: ItemSource, work: Work): Promise<Report> {
  const { sys } = map;
  const before = sys.getAffinity();
  const cpus = typeof before === 'number' || before.length === 0 ? [-1] : before;
  const shares = (map.flags & MAP_FLAG.NO_COMMON_LRU) !== 0 ? cpus.length : 1;
  const batch = map.batch(Math.min(room(map), Math.max(1, items.count)));
  /** Goes over all items on the CPUs they belong to. */
  const each = async (part: (count: number) => void) => {
    for (let share = 0; share < shares; share++) {
      const end = Math.floor((items.count * (share + 1)) / shares);
      for (let from = Math.floor((items.count * share) / shares); from < end; from += batch.room) {
        const count = Math.min(batch.room, end - from);
        await items.read(from, count, batch.keys, batch.values);
        const cpu = cpus[share] as number;
        if (cpu >= 0) sys.setAffinity([cpu]);
        part(count);
        work.progress(from + count);
        await pause();
      }
    }
  };
  try {
    await each((count) => {
      const { error, count: done } = map.updateBatch(batch, count);
      if (error === undefined) return;
      if (done > 0) throw refused(error, keyOf(map, batch, done));
      updateEach(map, batch, count);
    });
    const value = new Uint8Array(map.valueStride);
    for (let again = 0; again < REFILLS && (await countItems(map)) < items.count; again++) {
      let missing = 0;
      await each((count) => {
        for (let i = 0; i < count; i++) {
          const key = keyOf(map, batch, i);
          if (map.lookup(key, 0, value) !== undefined) continue;
          missing++;
          map.update(key, valueAt(map, batch, i), ELEM_FLAG.NOEXIST);
        }
      });
      // Fewer items than the image has, but none missing: some stand twice in it.
      if (missing === 0) return FULL;
    }
  } finally {
    if (typeof before !== 'number') sys.setAffinity(before);
  }
  const held = await countItems(map);
  if (held >= items.count) return FULL;
  return { kind: 'partial', why: `it holds ${held} of ${items.count} items: the kernel drops the others for new ones` };
}

/** Items that a map holds now. */
export async function countItems(map: BpfMap): Promise<number> {
  const batch = map.batch();
  const cursor = map.cursor();
  let count = 0;
  for (;;) {
    const result = map.lookupBatch(cursor, batch);
    if (result.error) {
      if (count > 0) throw result.error;
      return countKeys(map);
    }
    count += result.count;
    if (result.end) return count;
    await pause();
    if (count > 2 * map.maxEntries + 1024) {
      throw new BpfimgError('conflict', `${map.subject}: it changes while it is read`);
    }
  }
}

function countKeys(map: BpfMap): number {
  const key = new Uint8Array(map.keySize);
  let count = 0;
  for (let more = map.nextKey(undefined, key); more !== undefined; more = map.nextKey(key, key)) {
    if (++count > map.maxEntries) break;
  }
  return count;
}
