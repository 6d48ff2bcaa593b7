/** Runs a command that inherits file descriptors. */
import { type ChildProcess, spawn } from 'node:child_process';
import { constants } from 'node:os';
import { ioError } from '../errors.js';

/**
 * Runs a command that gets `fds` as its own from 3 on, as sd_listen_fds(3) has it.
 * @param names a name for each
 * @returns the exit code of the command; 128 + N after signal N
 */
export function runInheriting(
  words: readonly string[],
  fds: readonly number[],
  names: readonly string[],
): Promise<number> {
  const env = { ...process.env, LISTEN_FDS: String(fds.length), LISTEN_FDNAMES: names.join(':') };
  // LISTEN_PID is the command's own: a shell knows it, and becomes the command.
  const shell = ['-c', 'LISTEN_PID=$$; export LISTEN_PID; exec "$@"', 'sh', ...words];
  return outcome(() => spawn('/bin/sh', shell, { env, stdio: ['inherit', 'inherit', 'inherit', ...fds] }));
}

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** The exit code of a child that `start` starts; signals that are meant for it are passed on. */
function outcome(start: () => ChildProcess): Promise<number> {
  let child: ChildProcess | undefined;
  // A terminal sends SIGINT to both; another one does no harm to a command that is ending.
  const pass = (signal: NodeJS.Signals) => child?.kill(signal);
  const before = SIGNALS.map((signal) => [signal, process.listeners(signal)] as const);
  // In this order, so that each signal always has a listener: Node would lose one that comes in between.
  for (const [signal, listeners] of before) {
    process.on(signal, pass);
    for (const listener of listeners) process.off(signal, listener as () => void);
  }
  const started = start();
  child = started;
  return new Promise<number>((resolve, reject) => {
    started.once('error', (error) => reject(ioError('/bin/sh', 'run it', error)));
    started.once('exit', (code, signal) => resolve(code ?? 128 + (signal === null ? 0 : constants.signals[signal])));
  }).finally(() => {
    for (const [signal, listeners] of before) {
      for (const listener of listeners) process.on(signal, listener as () => void);
      process.off(signal, pass);
    }
  });
}
