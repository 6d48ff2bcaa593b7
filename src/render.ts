/** Text for people: tables, bytes, colours. All layout is done here, and all text is made safe for a terminal here. */
import { escaped, oneLine } from './errors.js';
import { cut, padEnd, padStart, width, wrapped } from './width.js';

/** Styles for a terminal; each does nothing if colours are off. */
export interface Colours {
  bold(text: string): string;
  dim(text: string): string;
  red(text: string): string;
  yellow(text: string): string;
  green(text: string): string;
}

/** Colours for a terminal unless NO_COLOR (no-color.org) or `--no-color` says otherwise. */
export function colours(on: boolean): Colours {
  const style = (code: number, end: number) => (text: string) =>
    on && text !== '' ? `\x1b[${code}m${text}\x1b[${end}m` : text;
  return { bold: style(1, 22), dim: style(2, 22), red: style(31, 39), yellow: style(33, 39), green: style(32, 39) };
}

/** What {@link colours} adds to text. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: terminals know colours by it
const STYLE = /(\x1b\[(?:[12]|22|3[1-3]|39)m)/;

/** A line for people, made safe to print: the only control sequences left in it are our own colours. */
export function lineText(line: string): string {
  const parts = line.split(STYLE);
  return parts.map((part, i) => (i % 2 === 0 ? oneLine(part) : part)).join('');
}

/** One column of a table. */
export interface Column {
  readonly title: string;
  readonly right?: boolean;
}

/** Cells that the last column of a table keeps on a narrow terminal; its text continues below. */
const LAST_COLUMN = 20;

/**
 * Lines of a table: a heading, then rows, columns two blanks apart.
 * @param most columns of the terminal: what does not fit is wrapped in the last column, or left out and counted
 */
export function table(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
  look: Colours,
  most?: number,
): string[] {
  const titles = columns.map(({ title }) => title);
  const safe = rows.map((row) => row.map(oneLine));
  const widths = titles.map(width);
  for (const row of safe) for (const [i, cell] of row.entries()) widths[i] = Math.max(widths[i] ?? 0, width(cell));
  let count = columns.length;
  const room = () => (most ?? Infinity) - widths.slice(0, count - 1).reduce((sum, one) => sum + one + 2, 0);
  const needed = () => {
    const [all = 0, title] = [widths[count - 1], width(titles[count - 1] as string)];
    return columns[count - 1]?.right ? all : Math.min(all, Math.max(title, LAST_COLUMN));
  };
  while (count > 1 && room() < needed()) count--;
  const last = count - 1;
  if (!columns[last]?.right) widths[last] = Math.min(widths[last] as number, Math.max(room(), needed()));
  const lines = (cells: readonly string[]) =>
    wrapped(cells[last] ?? '', widths[last] as number).map((part, line) =>
      columns
        .slice(0, count)
        .map(({ right }, i) => {
          const cell = i === last ? part : line === 0 ? (cells[i] ?? '') : '';
          return (right ? padStart : padEnd)(cell, widths[i] as number);
        })
        .join('  ')
        .trimEnd(),
    );
  const hidden = titles.slice(count);
  const left = hidden.length === 0 ? [] : [look.dim(`… ${hiddenText(hidden)}`)];
  return [...lines(titles).map(look.bold), ...safe.flatMap(lines), ...left];
}

/** Which columns are not shown. */
export function hiddenText(names: readonly string[]): string {
  return `${plural(names.length, 'more column')}: ${names.join(', ')}`;
}

/** Bytes of a line in a hex dump. */
export const DUMP_WIDTH = 16;

/** Bytes as hex in groups of four. */
export function hexGroups(bytes: Uint8Array): string {
  return (
    Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
      .toString('hex')
      .match(/.{1,8}/g)
      ?.join(' ') ?? ''
  );
}

/** Bytes as ASCII, a dot for what is not printable. */
export function asciiText(bytes: Uint8Array): string {
  return [...bytes].map((byte) => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : '.')).join('');
}

/** A name from an image, made safe to print: one character for each byte, unprintable ones escaped. */
export function nameText(name: string): string {
  return oneLine(name.replace(/\\/g, '\\\\').replace(/[\xa0\xad]/g, escaped));
}

/** `1 map`, `2 maps`. */
export function plural(count: number, word: string): string {
  return `${count} ${word}${count === 1 ? '' : 's'}`;
}

/** A size with a binary unit, at most four digits: `7.8 KiB`. */
export function sizeText(bytes: number): string {
  let value = bytes;
  for (const unit of ['bytes', 'KiB', 'MiB', 'GiB']) {
    if (value < 1024) return `${Number.isInteger(value) ? value : value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(1)} TiB`;
}

/** Text that replaces the current line of a terminal with `columns`; empty text clears the line. */
export function onSameLine(text: string, columns?: number): string {
  // A terminal that does not know its size reports 0.
  return `\r\x1b[K${cut(oneLine(text), Math.max(1, (columns || 80) - 1))}`;
}

/** Text that replaces what is on the screen by `lines`. Each line is cleared where it ends, so nothing flickers. */
export function onWholeScreen(lines: readonly string[]): string {
  return `\x1b[H${lines.map((line) => `${lineText(line)}\x1b[K\n`).join('')}\x1b[J`;
}

/** A time for people: `3 s`, `2 min`. */
export function timeText(seconds: number): string {
  return seconds < 100 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`;
}
