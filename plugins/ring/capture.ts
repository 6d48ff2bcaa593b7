/** Reads the unread records of ring buffers from their memory, without taking them out. */
import { pause } from '../../src/io/pause.js';
import { Spool } from '../../src/io/spool.js';
import { KernelError } from '../../src/kernel/error.js';
import type { BpfMap } from '../../src/kernel/map.js';
import { FULL, type ItemSink, type Report, type Work } from '../../src/maptype.js';
import { RING_WORD } from './index.js';
import { Ring, recordsEnd } from './memory.js';

/** Bytes that are copied and passed on at once. */
const STEP = 1024 * 1024;
/** How often a copy is repeated because somebody read records meanwhile, which may have been overwritten by now. */
const ATTEMPTS = 5;

/** What was copied of a ring buffer. */
interface RingCopy {
  readonly bytes: Spool;
  /** Bytes after it, starting with the first record that was still being written. */
  readonly unfinished: number;
}

/** Reads unread records as they are in memory, with their headers; an item is a word of 8 bytes. */
export async function readRing(map: BpfMap, sink: ItemSink, work: Work): Promise<Report> {
  let opened: ReturnType<typeof Ring.read>;
  try {
    opened = Ring.read(map);
  } catch (error) {
    if (!(error instanceof KernelError)) throw error;
    return { kind: 'metadata only', why: `lost: unread records: its memory cannot be mapped: ${error.message}` };
  }
  try {
    for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
      const copy = await copied(opened.ring);
      if (typeof copy === 'string') return { kind: 'metadata only', why: `lost: unread records: ${copy}` };
      if (copy === undefined) continue;
      try {
        await emit(copy.bytes, sink, work);
      } finally {
        copy.bytes.close();
      }
      if (copy.unfinished === 0) return FULL;
      const why = `a record was still being written: it and everything after it (${copy.unfinished} bytes) are left out`;
      return { kind: 'partial', why };
    }
  } finally {
    opened.close();
  }
  return { kind: 'metadata only', why: 'lost: unread records: they are read faster than they can be copied' };
}

/** A copy of the unread records, or what is wrong with them; undefined if it must be repeated. */
async function copied(ring: Ring): Promise<RingCopy | string | undefined> {
  const { consumer, producer, data } = ring;
  const { maxEntries } = ring.map;
  const unread = producer - consumer;
  if (unread < 0n || unread > BigInt(maxEntries)) return `its positions are ${unread} bytes apart`;
  const from = Number(consumer % BigInt(maxEntries));
  const to = from + Number(unread);
  if (to > data.length) return 'they are too large to map at once';
  const end = recordsEnd(data, from, to);
  if (end === undefined) return ring.consumer === consumer ? 'its memory does not contain whole records' : undefined;
  const bytes = new Spool('records of a ring buffer');
  for (let at = from; at < end; at += STEP) {
    bytes.write(data.subarray(at, Math.min(end, at + STEP)));
    await pause();
  }
  if (ring.consumer === consumer) return { bytes, unfinished: to - end };
  bytes.close();
  return undefined;
}

async function emit(bytes: Spool, sink: ItemSink, work: Work): Promise<void> {
  const input = bytes.input();
  for (let done = 0; done < bytes.length; done += STEP) {
    const values = Buffer.alloc(Math.min(STEP, bytes.length - done));
    for (let got = 0; got < values.length; ) got += await input.read(values.subarray(got), done + got);
    await sink.put(new Uint8Array(0), values, values.length / RING_WORD);
    work.progress(sink.count);
  }
}
