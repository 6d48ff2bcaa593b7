/** `help`: what the tables of the commands say. */
import { EXIT } from '../../errors.js';
import type { Command, Given } from '../command.js';
import { COMMANDS, GROUPS } from '../commands.js';
import { commandHelp, overview } from '../help.js';
import type { Io } from '../io.js';
import { unknownCommand } from '../mistakes.js';
import { nameAt } from '../parse.js';
import { written } from '../written.js';

const takes = {
  words: {
    command: { type: 'string', array: true, default: [] as string[], describe: 'the command to explain' },
  },
} as const;

export const command: Command = {
  name: 'help',
  summary: 'explain a command, or list all commands',
  usage: 'help [COMMAND]',
  ...takes,
  examples: [
    ['help', 'what there is'],
    ['help replay', 'one command, with examples; the same as bpfimg replay --help'],
    ['help criu check', 'a command of two words'],
  ],
  run,
};

async function run(args: Given<typeof takes>, io: Io): Promise<void> {
  const text = await helpText(args.command.join(' '), io);
  await written(undefined, io, async (out) => {
    out.text(text);
  });
}

/** `--help` and `-h`: help on the command that is named in `words`. */
export async function helpOn(words: readonly string[], io: Io): Promise<void> {
  const plain = words.filter((word) => word !== '--help' && word !== '-h');
  const at = plain.findIndex((_, i) => nameAt(plain, i) !== undefined);
  const first = plain.find((word) => !word.startsWith('-')) ?? '';
  await run({ command: [nameAt(plain, at) ?? first] }, io);
}

/** For a command line without a command: not on standard output, because nobody asked for it. */
export async function shortHelp(io: Io): Promise<number> {
  for (const line of (await helpText('', io)).trimEnd().split('\n')) io.say(line);
  return EXIT.usage;
}

/** Help about the command or the group `name`; about all of bpfimg if that is empty. */
export async function helpText(name: string, io: Pick<Io, 'columns'>): Promise<string> {
  const width = Math.min(io.columns ?? 80, 100);
  const load = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (load !== undefined) return commandHelp((await load()).command, width);
  if (name !== '' && !Object.hasOwn(GROUPS, name)) throw unknownCommand(name);
  const names = Object.keys(COMMANDS).filter((one) => name === '' || one.startsWith(`${name} `));
  const commands: Command[] = [];
  for (const one of names) commands.push((await (COMMANDS[one] as (typeof COMMANDS)[string])()).command);
  return overview(commands, name === '' ? undefined : name, width);
}
