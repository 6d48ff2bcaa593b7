/** One map in the hands of several processes: one capture of all of them takes it once, and replay makes it once. */

import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { createInterface } from 'node:readline';
import t, { type Test } from 'tap';
import { BpfMap } from '../src/kernel/map.js';
import { openSys } from '../src/kernel/sys.js';
import { dataOf } from './helpers/capture.js';
import { skipWithout } from './helpers/crit.js';
import { bpftool, skipWithoutMaps, u32, witness } from './helpers/kernel-live.js';
import { cli } from './helpers/replay.js';
import { types } from './helpers/types.js';

const skip = (await skipWithoutMaps()) || skipWithout('python3');

/**
 * Three processes with one map, each by another way: the first has inherited it as fd 3, and a read-only one
 * as fd 4; its child has both by fork(2); that one's sibling had none, got the first by SCM_RIGHTS as fd 20,
 * and took the second with pidfd_getfd(2) as fd 21.
 */
const OWNERS = `
import ctypes, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
here, there = socket.socketpair()
stranger = os.fork()
if stranger == 0:
    for fd in (0, 1, 3, 4):
        os.close(fd)
    here.close()
    _, fds, _, _ = socket.recv_fds(there, 1, 1)
    os.dup2(fds[0], 20)
    os.close(fds[0])
    pidfd = libc.syscall(434, os.getppid(), 0)
    fd = libc.syscall(438, pidfd, 4, 0)
    if fd < 0:
        os._exit(1)
    os.dup2(fd, 21)
    os.close(fd)
    os.close(pidfd)
    there.send(b'k')
    there.recv(1)
    os._exit(0)
there.close()
socket.send_fds(here, [b'm'], [3])
assert here.recv(1) == b'k'
child = os.fork()
if child == 0:
    os.close(0)
    os.close(1)
    here.close()
    there, sys.stdin = None, None
    import signal
    signal.pause()
print(json.dumps([os.getpid(), child, stranger]), flush=True)
sys.stdin.read()
os.kill(child, 9)
os.waitpid(child, 0)
here.send(b'e')
os.waitpid(stranger, 0)
`;

/** Starts them with these file descriptors; their ids. They end with the test. */
async function owners(t: Test, ...fds: readonly [number, number]): Promise<number[]> {
  const child = spawn('python3', ['-c', OWNERS], { stdio: ['pipe', 'pipe', 'inherit', ...fds] });
  const ended = new Promise((resolve) => child.once('close', resolve));
  t.teardown(() => {
    child.stdin?.end();
    return ended;
  });
  for await (const line of createInterface({ input: child.stdout as NodeJS.ReadableStream })) {
    return JSON.parse(line) as number[];
  }
  throw new Error('the processes with the map ended');
}

interface Document {
  readonly maps: readonly {
    readonly map_id: number;
    readonly name: string;
    readonly files: readonly {
      readonly id: number;
      readonly flags: string;
      readonly fds: readonly { readonly pid: number; readonly fd: number }[];
    }[];
  }[];
}

t.test('several owners of one map: captured once, replayed once', { skip }, async (t) => {
  const sys = await openSys(types);
  const folder = t.testdir();
  const [shared, other] = ['shared', 'other'].map((name) =>
    BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 8, maxEntries: 16, name }),
  ) as [BpfMap, BpfMap];
  for (let i = 0; i < 5; i++) shared.update(u32(i), u32(i * i, 7));
  other.update(u32(1), u32(1, 1));
  // The same map a second time, good only for reading: another open file.
  const reader = BpfMap.openById(sys, shared.id, 'ro');
  const pids = await owners(t, shared.fd, reader.fd);
  const [first = 0, forked = 0, stranger = 0] = pids;
  const also = await owners(t, shared.fd, other.fd);
  const items = witness(shared);
  for (const map of [shared, reader, other]) map.close();

  const dump = path.join(folder, 'dump');
  const selected = [...pids, ...also].flatMap((pid) => ['--pid', String(pid)]);
  const captured = await cli(['capture', ...selected, '-D', dump, '--json']);
  t.equal(captured.status, 0, captured.stderr);
  const rows = (JSON.parse(captured.stdout) as { maps: { map_id: number; name: string; items: number }[] }).maps;
  t.same(
    rows.map(({ name, items }) => [name, items]),
    [
      ['shared', 5],
      ['other', 1],
    ],
    'each map once',
  );
  t.same(
    dataOf(dump).map(({ mapId, count }) => [mapId, count]),
    rows.map(({ map_id, items }) => [map_id, items]),
    'and its items',
  );
  const { maps } = JSON.parse((await cli(['decode', dump])).stdout) as Document;
  const holders = maps.map(({ files }) =>
    files.map(({ flags, fds }) => [flags, fds.map(({ pid, fd }) => `${pid}:${fd}`).sort()]),
  );
  const [second = 0, secondForked = 0, secondStranger = 0] = also;
  const writers = [`${first}:3`, `${forked}:3`, `${stranger}:20`, `${second}:3`, `${secondForked}:3`];
  t.same(
    holders,
    [
      [
        ['O_RDWR', [...writers, `${secondStranger}:20`].sort()],
        ['', [`${first}:4`, `${forked}:4`, `${stranger}:21`].sort()],
      ],
      [['O_RDWR', [`${second}:4`, `${secondForked}:4`, `${secondStranger}:21`].sort()]],
    ],
    'every holder by its process and fd, and how it has the map open (O_RDONLY is no flag)',
  );
  const { stdout } = await cli(['show', dump]);
  for (const holder of [`${first}:3,4`, `${forked}:3,4`, `${stranger}:20,21`]) t.match(stdout, holder);

  // One file descriptor for each map, not for each holder.
  const told = path.join(folder, 'told');
  const script = `echo $LISTEN_FDS $LISTEN_FDNAMES > ${told}; bpftool -j map dump id $(awk '/map_id/ {print $2}' /proc/$$/fdinfo/3) > ${told}.map; test ! -e /proc/$$/fdinfo/5 && echo no more >> ${told}`;
  const replayed = await cli(['replay', dump, '--verify', '--', 'sh', '-c', script]);
  t.equal(replayed.status, 0, replayed.stderr);
  t.equal(fs.readFileSync(told, 'utf8'), '2 shared:other\nno more\n');
  type Item = { key: string[]; value: string[] };
  const text = (bytes: readonly string[]) => bytes.map((byte) => byte.slice(2)).join('');
  const again = JSON.parse(fs.readFileSync(`${told}.map`, 'utf8')) as Item[];
  t.same(Object.fromEntries(again.map(({ key, value }) => [text(key), text(value)])), items);
});

t.test('processes that are captured one by one have the same map by its id', { skip }, async (t) => {
  const sys = await openSys(types);
  const folder = t.testdir();
  const shared = BpfMap.create(sys, { type: 2, keySize: 4, valueSize: 4, maxEntries: 2, name: 'one' });
  const pids = await owners(t, shared.fd, shared.fd);
  const { id } = shared;
  shared.close();
  for (const pid of pids) {
    const dump = path.join(folder, String(pid));
    t.equal((await cli(['capture', '--pid', String(pid), '-D', dump])).status, 0);
    const { maps } = JSON.parse((await cli(['decode', dump])).stdout) as Document;
    t.same(
      maps.map(({ map_id, files }) => [map_id, files.flatMap(({ fds }) => fds.map((one) => one.pid))]),
      [[id, [pid, pid]]],
    );
  }
  t.equal((bpftool('map', 'show', 'id', String(id)) as { id: number }).id, id);
});
