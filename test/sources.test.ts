/** Every command takes every source, and says the same of one dump whatever it comes from. */
import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { BpfMap } from '../src/kernel/map.js';
import { openSys } from '../src/kernel/sys.js';
import { bpfimg, type Ran, shell, TOP, workFolder } from './helpers/command.js';
import { skipWithout } from './helpers/crit.js';
import { until } from './helpers/criu.js';
import { bpffs, fillNumbers, skipWithoutBpftool, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { types } from './helpers/types.js';

const skip = await skipWithoutMaps();
const cwd = workFolder();
t.teardown(() => fs.rmSync(cwd, { recursive: true, force: true }));

/** Runs a line of shell in the work folder, which must succeed. */
function make(line: string): void {
  const { status, stderr } = shell(line, { cwd });
  if (status !== 0) throw new Error(`${line}: ${stderr}`);
}

const run = (words: readonly string[], input?: string): Ran =>
  bpfimg(words, { cwd, ...(input === undefined ? {} : { input: fs.readFileSync(path.join(cwd, input)) }) });

// The processes in it are called flowd, which must not be taken for the folder's name.
make('mv flowd dump');
make('mkdir -p unpacked && cp -r dump unpacked/checkpoint && echo \'{"name":"c1"}\' > unpacked/config.dump');
make('tar -C dump -cf flat.tar . && tar -C unpacked -cf nested.tar config.dump checkpoint');
make('tar -C unpacked -czf nested.tgz ./config.dump ./checkpoint && gzip -c flat.tar > flat');
const zstd = skipWithout('zstd') === false;
if (zstd) make('zstd -q flat.tar -o named.tar.gz');
make('bpfimg decode dump > document.json && bpfimg decode dump --pretty > pretty.json');
make('bpfimg decode dump/bpfmap-data.img > data.json && bpfimg decode --format crit dump/bpfmap-data.img > crit.json');
make('bpfimg decode --format ndjson dump/bpfmap-data.img > data.ndjson && bpfimg decode dump/pstree.img > pstree.json');

/** Sources that are one dump, and what of a command's output is not the same. */
const dumps: readonly (readonly [
  what: string,
  words: readonly string[],
  input?: string | undefined,
  but?: RegExp | undefined,
])[] = [
  ['a folder', ['dump']],
  ['an unpacked checkpoint', ['unpacked']],
  ['tar, flat', ['flat.tar']],
  ['tar, as podman lays it out', ['nested.tar']],
  ['gzip with ./', ['nested.tgz']],
  ['gzip without a name that says so', ['flat']],
  ...(zstd ? [['zstd under the name of gzip', ['named.tar.gz']] as const] : []),
  ['an archive from standard input', ['-'], 'nested.tar'],
  ['a compressed archive from standard input', ['-'], 'nested.tgz'],
  // A document does not say what processes are called.
  ['a document', ['document.json'], undefined, /\(flowd\)/g],
  ['an indented document', ['pretty.json'], undefined, /\(flowd\)/g],
  ['a document from standard input', ['-'], 'document.json', /\(flowd\)/g],
];

/** What a command prints, with what names its source left out. */
function printed({ stdout, status }: Ran, source: string, but?: RegExp): string {
  const text = but === undefined ? stdout : stdout.replace(but, '').replace(/ +/g, ' ');
  return `${text.split(source).join('SOURCE')}\nexit ${status}`;
}

const commands: Readonly<Record<string, readonly string[]>> = {
  show: [],
  'show --json': ['--json'],
  decode: [],
  'decode --format ndjson': ['--format', 'ndjson'],
  'decode --map': ['--map', 'flows'],
  list: [],
  'replay --dry-run': ['--dry-run'],
};

for (const [name, options] of Object.entries(commands)) {
  const [command = ''] = name.split(' ');
  const refused = command === 'replay' && skip;
  t.test(`${name} of one dump from everywhere`, { skip: refused }, async (t) => {
    const first = run([command, 'dump', ...options]);
    t.equal(first.status, 0, first.stderr);
    for (const [what, words, input, but] of dumps) {
      const ran = run([command, ...words, ...options], input);
      const source = words[0] === '-' ? 'standard input' : (words[0] ?? '');
      t.equal(printed(ran, source, but), printed(first, 'dump', but), what);
      t.equal(ran.stderr, first.stderr, `${what}: nothing more to say`);
    }
  });
}

t.test('diff finds no difference between one dump from everywhere', async (t) => {
  for (const [what, words, input] of dumps) {
    const ran = run(['diff', 'dump', ...words], input);
    t.strictSame([ran.status, ran.stdout, ran.stderr], [0, '', ''], what);
  }
});

t.test('verify judges archives as it judges their folder', async (t) => {
  const first = run(['verify', 'dump']);
  for (const [what, words, input] of dumps.filter(([what]) => !what.includes('document'))) {
    t.equal(run(['verify', ...words], input).stdout, first.stdout, what);
  }
  make('mkdir broken && cp dump/* broken && rm broken/pstree.img && tar -C broken -cf broken.tar .');
  const [folder, archive] = [run(['verify', 'broken']), run(['verify', 'broken.tar'])];
  t.equal(archive.status, 1);
  t.equal(archive.stdout, folder.stdout);
  t.match(archive.stderr + run(['show', 'broken.tar']).stderr, /^$/);
  make('rm broken/inventory.img && tar -C broken -cf broken.tar .');
  t.match(run(['show', 'broken.tar']).stderr, /^bpfimg: warning: broken\.tar:inventory\.img: it is missing/);
  t.equal(run(['verify', 'document.json']).status, 0);
});

t.test('single images and their JSON', async (t) => {
  for (const command of ['show', 'verify', 'decode', 'list', 'info']) {
    const first = run([command, 'dump/bpfmap-data.img']);
    for (const name of ['data.json', 'crit.json', 'data.ndjson']) {
      const ran = run([command, name]);
      const text = printed(ran, name).replaceAll('bpfmap-data.img', 'SOURCE');
      t.equal(
        text,
        printed(first, 'dump/bpfmap-data.img').replaceAll('bpfmap-data.img', 'SOURCE'),
        `${command} ${name}`,
      );
      t.equal(run([command, '-'], name).status, ran.status, `${command} - < ${name}`);
    }
  }
  t.equal(run(['show', 'pstree.json']).stdout, run(['show', 'dump/pstree.img']).stdout);
  t.equal(run(['diff', 'dump/bpfmap-data.img', 'data.ndjson']).status, 0);
});

t.test('what is made only to be read is not brought to disk', async (t) => {
  const told =
    "const {fsync} = fs; fs.fsync = (...all) => { process.stderr.write('fsync\\n'); return fsync(...all); };";
  const node = ['--import', `data:text/javascript,import fs from 'node:fs';${encodeURIComponent(told)}`];
  t.equal(bpfimg(['show', 'document.json'], { cwd, node }).stderr, '');
  t.match(bpfimg(['encode', 'document.json', '-D', 'synced'], { cwd, node }).stderr, /fsync/, 'a dump is');
});

t.test('info of a dump is a line for each image that decodes', async (t) => {
  const folder = run(['info', 'dump']);
  t.match(folder.stdout, /"image": "dump\/bpfmap-data.img"[^}]*"magic": "BPFMAP_DATA"[^}]*"count": 7/s);
  t.notMatch(folder.stdout, /CORE/);
  const archive = run(['info', 'flat.tar']);
  t.equal(archive.stdout, folder.stdout.replaceAll('dump/', 'flat.tar:'));
});

