/** What fails while CRIU restores: it says which map, no process is made, no map is left; the next one works. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { LiveMaps } from '../src/kernel/live.js';
import { BPFIMG } from './helpers/command.js';
import {
  alive,
  Bench,
  buildPlugin,
  buildPluginOf,
  buildPluginWith,
  type CriuRan,
  errors,
  type Held,
  idsOf,
  lasting,
  processesOf,
  restore,
  restoreInForeground,
  type Seen,
  skipWithoutCriu,
  TYPED,
  TYPES,
  until,
  zombies,
} from './helpers/criu.js';
import { patience } from './helpers/needs.js';

t.setTimeout(patience(600_000));
const skip = await skipWithoutCriu();
const bench = await Bench.set(t.testdir(), skip);

/** How often each of the usual failures happens, and how often one that is much like it. */
const [ROUNDS, FEW] = [50, 5];
const REAL = `${process.execPath} ${BPFIMG} "$@"`;

/** Seconds that nobody else sleeps. */
const FOR_EVER = 1_000_000 + process.pid;

interface Dumped extends Held {
  readonly before: readonly Seen[];
  /** Of its maps; no other maps have names like these. */
  readonly names: readonly string[];
}

/** Of our helpers' command lines: their settings are in a folder of this test. */
const HELPER = `criu-restore\0${bench.folder}`;

let count = 0;
/** A process with two maps, one of them open twice; dumped, so it is not there any more. */
async function dumped(t: Test): Promise<Dumped> {
  const names = ['m', 'o'].map((name) => `${name}_${process.pid}_${count}`);
  count++;
  const [m, other] = names;
  const held = await bench.witness(
    t,
    TYPES,
    `map m name=${m} ${TYPED}`,
    'close types',
    'fill m 5',
    'open again m ro',
    `map other type=2 name=${other}`,
    'fill other 9',
  );
  const before = await held.witness.see();
  await bench.dumped(t, held);
  await bench.freed(idsOf(before));
  return { ...held, before, names };
}

const pluginWith = (script: string, settings: readonly string[] = []) =>
  buildPluginOf(bench.folder, script, settings, 'itself');

/** CRIU failed with these lines before those that name the maps, and before it made a process. */
function refused(
  t: Test,
  { witness, before }: Dumped,
  ran: CriuRan,
  lines: readonly (string | RegExp)[],
  named = true,
) {
  const named1 = before.map(
    ({ id }) => new RegExp(`^Error \\(bpfimg\\): BPF map ${id} \\(file 0x\\w+\\) was not restored$`),
  );
  const wanted = [...lines, ...(named ? named1 : [])];
  const said = errors(ran.log).filter((line) => line.includes('bpfimg') && !line.includes('Failed in init'));
  const same =
    said.length === wanted.length &&
    wanted.every((line, i) => (typeof line === 'string' ? said[i] === line : line.test(said[i] ?? '')));
  if (ran.status !== 1 || !same) t.same({ status: ran.status, said }, { status: 1, said: wanted });
  t.match(ran.log, /Failed in init\(2\) of "bpfimg"/);
  t.notOk(alive(witness.pid), 'no process');
}

/**
 * Nothing of these maps and of this helper is there; restored in the usual way, everything is.
 * @param helper a file in its own folder, or what only command lines of our helpers have in them
 */
async function nothingLeft(t: Test, { witness, folder, before, names }: Dumped, helper: string) {
  await until('the maps are gone', () => !LiveMaps.look(bench.sys).maps.some(({ name = '' }) => names.includes(name)));
  // Other tests have helpers, too, whose folders are beside ours.
  t.same(processesOf(helper === HELPER ? helper : path.dirname(helper)), [], 'no helper');
  t.same(zombies(), []);
  await bench.restored(t, folder);
  t.same(lasting(await witness.see()), lasting(before));
}

const failed = 'Error (bpfimg): criu-restore failed';

/** What a helper may do instead of its work, and what the plugin says of it. */
const HELPERS: readonly [what: string, script: string, lines: readonly (string | RegExp)[], rounds?: number][] = [
  ['says that it failed', 'echo error injected failure; exit 1', ['Error (bpfimg): injected failure', failed], ROUNDS],
  ['says that it failed, and ends well', 'echo error injected; echo end', ['Error (bpfimg): injected', failed]],
  ['exits', 'exit 9', ['Error (bpfimg): criu-restore: exit status 9'], ROUNDS],
  ['exits when all is done', `${REAL}; exit 9`, ['Error (bpfimg): criu-restore: exit status 9']],
  ['crashes', 'kill -SEGV $$', ['Error (bpfimg): criu-restore: ended by signal 11'], ROUNDS],
  ['crashes when all is done', `${REAL}; kill -SEGV $$`, ['Error (bpfimg): criu-restore: ended by signal 11']],
  ['ends without an answer', 'exit 0', ['Error (bpfimg): criu-restore: it ended before it was done']],
  ['says nothing of the maps', 'echo end', []],
  ['babbles', 'echo hello; echo end', ['Error (bpfimg): unexpected answer: hello', failed]],
];

