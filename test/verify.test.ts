/** Every code that `verify` has, each from a dump that has just that wrong with it. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { duplicateKeys } from '../src/dump/keys.js';
import { bufferInput } from '../src/io/input.js';
import { FINDINGS } from '../src/verify/verify.js';
import { BtfWriter } from './helpers/btf-writer.js';
import { bpfimg, copyDump, TOP } from './helpers/command.js';
import { filesImage, folderOf, mapFile, mapsImage, pluginDump, processOf } from './helpers/dumps.js';
import { fixture } from './helpers/fixtures.js';
import { blob, entry, type Item, image, item, mapData, scalar, varint, words } from './helpers/images.js';
import { Random } from './helpers/random.js';
import { cli } from './helpers/replay.js';

interface Verdict {
  sound: boolean;
  findings: { code: string; severity: string; map_id?: number; message: string }[];
}

async function verify(folder: string): Promise<Verdict & { status: number | null }> {
  const { status, stdout, stderr } = await cli(['verify', folder, '--json']);
  if (stderr !== '') throw new Error(stderr);
  return { status, ...(JSON.parse(stdout) as Verdict) };
}

const eight = '00'.repeat(8);
const data = (...maps: Uint8Array[]) => image('BPFMAP_DATA', ...maps);
/** An arena. */
const arena = (max: number) => ({ type: 33, key: 0, value: 0, max, flags: 0x400 });
const xsk = { type: 17, value: 4 };
const index = (i: number) => Buffer.from(words(i)).toString('hex');
const message = (...numbers: number[]) => Buffer.concat(numbers.map((number, i) => scalar(i + 1, number)));

/** One map with id 7 and these items. */
function oneMap(values: Partial<Parameters<typeof mapFile>[0]>, items: readonly Item[]): Record<string, Uint8Array> {
  return {
    'bpfmap-file.img': mapsImage(mapFile({ id: 1, map_id: 7, ...values })),
    'bpfmap-data.img': data(mapData(7, items)),
  };
}

const good = oneMap({}, [item('01000000', eight), item('02000000', eight)]);

/** A dump by CRIU built with libbpf, of a process that has these open as fds 3, 4, … */
function native(...files: Buffer[]): Record<string, Uint8Array> {
  // A map file's id is its first field, in one byte here.
  const fds = files.map((message, i) => [3 + i, [19, message[1] as number]] as const);
  return {
    'inventory.img': image('INVENTORY', entry(scalar(1, 2))),
    'files.img': filesImage(...files),
    ...processOf(Object.fromEntries(fds)),
    'bpfmap-data.img': good['bpfmap-data.img'] as Buffer,
  };
}
const criu = native(mapFile({ id: 1, map_id: 7 }));

/** A dump of the CRIU plugin's with map 7, open as file 4. */
function plugins(what: Parameters<typeof pluginDump>[0] = {}): Record<string, Uint8Array> {
  const maps = [mapFile({ id: 1, map_id: 7 })];
  const images = pluginDump({ maps, table: '4 7 02\n', external: [4], ...what });
  return { ...images, ...processOf({ 3: [16, 4] }), 'bpfimg-data.img': data(mapData(7, [])) };
}

/** The entry of a map that CRIU has dumped itself. */
const ownEntry = filesImage(mapFile({ id: 9, map_id: 7 })).subarray(8);

