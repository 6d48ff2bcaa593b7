/** `replay --into`: every mode and type against a Map in memory, on the real kernel. */
import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import t from 'tap';
import { viewOf } from '../src/bytes.js';
import { loadBtf } from '../src/kernel/btf.js';
import { BpfMap, type MapSpec } from '../src/kernel/map.js';
import { type Attr, ERRNO, openSys } from '../src/kernel/sys.js';
import { KeyHash } from '../src/keyhash.js';
import type { CaptureWork, IntoCounts, IntoMode, IntoWork } from '../src/maptype.js';
import { replayInto } from '../src/replay/into.js';
import { KeyTable } from '../src/replay/keytable.js';
import { mergeItems } from '../src/replay/merge.js';
import { type PlannedMap, planMaps } from '../src/replay/plan.js';
import { summing } from '../src/replay/sum.js';
import { mapsOf, openSource } from '../src/source/source.js';
import { BtfWriter } from './helpers/btf-writer.js';
import { BPFIMG, contents } from './helpers/command.js';
import { features, lacking } from './helpers/features.js';
import type { Item } from './helpers/images.js';
import { bpffs, fdCount, HolderProcess, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { load, patience } from './helpers/needs.js';
import { cli, dumpOf, hexOf, type MapImage, MeddledSys, readBack, sourceOf } from './helpers/replay.js';
import { types } from './helpers/types.js';

t.setTimeout(patience(120_000));

const skip = await skipWithoutMaps();
if (skip !== false) {
  t.plan(0, skip);
  process.exit();
}
const sys = await openSys(types);
const has = await features();
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-into-'));
t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));

const MODES: readonly IntoMode[] = ['upsert', 'insert', 'update', 'sync', 'sum'];
const HASH = { type: 1, key: 4, value: 8, max: 64 };

interface Kind {
  readonly name: string;
  readonly type: number;
  readonly key: number;
  readonly value: number;
  readonly flags?: number;
  readonly perCpu?: true;
  readonly dense?: true;
}

const KINDS: readonly Kind[] = [
  { name: 'hash', type: 1, key: 5, value: 8 },
  { name: 'hash, not preallocated', type: 1, key: 8, value: 16, flags: 1 },
  { name: 'lru_hash', type: 9, key: 4, value: 8 },
  { name: 'percpu_hash', type: 5, key: 4, value: 8, perCpu: true },
  { name: 'lru_percpu_hash', type: 10, key: 4, value: 16, perCpu: true },
  { name: 'array', type: 2, key: 4, value: 8, dense: true },
  { name: 'array that can be mapped', type: 2, key: 4, value: 24, flags: 0x400, dense: true },
  { name: 'percpu_array', type: 6, key: 4, value: 8, perCpu: true, dense: true },
  { name: 'lpm_trie', type: 11, key: 8, value: 8, flags: 1 },
];

/** Whether a small map of this kind may lose items long before it is full. */
const evictsEarly = ({ type }: Kind) => (type === 9 || type === 10) && !has.smallLru;

const stride = ({ value, perCpu }: Kind) => (perCpu ? Math.ceil(value / 8) * 8 * sys.cpus : value);

/** Key number `n`; of a trie, a prefix. */
function keyOf({ key, type }: Kind, n: number): Buffer {
  const bytes = Buffer.alloc(key);
  if (type === 11) {
    bytes.writeUInt32LE(8 + (n % 25));
    bytes[4] = n;
    return bytes;
  }
  bytes.writeUInt32LE(n);
  return bytes;
}

function valueFor(kind: Kind, n: number): Buffer {
  const bytes = Buffer.alloc(stride(kind));
  for (let at = 0; at < bytes.length; at += 8) bytes.writeUInt32LE(n === 0 ? 0 : n * 1000 + at, at);
  return bytes;
}

interface Counts {
  inserted: number;
  updated: number;
  unchanged: number;
  deleted: number;
  dropped: Record<string, number>;
}

/** What should become of `before`. */
function expected(kind: Kind, mode: IntoMode, before: ReadonlyMap<string, Buffer>, source: readonly Item[], max = 64) {
  const after = new Map(before);
  const counts: Counts = { inserted: 0, updated: 0, unchanged: 0, deleted: 0, dropped: {} };
  const drop = (why: string) => {
    counts.dropped[why] = (counts.dropped[why] ?? 0) + 1;
  };
  const items = new Map(source.map(([key, value]) => [hexOf(key), Buffer.from(value)]));
  if (mode === 'sync') {
    for (const [key, value] of before) {
      if (items.has(key) || (kind.dense && value.every((byte) => byte === 0))) continue;
      counts.deleted++;
      if (kind.dense) after.set(key, Buffer.alloc(stride(kind)));
      else after.delete(key);
    }
  }
  for (const [key, value] of items) {
    const was = after.get(key);
    if (was === undefined && kind.dense) {
      if (value.some((byte) => byte !== 0)) drop('index out of range');
      else counts.unchanged++;
    } else if (was === undefined) {
      if (mode === 'update') drop('not in the map');
      else if (after.size >= max) drop('the map is full');
      else {
        counts.inserted++;
        after.set(key, value);
      }
    } else if (mode === 'insert') counts.unchanged++;
    else {
      const next = Buffer.from(value);
      if (mode === 'sum') {
        for (let at = 0; at < next.length; at += 8)
          next.writeBigUInt64LE((was.readBigUInt64LE(at) + value.readBigUInt64LE(at)) & 0xffff_ffff_ffff_ffffn, at);
      }
      if (next.equals(was)) counts.unchanged++;
      else counts.updated++;
      after.set(key, next);
    }
  }
  return { after: Object.fromEntries([...after].map(([key, value]) => [key, hexOf(value)])), counts };
}

