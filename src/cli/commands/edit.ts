import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { selectMaps } from '../../dump/select.js';
import type { Editing } from '../../edit/document.js';
import { CHANGED } from '../../edit/writable.js';
import { BpfimgError, EXIT, followed, ioError } from '../../errors.js';
import { openFile } from '../../io/input.js';
import { openOutput } from '../../io/output.js';
import { whenInterrupted } from '../../io/unfinished.js';
import type { Command, Given } from '../command.js';
import { runEditor, withoutNotes, writeWithNote } from '../editor.js';
import type { Io } from '../io.js';
import { DASH, libdir, map, types as typeOptions } from '../options.js';
import { Sources } from '../source.js';
import { documentForms, typeFinder } from '../types.js';

const takes = {
  words: {
    source: { type: 'string', demandOption: true, describe: 'a dump folder, archive, image or live maps' },
  },
  options: { map, ...typeOptions, ...libdir },
} as const;

type EditArguments = Given<typeof takes>;

export const command: Command = {
  name: 'edit',
  summary: 'edit maps as JSON in your editor',
  ...takes,
  examples: [
    ['edit dump --map flows', 'one map of a dump, in $VISUAL or $EDITOR'],
    ['edit checkpoint.tar.zst', 'the maps of a checkpointed container'],
    ['edit pinned:/sys/fs/bpf/app/limits', 'a live map; items that programs change meanwhile are left alone'],
  ],
  epilogue: 'If the document is wrong when you save it, the editor opens again, with the error at its line.',
  run,
};

async function run(args: EditArguments, io: Io): Promise<number> {
  if (args.source === DASH)
    throw new BpfimgError('usage', 'standard input cannot be edited: name a file, or live maps');
  const editing = await new Sources(io, args).editing(args.source, {
    pick: (dump) => selectMaps(dump, args.map),
    forms: async (dump, maps, types) => documentForms(await typeFinder(dump, types, args), maps, io),
  });
  const name = `${path.basename(editing.name).replace(/[^\w.-]+/g, '_')}.json`;
  // Nobody else may see what is in maps.
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-edit-'));
  const file = path.join(folder, name);
  // If interrupted, what the user has typed is not lost.
  const end = whenInterrupted(() => `what you have edited is in ${file}`);
  try {
    const code = await edit(editing, file, io);
    fs.rmSync(folder, { recursive: true });
    return code;
  } catch (error) {
    throw keptIn(error, folder, file);
  } finally {
    end();
    editing.close();
  }
}

/** The error, which says where the document is if it was edited; removes it if not. */
function keptIn(error: unknown, folder: string, file: string): unknown {
  if (error instanceof Unedited || !fs.existsSync(file)) {
    fs.rmSync(folder, { recursive: true });
    return error instanceof Unedited ? error.cause : error;
  }
  return followed(error, `what you have edited is in ${file}`);
}

/** An error before anything was edited. */
class Unedited extends Error {}

/** Lets the user edit until the document is right, does not change, or cannot be applied. */
async function edit(editing: Editing, file: string, io: Io): Promise<number> {
  const out = await openOutput(file);
  try {
    await editing.write(out);
    await out.commit();
  } catch (error) {
    await out.abort();
    throw error;
  }
  const original = read(file);
  let tried: Buffer = original;
  let line: number | undefined;
  let wrong: BpfimgError | undefined;
  for (;;) {
    try {
      await runEditor(file, line, io);
    } catch (error) {
      if (!fs.existsSync(file) || read(file).equals(original)) throw new Unedited('', { cause: error });
      throw error;
    }
    const text = withoutNotes(read(file));
    if (text.equals(original)) {
      io.say(`bpfimg: ${editing.name}: not edited, nothing is changed`);
      return EXIT.ok;
    }
    if (wrong !== undefined && text.equals(tried)) throw wrong;
    tried = text;
    try {
      const { lines, whole } = await applied(editing, file, text);
      for (const one of lines) io.say(`bpfimg: ${one}`);
      if (lines.length === 0) io.say(`bpfimg: ${editing.name}: edited`);
      return whole ? EXIT.ok : EXIT.failed;
    } catch (error) {
      if (!(error instanceof BpfimgError)) throw error;
      if (error.code === CHANGED) throw error;
      wrong = error;
      line = writeWithNote(file, text, error.message, error.line);
    }
  }
}

/** What is in the file, which an editor may have removed. */
function read(file: string): Buffer {
  try {
    return fs.readFileSync(file);
  } catch (error) {
    throw ioError(file, 'read it', error);
  }
}

/** Applies the text, from a file so that errors have lines. */
async function applied(editing: Editing, file: string, text: Uint8Array) {
  fs.writeFileSync(file, text);
  const input = openFile(file, path.basename(file));
  try {
    return await editing.apply(input);
  } finally {
    input.close();
  }
}
