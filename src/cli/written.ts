/** Where a command's data goes: `-o FILE`, or standard output. */
import { type Output, openOutput } from '../io/output.js';
import { lineText } from '../render.js';
import type { Io } from './io.js';
import { DASH } from './options.js';

/** Opens `file`; `-` or undefined is standard output. The caller commits or aborts it. */
export async function outputOf(file: string | undefined, io: Io): Promise<Output> {
  return file === undefined || file === DASH ? io.stdout() : openOutput(file);
}

/** Writes to `file`; `-` or undefined is standard output. A file appears only if `write` succeeds. */
export async function written(file: string | undefined, io: Io, write: (out: Output) => Promise<void>): Promise<void> {
  await finished(await outputOf(file, io), write);
}

/**
 * Writes to standard output; if that is a terminal, through the user's pager.
 * @param pager false if the user wants none
 */
export async function paged(io: Io, pager: boolean | undefined, write: (out: Output) => Promise<void>): Promise<void> {
  const through = pager === false || !io.terminal ? undefined : (await import('./pager.js')).openPager(io);
  await finished(through ?? io.stdout(), write);
}

async function finished(out: Output, write: (out: Output) => Promise<void>): Promise<void> {
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
