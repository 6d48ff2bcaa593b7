/** The items of one map by key, wherever the map is: in a dump folder, an archive, an image, or in the kernel. */
import { cpuStride, hex, viewOf } from '../bytes.js';
import { dataChanges, type ItemEdit, positionsOf, valueAt } from '../dump/change.js';
import { itemForms, rawItems } from '../dump/items.js';
import { type Dump, type DumpMap, dataShape, openDump } from '../dump/model.js';
import { changeImage } from '../dump/rewrite.js';
import { selectMaps, subjectOf } from '../dump/select.js';
import type { TypeFinder } from '../dump/types.js';
import { ItemWords } from '../dump/words.js';
import { BpfimgError, followed } from '../errors.js';
import { BPFMAP_DATA } from '../image/kinds.js';
import { FolderOutput } from '../io/folder.js';
import { openOutput } from '../io/output.js';
import { formsThatFit, type ItemForms, type ItemShape } from '../json/forms.js';
import { type LiveMap, LiveMaps, openLive } from '../kernel/live.js';
import type { BpfMap } from '../kernel/map.js';
import type { Sys } from '../kernel/sys.js';
import { blank, itemSizes, type MapType, type MapTypes } from '../maptype.js';
import { fieldsOf, type KernelFields, valueType } from '../replay/types.js';
import { liveSelectors } from '../source/selectors.js';
import { mapsOf, openSource, type Source, type SourceHost } from '../source/source.js';
import { Writable } from './writable.js';

/** The items of one map, by key. Close it. */
export interface ItemStore {
  readonly map: DumpMap;
  /** The map's name in messages. */
  readonly subject: string;
  readonly types: MapTypes;
  /** Sizes of its items. */
  readonly shape: ItemShape;
  readonly forms: ItemForms | undefined;
  readonly words: ItemWords;
  /** The values of `keys`; undefined for those that are not there. */
  get(keys: readonly Uint8Array[]): Promise<(Uint8Array | undefined)[]>;
  /**
   * Refuses changes that the kernel would refuse.
   * @throws BpfimgError
   */
  check(edits: readonly ItemEdit[]): Promise<void>;
  /**
   * Makes the changes: all of them or none in a dump, one after the other in a live map.
   * @throws BpfimgError
   */
  change(edits: readonly ItemEdit[]): Promise<void>;
  close(): void;
}

/** What opening a store needs besides the source. */
export interface ItemStoreOptions {
  /** Whether items will be changed. */
  readonly write: boolean;
  /**
   * Picks a map of the source.
   * @param outer its maps without those that are only there because another map holds them
   */
  pick(dump: Dump, outer: readonly DumpMap[]): DumpMap;
  /** Finds types; undefined if there are none. */
  finder(dump: Dump, types: MapTypes): Promise<TypeFinder | undefined>;
  /** Receives the forms found, for warnings. */
  found?(finder: TypeFinder, map: DumpMap): void;
}

/**
 * Opens the items of a map in `text`.
 * @throws BpfimgError for a source or map whose items cannot be read or changed one by one
 */
export async function openItems(
  text: string | undefined,
  host: SourceHost,
  options: ItemStoreOptions,
): Promise<ItemStore> {
  if (options.write && text === undefined) {
    throw new BpfimgError('usage', 'standard input cannot be changed: name a dump, an image or live maps');
  }
  const live = text !== undefined && liveSelectors(text) !== undefined;
  const types = await host.types();
  const source = await openSource(text, live ? { ...host, bare: true, warn: () => {} } : host);
  let items: Items | undefined;
  let dump: Dump | undefined;
  let other: number | undefined;
  try {
    const writable = options.write ? new Writable(source) : undefined;
    dump = await mapsOf(source);
    const map = options.pick(dump, live ? await outerMaps(dump, types) : dump.maps);
    const given = { source, dump, map, types };
    if (!live) items = new DumpItems(given, writable);
    else if (direct(map, types)) items = new LiveItems(given, await host.sys(types), options.write);
    else if (options.write) throw indirect(map, types);
    else other = map.mapId;
    if (items !== undefined) return await items.init(options);
  } catch (error) {
    if (items === undefined) dump?.close();
    if (items === undefined) source.close();
    items?.close();
    throw error;
  }
  // What bpf(2) reads from such a map is not its items; a capture has them.
  dump.close();
  source.close();
  return openCaptured(other as number, host, types, options);
}

