/** `--where` and `--key`: which items of a dump a command takes. */
import type { CaptureOptions } from '../capture/capture.js';
import { type Item, type RawItem, shownItem } from '../dump/items.js';
import type { Dump } from '../dump/model.js';
import { mapName, mapsNamed } from '../dump/select.js';
import { BpfimgError } from '../errors.js';
import { formsThatFit, type ItemForms } from '../json/forms.js';
import { mapIdForm } from '../json/map-id.js';
import { mapSubject } from '../kernel/flags.js';
import type { MapTypes } from '../maptype.js';
import { several, string, type TypeArguments } from './options.js';
import { typeFinder } from './types.js';

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
  /** The maps it is about, as `--map`; all by default. */
  readonly map: readonly string[];
}

/** Whether the command line chooses items. */
export function chooses({ where, key = [] }: ChoosingArguments): boolean {
  return where !== undefined || key.length > 0;
}

/** The test of `--where` on items of a map; errors name the map if there are several. */
function tested(
  where: (item: Item) => boolean,
  subject: string | undefined,
): (item: RawItem, forms?: ItemForms) => boolean {
  return (item, forms) => {
    try {
      return where(shownItem(item, forms));
    } catch (error) {
      if (!(error instanceof BpfimgError) || subject === undefined) throw error;
      throw new BpfimgError(error.kind, `${error.text} in ${subject}; --map chooses maps`, { ...error });
    }
  };
}

/**
 * `dump` with the chosen items only; itself if none are chosen. Owns `dump`.
 * @throws BpfimgError for a wrong condition or key, or one that does not fit the items of a map
 */
export async function chosen(dump: Dump, args: ChoosingArguments, types: MapTypes): Promise<Dump> {
  if (!chooses(args)) return dump;
  try {
    const { where, key: keys = [], map: selectors } = args;
    const { chosenItems } = await import('../dump/choose.js');
    const condition = where === undefined ? undefined : (await import('./where.js')).whereTest(where);
    const { ItemWords } = await import('../dump/words.js');
    const maps = selectors.length === 0 ? dump.maps : selectors.flatMap((text) => mapsNamed(dump.maps, text));
    const finder = await typeFinder(dump, types, args);
    return await chosenItems(dump, maps, types, finder, async (map, shape, forms) => {
      const subject = maps.length > 1 ? mapSubject(map.mapId, mapName(map) ?? '') : undefined;
      const test = condition && tested(condition, subject);
      const type = map.files[0] && types.get(map.files[0].message.map_type);
      const bytes = new Set<string>();
      if (keys.length > 0) {
        const keyBytes = type && types.plugin(type.number).keyBytes;
        const words = new ItemWords(shape, forms, type, keyBytes && ((word) => keyBytes(word, shape.keySize)));
        for (const word of keys) bytes.add(hexOf(await words.key(word)));
      }
      return (item) => {
        if (keys.length > 0 && !bytes.has(hexOf(item.key))) return false;
        return test === undefined || test(item, forms);
      };
    });
  } catch (error) {
    dump.close();
    throw error;
  }
}

const hexOf = (bytes: Uint8Array) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex');

/** The choice of `--where` among items of live maps; undefined for all of them. */
export async function liveChoice(where: string | undefined): Promise<CaptureOptions['choose']> {
  if (where === undefined) return undefined;
  const { whereTest } = await import('./where.js');
  const { namedForms } = await import('../json/types.js');
  const condition = whereTest(where);
  return async ({ subject, type, shape, types }) => {
    const { keySize, valueSize, perCpu } = shape;
    const typed = types && namedForms({ btfId: 0, ...types });
    const forms = formsThatFit(typed ?? (type.inner && { value: mapIdForm }), keySize, perCpu ?? valueSize);
    const test = tested(condition, subject);
    return (item) => test(item, forms);
  };
}
