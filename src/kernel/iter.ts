/**
 * Lists all maps of this machine with a BPF iterator, without opening any of them.
 *
 * Walking ids does not tell a map's type, and opening a map by id can do harm (a PROG_ARRAY that is being cleared
 * leaks for ever when it is opened and closed). An iterator program walks the kernel's own list and takes no
 * user reference. It is assembled here from the offsets in the running kernel's type information.
 *
 * Needs Linux 5.8 (commit 6086d29def80, "bpf: Add bpf_map iterator") with BTF, CAP_BPF and CAP_PERFMON.
 */
import * as fs from 'node:fs';
import { ATTR, type MapShape } from './abi.js';
import type { Counted, KnownType } from './rules.js';
import { Attr, pinned, type Sys } from './sys.js';

/** A map as the iterator shows it. */
export interface KernelMap extends MapShape {
  readonly id: number;
  readonly extra: bigint;
  /** One character per byte. */
  readonly name: string;
  readonly frozen: boolean;
  /** 0 if it has none. */
  readonly btfId: number;
  /** File descriptors and pins that hold it, anyone's; 0 if only programs, other maps or mappings keep it. */
  readonly users: bigint;
  /** Its items; undefined if the kernel does not count them. */
  readonly used: number | undefined;
}

/** What the program writes for each map. */
const RECORD = { id: 0, type: 4, keySize: 8, valueSize: 12, maxEntries: 16, flags: 20, extra: 24, name: 32 } as const;
const RECORD_BTF = 48;
const RECORD_FROZEN = 52;
const RECORD_USERS = 56;
/** What bpf_map_sum_elem_count() returns. */
const RECORD_ELEMENTS = 64;
/** Members of the type's own structure, u32 each. */
const RECORD_MEMBERS = 72;
const RECORD_SIZE = 88;

// ---------------------------------------------------------------------------------------------------
// The part of the kernel's type information that the program needs

interface Offsets {
  /** Type id of the function that marks the iterator. */
  readonly target: number;
  /** Offsets in struct bpf_map, in bytes. */
  readonly map: ReadonlyMap<string, number>;
  /** `id` in struct btf. */
  readonly btfId: number | undefined;
  /** Type id of the function bpf_map_sum_elem_count(), since Linux 6.6. */
  readonly sum: number | undefined;
  /** Offsets in the structures that maps of some types begin, by the structure's name. */
  readonly structs: ReadonlyMap<string, ReadonlyMap<string, number>>;
}

const KIND_FUNC = 12;
const KIND_STRUCT = 4;
const kindAt = (words: Uint32Array, type: number) => ((words[type + 1] as number) >>> 24) & 0x1f;
/** The function that marks the iterator over maps, and the one that counts the items of a hash. */
const TARGET = 'bpf_iter_bpf_map';
const SUM = 'bpf_map_sum_elem_count';
/** Words of a type, by its kind, and words for each of its members. */
const FIXED = Uint8Array.of(3, 4, 3, 6, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 3, 3, 4, 3, 3);
const EACH = Uint8Array.of(0, 0, 0, 0, 3, 3, 2, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0, 0, 0, 3);

/** A type's place among the words, and its id. */
interface TypePlace {
  readonly at: number;
  readonly id: number;
}

/** The type at `place`, counted from an earlier one; undefined if none begins there. A hundred thousand are a few ms. */
function typeFrom(words: Uint32Array, { at, id }: TypePlace, place: number): TypePlace | undefined {
  while (at < place) {
    const info = words[at + 1] as number;
    const kind = (info >>> 24) & 0x1f;
    at += (FIXED[kind] as number) + (EACH[kind] as number) * (info & 0xffff);
    id++;
  }
  return at === place ? { at, id } : undefined;
}

/**
 * Finds what the program needs in a BTF blob; undefined if it is missing.
 * @param wanted names of further structures, which may be missing
 */
