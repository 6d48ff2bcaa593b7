/** Every code that `verify` has, each from a dump that has just that wrong with it. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { duplicateKeys } from '../src/dump/keys.js';
import { FINDINGS } from '../src/dump/verify.js';
import { bufferInput } from '../src/io/input.js';
import { BtfWriter } from './helpers/btf-writer.js';
import { bpfimg, copyDump, TOP } from './helpers/command.js';
import { filesImage, folderOf, mapFile, pluginDump, processOf } from './helpers/dumps.js';
import { fixture } from './helpers/fixtures.js';
import { blob, entry, type Item, image, item, mapData, scalar, varint, words } from './helpers/images.js';
import { Random } from './helpers/random.js';

interface Verdict {
  sound: boolean;
  findings: { code: string; severity: string; map_id?: number; message: string }[];
}

function verify(folder: string): Verdict & { status: number | null } {
  const { status, stdout, stderr } = bpfimg(['verify', folder, '--json']);
  if (stderr !== '') throw new Error(stderr);
  return { status, ...(JSON.parse(stdout) as Verdict) };
}

const eight = '00'.repeat(8);
const data = (...maps: Uint8Array[]) => image('BPFMAP_DATA', ...maps);
const index = (i: number) => Buffer.from(words(i)).toString('hex');
const message = (...numbers: number[]) => Buffer.concat(numbers.map((number, i) => scalar(i + 1, number)));

/** One map with id 7 and these items. */
function oneMap(values: Partial<Parameters<typeof mapFile>[0]>, items: readonly Item[]): Record<string, Uint8Array> {
  return {
    'files.img': filesImage(mapFile({ id: 1, map_id: 7, ...values })),
    'bpfmap-data.img': data(mapData(7, items)),
  };
}

const good = oneMap({}, [item('01000000', eight), item('02000000', eight)]);

/** A dump of the CRIU plugin's with map 7, open as file 4. */
function plugins(what: Parameters<typeof pluginDump>[0] = {}): Record<string, Uint8Array> {
  const maps = [mapFile({ id: 1, map_id: 7 })];
  const images = pluginDump({ maps, table: '4 7 02\n', external: [4], ...what });
  return { ...images, ...processOf({ 3: [16, 4] }), 'bpfimg-data.img': data(mapData(7, [])) };
}

/** The entry of a map that CRIU has dumped itself. */
const native = filesImage(mapFile({ id: 9, map_id: 7 })).subarray(8);

