/**
 * Ways to read all items of a live map, fastest first. Plugins choose among them.
 *
 * The promise while others write: every key that is not deleted is read exactly once, with a value it had.
 * It is not a snapshot of one moment: no kernel offers that.
 */
import { availableParallelism } from 'node:os';
import { BpfimgError } from '../errors.js';
import { MAP_FLAG } from '../kernel/abi.js';
import { KernelError } from '../kernel/error.js';
import type { Batch, BatchCursor, BatchResult, BpfMap, Mapping } from '../kernel/map.js';
import { ERRNO } from '../kernel/sys.js';
import { KeyFilter, QuickHash } from '../keyhash.js';
import { FULL, type ItemSink, type Report, type Work } from '../maptype.js';

/**
 * Calls in progress at a time for one map. More than there are CPUs: a thread of the pool that finds the next call
 * queued continues at once, while one that has to be woken may be woken on a busy CPU.
 */
const READERS = availableParallelism() === 1 ? 1 : Math.min(8, 3 * availableParallelism());
/** Batches being written at a time, and ranges waiting for their turn. */
const BATCHES_AHEAD = 6;

/** How much one call reads. Tests make it small to get many calls. */
export interface BatchLimits {
  /** Items in the first call for a map, which runs alone; a usual batch by default. */
  readonly first?: number;
  /** Bytes of items in one call, */
  readonly bytes: number;
  /** and number of items. */
  readonly items: number;
  /** Items in the first call for a range of buckets, to compare with the overrun of the range before. */
  readonly head: number;
}

const BATCH_LIMITS: BatchLimits = { bytes: 2 * 1024 * 1024, items: 32_768, head: 128 };

/** Whether a map (or this kernel) has no batches: nothing was read, and another way must be used. */
function hasNoBatches({ error, count }: BatchResult): boolean {
  if (error === undefined || count > 0) return false;
  return error.errno === ERRNO.ENOTSUPP || error.errno === ERRNO.EINVAL || error.errno === ERRNO.EOPNOTSUPP;
}

/** A batch that has grown to no more than this many items is reused. */
const MOST_GROWN = 4;

/** Batches that are reused: their memory is most of what a capture needs. */
class Batches {
  readonly #asked = new Set<number>();
  readonly #free: Batch[] = [];

  constructor(readonly map: BpfMap) {}

  take(room: number): Batch {
    this.#asked.add(room);
    const found = this.#free.findIndex((batch) => batch.room === room || (room === 1 && this.#grown(batch)));
    return found < 0 ? this.map.batch(room) : (this.#free.splice(found, 1)[0] as Batch);
  }

  give(batch: Batch): void {
    // A batch that has grown has a size that nothing requests.
    if (this.#asked.has(batch.room) || this.#grown(batch)) this.#free.push(batch);
  }

  /** If one item fills a batch, many buckets make it grow: reuse such a batch. */
  #grown({ room }: Batch): boolean {
    return room <= MOST_GROWN && this.#asked.has(1);
  }
}

/** Passes batches to the sink in order, with a few in flight. */
class Emitter {
  readonly #ahead: number;
  readonly #under: Promise<void>[] = [];
  #error: unknown;

  constructor(
    readonly sink: ItemSink,
    readonly work: Work,
    readonly batches: Batches,
  ) {
    this.#ahead = fewer(BATCHES_AHEAD, batches.map);
  }

