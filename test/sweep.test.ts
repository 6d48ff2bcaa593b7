/** Sweeps: what changes in an old map while its items are carried over follows, on the real kernel. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { capture } from '../src/capture/capture.js';
import { folderFiles } from '../src/dump/files.js';
import { openDump } from '../src/dump/model.js';
import { LiveMaps } from '../src/kernel/live.js';
import { BpfMap } from '../src/kernel/map.js';
import { openSys } from '../src/kernel/sys.js';
import { planMaps } from '../src/replay/plan.js';
import { replay } from '../src/replay/replay.js';
import { type Reading, sweep } from '../src/replay/sweep.js';
import { BPFIMG, bpfimg } from './helpers/command.js';
import { bpffs, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { keyOf, valueIn, written } from './helpers/kernel-writing.js';
import { patience } from './helpers/needs.js';
import { hexOf, sourceOf } from './helpers/replay.js';
import { types } from './helpers/types.js';

t.setTimeout(patience(120_000));

const skip = await skipWithoutMaps();
if (skip !== false) {
  t.plan(0, skip);
  process.exit();
}
const sys = await openSys(types);

const KINDS = [
  { name: 'hash', type: 1, key: 4, value: 8 },
  { name: 'hash, not preallocated, odd sizes', type: 1, key: 5, value: 7, flags: 1 },
  { name: 'lru_hash', type: 9, key: 4, value: 8 },
  { name: 'percpu_hash', type: 5, key: 4, value: 12 },
  { name: 'array', type: 2, key: 4, value: 8, dense: true },
  { name: 'percpu_array', type: 6, key: 4, value: 4, dense: true },
  { name: 'lpm_trie', type: 11, key: 8, value: 8, flags: 1 },
] as const;
type Kind = (typeof KINDS)[number];

/** Keys in play; of a trie, prefixes that contain each other. */
const KEYS = 60;

function key({ key, type }: Kind, n: number): Buffer {
  const bytes = Buffer.alloc(key);
  if (type === 11) {
    bytes.writeUInt32LE(8 + (n % 12));
    bytes[4] = 10 + Math.floor(n / 12);
    // Bits of the second byte, as many as the prefix has of it; the third is never looked at.
    bytes[5] = (0xff << (8 - Math.min(8, n % 12))) & 0xff;
    bytes[6] = n % 12 > 8 ? (0xff << (16 - (n % 12))) & 0xff : 0;
  } else bytes.writeUInt32LE(n);
  return bytes;
}

function valueFor(map: BpfMap, kind: Kind, n: number): Buffer {
  const bytes = Buffer.alloc(map.valueStride);
  const step = map.valueStride === kind.value ? kind.value : Math.ceil(kind.value / 8) * 8;
  for (let at = 0; at < bytes.length; at += step) bytes.writeUInt32LE(n + at, at);
  return bytes;
}

function all(map: BpfMap): Map<string, string> {
  const items = new Map<string, string>();
  for (let key = map.nextKey(undefined); key !== undefined; key = map.nextKey(key)) {
    items.set(hexOf(key), hexOf(map.lookup(key) as Uint8Array));
  }
  return items;
}

function set(map: BpfMap, kind: Kind, n: number, value: number | undefined): void {
  if (value !== undefined) map.update(key(kind, n), valueFor(map, kind, value));
  else if ('dense' in kind) map.update(key(kind, n), valueFor(map, kind, 0));
  else map.delete(key(kind, n));
}

/** A reading of a map, as the command makes one. */
async function readingOf(map: BpfMap, folder: string): Promise<Reading> {
  const live = LiveMaps.look(sys).select({ ids: [map.id], names: [], pins: [], pids: [] });
  await capture(sys, live, folder, types, {});
  const dump = await openDump(folderFiles(folder));
  const plans = await planMaps(dump, dump.maps, types, { cpus: sys.cpus });
  return { plans, close: () => dump.close() };
}

let state = 7;
const below = (limit: number) => {
  state = (Math.imul(state, 1103515245) + 12345) >>> 0;
  return (state >>> 8) % limit;
};

