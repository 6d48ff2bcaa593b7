/** How maps are filled: the rules of the kernel that a replay has to know, each with a test that breaks with it. */

import * as fs from 'node:fs';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { plugins } from '../plugins/index.js';
import { roundUp8 } from '../src/bytes.js';
import { openDump } from '../src/dump/model.js';
import { MAP_FLAG } from '../src/kernel/abi.js';
import { BpfMap, type MapSpec } from '../src/kernel/map.js';
import { memoryAvailable } from '../src/kernel/memory.js';
import { ERRNO, openSys, type Sys } from '../src/kernel/sys.js';
import { FULL, type ItemSource, MapTypes, type Plugin } from '../src/maptype.js';
import { fillHash } from '../src/replay/fill.js';
import { createProblems } from '../src/replay/foresight.js';
import { type CpuFold, foldCpus } from '../src/replay/items.js';
import { memoryNeed, memoryShort } from '../src/replay/memory.js';
import { type PlannedMap, planMap } from '../src/replay/plan.js';
import { type FreshMap, replay } from '../src/replay/replay.js';
import { type Seen, seenIndexes, seenKeys } from '../src/replay/seen.js';
import { asKept, features } from './helpers/features.js';
import type { Item } from './helpers/images.js';
import { fdCount, skipWithoutMaps, u32, witness } from './helpers/kernel-live.js';
import { load, patience } from './helpers/needs.js';
import {
  dumpOf,
  hexOf,
  itemsObject,
  type MapImage,
  MeddledSys,
  readBack,
  someItems,
  sourceOf,
} from './helpers/replay.js';
import { types } from './helpers/types.js';

t.setTimeout(patience(120_000));
const skip = await skipWithoutMaps();
const has = await features();
const sys = await openSys(types);
const [HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, LRU_PERCPU_HASH, TRIE, DEVMAP] = [1, 2, 5, 6, 9, 10, 11, 14];

/** A map to be created, without a dump. */
function planned(
  spec: Partial<MapSpec>,
  items: ItemSource | readonly Item[],
  more: Partial<PlannedMap> = {},
): PlannedMap {
  const whole = { type: HASH, keySize: 4, valueSize: 8, maxEntries: 16, flags: 0, name: 'planned', ...spec };
  const type = types.get(whole.type);
  const stride = type.perCpu ? roundUp8(whole.valueSize) * sys.cpus : whole.valueSize;
  const source = 'read' in items ? items : sourceOf(items, whole.keySize, stride);
  return {
    mapId: 1,
    name: 'planned',
    subject: 'map 1 (planned)',
    type,
    types,
    plugin: types.plugin(whole.type),
    spec: whole,
    items: source,
    facts: {},
    needed: [],
    missing: [],
    inner: new Map(),
    frozen: false,
    pins: [],
    access: 'rw',
    memory: memoryNeed(whole, type, source.count, sys.cpus),
    lacks: [],
    notes: [],
    ...more,
  };
}

/** Replays one map, closed after the test. */
async function replayed(t: Test, plan: PlannedMap, kernel: Sys = sys, verify = false): Promise<FreshMap> {
  const [fresh] = await replay(kernel, [plan], { verify });
  t.teardown(() => fresh?.map.close());
  return fresh as FreshMap;
}

/** The plans of the maps of a dump. */
async function plansOf(t: Test, maps: readonly MapImage[], options: Partial<Parameters<typeof planMap>[3]> = {}) {
  const dump = await openDump(dumpOf(t.testdir(), ...maps));
  t.teardown(() => dump.close());
  return dump.maps.map((map) => planMap(dump, map, types, { cpus: sys.cpus, ...options }));
}

// ---------------------------------------------------------------------------------------------------
// The rules

t.test(
  'rule 5: the flag that the kernel adds to a DEVMAP is not asked for, and a plugin masks others',
  { skip },
  async (t) => {
    const dump = await openDump(
      dumpOf(t.testdir(), { id: 3, type: DEVMAP, value: 4, max: 4, flags: 0x480, items: [] }),
    );
    t.teardown(() => dump.close());
    const devices: Plugin = {
      name: 'devices',
      types: [{ number: DEVMAP, name: 'devmap', since: '4.14', key: 'index' }],
      attributes: (spec) => ({ ...spec, flags: (spec.flags ?? 0) & ~MAP_FLAG.MMAPABLE }),
      replay: async () => FULL,
    };
    const options = { cpus: sys.cpus };
    const masked = dump.maps.map((map) => planMap(dump, map, new MapTypes([...plugins, devices]), options));
    const [fresh] = await replay(sys, masked);
    t.equal(fresh?.map.flags, 0x80, 'the kernel reports it again');
    fresh?.map.close();

    const unmasked = { ...devices, attributes: (spec: MapSpec) => spec };
    const plans = dump.maps.map((map) => planMap(dump, map, new MapTypes([...plugins, unmasked]), options));
    await t.rejects(replay(sys, plans), {
      message: /^map 3 \(m\): BPF_MAP_CREATE: EINVAL .*map_flags BPF_F_MMAPABLE not accepted/,
    });
  },
);

