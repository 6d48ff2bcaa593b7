/** Private folders for sources that must be turned into a dump before they can be read. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { ioError } from '../errors.js';
import { Folder } from '../io/place.js';
import { noLongerScratch, removeLeft, scratchFolder, temporaryFolder, temporaryName } from '../io/temporary.js';
import { noLongerUnfinished, unfinished } from '../io/unfinished.js';

/** A folder that is removed when it is closed, or when the process ends. */
export interface PrivateFolder {
  readonly path: string;
  close(): void;
}

/** Part of these folders' names. */
const TARGET = 'dump';

/** Makes one in the folder for large temporary files; removes those that killed runs left there. */
export function privateFolder(): PrivateFolder {
  const parent = temporaryFolder();
  const folder = path.join(parent, temporaryName(TARGET));
  try {
    const inside = new Folder(parent);
    try {
      removeLeft(inside, TARGET);
      fs.mkdirSync(inside.at(path.basename(folder)), 0o700);
    } finally {
      inside.close();
    }
  } catch (error) {
    throw ioError(parent, 'make a folder in it', error);
  }
  unfinished(folder);
  scratchFolder(folder);
  return {
    path: folder,
    close() {
      fs.rmSync(folder, { recursive: true, force: true });
      noLongerUnfinished(folder);
      noLongerScratch(folder);
    },
  };
}
