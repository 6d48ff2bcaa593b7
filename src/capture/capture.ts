/**
 * Live maps into a dump of our own images: bpfmap-file.img, bpfmap-data.img and bpfmap-meta.img.
 *
 * Its entries are what CRIU writes for the same maps, field by field; what CRIU has no room for stands in the
 * meta image.
 */
import * as fs from 'node:fs';
import * as os from 'node:os';
import { IMAGE } from '../dump/model.js';
import { BpfimgError, ioError } from '../errors.js';
import { BPFMAP_DATA, BPFMAP_FILE, BPFMAP_META, type Kind } from '../image/kinds.js';
import type { JsonObject } from '../image/message.js';
import { encodeMessage } from '../image/wire.js';
import { writeHead, writeMessage } from '../image/writer.js';
import { type FileOutput, FolderOutput } from '../io/output.js';
import { isLive, type LiveMap, openLive } from '../kernel/live.js';
import type { BpfMap } from '../kernel/map.js';
import type { Access, Holder } from '../kernel/proc.js';
import type { Sys } from '../kernel/sys.js';
import { type MapTypes, type Report, reportText, type Work } from '../maptype.js';
import { EntryLimit, EntryWriter } from './entry.js';

/** What is being done, for whoever watches. */
export interface Doing {
  readonly map: string;
  /** Items so far, and at most. */
  readonly items: number;
  readonly most: number;
  /** Bytes of an item. */
  readonly itemSize: number;
}

export interface CaptureOptions {
  /** Replace a dump of bpfimg's that stands in the folder. */
  readonly force?: boolean;
  /** Maps that are gone before they could be opened are left out, not an error. */
  readonly lenient?: boolean;
  /** Which holders the images name; all of them when not said. */
  readonly holders?: (holder: Holder) => boolean;
  readonly progress?: (doing: Doing) => void;
}

/** What became of one map. */
export interface CapturedMap {
  readonly id: number;
  readonly name: string;
  readonly type: number;
  readonly items: number;
  /** Of keys and values. */
  readonly bytes: number;
  readonly report: Report;
}

/**
 * Captures `maps` into `folder`, which appears whole or not at all.
 * @returns a row for each map, in order
 * @throws BpfimgError `conflict` when the folder holds images already; KernelError
 */
export async function capture(
  sys: Sys,
  maps: readonly LiveMap[],
  folder: string,
  types: MapTypes,
  options: CaptureOptions = {},
): Promise<CapturedMap[]> {
  checkFolder(folder, options.force === true);
  const writer = new DumpWriter(sys, folder, types, options);
  try {
    const done: CapturedMap[] = [];
    for (const map of maps) {
      const row = await writer.map(map);
      if (row !== undefined) done.push(row);
    }
    await writer.commit();
    return done;
  } catch (error) {
    await writer.abort();
    throw error;
  }
}

/** Images a dump of ours consists of: no others may lose their company. */
const OURS: readonly string[] = [IMAGE.bpfmapFile, IMAGE.data, IMAGE.meta, IMAGE.btf];

function checkFolder(folder: string, force: boolean): void {
  let names: string[] = [];
  try {
    if (fs.statSync(folder, { throwIfNoEntry: false })?.isDirectory()) names = fs.readdirSync(folder);
  } catch (error) {
    throw ioError(folder, 'look into it', error);
  }
  const images = names.filter((name) => name.endsWith('.img'));
  if (images.length === 0) return;
  const foreign = images.find((name) => !OURS.includes(name));
  if (foreign !== undefined) {
    throw new BpfimgError('conflict', `${folder}: it holds ${foreign}, so it is another dump; choose a new folder`);
  }
  if (!force) throw new BpfimgError('conflict', `${folder}: it holds images already; --force replaces them`);
}

const OPEN_FLAGS: Readonly<Record<Access, number>> = { rw: 0o2, ro: 0o0, wo: 0o1 };

/** The three images while they are written. */
class DumpWriter {
  readonly #folder: FolderOutput;
  readonly #files: FileOutput;
  readonly #data: FileOutput;
  readonly #meta: FileOutput;
  #fileId = 0;

  constructor(
    readonly sys: Sys,
    folder: string,
    readonly types: MapTypes,
    readonly options: CaptureOptions,
  ) {
    this.#folder = new FolderOutput(folder);
    this.#files = this.#image(IMAGE.bpfmapFile, BPFMAP_FILE);
    this.#data = this.#image(IMAGE.data, BPFMAP_DATA);
    this.#meta = this.#image(IMAGE.meta, BPFMAP_META);
  }

