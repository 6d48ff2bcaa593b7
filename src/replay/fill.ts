/** Ways to fill a fresh map, fastest first. Plugins choose among them. */
import { availableParallelism } from 'node:os';
import { hex, isZero } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import { pause } from '../io/pause.js';
import { ELEM_FLAG, MAP_FLAG } from '../kernel/abi.js';
import { KernelError } from '../kernel/error.js';
import { kernelMaps } from '../kernel/iter.js';
import type { Batch, BpfMap, Mapping } from '../kernel/map.js';
import { ERRNO } from '../kernel/sys.js';
import { FULL, type ItemSource, type Report, type Work } from '../maptype.js';
import { type Seen, seenIndexes, seenKeys } from './seen.js';

/** Calls in progress at a time for one map: as many as for reading, for the same reason. */
const WRITERS = availableParallelism() === 1 ? 1 : Math.min(8, 3 * availableParallelism());
/** Bytes of items in one call. */
const WRITE_BYTES = 1024 * 1024;
const WRITE_ITEMS = 16_384;

/** Items of this map that one call writes. */
export function itemsInCall(map: BpfMap): number {
  const fit = Math.floor(WRITE_BYTES / Math.max(1, map.keySize + map.valueStride));
  return Math.max(1, Math.min(WRITE_ITEMS, fit));
}

function batchKey(map: BpfMap, batch: Batch, index: number): Buffer {
  return batch.keys.subarray(index * map.keySize, (index + 1) * map.keySize);
}

function valueAt(map: BpfMap, batch: Batch, index: number): Buffer {
  return batch.values.subarray(index * map.valueStride, (index + 1) * map.valueStride);
}

/** The error of an item: its key says which. */
function refused(error: unknown, key: Uint8Array): unknown {
  return error instanceof KernelError ? error.of(`item ${hex(key)}`) : error;
}

/** Writes items `from` to `to - 1` of a batch one by one. */
function updateEach(map: BpfMap, batch: Batch, from: number, to: number): void {
  for (let i = from; i < to; i++) {
    try {
      map.updateAt(map.keySize === 0 ? undefined : batch.keys, i * map.keySize, batch.values, i * map.valueStride);
    } catch (error) {
      throw refused(error, batchKey(map, batch, i));
    }
  }
}

/** Writes items `from` to `from + count - 1` of a batch; one by one if there are no batches. */
async function update(map: BpfMap, batch: Batch, count: number, from = 0): Promise<void> {
  if (count === 0) return;
  // A thread costs more than a short call.
  const aside = count * (map.keySize + map.valueStride) > 65_536;
  const result = aside ? await map.updateBatchAsync(batch, count, from) : map.updateBatch(batch, count, from);
  const { error, count: done } = result;
  if (error === undefined) return;
  const { errno } = error;
  if (done === 0 && (errno === ERRNO.ENOTSUPP || errno === ERRNO.EINVAL || errno === ERRNO.EOPNOTSUPP)) {
    updateEach(map, batch, from, from + count);
    return;
  }
  throw refused(error, batchKey(map, batch, from + done));
}

/** Inserts an item of a batch unless its key is already there. */
function insert(map: BpfMap, batch: Batch, index: number): void {
  const key = batchKey(map, batch, index);
  try {
    map.update(key, valueAt(map, batch, index), ELEM_FLAG.NOEXIST);
  } catch (error) {
    if (error instanceof KernelError && error.errno === ERRNO.EEXIST) return;
    throw refused(error, key);
  }
}

interface FillOptions {
  readonly writers: number;
  /** The set of keys that were there before; undefined if the map's own count tells at the end whether keys came twice. */
  readonly seen: Seen | undefined;
  /** Every key exists from the beginning, with a value of zero. */
  readonly dense: boolean;
}

/** Number of items remembered for a second write; beyond it, all are written again. */
const REMEMBERED_ITEMS = 65_536;

/**
 * Fills a map from its image, some parts at a time. Of several items with one key the last counts, as in
 * a restore by CRIU: items whose key perhaps came before are written once more at the end, in order.
 */