/** The items of a live map, as a capture has them. */
async function openCaptured(
  id: number,
  host: SourceHost,
  types: MapTypes,
  options: ItemStoreOptions,
): Promise<ItemStore> {
  const source = await openSource(`id:${id}`, host);
  let dump: Dump | undefined;
  try {
    dump = await mapsOf(source);
    const [map] = selectMaps(dump, [String(id)], true) as [DumpMap];
    return await new DumpItems({ source, dump, map, types }, undefined).init(options);
  } catch (error) {
    dump?.close();
    source.close();
    throw error;
  }
}

/** The maps of a capture that are in no other of its maps: inner maps come along with outer ones. */
async function outerMaps(dump: Dump, types: MapTypes): Promise<DumpMap[]> {
  const inner = new Set<number>();
  for (const map of dump.maps) {
    if (typeOf(map, types)?.inner !== true) continue;
    for await (const { value } of rawItems(dump, map, types)) inner.add(viewOf(value).getUint32(0, true));
  }
  return dump.maps.filter(({ mapId }) => !inner.has(mapId));
}

const typeOf = (map: DumpMap, types: MapTypes): MapType | undefined => {
  const number = map.files[0]?.message.map_type;
  return number === undefined ? undefined : types.get(number);
};

/** Whether bpf(2) reads and writes items of this map as they are in images. */
function direct(map: DumpMap, types: MapTypes): boolean {
  const type = typeOf(map, types);
  return type !== undefined && type.key !== 'fd' && type.files !== true && type.imageItem === undefined;
}

function indirect(map: DumpMap, types: MapTypes): BpfimgError {
  const type = typeOf(map, types);
  const what = `items of a live ${type?.name} cannot be changed one by one`;
  return new BpfimgError('unsupported', what, { subject: subjectOf(map) });
}

/** A map of an open source. Whoever gets it closes the dump and the source. */
interface GivenMap {
  readonly source: Source;
  readonly dump: Dump;
  readonly map: DumpMap;
  readonly types: MapTypes;
}

/** What dumps and live maps have in common. */
abstract class Items implements ItemStore {
  readonly type: MapType | undefined;
  readonly subject: string;
  shape: ItemShape = { keySize: 0, valueSize: 0 };
  forms: ItemForms | undefined;
  #words: ItemWords | undefined;

  readonly source: Source;
  readonly dump: Dump;
  readonly map: DumpMap;
  readonly types: MapTypes;

  constructor({ source, dump, map, types }: GivenMap) {
    this.source = source;
    this.dump = dump;
    this.map = map;
    this.types = types;
    this.type = typeOf(map, types);
    this.subject = subjectOf(map);
  }

  async init(options: ItemStoreOptions): Promise<this> {
    const { type } = this;
    this.shape = this.sizes();
    if (type?.key === 'none' || this.shape.keySize === 0) {
      throw new BpfimgError('unsupported', `the items of a ${type?.name ?? 'map without keys'} have no keys`, {
        subject: this.subject,
      });
    }
    const finder = await options.finder(this.dump, this.types);
    const typed = (await finder?.forms([this.map]))?.of(this.map);
    if (finder !== undefined) options.found?.(finder, this.map);
    const { keySize, valueSize, perCpu } = this.shape;
    this.forms = formsThatFit(itemForms(this.map, this.types, typed), keySize, perCpu ?? valueSize);
    return this;
  }

  get words(): ItemWords {
    this.#words ??= new ItemWords(this.shape, this.forms, this.type, this.types);
    return this.#words;
  }

  /** The sizes of its items. */
  protected abstract sizes(): ItemShape;
  protected abstract read(keys: readonly Uint8Array[]): Promise<(Uint8Array | undefined)[]>;
  protected abstract write(edits: readonly ItemEdit[]): Promise<void>;

  get(keys: readonly Uint8Array[]): Promise<(Uint8Array | undefined)[]> {
    for (const key of keys) this.#checkKey(key);
    return this.read(keys);
  }

  async change(edits: readonly ItemEdit[]): Promise<void> {
    await this.check(edits);
    await this.write(edits);
  }

  async check(edits: readonly ItemEdit[]): Promise<void> {
    const { type } = this;
    for (const { key, value } of edits) {
      this.#checkKey(key);
      if (value !== undefined || type?.dense !== true) continue;
      const what = `an item of ${/^a/.test(type.name) ? 'an' : 'a'} ${type.name} cannot be deleted: set it to zeros`;
      throw this.refused(what);
    }
  }

