/** `encode` into a dump: loaded when there is one. */
import { plugins } from '../../plugins/index.js';
import { encodeDocument } from '../dump/encode.js';
import type { Input } from '../io/input.js';
import { MapTypes } from '../maptype.js';

/** Encodes a maps document into the dump in `folder`. */
export function encodeDump(input: Input, folder: string, force: boolean): Promise<void> {
  return encodeDocument(input, folder, force, new MapTypes(plugins));
}
