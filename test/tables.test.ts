/** What `show` and `diff` print on a terminal: pages, and what fits its width. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { TypedTable } from '../src/cli/typed-table.js';
import { colours, table } from '../src/render.js';
import { width, wrapped } from '../src/width.js';
import { bpfimg, TOP, workFolder } from './helpers/command.js';
import { patience } from './helpers/needs.js';
import { onTerminal } from './helpers/pty.js';

t.setTimeout(patience(180_000));
const cwd = workFolder();
t.teardown(() => fs.rmSync(cwd, { recursive: true }));
const FLOWD = path.join(TOP, 'fixtures/flowd');

t.test('on a terminal, output goes through the pager', async (t) => {
  const on = (line: string, env: Readonly<Record<string, string>> = {}) => onTerminal(line, { columns: 200, cwd, env });
  const plain = bpfimg(['show', FLOWD, '--map', '377']).stdout;
  const pages = plain.replace(/^/gm, 'P ').slice(0, -2);
  t.equal(on(`bpfimg show ${FLOWD} --map 377`, { PAGER: "sed 's/^/P /'" }), pages);
  t.equal(on(`bpfimg show ${FLOWD} --map 377 --no-pager`, { PAGER: "sed 's/^/P /'" }), plain);
  t.equal(on(`bpfimg show ${FLOWD} --map 377`, { PAGER: '' }), plain);
  t.equal(on(`bpfimg show ${FLOWD} --map 377 | cat`, { PAGER: 'false' }), plain, 'a pipe is no terminal');

  fs.mkdirSync(path.join(cwd, 'bin'));
  fs.writeFileSync(path.join(cwd, 'bin/less'), '#!/bin/sh\necho "less, LESS=$LESS, $(wc -l) lines"\n', { mode: 0o755 });
  const own = (line: string) => on(`unset PAGER; PATH=$PWD/bin:$PATH; ${line}`);
  t.equal(own(`bpfimg show ${FLOWD} --map 377 --limit 1`), 'less, LESS=FRX, 7 lines\n');
  t.equal(own(`LESS=-S bpfimg show ${FLOWD} --map 377 --limit 1`), 'less, LESS=-S, 7 lines\n');

  // Whoever leaves the pager has seen enough, and the exit code of diff remains an answer.
  const left = `bpfimg show ${FLOWD} --limit 0; echo code $?`;
  t.match(on(left, { PAGER: 'head -1' }), /^ ID .*\ncode 0\n$/);
  fs.cpSync(FLOWD, path.join(cwd, 'other'), { recursive: true });
  t.equal(bpfimg(['set', path.join(cwd, 'other'), '378', '0', '00'.repeat(64)]).status, 0);
  t.match(on(`bpfimg diff ${FLOWD} other; echo code $?`, { PAGER: 'head -1' }), /^--- .*\ncode 1\n$/);
  t.match(on(`bpfimg show nothing; echo code $?`, { PAGER: 'cat -n' }), /^bpfimg: nothing: .*\ncode 1\n$/);
});

const BTF = path.join(TOP, 'fixtures/btf/flowd.o');
const TYPED = ['show', FLOWD, '--btf', BTF];

t.test('what is shown fits the terminal', async (t) => {
  for (const columns of [40, 80, 200]) {
    for (const more of ['', `--btf ${BTF}`, `--btf ${BTF} --no-vertical`, `--btf ${BTF} --vertical`]) {
      const lines = onTerminal(`bpfimg show ${FLOWD} ${more}`, { columns, cwd }).split('\n');
      const wide = lines.filter((line) => width(line) > columns && !/^ *… /.test(line));
      t.same(wide, [], `${columns} columns ${more}`);
      t.ok(lines.length > 50);
    }
  }
  const plain = bpfimg(TYPED).stdout;
  t.equal(onTerminal(`bpfimg ${TYPED.join(' ')}`, { columns: 200, cwd }), plain, 'with room, as in a file');
  t.equal(bpfimg([...TYPED, '--no-vertical']).stdout, plain, 'a file has room for anything');
});

t.test('rows wider than the terminal become lists of members, or lose columns', async (t) => {
  const flows = [...TYPED, '--map', 'flows', '--limit', '1'];
  const record = `  saddr        167793749
  daddr        167837611
  sport        1612
  dport        53
  proto        17
  │ packets    84001
  │ bytes      17631453184
  │ last_seen  1700000084
  │ state      TCP_CLOSE
  … 199 more (--limit N shows N, 0 all)
`;
  t.ok(onTerminal(`bpfimg ${flows.join(' ')}`, { columns: 80, cwd }).endsWith(`200 items\n${record}`));
  t.ok(bpfimg([...flows, '--vertical']).stdout.endsWith(`200 items\n${record}`));
  const narrow = onTerminal(`bpfimg ${flows.join(' ')} --no-vertical`, { columns: 60, cwd });
  t.ok(
    narrow.endsWith(`200 items
      saddr      daddr  sport  dport  proto  │  packets
  167793749  167837611   1612     53     17  │    84001
  … 3 more columns: bytes, last_seen, state (--vertical shows all)
  … 199 more (--limit N shows N, 0 all)
`),
    narrow,
  );
  t.match(narrow, /^ ID {2}NAME {3}TYPE {2}KEY {2}VALUE {2}USED\/MAX {2}FLAGS {2}FROZEN\n.*\n… 1 more column: HOLDERS/);
});

t.test('--full shows whole values', async (t) => {
  const pages = (...more: string[]) => bpfimg(['show', FLOWD, '--map', 'pages', '--limit', '1', ...more]).stdout;
  t.match(pages(), /… 4032 more bytes of this value/);
  const full = pages('--full');
  t.notMatch(full, /more bytes/);
  t.equal(full.trim().split('\n').length, 4 + 4096 / 16 + 1);
});

t.test('items of several CPUs, and long values', async (t) => {
  const print = (vertical: boolean, columns: number | undefined, full = false) => {
    const lines: string[] = [];
    const items = new TypedTable(colours(false), true, (line) => lines.push(line), { columns, vertical, full });
    const list = Array.from({ length: 40 }, (_, i) => i);
    for (const name of ['a', 'b']) {
      const key = [['name', name]] as const;
      for (const cpu of [0, 1])
        items.row(key, cpu, [
          ['hits', cpu],
          ['seen', { list, at: [{ x: 1 }] }],
        ]);
    }
    items.end();
    return lines;
  };
  t.same(print(true, 40).slice(0, 6), [
    '  name                a',
    '  │ [0].hits          0',
    '  │ [0].seen.list     [0,1,2,3,4,5,6,7,8',
    '  │                   ,9,10,11,12,13,14,',
    '  │                   15,16,17,18,19,20,',
    '  │                   21,22,23,24,25,26,',
  ]);
  const tall = print(true, undefined);
  t.same(tall.length, 2 * 7 + 1);
  t.same([tall[3], tall[4], tall[7]], ['  │ [0].seen.at[0].x  1', '  │ [1].hits          1', '']);
  t.match(print(false, undefined)[1], /…$/);
  t.match(print(false, undefined, true)[1], /39\],"at":\[\{"x":1\}\]\}$/, '--full cuts off nothing');
  t.same(print(false, 30).at(-1), '  … 1 more column: seen (--vertical shows all)');
});

t.test('the last column of a table continues below', async (t) => {
  const columns = [{ title: 'N', right: true }, { title: 'WHO' }, { title: 'WHERE' }];
  const rows = [
    ['1', 'a', 'first second third fourth fifth sixth'],
    ['22', 'b', 'x'],
  ];
  t.same(table(columns, rows, colours(false), 32), [
    ' N  WHO  WHERE',
    ' 1  a    first second third',
    '         fourth fifth sixth',
    '22  b    x',
  ]);
  t.same(table(columns, rows, colours(false), 20), [' N  WHO', ' 1  a', '22  b', '… 1 more column: WHERE']);
  t.same(wrapped('aaaa bb 日本語日本語', 6), ['aaaa', 'bb', '日本語', '日本語']);
  t.same(wrapped('', 3), ['']);
  t.same(wrapped('日本', 1), ['日', '本']);
  // A stranger's image can have a million maps, and one long text.
  t.equal(table(columns, Array(300_000).fill(['1', 'a', 'x']), colours(false)).length, 300_001);
  const long = 'abc def '.repeat(100_000);
  const began = Date.now();
  t.equal(wrapped(long, 40).join(' '), long);
  t.ok(Date.now() - began < 5000, 'in time that grows with the text alone');
});

t.test('--sort and --top', async (t) => {
  const items = JSON.parse(bpfimg(['decode', FLOWD, '--map', 'flows', '--btf', BTF]).stdout).maps[0].items as {
    readonly key: { readonly saddr: number };
    readonly value: { readonly bytes: number };
  }[];
  const cells = (column: number, ...more: string[]) => {
    const ran = bpfimg([...TYPED, '--map', 'flows', ...more]);
    t.equal(ran.status, 0, ran.stderr);
    const rows = ran.stdout.split('\n').filter((line) => line.includes('│'));
    return rows.slice(1).map((row) => Number(row.trim().split(/ +/)[column]));
  };
  const bytes = items.map(({ value }) => value.bytes).sort((a, b) => a - b);
  t.same(cells(7, '--sort', 'value.bytes', '--top', '7'), bytes.slice(-7).reverse());
  t.same(cells(7, '--sort', 'value.bytes', '--limit', '5'), bytes.slice(0, 5));
  t.same(cells(7, '--sort=-value.bytes', '--limit', '0'), bytes.slice().reverse());
  const addresses = items.map(({ key }) => key.saddr).sort((a, b) => a - b);
  t.same(cells(0, '--sort', 'key', '--limit', '0'), addresses);
  const wrong = (...more: string[]) => bpfimg([...TYPED, '--map', 'flows', ...more]).stderr;
  t.match(wrong('--top', '3'), /--top: .* goes with --sort/);
  t.match(wrong('--sort', 'value.byts'), /no byts, expected one of packets, bytes/);
  t.match(wrong('--sort', 'key', '--json'), /--sort: it is for tables/);
});
