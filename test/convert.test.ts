/** `criu convert`: dumps from the form that the plugin restores into the one that CRIU itself does, and back. */

import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { type Conversion, type ConvertedMap, convert, type DumpForm } from '../src/criu/convert.js';
import { BpfimgError } from '../src/errors.js';
import { bpfimg, contents, copyDump } from './helpers/command.js';
import { crit, critKnows, skipWithout } from './helpers/crit.js';
import { filesImage, folderOf, mapFile, pluginDump, processOf } from './helpers/dumps.js';
import { blob, entry, type Item, image, item, mapData, scalar } from './helpers/images.js';
import { types } from './helpers/types.js';

type Images = Record<string, Uint8Array>;

const data = (...maps: Buffer[]) => image('BPFMAP_DATA', ...maps);
const hexOf = (images: Images) =>
  Object.fromEntries(Object.entries(images).map(([name, bytes]) => [name, Buffer.from(bytes).toString('hex')]));

/** The report of each map, by id. */
async function reports(folder: string, to: DumpForm): Promise<Record<number, string>> {
  const done = await convert(folder, to, types);
  if ('nothing' in done) throw new Error(done.nothing);
  return Object.fromEntries(
    done.maps.map(({ mapId, report }) => [mapId, report.kind === 'full' ? 'full' : `${report.kind}: ${report.why}`]),
  );
}

/** The message of the error that a conversion must end in, with everything left as it was. */
async function refusal(folder: string, to: DumpForm): Promise<string> {
  const before = contents(folder);
  let done: Conversion;
  try {
    done = await convert(folder, to, types);
  } catch (error) {
    if (!(error instanceof BpfimgError)) throw error;
    if (JSON.stringify(contents(folder)) !== JSON.stringify(before)) throw new Error('something was touched');
    return error.message;
  }
  throw new Error(`it was converted: ${JSON.stringify(done)}`);
}

/** A plugin dump of maps that are open as files 1, 2, …, each with these items. */
function dumpOf(...maps: [values: Partial<Parameters<typeof mapFile>[0]>, items: readonly Item[]][]): Images {
  const ids = maps.map((_, i) => i + 1);
  return {
    ...pluginDump({
      maps: maps.map(([values], i) => mapFile({ id: 50 + i, map_id: 100 + i, ...values })),
      table: ids.map((id) => `${id} ${99 + id} 02\n`).join(''),
      external: ids,
    }),
    ...processOf(Object.fromEntries(ids.map((id) => [id, [16, id] as const]))),
    'bpfimg-data.img': data(...maps.map(([, items], i) => mapData(100 + i, items))),
  };
}

const eight = '00'.repeat(8);

/** bpfmap-meta.img (or the plugin's) with what is said of a map. */
const meta = (id: number, ...fields: Buffer[]) =>
  image('BPFMAP_META', entry(Buffer.concat([scalar(1, id), ...fields])));

t.test('the real dump', async (t) => {
  const dump = path.join(t.testdir(), 'dump');
  copyDump(dump);
  const before = contents(dump);
  const document = bpfimg(['decode', dump]).stdout;
  t.same(await convert(dump, 'native', types), { nothing: 'CRIU built with libbpf restores it already' });
  t.same(contents(dump), before);

  const { status, stdout, stderr } = bpfimg(['criu', 'convert', dump, '--to', 'plugin']);
  t.match({ status, stderr }, { status: 0, stderr: '' });
  t.match(stdout, /^ ID +NAME +TYPE +ITEMS +REPORT\n377 +flows +hash +200 +full\n/);
  const after = contents(dump);
  t.same(
    [...new Set([...Object.keys(before), ...Object.keys(after)])].filter((name) => before[name] !== after[name]).sort(),
    [
      'bpfimg-data.img',
      'bpfimg-file.img',
      'bpfimg-files.txt',
      'bpfmap-data.img',
      'fdinfo-2.img',
      'fdinfo-3.img',
      'files.img',
      'inventory.img',
    ],
  );
  t.equal(after['bpfimg-data.img'], before['bpfmap-data.img']);
  t.equal(
    fs.readFileSync(path.join(dump, 'bpfimg-files.txt'), 'utf8'),
    '4 377 02\n5 378 02\n6 379 02\n7 380 02\n8 381 02\n9 382 02\n11 377 02\n',
    'in the order of files.img',
  );
  for (const name of Object.keys(after).filter((name) => after[name] !== before[name])) {
    t.equal(fs.statSync(path.join(dump, name)).mode & 0o777, 0o600, name);
  }
  t.equal(bpfimg(['decode', dump]).stdout, document);
  t.match(bpfimg(['decode', path.join(dump, 'inventory.img')]).stdout, '"plugins_entry": {"plugins": ["bpfimg"]}');

  const again = bpfimg(['criu', 'convert', dump, '--to', 'plugin']);
  t.match(again, { status: 0, stdout: '', stderr: `bpfimg: ${dump}: nothing to convert, the CRIU plugin restores it` });
  t.same(contents(dump), after);

  t.same(await reports(dump, 'native'), {
    377: 'partial: 2 open files become 2 maps',
    378: 'full',
    379: 'full',
    380: 'full',
    381: 'full',
    382: 'full',
  });
  t.same(contents(dump), before, 'and back: every byte is the same');
});

