/** Capture and replay of real maps, with bpftool as the witness: what comes back, and what is left when it fails. */

import * as fs from 'node:fs';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { type ReplayArguments, run } from '../src/cli/commands/replay.js';
import { ClosedPipe } from '../src/errors.js';
import { MemoryOutput } from '../src/io/output.js';
import { MAP_FLAG } from '../src/kernel/abi.js';
import { isLive, walkIds } from '../src/kernel/live.js';
import { BpfMap, type MapSpec } from '../src/kernel/map.js';
import { ERRNO, openSys, type Sys } from '../src/kernel/sys.js';
import { Pins, pinName, pinNames, planPins } from '../src/replay/pins.js';
import { TOP } from './helpers/command.js';
import { features } from './helpers/features.js';
import type { Item } from './helpers/images.js';
import { bpffs, bpftool, skipWithoutMaps, u32, witness } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import { cli, dumpOf, type MapImage, MeddledSys, readBack, someItems, usualReplay } from './helpers/replay.js';
import { types } from './helpers/types.js';

t.setTimeout(patience(120_000));
const skip = await skipWithoutMaps();
const has = await features();
const sys = await openSys(types);
const [HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, LRU_PERCPU_HASH, TRIE] = [1, 2, 5, 6, 9, 10, 11] as const;
const F = MAP_FLAG;
const FLOWD = path.join(TOP, 'fixtures/flowd');

/** A folder for pins on a BPF file system that is this test's own. */
function pinPlace(t: Test): string {
  const { folder, remove } = bpffs();
  t.teardown(remove);
  // Not its root, where the kernel puts files of its own.
  const place = path.join(folder, 'place');
  fs.mkdirSync(place);
  return place;
}

interface Row {
  readonly map_id: number;
  readonly new_id: number;
  readonly name: string;
  readonly type: string;
  readonly items: number;
  readonly pin: string;
  readonly report: string;
}

/** Replays a dump into pins; the rows of --json. */
async function pinned(t: Test, dump: string, folder: string, ...args: string[]): Promise<Row[]> {
  const { status, stdout, stderr } = await cli(['replay', dump, '--pin', folder, '--json', ...args]);
  t.equal(stderr, '');
  t.equal(status, 0);
  return (JSON.parse(stdout) as { maps: Row[] }).maps;
}

interface Shown {
  readonly [member: string]: unknown;
  readonly map_id: number;
  readonly items?: Record<string, unknown>[];
}

/** A dump as `decode` shows it. */
async function decoded(dump: string): Promise<Shown[]> {
  const { status, stdout, stderr } = await cli(['decode', dump]);
  if (status !== 0) throw new Error(stderr);
  return (JSON.parse(stdout) as { maps: Shown[] }).maps;
}

/** The map of a pin, open until the test ends. */
function openPinned(t: Test, pin: string): BpfMap {
  const map = BpfMap.openPinned(sys, pin);
  t.teardown(() => map.close());
  return map;
}

/** Ids of all maps there are. Other tests make and remove some at the same time. */
const ids = () => new Set(walkIds(sys, 'MAP_GET_NEXT_ID'));

// ---------------------------------------------------------------------------------------------------
// Every corner of every type

interface Corner extends Omit<MapSpec, 'type' | 'flags' | 'name'> {
  /** Items; all of them when not said. */
  readonly count?: number;
  readonly frozen?: true;
  readonly flags?: number;
  readonly name?: string;
}

