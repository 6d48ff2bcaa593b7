/** Items on their way into an image: written before their number is known, and in the end where CRIU has them. */

import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { EntryWriter } from '../src/capture/entry.js';
import { BPFMAP_DATA } from '../src/image/kinds.js';
import { writeHead } from '../src/image/writer.js';
import { FileOutput } from '../src/io/output.js';
import { placeOf } from '../src/io/place.js';
import { removeUnfinished } from '../src/io/unfinished.js';
import { dataMessage, entry, image, mapData } from './helpers/images.js';
import { fdCount } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import { Random } from './helpers/random.js';

t.setTimeout(patience(120_000));

/** A folder for the test: in memory where that is, for each file is brought to disk. */
function workFolder(t: Test): string {
  const folder = fs.mkdtempSync(path.join(fs.existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir(), 'bpfimg-entry-'));
  t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
  return folder;
}

const fileOutput = (file: string) => new FileOutput(placeOf(file), file);

const pool = new Random(1).bytes(1_000_003);

/** Bytes that tell where they belong. */
function bytes(size: number, seed: number): Buffer {
  const result = Buffer.alloc(size);
  for (let at = 0, from = (seed * 4099) % pool.length; at < size; from = 0) at += pool.copy(result, at, from);
  return result;
}

/** What the next buffers of a reader look like: `counts` items, one after the other. */
function parts(counts: readonly number[], keySize: number, valueSize: number, keys: Buffer, values: Buffer) {
  let at = 0;
  return counts.map((count) => {
    const from = at;
    at += count;
    return {
      count,
      // Longer than needed, as a reader's buffers are.
      keys: Buffer.concat([keys.subarray(from * keySize, at * keySize), Buffer.alloc(7, 0xee)]),
      values: Buffer.concat([values.subarray(from * valueSize, at * valueSize), Buffer.alloc(7, 0xee)]),
    };
  });
}

interface Written {
  readonly keySize: number;
  readonly valueSize: number;
  readonly expected: number;
  readonly counts: readonly number[];
}

/** Writes entries of an image, and what the image should be. */
async function write(
  t: Test,
  folder: string,
  entries: readonly Written[],
  ordered = false,
): Promise<{ found: Buffer; wanted: Buffer }> {
  const file = path.join(folder, 'x.img');
  const out = fileOutput(file);
  writeHead(out, BPFMAP_DATA);
  const wanted: Buffer[] = [];
  for (const [i, { keySize, valueSize, expected, counts }] of entries.entries()) {
    const count = counts.reduce((sum, one) => sum + one, 0);
    const [keys, values] = [bytes(count * keySize, i), bytes(count * valueSize, 1000 + i)];
    const entryWriter = new EntryWriter(out, 300 + i, keySize, valueSize, expected);
    const puts: Promise<void>[] = [];
    for (const part of parts(counts, keySize, valueSize, keys, values)) {
      const put = entryWriter.put(part.keys, part.values, part.count).then(() => {
        // The reader's again: it may write into them.
        part.keys.fill(0xaa);
        part.values.fill(0xbb);
      });
      if (ordered) await put;
      puts.push(put);
    }
    await Promise.all(puts);
    t.equal(entryWriter.count, count);
    await entryWriter.finish();
    wanted.push(entry(dataMessage(300 + i, keys.length, values.length, count), keys, values));
  }
  await out.commit();
  t.same(fs.readdirSync(path.dirname(file)), ['x.img']);
  return { found: fs.readFileSync(file), wanted: image('BPFMAP_DATA', ...wanted) };
}

async function writes(t: Test, what: string, ...entries: Written[]): Promise<void> {
  const folder = workFolder(t);
  for (const ordered of [false, true]) {
    const { found, wanted } = await write(t, folder, entries, ordered);
    t.ok(found.equals(wanted), `${what}${ordered ? ', one put after the other' : ''}`);
  }
}

t.test('an entry of any number of items, with any expectation', async (t) => {
  const sizes = { keySize: 5, valueSize: 12 };
  await writes(t, 'none', { ...sizes, expected: 100, counts: [] });
  await writes(t, 'none, in parts', { ...sizes, expected: 100, counts: [0, 0] });
  await writes(t, 'as many as expected', { ...sizes, expected: 100, counts: [60, 40] });
  await writes(t, 'half of them', { ...sizes, expected: 100, counts: [30, 20] });
  await writes(t, 'one of very many', { ...sizes, expected: 2 ** 27, counts: [1] });
  await writes(t, 'one more', { ...sizes, expected: 100, counts: [60, 40, 1] });
  await writes(t, 'many times as many', {
    ...sizes,
    expected: 1,
    counts: [1, 1, 2, 5, 100, 3, 1000, 1, 5000, 20_000, 1],
  });
  await writes(t, 'expected none', { ...sizes, expected: 0, counts: [3, 4] });
  await writes(t, 'without keys', { keySize: 0, valueSize: 8, expected: 3, counts: [2, 9, 40] });
  await writes(t, 'values longer than what is moved at once', {
    keySize: 4,
    valueSize: 3 << 20,
    expected: 1,
    counts: [1, 1, 1, 2],
  });
  await writes(
    t,
    'several maps',
    { ...sizes, expected: 1000, counts: [10] },
    { ...sizes, expected: 1, counts: [10, 300] },
    { ...sizes, expected: 5, counts: [] },
    { keySize: 16, valueSize: 64, expected: 5000, counts: [4096, 904] },
    { ...sizes, expected: 9, counts: [8] },
  );
});

