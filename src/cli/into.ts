/** `replay --into`: which maps, what is saved first, and what is printed afterwards. */
import * as path from 'node:path';
import { capture } from '../capture/capture.js';
import { folderFiles } from '../dump/files.js';
import { type Dump, type DumpMap, openDump } from '../dump/model.js';
import { selectMaps } from '../dump/select.js';
import { BpfimgError, EXIT, SIGNAL_EXIT } from '../errors.js';
import { mapSubject } from '../kernel/flags.js';
import { type LiveMap, LiveMaps, openLive } from '../kernel/live.js';
import type { Sys } from '../kernel/sys.js';
import { type IntoMode, type MapTypes, reportText, withMissing } from '../maptype.js';
import { nameText } from '../render.js';
import { type IntoPair, type IntoRow, lacksItems, replayInto } from '../replay/into.js';
import type { CpuFold } from '../replay/items.js';
import { countLosses } from '../replay/migrated.js';
import { type PlannedMap, planMaps } from '../replay/plan.js';
import { type ReshapeOptions, reshape } from '../replay/reshape.js';
import { privateFolder } from '../source/private.js';
import { findTargets, type Matched, mapChoice, matchTargets } from '../source/targets.js';
import { Progress } from './progress.js';
import type { ReplayRun } from './reshaping.js';

/** What the command line says about it. */
export interface IntoArguments {
  readonly into: string;
  readonly mode: IntoMode;
  readonly map: readonly string[];
  readonly dryRun: boolean;
  readonly verify: boolean;
  readonly force: boolean;
  readonly skipUnsupported: boolean;
  readonly backup?: string | undefined;
  readonly percpu?: CpuFold | undefined;
  /** How keys and values of other types become those of the maps that exist. */
  readonly migration: Pick<ReshapeOptions, 'rename' | 'drop' | 'set' | 'lossy' | 'extendZero' | 'onCollision'>;
}

/** A row for people and programs. */
export interface IntoLine {
  readonly members: Readonly<Record<string, unknown>>;
  readonly cells: string[];
}

/** The table of what became of each map; the counts are of items. */
export const INTO_COLUMNS = [
  { title: 'OLD ID', right: true },
  { title: 'ID', right: true },
  { title: 'NAME' },
  { title: 'TYPE' },
  { title: 'ITEMS', right: true },
  { title: 'INSERTED', right: true },
  { title: 'UPDATED', right: true },
  { title: 'UNCHANGED', right: true },
  { title: 'DELETED', right: true },
  { title: 'DROPPED', right: true },
  { title: 'REPORT' },
];

/** What came of it, and the exit code. */
export interface IntoOutcome {
  readonly lines: readonly IntoLine[];
  readonly exit: number;
}

/** Puts the items of a source into maps that exist. */
export async function replayIntoMaps(dump: Dump, run: ReplayRun<IntoArguments>): Promise<IntoOutcome> {
  const { args, io, sys, types } = run;
  const skipped: IntoLine[] = [];
  const leaveOut = (map: { readonly mapId: number }, name: string, type: string, why: string) => {
    skipped.push(
      line({ map_id: map.mapId, name, type }, undefined, `not supported: ${why.replace(/^not supported: /, '')}`),
    );
  };
  const targets = findTargets(sys, args.into);
  const { plans: planned, matched } = await matchedPlans(dump, targets, run, (map, error) => {
    if (!args.skipUnsupported) throw error;
    leaveOut(map, '', '', error.text);
  });
  const model = await modelOf(sys, matched, types, args.into);
  const plans = await likeTargets(dump, planned, matched, model, run).catch((error: unknown) => {
    model.close();
    throw error;
  });
  for (const { subject, notes } of plans) for (const note of notes) io.say(`bpfimg: note: ${subject}: ${note}`);
  const pairs: IntoPair[] = [];
  const progress = new Progress(io);
  const stop = interrupted();
  try {
    for (const { map, live } of matched) {
      const plan = plans.find(({ mapId }) => mapId === map.mapId);
      if (plan !== undefined) pairs.push({ plan, map: openLive(sys, live, 'rw') });
    }
    const rows = await replayInto(sys, pairs, plans, {
      mode: args.mode,
      dry: args.dryRun,
      force: args.force,
      verify: args.verify,
      skip: args.skipUnsupported ? ({ plan }, why) => leaveOut(plan, plan.name, plan.type.name, why) : undefined,
      before: args.backup === undefined ? undefined : () => backup(matched, args.backup as string, run),
      signal: stop.signal,
      progress: (doing) => progress.update(doing),
    });
    if (rows.length === 0 && skipped.length > 0) {
      throw new BpfimgError('unsupported', `no map of it can be put into ${args.into}`, { subject: dump.name });
    }
    const lines = [...rows.map((row) => line(known(row), row)), ...skipped];
    return { lines, exit: rows.some(lacksItems) ? EXIT.failed : EXIT.ok };
  } catch (error) {
    const code = stop.code();
    if (code === undefined || !(error instanceof BpfimgError)) throw error;
    io.say(`bpfimg: ${error.message}`);
    return { lines: [], exit: code };
  } finally {
    stop.end();
    progress.end();
    model.close();
    for (const { map } of pairs) map.close();
  }
}

