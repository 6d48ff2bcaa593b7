/** How large a map's items are and how their keys and values look: without the code that reads or writes any. */
import type { ValuePart } from '../btf/values.js';
import type { Output } from '../io/output.js';
import type { Json, JsonObject } from '../value.js';

/** Sizes of an entry's items; for per-CPU maps also how a value divides into one per CPU. */
export interface ItemShape {
  /** Bytes of a key. */
  readonly keySize: number;
  /** Bytes of an item's whole value: for per-CPU maps, round_up(value_size, 8) for each possible CPU. */
  readonly valueSize: number;
  /** Bytes of one CPU's value without its padding. */
  readonly perCpu?: number;
}

/**
 * The item sizes of a data entry, or undefined if its totals do not divide into `count` equal items: such an entry
 * is shown as one blob.
 */
export function itemShape(count: number, keysBytes: number, valuesBytes: number): ItemShape | undefined {
  if (count === 0) return keysBytes + valuesBytes === 0 ? { keySize: 0, valueSize: 0 } : undefined;
  // Items without any bytes would let an image of 20 bytes produce endless text.
  if (keysBytes + valuesBytes === 0 || keysBytes % count !== 0 || valuesBytes % count !== 0) return undefined;
  return { keySize: keysBytes / count, valueSize: valuesBytes / count };
}

/** How keys or values are shown in JSON other than as plain hex. */
export interface JsonForm {
  /** Bytes of one key, or of one (CPU's) value. */
  readonly size: number;
  /** The JSON of the bytes at `at`. */
  show(view: DataView, at: number): Json;
  /** The same as text without blanks, written straight into `out`. */
  print(view: DataView, at: number, out: Output): void;
  /**
   * Writes the {@link size} bytes of `value` at `at`; it may be plain hex too.
   * @throws PointerError
   */
  parse(value: Json, view: DataView, at: number): void;
  /**
   * A member or element by its path, as `stats[2].bytes`. Absent if it has no parts.
   * @throws PointerError if there is none
   */
  part?(path: string): ValuePart;
}

/** The half of a form that converts to JSON. */
export type JsonPrinter = Pick<JsonForm, 'show' | 'print'>;

/** Forms of a map's items; keys or values without one are hex. */
export interface ItemForms {
  readonly key?: JsonForm | undefined;
  readonly value?: JsonForm | undefined;
}

/** Forms with the member of a map's header that names them. */
export interface MapForms extends ItemForms {
  readonly types: JsonObject;
}

/** Largest key or value that gets a form, because it is then held in memory; larger ones are hex. */
export const FORM_MOST = 1024 * 1024;

/** The forms that fit items of this shape: keys or values of any other size are hex. */
export function formsThatFit(forms: ItemForms | undefined, keySize: number, valueSize: number): ItemForms | undefined {
  const key = forms?.key?.size === keySize ? forms.key : undefined;
  const value = forms?.value?.size === valueSize ? forms.value : undefined;
  return key === undefined && value === undefined ? undefined : { key, value };
}
