/**
 * Saves live maps in a dump of our own images: bpfmap-file.img, bpfmap-data.img and bpfmap-meta.img.
 *
 * Its entries are what CRIU writes for the same maps, field by field; what CRIU's images have no room for goes
 * into the meta image.
 */
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { Btf } from '../btf/btf.js';
import { hasSpinLock, SPECIAL_FIELDS, specialFields } from '../btf/special.js';
import { factMembers } from '../dump/facts.js';
import { IMAGE, type ImageNames, ownImages } from '../dump/model.js';
import { BpfimgError, errorText, followed, ioError } from '../errors.js';
import { BPFMAP_BTF, BPFMAP_DATA, BPFMAP_FILE, BPFMAP_META, type ImageKind } from '../image/kinds.js';
import { encodeMessage } from '../image/wire.js';
import { writeHead, writeMessage } from '../image/writer.js';
import { FolderOutput } from '../io/folder.js';
import type { FileOutput } from '../io/output.js';
import { readBtf } from '../kernel/btf.js';
import { KernelError } from '../kernel/error.js';
import { addMemory, isLive, type LiveMap, openLive } from '../kernel/live.js';
import type { BpfMap, MapInfo } from '../kernel/map.js';
import { type Access, bootId, type MapHolder } from '../kernel/proc.js';
import type { Sys } from '../kernel/sys.js';
import {
  type CaptureWork,
  type Doing,
  type Drain,
  type ItemSink,
  isBare,
  itemSizes,
  type KernelTypeFacts,
  type MapFacts,
  type MapTypes,
  type Report,
  reportText,
  type TypeFacts,
  withMissing,
} from '../maptype.js';
import { phase } from '../phases.js';
import type { JsonObject } from '../value.js';
import { type ChosenFrom, ChosenSink, type ItemChoice } from './chosen.js';
import { EntryLimit, EntryWriter } from './entry.js';
import { MaskedSink } from './mask.js';
import { CaptureQueue, isVanished, type QueuedMap } from './queue.js';

/** How to capture. */
export interface CaptureOptions {
  /** Replace a dump of bpfimg's own in the folder. */
  readonly force?: boolean;
  /** Names of the images, for a folder that has other images too; the default is a dump of its own. */
  readonly images?: ImageNames;
  /** Silently leave out maps that go away before they are opened. */
  readonly lenient?: boolean;
  /** Write nothing unless at least one map is captured; otherwise attributes are saved even of maps that are not. */
  readonly orNothing?: boolean;
  /** The holders to name in the images; all by default. */
  readonly holders?: (holder: MapHolder) => boolean;
  readonly drain?: Drain;
  /** Capture what maps are, without their items. Those of maps of maps are read, because they show what inner maps are. */
  readonly bare?: boolean;
  /** Makes the choice among the items of a map; undefined for all of them. */
  readonly choose?: (map: ChosenFrom) => Promise<ItemChoice | undefined>;
  /** Looks up a live map that another map refers to. */
  readonly find?: (id: number) => LiveMap | undefined;
  readonly progress?: (doing: Doing) => void;
}

/** The outcome for one map. */
export interface CapturedMap {
  readonly id: number;
  readonly name: string;
  readonly type: number;
  readonly items: number;
  /** Size of keys and values together. */
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
  if (options.images === undefined) checkFolder(folder, options.force === true);
  const images = new FolderOutput(folder);
  const wanted = new CaptureQueue(sys, maps, options.find ?? (() => undefined));
  let writer: DumpWriter | undefined;
  try {
    // A new folder has no name yet, but it will be on the same disk as its parent.
    const disk = fs.existsSync(folder) ? folder : path.dirname(folder);
    writer = new DumpWriter(sys, { images, folder: disk }, types, options, wanted);
    const rows: (() => CapturedMap)[] = [];
    let left = maps.length === 0;
    phase('reading and writing items');
    for (const turn of wanted.turns()) {
      const row = await writer.map(turn);
      left ||= row !== undefined;
      if (row !== undefined) rows.push(row);
      else if (options.lenient !== true) rows.push(() => goneRow(turn.live));
    }
    if (!left && rows.length === 0) throw new BpfimgError('notFound', 'nothing to capture: all maps are gone');
    phase('writing the images');
    const done = rows.map((row) => row());
    const captured = done.some(({ report }) => report.kind !== 'not supported');
    // Maps that are gone leave nothing to write.
    if (left && (captured || options.orNothing !== true)) await writer.commit();
    else await writer.abort();
    phase('reporting');
    return done;
  } catch (error) {
    await (writer ?? images).abort().catch((worse: Error) => {
      throw followed(error, worse.message);
    });
    throw error;
  } finally {
    wanted.close();
  }
}

