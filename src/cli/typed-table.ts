/** Items of known types for people: one column per member; nested members are in one cell. */
import { hex } from '../bytes.js';
import type { JsonForm } from '../json/forms.js';
import { valuePaths } from '../json/paths.js';
import { COMPACT, print } from '../json/print.js';
import { type Colours, hexGroups, hiddenText } from '../render.js';
import type { Json } from '../value.js';
import { cut, padEnd, padStart, width, wrapped } from '../width.js';

/** Rows that decide the widths of columns before the first one is printed. */
const ROWS_AHEAD = 256;
/** Width of the longest cell; `--full` shows all. */
const CELL_WIDTH = 60;
/** The same in a list of members, where it may have several lines. */
const RECORD_WIDTH = 200;
/** Least cells for a value in a list of members. */
const NARROWEST = 16;

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

/** How items are laid out. */
export interface Layout {
  /** Columns of the terminal; undefined if there is none. */
  readonly columns: number | undefined;
  /** One line for each member; undefined if that depends on the width. */
  readonly vertical: boolean | undefined;
  /** Nothing is cut off. */
  readonly full: boolean;
}

/** A row: a value with its key. */
interface Row {
  readonly key: Fields;
  readonly cpu: number;
  readonly value: Fields;
  /** The key is that of the row before, and not shown again. */
  readonly again: boolean;
  readonly cells: readonly string[];
}

/**
 * Lays out rows in columns that fit the first rows. If these are wider than the terminal, each item becomes a list of
 * its members instead or, if the user does not want that, columns are left out.
 */
export class TypedTable {
  readonly #names: string[] = [];
  readonly #widths: number[] = [];
  readonly #right: boolean[] = [];
  #rows: Row[] = [];
  #printed = false;
  #last: Fields | undefined;
  #vertical = false;
  /** The columns that are shown. */
  #shown: number[] = [];
  /** Cells of the longest name in a list of members. */
  #nameWidth = 0;

  constructor(
    readonly look: Colours,
    readonly perCpu: boolean,
    readonly line: (text: string) => void,
    readonly layout: Layout,
  ) {}

  /** Adds a value of a key; if the key is that of the row before, it is not shown again. */
  row(key: Fields, cpu: number, value: Fields): void {
    const again = this.perCpu && key === this.#last;
    this.#last = key;
    if (this.#names.length === 0) this.#columns(key, value);
    const most = this.layout.full ? Infinity : CELL_WIDTH;
    const cells = [
      ...key.map(([, one]) => (again ? '' : cell(one, most))),
      '│',
      ...(this.perCpu ? [`cpu${cpu}`] : []),
      ...value.map(([, one]) => cell(one, most)),
    ];
    this.#rows.push({ key, cpu, value, again, cells });
    if (this.#printed || this.#rows.length === ROWS_AHEAD) this.#flush();
  }

  end(): void {
    this.#flush();
    const hidden = this.#names.filter((_, i) => this.#printed && !this.#vertical && !this.#shown.includes(i));
    if (hidden.length > 0) this.line(this.look.dim(`  … ${hiddenText(hidden)} (--vertical shows all)`));
  }

  #columns(key: Fields, value: Fields): void {
    const name = (fallback: string) => (field: readonly [string, Json]) => (field[0] === '' ? fallback : field[0]);
    this.#names.push(...key.map(name('key')), '│', ...(this.perCpu ? [''] : []), ...value.map(name('value')));
    const number = ([, one]: readonly [string, Json]) => typeof one === 'number' || isInteger(one);
    this.#right.push(...key.map(number), false, ...(this.perCpu ? [false] : []), ...value.map(number));
    this.#widths.push(...this.#names.map((text) => width(cell(text, CELL_WIDTH))));
  }

  #flush(): void {
    for (const { cells } of this.#rows) {
      for (const [i, text] of cells.entries()) this.#widths[i] = Math.max(this.#widths[i] ?? 0, width(text));
    }
    if (!this.#printed && this.#rows.length > 0) this.#begin();
    for (const row of this.#rows) {
      if (this.#vertical) this.#record(row);
      else this.line(this.#line(row.cells));
      this.#printed = true;
    }
    this.#rows = [];
  }

  #line(cells: readonly string[]): string {
    const padded = this.#shown.map((i) => {
      return (this.#right[i] ? padStart : padEnd)(cells[i] as string, this.#widths[i] as number);
    });
    return `  ${padded.join('  ')}`.trimEnd();
  }

  /** Decides the layout, once the first rows are known. */
  #begin(): void {
    const { columns = Infinity, vertical } = this.layout;
    this.#shown = [...this.#names.keys()];
    const room = () => columns - this.#shown.reduce((sum, i) => sum + 2 + (this.#widths[i] as number), 0);
    this.#vertical = vertical ?? room() < 0;
    if (this.#vertical) {
      for (const row of this.#rows) {
        for (const [name] of this.#members(row)) this.#nameWidth = Math.max(this.#nameWidth, width(name));
      }
      return;
    }
    // From the right; of the key and of the value one column each stays.
    const bar = this.#names.indexOf('│');
    const first = bar + (this.perCpu ? 2 : 1);
    for (let i = this.#names.length - 1; i > 0 && room() < 0; i--) {
      if (i > first || i < bar) this.#shown = this.#shown.filter((one) => one !== i);
    }
    this.line(this.look.dim(this.#line(this.#names.map((name) => cell(name, CELL_WIDTH)))));
  }

  /** The members of an item by path, those of its value behind a bar. */
  #members({ key, cpu, value, again }: Row): [name: string, value: Json][] {
    const paths = (fields: Fields, fallback: string, before: string) =>
      fields.flatMap(([name, one]) =>
        [...valuePaths(one, name)].map(([path, part]): [string, Json] => [
          before + (path === '' ? fallback : cell(path, CELL_WIDTH)),
          part,
        ]),
      );
    return [...(again ? [] : paths(key, 'key', '')), ...paths(value, 'value', this.perCpu ? `│ [${cpu}].` : '│ ')];
  }

  /** An item as a list of its members. */
  #record(row: Row): void {
    if (this.#printed && !row.again) this.line('');
    const members = this.#members(row);
    for (const [name] of members) this.#nameWidth = Math.max(this.#nameWidth, width(name));
    const { columns, full } = this.layout;
    const room = columns === undefined ? Infinity : Math.max(NARROWEST, columns - this.#nameWidth - 4);
    for (const [name, value] of members) {
      const lines = wrapped(cell(value, full ? Infinity : RECORD_WIDTH), room);
      for (const [i, text] of lines.entries()) {
        const before = i === 0 ? name : name.startsWith('│') ? '│' : '';
        this.line(`  ${this.look.dim(padEnd(before, this.#nameWidth))}  ${text}`.trimEnd());
      }
    }
  }
}

const isInteger = (value: Json) => typeof value === 'string' && /^-?[0-9]+$/.test(value);

/** Text that a cell shows as it is; any other is quoted. */
const PLAIN_CELL = /^[\p{L}\p{M}\p{N}\p{P}\p{S}]+( [\p{L}\p{M}\p{N}\p{P}\p{S}]+)*$/u;

function cell(value: Json, most: number): string {
  const text = typeof value === 'string' && PLAIN_CELL.test(value) ? value : quoted(value);
  return most < Infinity && width(text) > most ? `${cut(text, most - 1)}…` : text;
}

/** JSON, with characters that could be misleading as ASCII escapes. */
function quoted(value: Json): string {
  return print(value, { ...COMPACT, ascii: true });
}
