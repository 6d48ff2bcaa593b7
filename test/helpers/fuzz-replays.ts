/**
 * Dumps of maps of every type, with attributes, items, inner maps, types and side images changed: what `verify` says of
 * them against what a replay says, and does.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { run as dryReplay } from '../../src/cli/commands/replay.js';
import { type Dump, isCriu, openDump } from '../../src/dump/model.js';
import { EXIT } from '../../src/errors.js';
import { MemoryOutput } from '../../src/io/output.js';
import { MAP_FLAG } from '../../src/kernel/abi.js';
import { BpfMap } from '../../src/kernel/map.js';
import { openSys, type Sys } from '../../src/kernel/sys.js';
import { reportText } from '../../src/maptype.js';
import { type PlannedMap, planMaps } from '../../src/replay/plan.js';
import { replay } from '../../src/replay/replay.js';
import type { Finding, FindingCode } from '../../src/verify/verify.js';
import { BtfWriter } from './btf-writer.js';
import type { FuzzCase, Fuzzer } from './fuzz-case.js';
import { EXTREMES, judge } from './fuzz-case.js';
import { mutateDump, scratchFolder, types, verified } from './fuzz-dumps.js';
import { blob, dataMessage, entry, type Item, image, scalar, words } from './images.js';
import type { Random } from './random.js';
import { ioOf, usualReplay } from './replay.js';

// ---------------------------------------------------------------------------------------------------
// Dumps

interface Shape {
  type: number;
  key: number;
  value: number;
  max: number;
  flags: number;
}

interface Model extends Shape {
  id: number;
  name: Buffer;
  extra: bigint;
  ifindex: number;
  frozen: boolean;
  /** Open files; what one of them says otherwise. */
  files: Partial<Shape>[];
  items: Item[] | undefined;
  /** Added to the totals that its data entry claims. */
  odd: readonly [keys: number, values: number, count: number];
  template: Shape | undefined;
  btf: readonly [id: number, key: number, value: number] | undefined;
  report: string | undefined;
}

const F = MAP_FLAG;
const PROG = [F.RDONLY_PROG, F.WRONLY_PROG];

/** Good maps of each type: key_size, value_size, max_entries, flags that must be, and some that may. */
const GOOD: Readonly<
  Record<number, readonly [key: number, value: number, max: number, must: number, may: readonly number[]]>
> = {
  1: [4, 8, 8, 0, [F.NO_PREALLOC, F.ZERO_SEED, F.NUMA_NODE, ...PROG]],
  2: [4, 8, 3, 0, [F.MMAPABLE, F.INNER_MAP, F.NUMA_NODE, ...PROG]],
  3: [4, 4, 4, 0, [F.NUMA_NODE]],
  4: [4, 4, 4, 0, [F.PRESERVE_ELEMS]],
  5: [4, 5, 8, 0, [F.NO_PREALLOC, F.ZERO_SEED, F.NUMA_NODE, ...PROG]],
  6: [4, 8, 2, 0, [F.NUMA_NODE, ...PROG]],
  7: [4, 80, 4, 0, []],
  8: [4, 4, 4, 0, [F.NUMA_NODE]],
  9: [4, 8, 16, 0, [F.NO_COMMON_LRU, F.NUMA_NODE, ...PROG]],
  10: [4, 8, 16, 0, [F.NO_COMMON_LRU, F.NUMA_NODE, ...PROG]],
  11: [8, 4, 8, F.NO_PREALLOC, PROG],
  12: [4, 4, 4, 0, [F.NUMA_NODE]],
  13: [4, 4, 4, 0, [F.NO_PREALLOC, F.ZERO_SEED, ...PROG]],
  14: [4, 8, 4, 0, [F.RDONLY_PROG]],
  15: [4, 8, 4, 0, [F.NUMA_NODE]],
  16: [4, 8, 2, 0, [F.NUMA_NODE]],
  17: [4, 4, 4, 0, [F.NUMA_NODE]],
  18: [6, 8, 4, 0, [F.NUMA_NODE]],
  19: [8, 8, 0, 0, PROG],
  20: [4, 8, 4, 0, PROG],
  21: [8, 8, 0, 0, PROG],
  22: [0, 4, 8, 0, PROG],
  23: [0, 4, 8, 0, PROG],
  24: [4, 8, 0, F.NO_PREALLOC, [F.CLONE]],
  25: [4, 8, 4, 0, [F.RDONLY_PROG]],
  26: [4, 64, 1, 0, [F.LINK]],
  27: [0, 0, 4096, 0, [F.NUMA_NODE]],
  28: [4, 8, 0, F.NO_PREALLOC, [F.CLONE]],
  29: [4, 8, 0, F.NO_PREALLOC, [F.CLONE]],
  30: [0, 4, 8, 0, [F.ZERO_SEED]],
  31: [0, 0, 4096, 0, [F.NUMA_NODE]],
  32: [4, 8, 0, F.NO_PREALLOC, [F.CLONE]],
  33: [0, 0, 2, F.MMAPABLE, [F.SEGV_ON_FAULT]],
  34: [4, 16, 4, 0, []],
  35: [4, 8, 8, F.NO_PREALLOC, PROG],
};
const NUMBERS = Object.keys(GOOD).map(Number);

