/** Folders whose files belong together, such as the images of a dump: they change together, or not at all. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { BpfimgError, errnoOf, ioError } from '../errors.js';
import { type Input, openFile } from './input.js';
import { FileOutput, statOf, syncFolder, temporaryName } from './output.js';
import { pause } from './pause.js';
import { finished, unfinished } from './unfinished.js';

/**
 * Says what is left to do in a folder where several files change: renames and removals, in that order. While it
 * stands there nobody may read the folder, but whoever comes next can finish the work: {@link finishChange}.
 */
const JOURNAL = '.bpfimg-journal';

/** Longest journal that is read. */
const MOST_JOURNAL = 64 * 1024;

/** Names of images and tables. Others are none of our business, whoever wrote the journal. */
const NAME = /^\w[\w.-]{0,200}\.(img|txt)$/;

interface Change {
  /** Temporary names and final ones. */
  readonly rename: readonly (readonly [from: string, to: string])[];
  readonly remove: readonly string[];
}

function apply(folder: string, { rename, remove }: Change): void {
  for (const [from, to] of rename) {
    try {
      fs.renameSync(path.join(folder, from), path.join(folder, to));
    } catch (error) {
      // Done already, by whoever began or by another who found the journal.
      if (errnoOf(error) !== 'ENOENT') throw error;
    }
  }
  for (const name of remove) fs.rmSync(path.join(folder, name), { force: true });
  syncFolder(folder);
  fs.rmSync(path.join(folder, JOURNAL), { force: true });
  syncFolder(folder);
}

/**
 * Finishes a change of `folder` that was cut off in the middle; does nothing where there was none.
 * @throws BpfimgError where that is not possible: the files there are not of one time then
 */
export function finishChange(folder: string): void {
  const file = path.join(folder, JOURNAL);
  try {
    if (fs.lstatSync(file, { throwIfNoEntry: false }) === undefined) return;
  } catch (error) {
    throw ioError(folder, 'look into it', error);
  }
  const change = readJournal(file);
  try {
    apply(folder, change);
  } catch (error) {
    const what = 'finish a change of its images that was cut off, which it needs before it can be read';
    throw ioError(folder, what, error);
  }
}

function readJournal(file: string): Change {
  const input = openFile(file);
  const bytes = Buffer.alloc(MOST_JOURNAL);
  let size: number;
  try {
    size = input.read(bytes, 0) as number;
  } finally {
    input.close();
  }
  try {
    const { rename, remove } = JSON.parse(bytes.toString('utf8', 0, size)) as { rename: unknown; remove: unknown };
    const isName = (name: unknown): name is string => typeof name === 'string' && NAME.test(name);
    const isPair = (pair: unknown): pair is [string, string] => {
      if (!Array.isArray(pair) || pair.length !== 2) return false;
      const [from, to] = pair as unknown[];
      return isName(to) && typeof from === 'string' && from.startsWith(`.${to}.bpfimg-`) && !from.includes('/');
    };
    if (!Array.isArray(rename) || !Array.isArray(remove)) throw new SyntaxError();
    if (rename.every(isPair) && remove.every(isName)) return { rename, remove };
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
  }
  throw new BpfimgError('badImage', `${file}: not a journal of bpfimg; remove it if the images are whole`);
}

/**
 * Several files of one folder: all appear, or none does.
 *
 * A new folder is filled under a temporary name and renamed. In a folder that is there, each file is finished beside
 * its place first. Where no more than one differs from what stands there, a rename is all; else a journal says what
 * is to be done, and from then on it will be. The folder itself stays: it may be somebody's current one, or a mount.
 */
export class FolderOutput {
  readonly #files: FileOutput[] = [];
  readonly #removed: string[] = [];
  readonly #folder: string;
  readonly #staging: string | undefined;

