/** Remembers which keys came before, in memory that does not grow with the image. */

import type { BpfMap } from '../kernel/map.js';
import { KeyFilter } from '../keyhash.js';
import type { ItemSource, MapType } from '../maptype.js';

/** Whether key number `index` of `keys` came before, and remembers it. May wrongly say yes, never no. */
export type Seen = (keys: Buffer, index: number) => boolean;

/** Most words of the filter, as a power of two: 64 MiB. */
const MOST_WORDS = 24;

/** For keys of any kind. */
export function seenKeys(items: Pick<ItemSource, 'count' | 'keySize'>, type: Pick<MapType, 'key'>): Seen {
  const { count, keySize } = items;
  if (keySize === 0) return () => false;
  const filter = new KeyFilter(count, MOST_WORDS);
  const hashOf = type.key === 'prefix' ? prefixHash : keySize % 4 === 0 ? new WordHash().of : byteHash;
  return (keys, index) => filter.add(hashOf(keys, index * keySize, keySize));
}

/** Most indexes to remember, as a power of two: 64 MiB of bits. */
const MOST_INDEXES = 29;

/** For indexes of an array, exact; for an array with too many, none is remembered. */
export function seenIndexes(map: Pick<BpfMap, 'maxEntries'>): Seen {
  const { maxEntries } = map;
  if (maxEntries > 2 ** MOST_INDEXES) return () => false;
  const words = new BitWords();
  /** All below this index came before. Usually that is all: images have the indexes in order. */
  let next = 0;
  let bits: Int32Array | undefined;
  return (keys, item) => {
    const index = words.at(keys, item);
    if (index === next && bits === undefined) {
      next++;
      return false;
    }
    if (index >= maxEntries) return false;
    if (index < next) return true;
    bits ??= new Int32Array((maxEntries + 31) >>> 5);
    const word = bits[index >>> 5] as number;
    bits[index >>> 5] = word | (1 << (index & 31));
    return (word & (1 << (index & 31))) !== 0;
  };
}

/** A batch's keys as words of 4 bytes. */
class BitWords {
  #keys: Buffer | undefined;
  #words: Uint32Array = new Uint32Array(0);

  at(keys: Buffer, index: number): number {
    if (keys !== this.#keys) {
      if (keys.byteOffset % 4 !== 0) return keys.readUInt32LE(4 * index);
      this.#keys = keys;
      this.#words = new Uint32Array(keys.buffer, keys.byteOffset, keys.length >>> 2);
    }
    return this.#words[index] as number;
  }
}

function mixed(hash: number, word: number): number {
  const next = Math.imul(hash ^ word, 0x85ebca6b);
  return next ^ (next >>> 13);
}

const START = 0x3c6ef372;

function finalHash(hash: number): number {
  const next = Math.imul(hash, 0xc2b2ae35);
  return (next ^ (next >>> 16)) >>> 0;
}

/** Of keys that are words of 4 bytes. */
class WordHash {
  #keys: Buffer | undefined;
  #words: Int32Array = new Int32Array(0);

  readonly of = (keys: Buffer, at: number, size: number): number => {
    if (keys !== this.#keys) {
      if (keys.byteOffset % 4 !== 0) return byteHash(keys, at, size);
      this.#keys = keys;
      this.#words = new Int32Array(keys.buffer, keys.byteOffset, keys.length >>> 2);
    }
    const words = this.#words;
    let hash = START;
    for (let i = at >>> 2; i < (at + size) >>> 2; i++) hash = mixed(hash, words[i] as number);
    return finalHash(hash);
  };
}

function byteHash(keys: Buffer, at: number, size: number): number {
  let hash = START;
  for (let i = at; i < at + size; i++) hash = mixed(hash, keys[i] as number);
  return finalHash(hash);
}

/** For keys of a trie, in which bits after the prefix do not count. */
function prefixHash(keys: Buffer, at: number, size: number): number {
  let left = keys.readUInt32LE(at);
  let hash = mixed(START, left);
  for (let i = at + 4; i < at + size && left > 0; i++, left -= 8) {
    const byte = keys[i] as number;
    hash = mixed(hash, left >= 8 ? byte : byte & (0xff << (8 - left)));
  }
  return finalHash(hash);
}
