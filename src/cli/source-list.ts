/** `list SOURCE…`: the maps of dumps without their items; a table for one source, a line each for several. */
import { mapMembers } from '../dump/attributes.js';
import { captureReport } from '../dump/facts.js';
import type { Dump, DumpMap } from '../dump/model.js';
import { BpfimgError, EXIT } from '../errors.js';
import type { Sys } from '../kernel/sys.js';
import { flagWords, type MapTypes, mapFlagNames } from '../maptype.js';
import { colours, nameText, sizeText, table } from '../render.js';
import { openMaps, type Source } from '../source/source.js';
import {
  alwaysFull,
  type Fullness,
  fullnessCells,
  judged,
  limitOf,
  metricLines,
  type Order,
  sorted,
} from './fullness.js';
import { holdersText } from './holders.js';
import { coloured, type Io } from './io.js';
import { ATTRIBUTES, OWNERS, PERCENT } from './map-columns.js';
import { DASH } from './options.js';
import { Sources } from './source.js';
import { reported } from './start.js';
import { printLines, written } from './written.js';

interface ListOptions {
  readonly libdir: readonly string[];
  readonly json: boolean;
  readonly openmetrics: boolean;
  readonly sort: Order;
  readonly failAbove?: string | undefined;
  readonly color?: boolean | undefined;
  readonly debug?: boolean;
}

/** What one source contains. */
interface Listed {
  readonly source: string;
  readonly container: string | undefined;
  readonly maps: readonly ListedMap[];
}

interface ListedMap extends Fullness {
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
  const limit = limitOf(options.failAbove);
  const found: Listed[] = [];
  const failed: { readonly source: string; readonly error: string }[] = [];
  let code: number = EXIT.ok;
  for (const source of sources) {
    try {
      found.push(await listed(await opener.open(source === DASH ? undefined : source), types, options.sort));
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
    if (options.openmetrics) {
      const maps = found.flatMap(({ source, maps }) => maps.map((map) => ({ ...map, source })));
      for (const line of metricLines(maps, types)) out.text(`${line}\n`);
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
  for (const { source, maps } of limit === undefined ? [] : found) {
    const judgement = judged(maps, limit as number, types, (line) => io.say(`bpfimg: ${source}: ${line}`));
    if (code === EXIT.ok) code = judgement;
  }
  return code;
}

/** Owns `source`. */
async function listed(source: Source, types: MapTypes, order: Order): Promise<Listed> {
  let dump: Dump | undefined;
  try {
    dump = await openMaps(source);
    const maps = sorted(
      (dump?.maps ?? []).map((map) => listedMap(map, types)),
      order,
    );
    const container = source.kind === 'dump' ? await source.container?.() : undefined;
    return { source: source.name, container, maps };
  } finally {
    dump?.close();
    source.close();
  }
}

function listedMap(map: DumpMap, types: MapTypes): ListedMap {
  const { mapId: id, files, meta } = map;
  const file = files[0]?.message;
  const data = map.data.at(-1);
  return {
    map,
    items: data?.count ?? 0,
    bytes: data === undefined ? 0 : data.keysBytes + data.valuesBytes,
    id,
    name: file?.map_name,
    type: file?.map_type,
    most: file?.max_entries,
    // Some items may not have been captured.
    used: captureReport(meta).kind === 'full' && !alwaysFull(file?.map_type, types) ? data?.count : undefined,
    memory: file === undefined ? undefined : Number(file.memlock),
    pins: meta?.pins ?? [],
  };
}

function members({ source, container, maps }: Listed, types: MapTypes): object {
  return {
    source,
    container: container ?? null,
    maps: maps.map(({ map, used, items, bytes }) => ({ ...mapMembers(map, types), used: used ?? null, items, bytes })),
  };
}

const MAP_COLUMNS = [
  { title: 'ID', right: true },
  ...ATTRIBUTES,
  { title: 'ITEMS', right: true },
  PERCENT,
  { title: 'SIZE', right: true },
  ...OWNERS,
];

function mapRow(listed: ListedMap, types: MapTypes): string[] {
  const { map, items, bytes, pins } = listed;
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
  const [, percent] = fullnessCells(listed, types);
  return [String(map.mapId), ...attributes, String(items), percent, sizeText(bytes), pins.join(' '), holdersText(map)];
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
