/** Names of maps, and `--map ID_OR_NAME` within a dump. */
import { pathBytes } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import { idAndName, listed, mapSubject, NAME_MOST } from '../maptype.js';
import type { Dump, DumpMap } from './model.js';

/** The map's name, from its first file; undefined for data without a file. */
export function mapName(map: DumpMap): string | undefined {
  return map.files[0]?.message.map_name;
}

/** The map's whole name, one character per byte: if the kernel truncated it, from a pin whose name continues it. */
export function wholeName(map: DumpMap): string | undefined {
  const name = mapName(map);
  if (name?.length !== NAME_MOST) return name;
  // Names of pins contain no dot.
  const start = name.replaceAll('.', '_');
  return pinNamesOf(map).find((pin) => pin.startsWith(start)) ?? name;
}

/** How messages name the map. */
export function subjectOf(map: DumpMap): string {
  return mapSubject(map.mapId, mapName(map) ?? '');
}

/** The names that a map is pinned under, one character a byte. */
function pinNamesOf({ meta }: DumpMap): string[] {
  return pinNames((meta?.pins ?? []) as readonly string[]);
}

/** The last part of each path, which is as `pathText` writes it; one character a byte. */
export function pinNames(pins: readonly string[]): string[] {
  return pins.map((pin) => pathBytes(pin.slice(pin.lastIndexOf('/') + 1)).toString('latin1'));
}

/** The names of a map, one character a byte. */
export interface MapNames {
  /** Of its pins, without their folders. */
  readonly pins: readonly string[];
  /** Its own: the whole one if it is known, else what the kernel keeps. Empty or undefined if it has none. */
  readonly name: string | undefined;
  /** What a replay pins it as. */
  readonly pin?: string;
}

/** The names of a map in a dump. */
export function namesOf(map: DumpMap): MapNames {
  const name = wholeName(map) ?? '';
  return { pins: pinNamesOf(map), name, pin: name === '' ? `map_${map.mapId}` : name.replaceAll('.', '_') };
}

/** What the kernel keeps of a name, in which a pin has no dots. */
const cutName = ({ name }: MapNames) => name?.slice(0, NAME_MOST).replaceAll('.', '_');

/** Whether two maps have the same name, the surer ways first. */
const SAME: readonly ((a: MapNames, b: MapNames) => boolean)[] = [
  (a, b) => a.pins.some((pin) => b.pins.includes(pin)),
  (a, b) => (Boolean(a.name) && a.name === b.name) || (a.pin !== undefined && b.pins.includes(a.pin)),
  (a, b) => Boolean(a.name) && cutName(a) === cutName(b),
];

/** Those of `others` that have the name of a map: by its pins, its whole name, or what the kernel keeps of that. */
function sameNamed<T>(map: DumpMap, others: readonly T[], names: (other: T) => MapNames): T[] {
  const own = namesOf(map);
  for (const same of SAME) {
    const found = others.filter((other) => same(own, names(other)));
    if (found.length > 0) return found;
  }
  return [];
}

/** How the counterpart of a map is found. */
export interface CounterpartRule<T> {
  /** The one that a user has named for it. */
  readonly byHand: T | undefined;
  /** Whether no other map looks for one. */
  readonly alone: boolean;
  readonly names: (other: T) => MapNames;
  /** What to say if several have its name. */
  readonly several: (found: readonly T[]) => string;
}

/**
 * The map of another source that goes with `map`: the one that a user has named, the only one if both sides have one
 * map, else the one that has its name.
 * @throws BpfimgError `usage` if several have
 */
export function counterpart<T>(map: DumpMap, others: readonly T[], rule: CounterpartRule<T>): T | undefined {
  if (rule.byHand !== undefined) return rule.byHand;
  if (rule.alone && others.length === 1) return others[0];
  const found = sameNamed(map, others, rule.names);
  if (found.length < 2) return found[0];
  throw new BpfimgError('usage', rule.several(found), { subject: mapSubject(map.mapId, wholeName(map) ?? '') });
}

/** Which maps a selector means, better matches first: a whole name wins over a truncated one. */
const WAYS: readonly ((map: DumpMap, selector: string) => boolean)[] = [
  ({ mapId }, selector) => /^\d{1,10}$/.test(selector) && mapId === Number(selector),
  (map, selector) => wholeName(map) === selector,
  (map, selector) => mapName(map) === selector,
];

/** All maps that `--map` selects: by id, else by name, which several may share. */
export function mapsNamed(maps: readonly DumpMap[], selector: string): DumpMap[] {
  for (const is of WAYS) {
    const found = maps.filter((map) => is(map, selector));
    if (found.length > 0) return found;
  }
  return [];
}

/** The maps that each of `selectors` means; a selector may be several, with commas between them. */
export function mapsSelected(
  maps: readonly DumpMap[],
  selectors: readonly string[],
): { readonly selector: string; readonly found: readonly DumpMap[] }[] {
  const single = selectors.flatMap((text) => listed(text, (one) => mapsNamed(maps, one).length > 0));
  return single.map((selector) => ({ selector, found: mapsNamed(maps, selector) }));
}

/** Names that an error lists. */
const LISTED = 20;

/**
 * The maps that `selectors` name, in dump order; all of them if there are no selectors. A selector may be several, with
 * commas between them.
 * @param one each selector must match a single map
 * @throws BpfimgError `notFound`; `usage` for a name if maps have none, or if several maps share it
 */
export function selectMaps(dump: Dump, selectors: readonly string[], one = false): DumpMap[] {
  if (selectors.length === 0) return [...dump.maps];
  const chosen = new Set<DumpMap>();
  for (const { selector, found } of mapsSelected(dump.maps, selectors)) {
    if (found.length === 0) throw notFound(dump, selector);
    if (one && found.length > 1) {
      const ids = found.map((map) => map.mapId).join(', ');
      throw new BpfimgError('usage', `${found.length} maps have that name, choose by id: ${ids}`, {
        subject: `--map ${selector}`,
      });
    }
    for (const map of found) chosen.add(map);
  }
  return dump.maps.filter((map) => chosen.has(map));
}

function notFound({ name, maps }: Dump, selector: string): BpfimgError {
  const nameless = maps.length > 0 && maps.every((map) => mapName(map) === undefined);
  if (nameless && !/^\d+$/.test(selector)) {
    return new BpfimgError('usage', `${name} knows maps only by id; the dump has their names`, {
      subject: `--map ${selector}`,
    });
  }
  const known = maps.map((map) => idAndName(map.mapId, wholeName(map) ?? ''));
  const list = known.length === 0 ? 'none' : known.slice(0, LISTED).join(', ') + (known.length > LISTED ? ', …' : '');
  return new BpfimgError('notFound', `no map ${selector} in it; its maps: ${list}`, { subject: name });
}
