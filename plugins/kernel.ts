import { MAP_FLAG } from '../src/kernel/flags.js';
import { type Carries, leaveEmpty, metadataOnly, type Plugin } from '../src/maptype.js';
import { toolkit } from '../src/toolkit.js';
import { ANY, exactly, FLAG, indexed, NO_BTF, NUMA_RW, TYPES, U32 } from './rules.js';

const only = (lost: string): Carries => ({ captured: 'metadata only', replayed: 'empty', lost });

/** Maps that only the kernel fills. */
export const kernel: Plugin = {
  name: 'kernel',
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
      create: {
        // The most is 8 * kernel.perf_event_max_stack, which is a sysctl.
        ...indexed({ min: 8, max: U32, step: 8 }),
        ...NO_BTF,
        flags: NUMA_RW | FLAG.STACK_BUILD_ID,
        flagged: { flag: FLAG.STACK_BUILD_ID, value: { min: 32, max: U32, step: 32 } },
      },
    },
    {
      number: 26,
      name: 'struct_ops',
      since: '5.6',
      key: 'index',
      holdsReferences: true,
      carries: only('the operations: they are programs, registered by whoever loads them'),
      create: {
        ...indexed(ANY),
        ...TYPES,
        entries: exactly(1),
        flags: FLAG.LINK | FLAG.VTYPE_BTF_OBJ_FD,
        btf: 'required',
        within: 'never',
      },
    },
    {
      number: 34,
      name: 'insn_array',
      since: '6.19',
      key: 'index',
      ownFlags: MAP_FLAG.RDONLY_PROG,
      carries: only('offsets of instructions: they belong to one loaded program'),
      create: { ...indexed(exactly(16)), ...NO_BTF, flags: 0 },
    },
  ],
  capture: (map, sink, work) =>
    work.type.carries?.captured === 'items' ? toolkit.readKeys(map, sink, work) : metadataOnly(map, sink, work),
  replay: leaveEmpty,
};
