/** The items of a dump, as a replay reads them. */
import { cpuStride, viewOf } from '../bytes.js';
import type { MapData } from '../dump/model.js';
import { BpfimgError } from '../errors.js';
import type { Input } from '../io/input.js';
import { pause } from '../io/pause.js';
import type { BpfMap } from '../kernel/map.js';
import type { CaptureWork, ItemSink, ItemSource, MapType, Plugin } from '../maptype.js';

/** No items, of a map without data. */
export function noItems(keySize: number, valueSize: number): ItemSource {
  return { count: 0, keySize, valueSize, read: async () => {} };
}

/** The items of one data entry, whose keys and values are `keySize` and `valueSize` bytes. */
export function imageItems(input: Input, data: MapData, keySize: number, valueSize: number): ItemSource {
  const keysAt = data.entry.extraAt;
  const valuesAt = keysAt + data.keysBytes;
  return {
    count: data.count,
    keySize,
    valueSize,
    async read(from, count, keys, values) {
      await readFully(input, keys.subarray(0, count * keySize), keysAt + from * keySize);
      await readFully(input, values.subarray(0, count * valueSize), valuesAt + from * valueSize);
    },
    async readPart(item, key, offset, value) {
      await readFully(input, key, keysAt + item * keySize);
      await readFully(input, value, valuesAt + item * valueSize + offset);
    },
  };
}

/** Bytes of items to read at once. */
const LOOKED_AT = 1024 * 1024;

/** Some items of a source, one after the other: `count` of them, of which `from` is the first. */
export interface Step {
  readonly from: number;
  readonly count: number;
  readonly keys: Buffer;
  readonly values: Buffer;
}

/** Items that {@link stepsOf} reads at a time. */
export function stepOf({ count, keySize, valueSize }: ItemSource): number {
  return Math.max(1, Math.min(count, Math.floor(LOOKED_AT / Math.max(1, keySize + valueSize))));
}

/** Reads all items, some at a time, into buffers that are used again. */
export async function* stepsOf(items: ItemSource, step = stepOf(items)): AsyncGenerator<Step> {
  const { count, keySize, valueSize } = items;
  const [keys, values] = [Buffer.alloc(step * keySize), Buffer.alloc(step * valueSize)];
  for (let from = 0; from < count; from += step) {
    const some = Math.min(step, count - from);
    await items.read(from, some, keys, values);
    yield { from, count: some, keys, values };
    await pause();
  }
}

/** Reads the items of a live map as its plugin captures them. */
export async function readLive(map: BpfMap, plugin: Plugin, type: MapType, sink: ItemSink): Promise<void> {
  const work: CaptureWork = {
    type,
    subject: map.subject,
    drain: 'no',
    folder: '/',
    progress: () => {},
    follow: () => undefined,
    innerMaps: () => {},
    atEnd: () => {},
    keep: () => {},
  };
  await plugin.capture?.(map, sink, work);
}

/**
 * The key of the first item for which `wanted` is true; undefined if there is none.
 * @param wanted may use the key until it returns
 * @param matters if given, an item counts only if this is true for some part of its value
 */
export async function findKey(
  items: ItemSource,
  wanted: (key: Buffer) => boolean,
  matters?: (part: Buffer) => boolean,
): Promise<Buffer | undefined> {
  const { count, keySize, valueSize, readPart } = items;
  // Values may be long, and most are never looked at.
  const held = readPart === undefined ? valueSize : 0;
  const step = Math.max(1, Math.min(count, Math.floor(LOOKED_AT / (keySize + held + 1))));
  const [keys, values] = [Buffer.alloc(step * keySize), Buffer.alloc(step * held)];
  for (let done = 0; done < count; done += step) {
    const some = Math.min(step, count - done);
    await items.read(done, some, keys, values);
    for (let i = 0; i < some; i++) {
      const key = keys.subarray(i * keySize, (i + 1) * keySize);
      if (!wanted(key)) continue;
      if (matters === undefined) return key;
      const own = values.subarray(i * held, (i + 1) * held);
      if (readPart === undefined ? matters(own) : await somePart(items, done + i, matters)) return key;
    }
    await pause();
  }
  return undefined;
}

