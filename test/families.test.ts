/** Maps of maps, queues and stacks, and what can only be described: captured and made again, bpftool watching. */

import { spawn, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { plugins, unknownTypes } from '../plugins/index.js';
import { Btf } from '../src/btf/btf.js';
import { capture } from '../src/capture/capture.js';
import { MAP_FLAG } from '../src/kernel/abi.js';
import { loadBtf } from '../src/kernel/btf.js';
import { LiveMaps } from '../src/kernel/live.js';
import { BpfMap, type MapSpec } from '../src/kernel/map.js';
import { openSys } from '../src/kernel/sys.js';
import { MapTypes } from '../src/maptype.js';
import { BtfWriter } from './helpers/btf-writer.js';
import { BPFIMG, bpfimg, TOP, workFolder } from './helpers/command.js';
import { lacking } from './helpers/features.js';
import { bpffs, bpftool, skipWithoutMaps, u32, witness } from './helpers/kernel-live.js';
import { load, patience } from './helpers/needs.js';
import { types } from './helpers/types.js';

t.setTimeout(patience(120_000));

const skip = await skipWithoutMaps();
const sys = await openSys(types);

/** A folder for images, one for pins, and maps that are closed in the end. */
function place(t: Test) {
  const folder = workFolder();
  const pins = bpffs();
  const maps: BpfMap[] = [];
  t.teardown(() => {
    for (const map of maps) map.close();
    pins.remove();
    fs.rmSync(folder, { recursive: true });
  });
  return {
    dump: (name: string) => path.join(folder, name),
    pin: (name = '') => path.join(pins.folder, name),
    make(spec: MapSpec): BpfMap {
      const map = BpfMap.create(sys, spec);
      maps.push(map);
      return map;
    },
    /** Opens a map that was pinned. */
    pinned(name: string): BpfMap {
      const map = BpfMap.openPinned(sys, path.join(pins.folder, name));
      maps.push(map);
      return map;
    },
  };
}

function ids(...maps: readonly BpfMap[]): string[] {
  return maps.flatMap((map) => ['--id', String(map.id)]);
}

interface Row {
  readonly map_id: number;
  readonly items: number;
  readonly report: string;
}

/** Runs a command that tells rows as JSON; by the maps' ids in the dump. */
function told(t: Test, args: readonly string[], status = 0): Map<number, Row> {
  const done = bpfimg([...args, '--json']);
  t.equal(done.status, status, `${args[0]}: ${done.stderr}`);
  const rows = done.stdout === '' ? [] : (JSON.parse(done.stdout) as { maps: Row[] }).maps;
  return new Map(rows.map((row) => [row.map_id, row]));
}

const inner: MapSpec = { type: 1, keySize: 4, valueSize: 8, maxEntries: 10, name: 'inner' };

t.test('a graph of maps comes back with the same shape', { skip }, async (t) => {
  const here = place(t);
  const [one, two] = [here.make(inner), here.make({ ...inner, maxEntries: 20, name: 'inner' })];
  one.update(u32(1), Buffer.from('1111111111111111', 'hex'));
  two.update(u32(2), Buffer.from('2222222222222222', 'hex'));
  const slots = here.make({ type: 12, keySize: 4, valueSize: 4, maxEntries: 8, name: 'slots', inner: one });
  const table = here.make({ type: 13, keySize: 6, valueSize: 4, maxEntries: 8, name: 'table', inner: one });
  // One inner map in two slots and in another outer map; slots between them are empty.
  for (const slot of [1, 5]) slots.update(u32(slot), u32(two.fd));
  slots.update(u32(7), u32(one.fd));
  table.update(Buffer.from('sixsix'), u32(two.fd));

  const rows = told(t, ['capture', ...ids(slots, table), '-D', here.dump('a')]);
  t.same([...rows.keys()].sort(), [one, two, slots, table].map(({ id }) => id).sort(), 'each inner map once');
  t.same(
    [...rows.values()].map(({ report }) => report),
    Array(4).fill('full'),
  );

  const made = told(t, ['replay', here.dump('a'), '--pin', here.pin('all'), '--verify']);
  t.equal(made.size, 4);
  const [newSlots, newTable] = [here.pinned('all/slots'), here.pinned('all/table')];
  const value = (map: BpfMap, key: Buffer) => Buffer.from(map.lookup(key) as Uint8Array).readUInt32LE();
  const shared = value(newSlots, u32(1));
  t.equal(value(newSlots, u32(5)), shared);
  t.equal(value(newTable, Buffer.from('sixsix')), shared, 'what was one map is one map');
  t.equal(newSlots.lookup(u32(0)), undefined, 'an empty slot stays empty');
  using fresh = BpfMap.openById(sys, shared);
  t.equal(fresh.maxEntries, 20);
  t.same(witness(fresh), { '02000000': '2222222222222222' });
  using other = BpfMap.openById(sys, value(newSlots, u32(7)));
  t.same(witness(other), { '01000000': '1111111111111111' });

  // The same again: ids apart, nothing has changed.
  const again = told(t, ['capture', ...ids(newSlots, newTable), '-D', here.dump('b')]);
  t.same([...again.values()].map(({ items }) => items).sort(), [...rows.values()].map(({ items }) => items).sort());

  // Another map in slot 7.
  const text = bpfimg(['decode', here.dump('a')]).stdout;
  const rewired = text.replace(`"07000000","value":{"map_id":${one.id}}`, `"07000000","value":{"map_id":${two.id}}`);
  t.not(rewired, text);
  t.equal(bpfimg(['encode', '-D', here.dump('c')], { input: rewired }).status, 0);
  told(t, ['replay', here.dump('c'), '--map', 'slots', '--pin', here.pin('rewired')]);
  const rewiredSlots = here.pinned('rewired/slots');
  t.equal(value(rewiredSlots, u32(7)), value(rewiredSlots, u32(1)), 'editing the id rewires it');
  t.same(fs.readdirSync(here.pin('rewired')).length, 2, 'an outer map brings the inner maps it leads to');
});

t.test('inner maps are shown by id and name', { skip }, async (t) => {
  const here = place(t);
  const one = here.make(inner);
  const outer = here.make({ type: 13, keySize: 4, valueSize: 4, maxEntries: 2, name: 'outer', inner: one });
  outer.update(u32(1), u32(one.fd));
  told(t, ['capture', ...ids(outer), '-D', here.dump('a')]);
  t.match(bpfimg(['show', here.dump('a')]).stdout, new RegExp(`\n  01000000  \\.{4}  map ${one.id} \\(inner\\)\n`));
  t.match(bpfimg(['show', here.dump('a'), '--map', 'outer']).stdout, `  map ${one.id} (inner)`);
  t.match(bpfimg(['show', here.dump('a'), '--raw']).stdout, `  ${u32(one.id).toString('hex')}  `);
  const text = bpfimg(['decode', here.dump('a')]).stdout.replace(
    `"value":{"map_id":${one.id}}`,
    '"value":{"map_id":1}',
  );
  t.equal(bpfimg(['encode', '-D', here.dump('b')], { input: text }).status, 0);
  t.match(
    bpfimg(['show', here.dump('b')]).stdout,
    /01000000 {2}\.{4} {2}map 1\n/,
    'without a name: it is not in the dump',
  );
});

t.test('--max-entries is for the maps that are meant, not for inner maps', { skip }, async (t) => {
  const here = place(t);
  const spec: MapSpec = { type: 2, keySize: 4, valueSize: 8, maxEntries: 4, name: 'part' };
  const [one, two] = [here.make(spec), here.make(spec)];
  const slots = here.make({ type: 12, keySize: 4, valueSize: 4, maxEntries: 8, name: 'slots', inner: one });
  const plain = here.make({ ...spec, name: 'plain' });
  const stacks = here.make({ type: 19, keySize: 8, valueSize: 8, maxEntries: 0, name: 'cgroups' });
  slots.update(u32(0), u32(one.fd));
  slots.update(u32(1), u32(two.fd));
  told(t, ['capture', ...ids(slots, plain, stacks), '-D', here.dump('a')]);
  const sizes = (...args: string[]) => {
    const rows = told(t, ['replay', here.dump('a'), '--dry-run', '--max-entries', '16', ...args]);
    return Object.fromEntries([...rows].map(([id, row]) => [id, (row as Row & { max_entries: number }).max_entries]));
  };
  const own = { [one.id]: 4, [two.id]: 4, [slots.id]: 8 };
  t.same(sizes(), { ...own, [slots.id]: 16, [plain.id]: 16, [stacks.id]: 0 });
  t.same(sizes('--map', 'slots'), { ...own, [slots.id]: 16 });
  const all = ['--map', 'slots', '--map', String(one.id), '--map', String(two.id)];
  t.same(sizes(...all), { [one.id]: 16, [two.id]: 16, [slots.id]: 16 });
  told(t, ['replay', here.dump('a'), '--pin', here.pin('a'), '--max-entries', '16']);
  told(t, ['replay', here.dump('a'), '--pin', here.pin('b'), '--max-entries', '16', ...all]);
  for (const [name, entries] of [
    ['a', 4],
    ['b', 16],
  ] as const) {
    const fresh = here.pinned(`${name}/slots`);
    using first = BpfMap.openById(sys, Buffer.from(fresh.lookup(u32(1)) as Uint8Array).readUInt32LE());
    t.same([fresh.maxEntries, first.maxEntries], [16, entries]);
  }
  const some = bpfimg(['replay', here.dump('a'), '--pin', here.pin('c'), '--max-entries', '16', ...all.slice(0, 4)]);
  t.equal(some.status, 1, 'one inner map alone does not fit any more');
  t.match(some.stderr, /^bpfimg: map \d+ \(slots\), item 0[01]000000: [^\n]+\n$/);
});

t.test('an outer map without inner maps cannot be guessed, and says so', { skip }, async (t) => {
  const here = place(t);
  const template = here.make(inner);
  const empty = here.make({ type: 12, keySize: 4, valueSize: 4, maxEntries: 2, name: 'empty', inner: template });
  const rows = told(t, ['capture', ...ids(empty), '-D', here.dump('a')]);
  t.match(rows.get(empty.id)?.report, /^partial: it is empty/);
  const failed = bpfimg(['replay', here.dump('a'), '--pin', here.pin('a')]);
  t.equal(failed.status, 1);
  t.match(failed.stderr, /map \d+ \(empty\): it was empty when it was captured/);
  t.notOk(fs.existsSync(here.pin('a')));

  // Who knows it, writes it in.
  const text = bpfimg(['decode', here.dump('a')]).stdout;
  const inside = '"inner":{"map_type":1,"key_size":4,"value_size":8,"max_entries":10,"map_flags":0}';
  const known = text.replace('"meta":{', `"meta":{${inside},`);
  t.equal(bpfimg(['encode', '-D', here.dump('b')], { input: known }).status, 0);
  told(t, ['replay', here.dump('b'), '--pin', here.pin('b')]);
  here.pinned('b/empty').update(u32(0), u32(template.fd));
});

t.test('an inner map that is not in the dump is reported', { skip }, async (t) => {
  const here = place(t);
  const one = here.make(inner);
  const outer = here.make({ type: 13, keySize: 4, valueSize: 4, maxEntries: 2, name: 'outer', inner: one });
  outer.update(u32(1), u32(one.fd));
  told(t, ['capture', ...ids(outer), '-D', here.dump('a')]);
  const bytes = bpfimg(['decode', here.dump('a'), '--no-typed', '--format', 'ndjson']).stdout;
  t.match(bytes, `"value":"${u32(one.id).toString('hex')}"`);
  const text = bytes.replace(`"value":"${u32(one.id).toString('hex')}"`, '"value":"01000000"');
  t.equal(bpfimg(['encode', '-D', here.dump('b')], { input: text }).status, 0);
  const failed = bpfimg(['replay', here.dump('b'), '--map', 'outer', '--pin', here.pin('b')]);
  t.equal(failed.status, 1);
  const what = 'it refers to inner map 1, which is not in the dump';
  const hint = '--unresolved skip leaves such items out';
  t.equal(failed.stderr, `bpfimg: map ${outer.id} (outer), item 01000000: ${what}; ${hint}\n`);

  const odd = bpfimg(['decode', here.dump('a'), '--pretty']).stdout.replace(`"map_id": ${one.id}\n`, '"map_id": -1\n');
  const refused = bpfimg(['encode', '-D', here.dump('c')], { input: odd });
  t.equal(refused.status, 1);
  t.match(refused.stderr, /\/items\/0\/value: must be \{"map_id":N\} with the id of a map, or 8 hex digits/);
});

const QUEUE = 22;
const STACK = 23;

/** Pops everything. */
function pops(map: BpfMap): number[] {
  const found: number[] = [];
  for (let value = map.lookupAndDelete(undefined); value !== undefined; value = map.lookupAndDelete(undefined)) {
    found.push(Buffer.from(value).readUInt32LE());
  }
  return found;
}

function pushed(here: ReturnType<typeof place>, type: number, count: number, maxEntries = count): BpfMap {
  const map = here.make({ type, keySize: 0, valueSize: 4, maxEntries, name: type === QUEUE ? 'queue' : 'stack' });
  for (let i = 1; i <= count; i++) map.update(undefined, u32(i));
  return map;
}

for (const type of [QUEUE, STACK]) {
  const name = type === QUEUE ? 'queue' : 'stack';
  const order = (count: number) => {
    const numbers = Array.from({ length: count }, (_, i) => i + 1);
    return type === QUEUE ? numbers : numbers.reverse();
  };

  t.test(`a ${name} is read by popping, only when that is asked for, and has its order again`, { skip }, async (t) => {
    const here = place(t);
    const map = pushed(here, type, 300);
    const refused = told(t, ['capture', ...ids(map), '-D', here.dump('no')], 1);
    t.match(refused.get(map.id)?.report, /^not supported: .*--drain/);

    const rows = told(t, ['capture', ...ids(map), '-D', here.dump('a'), '--drain']);
    t.same([rows.get(map.id)?.items, rows.get(map.id)?.report], [300, 'full']);
    told(t, ['replay', here.dump('a'), '--pin', here.pin('a'), '--verify']);
    const first = bpftool('map', type === QUEUE ? 'dequeue' : 'pop', 'pinned', here.pin(`a/${name}`)) as {
      value: string[];
    };
    t.equal(Number(first.value[0]), (order(300)[0] as number) & 0xff, 'bpftool pops what was to be popped first');
    t.same(pops(here.pinned(`a/${name}`)), order(300).slice(1));
    t.same(pops(map), order(300), 'the live one has its items in their order');
  });

  t.test(`a ${name} can be left empty, but not when the capture fails`, { skip }, async (t) => {
    const here = place(t);
    const map = pushed(here, type, 20);
    fs.mkdirSync(here.dump('full'));
    fs.writeFileSync(here.dump('full/notes.img'), '');
    t.equal(bpfimg(['capture', ...ids(map), '-D', here.dump('full'), '--drain=keep-empty']).status, 1);

    // It fails when the images are put in place: a limit for files that they exceed. Node ignores the signal that comes
    // with it, but what tap has children load would end them.
    const capture = [process.execPath, BPFIMG, 'capture', ...ids(map), '-D', here.dump('limited')];
    const limited = spawnSync(
      'bash',
      ['-c', 'ulimit -f 0; unset NODE_OPTIONS; exec "$@"', 'bash', ...capture, '--drain=keep-empty'],
      {
        encoding: 'utf8',
      },
    );
    t.match(limited, { status: 1, stderr: /the file would be too large/ });
    t.notOk(fs.existsSync(here.dump('limited')));
    t.same(pops(map), order(20), 'everything went back');

    for (let i = 1; i <= 20; i++) map.update(undefined, u32(i));
    const rows = told(t, ['capture', ...ids(map), '-D', here.dump('a'), '--drain=keep-empty']);
    t.equal(rows.get(map.id)?.items, 20);
    t.same(pops(map), []);
  });

  t.test(`Ctrl-C while a ${name} is drained puts everything back`, { skip }, async (t) => {
    const here = place(t);
    const count = load(500_000);
    const map = pushed(here, type, count);
    await interrupted(map, 'SIGINT', here.dump('a'));
    t.notOk(fs.existsSync(here.dump('a')));
    const found = pops(map);
    t.equal(found.length, count);
    t.ok(found.every((number, i) => number === (type === QUEUE ? i + 1 : count - i)));
  });
}

/** Drains a large map and sends a signal as soon as something is popped. */
async function interrupted(map: BpfMap, signal: NodeJS.Signals, dump: string): Promise<void> {
  const before = Buffer.from(map.lookup(undefined) as Uint8Array);
  const child = spawn(process.execPath, [BPFIMG, 'capture', ...ids(map), '-D', dump, '--drain'], { stdio: 'ignore' });
  const ended = new Promise((resolve) => child.once('exit', resolve));
  while (before.equals(map.lookup(undefined) ?? new Uint8Array(0)) && child.exitCode === null) {
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  child.kill(signal);
  await ended;
}

t.test('kill -9 while a queue is drained loses what was popped, and nothing else', { skip }, async (t) => {
  const here = place(t);
  const count = load(500_000);
  const map = pushed(here, QUEUE, count);
  await interrupted(map, 'SIGKILL', here.dump('a'));
  const left = pops(map);
  t.ok(left.length < count, `${count - left.length} items are lost, as docs/map-types.md says`);
  // What is left is the end of it, whole and in order, or the beginning of what was being put back.
  t.ok(left.every((number, i) => i === 0 || number === (left[i - 1] as number) + 1));
});

t.test('a frozen queue cannot be drained', { skip }, async (t) => {
  const here = place(t);
  const map = pushed(here, QUEUE, 3);
  map.freeze();
  const rows = told(t, ['capture', ...ids(map), '-D', here.dump('a'), '--drain'], 1);
  t.match(rows.get(map.id)?.report, /^not supported: it is frozen/);
});

/** Types that can be created without further objects, and of which no items can be carried. */
const DESCRIBED: readonly MapSpec[] = [
  { type: 7, keySize: 4, valueSize: 80, maxEntries: 4, name: 'stacks' },
  { type: 19, keySize: 8, valueSize: 8, maxEntries: 0, name: 'cgroups' },
  { type: 21, keySize: 16, valueSize: 12, maxEntries: 0, name: 'cpu_cgroups' },
  { type: 27, keySize: 0, valueSize: 0, maxEntries: 4096, name: 'ring' },
  { type: 30, keySize: 0, valueSize: 4, maxEntries: 100, extra: 3n, name: 'bloom' },
  { type: 31, keySize: 0, valueSize: 0, maxEntries: 8192, name: 'user_ring' },
  {
    type: 33,
    keySize: 0,
    valueSize: 0,
    maxEntries: 4,
    flags: MAP_FLAG.MMAPABLE,
    extra: 0x7f00_0000_0000n,
    name: 'arena',
  },
];

t.test('maps whose items cannot be carried keep their attributes, and say what is lost', { skip }, async (t) => {
  const here = place(t);
  const maps = DESCRIBED.flatMap((spec) => {
    const lacks = lacking(sys, spec);
    if (lacks !== undefined) t.match(lacks, `perhaps this kernel lacks ${types.get(spec.type).name}`);
    return lacks === undefined ? [here.make(spec)] : [];
  });
  maps.find(({ name }) => name === 'bloom')?.update(undefined, u32(7));
  const rows = told(t, ['capture', ...ids(...maps), '-D', here.dump('a')]);
  const made = told(t, ['replay', here.dump('a'), '--pin', here.pin('a'), '--verify']);
  for (const map of maps) {
    const report = rows.get(map.id)?.report ?? '';
    t.match(report, /^(full|metadata only: .+)$/, `${map.name}: ${report}`);
    const again = made.get(map.id)?.report ?? '';
    if (report === 'full') t.equal(again, 'full', 'what has no items loses none');
    else t.match(again, /^(partial: captured )?metadata only: lost: .+/);
    const fresh = here.pinned(`a/${map.name}`);
    const shape = ({ type, keySize, valueSize, maxEntries, flags, extra, name }: BpfMap['info']) => {
      return { type, keySize, valueSize, maxEntries, flags, extra, name };
    };
    t.same(shape(fresh.info), shape(map.info));
  }
});

t.test("every command knows the types of a user's plugin", async (t) => {
  const folder = workFolder();
  t.teardown(() => fs.rmSync(folder, { recursive: true }));
  fs.chmodSync(folder, 0o700);
  const [lib, dump, document] = ['lib', 'dump', 'maps.json'].map((name) => path.join(folder, name)) as [
    string,
    string,
    string,
  ];
  fs.mkdirSync(lib, { mode: 0o700 });
  const row = { number: 60, name: 'made_up', since: '9.9', key: 'bytes', perCpu: true };
  fs.writeFileSync(
    path.join(lib, 'made-up.mjs'),
    `export default { name: 'made-up', types: [${JSON.stringify(row)}] };`,
  );
  const map = { map_id: 7, name: 'mine', type: 'made_up', key_size: 4, value_size: 4, max_entries: 8 };
  const rest = { map_flags: [], map_extra: '0x0', frozen: false, ifindex: 0, memlock: 0 };
  const items = [{ key: '01000000', values: ['02000000', '03000000'] }];
  fs.writeFileSync(document, JSON.stringify({ format: 'bpfimg-maps/1', maps: [{ ...map, ...rest, items }] }));

  t.match(
    bpfimg(['encode', document, '-D', dump]),
    { status: 1, stderr: /maps\/0/ },
    'without it the type has no name',
  );
  const ran = (args: readonly string[]) => bpfimg([...args, '-L', lib]);
  t.match(ran(['encode', document, '-D', dump]), { status: 0, stderr: '' });
  const decoded = JSON.parse(ran(['decode', dump]).stdout) as { maps: unknown[] };
  t.match(decoded.maps, [{ type: 'made_up', items }]);
  t.match(ran(['show', dump]), { status: 0, stdout: /made_up/ });
  t.match(ran(['verify', dump, '--json']), { status: 1, stdout: /made_up/ });
  t.notMatch(ran(['verify', dump, '--json']).stdout, /unknown-type/);
  t.match(bpfimg(['verify', dump, '--json']), { stdout: /unknown-type/ });
  t.match(ran(['diff', dump, dump]), { status: 0, stdout: '' });
  t.match(ran(['replay', dump, '--dry-run', '--percpu', 'first']), { status: 1, stdout: /made_up/ });
});

t.test("what is wrong with a user's plugin is told when it is loaded", async (t) => {
  const folder = workFolder();
  t.teardown(() => fs.rmSync(folder, { recursive: true }));
  fs.chmodSync(folder, 0o700);
  const row = "number: 60, name: 'made_up', since: '9.9', key: 'bytes'";
  const range = '{ min: 1, max: 8 }';
  const rule = `key: ${range}, value: ${range}, entries: ${range}, flags: 0, needs: 0`;
  const cases: [plugin: string, problem: RegExp | undefined][] = [
    [`{ name: 'm', types: [{ ${row} }], foresee: async () => undefined }`, undefined],
    [`{ name: 'm', types: [{ ${row}, create: { ${rule}, btf: 'no' } }] }`, undefined],
    [`{ name: 'm', types: [{ ${row}, create: { ${rule}, btf: 'perhaps' } }] }`, /type 60: create must have the ranges/],
    [`{ name: 'm', types: [{ ${row}, create: {} }] }`, /type 60: create must have the ranges/],
    [`{ name: 'm', types: [{ ${row}, mapped: 4096 }] }`, /type 60: mapped must be a function/],
    [`{ name: 'm', types: [{ ${row} }], foresees: 1 }`, /unknown member foresees/],
  ];
  const flowd = path.join(TOP, 'fixtures/flowd');
  for (const [i, [plugin, problem]] of cases.entries()) {
    const lib = path.join(folder, `lib${i}`);
    fs.mkdirSync(lib, { mode: 0o700 });
    fs.writeFileSync(path.join(lib, 'm.mjs'), `export default ${plugin};`);
    const { status, stderr } = bpfimg(['show', flowd, '-L', lib]);
    if (problem === undefined) t.same({ status, stderr }, { status: 0, stderr: '' }, plugin);
    else {
      t.equal(status, 1, plugin);
      t.match(stderr, problem);
      t.match(stderr, /^bpfimg: [^\n]*m\.mjs: no plugin: [^\n]+\n$/);
    }
  }
});

t.test('a type newer than bpfimg is captured and replayed as plain bytes', { skip }, async (t) => {
  const here = place(t);
  const map = here.make({ type: 1, keySize: 4, valueSize: 4, maxEntries: 100, name: 'newer' });
  for (let i = 0; i < 60; i++) map.update(u32(i), u32(i * i));
  // As if hash maps were unknown.
  const types = new MapTypes(
    plugins.filter(({ name }) => name !== 'hash'),
    unknownTypes,
  );
  t.equal(types.get(1).name, 'type_1');
  const live = LiveMaps.look(sys).select({ ids: [map.id], names: [], pins: [], pids: [] });
  const [row] = await capture(sys, live, here.dump('a'), types);
  t.equal(row?.items, 60);
  t.match(row?.report, { kind: 'partial', why: /does not know this type/ });
  told(t, ['replay', here.dump('a'), '--pin', here.pin('a'), '--verify']);
  t.same(witness(here.pinned('a/newer')), witness(map));
});

t.test(
  'values that are structures of the kernel are named, for their id is another one elsewhere',
  { skip },
  async (t) => {
    const here = place(t);
    const kernel = Btf.parse(fs.readFileSync('/sys/kernel/btf/vmlinux'), { name: 'vmlinux' });
    const type = kernel.find('STRUCT', 'bpf_struct_ops_tcp_congestion_ops');
    if (type === undefined) return t.pass('this kernel has no such operations');
    const writer = new BtfWriter();
    writer.int('int', 4);
    const fd = loadBtf(sys, writer.bytes());
    const valueSize = kernel.size(type);
    const btf = { fd, keyType: 0, valueType: 0, vmlinuxType: type };
    const map = here.make({ type: 26, keySize: 4, valueSize, maxEntries: 1, name: 'ops', btf });
    sys.close(fd);
    const rows = told(t, ['capture', ...ids(map), '-D', here.dump('a')]);
    t.match(rows.get(map.id)?.report, /^metadata only: lost: the operations/);
    const [shown] = (JSON.parse(bpfimg(['decode', here.dump('a')]).stdout) as { maps: { meta: object }[] }).maps;
    const named = { btf_vmlinux_value_type_id: type, btf_vmlinux_value_type: 'bpf_struct_ops_tcp_congestion_ops' };
    t.match(shown?.meta, named);
    // Creating one takes its types of this very kernel, and its programs to mean anything.
    const failed = bpfimg(['replay', here.dump('a'), '--pin', here.pin('a')]);
    t.equal(failed.status, 1);
    t.match(failed.stderr, /^bpfimg: map \d+ \(ops\): [^\n]+\n$/);
  },
);

t.test('prefixes of tries can be shown as addresses', async (t) => {
  const folder = workFolder();
  t.teardown(() => fs.rmSync(folder, { recursive: true }));
  const map = (id: number, size: number, keys: readonly string[]) => ({
    ...{ map_id: id, name: `v${size}`, type: 'lpm_trie', key_size: size, value_size: 1, max_entries: 9, memlock: 0 },
    ...{ map_flags: ['BPF_F_NO_PREALLOC'], map_extra: '0x0', frozen: false, ifindex: 0 },
    items: keys.map((key) => ({ key, value: '01' })),
  });
  const six = (length: number, address: string) => `${u32(length).toString('hex')}${address.padEnd(32, '0')}`;
  const maps = [
    map(1, 8, ['100000000a010000', '000000000a020304']),
    map(2, 20, [
      six(32, '20010db8'),
      six(128, '20010db8000000000001000000000001'),
      six(0, ''),
      six(8, `${'fe'.padEnd(31, '0')}1`),
    ]),
    map(3, 7, ['08000000aabbcc']),
  ];
  const input = JSON.stringify({ format: 'bpfimg-maps/1', maps });
  t.equal(bpfimg(['encode', '-D', path.join(folder, 'tries')], { input }).status, 0);
  const { stdout } = bpfimg(['show', path.join(folder, 'tries'), '--text']);
  const wanted = ['10.1.0.0/16', '10.2.3.4/0', '2001:db8::/32', '2001:db8::1:0:0:1/128', '::/0', 'fe00::1/8'];
  for (const text of wanted) t.match(stdout, ` ${text} `);
  t.notMatch(bpfimg(['show', path.join(folder, 'tries')]).stdout, '10.1.0.0/16', 'only when asked for');
});