t.test('crit reads what was converted', { skip: skipWithout('crit') }, async (t) => {
  const dump = path.join(t.testdir(), 'dump');
  copyDump(dump);
  const entries = (name: string) => {
    const { entries } = JSON.parse(crit(fs.readFileSync(path.join(dump, name)), 'decode')) as {
      entries: Record<string, unknown>[];
    };
    return entries;
  };
  const old = { files: entries('files.img'), fds: entries('fdinfo-3.img'), inventory: entries('inventory.img') };
  await convert(dump, 'plugin', types);
  const fown = { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 };
  t.same(
    entries('files.img'),
    old.files.map((one) => (one.type === 'BPFMAP' ? { type: 'EXT', id: one.id, ext: { id: one.id, fown } } : one)),
  );
  t.same(
    entries('fdinfo-3.img'),
    old.fds.map((one) => (one.type === 'BPFMAP' ? { ...one, type: 'EXT' } : one)),
  );
  // An old crit does not know of plugins.
  const known = critKnows().fields?.('inventory_entry', { no: 12, name: '', type: 'message', label: 'optional' });
  const list = known ? { plugins_entry: { plugins: ['bpfimg'] } } : {};
  t.same(entries('inventory.img'), [{ ...old.inventory[0], ...list }]);
});

t.test('what is not of maps keeps its bytes', async (t) => {
  const odd = entry(
    Buffer.concat([scalar(2, 9), scalar(1, 16, 3), blob(15, scalar(1, 9), blob(5, fownOf())), scalar(99, 5)]),
  );
  const two = dumpOf([{ name: 'one' }, [item('01000000', eight)]], [{}, []]);
  const files = Buffer.concat([two['files.img'] as Buffer, odd]);
  const other = image('FDINFO', entry(Buffer.concat([scalar(1, 9), scalar(2, 0), scalar(3, 16), scalar(4, 3)])));
  const folder = folderOf(t, {
    ...two,
    'files.img': files,
    'fdinfo-1.img': Buffer.concat([two['fdinfo-1.img'] as Buffer, other.subarray(8)]),
    'fdinfo-7.img': other,
    'inventory.img': pluginDump({ plugins: ['gpu', 'bpfimg'] })['inventory.img'] as Buffer,
    'pages-1.img': Buffer.from('anything'),
  });
  fs.utimesSync(path.join(folder, 'fdinfo-7.img'), 1, 1);
  const before = contents(folder);
  t.same(await reports(folder, 'native'), { 100: 'full', 101: 'full' });
  const after = contents(folder);
  t.ok(after['files.img']?.endsWith(odd.toString('hex')), "another plugin's open file, in an odd encoding");
  t.ok(after['fdinfo-1.img']?.endsWith(other.subarray(8).toString('hex')));
  t.equal(fs.statSync(path.join(folder, 'fdinfo-7.img')).mtimeMs, 1000, 'what need not change is not touched');
  t.match(bpfimg(['decode', path.join(folder, 'inventory.img')]).stdout, '"plugins": ["gpu"]');
  t.same(await reports(folder, 'plugin'), { 100: 'full', 101: 'full' });
  // Entries of bpfimg-file.img are numbered anew.
  t.same({ ...contents(folder), 'bpfimg-file.img': '' }, { ...before, 'bpfimg-file.img': '' });
});

function fownOf(): Buffer {
  return Buffer.concat([1, 2, 3, 4, 5].map((no) => scalar(no, no)));
}

