/** Pins of fresh maps: one each, in a folder that no name from an image can escape. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { pathBytes, pathText } from '../bytes.js';
import { BpfimgError, errnoOf, ioError } from '../errors.js';
import { noLongerUnfinished, unfinished } from '../io/unfinished.js';
import { bpffsHint, givenPath, isBpffs, PROC } from '../kernel/proc.js';

/** Longest name of a pin, in bytes (NAME_MAX). */
const NAME_MAX = 255;

/**
 * Turns a map's name into the name of a pin. The kernel accepts no dot in it, and a name from an image may have any
 * bytes: everything but letters, digits, `_` and `-` becomes `_`.
 */
export function pinName(name: string, mapId: number): string {
  const safe = name.replace(/[^A-Za-z0-9_-]/g, '_').slice(0, NAME_MAX - 24);
  return /[A-Za-z0-9]/.test(safe) ? safe : `map_${mapId}`;
}

/** What the name of a pin is made of: the map's whole name, and its id in the dump. */
export interface Pinned {
  readonly name: string;
  readonly mapId: number;
}

/** A name that is not in `taken`: `wanted`, else with the map's id, else with a number as well. */
function freeName(wanted: string, mapId: number, taken: ReadonlySet<string>, withId = false): string {
  let name = withId ? `${wanted}-${mapId}` : wanted;
  for (let number = 1; taken.has(name); number++) {
    name = number === 1 ? `${wanted}-${mapId}` : `${wanted}-${mapId}-${number}`;
  }
  return name;
}

/**
 * Distinct names of pins for `maps`. If several want the same name, all get their ids in it, so that none of them
 * looks like the only one.
 * @param taken names that are not available
 */
export function pinNames(maps: readonly Pinned[], taken: Iterable<string> = []): string[] {
  const wanted = maps.map(({ name, mapId }) => pinName(name, mapId));
  const [seen, shared] = [new Set<string>(), new Set<string>()];
  for (const name of wanted) (seen.has(name) ? shared : seen).add(name);
  const used = new Set(taken);
  return maps.map(({ mapId }, i) => {
    const want = wanted[i] as string;
    const name = freeName(want, mapId, used, shared.has(want));
    used.add(name);
    return name;
  });
}

/** The pins that a replay will make, and known reasons why it cannot. */
export interface PinPlan {
  /** The path for each map, in order, as {@link pathText} writes paths. */
  readonly paths: readonly string[];
  readonly problem?: BpfimgError | undefined;
}

/** Names that an error lists. */
const LISTED_PINS = 5;

/**
 * Plans the pins of `maps` in `folder` without making any.
 * @param given the folder's path, as bytes or as {@link pathText} writes it
 * @param rename if a map's name is taken there, add its id
 */
export function planPins(given: string, maps: readonly Pinned[], rename = false, proc = PROC): PinPlan {
  const folder = pathText(givenPath(given));
  const join = (name: string) => path.join(folder, name);
  const place = placeProblem(folder, proc);
  if (place !== undefined) return { paths: pinNames(maps).map(join), problem: place };
  const there = new Set(fs.existsSync(pathBytes(folder)) ? fs.readdirSync(pathBytes(folder)) : []);
  const names = pinNames(maps, rename ? there : []);
  const taken = names.filter((name) => there.has(name));
  return { paths: names.map(join), problem: taken.length === 0 ? undefined : takenError(folder, taken) };
}

function takenError(folder: string, taken: readonly string[]): BpfimgError {
  const list =
    taken.slice(0, LISTED_PINS).join(', ') +
    (taken.length > LISTED_PINS ? `, and ${taken.length - LISTED_PINS} more` : '');
  const ways = 'choose another folder with --pin, or other names with --rename-taken';
  return new BpfimgError('conflict', `${list}: pinned there already; ${ways}`, { subject: folder, code: 'EEXIST' });
}

/** Why no pin can be made in `folder`, as far as can be seen without making anything. */
function placeProblem(folder: string, proc: string): BpfimgError | undefined {
  const parent = path.dirname(path.resolve(folder));
  // Such a file system does not even look up a name with a dot.
  if (path.basename(path.resolve(folder)).includes('.') && isBpffs(pathBytes(parent)) === true) {
    return new BpfimgError('io', 'a folder on a BPF file system cannot have a dot in its name', { subject: folder });
  }
  let there: fs.Stats | undefined;
  try {
    there = fs.statSync(pathBytes(folder), { throwIfNoEntry: false });
  } catch (error) {
    return ioError(folder, 'inspect it', error) as BpfimgError;
  }
  if (there !== undefined && !there.isDirectory()) return new BpfimgError('io', 'not a folder', { subject: folder });
  const bpffs = isBpffs(pathBytes(there === undefined ? parent : folder));
  if (bpffs === true) return undefined;
  const [subject, where] = bpffs === undefined ? [parent, 'no such folder'] : [folder, 'not on a BPF file system'];
  return new BpfimgError(
    bpffs === undefined ? 'notFound' : 'unsupported',
    `${where}, which pins need; ${bpffsHint(proc)}`,
    { subject },
  );
}

/** A folder on a BPF file system for the pins of one replay; all of them are removed unless {@link keep} is called. */
export class PinFolder {
  /** In the order they were made. */
  readonly #made: Buffer[] = [];
  readonly #folder: Buffer;

  private constructor(
    readonly folder: string,
    readonly paths: readonly string[],
    readonly rename: boolean,
  ) {
    this.#folder = givenPath(folder);
  }

  /**
   * Opens a folder for the pins of `maps`, or makes a new one.
   * @throws BpfimgError if pins cannot be made there
   */
  static open(folder: string, maps: readonly Pinned[], rename = false, proc = PROC): PinFolder {
    const { paths, problem } = planPins(folder, maps, rename, proc);
    if (problem !== undefined) throw problem;
    const pins = new PinFolder(folder, paths, rename);
    if (fs.existsSync(pins.#folder)) return pins;
    try {
      fs.mkdirSync(pins.#folder, { mode: 0o700 });
    } catch (error) {
      throw ioError(folder, 'create it', error);
    }
    unfinished(pins.#folder, true);
    pins.#made.push(pins.#folder);
    return pins;
  }

  /**
   * Makes the pin of one map by calling `pin` with the path.
   * @param index position of the map among those the folder was opened for
   * @returns the path, as {@link pathText} writes it
   */
  add(index: number, pin: (path: Buffer) => void): string {
    const wanted = this.paths[index] as string;
    for (let number = 1; ; number++) {
      const file = number === 1 ? wanted : `${wanted}-${number}`;
      const bytes = pathBytes(file);
      try {
        pin(bytes);
      } catch (error) {
        if (!(error instanceof BpfimgError) || error.code !== 'EEXIST') throw error;
        // Another process was quicker.
        if (this.rename) continue;
        throw takenError(this.folder, [path.basename(file)]);
      }
      unfinished(bytes);
      this.#made.push(bytes);
      return file;
    }
  }

  /** The pins stay. */
  keep(): void {
    for (const file of this.#made) noLongerUnfinished(file);
    this.#made.length = 0;
  }

  /** Removes what was made. */
  undo(): void {
    for (const file of this.#made.reverse()) {
      noLongerUnfinished(file);
      try {
        if (file === this.#folder) fs.rmdirSync(file);
        else fs.unlinkSync(file);
      } catch (error) {
        // Keep what others have removed from the folder or put into it.
        const errno = errnoOf(error);
        if (errno !== 'ENOENT' && errno !== 'ENOTEMPTY') throw ioError(pathText(file), 'remove it again', error);
      }
    }
    this.#made.length = 0;
  }
}
