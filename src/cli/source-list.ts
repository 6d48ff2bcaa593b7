/** `list SOURCE…`: the maps of dumps without their items; a table for one source, a line each for several. */
import { mapMembers } from '../dump/attributes.js';
import type { Dump, DumpMap } from '../dump/model.js';
import { BpfimgError, EXIT } from '../errors.js';
import type { Sys } from '../kernel/sys.js';
import { flagWords, type MapTypes, mapFlagNames } from '../maptype.js';
import { colours, nameText, sizeText, table } from '../render.js';
import { openMaps, type Source } from '../source/source.js';
import { holdersText } from './holders.js';
import { coloured, type Io } from './io.js';
import { ATTRIBUTES, OWNERS } from './map-columns.js';
import { DASH, Sources } from './source.js';
import { reported } from './start.js';
import { printLines, written } from './written.js';

interface ListOptions {
  readonly libdir: readonly string[];
  readonly json: boolean;
  readonly color?: boolean | undefined;
  readonly debug?: boolean;
}

/** What one source contains. */
interface Listed {
  readonly source: string;
  readonly container: string | undefined;
  readonly maps: readonly ListedMap[];
}

interface ListedMap {
  readonly map: DumpMap;
  readonly items: number;
  readonly bytes: number;
}

/**
 * Lists what `sources` name. If one cannot be read, it gets a line that says so, and the others are listed.
 * @returns the exit code
 */
export async function listSources(
  sources: readonly string[],
  options: ListOptions,
  io: Io,
  sys?: Sys,
): Promise<number> {
  const opener = new Sources(io, options, sys);
  const types = await opener.types();
  const found: Listed[] = [];
  const failed: { readonly source: string; readonly error: string }[] = [];
  let code: number = EXIT.ok;
  for (const source of sources) {
    try {
      found.push(await listed(await opener.open(source === DASH ? undefined : source)));
    } catch (error) {
      if (!(error instanceof BpfimgError)) throw error;
      failed.push({ source, error: error.message });
      code = reported(error, io, options.debug ?? false);
    }
  }
  await written(undefined, io, async (out) => {
    if (options.json) {
      const rows = [...found.map((one) => members(one, types)), ...failed];
      out.text(`{"sources":[${rows.map((row) => `\n  ${JSON.stringify(row)}`).join(',')}]}\n`);
      return;
    }
    const look = colours(coloured(io, options.color));
    const [only] = found;
    if (only === undefined) return;
    if (sources.length === 1 && only.maps.length === 0) printLines(out, ['no BPF maps']);
    else if (sources.length === 1) {
      const rows = only.maps.map((map) => mapRow(map, types));
      printLines(out, table(MAP_COLUMNS, rows, look));
    } else printLines(out, table(SOURCE_COLUMNS, found.map(sourceRow), look));
  });
  return code;
}

/** Owns `source`. */
async function listed(source: Source): Promise<Listed> {
  let dump: Dump | undefined;
  try {
    dump = await openMaps(source);
    const maps = (dump?.maps ?? []).map((map) => {
      const data = map.data.at(-1);
      return { map, items: data?.count ?? 0, bytes: data === undefined ? 0 : data.keysBytes + data.valuesBytes };
    });
    const container = source.kind === 'dump' ? await source.container?.() : undefined;
    return { source: source.name, container, maps };
  } finally {
    dump?.close();
    source.close();
  }
}

function members({ source, container, maps }: Listed, types: MapTypes): object {
  return {
    source,
    container: container ?? null,
    maps: maps.map(({ map, items, bytes }) => ({ ...mapMembers(map, types), items, bytes })),
  };
}

const MAP_COLUMNS = [
  { title: 'ID', right: true },
  ...ATTRIBUTES,
  { title: 'ITEMS', right: true },
  { title: 'SIZE', right: true },
  ...OWNERS,
];

function mapRow({ map, items, bytes }: ListedMap, types: MapTypes): string[] {
  const file = map.files[0]?.message;
  const attributes =
    file === undefined
      ? ['?', '?', '?', '?', '?', '', '']
      : [
          nameText(file.map_name),
          types.get(file.map_type).name,
          String(file.key_size),
          String(file.value_size),
          String(file.max_entries),
          flagWords(mapFlagNames(file.map_flags)),
          file.frozen ? 'yes' : 'no',
        ];
  const pins = map.meta?.pins ?? [];
  return [String(map.mapId), ...attributes, String(items), sizeText(bytes), pins.join(' '), holdersText(map)];
}

const SOURCE_COLUMNS = [
  { title: 'SOURCE' },
  { title: 'CONTAINER' },
  { title: 'MAPS', right: true },
  { title: 'ITEMS', right: true },
  { title: 'SIZE', right: true },
];

function sourceRow({ source, container, maps }: Listed): string[] {
  const sum = (of: (map: ListedMap) => number) => maps.reduce((total, map) => total + of(map), 0);
  const [items, bytes] = [sum((map) => map.items), sum((map) => map.bytes)];
  return [source, nameText(container ?? ''), String(maps.length), String(items), sizeText(bytes)];
}
