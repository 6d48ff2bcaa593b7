import { BpfimgError, EXIT } from '../../errors.js';
import { addMemory, type LiveMap, LiveMaps } from '../../kernel/live.js';
import { openSys, type Sys } from '../../kernel/sys.js';
import { flagWords, type MapTypes, mapFlagNames } from '../../maptype.js';
import { colours, nameText, table } from '../../render.js';
import { selectedSources } from '../../source/selectors.js';
import type { Command, Given } from '../command.js';
import { alwaysFull, type Fullness, fullnessCells, judged, limitOf, metricLines, ORDERS, sorted } from '../fullness.js';
import { fdsText } from '../holders.js';
import { coloured, type Io } from '../io.js';
import { ATTRIBUTES, OWNERS, PERCENT } from '../map-columns.js';
import { boolean, json, libdir, selectors as options, string } from '../options.js';
import { mapTypes } from '../plugins.js';
import { unseenText } from '../unseen.js';
import { printLines, written } from '../written.js';

const takes = {
  words: {
    sources: {
      type: 'string',
      value: 'SOURCE',
      array: true,
      default: [] as string[],
      defaultDescription: 'the live maps of this machine',
      describe: 'dumps, archives, documents or live maps to list; after a selector, more values for it',
    },
  },
  options: {
    ...options,
    sort: {
      ...string,
      group: 'Output',
      choices: ORDERS,
      default: 'id' as const,
      describe: 'order of the maps: used is the fullest first, memory the largest first',
    },
    count: {
      ...boolean,
      group: 'Output',
      describe: 'count items by reading them where the kernel does not count them',
    },
    'fail-above': {
      ...string,
      value: 'PERCENT',
      group: 'Output',
      describe: 'exit with 1 if a map is fuller than this percentage',
    },
    openmetrics: { ...boolean, group: 'Output', describe: "print metrics for node_exporter's textfile collector" },
    ...libdir,
    json,
  },
} as const;

/** What yargs makes of the command line. */
export type ListArguments = Given<typeof takes>;

export const command: Command = {
  name: 'list',
  summary: 'list maps without their items: live ones, or those of dumps',
  ...takes,
  examples: [
    ['list', 'every map'],
    ['list --pid 4711 --json', 'the maps one process holds, as JSON'],
    ['list --pinned /sys/fs/bpf/app/*', 'the maps pinned in one folder'],
    ['list checkpoints/*', 'what is in several dumps or archives'],
    ['list --sort used --fail-above 90%', 'the fullest maps first; exit code 1 if one is more than 90 % full'],
  ],
  run,
};

/** What the table shows for what could not be seen. */
const UNKNOWN = '?';

/** @param sys the kernel; tests have their own */
export async function run(args: ListArguments, io: Io, sys?: Sys): Promise<unknown> {
  const limit = limitOf(args.failAbove);
  if (args.json && args.openmetrics) throw new BpfimgError('usage', '--json and --openmetrics: choose');
  const { live: selectors, files } = selectedSources(args);
  if (files.length > 0) return (await import('../source-list.js')).listSources(files, args, io, sys);
  const types = await mapTypes(args.libdir, io);
  const kernel = sys ?? (await openSys(types));
  const live = LiveMaps.look(kernel, selectors);
  const chosen = live.select(selectors);
  live.addUsed(chosen);
  addMemory(kernel, chosen);
  if (args.count) {
    const { countItems } = await import('../../capture/count.js');
    for (const map of chosen) {
      if (!alwaysFull(map.type, types)) map.used ??= await countItems(kernel, map, types);
    }
  }
  const maps = sorted(chosen.map(fullness), args.sort);
  const unseen = unseenText(live.unseen);
  if (unseen !== '') io.say(`bpfimg: ${unseen}`);
  await written(undefined, io, async (out) => {
    if (args.json) {
      const rows = maps.map(({ map }) => `\n  ${JSON.stringify(members(map, types))}`);
      out.text(`{"maps":[${rows.join(',')}]}\n`);
      return;
    }
    if (args.openmetrics) {
      for (const line of metricLines(maps, types)) out.text(`${line}\n`);
      return;
    }
    const look = colours(coloured(io, args.color));
    const lines =
      maps.length === 0
        ? ['no BPF maps']
        : table(
            COLUMNS,
            maps.map((map) => row(map, types)),
            look,
          );
    printLines(out, lines);
  });
  return limit === undefined ? EXIT.ok : judged(maps, limit, types, (line) => io.say(`bpfimg: ${line}`));
}

/** A live map, and how full it is. */
interface Row extends Fullness {
  readonly map: LiveMap;
}

function fullness(map: LiveMap): Row {
  const { id, name, type, maxEntries, used, memlock, pins } = map;
  return { map, id, name, type, most: maxEntries, used, memory: memlock, pins };
}

/** A map in the JSON, with null for what could not be seen. */
function members(map: LiveMap, types: MapTypes): Record<string, unknown> {
  return {
    map_id: map.id,
    name: map.name ?? null,
    type: map.type === undefined ? null : types.get(map.type).name,
    key_size: map.keySize ?? null,
    value_size: map.valueSize ?? null,
    max_entries: map.maxEntries ?? null,
    used: map.used ?? null,
    map_flags: map.flags === undefined ? null : mapFlagNames(map.flags),
    map_extra: map.extra === undefined ? null : `0x${map.extra.toString(16)}`,
    frozen: map.frozen ?? null,
    memlock: map.memlock ?? null,
    btf_id: map.btfId ?? null,
    pins: map.pins,
    holders: map.holders,
    programs: map.programs,
  };
}

const COLUMNS = [
  { title: 'ID', right: true },
  ...ATTRIBUTES,
  { title: 'USED', right: true },
  PERCENT,
  { title: 'MEMLOCK', right: true },
  { title: 'BTF', right: true },
  ...OWNERS,
];

function row({ map, ...filled }: Row, types: MapTypes): string[] {
  const size = (value: number | undefined) => (value === undefined ? UNKNOWN : String(value));
  const flags = map.flags === undefined ? [UNKNOWN] : mapFlagNames(map.flags);
  return [
    String(map.id),
    map.name === undefined ? UNKNOWN : nameText(map.name),
    map.type === undefined ? UNKNOWN : types.get(map.type).name,
    size(map.keySize),
    size(map.valueSize),
    size(map.maxEntries),
    flagWords(flags),
    map.frozen === undefined ? UNKNOWN : map.frozen ? 'yes' : 'no',
    ...fullnessCells(filled, types),
    size(map.memlock),
    map.btfId === 0 ? '' : size(map.btfId),
    map.pins.join(' '),
    holdersText(map),
  ];
}

/** The file descriptors of each process, or the programs, if only they keep the map. */
function holdersText(map: LiveMap): string {
  const programs = map.programs.map(({ id, name }) =>
    name === '' ? `program ${id}` : `program ${id}(${nameText(name)})`,
  );
  return [...fdsText(map.holders), ...programs].join(' ');
}
