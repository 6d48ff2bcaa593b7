/**
 * A dump folder as maps: joins what CRIU spreads over files.img, fdinfo, ids, pstree and bpfmap-data.img.
 *
 * A process holds fds; an fd leads to an open file; an open file belongs to a map; a map has data. Two open
 * files of one map are one map here, although CRIU writes its data once for each of them.
 */

import { cpuStride } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import {
  BPFMAP_BTF,
  BPFMAP_DATA,
  BPFMAP_FILE,
  BPFMAP_META,
  FDINFO,
  FILES,
  IDS,
  type ImageKind,
  INVENTORY,
  PSTREE,
} from '../image/kinds.js';
import { type Entry, ImageReader } from '../image/reader.js';
import type {
  BpfmapBtfEntry,
  BpfmapDataEntry,
  BpfmapFileEntry,
  BpfmapMetaEntry,
  ExtFileEntry,
  FileEntry,
} from '../image/schema.gen.js';
import { Cursor, type Input } from '../io/input.js';
import { pause } from '../io/pause.js';
import { equalBytes } from '../io/stream.js';
import { type ItemShape, itemShape } from '../json/forms.js';
import type { MapType, MapTypes } from '../maptype.js';
import type { JsonObject } from '../value.js';
import { type DumpFiles, folderFiles } from './files.js';
import { type KeptLine, readTable, type TableLine } from './plugin-table.js';
import { commandOf } from './process.js';

/** A descriptor that leads to an open file. */
export interface Holder {
  readonly pid: number;
  /** Name of the process, once its core image has been read. */
  readonly command?: string | undefined;
  readonly fd: number;
  readonly cloexec: boolean;
}

/** One open file of a map. */
export interface MapFile {
  /** The image that contains it, and its entry there. */
  readonly image: string;
  readonly entry: number;
  /** `map_name` has one character per byte. */
  readonly message: BpfmapFileEntry;
  readonly holders: Holder[];
}

/** One entry of bpfmap-data.img. */
export interface MapData {
  readonly entry: Entry<BpfmapDataEntry>;
  readonly count: number;
  readonly keysBytes: number;
  readonly valuesBytes: number;
}

/** One map of the dump: known from its files, its data, or both. */
export interface DumpMap {
  readonly mapId: number;
  readonly files: MapFile[];
  /** In image order. CRIU restores from the last. */
  readonly data: MapData[];
  readonly meta: BpfmapMetaEntry | undefined;
  /** Number of the entry of {@link meta}. */
  readonly metaEntry: number | undefined;
}

/** A dump with any of these images is one of BPF maps. */
export const IMAGE = {
  files: 'files.img',
  bpfmapFile: 'bpfmap-file.img',
  data: 'bpfmap-data.img',
  meta: 'bpfmap-meta.img',
  btf: 'bpfmap-btf.img',
} as const;

/** Names of the images of a dump, by content. */
export type ImageNames = { readonly [name in keyof typeof IMAGE]: string };

/**
 * Names of the same images in a CRIU dump made with our CRIU plugin: CRIU removes images with its own names
 * that it did not write itself.
 */
export const PLUGIN_IMAGE: ImageNames = {
  files: 'files.img',
  bpfmapFile: 'bpfimg-file.img',
  data: 'bpfimg-data.img',
  meta: 'bpfimg-meta.img',
  btf: 'bpfimg-btf.img',
};

/** The plugin's table of open files, as text: a line `ID MAP_ID FLAGS` each (hex, decimal, octal). */
export const PLUGIN_TABLE = 'bpfimg-files.txt';

/** The plugin's name in inventory.img. */
export const PLUGIN = 'bpfimg';

/** What the CRIU plugin says of a dump that was made with it. */
export interface PluginDump {
  /** The table's lines, by the id of the open file. */
  readonly files: ReadonlyMap<number, TableLine>;
  /** Lines of objects that stay in the kernel, by the same id. */
  readonly kept: ReadonlyMap<number, KeptLine>;
  /** The entry of each map, by its id: the facts that all of the map's open files share. */
  readonly maps: ReadonlyMap<number, BpfmapFileEntry>;
}