for (const kind of KINDS) {
  t.test(`${kind.name}: random changes of both maps, against maps in memory`, async (t) => {
    const flags = 'flags' in kind ? kind.flags : 0;
    const dense = 'dense' in kind;
    const shape = { type: kind.type, keySize: kind.key, valueSize: kind.value, flags, name: 'm' };
    for (let round = 0; round < 6; round++) {
      using old = BpfMap.create(sys, { ...shape, maxEntries: dense ? KEYS : 4 * KEYS });
      const folder = t.testdir();
      for (let n = 0; n < KEYS; n++) if (below(3) > 0) set(old, kind, n, 1 + below(5));
      const first = await readingOf(old, path.join(folder, 'first'));
      t.teardown(() => first.close());
      const [fresh] = await replay(sys, first.plans);
      if (fresh === undefined) throw new Error('no map');
      const before = all(fresh.map);
      // What others do to the fresh map, and what the old one has got since.
      const change = (map: BpfMap, most: number) => {
        for (let n = 0; n < KEYS; n++)
          if (below(most) === 0) set(map, kind, n, below(4) === 0 ? undefined : 1 + below(5));
      };
      change(fresh.map, 4);
      const [others, readings] = [all(fresh.map), [before]];
      const counts = { inserted: 0, updated: 0, deleted: 0, kept: 0 };
      const expected = new Map(others);
      const follow = (was: Map<string, string>, now: Map<string, string>) => {
        for (const one of new Set([...was.keys(), ...now.keys()])) {
          const [a, b, c] = [was.get(one), now.get(one), expected.get(one)];
          if (a === b || (b === c && b !== undefined) || (b === undefined && c === undefined)) continue;
          if (a !== c) counts.kept++;
          else if (b === undefined) {
            counts.deleted++;
            expected.delete(one);
          } else {
            counts[a === undefined ? 'inserted' : 'updated']++;
            expected.set(one, b);
          }
        }
      };
      let times = 0;
      const [swept] = await sweep([fresh], {
        most: 10,
        async read() {
          if (times < 2) change(old, 3);
          const reading = await readingOf(old, path.join(folder, `again-${times++}`));
          const now = all(old);
          follow(readings.at(-1) as Map<string, string>, now);
          readings.push(now);
          return reading;
        },
      });
      t.strictSame(new Map([...all(fresh.map)].sort()), new Map([...expected].sort()));
      const sum = { inserted: 0, updated: 0, deleted: 0, kept: 0 };
      for (const one of swept?.sweeps ?? []) {
        for (const what of ['inserted', 'updated', 'deleted', 'kept'] as const) sum[what] += one[what];
        t.equal(one.dropped.size, 0);
      }
      t.strictSame(sum, counts);
      t.equal(times, 3, 'the third sweep finds nothing, and is the last');
      t.equal(swept?.note, undefined);
      fresh.map.close();
    }
  });
}

t.test('no more sweeps than allowed, maps that are gone, and a fresh map that is full', async (t) => {
  using old = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 4, maxEntries: 8, flags: 0, name: 'm' });
  for (let n = 0; n < 4; n++) old.update(u32(n), u32(1));
  const folder = t.testdir();
  const first = await readingOf(old, path.join(folder, 'first'));
  t.teardown(() => first.close());
  const [fresh] = await replay(sys, first.plans);
  if (fresh === undefined) throw new Error('no map');
  t.teardown(() => fresh.map.close());
  let times = 0;
  const read = async () => {
    old.update(u32(0), u32(times + 100));
    return readingOf(old, path.join(folder, String(times++)));
  };
  const [moving] = await sweep([fresh], { most: 3, read });
  t.equal(times, 3);
  t.match(moving, { sweeps: [{ updated: 1 }, { updated: 1 }, { updated: 1 }], note: 'the old map was still changing' });
  t.match(await sweep([fresh], { most: 3, read: async () => undefined }), [
    { sweeps: [], note: 'the old map is gone' },
  ]);
  // Others fill the fresh map.
  for (let n = 0; n < 4; n++) fresh.map.update(u32(100 + n), u32(9));
  const again = await readingOf(old, path.join(folder, 'last'));
  again.close();
  old.update(u32(50), u32(5));
  const [full] = await sweep([fresh], { most: 1, read: () => readingOf(old, path.join(folder, 'full')) });
  t.strictSame([...(full?.sweeps[0]?.dropped ?? [])], [['the map is full', 1]]);
  t.equal(fresh.map.lookup(u32(50)), undefined);
});

