/** Writes the maps of a document: into a fresh dump, or into the BPF parts of an existing dump. */

import * as fs from 'node:fs';
import * as path from 'node:path';
import { BpfimgError, ioError, PointerError } from '../errors.js';
import { BPFMAP_BTF, BPFMAP_DATA, BPFMAP_FILE, BPFMAP_META, FILES, type ImageKind } from '../image/kinds.js';
import type { BpfmapFileEntry, BpfmapMetaEntry } from '../image/schema.gen.js';
import { encodeMessage } from '../image/wire.js';
import { writeHead } from '../image/writer.js';
import { FolderOutput } from '../io/folder.js';
import type { Input } from '../io/input.js';
import { finishChange } from '../io/journal.js';
import type { Output } from '../io/output.js';
import { Spool } from '../io/spool.js';
import { copyInput } from '../io/stream.js';
import type { MapTypes, TypeFacts } from '../maptype.js';
import type { JsonObject } from '../value.js';
import { documentFileMessage, equalJson, mapText } from './attributes.js';
import { factMembers } from './facts.js';
import type { DocumentFile, MapHeader } from './maps-document.js';
import {
  type Dump,
  type DumpMap,
  type Holder,
  IMAGE,
  type ImageNames,
  type MapFile,
  openDump,
  PLUGIN_IMAGE,
  PLUGIN_TABLE,
  type PluginDump,
} from './model.js';
import { type TableLine, tableText } from './plugin-table.js';
import { changeImage, type ImageChanges, type NewEntry, writeEntry } from './rewrite.js';

/** One data entry of the document: its message, and where its keys and values are kept meanwhile. */
export interface Body {
  readonly message: JsonObject;
  readonly parts: readonly Spool[];
}

/** One map of the document, its data still open. */
export interface MapToWrite {
  readonly header: MapHeader;
  /** In image order: copies first, then the entry that CRIU restores. */
  readonly bodies: Body[];
  /** The types that its header names. */
  types?: TypeFacts;
  /** Makes the error for a member of this map, given its pointer within the map. */
  bad(pointer: string, message: string): Promise<BpfimgError>;
}

/** Receives the maps of a document. */
export interface DumpDestination {
  /** Receives a BTF object, whose blob is `size` bytes of `input` from `at` on. */
  btf(message: JsonObject, input: Input, at: number, size: number): Promise<void>;
  map(map: MapToWrite): Promise<void>;
  commit(): Promise<void>;
  abort(): Promise<void>;
}

/** A folder with any of these images is a dump of maps. */
const MAP_IMAGES = [IMAGE, PLUGIN_IMAGE].flatMap((names) => [names.files, names.bpfmapFile, names.data]);

/**
 * Opens the destination of a document.
 * @param force replace the BPF parts of an existing dump
 */
export async function openTarget(folder: string, force: boolean, types: MapTypes): Promise<DumpDestination> {
  const names = namesIn(folder);
  const images = names.filter((name) => name.endsWith('.img'));
  if (images.length > 0 && !force) {
    throw new BpfimgError('conflict', 'it holds images already; --force replaces their BPF maps', { subject: folder });
  }
  if (names.length > 0 && images.length === 0) {
    throw new BpfimgError('conflict', 'not empty and no dump, expected a new or empty folder', { subject: folder });
  }
  if (!MAP_IMAGES.some((name) => names.includes(name))) return new NewDump(folder, types);
  const dump = await openDump(folder);
  const broken = dump.lost.plugin.find(({ code }) => code !== 'plugin-stale');
  if (broken !== undefined) {
    dump.close();
    throw new BpfimgError('badImage', broken.message, { subject: path.join(folder, broken.image) });
  }
  if (dump.plugin !== undefined) return new ChangedPluginDump(folder, dump, dump.plugin, types);
  return new (names.includes(IMAGE.files) ? ChangedDump : ChangedOwnDump)(folder, dump, types);
}

/** The files in a folder; none if it does not exist. */
function namesIn(folder: string): string[] {
  try {
    if (!fs.statSync(folder, { throwIfNoEntry: false })?.isDirectory()) return [];
    finishChange(folder);
    // Without the leftovers of a killed run.
    return fs.readdirSync(folder).filter((name) => !name.startsWith('..bpfimg-'));
  } catch (error) {
    throw ioError(folder, 'look into it', error);
  }
}

