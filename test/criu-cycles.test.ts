/** Dumps and restores of one process again and again, and of two processes at once: nothing is lost, nothing grows. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import t from 'tap';
import {
  alive,
  Bench,
  dump,
  errors,
  fromOutside,
  type Held,
  idsOf,
  lasting,
  processesOf,
  skipWithoutCriu,
  TYPED,
  TYPES,
  zombies,
} from './helpers/criu.js';
import { patience } from './helpers/needs.js';

/** More of both, for a long run. */
const CYCLES = Number(process.env.BPFIMG_CYCLES ?? 25);
const PAIRS = Number(process.env.BPFIMG_PAIRS ?? 5);

t.setTimeout(patience(60_000 + (CYCLES + PAIRS) * 6000));
const skip = await skipWithoutCriu();
const bench = await Bench.set(t.testdir(), skip);
/** Temporary files of everything that is started here. */
const TEMPORARY = path.join(bench.folder, 'temporary');
fs.mkdirSync(TEMPORARY);
process.env.TMPDIR = TEMPORARY;

/** Ten maps, of ten kinds. */
const TEN = [
  TYPES,
  `map typed max=20 ${TYPED}`,
  'close types',
  ...[1, 2, 5, 6, 9].map((type) => `map m${type} type=${type} max=20`),
  'map trie type=11 key=8 flags=1 max=20',
  'map maps type=13 value=4 inner=m1',
  'put maps 07000000 m1',
  'map queue type=22 key=0 max=20',
  'map stack type=23 key=0 max=20',
  ...['typed', 'm1', 'm2', 'm5', 'm6', 'm9', 'trie', 'queue', 'stack'].map((name) => `fill ${name} 10`),
];

/** What could grow with each cycle, and must be the same. */
function counts({ witness, folder }: Held) {
  const { pid } = witness;
  return {
    fds: fs.readdirSync(`/proc/${pid}/fd`).length,
    mappings: fs.readFileSync(`/proc/${pid}/maps`, 'latin1').split('\n').length,
    threads: fs.readdirSync(`/proc/${pid}/task`).length,
    // CRIU's logs, too.
    files: fs.readdirSync(folder).sort(),
    beside: fs.readdirSync(path.dirname(folder)).sort(),
    temporary: fs.readdirSync(TEMPORARY),
    processes: processesOf(bench.folder),
  };
}

/** What may grow a little, and by how much: KiB of memory, and bytes of images, as maps get higher ids. */
const MORE = { rss: 1024, images: 200, criu: 65536 };

function sizes({ witness, folder }: Held): Record<keyof typeof MORE, number> {
  const bytes = (ours: boolean) =>
    fs
      .readdirSync(folder)
      .filter((name) => !name.endsWith('.log') && name.startsWith('bpfimg') === ours)
      .reduce((sum, name) => sum + fs.statSync(path.join(folder, name)).size, 0);
  const [, rss] = /^VmRSS:\s+(\d+)/m.exec(fs.readFileSync(`/proc/${witness.pid}/status`, 'latin1')) ?? [];
  return { rss: Number(rss), images: bytes(true), criu: bytes(false) };
}

t.test(`${CYCLES} dumps and restores of one process`, { skip }, async (t) => {
  const held = await bench.witness(t, ...TEN);
  const before = await held.witness.see();
  t.equal(before.length, 10);
  const outside = idsOf(before).map(fromOutside);
  let seen = before;
  let first: { readonly count: ReturnType<typeof counts>; readonly size: ReturnType<typeof sizes> } | undefined;
  const began = performance.now();
  for (let i = 1; i <= CYCLES; i++) {
    await bench.dumped(t, held);
    // Nobody has them any more, and no pin.
    await bench.freed(idsOf(seen));
    await bench.restored(t, held.folder);
    seen = await held.witness.see();
    const [count, size] = [counts(held), sizes(held)];
    // The first restore gives it a time namespace, of which the second dump has an image.
    if (i < 3) first = { count, size };
    if (first === undefined) continue;
    if (!isDeepStrictEqual(count, first.count)) t.same(count, first.count, `after ${i} cycles`);
    if (!isDeepStrictEqual(lasting(seen), lasting(before))) t.same(lasting(seen), lasting(before), `after ${i} cycles`);
    for (const what of ['rss', 'images', 'criu'] as const)
      if (size[what] > first.size[what] + MORE[what]) t.same(size, first.size, `${what} after ${i} cycles`);
    if (i === 2 || i === CYCLES) t.comment(i, JSON.stringify({ ...count, ...size }));
  }
  t.comment(`${Math.round((performance.now() - began) / CYCLES)} ms a cycle`);
  t.same(idsOf(seen).map(fromOutside), outside, 'as bpftool sees it');
  const drain = ['drain queue', 'drain stack'];
  const { witness } = await bench.witness(t, ...TEN);
  t.same(await held.witness.tell(...drain), await witness.tell(...drain), 'in the same order');
  t.same(zombies(), []);
});

t.test(`${PAIRS} times two dumps at once`, { skip }, async (t) => {
  for (let i = 0; i < PAIRS; i++) {
    const pair = [await bench.witness(t, ...TEN), await bench.witness(t, ...TEN)];
    const before = await Promise.all(pair.map(({ witness }) => witness.see()));
    const done = await Promise.all(pair.map(({ witness, folder }) => dump(witness.pid, folder, bench)));
    for (const { status, log } of done) t.equal(status, 0, errors(log).join('; '));
    for (const [k, held] of pair.entries()) {
      await held.witness.gone();
      await bench.restored(t, held.folder);
      t.same(lasting(await held.witness.see()), lasting(before[k] ?? []), `process ${k + 1}`);
      t.ok(alive(held.witness.pid));
    }
    for (const { witness } of pair) await witness.end();
  }
  t.same(zombies(), []);
  t.same(processesOf(bench.plugin), [], 'no helper is left');
});

t.test('two dumps at once of processes with the same map', { skip }, async (t) => {
  const one = await bench.witness(t, 'map m', 'fill m 10', 'map array type=2', 'fill array 10');
  const before = await one.witness.see();
  const other = await bench.witness(t, ...idsOf(before).map((id, i) => `open ${['m', 'array'][i]} ${id} rw`));
  t.same(await other.witness.see(), before);
  const pair = [one, other];
  await Promise.all(pair.map((held) => bench.dumped(t, held)));
  await bench.freed(idsOf(before));
  for (const { folder } of pair) await bench.restored(t, folder);
  const [mine = [], others = []] = await Promise.all(pair.map(({ witness }) => witness.see()));
  t.same([lasting(mine), lasting(others)], [lasting(before), lasting(before)]);
  t.notOk(
    idsOf(mine).some((id) => idsOf(others).includes(id)),
    'each has its own, as the documentation says of restores',
  );
  t.same(zombies(), []);
  t.same(processesOf(bench.plugin), [], 'no helper is left');
});
