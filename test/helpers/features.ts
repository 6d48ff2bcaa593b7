/** What kernels differ in, found by trying, never by version: distributions carry features back. */
import * as fs from 'node:fs';
import type { Btf } from '../../src/btf/btf.js';
import { ATTR } from '../../src/kernel/abi.js';
import { loadBtf } from '../../src/kernel/btf.js';
import { KernelError } from '../../src/kernel/error.js';
import { MAP_FLAG } from '../../src/kernel/flags.js';
import { BpfMap, type MapSpec } from '../../src/kernel/map.js';
import { Attr, ERRNO, openSys, pinned, type Sys } from '../../src/kernel/sys.js';
import { BtfWriter } from './btf-writer.js';
import { skipWithoutRoot } from './needs.js';
import { types } from './types.js';

/** Whether the kernel has an iterator over maps, since Linux 5.8, and shows the BTF by which a program reads what it gives. */
export function iteratesMaps(): boolean {
  const btf = '/sys/kernel/btf/vmlinux';
  return fs.existsSync(btf) && fs.readFileSync(btf, 'latin1').includes('\0bpf_iter_bpf_map\0');
}

/** Whether that iterator can count the items of a hash (bpf_map_sum_elem_count), since Linux 6.6. */
export function countsItems(): boolean {
  return iteratesMaps() && fs.readFileSync('/proc/kallsyms', 'latin1').includes(' bpf_map_sum_elem_count\n');
}

/** Whether programs may read the kernel's memory (bpf_probe_read_kernel), as a locked-down kernel does not allow. */
export function readsKernel(sys: Sys): boolean {
  // r1 = r10 - 8; r2 = 8; r3 = 0; call 113; r0 = 0; exit
  const code =
    'bfa1000000000000 07010000f8ffffff b702000008000000 b703000000000000 8500000071000000 b700000000000000 9500000000000000';
  const insns = pinned(7 * 8);
  insns.write(code.replaceAll(' ', ''), 'hex');
  const attr = new Attr(ATTR.progLoad, sys).set('prog_type', 2).point('insns', insns).set('insn_cnt', 7);
  const fd = sys.bpf('PROG_LOAD', attr.point('license', Buffer.from('GPL\0')));
  if (fd >= 0) sys.close(fd);
  return fd >= 0;
}

