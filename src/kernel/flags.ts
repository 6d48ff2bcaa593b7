/** What describes a map wherever it comes from, without the layouts of system calls (`abi.ts`): commands that only read images need no more. */

/** Flags of MAP_CREATE by the kernel's names without `BPF_F_`. */
export const MAP_FLAG = {
  NO_PREALLOC: 0x1,
  NO_COMMON_LRU: 0x2,
  NUMA_NODE: 0x4,
  RDONLY: 0x8,
  WRONLY: 0x10,
  STACK_BUILD_ID: 0x20,
  ZERO_SEED: 0x40,
  RDONLY_PROG: 0x80,
  WRONLY_PROG: 0x100,
  CLONE: 0x200,
  MMAPABLE: 0x400,
  PRESERVE_ELEMS: 0x800,
  INNER_MAP: 0x1000,
  LINK: 0x2000,
  PATH_FD: 0x4000,
  VTYPE_BTF_OBJ_FD: 0x8000,
  TOKEN_FD: 0x10000,
  SEGV_ON_FAULT: 0x20000,
  NO_USER_CONV: 0x40000,
} as const;

/** The attributes that every view of a map has: fdinfo, the iterator, MAP_CREATE. */
export interface MapShape {
  readonly type: number;
  readonly keySize: number;
  readonly valueSize: number;
  readonly maxEntries: number;
  /** Flags of {@link MAP_FLAG}. */
  readonly flags: number;
}

/** Flags of UPDATE_ELEM (anonymous enum of BPF_ANY). LOCK also applies to look-ups and batches. */
export const ELEM_FLAG = { ANY: 0, NOEXIST: 1, EXIST: 2, LOCK: 4 } as const;

/** Size in bytes of the name of a map, program or BTF object, with its NUL. */
export const NAME_SIZE = 16;

/** Characters of a name that a message shows. The kernel's names have 15 at most, but an image may claim any. */
const SHOWN_NAME = 64;

/** A map's id and name in a message: `57 (flows)`. */
export function idAndName(id: number, name: string): string {
  if (name === '') return String(id);
  return `${id} (${name.length > SHOWN_NAME ? `${name.slice(0, SHOWN_NAME)}…` : name})`;
}

/** How messages name a map: `map 57 (flows)`. */
export function mapSubject(id: number, name: string): string {
  return `map ${idAndName(id, name)}`;
}

/** Bytes that the kernel keeps of a map's name (BPF_OBJ_NAME_LEN less the NUL): loaders cut off the rest. */
export const NAME_MOST = 15;
