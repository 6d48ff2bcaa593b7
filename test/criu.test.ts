/** Real CRIU with the plugin: a process is dumped, ends, is restored, and finds its maps as they were. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { bpfimg } from './helpers/command.js';
import {
  Bench,
  buildPlugin,
  dump,
  errors,
  idsOf,
  lasting,
  restore,
  restoreInForeground,
  type Seen,
  skipWithoutCriu,
  TYPED,
  TYPES,
  zombies,
} from './helpers/criu.js';
import { bpffs, bpftool } from './helpers/kernel-live.js';
import { load, patience } from './helpers/needs.js';

t.setTimeout(patience(180_000));
const skip = await skipWithoutCriu();
const bench = await Bench.set(t.testdir(), skip);
const { plugin } = bench;

// ---------------------------------------------------------------------------------------------------
// What it is without

t.test('without the plugin, a process without maps is restored and one with a map is refused', { skip }, async (t) => {
  const { witness, folder } = await bench.witness(t);
  t.match(await dump(witness.pid, folder), { status: 0 });
  await witness.gone();
  t.match(await restore(folder), { status: 0 });
  t.same(await witness.see(), []);

  await witness.tell('map m', 'fill m 3');
  const before = await witness.see();
  const refused = await dump(witness.pid, `${folder}2`);
  t.equal(refused.status, 1);
  t.match(
    refused.log,
    /Error \(criu\/files-ext\.c:\d+\): Can't dump file \d+ of that type \[600\] \(anon anon_inode:bpf-map\)/,
  );
  t.same(await witness.see(), before, 'it goes on');
});

t.test('with the plugin, a process without maps is none of its business', { skip }, async (t) => {
  const { witness, folder } = await bench.witness(t);
  await bench.dumped(t, { witness, folder });
  t.same(
    fs.readdirSync(folder).filter((name) => name.startsWith('bpfimg')),
    [],
  );
  t.match(await restore(folder), { status: 0 }, 'not even needed');
  t.same(await witness.see(), []);
});

// ---------------------------------------------------------------------------------------------------
// What cannot be dumped

const MAPPED = /Error \(bpfimg\): process \d+ has a BPF map mapped into its memory, which CRIU cannot dump: unmap it/;

/** What the process has besides a map, and what CRIU's log says of it. */
const REFUSED: readonly [what: string, commands: readonly string[], message: RegExp][] = [
  ['a program', ['prog p'], /Error \(bpfimg\): anon_inode:bpf-prog: of BPF objects, only maps can be dumped/],
  ['a link', ['prog p type=30 attach=36', 'link l p', 'close p'], /Error \(bpfimg\): anon_inode:bpf_link: of BPF/],
  ['a BTF object', [TYPES], /Error \(bpfimg\): anon_inode:btf: of BPF objects, only maps can be dumped/],
  ['a mapped array', ['map a type=2 flags=0x400', 'mmap a'], MAPPED],
  ['a mapped array, its fd closed', ['map a type=2 flags=0x400', 'mmap a', 'close a'], MAPPED],
  ['a mapped ring buffer', ['map r type=27 key=0 value=0 max=4096', 'mmap r'], MAPPED],
];

for (const [what, commands, message] of REFUSED) {
  t.test(`${what}: a plain message, and the process continues`, { skip }, async (t) => {
    const { witness, folder } = await bench.witness(t, 'map m', 'fill m 5', ...commands);
    const before = await witness.see();
    for (let round = 0; round < load(3); round++) {
      const { status, log } = await dump(witness.pid, `${folder}${round}`, bench);
      t.equal(status, 1);
      t.match(log, message);
      t.equal(log.includes('mapped into its memory'), message === MAPPED);
      t.same(await witness.see(), before);
    }
  });
}

// ---------------------------------------------------------------------------------------------------
// File descriptors

