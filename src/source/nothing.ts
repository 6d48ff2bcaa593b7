/** Why live maps were selected and there are none. */
import { BpfimgError } from '../errors.js';
import { type Selectors, treesOf } from '../kernel/live.js';
import { commandOf, mapsOfProcess } from '../kernel/proc.js';
import type { Sys } from '../kernel/sys.js';

/**
 * Says that there is nothing, and where there is something.
 * @param so what follows from it, as the end of a clause
 * @param way what selects the processes below as well
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

/** The first process below these that is seen to hold maps. */
function belowWith(pids: readonly number[], proc: string): number | undefined {
  try {
    return treesOf(pids, proc).find((pid) => {
      const open = mapsOfProcess(pid, proc);
      return Array.isArray(open) && open.length > 0;
    });
  } catch (error) {
    // A kernel that does not tell who is below.
    if (error instanceof BpfimgError) return undefined;
    throw error;
  }
}
