/**
 * What MAP_CREATE demands, type by type, as data: nothing is checked before the call, but when the kernel
 * says no, these rules say why. Measured on Linux 6.18, types newer than that on 7.3; a kernel that knows better is never second-guessed.
 */
import { MAP_FLAG, type MapShape, NAME_SIZE } from './abi.js';

/** Smallest and largest value a size may have, and what it must be a multiple of, or whether a power of two. */
interface Range {
  readonly min: number;
  readonly max: number;
  readonly step?: number;
  readonly power?: true;
}

/** What one map type demands of MAP_CREATE, and how its values look to bpf(2). */
export interface MapRule {
  readonly name: string;
  readonly key: Range;
  readonly value: Range;
  readonly entries: Range;
  /** Bits of map_flags that are accepted. */
  readonly flags: number;
  /** Bits of map_flags that must be set. */
  readonly needs: number;
  readonly btf: 'yes' | 'no' | 'required';
  /** What the type of keys must be, where the map has types; any that has their size when not said. */
  readonly keyType?: 'INT' | 'STRUCT' | 'VOID';
  /** map_extra: the largest, and what it must be a multiple of; 0 where nothing is said. */
  readonly extra?: { readonly max: bigint; readonly step: bigint };
  /** With this flag, values must have other sizes. */
  readonly flagged?: { readonly flag: number; readonly value: Range };
  /** Key and value together may not be longer. */
  readonly item?: number;
  /** inner_map_fd is required. */
  readonly inner?: true;
  /**
   * As an inner map: besides type, sizes and flags it must have the max_entries of what its outer map was made with
   * (map_meta_equal of the kernel), always or where that has no BPF_F_INNER_MAP. With `never` there is no such inner map.
   */
  readonly within?: 'same entries' | 'same entries unless flagged' | 'never';
  /** CAP_NET_ADMIN is needed on top of CAP_BPF. */
  readonly network?: true;
  /** A value is round_up(value_size, 8) bytes for each possible CPU. */
  readonly perCpu?: true;
  /**
   * The kernel clears it when its last file descriptor or pin goes. Opening one by id while that is under
   * way, and closing it again, leaks it for ever: see {@link opensSafely}.
   */
  readonly cleared?: true;
}

const F = MAP_FLAG;
const RW = F.RDONLY | F.WRONLY;
const PROG = F.RDONLY_PROG | F.WRONLY_PROG;
const U32 = 0xffff_ffff;
const ANY: Range = { min: 1, max: U32 };
const exactly = (size: number): Range => ({ min: size, max: size });

const HASH_KEY: Range = { min: 1, max: 4_194_254 };
const HASH_ENTRIES: Range = { min: 1, max: 2 ** 27 };
/** KMALLOC_MAX_SIZE less what an element needs besides key and value. */
const HASH_ITEM = 4_194_255;
const PERCPU_VALUE: Range = { min: 1, max: 32_768 };
const STORAGE_VALUE: Range = { min: 1, max: 65_527 };
const NUMA_RW = F.NUMA_NODE | RW;

type Sizes = Pick<MapRule, 'key' | 'value' | 'entries'>;
const hash: Sizes = { key: HASH_KEY, value: { min: 1, max: HASH_ITEM - 1 }, entries: HASH_ENTRIES };
const index = (value: Range): Sizes => ({ key: exactly(4), value, entries: ANY });
const pushed: Sizes = { key: exactly(0), value: { min: 1, max: 4_194_304 }, entries: ANY };
const ring: Sizes = { key: exactly(0), value: exactly(0), entries: { min: 4096, max: 2 ** 31, power: true } };
const cgroup = (value: Range): Sizes => ({ key: { min: 8, max: 16, step: 8 }, value, entries: exactly(0) });
const word = index(exactly(4));
const pair = index({ min: 4, max: 8, step: 4 });
const local = {
  key: exactly(4),
  value: STORAGE_VALUE,
  entries: exactly(0),
  flags: F.NO_PREALLOC | F.CLONE,
  needs: F.NO_PREALLOC,
  btf: 'required',
  keyType: 'INT',
} as const;
const free = { needs: 0, btf: 'yes' } as const;
const plain = { needs: 0, btf: 'no' } as const;