function make(spec: Partial<MapSpec> = {}, items: readonly Item[] = []): BpfMap {
  const map = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 8, maxEntries: 64, name: 'm', ...spec });
  for (const [key, value] of items) map.update(key, value);
  return map;
}

function makeKind(kind: Kind, items: readonly Item[], max = 64): BpfMap {
  return make(
    { type: kind.type, keySize: kind.key, valueSize: kind.value, maxEntries: max, flags: kind.flags ?? 0 },
    items,
  );
}

function dumpKind(kind: Kind, items: readonly Item[], more: Partial<MapImage> = {}): string {
  const { type, key, value, flags = 0 } = kind;
  return dumpOf(folder, { id: 7, type, key, value, flags, max: 64, items, ...more });
}

async function into(dump: string, target: string, ...args: string[]) {
  const { status, stdout, stderr } = await cli(['replay', dump, '--into', target, '--json', ...args]);
  const maps = stdout === '' ? [] : (JSON.parse(stdout).maps as (Counts & { report: string; into_id: number })[]);
  return { status, stderr, maps };
}

function countsOf(row: Counts | undefined): Counts | undefined {
  if (row === undefined) return undefined;
  const { inserted, updated, unchanged, deleted, dropped } = row;
  return { inserted, updated, unchanged, deleted, dropped };
}

const here = (map: BpfMap) =>
  new Map(Object.entries(readBack(map)).map(([key, value]) => [key, Buffer.from(value, 'hex')]));

for (const kind of KINDS) {
  t.test(`${kind.name}: every mode`, async (t) => {
    const some = (from: number, to: number, salt: number): Item[] =>
      Array.from({ length: to - from }, (_, i) => [keyOf(kind, from + i), valueFor(kind, (from + i) * salt)]);
    for (const mode of MODES) {
      // Keys that only the map has, that both have with the same and with other values, and that only the source has.
      const old = [...some(0, 20, 1)];
      const source = [...some(10, 15, 1), ...some(15, 40, 3), ...some(38, 39, 5), ...some(12, 13, 7)];
      const dump = dumpKind(kind, source);
      const map = makeKind(kind, old, evictsEarly(kind) ? 4096 : 64);
      const wanted = expected(kind, mode, here(map), source);
      const dry = await into(dump, `id:${map.id}`, '--mode', mode, '--dry-run');
      t.same(countsOf(dry.maps[0]), wanted.counts, `${mode}: a dry run counts the same: ${dry.stderr}`);
      const verify = mode === 'sum' ? [] : ['--verify'];
      const ran = await into(dump, `id:${map.id}`, '--mode', mode, ...verify);
      t.same([ran.status, ran.stderr], [0, ''], mode);
      t.same(countsOf(ran.maps[0]), wanted.counts, `${mode}: counts`);
      t.same(readBack(map), wanted.after, `${mode}: what the map has`);
      map.close();
    }
    const empty = makeKind(kind, some(0, 20, 1), evictsEarly(kind) ? 4096 : 64);
    const before = readBack(empty);
    for (const mode of ['upsert', 'sum'] as const) {
      const ran = await into(dumpKind(kind, []), `id:${empty.id}`, '--mode', mode);
      t.same([ran.status, readBack(empty)], [0, before], `${mode} of nothing`);
    }
    empty.close();
  });
}

t.test('a map that is full: items are dropped, and said', async (t) => {
  for (const kind of KINDS.filter(({ dense, type }) => !dense && type !== 9 && type !== 10)) {
    const some = (from: number, to: number): Item[] =>
      Array.from({ length: to - from }, (_, i) => [keyOf(kind, from + i), valueFor(kind, from + i + 1)]);
    const map = makeKind(kind, some(0, 60), 64);
    const source = some(50, 80);
    const dump = dumpKind(kind, source);
    const { counts } = expected(kind, 'upsert', here(map), source);
    t.same(counts.dropped, { 'the map is full': 16 });
    const dry = await into(dump, `id:${map.id}`, '--dry-run');
    t.same(countsOf(dry.maps[0]), counts, `${kind.name}: dry`);
    const ran = await into(dump, `id:${map.id}`);
    t.same(countsOf(ran.maps[0]), counts, kind.name);
    t.equal(ran.status, 1);
    t.match(ran.maps[0]?.report, 'partial: 16 items dropped: the map is full');
    t.equal(Object.keys(readBack(map)).length, 64);
    // Room is made first.
    const sync = await into(dump, `id:${map.id}`, '--mode', 'sync', '--force');
    t.equal(sync.status, 0, sync.stderr);
    t.equal(Object.keys(readBack(map)).length, 30);
    map.close();
  }
});

t.test('arrays: an index out of range', async (t) => {
  for (const kind of KINDS.filter(({ dense }) => dense)) {
    const map = makeKind(kind, [], 8);
    const source: Item[] = [0, 3, 9, 10].map((n) => [keyOf(kind, n), valueFor(kind, n === 10 ? 0 : n)]);
    const ran = await into(dumpKind(kind, source), `id:${map.id}`);
    t.same(
      countsOf(ran.maps[0]),
      expected(kind, 'upsert', here(map), source).counts && {
        inserted: 0,
        updated: 1,
        unchanged: 2,
        deleted: 0,
        dropped: { 'index out of range': 1 },
      },
    );
    t.equal(ran.status, 1);
    map.close();
  }
});

