/** JSON values as text, in the spellings that bpfimg writes. */
import type { Json } from '../value.js';

/** Spelling of JSON: what stands between things. */
export interface Style {
  /** Spaces of one indentation level; undefined keeps everything on one line. */
  readonly indent?: number;
  readonly comma: string;
  readonly colon: string;
  /** Write characters beyond ASCII as `\uXXXX`. */
  readonly ascii: boolean;
  /** What integers beyond 2^53-1 are: digits like all others, or text, because jq and JavaScript would change them. */
  readonly wide: 'digits' | 'text';
}

/** Python's `json.dump`, which is what crit prints. */
export const PYTHON: Style = { comma: ', ', colon: ': ', ascii: true, wide: 'digits' };
/** Python's `json.dump` with `indent=4`: crit's `--pretty`. */
export const PYTHON_PRETTY: Style = { indent: 4, comma: ',', colon: ': ', ascii: true, wide: 'digits' };
/** No blanks at all, as go-criu and `jq -c` write. */
export const COMPACT: Style = { comma: ',', colon: ':', ascii: false, wide: 'text' };
/** Indented as crit does, for documents that are ours. */
export const PRETTY: Style = { ...PYTHON_PRETTY, ascii: false, wide: 'text' };

// biome-ignore lint/suspicious/noControlCharactersInRegex: what JSON.stringify escapes itself is left alone, DEL is not
const NOT_ASCII = /[^\x00-\x7e]/g;

/** One string in JSON's quotes. */
export function quote(text: string, ascii: boolean): string {
  const quoted = JSON.stringify(text);
  return ascii ? inAscii(quoted) : quoted;
}

/** JSON text without characters beyond ASCII, which stand in its strings alone. */
export function inAscii(json: string): string {
  return json.replace(NOT_ASCII, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

/**
 * Prints a value.
 * @param level indentation level the value stands at
 */
export function print(value: Json, style: Style, level = 0): string {
  if (typeof value === 'string') return quote(value, style.ascii);
  // What is exact in a double has been made a number.
  if (typeof value === 'bigint') return style.wide === 'text' ? `"${value}"` : String(value);
  if (typeof value !== 'object' || value === null) return String(value);
  const isList = Array.isArray(value);
  const parts = isList
    ? value.map((element) => print(element, style, level + 1))
    : Object.entries(value).map(
        ([name, member]) => quote(name, style.ascii) + style.colon + print(member, style, level + 1),
      );
  const [open, close] = isList ? '[]' : '{}';
  if (parts.length === 0) return `${open}${close}`;
  if (style.indent === undefined) return `${open}${parts.join(style.comma)}${close}`;
  const outer = ' '.repeat(style.indent * level);
  const inner = outer + ' '.repeat(style.indent);
  return `${open}\n${inner}${parts.join(`${style.comma}\n${inner}`)}\n${outer}${close}`;
}