async function fill(map: BpfMap, items: ItemSource, work: Work, options: FillOptions): Promise<Report> {
  const { seen, dense } = options;
  const step = Math.min(itemsInCall(map), Math.max(1, items.count));
  const again: number[] = [];
  let next = 0;
  let done = 0;
  let failed = false;

  /** Reads the next part; returns its number of items, 0 at the end. */
  const part = async (batch: Batch): Promise<number> => {
    const from = next;
    const count = failed ? 0 : Math.min(step, items.count - from);
    next += count;
    if (count > 0) await items.read(from, count, batch.keys, batch.values);
    if (seen === undefined) return count;
    for (let i = 0; i < count; i++) if (seen(batch.keys, i) && again.length <= REMEMBERED_ITEMS) again.push(from + i);
    return count;
  };

  // Parts are read one after the other: it must be known which item is the later one.
  let turn: Promise<unknown> = Promise.resolve();
  const writer = async () => {
    const batch = map.batch(step);
    for (;;) {
      const mine = turn.then(() => part(batch));
      turn = mine.catch(() => {});
      const count = await mine;
      if (count === 0) return;
      await update(map, batch, dense ? withoutZeros(map, batch, count) : count);
      done += count;
      work.progress(done);
      await pause();
    }
  };
  if (options.writers > 1 && items.count > step) map.sys.spreadPool?.();
  const all = Array.from({ length: Math.min(options.writers, Math.ceil(items.count / step)) }, () =>
    writer().catch((error: unknown) => {
      failed = true;
      throw error;
    }),
  );
  // Await all of them before reporting an error: none may continue with a closed map.
  for (const end of await Promise.allSettled(all)) if (end.status === 'rejected') throw end.reason;
  if (seen !== undefined) await writeAgain(map, items, again);
  else if (countedItems(map) !== items.count) await writeAgain(map, items, undefined);
  return FULL;
}

/** The number of items as the kernel counts them; undefined if it does not. */
function countedItems(map: BpfMap): number | undefined {
  return kernelMaps(map.sys)?.get(map.id)?.used;
}

/** Writes the items at these places once more, in order; all items if there are too many to remember, or undefined. */
async function writeAgain(map: BpfMap, items: ItemSource, places: readonly number[] | undefined): Promise<void> {
  if (places?.length === 0) return;
  const batch = map.batch(Math.min(itemsInCall(map), items.count));
  if (places === undefined || places.length > REMEMBERED_ITEMS) {
    for (let done = 0; done < items.count; done += batch.room) {
      const count = Math.min(batch.room, items.count - done);
      await items.read(done, count, batch.keys, batch.values);
      await update(map, batch, count);
      await pause();
    }
    return;
  }
  for (const place of places) {
    await items.read(place, 1, batch.keys, batch.values);
    updateEach(map, batch, 0, 1);
    await pause();
  }
}

/** Fills in the image's order: for maps whose writers would only wait for each other. */
export function fillInOrder(map: BpfMap, items: ItemSource, work: Work): Promise<Report> {
  return fill(map, items, work, { writers: 1, seen: seenKeys(items, work.type), dense: false });
}

// ---------------------------------------------------------------------------------------------------
// Arrays

function isZeroAt(map: BpfMap, batch: Batch, index: number): boolean {
  const stride = map.valueStride;
  return batch.values[index * stride] === 0 && isZero(batch.values, index * stride, (index + 1) * stride);
}

/** Moves items whose value is not zero to the start of the batch; returns their number. */
function withoutZeros(map: BpfMap, batch: Batch, count: number): number {
  const { keySize, valueStride } = map;
  let kept = 0;
  for (let i = 0; i < count; i++) {
    if (isZeroAt(map, batch, i)) continue;
    if (kept !== i) {
      batch.keys.copy(batch.keys, kept * keySize, i * keySize, (i + 1) * keySize);
      batch.values.copy(batch.values, kept * valueStride, i * valueStride, (i + 1) * valueStride);
    }
    kept++;
  }
  return kept;
}

/** Fills a fresh array, with several writers. Skips zeros: a fresh array contains nothing else. */
export function fillIndexes(map: BpfMap, items: ItemSource, work: Work): Promise<Report> {
  if (map.long) return fillLong(map, items, work);
  return fill(map, items, work, { writers: WRITERS, seen: seenIndexes(map), dense: true });
}

/** Fills a fresh array with long values: only one copy of a value is in memory at a time. */
async function fillLong(map: BpfMap, items: ItemSource, work: Work): Promise<Report> {
  const seen = seenIndexes(map);
  const key = Buffer.alloc(map.keySize);
  for (let done = 0; done < items.count; done++) {
    await items.read(done, 1, key, map.valueRoom);
    if (seen(key, 0) || !isZero(map.valueRoom)) {
      try {
        map.update(key, map.valueRoom);
      } catch (error) {
        throw refused(error, key);
      }
    }
    work.progress(done + 1);
    await pause();
  }
  return FULL;
}

/** Bytes of a map's memory to map at a time. */
const MAPPED_WINDOW = 64 * 1024 * 1024;
/** Bytes of a long value to read at a time. */
const PIECE = 1024 * 1024;

