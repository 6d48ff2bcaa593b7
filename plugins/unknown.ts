import type { Plugin } from '../src/maptype.js';
import { toolkit } from '../src/toolkit.js';

/** Map types newer than bpfimg: keys and values as plain bytes, if the kernel reads and writes them like that. */
export const unknownTypes: Plugin = {
  name: 'unknown',
  types: [],

  async capture(map, sink, work) {
    try {
      const report = await toolkit.readKeys(map, sink, work);
      const why = 'bpfimg does not know this type: keys and values are the bytes that the kernel returned';
      return report.kind === 'full' ? { kind: 'partial', why } : report;
    } catch (error) {
      const { KernelError } = await import('../src/kernel/error.js');
      if (!(error instanceof KernelError)) throw error;
      return { kind: 'metadata only', why: `bpfimg does not know this type, and cannot read it: ${error.message}` };
    }
  },

  replay: toolkit.fillInOrder,
};
