/** A process in its own network namespace, with an interface there and a DEVMAP that holds it. */

import { BpfMap } from '../../src/kernel/map.js';
import { openSys } from '../../src/kernel/sys.js';
import { u32 } from './kernel-live.js';
import { vethPair } from './objects.js';
import { types } from './types.js';

const index = Number(process.argv[2]);
vethPair(['inner0', index], ['inner1', index + 1]);
const map = BpfMap.create(await openSys(types), {
  type: 14,
  keySize: 4,
  valueSize: 4,
  maxEntries: 4,
  name: 'elsewhere',
});
map.update(u32(0), u32(index));
process.stdout.write(`${map.id}\n`);
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
