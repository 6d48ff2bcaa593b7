import { plugins } from '../../../plugins/index.js';
import { writeDocument } from '../../dump/document.js';
import { openDump } from '../../dump/model.js';
import { selectMaps } from '../../dump/select.js';
import { BpfimgError } from '../../errors.js';
import { BPFMAP_DATA } from '../../image/kinds.js';
import { ImageReader } from '../../image/reader.js';
import { type Input, openInput } from '../../io/input.js';
import { type Dialect, decodeImage } from '../../json/decode.js';
import { MapTypes } from '../../maptype.js';
import type { Io } from '../io.js';
import { isFolder, sourceOf } from '../source.js';
import { written } from '../written.js';

export interface DecodeArguments {
  readonly source?: string | undefined;
  readonly in?: string | undefined;
  readonly out?: string | undefined;
  readonly format: Dialect;
  readonly pretty: boolean;
  readonly nopl: boolean;
  readonly map: readonly string[];
}

export async function run(args: DecodeArguments, io: Io): Promise<void> {
  const source = sourceOf(args.source, args.in);
  if (source !== undefined && isFolder(source)) return decodeFolder(source, args, io);
  const input = source === undefined ? await io.stdin() : await openInput(source);
  try {
    await decodeOne(input, args, io);
  } finally {
    input.close();
  }
}

async function decodeFolder(folder: string, args: DecodeArguments, io: Io): Promise<void> {
  if (args.format === 'crit') {
    throw new BpfimgError('usage', `--format crit: crit has no form for a whole dump, name one image of ${folder}`);
  }
  const dump = await openDump(folder);
  try {
    const maps = selectMaps(dump, args.map);
    await written(args.out, io, async (out) => {
      const options = { lines: args.format === 'ndjson', pretty: args.pretty, noPayload: args.nopl };
      await writeDocument(dump, maps, new MapTypes(plugins), out, options);
      if (!options.lines) out.text('\n');
    });
  } finally {
    dump.close();
  }
}

async function decodeOne(input: Input, args: DecodeArguments, io: Io): Promise<void> {
  const reader = await ImageReader.open(input);
  const maps = args.map.length > 0 ? mapIds(args.map, reader.kind === BPFMAP_DATA) : undefined;
  await written(args.out, io, async (out) => {
    await decodeImage(reader, out, {
      dialect: args.format,
      pretty: args.pretty,
      noPayload: args.nopl,
      ...(maps ? { maps } : {}),
    });
    // crit ends its output with a line end on standard output only; ndjson has ended its last line.
    if (args.format === 'items' || (args.format === 'crit' && args.out === undefined)) out.text('\n');
  });
}

/** Within a single image maps have no names: only ids select. */
function mapIds(selectors: readonly string[], hasMaps: boolean): Set<number> {
  if (!hasMaps) throw new BpfimgError('usage', '--map selects within a bpfmap-data image or a dump folder');
  return new Set(
    selectors.map((text) => {
      if (!/^\d{1,10}$/.test(text)) {
        throw new BpfimgError('usage', `--map ${text}: a single image knows maps by id only, names stand in a dump`);
      }
      return Number(text);
    }),
  );
}