t.test('owners and open flags of files come along', async (t) => {
  const file = (id: number, flags: number) => {
    const plain = mapFile({ id, map_id: 7 });
    // Flags are the second field, the owner the fourth.
    return Buffer.concat([scalar(1, id), scalar(2, flags), scalar(3, 0), blob(4, fownOf()), plain.subarray(18)]);
  };
  const files = filesImage(file(4, 0), file(5, 0o4001), file(6, 2));
  const folder = folderOf(t, { 'files.img': files, 'bpfmap-data.img': data(mapData(7, [])) });
  const before = contents(folder);
  t.same(await reports(folder, 'plugin'), { 7: 'full' });
  t.equal(fs.readFileSync(path.join(folder, 'bpfimg-files.txt'), 'utf8'), '4 7 0\n5 7 04001\n6 7 02\n');
  t.same(await reports(folder, 'native'), {
    7: 'partial: 3 open files become 3 maps; read-only fds become read-write; write-only fds become read-write',
  });
  t.same(contents(folder), before);
});

t.test('types and other facts live on', async (t) => {
  const btf = image('BPFMAP_BTF', entry(Buffer.concat([scalar(1, 57), scalar(2, 3)]), Buffer.from('abc')));
  const facts = meta(100, scalar(2, 4), scalar(4, 57), scalar(5, 1), scalar(6, 2));
  const folder = folderOf(t, { ...dumpOf([{}, []]), 'bpfimg-meta.img': facts, 'bpfimg-btf.img': btf });
  t.same(await reports(folder, 'native'), { 100: 'partial: without its types (BTF)' });
  const names = fs.readdirSync(folder).filter((name) => name.startsWith('bpf'));
  t.same(names, ['bpfmap-btf.img', 'bpfmap-data.img', 'bpfmap-meta.img']);
  t.same(fs.readFileSync(path.join(folder, 'bpfmap-btf.img')), btf);
  t.same(fs.readFileSync(path.join(folder, 'bpfmap-meta.img')), facts);
  await convert(folder, 'plugin', types);
  t.same(fs.readFileSync(path.join(folder, 'bpfimg-btf.img')), btf);
  t.same(fs.readFileSync(path.join(folder, 'bpfimg-meta.img')), facts);
});

t.test('maps that nobody had open stay, and stale images are removed', async (t) => {
  const open = mapFile({ id: 1, map_id: 100 });
  const folder = folderOf(t, {
    ...dumpOf([{}, []]),
    'bpfimg-file.img': image('BPFMAP_FILE', entry(open), entry(mapFile({ id: 2, map_id: 8, type: 12 }))),
    'bpfimg-data.img': data(mapData(100, []), mapData(8, [])),
    'bpfmap-meta.img': meta(100, scalar(4, 99)),
  });
  const document = bpfimg(['decode', folder]).stdout;
  t.same(await reports(folder, 'native'), { 100: 'full', 8: 'partial: not restored, because no process had it open' });
  const names = fs.readdirSync(folder).filter((name) => name.startsWith('bpf'));
  t.same(names, ['bpfmap-data.img', 'bpfmap-file.img']);
  t.equal(bpfimg(['decode', folder]).stdout, document);
  await convert(folder, 'plugin', types);
  t.equal(bpfimg(['decode', folder]).stdout, document);
  t.notMatch(fs.readdirSync(folder).join(), /bpfmap/);
});

t.test('a list of plugins that is missing or empty', async (t) => {
  for (const plugins of [null, []]) {
    const images = { ...dumpOf([{}, []]), ...pluginDump({ plugins }) };
    const folder = folderOf(t, {
      'files.img': filesImage(mapFile({ id: 1, map_id: 7 })),
      'inventory.img': images['inventory.img'] as Buffer,
    });
    const before = contents(folder);
    await convert(folder, 'plugin', types);
    const list = bpfimg(['decode', path.join(folder, 'inventory.img')]).stdout;
    if (plugins === null) t.equal(contents(folder)['inventory.img'], before['inventory.img'], 'of an old CRIU');
    else t.match(list, '"plugins": ["bpfimg"]');
    t.match(bpfimg(['verify', folder]).stdout, /lost-data/);
    await convert(folder, 'native', types);
    t.same(contents(folder), before);
  }
});