for (const [what, script, lines, rounds = FEW] of HELPERS) {
  t.test(`the helper ${what}`, { skip }, async (t) => {
    const { plugin, file } = pluginWith(script);
    const held = await dumped(t);
    for (let round = 0; round < rounds; round++) refused(t, held, await restore(held.folder, { plugin }), lines);
    await nothingLeft(t, held, file);
  });
}

t.test('the helper reports missing maps', { skip }, async (t) => {
  const held = await dumped(t);
  const ids = idsOf(held.before);
  const { plugin, file } = pluginWith(`${ids.map((id) => `echo map ${id} 4294967295`).join('; ')}; echo end`);
  const ran = await restore(held.folder, { plugin });
  const lost = ids.flatMap((id) => [
    `Error (bpfimg): map 4294967295, created from map ${id}: No such file or directory`,
    `Error (bpfimg): unexpected answer: map ${id} 4294967295`,
  ]);
  refused(t, held, ran, [...lost, failed]);
  await nothingLeft(t, held, file);
});

t.test('there is no helper', { skip }, async (t) => {
  const plugin = buildPluginWith(path.join(bench.folder, 'nowhere'), '/no/such/node', 'bpfimg');
  const held = await dumped(t);
  const lines = ['Error (bpfimg): cannot run /no/such/node: No such file or directory', failed];
  for (let round = 0; round < ROUNDS; round++) refused(t, held, await restore(held.folder, { plugin }), lines);
  await nothingLeft(t, held, '/no/such/node');
});

t.test('the helper hangs', { skip }, async (t) => {
  const { plugin, file } = pluginWith(`exec sleep ${FOR_EVER}`, ['restore-timeout 1']);
  const held = await dumped(t);
  const lines = ['Error (bpfimg): no sign of life for 1 seconds', failed];
  // Restores that fail this early do not get into each other's way, but for their logs.
  const folders = Array.from({ length: 10 }, (_, i) => `${held.folder}-${i}`);
  for (const folder of folders) fs.cpSync(held.folder, folder, { recursive: true });
  await Promise.all(
    folders.map(async (folder) => {
      for (let round = 0; round < ROUNDS / 10; round++) refused(t, held, await restore(folder, { plugin }), lines);
    }),
  );
  await nothingLeft(t, held, file);
  t.same(processesOf('sleep\x001001'), []);
});

t.test('CRIU is killed: the helper ends with it, at any point', { skip }, async (t) => {
  const held = await dumped(t);
  for (const script of [
    "trap '' TERM; kill -9 $PPID; while :; do sleep 0.2; done",
    `kill -9 $PPID; ${REAL}; sleep ${FOR_EVER}`,
    `${REAL} & sleep 0.3; kill -9 $PPID; wait`,
  ]) {
    const { plugin, file } = pluginWith(script);
    const { signal } = await restore(held.folder, { plugin });
    t.equal(signal, 'SIGKILL');
    await until('the helper ends', () => processesOf(path.dirname(file)).length === 0);
  }
  await until('the real one ends', () => processesOf(HELPER).length === 0);
  await nothingLeft(t, held, HELPER);
});

t.test('the helper hangs when all is done', { skip }, async (t) => {
  const { plugin, file } = pluginWith(`${REAL}; exec sleep ${FOR_EVER}`, ['restore-timeout 1']);
  const held = await dumped(t);
  const ran = await restore(held.folder, { plugin });
  refused(t, held, ran, ['Error (bpfimg): no sign of life for 1 seconds', failed]);
  await nothingLeft(t, held, file);
  t.same(processesOf('sleep\x001002'), []);
});

// ---------------------------------------------------------------------------------------------------
// The images

const TABLE = 'bpfimg-files.txt';

/** What is wrong with a dump: what is done to its folder, and lines of the log. */
const IMAGES: readonly [what: string, spoil: (folder: string) => void, message: RegExp, rounds: number][] = [
  [
    'the table is lost',
    (folder) => fs.rmSync(path.join(folder, TABLE)),
    /Error \(bpfimg\): bpfimg-files\.txt is missing: it says which files of the dump are BPF maps\n/,
    ROUNDS,
  ],
  [
    'the table is cut off',
    (folder) => fs.truncateSync(path.join(folder, TABLE), 8),
    /Error \(bpfimg\): bpfimg-files\.txt: line 1: expected `ID MAP_ID FLAGS`\n/,
    FEW,
  ],
  [
    'the table lacks a file',
    (folder) => fs.truncateSync(path.join(folder, TABLE), fs.readFileSync(path.join(folder, TABLE)).indexOf(10) + 1),
    /Error \(bpfimg\): files\.img: open file \d+ is in no line of bpfimg-files\.txt\n/,
    FEW,
  ],
  [
    'the table and the maps are lost',
    (folder) => {
      for (const name of [TABLE, 'bpfimg-file.img']) fs.rmSync(path.join(folder, name));
    },
    /Error \(bpfimg\): bpfimg-files\.txt is missing: it says which files of the dump are BPF maps\n/,
    FEW,
  ],
  [
    'items are lost',
    (folder) => fs.rmSync(path.join(folder, 'bpfimg-data.img')),
    /Error \(bpfimg\): map \d+ \(m\w+\): its items are lost: bpfimg-data\.img has none of them\n/,
    FEW,
  ],
  [
    'types are lost',
    (folder) => fs.rmSync(path.join(folder, 'bpfimg-btf.img')),
    /Error \(bpfimg\): map \d+ \(m\w+\): its types are lost: bpfimg-btf\.img has none of them\n/,
    FEW,
  ],
  [
    'an image is cut off',
    (folder) => fs.truncateSync(path.join(folder, 'bpfimg-data.img'), 40),
    /Error \(bpfimg\): .*bpfimg-data\.img: entry 0 .*\n(.*\n)*.*Error \(bpfimg\): BPF map \d+ \(file 0x\w+\) was not/,
    FEW,
  ],
  [
    'all images of maps are lost',
    (folder) => {
      for (const name of fs.readdirSync(folder)) {
        if (name.startsWith('bpfimg') && name !== TABLE) fs.rmSync(path.join(folder, name));
      }
    },
    /Error \(bpfimg\): BPF map \d+ \(file 0x\w+\) was not restored\n/,
    FEW,
  ],
];

