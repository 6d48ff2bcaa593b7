/** Columns of tables of maps. */
import type { Column } from '../render.js';

/** What a map is, after its id. */
export const ATTRIBUTES: readonly Column[] = [
  { title: 'NAME' },
  { title: 'TYPE' },
  { title: 'KEY', right: true },
  { title: 'VALUE', right: true },
  { title: 'MAX', right: true },
  { title: 'FLAGS' },
  { title: 'FROZEN' },
];

/** Where a map is pinned, and who holds it. */
export const OWNERS: readonly Column[] = [{ title: 'PINS' }, { title: 'HOLDERS (pid(command):fd)' }];

/** How full a map is. */
export const PERCENT: Column = { title: '%', right: true };
