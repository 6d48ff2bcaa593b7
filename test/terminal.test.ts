/** What people see: nothing from outside moves their terminal, and columns are aligned. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { COMPACT, print } from '../src/json/print.js';
import { colours, lineText, nameText, onSameLine, table } from '../src/render.js';
import { cut, padEnd, padStart, width } from '../src/width.js';
import { bpfimg, workFolder } from './helpers/command.js';
import { patience } from './helpers/needs.js';
import { dumpOf, someItems } from './helpers/replay.js';

t.setTimeout(patience(120_000));
const cwd = workFolder();
t.teardown(() => fs.rmSync(cwd, { recursive: true }));

/** Every character that has no business on a terminal. */
const EVIL = [
  ...Array.from({ length: 0x20 }, (_, code) => code),
  ...Array.from({ length: 0x21 }, (_, i) => 0x7f + i),
  ...[0x61c, 0x200e, 0x200f, 0x2028, 0x2029],
  ...[0x202a, 0x202b, 0x202c, 0x202d, 0x202e, 0x2066, 0x2067, 0x2068, 0x2069],
].map((code) => String.fromCharCode(code));

/** What of `text` would reach the terminal, but for ends of lines and colours of ours. */
function raw(text: string): string[] {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: it is about them
  const own = text.replace(/\x1b\[([12]|22|3[123]|39)m|\n/g, '');
  return EVIL.filter((char) => own.includes(char));
}

t.test('the width of text is counted in cells', async (t) => {
  for (const [text, cells] of [
    ['', 0],
    ['flows', 5],
    ['fl\xf6w', 4],
    ['äöü…→│', 6],
    ['e\u0301', 1],
    ['日本語', 6],
    ['ﾊﾝｶｸ', 4],
    ['ＡＢ', 4],
    ['한국', 4],
    ['\u1112\u1161\u11ab', 2],
    ['👍', 2],
    ['👍🏽', 2],
    ['👨‍👩‍👧', 2],
    ['✌️', 2],
    ['✌', 1],
    ['🇩🇪', 2],
    ['a\u200bb', 2],
    ['नि', 1],
    ['\u0301', 0],
  ] as const) {
    t.equal(width(text), cells, JSON.stringify(text));
  }
  t.same([padEnd('日', 4), padStart('日', 4), padEnd('日本', 2)], ['日  ', '  日', '日本']);
  t.same([cut('日本語', 4), cut('日本語', 5), cut('ab日', 2), cut('flows', 3)], ['日本', '日本', 'ab', 'flo']);
  t.same([cut('e\u0301e\u0301', 1), cut('👨‍👩‍👧', 1)], ['e\u0301', ''], 'nothing is cut in two');
});

t.test('columns are aligned', async (t) => {
  const rows = ['flows', '日本語', '👨‍👩‍👧', 'e\u0301', 'a\x1b[2Jb', 'a\u202eb'].map((name) => [name, '7', 'x']);
  const lines = table([{ title: 'NAME' }, { title: 'N', right: true }, { title: 'L' }], rows, colours(false));
  t.same(
    lines.map((line) => width(line.slice(0, line.lastIndexOf(' ')))),
    lines.map(() => 13),
    lines.join('\n'),
  );
  t.match(lines, /a\\x1b\[2Jb +7/);
  t.match(lines, /a\\u202eb +7/);
});

t.test('what is not printable is escaped, and can be told from what is', async (t) => {
  for (const char of EVIL) {
    const shown = `\\${char < '\x7f' || char < '\u0100' ? 'x' : 'u'}`;
    t.ok(lineText(`a${char}b`).startsWith(`a${shown}`), `U+${char.charCodeAt(0).toString(16)}`);
    t.same(raw(nameText(`a${char}b`) + onSameLine(char, 80).slice(4)), []);
  }
  t.equal(nameText('a\\x1b\xa0'), 'a\\\\x1b\\xa0');
  const look = colours(true);
  t.equal(lineText(look.red('bad')), look.red('bad'), 'our own colours stay');
  t.equal(lineText('\x1b[5m\x1b[31;5m'), '\\x1b[5m\\x1b[31;5m', 'and no others');
  t.equal(onSameLine('日本語日本語', 8), '\r\x1b[K日本語');
});

t.test('every command, with names that mean harm', async (t) => {
  const name = `${EVIL.filter((char) => char < '\u0100' && char !== '\0').join('')}\x1b[2J`;
  const folder = dumpOf(
    cwd,
    { id: 1, name, items: someItems(3) },
    { id: 2, name: `${name}2`, type: 9999 },
    { id: 3, name: 'plain', max: 1, items: someItems(3) },
  );
  const other = dumpOf(cwd, { id: 1, name, items: someItems(2) }, { id: 3, name, max: 7 });
  const strange = path.join(path.dirname(folder), `f\u202e\x1b]0;title\x07\x9b2J`);
  fs.renameSync(folder, strange);
  const missing = `${strange}.img`;
  const cases: readonly (readonly string[])[] = [
    ['show', strange],
    ['show', strange, '--types'],
    ['show', missing],
    ['verify', strange],
    ['verify', missing],
    ['diff', strange, other],
    ['diff', strange, other, '--type', `${name}=int:int`],
    ['diff', strange, missing],
    ['info', path.join(strange, 'bpfmap-file.img'), missing],
    ['decode', strange, '--map', name],
    ['decode', strange, '--map', missing],
    ['decode', strange, '--type', '1=__u64:__u64', '-o', '/dev/null'],
    ['encode', missing],
    ['replay', strange, '--dry-run'],
    ['replay', strange, '--dry-run', '--pin', missing],
    ['replay', strange, '--dry-run', '--map', '1', '--', 'true'],
    ['replay', missing, '--hold'],
    ['replay', strange, '--pin', missing],
    ['capture', '--name', name, '-D', 'x'],
    ['capture', '--pinned', missing, '-D', 'x'],
    ['list', '--name', name],
    ['criu', 'convert', strange, '--to', 'native'],
    ['criu', 'check', '1', '--criu', missing],
    ['criu', 'build', '--config', missing, '--out', missing],
    [missing],
    ['show', `--${missing}`],
    ['decode', '--format', name],
  ];
  for (const args of cases) {
    for (const colour of args[0] === 'show' || args[0] === 'verify' ? ['--color', '--no-color'] : ['--no-color']) {
      const words = args.includes('--') ? args : [...args, colour];
      const { stdout, stderr, status } = bpfimg(words, { cwd });
      const line = print([...words], { ...COMPACT, ascii: true });
      t.ok(stdout !== '' || stderr !== '' || args.includes('/dev/null') || status === 0, line);
      // What `decode` prints is JSON, and for programs.
      t.same([raw(args[0] === 'decode' ? '' : stdout), raw(stderr)], [[], []], line);
    }
  }
});
