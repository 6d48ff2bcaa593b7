// Loaded before a command (`node --require`): ends it with SIGKILL, or KILL_WITH, just before its KILL_AT-th change of
// a file system; with KILL_READS, its KILL_AT-th image that it opens; with KILL_AT=journal, when a change of several
// images has begun.
const fs = require('node:fs');
const reads = process.env.KILL_READS !== undefined;
let left = Number(process.env.KILL_AT);
for (const name of [
  'openSync',
  'renameSync',
  'linkSync',
  'rmSync',
  'rmdirSync',
  'unlinkSync',
  'mkdirSync',
  'fsyncSync',
  'fsync',
  'ftruncateSync',
]) {
  const call = fs[name];
  fs[name] = (...args) => {
    const opens = name === 'openSync' && !/[wa+]/.test(String(args[1]));
    const counts = reads ? opens && String(args[0]).endsWith('.img') : !opens;
    if (counts && left-- === 0) process.kill(process.pid, process.env.KILL_WITH ?? 'SIGKILL');
    const result = call(...args);
    const begins = process.env.KILL_AT === 'journal' && String(args[1]).endsWith('/.bpfimg-journal');
    if (begins) process.kill(process.pid, 'SIGKILL');
    return result;
  };
}
