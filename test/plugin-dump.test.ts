/** Dumps that CRIU has made with the plugin: read, edited and replayed as any other. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { openDump } from '../src/dump/model.js';
import { BpfimgError } from '../src/errors.js';
import { bpfimg, contents, shell, TOP, workFolder } from './helpers/command.js';
import { folderOf, mapFile, pluginDump, processOf } from './helpers/dumps.js';
import { entry, image, item, mapData, scalar, words } from './helpers/images.js';
import { skipWithoutMaps } from './helpers/kernel-live.js';

interface Document {
  format: string;
  btf?: unknown[];
  maps: {
    map_id: number;
    name: string;
    max_entries: number;
    files: { id: number; flags: string; fds: unknown[]; [more: string]: unknown }[];
    items: { key: string; value: string }[];
    meta?: Record<string, unknown>;
  }[];
}

const FORMS = [[], ['--pretty'], ['--format', 'ndjson']];
const FLOWD = path.join(TOP, 'fixtures/flowd');
const OBJECT = path.join(TOP, 'fixtures/btf/flowd.o');

/** A folder with `flowd`, the real dump as the plugin would have made it. */
function pluginFolder(): string {
  const cwd = workFolder();
  const { stderr, status } = bpfimg(['criu', 'convert', 'flowd', '--to', 'plugin'], { cwd });
  if (status !== 0) throw new Error(stderr);
  return cwd;
}

function decoded(folder: string, ...args: string[]): Document {
  const { status, stdout, stderr } = bpfimg(['decode', folder, ...args]);
  if (status !== 0) throw new Error(stderr);
  return JSON.parse(stdout) as Document;
}

/** Encodes into a dump that is there; what it says on standard error. */
function encoded(document: unknown, folder: string): string {
  return bpfimg(['encode', '-D', folder, '--force'], { input: JSON.stringify(document) }).stderr;
}

/** Names of files that differ. */
function changed(before: Record<string, string>, after: Record<string, string>): string[] {
  return [...new Set([...Object.keys(before), ...Object.keys(after)])]
    .filter((name) => before[name] !== after[name])
    .sort();
}

const eight = '00'.repeat(8);
const data = (...maps: Buffer[]) => image('BPFMAP_DATA', ...maps);

/** Map 7, opened for reading and for writing, and map 8, that nobody has open. */
const two: Record<string, Uint8Array> = {
  ...pluginDump({
    maps: [mapFile({ id: 4, map_id: 7, name: 'seven' }), mapFile({ id: 5, map_id: 8, name: 'eight' })],
    table: '4 7 0\n1f 7 01\n',
    external: [4, 0x1f, 99],
    plugins: ['gpu', 'bpfimg'],
  }),
  ...processOf({ 3: [16, 4], 5: [16, 0x1f], 6: [16, 99], 7: [1, 4] }),
  'bpfimg-data.img': data(mapData(7, [item('01000000', eight)]), mapData(8, [])),
};

