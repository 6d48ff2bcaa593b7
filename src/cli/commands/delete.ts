import { EXIT } from '../../errors.js';
import type { Command, Given } from '../command.js';
import type { Io } from '../io.js';
import { changeItems, changeOptions, itemSource, noItem, openNamed } from '../items.js';
import { reported } from '../start.js';

const takes = {
  words: {
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
  },
  options: changeOptions,
} as const;

type DeleteArguments = Given<typeof takes>;

export const command: Command = {
  name: 'delete',
  summary: 'remove items by key',
  usage: 'delete SOURCE [MAP] KEY…',
  ...takes,
  examples: [
    ['delete dump odd_sizes 1b51bd', 'an item of a dump'],
    ['delete dump routes 10.0.0.0/8 --dry-run', 'only show what would be removed'],
    ['delete pinned:/sys/fs/bpf/app/flows dport=80', 'an item of a live map'],
  ],
  epilogue: 'Exit code 1: a key is not in the map; the others are removed.',
  run,
};

async function run(args: DeleteArguments, io: Io): Promise<number> {
  const { items, words } = await openNamed(args, io, { write: true, least: 1, what: 'a key' });
  try {
    const keys: Uint8Array[] = [];
    for (const word of words) keys.push(await items.words.key(word));
    const there = await items.get(keys);
    let code: number = EXIT.ok;
    for (const [i, word] of words.entries()) {
      if (there[i] === undefined) code = reported(noItem(items, word), io, args.debug ?? false);
    }
    const edits = keys.filter((_, i) => there[i] !== undefined).map((key) => ({ key, value: undefined }));
    if (edits.length > 0) await changeItems(items, edits, args, io);
    return code;
  } finally {
    items.close();
  }
}
