import { readBuckets } from '../src/capture/read.js';
import type { Plugin } from '../src/maptype.js';
import { fillHash } from '../src/replay/fill.js';

/** Hash tables, with and without eviction. */
export const hash: Plugin = {
  name: 'hash',
  types: [
    { number: 1, name: 'hash', since: '3.19', key: 'bytes', criu: true },
    { number: 9, name: 'lru_hash', since: '4.10', key: 'bytes', evicts: true },
  ],
  capture: readBuckets,
  replay: fillHash,
};
