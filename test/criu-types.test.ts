/** Types of maps, dumped and restored by real CRIU with the plugin. */
import t from 'tap';
import { Bench, dump, idsOf, lasting, skipWithoutCriu, TYPED, TYPES } from './helpers/criu.js';
import { patience } from './helpers/needs.js';

t.setTimeout(patience(180_000));
const skip = await skipWithoutCriu();
const bench = await Bench.set(t.testdir(), skip);

/** What each process holds: commands of the witness. */
const HELD: Readonly<Record<string, readonly string[]>> = {
  hash: ['map m type=1 key=16 value=24 max=100', 'fill m 60'],
  'hash, not preallocated': ['map m type=1 flags=1 max=100', 'fill m 60'],
  'hash, full': ['map m type=1 max=40', 'fill m 40'],
  'hash, empty': ['map m type=1'],
  array: ['map m type=2 value=20 max=7', 'fill m 5'],
  'array, frozen': ['map m type=2 value=20 max=7', 'fill m 7', 'freeze m'],
  'array that could be mapped': ['map m type=2 flags=0x400 max=7', 'fill m 7'],
  'array that was mapped': ['map m type=2 flags=0x400 max=7', 'mmap m', 'fill m 7', 'munmap m'],
  percpu_hash: ['map m type=5 value=12 max=50', 'fill m 20'],
  percpu_array: ['map m type=6 value=5 max=7', 'fill m 6'],
  lru_hash: ['map m type=9 max=200', 'fill m 20'],
  'lru_hash, one list a CPU': ['map m type=9 flags=2 max=200', 'fill m 20'],
  lru_percpu_hash: ['map m type=10 value=12 max=200', 'fill m 20'],
  lpm_trie: ['map m type=11 key=8 flags=1 max=100', 'fill m 30'],
  array_of_maps: [
    'map i type=2 max=3',
    'fill i 3',
    'map j type=2 max=3 name=another',
    'fill j 3 100',
    'map m type=12 value=4 max=5 inner=i',
    'put m 01000000 i',
    'put m 04000000 j',
  ],
  'hash_of_maps, its inner maps held by nobody': [
    'map i type=1 max=30',
    'fill i 20',
    'map j type=1 max=30 name=another',
    'fill j 3 100',
    'map m type=13 value=4 max=5 inner=i',
    'put m 07000000 i',
    'put m 09000000 j',
    'close i',
    'close j',
  ],
  devmap: ['map m type=14 value=4 max=4', 'set m 02000000 01000000'],
  cpumap: ['map m type=16 value=4 max=2', 'set m 00000000 c0000000'],
  'types of keys and values': [TYPES, `map m type=1 max=10 ${TYPED}`, 'close types', 'fill m 4'],
  'types, and items per CPU': [TYPES, `map m type=5 max=10 ${TYPED}`, 'close types', 'fill m 4'],
  'types of a frozen array': [TYPES, `map m type=2 max=4 ${TYPED}`, 'close types', 'fill m 4', 'freeze m'],
  'maps of all kinds': [
    TYPES,
    'map a type=1 max=9 name=one',
    'fill a 9',
    'map b type=2 max=9 name=two',
    'fill b 9',
    'freeze b',
    'map c type=5 max=9 name=three',
    'fill c 9',
    `map d type=9 max=99 name=four ${TYPED}`,
    'fill d 9',
    'map e type=12 value=4 inner=b',
    'put e 00000000 b',
    'map f type=11 key=8 flags=1',
    'close types',
  ],
};

for (const [name, commands] of Object.entries(HELD)) {
  t.test(name, { skip }, async (t) => {
    const held = await bench.witness(t, ...commands);
    const ids = idsOf(await bench.roundTrip(t, held));
    await held.witness.end();
    await bench.freed(ids);
  });
}

for (const [type, name] of [
  [22, 'queue'],
  [23, 'stack'],
] as const) {
  t.test(name, { skip }, async (t) => {
    const fill = [`map m type=${type} key=0 value=12 max=50`, 'fill m 20'];
    const held = await bench.witness(t, ...fill);
    const other = await bench.witness(t, ...fill);
    const [wanted] = (await other.witness.tell('drain m')) as { values: string[] }[];
    t.equal(wanted?.values.length, 20);

    t.match(await dump(held.witness.pid, `${held.folder}-left`, { ...bench, more: ['--leave-running'] }), {
      status: 0,
    });
    await bench.roundTrip(t, held);
    t.same(await held.witness.tell('drain m'), [wanted], 'in the same order');
    await held.witness.end();
    await held.witness.gone();
    await bench.restored(t, `${held.folder}-left`);
    t.same(await held.witness.tell('drain m'), [wanted], 'of the earlier dump as well');
  });
}

/** Types of which something is lost, and how the log says so. */
const PARTIAL: readonly [name: string, command: string, warning: RegExp][] = [
  ['perf_event_array', 'map m type=4 value=4 max=4', /perf event/],
  ['bloom_filter', 'map m type=30 key=0 value=8 max=10', /test for them/],
];

for (const [name, command, warning] of PARTIAL) {
  t.test(`${name}: comes back empty, and the log says so`, { skip }, async (t) => {
    const { witness, folder } = await bench.witness(t, command);
    const before = await witness.see();
    const log = await bench.dumped(t, { witness, folder });
    t.match(log, new RegExp(`bpfimg: BPF map ${before[0]?.id} \\(m\\): .*${warning.source}`), 'while dumping');
    await bench.restored(t, folder);
    t.same(lasting(await witness.see()), lasting(before));
  });
}

t.test('sockmap: without its sockets, and both logs say so', { skip }, async (t) => {
  const { witness, folder } = await bench.witness(t, 'map m type=15 value=8 max=2');
  const [{ fd }] = (await witness.tell('pair l')) as [{ fd: number }];
  const value = Buffer.alloc(8);
  value.writeUInt32LE(fd);
  await witness.tell(`set m 00000000 ${value.toString('hex')}`);
  const log = await bench.dumped(t, { witness, folder });
  t.match(log, /bpfimg: BPF map \d+ \(m\): the sockets in it are not restored \(1 of its items\)/);
  const restored = await bench.restored(t, folder);
  t.match(
    restored,
    /bpfimg: BPF map \d+ \(m\): partial: 1 item refers to objects that this host does not have: 00000000 to socket/,
  );
  const [map] = await witness.see();
  t.equal(map?.type, 15);
  t.equal(map?.count, 0);
});
