/** What a user's plugin is given: bpfimg's own ways to read and to fill maps. docs/plugins.md says what each is for. */
import { readBuckets, readIndexes, readKeys, readMemory, readPrefixes } from './capture/read.js';
import { FULL } from './maptype.js';
import { fillHash, fillIndexes, fillInOrder, fillMemory } from './replay/fill.js';

export const toolkit = {
  readBuckets,
  readIndexes,
  readMemory,
  readPrefixes,
  readKeys,
  fillHash,
  fillIndexes,
  fillMemory,
  fillInOrder,
  FULL,
};
export type Toolkit = typeof toolkit;
