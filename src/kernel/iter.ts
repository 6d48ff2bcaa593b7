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
}

/** What the program writes for each map. */
const RECORD = { id: 0, type: 4, keySize: 8, valueSize: 12, maxEntries: 16, flags: 20, extra: 24, name: 32 } as const;
const RECORD_BTF = 48;
const RECORD_FROZEN = 52;
const RECORD_USERS = 56;
const RECORD_SIZE = 64;

// ---------------------------------------------------------------------------------------------------
// The part of the kernel's type information that the program needs

interface Offsets {
  /** Type id of the function that marks the iterator. */
  readonly target: number;
  /** Offsets in struct bpf_map, in bytes. */
  readonly map: ReadonlyMap<string, number>;
  /** `id` in struct btf. */
  readonly btfId: number | undefined;
}

const KIND_FUNC = 12;
const KIND_STRUCT = 4;
/** Bytes that follow a type of each kind: a fixed number, and a number for each member. */
const TAIL: Readonly<Record<number, readonly [fixed: number, each: number]>> = {
  1: [4, 0],
  3: [12, 0],
  4: [0, 12],
  5: [0, 12],
  6: [0, 8],
  13: [0, 8],
  14: [4, 0],
  15: [0, 12],
  17: [4, 0],
  19: [0, 12],
};

/** Finds what the program needs in a BTF blob; undefined if it is missing. */
export function iteratorOffsets(btf: Buffer): Offsets | undefined {
  if (btf.length < 24 || btf.readUInt16LE(0) !== 0xeb9f) return undefined;
  const header = btf.readUInt32LE(4);
  const types = header + btf.readUInt32LE(8);
  const end = types + btf.readUInt32LE(12);
  const strings = btf.subarray(header + btf.readUInt32LE(16));
  // Each string occurs once, so a name is one number.
  const named = (name: string) => strings.indexOf(`\0${name}\0`) + 1;
  const [target, map, object] = [named('bpf_iter_bpf_map'), named('bpf_map'), named('btf')];
  const text = (at: number) => strings.toString('latin1', at, strings.indexOf(0, at));
  const members = (at: number, count: number) => {
    const found = new Map<string, number>();
    for (let i = 0; i < count; i++) {
      const member = at + 12 + i * 12;
      found.set(text(btf.readUInt32LE(member)), (btf.readUInt32LE(member + 8) & 0xffffff) / 8);
    }
    return found;
  };
  let targetId: number | undefined;
  let mapMembers: Map<string, number> | undefined;
  let btfId: number | undefined;
  for (let at = types, id = 1; at + 12 <= end; id++) {
    const name = btf.readUInt32LE(at);
    const info = btf.readUInt32LE(at + 4);
    const count = info & 0xffff;
    const kind = (info >>> 24) & 0x1f;
    if (kind === KIND_FUNC && name === target) targetId = id;
    else if (kind === KIND_STRUCT && name === map) mapMembers = members(at, count);
    else if (kind === KIND_STRUCT && name === object) btfId = members(at, count).get('id');
    const [fixed, each] = TAIL[kind] ?? [0, 0];
    at += 12 + fixed + each * count;
  }
  return targetId === undefined || mapMembers === undefined ? undefined : { target: targetId, map: mapMembers, btfId };
}

// ---------------------------------------------------------------------------------------------------
// The program

const LOAD = { 1: 0x71, 4: 0x61, 8: 0x79 } as const;
const STORE = { 4: 0x63, 8: 0x7b } as const;
/** Helper bpf_seq_write(). */
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

/** The program: writes one record for the map it is called with, and nothing at the end of the list. */
function program({ map, btfId }: Offsets): Buffer | undefined {
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
  body.push(
    op(0xbf, 1, 8, 0, 0),
    op(0xbf, 2, 10, 0, 0),
    op(0x07, 2, 0, 0, -RECORD_SIZE),
    op(0xb7, 3, 0, 0, RECORD_SIZE),
    op(0x85, 0, 0, 0, SEQ_WRITE),
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

/**
 * Reads the kernel's list of maps.
 * @param btfFile the file with the kernel's type information
 * @returns maps by id; undefined if this kernel or our capabilities do not allow it
 */
export function kernelMaps(sys: Sys, btfFile = '/sys/kernel/btf/vmlinux'): Map<number, KernelMap> | undefined {
  let btf: Buffer;
  try {
    btf = fs.readFileSync(btfFile);
  } catch {
    return undefined;
  }
  const offsets = iteratorOffsets(btf);
  const code = offsets && program(offsets);
  if (offsets === undefined || code === undefined) return undefined;
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
      .set('attach_btf_id', offsets.target)
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
function iteratorRecords(fd: number): Map<number, KernelMap> {
  const maps = new Map<number, KernelMap>();
  const buffer = Buffer.alloc(RECORD_SIZE * 1024);
  let filled = 0;
  for (;;) {
    const got = fs.readSync(fd, buffer, filled, buffer.length - filled, null);
    if (got === 0) return maps;
    filled += got;
    let at = 0;
    for (; at + RECORD_SIZE <= filled; at += RECORD_SIZE) {
      const map = record(buffer.subarray(at, at + RECORD_SIZE));
      maps.set(map.id, map);
    }
    buffer.copyWithin(0, at, filled);
    filled -= at;
  }
}

function record(bytes: Buffer): KernelMap {
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
