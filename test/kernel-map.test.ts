/** Maps of the running kernel, with bpftool as the witness. */

import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import t, { type Test } from 'tap';
import { isZero, roundUp8 } from '../src/bytes.js';
import { ATTR, BTF_INFO, ELEM_FLAG, MAP_FLAG } from '../src/kernel/abi.js';
import { readBtf } from '../src/kernel/btf.js';
import { KernelError } from '../src/kernel/error.js';
import { isLive, walkIds } from '../src/kernel/live.js';
import { BpfMap, InfoReader, type MapSpec } from '../src/kernel/map.js';
import { mapFdinfo } from '../src/kernel/proc.js';
import type { CreateRule } from '../src/kernel/rules.js';
import { Attr, ERRNO, openSys } from '../src/kernel/sys.js';
import { asKept, features } from './helpers/features.js';
import {
  bpffs,
  bpftool,
  fdCount,
  HolderProcess,
  skipWithoutMaps,
  u32,
  updateAll,
  withoutCapabilities,
  witness,
} from './helpers/kernel-live.js';
import { MeddledSys } from './helpers/replay.js';
import { RULES, types } from './helpers/types.js';

const skip = await skipWithoutMaps();
const has = await features();
const sys = await openSys(types);
const [HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, TRIE, QUEUE, STACK] = [1, 2, 5, 6, 9, 11, 22, 23] as const;

const create = (spec: Partial<MapSpec>) =>
  BpfMap.create(sys, { type: HASH, keySize: 4, valueSize: 8, maxEntries: 100, ...spec });

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');

/** The kernel's refusal, which is one line. */
function refusal(t: Test, run: () => unknown): KernelError {
  try {
    run();
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    t.notMatch(error.message, /\n/);
    return error;
  }
  throw new Error('expected a refusal');
}

/** All items by batches of `room`, and how often each key came. */
function readAll(map: BpfMap, room: number): { items: Record<string, string>; keys: string[] } {
  const [cursor, batch] = [map.cursor(), map.batch(room)];
  const items: Record<string, string> = {};
  const keys: string[] = [];
  for (let calls = 0; calls < 100_000; calls++) {
    const { count, end, error } = map.lookupBatch(cursor, batch);
    if (error) throw error;
    for (let i = 0; i < count; i++) {
      const key = hex(batch.keys.subarray(i * map.keySize, (i + 1) * map.keySize));
      keys.push(key);
      items[key] = hex(batch.values.subarray(i * map.valueStride, (i + 1) * map.valueStride));
    }
    if (end) return { items, keys };
  }
  throw new Error('reading does not end');
}

/** Sets keys 0 to `count - 1`, each with its number, repeated, as its value. */
function fill(map: BpfMap, count: number): void {
  const batch = map.batch(count);
  for (let i = 0; i < count; i++) {
    batch.keys.writeUIntLE(i, i * map.keySize, Math.min(4, map.keySize));
    batch.values.fill(i + 1, i * map.valueStride, (i + 1) * map.valueStride);
  }
  updateAll(map, batch, count);
}

t.test('create, items one by one, and what bpftool sees', { skip }, async (t) => {
  using map = create({ name: 'kernel.test_1', flags: MAP_FLAG.NO_PREALLOC, valueSize: 3 });
  t.match(bpftool('map', 'show', 'id', `${map.id}`), {
    id: map.id,
    name: 'kernel.test_1',
    type: 'hash',
    flags: 1,
    bytes_key: 4,
    bytes_value: 3,
    max_entries: 100,
    frozen: 0,
  });
  t.match(map.info, {
    type: HASH,
    id: map.id,
    keySize: 4,
    valueSize: 3,
    maxEntries: 100,
    flags: 1,
    name: 'kernel.test_1',
    btfId: 0,
  });
  map.update(u32(1), Buffer.from('abc'));
  map.update(u32(2), Buffer.from('def'), ELEM_FLAG.NOEXIST);
  bpftool('map', 'update', 'id', `${map.id}`, 'key', '3', '0', '0', '0', 'value', '9', '8', '7');
  t.same(witness(map), { '01000000': '616263', '02000000': '646566', '03000000': '090807' });
  t.same(map.lookup(u32(3)), new Uint8Array([9, 8, 7]));
  t.equal(map.lookup(u32(4)), undefined);
  const into = new Uint8Array(3);
  t.equal(map.lookup(u32(1), 0, into), into);
  t.equal(Buffer.from(into).toString(), 'abc');
  t.equal(map.delete(u32(1)), true);
  t.equal(map.delete(u32(1)), false);
  if (has.takingFromHashes) t.same(map.lookupAndDelete(u32(2)), new Uint8Array(Buffer.from('def')));
  else {
    t.match(refusal(t, () => map.lookupAndDelete(u32(2))).message, /ENOTSUPP \(not supported for maps of this type\)$/);
    map.delete(u32(2));
  }
  t.same(witness(map), { '03000000': '090807' });
  t.equal(refusal(t, () => map.update(u32(3), Buffer.alloc(3), ELEM_FLAG.NOEXIST)).code, 'EEXIST');
  t.equal(refusal(t, () => map.update(u32(9), Buffer.alloc(3), ELEM_FLAG.EXIST)).code, 'ENOENT');
});