const table = (more: Corner[]): Corner[] => [
  { keySize: 1, valueSize: 1, maxEntries: 1 },
  { keySize: 1, valueSize: 3, maxEntries: 200 },
  { keySize: 2, valueSize: 8, maxEntries: 300, count: 100 },
  { keySize: 3, valueSize: 5, maxEntries: 50, frozen: true },
  { keySize: 512, valueSize: 16, maxEntries: 20 },
  { keySize: 4, valueSize: 8, maxEntries: 10, count: 0 },
  { keySize: 4, valueSize: 8, maxEntries: 10, count: 0, frozen: true },
  { keySize: 4, valueSize: 8, maxEntries: 64, count: 10, flags: F.RDONLY_PROG, frozen: true },
  { keySize: 4, valueSize: 8, maxEntries: 64, count: 10, flags: F.WRONLY_PROG },
  { keySize: 4, valueSize: 8, maxEntries: 500, flags: F.ZERO_SEED },
  ...more,
];
const row = (more: Corner[]): Corner[] => [
  { keySize: 4, valueSize: 1, maxEntries: 1 },
  { keySize: 4, valueSize: 1, maxEntries: 100 },
  { keySize: 4, valueSize: 8, maxEntries: 33 },
  { keySize: 4, valueSize: 12, maxEntries: 700, frozen: true },
  { keySize: 4, valueSize: 4096, maxEntries: 5 },
  { keySize: 4, valueSize: 8, maxEntries: 64, flags: F.RDONLY_PROG, frozen: true },
  { keySize: 4, valueSize: 8, maxEntries: 64, flags: F.WRONLY_PROG },
  // Nothing but zeros.
  { keySize: 4, valueSize: 8, maxEntries: 64, count: 0 },
  ...more,
];
const large = 65_536;
const CORNERS: [type: number, Corner[]][] = [
  [
    HASH,
    table([
      { keySize: 512, valueSize: large, maxEntries: 4 },
      { keySize: 16, valueSize: 24, maxEntries: 1000, count: 500, flags: F.NO_PREALLOC },
      { keySize: 4, valueSize: 8, maxEntries: 16, flags: F.NUMA_NODE },
      { keySize: 4, valueSize: 8, maxEntries: 16, flags: F.NO_PREALLOC | F.ZERO_SEED | F.NUMA_NODE | F.RDONLY_PROG },
      { keySize: 4, valueSize: 8, maxEntries: 3, name: '' },
      { keySize: 4, valueSize: 8, maxEntries: 3, name: 'a.b.c' },
      { keySize: 4, valueSize: 8, maxEntries: 3, name: '.' },
      { keySize: 4, valueSize: 8, maxEntries: 3, name: 'fl\xf6w\xc0\xff' },
      { keySize: 4, valueSize: 8, maxEntries: 3, name: 'fifteen_bytes_x' },
    ]),
  ],
  [
    ARRAY,
    row([
      { keySize: 4, valueSize: large, maxEntries: 4 },
      { keySize: 4, valueSize: 8, maxEntries: 16, flags: F.NUMA_NODE },
      { keySize: 4, valueSize: 8, maxEntries: 16, flags: F.INNER_MAP },
      ...[1, 8, 12, 4096, large].map((valueSize) => {
        return { keySize: 4, valueSize, maxEntries: valueSize > 4096 ? 3 : 300, flags: F.MMAPABLE };
      }),
      { keySize: 4, valueSize: 12, maxEntries: 1000, flags: F.MMAPABLE, frozen: true },
      { keySize: 4, valueSize: 12, maxEntries: 1000, flags: F.MMAPABLE | F.RDONLY_PROG },
      { keySize: 4, valueSize: 4, maxEntries: 1, flags: F.MMAPABLE | F.RDONLY_PROG, frozen: true, name: '.rodata' },
    ]),
  ],
  [
    PERCPU_HASH,
    table([
      { keySize: 4, valueSize: 12, maxEntries: 30, flags: F.NO_PREALLOC },
      { keySize: 4, valueSize: 32_768, maxEntries: 2 },
    ]),
  ],
  [PERCPU_ARRAY, row([{ keySize: 4, valueSize: 32_768, maxEntries: 2 }])],
  [
    LRU_HASH,
    table([
      { keySize: 512, valueSize: large, maxEntries: 4 },
      { keySize: 4, valueSize: 8, maxEntries: 16, flags: F.NUMA_NODE },
      { keySize: 4, valueSize: 8, maxEntries: 250, flags: F.NO_COMMON_LRU },
    ]),
  ],
  [LRU_PERCPU_HASH, table([{ keySize: 4, valueSize: 12, maxEntries: 250, flags: F.NO_COMMON_LRU }])],
  [
    TRIE,
    [
      { keySize: 5, valueSize: 1, maxEntries: 1 },
      { keySize: 8, valueSize: 3, maxEntries: 100 },
      { keySize: 20, valueSize: 8, maxEntries: has.hugeTries ? 2 ** 32 - 1 : 1 << 16, count: 100 },
      { keySize: 260, valueSize: large, maxEntries: 3 },
      { keySize: 8, valueSize: 8, maxEntries: 10, count: 0, frozen: true },
      { keySize: 8, valueSize: 8, maxEntries: 10, flags: F.NUMA_NODE, frozen: true },
      { keySize: 8, valueSize: 8, maxEntries: 10, flags: F.RDONLY_PROG, frozen: true },
      { keySize: 8, valueSize: 8, maxEntries: 10, flags: F.WRONLY_PROG },
    ].map((one) => ({ ...one, flags: (one.flags ?? 0) | F.NO_PREALLOC }) as Corner),
  ],
];

/** Items for a map; keys of tries have prefixes of all lengths. */
function itemsFor(map: BpfMap, count: number): Item[] {
  const items = someItems(count, map.keySize, map.valueStride);
  if (map.type !== TRIE) return items.map(([key, value], i) => [map.keySize === 4 ? u32(i) : key, value]);
  return items.map(([key, value], i) => {
    const bits = 8 * (map.keySize - 4);
    const prefix = Buffer.concat([u32(i === 0 ? bits : bits - (i % 3)), key.subarray(4)]);
    prefix.writeUIntLE(i * 8, 4, Math.min(4, map.keySize - 4));
    return [prefix, value];
  });
}