t.test('LRU: what fits is there, and what the kernel evicts is counted', async (t) => {
  const kind = KINDS.find(({ name }) => name === 'lru_hash') as Kind;
  const some = (from: number, to: number): Item[] =>
    Array.from({ length: to - from }, (_, i) => [keyOf(kind, from + i), valueFor(kind, from + i + 1)]);
  const roomy = makeKind(kind, some(0, 100), 4096);
  const ran = await into(dumpKind(kind, some(50, 1500)), `id:${roomy.id}`, '--verify');
  t.same(
    [ran.status, countsOf(ran.maps[0])],
    [0, { inserted: 1400, updated: 0, unchanged: 50, deleted: 0, dropped: {} }],
  );
  t.equal(Object.keys(readBack(roomy)).length, 1500);
  roomy.close();
  // Not all items would fit into the share of one.
  const count = 1500 * sys.cpus;
  const shares = make({ type: 9, maxEntries: 2000 * sys.cpus, flags: 2 });
  const shared = await into(dumpKind({ ...kind, flags: 2 }, some(0, count)), `id:${shares.id}`);
  t.same([shared.status, shared.maps[0]?.inserted], [0, count], 'each CPU has its share');
  shares.close();
  const tight = makeKind(kind, some(0, 1000), 1024);
  const held = Object.keys(readBack(tight)).length;
  const full = await into(dumpKind(kind, some(5000, 7000)), `id:${tight.id}`);
  const after = Object.keys(readBack(tight)).length;
  t.equal(full.maps[0]?.inserted, 2000);
  t.same(full.maps[0]?.dropped, { 'evicted by the kernel to make room': held + 2000 - after });
  tight.close();
});

t.test('many items: several writers, several batches, the last of duplicates counts', async (t) => {
  const kind = KINDS[1] as Kind;
  const [distinct, most] = [load(50_000), load(60_000)];
  const source: Item[] = Array.from({ length: most }, (_, i) => [keyOf(kind, i % distinct), valueFor(kind, i + 1)]);
  const old: Item[] = Array.from({ length: load(20_000) }, (_, i) => [keyOf(kind, i * 5), valueFor(kind, i * 5 + 1)]);
  const dump = dumpKind(kind, source, { max: 100_000 });
  for (const mode of ['upsert', 'sync', 'sum'] as const) {
    for (const before of [old, []]) {
      const map = makeKind(kind, before, 100_000);
      const wanted = expected(kind, mode, here(map), source, 100_000);
      const ran = await into(dump, `id:${map.id}`, '--mode', mode);
      t.same([ran.status, countsOf(ran.maps[0])], [0, wanted.counts], mode);
      t.same(readBack(map), wanted.after);
      map.close();
    }
  }
});

t.test('more keys than are looked at in one go', async (t) => {
  const kind = KINDS[1] as Kind;
  const source: Item[] = Array.from({ length: 3000 }, (_, i) => [keyOf(kind, i % 2500), valueFor(kind, i + 1)]);
  const old: Item[] = Array.from({ length: 2000 }, (_, i) => [keyOf(kind, 1000 + i), valueFor(kind, 1001 + i)]);
  for (const mode of MODES) {
    for (const dry of [true, false]) {
      for (const max of [10_000, 2600]) {
        const map = makeKind(kind, old, max);
        const wanted = expected(kind, mode, here(map), source, max);
        const counts: IntoCounts = { inserted: 0, updated: 0, unchanged: 0, deleted: 0, dropped: new Map() };
        const work: IntoWork = {
          type: types.get(1),
          subject: 'm',
          mode,
          dry,
          counts,
          ignored: [],
          add: summing(map, undefined),
          progress() {},
          check() {},
          read: async (sink) => {
            await types.plugin(1).capture?.(map, sink, { type: types.get(1), progress() {} } as unknown as CaptureWork);
          },
          fresh: async () => undefined,
          reuse: async () => false,
        };
        await mergeItems(map, sourceOf(source, kind.key, kind.value), work, 256);
        t.same(
          { ...counts, dropped: Object.fromEntries(counts.dropped) },
          wanted.counts,
          `${mode}, dry: ${dry}, ${max}`,
        );
        if (max === 10_000 && !dry) t.same(readBack(map), wanted.after);
        map.close();
      }
    }
  }
});

t.test('a table of keys finds each one again, even if there are more than was thought', async (t) => {
  const keys = Buffer.alloc(4000, 0).map((_, i) => (i % 4 < 2 ? (i >>> 2) >>> (8 * (i % 4)) : 0));
  for (const few of [1, 300, 999, 1000, 5000]) {
    const table = new KeyTable(new KeyHash(), { keySize: 4, type: types.get(1), most: 1000, few });
    for (const [all, state] of [[viewOf(keys), false] as const, [viewOf(keys), true] as const]) {
      let right = 0;
      for (let i = 0; i < 1000; i++) {
        // In no order, as well.
        const slot = table.find(all, (i * 389) % 1000);
        if (table.isDone(slot) === state) right++;
        table.setDone(slot);
      }
      t.same([right, table.size], [1000, 1000], `${few}`);
    }
  }
});

