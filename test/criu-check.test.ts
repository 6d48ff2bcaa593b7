/** `bpfimg criu check`: real processes, and CRIU programs of many makes. */

import { spawn, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { run } from '../src/cli/commands/criu-check.js';
import type { Io } from '../src/cli/io.js';
import { main } from '../src/cli/main.js';
import { buildPlugin } from '../src/criu/build.js';
import { type CriuHost, inspectCriu } from '../src/criu/criu-program.js';
import { MemoryOutput } from '../src/io/output.js';
import { ATTR, MAP_FLAG } from '../src/kernel/abi.js';
import { BpfMap } from '../src/kernel/map.js';
import { anonymousFiles, anonymousMappings, childrenOf } from '../src/kernel/proc.js';
import { Attr, openSys } from '../src/kernel/sys.js';
import { version } from '../src/version.js';
import type { Told, Wanted } from './helpers/criu-holder.js';
import { lacking } from './helpers/features.js';
import { bpffs, fdCount, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { patience, required } from './helpers/needs.js';
import { loadProgram } from './helpers/objects.js';
import { types } from './helpers/types.js';

t.setTimeout(patience(120_000));

const sys = await openSys(types);
const cc = spawnSync('cc', ['--version']).error === undefined || required('cc');
const skip = (await skipWithoutMaps()) || (cc ? false : 'needs a C compiler');

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-check-'));
t.teardown(() => fs.rmSync(folder, { recursive: true }));

// ---------------------------------------------------------------------------------------------------
// Processes

interface Holder extends Told {
  readonly pid: number;
  stop(): Promise<void>;
}

async function holder(wanted: Wanted): Promise<Holder> {
  const file = fileURLToPath(new URL('./helpers/criu-holder.js', import.meta.url));
  return started(process.execPath, [file, JSON.stringify(wanted)]);
}

/** Starts a process that says one line of JSON and ends with its input. `fd` becomes its fd 3. */
async function started(command: string, args: readonly string[], fd?: number): Promise<Holder> {
  const stdio = ['pipe', 'pipe', 'inherit', ...(fd === undefined ? [] : [fd])] as const;
  const child = spawn(command, args, { stdio: [...stdio] });
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
  const stop = () => {
    child.stdin?.end();
    return ended;
  };
  for await (const line of createInterface({ input: child.stdout as NodeJS.ReadableStream })) {
    return { ...(JSON.parse(line) as Told), pid: child.pid as number, stop };
  }
  throw new Error(`${command} ended`);
}

const hash = { type: 1, keySize: 4, valueSize: 8, maxEntries: 10 };
const array = { type: 2, keySize: 4, valueSize: 8, maxEntries: 600 };
const ring = { type: 27, keySize: 0, valueSize: 0, maxEntries: 8192 };
const PAGE = sys.pageSize;

// ---------------------------------------------------------------------------------------------------
// CRIU programs

const SOURCE = `
#include <stdio.h>
#include <string.h>
int criu_get_image_dir(void) { return -1; }
#ifdef LIBBPF
int bpfmap_dump_ops = 19, ext_dump_ops = 16;
#endif
int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "--version") == 0) puts("Version: " RELEASE);
  else if (argc > 1 && strcmp(argv[1], "--help") == 0)
    puts("  -L|--libdir           path to a plugin directory (by default " LIBDIR ")");
  else puts("a dump was asked for");
  return argc != 2;
}
`;

let programs = 0;
/** Compiles something that answers as a CRIU does, in a folder of its own; its path. */
function fakeCriu(libdir: string, { release = '4.1.1', libbpf = false, name = 'criu' } = {}): string {
  const place = path.join(folder, `program${programs++}`);
  fs.mkdirSync(place);
  const macros = [`-DRELEASE="${release}"`, `-DLIBDIR="${libdir}"`, ...(libbpf ? ['-DLIBBPF'] : [])];
  return compiled(path.join(place, name), SOURCE, ...macros, '-rdynamic');
}

function compiled(file: string, source: string, ...options: readonly string[]): string {
  const args = ['-x', 'c', '-O1', '-o', file, ...options, '-'];
  const { status, stderr } = spawnSync('cc', args, { input: source, encoding: 'utf8' });
  if (status !== 0) throw new Error(`cc: ${stderr}`);
  return file;
}

let plugged: string | undefined;
/** A folder with bpfimg's plugin, built once, and whatever else is in `more`: a file's text, or what makes the file. */
function pluginFolder(more: Readonly<Record<string, string | ((file: string) => void)>> = {}): string {
  const place = path.join(folder, `plugins${programs++}`);
  plugged ??= buildPlugin(path.join(folder, 'built'), { version, config: path.join(folder, 'none.conf') });
  fs.mkdirSync(place);
  fs.copyFileSync(plugged, path.join(place, 'bpfimg.so'));
  for (const [name, make] of Object.entries(more)) {
    if (typeof make === 'string') fs.writeFileSync(path.join(place, name), make);
    else make(path.join(place, name));
  }
  return place;
}

/** A sound host: a CRIU without libbpf that finds the plugin. */
function soundCriu(): string {
  sound ??= fakeCriu(pluginFolder());
  return sound;
}
let sound: string | undefined;

// ---------------------------------------------------------------------------------------------------
// The command

interface Json {
  readonly dumps: boolean;
  readonly processes: readonly {
    readonly pid: number;
    readonly parent: number | null;
    readonly objects: readonly Record<string, unknown>[];
  }[];
  readonly criu: Record<string, unknown>;
  readonly blocks: readonly string[];
  readonly warnings: readonly string[];
}

interface Ran {
  readonly status: number;
  readonly out: string;
  readonly json: Json;
}

/** Runs the command for people and as JSON. */
async function check(pid: number, criu: string, env: Readonly<Record<string, string>> = {}): Promise<Ran> {
  const once = async (json: boolean) => {
    const out = new MemoryOutput();
    const status = await run({ pid: String(pid), criu, json }, ioTo(out, [], env), sys, path.join(folder, 'etc'));
    return { status, out: out.take().toString() };
  };
  const [text, json] = [await once(false), await once(true)];
  if (text.status !== json.status) throw new Error('--json has another exit code');
  return { ...text, json: JSON.parse(json.out) as Json };
}

function ioTo(out: MemoryOutput, said: string[], env: Readonly<Record<string, string>> = {}): Io {
  return {
    stdin: () => Promise.reject(new Error('it reads no input')),
    stdout: () => out,
    say: (line) => said.push(line),
    show: () => {},
    terminal: false,
    columns: undefined,
    env,
  };
}

const bloom = { type: 30, keySize: 0, valueSize: 4, maxEntries: 4, name: 'ck_bloom' };
const hasBloom = skip !== false || lacking(sys, bloom) === undefined;

t.test('maps of a tree: what will happen to each, and what is lost', { skip }, async (t) => {
  const before = fdCount();
  const { folder: pins, remove } = bpffs();
  const held = await holder({
    maps: [
      { ...hash, name: 'ck_flows', again: true },
      { type: 22, keySize: 0, valueSize: 4, maxEntries: 3, name: 'ck_queue' },
      { ...ring, name: 'ck_ring' },
      { ...hash, name: 'ck_inner' },
      { type: 12, keySize: 4, valueSize: 4, maxEntries: 2, name: 'ck_outer', holds: 3 },
      { type: 7, keySize: 4, valueSize: 8, maxEntries: 4, name: 'ck_stacks' },
      { type: 3, keySize: 4, valueSize: 4, maxEntries: 2, name: 'ck_tail' },
      { type: 3, keySize: 4, valueSize: 4, maxEntries: 2, name: 'ck_no_tail' },
      ...(hasBloom ? [bloom] : []),
      { ...array, flags: MAP_FLAG.MMAPABLE, name: 'ck_unmapped' },
    ],
    child: true,
  });
  try {
    const [flows = 0, queue = 0, , inner = 0, outer = 0] = held.ids;
    const [first = 0, , , , outerFd = 0] = held.fds;
    using map = BpfMap.fromProcess(sys, held.pid, first);
    map.pin(path.join(pins, 'flows'));
    const tail = BpfMap.fromProcess(sys, held.pid, held.fds[6] as number);
    const program = loadProgram(sys, { name: 'ck_target', type: 1 });
    tail.update(Buffer.alloc(4), u32(program));
    tail.close();
    sys.close(program);
    const other = await started('sh', ['-c', 'echo {}; read x'], map.fd);
    const before = sys.openFds().length;
    const { status, out, json } = await check(held.pid, soundCriu());
    t.equal(sys.openFds().length, before);
    t.same([status, json.dumps, json.blocks], [0, true, []]);
    const [root, child] = json.processes;
    t.match(json.processes, [
      { pid: held.pid, parent: null },
      { pid: held.child, parent: held.pid },
    ]);
    const report = (name: string) => root?.objects.find((one) => one.name === name)?.report;
    t.match(root?.objects[0], {
      object: 'map',
      fds: [first],
      access: 'rw',
      id: flows,
      name: 'ck_flows',
      type: 'hash',
      key_size: 4,
      value_size: 8,
      max_entries: 10,
      map_flags: [],
      pins: [path.join(pins, 'flows')],
      report: 'full',
    });
    t.match(root?.objects, [{}, { id: flows, fds: [held.more[0]], access: 'ro', report: 'full' }], 'another open file');
    t.equal(report('ck_queue'), 'full');
    if (hasBloom) t.match(report('ck_bloom'), /^metadata only: lost: elements/, 'as the plugin of its type says');
    t.match(report('ck_tail'), /^partial: lost: items whose program/);
    t.equal(report('ck_no_tail'), 'full', 'it has no items that could be lost');
    t.equal(report('ck_stacks'), 'full');
    t.equal(report('ck_unmapped'), 'full');
    t.equal(report('ck_outer'), 'full');
    t.match(root?.objects.at(-1), { id: inner, fds: [], inner_of: [outer], report: 'full' });
    t.match(child?.objects, [{ id: flows, fds: [3], access: 'rw', report: 'full' }]);

    t.equal(json.warnings.length, 2, 'one line a map, though two processes hold it');
    t.match(
      json.warnings[0],
      new RegExp(`^map ${flows} \\(ck_flows\\): pinned at .*/flows; held by process .*: after`),
    );
    t.match(json.warnings[0], ` ${other.pid} (sh)`);
    t.notMatch(json.warnings[0], `${held.child} (`);
    t.match(json.warnings[1], new RegExp(`^map ${queue} \\(ck_queue\\): a dump removes its items and puts them back`));

    t.match(
      out,
      new RegExp(`^process ${held.pid} \\(node\\)\nFD +OBJECT +NAME +TYPE +KEY +VALUE +MAX +MODE +REPORT\n`),
    );
    t.match(out, new RegExp(`^${first} +map ${flows} +ck_flows +hash +4 +8 +10 +rw +full$`, 'm'));
    t.match(out, new RegExp(`^in ${outer} +map ${inner} +ck_inner`, 'm'));
    t.match(out, new RegExp(`^process ${held.child} \\(cat\\), child of ${held.pid}$`, 'm'));
    t.match(out, /\nwarning: map .*\n\nit will dump, with 2 warnings\n$/s);
    t.ok(outerFd > 0);

    // Of the child alone, its parent is outside.
    const alone = await check(held.child, soundCriu());
    t.match(alone.json.processes, [{ pid: held.child, parent: null }]);
    t.match(alone.json.warnings, [new RegExp(` ${held.pid} \\(node\\)`)]);
    await other.stop();
  } finally {
    await held.stop();
    remove();
  }
  t.equal(fdCount(), before, 'nothing stays open');
});

t.test('a map that a loaded program uses', { skip }, async (t) => {
  const held = await holder({ maps: [{ ...hash, name: 'ck_used' }] });
  try {
    using map = BpfMap.fromProcess(sys, held.pid, held.fds[0] as number);
    const program = useMap(map);
    map.close();
    const { json, status } = await check(held.pid, soundCriu());
    sys.close(program);
    t.equal(status, 0);
    t.match(json.warnings, [
      /^map \d+ \(ck_used\): used by program \d+ \(ck_user\): after a restore these keep the old map/,
    ]);
  } finally {
    await held.stop();
  }
});

/** Loads a socket filter that refers to `map` and does nothing; its file descriptor. */
function useMap(map: BpfMap): number {
  const code = Buffer.from(new ArrayBuffer(32));
  code.writeUInt16LE(0x1118, 0); // r1 = map, by file descriptor
  code.writeInt32LE(map.fd, 4);
  code.writeUInt8(0xb7, 16); // r0 = 0
  code.writeUInt8(0x95, 24); // exit
  const attr = new Attr(ATTR.progLoad, sys)
    .set('prog_type', 1)
    .point('insns', code)
    .set('insn_cnt', 4)
    .point('license', Buffer.from('GPL\0'))
    .setBytes('prog_name', Buffer.from('ck_user'));
  const fd = sys.bpf('PROG_LOAD', attr);
  if (fd < 0) throw new Error(`PROG_LOAD: ${fd}`);
  return fd;
}

t.test('what blocks a dump: programs, links, BTF', { skip }, async (t) => {
  const held = await holder({ maps: [{ ...hash, name: 'ck_map' }], objects: true });
  try {
    const [program, link, btf = -1] = held.more;
    // Before Linux 5.11 its own types are no object.
    const count = btf < 0 ? 2 : 3;
    const { status, out, json } = await check(held.pid, soundCriu());
    t.same([status, json.dumps, json.blocks.length], [1, false, count]);
    t.match(json.processes[0]?.objects, [
      { object: 'map', report: 'full' },
      {
        object: 'program',
        fds: [program],
        name: 'held_prog',
        type: 'xdp',
        report: /^blocked: programs cannot be dumped/,
      },
      { object: 'link', fds: [link], name: 'held_prog', type: 'xdp', report: /^blocked: links cannot be dumped/ },
      ...(btf < 0 ? [] : [{ object: 'btf', fds: [btf], id: 1, report: /^blocked: BTF objects cannot be dumped/ }]),
    ]);
    t.match(
      json.blocks[0],
      new RegExp(`^process ${held.pid} \\(node\\), fd ${program} \\(program \\d+ held_prog\\): programs`),
    );
    t.match(out, `\nit will not dump: ${count} lines above say why\n`);

    const [settings, place] = [path.join(folder, 'keeping.conf'), path.join(folder, 'keeping')];
    fs.writeFileSync(settings, 'keep-programs yes\n');
    buildPlugin(place, { version, config: settings });
    const kept = await check(held.pid, fakeCriu(place));
    t.same([kept.status, kept.json.dumps], [0, true]);
    for (const object of kept.json.processes[0]?.objects.slice(1) ?? []) {
      t.match(object, { report: /^partial: it stays in the kernel/ });
    }
  } finally {
    await held.stop();
  }
});

t.test('what blocks a dump: maps in memory, with their fd and without', { skip }, async (t) => {
  const mapped = [{ length: 600 * 8 }];
  const held = await holder({
    maps: [
      { ...array, flags: MAP_FLAG.MMAPABLE, name: 'ck_mapped', mapped },
      { ...ring, name: 'ck_ring', mapped: [{ length: 8 }, { offset: PAGE, length: PAGE + 2 * 8192 }] },
      {
        ...array,
        maxEntries: 5000,
        flags: MAP_FLAG.MMAPABLE,
        name: 'ck_closed',
        mapped: [{ length: 40_000 }],
        closed: true,
      },
      { ...array, flags: MAP_FLAG.MMAPABLE, name: 'ck_not', valueSize: 16, maxEntries: 10 },
    ],
  });
  try {
    const [one, records] = held.ids;
    const { status, out, json } = await check(held.pid, soundCriu());
    t.equal(status, 1);
    const objects = json.processes[0]?.objects ?? [];
    const blocked = /^blocked: CRIU fails on a mapped map before it asks any plugin/;
    t.match(objects.slice(0, 3), [
      { name: 'ck_mapped', report: blocked },
      { name: 'ck_ring', report: blocked },
      { name: 'ck_not', report: 'full' },
    ]);
    const mappings = objects
      .filter(({ object }) => object === 'mapping')
      .sort((a, b) => Number(a.length) - Number(b.length));
    t.match(mappings, [
      { length: PAGE, offset: 0, fds: [] },
      { length: 2 * PAGE, offset: 0, maps: [one], report: blocked },
      { length: PAGE + 2 * 8192, offset: PAGE, maps: [records], report: blocked },
      { length: 10 * PAGE, maps: [] },
    ]);
    t.match(json.blocks.join('\n'), /mapping at 0x[0-9a-f]+, of a map whose fd is closed: CRIU fails/);
    t.match(out, /^ +mapping +0x[0-9a-f]+ 40 KiB +of a closed fd +ro +blocked: /m);
  } finally {
    await held.stop();
  }
});

/** Python: an epoll set that waits for fd 3, a duplicate of it, and a perf event. */
const WATCHER = `
import ctypes, os, select, struct, sys
e = select.epoll()
e.register(3)
os.dup2(3, 9)
attr = ctypes.create_string_buffer(struct.pack('IIQ', 1, 112, 0), 112)
perf = ctypes.CDLL(None).syscall(298, attr, -1, 0, -1, 0)
print('{"more": [%d]}' % perf, flush=True)
sys.stdin.read()
`;

t.test('epoll sets, duplicates, and files that are not ours', { skip }, async (t) => {
  using map = BpfMap.create(sys, { ...ring, name: 'ck_ring' });
  const held = await started('python3', ['-c', WATCHER], map.fd);
  try {
    const [perf = -1] = held.more;
    const { status, out, json } = await check(held.pid, soundCriu());
    const held2 = json.processes[0]?.objects;
    t.match(held2?.[0], { name: 'ck_ring', fds: [3, 9] }, 'two fds, one row');
    t.equal(held2?.length, 1, 'CRIU dumps epoll sets itself');
    t.match(out, /^3,9 +map \d+ +ck_ring/m);
    t.equal(status, 0);
    if (perf < 0) return t.comment('no perf events here');
    t.match(json.warnings.join('\n'), `, fd ${perf}: anon_inode:[perf_event] is not a BPF object`);
    t.match(out, /\nnothing of BPF blocks a dump, but CRIU may refuse other files: see the warnings\n$/);
  } finally {
    await held.stop();
  }
});

t.test('a CRIU built with libbpf goes its own way', { skip }, async (t) => {
  const held = await holder({
    maps: [
      { ...hash, name: 'ck_hash', again: true },
      { ...array, name: 'ck_array' },
      { type: 9, keySize: 4, valueSize: 8, maxEntries: 8, name: 'ck_lru' },
      { ...hash, flags: MAP_FLAG.WRONLY, name: 'ck_wo' },
    ],
  });
  try {
    const native = fakeCriu(path.join(folder, 'nothing'), { libbpf: true });
    const { status, json } = await check(held.pid, native);
    t.equal(status, 1);
    const rows = json.processes[0]?.objects ?? [];
    const rowOf = (name: string, access: string) =>
      rows.find((one) => one.name === name && one.access === access)?.report;
    t.equal(rowOf('ck_hash', 'rw'), 'full');
    t.equal(rowOf('ck_hash', 'ro'), 'partial: its fd comes back writable');
    t.equal(rowOf('ck_array', 'rw'), 'full');
    t.match(rowOf('ck_wo', 'wo'), /^blocked: .*write-only/);
    t.match(rowOf('ck_lru', 'rw'), /^blocked: .*"CRIU does not currently support dumping BPF map type 9!"$/);
    t.match(json.criu, { libbpf: true, plugin: null });
    t.equal(json.blocks.length, 2, 'no plugin is needed');
    t.match(json.warnings.join('\n'), /\(ck_hash\): it has several file descriptors.*come back as different maps/);
    t.match(json.warnings.join('\n'), /built with libbpf: it dumps hash and array maps its own way.*"take-over yes"/);

    // With the plugin, unless it is told to, nothing changes; then everything is its.
    const settings = path.join(folder, 'take-over.conf');
    const place = path.join(folder, 'take-over');
    fs.writeFileSync(settings, '# none\n');
    buildPlugin(place, { version, config: settings });
    const both = fakeCriu(place, { libbpf: true });
    t.equal((await check(held.pid, both)).json.blocks.length, 2);
    fs.writeFileSync(settings, 'take-over yes\n');
    const taken = await check(held.pid, both);
    t.same([taken.status, taken.json.blocks], [0, []]);
    t.match(taken.json.criu, { libbpf: true, take_over: true, config: settings });
    t.match(taken.out, `settings ${settings}: take-over yes`);
  } finally {
    await held.stop();
  }
});

t.test('settings of the plugin decide as well', { skip }, async (t) => {
  const settings = path.join(folder, 'settings.conf');
  const place = path.join(folder, 'settings');
  buildPlugin(place, { version, config: settings });
  const criu = fakeCriu(place);
  const held = await holder({
    maps: [
      { type: 22, keySize: 0, valueSize: 4, maxEntries: 3, name: 'ck_queue' },
      hasBloom ? bloom : { type: 17, keySize: 4, valueSize: 4, maxEntries: 4, name: 'ck_xdp' },
    ],
  });
  try {
    const reports = async (text: string) => {
      fs.writeFileSync(settings, text);
      const { json } = await check(held.pid, criu);
      return [...(json.processes[0]?.objects ?? []).map(({ report }) => report), json.dumps];
    };
    t.match(await reports(''), ['full', /^metadata only: lost: (elements|AF_XDP)/, true]);
    t.match(await reports('drain no\n'), [
      /^blocked: reading it removes its items, and .* says "drain no"$/,
      /^metadata only/,
      false,
    ]);
    t.match(await reports('partial fail\n'), ['full', /^blocked: metadata only: .*\("partial fail" in /, false]);
    fs.writeFileSync(settings, 'partial perhaps\n');
    t.match((await check(held.pid, criu)).json.blocks, [
      /settings\.conf: line 1: partial perhaps: expected warn, fail$/,
    ]);
  } finally {
    await held.stop();
  }
});

t.test('a process without BPF objects, and one that does not exist', { skip }, async (t) => {
  const idle = await started('sh', ['-c', 'echo {}; read x']);
  const { status, out, json } = await check(idle.pid, fakeCriu(path.join(folder, 'nothing')));
  t.same([status, json.dumps, json.blocks], [0, true, []], 'it needs no plugin');
  t.match(json.warnings, [/^bpfimg's plugin is not in /]);
  t.match(out, new RegExp(`^without BPF objects: ${idle.pid} \\(sh\\)\n`));
  await idle.stop();
  await t.rejects(check(idle.pid, soundCriu()), { kind: 'notFound', message: `process ${idle.pid}: no such process` });

  const ours = await check(process.pid, soundCriu());
  t.match(ours.json.warnings.join('\n'), /bpfimg itself runs in that tree/);

  const said: string[] = [];
  const cli = (...args: string[]) => main(['criu', 'check', ...args], ioTo(new MemoryOutput(), said));
  t.equal(await cli('0'), 2);
  t.equal(await cli('many'), 2);
  t.equal(await cli(String(idle.pid), '--criu', path.join(folder, 'no-such')), 1);
  t.match(said, [
    /expected a process id \(see bpfimg help criu check\)$/,
    /expected a process id \(see bpfimg help criu check\)$/,
    /^bpfimg: --criu .*no-such: no such program/,
  ]);
});

// ---------------------------------------------------------------------------------------------------
// The host

/** What is found of a CRIU, as `stops: text`. */
function findings(host: CriuHost): string[] {
  return host.findings.map(({ stops, text }) => `${stops}: ${text}`);
}

function look(program: string, env: Readonly<Record<string, string>> = {}, etc = path.join(folder, 'etc')): CriuHost {
  return inspectCriu({ env, program, version, etc });
}

t.test('a sound host', { skip }, async (t) => {
  const host = look(soundCriu());
  t.same(findings(host), []);
  t.match(host, { program: soundCriu(), version: '4.1.1', libbpf: false, others: [] });
  t.match(host.plugin, { version, node: process.execPath, bpfimg: /\.c?js$/, config: path.join(folder, 'none.conf') });
  t.match(host.folder, { from: 'built in' });

  t.equal(look(fakeCriu(pluginFolder(), { libbpf: true })).libbpf, true);
  // A script that starts CRIU is not looked through.
  const script = path.join(folder, 'wrapper');
  fs.writeFileSync(script, `#!/bin/sh\nexec ${soundCriu()} "$@"\n`);
  fs.chmodSync(script, 0o755);
  const wrapped = look(script);
  t.match(wrapped, { program: script, version: '4.1.1', folder: host.folder });
  t.match(findings(wrapped), [
    /^nothing: .*cannot tell whether it is built with libbpf; assuming that it is not \(--criu/,
  ]);
});

t.test('CRIU in PATH, or nowhere', { skip }, async (t) => {
  const PATH = `/nowhere::${path.dirname(soundCriu())}`;
  t.equal(inspectCriu({ env: { PATH }, version }).program, soundCriu());
  const silent = path.join(folder, 'silent');
  fs.writeFileSync(silent, '#!/bin/sh\necho broken >&2\nexit 1\n');
  fs.chmodSync(silent, 0o755);
  t.match(findings(look(silent))[0], `every dump: ${silent}: it does not print its version: broken`);
});

t.test('releases', { skip }, async (t) => {
  const of = (release: string) => findings(look(fakeCriu(pluginFolder(), { release })));
  t.match(of('1.8'), [/^maps: .*CRIU 1\.8: its plugin interface is different/]);
  t.match(of('3.16.1'), [/^nothing: .*not tested with releases before 3\.17/]);
  t.match(of('3.17.1'), [/^nothing: .*do not say that they need the plugin/]);
  t.same(of('4.2'), []);
});

t.test('plugin folders: who says which', { skip }, async (t) => {
  const [builtIn, named, home, etc] = [
    pluginFolder(),
    pluginFolder(),
    path.join(folder, 'home'),
    path.join(folder, 'etc1'),
  ];
  const criu = fakeCriu(builtIn);
  const from = (env: Readonly<Record<string, string>>) => look(criu, env, etc).folder;
  t.same(from({}), { path: builtIn, from: 'built in' });
  t.same(from({ CRIU_LIBS_DIR: named }), { path: named, from: 'CRIU_LIBS_DIR' });
  fs.mkdirSync(etc);
  fs.writeFileSync(path.join(etc, 'default.conf'), `# libdir /no\ntcp-established\nlibdir ${named}\n`);
  t.same(from({ CRIU_LIBS_DIR: '/no' }), { path: named, from: path.join(etc, 'default.conf') });
  fs.mkdirSync(path.join(home, '.criu'), { recursive: true });
  fs.writeFileSync(path.join(home, '.criu/default.conf'), `libdir "${builtIn}"\n`);
  t.same(from({ HOME: home }), { path: builtIn, from: path.join(home, '.criu/default.conf') });

  if (process.getuid?.() === 0) {
    fs.chmodSync(path.join(etc, 'default.conf'), 0o666);
    t.same(from({ CRIU_LIBS_DIR: builtIn }), { path: builtIn, from: 'CRIU_LIBS_DIR' }, 'not followed');
    t.match(findings(look(criu, {}, etc)), [/^every dump: .*default\.conf: refused as root: others may write to it/]);
    fs.chmodSync(path.join(etc, 'default.conf'), 0o644);
  }
  fs.writeFileSync(path.join(etc, 'default.conf'), 'libdir plugins\n');
  t.match(findings(look(criu, {}, etc)), [/^every dump: .*libdir plugins is not absolute/, /^maps: /]);
  fs.writeFileSync(path.join(etc, 'default.conf'), 'libdir /nowhere\n');
  t.match(findings(look(criu, {}, etc)), [/^every dump: \/nowhere \(.*\): cannot read the plugin folder/, /^maps: /]);
  fs.rmSync(path.join(etc, 'default.conf'));
  fs.writeFileSync(path.join(etc, 'runc.conf'), 'libdir /opt/criu\n');
  t.match(findings(look(criu, {}, etc)), [/^nothing: .*runc\.conf: containers use the plugins in \/opt\/criu/]);

  // Runtimes may pass on neither the environment nor the user's own file.
  const PATH = path.join(folder, 'runtimes');
  fs.mkdirSync(PATH);
  for (const name of ['runc', 'crun']) {
    fs.writeFileSync(path.join(PATH, name), '');
    fs.chmodSync(path.join(PATH, name), 0o755);
  }
  const main = path.join(etc, 'default.conf');
  const text = (libdir: string) =>
    `may not pass it on to CRIU, which then uses the plugins in ${libdir}; all read ${main}`;
  const set = { CRIU_LIBS_DIR: named, PATH };
  fs.writeFileSync(path.join(etc, 'runc.conf'), `libdir ${named}\n`);
  t.same(findings(look(criu, set, etc)), [`nothing: libdir from CRIU_LIBS_DIR: crun ${text(builtIn)}`]);
  fs.rmSync(path.join(etc, 'runc.conf'));
  t.same(findings(look(criu, set, etc)), [`nothing: libdir from CRIU_LIBS_DIR: runc and crun ${text(builtIn)}`]);
  t.same(findings(look(criu, { CRIU_LIBS_DIR: named }, etc)), [], 'none is installed');
  t.same(findings(look(criu, { PATH }, etc)), [], 'they use the same');
  fs.writeFileSync(main, `libdir ${named}\n`);
  t.same(findings(look(criu, set, etc)), [], 'they read this');
  const own = path.join(home, '.criu/default.conf');
  t.same(findings(look(criu, { HOME: home, PATH }, etc)), [
    `nothing: libdir from ${own}: runc and crun ${text(named)}`,
  ]);
});

/** Files in the plugin folder that stop every dump, and why. */
const BROKEN: Readonly<Record<string, readonly [make: (file: string) => void, why: RegExp]>> = {
  text: [(file) => fs.writeFileSync(file, 'no library'), /it is not an ELF file/],
  empty: [(file) => fs.writeFileSync(file, ''), /it is not an ELF file/],
  dangling: [(file) => fs.symlinkSync('/nowhere/x.so', file), /a broken link/],
  folder: [(file) => fs.mkdirSync(file), /it is a folder/],
  'cut off': [(file) => changed(file, (bytes) => bytes.subarray(0, 3000)), /it is cut off/],
  'for another machine': [
    (file) => changed(file, (bytes) => bytes.fill(0xf3, 18, 19)),
    /it was built for another kind of machine/,
  ],
  'for 32 bits': [(file) => changed(file, (bytes) => bytes.fill(1, 4, 5)), /it is not a 64-bit file/],
};

/** bpfimg's plugin with something done to it. */
function changed(file: string, change: (bytes: Buffer) => Uint8Array): void {
  fs.writeFileSync(file, change(fs.readFileSync(path.join(folder, 'built/bpfimg.so'))));
}

t.test('files in the plugin folder', { skip }, async (t) => {
  for (const [name, [make, why]] of Object.entries(BROKEN)) {
    const found = findings(look(fakeCriu(pluginFolder({ 'other.so': make }))));
    t.equal(found.length, 1, name);
    t.match(found[0], /^every dump: .*other\.so: CRIU cannot load it, and stops: /, name);
    t.match(found[0], why);
  }
  const harmless = compile('int nothing;');
  t.match(findings(look(fakeCriu(pluginFolder({ 'lib.so': harmless, 'lib.so.1': 'text' })))), [
    /^nothing: .*lib\.so: not a plugin \(it has no CR_PLUGIN_DESC\)/,
  ]);
  const gpu = look(fakeCriu(pluginFolder({ 'amdgpu_plugin.so': compile('int CR_PLUGIN_DESC = 1;') })));
  t.match(findings(gpu), [/^nothing: amdgpu_plugin\.so is in the same folder/]);
  t.same(gpu.others, ['amdgpu_plugin.so']);
  const twice = look(fakeCriu(pluginFolder({ 'old.so': (file) => changed(file, (bytes) => bytes) })));
  t.match(findings(twice), [/^every dump: .*old\.so: a second copy of bpfimg's plugin/]);
  const none = fakeCriu(path.join(folder, 'nothing'));
  t.match(findings(look(none)), [/^maps: bpfimg's plugin is not in .*nothing \(built in\)/]);
});

/** Makes a shared library. */
function compile(source: string): (file: string) => void {
  return (file) => {
    compiled(file, source, '-shared', '-fPIC');
  };
}

t.test('a plugin that was built for another bpfimg', { skip }, async (t) => {
  const node = path.join(folder, 'a node');
  const macros = { VERSION: '0.0.9', NODE: node, BPFIMG: path.join(folder, 'gone'), CONFIG: '/etc/bpfimg/criu.conf' };
  const source = fs.readFileSync(fileURLToPath(new URL('../../plugins/criu/bpfimg.c', import.meta.url)), 'utf8');
  const place = path.join(folder, 'foreign');
  fs.mkdirSync(place);
  const defines = Object.entries(macros).map(([name, text]) => `-D${name}=${JSON.stringify(text)}`);
  compiled(path.join(place, 'bpfimg.so'), source, '-shared', '-fPIC', '-fvisibility=hidden', ...defines);
  const criu = fakeCriu(place);
  t.match(findings(look(criu)), [
    /^maps: .*it runs .*a node, which does not exist; run "bpfimg criu build"/,
    /^maps: .*it runs .*gone, which does not exist/,
    /^nothing: .*it was built by bpfimg 0\.0\.9, this is /,
  ]);
  fs.copyFileSync('/bin/true', node);
  fs.writeFileSync(path.join(folder, 'gone'), '');
  t.equal(findings(look(criu)).length, 1);
});

const debian = spawnSync('criu', ['--version'], { encoding: 'utf8' });
const noCriu = debian.error === undefined || required('criu') ? false : 'needs criu';

t.test('the CRIU that is installed', { skip: skip || noCriu }, async (t) => {
  const host = inspectCriu({ env: process.env, version });
  t.match(debian.stdout, `Version: ${host.version}`);
  t.type(host.libbpf, 'boolean');
  t.match(host.folder?.path, /^\//);
});

// ---------------------------------------------------------------------------------------------------
// procfs

t.test('what procfs shows', async (t) => {
  const proc = path.join(folder, 'proc');
  for (const one of ['7/fd', '7/fdinfo', '7/task/7', '7/task/8'])
    fs.mkdirSync(path.join(proc, one), { recursive: true });
  const links = { 3: 'anon_inode:bpf_iter', 4: '/etc/passwd', 11: 'anon_inode:[io_uring]', 5: '/bpf-token (deleted)' };
  for (const [fd, link] of Object.entries(links)) {
    fs.symlinkSync(link, path.join(proc, '7/fd', fd));
    fs.writeFileSync(path.join(proc, '7/fdinfo', fd), 'flags:\t02\n');
  }
  const found = anonymousFiles(7, proc);
  t.same(Array.isArray(found) && found.map(({ fd, kind }) => [fd, kind]), [
    [3, 'bpf_iter'],
    [5, 'bpf-token'],
    [11, '[io_uring]'],
  ]);
  t.equal(anonymousFiles(8, proc), 'gone');

  const maps = [
    '55d0c0a00000-55d0c0a01000 r--p 00000000 08:01 5 /usr/bin/anon_inode:bpf-map',
    '7f0000000000-7f0000003000 rw-s 00001000 00:10 1039                       anon_inode:bpf-map',
    'ffff0000-ffff1000 -w-s 00000000 00:10 1039                       anon_inode:[perf_event]',
    '',
  ];
  fs.writeFileSync(path.join(proc, '7/maps'), maps.join('\n'));
  t.same(anonymousMappings(7, proc), [
    { start: 0x7f0000000000n, end: 0x7f0000003000n, offset: 0x1000n, access: 'rw', kind: 'bpf-map' },
    { start: 0xffff0000n, end: 0xffff1000n, offset: 0n, access: 'wo', kind: '[perf_event]' },
  ]);
  t.equal(anonymousMappings(8, proc), 'gone');

  fs.writeFileSync(path.join(proc, '7/task/7/children'), '12 9 ');
  fs.writeFileSync(path.join(proc, '7/task/8/children'), '10 ');
  t.same(childrenOf(7, proc), [9, 10, 12]);
  t.equal(childrenOf(8, proc), 'gone');
  fs.rmSync(path.join(proc, '7/task/8/children'));
  t.same(childrenOf(7, proc), [9, 12], 'a task that has ended');
  fs.writeFileSync(path.join(proc, '7/task/8/stat'), '');
  t.throws(() => childrenOf(7, proc), { kind: 'unsupported', message: /CONFIG_PROC_CHILDREN/ });
});

t.test('a BPF file system in another mount namespace', { skip }, async (t) => {
  const place = path.join(folder, 'bpffs here');
  fs.mkdirSync(place);
  const [one, two] = [path.join(place, 'one'), path.join(place, 'two')];
  for (const point of [one, two]) fs.mkdirSync(point);
  const mounted = 'mount -t bpf bpf "$1/one" && mount --bind "$1/one" "$1/two"';
  const script = (mount: string) => `umount -l -a -t bpf 2>/dev/null; ${mount}; echo {}; read x`;
  for (const [mount, points] of [
    [mounted, [one, two]],
    [':', []],
  ] as const) {
    const held = await started('unshare', ['-m', 'sh', '-c', script(mount), 'sh', place]);
    const { json } = await check(held.pid, soundCriu());
    await held.stop();
    const blocks = json.blocks.filter((line) => line.includes('BPF file system'));
    t.equal(json.dumps, points.length === 0);
    t.equal(blocks.length, points.length === 0 ? 0 : 1);
    if (points.length === 0) continue;
    t.match(blocks[0], `criu dump --external 'mnt[${one}]:bpffs' --external 'mnt[${two}]:bpffs2', then criu`);
    t.match(blocks[0], /then criu restore --external 'mnt\[bpffs\]:\/\S+' --external 'mnt\[bpffs2\]:\/\S+'$/);
  }
  const shared = await started('sh', ['-c', 'echo {}; read x']);
  const { json } = await check(shared.pid, soundCriu());
  await shared.stop();
  t.same(json.blocks, [], 'in the mount namespace of CRIU, CRIU dumps no mounts');
});
