/** The commands as one table for yargs; the code of each is loaded when it runs. */
import yargs from 'yargs';
import { BpfimgError } from '../errors.js';
import type { Io } from './io.js';
import {
  boolean,
  COMMON,
  DECODE,
  ENCODE,
  INFO,
  json,
  LIST,
  libdir,
  map,
  SHOW,
  selectors,
  string,
  types,
  VERIFY,
} from './options.js';
import { type Command, dashed, isReplay, undashed } from './quick.js';
import { version } from './version.js';

/**
 * Parses a command line.
 * @returns the command to run, or an exit code when help was printed and nothing is left to do
 * @throws BpfimgError `usage`
 */
export async function parse(given: readonly string[], io: Io): Promise<Command | number> {
  const argv = given[0] === 'help' ? [...given.slice(1), '--help'] : given;
  if (argv[0] === '--version') {
    await print(io, `${version}\n`);
    return 0;
  }
  let chosen: Command | undefined;
  let help = '';
  // To yargs, what stands behind `--` is never a positional.
  const end = isReplay(argv) ? -1 : argv.indexOf('--');
  const words = dashed(argv).filter((_, i) => i !== end);
  const last = argv[end - 1];
  const cli = yargs()
    .scriptName('bpfimg')
    .usage('$0 COMMAND\n\nDecodes, edits and encodes the BPF maps of CRIU dumps; captures and replays live ones.')
    .command(
      'decode [source]',
      'image or dump folder to JSON',
      (y) => y.positional('source', DECODE.words.source).options(DECODE.options),
      (args) => {
        chosen = async (io) => (await import('./commands/decode.js')).run(args, io);
      },
    )
    .command(
      'encode [json]',
      'JSON back to an image or a dump',
      (y) =>
        y
          .positional('json', ENCODE.words.json)
          .options(ENCODE.options)
          .conflicts(...ENCODE.conflicts),
      (args) => {
        chosen = async (io) => (await import('./commands/encode.js')).run(args, io);
      },
    )
    .command(
      'info <images..>',
      'kind and number of entries of images, as crit prints them',
      (y) => y.positional('images', INFO.words.images).options(INFO.options).options(COMMON),
      (args) => {
        chosen = async (io) => (await import('./commands/info.js')).run(args, io);
      },
    )
    .command(
      'show [source]',
      'the maps of an image or dump, for eyes',
      (y) => y.positional('source', SHOW.words.source).options(SHOW.options),
      (args) => {
        chosen = async (io) => (await import('./commands/show.js')).run(args, io);
      },
    )
    .command(
      'verify [source]',
      'is this dump sound? exit code 1 when it is not',
      (y) => y.positional('source', VERIFY.words.source).options(VERIFY.options),
      (args) => {
        chosen = async (io) => (await import('./commands/verify.js')).run(args, io);
      },
    )
    .command(
      'list',
      'live BPF maps of this machine',
      (y) => y.options(LIST.options),
      (args) => {
        chosen = async (io) => (await import('./commands/list.js')).run(args, io);
      },
    )
    .command(
      'capture',
      'live maps into a new dump folder',
      (y) =>
        y
          .options(selectors)
          .option('dir', { ...string, alias: 'D', demandOption: true, describe: 'folder to write the images into' })
          .option('force', { ...boolean, describe: 'replace the dump of bpfimg that stands in DIR' })
          .option('drain', {
            type: 'string',
            describe: 'empty queues and stacks to read them, and put everything back; =keep-empty does not put it back',
          })
          .option('skip-unsupported', { ...boolean, implies: 'all', describe: 'with --all: no error for such maps' })
          .option('libdir', libdir)
          .option('json', json),
      (args) => {
        chosen = async (io) => (await import('./commands/capture.js')).run(args, io);
      },
    )
    .command(
      'replay <dir>',
      'fresh maps from a dump folder',
      (y) =>
        y
          .usage('$0 replay DIR (--pin FOLDER | --hold | -- COMMAND…)')
          .positional('dir', { type: 'string', demandOption: true, describe: 'dump folder' })
          .option('map', map)
          .option('pin', { ...string, describe: 'pin each map in this folder of a BPF file system' })
          .option('rename-taken', { ...boolean, describe: 'a map whose name is taken in that folder gets another' })
          .option('hold', { ...boolean, describe: 'hold the maps until interrupted' })
          .option('dry-run', { ...boolean, describe: 'say what would be created, create nothing' })
          .option('verify', { ...boolean, describe: 'read every item back and compare' })
          .option('max-entries', { type: 'number', requiresArg: true, describe: 'max_entries instead of the recorded' })
          .option('percpu', {
            choices: ['first', 'sum', 'spread'] as const,
            requiresArg: true,
            describe: 'per-CPU values of a machine with other CPUs',
          })
          .option('unresolved', {
            choices: ['fail', 'skip'] as const,
            default: 'fail' as const,
            describe: 'items that refer to what this host does not have',
          })
          .option('require-btf', { ...boolean, describe: 'fail where the kernel does not take the types of a map' })
          .option('skip-unsupported', { ...boolean, describe: 'leave out maps that are not supported here' })
          .option('force', { ...boolean, describe: 'create maps that seem not to fit into memory' })
          .option('libdir', libdir)
          .option('json', json),
      (args) => {
        const words = (args as { '--'?: unknown })['--'];
        const command = Array.isArray(words) ? words.map(String) : [];
        chosen = async (io) => (await import('./commands/replay.js')).run({ ...args, command }, io);
      },
    )
    .command(
      'diff <a> <b>',
      'what differs between two dumps, images, documents or live maps',
      (y) =>
        y
          .positional('a', { type: 'string', demandOption: true, describe: 'dump folder, image, JSON or live maps' })
          .positional('b', { type: 'string', demandOption: true, describe: 'the same, compared with it' })
          .epilogue('Live maps are id:N, name:NAME, pinned:PATH, pid:PID, pid:PID:FD and all:.')
          .option('map', { ...map, describe: 'only this map: its id or name in A or B' })
          .option('limit', {
            type: 'number',
            requiresArg: true,
            defaultDescription: '10, with --json 0',
            describe: 'differing items of each kind of each map; 0 shows all',
          })
          .option('quiet', { ...boolean, alias: 'q', describe: 'print nothing: the exit code tells' })
          .option('holders', { ...boolean, describe: 'compare who holds the maps as well' })
          .options(types)
          .option('libdir', libdir)
          .option('json', json),
      (args) => {
        chosen = async (io) => (await import('./commands/diff.js')).run(args, io);
      },
    )
    .command('criu', "the CRIU plugin's tools", (y) =>
      y
        .command(
          'check <pid>',
          'will CRIU dump this process and its children?',
          (y) =>
            y
              .positional('pid', { type: 'string', demandOption: true, describe: 'process to be dumped' })
              .option('criu', { ...string, describe: "CRIU's program, where it is not in PATH" })
              .option('json', json),
          (args) => {
            const pid = /^\d{1,10}$/.test(args.pid) ? Number(args.pid) : 0;
            if (pid === 0) throw new BpfimgError('usage', `criu check ${args.pid}: expected a process id`);
            chosen = async (io) => (await import('./commands/criu-check.js')).run({ ...args, pid }, io);
          },
        )
        .command(
          'convert <dir>',
          "a CRIU dump of the plugin's into one for CRIU's own BPF support, or back",
          (y) =>
            y.positional('dir', { type: 'string', demandOption: true, describe: 'dump folder' }).option('to', {
              choices: ['native', 'plugin'] as const,
              demandOption: true,
              requiresArg: true,
              describe: 'what shall restore it: CRIU built with libbpf, or the plugin',
            }),
          (args) => {
            chosen = async (io) => (await import('./commands/criu-convert.js')).run(args, io);
          },
        )
        .command(
          'build',
          'compile the plugin on this machine',
          (y) =>
            y
              .option('out', { ...string, default: '/usr/local/lib/bpfimg', describe: 'folder for bpfimg.so' })
              .option('config', { ...string, describe: 'file with settings, in place of /etc/bpfimg/criu.conf' }),
          (args) => {
            chosen = async (io) => (await import('./commands/criu-build.js')).run(args, io);
          },
        )
        .demandCommand(1, 'criu: no command given'),
    )
    .completion('completion', 'print a completion script for bash or zsh')
    .options(COMMON)
    .check((given: Record<string, unknown>, known: Known) => settled(given, known, last))
    .demandCommand(1, 'no command given')
    .strict()
    .strictCommands()
    .version(false)
    .help()
    .alias('help', 'h')
    .exitProcess(false)
    .parserConfiguration({ 'strip-dashed': true, 'greedy-arrays': false, 'populate--': isReplay(argv) })
    .wrap(argv.includes('--help') || argv.includes('-h') ? Math.min(100, io.columns ?? 100) : 100)
    .fail((message: string | null, error?: Error) => {
      if (error && error.name !== 'YError') throw error;
      const text = (message ?? error?.message ?? '')
        .replace(/\s*\n\s*/g, ' ')
        // yargs calls every word a command that nothing takes.
        .replace(/^Unknown commands?: (?=(.*))/s, (all, word) => (word === wordsOf(argv) ? all : 'Unknown argument: '));
      throw new BpfimgError('usage', `${text} (see bpfimg --help)`);
    });
  await cli.parseAsync(words, {}, (_error: unknown, _argv: unknown, output: string) => {
    help = output;
  });
  if (chosen) return chosen;
  if (help !== '') await print(io, `${help}\n`);
  return 0;
}

/** What may be text of no length: names of maps, and options whose value can be left out. */
const EMPTY: ReadonlySet<string> = new Set(['map', 'name', 'drain', '--', '_', '$0']);

/** The words of a command line that are no options, in one text. */
function wordsOf(argv: readonly string[]): string {
  return argv.filter((word) => !word.startsWith('-')).at(argv.includes('criu') ? 1 : 0) ?? '';
}

/** What yargs knows of options. */
interface Known {
  readonly key?: unknown;
  readonly array?: unknown;
  readonly narg?: unknown;
  readonly alias?: unknown;
}

/**
 * Takes the marks of {@link dashed} from words, and refuses what yargs does not.
 * @param last the word before `--`
 */
function settled(given: Record<string, unknown>, { key, array, narg, alias }: Known, last = ''): true {
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
    if (empty && !EMPTY.has(name)) throw new BpfimgError('usage', `${name}: given without text (see bpfimg --help)`);
    if (typeof value === 'string') given[name] = undashed(value);
    else if (Array.isArray(value)) given[name] = value.map((one) => (typeof one === 'string' ? undashed(one) : one));
  }
  return true;
}

async function print(io: Io, text: string): Promise<void> {
  const out = io.stdout();
  out.text(text);
  await out.commit();
}
