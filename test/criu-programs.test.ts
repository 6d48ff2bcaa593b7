/** `keep-programs`: a process that holds programs, a link and BTF comes back with the very same ones. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { KEPT } from '../src/dump/plugin-table.js';
import { bpfimg } from './helpers/command.js';
import { Bench, buildPlugin, dump, errors, type Held, restore, skipWithoutCriu, TYPES } from './helpers/criu.js';
import { bpftool } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';

t.setTimeout(patience(240_000));
const skip = await skipWithoutCriu();
const bench = await Bench.set(t.testdir(), skip);
const plugin = skip === false ? buildPlugin(path.join(bench.folder, 'keeping'), ['keep-programs yes']) : '';
const TABLE = 'bpfimg-files.txt';

/** Folders of pins that are there now. */
const folders = () => (fs.existsSync(KEPT) ? fs.readdirSync(KEPT).sort() : []);

/** BPF objects that a process has open: `FD KIND ID`. */
function objects(pid: number): string[] {
  return fs.readdirSync(`/proc/${pid}/fdinfo`).flatMap((fd) => {
    const text = fs.readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'latin1');
    const [, kind, id] = /^(link|map|btf|prog)_id:\s*(\d+)/m.exec(text) ?? [];
    return kind === undefined ? [] : [`${fd} ${kind} ${id}`];
  });
}

/** A loader as libbpf makes one: BTF, a map that its program counts in, the program, and the link that runs it. */
async function loader(t: Test): Promise<Held & { readonly map: number; count(): number }> {
  const held = await bench.witness(t, TYPES, 'map c type=2 max=1', 'count p c', 'attach l p');
  const map = Number(
    objects(held.witness.pid)
      .find((line) => line.includes(' map '))
      ?.split(' ')[2],
  );
  const count = () => {
    const [item] = bpftool('map', 'dump', 'id', `${map}`) as [{ value: string[] }];
    return Number(Buffer.from(item.value.map(Number)).readBigUInt64LE());
  };
  return { ...held, map, count };
}

const makeProcesses = () => {
  for (let i = 0; i < 3; i++) spawnSync('true');
};

/** After it, whatever this test has kept is gone. */
function forgetAtEnd(t: Test): readonly string[] {
  const before = folders();
  t.teardown(() => {
    for (const name of folders()) {
      if (!before.includes(name)) fs.rmSync(path.join(KEPT, name), { recursive: true, force: true });
    }
  });
  return before;
}

t.test('the program counts on while the process is away, and belongs to it again', { skip }, async (t) => {
  const before = forgetAtEnd(t);
  const { witness, folder, count } = await loader(t);
  const had = objects(witness.pid);
  t.equal(had.length, 4);
  const dumped = await dump(witness.pid, folder, { plugin });
  t.equal(dumped.status, 0, errors(dumped.log).join('; '));
  await witness.gone();
  t.match(fs.readFileSync(path.join(folder, TABLE), 'latin1'), /^[\da-f]+ prog \d+ [\da-f]{16} [\da-f]+-[\da-f]+$/m);
  t.equal(bpfimg(['verify', folder]).status, 0, bpfimg(['verify', folder]).stdout);
  const away = count();
  makeProcesses();
  t.ok(count() >= away + 3, 'it counts');

  for (let round = 0; round < 2; round++) {
    const restored = await restore(folder, { plugin });
    t.equal(restored.status, 0, errors(restored.log).join('; '));
    t.same(objects(witness.pid), had, 'the very same objects');
    const back = count();
    makeProcesses();
    t.ok(count() >= back + 3);
    t.same((await witness.see()).length >= 4, true);
    await witness.end();
    await witness.gone();
  }

  const edited = bpfimg(['set', folder, 'c', '0', '7']);
  t.equal(edited.status, 0, edited.stderr);
  const native = bpfimg(['criu', 'convert', folder, '--to', 'native']);
  t.equal(native.status, 1);
  t.match(native.stderr, /: open file \d+ is a BPF (prog|link|btf), which only the plugin restores\n/);

  const forgot = bpfimg(['criu', 'forget', folder]);
  t.equal(forgot.status, 0, forgot.stderr);
  t.same(
    forgot.stdout
      .split('\n')
      .map((line) => line.replace(/\d+/, 'N'))
      .sort(),
    ['', 'btf N: let go', 'link N: let go', 'prog N: let go'],
  );
  t.same(folders(), before);
  const late = await restore(folder, { plugin });
  t.equal(late.status, 1);
  t.match(late.log, /Error \(bpfimg\): (prog|link|btf) \d+, which was kept in \S+, is not there/);
  t.match(late.log, /Failed in init\(2\) of "bpfimg"/);
  t.match(bpfimg(['criu', 'forget', folder]).stdout, /^(\w+ \d+: was not there\n){3}$/);
});

