/** The kernel layer without a kernel: what it makes of errors, partial results and odd machines. */

import * as fs from 'node:fs';
import { constants } from 'node:os';
import * as path from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import t, { type Test } from 'tap';
import { BpfimgError } from '../src/errors.js';
import { ATTR, type BpfCommand } from '../src/kernel/abi.js';
import { causeOf, errnoName, KernelError } from '../src/kernel/error.js';
import { BpfMap, InfoReader, type MapSpec } from '../src/kernel/map.js';
import { breaches } from '../src/kernel/rules.js';
import { Attr, ERRNO, openSys, repeatable, type Sys } from '../src/kernel/sys.js';
import { FakeSys, fakeMap } from './helpers/kernel-fake.js';
import { types } from './helpers/types.js';

const E = ERRNO;

/** The error of `run`, which must fail as the user's news. */
function failure(t: Test, run: () => unknown): BpfimgError {
  try {
    run();
  } catch (error) {
    if (error instanceof BpfimgError) {
      t.notMatch(error.message, /\n/, 'one line');
      return error;
    }
    throw error;
  }
  throw new Error('expected to fail');
}

/** What koffi looks like to the door, with system calls that give `results` one after the other. */
function fakeKoffi(results: readonly number[]): { made: number[][]; load: () => Promise<{ default: unknown }> } {
  const left = [...results];
  const made: number[][] = [];
  let errno = 0;
  const call = (...args: unknown[]) => {
    made.push(args.filter((arg) => typeof arg === 'number'));
    const result = left.shift() ?? 0;
    errno = result < 0 ? -result : 0;
    return result < 0 ? -1 : result;
  };
  const async = (...args: unknown[]) => {
    const callback = args.at(-1) as (error: unknown, result: number) => void;
    setImmediate(() => {
      callback(null, call(...args.slice(0, -1)));
      errno = 0; // as koffi's: another call's, once the callback has returned
    });
  };
  const func = () => Object.assign(call, { async });
  const koffi = { load: () => ({ func }), errno: () => errno, address: () => 4096n };
  return { made, load: async () => ({ default: koffi }) };
}

const linux = { platform: 'linux', arch: 'x64' };

t.test('machines we do not know are refused before koffi is loaded', async (t) => {
  const load = () => Promise.reject(new Error('loaded'));
  const refused = async (platform: string, arch: string, message: RegExp) => {
    await t.rejects(openSys(types, { platform, arch }, load), { kind: 'unsupported', message });
  };
  await refused('darwin', 'arm64', /need Linux, this is darwin/);
  await refused('linux', 's390x', /little-endian machine, this is s390x/);
  await refused('linux', 'ia32', /expected one of the machines x64, .*this is ia32/);
  await refused('linux', 'x64', /need the package koffi, which failed to load: loaded$/);
});

t.test('EINTR and EAGAIN: again, but not for ever, and not where a call has had an effect', async (t) => {
  const call = async (command: BpfCommand, results: readonly number[]) => {
    const { made, load } = fakeKoffi(results);
    const sys = await openSys(types, linux, load);
    const result = sys.bpf(command, new Attr(ATTR.elem, sys));
    const after = made.length;
    const later = await sys.bpfAsync(command, new Attr(ATTR.elem, sys));
    return { result, calls: after, later };
  };
  t.match(await call('MAP_LOOKUP_ELEM', [-E.EINTR, -E.EAGAIN, 0, -E.EINTR, 3]), { result: 0, calls: 3, later: 3 });
  t.match(await call('MAP_LOOKUP_ELEM', Array(12).fill(-E.EINTR)), { result: -E.EINTR, calls: 6, later: -E.EINTR });
  for (const command of ['MAP_LOOKUP_BATCH', 'MAP_UPDATE_BATCH', 'MAP_LOOKUP_AND_DELETE_ELEM'] as const) {
    t.match(await call(command, [-E.EINTR, -E.EPERM]), { result: -E.EINTR, calls: 1, later: -E.EPERM }, command);
    t.notOk(repeatable(command, E.EAGAIN, 1), command);
  }
  const { made, load } = fakeKoffi([5, -E.EINTR]);
  const sys = await openSys(types, linux, load);
  t.equal(sys.bpf('MAP_CREATE', new Attr(ATTR.create, sys)), 5);
  t.same(sys.openFds(), ['fd 5 from BPF_MAP_CREATE']);
  t.equal(sys.close(5), -E.EINTR, 'a number is freed by close, whatever it says');
  t.equal(made.length, 2);
  t.same(sys.openFds(), []);
});