/** Returns a message that can be encoded; otherwise the error points at `pointer` within the map. */
async function encodable(kind: ImageKind, message: JsonObject, map: MapToWrite, pointer: string): Promise<JsonObject> {
  try {
    encodeMessage(kind.message, message, 'latin1');
    return message;
  } catch (error) {
    if (error instanceof PointerError) throw await map.bad(pointer + error.pointer, error.text);
    throw error;
  }
}

/** The message of one file of `map`; `index` is its position in the document's `files`. */
async function messageOf(
  before: JsonObject | undefined,
  id: number,
  map: MapToWrite,
  index: number,
  types: MapTypes,
): Promise<JsonObject> {
  const file = filesOf(map)[index] ?? {};
  try {
    return await encodable(BPFMAP_FILE, documentFileMessage(before, id, map.header, file, types), map, '');
  } catch (error) {
    if (!(error instanceof PointerError)) throw error;
    const own = error.pointer !== '' && Object.hasOwn(file, error.pointer.slice(1));
    throw await map.bad(`${own ? `/files/${index}` : ''}${error.pointer}`, error.text);
  }
}

function filesOf(map: MapToWrite): readonly DocumentFile[] {
  return map.header.files ?? [];
}

/** What a document may contain only once. */
interface UsedIds {
  /** Ids of open files, including those of the dump. */
  readonly ids: Set<number>;
  /** `PID:FD`: each fd leads to one open file. */
  readonly fds: Set<string>;
}

/** The descriptors of an open file as bpfmap-meta.img has them; marks them as used. */
async function holdersOf(map: MapToWrite, index: number, id: number, { fds }: UsedIds): Promise<JsonObject[]> {
  const holders: JsonObject[] = [];
  for (const [place, { pid, fd, cloexec }] of (filesOf(map)[index]?.fds ?? []).entries()) {
    const held = `${pid}:${fd}`;
    if (fds.has(held)) {
      const message = `fd ${fd} of process ${pid} is listed twice`;
      throw await map.bad(`/files/${index}/fds/${place}`, message);
    }
    fds.add(held);
    holders.push({ file_id: id, pid, fd, ...(cloexec ? { fd_flags: 1 } : {}) });
  }
  return holders;
}

/** The messages of a map that is not in the dump yet. */
interface NewMapMessages {
  readonly files: readonly JsonObject[];
  readonly meta: JsonObject;
}

/** @param taken what the dump already has; the map's own is added */
async function newMapMessages(map: MapToWrite, taken: UsedIds, types: MapTypes): Promise<NewMapMessages> {
  const { header } = map;
  const { ids } = taken;
  const files: JsonObject[] = [];
  const holders: JsonObject[] = [];
  // Data without a file stays so; a map with attributes gets a file from which it can be restored.
  const said = header.files === undefined && header.type !== undefined ? [{}] : filesOf(map);
  for (const [index, file] of said.entries()) {
    const id = file.id ?? freeId(ids);
    if (ids.has(id)) throw await map.bad(`/files/${index}/id`, `file ${id} is in the document twice`);
    ids.add(id);
    files.push(await messageOf(undefined, id, map, index, types));
    holders.push(...(await holdersOf(map, index, id, taken)));
  }
  const meta: JsonObject = { ...header.meta, map_id: header.map_id };
  if (holders.length > 0) meta.holders = holders;
  // If the map had types of its own, those in `types` are only for display.
  if (meta.btf_id === undefined && map.types !== undefined) Object.assign(meta, factMembers({ types: map.types }));
  return { files, meta: await encodable(BPFMAP_META, meta, map, '/meta') };
}

function freeId(ids: ReadonlySet<number>): number {
  let id = ids.size + 1;
  while (ids.has(id)) id++;
  return id;
}

/** A new dump of our own images. */
class NewDump implements DumpDestination {
  readonly #folder: FolderOutput;
  readonly #files: Output;
  readonly #data: Output;
  readonly #meta: Output;
  #btf: Output | undefined;
  readonly #taken: UsedIds = { ids: new Set(), fds: new Set() };

