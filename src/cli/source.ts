/** What a command is given to read: a path, or standard input for `-` and for nothing. */
import * as fs from 'node:fs';
import { BpfimgError } from '../errors.js';

/** The path named by position or by `-i`; undefined for standard input. */
export function sourceOf(positional: string | undefined, option: string | undefined): string | undefined {
  if (positional !== undefined && option !== undefined) {
    throw new BpfimgError('usage', `two inputs, ${positional} and -i ${option}: name one`);
  }
  const source = positional ?? option;
  return source === '-' ? undefined : source;
}

/** Whether `path` is a folder. A path that cannot be looked at is left for opening it to explain. */
export function isFolder(path: string): boolean {
  return fs.statSync(path, { throwIfNoEntry: false })?.isDirectory() === true;
}
