import type { Plugin } from '../src/maptype.js';

/** Values at indexes that are always there. */
export const array: Plugin = {
  name: 'array',
  types: [{ number: 2, name: 'array', since: '3.19', key: 'index', dense: true, criu: true }],
};