t.test('list of several sources: a line for each, and an error does not end it', async (t) => {
  fs.writeFileSync(path.join(cwd, 'text'), 'neither this nor that');
  const ran = run(['list', 'nested.tgz', 'text', 'missing', 'document.json']);
  t.equal(ran.status, 1);
  t.strictSame(
    ran.stdout.split('\n').map((line) => line.trim().split(/ {2,}/)),
    [
      ['SOURCE', 'CONTAINER', 'MAPS', 'ITEMS', 'SIZE'],
      ['nested.tgz', 'c1', '6', '302', '44.6 KiB'],
      ['document.json', '6', '302', '44.6 KiB'],
      [''],
    ],
  );
  t.match(ran.stderr, /^bpfimg: text: [^\n]+\nbpfimg: missing: cannot open it: no such file or folder\n$/);
  const { sources } = JSON.parse(run(['list', 'nested.tgz', 'text', '--json']).stdout);
  t.match(sources, [
    { source: 'nested.tgz', container: 'c1', maps: [{ map_id: 377, items: 200 }] },
    { source: 'text', error: /image magic/ },
  ]);
});

t.test('what is no source', async (t) => {
  make('head -c 3000 nested.tgz > cut.tgz && tar -cf empty.tar -T /dev/null && tar -cf other.tar document.json');
  make(
    'ln -sf /etc/passwd link.img && mkdir -p linked && ln -sf /etc/passwd linked/files.img && cp dump/inventory.img linked && tar -C linked -cf linked.tar .',
  );
  const refused: readonly (readonly [words: readonly string[], error: RegExp])[] = [
    [['show', 'cut.tgz'], /^bpfimg: cut\.tgz: .*cut off/],
    [['show', 'empty.tar'], /^bpfimg: empty\.tar: no images of BPF maps in it/],
    [['show', 'other.tar'], /^bpfimg: other\.tar: no images of BPF maps in it/],
    [['show', 'linked.tar'], /bpfimg: linked\.tar, files\.img: it is a link; expected a regular file\n$/],
    [['diff', 'dump', 'dump/pstree.img'], /^bpfimg: dump\/pstree\.img: a PSTREE image has no BPF maps/],
    [['show', 'pid:'], /^bpfimg: pid:: expected id:N/],
    [['list', 'dump', 'id:1'], /files and live maps are two lists/],
    [['capture', 'dump', '-D', 'new'], /^bpfimg: dump: expected live maps/],
  ];
  for (const [words, error] of refused) {
    const { status, stdout, stderr } = run(words);
    t.match(stderr, error, words.join(' '));
    t.match(stderr, /^[^\n]+\n$/, 'one line');
    t.equal(stdout, '');
    t.not(status, 0);
  }
  t.notOk(fs.existsSync(path.join(cwd, 'new')), 'nothing was written');
});

