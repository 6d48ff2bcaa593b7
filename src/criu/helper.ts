/**
 * The work that the CRIU plugin leaves to another process, which lives no longer than CRIU's call: it captures all maps
 * of the frozen tasks, and creates all maps of a dump.
 *
 * Answers are lines: `map ID`, `skip ID WHY`, `map OLD NEW`, `warn TEXT`, `busy` as a sign of life, `end`.
 */
import * as fs from 'node:fs';
import { capture } from '../capture/capture.js';
import { captureReport, factsOf } from '../dump/facts.js';
import { type Dump, type DumpMap, openDump, PLUGIN_IMAGE } from '../dump/model.js';
import { BpfimgError } from '../errors.js';
import { KernelError } from '../kernel/error.js';
import { type LiveMap, LiveMaps, openLive } from '../kernel/live.js';
import { BpfMap } from '../kernel/map.js';
import { bootId, processes, tracerOf, treeOf } from '../kernel/proc.js';
import { ERRNO, type Sys } from '../kernel/sys.js';
import { type MapTypes, reportText } from '../maptype.js';
import { type PlannedMap, planMap, planMaps } from '../replay/plan.js';
import { replay } from '../replay/replay.js';
import { type CriuConfig, USUAL } from './config.js';

/** Prints one line of an answer. */
export type Answer = (line: string) => void;

/** Milliseconds between signs of life. */
const BUSY_MS = 1000;

function signOfLife(answer: Answer): () => void {
  let last = Date.now();
  return () => {
    const now = Date.now();
    if (now - last < BUSY_MS) return;
    last = now;
    answer('busy');
  };
}

/** What the CRIU plugin wants during a dump. */
export interface DumpRequest {
  /** Where the images go. */
  readonly folder: string;
  /** CRIU's pid. */
  readonly criu: number;
  /** The process that CRIU dumps, with its descendants; 0 if that is not known. */
  readonly root: number;
  /** Ids of maps to capture even if no task is seen to hold them. */
  readonly wanted: readonly number[];
  readonly config: CriuConfig;
  readonly answer: Answer;
}

/**
 * Captures every map that the tasks traced by CRIU hold, and those that are wanted in addition.
 * @throws BpfimgError, KernelError; then it leaves no files behind
 */
export async function dumpMaps(sys: Sys, types: MapTypes, request: DumpRequest): Promise<void> {
  const { criu, root } = request;
  // Without its root, the tree has to be looked for among all processes, which can be many.
  const seen = root > 0 ? treeOf(root, sys.proc) : processes(sys.proc);
  const tasks = seen.filter((pid) => tracerOf(pid, sys.proc) === criu);
  const [id] = await dumpHeld(sys, types, tasks, request);
  if (id !== undefined && !mayOpen(sys, id)) {
    request.answer('warn maps can be restored only with CAP_SYS_ADMIN, which CRIU does not have here');
  }
}

/** Whether this map may be opened by its id, as during a restore. (A dump reaches maps through their holders.) */
function mayOpen(sys: Sys, id: number): boolean {
  try {
    BpfMap.openById(sys, id).close();
    return true;
  } catch (error) {
    return !(error instanceof KernelError && error.errno === ERRNO.EPERM);
  }
}

/** Code that has run only a few times is slow, so a warm-up has as many maps as the dump, up to a limit, a few times. */
const [WARM_MAPS, WARM_ROUNDS] = [128, 6];

/**
 * Does the work of a dump with small maps of its own, so that the dump of `root` and its descendants is quick. If
 * anything fails, it stops: the dump is only slower.
 * @param root 0 if it is not known
 * @param folder is made, and removed again
 */
export async function warmUp(sys: Sys, types: MapTypes, root: number, folder: string): Promise<void> {
  const maps: BpfMap[] = [];
  try {
    const held = root > 0 ? LiveMaps.ofProcesses(sys, treeOf(root, sys.proc)).maps.length : 0;
    const like = ['hash', 'array'].map((name) => types.parse(name) as number);
    for (let i = 0; i < Math.max(like.length, Math.min(held, WARM_MAPS)); i++) {
      const type = like[i % like.length] as number;
      maps.push(BpfMap.create(sys, { type, keySize: 4, valueSize: 8, maxEntries: 4, name: 'bpfimg_warm' }));
    }
    for (let i = 0; i < WARM_ROUNDS; i++) {
      const request = { folder, criu: 0, root: 0, wanted: [], config: USUAL, answer: () => {} };
      await dumpHeld(sys, types, [process.pid], request);
      fs.rmSync(folder, { recursive: true, force: true });
    }
  } catch {
    fs.rmSync(folder, { recursive: true, force: true });
  } finally {
    for (const map of maps) map.close();
  }
}

