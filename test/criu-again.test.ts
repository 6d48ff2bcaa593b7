/** A dump into a folder that has one: it replaces the maps of the other when it works, and leaves them when it does not. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { planText } from '../src/io/journal.js';
import { Folder } from '../src/io/place.js';
import { BPFIMG, bpfimg, TOP } from './helpers/command.js';
import {
  Bench,
  buildPluginOf,
  compile,
  dump,
  errors,
  type Held,
  lasting,
  processesOf,
  restore,
  skipWithoutCriu,
  TYPED,
  TYPES,
  until,
  zombies,
} from './helpers/criu.js';
import { patience } from './helpers/needs.js';

t.setTimeout(patience(240_000));
const skip = await skipWithoutCriu();
const bench = await Bench.set(t.testdir(), skip);
/** Seconds that nobody else sleeps. */
const FOR_EVER = 1_000_000 + process.pid;
const REAL = `${process.execPath} ${BPFIMG} "$@"`;

/** Files of a folder, hidden ones as well, with what is in them; only those whose names have `part` in them. */
function filesOf(folder: string, part = 'bpfimg'): Record<string, string> {
  const names = fs.readdirSync(folder).filter((name) => name.includes(part) && !name.endsWith('.log'));
  return Object.fromEntries(
    names.sort().map((name) => {
      const file = path.join(folder, name);
      return [name, fs.statSync(file).isDirectory() ? 'a folder' : fs.readFileSync(file, 'latin1')];
    }),
  );
}

const IMAGES = ['bpfimg-btf.img', 'bpfimg-data.img', 'bpfimg-file.img', 'bpfimg-files.txt', 'bpfimg-meta.img'];

/** A process with a typed map, which has been dumped and runs on; and what the plugin has put into the folder. */
async function dumpedOnce(t: Test): Promise<Held & { first: Record<string, string> }> {
  const held = await bench.witness(t, TYPES, `map m ${TYPED}`, 'close types', 'fill m 5');
  t.match(await dump(held.witness.pid, held.folder, { ...bench, more: ['--leave-running'] }), { status: 0 });
  const first = filesOf(held.folder);
  t.same(Object.keys(first), IMAGES);
  return { ...held, first };
}

t.test('there is no such process: everything stays, and restores', { skip }, async (t) => {
  const { witness, folder } = await dumpedOnce(t);
  const before = await witness.see();
  const all = filesOf(folder, '');
  await witness.end();
  t.match(await dump(witness.pid, folder, bench), { status: 1 });
  t.same(filesOf(folder, ''), all);
  await bench.restored(t, folder);
  t.same(lasting(await witness.see()), lasting(before));
});

/** Helpers that fail, at the one moment or the other. */
const HELPERS: readonly [what: string, script: string][] = [
  ['says that it failed', 'echo error injected; exit 1'],
  ['is killed', 'kill -9 $$'],
  ['fails when its images are there', `${REAL} >/dev/null; echo error injected; exit 1`],
  ['says that it has images, and has none', 'echo map $5; echo end'],
  [
    'is killed before they are whole',
    'mkdir ..bpfimg-new.bpfimg-1-x; : >..bpfimg-new.bpfimg-1-x/bpfimg-data.img; kill -9 $$',
  ],
];

for (const [what, script] of HELPERS) {
  t.test(`the helper ${what}: the old maps stay, and nothing else`, { skip }, async (t) => {
    const { witness, folder, first } = await dumpedOnce(t);
    await witness.tell('set m 00000000 ffffffffffffffff');
    const { plugin, file } = buildPluginOf(bench.folder, script);
    for (let round = 0; round < 2; round++) {
      t.match(await dump(witness.pid, folder, { plugin }), { status: 1 });
      t.same(filesOf(folder), first);
    }
    t.same(processesOf(path.dirname(file)), []);
    t.same(zombies(), []);
  });
}

