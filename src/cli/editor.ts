/** Runs the user's editor on a file. */
import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import { BpfimgError } from '../errors.js';
import type { Io } from './io.js';

/** Editors that begin at line N if they get `+N`. */
const TAKES_LINE = /(^|\/)(vi|vim|nvim|view|nano|emacs|emacsclient|joe|jed|mg|mcedit|kak|micro|ed|ex)( |$)/;

/** The user's editor, as git finds it. */
function editorOf({ env }: Io): string {
  const { VISUAL, EDITOR } = env;
  return [VISUAL, EDITOR].find((one) => one !== undefined && one !== '') ?? 'vi';
}

/**
 * Runs the editor until the user ends it. Signals from the terminal are the editor's meanwhile.
 * @param line where it should begin, if it can
 * @throws BpfimgError if it cannot be run, or fails
 */
export async function runEditor(file: string, line: number | undefined, io: Io): Promise<void> {
  const editor = editorOf(io);
  const where = line === undefined || !TAKES_LINE.test(editor) ? [] : [`+${line}`];
  const ignored = () => {};
  // Ours would end this process while the editor has the terminal.
  const before = process.listeners('SIGINT');
  process.removeAllListeners('SIGINT');
  process.on('SIGINT', ignored);
  try {
    // A shell, because it may have arguments: `code --wait`.
    const child = spawn('sh', ['-c', `${editor} "$@"`, editor, ...where, file], { stdio: 'inherit' });
    const [code, signal] = await new Promise<[number | null, string | null]>((resolve, reject) => {
      child.on('error', reject);
      child.on('close', (...end) => resolve(end));
    });
    if (code === 0) return;
    const how = signal === null ? `with exit code ${code}` : `by ${signal}`;
    throw new BpfimgError('io', `it ended ${how}; nothing is changed`, { subject: `editor ${editor}` });
  } finally {
    process.removeListener('SIGINT', ignored);
    for (const one of before) process.on('SIGINT', one);
  }
}

/** What begins a line that is not part of the document. No line of JSON begins so. */
const NOTE = '# ';

/** The text without the lines that begin with `#`. */
export function withoutNotes(text: Buffer): Buffer {
  const parts: Buffer[] = [];
  for (let at = 0; at < text.length; ) {
    const end = text.indexOf(0x0a, at);
    const next = end < 0 ? text.length : end + 1;
    let first = at;
    while (text[first] === 0x20 || text[first] === 0x09) first++;
    if (text[first] !== 0x23) parts.push(text.subarray(at, next));
    at = next;
  }
  return Buffer.concat(parts);
}

/**
 * Writes `text` with a note before a line.
 * @param line from 1
 * @returns where the line now is
 */
export function writeWithNote(file: string, text: Buffer, note: string, line = 1): number {
  let at = 0;
  for (let i = 1; i < line; i++) {
    const end = text.indexOf(0x0a, at);
    if (end < 0) break;
    at = end + 1;
  }
  fs.writeFileSync(file, Buffer.concat([text.subarray(0, at), Buffer.from(`${NOTE}${note}\n`), text.subarray(at)]));
  return line + 1;
}
