/**
 * Where bytes go: a file that appears whole or not at all, standard output, or memory.
 */
import * as fs from 'node:fs';
import { viewOf } from '../bytes.js';
import { BpfimgError, ClosedPipe, ioError } from '../errors.js';
import { finishChangeBeside } from './journal.js';
import { pause } from './pause.js';
import { type Folder, noOtherLink, type Place, placeOf } from './place.js';
import { removeLeft, temporaryName } from './temporary.js';
import { noLongerUnfinished, unfinished } from './unfinished.js';
import { openWaiting, waiting } from './waiting.js';

const BUFFER = 512 * 1024;

/** Bytes that a buffer has at first: most of what is written is shorter, and large buffers keep the collector busy. */
const FIRST = 8 * 1024;

/**
 * A buffered sink. Inner loops call {@link room} and then write into `bytes` (or `view`) at `at`
 * themselves; each buffer goes out with one system call.
 */
export abstract class Output {
  bytes: Buffer;
  /** `bytes` once more, for writes of several bytes at once. */
  view: DataView;
  at = 0;
  /** Bytes of the row that have left the buffer. */
  protected flushed = 0;
  /** Bytes that leave it at a time. */
  readonly #size: number;

  constructor(
    /** How messages name it. */
    readonly name: string,
    size: number = BUFFER,
  ) {
    this.#size = size;
    this.bytes = Buffer.from(new ArrayBuffer(Math.min(size, FIRST)));
    this.view = viewOf(this.bytes);
  }

  /** Passes `bytes[0..length)` on; returns the buffer to go on with, which may be the same one. */
  protected abstract drain(bytes: Buffer, length: number): Buffer;
  /** Makes what was written final. Nothing may be written afterwards. */
  abstract commit(): Promise<void>;
  /** Takes back what was written, as far as that is possible. */
  abstract abort(): Promise<void>;

  /** For long loops: waits while too much is on its way out, and lets signals be heard. */
  turn(): Promise<void> | undefined {
    return pause();
  }

  /** Bytes written so far. */
  get length(): number {
    return this.flushed + this.at;
  }

  /** Makes sure that `size` bytes can be written into `bytes` at `at`. */
  room(size: number): void {
    if (this.at + size <= this.bytes.length) return;
    if (this.at + size > this.#size) this.flush();
    // Inner loops write at most some windows at once, so this is no way to fill memory.
    if (size > this.bytes.length || this.at > 0) this.#grow(Math.max(size, this.#size));
  }

  #grow(size: number): void {
    const bytes = Buffer.from(new ArrayBuffer(size));
    bytes.set(this.bytes.subarray(0, this.at));
    this.#use(bytes);
  }

  #use(bytes: Buffer): void {
    this.bytes = bytes;
    this.view = viewOf(bytes);
  }

  flush(): void {
    const length = this.at;
    if (length === 0) return;
    this.at = 0;
    this.flushed += length;
    const next = this.drain(this.bytes, length);
    if (next !== this.bytes) this.#use(next);
  }

  write(bytes: Uint8Array): void {
    for (let i = 0; i < bytes.length; ) {
      if (this.at === this.bytes.length) this.room(1);
      const part = Math.min(bytes.length - i, this.bytes.length - this.at);
      this.bytes.set(i === 0 && part === bytes.length ? bytes : bytes.subarray(i, i + part), this.at);
      this.at += part;
      i += part;
    }
  }

  /** Writes text as UTF-8. */
  text(text: string): void {
    // 3 bytes a UTF-16 unit is the most UTF-8 needs.
    if (text.length * 3 <= this.#size) {
      this.room(text.length * 3);
      this.at += this.bytes.write(text, this.at);
    } else {
      this.write(Buffer.from(text));
    }
  }
}

