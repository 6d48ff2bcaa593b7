/** Where the images of a dump are: in a folder, or in an archive. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { ioError } from '../errors.js';
import { type Input, openFile } from '../io/input.js';
import { atOneTime } from '../io/journal.js';

/** The files of one dump. */
export interface DumpFiles {
  /** How messages name the dump: its path, say. */
  readonly name: string;
  /** How messages name a file of it. */
  nameOf(file: string): string;
  /** Names of the files that are there now. */
  names(): Set<string>;
  /** Bytes of a file; undefined when it is missing. */
  size(name: string): number | undefined;
  /**
   * Opens a file, which must be a regular one; messages name it as a file of the dump. The caller closes it.
   * @throws BpfimgError `io`
   */
  open(name: string): Input;
  /** Runs `read`, once more when the files change meanwhile. */
  atOneTime<T extends { close(): void }>(read: () => Promise<T>): Promise<T>;
}

/**
 * The files of a folder.
 * @param name how messages name it
 */
export function folderFiles(folder: string, name = folder): DumpFiles {
  const nameOf = (file: string) => path.join(name, file);
  return {
    name,
    nameOf,
    names() {
      try {
        return new Set(fs.readdirSync(folder));
      } catch (error) {
        throw ioError(name, 'read it', error);
      }
    },
    size(file) {
      try {
        return fs.statSync(path.join(folder, file), { throwIfNoEntry: false })?.size;
      } catch (error) {
        throw ioError(nameOf(file), 'look at it', error);
      }
    },
    open: (file) => openFile(path.join(folder, file), nameOf(file)),
    atOneTime: (read) => atOneTime(folder, read),
  };
}
