/** `get`, `set` and `delete`: one item by key, in dumps, archives, images and live maps. */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { valueCodec } from '../src/btf/values.js';
import { viewOf } from '../src/bytes.js';
import type { DumpMap } from '../src/dump/model.js';
import { ItemWords, wordBytes } from '../src/dump/words.js';
import { openItems } from '../src/edit/items.js';
import { typedForm } from '../src/json/types.js';
import { BpfMap } from '../src/kernel/map.js';
import { openSys } from '../src/kernel/sys.js';
import { hostOf } from '../src/source/source.js';
import type { Json } from '../src/value.js';
import { cTypes } from './helpers/c-types.js';
import { itemsOf } from './helpers/capture.js';
import { BPFIMG, contents, measured, shell } from './helpers/command.js';
import { folderOf, mapFile, pluginDump } from './helpers/dumps.js';
import { fixture } from './helpers/fixtures.js';
import { blob, dataMessage, entry, image, item, mapData, scalar } from './helpers/images.js';
import { bpffs, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import { Random } from './helpers/random.js';
import { bigDump, cli, dumpOf, hexOf, someItems } from './helpers/replay.js';
import { keyHex, randomStruct, randomValue, shapeText, typedDocument, typesOf, valueHex } from './helpers/shapes.js';
import { types } from './helpers/types.js';

t.setTimeout(patience(120_000));

const skip = await skipWithoutMaps();

/** Rounds of the random tests; set to try more. */
const ROUNDS = Number(process.env.BY_KEY_ROUNDS ?? 30);

/** Runs a command that must succeed; its output without the last line end. */
async function ok(t: Test, ...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await cli(args);
  t.equal(status, 0, `${args.join(' ')}: ${stderr}`);
  return stdout.replace(/\n$/, '');
}

/** Runs a command that must fail; its message. */
async function refused(t: Test, status: number, ...args: string[]): Promise<string> {
  const ran = await cli(args);
  t.equal(ran.status, status, `${args.join(' ')}: ${ran.stdout}${ran.stderr}`);
  return ran.stderr;
}

t.test('random types: what is set is got, and nothing else changes', async (t) => {
  const base = t.testdir();
  let done = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const random = new Random(Number(process.env.BY_KEY_SEED ?? 1) * 100_000 + round);
    const shape = randomStruct(random, 2, false);
    const text = shapeText(shape, 'top');
    const c = typesOf(shape);
    const { btf, id } = c.type('struct s');
    const codec = valueCodec(btf, id);
    const bytesOf = (json: Json) => valueHex(c, json);
    const shown = (bytes: string) => codec.decode(viewOf(Buffer.from(bytes, 'hex')));
    const model = new Map([1, 2].map((n) => [keyHex(n), bytesOf(randomValue(random, shape))]));
    const [file, folder] = [path.join(base, `${round}.json`), path.join(base, `dump-${round}`)];
    typedDocument(file, c, model, 6);
    await ok(t, 'encode', file, '-D', folder);
    for (let step = 0; step < 12; step++) {
      const n = random.below(9);
      const [key, word] = [keyHex(n), random.of([String(n), keyHex(n)])];
      const about = `round ${round}, step ${step}: ${text}, key ${word}`;
      const kind = random.below(4);
      if (kind === 0) {
        const ran = await cli(['delete', folder, 'm', word]);
        t.equal(ran.status, model.delete(key) ? 0 : 1, `${about}: ${ran.stderr}`);
      } else {
        const json = randomValue(random, shape) as { [name: string]: Json };
        const whole = bytesOf(json);
        const raw = hexOf(random.bytes(codec.size));
        let words = [kind === 1 ? JSON.stringify(shown(whole)) : raw];
        let after = kind === 1 ? whole : raw;
        const before = model.get(key);
        if (kind === 3 && before !== undefined) {
          // Members one by one: all others keep their bits.
          const decoded = shown(whole) as { [name: string]: Json };
          const names = Object.keys(decoded).filter((name) => name !== '$raw' && random.below(2) === 0);
          if (names.length === 0) continue;
          words = names.map((name) => `${name}=${JSON.stringify(decoded[name])}`);
          const bytes = Buffer.from(before, 'hex');
          for (const name of names) codec.part(name).encode(decoded[name] as Json, viewOf(bytes));
          for (const name of names) t.strictSame(codec.part(name).decode(viewOf(bytes)), decoded[name], about);
          after = hexOf(bytes);
        }
        const full = before === undefined && model.size >= 6;
        const ran = await cli(['set', folder, 'm', word, '--', ...words]);
        t.equal(ran.status, full ? 1 : 0, `${about}: ${words.join(' ')}: ${ran.stderr}`);
        if (full) t.match(ran.stderr, 'it is full: 6 items, max_entries 6');
        else model.set(key, after);
      }
      const value = model.get(key);
      const got = await cli(['get', folder, 'm', word, '--json']);
      t.equal(got.status, value === undefined ? 1 : 0, about);
      if (value !== undefined) t.strictSame(JSON.parse(got.stdout), { key: n, value: shown(value) }, about);
      if (value !== undefined) t.equal(await ok(t, 'get', folder, word, '--raw'), value, about);
      done++;
    }
    t.strictSame(itemsOf(folder), model);
  }
  t.ok(done > ROUNDS * 6, `${done} steps`);
});

