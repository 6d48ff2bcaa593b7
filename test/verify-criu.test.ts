/** `verify` against `criu restore`: of real dumps, one file at a time is removed or damaged, and both must agree. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { alive, Bench, dump, errors, lasting, restore, type Seen, skipWithoutCriu, until } from './helpers/criu.js';
import { patience, required } from './helpers/needs.js';
import { cli } from './helpers/replay.js';

t.setTimeout(patience(300_000));
const skip = await skipWithoutCriu();
const bench = await Bench.set(t.testdir(), skip);

type Damage = (bytes: Buffer) => Uint8Array | undefined;

const without: Damage = () => undefined;
const empty: Damage = () => Buffer.alloc(0);
/** Head and magic are there, and no entry. */
const head: Damage = (bytes) => bytes.subarray(0, 8);
const cut: Damage = (bytes) => bytes.subarray(0, -1);
const more: Damage = (bytes) => Buffer.concat([bytes, Buffer.from('xyz')]);
/** The kind's magic is another. */
const kind: Damage = (bytes) => {
  const changed = Buffer.from(bytes);
  changed.writeUInt32LE(~bytes.readUInt32LE(4) >>> 0, 4);
  return changed;
};

/**
 * What is done to each file of the dump of one process; PID stands for its number. Where nothing else is said,
 * `criu restore` must fail; with `whole` it must restore all.
 */
const CASES: readonly [file: string, what: string, damage: Damage, whole?: 'whole'][] = [
  ['inventory.img', 'gone', without],
  ['inventory.img', 'empty', empty],
  ['pstree.img', 'gone', without],
  ['pstree.img', 'without an entry', head],
  ['ids-PID.img', 'gone', without],
  ['files.img', 'gone', without],
  ['fdinfo-2.img', 'gone', without],
  ['core-PID.img', 'gone', without],
  ['core-PID.img', 'cut off', cut],
  ['core-PID.img', 'with bytes behind it', more, 'whole'],
  ['mm-PID.img', 'gone', without],
  ['mm-PID.img', 'of another kind', kind],
  ['pagemap-PID.img', 'gone', without],
  ['pagemap-PID.img', 'with bytes behind it', more],
  ['seccomp.img', 'gone', without, 'whole'],
  ['seccomp.img', 'empty', empty],
  ['timens-0.img', 'without an entry', head],
  ['stats-dump', 'gone', without, 'whole'],
  ['bpfimg-files.txt', 'gone', without],
  ['bpfimg-files.txt', 'empty', empty],
  ['bpfimg-data.img', 'gone', without],
  ['bpfimg-data.img', 'cut off', cut],
  ['bpfimg-meta.img', 'gone', without, 'whole'],
  ['bpfimg-meta.img', 'empty', empty],
];

interface Verdict {
  readonly sound: boolean;
  readonly findings: readonly { readonly code: string; readonly severity: string; readonly message: string }[];
}

async function verdict(folder: string): Promise<Verdict> {
  return JSON.parse((await cli(['verify', folder, '--json'])).stdout) as Verdict;
}

/** A copy of a dump, without logs, so that CRIU's are its own. */
function copy(from: string, to: string): string {
  fs.rmSync(to, { recursive: true, force: true });
  fs.cpSync(from, to, { recursive: true, filter: (name) => !name.endsWith('.log') });
  return to;
}

t.test(
  'a dump in which one file is not as it was: what CRIU does not restore whole is an error',
  { skip },
  async (t) => {
    const held = await bench.witness(t, 'map m', 'fill m 5', 'open again m ro', 'map a type=2 max=4', 'fill a 4');
    const { witness } = held;
    const before = lasting(await witness.see());
    await bench.dumped(t, held);
    t.match(await verdict(held.folder), { sound: true, findings: [] }, 'as it is');
    /** Whether the process has come back with all of its files; it is ended again. */
    const comesBack = async (folder: string): Promise<boolean> => {
      const { status } = await restore(folder, bench);
      if (status !== 0 || !alive(witness.pid)) return false;
      const seen: readonly Seen[] = await witness.see();
      await witness.end();
      await witness.gone();
      return JSON.stringify(lasting(seen)) === JSON.stringify(before);
    };
    for (const [file, what, damage, whole] of CASES) {
      const name = file.replace('PID', `${witness.pid}`);
      const folder = copy(held.folder, path.join(bench.folder, 'damaged'));
      const bytes = damage(fs.readFileSync(path.join(folder, name)));
      if (bytes === undefined) fs.rmSync(path.join(folder, name));
      else fs.writeFileSync(path.join(folder, name), bytes);
      const { sound, findings } = await verdict(folder);
      // Its pid may be that of a task of the restore before, which has failed and is not gone yet.
      let back = await comesBack(folder);
      for (let again = 0; whole === 'whole' && !back && again < 8; again++) {
        await new Promise((resolve) => setTimeout(resolve, 500));
        back = await comesBack(folder);
      }
      t.equal(back, whole === 'whole', `${name} ${what}: CRIU`);
      t.equal(sound, whole === 'whole', `${name} ${what}: ${findings.map(({ code }) => code).join(', ')}`);
    }
  },
);

