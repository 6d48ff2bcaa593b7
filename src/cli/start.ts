/** The process that runs a command line: its signals, its exit code. */
import { BpfimgError, ClosedPipe, EXIT, errorText, oneLine, SIGNAL_EXIT } from '../errors.js';
import { removeUnfinished } from '../io/unfinished.js';
import { isWaiting } from '../io/waiting.js';
import { phase, phaseLines, takePhases } from '../phases.js';
import { launched } from './import.js';
import { type Io, processIo } from './io.js';

/** Runs a command line (without node and script name); resolves to the exit code of the process. */
export type Main = (argv: readonly string[], io: Io) => Promise<number>;

/**
 * Reports an error through `io`.
 * @param help the command that explains the right usage
 * @returns the exit code
 */
export function reported(error: unknown, io: Io, debug: boolean, help?: string): number {
  if (error instanceof ClosedPipe) return EXIT.ok;
  if (debug && error instanceof Error) for (const line of (error.stack ?? error.message).split('\n')) io.say(line);
  if (error instanceof BpfimgError) {
    const hint = error.kind === 'usage' && help !== undefined ? ` (see bpfimg ${help})` : '';
    io.say(`bpfimg: ${error.message}${hint}`);
    return error.exitCode;
  }
  io.say(`bpfimg: internal error: ${oneLine(errorText(error))} (please report it; --debug shows where)`);
  return EXIT.failed;
}

/** Runs the process's own command line. */
export async function start(main: Main): Promise<void> {
  if (process.argv.includes('--debug')) takePhases();
  phase('loading bpfimg', launched());
  phase('reading the command line');
  const io = processIo();
  let finished = false;
  for (const [signal, code] of Object.entries(SIGNAL_EXIT)) {
    process.on(signal, () => {
      if (finished && !isWaiting()) process.exit(); // what it was to do is done
      for (const line of removeUnfinished()) io.say(`bpfimg: ${line}`);
      if (!isWaiting()) process.exit(code);
      // Exiting would wait for the blocked thread. A shell makes the same code of the signal itself.
      process.removeAllListeners(signal);
      process.kill(process.pid, signal);
    });
  }
  process.exitCode = await main(process.argv.slice(2), io);
  finished = true;
  // Commands clean up after themselves; this removes what failed before any command owned it.
  removeUnfinished();
  for (const line of phaseLines()) io.say(`bpfimg: ${line}`);
}
