import { metadataOnly, readKeys } from '../src/capture/read.js';
import { KernelError } from '../src/kernel/error.js';
import type { BpfMap } from '../src/kernel/map.js';
import type { Carries, Plugin } from '../src/maptype.js';
import { leaveEmpty } from '../src/replay/fill.js';

const only = (lost: string): Carries => ({ captured: 'metadata only', replayed: 'empty', lost });

/** Maps that are memory more than tables, or that only the kernel fills. */
export const memory: Plugin = {
  name: 'memory',
  types: [
    {
      number: 7,
      name: 'stack_trace',
      since: '4.6',
      key: 'bytes',
      carries: {
        captured: 'items',
        replayed: 'empty',
        lost: 'stacks: only the kernel writes them, and their addresses mean nothing after a reboot',
      },
    },
    {
      number: 26,
      name: 'struct_ops',
      since: '5.6',
      key: 'index',
      refers: true,
      carries: only('the operations: they are programs, which whoever loads them registers'),
    },
    {
      number: 27,
      name: 'ringbuf',
      since: '5.8',
      key: 'none',
      carries: only('unread records: only programs can write them'),
    },
    {
      number: 30,
      name: 'bloom_filter',
      since: '5.16',
      key: 'none',
      carries: only('what was put in: it can be tested for, not read'),
    },
    {
      number: 31,
      name: 'user_ringbuf',
      since: '6.1',
      key: 'none',
      carries: only('records that no program has read yet'),
    },
    {
      number: 33,
      name: 'arena',
      since: '6.9',
      key: 'none',
      carries: only('its pages: they are read and written only by mapping them at their address'),
    },
    {
      number: 34,
      name: 'insn_array',
      since: '6.19',
      key: 'index',
      carries: only('offsets of instructions: they belong to one loaded program'),
    },
  ],
  async capture(map, sink, work) {
    if (work.type.carries?.captured === 'items') return readKeys(map, sink, work);
    const bytes = RINGS.has(map.type) ? unread(map) : undefined;
    if (bytes === 0) return { kind: 'metadata only', why: 'it has no unread records, and nothing else to keep' };
    const report = await metadataOnly(map, sink, work);
    return bytes === undefined || report.kind === 'full'
      ? report
      : { ...report, why: `${report.why} (${bytes} bytes)` };
  },
  replay: leaveEmpty,
};

const RINGS: ReadonlySet<number> = new Set([27, 31]);

/**
 * Bytes of records in a ring buffer that nobody has read, from the positions in its first two pages; undefined
 * where they cannot be mapped (through a read-only fd). Looking takes nothing out.
 */
function unread(map: BpfMap): number | undefined {
  try {
    using consumer = map.mmap({ length: 8 });
    using producer = map.mmap({ offset: map.sys.pageSize, length: 8 });
    return Number(producer.bytes.readBigUInt64LE() - consumer.bytes.readBigUInt64LE());
  } catch (error) {
    if (error instanceof KernelError) return undefined;
    throw error;
  }
}
