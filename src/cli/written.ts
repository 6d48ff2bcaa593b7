/** Where a command's data goes: `-o FILE`, or standard output. */
import { type Output, openOutput } from '../io/output.js';
import { lineText } from '../render.js';
import type { Io } from './io.js';
import { DASH } from './source.js';

/** Writes to `file`, or to standard output for `-` and for nothing. A file appears only when `write` succeeds. */
export async function written(file: string | undefined, io: Io, write: (out: Output) => Promise<void>): Promise<void> {
  const out = file === undefined || file === DASH ? io.stdout() : await openOutput(file);
  try {
    await write(out);
    await out.commit();
  } catch (error) {
    await out.abort();
    throw error;
  }
}

/** Prints lines for people. */
export function printLines(out: Output, lines: Iterable<string>): void {
  for (const line of lines) out.text(`${lineText(line)}\n`);
}