t.test('per-CPU values of another number of CPUs', async (t) => {
  const kind = KINDS.find(({ name }) => name === 'percpu_hash') as Kind;
  const wide = (n: number) => {
    const bytes = Buffer.alloc(8 * (sys.cpus + 1));
    for (let cpu = 0; cpu <= sys.cpus; cpu++) bytes.writeUInt32LE(n + cpu, 8 * cpu);
    return bytes;
  };
  const map = makeKind(kind, [[keyOf(kind, 1), valueFor(kind, 1)]]);
  const dump = dumpKind(kind, [[keyOf(kind, 1), wide(10)]]);
  const refused = await into(dump, `id:${map.id}`);
  t.equal(refused.status, 1);
  t.match(refused.stderr, `--percpu first, sum or spread`);
  const before = here(map).get('01000000') as Buffer;
  const ran = await into(dump, `id:${map.id}`, '--percpu', 'sum', '--mode', 'sum');
  t.equal(ran.status, 0, ran.stderr);
  let total = 0n;
  for (let cpu = 0; cpu <= sys.cpus; cpu++) total += BigInt(10 + cpu);
  const after = here(map).get('01000000') as Buffer;
  t.equal(after.readBigUInt64LE(0), before.readBigUInt64LE(0) + total);
  t.same(after.subarray(8), before.subarray(8));
  map.close();
});

t.test('sync asks before it deletes more than it puts', async (t) => {
  for (const kind of [KINDS[0], KINDS[5]] as Kind[]) {
    const some = (from: number, to: number): Item[] =>
      Array.from({ length: to - from }, (_, i) => [keyOf(kind, from + i), valueFor(kind, from + i + 1)]);
    const map = makeKind(kind, some(0, 20));
    const before = readBack(map);
    const dump = dumpKind(kind, some(0, 5));
    for (const more of [[], ['--dry-run']]) {
      const refused = await into(dump, `id:${map.id}`, '--mode', 'sync', ...more);
      t.equal(refused.status, 1);
      t.match(refused.stderr, /--mode sync would delete 15 items of map \d+ \(m\) and put 5; --force does that/);
    }
    t.same(readBack(map), before, 'nothing was written');
    const ran = await into(dump, `id:${map.id}`, '--mode', 'sync', '--force');
    t.same([ran.status, ran.maps[0]?.deleted, ran.maps[0]?.unchanged], [0, 15, 5]);
    map.close();
  }
});

t.test('sum: counters of each size, and integer members where there are types', async (t) => {
  for (const size of [1, 2, 4, 8, 12]) {
    const map = make({ valueSize: size }, [[u32(1), Buffer.alloc(size, 0xff)]]);
    const one = Buffer.alloc(size);
    one[0] = 2;
    const ran = await into(
      dumpOf(folder, { id: 7, ...HASH, value: size, items: [[u32(1), one]] }),
      `id:${map.id}`,
      '--mode',
      'sum',
    );
    t.equal(ran.status, 0, ran.stderr);
    const wanted = Buffer.alloc(size, size === 12 ? 0xff : 0);
    if (size === 12) wanted.fill(0, 0, 4);
    wanted[0] = 1;
    t.same(readBack(map), { '01000000': hexOf(wanted) }, `${size} bytes`);
    map.close();
  }
  const odd = make({ valueSize: 7 });
  const refused = await into(dumpOf(folder, { id: 7, ...HASH, value: 7, items: [] }), `id:${odd.id}`, '--mode', 'sum');
  t.match(refused.stderr, 'its values have 7 bytes and no types, so which of them are numbers is unknown');
  odd.close();

  const writer = new BtfWriter();
  const [int64, int16, char] = [writer.int('__u64', 8), writer.int('__u16', 2), writer.int('char', 1)];
  const text = writer.array(char, 4);
  const pair = writer.array(int16, 2);
  const port = writer.typedef('__be16', int16);
  const value = writer.struct('stats', 20, [
    { name: 'packets', type: int64, at: 0 },
    { name: 'name', type: text, at: 64 },
    { name: 'sizes', type: pair, at: 96 },
    { name: 'port', type: port, at: 128 },
  ]);
  const keyType = writer.int('__u32', 4);
  const fd = loadBtf(sys, writer.bytes());
  const map = make({ valueSize: 20, btf: { fd, keyType, valueType: value } });
  sys.close(fd);
  const bytes = (packets: number, name: string, sizes: number[], port: number) => {
    const one = Buffer.alloc(20);
    one.writeBigUInt64LE(BigInt(packets));
    one.write(name, 8);
    for (const [i, size] of sizes.entries()) one.writeUInt16LE(size, 12 + 2 * i);
    one.writeUInt16LE(port, 16);
    return one;
  };
  map.update(u32(1), bytes(10, 'old', [1, 0xffff], 80));
  const source: Item[] = [
    [u32(1), bytes(5, 'new', [2, 2], 443)],
    [u32(2), bytes(7, 'two', [3, 3], 22)],
  ];
  const ran = await into(dumpOf(folder, { id: 7, ...HASH, value: 20, items: source }), `id:${map.id}`, '--mode', 'sum');
  t.equal(ran.status, 0, ran.stderr);
  t.same(readBack(map), {
    '01000000': hexOf(bytes(15, 'old', [3, 1], 80)),
    '02000000': hexOf(bytes(7, 'two', [3, 3], 22)),
  });
  map.close();
});

