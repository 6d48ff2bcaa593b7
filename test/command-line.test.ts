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
    [[], /no command given/],
    [['decod', file], /Unknown command: decod/],
    [['decode', file, 'more'], /Unknown argument: more/],
    [['decode', file, '--nothing'], /Unknown argument: nothing/],
    [['decode', file, '-i', file], /two inputs/],
    [['decode', '-i', file, '-i', file], /--i\w* is given more than once/],
    [['decode', '-i'], /Not enough arguments following: i/],
    [['decode', '--in='], /given without text/],
    [['decode', ''], /given without text/],
    [['info', file, ''], /given without text/],
    [['decode', '-i', '--', file], /Not enough arguments following: i/],
    [['decode', '--in', '--', file], /Not enough arguments following: i/],
    [['decode', file, '--format', 'xml'], /Choices: "items", "crit", "ndjson"/],
    [['info'], /Not enough non-option arguments/],
    [['encode', file, '-o', 'a', '-D', 'b'], /mutually exclusive/],
    [['criu'], /criu: no command given/],
    [['criu', 'chek', '1'], /Unknown command: chek/],
    [['criu', 'check', '1', '2'], /Unknown argument: 2/],
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

t.test('help is of the command that is named', async (t) => {
  for (const argv of [
    ['decode', '--help'],
    ['help', 'decode'],
    ['decode', '-h'],
    ['decode', '-h', file],
  ]) {
    const { code, out } = await ran(argv);
    t.equal(code, 0);
    t.match(out, /^bpfimg decode \[source\]/, argv.join(' '));
    t.match(out, /Examples:/);
  }
  const { out } = await ran(['--help']);
  for (const name of ['decode', 'replay', 'criu', 'completion']) t.match(out, new RegExp(`bpfimg ${name}`));
});
