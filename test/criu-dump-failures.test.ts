/** What fails while CRIU dumps: it says which map, the process goes on as it was, nothing is left. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as net from 'node:net';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { BPFIMG, bpfimg } from './helpers/command.js';
import {
  type Begins,
  Bench,
  buildPlugin,
  buildPluginOf,
  buildPluginWith,
  type CriuRan,
  compile,
  dump,
  errors,
  type Held,
  processesOf,
  skipWithoutCriu,
  until,
  zombies,
} from './helpers/criu.js';
import { patience } from './helpers/needs.js';

t.setTimeout(patience(600_000));
const skip = await skipWithoutCriu();
const bench = await Bench.set(t.testdir(), skip);

/** How often each of the usual failures happens, and how often one that is much like it. */
const [ROUNDS, FEW] = [50, 5];

/** Seconds that nobody else sleeps. */
const FOR_EVER = 1_000_000 + process.pid;

const pluginWith = (script: string, settings: readonly string[] = [], begins: Begins = 'early') =>
  buildPluginOf(bench.folder, script, settings, begins);

/** CRIU failed, with these lines before its own; the process and its map are as before. */
async function refused(t: Test, { witness, folder }: Held, ran: CriuRan, lines: readonly (string | RegExp)[]) {
  const [map] = (await witness.see()).filter(({ map_name }) => map_name === 'm');
  const wanted = [...lines, `Error (bpfimg): BPF map ${map?.id} (m, type 1) was not dumped`];
  const said = errors(ran.log).filter((line) => line.startsWith('Error (bpfimg)'));
  const same =
    said.length === wanted.length &&
    wanted.every((line, i) => (typeof line === 'string' ? said[i] === line : line.test(said[i] ?? '')));
  if (ran.status !== 1 || !same) t.same({ status: ran.status, said }, { status: 1, said: wanted });
  t.match(ran.log, /Error \(criu\/cr-dump\.c:\d+\): Dumping FAILED/);
  t.same(
    fs.readdirSync(folder).filter((name) => name.includes('bpfimg')),
    [],
    'no images of ours',
  );
}

const failed = 'Error (bpfimg): criu-dump failed';

const ended = 'Error (bpfimg): criu-dump: it ended before it was done';

/** What a helper may do instead of its work, and what the plugin says of it: of an early one, and of others if that differs. */
const HELPERS: readonly {
  readonly what: string;
  readonly script: string;
  readonly lines: readonly (string | RegExp)[];
  readonly late?: readonly string[];
  readonly rounds?: number;
}[] = [
  {
    what: 'says that it failed',
    script: 'echo error injected failure; exit 1',
    lines: ['Error (bpfimg): injected failure', failed],
    rounds: ROUNDS,
  },
  {
    what: 'says that it failed, and ends well',
    script: 'echo error injected; echo end',
    lines: ['Error (bpfimg): injected', failed],
  },
  {
    what: 'exits',
    script: 'exit 9',
    lines: [ended],
    late: ['Error (bpfimg): criu-dump: exit status 9'],
    rounds: ROUNDS,
  },
  {
    what: 'crashes',
    script: 'kill -SEGV $$',
    lines: [ended],
    late: ['Error (bpfimg): criu-dump: ended by signal 11'],
    rounds: ROUNDS,
  },
  {
    what: 'is killed',
    script: 'kill -KILL $$',
    lines: [ended],
    late: ['Error (bpfimg): criu-dump: ended by signal 9'],
  },
  { what: 'ends without an answer', script: 'exit 0', lines: [ended] },
  { what: 'says nothing of the map', script: 'echo end', lines: ['Error (bpfimg): the helper did not report on it'] },
  { what: 'cannot dump the map', script: 'echo skip $5 some reason; echo end', lines: ['Error (bpfimg): some reason'] },
  { what: 'babbles', script: 'echo hello; echo end', lines: ['Error (bpfimg): unexpected answer: hello', failed] },
  {
    what: 'babbles without end',
    script: 'head -c 9999 /dev/zero',
    lines: ['Error (bpfimg): an answer line is too long', failed],
  },
];

