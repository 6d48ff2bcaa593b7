/** `--like`: maps as a new program defines them, with the items of the old one. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { BpfMap } from '../src/kernel/map.js';
import { openSys } from '../src/kernel/sys.js';
import { bpfimg, shell, TOP } from './helpers/command.js';
import { bpffs, bpftool, skipWithoutBpftool, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { required } from './helpers/needs.js';
import { types } from './helpers/types.js';

const clang = spawnSync('clang', ['--version'], { stdio: 'ignore' }).error === undefined;
const skip = (await skipWithoutMaps()) || skipWithoutBpftool() || (clang || required('clang') ? false : 'needs clang');

const HEAD = `
#include <linux/types.h>
#define SEC(name) __attribute__((section(name), used))
#define __uint(name, val) int (*name)[val]
#define __type(name, val) typeof(val) *name
#define __array(name, val) typeof(val) *name[]
static void *(*lookup)(void *map, const void *key) = (void *)1;
`;

/** A definition of a map, in C. */
function defined(name: string, type: number, entries: number, key: string, value: string, more = ''): string {
  return `struct { __uint(type, ${type}); __uint(max_entries, ${entries}); __type(key, ${key}); __type(value, ${value}); ${more} } ${name} SEC(".maps");\n`;
}

const PIN = '__uint(pinning, 1);';
const LICENSE = 'char _license[] SEC("license") = "GPL";\n';