/** The row of a map that was there at first and has gone away since. */
function goneRow({ id, name = '', type = 0 }: LiveMap): CapturedMap {
  return { id, name, type, items: 0, bytes: 0, report: { kind: 'not supported', why: 'it is gone' } };
}

function checkFolder(folder: string, force: boolean): void {
  let names: string[] = [];
  try {
    if (fs.statSync(folder, { throwIfNoEntry: false })?.isDirectory()) names = fs.readdirSync(folder);
  } catch (error) {
    throw ioError(folder, 'inspect it', error);
  }
  const images = names.filter((name) => name.endsWith('.img'));
  if (images.length === 0) return;
  const ours = ownImages(IMAGE);
  const foreign = images.find((name) => !ours.includes(name));
  if (foreign !== undefined) {
    throw new BpfimgError('conflict', `it holds ${foreign}, so it is another dump; choose a new folder`, {
      subject: folder,
    });
  }
  if (!force) throw new BpfimgError('conflict', 'it holds images already; --force replaces them', { subject: folder });
}

const ACCESS_FLAGS: Readonly<Record<Access, number>> = { rw: 0o2, ro: 0o0, wo: 0o1 };

/** The three images during writing. */
class DumpWriter {
  /** On the disk where the images will be. */
  readonly folder: string;
  readonly #images: FolderOutput;
  readonly #files: FileOutput;
  readonly #data: FileOutput;
  readonly #meta: FileOutput;
  readonly #names: ImageNames;
  #btfImage: FileOutput | undefined;
  /** BTF objects by id: parsed, not understood, or not readable. */
  readonly #btf = new Map<number, Btf | undefined | KernelError>();
  readonly #boot: string | undefined;
  #fileId = 0;
  /** One function for all maps. */
  readonly #follow = (id: number) => this.wanted.follow(id);
  /** What plugins registered to run at the end. */
  readonly #ends: ((whole: boolean) => void)[] = [];

  constructor(
    readonly sys: Sys,
    { images, folder }: { readonly images: FolderOutput; readonly folder: string },
    readonly types: MapTypes,
    readonly options: CaptureOptions,
    readonly wanted: CaptureQueue,
  ) {
    this.folder = folder;
    this.#images = images;
    this.#names = options.images ?? IMAGE;
    this.#boot = bootId(sys.proc);
    this.#files = this.#image('bpfmapFile', BPFMAP_FILE);
    this.#data = this.#image('data', BPFMAP_DATA);
    this.#meta = this.#image('meta', BPFMAP_META);
    // One from an earlier capture must not remain beside images that do not belong to it.
    if (images.has(this.#names.btf)) this.#btfImage = this.#image('btf', BPFMAP_BTF);
  }

  #image(name: keyof ImageNames, kind: ImageKind): FileOutput {
    const out = this.#images.file(this.#names[name]);
    writeHead(out, kind);
    return out;
  }

  /**
   * Captures one map.
   * @returns a function that makes its row once all maps are captured; undefined if the map is gone
   */
  async map({ live, held }: QueuedMap): Promise<(() => CapturedMap) | undefined> {
    const hook = live.type === undefined ? undefined : this.types.plugin(live.type).capture;
    const drains = live.type !== undefined && this.types.get(live.type).drains === true;
    const untouched = drains && (this.options.drain ?? 'no') === 'no';
    let map = held;
    if (map !== undefined && (hook === undefined || drains)) {
      map.close();
      map = undefined;
    }
    if (hook === undefined) return this.#unread(live);
    if (untouched) {
      const why = 'reading it removes its items; `capture --drain` does so, and puts them back';
      return this.#unread(live, { kind: 'not supported', why });
    }
    try {
      map ??= openLive(this.sys, live, drains ? 'rw' : 'ro');
    } catch (error) {
      if (this.#isGone(live, error)) {
        this.wanted.lose(live.id);
        return undefined;
      }
      // It has no visible holder, and opening it by id could do harm.
      if (error instanceof BpfimgError && error.kind === 'unsupported' && !(error instanceof KernelError)) {
        return this.#unread(live, { kind: 'not supported', why: error.message });
      }
      throw error;
    }
    try {
      return await this.#read(map, live);
    } finally {
      const open = map;
      // If something else fails, what was taken out of the map may have to go back.
      if (drains) this.#ends.push(() => open.close());
      else open.close();
    }
  }

  /** Whether a map could not be opened because it no longer exists. Without CAP_SYS_ADMIN only its holders tell. */
  #isGone({ id }: LiveMap, error: unknown): boolean {
    const living = isLive(this.sys, id);
    return living === false || (living === undefined && error instanceof KernelError && isVanished(error));
  }

