/** Maps that are memory: ring buffers and arenas. Programs in the kernel are the witnesses: they read what was put in. */

import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { Ring, recordsEnd } from '../plugins/ring/memory.js';
import { BpfMap } from '../src/kernel/map.js';
import { openSys } from '../src/kernel/sys.js';
import { dataOf } from './helpers/capture.js';
import { TOP } from './helpers/command.js';
import { skipWithout } from './helpers/crit.js';
import { bpffs, bpftool, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { must } from './helpers/objects.js';
import { cli } from './helpers/replay.js';
import { types } from './helpers/types.js';

const skip = await skipWithoutMaps();
const sys = await openSys(types);
const [RINGBUF, USER_RINGBUF, ARENA] = [27, 31, 33] as const;

interface Row {
  readonly map_id: number;
  readonly items: number;
  readonly report: string;
  readonly pin: string;
}

/** Runs a command that tells rows as JSON; the only row. */
async function told(t: Test, ...args: readonly string[]): Promise<Row> {
  const done = await cli([...args, '--json']);
  t.equal(done.status, 0, `${args[0]}: ${done.stderr}`);
  return (JSON.parse(done.stdout) as { maps: Row[] }).maps[0] as Row;
}

/** A folder for images, and one for pins. */
function place(t: Test) {
  const folder = t.testdir();
  const pins = bpffs();
  t.teardown(() => pins.remove());
  return { dump: path.join(folder, 'dump'), input: path.join(folder, 'input'), pins: pins.folder };
}

/** Programs of an object, loaded with this map in place of their own. */
function load(here: ReturnType<typeof place>, object: string, name: string, map: string, to: string): string {
  const at = path.join(here.pins, to);
  const file = path.join(TOP, 'fixtures/btf', object);
  bpftool('prog', 'loadall', file, at, 'map', 'name', name, 'pinned', map, 'pinmaps', `${at}_maps`);
  return at;
}

function run(here: ReturnType<typeof place>, program: string): void {
  fs.writeFileSync(here.input, Buffer.alloc(14));
  bpftool('prog', 'run', 'pinned', program, 'data_in', here.input);
}

// ---------------------------------------------------------------------------------------------------
// Ring buffers

const [BUSY, DISCARD] = [0x8000_0000, 0x4000_0000];

/** Writes records where the last one ended, as libbpf does. */
function write(map: BpfMap, ...records: readonly (readonly [text: string, bits?: number])[]): void {
  using ring = new Ring(map, true);
  const size = BigInt(map.maxEntries);
  for (const [text, bits = 0] of records) {
    const bytes = Buffer.alloc(8 + Math.ceil(text.length / 8) * 8);
    bytes.writeUInt32LE((text.length | bits) >>> 0);
    bytes.write(text, 8);
    // Byte by byte, for it may go on at the ring's beginning.
    for (const [i, byte] of bytes.entries()) ring.data[Number((ring.producer + BigInt(i)) % size)] = byte;
    ring.producer += BigInt(bytes.length);
  }
}

/** The records that the program has read since it was loaded. */
function seen(programs: string): string[] {
  type Item = { formatted: { key: number; value: { length: number; bytes: number[] } } };
  const items = bpftool('map', 'dump', 'pinned', `${programs}_maps/seen`) as Item[];
  const values = items.map(({ formatted }) => formatted.value);
  const count = values[15]?.length ?? 0;
  return values.slice(0, count).map(({ length, bytes }) => Buffer.from(bytes.slice(0, length)).toString());
}

t.test('unread records of a USER_RINGBUF: programs read the same from the fresh one', { skip }, async (t) => {
  const here = place(t);
  const pin = path.join(here.pins, 'live');
  using map = BpfMap.create(sys, { type: USER_RINGBUF, keySize: 0, valueSize: 0, maxEntries: 4096, name: 'requests' });
  map.pin(pin);
  // Positions that are far from 0, and records that go over the border.
  const before = load(here, 'rings.o', 'requests', pin, 'before');
  write(map, ['x'.repeat(4000)], ['gone']);
  run(here, path.join(before, 'drain'));
  t.match(seen(before), [/^x{28}$/, 'gone']);
  const records = [['first'], ['dropped', DISCARD], ['over the border of it all'], [''], ['last one']] as const;
  write(map, ...records);

  const captured = await told(t, 'capture', '--id', String(map.id), '-D', here.dump);
  t.equal(captured.report, 'full');
  const [data] = dataOf(here.dump);
  t.equal(data?.values.join(''), image(records), 'headers and all, in order');
  using ring = new Ring(map);
  t.equal(Number(ring.producer - ring.consumer), (data?.values.join('').length as number) / 2, 'nothing was taken out');
  const decoded = JSON.parse((await cli(['decode', here.dump])).stdout);
  t.same(decoded.maps[0].items[1], { key: '', value: Buffer.from('first\0\0\0').toString('hex') });
  const sound = await cli(['verify', here.dump]);
  t.notMatch(sound.stdout + sound.stderr, /key-size|value-size|error/);

  const replayed = await told(t, 'replay', here.dump, '--pin', path.join(here.pins, 'fresh'), '--verify');
  t.equal(replayed.report, 'full');
  const after = load(here, 'rings.o', 'requests', replayed.pin, 'after');
  run(here, path.join(after, 'drain'));
  const whole = ['first', 'over the border of it all', '', 'last one'];
  t.same(seen(after), whole, 'what was to be skipped is skipped');
  run(here, path.join(before, 'drain'));
  t.same(seen(before).slice(2), whole, 'as from the live one');

  const document = (await cli(['decode', here.dump])).stdout;
  const again = `${here.dump}-again`;
  t.equal((await cli(['encode', '-D', again], { input: document })).status, 0);
  t.same(
    fs.readFileSync(path.join(again, 'bpfmap-data.img')),
    fs.readFileSync(path.join(here.dump, 'bpfmap-data.img')),
  );
});

/** Records as they are in memory, in hex. */
function image(records: readonly (readonly [text: string, bits?: number])[]): string {
  const parts = records.map(([text, bits = 0]) =>
    Buffer.concat([u32((text.length | bits) >>> 0, 0), Buffer.from(text.padEnd(Math.ceil(text.length / 8) * 8, '\0'))]),
  );
  return Buffer.concat(parts).toString('hex');
}

t.test('records that are being written are left out, and said', { skip }, async (t) => {
  const here = place(t);
  using map = BpfMap.create(sys, { type: USER_RINGBUF, keySize: 0, valueSize: 0, maxEntries: 4096, name: 'busy' });
  write(map, ['whole'], ['half', BUSY], ['behind']);
  const captured = await told(t, 'capture', '--id', String(map.id), '-D', here.dump);
  const why = 'a record was still being written: it and everything after it (32 bytes) are left out';
  t.equal(captured.report, `partial: ${why}`);
  t.equal(dataOf(here.dump)[0]?.values.join(''), image([['whole']]));
  const replayed = await told(t, 'replay', here.dump, '--pin', path.join(here.pins, 'fresh'));
  t.equal(replayed.report, `partial: captured partial: ${why}`);

  // What is no record is kept by nobody.
  using broken = BpfMap.create(sys, { type: USER_RINGBUF, keySize: 0, valueSize: 0, maxEntries: 4096, name: 'broken' });
  write(broken, ['long', 0x1000_0000]);
  const none = await told(t, 'capture', '--id', String(broken.id), '-D', here.dump, '--force');
  t.equal(none.report, 'metadata only: lost: unread records: its memory does not contain whole records');
  using far = BpfMap.create(sys, { type: USER_RINGBUF, keySize: 0, valueSize: 0, maxEntries: 4096, name: 'far' });
  {
    using ring = new Ring(far, true);
    ring.producer = 8192n;
  }
  const apart = await told(t, 'capture', '--id', String(far.id), '-D', here.dump, '--force');
  t.equal(apart.report, 'metadata only: lost: unread records: its positions are 8192 bytes apart');
});

t.test('records in an image that cannot be written back are news', { skip }, async (t) => {
  const here = place(t);
  using map = BpfMap.create(sys, { type: USER_RINGBUF, keySize: 0, valueSize: 0, maxEntries: 8192, name: 'edited' });
  write(map, ...Array.from({ length: 20 }, () => ['y'.repeat(240)] as const));
  await told(t, 'capture', '--id', String(map.id), '-D', here.dump);
  const pin = path.join(here.pins, 'fresh');
  const small = await cli(['replay', here.dump, '--pin', pin, '--max-entries', '4096']);
  t.equal(small.status, 1);
  t.match(small.stderr, /^bpfimg: map \d+ \(edited\): 4960 bytes of unread records do not fit, max_entries is 4096\n$/);
  const text = (await cli(['decode', here.dump])).stdout.replace('"f000000000000000"', '"f100000000000000"');
  const edited = `${here.dump}-edited`;
  t.equal((await cli(['encode', '-D', edited], { input: text })).status, 0);
  const odd = await cli(['replay', edited, '--pin', pin]);
  t.equal(odd.status, 1);
  t.match(odd.stderr, /^bpfimg: map \d+ \(edited\): its 4960 bytes are not whole records\n$/);
  t.notOk(fs.existsSync(pin));
});

t.test('unread records of a RINGBUF are in the image; only programs can put some in', { skip }, async (t) => {
  const here = place(t);
  const pin = path.join(here.pins, 'live');
  using map = BpfMap.create(sys, { type: RINGBUF, keySize: 0, valueSize: 0, maxEntries: 4096, name: 'events' });
  map.pin(pin);
  const programs = load(here, 'rings.o', 'events', pin, 'programs');
  run(here, path.join(programs, 'emit'));
  const captured = await told(t, 'capture', '--id', String(map.id), '-D', here.dump);
  t.equal(captured.report, 'full');
  const words = dataOf(here.dump)[0]?.values ?? [];
  const bytes = Buffer.from(words.join(''), 'hex');
  t.same([bytes.readUInt32LE(0), bytes.toString('latin1', 8, 13)], [5, 'one e']);
  t.same([bytes.readUInt32LE(16), bytes.toString('latin1', 24, 34)], [10, 'one event\0']);
  t.equal(bytes.length, 40);
  t.match((await cli(['show', here.dump])).stdout, /one even\n.*t\./s);
  // The same through an fd that is only for reading, of which the kernel shows no memory.
  using reader = BpfMap.openById(sys, map.id, 'ro');
  const { ring, close } = Ring.read(reader);
  t.equal(ring.producer, 40n);
  close();
  const replayed = await told(t, 'replay', here.dump, '--pin', path.join(here.pins, 'fresh'));
  t.equal(replayed.report, 'metadata only: lost: unread records: only programs can write them');
});

t.test('where records end', async (t) => {
  const bytes = Buffer.from(image([['a'], ['bb', DISCARD], ['ccc', BUSY]]), 'hex');
  t.equal(recordsEnd(bytes, 0, bytes.length), 32);
  t.equal(recordsEnd(bytes, 0, 32), 32);
  t.equal(recordsEnd(bytes, 0, 0), 0);
  t.equal(recordsEnd(bytes, 0, 20), undefined, 'cut off in a header');
  t.equal(recordsEnd(bytes, 0, 24), undefined, 'cut off behind a header');
});

// ---------------------------------------------------------------------------------------------------
// Arenas

const ADDRESS = '0x7e5500000000';
const arena = { type: ARENA, keySize: 0, valueSize: 0, maxEntries: 8, flags: 0x400, extra: ADDRESS, name: 'arena' };
const ALLOCATED = 2;

/** A process that maps an arena and writes into its pages; the arena's id. It ends with the test, or when told. */
async function holder(t: Test, what: object): Promise<{ id: number; stop(): Promise<unknown> }> {
  const script = fileURLToPath(new URL('./helpers/arena-holder.js', import.meta.url));
  const child = spawn(process.execPath, [script, JSON.stringify(what)], { stdio: ['pipe', 'pipe', 'inherit'] });
  const ended = new Promise((resolve) => child.once('close', resolve));
  const stop = () => {
    child.stdin.end();
    return ended;
  };
  t.teardown(stop);
  for await (const line of createInterface({ input: child.stdout })) return { id: Number(line), stop };
  throw new Error('the process with the arena ended');
}

/** Pages by their number, as the text they begin with. */
function pagesOf(folder: string): Record<number, string> {
  const [data] = dataOf(folder);
  const text = (hex: string) => Buffer.from(hex, 'hex').toString('latin1').replace(/\0.*/s, '');
  return Object.fromEntries(
    (data?.keys ?? []).map((key, i) => [Buffer.from(key, 'hex').readUInt32LE(), text(data?.values[i] ?? '')]),
  );
}

/** What another program finds at an arena's address, all its pages as the text they begin with. */
const READER = `
import ctypes, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
at, pages = ${ADDRESS}, ${arena.maxEntries}
assert libc.mmap(at, pages * 4096, 1, 0x100001, 3, 0) == at
open(sys.argv[1], 'w').write('|'.join(ctypes.string_at(at + 4096 * i).decode() for i in range(pages)))
`;

t.test(
  'pages of an arena that a process has touched come back at their address',
  { skip: skip || skipWithout('python3') },
  async (t) => {
    const here = place(t);
    const { id, stop } = await holder(t, { spec: arena, pages: { 1: 'one', 2: 'two', 6: 'six' } });
    const before = await told(t, 'capture', '--id', String(id), '-D', here.dump);
    const lost = 'lost: pages that only programs have touched: reading a missing page would create it';
    t.same([before.items, before.report], [3, `partial: ${lost}`]);
    t.same(pagesOf(here.dump), { 1: 'one', 2: 'two', 6: 'six' });
    const again = await told(t, 'capture', '--id', String(id), '-D', here.dump, '--force');
    t.equal(again.items, 3, 'no page was made by looking');
    t.match((await cli(['show', here.dump, '--limit', '1'])).stdout, /01000000 +1 +6f6e6500/);
    const sound = await cli(['verify', here.dump]);
    t.notMatch(sound.stdout + sound.stderr, /key-size|value-size|error/);
    await stop();

    const output = path.join(path.dirname(here.dump), 'pages');
    const replayed = await cli(['replay', here.dump, '--', 'python3', '-c', READER, output]);
    t.equal(replayed.status, 0, replayed.stderr);
    t.match(
      replayed.stderr + replayed.stdout,
      /partial: captured partial: lost: pages that only programs have touched/,
    );
    t.equal(fs.readFileSync(output, 'utf8'), '|one|two||||six|');

    const pin = path.join(here.pins, 'fresh');
    const small = await cli(['replay', here.dump, '--pin', pin, '--max-entries', '5']);
    t.equal(small.status, 1);
    t.match(small.stderr, /^bpfimg: map \d+ \(arena\): page 6 is beyond its end, max_entries is 5\n$/);
  },
);

/** Runs a pinned program of the type that bpftool cannot run. */
const RUNNER = `
import ctypes, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
path = ctypes.create_string_buffer(sys.argv[1].encode())
fd = libc.syscall(321, 7, struct.pack('QII', ctypes.addressof(path), 0, 0), 16)
attr = ctypes.create_string_buffer(struct.pack('I', fd), 80)
assert libc.syscall(321, 10, attr, 80) == 0, ctypes.get_errno()
assert struct.unpack('II', attr[:8])[1] == 0, 'no pages'
`;

t.test('pages that a program has made', { skip: skip || skipWithout('python3') }, async (t) => {
  const here = place(t);
  for (const [flags, pages, report] of [
    // Only one of the two is touched by a process.
    [0x400, { 1: 'one' }, /^partial: lost: pages that only programs/],
    // Where looking makes none, all are found: also the one that nobody has touched.
    [0x2_0400, { 0: '', 1: 'one' }, /^full$/],
  ] as const) {
    const pin = path.join(here.pins, `arena${flags}`);
    const map = BpfMap.create(sys, { ...arena, flags, extra: BigInt(ADDRESS) });
    t.teardown(() => map.close());
    map.pin(pin);
    const programs = load(here, 'arena.o', 'arena', pin, `programs${flags}`);
    must('python3', '-c', RUNNER, path.join(programs, 'alloc'));
    await holder(t, { id: map.id, pages: { 1: 'one' } });
    const captured = await told(t, 'capture', '--id', String(map.id), '-D', here.dump, '--force');
    t.match(captured.report, report);
    t.ok(captured.items <= ALLOCATED);
    t.same(pagesOf(here.dump), pages);
  }
  const replayed = await told(t, 'replay', here.dump, '--pin', path.join(here.pins, 'fresh'));
  t.equal(replayed.report, 'metadata only: lost: its 2 pages: with BPF_F_SEGV_ON_FAULT only programs can create them');
});

t.test('arenas that cannot be read say why', { skip }, async (t) => {
  const here = place(t);
  const cases = [
    [{ ...arena, extra: 0n }, /^metadata only: lost: its pages: it was created without an address/],
    [{ ...arena, extra: BigInt(ADDRESS) }, /^metadata only: lost: its pages: no visible process has it mapped/],
  ] as const;
  for (const [spec, why] of cases) {
    using map = BpfMap.create(sys, spec);
    t.match((await told(t, 'capture', '--id', String(map.id), '-D', here.dump, '--force')).report, why);
  }
  // Something else is at its address.
  using map = BpfMap.create(sys, { ...arena, extra: BigInt(ADDRESS) });
  using other = BpfMap.create(sys, { ...arena, extra: BigInt(ADDRESS) });
  using _ = other.mmap({ address: BigInt(ADDRESS), length: arena.maxEntries * sys.pageSize });
  const taken = await told(t, 'capture', '--id', String(map.id), '-D', here.dump, '--force');
  t.match(taken.report, /^metadata only: lost: its pages: map \d+ \(arena\): mmap: EEXIST/);
});
