/** The command as its users meet it: pipes, exit codes, full disks, signals. */
import { spawn, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import t from 'tap';
import { BPFIMG, bpfimg, contents, shell, workFolder } from './helpers/command.js';
import { skipWithoutRoot } from './helpers/needs.js';

const cwd = workFolder();
t.teardown(() => fs.rmSync(cwd, { recursive: true }));

const IMAGE = 'flowd/bpfmap-data.img';

t.test('an image through a pipe and back, in every dialect', async (t) => {
  for (const options of ['', '--pretty', '--format crit', '--format crit --pretty', '--format ndjson']) {
    for (const image of [
      IMAGE,
      'flowd/files.img',
      'flowd/fdinfo-2.img',
      'flowd/pstree.img',
      'flowd/ids-22137.img',
      'flowd/inventory.img',
    ]) {
      const line = `cat ${image} | bpfimg decode ${options} | bpfimg encode | cmp - ${image}`;
      t.same(shell(line, { cwd }), { status: 0, signal: null, stdout: '', stderr: '' }, line);
    }
  }
});

t.test('the ways to name input and output', async (t) => {
  const want = bpfimg(['decode', IMAGE], { cwd }).stdout;
  const ways = [
    `bpfimg decode -i ${IMAGE}`,
    `bpfimg decode --in ${IMAGE}`,
    `bpfimg decode - < ${IMAGE}`,
    `bpfimg decode < ${IMAGE}`,
    `bpfimg decode <(cat ${IMAGE})`,
    `bpfimg decode ${IMAGE} -o -`,
    `bpfimg decode ${IMAGE} -o out.json; cat out.json`,
    `bpfimg decode ${IMAGE} --out /dev/stdout | cat`,
    `bpfimg decode ${IMAGE} > to-file.json; cat to-file.json`,
  ];
  for (const line of ways) t.same(shell(line, { cwd }), { status: 0, signal: null, stdout: want, stderr: '' }, line);
  t.equal(fs.statSync(path.join(cwd, 'out.json')).mode & 0o777, 0o600, 'map contents can be secrets');
});

t.test('-- ends options', async (t) => {
  fs.copyFileSync(path.join(cwd, 'flowd/pstree.img'), path.join(cwd, '--pretty'));
  fs.cpSync(path.join(cwd, 'flowd'), path.join(cwd, '-q'), { recursive: true });
  const want = bpfimg(['decode', 'flowd/pstree.img'], { cwd }).stdout;
  for (const line of ['decode -- --pretty', 'decode -- - < ./--pretty', 'decode --no-typed -- --pretty']) {
    t.same(shell(`bpfimg ${line}`, { cwd }), { status: 0, signal: null, stdout: want, stderr: '' }, line);
  }
  t.match(bpfimg(['info', '--', '--pretty'], { cwd }), { status: 0, stdout: /PSTREE/ });
  t.same(bpfimg(['diff', '--', '-q', 'flowd'], { cwd }), { status: 0, signal: null, stdout: '', stderr: '' });
  t.match(bpfimg(['criu', 'convert', '--to', 'native', '--', '-q'], { cwd }).stderr, /^bpfimg: -q: nothing to convert/);
  const words = ['replay', '--dry-run', 'flowd', '--', 'echo', '-', '--', '-x'];
  t.match(bpfimg(words, { cwd }).stdout, /flows/);
});

t.test('info: what can be read of several images has its lines', async (t) => {
  const { status, stdout, stderr } = bpfimg(['info', 'none.img', 'flowd/pstree.img', 'flowd/core-22137.img', IMAGE], {
    cwd,
  });
  t.equal(status, 1);
  t.same(stdout.match(/"(image|magic|count)": .*/g), [
    '"image": "flowd/pstree.img",',
    '"magic": "PSTREE",',
    '"count": 2',
    `"image": "${IMAGE}",`,
    '"magic": "BPFMAP_DATA",',
    '"count": 7',
  ]);
  t.match(stderr, /^bpfimg: none.img: [^\n]+\nbpfimg: flowd\/core-22137.img: [^\n]+\n$/);
});

t.test('-o through a symbolic link replaces what it points to', async (t) => {
  fs.writeFileSync(path.join(cwd, 'real.img'), 'old');
  fs.symlinkSync('real.img', path.join(cwd, 'link.img'));
  t.equal(shell(`bpfimg decode ${IMAGE} | bpfimg encode -o link.img && cmp real.img ${IMAGE}`, { cwd }).status, 0);
  t.ok(fs.lstatSync(path.join(cwd, 'link.img')).isSymbolicLink());
});

t.test('a reader that goes away ends it quietly', async (t) => {
  const line = `bpfimg decode ${IMAGE} --pretty | head -1; echo "\${PIPESTATUS[0]}"`;
  t.same(shell(line, { cwd }), { status: 0, signal: null, stdout: '{\n0\n', stderr: '' });
});

t.test('wrong usage is exit code 2 and one line', async (t) => {
  const wrong = [
    ['frobnicate'],
    ['decode', '--nope'],
    ['decode', '-o'],
    ['decode', 'a', 'b'],
    ['decode', '-i', 'a', 'b'],
    ['decode', '--format', 'xml'],
    ['decode', IMAGE, '--map', 'flows'],
    ['decode', 'flowd/pstree.img', '--map', '1'],
    ['encode', '-o', 'a', '-D', 'b'],
    ['info'],
    ['show', '--limit', 'x', IMAGE],
    ['show', '--limit', '-1', IMAGE],
    ['decode', IMAGE, '-o', 'a', '-o', 'b'],
    ['decode', '-i', IMAGE, '--in', IMAGE],
    ['decode', IMAGE, '--format', 'crit', '--format', 'crit'],
    ['encode', IMAGE, '-D', 'a', '-D', 'b'],
    ['show', IMAGE, '--limit', '1', '--limit', '2'],
    ['capture', '--all', '-D', 'a', '--dir', 'b'],
    ['replay', 'flowd', '--pin', 'a', '--pin', 'b'],
    ['criu', 'convert', 'flowd', '--to', 'native', '--to', 'native'],
    ['show', 'flowd', '--map', '--', 'cfg'],
    ['diff', 'flowd', '--', 'flowd', '-q'],
    ['replay', '--', 'flowd'],
    ['show', ''],
    ['decode', '--in='],
    ['info', IMAGE, ''],
    ['decode', IMAGE, '-o', ''],
    ['capture', '--all', '-D', ''],
    ['replay', 'flowd', '--pin', ''],
    ['decode', IMAGE, '--format'],
    ['diff', 'flowd', 'flowd', 'flowd'],
    ['criu', 'check', 'abc'],
    ['criu', 'check', '1', '2'],
  ];
  for (const args of wrong) {
    const { status, stdout, stderr } = bpfimg(args, { cwd, input: '' });
    t.equal(status, 2, args.join(' '));
    t.equal(stdout, '');
    t.match(stderr, /^bpfimg: [^\n]+\n$/);
  }
});

t.test('failures are exit code 1 and one line, with a stack only for --debug', async (t) => {
  const failing = [
    ['decode', 'nothing-here.img'],
    ['decode', 'flowd/core-22137.img'],
    ['encode', IMAGE],
    ['info', IMAGE, 'nothing-here.img'],
    ['show', 'flowd', '--map', 'nobody'],
    ['verify', '/'],
    ['decode', IMAGE, '-o', 'no/such/folder/x.json'],
    ['decode', IMAGE, '-o', 'flowd'],
  ];
  for (const args of failing) {
    const { status, stderr } = bpfimg(args, { cwd });
    t.equal(status, 1, args.join(' '));
    t.match(stderr, /^bpfimg: [^\n]+\n$/);
  }
  t.match(
    bpfimg(['decode', 'nothing-here.img', '--debug'], { cwd }).stderr,
    /\n\s+at .*\(src\/io\/input\.ts:\d+:\d+\)/,
  );
});

t.test('--debug shows where the time went', async (t) => {
  const { status, stdout, stderr } = bpfimg(['decode', IMAGE, '--debug'], { cwd });
  t.same([status, stdout], [0, bpfimg(['decode', IMAGE], { cwd }).stdout]);
  const lines = stderr.trimEnd().split('\n');
  const phases = lines.map((line) => /^bpfimg: +(\d+\.\d) ms, +(\d+\.\d) ms of CPUs: (.*)$/.exec(line));
  t.same(
    phases.map((phase) => phase?.[3]),
    ['starting Node', 'loading bpfimg', 'reading the command line', 'the command', 'all'],
  );
  for (const column of [1, 2]) {
    const times = phases.map((phase) => Number(phase?.[column]));
    const sum = times.slice(0, -1).reduce((all, time) => all + time, 0);
    t.ok(Math.abs(sum - Number(times.at(-1))) < 0.3, `${times.join(' + ')}`);
    t.ok(times[0], 'Node takes time to start');
  }
});

t.test('names from outside cannot write to the terminal', async (t) => {
  const { stderr } = bpfimg(['decode', 'a\x1b[31m\nb.img'], { cwd });
  t.equal(stderr, 'bpfimg: a\\x1b[31m\\x0ab.img: cannot open it: no such file or folder\n');
});

t.test('colours only where they are wanted', async (t) => {
  const ansi = '\x1b[';
  t.notOk(bpfimg(['verify', 'flowd'], { cwd, env: { NO_COLOR: '' } }).stdout.includes(ansi), 'not in a pipe');
  t.ok(bpfimg(['verify', 'flowd', '--color'], { cwd }).stdout.includes(ansi), '--color insists');
  t.notOk(bpfimg(['verify', 'flowd', '--no-color'], { cwd, env: { NO_COLOR: '' } }).stdout.includes(ansi));
});

t.test('help and version', async (t) => {
  const { version } = JSON.parse(fs.readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
    version: string;
  };
  t.equal(bpfimg(['--version']).stdout, `${version}\n`);
  for (const args of [['--help'], ['-h'], ['decode', '--help']])
    t.match(bpfimg(args), { status: 0, stdout: /bpfimg/, stderr: '' });
  for (const words of [[], ['decode'], ['criu', 'check']]) {
    t.same(bpfimg(['help', ...words]), bpfimg([...words, '--help']), `help ${words.join(' ')}`);
  }
  t.match(bpfimg(['help', 'decode']).stdout, /^bpfimg decode: convert/);
  t.match(bpfimg([]), { status: 2, stdout: '', stderr: /^bpfimg: .*^ {2}decode /ms });
  t.match(bpfimg(['diff', 'a', 'b', 'c']).stderr, 'bpfimg: diff: unexpected word c (see bpfimg help diff)');
  t.match(bpfimg(['criu', 'c']).stderr, 'bpfimg: unknown command criu c (see');
});

t.test('a folder that cannot be written to', async (t) => {
  // Root may write anywhere: then nobody tries, with a copy of the command that nobody may read.
  const place = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-locked-'));
  t.teardown(() => fs.rmSync(place, { recursive: true }));
  fs.cpSync(path.dirname(BPFIMG), path.join(place, 'dist'), { recursive: true });
  fs.cpSync(path.join(cwd, 'flowd'), path.join(place, 'flowd'), { recursive: true });
  fs.mkdirSync(path.join(place, 'locked'));
  fs.writeFileSync(path.join(place, 'locked/x.json'), 'what was there');
  fs.chmodSync(path.join(place, 'locked'), 0o555);
  t.teardown(() => fs.chmodSync(path.join(place, 'locked'), 0o755));
  fs.chmodSync(place, 0o555);
  t.teardown(() => fs.chmodSync(place, 0o755));
  const nobody = process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : {};
  for (const args of [
    ['decode', IMAGE, '-o', 'locked/x.json'],
    ['encode', '-D', 'locked/dump'],
  ]) {
    const input = '{"format":"bpfimg-maps/1","maps":[]}';
    // `env -i` takes away the test runner's own hooks, which write where nobody may not.
    const command = ['-i', process.execPath, 'dist/bpfimg', ...args];
    const ran = spawnSync('env', command, { cwd: place, input, encoding: 'utf8', ...nobody });
    t.equal(ran.status, 1);
    t.match(ran.stderr, /^bpfimg: locked\/\w+(\.json)?: cannot create it: permission denied\n$/);
  }
  t.same(contents(path.join(place, 'locked')), { 'x.json': Buffer.from('what was there').toString('hex') });
});

t.test('a file system that is read-only or full', { skip: skipWithoutRoot() }, async (t) => {
  const disk = path.join(cwd, 'disk');
  fs.mkdirSync(disk);
  const mount = shell(`mount -t tmpfs -o size=64k,mode=700 tmpfs ${disk}`);
  if (mount.status !== 0) throw new Error(mount.stderr);
  t.teardown(() => shell(`umount ${disk}`));
  fs.writeFileSync(path.join(disk, 'x.json'), 'what was there');

  t.match(bpfimg(['decode', IMAGE, '-o', 'disk/x.json'], { cwd }), {
    status: 1,
    stderr: /^bpfimg: disk\/x\.json: cannot write it: no space left on the device\n$/,
  });
  const document = bpfimg(['decode', 'flowd'], { cwd }).stdout.replace(
    /"items":\[\n/,
    (items) =>
      items +
      '    {"key":"ffffffffffffffffffffffffffffffff","value":"00000000000000000000000000000000000000000000000f"},\n'.repeat(
        900,
      ),
  );
  t.match(bpfimg(['encode', '-D', 'disk/dump'], { cwd, input: document }), {
    status: 1,
    stderr: /no space left on the device\n$/,
  });
  t.same(contents(disk), { 'x.json': Buffer.from('what was there').toString('hex') });

  shell(`mount -o remount,ro ${disk}`);
  t.match(bpfimg(['decode', 'flowd/pstree.img', '-o', 'disk/x.json'], { cwd }), {
    status: 1,
    stderr: /the file system is read-only\n$/,
  });
  t.same(contents(disk), { 'x.json': Buffer.from('what was there').toString('hex') });
});

/** Starts an encode of a document without end, and gives it time to have written something. */
async function endless(args: readonly string[]) {
  const child = spawn(process.execPath, [BPFIMG, ...args], { cwd, stdio: ['pipe', 'ignore', 'pipe'] });
  const ended = new Promise<{ code: number | null; signal: string | null; stderr: string }>((resolve) => {
    let stderr = '';
    child.stderr.on('data', (chunk: Buffer) => {
      stderr += chunk.toString();
    });
    child.on('close', (code, signal) => resolve({ code, signal, stderr }));
  });
  child.stdin.on('error', () => {});
  const map = (id: number) =>
    `{"map_id":${id},"items":[${'{"key":"00","value":"11"},'.repeat(20000)}{"key":"00","value":"11"}]},\n`;
  child.stdin.write('{"magic":"BPFMAP_DATA","entries":[');
  for (let id = 1; id < 40; id++) child.stdin.write(map(id));
  const temporary = () => fs.readdirSync(cwd).filter((name) => name.includes('.bpfimg-'));
  for (let i = 0; i < 200 && temporary().length === 0; i++) await new Promise((resolve) => setTimeout(resolve, 50));
  t.equal(temporary().length, 1, 'it is writing');
  await new Promise((resolve) => setTimeout(resolve, 300));
  return { child, ended, temporary };
}

t.test('interrupted: nothing half-made is left', async (t) => {
  for (const [signal, code] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
    ['SIGHUP', 129],
  ] as const) {
    fs.writeFileSync(path.join(cwd, 'target.img'), 'what was there');
    const { child, ended, temporary } = await endless(['encode', '-o', 'target.img']);
    child.kill(signal);
    t.same(await ended, { code, signal: null, stderr: '' }, signal);
    t.same(temporary(), []);
    t.equal(fs.readFileSync(path.join(cwd, 'target.img'), 'utf8'), 'what was there');
  }
});

t.test('kill -9: the old file is untouched', async (t) => {
  fs.writeFileSync(path.join(cwd, 'target.img'), 'what was there');
  const { child, ended, temporary } = await endless(['encode', '-o', 'target.img']);
  child.kill('SIGKILL');
  t.match(await ended, { signal: 'SIGKILL' });
  t.equal(fs.readFileSync(path.join(cwd, 'target.img'), 'utf8'), 'what was there');
  for (const name of temporary()) {
    t.match(name, /^\.target\.img\.bpfimg-/, 'what is left says whose it is');
    fs.rmSync(path.join(cwd, name));
  }
});

t.test('a path that goes through a file is the news of every command', async (t) => {
  const folder = workFolder();
  t.teardown(() => fs.rmSync(folder, { recursive: true }));
  const through = path.join(folder, 'flowd/files.img/x');
  const document = bpfimg(['decode', path.join(folder, 'flowd')]).stdout;
  for (const args of [
    ['decode', through],
    ['show', through],
    ['verify', through],
    ['encode', '-D', through],
  ]) {
    const { status, stderr } = bpfimg(args, { input: document });
    t.equal(status, 1);
    t.match(stderr, /^bpfimg: [^\n]*files\.img\/x: [^\n]*not a folder\n$/);
  }
});

t.test('standard error may be a pipe, a file, /dev/null, full, or closed', async (t) => {
  const said = 'bpfimg: nosuch: cannot open it: no such file or folder\n';
  const failing = (to: string, after = '') =>
    shell(`bpfimg info nosuch 2>${to}; code=$?; ${after} exit $code`, { cwd });
  t.match(failing('&1 | cat; exit 1'), { status: 1, stdout: said });
  t.match(failing('talk', 'bpfimg info nosuch 2>>talk; cat talk; rm talk;'), { status: 1, stdout: said + said });
  for (const to of ['/dev/null', '/dev/full', '&-']) t.match(failing(to), { status: 1, stdout: '', stderr: '' }, to);
});
