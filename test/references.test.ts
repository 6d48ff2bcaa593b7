/**
 * Maps that hold references: real programs, interfaces and sockets in a network namespace of the test's own;
 * captured, replayed, read with bpftool, captured again.
 */

import { spawn, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { references as plugin } from '../plugins/references/index.js';
import { type CapturedMap, capture } from '../src/capture/capture.js';
import { factsOf } from '../src/dump/facts.js';
import { openDump } from '../src/dump/model.js';
import { MAP_FLAG } from '../src/kernel/abi.js';
import { LiveMaps, walkIds } from '../src/kernel/live.js';
import { BpfMap, type MapSpec } from '../src/kernel/map.js';
import { Programs, programInfo, programText } from '../src/kernel/objects.js';
import { bootId, interfacesOf } from '../src/kernel/proc.js';
import { ERRNO, openSys, type Sys } from '../src/kernel/sys.js';
import { type MapFacts, type Reference, type ReplayWork, type Report, reportText } from '../src/maptype.js';
import { planMap } from '../src/replay/plan.js';
import { type FreshMap, type ReplayOptions, replay } from '../src/replay/replay.js';
import { dataOf, Recorder } from './helpers/capture.js';
import { skipWithout } from './helpers/crit.js';
import type { Item } from './helpers/images.js';
import { bpffs, bpftool, skipWithoutMaps, u32, withoutCapabilities } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import { ATTACH, loadProgram, must, PROG_TYPE, pinFd, SocketHolder, vethPair } from './helpers/objects.js';
import { dumpOf, hexOf, MeddledSys, sourceOf } from './helpers/replay.js';
import { types } from './helpers/types.js';

t.setTimeout(patience(120_000));
const [PROG_ARRAY, PERF_EVENT_ARRAY, CGROUP_ARRAY, DEVMAP, SOCKMAP, CPUMAP, XSKMAP, SOCKHASH, REUSEPORT, DEVMAP_HASH] =
  [3, 4, 8, 14, 15, 16, 17, 18, 20, 25] as const;

const inside = process.env.BPFIMG_OWN_NETWORK === '1';
const skip = (await skipWithoutMaps()) || skipWithout('unshare') || skipWithout('ip');
/** Why sockets cannot be had. */
const skipSockets = skip || skipWithout('python3');

// ---------------------------------------------------------------------------------------------------
// Round trips

const sys = await openSys(types);

/** Maps of this test. A PROG_ARRAY that goes while others look at all maps may leak: they stay until the end. */
function create(t: Test, spec: MapSpec): BpfMap {
  const map = BpfMap.create(sys, spec);
  if (spec.type === PROG_ARRAY) kept.push(map);
  else t.teardown(() => map.close());
  return map;
}
const kept: BpfMap[] = [];

/** A program, loaded until the test ends or `unload` is called. */
function program(t: Test, spec: Parameters<typeof loadProgram>[1]): { fd: number; id: number; unload(): void } {
  const fd = loadProgram(sys, spec);
  let open = true;
  const unload = () => {
    if (open) sys.close(fd);
    open = false;
  };
  t.teardown(unload);
  return { fd, id: programInfo(sys, fd)?.id as number, unload };
}

/** What a dump says of its one map, ids of maps apart. */
interface Captured {
  readonly folder: string;
  readonly row: CapturedMap;
  readonly items: Readonly<Record<string, string>>;
  readonly references: readonly Reference[];
  readonly flags: number;
  readonly report: string;
}

/** A folder that goes when the test ends: made once, for making it again empties it. */
const folders = new WeakMap<Test, string>();
function folderOf(t: Test): string {
  const folder = folders.get(t) ?? t.testdir();
  folders.set(t, folder);
  return folder;
}

async function captured(t: Test, map: BpfMap, from: Sys = sys): Promise<Captured> {
  const folder = path.join(folderOf(t), `dump-${map.id}`);
  const live = LiveMaps.look(from).select({ ids: [map.id], names: [], pins: [], pids: [] });
  const [row] = await capture(from, live, folder, types, { force: true });
  const dump = await openDump(folder);
  try {
    const [one] = dump.maps;
    const file = one?.files[0]?.message;
    const [data] = dataOf(folder);
    return {
      folder,
      row: row as CapturedMap,
      items: Object.fromEntries((data?.keys ?? []).map((key, i) => [key, data?.values[i] as string])),
      references: factsOf(one?.meta).references ?? [],
      flags: file?.map_flags as number,
      report: reportText((row as CapturedMap).report),
    };
  } finally {
    dump.close();
  }
}

/** Replays a dump; the fresh map stays open until the test ends. */
async function replayed(t: Test, folder: string, options: ReplayOptions = {}): Promise<FreshMap & { text: string }> {
  const dump = await openDump(folder);
  try {
    const plans = dump.maps.map((map) => planMap(dump, map, types, { cpus: sys.cpus }));
    const [fresh] = await replay(sys, plans, { verify: true, ...options });
    const one = fresh as FreshMap;
    if (one.map.type === PROG_ARRAY) kept.push(one.map);
    else t.teardown(() => one.map.close());
    return { ...one, text: reportText(one.report) };
  } finally {
    dump.close();
  }
}

/** What a plugin's hook makes of these items, in a map that is made for it. */
async function refilled(
  t: Test,
  spec: MapSpec,
  items: readonly Item[],
  facts: MapFacts = {},
  more: Partial<ReplayWork> = {},
): Promise<{ map: BpfMap; text: string }> {
  const map = create(t, spec);
  const work: ReplayWork = {
    type: types.get(spec.type),
    subject: 'map 7 (old)',
    facts,
    needed: [],
    unresolved: 'fail',
    fresh: () => undefined,
    progress: () => {},
    ...more,
  };
  const report = (await plugin.replay?.(map, sourceOf(items, spec.keySize, spec.valueSize), work)) as Report;
  return { map, text: reportText(report) };
}

/** A program as bpftool sees it. */
function shown(id: number): { id: number; type: string; name?: string; tag: string } {
  return bpftool('prog', 'show', 'id', String(id)) as ReturnType<typeof shown>;
}

const le = (...values: number[]) => hexOf(u32(...values));

/** The items that bpftool sees. Of empty slots, and of what it may not read, it says an error instead of a value. */
function filled(map: BpfMap): Record<string, string> {
  const text = (bytes: readonly string[]) => bytes.map((byte) => byte.slice(2)).join('');
  const items = bpftool('map', 'dump', 'id', String(map.id)) as {
    key: string[];
    value: string[] | { error: string };
  }[];
  return Object.fromEntries(
    items.flatMap(({ key, value }) => (Array.isArray(value) ? [[text(key), text(value)]] : [])),
  );
}

// ---------------------------------------------------------------------------------------------------
// The network namespace

if (!inside) {
  await t.test('interfaces as procfs has them, and sysfs where it shows the same ones', async (t) => {
    const head = 'Inter-|   Receive\n face |bytes    packets\n';
    const at = t.testdir({
      proc: { 7: { net: { dev: `${head}    lo: 1 2\n  e.0: 1 2\n`, dev_snmp6: { lo: 'ifIndex     \t1\nIp6 0\n' } } } },
      same: { lo: { ifindex: '1\n' }, 'e.0': { ifindex: '12\n' } },
      other: { lo: { ifindex: '3\n' }, 'e.0': { ifindex: '12\n' } },
      fewer: { lo: { ifindex: '1\n' } },
    });
    const seen = (sysfs: string) => interfacesOf(7, `${at}/proc`, `${at}/${sysfs}`);
    t.same(seen('same'), [
      [1, 'lo'],
      [12, 'e.0'],
    ]);
    t.same(seen('other'), [[1, 'lo']], 'another namespace’s');
    t.same(seen('fewer'), [[1, 'lo']]);
    t.same(interfacesOf(8, `${at}/proc`, `${at}/same`), []);
  });

  if (skip === false) {
    const self = fileURLToPath(import.meta.url);
    await t.spawn(
      'unshare',
      ['--net', process.execPath, self],
      {
        env: { ...process.env, BPFIMG_OWN_NETWORK: '1' },
      },
      'in a network namespace of its own',
    );
  } else t.pass('nothing was tried', { skip });
} else {
  must('ip', 'link', 'set', 'lo', 'up');
  await tests();
}

async function tests(): Promise<void> {
  t.teardown(() => {
    for (const map of kept) map.close();
  });

  // -------------------------------------------------------------------------------------------------
  // Programs

  const jumps: MapSpec = { type: PROG_ARRAY, keySize: 4, valueSize: 4, maxEntries: 16, name: 'jumps' };
  const filter = { type: PROG_TYPE.socketFilter };

  await t.test('a PROG_ARRAY comes back with its programs, pinned or not', { skip }, async (t) => {
    const { folder, remove } = bpffs();
    t.teardown(remove);
    const [one, two] = [
      program(t, { ...filter, name: 'ref_one', result: 11 }),
      program(t, { ...filter, name: 'ref_two', result: 12 }),
    ];
    const pin = path.join(folder, 'one');
    pinFd(sys, one.fd, pin);
    const map = create(t, jumps);
    map.update(u32(0), u32(one.fd));
    map.update(u32(3), u32(two.fd));
    map.update(u32(15), u32(two.fd));
    map.freeze();
    const before = await captured(t, map);
    t.equal(before.report, 'full');
    t.same(before.items, { [le(0)]: le(one.id), [le(3)]: le(two.id), [le(15)]: le(two.id) }, 'ids, as they were read');
    for (const { key, program: { id = 0, type, name, tag = Buffer.alloc(0), pins = [] } = {} } of before.references) {
      const seen = shown(id);
      t.same({ name, tag: hexOf(tag), type }, { name: seen.name, tag: seen.tag, type: 1 }, hexOf(key));
      t.same(pins, id === one.id ? [pin] : []);
    }
    t.equal(before.references.length, 3);

    const fresh = await replayed(t, before.folder);
    t.equal(fresh.text, 'full');
    t.same(filled(fresh.map), before.items);
    t.equal(fresh.map.state().frozen, true);
    const after = await captured(t, fresh.map);
    t.same(plain(after), plain(before));
    t.same(
      sys.openFds().filter((fd) => fd.includes('PROG_GET_FD_BY_ID') || fd.includes('OBJ_GET')),
      [],
      'nothing is left open',
    );
  });

  await t.test('a program that was loaded anew is found by its tag', { skip }, async (t) => {
    const spec = { ...filter, name: 'ref_again', result: 21 };
    const old = program(t, spec);
    const map = create(t, jumps);
    map.update(u32(5), u32(old.fd));
    const before = await captured(t, map);
    map.delete(u32(5));
    old.unload();
    const what = `map ${map.id} (jumps), item 05000000: it refers to program ${old.id} ref_again tag ${shownTag(before)}`;
    await t.rejects(replayed(t, before.folder), {
      kind: 'notFound',
      message: new RegExp(`^${escaped(what)}, which is not loaded; --unresolved skip`),
    });
    const without = await replayed(t, before.folder, { unresolved: 'skip' });
    t.match(
      without.text,
      /^partial: 1 item refers to objects that this host does not have: 05000000 to program \d+ ref_again tag \w{16}, which is not loaded$/,
    );
    t.same(filled(without.map), {});

    // Of these, none is the one: another name, another tag, another type.
    for (const other of [
      { ...spec, name: 'ref_other' },
      { ...spec, result: 22 },
      { ...spec, type: PROG_TYPE.xdp },
    ])
      program(t, other);
    await t.rejects(replayed(t, before.folder), /which is not loaded/);
    const anew = program(t, spec);
    t.not(anew.id, old.id);
    const fresh = await replayed(t, before.folder);
    t.equal(fresh.text, 'full');
    t.same(filled(fresh.map), { [le(5)]: le(anew.id) });
    const after = await captured(t, fresh.map);
    const tags = (one: Captured) => one.references.map(({ key, program }) => ({ key, program: { ...program, id: 0 } }));
    t.same(tags(after), tags(before));
  });

  await t.test('a pin says which of several programs with one tag', { skip }, async (t) => {
    const { folder, remove } = bpffs();
    t.teardown(remove);
    const spec = { ...filter, name: 'ref_same', result: 31 };
    const old = program(t, spec);
    const pin = path.join(folder, 'same');
    pinFd(sys, old.fd, pin);
    const map = create(t, jumps);
    map.update(u32(1), u32(old.fd));
    const before = await captured(t, map);
    map.delete(u32(1));
    fs.unlinkSync(pin);
    old.unload();
    const [pinned, newest] = [program(t, spec), program(t, spec)];
    pinFd(sys, pinned.fd, pin);
    const byPin = await replayed(t, before.folder);
    t.same([byPin.text, filled(byPin.map)], ['full', { [le(1)]: le(pinned.id) }]);

    fs.unlinkSync(pin);
    const twice = await replayed(t, before.folder);
    const tag = shown(newest.id).tag;
    t.equal(
      twice.text,
      `partial: item 01000000: 2 programs match program ref_same tag ${tag}; the item refers to the newest, program ${newest.id} ref_same tag ${tag}`,
    );
    t.same(filled(twice.map), { [le(1)]: le(newest.id) });

    const stranger = program(t, { ...spec, result: 32 });
    pinFd(sys, stranger.fd, pin);
    const moved = await replayed(t, before.folder);
    t.same(filled(moved.map), { [le(1)]: le(newest.id) }, 'a pin with another program is not taken');
    newest.unload();
    pinned.unload();
    for (const { map } of [byPin, twice, moved]) map.delete(u32(1));
    await t.rejects(replayed(t, before.folder), new RegExp(`which is not loaded, and not pinned at ${escaped(pin)};`));
  });

  await t.test('numbers that were read are never written back', { skip }, async (t) => {
    const [one, two] = [
      program(t, { ...filter, name: 'ref_n_one', result: 41 }),
      program(t, { ...filter, name: 'ref_n_two', result: 42 }),
    ];
    const known = (id: number, as = id): Reference['program'] => {
      const { type, name, tag } = programInfo(sys, id === one.id ? one.fd : two.fd) as NonNullable<
        ReturnType<typeof programInfo>
      >;
      return { id: as, type, name, tag };
    };
    // File descriptors of programs, where the image has ids: a replay that wrote them would succeed.
    const fds: Item[] = [[u32(0), u32(one.fd)]];
    const alone = new RegExp(
      `^map 7 \\(old\\), item 00000000: it refers to program ${one.fd}, of which only the id is known`,
    );
    await t.rejects(refilled(t, jumps, fds), { message: alone });
    const skipped = await refilled(t, jumps, fds, {}, { unresolved: 'skip' });
    t.match(
      skipped.text,
      /^partial: 1 item refers to objects that this host does not have: 00000000 to program \d+, of which only the id is known/,
    );
    t.same(filled(skipped.map), {});

    // Ids of another day: 900001 was the one, 900002 the other. A slot that was edited goes by its number.
    const references = [
      { key: u32(0), program: known(one.id, 900_001) },
      { key: u32(1), program: known(two.id, 900_002) },
    ];
    const items: Item[] = [
      [u32(0), u32(900_002)],
      [u32(1), u32(900_002)],
      [u32(9), u32(900_001)],
      [u32(9), u32(900_002)],
    ];
    const { map, text } = await refilled(t, jumps, items, { references });
    t.equal(text, 'partial: 1 of its 4 items have the same key as a later one, which counts');
    t.same(filled(map), { [le(0)]: le(two.id), [le(1)]: le(two.id), [le(9)]: le(two.id) });
    await t.rejects(refilled(t, jumps, [[u32(0), u32(0)]]), /it refers to program 0, which does not exist/);
  });

  await t.test('a program of another kind is an error that names it', { skip }, async (t) => {
    const [one, xdp] = [
      program(t, { ...filter, name: 'ref_kind', result: 51 }),
      program(t, { name: 'ref_xdp', result: 52 }),
    ];
    const references = [one, xdp].map(({ fd }, i) => ({ key: u32(i), program: programInfo(sys, fd) }));
    const items: Item[] = [
      [u32(0), u32(one.id)],
      [u32(1), u32(xdp.id)],
    ];
    const name = `item 01000000, program ${xdp.id} ref_xdp tag ${shown(xdp.id).tag}: BPF_MAP_UPDATE_ELEM: EINVAL`;
    await t.rejects(refilled(t, jumps, items, { references }), { message: new RegExp(escaped(name)) });
    await t.rejects(
      refilled(t, jumps, [[u32(16), u32(one.id)]], { references }),
      new RegExp(`item 10000000, program ${one.id} ref_kind .*E2BIG`),
    );
  });

  await t.test('a PROG_ARRAY has at most 1048576 slots', { skip }, async (t) => {
    const folder = dumpOf(t.testdir(), { id: 7, type: PROG_ARRAY, key: 4, value: 4, max: 2 ** 20 + 1, name: 'huge' });
    await t.rejects(
      replayed(t, folder),
      /^prog_array map \(huge\): 1048577 slots, expected at most 1048576: the kernel is slow to clear them/,
    );
  });

  await t.test('of a kernel that lets no one read them, the map itself is kept', { skip }, async (t) => {
    const one = program(t, { ...filter, name: 'ref_old', result: 66 });
    const map = create(t, jumps);
    map.update(u32(2), u32(one.fd));
    const old = new MeddledSys(sys, (command) => (command === 'MAP_LOOKUP_ELEM' ? -ERRNO.EOPNOTSUPP : undefined));
    const { report, items } = await captured(t, map, old);
    t.same(
      [report, items],
      ['metadata only: lost: its items: this kernel does not let user space read them (EOPNOTSUPP)', {}],
    );
    const broken = new MeddledSys(sys, (command) => (command === 'MAP_LOOKUP_ELEM' ? -ERRNO.EPERM : undefined));
    await t.rejects(captured(t, map, broken), /BPF_MAP_LOOKUP_ELEM: EPERM/);
  });

  await t.test('what is gone, or may not be seen, is said', { skip }, async (t) => {
    const spec = { ...filter, name: 'ref_hidden', result: 61 };
    const one = program(t, spec);
    const map = create(t, jumps);
    map.update(u32(2), u32(one.fd));
    const blind = new MeddledSys(sys, (command) => (command.startsWith('PROG_GET_') ? -ERRNO.EPERM : undefined));
    const hidden = await captured(t, map, blind);
    t.equal(
      hidden.report,
      `partial: program ${one.id} is recorded by its id only: it is gone, or there is no permission to open it (needs CAP_SYS_ADMIN)`,
    );
    t.same(hidden.items, { [le(2)]: le(one.id) });
    t.same(
      hidden.references.map(({ program }) => program),
      [{ id: one.id, type: undefined, name: undefined, tag: undefined, pins: undefined }],
    );
    const fresh = await replayed(t, hidden.folder, { unresolved: 'skip' });
    t.match(fresh.text, /^partial: captured partial: program .*; 1 item refers to .* of which only the id is known/);

    const { folder, remove } = bpffs();
    t.teardown(remove);
    pinFd(sys, one.fd, path.join(folder, 'seen'));
    const pinned = await captured(t, map, blind);
    t.same([pinned.report, pinned.references[0]?.program?.name], ['full', 'ref_hidden'], 'a pin is another way in');
    const other = program(t, { ...spec, result: 62 });
    const facts: MapFacts = { references: [{ key: u32(0), program: programInfo(sys, other.fd) }] };
    const work: ReplayWork = {
      type: types.get(PROG_ARRAY),
      subject: 'map 7 (old)',
      facts,
      needed: [],
      unresolved: 'fail',
      fresh: () => undefined,
      progress: () => {},
    };
    // The map of a kernel that shows no programs.
    const map2 = BpfMap.create(blind, jumps);
    kept.push(map2);
    await t.rejects(
      plugin.replay?.(map2, sourceOf([[u32(0), u32(other.id)]], 4, 4), work) as Promise<Report>,
      /it refers to program \d+ ref_hidden tag \w{16}; loaded programs cannot be seen without CAP_SYS_ADMIN; --unresolved/,
    );
  });

  await t.test(
    'without privilege a program is found by its pin only',
    { skip: skip || skipWithout('setpriv') },
    async (t) => {
      const { folder, remove } = bpffs();
      t.teardown(remove);
      const one = program(t, { ...filter, name: 'ref_plain', result: 71 });
      const pin = path.join(folder, 'plain');
      pinFd(sys, one.fd, pin);
      const { tag } = shown(one.id);
      const objects = new URL('../src/kernel/objects.js', import.meta.url);
      const { stdout, stderr } = withoutCapabilities(
        `const { Programs } = await import('${objects}');
      const programs = new Programs(sys);
      const tag = Buffer.from('${tag}', 'hex');
      const wanted = { id: ${one.id}, type: 1, name: 'ref_plain', tag };
      const ids = (some) => some.map(({ program }) => program.id);
      console.log(JSON.stringify([programs.all() ?? null, ids(programs.find(wanted)),
        ids(programs.find({ ...wanted, pins: ['${pin}'] })), programs.get(${one.id})?.name, sys.openFds()]));`,
        ['bpf'],
      );
      t.equal(stderr, '');
      t.same(JSON.parse(stdout), [null, [], [one.id], 'ref_plain', []]);
    },
  );

  await t.test('how messages name a program', async (t) => {
    const tag = Buffer.from('0123456789abcdef', 'hex');
    t.equal(programText({ id: 57, name: 'xdp_main', tag }), 'program 57 xdp_main tag 0123456789abcdef');
    t.equal(programText({ id: 57, name: '', tag }), 'program 57 tag 0123456789abcdef');
    t.equal(programText({ id: 57 }), 'program 57');
    t.same(new Programs(sys).find({ id: 1, name: 'x' }), [], 'a name alone says too little');
  });

  // -------------------------------------------------------------------------------------------------
  // Interfaces

  for (const type of [DEVMAP, DEVMAP_HASH]) {
    for (const valueSize of [4, 8]) {
      const spec: MapSpec = { type, keySize: 4, valueSize, maxEntries: 16, name: 'devices' };
      const name = `${types.get(type).name} with values of ${valueSize} bytes`;
      await t.test(`${name}: interfaces go by name when their indexes have changed`, { skip }, async (t) => {
        t.teardown(() => spawnSync('ip', ['link', 'del', 'réf0']));
        vethPair(['réf0', 301], ['ref1', 302]);
        const xdp = program(t, { name: 'ref_d\xe9v', attach: ATTACH.devmap, result: 81 });
        const map = create(t, spec);
        const value = (index: number, prog = 0) => u32(...(valueSize === 8 ? [index, prog] : [index]));
        map.update(u32(1), value(301, xdp.fd));
        map.update(u32(7), value(302));
        const before = await captured(t, map);
        t.equal(before.report, 'full');
        t.same(before.items, { [le(1)]: hexOf(value(301, xdp.id)), [le(7)]: hexOf(value(302)) });
        t.same(
          sorted(before.references).map(({ ifindex, ifname, program }) => [ifindex, ifname, program?.name]),
          [
            [301, 'réf0', valueSize === 8 ? 'ref_d\xe9v' : undefined],
            [302, 'ref1', undefined],
          ],
        );
        t.same(filled(map), before.items);

        const same = await replayed(t, before.folder);
        t.same([same.text, filled(same.map)], ['full', before.items]);
        const again = await captured(t, same.map);
        t.same(plain(again), plain(before));

        must('ip', 'link', 'del', 'réf0');
        t.same(filled(map), {}, 'the kernel drops interfaces that go');
        await t.rejects(replayed(t, before.folder), {
          kind: 'notFound',
          message:
            /^map \d+ \(devices\), item 0[17]000000: it refers to interface r(éf0|ef1), which this network namespace does not have; --unresolved skip leaves such items out$/,
        });
        // Each has the other's number now: going by numbers would succeed, and be wrong.
        vethPair(['réf0', 302], ['ref1', 301]);
        const fresh = await replayed(t, before.folder);
        t.equal(fresh.text, 'full');
        t.same(filled(fresh.map), { [le(1)]: hexOf(value(302, xdp.id)), [le(7)]: hexOf(value(301)) });

        must('ip', 'link', 'set', 'ref1', 'name', 'ref2');
        const part = await replayed(t, before.folder, { unresolved: 'skip' });
        t.equal(
          part.text,
          'partial: 1 item refers to objects that this host does not have: 07000000 to interface ref1, which this network namespace does not have',
        );
        t.same(filled(part.map), { [le(1)]: hexOf(value(302, xdp.id)) });
      });
    }

    await t.test(
      `rule 5: ${types.get(type).name} reports BPF_F_RDONLY_PROG, and is created without`,
      { skip },
      async (t) => {
        const map = create(t, { type, keySize: 4, valueSize: 4, maxEntries: 4, name: 'rule5' });
        t.equal(map.flags, MAP_FLAG.RDONLY_PROG);
        const before = await captured(t, map);
        t.equal(before.flags, MAP_FLAG.RDONLY_PROG, 'the image has what the kernel said');
        const fresh = await replayed(t, before.folder);
        t.same([fresh.text, fresh.map.flags, fresh.plan.spec.flags], ['full', MAP_FLAG.RDONLY_PROG, 0]);
        t.throws(() => BpfMap.create(sys, { type, keySize: 4, valueSize: 4, maxEntries: 4, flags: 0x80 }), {
          code: 'EINVAL',
        });
      },
    );
  }

  await t.test('an interface whose name is not known goes by its index, which is said', { skip }, async (t) => {
    const spec: MapSpec = { type: DEVMAP, keySize: 4, valueSize: 4, maxEntries: 4, name: 'nameless' };
    const { map, text } = await refilled(t, spec, [[u32(0), u32(1)]]);
    t.equal(text, 'partial: item 00000000: interface 1 is identified by its index, because its name is unknown');
    t.same(filled(map), { [le(0)]: le(1) });
    await t.rejects(
      refilled(t, spec, [[u32(0), u32(999)]]),
      /it refers to interface 999, which this network namespace does not have/,
    );
    // An item that was edited to another one's interface.
    const references = [
      { key: u32(0), ifindex: 77, ifname: 'gone' },
      { key: u32(1), ifindex: 88, ifname: 'lo' },
    ];
    const edited = await refilled(t, spec, [[u32(0), u32(88)]], { references });
    t.same([edited.text, filled(edited.map)], ['full', { [le(0)]: le(1) }]);
  });

  await t.test('the program of an interface must be here as well', { skip }, async (t) => {
    const spec: MapSpec = { type: DEVMAP, keySize: 4, valueSize: 8, maxEntries: 4, name: 'both' };
    // Two with the same instructions, but only one that a map of devices takes; the other is newer.
    const dev = program(t, { name: 'ref_both', attach: ATTACH.devmap, result: 91 });
    program(t, { name: 'ref_both', result: 91 });
    const facts = programInfo(sys, dev.fd);
    const references = [{ key: u32(0), ifindex: 1, ifname: 'lo', program: { ...facts, id: 900_001 } }];
    const items: Item[] = [[u32(0), u32(1, 900_001)]];
    const { map } = await refilled(t, spec, items, { references });
    t.same(filled(map), { [le(0)]: le(1, dev.id) });
    dev.unload();
    map.delete(u32(0));
    // The map gives its program up when nobody can be running it any more.
    for (let i = 0; i < 100 && walkIds(sys, 'PROG_GET_NEXT_ID')?.includes(dev.id); i++) await wait(20);
    await t.rejects(
      refilled(t, spec, items, { references }),
      /item 00000000, interface lo, program \d+ ref_both tag \w{16}: .*EINVAL/,
    );
  });

  await t.test('interfaces have the names of the holders’ network namespace', { skip }, async (t) => {
    const script = fileURLToPath(new URL('./helpers/devmap-holder.js', import.meta.url));
    const child = spawn('unshare', ['--net', process.execPath, script, '501'], { stdio: ['pipe', 'pipe', 'inherit'] });
    const ended = new Promise((resolve) => child.once('close', resolve));
    t.teardown(() => {
      child.stdin.end();
      return ended;
    });
    let id = 0;
    for await (const line of createInterface({ input: child.stdout })) {
      id = Number(line);
      break;
    }
    const elsewhere = BpfMap.openById(sys, id);
    t.teardown(() => elsewhere.close());
    const { report, references, folder } = await captured(t, elsewhere);
    t.same([report, references.map(({ ifindex, ifname }) => [ifindex, ifname])], ['full', [[501, 'inner0']]]);
    await t.rejects(replayed(t, folder), /it refers to interface inner0, which this network namespace does not have/);
  });

  await t.test('an interface without a name is said', { skip }, async (t) => {
    // Moved to another namespace, it is gone from the map: so a kernel is made up that has one.
    const map = create(t, { type: DEVMAP, keySize: 4, valueSize: 4, maxEntries: 1, name: 'nowhere' });
    const odd = new MeddledSys(sys, (command, attr) => {
      if (command !== 'MAP_LOOKUP_ELEM') return undefined;
      attr.pointee('value')?.set(u32(4711));
      return 0;
    });
    const { report, references } = await captured(t, map, odd);
    t.equal(report, 'partial: interface 4711 has no name in this network namespace');
    t.match(references, [{ ifindex: 4711, ifname: undefined }]);
  });

  // -------------------------------------------------------------------------------------------------
  // CPUs

  for (const valueSize of [4, 8]) {
    await t.test(`a CPUMAP with values of ${valueSize} bytes comes back`, { skip }, async (t) => {
      const xdp = program(t, { name: 'ref_cpu', attach: ATTACH.cpumap, result: 101 });
      const spec: MapSpec = { type: CPUMAP, keySize: 4, valueSize, maxEntries: sys.cpus, name: 'cpus' };
      const value = (size: number, prog = 0) => u32(...(valueSize === 8 ? [size, prog] : [size]));
      const map = create(t, spec);
      map.update(u32(0), value(192, xdp.fd));
      if (sys.cpus > 1) map.update(u32(1), value(64));
      const before = await captured(t, map);
      t.equal(before.report, 'full');
      t.same(before.items[le(0)], hexOf(value(192, xdp.id)));
      t.same(filled(map), before.items);
      t.same(
        before.references.map(({ key, program }) => [hexOf(key), program?.name]),
        valueSize === 8 ? [[le(0), 'ref_cpu']] : [],
      );
      const fresh = await replayed(t, before.folder);
      t.same([fresh.text, filled(fresh.map)], ['full', before.items]);
      const after = await captured(t, fresh.map);
      t.same(plain(after), plain(before));

      const far: Item[] = [
        [u32(0), value(32)],
        [u32(200), value(32)],
      ];
      const wide = { ...spec, maxEntries: 256 };
      await t.rejects(
        refilled(t, wide, far),
        /^map 7 \(old\), item c8000000: it refers to CPU 200, which this machine does not have/,
      );
      const part = await refilled(t, wide, far, {}, { unresolved: 'skip' });
      t.equal(
        part.text,
        'partial: 1 item refers to objects that this host does not have: c8000000 to CPU 200, which this machine does not have',
      );
      t.same(filled(part.map), { [le(0)]: hexOf(value(32)) });
    });
  }

  // -------------------------------------------------------------------------------------------------
  // Sockets, and what cannot be read

  await t.test(
    'maps of sockets: the same sockets are put in again, as long as a process has them open',
    { skip: skipSockets },
    async (t) => {
      const holder = await SocketHolder.start(sys);
      t.teardown(() => holder.stop());
      const { connected, listening, reuseport } = holder.opened;
      const value = (size: number, fd: number) => Buffer.concat([u32(fd), Buffer.alloc(size - 4)]);
      for (const [type, keySize, sockets] of [
        [SOCKMAP, 4, connected],
        [SOCKHASH, 6, listening],
        [REUSEPORT, 4, reuseport],
      ] as const) {
        const { name } = types.get(type);
        const keys = sockets.map((_, i) => Buffer.concat([u32(3 * i), Buffer.alloc(keySize - 4, 0xab)]));
        const spec: MapSpec = { type, keySize, valueSize: 8, maxEntries: 8, name: 'socks' };
        const map = create(t, spec);
        for (const [i, { fd }] of sockets.entries()) map.update(keys[i] as Buffer, value(8, fd));
        const before = await captured(t, map);
        t.equal(before.report, 'full', name);
        const cookies = Object.fromEntries(sockets.map(({ cookie }, i) => [hexOf(keys[i] as Buffer), BigInt(cookie)]));
        t.same(before.items, Object.fromEntries(Object.entries(cookies).map(([key, cookie]) => [key, u64(cookie)])));
        t.same(Object.fromEntries(before.references.map(({ key, cookie }) => [hexOf(key), cookie])), cookies);
        t.same(filled(map), before.items);
        // A socket can be in one map of reuseport sockets only.
        const taken = 'which the kernel does not accept: EBUSY (in use at the moment)';
        if (type === REUSEPORT) {
          await t.rejects(replayed(t, before.folder), { kind: 'notFound', message: new RegExp(escaped(taken)) });
          const part = await replayed(t, before.folder, { unresolved: 'skip' });
          t.match(
            part.text,
            /^partial: 2 items refer to objects that this host does not have: \w+ to socket with cookie \d+, which/,
          );
          t.same(filled(part.map), {});
          for (const key of keys) map.delete(key);
        }
        const fresh = await replayed(t, before.folder);
        t.equal(fresh.text, 'full');
        t.same(filled(fresh.map), before.items, 'the same sockets');
        const after = await captured(t, fresh.map);
        t.same(plain(after), plain(before));
        for (const key of keys) fresh.map.delete(key);
        if (type !== REUSEPORT) for (const key of keys) map.delete(key);
        const none = await captured(t, fresh.map);
        t.same([none.report, none.items], ['full', {}]);
        t.equal((await replayed(t, none.folder)).text, 'full', 'an empty one comes back whole');

        const [first = [keys[0] as Buffer, Buffer.alloc(8)]] = Object.entries(before.items).map(
          ([key, value]): Item => [Buffer.from(key, 'hex'), Buffer.from(value, 'hex')],
        );
        const boot = bootId() as string;
        const cookie = Buffer.from(first[1]).readBigUInt64LE();
        for (const [facts, item, why] of [
          [{}, first, `${cookie} of an unknown boot`],
          [{ boot: boot.replace(/^./, 'x') }, first, `${cookie} of another boot`],
          [{ boot }, [first[0], Buffer.alloc(8, 0x7f)], `${0x7f7f7f7f7f7f7f7fn}, which no visible process has open`],
        ] as const) {
          const message = `item ${hexOf(first[0])}: it refers to socket with cookie ${why}; --unresolved skip`;
          await t.rejects(refilled(t, spec, [item], facts), {
            kind: 'notFound',
            message: new RegExp(escaped(message)),
          });
        }

        const small = create(t, { ...spec, valueSize: 4 });
        for (const [i, { fd }] of sockets.entries()) small.update(keys[i] as Buffer, value(4, fd));
        const blind = await captured(t, small);
        const walks = type === SOCKHASH;
        const lost = `lost: ${types.get(type).carries?.lost}`;
        t.equal(blind.report, `metadata only: ${lost}${walks ? '; its 2 keys are recorded' : ''}`);
        t.same(blind.references.map(({ key }) => hexOf(key)).sort(), walks ? Object.keys(cookies).sort() : []);
        const empty = await replayed(t, blind.folder);
        t.equal(empty.text, `metadata only: ${lost}`);
        t.same([empty.map.type, empty.map.keySize, empty.map.valueSize, empty.map.maxEntries], [type, keySize, 4, 8]);
      }
    },
  );

  await t.test(
    'of cgroups, perf events and AF_XDP sockets only the map itself is kept',
    { skip: skipSockets },
    async (t) => {
      const holder = await SocketHolder.start(sys);
      t.teardown(() => holder.stop());
      const mount = /^\S+ (\S+) cgroup2 /m.exec(fs.readFileSync('/proc/self/mounts', 'utf8'))?.[1];
      const cgroup = mount === undefined ? -1 : fs.openSync(fs.mkdtempSync(path.join(mount, 'bpfimg-')), 'r');
      const folder = cgroup < 0 ? '' : fs.readlinkSync(`/proc/self/fd/${cgroup}`);
      t.teardown(() => {
        if (cgroup < 0) return;
        fs.closeSync(cgroup);
        fs.rmdirSync(folder);
      });
      for (const [type, fd, what, flags] of [
        [CGROUP_ARRAY, cgroup, 'cgroups', 0],
        [PERF_EVENT_ARRAY, holder.opened.perf[0]?.fd ?? -1, 'perf events', MAP_FLAG.PRESERVE_ELEMS],
        [XSKMAP, holder.opened.xdp[0]?.fd ?? -1, 'AF_XDP sockets', 0],
      ] as const) {
        const map = create(t, { type, keySize: 4, valueSize: 4, maxEntries: 5, flags, name: 'opaque' });
        if (fd >= 0) map.update(u32(2), u32(fd));
        else t.comment(`no ${what} here`);
        const before = await captured(t, map);
        const report = `metadata only: lost: ${what}: the kernel does not reveal which it holds`;
        t.equal(before.report, report);
        t.same([before.items, before.references], [{}, []]);
        const fresh = await replayed(t, before.folder);
        t.equal(fresh.text, report);
        const { type: t2, maxEntries, flags: f2, name } = fresh.map;
        t.same([t2, maxEntries, f2, name], [type, 5, flags, 'opaque']);
        t.same(filled(fresh.map), {});
        t.equal((await captured(t, fresh.map)).report, report);
      }
    },
  );

  await t.test('more items than there is room for keep one reference for each thing', { skip }, async (t) => {
    const one = program(t, { ...filter, name: 'ref_many', result: 111 });
    const map = create(t, jumps);
    map.update(u32(0), u32(one.fd));
    // A kernel whose map has 60000 slots.
    const many = Object.assign(Object.create(map) as BpfMap, { maxEntries: 60_000 });
    let at = 0;
    Object.assign(many, {
      nextKey: (key: Uint8Array | undefined, into: Uint8Array) => {
        at = key === undefined ? 0 : at + 1;
        into.set(u32(at));
        return at < 60_000 ? into : undefined;
      },
      lookup: (_key: Uint8Array, _flags: number, into: Uint8Array) => {
        into.set(u32(one.id));
        return into;
      },
    });
    let facts: MapFacts = {};
    const sink = new Recorder(map);
    const report = await plugin.capture?.(many, sink, {
      type: types.get(PROG_ARRAY),
      subject: 'map 7 (old)',
      drain: 'no',
      folder: '',
      follow: () => undefined,
      innerMaps: () => {},
      atEnd: () => {},
      keep: (more) => {
        facts = more;
      },
      progress: () => {},
    });
    t.equal(sink.count, 60_000);
    t.same(
      facts.references?.map(({ program }) => program?.name),
      ['ref_many'],
    );
    t.match(report, { kind: 'partial', why: /^too many items/ });
    const items: Item[] = [[u32(3), u32(one.id)]];
    t.equal((await refilled(t, jumps, items, facts)).text, 'full', 'the number says it all');
  });
}

/** The tag in a dump's one reference. */
function shownTag({ references }: Captured): string {
  return hexOf(references[0]?.program?.tag ?? Buffer.alloc(0));
}

function sorted(references: readonly Reference[]): Reference[] {
  return [...references].sort((a, b) => Buffer.compare(a.key, b.key));
}

/** What must be the same in each capture. */
function plain({ items, references, flags, report }: Captured): unknown {
  return { items, references: sorted(references), flags, report };
}

function u64(value: bigint): string {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(value);
  return hexOf(bytes);
}

function escaped(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
}