t.test('live maps', { skip }, async (t) => {
  const sys = await openSys(types);
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const spec = { type: 1, keySize: 4, valueSize: 8, maxEntries: 16, flags: 0 };
  const made = ['source_a', 'source_b'].map((name, i) => {
    const map = BpfMap.create(sys, { ...spec, name });
    t.teardown(() => map.close());
    map.update(u32(7), u32(i, 9));
    map.pin(path.join(folder, name));
    return map;
  });
  const [a, b] = made as [BpfMap, BpfMap];
  const both = [`pinned:${folder}`, `pinned:${folder}/source_*`, 'name:source_?'];
  const one = [`id:${a.id}`, 'name:source_a', `pinned:${folder}/source_a`, `pinned:${folder}/*_a`];
  const ids = (words: readonly string[]) =>
    (JSON.parse(run(words).stdout) as { maps: { map_id: number }[] }).maps.map(({ map_id }) => map_id);
  for (const source of both) t.strictSame(ids(['decode', source]), [a.id, b.id], source);
  for (const source of one) t.strictSame(ids(['decode', source]), [a.id], source);
  for (const source of [`pinned:${folder}`, 'name:source_?', `id:${a.id}`]) {
    t.equal(run(['verify', source]).status, 0, `verify ${source}`);
    t.equal(run(['diff', source, source]).status, 0, `diff ${source}`);
    t.match(run(['show', source, '--map', 'source_a']).stdout, /07000000 .* 00000000 09000000/, `show ${source}`);
    t.equal(run(['replay', source, '--dry-run']).status, 0, `replay ${source}`);
    t.match(run(['info', source]).stdout, /"magic": "BPFMAP_DATA"/, `info ${source}`);
    t.match(run(['list', source]).stdout, /source_a/, `list ${source}`);
  }
  const pins = ['source_a', 'source_b'].map((name) => path.join(folder, name));
  t.strictSame(ids(['list', '--json', '--pinned', ...pins]), [a.id, b.id], 'more values behind a selector');
  t.strictSame(ids(['list', '--json', `id:${a.id}`, `id:${b.id}`]), [a.id, b.id], 'several live sources');
  const captured = run(['capture', '--pinned', ...pins, '-D', 'captured']);
  t.equal(captured.status, 0, captured.stderr);
  t.strictSame(ids(['decode', 'captured']), [a.id, b.id]);

  // Whatever other tests have made meanwhile may be named, too.
  const near: readonly (readonly [string, RegExp])[] = [
    ['name:source_x', /no map has this name.*; there is source_[ab], source_[ab]/],
    [`pinned:${folder}/source`, /nothing is pinned there; there is .*\/source_a, .*\/source_b/],
    [`pinned:${folder}/nothing_*`, /no map is pinned at such a path/],
    ['id:4294967295', /no such map/],
  ];
  for (const [source, error] of near) {
    const { status, stderr } = run(['show', source]);
    t.match(stderr, error, source);
    t.equal(status, 1);
  }
  const idle = spawn('sleep', ['100'], { stdio: 'ignore' });
  t.teardown(() => idle.kill());
  for (const command of ['show', 'decode', 'verify', 'info']) {
    const { status, stderr } = run([command, `pid:${idle.pid}`]);
    t.equal(stderr, `bpfimg: pid:${idle.pid}: process ${idle.pid} (sleep) holds no BPF maps\n`, command);
    t.equal(status, 1);
  }
  const piped = shell(`bpfimg decode "pinned:${folder}" | bpfimg replay - --pin "${folder}/copy"`, { cwd });
  t.equal(piped.status, 0, piped.stderr);
  t.strictSame(fs.readdirSync(path.join(folder, 'copy')).sort(), ['source_a', 'source_b']);
  t.equal(run(['diff', `pinned:${folder}/copy/source_b`, `pinned:${folder}/source_b`]).status, 0, 'map ids apart');
});

