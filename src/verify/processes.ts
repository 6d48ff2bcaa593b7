/**
 * The images that CRIU itself needs in order to restore a process: whether they exist and are complete. Based on
 * experiments with CRIU 4.1.1: what it refuses, and where it crashes or waits forever.
 */

import { SMALLEST_PAGE } from '../bytes.js';
import type { DumpFiles } from '../dump/files.js';
import { type Dump, FINISHED, isCriu, unfinishedDump } from '../dump/model.js';
import { BpfimgError } from '../errors.js';
import { FDINFO, HEAD_COMMON, IDS, type ImageKind, INVENTORY, magicOf, PSTREE } from '../image/kinds.js';
import { ImageReader, MAX_MESSAGE } from '../image/reader.js';
import { varintFields, WireError } from '../image/wire.js';
import { Cursor, type Input } from '../io/input.js';
import { pause } from '../io/pause.js';
import type { JsonObject } from '../value.js';

/** A defect of an image that CRIU needs. */
export interface ImageProblem {
  readonly code: 'unfinished' | 'missing-image' | 'bad-image' | 'trailing-bytes' | 'no-pages';
  readonly image: string;
  readonly message: string;
}

/** flags of a pagemap_entry (CRIU's pagemap.h): its pages are in the image of pages. */
const PAGE_PRESENT = 4;
/** Fields of pagemap_head and pagemap_entry (CRIU's pagemap.proto); CRIU 4.1 moved the count. */
const PAGES_ID = 1;
const OLD_COUNT = 2;
const FLAGS = 4;
const COUNT = 5;

/** Checks the images of a dump's processes, except those that {@link openDump} has already read. */
export async function imageProblems(dump: Dump): Promise<ImageProblem[]> {
  const { files } = dump;
  if (files === undefined || !isCriu(dump.present)) return [];
  const finder = new ProcessChecker(dump, files);
  const end = unfinishedDump(files);
  if (end !== undefined) finder.add('unfinished', FINISHED, end);
  else await finder.entries(FINISHED, INVENTORY);
  if (!dump.present.has(dump.names.files)) finder.missing(dump.names.files, 'it has the open files of all processes');
  for (const { pid = 0, threads = [] } of await finder.entries('pstree.img', PSTREE)) {
    await finder.process(pid as number, threads as number[]);
  }
  for (const name of dump.present) await finder.other(name);
  return finder.problems;
}

/** Kinds of images of processes that bpfimg does not decode. */
const NEEDED: ReadonlySet<string> = new Set(['core', 'mm', 'fs', 'pagemap']);
/** Images of namespaces, which must have an entry if they exist. */
const NAMESPACES: ReadonlySet<string> = new Set(['timens', 'utsns']);

class ProcessChecker {
  readonly problems: ImageProblem[] = [];

  constructor(
    readonly dump: Dump,
    readonly files: DumpFiles,
  ) {}

  add(code: ImageProblem['code'], image: string, message: string): void {
    this.problems.push({ code, image, message });
  }

  missing(image: string, what: string): void {
    this.add('missing-image', image, `missing: ${what}`);
  }

  /** The images of one process. A zombie has only a core image. */
  async process(pid: number, threads: readonly number[]): Promise<void> {
    const own = ['ids', 'mm', 'fs', 'pagemap'].map((kind) => `${kind}-${pid}.img`);
    const ended = !own.some((name) => this.dump.present.has(name));
    for (const id of new Set(ended ? [pid] : [pid, ...threads])) await this.#one(`core-${id}.img`, 'CORE', id);
    if (ended) return;
    const [ids = '', mm = '', fs = '', pagemap = ''] = own;
    for (const { files_id } of await this.entries(ids, IDS)) {
      await this.entries(`fdinfo-${files_id}.img`, FDINFO, `it has the fds of process ${pid}`);
    }
    await this.#one(mm, 'MM', pid);
    await this.#one(fs, 'FS', pid);
    await this.#pages(pagemap, pid);
  }

