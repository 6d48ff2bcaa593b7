/** What `replay --swap` says about the maps that it has replaced. */
import { pathBytes } from '../bytes.js';
import { type Program, programsByMap } from '../kernel/live.js';
import { BpfMap } from '../kernel/map.js';
import { openMaps } from '../kernel/proc.js';
import type { Sys } from '../kernel/sys.js';
import { nameText } from '../render.js';
import type { FreshMap } from '../replay/replay.js';
import type { Replaced } from '../replay/swap.js';
import { fdsText } from './holders.js';

/** A replaced map and who still uses it, as `--json` prints it. */
export interface ReplacedRow extends Replaced {
  readonly map_id: number;
  readonly programs: readonly Program[];
  readonly holders: readonly { readonly pid: number; readonly command: string; readonly fd: number }[];
}

/** The maps that each fresh map has replaced. */
export function replacedRows(sys: Sys, fresh: readonly FreshMap[]): ReplacedRow[][] {
  const old = fresh.map(({ replaced }) => {
    return replaced.map((one) => {
      // Its pin keeps it alive, so that closing it has no effect.
      using map = BpfMap.openPinned(sys, pathBytes(one.kept), 'ro');
      return { ...one, map_id: map.id };
    });
  });
  const ids = new Set(old.flat().map(({ map_id }) => map_id));
  if (ids.size === 0) return old.map(() => []);
  const programs = programsByMap(sys, ids);
  const { open } = openMaps(sys.proc);
  const holdersOf = (id: number) => open.filter(({ map }) => map.id === id).map(({ holder }) => holder);
  return old.map((rows) => {
    return rows.map((row) => ({
      ...row,
      programs: programs.get(row.map_id) ?? [],
      holders: holdersOf(row.map_id).map(({ pid, command, fd }) => ({ pid, command, fd })),
    }));
  });
}

/** One line for each replaced map: where it is, and who still uses it. */
export function replacedLines(rows: readonly ReplacedRow[]): string[] {
  return rows.map(({ pin, kept, map_id, programs, holders }) => {
    const users = [...programs.map(({ id, name }) => `program ${id} (${nameText(name)})`), ...fdsText(holders)];
    const use =
      users.length === 0
        ? 'no program or process uses it'
        : `still used by ${users.join(', ')}, whose changes no longer reach the new map`;
    return `bpfimg: note: ${pin}: the old map ${map_id} is kept at ${kept}; ${use}`;
  });
}