/** Images of a dump, and the codes `verify` must find in it: these and no others. */
const cases: readonly [name: string, images: Record<string, Uint8Array>, codes: (keyof typeof FINDINGS)[]][] = [
  ['nothing', good, []],
  ['a hash that is empty', oneMap({}, []), []],
  ['a whole array', oneMap({ type: 2, max: 2 }, [item(index(0), eight), item(index(1), eight)]), []],
  ['an empty ring buffer', oneMap({ type: 27, key: 0, value: 0, max: 4096 }, []), []],
  ['an empty ring buffer of a process', oneMap({ type: 31, key: 0, value: 0, max: 4096 }, []), []],
  ['storage of sockets, empty', typed({}, oneMap({ type: 24, max: 0, flags: 1 }, [])), []],
  ['storage of cgroups, empty', typed({}, oneMap({ type: 32, max: 0, flags: 1 }, [])), []],
  ['storage without types', oneMap({ type: 24, max: 0, flags: 1 }, []), ['attributes']],
  ['a name that no kernel takes', oneMap({ name: 'a-b' }, []), ['attributes']],
  ['a name that loaders cut off', oneMap({ name: 'sixteen_letters_' }, []), []],
  ['no room', oneMap({ max: 0 }, []), ['attributes']],
  ['a flag of the future', oneMap({ flags: 1 << 30 }, []), ['attributes']],
  ['BPF_F_NO_PREALLOC of an array', oneMap({ type: 2, max: 1, flags: 1 }, [item(index(0), eight)]), ['attributes']],
  ['a trie without BPF_F_NO_PREALLOC', oneMap({ type: 11, key: 8 }, []), ['attributes']],
  ['a map on a network device', oneMap({ ifindex: 3 }, []), ['attributes']],
  ['map_extra of a hash', captured({ extra: 3 }), ['attributes']],
  ['values of more CPUs than there are', oneMap({ type: 5 }, [item('01000000', '00'.repeat(8 * 8193))]), ['refused']],
  ['inner maps', outer([7]), []],
  ['an inner map that is not there', outer([7, 9]), ['lost-inner']],
  ['a map of maps that was empty', outer([]), ['attributes']],
  ['inner maps with another max_entries', inners({}, { max: 3 }), []],
  ['inner maps of another type', inners({}, { type: 9 }), ['refused']],
  ['inner maps with other keys', inners({}, { key: 8 }), ['refused']],
  ['inner maps with other values', inners({}, { value: 16 }), ['refused']],
  ['inner maps with other flags', inners({}, { flags: 1 }), ['refused']],
  ['inner arrays', inners({ type: 2, max: 3 }, { type: 2, max: 3 }), ['no-data', 'no-data']],
  ['inner arrays of other lengths', inners({ type: 2 }, { type: 2, max: 3 }), ['no-data', 'no-data', 'refused']],
  [
    'inner arrays of other lengths, with BPF_F_INNER_MAP',
    inners({ type: 2, flags: 0x1000 }, { type: 2, flags: 0x1000, max: 3 }),
    ['no-data', 'no-data'],
  ],
  [
    'an inner array without BPF_F_INNER_MAP',
    inners({ type: 2, flags: 0x1000 }, { type: 2 }),
    ['no-data', 'no-data', 'refused'],
  ],
  [
    'maps of AF_XDP sockets of other lengths',
    inners(xsk, { ...xsk, max: 3 }),
    ['no-data', 'left-out', 'no-data', 'left-out', 'refused'],
  ],
  ['inner maps as their outer map has them', inners({}, {}, [1, 4, 8, 5, 0]), []],
  ['inner maps that are not what their outer map has', inners({}, {}, [1, 4, 16, 16, 0]), ['refused']],
  ['an inner map of a type that is none', inners({ type: 3, value: 4 }), ['no-data', 'refused']],
  ['an outer map without inner maps', { ...outer([]), ...template([1, 4, 8, 16, 0]) }, []],
  ['an outer map for no map that there can be', { ...outer([]), ...template([1, 4, 8, 0, 0]) }, ['refused']],
  ['a NUL in a name', oneMap({ name: 'a\0b' }, []), ['attributes']],
  ['a map type that is none', oneMap({ type: 0 }, []), ['unknown-type', 'attributes']],
  ['a prefix that is longer than its address', trie(33), ['refused']],
  ['a prefix that is as long as its address', trie(32), []],
  ['what only the kernel writes', oneMap({ type: 7, value: 16 }, [item(index(0), eight + eight)]), ['left-out']],
  ['sockets without cookies', oneMap({ type: 15, value: 4 }, [item(index(0), '00000000')]), ['left-out']],
  ['unread records', ring(8, 16), []],
  ['a record that is cut off', ring(8, 8), ['refused']],
  ['more records than there is room for', ring(4096, 4104), ['refused']],
  ['a page beyond the end', { ...oneMap(arena(2), [item(index(2), '00'.repeat(4096))]), ...addressed(2) }, ['refused']],
  ['pages without an address', oneMap(arena(3), [item(index(2), '00'.repeat(4096))]), ['left-out']],
  ['a file that is not there, of what was captured', factsAlone(), ['no-file']],
  ['what was not captured whole', captured({ report: 'partial: half of it' }), ['captured']],
  ['what was not captured', { ...captured({ report: 'metadata only: no' }), 'bpfmap-data.img': data() }, ['captured']],
  ['what was captured', captured({ report: 'full' }), []],
  ['a dump that has failed', without(criu, 'inventory.img'), ['unfinished']],
  ['a dump that has failed while it ended', { ...criu, 'inventory.img': Buffer.alloc(0) }, ['unfinished']],
  ['another image in its place', { ...criu, 'inventory.img': criu['pstree.img'] as Buffer }, ['bad-image']],
  ["the plugin's images alone", without(plugins(), 'files.img', 'inventory.img'), ['missing-image', 'unfinished']],
  ['no processes', without(criu, 'pstree.img'), ['missing-image']],
  ['no process', { ...criu, 'pstree.img': image('PSTREE') }, ['bad-image']],
  ['no files.img', without(plugins(), 'files.img'), ['missing-image']],
  ['no fds', without(criu, 'fdinfo-1.img'), ['missing-image', 'unheld-file']],
  ['no ids', without(criu, 'ids-1.img'), ['missing-image', 'unheld-file']],
  ['no core', without(criu, 'core-1.img'), ['missing-image']],
  ['no memory', without(criu, 'mm-1.img'), ['missing-image']],
  [
    'a core that is cut off',
    { ...criu, 'core-1.img': image('CORE', entry(scalar(1, 0))).subarray(0, -1) },
    ['bad-image'],
  ],
  ['a core without an entry', { ...criu, 'core-1.img': image('CORE') }, ['bad-image']],
  ['another image as memory', { ...criu, 'mm-1.img': image('FS', entry(scalar(1, 0))) }, ['bad-image']],
  [
    'bytes behind what CRIU reads',
    { ...criu, 'fs-1.img': Buffer.concat([criu['fs-1.img'] as Buffer, Buffer.alloc(3)]) },
    [],
  ],
  [
    'bytes behind a memory map',
    { ...criu, 'pagemap-1.img': Buffer.concat([pagemap(0), Buffer.alloc(3)]) },
    ['trailing-bytes'],
  ],
  ['no pages', { ...criu, 'pagemap-1.img': pagemap(2) }, ['no-pages']],
  ['pages', { ...criu, 'pagemap-1.img': pagemap(2), 'pages-1.img': Buffer.alloc(8192) }, []],
  [
    'a page that is cut off',
    { ...criu, 'pagemap-1.img': pagemap(2), 'pages-1.img': Buffer.alloc(8191) },
    ['bad-image'],
  ],
  ['an image that is not needed, and none', { ...criu, 'seccomp.img': Buffer.alloc(0) }, ['bad-image']],
  ['an image that is not needed, without entries', { ...criu, 'seccomp.img': image('SECCOMP') }, []],
  ['a namespace without an entry', { ...criu, 'timens-0.img': image('TIMENS') }, ['bad-image']],
  ['a process that had ended', { ...plugins(), ...ended() }, []],
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
    ['value-size'],
  ],
  ['per-CPU values of three CPUs', oneMap({ type: 5, value: 4 }, [item('01000000', '00'.repeat(24))]), []],
  ['an array with keys of 8 bytes', oneMap({ type: 2, key: 8, max: 1 }, [item(eight, eight)]), ['attributes']],
  [
    'more items than max_entries',
    oneMap({ max: 1 }, [item('01000000', eight), item('02000000', eight)]),
    ['too-many-items'],
  ],
  ['data without a file', { ...good, 'bpfmap-data.img': data(mapData(7, []), mapData(8, [])) }, ['no-file']],
  ['a map without data', { ...good, 'bpfmap-data.img': data() }, ['no-data']],
  ['no data image', without(good, 'bpfmap-data.img'), ['no-data']],
  ['no data of a map of a process', { ...criu, 'bpfmap-data.img': data() }, ['lost-data']],
  ['data alone', without(good, 'bpfmap-file.img'), ['no-file']],
  [
    'two data entries that differ',
    { ...good, 'bpfmap-data.img': data(mapData(7, []), mapData(7, [item('01000000', eight)])) },
    ['copies-differ'],
  ],
  ['two data entries alike', { ...good, 'bpfmap-data.img': data(mapData(7, []), mapData(7, [])) }, []],
  [
    'two files that disagree',
    { ...good, 'bpfmap-file.img': mapsImage(mapFile({ id: 1, map_id: 7 }), mapFile({ id: 2, map_id: 7, max: 5 })) },
    ['files-differ'],
  ],
  [
    'one file id twice',
    { ...good, 'bpfmap-file.img': mapsImage(mapFile({ id: 1, map_id: 7 }), mapFile({ id: 1, map_id: 7 })) },
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
  ['a dump by CRIU', criu, []],
  ['two open files of one map', native(...[1, 2].map((id) => mapFile({ id, map_id: 7 }))), ['criu-splits']],
  ['a type CRIU does not dump', native(mapFile({ id: 1, map_id: 7, type: 9 })), ['criu-type']],
  ['a type from the future', oneMap({ type: 77 }, []), ['unknown-type']],
  [
    'map_extra',
    native(Buffer.concat([mapFile({ id: 1, map_id: 7, type: 30, key: 0 }), scalar(16, 3)])),
    ['criu-type', 'map-extra', 'key-size'],
  ],
  [
    'a newer field',
    { ...good, 'bpfmap-file.img': mapsImage(Buffer.concat([mapFile({ id: 1, map_id: 7 }), scalar(17, 3)])) },
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
  [
    "types of the plugin's in an object that is not there",
    { ...plugins(), 'bpfimg-meta.img': typed({ btf: 58 })['bpfmap-meta.img'] as Buffer },
    ['lost-btf'],
  ],
  ['BTF that is none', typed({ blob: Buffer.alloc(40) }), ['bad-btf']],
  ['BTF of a newer kind', typed({ blob: newerBtf() }), ['unknown-btf']],
  ['a type that is not there', typed({ value: 99 }), ['bad-type']],
  ['keys of another type', typed({ key: 2 }), ['btf-key-size']],
  ['values of another type', typed({ value: 1 }), ['btf-value-size']],
  ["a dump of the plugin's", plugins(), []],
  ["the plugin's, by a CRIU without a list of plugins", plugins({ plugins: null }), []],
  ["a file opened twice, the plugin's", plugins({ table: '4 7 02\n5 7 0\n', external: [4, 5] }), ['unheld-file']],
  ['a map that is only led to', plugins({ maps: [7, 8].map((map_id) => mapFile({ id: 1, map_id })) }), ['lost-data']],
  ['no table', without(plugins(), 'bpfimg-files.txt'), ['plugin-table']],
  [
    'no table and nothing else',
    without(plugins(), 'bpfimg-files.txt', 'bpfimg-file.img', 'bpfimg-data.img'),
    ['plugin-table'],
  ],
  ['a table that is cut off', plugins({ table: '4 7 0' }), ['plugin-table']],
  ['a line of a file that is not there', plugins({ table: '4 7 02\n5 7 02\n' }), ['plugin-file']],
  ['a line that is listed twice', plugins({ table: '4 7 02\n4 7 02\n' }), ['plugin-file']],
  ['a line of a map that is not there', plugins({ table: '4 7 02\n5 8 02\n', external: [4, 5] }), ['plugin-map']],
  ['a map that is listed twice', plugins({ maps: [1, 2].map((id) => mapFile({ id, map_id: 7 })) }), ['plugin-map']],
  ['a file without a line', plugins({ external: [4, 5] }), ['plugin-lost']],
  ["a file without a line, perhaps another plugin's", plugins({ external: [4, 5], plugins: ['bpfimg', 'gpu'] }), []],
  ["maps of CRIU's own and the plugin's", plugins({ others: [ownEntry] }), ['plugin-mixed', 'unheld-file']],
  [
    'images of an earlier dump',
    { ...plugins({ plugins: [] }), ...good },
    ['plugin-stale', 'plugin-stale', 'plugin-stale', 'unheld-file'],
  ],
  ["images of CRIU's own", { ...plugins(), 'bpfmap-data.img': data() }, ['plugin-stale']],
];

/** A map of process memory with this many pages in pages-1.img, and one that is elsewhere. */
function pagemap(pages: number): Buffer {
  const entries = [
    [pages, 4],
    [1, 1],
  ].map(([count = 0, flags = 0]) => entry(Buffer.concat([scalar(1, 4096), scalar(2, count), scalar(4, flags)])));
  return image('PAGEMAP', entry(scalar(1, 1)), ...entries);
}

/** A second process, of which nothing is left but its end. */
function ended(): Record<string, Uint8Array> {
  const process = (pid: number) => entry(Buffer.concat([1, 2, 3, 4].map((no) => scalar(no, no === 2 ? 0 : pid))));
  return { 'pstree.img': image('PSTREE', process(1), process(2)), 'core-2.img': image('CORE', entry(scalar(1, 0))) };
}

type Values = Partial<Parameters<typeof mapFile>[0]>;

/** What an outer map must be told of its inner maps: map_type, key_size, value_size, max_entries, map_flags. */
function template(shape: readonly number[]): Record<string, Uint8Array> {
  const inner = shape.map((number, i) => scalar(1 + i, number));
  return { 'bpfmap-meta.img': image('BPFMAP_META', entry(Buffer.concat([scalar(1, 8), blob(9, ...inner)]))) };
}

/** An array of maps, 8, of these inner maps. */
function inners(one: Values, other?: Values, shape?: readonly number[]): Record<string, Uint8Array> {
  const maps = [one, ...(other === undefined ? [] : [other])].map((values, i) => ({
    id: i + 1,
    map_id: i + 20,
    ...values,
  }));
  const outer = mapFile({ id: 9, map_id: 8, type: 12, value: 4, max: 4 });
  const hashes = maps.filter(({ type = 1 }) => type === 1 || type === 9);
  return {
    'bpfmap-file.img': mapsImage(...maps.map(mapFile), outer),
    'bpfmap-data.img': data(
      ...hashes.map(({ map_id }) => mapData(map_id, [])),
      mapData(
        8,
        maps.map(({ map_id }, i) => item(index(i), index(map_id))),
      ),
    ),
    ...(shape === undefined ? {} : template(shape)),
  };
}

/** A user_ringbuf with one record of `length` bytes in as many bytes as `size`. */
function ring(length: number, size: number): Record<string, Uint8Array> {
  const bytes = Buffer.alloc(size);
  bytes.writeUInt32LE(length);
  const items = Array.from({ length: size / 8 }, (_, i): Item => [Buffer.alloc(0), bytes.subarray(8 * i, 8 * i + 8)]);
  return oneMap({ type: 31, key: 0, value: 0, max: 4096 }, items);
}

/** The file of an arena that has an address. */
function addressed(max: number): Record<string, Uint8Array> {
  const address = scalar(16, 0x100000000n);
  return { 'bpfmap-file.img': mapsImage(Buffer.concat([mapFile({ id: 1, map_id: 7, ...arena(max) }), address])) };
}

/** A trie with a prefix of this many bits of an address of 32. */
function trie(bits: number): Record<string, Uint8Array> {
  return oneMap({ type: 11, key: 8, flags: 1 }, [item(`${index(bits)}0a000000`, eight)]);
}

/** A map that only the meta image knows. */
function factsAlone(): Record<string, Uint8Array> {
  return { ...good, 'bpfmap-meta.img': image('BPFMAP_META', entry(scalar(1, 99))) };
}

/** A map of which the capture says this. */
function captured({ report, extra }: { report?: string; extra?: number }): Record<string, Uint8Array> {
  const more = extra === undefined ? [] : [scalar(16, extra)];
  const said = report === undefined ? [] : [blob(12, Buffer.from(report))];
  return {
    ...good,
    'bpfmap-file.img': mapsImage(Buffer.concat([mapFile({ id: 1, map_id: 7 }), ...more])),
    'bpfmap-meta.img': image('BPFMAP_META', entry(Buffer.concat([scalar(1, 7), ...said]))),
  };
}

/** A map of maps, with these ids in it; map 7 is there. */
function outer(inner: readonly number[]): Record<string, Uint8Array> {
  const items = inner.map((id, i) => item(index(i), index(id)));
  return {
    'bpfmap-file.img': mapsImage(mapFile({ id: 1, map_id: 7 }), mapFile({ id: 2, map_id: 8, type: 13, value: 4 })),
    'bpfmap-data.img': data(mapData(7, []), mapData(8, items)),
  };
}

function without(images: Record<string, Uint8Array>, ...names: string[]): Record<string, Uint8Array> {
  return Object.fromEntries(Object.entries(images).filter(([name]) => !names.includes(name)));
}

/** A captured map whose keys are of type 1 and whose values are of type 2 of BTF object 57, unless said otherwise. */
function typed(
  what: { key?: number; value?: number; btf?: number; blob?: Buffer },
  map: Record<string, Uint8Array> = good,
): Record<string, Uint8Array> {
  const w = new BtfWriter();
  w.array(w.int('unsigned int', 4), 2);
  const { key = 1, value = 2, btf = 57, blob = Buffer.from(w.bytes()) } = what;
  return {
    ...map,
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
    const { status, sound, findings } = await verify(folderOf(t, images));
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
  fs.writeFileSync(path.join(dump, 'files.img'), criu['files.img'] as Buffer);
  const { findings } = await verify(dump);
  t.ok(findings.some(({ code, message }) => code === 'lost-fd' && /^fd 3 of process 22137 is file 4/.test(message)));
});

t.test('every code has a case', async (t) => {
  // Those of --like are in like.test.ts.
  const like = ['migrate', 'cannot-migrate', 'no-counterpart'];
  const tested = new Set([...cases.flatMap(([, , codes]) => codes), 'lost-fd', ...like]);
  t.same(
    Object.keys(FINDINGS).filter((code) => !tested.has(code)),
    [],
  );
});

t.test('the real dump: sound, and CRIU would split a map', async (t) => {
  const dump = path.join(t.testdir(), 'dump');
  copyDump(dump);
  const { status, findings } = await verify(dump);
  t.equal(status, 0);
  // Its memory was left out on purpose.
  t.match(findings, [{ code: 'no-pages' }, { code: 'no-pages' }, { code: 'criu-splits', map_id: 377 }]);
});

t.test('types that a dump should have', async (t) => {
  const dump = path.join(t.testdir(), 'dump');
  copyDump(dump);
  const object = (name: string) => path.join(TOP, 'fixtures/btf', name);
  t.match(bpfimg(['verify', dump, '--btf', object('flowd.o')]), { status: 0, stdout: /sound, 3 warnings/ });
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
  t.match(bpfimg(['verify'], { input: blob(1, Buffer.from('x')) }), {
    status: 1,
    stderr: /expected a 4-byte image magic/,
  });
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
