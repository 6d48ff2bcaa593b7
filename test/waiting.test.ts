/** Other processes that do not come or do not go on: FIFOs, pipes that nobody reads. A signal ends the wait. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { BPFIMG, bpfimg, copyDump } from './helpers/command.js';
import { fixture } from './helpers/fixtures.js';
import { image, mapData } from './helpers/images.js';
import { patience } from './helpers/needs.js';

t.setTimeout(patience(120_000));

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

function fifo(folder: string, name = 'fifo'): string {
  const file = path.join(folder, name);
  const { status, stderr } = spawnSync('mkfifo', [file], { encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
  return file;
}

interface Ended {
  readonly code: number | null;
  readonly signal: string | null;
  readonly stdout: Buffer;
  readonly stderr: string;
}

function ended(child: ChildProcess): Promise<Ended> {
  const [stdout, stderr]: [Buffer[], Buffer[]] = [[], []];
  child.stdout?.on('data', (part: Buffer) => stdout.push(part));
  child.stderr?.on('data', (part: Buffer) => stderr.push(part));
  return new Promise((resolve) => {
    child.once('close', (code, signal) => {
      resolve({ code, signal, stdout: Buffer.concat(stdout), stderr: Buffer.concat(stderr).toString() });
    });
  });
}

function start(t: Test, args: readonly string[], stdout: 'pipe' | number = 'pipe'): ChildProcess {
  const child = spawn(process.execPath, [BPFIMG, ...args], { stdio: ['ignore', stdout, 'pipe'] });
  t.teardown(() => child.kill('SIGKILL'));
  return child;
}

const LARGE = image(
  'BPFMAP_DATA',
  mapData(
    1,
    Array.from({ length: 60_000 }, (_, i) => {
      const key = Buffer.alloc(4);
      key.writeUInt32LE(i);
      return [key, Buffer.alloc(16, i)] as const;
    }),
  ),
);

t.test('the first signal ends a command that waits for the other end of a FIFO', async (t) => {
  const folder = t.testdir({ 'x.img': fixture('flowd/pstree.img') });
  const waits: readonly [args: string[], what: string][] = [
    [['decode', '-i', fifo(folder, 'in')], 'an image'],
    [['encode', '-i', fifo(folder, 'json')], 'a document'],
    [['show', fifo(folder, 'show')], 'an image to show'],
    [['decode', path.join(folder, 'x.img'), '-o', fifo(folder, 'out')], 'an output'],
  ];
  for (const [args, what] of waits) {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
      const child = start(t, args);
      const end = ended(child);
      await sleep(700);
      t.equal(child.exitCode, null, `${what}: it waits`);
      child.kill(signal);
      t.match(await end, { code: null, signal, stderr: '' }, `${what}: ${signal} ends it`);
    }
  }
});

t.test('a FIFO works as input and as output', async (t) => {
  const folder = t.testdir();
  const [from, to] = [fifo(folder, 'from'), fifo(folder, 'to')];
  const end = ended(start(t, ['decode', '-i', from, '-o', to]));
  const json = fs.promises.readFile(to);
  // Nobody has opened it for a while.
  await sleep(400);
  await fs.promises.writeFile(from, LARGE);
  const text = await json;
  t.match(await end, { code: 0, stderr: '' });
  const { stdout } = spawnSync(process.execPath, [BPFIMG, 'encode'], { input: text, maxBuffer: 1 << 26 });
  t.ok(stdout.equals(LARGE));
});

t.test('a reader that stalls is left at the first signal; what it has read is right', async (t) => {
  const file = path.join(t.testdir({ 'x.img': '' }), 'x.img');
  fs.writeFileSync(file, LARGE);
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    const child = start(t, ['decode', file]);
    await sleep(900);
    t.equal(child.exitCode, null, 'it waits for its reader');
    child.kill(signal);
    const end = await ended(child);
    // Between two writes it leaves by itself, with the same code for a shell.
    const code = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 }[signal];
    t.ok(end.signal === signal || end.code === code, `${signal}: ${end.signal} ${end.code}`);
  }
  const slow = start(t, ['decode', file]);
  await sleep(500);
  const { code, stdout } = await ended(slow);
  t.equal(code, 0);
  const whole = spawnSync(process.execPath, [BPFIMG, 'decode', file], { maxBuffer: 1 << 26 }).stdout;
  t.ok(stdout.equals(whole), 'a reader that comes late gets everything');
});

t.test('what is no file is no image of a dump, and no object', async (t) => {
  const folder = path.join(t.testdir(), 'dump');
  copyDump(folder);
  const pipe = fifo(path.dirname(folder));
  const dump = path.join(folder, 'bpfmap-data.img');
  fs.rmSync(dump);
  fs.renameSync(pipe, dump);
  for (const command of ['decode', 'show', 'verify']) {
    t.match(bpfimg([command, folder]), {
      status: 1,
      stderr: `bpfimg: ${dump}: it is a folder, pipe or device, expected a regular file\n`,
    });
  }
  fs.rmSync(dump);
  fs.writeFileSync(dump, fixture('flowd/bpfmap-data.img'));
  const object = fifo(path.dirname(folder));
  t.match(bpfimg(['show', folder, '--btf', object]), {
    status: 1,
    stderr: `bpfimg: ${object}: it is a folder, pipe or device, expected a regular file\n`,
  });
});
