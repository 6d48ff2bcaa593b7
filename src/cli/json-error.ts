/** Errors of commands with `--json`, as JSON. Loaded if there is one. */
import { BpfimgError, ClosedPipe, errnoOf, errorText } from '../errors.js';
import type { Output } from '../io/output.js';
import { inAscii } from '../json/print.js';
import type { Io } from './io.js';

/** The command line that failed. */
export interface Failed {
  readonly argv: readonly string[];
  /** What follows `--` is another command. */
  readonly tail: boolean;
  /** Standard output, if the command has used it. */
  readonly out: Output | undefined;
}

/**
 * Prints an error as JSON on standard output, where a program expects the result; unless part of that has been written,
 * or standard output belongs to an archive or another program.
 */
export async function printError(error: unknown, { argv, tail, out }: Failed, io: Io): Promise<void> {
  if (error instanceof ClosedPipe) return;
  const end = argv.indexOf('--');
  const head = end < 0 ? argv : argv.slice(0, end);
  const begun = out !== undefined && out.length > 0;
  const others = (tail && end >= 0) || toArchive(head);
  if (!head.includes('--json') || begun || others) return;
  const output = io.stdout();
  output.text(`${inAscii(JSON.stringify({ error: members(error) }))}\n`);
  await output.commit();
}

/** Whether an archive goes to standard output: `-o -`. */
function toArchive(words: readonly string[]): boolean {
  return words.some((word, i) => /^(-o-|--out=-)$/.test(word) || (/^(-o|--out)$/.test(word) && words[i + 1] === '-'));
}

/** Every member is there; what is not known is null. */
function members(error: unknown): Record<string, unknown> {
  if (!(error instanceof BpfimgError)) {
    return { kind: 'internal', code: null, ...NOWHERE, message: errorText(error) };
  }
  const { kind, code, subject, pointer, offset, line, column, message } = error;
  return {
    kind,
    code: code ?? errnoOf(error.cause) ?? null,
    file: subject ?? null,
    pointer: pointer ?? null,
    offset: offset ?? null,
    line: line ?? null,
    column: column ?? null,
    message,
  };
}

const NOWHERE = { file: null, pointer: null, offset: null, line: null, column: null };
