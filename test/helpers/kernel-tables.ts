/** A scripted hash table, whose buckets are what a test says, at every moment. */
import type { BpfMap } from '../../src/kernel/map.js';
import { type Attr, ERRNO, type Result } from '../../src/kernel/sys.js';
import { FakeSys, fakeMap } from './kernel-fake.js';

/** A key and its value, both u32. */
export interface Element {
  readonly key: number;
  value: number;
}

/** What one LOOKUP_BATCH was asked for. */
export interface Asked {
  /** First bucket. */
  readonly from: number;
  readonly count: number;
  /** Calls so far, this one being one of them. */
  readonly call: number;
}

export class FakeHash extends FakeSys {
  readonly asked: Asked[] = [];
  /** Before a call reads: what else happens to the map at that time. */
  before: (asked: Asked) => void = () => {};
  /** Turns of the event loop until the call number `call` on another thread begins, and until it is told. */
  delay: (call: number) => readonly [before: number, after: number] = () => [0, 0];
  #calls = 0;

  /** @param buckets in order; as many as a power of two */
  constructor(readonly buckets: Element[][]) {
    super();
    this.on('MAP_LOOKUP_BATCH', (attr) => this.#read(attr));
  }

  map(maxEntries = this.buckets.length): BpfMap {
    return fakeMap(this, { key_size: 4, value_size: 4, max_entries: maxEntries });
  }

  /** All elements as one reading from the beginning gives them. */
  all(): Element[] {
    return this.buckets.flat();
  }

  #read(attr: Attr): Result {
    const position = attr.pointee('in_batch') as Buffer | undefined;
    const from = position?.readUInt32LE() ?? 0;
    const most = attr.get('count');
    const asked = { from, count: most, call: this.asked.length + 1 };
    this.asked.push(asked);
    this.before(asked);
    attr.set('count', 0);
    // htab's LOOKUP_BATCH: whole buckets, and at the end ENOENT with items.
    if (from >= this.buckets.length) return -ERRNO.ENOENT;
    const [keys, values] = [attr.pointee('keys') as Buffer, attr.pointee('values') as Buffer];
    let count = 0;
    let bucket = from;
    let result = 0;
    for (;;) {
      const elements = this.buckets[bucket] as Element[];
      if (elements.length > most - count) {
        if (count === 0) result = -ERRNO.ENOSPC;
        break;
      }
      for (const { key, value } of elements) {
        keys.writeUInt32LE(key, 4 * count);
        values.writeUInt32LE(value, 4 * count++);
      }
      if (++bucket >= this.buckets.length) {
        result = -ERRNO.ENOENT;
        break;
      }
    }
    (attr.pointee('out_batch') as Buffer).writeUInt32LE(bucket);
    attr.set('count', count);
    return result;
  }

  override async bpfAsync(...args: Parameters<FakeSys['bpfAsync']>): Promise<Result> {
    const [before, after] = this.delay(this.#calls++);
    for (let i = 0; i < before; i++) await new Promise((go) => setImmediate(go));
    const result = await super.bpfAsync(...args);
    for (let i = 0; i < after; i++) await new Promise((go) => setImmediate(go));
    return result;
  }
}