t.test('pages that are gone, or not all there', { skip }, async (t) => {
  const held = await bench.witness(t, 'map m');
  await bench.dumped(t, held);
  const folder = copy(held.folder, path.join(bench.folder, 'pages'));
  const pages = path.join(folder, 'pages-1.img');
  const bytes = fs.readFileSync(pages);
  fs.writeFileSync(pages, bytes.subarray(0, -1));
  t.match(await verdict(folder), { sound: false, findings: [{ code: 'bad-image', message: /expected \d+/ }] });
  fs.rmSync(pages);
  t.match(await verdict(folder), { sound: true, findings: [{ code: 'no-pages' }] }, 'they may be elsewhere');
  t.match(await restore(folder, bench), { status: 1 }, 'CRIU does want them');
  await witnessIsGone(held.witness.pid);
});

function witnessIsGone(pid: number): Promise<void> {
  return until(`${pid} is gone`, () => !alive(pid));
}

/** Images that CRIU makes, in this order; it is killed as it opens one of them. */
const IMAGES = ['files.img', 'ids-', 'fdinfo-', 'pagemap-', 'core-', 'mm-', 'fs-', 'pstree.img', 'inventory.img'];
const straced = spawnSync('strace', ['-V']).error === undefined || required('strace') ? false : 'needs strace';

t.test('a dump that has not finished, wherever it ended', { skip: skip || straced }, async (t) => {
  const start = async () => await bench.witness(t, 'map m', 'fill m 3');
  const first = await start();
  const trace = path.join(bench.folder, 'trace');
  const under = ['strace', '-qq', '-e', 'trace=openat'];
  const whole = await dump(first.witness.pid, first.folder, { ...bench, under: [...under, '-o', trace] });
  t.equal(whole.status, 0, errors(whole.log).join('; '));
  t.match(await verdict(first.folder), { sound: true });
  const calls = fs
    .readFileSync(trace, 'latin1')
    .split('\n')
    .filter((line) => line.startsWith('openat('));
  for (const image of IMAGES) {
    const at = 1 + calls.findIndex((line) => line.includes(`"${image}`) && line.includes('O_CREAT'));
    t.ok(at > 0, `${image} is made`);
    const { witness, folder } = await start();
    const inject = `inject=openat:signal=KILL:when=${at}`;
    const killed = await dump(witness.pid, folder, { ...bench, under: [...under, '-o', '/dev/null', '-e', inject] });
    t.not(killed.status, 0);
    await witness.end();
    const known = fs.existsSync(path.join(folder, 'files.img'));
    if (known) await notFinished(t, folder, `killed at ${image}`);
    t.equal(known, image !== 'files.img', 'before files.img nothing says that it is a dump');
  }
});

t.test('a dump that has failed', { skip }, async (t) => {
  const { witness, folder } = await bench.witness(t, 'map m', 'fill m 3', 'prog p');
  t.match(await dump(witness.pid, folder, bench), { status: 1 });
  await notFinished(t, folder, 'a program was open');
});

/** All that look at the dump say that it did not finish. */
async function notFinished(t: Test, folder: string, what: string): Promise<void> {
  const { sound, findings } = await verdict(folder);
  t.equal(sound, false, what);
  t.ok(
    findings.some(({ code }) => code === 'unfinished'),
    `${what}: ${findings.map(({ code }) => code)}`,
  );
  const warning = /^bpfimg: warning: .*inventory\.img: it is (missing|empty), and CRIU writes it last/;
  t.match((await cli(['show', folder])).stderr, warning, what);
  t.match((await cli(['replay', folder, '--dry-run'])).stderr, warning, what);
}
