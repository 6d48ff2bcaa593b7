/** Prints the results of `diff`: lines for people, or JSON, item by item. */
import { cpuParts, isZero, putHex, viewOf } from '../bytes.js';
import type { AttributeChange, MapDifference, SideItems } from '../diff/diff.js';
import type { MapPair } from '../diff/pairs.js';
import type { DumpMap } from '../dump/model.js';
import { mapName } from '../dump/select.js';
import { BpfimgError } from '../errors.js';
import { Cursor, type Input } from '../io/input.js';
import type { Output } from '../io/output.js';
import { FORM_MOST, formsThatFit, type ItemForms, type JsonForm } from '../json/forms.js';
import { COMPACT, print } from '../json/print.js';
import { flagWords, type MapTypes } from '../maptype.js';
import { type Colours, DUMP_WIDTH, hexGroups, nameText, plural } from '../render.js';
import { isObject, type Json } from '../value.js';
import { printLines } from './written.js';

/** A map of one side, and how it is printed. */
export interface PrintedSide {
  readonly map: DumpMap;
  readonly forms: ItemForms | undefined;
}

/** Receives the differences. */
export interface DiffReport {
  begin(): void;
  /** A map that is on both sides and differs. */
  both(a: PrintedSide, b: PrintedSide, difference: MapDifference): Promise<void>;
  /** A map that is on one side only. */
  only(pair: MapPair): Promise<void>;
  end(different: boolean): void;
}

const ARROW = '→';
/** Bytes of a long value that are compared in one piece: whole rows. */
const PIECE = 64 * 1024;

/** Bytes that are read at once, in order and out of order. */
const IN_ORDER = 256 * 1024;
const ANYWHERE = 512;

/** Reads at any position, and larger pieces if the positions turn out to be in order. */
class Reader {
  #bytes: Uint8Array = new Uint8Array(0);
  /** Their position in the input. */
  #at = 0;
  #step = ANYWHERE;

  constructor(readonly input: Input) {}

