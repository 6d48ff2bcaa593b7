/** `bpfimg list`, against real maps and a scripted kernel. */

import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { pathText } from '../src/bytes.js';
import { type ListArguments, run } from '../src/cli/commands/list.js';
import type { Io } from '../src/cli/io.js';
import { MemoryOutput } from '../src/io/output.js';
import { ATTR, MAP_FLAG } from '../src/kernel/abi.js';
import { KernelError } from '../src/kernel/error.js';
import { iteratorOffsets, kernelMaps } from '../src/kernel/iter.js';
import { LiveMaps, openLive, walkIds } from '../src/kernel/live.js';
import { BpfMap, type MapSpec } from '../src/kernel/map.js';
import { Attr, ERRNO, openSys, type Sys } from '../src/kernel/sys.js';
import { NO_SELECTORS } from '../src/source/selectors.js';
import { countsItems, iteratesMaps, lacking, readsKernel } from './helpers/features.js';
import { FakeSys } from './helpers/kernel-fake.js';
import { bpffs, bpftool, fdCount, HolderProcess, skipWithoutMaps, withoutCapabilities } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import { types } from './helpers/types.js';

const skip = await skipWithoutMaps();
const sys = await openSys(types);
/** Why only ids are known of maps that no process holds. */
const blind = skip === false && !iteratesMaps() && 'this kernel has no iterator over maps, or shows no BTF';
/** Why items are not counted here. That bpfimg then says so is tested below. */
const uncounted = skip === false && !countsItems() && 'this kernel does not count the items of hashes';
const lockedDown =
  skip === false && !readsKernel(sys) && 'this kernel is locked down: programs may not read how many items a queue has';
/** Items of 8 bytes: a map that is not counted by reading it. */
const LARGE = 10_000;
const none: ListArguments = {
  ...NO_SELECTORS,
  sources: [],
  json: false,
  sort: 'id',
  count: false,
  openmetrics: false,
  libdir: [],
};

/** What is said where something is not seen; a process that even root may not look at can be anywhere. */
const ELSEWHERE = /CAP_SYS_ADMIN|only the id/;

interface Listed {
  readonly out: string;
  readonly said: string[];
  /** Of --json. */
  readonly maps: Record<string, unknown>[];
  readonly code: unknown;
}

/** Runs the command; without `kernel` on the real one. */
async function list(args: Partial<ListArguments>, kernel?: Sys): Promise<Listed> {
  const out = new MemoryOutput();
  const said: string[] = [];
  const io: Io = {
    stdin: () => Promise.reject(new Error('list reads no input')),
    stdout: () => out,
    say: (line) => said.push(line),
    show: () => {},
    terminal: false,
    columns: undefined,
    env: {},
  };
  const code = await run({ ...none, ...args }, io, kernel);
  const text = out.take().toString();
  const maps = args.json ? (JSON.parse(text) as { maps: Record<string, unknown>[] }).maps : [];
  return { out: text, said, maps, code };
}

