/** Command lines: yargs gets only the command that is named; if none is, as for help, it gets all of them. */
import yargs, { type Argv } from 'yargs';
import { BpfimgError } from '../errors.js';
import { version } from '../version.js';
import type { Command, Run } from './command.js';
import { COMMANDS, GROUPS } from './commands.js';
import type { Io } from './io.js';
import { COMMON } from './options.js';
import { DASH } from './source.js';

/**
 * Parses a command line.
 * @returns the command to run, or an exit code if help was printed and nothing is left to do
 * @throws BpfimgError `usage`
 */
export async function parseCommandLine(given: readonly string[], io: Io): Promise<Run | number> {
  const argv = given[0] === 'help' ? [...given.slice(1), '--help'] : given;
  if (argv[0] === '--version') {
    await printText(io, `${version}\n`);
    return 0;
  }
  const named = commandName(argv);
  const names = named === undefined ? Object.keys(COMMANDS) : [named];
  const commands: Command[] = [];
  for (const name of names) commands.push((await (COMMANDS[name] as (typeof COMMANDS)[string])()).command);
  const tail = commands.length === 1 && commands[0]?.tail === true;
  let chosen: Run | undefined;
  let help = '';
  // For yargs, words after `--` are never positionals.
  const end = tail ? -1 : argv.indexOf('--');
  const words = dashed(argv, tail).filter((_, i) => i !== end);
  const last = argv[end - 1];
  const options = new Map(commands.flatMap(({ options = {} }) => Object.entries(options)));
  const mayBeEmpty = (name: string) => options.get(name)?.mayBeEmpty === true;

  const add = (cli: Argv, command: Command) => {
    const { words = {}, summary } = command;
    const line = [command.name.split(' ').at(-1), ...Object.entries(words).map(wordText)].join(' ');
    return cli.command(
      line,
      summary,
      (y) => built(y, command),
      (args) => {
        const behind = (args as { '--'?: unknown })['--'];
        const rest = command.tail ? { command: Array.isArray(behind) ? behind.map(String) : [] } : {};
        chosen = (io) => command.run({ ...args, ...rest } as never, io);
      },
    );
  };
  let cli = yargs()
    .scriptName('bpfimg')
    .usage('$0 COMMAND\n\nInspect, edit and restore the BPF maps in CRIU dumps; capture and replay live maps.');
  for (const command of commands) if (!command.name.includes(' ')) cli = add(cli, command);
  for (const [group, summary] of Object.entries(GROUPS)) {
    const members = commands.filter(({ name }) => name.startsWith(`${group} `));
    if (members.length === 0) continue;
    cli = cli.command(group, summary, (y) => members.reduce(add, y).demandCommand(1, `${group}: no command given`));
  }
  if (named === undefined) cli = cli.completion('completion', 'print a completion script for bash or zsh');
  cli = cli
    .options(COMMON)
    .check((given: Record<string, unknown>, known: KnownOptions) => settled(given, known, last, mayBeEmpty))
    .demandCommand(1, 'no command given')
    .strict()
    .strictCommands()
    .version(false)
    .help(false)
    .exitProcess(false)
    .parserConfiguration({ 'strip-dashed': true, 'greedy-arrays': false, 'populate--': tail })
    .wrap(argv.includes('--help') || argv.includes('-h') ? Math.min(100, io.columns ?? 100) : 100)
    .fail((message: string | null, error?: Error) => {
      if (error && error.name !== 'YError') throw error;
      const text = (message ?? error?.message ?? '').replace(/\s*\n\s*/g, ' ');
      // yargs calls every word a command that nothing takes: only the first of them can be meant as one.
      const said =
        named === undefined
          ? text.replace(/^Unknown commands: ([^,]*),.*$/s, 'Unknown command: $1')
          : text.replace(/^Unknown commands?: /, 'Unknown argument: ');
      throw new BpfimgError('usage', `${said} (see bpfimg --help)`);
    });
  // Otherwise yargs would lay out the help for every command line, in case it is wanted later.
  if (named === undefined || argv.some((word) => /^-[^=]*h/.test(word))) cli = cli.help('help').alias('help', 'h');
  await cli.parseAsync(words, {}, (_error: unknown, _argv: unknown, output: string) => {
    help = output;
  });
  if (chosen) return chosen;
  if (help !== '') await printText(io, `${help}\n`);
  return 0;
}

/** Options that may come before a command. */
const BEFORE = /^--(no-)?(debug|color)(=|$)/;

/** The command that a command line names in the usual position; undefined for any other command line. */
function commandName(argv: readonly string[]): string | undefined {
  const first = argv.findIndex((word) => !BEFORE.test(word));
  const [one = '', two = ''] = argv.slice(Math.max(first, 0));
  return [one, `${one} ${two}`].find((name) => Object.hasOwn(COMMANDS, name));
}

/** A word as yargs declares it: `<image>`, `[image]`, `<images..>`. */
function wordText([name, { demandOption, array }]: [string, { demandOption?: unknown; array?: unknown }]): string {
  const text = array === true ? `${name}..` : name;
  return demandOption ? `<${text}>` : `[${text}]`;
}

function built(y: Argv, command: Command): Argv {
  const { words = {}, options = {}, conflicts, usage, examples = [], epilogue } = command;
  let cli = usage === undefined ? y : y.usage(`$0 ${usage}`);
  for (const [name, word] of Object.entries(words)) cli = cli.positional(name, word);
  cli = cli.options(options);
  if (conflicts) cli = cli.conflicts(...conflicts);
  for (const [line, meaning] of examples) cli = cli.example(`$0 ${line}`, meaning);
  return epilogue === undefined ? cli : cli.epilogue(epilogue);
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
  if (twice !== undefined) throw new BpfimgError('usage', `--${twice} is given more than once (see bpfimg --help)`);
  const hungry = names(narg).find((name) => {
    const others: unknown = Object.entries(alias ?? {}).find(([one]) => one === name)?.[1];
    return [name, ...(Array.isArray(others) ? others : [])].some((one) => [`--${one}`, `-${one}`].includes(last));
  });
  if (hungry !== undefined)
    throw new BpfimgError('usage', `Not enough arguments following: ${hungry} (see bpfimg --help)`);
  for (const [name, value] of Object.entries(given)) {
    const empty = value === '' || (Array.isArray(value) && value.includes(''));
    if (empty && !YARGS_OWN.has(name) && !mayBeEmpty(name)) {
      throw new BpfimgError('usage', 'given without text (see bpfimg --help)', { subject: name });
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
