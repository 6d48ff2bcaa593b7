/** JSON values as text, in the spellings that bpfimg writes. */
import type { Json } from '../value.js';

/** Spelling of JSON: separators, indentation, escapes. */
export interface Style {
  /** Spaces of one indentation level; undefined keeps everything on one line. */
  readonly indent?: number;
  readonly comma: string;
  readonly colon: string;
  /** Write characters beyond ASCII as `\uXXXX`. */
  readonly ascii: boolean;
  /** How integers beyond 2^53-1 are written: as digits, or as text, because jq and JavaScript would change them. */
  readonly wide: 'digits' | 'text';
}

/** Python's `json.dump`, as crit prints. */
export const PYTHON: Style = { comma: ', ', colon: ': ', ascii: true, wide: 'digits' };
/** Python's `json.dump` with `indent=4`: crit's `--pretty`. */
export const PYTHON_PRETTY: Style = { indent: 4, comma: ',', colon: ': ', ascii: true, wide: 'digits' };
/** No blanks at all, as go-criu and `jq -c` write. */
export const COMPACT: Style = { comma: ',', colon: ':', ascii: false, wide: 'text' };
/** Indented like crit's output, for our own documents. */
export const PRETTY: Style = { ...PYTHON_PRETTY, ascii: false, wide: 'text' };

// biome-ignore lint/suspicious/noControlCharactersInRegex: what JSON.stringify escapes itself is left alone, DEL is not
const NOT_ASCII = /[^\x00-\x7e]/g;

/** One string in JSON's quotes. */
export function quote(text: string, ascii: boolean): string {
  const quoted = JSON.stringify(text);
  return ascii ? inAscii(quoted) : quoted;
}

/** JSON text with characters beyond ASCII escaped; they can only be in its strings. */
export function inAscii(json: string): string {
  return json.replace(NOT_ASCII, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

/**
 * A value as text.
 * @param level indentation level of the value
 */
export function print(value: Json, style: Style, level = 0): string {
  let text = '';
  printTo(value, style, (part) => (text += part), level);
  return text;
}

/** {@link print} in short parts: the text of a large message would take several times the memory that it takes. */
export function printTo(value: Json, style: Style, put: (part: string) => void, level = 0): void {
  if (typeof value !== 'object' || value === null) {
    put(scalar(value, style));
    return;
  }
  const isList = Array.isArray(value);
  const [open, close] = isList ? '[]' : '{}';
  const outer = style.indent === undefined ? '' : `\n${' '.repeat(style.indent * level)}`;
  const inner = style.indent === undefined ? '' : outer + ' '.repeat(style.indent);
  let before = open + inner;
  const child = (name: string, member: Json) => {
    if (typeof member === 'object' && member !== null) {
      put(before + name);
      printTo(member, style, put, level + 1);
    } else put(before + name + scalar(member, style));
    before = style.comma + inner;
  };
  let empty = true;
  if (isList) {
    for (const element of value) child('', element);
    empty = value.length === 0;
  } else {
    for (const name in value) {
      child(quote(name, style.ascii) + style.colon, value[name] as Json);
      empty = false;
    }
  }
  put(empty ? `${open}${close}` : `${outer}${close}`);
}

function scalar(value: string | number | bigint | boolean | null, { ascii, wide }: Style): string {
  if (typeof value === 'string') return quote(value, ascii);
  // Integers that are exact in a double are already numbers.
  if (typeof value === 'bigint') return wide === 'text' ? `"${value}"` : String(value);
  return String(value);
}
