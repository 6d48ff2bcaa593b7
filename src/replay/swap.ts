/**
 * Pins that change hands: fresh maps get names that are taken, and the maps that had them are kept beside them until
 * the swap is committed or rolled back.
 *
 * Each name leads to either the old map or the fresh one at every moment. First, all fresh maps get temporary names;
 * then, all old ones get a second name (a link); only then, one rename for each name exchanges the maps.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { pathBytes, pathText } from '../bytes.js';
import { BpfimgError, errorText, ioError } from '../errors.js';
import { noLongerUnfinished, unfinished, whenInterrupted } from '../io/unfinished.js';
import { BpfMap } from '../kernel/map.js';
import { givenPath } from '../kernel/proc.js';
import type { Sys } from '../kernel/sys.js';

/** What is added to a pin's name for the old map: no dot, which the kernel refuses, and nothing that is a C name. */
const KEPT = '-swap-old';
/** The same for the fresh map, until it gets the name. */
const COMING = '-swap-new';

/** A pin that leads to a fresh map now. */
export interface Replaced {
  /** As {@link pathText} writes paths. */
  readonly pin: string;
  /** Where the old map is pinned now. */
  readonly kept: string;
}

/** Whether there is a file, folder or link of this name. */
export function isTaken(file: string): boolean {
  try {
    return fs.lstatSync(pathBytes(file), { throwIfNoEntry: false }) !== undefined;
  } catch (error) {
    throw ioError(file, 'inspect it', error);
  }
}

/**
 * What will be replaced if a fresh map gets the taken name `pin`. Changes nothing.
 * @throws BpfimgError if it cannot be exchanged
 */
export function replacedBy(sys: Sys, pin: string): Replaced {
  const kept = pin + KEPT;
  if (Buffer.byteLength(path.basename(pathBytes(kept).toString('latin1')), 'latin1') > 255) {
    throw new BpfimgError('unsupported', 'its name is too long for a swap, which adds to it', { subject: pin });
  }
  if (isTaken(kept) || isTaken(pin + COMING)) {
    const folder = path.dirname(pin);
    const ways = `end that first: bpfimg swap commit ${folder}, or bpfimg swap rollback ${folder}`;
    throw new BpfimgError('conflict', `it has been swapped already; ${ways}`, { subject: pin, code: 'EEXIST' });
  }
  BpfMap.openPinned(sys, pathBytes(pin), 'ro').close();
  return { pin, kept };
}

/** Runs `change` of `file`. */
function changed(file: string, what: string, change: () => void): void {
  try {
    change();
  } catch (error) {
    throw ioError(file, what, error);
  }
}

/** The pins of one run that change hands. Everything is as before unless {@link keep} is called. */
export class Swap {
  readonly #coming: { readonly replaced: Replaced; readonly file: Buffer }[] = [];
  /** What undoes the changes so far. */
  readonly #back: (() => void)[] = [];
  #unregister: (() => void) | undefined;

  /** Pins a fresh map under a temporary name. */
  add(replaced: Replaced, pin: (path: Buffer) => void): void {
    const file = pathBytes(replaced.pin + COMING);
    pin(file);
    unfinished(file);
    this.#coming.push({ replaced, file });
    this.#back.push(() => {
      noLongerUnfinished(file);
      fs.rmSync(file, { force: true });
    });
  }

  /** All names get their fresh maps. */
  exchange(): void {
    if (this.#coming.length === 0) return;
    this.#unregister = whenInterrupted(() => {
      try {
        this.undo();
      } catch (error) {
        return errorText(error);
      }
      return undefined;
    });
    const names = this.#coming.map(({ replaced: { pin, kept }, file }) => {
      return { pin, file, name: pathBytes(pin), old: pathBytes(kept) };
    });
    for (const { pin, name, old } of names) {
      changed(pin, 'keep the old map', () => fs.linkSync(name, old));
      this.#back.push(() => fs.rmSync(old, { force: true }));
    }
    for (const { pin, file, name, old } of names) {
      changed(pin, 'exchange it', () => fs.renameSync(file, name));
      noLongerUnfinished(file);
      this.#back.push(() => fs.renameSync(old, name));
    }
  }

  /** The fresh maps keep the names. */
  keep(): void {
    this.#unregister?.();
    this.#back.length = 0;
  }

  /** The old maps get their names back. */
  undo(): void {
    this.#unregister?.();
    for (let back = this.#back.pop(); back !== undefined; back = this.#back.pop()) back();
  }
}

/** A pin of a swap that has not been ended. */
interface Pending {
  readonly pin: string;
  readonly kept: boolean;
  readonly coming: boolean;
}

/** The swaps that `given` names: a folder, or one pin. */
function pending(given: string): Pending[] {
  const target = pathText(givenPath(given));
  let pins = [target];
  try {
    if (fs.statSync(pathBytes(target), { throwIfNoEntry: false })?.isDirectory() === true) {
      const names = fs.readdirSync(pathBytes(target), 'buffer').map(pathText);
      const base = (end: string) =>
        names.filter((name) => name.endsWith(end)).map((name) => name.slice(0, -end.length));
      pins = [...new Set([...base(KEPT), ...base(COMING)])].sort().map((name) => path.join(target, name));
    }
  } catch (error) {
    throw ioError(target, 'read it', error);
  }
  const found = pins.map((pin) => ({ pin, kept: isTaken(pin + KEPT), coming: isTaken(pin + COMING) }));
  if (found.some(({ kept, coming }) => kept || coming)) return found;
  throw new BpfimgError('notFound', 'no pin of a swap is there', { subject: target });
}

/**
 * Ends swaps: the old maps are no longer pinned.
 * @param given paths of folders of pins, or of pins
 * @returns the pins
 */
export function commitSwap(given: readonly string[]): string[] {
  const all = given.flatMap(pending);
  for (const { pin, coming } of all) {
    const problem = coming ? 'its swap was interrupted half-way' : isTaken(pin) ? undefined : 'no longer pinned';
    if (problem === undefined) continue;
    const way = `bpfimg swap rollback ${path.dirname(pin)} brings the old maps back`;
    throw new BpfimgError('conflict', `${problem}; ${way}`, { subject: pin });
  }
  for (const { pin } of all) changed(pin, 'unpin the old map', () => fs.unlinkSync(pathBytes(pin + KEPT)));
  return all.map(({ pin }) => pin);
}

/** Undoes swaps, finished or not: the old maps get their names back. Otherwise like {@link commitSwap}. */
export function rollBackSwap(given: readonly string[]): string[] {
  const all = given.flatMap(pending);
  for (const { pin, kept } of all) {
    if (kept) changed(pin, 'bring the old map back', () => fs.renameSync(pathBytes(pin + KEPT), pathBytes(pin)));
    // A rename of a link onto another one to the same file does nothing.
    changed(pin, 'remove what is left of the swap', () => {
      for (const end of [KEPT, COMING]) fs.rmSync(pathBytes(pin + end), { force: true });
    });
  }
  return all.map(({ pin }) => pin);
}
