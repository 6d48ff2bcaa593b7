/** Copies images with some entries changed; all others keep their bytes. */
import type { ImageKind } from '../image/kinds.js';
import { ImageReader } from '../image/reader.js';
import { encodeMessage } from '../image/wire.js';
import { writeHead, writeMessage } from '../image/writer.js';
import type { Input } from '../io/input.js';
import type { Output } from '../io/output.js';
import { copyInput } from '../io/stream.js';
import type { JsonObject } from '../value.js';

/** A new entry. */
export interface NewEntry {
  readonly message: JsonObject;
  /** Writes what follows the message; without it, what followed it before stays. */
  readonly extra?: ((out: Output) => Promise<void>) | undefined;
}

/** What changes in an image. */
export interface ImageChanges {
  /** New entries that replace old ones, by number. */
  readonly entries: ReadonlyMap<number, (before: JsonObject) => NewEntry>;
  /** New entries at the end. */
  readonly added: readonly NewEntry[];
}

/**
 * Writes an image with changes.
 * @param there the image as it is, with a size; undefined for a new one
 */
export async function changeImage(
  there: Input | undefined,
  kind: ImageKind,
  out: Output,
  { entries, added }: ImageChanges,
): Promise<void> {
  if (there === undefined) writeHead(out, kind);
  else await rewriteImage(there, kind, out, (before, number) => entries.get(number)?.(before));
  for (const entry of added) await writeEntry(entry, kind, out);
}

/** Writes an entry of an image of `kind` from JSON text, one character per byte. */
export async function writeEntry({ message, extra }: NewEntry, kind: ImageKind, out: Output): Promise<void> {
  writeMessage(out, encodeMessage(kind.message, message, 'latin1'));
  await extra?.(out);
}

/**
 * Copies an image. Only entries for which `change` returns something are written anew; the rest keeps its bytes.
 * @param input has a size
 * @param kind the kind of the image
 * @param change returns the new entry for a message and its number; undefined to leave it
 */
export async function rewriteImage<M extends JsonObject>(
  input: Input,
  kind: ImageKind<M>,
  out: Output,
  change: (message: M, index: number) => NewEntry | undefined,
): Promise<void> {
  const reader = await ImageReader.open(input, 'latin1');
  /** Start of the bytes that are not copied yet. */
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
