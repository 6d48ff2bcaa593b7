/** The maps that a replay writes into: which there are, and which map of the source goes into which. */
import * as fs from 'node:fs';
import type { Dump, DumpMap } from '../dump/model.js';
import { counterpart, mapsNamed, pinNames, wholeName } from '../dump/select.js';
import { BpfimgError } from '../errors.js';
import { mapSubject } from '../kernel/flags.js';
import { type LiveMap, LiveMaps, type Selectors } from '../kernel/live.js';
import type { Sys } from '../kernel/sys.js';
import { liveSelectors } from './selectors.js';

/** The live maps that `--into` names: a live source but `all:`, or the path of a pin or of a folder of pins. */
export function findTargets(sys: Sys, text: string): LiveMap[] {
  const selectors = targetSelectors(text);
  const found = LiveMaps.look(sys, selectors).select(selectors);
  if (found.length === 0) throw new BpfimgError('notFound', 'there are no maps', { subject: `--into ${text}` });
  return found;
}

function targetSelectors(text: string): Selectors {
  const selectors = liveSelectors(text);
  if (selectors !== undefined && !text.startsWith('all:')) return selectors;
  if (selectors === undefined && fs.existsSync(text)) return { ids: [], names: [], pins: [text], pids: [] };
  throw new BpfimgError('usage', 'expected pinned:PATH, id:N, name:NAME, pid:PID or a folder of pins', {
    subject: `--into ${text}`,
  });
}

/** Which map of the source goes into which live one. */
export interface Matched {
  readonly map: DumpMap;
  readonly live: LiveMap;
}

/** What `--map` says: the maps that are chosen, and which of them are paired by hand. */
export interface MapChoice {
  readonly chosen: readonly string[];
  readonly pairs: ReadonlyMap<string, string>;
}

/** `--map M` chooses, `--map OLD=NEW` also pairs. */
export function mapChoice(words: readonly string[]): MapChoice {
  const pairs = new Map<string, string>();
  const chosen = words.map((word) => {
    const at = word.indexOf('=');
    if (at < 0) return word;
    pairs.set(word.slice(0, at), word.slice(at + 1));
    return word.slice(0, at);
  });
  return { chosen, pairs };
}

/**
 * Finds the live map for each map of the source.
 * @param missing called with a map that has none, and what to say of it
 */
export function matchTargets(
  dump: Dump,
  maps: readonly DumpMap[],
  targets: readonly LiveMap[],
  pairs: MapChoice['pairs'],
  missing: (map: DumpMap, error: BpfimgError) => void,
): Matched[] {
  const byHand = new Map<DumpMap, LiveMap>();
  for (const [old, fresh] of pairs) {
    for (const map of mapsNamed(dump.maps, old)) byHand.set(map, targetNamed(targets, old, fresh));
  }
  const taken = new Map<LiveMap, DumpMap>();
  const matched: Matched[] = [];
  for (const map of maps) {
    const subject = mapSubject(map.mapId, wholeName(map) ?? '');
    const found = counterpart(map, targets, {
      byHand: byHand.get(map),
      alone: maps.length === 1,
      names: ({ pins, name }) => ({ pins: pinNames(pins), name }),
      several: (all) => `several maps have its name: ${listed(all)}; --map OLD=NEW says which`,
    });
    if (found === undefined) {
      const why = `--into has no map of that name, but ${listed(targets)}; --map OLD=NEW names one`;
      missing(map, new BpfimgError('notFound', why, { subject }));
      continue;
    }
    const other = taken.get(found);
    if (other !== undefined) {
      const both = mapSubject(found.id, found.name ?? '');
      throw new BpfimgError('conflict', `it would go into ${both}, like map ${other.mapId}; --map OLD=NEW says which`, {
        subject,
      });
    }
    taken.set(found, map);
    matched.push({ map, live: found });
  }
  return matched;
}

function targetNamed(targets: readonly LiveMap[], old: string, fresh: string): LiveMap {
  const subject = `--map ${old}=${fresh}`;
  const byId = /^\d{1,10}$/.test(fresh) ? targets.filter(({ id }) => id === Number(fresh)) : [];
  const found =
    byId.length > 0 ? byId : targets.filter(({ name, pins }) => name === fresh || pinNames(pins).includes(fresh));
  if (found.length > 1) throw new BpfimgError('usage', `several maps: ${listed(found)}; name one by id`, { subject });
  if (found[0] !== undefined) return found[0];
  throw new BpfimgError('notFound', `no map ${fresh} among those of --into: ${listed(targets)}`, { subject });
}

/** Maps that an error lists. */
const LISTED = 10;

function listed(targets: readonly LiveMap[]): string {
  const names = targets.map(({ id, name = '', pins }) => {
    const label = name !== '' ? name : (pinNames(pins)[0] ?? '');
    return label === '' ? String(id) : `${id} (${label})`;
  });
  return names.slice(0, LISTED).join(', ') + (names.length > LISTED ? ', …' : '');
}