t.test('the real dump is the same one', async (t) => {
  const cwd = pluginFolder();
  t.teardown(() => fs.rmSync(cwd, { recursive: true }));
  const before = contents(path.join(cwd, 'flowd'));

  for (const form of FORMS) {
    const name = form.join(' ') || 'compact';
    t.test(`${name}: its document, and back`, async (t) => {
      const { stdout } = bpfimg(['decode', 'flowd', ...form], { cwd });
      t.equal(stdout, bpfimg(['decode', FLOWD, ...form]).stdout);
      t.equal(bpfimg(['encode', '-D', 'flowd', '--force'], { cwd, input: stdout }).stderr, '');
      t.same(contents(path.join(cwd, 'flowd')), before, 'back into the dump changes nothing');
      const fresh = `new ${name}`;
      t.equal(bpfimg(['encode', '-D', fresh], { cwd, input: stdout }).stderr, '');
      t.same(fs.readdirSync(path.join(cwd, fresh)), ['bpfmap-data.img', 'bpfmap-file.img', 'bpfmap-meta.img']);
      t.equal(bpfimg(['decode', fresh, ...form], { cwd }).stdout, stdout);
    });
  }

  t.test('show, verify, info', async (t) => {
    t.equal(bpfimg(['show', 'flowd'], { cwd }).stdout, bpfimg(['show', FLOWD]).stdout);
    // The memory of its processes was left out.
    t.match(bpfimg(['verify', 'flowd'], { cwd }), {
      status: 0,
      stdout: /^(.*no-pages.*\n){2}sound, 2 warnings\n$/,
      stderr: '',
    });
    t.match(bpfimg(['info', 'flowd/bpfimg-data.img'], { cwd }).stdout, /"BPFMAP_DATA",\n {4}"count": 7/);
    t.match(bpfimg(['info', 'flowd/bpfimg-file.img'], { cwd }).stdout, /"BPFMAP_FILE",\n {4}"count": 6/);
  });

  t.test('types of an image are those of the dump in its folder', async (t) => {
    const typed = ['--btf', OBJECT];
    t.equal(
      bpfimg(['decode', 'flowd/bpfimg-data.img', ...typed], { cwd }).stdout,
      bpfimg(['decode', path.join(FLOWD, 'bpfmap-data.img'), ...typed]).stdout,
    );
    fs.copyFileSync(path.join(FLOWD, 'bpfmap-data.img'), path.join(cwd, 'flowd/bpfmap-data.img'));
    const stale = bpfimg(['decode', 'flowd/bpfmap-data.img', ...typed], { cwd });
    t.match(stale, { status: 2, stderr: /types need a dump/ }, 'an image that is not of the dump');
    fs.rmSync(path.join(cwd, 'flowd/bpfmap-data.img'));
  });

  t.test('replay --dry-run', { skip: await skipWithoutMaps() }, async (t) => {
    const plan = (folder: string) => bpfimg(['replay', folder, '--dry-run', '--json'], { cwd }).stdout;
    t.equal(plan('flowd'), plan(FLOWD));
  });
});

t.test('who holds what', async (t) => {
  const folder = folderOf(t, two);
  const { maps } = decoded(folder);
  t.match(maps, [
    {
      map_id: 7,
      files: [
        { id: 4, flags: '', fds: [{ pid: 1, fd: 3 }] },
        { id: 0x1f, flags: 'O_WRONLY', fds: [{ pid: 1, fd: 5 }] },
      ],
    },
    { map_id: 8, files: [{ id: 1, flags: 'O_RDWR', fds: [] }] },
  ]);
  t.equal(maps.length, 2, 'an open file of another plugin is no map');
  t.match(bpfimg(['verify', folder]), { status: 0, stdout: 'sound\n' });
  t.same(encoded({ format: 'bpfimg-maps/1', maps }, folder), '');
  t.same(changed(Object.fromEntries(hexOf(two)), contents(folder)), [], 'back into the dump changes nothing');
  const fresh = path.join(folder, 'fresh');
  t.equal(bpfimg(['encode', '-D', fresh], { input: JSON.stringify({ format: 'bpfimg-maps/1', maps }) }).stderr, '');
  t.same(decoded(fresh).maps, maps, 'file ids do not collide in a new dump');
});

function hexOf(images: Readonly<Record<string, Uint8Array>>): [string, string][] {
  return Object.entries(images).map(([name, bytes]) => [name, Buffer.from(bytes).toString('hex')]);
}

