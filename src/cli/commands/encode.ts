import { BpfimgError } from '../../errors.js';
import { openInput } from '../../io/input.js';
import { encodeImage } from '../../json/encode.js';
import type { Command, Given } from '../command.js';
import type { Io } from '../io.js';
import { boolean, libdir, string } from '../options.js';
import { sourceOf } from '../source.js';
import { written } from '../written.js';

const takes = {
  words: { json: { type: 'string', describe: 'JSON file, or - for standard input' } },
  options: {
    in: { ...string, alias: 'i', describe: 'JSON to read; standard input when none is named' },
    out: { ...string, alias: 'o', describe: 'image to write instead of standard output' },
    dir: { ...string, alias: 'D', describe: 'dump folder to write a maps document into' },
    force: { ...boolean, describe: 'replace the BPF parts of a dump that is in DIR' },
    ...libdir,
  },
  conflicts: ['out', 'dir'],
} as const;

type EncodeArguments = Given<typeof takes>;

export const command: Command = {
  name: 'encode',
  summary: 'JSON back to an image or a dump',
  ...takes,
  examples: [
    ['encode flows.json -o bpfmap-data.img', 'one image'],
    ['encode maps.json -D dump --force', 'the maps of a dump, edited'],
  ],
  run,
};

async function run(args: EncodeArguments, io: Io): Promise<void> {
  const source = sourceOf(args.json, args.in);
  if (args.out === undefined && args.dir === undefined && io.terminal) {
    throw new BpfimgError('usage', 'an image is no text for a terminal: name a file with -o, or a folder with -D');
  }
  const input = source === undefined ? await io.stdin() : await openInput(source);
  try {
    if (args.dir !== undefined) {
      const [{ encodeDocument }, { mapTypes }] = [await import('../../dump/encode.js'), await import('../plugins.js')];
      await encodeDocument(input, args.dir, args.force, await mapTypes(args.libdir, io));
    } else await written(args.out, io, (out) => encodeImage(input, out));
  } finally {
    input.close();
  }
}
