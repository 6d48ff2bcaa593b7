/** What `npm pack` makes, used as somebody does who has only that. */
import { execFileSync, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { pathToFileURL } from 'node:url';
import t from 'tap';
import { TOP } from './helpers/command.js';
import { fixture } from './helpers/fixtures.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-package-'));
t.teardown(() => fs.rmSync(folder, { recursive: true }));
fs.chmodSync(folder, 0o755);

const packed = execFileSync('npm', ['pack', '--ignore-scripts', '--silent', '--pack-destination', folder], {
  cwd: TOP,
});
const archive = path.join(folder, String(packed).trim());

/** Unpacks the package into a new folder of that name, as npm does on install. */
function install(name: string): string {
  const target = path.join(folder, name);
  fs.mkdirSync(target);
  execFileSync('tar', ['-xzf', archive, '-C', target, '--strip-components=1', '--no-same-owner']);
  execFileSync('chmod', ['-R', 'go-w', target]);
  return target;
}

/** Runs the installed command, from a folder that is not the repository; as `user` where that is given. */
function run(home: string, args: readonly string[], input?: Uint8Array, user?: number): Buffer {
  const command = path.join(home, 'dist/bpfimg');
  const as = user === undefined ? {} : { uid: user, gid: user };
  // Without what the test runner adds to every process: the launcher keeps no code that runs otherwise than usual.
  const bare = ['-u', 'NODE_OPTIONS', '-u', 'NODE_V8_COVERAGE', command, ...args];
  const { status, stdout, stderr, error } = spawnSync('env', bare, { cwd: '/', input, ...as });
  if (error) throw error;
  if (status !== 0) throw new Error(`bpfimg ${args.join(' ')}: exit code ${status}: ${stderr}`);
  return stdout;
}

const caches = (home: string) => fs.readdirSync(path.join(home, 'dist')).filter((name) => name.includes('.cache'));

t.test('the files of the package', async (t) => {
  const home = install('files');
  const files = fs.readdirSync(home, { recursive: true, encoding: 'utf8' });
  for (const name of [
    'dist/bpfimg',
    'dist/bpfimg.cjs',
    'dist/validators.cjs',
    'dist/THIRD-PARTY.txt',
    'build/src/index.js',
    'build/src/index.d.ts',
    'build/plugins/index.js',
    'images/bpfmap-data.proto',
    'docs/schema/crit.schema.json',
    'docs/schema/maps.schema.json',
    'LICENSE',
    'README.md',
  ]) {
    t.ok(files.includes(name), name);
  }
  t.same(
    files.filter((name) => /^(src|test|fixtures|build\/test)\b|\.cache|^\./.test(name)),
    [],
    'no sources, tests or caches',
  );
  t.equal(fs.statSync(path.join(home, 'dist/bpfimg')).mode & 0o111, 0o111, 'executable');
  const { version } = JSON.parse(fs.readFileSync(path.join(home, 'package.json'), 'utf8'));
  t.equal(String(run(home, ['--version'])), `${version}\n`);
});

t.test('the command decodes and encodes', async (t) => {
  const home = install('command');
  const image = fixture('flowd/bpfmap-data.img');
  for (const format of ['items', 'crit', 'ndjson']) {
    const json = run(home, ['decode', '--format', format], image);
    t.ok(run(home, ['encode'], json).equals(image), format);
  }
});

t.test('the library', async (t) => {
  const home = install('library');
  const library = await import(pathToFileURL(path.join(home, 'build/src/index.js')).href);
  const reader = await library.ImageReader.open(library.bufferInput(fixture('flowd/pstree.img')));
  t.equal(reader.kind.name, 'PSTREE');
});

t.test('compiled code is kept in a folder that is ours alone', async (t) => {
  const home = install('cached');
  const text = run(home, ['decode', '--format', 'crit'], fixture('flowd/pstree.img'));
  const [name = ''] = caches(home);
  t.equal(caches(home).length, 1, 'one run keeps one file');
  const cache = path.join(home, 'dist', name);
  const { ino } = fs.statSync(cache);
  t.ok(run(home, ['decode', '--format', 'crit'], fixture('flowd/pstree.img')).equals(text));
  t.equal(fs.statSync(cache).ino, ino, 'it serves the next run');

  const good = fs.readFileSync(cache);
  const flipped = Buffer.from(good);
  // What stands there is code: V8 would run whatever it has become.
  for (let at = 4000; at < flipped.length; at += 997) flipped[at] = (flipped[at] as number) ^ 1;
  const bit = Buffer.from(good);
  bit[good.length >> 1] = (bit[good.length >> 1] as number) ^ 0x10;
  for (const [what, bytes] of [
    ['empty', Buffer.alloc(0)],
    ['of another V8', Buffer.alloc(4096, 7)],
    ['cut off', good.subarray(0, good.length >> 1)],
    ['damaged', flipped],
    ['damaged in one bit', bit],
  ] as const) {
    fs.writeFileSync(cache, bytes);
    t.ok(
      run(home, ['decode', '--format', 'crit'], fixture('flowd/pstree.img')).equals(text),
      `works when it is ${what}`,
    );
    t.notOk(fs.readFileSync(cache).equals(bytes), 'and makes it anew');
  }
});

t.test('no compiled code is kept elsewhere', async (t) => {
  const image = fixture('flowd/pstree.img');
  const shared = install('shared');
  fs.chmodSync(path.join(shared, 'dist'), 0o777);
  run(shared, ['decode'], image);
  t.same(caches(shared), [], 'a folder that others can write to');

  const readOnly = install('read-only');
  const root = process.getuid?.() === 0;
  if (!root) fs.chmodSync(path.join(readOnly, 'dist'), 0o555);
  run(readOnly, ['decode'], image, root ? 65534 : undefined);
  t.same(caches(readOnly), [], root ? "somebody else's folder" : 'a read-only folder');
  fs.chmodSync(path.join(readOnly, 'dist'), 0o755);
});