for (const [type, corners] of CORNERS) {
  const typeName = types.get(type).name;
  t.test(`every corner of ${typeName} comes back`, { skip }, async (t) => {
    const folder = t.testdir();
    const place = pinPlace(t);
    const originals = corners.map((corner, i) => {
      const { count = corner.maxEntries, frozen, name = `c${i}`, ...spec } = corner;
      const map = BpfMap.create(sys, { type, name, numaNode: 0, ...spec });
      for (const [key, value] of itemsFor(map, count)) map.update(key, value);
      if (frozen) map.freeze();
      return { map, id: map.id, corner, count };
    });
    const shown = (id: number) => {
      const { id: _, ...rest } = bpftool('map', 'show', 'id', String(id)) as Record<string, unknown>;
      return { ...rest, pids: undefined };
    };
    const before = originals.map(({ map }) => ({
      shown: shown(map.id),
      items: witness(map),
      state: map.state().frozen,
    }));
    const capture = async (maps: readonly { id: number }[], name: string) => {
      const dump = path.join(folder, name);
      const chosen = maps.flatMap(({ id }) => ['--id', String(id)]);
      const { status, stdout, stderr } = await cli(['capture', ...chosen, '-D', dump]);
      t.equal(`${status} ${stderr}`, '0 ', stdout);
      return dump;
    };
    const first = await capture(originals, 'first');
    for (const { map } of originals) map.close();
    // Closed; the kernel frees some types a moment later.
    for (let i = 0; i < 100 && originals.some(({ id }) => isLive(sys, id)); i++)
      await new Promise((go) => setTimeout(go, 20));
    t.notOk(
      originals.some(({ id }) => isLive(sys, id)),
      'the originals are gone',
    );

    const rows = await pinned(t, first, path.join(place, 'pins'), '--verify');
    t.same(
      rows.map(({ map_id }) => map_id),
      originals.map(({ id }) => id),
    );
    for (const [i, { pin, new_id, report }] of rows.entries()) {
      const what = `${typeName} ${JSON.stringify(originals[i]?.corner)}`;
      const map = openPinned(t, pin);
      t.equal(map.id, new_id);
      t.equal(report, 'full', what);
      t.same(shown(new_id), before[i]?.shown, what);
      t.same(witness(map), before[i]?.items, what);
      t.equal(map.state().frozen, before[i]?.state, what);
      t.equal(map.state().frozen, originals[i]?.corner.frozen === true);
    }

    const again = await capture(
      rows.map(({ new_id }) => ({ id: new_id })),
      'again',
    );
    // Whoever looks at all maps of the machine meanwhile is among the holders.
    const plain = ({ map_id: _, meta: __, files: ___, items = [], ...map }: Shown) => {
      const ordered = String(map.map_flags).includes('ZERO_SEED') && /^(percpu_)?hash$/.test(String(map.type));
      const lines = items.map((one) => JSON.stringify(one));
      return { ...map, items: ordered ? lines : lines.sort() };
    };
    const [was, is] = [await decoded(first), await decoded(again)];
    t.equal(is.length, corners.length);
    for (const [i, map] of is.entries()) t.same(plain(map), plain(was[i] as Shown), String(map.name));
  });
}

// ---------------------------------------------------------------------------------------------------
// Dumps of CRIU, and edits

/** What an image has, as the witness shows it. */
function expectedItems(map: Shown): Record<string, string> {
  return Object.fromEntries((map.items ?? []).map(({ key, value }) => [String(key), String(value)]));
}

t.test('a dump of CRIU replays: bpftool sees exactly its items', { skip }, async (t) => {
  const place = pinPlace(t);
  const rows = await pinned(t, FLOWD, path.join(place, 'flowd'), '--verify');
  const maps = await decoded(FLOWD);
  t.same(
    rows.map(({ map_id, name }) => [map_id, name]),
    maps.map(({ map_id, name }) => [map_id, name]),
  );
  t.same(fs.readdirSync(path.join(place, 'flowd')).sort(), [
    'cfg',
    'flows',
    'map_382',
    'odd_sizes',
    'pages',
    'seen_tmp',
  ]);
  for (const [i, map] of maps.entries()) {
    const live = openPinned(t, rows[i]?.pin ?? '');
    t.same(witness(live), expectedItems(map), `${map.name}`);
    const {
      name = '',
      type,
      bytes_key,
      bytes_value,
      max_entries,
      frozen,
    } = bpftool('map', 'show', 'id', String(live.id)) as Record<string, unknown>;
    t.same(
      {
        name,
        type,
        key_size: bytes_key,
        value_size: bytes_value,
        max_entries,
        frozen: frozen !== 0 && frozen !== undefined,
      },
      {
        name: map.name,
        type: map.type,
        key_size: map.key_size,
        value_size: map.value_size,
        max_entries: map.max_entries,
        frozen: map.frozen,
      },
    );
  }
  const cfg = openPinned(t, path.join(place, 'flowd', 'cfg'));
  t.equal(cfg.state().frozen, true);
  t.throws(() => cfg.update(u32(0), Buffer.alloc(64)), { code: 'EPERM' });
  t.equal(maps.filter(({ items = [] }) => items.length > 0).length, 5, 'they have items');
});

t.test('what is edited as JSON is what the kernel then has', { skip }, async (t) => {
  const folder = t.testdir();
  const place = pinPlace(t);
  const { stdout } = await cli(['decode', FLOWD, '--map', 'odd_sizes', '--map', 'cfg']);
  const document = JSON.parse(stdout) as {
    maps: { items: { key: string; value: string }[]; name: string; frozen: boolean; max_entries: number }[];
  };
  const [cfg, odd] = document.maps as [(typeof document.maps)[0], (typeof document.maps)[0]];
  const [changed, removed] = odd.items as [{ key: string; value: string }, { key: string; value: string }];
  changed.value = 'fedcba9876';
  odd.items.splice(1, 1);
  odd.items.push({ key: 'ffeedd', value: '0102030405' });
  odd.name = 'edited.map';
  odd.max_entries = 64;
  cfg.frozen = false;
  const before = await decoded(FLOWD);
  t.equal((await cli(['encode', '-D', path.join(folder, 'edited')], { input: JSON.stringify(document) })).stderr, '');
  const rows = await pinned(t, path.join(folder, 'edited'), path.join(place, 'edited'));
  const live = openPinned(t, path.join(place, 'edited', 'edited_map'));
  const expected = expectedItems(before.find(({ name }) => name === 'odd_sizes') as Shown);
  delete expected[removed.key];
  t.same(witness(live), { ...expected, [changed.key]: 'fedcba9876', ffeedd: '0102030405' });
  t.match(bpftool('map', 'show', 'id', String(live.id)), { name: 'edited.map', max_entries: 64 });
  t.equal(openPinned(t, rows.find(({ name }) => name === 'cfg')?.pin ?? '').state().frozen, false);
  // A key that is there already: the later one counts.
  odd.items.push({ key: 'ffeedd', value: '0a0b0c0d0e' });
  t.equal((await cli(['encode', '-D', path.join(folder, 'twice')], { input: JSON.stringify(document) })).stderr, '');
  const [, twice] = await pinned(t, path.join(folder, 'twice'), path.join(place, 'twice'), '--verify');
  t.equal(twice?.report, 'full');
  t.equal(witness(openPinned(t, twice?.pin ?? '')).ffeedd, '0a0b0c0d0e');
});