t.test('what fails after the new maps were captured: the old ones are back', { skip }, async (t) => {
  const { witness, folder, first } = await dumpedOnce(t);
  await witness.tell('set m 00000000 ffffffffffffffff', 'map second', 'prog p');
  for (let round = 0; round < 3; round++) {
    const { status, log } = await dump(witness.pid, folder, bench);
    t.equal(status, 1);
    t.match(log, /Can't dump file \d+ of that type \[600\] \(anon anon_inode:bpf-prog\)/);
    t.same(filesOf(folder), first);
  }
});

t.test('one that works replaces it, image by image', { skip }, async (t) => {
  const { witness, folder, first } = await dumpedOnce(t);
  await witness.tell('map plain', 'fill plain 3', 'close m');
  const before = await witness.see();
  const seen = path.join(folder, '../seen');
  const script = path.join(folder, '../script.sh');
  fs.writeFileSync(script, `#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != post-dump ] || cp -r $CRTOOLS_IMAGE_DIR ${seen}\n`);
  fs.chmodSync(script, 0o755);
  const { status, log } = await dump(witness.pid, folder, { ...bench, more: ['--action-script', script] });
  t.equal(status, 0, errors(log).join('; '));
  const second = filesOf(folder);
  t.same(
    Object.keys(second),
    IMAGES.filter((name) => name !== 'bpfimg-btf.img'),
    'that of types has gone: the new dump has none',
  );
  for (const [name, bytes] of Object.entries(second)) t.not(bytes, first[name], name);
  await witness.gone();
  await bench.restored(t, folder);
  t.same(lasting(await witness.see()), lasting(before));
  await witness.end();
  await witness.gone();
  await bench.restored(t, seen);
  t.same(lasting(await witness.see()), lasting(before), 'a copy that a post-dump script makes is whole');
});

t.test(
  'a change of the images was cut off: nothing is restored or dumped until it is finished',
  { skip },
  async (t) => {
    const { witness, folder } = await dumpedOnce(t);
    const before = await witness.see();
    const journal = path.join(folder, '.bpfimg-journal');
    fs.mkdirSync(journal);
    fs.copyFileSync(path.join(folder, 'bpfimg-data.img'), path.join(journal, 'bpfimg-data.img'));
    const change = new Folder(journal);
    fs.writeFileSync(path.join(journal, 'plan'), planText(change, ['bpfimg-data.img'], []));
    change.close();
    const files = filesOf(folder, '.img');
    const message =
      'Error (bpfimg): a change to the images was interrupted: ' +
      `\`bpfimg verify ${fs.realpathSync(folder)}\` finishes it\n`;
    const again = await dump(witness.pid, folder, bench);
    t.equal(again.status, 1);
    t.ok(again.log.includes(message), errors(again.log).join('; '));
    t.same(filesOf(folder, '.img'), files);
    await witness.end();
    await witness.gone();
    const restored = await restore(folder, bench);
    t.equal(restored.status, 1);
    t.ok(restored.log.includes(message), errors(restored.log).join('; '));
    t.equal(bpfimg(['verify', folder]).status, 0);
    await bench.restored(t, folder);
    t.same(lasting(await witness.see()), lasting(before));
  },
);

t.test('CRIU is killed: no helper is left, and the old maps are', { skip }, async (t) => {
  for (const [when, script] of [
    ['before the helper does anything', `kill -9 $3; exec sleep ${FOR_EVER}`],
    ['while the helper works', `(sleep 0.05; kill -9 $3) & exec ${REAL}`],
    ['when its images are there', `${REAL} >/dev/null; kill -9 $3; exec sleep ${FOR_EVER}`],
  ] as const) {
    const { plugin, file } = buildPluginOf(bench.folder, script);
    let held = await dumpedOnce(t);
    let { signal } = await dump(held.witness.pid, held.folder, { plugin });
    // A quick helper may be done before.
    for (let tries = 20; signal !== 'SIGKILL' && tries > 0; tries--) {
      held = await dumpedOnce(t);
      ({ signal } = await dump(held.witness.pid, held.folder, { plugin }));
    }
    t.equal(signal, 'SIGKILL', when);
    const { witness, folder, first } = held;
    await until('the helper ends', () =>
      [path.dirname(file), `sleep\0${FOR_EVER}`].every((one) => processesOf(one).length === 0),
    );
    // Chance decides how far the change of images has come: see the names of folders in the plugin's source. Those that
    // begin so mean nothing: the next dump removes them.
    const all = Object.entries(filesOf(folder)).filter(([name]) => !name.startsWith('..bpfimg-new.bpfimg-'));
    const { '.bpfimg-new': whole, '.bpfimg-moving': moving, '.bpfimg-old': old, ...rest } = Object.fromEntries(all);
    const aside = old === undefined ? '.bpfimg-moving' : '.bpfimg-old';
    const apart = old === undefined && moving === undefined ? {} : filesOf(path.join(folder, aside));
    t.same(old === undefined ? { ...rest, ...apart } : apart, first, when);
    if (whole !== undefined) {
      t.same(
        Object.keys(filesOf(path.join(folder, '.bpfimg-new'))),
        IMAGES.filter((name) => name.endsWith('.img')),
        'whole, or not there',
      );
      const { status, log } = await restore(folder, bench);
      t.equal(status, 1);
      t.match(log, /a dump into this folder was interrupted/);
    }
    await witness.end();
  }
});

t.test('two copies of the plugin: refused, by name', { skip }, async (t) => {
  const { witness, folder, first } = await dumpedOnce(t);
  const both = path.join(folder, '../both');
  fs.mkdirSync(both);
  for (const name of ['bpfimg.so', 'old.so'])
    fs.copyFileSync(path.join(bench.plugin, 'bpfimg.so'), path.join(both, name));
  const { status, log } = await dump(witness.pid, folder, { plugin: both });
  t.equal(status, 1);
  t.match(
    log,
    /Error \(bpfimg\): \S+\/both\/(bpfimg|old)\.so has a second copy, \S+\/both\/(old|bpfimg)\.so: remove one/,
  );
  t.match(log, /Failed in init\(0\) of "bpfimg"/);
  t.same(filesOf(folder), first);
  const ran = await restore(folder, { plugin: both });
  t.equal(ran.status, 1);
  t.match(ran.log, /has a second copy/);
});

// ---------------------------------------------------------------------------------------------------
// Killed at any step

t.test(
  'killed at any change of a name, and killed again at any: the old maps whole, or the new ones',
  { skip },
  async (t) => {
    const folder = path.join(bench.folder, 'steps');
    fs.mkdirSync(folder);
    const program = path.join(folder, 'steps');
    const macros = ['VERSION', 'NODE', 'BPFIMG', 'CONFIG'].map((name) => `-D${name}="/none"`);
    compile('-std=gnu11', ...macros, '-o', program, path.join(TOP, 'test/helpers/plugin-steps.c'));
    const dir = path.join(folder, 'dump');
    const put = (place: string, files: Record<string, string>) => {
      fs.rmSync(place, { recursive: true, force: true });
      fs.mkdirSync(place);
      for (const [name, text] of Object.entries(files)) fs.writeFileSync(path.join(place, name), text);
    };
    const old = { 'bpfimg-btf.img': 'o', 'bpfimg-data.img': 'o', 'bpfimg-files.txt': 'o', 'pstree.img': 'p' };
    const images = { 'bpfimg-data.img': 'n', 'bpfimg-file.img': 'n' };
    const rest = { 'pstree.img': 'p' };
    const run = (mode: string, step: number) => spawnSync(program, [mode, dir, `${step}`]).status;
    for (const [mode, before, after] of [
      ['works', old, { ...images, ...rest }],
      ['works', rest, { ...images, ...rest }],
      ['captures twice', old, { ...images, ...rest }],
      ['fails', old, old],
      ['fails', rest, rest],
      ['fails at once', old, old],
      ['begins', old, old],
    ] as const) {
      let steps = 0;
      for (let status: number | null = 9, done = false; status === 9; steps++) {
        // Once more each time, at another step: at every one again takes minutes, and finds nothing either.
        const again = (7 * steps) % 11;
        put(dir, before);
        status = run(mode, steps);
        if (status !== 9 && status !== 0) t.fail(`${mode}: exit status ${status}`);
        const second = run('begins', again);
        if (second === 9 && run('begins', -1) !== 0) t.fail(`${mode}: the next one fails`);
        const left = filesOf(dir, '');
        const isNew = JSON.stringify(left) === JSON.stringify(sorted(after));
        if (!isNew && (done || JSON.stringify(left) !== JSON.stringify(sorted(before)))) {
          t.same(left, before, `${mode}, killed at step ${steps}, and again at ${again}`);
        }
        done ||= isNew && after !== before;
      }
      t.ok(steps > 1 || mode === 'begins', `${mode}: ${steps} steps`);
      t.same(filesOf(dir, ''), after, `${mode}: in the end`);
    }
    put(dir, old);
    t.equal(run('has no maps', -1), 0);
    t.same(filesOf(dir, ''), rest);
  },
);

function sorted(files: Record<string, string>): Record<string, string> {
  return Object.fromEntries(Object.entries(files).sort(([a], [b]) => (a < b ? -1 : 1)));
}
