/** Others who change files while a command works on them: what it writes and reads is what it was given. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { folderAt, placeOf } from '../src/io/place.js';
import { BPFIMG, bpfimg, contents, copyDump, type Ran, TOP } from './helpers/command.js';
import { fixture } from './helpers/fixtures.js';
import { patience } from './helpers/needs.js';

t.setTimeout(patience(300_000));

const KILLER = path.join(TOP, 'test/helpers/kill-at.cjs');
const JSON_TEXT = bpfimg(['decode', path.join(TOP, 'fixtures/flowd/pstree.img')]).stdout;
const IMAGE = fixture('flowd/pstree.img');
const skip = process.getuid?.() === 0 ? false : 'needs root, to be two users';

async function until(what: string, ready: () => boolean): Promise<void> {
  for (let i = 0; !ready(); i++) {
    if (i > 3000) throw new Error(`waited in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

function start(t: Test, args: readonly string[], env: Record<string, string> = {}) {
  const node = Object.keys(env).length > 0 ? ['--require', KILLER] : [];
  const child: ChildProcess = spawn(process.execPath, [...node, BPFIMG, ...args], { env: { ...process.env, ...env } });
  t.teardown(() => child.kill('SIGKILL'));
  let [stdout, stderr] = ['', ''];
  child.stdout?.on('data', (part) => (stdout += part));
  child.stderr?.on('data', (part) => (stderr += part));
  const ended = new Promise<Ran>((resolve) => {
    child.once('close', (status, signal) => resolve({ status, signal, stdout, stderr }));
  });
  return { child, ended };
}

/** A command that is stopped before its `at`-th change or, with KILL_READS, image. */
async function stopped(t: Test, args: readonly string[], at: number, more: Record<string, string> = {}) {
  const run = start(t, args, { KILL_AT: String(at), KILL_WITH: 'SIGSTOP', ...more });
  const stat = () => fs.readFileSync(`/proc/${run.child.pid}/stat`, 'latin1').replace(/.*\) /s, '');
  let ends = false;
  void run.ended.then(() => {
    ends = true;
  });
  await until('it is stopped', () => ends || 'TZ'.includes(stat()[0] as string));
  return { ...run, ends };
}

const hidden = (folder: string) => fs.readdirSync(folder).filter((name) => name.startsWith('.'));

// ---------------------------------------------------------------------------------------------------
// Where outputs go

