/**
 * Changes to several files in a folder, such as the images of a dump: all are made or none, even if a process is killed.
 *
 * A change is a folder with the new files and a plan. Once it has the name `.bpfimg-journal`, any bpfimg process that
 * uses the dump carries it out; several may do so at the same time, each through a descriptor of the journal folder.
 * So a late process cannot affect a later change: files only move out of or into the journal it has opened, and a
 * removed journal has no files and accepts none. The plan is removed last. Only then is the journal empty, and only
 * an empty journal can be replaced by the next change.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { BpfimgError, errnoOf, ioError } from '../errors.js';
import { Folder, orGone } from './place.js';

/** Name of a change's folder while it is carried out. */
export const JOURNAL = '.bpfimg-journal';

/** The file in a change that says what to do. */
export const PLAN = 'plan';

/** As long as this file exists, the images are inconsistent. The CRIU plugin looks for it, too. */
const TO_DO = `${JOURNAL}/${PLAN}`;

/** Bytes of the longest plan that bpfimg reads. */
const MAX_PLAN = 16 * 1024 * 1024;

/** Names of images and tables. A plan must not name any other file. */
const NAME = /^\w[\w.-]{0,200}\.(img|txt)$/;

/** The inode under a path, which stays the same when the file is renamed. */
function inodeOf(file: string): string | undefined {
  return fs.lstatSync(file, { bigint: true, throwIfNoEntry: false })?.ino.toString();
}

/** The plan of a change: which of its files to move into the folder, and which files to remove there. */
export function planText(change: Folder, files: readonly string[], remove: readonly string[]): string {
  const rename = files.map((name) => [name, inodeOf(change.at(name))]);
  return `${JSON.stringify({ rename, remove })}\n`;
}

interface ChangePlan {
  /** Names, and the inodes of the files that get them. */
  readonly rename: readonly (readonly [name: string, inode: string])[];
  readonly remove: readonly string[];
}

function parsePlan(text: string): ChangePlan | undefined {
  try {
    const { rename, remove } = JSON.parse(text) as { rename: unknown; remove: unknown };
    const isName = (name: unknown) => typeof name === 'string' && NAME.test(name);
    const isPair = (pair: unknown) => Array.isArray(pair) && isName(pair[0]) && typeof pair[1] === 'string';
    if (!Array.isArray(rename) || !Array.isArray(remove)) return undefined;
    return rename.every(isPair) && remove.every(isName) ? { rename, remove } : undefined;
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof TypeError) return undefined;
    throw error;
  }
}

function notOurs(where: string): BpfimgError {
  return new BpfimgError('badImage', 'not a bpfimg journal; remove it if the images are complete', {
    subject: `${where}/${JOURNAL}`,
  });
}