/** What the running kernel says of a map of a type or with attributes that it does not know; undefined if it makes it. */
export function lacking(sys: Sys, spec: MapSpec): string | undefined {
  try {
    BpfMap.create(sys, spec).close();
    return undefined;
  } catch (error) {
    if (error instanceof KernelError && /: E(INVAL|2BIG) \((perhaps|.*; or) this kernel lacks /.test(error.message))
      return error.message;
    throw error;
  }
}

/** Each uses a feature, and throws a KernelError where it is missing. */
const USES = {
  /** LOOKUP_AND_DELETE_ELEM for hashes, since Linux 5.14. */
  takingFromHashes(sys: Sys) {
    using map = open(sys, { type: 1 });
    map.lookupAndDelete(Buffer.alloc(4));
  },
  /** Batches of LPM tries, since Linux 5.16. */
  trieBatches: (sys: Sys) => readBatch(sys, { type: 11, keySize: 8, flags: MAP_FLAG.NO_PREALLOC }),
  /** Batches of per-CPU arrays, since Linux 5.13. */
  perCpuArrayBatches: (sys: Sys) => readBatch(sys, { type: 6 }),
  /** The padding of per-CPU values comes back as it was; Linux 7.2 zeroes it. */
  perCpuPadding(sys: Sys) {
    using map = open(sys, { type: 5, valueSize: 4 });
    const value = new Uint8Array(map.valueStride).fill(7);
    map.update(Buffer.alloc(4), value);
    if (map.lookup(Buffer.alloc(4))?.[4] !== 7) throw new KernelError('probe', 'BPF_MAP_LOOKUP_ELEM', ERRNO.EINVAL);
  },
  /** Per-CPU arrays of any length in one map of maps; Linux 7.2 wants one length, as of arrays. */
  unlikePerCpuArrays(sys: Sys) {
    using inner = open(sys, { type: 6, maxEntries: 4 });
    using longer = open(sys, { type: 6, maxEntries: 8 });
    using outer = open(sys, { type: 12, valueSize: 4, inner });
    outer.update(Buffer.alloc(4), Uint8Array.of(longer.fd, longer.fd >> 8, 0, 0));
  },
  /** `memlock` of maps that are not preallocated is what their items take, since Linux 6.4; before, what all could take. */
  memoryInUse(sys: Sys) {
    using map = open(sys, { type: 1, maxEntries: 10_000, flags: MAP_FLAG.NO_PREALLOC });
    const before = map.state().memlock;
    for (let i = 0; i < 100; i++) map.update(Buffer.from(Uint32Array.of(i).buffer), Buffer.alloc(8));
    if (map.state().memlock === before) throw new KernelError('probe', 'BPF_MAP_CREATE', ERRNO.EINVAL);
  },
  /** `memlock` is what a map takes; from Linux 5.11 to 6.3 it is what its keys and values alone would take. */
  memoryMeasured(sys: Sys) {
    using map = open(sys, { type: 1, maxEntries: 1000 });
    if ((map.state().memlock ?? 0) < 40_000) throw new KernelError('probe', 'BPF_MAP_CREATE', ERRNO.EINVAL);
  },
  /** A thread can be opened as a file descriptor, since Linux 6.9. */
  threadPidfds(sys: Sys) {
    const fd = sys.pidfdOpen(process.pid, true);
    if (fd < 0) throw new KernelError('probe', 'pidfd_open', -fd);
    sys.close(fd);
  },
  /** Small LRU hashes hold what they have room for, whatever CPU puts it there; older kernels give all of the room to the first CPU. */
  smallLru(sys: Sys) {
    const cpus = sys.getAffinity();
    if (typeof cpus === 'number') throw new KernelError('probe', 'sched_getaffinity', -cpus);
    using map = open(sys, { type: 9, maxEntries: 64 });
    try {
      for (let i = 0; i < 40; i++) {
        if (i % 20 === 0) sys.setAffinity([cpus[(i / 20) % cpus.length] as number]);
        map.update(Buffer.from(Uint32Array.of(i).buffer), Buffer.alloc(8));
      }
    } finally {
      sys.setAffinity(cpus);
    }
    const gone = Array.from({ length: 40 }, (_, i) => map.lookup(Buffer.from(Uint32Array.of(i).buffer))).includes(
      undefined,
    );
    if (gone) throw new KernelError('probe', 'BPF_MAP_LOOKUP_ELEM', ERRNO.EINVAL);
  },
  /** Tries that may have any number of items, since Linux 5.16 or so: before, what they could need was charged at once. */
  hugeTries: (sys: Sys) =>
    open(sys, { type: 11, keySize: 8, maxEntries: 2 ** 32 - 1, flags: MAP_FLAG.NO_PREALLOC }).close(),
};

/** A feature that some kernels lack. */
export type Feature = keyof typeof USES;

function open(sys: Sys, spec: Pick<MapSpec, 'type'> & Partial<MapSpec>): BpfMap {
  return BpfMap.create(sys, { keySize: 4, valueSize: 8, maxEntries: 8, name: 'probe', ...spec });
}

function readBatch(sys: Sys, spec: Pick<MapSpec, 'type'> & Partial<MapSpec>): void {
  using map = open(sys, spec);
  const { error } = map.lookupBatch(map.cursor(), map.batch(8));
  if (error !== undefined) throw error;
}

/** Types that kernels did not always know, each in a blob with nothing else new. */
const NEW_TYPES: Readonly<Record<string, (writer: BtfWriter, word: number) => void>> = {
  FLOAT: (writer) => writer.float('double', 8),
  DECL_TAG: (writer, word) => writer.declTag('tag', writer.typedef('word', word)),
  TYPE_TAG: (writer, word) => writer.ptr(writer.typeTag('tag', word)),
  ENUM64: (writer) => writer.enum64('wide', 8, { FIRST: 1n }),
  'signed ENUM': (writer) => writer.enum('signs', 4, { FIRST: 1 }, true),
};

/** The types among those of `btf` that the running kernel does not know. */
export function unknownTypes(sys: Sys, btf: Btf): string[] {
  const unknown = Object.entries(NEW_TYPES).filter(([, write]) => {
    const writer = new BtfWriter();
    write(writer, writer.int('int', 4, { encoding: 1 }));
    try {
      sys.close(loadBtf(sys, writer.bytes()));
      return false;
    } catch (error) {
      if (error instanceof KernelError && error.errno === ERRNO.EINVAL) return true;
      throw error;
    }
  });
  const used = new Set<string>();
  for (let id = 1; id <= btf.typeCount; id++) {
    const type = btf.type(id);
    used.add(type.kind === 'ENUM' && type.signed ? 'signed ENUM' : type.kind);
  }
  return unknown.map(([name]) => name).filter((name) => used.has(name));
}

/** What a kernel that lacks a feature says. */
const REFUSALS: readonly number[] = [ERRNO.EINVAL, ERRNO.E2BIG, ERRNO.ENOTSUPP];

/** What the running kernel has; all of it where nothing can be tried, for then no test of it runs either. */
export async function features(): Promise<Readonly<Record<Feature, boolean>>> {
  const all = Object.entries(USES);
  if (skipWithoutRoot() !== false)
    return Object.fromEntries(all.map(([name]) => [name, true])) as Record<Feature, boolean>;
  const sys = await openSys(types);
  const has = ([name, use]: [string, (sys: Sys) => void]) => {
    try {
      use(sys);
      return [name, true];
    } catch (error) {
      if (error instanceof KernelError && REFUSALS.includes(error.errno)) return [name, false];
      throw error;
    }
  };
  return Object.fromEntries(all.map(has)) as Record<Feature, boolean>;
}

/** A per-CPU value as a map gives it back: with zeroes for the padding of each CPU's `size` bytes where the kernel does so. */
export function asKept(
  value: Uint8Array,
  size: number,
  { perCpuPadding }: { readonly perCpuPadding: boolean },
): Buffer {
  const kept = Buffer.from(value);
  const stride = (size + 7) & ~7;
  for (let at = 0; !perCpuPadding && at < kept.length; at += stride) kept.fill(0, at + size, at + stride);
  return kept;
}