t.test('how a map is open: for reading, for writing, twice, by several fds, for children', { skip }, async (t) => {
  const held = await bench.witness(
    t,
    'map m max=50',
    'fill m 30',
    'open reading m ro',
    'open writing m wo',
    'open again m rw',
    'dup copy m',
    'dup reading2 reading',
    'dup far m 500',
    'cloexec again 0',
    'cloexec reading2 1',
    'nonblock writing',
    'map own mode=ro name=own_ro',
    'map other mode=wo name=own_wo',
    'fill other 3',
  );
  const before = await held.witness.see();
  t.same(new Set(before.map(({ flags }) => flags & 3)), new Set([0, 1, 2]));
  const after = await bench.roundTrip(t, held);
  t.same(
    after.map(({ flags, lookup, update }) => [flags & 3, lookup === 1, update === 1]),
    after.map(({ flags }) => [flags & 3, (flags & 3) === 1, (flags & 3) === 0]),
    'what is forbidden is what was forbidden',
  );
  t.equal(new Set(after.map(({ id }) => id)).size, 3, 'all of them are files of three maps');
  t.equal(after.at(-1)?.fd, 500);
  t.ok(
    after.some(({ flags }) => flags & 0o4000),
    'O_NONBLOCK as well',
  );

  // One map, not copies of it.
  await held.witness.tell('set writing 00000000 ffffffffffffffff');
  t.match(await held.witness.tell('get m 00000000', 'get reading 00000000', 'get again 00000000', 'get far 00000000'), [
    { value: 'ffffffffffffffff' },
    { value: 'ffffffffffffffff' },
    { value: 'ffffffffffffffff' },
    { value: 'ffffffffffffffff' },
  ]);
});

t.test('two tasks share a map, and each has one more', { skip }, async (t) => {
  const { witness, folder } = await bench.witness(t, 'map m max=50', 'fill m 30', 'open reading m ro');
  const child = await witness.fork();
  await witness.tell('map mine name=parent', 'fill mine 3');
  await child.tell('map mine name=child', 'fill mine 5', 'open late m wo');
  const tasks = [witness, child];
  const before = [await witness.see(), await child.see()];
  t.match(await child.tell(`kcmp ${witness.pid} ${before[0]?.[0]?.fd}`), [{ same: true }]);

  await bench.dumped(t, { witness, folder });
  await child.gone();
  await bench.freed(idsOf(before.flat()));
  await bench.restored(t, folder);
  const after = [await witness.see(), await child.see()];
  t.same(lasting(after.flat()), lasting(before.flat()));
  t.equal(idsOf(after.flat()).length, 3);
  t.match(await child.tell(`kcmp ${witness.pid} ${before[0]?.[0]?.fd}`), [{ same: true }], 'the same open file');
  await witness.tell('set m 00000000 eeeeeeeeeeeeeeee');
  t.match(await child.tell('get m 00000000'), [{ value: 'eeeeeeeeeeeeeeee' }]);
  for (const task of tasks) await task.end();
});

t.test('200 maps', { skip }, async (t) => {
  const commands = Array.from({ length: 200 }, (_, i) => [
    `map m${i} type=${[1, 2, 5, 6, 9][i % 5]} max=${20 + (i % 7)} value=${4 + (i % 9)}`,
    `fill m${i} 10 ${i}`,
  ]);
  const held = await bench.witness(t, ...commands.flat());
  const before = await held.witness.see();
  t.equal(before.length, 200);
  await bench.dumped(t, held);
  await bench.restored(t, held.folder);
  const after = await held.witness.see();
  t.same(lasting(after), lasting(before));
  for (const i of [0, 77, 199]) t.match(bpftool('map', 'show', 'id', `${after[i]?.id}`), { name: `m${i}` });
});

const COUNT = load(300_000);
t.test(`${COUNT} items`, { skip }, async (t) => {
  const held = await bench.witness(t, `map m key=16 value=32 max=${COUNT}`, `fill m ${COUNT}`);
  const before = await held.witness.see();
  t.equal(before[0]?.count, COUNT);
  await bench.dumped(t, held);
  await bench.freed(idsOf(before));
  await bench.restored(t, held.folder);
  const after = await held.witness.see();
  t.same(lasting(after), lasting(before));
  const items = bpftool('map', 'dump', 'id', `${after[0]?.id}`) as unknown[];
  t.equal(items.length, COUNT);
});

