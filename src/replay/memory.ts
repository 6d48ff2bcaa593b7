/** How much memory maps need, and whether there is as much. */
import { cpuStride, roundUp8, SMALLEST_PAGE } from '../bytes.js';
import { MAP_FLAG, type MapShape } from '../kernel/flags.js';
import { type Available, memoryAvailable } from '../kernel/memory.js';
import type { MapType } from '../maptype.js';
import type { PlannedMap } from './plan.js';

/** Size of an element of a hash table besides its key and value (struct htab_elem, list links). */
const ELEMENT = 48;
const BUCKET = 16;
/** Size of a node of a trie, besides its key and value, plus an intermediate node. */
const NODE = 2 * 40;

/**
 * Rough amount of kernel memory that a fresh map needs, in bytes.
 * @param count items to be put in: these are what maps without preallocation pay for
 * @param cpus possible CPUs
 */
export function memoryNeed(shape: MapShape, type: MapType, count: number, cpus: number): number {
  const { keySize, valueSize, maxEntries, flags } = shape;
  const value = type.perCpu === true ? 8 + cpuStride(valueSize) * cpus : roundUp8(valueSize);
  if (type.dense === true) return maxEntries * value;
  if (type.key === 'index') return maxEntries * 8;
  // Its pages are allocated when they are touched.
  if (type.imageItem?.value === 'page') return count * SMALLEST_PAGE;
  if (type.key === 'none') return maxEntries * Math.max(1, valueSize);
  if (type.key === 'fd') return 0;
  if (type.key === 'prefix') return count * (NODE + roundUp8(keySize) + value);
  const element = ELEMENT + roundUp8(keySize) + value;
  const slots = type.grows === true ? 2 * count : maxEntries;
  const buckets = BUCKET * 2 ** Math.ceil(Math.log2(Math.max(1, slots)));
  const held = (flags & MAP_FLAG.NO_PREALLOC) !== 0 ? count : maxEntries + cpus;
  return held * element + buckets;
}
/** How much memory maps need, and whether there is as much. */

/** Share of the available memory that a replay may use. */
const SHARE = 0.8;

/** One line if `plans` need more memory than they should; undefined if they fit. */
export function memoryShort(
  plans: readonly PlannedMap[],
  available: Available = memoryAvailable(),
): string | undefined {
  const need = plans.reduce((sum, plan) => sum + plan.memory, 0);
  if (need <= available.bytes * SHARE) return undefined;
  const mib = (bytes: number) => `${Math.ceil(bytes / 2 ** 20).toLocaleString('en')} MiB`;
  const [largest] = [...plans].sort((a, b) => b.memory - a.memory);
  return (
    `about ${mib(need)} of kernel memory needed (${largest?.subject}: ${mib(largest?.memory ?? 0)}), ` +
    `but a replay uses at most ${SHARE * 100} % of the ${mib(available.bytes)} of ${available.limit}`
  );
}