t.test('a folder that becomes a link to another one: everything is written to the one that was opened', async (t) => {
  const dump = (folder: string) => JSON.parse(bpfimg(['decode', folder]).stdout);
  const flowd = path.join(TOP, 'fixtures/flowd');
  const text = bpfimg(['decode', flowd]).stdout.replaceAll(/("value":")../g, '$1ee');
  const cases: readonly [what: string, args: string[], input: string, check: (t: Test, folder: string) => void][] = [
    [
      'a file',
      ['encode', '-o', 'place/x.img'],
      JSON_TEXT,
      (t, folder) => {
        t.same(fs.readFileSync(path.join(folder, 'x.img')), IMAGE);
      },
    ],
    [
      'a new dump',
      ['encode', '-D', 'place/new'],
      text,
      (t, folder) => {
        t.ok(dump(path.join(folder, 'new')).maps.length > 0);
      },
    ],
    [
      'a dump that is there',
      ['encode', '-D', 'place', '--force'],
      text,
      (t, folder) => {
        t.same(dump(folder), JSON.parse(text));
      },
    ],
  ];
  for (const [what, args, input, check] of cases) {
    for (const signal of [undefined, 'SIGTERM'] as const) {
      const base = t.testdir({ outside: { new: {}, mine: 'x' } });
      const place = path.join(base, 'place');
      copyDump(place);
      const before = contents(place);
      const { child, ended } = start(
        t,
        args.map((word) => word.replace('place', place)),
      );
      child.stdin?.write(input.slice(0, 20));
      await until('it has begun', () => hidden(place).length > 0);
      // What is at the same path now has nothing to do with it.
      const [temporary = ''] = hidden(place);
      fs.writeFileSync(path.join(base, 'outside', temporary), 'not yours');
      fs.renameSync(place, path.join(base, 'moved'));
      fs.symlinkSync('outside', place);
      const outside = contents(path.join(base, 'outside'));
      if (signal !== undefined) child.kill(signal);
      else child.stdin?.end(input.slice(20));
      const { status, stderr } = await ended;
      t.equal(status, signal === undefined ? 0 : 143, `${what}: ${stderr}`);
      t.same(contents(path.join(base, 'outside')), outside, `${what}: nothing happens where the link leads`);
      t.same(hidden(path.join(base, 'moved')), [], `${what}: no temporary file is left`);
      if (signal === undefined) check(t, path.join(base, 'moved'));
      else t.same(contents(path.join(base, 'moved')), before);
    }
  }
});

/** A folder like /tmp, with a file elsewhere that is not to be written. */
function sticky(t: Test): { folder: string; secret: string; out: string } {
  const base = t.testdir({ secret: 'secret', empty: {}, shared: {} });
  const folder = path.join(base, 'shared');
  fs.chmodSync(folder, 0o1777);
  // Everybody gets there.
  for (let up = base; up !== '/'; up = path.dirname(up)) fs.chmodSync(up, fs.statSync(up).mode | 0o011);
  return { folder, secret: path.join(base, 'secret'), out: path.join(folder, 'x.img') };
}

t.test("links of others in a folder that is everybody's are not followed", { skip }, async (t) => {
  const { folder, secret, out } = sticky(t);
  const args = [
    ['encode', '-o', out],
    ['encode', '-D', out],
  ];
  for (const to of [secret, '../empty', '/dev/null', 'nowhere']) {
    fs.symlinkSync(to, out);
    fs.lchownSync(out, 65534, 65534);
    for (const words of args) {
      t.match(bpfimg(words, { input: JSON_TEXT }), {
        status: 1,
        stderr: `bpfimg: ${out}: refused: user 65534 put it into a folder that everyone can write to\n`,
      });
    }
    t.ok(fs.lstatSync(out).isSymbolicLink());
    fs.rmSync(out);
  }
  t.equal(fs.readFileSync(secret, 'utf8'), 'secret');
  // Our own, the folder's owner's, and those in other folders.
  for (const [mode, owner, link] of [
    [0o1777, 0, 0],
    [0o1777, 65534, 65534],
    [0o777, 0, 65534],
    [0o1755, 0, 65534],
  ] as const) {
    fs.writeFileSync(secret, 'old');
    fs.chmodSync(folder, mode);
    fs.chownSync(folder, owner, owner);
    fs.symlinkSync('../secret', out);
    fs.lchownSync(out, link, link);
    t.match(bpfimg(['encode', '-o', out], { input: JSON_TEXT }), { status: 0, stderr: '' });
    t.same(fs.readFileSync(secret), IMAGE, 'what it leads to is replaced');
    t.ok(fs.lstatSync(out).isSymbolicLink());
    fs.rmSync(out);
  }
});

t.test("a change that others have left in a folder that is everybody's is not made", { skip }, async (t) => {
  const { folder, out } = sticky(t);
  fs.writeFileSync(out, IMAGE);
  const journal = path.join(folder, '.bpfimg-journal');
  fs.mkdirSync(journal);
  fs.writeFileSync(path.join(journal, 'plan'), '{"rename":[],"remove":["x.img"]}\n');
  fs.chownSync(journal, 65534, 65534);
  t.match(bpfimg(['decode', out]), {
    status: 1,
    stdout: '',
    stderr: `bpfimg: ${journal}: refused: user 65534 put it into a folder that everyone can write to\n`,
  });
  t.same(fs.readFileSync(out), IMAGE);
  fs.chownSync(journal, 0, 0);
  t.equal(bpfimg(['decode', out]).status, 1);
  t.notOk(fs.existsSync(out), 'our own is');
});

t.test('a folder that became a link after it was looked at is not opened', async (t) => {
  const folder = path.join(t.testdir({ given: {}, other: {} }), 'given');
  const place = placeOf(folder);
  t.teardown(() => place.folder.close());
  fs.rmdirSync(folder);
  fs.symlinkSync('other', folder);
  t.throws(() => folderAt(place), { code: /^(ELOOP|ENOTDIR)$/ });
});

t.test('somebody who swaps a file for a link all the time', { skip }, async (t) => {
  const { folder, secret, out } = sticky(t);
  const code = `
    const fs = require('node:fs');
    process.chdir(${JSON.stringify(folder)});
    for (;;) try {
      fs.writeFileSync('mine', '');
      fs.renameSync('mine', 'x.img');
      fs.symlinkSync('../secret', 'mine');
      fs.renameSync('mine', 'x.img');
    } catch { try { fs.rmSync('mine', { force: true }); } catch {} }`;
  const other = spawn(process.execPath, ['-e', code], { uid: 65534, gid: 65534, stdio: 'inherit', env: {} });
  t.teardown(() => other.kill('SIGKILL'));
  await until('it swaps', () => fs.existsSync(out));
  const seen = { written: 0, refused: 0 };
  for (let i = 0; i < 10; i++) {
    const { status, stderr } = bpfimg(['encode', '-o', out], { input: JSON_TEXT });
    if (status === 0) seen.written++;
    else if (stderr.includes('refused: user 65534')) seen.refused++;
    else t.fail(stderr);
    if (fs.readFileSync(secret, 'utf8') !== 'secret') return t.fail('the file that the link leads to was written');
    // One that is root's could not be swapped.
    if (status === 0) fs.rmSync(out);
  }
  other.kill('SIGKILL');
  await new Promise((resolve) => other.once('close', resolve));
  t.ok(seen.written > 0 && seen.refused > 0, JSON.stringify(seen));
});

// ---------------------------------------------------------------------------------------------------
// Changes of several images

/** Two dumps that differ in several images, and what is said of them. */
function twoDumps(t: Test): { base: string; old: string; document: string; texts: string[] } {
  const base = t.testdir();
  const old = path.join(base, 'old');
  copyDump(old);
  const before = bpfimg(['decode', old]).stdout;
  const after = before
    .replaceAll(/"max_entries":(\d+)/g, (_, number: string) => `"max_entries":${Number(number) + 1}`)
    .replaceAll(/("value":")../g, '$1ee');
  const document = path.join(base, 'new.json');
  fs.writeFileSync(document, after);
  const copy = path.join(base, 'new');
  copyDump(copy);
  bpfimg(['encode', document, '-D', copy, '--force']);
  return { base, old, document, texts: [before, bpfimg(['decode', copy]).stdout] };
}

function killed(args: readonly string[], at: number | 'journal'): boolean {
  const env = { ...process.env, KILL_AT: String(at) };
  return spawnSync(process.execPath, ['--require', KILLER, BPFIMG, ...args], { env }).signal === 'SIGKILL';
}

/** A copy of a dump with a change in it that was cut off when it had just begun. */
function cutOff(from: string, to: string, args: (folder: string) => readonly string[]): void {
  fs.rmSync(to, { recursive: true, force: true });
  fs.cpSync(from, to, { recursive: true });
  if (!killed(args(to), 'journal')) throw new Error('it was never in the middle of its change');
}

t.test('a process that is late with a change does not touch the next one', async (t) => {
  const base = t.testdir();
  const [native, cut, dump] = ['native', 'cut', 'dump'].map((name) => path.join(base, name)) as [
    string,
    string,
    string,
  ];
  copyDump(native);
  const convert = (to: string) => (folder: string) => ['criu', 'convert', folder, '--to', to];
  const visible = () => Object.fromEntries(Object.entries(contents(dump)).filter(([name]) => !name.startsWith('.')));
  fs.cpSync(native, dump, { recursive: true });
  t.equal(bpfimg(convert('plugin')(dump)).status, 0);
  const plugin = visible();
  t.equal(bpfimg(convert('native')(dump)).status, 0);
  const back = visible();
  // The first process to come is stopped in the middle; the second finishes; the third changes all back, or begins to.
  let kills = 0;
  for (let at = 0; ; at += 3) {
    cutOff(native, cut, convert('plugin'));
    fs.renameSync(cut, dump + at);
    fs.rmSync(dump, { recursive: true, force: true });
    fs.renameSync(dump + at, dump);
    const late = await stopped(t, ['decode', dump], at);
    if (late.ends) break;
    t.equal(bpfimg(['decode', dump]).status, 0);
    t.same(visible(), plugin);
    if (killed(convert('native')(dump), at % 2 === 0 ? 1000 : 30 + at)) kills++;
    late.child.kill('SIGCONT');
    t.match(await late.ended, { status: 0, stderr: '' }, `stopped at ${at}`);
    t.match(bpfimg(['decode', dump]), { status: 0, stderr: '' });
    const now = visible();
    const isBack = JSON.stringify(now) === JSON.stringify(back);
    if (!isBack && (at % 2 === 0 || JSON.stringify(now) !== JSON.stringify(plugin)))
      t.same(now, back, `stopped at ${at}`);
    t.notOk(fs.existsSync(path.join(dump, '.bpfimg-journal/plan')));
  }
  t.ok(kills > 0);
});

t.test('a file of a change that was cut off is lost: nothing is read, nothing is moved', async (t) => {
  const { base, old, document } = twoDumps(t);
  const dump = path.join(base, 'dump');
  cutOff(old, dump, (folder) => ['encode', document, '-D', folder, '--force']);
  fs.rmSync(path.join(dump, '.bpfimg-journal/bpfmap-data.img'));
  const before = contents(dump);
  const stderr = `bpfimg: ${dump}: its images are inconsistent: a change was interrupted, and its bpfmap-data.img is lost; remove .bpfimg-journal in that folder to read them as they are\n`;
  const image = path.join(dump, 'bpfmap-data.img');
  for (const args of [
    ['decode', dump],
    ['verify', dump],
    ['decode', image],
    ['info', image],
    ['show', image],
    ['encode', document, '-D', dump, '--force'],
  ]) {
    t.match(bpfimg(args), { status: 1, stderr }, args.join(' '));
  }
  t.same(contents(dump), before);
  fs.rmSync(path.join(dump, '.bpfimg-journal'), { recursive: true });
  t.match(bpfimg(['decode', dump]), { status: 0 });
});

t.test('one image of a change that was cut off: the change is finished first', async (t) => {
  const { base, old, document, texts } = twoDumps(t);
  const image = path.join(base, 'dump/bpfmap-data.img');
  for (const command of ['info', 'decode', 'show', 'verify']) {
    cutOff(old, path.dirname(image), (folder) => ['encode', document, '-D', folder, '--force']);
    const expected = bpfimg([command, path.join(base, 'new/bpfmap-data.img')]).stdout.replaceAll('/new/', '/dump/');
    t.match(bpfimg([command, image]), { status: 0, stdout: expected }, command);
    t.equal(bpfimg(['decode', path.dirname(image)]).stdout, texts[1]);
  }
  cutOff(old, path.dirname(image), (folder) => ['encode', document, '-D', folder, '--force']);
  const other = fs.readFileSync(path.join(old, 'bpfmap-data.img'));
  const json = bpfimg(['decode', path.join(old, 'bpfmap-data.img')]).stdout;
  t.equal(bpfimg(['encode', '-o', image], { input: json }).status, 0);
  bpfimg(['info', image]);
  t.same(fs.readFileSync(image), other, 'what is written later stays');
});

t.test('images that change while they are read: all are old, or all are new', async (t) => {
  const { base, old, document, texts } = twoDumps(t);
  const dump = path.join(base, 'dump');
  let anew = 0;
  for (let at = 0; ; at += 3) {
    fs.rmSync(dump, { recursive: true, force: true });
    fs.cpSync(old, dump, { recursive: true });
    const reader = await stopped(t, ['decode', dump], at, { KILL_READS: '1' });
    if (reader.ends) break;
    t.equal(bpfimg(['encode', document, '-D', dump, '--force']).status, 0);
    reader.child.kill('SIGCONT');
    const { status, stdout, stderr } = await reader.ended;
    t.match({ status, stderr }, { status: 0, stderr: '' });
    if (!texts.includes(stdout)) t.fail(`stopped at image ${at}: it has read neither the old dump nor the new one`);
    if (stdout === texts[1]) anew++;
  }
  t.ok(anew > 1, `${anew}`);
});

t.test('two that change one dump at a time: the later one changes nothing', async (t) => {
  const { base, old, document } = twoDumps(t);
  const dump = path.join(base, 'dump');
  fs.cpSync(old, dump, { recursive: true });
  const first = start(t, ['encode', '-D', dump, '--force']);
  await until('it has begun', () => hidden(dump).length > 0);
  t.equal(bpfimg(['encode', document, '-D', dump, '--force']).status, 0);
  const now = bpfimg(['decode', dump]).stdout;
  first.child.stdin?.end(bpfimg(['decode', old]).stdout.replaceAll(/("value":")../g, '$1dd'));
  t.match(await first.ended, {
    status: 1,
    stderr: `bpfimg: ${dump}: its images were changed in the meantime; nothing was written\n`,
  });
  t.equal(bpfimg(['decode', dump]).stdout, now);
  t.same(hidden(dump), []);
});

// ---------------------------------------------------------------------------------------------------
// What killed runs leave

t.test(
  'what a killed run has left goes when its target is written again; what another one writes does not',
  async (t) => {
    const base = t.testdir();
    const dump = path.join(base, 'dump');
    copyDump(dump);
    const text = bpfimg(['decode', dump]).stdout;
    for (const [folder, args, input] of [
      [base, ['encode', '-o', path.join(base, 'x.img')], JSON_TEXT],
      [dump, ['encode', '-D', dump, '--force'], text],
      [base, ['encode', '-D', path.join(base, 'new')], text],
    ] as const) {
      const [left, alive] = [start(t, args), start(t, args)];
      await until('they have begun', () => hidden(folder).length === 2);
      const of = (pid: number | undefined) => hidden(folder).find((name) => name.includes(`.bpfimg-${pid}-`)) as string;
      const [mine, other] = [of(left.child.pid), of(alive.child.pid)];
      left.child.kill('SIGKILL');
      await left.ended;
      // The same pid, in another pid namespace or on another host.
      const [, pid = '', where = ''] = /bpfimg-(\d+)-(\w+)-/.exec(mine) ?? [];
      const foreign = mine.replace(`${pid}-${where}`, `${pid}-${where.slice(0, -1)}${(Number(where.at(-1)) + 1) % 10}`);
      const stranger = `${mine}-y`;
      fs.cpSync(path.join(folder, mine), path.join(folder, foreign), { recursive: true });
      if (skip === false) {
        fs.writeFileSync(path.join(folder, stranger), '');
        fs.chownSync(path.join(folder, stranger), 65534, 65534);
      }
      const { status, stderr } = bpfimg(args, { input });
      t.equal(status, 0, stderr);
      const kept = [other, foreign, ...(skip === false ? [stranger] : [])];
      t.same(hidden(folder), kept.sort());
      alive.child.kill('SIGTERM');
      await alive.ended;
      for (const name of hidden(folder)) fs.rmSync(path.join(folder, name), { recursive: true });
    }
  },
);
