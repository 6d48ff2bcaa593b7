import type { Plugin } from '../src/maptype.js';
import { toolkit } from '../src/toolkit.js';
import { indexText } from './array.js';
import { ELEMENTS, FLAG, HASH, indexed, NUMA_RW, PERCPU_VALUE, PROG, TYPES } from './rules.js';

const { fillHash, fillIndexes, readBuckets, readIndexes } = toolkit;

/** Maps that have a value for each possible CPU. */
export const percpu: Plugin = {
  name: 'percpu',
  types: [
    {
      number: 5,
      name: 'percpu_hash',
      since: '4.6',
      key: 'bytes',
      perCpu: true,
      counted: ELEMENTS,
      create: { ...HASH, ...TYPES, value: PERCPU_VALUE, flags: FLAG.NO_PREALLOC | NUMA_RW | FLAG.ZERO_SEED | PROG },
    },
    {
      number: 6,
      name: 'percpu_array',
      since: '4.6',
      key: 'index',
      perCpu: true,
      dense: true,
      create: {
        ...indexed(PERCPU_VALUE),
        ...TYPES,
        flags: NUMA_RW | PROG,
        // Linux 7.2 wants it, Linux 6.18 does not.
        within: 'same entries on some kernels',
        keyType: 'INT',
      },
    },
    {
      number: 10,
      name: 'lru_percpu_hash',
      since: '4.10',
      key: 'bytes',
      perCpu: true,
      evicts: true,
      counted: ELEMENTS,
      create: { ...HASH, ...TYPES, value: PERCPU_VALUE, flags: FLAG.NO_COMMON_LRU | NUMA_RW | FLAG.ZERO_SEED | PROG },
    },
  ],
  capture: (map, sink, work) => (work.type.dense ? readIndexes : readBuckets)(map, sink, work),
  replay: (map, items, work) => (work.type.dense ? fillIndexes : fillHash)(map, items, work),
  into: (map, items, work) => (work.type.dense ? toolkit.mergeIndexes : toolkit.mergeItems)(map, items, work),
  keyText: (key, type) => (type.dense ? indexText(key) : undefined),
};
