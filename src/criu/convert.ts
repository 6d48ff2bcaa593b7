/**
 * Converts CRIU dumps whose maps the plugin restores into dumps that CRIU's own BPF support (CRIU built with libbpf)
 * restores without a plugin, and back.
 */

import * as fs from 'node:fs';
import * as path from 'node:path';
import { mapText } from '../dump/attributes.js';
import {
  type Dump,
  type DumpMap,
  IMAGE,
  type ImageNames,
  openDump,
  ownImages,
  PLUGIN,
  PLUGIN_IMAGE,
  PLUGIN_TABLE,
} from '../dump/model.js';
import { tableText } from '../dump/plugin-table.js';
import { rewriteImage } from '../dump/rewrite.js';
import { BpfimgError } from '../errors.js';
import { BPFMAP_FILE, FDINFO, FILES, type ImageKind, INVENTORY } from '../image/kinds.js';
import { ImageReader } from '../image/reader.js';
import type { BpfmapFileEntry, FdinfoEntry, FileEntry, InventoryEntry } from '../image/schema.gen.js';
import { encodeMessage } from '../image/wire.js';
import { writeHead, writeMessage } from '../image/writer.js';
import { FolderOutput } from '../io/folder.js';
import { openFile } from '../io/input.js';
import { copyInput } from '../io/stream.js';
import { FULL, type MapTypes, mapSubject, type Report } from '../maptype.js';
import { STRANGE } from '../replay/plan.js';
import type { JsonObject } from '../value.js';
import { nativeFate } from './native.js';

/** Who restores the maps of a dump: CRIU itself, or the plugin. */
export type DumpForm = 'native' | 'plugin';

/** One map of a converted dump. */
export interface ConvertedMap {
  readonly mapId: number;
  readonly name: string;
  readonly type: number;
  readonly items: number;
  /** What a restore will bring back. */
  readonly report: Report;
}

/** Maps that were converted, or why there was nothing to do. */
export type Conversion = { readonly maps: readonly ConvertedMap[] } | { readonly nothing: string };

/**
 * Converts the dump in `folder`, whole or not at all.
 * @throws BpfimgError `unsupported` if the other way of restoring them would damage its maps
 */
export async function convert(folder: string, to: DumpForm, types: MapTypes): Promise<Conversion> {
  const dump = await openDump(folder);
  try {
    if (!dump.images.has(IMAGE.files)) {
      throw new BpfimgError('unsupported', `it has no ${IMAGE.files}, so it is not a CRIU dump`, { subject: folder });
    }
    checkSound(dump);
    if (dump.plugin === undefined && dump.maps.length === 0) return { nothing: 'it has no BPF maps' };
    if ((dump.plugin === undefined ? 'native' : 'plugin') === to) {
      const who = to === 'native' ? 'CRIU built with libbpf' : 'the CRIU plugin';
      return { nothing: `${who} restores it already` };
    }
    const [kept] = dump.plugin?.kept.values() ?? [];
    if (kept !== undefined) {
      const what = `open file ${kept.id} is a BPF ${kept.kind}, which only the plugin restores`;
      throw new BpfimgError('unsupported', what, { subject: folder });
    }
    const maps = dump.maps.map((map) => (to === 'native' ? nativeRow : pluginRow)(dump, map, types));
    const refused = maps.filter(({ problem }) => problem !== undefined);
    if (refused.length > 0) {
      const told = refused.slice(0, NAMED_MAPS).map(({ row, problem }) => {
        return `${mapSubject(row.mapId, row.name)}, type ${types.get(row.type).name}: ${problem}`;
      });
      const more = refused.length > NAMED_MAPS ? `; and ${refused.length - NAMED_MAPS} more maps` : '';
      const whose = to === 'native' ? 'CRIU without the plugin' : 'the plugin';
      throw new BpfimgError('unsupported', `${whose} cannot restore ${told.join('; ')}${more}`, { subject: folder });
    }
    await write(dump, folder, to === 'native' ? toNative(dump) : toPlugin(dump));
    return { maps: maps.map(({ row }) => row) };
  } finally {
    dump.close();
  }
}

