/** How long CRIU has a process frozen, and how much of that its plugin takes. */
import { spawnSync } from 'node:child_process';
import * as path from 'node:path';
import { buildPlugin, buildWitness, dump, restore, skipWithoutCriu, Witness } from '../helpers/criu.js';
import { median } from './measure.js';

export interface CriuRow {
  readonly maps: string;
  /** Milliseconds that the process was frozen. */
  readonly frozen: number;
  /** Milliseconds of the first hook, within which all maps are captured. */
  readonly capture: number;
  /** Milliseconds of the plugin before the first process is made. */
  readonly replay: number;
}

/** Why this cannot be measured here; undefined when it can. */
export async function criuUnable(): Promise<string | undefined> {
  const why = await skipWithoutCriu();
  return why === false ? undefined : why;
}

/** Maps that a process holds, by what the table calls them. */
const HELD: readonly (readonly [name: string, ...commands: string[]])[] = [
  ['none'],
  ...[1, 10, 200].map((count): [string, ...string[]] => [
    count === 1 ? '1 hash map of 16 items' : `${count} hash and array maps of 16 items`,
    ...Array.from({ length: count }, (_, i) => [`map m${i} type=${1 + (i % 2)}`, `fill m${i} 16`]).flat(),
  ]),
  ['1 hash map of 300,000 items of 16+32 bytes', 'map m key=16 value=32 max=300000', 'fill m 300000'],
];

/** Dumps and restores a process in turn, with different maps. */
export async function measureCriu(folder: string, runs: number): Promise<CriuRow[]> {
  const program = buildWitness(folder);
  const plugin = buildPlugin(folder);
  const rows: CriuRow[] = [];
  for (const [maps, ...commands] of HELD) {
    const ends: (() => unknown)[] = [];
    const witness = await Witness.start({ teardown: (end) => ends.push(end) }, program, path.join(folder, maps));
    try {
      await witness.tell(...commands);
      const times: { frozen: number; capture: number; replay: number }[] = [];
      for (let i = 0; i < runs; i++) {
        const images = path.join(folder, maps, `dump${i}`);
        const dumped = await dump(witness.pid, images, { plugin, more: ['--display-stats'] });
        if (dumped.status !== 0) throw new Error(`criu dump: ${dumped.status}: ${dumped.log}`);
        await witness.gone();
        const restored = await restore(images, { plugin });
        if (restored.status !== 0) throw new Error(`criu restore: ${restored.status}: ${restored.log}`);
        const frozen = Number(/Frozen time: (\d+) us/.exec(dumped.stdout)?.[1]) / 1000;
        const hook = /plugin: `bpfimg' hook 2/;
        // The last line about the plugin's hooks, before it begins.
        const start = /\)\s+3 -> 0x/;
        times.push({ frozen, capture: after(dumped.log, hook), replay: after(restored.log, start) });
      }
      const middle = (name: 'frozen' | 'capture' | 'replay') => median(times.map((one) => one[name]));
      rows.push({ maps, frozen: middle('frozen'), capture: middle('capture'), replay: middle('replay') });
    } finally {
      for (const end of ends) await end();
    }
  }
  return rows;
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
