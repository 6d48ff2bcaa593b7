/**
 * Destinations for bytes: a file that appears complete or not at all, standard output, or memory.
 */
import * as fs from 'node:fs';
import { viewOf } from '../bytes.js';
import { BpfimgError, ClosedPipe, ioError } from '../errors.js';
import { finishChangeBeside } from './journal.js';
import { pause } from './pause.js';
import { type Folder, noOtherLink, type Place, placeOf } from './place.js';
import { isScratch, removeLeft, temporaryName } from './temporary.js';
import { noLongerUnfinished, unfinished } from './unfinished.js';
import { openWaiting, waiting } from './waiting.js';

const BUFFER = 512 * 1024;

/** Initial size of a buffer. Most outputs are shorter, and large buffers keep the garbage collector busy. */
const FIRST = 8 * 1024;

/**
 * A buffered sink. Inner loops call {@link room} and then write directly into `bytes` (or `view`) at `at`;
 * each buffer is written out with one system call.
 */
export abstract class Output {
  bytes: Buffer;
  /** `bytes` as a view, for writes of several bytes at once. */
  view: DataView;
  at = 0;
  /** Bytes of the sequential output that have left the buffer. */
  protected flushed = 0;
  /** Bytes that leave the buffer at a time. */
  readonly #size: number;

  constructor(
    /** Its name in messages. */
    readonly name: string,
    size: number = BUFFER,
  ) {
    this.#size = size;
    this.bytes = Buffer.from(new ArrayBuffer(Math.min(size, FIRST)));
    this.view = viewOf(this.bytes);
  }

  /** Passes `bytes[0..length)` on; returns the buffer to use next, which may be the same one. */
  protected abstract drain(bytes: Buffer, length: number): Buffer;
  /** Makes what was written final. Nothing may be written afterwards. */
  abstract commit(): Promise<void>;
  /** Discards what was written, as far as possible. */
  abstract abort(): Promise<void>;

  /** For long loops: waits while too much output is pending, and lets signal handlers run. */
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
    // Inner loops write at most a few windows at once, so this cannot fill memory.
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
    // UTF-8 needs at most 3 bytes for each UTF-16 unit.
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

/** Most buffers being written at a time; at this number, {@link Output.turn} waits for one to finish. */
const IN_FLIGHT = 4;

/** After this many bytes, a file that will be synced starts its write-back early. */
const SYNC_EVERY = 16 * 1024 * 1024;

/** Milliseconds before a full pipe is tried again, if another process made it non-blocking. */
const FULL_PIPE = 2;

/**
 * An open file, pipe or device, written on another thread while the next buffer fills: a stalled reader blocks
 * only that thread, and signal handlers still run.
 */
class OpenOutput extends Output {
  protected readonly fd: number;
  readonly #kind: 'own' | 'file' | 'stream';
  #unsynced = 0;
  #syncing = false;
  /** File position of the next sequential bytes; null uses the fd's own position, which others may have moved. */
  #position: number | null;
  readonly #queue: { bytes: Buffer; length: number; position: number | null }[] = [];
  readonly #free: Buffer[] = [];
  #writing = false;
  #error: unknown;
  #wake: (() => void) | undefined;

  /** @param kind an `own` file is new and only ours, and will be synced at the end */
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

  /** File position of the next `size` sequential bytes. */
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

  /** Starts the write-back of a long file; `written` bytes are new. */
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

  /** Waits until fewer than `most` buffers are being written. */
  async #until(most: number): Promise<void> {
    while (this.#queue.length >= most && this.#error === undefined) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = undefined;
    }
    if (this.#error !== undefined) throw ioError(this.name, 'write it', this.#error);
  }

  /** Skips `size` sequential bytes, which are written separately. */
  protected async pass(size: number): Promise<void> {
    this.flush();
    await this.#until(1);
    this.#advance(size);
    this.flushed += size;
  }