/** Maps that a message names. */
const NAMED_MAPS = 5;

/** @throws BpfimgError for images that contradict each other, because their contents cannot be converted */
function checkSound(dump: Dump): void {
  const { fds, files, plugin } = dump.lost;
  const wrong =
    plugin.find(({ code }) => code !== 'plugin-stale')?.message ??
    fds.map(({ pid, fd, id }) => `fd ${fd} of process ${pid} is file ${id}, which no image describes`)[0] ??
    files.map(({ message }) => `file id ${message.id} occurs twice`)[0] ??
    dump.maps.filter((map) => map.files.length === 0).map(({ mapId }) => `map ${mapId} has data but no open file`)[0];
  if (wrong === undefined) return;
  throw new BpfimgError('badImage', `${wrong}; bpfimg verify has the details`, { subject: dump.name });
}

interface MapVerdict {
  readonly row: ConvertedMap;
  readonly problem: string | undefined;
}

function mapVerdict(map: DumpMap, problem: string | undefined, lacks: readonly string[]): MapVerdict {
  const { map_name: name, map_type: type } = (map.files[0] as DumpMap['files'][0]).message;
  const report: Report = lacks.length === 0 ? FULL : { kind: 'partial', why: lacks.join('; ') };
  return { row: { mapId: map.mapId, name, type, items: map.data.at(-1)?.count ?? 0, report }, problem };
}

function nativeRow(dump: Dump, map: DumpMap, types: MapTypes): MapVerdict {
  const { problem, lacks } = nativeFate(dump, map, types);
  return mapVerdict(map, problem, lacks);
}

function pluginRow(_dump: Dump, map: DumpMap, types: MapTypes): MapVerdict {
  const [first, ...others] = map.files.map(({ message }) => mapText(message));
  const { map_type: type } = (map.files[0] as DumpMap['files'][0]).message;
  const problem = others.some((one) => one !== first)
    ? 'its open files have different attributes'
    : types.plugin(type).replay === undefined
      ? 'bpfimg cannot fill maps of that type'
      : undefined;
  const lacks = types.row(type) === undefined ? [STRANGE] : [];
  if (map.data.length === 0) lacks.push('no items, because the dump has no data entry for it');
  return mapVerdict(map, problem, lacks);
}

/** Members of each open file that the plugin's images have in another place. */
const OPEN_FILE = { id: 0, flags: 0o2, fown: { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 } };

/** What changes in a dump. */
interface Change {
  /** The new names of its images. */
  readonly names: ImageNames;
  /** Entry of files.img for each open file of a map, by its id, without the members of the old form. */
  readonly files: ReadonlyMap<number, JsonObject>;
  /** The type of these files in fdinfo images. */
  readonly fdType: string;
  /** Maps that have an image of their own, with or without open files. */
  readonly maps: readonly BpfmapFileEntry[];
  /** Open files in the plugin's table; undefined if it has none. */
  readonly table: readonly BpfmapFileEntry[] | undefined;
  /** The names of plugins in inventory.img. */
  plugins(listed: readonly string[]): string[];
}

function toNative(dump: Dump): Change {
  const files = dump.maps.flatMap((map) => map.files.map(({ message }) => message));
  const open = files.filter(({ id }) => dump.plugin?.files.has(id));
  return {
    names: IMAGE,
    files: new Map(open.map((bpf) => [bpf.id, { type: 'BPFMAP', bpf }])),
    fdType: 'BPFMAP',
    // CRIU reads only files.img: a map that nobody had open stays in the dump and is not restored.
    maps: files.filter(({ id }) => !dump.plugin?.files.has(id)),
    table: undefined,
    plugins: (listed) => listed.filter((name) => name !== PLUGIN),
  };
}

function toPlugin(dump: Dump): Change {
  const open = dump.maps
    .flatMap(({ files }) => files.filter(({ image }) => image === IMAGE.files))
    .sort((a, b) => a.entry - b.entry)
    .map(({ message }) => message);
  return {
    names: PLUGIN_IMAGE,
    files: new Map(open.map(({ id, fown = OPEN_FILE.fown }) => [id, { type: 'EXT', ext: { id, fown } }])),
    fdType: 'EXT',
    maps: dump.maps.map(({ files }, i) => ({ ...(files[0] as (typeof files)[0]).message, ...OPEN_FILE, id: i + 1 })),
    table: open,
    plugins: (listed) => (listed.includes(PLUGIN) ? [...listed] : [...listed, PLUGIN]),
  };
}

