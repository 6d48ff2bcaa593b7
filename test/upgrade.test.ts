/** docs/upgrade.md, typed from top to bottom: programs in C, libbpf as their loader, and hosts to run them on. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { TOP } from './helpers/command.js';
import { examples, packed, quoted } from './helpers/examples.js';
import { skipWithoutMaps } from './helpers/kernel-live.js';
import { required } from './helpers/needs.js';
import { Host } from './helpers/sandbox.js';

t.setTimeout(300_000);

function without(tool: string, missing: boolean): string | false {
  return missing && !required(tool) ? `needs ${tool}` : false;
}

const skip =
  (await skipWithoutMaps()) ||
  without('clang', spawnSync('clang', ['--version'], { stdio: 'ignore' }).error !== undefined) ||
  without('libbpf', spawnSync('cc', ['-xc', '-', '-fsyntax-only'], { input: '#include <bpf/libbpf.h>' }).status !== 0);

const EXAMPLES = path.join(TOP, 'docs/examples');

/** Starts a host whose folder has what the page tells its reader to copy. */
async function host(t: Test, name: string, others: Readonly<Record<string, Host>> = {}): Promise<Host> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), `bpfimg-${name}-`));
  t.teardown(() => fs.rmSync(folder, { recursive: true }));
  fs.cpSync(EXAMPLES, folder, { recursive: true });
  const started = await Host.start(folder, others);
  t.teardown(() => started.stop());
  return started;
}

/** What the page shows; ids begin with 90 there, and what memory is needed depends on the machine. */
function shownAs(text: string): RegExp {
  const pattern = quoted(packed(text))
    .replace(/\b90\d\d\b/g, '(\\d+)')
    .replace(/\b\d+\\\.\d (KiB|MiB)\b/g, '\\d+\\.\\d (?:KiB|MiB)');
  return new RegExp(`^${pattern}$`);
}

const lines = (text: string) => text.trimEnd().split('\n').sort().join('\n');

t.test('the guide', { skip }, async (t) => {
  const page = fs.readFileSync(path.join(TOP, 'docs/upgrade.md'), 'utf8');
  const hostb = await host(t, 'hostb');
  const hosta = await host(t, 'hosta', { hostb });
  const ids = new Map<string, string>();
  for (const { line, command, output } of examples(page, 'console guide')) {
    // Two commands that print at the same time.
    const both = command.includes('| ssh');
    const ran = await hosta.run(command);
    const [printed, shown] = [ran.output, output].map((text) => (both ? lines(packed(text)) : packed(text)));
    const found = shownAs(shown as string).exec(printed as string);
    const where = `docs/upgrade.md:${line}: ${command}`;
    if (found === null) t.equal(printed, shown, where);
    else t.pass(where);
    // The same number on the page is the same map.
    for (const [i, name] of [...(shown as string).matchAll(/\b90\d\d\b/g)].entries()) {
      const id = found?.[i + 1] as string;
      t.equal(ids.get(name[0]) ?? id, id, `${where}: map ${name[0]}`);
      ids.set(name[0], id);
    }
  }
  t.equal(new Set(ids.values()).size, ids.size, 'other numbers are other maps');
  t.ok(ids.size > 3);
});
