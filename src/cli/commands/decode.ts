import * as path from 'node:path';
import { plugins } from '../../../plugins/index.js';
import { writeDocument } from '../../dump/document.js';
import { type Dump, type DumpMap, IMAGE, openDump, PLUGIN_IMAGE } from '../../dump/model.js';
import { selectMaps } from '../../dump/select.js';
import { BpfimgError } from '../../errors.js';
import { BPFMAP_DATA } from '../../image/kinds.js';
import { ImageReader } from '../../image/reader.js';
import { type Input, openInput } from '../../io/input.js';
import { type Dialect, decodeImage, type FormSource } from '../../json/decode.js';
import { MapTypes } from '../../maptype.js';
import type { Io } from '../io.js';
import { isFolder, sourceOf } from '../source.js';
import { itemForms, namesTypes, sayProblems, type TypeArguments, typeFinder } from '../types.js';
import { written } from '../written.js';

export interface DecodeArguments extends TypeArguments {
  readonly source?: string | undefined;
  readonly in?: string | undefined;
  readonly out?: string | undefined;
  readonly format: Dialect;
  readonly pretty: boolean;
  readonly nopl: boolean;
  readonly map: readonly string[];
  readonly typed?: boolean | undefined;
}

export async function run(args: DecodeArguments, io: Io): Promise<void> {
  const source = sourceOf(args.source, args.in);
  if (args.typed === false && namesTypes(args)) throw new BpfimgError('usage', '--no-typed has no use for types');
  if (args.format === 'crit' && (args.typed || namesTypes(args))) {
    throw new BpfimgError('usage', '--format crit: crit has no form for types');
  }
  if (source !== undefined && isFolder(source)) return decodeFolder(source, args, io);
  const input = source === undefined ? await io.stdin() : await openInput(source);
  try {
    await decodeOne(input, source, args, io);
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
    const finder = args.typed === false ? undefined : await typeFinder(dump, args);
    const forms = await itemForms(finder, maps, io);
    if (args.typed && !maps.some((map) => forms?.of(map))) io.say(NO_TYPES);
    await written(args.out, io, async (out) => {
      const bytes = args.typed === false;
      const options = { lines: args.format === 'ndjson', pretty: args.pretty, noPayload: args.nopl, forms, bytes };
      await writeDocument(dump, maps, new MapTypes(plugins), out, options);
      if (!options.lines) out.text('\n');
    });
  } finally {
    dump.close();
  }
}

const NO_TYPES = 'bpfimg: warning: no types are known; --btf FILE or --type NAME=KEY:VALUE names them';

async function decodeOne(input: Input, source: string | undefined, args: DecodeArguments, io: Io): Promise<void> {
  const reader = await ImageReader.open(input);
  const maps = args.map.length > 0 ? mapIds(args.map, reader.kind === BPFMAP_DATA) : undefined;
  const typed = args.typed || namesTypes(args);
  if (typed && reader.kind !== BPFMAP_DATA) {
    throw new BpfimgError('usage', `${input.name}: types are of the items in a bpfmap-data image, or in a dump folder`);
  }
  const forms = typed ? await imageForms(source, maps, args, io) : undefined;
  await written(args.out, io, async (out) => {
    await decodeImage(reader, out, {
      dialect: args.format,
      pretty: args.pretty,
      noPayload: args.nopl,
      ...(maps ? { maps } : {}),
      ...(forms ? { forms } : {}),
    });
    // crit ends its output with a line end on standard output only; ndjson has ended its last line.
    if (args.format === 'items' || (args.format === 'crit' && args.out === undefined)) out.text('\n');
  });
}

/** How the items of an image look: what its maps are, the images beside it say. */
async function imageForms(
  source: string | undefined,
  chosen: ReadonlySet<number> | undefined,
  args: DecodeArguments,
  io: Io,
): Promise<FormSource> {
  const dump = source === undefined ? undefined : await beside(source);
  if (dump === undefined) {
    throw new BpfimgError('usage', 'types need a dump: the image alone does not say what its maps are');
  }
  try {
    const { TypeFinder } = await import('../../dump/types.js');
    const finder = new TypeFinder(dump, args);
    const maps = dump.maps.filter((map: DumpMap) => chosen === undefined || chosen.has(map.mapId));
    const forms = await finder.imageForms(maps);
    sayProblems(finder, maps, io);
    if (forms.objects.length === 0) io.say(NO_TYPES);
    return forms;
  } finally {
    dump.close();
  }
}

/** The dump in whose folder an image stands. */
async function beside(image: string): Promise<Dump | undefined> {
  const name = path.basename(image);
  if (name !== IMAGE.data && name !== PLUGIN_IMAGE.data) return undefined;
  const dump = await openDump(path.dirname(image));
  if (dump.names.data === name) return dump;
  dump.close();
  return undefined;
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
