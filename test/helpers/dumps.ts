/** Dumps of BPF maps built from values. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { blob, entry, image, scalar } from './images.js';

/** The message of an open file of a map, with the values a test cares for. */
export function mapFile(values: {
  id: number;
  map_id: number;
  type?: number;
  key?: number;
  value?: number;
  max?: number;
  name?: string;
}): Buffer {
  const fown = Buffer.concat([1, 2, 3, 4, 5].map((no) => scalar(no, 0)));
  const { id, map_id, type = 1, key = 4, value = 8, max = 16, name = 'm' } = values;
  return Buffer.concat([
    scalar(1, id),
    scalar(2, 2),
    scalar(3, 0),
    blob(4, fown),
    ...[type, key, value, map_id, max, 0, 4096].map((number, i) => scalar(5 + i, number)),
    scalar(12, 0),
    blob(13, Buffer.from(name, 'latin1')),
    scalar(14, 0),
  ]);
}

/** A files.img of map files. */
export function filesImage(...files: Buffer[]): Buffer {
  // A map file's id is its first field, in one byte here.
  const fileEntry = (message: Buffer) =>
    Buffer.concat([scalar(1, 19), scalar(2, message[1] as number), blob(21, message)]);
  return image('FILES', ...files.map((message) => entry(fileEntry(message))));
}

/** A folder with these images in it, gone after the test. */
export function folderOf(t: { testdir(): string }, images: Readonly<Record<string, Uint8Array>>): string {
  const folder = t.testdir();
  for (const [name, bytes] of Object.entries(images)) fs.writeFileSync(path.join(folder, name), bytes);
  return folder;
}
