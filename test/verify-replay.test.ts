/** `verify` knows what a replay knows, and both know what the kernel does. */

import t from 'tap';
import { MAP_FLAG } from '../src/kernel/abi.js';
import { KernelError } from '../src/kernel/error.js';
import { BpfMap } from '../src/kernel/map.js';
import { misfits } from '../src/kernel/rules.js';
import { openSys } from '../src/kernel/sys.js';
import { folderOf, mapFile, mapsImage } from './helpers/dumps.js';
import { features, lacking } from './helpers/features.js';
import { fuzzReplays } from './helpers/fuzz-replays.js';
import { image, item, mapData } from './helpers/images.js';
import { skipWithoutMaps } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import { Random } from './helpers/random.js';
import { cli } from './helpers/replay.js';
import { types } from './helpers/types.js';

const skip = await skipWithoutMaps();
const has = await features();
const sys = await openSys(types);

t.setTimeout(patience(300_000));

/** Dumps that are tried; `npm run fuzz -- replays` tries more. */
const CASES = 200;

t.test(
  `${CASES} dumps of maps: verify has an error where a replay refuses or loses something, and nowhere else`,
  async (t) => {
    const make = await fuzzReplays();
    let sound = 0;
    for (let seed = 1; seed <= CASES; seed++) {
      const { run } = make(new Random(seed), seed);
      try {
        if (await run()) sound++;
      } catch (error) {
        t.error(error, `npm run fuzz -- replays --seed ${seed} --count 1`);
      }
    }
    t.ok(sound > CASES / 4 && sound < (CASES * 3) / 4, `${sound} of them are sound`);
  },
);

const { INNER_MAP, NO_PREALLOC, MMAPABLE } = MAP_FLAG;
const shape = (type: number, keySize: number, valueSize: number, maxEntries: number, flags = 0) => {
  return { type, keySize, valueSize, maxEntries, flags };
};
/** Maps, and others that differ in one thing or none; a map of maps is made for one and offered the other. */
const pairs = [
  ...[1, 2, 5, 6, 9, 10, 14, 15, 16, 17, 18, 20, 25].map((type) => shape(type, 4, type === 17 ? 4 : 8, 4)),
  ...[4, 8].map((type) => shape(type, 4, 4, 4)),
  shape(2, 4, 8, 4, INNER_MAP),
  shape(7, 4, 80, 4),
  shape(11, 8, 4, 8, NO_PREALLOC),
  ...[22, 23, 30].map((type) => shape(type, 0, 8, 4)),
  ...[27, 31].map((type) => shape(type, 0, 0, 4096)),
  shape(33, 0, 0, 2, MMAPABLE),
].flatMap((one) => [
  [one, one] as const,
  [one, { ...one, maxEntries: one.maxEntries * 2 }] as const,
  ...(one.valueSize === 8 ? [[one, { ...one, valueSize: 4 }] as const] : []),
  ...(one.type === 1 ? [[one, { ...one, keySize: 8 }] as const, [one, { ...one, flags: NO_PREALLOC }] as const] : []),
  ...(one.type === 1 ? [[one, { ...one, type: 9 }] as const] : []),
  ...(one.type === 2 ? [[one, { ...one, flags: one.flags ^ INNER_MAP }] as const] : []),
]);

t.test(`${pairs.length} inner maps: the kernel takes those that are no misfits`, { skip }, async (t) => {
  for (const [template, spec] of pairs) {
    const what = `${JSON.stringify(spec)} in a map for ${JSON.stringify(template)}`;
    const lacks = lacking(sys, template);
    if (lacks !== undefined) {
      t.match(lacks, 'perhaps this kernel lacks');
      continue;
    }
    using first = BpfMap.create(sys, template);
    using outer = BpfMap.create(sys, { ...shape(12, 4, 4, 1), inner: first });
    using inner = BpfMap.create(sys, spec);
    const value = Buffer.alloc(4);
    value.writeUInt32LE(inner.fd);
    let refused = false;
    try {
      outer.update(Buffer.alloc(4), value);
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      t.equal(error.code, 'EINVAL');
      refused = true;
    }
    t.equal(misfits(spec, template, types, () => !has.unlikePerCpuArrays).length > 0, refused, what);
  }
});

