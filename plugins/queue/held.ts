/**
 * Values that are nowhere else while they are here: each has its place before it comes, and a disk that fails
 * does not lose it.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { BpfimgError, ioError } from '../../src/errors.js';
import { errnoName } from '../../src/kernel/error.js';
import { ERRNO, type Sys } from '../../src/kernel/sys.js';

/** Bytes that are held in memory, without a file. */
const IN_MEMORY = 4 * 1024 * 1024;
/** Bytes that go to the file in one go: at least one value. */
const PART = 1024 * 1024;

/** Values of one size, in the order they came. */
export class HeldItems {
  count = 0;
  /** Parts that are not in the file: the last one, and those that the file did not take. */
  readonly #parts = new Map<number, Buffer>();
  readonly #inPart: number;
  #last: Buffer = Buffer.alloc(0);
  readonly #fd: number | undefined;
  #spare: Buffer | undefined;
  #read: { readonly part: number; readonly bytes: Buffer } | undefined;

  /**
   * Makes sure of room for `most` values of `size` bytes: in memory where that is little, else on the disk that
   * has `folder`.
   * @param name how messages name what they are of
   * @throws BpfimgError when there is not so much
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

  /** The place of the next value; {@link took} says that it is there. */
  place(): Buffer {
    if (this.count >= this.most) throw new Error(`${this.name}: more than ${this.most} values`);
    const at = this.count % this.#inPart;
    if (at === 0) {
      // First of all: without memory nothing may come.
      this.#last = this.#spare ?? Buffer.alloc(this.#inPart * this.size);
      this.#spare = undefined;
      this.#parts.set(this.count / this.#inPart, this.#last);
    }
    return this.#last.subarray(at * this.size, (at + 1) * this.size);
  }

  took(): void {
    this.count++;
    if (this.count % this.#inPart === 0) this.#store(this.count / this.#inPart - 1);
  }

  /** Moves a part to the file. One that the file does not take stays in memory: flat memory is worth less. */
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
   * The value at `index` and some that follow it, lent until the next call.
   * @throws BpfimgError
   */
  from(index: number): Buffer {
    const part = Math.floor(index / this.#inPart);
    return (this.#parts.get(part) ?? this.#stored(part)).subarray((index % this.#inPart) * this.size);
  }

  #stored(part: number): Buffer {
    if (this.#read?.part === part) return this.#read.bytes;
    const bytes = this.#read?.bytes ?? Buffer.alloc(this.#inPart * this.size);
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
    this.#last = Buffer.alloc(0);
    this.#read = this.#spare = undefined;
    if (this.#fd !== undefined) fs.closeSync(this.#fd);
  }
}

/** Opens a file without a name that has `size` bytes of a disk, whatever happens. */
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

/** Has a file system without fallocate(2) take the bytes, to the disk: some say only there that it is full. */
function writeZeros(fd: number, size: number): void {
  const zeros = Buffer.alloc(PART);
  for (let done = 0; done < size; ) done += fs.writeSync(fd, zeros, 0, Math.min(PART, size - done), done);
  fs.fdatasyncSync(fd);
}