t.test('errors of calls on the pool are their own', async (t) => {
  const { load } = fakeKoffi([-E.EINVAL, -E.EBADF]);
  const sys = await openSys(types, linux, load);
  const both = [new Attr(ATTR.elem, sys), new Attr(ATTR.elem, sys)].map((attr) =>
    sys.bpfAsync('MAP_LOOKUP_ELEM', attr),
  );
  t.same(await Promise.all(both), [-E.EINVAL, -E.EBADF]);
  const attr = new Attr(ATTR.elem, sys);
  const first = sys.bpfAsync('MAP_LOOKUP_ELEM', attr);
  await t.rejects(sys.bpfAsync('MAP_LOOKUP_ELEM', attr), /in use by another call/);
  await first;
});

t.test('attributes', async (t) => {
  const sys = new FakeSys();
  const attr = new Attr(ATTR.create, sys);
  attr
    .set('max_entries', 0xffff_ffff)
    .set('value_type_btf_obj_fd', -1)
    .set('map_extra', 1n << 63n);
  t.equal(attr.get('max_entries'), 0xffff_ffff);
  t.equal(attr.get('value_type_btf_obj_fd'), 0xffff_ffff);
  t.equal(attr.get64('map_extra'), 1n << 63n);
  attr.setBytes('map_name', Buffer.from('a longer one')).setBytes('map_name', Buffer.from('short'));
  t.same(attr.getBytes('map_name'), Buffer.from('short'.padEnd(16, '\0')));
  t.same(attr.clear().bytes, Buffer.alloc(96));
  const keys = Buffer.from(new ArrayBuffer(64));
  const batch = new Attr(ATTR.batch, sys).point('keys', keys, 8);
  t.equal(batch.get64('keys'), sys.address(keys) + 8n);
  t.same(batch.pointee('keys'), keys.subarray(8));
  t.equal(batch.point('keys', keys).pointee('keys'), keys);
  t.equal(batch.point('keys', undefined).get64('keys'), 0n);
  t.equal(batch.pointee('keys'), undefined);
});

t.test('what attributes point at lives as long as they', async (t) => {
  setFlagsFromString('--expose-gc');
  const gc = runInNewContext('gc') as () => void;
  const attr = new Attr(ATTR.batch, new FakeSys());
  const made = () => {
    const memory = new ArrayBuffer(4096);
    attr.point('keys', Buffer.from(memory));
    return new WeakRef(memory);
  };
  const memory = made();
  const collected = async () => {
    await new Promise((resolve) => setTimeout(resolve, 10));
    gc();
    return memory.deref() === undefined;
  };
  t.notOk(await collected());
  attr.point('keys', undefined);
  t.ok(await collected(), 'and no longer');
});

t.test('rule 1: cursors of any key size have room for what the kernel writes', async (t) => {
  for (const [key_size, want] of [
    [1, 4],
    [3, 4],
    [4, 4],
    [16, 16],
  ] as const) {
    const sys = new FakeSys();
    using map = fakeMap(sys, { key_size });
    sys.on('MAP_LOOKUP_BATCH', (attr) => {
      t.equal(attr.pointee('out_batch')?.length, want, `key_size ${key_size}`);
      (attr.pointee('out_batch') as Buffer).writeUInt32LE(300);
      attr.set('count', 1);
      return 0;
    });
    const cursor = map.cursor();
    const batch = map.batch(4);
    map.lookupBatch(cursor, batch);
    t.equal(sys.calls.at(-1)?.attr.get64('in_batch'), 0n, 'from the start');
    t.equal(cursor.position, 300);
    sys.on('MAP_LOOKUP_BATCH', (attr) => {
      t.equal((attr.pointee('in_batch') as Buffer).readUInt32LE(), 300, 'and on from there');
      attr.set('count', 0);
      return -E.ENOENT;
    });
    t.equal(map.lookupBatch(cursor, batch).end, true);
    t.equal(cursor.copy().position, 300);
    t.equal(map.cursor(17).position, 17);
  }
});