/** The rules by map type (enum bpf_map_type). */
export const MAP_RULES: Readonly<Record<number, MapRule>> = {
  1: { name: 'hash', ...hash, ...free, flags: F.NO_PREALLOC | NUMA_RW | F.ZERO_SEED | PROG, item: HASH_ITEM },
  2: {
    name: 'array',
    ...index({ min: 1, max: 0x7fff_ffff }),
    ...free,
    flags: NUMA_RW | PROG | F.MMAPABLE | F.INNER_MAP,
    within: 'same entries unless flagged',
    keyType: 'INT',
  },
  3: { name: 'prog_array', ...word, ...free, flags: NUMA_RW, cleared: true, within: 'never' },
  4: { name: 'perf_event_array', ...word, ...plain, flags: NUMA_RW | F.PRESERVE_ELEMS },
  5: {
    name: 'percpu_hash',
    ...hash,
    ...free,
    value: PERCPU_VALUE,
    flags: F.NO_PREALLOC | RW | F.ZERO_SEED | PROG,
    perCpu: true,
  },
  6: { name: 'percpu_array', ...index(PERCPU_VALUE), ...free, flags: RW | PROG, perCpu: true, keyType: 'INT' },
  7: {
    name: 'stack_trace',
    // The longest is 8 * kernel.perf_event_max_stack, which can be set.
    ...index({ min: 8, max: U32, step: 8 }),
    ...plain,
    flags: NUMA_RW | F.STACK_BUILD_ID,
    flagged: { flag: F.STACK_BUILD_ID, value: { min: 32, max: U32, step: 32 } },
  },
  8: { name: 'cgroup_array', ...word, ...plain, flags: NUMA_RW },
  9: { name: 'lru_hash', ...hash, ...free, flags: F.NO_COMMON_LRU | NUMA_RW | F.ZERO_SEED | PROG, item: HASH_ITEM },
  10: {
    name: 'lru_percpu_hash',
    ...hash,
    ...free,
    value: PERCPU_VALUE,
    flags: F.NO_COMMON_LRU | RW | F.ZERO_SEED | PROG,
    perCpu: true,
  },
  11: {
    name: 'lpm_trie',
    ...free,
    key: { min: 5, max: 260 },
    value: { min: 1, max: 4_194_024 },
    entries: ANY,
    flags: F.NO_PREALLOC | NUMA_RW | PROG,
    needs: F.NO_PREALLOC,
    keyType: 'STRUCT',
  },
  12: { name: 'array_of_maps', ...word, ...plain, flags: NUMA_RW, inner: true, within: 'never' },
  13: {
    name: 'hash_of_maps',
    ...hash,
    ...plain,
    value: exactly(4),
    flags: F.NO_PREALLOC | NUMA_RW | F.ZERO_SEED | PROG,
    inner: true,
    within: 'never',
  },
  14: { name: 'devmap', ...pair, ...plain, flags: NUMA_RW, network: true },
  15: { name: 'sockmap', ...pair, ...plain, flags: NUMA_RW, network: true },
  16: { name: 'cpumap', ...pair, ...plain, flags: F.NUMA_NODE },
  17: { name: 'xskmap', ...word, ...plain, flags: NUMA_RW, network: true, within: 'same entries' },
  18: {
    name: 'sockhash',
    ...pair,
    ...plain,
    key: { min: 1, max: 512 },
    entries: { min: 1, max: 2 ** 28 - 1 },
    flags: NUMA_RW,
    network: true,
  },
  19: {
    name: 'cgroup_storage',
    ...cgroup({ min: 1, max: 65_407 }),
    ...free,
    flags: NUMA_RW | PROG,
    within: 'never',
  },
  20: { name: 'reuseport_sockarray', ...pair, ...free, flags: NUMA_RW | PROG },
  21: {
    name: 'percpu_cgroup_storage',
    ...cgroup(PERCPU_VALUE),
    ...free,
    flags: NUMA_RW | PROG,
    perCpu: true,
    within: 'never',
  },
  22: { name: 'queue', ...pushed, ...plain, flags: NUMA_RW | PROG },
  23: { name: 'stack', ...pushed, ...plain, flags: NUMA_RW | PROG },
  24: { name: 'sk_storage', ...local },
  25: { name: 'devmap_hash', ...pair, ...plain, entries: { min: 1, max: 2 ** 31 }, flags: NUMA_RW, network: true },
  26: {
    name: 'struct_ops',
    ...index(ANY),
    ...free,
    entries: exactly(1),
    flags: F.LINK | F.VTYPE_BTF_OBJ_FD,
    btf: 'required',
    within: 'never',
  },
  27: { name: 'ringbuf', ...ring, ...free, flags: F.NUMA_NODE },
  28: { name: 'inode_storage', ...local },
  29: { name: 'task_storage', ...local },
  30: {
    name: 'bloom_filter',
    ...pushed,
    ...free,
    flags: NUMA_RW | F.ZERO_SEED | PROG,
    extra: { max: 15n, step: 1n },
    keyType: 'VOID',
  },
  31: { name: 'user_ringbuf', ...ring, ...free, flags: F.NUMA_NODE },
  32: { name: 'cgrp_storage', ...local },
  33: {
    name: 'arena',
    ...free,
    key: exactly(0),
    value: exactly(0),
    entries: { min: 1, max: 2 ** 20 },
    flags: F.MMAPABLE | F.SEGV_ON_FAULT | F.NO_USER_CONV,
    needs: F.MMAPABLE,
    extra: { max: 2n ** 64n - 1n, step: 4096n },
  },
  34: { name: 'insn_array', ...index(exactly(16)), ...plain, flags: 0 },
  35: {
    name: 'rhash',
    ...free,
    key: { min: 1, max: 65_535 },
    value: { min: 1, max: HASH_ITEM - 1 },
    entries: { min: 1, max: 2 ** 31 },
    flags: F.NO_PREALLOC | NUMA_RW | PROG,
    needs: F.NO_PREALLOC,
    item: HASH_ITEM,
    extra: { max: 65_535n, step: 1n },
  },
};

