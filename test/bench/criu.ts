/** How long CRIU has a process frozen, and how much of that its plugin takes. */
import { spawnSync } from 'node:child_process';
import * as path from 'node:path';
import { capture } from '../../src/capture/capture.js';
import { LiveMaps } from '../../src/kernel/live.js';
import { openSys, type Sys } from '../../src/kernel/sys.js';
import { buildPlugin, buildWitness, dump, restore, skipWithoutCriu, Witness } from '../helpers/criu.js';
import { types } from '../helpers/types.js';
import { median } from './measure.js';

export interface CriuRow {
  readonly maps: string;
  /** Milliseconds that the process was frozen. */
  readonly frozen: number;
  /** Milliseconds of the whole dump. */
  readonly dump: number;
  /** Milliseconds of a capture of the same maps by a process that has done it before. */
  readonly capture: number;
  /** Milliseconds of the plugin before the first process is made. */
  readonly replay: number;
}

/** Why this cannot be measured here; undefined when it can. */
export async function criuUnable(): Promise<string | undefined> {
  const why = await skipWithoutCriu();
  return why === false ? undefined : why;
}

/** Maps that a process holds, by what the table calls them, and the most that the plugin may add to the frozen time. */
const HELD: readonly {
  readonly maps: string;
  readonly commands: readonly string[];
  readonly plugin?: false;
}[] = [
  { maps: 'none, CRIU without the plugin', commands: [], plugin: false },
  { maps: 'none', commands: [] },
  ...[1, 10, 200].map((count) => ({
    maps: count === 1 ? '1 hash map of 16 items' : `${count} hash and array maps of 16 items`,
    commands: Array.from({ length: count }, (_, i) => [`map m${i} type=${1 + (i % 2)}`, `fill m${i} 16`]).flat(),
  })),
  {
    maps: '1 hash map of 300,000 items of 16+32 bytes',
    commands: ['map m key=16 value=32 max=300000', 'fill m 300000'],
  },
];

interface Held {
  readonly maps: string;
  readonly witness: Witness;
  readonly folder: string;
  readonly plugin: string | undefined;
  readonly times: Record<'frozen' | 'dump' | 'capture' | 'replay', number>[];
}

/** Dumps and restores processes with different maps, in turn. */
export async function measureCriu(folder: string, runs: number): Promise<CriuRow[]> {
  const program = buildWitness(folder);
  const built = buildPlugin(folder);
  const sys = await openSys(types);
  const ends: (() => unknown)[] = [];
  const all: Held[] = [];
  try {
    for (const [i, { maps, commands, plugin }] of HELD.entries()) {
      const place = path.join(folder, `w${i}`);
      const witness = await Witness.start({ teardown: (end) => ends.push(end) }, program, place);
      if (commands.length > 0) await witness.tell(...commands);
      all.push({ maps, witness, folder: place, plugin: plugin === false ? undefined : built, times: [] });
    }
    for (let i = 0; i < runs; i++) for (const held of all) held.times.push(await once(sys, held, `dump${i}`));
  } finally {
    for (const end of ends) await end();
  }
  return all.map(({ maps, times }) => {
    const middle = (name: keyof Held['times'][number]) => median(times.map((one) => one[name]));
    return {
      maps,
      frozen: middle('frozen'),
      dump: middle('dump'),
      capture: middle('capture'),
      replay: middle('replay'),
    };
  });
}

async function once(sys: Sys, { witness, folder, plugin }: Held, name: string): Promise<Held['times'][number]> {
  const images = path.join(folder, name);
  const options = plugin === undefined ? {} : { plugin };
  const start = performance.now();
  await capture(sys, LiveMaps.ofProcesses(sys, [witness.pid]).maps, `${images}-alone`, types).catch((error) => {
    if (!/nothing to capture/.test(String(error))) throw error;
  });
  const captured = performance.now();
  const dumped = await dump(witness.pid, images, { ...options, more: ['--display-stats'] });
  const done = performance.now();
  if (dumped.status !== 0) throw new Error(`criu dump: ${dumped.status}: ${dumped.log}`);
  await witness.gone();
  const restored = await restore(images, options);
  if (restored.status !== 0) throw new Error(`criu restore: ${restored.status}: ${restored.log}`);
  // The last line about the plugin's hooks, before it begins.
  const replay = plugin === undefined ? 0 : after(restored.log, /\)\s+3 -> 0x/);
  const frozen = Number(/Frozen time: (\d+) us/.exec(dumped.stdout)?.[1]) / 1000;
  return { frozen, dump: done - captured, capture: captured - start, replay };
}

/** Milliseconds between the first line of CRIU's log that matches and the next line; 0 if none does. */
function after(log: string, what: RegExp): number {
  const lines = log.split('\n').filter((line) => /^\(\d/.test(line));
  const at = lines.findIndex((line) => what.test(line));
  const [from = 0, to = 0] = [at, at + 1].map((i) => Number(/^\((\d+\.\d+)\)/.exec(lines[i] ?? '')?.[1]));
  return at < 0 ? 0 : (to - from) * 1000;
}

/** Milliseconds that starting Node takes. */
export function nodeStart(runs: number): number {
  const times = Array.from({ length: runs }, () => {
    const start = performance.now();
    spawnSync(process.execPath, ['-e', '0']);
    return performance.now() - start;
  });
  return median(times);
}