t.test('edits', async (t) => {
  const cwd = pluginFolder();
  t.teardown(() => fs.rmSync(cwd, { recursive: true }));
  const dump = path.join(cwd, 'flowd');
  const before = contents(dump);
  const again = () => {
    for (const [name, bytes] of Object.entries(before)) fs.writeFileSync(path.join(dump, name), bytes, 'hex');
    for (const name of fs.readdirSync(dump)) if (before[name] === undefined) fs.rmSync(path.join(dump, name));
  };
  const flows = () => decoded(dump, '--map', 'flows') as Document & { maps: [Document['maps'][0]] };

  t.test('items: the data image alone', async (t) => {
    t.teardown(again);
    const document = flows();
    document.maps[0].items.splice(0, 199);
    t.equal(encoded(document, dump), '');
    t.same(changed(before, contents(dump)), ['bpfimg-data.img']);
    t.equal(flows().maps[0].items.length, 1);
    t.equal(decoded(dump).maps.length, 6, 'maps that were not mentioned are still there');
  });

  t.test('attributes: one entry for all open files of the map', async (t) => {
    t.teardown(again);
    const document = flows();
    document.maps[0].max_entries = 4096;
    t.equal(encoded(document, dump), '');
    t.same(changed(before, contents(dump)), ['bpfimg-file.img']);
    t.same(flows().maps[0], document.maps[0]);
  });

  t.test('open flags: the table alone, and of it one line', async (t) => {
    t.teardown(again);
    const odd = fs.readFileSync(path.join(dump, 'bpfimg-files.txt'), 'utf8').replace('4 377 02', '4 377 2');
    fs.writeFileSync(path.join(dump, 'bpfimg-files.txt'), odd);
    const document = flows();
    (document.maps[0].files[1] as { flags: string }).flags = 'O_WRONLY | O_NONBLOCK';
    t.equal(encoded(document, dump), '');
    t.same(changed(before, contents(dump)), ['bpfimg-files.txt']);
    const table = fs.readFileSync(path.join(dump, 'bpfimg-files.txt'), 'utf8');
    t.equal(table, odd.replace('11 377 02', '11 377 04001'));
    t.same(flows().maps[0], document.maps[0]);
  });

  t.test('meta, and types that it names', async (t) => {
    t.teardown(again);
    const document = decoded(dump, '--map', 'flows', '--btf', OBJECT) as Document & { types?: unknown };
    const map = document.maps[0] as Document['maps'][0] & { types: { btf_id: number } };
    t.equal(encoded(document, dump), '');
    t.same(changed(before, contents(dump)), [], 'types that are but a way to look at it');
    map.meta = { btf_id: map.types.btf_id, btf_key_type_id: 4, btf_value_type_id: 8, nr_cpus: 2 };
    t.equal(encoded(document, dump), '');
    t.same(changed(before, contents(dump)), ['bpfimg-btf.img', 'bpfimg-meta.img']);
    t.match(flows().maps[0].meta, map.meta);
    const once = contents(dump);
    t.equal(encoded(flows(), dump), '');
    t.same(contents(dump), once, 'and once more changes nothing');
    map.meta.nr_cpus = 3;
    t.equal(encoded({ ...document, maps: [map] }, dump), '');
    t.same(changed(once, contents(dump)), ['bpfimg-meta.img']);
  });

  const refused: [string, (map: Document['maps'][0]) => unknown, RegExp][] = [
    ['a map id', (map) => Object.assign(map, { map_id: 9 }), /\/maps\/0\/map_id: it is map 377 in bpfimg-files\.txt/],
    ['a map that nobody would hold', (map) => Object.assign(map, { map_id: 9, files: [] }), /\/map_id: no map 9 in /],
    [
      "an owner, which is CRIU's",
      (map) => Object.assign(map.files[0] ?? {}, { fown: { uid: 1, euid: 0, signum: 0, pid_type: 0, pid: 0 } }),
      /\/maps\/0\/files\/0\/fown: it is recorded in files\.img/,
    ],
    [
      'files that disagree',
      (map) => Object.assign(map.files[1] ?? {}, { max_entries: 3 }),
      /\/maps\/0\/files\/1: differs/,
    ],
    [
      'a file of another map',
      (map) => Object.assign(map.files[1] ?? {}, { map_id: 3 }),
      /\/files\/1\/map_id: must be 377/,
    ],
    ['a new file', (map) => map.files.push({ id: 77, flags: 'O_RDWR', fds: [] }), /\/files\/2\/id: no open file 77/],
    [
      'who holds it',
      (map) => Object.assign(map.files[0] ?? {}, { fds: [] }),
      /\/files\/0\/fds: who holds a map is recorded in/,
    ],
  ];
  for (const [name, edit, message] of refused) {
    t.test(`refused: ${name}`, async (t) => {
      const document = flows();
      edit(document.maps[0]);
      t.match(encoded(document, dump), message);
      t.same(contents(dump), before);
    });
  }
  t.test('refused: without --force', async (t) => {
    const { stderr } = bpfimg(['encode', '-D', dump], { input: JSON.stringify(flows()) });
    t.match(stderr, /holds images already; --force/);
    t.same(contents(dump), before);
  });
});