function goodShape(type: number, random: Random): Shape {
  const [key, value, max, must, may] = GOOD[type] as (typeof GOOD)[number];
  const more = may.length > 0 && random.below(2) ? random.of(may) : 0;
  return { type, key, value, max, flags: must | more };
}

/** The id of the BTF object that dumps have, and types in it. */
const BTF = 5;
const INT = 1;
const LONG = 2;
const STRUCT8 = 3;
const objectOf = () => {
  const btf = new BtfWriter();
  btf.int('int', 4, { encoding: 1 });
  btf.int('long', 8, { encoding: 1 });
  btf.struct('pair', 8, [
    { name: 'a', type: INT, at: 0 },
    { name: 'b', type: INT, at: 32 },
  ]);
  btf.fwd('nothing');
  btf.array(INT, 4);
  return btf.bytes();
};

/** Items that a map of this type can have. */
function goodItems(shape: Shape, inner: readonly number[], random: Random): Item[] {
  const row = types.get(shape.type);
  const cpus = row.perCpu ? Math.ceil(shape.value / 8) * 2 : shape.value / 4;
  if (row.name === 'ringbuf' || row.name === 'user_ringbuf') {
    return random.below(2)
      ? []
      : [Buffer.from([8, 0, 0, 0, 0, 0, 0, 0]), random.bytes(8)].map((word): Item => [Buffer.alloc(0), word]);
  }
  if (row.name === 'arena') return random.below(2) ? [] : [[Buffer.from(words(random.below(2))), random.bytes(4096)]];
  const { key = shape.key, value } = row.imageItem ?? {};
  const size = typeof value === 'number' ? value : row.perCpu ? cpus * 4 * 1 : shape.value;
  const bytes = row.perCpu ? Math.ceil(shape.value / 8) * 16 : size;
  const many = row.dense ? shape.max : Math.min(shape.max, random.below(4));
  return Array.from({ length: many }, (_, i): Item => {
    const name = random.bytes(key);
    if (key > 0) name[0] = i;
    if (row.key === 'index') name.writeUInt32LE(i);
    if (row.key === 'prefix') name.writeUInt32LE(random.below(33));
    return [name, row.inner ? Buffer.from(words(random.of(inner))) : random.bytes(bytes)];
  }).slice(0, row.inner && inner.length === 0 ? 0 : many);
}

function goodMap(id: number, type: number, inner: readonly Model[], random: Random): Model {
  const shape = goodShape(type, random);
  const row = types.get(type);
  const leads = row.inner ? inner : [];
  const [first] = leads;
  const like = leads.filter((one) => first !== undefined && one.type === first.type && one.flags === first.flags);
  const needsTypes = types.row(type)?.create?.btf === 'required';
  return {
    ...shape,
    id,
    name: Buffer.from(random.of(['m', 'flows', 'a.b_c', ''])),
    extra: 0n,
    ifindex: 0,
    frozen: !row.holdsReferences && random.below(6) === 0 && type !== 26,
    files: random.below(5) ? [{}] : [{}, {}],
    items: goodItems(
      shape,
      like.map((one) => one.id),
      random,
    ),
    odd: [0, 0, 0],
    template: row.inner && first !== undefined && random.below(2) ? { ...first } : undefined,
    btf: needsTypes
      ? [BTF, INT, STRUCT8]
      : [1, 2, 9].includes(type) && random.below(4) === 0
        ? [BTF, INT, LONG]
        : undefined,
    report: undefined,
  };
}