  /** Puts the first `count` items of `batch`, which then returns to {@link batches}. */
  async put(batch: Batch, count: number): Promise<void> {
    const done = this.sink
      .put(batch.keys, batch.values, count)
      .catch((error) => {
        this.#error ??= error;
      })
      .then(() => this.batches.give(batch));
    this.#under.push(done);
    this.work.progress(this.sink.count);
    if (this.#under.length >= this.#ahead) await this.#under.shift();
    if (this.#error !== undefined) throw this.#error;
  }

  async end(): Promise<void> {
    await Promise.all(this.#under);
    if (this.#error !== undefined) throw this.#error;
  }
}

/** Items of this map per call: one if items are long, because a bucket that holds more makes the batch grow. */
function room(map: BpfMap, limits: BatchLimits = BATCH_LIMITS): number {
  const fit = Math.floor(limits.bytes / (map.keySize + map.valueStride));
  return Math.max(1, Math.min(limits.items, fit));
}

/** `usual` items, or fewer if they are long, so that they take no more memory than usual. */
function fewer(usual: number, map: BpfMap): number {
  return Math.max(1, Math.floor(usual * Math.min(1, BATCH_LIMITS.bytes / (map.keySize + map.valueStride))));
}

// ---------------------------------------------------------------------------------------------------
// The hash family: the cursor is a bucket, and a batch contains whole buckets

/** The result of one call. */
interface BatchRead {
  /** Calls of one range that follow each other may share it. */
  readonly batch: Batch;
  /** Place of the first item. */
  readonly from: number;
  readonly count: number;
  /** The next bucket; Infinity at the end of the map. */
  readonly reached: number;
}

/** A range of buckets with one reader. */
interface BucketRange {
  readonly from: number;
  /** Where it should end; the last call may overrun. */
  to: number;
  readonly runs: BatchRead[];
  readonly done: Promise<void>;
}

/** Reads hash tables, with several readers if the map is large. */
export async function readBuckets(
  map: BpfMap,
  sink: ItemSink,
  work: Work,
  limits: BatchLimits = BATCH_LIMITS,
): Promise<Report> {
  const batches = new Batches(map);
  const emitter = new Emitter(sink, work, batches);
  const cursor = map.cursor();
  const batch = map.batch(limits.first);
  const first = map.lookupBatch(cursor, batch);
  if (hasNoBatches(first)) return readKeys(map, sink, work);
  if (first.error) throw first.error;
  await emitter.put(batch, first.count);
  if (!first.end) {
    const position = cursor.position as number;
    await new Buckets(emitter, limits, { items: first.count, buckets: position }).read();
  }
  await emitter.end();
  return FULL;
}

/**
 * Reads what follows the first batch of a hash table in ranges of buckets, several at a time.
 *
 * The end of a batch cannot be known beforehand, so a range overruns its border by some items. These are
 * found again in the next range and cut: by key, not by position, because the order within a bucket
 * changes when an item is updated.
 */
class Buckets {
  readonly #room: number;
  readonly #head: number;
  readonly #readers: number;
  readonly #ahead: number;
  /** Number of buckets as far as we know; only the kernel knows where the map ends. */
  readonly #buckets: number;
  /** Ranges that were started and not yet put, in order. */
  readonly #ranges: BucketRange[] = [];
  #next: number;
  #running = 0;

  readonly batches: Batches;
  readonly map: BpfMap;

  constructor(
    readonly emitter: Emitter,
    limits: BatchLimits,
    /** What was read so far. */
    private readonly known: { items: number; buckets: number },
  ) {
    this.batches = emitter.batches;
    const { map } = emitter.batches;
    this.map = map;
    this.#room = room(map, limits);
    this.#head = Math.min(limits.head, this.#room);
    this.#readers = fewer(READERS, map);
    this.#ahead = fewer(BATCHES_AHEAD, map);
    this.#buckets = 2 ** Math.ceil(Math.log2(map.maxEntries));
    this.#next = known.buckets;
  }

  /** Average number of items in a bucket so far. */
  get #density(): number {
    return Math.max(this.known.items / this.known.buckets, 1e-9);
  }

  async read(): Promise<void> {
    this.map.sys.spreadPool?.();
    this.#begin();
    for (;;) {
      const [range] = this.#ranges;
      if (range === undefined) return;
      await range.done;
      this.#begin();
      await this.#put(range);
      this.#ranges.shift();
      this.#begin();
    }
  }

  /** Starts ranges until every reader has one. */
  #begin(): void {
    const [readers, most] = [this.#readers, this.#readers + this.#ahead];
    while (this.#running < readers && this.#ranges.length < most && this.#next < Infinity) {
      const from = this.#next;
      const size = Math.max(1, Math.floor((0.9 * this.#room) / this.#density));
      // The last range has no border: whatever end we assume, the kernel knows the real one.
      const to = from + size >= this.#buckets ? Infinity : from + size;
      this.#next = to;
      this.#running++;
      const runs: BatchRead[] = [];
      const done = this.#readRange(from, to, runs).finally(() => {
        this.#running--;
      });
      // Awaited in its turn; until then a failure must not count as unhandled.
      done.catch(() => {});
      this.#ranges.push({ from, to, runs, done });
    }
  }

  async #readRange(from: number, to: number, runs: BatchRead[]): Promise<void> {
    const cursor = this.map.cursor(from);
    let at = from;
    let batch = this.batches.take(this.#room);
    let held = 0;
    const renew = () => {
      batch = this.batches.take(this.#room);
      held = 0;
    };
    while (at < to) {
      const want = Math.min(runs.length === 0 ? this.#head : this.#room, this.#want(to - at, runs.length));
      if (held + want > batch.room) renew();
      const result = await this.map.lookupBatchAsync(cursor, batch, want, held);
      if (result.error?.errno === ERRNO.ENOSPC && held > 0) {
        renew();
        continue;
      }
      if (result.error) throw result.error;
      at = result.end ? Infinity : (cursor.position as number);
      runs.push({ batch, from: held, count: result.count, reached: at });
      held += result.count;
    }
    if (at === Infinity) return;
    this.known.items += runs.reduce((sum, { count }) => sum + count, 0);
    this.known.buckets += at - from;
  }

  /** Items to request with `left` buckets left, so that a range's last call overruns its border by little. */
  #want(left: number, calls: number): number {
    const expected = left * this.#density;
    // Three standard deviations: of the items there, and of what is known of their density.
    const spread = 3 * Math.sqrt(expected + expected ** 2 / Math.max(1, this.known.items));
    const want = calls <= 2 && expected > 6 * spread ? Math.floor(expected - spread) : Math.ceil(expected) + 16;
    return Math.max(1, want);
  }

  async #put(range: BucketRange): Promise<void> {
    const last = range.runs.at(-1);
    if (last === undefined) return;
    const keep = last.reached > range.to ? await this.#cut(range, last) : last.count;
    for (const [i, { batch, from, count }] of range.runs.entries()) {
      if (range.runs[i + 1]?.batch !== batch)
        await this.emitter.put(batch, from + (batch === last.batch ? keep : count));
    }
  }

  /** The items of a range's last call that are not in the next range. */
  async #cut(range: BucketRange, last: BatchRead): Promise<number> {
    for (;;) {
      const next = this.#ranges[1];
      if (next === undefined) {
        // The next range has not started yet: start it where this one ended.
        this.#next = Math.max(this.#next, last.reached);
        return last.count;
      }
      await next.done;
      if (next.to > last.reached) return this.#before(next, last);
      // This range already read all of it.
      for (const batch of new Set(next.runs.map(({ batch }) => batch))) this.batches.give(batch);
      this.#ranges.splice(1, 1);
      range.to = next.to;
      if (range.to >= last.reached) return last.count;
      this.#begin();
    }
  }

  /** The number of items of `last` before the first that `next` also has. */
  #before(next: BucketRange, last: BatchRead): number {
    const size = this.map.keySize;
    const read = next.runs.slice(0, 1 + next.runs.findIndex(({ reached }) => reached >= last.reached));
    // A filter first, because nearly all of these items are before the border: it never overlooks a key.
    const hash = new QuickHash();
    const filter = new KeyFilter(2 * read.reduce((sum, { count }) => sum + count, 0), 16);
    for (const { batch, from, count } of read) {
      for (let i = from; i < from + count; i++) filter.add(hash.of(batch.keys, i * size, size));
    }
    const { keys } = last.batch;
    for (let i = 0; i < last.count; i++) {
      const at = (last.from + i) * size;
      if (!filter.has(hash.of(keys, at, size))) continue;
      const key = keys.subarray(at, at + size);
      if (read.some(({ batch, from, count }) => hasKey(batch.keys.subarray(from * size, (from + count) * size), key)))
        return i;
    }
    return last.count;
  }
}

/** Whether `key` is one of `keys`. */
function hasKey(keys: Buffer, key: Uint8Array): boolean {
  let at = keys.indexOf(key);
  while (at >= 0 && at % key.length !== 0) at = keys.indexOf(key, at + 1);
  return at >= 0;
}

// ---------------------------------------------------------------------------------------------------
// Arrays: the cursor is the last index read, and every index has a value

/** Reads arrays, with several readers if the map is large; through its memory if it can be mapped. */
export async function readIndexes(map: BpfMap, sink: ItemSink, work: Work): Promise<Report> {
  if (map.long) return readEachIndex(map, sink, work);
  const batches = new Batches(map);
  const emitter = new Emitter(sink, work, batches);
  const cursor = map.cursor();
  const batch = map.batch();
  const first = map.lookupBatch(cursor, batch);
  if (hasNoBatches(first)) return readEachIndex(map, sink, work);
  if (first.error) throw first.error;
  await emitter.put(batch, first.count);
  const step = room(map);
  const readers = fewer(READERS, map);
  if (first.count < map.maxEntries) map.sys.spreadPool?.();
  const reading: Promise<{ batch: Batch; count: number }>[] = [];
  let from = first.count;
  while (from < map.maxEntries || reading.length > 0) {
    while (from < map.maxEntries && reading.length < readers) {
      const to = Math.min(map.maxEntries, from + step);
      const part = readSlice(map, batches.take(step), from, to);
      part.catch(() => {});
      reading.push(part);
      from = to;
    }
    const { batch, count } = (await reading.shift()) as { batch: Batch; count: number };
    await emitter.put(batch, count);
  }
  await emitter.end();
  return FULL;
}

/** Reads arrays in which some indexes have no value, one batch after the other. */
export async function readSlots(map: BpfMap, sink: ItemSink, work: Work): Promise<Report> {
  const batch = map.batch();
  const cursor = map.cursor();
  for (let begun = false; ; begun = true) {
    const result = map.lookupBatch(cursor, batch);
    // Linux 5.10 has batches for arrays, but not for arrays of maps.
    if (!begun && hasNoBatches(result)) return readEachIndex(map, sink, work);
    const { count, end, error } = result;
    if (error) throw error;
    await sink.put(batch.keys, batch.values, count);
    work.progress(sink.count);
    if (end || cursor.position === map.maxEntries - 1) return FULL;
  }
}

/** Reads indexes `from` to `to - 1`. */
async function readSlice(map: BpfMap, batch: Batch, from: number, to: number) {
  // Never start after the last index: that would restart at the map's beginning.
  const result = await map.lookupBatchAsync(map.cursor(from - 1), batch, to - from);
  if (result.error) throw result.error;
  if (result.count !== to - from) {
    throw new Error(`${map.subject}: ${result.count} of the indexes ${from} to ${to - 1}`);
  }
  return { batch, count: result.count };
}

async function readEachIndex(map: BpfMap, sink: ItemSink, work: Work): Promise<Report> {
  const items = new Collector(map, sink, work);
  const key = Buffer.alloc(4);
  for (let index = 0; index < map.maxEntries; index++) {
    key.writeUInt32LE(index);
    await items.look(key);
  }
  await items.end();
  return FULL;
}

/** Bytes of a map's memory to map at a time. */
const MAPPED_WINDOW = 64 * 1024 * 1024;

/** Reads an array with BPF_F_MMAPABLE through its memory, where values are round_up(value_size, 8) apart. */
export async function readMemory(map: BpfMap, sink: ItemSink, work: Work): Promise<Report> {
  // The memory exposes fields that only the kernel may see (locks, timers, lists); a batch hides them.
  if ((map.flags & MAP_FLAG.MMAPABLE) === 0 || map.info.btfId !== 0) return readIndexes(map, sink, work);
  const stride = map.memoryStride;
  const step = Math.max(1, Math.floor(MAPPED_WINDOW / stride));
  for (let from = 0; from < map.maxEntries; from += step) {
    const count = Math.min(step, map.maxEntries - from);
    let memory: Mapping;
    try {
      memory = map.mmap({ offset: from * stride, length: count * stride, populate: true });
    } catch (error) {
      // The kernel treats a shared mapping of a read-only fd as private, and maps refuse private mappings.
      if (error instanceof KernelError && from === 0) return readIndexes(map, sink, work);
      throw error;
    }
    try {
      await putMemory(map, sink, memory.bytes, from, count);
    } finally {
      memory.close();
    }
    work.progress(sink.count);
  }
  return FULL;
}

/** Puts `count` values of a mapping, whose first value is that of index `from`. */
async function putMemory(map: BpfMap, sink: ItemSink, memory: Buffer, from: number, count: number): Promise<void> {
  const stride = map.memoryStride;
  const part = room(map);
  for (let done = 0; done < count; done += part) {
    const items = Math.min(part, count - done);
    const keys = new Uint32Array(items);
    for (let i = 0; i < items; i++) keys[i] = from + done + i;
    let values = memory.subarray(done * stride, (done + items) * stride);
    if (stride !== map.valueSize && items > 1) {
      const packed = Buffer.allocUnsafe(items * map.valueSize);
      for (let i = 0; i < items; i++) values.copy(packed, i * map.valueSize, i * stride, i * stride + map.valueSize);
      values = packed;
    }
    await sink.put(Buffer.from(keys.buffer), values, items);
  }
}

// ---------------------------------------------------------------------------------------------------
// Tries: the cursor is the last key read; if that key is deleted, the kernel starts again

/** How often deletions may throw a read back to the beginning. */
const RESTARTS = 1000;

/**
 * Compares two keys of a trie in the kernel's order: a longer prefix before the shorter one that
 * contains it, else by the first bit that differs. Bits after the prefix do not count.
 * (trie_get_next_key: postorder, left before right.)
 */
export function comparePrefixes(keys: Uint8Array, a: number, others: Uint8Array, b: number): number {
  const [one, two] = [prefixLength(keys, a), prefixLength(others, b)];
  const common = Math.min(one, two);
  for (let bit = 0, at = 4; bit < common; bit += 8, at++) {
    const mask = common - bit >= 8 ? 0xff : (0xff00 >> (common - bit)) & 0xff;
    const differ = ((keys[a + at] as number) & mask) - ((others[b + at] as number) & mask);
    if (differ !== 0) return differ;
  }
  return two - one;
}

/** The u32 at the start of a trie's key: the number of bits that count. */
function prefixLength(keys: Uint8Array, at: number): number {
  const byte = (i: number) => keys[at + i] as number;
  return (byte(0) | (byte(1) << 8) | (byte(2) << 16) | (byte(3) << 24)) >>> 0;
}

/** What was read of a trie after some key: ascending, each key once. */
interface Stretch {
  readonly batch: Batch;
  readonly count: number;
  /** Nothing followed. */
  readonly end: boolean;
}

/**
 * Reads tries. The order of keys is known, so anything not after the last key was read before.
 *
 * Each stretch is read twice. If an update replaces a node just as a walk is in it, the walk does not
 * recognise its right sibling and skips all keys below that (trie_get_next_key compares addresses): the
 * other read finds them, unless the same happens there in the same place. So both reads run at once only in different
 * places: the first one is a stretch ahead of the second.
 */
export async function readPrefixes(map: BpfMap, sink: ItemSink, work: Work): Promise<Report> {
  const batches = new Batches(map);
  const emitter = new Emitter(sink, work, batches);
  const walk = new PrefixWalk(map, batches);
  const lastOf = ({ batch, count }: Stretch) => Buffer.from(walk.key(batch, count - 1));
  const opening = walk.behind(undefined);
  if (opening === undefined) return readKeys(map, sink, work);
  if (!opening.end) map.sys.spreadPool?.();
  let one = opening;
  for (let last: Buffer | undefined; ; ) {
    const end = one.end ? undefined : lastOf(one);
    const ahead = end && walk.behindAsync(end);
    // Awaited in its turn; until then a failure must not count as unhandled.
    ahead?.catch(() => {});
    const two = ahead === undefined ? (walk.behind(last) as Stretch) : await walk.behindAsync(last);
    const both = walk.merge(one, two);
    for (const { batch } of [one, two]) if (batch !== both.batch) batches.give(batch);
    if (both.count > 0) last = lastOf(both);
    await emitter.put(both.batch, both.count);
    if (both.end) break;
    const next = await ahead;
    // If the reads differ at the end of the stretch, the next one begins elsewhere than thought.
    if (next !== undefined && end !== undefined && last?.equals(end)) one = next;
    else {
      if (next !== undefined) batches.give(next.batch);
      one = await walk.behindAsync(last);
    }
  }
  await emitter.end();
  return FULL;
}

class PrefixWalk {
  readonly #room: number;
  #restarts = 0;

  constructor(
    readonly map: BpfMap,
    readonly batches: Batches,
  ) {
    this.#room = Math.min(room(map), 4096);
  }

  /** The next items after `last`; undefined if this map has no batches. */
  behind(last: Buffer | undefined): Stretch | undefined {
    const batch = this.batches.take(this.#room);
    const cursor: BatchCursor = this.map.cursor(last);
    for (let position = last; ; ) {
      const result = this.map.lookupBatch(cursor, batch);
      if (last === undefined && hasNoBatches(result)) return undefined;
      const found = this.#stretch(batch, result, last, position);
      if (found.count > 0 || found.end) return found;
      position = found.position;
    }
  }

  /** The same on another thread, where there are batches. */
  async behindAsync(last: Buffer | undefined): Promise<Stretch> {
    const batch = this.batches.take(this.#room);
    const cursor: BatchCursor = this.map.cursor(last);
    for (let position = last; ; ) {
      const found = this.#stretch(batch, await this.map.lookupBatchAsync(cursor, batch), last, position);
      if (found.count > 0 || found.end) return found;
      position = found.position;
    }
  }

  /** What a call found after `last`: nothing while it was thrown back and passes what was read before. */
  #stretch(batch: Batch, result: BatchResult, last: Buffer | undefined, position: Buffer | undefined) {
    if (result.error) throw result.error;
    const from = result.count === 0 ? position : Buffer.from(this.key(batch, result.count - 1));
    const count = this.#sift(batch, result.count, last, position);
    return { batch, count, end: result.end, position: from };
  }

  /** The key of an item. */
  key({ keys }: Batch, index: number): Buffer {
    return keys.subarray(index * this.map.keySize, (index + 1) * this.map.keySize);
  }

  /**
   * Moves the items that ascend after `last` to the start of the batch; returns their number.
   * @param position the key before the batch, to notice that the kernel started again
   */
  #sift({ keys, values }: Batch, count: number, last: Buffer | undefined, position: Buffer | undefined): number {
    const { keySize, valueStride } = this.map;
    let kept = 0;
    let [passed, passedAt] = [position, 0];
    let [before, beforeAt] = [last, 0];
    for (let i = 0, at = 0; i < count; i++, at += keySize) {
      const order = passed === undefined ? 1 : comparePrefixes(keys, at, passed, passedAt);
      if (order <= 0 && ++this.#restarts > RESTARTS) throw changesTooFast(this.map);
      const same = passed === before && passedAt === beforeAt;
      const behind = same || before === undefined ? order > 0 : comparePrefixes(keys, at, before, beforeAt) > 0;
      [passed, passedAt] = [keys, at];
      if (!behind) continue;
      beforeAt = passedAt = kept * keySize;
      before = keys;
      if (kept !== i) {
        keys.copy(keys, beforeAt, at, at + keySize);
        values.copy(values, kept * valueStride, i * valueStride, (i + 1) * valueStride);
      }
      kept++;
    }
    return kept;
  }

  /** Merges the items of two reads from one place, as far as both of them went. */
  merge(one: Stretch, two: Stretch): Stretch {
    const { keySize, valueStride } = this.map;
    const { keys } = one.batch;
    const same =
      one.count === two.count && keys.compare(two.batch.keys, 0, one.count * keySize, 0, one.count * keySize) === 0;
    const end = one.end && two.end;
    if (same) return { batch: one.batch, count: one.count, end };
    const batch = this.map.batch(one.count + two.count);
    let count = 0;
    for (let i = 0, j = 0; ; ) {
      // Beyond the end of one read, only the other knows what follows.
      if (i === one.count && !one.end) break;
      if (j === two.count && !two.end) break;
      if (i === one.count && j === two.count) break;
      const order =
        i === one.count ? 1 : j === two.count ? -1 : comparePrefixes(keys, i * keySize, two.batch.keys, j * keySize);
      const [from, at] = order <= 0 ? [one.batch, i] : [two.batch, j];
      from.keys.copy(batch.keys, count * keySize, at * keySize, (at + 1) * keySize);
      from.values.copy(batch.values, count * valueStride, at * valueStride, (at + 1) * valueStride);
      count++;
      if (order <= 0) i++;
      if (order >= 0) j++;
    }
    return { batch, count, end };
  }
}

function changesTooFast(map: BpfMap): BpfimgError {
  return new BpfimgError('conflict', 'it changes faster than it can be read', { subject: map.subject });
}

// ---------------------------------------------------------------------------------------------------
// One by one: kernels before 5.6, and types without batches

/** Collects single items into batches for the sink. */
class Collector {
  readonly #keys: Buffer;
  readonly #values: Buffer;
  readonly #room: number;
  #held = 0;

  constructor(
    readonly map: BpfMap,
    readonly sink: ItemSink,
    readonly work: Work,
  ) {
    this.#room = Math.min(room(map), 4096);
    this.#keys = Buffer.allocUnsafe(this.#room * map.keySize);
    this.#values = this.#room === 1 ? map.valueRoom : Buffer.allocUnsafe(this.#room * map.valueStride);
  }

  /** Looks the value of `key` up; false when there is none. */
  async look(key: Uint8Array): Promise<boolean> {
    const { keySize, valueStride } = this.map;
    const at = this.#held * valueStride;
    const place = this.#room === 1 ? this.#values : this.#values.subarray(at, at + valueStride);
    if (this.map.lookup(key, 0, place) === undefined) return false;
    this.#keys.set(key, this.#held * keySize);
    if (++this.#held === this.#room) await this.end();
    return true;
  }

  async end(): Promise<void> {
    await this.sink.put(this.#keys, this.#values, this.#held);
    this.#held = 0;
    this.work.progress(this.sink.count);
  }
}

/** How often the keys are walked until nothing new turns up. */
const PASSES = 5;

/**
 * Reads with GET_NEXT_KEY and LOOKUP_ELEM. While the map changes, the walk starts again if its key was
 * deleted, returns keys twice, and misses some that stay. So keys are remembered (only this way needs memory
 * that grows with the map), and walked again until a walk finds nothing new.
 */
export async function readKeys(map: BpfMap, sink: ItemSink, work: Work): Promise<Report> {
  const items = new Collector(map, sink, work);
  const seen = new Set<string>();
  for (let pass = 1; pass <= PASSES; pass++) {
    const known = seen.size;
    const whole = await walkKeys(map, seen, items);
    await items.end();
    if (whole && (pass > 1 || seen.size === 0) && seen.size === known) return FULL;
  }
  return { kind: 'partial', why: 'it changed while it was read key by key, so items may be missing' };
}

/** One walk over the keys; false if it was abandoned because it made no progress. */
async function walkKeys(map: BpfMap, seen: Set<string>, items: Collector): Promise<boolean> {
  const key = Buffer.alloc(map.keySize);
  // More repeats than there are keys: it was thrown back again and again.
  let patience = seen.size + 1000;
  // Keys without a value: as many as there are slots, or an endless stream of keys deleted meanwhile.
  let absent = map.maxEntries + 1000;
  for (let more = map.nextKey(undefined, key); more !== undefined; more = map.nextKey(key, key)) {
    const name = key.toString('latin1');
    if (seen.has(name)) {
      if (--patience < 0) return false;
      continue;
    }
    if (!(await items.look(key))) {
      if (--absent < 0) return false;
      continue;
    }
    seen.add(name);
    patience++;
  }
  return true;
}