  /** Writes everything out. */
  protected async settle(): Promise<void> {
    if (this.#kind !== 'stream' && this.#queue.length === 0 && this.#error === undefined && this.at > 0) {
      // A small file is written directly: a thread would only cost time.
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

  /** Drops what is not yet being written, and waits until no call uses the fd. */
  protected async quiet(): Promise<void> {
    this.at = 0;
    this.#queue.length = this.#writing ? 1 : 0;
    // A reader may never read what is being written.
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

/** Bytes that {@link FileOutput.move} keeps in memory. */
const MOVED_AT_ONCE = 4 * 1024 * 1024;

/** Up to this many bytes are read or written without another thread. */
const AT_ONCE = 64 * 1024;

/**
 * A regular file under a temporary name in its folder, mode 0600 because map contents can be secrets;
 * {@link commit} syncs it and gives it its name.
 */
export class FileOutput extends OpenOutput {
  /** Its name in the same folder until it is complete. */
  readonly #temporary: string;
  readonly #folder: Folder;
  #open = true;
  /** End of the bytes that {@link writeAt} wrote. */
  #end = 0;
  /** Calls of {@link writeAt} and {@link move} that use the fd. */
  #running = 0;
  readonly #durable: boolean;

  /**
   * @param place its final place; the output closes the folder
   * @param part it is one of several files, whose folder is synced when all of them have their names
   */
  constructor(
    readonly place: Pick<Place, 'folder' | 'name'>,
    name: string,
    private readonly part = false,
  ) {
    const { folder } = place;
    const temporary = folder.at(temporaryName(place.name));
    try {
      super(fs.openSync(temporary, 'wx+', 0o600), name, 'own');
    } catch (error) {
      folder.close();
      throw ioError(name, 'create it', error);
    }
    this.#durable = !isScratch(name);
    this.#folder = folder;
    this.#temporary = temporary;
    unfinished(temporary);
  }

  protected override syncAhead(written: number): void {
    if (this.#durable) super.syncAhead(written);
  }

  /**
   * Writes at a given position, after everything written sequentially so far; {@link skip} then includes it in the
   * sequence. Several calls may run at once. Do not change `bytes` until it resolves.
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

  /** Moves bytes that {@link writeAt} wrote, towards the file's beginning or its end. */
  async move(from: number, to: number, size: number): Promise<void> {
    if (from === to) return;
    const buffer = Buffer.from(new ArrayBuffer(Math.min(size, MOVED_AT_ONCE)));
    for (let done = 0; done < size; ) {
      const part = buffer.subarray(0, Math.min(size - done, buffer.length));
      // Source and target overlap, so the direction decides which end is moved first.
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

  /** Continues the sequence after the next `size` bytes, which {@link writeAt} has written. */
  skip(size: number): Promise<void> {
    return this.pass(size);
  }

  /** Reads or writes `size` bytes: directly if that is faster than asking another thread. */
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
    // At least once, so that calls that have started can reach their next read or write.
    do await new Promise((resolve) => setImmediate(resolve));
    while (this.#running > 0);
  }

  /** Gives the file this mode, and the owner if one is named, in place of 0600 and us. */
  permit({ mode, uid = -1, gid = -1 }: { mode: number; uid?: number; gid?: number }): void {
    try {
      fs.fchownSync(this.fd, uid, gid);
      fs.fchmodSync(this.fd, mode & 0o7777);
    } catch (error) {
      throw ioError(this.name, 'give it its mode and owner', error);
    }
  }

  /** Brings everything to disk and closes the file, which keeps its temporary name. */
  async finish(): Promise<void> {
    if (!this.#open) return;
    await this.settle();
    if (this.#end > this.length) fs.ftruncateSync(this.fd, this.length);
    try {
      if (!this.#durable) return this.#close();
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

  /** Gives the file its final name, replacing any existing file. */
  override async commit(): Promise<void> {
    try {
      await this.finish();
      try {
        fs.renameSync(this.#temporary, this.#folder.at(this.place.name));
      } catch (error) {
        throw ioError(this.name, 'rename it into place', error);
      }
    } catch (error) {
      await this.abort();
      throw error;
    }
    noLongerUnfinished(this.#temporary);
    if (this.#durable && !this.part) this.#folder.sync();
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
    // The target of a link is replaced; the link stays.
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
    throw new BpfimgError('io', 'it was a pipe or device, but is now a file', { subject: file });
  } catch (error) {
    throw ioError(file, 'write it', error);
  } finally {
    folder.close();
  }
}
