/** Where a command's data goes: `-o FILE`, or standard output. */
import { type Output, openOutput } from '../io/output.js';
import { lineText } from '../render.js';
import type { Io } from './io.js';
import { DASH } from './source.js';

/** Opens `file`; `-` or undefined is standard output. The caller commits or aborts it. */
export async function outputOf(file: string | undefined, io: Io): Promise<Output> {
  return file === undefined || file === DASH ? io.stdout() : openOutput(file);
}

/** Writes to `file`; `-` or undefined is standard output. A file appears only if `write` succeeds. */
export async function written(file: string | undefined, io: Io, write: (out: Output) => Promise<void>): Promise<void> {
  const out = await outputOf(file, io);
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