/** Collects what is written; for tests and for small images within the program. */
export class MemoryOutput extends Output {
  readonly #parts: Uint8Array[] = [];
  constructor(name = 'memory', size = 64 * 1024) {
    super(name, size);
  }
  protected override drain(bytes: Buffer, length: number): Buffer {
    this.#parts.push(Buffer.from(bytes.subarray(0, length)));
    return bytes;
  }
  /** Everything written so far. */
  take(): Buffer {
    this.flush();
    return Buffer.concat(this.#parts);
  }
  override async commit(): Promise<void> {
    this.flush();
  }
  override async abort(): Promise<void> {
    this.#parts.length = 0;
    this.at = 0;
  }
}

/** Writes all of `bytes` to a regular file. */
function writeAll(fd: number, name: string, bytes: Uint8Array, length: number, position: number | null): void {
  for (let done = 0; done < length; ) {
    try {
      done += fs.writeSync(fd, bytes, done, length - done, position === null ? null : position + done);
    } catch (error) {
      throw ioError(name, 'write it', error);
    }
  }
}

/** Standard output. */
export function standardOutput(): Output {
  return new OpenOutput(1, 'standard output', fs.fstatSync(1).isFile() ? 'file' : 'stream');
}

/** Buffers on their way to disk at most; the next {@link Output.turn} waits for one to come back. */
const IN_FLIGHT = 4;

/** Bytes after which a file that will be synced starts on its way to disk, while more are made. */
const SYNC_EVERY = 16 * 1024 * 1024;

/** Milliseconds after which a pipe that is full is tried again, when another process made it non-blocking. */
const FULL_PIPE = 2;

/**
 * An open file, pipe or device, written on another thread while the next buffer fills: a reader that stalls keeps
 * that thread, and signals are heard.
 */
class OpenOutput extends Output {
  protected readonly fd: number;
  readonly #kind: 'own' | 'file' | 'stream';
  #unsynced = 0;
  #syncing = false;
  /** Where the next bytes of the row go; null leaves that to the fd, which somebody else may have moved. */
  #position: number | null;
  readonly #queue: { bytes: Buffer; length: number; position: number | null }[] = [];
  readonly #free: Buffer[] = [];
  #writing = false;
  #error: unknown;
  #wake: (() => void) | undefined;

  /** @param kind a file that is `own` is ours alone, from its beginning, and will be synced in the end */
  constructor(fd: number, name: string, kind: 'own' | 'file' | 'stream') {
    super(name);
    this.fd = fd;
    this.#kind = kind;
    this.#position = kind === 'own' ? 0 : null;
  }

  protected override drain(bytes: Buffer, length: number): Buffer {
    this.#queue.push({ bytes, length, position: this.#advance(length) });
    this.#next();
    return this.#free.pop() ?? Buffer.from(new ArrayBuffer(BUFFER));
  }

  /** Where the next `size` bytes of the row go. */
  #advance(size: number): number | null {
    const position = this.#position;
    if (position !== null) this.#position = position + size;
    return position;
  }

