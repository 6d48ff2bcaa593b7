/**
 * Reads maps whose items are read by taking them out, and puts them back.
 *
 * Not atomic: only for maps whose writers and readers are stopped. What has been taken out is in this process
 * and in an unlinked file of its: `kill -9` before it is back loses it. Ctrl-C does not.
 */

import { BpfimgError } from '../errors.js';
import { pause } from '../io/pause.js';
import { Spool } from '../io/spool.js';
import { whenInterrupted } from '../io/unfinished.js';
import type { BpfMap } from '../kernel/map.js';
import { type CaptureWork, FULL, type ItemSink, type Report } from '../maptype.js';

/** Items that are handed to the sink in one go. */
const STEP = 1024;

/**
 * Takes everything out of `map` into `sink`, in the order of pops.
 * @param stack the last in is the first out
 */
export async function drain(map: BpfMap, sink: ItemSink, work: CaptureWork, stack: boolean): Promise<Report> {
  if (map.state().frozen === true) {
    return { kind: 'not supported', why: 'it is frozen, so its items cannot be taken out' };
  }
  const drained = new Drained(map, stack);
  const wanted = whenInterrupted(() => drained.putBack());
  try {
    await drained.take();
    if (work.drain === 'restore') drained.putBack();
    await drained.emit(sink, work);
  } catch (error) {
    drained.putBack();
    wanted();
    drained.close();
    throw error;
  }
  work.afterwards((whole) => {
    // Only what is safe in an image may be gone from the map.
    if (!whole) drained.putBack();
    wanted();
    drained.close();
    if (drained.lost > 0) throw drained.problem();
  });
  return drained.lost === 0 ? FULL : { kind: 'partial', why: drained.problem().message };
}

/** What was taken out of a map. */
class Drained {
  readonly #values = new Spool('items of a queue');
  #count = 0;
  /** How many are not back in the map. */
  #out = 0;
  /** Items that did not go back: somebody else has filled the map meanwhile. */
  lost = 0;

  constructor(
    readonly map: BpfMap,
    readonly stack: boolean,
  ) {}

  async take(): Promise<void> {
    while (this.#pop()) await pause();
  }

  #pop(): boolean {
    const value = this.map.lookupAndDelete(undefined);
    if (value === undefined) return false;
    this.#values.write(value);
    this.#count++;
    this.#out++;
    return true;
  }

  /** Puts everything back in its order, as far as the kernel takes it. Without waiting: a signal may be the reason. */
  putBack(): void {
    if (this.#out === 0) return;
    // Of a queue the rest must come out first: what goes in goes behind it.
    if (!this.stack) while (this.#pop());
    const size = this.map.valueStride;
    const input = this.#values.input();
    const value = Buffer.alloc(size);
    for (let i = 0; i < this.#out; i++) {
      const index = this.#count - this.#out + (this.stack ? this.#out - 1 - i : i);
      input.read(value, index * size);
      try {
        this.map.update(undefined, value);
      } catch {
        this.lost++;
      }
    }
    this.#out = 0;
  }

  async emit(sink: ItemSink, work: CaptureWork): Promise<void> {
    const size = this.map.valueStride;
    const input = this.#values.input();
    for (let done = 0; done < this.#count; done += STEP) {
      const count = Math.min(STEP, this.#count - done);
      const values = Buffer.alloc(count * size);
      for (let got = 0; got < values.length; ) got += await input.read(values.subarray(got), done * size + got);
      await sink.put(new Uint8Array(0), values, count);
      work.progress(sink.count);
    }
  }

  problem(): BpfimgError {
    const text = `${this.lost} items did not go back: something else was put in meanwhile`;
    return new BpfimgError('conflict', `${this.map.subject}: ${text}`);
  }

  close(): void {
    this.#values.close();
  }
}
