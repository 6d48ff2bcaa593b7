/** `bpfimg capture`: live maps into images, with bpftool, crit and CRIU's own dump as witnesses. */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { plugins } from '../plugins/index.js';
import { capture } from '../src/capture/capture.js';
import { EntryLimit } from '../src/capture/entry.js';
import { type CaptureArguments, run } from '../src/cli/commands/capture.js';
import type { Io } from '../src/cli/io.js';
import { MemoryOutput } from '../src/io/output.js';
import { ATTR, MAP_FLAG } from '../src/kernel/abi.js';
import { LiveMaps } from '../src/kernel/live.js';
import { BpfMap, type MapSpec } from '../src/kernel/map.js';
import { Attr, ERRNO, openSys, type Sys } from '../src/kernel/sys.js';
import { MapTypes } from '../src/maptype.js';
import { NO_SELECTORS } from '../src/source/selectors.js';
import { bytesIn, dataOf, entriesOf, itemsOf, numberIn, type WireField } from './helpers/capture.js';
import { BPFIMG, bpfimg, contents, copyDump, shell, workFolder } from './helpers/command.js';
import { crit, skipWithout } from './helpers/crit.js';
import { asKept, features } from './helpers/features.js';
import { fixture } from './helpers/fixtures.js';
import {
  bpffs,
  bpftool,
  fdCount,
  fillNumbers,
  HolderProcess,
  skipWithoutMaps,
  u32,
  witness,
} from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import { MeddledSys } from './helpers/replay.js';
import { types } from './helpers/types.js';

const skip = await skipWithoutMaps();
const has = await features();
const sys = await openSys(types);
const [HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, LRU_PERCPU_HASH, TRIE] = [1, 2, 5, 6, 9, 10, 11] as const;

t.setTimeout(patience(180_000));
const cwd = workFolder();
t.teardown(() => fs.rmSync(cwd, { recursive: true }));
const names = () => fs.readdirSync(cwd).sort();

const create = (spec: Partial<MapSpec>) =>
  BpfMap.create(sys, { type: HASH, keySize: 4, valueSize: 8, maxEntries: 100, ...spec });

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');

/** Arguments that name maps. */
const byId = (...maps: readonly { readonly id: number }[]) => maps.flatMap(({ id }) => ['--id', String(id)]);

const none: CaptureArguments = {
  ...NO_SELECTORS,
  sources: [],
  dir: '',
  force: false,
  skipUnsupported: false,
  libdir: [],
  json: true,
} as CaptureArguments;

interface Row {
  readonly map_id: number;
  readonly name: string;
  readonly type: string;
  readonly items: number;
  readonly bytes: number;
  readonly report: string;
}

/** Runs the command in this process; without `kernel` on the real one. */
async function captured(
  args: Partial<CaptureArguments>,
  kernel: Sys = sys,
): Promise<{ code: number; rows: Row[]; said: string[] }> {
  const out = new MemoryOutput();
  const said: string[] = [];
  const io: Io = {
    stdin: () => Promise.reject(new Error('capture reads no input')),
    stdout: () => out,
    say: (line) => said.push(line),
    show: () => {},
    terminal: false,
    columns: undefined,
    env: {},
  };
  const code = await run({ ...none, ...args }, io, kernel);
  return { code, said, rows: (JSON.parse(out.take().toString()) as { maps: Row[] }).maps };
}

/** The maps document that the command makes of a dump, by map id. */
function decoded(folder: string): Map<number, Record<string, unknown>> {
  const { status, stdout, stderr } = bpfimg(['decode', folder], { cwd });
  if (status !== 0) throw new Error(stderr);
  const { maps } = JSON.parse(stdout) as { maps: { map_id: number }[] };
  return new Map(maps.map((map) => [map.map_id, map as unknown as Record<string, unknown>]));
}

/** The items of a map in a maps document, in the form of {@link witness}, which does not show padding. */
function itemsIn(map: Record<string, unknown> | undefined): Record<string, string> {
  const items = map?.items as { key: string; value?: string; values?: string[] }[];
  const shown = (values: readonly string[] = []) =>
    values.map((value) => value.slice(0, 2 * (map?.value_size as number))).join(' ');
  return Object.fromEntries(items.map(({ key, value, values }) => [key, value ?? shown(values)]));
}

// ---------------------------------------------------------------------------------------------------
// What is captured

/** Puts `count` items into a map of any kind. */
function fill(map: BpfMap, count: number): void {
  if (map.type !== TRIE) {
    fillNumbers(map, count);
    return;
  }
  const bits = 8 * (map.keySize - 4);
  for (let i = 0; i < count; i++) {
    const key = Buffer.alloc(map.keySize, i + 1);
    // Of a byte alone there are few prefixes.
    key.writeUInt32LE(bits === 8 ? 1 + (i % 8) : bits - (i % 7));
    key.writeUIntBE(i % 250, 4, 1);
    map.update(key, Buffer.alloc(map.valueStride, i));
  }
}

const trie = { type: TRIE, flags: MAP_FLAG.NO_PREALLOC };