t.test('archives that podman has written', async (t) => {
  for (const file of ['podman-runc.tar.gz', 'podman-runc.tar.zst']) {
    const archive = path.join(TOP, 'fixtures/archives', file);
    t.match(run(['show', archive]).stdout, /counters .* 10\/64 .* 1\(ctr\):3/, file);
    t.equal(run(['verify', archive]).status, 0);
    t.equal(run(['replay', archive, '--dry-run']).status, skip ? 1 : 0);
    t.match(run(['list', archive, archive]).stdout, /c1 +5 +19 /);
  }
});

t.test('a dump as a stream: captured into an archive, replayed from a pipe', { skip }, async (t) => {
  const sys = await openSys(types);
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const map = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 8, maxEntries: 16, flags: 0, name: 'packed' });
  t.teardown(() => map.close());
  map.update(u32(7), u32(8, 9));
  map.pin(path.join(folder, 'packed'));
  for (const name of ['c.tar', 'c.tar.gz', 'c.tar.zst']) {
    const ran = run(['capture', '--pinned', folder, '-o', name]);
    t.equal(ran.status, 0, ran.stderr);
    t.match(ran.stdout, /packed +hash +1 /);
    t.equal(fs.statSync(path.join(cwd, name)).mode & 0o777, 0o600, 'nobody else may read it');
    if (name !== 'c.tar.zst' || zstd) {
      make(`rm -rf un && mkdir un && tar -C un -xf ${name} && cd un && sha256sum --quiet -c SHA256SUMS`);
    }
    t.equal(run(['diff', name, `pinned:${folder}`]).status, 0, `diff ${name}`);
    t.match(run(['info', name]).stdout, /"magic": "BPFMAP_DATA",\s*"count": 1,\s*"sha256": "[0-9a-f]{64}"/);
  }
  const bytes = fs.readFileSync(path.join(cwd, 'c.tar'));
  bytes[bytes.indexOf(u32(7, 8, 9)) + 4] = 1;
  fs.writeFileSync(path.join(cwd, 'flipped.tar'), bytes);
  for (const command of [['verify'], ['info'], ['replay', '--dry-run']]) {
    const { status, stderr } = run([command[0] as string, 'flipped.tar', ...command.slice(1)]);
    t.equal(status, 1, command.join(' '));
    t.match(stderr, /^bpfimg: flipped\.tar, bpfmap-data\.img: [^\n]+\n$/);
  }
  const piped = shell(`bpfimg capture --pinned "${folder}" -o - | bpfimg replay - --pin "${folder}/copy"`, { cwd });
  t.equal(piped.status, 0, piped.stderr);
  t.match(piped.stderr, /packed +hash +1 /, 'standard output has the archive');
  t.equal(run(['diff', `pinned:${folder}/copy`, `pinned:${folder}/packed`]).status, 0);
  for (const words of [[], ['-D', 'x', '-o', 'y.tar']]) {
    t.equal(run(['capture', '--pinned', folder, ...words]).status, 2, 'one place to write to');
  }
});