/** @returns the ids of the maps */
async function dumpHeld(sys: Sys, types: MapTypes, tasks: readonly number[], request: DumpRequest): Promise<number[]> {
  const { folder, wanted, config, answer } = request;
  const live = LiveMaps.ofProcesses(sys, tasks);
  // Looking at the whole machine takes longer, and the tasks are frozen meanwhile.
  const find = (id: number) => live.find(id);
  // A file descriptor in a socket's queue is in no process's table.
  const elsewhere = wanted.flatMap((id) => (live.maps.some((map) => map.id === id) ? [] : (find(id) ?? [])));
  const rows = await capture(sys, [...live.maps, ...elsewhere], folder, types, {
    images: PLUGIN_IMAGE,
    // fdinfo images say who holds what.
    holders: () => false,
    drain: config.drain ? 'restore' : 'no',
    find,
    progress: signOfLife(answer),
  });
  for (const { id, name, type, items, report } of rows) {
    // What a restore would lose is said now, while the process still runs.
    const files =
      types.get(type).files === true && items > 0 ? `the sockets in it are not restored (${items} of its items)` : '';
    const lacks = [report.kind === 'full' ? '' : reportText(report), files].filter((text) => text !== '').join('; ');
    const fails = report.kind === 'not supported' || (lacks !== '' && config.partial === 'fail');
    answer(fails ? `skip ${id} ${lacks}` : `map ${id}`);
    if (!fails && lacks !== '') answer(`warn BPF map ${id} (${name}): ${lacks}`);
  }
  return rows.map(({ id }) => id);
}

/**
 * Creates the maps of the dump in `folder`.
 * @returns the maps, open: whoever is to keep them opens them by id before the caller closes them
 */
export async function restoreMaps(
  sys: Sys,
  folder: string,
  types: MapTypes,
  config: CriuConfig,
  answer: Answer,
): Promise<BpfMap[]> {
  const open: BpfMap[] = [];
  const dump = await openDump(folder);
  try {
    checkWhole(dump, answer);
    const reused = config.reuse ? reuse(sys, dump, types) : new Map<number, BpfMap>();
    for (const [id, map] of reused) {
      open.push(map);
      answer(`info BPF map ${id} still exists and is reused`);
      answer(`map ${id} ${id}`);
    }
    const wanted = dump.maps.filter(({ mapId, files }) => files.length > 0 && !reused.has(mapId));
    const plans = await planMaps(dump, wanted, types, { cpus: sys.cpus, perCpu: config.percpu });
    const maps = new Map(dump.maps.map((map) => [map.mapId, map]));
    for (const { mapId, subject } of plans) {
      const lost = lostOf(dump, maps.get(mapId));
      if (lost !== undefined) throw new BpfimgError('badImage', lost, { subject });
    }
    const fresh = await replay(sys, plans, {
      // Sockets do not exist before their process does: if they counted, every restore would fail.
      unresolved: config.unresolved === 'fail' ? 'skip-files' : 'skip',
      progress: signOfLife(answer),
    });
    for (const { plan, map, report } of fresh) {
      open.push(map);
      if (report.kind !== 'full') answer(`warn BPF ${plan.subject}: ${reportText(report)}`);
      answer(`map ${plan.mapId} ${map.id}`);
    }
    return open;
  } catch (error) {
    for (const map of open) map.close();
    throw error;
  } finally {
    dump.close();
  }
}

/** Says what the dump lacks that it had when it was made, and refuses it if a process would get fewer files. */
function checkWhole(dump: Dump, answer: Answer): void {
  const lost = dump.lost.plugin.find(({ code }) => code === 'plugin-lost' || code === 'plugin-map');
  if (lost !== undefined) throw new BpfimgError('badImage', lost.message, { subject: lost.image });
  const bare = dump.maps.filter(({ files, meta }) => files.length > 0 && meta === undefined);
  const { meta } = dump.names;
  const what = dump.present.has(meta) ? `has nothing about ${bare.length} of the maps` : 'is missing';
  if (bare.length > 0) answer(`warn ${meta} ${what}: what only it says of them is not restored (types, inner maps, …)`);
}

/**
 * What was captured of a map but is missing in the images now, as far as they show it: a process that continues must
 * not find its map emptied.
 */
function lostOf(dump: Dump, map: DumpMap | undefined): string | undefined {
  if (map === undefined) return undefined;
  const without = captureReport(map.meta).kind === 'metadata only';
  if (map.data.length === 0 && !without) return `its items are lost: ${dump.names.data} has none of them`;
  const { types } = factsOf(map.meta);
  if (types !== undefined && !dump.btf.has(types.btf)) return `its types are lost: ${dump.names.btf} has none of them`;
  return undefined;
}

/** Live maps that are the dump's own: same boot, id and attributes. */
function reuse(sys: Sys, dump: Dump, types: MapTypes): Map<number, BpfMap> {
  const boot = bootId(sys.proc);
  const live = LiveMaps.look(sys);
  const same = new Map<number, BpfMap>();
  for (const map of dump.maps) {
    const found = live.maps.find(({ id }) => id === map.mapId);
    if (found === undefined || map.files.length === 0 || map.meta?.boot_id !== boot) continue;
    if (isLike(found, planMap(dump, map, types, { cpus: sys.cpus }))) same.set(map.mapId, openLive(sys, found));
  }
  return same;
}

function isLike(live: LiveMap, { spec, frozen }: PlannedMap): boolean {
  return (
    live.name === spec.name &&
    live.type === spec.type &&
    live.keySize === spec.keySize &&
    live.valueSize === spec.valueSize &&
    live.maxEntries === spec.maxEntries &&
    live.flags === spec.flags &&
    (live.extra ?? 0n) === spec.extra &&
    live.frozen === frozen
  );
}
