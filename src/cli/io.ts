/** The outside world of a command: its streams and the terminal. */
import * as fs from 'node:fs';
import { oneLine } from '../errors.js';
import { type Input, standardInput } from '../io/input.js';
import { type Output, standardOutput } from '../io/output.js';
import { onSameLine } from '../render.js';

/** Streams, terminal and environment of one command. */
export interface Io {
  stdin(): Promise<Input>;
  /** Whether standard input is typed by a person; false by default. */
  typed?(): Promise<boolean>;
  /** The data stream. Commands write results here and nothing else. */
  stdout(): Output;
  /** Prints one line on standard error; line ends in it are escaped. */
  say(line: string): void;
  /** Shows text on standard error instead of the text shown before; does nothing if that is not a terminal. */
  show(text: string): void;
  /** Whether standard output is a terminal, for layout and colour. */
  readonly terminal: boolean;
  /** Columns of the terminal; undefined if there is none. */
  readonly columns: number | undefined;
  /** Its lines. */
  readonly rows?: number | undefined;
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** Whether to colour: on a terminal, unless `--no-color` or a non-empty NO_COLOR says otherwise. */
export function coloured(io: Io, option: boolean | undefined): boolean {
  return option ?? (io.terminal && !io.env.NO_COLOR);
}

/** Major number of /dev/null and its like. */
const MEMORY = 1;

/** Whether a file descriptor may be a terminal: a cheap test before the expensive one. */
function isDevice(fd: number): boolean {
  try {
    const stat = fs.fstatSync(fd);
    return stat.isCharacterDevice() && stat.rdev >> 8 !== MEMORY;
  } catch {
    return false;
  }
}

/** Writes to standard error: directly to a file or /dev/null, because of the time that `process.stderr` takes to start. */
function tell(text: string): void {
  try {
    const stat = fs.fstatSync(2);
    if (stat.isFile() || (stat.isCharacterDevice() && !isDevice(2))) {
      fs.writeSync(2, text);
      return;
    }
  } catch {
    // A full disk, or nothing open: the stream knows what to do.
  }
  process.stderr.write(text);
}

/** The process's own streams. The first use of `process.stdout` costs milliseconds, so it is used only if needed. */
export function processIo(): Io {
  return {
    stdin: standardInput,
    typed: async () => isDevice(0) && (await import('node:tty')).isatty(0),
    stdout: standardOutput,
    say: (line) => tell(`${oneLine(line)}\n`),
    show: (text) => {
      if (process.stderr.isTTY) process.stderr.write(onSameLine(text, process.stderr.columns));
    },
    get terminal() {
      return isDevice(1) && process.stdout.isTTY === true;
    },
    get columns() {
      // 0 is a terminal that does not know its size.
      return isDevice(1) && process.stdout.isTTY ? process.stdout.columns || undefined : undefined;
    },
    get rows() {
      return isDevice(1) && process.stdout.isTTY ? process.stdout.rows : undefined;
    },
    env: process.env,
  };
}