t.test('queues and stacks get their items behind, or on top, in order', async (t) => {
  for (const [type, popped] of [
    [22, [1, 2, 11, 12, 13]],
    [23, [11, 12, 13, 2, 1]],
  ] as const) {
    const map = make({ type, keySize: 0, valueSize: 4, maxEntries: 5 });
    for (const n of [1, 2]) map.update(undefined, u32(n));
    const items: Item[] = [11, 12, 13].map((n) => [Buffer.alloc(0), u32(n)]);
    const dump = dumpOf(folder, { id: 7, type, key: 0, value: 4, max: 5, items });
    const sync = await into(dump, `id:${map.id}`, '--mode', 'sync');
    t.match(sync.stderr, /has no keys, so --mode sync has no meaning/);
    const ran = await into(dump, `id:${map.id}`);
    t.same([ran.status, ran.maps[0]?.inserted], [0, 3], ran.stderr);
    const full = await into(dump, `id:${map.id}`);
    t.same([full.status, full.maps[0]?.dropped], [1, { 'the map is full': 3 }]);
    const all = [];
    for (let one = map.lookupAndDelete(undefined); one !== undefined; one = map.lookupAndDelete(undefined)) {
      all.push(Buffer.from(one).readUInt32LE());
    }
    t.same(all, popped);
    map.close();
  }
});

t.test('a Bloom filter gets elements', async (t) => {
  const bloom = { type: 30, keySize: 0, valueSize: 4, maxEntries: 100, name: 'm' };
  const lacks = lacking(sys, bloom);
  if (lacks !== undefined) {
    t.match(lacks, 'this kernel lacks bloom_filter');
    return;
  }
  const map = make(bloom);
  map.update(undefined, u32(1));
  const items: Item[] = [1, 2].map((n) => [Buffer.alloc(0), u32(n)]);
  const dump = dumpOf(folder, { id: 7, type: 30, key: 0, value: 4, items });
  const ran = await into(dump, `id:${map.id}`);
  t.same(countsOf(ran.maps[0]), { inserted: 1, updated: 0, unchanged: 1, deleted: 0, dropped: {} }, ran.stderr);
  map.valueRoom.set(u32(2));
  t.not(map.lookup(undefined, 0, map.valueRoom), undefined);
  map.close();
});

t.test('maps of maps: inner maps that fit stay, others are exchanged', async (t) => {
  for (const type of [12, 13]) {
    const inner = (max: number, ...items: Item[]) => make({ type: 1, maxEntries: max, name: 'in' }, items);
    const [fits, other] = [inner(16, [u32(9), Buffer.alloc(8, 9)]), inner(32)];
    const map = make({ type, valueSize: 4, maxEntries: 8, inner: fits, name: 'outer' });
    const fdOf = (one: BpfMap) => u32(one.fd);
    map.update(u32(0), fdOf(fits));
    map.update(u32(1), fdOf(other));
    map.update(u32(5), fdOf(other));
    const value = (n: number) => Buffer.alloc(8, n);
    const dump = dumpOf(
      folder,
      { id: 20, name: 'outer', type, key: 4, value: 4, max: 8, items: [0, 1, 2].map((n) => [u32(n), u32(10 + n)]) },
      ...[0, 1, 2].map((n) => ({ id: 10 + n, name: 'in', items: [[u32(n), value(n + 1)]] as Item[] })),
    );
    const innerAt = (n: number) => {
      const id = map.lookup(u32(n));
      return id === undefined ? undefined : BpfMap.openById(sys, Buffer.from(id).readUInt32LE());
    };
    const ids = () =>
      [0, 1, 2, 5].map((n) => {
        const one = innerAt(n);
        one?.close();
        return one?.id;
      });
    const before = ids();
    const dry = await into(dump, `id:${map.id}`, '--dry-run');
    t.same(ids(), before, 'a dry run exchanges nothing');
    const ran = await into(dump, `id:${map.id}`);
    t.equal(ran.status, 0, ran.stderr);
    t.same(ran.maps.map(countsOf), dry.maps.map(countsOf));
    t.same(countsOf(ran.maps[0]), { inserted: 1, updated: 1, unchanged: 1, deleted: 0, dropped: {} });
    const after = ids();
    t.same([after[0], after[3]], [before[0], before[3]], 'one that fits stays');
    t.not(after[1], before[1]);
    t.same(readBack(fits), { '09000000': hexOf(value(9)), '00000000': hexOf(value(1)) });
    for (const n of [1, 2]) {
      const one = innerAt(n);
      t.same(one && readBack(one), { [hexOf(u32(n))]: hexOf(value(n + 1)) });
      one?.close();
    }
    const sync = await into(dump, `id:${map.id}`, '--mode', 'sync', '--verify');
    t.equal(sync.status, 0, sync.stderr);
    t.equal(ids()[3], undefined, 'sync removes what the source does not have');
    t.same(readBack(fits), { '00000000': hexOf(value(1)) }, 'within inner maps too');
    for (const one of [map, fits, other]) one.close();
  }
});