t.test('holders, pins and attributes agree with bpftool', { skip }, async (t) => {
  const before = fdCount();
  const { folder, remove } = bpffs();
  const holder = await HolderProcess.start([
    { type: 1, keySize: 16, valueSize: 24, maxEntries: 1024, name: 'list_flows', flags: MAP_FLAG.NO_PREALLOC },
    { type: 2, keySize: 4, valueSize: 64, maxEntries: 4, name: 'list_cfg' },
  ]);
  try {
    const [flows = 0, cfg = 0] = holder.ids;
    using cfgMap = BpfMap.openById(sys, cfg);
    cfgMap.freeze();
    cfgMap.pin(path.join(folder, 'cfg'));
    fs.mkdirSync(path.join(folder, 'sub'));
    cfgMap.pin(path.join(folder, 'sub', 'again'));
    const { maps, said } = await list({ id: [String(cfg), String(flows)], json: true });
    t.notMatch(said.join(), ELSEWHERE);
    const shown = (id: number) => bpftool('map', 'show', 'id', `${id}`) as { bytes_memlock: number };
    const holds = (pid: number, fd: number, access = 'rw') => ({ pid, command: 'node', fd, access });
    t.match(maps, [
      {
        map_id: flows,
        name: 'list_flows',
        type: 'hash',
        key_size: 16,
        value_size: 24,
        max_entries: 1024,
        map_flags: ['BPF_F_NO_PREALLOC'],
        map_extra: '0x0',
        frozen: false,
        memlock: shown(flows).bytes_memlock,
        btf_id: 0,
        pins: [],
        holders: [holds(holder.pid, holder.fds[0] as number)],
        programs: [],
      },
      {
        map_id: cfg,
        name: 'list_cfg',
        type: 'array',
        frozen: true,
        memlock: shown(cfg).bytes_memlock,
        pins: [path.join(folder, 'cfg'), path.join(folder, 'sub', 'again')],
      },
    ]);
    const pids = ((maps[1]?.holders ?? []) as { pid: number }[]).map(({ pid }) => pid);
    t.same(pids.sort(), [holder.pid, process.pid].sort(), 'every process that holds it');

    const only = async (args: Partial<ListArguments>) => {
      return (await list({ ...args, json: true })).maps.map((map) => map.map_id);
    };
    t.same(await only({ name: ['list_cfg'] }), [cfg]);
    t.same(await only({ pinned: [path.join(folder, 'sub', 'again')] }), [cfg]);
    t.same(await only({ pid: [String(holder.pid)] }), [flows, cfg]);
    t.same(
      await only({ pid: [String(holder.pid)], name: ['list_cfg'], id: [String(flows)] }),
      [flows, cfg],
      'each once',
    );
    const all = await only({});
    t.ok(all.includes(flows) && all.includes(cfg));

    const lines = (await list({ pid: [String(holder.pid)] })).out.trimEnd().split('\n');
    t.match(
      lines[0],
      /^ *ID +NAME +TYPE +KEY +VALUE +MAX +FLAGS +FROZEN +USED +% +MEMLOCK +BTF +PINS +HOLDERS \(pid\(command\):fd\)$/,
    );
    const [fd] = holder.fds;
    t.match(
      lines[1],
      new RegExp(`^ *${flows}  list_flows  hash +16 +24  1024  no_prealloc +no .* ${holder.pid}\\(node\\):${fd}$`),
    );
    t.equal(lines.length, 3);
    cfgMap.close();

    await holder.stop();
    const after = await list({ id: [String(cfg)], json: true });
    t.match(after.maps, [{ name: 'list_cfg', frozen: true, holders: [], programs: [] }], 'only its pins hold it');
    // Maps of others come and go meanwhile.
    const left = await only({});
    t.same([left.includes(flows), left.includes(cfg)], [false, true]);
  } finally {
    await holder.stop();
    remove();
  }
  t.equal(fdCount(), before, 'nothing stays open');
  t.same(sys.openFds(), []);
});

t.test('maps that are missing, and maps that are named twice', { skip }, async (t) => {
  const { folder, remove } = bpffs();
  const spec = { type: 2, keySize: 4, valueSize: 4, maxEntries: 1 };
  using one = BpfMap.create(sys, { ...spec, name: 'list_twin' });
  using two = BpfMap.create(sys, { ...spec, name: 'list_twin' });
  const fails = async (args: Partial<ListArguments>, kind: string, message: RegExp, exitCode = 1) => {
    await t.rejects(list(args), { kind, message, exitCode }, JSON.stringify(args));
  };
  try {
    await fails({ id: ['4294967295'] }, 'notFound', /^map 4294967295: no such map$/);
    await fails({ name: ['no_such'] }, 'notFound', /^--name no_such: no map has this name$/);
    const twins = new RegExp(`^--name list_twin: 2 maps have that name, choose by id: ${one.id}, ${two.id}$`);
    await fails({ name: ['list_twin'] }, 'usage', twins, 2);
    await fails({ pinned: [path.join(folder, 'xyzzy')] }, 'notFound', /xyzzy: nothing is pinned there$/);
    await fails(
      { pinned: ['/etc/passwd'] },
      'io',
      /^\/etc\/passwd: BPF_OBJ_GET: .*not on a BPF file system; one is mounted at/,
    );
    await fails({ pid: ['4194399'] }, 'notFound', /^process 4194399: no such process$/);
    await fails({ id: ['abc'] }, 'usage', /^--id abc: expected a number$/, 2);
    await fails({ pid: ['0'] }, 'usage', /^--pid 0: expected a number$/, 2);
    const program = loadProgram(one);
    try {
      const pin = path.join(folder, 'prog');
      pinFd(program, pin);
      await fails({ pinned: [pin] }, 'unsupported', /prog: expected a BPF map, got a BPF prog$/);
      t.match((await list({ id: [String(one.id)], json: true })).maps, [{ pins: [] }], 'pinned programs are no maps');
    } finally {
      sys.close(program);
    }
    const idle = await HolderProcess.start([]);
    t.equal((await list({ pid: [String(idle.pid)] })).out, 'no BPF maps\n', 'a process without maps is no error');
    await idle.stop();
  } finally {
    remove();
  }
});