/** Whether `matters` is true for some part of an item's value, read in pieces. */
async function somePart(items: ItemSource, item: number, matters: (part: Buffer) => boolean): Promise<boolean> {
  const { keySize, valueSize } = items;
  const [key, part] = [Buffer.alloc(keySize), Buffer.alloc(Math.min(valueSize, LOOKED_AT))];
  for (let at = 0; at < valueSize; at += part.length) {
    const piece = part.subarray(0, valueSize - at);
    await items.readPart?.(item, key, at, piece);
    if (matters(piece)) return true;
    await pause();
  }
  return false;
}

async function readFully(input: Input, into: Uint8Array, position: number): Promise<void> {
  for (let got = 0; got < into.length; ) {
    const count = await input.read(got === 0 ? into : into.subarray(got), position + got);
    if (count === 0)
      throw new BpfimgError('badImage', 'it became shorter while it was being read', { subject: input.name });
    got += count;
  }
}

/** What to do with per-CPU values on a machine with another number of possible CPUs. */
export type CpuFold = 'first' | 'sum' | 'spread';

/** Bytes of an image's values to fold at a time; at least one item. */
const FOLD_BYTES = 1024 * 1024;

/**
 * Converts per-CPU items from `from` CPUs to `to` CPUs.
 *
 * - `first`: CPU n keeps its value if both machines have it; further CPUs start with zero.
 * - `sum`: CPU 0 gets the sum over all CPUs, the others zero.
 * - `spread`: CPU n's value is added to that of CPU n modulo `to`.
 *
 * Sums are of little-endian words of 8 bytes (4 if value_size is not a multiple of 8), and wrap.
 * @param valueSize size in bytes of one CPU's value
 * @throws BpfimgError `unsupported` for sums of values that do not consist of words
 */
export function foldCpus(items: ItemSource, valueSize: number, from: number, to: number, how: CpuFold): ItemSource {
  const stride = cpuStride(valueSize);
  const word = valueSize % 8 === 0 ? 8 : 4;
  if (how !== 'first' && valueSize % word !== 0) {
    throw new BpfimgError(
      'unsupported',
      `values of ${valueSize} bytes are not 4- or 8-byte numbers; --percpu first keeps them`,
      { subject: `--percpu ${how}` },
    );
  }
  const { count, keySize } = items;
  const own = stride * from;
  const step = Math.max(1, Math.floor(FOLD_BYTES / own));
  const fold = (source: Uint8Array, some: number, values: Uint8Array) => {
    values.fill(0, 0, some * stride * to);
    const [a, b] = [viewOf(source), viewOf(values)];
    for (let item = 0; item < some; item++) {
      for (let cpu = 0; cpu < from; cpu++) {
        const at = (item * from + cpu) * stride;
        if (how === 'first') {
          if (cpu < to) values.set(source.subarray(at, at + stride), (item * to + cpu) * stride);
          continue;
        }
        const sum = (item * to + (how === 'sum' ? 0 : cpu % to)) * stride;
        for (let i = 0; i < valueSize; i += word) addNumber(b, sum + i, a, at + i, word);
      }
    }
  };
  return {
    count,
    keySize,
    valueSize: stride * to,
    async read(first, some, keys, values) {
      const source = Buffer.alloc(Math.min(some, step) * own);
      for (let done = 0; done < some; done += step) {
        const part = Math.min(step, some - done);
        await items.read(first + done, part, keys.subarray(done * keySize), source);
        fold(source, part, values.subarray(done * stride * to));
      }
    },
  };
}

/** Adds a little-endian number of 1, 2, 4 or 8 bytes to another, which wraps; returns whether that changes it. */
export function addNumber(to: DataView, at: number, more: DataView, from: number, size: number): boolean {
  if (size === 8) {
    const number = more.getBigUint64(from, true);
    to.setBigUint64(at, to.getBigUint64(at, true) + number, true);
    return number !== 0n;
  }
  if (size === 4) {
    const number = more.getUint32(from, true);
    to.setUint32(at, to.getUint32(at, true) + number, true);
    return number !== 0;
  }
  if (size === 2) {
    const number = more.getUint16(from, true);
    to.setUint16(at, to.getUint16(at, true) + number, true);
    return number !== 0;
  }
  const number = more.getUint8(from);
  to.setUint8(at, to.getUint8(at) + number);
  return number !== 0;
}