async function matchedPlans(
  dump: Dump,
  targets: readonly LiveMap[],
  { args, sys, types }: ReplayRun<IntoArguments>,
  missing: (map: DumpMap, error: BpfimgError) => void,
) {
  const { chosen, pairs } = mapChoice(args.map);
  const selected = selectMaps(dump, chosen, true);
  const plans = await planMaps(dump, selected, types, { perCpu: args.percpu, cpus: sys.cpus, pageSize: sys.pageSize });
  // Inner maps come along with those that hold them.
  const inner = new Set(chosen.length > 0 ? [] : plans.flatMap(({ needed }) => needed));
  const maps = selected.filter(({ mapId }) => !inner.has(mapId));
  const matched = matchTargets(dump, maps, targets, pairs, missing);
  return { plans, matched };
}

/** What the maps that exist are, as a dump without items. The caller closes it. */
async function modelOf(sys: Sys, matched: readonly Matched[], types: MapTypes, name: string): Promise<Dump> {
  const folder = privateFolder();
  try {
    const dump = path.join(folder.path, 'dump');
    const maps = matched.map(({ live }) => live).sort((a, b) => a.id - b.id);
    if (maps.length > 0) await capture(sys, maps, dump, types, { bare: true });
    // Without items, everything is in memory except types, which are read when they are needed.
    const model = await openDump(folderFiles(dump, name));
    const close = () => {
      model.close();
      folder.close();
    };
    return { ...model, close };
  } catch (error) {
    folder.close();
    throw error;
  }
}

/** Plans whose items are those of the maps that exist. Nothing is lost of them unless that is allowed. */
async function likeTargets(
  dump: Dump,
  plans: readonly PlannedMap[],
  matched: readonly Matched[],
  model: Dump,
  { args: { migration, percpu, into }, sys, types }: ReplayRun<IntoArguments>,
): Promise<PlannedMap[]> {
  const pairs = new Map(matched.map(({ map, live }) => [String(map.mapId), String(live.id)]));
  // Those without a target are left out, and have been reported.
  const skip = () => {};
  const options = { ...migration, types, pairs, onlyPairs: true, perCpu: percpu, cpus: sys.cpus, skip };
  const reshaped = await reshape(dump, plans, { dump: model, name: into }, options);
  for (const { reshaped: how, items, subject } of reshaped) {
    if (how?.collisions === 'error') {
      const what = 'two of its keys may become one; --on-collision last lets the last item win';
      throw new BpfimgError('conflict', what, { subject });
    }
    if (how?.mayLose === true && migration.lossy !== true) await countLosses(items);
  }
  return reshaped;
}

/** Saves the maps as they are before the first write. */
async function backup(
  matched: readonly Matched[],
  folder: string,
  { io, sys, types }: ReplayRun<IntoArguments>,
): Promise<void> {
  const maps = matched.map(({ live }) => live).sort((a, b) => a.id - b.id);
  const rows = await capture(sys, maps, folder, types, {
    find: (id) => LiveMaps.look(sys).maps.find((map) => map.id === id),
  });
  for (const { id, name, report } of rows) {
    if (report.kind !== 'full') io.say(`bpfimg: warning: ${folder}: ${mapSubject(id, name)}: ${reportText(report)}`);
  }
}

// ---------------------------------------------------------------------------------------------------
// Signals

/** Handles signals instead of the listeners that would end the process at once; a second signal ends it. */
function interrupted(): { readonly signal: AbortSignal; code(): number | undefined; end(): void } {
  const abort = new AbortController();
  let code: number | undefined;
  const names = Object.keys(SIGNAL_EXIT) as (keyof typeof SIGNAL_EXIT)[];
  const before = names.map((name) => [name, process.listeners(name)] as const);
  const heard = (name: NodeJS.Signals) => {
    code = SIGNAL_EXIT[name as keyof typeof SIGNAL_EXIT];
    abort.abort();
    end();
  };
  const end = () => {
    for (const [name, listeners] of before) {
      process.off(name, heard);
      for (const listener of listeners) if (!process.listeners(name).includes(listener)) process.on(name, listener);
    }
  };
  // There is always a listener for each signal: without one, Node would end at once.
  for (const [name, listeners] of before) {
    process.on(name, heard);
    for (const listener of listeners) process.off(name, listener);
  }
  return { signal: abort.signal, code: () => code, end };
}

// ---------------------------------------------------------------------------------------------------
// Output

function known({ plan }: IntoRow) {
  return { map_id: plan.mapId, name: plan.name, type: plan.type.name };
}

function line(
  map: { readonly map_id: number; readonly name: string; readonly type: string },
  row: IntoRow | undefined,
  why = '',
): IntoLine {
  const { inserted, updated, unchanged, deleted, dropped } = row?.counts ?? {
    inserted: 0,
    updated: 0,
    unchanged: 0,
    deleted: 0,
    dropped: new Map<string, number>(),
  };
  const lost = row?.plan.reshaped?.losses.text();
  const report = row === undefined ? why : reportText(lost === undefined ? row.report : withMissing(row.report, lost));
  const items = row?.plan.items.count ?? 0;
  const counts = { inserted, updated, unchanged, deleted };
  const left = [...dropped.values()].reduce((sum, count) => sum + count, 0);
  return {
    members: { ...map, into_id: row?.id ?? null, items, ...counts, dropped: Object.fromEntries(dropped), report },
    cells: [
      String(map.map_id),
      String(row?.id ?? ''),
      nameText(map.name),
      map.type,
      String(items),
      ...[inserted, updated, unchanged, deleted, left].map(String),
      report,
    ],
  };
}