/** Maps, and the report or refusal of a native restore. */
const fates: [name: string, images: Images, fate: string | RegExp][] = [
  ['hash', dumpOf([{}, [item('01000000', eight)]]), 'full'],
  ['lru_hash', dumpOf([{ type: 9, max: 1000 }, [item('01000000', eight)]]), 'full'],
  [
    'lru_hash, full',
    dumpOf([{ type: 9, max: 1 }, [item('01000000', eight)]]),
    'partial: nearly full, so the kernel may drop items',
  ],
  ['lpm_trie', dumpOf([{ type: 11, key: 8 }, [item('080000000a000000', eight)]]), 'full'],
  ['an empty queue', dumpOf([{ type: 22, key: 0 }, []]), 'full'],
  ['an empty stack', dumpOf([{ type: 23, key: 0 }, []]), 'full'],
  [
    'a queue',
    dumpOf([{ type: 22, key: 0 }, [item('', eight)]]),
    /type queue: it has 1 items, but CRIU can only create it empty/,
  ],
  ['array_of_maps', dumpOf([{ type: 12, value: 4 }, []]), /map 100 \(m\), type array_of_maps: its values are maps/],
  ['prog_array', dumpOf([{ type: 3, value: 4 }, []]), /type prog_array: its values are numbers that mean nothing/],
  ['sk_storage', dumpOf([{ type: 24 }, []]), /type sk_storage: its keys are file descriptors/],
  ['ringbuf', dumpOf([{ type: 27, key: 0, value: 0 }, []]), /type ringbuf: /],
  ['a type of the future', dumpOf([{ type: 77 }, []]), /type type_77: /],
  [
    'percpu_hash',
    { ...dumpOf([{ type: 5 }, [item('01000000', eight + eight)]]), 'bpfimg-meta.img': meta(100, scalar(2, 2)) },
    'partial: right only on a host with 2 possible CPUs',
  ],
  [
    'percpu_hash of other CPUs',
    { ...dumpOf([{ type: 5 }, [item('01000000', eight + eight)]]), 'bpfimg-meta.img': meta(100, scalar(2, 3)) },
    /its values are for 2 CPUs, but the dumped host had 3/,
  ],
  [
    'percpu_array of half a CPU',
    dumpOf([{ type: 6 }, [item('00000000', `${eight}00000000`)]]),
    /its items do not match its key_size/,
  ],
  ['keys of another size', dumpOf([{}, [item('0100', eight)]]), /its items do not match its key_size/],
  [
    'too many items',
    dumpOf([{ max: 1 }, [item('01000000', eight), item('02000000', eight)]]),
    /it has 2 items, but max_entries is 1/,
  ],
  [
    'no data',
    { ...dumpOf([{}, []]), 'bpfimg-data.img': data() },
    'partial: no items, because the dump has no data entry for it',
  ],
  [
    'captured in part',
    { ...dumpOf([{}, []]), 'bpfimg-meta.img': meta(100, blob(12, Buffer.from('partial: some'))) },
    'partial: captured partial: some',
  ],
  [
    'several',
    dumpOf([{}, []], [{ type: 3, name: 'a' }, []], [{ type: 14, name: '' }, []]),
    /map 101 \(a\), type prog_array: .*; map 102, type devmap: /,
  ],
  ['many', dumpOf(...Array.from({ length: 7 }, () => [{ type: 3 }, []] as [object, []])), /; and 2 more maps$/],
];

for (const [name, images, fate] of fates) {
  t.test(`to native: ${name}`, async (t) => {
    const folder = folderOf(t, images);
    if (typeof fate === 'string') t.match(await reports(folder, 'native'), { 100: fate });
    else {
      const message = await refusal(folder, 'native');
      t.match(message, /: CRIU without the plugin cannot restore map 10/);
      t.match(message, fate);
    }
  });
}

t.test('each CPU has its share of a map with BPF_F_NO_COMMON_LRU', async (t) => {
  const lru = (count: number) => {
    const file = Buffer.from(mapFile({ id: 1, map_id: 100, type: 9, max: 4 }));
    // map_flags are the tenth field: 0 in mapFile.
    file[file.lastIndexOf(Buffer.from([0x50, 0])) + 1] = 2;
    const items = Array.from({ length: count }, (_, i) => item(`0${i}000000`, eight));
    const images = dumpOf([{}, items]);
    return {
      ...images,
      'bpfimg-file.img': image('BPFMAP_FILE', entry(file)),
      'bpfimg-meta.img': meta(100, scalar(2, 2)),
    };
  };
  t.same(await reports(folderOf(t, lru(2)), 'native'), { 100: 'full' });
  t.match(await refusal(folderOf(t, lru(3)), 'native'), /it has 3 items, but CRIU can write only 2 of them/);
});