export function iteratorOffsets(btf: Buffer, wanted: Iterable<string> = []): Offsets | undefined {
  if (btf.length < 24 || btf.readUInt16LE(0) !== 0xeb9f) return undefined;
  const header = btf.readUInt32LE(4);
  const types = header + btf.readUInt32LE(8);
  const strings = btf.subarray(header + btf.readUInt32LE(16));
  const section = btf.subarray(types, types + btf.readUInt32LE(12));
  const aligned = section.byteOffset % 4 === 0 ? section : Buffer.from(Uint8Array.from(section).buffer);
  const words = new Uint32Array(aligned.buffer, aligned.byteOffset, aligned.length >> 2);
  const text = (at: number) => strings.toString('latin1', at, strings.indexOf(0, at));
  const members = (at: number) => {
    const found = new Map<string, number>();
    const end = at + 3 + 3 * ((words[at + 1] as number) & 0xffff);
    for (let member = at + 3; member < end; member += 3) {
      found.set(text(words[member] as number), ((words[member + 2] as number) & 0xffffff) / 8);
    }
    return found;
  };
  const functions = [TARGET, SUM].map((name) => ({ name, kind: KIND_FUNC }));
  const structs = [...wanted, 'bpf_map', 'btf'].map((name) => ({ name, kind: KIND_STRUCT }));
  // Only what may be a type of such a name is looked at closely: reading a hundred thousand types takes 10 ms.
  const places = [...functions, ...structs].flatMap(({ name, kind }) => {
    // Each string occurs once, so a name is one number.
    const nameAt = strings.indexOf(`\0${name}\0`) + 1;
    if (nameAt === 0) return [];
    const word = Buffer.alloc(4);
    word.writeUInt32LE(nameAt);
    const at: number[] = [];
    for (let byte = aligned.indexOf(word); byte >= 0; byte = aligned.indexOf(word, byte + 1)) {
      if (byte % 4 === 0 && kindAt(words, byte / 4) === kind) at.push(byte / 4);
    }
    return at.map((at) => ({ at, name }));
  });
  places.sort((a, b) => a.at - b.at);
  const ids = new Map<string, number>();
  const found = new Map<string, Map<string, number>>();
  let before = { at: 0, id: 1 };
  for (const { at, name } of places) {
    const type = typeFrom(words, before, at);
    if (type === undefined) continue;
    before = type;
    if (kindAt(words, at) === KIND_FUNC) ids.set(name, type.id);
    else found.set(name, members(at));
  }
  const targetId = ids.get(TARGET);
  const map = found.get('bpf_map');
  if (targetId === undefined || map === undefined) return undefined;
  return { target: targetId, map, btfId: found.get('btf')?.get('id'), sum: ids.get(SUM), structs: found };
}

// ---------------------------------------------------------------------------------------------------
// The program

const LOAD = { 1: 0x71, 4: 0x61, 8: 0x79 } as const;
const STORE = { 4: 0x63, 8: 0x7b } as const;
const CALL = 0x85;
/** In the source register of a call: of a kernel function, not of a helper. */
const KERNEL_FUNCTION = 2;
/** Helpers bpf_probe_read_kernel() and bpf_seq_write(). */
const PROBE_READ_KERNEL = 113;
const SEQ_WRITE = 127;

/** One instruction of eBPF. */
function op(code: number, to: number, from: number, offset: number, value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes[0] = code;
  bytes[1] = to | (from << 4);
  bytes.writeInt16LE(offset, 2);
  bytes.writeInt32LE(value, 4);
  return bytes;
}

/** The offsets of the members that a type's items are counted with; undefined if this kernel lacks one. */
function countedAt(counted: Counted, { structs }: Offsets): number[] | undefined {
  if (counted.by === 'elements') return undefined;
  const names = counted.by === 'member' ? [counted.member] : [counted.put, counted.taken, counted.slots];
  const offsets = names.map((name) => structs.get(counted.struct)?.get(name));
  return offsets.every((offset) => offset !== undefined) ? offsets : undefined;
}

/** The items of a map in a record. */
function usedIn(record: Buffer, counted: Counted): number {
  const member = (i: number) => record.readUInt32LE(RECORD_MEMBERS + 4 * i);
  switch (counted.by) {
    case 'elements':
      // A sum of numbers for each CPU, which change meanwhile.
      return Math.max(0, Number(record.readBigInt64LE(RECORD_ELEMENTS)));
    case 'member':
      return member(0);
    case 'positions':
      return (member(0) + member(2) - member(1)) % Math.max(1, member(2));
  }
}

/** What the program counts; the kernel may refuse either. */
interface Counts {
  /** With bpf_map_sum_elem_count(). */
  readonly elements: boolean;
  /** By members of the types' own structures, which it may not be allowed to read. */
  readonly members: boolean;
}

