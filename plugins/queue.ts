import type { Plugin } from '../src/maptype.js';

/** Maps without keys: values are pushed, and popped or only tested for. */
export const queue: Plugin = {
  name: 'queue',
  types: [
    { number: 22, name: 'queue', since: '4.20', key: 'none' },
    { number: 23, name: 'stack', since: '4.20', key: 'none' },
    { number: 30, name: 'bloom_filter', since: '5.16', key: 'none' },
  ],
};
