/** `show --sort`: the order of items by their keys, or by anything that `--where` can express. */
import { viewOf } from '../bytes.js';
import { formsOf, foundItems, type RawItem, readItems, shownItem } from '../dump/items.js';
import type { Dump, DumpMap, MapData } from '../dump/model.js';
import type { TypeFinder } from '../dump/types.js';
import { BpfimgError } from '../errors.js';
import type { MapTypes } from '../maptype.js';
import type { Json } from '../value.js';
import { expression, order, type Worth } from './where.js';

/** Most items that are put in order. */
const MOST = 200_000;

/**
 * Positions of the first `count` items of an entry in order; memory grows with `count` only. Items without an order, such
 * as lists, keep that of the image.
 * @param finder finds the types, as they are in JSON: an address sorts as the number that it is
 * @throws BpfimgError `usage` if `count` is too large, or the expression does not fit
 */
export async function sortedItems(
  dump: Dump,
  { map, data }: { readonly map: DumpMap; readonly data: MapData },
  types: MapTypes,
  finder: TypeFinder | undefined,
  { by, count, top }: { readonly by: string; readonly count: number; readonly top: boolean },
): Promise<number[]> {
  if (count > MOST) {
    throw new BpfimgError('usage', `at most ${MOST} items are sorted: --limit N or --top N`, {
      subject: `--sort ${by}`,
    });
  }
  const found = foundItems(dump, map, types, data);
  if (found === undefined) return [];
  const { keySize } = found.shape;
  const forms = await formsOf(map, types, finder, found.shape);
  const type = map.files[0] && types.get(map.files[0].message.map_type);
  // The bytes of an index have another order than its number.
  const indexed = by === 'key' && type?.key === 'index' && keySize === 4 && forms?.key === undefined;
  const worth = by === 'key' ? undefined : expression('--sort', by);
  const worthOf = (item: RawItem): Worth => {
    if (indexed) return viewOf(item.key).getUint32(0, true);
    const shown = shownItem(item, forms);
    return worth === undefined ? shown.key : worth(shown, () => shown);
  };
  type Placed = { readonly position: number; readonly worth: Worth };
  const before = (a: Placed, b: Placed) =>
    (top ? compare(b.worth, a.worth) : compare(a.worth, b.worth)) || a.position - b.position;
  let first: Placed[] = [];
  let position = 0;
  for await (const item of readItems(found)) {
    first.push({ position: position++, worth: worthOf(item) });
    if (first.length === 2 * count + 1024) first = first.sort(before).slice(0, count);
  }
  return first
    .sort(before)
    .slice(0, count)
    .map((one) => one.position);
}

/** Compares keys or values: structures and lists part by part. */
function compare(a: Worth, b: Worth): number {
  const parts = (one: Worth): readonly Json[] | undefined =>
    Array.isArray(one) ? one : typeof one === 'object' && one !== null ? Object.values(one) : undefined;
  const [left, right] = [parts(a), parts(b)];
  if (left === undefined || right === undefined) return order(a, b) ?? 0;
  for (let i = 0; i < Math.min(left.length, right.length); i++) {
    const one = compare(left[i], right[i]);
    if (one !== 0) return one;
  }
  return left.length - right.length;
}
