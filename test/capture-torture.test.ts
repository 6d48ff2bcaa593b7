/** Captures while others write at full speed, with few file descriptors, without capabilities, and again and again. */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import realFs, * as fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import * as os from 'node:os';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { plugins } from '../plugins/index.js';
import { capture } from '../src/capture/capture.js';
import { type BatchLimits, readBuckets } from '../src/capture/read.js';
import { MAP_FLAG } from '../src/kernel/abi.js';
import { LiveMaps } from '../src/kernel/live.js';
import { BpfMap, type MapSpec } from '../src/kernel/map.js';
import { openSys } from '../src/kernel/sys.js';
import { MapTypes } from '../src/maptype.js';
import { itemsOf } from './helpers/capture.js';
import { BPFIMG } from './helpers/command.js';
import { fdCount, fillNumbers, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { keyOf, type Task, valueIn, written } from './helpers/kernel-writing.js';
import { patience } from './helpers/needs.js';
import { types } from './helpers/types.js';

const skip = await skipWithoutMaps();
const sys = await openSys(types);
const [HASH, LRU_HASH, TRIE] = [1, 9, 11] as const;

t.setTimeout(patience(180_000));

/** In memory where that is: images are brought to disk each time. */
const cwd = fs.mkdtempSync(path.join(fs.existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir(), 'bpfimg-torture-'));
t.teardown(() => fs.rmSync(cwd, { recursive: true }));

const create = (spec: Partial<MapSpec>) =>
  BpfMap.create(sys, { type: HASH, keySize: 8, valueSize: 16, maxEntries: 100, ...spec });

const live = (...maps: readonly BpfMap[]) =>
  LiveMaps.look(sys).select({ ids: maps.map(({ id }) => id), names: [], pins: [], pids: [] });

/** A process that writes; `stop` resolves with the number of its changes. */
async function writer(task: Task): Promise<{ stop(): Promise<number> }> {
  const file = fileURLToPath(new URL('./helpers/kernel-writer.js', import.meta.url));
  const child = spawn(process.execPath, [file, JSON.stringify(task)], { stdio: ['pipe', 'pipe', 'inherit'] });
  let said = '';
  await new Promise<void>((resolve) => {
    child.stdout.on('data', (text) => {
      said += text;
      resolve();
    });
  });
  return {
    async stop() {
      const end = new Promise((resolve) => child.once('close', resolve));
      child.stdin.end();
      await end;
      return Number(said.split('\n')[1]);
    },
  };
}

/** Tiny parts, so that a reading has hundreds of borders. */
const TINY: BatchLimits = { first: 40, bytes: 1 << 20, items: 60, head: 30 };
const tiny = new MapTypes([
  ...plugins,
  {
    name: 'tiny',
    types: [types.get(HASH), types.get(LRU_HASH)],
    capture: (map, sink, work) => readBuckets(map, sink, work, TINY),
  },
]);

const CHURNED: readonly (readonly [what: string, spec: Partial<MapSpec>])[] = [
  ['rule 8: a hash', { maxEntries: 12_000 }],
  ['a hash without preallocation', { maxEntries: 12_000, flags: MAP_FLAG.NO_PREALLOC }],
  ['a small table with long chains', { maxEntries: 8192, keySize: 4, flags: MAP_FLAG.ZERO_SEED }],
  ['an LRU hash', { type: LRU_HASH, maxEntries: 40_000 }],
  ['a trie', { type: TRIE, maxEntries: 20_000, flags: MAP_FLAG.NO_PREALLOC }],
];

for (const [what, spec] of CHURNED) {
  t.test(
    `${what}, written at full speed during 50 captures: what stays is there once each time`,
    { skip },
    async (t) => {
      using map = create(spec);
      const task = { id: map.id, stable: 2000, fleeting: 1500 };
      for (let i = 0; i < task.stable; i++) map.update(keyOf(map, i), written(i, 1));
      const stable = Array.from({ length: task.stable }, (_, i) => keyOf(map, i).toString('hex'));
      const { stop } = await writer(task);
      const dir = path.join(cwd, 'dump');
      const [found] = live(map);
      let [changed, sizes] = [0, new Set<number>()];
      try {
        for (let round = 0; round < 50; round++) {
          const [row] = await capture(sys, found === undefined ? [] : [found], dir, round % 2 === 0 ? types : tiny, {
            force: true,
          });
          if (row?.report.kind !== 'full') t.match(row, { report: { kind: 'full' } });
          const items = itemsOf(dir);
          const faults: string[] = [];
          for (const [i, key] of stable.entries()) {
            const value = items.get(key);
            const is = value === undefined ? undefined : valueIn(Buffer.from(value, 'hex'));
            if (is?.number !== i || (i % 3 !== 0 && is.version !== 1)) faults.push(`${i}: ${value}`);
            else if (is.version !== 1) changed++;
          }
          for (const [key, value] of items) {
            // In a trie the value of a key that goes away just now can be another's.
            if (
              map.type !== TRIE &&
              valueIn(Buffer.from(value, 'hex'))?.number !== Buffer.from(key, 'hex').readUInt32BE(map.keySize - 4)
            ) {
              faults.push(`${key}: ${value}`);
            }
          }
          if (faults.length > 0) {
            t.same(faults.slice(0, 10), [], `capture ${round}`);
            break;
          }
          sizes.add(items.size);
        }
      } finally {
        const changes = await stop();
        t.ok(changes > 10_000, `${changes} changes meanwhile`);
      }
      t.ok(changed > 100 && sizes.size > 10, `${sizes.size} different numbers of items`);
    },
  );
}

t.test('many colliding keys in tiny parts', { skip }, async (t) => {
  // With a seed of zero, which keys share a bucket is the same in all tables of one size.
  const flags = MAP_FLAG.ZERO_SEED | MAP_FLAG.NO_PREALLOC;
  const near: number[] = [];
  for (let from = 0; near.length < 300; from += 4096) {
    using probe = create({ keySize: 4, valueSize: 4, maxEntries: 4096, flags });
    fillNumbers(probe, from + 4096, from);
    const [cursor, batch] = [probe.cursor(), probe.batch(1)];
    // A call that gives one bucket says where the next one is.
    for (let bucket = 0; bucket < 8; bucket = cursor.position ?? 0) {
      const { count } = probe.lookupBatch(cursor, batch);
      for (let i = 0; i < count; i++) near.push(batch.keys.readUInt32LE(4 * i));
    }
  }
  // 8 of 4096 buckets have all of these; the rest of the table is empty but for some.
  using map = create({ keySize: 4, valueSize: 4, maxEntries: 4096, flags });
  for (const key of near) map.update(u32(key), u32(key));
  for (let i = 0; i < 50; i++) map.update(u32(0x4000_0000 + i), u32(0x4000_0000 + i));
  const all = new Set([...near, ...Array.from({ length: 50 }, (_, i) => 0x4000_0000 + i)]);
  for (const [first, items, head] of [
    [1, 1, 1],
    [2, 3, 1],
    [5, 4, 2],
    [40, 60, 30],
  ] as const) {
    const some = new MapTypes([
      ...plugins,
      {
        name: 'some',
        types: [types.get(HASH)],
        capture: (map, sink, work) => readBuckets(map, sink, work, { first, bytes: 1 << 20, items, head }),
      },
    ]);
    const dir = path.join(cwd, 'colliding');
    await capture(sys, live(map), dir, some, { force: true });
    const found = itemsOf(dir);
    t.same([...found.keys()].sort(), [...all].map((key) => u32(key).toString('hex')).sort(), `${items} items a call`);
    t.same(
      [...found].filter(([key, value]) => key !== value),
      [],
    );
  }
});

t.test('a thousand captures: no fd stays open, and no file', { skip }, async (t) => {
  using hash = create({ maxEntries: 50 });
  fillNumbers(hash, 50);
  using array = create({ type: 2, keySize: 4, flags: MAP_FLAG.MMAPABLE });
  using trie = create({ type: TRIE, flags: MAP_FLAG.NO_PREALLOC });
  const found = live(hash, array, trie);
  const dir = path.join(cwd, 'many');
  const once = (i: number) => capture(sys, found.slice(i % 3, (i % 3) + 1), dir, types, { force: true });
  await once(0);
  const before = fdCount();
  for (let i = 0; i < 999; i++) await once(i);
  t.equal(fdCount(), before);
  t.same(sys.openFds().length, 3, 'the maps themselves');
  t.same(fs.readdirSync(dir).sort(), ['bpfmap-data.img', 'bpfmap-file.img', 'bpfmap-meta.img']);
  t.notOk(fs.readdirSync(cwd).some((name) => name.startsWith('.')));
});

t.test('captures that fail leave no fd and no file either', { skip }, async (t) => {
  using hash = create({ maxEntries: 50 });
  fillNumbers(hash, 50);
  const failing = new MapTypes([
    ...plugins,
    {
      name: 'failing',
      types: [types.get(HASH)],
      async capture(map, sink, work) {
        await types.plugin(HASH).capture?.(map, sink, work);
        throw new Error('at last');
      },
    },
  ]);
  const found = live(hash);
  const [before, files] = [fdCount(), fs.readdirSync(cwd)];
  for (let i = 0; i < 100; i++) await t.rejects(capture(sys, found, path.join(cwd, 'failed'), failing), /at last/);
  t.equal(fdCount(), before);
  t.same(fs.readdirSync(cwd), files);
});

t.test('an image that cannot be created: the others go with it', { skip }, async (t) => {
  using hash = create({ maxEntries: 50 });
  const found = live(hash);
  const [before, files] = [fdCount(), fs.readdirSync(cwd)];
  const { openSync } = fs;
  let opened = 0;
  realFs.openSync = (...args: Parameters<typeof openSync>) => {
    // The third image.
    if (!String(args[0]).includes('.img') || ++opened < 3) return openSync(...args);
    throw Object.assign(new Error('EMFILE'), { code: 'EMFILE' });
  };
  syncBuiltinESMExports();
  try {
    await t.rejects(capture(sys, found, path.join(cwd, 'two'), types), {
      message: /bpfmap-meta.img: cannot create it: too many open files$/,
    });
  } finally {
    realFs.openSync = openSync;
    syncBuiltinESMExports();
  }
  t.equal(fdCount(), before);
  t.same(fs.readdirSync(cwd), files);
});

/** Ends a child that this test began. */
async function end(child: ChildProcess): Promise<void> {
  const ended = new Promise((resolve) => child.once('close', resolve));
  child.kill();
  await ended;
}

const ONE_LINE = /^bpfimg: (?!internal error)[^\n]+\n$/;

t.test('few file descriptors: all of the map, or one line and nothing', { skip }, async (t) => {
  using map = create({ maxEntries: 5000, name: 'few_fds' });
  fillNumbers(map, 5000);
  const before = fs.readdirSync(cwd);
  const dir = path.join(cwd, 'few');
  const attempt = (limit: number) => {
    // The runner's own options of Node would open files too.
    const line = `unset NODE_OPTIONS; ulimit -n ${limit}; exec "$0" "$@"`;
    const args = [BPFIMG, 'capture', '--name', 'few_fds', '-D', dir];
    const { status, stderr } = spawnSync('bash', ['-c', line, process.execPath, ...args], { encoding: 'utf8' });
    if (status === 0) {
      t.equal(itemsOf(dir).size, 5000, `${limit}`);
      fs.rmSync(dir, { recursive: true });
    } else if (stderr.startsWith('bpfimg: ')) {
      // Where Node itself cannot begin, nothing is ours.
      t.match(stderr, /^bpfimg: (?!internal error)[^\n]+too many open files[^\n]*\n$/, `${limit}`);
      t.equal(status, 1);
    }
    t.same(fs.readdirSync(cwd), before);
    return { whole: status === 0, refused: stderr.startsWith('bpfimg: ') };
  };
  // How many are enough depends on how many are inherited.
  let [few, enough] = [8, 512];
  t.ok(attempt(enough).whole);
  while (enough - few > 1) {
    const middle = (few + enough) >> 1;
    if (attempt(middle).whole) enough = middle;
    else few = middle;
  }
  const below = [1, 2, 3, 4, 5, 6].map((less) => attempt(enough - less));
  t.ok(
    below.some(({ refused }) => refused),
    `enough: ${enough}`,
  );
});

/** Runs the command without capabilities but `caps`. */
function unprivileged(caps: readonly string[], ...args: readonly string[]) {
  const set = ['-all', ...caps.map((cap) => `+${cap}`)].join(',');
  const words = ['--bounding-set', set, process.execPath, BPFIMG, ...args];
  const { status, stdout, stderr } = spawnSync('setpriv', words, { cwd, encoding: 'utf8' });
  return { status, stdout, stderr };
}

t.test('without capabilities: a process like this one can be captured, others not', { skip }, async (t: Test) => {
  using map = create({ name: 'inherited' });
  fillNumbers(map, 30);
  // A process without capabilities that got the map from its parent.
  const child = spawn('setpriv', ['--bounding-set', '-all', 'sleep', '60'], {
    stdio: ['ignore', 'ignore', 'inherit', map.fd],
  });
  try {
    for (;;) {
      const exe = fs.readlinkSync(`/proc/${child.pid}/exe`);
      if (exe.endsWith('sleep') || exe.endsWith('coreutils') || exe.endsWith('busybox')) break;
      await new Promise((go) => setTimeout(go, 5));
    }
    const before = fs.readdirSync(cwd);
    const own = unprivileged([], 'capture', '--pid', String(child.pid), '-D', 'inherited');
    t.match(own, { status: 0, stderr: '', stdout: /inherited {2}hash +30 .* full\n$/ });
    t.equal(itemsOf(path.join(cwd, 'inherited')).size, 30);
    fs.rmSync(path.join(cwd, 'inherited'), { recursive: true });
    // This process has capabilities, so it may not be looked at; nor may ids.
    const cases: readonly (readonly [string[], RegExp])[] = [
      [
        ['--pid', String(process.pid)],
        /no permission to inspect its files \(needs the right to trace it: CAP_SYS_PTRACE/,
      ],
      [['--name', 'no_such'], /no map has this name that can be seen without CAP_SYS_ADMIN$/],
      [['--id', '4294967295'], /no such map that can be seen without CAP_SYS_ADMIN$/],
    ];
    for (const [args, line] of cases) {
      for (const caps of [[], ['cap_39']]) {
        const { status, stderr } = unprivileged(caps, 'capture', ...args, '-D', 'refused');
        t.equal(status, 1);
        t.match(stderr, ONE_LINE);
        t.match(stderr.trimEnd(), line);
      }
    }
    fs.mkdirSync(path.join(cwd, 'locked'), { mode: 0o500 });
    fs.mkdirSync(path.join(cwd, 'closed'), { mode: 0o000 });
    const pid = ['capture', '--pid', String(child.pid)];
    const denied = (dir: string, doing: string) => `bpfimg: ${dir}: cannot ${doing}: permission denied\n`;
    t.match(unprivileged([], ...pid, '-D', 'locked/new'), { status: 1, stderr: denied('locked/new', 'create it') });
    t.match(unprivileged([], ...pid, '-D', 'locked'), { status: 1, stderr: /cannot create it: permission denied\n$/ });
    t.match(unprivileged([], ...pid, '-D', 'closed'), { status: 1, stderr: denied('closed', 'inspect it') });
    t.match(unprivileged([], ...pid, '-D', 'closed/new'), { status: 1, stderr: denied('closed/new', 'inspect it') });
    for (const name of ['locked', 'closed']) fs.rmdirSync(path.join(cwd, name));
    t.same(fs.readdirSync(cwd), before, 'nothing is left');
  } finally {
    await end(child);
  }
});

t.test('every file descriptor was closed', { skip }, async (t) => {
  t.same(sys.openFds(), []);
});
