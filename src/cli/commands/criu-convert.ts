import { plugins } from '../../../plugins/index.js';
import { type ConvertedMap, convert, type Form } from '../../criu/convert.js';
import { MapTypes, reportText } from '../../maptype.js';
import { colours, nameText, table } from '../../render.js';
import { coloured, type Io } from '../io.js';
import { printLines, written } from '../written.js';

export interface ConvertArguments {
  readonly dir: string;
  readonly to: Form;
  readonly color?: boolean | undefined;
}

/** Says on standard error when there was nothing to do, which is no failure. */
export async function run({ dir, to, color }: ConvertArguments, io: Io): Promise<void> {
  const types = new MapTypes(plugins);
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
