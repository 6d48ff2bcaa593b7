/** Writes one entry of bpfmap-data.img while its items are still being read. */
import { BpfimgError } from '../errors.js';
import { BPFMAP_DATA } from '../image/kinds.js';
import { encodeMessage } from '../image/wire.js';
import type { FileOutput } from '../io/output.js';
import type { ItemSink } from '../maptype.js';

/** The entry's totals are u32. */
const TOTAL_LIMIT = 2 ** 32;

/** A map has more than an entry can hold. */
export class EntryLimit extends BpfimgError {
  constructor() {
    super('unsupported', 'an image entry can hold less than 4 GiB of keys and less than 4 GiB of values');
  }
}

/** Bytes of items up to which an entry is held in memory and written at once: most maps are small. */
const SMALL = 64 * 1024;

/** Items that are held in memory. */
interface Part {
  readonly keys: Uint8Array;
  readonly values: Uint8Array;
  readonly count: number;
}

/**
 * A sink that writes keys and values directly to their places in the image.
 *
 * The number of items is known only at the end, but the message before them contains it, and all keys come
 * before the values. So it leaves room for the expected number of keys, and moves the data at the end if that was
 * wrong. A full map, or an array, needs no move; a small entry waits in memory until its number is known.
 */
export class EntryWriter implements ItemSink {
  count = 0;
  readonly #start: number;
  #room: number;
  /** Items of an entry that is small so far; undefined for a large one. */
  #held: Part[] | undefined = [];
  #keysAt = 0;
  #valuesAt = 0;
  /** Writes in progress. */
  readonly #writes = new Set<Promise<void>>();
  /** Calls of {@link put} that have not ended. */
  readonly #puts = new Set<Promise<void>>();
  /** The move that makes more room, if one is in progress. */
  #growing: Promise<void> = Promise.resolve();

  /**
   * @param valueSize size in bytes of an item's whole value
   * @param expected number of items in a full map
   */
  constructor(
    readonly out: FileOutput,
    readonly mapId: number,
    readonly keySize: number,
    readonly valueSize: number,
    expected: number,
  ) {
    this.#start = out.length;
    this.#room = Math.max(1, Math.min(expected, this.#most()));
  }

  /** Number of items that an entry can hold. */
  #most(): number {
    return Math.ceil(TOTAL_LIMIT / Math.max(this.keySize, this.valueSize, 1)) - 1;
  }

  /** The size word and the message of an entry with `count` items. */
  #head(count: number): Buffer {
    const totals = { keys_bytes: count * this.keySize, values_bytes: count * this.valueSize, count };
    const message = encodeMessage(BPFMAP_DATA.message, { map_id: this.mapId, ...totals });
    const head = Buffer.alloc(4 + message.length);
    head.writeUInt32LE(message.length);
    head.set(message, 4);
    return head;
  }

  async put(keys: Uint8Array, values: Uint8Array, count: number): Promise<void> {
    const at = this.count;
    const end = at + count;
    if (end > this.#most()) {
      throw new EntryLimit();
    }
    this.count = end;
    const [some, whole] = [keys.subarray(0, count * this.keySize), values.subarray(0, count * this.valueSize)];
    if (this.#held !== undefined && end * (this.keySize + this.valueSize) <= SMALL) {
      // Copies: what is put is only lent.
      this.#held.push({ keys: Uint8Array.from(some), values: Uint8Array.from(whole), count });
      return;
    }
    const parts = [...this.#spill(), { keys: some, values: whole, count }];
    let from = end - parts.reduce((sum, part) => sum + part.count, 0);
    await Promise.all(
      parts.map((part) => {
        from += part.count;
        return this.#write(part, from - part.count);
      }),
    );
  }

  /** Makes the entry a large one. @returns what it has held until now */
  #spill(): Part[] {
    const held = this.#held ?? [];
    if (this.#held !== undefined) {
      this.#held = undefined;
      this.#keysAt = this.#start + this.#head(this.#room).length;
      this.#valuesAt = this.#keysAt + this.#room * this.keySize;
    }
    return held;
  }

  /** Writes items to the places from number `at` on. */
  async #write({ keys, values, count }: Part, at: number): Promise<void> {
    const end = at + count;
    if (end > this.#room) {
      const room = Math.max(end, Math.min(2 * this.#room, this.#most()));
      this.#room = room;
      this.#growing = this.#growing.then(() => this.#place(room, at));
    }
    // Reserved before any await: the order of calls is the order of items.
    const growing = this.#growing;
    const write = growing.then(async () => {
      const written = Promise.all([
        this.out.writeAt(keys, this.#keysAt + at * this.keySize),
        this.out.writeAt(values, this.#valuesAt + at * this.valueSize),
      ]).then(() => {});
      this.#writes.add(written);
      try {
        await written;
      } finally {
        this.#writes.delete(written);
      }
    });
    this.#puts.add(write);
    try {
      await write;
    } finally {
      this.#puts.delete(write);
    }
  }

  /** Moves the keys and values of the `held` items from where they were written to their places among `count`. */
  async #place(count: number, held: number): Promise<void> {
    await Promise.allSettled(this.#writes);
    const keysAt = this.#start + this.#head(count).length;
    const valuesAt = keysAt + count * this.keySize;
    const keys = () => this.out.move(this.#keysAt, keysAt, held * this.keySize);
    const values = () => this.out.move(this.#valuesAt, valuesAt, held * this.valueSize);
    // Move first whatever moves away from the other.
    for (const move of valuesAt > this.#valuesAt ? [values, keys] : [keys, values]) await move();
    this.#keysAt = keysAt;
    this.#valuesAt = valuesAt;
  }

  /** Discards the entry and frees its place for the next. */
  async drop(): Promise<void> {
    await Promise.allSettled(this.#puts);
  }

  /** Ends the entry; the output continues after it. */
  async finish(): Promise<void> {
    const head = this.#head(this.count);
    if (this.#held !== undefined) {
      this.out.write(head);
      for (const { keys } of this.#held) this.out.write(keys);
      for (const { values } of this.#held) this.out.write(values);
      await this.out.turn();
      return;
    }
    await this.#growing;
    await this.#place(this.count, this.count);
    await this.out.writeAt(head, this.#start);
    await this.out.skip(head.length + this.count * (this.keySize + this.valueSize));
  }
}
