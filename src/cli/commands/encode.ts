import { BpfimgError } from '../../errors.js';
import { openInput } from '../../io/input.js';
import { encodeImage } from '../../json/encode.js';
import type { Command, Given } from '../command.js';
import type { Io } from '../io.js';
import { boolean, libdir, string } from '../options.js';
import { sourceOf } from '../source.js';
import { written } from '../written.js';

const takes = {
  words: { json: { type: 'string', describe: 'a JSON file, or - for standard input' } },
  options: {
    in: { ...string, alias: 'i', describe: 'JSON to read (default: standard input)' },
    out: { ...string, alias: 'o', describe: 'image to write (default: standard output)' },
    dir: { ...string, alias: 'D', describe: 'write a maps document into this dump folder' },
    force: { ...boolean, describe: 'edit the dump that is in DIR' },
    ...libdir,
  },
  conflicts: ['out', 'dir'],
} as const;

type EncodeArguments = Given<typeof takes>;

export const command: Command = {
  name: 'encode',
  summary: 'convert JSON back to an image or a dump',
  ...takes,
  examples: [
    ['encode flows.json -o bpfmap-data.img', 'one image'],
    ['encode maps.json -D dump --force', 'write edited maps back into a dump'],
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
