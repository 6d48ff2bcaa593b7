/** Finds keys that occur twice in a data entry, in memory that does not grow with the map. */
import { Cursor, type Input } from '../io/input.js';
import { pause } from '../io/pause.js';
import { KeyHash } from '../keyhash.js';

/** Keys held in one pass over the entry; more keys need further passes. */
const KEYS_IN_PASS = 1 << 20;

/** Two keys of an entry that are equal, by their positions in it. */
export interface DuplicateKey {
  readonly first: number;
  readonly index: number;
}

/**
 * Keys that equal an earlier key of the same entry, up to `most` of them.
 *
 * A pass holds the hashes of the keys in its share; keys with both hashes equal are compared
 * byte for byte.
 * @param at position of the first key in `input`
 */
export async function duplicateKeys(
  input: Input,
  at: number,
  count: number,
  keySize: number,
  most: number,
): Promise<DuplicateKey[]> {
  const found: DuplicateKey[] = [];
  if (keySize === 0) return found;
  const passes = Math.ceil(count / KEYS_IN_PASS);
  const bits = Math.max(4, Math.ceil(Math.log2(2 * Math.min(count, KEYS_IN_PASS))));
  const slots = 1 << bits;
  // Each slot: both hashes, and the key's position + 1; 0 is free. Shares are even enough never to fill it.
  const table = new Uint32Array(slots * 3);
  const hash = new KeyHash();
  for (let pass = 0; pass < passes; pass++) {
    table.fill(0);
    let held = 0;
    const cursor = new Cursor(input, at, at + count * keySize);
    for (let index = 0; index < count; index++) {
      for (let left = keySize; left > 0; ) {
        if (cursor.ready < Math.min(left, cursor.bytes.length)) {
          if ((await cursor.fill(Math.min(left, cursor.bytes.length))) === 0) return found;
          await pause();
        }
        const part = Math.min(left, cursor.ready);
        hash.of(cursor.view, cursor.at, part, left < keySize);
        cursor.at += part;
        left -= part;
      }
      const [one, two] = [hash.a >>> 0, hash.b >>> 0];
      if (passes > 1 && one % passes !== pass) continue;
      let slot = Math.imul(one, 0x9e3779b1) >>> (32 - bits);
      let duplicate = false;
      for (; table[slot * 3 + 2] !== 0; slot = (slot + 1) & (slots - 1)) {
        if (table[slot * 3] !== one || table[slot * 3 + 1] !== two) continue;
        const first = (table[slot * 3 + 2] as number) - 1;
        duplicate = await sameKey(input, at + first * keySize, at + index * keySize, keySize);
        if (!duplicate) continue;
        found.push({ first, index });
        if (found.length === most) return found;
        break;
      }
      if (duplicate || ++held === slots) continue;
      table[slot * 3] = one;
      table[slot * 3 + 1] = two;
      table[slot * 3 + 2] = index + 1;
    }
  }
  return found;
}

async function sameKey(input: Input, a: number, b: number, size: number): Promise<boolean> {
  const left = new Cursor(input, a, a + size);
  const right = new Cursor(input, b, b + size);
  for (let done = 0; done < size; ) {
    const ready = Math.min(await left.fill(), await right.fill());
    if (ready === 0) return false;
    const part = left.bytes.subarray(left.at, left.at + ready);
    if (Buffer.compare(part, right.bytes.subarray(right.at, right.at + ready)) !== 0) return false;
    left.at += ready;
    right.at += ready;
    done += ready;
  }
  return true;
}