t.test('entries whose message becomes longer or shorter than was expected', async (t) => {
  const folder = workFolder(t);
  // The sizes of varints change at 2^7, 2^14, 2^21: those of the count, and of both totals.
  for (const border of [127, 128, 16_383, 16_384]) {
    for (const [keySize, valueSize] of [
      [1, 1],
      [4, 8],
      [2, 128],
    ] as const) {
      for (const expected of [border - 1, border, border + 1, 4 * border]) {
        for (const count of [border - 1, border, border + 1]) {
          const { found, wanted } = await write(t, folder, [
            { keySize, valueSize, expected, counts: [count - 50, 40, 10] },
            { keySize, valueSize, expected: 1, counts: [1] },
          ]);
          if (!found.equals(wanted)) t.fail(`${count} of ${expected}, ${keySize} + ${valueSize} bytes`);
        }
      }
    }
    t.pass(`around ${border}`);
  }
  const { found, wanted } = await write(t, folder, [
    { keySize: 1, valueSize: 1, expected: 2 ** 21 + 1, counts: [2 ** 21 - 1] },
  ]);
  t.ok(found.equals(wanted));
});

t.test('entries in random parts', async (t) => {
  const folder = workFolder(t);
  for (let seed = 0; seed < 60; seed++) {
    const random = new Random(seed);
    const entries = Array.from({ length: 1 + random.below(3) }, () => {
      return {
        keySize: random.below(20),
        valueSize: 1 + random.below(40),
        expected: 1 + random.below(400),
        counts: Array.from({ length: random.below(12) }, () => random.below(120)),
      };
    });
    const { found, wanted } = await write(t, folder, entries);
    if (!found.equals(wanted)) t.fail(`seed ${seed}`);
  }
  t.pass('60 of them');
});

const LIMIT = { message: 'an image entry can hold less than 4 GiB of keys and less than 4 GiB of values' };

t.test('what an entry cannot say is refused, and what was written of it goes', async (t) => {
  const file = path.join(workFolder(t), 'x.img');
  const out = fileOutput(file);
  writeHead(out, BPFMAP_DATA);
  // 4 GiB of values, or of keys, are one item more than it can hold; nothing of that size is written here.
  for (const [keySize, valueSize, most] of [
    [4, 2 ** 30, 3],
    [2 ** 30, 4, 3],
    [1, 2 ** 32 - 1, 1],
    [0, 1, 2 ** 32 - 1],
  ] as const) {
    const writer = new EntryWriter(out, 1, keySize, valueSize, 2 ** 32 - 1);
    await t.rejects(writer.put(Buffer.alloc(0), Buffer.alloc(0), most + 1), LIMIT, `${keySize} + ${valueSize}`);
    t.equal(writer.count, 0);
    await t.resolves(writer.put(Buffer.alloc(0), Buffer.alloc(0), most), 'the last that fits');
    await writer.drop();
  }
  // A map that turns out too large: its items are still being written when the next map's come.
  const dropped = new EntryWriter(out, 1, 4, 1 << 20, 1);
  const size = 64;
  const puts = Array.from({ length: size }, () => dropped.put(Buffer.alloc(4, 0xdd), Buffer.alloc(1 << 20, 0xdd), 1));
  await t.rejects(dropped.put(Buffer.alloc(0), Buffer.alloc(0), 4096), LIMIT);
  await dropped.drop();
  const next = new EntryWriter(out, 2, 4, 8, 3);
  const [keys, values] = [bytes(8, 1), bytes(16, 2)];
  await next.put(keys, values, 2);
  await next.finish();
  await Promise.all(puts);
  await out.commit();
  const items = [0, 1].map((i) => [keys.subarray(4 * i, 4 * i + 4), values.subarray(8 * i, 8 * i + 8)] as const);
  t.same(fs.readFileSync(file), image('BPFMAP_DATA', mapData(2, items)));
});

t.test('a full map is written to its place at once', async (t) => {
  const out = fileOutput(path.join(workFolder(t), 'x.img'));
  const moves: number[][] = [];
  const { move } = out;
  out.move = (from, to, size) => {
    if (from !== to && size > 0) moves.push([from, to, size]);
    return move.call(out, from, to, size);
  };
  writeHead(out, BPFMAP_DATA);
  const writer = new EntryWriter(out, 1, 4, 8, 300);
  for (let i = 0; i < 3; i++) await writer.put(Buffer.alloc(400), Buffer.alloc(800), 100);
  await writer.finish();
  t.same(moves, []);
  await out.abort();
});

