/**
 * What older kernels lack, here refused by a filter of system calls: the same maps come out in another way, or the user
 * is told what is missing.
 */

import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { BPF_COMMAND, MAP_FLAG, SYSCALL } from '../src/kernel/abi.js';
import { BpfMap, type MapSpec } from '../src/kernel/map.js';
import { ERRNO, openSys } from '../src/kernel/sys.js';
import { bpfimg, denying, workFolder } from './helpers/command.js';
import { bpffs, fillNumbers, HolderProcess, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
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

/** Linux and what came with it: the error of a kernel that lacks it, and the calls. */
const NEWER: readonly [version: string, what: string, errno: number, ...calls: (number | string)[]][] = [
  ['5.8', 'iterators', ERRNO.EINVAL, BPF_COMMAND.ITER_CREATE, BPF_COMMAND.LINK_CREATE],
  ['5.6', 'pidfd_getfd', ERRNO.ENOSYS, callNumber('pidfd_getfd')],
  ['5.3', 'pidfd_open', ERRNO.ENOSYS, ...['pidfd_open', 'pidfd_getfd'].map(callNumber)],
  ['5.2', 'frozen maps', ERRNO.EINVAL, BPF_COMMAND.MAP_FREEZE],
  ['4.18', 'BTF', ERRNO.EINVAL, BPF_COMMAND.BTF_LOAD, BPF_COMMAND.BTF_GET_FD_BY_ID],
  [
    '5.8',
    'anything of these but ids and BTF',
    ERRNO.EINVAL,
    ...[BPF_COMMAND.ITER_CREATE, BPF_COMMAND.LINK_CREATE, BPF_COMMAND.MAP_FREEZE],
    ...[BPF_COMMAND.MAP_LOOKUP_BATCH, BPF_COMMAND.MAP_UPDATE_BATCH, BPF_COMMAND.PROG_LOAD],
    ...['pidfd_open', 'pidfd_getfd'].map(callNumber),
  ],
];

function callNumber(name: string): string {
  return `s${SYSCALL[process.arch]?.[name as 'pidfd_open']}`;
}

for (const [version, what, errno, ...calls] of NEWER) {
  t.test(`before Linux ${version}: no ${what}`, { skip }, async (t) => {
    const cwd = workFolder();
    const { folder, remove } = bpffs();
    const specs = SPECS.map((spec) => ({ ...spec, name: `old_${spec.name}`.slice(0, 15) }));
    const holder = await HolderProcess.start(specs);
    t.teardown(async () => {
      await holder.stop();
      remove();
      fs.rmSync(cwd, { recursive: true });
    });
    const maps = holder.ids.map((id) => BpfMap.openById(sys, id));
    for (const map of maps) {
      if (map.type !== 11) fillNumbers(map, Math.min(20, map.maxEntries));
      else for (let i = 1; i < 20; i++) map.update(u32(i, i), Buffer.alloc(8, i));
      map.close();
    }
    const old = { cwd, ...denying(errno, ...calls) };
    const pid = ['--pid', String(holder.pid)];
    const listed = (options: object) => {
      const { status, stdout, stderr } = bpfimg(['list', ...pid, '--json'], { cwd, ...options });
      t.equal(status, 0, stderr);
      const { maps: rows } = JSON.parse(stdout) as { maps: Record<string, unknown>[] };
      // How many items there are is counted by a program of ours.
      return rows.map(({ id, name, type, key_size, value_size, max_entries }) => {
        return { id, name, type, key_size, value_size, max_entries };
      });
    };
    t.same(listed(old), listed({}), 'the same maps');
    t.equal(listed({}).length, SPECS.length);

    t.match(bpfimg(['capture', ...pid, '-D', 'with'], { cwd }), { status: 0 });
    const captured = bpfimg(['capture', ...pid, '-D', 'without', '--json'], old);
    t.match(captured, { status: 0, stderr: '' });
    const { maps: rows } = JSON.parse(captured.stdout) as { maps: { report: string }[] };
    t.same([...new Set(rows.map(({ report }) => report))], ['full']);
    t.match(bpfimg(['diff', 'with', 'without'], { cwd }), { status: 0, stdout: '' });

    const pin = path.join(folder, 'pins');
    t.match(bpfimg(['replay', 'without', '--pin', pin, '--verify'], old), { status: 0, stderr: '' });
    t.match(bpfimg(['diff', 'without', `pinned:${pin}`], { cwd }), {
      status: 0,
      stdout: '',
    });
  });
}

t.test('before Linux 4.13: no ids, so nothing can be done', { skip }, async (t) => {
  const { status, stderr } = bpfimg(['list'], denying(ERRNO.EINVAL, BPF_COMMAND.MAP_GET_NEXT_ID));
  t.same(
    { status, stderr },
    { status: 1, stderr: 'bpfimg: live maps: BPF_MAP_GET_NEXT_ID: EINVAL (needs Linux 4.13)\n' },
  );
});
