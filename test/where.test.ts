/** `--where` and `--key`: what a condition means, and the commands that take it. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { whereTest } from '../src/cli/where.js';
import type { Item } from '../src/dump/items.js';
import { BpfMap } from '../src/kernel/map.js';
import { openSys } from '../src/kernel/sys.js';
import { itemsOf } from './helpers/capture.js';
import { bpfimg, copyDump, measured, shell, TOP } from './helpers/command.js';
import { skipWithout } from './helpers/crit.js';
import { item } from './helpers/images.js';
import { bpffs, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { bigDump, cli, dumpOf, hexOf } from './helpers/replay.js';
import { types } from './helpers/types.js';

/** An item of flows. */
interface Found {
  readonly key: { readonly proto: number };
  readonly value: { readonly state: string; readonly bytes: number };
}

const skip = await skipWithoutMaps();

t.test('what a condition means', async (t) => {
  const item: Item = {
    key: { port: 80, address: '10.0.0.1' },
    value: {
      state: 'TCP_CLOSE',
      bytes: 2_000_000,
      wide: '18446744073709551615',
      near: '9007199254740993',
      negative: -5,
      on: true,
      list: [1, { a: 7 }],
      ratio: 0.5,
      pointer: '0xffff888003a4c000',
      odd: { $raw: '00ff' },
    },
  };
  const cases: readonly (readonly [condition: string, is: boolean])[] = [
    ['value.state == "TCP_CLOSE" && value.bytes > 1e6', true],
    ['value.state != "TCP_CLOSE" || key.port == 80', true],
    ['!(key.port == 80)', false],
    ['value.wide == 18446744073709551615', true],
    ['value.wide == 18446744073709551614', false],
    ['value.wide > 18446744073709551614', true],
    ['value.near == 9007199254740993', true],
    ['value.near > 9007199254740992', true],
    ['value.near != 9007199254740992', true],
    ['value.wide > value.bytes', true],
    ['value.negative < 0', true],
    ['value.negative == -5', true],
    ['value.on', true],
    ['value.on == true', true],
    ['value.on == 1', true],
    ['value.list[1].a == 7', true],
    ['value["list"][0] == 1', true],
    ['value.bytes % 7 == 2000000 - 7 * 285714', true],
    ['(value.bytes & 128) == 128', true],
    ['value.ratio * 4 >= 2', true],
    ['value.state < "TCP_D"', true],
    ['key.address == "10.0.0.1"', true],
    ['value.odd == 1', false],
    ['value.odd != 1', true],
    ['value.state > 5', false],
    ['value.state <= 5', false],
  ];
  for (const [condition, is] of cases) t.equal(whereTest(condition)(item), is, condition);
  const wrong: readonly (readonly [condition: string, message: RegExp])[] = [
    ['value.stat == 1', /no stat, expected one of state, bytes/],
    ['vlue == 1', /no vlue, expected one of key, value, values/],
    ['value.list[2] == 1', /no \[2\], it has 2 elements/],
    ['value.bytes.low == 1', /no low: types are not known, or it has no members/],
    ['value.bytes ==', /Expected expression after ==, character/],
    ['values[0] == 1', /only per-CPU maps have values/],
    ['process.exit()', /expected a condition/],
    ['value.constructor == 1', /no constructor/],
    ['value.__proto__ == 1', /no __proto__/],
    ['this == 1', /expected a condition/],
    ['key.port = 1', /./],
    ['value.bytes << 2', /no operator <</],
    ['', /./],
  ];
  for (const [condition, message] of wrong) {
    t.throws(() => whereTest(condition)(item), { message, kind: 'usage' }, condition);
  }
  t.equal(whereTest('values[1] == 2')({ key: 1, values: [1, 2] }), true);
  t.throws(() => whereTest('value == 2')({ key: 1, values: [1, 2] }), { message: /values\[0\]/ });
});