/** Compiles a program. */
function compile(folder: string, name: string, text: string): string {
  const file = path.join(folder, name);
  const args = ['-O2', '-g', '-target', 'bpf', '-I/usr/include/x86_64-linux-gnu', '-xc', '-', '-c', '-o', file];
  const { status, stderr } = spawnSync('clang', args, { input: HEAD + text, encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
  return file;
}

interface Case {
  readonly what: string;
  /** Definitions of types and maps, before and after; the map is called `m`. */
  readonly old: string;
  readonly now: string;
  /** Typed items, before and after. */
  readonly items: readonly object[];
  readonly becomes: readonly object[];
  readonly options?: readonly string[];
}

const value = (members: string) => `struct v { ${members} };\n`;
const hash = (members: string, key = '__u32', entries = 8, type = 1) =>
  value(members) + defined('m', type, entries, key, 'struct v');

const CASES: readonly Case[] = [
  {
    what: 'a bigger map',
    old: hash('__u64 n;'),
    now: hash('__u64 n;', '__u32', 100),
    items: [{ key: 1, value: { n: 5 } }],
    becomes: [{ key: 1, value: { n: 5 } }],
  },
  {
    what: 'a wider counter',
    old: hash('__u32 n;'),
    now: hash('__u64 n;'),
    items: [{ key: 1, value: { n: 4294967295 } }],
    becomes: [{ key: 1, value: { n: 4294967295 } }],
  },
  {
    what: 'a renamed member',
    old: hash('__u32 a; __u32 b;'),
    now: hash('__u32 b; __u32 c;'),
    items: [{ key: 1, value: { a: 2, b: 3 } }],
    becomes: [{ key: 1, value: { b: 3, c: 2 } }],
    options: ['--rename', 'a=c'],
  },
  {
    what: 'a new member',
    old: hash('__u32 a;'),
    now: hash('__u32 a; __u32 b; __u32 c;'),
    items: [{ key: 1, value: { a: 2 } }],
    becomes: [{ key: 1, value: { a: 2, b: 0, c: 7 } }],
    options: ['--set', 'c=7'],
  },
  {
    what: 'a removed member',
    old: hash('__u32 a; __u32 b;'),
    now: hash('__u32 a;'),
    items: [{ key: 1, value: { a: 2, b: 3 } }],
    becomes: [{ key: 1, value: { a: 2 } }],
    options: ['--drop', 'b'],
  },
  {
    what: 'an enum value inserted in the middle',
    old: `enum e { A, B };\n${hash('enum e state;')}`,
    now: `enum e { A, NEW, B };\n${hash('enum e state;')}`,
    items: [{ key: 1, value: { state: 'B' } }],
    becomes: [{ key: 1, value: { state: 'B' } }],
  },
  {
    what: 'a key with one more member',
    old: `struct k { __u32 addr; };\n${hash('__u64 n;', 'struct k')}`,
    now: `struct k { __u32 addr; __u32 zone; };\n${hash('__u64 n;', 'struct k')}`,
    items: [{ key: { addr: 1 }, value: { n: 5 } }],
    becomes: [{ key: { addr: 1, zone: 9 }, value: { n: 5 } }],
    options: ['--set', 'zone=9'],
  },
  {
    what: 'a nested structure that has moved',
    old: `struct in { __u32 x; __u32 y; };\n${hash('struct in at; __u32 n;')}`,
    now: `struct in { __u32 x; __u32 y; };\n${hash('__u64 n; struct in at;')}`,
    items: [{ key: 1, value: { at: { x: 1, y: 2 }, n: 3 } }],
    becomes: [{ key: 1, value: { n: 3, at: { x: 1, y: 2 } } }],
  },
  {
    what: 'hash to lru_hash',
    old: hash('__u64 n;'),
    now: hash('__u64 n;', '__u32', 8, 9),
    items: [{ key: 1, value: { n: 5 } }],
    becomes: [{ key: 1, value: { n: 5 } }],
  },
  {
    what: 'array to percpu_array: the value is the first CPU',
    old: hash('__u64 n;', '__u32', 1, 2),
    now: hash('__u64 n;', '__u32', 1, 6),
    items: [{ key: 0, value: { n: 5 } }],
    becomes: [{ key: 0, values: [{ n: 5 }, { n: 0 }] }],
  },
  {
    what: 'percpu_hash to hash: the sum',
    old: hash('__u64 n;', '__u32', 8, 5),
    now: hash('__u64 n;'),
    items: [{ key: 1, values: [{ n: 5 }, { n: 7 }] }],
    becomes: [{ key: 1, value: { n: 12 } }],
    options: ['--percpu', 'sum'],
  },
  {
    what: 'a per-CPU value with another size',
    old: hash('__u32 n;', '__u32', 8, 5),
    now: hash('__u64 n; __u32 m;', '__u32', 8, 5),
    items: [{ key: 1, values: [{ n: 5 }, { n: 7 }] }],
    becomes: [
      {
        key: 1,
        values: [
          { n: 5, m: 0 },
          { n: 7, m: 0 },
        ],
      },
    ],
  },
];

const cpus = fs.existsSync('/sys/devices/system/cpu/possible')
  ? fs.readFileSync('/sys/devices/system/cpu/possible', 'latin1').trim()
  : '';

/** Values of a case for as many CPUs as there are here. */
function onAllCpus(items: readonly object[], count: number): object[] {
  return items.map((item) => {
    const { values } = item as { values?: object[] };
    if (values === undefined) return item;
    const zero = Object.fromEntries(Object.keys(values[0] as object).map((name) => [name, 0]));
    return { ...item, values: Array.from({ length: count }, (_, i) => values[i] ?? zero) };
  });
}

t.test('what becomes of items', { skip }, async (t) => {
  const sys = await openSys(types);
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const base = t.testdir();
  t.ok(cpus !== '');
  for (const [i, one] of CASES.entries()) {
    const { what, old, now, options = [] } = one;
    const [items, becomes] = [one.items, one.becomes].map((list) => onAllCpus(list, sys.cpus));
    const [before, after] = [compile(base, 'old.bpf.o', old), compile(base, 'new.bpf.o', now)];
    const document = JSON.parse(bpfimg(['decode', before]).stdout);
    document.maps[0].items = items;
    // A single map needs no name.
    const source = path.join(base, 'document.json');
    fs.writeFileSync(source, JSON.stringify(document));
    const pin = path.join(folder, String(i));
    const judged = bpfimg(['verify', source, '--like', after]);
    t.equal(judged.status, 1, `${what}: ${judged.stdout}`);
    t.match(judged.stdout, /migrate: /, what);
    if (/^--(rename|drop|set)$/.test(options[0] ?? '')) {
      t.match(bpfimg(['verify', source, '--like', after, ...options]).stdout, /error: migrate: /, what);
    }
    const dry = bpfimg(['replay', source, '--like', after, ...options, '--dry-run', '--json']);
    t.equal(dry.status, 0, `${what}: ${dry.stderr}`);
    const ran = bpfimg(['replay', source, '--like', after, ...options, '--pin', pin, '--verify']);
    t.equal(ran.status, 0, `${what}: ${ran.stderr}`);
    t.match(ran.stdout, / full\n/, what);
    const got = JSON.parse(bpfimg(['decode', `pinned:${pin}`]).stdout).maps[0];
    t.strictSame(got.items, becomes, what);
    t.equal(bpfimg(['verify', `pinned:${pin}`, '--like', after]).status, 0, `${what}: now it can be reused`);
  }
});

t.test('what would be lost is an error, found by the dry run with the same count', { skip }, async (t) => {
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const base = t.testdir();
  const before = compile(base, 'old.bpf.o', hash('__u64 n; __u32 gone; char name[16];'));
  const after = compile(base, 'new.bpf.o', hash('__u16 n; char name[4];'));
  const document = JSON.parse(bpfimg(['decode', before]).stdout);
  document.maps[0].items = [
    { key: 1, value: { n: 65535, gone: 0, name: 'abcd' } },
    { key: 2, value: { n: 65536, gone: 1, name: 'abc' } },
    { key: 3, value: { n: 70000, gone: 0, name: 'abcde' } },
  ];
  const source = path.join(base, 'document.json');
  fs.writeFileSync(source, JSON.stringify(document));
  const lost = /lost: n does not fit \(2 times\), .*gone dropped \(once\)/;
  const run = (...more: string[]) => bpfimg(['replay', source, '--like', after, ...more]);
  const dry = run('--dry-run');
  t.equal(dry.status, 1);
  t.match(dry.stderr, lost);
  t.match(dry.stdout, /n +__u64 +n +__u16 +narrowed, may lose/);
  const pin = path.join(folder, 'm');
  const refused = run('--pin', pin);
  t.equal(refused.status, 1);
  t.match(refused.stderr, /item 02000000: .*--lossy migrates it anyway\n$/);
  t.notOk(fs.existsSync(path.join(pin, 'm')), 'nothing was made');
  const lossy = run('--pin', pin, '--lossy');
  t.equal(lossy.status, 0, lossy.stderr);
  t.match(lossy.stdout, lost);
  t.match(bpfimg(['verify', source, '--like', after]).stdout, /cannot-migrate: .*lost: n does not fit/);
  t.match(bpfimg(['verify', source, '--drop', 'x']), { status: 2, stderr: /--drop: it goes with --like/ });
  t.match(run('--dry-run', '--rename', 'x=y').stderr, /--rename x: the old .* has no member x/);
  t.equal(bpfimg(['replay', source, '--dry-run', '--rename', 'x=y']).status, 2);
});

interface Typed {
  readonly key: { readonly addr: number };
  readonly value: { readonly n: number };
}

const range = <T>(from: number, to: number, make: (n: number) => T) =>
  Array.from({ length: to - from }, (_, i) => make(from + i));

t.test('two old keys that become one', { skip }, async (t) => {
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const base = t.testdir();
  const text = (members: string) => `struct k { ${members} };\n${hash('__u64 n;', 'struct k', 4000)}`;
  const before = compile(base, 'old.bpf.o', text('__u32 addr; __u32 zone;'));
  const after = compile(base, 'new.bpf.o', text('__u32 addr;'));
  const document = JSON.parse(bpfimg(['decode', before]).stdout);
  const item = (addr: number, zone: number, n: number) => ({ key: { addr, zone }, value: { n } });
  const source = path.join(base, 'document.json');
  const run = (pin: string, items: object[], ...more: string[]) => {
    document.maps[0].items = items;
    fs.writeFileSync(source, JSON.stringify(document));
    return bpfimg(['replay', source, '--like', after, '--drop', 'zone', '--pin', path.join(folder, pin), ...more]);
  };
  const differ = run('differ', [item(1, 1, 5), item(2, 1, 6)]);
  t.equal(differ.status, 0, differ.stderr);
  const same = run('same', [item(1, 1, 5), item(1, 2, 6)]);
  t.equal(same.status, 1);
  t.match(same.stderr, /2 keys become 1: .*; --on-collision last/);
  t.notOk(fs.existsSync(path.join(folder, 'same/m')));
  t.equal(run('last', [item(1, 1, 5), item(1, 2, 6)], '--on-collision', 'last').status, 0);
  const into = (...more: string[]) =>
    bpfimg(['replay', source, '--into', `pinned:${folder}/last`, '--drop', 'zone', ...more]);
  t.match(into().stderr, /two of its keys may become one; --on-collision last/);
  t.equal(into('--on-collision', 'last').status, 0);
  const got = JSON.parse(bpfimg(['decode', `pinned:${folder}/last`]).stdout).maps[0];
  t.strictSame(got.items, [{ key: { addr: 1 }, value: { n: 6 } }]);
  // An item that was read twice is not added twice: its last reading counts.
  const many = [
    item(1, 1, 5),
    item(1, 2, 6),
    item(2, 9, 1),
    item(1, 1, 8),
    ...range(300, 3000, (n) => item(n % 7, n, 1)),
  ];
  const sums = new Map([
    [1, 14],
    [2, 1],
  ]);
  for (let n = 300; n < 3000; n++) sums.set(n % 7, (sums.get(n % 7) ?? 0) + 1);
  const summed = run('sum', many, '--on-collision', 'sum');
  t.equal(summed.status, 0, summed.stderr);
  const { items } = JSON.parse(bpfimg(['decode', `pinned:${folder}/sum`]).stdout).maps[0];
  t.strictSame(new Map(items.map(({ key, value }: Typed) => [key.addr, value.n])), new Map([...sums].sort()));
  t.match(into('--on-collision', 'sum'), { status: 2, stderr: /--on-collision sum: it goes with fresh maps/ });
});

const COUNTER = (member: string, entries: number) => `
${value(member)}${defined('connections_by_address', 1, entries, '__u32', 'struct v')}
SEC("socket") int count(void *context) {
  __u32 key = 7;
  struct v *v = lookup(&connections_by_address, &key);
  if (v) v->packets += 1;
  return 0;
}
${LICENSE}`;

t.test('a program and its next version', { skip }, async (t) => {
  const sys = await openSys(types);
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const base = t.testdir();
  const [v1, v2] = [
    compile(base, 'v1.bpf.o', COUNTER('__u32 packets; __u32 bytes;', 8)),
    compile(base, 'v2.bpf.o', COUNTER('__u64 size; __u64 packets;', 64)),
  ];
  const run = (version: string, pin: string) => {
    const program = path.join(folder, path.basename(version, '.bpf.o'));
    const map = path.join(pin, 'connections_by_address');
    bpftool('prog', 'load', version, program, 'type', 'socket', 'map', 'name', 'connections_by_address', 'pinned', map);
    for (let i = 0; i < 3; i++) {
      const ran = shell(`head -c 64 /dev/zero | bpftool prog run pinned "${program}" data_in - data_out /dev/null`);
      if (ran.status !== 0) throw new Error(ran.stderr);
    }
  };
  const name = 'connections_by_address';
  const [one, two] = [path.join(folder, 'one'), path.join(folder, 'two')];
  t.equal(bpfimg(['replay', v1, '--pin', one]).status, 0, 'maps of an object, before its program is loaded');
  t.strictSame(fs.readdirSync(one), [name], 'the whole name');
  using old = BpfMap.openPinned(sys, path.join(one, name));
  old.update(u32(7), u32(100, 2000));
  run(v1, one);
  t.same(old.lookup(u32(7)), u32(103, 2000), 'it counts');
  const ran = bpfimg(['replay', `pinned:${one}`, '--like', v2, '--rename', 'bytes=size', '--pin', two]);
  t.equal(ran.status, 0, ran.stderr);
  run(v2, two);
  using now = BpfMap.openPinned(sys, path.join(two, name));
  t.same(now.lookup(u32(7)), u32(2000, 0, 106, 0), 'the new program goes on counting');
  t.equal(now.maxEntries, 64);
});

t.test('maps of maps whose inner maps have another size', { skip }, async (t) => {
  const sys = await openSys(types);
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const base = t.testdir();
  const text = (entries: number) => `
struct inner { __uint(type, 1); __uint(max_entries, ${entries}); __type(key, __u32); __type(value, __u64); };
struct { __uint(type, 13); __uint(max_entries, 4); __uint(key_size, 4); __array(values, struct inner); } outer SEC(".maps");
`;
  const after = compile(base, 'new.bpf.o', text(32));
  const spec = { type: 1, keySize: 4, valueSize: 8, maxEntries: 4, flags: 0 };
  using inner = BpfMap.create(sys, { ...spec, name: 'in' });
  using outer = BpfMap.create(sys, { ...spec, type: 13, valueSize: 4, name: 'outer', inner });
  inner.update(u32(5), u32(6, 0));
  outer.update(u32(1), u32(inner.fd));
  outer.pin(path.join(folder, 'outer'));
  const ran = bpfimg(['replay', `pinned:${folder}/outer`, '--like', after, '--pin', path.join(folder, 'new')]);
  t.equal(ran.status, 0, ran.stderr);
  const got = JSON.parse(bpfimg(['decode', `pinned:${folder}/new/outer`]).stdout).maps;
  const made = got.find(({ type }: { type: string }) => type === 'hash');
  t.equal(made.max_entries, 32);
  t.strictSame(made.items, [{ key: 5, value: 6 }], 'with the types that the program defines');
  // The kernel compares with the template: a map of the program's own size can be put in.
  using target = BpfMap.openPinned(sys, path.join(folder, 'new/outer'));
  using fits = BpfMap.create(sys, { ...spec, maxEntries: 32 });
  target.update(u32(2), u32(fits.fd));
});

t.test('inner maps whose values have other members', { skip }, async (t) => {
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const base = t.testdir();
  const text = (members: string) => `
struct in_value { ${members} };
// First, because clang describes what a map of its own has, and not what only an inner one has.
${defined('in', 1, 8, '__u32', 'struct in_value')}
struct inner { __uint(type, 1); __uint(max_entries, 8); __type(key, __u32); __type(value, struct in_value); };
struct { __uint(type, 13); __uint(max_entries, 4); __uint(key_size, 4); __array(values, struct inner); } outer SEC(".maps");
`;
  const before = compile(base, 'old.bpf.o', text('__u32 packets; __u32 gone;'));
  const after = compile(base, 'new.bpf.o', text('__u64 bytes; __u64 packets;'));
  const document = JSON.parse(bpfimg(['decode', before]).stdout);
  const map = (name: string) => document.maps.find((one: { name: string }) => one.name === name);
  map('in').items = [
    { key: 1, value: { packets: 5, gone: 0 } },
    { key: 2, value: { packets: 6, gone: 9 } },
  ];
  map('outer').items = [{ key: '07000000', value: Buffer.from(u32(map('in').map_id)).toString('hex') }];
  // Only the outer map has a counterpart.
  map('in').name = 'other';
  const source = path.join(base, 'document.json');
  fs.writeFileSync(source, JSON.stringify(document));
  const run = (...more: string[]) =>
    bpfimg(['replay', source, '--map', 'outer', '--like', after, '--pin', path.join(folder, 'new'), ...more]);
  t.match(run(), { status: 1, stderr: /\(other\).*gone.*9; --lossy/ });
  const judged = bpfimg(['verify', source, '--like', after]).stdout;
  t.match(judged, /error: cannot-migrate: .*\(other\): value_size 8 → 16, .*lost: gone dropped/);
  t.notMatch(judged, /\(outer\)|no-counterpart/, 'the outer map needs nothing, the inner map goes with it');
  const ran = run('--lossy');
  t.equal(ran.status, 0, ran.stderr);
  const { maps } = JSON.parse(bpfimg(['decode', `pinned:${folder}/new/outer`]).stdout);
  const made = maps.find(({ type }: { type: string }) => type === 'hash');
  t.equal(made.value_size, 16);
  const items = [...made.items].sort((a, b) => a.key - b.key);
  t.strictSame(items, [
    { key: 1, value: { bytes: 0, packets: 5 } },
    { key: 2, value: { bytes: 0, packets: 6 } },
  ]);
});

t.test('which maps belong together', { skip }, async (t) => {
  const sys = await openSys(types);
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const base = t.testdir();
  const after = compile(base, 'new.bpf.o', defined('a', 1, 9, '__u32', '__u32') + defined('b', 1, 9, '__u32', '__u32'));
  for (const name of ['a', 'c']) {
    using map = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 4, maxEntries: 4, flags: 0, name });
    map.update(u32(name.charCodeAt(0)), u32(1));
    map.pin(path.join(folder, name));
  }
  const run = (...more: string[]) => bpfimg(['replay', `pinned:${folder}`, '--like', after, ...more]);
  const missing = run('--dry-run');
  t.equal(missing.status, 1);
  t.match(missing.stderr, /map \d+ \(c\): no map of that name in .*new\.bpf\.o, which has a, b; --map OLD=NEW/);
  t.match(run('--dry-run', '--skip-unsupported').stdout, /\ba +hash/);
  const made = run('--map', 'a', '--map', 'c=b', '--pin', path.join(folder, 'new'));
  t.equal(made.status, 0, made.stderr);
  t.strictSame(fs.readdirSync(path.join(folder, 'new')).sort(), ['a', 'b']);
  using b = BpfMap.openPinned(sys, path.join(folder, 'new/b'));
  t.ok(b.lookup(u32('c'.charCodeAt(0))), 'items of c');
  t.match(run('--map', 'c=x', '--dry-run').stderr, /new\.bpf\.o: no map x in it/);
  t.match(
    bpfimg(['verify', `pinned:${folder}`, '--like', after]).stdout,
    /warning: no-counterpart: .*no map of that name/,
  );
  // A program with one map: names matter if there are several on the other side.
  const single = compile(base, 'single.bpf.o', defined('a', 1, 9, '__u32', '__u32'));
  const { stdout } = bpfimg(['verify', `pinned:${folder}`, '--like', single]);
  t.match(stdout, /error: migrate: .*\(a\): max_entries 4 → 9/);
  t.match(stdout, /warning: no-counterpart: .*\(c\): no map of that name/);
  t.match(stdout, /1 error, 1 warning/);
  // A map that is pinned may be named by its pin.
  fs.renameSync(path.join(folder, 'new/b'), path.join(folder, 'new/other'));
  const paired = bpfimg([
    'replay',
    `pinned:${folder}/c`,
    '--like',
    `pinned:${folder}/new`,
    '--map',
    'c=other',
    '--dry-run',
  ]);
  t.match(paired, { status: 0, stdout: /\bb +hash +4 +4 +9 / });
});

