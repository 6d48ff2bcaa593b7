/** Where the images of a dump are: in a folder, or in an archive. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { ioError } from '../errors.js';
import { type Input, openFile } from '../io/input.js';
import { atOneTime } from '../io/journal.js';

/** The files of one dump. */
export interface DumpFiles {
  /** The dump's name in messages, such as its path. */
  readonly name: string;
  /** A file's name in messages. */
  nameOf(file: string): string;
  /** Names of the files that exist now. */
  names(): Set<string>;
  /** Size of a file in bytes; undefined if it is missing. */
  size(name: string): number | undefined;
  /**
   * Opens a regular file; messages name it as a file of the dump. The caller closes it.
   * @throws BpfimgError `io`
   */
  open(name: string): Input;
  /** Runs `read`, and again if the files change meanwhile. */
  atOneTime<T extends { close(): void }>(read: () => Promise<T>): Promise<T>;
}

/**
 * The files of a folder.
 * @param name the folder's name in messages
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
