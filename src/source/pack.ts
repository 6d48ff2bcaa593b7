/** Dumps into archives: packs a folder as a stream, and edits the dump in an archive. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { compressing } from '../archive/compress.js';
import type { Format } from '../archive/compression.js';
import { type Changes, rewriteArchive } from '../archive/rewrite.js';
import { ArchiveOutput } from '../archive/writer.js';
import { encodeDocument } from '../dump/encode.js';
import { IMAGE } from '../dump/model.js';
import { BpfimgError } from '../errors.js';
import { type Input, openFile, openInput } from '../io/input.js';
import { type Output, openOutput } from '../io/output.js';
import { copyInput, equalBytes } from '../io/stream.js';
import type { MapTypes } from '../maptype.js';
import { isRead, openArchivedDump } from './archive.js';
import { type PrivateFolder, privateFolder } from './private.js';

/** The compression for an archive with this name; undefined if the name is not that of an archive. */
export function packFormat(name: string): Format | undefined {
  if (/\.tar$/i.test(name)) return 'tar';
  if (/\.(tar\.gz|tgz)$/i.test(name)) return 'gzip';
  return /\.(tar\.zst|tzst)$/i.test(name) ? 'zstd' : undefined;
}

/**
 * Has `write` make a dump in a temporary folder, and packs that into `out`: attributes of maps come before
 * their items. Commits `out`, or aborts it if something fails or no dump was made.
 */
export async function packed<T>(out: Output, format: Format, write: (folder: string) => Promise<T>): Promise<T> {
  const folder = privateFolder();
  let to = out;
  try {
    const dump = path.join(folder.path, 'dump');
    const result = await write(dump);
    if (!fs.existsSync(dump)) {
      await out.abort();
      return result;
    }
    const names = fs.readdirSync(dump).sort();
    const order = [...names.filter((name) => name !== IMAGE.data), ...names.filter((name) => name === IMAGE.data)];
    to = await compressing(out, format);
    const archive = new ArchiveOutput(to, Math.floor(Date.now() / 1000));
    for (const name of order) await using(openFile(path.join(dump, name)), (input) => archive.input(name, input));
    await archive.finish();
    await to.commit();
    return result;
  } catch (error) {
    await to.abort();
    throw error;
  } finally {
    folder.close();
  }
}

/** Encodes a document into the dump in the archive `file` as {@link encodeDocument} does into one in a folder. */
export function encodeIntoArchive(document: Input, file: string, types: MapTypes): Promise<void> {
  return editArchive(file, (folder) => encodeDocument(document, folder, true, types));
}

/**
 * Edits the dump in the archive `file`, whose images `edit` finds in a folder. Everything else in the archive stays
 * byte for byte; if something fails, the archive does not change.
 */
export async function editArchive(file: string, edit: (folder: string) => Promise<void>): Promise<void> {
  const before = fileState(file);
  const folder = privateFolder();
  try {
    const changes = await changesOf(file, folder, edit);
    try {
      await rewriteArchive(await openInput(file), await openOutput(file), changes.files, () => {
        if (fileState(file) === before) return;
        const what = 'somebody else has changed it in the meantime; nothing is written';
        throw new BpfimgError('conflict', what, { subject: file });
      });
    } finally {
      for (const input of changes.open) input.close();
    }
  } finally {
    folder.close();
  }
}

/** What shows that a file was replaced or written to. */
export function fileState(file: string): string {
  const stat = fs.statSync(file, { bigint: true, throwIfNoEntry: false });
  return `${stat?.dev} ${stat?.ino} ${stat?.ctimeNs}`;
}

/** The new contents of the archive's files, and what must be closed afterwards. */
async function changesOf(
  file: string,
  folder: PrivateFolder,
  edit: (folder: string) => Promise<void>,
): Promise<{ readonly files: Changes; readonly open: readonly Input[] }> {
  const { archive, images, folder: prefix } = await openArchivedDump(await openInput(file));
  const open: Input[] = [];
  try {
    await archive.check();
    const original = (name: string) => archive.open(images.get(name) ?? '') as Input;
    const read = [...images.keys()].filter(isRead);
    for (const name of read) await unpack(original(name), path.join(folder.path, name));
    try {
      await edit(folder.path);
    } catch (error) {
      throw inArchive(error, folder.path, archive.name);
    }
    const files = new Map<string, Input | 'removed'>();
    const names = new Set(fs.readdirSync(folder.path));
    for (const name of read) if (!names.has(name)) files.set(images.get(name) as string, 'removed');
    for (const name of names) {
      const input = openFile(path.join(folder.path, name));
      open.push(input);
      const before = images.has(name) ? original(name) : undefined;
      const size = input.size ?? 0;
      const same = before?.size === size && (await equalBytes(before, 0, input, 0, size));
      if (!same) files.set(images.get(name) ?? prefix + name, input);
    }
    return { files, open };
  } catch (error) {
    for (const input of open) input.close();
    throw error;
  } finally {
    archive.close();
  }
}

async function unpack(input: Input, file: string): Promise<void> {
  const out = await openOutput(file);
  try {
    await copyInput(input, 0, input.size ?? 0, out);
    await out.commit();
  } catch (error) {
    await out.abort();
    throw error;
  }
}

/** Turns an error about the temporary folder into one about the archive. */
function inArchive(error: unknown, folder: string, archive: string): unknown {
  if (!(error instanceof BpfimgError) || !error.subject?.startsWith(folder)) return error;
  const { kind, text, subject, ...details } = error;
  return new BpfimgError(kind, text, { ...details, subject: archive + subject.slice(folder.length).replace('/', ':') });
}

async function using<T>(input: Input, use: (input: Input) => Promise<T>): Promise<T> {
  try {
    return await use(input);
  } finally {
    input.close();
  }
}