t.test('items of an old map into a new one that exists', { skip }, async (t) => {
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const base = t.testdir();
  const before = compile(base, 'old.bpf.o', hash('__u32 a; __u32 gone;'));
  const after = compile(base, 'new.bpf.o', hash('__u64 a; __u32 b;'));
  const [one, two] = [path.join(folder, 'one'), path.join(folder, 'two')];
  const document = JSON.parse(bpfimg(['decode', before]).stdout);
  document.maps[0].items = [
    { key: 1, value: { a: 5, gone: 0 } },
    { key: 2, value: { a: 6, gone: 9 } },
  ];
  const source = path.join(base, 'document.json');
  fs.writeFileSync(source, JSON.stringify(document));
  t.equal(bpfimg(['replay', source, '--pin', one]).status, 0);
  t.equal(bpfimg(['replay', after, '--pin', two]).status, 0);
  const into = (...more: string[]) => bpfimg(['replay', `pinned:${one}`, '--into', `pinned:${two}/m`, ...more]);
  const items = () => JSON.parse(bpfimg(['decode', `pinned:${two}`]).stdout).maps[0].items;
  for (const more of [[], ['--dry-run']]) {
    const refused = into(...more);
    t.equal(refused.status, 1, more.join());
    t.match(refused.stderr, /item 02000000: gone dropped: 9; --lossy migrates it anyway/);
  }
  t.strictSame(items(), [], 'nothing was written');
  const lossy = into('--lossy', '--set', 'b=3');
  t.equal(lossy.status, 0, lossy.stderr);
  t.match(lossy.stdout, /partial: lost: gone dropped \(once\)/);
  const sorted = (list: { key: number }[]) => [...list].sort((a, b) => a.key - b.key);
  t.strictSame(sorted(items()), [
    { key: 1, value: { a: 5, b: 3 } },
    { key: 2, value: { a: 6, b: 3 } },
  ]);
  const sum = into('--mode', 'sum', '--drop', 'gone', '--verify');
  t.equal(sum.status, 2, 'a sum cannot be verified');
  t.equal(into('--mode', 'sum', '--drop', 'gone').status, 0);
  t.strictSame(sorted(items())[0], { key: 1, value: { a: 10, b: 3 } });
});