t.test('rule 2: a batch ends in three ways', async (t) => {
  const sys = new FakeSys();
  using map = fakeMap(sys);
  const answers = (count: number, result: number) => (attr: Attr) => {
    attr.set('count', count);
    return result;
  };
  for (const lookup of [
    async () => map.lookupBatch(map.cursor(), map.batch(8)),
    async () => map.lookupBatchAsync(map.cursor(), map.batch(8)),
  ]) {
    sys.on('MAP_LOOKUP_BATCH', answers(8, 0));
    t.same(await lookup(), { count: 8, end: false, error: undefined });
    sys.on('MAP_LOOKUP_BATCH', answers(8, -E.ENOENT));
    t.same(await lookup(), { count: 8, end: true, error: undefined }, 'the end, with items');
    sys.on('MAP_LOOKUP_BATCH', answers(0, -E.ENOENT));
    t.same(await lookup(), { count: 0, end: true, error: undefined });
  }

  sys.calls.length = 0;
  sys.on('MAP_LOOKUP_BATCH', answers(8, 0), answers(0, -E.ENOSPC), answers(0, -E.ENOSPC), answers(30, 0));
  const batch = map.batch(8);
  const cursor = map.cursor();
  map.lookupBatch(cursor, batch);
  const at = cursor.from;
  t.match(map.lookupBatch(cursor, batch), { count: 30, end: false });
  t.equal(batch.room, 32, 'it grew');
  t.ok(batch.keys.length === 32 * 4 && batch.values.length === 32 * 8);
  const [, first, second, third] = sys.calls;
  t.same(
    [first, second, third].map((call) => call?.bytes.readUInt32LE(ATTR.batch.fields.count.offset)),
    [8, 16, 32],
  );
  const inBatch = (bytes: Buffer | undefined) => bytes?.readBigUInt64LE(ATTR.batch.fields.in_batch.offset);
  t.equal(inBatch(third?.bytes), sys.address(at as Buffer), 'from the same place');
  t.equal(third?.attr.pointee('keys'), batch.keys);

  sys.on('MAP_LOOKUP_BATCH', answers(0, -E.ENOSPC));
  const { error, count, end } = map.lookupBatch(map.cursor(), map.batch(8));
  t.match({ error, count, end }, { count: 0, end: false, error: { errno: E.ENOSPC } }, 'but not without end');
  t.match(map.lookupBatch(map.cursor(), map.batch(8), 2), { error: { errno: E.ENOSPC } });
});