t.test('law 1: in an image only that entry changes, and it keeps unknown fields', async (t) => {
  const odd = (...more: Buffer[]) => Buffer.concat([dataMessage(7, 8, 4, 2), ...more]);
  const unknown = blob(99, Buffer.from('kept'));
  const others = [
    mapData(3, [item('01', 'aa')]),
    entry(Buffer.concat([scalar(1, 5, 4), scalar(2, 0, 5), scalar(3, 0), scalar(4, 0)])),
  ];
  const before = [
    others[0],
    entry(odd(unknown), Buffer.from('0000000001000000aabbccdd', 'hex')),
    others[1],
  ] as Buffer[];
  const file = path.join(t.testdir(), 'bpfmap-data.img');
  fs.writeFileSync(file, image('BPFMAP_DATA', ...before));
  await ok(t, 'set', file, '7', '1', '1122');
  const after = (count: number, hex: string) =>
    image(
      'BPFMAP_DATA',
      others[0] as Buffer,
      entry(Buffer.concat([dataMessage(7, 4 * count, 2 * count, count), unknown]), Buffer.from(hex, 'hex')),
      others[1] as Buffer,
    );
  t.same(fs.readFileSync(file), after(2, '0000000001000000aabb1122'));
  await ok(t, 'set', file, '7', '9', '3344');
  t.same(fs.readFileSync(file), after(3, '000000000100000009000000aabb11223344'));
  await ok(t, 'delete', file, '7', '1');
  t.same(fs.readFileSync(file), after(2, '0000000009000000aabb3344'));
  await ok(t, 'delete', file, '7', '0', '9');
  t.same(fs.readFileSync(file), after(0, ''));
});

t.test('every copy of a map changes, and of equal keys the last one counts', async (t) => {
  const items = someItems(5);
  const folder = dumpOf(t.testdir(), { id: 1, items }, { id: 1, open: 0, items: items.slice(2) });
  await ok(t, 'set', folder, '3', '0x1122');
  await ok(t, 'set', folder, '0', '1');
  const all = JSON.parse(await ok(t, 'decode', folder)).maps[0];
  const values = (list: { key: string; value: string }[]) =>
    Object.fromEntries(list.map(({ key, value }) => [key, value]));
  for (const list of [all.items, all.copies[0].items]) {
    t.equal(
      values(list)[hexOf(items[3]?.[0] as Buffer).replace(/^../, '03')] ?? values(list)['03000000'],
      '2211000000000000',
    );
  }
  const twice = dumpOf(t.testdir(), { id: 1, items: [...items, [u32(3), Buffer.alloc(8, 7)]] });
  t.equal(await ok(t, 'get', twice, '3'), '07070707 07070707');
  await ok(t, 'set', twice, '3', '5');
  t.equal(await ok(t, 'get', twice, '3', '--raw'), '0500000000000000');
  await ok(t, 'delete', twice, '3');
  t.match(await refused(t, 1, 'get', twice, '3'), /map 1 \(m\): no item with key 3\n/);
});

