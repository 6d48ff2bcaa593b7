/** `--where` and `--key`: which items of a dump a command takes. */

import { hex } from '../bytes.js';
import type { CaptureOptions } from '../capture/capture.js';
import { formsOf, type RawItem, shownItem } from '../dump/items.js';
import type { Dump, DumpMap } from '../dump/model.js';
import { subjectOf } from '../dump/select.js';
import { BpfimgError } from '../errors.js';
import { formsThatFit, type ItemForms, type ItemShape } from '../json/forms.js';
import { mapIdForm } from '../json/map-id.js';
import type { MapTypes } from '../maptype.js';
import { several, string, type TypeArguments } from './options.js';
import { typeFinder } from './types.js';
import type { ItemTest } from './where.js';

/** Options that choose items. */
export const choosing = {
  where: {
    ...string,
    value: 'CONDITION',
    group: 'Selection',
    describe: 'only items for which this is true, such as value.bytes > 1e6 && key.proto == 6',
  },
} as const;

/** The item with a key, for commands that show items. */
export const byKey = {
  key: {
    ...several,
    value: 'KEY',
    group: 'Selection',
    defaultDescription: 'all',
    describe: 'only the item with this key, as `get` takes it',
  },
} as const;

/** What a command line says of {@link choosing} and what goes with it. */
export interface ChoosingArguments extends TypeArguments {
  readonly where?: string | undefined;
  readonly key?: readonly string[];
}

/** Whether the command line chooses items. */
export function chooses({ where, key = [] }: ChoosingArguments): boolean {
  return where !== undefined || key.length > 0;
}

/** The forms in which a condition sees items: plain ones as in JSON, and those that people read. */
export interface SeenForms {
  readonly plain: ItemForms | undefined;
  readonly readable: ItemForms | undefined;
}

/** Tests items of a map by a condition; errors name the map if there are several. */
function tested(where: ItemTest, forms: SeenForms, subject: string | undefined): (item: RawItem) => boolean {
  return (item) => {
    try {
      return where(shownItem(item, forms.plain), () => shownItem(item, forms.readable));
    } catch (error) {
      if (!(error instanceof BpfimgError) || subject === undefined) throw error;
      throw new BpfimgError(error.kind, `${error.text} in ${subject}; --map chooses maps`, { ...error });
    }
  };
}

/**
 * `dump` with the chosen items only; itself if none are chosen. Owns `dump`.
 * @param select the maps whose items are chosen; all items of the others stay
 * @throws BpfimgError for a wrong condition or key, or one that does not fit the items of a map
 */
export async function chosen(
  dump: Dump,
  args: ChoosingArguments,
  types: MapTypes,
  select: (dump: Dump) => readonly DumpMap[],
): Promise<Dump> {
  if (!chooses(args)) return dump;
  try {
    const { btf, type, as } = args;
    // Numbers compare as numbers, whatever `--as` makes of them for people.
    const plain = await typeFinder(dump, types, { btf, type });
    const readable = await typeFinder(dump, types, { btf, type, as, plain: false });
    const some = await chosenAs(dump, args, types, select(dump), async (map, shape) => ({
      plain: await formsOf(map, types, plain, shape),
      readable: await formsOf(map, types, readable, shape),
    }));
    const close = () => {
      some.close();
      dump.close();
    };
    return { ...some, close };
  } catch (error) {
    dump.close();
    throw error;
  }
}

/**
 * As {@link chosen}, with forms from elsewhere, and without owning `dump`, which must stay open.
 * @param formsFor the forms of a map's items of that shape
 */
export async function chosenAs(
  dump: Dump,
  { where, key: keys = [] }: Pick<ChoosingArguments, 'where' | 'key'>,
  types: MapTypes,
  maps: readonly DumpMap[],
  formsFor: (map: DumpMap, shape: ItemShape) => Promise<SeenForms>,
): Promise<Dump> {
  const { chosenItems } = await import('../dump/choose.js');
  const condition = where === undefined ? undefined : (await import('./where.js')).whereTest(where);
  const { ItemWords } = await import('../dump/words.js');
  return chosenItems(dump, maps, types, async (map, shape) => {
    const forms = await formsFor(map, shape);
    const test = condition && tested(condition, forms, maps.length > 1 ? subjectOf(map) : undefined);
    const file = map.files[0]?.message;
    const words = new ItemWords(shape, forms.plain, file && types.get(file.map_type), types);
    const wanted = new Set<string>();
    for (const word of keys) wanted.add(hex(await words.key(word)));
    return (item) => (wanted.size === 0 || wanted.has(hex(item.key))) && (test === undefined || test(item));
  });
}

/** The choice of `--where` among items of live maps; undefined for all of them. */
export async function liveChoice(where: string | undefined): Promise<CaptureOptions['choose']> {
  if (where === undefined) return undefined;
  const { whereTest } = await import('./where.js');
  const { namedForms } = await import('../json/types.js');
  const condition = whereTest(where);
  return async ({ subject, type, shape, types }) => {
    const { keySize, valueSize, perCpu } = shape;
    const inner = type.inner && { value: mapIdForm };
    const forms = (readable: boolean) => {
      const typed = types && namedForms({ btfId: 0, ...types }, readable);
      return formsThatFit(typed ?? inner, keySize, perCpu ?? valueSize);
    };
    return tested(condition, { plain: forms(false), readable: forms(true) }, subject);
  };
}
