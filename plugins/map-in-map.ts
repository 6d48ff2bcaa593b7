import type { Plugin } from '../src/maptype.js';

/** Maps whose values are other maps: user space reads ids and writes fds. */
export const mapInMap: Plugin = {
  name: 'map-in-map',
  types: [
    { number: 12, name: 'array_of_maps', since: '4.12', key: 'index' },
    { number: 13, name: 'hash_of_maps', since: '4.12', key: 'bytes' },
  ],
};
