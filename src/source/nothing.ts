/** Explains why a selection of live maps found none. */
import { BpfimgError } from '../errors.js';
import { type Selectors, treesOf } from '../kernel/live.js';
import { commandOf, mapsOfProcess } from '../kernel/proc.js';
import type { Sys } from '../kernel/sys.js';

/**
 * Says that nothing was found, and where there are maps.
 * @param so the consequence, as the end of a clause
 * @param way the selector that also covers descendants
 */
export function noMapsText({ proc }: Sys, { pids, tree = false }: Selectors, so: string, way: string): string {
  const [pid] = pids;
  if (pid === undefined) return `no BPF maps can be seen${so}`;
  const whose = `process ${pid} (${commandOf(pid, proc)})`;
  const [others, s] = pids.length > 1 ? [` and ${pids.length - 1} more`, ''] : ['', 's'];
  if (tree) return `${whose}${others} and the processes below hold no BPF maps${so}`;
  const text = `${whose}${others} hold${s} no BPF maps${so}`;
  const below = belowWith(pids, proc);
  if (below === undefined) return text;
  return `${text}; process ${below} (${commandOf(below, proc)}) below holds some: ${way} takes it as well`;
}

/** The first descendant of these processes that visibly holds maps. */
function belowWith(pids: readonly number[], proc: string): number | undefined {
  try {
    return treesOf(pids, proc).find((pid) => {
      const open = mapsOfProcess(pid, proc);
      return Array.isArray(open) && open.length > 0;
    });
  } catch (error) {
    // A kernel that does not list children.
    if (error instanceof BpfimgError) return undefined;
    throw error;
  }
}
