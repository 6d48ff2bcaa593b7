/**
 * Puts items into maps that exist. All maps are compared with their sources before the first write. What is written
 * to a live map cannot be undone, so whatever ends a run, the error says what has been written.
 */
import { Btf } from '../btf/btf.js';
import { BpfimgError, followed } from '../errors.js';
import { mapSubject } from '../kernel/flags.js';
import type { BpfMap } from '../kernel/map.js';
import type { Sys } from '../kernel/sys.js';
import {
  type Doing,
  FULL,
  type IntoCounts,
  type IntoMode,
  type IntoWork,
  type MapType,
  type Report,
  type Span,
} from '../maptype.js';
import { readLive } from './items.js';
import { DROPPED } from './merge.js';
import type { PlannedMap } from './plan.js';
import { type FreshMap, replay } from './replay.js';
import { isAlike } from './reshape.js';
import { summing, type ValueType } from './sum.js';
import { fieldsOf, type ValueBlob, valueType } from './types.js';

/** A map of the source, and the live one that its items go into. */
export interface IntoPair {
  readonly plan: PlannedMap;
  readonly map: BpfMap;
}

/** What to do with the items. */
export interface IntoOptions {
  readonly mode: IntoMode;
  /** Count what would be written, and write nothing. */
  readonly dry?: boolean;
  /** Let `sync` delete more items than it writes. */
  readonly force?: boolean;
  /** Check the maps afterwards: nothing may be left to do. */
  readonly verify?: boolean;
  /** Called with each map whose type takes no items; it is left out. Without it, that is an error. */
  readonly skip?: ((pair: IntoPair, why: string) => void) | undefined;
  /** Called when all maps are known to fit, before the first write. */
  readonly before?: (() => Promise<void>) | undefined;
  /** Ends the run, between two parts. */
  readonly signal?: AbortSignal;
  readonly progress?: (doing: Doing) => void;
}

/** What became of one map. */
export interface IntoRow {
  readonly plan: PlannedMap;
  /** Of the map that exists. */
  readonly id: number;
  readonly name: string;
  readonly counts: IntoCounts;
  readonly report: Report;
}

/** Puts the items of each plan into its map. The caller owns the maps. */
export async function replayInto(
  sys: Sys,
  pairs: readonly IntoPair[],
  plans: readonly PlannedMap[],
  options: IntoOptions,
): Promise<IntoRow[]> {
  const { mode, dry = false, skip } = options;
  if (mode === 'sum' && options.verify === true) {
    throw new BpfimgError('usage', '--verify cannot tell what a sum should be: leave it out with --mode sum');
  }
  const chosen: Target[] = [];
  for (const pair of pairs) {
    const none = takesNothing(pair);
    if (none !== undefined && skip !== undefined) skip(pair, none);
    else if (none !== undefined) {
      throw new BpfimgError('unsupported', `${none}; --skip-unsupported leaves it out`, { subject: pair.plan.subject });
    } else chosen.push(await target(sys, pair, mode));
  }
  // For these, only a dry run shows whether they fit.
  const looked = (one: Target) => mode === 'sync' || one.type.inner === true;
  for (const one of dry ? [] : chosen.filter(looked)) {
    const [{ counts } = one] = await new Run(sys, [one], plans, { ...options, dry: true }).run();
    if (mode === 'sync' && options.force !== true) checkSync(one, counts);
  }
  if (!dry) await options.before?.();
  const rows = await new Run(sys, chosen, plans, options).run();
  if (dry && mode === 'sync' && options.force !== true) for (const one of chosen) checkSync(one, one.counts);
  if (options.verify === true && !dry) await verify(sys, chosen, plans, options);
  return rows;
}

// ---------------------------------------------------------------------------------------------------
// What fits

/** A map that items go into. */
interface Target extends IntoPair {
  readonly type: MapType;
  /** Bytes of each value that the kernel keeps for itself. */
  readonly hidden: readonly Span[];
  readonly add: IntoWork['add'];
  readonly counts: IntoCounts;
}

const noCounts = (): IntoCounts => ({ inserted: 0, updated: 0, unchanged: 0, deleted: 0, dropped: new Map() });

