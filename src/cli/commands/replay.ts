import * as fs from 'node:fs';
import type { Dump } from '../../dump/model.js';
import { selectMaps } from '../../dump/select.js';
import { BpfimgError, ClosedPipe, EXIT, errorText } from '../../errors.js';
import { inAscii } from '../../json/print.js';
import { BpfMap } from '../../kernel/map.js';
import { openSys, type Sys } from '../../kernel/sys.js';
import { flagWords, mapFlagNames, type Report, reportText, withMissing } from '../../maptype.js';
import { colours, nameText, sizeText, table } from '../../render.js';
import { Foresight, unsupported } from '../../replay/foresight.js';
import { memoryShort } from '../../replay/memory.js';
import { pinNames, planPins } from '../../replay/pins.js';
import { type PlannedMap, planMaps } from '../../replay/plan.js';
import { type FreshMap, pinPlace, replay } from '../../replay/replay.js';
import type { SweptMap } from '../../replay/sweep.js';
import { mapsOf, type Source } from '../../source/source.js';
import { choosing, chosen } from '../choosing.js';
import type { Command, Given } from '../command.js';
import { coloured, type Io } from '../io.js';
import { ATTRIBUTES } from '../map-columns.js';
import { boolean, json, libdir, map, number, source, string } from '../options.js';
import { Progress } from '../progress.js';
import {
  migrationOptions,
  oldName,
  type ReplayRun,
  Reshaping,
  reshapeOptions,
  type Skipped,
  stepLines,
  stepRows,
} from '../reshaping.js';
import { Sources, sourceOf } from '../source.js';
import { type ReplacedRow, replacedLines, replacedRows } from '../swapped.js';
import { mostSweeps, sweepLines, sweepMaps, sweepRows } from '../sweeping.js';
import { printLines, written } from '../written.js';

const takes = {
  words: { source: { ...source, demandOption: true } },
  options: {
    map,
    ...choosing,
    pin: { group: 'Target', value: 'DIR', ...string, describe: 'pin each map in this folder of a BPF file system' },
    into: {
      value: 'TARGET',
      group: 'Target',
      ...string,
      describe: 'put the items into maps that exist: pinned:PATH, id:N, name:NAME, pid:PID, a folder of pins',
    },
    mode: {
      group: 'Target',
      choices: ['upsert', 'insert', 'update', 'sync', 'sum'],
      requiresArg: true,
      describe: 'with --into: which keys are set, deleted or added to; upsert by default',
    },
    backup: {
      value: 'DIR',
      group: 'Target',
      ...string,
      describe: 'with --into: first save those maps in this new dump folder',
    },
    'pin-back': { group: 'Target', ...boolean, describe: 'pin each map where it was pinned when it was captured' },
    swap: {
      group: 'Target',
      ...boolean,
      describe: 'if a pin exists, exchange the maps, and keep the old one until `swap commit` or `swap rollback`',
    },
    sweeps: {
      group: 'Target',
      ...number,
      describe: 'after pinning, read live maps again up to N times, so that changes follow; 4 by default with --swap',
    },
    'rename-taken': {
      group: 'Target',
      ...boolean,
      describe: 'if a pin of that name exists, add the old map id to the name',
    },
    hold: { group: 'Target', ...boolean, describe: 'hold the maps until interrupted' },
    'dry-run': { group: 'Output', ...boolean, describe: 'print what would be created, and create nothing' },
    verify: { group: 'Output', ...boolean, describe: 'read every item back and compare' },
    'max-entries': { group: 'Items', ...number, describe: 'create the maps with this max_entries' },
    percpu: {
      group: 'Items',
      choices: ['first', 'sum', 'spread'],
      requiresArg: true,
      describe: 'how to convert per-CPU values if the number of CPUs differs',
    },
    unresolved: {
      group: 'Items',
      choices: ['fail', 'skip'],
      default: 'fail',
      describe: 'what to do with items that refer to objects this host does not have',
    },
    'require-btf': { group: 'Items', ...boolean, describe: 'fail if the kernel does not accept the types of a map' },
    'skip-unsupported': { group: 'Selection', ...boolean, describe: 'leave out maps that this host does not support' },
    force: {
      group: 'Target',
      ...boolean,
      describe: 'create maps even if they seem not to fit into memory; let --mode sync delete more than it puts',
    },
    ...reshapeOptions,
    ...libdir,
    json,
  },
  tail: true,
} as const;

/** What yargs makes of the command line, and the words after `--`. */
export type ReplayArguments = Given<typeof takes> & {
  /** What follows `--`. */
  readonly command: readonly string[];
};

