/** Remembers which keys came before, in memory that does not grow with the image. */

import { viewOf } from '../bytes.js';
import type { BpfMap } from '../kernel/map.js';
import { blankBeyondPrefix, KeyFilter, QuickHash } from '../keyhash.js';
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
  const hash = new QuickHash();
  if (type.key !== 'prefix') return (keys, index) => filter.add(hash.of(keys, index * keySize, keySize));
  const key = Buffer.alloc(keySize);
  const view = viewOf(key);
  return (keys, index) => {
    key.set(keys.subarray(index * keySize, (index + 1) * keySize));
    blankBeyondPrefix(view, 0, keySize);
    return filter.add(hash.of(key, 0, keySize));
  };
}

/** Most indexes to remember, as a power of two: 64 MiB of bits. */
const MOST_INDEXES = 29;

/** For indexes of an array, exact; if there are too many, none are remembered. */
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
