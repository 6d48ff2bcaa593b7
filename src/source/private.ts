/** Folders that are nobody else's, for what a source must be made of before it can be read. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { ioError } from '../errors.js';
import { spoolFolder } from '../io/spool.js';
import { noLongerUnfinished, unfinished } from '../io/unfinished.js';

/** A folder that goes when it is closed, or when the process ends. */
export interface PrivateFolder {
  readonly path: string;
  close(): void;
}

/** Makes one, where large temporaries go. */
export function privateFolder(): PrivateFolder {
  const parent = spoolFolder();
  let folder: string;
  try {
    folder = fs.mkdtempSync(path.join(parent, '.bpfimg-'));
  } catch (error) {
    throw ioError(parent, 'make a folder in it', error);
  }
  unfinished(folder);
  return {
    path: folder,
    close() {
      fs.rmSync(folder, { recursive: true, force: true });
      noLongerUnfinished(folder);
    },
  };
}
