/** Values with a bpf_spin_lock: what is read of one is never half of it and half of the next. */

import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { capture } from '../src/capture/capture.js';
import { openDump } from '../src/dump/model.js';
import { ELEM_FLAG } from '../src/kernel/abi.js';
import { loadBtf } from '../src/kernel/btf.js';
import { LiveMaps } from '../src/kernel/live.js';
import { BpfMap } from '../src/kernel/map.js';
import { type Attr, openSys } from '../src/kernel/sys.js';
import { planMaps } from '../src/replay/plan.js';
import { replay } from '../src/replay/replay.js';
import { BtfWriter } from './helpers/btf-writer.js';
import { dataOf } from './helpers/capture.js';
import { skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import { MeddledSys } from './helpers/replay.js';
import { types } from './helpers/types.js';

const skip = await skipWithoutMaps();
const sys = await openSys(types);

t.setTimeout(patience(120_000));
/** In memory where that is: images are brought to disk each time. */
const cwd = fs.mkdtempSync(path.join(fs.existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir(), 'bpfimg-lock-'));
t.teardown(() => fs.rmSync(cwd, { recursive: true }));

/**
 * Long values: a reader that takes no lock and a writer run at the same speed, so one overtakes the other within a
 * value only where something holds one of them up. Of values of 1 MiB some in a hundred are torn then, of those of
 * 64 KiB one in a thousand. So few captures need not show it: what surely does is whether each call asks for the lock.
 */
const WORDS = 262_144;
const COUNT = 2;
/** Captures, and milliseconds for them: where CPUs are scarce, who waits for a lock waits long. */
const ROUNDS = 30;
const LONGEST = 10_000;

/** A map whose values are a lock and words, all of them zero. */
function lockedMap(type: number): BpfMap {
  const w = new BtfWriter();
  const word = w.int('unsigned int', 4);
  const lock = w.struct('bpf_spin_lock', 4, [{ name: 'val', type: word, at: 0 }]);
  const value = w.struct('element', 4 + 4 * WORDS, [
    { name: 'lock', type: lock, at: 0 },
    { name: 'words', type: w.array(word, WORDS), at: 32 },
  ]);
  const fd = loadBtf(sys, w.bytes());
  try {
    const btf = { fd, keyType: word, valueType: value };
    const map = BpfMap.create(sys, {
      type,
      keySize: 4,
      valueSize: 4 + 4 * WORDS,
      maxEntries: COUNT,
      name: 'locked',
      btf,
    });
    for (let i = 0; i < COUNT; i++) map.update(u32(i), new Uint8Array(map.valueSize));
    return map;
  } finally {
    sys.close(fd);
  }
}

/** Values in a dump, and how many of them are of more than one writing. */
function tornIn(folder: string): { values: number; torn: number } {
  const values = dataOf(folder)[0]?.values ?? [];
  // The lock's own 8 digits are zero.
  const torn = values.filter((value) => value.slice(8) !== value.slice(8, 16).repeat(WORDS));
  return { values: values.length, torn: torn.length };
}

for (const [type, name] of [
  [1, 'hash'],
  [2, 'array'],
] as const) {
  t.test(`a ${name} whose values have a lock, written at full speed meanwhile`, { skip }, async (t) => {
    using map = lockedMap(type);
    const maps = LiveMaps.look(sys).select({ ids: [map.id], names: [], pins: [], pids: [] });
    const file = fileURLToPath(new URL('./helpers/lock-writer.js', import.meta.url));
    const child = spawn(process.execPath, [file, String(map.id)], { stdio: ['pipe', 'pipe', 'inherit'] });
    await new Promise<void>((resolve) => child.stdout.once('data', () => resolve()));
    const dir = path.join(cwd, name);
    let [values, torn] = [0, 0];
    const seen = new Set<string>();
    // Each call that reads or writes values asks for the lock.
    const flags: [string, bigint][] = [];
    const spy = new MeddledSys(sys, (command, attr: Attr<string>) => {
      if (command === 'MAP_LOOKUP_BATCH' || command === 'MAP_UPDATE_BATCH')
        flags.push([command, attr.get64('elem_flags')]);
      if (command === 'MAP_UPDATE_ELEM' || command === 'MAP_LOOKUP_ELEM') flags.push([command, attr.get64('flags')]);
      return undefined;
    });
    const end = Date.now() + LONGEST;
    try {
      for (let round = 0; round < 5 || (round < ROUNDS && Date.now() < end); round++) {
        await capture(spy, maps, dir, types, { force: true });
        const found = tornIn(dir);
        values += found.values;
        torn += found.torn;
        seen.add(dataOf(dir)[0]?.values[0]?.slice(8, 16) ?? '');
      }
    } finally {
      const ended = new Promise((resolve) => child.once('close', resolve));
      child.stdin.end();
      await ended;
    }
    t.ok(seen.size > 2, `${seen.size} different values of one key`);
    t.equal(torn, 0, `of ${values} values`);

    t.ok(flags.length >= 2 * 5);
    const read = flags.length;
    const dump = await openDump(dir);
    try {
      const plans = await planMaps(dump, dump.maps, types, { cpus: sys.cpus });
      for (const fresh of await replay(spy, plans, { verify: true })) {
        t.same(fresh.report, { kind: 'full' });
        fresh.map.close();
      }
    } finally {
      dump.close();
    }
    t.ok(flags.length >= read + COUNT);
    t.same(
      flags.filter(([, bits]) => bits !== BigInt(ELEM_FLAG.LOCK)),
      [],
    );
  });
}

t.test('every file descriptor was closed', { skip }, async (t) => {
  t.same(sys.openFds(), []);
});