t.test('commands take the items that jq would', async (t) => {
  const base = t.testdir();
  const dump = path.join(base, 'flowd');
  copyDump(dump);
  const btf = ['--map', 'flows', '--btf', path.join(TOP, 'fixtures/btf/flowd.o')];
  const where = ['--where', 'value.state == "TCP_CLOSE" && value.bytes > 1e9 && key.proto == 6'];
  const all = JSON.parse((await cli(['decode', dump, ...btf])).stdout).maps[0].items as Found[];
  const wanted = all.filter(({ key, value }) => value.state === 'TCP_CLOSE' && value.bytes > 1e9 && key.proto === 6);
  t.ok(wanted.length > 0 && wanted.length < all.length);
  const decoded = await cli(['decode', dump, ...btf, ...where]);
  t.strictSame(JSON.parse(decoded.stdout).maps[0].items, wanted, decoded.stderr);
  const shown = JSON.parse((await cli(['show', dump, ...btf, ...where, '--json', '--limit', '0'])).stdout);
  t.strictSame(shown.maps[0].items, wanted);
  // The others differ; only the chosen ones are compared.
  const other = path.join(base, 'other');
  fs.cpSync(dump, other, { recursive: true });
  const outside = all.find(({ value }) => value.state !== 'TCP_CLOSE') as Found;
  const inside = wanted[0] as Found;
  const set = (item: Found) => cli(['set', other, 'flows', JSON.stringify(item.key), 'packets=1', ...btf.slice(2)]);
  t.equal((await set(outside)).status, 0);
  t.equal((await cli(['diff', dump, other, ...btf, ...where])).status, 0);
  t.equal((await set(inside)).status, 0);
  const diff = JSON.parse((await cli(['diff', dump, other, ...btf, ...where, '--json'])).stdout);
  t.strictSame(
    diff.maps[0].items.map(({ key }: Found) => key),
    [inside.key],
  );
  const key = ['--key', '1b51bd', '--key', '0e2a62'];
  const two = JSON.parse((await cli(['show', dump, '--map', 'odd_sizes', ...key, '--json'])).stdout).maps[0].items;
  t.strictSame(two.map(({ key }: Found) => key).sort(), ['0e2a62', '1b51bd']);
  t.match((await cli(['show', dump, '--key', '5'])).stderr, /key 5: expected/);
  t.match((await cli(['decode', path.join(dump, 'bpfmap-data.img'), ...where])).stderr, /--where: it takes a dump/);
  t.match(
    (await cli(['show', dump, '--where', 'value.x == 1'])).stderr,
    /no x: .* in map 377 \(flows\); --map chooses maps/,
  );
});

/** An object file with a map from addresses and ports in network order. */
function addressTypes(folder: string): string {
  const types = 'typedef unsigned int __u32; typedef __u32 __be32; typedef unsigned short __u16; typedef __u16 __be16;';
  const key = 'struct k { __be32 addr; __be16 port; __u16 n; };';
  const map =
    'struct { int (*type)[1]; struct k *key; __u32 *value; int (*max_entries)[8]; } m __attribute__((section(".maps"), used));';
  fs.writeFileSync(path.join(folder, 't.c'), `${types}\n${key}\n${map}\n`);
  const { stderr, status } = shell('clang -O2 -g -target bpf -c t.c -o t.o', { cwd: folder });
  if (status !== 0) throw new Error(stderr);
  return path.join(folder, 't.o');
}

t.test('an address is a number and a text, in every command', { skip: skipWithout('clang') }, async (t) => {
  const base = t.testdir();
  const btf = ['--btf', addressTypes(base)];
  const items = ['0a00000100500000', '0900000200510000', '0a00000200500000'].map((key, n) => item(key, hexOf(u32(n))));
  const dump = dumpOf(base, { id: 1, key: 8, value: 4, items }, { id: 2, name: 'b', key: 8, value: 4, items });
  const only = [...btf, '--map', 'm'];
  for (const [condition, wanted] of [
    ['key.addr == "10.0.0.1"', [0]],
    ['key.addr == 167772161', [0]],
    ['key.addr > 167772160 && key.port == 80', [0, 2]],
    ['key.addr != "9.0.0.2"', [0, 2]],
  ] as const) {
    const decoded = JSON.parse((await cli(['decode', dump, ...only, '--where', condition])).stdout).maps[0].items;
    t.strictSame(
      decoded.map(({ value }: { value: number }) => value),
      wanted,
      condition,
    );
    const shown = (await cli(['show', dump, ...only, '--where', condition])).stdout;
    t.equal(shown.split('\n').filter((line) => /^ +(9|10)\.0/.test(line)).length, wanted.length, condition);
    // Whatever --as makes of it.
    t.match((await cli(['show', dump, ...only, '--as', 'port=hex', '--where', condition])).stdout, '0x50');
  }
  // In the order of numbers, not of their texts.
  const sorted = (await cli(['show', dump, ...only, '--sort', 'key'])).stdout;
  t.strictSame(sorted.match(/(9|10)\.0\.0\.\d/g), ['9.0.0.2', '10.0.0.1', '10.0.0.2']);
  // Types of one side are good for both, and maps that belong together need not have one id.
  const typed = path.join(base, 'typed.json');
  await cli(['decode', dump, ...btf, '-o', typed]);
  const other = dumpOf(base, { id: 7, key: 8, value: 4, items: items.slice(1) });
  const where = (condition: string) => ['diff', typed, other, '--map', '1', '--where', condition];
  const changed = await cli([...where('key.addr == "10.0.0.1"'), '--json']);
  t.equal(JSON.parse(changed.stdout).maps[0].removed, 1, changed.stderr);
  t.equal((await cli(where('key.addr != "10.0.0.1"'))).status, 0);
});