  #image(name: string, kind: Kind): FileOutput {
    const out = this.#folder.file(name);
    writeHead(out, kind);
    return out;
  }

  /** Captures one map; undefined when it is gone and that is no error. */
  async map(live: LiveMap): Promise<CapturedMap | undefined> {
    const hook = live.type === undefined ? undefined : this.types.plugin(live.type).capture;
    if (hook === undefined) return this.#unread(live);
    let map: BpfMap;
    try {
      map = openLive(this.sys, live, 'ro');
    } catch (error) {
      if (this.options.lenient === true && !isLive(this.sys, live.id)) return undefined;
      throw error;
    }
    try {
      return await this.#read(map, live);
    } finally {
      map.close();
    }
  }

  async #read(map: BpfMap, live: LiveMap): Promise<CapturedMap> {
    const { frozen = live.frozen ?? false, memlock = live.memlock ?? 0 } = map.state();
    const { id, name, type, keySize, valueSize, valueStride, maxEntries, flags } = map;
    const entry = new EntryWriter(this.#data, id, keySize, valueStride, maxEntries);
    const itemSize = keySize + valueStride;
    const work = {
      type: this.types.get(type),
      progress: (items: number) => {
        this.options.progress?.({ map: map.subject, items, most: maxEntries, itemSize });
      },
    };
    const report = await this.#items(map, entry, work);
    const { ifindex, extra } = map.info();
    const shape = { type, keySize, valueSize, maxEntries, flags };
    this.#keep(live, { ...shape, name, ifindex, extra, frozen, memlock }, report);
    const items = report.kind === 'full' || report.kind === 'partial' ? entry.count : 0;
    return { id, name, type, items, bytes: items * itemSize, report };
  }

  /** Reads the items into an entry, which stands in the image only when they were read. */
  async #items(map: BpfMap, entry: EntryWriter, work: Work): Promise<Report> {
    try {
      const report = (await this.types.plugin(map.type).capture?.(map, entry, work)) as Report;
      if (report.kind === 'full' || report.kind === 'partial') await entry.finish();
      else await entry.drop();
      return report;
    } catch (error) {
      if (!(error instanceof EntryLimit)) throw error;
      await entry.drop();
      return { kind: 'not supported', why: error.message };
    }
  }

  /** A map whose items bpfimg cannot read: what it is, is kept. */
  #unread(live: LiveMap): CapturedMap {
    const { id, name = '', type, keySize, valueSize, maxEntries, flags = 0 } = live;
    const what = type === undefined ? 'maps of a type that cannot be seen' : `${this.types.get(type).name} maps`;
    const report: Report = { kind: 'not supported', why: `bpfimg cannot capture ${what} yet` };
    if (type !== undefined && keySize !== undefined && valueSize !== undefined && maxEntries !== undefined) {
      const { extra = 0n, frozen = false, memlock = 0 } = live;
      const shape = { type, keySize, valueSize, maxEntries, flags };
      this.#keep(live, { ...shape, name, ifindex: 0, extra, frozen, memlock }, report);
    }
    return { id, name, type: type ?? 0, items: 0, bytes: 0, report };
  }

  /**
   * Writes what the map is: an open file for each way in which holders have it open, and what CRIU's images
   * have no room for.
   */
  #keep(live: LiveMap, attributes: Attributes, report: Report): void {
    const holders = live.holders.filter(this.options.holders ?? (() => true));
    const files = new Map<Access, number>();
    for (const access of holders.length === 0 ? ['rw' as const] : holders.map((holder) => holder.access)) {
      if (files.has(access)) continue;
      files.set(access, ++this.#fileId);
      const message = fileMessage(this.#fileId, live.id, OPEN_FLAGS[access], attributes);
      writeMessage(this.#files, encodeMessage(BPFMAP_FILE.message, message, 'latin1'));
    }
    const message: JsonObject = { map_id: live.id, nr_cpus: this.sys.cpus, kernel_release: os.release() };
    if (live.pins.length > 0) message.pins = live.pins;
    if (holders.length > 0) {
      message.holders = holders.map(({ pid, fd, access, cloexec }) => {
        return { file_id: files.get(access) as number, pid, fd, ...(cloexec ? { fd_flags: 1 } : {}) };
      });
    }
    if (report.kind !== 'full') message.report = reportText(report);
    writeMessage(this.#meta, encodeMessage(BPFMAP_META.message, message));
  }

  commit(): Promise<void> {
    return this.#folder.commit();
  }

  abort(): Promise<void> {
    return this.#folder.abort();
  }
}

interface Attributes {
  readonly type: number;
  readonly keySize: number;
  readonly valueSize: number;
  readonly maxEntries: number;
  readonly flags: number;
  readonly name: string;
  readonly ifindex: number;
  readonly extra: bigint;
  readonly frozen: boolean;
  readonly memlock: number;
}

/** The message that CRIU writes for an open file of a map: no mnt_id, and no map_extra where it is 0. */
function fileMessage(id: number, mapId: number, flags: number, map: Attributes): JsonObject {
  return {
    id,
    flags,
    pos: 0,
    fown: { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 },
    map_type: map.type,
    key_size: map.keySize,
    value_size: map.valueSize,
    map_id: mapId,
    max_entries: map.maxEntries,
    map_flags: map.flags,
    memlock: map.memlock,
    frozen: map.frozen,
    map_name: map.name,
    ifindex: map.ifindex,
    ...(map.extra === 0n ? {} : { map_extra: map.extra }),
  };
}
