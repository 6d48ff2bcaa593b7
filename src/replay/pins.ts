/** Pins of fresh maps: one each, in a folder that names from an image cannot lead out of. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { BpfimgError, errnoOf, ioError } from '../errors.js';
import { finished, unfinished } from '../io/unfinished.js';
import { bpffsHint, isBpffs } from '../kernel/proc.js';

/** Longest name of a pin, in bytes (NAME_MAX). */
const NAME_MAX = 255;

/**
 * A map's name as the name of a pin. The kernel takes no dot in it, and a name from an image may have any
 * bytes: what is not a letter, digit, `_` or `-` becomes `_`.
 */
export function pinName(name: string, mapId: number): string {
  const safe = name.replace(/[^A-Za-z0-9_-]/g, '_').slice(0, NAME_MAX - 24);
  return /[A-Za-z0-9]/.test(safe) ? safe : `map_${mapId}`;
}

/** A folder on a BPF file system where the pins of one replay go; nothing stays of them until {@link keep}. */
export class PinFolder {
  readonly #taken: Set<string>;
  /** In the order they were made. */
  readonly #made: string[] = [];

  private constructor(readonly folder: string) {
    this.#taken = new Set(fs.readdirSync(folder));
  }

  /**
   * Opens a folder, or makes a new one.
   * @throws BpfimgError when pins cannot be made there
   */
  static open(folder: string, proc = '/proc'): PinFolder {
    const problem = PinFolder.check(folder, proc);
    if (problem !== undefined) throw problem;
    if (fs.existsSync(folder)) return new PinFolder(folder);
    try {
      fs.mkdirSync(folder, { mode: 0o700 });
    } catch (error) {
      throw ioError(folder, 'create it', error);
    }
    unfinished(folder, true);
    const pins = new PinFolder(folder);
    pins.#made.push(folder);
    return pins;
  }

  /** Why no pin can be made in `folder`, as far as one sees without making anything. */
  static check(folder: string, proc = '/proc'): BpfimgError | undefined {
    const parent = path.dirname(path.resolve(folder));
    // Such a file system does not even look for a name with a dot.
    if (path.basename(path.resolve(folder)).includes('.') && isBpffs(parent) === true) {
      return new BpfimgError('io', `${folder}: a folder on a BPF file system cannot have a dot in its name`);
    }
    let there: fs.Stats | undefined;
    try {
      there = fs.statSync(folder, { throwIfNoEntry: false });
    } catch (error) {
      return ioError(folder, 'look at it', error) as BpfimgError;
    }
    if (there !== undefined && !there.isDirectory()) return new BpfimgError('io', `${folder}: not a folder`);
    const bpffs = isBpffs(there === undefined ? parent : folder);
    if (bpffs === true) return undefined;
    const where = bpffs === undefined ? `${parent}: no such folder` : `${folder}: not on a BPF file system`;
    return new BpfimgError(
      bpffs === undefined ? 'notFound' : 'unsupported',
      `${where}, where pins go; ${bpffsHint(proc)}`,
    );
  }

  /**
   * Pins a map by `pin`, which is given the path.
   * @param name the map's, as the image has it
   */
  add(name: string, mapId: number, pin: (path: string) => void): string {
    const wanted = pinName(name, mapId);
    for (let number = 0; ; number++) {
      const free = number === 0 ? wanted : number === 1 ? `${wanted}-${mapId}` : `${wanted}-${mapId}-${number}`;
      if (this.#taken.has(free)) continue;
      this.#taken.add(free);
      const file = path.join(this.folder, free);
      try {
        pin(file);
      } catch (error) {
        // Somebody else was quicker.
        if (error instanceof BpfimgError && error.code === 'EEXIST') continue;
        throw error;
      }
      unfinished(file);
      this.#made.push(file);
      return file;
    }
  }

  /** The pins stay. */
  keep(): void {
    for (const file of this.#made) finished(file);
    this.#made.length = 0;
  }

  /** Removes what was made. */
  undo(): void {
    for (const file of this.#made.reverse()) {
      finished(file);
      try {
        if (file === this.folder) fs.rmdirSync(file);
        else fs.unlinkSync(file);
      } catch (error) {
        // What somebody else has removed, or has put into the folder, is theirs.
        const errno = errnoOf(error);
        if (errno !== 'ENOENT' && errno !== 'ENOTEMPTY') throw ioError(file, 'remove it again', error);
      }
    }
    this.#made.length = 0;
  }
}
