/** Whatever is wrong with an image or with JSON: it works, or it fails as bad input, soon and in little memory. */
import t from 'tap';
import { FORMS } from './helpers/codec.js';
import { goodTexts, mutateImage, mutateJson, SEEDS, tryImage, tryJson } from './helpers/mutate.js';
import { Random } from './helpers/random.js';

const IMAGES = 100_000;
const TEXTS = 20_000;
/** Longest that one input of some hundred bytes may take. */
const MOST_MS = 2000;
const MOST_RSS = 200 * 1024 * 1024;

t.setTimeout(300_000);

/** Runs `count` cases; every one has a seed of its own, which a failure names. */
async function cases(
  t: { comment: (text: string) => void },
  count: number,
  first: number,
  run: (random: Random, turn: number) => Promise<boolean>,
): Promise<{ good: number; slowest: number; rss: number }> {
  let good = 0;
  let slowest = 0;
  let rss = 0;
  for (let turn = 0; turn < count; turn++) {
    const start = performance.now();
    try {
      if (await run(new Random(first + turn), turn)) good++;
    } catch (error) {
      t.comment(`seed ${first + turn}: node build/test/fuzz.js --seed ${first + turn} --count 1`);
      throw error;
    }
    slowest = Math.max(slowest, performance.now() - start);
    if (turn % 1000 === 0) rss = Math.max(rss, process.memoryUsage().rss);
  }
  return { good, slowest, rss };
}

t.test('the images that are broken are good to begin with', async (t) => {
  for (const [i, bytes] of SEEDS.entries()) {
    for (let form = 0; form < FORMS.length; form++) t.ok(await tryImage(bytes, form), `seed image ${i}, form ${form}`);
  }
});

t.test(`${IMAGES} broken images`, async (t) => {
  const { good, slowest, rss } = await cases(t, IMAGES, 1, (random, turn) => tryImage(mutateImage(random), turn));
  t.ok(good > IMAGES / 50 && good < IMAGES, `${good} still decode, and come back byte for byte`);
  t.ok(slowest < MOST_MS, `none takes long: at most ${Math.round(slowest)} ms`);
  t.ok(rss < MOST_RSS, `none takes much memory: at most ${rss >> 20} MiB`);
});

t.test(`${TEXTS} broken JSON texts`, async (t) => {
  const texts = await goodTexts();
  const { good, slowest, rss } = await cases(t, TEXTS, 1_000_000, (random) => tryJson(mutateJson(texts, random)));
  t.ok(good > TEXTS / 50 && good < TEXTS, `${good} still encode`);
  t.ok(slowest < MOST_MS, `none takes long: at most ${Math.round(slowest)} ms`);
  t.ok(rss < MOST_RSS, `none takes much memory: at most ${rss >> 20} MiB`);
});