/** A socket filter that refers to `map` and does nothing; its file descriptor. */
function loadProgram(map: BpfMap): number {
  const code = Buffer.alloc(32);
  code.writeUInt16LE(0x1118, 0); // r1 = map, by file descriptor
  code.writeInt32LE(map.fd, 4);
  code.writeUInt8(0xb7, 16); // r0 = 0
  code.writeUInt8(0x95, 24); // exit
  const attr = new Attr(ATTR.progLoad, sys)
    .set('prog_type', 1)
    .point('insns', code)
    .set('insn_cnt', 4)
    .point('license', Buffer.from('GPL\0'))
    .setBytes('prog_name', Buffer.from('list_test'));
  const fd = sys.bpf('PROG_LOAD', attr);
  if (fd < 0) throw new Error(`PROG_LOAD: ${fd}`);
  return fd;
}

function pinFd(fd: number, file: string): void {
  const attr = new Attr(ATTR.obj, sys).point('pathname', Buffer.from(`${file}\0`)).set('bpf_fd', fd);
  const result = sys.bpf('OBJ_PIN', attr);
  if (result < 0) throw new Error(`OBJ_PIN: ${result}`);
}

t.test('maps that only programs hold', { skip }, async (t) => {
  using map = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 8, maxEntries: 10, name: 'list_prog' });
  using tail = BpfMap.create(sys, { type: 3, keySize: 4, valueSize: 4, maxEntries: 8, name: 'list_tail' });
  const programs = [loadProgram(map), loadProgram(tail)];
  const { id } = map;
  const memlock = map.state().memlock;
  const ids = [String(id), String(tail.id)];
  map.close();
  tail.close();
  try {
    await t.test('as the iterator shows them', { skip: blind }, async (t) => {
      const spy = spied();
      const { maps, said } = await list({ id: ids, json: true }, spy.sys);
      t.match(maps, [
        {
          map_id: id,
          name: 'list_prog',
          type: 'hash',
          key_size: 4,
          value_size: 8,
          memlock,
          frozen: false,
          holders: [],
        },
        {
          map_id: tail.id,
          name: 'list_tail',
          type: 'prog_array',
          max_entries: 8,
          memlock: null,
          btf_id: 0,
          holders: [],
        },
      ]);
      t.match(maps, [{ programs: [{ name: 'list_test' }] }, { programs: [{ name: 'list_test' }] }]);
      t.notMatch(said.join(), ELSEWHERE);
      t.ok(spy.opened.includes(id), 'a hash may be opened');
      t.notOk(spy.opened.includes(tail.id), 'a PROG_ARRAY is not opened');
      t.match((await list({ id: ids })).out, /program \d+\(list_test\)$/m);
    });

    // Without it types are not known, so nothing is opened.
    const spy = spied((command) => (command === 'PROG_LOAD' ? -ERRNO.EPERM : undefined));
    const { maps, said } = await list({ id: ids, json: true }, spy.sys);
    t.match(maps, [
      { map_id: id, name: null, type: null, key_size: null, map_flags: null, programs: [{ name: 'list_test' }] },
      { map_id: tail.id, type: null },
    ]);
    t.match(said.join(), /^bpfimg: (.*; )?of \d+ maps only the id is shown/);
    t.same(
      spy.opened.filter((one) => one === id || one === tail.id),
      [],
    );
    const live = LiveMaps.look(spy.sys).select({ ids: [tail.id], names: [], pins: [], pids: [] })[0];
    t.throws(() => live && openLive(sys, live), {
      kind: 'unsupported',
      message: /no visible process or pin holds it/,
    });
  } finally {
    for (const fd of programs) sys.close(fd);
  }
});

