/** What differs between two dumps, for programs: map by map, and item by item. */
import { type Item, itemForms, rawItem, shownItem } from '../dump/items.js';
import type { Dump, DumpMap } from '../dump/model.js';
import type { TypeFinder } from '../dump/types.js';
import { BpfimgError } from '../errors.js';
import { Cursor } from '../io/input.js';
import { formsThatFit, type ItemForms } from '../json/forms.js';
import type { MapTypes } from '../maptype.js';
import { type AttributeChange, isDifferent, MapComparison, type MapDifference, type SideItems } from './diff.js';
import { pairMaps } from './pairs.js';

/** What is compared, and how items look. */
export interface DumpDiffOptions {
  /** Compare who holds a map, and how, as well. */
  readonly holders?: boolean;
  /** Differing items of each kind to list per map; all by default. All are counted. */
  readonly limit?: number;
  /** Finders of the types of A and of B. */
  readonly finders?: { readonly a?: TypeFinder | undefined; readonly b?: TypeFinder | undefined };
}

/** An item that differs, as {@link Item}: in both, in A alone, or in B alone. */
export type ItemChange =
  | { readonly kind: 'changed'; readonly a: Item; readonly b: Item }
  | { readonly kind: 'removed'; readonly a: Item; readonly b?: undefined }
  | { readonly kind: 'added'; readonly a?: undefined; readonly b: Item };

/** A map that differs, or is in only one of the dumps. */
export interface DiffedMap {
  readonly a: DumpMap | undefined;
  readonly b: DumpMap | undefined;
  readonly attributes: readonly AttributeChange[];
  /** How many items differ; all 0 if they were not compared. */
  readonly counts: { readonly [kind in ItemChange['kind']]: number };
  /** Why it is not known whether its items differ. */
  readonly unknown: string | undefined;
  /** The items that differ. Read them before the next map is asked for. */
  changes(): AsyncGenerator<ItemChange, void, undefined>;
}

/**
 * The maps that differ between `a` and `b`: those of A in its order, then those that are only in B. Memory does not
 * grow with the maps. Both dumps must stay open meanwhile.
 * @throws BpfimgError if an image ends early
 */
export async function* diffDumps(
  a: Dump,
  b: Dump,
  types: MapTypes,
  { holders = false, limit = 0, finders = {} }: DumpDiffOptions = {},
): AsyncGenerator<DiffedMap, void, undefined> {
  const pairs = pairMaps(a, b);
  const sides = [
    { dump: a, types: finders.a },
    { dump: b, types: finders.b },
  ] as const;
  const comparison = new MapComparison(...sides, types, { holders, limit, once: false }, pairs);
  for (const pair of pairs) {
    if (pair.a === undefined || pair.b === undefined) {
      yield { ...pair, attributes: [], counts: NONE, unknown: undefined, async *changes() {} };
      continue;
    }
    const difference = await comparison.compare(pair.a, pair.b);
    const { attributes, unknown, items } = difference;
    try {
      if (!isDifferent(difference) && unknown === undefined) continue;
      const { changed, removed, added } = items?.found ?? {};
      const counts = { changed: changed?.count ?? 0, removed: removed?.count ?? 0, added: added?.count ?? 0 };
      const forms = [
        await mapForms(pair.a, types, finders.a, items?.a),
        await mapForms(pair.b, types, finders.b, items?.b),
      ] as const;
      yield { ...pair, attributes, counts, unknown, changes: () => changesOf(items, ...forms) };
    } finally {
      items?.found.close();
    }
  }
}

const NONE = { changed: 0, removed: 0, added: 0 };

async function mapForms(
  map: DumpMap,
  types: MapTypes,
  finder: TypeFinder | undefined,
  items: SideItems | undefined,
): Promise<ItemForms | undefined> {
  if (items === undefined) return undefined;
  const typed = await finder?.forms([map]);
  return formsThatFit(itemForms(map, types, typed?.of(map)), items.keySize, items.perCpu ?? items.valueSize);
}

async function* changesOf(
  items: MapDifference['items'],
  aForms: ItemForms | undefined,
  bForms: ItemForms | undefined,
): AsyncGenerator<ItemChange, void, undefined> {
  if (items === undefined) return;
  const { a, b, found } = items;
  for await (const [x, y] of found.changed.list()) {
    yield { kind: 'changed', a: shownItem(await itemAt(a, x), aForms), b: shownItem(await itemAt(b, y), bForms) };
  }
  for await (const [x] of found.removed.list()) yield { kind: 'removed', a: shownItem(await itemAt(a, x), aForms) };
  for await (const [y] of found.added.list()) yield { kind: 'added', b: shownItem(await itemAt(b, y), bForms) };
}

/** The item at a position of a data entry. */
async function itemAt({ input, keysAt, valuesAt, keySize, valueSize, perCpu }: SideItems, position: number) {
  const bytes = async (start: number, size: number) => {
    const at = start + position * size;
    const taken = await new Cursor(input, at, at + size, size).take(size);
    if (taken.length === size) return taken;
    throw new BpfimgError('badImage', 'it became shorter while it was being read', { subject: input.name });
  };
  return rawItem(await bytes(keysAt, keySize), await bytes(valuesAt, valueSize), perCpu);
}