t.test('a table of strangers', async (t) => {
  const lines: [string, number][] = [
    ['4 7 2', 1],
    ['4 7\n', 1],
    ['4 7 02\n\n', 2],
    ['4 7 02\n5 8 2 \n', 2],
    ['0x4 7 02\n', 1],
    ['04 7 02\n', 1],
    ['A 7 02\n', 1],
    ['4 07 02\n', 1],
    ['4 -7 02\n', 1],
    ['4 7 08\n', 1],
    ['4 7 02\r\n', 1],
    ['4\t7 02\n', 1],
    ['4 7 02\n\0', 2],
    ['fffffffff 7 02\n', 1],
    ['4 4294967296 02\n', 1],
    ['4 7 777777777777\n', 1],
    [`4 7 02${' '.repeat(100_000)}\n`, 1],
    ['4 7 02\n'.repeat(1000) + 'x'.repeat(100), 1001],
  ];
  for (const [table, line] of lines) {
    const folder = folderOf(t, { ...two, 'bpfimg-files.txt': Buffer.from(table) });
    const message = await news(folder);
    t.ok(message.startsWith(`${folder}/bpfimg-files.txt: line ${line} is "`), message);
    t.ok(message.length < 400, 'one line');
  }
  const many = folderOf(t, { ...two, 'bpfimg-files.txt': Buffer.from('4 7 02\n'.repeat(1_000_001)) });
  t.match(await news(many), /more than 1000000 entries of BPF maps/);
});

/** The message of the error that reading the dump must end in. */
async function news(folder: string): Promise<string> {
  try {
    (await openDump(folder)).close();
  } catch (error) {
    if (error instanceof BpfimgError && error.kind === 'badImage') return error.message;
    throw error;
  }
  throw new Error('it was accepted');
}

t.test('a table that is lost, and images of others', async (t) => {
  const folder = folderOf(t, two);
  fs.rmSync(path.join(folder, 'bpfimg-files.txt'));
  for (const args of [['decode'], ['show'], ['replay', '--dry-run']]) {
    const { status, stderr } = bpfimg([...args, folder]);
    t.match({ status, stderr }, { status: 1, stderr: /bpfimg-files\.txt: it is missing/ }, args.join(' '));
  }
  const map = { map_id: 7, items: [] };
  t.match(encoded({ format: 'bpfimg-maps/1', maps: [map] }, folder), /bpfimg-files\.txt: it is missing/);
  const unsound = folderOf(t, { ...two, 'bpfimg-files.txt': Buffer.from('4 7 02\n4 7 02\n') });
  t.match(
    encoded({ format: 'bpfimg-maps/1', maps: [map] }, unsound),
    /bpfimg-files\.txt: line 2: open file 4 is listed twice/,
  );
  const alone = Object.fromEntries(Object.entries(two).filter(([name]) => /^bpfimg-.*img$/.test(name)));
  t.same(
    decoded(folderOf(t, alone)).maps.map(({ map_id, files }) => [map_id, files.length]),
    [
      [7, 1],
      [8, 1],
    ],
    'images that were taken out of a dump',
  );
});

t.test('a plugin dump becomes maps', { skip: await skipWithoutMaps() }, async (t) => {
  const pins = '/sys/fs/bpf/bpfimg-plugin-dump';
  t.teardown(() => fs.rmSync(pins, { recursive: true, force: true }));
  const inner = (id: number) => Buffer.from(words(id)).toString('hex');
  const template = [2, 4, 8, 4, 0].map((number, i) => scalar(i + 1, number));
  const folder = folderOf(t, {
    ...pluginDump({
      maps: [
        mapFile({ id: 1, map_id: 7, type: 12, value: 4, max: 1, name: 'outer' }),
        mapFile({ id: 2, map_id: 8, type: 2, max: 4, name: 'inner' }),
      ],
      table: '4 7 02\n',
      external: [4],
    }),
    'bpfimg-data.img': data(
      mapData(7, [item(inner(0), inner(8))]),
      mapData(
        8,
        [0, 1, 2, 3].map((i) => item(inner(i), `${i}`.repeat(16))),
      ),
    ),
    'bpfimg-meta.img': image(
      'BPFMAP_META',
      entry(Buffer.concat([scalar(1, 7), Buffer.from([0x4a, Buffer.concat(template).length]), ...template])),
      entry(scalar(1, 8)),
    ),
  });
  t.match(bpfimg(['replay', folder, '--pin', pins, '--verify']), { status: 0, stdout: /outer +array_of_maps +1/ });
  const { stdout } = shell(`bpftool map dump pinned ${pins}/inner | grep -c value`);
  t.equal(stdout.trim(), '4');
});
