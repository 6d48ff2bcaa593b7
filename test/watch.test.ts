/** `bpfimg watch` of real maps that change while it looks. */
import { type ChildProcess, spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { createInterface } from 'node:readline';
import t from 'tap';
import { BpfMap } from '../src/kernel/map.js';
import { openSys } from '../src/kernel/sys.js';
import { width } from '../src/width.js';
import { BPFIMG, bpfimg, shell, TOP } from './helpers/command.js';
import { skipWithout } from './helpers/crit.js';
import { fillNumbers, HolderProcess, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import { types } from './helpers/types.js';

t.setTimeout(patience(120_000));
const skip = await skipWithoutMaps();
const sys = await openSys(types);
/** Its captures, which nothing may be left of. */
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-watch-'));
t.teardown(() => fs.rmSync(scratch, { recursive: true }));
const env = { ...process.env, TMPDIR: scratch, NO_COLOR: '1', LC_ALL: 'C.UTF-8' };

interface Item {
  readonly change: string;
  readonly key: unknown;
  readonly a?: unknown;
  readonly b?: unknown;
  readonly rates?: Record<string, number>;
}
interface Tick {
  readonly time: string;
  readonly seconds: number;
  readonly maps: readonly {
    readonly map_id: number;
    readonly name: string;
    readonly items: number | null;
    readonly changed: number;
    readonly added: number;
    readonly removed: number;
    readonly skipped?: number;
    readonly shown: readonly Item[];
  }[];
  readonly gone: readonly { readonly map_id: number; readonly name: string }[];
}

interface Watched {
  readonly ticks: Tick[];
  readonly code: number | null;
  readonly said: string;
}

/** A process's exit code, as a shell has it: one that ends while its output is being written ends by the signal. */
function codeOf(child: ChildProcess): Promise<number | null> {
  return new Promise((resolve) =>
    child.once('close', (code, signal) => resolve(signal === null ? code : 128 + os.constants.signals[signal])),
  );
}

/** Runs `watch --json`, and `step` after each look; it ends when that returns true. */
async function watch(
  args: readonly string[],
  step: (looks: number, tick: Tick) => boolean | Promise<boolean>,
): Promise<Watched> {
  const child = spawn(process.execPath, [BPFIMG, 'watch', '--json', '-n', '0.2', ...args], { env });
  const closed = codeOf(child);
  let said = '';
  child.stderr.on('data', (text) => {
    said += String(text);
  });
  const ticks: Tick[] = [];
  for await (const line of createInterface({ input: child.stdout })) {
    const tick = JSON.parse(line) as Tick;
    ticks.push(tick);
    // Once: a second one may meet a process that no longer handles it.
    if ((await step(ticks.length, tick)) && !child.killed) child.kill('SIGINT');
  }
  return { ticks, code: await closed, said };
}

/** What all looks have found of one map. */
const itemsOf = (ticks: readonly Tick[], id: number) =>
  ticks.flatMap(({ maps }) => maps.find(({ map_id }) => map_id === id)?.shown ?? []);

t.test('changed, new and removed items, and rates of what has grown', { skip }, async (t) => {
  using hash = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 8, maxEntries: 100, name: 'watch_hash' });
  using percpu = BpfMap.create(sys, { type: 5, keySize: 4, valueSize: 4, maxEntries: 10, name: 'watch_percpu' });
  using queue = BpfMap.create(sys, { type: 22, keySize: 0, valueSize: 4, maxEntries: 4, name: 'watch_queue' });
  for (let i = 0; i < 20; i++) hash.update(u32(i), u32(10, 0));
  const cpus = (value: number) => {
    const bytes = Buffer.alloc(percpu.valueStride);
    for (let at = 0; at < bytes.length; at += 8) bytes.writeUInt32LE(value, at);
    return bytes;
  };
  percpu.update(u32(1), cpus(1));
  queue.update(undefined, u32(7));
  const id = [hash, percpu, queue].map((map) => String(map.id));
  const seenIds = new Set<number>();
  const { ticks, code, said } = await watch(['--id', ...id, '--limit', '3'], (looks, tick) => {
    if (looks === 1) {
      for (const [i, by] of [1, 1000, 10].entries()) hash.update(u32(i), u32(10 + by, 0));
      hash.update(u32(5), u32(3, 0));
      hash.update(u32(77), u32(1, 0));
      hash.delete(u32(19));
      percpu.update(u32(1), cpus(6));
    }
    // A look may fall between two of these changes.
    for (const { map_id, changed } of tick.maps) if (changed > 0) seenIds.add(map_id);
    return seenIds.size === 2;
  });
  t.equal(code, 130);
  t.match(said, `map ${queue.id} (watch_queue): not supported`);
  const seen = ticks.filter(({ maps }) => maps[0]?.changed === 4);
  t.equal(seen.length, 1, 'all at once, because all changed between two looks');
  const [tick] = seen;
  t.match(tick?.maps[0], { map_id: hash.id, name: 'watch_hash', items: 20, changed: 4, added: 1, removed: 1 });
  t.match(
    tick?.maps[0]?.shown,
    [
      { change: 'changed', key: 1, a: 10, b: 1010 },
      { change: 'changed', key: 2, a: 10, b: 20 },
      { change: 'changed', key: 5, a: 10, b: 3, rates: undefined },
      { change: 'added', key: 77, b: 1 },
      { change: 'removed', key: 19, a: 10 },
    ],
    'the largest changes first, as many as asked for',
  );
  const rate = itemsOf(ticks, hash.id).find(({ key }) => key === 1)?.rates?.[''] ?? 0;
  t.ok(Math.abs(rate * (tick?.seconds ?? 0) - 1000) < 10, `${rate} per second`);
  t.match(itemsOf(ticks, percpu.id), [{ key: 1, a: sys.cpus, b: 6 * sys.cpus }], 'numbers of all CPUs are added up');
  t.match(ticks[0]?.maps.at(-1), { map_id: queue.id, items: null, changed: 0 });
  t.same(queue.lookup(undefined), new Uint8Array(u32(7)), 'the queue keeps its item');
  t.same(fs.readdirSync(scratch), []);
});