/** One thing of a map that may be anything. */
function mutateMap(map: Model, all: readonly Model[], random: Random): void {
  const any = () => Number(random.below(3) ? BigInt(random.below(20)) : BigInt.asUintN(32, random.of(EXTREMES)));
  const member = random.of(['type', 'key', 'value', 'max', 'flags'] as const);
  switch (random.below(16)) {
    case 0:
    case 1:
    case 2:
      map[member] = member === 'type' ? random.of([...NUMBERS, 0, 36, 77]) : any();
      break;
    case 3:
      map.flags ^= random.of(Object.values(F));
      map.flags >>>= 0;
      break;
    case 4:
      map.name = random.of([Buffer.from('a-b'), Buffer.from('sixteen_letters_'), random.bytes(4), Buffer.from('a\0b')]);
      break;
    case 5:
      if (random.below(2)) map.extra = random.of([...EXTREMES]);
      else map.ifindex = random.below(3);
      break;
    case 6:
      map.frozen = !map.frozen;
      break;
    case 7:
      map.files.push({ [member]: any() });
      break;
    case 8:
      if (map.template === undefined) map.template = goodShape(random.of(NUMBERS), random);
      else map.template[member] = member === 'type' ? random.of(NUMBERS) : any();
      break;
    case 9:
      map.btf = [random.of([BTF, BTF, BTF, 6]), random.of([INT, INT, random.below(8)]), random.below(8)];
      break;
    case 10:
      map.odd = [random.below(3) - 1, random.below(3) - 1, random.below(3) - 1];
      break;
    case 11:
      map.items = undefined;
      break;
    case 12:
      map.report = random.of(['full', 'partial: some', 'metadata only: none', 'not supported: no', '']);
      break;
    default: {
      const items = map.items ?? [];
      map.items = items;
      const at = random.below(items.length + 1);
      const [key, value] = items[at] ?? [random.bytes(map.key % 64), random.bytes(map.value % 64)];
      const how = random.below(6);
      if (how === 0) items.splice(at, 1);
      else if (how === 1) items.splice(random.below(items.length + 1), 0, [key, value]);
      else if (how === 2) items[at] = [key, Buffer.from(words(random.of([...all.map((one) => one.id), 99])))];
      else if (how === 3) map.items = items.map(([key, value]) => [key, Buffer.concat([value, random.bytes(8)])]);
      else if (how === 4) map.items = items.map(([key, value]) => [Buffer.concat([key, random.bytes(4)]), value]);
      else if (key.length >= 4) {
        const other = Buffer.from(key);
        other.writeUInt32LE(any());
        items[at] = [other, value];
      }
    }
  }
}

function shapeFields({ type, key, value, max, flags }: Shape): Buffer {
  return Buffer.concat([type, key, value, max, flags].map((number, i) => scalar(1 + i, number)));
}

function imagesOf(maps: readonly Model[]): Record<string, Uint8Array> {
  const fown = Buffer.concat([1, 2, 3, 4, 5].map((no) => scalar(no, 0)));
  let file = 0;
  const files = maps.flatMap((map) =>
    map.files.map((own) => {
      const { type, key, value, id, max, flags, name, ifindex, frozen, extra } = { ...map, ...own };
      return entry(
        Buffer.concat([
          ...[scalar(1, ++file), scalar(2, 2), scalar(3, 0), blob(4, fown)],
          ...[type, key, value, id, max, flags, 4096, frozen ? 1 : 0].map((number, i) => scalar(5 + i, number)),
          ...[blob(13, name), scalar(14, ifindex)],
          ...(extra === 0n ? [] : [scalar(16, extra)]),
        ]),
      );
    }),
  );
  const data = maps.flatMap(({ id, items, odd }) => {
    if (items === undefined) return [];
    const [keys, values] = [Buffer.concat(items.map(([key]) => key)), Buffer.concat(items.map(([, value]) => value))];
    const claim = (size: number, more: number) => Math.max(0, size + more);
    const sizes = [claim(keys.length, odd[0]), claim(values.length, odd[1])] as const;
    const body = Buffer.concat([keys, values, Buffer.alloc(8)]).subarray(0, sizes[0] + sizes[1]);
    return [entry(dataMessage(id, ...sizes, claim(items.length, odd[2])), body)];
  });
  const meta = maps.flatMap(({ id, template, btf, report }) => {
    const facts = [
      ...(btf === undefined ? [] : btf.map((number, i) => scalar(4 + i, number))),
      ...(template === undefined ? [] : [blob(9, shapeFields(template))]),
      ...(report === undefined ? [] : [blob(12, Buffer.from(report))]),
    ];
    return facts.length === 0 ? [] : [entry(Buffer.concat([scalar(1, id), ...facts]))];
  });
  const object = objectOf();
  return {
    'bpfmap-file.img': image('BPFMAP_FILE', ...files),
    'bpfmap-data.img': image('BPFMAP_DATA', ...data),
    ...(meta.length === 0 ? {} : { 'bpfmap-meta.img': image('BPFMAP_META', ...meta) }),
    ...(maps.some(({ btf }) => btf !== undefined)
      ? {
          'bpfmap-btf.img': image(
            'BPFMAP_BTF',
            entry(Buffer.concat([scalar(1, BTF), scalar(2, object.length)]), object),
          ),
        }
      : {}),
  };
}

