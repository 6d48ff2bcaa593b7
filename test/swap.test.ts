/** `replay --pin-back` and `--swap`: pins change hands, on the real kernel. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { BpfMap } from '../src/kernel/map.js';
import { openSys } from '../src/kernel/sys.js';
import { planMaps } from '../src/replay/plan.js';
import { type ReplayOptions, replay } from '../src/replay/replay.js';
import { mapsOf, openSource } from '../src/source/source.js';
import { BPFIMG, bpfimg, TOP } from './helpers/command.js';
import { bpffs, HolderProcess, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import { MeddledSys } from './helpers/replay.js';
import { types } from './helpers/types.js';

t.setTimeout(patience(300_000));
const skip = await skipWithoutMaps();
if (skip !== false) {
  t.plan(0, skip);
  process.exit();
}
const sys = await openSys(types);
const KILLER = path.join(TOP, 'test/helpers/kill-at.cjs');
const NAMES = ['a', 'b', 'c'];

/** A folder of pins in a BPF file system of its own, its maps, and a dump of them. */
function seeded(t: Test, names = NAMES): { folder: string; pins: string; dump: string } {
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const pins = path.join(folder, 'app');
  fs.mkdirSync(pins);
  for (const name of names) pinned(path.join(pins, name), name);
  const dump = path.join(t.testdir(), 'dump');
  ran(['capture', '--pinned', pins, '-D', dump]);
  return { folder, pins, dump };
}

/** Pins a map with one item: the number 1. */
function pinned(file: string, name = path.basename(file)): void {
  using map = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 4, maxEntries: 4, flags: 0, name });
  map.update(u32(1), u32(1));
  map.pin(file);
}

function ran(args: readonly string[]): { stdout: string; stderr: string } {
  const { status, stdout, stderr } = bpfimg(args);
  if (status !== 0) throw new Error(`${args.join(' ')}: ${stderr}`);
  return { stdout, stderr };
}