for (const begins of ['early', 'late'] as const) {
  for (const { what, script, lines, late: other = lines, rounds = FEW } of HELPERS) {
    t.test(`the ${begins} helper ${what}`, { skip }, async (t) => {
      const { plugin, file } = pluginWith(script, [], begins);
      const held = await bench.witness(t, 'map m', 'fill m 5');
      const before = await held.witness.see();
      for (let round = 0; round < rounds; round++) {
        const ran = await dump(held.witness.pid, held.folder, { plugin });
        await refused(t, held, ran, begins === 'early' ? lines : other);
        t.equal(/bpfimg: the helper is not ready: the tasks will be frozen longer/.test(ran.log), begins === 'late');
      }
      t.same(await held.witness.see(), before, 'the same map, the same items');
      await until('no helper is left', () => processesOf(path.dirname(file)).length === 0);
      t.same(zombies(), []);
      // It is not even unlucky for the next one.
      t.match(await dump(held.witness.pid, `${held.folder}-good`, { ...bench, more: ['--leave-running'] }), {
        status: 0,
      });
    });
  }
}

/** What a helper of CRIU's own child may do after its answer. */
for (const [script, line] of [
  ['exit 9', 'exit status 9'],
  ['kill -SEGV $$', 'ended by signal 11'],
] as const) {
  t.test(`the late helper has answered, then: ${script}`, { skip }, async (t) => {
    const { plugin } = pluginWith(`echo map $5; echo end; ${script}`, [], 'late');
    const held = await bench.witness(t, 'map m', 'fill m 5');
    const ran = await dump(held.witness.pid, held.folder, { plugin });
    await refused(t, held, ran, [`Error (bpfimg): criu-dump: ${line}`]);
  });
}

/** The real helper, for scripts that only disturb it. */
const REAL = `exec ${process.execPath} ${BPFIMG} "$@"`;

t.test('a helper that is killed while it waits is replaced', { skip }, async (t) => {
  const { plugin } = pluginWith(`[ $# = 3 ] && { echo ready; exit 3; }\n${REAL}`, [], 'itself');
  const { witness, folder } = await bench.witness(t, 'map m', 'fill m 5');
  const before = await witness.see();
  for (let round = 0; round < FEW; round++) {
    const { status, log } = await dump(witness.pid, folder, { plugin, more: ['--leave-running'] });
    t.equal(status, 0, errors(log).join('; '));
    t.match(log, /bpfimg: the helper that waited has ended; starting another/);
  }
  t.same(await witness.see(), before);
});

t.test('a helper that takes long to get ready is not waited for', { skip }, async (t) => {
  const { plugin } = pluginWith(`[ $# = 3 ] && exec sleep ${FOR_EVER}\n${REAL}`, [], 'itself');
  const { witness, folder } = await bench.witness(t, 'map m', 'fill m 5');
  const { status, log } = await dump(witness.pid, folder, { plugin, more: ['--leave-running'] });
  t.equal(status, 0, errors(log).join('; '));
  t.match(log, /bpfimg: no sign of life for 5 seconds\n.*bpfimg: the helper is not ready/);
  await until('it is ended', () => processesOf(`sleep\x00${FOR_EVER}`).length === 0);
});

t.test('a process without maps: no helper at all', { skip }, async (t) => {
  const { plugin, file } = pluginWith('touch "$0.ran"', [], 'itself');
  const { witness, folder } = await bench.witness(t);
  const { status } = await dump(witness.pid, folder, { plugin, more: ['--leave-running'] });
  t.equal(status, 0);
  t.notOk(fs.existsSync(`${file}.ran`));
});

t.test('a child with a map: the helper is ready', { skip }, async (t) => {
  const { witness, folder } = await bench.witness(t);
  const child = await witness.fork();
  await child.tell('map m', 'fill m 5');
  const { status, log } = await dump(witness.pid, folder, { ...bench, more: ['--leave-running'] });
  t.equal(status, 0, errors(log).join('; '));
  t.notMatch(log, /bpfimg: the helper/);
  t.same(bpfimg(['verify', folder]).status, 0);
});

