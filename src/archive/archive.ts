/**
 * Reads a checkpoint archive, as podman, CRI-O, containerd and others write it. An uncompressed archive is read in
 * place; from others, the wanted entries are put aside in a spool.
 */
import * as fs from 'node:fs';
import { BpfimgError, errnoOf } from '../errors.js';
import { bufferInput, Cursor, type Input, peeked, sliceInput } from '../io/input.js';
import { pause } from '../io/pause.js';
import { Spool } from '../io/spool.js';
import { copyInput } from '../io/stream.js';
import { temporaryFolder } from '../io/temporary.js';
import { archiveFormat, decompressed, type Format, HEAD } from './compression.js';
import { type ArrivingEntry, type Entry, entryText, TarReader } from './reader.js';
import { differs, parseSums, SUMS_MOST, SumsCheck, sumOf, sumsFolder } from './sums.js';

/** An archive that was read to its end. */
export interface Archive {
  /** Its name in messages. */
  readonly name: string;
  readonly format: Format;
  /** Its entries by name. Of several entries with one name it is the last, as when it is unpacked. */
  readonly entries: ReadonlyMap<string, Entry>;
  /**
   * Opens a file that was wanted; undefined for any other name. It is readable until the archive is closed.
   * @throws BpfimgError if it is not a plain file but a link, a device, a sparse file
   */
  open(name: string): Input | undefined;
  /** The archive's digests of its files, by name; other programs' archives have none. */
  readonly sums: ReadonlyMap<string, string>;
  /**
   * Reads the wanted files and checks their digests. For files put aside, that has been done already.
   * @throws BpfimgError for one that differs
   */
  check(): Promise<void>;
  close(): void;
}

/** An archive whose entries come in order. */
export interface ArrivingArchive {
  readonly name: string;
  readonly format: Format;
  entries(): AsyncGenerator<ArrivingEntry, void, undefined>;
  close(): void;
}

/** Most bytes put aside from one archive, however much room there is. */
export const MOST_ASIDE = 64 * 1024 ** 3;

/**
 * Opens an archive to read its entries in the order they come, and owns `given`.
 * @throws BpfimgError if it is not an archive
 */
export async function arrivingArchive(given: Input): Promise<ArrivingArchive> {
  const { head, input } = await peeked(given, HEAD);
  const format = archiveFormat(head);
  try {
    if (format === undefined) {
      throw new BpfimgError('badImage', 'neither a tar archive nor gzip or zstd', { subject: input.name });
    }
    const plain = await decompressed(input, format);
    return { name: input.name, format, entries: () => all(plain, format, input.name), close: () => plain.close() };
  } catch (error) {
    input.close();
    throw error;
  }
}

async function* all(plain: Input, format: Format, subject: string): AsyncGenerator<ArrivingEntry, void, undefined> {
  const check = new SumsCheck(subject);
  const names = new Set<string>();
  for await (const entry of new TarReader(plain).entries()) {
    const { name, type, size, body } = entry;
    names.add(name);
    if (type !== 'file') {
      yield entry;
      continue;
    }
    const folder = sumsFolder(name);
    if (folder === undefined || size > SUMS_MOST) {
      yield { ...entry, body: check.noting(name, size, body) };
      continue;
    }
    const text = await new Cursor(body).take(size);
    check.check(folder, parseSums(text) ?? new Map(), (one) => names.has(one));
    yield { ...entry, body: bufferInput(text, body.name) };
  }
  if (format === 'tar') return;
  // Compressed data ends with a checksum, and a process that writes to a pipe needs to finish.
  const rest = new Uint8Array(64 * 1024);
  while ((await plain.read(rest, 0)) > 0) await pause();
}

/**
 * Reads an archive, and owns `input`.
 * @param wanted whether a file with that name will be opened
 * @throws BpfimgError if it is not an archive, is broken or cut off, or what is wanted of it does not fit
 */
export async function openArchive(input: Input, wanted: (name: string) => boolean): Promise<Archive> {
  const archive = await arrivingArchive(input);
  const inPlace = archive.format === 'tar' && input.size !== undefined;
  const spool = new Spool(`what is needed of ${archive.name}`);
  const close = () => {
    spool.close();
    archive.close();
  };
  try {
    const entries = new Map<string, Entry>();
    /** Where the wanted files are. */
    const places = new Map<string, number>();
    const sums = new Map<string, string>();
    let room: number | undefined;
    for await (const entry of archive.entries()) {
      const { name, type, size, mtime, dataAt, offset } = entry;
      // Without its headers and bytes.
      entries.set(name, { name, type, size, mtime, offset, dataAt });
      const folder = type === 'file' ? sumsFolder(name) : undefined;
      if (folder !== undefined && size <= SUMS_MOST) {
        const said = parseSums(await new Cursor(entry.body).take(size)) ?? [];
        for (const [short, sum] of said) sums.set(folder + short, sum);
      }
      places.delete(name);
      if (type !== 'file' || !wanted(name)) continue;
      places.set(name, inPlace ? dataAt : spool.length);
      if (inPlace) continue;
      room ??= roomAside();
      if (spool.length + size > room) throw tooLarge(archive.name, entry, spool.length, room);
      await copyInput(entry.body, 0, size, spool);
    }
    const all = inPlace ? input : spool.input();
    const open = (name: string): Input | undefined => {
      const entry = entries.get(name);
      if (entry === undefined || entry.type === 'folder' || !wanted(name)) return undefined;
      const place = places.get(name);
      if (place === undefined) throw notPlain(archive.name, entry);
      return sliceInput(all, place, entry.size, `${archive.name}:${entryText(name)}`);
    };
    const check = async (): Promise<void> => {
      for (const [name, sum] of sums) {
        const file = wanted(name) ? open(name) : undefined;
        if (file !== undefined && (await sumOf(file)) !== sum) throw differs(archive.name, name);
      }
    };
    return { name: archive.name, format: archive.format, entries, open, sums, check, close };
  } catch (error) {
    close();
    throw error;
  }
}

/** Bytes that may be put aside: some free space is left for others. */
function roomAside(): number {
  try {
    const { bavail, bsize } = fs.statfsSync(temporaryFolder());
    return Math.min(MOST_ASIDE, Math.floor(bavail * bsize * 0.9));
  } catch (error) {
    if (errnoOf(error) === undefined) throw error;
    return MOST_ASIDE;
  }
}

function tooLarge(subject: string, { name, size }: Entry, before: number, room: number): BpfimgError {
  const text = `too large to put aside: ${before + size} bytes with those before it, at most ${room} in ${temporaryFolder()}`;
  return new BpfimgError('unsupported', text, { subject, part: entryText(name) });
}

const OTHERS = {
  link: 'it is a link',
  device: 'it is a device or FIFO',
  sparse: 'it is stored as a sparse file, which is not supported: pack it without --sparse',
  other: 'it is of a kind that is not known',
} as const;

function notPlain(subject: string, { name, type }: Entry): BpfimgError {
  const what = OTHERS[type as keyof typeof OTHERS] ?? type;
  return new BpfimgError('unsupported', `${what}; expected a regular file`, { subject, part: entryText(name) });
}