  #next(): void {
    const part = this.#queue[0];
    if (part === undefined || this.#writing || this.#error !== undefined) return;
    this.#writing = true;
    let done = 0;
    const wrote = (error: NodeJS.ErrnoException | null, count?: number): void => {
      done += count ?? 0;
      if (error?.code === 'EAGAIN') {
        setTimeout(more, FULL_PIPE);
        return;
      }
      if (!error && done < part.length) {
        more();
        return;
      }
      this.#writing = false;
      this.#error ??= error?.code === 'EPIPE' ? new ClosedPipe() : (error ?? undefined);
      this.#queue.shift();
      this.#free.push(part.bytes);
      this.syncAhead(part.length);
      this.#next();
      this.#wake?.();
    };
    const more = (): void => {
      const position = part.position === null ? null : part.position + done;
      const write = (end: typeof wrote) =>
        fs.write(this.fd, part.bytes, done, part.length - done, position, (error, count) => end(error, count));
      if (this.#kind === 'stream') void waiting<Parameters<typeof wrote>>(write).then((result) => wrote(...result));
      else write(wrote);
    };
    more();
  }

  /** Starts a long file on its way to disk, `written` bytes being new. */
  protected syncAhead(written: number): void {
    this.#unsynced += written;
    if (this.#kind !== 'own' || this.#syncing || this.#unsynced < SYNC_EVERY) return;
    this.#syncing = true;
    this.#unsynced = 0;
    fs.fdatasync(this.fd, (error) => {
      // The kernel reports a failed write-back once: the final sync would not see it again.
      this.#error ??= error ?? undefined;
      this.#syncing = false;
    });
  }

  override turn(): Promise<void> | undefined {
    if (this.#error !== undefined) throw ioError(this.name, 'write it', this.#error);
    return this.#queue.length < IN_FLIGHT ? pause() : this.#until(IN_FLIGHT);
  }

  /** Waits until fewer than `most` buffers are on their way. */
  async #until(most: number): Promise<void> {
    while (this.#queue.length >= most && this.#error === undefined) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = undefined;
    }
    if (this.#error !== undefined) throw ioError(this.name, 'write it', this.#error);
  }

  /** Leaves out `size` bytes of the row, which stand there already or will. */
  protected async pass(size: number): Promise<void> {
    this.flush();
    await this.#until(1);
    this.#advance(size);
    this.flushed += size;
  }

  /** Writes everything out. */
  protected async settle(): Promise<void> {
    if (this.#kind !== 'stream' && this.#queue.length === 0 && this.#error === undefined && this.at > 0) {
      // A small file is written at once: a thread would only cost time.
      const length = this.at;
      this.at = 0;
      this.flushed += length;
      writeAll(this.fd, this.name, this.bytes, length, this.#advance(length));
      return;
    }
    this.flush();
    await this.#until(1);
    await this.quiet();
    if (this.#error !== undefined) throw ioError(this.name, 'write it', this.#error);
  }

  /** Drops what is not yet on its way and waits until nobody uses the fd any more. */
  protected async quiet(): Promise<void> {
    this.at = 0;
    this.#queue.length = this.#writing ? 1 : 0;
    // A reader may never take what is under way.
    if (this.#kind === 'stream') return;
    while (this.#writing || this.#syncing) await new Promise((resolve) => setImmediate(resolve));
  }

  override commit(): Promise<void> {
    return this.settle();
  }

  override abort(): Promise<void> {
    return this.quiet();
  }
}

/** Bytes that {@link FileOutput.move} holds. */
const MOVED_AT_ONCE = 4 * 1024 * 1024;

/** Bytes that are read or written without handing them to a thread. */
const AT_ONCE = 64 * 1024;

/**
 * A regular file under a temporary name in its folder, mode 0600 because map contents can be secrets;
 * {@link commit} syncs it and gives it its name.
 */
export class FileOutput extends OpenOutput {
  /** What it is called until it is done, in the same folder. */
  readonly #temporary: string;
  readonly #folder: Folder;
  #open = true;
  /** Where the bytes end that {@link writeAt} wrote. */
  #end = 0;
  /** Calls of {@link writeAt} and {@link move} that use the fd. */
  #running = 0;

  /** @param place where it will stand; the output closes the folder */
  constructor(
    readonly place: Pick<Place, 'folder' | 'name'>,
    name: string,
  ) {
    const { folder } = place;
    const temporary = folder.at(temporaryName(place.name));
    try {
      super(fs.openSync(temporary, 'wx+', 0o600), name, 'own');
    } catch (error) {
      folder.close();
      throw ioError(name, 'create it', error);
    }
    this.#folder = folder;
    this.#temporary = temporary;
    unfinished(temporary);
  }

  /**
   * Writes at a place of its own, behind all that was written in a row; {@link skip} takes it into the row.
   * Several may be under way. `bytes` are in use until it resolves.
   */
  async writeAt(bytes: Uint8Array, position: number): Promise<void> {
    this.#end = Math.max(this.#end, position + bytes.length);
    for (let done = 0; done < bytes.length; ) {
      const size = bytes.length - done;
      done += await this.#io<number>(
        size,
        () => fs.writeSync(this.fd, bytes, done, size, position + done),
        (end) => fs.write(this.fd, bytes, done, size, position + done, end),
      );
    }
    this.syncAhead(bytes.length);
  }

  /** Moves what {@link writeAt} wrote, towards the file's beginning or its end. */
  async move(from: number, to: number, size: number): Promise<void> {
    if (from === to) return;
    const buffer = Buffer.from(new ArrayBuffer(Math.min(size, MOVED_AT_ONCE)));
    for (let done = 0; done < size; ) {
      const part = buffer.subarray(0, Math.min(size - done, buffer.length));
      // Parts overlap: the way there decides which end goes first.
      const at = to < from ? done : size - done - part.length;
      for (let got = 0; got < part.length; ) {
        const rest = part.length - got;
        const count = await this.#io<number>(
          rest,
          () => fs.readSync(this.fd, part, got, rest, from + at + got),
          (end) => fs.read(this.fd, part, got, rest, from + at + got, end),
        );
        if (count === 0) throw new Error(`${this.name}: shorter than what was written`);
        got += count;
      }
      await this.writeAt(part, to + at);
      done += part.length;
    }
  }

  /** Goes on behind the next `size` bytes, which {@link writeAt} has written. */
  skip(size: number): Promise<void> {
    return this.pass(size);
  }

  /** Reads or writes `size` bytes: at once where that takes less time than asking another thread for it. */
  async #io<T>(size: number, now: () => T, call: (end: (error: Error | null, result: T) => void) => void): Promise<T> {
    if (size <= AT_ONCE) {
      try {
        return now();
      } catch (error) {
        throw ioError(this.name, 'write it', error);
      }
    }
    this.#running++;
    return new Promise((resolve, reject) => {
      call((error, result) => {
        this.#running--;
        if (error) reject(ioError(this.name, 'write it', error));
        else resolve(result);
      });
    });
  }

  protected override async quiet(): Promise<void> {
    await super.quiet();
    // Once in any case: what has been begun and has not come to its next read or write yet does so before.
    do await new Promise((resolve) => setImmediate(resolve));
    while (this.#running > 0);
  }

  /** Brings everything to disk and closes the file, which keeps its temporary name. */
  async finish(): Promise<void> {
    if (!this.#open) return;
    await this.settle();
    if (this.#end > this.length) fs.ftruncateSync(this.fd, this.length);
    try {
      await new Promise<void>((resolve, reject) => {
        fs.fsync(this.fd, (error) => (error ? reject(error) : resolve()));
      });
    } catch (error) {
      throw ioError(this.name, 'write it', error);
    }
    this.#close();
  }

  #close(): void {
    this.#open = false;
    fs.closeSync(this.fd);
  }

  /** Gives the file its name, in place of what stood there. */
  override async commit(): Promise<void> {
    try {
      await this.finish();
      try {
        fs.renameSync(this.#temporary, this.#folder.at(this.place.name));
      } catch (error) {
        throw ioError(this.name, 'put it in place', error);
      }
    } catch (error) {
      await this.abort();
      throw error;
    }
    noLongerUnfinished(this.#temporary);
    this.#folder.sync();
    this.#folder.close();
  }

  override async abort(): Promise<void> {
    await this.quiet();
    if (this.#open) this.#close();
    if (!noLongerUnfinished(this.#temporary)) return;
    fs.rmSync(this.#temporary, { force: true });
    this.#folder.close();
  }
}

/** Opens `file` for writing: atomically when it is or will be a regular file, as a stream otherwise. */
export async function openOutput(file: string): Promise<Output> {
  let place: Place;
  try {
    finishChangeBeside(file);
    // What a link leads to is replaced; the link stays.
    place = placeOf(file);
  } catch (error) {
    throw ioError(file, 'create it', error);
  }
  const { folder, name, entry, stat } = place;
  const isFolder = stat?.isDirectory() || file.endsWith('/');
  if (!isFolder && (stat === undefined || stat.isFile())) {
    removeLeft(folder, name);
    return new FileOutput(place, file);
  }
  try {
    if (isFolder) throw new BpfimgError('io', 'it is a folder, expected a file to write', { subject: file });
    const fd = await openWaiting(folder.at(name), fs.constants.O_WRONLY | noOtherLink(entry));
    if (!fs.fstatSync(fd).isFile()) return new OpenOutput(fd, file, 'stream');
    fs.closeSync(fd);
    throw new BpfimgError('io', 'it was a pipe or device, and is a file now', { subject: file });
  } catch (error) {
    throw ioError(file, 'write it', error);
  } finally {
    folder.close();
  }
}
