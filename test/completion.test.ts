/** Completion: what is offered, and that bash, zsh and fish offer it. */
import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { COMMANDS } from '../src/cli/commands.js';
import type { Io } from '../src/cli/io.js';
import { main } from '../src/cli/main.js';
import { optionsOf } from '../src/cli/page.js';
import { bufferInput } from '../src/io/input.js';
import { MemoryOutput } from '../src/io/output.js';
import { BPFIMG, workFolder } from './helpers/command.js';
import { skipWithout } from './helpers/crit.js';
import { bpffs, HolderProcess, skipWithoutMaps } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import { Random } from './helpers/random.js';

t.setTimeout(patience(300_000));
const cwd = workFolder();
t.teardown(() => fs.rmSync(cwd, { recursive: true }));
fs.writeFileSync(path.join(cwd, 'x y.img'), '');
fs.mkdirSync(path.join(cwd, 'folder'));
fs.writeFileSync(path.join(cwd, 'folder/inside.json'), '');

process.chdir(cwd);

/** What may be typed in place of the last word. */
async function offered(...words: string[]): Promise<string[]> {
  const out = new MemoryOutput();
  const said: string[] = [];
  const io: Io = {
    stdin: async () => bufferInput(Buffer.alloc(0), 'standard input'),
    stdout: () => out,
    say: (line) => said.push(line),
    show: (text) => said.push(text),
    terminal: false,
    columns: undefined,
    env: {},
  };
  const code = await main(['__complete', ...words], io);
  if (code !== 0 || said.length > 0) throw new Error(`exit code ${code}: ${said.join('; ')}`);
  const lines = out.take().toString().split('\n').slice(0, -1);
  return lines.map((line) => line.split('\t', 1)[0] as string);
}

const LIVE = ['pinned:', 'id:', 'name:', 'pid:', 'tree:', 'all:'];
const MAPS = ['flows', 'cfg', 'seen.tmp', 'odd_sizes', 'pages', '382'];

t.test('what may come next', async (t) => {
  const firsts = [...new Set(Object.keys(COMMANDS).map((name) => name.split(' ')[0]))];
  for (const [words, wanted] of [
    [[''], firsts],
    [['sho'], ['show']],
    [['nothing', ''], []],
    [
      ['criu', ''],
      ['check', 'convert', 'forget', 'build'],
    ],
    [['help', 'cri'], ['criu']],
    [
      ['help', 'criu', 'c'],
      ['check', 'convert'],
    ],
    [
      ['completion', ''],
      ['bash', 'zsh', 'fish'],
    ],
    [
      ['show', ''],
      ['flowd/', 'folder/', 'x y.img', ...LIVE],
    ],
    [['show', 'folder/'], ['folder/inside.json']],
    [['show', 'fo'], ['folder/']],
    [['show', '~/'], ['~']],
    [['--color', 'sho'], ['show']],
    [['show', 'flowd', 'more'], []],
    [['show', 'flowd', '--map', ''], MAPS],
    [['show', '--map', 'cfg', 'flowd', '--map', 'p'], ['pages']],
    [['--map', 'flows', 'show', 'flowd', '--map', 'p'], ['pages']],
    [['show', '-i', 'flowd', '--map=o'], ['--map=odd_sizes']],
    [['show', 'nowhere', '--map', ''], []],
    [['get', 'flowd', ''], MAPS],
    [['set', 'flowd', 'o'], ['odd_sizes']],
    [['delete', 'flowd', 'flows', ''], []],
    [
      ['decode', '--format', ''],
      ['items', 'crit', 'ndjson'],
    ],
    [['decode', '--format=c'], ['--format=crit']],
    [['decode', 'flowd', '-o', 'folder/'], ['folder/inside.json']],
    [
      ['capture', '-D', ''],
      ['flowd/', 'folder/'],
    ],
    [['capture', '--drain=k'], []],
    [['swap', 'r'], ['rollback']],
    [['replay', 'flowd', '--like', 'fl'], ['flowd/']],
    [['replay', 'flowd', '--', 'x'], ['x y.img']],
    [['show', '--', 'fl'], ['flowd/']],
    [['show', '--lim'], ['--limit']],
    [['show', '--limit', '1', '--lim'], []],
    [['show', '--no-j'], ['--no-json']],
    [['show', '--limit', ''], []],
    [['--ver'], ['--version']],
  ] as const) {
    t.same(await offered(...words), wanted, `bpfimg ${words.join(' ')}`);
  }
});

t.test('every option of every command', async (t) => {
  for (const [name, load] of Object.entries(COMMANDS)) {
    const names = Object.keys(optionsOf((await load()).command)).map((option) => `--${option}`);
    const found = await offered(...name.split(' '), '--');
    t.same(
      names.filter((option) => !found.includes(option)),
      [],
      name,
    );
  }
});

t.test('whatever is typed, it does not fail', async (t) => {
  const random = new Random(7);
  const pool = [
    ...Object.keys(COMMANDS),
    'flowd',
    '--map',
    '-i',
    '--',
    '-',
    '',
    'id:',
    'pinned:',
    '=',
    '--=',
    '\u{1f600}',
    '--format=',
  ];
  for (let i = 0; i < 200; i++) {
    const words = Array.from({ length: random.below(5) }, () => pool[random.below(pool.length)] as string);
    t.ok(Array.isArray(await offered(...words)), JSON.stringify(words));
  }
});

