/**
 * Pins of fresh maps: one each in a folder that no name from an image can escape, or those that the maps had where
 * they were captured.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { pathBytes, pathText } from '../bytes.js';
import { BpfimgError, errnoOf, ioError } from '../errors.js';
import { noLongerUnfinished, unfinished } from '../io/unfinished.js';
import { bpffsHint, givenPath, isBpffs } from '../kernel/proc.js';
import type { Sys } from '../kernel/sys.js';
import { isTaken, type Replaced, replacedBy, Swap } from './swap.js';

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
export interface Named {
  readonly name: string;
  readonly mapId: number;
}

/** A map to be pinned. */
export interface Pinned extends Named {
  readonly subject: string;
  /** The pins it had. */
  readonly pins: readonly string[];
  /** Ids of the maps that it keeps alive. */
  readonly needed: readonly number[];
}

/** Where maps are pinned, and what happens to names that are taken. */
export interface PinPlace {
  /** A folder, as bytes or as {@link pathText} writes it; without it, maps get the pins they had. */
  readonly folder: string | undefined;
  readonly taken: 'fail' | 'rename' | 'swap';
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
export function pinNames(maps: readonly Named[], taken: Iterable<string> = []): string[] {
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
  /** The paths for each map, in order, as {@link pathText} writes paths. */
  readonly paths: readonly (readonly string[])[];
  readonly problem?: BpfimgError | undefined;
}

/** Names that an error lists. */
const LISTED_PINS = 5;

/** Plans the pins of `maps` without making any. */
export function planPins(place: PinPlace, maps: readonly Pinned[], sys: Sys): PinPlan {
  const plan = place.folder === undefined ? planBack(maps, sys) : planFolder(place.folder, place.taken, maps, sys);
  if (plan.problem !== undefined) return plan;
  const taken = plan.paths.flat().filter(isTaken);
  if (taken.length === 0) return plan;
  if (place.taken !== 'swap') return { ...plan, problem: takenError(place, taken) };
  return {
    ...plan,
    problem: problemOf(() => {
      for (const file of taken) replacedBy(sys, file);
    }),
  };
}

/** The BpfimgError of `look`, if it throws one. */
function problemOf(look: () => void): BpfimgError | undefined {
  try {
    look();
    return undefined;
  } catch (error) {
    if (error instanceof BpfimgError) return error;
    throw error;
  }
}

/** One pin for each map in a folder. */
function planFolder(given: string, taken: PinPlace['taken'], maps: readonly Named[], sys: Sys): PinPlan {
  const folder = pathText(givenPath(given));
  const join = (name: string) => [path.join(folder, name)];
  const problem = placeProblem(folder, sys.proc);
  if (problem !== undefined) return { paths: pinNames(maps).map(join), problem };
  const rename = taken === 'rename' && fs.existsSync(pathBytes(folder));
  return { paths: pinNames(maps, rename ? fs.readdirSync(pathBytes(folder)) : []).map(join) };
}

/** The pins that the maps had; inner maps need none, because their outer maps keep them alive. */
function planBack(maps: readonly Pinned[], sys: Sys): PinPlan {
  const inner = new Set(maps.flatMap(({ needed }) => needed));
  const paths = maps.map(({ pins }) => [...new Set(pins)]);
  const of = new Map<string, Pinned>();
  const problem = problemOf(() => {
    for (const [i, map] of maps.entries()) {
      const { subject } = map;
      if (map.pins.length === 0 && !inner.has(map.mapId)) {
        const why = 'nothing says where it was pinned; --map chooses others, --pin pins in a folder';
        throw new BpfimgError('notFound', why, { subject });
      }
      for (const file of paths[i] ?? []) {
        expectPlace(file, subject, sys.proc);
        const other = of.get(file);
        if (other !== undefined) {
          throw new BpfimgError('conflict', `both ${other.subject} and ${subject} were pinned there`, {
            subject: file,
          });
        }
        of.set(file, map);
      }
    }
  });
  return { paths, problem };
}

/** Fails unless a pin at `file`, a path from an image, would be in a BPF file system. */
function expectPlace(file: string, subject: string, proc: string): void {
  const bytes = pathBytes(file);
  const plain = file.startsWith('/') && path.posix.normalize(file) === file && !bytes.includes(0);
  const [there, ...missing] = plain ? missingFolders(file).reverse() : [];
  const bpffs = there !== undefined && isBpffs(pathBytes(there)) === true;
  // Such a file system does not even look up a name with a dot.
  const dotted = [...missing, file].some((one) => path.basename(one).includes('.'));
  if (bpffs && !dotted) return;
  const why = bpffs ? 'where a name cannot have a dot' : `which is not in a BPF file system; ${bpffsHint(proc)}`;
  throw new BpfimgError('unsupported', `${subject} was pinned there, ${why}`, { subject: file });
}

/** The folders of `file`, from the nearest up to the first that exists. */
function missingFolders(file: string): string[] {
  const folders: string[] = [];
  for (let folder = path.dirname(file); ; folder = path.dirname(folder)) {
    folders.push(folder);
    if (folder === path.dirname(folder) || fs.existsSync(pathBytes(folder))) return folders;
  }
}

function takenError(place: PinPlace, files: readonly string[]): BpfimgError {
  const inFolder = place.folder !== undefined;
  const taken = inFolder ? files.map((file) => path.basename(file)) : files;
  const list =
    taken.slice(0, LISTED_PINS).join(', ') +
    (taken.length > LISTED_PINS ? `, and ${taken.length - LISTED_PINS} more` : '');
  const ways = inFolder
    ? 'choose another folder with --pin, other names with --rename-taken, or exchange the maps with --swap'
    : '--swap exchanges the maps, --pin chooses a folder';
  const subject = inFolder ? pathText(givenPath(place.folder)) : undefined;
  return new BpfimgError('conflict', `${list}: pinned there already; ${ways}`, { subject, code: 'EEXIST' });
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

/** The pins of a map. */
export interface PinsOfMap {
  /** As {@link pathText} writes paths. */
  readonly pins: readonly string[];
  /** The maps that had some of these names. */
  readonly replaced: readonly Replaced[];
}

/** The pins of one replay, and the folders made for them; all of it is undone unless {@link keep} is called. */
export class Pins {
  /** What was made, in this order, and whether it is a folder. */
  readonly #made: { readonly file: Buffer; readonly folder: boolean }[] = [];
  readonly #swap = new Swap();
  /** What is replaced, by the pin. */
  readonly #replaced = new Map<string, Replaced>();

  private constructor(
    readonly place: PinPlace,
    /** The paths for each map. */
    readonly paths: readonly (readonly string[])[],
  ) {}

  /**
   * Makes the folders for the pins of `maps`.
   * @throws BpfimgError if pins cannot be made there
   */
  static open(place: PinPlace, maps: readonly Pinned[], sys: Sys): Pins {
    const { paths, problem } = planPins(place, maps, sys);
    if (problem !== undefined) throw problem;
    const pins = new Pins(place, paths);
    try {
      for (const file of paths.flat()) {
        if (place.taken === 'swap' && isTaken(file)) pins.#replaced.set(file, replacedBy(sys, file));
        else pins.#makeFolders(file);
      }
      // Even for no pins at all.
      if (place.folder !== undefined) pins.#makeFolders(path.join(pathText(givenPath(place.folder)), 'pin'));
    } catch (error) {
      pins.undo();
      throw error;
    }
    return pins;
  }

  #makeFolders(file: string): void {
    for (const folder of missingFolders(file).slice(0, -1).reverse()) {
      const bytes = pathBytes(folder);
      try {
        fs.mkdirSync(bytes, { mode: 0o700 });
      } catch (error) {
        throw ioError(folder, 'create it', error);
      }
      unfinished(bytes, true);
      this.#made.push({ file: bytes, folder: true });
    }
  }

  /**
   * Makes the pins of one map by calling `pin` with each path. A name that is taken gets the map later, see
   * {@link exchange}.
   * @param index position of the map among those the pins were opened for
   */
  add(index: number, pin: (path: Buffer) => void): PinsOfMap {
    const replaced: Replaced[] = [];
    const pins = (this.paths[index] ?? []).map((file) => {
      const old = this.#replaced.get(file);
      if (old === undefined) return this.#addOne(file, pin);
      this.#swap.add(old, pin);
      replaced.push(old);
      return file;
    });
    return { pins, replaced };
  }

  #addOne(wanted: string, pin: (path: Buffer) => void): string {
    for (let number = 1; ; number++) {
      const file = number === 1 ? wanted : `${wanted}-${number}`;
      const bytes = pathBytes(file);
      try {
        pin(bytes);
      } catch (error) {
        if (!(error instanceof BpfimgError) || error.code !== 'EEXIST') throw error;
        // Another process was quicker.
        if (this.place.taken === 'rename') continue;
        throw takenError(this.place, [file]);
      }
      unfinished(bytes);
      this.#made.push({ file: bytes, folder: false });
      return file;
    }
  }

  /** Names that were taken lead to the fresh maps from now on. */
  exchange(): void {
    this.#swap.exchange();
  }

  /** The pins stay. */
  keep(): void {
    this.#swap.keep();
    for (const { file } of this.#made) noLongerUnfinished(file);
    this.#made.length = 0;
  }

  /** Removes what was made. */
  undo(): void {
    this.#swap.undo();
    for (const { file, folder } of this.#made.reverse()) {
      noLongerUnfinished(file);
      try {
        if (folder) fs.rmdirSync(file);
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