/** The program: writes one record for the map it is called with, and nothing at the end of the list. */
function program(offsets: Offsets, types: readonly KnownType[], counts: Counts): Buffer | undefined {
  const { map, btfId, sum } = offsets;
  const load = (size: 1 | 4 | 8, to: number, from: number, offset: number) => op(LOAD[size], to, from, offset, 0);
  const store = (size: 4 | 8, at: number) => op(STORE[size], 10, 1, at - RECORD_SIZE, 0);
  const body: Buffer[] = [];
  /** Copies a member of the map (r7) into the record; 0 if this kernel lacks the member. */
  const copy = (name: string, from: 1 | 4 | 8, to: 4 | 8, at: number, more = 0) => {
    const offset = map.get(name);
    body.push(offset === undefined ? op(0xb7, 1, 0, 0, 0) : load(from, 1, 7, offset + more), store(to, at));
  };
  if (!map.has('id') || !map.has('map_type') || !map.has('name')) return undefined;
  copy('id', 4, 4, RECORD.id);
  copy('map_type', 4, 4, RECORD.type);
  copy('key_size', 4, 4, RECORD.keySize);
  copy('value_size', 4, 4, RECORD.valueSize);
  copy('max_entries', 4, 4, RECORD.maxEntries);
  copy('map_flags', 4, 4, RECORD.flags);
  copy('map_extra', 8, 8, RECORD.extra);
  copy('name', 8, 8, RECORD.name);
  copy('name', 8, 8, RECORD.name + 8, 8);
  copy('frozen', 1, 4, RECORD_FROZEN);
  copy('usercnt', 8, 8, RECORD_USERS);
  copy('btf', 8, 8, RECORD_BTF);
  body.pop();
  // map->btf->id: a null pointer reads as 0 here.
  body.push(map.has('btf') && btfId !== undefined ? load(4, 1, 1, btfId) : op(0xb7, 1, 0, 0, 0), store(4, RECORD_BTF));
  body.push(op(0xb7, 1, 0, 0, 0));
  for (let at = RECORD_ELEMENTS; at < RECORD_SIZE; at += 8) body.push(store(8, at));
  if (counts.elements && sum !== undefined) {
    body.push(op(0xbf, 1, 7, 0, 0), op(CALL, 0, KERNEL_FUNCTION, 0, sum));
    body.push(op(STORE[8], 10, 0, RECORD_ELEMENTS - RECORD_SIZE, 0));
  }
  for (const { number, counted } of counts.members ? types : []) {
    const reads = (counted && countedAt(counted, offsets))?.flatMap((offset, i) => [
      op(0xbf, 1, 10, 0, 0),
      op(0x07, 1, 0, 0, RECORD_MEMBERS + 4 * i - RECORD_SIZE),
      op(0xb7, 2, 0, 0, 4),
      op(0xbf, 3, 7, 0, 0),
      op(0x07, 3, 0, 0, offset),
      op(CALL, 0, 0, 0, PROBE_READ_KERNEL),
    ]);
    if (reads !== undefined) {
      body.push(load(4, 1, 7, map.get('map_type') as number), op(0x55, 1, 0, reads.length, number), ...reads);
    }
  }
  body.push(
    op(0xbf, 1, 8, 0, 0),
    op(0xbf, 2, 10, 0, 0),
    op(0x07, 2, 0, 0, -RECORD_SIZE),
    op(0xb7, 3, 0, 0, RECORD_SIZE),
    op(CALL, 0, 0, 0, SEQ_WRITE),
  );
  return Buffer.concat([
    load(8, 8, 1, 0), // the context's meta,
    load(8, 8, 8, 0), // whose first member is the seq_file
    load(8, 7, 1, 8), // the context's map, null at the end
    op(0x15, 7, 0, body.length, 0),
    ...body,
    op(0xb7, 0, 0, 0, 0),
    op(0x95, 0, 0, 0, 0),
  ]);
}

const PROG_TYPE_TRACING = 26;
const ATTACH_TRACE_ITER = 28;

/** What was found in files of type information: the kernel's own stays as it is. */
const known = new Map<string, Offsets | undefined>();

/**
 * Reads the kernel's list of maps.
 * @param btfFile the file with the kernel's type information
 * @returns maps by id; undefined if this kernel or our capabilities do not allow it
 */
export function kernelMaps(sys: Sys, btfFile = '/sys/kernel/btf/vmlinux'): Map<number, KernelMap> | undefined {
  const types = sys.types.all();
  const structs = types.flatMap(({ counted }) =>
    counted === undefined || counted.by === 'elements' ? [] : counted.struct,
  );
  let offsets = known.get(btfFile);
  offsets ??= withContents(sys, btfFile, (btf) => iteratorOffsets(btf, structs));
  known.set(btfFile, offsets);
  if (offsets === undefined) return undefined;
  // The more it counts, the newer or the less locked down the kernel must be.
  for (const counts of COUNTS) {
    const code = program(offsets, types, counts);
    const records = code && iterated(sys, offsets.target, code);
    if (records === undefined) continue;
    const used = ({ type }: MapShape, bytes: Buffer) => {
      const counted = sys.types.row(type)?.counted;
      if (counted === undefined) return undefined;
      const known =
        counted.by === 'elements' ? counts.elements && offsets.sum : counts.members && countedAt(counted, offsets);
      return known ? usedIn(bytes, counted) : undefined;
    };
    return new Map(
      records.map((bytes) => {
        const map = record(bytes);
        return [map.id, { ...map, used: used(map, bytes) }];
      }),
    );
  }
  return undefined;
}

