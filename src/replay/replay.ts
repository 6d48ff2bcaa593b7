/**
 * Fresh maps from a dump: created, filled, compared, frozen, pinned, in this order. If one map fails,
 * everything this run has created is gone again.
 */
import { hex } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import { pause } from '../io/pause.js';
import { KernelError } from '../kernel/error.js';
import { BpfMap } from '../kernel/map.js';
import type { Sys } from '../kernel/sys.js';
import { FULL, type ItemSource, type Report } from '../maptype.js';
import { type Available, memoryAvailable } from './memory.js';
import { PinFolder } from './pins.js';
import type { PlannedMap } from './plan.js';

/** What is being done, for whoever watches. */
export interface Doing {
  readonly map: string;
  readonly items: number;
  readonly most: number;
  /** Bytes of an item. */
  readonly itemSize: number;
}

export interface ReplayOptions {
  /** Create maps though they need more memory than there seems to be. */
  readonly force?: boolean;
  /** Read every item back and compare. */
  readonly verify?: boolean;
  /** Folder on a BPF file system for a pin of each map. */
  readonly pin?: string | undefined;
  readonly progress?: (doing: Doing) => void;
}

/** A fresh map, open. */
export interface FreshMap {
  readonly plan: PlannedMap;
  readonly map: BpfMap;
  readonly pin: string | undefined;
  readonly report: Report;
}

/** Share of the memory there is that a replay may take. */
const SHARE = 0.8;

/** One line when `plans` need more memory than they should take, undefined when they fit. */
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
    `${mib(available.bytes)} of ${available.limit}; at most ${SHARE * 100} % of it is taken`
  );
}

/**
 * Creates and fills the maps of `plans`. The caller owns them, and closes them; pins hold them longer.
 * @throws BpfimgError, KernelError: the map, the item's key in hex, the kernel's reason
 */
export async function replay(sys: Sys, plans: readonly PlannedMap[], options: ReplayOptions = {}): Promise<FreshMap[]> {
  const short = options.force === true ? undefined : memoryShort(plans);
  if (short !== undefined) throw new BpfimgError('unsupported', `${short}; --force tries all the same`);
  const pins = options.pin === undefined ? undefined : PinFolder.open(options.pin, sys.proc);
  const made: { plan: PlannedMap; map: BpfMap; report: Report }[] = [];
  try {
    for (const plan of plans) {
      const map = named(plan, undefined, () => BpfMap.create(sys, plan.spec));
      const one = { plan, map, report: FULL };
      made.push(one);
      one.report = await named(plan, map, () => fillMap(plan, map, options));
    }
    // Pins last of all, when nothing can fail any more but pinning itself.
    const fresh = made.map(({ plan, map, report }) => {
      const pin = named(plan, map, () => pins?.add(plan.spec.name, plan.mapId, (path) => map.pin(path)));
      return { plan, map, report, pin };
    });
    pins?.keep();
    return fresh;
  } catch (error) {
    for (const { map } of made) map.close();
    pins?.undo();
    throw error;
  }
}

async function fillMap(plan: PlannedMap, map: BpfMap, options: ReplayOptions): Promise<Report> {
  const { items, plugin, type } = plan;
  if (plugin.replay === undefined) {
    throw new BpfimgError('unsupported', `${map.subject}: bpfimg cannot replay ${type.name} maps yet`);
  }
  const itemSize = items.keySize + items.valueSize;
  const progress = (done: number) => {
    options.progress?.({ map: plan.subject, items: done, most: items.count, itemSize });
  };
  const filled = await plugin.replay(map, items, { type, progress });
  if (options.verify === true && filled.kind === 'full') await compareItems(map, items);
  // Last, for nothing can be written afterwards.
  if (plan.frozen) map.freeze();
  const lacks = [...plan.lacks, ...(filled.kind === 'full' ? [] : [filled.why])];
  return lacks.length === 0 ? FULL : { kind: 'partial', why: lacks.join('; ') };
}

/** Runs `work`; errors about the fresh map become errors about the map of the dump. */
function named<T>(plan: PlannedMap, map: BpfMap | undefined, work: () => T): T {
  const rename = (error: unknown): never => {
    if (error instanceof KernelError) {
      const rest =
        map !== undefined && error.subject.startsWith(map.subject) ? error.subject.slice(map.subject.length) : '';
      throw new KernelError(plan.subject + rest, error.call, error.errno, error.reason);
    }
    if (error instanceof BpfimgError && map !== undefined && error.message.startsWith(map.subject)) {
      throw new BpfimgError(error.kind, plan.subject + error.message.slice(map.subject.length));
    }
    throw error;
  };
  try {
    const result = work();
    return result instanceof Promise ? (result.catch(rename) as T) : result;
  } catch (error) {
    return rename(error);
  }
}

/** Items looked at before signals are heard. */
const COMPARED_AT_ONCE = 4096;

/**
 * Looks every item up again.
 * @throws BpfimgError for the first that is missing or has another value
 */
async function compareItems(map: BpfMap, items: ItemSource): Promise<void> {
  const batch = map.batch(Math.min(COMPARED_AT_ONCE, Math.max(1, items.count)));
  const found = Buffer.alloc(map.valueStride);
  for (let done = 0; done < items.count; done += batch.room) {
    const count = Math.min(batch.room, items.count - done);
    await items.read(done, count, batch.keys, batch.values);
    for (let i = 0; i < count; i++) {
      const key = batch.keys.subarray(i * map.keySize, (i + 1) * map.keySize);
      const there = map.lookup(key, 0, found) !== undefined;
      const at = i * map.valueStride;
      if (there && found.compare(batch.values, at, at + map.valueStride) === 0) continue;
      const what = there ? 'has another value than in the image' : 'is not there';
      throw new BpfimgError('io', `${map.subject}, item ${hex(key)}: read back, it ${what}`);
    }
    await pause();
  }
}