t.test('CRIU is killed while the helper waits, and while it works: no helper stays', { skip }, async (t) => {
  const works = path.join(bench.folder, 'works');
  for (const begins of ['itself', 'early'] as const) {
    for (let round = 0; round < FEW; round++) {
      const { plugin } = pluginWith(`touch ${works}; exec sleep ${FOR_EVER}`, [], begins);
      const held = await bench.witness(t, 'map m', 'fill m 5');
      const before = await held.witness.see();
      const dumping = dump(held.witness.pid, held.folder, { plugin });
      await until('the helper runs', () => fs.existsSync(works));
      fs.rmSync(works);
      for (const pid of processesOf(held.folder)) {
        if (fs.readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes('\0dump\0')) process.kill(pid, 'SIGKILL');
      }
      t.equal((await dumping).signal, 'SIGKILL');
      await until('no helper is left', () => processesOf(`sleep\x00${FOR_EVER}`).length === 0);
      if (begins === 'itself') t.same(await held.witness.see(), before, 'it was not frozen yet');
    }
  }
});

t.test('there is no helper', { skip }, async (t) => {
  const folder = path.join(bench.folder, 'nowhere');
  const plugin = buildPluginWith(folder, '/no/such/node', 'bpfimg');
  const held = await bench.witness(t, 'map m', 'fill m 5');
  const before = await held.witness.see();
  for (let round = 0; round < ROUNDS; round++) {
    const ran = await dump(held.witness.pid, held.folder, { plugin });
    await refused(t, held, ran, [`Error (bpfimg): cannot run /no/such/node: No such file or directory`, failed]);
  }
  t.same(await held.witness.see(), before);
  t.same(zombies(), []);
});

t.test('the helper hangs', { skip }, async (t) => {
  const { plugin, file } = pluginWith(`exec sleep ${FOR_EVER}`, ['dump-timeout 1']);
  const all = await Promise.all(Array.from({ length: 10 }, () => bench.witness(t, 'map m', 'fill m 5')));
  await Promise.all(
    all.map(async (held) => {
      const before = await held.witness.see();
      for (let round = 0; round < ROUNDS / 10; round++) {
        const ran = await dump(held.witness.pid, held.folder, { plugin });
        await refused(t, held, ran, ['Error (bpfimg): no sign of life for 1 seconds', failed]);
      }
      t.same(await held.witness.see(), before);
    }),
  );
  t.same(processesOf(path.dirname(file)), []);
  t.same(processesOf('sleep\x001000'), []);
  t.same(zombies(), []);
});

t.test('the helper hangs and does not mind SIGTERM', { skip }, async (t) => {
  const { plugin, file } = pluginWith("trap '' TERM; while :; do sleep 0.2; done", ['dump-timeout 1']);
  const held = await bench.witness(t, 'map m', 'fill m 5');
  const before = await held.witness.see();
  const ran = await dump(held.witness.pid, held.folder, { plugin });
  await refused(t, held, ran, ['Error (bpfimg): no sign of life for 1 seconds', failed]);
  t.same(await held.witness.see(), before);
  t.same(processesOf(path.dirname(file)), []);
});

t.test('a helper that is slow, but shows that it lives', { skip }, async (t) => {
  const { plugin } = pluginWith(
    `for i in 1 2 3 4; do sleep 0.5; echo busy; done; exec ${process.execPath} ${BPFIMG} "$@"`,
    ['dump-timeout 1'],
  );
  const { witness, folder } = await bench.witness(t, 'map m', 'fill m 5');
  const ran = await dump(witness.pid, folder, { plugin, more: ['--leave-running'] });
  t.equal(ran.status, 0, errors(ran.log).join('; '));
});

// ---------------------------------------------------------------------------------------------------
// The real helper

t.test('images cannot be written', { skip }, async (t) => {
  const held = await bench.witness(t, 'map m', 'fill m 5');
  const before = await held.witness.see();
  for (let round = 0; round < FEW; round++) {
    // A folder is where the table is to be.
    fs.mkdirSync(path.join(held.folder, 'bpfimg-files.txt/x'), { recursive: true });
    const { status, log } = await dump(held.witness.pid, held.folder, bench);
    t.equal(status, 1);
    t.match(log, /Error \(bpfimg\): bpfimg-files\.txt: it is a folder\n/);
    t.match(log, new RegExp(`Error \\(bpfimg\\): BPF map ${before[0]?.id} \\(m, type 1\\) was not dumped\\n`));
    t.same(await held.witness.see(), before);
  }
});

t.test('a setting that is none', { skip }, async (t) => {
  const plugin = buildPlugin(path.join(bench.folder, 'misspelt'), ['# of ours', 'dump-timeut 5']);
  const held = await bench.witness(t, 'map m', 'fill m 5');
  const ran = await dump(held.witness.pid, held.folder, { plugin });
  await refused(t, held, ran, [/^Error \(bpfimg\): .*criu\.conf: line 2: no setting is named dump-timeut$/]);
});