async function write(dump: Dump, folder: string, change: Change): Promise<void> {
  const { names, maps, table } = change;
  const images = new FolderOutput(folder);
  const written = new Set<string>();
  const file = (name: string) => {
    written.add(name);
    return images.file(name);
  };
  const rewrite = async <M extends JsonObject>(name: string, kind: ImageKind<M>, edit: (message: M) => JsonObject) => {
    const input = images.read(name);
    if (input === undefined) return;
    try {
      await rewriteImage(input, kind, file(name), (before) => {
        const message = edit(before);
        return message === before ? undefined : { message };
      });
    } finally {
      input.close();
    }
  };
  try {
    await rewrite(IMAGE.files, FILES, (message) => changedFile(message, change));
    for (const name of fdinfoImages(folder)) {
      if (await leadsTo(path.join(folder, name), change)) {
        await rewrite(name, FDINFO, (message) => changedFd(message, change));
      }
    }
    await rewrite(INVENTORY_IMAGE, INVENTORY, (message) => changedInventory(message, change));
    for (const what of ['data', 'meta', 'btf'] as const) {
      const input = images.read(dump.names[what]);
      if (input === undefined) continue;
      try {
        await copyInput(input, 0, input.size as number, file(names[what]));
      } finally {
        input.close();
      }
    }
    if (maps.length > 0) {
      const out = file(names.bpfmapFile);
      writeHead(out, BPFMAP_FILE);
      for (const message of maps) {
        writeMessage(out, encodeMessage(BPFMAP_FILE.message, message, 'latin1'));
        await out.turn();
      }
    }
    if (table !== undefined) {
      const out = file(PLUGIN_TABLE);
      for (const { id, map_id, flags } of table) out.text(tableText({ id, mapId: map_id, flags }));
    }
    // Nothing reads the others any more, and they would only confuse people.
    for (const name of ALL_NAMES) if (!written.has(name)) images.remove(name);
    await images.commit();
  } catch (error) {
    await images.abort();
    throw error;
  }
}

const INVENTORY_IMAGE = 'inventory.img';

/** All images that are only about maps, in both forms. */
const ALL_NAMES: readonly string[] = [IMAGE, PLUGIN_IMAGE].flatMap(ownImages).concat(PLUGIN_TABLE);

function fdinfoImages(folder: string): string[] {
  return fs.readdirSync(folder).filter((name) => /^fdinfo-\d{1,10}\.img$/.test(name));
}

/** Whether a file descriptor in the image leads to a map. */
async function leadsTo(file: string, change: Change): Promise<boolean> {
  const input = openFile(file);
  try {
    for await (const { message } of (await ImageReader.open(input, 'latin1')).entriesOf(FDINFO)) {
      if (changedFd(message, change) !== message) return true;
    }
    return false;
  } finally {
    input.close();
  }
}

function changedFile(message: FileEntry, { files }: Change): JsonObject {
  const { bpf, ext, ...rest } = message;
  const changed = bpf === undefined && ext === undefined ? undefined : files.get(message.id);
  return changed === undefined ? message : { ...rest, ...changed };
}

function changedFd(message: FdinfoEntry, { files, fdType }: Change): JsonObject {
  const { type } = message;
  const ours = (type === 'BPFMAP' || type === 'EXT') && type !== fdType && files.has(message.id);
  return ours ? { ...message, type: fdType } : message;
}

/** CRIU before 4.1 keeps no list of plugins. If there is one, CRIU does not call plugins that it does not name. */
function changedInventory(message: InventoryEntry, { plugins }: Change): JsonObject {
  const entry = message.plugins_entry;
  if (entry === undefined) return message;
  // An empty list stays: without a list, CRIU calls every plugin.
  return { ...message, plugins_entry: { ...entry, plugins: plugins(entry.plugins ?? []) } };
}
