/** The command line: parses, runs one command, turns the outcome into an exit code. */
import { EXIT } from '../errors.js';
import { type Command, parse } from './commands.js';
import type { Io } from './io.js';
import { reported } from './start.js';

/**
 * Runs one command line (without node and script name).
 * @returns the exit code; errors have been reported through `io`
 */
export async function main(argv: readonly string[], io: Io): Promise<number> {
  try {
    const command: Command | number = await parse(argv, io);
    if (typeof command === 'number') return command;
    const code = await command(io);
    return typeof code === 'number' ? code : EXIT.ok;
  } catch (error) {
    return reported(error, io, argv.includes('--debug'));
  }
}