/** Fills an array with BPF_F_MMAPABLE by copying into its memory; uses calls if it cannot be mapped. */
export async function fillMemory(map: BpfMap, items: ItemSource, work: Work): Promise<Report> {
  if ((map.flags & MAP_FLAG.MMAPABLE) === 0 || map.info.btfId !== 0) return fillIndexes(map, items, work);
  const window = new Window(map);
  try {
    if (items.count > 0) window.open(0);
  } catch (error) {
    // BPF_F_RDONLY_PROG: user space may write it, but not through memory.
    if (error instanceof KernelError) return fillIndexes(map, items, work);
    throw error;
  }
  const seen = seenIndexes(map);
  try {
    if (map.long && items.readPart !== undefined) {
      await copyPieces(map, items, window, work);
      return FULL;
    }
    const batch = map.batch(Math.min(itemsInCall(map), Math.max(1, items.count)));
    for (let done = 0; done < items.count; done += batch.room) {
      const count = Math.min(batch.room, items.count - done);
      await items.read(done, count, batch.keys, batch.values);
      for (let i = 0; i < count; i++) {
        // Zero is already there unless an earlier item was not zero; in a smaller array the index may be past the end.
        if (!seen(batch.keys, i) && isZeroAt(map, batch, i)) continue;
        window.put(batch.keys.readUInt32LE(4 * i), 0, valueAt(map, batch, i));
      }
      work.progress(done + count);
      await pause();
    }
  } finally {
    // Before the freeze: that fails while the map is mapped for writing.
    window.close();
  }
  return FULL;
}

/** Copies long values piece by piece. */
async function copyPieces(map: BpfMap, items: ItemSource, window: Window, work: Work): Promise<void> {
  const seen = seenIndexes(map);
  const [key, all] = [Buffer.alloc(4), Buffer.alloc(PIECE)];
  for (let done = 0; done < items.count; done++) {
    let repeated = false;
    for (let at = 0; at < map.valueSize; at += PIECE) {
      const piece = all.subarray(0, Math.min(PIECE, map.valueSize - at));
      await items.readPart?.(done, key, at, piece);
      if (at === 0) repeated = seen(key, 0);
      if (repeated || !isZero(piece)) window.put(key.readUInt32LE(), at, piece);
      await pause();
    }
    work.progress(done + 1);
  }
}

/** The part of an array's memory that is currently mapped. */
class Window {
  readonly #stride: number;
  #memory: Mapping | undefined;
  #bytes: Buffer = Buffer.alloc(0);
  #from = 0;

  constructor(readonly map: BpfMap) {
    this.#stride = map.memoryStride;
  }