t.test('typed items, as jq reads them', { skip: skip || skipWithout('jq') }, async (t) => {
  using map = BpfMap.create(sys, { type: 1, keySize: 16, valueSize: 24, maxEntries: 10, name: 'flows' });
  const key = u32(1, 2, 3, 6);
  map.update(key, u32(1, 0, 100, 0, 5, 1));
  const { ticks } = await watch(
    ['--id', String(map.id), '--btf', path.join(TOP, 'fixtures/btf/flowd.o')],
    (looks, tick) => {
      if (looks === 1) map.update(key, u32(4, 0, 700, 0, 6, 1));
      return tick.maps[0]?.changed === 1;
    },
  );
  const found = shell(`jq -c '.maps[].shown[] | [.key.proto, .a.packets, .b.packets, (.rates | keys)]'`, {
    input: ticks.map((tick) => JSON.stringify(tick)).join('\n'),
  });
  t.equal(found.stdout, '[6,1,4,["bytes","last_seen","packets"]]\n');
});

t.test('maps that go away are said, and the others are watched on', { skip }, async (t) => {
  using stays = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 4, maxEntries: 4, name: 'watch_stays' });
  const holder = await HolderProcess.start([{ type: 1, keySize: 4, valueSize: 4, maxEntries: 4, name: 'watch_goes' }]);
  const [goes = 0] = holder.ids;
  try {
    const both = await watch(['--id', String(stays.id), String(goes)], async (looks, tick) => {
      if (looks === 2) await holder.stop();
      if (tick.gone.length > 0) stays.update(u32(1), u32(1));
      return tick.maps[0]?.added === 1;
    });
    t.equal(both.code, 130);
    t.same(
      both.ticks.flatMap(({ gone }) => gone),
      [{ map_id: goes, name: 'watch_goes' }],
    );
    t.match(itemsOf(both.ticks, stays.id), [{ change: 'added', key: 1, b: 1 }]);
  } finally {
    await holder.stop();
  }
  const alone = await HolderProcess.start([{ type: 2, keySize: 4, valueSize: 4, maxEntries: 1 }]);
  const { code, said } = await watch(['--id', String(alone.ids[0])], async (looks) => {
    if (looks === 1) await alone.stop();
    return false;
  });
  t.equal(code, 0);
  t.match(said, /^bpfimg: all maps are gone$/m);
  t.same(fs.readdirSync(scratch), []);
});

