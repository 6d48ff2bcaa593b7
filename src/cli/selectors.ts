/** Selectors on the command line: `--id`, `--name`, `--pinned`, `--pid` with `--fd` or `--tree`, `--all`. */
import { BpfimgError } from '../errors.js';
import type { Selectors, Unseen } from '../kernel/live.js';
import { plural } from '../render.js';

/** What a command line says of the maps it means, as text. */
export interface SelectorArguments {
  readonly id: readonly string[];
  readonly name: readonly string[];
  readonly pinned: readonly string[];
  readonly pid: readonly string[];
  readonly fd: readonly string[];
  readonly tree: boolean;
  readonly all: boolean;
}

/** Arguments of a command line that selects no map. */
export const NO_SELECTORS: SelectorArguments = {
  id: [],
  name: [],
  pinned: [],
  pid: [],
  fd: [],
  tree: false,
  all: false,
};

/** What the arguments select; all maps when that is nothing. */
export function selectorsOf(args: SelectorArguments): Selectors {
  const selectors = {
    ids: args.id.map((text) => number('--id', text)),
    names: args.name,
    pins: args.pinned,
    pids: args.pid.map((text) => number('--pid', text)),
    fds: args.fd.map((text) => number('--fd', text, 0)),
    tree: args.tree,
  };
  if (args.tree && selectors.pids.length === 0) {
    throw new BpfimgError('usage', '--tree takes the processes below another: give its --pid with it');
  }
  if (args.tree && selectors.fds.length > 0) {
    throw new BpfimgError('usage', '--fd names files of one process, --tree many processes: choose');
  }
  if (selectors.fds.length > 0 && selectors.pids.length !== 1) {
    throw new BpfimgError('usage', '--fd names files of one process: give one --pid with it');
  }
  if (args.all && selected(selectors)) throw new BpfimgError('usage', '--all with other selectors: choose');
  return selectors;
}

/** Whether `selectors` name any map. */
export function selected({ ids, names, pins, pids }: Selectors): boolean {
  return ids.length + names.length + pins.length + pids.length > 0;
}

function number(option: string, text: string, least = 1): number {
  const value = /^\d{1,10}$/.test(text) ? Number(text) : -1;
  if (value >= least && value <= 0xffff_ffff) return value;
  throw new BpfimgError('usage', 'expected a number', { subject: `${option} ${text}` });
}

/** One line about what is not shown; empty when everything is. */
export function unseenText({ ids, processes, types }: Unseen): string {
  const parts: string[] = [];
  if (ids) parts.push('without CAP_SYS_ADMIN, maps that no visible process or pin holds are not shown');
  if (processes > 0) {
    const which = processes === 1 ? '1 process' : `${processes} processes`;
    parts.push(`${which} may not be looked at (no right to trace), so maps and holders may be missing`);
  }
  if (types > 0) {
    parts.push(
      `of ${plural(types, 'map')} only the id is shown: opening could harm, and a look without needs Linux 5.8`,
    );
  }
  return parts.join('; ');
}
