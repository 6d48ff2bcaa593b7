/** Bytes of inputs, moved and compared in windows. */
import { Cursor, type Input } from './input.js';
import type { Output } from './output.js';
import { pause } from './pause.js';

/** Copies `size` bytes of `input`, starting at `from`; fewer if it ends earlier. */
export async function copyInput(input: Input, from: number, size: number, out: Output): Promise<void> {
  const cursor = new Cursor(input, from, from + size);
  while ((await cursor.fill()) > 0) {
    out.write(cursor.bytes.subarray(cursor.at, cursor.end));
    cursor.at = cursor.end;
    await out.turn();
  }
}

/** Whether two inputs both have `size` bytes at the given positions and these are equal. */
export async function equalBytes(a: Input, aAt: number, b: Input, bAt: number, size: number): Promise<boolean> {
  const left = new Cursor(a, aAt, aAt + size);
  const right = new Cursor(b, bAt, bAt + size);
  for (let done = 0; done < size; ) {
    const ready = Math.min(await left.fill(), await right.fill());
    if (ready === 0) return false;
    const part = ({ bytes, at }: Cursor) => bytes.subarray(at, at + ready);
    if (Buffer.compare(part(left), part(right)) !== 0) return false;
    left.at += ready;
    right.at += ready;
    done += ready;
    await pause();
  }
  return true;
}