for (const type of [LRU_HASH, LRU_PERCPU_HASH]) {
  const { name } = types.get(type);
  t.test(`rule 6: a full ${name} map holds all of its items after a replay`, { skip }, async (t) => {
    const stride = type === LRU_PERCPU_HASH ? 8 * sys.cpus : 8;
    for (const count of [1000, 5000, 10_000, load(100_000)]) {
      const items = someItems(count, 4, stride);
      const { map, report } = await replayed(t, planned({ type, maxEntries: count }, items), sys, true);
      t.same(report, FULL, `${count}`);
      const held = readBack(map);
      t.equal(Object.keys(held).length, count);
      t.ok(
        items.every(([key, value]) => held[hexOf(key)] === hexOf(value)),
        'with their values',
      );
      map.close();
    }
  });

  t.test(`rule 7: a ${name} map without a common LRU holds all of its items`, { skip }, async (t) => {
    const stride = type === LRU_PERCPU_HASH ? 8 * sys.cpus : 8;
    const before = sys.getAffinity();
    t.teardown(() => sys.setAffinity(before as number[]));
    for (const count of [sys.cpus, 999, 1000, 20_000]) {
      const items = someItems(count, 4, stride);
      const plan = planned({ type, maxEntries: count, flags: MAP_FLAG.NO_COMMON_LRU }, items);
      const { map, report } = await replayed(t, plan);
      t.same(report, FULL, `${count}`);
      t.equal(Object.keys(readBack(map)).length, count);
      t.same(sys.getAffinity(), before, 'the thread may run where it might before');
      map.close();
    }
    // Each CPU has its share, whatever the process was told to keep to.
    sys.setAffinity([0]);
    const plan = planned({ type, maxEntries: 1000, flags: MAP_FLAG.NO_COMMON_LRU }, someItems(1000, 4, stride));
    const { map, report } = await replayed(t, plan);
    t.same(report, FULL);
    t.equal(Object.keys(readBack(map)).length, 1000);
    t.same(sys.getAffinity(), [0]);
  });
}

t.test('rule 7: the thread is unbound again after an error', { skip }, async (t) => {
  const before = sys.getAffinity();
  const items = someItems(4000);
  for (const flags of [0, MAP_FLAG.NO_COMMON_LRU]) {
    const broken: ItemSource = {
      ...sourceOf(items, 4, 8),
      read: async (from) => {
        if (from > 0) throw new Error('torn');
      },
    };
    const plan = planned({ type: LRU_HASH, maxEntries: 4000, flags, valueSize: 4096 }, { ...broken, valueSize: 4096 });
    await t.rejects(replay(sys, [plan]), { message: 'torn' });
    t.same(sys.getAffinity(), before);
  }
});

t.test('an LRU map that cannot hold everything says how much it holds', { skip }, async (t) => {
  const { map, report } = await replayed(t, planned({ type: LRU_HASH, maxEntries: 100 }, someItems(150)), sys, true);
  t.match(report, { kind: 'partial', why: /^it holds \d+ of 150 items: the kernel evicted the others/ });
  t.ok(Object.keys(readBack(map)).length <= 100);
});

t.test('rule 9: frozen comes last, after the memory is unmapped', { skip }, async (t) => {
  // Several pages, and a value that is no multiple of 8.
  for (const flags of [0, MAP_FLAG.MMAPABLE, MAP_FLAG.MMAPABLE | MAP_FLAG.RDONLY_PROG]) {
    const items = someItems(2000, 4, 12).map(([, value], i) => [u32(i), value] as const);
    const plan = planned({ type: ARRAY, valueSize: 12, maxEntries: 2000, flags }, items, { frozen: true });
    const { map } = await replayed(t, plan, sys, true);
    t.equal(map.state().frozen, true, 'says fdinfo');
    t.equal(map.flags, flags);
    t.same(witness(map), itemsObject(items));
    t.throws(() => map.update(u32(0), Buffer.alloc(12)), { code: 'EPERM' });
  }
  for (const type of [HASH, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, LRU_PERCPU_HASH, TRIE]) {
    const stride = types.get(type).perCpu ? 8 * sys.cpus : 8;
    const items = someItems(10, 4, stride).map(([, value], i) => [type === TRIE ? u32(32, i) : u32(i), value] as const);
    const flags = type === TRIE ? MAP_FLAG.NO_PREALLOC : 0;
    const plan = planned({ type, keySize: type === TRIE ? 8 : 4, flags, maxEntries: 10 }, items, { frozen: true });
    const { map } = await replayed(t, plan);
    t.equal(map.state().frozen, true, types.get(type).name);
    t.same(readBack(map), itemsObject(items));
  }
});

