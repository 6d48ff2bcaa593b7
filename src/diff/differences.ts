/** Which items differ, by their positions, in an order that does not depend on how they were found. */
import { Parts } from './parts.js';

/** Bytes of two positions. */
const PAIR_BYTES = 8;
/** Pairs that are held in memory; beyond that, the number of positions in each part of the file. */
const HELD = 1 << 20;

/** Pairs of positions that are added in any order and listed in the order of the first. */
export class PositionPairs {
  count = 0;
  #words = new Uint32Array(256);
  #held = 0;
  #parts: Parts | undefined;

  /**
   * @param positions how many first positions there are
   * @param limit most pairs that are listed; 0 for all
   */
  constructor(
    readonly positions: number,
    readonly limit: number,
    readonly most = HELD,
  ) {}

  /** Each first position may come once. */
  add(first: number, second: number): void {
    this.count++;
    if (this.#held === this.most) this.#makeRoom();
    if (2 * this.#held === this.#words.length) {
      const more = new Uint32Array(2 * this.#words.length);
      more.set(this.#words);
      this.#words = more;
    }
    // The first position is the upper half of a 64-bit number.
    this.#words[2 * this.#held] = second;
    this.#words[2 * this.#held + 1] = first;
    this.#held++;
  }

  #makeRoom(): void {
    if (this.limit > 0 && this.limit <= this.most / 2) {
      this.#sort(this.#words, this.#held);
      this.#held = this.limit;
      return;
    }
    this.#parts ??= new Parts(Math.ceil(this.positions / this.most), PAIR_BYTES, 4096);
    for (let i = 0; i < this.#held; i++) {
      const first = this.#words[2 * i + 1] as number;
      const at = this.#parts.slot(Math.floor(first / this.most));
      this.#parts.view.setUint32(at, this.#words[2 * i] as number, true);
      this.#parts.view.setUint32(at + 4, first, true);
    }
    this.#held = 0;
  }

  #sort(words: Uint32Array, count: number): void {
    new BigUint64Array(words.buffer, words.byteOffset, count).sort();
  }

  /** The pairs, up to the limit. Nothing may be added after that. */
  async *list(): AsyncGenerator<readonly [first: number, second: number]> {
    let left = this.limit === 0 ? Number.POSITIVE_INFINITY : this.limit;
    if (this.#parts !== undefined) this.#makeRoom();
    for (let part = 0; part < (this.#parts?.count ?? 1) && left > 0; part++) {
      let words = this.#words;
      let count = this.#held;
      if (this.#parts !== undefined) {
        words = new Uint32Array(2 * this.most);
        count = 0;
        for await (const page of this.#parts.read(part)) {
          new Uint8Array(words.buffer).set(page, count * PAIR_BYTES);
          count += page.length / PAIR_BYTES;
        }
      }
      this.#sort(words, count);
      for (let i = 0; i < count && left > 0; i++, left--) yield [words[2 * i + 1] as number, words[2 * i] as number];
    }
  }

  close(): void {
    this.#parts?.close();
  }
}

/** What differs between the items of two maps. Close it. */
export class ItemDifferences {
  /** Positions in A and in B of items with the same key and different values. */
  readonly changed: PositionPairs;
  /** Positions in A. */
  readonly removed: PositionPairs;
  /** Positions in B. */
  readonly added: PositionPairs;

  /**
   * @param a items in A
   * @param b items in B
   * @param limit most differences of each kind that are listed; 0 for all
   * @param once whether one difference is enough
   */
  constructor(
    a: number,
    b: number,
    limit: number,
    readonly once = false,
    held?: number,
  ) {
    this.changed = new PositionPairs(a, limit, held);
    this.removed = new PositionPairs(a, limit, held);
    this.added = new PositionPairs(b, limit, held);
  }

  get count(): number {
    return this.changed.count + this.removed.count + this.added.count;
  }

  /** Whether enough differences were found. */
  get enough(): boolean {
    return this.once && this.count > 0;
  }

  close(): void {
    for (const one of [this.changed, this.removed, this.added]) one.close();
  }
}
