/** `edit`, with scripts as editors. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { BpfMap } from '../src/kernel/map.js';
import { openSys } from '../src/kernel/sys.js';
import { bpfimg, contents, type Ran } from './helpers/command.js';
import { bpffs, skipWithoutBpftool, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { cli, dumpOf, hexOf, someItems } from './helpers/replay.js';
import { types } from './helpers/types.js';

const VALUE = hexOf(someItems(2)[1]?.[1] as Buffer);

/** Runs `bpfimg edit` with an editor that runs these shell lines, one a time; `$1` is the document. */
function edit(t: Test, source: string, turns: readonly string[], ...more: string[]): Ran & { readonly seen: string[] } {
  const folder = t.testdir();
  const script = path.join(folder, 'editor');
  const cases = turns.map((turn, i) => `${i + 1}) ${turn} ;;`).join('\n');
  const count = `n=$(($(cat ${folder}/n 2>/dev/null || echo 0) + 1)); echo $n > ${folder}/n; cp "$1" ${folder}/seen$n`;
  fs.writeFileSync(script, `#!/bin/sh\n${count}\ncase $n in\n${cases}\nesac\n`, { mode: 0o755 });
  const ran = bpfimg(['edit', source, ...more], {
    env: { ...process.env, VISUAL: '', EDITOR: script, TMPDIR: folder },
  });
  const seen = turns.map((_, i) => path.join(folder, `seen${i + 1}`)).filter((file) => fs.existsSync(file));
  return { ...ran, seen: seen.map((file) => fs.readFileSync(file, 'utf8')) };
}

/** The folders with documents that are left. */
const left = (t: Test) => fs.readdirSync(t.testdirName).filter((name) => name.startsWith('bpfimg-edit-'));

