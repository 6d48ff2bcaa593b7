/** Queues and stacks are read by taking their items out: whatever fails meanwhile, none is lost. */

import { spawn, spawnSync } from 'node:child_process';
import realFs, * as fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import * as os from 'node:os';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { plugins } from '../plugins/index.js';
import { drain } from '../plugins/queue/drain.js';
import { capture } from '../src/capture/capture.js';
import { removeUnfinished } from '../src/io/unfinished.js';
import { BPF_COMMAND, type BpfCommand } from '../src/kernel/abi.js';
import { LiveMaps } from '../src/kernel/live.js';
import { BpfMap } from '../src/kernel/map.js';
import { type Attr, ERRNO, openSys, type Sys } from '../src/kernel/sys.js';
import { type Drain, MapTypes } from '../src/maptype.js';
import { dataOf } from './helpers/capture.js';
import { BPFIMG, bpfimg, denying, measured } from './helpers/command.js';
import { fdCount, skipWithoutMaps } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import { type Meddle, MeddledSys } from './helpers/replay.js';
import { types } from './helpers/types.js';

const skip = await skipWithoutMaps();
const sys = await openSys(types);
const [QUEUE, STACK] = [22, 23] as const;
const KINDS = [
  { type: QUEUE, name: 'queue' },
  { type: STACK, name: 'stack' },
] as const;
const { EOPNOTSUPP, EPERM } = os.constants.errno;

t.setTimeout(patience(300_000));

