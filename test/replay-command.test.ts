/** `bpfimg replay` as its user meets it: what keeps the maps, what is said, how it ends. */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { type ReplayArguments, run } from '../src/cli/commands/replay.js';
import { MemoryOutput } from '../src/io/output.js';
import { MAP_FLAG } from '../src/kernel/abi.js';
import { isLive } from '../src/kernel/live.js';
import { BpfMap } from '../src/kernel/map.js';
import { mapsOfProcess } from '../src/kernel/proc.js';
import { openSys } from '../src/kernel/sys.js';
import { BPFIMG, bpfimg, type Ran, TOP } from './helpers/command.js';
import type { Item } from './helpers/images.js';
import { bpffs, bpftool, skipWithoutMaps, u32, witness } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import {
  cli,
  dumpOf,
  itemsObject,
  type MapImage,
  MeddledSys,
  readBack,
  someItems,
  usualReplay,
} from './helpers/replay.js';
import { types } from './helpers/types.js';

t.setTimeout(patience(120_000));
const skip = await skipWithoutMaps();
const sys = await openSys(types);
const [HASH, ARRAY, PERCPU_ARRAY, LRU_HASH, TRIE] = [1, 2, 6, 9, 11] as const;
const FLOWD = path.join(TOP, 'fixtures/flowd');
const env = { ...process.env, NO_COLOR: '1', LC_ALL: 'C.UTF-8' };

const flows: MapImage = { id: 11, name: 'flows', items: someItems(5) };
const config: MapImage = { id: 12, name: 'my.cfg', type: ARRAY, max: 3, frozen: true, items: someItems(3) };

function pinPlace(t: Test): string {
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const place = path.join(folder, 'place');
  fs.mkdirSync(place);
  return place;
}

/** A `bpfimg replay` that runs, and what it has written so far. */
class Running {
  stdout = '';
  stderr = '';
  readonly child: ChildProcess;
  readonly #ended: Promise<Ran>;

  constructor(t: Test, args: readonly string[]) {
    this.child = spawn(process.execPath, [BPFIMG, 'replay', ...args], { env, stdio: ['pipe', 'pipe', 'pipe'] });
    this.child.stdout?.on('data', (text) => {
      this.stdout += text;
    });
    this.child.stderr?.on('data', (text) => {
      this.stderr += text;
    });
    this.#ended = new Promise((resolve) => {
      this.child.once('close', (status, signal) => {
        resolve({ status, signal, stdout: this.stdout, stderr: this.stderr });
      });
    });
    t.teardown(() => this.child.kill('SIGKILL'));
  }

  get pid(): number {
    return this.child.pid as number;
  }

  /** Waits until `ready`, which may not take long. */
  async until(ready: () => boolean): Promise<void> {
    for (let i = 0; i < 1000 && !ready(); i++) {
      if (this.child.exitCode !== null) throw new Error(`it ended: ${this.stderr}`);
      await new Promise((go) => setTimeout(go, 10));
    }
  }

  async end(signal?: NodeJS.Signals): Promise<Ran> {
    if (signal !== undefined) this.child.kill(signal);
    return await this.#ended;
  }
}

/** Maps may be freed a moment after they were closed. */
async function gone(id: number): Promise<boolean> {
  for (let i = 0; i < 100 && isLive(sys, id); i++) await new Promise((go) => setTimeout(go, 20));
  return !isLive(sys, id);
}

interface Told {
  readonly map_id: number;
  readonly new_id: number;
  readonly fd: number | null;
  readonly name: string;
  readonly pin: string | null;
  readonly report: string;
}

const rowsOf = (json: string) => (JSON.parse(json) as { maps: Told[] }).maps;

// ---------------------------------------------------------------------------------------------------
// What keeps the maps

