/** Fills arenas. */
import { BpfimgError } from '../../src/errors.js';
import { pause } from '../../src/io/pause.js';
import { MAP_FLAG } from '../../src/kernel/abi.js';
import { KernelError } from '../../src/kernel/error.js';
import type { BpfMap } from '../../src/kernel/map.js';
import { type Foreseen, FULL, type ItemSource, type Planned, type Report, type Work } from '../../src/maptype.js';
import { findKey } from '../../src/replay/items.js';
import { Arena } from './memory.js';

/** Bytes of items read at once. */
const STEP = 1024 * 1024;

/** Writes pages into a fresh arena at the address of the old one, so that pointers into it stay valid. */
export async function fillArena(map: BpfMap, items: ItemSource, work: Work): Promise<Report> {
  if (items.count === 0) return FULL;
  const lost = (why: string) => lostPages(items.count, why);
  const { sys } = map;
  const { extra } = map.info;
  if (extra === 0n) return lost(NO_ADDRESS);
  if (items.valueSize !== sys.pageSize) {
    return lost(`they have ${items.valueSize} bytes, but pages on this machine have ${sys.pageSize}`);
  }
  let arena: Arena;
  try {
    arena = new Arena(map, extra, true);
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    return lost(error.message);
  }
  try {
    if (arena.faultsOnMissing) return lost(ASKS);
    const step = Math.max(1, Math.floor(STEP / items.valueSize));
    const [keys, values] = [Buffer.alloc(4 * step), Buffer.alloc(items.valueSize * step)];
    for (let done = 0; done < items.count; done += step) {
      const count = Math.min(step, items.count - done);
      await items.read(done, count, keys, values);
      for (let i = 0; i < count; i++) {
        const page = keys.readUInt32LE(4 * i);
        if (page >= map.maxEntries) {
          throw new BpfimgError('badImage', beyond(page, map.maxEntries), { subject: work.subject });
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

const NO_ADDRESS = 'it has no address';
const ASKS = 'with BPF_F_SEGV_ON_FAULT only programs can create them';
const beyond = (page: number, most: number) => `page ${page} is beyond its end, max_entries is ${most}`;

function lostPages(count: number, why: string): Report {
  return { kind: 'metadata only', why: `lost: its ${count} pages: ${why}` };
}

/** What {@link fillArena} will report if the machine's pages have the same size and the address is free. */
export async function arenaForeseen({ items, spec }: Planned): Promise<Foreseen> {
  const lost = (why: string): Foreseen => ({ problems: [], report: lostPages(items.count, why) });
  if (items.count === 0) return { problems: [], report: FULL };
  if ((spec.extra ?? 0n) === 0n) return lost(NO_ADDRESS);
  if ((spec.flags & MAP_FLAG.SEGV_ON_FAULT) !== 0) return lost(ASKS);
  const key = await findKey(items, (page) => page.readUInt32LE() >= spec.maxEntries);
  const problems = key === undefined ? [] : [beyond(key.readUInt32LE(), spec.maxEntries)];
  return { problems, report: FULL };
}
