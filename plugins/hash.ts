import type { Plugin } from '../src/maptype.js';
import { toolkit } from '../src/toolkit.js';
import { ELEMENTS, FLAG, HASH, HASH_ITEM, NUMA_RW, PROG, TYPES } from './rules.js';

const { fillHash, fillInOrder, readBuckets, readKeys } = toolkit;

/** Hash tables, with and without eviction, and the one that grows. */
export const hash: Plugin = {
  name: 'hash',
  types: [
    {
      number: 1,
      name: 'hash',
      since: '3.19',
      key: 'bytes',
      criu: true,
      counted: ELEMENTS,
      create: { ...HASH, ...TYPES, flags: FLAG.NO_PREALLOC | NUMA_RW | FLAG.ZERO_SEED | PROG, item: HASH_ITEM },
    },
    {
      number: 9,
      name: 'lru_hash',
      since: '4.10',
      key: 'bytes',
      evicts: true,
      counted: ELEMENTS,
      create: { ...HASH, ...TYPES, flags: FLAG.NO_COMMON_LRU | NUMA_RW | FLAG.ZERO_SEED | PROG, item: HASH_ITEM },
    },
    {
      number: 35,
      name: 'rhash',
      since: '7.2',
      key: 'bytes',
      grows: true,
      create: {
        ...TYPES,
        key: { min: 1, max: 65_535 },
        value: { min: 1, max: HASH_ITEM - 1 },
        entries: { min: 1, max: 2 ** 31 },
        flags: FLAG.NO_PREALLOC | NUMA_RW | PROG,
        needs: FLAG.NO_PREALLOC,
        item: HASH_ITEM,
        extra: { max: 65_535n, step: 1n },
      },
    },
  ],
  capture: (map, sink, work) => (work.type.grows ? readKeys : readBuckets)(map, sink, work),
  replay: (map, items, work) => (work.type.grows ? fillInOrder : fillHash)(map, items, work),
  into: toolkit.mergeItems,
};
