import { readMemory } from '../src/capture/read.js';
import type { Plugin } from '../src/maptype.js';
import { fillMemory } from '../src/replay/fill.js';

/** Values at indexes that are always there. */
export const array: Plugin = {
  name: 'array',
  types: [{ number: 2, name: 'array', since: '3.19', key: 'index', dense: true, criu: true }],
  capture: readMemory,
  replay: fillMemory,
  keyText: indexText,
};

/** An index in decimal. */
export function indexText(key: Uint8Array): string | undefined {
  return key.length === 4 ? String(new DataView(key.buffer, key.byteOffset).getUint32(0, true)) : undefined;
}