/** A folder that goes away, and maps that do. */
function place(t: Test) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-drain-'));
  const mounts: string[] = [];
  const maps: BpfMap[] = [];
  t.teardown(() => {
    for (const map of maps) map.close();
    for (const mount of mounts) spawnSync('umount', [mount]);
    fs.rmSync(folder, { recursive: true });
  });
  return {
    folder,
    /** A disk of so many MiB. */
    disk(size: number): string {
      const mount = path.join(folder, `disk${mounts.length}`);
      fs.mkdirSync(mount);
      const { stderr } = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${size}m`, 'none', mount], {
        encoding: 'utf8',
      });
      t.equal(stderr, '');
      mounts.push(mount);
      return mount;
    },
    /** A map with the numbers from 0 on. */
    map(type: number, count: number, valueSize = 4096, maxEntries = count): BpfMap {
      const map = BpfMap.create(sys, { type, keySize: 0, valueSize, maxEntries, name: 'numbers' });
      maps.push(map);
      for (let i = 0; i < count; i++) map.update(undefined, numbered(map, i));
      return map;
    },
  };
}

function numbered(map: BpfMap, number: number): Buffer {
  const value = Buffer.alloc(map.valueSize, number);
  value.writeUInt32LE(number);
  return value;
}

/** What comes out of a map, which is empty then; a value that was altered is -1. */
function pops(map: BpfMap): number[] {
  const found: number[] = [];
  for (let value = map.lookupAndDelete(undefined); value !== undefined; value = map.lookupAndDelete(undefined)) {
    const number = Buffer.from(value).readUInt32LE();
    found.push(numbered(map, number).equals(value) ? number : -1);
  }
  return found;
}

/** Numbers in the order of pops. */
function order(type: number, count: number): number[] {
  const numbers = Array.from({ length: count }, (_, i) => i);
  return type === QUEUE ? numbers : numbers.reverse();
}

const drained = (map: BpfMap, dir: string, how = '--drain') => ['capture', '--id', `${map.id}`, '-D', dir, how];

/** Captures in this process. */
async function captured(map: BpfMap, dir: string, how: Drain, kernel: Sys = sys) {
  const maps = LiveMaps.look(sys).select({ ids: [map.id], names: [], pins: [], pids: [] });
  const [row] = await capture(kernel, maps, dir, types, { drain: how });
  return row?.report;
}

/** The real kernel, but for some calls of one command. */
function failing(wanted: BpfCommand, errno: number, which: (call: number) => boolean): Sys {
  let calls = 0;
  const meddle: Meddle = (command: BpfCommand, _attr: Attr) => {
    return command === wanted && which(calls++) ? -errno : undefined;
  };
  return new MeddledSys(sys, meddle);
}

for (const { type, name } of KINDS) {
  t.test(`a ${name}, and a disk that has no room for it: nothing is taken out`, { skip }, async (t) => {
    const here = place(t);
    const map = here.map(type, 3000);
    const disk = here.disk(6);
    for (const how of ['--drain', '--drain=keep-empty']) {
      const { status, stdout, stderr } = bpfimg(drained(map, path.join(disk, 'a'), how));
      t.same([status, stdout], [1, '']);
      const wanted = `map ${map.id} (numbers): no items were removed: ${disk}: cannot reserve 12288000 bytes`;
      t.equal(stderr, `bpfimg: ${wanted}: no space left on the device\n`);
      t.same(fs.readdirSync(disk), []);
    }
    // Where the file system cannot promise, the bytes are written beforehand.
    const FALLOCATE = process.arch === 'x64' ? 's285' : 's47';
    const without = denying(EOPNOTSUPP, FALLOCATE);
    t.match(bpfimg(drained(map, path.join(disk, 'a')), without), { status: 1, stderr: /no items were removed: / });
    const dir = path.join(here.folder, 'a');
    t.match(bpfimg(drained(map, dir), without), { status: 0 });
    t.same(
      dataOf(dir)[0]?.values.map((value) => Buffer.from(value, 'hex').readUInt32LE()),
      order(type, 3000),
    );
    t.same(pops(map), order(type, 3000));
  });

  t.test(`a ${name}, and a disk that is found to be full when bytes are brought to it`, { skip }, async (t) => {
    const here = place(t);
    const map = here.map(type, 1500);
    // As of a file system that promises nothing, and takes what is written until it is to keep it.
    const kernel = new (class extends MeddledSys {
      override allocate() {
        return -EOPNOTSUPP;
      }
    })(sys);
    const { fdatasyncSync } = fs;
    realFs.fdatasyncSync = () => {
      throw Object.assign(new Error('ENOSPC'), { code: 'ENOSPC' });
    };
    syncBuiltinESMExports();
    try {
      const message = /no items were removed: .*no space left on the device$/;
      await t.rejects(captured(map, path.join(here.folder, 'a'), 'restore', kernel), { message });
    } finally {
      realFs.fdatasyncSync = fdatasyncSync;
      syncBuiltinESMExports();
    }
    t.strictSame(pops(map), order(type, 1500));
  });

  t.test(`a ${name} needs no room where temporary files usually go`, { skip }, async (t) => {
    const here = place(t);
    const map = here.map(type, 3000);
    const env = { TMPDIR: here.disk(1) };
    t.match(bpfimg(drained(map, path.join(here.folder, 'a')), { env }), { status: 0, stderr: '' });
    t.same(pops(map), order(type, 3000));
  });

  for (const how of ['restore', 'keep-empty'] as const) {
    t.test(`a ${name}, and a disk that takes no more in the middle (${how})`, { skip }, async (t) => {
      const here = place(t);
      const map = here.map(type, 3000);
      const dir = path.join(here.folder, 'a');
      const { writeSync } = fs;
      let writes = 0;
      // After 4 of 12 MiB the file takes nothing for a while.
      realFs.writeSync = ((...args: Parameters<typeof writeSync>) => {
        if ((args[1] as unknown as Buffer).length >= 1 << 20 && ++writes > 4 && writes < 9) {
          throw Object.assign(new Error('ENOSPC'), { code: 'ENOSPC' });
        }
        return writeSync(...args);
      }) as typeof writeSync;
      syncBuiltinESMExports();
      try {
        t.same(await captured(map, dir, how), { kind: 'full' });
      } finally {
        realFs.writeSync = writeSync;
        syncBuiltinESMExports();
      }
      t.ok(writes >= 9, `${writes} writes`);
      t.same(
        dataOf(dir)[0]?.values.map((value) => Buffer.from(value, 'hex').readUInt32LE()),
        order(type, 3000),
      );
      t.same(pops(map), how === 'restore' ? order(type, 3000) : []);
    });
  }

  t.test(`a ${name} into which nothing may be put is not touched`, { skip }, async (t) => {
    const here = place(t);
    const map = here.map(type, 30);
    const dir = path.join(here.folder, 'a');
    const { status, stdout } = bpfimg([...drained(map, dir), '--json'], denying(EPERM, BPF_COMMAND.MAP_UPDATE_ELEM));
    t.equal(status, 1);
    const why =
      'its items could not be put back: BPF_MAP_UPDATE_ELEM: EPERM (frozen, or its file descriptor is read-only)';
    t.match(JSON.parse(stdout), { maps: [{ report: `not supported: ${why}` }] });
    t.same(pops(map), order(type, 30));
  });

  t.test(`a ${name} whose items do not come out any more in the middle`, { skip }, async (t) => {
    const here = place(t);
    const map = here.map(type, 300);
    const before = fdCount();
    const kernel = failing('MAP_LOOKUP_AND_DELETE_ELEM', EPERM, (call) => call === 100);
    await t.rejects(captured(map, path.join(here.folder, 'a'), 'restore', kernel), {
      message: `map ${map.id} (numbers): BPF_MAP_LOOKUP_AND_DELETE_ELEM: EPERM (frozen, or its file descriptor is not for both reading and writing)`,
    });
    t.same(fs.readdirSync(here.folder), []);
    t.equal(fdCount(), before);
    t.same(removeUnfinished(), []);
    t.same(pops(map), order(type, 300), 'all of them, in their order');
  });

  t.test(`a ${name} whose lock is busy now and then`, { skip }, async (t) => {
    const here = place(t);
    const map = here.map(type, 300);
    const busy = (command: BpfCommand) => failing(command, ERRNO.EBUSY, (call) => call > 0 && call % 7 < 3);
    for (const command of ['MAP_LOOKUP_AND_DELETE_ELEM', 'MAP_UPDATE_ELEM'] as const) {
      t.same(await captured(map, path.join(here.folder, command), 'restore', busy(command)), { kind: 'full' });
    }
    t.same(pops(map), order(type, 300));
  });

  t.test(`a ${name} that is frozen between its items' coming out and going back`, { skip }, async (t) => {
    const here = place(t);
    const map = here.map(type, 30);
    const dir = path.join(here.folder, 'a');
    // The first push is the one that asks whether there may be others.
    let pushes = 0;
    const kernel = new MeddledSys(sys, (command) => {
      if (command === 'MAP_UPDATE_ELEM' && ++pushes === 12) map.freeze();
      return undefined;
    });
    t.match(await captured(map, dir, 'restore', kernel), {
      kind: 'partial',
      why: '20 of its items could not be put back: BPF_MAP_UPDATE_ELEM: EPERM (it is frozen)',
    });
    t.equal(dataOf(dir)[0]?.count, 30, 'the image has them all');
    t.same(removeUnfinished(), []);
  });
}

