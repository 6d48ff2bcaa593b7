/**
 * Breaks images and JSON for as long as one likes: `npm run fuzz -- [--seconds N] [--seed N] [--count N]`.
 *
 * Every case has its own seed. A failure leaves the input in a temporary file, prints how to come back to
 * it, and ends with 1.
 */
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { parseArgs } from 'node:util';
import { goodTexts, mutateImage, mutateJson, tryImage, tryJson } from './helpers/mutate.js';
import { Random } from './helpers/random.js';

/** A case that takes longer counts as a hang. */
const MOST_MS = 5000;
const MOST_RSS = 400 * 1024 * 1024;

const { values } = parseArgs({
  options: { seconds: { type: 'string' }, seed: { type: 'string' }, count: { type: 'string' } },
});
const first = Number(values.seed ?? Math.floor(Math.random() * 0x40000000));
const until = values.seconds === undefined ? Number.POSITIVE_INFINITY : Date.now() + Number(values.seconds) * 1000;
const count = Number(values.count ?? Number.POSITIVE_INFINITY);
const say = (line: string) => process.stdout.write(`${line}\n`);

const texts = await goodTexts();
let turn = 0;
let images = 0;
let jsons = 0;
let told = Date.now();

const report = () => {
  const most = process.resourceUsage().maxRSS >> 10;
  say(`${turn} cases from seed ${first}: ${images} images and ${jsons} texts are valid, at most ${most} MiB`);
};
process.once('SIGINT', () => {
  report();
  process.exit(130);
});

say(`seed ${first}`);
for (; turn < count && Date.now() < until; turn++) {
  const seed = first + turn;
  const image = mutateImage(new Random(seed));
  const text = mutateJson(texts, new Random(seed));
  for (const [input, name, run] of [
    [image, 'x.img', async () => (images += Number(await tryImage(image, seed)))],
    [text, 'x.json', async () => (jsons += Number(await tryJson(text)))],
  ] as const) {
    const start = performance.now();
    try {
      await run();
      const took = performance.now() - start;
      if (took > MOST_MS) throw new Error(`took ${Math.round(took)} ms`);
      if (turn % 256 === 0) {
        // What is left of earlier cases is not what one takes: with --expose-gc it goes first.
        globalThis.gc?.();
        const { rss } = process.memoryUsage();
        if (rss > MOST_RSS) throw new Error(`memory grew to ${rss >> 20} MiB`);
      }
    } catch (error) {
      const file = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-fuzz-')), name);
      fs.writeFileSync(file, input);
      say(error instanceof Error ? (error.stack ?? error.message) : String(error));
      say(`case ${turn}; the input is ${file}\nagain: npm run fuzz -- --seed ${seed} --count 1`);
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