t.test('batches that are refused or cut short', async (t) => {
  const sys = new FakeSys();
  using map = fakeMap(sys);
  const batch = map.batch(8);
  // 524 and others leave count as it was passed in: it must not be taken for items.
  for (const errno of [E.ENOTSUPP, E.EPERM, E.EINVAL]) {
    sys.on('MAP_LOOKUP_BATCH', -errno).on('MAP_UPDATE_BATCH', -errno);
    t.match(map.lookupBatch(map.cursor(), batch), { count: 0, end: false, error: { errno } });
    t.match(await map.lookupBatchAsync(map.cursor(), batch), { count: 0, end: false, error: { errno } });
    t.match(map.updateBatch(batch, 8), { count: 0, end: false, error: { errno } });
    t.match(await map.updateBatchAsync(batch, 8), { count: 0, end: false, error: { errno } });
  }
  const partly = (count: number, errno: number) => (attr: Attr) => {
    attr.set('count', count);
    return -errno;
  };
  sys.on('MAP_UPDATE_BATCH', partly(5, E.E2BIG));
  const full = map.updateBatch(batch, 8);
  t.match(full, { count: 5, end: false, error: { errno: E.E2BIG, kind: 'io' } });
  t.equal(
    full.error?.message,
    'map 7 (fake): BPF_MAP_UPDATE_BATCH: E2BIG (it is full, or an index is not below max_entries; max_entries 100)',
  );
  sys.on('MAP_UPDATE_BATCH', 0);
  t.same(map.updateBatch(batch, 3, 5), { count: 3, end: true, error: undefined });
  const { attr } = sys.calls.at(-1) as (typeof sys.calls)[0];
  t.equal(attr.get64('keys'), sys.address(batch.keys) + 20n, 'goes on where it stopped');
  t.equal(attr.get64('values'), sys.address(batch.values) + 40n);

  // EINTR says that keys went away under the kernel's hands, not that a signal came.
  sys.on('MAP_LOOKUP_BATCH', partly(3, E.EINTR));
  const cursor = map.cursor();
  t.same(map.lookupBatch(cursor, batch), { count: 3, end: false, error: undefined });
  t.not(cursor.from, undefined, 'and on from there');
  sys.on('MAP_LOOKUP_BATCH', partly(0, E.EINTR), partly(0, E.EINTR), partly(2, E.ENOENT));
  t.same(map.lookupBatch(cursor, batch), { count: 2, end: true, error: undefined });
  sys.on('MAP_LOOKUP_BATCH', partly(0, E.EINTR));
  t.match(map.lookupBatch(cursor, batch), { count: 0, error: { errno: E.EINTR, message: /changes faster than/ } });
});

t.test('rule 3: info is asked for with zeroes, and no further than its pointers', async (t) => {
  const sys = new FakeSys();
  const seen: Buffer[] = [];
  sys.on('OBJ_GET_INFO_BY_FD', (attr) => {
    const info = attr.pointee('info') as Buffer;
    seen.push(Buffer.from(info));
    t.equal(attr.get('info_len'), 88);
    t.ok(info.length >= 88);
    info.fill(0xff);
    return 0;
  });
  const reader = new InfoReader(sys);
  reader.read(3, 'map');
  reader.read(3, 'map');
  t.same(seen, [Buffer.alloc(88), Buffer.alloc(88)]);
});

t.test('rule 4: file descriptor 0 is a file descriptor', async (t) => {
  const created = (spec: Partial<MapSpec>) => {
    const sys = new FakeSys();
    sys.on('MAP_CREATE', -E.EBADF);
    failure(t, () => BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 4, maxEntries: 1, ...spec }));
    return (sys.calls[0] as (typeof sys.calls)[0]).attr;
  };
  const none = created({});
  t.same([none.get('btf_fd'), none.get('btf_key_type_id'), none.get('btf_value_type_id')], [0, 0, 0]);
  const zero = created({ btf: { fd: 0, keyType: 2, valueType: 3 } });
  t.same([zero.get('btf_fd'), zero.get('btf_key_type_id'), zero.get('btf_value_type_id')], [0, 2, 3]);
});

t.test('rule 12: values of per-CPU maps are those of all possible CPUs', async (t) => {
  const sys = new (class extends FakeSys {
    override readonly cpus = 3;
  })();
  for (const row of types.all()) {
    using map = fakeMap(sys, { type: row.number, value_size: 12 });
    t.equal(map.valueStride, row.perCpu ? 48 : 12, row.name);
    t.equal(map.batch(5).values.length, 5 * map.valueStride);
  }
  // The layout of a type that is newer than bpfimg is not known: the kernel must have room for the largest.
  using map = fakeMap(sys, { type: 99, value_size: 12 });
  sys.on('MAP_LOOKUP_ELEM', (attr) => {
    t.equal(attr.pointee('value')?.length, 48);
    return 0;
  });
  t.equal(map.lookup(Buffer.alloc(4))?.length, 12);
  const refused = { count: 0, end: false, error: { errno: E.ENOTSUPP } };
  t.match(map.lookupBatch(map.cursor(), map.batch(4)), refused, 'and no batches at all');
  t.match(await map.lookupBatchAsync(map.cursor(), map.batch(4)), refused);
  t.match(map.updateBatch(map.batch(4), 4), refused);
  t.match(await map.updateBatchAsync(map.batch(4), 4), refused);
});

