/** Items of known types for people: one column per member; nested members are in one cell. */
import { hex } from '../bytes.js';
import type { JsonForm } from '../json/forms.js';
import { COMPACT, print } from '../json/print.js';
import { type Colours, hexGroups } from '../render.js';
import type { Json } from '../value.js';
import { cut, padEnd, padStart, width } from '../width.js';

/** Rows that decide the widths of columns before the first one is printed. */
const ROWS_AHEAD = 256;
/** Width of the longest cell; `decode` has all. */
const CELL_WIDTH = 60;

/** The members of a key or value by name; a value without members is one member without a name. */
export type Fields = readonly (readonly [name: string, value: Json])[];

/** What is shown of a key or value: JSON if it has a form, otherwise bytes. */
export function cellFields(form: JsonForm | undefined, bytes: Uint8Array): Fields {
  if (form === undefined) return [['', bytes.length === 0 ? '' : hexGroups(bytes)]];
  const json = form.show(new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), 0);
  if (typeof json !== 'object' || json === null || Array.isArray(json)) return [['', json]];
  const { $raw, ...members } = json;
  // Padding, or an object that is nothing but bytes.
  if (Object.keys(members).length === 0) return [['', hex(bytes)]];
  if (Object.hasOwn(members, '$kernel')) return [['', json]];
  return Object.entries(members);
}

/** Lays out rows in columns that fit the first rows. */
export class TypedTable {
  readonly #names: string[] = [];
  readonly #widths: number[] = [];
  readonly #right: boolean[] = [];
  /** Cells, by column. */
  #rows: string[][] = [];
  #printed = false;
  #last: Fields | undefined;

  constructor(
    readonly look: Colours,
    readonly perCpu: boolean,
    readonly line: (text: string) => void,
  ) {}

  /** Adds a value of a key; if the key is that of the row before, it is not shown again. */
  row(key: Fields, cpu: number, value: Fields): void {
    const again = this.perCpu && key === this.#last;
    this.#last = key;
    if (this.#names.length === 0) this.#columns(key, value);
    const cells = [
      ...key.map(([, one]) => (again ? '' : cell(one))),
      '│',
      ...(this.perCpu ? [`cpu${cpu}`] : []),
      ...value.map(([, one]) => cell(one)),
    ];
    this.#rows.push(cells);
    if (this.#printed || this.#rows.length === ROWS_AHEAD) this.#flush();
  }

  end(): void {
    this.#flush();
  }

  #columns(key: Fields, value: Fields): void {
    const name = (fallback: string) => (field: readonly [string, Json]) => (field[0] === '' ? fallback : field[0]);
    this.#names.push(...key.map(name('key')), '│', ...(this.perCpu ? [''] : []), ...value.map(name('value')));
    const number = ([, one]: readonly [string, Json]) => typeof one === 'number' || isInteger(one);
    this.#right.push(...key.map(number), false, ...(this.perCpu ? [false] : []), ...value.map(number));
    this.#widths.push(...this.#names.map((text) => width(cell(text))));
  }

  #flush(): void {
    for (const row of this.#rows) {
      for (const [i, text] of row.entries()) this.#widths[i] = Math.max(this.#widths[i] ?? 0, width(text));
    }
    const put = (cells: readonly string[]) => {
      const padded = cells.map((text, i) => {
        return (this.#right[i] ? padStart : padEnd)(text, this.#widths[i] as number);
      });
      return `  ${padded.join('  ')}`.trimEnd();
    };
    if (!this.#printed && this.#rows.length > 0) this.line(this.look.dim(put(this.#names.map(cell))));
    this.#printed = true;
    for (const row of this.#rows) this.line(put(row));
    this.#rows = [];
  }
}

const isInteger = (value: Json) => typeof value === 'string' && /^-?[0-9]+$/.test(value);

/** Text that a cell shows as it is; any other is quoted. */
const PLAIN_CELL = /^[\p{L}\p{M}\p{N}\p{P}\p{S}]+( [\p{L}\p{M}\p{N}\p{P}\p{S}]+)*$/u;

function cell(value: Json): string {
  const text = typeof value === 'string' && PLAIN_CELL.test(value) ? value : quoted(value);
  return width(text) > CELL_WIDTH ? `${cut(text, CELL_WIDTH - 1)}…` : text;
}

/** JSON, with characters that could be misleading as ASCII escapes. */
function quoted(value: Json): string {
  return print(value, { ...COMPACT, ascii: true });
}
