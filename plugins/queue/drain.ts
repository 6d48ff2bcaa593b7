/**
 * Reads maps whose items are read by taking them out, and puts them back.
 *
 * Not atomic: only for maps whose writers and readers are stopped. Items that were taken out are in this process and in
 * an unnamed file, so `kill -9` loses them. Nothing else does: room for every item is reserved before the first one is
 * taken out, and nothing is taken out that could not be put back.
 */

import { BpfimgError, errorText, followed } from '../../src/errors.js';
import { pause } from '../../src/io/pause.js';
import { whenInterrupted } from '../../src/io/unfinished.js';
import { ELEM_FLAG } from '../../src/kernel/abi.js';
import { KernelError } from '../../src/kernel/error.js';
import type { BpfMap } from '../../src/kernel/map.js';
import { ERRNO } from '../../src/kernel/sys.js';
import { type CaptureWork, FULL, type ItemSink, type Report } from '../../src/maptype.js';
import { HeldItems } from './held.js';

/**
 * Takes everything out of `map` into `sink`, in the order of pops.
 * @param stack last in, first out
 */
export async function drain(map: BpfMap, sink: ItemSink, work: CaptureWork, stack: boolean): Promise<Report> {
  const why = whyNotBack(map);
  if (why !== undefined) return { kind: 'not supported', why };
  const drained = new Drained(map, stack, work.folder);
  const restores = work.drain === 'restore';
  const forget = whenInterrupted(() => drained.putBack());
  const end = () => {
    forget();
    drained.close();
  };
  try {
    await drained.take();
    if (restores) drained.putBack();
    await drained.emit(sink, work);
  } catch (error) {
    const lost = drained.putBack();
    end();
    if (lost === undefined) throw error;
    throw followed(error, lost);
  }
  if (restores) end();
  else {
    work.atEnd((whole) => {
      // Only items that are safe in an image may be missing from the map.
      const lost = whole ? undefined : drained.putBack();
      end();
      if (lost !== undefined) throw new BpfimgError('io', lost);
    });
  }
  return drained.report();
}

/** Why nothing can be put into `map`; undefined if that is possible. */
function whyNotBack(map: BpfMap): string | undefined {
  if (map.state().frozen === true) return 'it is frozen, so its items cannot be popped';
  try {
    // Queues accept no such flag, but the kernel says so only if nothing else (access, freezing) forbids the call.
    map.update(undefined, new Uint8Array(map.valueStride), ELEM_FLAG.NOEXIST);
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    if (error.errno !== ERRNO.EINVAL) return `its items could not be put back: ${callText(error)}`;
  }
  return undefined;
}

function callText({ call, code, reason }: KernelError): string {
  return `${call}: ${code} (${reason})`;
}

/** Items that are taken out before signals are looked for. */
const ITEMS_AT_ONCE = 1024;

/** How often a call is repeated if the map's lock was not available. */
const BUSY_RETRIES = 20;

function patiently<T>(call: () => T): T {
  for (let left = BUSY_RETRIES; ; left--) {
    try {
      return call();
    } catch (error) {
      if (left === 0 || !(error instanceof KernelError) || error.errno !== ERRNO.EBUSY) throw error;
    }
  }
}

/** Items that were taken out of a map. */
class Drained {
  readonly #held: HeldItems;
  /** How many are not back in the map. */
  #out = 0;
  /** Items that could not be put back, and the first reason. */
  #lost = 0;
  #why = '';
  /** More items came out than the map has room for: others keep adding some. */
  #written = false;

  constructor(
    readonly map: BpfMap,
    readonly stack: boolean,
    folder: string,
  ) {
    this.#held = new HeldItems(map.sys, folder, map.subject, map.valueStride, map.maxEntries);
  }

  async take(): Promise<void> {
    while (this.#popSome()) await pause();
    this.#written = this.#isFull() && this.map.lookup(undefined) !== undefined;
  }

  #isFull(): boolean {
    return this.#held.count === this.map.maxEntries;
  }

  /** Takes items out; false if there are no more, or no room for them. */
  #popSome(): boolean {
    for (let left = ITEMS_AT_ONCE; left > 0; left--) if (!this.#pop()) return false;
    return true;
  }

  readonly #take = (into: Buffer, at: number): boolean => {
    if (!patiently(() => this.map.popAt(into, at))) return false;
    this.#out++;
    return true;
  };

  /** Takes one item out; false if there is none, or no room for it. */
  #pop(): boolean {
    return !this.#isFull() && this.#held.next(this.#take);
  }

  /**
   * Puts everything back in order, as far as the kernel accepts it. It neither waits, because a signal may be the
   * reason, nor throws.
   * @returns what could not be put back, as a line
   */
  putBack(): string | undefined {
    if (this.#out > 0 && !this.stack) this.#popRest();
    for (let i = 0; i < this.#out; i++) {
      const index = this.#held.count - 1 - (this.stack ? i : this.#out - 1 - i);
      try {
        const { bytes, at } = this.#held.with(index);
        patiently(() => this.map.updateAt(undefined, 0, bytes, at));
      } catch (error) {
        if (this.#lost++ === 0) this.#why = lostText(error);
      }
    }
    this.#out = 0;
    return this.#lost === 0 ? undefined : `${this.map.subject}: ${this.#problem()}`;
  }

  /** A queue must be emptied first, because new items go to its end. */
  #popRest(): void {
    try {
      while (this.#pop());
    } catch {
      // At the end is better than lost.
    }
  }

  async emit(sink: ItemSink, work: CaptureWork): Promise<void> {
    const size = this.map.valueStride;
    for (let done = 0; done < this.#held.count; ) {
      const { bytes, at } = this.#held.with(done);
      const values = bytes.subarray(at);
      const count = Math.min(values.length / size, this.#held.count - done);
      await sink.put(new Uint8Array(0), values, count);
      done += count;
      work.progress(sink.count);
    }
  }

  #problem(): string {
    return `${this.#lost} of its items could not be put back: ${this.#why}`;
  }

  report(): Report {
    const parts = this.#lost === 0 ? [] : [this.#problem()];
    if (this.#written) parts.push(`others added items during the capture: only max_entries items were read`);
    return parts.length === 0 ? FULL : { kind: 'partial', why: parts.join('; ') };
  }

  close(): void {
    this.#held.close();
  }
}

function lostText(error: unknown): string {
  if (!(error instanceof KernelError)) return errorText(error);
  return error.errno === ERRNO.E2BIG ? 'other items were added in the meantime' : callText(error);
}