/** A dump that was read: everything but the items, which stay in {@link data}. */
export interface Dump {
  /** The folder, archive or image that was read, for messages. */
  readonly name: string;
  /** Its files; undefined for a single image. */
  readonly files: DumpFiles | undefined;
  readonly maps: readonly DumpMap[];
  /** Names of its images. */
  readonly names: ImageNames;
  /** Defined for a CRIU dump made with our CRIU plugin. */
  readonly plugin: PluginDump | undefined;
  /** The open data image, if there is one. */
  readonly data: Input | undefined;
  /** BTF objects by id. */
  readonly btf: ReadonlyMap<number, DumpBtf>;
  /** What the images say beyond maps, for `verify`. */
  readonly lost: Lost;
  /** Names of the images that were read. */
  readonly images: ReadonlySet<string>;
  /** Those of them that could not be read to their end. */
  readonly broken: ReadonlySet<string>;
  /** Names of all its files; none for a single image. */
  readonly present: ReadonlySet<string>;
  close(): void;
}

/** A BTF object of the dump. */
export interface DumpBtf {
  readonly id: number;
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  /** Its entry in the image, and the entry's number. */
  readonly message: BpfmapBtfEntry;
  readonly entry: number;
  /** Reads the blob. */
  read(): Promise<Buffer>;
}

/** Entries that contradict others and thus belong to no map. */
export interface Lost {
  /** fds that lead to a BPF map file which no image describes. */
  readonly fds: (Holder & { readonly id: number })[];
  /** File entries whose id another one already has. */
  readonly files: MapFile[];
  /** Contradictions between the CRIU plugin's images and CRIU's own. */
  readonly plugin: PluginProblem[];
}

/** One element of {@link Lost.plugin}. */
export interface PluginProblem {
  readonly code: 'plugin-file' | 'plugin-map' | 'plugin-lost' | 'plugin-mixed' | 'plugin-stale';
  readonly image: string;
  readonly message: string;
}

/** The last image that CRIU writes. */
export const FINISHED = 'inventory.img';

/** Files that only CRIU or its plugin makes. */
const CRIUS =
  /^((inventory|pstree|files|(core|ids|fdinfo|mm|pagemap)-\d{1,10})\.img|bpfimg-(file|data|meta|btf)\.img|bpfimg-files\.txt)$/;

/** Whether a folder with these files is CRIU's dump of processes rather than one of maps alone. */
export function isCriu(names: Iterable<string>): boolean {
  return [...names].some((name) => CRIUS.test(name));
}

/** What is wrong with {@link FINISHED} if CRIU visibly has not finished the dump with these files. */
export function unfinishedDump(files: DumpFiles): string | undefined {
  const names = files.names();
  const size = files.size(FINISHED) ?? 0;
  if (size > 0 || !isCriu(names)) return undefined;
  const how = names.has(FINISHED) ? 'empty' : 'missing';
  return `it is ${how}, and CRIU writes it last: the dump has failed, or was not copied whole`;
}

/** What to do about a broken image of a dump: rethrow, or note it (`verify` does). */
export type OnBroken = (error: BpfimgError, image: string) => void;

const rethrow: OnBroken = (error) => {
  throw error;
};

/**
 * Reads a dump.
 * @param dump its files, or the path of its folder
 * @throws BpfimgError `notFound` if no image in it can contain maps
 */
export async function openDump(dump: string | DumpFiles, onBroken: OnBroken = rethrow): Promise<Dump> {
  const files = typeof dump === 'string' ? folderFiles(dump) : dump;
  // It is not broken if it was read while the images changed.
  let broken: Parameters<OnBroken>[] = [];
  const result = await files.atOneTime(() => {
    broken = [];
    return readDump(files, (...one) => broken.push(one));
  });
  try {
    for (const one of broken) onBroken(...one);
  } catch (error) {
    result.close();
    throw error;
  }
  return result;
}

