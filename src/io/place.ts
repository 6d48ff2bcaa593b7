/**
 * Places in the file system. A folder is opened once, and everything happens in that folder, even if its path leads
 * elsewhere in the meantime.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { BpfimgError, errnoOf } from '../errors.js';

const { O_RDONLY, O_DIRECTORY, O_NOFOLLOW } = fs.constants;

/** An open folder. Methods throw the errors of the system calls. */
export class Folder {
  readonly #fd: number;
  readonly #way: string;
  #users = 1;

  /** @param flags further flags of open(2) */
  constructor(folder: string, flags = 0) {
    this.#fd = fs.openSync(folder, O_RDONLY | O_DIRECTORY | flags);
    // Node has no openat(2). Without /proc, only the path is left.
    const way = `/proc/self/fd/${this.#fd}`;
    this.#way = fs.existsSync(way) ? way : folder;
  }

  /** A path that leads to `name` in this folder for as long as it is open. */
  at(name: string): string {
    return `${this.#way}/${name}`;
  }

  /** The entry `name`, which may be a link; undefined if there is none. */
  look(name: string): fs.Stats | undefined {
    return fs.lstatSync(this.at(name), { throwIfNoEntry: false });
  }

  /** Opens a folder in this one, which must not be a link. */
  open(name: string): Folder {
    return new Folder(this.at(name), O_NOFOLLOW);
  }

  names(): string[] {
    return fs.readdirSync(this.at('.'));
  }

  /** Syncs the folder's entries to disk. */
  sync(): void {
    fs.fsyncSync(this.#fd);
  }

  /**
   * Throws where the kernel would not follow links either (protected_symlinks): in a folder such as /tmp, if `entry`
   * belongs neither to us nor to the folder's owner.
   */
  checkOwner(entry: fs.Stats, name: string): void {
    const { mode, uid } = fs.fstatSync(this.#fd);
    if ((mode & 0o1002) !== 0o1002 || entry.uid === process.geteuid?.() || entry.uid === uid) return;
    throw new BpfimgError('io', `refused: user ${entry.uid} put it into a folder that everyone can write to`, {
      subject: name,
    });
  }

  /** Adds a user, who must close it too. */
  share(): Folder {
    this.#users++;
    return this;
  }

  close(): void {
    if (--this.#users === 0) fs.closeSync(this.#fd);
  }
}

/** A name in an open folder. */
export interface Place {
  /** The owner of the place closes it. */
  readonly folder: Folder;
  readonly name: string;
  /** What is there: for a link, `entry` is the link itself and `stat` its final target. */
  readonly entry: fs.Stats | undefined;
  readonly stat: fs.Stats | undefined;
}

/** Most links to follow, as many as the kernel does. */
const LINKS = 40;

/**
 * The place that `file` names; with `follow`, if that is a link, the place of the regular file it leads to.
 * @throws BpfimgError for a link that must not be followed; errors of the system calls
 */
export function placeOf(file: string, follow = true, given = file, links = LINKS): Place {
  const folder = new Folder(path.dirname(file));
  let kept = false;
  try {
    const name = path.basename(file);
    const entry = folder.look(name);
    const isLink = entry?.isSymbolicLink() === true;
    if (isLink) folder.checkOwner(entry, given);
    const stat = isLink ? fs.statSync(folder.at(name), { throwIfNoEntry: false }) : entry;
    if (follow && isLink && stat?.isFile() && links > 0) {
      const to = fs.readlinkSync(folder.at(name));
      return placeOf(path.isAbsolute(to) ? to : folder.at(to), follow, given, links - 1);
    }
    kept = true;
    return { folder, name, entry, stat };
  } finally {
    if (!kept) folder.close();
  }
}

/** Opens the folder at a place that {@link placeOf} has found. */
export function folderAt({ folder, name, entry }: Place): Folder {
  return new Folder(folder.at(name), noOtherLink(entry));
}

/** Flag of open(2): an entry that was not a link was not checked, so it must not be one now. */
export function noOtherLink(entry: fs.Stats | undefined): number {
  return entry?.isSymbolicLink() ? 0 : O_NOFOLLOW;
}

/** Runs a system call on something that may be gone; undefined if it is. */
export function orGone<T>(call: () => T): T | undefined {
  try {
    return call();
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw error;
  }
}
