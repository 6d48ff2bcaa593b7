/** Copies images with some of their entries changed; what does not change keeps its bytes. */
import type { Kind } from '../image/kinds.js';
import type { JsonObject } from '../image/message.js';
import { ImageReader } from '../image/reader.js';
import { encodeMessage } from '../image/wire.js';
import { writeHead, writeMessage } from '../image/writer.js';
import { Cursor, type Input } from '../io/input.js';
import type { Output } from '../io/output.js';

/** Copies `size` bytes of `input`, from `from` on. */
export async function copyInput(input: Input, from: number, size: number, out: Output): Promise<void> {
  const cursor = new Cursor(input, from, from + size);
  while ((await cursor.fill()) > 0) {
    out.write(cursor.bytes.subarray(cursor.at, cursor.end));
    cursor.at = cursor.end;
    await out.turn();
  }
}

/**
 * Copies an image whose entries are messages alone.
 * @param change the entry's message in the copy; the same one to leave it as it is
 */
export async function rewriteImage(
  input: Input,
  kind: Kind,
  out: Output,
  change: (message: JsonObject) => JsonObject,
): Promise<void> {
  const reader = await ImageReader.open(input, 'latin1');
  writeHead(out, kind, reader.head);
  for await (const { message } of reader.entries()) {
    writeMessage(out, encodeMessage(kind.message, change(message), 'latin1'));
    await out.turn();
  }
}