t.test('refused to plugin', async (t) => {
  const native = (...files: Buffer[]): Images => ({
    'files.img': filesImage(...files),
    'bpfmap-data.img': data(mapData(7, [])),
  });
  const one = mapFile({ id: 1, map_id: 7 });
  const cases: [images: Images, message: RegExp][] = [
    [
      native(one, mapFile({ id: 2, map_id: 7, max: 3 })),
      /map 7 \(m\), type hash: its open files have different attributes/,
    ],
    [native(one, one), /file id 1 occurs twice; bpfimg verify/],
    [native(mapFile({ id: 1, map_id: 8 })), /map 7 has data but no open file/],
    [{ ...native(one), ...processOf({ 3: [19, 5] }) }, /fd 3 of process 1 is file 5, which no image describes/],
    [{ 'bpfmap-file.img': image('BPFMAP_FILE', entry(one)) }, /it has no files\.img, so it is not a CRIU dump/],
    [{ 'x.img': Buffer.from('x') }, /expected a dump/],
    [{ 'files.img': (native(one)['files.img'] as Buffer).subarray(0, 30) }, /files\.img: entry 0 at offset 8: /],
  ];
  for (const [images, message] of cases) t.match(await refusal(folderOf(t, images), 'plugin'), message);
});

t.test('a type that bpfimg does not know goes to the plugin as plain bytes', async (t) => {
  const folder = folderOf(t, { 'files.img': filesImage(mapFile({ id: 1, map_id: 7, type: 77 })) });
  const { maps } = (await convert(folder, 'plugin', types)) as { maps: ConvertedMap[] };
  t.match(maps, [{ mapId: 7, type: 77, report: { kind: 'partial', why: /its type is unknown to bpfimg/ } }]);
});

t.test('refused to native: images that contradict each other', async (t) => {
  const good = dumpOf([{}, []]);
  const cases: [images: Images, message: RegExp][] = [
    [
      { ...good, 'bpfimg-files.txt': Buffer.from('1 100 02\n2 100 02\n') },
      /line 2: open file 2 is no plugin's in files\.img/,
    ],
    [{ ...good, 'bpfimg-files.txt': Buffer.from('1 100 02\n1 100 02\n') }, /line 2: open file 1 is listed twice/],
    [{ ...good, 'bpfimg-files.txt': Buffer.from('1 101 02\n') }, /line 1: map 101 is not in bpfimg-file\.img/],
    [{ ...good, 'bpfimg-files.txt': Buffer.from('') }, /open file 1 is in no line of bpfimg-files\.txt/],
    [
      {
        ...good,
        'files.img': Buffer.concat([
          good['files.img'] as Buffer,
          filesImage(mapFile({ id: 9, map_id: 100 })).subarray(8),
        ]),
      },
      /1 open files of maps that CRIU itself has dumped/,
    ],
    [{ ...good, 'bpfimg-data.img': data(mapData(100, []), mapData(8, [])) }, /map 8 has data but no open file/],
  ];
  for (const [images, message] of cases) t.match(await refusal(folderOf(t, images), 'native'), message);
});

t.test('no maps: nothing to do, and no failure', async (t) => {
  const folder = folderOf(t, { 'files.img': image('FILES') });
  for (const to of ['native', 'plugin']) {
    const ran = bpfimg(['criu', 'convert', folder, '--to', to]);
    t.match(ran, { status: 0, stdout: '', stderr: `bpfimg: ${folder}: nothing to convert, it has no BPF maps\n` });
  }
  t.same(contents(folder), hexOf({ 'files.img': image('FILES') }));
});

t.test('all or nothing', async (t) => {
  const dump = path.join(t.testdir(), 'dump');
  copyDump(dump);
  // The last of the files cannot be put in place.
  fs.mkdirSync(path.join(dump, 'bpfimg-files.txt', 'x'), { recursive: true });
  const before = contents(dump);
  const names = fs.readdirSync(dump);
  await t.rejects(convert(dump, 'plugin', types), BpfimgError);
  t.same(contents(dump), before);
  t.same(fs.readdirSync(dump), names, 'no temporary file is left');
});