/**
 * Whether a map of this type may be opened by id when nobody else surely holds it. False for types that
 * we do not know.
 */
export function opensSafely(type: number): boolean {
  const rule = MAP_RULES[type];
  return rule !== undefined && rule.cleared !== true;
}

/**
 * The max_entries that a map of this type takes in place of `wanted`: a ring buffer's are rounded up as libbpf
 * does, to a power of two that is whole pages; of other types it is `wanted`.
 */
export function takenEntries(type: number, wanted: number, pageSize: number): number {
  const entries = MAP_RULES[type]?.entries;
  if (entries?.power !== true) return wanted;
  const rounded = 2 ** Math.ceil(Math.log2(Math.max(wanted, pageSize)));
  return rounded > entries.max ? wanted : rounded;
}

/** What MAP_CREATE is asked for, as far as {@link breaches} looks at it. */
export interface Asked extends MapShape {
  readonly extra: bigint;
  readonly ifindex: number;
  readonly name: Uint8Array;
  readonly btf: boolean;
  readonly inner: boolean;
}

/** Why an outer map that was made with an inner map like `template` will not take `map`. Each is a clause. */
export function misfits(map: MapShape, template: MapShape): string[] {
  const within = MAP_RULES[template.type]?.within;
  const flagged = within === 'same entries unless flagged' && (template.flags & F.INNER_MAP) === 0;
  const same: (keyof MapShape)[] = ['type', 'keySize', 'valueSize', 'flags'];
  if (within === 'same entries' || flagged) same.push('maxEntries');
  return same
    .filter((member) => map[member] !== template[member])
    .map((member) => `${MEMBERS[member]} ${shown(member, map)}, expected ${shown(member, template)}`);
}

const MEMBERS: Readonly<Record<keyof MapShape, string>> = {
  type: 'map_type',
  keySize: 'key_size',
  valueSize: 'value_size',
  maxEntries: 'max_entries',
  flags: 'map_flags',
};

function shown(member: keyof MapShape, map: MapShape): string {
  const value = map[member];
  if (member === 'type') return MAP_RULES[value]?.name ?? String(value);
  return member === 'flags' ? flagsText(value) || '0' : String(value);
}

/**
 * Why the kernel will not take types of these kinds for a map, when their sizes are right; undefined where it may.
 * Kinds are those behind typedefs, VOID for a type that is not given.
 */
