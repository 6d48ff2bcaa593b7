/** Reads the pages of arenas that are known to exist. An item is a page's number and the page itself. */
import { pause } from '../../src/io/pause.js';
import { KernelError } from '../../src/kernel/error.js';
import type { BpfMap } from '../../src/kernel/map.js';
import { FULL, type ItemSink, type Report, type Work } from '../../src/maptype.js';
import { Arena } from './memory.js';

/** Bytes that are read at once. */
const STEP = 1024 * 1024;

const UNSEEN = 'pages that only programs have touched: reading a missing page would create it';

/** Reads every page if reading a missing one is an error, otherwise those that processes have touched. */
export async function readArena(map: BpfMap, sink: ItemSink, work: Work): Promise<Report> {
  const { extra } = map.info;
  const lost = (why: string): Report => ({ kind: 'metadata only', why: `lost: its pages: ${why}` });
  if (extra === 0n) return lost('it was created without an address, and the kernel does not reveal which one it has');
  let arena: Arena;
  try {
    arena = new Arena(map, extra);
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    return lost(error.message);
  }
  try {
    if (arena.faultsOnMissing) {
      await readRuns(arena, sink, work, undefined);
      return FULL;
    }
    const touched = arena.touched();
    if (touched === undefined) return lost('no visible process has it mapped, and reading it would create pages');
    await readRuns(arena, sink, work, touched);
    return { kind: 'partial', why: `lost: ${UNSEEN}` };
  } finally {
    arena.close();
  }
}

/** Reads the marked pages, or all that exist; neighbours are read together. */
async function readRuns(arena: Arena, sink: ItemSink, work: Work, marked: Uint8Array | undefined): Promise<void> {
  const { maxEntries, sys } = arena.map;
  const most = Math.max(1, Math.floor(STEP / sys.pageSize));
  let values = Buffer.alloc(0);
  for (let page = 0; page < maxEntries; ) {
    const next = marked === undefined ? page : marked.indexOf(1, page);
    if (next < 0) return;
    let end = next + 1;
    while (end < maxEntries && end - next < most && (marked === undefined || marked[end] === 1)) end++;
    const size = (end - next) * sys.pageSize;
    if (values.length < size) values = Buffer.alloc(size);
    const count = arena.read(next, values.subarray(0, size));
    if (count > 0) {
      const keys = Buffer.alloc(4 * count);
      for (let i = 0; i < count; i++) keys.writeUInt32LE(next + i, 4 * i);
      await sink.put(keys, values, count);
      work.progress(sink.count);
    }
    page = next + Math.max(1, count);
    await pause();
  }
}
