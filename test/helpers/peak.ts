/** Loaded before a program (`node --import`), it tells in the end how much memory that took: `peak N MiB`. */
import { writeSync } from 'node:fs';

process.on('exit', () => {
  writeSync(2, `peak ${process.resourceUsage().maxRSS >> 10} MiB\n`);
});