t.test(
  'per-CPU arrays of different lengths in one map: a dry run asks the kernel, verify does not',
  { skip },
  async (t) => {
    const word = (number: number) => Buffer.from(Uint32Array.of(number).buffer).toString('hex');
    const perCpu = { type: 6, key: 4, value: 8 };
    const folder = folderOf(t, {
      'bpfmap-file.img': mapsImage(
        mapFile({ id: 1, map_id: 7, ...perCpu, max: 1 }),
        mapFile({ id: 2, map_id: 8, ...perCpu, max: 2 }),
        mapFile({ id: 3, map_id: 9, type: 12, value: 4, name: 'outer' }),
      ),
      'bpfmap-data.img': image(
        'BPFMAP_DATA',
        ...[7, 8].map((id) => mapData(id, [])),
        mapData(9, [item(word(0), word(7)), item(word(1), word(8))]),
      ),
    });
    t.equal((await cli(['verify', folder])).status, 0);
    const [dry, real] = [await cli(['replay', folder, '--dry-run']), await cli(['replay', folder, '--', 'true'])];
    const refuses = !has.unlikePerCpuArrays;
    t.equal(real.status, refuses ? 1 : 0, real.stderr);
    t.equal(dry.status, real.status, dry.stderr);
    const stricter = 'bpfimg: map 9 (outer): inner map 8 does not fit: max_entries 2, expected 1\n';
    t.equal(dry.stderr, refuses ? stricter : '');
    // The rule itself, whatever this kernel does.
    const [one, two] = [shape(6, 4, 8, 1), shape(6, 4, 8, 2)];
    t.same(misfits(two, one, types), []);
    t.same(
      misfits(two, one, types, () => true),
      ['max_entries 2, expected 1'],
    );
    t.same(
      misfits(one, one, types, () => t.fail('nothing to ask') as never),
      [],
    );
  },
);

t.test('map types that are no inner maps', { skip }, async (t) => {
  // A PROG_ARRAY is not made for a test: clearing it takes a while.
  for (const spec of [shape(19, 8, 8, 0), shape(21, 8, 8, 0)]) {
    using inner = BpfMap.create(sys, spec);
    t.throws(
      () => BpfMap.create(sys, { ...shape(12, 4, 4, 1), inner }),
      { code: 'ENOTSUPP' },
      types.get(spec.type).name,
    );
  }
});

t.test('a dry run judges inner maps as the kernel does', { skip }, async (t) => {
  const word = (number: number) => Buffer.from(Uint32Array.of(number).buffer).toString('hex');
  const folder = folderOf(t, {
    'bpfmap-file.img': mapsImage(
      mapFile({ id: 1, map_id: 7 }),
      mapFile({ id: 2, map_id: 8, value: 16 }),
      mapFile({ id: 3, map_id: 9, type: 12, value: 4, name: 'outer' }),
    ),
    'bpfmap-data.img': image(
      'BPFMAP_DATA',
      ...[7, 8].map((id) => mapData(id, [])),
      mapData(9, [item(word(0), word(7)), item(word(1), word(8))]),
    ),
  });
  const { status, stderr } = await cli(['replay', folder, '--dry-run']);
  t.equal(status, 1);
  t.equal(stderr, 'bpfimg: map 9 (outer): inner map 8 does not fit: value_size 16, expected 8\n');
  const real = await cli(['replay', folder, '--', 'true']);
  t.equal(real.status, 1);
  t.match(real.stderr, /^bpfimg: map 9 \(outer\), item 01000000: BPF_MAP_UPDATE_(BATCH|ELEM): EINVAL/);
});

t.test('names that a terminal must not see are JSON in the JSON of a dry run', async (t) => {
  const folder = folderOf(t, {
    'bpfmap-file.img': mapsImage(mapFile({ id: 1, map_id: 7, name: 'a\x85b\x7f' })),
    'bpfmap-data.img': image('BPFMAP_DATA', mapData(7, [])),
  });
  const { stdout } = await cli(['replay', folder, '--dry-run', '--json']);
  t.notMatch(stdout, /[\x7f-\x9f]/);
  t.match(JSON.parse(stdout), { maps: [{ map_id: 7, name: 'a\x85b\x7f' }] });
});
