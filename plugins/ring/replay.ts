/** Fills ring buffers that user space writes. */
import { BpfimgError } from '../../src/errors.js';
import { pause } from '../../src/io/pause.js';
import type { BpfMap } from '../../src/kernel/map.js';
import { type Foreseen, FULL, type ItemSource, type Planned, type Report, type Work } from '../../src/maptype.js';
import { Ring, recordSize, recordsEnd } from './memory.js';

/** Bytes of items read in one go. */
const STEP = 1024 * 1024;

/** Writes unread records, words of 8 bytes, into a fresh ring buffer whose positions begin at 0. */
export async function fillRing(map: BpfMap, items: ItemSource, work: Work): Promise<Report> {
  if (items.count === 0) return FULL;
  const size = items.count * items.valueSize;
  if (size > map.maxEntries)
    throw new BpfimgError('unsupported', tooLong(size, map.maxEntries), { subject: work.subject });
  using ring = new Ring(map, true);
  const { data } = ring;
  const step = Math.max(1, Math.floor(STEP / items.valueSize));
  for (let done = 0; done < items.count; done += step) {
    const count = Math.min(step, items.count - done);
    await items.read(done, count, new Uint8Array(0), data.subarray(done * items.valueSize));
    work.progress(done + count);
    await pause();
  }
  if (recordsEnd(data, 0, size) !== size) {
    throw new BpfimgError('badImage', noRecords(size), { subject: work.subject });
  }
  // Last of all: now they are there for programs.
  ring.producer = BigInt(size);
  return FULL;
}

const tooLong = (size: number, most: number) => `${size} bytes of unread records do not fit, max_entries is ${most}`;
const noRecords = (size: number) => `its ${size} bytes are not whole records`;

/** What comes of {@link fillRing}. */
export async function ringForeseen({ items, spec: { maxEntries } }: Planned): Promise<Foreseen> {
  const size = items.count * items.valueSize;
  if (size > maxEntries) return { problems: [tooLong(size, maxEntries)], report: FULL };
  return { problems: (await areRecords(items)) ? [] : [noRecords(size)], report: FULL };
}

/** Whether words are whole records; they are looked at in windows. */
async function areRecords(items: ItemSource): Promise<boolean> {
  const { count, valueSize } = items;
  const most = Math.max(1, Math.floor(STEP / valueSize));
  const words = Buffer.alloc(Math.min(most, count) * valueSize);
  /** The window's first word, and the record's. */
  let [from, at] = [0, 0];
  let held = 0;
  while (at < count) {
    if (at >= from + held) {
      from = at;
      held = Math.min(most, count - at);
      await items.read(from, held, new Uint8Array(0), words);
      await pause();
    }
    const size = recordSize(words, (at - from) * valueSize);
    if (size === undefined) return false;
    at += size / valueSize;
  }
  return at === count;
}