/** Ids of the maps pinned in a folder. */
function idsIn(folder: string): Record<string, number> {
  const ids = fs.readdirSync(folder).map((name) => {
    using map = BpfMap.openPinned(sys, path.join(folder, name));
    return [name, map.id] as const;
  });
  return Object.fromEntries(ids.sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** Those under the names that programs know. */
function known(ids: Record<string, number>): Record<string, number> {
  return Object.fromEntries(Object.entries(ids).filter(([name]) => !name.includes('-swap-')));
}

t.test('taken names lead to the fresh maps; the old ones are kept until commit or rollback', async (t) => {
  const { pins, dump } = seeded(t);
  const before = idsIn(pins);
  const swap = ['replay', dump, '--pin', pins, '--swap'];
  t.match(bpfimg(['replay', dump, '--pin', pins]), { status: 1, stderr: /a, b, c: pinned there already; .*--swap\n$/ });
  t.match(ran([...swap, '--dry-run']).stdout, `${pins}/a`);
  t.same(idsIn(pins), before, 'a dry run changes nothing');
  const { stderr } = ran(swap);
  for (const name of NAMES) {
    t.match(stderr, `${pins}/${name}: the old map ${before[name]} is kept at ${pins}/${name}-swap-old; no program`);
  }
  const after = idsIn(pins);
  t.same(Object.keys(after), ['a', 'a-swap-old', 'b', 'b-swap-old', 'c', 'c-swap-old']);
  for (const name of NAMES) {
    t.equal(after[`${name}-swap-old`], before[name]);
    t.not(after[name], before[name]);
    using map = BpfMap.openPinned(sys, path.join(pins, name));
    t.same(map.lookup(u32(1)), u32(1), 'filled');
  }
  for (const more of [[], ['--dry-run']]) {
    const again = bpfimg([...swap, ...more]);
    t.match(again, {
      status: 1,
      stderr: /\/a: it has been swapped already; .*swap commit [^;]+app, or .*swap rollback/,
    });
  }
  t.same(idsIn(pins), after);
  t.equal(ran(['swap', 'rollback', pins]).stdout, NAMES.map((name) => `${pins}/${name}: rolled back\n`).join(''));
  t.same(idsIn(pins), before);

  ran(swap);
  const fresh = known(idsIn(pins));
  const { stdout } = ran(['swap', 'commit', path.join(pins, 'b'), '--json']);
  t.same(JSON.parse(stdout), { pins: [{ pin: `${pins}/b`, swap: 'committed' }] });
  t.same(Object.keys(idsIn(pins)), ['a', 'a-swap-old', 'b', 'c', 'c-swap-old'], 'one pin alone');
  fs.unlinkSync(path.join(pins, 'a'));
  t.match(bpfimg(['swap', 'commit', pins]), { status: 1, stderr: /\/a: no longer pinned; .*swap rollback/ });
  t.ok(fs.existsSync(path.join(pins, 'c-swap-old')), 'all or none');
  ran(['swap', 'rollback', path.join(pins, 'a')]);
  ran(['swap', 'commit', pins]);
  t.same(idsIn(pins), { a: before.a, b: fresh.b, c: fresh.c });
  for (const action of ['commit', 'rollback']) {
    t.match(bpfimg(['swap', action, pins]), { status: 1, stderr: /app: no pin of a swap is there\n$/ });
  }
});

t.test('who still uses an old map', async (t) => {
  const { pins, dump } = seeded(t, ['a']);
  const holder = await HolderProcess.start([{ type: 1, keySize: 4, valueSize: 4, maxEntries: 4, flags: 0 }]);
  t.teardown(() => holder.stop());
  using held = BpfMap.openById(sys, holder.ids[0] as number);
  fs.unlinkSync(path.join(pins, 'a'));
  held.pin(path.join(pins, 'a'));
  held.close();
  const [fd] = holder.fds;
  const { stdout, stderr } = ran(['replay', dump, '--pin', pins, '--swap', '--json']);
  t.match(
    stderr,
    new RegExp(`old map ${holder.ids[0]} is kept at [^;]+; still used by ${holder.pid}\\(.*\\):${fd}, whose`),
  );
  t.match(JSON.parse(stdout).maps[0].replaced, [
    {
      pin: `${pins}/a`,
      kept: `${pins}/a-swap-old`,
      map_id: holder.ids[0],
      programs: [],
      holders: [{ pid: holder.pid, fd }],
    },
  ]);
});

t.test('what cannot be exchanged', async (t) => {
  const { pins, dump } = seeded(t);
  const swap = ['replay', dump, '--pin', pins, '--swap'];
  for (const [what, make, message] of [
    ['a folder', (file: string) => fs.mkdirSync(file), /app\/c: /],
    ['a name left by a killed swap', (file: string) => pinned(`${file}-swap-new`, 'c'), /app\/c: it has been swapped/],
  ] as const) {
    const file = path.join(pins, 'c');
    if (what === 'a folder') fs.unlinkSync(file);
    else pinned(file);
    make(file);
    const before = fs.readdirSync(pins).sort();
    t.match(bpfimg(swap), { status: 1, stdout: '', stderr: message }, what);
    t.same(fs.readdirSync(pins).sort(), before, what);
    if (what === 'a folder') fs.rmdirSync(file);
  }
  for (const args of [
    ['--hold', '--swap'],
    ['--pin', pins, '--swap', '--rename-taken'],
    ['--pin', pins, '--pin-back'],
    ['--pin-back', '--hold'],
  ]) {
    t.equal(bpfimg(['replay', dump, ...args]).status, 2, args.join(' '));
  }
  t.equal(bpfimg(['swap', 'commit']).status, 2);
  t.equal(bpfimg(['swap', 'forget', pins]).status, 2);
});

t.test('a failure at the last map leaves everything as it was', async (t) => {
  const { pins, dump } = seeded(t);
  const before = idsIn(pins);
  const source = await openSource(dump, { types: async () => types });
  t.teardown(() => source.close());
  const maps = await mapsOf(source);
  t.teardown(() => maps.close());
  const plans = await planMaps(maps, maps.maps, types, { cpus: sys.cpus });
  const options: ReplayOptions = { pin: pins, swap: true };
  let calls = 0;
  const full = new MeddledSys(sys, (command) => (command === 'OBJ_PIN' && ++calls === 3 ? -28 : undefined));
  await t.rejects(replay(full, plans, options), { message: /ENOSPC/ });
  t.same(idsIn(pins), before, 'the last fresh map cannot be pinned');
  calls = 0;
  const other = path.join(pins, 'c-swap-old');
  const raced = new MeddledSys(sys, (command) => {
    if (command === 'OBJ_PIN' && ++calls === 3) pinned(other, 'c');
    return undefined;
  });
  await t.rejects(replay(raced, plans, options), { message: /\/c: cannot keep the old map/ });
  fs.unlinkSync(other);
  t.same(idsIn(pins), before, 'the last old map cannot be kept');
  const done = async () => {
    t.not(known(idsIn(pins)).c, before.c, 'exchanged');
    throw new Error('no');
  };
  await t.rejects(replay(sys, plans, { ...options, done }), { message: 'no' });
  t.same(idsIn(pins), before, 'after the exchange');
});

t.test('killed at every step: each name leads to the old or the new map', async (t) => {
  const { pins, dump } = seeded(t);
  const before = idsIn(pins);
  const seen = { old: 0, new: 0, mixed: 0, refused: 0 };
  for (let at = 0; ; at++) {
    const env = { ...process.env, KILL_AT: String(at) };
    const words = ['--require', KILLER, BPFIMG, 'replay', dump, '--pin', pins, '--swap'];
    const { status, signal } = spawnSync(process.execPath, words, { env });
    const ids = idsIn(pins);
    const now = known(ids);
    t.same(Object.keys(now), NAMES);
    if (signal !== 'SIGKILL') {
      t.equal(status, 0);
      break;
    }
    const fresh = NAMES.filter((name) => now[name] !== before[name]).length;
    seen[fresh === 0 ? 'old' : fresh === NAMES.length ? 'new' : 'mixed']++;
    if (Object.keys(ids).some((name) => name.endsWith('-swap-new'))) {
      t.match(bpfimg(['swap', 'commit', pins]), { status: 1, stderr: /interrupted half-way; .*swap rollback/ });
      seen.refused++;
    }
    ran(['swap', 'rollback', pins]);
    t.same(idsIn(pins), before, `killed at change ${at}, and rolled back`);
  }
  t.match(seen, { mixed: 2 });
  t.ok(seen.old >= NAMES.length && seen.refused >= 2 * NAMES.length, JSON.stringify(seen));
  // What is done with the old maps later can be killed, too.
  for (const action of ['rollback', 'commit']) {
    const [old, fresh] = [before, known(idsIn(pins))];
    for (let at = 0; ; at++) {
      const env = { ...process.env, KILL_AT: String(at) };
      const { signal } = spawnSync(process.execPath, ['--require', KILLER, BPFIMG, 'swap', action, pins], { env });
      const now = known(idsIn(pins));
      for (const name of NAMES) t.ok([old[name], fresh[name]].includes(now[name] ?? 0), `${action} at ${at}: ${name}`);
      if (signal !== 'SIGKILL') break;
    }
    t.same(idsIn(pins), action === 'commit' ? fresh : old);
    if (action === 'rollback') ran(['replay', dump, '--pin', pins, '--swap']);
  }
});

t.test('killed before each fresh map is pinned', async (t) => {
  const { pins, dump } = seeded(t);
  const before = idsIn(pins);
  const module = (name: string) => JSON.stringify(new URL(name, import.meta.url).href);
  for (let at = 1; at <= NAMES.length; at++) {
    // Pins are made by the kernel, not by a call of Node's that kill-at.cjs could see.
    const code = `
      const { openSys } = await import(${module('../src/kernel/sys.js')});
      const { planMaps } = await import(${module('../src/replay/plan.js')});
      const { replay } = await import(${module('../src/replay/replay.js')});
      const { mapsOf, openSource } = await import(${module('../src/source/source.js')});
      const { MeddledSys } = await import(${module('./helpers/replay.js')});
      const { types } = await import(${module('./helpers/types.js')});
      let left = ${at};
      const sys = new MeddledSys(await openSys(types), (command) => {
        if (command === 'OBJ_PIN' && --left === 0) process.kill(process.pid, 'SIGKILL');
      });
      const maps = await mapsOf(await openSource(${JSON.stringify(dump)}, { types: async () => types }));
      const plans = await planMaps(maps, maps.maps, types, { cpus: sys.cpus });
      await replay(sys, plans, { pin: ${JSON.stringify(pins)}, swap: true });`;
    const { signal, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', code], { encoding: 'utf8' });
    t.equal(signal, 'SIGKILL', stderr);
    const left = idsIn(pins);
    t.same(known(left), before, `killed before pin ${at}: every name leads to the old map`);
    t.equal(Object.keys(left).length, NAMES.length + at - 1);
    if (at === 1) continue;
    for (const more of [[], ['--dry-run']]) {
      const again = bpfimg(['replay', dump, '--pin', pins, '--swap', ...more]);
      t.match(again, { status: 1, stderr: /has been swapped already; .*swap rollback/ });
    }
    t.match(bpfimg(['swap', 'commit', pins]), { status: 1, stderr: /interrupted half-way/ });
    ran(['swap', 'rollback', pins]);
    t.same(idsIn(pins), before);
  }
});

t.test('a signal half-way', async (t) => {
  const { pins, dump } = seeded(t);
  const before = idsIn(pins);
  let interrupted = 0;
  for (let at = 0; ; at++) {
    const env = { ...process.env, KILL_AT: String(at), KILL_WITH: 'SIGTERM' };
    const words = ['--require', KILLER, BPFIMG, 'replay', dump, '--pin', pins, '--swap'];
    const { status, signal } = spawnSync(process.execPath, words, { env });
    if (status !== 143 && signal !== 'SIGTERM') {
      t.equal(status, 0);
      break;
    }
    t.same(idsIn(pins), before, `at change ${at}`);
    interrupted++;
  }
  t.ok(interrupted >= 2 * NAMES.length, `${interrupted} times`);
});

t.test('--pin-back pins where the maps had been', async (t) => {
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const pins = path.join(folder, 'app');
  const [one, two] = [path.join(pins, 'deep/one'), path.join(pins, 'two')];
  fs.mkdirSync(path.join(pins, 'deep'), { recursive: true });
  pinned(one);
  fs.linkSync(one, two);
  const dump = path.join(t.testdir(), 'dump');
  ran(['capture', '--pinned', pins, '-D', dump]);
  const back = ['replay', dump, '--pin-back'];
  t.match(bpfimg(back), { status: 1, stderr: /deep\/one, .+two: pinned there already; --swap/ });
  fs.rmSync(pins, { recursive: true });
  const dry = JSON.parse(ran([...back, '--dry-run', '--json']).stdout).maps;
  t.same([...dry[0].pins].sort(), [one, two]);
  t.notOk(fs.existsSync(pins));
  const { maps } = JSON.parse(ran([...back, '--json']).stdout);
  t.same([...maps[0].pins].sort(), [one, two]);
  const id = maps[0].new_id;
  t.same([idsIn(path.dirname(one)), BpfMap.openPinned(sys, two).id], [{ one: id }, id]);
  t.equal(fs.statSync(pins).mode & 0o777, 0o700);

  t.comment('one of two pins is taken');
  fs.unlinkSync(one);
  fs.rmdirSync(path.dirname(one));
  t.equal(bpfimg(back).status, 1);
  t.notOk(fs.existsSync(path.dirname(one)), 'a failure leaves no folders');
  const again = JSON.parse(ran([...back, '--swap', '--json']).stdout).maps[0];
  t.match(again.replaced, [{ pin: two, map_id: id }]);
  t.equal(BpfMap.openPinned(sys, one).id, again.new_id);
  t.equal(BpfMap.openPinned(sys, two).id, again.new_id);

  t.comment('both are taken');
  ran(['swap', 'commit', pins]);
  ran([...back, '--swap']);
  ran(['swap', 'rollback', pins, path.dirname(one)]);
  t.equal(BpfMap.openPinned(sys, one).id, again.new_id);
  t.equal(BpfMap.openPinned(sys, two).id, again.new_id);
});

t.test('--like, and the name stays', async (t) => {
  const { folder, pins, dump } = seeded(t, ['a']);
  const model = path.join(folder, 'a');
  using bigger = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 4, maxEntries: 64, flags: 0, name: 'a' });
  bigger.pin(model);
  const [{ a: old }] = [idsIn(pins)];
  ran(['replay', dump, '--like', `pinned:${model}`, '--pin-back', '--swap']);
  using map = BpfMap.openPinned(sys, path.join(pins, 'a'));
  t.same([map.maxEntries, map.lookup(u32(1))], [64, u32(1)]);
  t.equal(idsIn(pins)['a-swap-old'], old);
});

t.test('--pin-back of maps that cannot go back', async (t) => {
  const { pins, dump } = seeded(t, ['a']);
  const document = JSON.parse(ran(['decode', dump]).stdout);
  const base = t.testdir();
  const back = (pins: unknown) => {
    const text = structuredClone(document);
    text.maps[0].meta.pins = pins;
    const file = path.join(base, 'document.json');
    fs.writeFileSync(file, JSON.stringify(text));
    return ['--dry-run', '--swap'].map((option) => bpfimg(['replay', file, '--pin-back', option]).stderr);
  };
  const before = fs.readdirSync(base);
  for (const [where, message] of [
    [[], /map \d+ \(a\): nothing says where it was pinned; --map chooses others/],
    [[path.join(base, 'x/y')], /x\/y: map \d+ \(a\) was pinned there, which is not in a BPF file system; one is/],
    [['x'], /which is not in a BPF file system/],
    [[`${pins}/../../etc`], /which is not in a BPF file system/],
    [[`${pins}/x.y/z`], /where a name cannot have a dot/],
    [[`${pins}/a/b`], /was pinned there|a\/b/],
  ] as const) {
    for (const said of back(where)) t.match(said, message, String(where));
  }
  t.same(
    fs.readdirSync(base).filter((name) => name !== 'document.json'),
    before,
  );
  t.same(fs.readdirSync(pins), ['a']);
});
