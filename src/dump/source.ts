/** A dump from whatever the user named: a folder, one image, or standard input. */

import type { ImageKind } from '../image/kinds.js';
import { ImageReader } from '../image/reader.js';
import { Cursor, type Input } from '../io/input.js';
import { Spool } from '../io/spool.js';
import { type Dump, type OnBroken, openDumpImage } from './model.js';

/** An image that was opened as a dump, or one whose kind has no maps in it. */
export type OpenedImage =
  | { readonly dump: Dump }
  | { readonly dump: undefined; readonly input: Input; readonly kind: ImageKind };

/** Opens one image, and owns `given`; a pipe is put aside first, because items are read at two places in turn. */
export async function openImageSource(given: Input, onBroken?: OnBroken): Promise<OpenedImage> {
  const input = given.size === undefined ? await aside(given) : given;
  try {
    const { kind } = await ImageReader.open(input);
    const dump = await openDumpImage(input, kind, onBroken);
    return dump === undefined ? { dump, input, kind } : { dump };
  } catch (error) {
    input.close();
    throw error;
  }
}

/** The bytes of a pipe, put aside so that they can be read at any place. */
export async function aside(input: Input): Promise<Input> {
  const spool = new Spool();
  const cursor = new Cursor(input);
  while ((await cursor.fill()) > 0) {
    spool.write(cursor.bytes.subarray(cursor.at, cursor.end));
    cursor.at = cursor.end;
  }
  input.close();
  return { ...spool.input(input.name), close: () => spool.close() };
}