  /** Bytes of the input, which stay valid until the next call. */
  async read(at: number, size: number): Promise<Uint8Array> {
    const end = this.#at + this.#bytes.length;
    if (at < this.#at || at + size > end) {
      this.#step = at >= this.#at && at <= end + ANYWHERE ? Math.min(2 * this.#step, IN_ORDER) : ANYWHERE;
      const most = Math.max(size, Math.min(this.#step, (this.input.size ?? at) - at));
      this.#bytes = await new Cursor(this.input, at, at + most, most).take(most);
      this.#at = at;
      if (this.#bytes.length < size) {
        throw new BpfimgError('badImage', 'it has become shorter while it was read', { subject: this.input.name });
      }
    }
    return this.#bytes.subarray(at - this.#at, at - this.#at + size);
  }
}

/** The items of one side, and how they look. */
export class ItemsView {
  readonly #keys: Reader;
  readonly #values: Reader;
  readonly forms: ItemForms;
  /** Bytes of one CPU's value (or of the value), without and with its padding. */
  readonly size: number;
  readonly stride: number;
  readonly cpus: number;

  constructor(
    readonly items: SideItems,
    forms: ItemForms | undefined,
  ) {
    const { input, keySize, valueSize, perCpu } = items;
    this.#keys = new Reader(input);
    this.#values = new Reader(input);
    ({ size: this.size, stride: this.stride, cpus: this.cpus } = cpuParts(valueSize, perCpu));
    this.forms = formsThatFit(forms, keySize, this.size) ?? {};
  }

  keyAt(position: number): number {
    return this.items.keysAt + position * this.items.keySize;
  }

  /** Position of a CPU's value in the input. */
  valueAt(position: number, cpu = 0): number {
    return this.items.valuesAt + position * this.items.valueSize + cpu * this.stride;
  }

  /** Bytes of keys or values, valid until the next call for the same. */
  bytes(at: number, size: number): Promise<Uint8Array> {
    return (at < this.items.valuesAt ? this.#keys : this.#values).read(at, size);
  }

  /** The JSON of a key or value by its form; undefined if it has none, or if the form would lose bytes. */
  async json(form: JsonForm | undefined, at: number, size: number): Promise<Json | undefined> {
    if (form === undefined || size > FORM_MOST) return undefined;
    const bytes = await this.bytes(at, size);
    return isZero(bytes, form.size) ? form.show(viewOf(bytes), 0) : undefined;
  }
}

/** A part of a value that differs, by its path. */
export interface PartChange {
  readonly path: string;
  /** Undefined if it is missing. */
  readonly a: Json | undefined;
  readonly b: Json | undefined;
}

/** The innermost parts in which two values differ. */
export function* partChanges(a: Json | undefined, b: Json | undefined, path = ''): Generator<PartChange> {
  if (Array.isArray(a) && Array.isArray(b)) {
    for (let i = 0; i < Math.max(a.length, b.length); i++) yield* partChanges(a[i], b[i], `${path}[${i}]`);
  } else if (isObject(a) && isObject(b)) {
    for (const name of new Set([...Object.keys(a), ...Object.keys(b)])) {
      yield* partChanges(a[name], b[name], `${path}.${name}`);
    }
  } else if (JSON.stringify(a) !== JSON.stringify(b)) yield { path, a, b };
}

/** `map 377 flows`, with both ids if they differ. */
function title(a: DumpMap | undefined, b: DumpMap | undefined): string {
  const ids = [...new Set([a, b].flatMap((map) => (map === undefined ? [] : [map.mapId])))].join(` ${ARROW} `);
  const name = [a, b].map((map) => map && mapName(map)).find((text) => text !== undefined && text !== '');
  return `map ${ids}${name === undefined ? '' : ` ${nameText(name)}`}`;
}

// ---------------------------------------------------------------------------------------------------
// Text

/** Most lines of hex that are shown of one value, and most bytes of a key or value that is only on one side. */
const MOST_ROWS = 4;
const SHOWN_BYTES = 64;
/** Most parts of one typed value that are shown, and most characters of a part. */
const MOST_PARTS = 16;
const MOST_TEXT = 200;

/** Differences as text for people. */
export class TextReport implements DiffReport {
  /** Whether differing bytes are marked in the line below, because there are no colours. */
  readonly #marked: boolean;
  /** What was printed last. */
  #last: 'nothing' | 'only' | 'both' = 'nothing';

  constructor(
    readonly out: Output,
    readonly look: Colours,
    readonly types: MapTypes,
    readonly labels: readonly [a: string, b: string],
    /** Items of each kind. */
    readonly limit: number,
  ) {
    this.#marked = look.red('x') === 'x';
  }

  begin(): void {}

  end(): void {}

  #line(text = ''): void {
    printLines(this.out, [text.trimEnd()]);
  }

  /** Lines before a map. Between maps that are only on one side there are no blank lines. */
  #before(next: 'only' | 'both'): void {
    if (this.#last === 'nothing') {
      this.#line(this.look.bold(`--- ${nameText(this.labels[0])}`));
      this.#line(this.look.bold(`+++ ${nameText(this.labels[1])}`));
    }
    if (next === 'both' || this.#last !== 'only') this.#line();
    this.#last = next;
  }

  async only({ a, b }: MapPair): Promise<void> {
    this.#before('only');
    const map = (a ?? b) as DumpMap;
    const what = [
      ...(map.files[0] === undefined ? [] : [this.types.get(map.files[0].message.map_type).name]),
      ...(map.data.length === 0 ? [] : [plural(map.data.at(-1)?.count ?? 0, 'item')]),
    ];
    const about = what.length === 0 ? '' : ` (${what.join(', ')})`;
    const where = nameText(this.labels[a === undefined ? 1 : 0]);
    const line = `${a === undefined ? '+' : '-'} ${title(a, b)}${about}: only in ${where}`;
    this.#line(a === undefined ? this.look.green(line) : this.look.red(line));
  }

  async both(a: PrintedSide, b: PrintedSide, { attributes, items }: MapDifference): Promise<void> {
    this.#before('both');
    const counts = (['changed', 'removed', 'added'] as const)
      .map((kind) => [items?.found[kind].count ?? 0, kind] as const)
      .filter(([count]) => count > 0)
      .map(([count, kind], i) => `${i === 0 ? plural(count, 'item') : count} ${kind}`);
    const what = [
      ...(attributes.length === 0 ? [] : [`${plural(attributes.length, 'attribute')} changed`]),
      ...(counts.length === 0 ? [] : [counts.join(', ')]),
    ];
    this.#line(`${this.look.bold(title(a.map, b.map))}: ${what.join('; ')}`);
    for (const change of attributes) this.#line(`  ${attributeText(change)}`);
    if (items === undefined) return;
    const { found } = items;
    const left = new ItemsView(items.a, a.forms);
    const right = new ItemsView(items.b, b.forms);
    for await (const [position, other] of found.changed.list()) {
      this.#line(`  ~ ${await this.#key(left, position, a.map)}`);
      await this.#changed(left, position, right, other);
      await this.out.turn();
    }
    this.#more(found.changed.count, 'changed');
    for await (const [position] of found.removed.list()) await this.#item('-', left, position, a.map);
    this.#more(found.removed.count, 'removed');
    for await (const [position] of found.added.list()) await this.#item('+', right, position, b.map);
    this.#more(found.added.count, 'added');
  }

  #more(count: number, kind: string): void {
    if (this.limit === 0 || count <= this.limit) return;
    this.#line(this.look.dim(`  … ${count - this.limit} more ${kind} (--limit N shows N, 0 all)`));
  }

  async #key(view: ItemsView, position: number, map: DumpMap): Promise<string> {
    const { keySize } = view.items;
    if (keySize === 0) return `#${position}`;
    const at = view.keyAt(position);
    const json = await view.json(view.forms.key, at, keySize);
    if (json !== undefined) return jsonText(json);
    const type = map.files[0]?.message.map_type;
    const bytes = await view.bytes(at, Math.min(keySize, SHOWN_BYTES));
    if (type !== undefined && this.types.get(type).key === 'index') {
      const text = this.types.plugin(type).keyText?.(bytes, this.types.get(type));
      if (text !== undefined) return text;
    }
    return cutHex(bytes, keySize);
  }