/** Corners of every family: what to create, and how many items to put in. */
const CORNERS: readonly (readonly [spec: Partial<MapSpec>, items: number, frozen?: true])[] = [
  ...[1, 2, 3, 512].map((keySize) => [{ keySize, name: `key_${keySize}` }, 60] as const),
  ...[1, 5, 4096].map((valueSize) => [{ valueSize, name: `value_${valueSize}` }, 60] as const),
  [{ valueSize: 65_536, maxEntries: 10, name: 'value_64k' }, 7],
  [{ maxEntries: 1, name: 'one' }, 1],
  [{ maxEntries: 1, name: 'one_empty' }, 0],
  [{ maxEntries: 64, name: 'full' }, 64],
  [{ name: 'empty' }, 0],
  [{ name: 'frozen' }, 30, true],
  [{ name: 'rdonly_prog', flags: MAP_FLAG.RDONLY_PROG }, 30],
  [{ name: 'wronly_prog', flags: MAP_FLAG.WRONLY_PROG }, 30],
  [{ name: 'numa', flags: MAP_FLAG.NUMA_NODE, numaNode: 0 }, 30],
  [{ name: 'zero_seed', flags: MAP_FLAG.ZERO_SEED }, 90],
  [{ name: 'no_prealloc', flags: MAP_FLAG.NO_PREALLOC }, 90],
  [{}, 30],
  [{ name: 'with.two.dots' }, 30],
  [{ name: 'Stra\xdfe\xff' }, 30],
  [{ name: 'fifteen_letters' }, 30],
  ...[1, 8, 12, 4096, 65_536].flatMap((valueSize) => [
    [{ type: ARRAY, valueSize, maxEntries: 9, name: `array_${valueSize}` }, 7] as const,
    [{ type: ARRAY, valueSize, maxEntries: 9, flags: MAP_FLAG.MMAPABLE, name: `mmap_${valueSize}` }, 7] as const,
  ]),
  [{ type: ARRAY, maxEntries: 1, name: 'array_one' }, 1],
  [{ type: ARRAY, maxEntries: 5000, name: 'array_empty' }, 0],
  [{ type: ARRAY, maxEntries: 50, name: 'array_frozen' }, 50, true],
  [{ type: ARRAY, maxEntries: 50, name: 'mmap_frozen', flags: MAP_FLAG.MMAPABLE }, 50, true],
  [{ type: ARRAY, maxEntries: 50, name: '.rodata', flags: MAP_FLAG.MMAPABLE | MAP_FLAG.RDONLY_PROG }, 50],
  [{ type: ARRAY, maxEntries: 50, name: 'array_numa', flags: MAP_FLAG.NUMA_NODE, numaNode: 0 }, 50],
  ...[1, 8, 12, 32_768].flatMap((valueSize) => [
    [{ type: PERCPU_HASH, valueSize, maxEntries: 9, name: `p_hash_${valueSize}` }, 7] as const,
    [{ type: PERCPU_ARRAY, valueSize, maxEntries: 9, name: `p_array_${valueSize}` }, 7] as const,
    [{ type: LRU_PERCPU_HASH, valueSize, maxEntries: 9, name: `p_lru_${valueSize}` }, 7] as const,
  ]),
  ...[1, 3, 512].map((keySize) => [{ type: PERCPU_HASH, keySize, name: `p_key_${keySize}` }, 50] as const),
  [{ type: PERCPU_HASH, maxEntries: 64, name: 'p_full', flags: MAP_FLAG.NO_PREALLOC }, 64],
  [{ type: PERCPU_ARRAY, maxEntries: 1, name: 'p_frozen' }, 1, true],
  [{ type: PERCPU_HASH, name: 'p_empty' }, 0],
  ...[1, 2, 3, 512].map((keySize) => [{ type: LRU_HASH, keySize, name: `lru_${keySize}` }, 50] as const),
  [{ type: LRU_HASH, valueSize: 65_536, maxEntries: 20, name: 'lru_64k' }, 5],
  [{ type: LRU_HASH, flags: MAP_FLAG.NO_COMMON_LRU, name: 'lru_share' }, 20],
  [{ type: LRU_HASH, flags: MAP_FLAG.ZERO_SEED, name: 'lru_zero' }, 20, true],
  [{ type: LRU_HASH, name: 'lru_empty' }, 0],
  [{ type: LRU_PERCPU_HASH, flags: MAP_FLAG.NO_COMMON_LRU, name: 'p_lru_share' }, 20],
  ...[5, 8, 20, 260].map((keySize) => [{ ...trie, keySize, name: `trie_${keySize}` }, 60] as const),
  [{ ...trie, keySize: 8, valueSize: 65_536, maxEntries: 5, name: 'trie_64k' }, 5],
  [{ ...trie, keySize: 8, maxEntries: has.hugeTries ? 2 ** 32 - 1 : 1 << 16, name: 'trie_huge' }, 60],
  [{ ...trie, keySize: 8, maxEntries: 1, name: 'trie_one' }, 1, true],
  [{ ...trie, keySize: 8, name: 'trie_empty' }, 0],
];

t.test('every corner of every family is what bpftool sees', { skip }, async (t) => {
  const maps = CORNERS.map(([spec]) => create(spec));
  try {
    for (const [i, [, items, frozen]] of CORNERS.entries()) {
      const map = maps[i] as BpfMap;
      fill(map, items);
      if (frozen) map.freeze();
    }
    const { status, stdout, stderr } = bpfimg(['capture', ...byId(...maps), '-D', 'corners', '--json'], { cwd });
    t.same([status, stderr], [0, '']);
    const { maps: rows } = JSON.parse(stdout) as { maps: Row[] };
    t.equal(rows.length, maps.length);
    t.same(
      rows.filter(({ report }) => report !== 'full'),
      [],
    );
    const found = decoded('corners');
    for (const [i, map] of maps.entries()) {
      const { name = '', flags = 0, keySize = 4, valueSize = 8, type = HASH } = (CORNERS[i] ?? [{}])[0];
      const wanted = witness(map);
      const captured = found.get(map.id);
      t.same(itemsIn(captured), wanted, name);
      const { bytes_memlock, max_entries } = bpftool('map', 'show', 'id', `${map.id}`) as Record<string, unknown>;
      t.match(captured, {
        name,
        type: types.get(type).name,
        key_size: keySize,
        value_size: valueSize,
        max_entries,
        memlock: bytes_memlock,
        frozen: CORNERS[i]?.[2] === true,
        map_extra: '0x0',
        ifindex: 0,
      });
      const bits = Object.entries(MAP_FLAG).filter(([, bit]) => (flags & bit) !== 0);
      t.same(
        captured?.map_flags,
        bits.map(([flag]) => `BPF_F_${flag}`),
      );
      const row = rows.find(({ map_id }) => map_id === map.id);
      t.match(row, { name, items: Object.keys(wanted).length });
      t.equal(row?.bytes, Object.keys(wanted).length * (map.keySize + map.valueStride));
    }
    t.match(bpfimg(['verify', 'corners'], { cwd }), { status: 0, stdout: /^(?!error)/ });
    t.equal(bpfimg(['encode', '-D', 'again'], { cwd, input: bpfimg(['decode', 'corners'], { cwd }).stdout }).status, 0);
    t.same(
      fs.readFileSync(path.join(cwd, 'again/bpfmap-data.img')),
      fs.readFileSync(path.join(cwd, 'corners/bpfmap-data.img')),
      'byte for byte what the encoder makes of the JSON',
    );
  } finally {
    for (const map of maps) map.close();
  }
});