/** Why no items can be put into a map of this type. */
function takesNothing({ plan, map }: IntoPair): string | undefined {
  const type = plan.types.get(map.type);
  if (plan.types.plugin(map.type).into !== undefined) return undefined;
  const { replayed, lost } = type.carries ?? {};
  const why = replayed === 'empty' ? `: lost would be its ${lost}` : '';
  return `not supported: items cannot be put into a map of type ${type.name} that exists${why}`;
}

/** @throws BpfimgError for what does not fit */
async function target(sys: Sys, pair: IntoPair, mode: IntoMode): Promise<Target> {
  const { plan, map } = pair;
  const odd = misfit(pair, mode);
  if (odd !== undefined) throw new BpfimgError('conflict', odd, { subject: plan.subject });
  const type = plan.types.get(map.type);
  const value = valueType(sys, map);
  const { hidden, locked } = fieldsOf(value);
  if (locked) map.lockValues();
  const add = mode === 'sum' && type.inner !== true ? summing(map, parsed(value)) : () => false;
  return { plan, map, type, hidden, add, counts: noCounts() };
}

/** What keeps the items of `plan` from going into `map`, and what would help. */
function misfit({ plan, map }: IntoPair, mode: IntoMode): string | undefined {
  const type = plan.types.get(map.type);
  const where = map.subject;
  if (!isAlike(plan.type, type) || (plan.type.perCpu === true) !== (type.perCpu === true)) {
    return `it is of type ${plan.type.name}, but ${where} is of type ${type.name}; --map OLD=NEW names another map for it`;
  }
  for (const [name, ours, theirs] of [
    ['key_size', plan.spec.keySize, map.keySize],
    ['value_size', plan.spec.valueSize, map.valueSize],
  ] as const) {
    if (ours !== theirs) {
      return `${name} ${ours}, but ${where} has ${theirs}; --map OLD=NEW names another map for it, --pin makes a fresh one`;
    }
  }
  if (type.key === 'none' && mode !== 'upsert' && mode !== 'insert') {
    return `a ${type.name} has no keys, so --mode ${mode} has no meaning; without --mode, its items are added`;
  }
  const { frozen, access } = map.state();
  if (frozen === true) return `${where} is frozen: nobody can write it`;
  if (access === 'ro') return `${where} is read-only`;
  return undefined;
}

function parsed(value: ValueBlob | undefined): ValueType | undefined {
  return value && { btf: Btf.parse(value.blob, { name: value.name }), id: value.id };
}

/** @throws BpfimgError if a sync would delete more items than it writes */
function checkSync({ plan, map }: Target, { inserted, updated, unchanged, deleted }: IntoCounts): void {
  const puts = inserted + updated + unchanged;
  if (deleted <= puts) return;
  const what = `--mode sync would delete ${items(deleted)} of ${map.subject} and put ${puts}; --force does that`;
  throw new BpfimgError('conflict', what, { subject: plan.subject });
}

function items(count: number): string {
  return `${count} item${count === 1 ? '' : 's'}`;
}

// ---------------------------------------------------------------------------------------------------
// The run

/** One run over some maps. */
class Run {
  readonly #fresh = new Map<number, FreshMap>();
  /** Those that were written, or are being written. */
  readonly #begun: Target[] = [];
  /** Pairs of inner maps that were merged: one may be in several places. */
  readonly #reused = new Set<string>();

  constructor(
    readonly sys: Sys,
    readonly targets: readonly Target[],
    readonly plans: readonly PlannedMap[],
    readonly options: IntoOptions,
  ) {}

