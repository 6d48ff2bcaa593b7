/** `--like` with random types: what a dry run foresees, what a replay does, and the same by way of JSON. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { BpfMap } from '../src/kernel/map.js';
import { openSys } from '../src/kernel/sys.js';
import type { CTypes } from './helpers/c-types.js';
import { bpffs, skipWithoutMaps } from './helpers/kernel-live.js';
import { Random } from './helpers/random.js';
import { cli } from './helpers/replay.js';
import {
  becomes,
  changed,
  keyHex,
  randomStruct,
  randomValue,
  shapeText,
  typedDocument,
  typesOf,
  valueHex,
} from './helpers/shapes.js';
import { types } from './helpers/types.js';

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
const skip = await skipWithoutMaps();
if (skip !== false) {
  t.plan(0, skip);
  process.exit();
}

const sys = await openSys(types);

/** Rounds; set to try more. */
const ROUNDS = Number(process.env.LIKE_ROUNDS ?? 40);

/** A document with one hash map of these values. */
function document(file: string, c: CTypes, values: readonly string[]): string {
  const items = values.map((value, n) => [keyHex(n), value] as const);
  typedDocument(file, c, items, 64);
  return file;
}

/** Items of the map that is pinned there: value by key. */
function itemsOf(pin: string): [key: string, value: string][] {
  using map = BpfMap.openPinned(sys, pin);
  const items: [string, string][] = [];
  for (let key = map.nextKey(undefined); key !== undefined; key = map.nextKey(key)) {
    items.push([hex(key), hex(map.lookup(key) as Uint8Array)]);
  }
  return items.sort();
}

t.test('what is lost is foreseen, counted alike, and not lost without permission', async (t) => {
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const base = t.testdir();
  const tally = { pairs: 0, losing: 0, back: 0 };
  for (let round = 0; round < ROUNDS; round++) {
    const random = new Random(Number(process.env.LIKE_SEED ?? 3) * 100_000 + round);
    const old = randomStruct(random, 2, false);
    const renames = new Map<string, string>();
    const fresh = changed(random, old, renames);
    const [a, b] = [typesOf(old), typesOf(fresh)];
    const values = Array.from({ length: 1 + random.below(6) }, () => randomValue(random, old));
    const source = document(
      path.join(base, 'old.json'),
      a,
      values.map((value) => valueHex(a, value)),
    );
    const model = document(path.join(base, 'new.json'), b, []);
    const rename = [...renames].flatMap(([name, other]) => ['--rename', `${name}=${other}`]);
    const words = ['replay', source, '--like', model, ...rename];
    const about = `round ${round}: ${shapeText(old, 'x')} → ${shapeText(fresh, 'x')}: ${JSON.stringify(values)}`;
    const wanted = values.map((value) => becomes(old, fresh, value));
    tally.pairs++;
    const lost = wanted.reduce((sum, one) => sum + (one?.lost ?? 0), 0);
    if (lost > 0) tally.losing++;
    // Without permission, the dry run and the replay say the same.
    const careful = await cli([...words, '--dry-run']);
    // What holds a renamed member may be gone.
    if (/--rename .* the new value has no member/.test(careful.stderr)) continue;
    t.equal(careful.status, lost > 0 ? 1 : 0, `${about}: ${careful.stderr}`);
    const pins = path.join(folder, `careful-${round}`);
    const real = await cli([...words, '--pin', pins]);
    t.equal(real.status, lost > 0 ? 1 : 0, `${about}: ${real.stderr}`);
    t.equal(fs.existsSync(path.join(pins, 'm')), lost === 0, about);
    const verified = await cli(['verify', source, '--like', model, '--json']);
    if (renames.size === 0) t.equal(/"cannot-migrate"/.test(verified.stdout), lost > 0, `${about}: ${verified.stdout}`);
    // With it, both count the same.
    const foreseen = JSON.parse((await cli([...words, '--dry-run', '--lossy', '--json'])).stdout).maps[0];
    const times = Object.values(foreseen.migration.lost) as number[];
    t.equal(
      times.reduce((sum, one) => sum + one, 0),
      lost,
      about,
    );
    const lossy = path.join(folder, `lossy-${round}`);
    const made = JSON.parse((await cli([...words, '--lossy', '--pin', lossy, '--json'])).stdout).maps[0];
    const clause = (report: string) => /lost: .*$/.exec(report)?.[0];
    t.equal(clause(made.report), clause(foreseen.report), about);
    const expected = wanted.map((one, n) => [keyHex(n), valueHex(b, one?.value ?? null)]);
    t.strictSame(itemsOf(path.join(lossy, 'm')), expected, about);
    fs.rmSync(lossy, { recursive: true });
    // There and back is the identity where nothing is lost either way.
    const wayBack = wanted.map((one) => becomes(fresh, old, one?.value ?? null));
    // The kernel does not take all types that are made up.
    const typed = !made.report.includes('without its types');
    if (typed && lost === 0 && wayBack.every((one) => one?.lost === 0)) {
      const back = [...renames].flatMap(([name, other]) => ['--rename', `${other}=${name}`]);
      const again = await cli(['replay', `pinned:${pins}/m`, '--like', source, ...back, '--pin', `${pins}/back`]);
      t.equal(again.status, 0, `${about}: ${again.stderr}`);
      t.strictSame(
        itemsOf(`${pins}/back/m`),
        values.map((value, n) => [keyHex(n), valueHex(a, value)]),
        about,
      );
      tally.back++;
    }
    fs.rmSync(pins, { recursive: true, force: true });
  }
  t.ok(tally.pairs > ROUNDS / 2 && tally.losing > 5 && tally.back > 5, JSON.stringify(tally));
  t.comment(JSON.stringify(tally));
});
