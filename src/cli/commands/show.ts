import { cpuParts, viewOf } from '../../bytes.js';
import type { DocumentForms } from '../../dump/document.js';
import { type Dump, type DumpMap, dataShape, type MapData } from '../../dump/model.js';
import { mapName, selectMaps } from '../../dump/select.js';
import { BpfimgError } from '../../errors.js';
import { ImageReader } from '../../image/reader.js';
import type { BpfmapFileEntry } from '../../image/schema.gen.js';
import { Cursor, type Input } from '../../io/input.js';
import type { Output } from '../../io/output.js';
import { formsThatFit, type ItemForms, type ItemShape } from '../../json/forms.js';
import { flagWords, type MapTypes, mapFlagNames } from '../../maptype.js';
import {
  asciiText,
  type Colours,
  colours,
  DUMP_WIDTH,
  hexGroups,
  nameText,
  plural,
  sizeText,
  table,
} from '../../render.js';
import { openMaps } from '../../source/source.js';
import { byKey, choosing, chosen } from '../choosing.js';
import type { Command, Given } from '../command.js';
import { holdersText } from '../holders.js';
import { coloured, type Io } from '../io.js';
import {
  boolean,
  image,
  json,
  libdir,
  like,
  map,
  meaning,
  namesTypes,
  number,
  pager,
  source,
  string,
  types as typeOptions,
} from '../options.js';
import { Sources, sourceOf } from '../source.js';
import { cellFields, type Layout, TypedTable } from '../typed-table.js';
import { documentForms, sayProblems, typeFinder } from '../types.js';
import { paged, printLines } from '../written.js';

const takes = {
  words: { source },
  options: {
    in: image,
    map,
    ...byKey,
    ...choosing,
    limit: { ...number, default: 10, group: 'Output', describe: 'how many items to show per map; 0 shows all' },
    ...typeOptions,
    ...meaning,
    raw: { ...boolean, group: 'Types', describe: 'show bytes even if types are known' },
    text: { ...boolean, group: 'Output', describe: 'show keys of tries as IP addresses, if they have the right size' },
    vertical: {
      type: 'boolean',
      group: 'Output',
      defaultDescription: 'if a row is wider than the terminal',
      describe: 'show typed items as lists of their members; --no-vertical leaves out columns instead',
    },
    full: { ...boolean, group: 'Output', describe: 'cut off nothing: show whole arrays, texts and values' },
    sort: {
      ...string,
      value: 'WHAT',
      group: 'Output',
      describe: 'order of items: key, or a member such as value.bytes',
    },
    top: { ...number, value: 'N', group: 'Output', describe: 'with --sort: the N largest, largest first' },
    types: { ...boolean, group: 'Types', describe: 'show the C types of keys and values instead of items' },
    ...libdir,
    like,
    json,
    pager,
  },
} as const;

type ShowArguments = Given<typeof takes>;

export const command: Command = {
  name: 'show',
  summary: 'print the maps of an image or a dump for people',
  ...takes,
  examples: [
    ['show dump', 'every map and its first items'],
    ['show dump --map flows --limit 0', 'all items of one map'],
    ['show pid:4711 --btf app.bpf.o', 'the live maps of a process, with C types'],
  ],
  run,
};

/** Digits of the largest index. */
const WIDEST_INDEX = String(0xffff_ffff).length;
const WIDEST_PREFIX = 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128'.length;

/** Bytes of one key or value that are shown, without and with `--full`; `decode` has all. */
const SHOWN_BYTES = 64;
const FULL_BYTES = 1024 * 1024;

async function run(args: ShowArguments, io: Io): Promise<void> {
  if (!Number.isInteger(args.limit) || args.limit < 0) {
    throw new BpfimgError('usage', '--limit takes a whole number; 0 shows every item');
  }
  if (args.top !== undefined && (args.sort === undefined || !Number.isInteger(args.top) || args.top < 1)) {
    throw new BpfimgError('usage', 'it takes how many items to show, and goes with --sort', { subject: '--top' });
  }
  if (args.sort !== undefined && args.json) {
    throw new BpfimgError('usage', 'it is for tables; jq sorts JSON', { subject: '--sort' });
  }
  if (args.types && (args.raw || args.json))
    throw new BpfimgError('usage', '--types prints C, without --raw and --json');
  if (args.raw && (namesTypes(args) || args.as.length > 0))
    throw new BpfimgError('usage', '--raw has no use for types');
  const sources = new Sources(io, args);
  const named = sourceOf(args.source, args.in);
  const isNamed = args.source !== undefined || args.in !== undefined;
  const source = await sources.open(isNamed ? named : await sources.here());
  try {
    sources.expectLikeUsed();
    const dump = await openMaps(source);
    if (dump !== undefined) await showDump(dump, await sources.types(), args, io);
    else if (source.kind === 'image') await showImage(source.input, args, io);
  } finally {
    source.close();
  }
}