export function typesRefused({ type, maxEntries }: MapShape, key: string, value: string): string | undefined {
  const rule = MAP_RULES[type];
  if (rule === undefined || rule.btf === 'no' || (key === 'VOID' && value === 'VOID')) return undefined;
  if (value === 'VOID') return 'its keys have a type, its values have none';
  // .bss and the like.
  if (rule.name === 'array' && value === 'DATASEC' && maxEntries === 1 && key === 'VOID') return undefined;
  if (rule.keyType !== undefined && key !== rule.keyType) {
    return `the type of its keys is ${key}, expected ${rule.keyType} in a map of type ${rule.name}`;
  }
  return key === 'VOID' && rule.keyType === undefined ? 'its values have a type, its keys have none' : undefined;
}

/** Names of the bits of map_flags, unknown ones as one number. */
function flagsText(flags: number): string {
  const names = Object.entries(F).filter(([, bit]) => (flags & bit) !== 0);
  const rest = (flags & ~names.reduce((sum, [, bit]) => sum | bit, 0)) >>> 0;
  return [...names.map(([name]) => `BPF_F_${name}`), ...(rest === 0 ? [] : [`0x${rest.toString(16)}`])].join('|');
}

function rangeText({ min, max, step, power }: Range): string {
  if (min === max) return `${min}`;
  const range = max === U32 ? `${min} or more` : `${min} to ${max}`;
  if (power) return `a power of two from ${range}`;
  return step === undefined ? range : `${range} in steps of ${step}`;
}

/** Bytes the kernel takes in a name: ASCII letters, digits, `_`, `.`, and Latin-1 letters. */
export function nameByteAllowed(byte: number): boolean {
  return (byte >= 0xc0 && byte !== 0xd7 && byte !== 0xf7) || /[A-Za-z0-9_.]/.test(String.fromCharCode(byte));
}

/** Everything in `asked` that breaks the rules of its type, as text: `key_size 3, expected 4`. */
export function breaches(asked: Asked): string[] {
  const rule = MAP_RULES[asked.type];
  if (rule === undefined) return [`map_type ${asked.type} is not known to bpfimg, and perhaps not to this kernel`];
  const found: string[] = [];
  const size = (field: string, value: number, range: Range) => {
    const { min, max, step = 1, power } = range;
    const odd = value % step !== 0 || (power === true && !Number.isInteger(Math.log2(value)));
    if (value < min || value > max || odd) found.push(`${field} ${value}, expected ${rangeText(range)}`);
  };
  size('key_size', asked.keySize, rule.key);
  const other = rule.flagged !== undefined && (asked.flags & rule.flagged.flag) !== 0 ? rule.flagged.value : undefined;
  size('value_size', asked.valueSize, other ?? rule.value);
  if (rule.item !== undefined && asked.keySize + asked.valueSize > rule.item) {
    found.push(`key_size and value_size together ${asked.keySize + asked.valueSize}, expected at most ${rule.item}`);
  }
  size('max_entries', asked.maxEntries, rule.entries);
  const strange = asked.flags & ~rule.flags;
  if (strange !== 0) found.push(`map_flags ${flagsText(strange)} not taken`);
  const missing = rule.needs & ~asked.flags;
  if (missing !== 0) found.push(`map_flags without ${flagsText(missing)}`);
  for (const both of [RW, PROG]) {
    if ((asked.flags & both) === both) found.push(`map_flags ${flagsText(both)} exclude each other`);
  }
  const { max, step } = rule.extra ?? { max: 0n, step: 1n };
  if (asked.extra > max || asked.extra % step !== 0n) {
    const more = step === 1n ? '' : ` in steps of ${step}`;
    found.push(
      `map_extra 0x${asked.extra.toString(16)}, expected ${max === 0n ? '0' : `0 to 0x${max.toString(16)}${more}`}`,
    );
  }
  if (asked.ifindex !== 0)
    found.push(`ifindex ${asked.ifindex}, expected 0: maps on network devices are their drivers'`);
  if (asked.btf && rule.btf === 'no') found.push('BTF, which this type does not take');
  if (!asked.btf && rule.btf === 'required') found.push('no BTF, which this type needs');
  if (rule.inner === true && !asked.inner) found.push('no inner map to go by');
  if (asked.name.length >= NAME_SIZE)
    found.push(`a name of ${asked.name.length} bytes, expected at most ${NAME_SIZE - 1}`);
  const odd = asked.name.find((byte) => !nameByteAllowed(byte));
  if (odd !== undefined) found.push(`byte 0x${odd.toString(16).padStart(2, '0')} in the name`);
  return found;
}
