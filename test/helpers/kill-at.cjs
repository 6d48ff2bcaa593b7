// Loaded before a command (`node --require`): ends it with SIGKILL just before its KILL_AT-th change of a file system.
const fs = require('node:fs');
let left = Number(process.env.KILL_AT);
for (const name of [
  'openSync',
  'renameSync',
  'linkSync',
  'rmSync',
  'unlinkSync',
  'mkdirSync',
  'fsyncSync',
  'fsync',
  'ftruncateSync',
]) {
  const call = fs[name];
  fs[name] = (...args) => {
    const changes = name !== 'openSync' || /[wa+]/.test(String(args[1]));
    if (changes && left-- === 0) process.kill(process.pid, 'SIGKILL');
    return call(...args);
  };
}