t.test('one item: answers are values, everything else an error', async (t) => {
  const sys = new FakeSys();
  const map = fakeMap(sys);
  const key = Buffer.from('00112233', 'hex');
  sys.on('MAP_LOOKUP_ELEM', -E.ENOENT).on('MAP_DELETE_ELEM', -E.ENOENT).on('MAP_GET_NEXT_KEY', -E.ENOENT);
  sys.on('MAP_LOOKUP_AND_DELETE_ELEM', -E.ENOENT);
  t.equal(map.lookup(key), undefined);
  t.equal(map.lookupAndDelete(key), undefined);
  t.equal(map.delete(key), false);
  t.equal(map.nextKey(key), undefined);
  t.equal(map.nextKey(undefined), undefined);
  t.equal(sys.calls.at(-1)?.attr.get64('key'), 0n, 'NULL asks for the first');
  sys.on('MAP_UPDATE_ELEM', -E.EEXIST);
  t.match(
    failure(t, () => map.update(key, Buffer.alloc(8), 1)),
    {
      kind: 'conflict',
      code: 'EEXIST',
      message: 'map 7 (fake): BPF_MAP_UPDATE_ELEM: EEXIST (the key exists already)',
    },
  );
  t.throws(() => map.lookup(Buffer.alloc(3)), /a key of 3 bytes, expected 4/);
  t.throws(() => map.update(key, Buffer.alloc(7)), /a value of 7 bytes, expected 8/);
  map.close();
  map.close();
  t.throws(() => map.lookup(key), /is closed/);
  t.same(sys.openFds(), []);
  using queue = fakeMap(sys, { type: 22, key_size: 0 });
  sys.on('MAP_LOOKUP_AND_DELETE_ELEM', (attr) => {
    t.equal(attr.get64('key'), 0n, 'no key is NULL, not an empty buffer');
    attr.pointee('value')?.fill(7);
    return 0;
  });
  t.same(queue.lookupAndDelete(undefined), new Uint8Array(8).fill(7));
});

t.test('closing waits for calls on the pool', async (t) => {
  const sys = new FakeSys();
  const map = fakeMap(sys);
  sys.hold = true;
  sys.on('MAP_LOOKUP_BATCH', 0).on('MAP_UPDATE_BATCH', 0);
  const [one, two] = [map.batch(4), map.batch(4)];
  const cursor = map.cursor();
  const reading = map.lookupBatchAsync(cursor, one);
  const writing = map.updateBatchAsync(two, 4);
  t.throws(() => map.lookupBatch(map.cursor(), one), /in use/);
  t.throws(() => map.lookupBatch(cursor, map.batch(1)), /in use/);
  t.throws(() => map.updateBatch(two, 1), /in use/);
  t.throws(() => one.grow(100), /in use/);
  map.close();
  t.equal(sys.openFds().length, 1, 'the number is still ours');
  sys.held[0]?.();
  t.match(await reading, { count: 4, end: false });
  t.equal(sys.openFds().length, 1);
  sys.held[1]?.();
  t.match(await writing, { count: 4, end: true });
  t.same(sys.openFds(), []);
  await t.rejects(map.lookupBatchAsync(map.cursor(), one), /is closed/);
});

t.test('batches and cursors belong to their map', async (t) => {
  const sys = new FakeSys();
  using map = fakeMap(sys);
  using other = fakeMap(sys, { id: 8, key_size: 16 });
  t.throws(() => map.lookupBatch(map.cursor(), other.batch(4)), /of another map/);
  t.throws(() => map.lookupBatch(other.cursor(), map.batch(4)), /of another map/);
  t.throws(() => map.updateBatch(other.batch(4), 1), /another map/);
  t.throws(() => map.updateBatch(map.batch(4), 3, 2), /items 2 to 5 of a batch of 4/);
  t.throws(() => map.lookupBatch(map.cursor(), map.batch(4), 5), /5 items at 0 of a batch of 4/);
  t.equal(map.batch().room, 100, 'no larger than the map');
  t.equal(fakeMapRoom(sys, { max_entries: 1e6 }), 4096);
  t.equal(fakeMapRoom(sys, { value_size: 1 << 20, max_entries: 1e6 }), 1);
});

