import { BpfimgError, EXIT } from '../../errors.js';
import { ImageReader } from '../../image/reader.js';
import type { Input } from '../../io/input.js';
import { PYTHON_PRETTY, print } from '../../json/print.js';
import type { JsonObject } from '../../value.js';
import type { Command, Given } from '../command.js';
import type { Io } from '../io.js';
import { DASH } from '../options.js';
import { Sources } from '../source.js';
import { reported } from '../start.js';
import { written } from '../written.js';

const takes = {
  words: {
    sources: {
      type: 'string',
      array: true,
      demandOption: true,
      value: 'SOURCE',
      describe: 'images, or dumps with all their images',
    },
  },
} as const;

export const command: Command = {
  name: 'info',
  summary: 'print the kind and number of entries of images, as crit does',
  ...takes,
  examples: [
    ['info dump/*.img', 'every image of a dump'],
    ['info checkpoint.tar.zst', 'those in an archive that bpfimg decodes'],
    ['info - < bpfmap-data.img', 'standard input'],
  ],
  run,
};

/**
 * Kind and number of entries, as crit's info prints them, but correct even if entries are more than a message.
 * An image that cannot be read does not keep the others from being listed.
 */
async function run({ sources, debug = false }: Given<typeof takes>, io: Io): Promise<number> {
  let code: number = EXIT.ok;
  await written(undefined, io, async (out) => {
    // A dump has many images that only CRIU can read.
    const guarded = async (look: () => Promise<void>, inDump = false) => {
      try {
        await look();
      } catch (error) {
        if (!(error instanceof BpfimgError)) throw error;
        if (inDump && error.code === 'not-decoded') return;
        code = reported(error, io, debug);
      }
    };
    const line = (info: JsonObject) => out.text(`${print(info, PYTHON_PRETTY)}\n`);
    const opener = new Sources(io, { libdir: [] });
    for (const name of sources) {
      await guarded(async () => {
        const source = await opener.open(name === DASH ? undefined : name, true);
        try {
          if (source.kind === 'image') {
            const { image, ...info } = await infoOf(source.input);
            line(sources.length === 1 ? info : { image, ...info });
          } else {
            await source.check?.();
            const { files } = source;
            const images = [...files.names()].filter((file) => file.endsWith('.img')).sort();
            for (const file of images) {
              const input = files.open(file);
              const sha256 = source.digest?.(file);
              await guarded(async () => line({ ...(await infoOf(input)), ...(sha256 && { sha256 }) }), true);
              input.close();
            }
          }
        } finally {
          source.close();
        }
      });
    }
  });
  return code;
}

async function infoOf(input: Input): Promise<{ image: string; magic: string; count: number }> {
  const reader = await ImageReader.open(input);
  let count = 0;
  for await (const _ of reader.entries()) count++;
  return { image: input.name, magic: reader.kind.name, count };
}