t.test('--hold prints its table first, holds the maps, and lets go of them with a signal', { skip }, async (t) => {
  const dump = dumpOf(t.testdir(), flows, { ...flows, id: 13, open: 0, name: 'ro' }, { ...config, open: 1 });
  for (const [signal, status] of [
    ['SIGTERM', 143],
    ['SIGINT', 130],
    ['SIGHUP', 129],
  ] as const) {
    const running = new Running(t, [dump, '--hold', '--json']);
    await running.until(() => running.stdout.endsWith(']}\n'));
    const rows = rowsOf(running.stdout);
    t.match(rows, [
      { map_id: 11, name: 'flows' },
      { map_id: 13, name: 'ro' },
      { map_id: 12, name: 'my.cfg' },
    ]);
    const held = mapsOfProcess(running.pid);
    if (typeof held === 'string') throw new Error(held);
    t.same(
      held.map(({ holder, map }) => [map.id, holder.fd, holder.access]).sort(),
      rows.map(({ new_id, fd }, i) => [new_id, fd, ['rw', 'ro', 'wo'][i]]).sort(),
      'these and no others, each as it was open',
    );
    t.match(bpftool('map', 'show', 'id', `${rows[2]?.new_id}`), { frozen: 1, name: 'my.cfg' });
    t.equal(running.child.exitCode, null, 'it goes on');
    t.match(await running.end(signal), { status, signal: null, stderr: '' });
    for (const { new_id } of rows) t.ok(await gone(new_id), 'they are gone');
  }
});

t.test('the table of --hold and --pin', { skip }, async (t) => {
  const place = pinPlace(t);
  const dump = dumpOf(t.testdir(), flows, config);
  const { status, stdout, stderr } = bpfimg(['replay', dump, '--pin', path.join(place, 'new')]);
  t.equal(`${status}${stderr}`, '0');
  const lines = stdout.trimEnd().split('\n');
  t.match(lines[0], /^OLD ID +ID +FD +NAME +TYPE +ITEMS +PIN +REPORT$/);
  t.match(lines[1], /^ +11 +\d+ +flows +hash +5 +\/.*\/place\/new\/flows +full$/);
  t.match(lines[2], /^ +12 +\d+ +my\.cfg +array +3 +\/.*\/place\/new\/my_cfg +full$/);
  t.equal(lines.length, 3);
  t.equal(fs.statSync(path.join(place, 'new')).mode & 0o777, 0o700);

  const empty = bpfimg(['replay', dumpOf(t.testdir()), '--pin', place]);
  t.match(empty, { status: 0, stdout: 'no BPF maps\n', stderr: '' });
});

/** Tells all of what a command was given. */
const CHILD = `
const fs = require('fs');
const { LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES } = process.env;
const fds = [];
for (let fd = 3; fd < 3 + Number(LISTEN_FDS); fd++) {
  const text = fs.readFileSync('/proc/self/fdinfo/' + fd, 'latin1');
  const of = (name) => new RegExp('^' + name + ':\\\\s*(\\\\S+)', 'm').exec(text)?.[1];
  fds.push({ id: Number(of('map_id')), flags: of('flags'), type: Number(of('map_type')), frozen: of('frozen') });
}
const maps = fs.readdirSync('/proc/self/fd').filter((fd) => {
  try { return fs.readlinkSync('/proc/self/fd/' + fd) === 'anon_inode:bpf-map'; } catch { return false; }
});
const input = fs.readFileSync(0, 'latin1');
console.log(JSON.stringify({ LISTEN_FDS, LISTEN_FDNAMES, own: Number(LISTEN_PID) === process.pid, fds, maps, input }));
console.error('from the child');
`;

t.test('a command gets the maps as systemd hands over sockets', { skip }, async (t) => {
  const readable = { ...flows, id: 13, open: 0, name: '' };
  const dump = dumpOf(t.testdir(), flows, config, readable, { ...flows, id: 14, open: 1, name: 'wo' });
  const node = [process.execPath, '-e', CHILD];
  const ran = bpfimg(['replay', dump, '--json', '--', ...node], {
    input: 'typed in',
    env: { LISTEN_PID: '1', LISTEN_FDS: '9' },
  });
  t.equal(ran.status, 0);
  const child = JSON.parse(ran.stdout) as { fds: { id: number }[] };
  const rows = rowsOf(ran.stderr.slice(0, ran.stderr.lastIndexOf(']}') + 2));
  t.match(ran.stderr, /\nfrom the child\n$/, 'behind the table');
  t.same(
    rows.map(({ map_id, fd }) => [map_id, fd]),
    [
      [11, 3],
      [12, 4],
      [13, 5],
      [14, 6],
    ],
  );
  t.match(child, {
    LISTEN_FDS: '4',
    LISTEN_FDNAMES: 'flows:my_cfg:map_13:wo',
    own: true,
    input: 'typed in',
    maps: ['3', '4', '5', '6'],
    fds: [
      { type: HASH, flags: '02', frozen: '0' },
      { type: ARRAY, flags: '02', frozen: '1' },
      { flags: '00' },
      { flags: '01' },
    ],
  });
  t.same(
    child.fds.map(({ id }) => id),
    rows.map(({ new_id }) => new_id),
    'in order',
  );
  for (const { new_id } of rows) t.ok(await gone(new_id));

  t.test('bpftool sees their items from inside', async (t) => {
    const line = 'exec bpftool -j map dump id "$(sed -n "s/^map_id:[[:space:]]*//p" /proc/self/fdinfo/3)"';
    const { stdout, status } = bpfimg(['replay', dump, '--map', 'flows', '--', 'sh', '-c', line]);
    t.equal(status, 0);
    const items = JSON.parse(stdout) as { key: string[]; value: string[] }[];
    const text = (bytes: string[]) => bytes.map((byte) => byte.slice(2)).join('');
    t.same(Object.fromEntries(items.map(({ key, value }) => [text(key), text(value)])), itemsObject(flows.items ?? []));
  });
});

