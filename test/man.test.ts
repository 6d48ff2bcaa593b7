/** The man pages that the build makes from the tables of the commands. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { COMMANDS } from '../src/cli/commands.js';
import { pageOf } from '../src/cli/page.js';
import { TOP } from './helpers/command.js';
import { skipWithout } from './helpers/crit.js';

const folder = path.join(TOP, 'dist/man');
const pages = fs.readdirSync(folder).sort();

t.test('a page for bpfimg and for each command, all of which npm installs', async (t) => {
  const wanted = ['bpfimg.1', ...Object.keys(COMMANDS).map((name) => `bpfimg-${name.replaceAll(' ', '-')}.1`)].sort();
  t.same(pages, wanted);
  const { man } = JSON.parse(fs.readFileSync(path.join(TOP, 'package.json'), 'utf8')) as { man: string[] };
  t.same([...man].sort(), pages.map((name) => `dist/man/${name}`).sort());
});

/** Runs a checker on a page; what it prints. */
function checked(program: string, args: readonly string[]): string {
  const env = { ...process.env, LC_ALL: 'C.UTF-8', MANWIDTH: '80', MAN_KEEP_FORMATTING: '' };
  const { stdout, stderr, status } = spawnSync(program, args, { encoding: 'utf8', env });
  return `${stderr}${program === 'mandoc' ? stdout : ''}${status === 0 ? '' : `exit code ${status}`}`;
}

t.test('man has no warnings', { skip: skipWithout('man') }, async (t) => {
  for (const name of pages) t.equal(checked('man', ['--warnings', '-l', path.join(folder, name)]), '', name);
});

t.test('mandoc has no warnings', { skip: skipWithout('mandoc') }, async (t) => {
  for (const name of pages) {
    t.equal(checked('mandoc', ['-T', 'lint', '-W', 'warning', path.join(folder, name)]), '', name);
  }
});

t.test('a page says what help says', { skip: skipWithout('man') }, async (t) => {
  const squeezed = (text: string) => text.replace(/[\s\u2010-]+/g, '');
  for (const load of Object.values(COMMANDS)) {
    const { name, synopsis, words, groups, examples } = pageOf((await load()).command);
    const file = path.join(folder, `bpfimg-${name.replaceAll(' ', '-')}.1`);
    const env = { ...process.env, LC_ALL: 'C.UTF-8', MANWIDTH: '200' };
    const text = squeezed(spawnSync('man', ['-E', 'UTF-8', '-l', file], { encoding: 'utf8', env }).stdout);
    const rows = [...words, ...groups.flatMap(([, list]) => list)];
    for (const part of [`bpfimg ${synopsis}`, ...rows.flat(), ...examples.map(([line]) => `bpfimg ${line}`)]) {
      t.ok(text.includes(squeezed(part.replaceAll('…', '...'))), `${name}: ${part}`);
    }
  }
});