/** Calls `use` with what is in a file: mapped if possible (Linux 6.16), because sysfs is slow to read. */
function withContents<T>(sys: Sys, file: string, use: (bytes: Buffer) => T): T | undefined {
  let fd: number;
  try {
    fd = fs.openSync(file, 'r');
  } catch {
    return undefined;
  }
  try {
    const { size } = fs.fstatSync(fd);
    const address =
      size === 0 ? 0n : sys.mmap(fd, 0, size, { writable: false, populate: false, address: 0n, private: true });
    if (address <= 0n) return use(fs.readFileSync(fd));
    try {
      return use(sys.view(address, size));
    } finally {
      sys.munmap(address, size);
    }
  } finally {
    fs.closeSync(fd);
  }
}

const COUNTS: readonly Counts[] = [
  { elements: true, members: true },
  { elements: true, members: false },
  { elements: false, members: true },
  { elements: false, members: false },
];

/** Runs `code` for each map; returns the records that it writes, or undefined if the kernel refuses it. */
function iterated(sys: Sys, target: number, code: Buffer): Buffer[] | undefined {
  const fds: number[] = [];
  const opened = (fd: number) => {
    if (fd >= 0) fds.push(fd);
    return fd;
  };
  try {
    const insns = pinned(code.length);
    insns.set(code);
    const load = new Attr(ATTR.progLoad, sys)
      .set('prog_type', PROG_TYPE_TRACING)
      .set('expected_attach_type', ATTACH_TRACE_ITER)
      .set('attach_btf_id', target)
      .point('insns', insns)
      .set('insn_cnt', code.length / 8)
      .point('license', Buffer.from('GPL\0'))
      .setBytes('prog_name', Buffer.from('bpfimg_list'));
    const prog = opened(sys.bpf('PROG_LOAD', load));
    if (prog < 0) return undefined;
    const attach = new Attr(ATTR.linkCreate, sys).set('prog_fd', prog).set('attach_type', ATTACH_TRACE_ITER);
    const link = opened(sys.bpf('LINK_CREATE', attach));
    if (link < 0) return undefined;
    const iterator = opened(sys.bpf('ITER_CREATE', new Attr(ATTR.iterCreate, sys).set('link_fd', link)));
    return iterator < 0 ? undefined : iteratorRecords(iterator);
  } finally {
    for (const fd of fds) sys.close(fd);
  }
}

/** Reads an iterator to its end. */
function iteratorRecords(fd: number): Buffer[] {
  const records: Buffer[] = [];
  let buffer = Buffer.alloc(RECORD_SIZE * 1024);
  let filled = 0;
  for (;;) {
    const got = fs.readSync(fd, buffer, filled, buffer.length - filled, null);
    if (got === 0) return records;
    filled += got;
    let at = 0;
    for (; at + RECORD_SIZE <= filled; at += RECORD_SIZE) records.push(buffer.subarray(at, at + RECORD_SIZE));
    const rest = buffer.subarray(at, filled);
    buffer = Buffer.alloc(RECORD_SIZE * 1024);
    filled = rest.copy(buffer);
  }
}

function record(bytes: Buffer): Omit<KernelMap, 'used'> {
  const name = bytes.toString('latin1', RECORD.name, RECORD_BTF);
  return {
    id: bytes.readUInt32LE(RECORD.id),
    type: bytes.readUInt32LE(RECORD.type),
    keySize: bytes.readUInt32LE(RECORD.keySize),
    valueSize: bytes.readUInt32LE(RECORD.valueSize),
    maxEntries: bytes.readUInt32LE(RECORD.maxEntries),
    flags: bytes.readUInt32LE(RECORD.flags),
    extra: bytes.readBigUInt64LE(RECORD.extra),
    name: name.slice(0, `${name}\0`.indexOf('\0')),
    frozen: (bytes.readUInt32LE(RECORD_FROZEN) & 0xff) !== 0,
    btfId: bytes.readUInt32LE(RECORD_BTF),
    users: bytes.readBigInt64LE(RECORD_USERS),
  };
}