t.test('what cannot be is refused, with the range, and nothing changes', async (t) => {
  const base = t.testdir();
  const folder = dumpOf(
    base,
    { id: 1, name: 'arr', type: 2, max: 3, items: someItems(3) },
    { id: 2, name: 'full', max: 2, items: someItems(2) },
    { id: 3, name: 'lru', type: 9, max: 2, items: someItems(2) },
    { id: 4, name: 'routes', type: 11, key: 8, max: 4, flags: 1, items: [] },
    { id: 5, name: 'q', type: 22, key: 0, items: [[Buffer.alloc(0), Buffer.alloc(8)]] },
  );
  const before = contents(folder);
  const cases: readonly (readonly [args: string[], status: number, message: RegExp])[] = [
    [['get', folder, 'arr', '3'], 1, /map 1 \(arr\): no index 3: expected 0 to 2/],
    [['set', folder, 'arr', '3', '1'], 1, /no index 3: expected 0 to 2/],
    [['delete', folder, 'arr', '1'], 1, /an item of an array cannot be deleted: set it to zeros/],
    [['set', folder, 'full', '9', '1'], 1, /map 2 \(full\): it is full: 2 items, max_entries 2/],
    [['set', folder, 'routes', '210000000a000000', '1'], 1, /a prefix of 33 bits, expected at most 32/],
    [['get', folder, 'q', '1'], 1, /the items of a queue have no keys/],
    [['get', folder, 'full'], 2, /a key is missing: it has several maps, so name one first/],
    [['set', folder, 'full', '1'], 2, /a key or its value is missing/],
    [['get', folder, 'none', '1'], 1, /no map none in it; its maps: 1 \(arr\)/],
    [['set', folder, 'full', '1', '123'], 0, /^$/],
    [
      ['set', folder, 'full', '1', '12345678901234567890123'],
      2,
      /value 12345678901234567890123: expected a number, or 8 bytes as 16 hex digits/,
    ],
    [['set', folder, 'full', '1', 'a=1'], 2, /value a=1: expected/],
    [['set', folder, 'full', 'x', '1'], 2, /key x: expected a number, or 4 bytes as 8 hex digits/],
    [['set', '-', 'full', '1', '1'], 2, /standard input cannot be changed/],
  ];
  for (const [args, status, message] of cases) {
    if (status === 0) continue;
    t.match(await refused(t, status, ...args), message, args.join(' '));
    t.strictSame(contents(folder), before, args.join(' '));
  }
  await ok(t, 'set', folder, 'routes', '10.0.0.0/8', '7');
  t.equal(await ok(t, 'get', folder, 'routes', '080000000a000000', '--raw'), '0700000000000000');
  t.match(await refused(t, 1, 'get', folder, 'routes', '10.0.0.0/33'), /a prefix of 33 bits, expected at most 32/);
  await ok(t, 'set', folder, 'full', '1.0.0.0', '5');
  t.equal(await ok(t, 'get', folder, 'full', '1', '--raw'), '0500000000000000');
  await ok(t, 'set', folder, 'lru', '9', '1');
  const file = path.join(base, 'doc.json');
  await ok(t, 'decode', folder, '-o', file);
  t.equal(await ok(t, 'get', file, 'lru', '9', '--raw'), '0100000000000000');
  t.match(await refused(t, 1, 'set', file, 'lru', '9', '2'), /it is a JSON document/);
});

t.test('a dry run prints the change and makes none', async (t) => {
  const folder = dumpOf(t.testdir(), { id: 1, items: someItems(3) });
  const before = contents(folder);
  const shown = await ok(t, 'set', folder, '9', '255', '--dry-run');
  t.match(shown, /map 1 m: 1 item added\n {2}\+ 09000000 {2}ff000000 00000000/);
  const json = JSON.parse(await ok(t, 'delete', folder, '1', '--dry-run', '--json'));
  t.equal(json.maps[0].removed, 1);
  t.strictSame(contents(folder), before);
});