t.test('rule 12: per-CPU items keep their padding and the number of CPUs', { skip }, async (t) => {
  using map = create({ type: PERCPU_ARRAY, valueSize: 12, maxEntries: 3 });
  const value = Buffer.from(Array.from({ length: map.valueStride }, (_, i) => i + 1));
  map.update(u32(1), value);
  await captured({ id: [String(map.id)], dir: path.join(cwd, 'percpu') });
  const [data] = dataOf(path.join(cwd, 'percpu'));
  t.equal(data?.values[1], hex(asKept(value, 12, has)));
  const [meta] = entriesOf(fs.readFileSync(path.join(cwd, 'percpu/bpfmap-meta.img')));
  t.equal(numberIn(meta?.fields ?? [], 2), sys.cpus);
});

t.test('rule 14: what fdinfo tells and what info tells, both are in the images', { skip }, async (t) => {
  const holder = await HolderProcess.start([
    { type: HASH, keySize: 4, valueSize: 4, maxEntries: 9, name: 'both.\xe4', flags: 1 },
  ]);
  try {
    const [id = 0] = holder.ids;
    using reader = BpfMap.openById(sys, id, 'ro');
    using writer = BpfMap.openById(sys, id, 'wo');
    reader.state();
    writer.freeze();
    const { rows } = await captured({ id: [String(id)], dir: path.join(cwd, 'rule14') });
    t.match(rows, [{ name: 'both.\xe4', report: 'full' }]);
    const files = entriesOf(fs.readFileSync(path.join(cwd, 'rule14/bpfmap-file.img'))).map(({ fields }) => fields);
    t.equal(files.length, 3, 'a file for each way it is open');
    const { memlock } = reader.state();
    for (const fields of files) {
      t.equal(numberIn(fields, 8), id);
      t.equal(numberIn(fields, 10), 1);
      t.equal(numberIn(fields, 11), memlock);
      t.equal(numberIn(fields, 12), 1, 'frozen');
      t.equal(bytesIn(fields, 13).toString('latin1'), 'both.\xe4');
    }
    const ways = new Map(files.map((fields) => [numberIn(fields, 1), numberIn(fields, 2)]));
    t.same([...ways.values()].sort(), [0, 1, 2]);
    const [meta] = entriesOf(fs.readFileSync(path.join(cwd, 'rule14/bpfmap-meta.img')));
    const holders = (meta?.fields ?? []).filter(({ no }) => no === 11).map(({ value }) => holderIn(value as Buffer));
    const open = (pid: number, fd: number, flags: number) => ({ pid, fd, flags });
    t.same(
      holders.map(({ file, pid, fd }) => open(pid, fd, ways.get(file) as number)).sort((a, b) => a.flags - b.flags),
      [open(process.pid, reader.fd, 0), open(process.pid, writer.fd, 1), open(holder.pid, holder.fds[0] as number, 2)],
    );
    t.ok(
      holders.every(({ flags }) => flags === 1),
      'all of them closed on exec',
    );
  } finally {
    await holder.stop();
  }
});

/** A holder in the meta image. */
function holderIn(message: Buffer): { file: number; pid: number; fd: number; flags: number } {
  const fields = entriesOf(Buffer.concat([Buffer.alloc(8), u32(message.length), message]))[0]?.fields ?? [];
  const [file = 0, pid = 0, fd = 0, flags = 0] = [1, 2, 3, 4].map((no) => numberIn(fields, no));
  return { file, pid, fd, flags };
}

t.test('a map that only a write-only file holds is read all the same', { skip }, async (t) => {
  const holder = await HolderProcess.start([
    { type: HASH, keySize: 4, valueSize: 4, maxEntries: 9, name: 'wo', flags: MAP_FLAG.WRONLY },
  ]);
  try {
    const [id = 0] = holder.ids;
    using map = BpfMap.openById(sys, id);
    map.update(u32(1), u32(2));
    map.close();
    const dir = path.join(cwd, 'wo');
    t.match((await captured({ pid: [String(holder.pid)], dir })).rows, [{ items: 1, report: 'full' }]);
    t.same([...itemsOf(dir)], [['01000000', '02000000']]);
    const files = entriesOf(fs.readFileSync(path.join(dir, 'bpfmap-file.img')));
    t.same(
      files.map(({ fields }) => numberIn(fields, 2)),
      [1],
    );
  } finally {
    await holder.stop();
  }
});

t.test('holders and pins: whose is named, and what is left out', { skip }, async (t) => {
  const { folder, remove } = bpffs();
  const spec = { type: HASH, keySize: 4, valueSize: 4, maxEntries: 9 };
  const [one, two] = [
    await HolderProcess.start([
      { ...spec, name: 'first' },
      { ...spec, name: 'second' },
    ]),
    await HolderProcess.start([{ ...spec, name: 'third' }]),
  ];
  try {
    const [first = 0, second = 0] = one.ids;
    using shared = BpfMap.openById(sys, first);
    shared.pin(path.join(folder, 'b'));
    shared.pin(path.join(folder, 'a pin'));
    const holdersOf = (dir: string) =>
      entriesOf(fs.readFileSync(path.join(cwd, dir, 'bpfmap-meta.img'))).map(({ fields }) => ({
        id: numberIn(fields, 1),
        pins: fields.filter(({ no }) => no === 10).map(({ value }) => String(value)),
        pids: fields.filter(({ no }) => no === 11).map(({ value }) => holderIn(value as Buffer).pid),
      }));
    const pins = [path.join(folder, 'a pin'), path.join(folder, 'b')];
    await captured({ id: [String(first)], dir: path.join(cwd, 'h1') });
    t.same(holdersOf('h1'), [{ id: first, pins, pids: [process.pid, one.pid].sort((a, b) => a - b) }], 'all holders');
    await captured({ pid: [String(one.pid)], dir: path.join(cwd, 'h2') });
    t.same(holdersOf('h2'), [
      { id: first, pins, pids: [one.pid] },
      { id: second, pins: [], pids: [one.pid] },
    ]);
    await captured({ pid: [String(one.pid)], fd: [String(one.fds[1])], dir: path.join(cwd, 'h3') });
    t.same(holdersOf('h3'), [{ id: second, pins: [], pids: [one.pid] }], '--pid --fd');
    await captured({ pid: [one.pid, two.pid].map(String), dir: path.join(cwd, 'h4') });
    t.same(
      holdersOf('h4').map(({ id, pids }) => [id, pids]),
      [
        [first, [one.pid]],
        [second, [one.pid]],
        [two.ids[0], [two.pid]],
      ],
    );
    await captured({
      pinned: [pins[0] as string, pins[1] as string],
      name: ['first'],
      id: [String(first)],
      dir: path.join(cwd, 'h5'),
    });
    t.equal(holdersOf('h5').length, 1, 'named four times, captured once');
    t.equal(dataOf(path.join(cwd, 'h5')).length, 1);
  } finally {
    await one.stop();
    await two.stop();
    remove();
  }
});

