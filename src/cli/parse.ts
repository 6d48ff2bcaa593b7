/** Command lines: finds the command, and has yargs read the rest. */
import yargs from 'yargs';
import { BpfimgError } from '../errors.js';
import { version } from '../version.js';
import type { Command, Run } from './command.js';
import { COMMANDS } from './commands.js';
import type { Io } from './io.js';
import { COMMON, DASH } from './options.js';

/** What has been learnt about a command line, also if reading the rest failed. */
export interface Learnt {
  /** The command's name. */
  command?: string;
  /** What follows `--` is another command. */
  tail?: boolean;
}

/**
 * Parses a command line.
 * @param learnt is filled in
 * @throws BpfimgError `usage`
 */
export async function parseCommandLine(argv: readonly string[], learnt: Learnt): Promise<Run> {
  if (argv[0] === '__complete') {
    const { complete } = await import('./complete.js');
    return (io) => complete(argv.slice(1), io);
  }
  const end = argv.indexOf('--');
  const head = end < 0 ? argv : argv.slice(0, end);
  if (head.includes('--help') || head.includes('-h')) {
    const { helpOn } = await import('./commands/help.js');
    return (io) => helpOn(head, io);
  }
  if (head.includes('--version') || head.includes('-V')) return (io) => printText(io, `${version}\n`);
  const first = Math.max(
    head.findIndex((word) => !BEFORE.test(word)),
    0,
  );
  const name = nameAt(head, first);
  const place = name === undefined ? await (await import('./mistakes.js')).findCommand(head) : { name, at: first };
  if (place === undefined) return async (io) => (await import('./commands/help.js')).shortHelp(io);
  learnt.command = place.name;
  const { command } = await (COMMANDS[place.name] as (typeof COMMANDS)[string])();
  learnt.tail = command.tail === true;
  const behind = place.at + place.name.split(' ').length;
  return read([...argv.slice(0, place.at), ...argv.slice(behind)], command);
}

/** Options without a value that every command has. */
const BEFORE = /^--(no-)?(debug|color)(=|$)/;

/** The command that the words from `at` on name. */
export function nameAt(words: readonly string[], at: number): string | undefined {
  const [one = '', two = ''] = words.slice(at, at + 2);
  return [one, `${one} ${two}`].find((name) => Object.hasOwn(COMMANDS, name));
}

/** Has yargs read what follows the name of `command`. */
async function read(argv: readonly string[], command: Command): Promise<Run> {
  const { words = {}, options = {}, conflicts, tail = false } = command;
  // For yargs, words after `--` are never positionals.
  const end = tail ? -1 : argv.indexOf('--');
  const given = dashed(argv, tail).filter((_, i) => i !== end);
  const last = argv[end - 1];
  const mayBeEmpty = (name: string) => options[name]?.mayBeEmpty === true;
  let chosen: Run | undefined;
  let refused: string | undefined;
  const cli = yargs()
    .command(
      [RUN, ...Object.entries(words).map(wordText)].join(' '),
      false,
      (y) => {
        for (const [name, word] of Object.entries(words)) y.positional(name, word);
        y.options(options);
        return conflicts ? y.conflicts(...conflicts) : y;
      },
      (args) => {
        const behind = (args as { '--'?: unknown })['--'];
        const rest = tail ? { command: Array.isArray(behind) ? behind.map(String) : [] } : {};
        chosen = (io) => command.run({ ...args, ...rest } as never, io);
      },
    )
    .options(COMMON)
    .check((values: Record<string, unknown>, known: KnownOptions) => settled(values, known, last, mayBeEmpty))
    .strict()
    .strictCommands()
    .version(false)
    .help(false)
    .exitProcess(false)
    .parserConfiguration({ 'strip-dashed': true, 'greedy-arrays': false, 'populate--': tail })
    .fail((message: string | null, error?: Error) => {
      if (error instanceof Refused) refused = error.message;
      if (error && error.name !== 'YError') throw error;
      refused = message ?? error?.message ?? '';
      throw new Refused(refused);
    });
  try {
    await cli.parseAsync([RUN, ...given]);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
  }
  if (chosen !== undefined && refused === undefined) return chosen;
  const { mistake } = await import('./mistakes.js');
  throw mistake(refused ?? '', argv, command);
}

/** What yargs has refused. */
class Refused extends Error {}

/** The command as yargs knows it. */
const RUN = 'run';

/** A word as yargs declares it: `<image>`, `[image]`, `<images..>`. */
function wordText([name, { demandOption, array }]: [string, { demandOption?: unknown; array?: unknown }]): string {
  const text = array === true ? `${name}..` : name;
  return demandOption ? `<${text}>` : `[${text}]`;
}

/**
 * The words, with a lone `-` replaced by {@link DASH}. Words after `--` that look like options get a mark, too, because
 * yargs would take them for options; {@link undashed} removes it.
 * @param tail the words after `--` are another command
 */
function dashed(argv: readonly string[], tail: boolean): string[] {
  const found = argv.indexOf('--');
  const end = found < 0 ? argv.length : found + 1;
  const dash = (word: string) => (word === '-' ? DASH : word);
  const mark = (word: string) => (word.startsWith('-') && word !== '-' ? DASH + word : dash(word));
  const rest = argv.slice(end);
  return [...argv.slice(0, end).map(dash), ...(tail ? rest : rest.map(mark))];
}

/** A word as it was given, except for a lone `-`. */
function undashed(word: string): string {
  return word.length > DASH.length && word.startsWith(DASH) ? word.slice(DASH.length) : word;
}

/** What yargs knows about options. */
interface KnownOptions {
  readonly key?: unknown;
  readonly array?: unknown;
  readonly narg?: unknown;
  readonly alias?: unknown;
}

/** Members that yargs itself adds to the options. */
const YARGS_OWN: ReadonlySet<string> = new Set(['--', '_', '$0']);

/**
 * Removes the marks of {@link dashed} from words, and refuses what yargs accepts but we do not.
 * @param last the word before `--`
 */
function settled(
  given: Record<string, unknown>,
  { key, array, narg, alias }: KnownOptions,
  last = '',
  mayBeEmpty: (name: string) => boolean = () => false,
): true {
  const names = (object: unknown) => Object.keys(object ?? {});
  const lists: unknown[] = Array.isArray(array) ? array : [];
  const twice = names(key).find((name) => Array.isArray(given[name]) && !lists.includes(name));
  // Nobody can tell which was meant.
  if (twice !== undefined) throw new BpfimgError('usage', `--${twice} is given more than once`);
  const hungry = names(narg).find((name) => {
    const others: unknown = Object.entries(alias ?? {}).find(([one]) => one === name)?.[1];
    return [name, ...(Array.isArray(others) ? others : [])].some((one) => [`--${one}`, `-${one}`].includes(last));
  });
  if (hungry !== undefined) throw new Refused(hungry);
  for (const [name, value] of Object.entries(given)) {
    const empty = value === '' || (Array.isArray(value) && value.includes(''));
    if (empty && !YARGS_OWN.has(name) && !mayBeEmpty(name)) {
      throw new BpfimgError('usage', 'given without text', { subject: name });
    }
    if (typeof value === 'string') given[name] = undashed(value);
    else if (Array.isArray(value)) given[name] = value.map((one) => (typeof one === 'string' ? undashed(one) : one));
  }
  return true;
}

async function printText(io: Io, text: string): Promise<void> {
  const out = io.stdout();
  out.text(text);
  await out.commit();
}
