/** What a command is given to read: a path, or standard input for `-` and for nothing. */
import * as fs from 'node:fs';
import { BpfimgError } from '../errors.js';

/**
 * What a lone `-` is turned into before yargs sees it, which would make empty text of it. No argument of
 * a process can contain it.
 */
export const DASH = '\0';

/** The path named by position or by `-i`; undefined for standard input. */
export function sourceOf(positional: string | undefined, option: string | undefined): string | undefined {
  if (positional !== undefined && option !== undefined) {
    const [one, other] = [positional, option].map((name) => (name === DASH ? '-' : name));
    throw new BpfimgError('usage', `two inputs, ${one} and -i ${other}: name one`);
  }
  const source = positional ?? option;
  return source === DASH ? undefined : source;
}

/** Whether `path` is a folder. A path that cannot be looked at is left for opening it to explain. */
export function isFolder(path: string): boolean {
  try {
    return fs.statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
  } catch {
    return false;
  }
}
