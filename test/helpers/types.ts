/** The map types of bpfimg's own plugins. */
import { typeTable } from '../../plugins/index.js';
import type { CreateRule } from '../../src/kernel/rules.js';
import type { MapType } from '../../src/maptype.js';

export const types = typeTable();

/** What MAP_CREATE demands of each type. */
export const RULES: readonly (readonly [row: MapType, rule: CreateRule])[] = types
  .all()
  .flatMap((row) => (row.create === undefined ? [] : [[row, row.create] as const]));