t.test('what cannot be written is refused before the first write', async (t) => {
  const items: Item[] = [[u32(1), Buffer.alloc(8, 1)]];
  const good = make({ name: 'a_good' });
  const pins = bpffs();
  t.teardown(() => pins.remove());
  const good2 = { id: 1, name: 'a_good', ...HASH, items };
  const bad: [string, BpfMap, Partial<MapImage>, RegExp][] = [
    [
      'value_size',
      make({ name: 'bad', valueSize: 16 }),
      {},
      /its values have 8 bytes, those there 16, .*--extend-zero/,
    ],
    ['key_size', make({ name: 'bad', keySize: 8 }), {}, /its keys have 4 bytes, those there 8/],
    ['type', make({ name: 'bad', type: 2 }), {}, /items of a map of type hash mean nothing in one of type array/],
    [
      'ring',
      make({ name: 'bad', type: 27, keySize: 0, valueSize: 0, maxEntries: 4096 }),
      {},
      /the items of a map of type hash mean nothing in one of type ringbuf/,
    ],
    ['storage', make({ name: 'bad', type: 7, valueSize: 8 }), {}, /mean nothing in one of type stack_trace/],
  ];
  const frozen = make({ name: 'bad' });
  frozen.freeze();
  bad.push(['frozen', frozen, {}, /map \d+ \(bad\) is frozen/]);
  for (const [what, map, image, message] of bad) {
    const mine = fs.mkdtempSync(path.join(pins.folder, 'x'));
    good.pin(path.join(mine, 'a_good'));
    map.pin(path.join(mine, 'bad'));
    const dump = dumpOf(folder, good2, { id: 2, name: 'bad', ...HASH, items, ...image });
    const ran = await into(dump, mine);
    t.same([ran.status, readBack(good)], [1, {}], what);
    t.match(ran.stderr, message, what);
    fs.rmSync(mine, { recursive: true });
    map.close();
  }
  const given = await openSource(dumpOf(folder, { id: 1, ...HASH, items }));
  const dump = await mapsOf(given);
  const [plan] = await planMaps(dump, dump.maps, types, { cpus: sys.cpus });
  const readOnly = BpfMap.openById(sys, good.id, 'ro');
  const pair = { plan: plan as PlannedMap, map: readOnly };
  await t.rejects(replayInto(sys, [pair], [], { mode: 'upsert' }), { message: /\(a_good\) is read-only/ });
  readOnly.close();
  dump.close();
  given.close();
  // BPF_F_RDONLY_PROG is about programs.
  const programs = make({ flags: 0x80 });
  t.equal((await into(dumpOf(folder, { id: 1, ...HASH, items }), `id:${programs.id}`)).status, 0);
  programs.close();
  good.close();
});

t.test('which map goes where', async (t) => {
  const pins = bpffs();
  t.teardown(() => pins.remove());
  const long = 'a_name_of_more_than_15';
  const items = (n: number): Item[] => [[u32(n), Buffer.alloc(8, n)]];
  const [one, two, three] = [make({ name: 'one' }), make({ name: long.slice(0, 15) }), make({ name: 'other' })];
  one.pin(path.join(pins.folder, 'pin_of_one'));
  two.pin(path.join(pins.folder, long));
  three.pin(path.join(pins.folder, 'three'));
  const dump = dumpOf(
    folder,
    { id: 1, name: 'one', ...HASH, items: items(1) },
    { id: 2, name: long.slice(0, 15), ...HASH, items: items(2) },
    { id: 3, name: 'three', ...HASH, items: items(3) },
    { id: 4, name: 'four', ...HASH, items: items(4) },
  );
  const lacking = await into(dump, `pinned:${pins.folder}`);
  t.equal(lacking.status, 1);
  t.match(
    lacking.stderr,
    /map 4 \(four\): --into has no map of that name, but \d+ \(one\), \d+ \(a_name_of_more_\), \d+ \(other\); --map OLD=NEW names one/,
  );
  t.same(readBack(one), {});
  const some = await into(dump, pins.folder, '--skip-unsupported');
  t.equal(some.status, 0, some.stderr);
  t.same(
    [one, two, three].map((map) => Object.keys(readBack(map))),
    [['01000000'], ['02000000'], ['03000000']],
  );
  t.match(some.maps[3]?.report, 'not supported: --into has no map of that name');
  const byHand = await into(dump, pins.folder, '--map', 'four=pin_of_one', '--map', 'three');
  t.equal(byHand.status, 0, byHand.stderr);
  t.same(Object.keys(readBack(one)).sort(), ['01000000', '04000000']);
  const twice = await into(dump, pins.folder, '--map', 'four=one', '--map', 'one');
  t.match(twice.stderr, /map 4 \(four\): it would go into map \d+ \(one\), like map 1; --map OLD=NEW says which/);
  t.match(
    (await into(dump, pins.folder, '--map', 'four=none')).stderr,
    /--map four=none: no map none among those of --into/,
  );
  // One of each: no name is needed.
  t.equal((await into(dump, `id:${three.id}`, '--map', 'four')).status, 0);
  t.same(Object.keys(readBack(three)).sort(), ['03000000', '04000000']);
  for (const map of [one, two, three]) map.close();
});

t.test('maps of a process, pinned nowhere', async (t) => {
  const spec = { type: 1, keySize: 4, valueSize: 8, maxEntries: 64, flags: 0 };
  const holder = await HolderProcess.start([
    { ...spec, name: 'one' },
    { ...spec, name: 'two' },
  ]);
  t.teardown(() => holder.stop());
  const dump = dumpOf(folder, { id: 1, ...HASH, name: 'two', items: [[u32(7), u32(1, 0)]] });
  const { status, stderr } = await cli(['replay', dump, '--into', `pid:${holder.pid}`]);
  t.equal(status, 0, stderr);
  using two = BpfMap.openById(sys, holder.ids[1] as number);
  t.same(readBack(two), { '07000000': '0100000000000000' });
});

t.test('usage', async (t) => {
  const dump = dumpOf(folder, { id: 1, ...HASH, items: [] });
  for (const [args, message] of [
    [['--into', 'id:1', '--hold'], /--pin, --pin-back, --into, --hold and a command exclude each other/],
    [['--into', 'all:'], /--into all:: expected pinned:PATH, id:N, name:NAME, pid:PID or a folder of pins/],
    [['--into', '/nowhere'], /--into \/nowhere: expected/],
    [['--hold', '--mode', 'sync'], /--mode: it goes with --into/],
    [['--hold', '--backup', 'x'], /--backup: it goes with --into/],
    [['--hold', '--map', 'a=b'], /--map a=b: OLD=NEW goes with --into/],
    [['--into', 'id:1', '--max-entries', '5'], /--max-entries: maps that exist keep their size/],
  ] as const) {
    const { status, stderr } = await cli(['replay', dump, ...args]);
    t.equal(status, 2, args.join(' '));
    t.match(stderr, message);
  }
});

