/** Loaded before a program (`node --import`), it tells in the end how much memory that took: `peak N MiB`. */
import { readFileSync, writeSync } from 'node:fs';

process.on('exit', () => {
  // Not getrusage's: that begins with what the process had that made this one.
  const [, kib] = /^VmHWM:\s*(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'latin1')) ?? [];
  writeSync(2, `peak ${Number(kib) >> 10} MiB\n`);
});
