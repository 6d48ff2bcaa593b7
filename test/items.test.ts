/** The items of a dump for programs: the same that documents have, and the bytes that images have. */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { writeDocument } from '../src/dump/document.js';
import { items, type RawItem, rawItems } from '../src/dump/items.js';
import { openDump } from '../src/dump/model.js';
import { TypeFinder, type TypeOptions } from '../src/dump/types.js';
import { MemoryOutput } from '../src/io/output.js';
import type { Json } from '../src/value.js';
import { TOP } from './helpers/command.js';
import { filesImage, folderOf, mapFile } from './helpers/dumps.js';
import { dataMessage, entry, type Item, image, item, mapData } from './helpers/images.js';
import { Random } from './helpers/random.js';
import { types } from './helpers/types.js';

const FLOWD = path.join(TOP, 'fixtures/flowd');
const HASH = 1;
const PERCPU_HASH = 5;
const HASH_OF_MAPS = 13;
const QUEUE = 22;

/** What the items of each map are, by a document and one by one. */
async function both(folder: string, options?: TypeOptions): Promise<{ document: Json; iterated: Json }> {
  const dump = await openDump(folder);
  try {
    const out = new MemoryOutput();
    const forms = options && (await new TypeFinder(dump, types, options).forms(dump.maps));
    await writeDocument(dump, dump.maps, types, out, { lines: false, pretty: false, noPayload: false, forms });
    const { maps } = JSON.parse(out.take().toString()) as { maps: { items?: Json }[] };
    const iterated: Json[] = [];
    const finder = options && new TypeFinder(dump, types, options);
    for (const map of dump.maps) {
      const all: Json[] = [];
      for await (const one of items(dump, map, types, finder)) all.push(one as unknown as Json);
      iterated.push(all);
    }
    return { document: maps.map((map) => map.items ?? []), iterated };
  } finally {
    dump.close();
  }
}

async function raw(folder: string): Promise<RawItem[][]> {
  const dump = await openDump(folder);
  try {
    const all: RawItem[][] = [];
    for (const map of dump.maps) {
      const some: RawItem[] = [];
      for await (const one of rawItems(dump, map, types)) some.push(one);
      all.push(some);
    }
    return all;
  } finally {
    dump.close();
  }
}

/** A dump of one map. */
function dumpOf(t: Test, file: Omit<Parameters<typeof mapFile>[0], 'id' | 'map_id'>, all: readonly Item[]): string {
  return folderOf(t, {
    'files.img': filesImage(mapFile({ id: 1, map_id: 7, ...file })),
    'bpfmap-data.img': image('BPFMAP_DATA', mapData(7, all)),
  });
}

t.test('they are those of the document', async (t) => {
  for (const options of [undefined, { btf: path.join(TOP, 'fixtures/btf/flowd.o') }]) {
    const { document, iterated } = await both(FLOWD, options);
    t.same(iterated, document, options === undefined ? 'in hex' : 'typed');
  }
  const { iterated } = await both(FLOWD, { btf: path.join(TOP, 'fixtures/btf/flowd.o') });
  const [[{ value } = {}] = []] = iterated as { value?: Json }[][];
  t.match(value, { packets: 84001, bytes: 17631453184, state: 'TCP_CLOSE' });

  const padded = Buffer.from('0102030405060708090a0b0c0d0e0f10', 'hex');
  const clean = Buffer.from('01020304000000000506070800000000', 'hex');
  const key = (text: string) => Buffer.from(text, 'hex');
  const perCpu = dumpOf(t, { type: PERCPU_HASH, key: 4, value: 4 }, [
    [key('aaaaaaaa'), clean],
    [key('bbbbbbbb'), padded],
  ]);
  const plain = await both(perCpu);
  t.same(plain.iterated, plain.document);
  t.same(plain.iterated, [
    [
      { key: 'aaaaaaaa', values: ['01020304', '05060708'] },
      { key: 'bbbbbbbb', values: ['0102030405060708', '090a0b0c0d0e0f10'] },
    ],
  ]);
  const typed = await both(perCpu, { btf: path.join(TOP, 'fixtures/btf/flowd.o'), type: ['7=:u32'] });
  t.same(typed.iterated, typed.document, 'a type, and bytes that fill up');
  t.match(typed.iterated, [[{ values: [0x04030201, 0x08070605] }, { values: [{ $raw: '0102030405060708' }, {}] }]]);

  const inner = await both(dumpOf(t, { type: HASH_OF_MAPS, key: 4, value: 4 }, [item('00000000', '39000000')]));
  t.same(inner.iterated, inner.document);
  t.same(inner.iterated, [[{ key: '00000000', value: { map_id: 57 } }]]);

  const queue = await both(dumpOf(t, { type: QUEUE, key: 0, value: 4 }, [item('', '01000000'), item('', '02000000')]));
  t.same(queue.iterated, queue.document);
});