async function readDump(files: DumpFiles, onBroken: OnBroken): Promise<Dump> {
  const names = files.names();
  const known = [IMAGE.files, IMAGE.bpfmapFile, IMAGE.data, PLUGIN_IMAGE.bpfmapFile, PLUGIN_IMAGE.data];
  if (!known.some((name) => names.has(name))) {
    throw new BpfimgError(
      'notFound',
      `no ${IMAGE.files}, ${IMAGE.bpfmapFile} or ${IMAGE.data} in it, expected a dump`,
      { subject: files.name },
    );
  }
  const builder = new DumpBuilder(files.name, onBroken, names, files);
  const each: EachEntry = async (name, kind, take) => {
    if (!names.has(name)) return;
    const input = files.open(name);
    try {
      await builder.read(input, name, kind, take);
    } finally {
      input.close();
    }
  };
  await each(IMAGE.files, FILES, (entry) => builder.filesEntry(entry));
  const part = await pluginPart(names, builder, each);
  if (part === undefined) {
    await each(IMAGE.bpfmapFile, BPFMAP_FILE, (entry) => builder.bpfmapFileEntry(entry));
  } else {
    await each(PLUGIN_IMAGE.bpfmapFile, BPFMAP_FILE, (entry) => builder.pluginMap(entry));
    if (builder.files.size === 0) {
      for (const image of ownImages(IMAGE)) if (names.has(image)) builder.stale(image, 'the dump is one of the plugin');
    }
    const table = names.has(PLUGIN_TABLE) ? files.open(PLUGIN_TABLE) : undefined;
    try {
      await builder.pluginFiles(table, part);
    } finally {
      table?.close();
    }
  }
  await readHolders(files, names, builder, each);
  const { meta, btf, data } = builder.names;
  await each(meta, BPFMAP_META, (entry) => builder.meta(entry));
  if (names.has(btf)) await builder.btfImage(files.open(btf), btf);
  if (names.has(data)) await builder.dataImage(files.open(data), data);
  return builder.dump();
}

/** The part that our CRIU plugin has in a dump. */
interface PluginPart {
  /** inventory.img names it. */
  readonly named: boolean;
  /** Other plugins may be involved. */
  readonly others: boolean;
}

/** The plugin's part in the dump; undefined if it has none. */
async function pluginPart(
  names: ReadonlySet<string>,
  builder: DumpBuilder,
  each: EachEntry,
): Promise<PluginPart | undefined> {
  const ours = ownImages(PLUGIN_IMAGE)
    .concat(PLUGIN_TABLE)
    .filter((name) => names.has(name));
  if (ours.length === 0 && builder.external.size === 0) return undefined;
  let listed: readonly string[] | undefined;
  // CRIU before 4.1 writes no list of plugins, and a folder that is not CRIU's has no inventory.
  await each('inventory.img', INVENTORY, ({ message }) => {
    if (message.plugins_entry !== undefined) listed = message.plugins_entry.plugins ?? [];
  });
  if (listed?.includes(PLUGIN)) return { named: true, others: listed.some((name) => name !== PLUGIN) };
  const needed = [PLUGIN_TABLE, PLUGIN_IMAGE.bpfmapFile, PLUGIN_IMAGE.data].some((name) => names.has(name));
  const native = builder.files.size > 0 || names.has(IMAGE.bpfmapFile);
  if (listed === undefined && needed && (builder.external.size > 0 || !native)) return { named: false, others: true };
  for (const image of ours) {
    builder.stale(
      image,
      listed ? `inventory.img does not name the plugin ${PLUGIN}` : 'the dump is one of CRIU itself',
    );
  }
  return undefined;
}

/** The images of this form that contain nothing but maps. */
export function ownImages({ bpfmapFile, data, meta, btf }: ImageNames): string[] {
  return [bpfmapFile, data, meta, btf];
}

/**
 * Reads one image as a dump, as far as possible: files.img or bpfmap-file.img without data, or
 * bpfmap-data.img without files. The dump owns `input`, which must have a size.
 * @returns undefined for an image of another kind
 */
export async function openDumpImage(
  input: Input,
  kind: ImageKind,
  onBroken: OnBroken = rethrow,
): Promise<Dump | undefined> {
  const builder = new DumpBuilder(input.name, onBroken);
  if (kind === BPFMAP_DATA) await builder.dataImage(input, IMAGE.data);
  else if (kind === FILES) await builder.read(input, IMAGE.files, FILES, (entry) => builder.filesEntry(entry));
  else if (kind === BPFMAP_FILE) {
    await builder.read(input, IMAGE.bpfmapFile, BPFMAP_FILE, (entry) => builder.bpfmapFileEntry(entry));
  } else return undefined;
  return builder.dump();
}

/** Most open files and data entries in a dump. No kernel holds so many maps, but an image can claim them. */
const MAX_ENTRIES = 1_000_000;

type EachEntry = <M extends JsonObject>(
  name: string,
  kind: ImageKind<M>,
  take: (entry: Entry<M>) => void,
) => Promise<void>;

