/** A dump with some of its items: those that a user chooses. */
import type { Input } from '../io/input.js';
import { Spool } from '../io/spool.js';
import { copyInput } from '../io/stream.js';
import type { ItemForms, ItemShape } from '../json/forms.js';
import type { MapTypes } from '../maptype.js';
import { type FoundItems, formsOf, foundItems, type RawItem, readItems } from './items.js';
import type { Dump, DumpMap, MapData } from './model.js';
import type { TypeFinder } from './types.js';

/**
 * `dump` without the items of `maps` that are not chosen. Memory does not grow with them. Owns `dump`, which closes
 * with the result.
 * @param finder finds the types of items
 * @param tests makes the test of a map's items, which are of that shape and look so
 * @throws whatever a test throws
 */
export async function chosenItems(
  dump: Dump,
  maps: readonly DumpMap[],
  types: MapTypes,
  finder: TypeFinder | undefined,
  tests: (map: DumpMap, shape: ItemShape, forms: ItemForms | undefined) => Promise<(item: RawItem) => boolean>,
): Promise<Dump> {
  const kept = new Spool();
  try {
    const all: DumpMap[] = [];
    for (const map of dump.maps) {
      const data: MapData[] = [];
      for (const one of map.data) {
        const found = maps.includes(map) ? foundItems(dump, map, types, one) : undefined;
        if (found === undefined) {
          data.push(await copied(dump.data as Input, one, kept));
          continue;
        }
        const forms = await formsOf(map, types, finder, found.shape);
        data.push(await chosenData(one, found, await tests(map, found.shape, forms), kept));
      }
      all.push({ ...map, data });
    }
    const input = dump.data && { ...kept.input(), name: dump.data.name };
    return {
      ...dump,
      maps: all,
      data: input,
      close() {
        kept.close();
        dump.close();
      },
    };
  } catch (error) {
    kept.close();
    throw error;
  }
}

async function copied(input: Input, data: MapData, kept: Spool): Promise<MapData> {
  const at = kept.length;
  await copyInput(input, data.entry.extraAt, data.entry.extraSize, kept);
  return { ...data, entry: { ...data.entry, extraAt: at } };
}

/** The items of an entry that are chosen. */
async function chosenData(
  data: MapData,
  found: FoundItems,
  test: (item: RawItem) => boolean,
  kept: Spool,
): Promise<MapData> {
  const [keys, values] = [new Spool(), new Spool()];
  try {
    let count = 0;
    for await (const item of readItems(found)) {
      if (!test(item)) continue;
      count++;
      keys.write(item.key);
      values.write(item.value);
      await values.turn();
    }
    const at = kept.length;
    const [keysBytes, valuesBytes] = [keys.length, values.length];
    await copyInput(keys.input(), 0, keysBytes, kept);
    await copyInput(values.input(), 0, valuesBytes, kept);
    const message = { ...data.entry.message, count, keys_bytes: keysBytes, values_bytes: valuesBytes };
    const entry = { ...data.entry, message, extraAt: at, extraSize: keysBytes + valuesBytes };
    return { entry, count, keysBytes, valuesBytes };
  } finally {
    keys.close();
    values.close();
  }
}
