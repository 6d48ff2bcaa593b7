/**
 * Changes of several files in a folder, such as the images of a dump: all are made, or none is, whoever is killed.
 *
 * A change is a folder with the new files and a plan. From the moment it is called `.bpfimg-journal`, whoever comes
 * by makes it, several at a time if it so happens, each through the folder that it has opened. So nobody who is late
 * can touch a later change: files move out of the journal and into it, and one that is gone has no files and takes
 * none. Another change takes its place only when it is empty, which is when its plan, last of all, has gone.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { BpfimgError, errnoOf, ioError } from '../errors.js';
import { Folder, orGone } from './place.js';

/** What a change is called while it is made. */
export const JOURNAL = '.bpfimg-journal';

/** In a change, the file that says what to do. */
export const PLAN = 'plan';

/** As long as it is there, the images are not of one time. The CRIU plugin looks for it, too. */
const TO_DO = `${JOURNAL}/${PLAN}`;

/** Bytes of the longest plan that is read. */
const MAX_PLAN = 16 * 1024 * 1024;

/** Names of images and tables. Others are none of our business, whoever wrote the plan. */
const NAME = /^\w[\w.-]{0,200}\.(img|txt)$/;

/** The inode under a path, which stays the same when the file is renamed. */
function inodeOf(file: string): string | undefined {
  return fs.lstatSync(file, { bigint: true, throwIfNoEntry: false })?.ino.toString();
}

/** The plan of a change: files that stand in it are to be put in place, and others removed. */
export function planText(change: Folder, files: readonly string[], remove: readonly string[]): string {
  const rename = files.map((name) => [name, inodeOf(change.at(name))]);
  return `${JSON.stringify({ rename, remove })}\n`;
}

interface ChangePlan {
  /** Names, and the inodes of what is to have them. */
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
  return new BpfimgError('badImage', 'not a journal of bpfimg; remove it if the images are whole', {
    subject: `${where}/${JOURNAL}`,
  });
}

/** The plan of a change; undefined when it has been made. */
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
    // It is not in its place either, unless another one has done that: after which the plan goes.
    if (change.look(name) || inodeOf(folder.at(name)) === inode || !change.look(PLAN)) continue;
    const what = `its images are not of one time: ${name} of a change that was cut off is lost`;
    throw new BpfimgError('badImage', `${what}; remove ${JOURNAL} there to read them as they are`, { subject: where });
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

/** Removes a change that has been made; then it takes no file any more from whoever is late. */
function removeMade(folder: Folder): void {
  try {
    fs.rmdirSync(folder.at(JOURNAL));
  } catch (error) {
    // Another one has removed it, and there may be a new change by now.
    if (errnoOf(error) !== 'ENOENT' && errnoOf(error) !== 'ENOTEMPTY') throw error;
  }
}

/** Makes the change that is to be made in an open folder, which messages call `where`, so that another one can follow. */
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
    const what = 'finish a change of its images that was cut off, which it needs before it can be read';
    throw ioError(where, what, error);
  }
}

/** Whether a change is to be made, or what stands there is none of ours. */
function isToDo(folder: string): boolean {
  const stat = fs.lstatSync(`${folder}/${JOURNAL}`, { throwIfNoEntry: false });
  const made = stat?.isDirectory() && !fs.lstatSync(`${folder}/${TO_DO}`, { throwIfNoEntry: false });
  return stat !== undefined && made !== true;
}

/**
 * Finishes a change of `folder` that was cut off in the middle; does nothing where there was none.
 * @throws BpfimgError where that is not possible: the files there are not of one time then
 */
export function finishChange(folder: string): void {
  let open: Folder;
  try {
    if (!isToDo(folder)) return;
    open = new Folder(folder);
  } catch (error) {
    throw ioError(folder, 'look into it', error);
  }
  try {
    finishChangeIn(open, folder);
  } finally {
    open.close();
  }
}

/** {@link finishChange} for a single file, where it is one that changes together with others. */
export function finishChangeBeside(file: string): void {
  if (NAME.test(path.basename(file))) finishChange(path.dirname(file));
}

/** Has a change made for which all is ready under a temporary name. Others who want theirs made come before it. */
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

/** Times that a folder is read. */
const TIMES = 5;

/**
 * Names of the files of a folder, and what tells that another one has got the name.
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
 * Reads several files of a folder, and reads them anew when they change meanwhile: what it returns is of one time.
 * @throws BpfimgError when they do so again and again; what `read` throws
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
      throw new BpfimgError('io', 'its images change again and again while they are read', { subject: folder });
  }
}
