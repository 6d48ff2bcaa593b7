import { readPrefixes } from '../src/capture/read.js';
import type { Plugin } from '../src/maptype.js';
import { fillInOrder } from '../src/replay/fill.js';

/** Longest-prefix match. */
export const trie: Plugin = {
  name: 'trie',
  types: [{ number: 11, name: 'lpm_trie', since: '4.11', key: 'prefix' }],
  capture: readPrefixes,
  replay: fillInOrder,
};
