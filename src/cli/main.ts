/** The command line: parses, runs one command, turns the outcome into an exit code. */
import { EXIT } from '../errors.js';
import type { Output } from '../io/output.js';
import { phase } from '../phases.js';
import type { Io } from './io.js';
import { type Learnt, parseCommandLine } from './parse.js';
import { reported } from './start.js';

/**
 * Runs one command line (without node and script name).
 * @returns the exit code; errors have been reported through `io`
 */
export async function main(argv: readonly string[], io: Io): Promise<number> {
  const learnt: Learnt = {};
  let out: Output | undefined;
  try {
    const run = await parseCommandLine(argv, learnt);
    const stdout = () => {
      out = io.stdout();
      return out;
    };
    phase('the command');
    const code = await run(Object.create(io, { stdout: { value: stdout } }) as Io);
    return typeof code === 'number' ? code : EXIT.ok;
  } catch (error) {
    const code = reported(error, io, argv.includes('--debug'), ['help', learnt.command ?? ''].join(' ').trim());
    if (argv.includes('--json')) {
      const { printError } = await import('./json-error.js');
      await printError(error, { argv, tail: learnt.tail === true, out }, io);
    }
    return code;
  }
}
