import { BpfimgError, EXIT } from '../../errors.js';
import { ImageReader } from '../../image/reader.js';
import { type Input, openInput } from '../../io/input.js';
import { PYTHON_PRETTY, print } from '../../json/print.js';
import type { Command, Given } from '../command.js';
import type { Io } from '../io.js';
import { DASH } from '../source.js';
import { reported } from '../start.js';
import { written } from '../written.js';

const takes = {
  words: { images: { type: 'string', array: true, demandOption: true, describe: 'images to read' } },
} as const;

export const command: Command = {
  name: 'info',
  summary: 'print the kind and number of entries of images, as crit does',
  ...takes,
  examples: [['info dump/*.img', 'every image of a dump']],
  run,
};

/**
 * Kind and number of entries, as crit's info prints them; counted right where an entry has more than a message.
 * An image that cannot be read keeps no other from its line.
 */
async function run({ images, debug = false }: Given<typeof takes>, io: Io): Promise<number> {
  let code: number = EXIT.ok;
  await written(undefined, io, async (out) => {
    for (const name of images) {
      try {
        const { image, ...info } = await infoOf(() => (name === DASH ? io.stdin() : openInput(name)));
        out.text(`${print(images.length === 1 ? info : { image, ...info }, PYTHON_PRETTY)}\n`);
      } catch (error) {
        if (!(error instanceof BpfimgError)) throw error;
        code = reported(error, io, debug);
      }
    }
  });
  return code;
}

async function infoOf(open: () => Promise<Input>) {
  const input = await open();
  try {
    const reader = await ImageReader.open(input);
    let count = 0;
    for await (const _ of reader.entries()) count++;
    return { image: input.name, magic: reader.kind.name, count };
  } finally {
    input.close();
  }
}
