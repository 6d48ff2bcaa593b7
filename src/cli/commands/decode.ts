import * as path from 'node:path';
import type { Dump, DumpMap } from '../../dump/model.js';
import { BpfimgError } from '../../errors.js';
import { BPFMAP_DATA } from '../../image/kinds.js';
import { ImageReader } from '../../image/reader.js';
import { decodeImage, type FormSource } from '../../json/decode.js';
import type { MapTypes } from '../../maptype.js';
import type { DumpSource, ImageSource } from '../../source/source.js';
import { chooses, choosing, chosen } from '../choosing.js';
import type { Command, Given } from '../command.js';
import type { Io } from '../io.js';
import { as, boolean, image, libdir, like, map, namesTypes, source, string, types } from '../options.js';
import { Sources, sourceOf } from '../source.js';
import { written } from '../written.js';

const takes = {
  words: { source },
  options: {
    in: image,
    out: {
      ...string,
      alias: 'o',
      value: 'FILE',
      group: 'Output',
      describe: 'file to write (default: standard output)',
    },
    format: {
      group: 'Output',
      choices: ['items', 'crit', 'ndjson'],
      requiresArg: true,
      default: 'items',
      describe: 'JSON dialect',
    },
    pretty: { ...boolean, group: 'Output', describe: 'indent, and show flags by name, as crit does' },
    nopl: { ...boolean, group: 'Output', describe: 'omit keys and values' },
    map,
    ...choosing,
    ...types,
    ...as,
    typed: {
      group: 'Types',
      type: 'boolean',
      defaultDescription: 'on for dump folders',
      describe: 'show keys and values by their types, if known; --no-typed shows bytes',
    },
    ...libdir,
    like,
  },
} as const;

type DecodeArguments = Given<typeof takes>;

export const command: Command = {
  name: 'decode',
  summary: 'convert an image or a dump to JSON',
  ...takes,
  examples: [
    ['decode bpfmap-data.img', 'the items of every map'],
    ['decode dump --map flows', 'everything about one map of a dump'],
    ['decode files.img --format crit --pretty', 'as crit prints it'],
  ],
  run,
};

async function run(args: DecodeArguments, io: Io): Promise<void> {
  const source = sourceOf(args.source, args.in);
  if (args.typed === false && (namesTypes(args) || args.as.length > 0))
    throw new BpfimgError('usage', '--no-typed has no use for types');
  if (args.format === 'crit' && (args.typed || namesTypes(args) || args.as.length > 0)) {
    throw new BpfimgError('usage', '--format crit: crit has no form for types');
  }
  const sources = new Sources(io, args);
  const opened = await sources.open(source);
  try {
    sources.expectLikeUsed();
    if (opened.kind === 'dump') await decodeDump(opened, await sources.types(), args, io);
    else await decodeOne(opened, opened.form === 'image' ? source : undefined, args, io);
  } finally {
    opened.close();
  }
}

/** @param file the image's path, if it is a file */
async function decodeOne(
  { input }: ImageSource,
  file: string | undefined,
  args: DecodeArguments,
  io: Io,
): Promise<void> {
  if (chooses(args)) {
    throw new BpfimgError('usage', 'it takes a dump or live maps: one image does not say what its maps are', {
      subject: '--where',
    });
  }
  const reader = await ImageReader.open(input);
  const maps = args.map.length > 0 ? mapIds(args.map, reader.kind === BPFMAP_DATA) : undefined;
  const typed = args.typed || namesTypes(args) || args.as.length > 0;
  if (typed && reader.kind !== BPFMAP_DATA) {
    throw new BpfimgError('usage', 'types are of the items in a bpfmap-data image, or in a dump folder', {
      subject: input.name,
    });
  }
  const forms = typed ? await imageForms(file, maps, args, io) : undefined;
  await written(args.out, io, async (out) => {
    await decodeImage(reader, out, {
      dialect: args.format,
      pretty: args.pretty,
      noPayload: args.nopl,
      ...(maps ? { maps } : {}),
      ...(forms ? { forms } : {}),
    });
    // crit ends its output with a newline only on standard output; ndjson has ended its last line already.
    if (args.format === 'items' || (args.format === 'crit' && args.out === undefined)) out.text('\n');
  });
}

