/**
 * A process that changes a map as fast as it can, until nobody listens any more: it inserts and deletes some
 * keys, and updates others, which always stay.
 *
 * Keys end with a number. Those below `stable` stay; every third of them is updated all the time. A value is
 * the number, a version, and the exclusive or of both: one that was mixed up shows.
 */

import { BpfMap } from '../../src/kernel/map.js';
import { ERRNO, openSys } from '../../src/kernel/sys.js';
import { keyOf, type Task, written } from './kernel-writing.js';
import { types } from './types.js';

const sys = await openSys(types);
const { id, stable, fleeting } = JSON.parse(process.argv[2] ?? '{}') as Task;
const map = BpfMap.openById(sys, id);
let running = true;
process.stdin.resume();
process.stdin.on('end', () => {
  running = false;
});
process.stdout.write('ready\n');
let state = 12345;
const below = (limit: number) => {
  state = (Math.imul(state, 1103515245) + 12345) >>> 0;
  return (state >>> 8) % limit;
};
let version = 1;
while (running) {
  for (let i = 0; i < 2000; i++) {
    version++;
    const kind = below(4);
    const number = kind === 0 ? 3 * below(Math.floor(stable / 3)) : stable + below(fleeting);
    const key = keyOf(map, number);
    try {
      if (kind === 3) map.delete(key);
      else map.update(key, written(number, version));
    } catch (error) {
      // A preallocated hash can be out of free elements for a moment.
      if ((error as { errno?: number }).errno !== ERRNO.E2BIG) throw error;
    }
  }
  await new Promise((go) => setImmediate(go));
}
process.stdout.write(`${version}\n`);
map.close();