t.test('an item that is named twice, and copies of other sizes', async (t) => {
  const items = someItems(5);
  const folder = dumpOf(t.testdir(), { id: 1, items }, { id: 2, name: 'other', items });
  await ok(t, 'delete', folder, 'm', hexOf(items[1]?.[0] as Buffer), hexOf(items[1]?.[0] as Buffer), '0');
  t.same([...itemsOf(folder)].length > 0, true);
  const left = JSON.parse(await ok(t, 'decode', folder)).maps;
  t.same(
    left.map((map: { items: unknown[] }) => map.items.length),
    [3, 5],
  );
  // A stranger's image: one copy has keys of other sizes, another is empty but has bytes.
  const file = path.join(t.testdir(), 'bpfmap-data.img');
  for (const odd of [
    entry(dataMessage(7, 4, 4, 2), Buffer.from('0000010011112222', 'hex')),
    entry(dataMessage(7, 4, 0, 0), Buffer.from('00000000', 'hex')),
  ]) {
    fs.writeFileSync(file, image('BPFMAP_DATA', odd, mapData(7, [item('00000000', 'aabb')])));
    const before = fs.readFileSync(file);
    t.match(await refused(t, 1, 'set', file, '7', '0', '1122'), /entry 0: its data is not items of 4 and 2 bytes/);
    t.match(await refused(t, 1, 'delete', file, '7', '0'), /entry 0: its data is not items/);
    t.same(fs.readFileSync(file), before);
  }
  // As many equal keys as an image may have.
  const many = Array.from({ length: 300_000 }, () => item('00000000', 'aa'));
  fs.writeFileSync(file, image('BPFMAP_DATA', mapData(7, many)));
  await ok(t, 'delete', file, '7', '0');
  t.equal(JSON.parse(await ok(t, 'decode', file)).entries[0].items.length, 0);
});

t.test('somebody else changes the dump after it was read', async (t) => {
  const host = hostOf({ types: async () => types });
  const base = t.testdir();
  const folder = dumpOf(base, { id: 1, items: someItems(3) });
  const archive = path.join(base, 'a.tar');
  await cli(['encode', '-o', archive], { input: (await cli(['decode', folder])).stdout });
  for (const [source, touched] of [
    [folder, path.join(folder, 'bpfmap-data.img')],
    [archive, archive],
    [path.join(folder, 'bpfmap-data.img'), path.join(folder, 'bpfmap-data.img')],
  ] as const) {
    const items = await openItems(source, host, {
      write: true,
      pick: (dump) => dump.maps[0] as DumpMap,
      finder: async () => undefined,
    });
    const key = someItems(1)[0]?.[0] as Buffer;
    const [before] = await items.get([key]);
    const now = fs.readFileSync(touched);
    fs.writeFileSync(touched, now);
    const change = items.change([{ key, before, value: Buffer.alloc(8) }]);
    await t.rejects(change, { message: /somebody else has changed it in the meantime/ }, source);
    items.close();
    t.same(fs.readFileSync(touched), now);
  }
  t.strictSame(fs.readdirSync(folder).sort(), ['bpfmap-data.img', 'bpfmap-file.img'], 'nothing is left');
});

t.test('a pipe is refused at once', async (t) => {
  const folder = dumpOf(t.testdir(), { id: 1, items: someItems(3) });
  const line = (command: string) => `bash -c '${command} <(cat ${folder}/bpfmap-data.img) 1 0 1 2>&1'; true`;
  for (const command of ['bpfimg set', 'bpfimg delete'])
    t.match(shell(line(command)).stdout, /it is a pipe or a device, which cannot be changed: name a file/);
});

t.test('what words mean', async (t) => {
  const c = cTypes('struct s { u32 src; u32 src_port; char name[24]; };', ['u32']);
  const s = c.type('struct s');
  const codec = valueCodec(s.btf, s.id);
  const form = typedForm(codec);
  const target = { what: 'key', size: codec.size, form };
  const shown = (bytes: Uint8Array) => codec.decode(viewOf(bytes));
  const means = async (word: string) => shown(await wordBytes(word, target));
  t.strictSame(await means('src=1,src_port=2,name=a,b'), { src: 1, src_port: 2, name: 'a,b' });
  t.strictSame(await means('src=1,src_port=2,name="a,src=5"'), { src: 1, src_port: 2, name: 'a,src=5' });
  t.strictSame(await means('{"src":1,"src_port":2,"name":"x=1,y=2"}'), { src: 1, src_port: 2, name: 'x=1,y=2' });
  for (const text of ['true', '5', '18446744073709551616', 'null'])
    t.strictSame(await means(`src=1,src_port=2,name=${text}`), { src: 1, src_port: 2, name: text }, text);
  await t.rejects(means('src_port=2,name=a'), { message: /: src is missing/ });
  await t.rejects(means('src_port=2'), { message: /: src, name are missing/ });
  // Padding of a CPU's value, as decode shows it, is set; otherwise it stays.
  const words = new ItemWords({ keySize: 4, valueSize: 16, perCpu: 5 }, undefined, undefined, types);
  const before = Buffer.from('0102030405aabbcc0607080910ddeeff', 'hex');
  t.equal(hexOf(await words.value(['1111111111'], before)), '1111111111aabbcc1111111111ddeeff');
  const list = '[{"$raw":"2222222222000001"},"3333333333"]';
  t.equal(hexOf(await words.value([list], before)), '22222222220000013333333333ddeeff');
});