t.test('walking keys', { skip }, async (t) => {
  using map = create({ type: ARRAY, maxEntries: 5, valueSize: 4 });
  const seen: string[] = [];
  for (let key = map.nextKey(undefined); key !== undefined; key = map.nextKey(key, key)) seen.push(hex(key));
  t.same(seen, ['00000000', '01000000', '02000000', '03000000', '04000000']);
  t.same(map.nextKey(u32(77)), new Uint8Array(4), 'a key that is not there: the first again');
  using empty = create({});
  t.equal(empty.nextKey(undefined), undefined);
});

t.test('names are bytes', { skip }, async (t) => {
  for (const name of ['', 'a', 'with.dot', 'fifteen_letters', 'Stra\xdfe\xff']) {
    using map = create({ name });
    t.equal(map.name, name);
    t.equal(map.subject, name === '' ? `map ${map.id}` : `map ${map.id} (${name})`);
  }
});

t.test('rule 1: keys shorter than a cursor', { skip }, async (t) => {
  for (const keySize of [1, 2, 3]) {
    // More buckets than a byte can count.
    using map = create({ keySize, maxEntries: 3000, valueSize: 1 });
    fill(map, 250);
    const { keys } = readAll(map, 16);
    t.equal(keys.length, 250, `key_size ${keySize}: nothing twice`);
    t.equal(new Set(keys).size, 250, 'nothing missing');
  }
});

t.test('rule 2: the end comes with items, and a bucket that does not fit makes the batch grow', { skip }, async (t) => {
  using map = create({ maxEntries: 16 });
  fill(map, 16);
  const cursor = map.cursor();
  const batch = map.batch(16);
  t.match(map.lookupBatch(cursor, batch), { count: 16, end: true }, 'all at once is the end already');
  // 64 keys in a map with room for them: some of its buckets hold several, batches of 1 cannot.
  using full = create({ maxEntries: 64 });
  fill(full, 64);
  for (const room of [1, 2, 3, 64]) {
    const { keys, items } = readAll(full, room);
    t.equal(keys.length, 64, `batches of ${room}`);
    t.same(items, witnessed(full));
  }
  const small = full.batch(1);
  const walk = full.cursor();
  while (!full.lookupBatch(walk, small).end);
  t.ok(small.room > 1, 'the batch grew');
  // Behind other items it must not grow, because they would be lost.
  const [behind, shared] = [full.cursor(), full.batch(20)];
  let held = 0;
  for (let error: KernelError | undefined; error === undefined; ) {
    const result = full.lookupBatch(behind, shared, Math.min(3, shared.room - held), held);
    held += result.count;
    error = result.error;
    if (error === undefined && held === shared.room) break;
    if (error !== undefined) t.equal(error.errno, ERRNO.ENOSPC);
  }
  t.equal(shared.room, 20);
  t.ok(held > 15);
  const first = readAll(full, 64).keys.slice(0, held);
  const found = Array.from({ length: held }, (_, i) => hex(shared.keys.subarray(4 * i, 4 * i + 4)));
  t.same(found, first, 'each behind the others');
  using array = create({ type: ARRAY, maxEntries: 16, valueSize: 4 });
  const [at, room] = [array.cursor(), array.batch(16)];
  t.match(array.lookupBatch(at, room), { count: 16, end: false }, 'an array ends one call later');
  t.match(array.lookupBatch(at, room), { count: 0, end: true });
  using empty = create({});
  t.same(readAll(empty, 4).keys, []);
});

