/**
 * The CRIU plugin's list of open files: a text table in the images folder, a line `ID MAP_ID FLAGS` each, in
 * hex, decimal and octal. Other facts about the maps are in images, once for each map.
 *
 * A line `ID KIND OBJECT TAG FOLDER` is an object that stays in the kernel until the restore: {@link KeptLine}.
 */
import { BpfimgError } from '../errors.js';
import { Cursor, type Input } from '../io/input.js';
import { pause } from '../io/pause.js';

/** One open file of a map. */
export interface TableLine {
  /** Line number, from 1. */
  readonly line: number;
  /** The id of the entry in files.img. */
  readonly id: number;
  readonly mapId: number;
  /** As F_GETFL returns them. */
  readonly flags: number;
  /** The line as in the file, with its line end. */
  readonly text: string;
}

/** A program, link or BTF that the plugin has pinned ({@link KEPT}), because it cannot be made again. */
export interface KeptLine extends Pick<TableLine, 'line' | 'id' | 'text'> {
  readonly kind: 'prog' | 'link' | 'btf';
  /** Its id in the boot of the dump. */
  readonly object: number;
  /** Name of the folder of its pin. */
  readonly folder: string;
}

/** Where the plugin pins objects. */
export const KEPT = '/sys/fs/bpf/bpfimg-kept';

const FORM = /^(0|[1-9a-f][0-9a-f]{0,7}) (0|[1-9][0-9]{0,9}) ([0-7]{1,12})$/;

const KEPT_FORM = /^([1-9a-f][0-9a-f]{0,7}) (prog|link|btf) ([1-9][0-9]{0,9}) (?:[0-9a-f]{16}|-) ([0-9a-f-]{1,32})$/;

/** Bytes of the longest line, with its line end. */
const LONGEST_LINE = 8 + 1 + 4 + 1 + 10 + 1 + 16 + 1 + 32 + 1;

/**
 * Reads the table's lines in order.
 * @throws BpfimgError `badImage`, with the line; and whatever `take` throws
 */
export async function readTable(input: Input, take: (line: TableLine | KeptLine) => void): Promise<void> {
  const cursor = new Cursor(input);
  let line = 1;
  while ((await cursor.fill(LONGEST_LINE)) > 0) {
    // Only the end of the table has fewer bytes left than the longest line.
    const least = cursor.ready < LONGEST_LINE ? 1 : LONGEST_LINE;
    for (; cursor.ready >= least; line++) take(lineOf(input, cursor, line));
    await pause();
  }
}

function lineOf(input: Input, cursor: Cursor, line: number): TableLine | KeptLine {
  const { bytes, at, ready } = cursor;
  const start = Buffer.from(bytes.buffer, bytes.byteOffset + at, Math.min(ready, LONGEST_LINE));
  const end = start.indexOf(0x0a);
  const text = start.toString('latin1', 0, end < 0 ? undefined : end);
  const kept = end < 0 ? null : KEPT_FORM.exec(text);
  if (kept !== null) {
    const [, id = '', kind = '', object = '', folder = ''] = kept;
    cursor.at += end + 1;
    const facts = { line, id: Number.parseInt(id, 16), text: `${text}\n` };
    return { ...facts, kind: kind as KeptLine['kind'], object: Number(object), folder };
  }
  const match = end < 0 ? null : FORM.exec(text);
  const number = (part: number, base: number) => Number.parseInt(match?.[part] ?? '', base);
  const [id, mapId, flags] = [number(1, 16), number(2, 10), number(3, 8)];
  if (match === null || mapId > 0xffffffff || flags > 0xffffffff) {
    const expected = 'expected the id of an open file (hex), of a map (decimal) and open flags (octal)';
    const message = `line ${line} is ${JSON.stringify(text)}, ${expected}`;
    throw new BpfimgError('badImage', message, { subject: input.name, code: 'plugin-table', line });
  }
  cursor.at += end + 1;
  return { line, id, mapId, flags, text: `${text}\n` };
}

/** A line as the plugin writes it. */
export function tableText({ id, mapId, flags }: Pick<TableLine, 'id' | 'mapId' | 'flags'>): string {
  return `${id.toString(16)} ${mapId} ${flags === 0 ? '' : '0'}${flags.toString(8)}\n`;
}
