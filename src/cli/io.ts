/** What a command may touch of the outside world: its streams and the terminal. */
import * as fs from 'node:fs';
import { oneLine } from '../errors.js';
import { type Input, standardInput } from '../io/input.js';
import { type Output, standardOutput } from '../io/output.js';
import { onSameLine } from '../render.js';

/** Streams, terminal and environment of one command. */
export interface Io {
  stdin(): Promise<Input>;
  /** Whether somebody types what standard input gives; not when not said. */
  typed?(): Promise<boolean>;
  /** The data stream. Commands write results here and nothing else. */
  stdout(): Output;
  /** One line of talk on standard error; whatever stands in it, it stays one. */
  say(line: string): void;
  /** Shows text on standard error in place of what was shown so; does nothing where that is no terminal. */
  show(text: string): void;
  /** Whether standard output is a terminal, for layout and colour. */
  readonly terminal: boolean;
  /** Columns of the terminal; undefined where there is none. */
  readonly columns: number | undefined;
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** Whether to colour: on a terminal, unless `--no-color` or NO_COLOR (when not empty) says otherwise. */
export function coloured(io: Io, option: boolean | undefined): boolean {
  return option ?? (io.terminal && !io.env.NO_COLOR);
}

/** Whether an fd may be a terminal at all, which is asked at a fraction of that price. */
function isDevice(fd: number): boolean {
  try {
    return fs.fstatSync(fd).isCharacterDevice();
  } catch {
    return false;
  }
}

/** The process's own streams. Asking for `process.stdout` costs milliseconds, so it is asked for when needed. */
export function processIo(): Io {
  return {
    stdin: standardInput,
    typed: async () => isDevice(0) && (await import('node:tty')).isatty(0),
    stdout: standardOutput,
    say: (line) => {
      process.stderr.write(`${oneLine(line)}\n`);
    },
    show: (text) => {
      if (process.stderr.isTTY) process.stderr.write(onSameLine(text, process.stderr.columns));
    },
    get terminal() {
      return isDevice(1) && process.stdout.isTTY === true;
    },
    get columns() {
      return isDevice(1) && process.stdout.isTTY ? process.stdout.columns : undefined;
    },
    env: process.env,
  };
}
