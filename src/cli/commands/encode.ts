import { encodeImage } from '../../json/encode.js';
import { openInput } from '../../io/input.js';
import { openOutput } from '../../io/output.js';
import type { Io } from '../io.js';
import { sourceOf } from '../source.js';

export interface EncodeArguments {
  readonly json?: string | undefined;
  readonly in?: string | undefined;
  readonly out?: string | undefined;
  readonly dir?: string | undefined;
  readonly force: boolean;
}

export async function run(args: EncodeArguments, io: Io): Promise<void> {
  const source = sourceOf(args.json, args.in);
  const input = source === undefined ? await io.stdin() : await openInput(source);
  try {
    const out = args.out === undefined ? io.stdout() : openOutput(args.out);
    try {
      await encodeImage(input, out);
      await out.commit();
    } catch (error) {
      await out.abort();
      throw error;
    }
  } finally {
    input.close();
  }
}
