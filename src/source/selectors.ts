/**
 * Which live maps are meant: by `--id`, `--name`, `--pinned`, `--pid` with `--fd` or `--tree`, `--all`, or by a source
 * such as `pinned:PATH`.
 */
import { BpfimgError } from '../errors.js';
import type { Selectors } from '../kernel/live.js';

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

/** What the text behind each word of a source selects. */
const LIVE: Readonly<Record<string, (text: string) => Partial<SelectorArguments>>> = {
  id: (text) => ({ id: [text] }),
  name: (text) => ({ name: [text] }),
  pinned: (text) => ({ pinned: [text] }),
  pid: (text) => {
    const [pid = '', ...fds] = text.split(':');
    return { pid: [pid], fd: fds };
  },
  tree: (text) => ({ pid: [text], tree: true }),
  all: () => ({ all: true }),
};

/** The live maps that a source such as `id:315` names; undefined for any other text. */
export function liveSelectors(source: string): Selectors | undefined {
  const [, word = '', rest = ''] = /^([a-z]+):(.*)$/s.exec(source) ?? [];
  const select = Object.hasOwn(LIVE, word) ? LIVE[word] : undefined;
  if (select === undefined) return undefined;
  if ((rest === '') !== (word === 'all')) {
    throw new BpfimgError('usage', 'expected id:N, name:NAME, pinned:PATH, pid:PID, pid:PID:FD, tree:PID or all:', {
      subject: source,
    });
  }
  return selectorsOf({ ...NO_SELECTORS, ...select(rest) });
}