  /** Refuses a key that no such map can have. */
  #checkKey(key: Uint8Array): void {
    const { type } = this;
    const most = this.map.files[0]?.message.max_entries;
    if (type?.key === 'index' && key.length === 4 && most !== undefined) {
      const index = viewOf(key).getUint32(0, true);
      if (index >= most) throw this.refused(`no index ${index}: expected 0 to ${most - 1}`);
    }
    if (type?.key === 'prefix') {
      const [bits, widest] = [viewOf(key).getUint32(0, true), 8 * (key.length - 4)];
      if (bits > widest) throw this.refused(`a prefix of ${bits} bits, expected at most ${widest}`);
    }
  }

  protected refused(what: string): BpfimgError {
    return new BpfimgError('conflict', what, { subject: this.subject });
  }

  close(): void {
    this.dump.close();
    this.source.close();
  }
}

class DumpItems extends Items {
  constructor(
    given: GivenMap,
    readonly writable: Writable | undefined,
  ) {
    super(given);
  }

  protected sizes(): ItemShape {
    const { map, types, type } = this;
    const file = map.files[0]?.message;
    const data = map.data.at(-1);
    if (data !== undefined && data.count > 0) {
      const { shape } = dataShape(data, file, types);
      if (shape !== undefined) return shape;
      throw new BpfimgError('badImage', 'its data is not a whole number of items', { subject: this.subject });
    }
    if (file === undefined || type === undefined) {
      throw new BpfimgError('unsupported', 'nothing in the image says how large its items are', {
        subject: this.subject,
      });
    }
    const { imageItem } = type;
    const keySize = imageItem?.key ?? file.key_size;
    const valueSize = imageItem?.value ?? file.value_size;
    const cpus = map.meta?.nr_cpus;
    if (valueSize === 'page' || (type.perCpu === true && cpus === undefined)) {
      const what = valueSize === 'page' ? 'how large a page was' : 'how many CPUs there were';
      throw new BpfimgError('unsupported', `it is empty, and nothing in the dump says ${what}`, {
        subject: this.subject,
      });
    }
    if (type.perCpu !== true || cpus === undefined) return { keySize, valueSize };
    return { keySize, valueSize: cpuStride(valueSize) * cpus, perCpu: valueSize };
  }

  protected async read(keys: readonly Uint8Array[]): Promise<(Uint8Array | undefined)[]> {
    const { dump, map, shape } = this;
    // CRIU restores from the last.
    const data = map.data.at(-1);
    if (dump.data === undefined || data === undefined || data.count === 0) return keys.map(() => undefined);
    const values: (Uint8Array | undefined)[] = [];
    for (const places of await positionsOf(dump.data, data, shape, keys)) {
      const last = places.at(-1);
      values.push(last === undefined ? undefined : await valueAt(dump.data, data, shape, last));
    }
    return values;
  }

  override async check(edits: readonly ItemEdit[]): Promise<void> {
    await super.check(edits);
    this.#refuseFull(edits);
  }

  protected async write(edits: readonly ItemEdit[]): Promise<void> {
    const { source, map, shape } = this;
    if (source.kind === 'image') return this.#image(edits);
    if (source.form === 'archive') {
      const { editArchive } = await import('../source/pack.js');
      return editArchive(source.name, (folder) => changeDump(folder, map.mapId, shape, edits, this.writable));
    }
    return changeDump(source.files.name, map.mapId, shape, edits, this.writable);
  }

  #refuseFull(edits: readonly ItemEdit[]): void {
    const { map, type } = this;
    const most = map.files[0]?.message.max_entries;
    if (most === undefined || type?.evicts === true || type?.grows === true || most === 0) return;
    const added = edits.filter(({ before, value }) => before === undefined && value !== undefined).length;
    const removed = edits.filter(({ before, value }) => before !== undefined && value === undefined).length;
    const count = map.data.at(-1)?.count ?? 0;
    if (added === 0 || count - removed + added <= most) return;
    throw this.refused(`it is full: ${count} items, max_entries ${most}`);
  }

  /** Changes a single image. */
  async #image(edits: readonly ItemEdit[]): Promise<void> {
    const { source, dump, map, shape } = this;
    const changes = await dataChanges(dump, map, shape, edits);
    const out = await openOutput(source.name);
    try {
      await changeImage(dump.data, BPFMAP_DATA, out, changes);
      this.writable?.refuseChanged();
      await out.commit();
    } catch (error) {
      await out.abort();
      throw error;
    }
  }
}