t.test('rule 11: what will not fit into memory is refused before anything is created', { skip }, async (t) => {
  const huge: [string, MapImage][] = [
    ['an array', { id: 5, type: ARRAY, value: 65_536, max: 2 ** 31 }],
    [
      'an array without a common page',
      { id: 5, type: ARRAY, value: 2 ** 31 - 1, max: 2 ** 32 - 1, flags: MAP_FLAG.MMAPABLE },
    ],
    ['a per-CPU array', { id: 5, type: PERCPU_ARRAY, value: 32_768, max: 2 ** 30 }],
    ['a hash', { id: 5, type: HASH, key: 16, value: 65_536, max: 2 ** 27 }],
    ['a hash without items, for its buckets', { id: 5, type: HASH, max: 2 ** 40 / 8192, value: 1 << 16 }],
    ['an LRU', { id: 5, type: LRU_HASH, key: 512, value: 65_536, max: 2 ** 27 }],
    ['a per-CPU hash', { id: 5, type: PERCPU_HASH, value: 32_768, max: 2 ** 27 }],
  ];
  for (const [what, map] of huge) {
    const kernel = new MeddledSys(sys);
    const plans = await plansOf(t, [{ id: 4, name: 'small' }, map]);
    await t.rejects(
      replay(kernel, plans),
      {
        message: /^about [\d,]+ MiB of kernel memory needed \(map 5 \(m\): [\d,]+ MiB\), .*; --force tries anyway$/,
      },
      what,
    );
    t.same(kernel.commands, [], 'nothing was created');
  }
  // The memory of many small ones counts together.
  const one = planned({ maxEntries: 1000 }, []);
  const available = { bytes: 100 * one.memory, limit: 'memory of the test' };
  t.equal(memoryShort(Array(80).fill(one), available), undefined);
  t.match(
    memoryShort(Array(81).fill(one), available),
    /, but a replay uses at most 80 % of the [\d,]+ MiB of memory of the test$/,
  );
  // Forced, by somebody who knows better.
  const kernel = new MeddledSys(sys);
  const short = { bytes: 1, limit: 'memory of the test' };
  await t.rejects(replay(kernel, [one], { available: short }), { message: /--force/ });
  t.same(kernel.commands, []);
  const [fresh] = await replay(kernel, [one], { available: short, force: true });
  t.equal(fresh?.map.maxEntries, 1000);
  fresh?.map.close();
  t.same(sys.openFds(), [], 'nothing stays open');
});

t.test('rule 11: the estimate is what the kernel then takes', { skip }, async (t) => {
  const specs: (Partial<MapSpec> & { type: number })[] = [
    { type: HASH, keySize: 16, valueSize: 64, maxEntries: 10_000 },
    { type: HASH, keySize: 3, valueSize: 5, maxEntries: 5000 },
    { type: LRU_HASH, keySize: 8, valueSize: 100, maxEntries: 10_000 },
    { type: PERCPU_HASH, keySize: 4, valueSize: 64, maxEntries: 5000 },
    { type: LRU_PERCPU_HASH, keySize: 4, valueSize: 64, maxEntries: 5000 },
    { type: ARRAY, keySize: 4, valueSize: 12, maxEntries: 10_000 },
    { type: PERCPU_ARRAY, keySize: 4, valueSize: 12, maxEntries: 10_000 },
    { type: 20, keySize: 4, valueSize: 4, maxEntries: 10_000 },
  ];
  for (const spec of specs) {
    const { memory, spec: whole } = planned(spec, []);
    using map = BpfMap.create(sys, whole);
    const { memlock = 0 } = map.state();
    const share = memory / memlock;
    t.ok(
      share > 0.8 && (share < 1.3 || !has.memoryMeasured),
      `${types.get(spec.type).name}: ${memory}, and the kernel says ${memlock}`,
    );
  }
  for (const spec of [
    { type: TRIE, keySize: 8, maxEntries: has.hugeTries ? 2 ** 32 - 1 : 1 << 16, flags: MAP_FLAG.NO_PREALLOC },
    { type: HASH, keySize: 8, maxEntries: 5000, flags: MAP_FLAG.NO_PREALLOC },
  ]) {
    const items = someItems(2000, 8, 8).map(
      ([key, value], i) => [spec.type === TRIE ? u32(32, i) : key, value] as const,
    );
    const plan = planned(spec, items);
    const { map } = await replayed(t, plan);
    const { memlock = 0 } = map.state();
    const enough = !has.memoryInUse || plan.memory > 0.8 * memlock;
    t.ok(enough && (plan.memory < 3 * memlock || !has.memoryMeasured), `${plan.memory} for ${memlock}`);
  }
});

