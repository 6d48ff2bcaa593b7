/** Capture and replay of live maps, against one thread of C that makes the same system calls. */

import { spawnSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { loadBtf } from '../../src/kernel/btf.js';
import { BpfMap, type MapSpec } from '../../src/kernel/map.js';
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
  /** Peak memory in MiB. */
  readonly peak: number;
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

function makeMap(sys: Sys, { type, keySize, valueSize, count }: Size, btf?: MapSpec['btf']): BpfMap {
  const map = BpfMap.create(sys, {
    type: type === 'hash' ? 1 : 2,
    keySize,
    valueSize,
    maxEntries: count,
    name: 'bench',
    ...(btf ? { btf } : {}),
  });
  const batch = map.batch(10_000);
  for (let done = 0; done < count; done += batch.room) {
    randomFillSync(batch.keys);
    randomFillSync(batch.values);
    // Keys that are all different, and the indexes of an array.
    for (let i = 0; i < batch.room; i++) batch.keys.writeUInt32LE(done + i, i * keySize);
    const { error } = map.updateBatch(batch, Math.min(batch.room, count - done));
    if (error) throw error;
  }
  return map;
}

/** Measures capture and replay of `count` items, `runs` times each. */
export async function measureLive(folder: string, count: number, runs: number): Promise<LiveRow[]> {
  const reference = compileReference(folder);
  const sys = await openSys(types);
  const pins = bpffs();
  try {
    const rows: LiveRow[] = [];
    const sizes: Size[] = [{ name: 'hash 16+64', type: 'hash', keySize: 16, valueSize: 64, count }];
    // Arrays stay small: the kernel allocates all of one at once.
    if (count <= 1_000_000) sizes.push({ name: 'array 4+64', type: 'array', keySize: 4, valueSize: 64, count });
    for (const size of sizes) rows.push(...(await measureSize(sys, size, folder, pins.folder, reference, runs)));
    return rows;
  } finally {
    pins.remove();
  }
}

async function measureSize(
  sys: Sys,
  size: Size,
  folder: string,
  pins: string,
  reference: string,
  runs: number,
): Promise<LiveRow[]> {
  const map = makeMap(sys, size);
  const pin = path.join(pins, 'source');
  map.pin(pin);
  const [dump, raw, null_] = [path.join(folder, 'live'), path.join(folder, 'live.raw'), '/dev/null'];
  const { name, type, keySize, valueSize, count } = size;
  try {
    const captured = await inPairs(
      runs,
      () => fs.rmSync(dump, { recursive: true, force: true }),
      () => run([BPFIMG, 'capture', '--id', String(map.id), '-D', dump], undefined, null_),
      () => run([reference, 'capture', String(map.id), raw], undefined, null_),
    );
    const tool = await run(
      ['bpftool', '-j', 'map', 'dump', 'id', String(map.id)],
      undefined,
      path.join(folder, 'tool'),
    );
    fs.rmSync(path.join(folder, 'tool'));
    map.close();
    fs.rmSync(pin);
    const fresh = path.join(pins, 'fresh');
    const numbers = [type === 'hash' ? 1 : 2, keySize, valueSize, count, count].map(String);
    const replayed = await inPairs(
      runs,
      () => fs.rmSync(fresh, { recursive: true, force: true }),
      () => run([BPFIMG, 'replay', dump, '--pin', fresh], undefined, null_),
      () => run([reference, 'replay', raw, ...numbers], undefined, null_),
    );
    return [
      { work: `capture ${name}`, ...captured },
      { work: `\`bpftool -j map dump\` ${name}`, ms: tool.ms, reference: undefined, ratio: undefined, peak: tool.peak },
      { work: `replay ${name}`, ...replayed },
    ];
  } finally {
    map.close();
    fs.rmSync(dump, { recursive: true, force: true });
    fs.rmSync(raw, { force: true });
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
    await run([reference, 'capture', String(map.id), raw], undefined, '/dev/null');
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
    const rows = [{ work: `an empty ${name}`, ...(await inPairs(runs, renew, ours, theirs, renew)) }];
    await theirs();
    for (const [what, nth] of [['nothing', 0] as const, ['a tenth', 10] as const, ['everything', 1] as const]) {
      const change = () => (nth === 0 ? undefined : changeItems(sys, size, pin, raw, nth));
      const pairs = await inPairs(runs, change, ours, theirs, change);
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
      clear,
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
  const compiled = spawnSync('cc', ['-O2', '-o', reference, path.join(TOP, 'test/bench/reference.c')]);
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
      () => {
        clear();
        return run([BPFIMG, 'capture', '--pinned', pin, '-D', dump], undefined, null_);
      },
    );
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
    return [{ work, ms, reference: tool.ms, ratio: ms / tool.ms, peak }];
  } finally {
    map.close();
    fs.rmSync(dump, { recursive: true, force: true });
    fs.rmSync(json, { force: true });
  }
}

/** Runs the reference and ours in turn, after `clear`, and `between` the two. */
async function inPairs(
  runs: number,
  clear: () => void,
  ours: () => Promise<Measured>,
  theirs: () => Promise<Measured>,
  between = () => {},
): Promise<Omit<LiveRow, 'work'>> {
  const pairs: { own: Measured; other: Measured }[] = [];
  // The first pair fills caches, and is not counted.
  for (let i = 0; i <= runs; i++) {
    clear();
    await rest();
    const other = await theirs();
    between();
    await rest();
    const own = await ours();
    if (i > 0) pairs.push({ own, other });
  }
  return {
    ms: median(pairs.map(({ own }) => own.ms)),
    reference: median(pairs.map(({ other }) => other.ms)),
    ratio: median(pairs.map(({ own, other }) => own.ms / other.ms)),
    peak: Math.max(...pairs.map(({ own }) => own.peak)),
  };
}
