import * as fs from 'node:fs';
import { BpfimgError, ioError } from '../../errors.js';
import { type Input, openInput, peeked } from '../../io/input.js';
import type { Output } from '../../io/output.js';
import { encodeImage } from '../../json/encode.js';
import type { Command, Given } from '../command.js';
import type { Io } from '../io.js';
import { boolean, DASH, libdir, string } from '../options.js';
import { sourceOf } from '../source.js';
import { outputOf } from '../written.js';

const takes = {
  words: { json: { type: 'string', completes: 'FILE', describe: 'a JSON file, or - for standard input' } },
  options: {
    in: {
      ...string,
      alias: 'i',
      value: 'FILE',
      group: 'Source',
      describe: 'JSON to read (default: standard input)',
    },
    out: {
      ...string,
      alias: 'o',
      value: 'FILE',
      group: 'Output',
      describe: 'image, or archive of a maps document, to write (default: standard output)',
    },
    dir: {
      ...string,
      alias: 'D',
      value: 'DIR',
      group: 'Output',
      describe: 'write a maps document into this dump folder or archive',
    },
    force: { ...boolean, group: 'Output', describe: 'edit the dump that is in DIR' },
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
    ['encode maps.json -D checkpoint.tar.gz --force', 'or into a checkpoint of a container'],
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
    if (args.dir !== undefined) await encodeDump(input, args.dir, args, io);
    else await encodeOne(input, args, io);
  } finally {
    input.close();
  }
}

/** Bytes that show whether JSON is a maps document: its first member. */
const HEAD = 256;

/**
 * Encodes an image, or a maps document as an archive. The output is opened before the input arrives, so that it fails
 * at once if it cannot be written.
 */
async function encodeOne(given: Input, { out: file, libdir }: EncodeArguments, io: Io): Promise<void> {
  const out = await outputOf(file, io);
  try {
    const { head, input } = await peeked(given, HEAD);
    if (!/^\s*\{\s*"(format|maps)"/.test(Buffer.from(head).toString('latin1'))) return await encodeAs(input, out);
    const { encodeDocument, mapTypes, packed, packFormat } = await ofDumps();
    const format = file === undefined || file === DASH ? 'tar' : packFormat(file);
    // Its name would make people take it for an image.
    if (format === undefined) return await encodeAs(input, out);
    const types = await mapTypes(libdir, io);
    return await packed(out, format, (folder) => encodeDocument(input, folder, false, types));
  } catch (error) {
    await out.abort();
    throw error;
  }
}

async function encodeAs(input: Input, image: Output): Promise<void> {
  await encodeImage(input, image);
  await image.commit();
}

/** Encodes a maps document into a folder, or into an existing archive. */
async function encodeDump(input: Input, dir: string, { force, libdir }: EncodeArguments, io: Io): Promise<void> {
  const { encodeDocument, encodeIntoArchive, mapTypes } = await ofDumps();
  const types = await mapTypes(libdir, io);
  if (!isFile(dir)) return encodeDocument(input, dir, force, types);
  if (!force) throw new BpfimgError('conflict', 'it is there already; --force edits the dump in it', { subject: dir });
  return encodeIntoArchive(input, dir, types);
}

/** Whether it is a regular file, not a link, which others may have put there. */
function isFile(path: string): boolean {
  try {
    return fs.lstatSync(path, { throwIfNoEntry: false })?.isFile() === true;
  } catch (error) {
    throw ioError(path, 'look at it', error);
  }
}

/** Code that only dumps need: encoding a small image takes less time than loading it. */
async function ofDumps() {
  return {
    ...(await import('../../dump/encode.js')),
    ...(await import('../../source/pack.js')),
    ...(await import('../plugins.js')),
  };
}
