import { BpfimgError } from '../../errors.js';
import { BPFMAP_DATA } from '../../image/kinds.js';
import { ImageReader } from '../../image/reader.js';
import { type Input, openInput } from '../../io/input.js';
import { decodeImage } from '../../json/decode.js';
import type { DecodeArguments } from '../decode-dump.js';
import type { Io } from '../io.js';
import { namesTypes } from '../options.js';
import { isFolder, sourceOf } from '../source.js';
import { written } from '../written.js';

export async function run(args: DecodeArguments, io: Io): Promise<void> {
  const source = sourceOf(args.source, args.in);
  if (args.typed === false && namesTypes(args)) throw new BpfimgError('usage', '--no-typed has no use for types');
  if (args.format === 'crit' && (args.typed || namesTypes(args))) {
    throw new BpfimgError('usage', '--format crit: crit has no form for types');
  }
  if (source !== undefined && isFolder(source))
    return (await import('../decode-dump.js')).decodeFolder(source, args, io);
  const input = source === undefined ? await io.stdin() : await openInput(source);
  try {
    await decodeOne(input, source, args, io);
  } finally {
    input.close();
  }
}

async function decodeOne(input: Input, source: string | undefined, args: DecodeArguments, io: Io): Promise<void> {
  const reader = await ImageReader.open(input);
  const maps = args.map.length > 0 ? mapIds(args.map, reader.kind === BPFMAP_DATA) : undefined;
  const typed = args.typed || namesTypes(args);
  if (typed && reader.kind !== BPFMAP_DATA) {
    throw new BpfimgError('usage', `${input.name}: types are of the items in a bpfmap-data image, or in a dump folder`);
  }
  const forms = typed ? await (await import('../decode-dump.js')).imageForms(source, maps, args, io) : undefined;
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