t.test('without types', { skip }, async (t) => {
  const sys = await openSys(types);
  const { folder, remove } = bpffs();
  t.teardown(remove);
  for (const [name, valueSize] of [
    ['old', 4],
    ['now', 8],
  ] as const) {
    using map = BpfMap.create(sys, { type: 1, keySize: 4, valueSize, maxEntries: 4, flags: 0, name });
    if (name === 'old') map.update(u32(1), u32(2));
    map.pin(path.join(folder, name));
  }
  const run = (from: string, like: string, ...more: string[]) =>
    bpfimg(['replay', `pinned:${folder}/${from}`, '--like', `pinned:${folder}/${like}`, ...more]);
  const refused = run('old', 'now', '--dry-run');
  t.match(refused.stderr, /its values have 4 bytes, those there 8, and the old map has no types; --extend-zero/);
  const made = run('old', 'now', '--extend-zero', '--pin', path.join(folder, 'made'));
  t.equal(made.status, 0, made.stderr);
  using map = BpfMap.openPinned(sys, path.join(folder, 'made/now'));
  t.same(map.lookup(u32(1)), u32(2, 0));
  t.match(run('now', 'old', '--extend-zero', '--dry-run').stderr, /8 bytes, those there 4/);
  const base = t.testdir();
  const document = JSON.parse(bpfimg(['decode', `pinned:${folder}/old`]).stdout);
  const btf = [{ btf_id: 1, name: '', blob: Buffer.from('no types at all, or broken ones').toString('base64') }];
  document.maps[0].meta = { btf_id: 1, btf_key_type_id: 1, btf_value_type_id: 2 };
  const broken = path.join(base, 'broken.json');
  fs.writeFileSync(broken, JSON.stringify({ format: document.format, btf, maps: document.maps }));
  const { stderr } = bpfimg(['replay', broken, '--like', `pinned:${folder}/now`, '--dry-run']);
  t.match(stderr, /the old map has no types that can be used \(.*BTF 1: .*\); --extend-zero/);
});