/** What a command prints, without the holders of maps: other tests look at pins, and hold their maps meanwhile. */
const unheld = ({ stdout }: Ran) => stdout.replace(/"fds":\[.*?\]|( *\d+\([^()]*\):[\d,]+)+/g, '');

t.test('what bpftool prints', { skip: skip || skipWithoutBpftool() }, async (t) => {
  const sys = await openSys(types);
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const specs = { plain: 1, percpu: 5, nothing: 1 };
  for (const [name, type] of Object.entries(specs)) {
    const map = BpfMap.create(sys, { type, keySize: 4, valueSize: 6, maxEntries: 16, flags: 0, name });
    t.teardown(() => map.close());
    map.pin(path.join(folder, name));
    for (const key of name === 'nothing' ? [] : [7, 8]) {
      make(`bpftool map update pinned "${folder}/${name}" key ${key} 0 0 0 value 1 2 3 4 5 ${key}`);
    }
    const file = `bpftool-${name}.json`;
    make(`bpftool -j map dump pinned "${folder}/${name}" > ${file}`);
    const pin = `pinned:${folder}/${name}`;
    const like = ['--like', pin];
    t.equal(run(['diff', file, pin, ...like]).status, 0, name);
    const shown = run(['show', '-', ...like], file);
    t.equal(unheld(shown), unheld(run(['show', pin])));
    t.equal(unheld(run(['decode', file, ...like])), unheld(run(['decode', pin])));
    t.equal(run(['verify', file, ...like]).stdout, 'sound\n');
    const made = run(['replay', file, ...like, '--pin', path.join(folder, 'made')]);
    t.equal(made.status, 0, made.stderr);
    t.equal(run(['diff', `pinned:${folder}/made/${name}`, pin]).status, 0, 'replayed');
    t.match(run(['show', file]).stdout, name === 'nothing' ? /0\/\?/ : /07000000 .* 01020304 0507/, 'items alone');
    t.match(run(['info', file]).stdout, /"magic": "BPFMAP_DATA"/);
  }
  // A deleted key, as bpftool prints it when it loses the race.
  const gone = '{"key":["0x09"],"value":{"error":"No such file or directory"}}';
  const texts: readonly (readonly [text: string, error: RegExp | string])[] = [
    [`[${gone},{"key":["0x01"],"value":["0x02"]}]`, ''],
    ['[{"key":["0x01"],"value":{"error":"Permission denied"}}]', /\/0\/value: bpftool could not read it: Permission/],
    ['[{"key":["0x01"],"value":["0x2"]}]', /\/0\/value: expected a list of bytes such as "0x0a".*line 1, column 26/],
    ['[{"key":["0x01"],"value":["0x02"]},{"key":[],"value":["0x02"]}]', /\/1: a key of 0 bytes, the first has 1/],
    ['[{"key":["0x01"],"values":[{"cpu":1,"value":["0x02"]}]}]', /\/0\/values\/0: expected "cpu":0/],
    ['[{"key":1,"value":{"a":1}}]', /\/0\/key: expected a list of bytes/],
    ['[7]', /\/0: expected an object with "key" and "value"/],
    ['[]x', /expected the end of the document/],
  ];
  for (const [text, error] of texts) {
    fs.writeFileSync(path.join(cwd, 'text.json'), text);
    t.match(run(['show', 'text.json']).stderr, error, text);
  }
  const unused = run(['show', 'dump', '--like', 'id:1']);
  t.equal(unused.status, 2);
  t.match(unused.stderr, /^bpfimg: --like id:1: it is for sources that `bpftool -j map dump` has printed/);
  t.match(
    run(['show', 'text.json', '--like', 'dump/files.img']).stderr,
    /found an image without the others of its dump/,
  );
  t.match(run(['show', 'text.json', '--like', '-']).stderr, /^bpfimg: --like -: standard input is the source/);
  t.match(run(['show', 'text.json', '--like', 'dump']).stderr, /--like dump: found 6 maps, expected one/);
});

