/** `bpfimg diff`: what differs is told, whatever order it is in and wherever it comes from. */

import { type ChildProcess, spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { capture } from '../src/capture/capture.js';
import { ItemDifferences } from '../src/diff/differences.js';
import { type CompareLimits, diffItems, type ItemRules, type Items } from '../src/diff/items.js';
import { pairMaps } from '../src/diff/pairs.js';
import { openDump } from '../src/dump/model.js';
import { bufferInput, type Input } from '../src/io/input.js';
import { LiveMaps } from '../src/kernel/live.js';
import { BpfMap } from '../src/kernel/map.js';
import { openSys } from '../src/kernel/sys.js';
import { KeyHash } from '../src/keyhash.js';
import { BtfWriter } from './helpers/btf-writer.js';
import { BPFIMG, copyDump, shell, TOP } from './helpers/command.js';
import { blob, entry, type Item, image, item, mapData, scalar } from './helpers/images.js';
import { bpffs, fillNumbers, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import { Random } from './helpers/random.js';
import { cli, dumpOf, hexOf, someItems } from './helpers/replay.js';
import { types } from './helpers/types.js';

t.setTimeout(patience(300_000));
const skip = await skipWithoutMaps();
const FLOWD = path.join(TOP, 'fixtures/flowd');
const FLOWD_OBJECT = path.join(TOP, 'fixtures/btf/flowd.o');
const [HASH, ARRAY, PROG_ARRAY, PERCPU_HASH, TRIE, HASH_OF_MAPS] = [1, 2, 3, 5, 11, 13] as const;
const [QUEUE, STACK, ARENA] = [22, 23, 33] as const;

// ---------------------------------------------------------------------------------------------------
// Items

/** What differs, in hex: of changed items key, value before and after. */
interface Told {
  changed: string[];
  removed: string[];
  added: string[];
}

/** Items as they are in an image, behind some bytes of something else. */
function itemsOf(list: readonly Item[], keySize: number, valueSize: number): Items {
  const [keys, values] = [0, 1].map((part) => list.map((one) => one[part as 0 | 1]));
  const bytes = Buffer.concat([Buffer.from('head'), ...(keys ?? []), ...(values ?? [])]);
  const valuesAt = 4 + list.length * keySize;
  return { input: bufferInput(bytes), keysAt: 4, valuesAt, count: list.length, keySize, valueSize };
}

/** Few of everything, so that a few hundred items take every way there is. */
const SMALL: CompareLimits = { wide: 64, bytes: 400, items: 20, parts: 3 };

interface Asked {
  readonly rules?: ItemRules;
  readonly limits?: CompareLimits | undefined;
  readonly limit?: number;
  /** Positions held in memory. */
  readonly held?: number | undefined;
}

async function differences(a: readonly Item[], b: readonly Item[], asked: Asked = {}): Promise<Told> {
  const sizes = (list: readonly Item[], other: readonly Item[]) => {
    const [key, value] = list[0] ?? other[0] ?? [Buffer.alloc(0), Buffer.alloc(0)];
    return itemsOf(list, key.length, value.length);
  };
  const [left, right] = [sizes(a, b), sizes(b, a)];
  const found = new ItemDifferences(left.count, right.count, asked.limit ?? 0, false, asked.held);
  const told: Told = { changed: [], removed: [], added: [] };
  try {
    await diffItems(left, right, asked.rules ?? {}, found, asked.limits);
    const text = (one: Item | undefined) => `${hexOf(one?.[0] ?? u32())} ${hexOf(one?.[1] ?? u32())}`;
    for await (const [i, j] of found.changed.list()) told.changed.push(`${text(a[i])} ${hexOf(b[j]?.[1] ?? u32())}`);
    for await (const [i] of found.removed.list()) told.removed.push(text(a[i]));
    for await (const [i] of found.added.list()) told.added.push(text(b[i]));
  } finally {
    found.close();
  }
  return told;
}

/** The same from maps in memory; the order is that of A, and of what is only in B that of B. */
function expected(a: readonly Item[], b: readonly Item[], keyOf: (key: Uint8Array) => string = hexOf): Told {
  const last = (list: readonly Item[]) => {
    const items = new Map<string, Item>();
    for (const one of list) {
      // Its place is that of the last with this key.
      items.delete(keyOf(one[0]));
      items.set(keyOf(one[0]), one);
    }
    return items;
  };
  const [left, right] = [last(a), last(b)];
  const told: Told = { changed: [], removed: [], added: [] };
  for (const [key, [bytes, value]] of left) {
    const other = right.get(key);
    if (other === undefined) told.removed.push(`${hexOf(bytes)} ${hexOf(value)}`);
    else if (hexOf(other[1]) !== hexOf(value)) told.changed.push(`${hexOf(bytes)} ${hexOf(value)} ${hexOf(other[1])}`);
  }
  for (const [key, [bytes, value]] of right) if (!left.has(key)) told.added.push(`${hexOf(bytes)} ${hexOf(value)}`);
  return told;
}

function shuffled<T>(list: readonly T[], random: Random): T[] {
  const all = [...list];
  for (let i = all.length - 1; i > 0; i--) {
    const j = random.below(i + 1);
    [all[i], all[j]] = [all[j] as T, all[i] as T];
  }
  return all;
}

t.test('random items in any order, as maps in memory tell them', async (t) => {
  for (let seed = 0; seed < 300; seed++) {
    const random = new Random(seed);
    const [keySize, valueSize] = [1 + random.below(9), random.below(12)];
    const count = random.below(random.of([3, 40, 400]));
    // Few keys to choose from make repeated ones.
    const keys = Array.from({ length: 1 + random.below(count + 1) }, () => random.bytes(keySize));
    const a: Item[] = Array.from({ length: count }, () => [random.of(keys), random.bytes(valueSize)]);
    let b: Item[] = random.below(3) === 0 ? [...a] : shuffled(a, random);
    const rate = random.of([0, 1, 10, 100]);
    b = b.flatMap((one): Item[] => {
      if (random.below(100) >= rate) return [one];
      return random.of<Item[]>([
        [],
        [[one[0], random.bytes(valueSize)]],
        [one, [random.bytes(keySize), random.bytes(valueSize)]],
        [one, [random.of(keys), random.bytes(valueSize)]],
      ]);
    });
    const limits = random.of([undefined, SMALL, { ...SMALL, wide: 4 }]);
    const told = await differences(a, b, { limits, held: random.of([undefined, 2, 16]) });
    if (!t.strictSame(told, expected(a, b), `seed ${seed}: ${count} items of ${keySize}+${valueSize}`)) return;
  }
});

t.test('values of other sizes', async (t) => {
  const a = someItems(50, 4, 8);
  const b = someItems(50, 4, 16);
  for (const limits of [undefined, SMALL, { ...SMALL, wide: 8 }]) {
    t.strictSame(await differences(a, b, { limits }), expected(a, b));
    const other = someItems(50, 5, 8);
    t.strictSame(await differences(a, other, { limits }), expected(a, other), 'keys of other sizes');
    t.strictSame(await differences(a, [], { limits }), expected(a, []), 'nothing on one side');
    t.strictSame(await differences([], a, { limits }), expected([], a));
  }
});

t.test('bytes between the values of two CPUs do not count, whichever way items are compared', async (t) => {
  const padded = (key: number, byte: number, padding: number): Item => {
    const value = Buffer.alloc(64, padding);
    for (let at = 0; at < 64; at += 16) value.fill(byte, at, at + 11);
    return [u32(key), value];
  };
  const a = Array.from({ length: 40 }, (_, key) => padded(key, key, 0));
  const b = [...a.map((_, key) => padded(key, key === 7 ? 99 : key, 0xee))];
  for (const items of [b, shuffled(b, new Random(1))]) {
    for (const limits of [undefined, SMALL, { ...SMALL, wide: 4096 }]) {
      const { changed, removed, added } = await differences(a, items, { rules: { perCpu: 11 }, limits });
      t.match(changed, [/^07000000 /]);
      t.equal(changed.length, 1);
      t.same([removed, added], [[], []]);
    }
  }
});

t.test('the last of several items with one key counts, at any position', async (t) => {
  const [x, y, z] = ['01', '02', '03'] as const;
  const same = item('aa', x);
  for (const limits of [undefined, { ...SMALL, wide: 2 }]) {
    // The pair that is the same at one place in both is not what counts in B.
    const told = await differences([same, item('bb', y)], [same, item('bb', y), item('aa', z)], { limits });
    t.strictSame(told, { changed: ['aa 01 03'], removed: [], added: [] });
    t.strictSame(
      await differences([item('aa', z), same], [same], { limits }),
      { changed: [], removed: [], added: [] },
      'what was overridden is no difference',
    );
    t.strictSame(
      await differences([item('aa', x), item('bb', x), item('aa', y)], [item('aa', z), item('bb', x), item('aa', y)], {
        limits,
      }),
      { changed: [], removed: [], added: [] },
    );
  }
});

t.test('a limit keeps the first of each kind and counts all', async (t) => {
  const a = someItems(500);
  const b = a.slice(100).map(([key, value], i): Item => [key, i % 2 === 0 ? value : Buffer.alloc(8)]);
  for (const held of [undefined, 16]) {
    const all = expected(a, b);
    const told = await differences(a, shuffled(b, new Random(1)), { limit: 5, limits: SMALL, held });
    t.strictSame(told, { changed: all.changed.slice(0, 5), removed: all.removed.slice(0, 5), added: [] });
    const found = new ItemDifferences(a.length, b.length, 5, false, held);
    await diffItems(itemsOf(a, 4, 8), itemsOf(b, 4, 8), {}, found, SMALL);
    t.strictSame([found.changed.count, found.removed.count, found.added.count], [200, 100, 0]);
    found.close();
  }
});

t.test('values in order: each at its place, or what both begin and end with', async (t) => {
  const values = (text: string): Item[] => [...text].map((char) => [Buffer.alloc(0), Buffer.from(char)]);
  const cases: [a: string, b: string, changed: string, removed: string, added: string][] = [
    ['abcd', 'abcd', '', '', ''],
    ['abcd', 'abXd', 'c', '', ''],
    ['abcd', 'xycd', 'ab', '', ''],
    ['abcd', 'cdef', 'abcd', '', ''],
    ['abcd', 'cdefg', '', 'abcd', 'cdefg'],
    ['abcd', 'xyz', '', 'abcd', 'xyz'],
    ['abcd', 'd', '', 'abc', ''],
    ['abcd', 'cd', '', 'ab', ''],
    ['abcd', 'abd', '', 'c', ''],
    ['abcd', 'ab', '', 'cd', ''],
    ['abcd', 'xyzbcd', '', 'a', 'xyz'],
    ['ab', 'aab', '', '', 'a'],
    ['aaa', 'aa', '', 'a', ''],
    ['abab', 'abxab', '', '', 'x'],
    ['', 'xy', '', '', 'xy'],
  ];
  const text = (list: string[]) => list.map((one) => Buffer.from(one.split(' ')[1] ?? '', 'hex').toString()).join('');
  for (const [a, b, changed, removed, added] of cases) {
    const told = await differences(values(a), values(b), { rules: { ordered: true } });
    const got = { changed: text(told.changed), removed: text(told.removed), added: text(told.added) };
    t.strictSame(got, { changed, removed, added }, `${a} ${b}`);
  }
  // More than a window of them, and each larger than one.
  const many = values('abcdefgh'.repeat(50_000));
  const other = [...many.slice(0, 300_000), ...values('Y'), ...many.slice(300_002)];
  const told = await differences(many, other, { rules: { ordered: true } });
  t.strictSame([told.changed.length, told.removed.length, told.added.length], [0, 2, 1]);
  const wide = ['a', 'b', 'c'].map((char): Item => [Buffer.alloc(0), Buffer.alloc(3 << 20, char)]);
  const edited = wide.map(([key, value]): Item => [key, Buffer.from(value)]);
  edited[1]?.[1].set([0, 1], 2 << 20);
  const places = await differences(wide, edited, { rules: { ordered: true } });
  t.strictSame([places.changed.length, places.removed.length, places.added.length], [1, 0, 0]);
});

t.test('keys made to collide do not', async (t) => {
  // Flipping the same upper bits of two words passes through hashes that multiply and shift, whatever their seed.
  const count = 1 << 16;
  const list = Array.from({ length: count }, (_, i): Item => {
    const key = Buffer.alloc(128);
    for (let pair = 0; pair < 16; pair++) {
      if ((i & (1 << pair)) === 0) continue;
      key.writeUInt32LE(0x8000_0000, 8 * pair);
      key.writeUInt32LE(0x8004_0000, 8 * pair + 4);
    }
    return [key, u32(i)];
  });
  const hash = new KeyHash();
  const hashes = new Set(list.map(([key]) => hash.of(new DataView(key.buffer, key.byteOffset), 0, key.length)));
  t.ok(hashes.size > count * 0.999, `${hashes.size} hashes of ${count} keys`);
  const start = Date.now();
  const told = await differences(list, [...list].reverse(), {
    limits: { ...SMALL, wide: 1024, items: 1000, bytes: 1e6 },
  });
  t.strictSame(told, { changed: [], removed: [], added: [] });
  t.ok(Date.now() - start < 30_000, 'in no time');
});

/** Items that are nowhere: `keyAt` says which key is at a position, and the key what its value is. */
function virtualItems(count: number, valueSize: number, keyAt: (position: number) => number, odd = -1): Items {
  const size = count * (8 + valueSize);
  const put = (into: Uint8Array, position: number, start: number, stride: number, of: (i: number) => number) => {
    const view = new DataView(into.buffer, into.byteOffset, into.byteLength);
    let at = 0;
    // Words of 4 bytes; whoever reads comes at multiples of them.
    for (; at + 4 <= into.length && position + at < start + count * stride; at += 4) {
      const i = Math.floor((position + at - start) / stride);
      view.setUint32(at, of(i) + ((position + at - start) % stride), true);
    }
    return at;
  };
  const read: Input['read'] = (into, position) => {
    if (position < 8 * count) return put(into, position, 0, 8, (i) => Math.imul(keyAt(i), 0x9e37_79b1) >>> 0);
    return put(into, position, 8 * count, valueSize, (i) => (keyAt(i) === odd ? 1 : keyAt(i) * 2));
  };
  const input: Input = { name: 'virtual', size, path: undefined, read, close() {} };
  return { input, keysAt: 0, valuesAt: 8 * count, count, keySize: 8, valueSize };
}

t.test('memory does not grow with items in another order', async (t) => {
  const inUse = () => process.memoryUsage().heapUsed + process.memoryUsage().external;
  const count = 1_000_000;
  const a = virtualItems(count, 120, (i) => i);
  // 7919 is prime, so that is every key once.
  const b = virtualItems(count, 120, (i) => (i * 7919) % count, 12_345);
  const idle = inUse();
  let peak = 0;
  const { read } = b.input;
  const watched: Items = {
    ...b,
    input: {
      ...b.input,
      read(into, position) {
        peak = Math.max(peak, inUse());
        return read(into, position);
      },
    },
  };
  const found = new ItemDifferences(count, count, 0);
  const timer = setInterval(() => {
    peak = Math.max(peak, inUse());
  }, 20);
  await diffItems(a, watched, {}, found);
  clearInterval(timer);
  t.strictSame([found.changed.count, found.removed.count, found.added.count], [1, 0, 0]);
  for await (const [position, other] of found.changed.list()) {
    t.equal(position, 12_345);
    t.equal((other * 7919) % count, 12_345);
  }
  found.close();
  t.ok(peak - idle < 120 * 1024 * 1024, `${Math.round((peak - idle) / 1024 / 1024)} MiB of ${256} MiB of items`);
});

t.test('one key again and again takes no memory', async (t) => {
  const count = 300_000;
  const a = virtualItems(count, 8, () => 5);
  const b = virtualItems(count - 1, 8, () => 5, 5);
  const found = new ItemDifferences(a.count, b.count, 0);
  await diffItems(a, b, {}, found, { ...SMALL, wide: 1024 });
  t.strictSame([found.changed.count, found.removed.count, found.added.count], [1, 0, 0]);
  for await (const pair of found.changed.list()) t.strictSame(pair, [count - 1, count - 2], 'the last ones');
  found.close();
});

// ---------------------------------------------------------------------------------------------------
// The command

async function lines(
  args: readonly string[],
  input?: string,
): Promise<{ status: number | null; text: string; said: string }> {
  const { status, stdout, stderr } = await cli(['diff', ...args], input === undefined ? {} : { input });
  return { status, text: stdout, said: stderr };
}

interface JsonItem {
  change: string;
  key?: unknown;
  index?: number;
  a?: unknown;
  b?: unknown;
  members?: string[];
}

interface JsonDiff {
  format: string;
  a: string;
  b: string;
  maps: {
    map_id: unknown;
    name?: string;
    only?: string;
    attributes?: Record<string, { a: unknown; b: unknown }>;
    changed?: number;
    removed?: number;
    added?: number;
    items?: JsonItem[];
  }[];
  different: boolean;
}

async function json(args: readonly string[], input?: string): Promise<JsonDiff> {
  const { status, text, said } = await lines([...args, '--json'], input);
  const value = JSON.parse(text) as JsonDiff;
  if (value.different !== (status === 1)) throw new Error(`exit code ${status}: ${said}`);
  return value;
}

/** A document of the real dump, typed, with `edit` applied. */
async function document(edit: (text: string) => string, args: readonly string[] = []): Promise<string> {
  const { stdout, status, stderr } = await cli(['decode', FLOWD, ...args]);
  if (status !== 0) throw new Error(stderr);
  const edited = edit(stdout);
  return edited;
}

t.test('the real dump: nothing differs from itself, in any form', async (t) => {
  const nothing = { status: 0, text: '', said: '' };
  t.strictSame(await lines([FLOWD, FLOWD]), nothing);
  t.strictSame(await lines([FLOWD, '-'], await document((text) => text)), nothing, 'a document');
  t.strictSame(await lines(['-', FLOWD], await document((text) => text, ['--format', 'ndjson'])), nothing, 'ndjson');
  t.strictSame(await lines([FLOWD, '-'], await document((text) => text, ['--btf', FLOWD_OBJECT])), nothing, 'typed');
  t.strictSame(await lines([FLOWD, '-'], await document((text) => text, ['--pretty'])), nothing, 'pretty');
  t.strictSame(await lines([`${FLOWD}/files.img`, `${FLOWD}/files.img`]), nothing);
  const data = path.join(FLOWD, 'bpfmap-data.img');
  for (const format of ['items', 'crit', 'ndjson']) {
    const { stdout } = await cli(['decode', data, '--format', format]);
    t.strictSame(await lines([data, '-'], stdout), nothing, format);
  }
  const go = fs.readFileSync(path.join(TOP, 'fixtures/expected/bpfmap-data.go-crit.json'), 'utf8');
  t.strictSame(await lines([data, '-'], go), nothing, "go-criu's crit");
  t.strictSame(await json([FLOWD, FLOWD]), { format: 'bpfimg-diff/1', a: FLOWD, b: FLOWD, maps: [], different: false });
  // What is known on one side only is no difference, and said.
  const { said, ...half } = await lines([FLOWD, data]);
  t.strictSame(half, { status: 0, text: '' });
  t.equal(said, `bpfimg: note: ${data}: attributes of its maps are unknown: only items are compared\n`);
  t.match(await lines([`${FLOWD}/files.img`, FLOWD]), {
    status: 0,
    text: '',
    said: /files.img: there are no items in it/,
  });
  t.match(await lines([`${FLOWD}/files.img`, data]), { status: 0, text: '' });
});

t.test('an edit is told, as bytes and by types', async (t) => {
  const folder = path.join(t.testdir(), 'changed');
  copyDump(folder);
  const text = await document((all) => all, ['--btf', FLOWD_OBJECT]);
  const edited = text
    .replace('"packets":84001', '"packets":1')
    .replace('"state":"TCP_CLOSE"', '"state":"TCP_LISTEN"')
    .replace('"max_entries":1024', '"max_entries":4096')
    .replace('"1b010203ff"', '"1b010203fe"')
    .replace(/\n {4}\{"key":"0e2a62".*/, '\n    {"key":"ffffff","value":"0000000000"},');
  t.equal((await cli(['encode', '-D', folder, '--force'], { input: edited })).status, 0);
  const key = '{"saddr":167793749,"daddr":167837611,"sport":1612,"dport":53,"proto":17}';
  const odd = [
    'map 380 odd_sizes: 1 item changed, 1 removed, 1 added',
    '  ~ 1b51bd',
    '    - 1b010203 ff',
    '    + 1b010203 fe',
    '               ^^',
    '  - 0e2a62  0e010203 ff',
    '  + ffffff  00000000 00',
    '',
  ];
  t.strictSame(await lines([FLOWD, folder]), {
    status: 1,
    text: [
      `--- ${FLOWD}`,
      `+++ ${folder}`,
      '',
      'map 377 flows: 1 attribute changed; 1 item changed',
      '  max_entries: 1024 → 4096',
      '  ~ 5554000a abff000a 4c063500 11000000',
      '    - 0000  21480100 00000000 00a0ea1a 04000000',
      '    + 0000  01000000 00000000 00a0ea1a 04000000',
      '            ^^^^^^',
      '    - 0010  54f15365 07000000',
      '    + 0010  54f15365 0a000000',
      '                     ^^',
      '',
      ...odd,
    ].join('\n'),
    said: '',
  });
  const typed = await lines([FLOWD, folder, '--btf', FLOWD_OBJECT, '--map', 'flows']);
  t.strictSame(typed, {
    status: 1,
    text: [
      `--- ${FLOWD}`,
      `+++ ${folder}`,
      '',
      'map 377 flows: 1 attribute changed; 1 item changed',
      '  max_entries: 1024 → 4096',
      `  ~ ${key}`,
      '      .packets: 84001 → 1',
      '      .state: "TCP_CLOSE" → "TCP_LISTEN"',
      '',
    ].join('\n'),
    said: '',
  });
  t.equal(
    (await lines([FLOWD, '-', '--map', '377'], edited)).text,
    typed.text.replace(folder, 'standard input'),
    'types of one side',
  );
  const { maps } = await json([FLOWD, folder, '--btf', FLOWD_OBJECT]);
  t.strictSame(
    maps.map(({ items, ...rest }) => rest),
    [
      {
        map_id: { a: 377, b: 377 },
        name: 'flows',
        attributes: { max_entries: { a: 1024, b: 4096 } },
        changed: 1,
        removed: 0,
        added: 0,
      },
      { map_id: { a: 380, b: 380 }, name: 'odd_sizes', attributes: {}, changed: 1, removed: 1, added: 1 },
    ],
  );
  t.match(maps[0]?.items, [{ change: 'changed', key: JSON.parse(key), a: { packets: 84001 }, b: { packets: 1 } }]);
  t.strictSame(maps[0]?.items?.[0]?.members, ['.packets', '.state']);
  t.strictSame(maps[1]?.items, [
    { change: 'changed', key: '1b51bd', a: '1b010203ff', b: '1b010203fe' },
    { change: 'removed', key: '0e2a62', a: '0e010203ff' },
    { change: 'added', key: 'ffffff', b: '0000000000' },
  ]);
  t.strictSame(await lines([FLOWD, folder, '-q']), { status: 1, text: '', said: '' });
  t.strictSame(await lines([FLOWD, folder, '--map', 'cfg']), { status: 0, text: '', said: '' });
  const { text: coloured } = await lines([FLOWD, folder, '--map', '380', '--color']);
  t.match(coloured, '\x1b[31mff\x1b[39m');
  t.match(coloured, '\x1b[32mfe\x1b[39m');
  t.notMatch(coloured, '^^', 'colours are marks enough');
});

t.test('--limit', async (t) => {
  const [a, b] = [someItems(30), someItems(30)];
  for (const [, value] of b) value[0] = 0xee;
  const parent = t.testdir();
  const folders = [a, b].map((items) => dumpOf(parent, { id: 1, max: 64, items }));
  const count = async (...args: string[]) => (await lines([...folders, ...args])).text.match(/^ {2}~/gm)?.length ?? 0;
  t.equal(await count(), 10);
  t.equal(await count('--limit', '3'), 3);
  t.equal(await count('--limit', '0'), 30);
  t.match((await lines([...folders, '--limit', '29'])).text, '… 1 more changed (--limit N shows N, 0 all)');
  t.equal((await json(folders)).maps[0]?.items?.length, 30);
  t.equal((await json([...folders, '--limit', '4'])).maps[0]?.items?.length, 4);
  t.match(await lines([...folders, '--limit', 'x']), { status: 2 });
});

t.test('any error exits with 2', async (t) => {
  const parent = t.testdir({ empty: {}, 'text.json': '{"format":"bpfimg-maps/1","maps":[{"map_id":"x"}]}' });
  const short = path.join(parent, 'short.img');
  fs.writeFileSync(short, fs.readFileSync(path.join(FLOWD, 'bpfmap-data.img')).subarray(0, 5000));
  const cases: [args: string[], message: RegExp][] = [
    [[FLOWD, 'nothing-here'], /nothing-here: cannot open it: no such file or folder/],
    [['nothing-here', FLOWD], /nothing-here/],
    [[FLOWD, path.join(parent, 'empty')], /empty: no files.img/],
    [[FLOWD, short], /short.img: entry 0 .*is the image truncated/],
    [[FLOWD, path.join(parent, 'text.json')], /text.json: \/maps\/0.*line 1/],
    [[FLOWD, path.join(FLOWD, 'pstree.img')], /pstree.img: a PSTREE image has no BPF maps\n$/],
    [[FLOWD, path.join(TOP, 'README.md')], /README.md: .*is not an image magic/],
    [[FLOWD, FLOWD, '--map', 'nope'], /--map nope: no such map in/],
    [[FLOWD, FLOWD, '--type', 'nope=int:int'], /--type nope=int:int: no such map in/],
    [[FLOWD, FLOWD, '--btf', 'nope.o'], /nope.o: cannot open it/],
    [['-', '-'], /two inputs from standard input/],
    [[FLOWD], /diff needs B/],
    [[FLOWD, 'id:'], /expected id:N, name:NAME/],
    [[FLOWD, 'id:x'], /--id x: expected a number/],
    [[FLOWD, 'all:x'], /expected id:N/],
    [[FLOWD, '-L', 'nope', FLOWD], /nope: cannot read it/],
  ];
  for (const [args, message] of cases) {
    const { status, text, said } = await lines(args, '');
    t.equal(status, 2, args.join(' '));
    t.equal(text, '');
    t.match(said, message);
    t.match(said, /^bpfimg: [^\n]+\n$/, 'one line');
  }
  // One that broke between looking at it and reading it.
  const image = path.join(parent, 'whole.img');
  fs.copyFileSync(path.join(FLOWD, 'bpfmap-data.img'), image);
  t.match(await lines([image, FLOWD, '--debug']), { status: 0 });
  t.match(await lines([FLOWD, short, '--debug']), { status: 2, said: /at .*reader/ });
});

t.test('attributes, and what is none', async (t) => {
  const parent = t.testdir();
  const items = someItems(2);
  const one = dumpOf(parent, { id: 5, name: 'm', items });
  const other = dumpOf(parent, { id: 9, name: 'm', max: 32, flags: 1, frozen: true, items });
  const { maps } = await json([one, other]);
  t.strictSame(maps, [
    {
      map_id: { a: 5, b: 9 },
      name: 'm',
      attributes: {
        max_entries: { a: 16, b: 32 },
        map_flags: { a: [], b: ['BPF_F_NO_PREALLOC'] },
        frozen: { a: false, b: true },
      },
      changed: 0,
      removed: 0,
      added: 0,
      items: [],
    },
  ]);
  const { text } = await lines([one, other]);
  t.match(
    text,
    'map 5 → 9 m: 3 attributes changed\n  max_entries: 16 → 32\n  map_flags: none → no_prealloc\n  frozen: no → yes\n',
  );
  // Ids, memlock and holders are other ones after every restore.
  const moved = await document((all) =>
    all
      .replaceAll('"pid":22139', '"pid":7')
      .replaceAll(/"memlock":\d+/g, '"memlock":1')
      .replaceAll('"map_id":38', '"map_id":8'),
  );
  t.strictSame(await lines([FLOWD, '-'], moved), { status: 0, text: '', said: '' });
  const held = await lines([FLOWD, '-', '--holders', '--map', 'cfg'], moved);
  t.match(held, { status: 1, text: /holders: 22137:4 rw, 22139:4 rw → 7:4 rw, 22137:4 rw/ });
  // Another open file of the same map that is said to be something else.
  const second = await document((all) => all.replace('{"id":17,', '{"id":17,"frozen":true,'));
  t.match(await lines([FLOWD, '-'], second), {
    status: 1,
    text: /map 377 flows: 1 attribute changed\n {2}files: \[\] → \[\{"frozen":true\}\]/,
  });
});

t.test('which map is which', async (t) => {
  const parent = t.testdir();
  type Map = Parameters<typeof dumpOf>[1];
  const paired = async (a: readonly Map[], b: readonly Map[]) => {
    const [left, right] = [await openDump(dumpOf(parent, ...a)), await openDump(dumpOf(parent, ...b))];
    const pairs = pairMaps(left, right).map((pair) => `${pair.a?.mapId ?? '-'} ${pair.b?.mapId ?? '-'}`);
    left.close();
    right.close();
    return pairs;
  };
  const map = (id: number, name = 'm', more: Partial<Map> = {}): Map => ({ id, name, ...more });
  t.strictSame(await paired([map(1, 'x'), map(2, 'y')], [map(2, 'x'), map(1, 'y')]), ['1 2', '2 1'], 'by name');
  t.strictSame(await paired([map(4), map(5)], [map(5), map(6)]), ['4 6', '5 5'], 'the same id, name and type');
  t.strictSame(await paired([map(4), map(5)], [map(6), map(7)]), ['4 6', '5 7'], 'in order');
  t.strictSame(
    await paired([map(4, 'm', { key: 8 }), map(5)], [map(6), map(7, 'm', { key: 8 })]),
    ['4 7', '5 6'],
    'by sizes',
  );
  t.strictSame(await paired([map(4, ''), map(5, '', { type: ARRAY })], [map(7, '', { type: ARRAY }), map(8, '')]), [
    '4 8',
    '5 7',
  ]);
  t.strictSame(
    await paired([map(4, ''), map(9)], [map(7, '', { value: 16 }), map(8)]),
    ['4 -', '9 8', '- 7'],
    'no name, no shape',
  );
  t.strictSame(await paired([map(4, 'x'), map(9)], [map(4, 'y'), map(9)]), ['4 4', '9 9'], 'renamed');
  t.strictSame(
    await paired([map(4, 'x'), map(9)], [map(4, 'y', { type: ARRAY }), map(9)]),
    ['4 -', '9 9', '- 4'],
    'the id of another',
  );
  t.strictSame(await paired([map(4, 'x')], [map(7, 'y', { type: ARRAY })]), ['4 7'], 'one on each side');
  t.strictSame(await paired([], [map(7)]), ['- 7']);
  // Ids of another boot mean nothing.
  const boots = ['one', 'two'].map((boot, i) => {
    const folder = dumpOf(parent, ...(i === 0 ? [map(4), map(5)] : [map(5), map(6)]));
    return { folder, boot };
  });
  for (const { folder, boot } of boots) {
    const { stdout } = await cli(['decode', folder]);
    const input = stdout.replaceAll('"memlock"', `"meta":{"boot_id":"${boot}"},"memlock"`);
    const { status, stderr } = await cli(['encode', '-D', folder, '--force'], { input });
    t.equal(status, 0, stderr);
  }
  const [left, right] = [await openDump(boots[0]?.folder ?? ''), await openDump(boots[1]?.folder ?? '')];
  t.strictSame(
    pairMaps(left, right).map(({ a, b }) => [a?.mapId, b?.mapId]),
    [
      [4, 5],
      [5, 6],
    ],
  );
  left.close();
  right.close();
});

t.test('maps on one side, and data without a map', async (t) => {
  const parent = t.testdir();
  const items = someItems(2);
  const a = dumpOf(parent, { id: 1, name: 'x', items }, { id: 2, name: 'y' });
  const b = dumpOf(parent, { id: 1, name: 'x', items }, { id: 3, name: 'z', type: ARRAY, items });
  t.match(await lines([a, b]), {
    status: 1,
    text: `--- ${a}\n+++ ${b}\n\n- map 2 y (hash): only in ${a}\n+ map 3 z (array, 2 items): only in ${b}\n`,
  });
  t.strictSame((await json([a, b])).maps, [
    { only: 'a', map_id: 2, name: 'y', type: 'hash' },
    { only: 'b', map_id: 3, name: 'z', type: 'array', items: 2 },
  ]);
  // No data in an image that has that of others is what a restore makes of it: an empty map.
  const empty = dumpOf(parent, { id: 1, name: 'x' }, { id: 2, name: 'y' });
  t.match(await lines([a, empty]), { status: 1, text: /map 1 x: 2 items removed/ });
  // After a replay the ids are others, and bare data has no names.
  const [one, other] = [1, 7].map((id) => {
    const file = path.join(parent, `${id}.img`);
    fs.writeFileSync(file, image('BPFMAP_DATA', mapData(id, items)));
    return file;
  }) as [string, string];
  t.strictSame(await lines([one, other]), { status: 0, text: '', said: '' });
  t.match(await lines([b, other, '--map', 'x']), { status: 0, text: '', said: /attributes of its maps are unknown/ });
});

t.test('data that is no items', async (t) => {
  const parent = t.testdir();
  const broken = (last: number) => {
    const message = Buffer.concat([scalar(1, 1), scalar(2, 5), scalar(3, 4), scalar(4, 2)]);
    const file = path.join(parent, `${last}.img`);
    fs.writeFileSync(file, image('BPFMAP_DATA', entry(message, Buffer.alloc(8), Buffer.from([last]))));
    return file;
  };
  t.strictSame(await lines([broken(1), broken(1)]), { status: 0, text: '', said: '' });
  t.match(await lines([broken(1), broken(2)]), {
    status: 1,
    text: /map 1: 1 attribute changed\n {2}data: 9 bytes that do not divide into 2 equal items → 9 bytes that do not divide into 2 equal items/,
  });
});

t.test('what a map type makes the same', async (t) => {
  const parent = t.testdir();
  const trie = (key: string) => dumpOf(parent, { id: 1, type: TRIE, key: 8, value: 1, items: [item(key, '01')] });
  t.match(await lines([trie('1000000003021122'), trie('1000000003021199')]), { status: 0 }, 'bits beyond the prefix');
  t.match(await lines([trie('1000000003021122'), trie('1000000003031122')]), { status: 1 });
  t.match(await lines([trie('0f00000003021122'), trie('0f00000003031122')]), { status: 0 }, 'bits, not bytes');
  // Inner maps are other ones after a replay: which they are counts, not their ids.
  const outer = (outerId: number, ...inner: number[]) =>
    dumpOf(
      parent,
      {
        id: outerId,
        name: 'outer',
        type: HASH_OF_MAPS,
        value: 4,
        items: inner.map((id, i) => [u32(i), u32(id)] as const),
      },
      { id: outerId + 1, name: 'x' },
      { id: outerId + 2, name: 'y' },
    );
  t.strictSame(await lines([outer(10, 11, 12), outer(20, 21, 22)]), { status: 0, text: '', said: '' });
  t.match(await lines([outer(10, 11, 12), outer(20, 22, 22)]), {
    status: 1,
    text: /map 10 → 20 outer: 1 item changed\n {2}~ 00000000\n {6}\.map_id: 11 → 22\n/,
  });
  t.match(await lines([outer(10, 11), outer(11, 11)]), { status: 1 }, 'the same number, another map');
  // Programs likewise, where the images say which they are.
  const programs = (id: number, program: number, name: string) => {
    const folder = dumpOf(parent, { id, name: 'jumps', type: PROG_ARRAY, value: 4, items: [[u32(0), u32(program)]] });
    const reference = blob(13, blob(1, u32(0)), blob(2, scalar(1, program), blob(3, Buffer.from(name))));
    fs.writeFileSync(
      path.join(folder, 'bpfmap-meta.img'),
      image('BPFMAP_META', entry(Buffer.concat([scalar(1, id), reference]))),
    );
    return folder;
  };
  const { stdout } = await cli(['decode', programs(1, 77, 'drop')]);
  t.match(stdout, '"program":{"id":77,"name":"drop"}', 'the test builds what it means');
  t.match(await lines([programs(1, 77, 'drop'), programs(5, 99, 'drop')]), { status: 0 });
  t.match(await lines([programs(1, 77, 'drop'), programs(5, 99, 'pass')]), { status: 1, text: /1 item changed/ });
});

t.test('items without a key are told apart by their order, pages of an arena by their numbers', async (t) => {
  const parent = t.testdir();
  const page = (byte: number) => Buffer.alloc(4096, byte);
  const dump = (type: number, ...items: Item[]) =>
    dumpOf(parent, { id: 1, name: 'm', type, key: 0, value: type === ARENA ? 0 : 4096, items });
  const pages = (...numbers: number[]) => dump(ARENA, ...numbers.map((no, i): Item => [u32(no), page(i)]));
  const { status, text } = await lines([pages(1, 2), pages(1, 3)]);
  t.equal(status, 1, 'the same bytes in another page');
  t.match(text, /map 1 m: 1 item removed, 1 added\n {2}- 02000000 /);
  t.equal((await lines([pages(1, 2), pages(1, 2)])).status, 0);
  const pushed = (...bytes: number[]) => dump(QUEUE, ...bytes.map((byte): Item => [Buffer.alloc(0), page(byte)]));
  t.equal((await lines([pushed(1, 2), pushed(2, 1)])).status, 1);
  const unknown = (...bytes: number[]) => dump(99, ...bytes.map((byte): Item => [Buffer.alloc(0), page(byte)]));
  t.equal((await lines([unknown(1, 2), unknown(3, 2)])).status, 1, 'of a type that nobody knows as well');
});

t.test('per-CPU values, one by one', async (t) => {
  const parent = t.testdir();
  const dump = (...values: string[]) =>
    dumpOf(parent, { id: 1, name: 'hits', type: PERCPU_HASH, value: 4, items: [item('01000000', values.join(''))] });
  const [one, two] = ['1111111100000000', '2222222200000000'];
  const { status, text } = await lines([dump(one, one), dump(one, two)]);
  t.equal(status, 1);
  t.match(
    text,
    'map 1 hits: 1 item changed\n  ~ 01000000\n    cpu1\n    - 11111111 00000000\n    + 22222222 00000000\n      ^^^^^^^^\n',
  );
  t.strictSame((await json([dump(one, one), dump(one, two)])).maps[0]?.items, [
    { change: 'changed', key: '01000000', a: ['11111111', '11111111'], b: ['11111111', '22222222'] },
  ]);
  t.equal((await lines([dump(one, one), dump(one, '11111111deadbeef')])).status, 0, 'what fills it up to 8 bytes');
  const more = await lines([dump(one), dump(one, two)]);
  t.match(more.text, '    cpu1\n    - none\n    + 22222222 00000000\n', 'another number of CPUs');
  const empty = dumpOf(parent, { id: 1, name: 'hits', type: PERCPU_HASH, value: 4, items: [] });
  const gone = (await lines([dump(one, two), empty])).text;
  t.match(gone, '  - 01000000  cpu0  11111111\n  -           cpu1  22222222\n');
});

t.test('types of the dumps', async (t) => {
  const parent = t.testdir();
  /** A map of `struct v { int packets; int MEMBER; }`, in a BTF object of that id. */
  const dump = (member: string, value: string, btfId = 3, more: Buffer = Buffer.alloc(0)) => {
    const btf = new BtfWriter();
    if (btfId !== 3) btf.int('something else', 1);
    const int = btf.int('int', 4, { encoding: 1 });
    const struct = btf.struct('v', 8, [
      { name: 'packets', type: int, at: 0 },
      { name: member, type: int, at: 32 },
    ]);
    const bytes = btf.bytes();
    const folder = dumpOf(parent, { id: 1, items: [item('01000000', value)] });
    const put = (name: string, ...parts: Parameters<typeof image>) =>
      fs.writeFileSync(path.join(folder, name), image(...parts));
    const meta = [scalar(1, 1), scalar(4, btfId), scalar(5, int), scalar(6, struct), more];
    put('bpfmap-meta.img', 'BPFMAP_META', entry(Buffer.concat(meta)));
    put('bpfmap-btf.img', 'BPFMAP_BTF', entry(Buffer.concat([scalar(1, btfId), scalar(2, bytes.length)]), bytes));
    return folder;
  };
  const one = dump('bytes', '0500000006000000');
  t.strictSame(
    await lines([one, dump('bytes', '0500000006000000', 9)]),
    { status: 0, text: '', said: '' },
    'ids of types',
  );
  t.match(await lines([one, dump('bytes', '0600000006000000')]), {
    status: 1,
    text: 'map 1 m: 1 item changed\n  ~ 1\n      .packets: 5 → 6\n',
  });
  const renamed = [one, dump('size', '0500000007000000')];
  t.match(
    (await lines(renamed)).text,
    '  types: int: struct v, defined otherwise\n  ~ 1\n      .bytes: 6 → none\n      .size: none → 7\n',
  );
  t.match((await json(renamed)).maps[0]?.attributes?.types?.a, { key: 'int', value: 'struct v', c: /int bytes;/ });
  const without = dumpOf(parent, { id: 1, items: [item('01000000', '0500000006000000')] });
  t.strictSame(await lines([one, without]), { status: 0, text: '', said: '' }, 'a CRIU dump knows no types');
  // A capture does: that there are none is something else.
  fs.writeFileSync(
    path.join(without, 'bpfmap-meta.img'),
    image('BPFMAP_META', entry(Buffer.concat([scalar(1, 1), blob(3, Buffer.from('6.18'))]))),
  );
  t.match((await lines([one, without])).text, 'types: int: struct v → none\n');
});

t.test('values that are not shown whole', async (t) => {
  const parent = t.testdir();
  const dump = (value: Buffer, key = u32(1)) =>
    dumpOf(parent, { id: 1, key: key.length, value: value.length, items: [[key, value]] });
  const value = Buffer.alloc(200_000);
  const other = Buffer.from(value);
  for (const at of [3, 70_000, 70_016, 140_000, 180_000, 199_999]) other[at] = 1;
  const pair = [dump(value), dump(other)];
  const { text } = await lines(pair);
  t.match(text, /map 1 m: 1 item changed\n {2}~ 01000000\n {4}- 0000 {2}00000000/);
  t.equal(text.match(/^ {4}\+/gm)?.length, 4);
  t.match(text, /\n {6}… 2 more rows of 16 bytes\n$/);
  t.match(text, '    + 11170  01000000', 'by their offset');
  t.strictSame((await json(pair)).maps[0]?.items, [
    { change: 'changed', key: '01000000', a: hexOf(value), b: hexOf(other) },
  ]);
  const added = await lines([dumpOf(parent, { id: 1, value: value.length, items: [] }), pair[0] ?? '']);
  t.match(added.text, / {2}\+ 01000000 {2}(00000000 ){16}… 199936 more bytes\n$/);
  // Keys that are too long to be looked at in one piece.
  const key = Buffer.alloc(150_000, 7);
  const changed = Buffer.from(key);
  changed[149_999] = 8;
  t.match(await lines([dump(value, key), dump(value, key)]), { status: 0 });
  t.match(await lines([dump(value, key), dump(other, key)]), {
    status: 1,
    text: /1 item changed\n {2}~ (07070707 ){16}…/,
  });
  t.match(await lines([dump(value, key), dump(value, changed)]), { status: 1, text: /1 item removed, 1 added/ });
});

t.test('queues of a drained capture', async (t) => {
  const parent = t.testdir();
  const queue = (...values: number[]) =>
    dumpOf(parent, {
      id: 1,
      type: QUEUE,
      key: 0,
      value: 4,
      items: values.map((one) => [Buffer.alloc(0), u32(one)] as const),
    });
  t.strictSame(await lines([queue(1, 2), queue(1, 2)]), { status: 0, text: '', said: '' });
  t.match((await lines([queue(1, 2), queue(3, 1, 2)])).text, 'm: 1 item added\n  + #0  03000000\n');
  t.strictSame((await json([queue(1, 2), queue(1, 3)])).maps[0]?.items, [
    { change: 'changed', index: 1, a: '02000000', b: '03000000' },
  ]);
});

// ---------------------------------------------------------------------------------------------------
// Live maps, and what must not stay behind

function temporaryFolder(t: Test): string {
  const before = process.env.TMPDIR;
  const folder = path.join(t.testdir({ tmp: {} }), 'tmp');
  process.env.TMPDIR = folder;
  t.teardown(() => {
    if (before === undefined) delete process.env.TMPDIR;
    else process.env.TMPDIR = before;
  });
  return folder;
}

t.test('live maps before and after', { skip }, async (t) => {
  const temporary = temporaryFolder(t);
  const sys = await openSys(types);
  using map = BpfMap.create(sys, { type: HASH, keySize: 4, valueSize: 8, maxEntries: 1000, name: 'diff_flows' });
  fillNumbers(map, 500);
  const id = `id:${map.id}`;
  const before = path.join(t.testdirName, 'before');
  await capture(sys, LiveMaps.look(sys).select({ ids: [map.id], names: [], pins: [], pids: [] }), before, types);
  t.strictSame(await lines([before, id]), { status: 0, text: '', said: '' });
  t.strictSame(await lines([id, 'name:diff_flows']), { status: 0, text: '', said: '' });
  t.strictSame(await lines([id, `pid:${process.pid}`, '--map', 'diff_flows']), { status: 0, text: '', said: '' });
  map.update(u32(7), Buffer.alloc(8, 0xee));
  map.delete(u32(8));
  map.update(u32(900), Buffer.alloc(8));
  t.match((await lines([before, id])).text, 'diff_flows: 1 item changed, 1 removed, 1 added\n  ~ 07000000\n');
  t.strictSame(fs.readdirSync(temporary), [], 'nothing stays behind');
  t.match(await lines([before, 'name:no_such_map']), { status: 2, said: /no map has this name/ });
  t.strictSame(fs.readdirSync(temporary), []);
  // A file of that name is what is meant.
  const cwd = process.cwd();
  process.chdir(t.testdirName);
  t.teardown(() => process.chdir(cwd));
  fs.copyFileSync(path.join(FLOWD, 'bpfmap-data.img'), id);
  t.match(await lines([id, path.join(FLOWD, 'bpfmap-data.img')]), { status: 0, text: '' });
});

t.test('capture, replay, capture again: nothing differs', { skip }, async (t) => {
  const sys = await openSys(types);
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const parent = t.testdir();
  const pins = path.join(folder, 'pins');
  t.match(await cli(['replay', FLOWD, '--pin', pins]), { status: 0 });
  const names = fs.readdirSync(pins);
  t.equal(names.length, 6);
  const before = path.join(parent, 'before');
  const pinned = names.flatMap((name) => ['--pinned', path.join(pins, name)]);
  t.match(await cli(['capture', ...pinned, '-D', before]), { status: 0 });
  t.strictSame(await lines([FLOWD, before]), { status: 0, text: '', said: '' }, "CRIU's dump and the fresh maps");
  const again = path.join(folder, 'again');
  t.match(await cli(['replay', before, '--pin', again]), { status: 0 });
  const after = path.join(parent, 'after');
  const fresh = fs.readdirSync(again).flatMap((name) => ['--pinned', path.join(again, name)]);
  t.match(await cli(['capture', ...fresh, '-D', after]), { status: 0 });
  t.strictSame(await lines([before, after]), { status: 0, text: '', said: '' });
  t.strictSame(await lines([after, `pinned:${path.join(again, 'flows')}`, '--map', 'flows']), {
    status: 0,
    text: '',
    said: '',
  });
  for (const one of [pins, again]) fs.rmSync(one, { recursive: true });
  t.ok(sys);
});

t.test('queues and stacks stay as they are', { skip }, async (t) => {
  const sys = await openSys(types);
  for (const type of [QUEUE, STACK]) {
    using map = BpfMap.create(sys, { type, keySize: 0, valueSize: 4, maxEntries: 4, name: 'diff_queue' });
    map.update(undefined, u32(1));
    const { status, text, said } = await lines([`id:${map.id}`, `id:${map.id}`]);
    t.strictSame([status, text], [0, '']);
    t.match(
      said,
      /^bpfimg: note: map \d+ \(diff_queue\): items not compared: A: not supported: reading it removes its items/,
    );
    t.ok(map.lookupAndDelete(undefined), 'it was not drained');
  }
});

t.test('a signal leaves no files', async (t) => {
  const temporary = temporaryFolder(t);
  const file = path.join(t.testdirName, 'large.json');
  const item = ',{"key":"0000000000000000","value":"00000000000000000000000000000000"}\n';
  const map = '{"map_id":1,"name":"m","type":"hash","key_size":8,"value_size":16,"max_entries":600000,"map_flags":[]';
  const document = `{"format":"bpfimg-maps/1","maps":[${map},"items":[${item.repeat(600_000).slice(1)}]}]}`;
  fs.writeFileSync(file, document);
  const child: ChildProcess = spawn(process.execPath, [BPFIMG, 'diff', file, file], {
    env: { ...process.env, TMPDIR: temporary },
    stdio: 'ignore',
  });
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve));
  t.teardown(() => child.kill('SIGKILL'));
  const folder = () =>
    fs
      .readdirSync(temporary)
      .find((name) => fs.statSync(path.join(temporary, name), { throwIfNoEntry: false })?.isDirectory());
  for (let i = 0; i < 2000 && folder() === undefined && child.exitCode === null; i++) {
    await new Promise((go) => setTimeout(go, 5));
  }
  const found = folder();
  if (found === undefined) throw new Error('it made no folder');
  t.equal(fs.statSync(path.join(temporary, found)).mode & 0o777, 0o700, 'nobody else may look');
  child.kill('SIGTERM');
  t.equal(await ended, 143);
  t.strictSame(fs.readdirSync(temporary), []);
});

t.test('a reader that goes away has seen differences', async (t) => {
  const parent = t.testdir();
  const [a, b] = [someItems(5000), someItems(5000)];
  for (const [, value] of b) value[0] = 0xee;
  const folders = [a, b].map((items) => dumpOf(parent, { id: 1, max: 9999, items }));
  const command = `bpfimg diff ${folders.join(' ')} --limit 0 | head -1; echo \${PIPESTATUS[0]}`;
  const { stdout, stderr } = shell(command);
  t.equal(stdout, `--- ${folders[0]}\n1\n`);
  t.equal(stderr, '');
});
