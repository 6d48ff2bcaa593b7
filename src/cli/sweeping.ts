/** `replay --sweeps`: how often live maps are read again, and what is told of it. */

import type { Dump } from '../dump/model.js';
import { openDump } from '../dump/model.js';
import { BpfimgError, followed } from '../errors.js';
import { mapSubject } from '../kernel/flags.js';
import type { PlannedMap } from '../replay/plan.js';
import type { FreshMap } from '../replay/replay.js';
import type { Reading, SweepCounts, SweptMap } from '../replay/sweep.js';
import type { DumpSource, Source } from '../source/source.js';

/** Sweeps with `--swap`, at most, unless the command line says otherwise. */
const SWEEPS = 4;

/** What the command line says that matters here. */
export interface SweepArguments {
  readonly sweeps?: number | undefined;
  readonly swap: boolean;
  readonly pin?: string | undefined;
  readonly pinBack: boolean;
  readonly dryRun: boolean;
}

/** Sweeps, at most, after maps have been filled from `given`. */
export function mostSweeps({ sweeps, swap, pin, pinBack, dryRun }: SweepArguments, given: Source): number {
  const live = given.kind === 'dump' && given.again !== undefined;
  if (sweeps === undefined) return swap && live ? SWEEPS : 0;
  const wrong = (what: string) => new BpfimgError('usage', what, { subject: '--sweeps' });
  if (!Number.isInteger(sweeps) || sweeps < 0 || sweeps > 1000) throw wrong('expected a whole number from 0 to 1000');
  if (pin === undefined && !pinBack && !dryRun) throw wrong('it goes with --pin or --pin-back');
  if (!live) throw wrong(`${given.name} is not a live map, so nothing in it changes`);
  return sweeps;
}

/**
 * Sweeps.
 * @param plan plans the maps of a dump as those of `fresh` were planned
 */
export async function sweepMaps(
  fresh: readonly FreshMap[],
  given: DumpSource,
  most: number,
  plan: (dump: Dump) => Promise<PlannedMap[]>,
): Promise<SweptMap[]> {
  const read = async (): Promise<Reading | undefined> => {
    const opened: { close(): void }[] = [];
    const close = () => {
      for (const one of opened.reverse()) one.close();
    };
    try {
      const source = await given.again?.();
      if (source === undefined) return undefined;
      opened.push(source);
      const dump = await openDump(source.files);
      opened.push(dump);
      return { plans: await plan(dump), close };
    } catch (error) {
      close();
      throw followed(error, 'nothing has been changed; --sweeps 0 does not read the old maps again');
    }
  };
  const { sweep } = await import('../replay/sweep.js');
  return sweep(fresh, { most, read });
}

/** The sweeps of a map, as `--json` prints them. */
export function sweepRows({ sweeps }: SweptMap) {
  return sweeps.map(({ dropped, ...counts }) => ({ ...counts, dropped: Object.fromEntries(dropped) }));
}

/** One line for each sweep of a map that has found something, and one for what has not followed. */
export function sweepLines(fresh: readonly FreshMap[], swept: readonly SweptMap[]): string[] {
  return fresh.flatMap(({ plan }, i) => {
    const { sweeps = [], note } = swept[i] ?? {};
    const subject = mapSubject(plan.mapId, plan.name);
    const lines = sweeps.map((counts, n) => [`sweep ${n + 1}`, countsText(counts)]).filter(([, text]) => text !== '');
    const told = lines.map(([which, text]) => `bpfimg: note: ${subject}: ${which}: ${text}`);
    return note === undefined ? told : [...told, `bpfimg: warning: ${subject}: ${note}`];
  });
}

function countsText({ dropped, kept, ...counts }: SweepCounts): string {
  const parts = Object.entries(counts).map(([what, count]) => [what, count] as const);
  const others = [['kept as the new map has them', kept] as const, ...dropped];
  return [...parts, ...others]
    .filter(([, count]) => count > 0)
    .map(([what, count]) => `${count} ${what}`)
    .join(', ');
}
