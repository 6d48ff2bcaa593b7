/**
 * `npm run bench`: the budgets, as Markdown on standard output.
 *
 *     npm run --silent bench -- [--quick] [--live] [--into] [--criu] [--size MIB]
 *
 * `--live` measures capture and replay of live maps and nothing else, `--into` replays into maps that exist, `--criu` the
 * CRIU plugin.
 */
import { spawnSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { parseArgs } from 'node:util';
import { BPFMAP_DATA } from '../../src/image/kinds.js';
import { encodeMessage } from '../../src/image/wire.js';
import { writeHead, writeMessage } from '../../src/image/writer.js';
import { openOutput } from '../../src/io/output.js';
import { BPFIMG, TOP } from '../helpers/command.js';
import { criuUnable, measureCriu, nodeStart } from './criu.js';
import {
  KINDS,
  type LiveRow,
  measureFixed,
  measureInto,
  measureKinds,
  measureSources,
  measureTyped,
  unable,
} from './live.js';
import { inTurn, type Measured, median, run, sameFiles } from './measure.js';

const { values: options } = parseArgs({
  options: {
    quick: { type: 'boolean' },
    live: { type: 'boolean' },
    into: { type: 'boolean' },
    criu: { type: 'boolean' },
    size: { type: 'string' },
  },
});
// Node reads these certificates whenever it starts, which takes longer than all else of it and would flatter ratios.
delete process.env.NODE_EXTRA_CA_CERTS;
const quick = options.quick === true;
const size = Number(options.size ?? (quick ? 64 : 1024));
if (!Number.isInteger(size) || size < 1) throw new Error('--size: a whole number of MiB');

const MIB = 1024 * 1024;
const folder = fs.mkdtempSync(path.join(process.env.TMPDIR ?? '/var/tmp', 'bpfimg-bench-'));
process.on('exit', () => fs.rmSync(folder, { recursive: true, force: true }));
process.on('SIGINT', () => process.exit(130));
const json = path.join(folder, 'out.json');
const again = path.join(folder, 'again.img');

function line(...cells: readonly (string | number)[]): void {
  process.stdout.write(`| ${cells.join(' | ')} |\n`);
}

function table(title: string, ...heads: readonly string[]): void {
  process.stdout.write(`\n### ${title}\n\n`);
  line(...heads);
  line(...heads.map((_, i) => (i === 0 ? '---' : '---:')));
}

const seconds = (ms: number) => (ms / 1000).toFixed(2);
const mib = (peak: number) => peak.toFixed(0);

/** An image of BPF map data: `maps` maps of `count` items each. */
async function dataImage(
  name: string,
  maps: number,
  count: number,
  keySize: number,
  valueSize: number,
): Promise<string> {
  const image = path.join(folder, name);
  const out = await openOutput(image);
  const noise = randomFillSync(Buffer.alloc(MIB));
  writeHead(out, BPFMAP_DATA);
  for (let map = 1; map <= maps; map++) {
    const header = { map_id: map, keys_bytes: count * keySize, values_bytes: count * valueSize, count };
    writeMessage(out, encodeMessage(BPFMAP_DATA.message, header));
    for (let left = count * (keySize + valueSize); left > 0; left -= noise.length) {
      out.write(noise.subarray(0, Math.min(left, noise.length)));
      await out.turn();
    }
  }
  await out.commit();
  return image;
}

/** Runs something several times: the median time, the largest peak. */
async function repeat(runs: number, what: () => Promise<Measured>): Promise<Measured> {
  const all: Measured[] = [];
  for (let i = 0; i < runs; i++) all.push(await what());
  return { ms: median(all.map(({ ms }) => ms)), peak: Math.max(...all.map(({ peak }) => peak)) };
}

const words = process.argv.slice(2).join(' ');
const [cpu] = os.cpus();
const family = (cpu?.model ?? 'unknown CPU').replace(/\s*((\d+-Core|Processor|CPU)\b|[@(]).*$/i, '');
process.stdout.write(
  `${family}, ${os.cpus().length} cores; Linux ${os.release().split('.', 2).join('.')}; Node ${process.version}; ` +
    `\`npm run bench${words === '' ? '' : ` -- ${words}`}\`\n`,
);

// ---------------------------------------------------------------------------------------------------
if (!options.live && !options.into && !options.criu) {
  const runs = quick ? 15 : 41;
  const flowd = path.join(TOP, 'fixtures/flowd');
  table('Start-up', 'command', 'ms', '`node -e 0`, ms', 'ratio', 'budget');
  const commands: [string, readonly string[], Uint8Array?][] = [
    ['bpfimg info inventory.img', ['info', path.join(flowd, 'inventory.img')]],
    ['bpfimg decode pstree.img', ['decode', path.join(flowd, 'pstree.img')]],
    ['bpfimg decode inventory.img', ['decode', path.join(flowd, 'inventory.img')]],
    [
      'bpfimg --no-color decode --no-pretty -i pstree.img',
      ['--no-color', 'decode', '--no-pretty', '-i', path.join(flowd, 'pstree.img')],
    ],
    ['bpfimg show bpfmap-data.img', ['show', path.join(flowd, 'bpfmap-data.img')]],
    ['bpfimg verify bpfmap-data.img', ['verify', path.join(flowd, 'bpfmap-data.img')]],
  ];
  const decoded = spawnSync(BPFIMG, ['decode', path.join(flowd, 'pstree.img')]).stdout;
  commands.push(['bpfimg encode < pstree.json', ['encode'], decoded]);
  for (const [name, args, input] of commands) {
    const { ms, base, ratio } = inTurn([BPFIMG, ...args], ['node', '-e', '0'], runs, input);
    line(`\`${name}\``, ms.toFixed(0), base.toFixed(0), ratio.toFixed(2), args[0] === 'encode' ? '' : '≤ 1.7');
  }
  process.stdout.write(`\nMedians of ${runs} runs in turn; the ratio is the median of the ratios pair by pair.\n`);
}

// ---------------------------------------------------------------------------------------------------
if (!options.live && !options.into && !options.criu) {
  const runs = quick ? 1 : 3;
  const maps = 4;
  const image = await dataImage('data.img', maps, Math.ceil((size * MIB) / maps / 80), 16, 64);
  const bytes = fs.statSync(image).size;
  const speed = (ms: number) => (bytes / 1000 / ms).toFixed(0);
  table(`${size} MiB of BPFMAP_DATA (16+64 bytes an item)`, 'work', 's', 'MB/s of image', 'peak MiB', 'budget');
  // First, so that it and our own decoding to the same JSON follow each other on a machine whose speed drifts.
  const python = spawnSync('crit', ['--help']).status === 0;
  const crit = python ? await run(['crit', 'decode', '-i', image], undefined, json) : undefined;
  let note = 'Python crit is not installed (Debian: package criu): not compared.';
  for (const dialect of ['crit', 'items', 'ndjson']) {
    const decode = await repeat(runs, () => run([BPFIMG, 'decode', '--format', dialect, image], undefined, json));
    line(`decode to ${dialect}`, seconds(decode.ms), speed(decode.ms), mib(decode.peak), '≤ 200 MiB');
    const encode = await repeat(runs, () => run([BPFIMG, 'encode', json], undefined, again));
    if (!sameFiles(image, again)) throw new Error(`${dialect}: the image that came back is another one`);
    line(`encode from ${dialect}`, seconds(encode.ms), speed(encode.ms), mib(encode.peak), '≤ 200 MiB');
    fs.rmSync(json);
    fs.rmSync(again);
    if (crit === undefined || dialect !== 'crit') continue;
    const [d, e] = [crit.ms / decode.ms, crit.ms / encode.ms].map((ratio) => ratio.toFixed(1));
    note = `Against Python crit's decode: decoding to crit's JSON ${d} times as fast, encoding ${e} times (budget: ≥ 10).`;
  }
  if (crit) line('Python `crit decode`', seconds(crit.ms), speed(crit.ms), mib(crit.peak), '');
  process.stdout.write(
    `\n${note}\nMedian of ${runs === 1 ? 'one run' : `${runs} runs`} (crit: one), largest peak (VmHWM); ` +
      'output to a file; each encoded image was compared with the first.\n',
  );
  fs.rmSync(image);
}

// ---------------------------------------------------------------------------------------------------
if (!options.live && !options.into && !options.criu) {
  const runs = quick ? 1 : 5;
  const count = quick ? 100_000 : 1_000_000;
  const image = await dataImage('items.img', 1, count, 16, 64);
  const budget = quick ? '' : '≤ 1.5 s, ≤ 200 MiB';
  table(`${count.toLocaleString('en')} items of 16+64 bytes`, 'work', 's', 'peak MiB', 'budget');
  for (const dialect of ['items', 'ndjson']) {
    const decode = await repeat(runs, () => run([BPFIMG, 'decode', '--format', dialect, image], undefined, json));
    line(`decode to ${dialect}`, seconds(decode.ms), mib(decode.peak), budget);
    const encode = await repeat(runs, () => run([BPFIMG, 'encode', json], undefined, again));
    if (!sameFiles(image, again)) throw new Error(`${dialect}: the image that came back is another one`);
    line(`encode from ${dialect}`, seconds(encode.ms), mib(encode.peak), '');
  }
  process.stdout.write(`\nMedian of ${runs === 1 ? 'one run' : `${runs} runs`}, largest peak.\n`);
}

// ---------------------------------------------------------------------------------------------------
if (!options.into && !options.criu) {
  const why = unable();
  const part = quick ? 10 : 1;
  const runs = quick ? 3 : 9;
  const title = (count: number) => `${(count / part).toLocaleString('en')} items`;
  const measured = async (name: string, what: string, measuring: Promise<LiveRow[]>) => {
    const rows = await measuring;
    const two = rows.some(({ both }) => both !== undefined);
    table(name, 'work', 's', `${what}, s`, 'ratio', ...(two ? ['of two threads'] : []), 'peak MiB', 'budget');
    for (const { work, ms, reference = 0, ratio = 0, both = 0, peak, budget = 0 } of rows) {
      const ratios = [ratio, ...(two ? [both] : [])].map((one) => one.toFixed(2));
      line(work, seconds(ms), seconds(reference), ...ratios, mib(peak), `≤ ${budget.toFixed(2)}, ≤ 200 MiB`);
    }
  };
  if (why === undefined) {
    const { large, many, slow } = KINDS;
    await measured('Small live maps', '`node -e 0`', measureFixed(folder, runs));
    await measured(title(1e6), 'C', measureKinds(folder, large(1e6 / part, 0.7, 0.75), runs));
    await measured(title(8e6), 'C', measureKinds(folder, large(8e6 / part, 0.55, 0.6), runs));
    await measured(`${title(1e6)}, one CPU busy`, 'C', measureKinds(folder, large(1e6 / part, 1, 1), runs, true));
    await measured('Many maps of 100 items', 'C', measureKinds(folder, many(1000 / part), runs));
    await measured('Slow types', 'C', measureKinds(folder, slow(200_000 / part), runs));
    const typed = measureTyped(folder, 1e6 / part, quick ? 1 : 5);
    await measured(`${title(1e6)} with types, to JSON`, '`bpftool -j map dump`', typed);
  }
  if (why === undefined) {
    const count = quick ? 100_000 : 1_000_000;
    table(`Sources, ${count.toLocaleString('en')} items`, 'work', 's', 'reference, s', 'ratio', 'peak MiB', 'budget');
    const budgets = ['', '', '≤ 1.3', '≤ 1 s'];
    for (const [i, row] of (await measureSources(folder, count, quick ? 3 : 9)).entries()) {
      const [reference, ratio] = [row.reference ?? 0, row.ratio ?? 0];
      line(row.work, seconds(row.ms), seconds(reference), ratio.toFixed(2), mib(row.peak), budgets[i] as string);
    }
  }
  process.stdout.write(
    why === undefined
      ? '\nC is `test/bench/reference.c`: one thread, LOOKUP_BATCH or UPDATE_BATCH, 4096 items a call, nothing synced; ' +
          '*of two threads* is the ratio of two such threads, of which each has half of the items. ' +
          'Medians of runs in turn; the ratio is the median of the ratios pair by pair; largest peak.\n'
      : `\nLive maps were not measured: ${why}.\n`,
  );
}

// ---------------------------------------------------------------------------------------------------
if (!options.live && !options.criu && unable() === undefined) {
  const count = quick ? 100_000 : 1_000_000;
  table(
    `Into maps that exist, ${count.toLocaleString('en')} items`,
    'target',
    's',
    'C, s',
    'ratio',
    'peak MiB',
    'budget',
  );
  for (const { work, ms, reference = 0, ratio = 0, peak } of await measureInto(folder, count, quick ? 3 : 7)) {
    const budget = quick ? '' : `≤ ${work.includes('--like') ? 3 : 1}, ≤ 200 MiB`;
    line(work, seconds(ms), seconds(reference), ratio.toFixed(2), mib(peak), budget);
  }
  process.stdout.write('\nC writes all items, whatever is there. Medians of runs in turn, as above.\n');
}

// ---------------------------------------------------------------------------------------------------
if (!options.live && !options.into) {
  const why = await criuUnable();
  if (why === undefined) {
    const runs = quick ? 3 : 31;
    const rows = await measureCriu(folder, runs);
    const none = rows.find(({ maps }) => maps === 'none')?.frozen ?? 0;
    table('A process that CRIU dumps and restores', 'maps', 'frozen, ms', 'added', 'budget', 'dump, ms', 'replay, ms');
    for (const { maps, frozen, dump, capture, replay } of rows) {
      const budget = /^none/.test(maps)
        ? ''
        : /300,000/.test(maps)
          ? `≤ 1.3 × capture: ${(1.3 * capture).toFixed(0)}`
          : `≤ ${/200/.test(maps) ? 60 : 15}`;
      const ms = [dump, replay].map((time) => time.toFixed(0));
      line(maps, frozen.toFixed(0), /^none/.test(maps) ? '' : (frozen - none).toFixed(0), budget, ...ms);
    }
    process.stdout.write(
      `\nMedians of ${runs} dumps and restores of each in turn; \`node -e 0\` takes ${nodeStart(runs).toFixed(0)} ms. Frozen is ` +
        'what CRIU says; added is what is more than without maps; replay is the work before the first process is made.\n',
    );
  } else process.stdout.write(`\nThe CRIU plugin was not measured: ${why}.\n`);
}