/** What bpftool sees, in the form of {@link readAll}. */
function witnessed(map: BpfMap): Record<string, string> {
  return Object.fromEntries(Object.entries(witness(map)).map(([key, value]) => [key, value.replaceAll(' ', '')]));
}

/** Whether the running kernel is too old for batches of this type. */
const isBatchless = (type: number | undefined) =>
  (type === TRIE && !has.trieBatches) || (type === PERCPU_ARRAY && !has.perCpuArrayBatches);

t.test('batches of every type that has them agree with bpftool', { skip }, async (t) => {
  const cases: readonly Partial<MapSpec>[] = [
    { type: HASH, keySize: 3, valueSize: 5 },
    { type: HASH, keySize: 16, valueSize: 64, flags: MAP_FLAG.ZERO_SEED },
    { type: HASH, keySize: 512, valueSize: 1 },
    { type: HASH, valueSize: 65536, maxEntries: 10 },
    { type: ARRAY, valueSize: 12 },
    { type: LRU_HASH },
    { type: TRIE, keySize: 8, valueSize: 5, flags: MAP_FLAG.NO_PREALLOC },
    { type: PERCPU_HASH, valueSize: 8 },
    { type: PERCPU_ARRAY, valueSize: 8 },
  ];
  for (const spec of cases) {
    using map = create(spec);
    const count = Math.min(60, map.maxEntries);
    if (spec.type !== TRIE) fill(map, count);
    else for (let i = 0; i < count; i++) map.update(u32(32, i), Buffer.alloc(5, i));
    if (isBatchless(spec.type)) {
      t.match(map.lookupBatch(map.cursor(), map.batch(7)), { count: 0, end: false, error: { errno: ERRNO.ENOTSUPP } });
      continue;
    }
    const { items, keys } = readAll(map, 7);
    t.equal(keys.length, spec.type === ARRAY || spec.type === PERCPU_ARRAY ? map.maxEntries : count);
    t.same(items, witnessed(map), JSON.stringify(spec));
  }
});

t.test('types without batches say so, and count is not believed', { skip }, async (t) => {
  using map = create({ type: QUEUE, keySize: 0, valueSize: 4 });
  t.match(map.lookupBatch(map.cursor(), map.batch(8)), { count: 0, end: false, error: { errno: ERRNO.ENOTSUPP } });
  t.match(map.updateBatch(map.batch(8), 8), { count: 0, end: false, error: { kind: 'unsupported' } });
  map.update(undefined, u32(1));
  map.update(undefined, u32(2));
  t.same(map.lookup(undefined), new Uint8Array(u32(1)), 'peeking');
  t.same(map.lookupAndDelete(undefined), new Uint8Array(u32(1)));
  t.same(map.lookupAndDelete(undefined), new Uint8Array(u32(2)));
  t.equal(map.lookupAndDelete(undefined), undefined);
  using stack = create({ type: STACK, keySize: 0, valueSize: 4, maxEntries: 1 });
  stack.update(undefined, u32(1));
  t.equal(refusal(t, () => stack.update(undefined, u32(2))).code, 'E2BIG');
});

t.test('updates that stop half-way', { skip }, async (t) => {
  using map = create({ maxEntries: 4, flags: MAP_FLAG.NO_PREALLOC });
  const batch = map.batch(8);
  for (let i = 0; i < 8; i++) batch.keys.writeUInt32LE(i, 4 * i);
  const first = map.updateBatch(batch, 8);
  t.match(first, { count: 4, end: false, error: { errno: ERRNO.E2BIG, message: /it is full.*max_entries 4\)$/ } });
  t.equal(Object.keys(witness(map)).length, 4);
  t.match(map.updateBatch(batch, 1, 4), { count: 0, error: { errno: ERRNO.E2BIG } });
  t.match(map.updateBatch(batch, 2, 2), { count: 2, end: true }, 'keys that are there are set again');
  t.match(map.updateBatch(batch, 2, 2, ELEM_FLAG.NOEXIST), { count: 0, error: { errno: ERRNO.EINVAL } });
});

