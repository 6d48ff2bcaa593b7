/** A dump as maps: decode of a folder, encode -D, and what stays as it was. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { bpfimg, contents, copyDump, shell, workFolder } from './helpers/command.js';
import { filesImage, folderOf, mapFile } from './helpers/dumps.js';
import { fixture } from './helpers/fixtures.js';
import { entry, image, item, mapData, scalar, words } from './helpers/images.js';

interface Document {
  format: string;
  maps: Record<string, unknown>[];
}

const FORMS = [[], ['--pretty'], ['--format', 'ndjson']];

function decoded(folder: string, ...args: string[]): Document {
  const { status, stdout, stderr } = bpfimg(['decode', folder, ...args]);
  if (status !== 0) throw new Error(stderr);
  return JSON.parse(stdout) as Document;
}

t.test('a CRIU dump and its document', async (t) => {
  const cwd = workFolder();
  t.teardown(() => fs.rmSync(cwd, { recursive: true }));
  const before = contents(path.join(cwd, 'flowd'));

  t.test('joins processes, fds, files, maps and data', async (t) => {
    const { format, maps } = decoded(path.join(cwd, 'flowd'));
    t.equal(format, 'bpfimg-maps/1');
    t.same(
      maps.map((map) => map.name),
      ['flows', 'cfg', 'seen.tmp', 'odd_sizes', 'pages', ''],
    );
    t.match(maps[0], { map_id: 377, type: 'hash', key_size: 16, value_size: 24, max_entries: 1024, frozen: false });
    t.same(
      maps[0]?.files,
      [
        {
          id: 4,
          flags: 'O_RDWR',
          fds: [
            { pid: 22137, fd: 3, cloexec: true },
            { pid: 22139, fd: 3, cloexec: true },
          ],
        },
        {
          id: 17,
          flags: 'O_RDWR',
          fds: [
            { pid: 22139, fd: 9, cloexec: true },
            { pid: 22139, fd: 20 },
          ],
        },
      ],
      'one map, two open files, four fds',
    );
    t.match(maps[1], { type: 'array', frozen: true, items: { length: 4 } });
    t.same(maps[2]?.items, []);
  });

  for (const form of FORMS) {
    const name = form.join(' ') || 'compact';
    t.test(`${name}: back into the dump changes nothing`, async (t) => {
      const { stdout } = bpfimg(['decode', 'flowd', ...form], { cwd });
      const { status, stderr } = bpfimg(['encode', '-D', 'flowd', '--force'], { cwd, input: stdout });
      t.equal(stderr, '');
      t.equal(status, 0);
      t.same(contents(path.join(cwd, 'flowd')), before);
    });
    t.test(`${name}: a new dump says the same`, async (t) => {
      const { stdout } = bpfimg(['decode', 'flowd', ...form], { cwd });
      const folder = `new ${name}`;
      t.equal(bpfimg(['encode', '-D', folder], { cwd, input: stdout }).stderr, '');
      t.same(fs.readdirSync(path.join(cwd, folder)), ['bpfmap-data.img', 'bpfmap-file.img', 'bpfmap-meta.img']);
      for (const file of fs.readdirSync(path.join(cwd, folder))) {
        t.equal(fs.statSync(path.join(cwd, folder, file)).mode & 0o777, 0o600, `${file} is for its owner alone`);
      }
      t.equal(bpfimg(['decode', folder, ...form], { cwd }).stdout, stdout);
      t.equal(bpfimg(['encode', '-D', folder, '--force'], { cwd, input: stdout }).status, 0, 'and once more over it');
      t.equal(bpfimg(['decode', folder, ...form], { cwd }).stdout, stdout);
    });
  }
});

t.test('an edit changes what it says and nothing else', async (t) => {
  const cwd = workFolder();
  t.teardown(() => fs.rmSync(cwd, { recursive: true }));
  const dump = path.join(cwd, 'flowd');
  const before = contents(dump);
  const document = decoded(dump, '--map', 'flows');
  const flows = document.maps[0] as { items: { key: string; value: string }[]; max_entries: number; name: string };
  flows.items.splice(1, 1);
  flows.max_entries = 2048;
  flows.name = 'flöws';
  t.equal(bpfimg(['encode', '-D', dump, '--force'], { input: JSON.stringify(document) }).stderr, '');
  const after = contents(dump);
  t.same(
    Object.keys(after).filter((name) => after[name] !== before[name]),
    ['bpfmap-data.img', 'files.img'],
  );
  t.equal(decoded(dump).maps.length, 6, 'the maps that were not mentioned are still there');
  const changed = decoded(dump, '--map', '377').maps[0] as typeof flows;
  t.equal(changed.items.length, 199);
  t.match(changed, { max_entries: 2048, name: 'flöws' }, 'a name is bytes: U+00F6 is one');
  const data = bpfimg(['decode', path.join(dump, 'bpfmap-data.img')]).stdout;
  const entries = (JSON.parse(data) as { entries: { map_id: number; items: unknown[] }[] }).entries;
  t.same(
    entries.filter((one) => one.map_id === 377).map((one) => one.items.length),
    [199, 199],
    'both data entries of the map',
  );
});

t.test('which images a dump may have', async (t) => {
  const data = (...maps: Buffer[]) => image('BPFMAP_DATA', ...maps);

  t.test('per-CPU values are cut, padding shown only where it is not zero', async (t) => {
    const value = '0102030405060000' + '0a0b0c0d0e0f00ff';
    const dump = folderOf(t, {
      'files.img': filesImage(mapFile({ id: 1, map_id: 7, type: 5, key: 2, value: 6 })),
      'bpfmap-data.img': data(mapData(7, [item('aabb', value)])),
    });
    const document = decoded(dump);
    t.same(document.maps[0]?.items, [{ key: 'aabb', values: ['010203040506', '0a0b0c0d0e0f00ff'] }]);
    const before = contents(dump);
    t.equal(bpfimg(['encode', '-D', dump, '--force'], { input: JSON.stringify(document) }).stderr, '');
    t.same(contents(dump), before);
  });

  t.test('data entries of one map that differ are all kept', async (t) => {
    const dump = folderOf(t, {
      'files.img': filesImage(mapFile({ id: 1, map_id: 7 }), mapFile({ id: 2, map_id: 7 })),
      'bpfmap-data.img': data(
        mapData(7, [item('01000000', '11'.repeat(8))]),
        mapData(7, [item('01000000', '22'.repeat(8))]),
      ),
    });
    const before = contents(dump);
    t.match(decoded(dump).maps[0], {
      items: [{ value: '22'.repeat(8) }],
      copies: [{ items: [{ value: '11'.repeat(8) }] }],
    });
    for (const form of FORMS) {
      const { stdout } = bpfimg(['decode', dump, ...form]);
      t.equal(bpfimg(['encode', '-D', dump, '--force'], { input: stdout }).stderr, '');
      t.same(contents(dump), before);
    }
  });

  t.test('files of one map that disagree keep their own attributes', async (t) => {
    const dump = folderOf(t, {
      'files.img': filesImage(mapFile({ id: 1, map_id: 7 }), mapFile({ id: 2, map_id: 7, max: 99, name: 'other' })),
    });
    t.match(decoded(dump).maps[0]?.files, [{ id: 1 }, { id: 2, max_entries: 99, name: 'other' }]);
    const before = contents(dump);
    t.equal(bpfimg(['encode', '-D', dump, '--force'], { input: JSON.stringify(decoded(dump)) }).stderr, '');
    t.same(contents(dump), before);
  });

  t.test('totals that do not divide, data without a file, sizes the attributes do not explain', async (t) => {
    const odd = Buffer.concat([scalar(1, 8), scalar(2, 5), scalar(3, 4), scalar(4, 2)]);
    const dump = folderOf(t, {
      'files.img': filesImage(mapFile({ id: 1, map_id: 7, key: 2, value: 2 })),
      'bpfmap-data.img': data(
        entry(odd, Buffer.from('012345678')),
        mapData(7, [item('01', '0203')]),
        mapData(9, [item('', 'ff')]),
      ),
    });
    const { maps } = decoded(dump);
    t.match(maps[0], { map_id: 7, key_size: 2, data_key_size: 1, items: [{ key: '01', value: '0203' }] });
    t.match(maps[1], { map_id: 8, count: 2, keys_bytes: 5, values_bytes: 4, extra: 'MDEyMzQ1Njc4\n' });
    t.match(maps[2], { map_id: 9, data_key_size: 0, data_value_size: 1, items: [{ key: '', value: 'ff' }] });
    const before = contents(dump);
    for (const form of FORMS) {
      const { stdout } = bpfimg(['decode', dump, ...form]);
      t.equal(bpfimg(['encode', '-D', dump, '--force'], { input: stdout }).stderr, '');
      t.same(contents(dump), before);
      const fresh = path.join(dump, `../${path.basename(dump)}-fresh${form.length}`);
      t.teardown(() => fs.rmSync(fresh, { recursive: true, force: true }));
      t.equal(bpfimg(['encode', '-D', fresh], { input: stdout }).stderr, '');
      t.equal(bpfimg(['decode', fresh, ...form]).stdout, stdout);
    }
  });

  t.test('unknown fields in a file entry survive an edit of other fields', async (t) => {
    const message = Buffer.concat([mapFile({ id: 1, map_id: 7 }), scalar(99, 12345)]);
    const dump = folderOf(t, { 'files.img': filesImage(message) });
    const document = decoded(dump);
    (document.maps[0] as { max_entries: number }).max_entries = 17;
    t.equal(bpfimg(['encode', '-D', dump, '--force'], { input: JSON.stringify(document) }).stderr, '');
    const changed = Buffer.concat([mapFile({ id: 1, map_id: 7, max: 17 }), scalar(99, 12345)]);
    t.same(fs.readFileSync(path.join(dump, 'files.img')), filesImage(changed));
  });

  t.test('a name that is not UTF-8 is shown one character a byte', async (t) => {
    const dump = folderOf(t, { 'files.img': filesImage(mapFile({ id: 1, map_id: 7, name: 'fl\xf6w' })) });
    t.equal(decoded(dump).maps[0]?.name, 'fl\xf6w');
    const before = contents(dump);
    t.equal(bpfimg(['encode', '-D', dump, '--force'], { input: JSON.stringify(decoded(dump)) }).stderr, '');
    t.same(contents(dump), before);
  });

  t.test('images of format v1.0 keep their missing head', async (t) => {
    const dump = folderOf(t, {
      'files.img': filesImage(mapFile({ id: 1, map_id: 7 })).subarray(4),
      'bpfmap-data.img': data(mapData(7, [item('01000000', '00'.repeat(8))])).subarray(4),
    });
    const before = contents(dump);
    t.equal(bpfimg(['encode', '-D', dump, '--force'], { input: JSON.stringify(decoded(dump)) }).stderr, '');
    t.same(contents(dump), before);
  });

  t.test('members sorted by jq -S', async (t) => {
    const cwd = workFolder();
    t.teardown(() => fs.rmSync(cwd, { recursive: true }));
    const before = contents(path.join(cwd, 'flowd'));
    const { stdout } = bpfimg(['decode', 'flowd'], { cwd });
    const sorted = (value: unknown): unknown =>
      Array.isArray(value)
        ? value.map(sorted)
        : typeof value === 'object' && value !== null
          ? Object.fromEntries(
              Object.entries(value)
                .sort(([a], [b]) => (a < b ? -1 : 1))
                .map(([k, v]) => [k, sorted(v)]),
            )
          : value;
    const input = JSON.stringify(sorted(JSON.parse(stdout)));
    t.equal(bpfimg(['encode', '-D', 'flowd', '--force'], { cwd, input }).stderr, '');
    t.same(contents(path.join(cwd, 'flowd')), before);
  });
});

t.test('bad input leaves everything as it was', async (t) => {
  const good = { map_id: 7, type: 'hash', key_size: 1, value_size: 1, max_entries: 4 };
  const typed = { ...good, types: { btf_id: 5, key: 'int' } };
  const cases: readonly [name: string, maps: unknown[], message: RegExp, btf?: unknown[]][] = [
    ['an unknown type', [{ ...good, type: 'hsah' }], /\/maps\/0\/type: "hsah" is not one/],
    ['an unknown flag', [{ ...good, map_flags: ['BPF_F_NONE'] }], /\/maps\/0\/map_flags/],
    ['a missing attribute', [{ ...good, max_entries: undefined }], /\/maps\/0: member "max_entries" is missing/],
    ['a number out of range', [{ ...good, max_entries: 2 ** 32 }], /\/maps\/0\/max_entries: must be <= 4294967295/],
    ['an unknown member', [{ ...good, maxentries: 4 }], /\/maps\/0: unknown member "maxentries"/],
    ['one map twice', [good, good], /\/maps\/1\/map_id: map 7 is listed twice/],
    [
      'one file twice',
      [{ ...good, files: [{ id: 1 }, { id: 1 }] }],
      /\/maps\/0\/files\/1\/id: file 1 is in the document twice/,
    ],
    [
      'one fd twice',
      [{ ...good, files: [1, 2].map((id) => ({ id, fds: [{ pid: 10, fd: 3 }] })) }],
      /\/maps\/0\/files\/1\/fds\/0: fd 3 of process 10 is listed twice/,
    ],
    [
      'a flag beyond 2^53',
      [{ ...good, map_flags: [2 ** 53] }],
      /\/maps\/0\/map_flags: \[9007199254740992\] is not one/,
    ],
    ['a type of another kind before items', [{ ...good, type: { $raw: '' }, items: [] }], /\/maps\/0\/type: must be/],
    [
      'types that are none',
      [typed],
      /\/maps\/0\/types\/btf_id: BTF 5: BTF: a header needs 24 bytes, got 3/,
      [{ btf_id: 5, blob: 'AAAA' }],
    ],
    [
      'a BTF object whose message is none',
      [typed],
      /\/btf\/0\/\$raw: is not a bpfmap_btf_entry/,
      [{ btf_id: 5, blob: 'AAAA', $raw: '3f' }],
    ],
    [
      'a key of another size',
      [{ ...good, items: [{ key: '0102', value: '03' }] }],
      /\/maps\/0\/items\/0\/key: the key has 2 bytes, expected 1/,
    ],
    [
      'items without a byte',
      [{ ...good, type: 'ringbuf', key_size: 0, value_size: 0, items: [{ key: '', value: '' }] }],
      /\/maps\/0\/items: its items have neither key nor value bytes/,
    ],
    [
      'a per-CPU form',
      [{ ...good, items: [{ key: '01', values: ['03'] }] }],
      /only the items of a per-CPU map have "values"/,
    ],
    ['a name beyond bytes', [{ ...good, name: 'x\u20ac' }], /\/maps\/0\/name/],
    [
      'a blob of another length',
      [{ ...good, count: 1, keys_bytes: 1, values_bytes: 1, extra: 'AAAA' }],
      /\/maps\/0\/extra: has 3 bytes/,
    ],
  ];
  for (const [name, maps, message, btf] of cases) {
    t.test(name, async (t) => {
      const cwd = t.testdir();
      const { status, stderr } = bpfimg(['encode', '-D', 'new'], {
        cwd,
        input: JSON.stringify({ format: 'bpfimg-maps/1', btf, maps }),
      });
      t.equal(status, 1);
      t.match(stderr, /^bpfimg: standard input: [^\n]+\n$/, 'one line');
      t.match(stderr, message);
      t.same(fs.readdirSync(cwd), [], 'nothing is left');
    });
  }

  t.test('a CRIU dump is not given maps that nothing would hold, nor other holders', async (t) => {
    const cwd = workFolder();
    t.teardown(() => fs.rmSync(cwd, { recursive: true }));
    const before = contents(cwd);
    const encode = (maps: unknown[]) =>
      bpfimg(['encode', '-D', 'flowd', '--force'], { cwd, input: JSON.stringify({ format: 'bpfimg-maps/1', maps }) });
    t.match(encode([good]), {
      status: 1,
      stderr: /\/maps\/0\/map_id: no map 7 in flowd, and nothing there would hold it/,
    });
    t.match(encode([{ map_id: 377, files: [{ id: 4 }, { id: 99 }] }]), {
      status: 1,
      stderr: /no open file 99 of this map/,
    });
    t.match(encode([{ map_id: 377, files: [{ id: 4, fds: [{ pid: 1, fd: 2 }] }] }]), {
      status: 1,
      stderr: /fdinfo-\*\.img, which is left alone/,
    });
    t.same(contents(cwd), before);
  });

  t.test('folders that are not for it', async (t) => {
    const cwd = workFolder();
    t.teardown(() => fs.rmSync(cwd, { recursive: true }));
    fs.mkdirSync(path.join(cwd, 'other'));
    fs.writeFileSync(path.join(cwd, 'other/notes.txt'), 'mine');
    const input = bpfimg(['decode', 'flowd'], { cwd }).stdout;
    const before = contents(cwd);
    t.match(bpfimg(['encode', '-D', 'flowd'], { cwd, input }), { status: 1, stderr: /--force replaces/ });
    t.match(bpfimg(['encode', '-D', 'other', '--force'], { cwd, input }), {
      status: 1,
      stderr: /not empty and no dump/,
    });
    t.match(bpfimg(['encode', '-D', 'no/such/place'], { cwd, input }), {
      status: 1,
      stderr: /cannot create it: no such file/,
    });
    t.match(bpfimg(['encode', '-o', 'x.img'], { cwd, input }), { status: 2, stderr: /encode it with -D DIR/ });
    t.match(bpfimg(['encode', '-D', 'y'], { cwd, input: '{"magic":"FILES","entries":[]}' }), {
      status: 2,
      stderr: /encode it with -o/,
    });
    t.match(bpfimg(['decode', 'other'], { cwd }), { status: 1, stderr: /expected a dump/ });
    t.match(bpfimg(['decode', 'flowd', '--format', 'crit'], { cwd }), {
      status: 2,
      stderr: /no form for a whole dump/,
    });
    t.same(contents(cwd), before);
  });

  t.test('our own dump keeps maps that the document lacks, and takes new ones', async (t) => {
    const cwd = workFolder();
    t.teardown(() => fs.rmSync(cwd, { recursive: true }));
    bpfimg(['encode', '-D', 'own'], { cwd, input: bpfimg(['decode', 'flowd'], { cwd }).stdout });
    const own = path.join(cwd, 'own');
    const before = contents(own);
    const encode = (maps: unknown[]) =>
      bpfimg(['encode', '-D', 'own', '--force'], { cwd, input: JSON.stringify({ format: 'bpfimg-maps/1', maps }) });
    t.equal(encode(decoded(own, '--map', 'cfg').maps).stderr, '');
    t.same(contents(own), before);
    const fresh = { ...good, name: 'fresh', files: [{ id: 99, flags: 'O_RDWR', fds: [{ pid: 5, fd: 6 }] }], items: [] };
    t.equal(encode([fresh]).stderr, '');
    t.match(decoded(own).maps, { length: 7, 6: fresh });
    for (const [name, bytes] of Object.entries(contents(own))) {
      t.ok(bytes.startsWith(before[name] as string), `${name}: the others are as they were`);
    }
    const held = {
      ...fresh,
      files: [
        { ...fresh.files[0], fds: [{ pid: 7, fd: 8 }] },
        { id: 100, flags: '' },
      ],
    };
    t.equal(encode([held]).stderr, '');
    t.match(decoded(own, '--map', 'fresh').maps, [held]);
    const after = contents(own);
    t.match(encode([{ ...good, map_id: 98, files: [{ id: 99 }] }, held]), {
      status: 1,
      stderr: /\/maps\/1: its open files are of map 7, which the document has already/,
    });
    t.match(encode([{ ...held, files: [{ id: 99 }, { id: 4 }] }]), {
      status: 1,
      stderr: /\/maps\/0\/files\/1\/id: file 4 is one of another map/,
    });
    t.same(contents(own), after);
  });

  t.test('an empty folder is filled, not replaced: it may be the current one', async (t) => {
    const cwd = workFolder();
    t.teardown(() => fs.rmSync(cwd, { recursive: true }));
    const line = 'mkdir here && cd here && bpfimg decode ../flowd | bpfimg encode -D . && ls';
    t.same(shell(line, { cwd }).stdout, 'bpfmap-data.img\nbpfmap-file.img\nbpfmap-meta.img\n');
  });

  t.test('a document that breaks off', async (t) => {
    const cwd = t.testdir();
    copyDump(path.join(cwd, 'flowd'));
    const whole = bpfimg(['decode', 'flowd'], { cwd }).stdout;
    const before = contents(cwd);
    for (const part of [0.1, 0.5, 0.9, 0.9999]) {
      const input = whole.slice(0, Math.floor(whole.length * part));
      t.match(bpfimg(['encode', '-D', 'flowd', '--force'], { cwd, input }), {
        status: 1,
        stderr: /^bpfimg: standard input: .*\n$/,
      });
      t.match(bpfimg(['encode', '-D', 'new'], { cwd, input }), { status: 1 });
      t.same(contents(cwd), before);
      t.same(fs.readdirSync(cwd), ['flowd']);
    }
  });

  t.test('broken images in a dump are named', async (t) => {
    const cut = fixture('flowd/fdinfo-2.img').subarray(0, 50);
    const dump = folderOf(t, { 'fdinfo-2.img': cut });
    for (const name of ['files.img', 'pstree.img', 'ids-22137.img'])
      fs.writeFileSync(path.join(dump, name), fixture(`flowd/${name}`));
    t.match(bpfimg(['decode', dump]), { status: 1, stderr: /fdinfo-2\.img: entry \d at offset \d+: / });
    fs.writeFileSync(path.join(dump, 'fdinfo-2.img'), words(0x54564319, 0x50273030));
    t.match(bpfimg(['decode', dump]), { status: 1, stderr: /fdinfo-2\.img: it is a PSTREE image, expected FDINFO/ });
  });
});
