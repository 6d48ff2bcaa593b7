import { hex } from '../../bytes.js';
import { rawItem, shownItem } from '../../dump/items.js';
import type { ItemStore } from '../../edit/items.js';
import { EXIT } from '../../errors.js';
import { valuePaths } from '../../json/paths.js';
import { COMPACT, print } from '../../json/print.js';
import { hexGroups, nameText } from '../../render.js';
import type { Json, JsonObject } from '../../value.js';
import type { Command, Given } from '../command.js';
import type { Io } from '../io.js';
import { itemOptions, keyWords, noItem, openNamed, readKeys } from '../items.js';
import { boolean } from '../options.js';
import { reported } from '../start.js';
import { printLines, written } from '../written.js';

const takes = {
  words: keyWords,
  options: {
    raw: { ...boolean, group: 'Output', describe: 'print the bytes of values in hex, even if their type is known' },
    ...itemOptions,
  },
} as const;

type GetArguments = Given<typeof takes>;

export const command: Command = {
  name: 'get',
  summary: 'print the values of keys',
  usage: 'get SOURCE [MAP] KEY…',
  ...takes,
  examples: [
    ['get dump odd_sizes 1b51bd', 'one value of a dump'],
    ['get pinned:/sys/fs/bpf/app/flows saddr=10.0.0.1,dport=80', 'of a live map, by members of the key'],
    ['get dump flows 5 6 --json', 'two items as JSON, a line each'],
  ],
  epilogue:
    'A key is JSON, a number, text, MEMBER=VALUE,…, or hex as show prints it. Exit code 1: a key is not in the map.',
  run,
};

async function run(args: GetArguments, io: Io): Promise<number> {
  const { items, words } = await openNamed(args, io, { write: false, least: 1, what: 'a key' });
  try {
    const found = await readKeys(items, words);
    let code: number = EXIT.ok;
    await written(undefined, io, async (out) => {
      for (const { word, key, value } of found) {
        if (value === undefined) code = reported(noItem(items, word), io, args.debug ?? false);
        else if (args.json) out.text(`${print(itemJson(items, key, value, args.raw), COMPACT)}\n`);
        else {
          if (found.length > 1) printLines(out, [`${word}:`]);
          const lines = valueLines(items, key, value, args.raw);
          printLines(out, found.length > 1 ? lines.map((line) => `  ${line}`) : lines);
        }
      }
    });
    return code;
  } finally {
    items.close();
  }
}

function itemJson({ shape, forms }: ItemStore, key: Uint8Array, value: Uint8Array, raw: boolean): JsonObject {
  const { key: shown, value: one, values } = shownItem(rawItem(key, value, shape.perCpu), raw ? undefined : forms);
  return values === undefined ? { key: shown, value: one } : { key: shown, values: [...values] };
}

/** A value for people: bytes, or a line for each member, by the path that `set` takes. */
function valueLines(items: ItemStore, key: Uint8Array, value: Uint8Array, raw: boolean): string[] {
  const { values = [value] } = rawItem(key, value, items.shape.perCpu);
  if (raw) return values.map(hex);
  const perCpu = items.shape.perCpu !== undefined;
  const shown = itemJson(items, key, value, false);
  const all = (perCpu ? shown.values : [shown.value]) as Json[];
  const rows = all.flatMap((json, cpu) => {
    const before = perCpu ? `[${cpu}]` : '';
    const paths =
      items.forms?.value === undefined ? [['', hexGroups(values[cpu] as Uint8Array)] as const] : [...valuePaths(json)];
    return paths.map(
      ([path, one]) =>
        [before + (before === '' || path === '' || path.startsWith('[') ? '' : '.') + path, one] as const,
    );
  });
  const width = rows.reduce((most, [path]) => Math.max(most, path.length), 0);
  return rows.map(([path, one]) => {
    const text = typeof one === 'string' ? nameText(one) : print(one, { ...COMPACT, ascii: true });
    return width === 0 ? text : `${nameText(path).padEnd(width)}  ${text}`;
  });
}