/** What every step takes. */
type Run = ReplayRun<ReplayArguments>;

export const command: Command = {
  name: 'replay',
  summary: 'create fresh maps from a dump',
  usage: 'replay SOURCE (--pin FOLDER | --pin-back | --into TARGET | --hold | -- COMMAND…)',
  ...takes,
  examples: [
    ['replay dump --pin /sys/fs/bpf/app', 'maps that outlive bpfimg'],
    ['replay dump --pin-back --swap', 'new maps in place of the old ones'],
    ['replay dump -- ./server', 'run a program that inherits the maps'],
    ['replay dump --into /sys/fs/bpf/app', 'items into maps that exist'],
    ['replay dump --dry-run', 'see what would be created'],
  ],
  run,
};

/** @param sys the kernel; tests have their own */
export async function run(args: ReplayArguments, io: Io, sys?: Sys): Promise<number> {
  const keepers = [args.pin !== undefined, args.pinBack, args.into !== undefined, args.hold, args.command.length > 0];
  const ways = keepers.filter(Boolean).length;
  if (ways > 1) throw new BpfimgError('usage', '--pin, --pin-back, --into, --hold and a command exclude each other');
  if (ways === 0 && !args.dryRun) {
    throw new BpfimgError(
      'usage',
      'what shall keep the maps? --pin DIR, --pin-back, --into TARGET, --hold, or -- COMMAND',
    );
  }
  checkInto(args);
  if (args.renameTaken === true && args.pin === undefined) {
    throw new BpfimgError('usage', '--rename-taken is for the pins of --pin');
  }
  if (args.swap && (pinPlace(args) === undefined || args.renameTaken)) {
    throw new BpfimgError('usage', '--swap goes with --pin or --pin-back, and not with --rename-taken');
  }
  const { maxEntries } = args;
  if (maxEntries !== undefined && (!Number.isInteger(maxEntries) || maxEntries < 1 || maxEntries > 0xffff_ffff)) {
    throw new BpfimgError('usage', '--max-entries takes a whole number from 1 to 4294967295');
  }
  const sources = new Sources(io, args, sys);
  const given = await sources.open(sourceOf(args.source, undefined));
  try {
    if (given.kind === 'dump') await given.check?.();
    const reshaping = await Reshaping.open(args, sources);
    try {
      const types = await sources.types();
      return await replaySource(given, reshaping, { args, io, types, sys: sys ?? (await openSys(types)) });
    } finally {
      reshaping?.close();
    }
  } finally {
    given.close();
  }
}

/** Options that only make sense with `--into`, or without it. */
function checkInto(args: ReplayArguments): void {
  const { into, mode, backup, map, maxEntries, requireBtf, like } = args;
  const wrong = (option: string, what: string) => new BpfimgError('usage', what, { subject: option });
  if (into === undefined) {
    if (mode !== undefined) throw wrong('--mode', 'it goes with --into');
    if (backup !== undefined) throw wrong('--backup', 'it goes with --into');
    const pair = like === undefined ? map.find((word) => word.includes('=')) : undefined;
    if (pair !== undefined) throw wrong(`--map ${pair}`, 'OLD=NEW goes with --into or --like');
    return;
  }
  if (args.onCollision === 'sum') throw wrong('--on-collision sum', 'it goes with fresh maps; with --into, only last');
  if (like !== undefined) throw wrong('--like', 'maps that exist are what they are: it goes without --into');
  if (maxEntries !== undefined) throw wrong('--max-entries', 'maps that exist keep their size');
  if (requireBtf) throw wrong('--require-btf', 'maps that exist keep their types');
}

