/** Copies images with some of their entries changed; what does not change keeps its bytes. */
import type { ImageKind } from '../image/kinds.js';
import { ImageReader } from '../image/reader.js';
import { encodeMessage } from '../image/wire.js';
import { writeMessage } from '../image/writer.js';
import type { Input } from '../io/input.js';
import type { Output } from '../io/output.js';
import { copyInput } from '../io/stream.js';
import type { JsonObject } from '../value.js';

/** An entry as it will be. */
export interface NewEntry {
  readonly message: JsonObject;
  /** Writes what follows the message; what follows it now stays when absent. */
  readonly extra?: ((out: Output) => Promise<void>) | undefined;
}

/** Writes an entry of an image of `kind`, its text one character a byte. */
export async function writeEntry({ message, extra }: NewEntry, kind: ImageKind, out: Output): Promise<void> {
  writeMessage(out, encodeMessage(kind.message, message, 'latin1'));
  await extra?.(out);
}

/**
 * Copies an image. Only entries that `change` gives something for are written anew, all else is copied as it stands.
 * @param input has a size
 * @param kind what it is an image of
 * @param change what becomes of the entry of that message and number; undefined to leave it
 */
export async function rewriteImage<M extends JsonObject>(
  input: Input,
  kind: ImageKind<M>,
  out: Output,
  change: (message: M, index: number) => NewEntry | undefined,
): Promise<void> {
  const reader = await ImageReader.open(input, 'latin1');
  /** Where the bytes begin that are not yet copied. */
  let from = 0;
  for await (const { message, index, offset, extraAt, extraSize } of reader.entriesOf(kind)) {
    const changed = change(message, index);
    await out.turn();
    if (changed === undefined) continue;
    await copyInput(input, from, offset - from, out);
    await writeEntry(changed, reader.kind, out);
    from = changed.extra === undefined ? extraAt : extraAt + extraSize;
  }
  await copyInput(input, from, (input.size as number) - from, out);
}