t.test('items that were read twice, and bytes that only the kernel writes', async (t) => {
  const old = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 8, maxEntries: 8, flags: 0, name: 'm' });
  t.teardown(() => old.close());
  const value = (kernels: number, ours: number) => Buffer.concat([u32(kernels), u32(ours)]);
  old.update(u32(1), value(0, 1));
  const first = await readingOf(old, path.join(t.testdir(), 'first'));
  t.teardown(() => first.close());
  const [fresh] = await replay(sys, first.plans);
  const [plan] = first.plans;
  if (fresh === undefined || plan === undefined) throw new Error('no map');
  t.teardown(() => fresh.map.close());
  fresh.map.update(u32(1), value(77, 1));
  const items = sourceOf(
    [
      [u32(1), value(5, 2)],
      [u32(2), value(5, 3)],
      [u32(1), value(6, 4)],
      [u32(2), value(6, 3)],
    ],
    4,
    8,
  );
  const hidden = [{ offset: 0, size: 4 }];
  const read = async () => ({ plans: [{ ...plan, items }], close() {} });
  const [swept] = await sweep([{ ...fresh, hidden }], { most: 1, read });
  t.match(swept?.sweeps, [{ inserted: 1, updated: 2, kept: 0 }]);
  t.strictSame(
    [1, 2].map((n) => fresh.map.lookup(u32(n))?.[4]),
    [4, 3],
  );
});

// ---------------------------------------------------------------------------------------------------
// The command

/** A map of 16-byte values with some keys, pinned, and a process that writes it at full speed. */
async function moving(t: Test, type: number, keySize: number) {
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const pins = path.join(folder, 'app');
  fs.mkdirSync(pins);
  const flags = type === 11 ? 1 : 0;
  const map = BpfMap.create(sys, { type, keySize, valueSize: 16, maxEntries: 40_000, flags, name: 'moving' });
  t.teardown(() => map.close());
  for (let n = 0; n < STABLE; n++) map.update(keyOf(map, n), written(n, 0));
  map.pin(path.join(pins, 'moving'));
  const task = { id: map.id, stable: STABLE, fleeting: 500 };
  const file = fileURLToPath(new URL('./helpers/kernel-writer.js', import.meta.url));
  const child = spawn(process.execPath, [file, JSON.stringify(task)], { stdio: ['pipe', 'pipe', 'inherit'] });
  const closed = new Promise((resolve) => child.once('close', resolve));
  await new Promise((resolve) => child.stdout.once('data', resolve));
  const stop = async () => {
    child.stdin.end();
    await closed;
  };
  t.teardown(stop);
  return { folder, pins, pin: path.join(pins, 'moving'), map, stop };
}

const STABLE = 9000;
const versionOf = (map: BpfMap, n: number) => valueIn(Buffer.from(map.lookup(keyOf(map, n)) ?? []))?.version;
const ended = (child: ChildProcess) => new Promise<number | null>((resolve) => child.once('close', resolve));

for (const [what, type, keySize] of [
  ['hash', 1, 8],
  ['lpm_trie', 11, 8],
] as const) {
  t.test(`${what}: a writer at full speed during filling, exchange and sweeps`, async (t) => {
    const { pins, pin, map, stop } = await moving(t, type, keySize);
    const child = spawn(BPFIMG, ['replay', `pinned:${pins}`, '--pin', pins, '--swap', '--sweeps', '3', '--json']);
    const [out, end] = [text(child.stdout), ended(child)];
    const err = text(child.stderr);
    let done = false;
    void end.then(() => {
      done = true;
    });
    // What the old map has while its pin still leads to it.
    const last = new Map<number, number>();
    while (!done) {
      for (let n = 0; n < 300; n += 3) {
        const version = versionOf(map, n) ?? -1;
        using now = BpfMap.openPinned(sys, pin, 'ro');
        if (now.id === map.id) last.set(n, version);
      }
      await new Promise((go) => setImmediate(go));
    }
    t.equal(await end, 0, await err);
    t.equal(last.size, 100);
    await stop();
    using fresh = BpfMap.openPinned(sys, pin);
    t.not(fresh.id, map.id);
    for (let n = 0; n < STABLE; n++) {
      if (versionOf(fresh, n) === undefined) t.fail(`key ${n} is lost, or mixed up`);
    }
    for (const [n, version] of last) {
      if ((versionOf(fresh, n) ?? -1) < version) t.fail(`key ${n}: ${versionOf(fresh, n)}, but it had ${version}`);
    }
    const [row] = JSON.parse(await out).maps;
    t.equal(row.sweeps.length, 3);
    for (const { updated } of row.sweeps) t.ok(updated > 100, `${updated} updated`);
    t.match(row.report, 'the old map was still changing');
    t.match(await err, /sweep 1: .*\d+ updated/);
    // Nobody writes any more: one more sweep makes both maps alike, unless only the fresh one has changed.
    t.equal(bpfimg(['swap', 'rollback', pins]).status, 0);
    const quiet = JSON.parse(bpfimg(['replay', `pinned:${pins}`, '--pin', pins, '--swap', '--json']).stdout).maps[0];
    t.match(quiet, { report: 'full', sweeps: [{ inserted: 0, updated: 0, deleted: 0, kept: 0 }] });
  });
}