t.test('several maps with commas', async (t) => {
  const items = [1, 2].map((n) => item(hexOf(u32(n)), 'aa'));
  const maps = ['a', 'b', 'c'].map((name, i) => ({ id: i + 1, name, value: 1, items }));
  const dump = dumpOf(t.testdir(), ...maps);
  const two = JSON.parse((await cli(['decode', dump, '--map', 'a,3', '--where', 'key == "01000000"'])).stdout).maps;
  t.strictSame(
    two.map(({ name, items }: { name: string; items: unknown[] }) => [name, items.length]),
    [
      ['a', 1],
      ['c', 1],
    ],
  );
});

t.test('memory stays flat', async (t) => {
  const { folder } = bigDump(t.testdir());
  const ran = measured(['decode', folder, '-o', path.join(folder, 'out.json'), '--where', 'key > "7f"']);
  t.equal(ran.status, 0, ran.stderr);
  t.ok(ran.peak < 200, `${ran.peak} MiB`);
});

t.test('capture and replay', { skip }, async (t) => {
  const sys = await openSys(types);
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const base = t.testdir();
  using map = BpfMap.create(sys, { type: 1, name: 'wide', keySize: 4, valueSize: 8, maxEntries: 5000 });
  const pin = path.join(folder, 'wide');
  map.pin(pin);
  for (let n = 0; n < 5000; n++) map.update(u32(n), u32(n, 0));
  const dump = path.join(base, 'dump');
  const ran = await cli(['capture', '--pinned', pin, '-D', dump, '--where', 'key < "10"', '--json']);
  t.equal(ran.status, 0, ran.stderr);
  const wanted = Array.from({ length: 5000 }, (_, n) => n).filter((n) => (n & 0xff) < 0x10);
  const row = JSON.parse(ran.stdout).maps[0];
  t.equal(row.items, wanted.length);
  t.equal(row.report, 'partial: items that were not chosen');
  const all = await cli(['capture', '--pinned', pin, '-D', path.join(base, 'all'), '--where', 'key >= "00"', '--json']);
  t.equal(JSON.parse(all.stdout).maps[0].report, 'full', 'nothing was left out');
  t.strictSame([...itemsOf(dump).keys()].sort(), wanted.map((n) => hexOf(u32(n))).sort());
  const pins = path.join(folder, 'fresh');
  const made = await cli(['replay', dump, '--pin', pins, '--where', 'value == "0100000000000000"', '--json']);
  t.equal(JSON.parse(made.stdout).maps[0].items, 1, made.stderr);
  // Of a live source, too; and only those are put.
  const into = await cli(['replay', `pinned:${pin}`, '--into', `pinned:${pins}/wide`, '--where', 'key == "02000000"']);
  t.equal(into.status, 0, into.stderr);
  using fresh = BpfMap.openPinned(sys, `${pins}/wide`);
  const keys: string[] = [];
  for (let key = fresh.nextKey(undefined); key !== undefined; key = fresh.nextKey(key)) keys.push(hexOf(key));
  t.strictSame(keys.sort(), ['01000000', '02000000']);
  t.match(
    (await cli(['capture', '--pinned', pin, '-D', `${base}/x`, '--drain=keep-empty', '--where', 'key == 1'])).stderr,
    /would be lost/,
  );
  t.notOk(fs.existsSync(`${base}/x`));
  t.match(
    bpfimg(['replay', `pinned:${pin}`, '--pin', `${pins}/y`, '--sweeps', '2', '--where', 'key == 1']).stderr,
    /--where with --sweeps/,
  );
});
