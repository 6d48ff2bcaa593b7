import { readBuckets, readKeys } from '../src/capture/read.js';
import type { Plugin } from '../src/maptype.js';
import { fillHash, fillInOrder } from '../src/replay/fill.js';

/** Hash tables, with and without eviction, and the one that grows. */
export const hash: Plugin = {
  name: 'hash',
  types: [
    { number: 1, name: 'hash', since: '3.19', key: 'bytes', criu: true },
    { number: 9, name: 'lru_hash', since: '4.10', key: 'bytes', evicts: true },
    { number: 35, name: 'rhash', since: '7.2', key: 'bytes', grows: true },
  ],
  capture: (map, sink, work) => (work.type.grows ? readKeys : readBuckets)(map, sink, work),
  replay: (map, items, work) => (work.type.grows ? fillInOrder : fillHash)(map, items, work),
};
