/**
 * bpf(2) as the kernel defines it: commands, structures as tables of (offset, size, since), flags.
 *
 * No other file contains offsets. `test/kernel-abi.test.ts` compares every row with the type information
 * of the running kernel. Numbers are little-endian: bpfimg refuses big-endian machines, see `sys.ts`.
 */
import { NAME_SIZE } from './flags.js';

export * from './flags.js';

/** Commands by the kernel's names without `BPF_` (enum bpf_cmd). */
export const BPF_COMMAND = {
  MAP_CREATE: 0,
  MAP_LOOKUP_ELEM: 1,
  MAP_UPDATE_ELEM: 2,
  MAP_DELETE_ELEM: 3,
  MAP_GET_NEXT_KEY: 4,
  PROG_LOAD: 5,
  OBJ_PIN: 6,
  OBJ_GET: 7,
  PROG_GET_NEXT_ID: 11,
  MAP_GET_NEXT_ID: 12,
  PROG_GET_FD_BY_ID: 13,
  MAP_GET_FD_BY_ID: 14,
  OBJ_GET_INFO_BY_FD: 15,
  BTF_LOAD: 18,
  BTF_GET_FD_BY_ID: 19,
  MAP_LOOKUP_AND_DELETE_ELEM: 21,
  MAP_FREEZE: 22,
  MAP_LOOKUP_BATCH: 24,
  MAP_LOOKUP_AND_DELETE_BATCH: 25,
  MAP_UPDATE_BATCH: 26,
  MAP_DELETE_BATCH: 27,
  LINK_CREATE: 28,
  ITER_CREATE: 33,
} as const;

/** A command of bpf(2) by its name in enum bpf_cmd, without BPF_. */
export type BpfCommand = keyof typeof BPF_COMMAND;

/** A member of a kernel structure. */
export interface StructField {
  /** Offset in bytes. */
  readonly offset: number;
  /** 4 and 8 are numbers or pointers; any other size is bytes. */
  readonly size: number;
  /** Linux version that added it, if later than its structure. */
  readonly since: string | undefined;
}

/** A structure, or the part of `union bpf_attr` that a command reads. */
export interface StructLayout<F extends string = string> {
  /** The kernel's name: a structure, or a member of the union. */
  readonly name: string;
  /** Size in bytes, up to the end of the last member we know. */
  readonly size: number;
  readonly fields: Readonly<Record<F, StructField>>;
}

type Row = readonly [offset: number, size: number, since?: string];

function layout<F extends string>(name: string, size: number, rows: Readonly<Record<F, Row>>): StructLayout<F> {
  const fields = Object.fromEntries(
    Object.entries<Row>(rows).map(([field, [offset, bytes, since]]) => [field, { offset, size: bytes, since }]),
  );
  return { name, size, fields: fields as Record<F, StructField> };
}

/** What each command reads from `union bpf_attr`. */
export const ATTR = {
  /** MAP_CREATE. Bytes after the last member must be zero, as must the padding at 92. */
  create: layout('bpf_attr', 96, {
    map_type: [0, 4],
    key_size: [4, 4],
    value_size: [8, 4],
    max_entries: [12, 4],
    map_flags: [16, 4, '4.6'],
    inner_map_fd: [20, 4, '4.12'],
    numa_node: [24, 4, '4.14'],
    map_name: [28, NAME_SIZE, '4.15'],
    map_ifindex: [44, 4, '4.16'],
    btf_fd: [48, 4, '4.18'],
    btf_key_type_id: [52, 4, '4.18'],
    btf_value_type_id: [56, 4, '4.18'],
    btf_vmlinux_value_type_id: [60, 4, '5.6'],
    map_extra: [64, 8, '5.16'],
    value_type_btf_obj_fd: [72, 4, '6.9'],
    map_token_fd: [76, 4, '6.9'],
    excl_prog_hash: [80, 8, '6.18'],
    excl_prog_hash_size: [88, 4, '6.18'],
  }),
  /** The MAP_*_ELEM commands. */
  elem: layout('bpf_attr', 32, { map_fd: [0, 4], key: [8, 8], value: [16, 8], flags: [24, 8] }),
  nextKey: layout('bpf_attr', 24, { map_fd: [0, 4], key: [8, 8], next_key: [16, 8] }),
  /** The MAP_*_BATCH commands, since 5.6. `count` is both input and output. */
  batch: layout('bpf_attr.batch', 56, {
    in_batch: [0, 8],
    out_batch: [8, 8],
    keys: [16, 8],
    values: [24, 8],
    count: [32, 4],
    map_fd: [36, 4],
    elem_flags: [40, 8],
    flags: [48, 8],
  }),
  freeze: layout('bpf_attr', 4, { map_fd: [0, 4] }),
  /** OBJ_PIN and OBJ_GET. */
  obj: layout('bpf_attr', 20, {
    pathname: [0, 8],
    bpf_fd: [8, 4],
    file_flags: [12, 4, '4.15'],
    path_fd: [16, 4, '6.5'],
  }),
  /** The *_GET_NEXT_ID commands. */
  nextId: layout('bpf_attr', 8, { start_id: [0, 4], next_id: [4, 4] }),
  mapById: layout('bpf_attr', 12, { map_id: [0, 4], open_flags: [8, 4, '4.15'] }),
  progById: layout('bpf_attr', 12, { prog_id: [0, 4], open_flags: [8, 4, '4.15'] }),
  btfById: layout('bpf_attr', 12, { btf_id: [0, 4], open_flags: [8, 4, '4.15'] }),
  /** OBJ_GET_INFO_BY_FD. `info_len` is both input and output. */
  info: layout('bpf_attr.info', 16, { bpf_fd: [0, 4], info_len: [4, 4], info: [8, 8] }),
  btfLoad: layout('bpf_attr', 28, {
    btf: [0, 8],
    btf_log_buf: [8, 8],
    btf_size: [16, 4],
    btf_log_size: [20, 4],
    btf_log_level: [24, 4],
  }),
  progLoad: layout('bpf_attr', 116, {
    prog_type: [0, 4],
    insn_cnt: [4, 4],
    insns: [8, 8],
    license: [16, 8],
    log_level: [24, 4],
    log_size: [28, 4],
    log_buf: [32, 8],
    prog_name: [48, NAME_SIZE, '4.15'],
    expected_attach_type: [68, 4, '4.17'],
    attach_btf_id: [108, 4, '5.5'],
  }),
  linkCreate: layout('bpf_attr.link_create', 16, {
    prog_fd: [0, 4],
    target_fd: [4, 4],
    attach_type: [8, 4],
    flags: [12, 4],
  }),
  iterCreate: layout('bpf_attr.iter_create', 8, { link_fd: [0, 4], flags: [4, 4] }),
} as const;

