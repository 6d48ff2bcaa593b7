/** Dumps and restores of one process again and again, and of two processes at once: nothing is lost, nothing grows. */
import * as fs from 'node:fs';
import * as path from 'node:path';
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
  zombies,
} from './helpers/criu.js';
import { patience } from './helpers/needs.js';

/** More of both, for a long run. */
const CYCLES = Number(process.env.BPFIMG_CYCLES ?? 25);
const PAIRS = Number(process.env.BPFIMG_PAIRS ?? 5);

t.setTimeout(patience(60_000 + (CYCLES + PAIRS) * 6000));
const skip = await skipWithoutCriu();
const bench = await Bench.set(t.testdir(), skip);

/** Ten maps, of six types. */
const TEN = [
  ...[1, 2, 5, 6, 9]
    .flatMap((type) =>
      ['a', 'b'].flatMap((name) => [`map ${name}${type} type=${type} max=20`, `fill ${name}${type} 10`]),
    )
    .slice(0, 18),
  'map trie type=11 key=8 flags=1 max=20',
  'fill trie 10',
];

/** What could grow with each cycle. */
function sizes({ witness, folder }: Held) {
  const status = fs.readFileSync(`/proc/${witness.pid}/status`, 'latin1');
  // CRIU's own are its own affair.
  const images = fs.readdirSync(folder).filter((name) => name.includes('bpfimg'));
  return {
    fds: fs.readdirSync(`/proc/${witness.pid}/fd`).length,
    images: images.map((name) => [name, fs.statSync(path.join(folder, name)).size]),
    beside: fs.readdirSync(path.dirname(folder)).length,
    mappings: fs.readFileSync(`/proc/${witness.pid}/maps`, 'latin1').split('\n').length,
    rss: Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1]),
  };
}

t.test(`${CYCLES} dumps and restores of one process`, { skip }, async (t) => {
  const held = await bench.witness(t, ...TEN);
  const before = await held.witness.see();
  t.equal(before.length, 10);
  const outside = idsOf(before).map(fromOutside);
  let first: ReturnType<typeof sizes> | undefined;
  let last: ReturnType<typeof sizes> | undefined;
  for (let i = 0; i < CYCLES; i++) {
    const ids = idsOf(await held.witness.see());
    await bench.dumped(t, held);
    await bench.freed(ids);
    await bench.restored(t, held.folder);
    last = sizes(held);
    // The first restore takes the process to what all others make of it.
    first ??= last;
  }
  const after = await held.witness.see();
  t.same(lasting(after), lasting(before), 'from inside');
  t.same(idsOf(after).map(fromOutside), outside, 'as bpftool sees it');
  if (first === undefined || last === undefined) return;
  const { rss, ...rest } = last;
  const { rss: rssFirst, ...restFirst } = first;
  t.same(rest, restFirst, 'open files, mappings, images');
  t.ok(rss < rssFirst + 1024, `memory: ${rssFirst} KiB, then ${rss}`);
  t.same(zombies(), []);
  t.same(processesOf(bench.plugin), [], 'no helper is left');
  t.comment(JSON.stringify({ first, last }));
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
