/** Kernels without batch commands, for some types or for all: the same maps come out, one item at a time. */

import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { BPF_COMMAND, MAP_FLAG } from '../src/kernel/abi.js';
import { BpfMap, type MapSpec } from '../src/kernel/map.js';
import { ERRNO, openSys } from '../src/kernel/sys.js';
import { bpfimg, denying, workFolder } from './helpers/command.js';
import { bpffs, fillNumbers, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import { types } from './helpers/types.js';

const skip = await skipWithoutMaps();
const sys = await openSys(types);

t.setTimeout(patience(120_000));

const SPECS: readonly MapSpec[] = [
  { type: 1, keySize: 4, valueSize: 8, maxEntries: 300, name: 'hash' },
  { type: 2, keySize: 4, valueSize: 8, maxEntries: 300, name: 'array' },
  { type: 5, keySize: 4, valueSize: 12, maxEntries: 30, name: 'percpu_hash' },
  { type: 6, keySize: 4, valueSize: 12, maxEntries: 30, name: 'percpu_array' },
  { type: 9, keySize: 4, valueSize: 8, maxEntries: 300, name: 'lru_hash' },
  { type: 11, keySize: 8, valueSize: 8, maxEntries: 30, name: 'trie', flags: MAP_FLAG.NO_PREALLOC },
];

t.test('every family that has batches', { skip }, async (t) => {
  const cwd = workFolder();
  const { folder, remove } = bpffs();
  const inner = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 4, maxEntries: 3, name: 'inner' });
  const maps = SPECS.map((spec) => BpfMap.create(sys, spec));
  const outer = [12, 13].map((type) => {
    return BpfMap.create(sys, { type, keySize: 4, valueSize: 4, maxEntries: 9, name: `outer_${type}`, inner });
  });
  t.teardown(() => {
    for (const map of [inner, ...maps, ...outer]) map.close();
    remove();
    fs.rmSync(cwd, { recursive: true });
  });
  for (const map of maps) {
    if (map.type !== 11) fillNumbers(map, Math.min(20, map.maxEntries));
    else for (let i = 1; i < 20; i++) map.update(u32(i, i), Buffer.alloc(8, i));
  }
  for (const map of outer) for (const slot of [2, 3, 7]) map.update(u32(slot), u32(inner.fd));

  const all = [...maps, ...outer].flatMap(({ id }) => ['--id', String(id)]);
  t.match(bpfimg(['capture', ...all, '-D', 'with'], { cwd }), { status: 0 });
  // ENOTSUPP is what a type without batches says, EINVAL a kernel that does not know the commands.
  for (const errno of [ERRNO.ENOTSUPP, ERRNO.EINVAL]) {
    const { MAP_LOOKUP_BATCH, MAP_UPDATE_BATCH } = BPF_COMMAND;
    const options = { cwd, ...denying(errno, MAP_LOOKUP_BATCH, MAP_UPDATE_BATCH) };
    const captured = bpfimg(['capture', ...all, '-D', `without${errno}`, '--json'], options);
    t.match(captured, { status: 0, stderr: '' });
    const { maps: rows } = JSON.parse(captured.stdout) as { maps: { name: string; report: string }[] };
    t.same(
      rows.filter(({ report }) => report !== 'full'),
      [],
    );
    t.match(bpfimg(['diff', 'with', `without${errno}`], { cwd }), { status: 0 });
    const pin = path.join(folder, `pins${errno}`);
    t.match(bpfimg(['replay', `without${errno}`, '--pin', pin, '--verify'], options), { status: 0, stderr: '' });
    const fresh = fs.readdirSync(pin).flatMap((name) => ['--pinned', path.join(pin, name)]);
    t.match(bpfimg(['capture', ...fresh, '-D', `fresh${errno}`], { cwd }), { status: 0 });
    const flat = (name: string) =>
      bpfimg(['diff', 'with', name, ...SPECS.flatMap((spec) => ['--map', spec.name ?? ''])], { cwd });
    t.match(flat(`fresh${errno}`), { status: 0 });
  }
});
