/** The map-type plugins that come with bpfimg. */
import type { Plugin } from '../src/maptype.js';
import { array } from './array.js';
import { hash } from './hash.js';
import { mapInMap } from './map-in-map.js';
import { memory } from './memory.js';
import { percpu } from './percpu.js';
import { queue } from './queue.js';
import { references } from './references.js';
import { storage } from './storage.js';
import { trie } from './trie.js';

export const plugins: readonly Plugin[] = [hash, array, percpu, trie, mapInMap, references, queue, storage, memory];

export { strangers } from './strangers.js';