  /** An item that is only on one side. */
  async #item(sign: '-' | '+', view: ItemsView, position: number, map: DumpMap): Promise<void> {
    const style = sign === '-' ? this.look.red : this.look.green;
    const key = await this.#key(view, position, map);
    const { size } = view;
    for (let cpu = 0; cpu < view.cpus; cpu++) {
      const at = view.valueAt(position, cpu);
      const json = await view.json(view.forms.value, at, view.stride);
      const text =
        json !== undefined ? jsonText(json) : cutHex(await view.bytes(at, Math.min(size, SHOWN_BYTES)), size);
      const before = cpu === 0 ? key : ''.padEnd(key.length);
      this.#line(
        style(`  ${sign} ${before}  ${view.items.perCpu === undefined ? '' : `cpu${cpu}  `}${text}`.trimEnd()),
      );
    }
    await this.out.turn();
  }

  async #changed(a: ItemsView, position: number, b: ItemsView, other: number): Promise<void> {
    const perCpu = a.items.perCpu !== undefined || b.items.perCpu !== undefined;
    for (let cpu = 0; cpu < Math.max(a.cpus, b.cpus); cpu++) {
      const name = perCpu ? `cpu${cpu}` : '';
      const [aAt, bAt] = [a.valueAt(position, cpu), b.valueAt(other, cpu)];
      const one = cpu < a.cpus ? await a.json(a.forms.value, aAt, a.stride) : undefined;
      const two = cpu < b.cpus ? await b.json(b.forms.value, bAt, b.stride) : undefined;
      if (one !== undefined && two !== undefined) this.#parts(partChanges(one, two, name));
      else await this.#bytes(a, cpu < a.cpus ? aAt : undefined, b, cpu < b.cpus ? bAt : undefined, name);
    }
  }

  #parts(changes: Iterable<PartChange>): void {
    let count = 0;
    for (const { path, a, b } of changes) {
      if (++count > MOST_PARTS) continue;
      const [left, right] = [a, b].map((value) => (value === undefined ? 'none' : jsonText(value))) as [string, string];
      const before = path === '' ? '' : `${nameText(path)}: `;
      this.#line(`      ${before}${this.look.red(left)} ${ARROW} ${this.look.green(right)}`);
    }
    if (count > MOST_PARTS) this.#line(this.look.dim(`      … ${count - MOST_PARTS} more`));
  }

  /** The rows of bytes in which two values differ; `undefined` means no value. */
  async #bytes(
    a: ItemsView,
    aAt: number | undefined,
    b: ItemsView,
    bAt: number | undefined,
    name: string,
  ): Promise<void> {
    const [aSize, bSize] = [aAt === undefined ? 0 : a.stride, bAt === undefined ? 0 : b.stride];
    const size = Math.max(aSize, bSize);
    let rows = 0;
    for (let start = 0; start < size; start += PIECE) {
      const part = (view: ItemsView, at: number | undefined, all: number) =>
        view.bytes((at ?? view.items.valuesAt) + start, Math.max(0, Math.min(PIECE, all - start)));
      const [left, right] = [await part(a, aAt, aSize), await part(b, bAt, bSize)];
      for (let offset = 0; offset < Math.min(PIECE, size - start); offset += DUMP_WIDTH) {
        const one = left.subarray(offset, offset + DUMP_WIDTH);
        const two = right.subarray(offset, offset + DUMP_WIDTH);
        if (Buffer.compare(one, two) === 0) continue;
        if (rows === 0 && name !== '') this.#line(`    ${name}`);
        if (++rows > MOST_ROWS) continue;
        this.#row(one, two, size > DUMP_WIDTH ? `${(start + offset).toString(16).padStart(4, '0')}  ` : '');
      }
      await this.out.turn();
    }
    if (rows > MOST_ROWS) {
      this.#line(this.look.dim(`      … ${plural(rows - MOST_ROWS, 'more row')} of ${DUMP_WIDTH} bytes`));
    }
  }

  #row(a: Uint8Array, b: Uint8Array, offset: string): void {
    const differs = (i: number) => a[i] !== b[i];
    const text = (bytes: Uint8Array, style: (text: string) => string) =>
      bytes.length === 0
        ? 'none'
        : groups(bytes.length, (i) => {
            const byte = (bytes[i] as number).toString(16).padStart(2, '0');
            return differs(i) ? style(byte) : byte;
          });
    this.#line(`    - ${offset}${text(a, this.look.red)}`);
    this.#line(`    + ${offset}${text(b, this.look.green)}`);
    if (!this.#marked) return;
    const marks = groups(Math.max(a.length, b.length), (i) => (differs(i) ? '^^' : '  '));
    this.#line(`      ${''.padEnd(offset.length)}${marks}`);
  }
}