t.test('two threads, two ranges, every key once', { skip }, async (t) => {
  using map = create({ keySize: 8, valueSize: 16, maxEntries: 20_000 });
  fill(map, 20_000);
  const buckets = 32_768;
  const halves = [0, buckets / 2].map(async (start, i) => {
    const end = start + buckets / 2;
    const [cursor, batch] = [map.cursor(start), map.batch(256)];
    const found: string[] = [];
    for (;;) {
      const result = await map.lookupBatchAsync(cursor, batch);
      if (result.error) throw result.error;
      for (let k = 0; k < result.count; k++) found.push(hex(batch.keys.subarray(8 * k, 8 * k + 8)));
      if (result.end || (i === 0 && (cursor.position as number) >= end)) return found;
    }
  });
  const [first = [], second = []] = await Promise.all(halves);
  const border = new Set(second);
  const own = first.filter((key) => !border.has(key));
  t.equal(own.length + second.length, 20_000);
  t.equal(new Set([...own, ...second]).size, 20_000);
  using array = create({ type: ARRAY, valueSize: 4, maxEntries: 10 });
  fill(array, 10);
  const batch = array.batch(4);
  t.match(array.lookupBatch(array.cursor(4), batch, 3), { count: 3, end: false });
  t.same(batch.keys.subarray(0, 12), u32(5, 6, 7), 'an array is read from behind an index');
});

t.test('buffers known only by address are kept', { skip }, async (t) => {
  setFlagsFromString('--expose-gc');
  const gc = runInNewContext('gc') as () => void;
  using map = create({ maxEntries: 4096 });
  fill(map, 4096);
  // Nothing here refers to a batch or a cursor while its call runs.
  const calls = Array.from({ length: 64 }, () => map.lookupBatchAsync(map.cursor(), map.batch(4096)));
  for (let i = 0; i < 5; i++) {
    gc();
    for (let k = 0; k < 50; k++) new Uint8Array(1 << 18).fill(0xee);
    await new Promise((resolve) => setImmediate(resolve));
  }
  for (const { count, error } of await Promise.all(calls)) t.same([count, error], [4096, undefined]);
  // A loop that is compiled by the optimiser half-way, with much to collect.
  let sum = 0;
  for (let i = 0; i < 30_000; i++) sum += map.lookup(u32(i % 4096))?.length ?? 0;
  t.equal(sum, 8 * 30_000);
});

t.test('rule 3: asking for info again and again', { skip }, async (t) => {
  const reader = new InfoReader(sys);
  using one = create({ name: 'a_long_name_', extra: 0n });
  using two = create({ name: '' });
  for (let i = 0; i < 3; i++) {
    t.equal(reader.read(one.fd, 'one').name, 'a_long_name_');
    t.match(reader.read(two.fd, 'two'), { name: '', id: two.id }, 'nothing is left of the map before');
  }
});

/** BTF with two types: 1 is an int of 4 bytes, 2 one of 8. The caller closes it. */
function loadBtf(): number {
  const words = [
    '9feb0100 18000000 00000000 20000000 20000000 05000000',
    '01000000 00000001 04000000 20000000 01000000 00000001 08000000 40000000',
    '00696e7400',
  ];
  const btf = Buffer.from(words.join('').replaceAll(' ', ''), 'hex');
  return sys.bpf('BTF_LOAD', new Attr(ATTR.btfLoad, sys).point('btf', btf).set('btf_size', btf.length));
}

t.test('rule 4: BTF by its file descriptor', { skip }, async (t) => {
  const fd = loadBtf();
  t.ok(fd >= 0, `BTF_LOAD gave ${fd}`);
  try {
    using map = create({ btf: { fd, keyType: 1, valueType: 2 } });
    const info = map.info;
    t.match(info, { btfKeyType: 1, btfValueType: 2 });
    t.ok(info.btfId > 0);
    const wrong = refusal(t, () => create({ valueSize: 4, btf: { fd, keyType: 1, valueType: 2 } }));
    t.match(wrong.message, /BPF_MAP_CREATE: EINVAL \(its BTF is not a BTF object, or does not fit its sizes\)$/);
    // Standard input is no BTF object: had it been taken for "none", this would succeed.
    refusal(t, () => create({ btf: { fd: 0, keyType: 1, valueType: 2 } }));
    using none = create({});
    t.match(none.info, { btfId: 0, btfKeyType: 0, btfValueType: 0 });
  } finally {
    sys.close(fd);
  }
});

