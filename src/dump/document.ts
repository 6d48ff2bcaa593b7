/** A dump as one maps document: JSON, or ndjson for many items. */

import { Cursor, type Input } from '../io/input.js';
import type { Output } from '../io/output.js';
import { type DocumentBtfObject, leftOutText, writeBase64, writeBtf } from '../json/decode.js';
import { MAPS_FORMAT } from '../json/encode.js';
import type { ItemForms, ItemShape, MapForms } from '../json/forms.js';
import { ITEM_COMPACT, ItemCursors, itemIndented, writeItems } from '../json/items.js';
import { COMPACT, PRETTY, print, type Style } from '../json/print.js';
import type { MapTypes, TypeFacts } from '../maptype.js';
import type { JsonObject } from '../value.js';
import { mapMembers } from './attributes.js';
import { factMembers } from './facts.js';
import { itemForms } from './items.js';
import { type Dump, type DumpMap, dataShape, type MapData, sameData } from './model.js';

/** How a maps document is printed. */
export interface DocumentOptions {
  readonly lines: boolean;
  readonly pretty: boolean;
  readonly noPayload: boolean;
  /** Most items to show of a map; 0 means all. The document then says so in `format` and cannot be encoded. */
  readonly limit?: number;
  /** How to show items other than as plain hex. */
  readonly forms?: DocumentForms | undefined;
  /** Show values that are ids of maps as bytes, too. */
  readonly bytes?: boolean;
}

/** How to show the items of a document's maps other than as plain hex. */
export interface DocumentForms {
  /** The BTF objects that they need and that are not in the dump. */
  readonly objects: readonly DocumentBtfObject[];
  /** For one map, with the facts that its `types` replaces. */
  of(map: DumpMap): (MapForms & { readonly facts: TypeFacts }) | undefined;
}

/** `format` of a document that may lack items. */
const SHOW_FORMAT = 'bpfimg-show/1';

/** Writes the maps document of `maps`, which are maps of `dump`. */
export async function writeDocument(
  dump: Dump,
  maps: readonly DumpMap[],
  types: MapTypes,
  out: Output,
  options: DocumentOptions,
): Promise<void> {
  await new DocumentWriter(dump, types, out, options).write(maps);
}

class DocumentWriter {
  readonly #style: Style;
  readonly #format: string;

  constructor(
    readonly dump: Dump,
    readonly types: MapTypes,
    readonly out: Output,
    readonly options: DocumentOptions,
  ) {
    const pretty = options.pretty && !options.lines;
    this.#format = options.limit === undefined ? MAPS_FORMAT : SHOW_FORMAT;
    this.#style = pretty ? PRETTY : COMPACT;
  }