class DumpBuilder {
  readonly #maps = new Map<
    number,
    { files: MapFile[]; data: MapData[]; meta: BpfmapMetaEntry | undefined; metaEntry: number | undefined }
  >();
  readonly #images = new Set<string>();
  readonly #broken = new Set<string>();
  readonly files = new Map<number, MapFile>();
  /** Open files that CRIU left to plugins: their owners according to files.img, by id. */
  readonly external = new Map<number, ExtFileEntry>();
  readonly lost: Lost = { fds: [], files: [], plugin: [] };
  readonly btf = new Map<number, DumpBtf>();
  readonly #inputs: Input[] = [];
  #data: Input | undefined;
  #entries = 0;
  /** Whether the dump was made with our CRIU plugin; the entry it wrote for each map; its table. */
  #plugin = false;
  readonly #pluginMaps = new Map<number, { readonly entry: number; readonly message: BpfmapFileEntry }>();
  readonly #table = new Map<number, TableLine>();
  readonly #kept = new Map<number, KeptLine>();
  names: ImageNames = IMAGE;

  constructor(
    readonly name: string,
    readonly onBroken: OnBroken,
    readonly present: ReadonlySet<string> = new Set(),
    readonly dumpFiles?: DumpFiles,
  ) {}

  #count(): void {
    if (++this.#entries > MAX_ENTRIES) {
      throw new BpfimgError('badImage', `more than ${MAX_ENTRIES} entries of BPF maps`, { subject: this.name });
    }
  }

  #map(id: number) {
    this.#count();
    let map = this.#maps.get(id);
    if (map === undefined) {
      map = { files: [], data: [], meta: undefined, metaEntry: undefined };
      this.#maps.set(id, map);
    }
    return map;
  }

  /** Passes on each entry of an image; the caller decides about a broken image. */
  async read<M extends JsonObject>(
    input: Input,
    name: string,
    kind: ImageKind<M>,
    take: (entry: Entry<M>) => void,
  ): Promise<void> {
    this.#images.add(name);
    await this.#guarded(name, async () => {
      const reader = await ImageReader.open(input, 'latin1');
      for await (const entry of reader.entriesOf(kind)) {
        take(entry);
        await pause();
      }
    });
  }

  /** @returns whether all of it was read */
  async #guarded(name: string, read: () => Promise<void>): Promise<boolean> {
    try {
      await read();
      return true;
    } catch (error) {
      if (!(error instanceof BpfimgError)) throw error;
      this.#broken.add(name);
      this.onBroken(error, name);
      return false;
    }
  }

  filesEntry({ index, message }: Entry<FileEntry>): void {
    if (message.bpf !== undefined) this.#file(IMAGE.files, index, message.bpf);
    else if (message.ext !== undefined) {
      this.#count();
      this.external.set(message.id, message.ext);
    }
  }

  bpfmapFileEntry({ index, message }: Entry<BpfmapFileEntry>): void {
    this.#file(IMAGE.bpfmapFile, index, message);
  }

  #file(image: string, entry: number, message: BpfmapFileEntry): void {
    const file: MapFile = { image, entry, message, holders: [] };
    const known = this.files.get(message.id);
    if (known !== undefined) {
      // A file that both images name is the same file: CRIU restores from files.img.
      if (known.image === image) this.lost.files.push(file);
      return;
    }
    this.files.set(message.id, file);
    this.#map(message.map_id).files.push(file);
  }

  /** The facts about a map in the plugin's image. */
  pluginMap({ index, message }: Entry): void {
    this.#count();
    const { map_id } = message as BpfmapFileEntry;
    if (this.#pluginMaps.has(map_id)) {
      this.#problem('plugin-map', PLUGIN_IMAGE.bpfmapFile, `entry ${index}: map ${map_id} is listed twice`);
    } else this.#pluginMaps.set(map_id, { entry: index, message: message as BpfmapFileEntry });
  }

  #problem(code: PluginProblem['code'], image: string, message: string): void {
    this.lost.plugin.push({ code, image, message });
  }

  /** Notes an image that does not belong to this dump. */
  stale(image: string, why: string): void {
    this.#problem('plugin-stale', image, `nothing reads it, for ${why}`);
  }

  /** Makes the open files of maps: one for each line of the plugin's table, and one for each map without a line. */
  async pluginFiles(table: Input | undefined, { named, others }: PluginPart): Promise<void> {
    this.names = PLUGIN_IMAGE;
    this.#plugin = true;
    if (this.files.size > 0) {
      const message = `${this.files.size} open files of maps that CRIU itself has dumped, beside those of the plugin`;
      this.#problem('plugin-mixed', IMAGE.files, message);
    }
    const taken = new Set([...this.files.keys(), ...this.external.keys()]);
    if (table !== undefined) {
      const whole = await this.#guarded(PLUGIN_TABLE, async () => {
        await readTable(table, (line) => ('kind' in line ? this.#keptLine(line) : this.#tableLine(line)));
      });
      for (const lines of [this.#table, this.#kept]) for (const id of lines.keys()) taken.add(id);
      for (const id of others || !whole ? [] : this.external.keys()) {
        if (!this.#table.has(id) && !this.#kept.has(id))
          this.#problem('plugin-lost', IMAGE.files, `open file ${id} is in no line of ${PLUGIN_TABLE}`);
      }
    } else if (named || this.external.size > 0) {
      const message = 'it is missing, and without it nothing says which maps were open';
      const subject = this.dumpFiles?.nameOf(PLUGIN_TABLE) ?? this.name;
      this.onBroken(new BpfimgError('notFound', message, { subject, code: 'plugin-table' }), PLUGIN_TABLE);
    }
    // A map without a holder gets an id for documents to use; the image's own is only a running number.
    let id = 1;
    for (const [mapId, { entry, message }] of this.#pluginMaps) {
      if (this.#maps.has(mapId)) continue;
      while (taken.has(id)) id++;
      const image = PLUGIN_IMAGE.bpfmapFile;
      this.#map(mapId).files.push({ image, entry, message: { ...message, id: id++ }, holders: [] });
    }
  }

  #keptLine(line: KeptLine): void {
    if (this.#listedTwice(line)) return;
    this.#kept.set(line.id, line);
    this.#checkOwner(line);
  }

  #tableLine(line: TableLine): void {
    const { id, mapId, flags } = line;
    if (this.#listedTwice(line)) return;
    this.#table.set(id, line);
    if (!this.#checkOwner(line)) return;
    const map = this.#pluginMaps.get(mapId);
    if (map === undefined) {
      const message = `line ${line.line}: map ${mapId} is not in ${PLUGIN_IMAGE.bpfmapFile}`;
      this.#problem('plugin-map', PLUGIN_TABLE, message);
      return;
    }
    const message: BpfmapFileEntry = { ...map.message, id, flags };
    const owner = this.external.get(id);
    if (owner?.fown !== undefined) message.fown = owner.fown;
    const file: MapFile = { image: PLUGIN_IMAGE.bpfmapFile, entry: map.entry, message, holders: [] };
    this.files.set(id, file);
    this.#map(mapId).files.push(file);
  }

  #listedTwice({ id, line }: Pick<TableLine, 'id' | 'line'>): boolean {
    this.#count();
    const twice = this.#table.has(id) || this.#kept.has(id);
    if (twice) this.#problem('plugin-file', PLUGIN_TABLE, `line ${line}: open file ${id} is listed twice`);
    return twice;
  }

  /** Whether the file is one of a plugin, as far as there is an image that says so. */
  #checkOwner({ id, line }: Pick<TableLine, 'id' | 'line'>): boolean {
    if (!this.#images.has(IMAGE.files) || this.external.has(id)) return true;
    this.#problem('plugin-file', PLUGIN_TABLE, `line ${line}: open file ${id} is no plugin's in ${IMAGE.files}`);
    return false;
  }

  meta({ index, message }: Entry<BpfmapMetaEntry>): void {
    const map = this.#map(message.map_id);
    map.meta = message;
    map.metaEntry = index;
    if (this.#plugin) return;
    // A dump without processes (ours) records here who held the files.
    for (const { file_id, pid, fd, fd_flags = 0 } of message.holders ?? []) {
      const known = map.files.find((file) => file.message.id === file_id);
      if (known === undefined || known.holders.some((one) => one.pid === pid && one.fd === fd)) continue;
      known.holders.push({ pid, fd, cloexec: (fd_flags & 1) !== 0 });
    }
  }

  /** Owns `input`. */
  async btfImage(input: Input, name: string): Promise<void> {
    this.#inputs.push(input);
    const { BTF_MAX } = await import('../btf/btf.js');
    await this.read(input, name, BPFMAP_BTF, ({ index, message, extraAt, extraSize }) => {
      const id = message.btf_id;
      if (extraSize > BTF_MAX) {
        const what = `BTF of ${extraSize} bytes, expected at most ${BTF_MAX}`;
        throw new BpfimgError('badImage', `entry ${index}: ${what}`, { subject: input.name });
      }
      const read = async () => Buffer.from(await new Cursor(input, extraAt, extraAt + extraSize).take(extraSize));
      this.btf.set(id, { id, name: message.name ?? '', size: extraSize, message, entry: index, read });
    });
  }

  async dataImage(input: Input, name: string): Promise<void> {
    this.#data = input;
    await this.read(input, name, BPFMAP_DATA, (entry) => {
      const { map_id, count, keys_bytes, values_bytes } = entry.message;
      this.#map(map_id).data.push({ entry, count, keysBytes: keys_bytes, valuesBytes: values_bytes });
    });
  }

  dump(): Dump {
    return {
      name: this.name,
      files: this.dumpFiles,
      maps: [...this.#maps].map(([mapId, map]) => ({ mapId, ...map })),
      names: this.names,
      plugin: this.#plugin
        ? {
            files: this.#table,
            kept: this.#kept,
            maps: new Map([...this.#pluginMaps].map(([id, { message }]) => [id, message])),
          }
        : undefined,
      data: this.#data,
      btf: this.btf,
      lost: this.lost,
      images: this.#images,
      broken: this.#broken,
      present: this.present,
      close: () => {
        this.#data?.close();
        for (const input of this.#inputs) input.close();
      },
    };
  }
}

/** Follows pstree, ids and fdinfo from processes to open files of maps. */
async function readHolders(
  files: DumpFiles,
  names: ReadonlySet<string>,
  builder: DumpBuilder,
  each: EachEntry,
): Promise<void> {
  const pids = new Set<number>();
  await each('pstree.img', PSTREE, ({ message }) => {
    pids.add(message.pid);
  });
  if (pids.size === 0) {
    for (const name of names) {
      const match = /^ids-(\d{1,10})\.img$/.exec(name);
      if (match) pids.add(Number(match[1]));
    }
  }
  for (const pid of pids) {
    let filesId: number | undefined;
    await each(`ids-${pid}.img`, IDS, ({ message }) => {
      filesId ??= message.files_id;
    });
    if (filesId === undefined) continue;
    const held: { readonly file: MapFile; readonly holder: Holder }[] = [];
    await each(`fdinfo-${filesId}.img`, FDINFO, ({ message }) => {
      const { id, fd, flags } = message;
      const holder = { pid, fd, cloexec: (flags & 1) !== 0 };
      if (message.type !== 'BPFMAP' && message.type !== 'EXT') return;
      const file = builder.files.get(id);
      if (file) held.push({ file, holder });
      // For an open file of a plugin, only files.img shows that it exists.
      else if (message.type === 'BPFMAP' || (builder.names === PLUGIN_IMAGE && !builder.external.has(id))) {
        builder.lost.fds.push({ ...holder, id });
      }
    });
    const command = held.length === 0 ? undefined : await commandOf(files, pid);
    for (const { file, holder } of held) file.holders.push({ ...holder, command });
  }
}

/** The item sizes of one data entry, and what the map's type says of its values. */
export interface DataShape {
  /** Undefined if the totals are not `count` equal parts. */
  readonly shape: ItemShape | undefined;
  /** The map's attributes do not explain these item sizes. */
  readonly oddKey: boolean;
  readonly oddValue: boolean;
}

/** Item sizes of `data`, and whether they match `file` (absent for data without a file). */
export function dataShape(data: MapData, file: BpfmapFileEntry | undefined, types: MapTypes): DataShape {
  const shape = itemShape(data.count, data.keysBytes, data.valuesBytes);
  if (shape === undefined || file === undefined || data.count === 0) return { shape, oddKey: false, oddValue: false };
  const type: MapType = types.get(file.map_type);
  const oddKey = shape.keySize !== file.key_size;
  if (!type.perCpu) return { shape, oddKey, oddValue: shape.valueSize !== file.value_size };
  const stride = cpuStride(file.value_size);
  if (stride === 0 || shape.valueSize === 0 || shape.valueSize % stride !== 0) return { shape, oddKey, oddValue: true };
  return { shape: { ...shape, perCpu: file.value_size }, oddKey, oddValue: false };
}

/** Whether two data entries contain the same bytes. */
export async function sameData(input: Input, a: MapData, b: MapData): Promise<boolean> {
  if (a.count !== b.count || a.keysBytes !== b.keysBytes || a.valuesBytes !== b.valuesBytes) return false;
  return equalBytes(input, a.entry.extraAt, input, b.entry.extraAt, a.entry.extraSize);
}