t.test('BTF where the kernel knows no names of it', { skip }, async (t) => {
  const fd = loadBtf();
  using map = create({ btf: { fd, keyType: 1, valueType: 2 } });
  sys.close(fd);
  const { btfId } = map.info;
  // Linux before 5.11 knows 16 bytes of bpf_btf_info, and refuses more of it that is not zero.
  let refused = 0;
  const old = new MeddledSys(sys, (command, attr: Attr<string>) => {
    const info = command === 'OBJ_GET_INFO_BY_FD' ? attr.pointee('info') : undefined;
    if (info?.length !== BTF_INFO.size || isZero(info, 16, info.length)) return undefined;
    refused++;
    return -ERRNO.E2BIG;
  });
  t.same(readBtf(old, btfId), readBtf(sys, btfId));
  t.equal(refused, 1);
});

t.test('rule 12: per-CPU values, of all possible CPUs', { skip }, async (t) => {
  t.equal(sys.cpus, Number(execFileSync('getconf', ['_NPROCESSORS_CONF'])), 'as libc counts them');
  for (const type of [PERCPU_HASH, PERCPU_ARRAY]) {
    using map = create({ type, valueSize: 12, maxEntries: 3 });
    t.equal(map.valueStride, 16 * sys.cpus);
    const value = Buffer.from(Array.from({ length: map.valueStride }, (_, i) => i + 1));
    map.update(u32(1), value);
    const kept = asKept(value, 12, has);
    t.same(map.lookup(u32(1)), new Uint8Array(kept), 'padding comes back as it was, or zero');
    if (!isBatchless(type)) t.equal(readAll(map, 2).items['01000000'], kept.toString('hex'));
    const cpus = Array.from({ length: sys.cpus }, (_, cpu) => hex(value.subarray(16 * cpu, 16 * cpu + 12)));
    t.equal(witness(map)['01000000'], cpus.join(' '));
  }
});

t.test('rule 14: what fdinfo tells and what info tells', { skip }, async (t) => {
  using map = create({ name: 'both', flags: MAP_FLAG.NO_PREALLOC });
  const shown = bpftool('map', 'show', 'id', `${map.id}`) as { bytes_memlock: number };
  t.same(map.state(), { frozen: false, memlock: shown.bytes_memlock, access: 'rw' });
  using reader = BpfMap.openById(sys, map.id, 'ro');
  using writer = BpfMap.openById(sys, map.id, 'wo');
  t.equal(reader.state().access, 'ro');
  t.equal(writer.state().access, 'wo');
  t.equal(reader.info.flags, MAP_FLAG.NO_PREALLOC, 'access is no flag of the map');
  t.match(mapFdinfo('self', map.fd), { id: map.id, type: HASH, keySize: 4, valueSize: 8, maxEntries: 100, flags: 1 });
  writer.update(u32(1), Buffer.alloc(8));
  t.match(refusal(t, () => writer.lookup(u32(1))).message, /EPERM \(its file descriptor is write-only\)$/);
  t.match(
    refusal(t, () => reader.update(u32(1), Buffer.alloc(8))).message,
    /EPERM \(its file descriptor is read-only\)$/,
  );
  t.match(writer.lookupBatch(writer.cursor(), writer.batch(4)).error?.message, /is write-only\)$/);
  map.freeze();
  t.equal(map.state().frozen, true);
  t.match(refusal(t, () => map.update(u32(1), Buffer.alloc(8))).message, /EPERM \(it is frozen\)$/);
  t.match(refusal(t, () => map.freeze()).message, /BPF_MAP_FREEZE: E\w+ \(.*frozen already/);
  t.same(map.lookup(u32(1)), new Uint8Array(8), 'reading goes on');
});