function makeDump(random: Random): Record<string, Uint8Array> {
  const plain = NUMBERS.filter((type) => !types.get(type).inner);
  const maps: Model[] = [];
  for (let left = 1 + random.below(3); left > 0; left--) {
    maps.push(goodMap(7 + maps.length, random.of(plain), [], random));
    if (random.below(2)) maps.push(goodMap(7 + maps.length, (maps.at(-1) as Model).type, [], random));
  }
  if (random.below(3) === 0) {
    const inner = random.of(maps);
    const like = maps.filter(({ type, flags }) => type === inner.type && flags === inner.flags);
    maps.push(goodMap(7 + maps.length, random.of([12, 13]), like, random));
  }
  const faults = random.below(3);
  for (let left = faults; left > 0; left--) mutateMap(random.of(maps), maps, random);
  if (random.below(10) === 0) maps.push({ ...random.of(maps) });
  const images = imagesOf(maps);
  for (const name of Object.keys(images)) if (random.below(30) === 0) delete images[name];
  return random.below(8) === 0 ? { ...mutateDump(images, random) } : images;
}

// ---------------------------------------------------------------------------------------------------
// What is said of them

/** Warnings of what a replay does not bring back. */
export const LOSSES: ReadonlySet<FindingCode> = new Set([
  'no-data',
  'captured',
  'left-out',
  'btf-missing',
  'unknown-type',
]);

/** Errors about contradictions within a dump: a replay uses the last value, and nobody knows whether that is right. */
export const CONTRADICTIONS: ReadonlySet<FindingCode> = new Set([
  'duplicate-key',
  'copies-differ',
  'files-differ',
  'duplicate-file',
]);

interface Dry {
  readonly refused: boolean;
  /** Reports that are not `full`. */
  readonly less: readonly string[];
  readonly said: string;
}

async function dryRun(folder: string, sys: Sys): Promise<Dry> {
  // Neither the memory of this machine nor the number of its CPUs is a dump's fault, nor what this process may do.
  const args = { ...usualReplay, source: folder, dryRun: true, json: true, force: true, percpu: 'first' } as const;
  const said: string[] = [];
  const out = new MemoryOutput();
  let refused: boolean;
  try {
    refused = (await dryReplay(args, ioOf(out, said), sys)) !== EXIT.ok;
  } catch (error) {
    said.push(judge(error, ['badImage', 'notFound', 'unsupported', 'conflict']).message);
    refused = true;
  }
  const needs = said.findIndex((line) => line.startsWith('bpfimg: creating these maps needs'));
  if (needs >= 0) said.splice(needs, 1);
  if (needs >= 0 && said.length === 0) refused = false;
  const text = out.take().toString();
  const rows = text === '' ? [] : (JSON.parse(text) as { maps: { report: string }[] }).maps;
  const less = rows.map(({ report }) => report).filter((one) => one !== 'full');
  return { refused, less, said: said.join(' | ') };
}

const list = (findings: readonly Finding[]) => findings.map(({ code, message }) => `${code}: ${message}`).join(' | ');

/** Bytes of kernel memory that a case may take. */
const MOST = 1 << 20;
const PROG_ARRAY = 3;
const STACK_TRACE = 7;
const CPUMAP = 16;

/** Whether a test may create such maps here. */
function isHarmless({ spec, memory, facts }: PlannedMap): boolean {
  const { template = spec } = facts;
  const small = (one: { maxEntries: number; valueSize: number; keySize: number }) =>
    one.maxEntries <= 65_536 && one.maxEntries * Math.max(8, one.valueSize + one.keySize) <= MOST;
  return spec.type !== PROG_ARRAY && template.type !== PROG_ARRAY && memory <= MOST && small(spec) && small(template);
}