// ---------------------------------------------------------------------------------------------------
// Ways to dump and restore

t.test(
  '--leave-running: it keeps using its maps, and each dump has their contents at its time',
  { skip },
  async (t) => {
    const { witness, folder } = await bench.witness(t, 'map m max=50', 'fill m 30', 'open reading m ro');
    const states: (readonly Seen[])[] = [];
    for (let round = 0; round < 3; round++) {
      await witness.tell(`set m 00000000 dddddddddddddd0${round}`);
      const before = await witness.see();
      t.match(await dump(witness.pid, `${folder}${round}`, { plugin, more: ['--leave-running'] }), { status: 0 });
      t.same(await witness.see(), before, 'the very same maps');
      states.push(before);
    }
    await witness.end();
    await bench.freed(idsOf(states.flat()));
    for (const round of [2, 0, 1]) {
      await witness.gone();
      await bench.restored(t, `${folder}${round}`);
      t.same(lasting(await witness.see()), lasting(states[round] ?? []));
      await witness.end();
    }
  },
);

t.test('a restore in the foreground', { skip }, async (t) => {
  const { witness, folder } = await bench.witness(t, 'map m max=50', 'fill m 30', 'open reading m ro');
  const before = await witness.see();
  await bench.dumped(t, { witness, folder });
  const staying = await restoreInForeground(folder, { plugin });
  const after = await witness.see();
  t.same(lasting(after), lasting(before));
  await witness.end();
  t.match(await staying.ended, { signal: null });
  await bench.freed(idsOf(after));
  t.same(zombies(), []);
});

t.test('dumped, restored, and dumped again', { skip }, async (t) => {
  const held = await bench.witness(t, TYPES, `map m max=50 ${TYPED}`, 'close types', 'fill m 30', 'open reading m ro');
  const before = await held.witness.see();
  for (let round = 0; round < 3; round++) {
    const { witness, folder } = held;
    t.same(lasting(await bench.roundTrip(t, { witness, folder: `${folder}${round}` })), lasting(before));
    if (round < 2) continue;
    // Into a folder that has a dump already, of a process that has no map any more.
    await witness.tell('close m', 'close reading');
    await bench.dumped(t, { witness, folder: `${folder}${round}` });
    t.same(
      fs.readdirSync(`${folder}${round}`).filter((name) => name.startsWith('bpfimg')),
      [],
    );
    await bench.restored(t, `${folder}${round}`);
    t.same(await witness.see(), []);
  }
});

t.test('a value edited between dump and restore is what the process sees', { skip }, async (t) => {
  const { witness, folder } = await bench.witness(
    t,
    TYPES,
    `map m max=50 ${TYPED}`,
    'close types',
    'fill m 30',
    'map other type=2',
    'fill other 3',
  );
  const before = await witness.see();
  await bench.dumped(t, { witness, folder });

  const decoded = bpfimg(['decode', folder]);
  t.equal(decoded.status, 0, decoded.stderr);
  const document = JSON.parse(decoded.stdout) as {
    maps: { name: string; items: { key: number; value: { a: number } }[] }[];
  };
  const item = document.maps.find(({ name }) => name === 'm')?.items.find(({ key }) => key === 7);
  if (item === undefined) throw new Error('no such item');
  item.value.a = 0x11223344;
  const encoded = bpfimg(['encode', '-D', folder, '--force'], { input: JSON.stringify(document) });
  t.equal(encoded.status, 0, encoded.stderr);

  await bench.restored(t, folder);
  const after = await witness.see();
  const named = (seen: readonly Seen[], wanted: string) => seen.find(({ map_name }) => map_name === wanted);
  const changed = (item: string) => (item.startsWith('07000000=') ? `07000000=44332211${item.slice(17)}` : item);
  t.same(named(after, 'm')?.items, named(before, 'm')?.items?.map(changed), 'one value, and no other');
  t.not(named(after, 'm')?.sum, named(before, 'm')?.sum);
  const attributes = (seen: Seen | undefined) => ({ ...seen, id: 0, items: 0, sum: 0 });
  t.same(attributes(named(after, 'm')), attributes(named(before, 'm')), 'its types as well');
  t.same(
    lasting(after.filter(({ map_name }) => map_name !== 'm')),
    lasting(before.filter(({ map_name }) => map_name !== 'm')),
  );
  t.match(bpftool('map', 'lookup', 'id', `${named(after, 'm')?.id}`, 'key', ...'7000'), {
    formatted: { value: { a: 0x11223344 } },
  });
});