  async #read(map: BpfMap, live: LiveMap): Promise<() => CapturedMap> {
    const { frozen = live.frozen ?? false, memlock = 0 } = live.memlock === undefined ? map.state() : live;
    const { id, name, type, keySize, valueSize, maxEntries, flags } = map;
    const item = itemSizes(this.types.get(type), map);
    const entry = new EntryWriter(this.#data, id, item.key, item.value, maxEntries);
    const info = map.info;
    const types = this.#typesOf(info);
    const itemSize = item.key + item.value;
    let inner: ReadonlySet<number> | undefined;
    let facts: MapFacts = { kernelType: kernelTypeOf(info), ...(types instanceof Error ? {} : { types }) };
    const work: CaptureWork = {
      type: this.types.get(type),
      subject: map.subject,
      drain: this.options.drain ?? 'no',
      folder: this.folder,
      follow: this.#follow,
      innerMaps: (ids) => {
        inner = ids;
      },
      atEnd: (end) => this.#ends.push(end),
      keep: (more) => {
        facts = { ...facts, ...more };
      },
      progress: (items: number) => {
        this.options.progress?.({ map: map.subject, items, most: maxEntries, itemSize });
      },
    };
    const masked = types instanceof Error ? entry : this.#masked(map, entry, types);
    const sink = await this.#chosen(map, work, masked, types instanceof Error ? undefined : types);
    const all = await this.#items(map, entry, sink, work);
    const some = sink instanceof ChosenSink && sink.left > 0 && !isBare(all);
    const read = some ? withMissing(all, 'items that were not chosen') : all;
    const shape = { type, keySize, valueSize, maxEntries, flags };
    const attributes = { ...shape, name, ifindex: info.ifindex, extra: info.extra, frozen, memlock };
    const told = types instanceof Error ? withMissing(read, `its types: ${types.message}`) : read;
    const keep = this.#keep(live, attributes, facts);
    return () => {
      const loss = inner && this.wanted.lossOf(inner);
      const report = loss === undefined ? told : withMissing(told, loss);
      keep(report);
      const items = report.kind === 'full' || report.kind === 'partial' ? entry.count : 0;
      return { id, name, type, items, bytes: items * itemSize, report };
    };
  }

  /** The types of a map, whose BTF object goes into bpfmap-btf.img once; an error if it cannot be read. */
  #typesOf({ btfId, btfKeyType, btfValueType }: MapInfo): TypeFacts | undefined | KernelError {
    if (btfId === 0) return undefined;
    const types = { btf: btfId, key: btfKeyType, value: btfValueType };
    const known = this.#btf.get(btfId);
    if (known !== undefined) return known instanceof KernelError ? known : types;
    try {
      const { id, name, kernel, blob } = readBtf(this.sys, btfId);
      // Every machine has the kernel's own types, in the version that fits it.
      if (!kernel) {
        this.#btfImage ??= this.#image('btf', BPFMAP_BTF);
        const message = { btf_id: id, size: blob.length, ...(name === '' ? {} : { name }) };
        writeMessage(this.#btfImage, encodeMessage(BPFMAP_BTF.message, message, 'latin1'));
        this.#btfImage.write(blob);
      }
      this.#btf.set(btfId, Btf.parse(blob, { name: `BTF ${id}` }));
      return types;
    } catch (error) {
      // If the kernel accepted a blob that we do not understand, we keep it and read its maps without types.
      if (!(error instanceof KernelError)) {
        this.#btf.set(btfId, undefined);
        return types;
      }
      this.#btf.set(btfId, error);
      return error;
    }
  }

