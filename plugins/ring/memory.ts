/**
 * The memory of ring buffers (struct bpf_ringbuf): a page with the position up to which records were read, a page with
 * the position up to which they were written, and the records. Positions only grow.
 */
import { roundUp8 } from '../../src/bytes.js';
import { KernelError } from '../../src/kernel/error.js';
import { BpfMap, type Mapping } from '../../src/kernel/map.js';

/** Bit of a record's length, its first u32: it is being written. */
const BUSY = 0x8000_0000;
/** Bit: readers skip it. */
const DISCARD = 0x4000_0000;
/** Bytes before the contents of a record. */
const RECORD_HEADER = 8;

/** Bytes that can be mapped at once. */
const MAPPED_LIMIT = 2 ** 32;

/** A ring buffer's memory, mapped. */
export class Ring implements Disposable {
  readonly #consumer: Mapping;
  /** The page with the producer's position, then the records twice in a row, so that none is cut at the end. */
  readonly #producer: Mapping;
  readonly #page: number;

  /** @throws KernelError if it cannot be mapped */
  constructor(
    readonly map: BpfMap,
    writable = false,
  ) {
    this.#page = map.sys.pageSize;
    this.#consumer = map.mmap({ length: this.#page });
    try {
      const length = Math.min(this.#page + (writable ? 1 : 2) * map.maxEntries, MAPPED_LIMIT);
      this.#producer = map.mmap({ offset: this.#page, length, writable });
    } catch (error) {
      this.#consumer.close();
      throw error;
    }
  }

  /** Opens one for reading. The kernel maps nothing through a read-only descriptor; then it is reopened by id. */
  static read(map: BpfMap): { readonly ring: Ring; close(): void } {
    try {
      const ring = new Ring(map);
      return { ring, close: () => ring.close() };
    } catch (error) {
      if (!(error instanceof KernelError) || map.state().access !== 'ro') throw error;
    }
    const other = BpfMap.openById(map.sys, map.id);
    try {
      const ring = new Ring(other);
      const close = () => {
        ring.close();
        other.close();
      };
      return { ring, close };
    } catch (error) {
      other.close();
      throw error;
    }
  }

  get consumer(): bigint {
    return this.#consumer.bytes.readBigUInt64LE();
  }

  get producer(): bigint {
    return this.#producer.bytes.readBigUInt64LE();
  }

  set producer(position: bigint) {
    this.#producer.bytes.writeBigUInt64LE(position);
  }

  /** The records; position p is at p modulo max_entries. */
  get data(): Buffer {
    return this.#producer.bytes.subarray(this.#page);
  }

  close(): void {
    this.#consumer.close();
    this.#producer.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Bytes of the record that begins at `at`, with its header; undefined for one that is being written. */
export function recordSize(bytes: Buffer, at: number): number | undefined {
  const length = bytes.readUInt32LE(at);
  return (length & BUSY) !== 0 ? undefined : roundUp8((length & ~DISCARD) >>> 0) + RECORD_HEADER;
}

/**
 * Where the records in `bytes` between `from` and `to` end: at `to`, or before the first one that is being
 * written.
 * @returns undefined when these are no records
 */
export function recordsEnd(bytes: Buffer, from: number, to: number): number | undefined {
  for (let at = from; at < to; ) {
    if (to - at < RECORD_HEADER) return undefined;
    const size = recordSize(bytes, at);
    if (size === undefined) return at;
    if (size > to - at) return undefined;
    at += size;
  }
  return to;
}