t.test('rule 11: the memory of cgroups is seen, of both versions and up to the root', async (t) => {
  const folder = t.testdir({
    proc: { meminfo: 'MemTotal: 9000 kB\nMemAvailable:    8000 kB\n', self: { cgroup: '1:name=systemd:/\n0::/a/b\n' } },
    two: {
      a: {
        'memory.max': '5000000\n',
        'memory.current': '1000000\n',
        b: { 'memory.max': 'max\n', 'memory.current': '1\n' },
      },
    },
    root: { 'memory.max': '3000\n', 'memory.current': '1000\n', 'memory.stat': 'anon 7\ninactive_file 500\n' },
    one: {
      memory: {
        'memory.limit_in_bytes': '9223372036854771712\n',
        'memory.usage_in_bytes': '1\n',
        x: { 'memory.limit_in_bytes': '4096\n', 'memory.usage_in_bytes': '5000\n' },
      },
    },
  });
  const proc = (cgroup: string) => {
    fs.writeFileSync(path.join(folder, 'proc/self/cgroup'), cgroup);
    return path.join(folder, 'proc');
  };
  const at = (name: string) => path.join(folder, name);
  t.same(memoryAvailable(proc('0::/a/b\n'), at('two')), { bytes: 4_000_000, limit: 'memory left in cgroup /a' });
  t.same(memoryAvailable(proc('0::/\n'), at('two')), { bytes: 8_192_000, limit: 'available memory' });
  const root = { bytes: 2500, limit: 'memory left in cgroup /' };
  t.same(memoryAvailable(proc('0::/x/y\n'), at('root')), root, 'what is above counts as well');
  // In a container its own cgroup is the root; the page cache is no reason to refuse.
  t.same(memoryAvailable(proc('0::/\n'), at('root')), root);
  t.same(memoryAvailable(proc('7:cpu,memory:/x\n0::/\n'), at('one')), {
    bytes: 0,
    limit: 'memory left in cgroup /x',
  });
  t.same(memoryAvailable(proc('4:memory:/\n'), at('one')).bytes, 8_192_000, 'a number that stands for no limit');
  t.same(memoryAvailable(at('none'), at('none')), { bytes: Infinity, limit: 'unknown' });
});

t.test('rule 12: per-CPU values are round_up(value_size, 8) apart', { skip }, async (t) => {
  for (const type of [PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH]) {
    const stride = 16 * sys.cpus;
    const items = someItems(5, 4, stride).map(([, value], i) => [u32(i), value] as const);
    // The 4 bytes between two values are the kernel's to keep: bpftool shows them, and so do images.
    const [plan] = await plansOf(t, [{ id: 1, type, value: 12, max: 5, items }]);
    const { map } = await replayed(t, plan as PlannedMap, sys, true);
    const held = witness(map);
    for (const [key, value] of items) t.equal(held[hexOf(key)]?.replaceAll(' ', ''), cut(hexOf(value), 32, 24));
    const kept = items.map(([key, value]) => [key, asKept(value, 12, has)] as const);
    t.same(readBack(map), itemsObject(kept), 'padding and all');
  }
});

/** The first `keep` of every `each` characters. */
function cut(text: string, each: number, keep: number): string {
  return (text.match(new RegExp(`.{${each}}`, 'g')) ?? []).map((part) => part.slice(0, keep)).join('');
}

