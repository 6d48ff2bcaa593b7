/** Spellings of command lines: what means the same, and what is wrong usage. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import type { Io } from '../src/cli/io.js';
import { main } from '../src/cli/main.js';
import { bufferInput } from '../src/io/input.js';
import { MemoryOutput } from '../src/io/output.js';
import { TOP } from './helpers/command.js';

const file = path.join(TOP, 'fixtures/flowd/pstree.img');
const image = fs.readFileSync(file);

async function ran(argv: readonly string[]): Promise<{ code: number; out: string; said: string }> {
  const out = new MemoryOutput();
  const said: string[] = [];
  const io: Io = {
    stdin: async () => bufferInput(image, 'standard input'),
    stdout: () => out,
    say: (line) => said.push(line),
    show: () => {},
    terminal: false,
    columns: undefined,
    env: {},
  };
  return { code: await main(argv, io), out: out.take().toString(), said: said.join('\n') };
}

t.test('spellings of one command', async (t) => {
  const plain = await ran(['decode', file]);
  t.match(plain, { code: 0, out: /"PSTREE"/, said: '' });
  for (const argv of [
    ['decode', '-i', file],
    ['decode', `-i${file}`],
    ['decode', `--in=${file}`],
    ['decode', '--in', file],
    ['decode'],
    ['decode', '-'],
    ['decode', '-i', '-'],
    ['decode', '--', file],
    ['decode', file, '-o', '-'],
    ['decode', file, '--format=items'],
    ['decode', '--format', 'items', file],
    ['decode', '--no-pretty', file],
    ['decode', '--pretty=false', file],
    ['decode', file, '--no-color'],
    ['--no-color', 'decode', file],
    ['--debug', 'decode', file],
    ['--color=false', '--debug', 'decode', file],
  ]) {
    t.same(await ran(argv), plain, argv.join(' '));
  }
});

t.test('wrong usage', async (t) => {
  for (const [argv, said] of [
    [[], /^Usage: bpfimg COMMAND/m],
    [['--debug'], /^Usage: bpfimg COMMAND/m],
    [['decod', file], /unknown command decod: did you mean decode\? \(see bpfimg help\)$/],
    [['--no-color', 'xyzzy'], /unknown command xyzzy \(see bpfimg help\)$/],
    [['decode', file, 'more'], /^bpfimg: decode: unexpected word more \(see bpfimg help decode\)$/],
    [['decode', file, '--', '-x'], /unexpected word -x/],
    [['decode', file, '--nothing'], /decode: unknown option --nothing \(/],
    [['decode', file, '--formt', 'crit'], /unknown option --formt: did you mean --format\?/],
    [['decode', file, '-x'], /unknown option -x/],
    [['decode', file, '-i', file], /two inputs/],
    [['decode', '-i', file, '-i', file], /--i\w* is given more than once/],
    [['decode', '-i'], /^bpfimg: -i: it needs a value, FILE: image to read .* \(see bpfimg help decode\)$/],
    [['decode', '--in='], /given without text/],
    [['decode', ''], /given without text/],
    [['info', file, ''], /given without text/],
    [['decode', '-i', '--', file], /-i: it needs a value/],
    [['decode', '--in', '--', file], /--in: it needs a value/],
    [['decode', file, '--format', 'xml'], /^bpfimg: --format xml: expected items, crit or ndjson \(/],
    [['decode', file, '--format=crti'], /--format crti: expected items, crit or ndjson: did you mean crit\?/],
    [['info'], /^bpfimg: info needs SOURCE…: images, or dumps with all their images \(see bpfimg help info\)$/],
    [['diff', file], /^bpfimg: diff needs B: what to compare it with/],
    [['criu', 'convert', 'x'], /^bpfimg: criu convert needs --to native\|plugin: /],
    [['encode', file, '-o', 'a', '-D', 'b'], /--out and --dir exclude each other/],
    [['criu'], /criu needs a command: check, convert, forget, build \(see bpfimg help\)/],
    [['criu', 'chek', '1'], /unknown command criu chek: did you mean criu check\?/],
    [['criu', 'check', '1', '2'], /criu check: unexpected word 2 \(see bpfimg help criu check\)/],
    [['swap', 'comit', 'x'], /swap comit: expected commit or rollback: did you mean commit\?/],
    [['help', 'shwo'], /unknown command shwo: did you mean show\?/],
    [['shwo', '--help'], /unknown command shwo: did you mean show\?/],
  ] as const) {
    t.match(await ran(argv), { code: 2, out: '', said }, argv.join(' '));
  }
});

t.test('an empty name means maps without a name', async (t) => {
  t.match(await ran(['show', path.join(TOP, 'fixtures/flowd'), '--map', '']), {
    code: 0,
    out: /^ *382 +hash /m,
    said: '',
  });
});

t.test('options may come before the command', async (t) => {
  const dump = path.join(TOP, 'fixtures/flowd');
  const plain = await ran(['show', dump, '--map', 'cfg', '--json']);
  t.equal(plain.code, 0);
  t.same(await ran(['--json', '--map', 'cfg', 'show', dump]), plain);
  t.same(await ran(['--map=cfg', '--no-color', 'show', dump, '--json']), plain);
  const none = await ran(['-L', 'show', 'show', dump]);
  t.match(none, { code: 1, said: /^bpfimg: show: cannot read it/ }, 'the first is the value of an option');
  t.match(await ran(['flowd', 'show']), { code: 2, said: /unknown command flowd/ });
});

t.test('with --json, errors are JSON, too', async (t) => {
  const nowhere = { pointer: null, offset: null, line: null, column: null };
  const missing = await ran(['show', 'none.img', '--json']);
  const message = 'none.img: cannot open it: no such file or folder';
  t.equal(missing.said, `bpfimg: ${message}`);
  t.same(JSON.parse(missing.out), {
    error: { kind: 'notFound', code: 'ENOENT', file: 'none.img', ...nowhere, message },
  });
  for (const argv of [
    ['shwo', '--json'],
    ['verify', file, file, '--json'],
    ['diff', '--json', file],
  ]) {
    const { code, out } = await ran(argv);
    t.match(
      { code, ...JSON.parse(out || '{}') },
      { code: 2, error: { kind: 'usage', message: String } },
      argv.join(' '),
    );
  }
  t.match(await ran(['capture', '--json', '-o', '-', 'x.img']), { code: 2, out: '' }, 'an archive');
  t.match(await ran(['replay', '--json', 'none', '--', 'true']), { code: 1, out: '' }, 'the output of another program');
});

t.test('versions', async (t) => {
  const { out } = await ran(['--version']);
  t.match(out, /^\d+\.\d+\.\d+\n$/);
  for (const argv of [['-V'], ['show', '--version']]) t.match(await ran(argv), { code: 0, out, said: '' });
});

t.test('help is of the command that is named', async (t) => {
  for (const argv of [
    ['decode', '--help'],
    ['help', 'decode'],
    ['decode', '-h'],
    ['decode', '-h', file],
  ]) {
    const { code, out } = await ran(argv);
    t.equal(code, 0);
    t.match(out, /^Usage: bpfimg decode \[SOURCE\] \[OPTIONS\]$/m, argv.join(' '));
    t.match(out, /^Examples:$/m);
  }
  const { out } = await ran(['--help']);
  t.match(await ran(['help']), { code: 0, out, said: '' });
  for (const name of ['decode', 'replay', 'criu check', 'help']) t.match(out, new RegExp(`^  ${name} `, 'm'));
  t.match(await ran(['help', 'criu']), { code: 0, out: /^ {2}criu check/m });
});

t.test('several values, with commas between them', async (t) => {
  const dump = path.join(TOP, 'fixtures/flowd');
  for (const [one, ...several] of [
    [['show', dump, '--map', 'cfg,odd_sizes'], 'cfg', 'odd_sizes'],
    [['decode', path.join(dump, 'bpfmap-data.img'), '--map', '378,380'], '378', '380'],
    [['diff', dump, dump, '--map', 'cfg,377'], 'cfg', '377'],
  ] as const) {
    const apart = [...one.slice(0, -2), ...several.flatMap((name) => ['--map', name])];
    const { code, out } = await ran(one);
    t.equal(code, 0);
    t.same(await ran(apart), { code: 0, out, said: '' }, one.join(' '));
  }
  t.match(await ran(['show', dump, '--map', 'cfg,none']), { code: 1, said: /no map none in it/ });
  const document = path.join(t.testdir(), 'maps.json');
  const map = { map_id: 1, type: 'hash', key_size: 4, value_size: 4, max_entries: 1, items: [] };
  const maps = ['a,b', 'a', 'b'].map((name, i) => ({ ...map, map_id: i + 1, name }));
  fs.writeFileSync(document, JSON.stringify({ format: 'bpfimg-maps/1', maps }));
  const { out } = await ran(['show', document, '--map', 'a,b', '--json']);
  t.same(
    (JSON.parse(out) as { maps: { name: string }[] }).maps.map(({ name }) => name),
    ['a,b'],
    'a name that exists is one value',
  );
});