/**
 * struct bpf_map_info. The kernel fills in what it knows and returns how much that was.
 *
 * Later members (`hash`, `hash_size`) are *inputs* that the kernel reads as pointers. They and everything
 * after them are left out.
 */
export const MAP_INFO = layout('bpf_map_info', 88, {
  type: [0, 4],
  id: [4, 4],
  key_size: [8, 4],
  value_size: [12, 4],
  max_entries: [16, 4],
  map_flags: [20, 4],
  name: [24, NAME_SIZE, '4.15'],
  ifindex: [40, 4, '4.16'],
  btf_vmlinux_value_type_id: [44, 4, '5.6'],
  netns_dev: [48, 8, '4.16'],
  netns_ino: [56, 8, '4.16'],
  btf_id: [64, 4, '4.18'],
  btf_key_type_id: [68, 4, '4.18'],
  btf_value_type_id: [72, 4, '4.18'],
  btf_vmlinux_id: [76, 4, '6.9'],
  map_extra: [80, 8, '5.16'],
});

/** struct bpf_btf_info. `btf`, `btf_size`, `name` and `name_len` are inputs; a buffer that is too small is no error. */
export const BTF_INFO = layout('bpf_btf_info', 32, {
  btf: [0, 8],
  btf_size: [8, 4],
  id: [12, 4],
  name: [16, 8, '5.11'],
  name_len: [24, 4, '5.11'],
  kernel_btf: [28, 4, '5.11'],
});

/** struct bpf_prog_info, as far as it identifies a program and its maps. `nr_map_ids` and `map_ids` are inputs. */
export const PROG_INFO = layout('bpf_prog_info', 80, {
  type: [0, 4],
  id: [4, 4],
  tag: [8, 8],
  nr_map_ids: [52, 4, '4.15'],
  map_ids: [56, 8, '4.15'],
  name: [64, NAME_SIZE, '4.15'],
});

/** System calls that libc may not have a function for, by `process.arch`. */
export const SYSCALL: Readonly<Record<string, { bpf: number; pidfd_open: number; pidfd_getfd: number }>> = {
  x64: { bpf: 321, pidfd_open: 434, pidfd_getfd: 438 },
  arm64: { bpf: 280, pidfd_open: 434, pidfd_getfd: 438 },
  riscv64: { bpf: 280, pidfd_open: 434, pidfd_getfd: 438 },
  loong64: { bpf: 280, pidfd_open: 434, pidfd_getfd: 438 },
  ppc64: { bpf: 361, pidfd_open: 434, pidfd_getfd: 438 },
};

/** What readlink shows for an open map. */
export const MAP_LINK = 'anon_inode:bpf-map';
/** What readlink shows for an open program. */
export const PROG_LINK = 'anon_inode:bpf-prog';

/** `f_type` of a BPF file system in statfs(2) (include/uapi/linux/magic.h). */
export const BPF_FS_MAGIC = 0xcafe4a11;
