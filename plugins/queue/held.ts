/**
 * Keeps values that exist nowhere else: room for each is reserved before it arrives, and a failing disk does not lose
 * it.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { BpfimgError, ioError } from '../../src/errors.js';
import { errnoName } from '../../src/kernel/error.js';
import { ERRNO, pinned, type Sys } from '../../src/kernel/sys.js';

/** Bytes that are held in memory, without a file. */
const IN_MEMORY = 4 * 1024 * 1024;
/** Bytes that are written to the file at once: at least one value. */
const PART = 1024 * 1024;

/** Values of one size, in the order they came. */
export class HeldItems {
  count = 0;
  /** Parts that are not in the file: the last one, and those that could not be written. */
  readonly #parts = new Map<number, Buffer>();
  readonly #inPart: number;
  #last: Buffer = pinned(0);
  readonly #fd: number | undefined;
  #spare: Buffer | undefined;
  #read: { readonly part: number; readonly bytes: Buffer } | undefined;

  /**
   * Reserves room for `most` values of `size` bytes: in memory if they are few, otherwise on the disk of `folder`.
   * @param name what messages call the map
   * @throws BpfimgError if there is not enough
   */
  constructor(
    sys: Sys,
    folder: string,
    readonly name: string,
    readonly size: number,
    readonly most: number,
  ) {
    this.#inPart = Math.max(1, Math.min(most, Math.floor(PART / size)));
    this.#fd = size * most <= IN_MEMORY ? undefined : reserve(sys, folder, name, size * most);
  }

  /**
   * Lets `take` put the next value into a buffer, at a position.
   * @param take returns whether a value has arrived
   */
  next(take: (into: Buffer, at: number) => boolean): boolean {
    if (this.count >= this.most) throw new Error(`${this.name}: more than ${this.most} values`);
    const at = this.count % this.#inPart;
    if (at === 0) {
      // First, because without memory no value may arrive.
      this.#last = this.#spare ?? pinned(this.#inPart * this.size);
      this.#spare = undefined;
      this.#parts.set(this.count / this.#inPart, this.#last);
    }
    if (!take(this.#last, at * this.size)) return false;
    this.count++;
    if (this.count % this.#inPart === 0) this.#store(this.count / this.#inPart - 1);
    return true;
  }

  /** Moves a part to the file. If it cannot be written, it stays in memory: that matters more than flat memory. */
  #store(part: number): void {
    if (this.#fd === undefined) return;
    const bytes = this.#last;
    try {
      for (let done = 0; done < bytes.length; ) {
        done += fs.writeSync(this.#fd, bytes, done, bytes.length - done, part * bytes.length + done);
      }
    } catch {
      return;
    }
    this.#parts.delete(part);
    this.#spare = bytes;
  }

  /**
   * The value at `index`, where it is among others, lent until the next call.
   * @throws BpfimgError
   */
  with(index: number): { readonly bytes: Buffer; readonly at: number } {
    const part = Math.floor(index / this.#inPart);
    return { bytes: this.#parts.get(part) ?? this.#stored(part), at: (index % this.#inPart) * this.size };
  }

  #stored(part: number): Buffer {
    if (this.#read?.part === part) return this.#read.bytes;
    const bytes = this.#read?.bytes ?? pinned(this.#inPart * this.size);
    this.#read = undefined;
    try {
      for (let done = 0; done < bytes.length; ) {
        const got = fs.readSync(this.#fd as number, bytes, done, bytes.length - done, part * bytes.length + done);
        if (got === 0) throw new Error('the file has become shorter');
        done += got;
      }
    } catch (error) {
      throw ioError(`${this.name}: what was taken out`, 'read it', error);
    }
    this.#read = { part, bytes };
    return bytes;
  }

  close(): void {
    this.#parts.clear();
    this.#last = pinned(0);
    this.#read = this.#spare = undefined;
    if (this.#fd !== undefined) fs.closeSync(this.#fd);
  }
}

/** Opens an unnamed file for which `size` bytes of the disk are reserved. */
function reserve(sys: Sys, folder: string, name: string, size: number): number {
  const file = path.join(folder, `.bpfimg-${process.pid}-${Math.random().toString(36).slice(2)}`);
  let fd: number | undefined;
  try {
    fd = fs.openSync(file, 'wx+', 0o600);
    fs.unlinkSync(file);
    const result = sys.allocate(fd, size);
    if (-result === ERRNO.EOPNOTSUPP || -result === ERRNO.ENOSYS) writeZeros(fd, size);
    else if (result < 0) throw Object.assign(new Error('fallocate'), { code: errnoName(-result) });
    return fd;
  } catch (error) {
    if (fd !== undefined) fs.closeSync(fd);
    const { message } = ioError(folder, `reserve ${size} bytes`, error);
    throw new BpfimgError('io', `no items were removed: ${message}`, { subject: name, cause: error });
  }
}

/** Without fallocate(2): writes and syncs the bytes; some file systems notice only then that they are full. */
function writeZeros(fd: number, size: number): void {
  const zeros = Buffer.alloc(PART);
  for (let done = 0; done < size; ) done += fs.writeSync(fd, zeros, 0, Math.min(PART, size - done), done);
  fs.fdatasyncSync(fd);
}