function fakeMapRoom(sys: FakeSys, about: object): number {
  using map = fakeMap(sys, about);
  return map.batch().room;
}

t.test('nothing stays open when opening fails', async (t) => {
  const sys = new FakeSys();
  sys.on('MAP_GET_FD_BY_ID', () => sys.fd('id')).on('OBJ_GET_INFO_BY_FD', -E.EINVAL);
  t.match(failure(t, () => BpfMap.openById(sys, 5)).message, 'map 5: BPF_OBJ_GET_INFO_BY_FD: EINVAL');
  t.same(sys.openFds(), []);
  sys.on('MAP_GET_FD_BY_ID', -E.ENOENT, -E.EPERM);
  t.match(
    failure(t, () => BpfMap.openById(sys, 5)),
    {
      kind: 'notFound',
      message: 'map 5: BPF_MAP_GET_FD_BY_ID: ENOENT (no map has this id)',
    },
  );
  t.match(failure(t, () => BpfMap.openById(sys, 5)).message, 'EPERM (needs the capability CAP_SYS_ADMIN)');
  t.match(
    failure(t, () => BpfMap.fromProcess(sys, 5, 3)),
    {
      kind: 'unsupported',
      message: 'process 5, fd 3: pidfd_open: ENOSYS (needs Linux 5.3)',
    },
  );
});

t.test('MAP_CREATE that fails is explained', async (t) => {
  const spec = { type: 1, keySize: 4, valueSize: 8, maxEntries: 10 };
  const explained = (errno: number, more: Partial<MapSpec>) => {
    const sys = new FakeSys().on('MAP_CREATE', -errno);
    return failure(t, () => BpfMap.create(sys, { ...spec, ...more })).message;
  };
  const cases: readonly [errno: number, more: Partial<MapSpec>, message: string][] = [
    [
      E.EPERM,
      { name: 'x' },
      'new hash map (x): BPF_MAP_CREATE: EPERM (needs the capability CAP_BPF, before Linux 5.11 also room under RLIMIT_MEMLOCK (ulimit -l))',
    ],
    [
      E.EPERM,
      { type: 14, valueSize: 4 },
      'EPERM (needs the capabilities CAP_BPF and CAP_NET_ADMIN, before Linux 5.11 ',
    ],
    [E.EINVAL, { maxEntries: 0 }, 'EINVAL (max_entries 0, expected 1 to 134217728)'],
    [E.EINVAL, { type: 2, keySize: 8, flags: 1 }, '(key_size 8, expected 4; map_flags BPF_F_NO_PREALLOC not accepted)'],
    [E.EINVAL, { type: 11, keySize: 8 }, '(map_flags lack BPF_F_NO_PREALLOC)'],
    [E.EINVAL, { flags: 0x180 }, '(map_flags BPF_F_RDONLY_PROG|BPF_F_WRONLY_PROG exclude each other)'],
    [E.EINVAL, { flags: 0x80000000 }, '(map_flags 0x80000000 not accepted)'],
    [E.EINVAL, { extra: 5n }, '(map_extra 0x5, expected 0)'],
    [
      E.EINVAL,
      { type: 27, keySize: 0, valueSize: 0, maxEntries: 5000 },
      'max_entries 5000, expected a power of two from 4096 to 2147483648',
    ],
    [E.EINVAL, { type: 12, valueSize: 4 }, '(no inner map as a template)'],
    [E.EINVAL, { type: 29, maxEntries: 0, flags: 1 }, '(no BTF, which this type needs)'],
    [E.ENOTSUPP, { type: 4, valueSize: 4, btf: { fd: 3, keyType: 1, valueType: 1 } }, '(BTF, which this type does not'],
    [
      E.EINVAL,
      { btf: { fd: 3, keyType: 1, valueType: 1 } },
      '(its BTF is not a BTF object, or does not fit its sizes)',
    ],
    [
      E.EINVAL,
      { type: 29, maxEntries: 0, flags: 1, btf: { fd: 3, keyType: 1, valueType: 1 }, since: '5.11' },
      'does not fit its sizes; or this kernel lacks task_storage, which came with Linux 5.11)',
    ],
    [E.EINVAL, { name: 'a b' }, '(byte 0x20 is not allowed in the name)'],
    [E.EINVAL, { name: 'sixteen_letters_' }, '(a name of 16 bytes, expected at most 15)'],
    [E.EINVAL, { flags: 4, numaNode: 9 }, '(NUMA node 9 may not exist)'],
    [E.EINVAL, { type: 99 }, '(map_type 99 is unknown to bpfimg, and maybe to this kernel)'],
    [
      E.EINVAL,
      { type: 34, valueSize: 16, since: '6.19', name: 'jumps' },
      '(perhaps this kernel lacks insn_array, which came with Linux 6.19)',
    ],
    [
      E.EINVAL,
      { since: '3.19', name: 'flows' },
      '(perhaps this kernel lacks hash, which came with Linux 3.19, or map_name, which came with Linux 4.15)',
    ],
    [E.EINVAL, { name: 'flows' }, '(perhaps this kernel lacks hash, or map_name, which came with Linux 4.15)'],
    [E.E2BIG, { valueSize: 4_194_254 }, '(key_size and value_size together 4194258, expected at most 4194255)'],
    [E.E2BIG, { type: 16, valueSize: 4, maxEntries: 1000 }, 'E2BIG (key_size, value_size or max_entries is too large)'],
    [E.ENOMEM, {}, 'ENOMEM (not enough memory, or a memory cgroup reached its limit)'],
    [E.EMFILE, {}, 'EMFILE (too many open files in this process, see ulimit -n)'],
  ];
  for (const [errno, more, message] of cases) t.ok(explained(errno, more).includes(message), explained(errno, more));
  const asked = {
    ...spec,
    flags: 0,
    extra: 0n,
    ifindex: 0,
    name: Buffer.from('flöws.1', 'latin1'),
    btf: false,
    inner: false,
  };
  t.same(breaches(asked, types.row(asked.type)), [], 'Latin-1 letters are letters');
});