t.test('a document that is not changed changes nothing', async (t) => {
  const folder = dumpOf(fs.mkdtempSync(path.join(t.testdir(), '..', 'dump-')), { id: 1, items: someItems(3) });
  t.teardown(() => fs.rmSync(path.dirname(folder), { recursive: true }));
  const before = fs.statSync(path.join(folder, 'bpfmap-data.img'), { bigint: true });
  const ran = edit(t, folder, ['true']);
  t.equal(ran.status, 0);
  t.match(ran.stderr, /not edited, nothing is changed/);
  t.equal(fs.statSync(path.join(folder, 'bpfmap-data.img'), { bigint: true }).ino, before.ino);
  t.match(ran.seen[0], /^\{\n {4}"format"/, 'the document is for people');
  t.strictSame(left(t), []);
});

t.test('what is saved is written, and only that', async (t) => {
  const base = fs.mkdtempSync(path.join(t.testdir(), '..', 'dump-'));
  t.teardown(() => fs.rmSync(base, { recursive: true }));
  const folder = dumpOf(base, { id: 1, items: someItems(3) }, { id: 2, name: 'other', items: someItems(2) });
  const before = contents(folder);
  const ran = edit(t, folder, [`sed -i 's/"${VALUE}"/"ffffffffffffffff"/' "$1"`], '--map', 'm');
  t.equal(ran.status, 0, ran.stderr);
  t.notMatch(ran.seen[0], /"other"/);
  t.equal(
    (await cli(['get', folder, 'm', hexOf(someItems(2)[1]?.[0] as Buffer), '--raw'])).stdout,
    'ffffffffffffffff\n',
  );
  t.match((await cli(['get', folder, 'other', hexOf(someItems(2)[1]?.[0] as Buffer), '--raw'])).stdout, VALUE);
  const after = contents(folder);
  t.strictSame(
    Object.keys(after).filter((name) => after[name] !== before[name]),
    ['bpfmap-data.img'],
  );
  const image = path.join(folder, 'bpfmap-data.img');
  t.equal(edit(t, image, [`sed -i 's/ffffffffffffffff/0000000000000001/' "$1"`]).status, 0);
  t.match((await cli(['decode', image])).stdout, '0000000000000001');
  const archive = path.join(base, 'a.tar.gz');
  await cli(['encode', '-o', archive], { input: (await cli(['decode', folder])).stdout });
  t.equal(edit(t, archive, [`sed -i 's/0000000000000001/0000000000000002/' "$1"`]).status, 0);
  t.match((await cli(['decode', archive])).stdout, '0000000000000002');
});

t.test('a mistake opens the editor again, with the error at its line', async (t) => {
  const base = fs.mkdtempSync(path.join(t.testdir(), '..', 'dump-'));
  t.teardown(() => fs.rmSync(base, { recursive: true }));
  const folder = dumpOf(base, { id: 1, items: someItems(3) });
  const ran = edit(t, folder, [`sed -i 's/"${VALUE}"/"xyz"/' "$1"`, `sed -i 's/"xyz"/"1111111111111111"/' "$1"`]);
  t.equal(ran.status, 0, ran.stderr);
  t.match(ran.seen[1], /^# .*: \/maps\/0\/items\/1\/value: .* \(line \d+, column \d+\)\n.*"xyz"/m);
  const line = (ran.seen[1] as string).split('\n').findIndex((text) => text.startsWith('# ')) + 1;
  t.match(ran.seen[1], `(line ${line}, column`);
  t.match((await cli(['decode', folder])).stdout, '1111111111111111');
  // Saved again as it is: the user has given up. Nothing is lost.
  const before = contents(folder);
  const given = edit(t, folder, [`sed -i 's/"items"/"itens"/' "$1"`, 'true']);
  t.equal(given.status, 1);
  const [, kept = ''] = /what you have edited is in (.*)\n/.exec(given.stderr) ?? [];
  t.match(fs.readFileSync(kept, 'utf8'), '"itens"');
  t.strictSame(contents(folder), before);
});

t.test('an editor that fails, a signal, somebody else', async (t) => {
  const base = fs.mkdtempSync(path.join(t.testdir(), '..', 'dump-'));
  t.teardown(() => fs.rmSync(base, { recursive: true }));
  const folder = dumpOf(base, { id: 1, items: someItems(3) });
  const before = contents(folder);
  const failed = edit(t, folder, ['exit 3']);
  t.equal(failed.status, 1);
  t.match(failed.stderr, /it ended with exit code 3; nothing is changed\n$/);
  t.strictSame(left(t), []);
  const change = `sed -i 's/"${VALUE}"/"1111111111111111"/' "$1"`;
  t.match(edit(t, folder, [`${change}; exit 3`]).stderr, /what you have edited is in /);
  const killed = edit(t, folder, [`${change}; kill -TERM $(ps -o ppid= -p $PPID | tr -d ' '); sleep 0.2`]);
  t.equal(killed.status ?? killed.signal, 143);
  t.match(killed.stderr, /what you have edited is in /);
  t.strictSame(contents(folder), before);
  t.match(edit(t, folder, ['rm "$1"']).stderr, /\.json: cannot read it: no such file or folder\n$/);
  const other = edit(t, folder, [`${change}; touch ${folder}/bpfmap-data.img`]);
  t.equal(other.status, 1);
  t.match(other.stderr, /somebody else has changed it in the meantime; nothing is written; what you have edited is in/);
  t.match((await cli(['edit', '-'])).stderr, /standard input cannot be edited/);
  const file = path.join(base, 'doc.json');
  await cli(['decode', folder, '-o', file]);
  t.match((await cli(['edit', file])).stderr, /it is a JSON document, which any editor or jq can change/);
});

const skip = skipWithoutBpftool() || (await skipWithoutMaps());

t.test('live maps: items that have changed meanwhile are shown and left alone', { skip }, async (t) => {
  const sys = await openSys(types);
  const { folder, remove } = bpffs();
  t.teardown(remove);
  using map = BpfMap.create(sys, { type: 1, name: 'edited', keySize: 4, valueSize: 8, maxEntries: 8 });
  const pin = path.join(folder, 'edited');
  map.pin(pin);
  for (const n of [1, 2, 3]) map.update(u32(n), u32(n, 0));
  const bytes = (n: number) => `hex 0${n} 00 00 00`;
  const ran = edit(t, `pinned:${pin}`, [
    [
      `sed -i 's/"0[12]00000000000000"/"0700000000000000"/' "$1"`,
      `bpftool map update pinned '${pin}' key ${bytes(2)} value hex 09 00 00 00 00 00 00 00`,
      `bpftool map update pinned '${pin}' key ${bytes(4)} value hex 09 00 00 00 00 00 00 00`,
    ].join('; '),
  ]);
  t.equal(ran.status, 1, ran.stderr);
  t.match(ran.stderr, /item 02000000 has changed in the meantime and is left alone: its value is 0900000000000000/);
  t.match(ran.stderr, /\(edited\): 1 item changed/);
  const values = [1, 2, 3, 4].map((n) => hexOf(map.lookup(u32(n)) as Uint8Array).slice(0, 2));
  t.strictSame(values, ['07', '09', '03', '09']);
  const attribute = edit(t, `pinned:${pin}`, [`sed -i 's/"max_entries": 8/"max_entries": 9/' "$1"`, 'true']);
  t.equal(attribute.status, 1);
  t.match(attribute.stderr, /max_entries of a live map cannot change/);
});