t.test('a backup is what was there before', async (t) => {
  const map = make({}, [[u32(1), Buffer.alloc(8, 1)]]);
  const before = readBack(map);
  const dump = dumpOf(folder, { id: 7, ...HASH, items: [[u32(1), Buffer.alloc(8, 2)]] });
  const saved = path.join(folder, 'saved');
  t.equal((await into(dump, `id:${map.id}`, '--backup', saved)).status, 0);
  t.notSame(readBack(map), before);
  const again = await into(dump, `id:${map.id}`, '--backup', saved);
  t.equal(again.status, 1, 'not over another one');
  t.same((await into(saved, `id:${map.id}`, '--mode', 'sync')).status, 0);
  t.same(readBack(map), before);
  const dry = path.join(folder, 'dry');
  await into(dump, `id:${map.id}`, '--backup', dry, '--dry-run');
  t.notOk(fs.existsSync(dry));
  map.close();
});

t.test('a signal half-way: what was written is said', async (t) => {
  const items = Array.from({ length: 80_000 }, (_, i): Item => [u32(i), Buffer.alloc(8, i | 1)]);
  const dump = dumpOf(
    folder,
    { id: 1, name: 'first', ...HASH, items: items.slice(0, 3) },
    { id: 2, name: 'second', ...HASH, items },
  );
  const pins = bpffs();
  t.teardown(() => pins.remove());
  for (const [signal, code] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
    ['SIGHUP', 129],
  ] as const) {
    const [first, second] = [make({ name: 'first' }), make({ name: 'second', flags: 1, maxEntries: 100_000 })];
    first.pin(path.join(pins.folder, 'first'));
    second.pin(path.join(pins.folder, 'second'));
    // One at a time, so that it takes long enough.
    const child = spawn(process.execPath, [BPFIMG, 'replay', dump, '--into', pins.folder, '--mode', 'insert'], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    let said = '';
    child.stderr.on('data', (text) => {
      said += text;
    });
    const ended = new Promise((resolve) => child.once('close', resolve));
    const until = Date.now() + 60_000;
    while (second.nextKey(undefined) === undefined && Date.now() < until) await new Promise((go) => setTimeout(go, 1));
    child.kill(signal);
    t.equal(await ended, code, signal);
    const held = Object.keys(readBack(second)).length;
    t.ok(held > 0 && held < 80_000, `${held} items`);
    t.match(
      said,
      new RegExp(
        `interrupted; written so far: map \\d+ \\(first\\) 3 inserted; map \\d+ \\(second\\) ${held} inserted\\n`,
      ),
    );
    for (const [map, name] of [[first, 'first'] as const, [second, 'second'] as const]) {
      map.close();
      fs.rmSync(path.join(pins.folder, name));
    }
  }
});

t.test('a kernel that fails half-way: what was written is said, item by item', async (t) => {
  const value = (i: number, salt = 0) => u32(i + 1, salt);
  const items = Array.from({ length: 60_000 }, (_, i): Item => [u32(i), value(i)]);
  // A third of the keys is there with the same value, a third with another one.
  const old = items.slice(0, 40_000).map(([key], i): Item => [key, value(i, i % 2)]);
  for (const [type, max] of [
    [1, 100_000],
    [2, 60_000],
  ] as const) {
    const dump = dumpOf(folder, { id: 1, ...HASH, type, max, items });
    const given = await openSource(dump);
    const source = await mapsOf(given);
    const [plan] = await planMaps(source, source.maps, types, { cpus: sys.cpus });
    for (const mode of ['upsert', 'insert', 'update', 'sum'] as const) {
      if (type === 2 && mode === 'insert') continue;
      const map = make({ type, maxEntries: max }, old);
      const before = here(map);
      let calls = 0;
      const failing = new MeddledSys(sys, (command, attr) => {
        if (command === 'MAP_UPDATE_ELEM') return ++calls === 1000 ? -ERRNO.ENOMEM : undefined;
        if (command !== 'MAP_UPDATE_BATCH' || ++calls !== 2) return undefined;
        // Some items of a batch are written before the one that is refused.
        const batch = attr as Attr<'count'>;
        batch.set('count', Math.floor(batch.get('count') / 3));
        return sys.bpf(command, attr) < 0 ? undefined : -ERRNO.ENOMEM;
      });
      const target = BpfMap.openById(failing, map.id);
      const error = await replayInto(failing, [{ plan: plan as PlannedMap, map: target }], [], { mode }).then(
        () => t.fail('nothing failed'),
        (error: Error) => error,
      );
      const after = here(map);
      const changed = [...before].filter(([key, bytes]) => after.get(key)?.equals(bytes) === false).length;
      const counts: Record<string, number> = { inserted: after.size - before.size, updated: changed };
      const said = Object.fromEntries(
        [...String(error).matchAll(/(\d+) (inserted|updated)/g)].map(([, count, what]) => [what, Number(count)]),
      );
      t.match(String(error), /item [0-9a-f]{8}: BPF_MAP_UPDATE_(BATCH|ELEM): .*; written so far: map \d+/, mode);
      t.same({ inserted: 0, updated: 0, ...said }, counts, `type ${type}, ${mode}`);
      t.ok((counts.inserted ?? 0) + changed > 900, `${JSON.stringify(counts)}`);
      target.close();
      map.close();
    }
    source.close();
    given.close();
  }
});

