/**
 * Fresh maps from a dump: created, filled, compared, frozen and pinned, in this order. If one map fails,
 * everything that this run created is removed.
 */
import { BpfimgError } from '../errors.js';
import { pause, signalsHandled } from '../io/pause.js';
import { KernelError } from '../kernel/error.js';
import { BpfMap, type MapSpec } from '../kernel/map.js';
import type { Available } from '../kernel/memory.js';
import { ERRNO, type Sys } from '../kernel/sys.js';
import { type Doing, FULL, type ReplayWork, type Report, type Span } from '../maptype.js';
import { during, phase } from '../phases.js';
import { compareItems } from './compare.js';
import { noReplay } from './foresight.js';
import { memoryShort } from './memory.js';
import { type PinPlace, Pins, type PinsOfMap } from './pins.js';
import type { PlannedMap } from './plan.js';
import { kernelFields, ReplayTypes } from './types.js';

/** How to create and fill the maps. */
export interface ReplayOptions {
  /** Create maps even if they seem to need more memory than there is. */
  readonly force?: boolean;
  /**
   * What to do with items that refer to what this host does not have; `fail` by default. `skip-files`
   * skips only those that refer to open files of processes.
   */
  readonly unresolved?: 'fail' | 'skip' | 'skip-files';
  /** Fail if the kernel refuses a map's types; otherwise the map is created without them. */
  readonly requireBtf?: boolean;
  /** Read every item back and compare. */
  readonly verify?: boolean;
  /** Folder on a BPF file system for a pin of each map. */
  readonly pin?: string | undefined;
  /** Pin each map where it was pinned when it was captured. */
  readonly pinBack?: boolean;
  /** Rename maps whose names are taken in that folder; otherwise that is an error. */
  readonly renameTaken?: boolean;
  /** Exchange the maps whose pins are taken; the old ones are kept, see swap.ts. */
  readonly swap?: boolean;
  /** Called with each map that is not supported here, and why; the map is left out. Without it, that is an error. */
  readonly skip?: ((plan: PlannedMap, why: string) => void) | undefined;
  /** Called with the maps before their pins become permanent; if it fails, so does the replay. */
  readonly done?: (fresh: readonly FreshMap[]) => Promise<void>;
  /** Available memory; tests have their own. */
  readonly available?: Available;
  readonly progress?: (doing: Doing) => void;
}

/** A fresh map, open. */
export interface FreshMap extends PinsOfMap {
  readonly plan: PlannedMap;
  readonly map: BpfMap;
  readonly report: Report;
  /** Bytes of each value that only the kernel writes. */
  readonly hidden: readonly Span[];
}

/** Keys that are counted before others get their turn. */
const KEYS_AT_ONCE = 4096;

/** Where the options say that maps are pinned; undefined for nowhere. */
export function pinPlace({ pin, pinBack, renameTaken, swap }: ReplayOptions): PinPlace | undefined {
  if (pin === undefined && pinBack !== true) return undefined;
  return { folder: pin, taken: swap === true ? 'swap' : renameTaken === true ? 'rename' : 'fail' };
}

/**
 * Creates and fills the maps of `plans`. The caller owns and closes them; pins keep them alive longer.
 * @throws BpfimgError, KernelError: names the map, the item's key in hex, the kernel's reason
 */
export async function replay(sys: Sys, plans: readonly PlannedMap[], options: ReplayOptions = {}): Promise<FreshMap[]> {
  const unfilled = plans.find(({ plugin }) => plugin.replay === undefined);
  if (unfilled !== undefined && options.skip === undefined) {
    const ways = '--map chooses others, --skip-unsupported leaves it out';
    throw new BpfimgError('unsupported', `${noReplay(unfilled.type)}; ${ways}`, { subject: unfilled.subject });
  }
  const short = options.force === true ? undefined : memoryShort(plans, options.available);
  if (short !== undefined) throw new BpfimgError('unsupported', `${short}; --force tries anyway`);
  const { skip } = options;
  const place = pinPlace(options);
  const pins = place === undefined ? undefined : Pins.open(place, plans, sys);
  const types = new ReplayTypes(sys);
  const made: { plan: PlannedMap; map: BpfMap; hidden: readonly Span[]; report: Report }[] = [];
  const skipped = new Set<number>();
  const make = async (plan: PlannedMap): Promise<void> => {
    const lost = plan.needed.find((id) => skipped.has(id));
    if (lost !== undefined)
      throw new BpfimgError('unsupported', `inner map ${lost} is not supported`, { subject: plan.subject });
    if (plan.plugin.replay === undefined) {
      throw new BpfimgError('unsupported', noReplay(plan.type), { subject: plan.subject });
    }
    const work = workOf(plan, options, (id) => made.find((one) => one.plan.mapId === id)?.map);
    const { map, untyped, hidden } = await during('creating maps', () =>
      createMap(sys, plan, work, types, options.requireBtf === true),
    );
    const one = { plan, map, hidden, report: FULL };
    made.push(one);
    one.report = await asDumpMap(plan, map, () =>
      during('filling maps', () => fillMap(plan, map, work, untyped, options.verify === true ? hidden : undefined)),
    );
  };
  try {
    for (const plan of plans) {
      try {
        await make(plan);
      } catch (error) {
        if (skip === undefined || !isUnsupported(error)) throw error;
        if (made.at(-1)?.plan === plan) made.pop()?.map.close();
        skipped.add(plan.mapId);
        skip(plan, error.textAbout(plan.subject));
      }
    }
    phase('pinning and reporting');
    // Pins come last, when nothing but pinning itself can still fail.
    const fresh = made.map(({ plan, map, hidden, report }) => {
      const made = asDumpMap(plan, map, () => pins?.add(plans.indexOf(plan), (path) => map.pin(path)));
      return { plan, map, hidden, report, pins: made?.pins ?? [], replaced: made?.replaced ?? [] };
    });
    pins?.exchange();
    // Pinning waits for nothing: whoever interrupts it must not find that all was done.
    await signalsHandled();
    await options.done?.(fresh);
    pins?.keep();
    return fresh;
  } catch (error) {
    for (const { map } of made) map.close();
    pins?.undo();
    throw error;
  } finally {
    types.close();
  }
}

