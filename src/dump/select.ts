/** Names of maps, and `--map ID_OR_NAME` within a dump. */
import { pathBytes } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import { NAME_MOST } from '../maptype.js';
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

/** The names that a map is pinned under, one character a byte. */
function pinNamesOf({ meta }: DumpMap): string[] {
  const pins = (meta?.pins ?? []) as readonly string[];
  return pins.map((pin) => pathBytes(pin.slice(pin.lastIndexOf('/') + 1)).toString('latin1'));
}

/** Whether two maps have the same name, the surer ways first. */
const SAME: readonly ((a: DumpMap, b: DumpMap) => boolean)[] = [
  (a, b) => pinNamesOf(a).some((pin) => pinNamesOf(b).includes(pin)),
  (a, b) => mapName(a) !== '' && wholeName(a) === wholeName(b),
  (a, b) => mapName(a) !== '' && mapName(a)?.slice(0, NAME_MOST) === mapName(b)?.slice(0, NAME_MOST),
];

/**
 * The map of another dump that has the name of `map`: by its pins, its whole name, or what the kernel has kept of it.
 * @throws BpfimgError `usage` if there are several
 */
export function counterpart(map: DumpMap, others: readonly DumpMap[]): DumpMap | undefined {
  for (const same of SAME) {
    const [found, another] = others.filter((other) => same(map, other));
    if (another !== undefined) {
      const what = `maps ${found?.mapId} and ${another.mapId} both have its name: --map ${map.mapId}=ID says which it is`;
      throw new BpfimgError('usage', what, { subject: `map ${map.mapId} (${wholeName(map)})` });
    }
    if (found !== undefined) return found;
  }
  return undefined;
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

/** Names that an error lists. */
const LISTED = 20;

/**
 * The maps that `selectors` name, in dump order; all of them if there are no selectors.
 * @param one each selector must match a single map
 * @throws BpfimgError `notFound`; `usage` for a name if maps have none, or if several maps share it
 */
export function selectMaps(dump: Dump, selectors: readonly string[], one = false): DumpMap[] {
  if (selectors.length === 0) return [...dump.maps];
  const chosen = new Set<DumpMap>();
  for (const selector of selectors) {
    const found = mapsNamed(dump.maps, selector);
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
    return new BpfimgError('usage', `${name} knows maps by id only, names stand in a dump folder`, {
      subject: `--map ${selector}`,
    });
  }
  const known = maps.map((map) => `${map.mapId}${mapName(map) ? ` (${wholeName(map)})` : ''}`);
  const list = known.length === 0 ? 'none' : known.slice(0, LISTED).join(', ') + (known.length > LISTED ? ', …' : '');
  return new BpfimgError('notFound', `no map ${selector} in it; its maps: ${list}`, { subject: name });
}
