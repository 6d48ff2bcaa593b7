/** Capture and replay of live maps, against one thread of C that makes the same system calls. */

import { spawn, spawnSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { loadBtf } from '../../src/kernel/btf.js';
import { BpfMap, type MapSpec } from '../../src/kernel/map.js';
import { possibleCpus } from '../../src/kernel/proc.js';
import { openSys, type Sys } from '../../src/kernel/sys.js';
import { BtfWriter } from '../helpers/btf-writer.js';
import { BPFIMG, TOP } from '../helpers/command.js';
import { bpffs } from '../helpers/kernel-live.js';
import { types } from '../helpers/types.js';
import { type Measured, median, run } from './measure.js';

/** One row of the table. */
export interface LiveRow {
  readonly work: string;
  readonly ms: number;
  readonly reference: number | undefined;
  /** Median of the ratios pair by pair. */
  readonly ratio: number | undefined;
  /** The time of two threads of C, as a ratio of that of one. */
  readonly both?: number | undefined;
  /** Peak memory in MiB. */
  readonly peak: number;
  /** The largest ratio that was promised. */
  readonly budget?: number;
}

interface Size {
  readonly name: string;
  readonly type: 'hash' | 'array';
  readonly keySize: number;
  readonly valueSize: number;
  readonly count: number;
}

/** Why live maps cannot be measured here; undefined when they can. */
export function unable(): string | undefined {
  if (process.getuid?.() !== 0) return 'needs root';
  if (spawnSync('cc', ['--version']).status !== 0) return 'needs a C compiler';
  return undefined;
}

/** Fills a map with random values, and keys or indexes that are all different. */
function fillAtRandom(map: BpfMap, count: number): BpfMap {
  const batch = map.batch(Math.min(count, 10_000));
  for (let done = 0; done < count; done += batch.room) {
    const some = Math.min(batch.room, count - done);
    randomFillSync(batch.keys);
    randomFillSync(batch.values);
    for (let i = 0; i < some; i++) {
      const at = i * map.keySize;
      if (map.type === TRIE) {
        batch.keys.writeUInt32LE(32, at);
        batch.keys.writeUInt32BE(((done + i) * 2_654_435_761) >>> 0, at + 4);
      } else if (map.keySize > 0) batch.keys.writeUInt32LE(done + i, at);
      else map.update(undefined, batch.values.subarray(i * map.valueStride, (i + 1) * map.valueStride));
    }
    const { error } = map.keySize === 0 ? {} : map.updateBatch(batch, some);
    if (error) throw error;
  }
  return map;
}

function makeMap(sys: Sys, { type, keySize, valueSize, count }: Size, btf?: MapSpec['btf']): BpfMap {
  const spec = { type: type === 'hash' ? HASH : ARRAY, keySize, valueSize, maxEntries: count, name: 'bench' };
  return fillAtRandom(BpfMap.create(sys, { ...spec, ...(btf && { btf }) }), count);
}

const [HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, TRIE, ARRAY_OF_MAPS, QUEUE] = [1, 2, 5, 6, 11, 12, 22];
const NO_PREALLOC = 1;

/** Maps of one kind, which are captured and replayed. */
interface Kind {
  readonly work: string;
  readonly type: number;
  readonly keySize: number;
  readonly valueSize: number;
  readonly flags?: number;
  /** In each map. */
  readonly count: number;
  /** 1 by default. */
  readonly maps?: number;
  /** The maps are in one of these. */
  readonly outer?: boolean;
  /** What C does to read them, see reference.c. */
  readonly reads?: 'capture' | 'twice' | 'drain';
  /** Two threads of C are measured as well. */
  readonly both?: boolean;
  readonly capture: number;
  readonly replay: number;
}

/** Capture and replay of one hash and one array, with a large part of the time for reading and writing items. */
const large = (count: number, capture: number, replay: number): Kind[] => [
  { work: 'hash 16+64', type: HASH, keySize: 16, valueSize: 64, count, both: true, capture, replay },
  // Arrays stay small: the kernel allocates all of one at once.
  ...(count > 1_000_000
    ? []
    : [{ work: 'array 4+64', type: ARRAY, keySize: 4, valueSize: 64, count, both: true, capture, replay }]),
];

const many = (maps: number): Kind[] => [
  { work: `${maps} hashes`, type: HASH, keySize: 16, valueSize: 64, count: 100, maps, capture: 1.5, replay: 1.5 },
];

/** Types that take more than one call for a batch of items, or much memory for an item. */
const slow = (count: number): Kind[] => {
  const budgets = { capture: 1.2, replay: 1.2 };
  const trie = { type: TRIE, keySize: 8, valueSize: 8, flags: NO_PREALLOC, reads: 'twice' as const };
  const queue = { type: QUEUE, keySize: 0, valueSize: 64, reads: 'drain' as const };
  const maps = { type: HASH, keySize: 4, valueSize: 8, maps: count / 100, outer: true };
  // As large as 64 CPUs with values of 8 bytes.
  const perCpu = { keySize: 4, valueSize: 512 / possibleCpus() };
  return [
    { work: 'trie 8+8', ...trie, count, ...budgets },
    { work: 'queue 64', ...queue, count, ...budgets },
    { work: `array of ${count / 100} maps of 10 items`, ...maps, count: 10, ...budgets },
    { work: 'percpu_hash 4+512', type: PERCPU_HASH, ...perCpu, count: count / 2, ...budgets },
    { work: 'percpu_array 4+512', type: PERCPU_ARRAY, ...perCpu, count: 60_000, ...budgets },
  ];
};

/** Where everything is while something is measured. */
interface Bench {
  readonly sys: Sys;
  readonly folder: string;
  /** On a BPF file system. */
  readonly pins: string;
  /** The reference, compiled. */
  readonly reference: string;
  readonly runs: number;
}

async function benching<T>(folder: string, runs: number, work: (bench: Bench) => Promise<T>): Promise<T> {
  const pins = bpffs();
  try {
    return await work({
      sys: await openSys(types),
      folder,
      pins: pins.folder,
      reference: compileReference(folder),
      runs,
    });
  } finally {
    pins.remove();
  }
}

/** What costs the same however little there is to do, against starting Node. */
export function measureFixed(folder: string, runs: number): Promise<LiveRow[]> {
  return benching(folder, runs, async ({ sys, pins }) => {
    const [dump, fresh] = [path.join(folder, 'small'), path.join(pins, 'fresh')];
    const names = Array.from({ length: 10 }, (_, i) => path.join(pins, `small-${i}`));
    for (const name of names) {
      using map = makeMap(sys, { name: '', type: 'hash', keySize: 4, valueSize: 8, count: 16 });
      map.pin(name);
    }
    const against = async (work: string, clear: () => void, ...args: string[]): Promise<LiveRow> => {
      const pairs = await inPairs(
        runs,
        clear,
        () => run([BPFIMG, ...args], undefined, '/dev/null'),
        () => run(['node', '-e', '0'], undefined, '/dev/null'),
      );
      return { work, ...pairs, budget: 2 };
    };
    const removed = (place: string) => () => fs.rmSync(place, { recursive: true, force: true });
    return [
      await against('capture of one map', removed(dump), 'capture', '--pinned', names[0] as string, '-D', dump),
      await against('replay of one map', removed(fresh), 'replay', dump, '--pin', fresh),
      await against('list of ten maps', () => {}, 'list', '--pinned', pins),
    ];
  });
}

/** Sets of kinds that are measured together. */
export const KINDS = { large, many, slow } as const;

/**
 * Measures capture and replay of `kinds`, `runs` times each, against C.
 * @param busy another process keeps one CPU busy meanwhile; then C is the budget
 */
export function measureKinds(folder: string, kinds: readonly Kind[], runs: number, busy = false): Promise<LiveRow[]> {
  return benching(folder, runs, async (bench) => {
    const other = busy ? spawn('sh', ['-c', 'while :; do :; done'], { stdio: 'ignore' }) : undefined;
    try {
      const rows: LiveRow[] = [];
      for (const kind of kinds)
        rows.push(...(await measureKind(bench, busy ? { ...kind, capture: 1, replay: 1 } : kind)));
      return rows;
    } finally {
      other?.kill();
    }
  });
}

async function measureKind({ sys, folder, pins, reference, runs }: Bench, kind: Kind): Promise<LiveRow[]> {
  const { type, keySize, valueSize, flags = 0, count, maps = 1, outer = false, reads = 'capture', both = false } = kind;
  const [dump, raw, source] = [path.join(folder, 'live'), path.join(folder, 'live.raw'), path.join(pins, 'source')];
  const fresh = [path.join(pins, 'fresh'), path.join(pins, 'reference')] as const;
  const removed = (place: string) => fs.rmSync(place, { recursive: true, force: true });
  fs.mkdirSync(source);
  try {
    const ids: number[] = [];
    {
      using made = new DisposableMaps();
      const spec = { type, keySize, valueSize, flags, maxEntries: count, name: 'bench' };
      for (let i = 0; i < maps; i++) made.all.push(fillAtRandom(BpfMap.create(sys, spec), count));
      const inner = made.all[0];
      if (outer && inner) {
        const shape = { type: ARRAY_OF_MAPS, keySize: 4, valueSize: 4, maxEntries: maps, name: 'bench' };
        const map = BpfMap.create(sys, { ...shape, inner });
        for (const [i, { fd }] of made.all.entries())
          map.update(new Uint8Array(Uint32Array.of(i).buffer), new Uint8Array(Uint32Array.of(fd).buffer));
        made.all.unshift(map);
      }
      for (const [i, map] of (outer ? made.all.slice(0, 1) : made.all).entries())
        map.pin(path.join(source, `map-${i}`));
      ids.push(...made.all.map(({ id }) => id));
    }
    const c = (...args: string[]) => run([reference, ...args], undefined, '/dev/null');
    const captured = await inPairs(
      runs,
      () => {
        for (const place of [dump, raw]) removed(place);
      },
      () =>
        run(
          [BPFIMG, 'capture', '--pinned', source, '-D', dump, ...(reads === 'drain' ? ['--drain'] : [])],
          undefined,
          '/dev/null',
        ),
      () => c(reads, raw, ...ids.map(String)),
      both ? () => c('2', reads, raw, ...ids.map(String)) : undefined,
    );
    await c(reads, raw, ...ids.map(String));
    removed(source);
    // The items alone, as they are without the map of maps in front.
    const numbers = [maps, outer ? ARRAY_OF_MAPS : 0, type, keySize, valueSize, flags, count, count].map(String);
    const replayed = await inPairs(
      runs,
      () => {
        for (const place of fresh) removed(place);
        fs.mkdirSync(fresh[1]);
      },
      () => run([BPFIMG, 'replay', dump, '--pin', fresh[0]], undefined, '/dev/null'),
      () => c('replay', raw, fresh[1], ...numbers),
      both ? () => c('2', 'replay', raw, fresh[1], ...numbers) : undefined,
    );
    return [
      { work: `capture ${kind.work}`, ...captured, budget: kind.capture },
      { work: `replay ${kind.work}`, ...replayed, budget: kind.replay },
    ];
  } finally {
    for (const place of [dump, raw, source, ...fresh]) removed(place);
  }
}

/** Maps that are closed together. */
class DisposableMaps {
  readonly all: BpfMap[] = [];
  [Symbol.dispose](): void {
    for (const map of this.all) map.close();
  }
}

/** Replays into maps that exist, against C that writes all items; and a migration, against a plain replay. */
export async function measureInto(folder: string, count: number, runs: number): Promise<LiveRow[]> {
  const reference = compileReference(folder);
  const sys = await openSys(types);
  const pins = bpffs();
  try {
    const rows: LiveRow[] = [];
    for (const [name, type, keySize] of [['hash 16+64', 'hash', 16] as const, ['array 4+64', 'array', 4] as const]) {
      const size: Size = { name, type, keySize, valueSize: 64, count };
      rows.push(...(await measureTargets(sys, size, folder, pins.folder, reference, runs)));
    }
    rows.push(await measureMigration(sys, folder, pins.folder, count, runs));
    return rows;
  } finally {
    pins.remove();
  }
}

/** Replays into an empty map, and into ones in which no, every tenth or every item has another value. */
async function measureTargets(
  sys: Sys,
  size: Size,
  folder: string,
  pins: string,
  reference: string,
  runs: number,
): Promise<LiveRow[]> {
  const { name, type, keySize, valueSize, count } = size;
  const [dump, raw, pin] = [path.join(folder, 'live'), path.join(folder, 'live.raw'), path.join(pins, 'target')];
  {
    using map = makeMap(sys, size);
    await run([BPFIMG, 'capture', '--id', String(map.id), '-D', dump], undefined, '/dev/null');
    await run([reference, 'capture', raw, String(map.id)], undefined, '/dev/null');
  }
  const spec = { type: type === 'hash' ? 1 : 2, keySize, valueSize, maxEntries: count, name: 'bench' };
  const renew = () => {
    fs.rmSync(pin, { force: true });
    using made = BpfMap.create(sys, spec);
    made.pin(pin);
  };
  const ours = () => run([BPFIMG, 'replay', dump, '--into', pin], undefined, '/dev/null');
  const theirs = () => run([reference, 'into', raw, pin, String(count)], undefined, '/dev/null');
  try {
    const rows = [{ work: `an empty ${name}`, ...(await inPairs(runs, renew, ours, theirs)) }];
    await theirs();
    for (const [what, nth] of [['nothing', 0] as const, ['a tenth', 10] as const, ['everything', 1] as const]) {
      const change = () => (nth === 0 ? undefined : changeItems(sys, size, pin, raw, nth));
      const pairs = await inPairs(runs, change, ours, theirs);
      rows.push({ work: `a full ${name}, ${what} differs`, ...pairs });
    }
    return rows;
  } finally {
    for (const one of [dump, raw, pin]) fs.rmSync(one, { recursive: true, force: true });
  }
}

/** Gives every `nth` item another value than the one in the reference's file. */
function changeItems(sys: Sys, { keySize, valueSize, count }: Size, pin: string, raw: string, nth: number): void {
  using map = BpfMap.openPinned(sys, pin);
  const batch = map.batch(10_000);
  const file = fs.openSync(raw, 'r');
  for (let done = 0; done < count; done += batch.room) {
    const some = Math.min(batch.room, count - done);
    fs.readSync(file, batch.keys, 0, some * keySize, done * keySize);
    fs.readSync(file, batch.values, 0, some * valueSize, count * keySize + done * valueSize);
    for (let i = 0; i < some; i += nth)
      batch.values.writeUInt8(~batch.values.readUInt8(i * valueSize) & 255, i * valueSize);
    const { error } = map.updateBatch(batch, some);
    if (error) throw error;
  }
  fs.closeSync(file);
}

/** `replay --like` of a map whose values got a wider member. C is the plain replay of the same dump. */
async function measureMigration(sys: Sys, folder: string, pins: string, count: number, runs: number): Promise<LiveRow> {
  const btfOf = (counter: number) => {
    const writer = new BtfWriter();
    const [u32, u64] = [writer.int('__u32', 4), writer.int('__u64', 8)];
    const key = writer.struct(
      'key',
      16,
      [0, 1, 2, 3].map((i) => ({ name: `k${i}`, type: u32, at: 32 * i })),
    );
    const members = [{ name: 'counter', type: counter === 4 ? u32 : u64, at: 0 }];
    for (let i = 0; i < 7; i++) members.push({ name: `m${i}`, type: u64, at: 64 * (i + 1) });
    const value = writer.struct('value', 64, members);
    return { fd: loadBtf(sys, writer.bytes()), keyType: key, valueType: value };
  };
  const [dump, like, fresh] = [path.join(folder, 'old'), path.join(pins, 'bench'), path.join(pins, 'fresh')];
  const [before, after] = [btfOf(4), btfOf(8)];
  try {
    {
      using map = makeMap(sys, { name: '', type: 'hash', keySize: 16, valueSize: 64, count }, before);
      await run([BPFIMG, 'capture', '--id', String(map.id), '-D', dump], undefined, '/dev/null');
      const spec = { type: 1, keySize: 16, valueSize: 64, maxEntries: count, name: 'bench', btf: after };
      using wanted = BpfMap.create(sys, spec);
      wanted.pin(like);
    }
    const clear = () => fs.rmSync(fresh, { recursive: true, force: true });
    const replay = (...args: string[]) =>
      run([BPFIMG, 'replay', dump, '--pin', fresh, ...args], undefined, '/dev/null');
    const pairs = await inPairs(
      runs,
      clear,
      () => replay('--like', `pinned:${like}`),
      () => replay(),
    );
    clear();
    return { work: '`replay --like`, a wider member (plain `replay`)', ...pairs };
  } finally {
    for (const { fd } of [before, after]) sys.close(fd);
    for (const one of [dump, like]) fs.rmSync(one, { recursive: true, force: true });
  }
}

function compileReference(folder: string): string {
  const reference = path.join(folder, 'reference');
  const compiled = spawnSync('cc', ['-O2', '-pthread', '-o', reference, path.join(TOP, 'test/bench/reference.c')]);
  if (compiled.status !== 0) throw new Error(`reference.c: ${compiled.stderr}`);
  return reference;
}

/** Sources that are no dumps: a live map, an archive, a pipe. C is what the row says it is compared with. */
export async function measureSources(folder: string, count: number, runs: number): Promise<LiveRow[]> {
  const sys = await openSys(types);
  const pins = bpffs();
  const map = makeMap(sys, { name: '', type: 'hash', keySize: 16, valueSize: 64, count });
  try {
    const pin = path.join(pins.folder, 'source');
    map.pin(pin);
    const [null_, dump, archive] = ['/dev/null', path.join(folder, 'whole'), path.join(folder, 'large.tar')];
    const nothing = () => {};
    const clear = () => fs.rmSync(dump, { recursive: true, force: true });
    const tool = () => run(['bpftool', '-j', 'map', 'dump', 'pinned', pin], undefined, null_);
    const reading = (command: string) =>
      inPairs(Math.min(runs, 3), nothing, () => run([BPFIMG, command, `pinned:${pin}`], undefined, null_), tool);
    const [shown, decoded] = [await reading('show'), await reading('decode')];
    const shell = `"${BPFIMG}" capture --pinned "${pin}" -o - 2>/dev/null | cat >/dev/null`;
    const piped = await inPairs(
      runs,
      clear,
      () => run(['bash', '-c', shell], undefined, null_),
      () => run([BPFIMG, 'capture', '--pinned', pin, '-D', dump], undefined, null_),
    );
    await run([BPFIMG, 'capture', '--pinned', pin, '-D', dump], undefined, null_);
    // The memory of a process, which nothing reads here.
    fs.writeFileSync(path.join(dump, 'pages-1.img'), '');
    fs.truncateSync(path.join(dump, 'pages-1.img'), 1024 ** 3);
    spawnSync('tar', ['-C', dump, '-cf', archive, '.']);
    const listed = await inPairs(
      runs,
      nothing,
      () => run([BPFIMG, 'list', archive], undefined, null_),
      () => run(['node', '-e', '0'], undefined, null_),
    );
    return [
      { work: '`show pinned:PATH` (`bpftool -j map dump`)', ...shown },
      { work: '`decode pinned:PATH` (the same)', ...decoded },
      { work: '`capture -o -` into a pipe (`capture -D`)', ...piped },
      { work: '`list` of a tar of 1 GiB (`node -e 0`)', ...listed },
    ];
  } finally {
    map.close();
    pins.remove();
  }
}

/** Lets the kernel free earlier maps, which it does on another thread, and write back written data. */
function rest(): Promise<void> {
  spawnSync('sync');
  return new Promise((resolve) => setTimeout(resolve, 500));
}

/** Typed JSON of `count` items with a 16-byte key and a value of 8 fields, against bpftool's of the same map. */
export async function measureTyped(folder: string, count: number, runs: number): Promise<LiveRow[]> {
  const writer = new BtfWriter();
  const [u32, u64] = [writer.int('__u32', 4), writer.int('__u64', 8)];
  const struct = (name: string, type: number, size: number, members: number) =>
    writer.struct(
      name,
      size * members,
      Array.from({ length: members }, (_, i) => ({ name: `${name}_${i}`, type, at: 8 * size * i })),
    );
  const [keyType, valueType] = [struct('key', u32, 4, 4), struct('value', u64, 8, 8)];
  const sys = await openSys(types);
  const fd = loadBtf(sys, writer.bytes());
  const size: Size = { name: '', type: 'hash', keySize: 16, valueSize: 64, count };
  const map = makeMap(sys, size, { fd, keyType, valueType });
  sys.close(fd);
  const [dump, json] = [path.join(folder, 'typed'), path.join(folder, 'typed.json')];
  try {
    await run([BPFIMG, 'capture', '--id', String(map.id), '-D', dump], undefined, '/dev/null');
    const tool = await run(['bpftool', '-j', 'map', 'dump', 'id', String(map.id)], undefined, json);
    const all: Measured[] = [];
    for (let i = 0; i < runs; i++) all.push(await run([BPFIMG, 'decode', dump], undefined, json));
    const [ms, peak] = [median(all.map((one) => one.ms)), Math.max(...all.map((one) => one.peak))];
    const work = 'decode to typed items (C: bpftool -j map dump)';
    return [{ work, ms, reference: tool.ms, ratio: ms / tool.ms, peak, budget: 1 }];
  } finally {
    map.close();
    fs.rmSync(dump, { recursive: true, force: true });
    fs.rmSync(json, { force: true });
  }
}

/**
 * Runs the reference and ours in turn, each after `clear`: memory that was freed shortly before is faster than other.
 * @param both two threads of the reference
 */
async function inPairs(
  runs: number,
  clear: () => void,
  ours: () => Promise<Measured>,
  theirs: () => Promise<Measured>,
  both?: () => Promise<Measured>,
): Promise<Omit<LiveRow, 'work'>> {
  const rounds: { own: Measured; other: Measured; two: Measured | undefined }[] = [];
  const measured = async (what: () => Promise<Measured>) => {
    clear();
    await rest();
    return what();
  };
  // The first round fills caches, and is not counted.
  for (let i = 0; i <= runs; i++) {
    const other = await measured(theirs);
    const two = both && (await measured(both));
    const own = await measured(ours);
    if (i > 0) rounds.push({ own, other, two });
  }
  return {
    ms: median(rounds.map(({ own }) => own.ms)),
    reference: median(rounds.map(({ other }) => other.ms)),
    ratio: median(rounds.map(({ own, other }) => own.ms / other.ms)),
    both: both && median(rounds.map(({ two, other }) => (two?.ms ?? 0) / other.ms)),
    peak: Math.max(...rounds.map(({ own }) => own.peak)),
  };
}
