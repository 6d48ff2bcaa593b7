/** Inner maps that are replaced while they are captured, as load balancers do it. */

import { spawn, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { plugins } from '../plugins/index.js';
import { capture } from '../src/capture/capture.js';
import { LiveMaps } from '../src/kernel/live.js';
import { BpfMap } from '../src/kernel/map.js';
import { openSys } from '../src/kernel/sys.js';
import { MapTypes } from '../src/maptype.js';
import { dataOf } from './helpers/capture.js';
import { BPFIMG, bpfimg, workFolder } from './helpers/command.js';
import { bpffs, fdCount, fillNumbers, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import { types } from './helpers/types.js';

const skip = await skipWithoutMaps();
const sys = await openSys(types);

t.setTimeout(patience(300_000));
const cwd = workFolder();
t.teardown(() => fs.rmSync(cwd, { recursive: true }));

const INNER = { type: 1, keySize: 4, valueSize: 4, maxEntries: 4, name: 'backends' };
const SLOTS = 64;
const OUTER = [
  { type: 12, name: 'slots' },
  { type: 13, name: 'table' },
] as const;

interface Row {
  readonly map_id: number;
  readonly name: string;
  readonly items: number;
  readonly report: string;
}

/** A process that replaces inner maps; `stop` resolves with how many. */
async function replacer(outer: BpfMap, pause: number): Promise<{ stop(): Promise<number> }> {
  const file = fileURLToPath(new URL('./helpers/inner-replacer.js', import.meta.url));
  const task = JSON.stringify({ outer: outer.id, slots: SLOTS, pause });
  const child = spawn(process.execPath, [file, task], { stdio: ['pipe', 'pipe', 'inherit'] });
  let said = '';
  await new Promise<void>((resolve) => {
    child.stdout.on('data', (text) => {
      said += text;
      resolve();
    });
  });
  return {
    async stop() {
      const end = new Promise((resolve) => child.once('close', resolve));
      child.stdin.end();
      await end;
      return Number(said.split('\n')[1]);
    },
  };
}

function outerMap(spec: { readonly type: number; readonly name: string }): BpfMap {
  using template = BpfMap.create(sys, INNER);
  return BpfMap.create(sys, { ...spec, keySize: 4, valueSize: 4, maxEntries: SLOTS, flags: 0, inner: template });
}

/** What is wrong with a dump of an outer map: ids that lead nowhere, and inner maps of another slot. */
function faults(folder: string, outer: BpfMap): string[] {
  const data = new Map(dataOf(folder).map((one) => [one.mapId, one]));
  const { keys = [], values = [] } = data.get(outer.id) ?? {};
  return keys.flatMap((key, i) => {
    const id = Buffer.from(values[i] as string, 'hex').readUInt32LE();
    const inner = data.get(id);
    if (inner === undefined) return [`${key}: ${id} is not in the dump`];
    return inner.values[0] === key ? [] : [`${key}: ${id} has ${inner.values}`];
  });
}

for (const spec of OUTER) {
  for (const pause of [10, 0]) {
    const speed = pause === 0 ? 'as fast as possible' : `every ${pause} ms`;
    t.test(`inner maps of ${spec.name} replaced ${speed}: nothing dangles, nothing else fails`, { skip }, async (t) => {
      using outer = outerMap(spec);
      using other = BpfMap.create(sys, { ...INNER, name: 'other', maxEntries: 100 });
      fillNumbers(other, 100);
      const before = fdCount();
      const { stop } = await replacer(outer, pause);
      let [whole, rounds, lost] = [0, 0, 0];
      // Captures may be much faster than the replacer, which has to come around.
      const enough = Date.now() + patience(pause * SLOTS * 3);
      try {
        for (; rounds < 6 || Date.now() < enough; rounds++) {
          const live = LiveMaps.look(sys);
          const maps = live.select({ ids: [other.id, outer.id], names: [], pins: [], pids: [] });
          // With --all, those that are there just now are asked for as well.
          const inner = rounds % 2 === 0 ? [] : live.maps.filter(({ name }) => name === 'backends');
          const dir = path.join(cwd, 'dump');
          const rows = await capture(sys, [...inner, ...maps], dir, types, {
            force: true,
            lenient: rounds % 2 === 1,
            find: (id) => live.maps.find((map) => map.id === id),
          });
          t.match(
            rows.find(({ id }) => id === other.id),
            { items: 100, report: { kind: 'full' } },
          );
          const row = rows.find(({ id }) => id === outer.id);
          t.equal(row?.items, SLOTS);
          const wrong = faults(dir, outer);
          if (row?.report.kind === 'full') whole++;
          else t.match(row?.report, { kind: 'partial', why: /^its inner maps? [\d, ]+(and \d+ more )?(is|are) gone$/ });
          t.equal(wrong.length === 0, row?.report.kind === 'full', wrong.join());
          lost += wrong.length;
        }
      } finally {
        const replaced = await stop();
        t.ok(
          replaced > SLOTS + 20,
          `${replaced} replaced, ${whole} of ${rounds} captures were whole, ${lost} items lost`,
        );
      }
      if (pause > 0) t.equal(whole, rounds);
      t.equal(fdCount(), before);
    });
  }
}

t.test('an inner map that is gone is reported with the outer map, and can be skipped', { skip }, async (t: Test) => {
  const { folder, remove } = bpffs();
  t.teardown(remove);
  using one = BpfMap.create(sys, INNER);
  using outer = outerMap({ type: 12, name: 'outer' });
  for (const slot of [1, 2, 5]) outer.update(u32(slot), u32(one.fd));
  fillNumbers(one, 3);
  // As if the one in slot 2 were gone whenever it is looked for, though the slot has it.
  const losing = new MapTypes([
    ...plugins,
    {
      name: 'losing',
      types: [types.get(12)],
      async capture(map, sink, work) {
        const gone = 0x7000_0000;
        const altered = {
          get count() {
            return sink.count;
          },
          put: (keys: Uint8Array, values: Uint8Array, count: number) => {
            Buffer.from(values.buffer, values.byteOffset).writeUInt32LE(gone, 4);
            return sink.put(keys, values, count);
          },
        };
        const ids = new Set<number>([gone]);
        work.follow(gone);
        const leadsTo = (others: ReadonlySet<number>) => work.innerMaps(new Set([...others, ...ids]));
        return (await types.plugin(12).capture?.(map, altered, { ...work, innerMaps: leadsTo })) ?? { kind: 'full' };
      },
    },
  ]);
  const dir = path.join(cwd, 'lost');
  const maps = LiveMaps.look(sys).select({ ids: [outer.id], names: [], pins: [], pids: [] });
  const rows = await capture(sys, maps, dir, losing);
  const report = { kind: 'partial', why: `its inner map ${0x7000_0000} is gone` };
  t.match(rows, [
    { id: outer.id, report },
    { id: one.id, report: { kind: 'full' } },
  ]);
  t.match(bpfimg(['decode', dir]).stdout, `"report":"partial: its inner map ${0x7000_0000} is gone"`);

  const pin = path.join(folder, 'fresh');
  const refers = `inner map ${0x7000_0000}, which is not in the dump`;
  t.match(bpfimg(['replay', dir, '--pin', pin]), {
    status: 1,
    stderr: `bpfimg: map ${outer.id} (outer), item 02000000: it refers to ${refers}; --unresolved skip leaves such items out\n`,
  });
  const dry = ['replay', dir, '--dry-run'];
  t.match(bpfimg(dry), { status: 1, stderr: /inner maps that are not in the dump: 1879048192\n$/ });
  t.match(bpfimg([...dry, '--unresolved', 'skip']), { status: 0, stderr: '' });
  const { stdout, status } = bpfimg(['replay', dir, '--pin', pin, '--unresolved', 'skip', '--json']);
  t.equal(status, 0);
  const made = (JSON.parse(stdout) as { maps: Row[] }).maps.find(({ name }) => name === 'outer');
  t.match(made?.report, `1 item refers to objects that this host does not have: 02000000 to ${refers}`);
  using fresh = BpfMap.openPinned(sys, path.join(pin, 'outer'));
  const there = [0, 1, 2, 3, 4, 5].filter((slot) => fresh.lookup(u32(slot)) !== undefined);
  t.same(there, [1, 5]);
});

t.test('a kernel without BTF: inner maps that nothing else holds', { skip }, async (t) => {
  const { folder, remove } = bpffs();
  t.teardown(remove);
  for (const spec of OUTER) {
    const inner = BpfMap.create(sys, INNER);
    using outer = outerMap(spec);
    outer.update(u32(2), u32(inner.fd));
    fillNumbers(inner, 3);
    const { id } = inner;
    inner.close();
    const pin = path.join(folder, spec.name);
    outer.pin(pin);
    for (const more of [[], ['--id', String(id)]]) {
      const dir = `btf-${spec.name}-${more.length}`;
      const hidden = '[ ! -d /sys/kernel/btf ] || mount -t tmpfs none /sys/kernel/btf && exec "$@"';
      const words = ['capture', '--pinned', pin, ...more, '-D', dir, '--json'];
      const line = ['--mount', 'sh', '-c', hidden, 'sh', process.execPath, BPFIMG, ...words];
      const { status, stdout, stderr } = spawnSync('unshare', line, { cwd, encoding: 'utf8' });
      t.equal(status, 0, stderr + stdout);
      const rows = (JSON.parse(stdout) as { maps: Row[] }).maps;
      t.match(
        rows.find((row) => row.map_id === id),
        { name: 'backends', items: 3, report: 'full' },
      );
      t.match(bpfimg(['replay', path.join(cwd, dir), '--dry-run']), { status: 0, stderr: '' });
    }
  }
});

t.test('more inner maps than files may be open', { skip }, async (t) => {
  const COUNT = 400;
  using template = BpfMap.create(sys, INNER);
  using outer = BpfMap.create(sys, {
    type: 13,
    keySize: 4,
    valueSize: 4,
    maxEntries: COUNT,
    name: 'many',
    inner: template,
  });
  for (let i = 0; i < COUNT; i++) {
    using inner = BpfMap.create(sys, INNER);
    inner.update(u32(0), u32(i));
    outer.update(u32(i), u32(inner.fd));
  }
  const dir = path.join(cwd, 'many');
  const line = 'unset NODE_OPTIONS; ulimit -n 150; exec "$@"';
  const args = [process.execPath, BPFIMG, 'capture', '--id', String(outer.id), '-D', dir, '--json'];
  const { status, stdout, stderr } = spawnSync('bash', ['-c', line, 'bash', ...args], { encoding: 'utf8' });
  t.same([status, stderr], [0, '']);
  const { maps } = JSON.parse(stdout) as { maps: Row[] };
  t.equal(maps.length, 1 + COUNT);
  t.same(
    maps.filter(({ report }) => report !== 'full'),
    [],
  );
  t.same(faults(dir, outer), []);
});

t.test('every file descriptor was closed', { skip }, async (t) => {
  t.same(sys.openFds(), []);
});
