/** The command line: parses, runs one command, turns the outcome into an exit code. */
import { BpfimgError, ClosedPipe, EXIT, oneLine } from '../errors.js';
import { removeUnfinished } from '../io/unfinished.js';
import type { Command } from './commands.js';
import { type Io, processIo } from './io.js';

/**
 * Runs one command line (without node and script name).
 * @returns the exit code; errors have been reported through `io`
 */
export async function main(argv: readonly string[], io: Io): Promise<number> {
  const debug = argv.includes('--debug');
  try {
    // Tasks are frozen meanwhile: the shortest way.
    if (argv[0] === 'criu-dump' || argv[0] === 'criu-restore') {
      return await (await import('./commands/criu-helper.js')).run(argv, io);
    }
    const command: Command | number = await (await import('./commands.js')).parse(argv, io);
    if (typeof command === 'number') return command;
    const code = await command(io);
    return typeof code === 'number' ? code : EXIT.ok;
  } catch (error) {
    if (error instanceof ClosedPipe) return EXIT.ok;
    if (debug && error instanceof Error) io.say(error.stack ?? error.message);
    if (error instanceof BpfimgError) {
      io.say(`bpfimg: ${error.message}`);
      return error.exitCode;
    }
    const what = error instanceof Error ? error.message : String(error);
    io.say(`bpfimg: internal error: ${oneLine(what)} (please report it; --debug shows where)`);
    return EXIT.failed;
  }
}

/** Exit codes a shell expects of a program that a signal ended. */
const SIGNALS = { SIGINT: EXIT.interrupted, SIGTERM: 143, SIGHUP: 129 } as const;

/** The process's entry point. */
export async function start(): Promise<void> {
  for (const [signal, code] of Object.entries(SIGNALS)) {
    process.on(signal, () => {
      removeUnfinished();
      process.exit(code);
    });
  }
  process.exitCode = await main(process.argv.slice(2), processIo());
  // Commands clean up after themselves; this is for what failed before it could be handed to anyone.
  removeUnfinished();
}