for (const [what, spoil, message, rounds] of IMAGES) {
  t.test(what, { skip }, async (t) => {
    const held = await dumped(t);
    const spoilt = `${held.folder}-spoilt`;
    fs.cpSync(held.folder, spoilt, { recursive: true });
    spoil(spoilt);
    for (let round = 0; round < rounds; round++) {
      const { status, log } = await restore(spoilt, bench);
      t.equal(status, 1);
      t.match(log, message);
      await held.witness.gone();
    }
    await nothingLeft(t, held, HELPER);
  });
}

t.test('what only the meta image says is lost: the log names it', { skip }, async (t) => {
  const held = await dumped(t);
  fs.rmSync(path.join(held.folder, 'bpfimg-meta.img'));
  const log = await bench.restored(t, held.folder);
  t.match(log, /bpfimg: bpfimg-meta\.img is missing: what only it says of them is not restored/);
  t.same(
    (await held.witness.see()).map(({ items }) => items?.length),
    held.before.map(({ items }) => items?.length),
  );
});

const PIDS = '/sys/fs/cgroup/pids';
t.test('too few processes are allowed: said at once', { skip: skip || !fs.existsSync(PIDS) }, async (t) => {
  const held = await dumped(t);
  const group = path.join(PIDS, `bpfimg-${process.pid}`);
  fs.mkdirSync(group);
  t.teardown(() => fs.rmdirSync(group));
  fs.writeFileSync(path.join(group, 'pids.max'), '8');
  const under = ['sh', '-c', `echo $$ > ${group}/cgroup.procs && exec "$@"`, 'sh'];
  const ran = await restore(held.folder, { ...bench, under });
  const line = /^Error \(bpfimg\): bpfimg needs 12 threads, but can start only \d: see pids\.max of the cgroup$/;
  refused(t, held, ran, [line, failed]);
  await nothingLeft(t, held, HELPER);
});

t.test('the plugin is missing', { skip }, async (t) => {
  const held = await dumped(t);
  for (let round = 0; round < ROUNDS; round++) {
    const { status, log } = await restore(held.folder);
    t.equal(status, 1);
    t.match(log, /Error \(criu\/image\.c:\d+\): Missing required plugin: bpfimg\n/);
    t.notOk(alive(held.witness.pid));
  }
  await nothingLeft(t, held, HELPER);
});

t.test('a setting that is none', { skip }, async (t) => {
  const plugin = buildPlugin(path.join(bench.folder, 'misspelt'), ['reuse maybe']);
  const held = await dumped(t);
  const ran = await restore(held.folder, { plugin });
  refused(t, held, ran, [/^Error \(bpfimg\): .*criu\.conf: line 1: reuse maybe: expected yes, no$/], false);
  await nothingLeft(t, held, HELPER);
});

t.test('CRIU fails later: the maps that were made are gone', { skip }, async (t) => {
  const held = await dumped(t);
  const spoilt = `${held.folder}-spoilt`;
  fs.cpSync(held.folder, spoilt, { recursive: true });
  fs.rmSync(path.join(spoilt, `mm-${held.witness.pid}.img`));
  for (let round = 0; round < FEW; round++) {
    const { status, log } = await restore(spoilt, bench);
    t.equal(status, 1, errors(log).join('; '));
    await held.witness.gone();
  }
  await nothingLeft(t, held, HELPER);
});

t.test('50 restores of one dump', { skip }, async (t) => {
  const { witness, folder, before, names } = await dumped(t);
  for (let round = 0; round < ROUNDS; round++) {
    // In the foreground: then CRIU waits for the process, and its pid is free at once.
    const staying = await restoreInForeground(folder, bench);
    t.same(lasting(await witness.see()), lasting(before));
    await witness.end();
    await staying.ended;
  }
  await until('the maps are gone', () => !LiveMaps.look(bench.sys).maps.some(({ name = '' }) => names.includes(name)));
});
