/** Writes what reader.ts reads. */
import type { Output } from '../io/output.js';
import { HEAD_COMMON, HEAD_SERVICE, type Head, type ImageKind } from './kinds.js';

function put32(out: Output, value: number): void {
  out.room(4);
  out.bytes.writeUInt32LE(value, out.at);
  out.at += 4;
}

/** Starts an image: head word, unless there is none, and the kind's magic. */
export function writeHead(out: Output, kind: ImageKind, head: Head = kind.head): void {
  if (head !== 'none') put32(out, head === 'service' ? HEAD_SERVICE : HEAD_COMMON);
  put32(out, kind.magic);
}

/** Writes an entry up to where its extra begins. */
export function writeMessage(out: Output, message: Uint8Array): void {
  put32(out, message.length);
  out.write(message);
}
