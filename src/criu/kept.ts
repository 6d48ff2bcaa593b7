/** Objects that the CRIU plugin keeps in the kernel between a dump and its restore. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { PLUGIN_TABLE } from '../dump/model.js';
import { KEPT, type KeptLine, readTable } from '../dump/plugin-table.js';
import { errnoOf, ioError } from '../errors.js';
import { openFile } from '../io/input.js';

/** An object that was kept. */
export interface Kept extends Pick<KeptLine, 'kind' | 'object'> {
  /** Whether it was still there. */
  readonly wasThere: boolean;
}

/**
 * Removes the pins of what was kept for the dump in `folder`. Whatever nobody else uses is gone then, and the dump can no
 * longer be restored.
 * @returns the objects, each once
 * @throws BpfimgError if the dump has no table of the plugin, or the table is broken
 */
export async function forgetKept(folder: string): Promise<Kept[]> {
  const lines = new Map<string, KeptLine>();
  const input = openFile(path.join(folder, PLUGIN_TABLE));
  try {
    await readTable(input, (line) => {
      if ('kind' in line) lines.set(pinOf(line), line);
    });
  } finally {
    input.close();
  }
  const done: Kept[] = [];
  for (const [pin, { kind, object }] of lines)
    done.push({ kind, object, wasThere: removed(() => fs.unlinkSync(pin), pin) });
  for (const place of new Set([...lines.keys()].map((pin) => path.dirname(pin))))
    removed(() => fs.rmdirSync(place), place);
  // If it was the last.
  if (lines.size > 0 && fs.existsSync(KEPT) && fs.readdirSync(KEPT).length === 0)
    removed(() => fs.rmdirSync(KEPT), KEPT);
  return done;
}

function pinOf({ folder, kind, object }: KeptLine): string {
  return `${KEPT}/${folder}/${kind}_${object}`;
}

function removed(remove: () => void, name: string): boolean {
  try {
    remove();
    return true;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false;
    throw ioError(name, 'remove it', error);
  }
}