async function replaySource(given: Source, reshaping: Reshaping | undefined, run: Run): Promise<number> {
  const { args, io, types } = run;
  if (args.where !== undefined && args.sweeps !== undefined) {
    throw new BpfimgError('usage', 'later readings have other items: choose one', { subject: '--where with --sweeps' });
  }
  const sweeps = args.where === undefined ? mostSweeps(args, given) : 0;
  const { where } = args;
  const dump = await chosen(await mapsOf(given), { where, type: [] }, types, (all) =>
    selectMaps(all, args.map.map(oldName)),
  );
  try {
    if (args.into !== undefined) {
      const { INTO_COLUMNS, replayIntoMaps } = await import('../into.js');
      const { into, mode = 'upsert', lossy, extendZero, onCollision } = args;
      const migration = { ...migrationOptions(args), lossy, extendZero, onCollision };
      const { lines, exit } = await replayIntoMaps(dump, { ...run, args: { ...args, into, mode, migration } });
      if (lines.length > 0) {
        const [rows, cells] = [lines.map(({ members }) => members), lines.map((one) => one.cells)];
        await show({ rows, columns: INTO_COLUMNS, cells }, run);
      }
      return exit;
    }
    const skipped: Skipped[] = [];
    const planned = await plansOf(dump, run);
    const plans = (await reshaping?.plans(dump, planned, run, skipped, args.dryRun)) ?? planned;
    for (const { subject, notes } of plans) for (const note of notes) io.say(`bpfimg: note: ${subject}: ${note}`);
    if (args.dryRun) return await dryRun(plans, new Foresight(dump, args.unresolved, run.sys), run);
    const swept = async (fresh: readonly FreshMap[]) => {
      if (sweeps === 0 || given.kind !== 'dump') return [];
      const chosen = new Set(planned.map(({ mapId }) => mapId));
      return sweepMaps(fresh, given, sweeps, async (now) => {
        const again = await plansOf(now, run, chosen);
        return (await reshaping?.plans(now, again, run, [], false)) ?? again;
      });
    };
    const fresh = await create(plans, skipped, swept, run);
    try {
      return await keep(fresh, skipped, run);
    } finally {
      for (const { map } of fresh) map.close();
    }
  } finally {
    dump.close();
  }
}

/** @param ids the maps of these ids; else those that the command line names */
function plansOf(dump: Dump, { args, sys, types }: Run, ids?: ReadonlySet<number>): Promise<PlannedMap[]> {
  const { maxEntries, percpu: perCpu } = args;
  const chosen = args.map.length > 0;
  const named = ids && dump.maps.filter(({ mapId }) => ids.has(mapId));
  return planMaps(dump, named ?? selectMaps(dump, args.map.map(oldName), true), types, {
    maxEntries,
    chosen,
    perCpu,
    cpus: sys.cpus,
    pageSize: sys.pageSize,
  });
}

async function create(
  plans: readonly PlannedMap[],
  skipped: Skipped[],
  swept: (fresh: readonly FreshMap[]) => Promise<SweptMap[]>,
  run: Run,
): Promise<FreshMap[]> {
  const { args, io, sys } = run;
  const progress = new Progress(io);
  try {
    return await replay(sys, plans, {
      force: args.force,
      verify: args.verify,
      unresolved: args.unresolved ?? 'fail',
      requireBtf: args.requireBtf === true,
      pin: args.pin,
      pinBack: args.pinBack,
      renameTaken: args.renameTaken === true,
      swap: args.swap,
      skip: args.skipUnsupported === true ? (plan, why) => skipped.push({ plan, why }) : undefined,
      progress: (doing) => progress.update(doing),
      done: async (fresh) => {
        progress.end();
        if (fresh.length === 0 && skipped.length > 0) {
          const [{ plan, why } = {}] = skipped;
          throw new BpfimgError('unsupported', `no map of it is supported here; ${plan?.subject}: ${why}`);
        }
        if (pinPlace(args) === undefined) return;
        const sweeps = await swept(fresh);
        await tellPins(fresh, skipped, sweeps, run);
      },
    });
  } finally {
    progress.end();
  }
}

// ---------------------------------------------------------------------------------------------------
// What keeps the maps

/** First file descriptor a command gets, as sd_listen_fds(3) has it. */
const LISTEN_FDS_START = 3;

/** An fd for whoever gets the map, with the access that the original gave. */
interface HandedMaps {
  readonly fd: number;
  readonly note?: string;
  close(): void;
}

/** The map's own fd, or another one where the original was only for reading or only for writing. */
function hand(sys: Sys, { map, plan }: FreshMap): HandedMaps {
  const own = { fd: map.fd, close: () => {} };
  if (plan.access === 'rw') return own;
  const mode = plan.access === 'ro' ? 'read-only' : 'write-only';
  try {
    const reopened = BpfMap.openById(sys, map.id, plan.access);
    // From here on, the map must not be used for anything else.
    map.close();
    return { fd: reopened.fd, close: () => reopened.close() };
  } catch (error) {
    return { ...own, note: `its fd was ${mode} and is for both now: ${errorText(error)}` };
  }
}