const namespaces = shell('unshare --net true').status !== 0 && 'cannot make network namespaces';
t.test('from one host to another: whole or not at all', { skip: skip || namespaces, timeout: 300_000 }, async (t) => {
  const sys = await openSys(types);
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const count = 1_000_000;
  const map = BpfMap.create(sys, { type: 1, keySize: 16, valueSize: 64, maxEntries: count, flags: 0, name: 'moved' });
  t.teardown(() => map.close());
  fillNumbers(map, count);
  map.pin(path.join(folder, 'moved'));
  const peak = path.join(TOP, 'build/test/helpers/peak.js');
  const node = `unshare --net node --import ${peak} ${TOP}dist/bpfimg`;
  const spool = path.join(cwd, 'spool');
  fs.mkdirSync(spool);
  const [send, receive] = [
    `${node} capture --pinned "${folder}/moved" -o -`,
    `${node} replay - --pin "${folder}/other"`,
  ];
  const env = { TMPDIR: spool };
  const both = shell(`${send} 2>sent | ${receive}`, { cwd, env });
  t.equal(both.status, 0, both.stderr);
  const peaks = [fs.readFileSync(path.join(cwd, 'sent'), 'utf8'), both.stderr].map((text) =>
    Number(/^peak (\d+) MiB$/m.exec(text)?.[1]),
  );
  for (const mib of peaks) t.ok(mib <= 200, `${mib} MiB`);
  t.equal(run(['diff', `pinned:${folder}/moved`, `pinned:${folder}/other/moved`]).status, 0);
  fs.rmSync(path.join(folder, 'other'), { recursive: true });
  const whole: boolean[] = [];
  for (let round = 0; round < 8; round++) {
    const victim = round % 2 === 0 ? 'capture' : 'replay';
    const seconds = (0.1 + Math.random() * 4).toFixed(2);
    // A shell that is killed leaves its pipe's other end to come to its end.
    const kill = (command: string, name: string) =>
      victim === name ? `timeout -s KILL ${seconds} ${command}` : command;
    const { stderr } = shell(`${kill(send, 'capture')} 2>/dev/null | ${kill(receive, 'replay')}`, { cwd, env });
    const pins = fs.existsSync(path.join(folder, 'other')) ? fs.readdirSync(path.join(folder, 'other')) : [];
    const full = pins.length > 0;
    whole.push(full);
    t.notMatch(stderr, /^ +at |internal/m, `${victim} killed after ${seconds} s`);
    if (!full) continue;
    t.equal(run(['diff', `pinned:${folder}/moved`, `pinned:${folder}/other/moved`]).status, 0, 'all of it');
    fs.rmSync(path.join(folder, 'other'), { recursive: true });
  }
  t.ok(whole.includes(false), `made: ${whole.join(', ')}`);
  // What the killed ones have put aside goes with the next run. They may end later than `timeout`.
  const pids = () => fs.readdirSync(spool).map((name) => /bpfimg-(\d+)-/.exec(name)?.[1]);
  await until('the killed ones are gone', () => !pids().some((pid) => fs.existsSync(`/proc/${pid}`)));
  t.equal(shell(`bpfimg show "pinned:${folder}/moved" --limit 1`, { cwd, env }).status, 0);
  t.strictSame(fs.readdirSync(spool), []);
});