/** Whether `error` means that no such map can exist here at all. */
function isUnsupported(error: unknown): error is BpfimgError {
  if (!(error instanceof BpfimgError)) return false;
  const refused = error instanceof KernelError && error.call === 'BPF_MAP_CREATE';
  return error.kind === 'unsupported' || (refused && (error.errno === ERRNO.EINVAL || error.errno === ERRNO.E2BIG));
}

/** A map that was created but not yet filled. */
interface Created {
  readonly map: BpfMap;
  /** Why it has no types although it should. */
  readonly untyped: string | undefined;
  /** Bytes of each value that only the kernel writes. */
  readonly hidden: readonly Span[];
}

/** Creates a map, with its types if the kernel accepts them. */
async function createMap(
  sys: Sys,
  plan: PlannedMap,
  work: ReplayWork,
  types: ReplayTypes,
  required: boolean,
): Promise<Created> {
  const make = (spec: MapSpec) =>
    asDumpMap(plan, undefined, () => (plan.plugin.create ?? BpfMap.create)(sys, spec, work));
  const { btf, facts } = plan;
  const rule = plan.type.create?.btf;
  if (btf === undefined || facts.types === undefined || rule === 'no') {
    return { map: await make(plan.spec), untyped: undefined, hidden: [] };
  }
  const fd = await types.load(btf);
  let problem = fd instanceof BpfimgError ? fd : undefined;
  if (typeof fd === 'number') {
    const { key, value } = facts.types;
    try {
      const map = await make({ ...plan.spec, btf: { fd, keyType: key, valueType: value } });
      const { hidden, locked } = kernelFields(await btf.read(), btf.name, value);
      if (locked) map.lockValues();
      return { map, untyped: undefined, hidden };
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      problem = error;
    }
  }
  if (required || rule === 'required') throw problem;
  return { map: await make(plan.spec), untyped: `without its types: ${problem?.message}`, hidden: [] };
}

/** What the hooks of a map's plugin receive. */
function workOf(plan: PlannedMap, options: ReplayOptions, fresh: ReplayWork['fresh']): ReplayWork {
  const { items, type, facts } = plan;
  const itemSize = items.keySize + items.valueSize;
  const progress = (done: number) => {
    options.progress?.({ map: plan.subject, items: done, most: items.count, itemSize });
  };
  const { subject, needed } = plan;
  const skips = options.unresolved === 'skip' || (options.unresolved === 'skip-files' && type.files === true);
  return { type, subject, facts, needed, unresolved: skips ? 'skip' : 'fail', fresh, progress: progress };
}

async function fillMap(
  plan: PlannedMap,
  map: BpfMap,
  work: ReplayWork,
  untyped: string | undefined,
  verify: readonly Span[] | undefined,
): Promise<Report> {
  const { items, plugin, type } = plan;
  const filled =
    plan.reshaped?.collisions === 'sum'
      ? await (await import('./sum.js')).sumCollisions(map, plan, plan.reshaped.source)
      : ((await plugin.replay?.(map, items, work)) as Report);
  // In a map known to lack items, a comparison finds only that; keys that are file descriptors identify nothing.
  const keyed =
    type.key !== 'none' && type.key !== 'fd' && type.imageItem === undefined && type.holdsReferences !== true;
  if (plan.reshaped?.collisions === 'error' && keyed && type.dense !== true) {
    // An LRU map that lacks a key may also have evicted it: neither is what was asked for.
    const left = await countKeys(map);
    if (left < items.count) {
      const what = `${items.count} keys become ${left}: some are the same without what is left out of them`;
      throw new BpfimgError(
        'conflict',
        `${what}; --on-collision last keeps the last item of each, sum adds their values`,
        {
          subject: plan.subject,
        },
      );
    }
  }
  if (verify !== undefined && filled.kind === 'full' && keyed) {
    await compareItems(map, items, type, verify);
  }
  // Freeze last, because nothing can be written afterwards.
  if (plan.frozen) map.freeze();
  if (filled.kind === 'metadata only') return filled;
  const lacks = [
    ...plan.lacks,
    ...(untyped === undefined ? [] : [untyped]),
    ...(filled.kind === 'full' ? [] : [filled.why]),
    ...[plan.reshaped?.losses.text()].filter((text) => text !== undefined),
  ];
  return lacks.length === 0 ? FULL : { kind: 'partial', why: lacks.join('; ') };
}

async function countKeys(map: BpfMap): Promise<number> {
  let count = 0;
  for (let key = map.nextKey(undefined); key !== undefined; key = map.nextKey(key)) {
    count++;
    if (count % KEYS_AT_ONCE === 0) await pause();
  }
  return count;
}

/** Runs `work`; turns errors about the fresh map into errors about the map of the dump. */
function asDumpMap<T>(plan: PlannedMap, map: BpfMap | undefined, work: () => T): T {
  const rename = (error: unknown): never => {
    // A map that could not be created has no name of its own yet.
    const ours = error instanceof BpfimgError && map !== undefined && error.subject === map.subject;
    throw error instanceof KernelError || ours ? error.about(plan.subject) : error;
  };
  try {
    const result = work();
    return result instanceof Promise ? (result.catch(rename) as T) : result;
  } catch (error) {
    return rename(error);
  }
}
