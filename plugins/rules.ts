/** What MAP_CREATE demands of several map types alike. Measured on Linux 6.18, types newer than that on 7.3. */
import { MAP_FLAG } from '../src/kernel/flags.js';
import { type CreateRule, PROG, RW, type SizeRange, U32 } from '../src/kernel/rules.js';

export { PROG, RW, U32 };

export const FLAG = MAP_FLAG;
export const ANY: SizeRange = { min: 1, max: U32 };
export const exactly = (size: number): SizeRange => ({ min: size, max: size });

const HASH_KEY: SizeRange = { min: 1, max: 4_194_254 };
const HASH_ENTRIES: SizeRange = { min: 1, max: 2 ** 27 };
/** KMALLOC_MAX_SIZE less what an element needs besides key and value. */
export const HASH_ITEM = 4_194_255;
export const PERCPU_VALUE: SizeRange = { min: 1, max: 32_768 };
const STORAGE_VALUE: SizeRange = { min: 1, max: 65_527 };
export const NUMA_RW = FLAG.NUMA_NODE | RW;

type ValueSizes = Pick<CreateRule, 'key' | 'value' | 'entries'>;
export const HASH: ValueSizes = { key: HASH_KEY, value: { min: 1, max: HASH_ITEM - 1 }, entries: HASH_ENTRIES };
export const indexed = (value: SizeRange): ValueSizes => ({ key: exactly(4), value, entries: ANY });
export const PUSHED: ValueSizes = { key: exactly(0), value: { min: 1, max: 4_194_304 }, entries: ANY };
export const RING: ValueSizes = {
  key: exactly(0),
  value: exactly(0),
  entries: { min: 4096, max: 2 ** 31, power: true },
};
export const cgroupKeyed = (value: SizeRange): ValueSizes => ({
  key: { min: 8, max: 16, step: 8 },
  value,
  entries: exactly(0),
});
export const WORD = indexed(exactly(4));
export const PAIR_VALUE = indexed({ min: 4, max: 8, step: 4 });
export const LOCAL = {
  key: exactly(4),
  value: STORAGE_VALUE,
  entries: exactly(0),
  flags: FLAG.NO_PREALLOC | FLAG.CLONE,
  needs: FLAG.NO_PREALLOC,
  btf: 'required',
  keyType: 'INT',
} as const;
export const TYPES = { needs: 0, btf: 'yes' } as const;
export const NO_BTF = { needs: 0, btf: 'no' } as const;
