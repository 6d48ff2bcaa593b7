/** Records put aside in parts: one temporary file for all parts, a buffer for each. */
import { viewOf } from '../bytes.js';
import type { Input } from '../io/input.js';
import { Spool } from '../io/spool.js';

const EMPTY = Buffer.alloc(0);

/** Records of one size in parts. Each part is read in the order in which it was written. Close it. */
export class Parts {
  /** Where {@link slot} has made room. */
  page: Buffer = EMPTY;
  view: DataView = viewOf(EMPTY);
  /** Bytes of a page. */
  readonly #pageSize: number;
  readonly #open: ({ readonly page: Buffer; readonly view: DataView; used: number } | undefined)[];
  /** Positions of the full pages of each part in the file. */
  readonly #pages: number[][];
  readonly #spool = new Spool();
  #input: Input | undefined;

  /**
   * @param size bytes of a record
   * @param page bytes that each part buffers, or more if a record is larger
   */
  constructor(
    readonly count: number,
    readonly size: number,
    page = 64 * 1024,
  ) {
    this.#pageSize = Math.max(1, Math.floor(page / size)) * size;
    this.#open = new Array(count).fill(undefined);
    this.#pages = Array.from({ length: count }, () => []);
  }

  /** Makes room for a record of `part`; returns its position in {@link page}. */
  slot(part: number): number {
    let open = this.#open[part];
    if (open === undefined) {
      const page = Buffer.from(new ArrayBuffer(this.#pageSize));
      open = { page, view: viewOf(page), used: 0 };
      this.#open[part] = open;
    } else if (open.used === this.#pageSize) {
      (this.#pages[part] as number[]).push(this.#spool.length);
      this.#spool.write(open.page);
      open.used = 0;
    }
    const at = open.used;
    open.used += this.size;
    this.page = open.page;
    this.view = open.view;
    return at;
  }

  /** The records of a part, some at a time, valid until the next are read. Nothing may be added after that. */
  async *read(part: number): AsyncGenerator<Buffer> {
    const pages = this.#pages[part] as number[];
    if (pages.length > 0) {
      this.#input ??= this.#spool.input();
      const bytes = Buffer.from(new ArrayBuffer(this.#pageSize));
      for (const position of pages) {
        for (let got = 0; got < bytes.length; ) got += await this.#input.read(bytes.subarray(got), position + got);
        yield bytes;
      }
    }
    const open = this.#open[part];
    if (open !== undefined) yield open.page.subarray(0, open.used);
  }

  close(): void {
    this.#spool.close();
  }
}
