/**
 * The memory of ring buffers: a page with the position up to which records were read, a page with that up to
 * which they were written, and the records (struct bpf_ringbuf). Positions only grow.
 */
import { roundUp8 } from '../../src/bytes.js';
import { KernelError } from '../../src/kernel/error.js';
import { BpfMap, type Mapping } from '../../src/kernel/map.js';

/** Of a record's first u32, its length: it is being written. */
const BUSY = 0x8000_0000;
/** It is there to be skipped. */
const DISCARD = 0x4000_0000;
/** Bytes before a record's own. */
const RECORD_HEADER = 8;

/** Bytes that can be mapped at once. */
const MAPPED_LIMIT = 2 ** 32;

/** A ring buffer's memory, mapped. */
export class Ring implements Disposable {
  readonly #consumer: Mapping;
  /** The page with the producer's position, and the records behind it, twice in a row: none ends at the border. */
  readonly #producer: Mapping;
  readonly #page: number;

  /** @throws KernelError where it cannot be mapped */
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

  /** Opens one for reading, also through an fd that is only for reading: of that the kernel shows no memory. */
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

  /** The records; position p stands at p modulo max_entries. */
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
 * Where the records end that stand in `bytes` from `from` to `to`: at `to`, or before the first that is being
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
