import { BpfimgError } from '../../errors.js';
import { openInput } from '../../io/input.js';
import { encodeImage } from '../../json/encode.js';
import type { Io } from '../io.js';
import { sourceOf } from '../source.js';
import { written } from '../written.js';

export interface EncodeArguments {
  readonly json?: string | undefined;
  readonly in?: string | undefined;
  readonly out?: string | undefined;
  readonly dir?: string | undefined;
  readonly force: boolean;
}

export async function run(args: EncodeArguments, io: Io): Promise<void> {
  const source = sourceOf(args.json, args.in);
  if (args.out === undefined && args.dir === undefined && io.terminal) {
    throw new BpfimgError('usage', 'an image is no text for a terminal: name a file with -o, or a folder with -D');
  }
  const input = source === undefined ? await io.stdin() : await openInput(source);
  try {
    if (args.dir !== undefined) await (await import('../encode-dump.js')).encodeDump(input, args.dir, args.force);
    else await written(args.out, io, (out) => encodeImage(input, out));
  } finally {
    input.close();
  }
}
