/**
 * Sources of bytes: a file, a buffer, or a pipe.
 *
 * Regular files are read with positioned synchronous reads (the page cache answers in microseconds and
 * nothing can block for long); pipes and terminals go through Node's event loop, so that Ctrl-C works
 * while we wait for the other side.
 */
import * as fs from 'node:fs';
import { viewOf } from '../bytes.js';
import { BpfimgError, ioError } from '../errors.js';
import { finishChangeBeside } from './journal.js';
import { openWaiting } from './waiting.js';

/** A source of bytes. Positions count from the start of the source. */
export interface Input {
  /** Its name in messages: the path, or `standard input`. */
  readonly name: string;
  /** Size in bytes if it is known beforehand; a pipe's is not. */
  readonly size: number | undefined;
  /** Path of a regular file that can be opened and read again, to find a line number for a message. */
  readonly path: string | undefined;
  /**
   * Reads into `into` from `position` on; returns the number of bytes, 0 at the end. A source without a
   * size is read in order: `position` must be where the last read ended.
   */
  read(into: Uint8Array, position: number): number | Promise<number>;
  close(): void;
}

/** A buffer as an input; `name` is for messages. */
export function bufferInput(bytes: Uint8Array, name = 'buffer'): Input {
  return {
    name,
    size: bytes.length,
    path: undefined,
    read(into, position) {
      const part = bytes.subarray(position, position + into.length);
      into.set(part);
      return part.length;
    },
    close() {},
  };
}

/** An open regular file as an input. Closing the input closes `fd` when `owned`. */
export function fileInput(fd: number, name: string, size: number, path?: string, owned = true): Input {
  return {
    name,
    size,
    path,
    read(into, position) {
      try {
        return fs.readSync(fd, into, 0, into.length, position);
      } catch (error) {
        throw ioError(name, 'read it', error);
      }
    },
    close() {
      if (owned) fs.closeSync(fd);
    },
  };
}

/** Chunks that arrive in order as an input without a size, such as a Node stream. */
export function streamInput(chunks: AsyncIterable<Uint8Array>, name: string, close = () => {}): Input {
  const iterator = chunks[Symbol.asyncIterator]();
  let chunk: Uint8Array = new Uint8Array(0);
  return {
    name,
    size: undefined,
    path: undefined,
    async read(into) {
      while (chunk.length === 0) {
        let next: IteratorResult<Uint8Array>;
        try {
          next = await iterator.next();
        } catch (error) {
          throw ioError(name, 'read it', error);
        }
        if (next.done) return 0;
        chunk = next.value;
      }
      const part = chunk.subarray(0, into.length);
      into.set(part);
      chunk = chunk.subarray(part.length);
      return part.length;
    },
    close,
  };
}

/** `size` bytes of an input that has a size, as an input of its own. Closing it does not close the original. */
export function sliceInput(input: Input, from: number, size: number, name = input.name): Input {
  return {
    name,
    size,
    path: undefined,
    read(into, position) {
      const left = Math.max(0, size - position);
      return input.read(left < into.length ? into.subarray(0, left) : into, from + position);
    },
    close() {},
  };
}

/**
 * Reads the first `size` bytes of an input (fewer if it is shorter), to find out what it is.
 * @returns them, and an input that starts with them again
 */
export async function peeked(
  input: Input,
  size: number,
): Promise<{ readonly head: Uint8Array; readonly input: Input }> {
  const cursor = new Cursor(input, 0, size, size);
  // A short input has a window of its own size.
  await cursor.fill(Math.min(size, cursor.bytes.length));
  const head = cursor.bytes.subarray(cursor.at, cursor.end);
  if (input.size !== undefined) return { head, input };
  const read: Input['read'] = (into, position) => {
    if (position >= head.length) return input.read(into, position);
    const part = head.subarray(position, position + into.length);
    into.set(part);
    return part.length;
  };
  return { head, input: { ...input, read, close: () => input.close() } };
}

/**
 * Opens `path` for reading: a regular file with its size, anything else as a stream. An interrupted
 * change of images in the same folder is finished first.
 */
export async function openInput(path: string): Promise<Input> {
  finishChangeBeside(path);
  try {
    const fd = openNow(path);
    if (!fs.fstatSync(fd).isFIFO()) return await fdInput(fd, path, path);
    // Opened without waiting for a writer, it would be at its end.
    const waited = await openWaiting(path, 'r');
    fs.closeSync(fd);
    return await fdInput(waited, path, path);
  } catch (error) {
    throw ioError(path, 'open it', error);
  }
}

/**
 * Opens `path`, which must be a regular file: an image of a dump, say.
 * @throws BpfimgError `io`
 */
export function openFile(path: string, name = path): Input {
  let fd: number;
  try {
    fd = openNow(path);
  } catch (error) {
    throw ioError(name, 'open it', error);
  }
  const stat = fs.fstatSync(fd);
  if (stat.isFile()) return fileInput(fd, name, stat.size, path);
  fs.closeSync(fd);
  throw new BpfimgError('io', 'it is a folder, pipe or device, expected a regular file', { subject: name });
}

/** Opens for reading without waiting for a writer. */
function openNow(path: string): number {
  return fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
}

/** Standard input, whatever it is connected to. */
export function standardInput(): Promise<Input> {
  return fdInput(0, 'standard input', undefined);
}