t.test('on a terminal of 80 columns, ended by Ctrl-C', { skip: skip || skipWithout('script') }, async (t) => {
  using map = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 64, maxEntries: 1000, name: 'watch_tty' });
  fillNumbers(map, 500);
  const line = `stty cols 80 rows 24; exec ${process.execPath} ${BPFIMG} watch --id ${map.id} -n 0.2 --limit 100`;
  const child = spawn('script', ['-qec', line, '/dev/null'], { env: { ...env, TERM: 'xterm' } });
  const closed = codeOf(child);
  let out = '';
  let steps = 0;
  child.stdout.on('data', (text) => {
    out += String(text);
    const frames = out.split('\x1b[H').length - 1;
    if (frames > steps && steps < 6) {
      steps = frames;
      const value = Buffer.alloc(64, steps);
      for (let i = 0; i < 100; i++) map.update(u32(i), value);
    } else if (steps++ === 6) child.stdin.write('\x03');
  });
  t.equal(await closed, 130);
  const frames = out.split('\x1b[H').slice(1);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: terminals are controlled by it
  const lines = frames.flatMap((frame) => frame.split('\r\n').map((text) => text.replace(/\x1b\[[KJ].*$/s, '')));
  t.ok(lines.every((text) => width(text) <= 80));
  t.ok(
    lines.some((text) => width(text) === 80),
    'cut, not wrapped',
  );
  t.ok(frames.every((frame) => frame.split('\r\n').length <= 24));
  t.match(out, /^map \d+ watch_tty \(hash, 500 items\): 100 changed/m);
  t.match(out, /^… \d+ more lines/m);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: terminals are controlled by it
  t.notMatch(out, /\x1b\[\?/, 'no mode of the terminal is changed');
  t.same(fs.readdirSync(scratch), []);
});

t.test('lines elsewhere; a closed pipe and signals end it', { skip }, async (t) => {
  using map = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 100, maxEntries: 1000, name: 'watch_text' });
  map.update(u32(1), Buffer.alloc(100));
  const args = `watch --id ${map.id} -n 0.2`;
  const child = spawn(process.execPath, [BPFIMG, ...args.split(' ')], { env });
  const closed = codeOf(child);
  let out = '';
  child.stdout.on('data', (text) => {
    out += String(text);
    const value = Buffer.alloc(100);
    value[70] = 0xab;
    if (out.includes('no change')) map.update(u32(1), value);
    if (out.includes('1 changed') && !child.killed) child.kill('SIGINT');
  });
  t.equal(await closed, 130);
  t.match(out, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ {2}the last 0\.\d s$/m);
  t.match(
    out,
    new RegExp(`^map ${map.id} watch_text \\(hash, 1 item\\): 1 changed\\n  ~ 1  0x40: 0{32} → 0{12}ab0{18}$`, 'm'),
  );
  const piped = shell(`bpfimg ${args} | head -1; echo "\${PIPESTATUS[0]}"`, { env: { TMPDIR: scratch } });
  t.match(piped.stdout, /s\n0\n$/);
  t.equal(piped.stderr.replace(/.*not supported.*\n/, ''), '');
  t.same(fs.readdirSync(scratch), []);
});

t.test('what is not looked at, is said', { skip }, async (t) => {
  using map = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 16, maxEntries: 60_000, name: 'watch_many' });
  fillNumbers(map, 60_000);
  const counts = { changed: 0, skipped: 0 };
  await watch(['--id', String(map.id), '--limit', '1'], (looks, tick) => {
    for (const map of tick.maps) {
      counts.changed += map.changed;
      counts.skipped += map.skipped ?? 0;
    }
    if (looks === 1) {
      const batch = map.batch(60_000);
      for (let i = 0; i < batch.room; i++) batch.keys.writeUInt32LE(i, 4 * i);
      batch.values.fill(1);
      map.updateBatch(batch, batch.room);
    }
    return counts.changed >= 60_000;
  });
  t.equal(counts.changed, 60_000);
  t.ok(counts.skipped > 0);
});

t.test('usage', async (t) => {
  const wrong = (args: string[], message: RegExp) => {
    const { status, stderr } = bpfimg(['watch', ...args]);
    t.equal(status, 2, args.join(' '));
    t.match(stderr, message);
  };
  wrong([], /which maps\?/);
  wrong(['fixtures/flowd'], /fixtures\/flowd: expected live maps/);
  wrong(['--all', '-n', '0'], /--interval takes seconds/);
  wrong(['--all', '--count', '0'], /--count takes a whole number/);
  wrong(['--all', '--limit', '1.5'], /--limit takes a whole number/);
});
