/**
 * Every way bpfimg can fail, and the exit codes.
 *
 * A message is one line, says which file, what is wrong, where, and what was expected, and leaves out
 * the `bpfimg: ` that the command line puts before it.
 */

/** What went wrong, as far as a program needs to know. The message is for people. */
export type ErrorKind =
  /** The command line does not make sense. */
  | 'usage'
  /** An image breaks the format. */
  | 'badImage'
  /** JSON breaks its grammar, its schema or a range. */
  | 'badJson'
  /** A named file, folder, map or item does not exist. */
  | 'notFound'
  /** Something already exists where we would write, or two things contradict each other. */
  | 'conflict'
  /** Valid, but beyond what bpfimg can do. */
  | 'unsupported'
  /** The operating system refused. */
  | 'io';

/** Exit codes. For `diff`, 1 means differences and 2 any error. */
export const EXIT = { ok: 0, failed: 1, usage: 2, interrupted: 130 } as const;

/** Exit codes after signals, as a shell expects them: 128 and the number of the signal. */
export const SIGNAL_EXIT = { SIGINT: EXIT.interrupted, SIGTERM: 143, SIGHUP: 129 } as const;

/** What must not reach a terminal: controls (C0, DEL, C1), other line ends, and what reorders text (bidi). */
// biome-ignore lint/suspicious/noControlCharactersInRegex: it is about them
const UNPRINTABLE = /[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;

/** Makes text from files and names safe for one line on a terminal. */
export function oneLine(text: string): string {
  return text.replace(UNPRINTABLE, escaped);
}

/** A character as JavaScript and C write it: `\x1b`, `\u202e`. */
export function escaped(char: string): string {
  const code = char.charCodeAt(0);
  return code > 0xff ? `\\u${code.toString(16).padStart(4, '0')}` : `\\x${code.toString(16).padStart(2, '0')}`;
}

/** What is known about an error besides its text. The text also contains each, as far as it helps the reader. */
export interface ErrorDetails {
  /** What the error is about, as the message names it: a file, a folder, a map, a process, an option. */
  readonly subject?: string | undefined;
  /** An item, page or pin of the subject. */
  readonly part?: string | undefined;
  /** A more specific name of the error: the code of a `verify` finding, or an errno name. */
  readonly code?: string | undefined;
  /** JSON pointer to the wrong value; only for JSON. */
  readonly pointer?: string | undefined;
  /** Byte position in the file. */
  readonly offset?: number | undefined;
  /** Line of a text file, from 1. */
  readonly line?: number | undefined;
  /** Column in that line, from 1. */
  readonly column?: number | undefined;
  readonly cause?: unknown;
}

/**
 * An error to report to the user. Its `message` joins the parts that are present: `SUBJECT, PART: POINTER: TEXT`.
 * It is always one line, whatever names it contains.
 */
export class BpfimgError extends Error implements ErrorDetails {
  override readonly name: string = 'BpfimgError';
  readonly subject: string | undefined;
  readonly part: string | undefined;
  readonly code: string | undefined;
  readonly pointer: string | undefined;
  readonly offset: number | undefined;
  readonly line: number | undefined;
  readonly column: number | undefined;
  /** What is wrong: the message without subject, part and pointer. */
  readonly text: string;

  constructor(
    readonly kind: ErrorKind,
    text: string,
    details: ErrorDetails = {},
  ) {
    const { subject, part, pointer } = details;
    const about = [part === undefined ? subject : `${subject}, ${part}`, pointer || undefined, text];
    const { cause } = details;
    super(oneLine(about.filter((one) => one !== undefined).join(': ')), cause === undefined ? {} : { cause });
    this.text = oneLine(text);
    this.subject = subject;
    this.part = part;
    this.code = details.code;
    this.pointer = pointer;
    this.offset = details.offset;
    this.line = details.line;
    this.column = details.column;
  }

  /** The exit code of a command that ends with this error. */
  get exitCode(): number {
    return this.kind === 'usage' ? EXIT.usage : EXIT.failed;
  }

  /** The same error, with another name for its subject. */
  about(subject: string): BpfimgError {
    return new BpfimgError(this.kind, this.text, { ...this, subject, cause: this });
  }

  /** The message without `subject`, for use where that is already named. */
  textAbout(subject: string): string {
    if (this.subject !== subject || this.part !== undefined) return this.message;
    return this.pointer ? `${this.pointer}: ${this.text}` : this.text;
  }
}

/** Wrong JSON: `pointer` leads to it from the value being read, not from the document's root. */
export class PointerError extends BpfimgError {
  declare readonly pointer: string;

  constructor(pointer: string, text: string) {
    super('badJson', text, { pointer });
  }

  /** The same error relative to an enclosing value, in which `outer` leads to this one. */
  within(outer: string): PointerError {
    return new PointerError(outer + this.pointer, this.text);
  }
}

/** An error at `outer` in an enclosing value, relative to that; any other kind of error is returned unchanged. */
export function pointed(error: unknown, outer = ''): unknown {
  if (error instanceof PointerError) return error.within(outer);
  return error instanceof BpfimgError ? new PointerError(outer, error.message) : error;
}

/** The message of `error`, whatever was thrown. */
export function errorText(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The first line of the message, for errors of other libraries. */
export function firstLine(error: unknown): string {
  return errorText(error).split('\n', 1)[0] as string;
}

/** `error`, with a later problem added. */
export function followed(error: unknown, text: string): BpfimgError {
  if (!(error instanceof BpfimgError)) return new BpfimgError('io', `${errorText(error)}; ${text}`, { cause: error });
  return new BpfimgError('io', `${error.text}; ${text}`, { ...error, cause: error });
}

/** The reader of our output has gone (`| head`): not an error, but nothing is left to do. */
export class ClosedPipe extends Error {
  override readonly name = 'ClosedPipe';
}

const ERRNO_TEXT: Readonly<Record<string, string>> = {
  EACCES: 'permission denied',
  EBUSY: 'it is in use',
  EDQUOT: 'the disk quota is used up',
  EEXIST: 'it exists already',
  EFBIG: 'the file would be too large',
  EIO: 'input/output error',
  EISDIR: 'it is a folder',
  ELOOP: 'too many symbolic links',
  EMFILE: 'too many open files',
  ENAMETOOLONG: 'the name is too long',
  ENOENT: 'no such file or folder',
  ENOSPC: 'no space left on the device',
  ENOTDIR: 'not a folder',
  ENOTEMPTY: 'the folder is not empty',
  ENXIO: 'no such device or address',
  EPERM: 'operation not permitted',
  EROFS: 'the file system is read-only',
};

/** A JSON pointer's form of a member name or index (RFC 6901). */
export function pointerPart(name: string | number): string {
  return `/${String(name).replaceAll('~', '~0').replaceAll('/', '~1')}`;
}

function isErrno(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && typeof (error as NodeJS.ErrnoException).code === 'string';
}

/** The errno name (`ENOENT`) of a failed system call, if `error` is one. */
export function errnoOf(error: unknown): string | undefined {
  return isErrno(error) ? error.code : undefined;
}

/** Turns a failed system call on `name` into an error for the user; anything else is returned unchanged. */
export function ioError(name: string, doing: string, error: unknown): Error {
  if (error instanceof BpfimgError || error instanceof ClosedPipe) return error;
  if (!isErrno(error)) return error instanceof Error ? error : new Error(String(error));
  const code = error.code ?? '';
  const text = ERRNO_TEXT[code] ?? code;
  const kind: ErrorKind = code === 'ENOENT' ? 'notFound' : 'io';
  return new BpfimgError(kind, `cannot ${doing}: ${text}`, { subject: name, cause: error });
}
