/** `--map ID_OR_NAME` within a dump. */
import { BpfimgError } from '../errors.js';
import type { Dump, DumpMap } from './model.js';

/** The map's name, from its first file; undefined for data without a file. */
export function mapName(map: DumpMap): string | undefined {
  return map.files[0]?.message.map_name;
}

/**
 * The maps that `selectors` name, in dump order; all of them when there are no selectors.
 * @throws BpfimgError `notFound`, or `usage` for a name that several maps have
 */
export function selectMaps(dump: Dump, selectors: readonly string[]): DumpMap[] {
  if (selectors.length === 0) return [...dump.maps];
  const chosen = new Set<DumpMap>();
  for (const selector of selectors) {
    const byId = /^\d{1,10}$/.test(selector) ? dump.maps.filter((map) => map.mapId === Number(selector)) : [];
    const found = byId.length > 0 ? byId : dump.maps.filter((map) => mapName(map) === selector);
    if (found.length === 0) {
      const known = dump.maps.map((map) => `${map.mapId}${mapName(map) ? ` (${mapName(map)})` : ''}`);
      const list = known.length === 0 ? 'none' : known.slice(0, 20).join(', ') + (known.length > 20 ? ', …' : '');
      throw new BpfimgError('notFound', `${dump.name}: no map ${selector} in it; its maps: ${list}`);
    }
    if (found.length > 1) {
      const ids = found.map((map) => map.mapId).join(', ');
      throw new BpfimgError('usage', `--map ${selector}: ${found.length} maps have that name, choose by id: ${ids}`);
    }
    chosen.add(found[0] as DumpMap);
  }
  return dump.maps.filter((map) => chosen.has(map));
}