/** Images of a dump, and the codes `verify` must find in it: these and no others. */
const cases: readonly [name: string, images: Record<string, Uint8Array>, codes: (keyof typeof FINDINGS)[]][] = [
  ['nothing', good, []],
  ['a hash that is empty', oneMap({}, []), []],
  ['a whole array', oneMap({ type: 2, max: 2 }, [item(index(0), eight), item(index(1), eight)]), []],
  [
    'data that is cut off',
    { ...good, 'bpfmap-data.img': data(mapData(7, [item('01000000', eight)])).subarray(0, -1) },
    ['bad-image', 'no-data'],
  ],
  [
    'bytes behind the end',
    { ...good, 'bpfmap-data.img': Buffer.concat([good['bpfmap-data.img'] as Buffer, Buffer.from('xyz')]) },
    ['trailing-bytes'],
  ],
  [
    'totals that do not divide',
    { ...good, 'bpfmap-data.img': data(entry(message(7, 5, 4, 2), Buffer.alloc(9))) },
    ['not-divisible'],
  ],
  [
    'items without a byte',
    { ...good, 'bpfmap-data.img': data(entry(message(7, 0, 0, 4294967295))) },
    ['not-divisible'],
  ],
  ['keys of another size', oneMap({ key: 2 }, [item('01000000', eight)]), ['key-size']],
  ['values of another size', oneMap({ value: 4 }, [item('01000000', eight)]), ['value-size']],
  [
    'per-CPU values that are not a multiple of 8',
    oneMap({ type: 5, value: 4 }, [item('01000000', '00'.repeat(12))]),
    ['criu-type', 'value-size'],
  ],
  ['per-CPU values of three CPUs', oneMap({ type: 5, value: 4 }, [item('01000000', '00'.repeat(24))]), ['criu-type']],
  ['an array with keys of 8 bytes', oneMap({ type: 2, key: 8, max: 1 }, [item(eight, eight)]), ['type-key-size']],
  [
    'more items than max_entries',
    oneMap({ max: 1 }, [item('01000000', eight), item('02000000', eight)]),
    ['too-many-items'],
  ],
  ['data without a file', { ...good, 'bpfmap-data.img': data(mapData(7, []), mapData(8, [])) }, ['no-file']],
  ['a map without data', { ...good, 'bpfmap-data.img': data() }, ['no-data']],
  [
    'no data image',
    { 'files.img': good['files.img'] as Buffer, 'pstree.img': image('PSTREE') },
    ['no-data', 'unheld-file'],
  ],
  ['files.img alone', { 'files.img': good['files.img'] as Buffer }, ['no-data']],
  [
    'two data entries that differ',
    { ...good, 'bpfmap-data.img': data(mapData(7, []), mapData(7, [item('01000000', eight)])) },
    ['copies-differ'],
  ],
  ['two data entries alike', { ...good, 'bpfmap-data.img': data(mapData(7, []), mapData(7, [])) }, []],
  [
    'two files that disagree',
    { ...good, 'files.img': filesImage(mapFile({ id: 1, map_id: 7 }), mapFile({ id: 2, map_id: 7, max: 5 })) },
    ['criu-splits', 'files-differ'],
  ],
  [
    'one file id twice',
    { ...good, 'files.img': filesImage(mapFile({ id: 1, map_id: 7 }), mapFile({ id: 1, map_id: 7 })) },
    ['duplicate-file'],
  ],
  ['a key twice', oneMap({}, [item('01000000', eight), item('01000000', 'ff'.repeat(8))]), ['duplicate-key']],
  [
    'an index out of range',
    oneMap({ type: 2, max: 2 }, [item(index(0), eight), item(index(2), eight)]),
    ['index-range'],
  ],
  [
    'indexes out of order',
    oneMap({ type: 2, max: 2 }, [item(index(1), eight), item(index(0), eight)]),
    ['index-order'],
  ],
  [
    'an index twice',
    oneMap({ type: 2, max: 2 }, [item(index(1), eight), item(index(1), eight)]),
    ['index-order', 'duplicate-key'],
  ],
  [
    'an array with a gap',
    oneMap({ type: 2, max: 3 }, [item(index(0), eight), item(index(2), eight)]),
    ['index-missing'],
  ],
  ['a type CRIU does not dump', oneMap({ type: 9 }, []), ['criu-type']],
  ['a type from the future', oneMap({ type: 77 }, []), ['unknown-type']],
  [
    'map_extra',
    { ...good, 'files.img': filesImage(Buffer.concat([mapFile({ id: 1, map_id: 7 }), scalar(16, 3)])) },
    ['map-extra'],
  ],
  [
    'a newer field',
    { ...good, 'files.img': filesImage(Buffer.concat([mapFile({ id: 1, map_id: 7 }), scalar(17, 3)])) },
    ['unknown-field'],
  ],
  [
    'a varint with needless bytes',
    {
      ...good,
      'bpfmap-data.img': data(entry(Buffer.concat([varint(8), varint(7, 5), message(0, 0, 0, 0).subarray(2)]))),
    },
    ['odd-encoding'],
  ],
  ['keys and values of their types', typed({}), []],
  ['no types at all', typed({ key: 0, value: 0, btf: 58 }), []],
  ['types of an object that is not there', typed({ btf: 58 }), ['btf-missing']],
  ['BTF that is none', typed({ blob: Buffer.alloc(40) }), ['bad-btf']],
  ['BTF of a newer kind', typed({ blob: newerBtf() }), ['unknown-btf']],
  ['a type that is not there', typed({ value: 99 }), ['bad-type']],
  ['keys of another type', typed({ key: 2 }), ['btf-key-size']],
  ['values of another type', typed({ value: 1 }), ['btf-value-size']],
  ["a dump of the plugin's", plugins(), []],
  ["the plugin's, by a CRIU without a list of plugins", plugins({ plugins: null }), []],
  ["a file opened twice, the plugin's", plugins({ table: '4 7 02\n5 7 0\n', external: [4, 5] }), ['unheld-file']],
  ['a map that is only led to', plugins({ maps: [7, 8].map((map_id) => mapFile({ id: 1, map_id })) }), ['no-data']],
  ['no table', without(plugins(), 'bpfimg-files.txt'), ['plugin-table']],
  [
    'no table and nothing else',
    without(plugins(), 'bpfimg-files.txt', 'bpfimg-file.img', 'bpfimg-data.img'),
    ['plugin-table'],
  ],
  ['a table that is cut off', plugins({ table: '4 7 0' }), ['plugin-table']],
  ['a line of a file that is not there', plugins({ table: '4 7 02\n5 7 02\n' }), ['plugin-file']],
  ['a line that stands twice', plugins({ table: '4 7 02\n4 7 02\n' }), ['plugin-file']],
  ['a line of a map that is not there', plugins({ table: '4 7 02\n5 8 02\n', external: [4, 5] }), ['plugin-map']],
  ['a map that stands twice', plugins({ maps: [1, 2].map((id) => mapFile({ id, map_id: 7 })) }), ['plugin-map']],
  ['a file without a line', plugins({ external: [4, 5] }), ['plugin-lost']],
  ["a file without a line, perhaps another plugin's", plugins({ external: [4, 5], plugins: ['bpfimg', 'gpu'] }), []],
  ["maps of CRIU's own and the plugin's", plugins({ others: [native] }), ['plugin-mixed', 'unheld-file']],
  [
    'images of an earlier dump',
    { ...plugins({ plugins: [] }), ...good },
    ['plugin-stale', 'plugin-stale', 'plugin-stale', 'unheld-file'],
  ],
  ["images of CRIU's own", { ...plugins(), 'bpfmap-data.img': data() }, ['plugin-stale']],
];