/** Maps have no names in a single image: only ids select. */
function mapIds(selectors: readonly string[], hasMaps: boolean): Set<number> {
  if (!hasMaps) throw new BpfimgError('usage', '--map selects within a bpfmap-data image or a dump folder');
  return new Set(
    selectors
      .flatMap((text) => text.split(','))
      .map((text) => {
        if (!/^\d{1,10}$/.test(text)) {
          throw new BpfimgError('usage', 'a single image knows maps only by id; a dump has their names', {
            subject: `--map ${text}`,
          });
        }
        return Number(text);
      }),
  );
}

/** Code that only dumps need: decoding a small image takes less time than loading it. */
async function ofDumps() {
  return {
    ...(await import('../../dump/document.js')),
    ...(await import('../../dump/model.js')),
    ...(await import('../../dump/select.js')),
    ...(await import('../../dump/types.js')),
    ...(await import('../plugins.js')),
    ...(await import('../types.js')),
  };
}

/** Decodes a whole dump. */
async function decodeDump({ files, name }: DumpSource, types: MapTypes, args: DecodeArguments, io: Io): Promise<void> {
  if (args.format === 'crit') {
    throw new BpfimgError('usage', `--format crit: crit has no form for a whole dump, name one image of ${name}`);
  }
  const { documentForms: itemForms, openDump, selectMaps, typeFinder, writeDocument } = await ofDumps();
  const dump = await chosen(await openDump(files), args, types, (all) => selectMaps(all, args.map));
  try {
    const maps = selectMaps(dump, args.map);
    const finder = args.typed === false ? undefined : await typeFinder(dump, types, args);
    const forms = await itemForms(finder, maps, io);
    if (args.typed && !maps.some((map) => forms?.of(map))) io.say(NO_TYPES_WARNING);
    await written(args.out, io, async (out) => {
      const bytes = args.typed === false;
      const options = { lines: args.format === 'ndjson', pretty: args.pretty, noPayload: args.nopl, forms, bytes };
      await writeDocument(dump, maps, types, out, options);
      if (!options.lines) out.text('\n');
    });
  } finally {
    dump.close();
  }
}

const NO_TYPES_WARNING = 'bpfimg: warning: no types are known; --btf FILE or --type NAME=KEY:VALUE names them';

/** How the items of an image look, which the other images in its folder decide. */
async function imageForms(
  file: string | undefined,
  chosen: ReadonlySet<number> | undefined,
  args: DecodeArguments,
  io: Io,
): Promise<FormSource> {
  const { expectUsed, mapTypes, sayProblems, TypeFinder } = await ofDumps();
  const dump = file === undefined ? undefined : await beside(file);
  if (dump === undefined) {
    throw new BpfimgError('usage', 'types need a dump: the image alone does not say what its maps are');
  }
  try {
    const finder = new TypeFinder(dump, await mapTypes(args.libdir, io), args);
    const maps = dump.maps.filter((map: DumpMap) => chosen === undefined || chosen.has(map.mapId));
    const forms = await finder.imageForms(maps);
    expectUsed(finder.unusedAs);
    sayProblems(finder, maps, io);
    if (forms.objects.length === 0) io.say(NO_TYPES_WARNING);
    return forms;
  } finally {
    dump.close();
  }
}

/** The dump in whose folder an image is. */
async function beside(image: string): Promise<Dump | undefined> {
  const { IMAGE, openDump, PLUGIN_IMAGE } = await ofDumps();
  const name = path.basename(image);
  if (name !== IMAGE.data && name !== PLUGIN_IMAGE.data) return undefined;
  const dump = await openDump(path.dirname(image));
  if (dump.names.data === name) return dump;
  dump.close();
  return undefined;
}
