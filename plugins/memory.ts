import type { Plugin } from '../src/maptype.js';

/** Maps that are memory more than tables, or that only the kernel fills. */
export const memory: Plugin = {
  name: 'memory',
  types: [
    { number: 7, name: 'stack_trace', since: '4.6', key: 'bytes' },
    { number: 26, name: 'struct_ops', since: '5.6', key: 'index' },
    { number: 27, name: 'ringbuf', since: '5.8', key: 'none' },
    { number: 31, name: 'user_ringbuf', since: '6.1', key: 'none' },
    { number: 33, name: 'arena', since: '6.9', key: 'none' },
    { number: 34, name: 'insn_array', since: '6.19', key: 'index' },
  ],
};
