import { type ConvertedMap, convert } from '../../criu/convert.js';
import { type MapTypes, reportText } from '../../maptype.js';
import { colours, nameText, table } from '../../render.js';
import type { Command, Given } from '../command.js';
import { coloured, type Io } from '../io.js';
import { libdir as libdirOption } from '../options.js';
import { mapTypes } from '../plugins.js';
import { printLines, written } from '../written.js';

const takes = {
  words: { dir: { type: 'string', demandOption: true, describe: 'dump folder' } },
  options: {
    to: {
      group: 'Output',
      choices: ['native', 'plugin'],
      demandOption: true,
      requiresArg: true,
      describe: 'what will restore the dump: CRIU built with libbpf, or the plugin',
    },
    ...libdirOption,
  },
} as const;

export const command: Command = {
  name: 'criu convert',
  summary: "convert a CRIU dump between the plugin's form and CRIU's own",
  ...takes,
  examples: [
    ['criu convert dump --to native', 'for a CRIU built with libbpf, without a plugin'],
    ['criu convert dump --to plugin', "for bpfimg's plugin"],
    ['criu convert dump --to native -L plugins', 'with map types of your own'],
  ],
  run,
};

/** If there was nothing to do, says so on standard error; that is not a failure. */
async function run({ dir, to, color, libdir }: Given<typeof takes>, io: Io): Promise<void> {
  const types = await mapTypes(libdir, io);
  const done = await convert(dir, to, types);
  if ('nothing' in done) {
    io.say(`bpfimg: ${dir}: nothing to convert, ${done.nothing}`);
    return;
  }
  await written(undefined, io, async (out) => {
    const rows = done.maps.map((map) => cells(map, types));
    printLines(out, table(COLUMNS, rows, colours(coloured(io, color))));
  });
}

const COLUMNS = [
  { title: 'ID', right: true },
  { title: 'NAME' },
  { title: 'TYPE' },
  { title: 'ITEMS', right: true },
  { title: 'REPORT' },
];

function cells({ mapId, name, type, items, report }: ConvertedMap, types: MapTypes): string[] {
  return [String(mapId), nameText(name), types.get(type).name, String(items), reportText(report)];
}
