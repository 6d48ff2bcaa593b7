/** What `show` and `diff` print on a terminal: pages, and what fits its width. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { bpfimg, TOP, workFolder } from './helpers/command.js';
import { onTerminal } from './helpers/pty.js';

t.setTimeout(180_000);
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