t.test('a map that is pinned stays what it is; the restored process has its own', { skip }, async (t) => {
  const pins = bpffs();
  t.teardown(pins.remove);
  const link = path.join(bench.folder, 'pins');
  fs.symlinkSync(pins.folder, link);
  const { witness, folder } = await bench.witness(t, 'map m max=50', 'fill m 30', `pin m ${link}/m`);
  const [before] = await witness.see();
  await bench.dumped(t, { witness, folder });
  await bench.restored(t, folder);
  const [after] = await witness.see();
  t.not(after?.id, before?.id);
  t.equal(after?.sum, before?.sum);
  t.match(bpftool('map', 'show', 'pinned', `${link}/m`), { id: before?.id });
  await witness.tell('set m 00000000 ffffffffffffffff');
  t.match(bpftool('map', 'lookup', 'pinned', `${link}/m`, 'key', ...'0000'), { value: ['0x01', '0x0e'] });
});

t.test('reuse yes: a map that still exists is used, with the access it had', { skip }, async (t) => {
  const pins = bpffs();
  t.teardown(pins.remove);
  const link = path.join(bench.folder, 'pins2');
  fs.symlinkSync(pins.folder, link);
  const { witness, folder } = await bench.witness(
    t,
    'map m max=50',
    'fill m 30',
    'open reading m ro',
    'map gone',
    'fill gone 3',
    `pin m ${link}/m`,
  );
  const before = await witness.see();
  await bench.dumped(t, { witness, folder });
  await bench.freed(before.flatMap(({ id, map_name }) => (map_name === 'gone' && id !== undefined ? [id] : [])));
  const reusing = buildPlugin(path.join(bench.folder, 'reusing'), ['reuse yes']);
  const { status, log } = await restore(folder, { plugin: reusing });
  t.equal(status, 0, errors(log).join('; '));
  t.match(log, new RegExp(`bpfimg: BPF map ${before[0]?.id} still exists and is reused`));
  const after = await witness.see();
  t.same(lasting(after), lasting(before));
  const same = (seen: readonly Seen[]) => seen.filter(({ map_name }) => map_name === 'm').map(({ id }) => id);
  t.same(same(after), same(before), 'the very map');
  t.not(after.at(-1)?.id, before.at(-1)?.id);
});

t.test('converted for a CRIU with libbpf and back, it restores all the same', { skip }, async (t) => {
  const { witness, folder } = await bench.witness(
    t,
    'map m max=50',
    'fill m 30',
    'open reading m ro',
    'map p type=6 max=4 value=12',
    'fill p 4',
    'map f type=2',
    'fill f 9',
    'freeze f',
  );
  const before = await witness.see();
  await bench.dumped(t, { witness, folder });
  const items = () => JSON.parse(bpfimg(['decode', folder]).stdout).maps.map((map: { items: unknown }) => map.items);
  const was = items();

  const native = bpfimg(['criu', 'convert', folder, '--to', 'native']);
  t.equal(native.status, 0, native.stderr);
  t.ok(fs.existsSync(path.join(folder, 'bpfmap-data.img')));
  t.same(
    fs.readdirSync(folder).filter((name) => name.startsWith('bpfimg')),
    [],
  );
  t.same(items(), was);
  t.equal(bpfimg(['verify', folder]).status, 0);
  const refused = await restore(folder, bench);
  t.equal(refused.status, 1);
  t.match(refused.log, /Unknown file type 19|BPFMAP|bpfmap/i, 'a CRIU without libbpf does not know it');

  const back = bpfimg(['criu', 'convert', folder, '--to', 'plugin']);
  t.equal(back.status, 0, back.stderr);
  await bench.restored(t, folder);
  t.same(lasting(await witness.see()), lasting(before));
});
