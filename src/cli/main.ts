/** The command line: parses, runs one command, turns the outcome into an exit code. */
import { EXIT } from '../errors.js';
import type { Io } from './io.js';
import { parseCommandLine } from './parse.js';
import { reported } from './start.js';

/**
 * Runs one command line (without node and script name).
 * @returns the exit code; errors have been reported through `io`
 */
export async function main(argv: readonly string[], io: Io): Promise<number> {
  try {
    const run = await parseCommandLine(argv, io);
    const code = typeof run === 'number' ? run : await run(io);
    return typeof code === 'number' ? code : EXIT.ok;
  } catch (error) {
    return reported(error, io, argv.includes('--debug'));
  }
}
