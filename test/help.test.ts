/** The tables of the commands, from which help, completion and man pages are made, and docs/commands.md. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import type { Command } from '../src/cli/command.js';
import { COMMANDS } from '../src/cli/commands.js';
import { commandHelp, overview } from '../src/cli/help.js';
import { selectors } from '../src/cli/options.js';
import { optionsOf } from '../src/cli/page.js';
import { parseCommandLine } from '../src/cli/parse.js';
import { TOP } from './helpers/command.js';

const commands: Command[] = [];
for (const load of Object.values(COMMANDS)) commands.push((await load()).command);
const docs = fs.readFileSync(path.join(TOP, 'docs/commands.md'), 'utf8');

/** The words of an example, up to a pipe or a redirection. */
function words(line: string): string[] {
  const found = [...line.matchAll(/'([^']*)'|(\S+)/g)].map(([, quoted, plain]) => quoted ?? (plain as string));
  const end = found.findIndex((word) => word === '|' || word === '>' || word === '>>');
  return end < 0 ? found : found.slice(0, end);
}

for (const command of commands) {
  const { name, summary, examples = [] } = command;
  t.test(name, async (t) => {
    t.match(summary, /^[^\n]{10,72}$/, 'one line says what it is for');
    const bare = Object.entries(optionsOf(command)).filter(([, { group, describe }]) => !group || !describe);
    t.same(bare, [], 'every option has a group and a description');
    t.ok(examples.length >= 3, 'three examples');
    for (const [line, meaning] of examples) {
      t.type(await parseCommandLine(words(line), {}), 'function', line);
      t.ok(line.startsWith(name) && meaning !== '', line);
    }
    for (const width of [40, 80, 100]) {
      const wide = commandHelp(command, width).split('\n');
      const broken = wide.filter((line) => line.length > width && /^ {8,}\S+ /.test(line));
      t.same(broken, [], `fits into ${width} columns`);
    }
  });
}

t.test('the list of commands fits into 80 columns', async (t) => {
  const lines = overview(commands, undefined, 80).split('\n');
  t.same(
    lines.filter((line) => line.length > 80),
    [],
  );
});

t.test('docs/commands.md has every command with its options, and no others', async (t) => {
  for (const section of docs.split(/^## /m).slice(1)) {
    const [title = ''] = section.split('\n', 1);
    const members = commands.filter(({ name }) => title.split(', ').includes(name));
    const synopses = section.split('\n').filter((line) => line.startsWith('`bpfimg ') && / *$/.test(line));
    if (members.length === 0) continue;
    const shown = new Set(synopses.join(' ').match(/(?<=[\s[(|])--?[a-zA-Z][\w-]*/g));
    // The page explains these in one place.
    const elsewhere = ['libdir', ...(/SELECTORS/.test(synopses.join(' ')) ? Object.keys(selectors) : [])];
    const all = new Map(members.flatMap(({ options = {} }) => Object.entries(options)));
    for (const [name, { alias }] of all) {
      const spellings = [`--${name}`, `--no-${name}`, `-${String(alias)}`];
      const isShown = spellings.some((one) => shown.has(one)) || elsewhere.includes(name);
      t.ok(isShown, `${title}: --${name} is in the synopsis`);
      for (const one of spellings) shown.delete(one);
    }
    t.same([...shown], [], `${title}: options that exist`);
  }
  for (const { name } of commands) t.match(docs, new RegExp(`^## (.*, )?${name}(,.*)?$`, 'm'), `${name}: section`);
});