async function keep(fresh: readonly FreshMap[], skipped: readonly Skipped[], run: Run): Promise<number> {
  const { args, sys } = run;
  if (pinPlace(args) !== undefined) return EXIT.ok;
  const handed = fresh.map((one) => hand(sys, one));
  try {
    if (args.hold) {
      await tell(fresh, skipped, { handed }, run);
      if (fresh.length === 0) return EXIT.ok;
      // Until a signal ends the process, and with it the maps.
      return await new Promise<never>(() => setInterval(() => {}, 1 << 30));
    }
    const numbers = handed.map((one, i) => ({ ...one, fd: LISTEN_FDS_START + i }));
    await tell(fresh, skipped, { handed: numbers }, run);
    const { runInheriting } = await import('../inheriting.js');
    return await runInheriting(
      args.command,
      handed.map(({ fd }) => fd),
      pinNames(fresh.map(({ plan }) => plan)),
    );
  } finally {
    for (const one of handed) one.close();
  }
}

// ---------------------------------------------------------------------------------------------------
// Output

const COLUMNS = [
  { title: 'OLD ID', right: true },
  { title: 'ID', right: true },
  { title: 'FD', right: true },
  { title: 'NAME' },
  { title: 'TYPE' },
  { title: 'ITEMS', right: true },
  { title: 'PIN' },
  { title: 'REPORT' },
];

/** What became of each fresh map, in their order. */
interface Outcomes {
  readonly handed?: readonly HandedMaps[];
  readonly replaced?: readonly ReplacedRow[][];
  readonly swept?: readonly SweptMap[];
}

async function tell(
  fresh: readonly FreshMap[],
  skipped: readonly Skipped[],
  { handed, replaced, swept }: Outcomes,
  run: Run,
): Promise<void> {
  const { args } = run;
  const created = fresh.map(({ plan, map, pins, report }, i) => {
    const note = handed?.[i]?.note;
    return {
      ...planned(plan),
      new_id: map.id,
      fd: handed?.[i]?.fd ?? null,
      ...pinMembers(pins, args),
      ...(args.swap && { replaced: replaced?.[i] ?? [] }),
      ...(swept?.[i] && { sweeps: sweepRows(swept[i]) }),
      report: reportText(withAll(report, [note, swept?.[i]?.note])),
    };
  });
  const left = skipped.map(({ plan, why }) => {
    const report = reportText({ kind: 'not supported', why });
    return { ...planned(plan), new_id: null, fd: null, ...pinMembers([], args), report };
  });
  const rows = [...created, ...left];
  const cells = rows.map((row) => [
    String(row.map_id),
    String(row.new_id ?? ''),
    String(row.fd ?? ''),
    nameText(row.name),
    row.type,
    String(row.items),
    pinsText(row),
    row.report,
  ]);
  await show({ rows, columns: COLUMNS, cells }, run);
}

/** A report that also says this. */
function withAll(report: Report, notes: readonly (string | undefined)[]): Report {
  return notes.reduce((all: Report, note) => (note === undefined ? all : withMissing(all, note)), report);
}

/** Members of a row that the images know. */
function planned({ mapId, name, type, items }: PlannedMap) {
  return { map_id: mapId, name, type: type.name, items: items.count };
}

/** The pins of a map in a row; maps may have had several. */
function pinMembers(pins: readonly string[], { pinBack }: ReplayArguments) {
  return { pin: pins[0] ?? null, ...(pinBack && { pins }) };
}

function pinsText({ pin, pins }: ReturnType<typeof pinMembers>): string {
  return pins?.join(' ') ?? pin ?? '';
}

/** Reports pins. If nobody reads the report to its end, that is no reason to remove them. */
async function tellPins(
  fresh: readonly FreshMap[],
  skipped: readonly Skipped[],
  swept: readonly SweptMap[],
  run: Run,
): Promise<void> {
  const { io, sys } = run;
  const replaced = replacedRows(sys, fresh);
  for (const line of sweepLines(fresh, swept)) io.say(line);
  try {
    await tell(fresh, skipped, { replaced, swept }, run);
  } catch (error) {
    if (!(error instanceof ClosedPipe)) throw error;
  }
  for (const line of replacedLines(replaced.flat())) io.say(line);
}

const PLAN_COLUMNS = [
  { title: 'OLD ID', right: true },
  ...ATTRIBUTES,
  { title: 'ITEMS', right: true },
  { title: 'MEMORY', right: true },
  { title: 'REPORT' },
];

