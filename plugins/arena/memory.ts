/**
 * The memory of arenas, which has the same address for everyone who maps it.
 *
 * There is no way to ask whether a page exists: touching a missing page creates it, unless the arena has
 * BPF_F_SEGV_ON_FAULT. But procfs shows which pages of a mapped arena a process has touched, and those exist.
 */
import * as fs from 'node:fs';
import { MAP_FLAG, MAP_LINK } from '../../src/kernel/abi.js';
import { KernelError } from '../../src/kernel/error.js';
import type { BpfMap, Mapping } from '../../src/kernel/map.js';
import { type OpenMap, openMaps } from '../../src/kernel/proc.js';
import { ERRNO } from '../../src/kernel/sys.js';

/** Entries of pagemap that are read at once. */
const ENTRIES = 65_536;
/** Bytes of an entry; the highest bit of the last byte means that the page exists (admin-guide/mm/pagemap.rst). */
const ENTRY = 8;
const PAGE_PRESENT = 0x80;

/** An arena, mapped at its address. Mapping it creates no pages. */
export class Arena implements Disposable {
  readonly #memory: Mapping;
  readonly #fd: number;

  /**
   * @param address its map_extra; not 0
   * @throws KernelError if it cannot be mapped: something else may be at its address
   */
  constructor(
    readonly map: BpfMap,
    readonly address: bigint,
    writable = false,
  ) {
    this.#memory = map.mmap({ address, length: map.maxEntries * map.sys.pageSize, writable });
    try {
      this.#fd = fs.openSync(`${map.sys.proc}/self/mem`, 'r');
    } catch (error) {
      this.#memory.close();
      throw error;
    }
  }

  /** Whether touching a missing page is an error and does not create it. */
  get faultsOnMissing(): boolean {
    return (this.map.flags & MAP_FLAG.SEGV_ON_FAULT) !== 0;
  }

  /**
   * The pages that processes have touched, one byte per page: 0 for untouched pages.
   * @returns undefined if we see no process that has it mapped
   */
  touched(): Uint8Array | undefined {
    const pages = new Uint8Array(this.map.maxEntries);
    const { proc } = this.map.sys;
    const open = openMaps(proc).open.filter(({ map }) => map.type === this.map.type && map.extra === this.address);
    let seen = false;
    for (const pid of new Set(open.filter((one) => this.#isOf(one)).map(({ holder }) => holder.pid))) {
      // If two arenas have the same address, the process may have mapped the other one.
      if (open.some((one) => one.holder.pid === pid && !this.#isOf(one))) continue;
      if (pid !== process.pid && this.#markPresent(`${proc}/${pid}`, pages)) seen = true;
    }
    return seen ? pages : undefined;
  }

  #isOf({ map }: OpenMap): boolean {
    return map.id === this.map.id;
  }

  /** Marks the pages that a process has touched; false if it does not have the arena mapped. */
  #markPresent(folder: string, pages: Uint8Array): boolean {
    const size = BigInt(this.map.sys.pageSize);
    const [from, to] = [this.address, this.address + BigInt(pages.length) * size].map((at) =>
      at.toString(16).padStart(8, '0'),
    );
    let fd: number;
    try {
      const own = new RegExp(`^${from}-${to} .* ${MAP_LINK}$`, 'm');
      if (!own.test(fs.readFileSync(`${folder}/maps`, 'latin1'))) return false;
      fd = fs.openSync(`${folder}/pagemap`, 'r');
    } catch {
      // It has ended, or we may not look at it.
      return false;
    }
    try {
      const entries = Buffer.alloc(ENTRY * Math.min(ENTRIES, pages.length));
      const first = this.address / size;
      for (let page = 0; page < pages.length; ) {
        const want = ENTRY * Math.min(ENTRIES, pages.length - page);
        const got = fs.readSync(fd, entries, 0, want, (first + BigInt(page)) * BigInt(ENTRY));
        // A process that is ending has no memory any more.
        if (got < ENTRY) break;
        for (let at = 0; at + ENTRY <= got; at += ENTRY, page++) {
          if (((entries[at + ENTRY - 1] as number) & PAGE_PRESENT) !== 0) pages[page] = 1;
        }
      }
    } finally {
      fs.closeSync(fd);
    }
    return true;
  }

  /** Reads pages into `into`, starting at `page`; returns how many it found before the first missing one. */
  read(page: number, into: Buffer): number {
    const { sys } = this.map;
    const at = this.address + BigInt(page) * BigInt(sys.pageSize);
    // Through the file, because touching a missing page would be SIGSEGV.
    const got = sys.pread(this.#fd, into, at);
    if (got >= 0) return Math.floor(got / sys.pageSize);
    if (got === -ERRNO.EIO) return 0;
    throw new KernelError(this.map.subject, 'pread', -got).of(`page ${page}`);
  }

  /** Writes a page, which is created if it does not exist. */
  write(page: number, bytes: Uint8Array): void {
    this.#memory.bytes.set(bytes, page * this.map.sys.pageSize);
  }

  close(): void {
    fs.closeSync(this.#fd);
    this.#memory.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
