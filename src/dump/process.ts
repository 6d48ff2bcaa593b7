/** What a dump says of its processes besides their maps. */
import { BpfimgError } from '../errors.js';
import { HEAD_COMMON, magicOf } from '../image/kinds.js';
import { MAX_MESSAGE } from '../image/reader.js';
import { bytesField, WireError } from '../image/wire.js';
import { Cursor } from '../io/input.js';
import type { DumpFiles } from './files.js';

/** Fields of core_entry and task_core_entry (CRIU's core.proto). */
const TASK_CORE = 3;
const COMMAND = 6;

/** The name of a process, one character per byte; undefined if its core image does not contain it. */
export async function commandOf(files: DumpFiles, pid: number): Promise<string | undefined> {
  const name = `core-${pid}.img`;
  if (files.size(name) === undefined) return undefined;
  try {
    const input = files.open(name);
    try {
      const cursor = new Cursor(input);
      const head = [HEAD_COMMON, magicOf('CORE')];
      if ((await cursor.fill(12)) < 12 || head.some((word, i) => cursor.view.getUint32(4 * i, true) !== word)) {
        return undefined;
      }
      const size = cursor.view.getUint32(8, true);
      if (size > MAX_MESSAGE) return undefined;
      cursor.at += 12;
      const task = bytesField(await cursor.take(size), TASK_CORE);
      const command = task && bytesField(task, COMMAND);
      return command && Buffer.from(command).toString('latin1');
    } finally {
      input.close();
    }
  } catch (error) {
    // `verify` reports what is wrong with such an image.
    if (error instanceof BpfimgError || error instanceof WireError) return undefined;
    throw error;
  }
}