t.test('memory of arrays', { skip }, async (t) => {
  using map = create({ type: ARRAY, valueSize: 12, maxEntries: 1000, flags: MAP_FLAG.MMAPABLE });
  map.update(u32(2), Buffer.from('twelve bytes'));
  const writable = map.mmap({ writable: true, populate: true });
  t.equal(writable.length, 1000 * roundUp8(12));
  t.equal(writable.bytes.toString('latin1', 32, 44), 'twelve bytes', 'values are 16 bytes apart');
  writable.bytes.write('dozen', 48);
  t.equal(Buffer.from(map.lookup(u32(3)) ?? []).toString('latin1', 0, 5), 'dozen');
  t.match(refusal(t, () => map.freeze()).message, /EBUSY \(it is mapped for writing/);
  writable.close();
  writable.close();
  t.throws(() => writable.bytes, /closed/);
  map.freeze();
  using second = map.mmap({ offset: 4096, length: 4096 });
  t.equal(second.bytes.length, 4096);
  t.equal(refusal(t, () => map.mmap({ writable: true })).code, 'EPERM');
  using plain = create({ type: ARRAY });
  t.match(refusal(t, () => plain.mmap({})).message, /mmap: EINVAL \(the map lacks BPF_F_MMAPABLE/);
  using other = create({});
  t.equal(refusal(t, () => other.mmap({})).code, 'ENOTSUPP');
});

t.test('pins', { skip }, async (t) => {
  const { folder, remove } = bpffs();
  try {
    using map = create({ name: 'pinned' });
    const pin = path.join(folder, 'pin one');
    map.pin(pin);
    t.match(bpftool('map', 'show', 'pinned', pin), { id: map.id });
    {
      using again = BpfMap.openPinned(sys, pin);
      t.equal(again.id, map.id);
      using reader = BpfMap.openPinned(sys, pin, 'ro');
      t.equal(reader.state().access, 'ro');
    }
    t.match(
      refusal(t, () => map.pin(pin)),
      { kind: 'conflict', message: /pin .*pin one: BPF_OBJ_PIN: EEXIST/ },
    );
    t.match(refusal(t, () => map.pin(path.join(folder, 'a.b'))).message, /EPERM \(a pin name cannot contain a dot\)$/);
    t.match(refusal(t, () => map.pin(path.join(folder, 'no', 'such'))).message, /ENOENT \(no such folder\)$/);
    t.match(
      refusal(t, () => map.pin('/tmp/nowhere')).message,
      /\/tmp\/ is not on a BPF file system; one is mounted at \//,
    );
    t.match(
      refusal(t, () => BpfMap.openPinned(sys, path.join(folder, 'none'))),
      { kind: 'notFound' },
    );
    t.match(refusal(t, () => BpfMap.openPinned(sys, '/etc/passwd')).message, /BPF_OBJ_GET: .* \(not on a BPF file/);
    // Made by bpftool, read by us.
    const made = path.join(folder, 'made');
    bpftool('map', 'create', made, 'type', 'hash', 'key', '4', 'value', '4', 'entries', '8', 'name', 'by_bpftool');
    using theirs = BpfMap.openPinned(sys, made);
    t.match([theirs.name, theirs.maxEntries], ['by_bpftool', 8]);
  } finally {
    remove();
  }
});

t.test('maps of other processes', { skip }, async (t) => {
  const holder = await HolderProcess.start([
    { type: HASH, keySize: 4, valueSize: 8, maxEntries: 10, name: 'theirs' },
    { type: HASH, keySize: 4, valueSize: 8, maxEntries: 10, flags: MAP_FLAG.WRONLY },
  ]);
  try {
    using map = BpfMap.fromProcess(sys, holder.pid, holder.fds[0] as number);
    t.same([map.id, map.name], [holder.ids[0], 'theirs']);
    map.update(u32(1), Buffer.alloc(8, 1));
    using writer = BpfMap.fromProcess(sys, holder.pid, holder.fds[1] as number);
    t.equal(writer.state().access, 'wo', 'the same open file');
    t.throws(() => BpfMap.fromProcess(sys, holder.pid, 0), {
      kind: 'unsupported',
      message: /expected a BPF map, got /,
    });
    t.match(
      refusal(t, () => BpfMap.fromProcess(sys, holder.pid, 9999)).message,
      /pidfd_getfd: EBADF \(not open in that/,
    );
  } finally {
    await holder.stop();
  }
  t.match(
    refusal(t, () => BpfMap.fromProcess(sys, holder.pid, 3)),
    { kind: 'notFound' },
  );
});

t.test('ids are walked without opening', { skip }, async (t) => {
  using map = create({});
  const before = fdCount();
  const ids = walkIds(sys, 'MAP_GET_NEXT_ID') ?? [];
  t.equal(fdCount(), before);
  t.ok(ids.includes(map.id));
  t.ok(ids.every((id, i) => i === 0 || id > (ids[i - 1] as number)));
  t.ok(isLive(sys, map.id));
  const { id } = map;
  map.close();
  // The kernel frees it a moment later.
  for (let i = 0; i < 100 && isLive(sys, id); i++) await new Promise((resolve) => setTimeout(resolve, 20));
  t.notOk(isLive(sys, id));
  t.match(
    refusal(t, () => BpfMap.openById(sys, id)),
    { kind: 'notFound', code: 'ENOENT' },
  );
});

t.test('what only the kernel can refuse is explained', { skip }, async (t) => {
  const cases: readonly [spec: Partial<MapSpec>, message: RegExp][] = [
    [{ keySize: 0 }, /EINVAL \(key_size 0, expected 1 to 4194254\)$/],
    [{ maxEntries: 2 ** 27 + 1 }, /E2BIG \(max_entries 134217729, expected 1 to 134217728\)$/],
    [{ valueSize: 4_194_255 }, /E2BIG \(value_size 4194255, expected .*; key_size and value_size together 4194259/],
    [{ type: ARRAY, keySize: 8 }, /EINVAL \(key_size 8, expected 4\)$/],
    [{ type: TRIE, keySize: 8 }, /EINVAL \(map_flags lack BPF_F_NO_PREALLOC\)$/],
    [{ type: LRU_HASH, flags: MAP_FLAG.NO_PREALLOC }, /\(map_flags BPF_F_NO_PREALLOC not accepted\)$/],
    [{ type: 12, valueSize: 4 }, /\(no inner map as a template\)$/],
    [{ name: 'a-b' }, /\(byte 0x2d is not allowed in the name\)$/],
    [{ type: 9999 }, /map_type 9999 is unknown to bpfimg/],
    [{ flags: MAP_FLAG.NUMA_NODE, numaNode: 1000 }, /NUMA node 1000 may not exist/],
  ];
  for (const [spec, message] of cases) {
    t.match(
      refusal(t, () => create(spec)),
      { message },
      JSON.stringify(spec),
    );
  }
  using inner = create({});
  using outer = create({ type: 12, valueSize: 4, inner, maxEntries: 2 });
  outer.update(u32(0), u32(inner.fd));
  t.same(outer.lookup(u32(0)), new Uint8Array(u32(inner.id)), 'fds go in, ids come out');
});

t.test('the rules of MAP_CREATE are the running kernel’s', { skip }, async (t) => {
  const fd = loadBtf();
  using inner = create({});
  const accepts = (spec: MapSpec) => {
    try {
      // Per-CPU maps take the flag NUMA_NODE only with no node.
      BpfMap.create(sys, { numaNode: -1, ...spec }).close();
      return true;
    } catch (error) {
      if (error instanceof KernelError && [ERRNO.EINVAL, ERRNO.E2BIG, ERRNO.ENOTSUPP].includes(error.errno as never)) {
        t.notMatch(error.message, /perhaps/, 'what is refused is explained');
        return false;
      }
      throw error;
    }
  };
  /** Of a type that the kernel does not have, nothing is wrong but that. */
  const isNewer = (spec: MapSpec) => {
    try {
      BpfMap.create(sys, { ...spec, since: 'some version' }).close();
      return false;
    } catch (error) {
      return error instanceof KernelError && /this kernel lacks/.test(error.message);
    }
  };
  try {
    for (const [{ number: type, name: typeName, inner: takesInner }, rule] of RULES) {
      // Needs a type of the kernel's own; the kernel may be without networks.
      if (typeName === 'struct_ops' || (rule.network && !accepts(smallest(type)))) continue;
      const plain = smallest(type, rule.btf === 'required' ? fd : undefined, takesInner ? inner : undefined);
      if (isNewer(plain)) {
        t.comment(`${typeName}: this kernel does not have it`);
        continue;
      }
      t.ok(accepts(plain), `${typeName}: the smallest`);
      const wrong = { ...plain, flags: rule.needs };
      if (rule.key.min > 0) t.notOk(accepts({ ...wrong, keySize: rule.key.min - 1 }), `${typeName}: a shorter key`);
      if (rule.value.min > 0)
        t.notOk(accepts({ ...wrong, valueSize: rule.value.min - 1 }), `${typeName}: a shorter value`);
      if (rule.entries.min > 0)
        t.notOk(accepts({ ...wrong, maxEntries: rule.entries.min - 1 }), `${typeName}: fewer entries`);
      for (const [name, bit] of Object.entries(MAP_FLAG)) {
        const flags = rule.needs | bit;
        const { flag = 0, value } = rule.flagged ?? {};
        const valueSize = flag === bit && value ? value.min : plain.valueSize;
        if (flag === bit) t.notOk(accepts({ ...plain, flags }), `${typeName}: ${name}, but its size of values`);
        t.equal(accepts({ ...plain, valueSize, flags }), (rule.flags & bit) !== 0, `${typeName}: ${name}`);
      }
      if (rule.needs !== 0) t.notOk(accepts({ ...plain, flags: 0 }), `${typeName}: without its flag`);
      if (rule.btf === 'no') {
        const btf = { fd, keyType: 1, valueType: plain.valueSize === 8 ? 2 : 1 };
        t.notOk(accepts({ ...plain, btf }), `${typeName}: BTF`);
      }
      const { max, step } = rule.extra ?? { max: 0n, step: 1n };
      t.notOk(accepts({ ...plain, extra: step === 1n ? max + 1n : step + 1n }), `${typeName}: map_extra`);
      if (max > 0n) t.ok(accepts({ ...plain, extra: step }), `${typeName}: map_extra`);
    }
  } finally {
    sys.close(fd);
  }
});

/** The smallest map that the rules of `type` allow. */
function smallest(type: number, btf?: number, inner?: BpfMap): MapSpec {
  const rule = types.row(type)?.create as CreateRule;
  return {
    type,
    keySize: rule.key.min,
    valueSize: btf === undefined ? rule.value.min : 8,
    maxEntries: rule.entries.min,
    flags: rule.needs,
    ...(btf === undefined ? {} : { btf: { fd: btf, keyType: 1, valueType: 2 } }),
    ...(inner === undefined ? {} : { inner }),
  };
}

t.test('without capabilities, errors say which are needed', { skip }, async (t) => {
  const attempts = `
    const say = (run) => { try { run(); console.log('fine'); } catch (error) { console.log(error.message); } };
    say(() => BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 4, maxEntries: 1 }));
    say(() => BpfMap.create(sys, { type: 15, keySize: 4, valueSize: 4, maxEntries: 1 }));
    say(() => BpfMap.openById(sys, 1));`;
  const none = withoutCapabilities(attempts).stdout.trim().split('\n');
  const restricted = fs.readFileSync('/proc/sys/kernel/unprivileged_bpf_disabled', 'utf8').trim() !== '0';
  if (restricted)
    t.match(
      none[0],
      'new hash map: BPF_MAP_CREATE: EPERM (needs the capability CAP_BPF, before Linux 5.11 also room under RLIMIT_MEMLOCK (ulimit -l))',
    );
  t.match(
    none[1],
    'new sockmap map: BPF_MAP_CREATE: EPERM (needs the capabilities CAP_BPF and CAP_NET_ADMIN, before Linux 5.11 ',
  );
  t.equal(none[2], 'map 1: BPF_MAP_GET_FD_BY_ID: EPERM (needs the capability CAP_SYS_ADMIN)');
  // Linux before 5.11 counts memory against a limit, which is lifted as far as it may be before EPERM is believed.
  const limits = withoutCapabilities(
    `${attempts}
    console.log((await import('node:fs')).readFileSync('/proc/self/limits', 'utf8'));`,
    [],
    ['prlimit', '--memlock=65536:131072'],
  ).stdout;
  if (restricted) t.match(limits, /Max locked memory +131072 +131072/);
  // CAP_BPF by number: the setpriv of older distributions does not know its name.
  const some = withoutCapabilities(attempts, ['cap_39']).stdout.trim().split('\n');
  t.equal(some[0], 'fine');
  t.match(some[1], 'needs the capabilities CAP_BPF and CAP_NET_ADMIN');
  t.match(some[2], 'needs the capability CAP_SYS_ADMIN');
});

t.test('CPUs of the thread', { skip }, async (t) => {
  const before = sys.getAffinity();
  if (typeof before === 'number') throw new Error(`sched_getaffinity: ${before}`);
  t.ok(before.length > 0);
  try {
    t.equal(sys.setAffinity([before[0] as number]), 0);
    t.same(sys.getAffinity(), [before[0]]);
    t.equal(sys.setAffinity([1023]), -ERRNO.EINVAL);
  } finally {
    t.equal(sys.setAffinity(before), 0);
  }
});

t.test('a thousand maps leave nothing open', { skip }, async (t) => {
  const before = fdCount();
  for (let i = 0; i < 1000; i++) {
    using map = create({ type: ARRAY, maxEntries: 1, valueSize: 4 });
    map.lookup(u32(0));
  }
  t.equal(fdCount(), before);
});

t.test('every file descriptor of this file was closed', { skip }, async (t) => {
  t.same(sys.openFds(), []);
});