t.test('bytes of every size', async (t) => {
  const random = new Random(7);
  for (const [keySize, valueSize, count] of [
    [4, 1, 1000],
    [1, 0, 300],
    [0, 8, 3],
    [513, 1021, 700],
    [200_000, 300_000, 5],
    [4, 1_000_003, 3],
  ] as const) {
    const all: Item[] = Array.from({ length: count }, () => [random.bytes(keySize), random.bytes(valueSize)]);
    const folder = dumpOf(t, { type: HASH, key: keySize, value: valueSize, max: count }, all);
    const [got = []] = await raw(folder);
    const same = got.every(({ key, value }, i) => {
      const [wantedKey, wantedValue] = all[i] as Item;
      return Buffer.compare(key, wantedKey) === 0 && Buffer.compare(value, wantedValue) === 0;
    });
    t.ok(same && got.length === count, `${count} of ${keySize} and ${valueSize}: they outlive the next ones`);
    const { document, iterated } = await both(folder);
    t.ok(JSON.stringify(iterated) === JSON.stringify(document));
  }
});

t.test('of a per-CPU map, values of the CPUs and all their bytes', async (t) => {
  const bytes = Buffer.from('0102030405060708090a0b0c0d0e0f10', 'hex');
  const [[one] = []] = await raw(dumpOf(t, { type: PERCPU_HASH, key: 4, value: 5 }, [[Buffer.alloc(4), bytes]]));
  t.same(Buffer.from(one?.value ?? []), bytes);
  t.same(
    one?.values?.map((value) => Buffer.from(value).toString('hex')),
    ['0102030405', '090a0b0c0d'],
  );
});

t.test('what has no items, and what cannot be cut into them', async (t) => {
  const file = { 'files.img': filesImage(mapFile({ id: 1, map_id: 7 })) };
  t.same(await raw(folderOf(t, file)), [[]], 'no data');
  const data = (keys: number, values: number, count: number, bytes: number) => ({
    ...file,
    'bpfmap-data.img': image('BPFMAP_DATA', entry(dataMessage(7, keys, values, count), Buffer.alloc(bytes))),
  });
  t.same(await raw(folderOf(t, data(0, 0, 0, 0))), [[]]);
  await t.rejects(raw(folderOf(t, data(4, 9, 2, 13))), {
    kind: 'badImage',
    code: 'not-divisible',
    message: /: map 7: 4 bytes of keys and 9 of values are not 2 equal items$/,
  });
});

t.test('an image that is cut short while it is read', async (t) => {
  const all: Item[] = Array.from({ length: 20 }, (_, i) => [Buffer.from([i, 0, 0, 0]), Buffer.alloc(100_000)]);
  const folder = dumpOf(t, { value: 100_000, max: 20 }, all);
  const dump = await openDump(folder);
  t.teardown(() => dump.close());
  const read = async () => {
    for await (const { key } of rawItems(dump, dump.maps[0] as (typeof dump.maps)[0], types)) {
      if (key[0] === 3) fs.truncateSync(path.join(folder, 'bpfmap-data.img'), 600_000);
    }
  };
  await t.rejects(read(), { kind: 'badImage', message: /expected \d+ bytes after its message/ });
});

t.test('memory does not grow with the map', async (t) => {
  const [count, size] = [64 * 1024, 8 * 1024];
  const folder = folderOf(t, {
    'files.img': filesImage(mapFile({ id: 1, map_id: 7, value: size, max: count })),
    'bpfmap-data.img': image('BPFMAP_DATA', entry(dataMessage(7, count * 4, count * size, count))),
  });
  // Half a GiB of zeros that take no place on the disk.
  const data = path.join(folder, 'bpfmap-data.img');
  fs.truncateSync(data, fs.statSync(data).size + count * (4 + size));
  const index = new URL('../src/index.js', import.meta.url).href;
  const script = `
    import { items, openDump, rawItems, typeTable } from ${JSON.stringify(index)};
    const dump = await openDump(${JSON.stringify(folder)});
    let bytes = 0;
    for await (const { value } of rawItems(dump, dump.maps[0], typeTable())) bytes += value.length;
    for await (const { value } of items(dump, dump.maps[0], typeTable())) bytes += value.length;
    console.log(bytes, process.resourceUsage().maxRSS / 1024);
  `;
  const [bytes, peak = 0] = String(execFileSync(process.execPath, ['--input-type=module', '-e', script]))
    .split(' ')
    .map(Number);
  t.equal(bytes, 3 * count * size);
  t.ok(peak < 200, `${Math.round(peak)} MiB`);
});