t.test('archives, dumps of the plugin and dumps without data', async (t) => {
  const base = t.testdir();
  const folder = dumpOf(base, { id: 1, items: someItems(3) }, { id: 2, name: 'other', items: someItems(1) });
  for (const name of ['a.tar', 'a.tar.gz', 'a.tar.zst']) {
    const file = path.join(base, name);
    const doc = await cli(['decode', folder]);
    await cli(['encode', '-o', file], { input: doc.stdout });
    await ok(t, 'set', file, 'm', '1', '0x1234');
    t.equal(await ok(t, 'get', file, 'm', '1', '--raw'), '3412000000000000', name);
    t.equal((await cli(['verify', file])).status, 0, 'its sums are right');
    t.equal((await cli(['diff', folder, file, '-q'])).status, 1);
    await ok(t, 'delete', file, 'm', '1');
    t.match(await refused(t, 1, 'get', file, 'm', '1'), 'no item with key 1');
  }
  const plugin = folderOf(t, {
    ...pluginDump({
      maps: [mapFile({ id: 1, map_id: 9, type: 1, key: 4, value: 2, max: 4 })],
      table: '1 9 2\n',
      external: [1],
    }),
  });
  await ok(t, 'set', plugin, '9', '5', '0x0102');
  t.ok(fs.existsSync(path.join(plugin, 'bpfimg-data.img')));
  t.equal(await ok(t, 'get', plugin, '5'), '0201');
});

t.test('a real dump: the fixture, with types', async (t) => {
  const base = t.testdir();
  fs.writeFileSync(path.join(base, 'flowd.o'), fixture('btf/flowd.o'));
  const dump = path.join(base, 'flowd');
  execFileSync('cp', ['-r', path.join(path.dirname(path.dirname(BPFIMG)), 'fixtures/flowd'), dump]);
  const before = contents(dump);
  const btf = ['--btf', path.join(base, 'flowd.o')];
  const key = '5554000a abff000a 4c063500 11000000';
  t.equal(
    await ok(t, 'get', dump, 'flows', key, ...btf),
    'packets    84001\nbytes      17631453184\nlast_seen  1700000084\nstate      TCP_CLOSE',
  );
  await ok(t, 'set', dump, 'flows', key, 'packets=1', 'state=TCP_LISTEN', ...btf);
  t.match(await ok(t, 'get', dump, 'flows', key, ...btf), /^packets {4}1\n.*\n.*\nstate {6}TCP_LISTEN$/);
  t.match(
    await refused(t, 2, 'set', dump, 'flows', key, 'pakets=1', ...btf),
    /value pakets=1: \/pakets?: |no part pakets/,
  );
  t.match(
    await refused(t, 2, 'get', dump, 'flows', 'sport=1', ...btf),
    /key sport=1: saddr, daddr, dport, proto are missing/,
  );
  const after = contents(dump);
  t.strictSame(
    Object.keys(after).filter((name) => after[name] !== before[name]),
    ['bpfmap-data.img'],
  );
});

t.test('1 M items: at most a second, in flat memory', async (t) => {
  const { folder, last: key } = bigDump(t.testdir());
  const got = measured(['get', folder, key]);
  t.equal(got.status, 0, got.stderr);
  t.ok(got.peak < 120, `${got.peak} MiB`);
  const set = measured(['set', folder, key, '02'.repeat(64)]);
  t.equal(set.status, 0, set.stderr);
  t.ok(set.peak < 120, `${set.peak} MiB`);
  t.equal(await ok(t, 'get', folder, key, '--raw'), '02'.repeat(64));
});

