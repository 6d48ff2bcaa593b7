import { roundUp8 } from '../src/bytes.js';
import type { Plugin } from '../src/maptype.js';
import { toolkit } from '../src/toolkit.js';
import { FLAG, indexed, NUMA_RW, PROG, TYPES } from './rules.js';

/** Values at indexes that are always there. */
export const array: Plugin = {
  name: 'array',
  types: [
    {
      number: 2,
      name: 'array',
      since: '3.19',
      key: 'index',
      dense: true,
      criu: true,
      mapped: ({ flags, valueSize, maxEntries }, page) =>
        (flags & FLAG.MMAPABLE) === 0
          ? undefined
          : { size: Math.ceil((maxEntries * roundUp8(valueSize)) / page) * page },
      create: {
        ...indexed({ min: 1, max: 0x7fff_ffff }),
        ...TYPES,
        flags: NUMA_RW | PROG | FLAG.MMAPABLE | FLAG.INNER_MAP,
        within: 'same entries unless flagged',
        sections: true,
        keyType: 'INT',
      },
    },
  ],
  capture: toolkit.readMemory,
  replay: toolkit.fillMemory,
  into: toolkit.mergeIndexes,
  keyText: indexText,
};

/** An index in decimal. */
export function indexText(key: Uint8Array): string | undefined {
  return key.length === 4 ? String(new DataView(key.buffer, key.byteOffset).getUint32(0, true)) : undefined;
}
