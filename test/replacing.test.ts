/** Several images of a dump that change together: killed anywhere, the dump is the old one or the new one. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { BPFIMG, bpfimg, contents, copyDump, TOP } from './helpers/command.js';
import { patience } from './helpers/needs.js';

t.setTimeout(patience(300_000));

const KILLER = path.join(TOP, 'test/helpers/kill-at.cjs');

type Folder = Record<string, string>;

const same = (a: Folder, b: Folder) =>
  Object.keys(a).join() === Object.keys(b).join() && Object.entries(a).every(([name, bytes]) => b[name] === bytes);
/** What a reader sees: a command that is killed before it has decided leaves hidden files. */
const visible = (folder: string): Folder =>
  Object.fromEntries(Object.entries(contents(folder)).filter(([name]) => !name.startsWith('.')));

/** Runs a command again and again, each time killed at the next of its changes, until it comes to its end. */
function killedEverywhere(
  t: Test,
  seed: (folder: string) => void,
  run: (folder: string) => string[],
): { old: number; new: number; between: number } {
  const base = t.testdir();
  const [old, whole, dump] = ['old', 'new', 'dump'].map((name) => path.join(base, name)) as [string, string, string];
  seed(old);
  fs.cpSync(old, whole, { recursive: true });
  const done = bpfimg(run(whole));
  if (done.status !== 0) throw new Error(done.stderr);
  const [before, after] = [visible(old), visible(whole)];
  const seen = { old: 0, new: 0, between: 0 };
  for (let at = 0; ; at++) {
    fs.rmSync(dump, { recursive: true, force: true });
    fs.cpSync(old, dump, { recursive: true });
    const env = { ...process.env, KILL_AT: String(at) };
    const { status, signal } = spawnSync(process.execPath, ['--require', KILLER, BPFIMG, ...run(dump)], { env });
    if (signal !== 'SIGKILL') {
      t.equal(status, 0);
      t.ok(same(contents(dump), after), 'left alone it leaves nothing but the new dump');
      return seen;
    }
    const now = visible(dump);
    if (!same(now, before) && !same(now, after)) seen.between++;
    // Whoever comes next, finishes it; what it reads is of one time.
    const next = bpfimg(['decode', dump]);
    const read = visible(dump);
    if (same(read, before)) seen.old++;
    else if (same(read, after)) seen.new++;
    else t.fail(`killed at change ${at}: neither the old dump nor the new one: ${Object.keys(read).join(' ')}`);
    if (next.status !== 0) t.fail(`killed at change ${at}: ${next.stderr}`);
    if (fs.existsSync(path.join(dump, '.bpfimg-journal/plan')))
      t.fail(`killed at change ${at}: the journal is still there`);
  }
}

/** The document of the dump with something else in several of its images. */
function edited(folder: string, file: string): string {
  const { stdout } = bpfimg(['decode', folder]);
  const text = stdout
    .replaceAll(/"max_entries":(\d+)/g, (_, number: string) => `"max_entries":${Number(number) + 1}`)
    .replaceAll(/("value":")../g, '$1ee');
  fs.writeFileSync(file, text);
  return file;
}

t.test('encode -D DUMP --force', async (t) => {
  const document = path.join(t.testdir(), 'new.json');
  const seen = killedEverywhere(
    t,
    (folder) => {
      copyDump(folder);
      edited(folder, document);
    },
    (folder) => ['encode', document, '-D', folder, '--force'],
  );
  t.ok(seen.old > 3 && seen.new > 1, JSON.stringify(seen));
  t.ok(seen.between > 0, 'it was killed between two images');
});

t.test('criu convert', async (t) => {
  const seen = killedEverywhere(t, copyDump, (folder) => ['criu', 'convert', folder, '--to', 'plugin']);
  t.ok(seen.old > 3 && seen.new > 1, JSON.stringify(seen));
  t.ok(seen.between > 0, 'it was killed between two images');
});

t.test('one image that changes is one rename', async (t) => {
  const base = t.testdir();
  const folder = path.join(base, 'dump');
  copyDump(folder);
  const { stdout } = bpfimg(['decode', folder]);
  const inodes = () =>
    Object.fromEntries(fs.readdirSync(folder).map((name) => [name, fs.statSync(path.join(folder, name)).ino]));
  const before = inodes();
  fs.writeFileSync(path.join(base, 'x.json'), stdout.replace(/("value":")../, '$1ee'));
  t.equal(bpfimg(['encode', path.join(base, 'x.json'), '-D', folder, '--force']).status, 0);
  const changed = Object.entries(inodes()).filter(([name, ino]) => before[name] !== ino);
  t.same(
    changed.map(([name]) => name),
    ['bpfmap-data.img'],
    'the others are the files they were',
  );
});

t.test('journals of strangers', async (t) => {
  const base = t.testdir({ outside: 'x' });
  const journals: readonly unknown[] = [
    { rename: [['../outside.img', '1']], remove: [] },
    { rename: [['..', '1']], remove: [] },
    { rename: ['files.img'], remove: [] },
    { rename: [['files.img']], remove: [] },
    { rename: [], remove: ['../outside'] },
    { rename: [], remove: ['.'] },
    { rename: {}, remove: [] },
    [],
    null,
  ];
  for (const [i, journal] of journals.entries()) {
    const folder = path.join(base, `dump${i}`);
    copyDump(folder);
    fs.mkdirSync(path.join(folder, '.bpfimg-journal'));
    fs.writeFileSync(path.join(folder, '.bpfimg-journal/plan'), JSON.stringify(journal));
    const before = contents(folder);
    t.match(bpfimg(['decode', folder]), {
      status: 1,
      stderr: `bpfimg: ${folder}/.bpfimg-journal: not a bpfimg journal; remove it if the images are complete\n`,
    });
    t.ok(same(contents(folder), before), 'nothing has moved');
  }
  t.ok(fs.existsSync(path.join(base, 'outside')));
});
