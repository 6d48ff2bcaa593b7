/** A process that writes values under their lock as fast as it can, each filled with one number, until its standard output is closed. */

import { ELEM_FLAG } from '../../src/kernel/abi.js';
import { BpfMap } from '../../src/kernel/map.js';
import { openSys } from '../../src/kernel/sys.js';
import { types } from './types.js';

const map = BpfMap.openById(await openSys(types), Number(process.argv[2]));
let running = true;
process.stdin.resume();
process.stdin.on('end', () => {
  running = false;
});
const key = Buffer.alloc(4);
const value = new Uint32Array(map.valueSize / 4);
process.stdout.write('ready\n');
for (let number = 1; running; number++) {
  for (let i = 0; i < 5 * map.maxEntries; i++) {
    key.writeUInt32LE(i % map.maxEntries);
    value.fill(number * 5 * map.maxEntries + i);
    map.update(key, new Uint8Array(value.buffer), ELEM_FLAG.LOCK);
  }
  await new Promise((go) => setImmediate(go));
}
map.close();