  constructor(folder: string) {
    const stat = statOf(folder);
    if (stat && !stat.isDirectory()) throw new BpfimgError('io', `${folder}: not a folder`);
    if (stat) {
      this.#folder = fs.realpathSync(folder);
      finishChange(this.#folder);
      return;
    }
    this.#folder = path.resolve(folder);
    const staging = temporaryName(this.#folder);
    try {
      fs.mkdirSync(staging, { mode: 0o700 });
    } catch (error) {
      throw ioError(folder, 'create it', error);
    }
    unfinished(staging);
    this.#staging = staging;
  }

  /** Whether a file of that name stands in the folder now. */
  has(name: string): boolean {
    return this.#staging === undefined && fs.existsSync(path.join(this.#folder, name));
  }

  /** A new file of the set, written through its own output. Do not commit that one: commit the folder. */
  file(name: string): FileOutput {
    const output = new FileOutput(path.join(this.#staging ?? this.#folder, name), path.join(this.#folder, name));
    this.#files.push(output);
    return output;
  }

  /** Has the file of that name go when the others appear. */
  remove(name: string): void {
    if (this.has(name)) this.#removed.push(name);
  }

  async commit(): Promise<void> {
    try {
      for (const file of this.#files) await file.finish();
      if (this.#staging !== undefined) this.#commitStaging(this.#staging);
      else await this.#replace();
    } catch (error) {
      await this.abort();
      throw error;
    }
  }

  #commitStaging(staging: string): void {
    for (const file of this.#files) file.rename();
    syncFolder(staging);
    try {
      fs.renameSync(staging, this.#folder);
    } catch (error) {
      throw ioError(this.#folder, 'put it in place', error);
    }
    finished(staging);
    syncFolder(path.dirname(this.#folder));
  }

  async #replace(): Promise<void> {
    const changed: FileOutput[] = [];
    for (const file of this.#files) {
      if (await isSame(file.temporary, file.path)) await file.abort();
      else changed.push(file);
    }
    const [only] = changed;
    if (this.#removed.length === 0 && changed.length < 2) {
      only?.rename();
      syncFolder(this.#folder);
      return;
    }
    const rename = changed.map((file) => [path.basename(file.temporary), path.basename(file.path)] as const);
    const change: Change = { rename, remove: this.#removed };
    const journal = new FileOutput(path.join(this.#folder, JOURNAL));
    try {
      journal.text(`${JSON.stringify(change)}\n`);
      await journal.finish();
    } catch (error) {
      await journal.abort();
      throw error;
    }
    // From here to the end nothing else runs, no signal either.
    journal.rename();
    syncFolder(this.#folder);
    for (const { temporary } of changed) finished(temporary);
    try {
      apply(this.#folder, change);
    } catch (error) {
      throw ioError(this.#folder, 'replace its images; whoever reads it next will try again', error);
    }
  }

  async abort(): Promise<void> {
    for (const file of this.#files) await file.abort();
    if (this.#staging !== undefined) {
      fs.rmSync(this.#staging, { recursive: true, force: true });
      finished(this.#staging);
    }
  }
}

/** Bytes of either file that are compared at once. */
const STEP = 1024 * 1024;

/** Whether `file` is to become what stands at `place` already. */
async function isSame(file: string, place: string): Promise<boolean> {
  const stat = fs.lstatSync(place, { throwIfNoEntry: false });
  if (stat === undefined || stat.isSymbolicLink()) return false;
  if (stat.isDirectory()) throw new BpfimgError('io', `${place}: it is a folder, expected a file to replace`);
  if (!stat.isFile() || stat.size !== fs.statSync(file).size) return false;
  const open: Input[] = [];
  try {
    for (const one of [file, place]) open.push(openFile(one));
    const [a, b] = [Buffer.alloc(STEP), Buffer.alloc(STEP)];
    for (let at = 0; at < stat.size; ) {
      const [got, other] = open.map((input, i) => input.read([a, b][i] as Buffer, at) as number) as [number, number];
      if (got === 0 || got !== other || a.compare(b, 0, got, 0, got) !== 0) return false;
      at += got;
      await pause();
    }
    return true;
  } finally {
    for (const input of open) input.close();
  }
}