  /**
   * What the kernel's own fields in values require: each value with a lock is read under it, and a sink blanks
   * the other fields, which the kernel shows as addresses that differ with every read.
   */
  #masked(map: BpfMap, sink: ItemSink, types: TypeFacts | undefined): ItemSink {
    const btf = types && this.#btf.get(types.btf);
    if (types === undefined || types.value === 0 || !(btf instanceof Btf)) return sink;
    if (hasSpinLock(btf, types.value)) map.lockValues();
    const fields = specialFields(btf, types.value).filter(({ kind }) => SPECIAL_FIELDS[kind].reads === 'addresses');
    return fields.length === 0 ? sink : new MaskedSink(sink, map.valueStride, fields);
  }

  /** A sink that takes only the chosen items. */
  async #chosen(
    map: BpfMap,
    { type, subject }: CaptureWork,
    sink: ItemSink,
    types: TypeFacts | undefined,
  ): Promise<ItemSink> {
    const { key: keySize, value: valueSize } = itemSizes(type, map);
    const shape = { keySize, valueSize, ...(type.perCpu && { perCpu: map.valueSize }) };
    const btf = types && this.#btf.get(types.btf);
    const known = types && btf instanceof Btf ? { btf, key: types.key, value: types.value } : undefined;
    const choice = await this.options.choose?.({ subject, type, shape, types: known });
    return choice === undefined ? sink : new ChosenSink(sink, shape, choice);
  }

  /** Reads the items into an entry, which is kept only if all items were read. */
  async #items(map: BpfMap, entry: EntryWriter, sink: ItemSink, work: CaptureWork): Promise<Report> {
    if (this.options.bare === true && work.type.inner !== true) {
      await entry.drop();
      return { kind: 'metadata only', why: 'its items were not asked for' };
    }
    try {
      const report = (await this.types.plugin(map.type).capture?.(map, sink, work)) as Report;
      if (report.kind === 'full' || report.kind === 'partial') await entry.finish();
      else await entry.drop();
      return report;
    } catch (error) {
      if (!(error instanceof EntryLimit)) throw error;
      await entry.drop();
      return { kind: 'not supported', why: error.message };
    }
  }

  #noHook({ type }: LiveMap): Report {
    const what = type === undefined ? 'maps whose type it cannot determine' : `${this.types.get(type).name} maps`;
    return { kind: 'not supported', why: `bpfimg cannot capture ${what}` };
  }

  /** A map whose items are not read: its attributes are saved. */
  #unread(live: LiveMap, report: Report = this.#noHook(live)): () => CapturedMap {
    const { id, name = '', type, keySize, valueSize, maxEntries, flags = 0 } = live;
    if (type !== undefined && keySize !== undefined && valueSize !== undefined && maxEntries !== undefined) {
      addMemory(this.sys, [live]);
      const { extra = 0n, frozen = false, memlock = 0 } = live;
      const shape = { type, keySize, valueSize, maxEntries, flags };
      this.#keep(live, { ...shape, name, ifindex: 0, extra, frozen, memlock }, {})(report);
    }
    return () => ({ id, name, type: type ?? 0, items: 0, bytes: 0, report });
  }

  /**
   * Writes the map's attributes: an open file for each way in which holders have it open, and what CRIU's images
   * have no room for.
   * @returns a function that writes the latter once the report is known
   */
  #keep(live: LiveMap, attributes: Attributes, facts: MapFacts): (report: Report) => void {
    const holders = live.holders.filter(this.options.holders ?? (() => true));
    const files = new Map<Access, number>();
    for (const access of holders.length === 0 ? ['rw' as const] : holders.map((holder) => holder.access)) {
      if (files.has(access)) continue;
      files.set(access, ++this.#fileId);
      const message = capturedFileMessage(this.#fileId, live.id, ACCESS_FLAGS[access], attributes);
      writeMessage(this.#files, encodeMessage(BPFMAP_FILE.message, message, 'latin1'));
    }
    const message: JsonObject = { map_id: live.id, nr_cpus: this.sys.cpus, kernel_release: os.release() };
    if (this.#boot !== undefined) message.boot_id = this.#boot;
    if (live.pins.length > 0) message.pins = live.pins;
    if (holders.length > 0) {
      message.holders = holders.map(({ pid, fd, access, cloexec }) => {
        return { file_id: files.get(access) as number, pid, fd, ...(cloexec ? { fd_flags: 1 } : {}) };
      });
    }
    return (report) => {
      if (report.kind !== 'full') message.report = reportText(report);
      Object.assign(message, factMembers(facts));
      writeMessage(this.#meta, encodeMessage(BPFMAP_META.message, message, 'latin1'));
    };
  }

  async commit(): Promise<void> {
    await this.#images.commit();
    this.#end(true);
  }

  async abort(): Promise<void> {
    try {
      this.#end(false);
    } finally {
      await this.#images.abort();
    }
  }

  /** Await all of them before reporting an error. */
  #end(whole: boolean): void {
    const errors: unknown[] = [];
    for (const end of this.#ends.splice(0)) {
      // One failed close must not keep the others open.
      try {
        end(whole);
      } catch (error) {
        errors.push(error);
      }
    }
    const [first] = errors;
    if (errors.length > 1) throw new BpfimgError('io', errors.map(errorText).join('; '));
    if (first !== undefined) throw first;
  }
}

/** The first BTF id is that of the kernel itself (not of a module). */
const VMLINUX = 1;

/** The kernel's type of a map's values, with its name, because its id differs in another kernel. */
function kernelTypeOf({ btfVmlinuxValueType: id, btfVmlinuxId }: MapInfo): KernelTypeFacts | undefined {
  if (id === 0) return undefined;
  // Before Linux 6.9 there is no such id, and no module has such types.
  if (btfVmlinuxId !== VMLINUX && btfVmlinuxId !== 0) return { id, name: undefined };
  try {
    const blob = fs.readFileSync('/sys/kernel/btf/vmlinux');
    return { id, name: Btf.parse(blob, { name: 'vmlinux' }).nameOf(id) };
  } catch {
    return { id, name: undefined };
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

/** The message that CRIU writes for an open file of a map: no mnt_id, and no map_extra if it is 0. */
function capturedFileMessage(id: number, mapId: number, flags: number, map: Attributes): JsonObject {
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