/** Says what would be created, and why it would not. */
async function dryRun(plans: readonly PlannedMap[], foresight: Foresight, run: Run): Promise<number> {
  const { args, io, sys } = run;
  const problems: string[] = [];
  const rows = [];
  const place = pinPlace(args);
  const pins = place === undefined ? undefined : planPins(place, plans, sys);
  for (const [i, plan] of plans.entries()) {
    const { spec, items, type, frozen } = plan;
    const skips = args.skipUnsupported === true && unsupported(plan).length > 0;
    const { problems: foreseen, report } = await foresight.of(plan);
    const lost = await lossesOf(plan, skips);
    const why = lost === undefined || args.lossy ? foreseen : [...foreseen, `${lost}; --lossy migrates it anyway`];
    for (const one of skips ? [] : why) problems.push(`${plan.subject}: ${one}`);
    rows.push({
      map_id: plan.mapId,
      name: plan.name,
      type: type.name,
      key_size: spec.keySize,
      value_size: spec.valueSize,
      max_entries: spec.maxEntries,
      map_flags: mapFlagNames(spec.flags),
      frozen,
      items: items.count,
      memory: plan.memory,
      ...pinMembers(skips ? [] : (pins?.paths[i] ?? []), args),
      report: reportText(
        why.length > 0
          ? { kind: 'not supported', why: why.join('; ') }
          : lost === undefined
            ? report
            : withMissing(report, lost),
      ),
      ...(plan.reshaped && { migration: stepRows(plan) }),
    });
  }
  const short = args.force ? undefined : memoryShort(plans);
  if (short !== undefined) problems.push(short);
  const lacking = missingCapabilities(plans);
  if (lacking !== undefined) problems.push(lacking);
  if (pins?.problem !== undefined) problems.push(pins.problem.message);
  const cells = rows.map((row) => [
    String(row.map_id),
    nameText(row.name),
    row.type,
    String(row.key_size),
    String(row.value_size),
    String(row.max_entries),
    flagWords(row.map_flags),
    row.frozen ? 'yes' : 'no',
    String(row.items),
    sizeText(row.memory),
    ...(pins === undefined ? [] : [pinsText(row)]),
    row.report,
  ]);
  const columns =
    pins === undefined ? PLAN_COLUMNS : [...PLAN_COLUMNS.slice(0, -1), { title: 'PIN' }, ...PLAN_COLUMNS.slice(-1)];
  await show({ rows, columns, cells, reshaped: plans }, run);
  for (const problem of problems) io.say(`bpfimg: ${problem}`);
  return problems.length > 0 ? EXIT.failed : EXIT.ok;
}

/** What will be lost of a map's items, found by reading them; undefined for nothing. */
async function lossesOf({ items, reshaped }: PlannedMap, skips: boolean): Promise<string | undefined> {
  if (reshaped === undefined || skips) return undefined;
  await (await import('../../replay/migrated.js')).countLosses(items);
  return reshaped.losses.text();
}

/** Bits of CapEff (capability.h). */
const CAPABILITY = { CAP_NET_ADMIN: 12, CAP_SYS_ADMIN: 21, CAP_BPF: 39 } as const;

/** The capabilities that this process lacks to create the maps. */
function missingCapabilities(plans: readonly PlannedMap[]): string | undefined {
  const status = fs.readFileSync('/proc/self/status', 'latin1');
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)/m.exec(status)?.[1] ?? '0'}`);
  const has = (name: keyof typeof CAPABILITY) => (effective & (1n << BigInt(CAPABILITY[name]))) !== 0n;
  if (has('CAP_SYS_ADMIN')) return undefined;
  const lacking: string[] = [];
  if (plans.length > 0 && !has('CAP_BPF')) lacking.push('CAP_BPF');
  if (plans.some(({ type }) => type.create?.network === true) && !has('CAP_NET_ADMIN')) {
    lacking.push('CAP_NET_ADMIN');
  }
  return lacking.length === 0 ? undefined : `creating these maps needs ${lacking.join(' and ')}`;
}

interface Shown {
  readonly rows: readonly object[];
  readonly columns: Parameters<typeof table>[0];
  readonly cells: readonly string[][];
  readonly reshaped?: readonly PlannedMap[];
}

/** Rows as a table or as JSON: on standard output, unless that is for a command. */
async function show({ rows, columns, cells, reshaped = [] }: Shown, { args, io }: Run): Promise<void> {
  const look = colours(args.command.length === 0 && coloured(io, args.color));
  const lines = args.json
    ? // In ASCII: what must not reach a terminal is escaped as JSON has it, and not once more as text.
      `{"maps":[${rows.map((row) => `\n  ${inAscii(JSON.stringify(row))}`).join(',')}]}`.split('\n')
    : rows.length === 0
      ? ['no BPF maps']
      : [...table(columns, cells, look), ...stepLines(reshaped, look)];
  if (args.command.length > 0 && !args.dryRun) {
    for (const line of lines) io.say(line);
    return;
  }
  await written(undefined, io, async (out) => {
    printLines(out, lines);
  });
}