/** The real kernel; `opened` are the ids of maps opened by id, `answer` may answer in its place. */
function spied(answer: (command: string, attr: Attr) => number | undefined = () => undefined): {
  sys: Sys;
  opened: number[];
} {
  const opened: number[] = [];
  const spy = new Proxy(sys, {
    get(target, name) {
      if (name === 'bpf') {
        return ((command, attr) => {
          if (command === 'MAP_GET_FD_BY_ID') opened.push(attr.bytes.readUInt32LE(0));
          return answer(command, attr) ?? target.bpf(command, attr);
        }) satisfies Sys['bpf'];
      }
      const value = Reflect.get(target, name) as unknown;
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
  return { sys: spy, opened };
}

t.test('the iterator shows what the map itself says, and touches nothing', { skip }, async (t) => {
  using map = BpfMap.create(sys, { type: 1, keySize: 3, valueSize: 5, maxEntries: 50, name: 'list.iter', flags: 1 });
  const filter: MapSpec = { type: 30, keySize: 0, valueSize: 4, maxEntries: 8, extra: 7n };
  const plain: MapSpec = { type: 2, keySize: 4, valueSize: 4, maxEntries: 8 };
  using frozen = BpfMap.create(sys, lacking(sys, filter) === undefined ? filter : plain);
  frozen.freeze();
  // Other tests make maps and let them go meanwhile.
  const earlier = walkIds(sys, 'MAP_GET_NEXT_ID') ?? [];
  const before = fdCount();
  const kernel = kernelMaps(sys);
  t.equal(fdCount(), before);
  t.equal(kernel === undefined, blind !== false);
  if (kernel === undefined) return;
  const seen = kernel.get(map.id);
  t.same(seen, {
    id: map.id,
    type: 1,
    keySize: 3,
    valueSize: 5,
    maxEntries: 50,
    flags: 1,
    extra: 0n,
    name: 'list.iter',
    frozen: false,
    btfId: 0,
    users: 1n,
    used: uncounted ? undefined : 0,
  });
  const { type, keySize, extra } = frozen.info;
  t.match(kernel.get(frozen.id), { type, keySize, extra, frozen: true, name: '' });
  const later = new Set(walkIds(sys, 'MAP_GET_NEXT_ID'));
  t.ok(earlier.every((id) => kernel.has(id) || !later.has(id)));
  t.equal(kernelMaps(sys, '/nowhere'), undefined);
  t.equal(iteratorOffsets(Buffer.alloc(100)), undefined);

  // Small PROG_ARRAYs, looked at while they are being cleared: none may stay for ever.
  const ids: number[] = [];
  for (let i = 0; i < 10; i++) {
    using array = BpfMap.create(sys, { type: 3, keySize: 4, valueSize: 4, maxEntries: 1024 });
    ids.push(array.id);
    array.close();
    await list({});
  }
  const left = () => (walkIds(sys, 'MAP_GET_NEXT_ID') ?? []).filter((id) => ids.includes(id));
  for (let i = 0; i < 100 && left().length > 0; i++) await new Promise((resolve) => setTimeout(resolve, 20));
  t.same(left(), []);
});

t.test('opening a live map disturbs least', { skip }, async (t) => {
  const { folder, remove } = bpffs();
  const holder = await HolderProcess.start([
    { type: 3, keySize: 4, valueSize: 4, maxEntries: 4, name: 'open_tail' },
    { type: 1, keySize: 4, valueSize: 4, maxEntries: 4, name: 'open_wo', flags: MAP_FLAG.WRONLY },
  ]);
  try {
    const [tail = 0, writeOnly = 0] = holder.ids;
    const spy = spied();
    const live = () => LiveMaps.look(spy.sys).select({ ids: holder.ids, names: [], pins: [], pids: [] });
    const [first, second] = live();
    {
      using map = openLive(spy.sys, first as never);
      t.same([map.id, map.name], [tail, 'open_tail']);
      t.same(spy.opened, [], 'as its holder has it open');
    }
    {
      using map = openLive(spy.sys, second as never);
      t.match([map.id, map.state().access], [writeOnly, 'ro'], 'a write-only file cannot be read');
      t.same(spy.opened, [writeOnly]);
    }
    using own = BpfMap.fromProcess(sys, holder.pid, holder.fds[0] as number);
    own.pin(path.join(folder, 'tail'));
    own.close();
    const pinned = live()[0];
    await holder.stop();
    spy.opened.length = 0;
    using map = openLive(spy.sys, pinned as never);
    t.equal(map.id, tail, 'the holder has gone, its pin is still there');
    t.same(spy.opened, []);
  } finally {
    await holder.stop();
    remove();
  }
});

t.test('without privilege: what can be seen, and a line about the rest', { skip }, async (t) => {
  const holder = await HolderProcess.start([{ type: 2, keySize: 4, valueSize: 4, maxEntries: 1, name: 'unseen' }]);
  try {
    const { stdout } = withoutCapabilities(
      `const map = BpfMap.create(sys, { type: 2, keySize: 4, valueSize: 4, maxEntries: 1, name: 'seen' });
       const live = LiveMaps.look(sys);
       console.log(JSON.stringify([live.unseen, live.maps.map((map) => map.name)]));`,
      ['cap_39'],
    );
    const [unseen, names] = JSON.parse(stdout) as [{ ids: boolean; processes: number }, string[]];
    t.match(unseen, { ids: true, types: 0 });
    t.ok(unseen.processes > 0);
    // Pins of other tests can be seen too.
    t.ok(names.includes('seen') && !names.includes('unseen'), names.join());
  } finally {
    await holder.stop();
  }
});

/** A kernel without privilege, on a machine with one process that has one map. */
function unprivileged(t: Test): FakeSys {
  const proc = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-proc-'));
  t.teardown(() => fs.rmSync(proc, { recursive: true }));
  for (const folder of ['50/fd', '50/fdinfo']) fs.mkdirSync(path.join(proc, folder), { recursive: true });
  fs.writeFileSync(path.join(proc, '50/comm'), 'a\x1bb\n');
  fs.symlinkSync('anon_inode:bpf-map', path.join(proc, '50/fd/3'));
  const fdinfo =
    'flags:\t02000002\nmap_type:\t77\nkey_size:\t4\nvalue_size:\t8\nmax_entries:\t9\nmap_flags:\t0x0\nmap_id:\t5\n';
  fs.writeFileSync(path.join(proc, '50/fdinfo/3'), fdinfo);
  const fake = new (class extends FakeSys {
    override readonly proc = proc;
  })();
  return fake.on('MAP_GET_NEXT_ID', -ERRNO.EPERM);
}

t.test('a scripted kernel: no privilege, an unknown type', async (t) => {
  const fake = unprivileged(t);
  const { out, said } = await list({}, fake);
  t.same(said, ['bpfimg: without CAP_SYS_ADMIN, maps that no visible process or pin holds are not shown']);
  t.equal(
    out,
    [
      'ID  NAME  TYPE     KEY  VALUE  MAX  FLAGS  FROZEN  USED  %  MEMLOCK  BTF  PINS  HOLDERS (pid(command):fd)',
      ' 5  ?     type_77    4      8    9         ?          ?  ?        ?    ?        50(a\\x1bb):3',
      '',
    ].join('\n'),
  );
  t.equal(
    (await list({ json: true }, fake)).out,
    '{"maps":[\n  {"map_id":5,"name":null,"type":"type_77","key_size":4,"value_size":8,"max_entries":9,"used":null,"map_flags":[],' +
      '"map_extra":null,"frozen":null,"memlock":null,"btf_id":null,"pins":[],' +
      '"holders":[{"pid":50,"command":"a\\u001bb","fd":3,"access":"rw","cloexec":true}],"programs":[]}]}\n',
  );
  await t.rejects(list({ id: ['6'] }, fake), { message: 'map 6: no such map that can be seen without CAP_SYS_ADMIN' });
  t.same(fake.openFds(), []);
});

t.test('what is selected by id or pin is all that is looked at, and all of it', { skip }, async (t) => {
  const { folder, remove } = bpffs();
  using held = BpfMap.create(sys, { type: 2, keySize: 4, valueSize: 8, maxEntries: 3, name: 'list_two' });
  using other = BpfMap.create(sys, { type: 2, keySize: 4, valueSize: 8, maxEntries: 3, name: 'list_other' });
  try {
    for (const name of ['a', 'b']) held.pin(path.join(folder, name));
    other.pin(path.join(folder, 'c'));
    const pin = path.join(folder, 'a');
    for (const selectors of [
      { ids: [], names: [], pins: [pin], pids: [] },
      { ids: [held.id], names: [], pins: [], pids: [] },
      { ids: [other.id], names: [], pins: [pin], pids: [] },
    ]) {
      const few = LiveMaps.look(sys, selectors);
      const chosen = few.select(selectors);
      t.same(chosen, LiveMaps.look(sys).select(selectors));
      t.same(few.maps, chosen);
      t.match(chosen[0], { pins: ['a', 'b'].map((name) => path.join(folder, name)), holders: [{ pid: process.pid }] });
      t.equal(few.find(other.id)?.name, 'list_other', 'others are looked for when they are needed');
    }
    const folders = { ids: [], names: [], pins: [folder], pids: [] };
    t.same(
      LiveMaps.look(sys, folders)
        .select(folders)
        .map(({ id }) => id),
      [held.id, other.id].sort((a, b) => a - b),
    );
    // Below the folder whose pins are walked first.
    const below = path.join(folder, 'below');
    fs.mkdirSync(below);
    held.pin(path.join(below, 'd'));
    const one = { ids: [], names: [], pins: [below], pids: [] };
    const few = LiveMaps.look(sys, one);
    t.same(few.maps, LiveMaps.look(sys).select(one), 'also its pins elsewhere, and its holders');
    t.equal(few.maps[0]?.pins.length, 3);
  } finally {
    remove();
  }
});

t.test('thousands of maps', { skip }, async (t) => {
  const maps = Array.from({ length: 3000 }, (_, i) =>
    BpfMap.create(sys, { type: 2, keySize: 4, valueSize: 4, maxEntries: 1, name: `many_${i}` }),
  );
  try {
    const before = fdCount();
    const start = performance.now();
    const { maps: listed } = await list({ pid: [String(process.pid)], json: true });
    const ms = performance.now() - start;
    t.comment(`3000 maps in ${ms.toFixed(0)} ms`);
    t.equal(listed.length, 3000);
    t.equal(new Set(listed.map((map) => map.name)).size, 3000);
    t.equal(fdCount(), before);
    t.ok(ms < patience(10_000), 'in seconds, however busy the machine is');
  } finally {
    for (const map of maps) map.close();
  }
  t.same(sys.openFds(), []);
});

/** A key of `size` bytes that is a number. */
function numbered(size: number, number: number): Buffer {
  const key = Buffer.alloc(size);
  if (size >= 4) key.writeUInt32LE(number, size - 4);
  return key;
}

t.test(
  'USED is what the map holds, of every type that the kernel counts',
  { skip: skip || uncounted || lockedDown },
  async (t) => {
    const counted: Record<string, Partial<MapSpec>> = {
      hash: {},
      'hash, allocated': { flags: MAP_FLAG.NO_PREALLOC },
      percpu_hash: { type: 5 },
      'percpu_hash, allocated': { type: 5, flags: MAP_FLAG.NO_PREALLOC },
      lru_hash: { type: 9 },
      'lru_hash by CPU': { type: 9, flags: MAP_FLAG.NO_COMMON_LRU },
      lru_percpu_hash: { type: 10 },
      lpm_trie: { type: 11, keySize: 8, flags: MAP_FLAG.NO_PREALLOC },
      hash_of_maps: { type: 13, valueSize: 4 },
      devmap_hash: { type: 25, valueSize: 4 },
      // Few slots, so that its positions wrap around.
      queue: { type: 22, keySize: 0, maxEntries: 3 },
      stack: { type: 23, keySize: 0 },
    };
    using inner = BpfMap.create(sys, { type: 2, keySize: 4, valueSize: 4, maxEntries: 1 });
    const wrapping: [number, boolean][] = [true, true, true, false, false, true, true].map((put, i) => [i % 3, put]);
    for (const [name, more] of Object.entries(counted)) {
      const spec = { type: 1, keySize: 4, valueSize: 8, maxEntries: 40, ...more };
      fc.assert(
        fc.property(fc.array(fc.tuple(fc.nat({ max: 60 }), fc.boolean()), { maxLength: 150 }), (steps) => {
          using map = BpfMap.create(sys, { ...spec, name: 'list_used', inner });
          const value = Buffer.alloc(map.valueStride);
          if (spec.type === 13) value.writeUInt32LE(inner.fd);
          if (spec.type === 25) value.writeUInt32LE(1);
          for (const [number, put] of steps) {
            const key = numbered(spec.keySize, number);
            if (spec.type === 11) key.writeUInt32LE(32);
            try {
              if (put) map.update(spec.keySize === 0 ? undefined : key, value);
              else if (spec.keySize === 0) map.lookupAndDelete(undefined);
              else map.delete(key);
            } catch (error) {
              // It is full.
              if (!(error instanceof KernelError)) throw error;
            }
          }
          const live = LiveMaps.look(sys);
          const [one] = live.select({ ids: [map.id], names: [], pins: [], pids: [] });
          live.addUsed(one === undefined ? [] : [one]);
          const kernelUsed = kernelMaps(sys)?.get(map.id)?.used;
          let holds = 0;
          if (spec.keySize === 0) while (map.lookupAndDelete(undefined) !== undefined) holds++;
          else for (let key = map.nextKey(undefined); key !== undefined; key = map.nextKey(key)) holds++;
          // Small hashes are read, which must be what the kernel counts.
          return one?.used === holds && kernelUsed === holds;
        }),
        { numRuns: 4, examples: [[wrapping]] },
      );
      t.pass(name);
    }
    using array = BpfMap.create(sys, { type: 2, keySize: 4, valueSize: 4, maxEntries: 5, name: 'list_array' });
    using slots = BpfMap.create(sys, { type: 12, keySize: 4, valueSize: 4, maxEntries: 5, name: 'list_slots', inner });
    slots.update(numbered(4, 3), numbered(4, inner.fd));
    const id = [array.id, slots.id].map(String);
    t.match((await list({ id, json: true })).maps, [{ used: null }, { used: null }], 'arrays always have all items');
    t.match((await list({ id })).out, /list_array .* no +- +- .*\n.*list_slots .* no +\? +\? /);
    t.match((await list({ id, json: true, count: true })).maps, [{ used: null }, { used: 1 }], 'counted by reading');
    t.match((await list({ id, count: true })).out, /list_slots .* no +1 +20 /);
  },
);

if (lockedDown) {
  t.test('how full a queue is, a locked-down kernel does not tell', async (t) => {
    using map = BpfMap.create(sys, { type: 22, keySize: 0, valueSize: 4, maxEntries: 5, name: 'locked_queue' });
    t.match((await list({ id: [String(map.id)] })).out, / locked_queue .* no +\? +\? /);
  });
}
if (uncounted) {
  t.test('a kernel that does not count the items of hashes', async (t) => {
    using map = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 4, maxEntries: LARGE, name: 'uncounted' });
    map.update(numbered(4, 1), numbered(4, 1));
    const id = [String(map.id)];
    t.match((await list({ id })).out, / uncounted .* no +\? +\? /);
    t.match((await list({ id, json: true, count: true })).maps, [{ used: 1 }], 'counted by reading');
    using small = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 4, maxEntries: 5, name: 'uncounted_small' });
    t.match((await list({ id: [String(small.id)], json: true })).maps, [{ used: 0 }], 'as small ones always are');
  });
}

