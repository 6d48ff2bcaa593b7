import type { Command, Given } from '../command.js';
import type { Io } from '../io.js';
import { changeItems, changeOptions, itemSource, openNamed } from '../items.js';

const takes = {
  words: {
    source: itemSource,
    words: {
      type: 'string',
      value: 'VALUE',
      completes: 'MAP',
      array: true,
      default: [] as string[],
      defaultDescription: 'none',
      describe: 'MAP KEY VALUE, or MAP KEY MEMBER=VALUE…; MAP may be left out if there is one map',
    },
  },
  options: changeOptions,
} as const;

type SetArguments = Given<typeof takes>;

export const command: Command = {
  name: 'set',
  summary: 'set the value of a key, or members of it',
  usage: 'set SOURCE [MAP] KEY VALUE|MEMBER=VALUE…',
  ...takes,
  examples: [
    ['set dump odd_sizes 1b51bd ffffffffff', 'a value in a dump'],
    ['set dump flows dport=80 packets=0 state=TCP_LISTEN', 'members of a value whose type is known'],
    ["set pinned:/sys/fs/bpf/app/hits 5 '[1].hits=0' --dry-run", 'one CPU of a live per-CPU map; only show the change'],
  ],
  epilogue:
    'A value is JSON, a number, text or hex as show prints it. In a per-CPU map, a value or member without [CPU] is for every CPU.',
  run,
};

async function run(args: SetArguments, io: Io): Promise<void> {
  const { items, words } = await openNamed(args, io, { write: true, least: 2, what: 'a key or its value' });
  try {
    const [first = '', ...rest] = words;
    const key = await items.words.key(first);
    const [before] = await items.get([key]);
    await changeItems(items, [{ key, before, value: await items.words.value(rest, before) }], args, io);
  } finally {
    items.close();
  }
}