t.test('rule 12: values of another number of CPUs', { skip }, async (t) => {
  const others = [sys.cpus + 1, 2 * sys.cpus, 2 * sys.cpus + 1, 1].filter((cpus) => cpus !== sys.cpus);
  for (const type of [PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH]) {
    for (const from of others) {
      const value = Buffer.alloc(16 * from);
      for (let cpu = 0; cpu < from; cpu++) {
        value.writeBigUInt64LE(BigInt(cpu + 1), 16 * cpu);
        value.writeBigUInt64LE(2n ** 63n + 5n, 16 * cpu + 8);
      }
      const map: MapImage = { id: 8, type, value: 16, max: 1, items: [[u32(0), value]], name: 'counts' };
      await t.rejects(plansOf(t, [map]), {
        message: new RegExp(
          `: map 8 \\(counts\\): it has values of ${from} CPUs, this machine has ${sys.cpus} possible CPUs; --percpu`,
        ),
      });
      const results: [CpuFold, (cpu: number) => bigint[]][] = [
        ['first', (cpu) => (cpu < from ? [BigInt(cpu + 1), 2n ** 63n + 5n] : [0n, 0n])],
        ['sum', (cpu) => (cpu === 0 ? total(range(from)) : [0n, 0n])],
        ['spread', (cpu) => total(range(from).filter((one) => one % sys.cpus === cpu))],
      ];
      for (const [how, expected] of results) {
        const [plan] = await plansOf(t, [map], { perCpu: how });
        const { map: live } = await replayed(t, plan as PlannedMap, sys, true);
        const [held = ''] = Object.values(witness(live));
        const words = range(sys.cpus).map((cpu) => {
          const bytes = Buffer.from(held.split(' ')[cpu] ?? '', 'hex');
          return [bytes.readBigUInt64LE(0), bytes.readBigUInt64LE(8)];
        });
        t.same(words, range(sys.cpus).map(expected), `${types.get(type).name}, ${how} of ${from} CPUs`);
        live.close();
      }
    }
  }
});

const range = (count: number) => [...Array(count).keys()];
/** The sums of both words over these CPUs, which wrap. */
const total = (cpus: number[]): bigint[] => [
  cpus.reduce((sum, cpu) => sum + BigInt(cpu + 1), 0n),
  BigInt.asUintN(64, BigInt(cpus.length) * (2n ** 63n + 5n)),
];

t.test('rule 12: sums are those of words, and other values are only cut', async (t) => {
  const source = (size: number, from: number) => {
    const value = Buffer.alloc(roundUp8(size) * from, 0xff);
    return sourceOf([[u32(0), value]], 4, value.length);
  };
  const folded = async (size: number, from: number, to: number, how: CpuFold) => {
    const items = foldCpus(source(size, from), size, from, to, how);
    const [keys, values] = [Buffer.alloc(4), Buffer.alloc(items.valueSize)];
    await items.read(0, 1, keys, values);
    return values.toString('hex');
  };
  // Two of -1 are -2, word by word; what is behind the value stays zero.
  t.equal(await folded(12, 2, 1, 'sum'), `${'feffffff'.repeat(3)}00000000`);
  t.equal(await folded(4, 3, 2, 'spread'), 'feffffff00000000ffffffff00000000');
  t.equal(await folded(8, 3, 1, 'sum'), 'fdffffffffffffff');
  t.equal(await folded(5, 1, 2, 'first'), `${'ff'.repeat(8)}${'00'.repeat(8)}`);
  for (const size of [1, 2, 3, 5, 6, 7, 9, 30]) {
    for (const how of ['sum', 'spread'] as const) {
      await t.rejects(folded(size, 2, 1, how), { message: /not 4- or 8-byte numbers; --percpu first/ });
    }
  }
  const cpus = sys.cpus + 1;
  const map = { id: 8, type: PERCPU_HASH, value: 5, items: [[u32(0), Buffer.alloc(8 * cpus)] as const] };
  await t.rejects(plansOf(t, [map], { perCpu: 'sum' }), { message: /: map 8 \(m\): --percpu sum: values of 5 bytes/ });
  const many = { id: 8, type: PERCPU_HASH, value: 1, items: [[u32(0), Buffer.alloc(8 * 8193)] as const] };
  await t.rejects(plansOf(t, [many], { perCpu: 'first' }), { message: /values of 8193 CPUs, expected at most 8192/ });
});

t.test('many items of another number of CPUs are folded in parts', async (t) => {
  const items = someItems(3000, 4, 3 * 512);
  const folded = foldCpus(sourceOf(items, 4, 3 * 512), 512, 3, 2, 'first');
  const [keys, values] = [Buffer.alloc(4 * 3000), Buffer.alloc(1024 * 3000)];
  await folded.read(0, 3000, keys, values);
  t.ok(
    items.every(
      ([key, value], i) =>
        key.equals(keys.subarray(4 * i, 4 * i + 4)) &&
        values.subarray(1024 * i, 1024 * (i + 1)).equals(value.subarray(0, 1024)),
    ),
  );
});

// ---------------------------------------------------------------------------------------------------
// Flags

