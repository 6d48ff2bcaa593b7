/** The items of one map by key, wherever the map is: in a dump folder, an archive, an image, or in the kernel. */
import { cpuStride, hex, viewOf } from '../bytes.js';
import { dataChanges, type ItemEdit, positionsOf, valueAt } from '../dump/change.js';
import { itemForms, rawItems } from '../dump/items.js';
import { type Dump, type DumpMap, dataShape, openDump } from '../dump/model.js';
import { changeImage } from '../dump/rewrite.js';
import { mapName, selectMaps } from '../dump/select.js';
import type { TypeFinder } from '../dump/types.js';
import { ItemWords } from '../dump/words.js';
import { BpfimgError } from '../errors.js';
import { BPFMAP_DATA } from '../image/kinds.js';
import { FolderOutput } from '../io/folder.js';
import { openInput } from '../io/input.js';
import { openOutput } from '../io/output.js';
import { formsThatFit, type ItemForms, type ItemShape } from '../json/forms.js';
import { mapSubject } from '../kernel/flags.js';
import { LiveMaps, openLive } from '../kernel/live.js';
import type { BpfMap } from '../kernel/map.js';
import type { Sys } from '../kernel/sys.js';
import { blank, itemSizes, type MapType, type MapTypes } from '../maptype.js';
import { fieldsOf, type KernelFields, valueType } from '../replay/types.js';
import { liveSelectors } from '../source/selectors.js';
import { type DumpSource, mapsOf, openSource, type Source, type SourceHost } from '../source/source.js';

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
  const live = text !== undefined && liveSelectors(text) !== undefined;
  if (options.write) refuseUnwritable(text);
  const types = await host.types();
  let source = await openSource(text, live ? { ...host, bare: true, warn: () => {} } : host);
  let dump: Dump | undefined;
  try {
    if (options.write && source.form === 'document') throw unwritable(source);
    dump = await mapsOf(source);
    let map = options.pick(dump, live ? await outerMaps(dump, types) : dump.maps);
    const sys = live ? await host.sys(types) : undefined;
    if (sys !== undefined && !direct(map, types)) {
      if (options.write) throw indirect(map, types);
      // What bpf(2) reads of such a map is not what an item of it is.
      dump.close();
      source.close();
      source = await openSource(`id:${map.mapId}`, host);
      dump = await mapsOf(source);
      [map] = selectMaps(dump, [String(map.mapId)], true) as [DumpMap];
      return await new DumpItems(source, dump, map, types).init(options);
    }
    if (sys === undefined) return await new DumpItems(source, dump, map, types).init(options);
    return await new LiveItems(source, dump, map, types, sys, options.write).init(options);
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

function refuseUnwritable(text: string | undefined): void {
  if (text !== undefined) return;
  throw new BpfimgError('usage', 'standard input cannot be changed: name a dump, an image or live maps');
}

function unwritable({ name }: Source): BpfimgError {
  const what = 'it is a JSON document: change it in an editor or with jq; encode makes a dump of it';
  return new BpfimgError('unsupported', what, { subject: name });
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
  return new BpfimgError('unsupported', what, { subject: mapSubject(map.mapId, mapName(map) ?? '') });
}

/** What dumps and live maps have in common. */
abstract class Items implements ItemStore {
  readonly type: MapType | undefined;
  readonly subject: string;
  shape: ItemShape = { keySize: 0, valueSize: 0 };
  forms: ItemForms | undefined;
  #words: ItemWords | undefined;

  constructor(
    readonly source: Source,
    readonly dump: Dump,
    readonly map: DumpMap,
    readonly types: MapTypes,
  ) {
    this.type = typeOf(map, types);
    this.subject = mapSubject(map.mapId, mapName(map) ?? '');
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
    const { type } = this;
    const keyBytes = type && this.types.plugin(type.number).keyBytes;
    const text = keyBytes && ((word: string) => keyBytes(word, this.shape.keySize));
    this.#words ??= new ItemWords(this.shape, this.forms, type, text);
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
    const value = imageItem?.value ?? file.value_size;
    const valueSize = value === 'page' ? file.value_size : value;
    if (type.perCpu !== true) return { keySize, valueSize };
    const cpus = map.meta?.nr_cpus ?? 1;
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
    await this.#refuseFull(edits);
  }

  protected async write(edits: readonly ItemEdit[]): Promise<void> {
    const { source, map, shape } = this;
    if (source.kind === 'image') return this.#image(edits);
    const change = (folder: string) => changeDump(folder, map.mapId, shape, edits);
    if (source.form === 'archive') return (await import('../source/pack.js')).editArchive(source.name, change);
    return change((source as DumpSource).files.name);
  }

  async #refuseFull(edits: readonly ItemEdit[]): Promise<void> {
    const { map, type } = this;
    const most = map.files[0]?.message.max_entries;
    if (most === undefined || type?.evicts === true || type?.grows === true || most === 0) return;
    const before = await this.get(edits.map(({ key }) => key));
    const added = edits.filter(({ value }, i) => value !== undefined && before[i] === undefined).length;
    const removed = edits.filter(({ value }, i) => value === undefined && before[i] !== undefined).length;
    const count = map.data.at(-1)?.count ?? 0;
    if (added === 0 || count - removed + added <= most) return;
    throw this.refused(`it is full: ${count} items, max_entries ${most}`);
  }

  /** Changes a single image. */
  async #image(edits: readonly ItemEdit[]): Promise<void> {
    const { source, dump, map, shape } = this;
    const changes = await dataChanges(dump, map, shape, edits);
    const out = await openOutput(source.name);
    const there = await openInput(source.name);
    try {
      await changeImage(there, BPFMAP_DATA, out, changes);
      await out.commit();
    } catch (error) {
      await out.abort();
      throw error;
    } finally {
      there.close();
    }
  }
}

/** Changes items of one map of the dump in a folder: all or nothing. */
async function changeDump(folder: string, mapId: number, shape: ItemShape, edits: readonly ItemEdit[]): Promise<void> {
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

class LiveItems extends Items {
  readonly #live: BpfMap;
  /** Bytes of values that only the kernel sets. */
  readonly #hidden: KernelFields['hidden'];

  constructor(
    source: Source,
    dump: Dump,
    map: DumpMap,
    types: MapTypes,
    readonly sys: Sys,
    write: boolean,
  ) {
    super(source, dump, map, types);
    const [live] = LiveMaps.look(sys).select({ ids: [map.mapId], names: [], pins: [], pids: [] });
    if (live === undefined) throw new BpfimgError('notFound', 'it is gone', { subject: this.subject });
    this.#live = openLive(sys, live, write ? 'rw' : 'ro');
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
    for (const { key, value } of edits) {
      if (value === undefined) this.#live.delete(key);
      else if (this.type?.inner === true) this.#putInner(key, value);
      else if (this.type?.holdsReferences === true) throw indirect(this.map, this.types);
      else this.#live.update(key, value);
    }
  }

  /** An inner map is read as an id and written as a file descriptor. */
  #putInner(key: Uint8Array, value: Uint8Array): void {
    const id = viewOf(value).getUint32(0, true);
    const [live] = LiveMaps.look(this.sys).select({ ids: [id], names: [], pins: [], pids: [] });
    if (live === undefined) throw new BpfimgError('notFound', 'no such map', { subject: `map ${id}` });
    using inner = openLive(this.sys, live, 'ro');
    const fd = new Uint8Array(4);
    viewOf(fd).setUint32(0, inner.fd, true);
    this.#live.update(key, fd);
  }

  override close(): void {
    this.#live.close();
    super.close();
  }
}
