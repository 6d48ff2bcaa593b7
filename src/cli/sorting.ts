/** `show --sort`: the order of items by their keys, or by anything that `--where` can express. */
import { viewOf } from '../bytes.js';
import { formsOf, foundItems, itemForms, type RawItem, readItems, shownItem } from '../dump/items.js';
import type { Dump, DumpMap, MapData } from '../dump/model.js';
import { BpfimgError } from '../errors.js';
import { formsThatFit, type ItemForms } from '../json/forms.js';
import type { MapTypes } from '../maptype.js';
import type { Json } from '../value.js';
import { expression, order, type Worth } from './where.js';

/** Most items that are put in order. */
const MOST = 200_000;

/** What is sorted. */
interface Sorted {
  readonly map: DumpMap;
  readonly data: MapData;
  /** How its items look, if their types are known. */
  readonly forms: ItemForms | undefined;
}

/**
 * Positions of the first `count` items of an entry in order; memory grows with `count` only. Items without an order, such
 * as lists, keep that of the image.
 * @throws BpfimgError `usage` if `count` is too large, or the expression does not fit
 */
export async function sortedItems(
  dump: Dump,
  { map, data, forms: typed }: Sorted,
  types: MapTypes,
  { by, count, top }: { readonly by: string; readonly count: number; readonly top: boolean },
): Promise<number[]> {
  if (count > MOST) {
    throw new BpfimgError('usage', `at most ${MOST} items are sorted: --limit N or --top N`, {
      subject: `--sort ${by}`,
    });
  }
  const found = foundItems(dump, map, types, data);
  if (found === undefined) return [];
  const { keySize, valueSize, perCpu } = found.shape;
  const forms =
    typed === undefined
      ? await formsOf(map, types, undefined, found.shape)
      : formsThatFit(itemForms(map, types, typed), keySize, perCpu ?? valueSize);
  const type = map.files[0] && types.get(map.files[0].message.map_type);
  // The bytes of an index have another order than its number.
  const indexed = by === 'key' && type?.key === 'index' && keySize === 4 && forms?.key === undefined;
  const worth = by === 'key' ? undefined : expression('--sort', by);
  const worthOf = (item: RawItem): Worth => {
    if (indexed) return viewOf(item.key).getUint32(0, true);
    const shown = shownItem(item, forms);
    return worth === undefined ? shown.key : worth(shown);
  };
  const first: { readonly position: number; readonly worth: Worth }[] = [];
  let position = 0;
  for await (const item of readItems(found)) {
    const one = { position: position++, worth: worthOf(item) };
    const before = (a: Worth, b: Worth) => (top ? compare(b, a) : compare(a, b)) < 0;
    const last = first.at(-1);
    if (first.length === count && last !== undefined && !before(one.worth, last.worth)) continue;
    let [low, high] = [0, first.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (before(one.worth, first[middle]?.worth)) high = middle;
      else low = middle + 1;
    }
    first.splice(low, 0, one);
    if (first.length > count) first.pop();
  }
  return first.map((one) => one.position);
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