// ---------------------------------------------------------------------------------------------------
// CRIU's own dump

/** The kind of everything in a message, and the value of what is the same wherever the map is restored. */
function form(fields: readonly WireField[]): unknown[] {
  // The file's and the map's id are new, and each kernel counts memory in its own way.
  return fields.map(({ no, wire, value }) => [
    no,
    wire,
    no === 1 || no === 8 || no === 11 ? 0 : Buffer.isBuffer(value) ? hex(value) : value,
  ]);
}

t.test('a dump of CRIU, replayed and captured again: the same fields in the same order', { skip }, async (t) => {
  const { folder, remove } = bpffs();
  try {
    const pins = path.join(folder, 'flowd');
    t.match(bpfimg(['replay', 'flowd', '--pin', pins], { cwd }), { status: 0, stderr: '' });
    const all = fs.readdirSync(pins).flatMap((name) => ['--pinned', path.join(pins, name)]);
    t.match(bpfimg(['capture', ...all, '-D', 'again-flowd'], { cwd }), { status: 0, stderr: '' });
    const dump = path.join(cwd, 'again-flowd');

    // CRIU: a file_entry for each file, its member 21 being the map's.
    const theirs = entriesOf(fixture('flowd/files.img'))
      .map(({ fields }) => bytesIn(fields, 21))
      .filter((message) => message !== undefined)
      .map((message) => entriesOf(Buffer.concat([Buffer.alloc(8), u32(message.length), message]))[0]?.fields ?? []);
    // One of its maps is open twice, and each file has an entry.
    const once = theirs.filter(
      (fields, i) => theirs.findIndex((one) => numberIn(one, 8) === numberIn(fields, 8)) === i,
    );
    t.equal(theirs.length, once.length + 1);
    const ours = entriesOf(fs.readFileSync(path.join(dump, 'bpfmap-file.img'))).map(({ fields }) => fields);
    t.same(ours.map(form), once.map(form), 'the files, byte by byte but for the ids');
    for (const fields of ours) {
      t.same(
        fields.map(({ no }) => no),
        Array.from({ length: 14 }, (_, i) => i + 1),
      );
      t.match(bpftool('map', 'show', 'id', String(numberIn(fields, 8))), { bytes_memlock: numberIn(fields, 11) });
    }

    const name = new Map(
      [...once, ...ours].map((fields) => [numberIn(fields, 8), `${bytesIn(fields, 13)} ${numberIn(fields, 6)}`]),
    );
    const extra = (fields: WireField[]) => numberIn(fields, 2) + numberIn(fields, 3);
    const shape = (image: Buffer) => {
      const entries = entriesOf(image, extra).map(({ fields }) => [
        name.get(numberIn(fields, 1)),
        fields.map(({ no, wire, value }) => [no, wire, no === 1 ? 0 : value]),
      ]);
      return Object.fromEntries(entries) as Record<string, unknown>;
    };
    t.same(
      shape(fs.readFileSync(path.join(dump, 'bpfmap-data.img'))),
      shape(fixture('flowd/bpfmap-data.img')),
      'the data',
    );
    const items = (folder: string) =>
      Object.fromEntries(
        dataOf(folder).map(({ mapId, keys, values }) => [
          name.get(mapId),
          keys.map((key, i) => `${key}=${values[i]}`).sort(),
        ]),
      );
    t.same(items(dump), items(path.join(cwd, 'flowd')), 'and its items');
    t.match(bpfimg(['verify', 'again-flowd'], { cwd }), { status: 0, stdout: 'sound\n' });
  } finally {
    remove();
  }
});

t.test('crit reads what was captured', { skip: skip || skipWithout('crit') }, async (t) => {
  using map = create({ keySize: 3, valueSize: 5, maxEntries: 50, name: 'for.crit' });
  fillNumbers(map, 20);
  using array = create({ type: ARRAY, valueSize: 8, maxEntries: 4 });
  fillNumbers(array, 4);
  const dir = path.join(cwd, 'crit');
  await captured({ id: [String(map.id), String(array.id)], dir });
  for (const name of ['bpfmap-file.img', 'bpfmap-data.img']) {
    const image = fs.readFileSync(path.join(dir, name));
    const { entries } = JSON.parse(crit(image, 'decode')) as { entries: Record<string, unknown>[] };
    t.match(entries, [{ map_id: map.id }, { map_id: array.id }]);
    if (name === 'bpfmap-file.img')
      t.match(entries, [{ map_name: 'for.crit', key_size: 3, flags: 2, frozen: false }, { map_type: 2 }]);
    else {
      t.match(entries, [
        { count: 20, keys_bytes: 60, values_bytes: 100 },
        { count: 4, keys_bytes: 16, values_bytes: 32 },
      ]);
      const extra = Buffer.from(String(entries[1]?.extra), 'base64');
      t.same(extra.subarray(0, 16), u32(0, 1, 2, 3));
    }
    t.equal(bpfimg(['decode', '--format', 'crit', '-i', path.join(dir, name)]).stdout, crit(image, 'decode'));
  }
});

// ---------------------------------------------------------------------------------------------------
// Maps that cannot be captured, and harm that must not be done