t.test('a command ends as itself', { skip }, async (t) => {
  const dump = dumpOf(t.testdir(), flows);
  const ends: [words: string[], status: number][] = [
    [['true'], 0],
    [['sh', '-c', 'exit 7'], 7],
    [['sh', '-c', 'exit 255'], 255],
    [['sh', '-c', 'kill -9 $$'], 128 + 9],
    [['sh', '-c', 'kill -TERM $$'], 128 + 15],
    [['/no/such/command'], 127],
    [['no-such-command-at-all', '--pin', 'x'], 127],
    [['/etc/passwd'], 126],
  ];
  for (const [words, status] of ends) {
    const ran = bpfimg(['replay', dump, '--', ...words]);
    t.equal(ran.status, status, words.join(' '));
    t.equal(ran.stdout, '', "standard output is the command's");
    t.notMatch(ran.stderr, /internal error|\n\s+at /);
    t.match(ran.stderr, /^OLD ID .*\n.* flows /);
  }
  t.equal(
    bpfimg(['replay', dump, '--', 'printf', '%s|', '--hold', '-x', 'a b', '']).stdout,
    '--hold|-x|a b||',
    'word by word',
  );
});

t.test('signals reach the command', { skip }, async (t) => {
  const dump = dumpOf(t.testdir(), flows);
  for (const [signal, name] of [
    ['SIGTERM', 'TERM'],
    ['SIGINT', 'INT'],
    ['SIGHUP', 'HUP'],
  ] as const) {
    const line = `trap 'echo got ${name}; exit 9' ${name}; echo ready; while :; do sleep 0.02; done`;
    const running = new Running(t, [dump, '--', 'sh', '-c', line]);
    await running.until(() => running.stdout === 'ready\n');
    t.match(await running.end(signal), { status: 9, signal: null, stdout: `ready\ngot ${name}\n` });
  }
});

