import { leaveEmpty, metadataOnly, type Plugin } from '../src/maptype.js';
import { toolkit } from '../src/toolkit.js';
import { FLAG, NUMA_RW, PROG, PUSHED, TYPES } from './rules.js';

/** Sets that answer whether they contain a value, but cannot be listed. */
export const bloom: Plugin = {
  name: 'bloom',
  types: [
    {
      number: 30,
      name: 'bloom_filter',
      since: '5.16',
      key: 'none',
      carries: {
        captured: 'metadata only',
        replayed: 'empty',
        lost: 'elements: the map can test for them, but not list them',
      },
      create: {
        ...PUSHED,
        ...TYPES,
        flags: NUMA_RW | FLAG.ZERO_SEED | PROG,
        extra: { max: 15n, step: 1n },
        keyType: 'VOID',
      },
    },
  ],
  capture: metadataOnly,
  replay: leaveEmpty,
  into: toolkit.appendItems,
};