/** An image without maps: what crit's show prints. */
async function showImage(input: Input, args: ShowArguments, io: Io): Promise<void> {
  const { decodeImage } = await import('../../json/decode.js');
  const reader = await ImageReader.open(input);
  await paged(io, args.pager, async (out) => {
    await decodeImage(reader, out, { dialect: 'crit', pretty: true, noPayload: true });
    out.text('\n');
  });
}

async function showDump(given: Dump, types: MapTypes, args: ShowArguments, io: Io): Promise<void> {
  const dump = await chosen(given, args, types, (all) => selectMaps(all, args.map));
  try {
    const maps = selectMaps(dump, args.map);
    if (args.types) return await showTypes(dump, maps, types, args, io);
    const forms = args.raw ? undefined : await documentForms(await typeFinder(dump, types, args), maps, io);
    await paged(io, args.pager, async (out) => {
      if (args.json) {
        const { writeDocument } = await import('../../dump/document.js');
        await writeDocument(dump, maps, types, out, {
          lines: false,
          pretty: false,
          noPayload: false,
          limit: args.limit,
          forms,
        });
        out.text('\n');
        return;
      }
      const look = colours(coloured(io, args.color));
      await new Show(dump, types, out, { ...args, vertical: args.vertical, forms, look, columns: io.columns }).maps(
        maps,
      );
    });
  } finally {
    dump.close();
  }
}

/** The types of keys and values as C. */
async function showTypes(
  dump: Dump,
  maps: readonly DumpMap[],
  types: MapTypes,
  args: ShowArguments,
  io: Io,
): Promise<void> {
  const finder = await typeFinder(dump, types, args);
  const all = (await finder?.definitions(maps)) ?? [];
  if (finder !== undefined) sayProblems(finder, maps, io);
  if (all.length === 0)
    throw new BpfimgError('notFound', `no types are known of ${NO_TYPES_HINT}`, { subject: dump.name });
  await paged(io, args.pager, async (out) => {
    for (const [i, { map, key, value, texts }] of all.entries()) {
      const name = mapName(map);
      const words = [key && `key ${key}`, value && `value ${value}`].filter(Boolean).join(', ');
      const title = `map ${map.mapId}${name ? ` ${nameText(name)}` : ''}: ${words}`;
      out.text(`${i === 0 ? '' : '\n'}/* ${title.replaceAll('*/', '* /')} */\n`);
      // Names come from a file, so anything that could not be C is escaped.
      for (const text of texts) out.text(`${text.replace(/[^\t\n]+/g, nameText)}\n`);
    }
  });
}

const NO_TYPES_HINT = 'these maps; --btf FILE or --type NAME=KEY:VALUE names them';

/** How items are shown. */
interface ShowOptions
  extends Pick<ShowArguments, 'limit' | 'text' | 'raw' | 'full' | 'sort' | 'top' | 'btf' | 'type'>,
    Layout {
  readonly look: Colours;
  readonly forms: DocumentForms | undefined;
}

/** The numbers below `count`. */
function* upTo(count: number): Generator<number> {
  for (let i = 0; i < count; i++) yield i;
}

class Show {
  /** Names of the dump's maps by id. */
  readonly #names: ReadonlyMap<number, string | undefined>;

  readonly look: Colours;

  constructor(
    readonly dump: Dump,
    readonly types: MapTypes,
    readonly out: Output,
    readonly how: ShowOptions,
  ) {
    this.look = how.look;
    this.#names = new Map(dump.maps.map((map) => [map.mapId, mapName(map)]));
  }