t.test("flags that are not the map's are never passed on", { skip }, async (t) => {
  for (const flag of [MAP_FLAG.RDONLY, MAP_FLAG.WRONLY, MAP_FLAG.PATH_FD, MAP_FLAG.TOKEN_FD, 0x1_4018]) {
    for (const type of [HASH, ARRAY]) {
      const items = someItems(4);
      const [plan] = await plansOf(t, [{ id: 2, type, max: 4, flags: flag, items }]);
      t.equal(plan?.spec.flags, 0, `0x${flag.toString(16)}`);
      const { map } = await replayed(t, plan as PlannedMap);
      t.equal(map.flags, 0);
      t.same(witness(map), itemsObject(items));
    }
  }
});

t.test('NUMA_NODE is kept, with any node', { skip }, async (t) => {
  const [plan] = await plansOf(t, [{ id: 2, flags: MAP_FLAG.NUMA_NODE, items: someItems(4) }]);
  t.equal(plan?.spec.numaNode, -1);
  const { map } = await replayed(t, plan as PlannedMap);
  t.equal(map.flags, MAP_FLAG.NUMA_NODE);
  // The kernel refuses a node for these, but not the flag without one.
  for (const type of [PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH]) {
    const [perCpu] = await plansOf(t, [{ id: 2, type, flags: MAP_FLAG.NUMA_NODE }]);
    t.equal((await replayed(t, perCpu as PlannedMap)).map.flags, MAP_FLAG.NUMA_NODE);
    t.same(createProblems(perCpu as PlannedMap), [], 'foreseen');
  }
});

t.test('a hash with a fixed seed has the order of its image', { skip }, async (t) => {
  for (const type of [HASH, PERCPU_HASH]) {
    const stride = type === PERCPU_HASH ? 8 * sys.cpus : 8;
    using first = BpfMap.create(sys, { type, keySize: 4, valueSize: 8, maxEntries: 8000, flags: MAP_FLAG.ZERO_SEED });
    for (const [key, value] of someItems(8000, 4, stride)) first.update(key, value);
    const image = readBack(first);
    const items = Object.entries(image).map(
      ([key, value]) => [Buffer.from(key, 'hex'), Buffer.from(value, 'hex')] as const,
    );
    const plan = planned({ type, maxEntries: 8000, flags: MAP_FLAG.ZERO_SEED }, items);
    const { map, report } = await replayed(t, plan, sys, true);
    t.same(report, FULL);
    t.same(Object.keys(readBack(map)), Object.keys(image));
  }
});

// ---------------------------------------------------------------------------------------------------
// One key in several items

/** Items with these keys, where each value says which item it is. */
const numbered = (keys: readonly Buffer[], size = 8) =>
  keys.map((key, i) => {
    const value = Buffer.alloc(size);
    value.writeUInt32LE(i + 1);
    return [key, value] as const;
  });

t.test('of several items with one key the last counts, and the report says so', { skip }, async (t) => {
  // Far apart, so that several writers have them at once; some of them more than twice.
  const keys = range(load(30_000)).map((i) => u32(i));
  const doubled = [...keys, ...keys.filter((_, i) => i % 100 === 0), ...keys.filter((_, i) => i % 300 === 0)];
  const kinds: [string, Partial<MapSpec>][] = [
    ['hash', { type: HASH }],
    ['hash without preallocation', { type: HASH, flags: MAP_FLAG.NO_PREALLOC }],
    ['hash with a fixed seed', { type: HASH, flags: MAP_FLAG.ZERO_SEED }],
    ['LRU hash', { type: LRU_HASH }],
    ['array', { type: ARRAY }],
    ['array in memory', { type: ARRAY, flags: MAP_FLAG.MMAPABLE }],
  ];
  for (const [what, spec] of kinds) {
    const items = numbered(doubled);
    const plan = planned({ ...spec, maxEntries: keys.length }, items);
    const { map, report } = await replayed(t, plan, sys, true);
    t.match(report, { kind: 'full' }, what);
    const held = readBack(map);
    t.ok(
      Object.entries(itemsObject(items)).every(([key, value]) => held[key] === value),
      what,
    );
    t.equal(Object.keys(held).length, keys.length);
    map.close();
  }
});

t.test('a later item that is written sooner still counts', { skip }, async (t) => {
  // One call takes all but the last item, which is written while that call still waits for a thread.
  class BusyPool extends MeddledSys {
    override async bpfAsync(...call: Parameters<Sys['bpfAsync']>) {
      await new Promise((resolve) => setTimeout(resolve, 100));
      return super.bpfAsync(...call);
    }
  }
  const keys = range(16_384).map((i) => u32(i));
  const items = numbered([...keys, keys.at(-1) as Buffer]);
  for (const what of ['its keys are remembered', 'the kernel counts']) {
    const plan = planned({ type: HASH, maxEntries: keys.length }, items);
    const most = what === 'the kernel counts' ? 1 : undefined;
    const plugin: Plugin = { ...plan.plugin, replay: (map, items, work) => fillHash(map, items, work, most) };
    const { map } = await replayed(t, { ...plan, plugin }, new BusyPool(sys));
    t.same(map.lookup(keys.at(-1) as Buffer), items.at(-1)?.[1], what);
    map.close();
  }
});