/** A machine with only these maps, and no other process or pin. */
function quiet(t: Test, ids: readonly number[], base: Sys = sys): { sys: Sys; opened: number[] } {
  const proc = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-proc-'));
  t.teardown(() => fs.rmSync(proc, { recursive: true }));
  fs.mkdirSync(path.join(proc, 'self'));
  fs.writeFileSync(path.join(proc, 'self/mountinfo'), '');
  for (const name of ['fd', 'fdinfo']) fs.symlinkSync(`/proc/self/${name}`, path.join(proc, 'self', name));
  const opened: number[] = [];
  const left = new Set(ids);
  const kernel = new Proxy(base, {
    get(target, name) {
      if (name === 'proc') return proc;
      if (name === 'bpf') {
        return ((command, attr) => {
          if (command === 'MAP_GET_FD_BY_ID') opened.push(attr.bytes.readUInt32LE(0));
          let result = target.bpf(command, attr);
          if (command !== 'MAP_GET_NEXT_ID') return result;
          for (; result >= 0 && !left.has(attr.bytes.readUInt32LE(4)); ) {
            attr.bytes.writeUInt32LE(attr.bytes.readUInt32LE(4), 0);
            result = target.bpf(command, attr);
          }
          return result;
        }) satisfies Sys['bpf'];
      }
      const value = Reflect.get(target, name) as unknown;
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
  return { sys: kernel, opened };
}

/** A socket filter that refers to `map` and does nothing; its file descriptor. */
function loadProgram(map: BpfMap): number {
  const code = Buffer.alloc(32);
  code.writeUInt16LE(0x1118, 0); // r1 = map, by file descriptor
  code.writeInt32LE(map.fd, 4);
  code.writeUInt8(0xb7, 16); // r0 = 0
  code.writeUInt8(0x95, 24); // exit
  const attr = new Attr(ATTR.progLoad, sys)
    .set('prog_type', 1)
    .point('insns', code)
    .set('insn_cnt', 4)
    .point('license', Buffer.from('GPL\0'));
  const fd = sys.bpf('PROG_LOAD', attr);
  if (fd < 0) throw new Error(`PROG_LOAD: ${fd}`);
  return fd;
}

t.test('rule 10: a PROG_ARRAY is never opened by id', { skip }, async (t) => {
  using tail = BpfMap.create(sys, { type: 3, keySize: 4, valueSize: 4, maxEntries: 16, name: 'tail' });
  using map = create({ name: 'beside' });
  const program = loadProgram(map);
  try {
    const slot = Buffer.alloc(4);
    slot.writeUInt32LE(program);
    tail.update(u32(3), slot);
    const dir = path.join(cwd, 'tail');
    // Held by this process; nobody is seen to hold it, as when only a program does.
    for (const kernel of [spied(), quiet(t, [tail.id, map.id])]) {
      const { rows, code } = await captured({ id: [String(tail.id), String(map.id)], dir, force: true }, kernel.sys);
      t.match(rows, [
        { map_id: tail.id, name: 'tail', type: 'prog_array' },
        { map_id: map.id, report: 'full' },
      ]);
      t.equal(code, rows[0]?.report.startsWith('not supported') ? 1 : 0, rows[0]?.report ?? '');
      t.notOk(kernel.opened.includes(tail.id));
    }
    t.not(tail.lookup(u32(3)), undefined, 'its slots are as they were');
    t.same(
      dataOf(dir).map(({ mapId }) => mapId),
      [map.id],
      'where nobody is seen to hold it, it is not read',
    );
  } finally {
    sys.close(program);
  }
});

/** The real kernel; `opened` are the ids of maps opened by id. */
function spied(): { sys: Sys; opened: number[] } {
  const opened: number[] = [];
  const spy = new Proxy(sys, {
    get(target, name) {
      if (name === 'bpf') {
        return ((command, attr) => {
          if (command === 'MAP_GET_FD_BY_ID') opened.push(attr.bytes.readUInt32LE(0));
          return target.bpf(command, attr);
        }) satisfies Sys['bpf'];
      }
      const value = Reflect.get(target, name) as unknown;
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
  return { sys: spy, opened };
}

/** A folder with a plugin of this code in it. */
function library(t: Test, code: string): string {
  return t.testdir({ 'plugin.mjs': `export default (tools) => (${code});` });
}

t.test('a type that cannot be captured is named, and the others are captured', { skip }, async (t) => {
  using odd = create({ type: LRU_HASH, name: 'odd', maxEntries: 7 });
  using map = create({ name: 'usual' });
  fillNumbers(map, 3);
  const libdir = [
    library(t, "{ name: 'nothing', types: [{ number: 9, name: 'lru_hash', since: '4.10', key: 'bytes' }] }"),
  ];
  const dir = path.join(cwd, 'odd');
  const some = await captured({ id: [String(odd.id), String(map.id)], dir, libdir });
  t.equal(some.code, 1);
  t.match(some.rows, [
    {
      map_id: odd.id,
      name: 'odd',
      type: 'lru_hash',
      items: 0,
      report: /^not supported: bpfimg cannot capture lru_hash maps/,
    },
    { map_id: map.id, items: 3, report: 'full' },
  ]);
  t.same(
    dataOf(dir).map(({ mapId }) => mapId),
    [map.id],
  );
  const found = decoded('odd');
  t.match(found.get(odd.id), { name: 'odd', type: 'lru_hash', max_entries: 7 }, 'what it is, is kept');

  const { sys: machine } = quiet(t, [odd.id, map.id]);
  const all = { all: true, libdir, force: true, dir };
  t.equal((await captured(all, machine)).code, 1);
  const { code, rows } = await captured({ ...all, skipUnsupported: true }, machine);
  t.equal(code, 0);
  t.match(rows, [{ report: /^not supported/ }, { report: 'full' }]);
  t.same(
    dataOf(dir).map(({ mapId }) => mapId),
    [map.id],
  );

  t.comment('none but such: the capture that is there stays');
  const before = fs.readdirSync(dir).map((name) => [name, fs.readFileSync(path.join(dir, name))]);
  const { sys: only } = quiet(t, [odd.id]);
  for (const into of [dir, path.join(cwd, 'none')]) {
    const none = await captured({ ...all, dir: into, skipUnsupported: true }, only);
    t.match(none, { code: 1, rows: [{ map_id: odd.id, report: /^not supported/ }] });
    t.equal(none.said.at(-1), `bpfimg: ${into}: not written, no map could be captured`);
  }
  t.same(
    fs.readdirSync(dir).map((name) => [name, fs.readFileSync(path.join(dir, name))]),
    before,
  );
  t.notOk(fs.existsSync(path.join(cwd, 'none')));
});

t.test(
  'a map that becomes too large for an entry is dropped, and the next map takes its position',
  { skip },
  async (t) => {
    using large = create({ type: LRU_HASH, valueSize: 4096, maxEntries: 4000, name: 'large' });
    using map = create({ name: 'usual' });
    fillNumbers(large, 100);
    fillNumbers(map, 40);
    // As if the last of them did not fit any more, while the first are on their way.
    const giving = new MapTypes([
      ...plugins,
      {
        name: 'giving up',
        types: [{ number: LRU_HASH, name: 'lru_hash', since: '4.10', key: 'bytes' }],
        async capture(map, sink) {
          const [keys, values] = [Buffer.alloc(4 * 1000, 0xdd), Buffer.alloc(map.valueStride * 1000, 0xdd)];
          for (let i = 0; i < 10; i++) sink.put(keys, values, 1000).catch(() => {});
          throw new EntryLimit();
        },
      },
    ]);
    const live = LiveMaps.look(sys).select({ ids: [large.id, map.id], names: [], pins: [], pids: [] });
    const dir = path.join(cwd, 'large');
    const rows = await capture(sys, live, dir, giving);
    t.match(rows, [{ report: { kind: 'not supported', why: /less than 4 GiB of keys/ }, items: 0 }, { items: 40 }]);
    const [data] = dataOf(dir);
    t.match(data, { mapId: map.id, count: 40 });
    t.same(Object.fromEntries((data?.keys ?? []).map((key, i) => [key, data?.values[i]])), witness(map));
  },
);

t.test('a map that goes while it is captured, and one that went before', { skip }, async (t) => {
  const specs = [
    { type: HASH, keySize: 4, valueSize: 8, maxEntries: 30_000, name: 'going' },
    { type: HASH, keySize: 4, valueSize: 4, maxEntries: 3, name: 'gone' },
  ];
  const holder = await HolderProcess.start(specs);
  const [going = 0, gone = 0] = holder.ids;
  {
    using map = BpfMap.openById(sys, going);
    fillNumbers(map, 30_000);
  }
  const live = LiveMaps.look(sys);
  const select = (...ids: number[]) => live.select({ ids, names: [], pins: [], pids: [] });
  const [first, second] = [select(going), select(gone)];
  const leaving = new MapTypes([
    ...plugins,
    {
      name: 'leaving',
      types: [types.get(HASH)],
      async capture(map, sink, work) {
        // It is open now: its holder may go.
        await holder.stop();
        return (await types.plugin(HASH).capture?.(map, sink, work)) ?? { kind: 'full' };
      },
    },
  ]);
  const dir = path.join(cwd, 'going');
  t.match(await capture(sys, first, dir, leaving), [{ items: 30_000, report: { kind: 'full' } }]);
  t.equal(itemsOf(dir).size, 30_000);
  using there = create({ name: 'there' });
  fillNumbers(there, 5);
  const both = [...LiveMaps.look(sys).maps.filter(({ id }) => id === there.id), ...second];
  for (const lenient of [false, true]) {
    const before = names();
    const nothing = capture(sys, second, path.join(cwd, 'gone'), types, { lenient });
    const message = 'nothing to capture: all maps are gone';
    if (lenient) await t.rejects(nothing, { kind: 'notFound', message });
    else t.match(await nothing, [{ report: { kind: 'not supported', why: 'it is gone' } }]);
    t.same(names(), before, 'nothing is left');
    const rows = await capture(sys, both, path.join(cwd, `gone ${lenient}`), types, { lenient });
    t.match(rows[0], { id: there.id, items: 5, report: { kind: 'full' } }, 'it takes no other with it');
    const told = [{ id: gone, name: 'gone', report: { kind: 'not supported', why: 'it is gone' } }];
    t.match(rows.slice(1), lenient ? [] : told);
    t.equal(rows.length, lenient ? 1 : 2);
    t.same([...decoded(`gone ${lenient}`).keys()], [there.id]);
  }
  // Without CAP_SYS_ADMIN ids say nothing: that their holder has gone must do.
  const ids = ['MAP_GET_NEXT_ID', 'MAP_GET_FD_BY_ID'];
  const hidden = new MeddledSys(sys, (command) => (ids.includes(command) ? -ERRNO.EPERM : undefined));
  t.match(await capture(hidden, both, path.join(cwd, 'gone hidden'), types), [
    { id: there.id, items: 5, report: { kind: 'full' } },
    { id: gone, report: { kind: 'not supported', why: 'it is gone' } },
  ]);
  t.equal(sys.openFds().length, 1, 'the map that is there');
});

// ---------------------------------------------------------------------------------------------------
// The command

t.test('a shell whose child has the maps, and other captures of nothing', { skip }, async (t) => {
  const holder = fileURLToPath(new URL('./helpers/kernel-holder.js', import.meta.url));
  const spec = { type: HASH, keySize: 4, valueSize: 4, maxEntries: 3, name: 'below' };
  const line = '"$@" <&3 & wait';
  const shell = spawn('bash', ['-c', line, 'bash', process.execPath, holder, JSON.stringify([spec])], {
    stdio: ['ignore', 'pipe', 'inherit', 'pipe'],
  });
  const said = await new Promise<string>((resolve) => shell.stdout?.once('data', (text) => resolve(String(text))));
  const { ids } = JSON.parse(said) as { ids: number[] };
  const [pid, child] = [
    String(shell.pid),
    fs.readFileSync(`/proc/${shell.pid}/task/${shell.pid}/children`, 'latin1').trim(),
  ];
  const before = names();
  try {
    const command = fs.readFileSync(`/proc/${child}/comm`, 'utf8').trim();
    const nothing = `bpfimg: process ${pid} (bash) holds no BPF maps: nothing to capture`;
    const refused = bpfimg(['capture', '--pid', pid, '-D', 'shell'], { cwd });
    const hint = `process ${child} (${command}) below holds some: --tree takes it as well`;
    t.match(refused, { status: 1, stdout: '', stderr: `${nothing}; ${hint}\n` });
    t.same(names(), before, 'nothing is written');
    const { status, stdout } = bpfimg(['capture', '--pid', pid, '--tree', '-D', 'tree', '--json'], { cwd });
    t.equal(status, 0);
    t.match(JSON.parse(stdout), { maps: [{ map_id: ids[0], report: 'full' }] });
    t.match(decoded('tree').get(ids[0] as number)?.files, [{ fds: [{ pid: Number(child) }] }], 'with its holder');
    const listed = bpfimg(['list', '--pid', pid, '--tree', '--json']);
    t.match(JSON.parse(listed.stdout), { maps: [{ map_id: ids[0] }] });
    t.match(bpfimg(['capture', '--tree', '--id', '1', '-D', 'x'], { cwd }), { status: 2, stderr: /--tree takes/ });
    t.match(bpfimg(['capture', '--tree', '--pid', pid, '--fd', '3', '-D', 'x'], { cwd }), { status: 2 });
  } finally {
    const ended = new Promise((resolve) => shell.once('close', resolve));
    (shell.stdio[3] as import('node:stream').Writable).end();
    await ended;
  }
});

t.test('bad input: one line, and nothing is created', { skip }, async (t) => {
  const { folder, remove } = bpffs();
  using one = create({ name: 'capture_twin' });
  using two = create({ name: 'capture_twin' });
  fs.writeFileSync(path.join(cwd, 'file'), 'not a folder');
  copyDump(path.join(cwd, 'criu'));
  fs.mkdirSync(path.join(cwd, 'old'));
  fs.writeFileSync(path.join(cwd, 'old/bpfmap-data.img'), 'an older image');
  const id = String(one.id);
  try {
    const cases: readonly (readonly [args: string[], status: number, line: RegExp])[] = [
      [['-D', 'new'], 2, /^which maps\? --id, --name, --pinned, --pid, or --all$/],
      [['--id', id], 2, /where to\? -D DIR for a folder of images, or -o FILE for an archive/],
      [['--id', '4294967295', '-D', 'new'], 1, /^map 4294967295: no such map$/],
      [['--id', 'x', '-D', 'new'], 2, /^--id x: expected a number$/],
      [['--name', 'no_such_map', '-D', 'new'], 1, /^--name no_such_map: no map has this name$/],
      [
        ['--name', 'capture_twin', '-D', 'new'],
        2,
        new RegExp(`^--name capture_twin: 2 maps have that name, choose by id: ${one.id}, ${two.id}$`),
      ],
      [['--pinned', path.join(folder, 'xyzzy'), '-D', 'new'], 1, /xyzzy: nothing is pinned there$/],
      [['--pinned', 'file', '-D', 'new'], 1, /^file: BPF_OBJ_GET: .*not on a BPF file system; one is mounted at/],
      [['--pid', '4194399', '-D', 'new'], 1, /^process 4194399: no such process$/],
      [['--pid', String(process.pid), '--fd', '0', '-D', 'new'], 1, /^process \d+: its fd 0 is not a BPF map$/],
      [['--id', id, '--fd', '3', '-D', 'new'], 2, /^--fd names files of one process: give one --pid with it$/],
      [['--all', '--id', id, '-D', 'new'], 2, /^--all with other selectors: choose$/],
      [['--id', id, '--skip-unsupported', '-D', 'new'], 2, /skip-unsupported/],
      [['--id', id, '-D', 'file'], 1, /^file: not a folder$/],
      // Node 22 finds it out one call later.
      [['--id', id, '-D', 'file/new'], 1, /^file\/new: cannot (inspect|create) it: not a folder$/],
      [['--id', id, '-D', 'no/such/new'], 1, /^no\/such\/new: cannot create it: no such file or folder$/],
      [['--id', id, '-D', '/proc/new'], 1, /^\/proc\/new: cannot create it: no such file or folder$/],
      [['--id', id, '-D', 'old'], 1, /^old: it holds images already; --force replaces them$/],
      [['--id', id, '-D', 'criu'], 1, /^criu: it holds \S+\.img, so it is another dump; choose a new folder$/],
      [
        ['--id', id, '-D', 'criu', '--force'],
        1,
        /^criu: it holds \S+\.img, so it is another dump; choose a new folder$/,
      ],
      [['--id', id, '-D', 'new', '-L', 'none'], 1, /^none: cannot read it: no such file or folder$/],
      [['--id', id, '-D', ''], 2, /^D: given without text/],
    ];
    const before = contents(cwd);
    const folders = names();
    for (const [args, status, line] of cases) {
      const ran = bpfimg(['capture', ...args], { cwd });
      t.match({ ...ran, status: ran.status }, { status, signal: null, stdout: '' }, args.join(' '));
      t.match(ran.stderr, /^bpfimg: [^\n]+\n$/);
      // Only for wrong usage, the help is what helps.
      const [said = '', help] = ran.stderr.slice('bpfimg: '.length, -1).split(' (see bpfimg help capture)');
      t.match(said, line);
      t.equal(help, status === 2 ? '' : undefined);
      t.same(names(), folders);
    }
    t.same(contents(cwd), before, 'all is as it was');
  } finally {
    remove();
  }
});

t.test('--force replaces our own dump and no other file', { skip }, async (t) => {
  using map = create({ name: 'forced' });
  fillNumbers(map, 5);
  const dir = path.join(cwd, 'forced');
  await captured({ id: [String(map.id)], dir });
  fs.writeFileSync(path.join(dir, 'notes.txt'), 'mine');
  fs.chmodSync(dir, 0o755);
  fillNumbers(map, 9);
  const { code } = await captured({ id: [String(map.id)], dir, force: true });
  t.equal(code, 0);
  t.equal(itemsOf(dir).size, 9);
  t.same(fs.readdirSync(dir).sort(), ['bpfmap-data.img', 'bpfmap-file.img', 'bpfmap-meta.img', 'notes.txt']);
  t.equal(fs.readFileSync(path.join(dir, 'notes.txt'), 'utf8'), 'mine');
  for (const name of fs.readdirSync(dir).filter((one) => one.endsWith('.img'))) {
    t.equal(fs.statSync(path.join(dir, name)).mode & 0o777, 0o600, 'map contents can be secrets');
  }
  const fresh = path.join(cwd, 'fresh');
  await captured({ id: [String(map.id)], dir: fresh });
  t.equal(fs.statSync(fresh).mode & 0o777, 0o700);
  fs.mkdirSync(path.join(cwd, 'empty'));
  t.equal(
    (await captured({ id: [String(map.id)], dir: path.join(cwd, 'empty') })).code,
    0,
    'an empty folder is filled',
  );
});

t.test('what is printed', { skip }, async (t) => {
  using map = create({ name: 'printed', keySize: 4, valueSize: 4 });
  fillNumbers(map, 5);
  const table = bpfimg(['capture', ...byId(map), '-D', 'printed'], { cwd });
  t.equal(table.stderr, '', 'no progress where no terminal is');
  const [head, row, ...rest] = table.stdout.split('\n');
  t.match(head, /^ *ID +NAME +TYPE +ITEMS +SIZE +REPORT$/);
  t.match(row, new RegExp(`^ *${map.id}  printed  hash +5  40 bytes  full$`));
  t.same(rest, ['']);
  t.equal(
    bpfimg(['capture', ...byId(map), '-D', 'printed2', '--json'], { cwd }).stdout,
    `{"maps":[\n  {"map_id":${map.id},"name":"printed","type":"hash","items":5,"bytes":40,"report":"full"}]}\n`,
  );
  const early = shell(`bpfimg capture --id ${map.id} -D early | exec true; echo "\${PIPESTATUS[0]}"`, { cwd });
  t.same([early.stdout, early.stderr], ['0\n', ''], 'a reader that went away');
  t.equal(itemsOf(path.join(cwd, 'early')).size, 5, 'but the dump is there');
  const full = shell(`bpfimg capture --id ${map.id} -D full > /dev/full`, { cwd });
  t.match(full, { status: 1, stderr: /^bpfimg: standard output: cannot write it: no space left on the device\n$/ });
  const idle = await HolderProcess.start([]);
  t.match(bpfimg(['capture', '--pid', String(idle.pid), '-D', 'idle'], { cwd }), {
    status: 1,
    stdout: '',
    stderr: /^bpfimg: process \d+ \([^\n]+\) holds no BPF maps: nothing to capture\n$/,
  });
  await idle.stop();
  t.notOk(fs.existsSync(path.join(cwd, 'idle')));
});

/** A plugin whose reading lasts until it is told to end. */
const SLOW = `{
  name: 'slow',
  types: [{ number: 9, name: 'lru_hash', since: '4.10', key: 'bytes' }],
  async capture(map, sink, work) {
    const keys = new Uint8Array(map.keySize * 100);
    const values = new Uint8Array(map.valueStride * 100);
    for (let i = 0; i < Number(process.env.SLOW); i++) {
      await sink.put(keys, values, 100);
      work.progress(sink.count);
      await new Promise((go) => setTimeout(go, 50));
    }
    return tools.FULL;
  },
}`;

/** Ends when `ready` says so. */
async function until(ready: () => boolean): Promise<void> {
  for (let i = 0; !ready(); i++) {
    if (i > 1000) throw new Error('it does not come to that');
    await new Promise((go) => setTimeout(go, 10));
  }
}

function ended(child: ChildProcess): Promise<{ code: number | null; signal: string | null }> {
  return new Promise((resolve) => child.once('close', (code, signal) => resolve({ code, signal })));
}

t.test('interrupted, a capture leaves what was there before', { skip }, async (t) => {
  using map = create({ type: LRU_HASH, maxEntries: 1000, name: 'interrupted' });
  const lib = library(t, SLOW);
  const dir = path.join(cwd, 'kept');
  await captured({ id: [String(map.id)], dir });
  for (const [args, signal, code, temporary] of [
    [['-D', 'never'], 'SIGINT', 130, () => names().some((name) => name.startsWith('.never.bpfimg-'))],
    [['-D', 'kept', '--force'], 'SIGINT', 130, () => fs.readdirSync(dir).some((name) => name.startsWith('.'))],
    [['-D', 'never'], 'SIGTERM', 143, () => names().some((name) => name.startsWith('.never.bpfimg-'))],
  ] as const) {
    const [before, all] = [contents(dir), names()];
    const child = spawn(process.execPath, [BPFIMG, 'capture', ...byId(map), '-L', lib, ...args], {
      cwd,
      env: { ...process.env, SLOW: '1000000' },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let said = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => (said += text));
    await until(temporary);
    const end = ended(child);
    child.kill(signal);
    t.same(await end, { code, signal: null }, args.join(' '));
    t.same([said, contents(dir), names()], ['', before, all]);
  }
});

t.test(
  'progress: on a terminal, for what lasts longer than a second',
  { skip: skip || skipWithout('script') },
  async (t) => {
    using map = create({ type: LRU_HASH, maxEntries: 1000, name: 'progress' });
    const lib = library(t, SLOW);
    const terminal = (turns: number, dir: string) => {
      const line = `${process.execPath} ${BPFIMG} capture --id ${map.id} -L ${lib} -D ${dir}`;
      const env = { ...process.env, SLOW: String(turns), TERM: 'xterm', NO_COLOR: '1' };
      return spawnSync('script', ['-qec', line, '/dev/null'], {
        cwd,
        encoding: 'utf8',
        env,
        stdio: ['ignore', 'pipe', 'pipe'],
      }).stdout;
    };
    const long = terminal(30, 'long');
    // Each line takes the place of the one before; in the end there is none.
    const lines = long.replaceAll('\x1b', '~').split('\r~[K').slice(1);
    const last = lines.pop();
    t.ok(lines.length >= 1 && lines.length <= 10, `${lines.length} lines`);
    for (const line of lines) t.match(line, /^map \d+ \(progress\): [\d,]+ items, [\d.]+ KiB, [\d,]+ items\/s/);
    t.match(last, /^ +ID +NAME .*REPORT/);
    t.notMatch(terminal(6, 'short'), /items\/s/);
  },
);

t.test('every file descriptor was closed', { skip }, async (t) => {
  t.same(sys.openFds(), []);
  t.ok(fdCount() < 60);
});