t.test('killed at any moment: the old map or the new one, and rolled back', async (t) => {
  const { pins, pin, map } = await moving(t, 1, 8);
  let killed = 0;
  for (let round = 0; round < 12; round++) {
    const child = spawn(BPFIMG, ['replay', `pinned:${pin}`, '--pin', pins, '--swap'], { stdio: 'ignore' });
    const end = ended(child);
    setTimeout(() => child.kill('SIGKILL'), 150 + 60 * round);
    if ((await end) === null) killed++;
    {
      using now = BpfMap.openPinned(sys, pin);
      t.ok(now.id === map.id || versionOf(now, STABLE - 1) !== undefined, 'a map with its items');
    }
    if (fs.readdirSync(pins).length > 1) t.equal(bpfimg(['swap', 'rollback', pins]).status, 0);
    using now = BpfMap.openPinned(sys, pin);
    t.equal(now.id, map.id);
    t.strictSame(fs.readdirSync(pins), ['moving']);
  }
  t.ok(killed > 2, `${killed} killed`);
});

t.test('what is not swept, and when nothing can be', (t) => {
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const pin = path.join(folder, 'm');
  using map = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 4, maxEntries: 8, flags: 0, name: 'm' });
  map.pin(pin);
  const dump = path.join(t.testdir(), 'dump');
  t.equal(bpfimg(['capture', '--pinned', pin, '-D', dump]).status, 0);
  for (const [words, wrong] of [
    [['replay', dump, '--pin', folder, '--swap', '--sweeps', '2'], /--sweeps: .* is not a live map/],
    [['replay', `pinned:${pin}`, '--sweeps', '2', '--', 'true'], /--sweeps: it goes with --pin or --pin-back/],
    [['replay', `pinned:${pin}`, '--pin', folder, '--swap', '--sweeps', 'all'], /--sweeps.*number/],
    [['replay', `pinned:${pin}`, '--pin', folder, '--swap', '--sweeps', '-1'], /--sweeps: expected a whole number/],
  ] as const) {
    t.match(bpfimg(words), { status: 2, stderr: wrong });
  }
  t.equal(bpfimg(['replay', `pinned:${pin}`, '--sweeps', '2', '--dry-run']).status, 0);
  const one = bpfimg(['replay', `pinned:${pin}`, '--pin', path.join(folder, 'other'), '--sweeps', '1', '--json']);
  t.match(JSON.parse(one.stdout).maps, [{ report: 'full', sweeps: [{ inserted: 0 }] }]);
  // There is room for the first reading only.
  const small = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg small '));
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=160k', 'tmpfs', small]);
  t.equal(mounted.status, 0);
  t.teardown(() => {
    spawnSync('umount', [small]);
    fs.rmdirSync(small);
  });
  using large = BpfMap.create(sys, { type: 2, keySize: 4, valueSize: 4096, maxEntries: 24, flags: 0, name: 'large' });
  const largePin = path.join(folder, 'large');
  large.pin(largePin);
  const full = bpfimg(['replay', `pinned:${largePin}`, '--pin', folder, '--swap'], { env: { TMPDIR: small } });
  t.match(full, {
    status: 1,
    stderr: /no space left.*nothing has been changed; --sweeps 0 does not read the old maps again/,
  });
  using still = BpfMap.openPinned(sys, largePin);
  t.equal(still.id, large.id);
  t.strictSame(fs.readdirSync(small), []);
  const none = bpfimg(['replay', `pinned:${pin}`, '--pin', folder, '--swap', '--sweeps', '0', '--json']);
  t.notOk('sweeps' in JSON.parse(none.stdout).maps[0]);
  t.end();
});