t.test('a map in which every item has the same key', { skip }, async (t) => {
  const items = numbered(Array(3000).fill(u32(0)));
  for (const spec of [
    { type: HASH },
    { type: HASH, flags: MAP_FLAG.ZERO_SEED },
    { type: LRU_HASH },
    { type: ARRAY },
    { type: ARRAY, flags: MAP_FLAG.MMAPABLE },
  ]) {
    const { map, report } = await replayed(t, planned({ ...spec, maxEntries: 1 }, items), sys, true);
    t.match(report, { kind: 'full' });
    t.same(witness(map), { '00000000': 'b80b000000000000' });
  }
});

t.test('a zero that comes later takes the place of what an array had', { skip }, async (t) => {
  for (const flags of [0, MAP_FLAG.MMAPABLE]) {
    const items = [
      [u32(1), Buffer.alloc(8, 7)],
      [u32(0), Buffer.alloc(8, 6)],
      [u32(1), Buffer.alloc(8, 0)],
    ] as const;
    const { map } = await replayed(t, planned({ type: ARRAY, maxEntries: 2, flags }, items), sys, true);
    t.same(witness(map), { '00000000': '06'.repeat(8), '01000000': '00'.repeat(8) });
  }
});

t.test('prefixes of a trie that differ only after their length are one', { skip }, async (t) => {
  const items = numbered([u32(8, 0x0302010a), u32(16, 0x0302010a), u32(8, 0x0909090a), u32(0, 1), u32(0, 2)]);
  const plan = planned({ type: TRIE, keySize: 8, flags: MAP_FLAG.NO_PREALLOC }, items);
  const { map, report } = await replayed(t, plan, sys, true);
  t.match(report, { kind: 'full' });
  t.same(
    Object.values(witness(map)).sort(),
    [2, 3, 5].map((n) => hexOf(u32(n, 0))),
  );
});

t.test('what was seen before is never forgotten', async (t) => {
  const check = (seen: Seen, keys: readonly Buffer[]) => keys.map((key) => seen(key, 0));
  for (const size of [1, 3, 4, 8, 20]) {
    const count = Math.min(200, 20_000);
    const keys = someItems(count, size).map(([key]) => key);
    const seen = seenKeys({ count, keySize: size }, { key: 'bytes' });
    const first = check(seen, keys).filter(Boolean).length;
    t.ok(first <= 3, `${first} of ${count} taken for another`);
    t.ok(check(seen, keys).every(Boolean));
  }
  const keys = someItems(100_000).map(([key]) => key);
  const seen = seenKeys({ count: keys.length, keySize: 4 }, { key: 'bytes' });
  t.ok(check(seen, keys).filter(Boolean).length < 1000);
  t.ok(check(seen, keys).every(Boolean));
  t.same(check(seenIndexes({ maxEntries: 33 }), [u32(32), u32(0), u32(32), u32(33), u32(33)]), [
    false,
    false,
    true,
    false,
    false,
  ]);
  t.same(check(seenIndexes({ maxEntries: 2 ** 32 - 1 }), [u32(1), u32(1)]), [false, false], 'too many to remember');
});

// ---------------------------------------------------------------------------------------------------
// Kernels that fail

t.test('without batches, items go in one by one', { skip }, async (t) => {
  for (const errno of [ERRNO.ENOTSUPP, ERRNO.EINVAL]) {
    for (const type of [HASH, ARRAY, LRU_HASH, PERCPU_HASH]) {
      const kernel = new MeddledSys(sys, (command) => (command === 'MAP_UPDATE_BATCH' ? -errno : undefined));
      const stride = type === PERCPU_HASH ? 8 * sys.cpus : 8;
      const items = someItems(100, 4, stride);
      const { map, report } = await replayed(t, planned({ type, maxEntries: 100 }, items), kernel, true);
      t.same(report, FULL);
      t.same(readBack(map), itemsObject(items));
      t.ok(kernel.commands.includes('MAP_UPDATE_ELEM'));
    }
  }
});

