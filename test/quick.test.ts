/** Command lines that are parsed without yargs mean what they mean to yargs. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { parse } from '../src/cli/commands.js';
import type { Io } from '../src/cli/io.js';
import { quickly } from '../src/cli/quick.js';
import { outcome, reported } from '../src/cli/start.js';
import { bufferInput } from '../src/io/input.js';
import { MemoryOutput } from '../src/io/output.js';
import { TOP } from './helpers/command.js';
import { Random } from './helpers/random.js';

const flowd = path.join(TOP, 'fixtures/flowd');
const [pstree, data] = ['pstree.img', 'bpfmap-data.img'].map((name) => path.join(flowd, name)) as [string, string];
const object = path.join(TOP, 'fixtures/btf/flowd.o');
const image = fs.readFileSync(pstree);

interface Ran {
  readonly code: number;
  readonly out: string;
  readonly said: readonly string[];
}

/** What a command line does: parsed by yargs, or quickly, where undefined is that it is left to yargs. */
async function run(argv: readonly string[], way: 'quick' | 'yargs'): Promise<Ran | undefined> {
  const out = new MemoryOutput();
  const said: string[] = [];
  const io: Io = {
    stdin: async () => bufferInput(image, 'standard input'),
    stdout: () => out,
    // But for the trace that --debug shows.
    say: (line) => {
      if (!/^ +at /.test(line)) said.push(line);
    },
    show: () => {},
    terminal: false,
    columns: undefined,
    env: {},
  };
  let code: number;
  try {
    const command = way === 'quick' ? quickly(argv) : await parse(argv, io);
    if (command === undefined) return undefined;
    code = typeof command === 'number' ? command : await outcome(command, argv, io);
  } catch (error) {
    code = reported(error, io, false);
  }
  return { code, out: Buffer.from(out.take()).toString('hex'), said };
}

t.test('plain command lines', async (t) => {
  for (const argv of [
    ['decode', pstree],
    ['decode', '-i', pstree, '--pretty'],
    ['decode', '--in', pstree, '--format', 'crit'],
    ['decode', `--in=${pstree}`, '--format=ndjson', '--nopl'],
    ['decode'],
    ['decode', '-'],
    ['decode', '-i', '-'],
    ['decode', data, '--map', '377', '--map', '380'],
    ['decode', flowd, '--map', 'cfg', '--btf', object, '--typed'],
    ['decode', flowd, '--type', 'cfg=unsigned int:', '--btf', object],
    ['decode', '/no/such/file'],
    ['decode', pstree, '--debug'],
    ['info', pstree],
    ['info', pstree, data],
    ['info', '-'],
    ['show', flowd, '--limit', '3', '--map', 'cfg'],
    ['show', flowd, '--json', '--raw'],
    ['show', flowd, '--color', '--limit', '0'],
    ['verify', flowd],
    ['verify', '--json', flowd],
    ['encode'],
    ['encode', '/no/such/file'],
    ['decode', '--', pstree],
    ['decode', '--', '-'],
    ['decode', '--pretty', '--', '--nopl'],
    ['info', pstree, '--', '-x', '--json', '--'],
    ['show', '--json', '--', flowd],
    ['info', pstree, '/no/such/file', data],
  ]) {
    const quick = await run(argv, 'quick');
    t.ok(quick, `${argv.join(' ')}: parsed quickly`);
    t.same(quick, await run(argv, 'yargs'), argv.join(' '));
  }
});

t.test('what yargs must look at', async (t) => {
  for (const argv of [
    [],
    ['--help'],
    ['--version'],
    ['decode', '--help'],
    ['decode', '-h'],
    ['nothing'],
    ['constructor'],
    ['decode', pstree, 'more'],
    ['decode', pstree, '--unknown'],
    ['decode', pstree, '--format', 'xml'],
    ['decode', '--format'],
    ['decode', '-i'],
    ['decode', flowd, '--no-typed'],
    ['decode', '-o', 'a', '-o', 'b'],
    ['decode', '--in', 'a', '-i', 'b'],
    ['show', flowd, '--map', '--', 'cfg'],
    ['list', '--', 'x'],
    ['decode', `-i${pstree}`],
    ['decode', ''],
    ['info'],
    ['show', flowd, '--limit', '-1'],
    ['show', flowd, '--limit', 'many'],
    ['show', flowd, '--limit', '1.5'],
    ['encode', '-o', 'a', '-D', 'b'],
    ['capture', '--all', '-D', 'x'],
    ['list', '--pid'],
    ['list', 'x'],
    ['verify', flowd, '--json=maybe'],
  ]) {
    t.equal(quickly(argv), undefined, argv.join(' '));
  }
});

t.test('any words: left to yargs, or the same', async (t) => {
  const random = new Random(7);
  const words = [
    pstree,
    data,
    '-',
    '-i',
    '--in',
    '--pretty',
    '--nopl',
    '--map',
    '377',
    'cfg',
    '--format',
    'crit',
    'items',
    '--',
  ];
  const more = [
    '--json',
    '--raw',
    '--limit',
    '2',
    '--text',
    '--types',
    '--debug',
    '--color',
    '--no-color',
    '--typed',
    '-o',
  ];
  let quick = 0;
  for (let round = 0; round < 400; round++) {
    const argv = [random.of(['decode', 'info', 'show', 'verify'])];
    for (let i = random.below(5); i > 0; i--) argv.push(random.of(random.below(2) === 0 ? words : more));
    // Nothing is to be written but to standard output.
    if (argv.includes('-o')) continue;
    const one = await run(argv, 'quick');
    if (one === undefined) continue;
    quick++;
    t.same(one, await run(argv, 'yargs'), argv.join(' '));
  }
  t.ok(quick > 100, `${quick} were parsed quickly`);
});
