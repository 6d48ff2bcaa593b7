import * as path from 'node:path';
import { type Dump, FINISHED, unfinished } from '../dump/model.js';
import type { Io } from './io.js';

/** Says so when CRIU has not finished a dump: what is read of it may be less than there was. */
export function sayUnfinished(dump: Dump, io: Io): void {
  const why = unfinished(dump);
  if (why !== undefined) io.say(`bpfimg: warning: ${path.join(dump.name, FINISHED)}: ${why}`);
}