t.test('a helper that others may write is not run as root', { skip }, async (t) => {
  const { plugin, file } = pluginWith('echo map $5; echo end');
  const held = await bench.witness(t, 'map m', 'fill m 5');
  for (const [name, mode, uid, why] of [
    [file, 0o666, 0, /helper\.sh: refused as root: others may write to it \(mode 666\)$/],
    [file, 0o644, 12345, /helper\.sh: refused as root: it belongs to user 12345$/],
    [path.dirname(file), 0o777, 0, /helper\d+: refused as root: others may write to it \(mode 777\)$/],
  ] as const) {
    fs.chmodSync(name, mode);
    fs.chownSync(name, uid, 0);
    await refused(t, held, await dump(held.witness.pid, held.folder, { plugin }), [why]);
    fs.chownSync(name, 0, 0);
    fs.chmodSync(name, 0o755);
  }
});

t.test('a dump with fewer rights than its restore needs: a warning', { skip }, async (t) => {
  const { witness, folder } = await bench.witness(t, 'map m', 'fill m 5');
  const [map] = await witness.see();
  fs.mkdirSync(folder);
  const images = fs.openSync(folder, 'r');
  t.teardown(() => fs.closeSync(images));
  const config = path.join(folder, 'criu.conf');
  fs.writeFileSync(config, '');
  // As the plugin runs it: nobody traces the process.
  const words = [process.execPath, BPFIMG, 'criu-dump', config, '0', `${witness.pid}`, `${map?.id}`];
  for (const [under, warns] of [
    [['setpriv', '--bounding-set=-sys_admin'], true],
    [['setpriv'], false],
  ] as const) {
    const [program = '', ...rest] = [...under, ...words];
    const stdio = ['ignore', 'pipe', 'pipe', images] as const;
    const { stdout } = spawnSync(program, rest, { cwd: folder, encoding: 'utf8', stdio: [...stdio] });
    t.match(stdout, new RegExp(`^map ${map?.id}\n(.*\n)*end\n$`));
    t.equal(stdout.includes('warn maps can be restored only with CAP_SYS_ADMIN'), warns, stdout);
  }
});

t.test('partial fail: what would be carried in part only is refused', { skip }, async (t) => {
  const plugin = buildPlugin(path.join(bench.folder, 'strict'), ['partial fail']);
  const { witness, folder } = await bench.witness(t, 'map m', 'map b type=30 key=0 value=8 name=bloom');
  const [, bloom] = await witness.see();
  const { status, log } = await dump(witness.pid, folder, { plugin });
  t.equal(status, 1);
  t.match(log, new RegExp(`Error \\(bpfimg\\): BPF map ${bloom?.id} \\(bloom, type 30\\) was not dumped\\n`));
  t.equal((await witness.see()).length, 2);
});

t.test('drain no: queues are refused, and keep what they have', { skip }, async (t) => {
  const plugin = buildPlugin(path.join(bench.folder, 'full'), ['drain no']);
  const { witness, folder } = await bench.witness(t, 'map m', 'map q type=22 key=0 max=9 name=queue', 'fill q 9');
  const [, queue] = await witness.see();
  const { status, log } = await dump(witness.pid, folder, { plugin });
  t.equal(status, 1);
  t.match(log, new RegExp(`Error \\(bpfimg\\): BPF map ${queue?.id} \\(queue, type 22\\) was not dumped\\n`));
  const [{ values }] = (await witness.tell('drain q')) as [{ values: string[] }];
  t.equal(values.length, 9);
});

