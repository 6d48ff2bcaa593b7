/** Writes archives: an ordinary tar of a folder, identical for identical files, with a digest of each. */
import type { Hash } from 'node:crypto';
import { BpfimgError } from '../errors.js';
import type { Input } from '../io/input.js';
import { Output } from '../io/output.js';
import { Spool } from '../io/spool.js';
import { copyInput } from '../io/stream.js';
import { BLOCK, type HeaderOptions, makeHeader, makeRecords, needsRecord, padding } from './header.js';
import { newHash, SUMS, type Sums, sumsText } from './sums.js';

/** Header of a plain file and, if that does not suffice, a record before it. */
export function fileHeader(name: string, size: number, options: HeaderOptions): Buffer {
  const records: [string, string][] = [];
  const long = name.length > 100;
  if (long || /[^\0-\x7e]/.test(name)) records.push(['path', name]);
  if (needsRecord(size)) records.push(['size', String(size)]);
  const header = makeHeader(long ? name.slice(-100) : name, '0', size, options);
  return records.length === 0 ? header : Buffer.concat([recordHeader(records, options), header]);
}

/** A header with records for the next one. */
export function recordHeader(records: readonly (readonly [string, string])[], options: HeaderOptions): Buffer {
  const body = makeRecords(records);
  const header = makeHeader('PaxHeaders/bpfimg', 'x', body.length, options);
  return Buffer.concat([header, body, Buffer.alloc(padding(body.length))]);
}

/** Writes an archive to an output, file after file. The caller commits the output. */
export class ArchiveOutput {
  readonly #out: Output;
  readonly #options: HeaderOptions;
  readonly #sums: Sums = new Map();

  /**
   * @param out to compress the archive, see `compressing`
   * @param mtime seconds since 1970, of all files
   */
  constructor(out: Output, mtime: number) {
    this.#out = out;
    this.#options = { mode: 0o600, mtime };
  }

  /** Adds a file of `size` bytes; `write` must write exactly that many. */
  async file(name: string, size: number, write: (out: Output) => Promise<void>): Promise<void> {
    const out = this.#out;
    out.write(fileHeader(name, size, this.#options));
    const entry = new EntryOutput(out, name, await newHash());
    await write(entry);
    entry.flush();
    if (entry.length !== size) {
      throw new BpfimgError('io', `${entry.length} bytes were written, expected ${size}`, {
        subject: out.name,
        part: name,
      });
    }
    out.write(Buffer.alloc(padding(size)));
    this.#sums.set(name, entry.hash.digest('hex'));
    await out.turn();
  }

  /** Adds the contents of `input`, which has a size. */
  async input(name: string, input: Input): Promise<void> {
    const size = input.size as number;
    await this.file(name, size, (out) => copyInput(input, 0, size, out));
  }

  /** Adds a file whose size is known only after writing: it goes into a spool first. */
  async spooled(name: string, write: (out: Output) => Promise<void>): Promise<void> {
    const spool = new Spool();
    try {
      await write(spool);
      await this.input(name, spool.input(name));
    } finally {
      spool.close();
    }
  }

  /** Adds the digests and the end of the archive. */
  async finish(): Promise<void> {
    const text = Buffer.from(sumsText(this.#sums), 'latin1');
    this.#out.write(fileHeader(SUMS, text.length, this.#options));
    this.#out.write(text);
    this.#out.write(Buffer.alloc(padding(text.length) + 2 * BLOCK));
    await this.#out.turn();
  }
}

/** Passes the bytes of one file into the archive. */
class EntryOutput extends Output {
  constructor(
    readonly out: Output,
    name: string,
    readonly hash: Hash,
  ) {
    super(name, 256 * 1024);
  }

  protected override drain(bytes: Buffer, length: number): Buffer {
    const part = bytes.subarray(0, length);
    this.hash.update(part);
    this.out.write(part);
    return bytes;
  }

  override async turn(): Promise<void> {
    await this.out.turn();
  }

  override async commit(): Promise<void> {
    this.flush();
  }

  override async abort(): Promise<void> {}
}
