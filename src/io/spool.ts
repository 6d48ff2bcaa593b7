/**
 * A spool keeps bytes that are needed later than they arrive: in memory if they are few, in an unlinked temporary
 * file if they are many, so that memory use stays flat.
 */
import * as fs from 'node:fs';
import { ioError } from '../errors.js';
import { bufferInput, Cursor, fileInput, type Input } from './input.js';
import { Output } from './output.js';
import { Folder } from './place.js';
import { temporaryFolder } from './temporary.js';

/** Bytes kept in memory before a spool moves to a file. */
const IN_MEMORY = 4 * 1024 * 1024;

/** A temporary file to write and then read. Once opened, it has no name in the file system. */
export class Spool extends Output {
  #parts: Buffer[] = [];
  #inMemory = 0;
  #fd: number | undefined;

  constructor(name = 'temporary file') {
    super(name, 64 * 1024);
  }

  protected override drain(bytes: Buffer, length: number): Buffer {
    if (this.#fd === undefined) {
      this.#parts.push(Buffer.from(bytes.subarray(0, length)));
      this.#inMemory += length;
      if (this.#inMemory <= IN_MEMORY) return bytes;
      this.#moveToFile();
      // From here on, fewer but larger writes are faster.
      return Buffer.from(new ArrayBuffer(512 * 1024));
    }
    this.#append(bytes, length);
    return bytes;
  }

  #append(bytes: Uint8Array, length: number): void {
    try {
      for (let done = 0; done < length; ) done += fs.writeSync(this.#fd as number, bytes, done, length - done);
    } catch (error) {
      throw ioError(`${this.name} in ${temporaryFolder()}`, 'write it', error);
    }
  }

  #moveToFile(): void {
    let folder: Folder | undefined;
    try {
      folder = new Folder(temporaryFolder());
      const file = folder.at(`.bpfimg-${process.pid}-${Math.random().toString(36).slice(2)}`);
      this.#fd = fs.openSync(file, 'wx+', 0o600);
      fs.unlinkSync(file);
    } catch (error) {
      throw ioError(`${this.name} in ${temporaryFolder()}`, 'create it', error);
    } finally {
      folder?.close();
    }
    const parts = this.#parts;
    this.#parts = [];
    for (const part of parts) this.#append(part, part.length);
  }

  /** The written bytes as an input named `name`. It is valid until more is written or the spool is closed. */
  input(name: string = this.name): Input {
    this.flush();
    if (this.#fd !== undefined) return fileInput(this.#fd, name, this.length, undefined, false);
    return bufferInput(this.#parts.length === 1 ? (this.#parts[0] as Buffer) : Buffer.concat(this.#parts), name);
  }

  override async commit(): Promise<void> {
    this.flush();
  }

  override async abort(): Promise<void> {
    this.close();
  }

  /** Frees the memory or the disk space. */
  close(): void {
    this.#parts = [];
    this.at = 0;
    if (this.#fd !== undefined) fs.closeSync(this.#fd);
    this.#fd = undefined;
  }
}

/** Copies the bytes of a pipe to a spool, so that they can be read at any position. Owns `input`. */
export async function setAside(input: Input): Promise<Input> {
  const spool = new Spool();
  try {
    const cursor = new Cursor(input);
    while ((await cursor.fill()) > 0) {
      spool.write(cursor.bytes.subarray(cursor.at, cursor.end));
      cursor.at = cursor.end;
    }
  } catch (error) {
    spool.close();
    throw error;
  } finally {
    input.close();
  }
  return { ...spool.input(input.name), close: () => spool.close() };
}