  #line(text = ''): void {
    printLines(this.out, [text]);
  }

  async maps(maps: readonly DumpMap[]): Promise<void> {
    if (maps.length === 0) {
      this.#line('no BPF maps');
      return;
    }
    const columns = [
      { title: 'ID', right: true },
      { title: 'NAME' },
      { title: 'TYPE' },
      { title: 'KEY', right: true },
      { title: 'VALUE', right: true },
      { title: 'USED/MAX', right: true },
      { title: 'FLAGS' },
      { title: 'FROZEN' },
      { title: 'HOLDERS (pid(command):fd)' },
    ];
    for (const line of table(
      columns,
      maps.map((map) => this.#row(map)),
      this.look,
      this.how.columns,
    ))
      this.#line(line);
    for (const map of maps) await this.#items(map);
  }

  #row(map: DumpMap): string[] {
    const file = map.files[0]?.message;
    const data = map.data.at(-1);
    const used = data === undefined ? '-' : String(data.count);
    if (file === undefined) {
      const shape = data && dataShape(data, undefined, this.types).shape;
      const size = (bytes: number | undefined) => (bytes === undefined || data?.count === 0 ? '?' : String(bytes));
      return [String(map.mapId), '?', '?', size(shape?.keySize), size(shape?.valueSize), `${used}/?`, '', '', ''];
    }
    return [
      String(map.mapId),
      nameText(file.map_name),
      this.types.get(file.map_type).name,
      String(file.key_size),
      String(file.value_size),
      `${used}/${file.max_entries}`,
      flagWords(mapFlagNames(file.map_flags)),
      file.frozen ? 'yes' : 'no',
      holdersText(map),
    ];
  }

  async #items(map: DumpMap): Promise<void> {
    const data = map.data.at(-1);
    if (data === undefined || data.count === 0) return;
    const { look } = this;
    const file = map.files[0]?.message;
    const { shape } = dataShape(data, file, this.types);
    const name = mapName(map);
    const title = name === undefined || name === '' ? `map ${map.mapId}` : `map ${map.mapId} ${nameText(name)}`;
    this.#line();
    if (shape === undefined) {
      const total = sizeText(data.keysBytes + data.valuesBytes);
      this.#line(`${look.bold(title)}: ${total} that are not ${plural(data.count, 'equal item')}`);
      return;
    }
    this.#line(`${look.bold(title)}: ${plural(data.count, 'item')}`);
    const limit = this.how.top ?? this.how.limit;
    const count = limit === 0 ? data.count : Math.min(limit, data.count);
    const shown = await this.#positions(map, data, count);
    const forms = formsThatFit(this.how.forms?.of(map), shape.keySize, shape.perCpu ?? shape.valueSize);
    if (forms === undefined) await this.#bytesOf(data, shape, shown, file);
    else await this.#typed(data, shape, shown, forms);
    if (count < data.count) this.#line(look.dim(`  … ${data.count - count} more (--limit N shows N, 0 all)`));
  }

  /** The items to show, in order. */
  async #positions(map: DumpMap, data: MapData, count: number): Promise<Iterable<number>> {
    const { sort, top, btf, type } = this.how;
    if (sort === undefined) return upTo(count);
    const { sortedItems } = await import('../sorting.js');
    const finder = await typeFinder(this.dump, this.types, { btf, type });
    const how = { by: sort, count, top: top !== undefined };
    return sortedItems(this.dump, { map, data }, this.types, finder, how);
  }

  /** Items as bytes. */
  async #bytesOf(
    data: MapData,
    shape: ItemShape,
    shown: Iterable<number>,
    file: BpfmapFileEntry | undefined,
  ): Promise<void> {
    const { look } = this;
    const { size: valueSize, stride, cpus } = cpuParts(shape.valueSize, shape.perCpu);
    const text = this.#keyText(file);
    const inner = this.#innerText(file);
    const hexWidth = (size: number, each: number) => hexGroups(new Uint8Array(Math.min(size, each))).length;
    const widths = (each: number) => {
      const keyText =
        text === undefined ? Math.min(shape.keySize, each) : shape.keySize > 8 ? WIDEST_PREFIX : WIDEST_INDEX;
      return { each, keyWidth: hexWidth(shape.keySize, each), keyText, valueWidth: hexWidth(valueSize, each) };
    };
    // As many bytes in a line as the terminal has room for.
    const most = this.how.columns ?? Infinity;
    const fits = ({ each, keyWidth, keyText, valueWidth }: ReturnType<typeof widths>) => {
      const cpuWidth = shape.perCpu === undefined ? 0 : 8;
      return 8 + keyWidth + keyText + cpuWidth + valueWidth + Math.min(valueSize, each) <= most;
    };
    const { each, keyWidth, keyText, valueWidth } = [DUMP_WIDTH, 8].map(widths).find(fits) ?? widths(4);
    for (const item of shown) {
      const key = await this.#bytes(data, item * shape.keySize, shape.keySize);
      const valueAt = data.keysBytes + item * shape.valueSize;
      for (let cpu = 0; cpu < cpus; cpu++) {
        const value = await this.#bytes(data, valueAt + cpu * stride, valueSize);
        const keyPart = cpu === 0 ? key : new Uint8Array(0);
        const lines = Math.max(1, Math.ceil(Math.max(keyPart.length, value.length) / each));
        for (let line = 0; line < lines; line++) {
          const part = (bytes: Uint8Array) => bytes.subarray(line * each, (line + 1) * each);
          const cells = [
            `  ${hexGroups(part(keyPart)).padEnd(keyWidth)}`,
            look.dim(((line === 0 ? text?.(keyPart) : text && '') ?? asciiText(part(keyPart))).padEnd(keyText)),
            ...(shape.perCpu === undefined ? [] : [line === 0 ? `cpu${cpu}`.padEnd(6) : ''.padEnd(6)]),
            ...(inner === undefined
              ? [hexGroups(part(value)).padEnd(valueWidth), look.dim(asciiText(part(value)))]
              : [line === 0 ? inner(value) : '']),
          ];
          this.#line(cells.join('  ').trimEnd());
        }
        if (valueSize > value.length) this.#line(look.dim(`  … ${valueSize - value.length} more bytes of this value`));
      }
      await this.out.turn();
    }
  }

  /** Items in columns: one for each member of the key and the value. */
  async #typed(data: MapData, shape: ItemShape, shown: Iterable<number>, forms: ItemForms): Promise<void> {
    const { size: valueSize, stride, cpus } = cpuParts(shape.valueSize, shape.perCpu);
    const table = new TypedTable(this.look, shape.perCpu !== undefined, (line) => this.#line(line), this.how);
    for (const item of shown) {
      const keyAt = item * shape.keySize;
      const key = cellFields(forms.key, await this.#bytes(data, keyAt, shape.keySize, forms.key?.size));
      const valueAt = data.keysBytes + item * shape.valueSize;
      for (let cpu = 0; cpu < cpus; cpu++) {
        const at = valueAt + cpu * stride;
        const value = cellFields(forms.value, await this.#bytes(data, at, valueSize, forms.value?.size));
        table.row(key, cpu, value);
      }
      await this.out.turn();
    }
    table.end();
  }

  /** How keys of this map type are shown to people; undefined for hex and ASCII. */
  #keyText(file: BpfmapFileEntry | undefined): ((key: Uint8Array) => string | undefined) | undefined {
    if (file === undefined) return undefined;
    const type = this.types.get(file.map_type);
    const plugin = this.types.plugin(file.map_type);
    const shown =
      type.key === 'index' || type.imageItem !== undefined || (type.key === 'prefix' && this.how.text === true);
    return shown && plugin.keyText !== undefined ? (key) => plugin.keyText?.(key, type) : undefined;
  }

  /** How values that are inner maps are shown: by id, and by name if the dump has the map. */
  #innerText(file: BpfmapFileEntry | undefined): ((value: Uint8Array) => string) | undefined {
    if (file === undefined || this.how.raw || this.types.get(file.map_type).inner !== true) return undefined;
    return (value) => {
      if (value.length !== 4) return hexGroups(value);
      const id = viewOf(value).getUint32(0, true);
      const name = nameText(this.#names.get(id) ?? '');
      return `map ${id}${name === '' ? '' : ` (${name})`}`;
    };
  }

  get #mostBytes(): number {
    return this.how.full ? FULL_BYTES : SHOWN_BYTES;
  }

  /** The first bytes of a key or value at `at` within the entry's extra. */
  async #bytes(data: MapData, at: number, size: number, most = this.#mostBytes): Promise<Uint8Array> {
    const start = data.entry.extraAt + at;
    const part = Math.min(size, most);
    return new Cursor(this.dump.data as Input, start, start + part, Math.max(part, 1)).take(part);
  }
}