/** The plan of a change; undefined if the change is complete. */
function readPlan(change: Folder, where: string): ChangePlan | undefined {
  const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = fs.constants;
  const fd = orGone(() => fs.openSync(change.at(PLAN), O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
  if (fd === undefined) return undefined;
  try {
    const stat = fs.fstatSync(fd);
    const plan = stat.isFile() && stat.size <= MAX_PLAN ? parsePlan(fs.readFileSync(fd, 'utf8')) : undefined;
    if (plan === undefined) throw notOurs(where);
    return plan;
  } finally {
    fs.closeSync(fd);
  }
}

function make(folder: Folder, change: Folder, { rename, remove }: ChangePlan, where: string): void {
  for (const [name, inode] of rename) {
    // Missing here and not in the folder either. If another process has completed the change, its plan is gone.
    if (change.look(name) || inodeOf(folder.at(name)) === inode || !change.look(PLAN)) continue;
    const what = `its images are inconsistent: a change was interrupted, and its ${name} is lost`;
    throw new BpfimgError('badImage', `${what}; remove ${JOURNAL} in that folder to read them as they are`, {
      subject: where,
    });
  }
  for (const [name] of rename) orGone(() => fs.renameSync(change.at(name), folder.at(name)));
  for (const name of remove) orGone(() => fs.renameSync(folder.at(name), change.at(name)));
  folder.sync();
  const left = orGone(() => change.names()) ?? [];
  for (const name of left) if (name !== PLAN) orGone(() => fs.unlinkSync(change.at(name)));
  orGone(() => fs.unlinkSync(change.at(PLAN)));
  removeMade(folder);
  folder.sync();
}

/** Removes a completed change; after that, a late process can move no file into it. */
function removeMade(folder: Folder): void {
  try {
    fs.rmdirSync(folder.at(JOURNAL));
  } catch (error) {
    // Another process has removed it, and there may be a new change by now.
    if (errnoOf(error) !== 'ENOENT' && errnoOf(error) !== 'ENOTEMPTY') throw error;
  }
}

/** Carries out the pending change in an open folder, which messages call `where`, so that another change can follow. */
export function finishChangeIn(folder: Folder, where: string): void {
  try {
    if (folder.look(JOURNAL) === undefined) return;
    while (folder.look(TO_DO) !== undefined) {
      const entry = folder.look(JOURNAL);
      if (entry !== undefined) folder.checkOwner(entry, `${where}/${JOURNAL}`);
      const change = orGone(() => folder.open(JOURNAL));
      if (change === undefined) continue;
      try {
        const plan = readPlan(change, where);
        if (plan !== undefined) make(folder, change, plan, where);
      } finally {
        change.close();
      }
    }
    removeMade(folder);
  } catch (error) {
    if (errnoOf(error) === 'ENOTDIR' || errnoOf(error) === 'ELOOP') throw notOurs(where);
    const what = 'finish an interrupted change to its images, which must be done before they can be read';
    throw ioError(where, what, error);
  }
}

/** Whether a change is pending, or something that is not a journal has its name. */
function isToDo(folder: string): boolean {
  const stat = fs.lstatSync(`${folder}/${JOURNAL}`, { throwIfNoEntry: false });
  const made = stat?.isDirectory() && !fs.lstatSync(`${folder}/${TO_DO}`, { throwIfNoEntry: false });
  return stat !== undefined && made !== true;
}

/**
 * Finishes an interrupted change of `folder`; does nothing if there is none.
 * @throws BpfimgError if that is not possible: the files are then inconsistent
 */
export function finishChange(folder: string): void {
  let open: Folder;
  try {
    if (!isToDo(folder)) return;
    open = new Folder(folder);
  } catch (error) {
    throw ioError(folder, 'inspect it', error);
  }
  try {
    finishChangeIn(open, folder);
  } finally {
    open.close();
  }
}

/** {@link finishChange} for the folder of a single file, if it is a file that changes together with others. */
export function finishChangeBeside(file: string): void {
  if (NAME.test(path.basename(file))) finishChange(path.dirname(file));
}

/** Carries out a change that is ready under a temporary name. Pending changes of other processes come first. */
export function makeChange(folder: Folder, temporary: string, where: string): void {
  for (let tries = 0; ; tries++) {
    finishChangeIn(folder, where);
    try {
      fs.renameSync(folder.at(temporary), folder.at(JOURNAL));
      folder.sync();
      break;
    } catch (error) {
      if (tries === 1000 || (errnoOf(error) !== 'ENOTEMPTY' && errnoOf(error) !== 'EEXIST')) {
        throw ioError(`${where}/${JOURNAL}`, 'write it', error);
      }
    }
  }
  finishChangeIn(folder, where);
}

/** How often to read a folder before giving up. */
const TIMES = 5;

/**
 * The names of the files of a folder, and what shows that a file was replaced.
 * @throws BpfimgError for a folder that cannot be read
 */
export function state(folder: string): string {
  try {
    const lines = fs.readdirSync(folder).map((name) => {
      if (!NAME.test(name)) return '';
      const stat = fs.lstatSync(`${folder}/${name}`, { bigint: true, throwIfNoEntry: false });
      return `${name} ${stat?.ino} ${stat?.ctimeNs}\n`;
    });
    return lines.sort().join('');
  } catch (error) {
    throw ioError(folder, 'read it', error);
  }
}

/**
 * Reads several files of a folder, and reads them again if they change in the meantime, so that the result is consistent.
 * @throws BpfimgError if they keep changing; anything `read` throws
 */
export async function atOneTime<T extends { close(): void }>(folder: string, read: () => Promise<T>): Promise<T> {
  for (let times = 1; ; times++) {
    finishChange(folder);
    const before = state(folder);
    const isSame = () => !isToDo(folder) && state(folder) === before;
    let result: T;
    try {
      result = await read();
    } catch (error) {
      if (times === TIMES || isSame()) throw error;
      continue;
    }
    if (isSame()) return result;
    result.close();
    if (times === TIMES)
      throw new BpfimgError('io', 'its images keep changing while they are read', { subject: folder });
  }
}