  async run(): Promise<IntoRow[]> {
    try {
      for (const one of this.targets) {
        // A dry run that comes first counts for itself.
        const counts = noCounts();
        Object.assign(one.counts, counts, { dropped: one.counts.dropped });
        one.counts.dropped.clear();
        await this.#put(one);
      }
      return this.#begun.map((one) => rowOf(one));
    } catch (error) {
      if (this.options.dry === true) throw error;
      throw followed(error, this.#written());
    } finally {
      for (const { map } of this.#fresh.values()) map.close();
    }
  }

  /** What has been written so far, map by map. */
  #written(): string {
    const lines = this.#begun.map(({ map, counts }) => `${map.subject} ${countsText(counts)}`);
    return `written so far: ${lines.length === 0 ? 'nothing' : lines.join('; ')}`;
  }

  async #put(one: Target): Promise<void> {
    this.#begun.push(one);
    const { plan, map, type } = one;
    const plugin = plan.types.plugin(map.type);
    await plugin.into?.(map, plan.items, this.#work(one, type));
  }

  #work(one: Target, type: MapType): IntoWork {
    const { plan, map } = one;
    const { mode, dry = false, progress, signal } = this.options;
    const itemSize = plan.items.keySize + plan.items.valueSize;
    return {
      type,
      subject: map.subject,
      mode,
      dry,
      counts: one.counts,
      ignored: one.hidden,
      add: one.add,
      progress: (done) => progress?.({ map: map.subject, items: done, most: plan.items.count, itemSize }),
      check() {
        if (signal?.aborted) throw new BpfimgError('io', 'interrupted', { code: 'EINTR' });
      },
      read: (sink) => readLive(map, plan.types.plugin(map.type), type, sink),
      fresh: (id) => this.#made(id),
      reuse: (id, inner) => this.#merged(id, inner),
    };
  }

  /** Inner map `id` of the source, filled. */
  async #made(id: number): Promise<BpfMap | undefined> {
    const plan = this.plans.find(({ mapId }) => mapId === id);
    if (plan === undefined) return undefined;
    let made = this.#fresh.get(id);
    if (made === undefined) {
      [made] = await replay(this.sys, [plan]);
      if (made !== undefined) this.#fresh.set(id, made);
    }
    return made?.map;
  }

  async #merged(id: number, map: BpfMap): Promise<boolean> {
    const plan = this.plans.find(({ mapId }) => mapId === id);
    if (plan === undefined) return false;
    const pair = { plan, map };
    const same =
      plan.spec.type === map.type && plan.spec.maxEntries === map.maxEntries && plan.spec.flags === map.flags;
    if (!same || takesNothing(pair) !== undefined || misfit(pair, this.options.mode) !== undefined) return false;
    const name = `${id} ${map.id}`;
    if (!this.#reused.has(name)) {
      this.#reused.add(name);
      await this.#put(await target(this.sys, pair, this.options.mode));
    }
    return true;
  }
}

/** `12 inserted, 3 updated`. */
function countsText({ inserted, updated, unchanged, deleted, dropped }: IntoCounts): string {
  const parts = Object.entries({ inserted, updated, unchanged, deleted }).filter(([, count]) => count > 0);
  const lost = [...dropped.values()].reduce((sum, count) => sum + count, 0);
  const all = [...parts, ...(lost === 0 ? [] : [['dropped', lost] as const])];
  return all.length === 0 ? 'nothing' : all.map(([what, count]) => `${count} ${what}`).join(', ');
}

function rowOf({ plan, map, counts }: Target): IntoRow {
  const lacks = [...plan.lacks, ...[...counts.dropped].map(([why, count]) => `${items(count)} dropped: ${why}`)];
  const report: Report = lacks.length === 0 ? FULL : { kind: 'partial', why: lacks.join('; ') };
  return { plan, id: map.id, name: map.name, counts, report };
}

/** Whether items are missing that were meant to be there. */
export function lacksItems({ counts: { dropped } }: IntoRow): boolean {
  return [...dropped.keys()].some((why) => why !== DROPPED.absent);
}

/** Runs everything again without writing: whatever is left to do was not written, unless it was dropped. */
async function verify(sys: Sys, targets: readonly Target[], plans: readonly PlannedMap[], options: IntoOptions) {
  for (const one of targets.filter(({ type }) => type.key !== 'none')) {
    const again = { ...one, counts: noCounts() };
    const rows = await new Run(sys, [again], plans, { ...options, dry: true }).run();
    const evicted = one.counts.dropped.get(DROPPED.evicted) ?? 0;
    for (const { id, name, counts } of rows) {
      const left = counts.inserted + counts.updated + counts.deleted;
      if (left <= evicted) continue;
      throw new BpfimgError('io', `read back, ${items(left)} are not as written`, { subject: mapSubject(id, name) });
    }
  }
}