async function fdInput(fd: number, name: string, path: string | undefined): Promise<Input> {
  const owned = path !== undefined;
  let stat: fs.Stats;
  try {
    stat = fs.fstatSync(fd);
  } catch (error) {
    throw ioError(name, 'read it', error);
  }
  if (stat.isFile()) return fileInput(fd, name, stat.size, path, owned);
  if (stat.isDirectory()) {
    if (owned) fs.closeSync(fd);
    throw new BpfimgError('io', 'it is a folder, expected an image or JSON file', { subject: name });
  }
  if (stat.isFIFO() || stat.isSocket() || stat.isCharacterDevice()) {
    const tty = stat.isCharacterDevice() ? await import('node:tty') : undefined;
    if (tty && !tty.isatty(fd)) return deviceInput(fd, name, owned);
    const net = await import('node:net');
    const stream = tty ? new tty.ReadStream(fd) : new net.Socket({ fd, readable: true, writable: false });
    return streamInput(stream, name, () => stream.destroy());
  }
  if (owned) fs.closeSync(fd);
  throw new BpfimgError('io', 'neither a file nor a pipe', { subject: name });
}

/** A device such as /dev/null: read in order, without a size and without positions. */
function deviceInput(fd: number, name: string, owned: boolean): Input {
  return {
    name,
    size: undefined,
    path: undefined,
    read(into) {
      try {
        return fs.readSync(fd, into, 0, into.length, null);
      } catch (error) {
        throw ioError(name, 'read it', error);
      }
    },
    close() {
      if (owned) fs.closeSync(fd);
    },
  };
}

/** Size of the window a {@link Cursor} reads through, by default. */
export const WINDOW = 256 * 1024;

/** Bytes that can be asked for at once, however small the input is. */
const LEAST_WINDOW = 128;

/**
 * A moving window over a part of an input. `bytes[at..end)` are read but not yet consumed. So inner
 * loops work on plain buffers, and only the refill is asynchronous.
 */
export class Cursor {
  readonly bytes: Uint8Array;
  /** The window as a view, for reads of several bytes at once. */
  readonly view: DataView;
  at = 0;
  end = 0;
  #next: number;

  /**
   * @param position where to start in `input`
   * @param limit position to stop at; the end of the input when left out
   */
  constructor(
    readonly input: Input,
    position = 0,
    readonly limit = Number.POSITIVE_INFINITY,
    window = WINDOW,
  ) {
    this.#next = position;
    // Never larger than what there is to read, so that small images do not cost large buffers.
    const most = Math.min(limit, input.size ?? limit) - position;
    this.bytes = new Uint8Array(Math.max(LEAST_WINDOW, Math.min(window, most)));
    this.view = viewOf(this.bytes);
  }

  /** Position in the input of the next byte. */
  get position(): number {
    return this.#next - (this.end - this.at);
  }

  /** Bytes in the window. */
  get ready(): number {
    return this.end - this.at;
  }

  /**
   * Makes at least `wanted` bytes ready, if the input has them.
   * @returns the number of bytes ready: fewer than `wanted` only at the end of the input or limit.
   */
  async fill(wanted = 1): Promise<number> {
    if (this.end - this.at >= wanted) return this.end - this.at;
    if (wanted > this.bytes.length) throw new RangeError(`window of ${this.bytes.length} bytes, wanted ${wanted}`);
    if (this.at > 0) {
      this.bytes.copyWithin(0, this.at, this.end);
      this.end -= this.at;
      this.at = 0;
    }
    while (this.end < wanted) {
      const room = Math.min(this.bytes.length - this.end, this.limit - this.#next);
      if (room <= 0) break;
      const got = this.input.read(this.bytes.subarray(this.end, this.end + room), this.#next);
      const read = typeof got === 'number' ? got : await got;
      if (read === 0) break;
      this.end += read;
      this.#next += read;
    }
    return this.end - this.at;
  }

  /**
   * The next `size` bytes as a buffer of their own, or fewer at the end of the input. Memory grows with
   * the bytes that arrive, not with `size`.
   */
  async take(size: number): Promise<Uint8Array> {
    if (size <= this.ready) {
      const part = this.bytes.slice(this.at, this.at + size);
      this.at += size;
      return part;
    }
    const parts: Uint8Array[] = [];
    let length = 0;
    while (length < size) {
      const ready = await this.fill();
      if (ready === 0) break;
      const part = this.bytes.slice(this.at, this.at + Math.min(ready, size - length));
      this.at += part.length;
      length += part.length;
      parts.push(part);
    }
    return parts.length === 1 ? (parts[0] as Uint8Array) : Buffer.concat(parts, length);
  }

  /** Skips `size` bytes: by seeking if the input has a size, else by reading. */
  async skip(size: number): Promise<number> {
    const buffered = Math.min(size, this.ready);
    this.at += buffered;
    if (buffered === size) return size;
    if (this.input.size !== undefined) {
      const left = Math.max(0, Math.min(this.limit, this.input.size) - this.#next);
      const jump = Math.min(size - buffered, left);
      this.#next += jump;
      return buffered + jump;
    }
    let done = buffered;
    while (done < size) {
      const ready = await this.fill();
      if (ready === 0) break;
      const part = Math.min(ready, size - done);
      this.at += part;
      done += part;
    }
    return done;
  }
}