function without(images: Record<string, Uint8Array>, ...names: string[]): Record<string, Uint8Array> {
  return Object.fromEntries(Object.entries(images).filter(([name]) => !names.includes(name)));
}

/** A captured map whose keys are of type 1 and whose values are of type 2 of BTF object 57, unless said otherwise. */
function typed(what: { key?: number; value?: number; btf?: number; blob?: Buffer }): Record<string, Uint8Array> {
  const w = new BtfWriter();
  w.array(w.int('unsigned int', 4), 2);
  const { key = 1, value = 2, btf = 57, blob = Buffer.from(w.bytes()) } = what;
  return {
    ...good,
    'bpfmap-meta.img': image(
      'BPFMAP_META',
      entry(Buffer.concat([scalar(1, 7), scalar(4, btf), scalar(5, key), scalar(6, value)])),
    ),
    'bpfmap-btf.img': image('BPFMAP_BTF', entry(Buffer.concat([scalar(1, 57), scalar(2, blob.length)]), blob)),
  };
}

/** BTF with a type of kind 31, which nobody knows yet. */
function newerBtf(): Buffer {
  const w = new BtfWriter();
  w.add(31, 'new', 0, 0, false, []);
  return Buffer.from(w.bytes());
}

for (const [name, images, codes] of cases) {
  t.test(`${name}: ${codes.join(', ') || 'sound'}`, async (t) => {
    const { status, sound, findings } = verify(folderOf(t, images));
    t.same(findings.map(({ code }) => code).sort(), [...codes].sort());
    const wrong = codes.some((code) => FINDINGS[code][0] === 'error');
    t.equal(sound, !wrong);
    t.equal(status, wrong ? 1 : 0);
    for (const { code, severity } of findings) t.equal(severity, FINDINGS[code as keyof typeof FINDINGS][0]);
  });
}