t.test('live maps', { skip: await skipWithoutMaps() }, async (t) => {
  const { folder, remove } = bpffs();
  t.teardown(remove);
  t.same(await offered('list', `pinned:${folder}`), [`pinned:${folder}/`]);
  t.same(await offered('list', '--pinned', folder), [`${folder}/`]);
  t.same(await offered('list', '--pinned', ''), await offered('list', '--pinned', '/sys/fs/bpf/'));
  const name = `c_${process.pid}`;
  const holder = await HolderProcess.start([{ type: 1, keySize: 4, valueSize: 8, maxEntries: 10, name }]);
  t.teardown(() => holder.stop());
  const [id, fd, pid] = [...holder.ids, ...holder.fds, holder.pid].map(String) as [string, string, string];
  for (const [words, wanted] of [
    [['show', `id:${id}`], [`id:${id}`]],
    [['show', `name:${name}`], [`name:${name}`]],
    [['show', `pid:${pid}`], [`pid:${pid}`]],
    [['show', `tree:${pid}`], [`tree:${pid}`]],
    [['show', `pid:${pid}:`], [`pid:${pid}:${fd}`]],
    [['show', `pid:${pid}`, '--map', ''], [name]],
    [['get', `id:${id}`, ''], [name]],
    [['list', '--id', id], [id]],
    [['list', '--name', name], [name]],
    [['list', '--name', 'flows', name], [name]],
    [['capture', '--pid', pid], [pid]],
    [['capture', '--pid', pid, '--fd', ''], [fd]],
    [['criu', 'check', pid], [pid]],
  ] as const) {
    t.same(await offered(...words), wanted, `bpfimg ${words.join(' ')}`);
  }
});

/** How to start a shell with nothing of the user's, and how to give it the script and a prompt. */
const SHELLS = {
  bash: {
    start: 'bash --norc --noprofile -i',
    setUp: "bind 'set bell-style none'; source <(bpfimg completion bash); PS1=REA''DY",
  },
  zsh: {
    start: 'zsh -f -i',
    setUp: "bindkey -e; autoload -U compinit; compinit -u -D; source <(bpfimg completion zsh); PS1=REA''DY",
  },
  fish: {
    start: 'fish --no-config -i',
    setUp: "bpfimg completion fish | source; function fish_prompt; echo -n REA''DY; end",
  },
} as const;

/** Types lines into a shell in a terminal. Resolves to the words that each of them has become. */
function typed({ start, setUp }: { start: string; setUp: string }, lines: readonly string[]): Promise<string[][]> {
  const PATH = `${path.dirname(BPFIMG)}:${process.env.PATH ?? ''}`;
  const { NODE_OPTIONS: _, ...rest } = process.env;
  const env = { ...rest, PATH, HOME: cwd, TERM: 'vt100', LC_ALL: 'C.UTF-8', HISTFILE: '' };
  const shell = spawn('script', ['-qefc', start, '/dev/null'], { cwd, env });
  const results: string[][] = [];
  let screen = '';
  let seen = 0;
  // At a prompt: a line, its Tabs, and then at its begin a command that prints the words.
  const next = () => {
    const line = lines[results.length];
    shell.stdin.write(line === undefined ? 'exit\r' : `${line}\x01printf '<%s>' = \r`.replace('= \r', '= \x05\r'));
  };
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => shell.kill(), 60_000);
    shell.on('error', reject);
    shell.on('exit', () => {
      clearTimeout(timer);
      if (results.length === lines.length) resolve(results);
      else
        reject(new Error(`after ${results.length} of ${lines.length} lines: ${JSON.stringify(screen.slice(-2000))}`));
    });
    shell.stdout.on('data', (bytes) => {
      screen += String(bytes);
      const fresh = screen.slice(seen);
      const [whole, words = ''] = /<=>((?:<[^<>]*>)*).*READY/s.exec(fresh) ?? [];
      if (whole !== undefined) results.push([...words.matchAll(/<([^<>]*)>/g)].map(([, word]) => word as string));
      if (whole === undefined && (seen > 0 || !fresh.includes('READY'))) return;
      seen = screen.length;
      next();
    });
    setTimeout(() => shell.stdin.write(`${setUp}\r`), 500);
  });
}

const script = skipWithout('script');
for (const [name, shell] of Object.entries(SHELLS)) {
  t.test(`in ${name}`, { skip: skipWithout(name) || script }, async (t) => {
    const cases: (readonly [line: string, words: readonly string[]])[] = [
      ['bpfimg sho\t', ['bpfimg', 'show']],
      ['bpfimg show fl\t', ['bpfimg', 'show', 'flowd/']],
      ['bpfimg show flowd --ma\to\t', ['bpfimg', 'show', 'flowd', '--map', 'odd_sizes']],
      ['bpfimg show flowd --map=o\t', ['bpfimg', 'show', 'flowd', '--map=odd_sizes']],
      ['bpfimg get flowd o\t1b51bd', ['bpfimg', 'get', 'flowd', 'odd_sizes', '1b51bd']],
      ['bpfimg decode --format c\t', ['bpfimg', 'decode', '--format', 'crit']],
      ['bpfimg show x\t', ['bpfimg', 'show', 'x y.img']],
      ['bpfimg show folder/i\t', ['bpfimg', 'show', 'folder/inside.json']],
      ['bpfimg criu ch\t', ['bpfimg', 'criu', 'check']],
      ['bpfimg list pin\t', ['bpfimg', 'list', 'pinned:']],
      ['bpfimg list pinned:fol\t', ['bpfimg', 'list', 'pinned:folder/']],
      ['bpfimg show ~/fl\t', ['bpfimg', 'show', path.join(cwd, 'flowd')]],
      ['bpfimg nothing \t', ['bpfimg', 'nothing']],
    ];
    const found = await typed(
      shell,
      cases.map(([line]) => line),
    );
    for (const [i, [line, words]] of cases.entries()) {
      // Where the shell itself completes, zsh takes the slash back.
      const got = line.includes('~') ? found[i]?.map((word) => word.replace(/\/$/, '')) : found[i];
      t.same(got, words, JSON.stringify(line));
    }
  });
}
