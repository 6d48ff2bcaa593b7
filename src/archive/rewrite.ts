/** Copies an archive with some files replaced; all other bytes stay as they are. */
import { BpfimgError } from '../errors.js';
import { bufferInput, Cursor, type Input, peeked } from '../io/input.js';
import type { Output } from '../io/output.js';
import { copyInput } from '../io/stream.js';
import { compressing } from './compress.js';
import { archiveFormat, decompressed, HEAD } from './compression.js';
import { BLOCK, makeRecords, needsRecord, padding, parseRecords, withSize } from './header.js';
import { type ArrivingEntry, entryText, type HeaderBlock, TarReader } from './reader.js';
import { parseSums, SUMS_MOST, sumOf, sumsFolder, sumsText } from './sums.js';
import { fileHeader, recordHeader } from './writer.js';

/** New contents of files, by name: an input with a size replaces the file or adds it. */
export type Changes = ReadonlyMap<string, Input | 'removed'>;

/**
 * Copies an archive, in its own compression, and commits `out`; on failure it aborts `out`. It owns
 * `given`.
 * @param last called before the commit; if it throws, nothing is committed
 * @throws BpfimgError for a broken archive, or a change to something other than a plain file
 */
export async function rewriteArchive(
  given: Input,
  out: Output,
  changes: Changes,
  last: () => void = () => {},
): Promise<void> {
  const { head, input } = await peeked(given, HEAD);
  let plain: Input | undefined;
  let packed = out;
  try {
    const format = archiveFormat(head);
    if (format === undefined) {
      throw new BpfimgError('badImage', 'neither a tar archive nor gzip or zstd', { subject: input.name });
    }
    plain = await decompressed(input, format);
    packed = await compressing(out, format);
    await rewriteTar(plain, packed, changes);
    last();
    await packed.commit();
  } catch (error) {
    await packed.abort();
    throw error;
  } finally {
    (plain ?? input).close();
  }
}

async function rewriteTar(plain: Input, out: Output, changes: Changes): Promise<void> {
  const reader = new TarReader(plain);
  const seen = new Set<string>();
  let mtime = 0;
  /** Adds files that were not there. */
  const added = async (wanted: (name: string) => boolean): Promise<void> => {
    for (const [name, change] of changes) {
      if (change === 'removed' || seen.has(name) || !wanted(name)) continue;
      seen.add(name);
      await writeBody(fileHeader(name, change.size as number, { mode: 0o600, mtime }), change, out);
    }
  };
  for await (const entry of reader.entries()) {
    const folder = sumsFolder(entry.name);
    // Digests are of what comes before them.
    if (folder !== undefined) await added((name) => isIn(folder, name));
    const change = changes.get(entry.name) ?? (await newSums(entry, changes));
    if (entry.type === 'file') mtime = Math.max(mtime, entry.mtime);
    if (change === undefined) await copyEntry(entry, out);
    else {
      if (entry.type !== 'file') {
        throw new BpfimgError('unsupported', 'it is no regular file, so it cannot be changed', {
          subject: plain.name,
          part: entryText(entry.name),
        });
      }
      seen.add(entry.name);
      if (change !== 'removed') await writeBody(replaced(entry, change.size as number), change, out);
    }
    await out.turn();
  }
  await added(() => true);
  out.write(Buffer.alloc(BLOCK));
  const rest = new Cursor(reader.rest());
  while ((await rest.fill()) > 0) {
    out.write(rest.bytes.subarray(rest.at, rest.end));
    rest.at = rest.end;
    await out.turn();
  }
}

async function copyEntry({ headers, padded, size }: ArrivingEntry, out: Output): Promise<void> {
  for (const { block, body } of headers) {
    out.write(block);
    out.write(body);
  }
  await copyInput(padded, 0, size + padding(size), out);
}

async function writeBody(header: Uint8Array, input: Input, out: Output): Promise<void> {
  const size = input.size as number;
  out.write(header);
  await copyInput(input, 0, size, out);
  out.write(Buffer.alloc(padding(size)));
}

/** The headers of an entry with another size. Everything else in them stays. */
function replaced({ headers }: ArrivingEntry, size: number): Buffer {
  const parts = headers.map((header, i) => {
    if (i === headers.length - 1) return withSize(header.block, size);
    return header.type === 'x' ? withSizeRecord(header, size) : Buffer.concat([header.block, header.body]);
  });
  if (needsRecord(size) && !headers.some(({ type }) => type === 'x')) {
    parts.unshift(recordHeader([['size', String(size)]], { mode: 0o600, mtime: 0 }));
  }
  return Buffer.concat(parts);
}

/** A PAX header that gives a size only if the header after it cannot. */
function withSizeRecord({ block, body, size }: HeaderBlock, newSize: number): Buffer {
  const records = parseRecords(body.subarray(0, size));
  const left = records.filter(([name]) => name !== 'size');
  if (needsRecord(newSize)) left.push(['size', String(newSize)]);
  else if (left.length === records.length) return Buffer.concat([block, body]);
  if (left.length === 0) return Buffer.alloc(0);
  const bytes = makeRecords(left);
  return Buffer.concat([withSize(block, bytes.length), bytes, Buffer.alloc(padding(bytes.length))]);
}

/** Corrects the archive's digests that `changes` makes wrong; undefined if `entry` does not contain digests. */
async function newSums(entry: ArrivingEntry, changes: Changes): Promise<Input | undefined> {
  const folder = sumsFolder(entry.name);
  const ours = [...changes].filter(([name]) => folder !== undefined && isIn(folder, name));
  if (folder === undefined || entry.type !== 'file' || entry.size > SUMS_MOST || ours.length === 0) return undefined;
  const text = await new Cursor(entry.body).take(entry.size);
  const sums = parseSums(text);
  // Another program's, in another form.
  if (sums === undefined) return bufferInput(text);
  for (const [name, change] of ours) {
    const short = name.slice(folder.length);
    if (change === 'removed') sums.delete(short);
    else sums.set(short, await sumOf(change));
  }
  return bufferInput(Buffer.from(sumsText(sums), 'latin1'));
}

function isIn(folder: string, name: string): boolean {
  return name.startsWith(folder) && !name.slice(folder.length).includes('/');
}