  /** The start of a line at an indentation level of the document. */
  #line(level: number): string {
    return `\n${' '.repeat((this.#style.indent ?? 2) * level)}`;
  }

  async write(maps: readonly DumpMap[]): Promise<void> {
    const { out } = this;
    if (this.options.lines) {
      out.text(`{"format":"${this.#format}"`);
      await this.#btf(maps, ',', ['', '']);
      out.text('}\n');
      for (const map of maps) await this.#mapLines(map);
      return;
    }
    const { comma, colon, indent } = this.#style;
    const outer = indent === undefined ? '' : this.#line(1);
    const inner = this.#line(indent === undefined ? 1 : 2);
    out.text(`{${outer}"format"${colon}"${this.#format}"`);
    await this.#btf(maps, comma + outer, [inner, outer]);
    out.text(`${comma}${outer}"maps"${colon}[`);
    for (const [i, map] of maps.entries()) {
      out.text((i === 0 ? '' : ',') + inner);
      await this.#map(map, indent === undefined ? 1 : 2);
    }
    if (maps.length > 0) out.text(outer);
    out.text(`]${indent === undefined ? '' : '\n'}}`);
  }

  /** The BTF objects of these maps, if any. */
  async #btf(maps: readonly DumpMap[], before: string, lines: readonly [string, string]): Promise<void> {
    // A document only for viewing needs no types for encoding.
    if (this.options.limit !== undefined) return;
    const whole = maps.length === this.dump.maps.length;
    const used = new Set(maps.flatMap((map) => [map.meta?.btf_id, this.options.forms?.of(map)?.facts.btf]));
    const own = [...this.dump.btf.values()].filter(({ id }) => whole || used.has(id));
    const objects = [...own, ...(this.options.forms?.objects ?? [])];
    if (objects.length === 0) return;
    this.out.text(before);
    await writeBtf(objects, this.out, this.#style, lines);
  }

  /** Everything but the data of a map. */
  #members(map: DumpMap): JsonObject {
    const members = mapMembers(map, this.types);
    const forms = this.options.forms?.of(map);
    if (forms === undefined) return members;
    // Do not repeat what `types` says.
    const facts = Object.entries(factMembers({ types: forms.facts }));
    const meta = Object.entries((members.meta ?? {}) as JsonObject);
    const kept: JsonObject = map.meta ?? {};
    if (facts.every(([name, value]) => kept[name] === value)) {
      const rest = meta.filter(([name]) => !facts.some(([other]) => other === name));
      delete members.meta;
      if (rest.length > 0) members.meta = Object.fromEntries(rest);
    }
    return { ...members, types: forms.types };
  }

  /** One map as an object at indentation `level`. */
  async #map(map: DumpMap, level: number): Promise<void> {
    const members = this.#members(map);
    const last = map.data.at(-1);
    if (last === undefined) {
      this.out.text(print(members, this.#style, level));
      return;
    }
    await this.#body(members, map, last, level);
    const copies = await this.#copies(map, last);
    if (copies.length > 0) {
      const { comma, colon, indent } = this.#style;
      const inner = indent === undefined ? '' : this.#line(level + 1);
      this.out.text(`${comma}${inner}"copies"${colon}[`);
      for (const [i, copy] of copies.entries()) {
        this.out.text((i === 0 ? '' : ',') + this.#line(level + (indent === undefined ? 1 : 2)));
        await this.#body({}, map, copy, level + (indent === undefined ? 1 : 2));
        this.#close(level + 2);
      }
      this.out.text(`${inner}]`);
    }
    this.#close(level);
  }

  /** Ends an object at `level` that {@link #body} began. */
  #close(level: number): void {
    this.out.text(`${this.#style.indent === undefined ? '' : this.#line(level)}}`);
  }

  /** The data entries before the last, if any of them has different bytes. */
  async #copies(map: DumpMap, last: MapData): Promise<MapData[]> {
    const earlier = map.data.slice(0, -1);
    const { data } = this.dump;
    for (const one of earlier) if (data !== undefined && !(await sameData(data, one, last))) return earlier;
    return [];
  }

  /** Members before a data entry's items: sizes that differ from the map's, or the totals of a blob. */
  #dataMembers(map: DumpMap, data: MapData): { shape: ItemShape | undefined; members: JsonObject } {
    const file = map.files[0]?.message;
    const { shape, oddKey, oddValue } = dataShape(data, file, this.types);
    const members: JsonObject = {};
    if (shape === undefined) {
      members.count = data.count;
      members.keys_bytes = data.keysBytes;
      members.values_bytes = data.valuesBytes;
    } else if (data.count > 0) {
      if (oddKey || file === undefined) members.data_key_size = shape.keySize;
      if (oddValue || file === undefined) members.data_value_size = shape.valueSize;
    }
    const { $raw } = data.entry.message;
    if ($raw !== undefined) members.$raw = $raw;
    if (this.options.limit !== undefined) members.count = data.count;
    return { shape, members };
  }

  /** Members and data of an object, without its closing bracket. */
  async #body(members: JsonObject, map: DumpMap, data: MapData, level: number): Promise<void> {
    const { out, options } = this;
    const input = this.dump.data as Input;
    const { shape, members: more } = this.#dataMembers(map, data);
    const all = { ...members, ...more };
    const { entry } = data;
    if (options.noPayload) {
      this.#open(all, shape ? 'items' : 'extra', JSON.stringify(leftOutText(entry.extraSize)), level);
    } else if (shape === undefined) {
      this.#open(all, 'extra', '"', level);
      await writeBase64(input, new Cursor(input, entry.extraAt, entry.extraAt + entry.extraSize), entry, out);
      out.text('"');
    } else {
      this.#open(all, 'items', '[', level);
      if (data.count > 0) {
        const indented = this.#style.indent !== undefined;
        const line = this.#line(indented ? level + 2 : level + 1);
        out.text(line);
        const style = indented ? itemIndented(level + 2) : ITEM_COMPACT;
        const count = options.limit ? Math.min(options.limit, data.count) : data.count;
        const forms = this.#forms(map);
        await writeItems(ItemCursors.over(input, entry), count, { shape, style, separator: `,${line}`, forms }, out);
        if (indented) out.text(this.#line(level + 1));
      }
      out.text(']');
    }
  }

  #forms(map: DumpMap): ItemForms | undefined {
    const typed = this.options.forms?.of(map);
    return this.options.bytes === true ? typed : itemForms(map, this.types, typed);
  }

  /** `{members,"name":` and the start of its value. */
  #open(members: JsonObject, name: string, begin: string, level: number): void {
    const text = print({ ...members, [name]: 0 }, this.#style, level);
    this.out.text(text.slice(0, text.lastIndexOf('0')) + begin);
  }

  /** One map as lines: its header, then its items; then further data of the same map. */
  async #mapLines(map: DumpMap): Promise<void> {
    const { out } = this;
    const members = this.#members(map);
    const last = map.data.at(-1);
    if (last === undefined) {
      out.text(`${print({ ...members, data: false }, COMPACT)}\n`);
      return;
    }
    await this.#dataLines(members, map, last);
    for (const [i, copy] of (await this.#copies(map, last)).entries()) {
      await this.#dataLines({ map_id: map.mapId, copy: i + 1 }, map, copy);
    }
  }

  async #dataLines(members: JsonObject, map: DumpMap, data: MapData): Promise<void> {
    const { out } = this;
    const { shape, members: more } = this.#dataMembers(map, data);
    if (shape === undefined || this.options.noPayload) {
      await this.#body(members, map, data, 0);
      out.text('}\n');
      return;
    }
    out.text(`${print({ ...members, ...more }, COMPACT)}\n`);
    if (data.count === 0) return;
    const cursors = ItemCursors.over(this.dump.data as Input, data.entry);
    const forms = this.#forms(map);
    await writeItems(cursors, data.count, { shape, style: ITEM_COMPACT, separator: '\n', forms }, out);
    out.text('\n');
  }
}
