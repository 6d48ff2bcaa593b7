/** Everything the documentation shows is run, and must print what it shows. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { IMAGE_KINDS } from '../src/image/kinds.js';
import { FINDINGS } from '../src/verify/verify.js';
import { shell, TOP, workFolder } from './helpers/command.js';
import { skipWithout } from './helpers/crit.js';
import { examples, packed, quoted } from './helpers/examples.js';
import { skipWithoutMaps } from './helpers/kernel-live.js';
import { programs } from './helpers/programs.js';

const noJq = skipWithout('jq');

/**
 * A folder with what the examples of a page use: a dump, an object file, and the programs that the page shows. If the
 * page itself copies the dump, the folder is like a fresh clone.
 */
function exampleFolder(page: string, copies = page.includes('$ cp -r fixtures/flowd flowd')): string {
  const folder = workFolder();
  if (copies) {
    fs.rmSync(path.join(folder, 'flowd'), { recursive: true });
    fs.symlinkSync(path.join(TOP, 'fixtures'), path.join(folder, 'fixtures'));
  } else fs.copyFileSync(path.join(TOP, 'fixtures/btf/flowd.o'), path.join(folder, 'flowd.bpf.o'));
  const shown = Object.entries(programs(page));
  for (const [name, text] of shown) fs.writeFileSync(path.join(folder, name), text);
  if (shown.length > 0) {
    fs.mkdirSync(path.join(folder, 'node_modules'));
    fs.symlinkSync(TOP, path.join(folder, 'node_modules/bpfimg'));
  }
  return folder;
}

/** What a page shows of live maps; ids, of four digits and more there, are other numbers each time. */
function shownOnce(text: string): RegExp {
  return new RegExp(`^${quoted(packed(text)).replace(/\b\d{4,}\b/g, '\\d+')}$`);
}

const pages = ['README.md', ...fs.readdirSync(path.join(TOP, 'docs')).map((name) => `docs/${name}`)].filter((name) =>
  name.endsWith('.md'),
);

for (const name of pages) {
  const page = fs.readFileSync(path.join(TOP, name), 'utf8');
  const shown = examples(page, 'console');
  if (shown.length > 0) {
    t.test(`${name}: ${shown.length} examples print what the page shows`, async (t) => {
      const cwd = exampleFolder(page);
      t.teardown(() => fs.rmSync(cwd, { recursive: true }));
      for (const { line, command, output } of shown) {
        if (noJq && command.startsWith('jq ')) {
          t.pass(`${name}:${line}`, { skip: noJq });
          continue;
        }
        const { stdout, stderr } = shell(`exec 2>&1; ${command}`, { cwd, env: { BPFIMG_TOP: TOP } });
        t.equal(stderr, '');
        t.equal(stdout, output, `${name}:${line}: ${command}`);
      }
    });
  }
  const live = examples(page, 'console live');
  if (live.length > 0) {
    const skip = await skipWithoutMaps();
    t.test(`${name}: ${live.length} examples with live maps print what the page shows`, { skip }, async (t) => {
      const cwd = exampleFolder(page, false);
      t.teardown(() => fs.rmSync(cwd, { recursive: true }));
      // The same test may be running elsewhere on this machine.
      const pins = `/sys/fs/bpf/bpfimg-docs-${process.pid}`;
      const own = (text: string) => text.replaceAll('/sys/fs/bpf/bpfimg-docs', pins);
      t.teardown(() => fs.rmSync(pins, { recursive: true, force: true }));
      for (const { line, command, output } of live) {
        const { stdout } = shell(`exec 2>&1; ${own(command)}`, { cwd, env: { BPFIMG_TOP: TOP } });
        t.match(packed(stdout), shownOnce(own(output)), `${name}:${line}: ${command}`);
      }
    });
  }
  t.test(`${name}: links lead somewhere`, async (t) => {
    for (const [, target = ''] of page.matchAll(/\]\((?!https?:)([^)#\s]+)(#[^)]*)?\)/g)) {
      t.ok(fs.existsSync(path.join(TOP, path.dirname(name), target)), target);
    }
    t.pass();
  });
}

t.test('docs/verify.md lists every code, as the code has it', async (t) => {
  const page = fs.readFileSync(path.join(TOP, 'docs/verify.md'), 'utf8');
  const lines = page.split('\n').filter((line) => line.startsWith('| `'));
  // The last cell says what to do about it.
  const rows = lines.map((line) => line.replace(/(?<=\|) [^|]{6,} \|$/, ''));
  const wanted = Object.entries(FINDINGS).map(([code, [severity, text]]) => `| \`${code}\` | ${severity} | ${text} |`);
  t.same(rows, wanted);
});

t.test('docs/images.md names every kind that decodes', async (t) => {
  const page = fs.readFileSync(path.join(TOP, 'docs/images.md'), 'utf8');
  for (const { name } of IMAGE_KINDS) t.match(page, `\`${name}\``);
});