// ---------------------------------------------------------------------------------------------------
// Files that are written at several places at once

t.test('a file: in a row, at places, moved, and in a row again', async (t) => {
  const file = path.join(workFolder(t), 'x');
  const out = fileOutput(file);
  out.write(Buffer.from('head'));
  await Promise.all([out.writeAt(Buffer.from('world'), 20), out.writeAt(Buffer.from('hello '), 4)]);
  await out.move(20, 10, 5);
  await out.skip(11);
  t.equal(out.length, 15);
  out.write(Buffer.from(', tail'));
  await out.commit();
  t.equal(fs.readFileSync(file, 'utf8'), 'headhello world, tail');
  t.equal(fs.statSync(file).mode & 0o777, 0o600);
});

t.test('what is written and not taken into the row is cut off', async (t) => {
  const file = path.join(workFolder(t), 'x');
  const out = fileOutput(file);
  out.write(Buffer.from('head'));
  await out.writeAt(Buffer.alloc(100_000, 1), 50);
  await out.commit();
  t.equal(fs.readFileSync(file, 'utf8'), 'head');
});

t.test('moves of any distance, also over themselves', async (t) => {
  const folder = workFolder(t);
  const size = 9 << 20;
  const content = bytes(size, 9);
  for (const distance of [0, 1, -1, 4096, -4096, 4 << 20, -(4 << 20), 5 << 20, -(5 << 20), 10 << 20]) {
    const file = path.join(folder, 'x');
    const out = fileOutput(file);
    const from = 6 << 20;
    await out.writeAt(content, from);
    await out.move(from, from + distance, size);
    await out.skip(from + distance + size);
    await out.commit();
    t.ok(
      fs
        .readFileSync(file)
        .subarray(from + distance)
        .equals(content),
      `by ${distance}`,
    );
  }
});

t.test('giving up while writes are under way leaves nothing, and no fd is used when it is closed', async (t) => {
  const folder = workFolder(t);
  const before = fdCount();
  for (let round = 0; round < 20; round++) {
    const out = fileOutput(path.join(folder, 'x.img'));
    const { fd } = out as unknown as { fd: number };
    writeHead(out, BPFMAP_DATA);
    const writer = new EntryWriter(out, 1, 4, 65_536, 1);
    const ends: unknown[] = [];
    for (let i = 0; i < 30; i++) {
      writer.put(Buffer.alloc(4), Buffer.alloc(65_536), 1).then(
        () => ends.push('written'),
        (error) => ends.push(error),
      );
    }
    if (round % 3 === 1) await new Promise((go) => setImmediate(go));
    await out.abort();
    // The number is another file's now: whoever wrote to it still would show there.
    const victim = path.join(folder, 'victim');
    // That of its folder comes first.
    const free = fs.openSync(folder, 'r');
    const taken = fs.openSync(victim, 'w+');
    fs.closeSync(free);
    t.equal(taken, fd);
    await new Promise((go) => setTimeout(go, 5));
    t.equal(fs.fstatSync(taken).size, 0);
    fs.closeSync(taken);
    fs.rmSync(victim);
    t.same(fs.readdirSync(folder), []);
    t.same(
      ends.filter((end) => end !== 'written'),
      [],
      'all that was begun has ended',
    );
    t.equal(ends.length, 30);
  }
  t.equal(fdCount(), before);
  removeUnfinished();
});

t.test('a disk that is full: one line, and nothing stays', async (t) => {
  // /dev/full cannot be a FileOutput; a limit on the size of files can be reached.
  const folder = workFolder(t);
  const url = (name: string) => new URL(`../src/${name}.js`, import.meta.url).href;
  const code = `
    process.on('SIGXFSZ', () => {});
    const { openOutput } = await import('${url('io/output')}');
    const { EntryWriter } = await import('${url('capture/entry')}');
    const out = await openOutput('x.img');
    const writer = new EntryWriter(out, 1, 4, 65536, 64);
    const puts = Array.from({ length: 64 }, () => writer.put(Buffer.alloc(4), Buffer.alloc(65536), 1));
    const ends = await Promise.allSettled(puts);
    const failed = ends.filter((end) => end.status === 'rejected');
    console.log(failed.length > 10, failed[0].reason.message);
    await out.abort();`;
  const { stdout, stderr } = spawnSync(
    'bash',
    ['-c', 'ulimit -f 1024; exec "$0" --input-type=module -e "$1"', process.execPath, code],
    { cwd: folder, encoding: 'utf8' },
  );
  t.equal(stdout, 'true x.img: cannot write it: the file would be too large\n', stderr);
  t.same(fs.readdirSync(folder), []);
});