t.test('an object file is a source', { skip: clang ? false : 'needs clang' }, async (t) => {
  const base = t.testdir();
  const text = `${hash('__u64 n;')}${defined('x', 1, 4, '__u32', '__u32', PIN)}int counter = 1; const volatile int limit = 1;\nSEC("socket") int f(void *c) { return counter += limit; }\n${LICENSE}`;
  const file = compile(base, 'flowd.bpf.o', text);
  const { maps } = JSON.parse(bpfimg(['list', file, '--json']).stdout).sources[0];
  t.match(maps, [
    { name: 'm', type: 'hash', key_size: 4, value_size: 8, max_entries: 8 },
    { name: 'x', meta: { pins: ['/sys/fs/bpf/x'] } },
    { name: 'flowd.data', type: 'array', value_size: 4, map_flags: ['BPF_F_MMAPABLE'] },
    { name: 'flowd.rodata', map_flags: ['BPF_F_RDONLY_PROG', 'BPF_F_MMAPABLE'] },
  ]);
  t.match(bpfimg(['show', file, '--types']).stdout, /struct v \{\n\t__u64 n;/);
  t.equal(bpfimg(['diff', file, file]).status, 0);
  fs.writeFileSync(path.join(base, 'cut.o'), fs.readFileSync(file).subarray(0, 300));
  t.match(bpfimg(['show', path.join(base, 'cut.o')]).stderr, /^bpfimg: [^\n]+cut\.o: ELF: [^\n]+\n$/);
  const swapped = fs.readFileSync(path.join(TOP, 'fixtures/btf/values.eb.o'));
  fs.writeFileSync(path.join(base, 'big.o'), swapped);
  t.match(
    bpfimg(['show', path.join(base, 'big.o')]).stderr,
    /its types are big-endian/,
    'not read the wrong way round',
  );
  const none = compile(base, 'none.o', 'int f(void) { return 0; }');
  t.match(bpfimg(['show', none]).stderr, /none\.o: /);
});
