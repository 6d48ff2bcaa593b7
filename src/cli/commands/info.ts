import { ImageReader } from '../../image/reader.js';
import { openInput } from '../../io/input.js';
import { PYTHON_PRETTY, print } from '../../json/print.js';
import type { Io } from '../io.js';
import { DASH } from '../source.js';
import { written } from '../written.js';

export interface InfoArguments {
  readonly images: readonly string[];
}

/** Kind and number of entries, as crit's info prints them; counted right where an entry has more than a message. */
export async function run(args: InfoArguments, io: Io): Promise<void> {
  await written(undefined, io, async (out) => {
    for (const name of args.images) {
      const input = name === DASH ? await io.stdin() : await openInput(name);
      try {
        const reader = await ImageReader.open(input);
        let count = 0;
        for await (const _ of reader.entries()) count++;
        const info = { magic: reader.kind.name, count };
        out.text(`${print(args.images.length === 1 ? info : { image: input.name, ...info }, PYTHON_PRETTY)}\n`);
      } finally {
        input.close();
      }
    }
  });
}
