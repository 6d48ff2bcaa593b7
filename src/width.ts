/** The width of text on a terminal, in cells, which are neither characters nor UTF-16 units. */
import { eastAsianWidth } from 'get-east-asian-width';

/** Text of characters that take one cell each: letters and signs of Europe, and the signs that bpfimg adds. */
const PLAIN = /^[\x20-\x7e\xa0-\xac\xae-\u02ff\u2010-\u2027\u2190-\u2193\u2502]*$/;

/** Characters that a terminal draws over or into another one, or not at all. */
const NO_CELL = /^[\p{M}\p{Cf}\p{Cc}\p{Default_Ignorable_Code_Point}]+$/u;
/** Characters that are drawn as pictures, two cells wide: by themselves, or because a selector says so. */
const PICTURE = /^\p{Emoji_Presentation}|^\p{Emoji}.*\ufe0f|^\p{RI}{2}/su;

/** Takes 20 ms at its first use, so it is only made for text that needs it. */
let segmenter: Intl.Segmenter | undefined;

/** Text character by character as a reader sees it, with the width of each. */
function* characters(text: string): Generator<readonly [character: string, cells: number]> {
  segmenter ??= new Intl.Segmenter();
  for (const { segment } of segmenter.segment(text)) {
    const cells = NO_CELL.test(segment) ? 0 : PICTURE.test(segment) ? 2 : eastAsianWidth(segment.codePointAt(0) ?? 0);
    yield [segment, cells];
  }
}

/** Width of `text`. */
export function width(text: string): number {
  if (PLAIN.test(text)) return text.length;
  let sum = 0;
  for (const [, cells] of characters(text)) sum += cells;
  return sum;
}

/** The longest beginning of `text` that fits into `most` cells. */
export function cut(text: string, most: number): string {
  if (PLAIN.test(text)) return text.slice(0, most);
  let [end, sum] = [0, 0];
  for (const [character, cells] of characters(text)) {
    sum += cells;
    if (sum > most) break;
    end += character.length;
  }
  return text.slice(0, end);
}

const blanks = (text: string, cells: number) => ' '.repeat(Math.max(0, cells - width(text)));

/** As `text.padStart(cells)`, in cells. */
export function padStart(text: string, cells: number): string {
  return blanks(text, cells) + text;
}

/** As `text.padEnd(cells)`, in cells. */
export function padEnd(text: string, cells: number): string {
  return text + blanks(text, cells);
}

/** `text` in lines of at most `most` cells, broken at blanks where there are any. */
export function wrapped(text: string, most: number): string[] {
  const lines: string[] = [];
  let rest = text;
  for (;;) {
    // No line has more characters that take a cell; the others are few.
    const start = rest.slice(0, 4 * most + 64);
    const fits = cut(start, most);
    if (fits.length === rest.length) break;
    // A character may be wider than the line.
    const line = fits || String.fromCodePoint(rest.codePointAt(0) as number);
    const blank = rest[line.length] === ' ' ? line.length : line.lastIndexOf(' ');
    const end = blank > 0 ? blank : line.length;
    lines.push(rest.slice(0, end).trimEnd());
    rest = rest.slice(end).trimStart();
  }
  return rest === '' && lines.length > 0 ? lines : [...lines, rest];
}