t.test('a full disk: the process continues, and its queue and its stack are complete', { skip }, async (t) => {
  const fill = ['queue', 'stack'].flatMap((name, i) => [
    `map ${name} type=${22 + i} key=0 value=4096 max=1200 name=${name}`,
    `fill ${name} 1200`,
  ]);
  const values = async ({ witness }: Held) => await witness.tell('drain queue', 'drain stack');
  const { witness, folder } = await bench.witness(t, ...fill);
  const before = await witness.see();
  fs.mkdirSync(folder);
  t.equal(spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=3m', 'none', folder]).status, 0);
  t.teardown(() => spawnSync('umount', [folder]));
  for (let round = 0; round < 2; round++) {
    const { status, log } = await dump(witness.pid, folder, bench);
    t.equal(status, 1);
    t.match(errors(log).join('\n'), /Error \(bpfimg\): .*(queue|stack).*no space left on the device/);
    t.match(log, new RegExp(`Error \\(bpfimg\\): BPF map ${before[0]?.id} \\(queue, type 22\\) was not dumped\\n`));
    t.same(
      fs.readdirSync(folder).filter((name) => name.includes('bpfimg')),
      [],
    );
    t.same(await witness.see(), before);
  }
  t.same(await values({ witness, folder }), await values(await bench.witness(t, ...fill)), 'every item, in order');
});

t.test('what fails after our part has worked', { skip }, async (t) => {
  const { witness, folder } = await bench.witness(t, 'map q type=22 key=0 max=9', 'fill q 9', 'map m', 'prog p');
  const before = await witness.see();
  for (let round = 0; round < FEW; round++) {
    const { status, log } = await dump(witness.pid, folder, bench);
    t.equal(status, 1);
    t.match(log, /Can't dump file \d+ of that type \[600\] \(anon anon_inode:bpf-prog\)/);
  }
  t.same(await witness.see(), before);
  const [{ values }] = (await witness.tell('drain q')) as [{ values: string[] }];
  t.equal(values.length, 9, 'the queue is as it was');
});

t.test('a file that a later plugin dumps is no error of ours', { skip }, async (t) => {
  const folder = t.testdir({
    'other.c': `
#include <stdbool.h>
static int init(int stage) { (void)stage; return 0; }
static void finish(int stage, int failed) { (void)stage; (void)failed; }
static int take(int fd, int id) { (void)fd; (void)id; return 0; }
__attribute__((visibility("default"))) struct {
  const char *name; int (*init)(int); void (*exit)(int, int); unsigned int version, hooks; void *hook[4];
} CR_PLUGIN_DESC = { "other", init, finish, 0x200, 4, { [2] = take } };`,
  });
  const plugin = buildPlugin(folder);
  // CRIU asks plugins in the order in which the folder lists them.
  const isLast = (name: string) => {
    fs.writeFileSync(path.join(plugin, name), '');
    const open = fs.opendirSync(plugin);
    let last = '';
    for (let one = open.readSync(); one !== null; one = open.readSync()) if (one.name.endsWith('.so')) last = one.name;
    open.closeSync();
    if (last !== name) fs.rmSync(path.join(plugin, name));
    return last === name;
  };
  const name = Array.from({ length: 100 }, (_, i) => `other${i}.so`).find(isLast) ?? 'none.so';
  compile('-fPIC', '-shared', '-fvisibility=hidden', '-o', path.join(plugin, name), path.join(folder, 'other.c'));
  const { witness, folder: images } = await bench.witness(t, 'map m', 'prog p');
  const { status, log } = await dump(witness.pid, images, { plugin, more: ['--leave-running'] });
  t.equal(status, 0);
  t.same(errors(log), []);
});

t.test('images that are streamed: refused before the process is frozen', { skip }, async (t) => {
  const { witness, folder } = await bench.witness(t, 'map m', 'fill m 5');
  fs.mkdirSync(folder);
  // CRIU connects to it and then sends its images; criu-image-streamer listens there.
  const server = net.createServer().listen(path.join(folder, 'streamer-capture.sock'));
  t.teardown(() => server.close());
  const before = await witness.see();
  const { status, log } = await dump(witness.pid, folder, { ...bench, more: ['--stream'] });
  t.equal(status, 1);
  t.match(log, /Error \(bpfimg\): BPF maps cannot be dumped with --stream/);
  t.match(log, /Failed in init\(0\) of "bpfimg"/);
  t.notMatch(log, /Seized task/);
  t.same(await witness.see(), before);
});

t.test('50 dumps in a row that work', { skip }, async (t) => {
  const { witness, folder } = await bench.witness(t, 'map m', 'fill m 5', 'open reading m ro', 'map n type=6 max=4');
  const before = await witness.see();
  for (let round = 0; round < ROUNDS; round++) {
    const { status, log } = await dump(witness.pid, folder, { ...bench, more: ['--leave-running'] });
    t.equal(status, 0, errors(log).join('; '));
    t.same(await witness.see(), before);
  }
});