t.test('errno texts', async (t) => {
  t.equal(errnoName(524), 'ENOTSUPP');
  t.equal(errnoName(95), 'EOPNOTSUPP');
  t.equal(errnoName(11), 'EAGAIN');
  t.equal(errnoName(999), 'errno 999');
  t.equal(
    causeOf('BPF_MAP_FREEZE', 524),
    'maps with locks, timers or kernel pointers in their values cannot be frozen',
  );
  t.equal(causeOf('BPF_OTHER', 999), 'the kernel gives no reason');
  const error = new KernelError('map 1', 'BPF_MAP_LOOKUP_BATCH', 524);
  t.match(error, { kind: 'unsupported', code: 'ENOTSUPP', errno: 524, exitCode: 1 });
  t.equal(error.message, 'map 1: BPF_MAP_LOOKUP_BATCH: ENOTSUPP (not supported for maps of this type)');
});

t.test('reading files and asking sockets: errors are answers', async (t) => {
  const sys = await openSys(types);
  const fd = fs.openSync(path.join(t.testdir({ file: 'abcdef' }), 'file'), 'r');
  t.teardown(() => fs.closeSync(fd));
  const bytes = Buffer.alloc(4);
  t.same([sys.pread(fd, bytes, 1n), bytes.toString()], [4, 'bcde']);
  t.equal(sys.pread(fd, bytes, 5n), 1);
  t.equal(sys.pread(-1, bytes, 0n), -E.EBADF);
  t.equal(sys.getsockopt(fd, 57, bytes), -constants.errno.ENOTSOCK);
});

t.test('a scripted kernel is a whole Sys', async (t) => {
  const sys: Sys = new FakeSys();
  t.throws(() => sys.bpf('MAP_FREEZE', new Attr(ATTR.freeze, sys)), /no reply for BPF_MAP_FREEZE/);
  t.throws(() => sys.close(5), /closed twice/);
});