  constructor(
    folder: string,
    readonly types: MapTypes,
  ) {
    this.#folder = new FolderOutput(folder);
    this.#files = this.#image('bpfmapFile');
    this.#data = this.#image('data');
    this.#meta = this.#image('meta');
  }

  #image(name: ImageName): Output {
    const out = this.#folder.file(IMAGE[name]);
    writeHead(out, KIND[name]);
    return out;
  }

  async btf(message: JsonObject, input: Input, at: number, size: number): Promise<void> {
    this.#btf ??= this.#image('btf');
    await writeEntry({ message, extra: (out) => copyInput(input, at, size, out) }, BPFMAP_BTF, this.#btf);
  }

  async map(map: MapToWrite): Promise<void> {
    const { files, meta } = await newMapMessages(map, this.#taken, this.types);
    for (const message of files) await writeEntry({ message }, BPFMAP_FILE, this.#files);
    await writeEntry({ message: meta }, BPFMAP_META, this.#meta);
    for (const { message, parts } of map.bodies) {
      const extra = async (out: Output) => {
        for (const part of parts) await copyInput(part.input(), 0, part.length, out);
      };
      await writeEntry({ message: await encodable(BPFMAP_DATA, message, map, ''), extra }, BPFMAP_DATA, this.#data);
    }
  }

  commit(): Promise<void> {
    return this.#folder.commit();
  }

  abort(): Promise<void> {
    return this.#folder.abort();
  }
}

type ImageName = keyof ImageNames;
type Extra = NonNullable<NewEntry['extra']>;

const KIND: Readonly<Record<ImageName, ImageKind>> = {
  files: FILES,
  bpfmapFile: BPFMAP_FILE,
  data: BPFMAP_DATA,
  meta: BPFMAP_META,
  btf: BPFMAP_BTF,
};

/** The changes to an image, as they are collected. */
interface Changes extends ImageChanges {
  readonly entries: Map<number, (before: JsonObject) => NewEntry>;
  readonly added: NewEntry[];
}

/**
 * An existing dump whose maps change. Entries keep their order, and everything else keeps its bytes: maps that
 * the document does not mention, and what it omits of the others.
 */
class ChangedDump implements DumpDestination {
  /** New keys and values, in the order of the document. */
  readonly #store = new Spool();
  /** The same, once all are there. */
  #stored: Input | undefined;
  readonly #changes = new Map<ImageName, Changes>();
  /** BTF objects of the document that the dump does not have, by id. */
  readonly #objects = new Map<number, NewEntry>();
  /** Ids of BTF objects that maps use. */
  readonly #referred = new Set<number>();
  /** Maps of the dump that the document has already mentioned. */
  readonly #taken = new Set<DumpMap>();
  readonly #byId: ReadonlyMap<number, DumpMap>;
  readonly #byFile: ReadonlyMap<number, DumpMap>;
  /** Notices if the images change after their entries were counted. */
  readonly #output: FolderOutput;

  constructor(
    readonly folder: string,
    readonly dump: Dump,
    readonly types: MapTypes,
  ) {
    this.#output = new FolderOutput(folder);
    this.#byId = new Map(dump.maps.map((map) => [map.mapId, map]));
    this.#byFile = new Map(dump.maps.flatMap((map) => map.files.map(({ message }) => [message.id, map])));
  }

  /** Replaces entry `number` of an image. */
  protected replace(image: ImageName, number: number, entry: (before: JsonObject) => NewEntry): void {
    this.#changed(image).entries.set(number, entry);
  }

  /** Adds an entry at the end of an image. */
  protected add(image: ImageName, entry: NewEntry): void {
    this.#changed(image).added.push(entry);
  }

  #changed(image: ImageName): Changes {
    let changes = this.#changes.get(image);
    if (changes === undefined) {
      changes = { entries: new Map(), added: [] };
      this.#changes.set(image, changes);
    }
    return changes;
  }

  async btf(message: JsonObject, input: Input, at: number, size: number): Promise<void> {
    const here = this.dump.btf.get(message.btf_id as number);
    const extra = (out: Output) => copyInput(input, at, size, out);
    if (here === undefined) this.#objects.set(message.btf_id as number, { message, extra });
    else this.replace('btf', here.entry, (before) => ({ message: { ...before, ...message }, extra }));
  }

  async map(map: MapToWrite): Promise<void> {
    const here = this.#here(map);
    if (here === undefined) return this.fresh(map);
    if (this.#taken.has(here)) {
      throw await map.bad('', `its open files are of map ${here.mapId}, which the document has already`);
    }
    this.#taken.add(here);
    for (const [index, file] of filesOf(map).entries()) {
      const before = here.files.find(({ message }) => message.id === file.id);
      if (before === undefined) await this.freshFile(map, index);
      else {
        if (file.fds !== undefined && fdsText(file.fds) !== fdsText(before.holders)) {
          await this.holders(map, index, before);
        }
        await this.file(before, await messageOf(before.message, before.message.id, map, index, this.types), map, index);
      }
    }
    await this.facts(map, here);
    await this.#data(map, here);
  }

  /** The dump's map for the document's map: by its first open file that is in the dump, else by id. */
  #here(map: MapToWrite): DumpMap | undefined {
    for (const { id } of filesOf(map)) {
      const here = this.#byFile.get(id as number);
      if (here !== undefined) return here;
    }
    return this.#byId.get(map.header.map_id);
  }

  /** Adds a map that the dump does not have. */
  protected async fresh(map: MapToWrite): Promise<void> {
    const id = String(map.header.map_id);
    throw await map.bad('/map_id', `no map ${id} in ${this.folder}, and nothing there would hold it`);
  }

  /** Adds an open file that the dump's map does not have. */
  protected async freshFile(map: MapToWrite, index: number): Promise<void> {
    const id = String(filesOf(map)[index]?.id);
    throw await map.bad(`/files/${index}/id`, `no open file ${id} of this map in ${this.folder}`);
  }

  /** Changes the holders of an open file. */
  protected async holders(map: MapToWrite, index: number, _before: MapFile): Promise<void> {
    throw await map.bad(`/files/${index}/fds`, 'who holds a map is recorded in fdinfo-*.img, which is left alone');
  }

  /** Changes the message of an open file. */
  protected async file(
    { image, entry }: MapFile,
    message: JsonObject,
    _map: MapToWrite,
    _index: number,
  ): Promise<void> {
    if (image === IMAGE.files) this.replace('files', entry, (before) => ({ message: { ...before, bpf: message } }));
    else this.replace('bpfmapFile', entry, () => ({ message }));
  }

  /** Changes what only our own images say of a map. */
  protected async facts(map: MapToWrite, here: DumpMap): Promise<void> {
    // CRIU's images have no room for it.
    if (here.metaEntry === undefined && this.dump.plugin === undefined && this.dump.images.has(IMAGE.files)) return;
    const message = await this.factsMessage(map, here);
    if (here.metaEntry !== undefined) this.replace('meta', here.metaEntry, () => ({ message }));
    else if (Object.keys(message).length > 1) this.add('meta', { message });
    this.refer(message);
  }

  protected async factsMessage(map: MapToWrite, here: DumpMap): Promise<JsonObject> {
    const { holders, ...before }: Partial<BpfmapMetaEntry> = here.meta ?? {};
    const said = map.header.meta;
    const message: JsonObject = { ...(said ?? before), map_id: map.header.map_id };
    if (holders !== undefined) message.holders = holders;
    if (said !== undefined && before.$raw !== undefined) message.$raw ??= before.$raw;
    // `types` is not repeated in `meta`; if the map has no types of its own, `types` is only for display.
    if (before.btf_id !== undefined && said?.btf_id === undefined && map.types !== undefined) {
      Object.assign(message, factMembers({ types: map.types }));
    }
    return encodable(BPFMAP_META, message, map, '/meta');
  }

  /** Notes the types of a map. */
  protected refer({ btf_id }: JsonObject): void {
    if (btf_id !== undefined) this.#referred.add(btf_id as number);
  }

  /** Changes the map's data. The dump may have several entries where a document has one, if all are the same. */
  async #data(map: MapToWrite, here: DumpMap): Promise<void> {
    const { bodies, header } = map;
    const { data } = here;
    if (bodies.length > 1 && bodies.length !== Math.max(1, data.length)) {
      const entries = `${this.folder} has ${Math.max(1, data.length)} data entries of this map`;
      throw await map.bad('/copies', `${bodies.length - 1} of them, ${entries}`);
    }
    if (bodies.length === 0 && header.map_id === here.mapId) return;
    const extras = await this.#keep(bodies);
    for (const [i, { entry }] of data.entries()) {
      const body = bodies.length > 1 ? i : 0;
      const message: JsonObject = { ...entry.message, map_id: header.map_id, ...bodies[body]?.message };
      // If a document merges entries, it has the `$raw` of the last one.
      if (bodies.length === 1 && i < data.length - 1) {
        delete message.$raw;
        if (entry.message.$raw !== undefined) message.$raw = entry.message.$raw;
      }
      const changed = { message: await encodable(BPFMAP_DATA, message, map, ''), extra: extras[body] };
      this.replace('data', entry.index, () => changed);
    }
    if (data.length === 0) await this.freshData(map, extras);
  }

  /** Adds the data of a map that has none. */
  protected async freshData(map: MapToWrite, extras?: readonly Extra[]): Promise<void> {
    const kept = extras ?? (await this.#keep(map.bodies));
    for (const [i, { message }] of map.bodies.entries()) {
      this.add('data', { message: await encodable(BPFMAP_DATA, message, map, ''), extra: kept[i] });
    }
  }

  /** Keeps keys and values aside until all have been read. */
  async #keep(bodies: readonly Body[]): Promise<Extra[]> {
    const kept: Extra[] = [];
    for (const { parts } of bodies) {
      const at = this.#store.length;
      for (const part of parts) await copyInput(part.input(), 0, part.length, this.#store);
      const size = this.#store.length - at;
      kept.push((out) => {
        this.#stored ??= this.#store.input();
        return copyInput(this.#stored, at, size, out);
      });
    }
    return kept;
  }

  async commit(): Promise<void> {
    const output = this.#output;
    await this.finish(output);
    for (const [image, changes] of this.#changes) await this.#rewrite(output, image, changes);
    await output.commit();
    this.#end();
  }

  /** Completes what is known only after all maps. */
  protected async finish(_output: FolderOutput): Promise<void> {
    for (const id of this.#referred) {
      const object = this.#objects.get(id);
      if (object !== undefined) this.add('btf', object);
    }
  }

  async #rewrite(output: FolderOutput, image: ImageName, changes: Changes): Promise<void> {
    const name = this.dump.names[image];
    const there = output.read(name);
    try {
      await changeImage(there, KIND[image], output.file(name), changes);
    } finally {
      there?.close();
    }
  }

  async abort(): Promise<void> {
    await this.#output.abort();
    this.#end();
  }

  #end(): void {
    this.#store.close();
    this.dump.close();
  }
}

/** The holders of an open file, as text to compare. */
function fdsText(fds: readonly (JsonObject | Holder)[]): string {
  return JSON.stringify(fds.map(({ pid, fd, cloexec }) => [pid, fd, cloexec === true]));
}

/** A dump of our own images, without processes: maps and their holders can be added. */
class ChangedOwnDump extends ChangedDump {
  /** New holders of open files, by the file's id. */
  readonly #holders = new Map<number, JsonObject[]>();
  readonly #has: UsedIds = { ids: new Set(), fds: new Set() };

  constructor(folder: string, dump: Dump, types: MapTypes) {
    super(folder, dump, types);
    for (const { message } of dump.maps.flatMap(({ files }) => files)) this.#has.ids.add(message.id);
  }

  protected override async fresh(map: MapToWrite): Promise<void> {
    const { files, meta } = await newMapMessages(map, this.#has, this.types);
    for (const message of files) this.add('bpfmapFile', { message });
    this.add('meta', { message: meta });
    this.refer(meta);
    await this.freshData(map);
  }

  protected override async freshFile(map: MapToWrite, index: number): Promise<void> {
    const id = filesOf(map)[index]?.id as number;
    if (this.#has.ids.has(id)) throw await map.bad(`/files/${index}/id`, `file ${id} is one of another map`);
    this.#has.ids.add(id);
    this.add('bpfmapFile', { message: await messageOf(undefined, id, map, index, this.types) });
    this.#holders.set(id, await holdersOf(map, index, id, this.#has));
  }

  protected override async holders(map: MapToWrite, index: number, before: MapFile): Promise<void> {
    const { id } = before.message;
    this.#holders.set(id, await holdersOf(map, index, id, this.#has));
  }

  protected override async factsMessage(map: MapToWrite, here: DumpMap): Promise<JsonObject> {
    const message = await super.factsMessage(map, here);
    const ids = filesOf(map).map(({ id }) => id as number);
    const changed = ids.filter((id) => this.#holders.has(id));
    if (changed.length === 0) return message;
    const others = ((message.holders ?? []) as JsonObject[]).filter(
      ({ file_id }) => !changed.includes(file_id as number),
    );
    const { holders: _, ...rest } = message;
    const holders = [...others, ...changed.flatMap((id) => this.#holders.get(id) as JsonObject[])];
    return encodable(BPFMAP_META, holders.length === 0 ? rest : { ...rest, holders }, map, '/meta');
  }
}

/**
 * A CRIU dump made with the plugin: what CRIU wrote stays as it is. All open files of a map share one entry;
 * only their open modes differ, which the table lists.
 */
class ChangedPluginDump extends ChangedDump {
  /** Entries of maps according to their first open file, as text. */
  readonly #texts = new Map<number, string>();
  /** The new open modes of open files, by id. */
  readonly #flags = new Map<number, number>();

  constructor(
    folder: string,
    dump: Dump,
    readonly plugin: PluginDump,
    types: MapTypes,
  ) {
    super(folder, dump, types);
  }

  protected override async file(before: MapFile, message: JsonObject, map: MapToWrite, index: number): Promise<void> {
    const mapId = before.message.map_id;
    if (map.header.map_id === mapId && message.map_id !== mapId) {
      throw await map.bad(`/files/${index}/map_id`, `must be ${mapId}, as ${PLUGIN_TABLE} has it`);
    }
    await this.#sameId(map, mapId);
    if (!equalJson(message.fown, before.message.fown)) {
      throw await map.bad(`/files/${index}/fown`, `it is recorded in ${IMAGE.files}, which is left alone`);
    }
    const entry = this.#entry(mapId, message);
    const text = mapText(entry);
    if ((this.#texts.get(mapId) ?? text) !== text) {
      throw await map.bad(`/files/${index}`, 'differs from the file before in more than its flags');
    }
    this.#texts.set(mapId, text);
    this.#flags.set(message.id as number, message.flags as number);
    await super.file(before, entry, map, index);
  }

  /** The entry for the map that matches the message of an open file. */
  #entry(mapId: number, message: JsonObject): JsonObject {
    const { id, fown, flags } = this.plugin.maps.get(mapId) as BpfmapFileEntry;
    // The open mode of a map without open files is recorded nowhere else.
    const own = this.plugin.files.has(message.id as number) ? { flags } : {};
    return { ...message, id, ...own, ...(fown === undefined ? {} : { fown }) };
  }

  protected override async facts(map: MapToWrite, here: DumpMap): Promise<void> {
    await this.#sameId(map, here.mapId);
    await super.facts(map, here);
  }

  async #sameId(map: MapToWrite, mapId: number): Promise<void> {
    if (map.header.map_id === mapId) return;
    throw await map.bad('/map_id', `it is map ${mapId} in ${PLUGIN_TABLE}, which names the maps that were open`);
  }

  protected override async finish(output: FolderOutput): Promise<void> {
    await super.finish(output);
    const { files, kept } = this.plugin;
    const changed = ({ id, flags }: TableLine) => (this.#flags.get(id) ?? flags) !== flags;
    if (![...files.values()].some(changed)) return;
    // Unchanged lines keep their spelling.
    const out = output.file(PLUGIN_TABLE);
    for (const line of files.values()) {
      out.text(changed(line) ? tableText({ ...line, flags: this.#flags.get(line.id) as number }) : line.text);
      await out.turn();
    }
    for (const { text } of kept.values()) out.text(text);
  }
}
