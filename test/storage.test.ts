/** Local storage: values that hang on tasks, cgroups and sockets, found by asking for each of these. */

import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { Worker } from 'node:worker_threads';
import t, { type Test } from 'tap';
import { pathBytes } from '../src/bytes.js';
import { loadBtf } from '../src/kernel/btf.js';
import { BpfMap } from '../src/kernel/map.js';
import { Sockets } from '../src/kernel/objects.js';
import { Cgroups } from '../src/kernel/owners.js';
import { ERRNO, openSys } from '../src/kernel/sys.js';
import { BtfWriter } from './helpers/btf-writer.js';
import { dataOf } from './helpers/capture.js';
import { skipWithout } from './helpers/crit.js';
import { features, lacking } from './helpers/features.js';
import { bpffs, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { SocketHolder } from './helpers/objects.js';
import { cli, MeddledSys } from './helpers/replay.js';
import { types } from './helpers/types.js';

const skip = await skipWithoutMaps();
const sys = await openSys(types);
const has = await features();
const [SK, INODE, TASK, CGROUP] = [24, 28, 29, 32] as const;

/** A storage with values of 8 bytes; undefined on a kernel that has no such type, and says so. */
function create(t: Test, type: number, name: string): BpfMap | undefined {
  const writer = new BtfWriter();
  const [keyType, valueType] = [writer.int('int', 4), writer.int('long', 8)];
  const fd = loadBtf(sys, writer.bytes());
  const btf = { fd, keyType, valueType };
  const { since, name: kind } = types.get(type);
  const spec = { type, since, keySize: 4, valueSize: 8, maxEntries: 0, flags: 1, name, btf };
  const lacks = lacking(sys, spec);
  const map = lacks === undefined ? BpfMap.create(sys, spec) : undefined;
  sys.close(fd);
  if (map === undefined) {
    t.match(lacks, `or this kernel lacks ${kind}, which came with Linux ${since}`);
    return undefined;
  }
  t.teardown(() => map.close());
  return map;
}

/** Sets, or asks for, the value of an object by a file descriptor of it. */
const set = (map: BpfMap, fd: number, value: number) => map.update(u32(fd), u32(value, 0));
const get = (map: BpfMap, fd: number) => {
  const value = map.lookup(u32(fd));
  return value === undefined ? undefined : Buffer.from(value).readUInt32LE();
};

interface Row {
  readonly items: number;
  readonly report: string;
  readonly pin: string;
}

/** Captures one map; what was told, and its items with keys and values as numbers. */
async function captured(t: Test, map: BpfMap, dump: string): Promise<{ row: Row; items: Record<string, number> }> {
  const done = await cli(['capture', '--id', String(map.id), '-D', dump, '--force', '--json']);
  t.equal(done.status, 0, done.stderr);
  const [data] = dataOf(dump);
  const number = (hex: string) => BigInt(`0x${Buffer.from(hex, 'hex').reverse().toString('hex') || '0'}`);
  const items = (data?.keys ?? []).map((key, i) => [String(number(key)), Number(number(data?.values[i] ?? ''))]);
  return { row: JSON.parse(done.stdout).maps[0] as Row, items: Object.fromEntries(items) };
}

async function replayed(t: Test, dump: string, pin: string, ...more: string[]): Promise<{ row: Row; map: BpfMap }> {
  const done = await cli(['replay', dump, '--pin', pin, '--verify', '--json', ...more]);
  t.equal(done.status, 0, done.stderr);
  const row = JSON.parse(done.stdout).maps[0] as Row;
  const map = BpfMap.openPinned(sys, row.pin);
  t.teardown(() => map.close());
  return { row, map };
}

function place(t: Test) {
  const pins = bpffs();
  t.teardown(() => pins.remove());
  return { dump: path.join(t.testdir(), 'dump'), pin: (name: string) => path.join(pins.folder, name) };
}

/** A cgroup of the test's own, open, with its id; its name is as paths are written. */
function cgroup(t: Test, name: string): { path: string; id: string; fd: number; remove(): void } {
  const { mount } = new Cgroups();
  const folder = pathBytes(path.join(mount as string, name));
  fs.mkdirSync(folder);
  const fd = fs.openSync(folder, 'r');
  let there = true;
  const remove = () => {
    if (!there) return;
    there = false;
    fs.closeSync(fd);
    fs.rmdirSync(folder);
  };
  t.teardown(remove);
  return { path: `/${name}`, id: String(fs.statSync(folder).ino), fd, remove };
}

const skipCgroups = skip || (new Cgroups().mount === undefined ? 'needs a cgroup2 file system' : false);

t.test('values of cgroups come back by the path', { skip: skipCgroups }, async (t) => {
  const here = place(t);
  const map = create(t, CGROUP, 'cgroups');
  if (map === undefined) return;
  const name = `bpfimg-${process.pid}`;
  const [one, two, empty] = [cgroup(t, `${name}-\\xff1`), cgroup(t, `${name}-2`), cgroup(t, `${name}-3`)];
  set(map, one.fd, 11);
  set(map, two.fd, 22);
  const before = await captured(t, map, here.dump);
  t.match(before.row.report, /^(full|partial: lost: values of cgroups outside of our namespace)$/);
  t.same(before.items, { [one.id]: 11, [two.id]: 22 }, 'the cgroup without a value has none');
  const { maps } = JSON.parse((await cli(['decode', here.dump])).stdout);
  t.same(maps[0].meta.references.map((one: { cgroup: string }) => one.cgroup).sort(), [one.path, two.path].sort());
  t.equal(maps[0].data_key_size, 8);
  const sound = await cli(['verify', here.dump]);
  t.notMatch(sound.stdout + sound.stderr, /error|key-size/);
  t.equal((await cli(['replay', here.dump, '--dry-run'])).status, 0);

  const fresh = await replayed(t, here.dump, here.pin('a'));
  t.match(fresh.row.report, /^(full|partial: captured partial: lost: values of cgroups outside of our namespace)$/);
  t.same([get(fresh.map, one.fd), get(fresh.map, two.fd), get(fresh.map, empty.fd)], [11, 22, undefined]);
  t.same((await captured(t, fresh.map, `${here.dump}-again`)).items, before.items);

  // Another cgroup with the same path is the one that is meant; one that is not here is told.
  one.remove();
  const anew = cgroup(t, `${name}-\\xff1`);
  two.remove();
  const gone = await cli(['replay', here.dump, '--pin', here.pin('b')]);
  t.equal(gone.status, 1);
  t.match(
    gone.stderr,
    new RegExp(`item \\w{16}: it refers to cgroup ${two.path}, which does not exist here; --unresolved skip`),
  );
  const part = await replayed(t, here.dump, here.pin('c'), '--unresolved', 'skip');
  t.match(
    part.row.report,
    /1 item refers to objects that this host does not have: \w{16} to cgroup \/bpfimg-\d+-2, which does not exist here$/,
  );
  t.equal(get(part.map, anew.fd), 11);

  // Nothing outside of the mount, and nothing by a number alone.
  const document = (await cli(['decode', here.dump])).stdout;
  const bytes = (await cli(['decode', here.dump, '--no-typed'])).stdout;
  const onePath = JSON.stringify(one.path).slice(1, -1);
  const short = bytes
    .replace(/"value":"(\w{8})\w{8}"/g, '"value":"$1"')
    .replace('"data_key_size":8', '$&,"data_value_size":4');
  for (const [text, why] of [
    [
      document.replaceAll(onePath, '/\\\\x2e./../../../tmp').replaceAll(two.path, '/../../../../tmp'),
      /cgroup \/(\.\.\/){4}tmp, which does not exist here/,
    ],
    [document.replace(/"references":\[.*?\],?/, ''), /cgroup \d+, whose path is unknown/],
    [short, /it has 16 bytes of keys and 8 of values for 2 items, expected 8 and 8 bytes each/],
    [
      bytes.replaceAll(/"key":"(\w{8})\w{8}"/g, '"key":"$1"').replace('"data_key_size":8,', ''),
      /it has 8 bytes of keys and 16 of values for 2 items, expected 8 and 8 bytes each/,
    ],
  ] as const) {
    const edited = `${here.dump}-edited`;
    t.equal((await cli(['encode', '-D', edited, '--force'], { input: text })).status, 0);
    const refused = await cli(['replay', edited, '--pin', here.pin('d')]);
    t.match(refused.stderr, why);
    const found = (await cli(['verify', edited])).stdout;
    if (!why.source.startsWith('cgroup'))
      t.match(found, /error: (key|value)-size: .* expected value_size 8|cgrp_storage items have keys of 8/);
    fs.rmSync(edited, { recursive: true });
  }
});

t.test('values of sockets come back while the sockets live', { skip: skip || skipWithout('python3') }, async (t) => {
  const here = place(t);
  const map = create(t, SK, 'sockets');
  if (map === undefined) return;
  const holder = await SocketHolder.start(sys);
  t.teardown(() => holder.stop());
  const [one, two] = holder.opened.listening;
  set(map, one?.fd as number, 33);
  set(map, two?.fd as number, 44);
  const lost = 'lost: values of sockets that no visible process has open';
  const before = await captured(t, map, here.dump);
  t.equal(before.row.report, `partial: ${lost}`);
  t.same(before.items, { [one?.cookie ?? '']: 33, [two?.cookie ?? '']: 44 });
  const fresh = await replayed(t, here.dump, here.pin('a'));
  t.equal(fresh.row.report, `partial: captured partial: ${lost}`);
  t.same([get(fresh.map, one?.fd as number), get(fresh.map, two?.fd as number)], [33, 44]);
  t.equal(get(fresh.map, holder.opened.reuseport[0]?.fd as number), undefined);

  const text = (await cli(['decode', here.dump])).stdout.replace(/"boot_id":"./, '"boot_id":"x');
  t.equal((await cli(['encode', '-D', `${here.dump}-other`], { input: text })).status, 0);
  const other = await cli(['replay', `${here.dump}-other`, '--pin', here.pin('b')]);
  t.match(other.stderr, /item \w{16}: it refers to socket with cookie \d+ of another boot; --unresolved skip/);
});

t.test('a socket that has gone is not found', { skip: skip || skipWithout('python3') }, async (t) => {
  const holder = await SocketHolder.start(sys);
  const cookie = BigInt(holder.opened.listening[0]?.cookie as string);
  const [before, after] = [new Sockets(sys), new Sockets(sys)];
  const fd = before.open(cookie) as number;
  t.ok(fd >= 0);
  sys.close(fd);
  // Its number may be another file's by now.
  const other = holder.opened.listening[1]?.fd as number;
  const swapped = new (class extends MeddledSys {
    other: number | undefined;
    override pidfdGetfd(pidfd: number, fd: number): number {
      if (this.other === undefined) return this.real.pidfdGetfd(pidfd, fd);
      const own = this.real.pidfdOpen(process.pid);
      const result = this.real.pidfdGetfd(own, this.other);
      this.real.close(own);
      return result;
    }
  })(sys);
  const third = new Sockets(swapped);
  t.ok([...third.cookies()].includes(cookie));
  swapped.other = other;
  const open = sys.openFds().length;
  t.equal(third.open(cookie), undefined);
  t.equal(sys.openFds().length, open, 'and is closed');
  await holder.stop();
  t.equal(before.open(cookie), undefined);
  t.equal(after.open(cookie), undefined);
});

t.test('values of tasks are in the image, threads and all', { skip }, async (t) => {
  const here = place(t);
  const map = create(t, TASK, 'tasks');
  if (map === undefined) return;
  const child = spawn('sleep', ['100'], { stdio: 'ignore' });
  const ended = new Promise((resolve) => child.once('close', resolve));
  const worker = new Worker('setInterval(() => {}, 1 << 30)', { eval: true });
  t.teardown(async () => {
    child.kill();
    await Promise.all([ended, worker.terminate()]);
  });
  await new Promise((resolve) => worker.once('online', resolve));
  const threads = fs.readdirSync('/proc/self/task').map(Number);
  const thread = threads.find((id) => id !== process.pid) as number;
  const expected: Record<string, number> = {};
  for (const [i, id] of [process.pid, child.pid as number, thread].entries()) {
    const fd = sys.pidfdOpen(id, id === thread);
    if (fd === -ERRNO.EINVAL) continue;
    set(map, fd, 50 + i);
    sys.close(fd);
    expected[id] = 50 + i;
  }
  t.ok(Object.keys(expected).length >= 2);
  const before = await captured(t, map, here.dump);
  const left = has.threadPidfds
    ? 'lost: values of tasks of other PID namespaces'
    : '\\d+ tasks could not be opened to read their values';
  t.match(before.row.report, new RegExp(`^(full|partial: ${left})`));
  t.same(before.items, expected);
  const fresh = await replayed(t, here.dump, here.pin('a'));
  t.equal(fresh.row.report, 'metadata only: lost: values: they belong to tasks, whose ids may be reused');
  t.same((await captured(t, fresh.map, `${here.dump}-again`)).items, {});
  // Whose keys nobody can walk.
  const empty = await replayed(t, `${here.dump}-again`, here.pin('b'));
  t.match(empty.row.report, new RegExp(`^(full|partial: captured partial: ${left})`));
});

t.test('values of files are left where they are', { skip }, async (t) => {
  const here = place(t);
  const map = create(t, INODE, 'files');
  if (map === undefined) return;
  const fd = fs.openSync('/proc/self/exe', 'r');
  t.teardown(() => fs.closeSync(fd));
  try {
    set(map, fd, 60);
  } catch (error) {
    // Without the BPF LSM files have no room for it.
    t.match(error, { code: 'EBADF' });
  }
  const { row } = await captured(t, map, here.dump);
  const report =
    'metadata only: lost: values: they belong to files, and only a process that has a file open can read its value';
  t.equal(row.report, report);
  t.equal((await replayed(t, here.dump, here.pin('a'))).row.report, report);
});
