/** Fills maps that are memory: ring buffers that user space writes, and arenas. */
import { BpfimgError } from '../errors.js';
import { pause } from '../io/pause.js';
import { Arena } from '../kernel/arena.js';
import { KernelError } from '../kernel/error.js';
import type { BpfMap } from '../kernel/map.js';
import { Ring, recordsEnd } from '../kernel/ring.js';
import { FULL, type ItemSource, type Report, type Work } from '../maptype.js';

/** Bytes of items read in one go. */
const STEP = 1024 * 1024;

/** Writes unread records, words of 8 bytes, into a fresh ring buffer whose positions begin at 0. */
export async function fillRing(map: BpfMap, items: ItemSource, work: Work): Promise<Report> {
  if (items.count === 0) return FULL;
  const size = items.count * items.valueSize;
  if (size > map.maxEntries) {
    const what = `${size} bytes of unread records do not fit, max_entries is ${map.maxEntries}`;
    throw new BpfimgError('unsupported', `${work.subject}: ${what}`);
  }
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
    throw new BpfimgError('badImage', `${work.subject}: its ${size} bytes are no whole records`);
  }
  // Last of all: now they are there for programs.
  ring.producer = BigInt(size);
  return FULL;
}

/** Writes pages into a fresh arena, which has the address of the old one: pointers within it stay true. */
export async function fillArena(map: BpfMap, items: ItemSource, work: Work): Promise<Report> {
  if (items.count === 0) return FULL;
  const lost = (why: string): Report => ({ kind: 'metadata only', why: `lost: its ${items.count} pages: ${why}` });
  const { sys } = map;
  const { extra } = map.info();
  if (extra === 0n) return lost('it has no address');
  if (items.valueSize !== sys.pageSize) {
    return lost(`they are of ${items.valueSize} bytes, here they have ${sys.pageSize}`);
  }
  let arena: Arena;
  try {
    arena = new Arena(map, extra, true);
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    return lost(error.message);
  }
  try {
    if (arena.asks) return lost('with BPF_F_SEGV_ON_FAULT only programs can make them');
    const step = Math.max(1, Math.floor(STEP / items.valueSize));
    const [keys, values] = [Buffer.alloc(4 * step), Buffer.alloc(items.valueSize * step)];
    for (let done = 0; done < items.count; done += step) {
      const count = Math.min(step, items.count - done);
      await items.read(done, count, keys, values);
      for (let i = 0; i < count; i++) {
        const page = keys.readUInt32LE(4 * i);
        if (page >= map.maxEntries) {
          const what = `page ${page} is beyond its end, max_entries is ${map.maxEntries}`;
          throw new BpfimgError('badImage', `${work.subject}: ${what}`);
        }
        arena.write(page, values.subarray(i * items.valueSize, (i + 1) * items.valueSize));
      }
      work.progress(done + count);
      await pause();
    }
    return FULL;
  } finally {
    arena.close();
  }
}