t.test('nor is one lost that comes as soon as the command runs', { skip }, async (t) => {
  const dump = dumpOf(t.testdir(), flows);
  const once = async () => {
    const line = "trap 'exit 9' HUP; echo ready; while :; do sleep 0.02; done";
    const running = spawn(process.execPath, [BPFIMG, 'replay', dump, '--', 'sh', '-c', line], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    running.stdout.once('data', () => running.kill('SIGHUP'));
    // Once more for one that was lost, which is not to go on for ever.
    const again = setTimeout(() => running.kill('SIGTERM'), 20_000);
    const code = await new Promise((resolve) => running.once('exit', resolve));
    clearTimeout(again);
    return code;
  };
  const worker = async () => [await once(), await once(), await once(), await once()];
  t.same((await Promise.all([worker(), worker(), worker(), worker()])).flat(), Array(16).fill(9));
});

t.test('a replay that fails runs no command', { skip }, async (t) => {
  const dump = dumpOf(t.testdir(), flows, { id: 9, name: 'bad', max: 0 });
  const ran = bpfimg(['replay', dump, '--', 'echo', 'here']);
  t.match(ran, { status: 1, stdout: '', stderr: /^bpfimg: map 9 \(bad\): BPF_MAP_CREATE: EINVAL [^\n]*\n$/ });
});

t.test('an interrupted replay leaves no pins', { skip }, async (t) => {
  const place = pinPlace(t);
  const folder = t.testdir();
  // An LRU is filled without another thread: signals must be heard all the same.
  const items: Item[] = Array.from({ length: 300_000 }, (_, i) => [u32(i), u32(i, ~i >>> 0)]);
  const dump = dumpOf(folder, flows, { id: 2, name: 'long', type: LRU_HASH, max: 300_000, items });
  for (const [signal, status] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const) {
    for (const pins of [path.join(place, 'new'), place]) {
      const running = new Running(t, [dump, '--verify', '--pin', pins]);
      // It holds maps, so it is at work.
      await running.until(() => Array.isArray(mapsOfProcess(running.pid)) && mapsOfProcess(running.pid).length > 1);
      t.match(await running.end(signal), { status, stdout: '', stderr: '' });
      t.same(fs.readdirSync(place), []);
    }
  }
});

t.test('read-only and write-only fds need CAP_SYS_ADMIN, and without it that is said', { skip }, async (t) => {
  const dump = dumpOf(t.testdir(), { ...flows, open: 0 }, { ...flows, id: 12, open: 1, items: [] });
  const { status, stderr } = without(['replay', dump, '--json', '--', 'true'], ['bpf']);
  t.equal(status, 0);
  const rows = rowsOf(stderr);
  t.match(
    rows[0]?.report,
    /^partial: its fd was read-only and is for both now: map \d+: BPF_MAP_GET_FD_BY_ID: EPERM \(needs the capability CAP_SYS_ADMIN\)$/,
  );
  t.match(rows[1]?.report, /^partial: its fd was write-only and is for both now: /);
});

// ---------------------------------------------------------------------------------------------------
// Capabilities

/** Runs `bpfimg ARGS` with no capabilities but `caps`. */
function without(args: readonly string[], caps: readonly string[] = []): Ran {
  const set = ['-all', ...caps.map((cap) => `+${cap}`)].join(',');
  const { status, signal, stdout, stderr } = spawnSync(
    'setpriv',
    ['--bounding-set', set, process.execPath, BPFIMG, ...args],
    { encoding: 'utf8', env },
  );
  return { status, signal, stdout, stderr };
}

t.test('without CAP_BPF it says what it needs', { skip }, async (t) => {
  const folder = t.testdir();
  const place = pinPlace(t);
  const dump = dumpOf(folder, flows);
  const { status, stdout, stderr } = without(['replay', dump, '--pin', place]);
  t.equal(status, 1);
  t.equal(stdout, '');
  t.equal(
    stderr,
    'bpfimg: map 11 (flows): BPF_MAP_CREATE: EPERM (needs the capability CAP_BPF, before Linux 5.11 also room under RLIMIT_MEMLOCK (ulimit -l))\n',
  );
  const dry = without(['replay', dump, '--dry-run']);
  t.match(dry, { status: 1, stdout: / flows +hash /, stderr: 'bpfimg: creating these maps needs CAP_BPF\n' });
  t.match(without(['replay', dump, '--dry-run'], ['bpf']), { status: 0, stderr: '' });
  t.match(without(['replay', dump, '--pin', place], ['bpf']), { status: 0, stderr: '' });
  t.same(fs.readdirSync(place), ['flows']);

  const libs = path.join(folder, 'libs');
  fs.mkdirSync(libs);
  const devices = `export default {
    name: 'devices', types: [{ number: 14, name: 'devmap', since: '4.14', key: 'index' }], replay: async () => ({ kind: 'full' }),
  }`;
  fs.writeFileSync(path.join(libs, 'devices.mjs'), devices);
  const devmap = dumpOf(folder, { id: 1, type: 14, value: 4, items: [] });
  const lacking = without(['replay', devmap, '-L', libs, '--dry-run']);
  t.match(lacking, { status: 1, stderr: 'bpfimg: creating these maps needs CAP_BPF and CAP_NET_ADMIN\n' });
  const network = without(['replay', devmap, '-L', libs, '--pin', place], ['bpf']);
  t.match(network, {
    status: 1,
    stderr: /EPERM \(needs the capabilities CAP_BPF and CAP_NET_ADMIN, before [^\n]*\)\n$/,
  });
});

// ---------------------------------------------------------------------------------------------------
// --dry-run

/** Runs the command with a kernel that tells what it was asked. */
async function spied(
  args: Partial<ReplayArguments>,
): Promise<{ status: number; out: string; said: string[]; calls: readonly string[] }> {
  const out = new MemoryOutput();
  const said: string[] = [];
  const kernel = new MeddledSys(sys);
  const io = {
    stdin: () => Promise.reject(new Error('replay reads no input')),
    stdout: () => out,
    say: (line: string) => said.push(line),
    show: () => {},
    terminal: false,
    columns: undefined,
    env: {},
  };
  const status = await run({ ...usualReplay, ...args }, io, kernel);
  return { status, out: out.take().toString(), said, calls: kernel.commands };
}

t.test('--dry-run says what would be created, and creates nothing', { skip }, async (t) => {
  const place = pinPlace(t);
  for (const keeper of [
    {},
    { pin: path.join(place, 'new') },
    { hold: true },
    { command: ['touch', path.join(place, 'x')] },
  ]) {
    const { status, out, said, calls } = await spied({ source: FLOWD, dryRun: true, json: true, ...keeper });
    t.equal(status, 0);
    t.same(said, []);
    t.same(calls, [], 'the kernel was not asked for anything');
    t.same(fs.readdirSync(place), []);
    const { maps } = JSON.parse(out) as { maps: Record<string, unknown>[] };
    t.equal(maps.length, 6);
    t.match(maps[2], {
      map_id: 379,
      name: 'seen.tmp',
      type: 'hash',
      key_size: 4,
      value_size: 1,
      max_entries: 100,
      map_flags: ['BPF_F_NO_PREALLOC'],
      frozen: false,
      items: 0,
      report: 'full',
    });
  }
  const { out } = await spied({ source: FLOWD, dryRun: true });
  const lines = out.trimEnd().split('\n');
  t.match(lines[0], /^OLD ID +NAME +TYPE +KEY +VALUE +MAX +FLAGS +FROZEN +ITEMS +MEMORY +REPORT$/);
  t.match(lines[2], /^ +378 +cfg +array +4 +64 +4 +yes +4 +256 bytes +full$/);
  t.equal(lines.length, 7);
});

t.test('--dry-run finds what would fail', { skip }, async (t) => {
  const folder = t.testdir();
  const cases: [what: string, maps: MapImage[], args: Partial<ReplayArguments>, message: RegExp][] = [
    ['max_entries', [{ id: 5, max: 0 }], {}, /^bpfimg: map 5 \(m\): max_entries 0, expected 1 to \d+$/],
    ['sizes', [{ id: 5, type: ARRAY, key: 8 }], {}, /^bpfimg: map 5 \(m\): key_size 8, expected 4$/],
    [
      'flags',
      [{ id: 5, type: PERCPU_ARRAY, flags: MAP_FLAG.NO_PREALLOC }],
      {},
      /^bpfimg: map 5 \(m\): map_flags BPF_F_NO_PREALLOC not accepted$/,
    ],
    ['a name', [{ id: 5, name: 'x y' }], {}, /^bpfimg: map 5 \(x y\): byte 0x20 is not allowed in the name$/],
    [
      'memory',
      [{ id: 5, type: ARRAY, max: 2 ** 32 - 1, value: 4096 }],
      {},
      /^bpfimg: about [\d,]+ MiB of kernel memory needed \(map 5 \(m\): /,
    ],
    [
      'items',
      [{ id: 5, max: 4, items: someItems(5) }],
      {},
      /^bpfimg: map 5 \(m\): 5 items do not fit, max_entries is 4$/,
    ],
    [
      'items of a trie',
      [{ id: 5, type: TRIE, key: 8, max: 2, flags: 1, items: someItems(3, 8) }],
      {},
      /3 items do not fit, max_entries is 2$/,
    ],
    [
      'indexes',
      [{ id: 5, type: ARRAY, max: 4, items: someItems(4) }],
      { maxEntries: 3 },
      /^bpfimg: map 5 \(m\): 4 items do not fit, max_entries is 3$/,
    ],
  ];
  for (const [what, maps, args, message] of cases) {
    const { status, said, calls } = await spied({ source: dumpOf(folder, ...maps), dryRun: true, ...args });
    t.equal(status, 1, what);
    t.equal(said.length, 1);
    t.match(said[0], message);
    t.same(calls, []);
  }
  const forced = await spied({
    source: dumpOf(folder, { id: 5, type: ARRAY, max: 2 ** 32 - 1, value: 4096 }),
    dryRun: true,
    force: true,
  });
  t.match(forced, { status: 0, said: [] });
  const several = await spied({
    source: dumpOf(folder, { id: 5, max: 0, name: 'x y' }, flows),
    dryRun: true,
    json: true,
  });
  t.match(JSON.parse(several.out), {
    maps: [
      { report: /^not supported: max_entries 0, expected .*; byte 0x20 is not allowed in the name$/ },
      { report: 'full' },
    ],
  });
  const pin = await spied({ source: dumpOf(folder, flows), dryRun: true, pin: folder });
  t.match(pin, { status: 1, said: [/: not on a BPF file system, which pins need; /] });
});

// ---------------------------------------------------------------------------------------------------
// Options and what is not there

t.test('what keeps the maps must be said, once', { skip }, async (t) => {
  const none =
    /^bpfimg: what shall keep the maps\? --pin DIR, --pin-back, --into TARGET, --hold, or -- COMMAND \(see bpfimg help replay\)\n$/;
  const two =
    /^bpfimg: --pin, --pin-back, --into, --hold and a command exclude each other \(see bpfimg help replay\)\n$/;
  const usage: [string[], RegExp][] = [
    [[FLOWD], none],
    [[FLOWD, '--verify', '--'], none],
    [[FLOWD, '--pin', '/sys/fs/bpf/x', '--hold'], two],
    [[FLOWD, '--hold', '--', 'true'], two],
    [[FLOWD, '--pin', 'x', '--', 'true'], two],
    [
      [FLOWD, '--hold', '--max-entries', '0'],
      /--max-entries takes a whole number from 1 to 4294967295 \(see bpfimg help replay\)\n$/,
    ],
    [[FLOWD, '--hold', '--max-entries', '1.5'], /--max-entries takes/],
    [[FLOWD, '--hold', '--max-entries', '4294967296'], /--max-entries takes/],
    [[FLOWD, '--hold', '--max-entries', 'many'], /--max-entries takes/],
    [[FLOWD, '--hold', '--percpu', 'most'], /^bpfimg: .*percpu.*first.*sum.*spread/],
    [['--hold'], /^bpfimg: /],
  ];
  for (const [args, message] of usage) {
    const { status, stdout, stderr } = await cli(['replay', ...args]);
    t.equal(status, 2, args.join(' '));
    t.equal(stdout, '');
    t.match(stderr, /^bpfimg: [^\n]+\n$/);
    t.match(stderr, message);
  }
});

t.test('what is no dump', { skip }, async (t) => {
  const folder = t.testdir({ empty: {}, text: 'x', broken: {}, cut: {} });
  const at = (name: string) => path.join(folder, name);
  const good = dumpOf(folder, flows);
  fs.writeFileSync(at('broken/bpfmap-file.img'), 'this is no image');
  for (const name of fs.readdirSync(good)) {
    fs.writeFileSync(
      at(`cut/${name}`),
      fs.readFileSync(path.join(good, name)).subarray(0, name.includes('data') ? -1 : undefined),
    );
  }
  const cases: [string, RegExp][] = [
    [at('no/such'), /no\/such: cannot open it: no such file or folder\n$/],
    [at('text'), /text: 1 bytes, expected a 4-byte image magic\n$/],
    [at('empty'), /empty: no files\.img, bpfmap-file\.img or bpfmap-data\.img in it, expected a dump\n$/],
    [at('broken'), /broken\/bpfmap-file\.img: /],
    [at('cut'), /cut\/bpfmap-data\.img: entry 0 at offset 8: /],
  ];
  for (const [dir, message] of cases) {
    const { status, stdout, stderr } = await cli(['replay', dir, '--hold']);
    t.equal(status, 1, dir);
    t.equal(stdout, '');
    t.match(stderr, /^bpfimg: [^\n]+\n$/);
    t.match(stderr, message);
  }
});

t.test('--map chooses by id and by name', { skip }, async (t) => {
  const names = async (...args: string[]) => {
    const { status, stdout, stderr } = await cli(['replay', FLOWD, '--dry-run', '--json', ...args]);
    return status === 0 ? (JSON.parse(stdout) as { maps: Told[] }).maps.map(({ name }) => name) : `${status} ${stderr}`;
  };
  t.same(await names('--map', '380'), ['odd_sizes']);
  t.same(await names('--map', 'cfg', '--map', '377', '--map', 'cfg'), ['flows', 'cfg'], 'in the order of the dump');
  t.match(await names('--map', 'none'), /^1 bpfimg: .*flowd: no map none in it; its maps: 377 \(flows\), 378/);
  const folder = t.testdir();
  const twice = dumpOf(folder, flows, { ...flows, id: 12 });
  t.match(await cli(['replay', twice, '--map', 'flows', '--hold']), {
    status: 2,
    stderr: /--map flows: 2 maps have that name, choose by id: 11, 12 \(see bpfimg help replay\)\n$/,
  });
  const other = dumpOf(folder, flows, { ...flows, id: 12, max: 77 }, { ...flows, id: 13, name: 'more' });
  for (const [args, shown] of [
    [['show', twice], /^11 +flows .*\n12 +flows /m],
    [['decode', twice], /"map_id":11,.*"map_id":12,/s],
    [['diff', twice, other], /^map 12 flows: 1 attribute changed$/m],
  ] as const) {
    const { stdout, stderr } = await cli([...args, '--map', 'flows']);
    t.match(stdout, shown, `${args[0]}: looking takes all maps of a name`);
    t.notMatch(stdout, 'more');
    t.equal(stderr, '');
  }
  const data = path.join(twice, 'bpfmap-data.img');
  for (const command of ['decode', 'show']) {
    t.match(await cli([command, data, '--map', '12']), { status: 0 });
    t.match(await cli([command, data, '--map', '12', '--map', '99']), {
      status: 1,
      stderr: /data.img: no map 99 in it/,
    });
    t.match(await cli([command, data, '--map', 'flows']), { status: 2, stderr: /only by id/ });
  }
});

t.test('--skip-unsupported: a map that there cannot be here is not the end of the others', { skip }, async (t) => {
  const place = pinPlace(t);
  const folder = t.testdir();
  const future: MapImage = { id: 12, type: 9999, name: 'future' };
  const strange: MapImage = { id: 13, flags: 0x4000_0000, name: 'strange' };
  const outer: MapImage = { id: 14, type: 12, value: 4, name: 'outer', items: [[u32(0), u32(12)]] };
  const dump = dumpOf(folder, flows, future, strange, outer);
  const pin = path.join(place, 'p');
  t.match(await cli(['replay', dump, '--pin', pin]), { status: 1, stdout: '' });
  t.same(fs.readdirSync(place), [], 'without it nothing is made');
  const { status, stdout, stderr } = await cli(['replay', dump, '--pin', pin, '--skip-unsupported', '--json']);
  t.same({ status, stderr }, { status: 0, stderr: '' });
  const rows = (JSON.parse(stdout) as { maps: Told[] }).maps;
  t.same(fs.readdirSync(pin), ['flows']);
  t.match(rows, [
    { name: 'flows', report: 'full', pin: path.join(pin, 'flows') },
    { name: 'future', new_id: null, pin: null, report: /^not supported: .*(9999|type)/ },
    {
      name: 'strange',
      new_id: null,
      report: /^not supported: BPF_MAP_CREATE: EINVAL \(map_flags 0x40000000 not accepted\)/,
    },
    { name: 'outer', new_id: null, report: 'not supported: inner map 12 is not supported' },
  ]);
  const dry = ['replay', dump, '--dry-run', '--map', 'flows', '--map', 'future', '--map', 'strange'];
  t.match(await cli(dry), { status: 1, stderr: /^bpfimg: map 13 \(strange\): map_flags 0x40000000 not accepted\n$/ });
  t.match(await cli([...dry, '--skip-unsupported']), {
    status: 0,
    stdout: /future .*partial: its type is unknown to bpfimg.*\n.*strange .*not supported: /,
    stderr: '',
  });
  t.match(await cli(['replay', dump, '--map', 'future', '--skip-unsupported', '--', 'echo', 'no']), {
    status: 1,
    stderr: /^bpfimg: no map of it is supported here; map 12 \(future\): /,
  });
  t.match(
    await cli(['replay', dumpOf(folder, { ...flows, items: someItems(99) }), '--skip-unsupported', '--pin', `${pin}2`]),
    { status: 1, stderr: /E2BIG/ },
    'items that do not fit are no such thing',
  );
});

t.test('--max-entries of a ring buffer is rounded up, and says so', { skip }, async (t) => {
  const place = pinPlace(t);
  const ring: MapImage = { id: 5, type: 27, key: 0, value: 0, max: 4096, name: 'events' };
  const folder = t.testdir();
  const dump = dumpOf(folder, ring, { ...flows, items: [] });
  for (const [asked, made] of [
    [1, sys.pageSize],
    [5000, 8192],
    [12288, 16384],
    [16384, 16384],
  ] as const) {
    const pin = path.join(place, `p${asked}`);
    const said = `bpfimg: note: map 5 (events): max_entries is rounded up from ${asked} to ${made}: `;
    const stderr = asked === made ? '' : `${said}a ringbuf needs a power of two that is a multiple of the page size\n`;
    t.match(await cli(['replay', dump, '--max-entries', String(asked), '--dry-run']), { status: 0, stderr });
    t.same((await cli(['replay', dump, '--max-entries', String(asked), '--pin', pin])).stderr, stderr);
    t.equal(BpfMap.openPinned(sys, path.join(pin, 'events')).maxEntries, made);
    t.equal(BpfMap.openPinned(sys, path.join(pin, 'flows')).maxEntries, asked, 'only where it must be');
  }
  t.match(await cli(['replay', dumpOf(folder, { ...ring, max: 12288 }), '--dry-run']), {
    status: 1,
    stderr: /map 5 \(events\): max_entries 12288, expected a power of two from 4096 to 2147483648\n$/,
  });
});

t.test('a type that no plugin fills is named before anything is created', { skip }, async (t) => {
  const folder = t.testdir({
    'bare.mjs': 'export default { name: "bare", types: [{ number: 27, name: "ringbuf", since: "5.8", key: "none" }] }',
  });
  const dump = dumpOf(folder, flows, { id: 12, type: 27, key: 0, value: 0, max: 4096, name: 'events' });
  const why = 'map 12 (events): bpfimg cannot replay ringbuf maps yet';
  const { status, said, calls } = await spied({ source: dump, dryRun: true, json: true, libdir: [folder] });
  t.same({ status, said, calls }, { status: 1, said: [`bpfimg: ${why}`], calls: [] });
  await t.rejects(spied({ source: dump, hold: true, libdir: [folder] }), {
    message: `${why}; --map chooses others, --skip-unsupported leaves it out`,
  });
  t.match(await cli(['replay', dump, '--map', 'flows', '--dry-run', '-L', folder]), { status: 0, stderr: '' });
});

t.test('--max-entries makes maps larger and smaller', { skip }, async (t) => {
  const place = pinPlace(t);
  const folder = t.testdir();
  const zeros = (count: number, kept: number) =>
    Array.from({ length: count }, (_, i): Item => [u32(i), i < kept ? Buffer.alloc(8, i + 1) : Buffer.alloc(8)]);
  let made = 0;
  const replay = async (map: MapImage, max: number) => {
    const pin = path.join(place, `p${made++}`);
    const dump = dumpOf(folder, map);
    const ran = await cli(['replay', dump, '--max-entries', String(max), '--pin', pin, '--verify', '--json']);
    const dry = await cli(['replay', dump, '--max-entries', String(max), '--dry-run']);
    t.equal(dry.status, ran.status, 'a dry run knows');
    if (ran.status !== 0) return ran.stderr;
    using live = BpfMap.openPinned(sys, path.join(pin, 'm'));
    return { max: live.maxEntries, items: witness(live) };
  };
  t.same(await replay({ id: 1, items: someItems(16) }, 1000), { max: 1000, items: itemsObject(someItems(16)) });
  t.same(await replay({ id: 1, items: someItems(10) }, 10), { max: 10, items: itemsObject(someItems(10)) });
  t.match(
    await replay({ id: 1, items: someItems(10) }, 9),
    /^bpfimg: map 1 \(m\), item [0-9a-f]{8}: BPF_MAP_UPDATE_BATCH: E2BIG \(.*max_entries 9\)\n$/,
  );
  for (const [type, flags] of [
    [ARRAY, 0],
    [ARRAY, MAP_FLAG.MMAPABLE],
  ] as const) {
    const array = { id: 1, type, flags, max: 16, items: zeros(16, 4) };
    t.same(await replay(array, 4), { max: 4, items: itemsObject(zeros(4, 4)) }, 'the rest is zero');
    t.same(await replay(array, 20), { max: 20, items: itemsObject(zeros(20, 4)) });
    t.match(await replay(array, 3), /^bpfimg: map 1 \(m\), item 03000000: BPF_MAP_UPDATE_(BATCH|ELEM): E2BIG/);
  }
  t.equal(fs.readdirSync(place).length, made - 3, 'no folder of those that failed');
});

t.test('an LRU made smaller keeps what it can, and says so', { skip }, async (t) => {
  const place = pinPlace(t);
  const dump = dumpOf(t.testdir(), { id: 1, type: LRU_HASH, max: 100, items: someItems(100) });
  const { status, stdout, stderr } = await cli(['replay', dump, '--pin', place, '--max-entries', '64', '--json']);
  t.equal(`${status}${stderr}`, '0');
  t.match(
    rowsOf(stdout)[0]?.report,
    /^partial: it holds \d+ of 100 items: the kernel evicted the others to make room$/,
  );
  using live = BpfMap.openPinned(sys, path.join(place, 'm'));
  t.ok(Object.keys(readBack(live)).length > 0);
});
