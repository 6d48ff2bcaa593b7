import type { Plugin } from '../src/maptype.js';

/** Maps with a value for each possible CPU. */
export const percpu: Plugin = {
  name: 'percpu',
  types: [
    { number: 5, name: 'percpu_hash', since: '4.6', key: 'bytes', perCpu: true },
    { number: 6, name: 'percpu_array', since: '4.6', key: 'index', perCpu: true, dense: true },
    { number: 10, name: 'lru_percpu_hash', since: '4.10', key: 'bytes', perCpu: true },
  ],
};
