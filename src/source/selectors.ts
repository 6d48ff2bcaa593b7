/**
 * Which live maps to use: by `--id`, `--name`, `--pinned`, `--pid` with `--fd` or `--tree`, `--all`, or by a source
 * such as `pinned:PATH`.
 */
import * as fs from 'node:fs';
import { BpfimgError } from '../errors.js';
import type { Selectors } from '../kernel/live.js';

/** The live-map selectors of a command line, as text. */
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

/** What the arguments select; all maps if they select nothing. */
export function selectorsOf(args: SelectorArguments): Selectors {
  const selectors = {
    ids: split(args.id).map((text) => number('--id', text)),
    names: args.name,
    pins: args.pinned,
    pids: split(args.pid).map((text) => number('--pid', text)),
    fds: split(args.fd).map((text) => number('--fd', text, 0)),
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

/** Numbers may come one by one or with commas between them. */
const split = (texts: readonly string[]) => texts.flatMap((text) => text.split(','));

/** Whether `selectors` name any map. */
export function selected({ ids, names, pins, pids }: Selectors): boolean {
  return ids.length + names.length + pins.length + pids.length > 0;
}

function number(option: string, text: string, least = 1): number {
  const value = /^\d{1,10}$/.test(text) ? Number(text) : -1;
  if (value >= least && value <= 0xffff_ffff) return value;
  throw new BpfimgError('usage', 'expected a number', { subject: `${option} ${text}` });
}

/** What the text after each source prefix selects. */
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

/** The live maps that a source such as `id:315` names; undefined for any other text, or if a file has that name. */
export function liveSelectors(source: string): Selectors | undefined {
  const [, word = '', rest = ''] = /^([a-z]+):(.*)$/s.exec(source) ?? [];
  const select = Object.hasOwn(LIVE, word) ? LIVE[word] : undefined;
  if (select === undefined || fs.existsSync(source)) return undefined;
  if ((rest === '') !== (word === 'all')) {
    throw new BpfimgError('usage', 'expected id:N, name:NAME, pinned:PATH, pid:PID, pid:PID:FD, tree:PID or all:', {
      subject: source,
    });
  }
  return selectorsOf({ ...NO_SELECTORS, ...select(rest) });
}

/** The meaning of a command line with both sources and selectors. */
export interface SelectedSources {
  readonly live: Selectors;
  /** Sources that are not live maps. */
  readonly files: readonly string[];
}

/**
 * Combines selectors and words. Words are sources; after a selector they are further values of it, as
 * when a shell expands `--pinned /sys/fs/bpf/app/*`.
 */
export function selectedSources(args: SelectorArguments & { readonly sources: readonly string[] }): SelectedSources {
  const { sources } = args;
  if (sources.length === 0) return { live: selectorsOf(args), files: [] };
  const given = (['id', 'name', 'pinned', 'pid'] as const).filter((name) => args[name].length > 0);
  const [only] = given;
  if (only !== undefined && given.length === 1) {
    return { live: selectorsOf({ ...args, [only]: [...args[only], ...sources] }), files: [] };
  }
  if (only !== undefined || args.all) {
    throw new BpfimgError('usage', 'unexpected word: it may follow the values of one selector', {
      subject: sources[0] ?? '',
    });
  }
  const live = sources.map(liveSelectors);
  if (live.every((one) => one === undefined)) return { live: selectorsOf(args), files: sources };
  const stray = sources.find((_, i) => live[i] === undefined);
  if (stray !== undefined) {
    throw new BpfimgError('usage', 'files and live maps are two lists: name one kind', { subject: stray });
  }
  return { live: live.map((one) => one as Selectors).reduce(together), files: [] };
}

/** The maps that either selects. */
function together(a: Selectors, b: Selectors): Selectors {
  // No selector means every map.
  if (!selected(a) || !selected(b)) return selected(a) ? b : a;
  if ((a.fds ?? []).length > 0 || (b.fds ?? []).length > 0 || a.tree !== b.tree) {
    throw new BpfimgError('usage', 'pid:PID:FD and tree:PID go with no other live source: name them one at a time');
  }
  const { tree = false } = a;
  return {
    ids: [...a.ids, ...b.ids],
    names: [...a.names, ...b.names],
    pins: [...a.pins, ...b.pins],
    pids: [...a.pids, ...b.pids],
    fds: [],
    tree,
  };
}