t.test('a map without a data entry, or captured in part, says what it lacks', { skip }, async (t) => {
  const place = pinPlace(t);
  const dump = dumpOf(t.testdir(), { id: 1, name: 'none' }, { id: 2, name: 'empty', items: [] });
  const rows = await pinned(t, dump, place);
  t.same(
    rows.map(({ report }) => report),
    ['partial: no items, because the dump has no data entry for it', 'full'],
  );
});

// ---------------------------------------------------------------------------------------------------
// All or nothing

const good: MapImage = { id: 1, name: 'good', items: someItems(3) };
const index = (i: number, value = 8): Item => [u32(i), Buffer.alloc(value, 1)];

const REFUSED: [what: string, maps: MapImage[], message: RegExp][] = [
  [
    'max_entries 0',
    [{ id: 77, name: 'bad.one', max: 0, items: [] }],
    /^map 77 \(bad\.one\): BPF_MAP_CREATE: EINVAL \(max_entries 0, expected 1 to \d+\)$/,
  ],
  [
    'key_size 0',
    [{ id: 77, name: 'bad', key: 0, items: [] }],
    /^map 77 \(bad\): BPF_MAP_CREATE: EINVAL \(key_size 0, .*\)$/,
  ],
  [
    'a key that is too large',
    [{ id: 77, name: 'bad', key: 5_000_000, items: [] }],
    /^map 77 \(bad\): BPF_MAP_CREATE: E2BIG \(key_size 5000000/,
  ],
  ['an unnamed map', [{ id: 77, name: '', max: 0 }], /^map 77: BPF_MAP_CREATE: EINVAL/],
  [
    'a name the kernel does not take',
    [{ id: 77, name: 'a/b' }],
    /^map 77 \(a\/b\): BPF_MAP_CREATE: EINVAL \(byte 0x2f is not allowed in the name\)$/,
  ],
  [
    'unknown flags',
    [{ id: 77, name: 'bad', flags: 0x8000_0000 }],
    /^map 77 \(bad\): BPF_MAP_CREATE: EINVAL \(map_flags 0x80000000 not accepted\)$/,
  ],
  [
    'files that disagree',
    [
      { id: 77, name: 'bad', items: [] },
      { id: 77, name: 'bad', max: 17 },
    ],
    /^\S+: map 77 \(bad\): two of its open files disagree about max_entries$/,
  ],
  [
    'an index beyond',
    [{ id: 77, name: 'bad', type: ARRAY, max: 4, items: [index(0), index(1), index(4)] }],
    /^map 77 \(bad\), item 04000000: BPF_MAP_UPDATE_BATCH: E2BIG \(.*index is not below max_entries; max_entries 4\)$/,
  ],
  [
    'an index beyond, in memory',
    [{ id: 77, name: 'bad', type: ARRAY, flags: F.MMAPABLE, max: 4, items: [index(0), index(1000)] }],
    /^map 77 \(bad\), item e8030000: BPF_MAP_UPDATE_ELEM: E2BIG \(.*\)$/,
  ],
  [
    'a prefix that is too long',
    [
      {
        id: 77,
        name: 'bad',
        type: TRIE,
        key: 8,
        flags: F.NO_PREALLOC,
        items: [
          [u32(32, 1), Buffer.alloc(8)],
          [u32(33, 7), Buffer.alloc(8)],
        ],
      },
    ],
    /^map 77 \(bad\), item 2100000007000000: BPF_MAP_UPDATE_(ELEM|BATCH): EINVAL \(.*\)$/,
  ],
  [
    'more items than max_entries',
    [{ id: 77, name: 'bad', max: 16, items: someItems(17) }],
    /^map 77 \(bad\), item 10000000: BPF_MAP_UPDATE_BATCH: E2BIG \(it is full, .*; max_entries 16\)$/,
  ],
  [
    'more prefixes than max_entries',
    [
      {
        id: 77,
        name: 'bad',
        type: TRIE,
        key: 8,
        max: 2,
        flags: F.NO_PREALLOC,
        items: [1, 2, 3].map((n) => [u32(32, n), Buffer.alloc(8)] as const),
      },
    ],
    new RegExp(
      `^map 77 \\(bad\\), item 2000000003000000: BPF_MAP_UPDATE_${has.trieBatches ? 'BATCH' : 'ELEM'}: ` +
        'ENOSPC \\(it is full; max_entries 2\\)$',
    ),
  ],
  [
    'keys of another size',
    [{ id: 77, name: 'bad', key: 4, items: [[Buffer.alloc(5), Buffer.alloc(8)]] }],
    /^\S+: map 77 \(bad\): it has 5 bytes of keys and 8 of values for 1 item, expected 4 and 8 bytes each$/,
  ],
  [
    'values of another size',
    [{ id: 77, name: 'bad', type: PERCPU_HASH, value: 9, items: [[u32(0), Buffer.alloc(8)]] }],
    /^\S+: map 77 \(bad\): it has 4 bytes of keys and 8 of values for 1 item, expected 4 and 9 bytes each$/,
  ],
];

t.test('when one map fails nothing is left', { skip }, async (t) => {
  const parent = t.testdir();
  const place = pinPlace(t);
  const mine = path.join(place, 'mine');
  fs.mkdirSync(mine);
  for (const [what, maps, message] of REFUSED) {
    t.test(what, async (t) => {
      // Behind a map that is good, and before another.
      const dump = dumpOf(parent, good, ...maps, { ...good, id: 2 });
      const before = ids();
      for (const folder of [path.join(place, 'new'), mine]) {
        const { status, stdout, stderr } = await cli(['replay', dump, '--pin', folder, '--verify']);
        t.equal(stdout, '');
        t.match(stderr, /^bpfimg: [^\n]+\n$/, 'one line');
        t.match(stderr.slice('bpfimg: '.length, -1), message);
        t.equal(status, 1);
        t.same(fs.readdirSync(place), ['mine'], 'no folder');
        t.same(fs.readdirSync(mine), [], 'no pins');
      }
      // Other maps may come and go meanwhile, but none that has our names.
      const left = [...ids()].filter((id) => !before.has(id)).filter((id) => named(id, ['good', 'bad']));
      t.same(left, [], 'no maps');
    });
  }
});

/** Whether a map that just came has one of these names. Opened only when it is held: by a process, so by us. */
function named(id: number, names: readonly string[]): boolean {
  try {
    const { name } = bpftool('map', 'show', 'id', String(id)) as { name?: string };
    return names.includes(name ?? '');
  } catch {
    return false;
  }
}

t.test('data that no file describes', { skip }, async (t) => {
  const dump = dumpOf(t.testdir(), { id: 1, items: someItems(2) });
  fs.rmSync(path.join(dump, 'bpfmap-file.img'));
  t.match(await cli(['replay', dump, '--dry-run']), {
    status: 1,
    stdout: '',
    stderr: /^bpfimg: \S+: map 1: no image describes it\n$/,
  });
});

/** Runs the command with a kernel of the test's. */
async function runWith(kernel: MeddledSys, args: Partial<ReplayArguments>, stdout = new MemoryOutput()) {
  const said: string[] = [];
  const io = {
    stdin: () => Promise.reject(new Error('replay reads no input')),
    stdout: () => stdout,
    say: (line: string) => said.push(line),
    show: () => {},
    terminal: false,
    columns: undefined,
    env: {},
  };
  return await run({ ...usualReplay, ...args }, io, kernel);
}

t.test('when pinning fails in the middle nothing is left', { skip }, async (t) => {
  const place = pinPlace(t);
  const dump = dumpOf(t.testdir(), good, { ...good, id: 2, name: 'other' }, { ...good, id: 3 });
  const opened = sys.openFds().length;
  for (const folder of [path.join(place, 'new'), place]) {
    let pins = 0;
    const kernel = new MeddledSys(sys, (command) =>
      command === 'OBJ_PIN' && ++pins === 2 ? -ERRNO.ENOMEM : undefined,
    );
    await t.rejects(runWith(kernel, { source: dump, pin: folder }), {
      message: `map 2 (other), pin ${path.join(folder, 'other')}: BPF_OBJ_PIN: ENOMEM (not enough memory)`,
    });
    t.equal(pins, 2);
    t.same(fs.readdirSync(place), []);
  }
  t.equal(sys.openFds().length, opened, 'no map stays open');

  t.test('what others put into a new folder stays there', async (t) => {
    const folder = path.join(place, 'shared');
    let pins = 0;
    const kernel = new MeddledSys(sys, (command) => {
      if (command !== 'OBJ_PIN' || ++pins !== 2) return undefined;
      fs.mkdirSync(path.join(folder, 'theirs'));
      return -ERRNO.ENOMEM;
    });
    await t.rejects(
      runWith(kernel, { source: dump, pin: folder }),
      { message: /BPF_OBJ_PIN: ENOMEM/ },
      'the first reason',
    );
    t.same(fs.readdirSync(folder), ['theirs']);
    fs.rmdirSync(path.join(folder, 'theirs'));
    fs.rmdirSync(folder);
  });

  t.test('pins stay only when the table could be written', async (t) => {
    class Failing extends MemoryOutput {
      constructor(readonly error: Error) {
        super();
      }
      override async commit(): Promise<void> {
        throw this.error;
      }
    }
    const kernel = new MeddledSys(sys);
    const full = new Error('no space left');
    const folder = path.join(place, 'told');
    await t.rejects(runWith(kernel, { source: dump, pin: folder }, new Failing(full)), full);
    t.same(fs.readdirSync(place), []);
    // But nobody needs to read it to its end.
    t.equal(await runWith(kernel, { source: dump, pin: folder }, new Failing(new ClosedPipe())), 0);
    t.same(fs.readdirSync(folder).sort(), ['good-1', 'good-3', 'other']);
  });
});

t.test('when --verify finds a difference nothing is left', { skip }, async (t) => {
  const place = pinPlace(t);
  const dump = dumpOf(t.testdir(), good, { ...good, id: 2, name: 'other' });
  let creates = 0;
  const kernel = new MeddledSys(sys, (command, attr) => {
    if (command === 'MAP_CREATE') creates++;
    // The second map gets a value that the image does not have.
    if (command === 'MAP_UPDATE_BATCH' && creates === 2) (attr.pointee('values') as Buffer)[8] = 0x99;
    return undefined;
  });
  await t.rejects(runWith(kernel, { source: dump, pin: path.join(place, 'new'), verify: true }), {
    message: 'map 2 (other), item 01000000: read back, it has a different value than in the image',
  });
  t.same(fs.readdirSync(place), []);
  creates = 0;
  t.equal(await runWith(kernel, { source: dump, pin: path.join(place, 'new') }), 0, 'which only --verify finds');
});

// ---------------------------------------------------------------------------------------------------
// Pins

t.test('names from images cannot lead out of the pin folder, nor replace anything', { skip }, async (t) => {
  const names = [
    '../../x',
    '/etc/x',
    'a/b',
    '.',
    '..',
    '',
    '\0',
    'a\0b',
    'x'.repeat(300),
    '\xe9'.repeat(300),
    '\n',
    '-rf',
    '../',
    'a.b',
    'a_b',
    'a_b',
    'map_7',
    '$(x)',
    '\u00ff',
  ];
  const place = pinPlace(t);
  const folder = path.join(place, 'in', 'here');
  fs.mkdirSync(path.join(place, 'in'));
  fs.mkdirSync(folder);
  using first = BpfMap.create(sys, { type: HASH, keySize: 4, valueSize: 4, maxEntries: 1 });
  first.pin(path.join(folder, 'a_b'));
  fs.mkdirSync(path.join(folder, 'x'));
  const around = () => [place, path.join(place, 'in')].map((one) => fs.readdirSync(one));
  const before = around();
  const named = (name: string, mapId: number) => ({ name, mapId, subject: name, pins: [], needed: [] });
  const maps = names.map(named);
  t.throws(() => Pins.open({ folder, taken: 'fail' }, [named('x', 1)], sys), {
    message: `${folder}: x: pinned there already; choose another folder with --pin, other names with --rename-taken, or exchange the maps with --swap`,
  });
  const pins = Pins.open({ folder, taken: 'rename' }, maps, sys);
  const made = maps.flatMap((_, i) => pins.add(i, (file) => first.pin(file)).pins);
  t.equal(new Set(made).size, names.length, 'each its own');
  for (const file of made) t.equal(path.dirname(file), folder, path.basename(file));
  t.same(around(), before);
  t.same(fs.readdirSync(folder).sort(), [...made.map((file) => path.basename(file)), 'a_b', 'x'].sort());
  t.ok(made.every((file) => /^[A-Za-z0-9_-]+$/.test(path.basename(file))));
  pins.undo();
  t.same(fs.readdirSync(folder).sort(), ['a_b', 'x'], 'only what it made is removed');
  t.equal(openPinned(t, path.join(folder, 'a_b')).id, first.id);
  t.same(
    [pinName('a.b', 1), pinName('..', 1), pinName('', 2), pinName('\xe9', 3), pinName('fl\xf6w', 3)],
    ['a_b', 'map_1', 'map_2', 'map_3', 'fl_w'],
  );
});

t.test('maps of hostile and of equal names are pinned side by side', { skip }, async (t) => {
  const place = pinPlace(t);
  const kernelTakes = ['.', '..', '', 'a.b', 'a_b', 'a_b', 'fl\xf6w', 'cut\0../../x'];
  const dump = dumpOf(t.testdir(), ...kernelTakes.map((name, i) => ({ ...good, id: i + 1, name })));
  using mine = BpfMap.create(sys, { type: HASH, keySize: 4, valueSize: 4, maxEntries: 1 });
  mine.pin(path.join(place, 'a_b'));
  const names = ['map_1', 'map_2', 'map_3', 'a_b-4', 'a_b-5', 'a_b-6', 'fl_w', 'cut'];
  const rows = await pinned(t, dump, place);
  t.same(
    rows.map(({ pin }) => path.basename(pin)),
    names,
  );
  t.equal(rows[7]?.report, 'partial: its name is cut off at a NUL byte');
  t.equal(openPinned(t, path.join(place, 'a_b')).id, mine.id, 'what was there before is still there');
  t.same(
    rows.map(({ pin }) => openPinned(t, pin).name),
    [...kernelTakes.slice(0, 7), 'cut'],
  );
  // Once more into the same folder.
  const taken = `${place}: map_1, map_2, map_3, a_b-4, a_b-5, and 3 more: pinned there already; `;
  const ways = 'choose another folder with --pin, other names with --rename-taken, or exchange the maps with --swap\n';
  for (const args of [[], ['--dry-run'], ['--dry-run', '--json']]) {
    const { status, stdout, stderr } = await cli(['replay', dump, '--pin', place, ...args]);
    t.same({ status, stderr }, { status: 1, stderr: `bpfimg: ${taken}${ways}` });
    if (args.length === 0) t.equal(stdout, '', 'nothing was created');
    else for (const name of names) t.match(stdout, path.join(place, name));
  }
  t.same(fs.readdirSync(place).sort(), ['a_b', ...names].sort());
  const others = ['map_1-1', 'map_2-2', 'map_3-3', 'a_b-4-2', 'a_b-5-2', 'a_b-6-2', 'fl_w-7', 'cut-8'];
  for (const args of [['--dry-run'], []]) {
    const more = await pinned(t, dump, place, '--rename-taken', ...args);
    t.same(
      more.map(({ pin }) => path.basename(pin)),
      others,
    );
  }
  t.match(await cli(['replay', dump, '--hold', '--rename-taken']), {
    status: 2,
    stderr: /--rename-taken is for the pins/,
  });
});

t.test('names of pins, where maps share one', async (t) => {
  const named = (...names: string[]) => names.map((name, i) => ({ name, mapId: i + 1 }));
  t.same(pinNames(named('a', 'b')), ['a', 'b']);
  t.same(pinNames(named('a', 'b', 'a')), ['a-1', 'b', 'a-3']);
  t.same(pinNames(named('a-3', 'a', 'a')), ['a-3', 'a-2', 'a-3-2'], 'each another');
  t.same(pinNames(named('a', 'b'), ['a', 'b', 'b-2']), ['a-1', 'b-2-2']);
  t.same(pinNames(named('.rodata', '_rodata')), ['_rodata-1', '_rodata-2']);
});

t.test('somebody else pins while a replay does', { skip }, async (t) => {
  const place = pinPlace(t);
  const dump = dumpOf(t.testdir(), { ...good, id: 1, name: 'quick' });
  using mine = BpfMap.create(sys, { type: HASH, keySize: 4, valueSize: 4, maxEntries: 1 });
  let other: string | undefined = path.join(place, 'quick');
  const kernel = new MeddledSys(sys, (command) => {
    if (command === 'OBJ_PIN' && other !== undefined) {
      const file = other;
      other = undefined;
      mine.pin(file);
    }
    return undefined;
  });
  await t.rejects(runWith(kernel, { source: dump, pin: place }), {
    message: /: quick: pinned there already; choose another folder/,
  });
  t.same(fs.readdirSync(place), ['quick'], 'theirs stays, ours is gone');
  fs.rmSync(path.join(place, 'quick'));
  other = path.join(place, 'quick');
  t.equal(await runWith(kernel, { source: dump, pin: place, renameTaken: true }), 0);
  t.same(fs.readdirSync(place).sort(), ['quick', 'quick-2']);
});

t.test('a pin that continues a name cut off by the kernel has the whole name', { skip }, async (t) => {
  const place = pinPlace(t);
  const cwd = t.testdir();
  const [one, two, three] = ['flows_by_source_v4', 'flows_by_source_v6', 'elsewhere'];
  const cut = { ...good, name: 'flows_by_source' };
  const dump = dumpOf(cwd, { ...cut, id: 1 }, { ...cut, id: 2 }, { ...cut, id: 3 });
  const old = path.join(place, 'old');
  const rows = await pinned(t, dump, old);
  for (const [i, name] of [one, two, three].entries()) fs.renameSync(rows[i]?.pin as string, path.join(old, name));
  const live = path.join(cwd, 'live');
  const pins = fs.readdirSync(old).flatMap((name) => ['--pinned', path.join(old, name)]);
  t.match(await cli(['capture', ...pins, '-D', live]), { status: 0 });
  const shown = async (name: string) => {
    const { stdout } = await cli(['decode', live, '--map', name, '--format', 'ndjson']);
    return stdout.match(/"map_id":\d+/g)?.length;
  };
  t.same([await shown(one), await shown(two), await shown('flows_by_source')], [1, 1, 1]);
  const fresh = await pinned(t, live, path.join(place, 'new'));
  t.same(
    fresh.map(({ name }) => name),
    [one, two, 'flows_by_source'],
  );
  t.same(fs.readdirSync(path.join(place, 'new')).sort(), ['flows_by_source', one, two].sort());
  t.match(await cli(['replay', live, '--map', 'flows_by_source_v6', '--dry-run']), {
    status: 0,
    stdout: /flows_by_source_v6/,
  });
  const most = ['--max-entries', '4294967295'];
  t.match(await cli(['replay', live, '--map', 'flows_by_source_v6', '--dry-run', ...most]), {
    status: 1,
    stderr: /: map \d+ \(flows_by_source_v6\): max_entries 4294967295, expected /,
  });
});

t.test('places where no pins can be', { skip }, async (t) => {
  const place = pinPlace(t);
  const cwd = t.testdir({ file: 'x' });
  const dump = dumpOf(cwd, good);
  using map = BpfMap.create(sys, { type: HASH, keySize: 4, valueSize: 4, maxEntries: 1 });
  map.pin(path.join(place, 'pin'));
  const cases: [string, RegExp][] = [
    [
      cwd,
      /: not on a BPF file system, which pins need; (mount one with: mount -t bpf bpf \/sys\/fs\/bpf|one is mounted at \/.*)$/,
    ],
    [path.join(cwd, 'new'), /new: not on a BPF file system, which pins need; /],
    [path.join(cwd, 'no/such'), /no: no such folder, which pins need; /],
    [path.join(place, 'no/such'), /no: no such folder, which pins need; /],
    [path.join(cwd, 'file'), /file: not a folder$/],
    [path.join(place, 'pin'), /pin: not a folder$/],
    [path.join(place, 'pin', 'below'), /below: (not a folder|.*)$/],
    [path.join(place, 'a.b'), /a\.b: a folder on a BPF file system cannot have a dot in its name$/],
  ];
  for (const [folder, message] of cases) {
    for (const more of [[], ['--dry-run']]) {
      const { status, stderr } = await cli(['replay', dump, '--pin', folder, ...more]);
      t.equal(status, 1, folder);
      t.match(stderr, /^bpfimg: [^\n]+\n$/);
      t.notMatch(stderr, /internal/);
      t.match(stderr.slice(0, -1), message);
    }
  }
  t.same(
    fs.readdirSync(cwd).filter((name) => !name.startsWith('dump-')),
    ['file'],
  );
  t.same(fs.readdirSync(place), ['pin']);
  const nowhere = path.join(cwd, 'proc');
  t.match(
    planPins({ folder: cwd, taken: 'fail' }, [], { ...sys, proc: nowhere } as Sys).problem?.message,
    /; mount one with: mount -t bpf bpf \/sys\/fs\/bpf$/,
  );
});

// ---------------------------------------------------------------------------------------------------
// Plugins of others

const PLUGIN = `
export default ({ readBuckets, fillHash, FULL }) => ({
  name: 'counting',
  types: [{ number: 1, name: 'hash', since: '3.19', key: 'bytes' }],
  attributes: (spec) => ({ ...spec, maxEntries: spec.maxEntries * 2 }),
  async capture(map, sink, work) {
    const report = await readBuckets(map, sink, work);
    return sink.count > 2 ? report : { kind: 'partial', why: 'only ' + sink.count + ' items' };
  },
  async replay(map, items, work) {
    await fillHash(map, items, work);
    map.update(Buffer.from([9, 9, 9, 9]), new Uint8Array(8));
    return FULL;
  },
});
`;
const QUEUE = `
module.exports = {
  name: 'queue',
  types: [{ number: 22, name: 'queue', since: '4.20', key: 'none' }],
  capture: async () => ({ kind: 'metadata only', why: 'its elements are not read' }),
  replay: async () => ({ kind: 'partial', why: 'it is empty' }),
};
`;

t.test('plugins of others serve capture and replay, as functions and as objects', { skip }, async (t) => {
  const place = pinPlace(t);
  const folder = t.testdir({ libs: { 'counting.mjs': PLUGIN, 'readme.txt': 'x' }, more: { 'queue.cjs': QUEUE } });
  using hash = BpfMap.create(sys, { type: HASH, keySize: 4, valueSize: 8, maxEntries: 4, name: 'h' });
  using queue = BpfMap.create(sys, { type: 22, keySize: 0, valueSize: 8, maxEntries: 4, name: 'q' });
  hash.update(u32(5), Buffer.alloc(8, 5));
  const dump = path.join(folder, 'dump');
  const [libs, more] = [path.join(folder, 'libs'), path.join(folder, 'more')];
  const env = { BPFIMG_LIBS_DIR: `${libs}:${more}` };
  const chosen = ['--id', String(hash.id), '--id', String(queue.id)];
  const captured = await cli(['capture', ...chosen, '-D', dump, '-L', libs, '-L', more, '--json']);
  t.equal(captured.stderr, '');
  t.match(JSON.parse(captured.stdout), {
    maps: [{ report: 'partial: only 1 items' }, { report: 'metadata only: its elements are not read' }],
  });
  for (const [i, options] of [{ env }, {}].entries()) {
    const pin = path.join(place, `p${i}`);
    const libdirs = i === 0 ? [] : ['-L', libs, `--libdir=${more}`];
    const { status, stdout, stderr } = await cli(['replay', dump, '--pin', pin, '--json', ...libdirs], options);
    t.equal(`${status}${stderr}`, '0');
    t.match(JSON.parse(stdout), {
      maps: [
        { report: 'partial: captured partial: only 1 items' },
        { report: 'partial: captured metadata only: its elements are not read; it is empty' },
      ],
    });
    const live = openPinned(t, path.join(pin, 'h'));
    t.equal(live.maxEntries, 8, 'attributes');
    t.same(readBack(live), { '05000000': '05'.repeat(8), '09090909': '00'.repeat(8) });
  }
});

t.test('a broken plugin is one line with its file', { skip }, async (t) => {
  const folder = t.testdir();
  const dump = dumpOf(folder, good);
  const files: [string, string, RegExp][] = [
    ['syntax.mjs', 'export default {', /syntax\.mjs: it cannot be loaded: /],
    ['throws.mjs', 'throw new Error("first\\nsecond")', /throws\.mjs: it cannot be loaded: first/],
    ['call.mjs', 'export default () => { throw new Error("no luck") }', /call\.mjs: it cannot be loaded: no luck$/],
    ['import.mjs', 'import "no-such-package"', /import\.mjs: it cannot be loaded: /],
    ['nothing.mjs', 'export const x = 1', /nothing\.mjs: no plugin: expected an object as its default export$/],
    ['name.mjs', 'export default {types: []}', /name\.mjs: no plugin: expected a name$/],
    ['types.mjs', 'export default {name: "x", types: []}', /types\.mjs: no plugin: expected a list of map types$/],
    ['row.mjs', 'export default {name: "x", types: [null]}', /row\.mjs: no plugin: a type without a number$/],
    [
      'key.mjs',
      'export default {name: "x", types: [{number: 1, name: "hash", since: "3", key: "yes"}]}',
      /key\.mjs: no plugin: type 1: key must be one of/,
    ],
    [
      'hook.mjs',
      'export default {name: "x", types: [{number: 1, name: "h", since: "3", key: "none"}], replay: 1}',
      /hook\.mjs: no plugin: replay must be a function$/,
    ],
    [
      'odd.mjs',
      'export default {name: "x", types: [{number: 1, name: "h", since: "3", key: "none"}], fill() {}}',
      /odd\.mjs: no plugin: unknown member fill$/,
    ],
  ];
  for (const [name, code, message] of files) {
    const libs = fs.mkdtempSync(path.join(folder, 'libs-'));
    fs.writeFileSync(path.join(libs, name), code);
    for (const args of [
      ['replay', dump, '--dry-run'],
      ['capture', '--id', '1', '-D', path.join(libs, 'dump')],
    ]) {
      const { status, stdout, stderr } = await cli([...args, '-L', libs]);
      t.equal(status, 1);
      t.equal(stdout, '');
      t.match(stderr, /^bpfimg: [^\n]+\n$/, 'one line');
      t.match(stderr.slice(0, -1), message);
    }
  }
  t.match(await cli(['replay', dump, '--dry-run', '-L', '/no/such/libs']), {
    status: 1,
    stderr: /^bpfimg: \/no\/such\/libs: cannot read it: no such/,
  });
});
