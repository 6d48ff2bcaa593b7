/**
 * A process that replaces inner maps of a map of maps, one every so many milliseconds (0: as fast as it can), until
 * nobody listens any more. It holds none of them; each has one item, the number of its slot.
 */

import { BpfMap } from '../../src/kernel/map.js';
import { openSys } from '../../src/kernel/sys.js';
import { types } from './types.js';

const sys = await openSys(types);
const { outer, slots, pause } = JSON.parse(process.argv[2] ?? '{}') as { outer: number; slots: number; pause: number };
const map = BpfMap.openById(sys, outer);
const u32 = (value: number) => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
};
let running = true;
process.stdin.resume();
process.stdin.on('end', () => {
  running = false;
});
let replaced = 0;
for (; running; replaced++) {
  const slot = replaced % slots;
  using inner = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 4, maxEntries: 4, name: 'backends' });
  inner.update(u32(0), u32(slot));
  map.update(u32(slot), u32(inner.fd));
  if (replaced === slots) process.stdout.write('ready\n');
  if (replaced > slots && (pause > 0 || replaced % 50 === 0)) await new Promise((go) => setTimeout(go, pause));
}
process.stdout.write(`${replaced}\n`);
map.close();
