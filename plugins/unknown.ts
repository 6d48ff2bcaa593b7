import { readKeys } from '../src/capture/read.js';
import { KernelError } from '../src/kernel/error.js';
import type { Plugin } from '../src/maptype.js';
import { fillInOrder } from '../src/replay/fill.js';

/** Map types newer than bpfimg: keys and values as plain bytes, where the kernel gives and takes them so. */
export const unknownTypes: Plugin = {
  name: 'unknown',
  types: [],

  async capture(map, sink, work) {
    try {
      const report = await readKeys(map, sink, work);
      const why = 'bpfimg does not know this type: keys and values are the bytes that the kernel returned';
      return report.kind === 'full' ? { kind: 'partial', why } : report;
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      return { kind: 'metadata only', why: `bpfimg does not know this type, and cannot read it: ${error.message}` };
    }
  },

  replay: fillInOrder,
};
