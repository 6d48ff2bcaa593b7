/** The map types of bpfimg's own plugins. */
import { plugins, strangers } from '../../plugins/index.js';
import type { CreateRule } from '../../src/kernel/rules.js';
import { type MapType, MapTypes } from '../../src/maptype.js';

export const types = new MapTypes(plugins, strangers);

/** What MAP_CREATE demands of each type. */
export const RULES: readonly (readonly [row: MapType, rule: CreateRule])[] = types
  .all()
  .flatMap((row) => (row.create === undefined ? [] : [[row, row.create] as const]));
