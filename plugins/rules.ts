/** What MAP_CREATE demands of several map types alike, and how the kernel counts. Measured on Linux 6.18, types newer than that on 7.3. */
import { MAP_FLAG } from '../src/kernel/flags.js';
import { type Counted, type CreateRule, PROG, RW, type SizeRange, U32 } from '../src/kernel/rules.js';

export { PROG, RW, U32 };

/** Bits of map_flags (BPF_F_… of include/uapi/linux/bpf.h). */
export const FLAG = MAP_FLAG;
/** Whatever a u32 can hold, except 0. */
export const ANY: SizeRange = { min: 1, max: U32 };
/** One size only, in bytes; as a number of entries, one number only. */
export const exactly = (size: number): SizeRange => ({ min: size, max: size });

const HASH_KEY: SizeRange = { min: 1, max: 4_194_254 };
const HASH_ENTRIES: SizeRange = { min: 1, max: 2 ** 27 };
/** KMALLOC_MAX_SIZE less what an element needs besides key and value. */
export const HASH_ITEM = 4_194_255;
/** Bytes of one CPU's value: PCPU_MIN_UNIT_SIZE, the most that one per-CPU allocation takes. */
export const PERCPU_VALUE: SizeRange = { min: 1, max: 32_768 };
const STORAGE_VALUE: SizeRange = { min: 1, max: 65_527 };
/** Flags that nearly every type takes. Per-CPU maps take NUMA_NODE only without a node, which is how a replay asks. */
export const NUMA_RW = FLAG.NUMA_NODE | RW;

type ValueSizes = Pick<CreateRule, 'key' | 'value' | 'entries'>;
/** Hash tables of every kind. */
export const HASH: ValueSizes = { key: HASH_KEY, value: { min: 1, max: HASH_ITEM - 1 }, entries: HASH_ENTRIES };
/** Arrays: a u32 index as key, and values of these sizes. */
export const indexed = (value: SizeRange): ValueSizes => ({ key: exactly(4), value, entries: ANY });
/** Maps without keys (queues, stacks, Bloom filters); a value is at most KMALLOC_MAX_SIZE. */
export const PUSHED: ValueSizes = { key: exactly(0), value: { min: 1, max: 4_194_304 }, entries: ANY };
/** Ring buffers: max_entries is their size in bytes, a power of two of whole pages. */
export const RING: ValueSizes = {
  key: exactly(0),
  value: exactly(0),
  entries: { min: 4096, max: 2 ** 31, power: true },
};
/** Storage of cgroups: a key is a cgroup's inode number (8 bytes), or struct bpf_cgroup_storage_key (16 bytes). */
export const cgroupKeyed = (value: SizeRange): ValueSizes => ({
  key: { min: 8, max: 16, step: 8 },
  value,
  entries: exactly(0),
});
/** Arrays with values of 4 bytes: a file descriptor, or the id that reading gives. */
export const WORD = indexed(exactly(4));
/** Values of 4 bytes, or of 8: with a program's file descriptor (devices, CPUs), or a cookie (sockets). */
export const PAIR_VALUE = indexed({ min: 4, max: 8, step: 4 });
/** Local storage: the key is a file descriptor (of a socket, task, inode or cgroup), and types are required. */
export const LOCAL = {
  key: exactly(4),
  value: STORAGE_VALUE,
  entries: exactly(0),
  flags: FLAG.NO_PREALLOC | FLAG.CLONE,
  needs: FLAG.NO_PREALLOC,
  btf: 'required',
  keyType: 'INT',
} as const;
/** No flag is required; keys and values may have types. */
export const TYPES = { needs: 0, btf: 'yes' } as const;
/** No flag is required; MAP_CREATE refuses types. */
export const NO_BTF = { needs: 0, btf: 'no' } as const;

/** The kernel counts the elements of its hash tables. */
export const ELEMENTS: Counted = { by: 'elements' };
