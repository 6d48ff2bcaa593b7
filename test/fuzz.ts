/**
 * Breaks inputs for as long as one likes: `npm run fuzz -- [KIND…] [--seconds N] [--seed N] [--count N]`, where a
 * KIND is one of {@link KINDS}, by default all of them in turn.
 *
 * Every case has its own seed. A failure leaves the input in a temporary folder, prints how to come back to
 * it, and ends with 1.
 */
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { parseArgs } from 'node:util';
import type { Fuzzer } from './helpers/fuzz-case.js';
import { fuzzDocuments } from './helpers/fuzz-documents.js';
import { fuzzDumps } from './helpers/fuzz-dumps.js';
import { fuzzReplays } from './helpers/fuzz-replays.js';
import { fuzzTypes } from './helpers/fuzz-types.js';
import { goodTexts, mutateImage, mutateJson, tryImage, tryJson } from './helpers/mutate.js';
import { Random } from './helpers/random.js';

/** A case that needs more time of the CPU counts as a hang. Time on the clock would count what others do. */
const MOST_MS = 5000;
const MOST_RSS = 400 * 1024 * 1024;

const KINDS: Readonly<Record<string, () => Fuzzer | Promise<Fuzzer>>> = {
  /** Single images, decoded in every form. */
  images: () => (random, seed) => {
    const image = mutateImage(random);
    return { files: { 'x.img': image }, run: () => tryImage(image, seed) };
  },
  /** JSON of single images, encoded. */
  texts: async () => {
    const texts = await goodTexts();
    return (random) => {
      const text = mutateJson(texts, random);
      return { files: { 'x.json': text }, run: () => tryJson(text) };
    };
  },
  /** Dump folders, verified, decoded, planned and encoded again. */
  dumps: fuzzDumps,
  /** Maps documents, encoded and decoded again. */
  documents: fuzzDocuments,
  /** Dump folders, by `verify` and by replay. */
  replays: () => fuzzReplays(),
  /** BTF and the objects it comes in. */
  types: fuzzTypes,
};

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { seconds: { type: 'string' }, seed: { type: 'string' }, count: { type: 'string' } },
});
const first = Number(values.seed ?? Math.floor(Math.random() * 0x40000000));
const until = values.seconds === undefined ? Number.POSITIVE_INFINITY : Date.now() + Number(values.seconds) * 1000;
const count = Number(values.count ?? Number.POSITIVE_INFINITY);
const say = (line: string) => process.stdout.write(`${line}\n`);

const fuzzers: { readonly name: string; readonly make: Fuzzer; taken: number }[] = [];
for (const name of positionals.length > 0 ? positionals : Object.keys(KINDS)) {
  const start = KINDS[name];
  if (start === undefined) {
    say(`${name}: unknown, expected ${Object.keys(KINDS).join(', ')}`);
    process.exit(2);
  }
  fuzzers.push({ name, make: await start(), taken: 0 });
}

let turn = 0;
let told = Date.now();

const report = () => {
  const most = process.resourceUsage().maxRSS >> 10;
  const taken = fuzzers.map(({ name, taken }) => `${taken} ${name}`).join(', ');
  say(`${turn} cases from seed ${first}: ${taken} are valid, at most ${most} MiB`);
};
process.once('SIGINT', () => {
  report();
  process.exit(130);
});

say(`seed ${first}`);
for (; turn < count && Date.now() < until; turn++) {
  const seed = first + turn;
  for (const fuzzer of fuzzers) {
    const { files, run } = fuzzer.make(new Random(seed), seed);
    const start = process.cpuUsage();
    try {
      fuzzer.taken += Number(await run());
      const { user, system } = process.cpuUsage(start);
      const took = (user + system) / 1000;
      if (took > MOST_MS) throw new Error(`took ${Math.round(took)} ms of CPU time`);
      if (turn % 256 === 0) {
        // What is left of earlier cases is not what one takes: with --expose-gc it goes first.
        globalThis.gc?.();
        const { rss } = process.memoryUsage();
        if (rss > MOST_RSS) throw new Error(`memory grew to ${rss >> 20} MiB`);
      }
    } catch (error) {
      const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-fuzz-'));
      for (const [name, bytes] of Object.entries(files)) fs.writeFileSync(path.join(folder, name), bytes);
      say(error instanceof Error ? (error.stack ?? error.message) : String(error));
      say(`case ${turn} of ${fuzzer.name}; the input is in ${folder}`);
      say(`again: npm run fuzz -- ${fuzzer.name} --seed ${seed} --count 1`);
      process.exit(1);
    }
  }
  if (turn % 256 === 0) await new Promise((resolve) => setImmediate(resolve));
  if (Date.now() - told > 10_000) {
    told = Date.now();
    report();
  }
}
report();
