import { BPFMAP_DATA } from '../../image/kinds.js';
import { ImageReader } from '../../image/reader.js';
import { decodeImage, type Dialect } from '../../json/decode.js';
import { BpfimgError } from '../../errors.js';
import { openInput } from '../../io/input.js';
import { openOutput } from '../../io/output.js';
import type { Io } from '../io.js';
import { isFolder, sourceOf } from '../source.js';

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
  if (source !== undefined && isFolder(source)) throw new BpfimgError('unsupported', 'x');
  const input = source === undefined ? await io.stdin() : await openInput(source);
  try {
    const reader = await ImageReader.open(input);
    const maps = args.map.length > 0 ? mapIds(args.map, reader.kind === BPFMAP_DATA) : undefined;
    const out = args.out === undefined ? io.stdout() : openOutput(args.out);
    try {
      await decodeImage(reader, out, {
        dialect: args.format,
        pretty: args.pretty,
        noPayload: args.nopl,
        ...(maps ? { maps } : {}),
      });
      // crit ends its output with a line end on standard output only.
      if (args.format === 'items' || (args.format === 'crit' && args.out === undefined)) out.text('\n');
      await out.commit();
    } catch (error) {
      await out.abort();
      throw error;
    }
  } finally {
    input.close();
  }
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
