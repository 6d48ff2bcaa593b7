/** Whatever is wrong with an image or with JSON: it works, or it fails as bad input, soon and in little memory. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { FORMS } from './helpers/codec.js';
import { SEEDS, tryImage } from './helpers/mutate.js';
import { patience } from './helpers/needs.js';

/** Cases a process; each breaks one image and one JSON text. */
const CASES = 50_000;
const MOST_MIB = 200;

t.setTimeout(patience(800_000));

t.test('the images that are broken are good to begin with', async (t) => {
  for (const [i, bytes] of SEEDS.entries()) {
    for (let form = 0; form < FORMS.length; form++) t.ok(await tryImage(bytes, form), `seed image ${i}, form ${form}`);
  }
});

// In processes of their own: tap watches every promise, which makes the cases three times slower.
for (const seed of [1, 1 + CASES]) {
  t.test(`${CASES} broken images and as many broken texts, seeds from ${seed}`, { buffered: true }, async (t) => {
    const fuzz = fileURLToPath(new URL('fuzz.js', import.meta.url));
    const { code, output } = await run(
      '--expose-gc',
      fuzz,
      'images',
      'texts',
      '--seed',
      `${seed}`,
      '--count',
      `${CASES}`,
    );
    const [, cases, images, texts, mib] =
      /(\d+) cases .*: (\d+) images, (\d+) texts are valid, at most (\d+) MiB\n$/.exec(output) ?? [];
    t.equal(code, 0, 'every one is valid, or bad input with a message of one line', { output });
    t.equal(Number(cases), CASES);
    t.ok(Number(images) > CASES / 50, `${images} images still decode, and come back byte for byte`);
    t.ok(Number(texts) > CASES / 100, `${texts} texts still encode`);
    t.ok(Number(mib) < MOST_MIB, `in at most ${mib} MiB`);
  });
}

for (const [kind, count, most] of [
  ['dumps', 1000, 250],
  ['documents', 2000, 250],
  ['types', 8000, 250],
] as const) {
  t.test(`${count} broken ${kind}`, { buffered: true }, async (t) => {
    const fuzz = fileURLToPath(new URL('fuzz.js', import.meta.url));
    const { code, output } = await run('--expose-gc', fuzz, kind, '--seed', '1', '--count', `${count}`);
    t.equal(code, 0, 'every one is valid, or bad input with a message of one line', { output });
    const [, cases, valid, mib] = /(\d+) cases .*: (\d+) \w+ are valid, at most (\d+) MiB\n$/.exec(output) ?? [];
    t.equal(Number(cases), count);
    t.ok(Number(valid) > count / 20, `${valid} are valid`);
    t.ok(Number(mib) < most, `in at most ${mib} MiB`);
  });
}

t.jobs = 2;

function run(...args: string[]): Promise<{ code: unknown; output: string }> {
  return new Promise((resolve) => {
    execFile(process.execPath, args, { timeout: 280_000 }, (error, stdout, stderr) => {
      resolve({ code: error ? (error.code ?? error.signal) : 0, output: stdout + stderr });
    });
  });
}