t.test('only programs, no map', { skip }, async (t) => {
  forgetAtEnd(t);
  const { witness, folder } = await bench.witness(t, 'prog p', 'dup again p');
  const had = objects(witness.pid);
  const { status, log } = await dump(witness.pid, folder, { plugin });
  t.equal(status, 0, errors(log).join('; '));
  await witness.gone();
  const restored = await restore(folder, { plugin });
  t.equal(restored.status, 0, errors(restored.log).join('; '));
  t.same(objects(witness.pid), had);
  const forgot = bpfimg(['criu', 'forget', folder]);
  t.equal(forgot.status, 0, forgot.stderr);
});

t.test('a dump that fails keeps nothing', { skip }, async (t) => {
  const before = forgetAtEnd(t);
  const strict = buildPlugin(path.join(bench.folder, 'strict'), ['keep-programs yes', 'drain no']);
  const { witness, folder } = await bench.witness(t, 'prog p', 'map q type=22 key=0', 'fill q 3');
  const { status } = await dump(witness.pid, folder, { plugin: strict });
  t.equal(status, 1);
  t.same(folders(), before);
  t.same(
    fs.readdirSync(folder).filter((name) => name.includes('bpfimg')),
    [],
  );
});

t.test(
  'another dump into the same folder: what the first one kept goes if it works, stays if not',
  { skip },
  async (t) => {
    const before = forgetAtEnd(t);
    const { witness, folder } = await bench.witness(t, 'prog p', 'map m', 'fill m 3');
    const again = async () => await dump(witness.pid, folder, { plugin, more: ['--leave-running'] });
    t.equal((await again()).status, 0);
    const first = folders();
    t.equal(first.length, before.length + 1);
    await witness.tell('map q type=22 key=0', 'fill q 3');
    const strict = buildPlugin(path.join(bench.folder, 'strict2'), ['keep-programs yes', 'drain no']);
    t.equal((await dump(witness.pid, folder, { plugin: strict })).status, 1);
    t.same(folders(), first, 'the old ones');
    t.equal((await again()).status, 0);
    t.equal(folders().length, first.length);
    t.notSame(folders(), first, 'the new ones');
    await witness.tell('close p');
    t.equal((await again()).status, 0);
    t.same(folders(), before, 'no program, nothing kept');
  },
);

t.test('without the setting nothing is kept', { skip }, async (t) => {
  const before = forgetAtEnd(t);
  const { witness, folder } = await bench.witness(t, 'prog p', 'map m');
  t.equal((await dump(witness.pid, folder, bench)).status, 1);
  t.same(folders(), before);
});

t.test('forget: nothing was kept; no dump of the plugin', { skip }, async (t) => {
  const { witness, folder } = await bench.witness(t, 'map m');
  t.equal((await dump(witness.pid, folder, { ...bench, more: ['--leave-running'] })).status, 0);
  const none = bpfimg(['criu', 'forget', folder]);
  t.match(none, { status: 0, stdout: '', stderr: `bpfimg: ${folder}: nothing was kept for it\n` });
  const empty = bpfimg(['criu', 'forget', t.testdir()]);
  t.match(empty, { status: 1, stderr: /bpfimg-files\.txt: cannot open it: no such file/ });
  fs.writeFileSync(path.join(folder, TABLE), 'a prog 1 - ../../x\n');
  t.match(bpfimg(['criu', 'forget', folder]), { status: 1, stderr: /bpfimg-files\.txt: line 1 is / });
});
