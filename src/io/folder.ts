/** Folders whose files belong together, such as the images of a dump: they change together, or not at all. */

import * as fs from 'node:fs';
import * as path from 'node:path';
import { BpfimgError, ioError } from '../errors.js';
import { type Input, openFile } from './input.js';
import { finishChangeIn, makeChange, PLAN, planText, state } from './journal.js';
import { FileOutput } from './output.js';
import { type Folder, folderAt, type Place, placeOf } from './place.js';
import { equalBytes } from './stream.js';
import { isScratch, removeLeft, temporaryName } from './temporary.js';
import { noLongerUnfinished, unfinished } from './unfinished.js';

/**
 * Several files of one folder: all appear, or none does.
 *
 * They are written in a folder with a temporary name. To create a new folder, that one is renamed. To change an
 * existing folder, a single file that differs is renamed into it; several become a change as in journal.ts. The
 * existing folder itself is not replaced: it may be a current directory or a mount point.
 */
export class FolderOutput {
  readonly #names: string[] = [];
  readonly #files: FileOutput[] = [];
  readonly #removed: string[] = [];
  /** Its name in messages. */
  readonly #name: string;
  /** The existing folder, or the parent of a new one. */
  readonly #parent: Folder;
  /** The new folder's name in it. */
  readonly #target: string | undefined;
  /** Where files are written, and its name. */
  readonly #staging: Folder;
  readonly #temporary: string;
  /** State of the existing folder before the change. */
  readonly #before: string | undefined;

  constructor(folder: string) {
    this.#name = folder;
    let place: Place | undefined;
    let parent: Folder | undefined;
    try {
      place = placeOf(folder, false);
      if (place.stat && !place.stat.isDirectory()) throw new BpfimgError('io', 'not a folder', { subject: folder });
      if (place.stat === undefined) {
        parent = place.folder.share();
        this.#target = place.name;
      } else {
        parent = folderAt(place);
        finishChangeIn(parent, folder);
        this.#before = state(parent.at('.'));
      }
      removeLeft(parent, this.#target ?? '');
      this.#temporary = temporaryName(this.#target ?? '');
      fs.mkdirSync(parent.at(this.#temporary), { mode: 0o700 });
      this.#parent = parent;
      this.#staging = parent.open(this.#temporary);
    } catch (error) {
      parent?.close();
      throw ioError(folder, 'create it', error);
    } finally {
      place?.folder.close();
    }
    unfinished(this.#parent.at(this.#temporary));
  }

  /** Whether the folder now has a file of this name. */
  has(name: string): boolean {
    return this.#target === undefined && fs.existsSync(this.#parent.at(name));
  }

  /** Opens the file of this name that is in the folder now. */
  read(name: string): Input | undefined {
    return this.has(name) ? openFile(this.#parent.at(name), path.join(this.#name, name)) : undefined;
  }

  /** A new file of the set, written through its own output. Do not commit that output: commit the folder. */
  file(name: string): FileOutput {
    const place = { folder: this.#staging.share(), name };
    const output = new FileOutput(place, path.join(this.#name, name), true);
    this.#names.push(name);
    this.#files.push(output);
    return output;
  }

  /** Removes the file of this name when the others appear. */
  remove(name: string): void {
    if (this.has(name)) this.#removed.push(name);
  }

  async commit(): Promise<void> {
    try {
      // Synced all at once: one after the other, each would wait for the same disk.
      for (const end of await Promise.allSettled(this.#files.map((file) => file.finish()))) {
        if (end.status === 'rejected') throw end.reason;
      }
      for (const file of this.#files) await file.commit();
      if (this.#target === undefined) await this.#replace();
      else this.#appear(this.#target);
    } catch (error) {
      await this.abort();
      throw error;
    }
    this.#end();
  }

  #appear(target: string): void {
    const durable = !isScratch(this.#name);
    if (durable) this.#staging.sync();
    try {
      fs.renameSync(this.#parent.at(this.#temporary), this.#parent.at(target));
    } catch (error) {
      throw ioError(this.#name, 'rename it into place', error);
    }
    if (durable) this.#parent.sync();
  }

  async #replace(): Promise<void> {
    const folder = this.#parent;
    const changed: string[] = [];
    for (const name of this.#names) {
      const file = this.#staging.at(name);
      if (await isSame(file, folder.at(name), path.join(this.#name, name))) fs.unlinkSync(file);
      else changed.push(name);
    }
    for (const name of this.#removed) checkFile(folder.look(name), path.join(this.#name, name));
    const [only] = changed;
    const single = this.#removed.length === 0 && changed.length < 2;
    if (!single) {
      const plan = new FileOutput({ folder: this.#staging.share(), name: PLAN }, this.#name);
      plan.text(planText(this.#staging, changed, this.#removed));
      await plan.commit();
    }
    // From here to the end nothing else runs, not even a signal handler.
    finishChangeIn(folder, this.#name);
    if (state(folder.at('.')) !== this.#before) {
      throw new BpfimgError('conflict', 'its images were changed in the meantime; nothing was written', {
        subject: this.#name,
      });
    }
    if (!single) makeChange(folder, this.#temporary, this.#name);
    else {
      if (only !== undefined) fs.renameSync(this.#staging.at(only), folder.at(only));
      fs.rmdirSync(folder.at(this.#temporary));
      folder.sync();
    }
  }

  async abort(): Promise<void> {
    await Promise.all(this.#files.map((file) => file.abort()));
    fs.rmSync(this.#parent.at(this.#temporary), { recursive: true, force: true });
    this.#end();
  }

  #end(): void {
    if (!noLongerUnfinished(this.#parent.at(this.#temporary))) return;
    this.#staging.close();
    this.#parent.close();
  }
}

function checkFile(stat: fs.Stats | undefined, name: string): void {
  if (stat?.isDirectory()) throw new BpfimgError('io', 'it is a folder, expected a file to replace', { subject: name });
}

/** Whether `file` has the same contents as the file at `place`, which messages call `name`. */
async function isSame(file: string, place: string, name: string): Promise<boolean> {
  const stat = fs.lstatSync(place, { throwIfNoEntry: false });
  if (stat === undefined || stat.isSymbolicLink()) return false;
  checkFile(stat, name);
  if (!stat.isFile() || stat.size !== fs.statSync(file).size) return false;
  const open: Input[] = [];
  try {
    for (const one of [file, place]) open.push(openFile(one));
    const [a, b] = open as [Input, Input];
    return await equalBytes(a, 0, b, 0, stat.size);
  } finally {
    for (const input of open) input.close();
  }
}
