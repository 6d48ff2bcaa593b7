/** The command line: parses, runs one command, turns the outcome into an exit code. */
import type { Io } from './io.js';
import { type Command, quickly } from './quick.js';
import { outcome, reported } from './start.js';

/**
 * Runs one command line (without node and script name).
 * @returns the exit code; errors have been reported through `io`
 */
export async function main(argv: readonly string[], io: Io): Promise<number> {
  let command: Command | number;
  try {
    command = quickly(argv) ?? (await (await import('./commands.js')).parse(argv, io));
  } catch (error) {
    return reported(error, io, argv.includes('--debug'));
  }
  return typeof command === 'number' ? command : outcome(command, argv, io);
}