t.test(
  'a kernel that counts less: what it does not know is a question mark',
  { skip: skip || uncounted || lockedDown },
  async (t) => {
    using map = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 4, maxEntries: LARGE });
    using queue = BpfMap.create(sys, { type: 22, keySize: 0, valueSize: 4, maxEntries: 5 });
    map.update(numbered(4, 1), numbered(4, 1));
    queue.update(undefined, numbered(4, 1));
    const id = [map.id, queue.id].map(String);
    // Calls of kernel functions have 2 as source register; bpf_probe_read_kernel is helper 113.
    const calls = (attr: Attr, what: (code: Buffer) => boolean) => {
      const code = attr.pointee('insns') as Buffer;
      for (let at = 0; at < code.length; at += 8) if (code[at] === 0x85 && what(code.subarray(at))) return true;
      return false;
    };
    const refusing = (what: (code: Buffer) => boolean) =>
      spied((command, attr) => (command === 'PROG_LOAD' && calls(attr, what) ? -ERRNO.EINVAL : undefined)).sys;
    const used = async (kernel?: Sys, count = false) => {
      const { maps, said } = await list({ id, json: true, count }, kernel);
      t.notMatch(said.join(), /used|full/);
      return maps.map((one) => one.used);
    };
    const kernelFunction = (code: Buffer) => (code[1] as number) >> 4 === 2;
    const probe = (code: Buffer) => (code[1] as number) >> 4 === 0 && code.readUInt32LE(4) === 113;
    t.same(await used(), [1, 1]);
    t.same(await used(refusing(kernelFunction)), [null, 1], 'Linux before 6.6');
    t.same(await used(refusing(probe)), [1, null], 'a locked-down kernel');
    t.same(await used(refusing((code) => kernelFunction(code) || probe(code))), [null, null]);
    const none = spied((command) => (command === 'PROG_LOAD' ? -ERRNO.EPERM : undefined)).sys;
    t.same(await used(none), [null, null], 'no right to load programs');
    t.same(await used(none, true), [1, null], 'counted by reading; the queue is not drained');
    t.same(queue.lookup(undefined), new Uint8Array(numbered(4, 1)));
  },
);

