/** Values of many MiB: a command holds one copy of one at most, and what else it needs is as small as ever. */

import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { openDump } from '../src/dump/model.js';
import { BPF_COMMAND, MAP_FLAG } from '../src/kernel/abi.js';
import { BpfMap } from '../src/kernel/map.js';
import { ERRNO, openSys } from '../src/kernel/sys.js';
import { blank, MapTypes, type Plugin, type Span } from '../src/maptype.js';
import { planMap } from '../src/replay/plan.js';
import { replay } from '../src/replay/replay.js';
import { bpfimg, denying, measured, type RunOptions } from './helpers/command.js';
import { blob, COMMON, entry, scalar, words } from './helpers/images.js';
import { bpffs, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import { Random } from './helpers/random.js';
import { dumpOf } from './helpers/replay.js';
import { types } from './helpers/types.js';

t.setTimeout(patience(300_000));
const skip = await skipWithoutMaps();
const sys = await openSys(types);
const [HASH, ARRAY] = [1, 2];
const MIB = 2 ** 20;
/** MiB beside one value: of Node, of windows, of what waits to be written. */
const ELSE = 80;

/** A folder, and one for pins, that go away. */
function place(t: Test): { folder: string; pins: string } {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-long-'));
  const pins = bpffs();
  t.teardown(() => {
    pins.remove();
    fs.rmSync(folder, { recursive: true });
  });
  return { folder, pins: pins.folder };
}

/** Pins a map whose values are random bytes. */
function pinned(pin: string, type: number, valueSize: number, count: number, flags = 0): void {
  using map = BpfMap.create(sys, { type, keySize: 4, valueSize, maxEntries: count, flags, name: 'long' });
  const value = Buffer.alloc(valueSize, new Random(count).bytes(1_000_003));
  for (let i = 0; i < count; i++) {
    value.writeUInt32LE(i + 1);
    map.update(u32(i), value);
  }
  map.pin(pin);
}

/** Captures and replays the map that is pinned, and holds the peak memory of all against `most` MiB. */
function carry(t: Test, pin: string, folder: string, most: number, options: RunOptions = {}): void {
  const small = (...args: string[]) => {
    const { status, stderr, peak } = measured(args, options);
    t.match({ status, stderr }, { status: 0, stderr: '' }, args.join(' '));
    t.ok(peak <= most, `${args.slice(0, 1)} ${args.at(-1)}: ${peak} MiB, at most ${most}`);
  };
  const [dump, again] = [path.join(folder, 'dump'), path.join(folder, 'again')];
  small('capture', '--pinned', pin, '-D', dump);
  // One of the two is enough for the kernel's memory.
  fs.rmSync(pin);
  const fresh = path.join(path.dirname(pin), 'fresh');
  for (const verify of [[], ['--verify']]) {
    small('replay', dump, '--pin', fresh, ...verify);
    if (verify.length > 0) small('capture', '--pinned', path.join(fresh, 'long'), '-D', again);
    fs.rmSync(fresh, { recursive: true });
  }
  small('diff', dump, again);
}

for (const [what, flags, options] of [
  ['an array', 0, {}],
  ['an array that can be mapped', MAP_FLAG.MMAPABLE, {}],
  ['an array without batches', 0, denying(ERRNO.EINVAL, BPF_COMMAND.MAP_LOOKUP_BATCH, BPF_COMMAND.MAP_UPDATE_BATCH)],
] as const) {
  t.test(`${what}: one value of 40 MiB`, { skip }, async (t) => {
    const { folder, pins } = place(t);
    const pin = path.join(pins, 'long');
    pinned(pin, ARRAY, 40 * MIB, 1, flags);
    carry(t, pin, folder, 40 + ELSE, options);
  });
}

for (const flags of [0, MAP_FLAG.MMAPABLE]) {
  t.test(`values of 16 MiB and 4 bytes, flags ${flags}`, { skip }, async (t) => {
    const { folder, pins } = place(t);
    const pin = path.join(pins, 'long');
    // With padding behind each value, no second one begins at a page.
    pinned(pin, ARRAY, 16 * MIB + 4, 4, flags);
    // Of what can be mapped, a window may hold three of them, and more of its pages.
    carry(t, pin, folder, (flags === 0 ? 16 : 64) + ELSE);
  });
}

t.test('hash tables: values of almost 4 MiB', { skip }, async (t) => {
  const { folder, pins } = place(t);
  const pin = path.join(pins, 'long');
  pinned(pin, HASH, 4_100_000, 16);
  carry(t, pin, folder, 200);
});

t.test('what a document has of a long value goes through in pieces', { skip }, async (t) => {
  const { folder, pins } = place(t);
  const pin = path.join(pins, 'long');
  pinned(pin, ARRAY, 24 * MIB, 1);
  const [dump, document, other] = ['dump', 'document.json', 'other'].map((name) => path.join(folder, name)) as [
    string,
    string,
    string,
  ];
  t.equal(bpfimg(['capture', '--pinned', pin, '-D', dump]).status, 0);
  for (const args of [
    ['decode', dump, '-o', document],
    ['encode', document, '-D', other],
    ['diff', document, dump],
    ['diff', other, dump, '--json'],
    ['verify', other],
    ['show', other],
  ]) {
    const { status, peak } = measured(args);
    t.equal(status, 0, args.join(' '));
    t.ok(peak <= ELSE, `${args[0]}: ${peak} MiB`);
  }
  const [one, two] = [dump, other].map((name) => fs.readFileSync(path.join(name, 'bpfmap-data.img')));
  t.ok(one?.equals(two as Buffer));
  // Every row differs, and only some are shown.
  fs.writeFileSync(path.join(other, 'bpfmap-data.img'), (two as Buffer).fill(0, 64));
  const { status, peak } = measured(['diff', dump, other]);
  t.equal(status, 1);
  t.ok(peak <= 120, `diff: ${peak} MiB`);
});

t.test('an entry of very many small values', async (t) => {
  const folder = t.testdir();
  const [file, text, back] = ['x.img', 'x.json', 'y.img'].map((name) => path.join(folder, name)) as [
    string,
    string,
    string,
  ];
  const put = (magic: number, ...fields: Uint8Array[]) => fs.writeFileSync(file, imageOf(magic, fields));
  const many = (field: Buffer) => Buffer.alloc(Math.floor((4 * MIB - 100) / field.length) * field.length, field);
  // An epoll set: id, flags, owner, and what it watches.
  const fields = (count: number) => Array.from({ length: count }, (_, i) => scalar(i + 1, 1));
  put(0x45023858, scalar(1, 1), scalar(2, 2), blob(3, ...fields(5)), many(blob(4, ...fields(4))));
  for (const [dialect, most] of [
    [['items'], 190],
    [['ndjson'], 190],
    // Numbers are text there.
    [['crit', '--pretty'], 250],
  ] as const) {
    const decoded = measured(['decode', file, '-o', text, '--format', ...dialect]);
    t.match(decoded, { status: 0, stderr: '' });
    t.ok(decoded.peak <= most, `${dialect.join(' ')}: ${decoded.peak} MiB`);
    const encoded = measured(['encode', text, '-o', back]);
    t.match(encoded, { status: 0, stderr: '' });
    t.ok(encoded.peak <= 190, `encode: ${encoded.peak} MiB`);
    t.ok(fs.readFileSync(back).equals(fs.readFileSync(file)));
  }

  t.comment('more than that');
  put(0x6d667062, scalar(1, 1), many(blob(13, blob(1, Buffer.alloc(0)))));
  const refused = measured(['decode', file, '-o', text]);
  t.match(refused, { status: 1, stderr: /^bpfimg: .*: entry 0 .*: references: more values than bpfimg takes in one/ });
  t.ok(refused.peak <= 190, `${refused.peak} MiB`);
  const list = `[${'{},'.repeat(650_000)}{}]`;
  const members = ['files', 'meta', 'types', 'fds'].map((name) => `"${name}":${list}`);
  fs.writeFileSync(text, `{"format":"bpfimg-maps/1","maps":[{${members}}]}`);
  const document = measured(['encode', text, '-D', path.join(folder, 'dump')]);
  t.match(document, { status: 1, stderr: /^bpfimg: .*: \/maps\/0\/meta\/\d+: more values than any entry can have/ });
  t.ok(document.peak <= 190, `${document.peak} MiB`);
});

/** A CRIU image of one entry. */
function imageOf(magic: number, fields: readonly Uint8Array[]): Buffer {
  return Buffer.concat([words(COMMON, magic), entry(Buffer.concat(fields))]);
}

/** Replays a dump of one array of long values, which `change` meddles with after it was filled. */
async function filled(t: Test, flags: number, items: [Buffer, Buffer][], max: number, change?: (map: BpfMap) => void) {
  const value = items[0]?.[1].length ?? 0;
  const dump = await openDump(dumpOf(t.testdir(), { id: 1, type: ARRAY, value, max, flags, items }));
  const { types: rows, ...hooks } = types.plugin(ARRAY);
  const meddling: Plugin = {
    ...hooks,
    types: rows,
    async replay(map, ...more) {
      const report = await hooks.replay?.(map, ...more);
      change?.(map);
      return report ?? { kind: 'not supported', why: '' };
    },
  };
  const plans = dump.maps.map((map) => planMap(dump, map, new MapTypes([meddling]), { cpus: sys.cpus }));
  try {
    const [fresh] = await replay(sys, plans, { verify: true });
    t.teardown(() => fresh?.map.close());
    return fresh?.map as BpfMap;
  } finally {
    dump.close();
  }
}

for (const flags of [0, MAP_FLAG.MMAPABLE]) {
  t.test(`order, repeats, zeros and ends of long values, flags ${flags}`, { skip }, async (t) => {
    const size = 5 * MIB + 12;
    const value = (byte: number) => Buffer.alloc(size, byte);
    const end = value(0);
    end[size - 1] = 7;
    const items: [Buffer, Buffer][] = [
      [u32(3), end],
      [u32(2), value(1)],
      [u32(1), value(2)],
      [u32(2), value(0)],
      [u32(3), end],
    ];
    const map = await filled(t, flags, items, 4);
    t.same(
      [0, 1, 2, 3].map((index) => Buffer.compare(map.lookup(u32(index)) ?? value(9), index === 3 ? end : value(0))),
      [0, 1, 0, 0],
    );
    t.equal(Buffer.compare(map.lookup(u32(1)) ?? end, value(2)), 0);
    // Zero needs no place, all else does.
    await filled(t, flags, [[u32(9), value(0)]], 4);
    await t.rejects(filled(t, flags, [[u32(9), end]], 4), {
      message: /^.*map 1 \(m\), item 09000000: BPF_MAP_UPDATE_ELEM: E2BIG/,
    });
    const spoilt = (map: BpfMap) => {
      const last = Buffer.from(map.lookup(u32(3)) ?? []);
      last[size - 1] = 8;
      map.update(u32(3), last);
    };
    await t.rejects(filled(t, flags, items, 4, spoilt), {
      message: /item 03000000: read back, it has a different value than in the image$/,
    });
  });
}

t.test('a mapped array whose items are in another order', { skip }, async (t) => {
  // More than a window, of values that are not long.
  const count = 23;
  const value = (i: number) => Buffer.alloc(3 * MIB + 4, i + 1);
  const items = Array.from({ length: count }, (_, i): [Buffer, Buffer] => {
    const index = (i * 7) % count;
    return [u32(index), value(index)];
  });
  const map = await filled(t, MAP_FLAG.MMAPABLE, items, count);
  const wrong = items.filter(([index, bytes]) => Buffer.compare(map.lookup(index) ?? value(99), bytes) !== 0);
  t.equal(wrong.length, 0);
});

t.test('bytes that are blanked, in a part of a value', async (t) => {
  const spans: readonly Span[] = [
    { offset: 3, size: 5 },
    { offset: 20, size: 3, count: 7, stride: 8 },
    { offset: 90, size: 2, count: 4 },
  ];
  const whole = Buffer.alloc(110, 255);
  blank(whole, 0, spans);
  t.equal(whole.filter((byte) => byte === 0).length, 5 + 21 + 8);
  for (let from = 0; from < 110; from++) {
    for (let to = from; to <= 110; to += 7) {
      const part = Buffer.alloc(to - from, 255);
      blank(part, -from, spans);
      if (!part.equals(whole.subarray(from, to))) t.fail(`${from} to ${to}`);
    }
  }
});

t.test('memory may be mapped from any byte on', { skip }, async (t) => {
  using map = BpfMap.create(sys, {
    type: ARRAY,
    keySize: 4,
    valueSize: 8,
    maxEntries: 4096,
    flags: MAP_FLAG.MMAPABLE,
  });
  for (let i = 0; i < 4096; i++) map.update(u32(i), u32(i, 0));
  for (const index of [1, 511, 512, 513, 4095]) {
    using memory = map.mmap({ offset: 8 * index, length: 8 });
    t.same(memory.bytes, u32(index, 0), `${index}`);
  }
});
