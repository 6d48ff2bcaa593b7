/**
 * What the CRIU plugin says of open files: a text table in the images folder, a line `ID MAP_ID FLAGS` each, in
 * hex, decimal and octal. Other facts about the maps stand in images, once for each map.
 */
import { BpfimgError } from '../errors.js';
import { Cursor, type Input } from '../io/input.js';
import type { Output } from '../io/output.js';
import { pause } from '../io/pause.js';

/** One open file of a map. */
export interface TableLine {
  /** In the text, from 1. */
  readonly line: number;
  /** Of the entry in files.img. */
  readonly id: number;
  readonly mapId: number;
  /** As F_GETFL gives them. */
  readonly flags: number;
}

const FORM = /^(0|[1-9a-f][0-9a-f]{0,7}) (0|[1-9][0-9]{0,9}) ([0-7]{1,12})$/;

/** Bytes of the longest line, its end included. */
const LONGEST = 8 + 1 + 10 + 1 + 12 + 1;

/**
 * Reads the table's lines in order.
 * @throws BpfimgError `badImage`, with the line
 */
export async function* readTable(input: Input): AsyncGenerator<TableLine> {
  const cursor = new Cursor(input);
  for (let line = 1; ; line++) {
    const ready = Math.min(await cursor.fill(LONGEST), LONGEST);
    if (ready === 0) return;
    const text = Buffer.from(cursor.bytes.subarray(cursor.at, cursor.at + ready)).toString('latin1');
    const end = text.indexOf('\n');
    const match = end < 0 ? null : FORM.exec(text.slice(0, end));
    const [id = 0, mapId = 0, flags = 0] = match
      ? [16, 10, 8].map((base, i) => Number.parseInt(match[i + 1] ?? '', base))
      : [];
    if (match === null || mapId > 0xffffffff || flags > 0xffffffff) {
      const shown = JSON.stringify(end < 0 ? text : text.slice(0, end));
      const expected = 'expected the id of an open file (hex), of a map (decimal) and open flags (octal)';
      throw new BpfimgError('badImage', `${input.name}: line ${line} is ${shown}, ${expected}`, {
        code: 'plugin-table',
      });
    }
    yield { line, id, mapId, flags };
    cursor.at += end + 1;
    await pause();
  }
}

/** Writes a line of the table as the plugin does. */
export function writeLine(out: Output, { id, mapId, flags }: Omit<TableLine, 'line'>): void {
  out.text(`${id.toString(16)} ${mapId} ${flags === 0 ? '' : '0'}${flags.toString(8)}\n`);
}
