/** A dump with some of its items: those that a user chooses. */
import type { Input } from '../io/input.js';
import { Spool } from '../io/spool.js';
import { copyInput } from '../io/stream.js';
import type { ItemShape } from '../json/forms.js';
import type { MapTypes } from '../maptype.js';
import { type FoundItems, foundItems, type RawItem, readItems } from './items.js';
import type { Dump, DumpMap, MapData } from './model.js';

/**
 * `dump` without the items of `maps` that are not chosen. Memory does not grow with them. It reads `dump`, which must
 * stay open, and does not close it.
 * @param tests makes the test of a map's items, which have that shape
 * @throws whatever a test throws
 */
export async function chosenItems(
  dump: Dump,
  maps: readonly DumpMap[],
  types: MapTypes,
  tests: (map: DumpMap, shape: ItemShape) => Promise<(item: RawItem) => boolean>,
): Promise<Dump> {
  const kept = new Spool();
  const before = dump.data?.size ?? 0;
  try {
    const all: DumpMap[] = [];
    for (const map of dump.maps) {
      const data: MapData[] = [];
      for (const one of map.data) {
        const found = maps.includes(map) ? foundItems(dump, map, types, one) : undefined;
        if (found === undefined) data.push(one);
        else data.push(await chosenData(one, found, await tests(map, found.shape), kept, before));
      }
      all.push({ ...map, data });
    }
    return {
      ...dump,
      maps: all,
      data: dump.data && joined(dump.data, kept.input()),
      close: () => kept.close(),
    };
  } catch (error) {
    kept.close();
    throw error;
  }
}

/** One input behind another, which has a size. It owns neither. */
function joined(first: Input, second: Input): Input {
  const before = first.size ?? 0;
  return {
    name: first.name,
    size: before + (second.size ?? 0),
    path: undefined,
    read(into, position) {
      if (position >= before) return second.read(into, position - before);
      return first.read(into.subarray(0, Math.min(into.length, before - position)), position);
    },
    close() {},
  };
}

/**
 * The items of an entry that are chosen, which go into `kept`.
 * @param before bytes of the input that comes before `kept`
 */
async function chosenData(
  data: MapData,
  found: FoundItems,
  test: (item: RawItem) => boolean,
  kept: Spool,
  before: number,
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
    const at = before + kept.length;
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
