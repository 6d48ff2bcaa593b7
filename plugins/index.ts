/** The map-type plugins that come with bpfimg. */

import { MapTypes, type Plugin } from '../src/maptype.js';
import { arena } from './arena/index.js';
import { array } from './array.js';
import { bloom } from './bloom.js';
import { hash } from './hash.js';
import { kernel } from './kernel.js';
import { mapInMap } from './map-in-map/index.js';
import { percpu } from './percpu.js';
import { queue } from './queue/index.js';
import { references } from './references/index.js';
import { ring } from './ring/index.js';
import { storage } from './storage/index.js';
import { trie } from './trie.js';
import { unknownTypes } from './unknown.js';

/** bpfimg's own. If two serve one type, the last one wins. */
export const plugins: readonly Plugin[] = [
  hash,
  array,
  percpu,
  trie,
  mapInMap,
  references,
  queue,
  storage,
  ring,
  arena,
  bloom,
  kernel,
];

/** The table of the map types that bpfimg knows, and of those that `more` serve instead or in addition. */
export function typeTable(more: readonly Plugin[] = []): MapTypes {
  return new MapTypes([...plugins, ...more], unknownTypes);
}

export { unknownTypes };
