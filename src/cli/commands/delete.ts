import { eachOnce } from '../../dump/change.js';
import { EXIT } from '../../errors.js';
import type { Command, Given } from '../command.js';
import type { Io } from '../io.js';
import { changeItems, changeOptions, keyWords, noItem, openNamed, readKeys } from '../items.js';
import { reported } from '../start.js';

const takes = {
  words: keyWords,
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
    const found = await readKeys(items, words);
    let code: number = EXIT.ok;
    for (const { word, value } of found) {
      if (value === undefined) code = reported(noItem(items, word), io, args.debug ?? false);
    }
    const there = found.filter(({ value }) => value !== undefined);
    const edits = eachOnce(there.map(({ key, value }) => ({ key, before: value, value: undefined })));
    if (edits.length > 0) await changeItems(items, edits, args, io);
    return code;
  } finally {
    items.close();
  }
}