t.test('others write meanwhile: keys that only the source has are there, theirs are kept', async (t) => {
  const holder = await HolderProcess.start([{ type: 1, keySize: 4, valueSize: 8, maxEntries: 300_000, name: 'busy' }]);
  t.teardown(() => holder.stop());
  const map = BpfMap.openById(sys, holder.ids[0] as number);
  const code = `
    const { openSys } = await import('${new URL('../src/kernel/sys.js', import.meta.url)}');
    const { BpfMap } = await import('${new URL('../src/kernel/map.js', import.meta.url)}');
    const { types } = await import('${new URL('./helpers/types.js', import.meta.url)}');
    const map = BpfMap.openById(await openSys(types), ${map.id});
    const key = Buffer.alloc(4), value = Buffer.alloc(8, 0xee);
    for (let i = 0; ; i = (i + 1) % 5000) {
      key.writeUInt32LE(1_000_000 + i);
      map.update(key, value);
      key.writeUInt32LE(2_000_000 + i);
      map.update(key, value);
      map.delete(key);
      if (i === 0) console.log('round');
    }`;
  const writer = spawn(process.execPath, ['--input-type=module', '-e', code], { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = new Promise((resolve) => writer.once('close', resolve));
  await new Promise((resolve) => writer.stdout.once('data', resolve));
  const items = Array.from({ length: 60_000 }, (_, i): Item => [u32(i), Buffer.alloc(8, i | 1)]);
  const dump = dumpOf(folder, { id: 1, ...HASH, items });
  for (const mode of ['upsert', 'insert', 'sync']) {
    const ran = await into(dump, `id:${map.id}`, '--mode', mode);
    t.equal(ran.status, 0, ran.stderr);
  }
  writer.kill('SIGKILL');
  await ended;
  const after = readBack(map);
  for (const [key, value] of items)
    if (after[hexOf(key)] !== hexOf(value)) t.fail(`${hexOf(key)} is ${after[hexOf(key)]}`);
  map.close();
});

t.test('maps of other types whose items are alike', async (t) => {
  const items: Item[] = [[u32(1), Buffer.alloc(8, 1)]];
  const lru = make({ type: 9 });
  t.equal((await into(dumpOf(folder, { id: 1, ...HASH, items }), `id:${lru.id}`)).status, 0);
  t.same(Object.keys(readBack(lru)), ['01000000']);
  const hash = make();
  t.equal((await into(dumpOf(folder, { id: 1, ...HASH, type: 2, items }), `id:${hash.id}`)).status, 0);
  t.same(Object.keys(readBack(hash)), ['01000000']);
  for (const map of [lru, hash]) map.close();
});

t.test('locks: values are written under theirs, and it is left alone', async (t) => {
  const writer = new BtfWriter();
  const int = writer.int('__u32', 4);
  const lock = writer.struct('bpf_spin_lock', 4, [{ name: 'val', type: int, at: 0 }]);
  const value = writer.struct('v', 8, [
    { name: 'lock', type: lock, at: 0 },
    { name: 'count', type: int, at: 32 },
  ]);
  const fd = loadBtf(sys, writer.bytes());
  const map = make({ btf: { fd, keyType: int, valueType: value } }, [[u32(1), u32(0, 5)]]);
  sys.close(fd);
  const dump = dumpOf(folder, {
    id: 1,
    ...HASH,
    items: [
      [u32(1), u32(7, 5)],
      [u32(2), u32(0, 6)],
    ],
  });
  const ran = await into(dump, `id:${map.id}`, '--verify');
  t.same(countsOf(ran.maps[0]), { inserted: 1, updated: 0, unchanged: 1, deleted: 0, dropped: {} }, ran.stderr);
  t.same(readBack(map), { '01000000': hexOf(u32(0, 5)), '02000000': hexOf(u32(0, 6)) });
  for (const mode of ['upsert', 'sum'] as const) {
    map.delete(u32(2));
    const flags: bigint[] = [];
    const watched = new MeddledSys(sys, (command, attr) => {
      if (command === 'MAP_UPDATE_BATCH') flags.push(attr.bytes.readBigUInt64LE(40));
      if (command === 'MAP_UPDATE_ELEM') flags.push(attr.bytes.readBigUInt64LE(24));
      return undefined;
    });
    const given = await openSource(dump);
    const source = await mapsOf(given);
    const [plan] = await planMaps(source, source.maps, types, { cpus: sys.cpus });
    const target = BpfMap.openById(watched, map.id);
    await replayInto(watched, [{ plan: plan as PlannedMap, map: target }], [], { mode });
    t.ok(flags.length > 0 && flags.every((one) => one === 4n), `${mode}: ${flags}`);
    target.close();
    source.close();
    given.close();
  }
  map.close();
});

t.test('nothing is left open', async (t) => {
  const map = make();
  const dump = dumpOf(folder, { id: 1, ...HASH, items: [[u32(1), Buffer.alloc(8, 1)]] });
  await into(dump, `id:${map.id}`);
  const [open, files] = [fdCount(), contents(dump)];
  for (let i = 0; i < 3; i++) await into(dump, `id:${map.id}`);
  t.equal(fdCount(), open);
  t.same(contents(dump), files);
  map.close();
});