/** Changes items of one map of the dump in a folder: all or nothing. */
async function changeDump(
  folder: string,
  mapId: number,
  shape: ItemShape,
  edits: readonly ItemEdit[],
  writable: Writable | undefined,
): Promise<void> {
  writable?.refuseChanged();
  // Before the images are read, so that it notices if they change meanwhile.
  const output = new FolderOutput(folder);
  let dump: Dump | undefined;
  try {
    dump = await openDump(folder);
    const [map] = selectMaps(dump, [String(mapId)], true) as [DumpMap];
    const changes = await dataChanges(dump, map, shape, edits);
    await changeImage(dump.data, BPFMAP_DATA, output.file(dump.names.data), changes);
    await output.commit();
  } catch (error) {
    await output.abort();
    throw error;
  } finally {
    dump?.close();
  }
}

/** @throws BpfimgError `notFound` */
function liveMap(sys: Sys, id: number): LiveMap {
  const selectors = { ids: [id], names: [], pins: [], pids: [] };
  const [live] = LiveMaps.look(sys, selectors).select(selectors);
  return live as LiveMap;
}

class LiveItems extends Items {
  readonly #live: BpfMap;
  /** Bytes of values that only the kernel sets. */
  readonly #hidden: KernelFields['hidden'];

  constructor(
    given: GivenMap,
    readonly sys: Sys,
    write: boolean,
  ) {
    super(given);
    this.#live = openLive(sys, liveMap(sys, given.map.mapId), write ? 'rw' : 'ro');
    const { hidden, locked } = fieldsOf(valueType(sys, this.#live));
    this.#hidden = hidden;
    if (locked) this.#live.lockValues();
  }

  protected sizes(): ItemShape {
    const { key: keySize, value } = itemSizes(this.type as MapType, this.#live);
    const { valueSize } = this.#live;
    return { keySize, valueSize: value, ...(this.type?.perCpu && { perCpu: valueSize }) };
  }

  protected async read(keys: readonly Uint8Array[]): Promise<(Uint8Array | undefined)[]> {
    const there = this.type?.key === 'prefix' ? this.#prefixes(keys) : undefined;
    return keys.map((key) => {
      const value = there?.has(hex(key)) === false ? undefined : this.#live.lookup(key);
      if (value !== undefined) blank(value, 0, this.#hidden);
      return value;
    });
  }

  /** Those of `keys` that are in a trie, in hex: looking one up finds any shorter prefix of it, too. */
  #prefixes(keys: readonly Uint8Array[]): Set<string> {
    const wanted = new Set(keys.map(hex));
    const there = new Set<string>();
    // If a key is deleted meanwhile, the kernel begins again.
    let steps = 2 * this.#live.maxEntries;
    for (let key = this.#live.nextKey(undefined); key !== undefined && steps > 0; steps--) {
      if (wanted.has(hex(key))) there.add(hex(key));
      if (there.size === wanted.size) break;
      key = this.#live.nextKey(key);
    }
    return there;
  }

  protected async write(edits: readonly ItemEdit[]): Promise<void> {
    for (const [done, { key, value }] of edits.entries()) {
      try {
        if (value === undefined) this.#live.delete(key);
        else if (this.type?.inner === true) this.#putInner(key, value);
        else if (this.type?.holdsReferences === true) throw indirect(this.map, this.types);
        else this.#live.update(key, value);
      } catch (error) {
        // What has been written stays.
        throw done === 0 ? error : followed(error, `${done} of ${edits.length} changes had been made`);
      }
    }
  }

  /** An inner map is read as an id and written as a file descriptor. */
  #putInner(key: Uint8Array, value: Uint8Array): void {
    const id = viewOf(value).getUint32(0, true);
    using inner = openLive(this.sys, liveMap(this.sys, id), 'ro');
    const fd = new Uint8Array(4);
    viewOf(fd).setUint32(0, inner.fd, true);
    this.#live.update(key, fd);
  }

  override close(): void {
    this.#live.close();
    super.close();
  }
}