t.test('fds that lead nowhere: lost-fd', async (t) => {
  const folder = t.testdir();
  const dump = path.join(folder, 'dump');
  copyDump(dump);
  fs.writeFileSync(path.join(dump, 'files.img'), good['files.img'] as Buffer);
  const { findings } = verify(dump);
  t.ok(findings.some(({ code, message }) => code === 'lost-fd' && /^fd 3 of process 22137 is file 4/.test(message)));
});

t.test('every code has a case', async (t) => {
  const tested = new Set([...cases.flatMap(([, , codes]) => codes), 'lost-fd']);
  t.same(
    Object.keys(FINDINGS).filter((code) => !tested.has(code)),
    [],
  );
});

t.test('the real dump: sound, and CRIU would split a map', async (t) => {
  const dump = path.join(t.testdir(), 'dump');
  copyDump(dump);
  const { status, findings } = verify(dump);
  t.equal(status, 0);
  t.match(findings, [{ code: 'criu-splits', map_id: 377 }]);
});

t.test('types that a dump should have', async (t) => {
  const dump = path.join(t.testdir(), 'dump');
  copyDump(dump);
  const object = (name: string) => path.join(TOP, 'fixtures/btf', name);
  t.match(bpfimg(['verify', dump, '--btf', object('flowd.o')]), { status: 0, stdout: /sound, 1 warning/ });
  const { status, stdout } = bpfimg(['verify', dump, '--btf', object('values.o')]);
  t.equal(status, 1);
  t.match(
    stdout,
    /error: btf-key-size: files\.img: map 377 \(flows\): struct flow_key \(.*\) has 20 bytes, key_size is 16/,
  );
  t.match(bpfimg(['verify', dump, '--type', 'cfg=int:']), { status: 0 });
  t.match(bpfimg(['verify', dump, '--btf', object('special.o')]), {
    status: 0,
    stderr: /special\.o: none of these maps; its maps: /,
  });
});

t.test('one image, by name and through a pipe', async (t) => {
  const bytes = fixture('flowd/bpfmap-data.img');
  t.match(bpfimg(['verify'], { input: bytes }), { status: 0, stdout: 'sound\n' });
  t.match(bpfimg(['verify'], { input: bytes.subarray(0, 9000) }), { status: 1, stdout: /^error: bad-image: / });
  t.match(bpfimg(['verify'], { input: blob(1, Buffer.from('x')) }), { status: 1, stderr: /expected an image magic/ });
});

t.test('duplicate keys are found among many, and none where there are none', async (t) => {
  const random = new Random(5);
  for (const keySize of [1, 3, 8, 300]) {
    const count = keySize === 1 ? 200 : 3000;
    const keys = Buffer.alloc(count * keySize);
    for (let i = 0; i < count; i++) {
      keys.writeUIntLE(i + (keySize === 1 ? 0 : 70000), i * keySize, Math.min(keySize, 3));
    }
    t.same(await duplicateKeys(bufferInput(keys), 0, count, keySize, 9), [], `${keySize} bytes: none`);
    for (let round = 0; round < 20; round++) {
      const first = random.below(count - 1);
      const second = first + 1 + random.below(count - first - 1);
      const copy = Buffer.from(keys);
      copy.set(keys.subarray(first * keySize, (first + 1) * keySize), second * keySize);
      t.same(await duplicateKeys(bufferInput(copy), 0, count, keySize, 9), [{ first, index: second }]);
    }
  }
  const large = Buffer.alloc(3 << 22);
  for (let i = 0; i < 3 << 20; i++) large.writeUInt32LE(Math.imul(i, 0x9e3779b1) >>> 0, i * 4);
  large.copy(large, 12_000_000, 400, 404);
  t.same(
    await duplicateKeys(bufferInput(large), 0, 3 << 20, 4, 9),
    [{ first: 100, index: 3_000_000 }],
    'in several passes',
  );
});
