import { type CapturedMap, capture } from '../../capture/capture.js';
import { BpfimgError, EXIT } from '../../errors.js';
import { LiveMaps, treesOf } from '../../kernel/live.js';
import { openSys, type Sys } from '../../kernel/sys.js';
import { type Drain, type MapTypes, reportText } from '../../maptype.js';
import { colours, nameText, sizeText, table } from '../../render.js';
import { noMapsText } from '../../source/nothing.js';
import { selected, selectedSources } from '../../source/selectors.js';
import { choosing, liveChoice } from '../choosing.js';
import type { Command, Given } from '../command.js';
import { coloured, type Io } from '../io.js';
import { boolean, DASH, json, libdir, selectors as selectorOptions, string } from '../options.js';
import { mapTypes } from '../plugins.js';
import { Progress } from '../progress.js';
import { unseenText } from '../unseen.js';
import { outputOf, printLines, written } from '../written.js';

const takes = {
  words: {
    sources: {
      type: 'string',
      value: 'SOURCE',
      array: true,
      default: [] as string[],
      describe: 'live maps (pinned:PATH, pid:PID, …); after a selector, more values for it',
    },
  },
  options: {
    ...selectorOptions,
    dir: { ...string, alias: 'D', value: 'DIR', group: 'Output', describe: 'folder to write the images into' },
    out: {
      ...string,
      alias: 'o',
      value: 'FILE',
      group: 'Output',
      describe: 'archive to write instead: FILE.tar, .tar.gz, .tar.zst, or - for a pipe',
    },
    force: { ...boolean, group: 'Output', describe: 'replace an earlier capture in DIR' },
    drain: {
      type: 'string',
      value: 'keep-empty',
      group: 'Items',
      mayBeEmpty: true,
      describe: 'read queues and stacks by emptying them, then refill them; =keep-empty leaves them empty',
    },
    ...choosing,
    'skip-unsupported': {
      ...boolean,
      implies: 'all',
      group: 'Selection',
      describe: 'with --all: do not fail if some maps are not supported',
    },
    ...libdir,
    json,
  },
} as const;

/** What yargs makes of the command line. */
export type CaptureArguments = Given<typeof takes>;

export const command: Command = {
  name: 'capture',
  summary: 'save live maps in a new dump folder',
  ...takes,
  examples: [
    ['capture --pid 4711 -D dump', 'all maps that a process holds'],
    ['capture --pinned /sys/fs/bpf/flows -D dump', 'one pinned map'],
    ['capture --pinned /sys/fs/bpf/app -D dump', 'all maps pinned in a folder'],
    ['capture --pinned /sys/fs/bpf/app -o - | ssh HOST bpfimg replay - --pin /sys/fs/bpf/app', 'to another host'],
  ],
  run,
};

/** @param sys the kernel; tests have their own */
export async function run(args: CaptureArguments, io: Io, sys?: Sys): Promise<number> {
  const { live: selectors, files } = selectedSources(args);
  const [file] = files;
  if (file !== undefined) {
    throw new BpfimgError('usage', 'expected live maps: pinned:PATH, id:N, name:NAME, pid:PID, tree:PID', {
      subject: file,
    });
  }
  if (!args.all && !selected(selectors)) {
    throw new BpfimgError('usage', 'which maps? --id, --name, --pinned, --pid, or --all');
  }
  if ((args.dir === undefined) === (args.out === undefined)) {
    throw new BpfimgError('usage', 'where to? -D DIR for a folder of images, or -o FILE for an archive');
  }
  const toPipe = args.out === DASH;
  if (toPipe && io.terminal)
    throw new BpfimgError('usage', 'an archive is no text for a terminal: name a file with -o');
  const drain = drainOf(args.drain);
  if (args.where !== undefined && drain === 'keep-empty') {
    throw new BpfimgError('usage', 'items that are not chosen would be lost', {
      subject: '--where with --drain=keep-empty',
    });
  }
  // yargs' `implies` does not tell an option from its default.
  if (args.skipUnsupported && !args.all) throw new BpfimgError('usage', '--skip-unsupported goes with --all');
  const types = await mapTypes(args.libdir, io);
  const kernel = sys ?? (await openSys(types));
  const live = LiveMaps.look(kernel, selectors);
  const maps = live.select(selectors);
  const unseen = unseenText(live.unseen);
  if (args.all && unseen !== '') io.say(`bpfimg: ${unseen}`);
  const { tree = false, fds = [] } = selectors;
  const pids = tree ? treesOf(selectors.pids, kernel.proc) : selectors.pids;
  if (maps.length === 0)
    throw new BpfimgError('notFound', noMapsText(kernel, selectors, ': nothing to capture', '--tree'));
  const choose = await liveChoice(args.where);
  const progress = new Progress(io);
  let rows: CapturedMap[];
  try {
    const into = (folder: string, force: boolean) =>
      capture(kernel, maps, folder, types, {
        force,
        lenient: args.all,
        orNothing: true,
        drain,
        ...(choose && { choose }),
        find: (id) => live.find(id),
        holders: ({ pid, fd }) => pids.length === 0 || (pids.includes(pid) && (fds.length === 0 || fds.includes(fd))),
        progress: (doing) => progress.update(doing),
      });
    if (args.dir !== undefined) rows = await into(args.dir, args.force);
    else {
      const { packed, packFormat } = await import('../../source/pack.js');
      const format = toPipe ? 'tar' : packFormat(args.out ?? '');
      if (format === undefined) {
        throw new BpfimgError('usage', 'expected a name that ends in .tar, .tar.gz or .tar.zst', {
          subject: `-o ${args.out}`,
        });
      }
      rows = await packed(await outputOf(args.out, io), format, (folder) => into(folder, false));
    }
  } finally {
    progress.end();
  }
  const list = rows.map((row) => `\n  ${JSON.stringify(members(row, types))}`);
  const lines = args.json
    ? `{"maps":[${list.join(',')}]}`.split('\n')
    : table(
        COLUMNS,
        rows.map((row) => cells(row, types)),
        colours(!toPipe && coloured(io, args.color)),
      );
  // Standard output is the archive then.
  if (toPipe) for (const line of lines) io.say(line);
  else await written(undefined, io, async (out) => printLines(out, lines));
  const failed = rows.filter(({ report }) => report.kind === 'not supported');
  if (failed.length === rows.length) {
    io.say(`bpfimg: ${args.dir}: not written, no map could be captured`);
    return EXIT.failed;
  }
  return failed.length > 0 && !args.skipUnsupported ? EXIT.failed : EXIT.ok;
}

function drainOf(text: string | undefined): Drain {
  if (text === undefined) return 'no';
  if (text === '' || text === 'restore') return 'restore';
  if (text === 'keep-empty') return text;
  throw new BpfimgError('usage', 'expected --drain, --drain=restore or --drain=keep-empty', {
    subject: `--drain=${text}`,
  });
}

function members(row: CapturedMap, types: MapTypes): Record<string, unknown> {
  const { id, name, type, items, bytes, report } = row;
  return { map_id: id, name, type: types.get(type).name, items, bytes, report: reportText(report) };
}

const COLUMNS = [
  { title: 'ID', right: true },
  { title: 'NAME' },
  { title: 'TYPE' },
  { title: 'ITEMS', right: true },
  { title: 'SIZE', right: true },
  { title: 'REPORT' },
];

function cells({ id, name, type, items, bytes, report }: CapturedMap, types: MapTypes): string[] {
  return [String(id), nameText(name), types.get(type).name, String(items), sizeText(bytes), reportText(report)];
}