/** Two characters for each byte, in the groups of {@link hexGroups}. */
function groups(count: number, text: (i: number) => string): string {
  let line = '';
  for (let i = 0; i < count; i++) line += `${i > 0 && i % 4 === 0 ? ' ' : ''}${text(i)}`;
  return line;
}

function cutHex(bytes: Uint8Array, size: number): string {
  const more = size - bytes.length;
  return `${hexGroups(bytes)}${more > 0 ? ` … ${more} more bytes` : ''}`;
}

/** JSON in ASCII, because other characters can be misleading, cut off if it is long. */
export function jsonText(value: Json): string {
  const text = print(value, { ...COMPACT, ascii: true });
  return text.length > MOST_TEXT ? `${text.slice(0, MOST_TEXT - 1)}…` : text;
}

function attributeText({ name, a, b }: AttributeChange): string {
  if (name === 'types') {
    const [left, right] = [a, b].map(typesText) as [string, string];
    return left === right ? `types: ${left}, defined otherwise` : `types: ${left} ${ARROW} ${right}`;
  }
  const text = (value: Json) => {
    if (name === 'map_flags') return flagWords(value as string[]) || 'none';
    if (name === 'holders') return (value as string[]).join(', ') || 'none';
    if (name === 'frozen') return value === true ? 'yes' : 'no';
    if (name === 'name') return value === '' ? 'none' : nameText(value as string);
    return typeof value === 'string' ? nameText(value) : jsonText(value);
  };
  return `${name}: ${text(a)} ${ARROW} ${text(b)}`;
}

function typesText(value: Json): string {
  if (!isObject(value)) return 'none';
  const name = (one: Json | undefined) => (typeof one === 'string' ? nameText(one) : 'bytes');
  return `${name(value.key)}: ${name(value.value)}`;
}

// ---------------------------------------------------------------------------------------------------
// JSON

/** `format` of the document. */
const DIFF_FORMAT = 'bpfimg-diff/1';

/** Differences as one JSON object. */
export class JsonReport implements DiffReport {
  #maps = 0;

  constructor(
    readonly out: Output,
    readonly types: MapTypes,
    readonly labels: readonly [a: string, b: string],
  ) {}

  begin(): void {
    const [a, b] = this.labels.map((label) => JSON.stringify(label)) as [string, string];
    this.out.text(`{"format":"${DIFF_FORMAT}","a":${a},"b":${b},"maps":[`);
  }

  end(different: boolean): void {
    this.out.text(`${this.#maps > 0 ? '\n' : ''}],"different":${different}}\n`);
  }