/** Whether this kernel has all these types. */
const release = fs
  .readFileSync('/proc/sys/kernel/osrelease', 'latin1')
  .split('.')
  .map((part) => Number.parseInt(part, 10));
function isHere({ type, facts }: PlannedMap): boolean {
  const kinds = facts.template === undefined ? [type] : [type, types.get(facts.template.type)];
  return kinds.every(({ since }) => {
    const [major = 0, minor = 0] = since.split('.').map(Number);
    return major < (release[0] ?? 0) || (major === release[0] && minor <= (release[1] ?? 0));
  });
}

/** Limits that are this machine's: NR_CPUS, kernel.perf_event_max_stack. */
function isWithinLimits({ spec: { type, maxEntries, valueSize } }: PlannedMap): boolean {
  return type === CPUMAP ? maxEntries <= 64 : type !== STACK_TRACE || valueSize <= 8 * 127;
}

/**
 * Really replays the dump.
 * @returns what was reported of its maps and is not `full`, an error as one of them; undefined where that is not tried
 */
async function replayed(folder: string, sys: Sys): Promise<readonly string[] | undefined> {
  let dump: Dump | undefined;
  try {
    dump = await openDump(folder);
    const plans = await planMaps(dump, dump.maps, types, { cpus: sys.cpus, perCpu: 'first', pageSize: sys.pageSize });
    if (!plans.every((plan) => isHarmless(plan) && isHere(plan) && isWithinLimits(plan))) return undefined;
    // What this host has of programs, sockets and devices is not the dump's.
    if (
      plans.some(({ type, items }) => items.count > 0 && ((type.holdsReferences && !type.inner) || type.key === 'fd'))
    )
      return undefined;
    const fresh = await replay(sys, plans, {});
    for (const { map } of fresh) map.close();
    return fresh.map(({ report }) => reportText(report)).filter((report) => report !== 'full');
  } catch (error) {
    return [`refused: ${judge(error, ['badImage', 'unsupported', 'conflict', 'notFound', 'io']).message}`];
  } finally {
    dump?.close();
  }
}

/** Whether this process may make maps. */
function mayCreate(sys: Sys): boolean {
  try {
    BpfMap.create(sys, { type: 2, keySize: 4, valueSize: 4, maxEntries: 1 }).close();
    return true;
  } catch {
    return false;
  }
}

/** Every so many cases one is really replayed. */
const EACH = 3;

/**
 * Makes dumps of maps, most with something wrong. `verify` must have an error exactly where `replay --dry-run` refuses,
 * or reports what is not full, and a replay must come to what both say.
 */
export async function fuzzReplays(): Promise<Fuzzer> {
  const folder = path.join(scratchFolder(), 'dump');
  const sys = await openSys(types);
  const able = mayCreate(sys);
  return (random, seed): FuzzCase => {
    const files = makeDump(random);
    return {
      files,
      async run() {
        fs.rmSync(folder, { recursive: true, force: true });
        fs.mkdirSync(folder);
        for (const [name, bytes] of Object.entries(files)) fs.writeFileSync(path.join(folder, name), bytes);
        const findings = await verified(folder);
        const dry = await dryRun(folder, sys);
        const errors = findings?.filter(({ severity }) => severity === 'error') ?? [];
        const sound = findings !== undefined && errors.length === 0;
        const says = `replay --dry-run says ${[...dry.less, dry.said].join(' | ')}, verify: ${list(findings ?? [])}`;
        if (dry.refused && sound) throw new Error(`refused and sound: ${says}`);
        const told =
          findings === undefined || findings.some(({ code, severity }) => severity === 'error' || LOSSES.has(code));
        if (dry.less.length > 0 && !told) throw new Error(`not full, and nothing found: ${says}`);
        const replays = errors.filter(({ code }) => !CONTRADICTIONS.has(code));
        if (replays.length > 0 && !dry.refused && dry.less.length === 0 && !isCriu(Object.keys(files))) {
          throw new Error(`full, and an error: ${says}`);
        }
        // Of a process much more can be wrong than its maps.
        const processes = isCriu(Object.keys(files));
        if (!able || seed % EACH !== 0 || findings === undefined || processes) return sound;
        const less = await replayed(folder, sys);
        if (less === undefined) return sound;
        if (less.length > 0 && !told) throw new Error(`sound, but replayed ${less.join(' | ')}; ${says}`);
        if (less.length === 0 && replays.length > 0) throw new Error(`an error, but replayed in full; ${says}`);
        return sound;
      },
    };
  };
}