  /** The entries of an image that bpfimg decodes; it must have some. */
  async entries(name: string, kind: ImageKind, what?: string): Promise<JsonObject[]> {
    const found: JsonObject[] = [];
    await this.#read(name, what, async (input) => {
      const reader = await ImageReader.open(input, 'latin1');
      // Opening the dump has already reported a wrong kind, except for the inventory.
      if (reader.kind !== kind) throw bad(input, `it is a ${reader.kind.name} image, expected ${kind.name}`);
      for await (const { message } of reader.entries()) {
        found.push(message);
        await pause();
      }
      if (found.length === 0) throw bad(input, 'it has no entries, and CRIU needs one');
    });
    return found;
  }

  /** An image from which CRIU reads one entry, whatever follows. */
  async #one(name: string, kind: string, id: number): Promise<void> {
    await this.#read(name, `it has a part of process ${id}`, async (input) => {
      for await (const _ of messages(input, kind)) return;
      throw bad(input, 'it has no entries, and CRIU needs one');
    });
  }

  /** The pagemap of a process, and the image of its pages. */
  async #pages(name: string, pid: number): Promise<void> {
    let pagesId: number | undefined;
    let bytes = 0;
    await this.#read(name, `it has a part of process ${pid}`, async (input) => {
      for await (const message of messages(input, 'PAGEMAP')) {
        const fields = numbersOf(message, input);
        if (pagesId === undefined) pagesId = fields.get(PAGES_ID) ?? 0;
        else if (((fields.get(FLAGS) ?? PAGE_PRESENT) & PAGE_PRESENT) !== 0) {
          bytes += (fields.get(COUNT) ?? fields.get(OLD_COUNT) ?? 0) * SMALLEST_PAGE;
        }
        await pause();
      }
      if (pagesId === undefined) throw bad(input, 'it has no entries, and CRIU needs one');
    });
    const pages = `pages-${pagesId}.img`;
    if (bytes === 0) return;
    if (!this.dump.present.has(pages)) {
      this.add('no-pages', pages, `missing: it has the memory of process ${pid}`);
      return;
    }
    // CRIU 4.1.1 waits forever for missing pages.
    await this.#read(pages, undefined, async ({ size = 0, name }) => {
      if (size < bytes) throw bad({ name }, `${size} bytes, expected ${bytes} (is the image cut off?)`);
    });
  }

  /** An image that CRIU does not require, but must be able to open if it exists. */
  async other(name: string): Promise<void> {
    const [, stem = ''] = /^([a-z]+)(?:-\d{1,10})*\.img$/.exec(name) ?? [];
    if (NEEDED.has(stem) || magicOf(stem.toUpperCase()) === undefined) return;
    const kind = stem.toUpperCase();
    if (NAMESPACES.has(stem)) await this.#one(name, kind, 0);
    else await this.#read(name, undefined, async (input) => void (await begins(input, kind)));
  }

  /** Checks one image and records what is wrong with it, once. */
  async #read(name: string, what: string | undefined, look: (input: Input) => Promise<void>): Promise<void> {
    if (!this.dump.present.has(name)) {
      this.missing(name, what ?? 'CRIU restores nothing without it');
      return;
    }
    const input = this.files.open(name);
    try {
      await look(input);
    } catch (error) {
      if (!(error instanceof BpfimgError)) throw error;
      // Opening the dump has already reported this image.
      if (this.dump.broken.has(name)) return;
      this.add(error.code === 'trailing-bytes' ? error.code : 'bad-image', name, error.text);
    } finally {
      input.close();
    }
  }
}

function bad({ name }: Pick<Input, 'name'>, message: string): BpfimgError {
  return new BpfimgError('badImage', message, { subject: name });
}

/** The plain numbers of a message of `input`. */
function numbersOf(message: Uint8Array, input: Input): ReadonlyMap<number, number> {
  try {
    return varintFields(message);
  } catch (error) {
    throw error instanceof WireError ? bad(input, `invalid message: ${error.message}`) : error;
  }
}

/** A cursor behind the head of an image that bpfimg does not decode. */
async function begins(input: Input, kind: string): Promise<Cursor> {
  const cursor = new Cursor(input);
  await cursor.fill(8);
  const expected = [HEAD_COMMON, magicOf(kind)];
  if (cursor.ready < 8 || expected.some((word, i) => cursor.view.getUint32(cursor.at + 4 * i, true) !== word)) {
    throw bad(input, `it does not begin like a ${kind} image`);
  }
  cursor.at += 8;
  return cursor;
}

/** The messages of an image that bpfimg does not decode and that has nothing but messages. */
async function* messages(input: Input, kind: string): AsyncGenerator<Uint8Array> {
  const cursor = await begins(input, kind);
  for (let entry = 0; (await cursor.fill(4)) > 0; entry++) {
    const { ready } = cursor;
    const size = ready < 4 ? 0 : cursor.view.getUint32(cursor.at, true);
    const code = ready < 4 ? 'trailing-bytes' : 'bad-image';
    const left = (input.size ?? 0) - cursor.position - 4;
    if (ready < 4 || size > Math.min(left, MAX_MESSAGE)) {
      const what = ready < 4 ? `${ready} bytes left` : `its message needs ${size} bytes, ${left} left`;
      throw new BpfimgError('badImage', `entry ${entry}: ${what}`, { subject: input.name, code });
    }
    cursor.at += 4;
    yield await cursor.take(size);
  }
}
