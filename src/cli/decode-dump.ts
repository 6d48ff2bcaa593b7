/** `decode` of a dump, and of an image with the dump that it is of: loaded when there is one. */
import * as path from 'node:path';
import { plugins } from '../../plugins/index.js';
import { writeDocument } from '../dump/document.js';
import { type Dump, type DumpMap, IMAGE, openDump, PLUGIN_IMAGE } from '../dump/model.js';
import { selectMaps } from '../dump/select.js';
import { BpfimgError } from '../errors.js';
import type { Dialect, FormSource } from '../json/decode.js';
import { MapTypes } from '../maptype.js';
import type { Io } from './io.js';
import type { TypeArguments } from './options.js';
import { itemForms, sayProblems, typeFinder } from './types.js';
import { written } from './written.js';

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

/** Decodes a whole dump. */
export async function decodeFolder(folder: string, args: DecodeArguments, io: Io): Promise<void> {
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

/** How the items of an image look: what its maps are, the images beside it say. */
export async function imageForms(
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
    const { TypeFinder } = await import('../dump/types.js');
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