t.test('sorted, judged and as metrics', { skip: skip || uncounted }, async (t) => {
  const { folder, remove } = bpffs();
  const made = (name: string, maxEntries: number, items: number) => {
    const map = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 8, maxEntries, name });
    for (let i = 0; i < items; i++) map.update(numbered(4, i), Buffer.alloc(8));
    return map;
  };
  using half = made('list_half', 1000, 500);
  using full = made('list_full', 10, 10);
  using bare = made('list_bare', 100, 0);
  using array = BpfMap.create(sys, { type: 2, keySize: 4, valueSize: 4, maxEntries: 5, name: 'list_array' });
  using slots = BpfMap.create(sys, { type: 7, keySize: 4, valueSize: 8, maxEntries: 5, name: 'list_stacks' });
  try {
    const id = [half, full, bare, array, slots].map((map) => String(map.id));
    const order = async (sort: ListArguments['sort']) =>
      (await list({ id, sort, json: true })).maps.map((map) => String(map.name).slice(5));
    t.same(await order('id'), ['half', 'full', 'bare', 'array', 'stacks']);
    t.same(await order('name'), ['array', 'bare', 'full', 'half', 'stacks']);
    t.same(await order('used'), ['full', 'half', 'bare', 'array', 'stacks']);
    t.same((await order('memory'))[0], 'half');
    const lines = (await list({ id, sort: 'used' })).out.split('\n');
    t.match(lines[1], / no +10 +100 /);
    t.match(lines[2], / no +500 +50 /);

    const judged = await list({ id, failAbove: '50%' });
    t.equal(judged.code, 1);
    t.same(
      judged.said.filter((line) => line.includes('full')),
      [
        `bpfimg: map ${full.id} (list_full): 100 % full: 10 of 10 items`,
        `bpfimg: not known how full: map ${slots.id} (list_stacks) (--count counts by reading, where that is possible)`,
      ],
    );
    t.equal((await list({ id, failAbove: '49.9' })).said.filter((line) => line.includes('list_half')).length, 1);
    const sound = await list({ id, failAbove: '100', count: true });
    t.same([sound.code, sound.said.filter((line) => line.includes('full'))], [0, []]);
    for (const failAbove of ['101', 'x', '-1', '', '1e1']) {
      await t.rejects(list({ failAbove }), {
        kind: 'usage',
        message: `--fail-above ${failAbove}: expected a percentage`,
      });
    }
    await t.rejects(list({ json: true, openmetrics: true }), { kind: 'usage', message: /choose/ });

    const odd = path.join(folder, 'a "b" \\ c');
    full.pin(odd);
    const { out } = await list({ id, openmetrics: true });
    const label = pathText(Buffer.from(odd)).replaceAll('\\', '\\\\').replaceAll('"', '\\"');
    const labels = `{id="${full.id}",name="list_full",type="hash",pin="${label}"}`;
    t.match(out.split('\n'), new Set([`bpfimg_map_used_entries${labels} 10`, `bpfimg_map_max_entries${labels} 10`]));
    t.match(out, `bpfimg_map_memory_bytes${labels} ${full.state().memlock}\n`);
    t.notMatch(out, /used_entries[^\n]*list_(array|stacks)/);
    t.match(out, /# EOF\n$/);
    checkMetrics(t, out);
  } finally {
    remove();
  }
});

/** The grammar of Prometheus's text format, as far as gauges need it: every family is described, then its samples. */
function checkMetrics(t: Test, text: string): void {
  let family = '';
  for (const line of text.split('\n').slice(0, -2)) {
    const [, described] = /^# HELP ([a-z_]+) \S.*$/.exec(line) ?? [];
    if (described !== undefined) family = described;
    else if (line.startsWith('#')) t.equal(line, `# TYPE ${family} gauge`);
    else t.match(line, new RegExp(`^${family}\\{([a-z]+="([^"\\\\]|\\\\[\\\\"n])*",?)+\\} \\d+$`));
  }
}