  #open(members: { readonly [name: string]: Json }): void {
    this.out.text(`${this.#maps++ > 0 ? ',' : ''}\n  ${JSON.stringify(members).slice(0, -1)}`);
  }

  async only({ a, b }: MapPair): Promise<void> {
    const map = (a ?? b) as DumpMap;
    const file = map.files[0]?.message;
    this.#open({
      only: a === undefined ? 'b' : 'a',
      map_id: map.mapId,
      ...(file === undefined ? {} : { name: file.map_name, type: this.types.get(file.map_type).name }),
      ...(map.data.length === 0 ? {} : { items: map.data.at(-1)?.count ?? 0 }),
    });
    this.out.text('}');
  }

  async both(a: PrintedSide, b: PrintedSide, { attributes, items }: MapDifference): Promise<void> {
    const { out } = this;
    const name = mapName(a.map) ?? mapName(b.map);
    this.#open({
      map_id: { a: a.map.mapId, b: b.map.mapId },
      ...(name === undefined ? {} : { name }),
      attributes: Object.fromEntries(
        attributes.map(({ name: attribute, a: one, b: two }) => [attribute, { a: one, b: two }]),
      ),
      changed: items?.found.changed.count ?? 0,
      removed: items?.found.removed.count ?? 0,
      added: items?.found.added.count ?? 0,
    });
    out.text(',"items":[');
    if (items !== undefined) await this.#items(items, a, b);
    out.text(']}');
  }

  async #items(
    { a, b, found }: NonNullable<MapDifference['items']>,
    left: PrintedSide,
    right: PrintedSide,
  ): Promise<void> {
    const [one, two] = [new ItemsView(a, left.forms), new ItemsView(b, right.forms)];
    let count = 0;
    const item = async (change: string, view: ItemsView, position: number) => {
      this.out.text(`${count++ > 0 ? ',' : ''}\n    {"change":"${change}",`);
      if (view.items.keySize === 0) this.out.text(`"index":${position}`);
      else {
        this.out.text('"key":');
        await this.#put(view, view.forms.key, view.keyAt(position), view.items.keySize);
      }
    };
    for await (const [position, other] of found.changed.list()) {
      await item('changed', one, position);
      await this.#value('a', one, position);
      await this.#value('b', two, other);
      await this.#members(one, position, two, other);
      this.out.text('}');
    }
    for await (const [position] of found.removed.list()) {
      await item('removed', one, position);
      await this.#value('a', one, position);
      this.out.text('}');
    }
    for await (const [position] of found.added.list()) {
      await item('added', two, position);
      await this.#value('b', two, position);
      this.out.text('}');
    }
    if (count > 0) this.out.text('\n  ');
  }

  /** `,"a":` and the value, in per-CPU maps a list. */
  async #value(name: 'a' | 'b', view: ItemsView, position: number): Promise<void> {
    const { perCpu, valueSize } = view.items;
    this.out.text(`,"${name}":`);
    if (perCpu === undefined) return this.#put(view, view.forms.value, view.valueAt(position), valueSize);
    for (let cpu = 0; cpu < view.cpus; cpu++) {
      this.out.text(cpu === 0 ? '[' : ',');
      const at = view.valueAt(position, cpu);
      const padding = await view.bytes(at + perCpu, view.stride - perCpu);
      // As in documents, padding is shown if it is not zero.
      if (isZero(padding)) await this.#put(view, view.forms.value, at, perCpu);
      else await this.#put(view, undefined, at, view.stride);
    }
    this.out.text(']');
  }

  async #put(view: ItemsView, form: JsonForm | undefined, at: number, size: number): Promise<void> {
    const { out } = this;
    if (form !== undefined && size === form.size && size <= FORM_MOST) {
      form.print(viewOf(await view.bytes(at, size)), 0, out);
      await out.turn();
      return;
    }
    out.text('"');
    for (let done = 0; done < size; done += PIECE) {
      const bytes = await view.bytes(at + done, Math.min(PIECE, size - done));
      out.room(2 * bytes.length);
      out.at = putHex(viewOf(bytes), 0, bytes.length, out.view, out.at);
      await out.turn();
    }
    out.text('"');
  }

  /** Paths of the members that differ, if both values have types. */
  async #members(a: ItemsView, position: number, b: ItemsView, other: number): Promise<void> {
    const paths: string[] = [];
    for (let cpu = 0; cpu < Math.min(a.cpus, b.cpus); cpu++) {
      const one = await a.json(a.forms.value, a.valueAt(position, cpu), a.stride);
      const two = await b.json(b.forms.value, b.valueAt(other, cpu), b.stride);
      if (one === undefined || two === undefined) return;
      const name = a.items.perCpu === undefined ? '' : `[${cpu}]`;
      for (const { path } of partChanges(one, two, name)) paths.push(path);
    }
    if (paths.some((path) => path !== '')) this.out.text(`,"members":${JSON.stringify(paths)}`);
  }
}
