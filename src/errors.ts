/**
 * Every way bpfimg can fail, and what each means for the exit code.
 *
 * A message is one line, says which file, what is wrong, where, and what was expected, and leaves out
 * the `bpfimg: ` that the command line puts before it.
 */

/** What went wrong, as far as a program needs to tell. The text is for people. */
export type ErrorKind =
  /** The command line does not make sense. */
  | 'usage'
  /** An image breaks the format. */
  | 'badImage'
  /** JSON breaks its grammar, its schema or a range. */
  | 'badJson'
  /** A file, folder, map or item that was named is not there. */
  | 'notFound'
  /** Something stands where we would write, or two things contradict each other. */
  | 'conflict'
  /** Valid, but more than bpfimg can do. */
  | 'unsupported'
  /** The operating system said no. */
  | 'io';

/** Exit codes, as SPEC and `bpfimg --help` name them. */
export const EXIT = { ok: 0, failed: 1, usage: 2, interrupted: 130 } as const;

/** What must not reach a terminal: controls (C0, DEL, C1), other line ends, and what reorders text (bidi). */
// biome-ignore lint/suspicious/noControlCharactersInRegex: it is about them
const UNPRINTABLE = /[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;

/** Text from files and names made safe for one line on a terminal. */
export function oneLine(text: string): string {
  return text.replace(UNPRINTABLE, escaped);
}

/** A character as JavaScript and C write it: `\x1b`, `\u202e`. */
export function escaped(char: string): string {
  const code = char.charCodeAt(0);
  return code > 0xff ? `\\u${code.toString(16).padStart(4, '0')}` : `\\x${code.toString(16).padStart(2, '0')}`;
}

/** An error that is the user's news: `message` is the whole sentence, on one line whatever names stand in it. */
export class BpfimgError extends Error {
  override readonly name = 'BpfimgError';
  constructor(
    readonly kind: ErrorKind,
    message: string,
    options?: ErrorOptions & { code?: string },
  ) {
    super(oneLine(message), options);
    this.code = options?.code;
  }

  /** A finer name of what is wrong, where `verify` has one. */
  readonly code: string | undefined;

  /** The exit code a command ends with when this error reaches it. */
  get exitCode(): number {
    return this.kind === 'usage' ? EXIT.usage : EXIT.failed;
  }
}

/** The reader of our output went away (`| head`): no error, but nothing is left to do. */
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

/** Turns a failed system call on `name` into the user's news; anything else is passed on unchanged. */
export function ioError(name: string, doing: string, error: unknown): Error {
  if (error instanceof BpfimgError || error instanceof ClosedPipe) return error;
  if (!isErrno(error)) return error instanceof Error ? error : new Error(String(error));
  const code = error.code ?? '';
  const text = ERRNO_TEXT[code] ?? code;
  const kind: ErrorKind = code === 'ENOENT' ? 'notFound' : 'io';
  return new BpfimgError(kind, `${name}: cannot ${doing}: ${text}`, { cause: error });
}
