/** Maps of real software while it runs: bpftrace counts, draws histograms and takes stacks; bpftool is the witness. */
import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import t from 'tap';
import { mapsOfProcess } from '../src/kernel/proc.js';
import { dataOf } from './helpers/capture.js';
import { skipWithout } from './helpers/crit.js';
import { bpffs, bpftool, skipWithoutMaps } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import { cli } from './helpers/replay.js';

t.setTimeout(patience(60_000));

/** Events that are counted; then the maps stay as they are while the script runs on. */
const EVENTS = 40;

/** Every kind of map that bpftrace makes: per-CPU hashes and an array, plain hashes, stacks, its output. */
const SCRIPT = `
BEGIN { @text = "hello"; @started = nsecs; }
profile:hz:199 /@n < ${EVENTS}/ {
  @ticks = count();
  @by[cpu, comm] = sum(nsecs % 7);
  @low = min(nsecs % 1000);
  @mean = avg(nsecs % 1000);
  @last[cpu] = nsecs;
  @sizes[pid] = hist(nsecs % 1000);
  @steps = lhist(nsecs % 100, 0, 100, 10);
  @kernel[kstack(3)] = count();
  @user[ustack(3)] = count();
  @n++;
}`;

interface Row {
  readonly map_id: number;
  readonly new_id?: number;
  readonly name: string;
  readonly type: string;
  readonly items: number;
  readonly report: string;
  readonly pin?: string;
}

/** What bpftool says of a map's items, in an order of their own. */
function dumped(...which: readonly string[]): string[] {
  return (bpftool('map', 'dump', ...which) as unknown[]).map((item) => JSON.stringify(item)).sort();
}

const bytes = (hex: readonly string[]) => hex.map((byte) => byte.slice(2)).join('');
const told = (stdout: string) => (JSON.parse(stdout) as { maps: Row[] }).maps;

const skip = (await skipWithoutMaps()) || skipWithout('bpftrace');

t.test('bpftrace: captured while it runs, replayed', { skip }, async (t) => {
  const folder = t.testdir({ 'script.bt': SCRIPT });
  const output = path.join(folder, 'output');
  const pins = bpffs();
  const child = spawn('bpftrace', ['-f', 'json', '-o', output, path.join(folder, 'script.bt')], { stdio: 'ignore' });
  const ended = new Promise((resolve) => child.once('close', resolve));
  t.teardown(async () => {
    child.kill('SIGKILL');
    await ended;
    pins.remove();
  });
  const pid = child.pid as number;
  const counted = () => {
    const maps = mapsOfProcess(pid);
    for (const { map } of Array.isArray(maps) ? maps : []) {
      const { name } = bpftool('map', 'show', 'id', String(map.id)) as { name: string };
      const [item] = name === 'AT_n' ? (bpftool('map', 'dump', 'id', String(map.id)) as { value: string[] }[]) : [];
      if (item !== undefined) return Buffer.from(bytes(item.value), 'hex').readUInt32LE();
    }
    return 0;
  };
  while (child.exitCode === null && counted() < EVENTS) await wait(50);
  t.equal(child.exitCode, null, 'bpftrace runs');
  // An event on another CPU may have begun before the last one was counted.
  await wait(100);

  const dump = path.join(folder, 'dump');
  const captured = await cli(['capture', '--pid', String(pid), '-D', dump, '--json']);
  t.equal(captured.status, 0, captured.stderr);
  const rows = told(captured.stdout);
  const names = ['by', 'kernel', 'last', 'low', 'mean', 'n', 'sizes', 'started', 'steps', 'text', 'ticks', 'user'];
  const kinds = new Set(rows.map(({ type }) => type));
  t.same(
    rows.flatMap(({ name }) => (name.startsWith('AT_') ? [name.slice(3)] : [])).sort(),
    names,
    'all of the script',
  );
  t.same(
    [...kinds].sort(),
    ['hash', 'percpu_array', 'percpu_hash', 'perf_event_array', 'stack_trace'],
    'all kinds of maps',
  );
  const live = new Map(rows.map(({ map_id }) => [map_id, dumped('id', String(map_id))]));
  const data = new Map(dataOf(dump).map((one) => [one.mapId, one]));

  // While bpftrace goes on: what follows is of the images alone.
  const replayed = await cli(['replay', dump, '--pin', path.join(pins.folder, 'fresh'), '--verify', '--json']);
  t.equal(replayed.status, 0, replayed.stderr);
  for (const { map_id: id, name, type, items, report } of rows) {
    const fresh = told(replayed.stdout).find((one) => one.map_id === id) as Row;
    const now = dumped('pinned', fresh.pin as string);
    const text = `${name} (${type})`;
    if (type === 'perf_event_array') {
      t.match([report, fresh.report], [/^metadata only: lost: perf events/, /^metadata only: lost: perf events/], text);
      continue;
    }
    t.equal(report, 'full', text);
    if (type === 'stack_trace') {
      const seen = live.get(id)?.map((item) => {
        const { key, value } = JSON.parse(item) as { key: string[]; value: string[] };
        return [bytes(key), bytes(value)];
      });
      const { keys = [], values = [] } = data.get(id) ?? {};
      t.same(keys.map((key, i) => [key, values[i]]).sort(), seen?.sort(), `${text}: the image has the stacks`);
      t.same(
        [now, fresh.report],
        [
          [],
          'metadata only: lost: stacks: only the kernel writes them, and their addresses mean nothing after a reboot',
        ],
      );
      continue;
    }
    t.ok(items > 0, `${text}: ${items} items`);
    t.same(now, live.get(id), `${text}: the same items`);
  }

  // And what bpftrace itself makes of its maps in the end.
  child.kill('SIGINT');
  await ended;
  const printed = fs.readFileSync(output, 'utf8').matchAll(/^\{"type": "map", "data": (\{"@(\w+)".*\})\}$/gm);
  const said = new Map([...printed].map(([, json = '', name = '']) => [name, JSON.parse(json)[`@${name}`] as unknown]));
  const ticks = data.get(rows.find(({ name }) => name === 'AT_ticks')?.map_id as number)?.values[0] ?? '';
  const each = Array.from({ length: ticks.length / 16 }, (_, cpu) =>
    Number(Buffer.from(ticks.slice(16 * cpu, 16 * (cpu + 1)), 'hex').readBigUInt64LE()),
  );
  t.equal(
    each.reduce((sum, one) => sum + one, 0),
    said.get('ticks'),
    `${said.get('ticks')} events over all CPUs`,
  );
  const text = data.get(rows.find(({ name }) => name === 'AT_text')?.map_id as number)?.values[0] ?? '';
  t.equal(Buffer.from(text, 'hex').toString().replace(/\0.*/s, ''), said.get('text'));
});
