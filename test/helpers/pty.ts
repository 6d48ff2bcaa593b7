/** Commands on a real pseudo-terminal. */
import { spawnSync } from 'node:child_process';
import * as path from 'node:path';
import { BPFIMG } from './command.js';

/** How the terminal is. */
export interface Terminal {
  readonly columns: number;
  readonly cwd: string;
  readonly env?: Readonly<Record<string, string>>;
}

/** Runs a line of shell, in which `bpfimg` is the command under test, on a terminal; returns what that shows. */
export function onTerminal(line: string, { columns, cwd, env }: Terminal): string {
  const run = `stty cols ${columns} rows 200; ${line}`;
  const PATH = `${path.dirname(BPFIMG)}${path.delimiter}${process.env.PATH ?? ''}`;
  const { stdout } = spawnSync('script', ['-qec', run, '/dev/null'], {
    cwd,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, PATH, PAGER: '', NO_COLOR: '1', LC_ALL: 'C.UTF-8', ...env },
  });
  return stdout.replaceAll('\r\n', '\n');
}