t.test('live maps', { skip }, async (t) => {
  const sys = await openSys(types);
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const made: BpfMap[] = [];
  t.teardown(() => {
    for (const map of made) map.close();
  });
  const make = (
    name: string,
    type: string,
    spec: { key?: number; value?: number; max?: number; flags?: number } = {},
  ) => {
    const { key = 4, value = 8, max = 8, flags = 0 } = spec;
    const number = types.parse(type) as number;
    const map = BpfMap.create(sys, { type: number, name, keySize: key, valueSize: value, maxEntries: max, flags });
    made.push(map);
    map.pin(path.join(folder, name));
    return { map, source: `pinned:${path.join(folder, name)}` };
  };
  const random = new Random(5);
  for (const [type, spec] of [
    ['hash', {}],
    ['hash', { flags: 1, key: 7, value: 3 }],
    ['array', {}],
    ['lru_hash', { max: 1024 }],
    ['percpu_hash', { value: 5 }],
    ['percpu_array', {}],
    ['lru_percpu_hash', { max: 1024 }],
    ['lpm_trie', { key: 8, flags: 1 }],
  ] as const) {
    const { map, source } = make(`k_${made.length}`, type, spec);
    const model = new Map<string, string>();
    for (let step = 0; step < 10; step++) {
      const key = Buffer.alloc(map.keySize);
      key[0] = random.below(6);
      const word = hexOf(key);
      if (type !== 'array' && type !== 'percpu_array' && random.below(4) === 0) {
        t.equal((await cli(['delete', source, word])).status, model.delete(word) ? 0 : 1);
      } else if (map.valueStride === map.valueSize) {
        const value = hexOf(random.bytes(map.valueSize));
        await ok(t, 'set', source, word, value);
        model.set(word, value);
      } else {
        // One CPU of an item that is there; else each its own.
        const cpus = sys.cpus;
        const before = map.lookup(key);
        const [one, cpu] = [hexOf(random.bytes(map.valueSize)), random.below(cpus)];
        const values = Array.from({ length: cpus }, () => hexOf(random.bytes(map.valueSize)));
        if (before === undefined) await ok(t, 'set', source, word, JSON.stringify(values));
        else await ok(t, 'set', source, word, `[${cpu}]=${one}`);
        const stride = map.valueStride / cpus;
        const bytes = before === undefined ? Buffer.alloc(map.valueStride) : Buffer.from(before);
        for (let i = 0; i < cpus; i++) {
          if (before === undefined) bytes.write(values[i] as string, i * stride, 'hex');
          else if (i === cpu) bytes.write(one, i * stride, 'hex');
        }
        model.set(word, hexOf(bytes));
      }
      const want = model.get(word);
      // Looking up a prefix finds any shorter one, too.
      const value = type === 'lpm_trie' && want === undefined ? undefined : map.lookup(key);
      if (want !== undefined) t.equal(value && hexOf(value), want, `${type}, step ${step}`);
      const got = await cli(['get', source, word, '--raw']);
      t.equal(got.status, value === undefined ? 1 : 0, got.stderr);
      if (value !== undefined && map.valueStride === map.valueSize) t.equal(got.stdout, `${hexOf(value)}\n`);
    }
  }
  const inner = make('k_inner', 'array');
  const outer = BpfMap.create(sys, {
    type: types.parse('hash_of_maps') as number,
    name: 'k_outer',
    keySize: 4,
    valueSize: 4,
    maxEntries: 4,
    inner: inner.map,
  });
  made.push(outer);
  outer.pin(path.join(folder, 'k_outer'));
  const source = `pinned:${path.join(folder, 'k_outer')}`;
  await ok(t, 'set', source, '7', `{"map_id":${inner.map.id}}`);
  t.equal(await ok(t, 'get', source, '7'), `map_id  ${inner.map.id}`);
  t.match(await refused(t, 1, 'set', source, '7', '{"map_id":4294967295}'), /map 4294967295: no such map/);
});

t.test('a name of any length does not make a message long', async (t) => {
  const folder = dumpOf(
    t.testdir(),
    { id: 1, name: 'n'.repeat(5000), type: 2, max: 1, key: 4, items: [] },
    { id: 2, items: [] },
  );
  for (const args of [
    ['get', folder, '1', '7'],
    ['show', folder, '--map', 'none'],
    ['replay', folder, '--pin', '/nowhere'],
  ]) {
    const { status, stderr } = await cli(args);
    t.not(status, 0, args.join(' '));
    t.ok(stderr.length < 500, `${args[0]}: ${stderr.length} characters`);
  }
});