t.test('the error of one writer stops the others', { skip }, async (t) => {
  let batches = 0;
  const before = fdCount();
  const items = someItems(200_000);
  const failing = new MeddledSys(sys, (command, attr) => {
    if (command !== 'MAP_UPDATE_BATCH') return undefined;
    if (++batches !== 2) return undefined;
    attr.set('count', 3);
    return -ERRNO.ENOMEM;
  });
  await t.rejects(replay(failing, [planned({ maxEntries: 200_000 }, items)]), {
    message: /^map 1 \(planned\), item [0-9a-f]{8}: BPF_MAP_UPDATE_BATCH: ENOMEM \(not enough memory\)$/,
  });
  t.ok(batches < 8, `${batches} batches of 13`);
  t.equal(fdCount(), before);
});

t.test('memory stays small with large values', { skip }, async (t) => {
  // 64 KiB each: neither filling nor comparing may hold all of them.
  const value = Buffer.alloc(65_536, 3);
  let most = 0;
  const items: ItemSource = {
    count: 200,
    keySize: 4,
    valueSize: 65_536,
    async read(from, count, keys, values) {
      most = Math.max(most, values.length);
      for (let i = 0; i < count; i++) {
        new DataView(keys.buffer, keys.byteOffset).setUint32(4 * i, from + i, true);
        values.set(value, i * 65_536);
      }
    },
  };
  const { report } = await replayed(t, planned({ valueSize: 65_536, maxEntries: 200 }, items), sys, true);
  t.same(report, FULL);
  t.ok(most <= 1024 * 1024, `${most} bytes at a time`);
});

t.test('--verify finds what is not as in the image', { skip }, async (t) => {
  type Change = (map: BpfMap) => void;
  const meddling = (change: Change, type = HASH): Plugin => {
    const { types: rows } = types.plugin(type);
    return {
      name: 'meddling',
      types: rows,
      replay: async (map, items, work) => {
        const report = (await types.plugin(map.type).replay?.(map, items, work)) ?? FULL;
        change(map);
        return report;
      },
    };
  };
  const cases: [string, Partial<MapSpec>, Change, RegExp][] = [
    [
      'another value',
      {},
      (map) => map.update(u32(7), Buffer.alloc(8, 1)),
      /^map 1 \(planned\), item 07000000: read back, it has a different value than in the image$/,
    ],
    ['a missing item', {}, (map) => map.delete(u32(3)), /^map 1 \(planned\), item 03000000: read back, it is missing$/],
    [
      'one too many',
      {},
      (map) => map.update(u32(99), Buffer.alloc(8, 1)),
      /^map 1 \(planned\): read back, it has 11 items, expected 10 to 10$/,
    ],
    [
      'another index',
      { type: ARRAY },
      (map) => map.update(u32(7), Buffer.alloc(8)),
      /item 07000000: read back, it has a different/,
    ],
    ['an LRU', { type: LRU_HASH }, (map) => map.delete(u32(0)), /item 00000000: read back, it is missing/],
  ];
  for (const [what, spec, change, message] of cases) {
    const items = someItems(10);
    const plan = planned(spec, items, { plugin: meddling(change) });
    const before = fdCount();
    await t.rejects(replay(sys, [plan], { verify: true }), { message }, what);
    t.equal(fdCount(), before);
    const [fresh] = await replay(sys, [plan]);
    fresh?.map.close();
  }
  // What fills a CPU's value up to 8 bytes is the kernel's: Linux 7.2 zeroes it, as is done here.
  for (const type of [PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH]) {
    // Room enough: an update of a full LRU map may drop another item.
    const perCpu = { type, valueSize: 12, maxEntries: type === PERCPU_ARRAY ? 10 : 100 };
    const [key, value] = someItems(10, 4, 16 * sys.cpus)[7] as [Buffer, Buffer];
    const change = (place: number) => (map: BpfMap) => {
      for (let at = place; at < value.length; at += 16) value.fill(0, at, at + 4);
      map.update(key, value);
    };
    const padding = planned(perCpu, someItems(10, 4, 16 * sys.cpus), { plugin: meddling(change(12), type) });
    for (const { map } of await replay(sys, [padding], { verify: true })) map.close();
    const last = planned(perCpu, someItems(10, 4, 16 * sys.cpus), { plugin: meddling(change(8), type) });
    await t.rejects(replay(sys, [last], { verify: true }), { message: /item 07000000: read back, it has a different/ });
  }
  const trie = { type: TRIE, keySize: 8, flags: MAP_FLAG.NO_PREALLOC };
  // A lookup finds the shorter prefix with the same value.
  const items = [
    [u32(8, 10), Buffer.alloc(8, 1)],
    [u32(16, 10), Buffer.alloc(8, 1)],
  ] as const;
  const plan = planned(trie, items, { plugin: meddling((map) => map.delete(u32(16, 10))) });
  await t.rejects(replay(sys, [plan], { verify: true }), { message: /read back, it has 1 items, expected 2 to 2/ });
});
