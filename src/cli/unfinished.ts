import * as path from 'node:path';
import { FINISHED, unfinishedDump } from '../dump/model.js';
import type { Io } from './io.js';

/** Says so when CRIU has not finished the dump in `folder`: what is there may be less than there was, or broken. */
export function sayUnfinished(folder: string, io: Io): void {
  const why = unfinishedDump(folder);
  if (why !== undefined) io.say(`bpfimg: warning: ${path.join(folder, FINISHED)}: ${why}`);
}
