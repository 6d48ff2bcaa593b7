/** What `get`, `set` and `delete` share: the map and its items, and how a change is shown. */

import { ItemDifferences } from '../diff/differences.js';
import { diffItems } from '../diff/items.js';
import type { ItemEdit } from '../dump/change.js';
import type { Dump, DumpMap } from '../dump/model.js';
import { mapsNamed, selectMaps } from '../dump/select.js';
import type { ItemStore } from '../edit/items.js';
import { BpfimgError } from '../errors.js';
import { bufferInput } from '../io/input.js';
import { colours } from '../render.js';
import { JsonReport, TextReport } from './diff-report.js';
import { coloured, type Io } from './io.js';
import { boolean, DASH, json, libdir, meaning, types } from './options.js';
import { Sources } from './source.js';
import { expectUsed, sayProblems, typeFinder } from './types.js';
import { written } from './written.js';

/** The word that names a source. */
export const itemSource = {
  type: 'string',
  value: 'SOURCE',
  demandOption: true,
  describe: 'a dump folder, archive, image or live maps (pinned:PATH, id:N, name:NAME, pid:PID)',
} as const;

/** The words of a command that takes keys. */
export const keyWords = {
  source: itemSource,
  words: {
    type: 'string',
    value: 'KEY',
    completes: 'MAP',
    array: true,
    default: [] as string[],
    defaultDescription: 'none',
    describe: 'MAP KEY…: the map, which may be left out if there is one, and the keys',
  },
} as const;

/** Options of commands that work on items by key. */
export const itemOptions = { ...types, ...meaning, ...libdir, json } as const;

/** Options of commands that change items. */
export const changeOptions = {
  'dry-run': { ...boolean, group: 'Output', describe: 'print the change and make none' },
  ...itemOptions,
} as const;

/** What these commands have in common. */
export interface ItemArguments {
  readonly source: string;
  readonly words: readonly string[];
  readonly libdir: readonly string[];
  readonly btf?: string | undefined;
  readonly type: readonly string[];
  readonly as: readonly string[];
  readonly plain: boolean;
  readonly json: boolean;
  readonly color?: boolean | undefined;
}

/** A map's items, and the words that are not its name. */
export interface NamedItems {
  readonly items: ItemStore;
  readonly words: readonly string[];
}

/**
 * Opens the map that the first word names. If the source has a single map, that word may be left out.
 * @param least how many words must follow
 */
export async function openNamed(
  args: ItemArguments,
  io: Io,
  { write, least, what }: { readonly write: boolean; readonly least: number; readonly what: string },
): Promise<NamedItems> {
  const sources = new Sources(io, args);
  let { words } = args;
  const pick = (dump: Dump, outer: readonly DumpMap[]): DumpMap => {
    const [first = '', ...rest] = args.words;
    const [only, another] = outer;
    const named = args.words.length > least && mapsNamed(dump.maps, first).length > 0;
    if (only !== undefined && another === undefined && !named) return only;
    if (rest.length < least) {
      const maps = another === undefined ? '' : ': it has several maps, so name one first';
      throw new BpfimgError('usage', `${what} is missing${maps}`, { subject: dump.name });
    }
    words = rest;
    const [map] = selectMaps(dump, [first], true);
    return map as DumpMap;
  };
  const text = args.source === DASH ? undefined : args.source;
  const items = await sources.items(text, {
    write,
    pick,
    finder: (dump, table) => typeFinder(dump, table, args),
    found: (finder, map) => {
      expectUsed(finder.unusedAs);
      sayProblems(finder, [map], io);
    },
  });
  return { items, words };
}

/** The keys that words mean, and their values. */
export async function readKeys(
  items: ItemStore,
  words: readonly string[],
): Promise<{ readonly word: string; readonly key: Uint8Array; readonly value: Uint8Array | undefined }[]> {
  const keys: Uint8Array[] = [];
  for (const word of words) keys.push(await items.words.key(word));
  const values = await items.get(keys);
  return keys.map((key, i) => ({ word: words[i] as string, key, value: values[i] }));
}

/** Makes the changes, or prints them as `diff` does. */
export async function changeItems(
  items: ItemStore,
  edits: readonly ItemEdit[],
  args: ItemArguments & { readonly dryRun: boolean },
  io: Io,
): Promise<void> {
  if (args.dryRun) await items.check(edits);
  else await items.change(edits);
  if (args.dryRun || args.json) await printChange(items, edits, args, io);
}

async function printChange(
  { map, shape, forms, types }: ItemStore,
  edits: readonly ItemEdit[],
  args: ItemArguments,
  io: Io,
): Promise<void> {
  const side = (which: 'before' | 'value') => {
    const there = edits.flatMap(({ key, [which]: value }) => (value === undefined ? [] : [{ key, value }]));
    const keys = there.map(({ key }) => key);
    const input = bufferInput(Buffer.concat([...keys, ...there.map(({ value }) => value)]));
    return { input, keysAt: 0, valuesAt: keys.length * shape.keySize, count: keys.length, ...shape };
  };
  const [a, b] = [side('before'), side('value')];
  const found = new ItemDifferences(a.count, b.count, 0);
  try {
    await diffItems(a, b, {}, found);
    await written(undefined, io, async (out) => {
      const labels = [args.source, args.source] as const;
      const report = args.json
        ? new JsonReport(out, types, labels)
        : new TextReport(out, colours(coloured(io, args.color)), types, labels, 0);
      const printed = { map, forms };
      report.begin();
      if (found.count > 0)
        await report.both(printed, printed, { attributes: [], items: { a, b, found }, unknown: undefined });
      report.end(found.count > 0);
    });
  } finally {
    found.close();
  }
}

/** The error for a key that is not in the map. */
export function noItem(items: ItemStore, word: string): BpfimgError {
  return new BpfimgError('notFound', `no item with key ${word}`, { subject: items.subject });
}