  /** Maps the part from byte `from` on, at least `least` bytes. */
  open(from: number, least = 0): void {
    this.close();
    const length = Math.min(Math.max(MAPPED_WINDOW, least), this.map.maxEntries * this.#stride - from);
    this.#memory = this.map.mmap({ writable: true, offset: from, length, populate: true });
    this.#bytes = this.#memory.bytes;
    this.#from = from;
  }

  /** Puts bytes at `offset` of the value of `index`. */
  put(index: number, offset: number, bytes: Uint8Array): void {
    const { map } = this;
    if (index >= map.maxEntries) {
      throw refused(new KernelError(map.subject, 'BPF_MAP_UPDATE_ELEM', ERRNO.E2BIG), indexKey(index));
    }
    const from = index * this.#stride + offset;
    if (from < this.#from && !map.long) {
      // Out of order: mapping a part again for each would take long.
      map.update(indexKey(index), bytes);
      return;
    }
    if (from < this.#from || from + bytes.length > this.#from + this.#bytes.length) this.open(from, bytes.length);
    this.#bytes.set(bytes, from - this.#from);
  }

  close(): void {
    this.#bytes = Buffer.alloc(0);
    this.#memory?.close();
    this.#memory = undefined;
    this.#from = 0;
  }
}

function indexKey(index: number): Buffer {
  const key = Buffer.alloc(4);
  key.writeUInt32LE(index);
  return key;
}

// ---------------------------------------------------------------------------------------------------
// Hash tables

/** With more items, asking the kernel twice for their number takes less time than remembering all keys. */
const COUNTED_ITEMS = 300_000;

/**
 * Fills a hash table of any kind.
 * @param most items whose keys are remembered; if there are more, the kernel is asked. Tests make it small
 */
export function fillHash(map: BpfMap, items: ItemSource, work: Work, most = COUNTED_ITEMS): Promise<Report> {
  if (work.type.evicts === true) return fillEvicting(map, items, work);
  if ((map.flags & MAP_FLAG.ZERO_SEED) !== 0) return fillBackwards(map, items, work);
  const counted = items.count > most && work.type.counted?.by === 'elements' && countedItems(map) === 0;
  return fill(map, items, work, {
    writers: WRITERS,
    seen: counted ? undefined : seenKeys(items, work.type),
    dense: false,
  });
}

/**
 * Fills a hash table with a fixed seed. Its items are in order of insertion, newest first, so that it
 * gets the image's order.
 */
async function fillBackwards(map: BpfMap, items: ItemSource, work: Work): Promise<Report> {
  const seen = seenKeys(items, work.type);
  const batch = map.batch(Math.min(itemsInCall(map), Math.max(1, items.count)));
  const last = backwards(items);
  for (let done = 0; done < items.count; done += batch.room) {
    const count = Math.min(batch.room, items.count - done);
    await last.read(done, count, batch.keys, batch.values);
    let from = 0;
    for (let i = 0; i < count; i++) {
      if (!seen(batch.keys, i)) continue;
      await update(map, batch, i - from, from);
      // Of several items with one key the last is already there.
      insert(map, batch, i);
      from = i + 1;
    }
    await update(map, batch, count - from, from);
    work.progress(done + count);
    await pause();
  }
  return FULL;
}

/** The same items, last one first. */
export function backwards(items: ItemSource): ItemSource {
  const { count, keySize, valueSize } = items;
  const part = items.readPart?.bind(items);
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
    ...(part && { readPart: (item, key, offset, value) => part(count - 1 - item, key, offset, value) }),
  };
}

/** How often items that the kernel dropped are inserted again. Two were enough for every size that was measured. */
const REFILLS = 5;

/** CPUs from which items are written, a share each; empty if the thread cannot be bound to any. */
export function evictingCpus(map: BpfMap, before: readonly number[] | number): readonly number[] {
  const { sys } = map;
  // All CPUs, not only those this process may use: each holds its share of the map.
  if ((map.flags & MAP_FLAG.NO_COMMON_LRU) !== 0) {
    return [...Array(sys.cpus).keys()].filter((cpu) => sys.setAffinity([cpu]) >= 0);
  }
  return typeof before === 'number' ? [] : before.slice(0, 1);
}

/**
 * Fills a map that evicts. Every update succeeds, and yet items are lost: the kernel takes free elements in
 * chunks for each CPU, and evicts some when the last chunk is short. So all items are written from one
 * CPU, and those missing afterwards are written again. With BPF_F_NO_COMMON_LRU each CPU has its own share of the
 * elements and writes its share of the items.
 */
async function fillEvicting(map: BpfMap, items: ItemSource, work: Work): Promise<Report> {
  const { sys } = map;
  const before = sys.getAffinity();
  try {
    const cpus = evictingCpus(map, before);
    const shares = Math.max(1, cpus.length);
    const batch = map.batch(Math.min(itemsInCall(map), Math.max(1, items.count)));
    // The last item first: of several with one key it counts, and even a refused update may evict another item.
    const last = backwards(items);
    /** Goes over all items, each on the CPU it belongs to. */
    const each = async (part: (count: number, seen: Seen) => void) => {
      const seen = seenKeys(items, work.type);
      for (let share = 0; share < shares; share++) {
        const end = Math.floor((items.count * (share + 1)) / shares);
        for (let from = Math.floor((items.count * share) / shares); from < end; from += batch.room) {
          const count = Math.min(batch.room, end - from);
          await last.read(from, count, batch.keys, batch.values);
          const cpu = cpus[share];
          if (cpu !== undefined) sys.setAffinity([cpu]);
          part(count, seen);
          work.progress(from + count);
          await pause();
        }
      }
    };
    const write = (from: number, to: number) => {
      if (from === to) return;
      const { error, count: done } = map.updateBatch(batch, to - from, from);
      if (error === undefined) return;
      if (done > 0) throw refused(error, batchKey(map, batch, from + done));
      updateEach(map, batch, from, to);
    };
    const value = Buffer.alloc(map.valueStride);
    const isThere = (i: number) => map.lookup(batchKey(map, batch, i), 0, value) !== undefined;
    await each((count, seen) => {
      let from = 0;
      for (let i = 0; i < count; i++) {
        if (!seen(batch.keys, i)) continue;
        write(from, i);
        from = isThere(i) ? i + 1 : i;
      }
      write(from, count);
    });
    for (let again = 0; ; again++) {
      const held = await countItems(map);
      if (held >= items.count) return FULL;
      if (again === REFILLS) {
        const why = `it holds ${held} of ${items.count} items: the kernel evicted the others to make room`;
        return { kind: 'partial', why };
      }
      let missing = 0;
      await each((count, seen) => {
        for (let i = 0; i < count; i++) {
          const repeated = seen(batch.keys, i);
          if (isThere(i) && (repeated || value.equals(valueAt(map, batch, i)))) continue;
          missing++;
          updateEach(map, batch, i, i + 1);
        }
      });
      // Fewer items than the image has, but none missing: some are in it twice.
      if (missing === 0) return FULL;
    }
  } finally {
    if (typeof before !== 'number') sys.setAffinity(before);
  }
}

/** Number of items in the map now. */
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
      throw new BpfimgError('conflict', 'it changes while it is being read', { subject: map.subject });
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