t.test(
  'when a capture fails that should leave it empty, what does not go back is told as well',
  { skip },
  async (t) => {
    const here = place(t);
    const map = here.map(QUEUE, 30);
    const failing = new MapTypes([
      ...plugins,
      {
        name: 'failing',
        types: [types.get(QUEUE)],
        async capture(opened, sink, work) {
          await drain(opened, sink, work, false);
          map.freeze();
          throw new Error('at last');
        },
      },
    ]);
    const maps = LiveMaps.look(sys).select({ ids: [map.id], names: [], pins: [], pids: [] });
    const before = fdCount();
    await t.rejects(capture(sys, maps, path.join(here.folder, 'a'), failing, { drain: 'keep-empty' }), {
      message: `at last; map ${map.id} (numbers): 30 of its items could not be put back: BPF_MAP_UPDATE_ELEM: EPERM (it is frozen)`,
    });
    t.equal(fdCount(), before);
    t.same(removeUnfinished(), []);
  },
);

const COUNT = 15_000;
/** Milliseconds by which a signal comes later each time. */
const DELAY = 15;

t.test('signals at any moment: everything is back, in its order', { skip }, async (t) => {
  const here = place(t);
  for (const { type } of KINDS) {
    const map = here.map(type, COUNT, 64);
    const before = Buffer.from(map.lookup(undefined) as Uint8Array);
    let ended = 0;
    for (const [round, signal] of (['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGTERM', 'SIGINT', 'SIGHUP'] as const).entries()) {
      const dir = path.join(here.folder, `${type} ${round}`);
      const how = round % 2 === 0 ? '--drain' : '--drain=keep-empty';
      const child = spawn(process.execPath, [BPFIMG, ...drained(map, dir, how)], {
        stdio: ['ignore', 'ignore', 'pipe'],
      });
      let said = '';
      child.stderr.on('data', (text) => {
        said += text;
      });
      const closed = new Promise((resolve) => child.once('close', resolve));
      while (before.equals(map.lookup(undefined) ?? new Uint8Array(0)) && child.exitCode === null) {
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      await new Promise((resolve) => setTimeout(resolve, DELAY * round));
      child.kill(signal);
      await closed;
      t.equal(said, '');
      // The signal may come when all is done.
      const done = fs.existsSync(dir);
      if (child.exitCode === 0) t.ok(done);
      else if (!done) ended++;
      if (done) t.equal(bpfimg(['verify', dir]).status, 0, 'the dump is whole');
      const left = done && how !== '--drain' ? [] : order(type, COUNT);
      t.strictSame(pops(map), left, `${signal}, ${how}, ${DELAY * round} ms after the first pop`);
      for (let i = 0; i < COUNT; i++) map.update(undefined, numbered(map, i));
    }
    t.ok(ended >= 2, `${ended} were interrupted`);
  }
});

/** Pushes numbers from `from` on as fast as it can, until nobody listens; prints how many went in. */
const PUSHER = `
const kernel = process.argv[1];
const { types } = await import(process.argv[4]);
const { openSys } = await import(kernel + 'sys.js');
const { BpfMap } = await import(kernel + 'map.js');
const map = BpfMap.openById(await openSys(types), Number(process.argv[2]));
let [next, running] = [Number(process.argv[3]), true];
process.stdin.resume();
process.stdin.on('end', () => { running = false; });
process.stdout.write('ready\\n');
while (running) {
  for (let i = 0; i < 500; i++) {
    const value = Buffer.alloc(map.valueSize, next);
    value.writeUInt32LE(next);
    try { map.update(undefined, value); } catch { break; }
    next++;
  }
  await new Promise((go) => setImmediate(go));
}
process.stdout.write(next + '\\n');
`;

t.test('others push at full speed meanwhile: it ends, and what did not go back is told', { skip }, async (t) => {
  const here = place(t);
  for (const { type, name } of KINDS) {
    const map = here.map(type, 5000, 16, 20_000);
    const modules = new URL('../src/kernel/', import.meta.url).href;
    const table = new URL('helpers/types.js', import.meta.url).href;
    const child = spawn(process.execPath, ['--input-type=module', '-e', PUSHER, modules, `${map.id}`, '5000', table], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    let said = '';
    await new Promise<void>((resolve) => {
      child.stdout.on('data', (text) => {
        said += text;
        resolve();
      });
    });
    const dir = path.join(here.folder, name);
    const done = bpfimg([...drained(map, dir), '--json']);
    const closed = new Promise((resolve) => child.once('close', resolve));
    child.stdin.end();
    await closed;
    t.match(done, { status: 0, stderr: '' });
    const [row] = (JSON.parse(done.stdout) as { maps: { items: number; report: string }[] }).maps;
    const total = Number(said.split('\n')[1]);
    const found = pops(map);
    const lost = Number(
      /(\d+) of its items could not be put back: other items were added in the meantime/.exec(row?.report ?? '')?.[1] ??
        0,
    );
    t.equal(found.length + lost, total, `${name}: ${total} items, ${row?.items} in the image, ${row?.report}`);
    t.equal(new Set(found).size, found.length, 'none twice');
    const image = new Set(dataOf(dir)[0]?.values.map((value) => Buffer.from(value, 'hex').readUInt32LE()));
    t.equal(image.size, row?.items);
    const all = new Set([...image, ...found]);
    t.equal(all.size, total, 'each is in the image or in the map');
  }
});

t.test('long values: memory stays flat', { skip }, async (t) => {
  const here = place(t);
  const map = here.map(QUEUE, 250, 1 << 20, 300);
  const { status, peak } = measured(drained(map, path.join(here.folder, 'a')));
  t.equal(status, 0);
  t.ok(peak <= 200, `${peak} MiB`);
  t.strictSame(pops(map), order(QUEUE, 250));
});

t.test('every file descriptor was closed', { skip }, async (t) => {
  t.same(sys.openFds(), []);
});