t.test('a checkpoint is edited without being unpacked', async (t) => {
  const names = ['podman-runc.tar.gz', ...(zstd ? ['podman-runc.tar.zst'] : [])];
  for (const name of names) {
    fs.copyFileSync(path.join(TOP, 'fixtures/archives', name), path.join(cwd, name));
    // The folder in it lets nobody but root in.
    const unpack = (into: string) => `tar -C ${into} -xf ${name} && chmod -R u+X ${into}`;
    make(`mkdir -p before after && rm -rf before/* after/* && ${unpack('before')}`);
    make(`bpfimg decode ${name} | sed 's/"2003000000000000"/"2103000000000000"/' > edit.json`);
    const refused = run(['encode', 'edit.json', '-D', name]);
    t.match(refused.stderr, /--force edits the dump in it\n$/);
    const ran = run(['encode', 'edit.json', '-D', name, '--force']);
    t.strictSame([ran.status, ran.stderr], [0, '']);
    make(unpack('after'));
    const changed = shell('diff -rq before after', { cwd }).stdout;
    t.equal(changed, 'Files before/checkpoint/bpfimg-data.img and after/checkpoint/bpfimg-data.img differ\n', name);
    t.equal(shell(`tar -tvf ${name}`, { cwd }).stdout.includes('checkpoint/bpfimg-data.img'), true);
    const whole = fs.readFileSync(path.join(cwd, name));
    fs.writeFileSync(
      path.join(cwd, 'bad.json'),
      fs.readFileSync(path.join(cwd, 'edit.json'), 'utf8').replace('"value":"', '"value":"zz'),
    );
    t.equal(run(['encode', 'bad.json', '-D', name, '--force']).status, 1);
    t.ok(fs.readFileSync(path.join(cwd, name)).equals(whole), 'untouched');
  }
  // Whoever changes the archive while it is edited keeps what they did.
  const [name = ''] = names;
  make(`bpfimg decode ${name} > edit.json`);
  const meanwhile = `(head -c 100 edit.json; sleep 2; cat ${name} >other; mv other ${name}; tail -c +101 edit.json)`;
  const late = shell(`${meanwhile} | bpfimg encode -D ${name} --force`, { cwd });
  t.strictSame([late.status, late.stdout], [1, '']);
  t.equal(late.stderr, `bpfimg: ${name}: somebody else has changed it in the meantime; nothing is written\n`);
  make(
    'bpfimg encode document.json -o made.tar.gz && bpfimg diff made.tar.gz dump && bpfimg encode document.json | tar -t',
  );
});

const script = shell('command -v script').status !== 0 && 'needs script(1), which makes a terminal';
t.test('in a terminal', { skip: script }, async (t) => {
  const typed = (line: string) =>
    shell(`${line.includes('|') ? '' : '</dev/null '}script -qec "${line}" /dev/null`, { cwd, env: { PAGER: '' } });
  t.match(typed('cd dump && bpfimg show --map cfg').stdout, /378 +cfg +array/, 'show means the dump it is in');
  const told = shell('(sleep 3; printf "{}\\n\\004\\004") | script -qec "bpfimg decode" /dev/null', { cwd }).stdout;
  t.match(told, /reading from the terminal; Ctrl-D ends the input/);
});
