/** Where the maps of a document go: a fresh dump, or the BPF parts of a CRIU dump that stands there. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { BpfimgError, ioError } from '../errors.js';
import { BPFMAP_BTF, BPFMAP_DATA, BPFMAP_FILE, BPFMAP_META, FILES, type Kind } from '../image/kinds.js';
import type { JsonObject } from '../image/message.js';
import { ImageReader } from '../image/reader.js';
import { encodeMessage, ValueError } from '../image/wire.js';
import { writeHead, writeMessage } from '../image/writer.js';
import { type Input, openInput } from '../io/input.js';
import { FolderOutput, type Output } from '../io/output.js';
import { Spool } from '../io/spool.js';
import type { MapTypes, TypeFacts } from '../maptype.js';
import { AttributeError, fileMessage, mapText } from './attributes.js';
import { factMembers } from './facts.js';
import {
  type Dump,
  type DumpMap,
  type FileMessage,
  IMAGE,
  type MapFile,
  openDump,
  PLUGIN_IMAGE,
  PLUGIN_TABLE,
  type PluginDump,
} from './model.js';
import { tableText } from './plugin-table.js';
import { copyInput, rewriteImage } from './rewrite.js';

/** One data entry of the document: its message, and where its keys and values wait. */
export interface Body {
  readonly message: JsonObject;
  readonly parts: readonly Spool[];
}

/** One map of the document, its data still open. */
export interface DocumentMap {
  readonly header: JsonObject;
  /** In image order: copies first, then what CRIU restores. */
  readonly bodies: Body[];
  /** The types that its header names. */
  types?: TypeFacts;
  /** The error for a member of this map, by its pointer from the map down. */
  bad(pointer: string, message: string): Promise<BpfimgError>;
}

/** Where the maps of a document go. */
export interface Target {
  /** Takes a BTF object, whose blob is `size` bytes of `input` from `at` on. */
  btf(message: JsonObject, input: Input, at: number, size: number): Promise<void>;
  map(map: DocumentMap): Promise<void>;
  commit(): Promise<void>;
  abort(): Promise<void>;
}

/**
 * Opens what a document is encoded into.
 * @param force replace the BPF parts of a dump that stands there
 */
export async function openTarget(folder: string, force: boolean, types: MapTypes): Promise<Target> {
  const names = namesIn(folder);
  const images = names.filter((name) => name.endsWith('.img'));
  if (images.length > 0 && !force) {
    throw new BpfimgError('conflict', `${folder}: it holds images already; --force replaces their BPF maps`);
  }
  if (names.length > 0 && images.length === 0) {
    throw new BpfimgError('conflict', `${folder}: not empty and no dump, expected a new or empty folder`);
  }
  if ([IMAGE.files, PLUGIN_IMAGE.bpfmapFile, PLUGIN_IMAGE.data].some((name) => names.includes(name))) {
    const dump = await openDump(folder);
    const broken = dump.lost.plugin.find(({ code }) => code !== 'plugin-stale');
    if (broken !== undefined) {
      dump.close();
      throw new BpfimgError('badImage', `${path.join(folder, broken.image)}: ${broken.message}`);
    }
    return dump.plugin === undefined
      ? new ChangedDump(folder, dump, types)
      : new ChangedPluginDump(folder, dump, dump.plugin, types);
  }
  return new FreshDump(folder, types, names.includes(IMAGE.data) ? await mapIds(folder) : new Set());
}

/** What is in a folder; nothing when it is not there. */
function namesIn(folder: string): string[] {
  try {
    return fs.statSync(folder, { throwIfNoEntry: false })?.isDirectory() ? fs.readdirSync(folder) : [];
  } catch (error) {
    throw ioError(folder, 'look into it', error);
  }
}

/** Ids of the maps in a dump. */
async function mapIds(folder: string): Promise<Set<number>> {
  const dump = await openDump(folder);
  dump.close();
  return new Set(dump.maps.map((map) => map.mapId));
}

/** Encodes a message; what does not fit is news about `pointer` within the map. */
async function encoded(kind: Kind, message: JsonObject, map: DocumentMap, pointer: string): Promise<Uint8Array> {
  try {
    return encodeMessage(kind.message, message, 'latin1');
  } catch (error) {
    if (error instanceof ValueError) throw await map.bad(pointer + error.pointer, error.message);
    throw error;
  }
}

/** The message of one file of `map`, `file` being its member of the document's `files`. */
async function messageOf(
  before: JsonObject | undefined,
  id: number,
  map: DocumentMap,
  index: number,
  types: MapTypes,
): Promise<JsonObject> {
  const file = filesOf(map)[index] ?? {};
  try {
    return fileMessage(before, id, map.header, file, types);
  } catch (error) {
    if (!(error instanceof AttributeError)) throw error;
    const own = error.member !== '' && file[error.member.slice(1)] !== undefined;
    throw await map.bad(`${own ? `/files/${index}` : ''}${error.member}`, error.message);
  }
}

function filesOf(map: DocumentMap): JsonObject[] {
  return (map.header.files ?? []) as JsonObject[];
}

async function writeBody(body: Body, map: DocumentMap, out: Output): Promise<void> {
  writeMessage(out, await encoded(BPFMAP_DATA, body.message, map, ''));
  for (const part of body.parts) await copyInput(part.input(), 0, part.length, out);
}

/** A new dump of our own images; in place of such a dump when it stood there. */
class FreshDump implements Target {
  readonly #folder: FolderOutput;
  readonly #files: Output;
  readonly #data: Output;
  readonly #meta: Output;
  #btf: Output | undefined;
  readonly #ids = new Set<number>();
  /** `PID:FD`: an fd leads to one open file. */
  readonly #fds = new Set<string>();

  /** @param replaced ids of the maps that stand in the folder now and that the document must have too */
  constructor(
    readonly folder: string,
    readonly types: MapTypes,
    readonly replaced: Set<number>,
  ) {
    this.#folder = new FolderOutput(folder);
    this.#files = this.#folder.file(IMAGE.bpfmapFile);
    this.#data = this.#folder.file(IMAGE.data);
    this.#meta = this.#folder.file(IMAGE.meta);
    writeHead(this.#files, BPFMAP_FILE);
    writeHead(this.#data, BPFMAP_DATA);
    writeHead(this.#meta, BPFMAP_META);
  }

  async btf(message: JsonObject, input: Input, at: number, size: number): Promise<void> {
    if (this.#btf === undefined) {
      this.#btf = this.#folder.file(IMAGE.btf);
      writeHead(this.#btf, BPFMAP_BTF);
    }
    writeMessage(this.#btf, encodeMessage(BPFMAP_BTF.message, message, 'latin1'));
    await copyInput(input, at, size, this.#btf);
  }

  async map(map: DocumentMap): Promise<void> {
    const { header } = map;
    this.replaced.delete(header.map_id as number);
    const holders: JsonObject[] = [];
    // Data without a file is kept as that; a map that says what it is gets a file to be restored from.
    const files = header.files === undefined && header.type !== undefined ? [{}] : filesOf(map);
    for (const [index, file] of files.entries()) {
      const id = (file.id as number | undefined) ?? this.#freeId();
      if (this.#ids.has(id)) throw await map.bad(`/files/${index}/id`, `file ${id} stands twice in the document`);
      this.#ids.add(id);
      const message = await messageOf(undefined, id, map, index, this.types);
      writeMessage(this.#files, await encoded(BPFMAP_FILE, message, map, ''));
      for (const [place, { pid, fd, cloexec }] of ((file.fds ?? []) as JsonObject[]).entries()) {
        const held = `${String(pid)}:${String(fd)}`;
        if (this.#fds.has(held)) {
          throw await map.bad(
            `/files/${index}/fds/${place}`,
            `fd ${String(fd)} of process ${String(pid)} stands twice`,
          );
        }
        this.#fds.add(held);
        holders.push({ file_id: id, pid: pid as number, fd: fd as number, ...(cloexec ? { fd_flags: 1 } : {}) });
      }
    }
    const meta: JsonObject = { ...(header.meta as JsonObject | undefined), map_id: header.map_id as number };
    if (holders.length > 0) meta.holders = holders;
    // Where the map had types of its own, those it is shown by are but a way to look at it.
    if (meta.btf_id === undefined && map.types !== undefined) Object.assign(meta, factMembers({ types: map.types }));
    writeMessage(this.#meta, await encoded(BPFMAP_META, meta, map, '/meta'));
    for (const body of map.bodies) await writeBody(body, map, this.#data);
  }

  #freeId(): number {
    let id = this.#ids.size + 1;
    while (this.#ids.has(id)) id++;
    return id;
  }

  async commit(): Promise<void> {
    if (this.replaced.size > 0) {
      const ids = [...this.replaced].slice(0, 20).join(', ');
      const message = `${this.folder}: the document lacks its maps ${ids}, which would be lost; encode into a new folder`;
      throw new BpfimgError('conflict', message);
    }
    await this.#folder.commit();
  }

  abort(): Promise<void> {
    return this.#folder.abort();
  }
}

/** A data entry that waits in the store. */
interface Stored {
  readonly at: number;
  readonly size: number;
}

/**
 * A CRIU dump whose maps change. Entries keep their order and everything else its bytes; maps the
 * document does not mention stay as they are.
 */
class ChangedDump implements Target {
  /** New data entries, whole, in the order of the document. */
  readonly #store = new Spool();
  /** What the document says of open files, by id. */
  protected readonly files = new Map<number, JsonObject>();
  /** New data by the map id that the dump has now. */
  readonly #data = new Map<number, Stored[]>();
  #output: FolderOutput | undefined;

  constructor(
    readonly folder: string,
    readonly dump: Dump,
    readonly types: MapTypes,
  ) {}

  /** CRIU has no room for types; the document's are only there to read its items by. */
  async btf(_message: JsonObject, _input: Input, _at: number, _size: number): Promise<void> {}

  async map(map: DocumentMap): Promise<void> {
    const here = await this.#here(map);
    for (const [index, file] of filesOf(map).entries()) {
      const before = here.files.find(({ message }) => message.id === file.id);
      if (before === undefined) {
        throw await map.bad(`/files/${index}/id`, `no open file ${String(file.id)} of this map in ${this.folder}`);
      }
      const fds = JSON.stringify(((file.fds ?? []) as JsonObject[]).map(({ pid, fd }) => [pid, fd]));
      if (file.fds !== undefined && fds !== JSON.stringify(before.holders.map(({ pid, fd }) => [pid, fd]))) {
        throw await map.bad(`/files/${index}/fds`, 'who holds a map stands in fdinfo-*.img, which is left alone');
      }
      const message = await messageOf(before.message, before.message.id, map, index, this.types);
      await encoded(BPFMAP_FILE, message, map, '');
      this.files.set(before.message.id, message);
    }
    await this.changes(map, here);
    if (map.bodies.length > 0) this.#data.set(here.mapId, await this.#keep(map, here));
  }

  /** For what else a document can change of a map. */
  protected async changes(_map: DocumentMap, _here: DumpMap): Promise<void> {}

  /** The dump's map that the document's is: by its open files, else by id. */
  async #here(map: DocumentMap): Promise<DumpMap> {
    const ids = new Set(filesOf(map).map((file) => file.id));
    const byFile = this.dump.maps.find((one) => one.files.some(({ message }) => ids.has(message.id)));
    const here = byFile ?? this.dump.maps.find((one) => one.mapId === map.header.map_id);
    if (here !== undefined) return here;
    throw await map.bad(
      '/map_id',
      `no map ${String(map.header.map_id)} in ${this.folder}, and nothing there would hold it`,
    );
  }

  /** Puts the map's data aside, as many entries as the dump has of it. */
  async #keep(map: DocumentMap, here: DumpMap): Promise<Stored[]> {
    const stored: Stored[] = [];
    for (const body of map.bodies) {
      const at = this.#store.length;
      await writeBody(body, map, this.#store);
      stored.push({ at, size: this.#store.length - at });
    }
    const entries = Math.max(1, here.data.length);
    if (stored.length > 1 && stored.length !== entries) {
      throw await map.bad(
        '/copies',
        `${stored.length - 1} of them, ${this.folder} has ${entries} data entries of this map`,
      );
    }
    return stored.length === 1 ? new Array<Stored>(entries).fill(stored[0] as Stored) : stored;
  }

  async commit(): Promise<void> {
    this.#output = new FolderOutput(this.folder);
    await this.images(this.#output);
    await this.#rewriteData(this.#output);
    await this.#output.commit();
    this.#end();
  }

  /** Writes the images but that of data. */
  protected async images(output: FolderOutput): Promise<void> {
    const changed = (message: JsonObject | undefined) => message && this.files.get(message.id as number);
    await this.rewrite(output, IMAGE.files, FILES, (message) => {
      const bpf = changed(message.bpf as JsonObject | undefined);
      return bpf === undefined ? message : { ...message, bpf };
    });
    await this.rewrite(output, IMAGE.bpfmapFile, BPFMAP_FILE, (message) => changed(message) ?? message);
  }

  /** Copies an image, when it is there, with some messages changed. */
  protected async rewrite(
    output: FolderOutput,
    name: string,
    kind: Kind,
    change: (message: JsonObject) => JsonObject,
  ): Promise<Output | undefined> {
    if (!output.has(name)) return undefined;
    const input = await openInput(path.join(this.folder, name));
    try {
      const out = output.file(name);
      await rewriteImage(input, kind, out, change);
      return out;
    } finally {
      input.close();
    }
  }

  async #rewriteData(output: FolderOutput): Promise<void> {
    const { data } = this.dump;
    if (data === undefined && this.#data.size === 0) return;
    const out = output.file(this.dump.names.data);
    const taken = new Map<number, number>();
    if (data === undefined) {
      writeHead(out, BPFMAP_DATA);
    } else {
      const reader = await ImageReader.open(data, 'latin1');
      writeHead(out, BPFMAP_DATA, reader.head);
      for await (const entry of reader.entries()) {
        const id = entry.message.map_id as number;
        const stored = this.#data.get(id);
        const turn = taken.get(id) ?? 0;
        taken.set(id, turn + 1);
        const fresh = stored?.[turn];
        if (fresh) await copyInput(this.#store.input(), fresh.at, fresh.size, out);
        else await copyInput(data, entry.offset, entry.extraAt + entry.extraSize - entry.offset, out);
      }
    }
    for (const [id, stored] of this.#data) {
      if (taken.has(id)) continue;
      for (const { at, size } of stored) await copyInput(this.#store.input(), at, size, out);
    }
  }

  async abort(): Promise<void> {
    await this.#output?.abort();
    this.#end();
  }

  #end(): void {
    this.#store.close();
    this.dump.close();
  }
}

/** A BTF object of the document. */
interface Blob {
  readonly message: JsonObject;
  readonly input: Input;
  readonly at: number;
  readonly size: number;
}

/**
 * A CRIU dump of the plugin's: what CRIU has written stays as it is. Of a map all open files share one entry;
 * only how they were opened is each one's own, and stands in the table.
 */
class ChangedPluginDump extends ChangedDump {
  /** New entries by map id. */
  readonly #maps = new Map<number, JsonObject>();
  readonly #meta = new Map<number, JsonObject>();
  readonly #blobs = new Map<number, Blob>();

  constructor(
    folder: string,
    dump: Dump,
    readonly plugin: PluginDump,
    types: MapTypes,
  ) {
    super(folder, dump, types);
  }

  override async btf(message: JsonObject, input: Input, at: number, size: number): Promise<void> {
    this.#blobs.set(message.btf_id as number, { message, input, at, size });
  }

  protected override async changes(map: DocumentMap, here: DumpMap): Promise<void> {
    const { mapId } = here;
    if (map.header.map_id !== mapId) {
      throw await map.bad('/map_id', `it is map ${mapId} in ${PLUGIN_TABLE}, which names the maps that were open`);
    }
    let first: string | undefined;
    for (const [index, { id }] of filesOf(map).entries()) {
      const message = this.files.get(id as number) as JsonObject;
      const before = here.files.find((one) => one.message.id === id) as MapFile;
      if (message.map_id !== mapId)
        throw await map.bad(`/files/${index}/map_id`, `must be ${mapId}, as ${PLUGIN_TABLE} has it`);
      if (JSON.stringify(message.fown) !== JSON.stringify(before.message.fown)) {
        throw await map.bad(`/files/${index}/fown`, `stands in ${IMAGE.files}, which is left alone`);
      }
      const entry = this.#entry(mapId, message);
      const text = mapText(entry);
      first ??= text;
      if (text !== first) throw await map.bad(`/files/${index}`, 'differs from the file before in more than its flags');
      this.#maps.set(mapId, entry);
    }
    await this.#changedMeta(map, here);
  }

  /** The entry that says of the map what `message` says of an open file. */
  #entry(mapId: number, message: JsonObject): JsonObject {
    const { id, fown, flags } = this.plugin.maps.get(mapId) as FileMessage;
    // How a map would be opened that nobody had open stands nowhere else.
    const own = this.plugin.files.has(message.id as number) ? { flags } : {};
    return { ...message, id, ...own, ...(fown === undefined ? {} : { fown }) };
  }

  async #changedMeta(map: DocumentMap, here: DumpMap): Promise<void> {
    const { meta } = map.header;
    if (meta === undefined) return;
    const entry: JsonObject = { ...(meta as JsonObject), map_id: here.mapId };
    if (here.meta?.holders !== undefined) entry.holders = here.meta.holders;
    if (entry.btf_id === undefined && map.types !== undefined) Object.assign(entry, factMembers({ types: map.types }));
    await encoded(BPFMAP_META, entry, map, '/meta');
    this.#meta.set(here.mapId, entry);
  }

  protected override async images(output: FolderOutput): Promise<void> {
    await this.rewrite(output, PLUGIN_IMAGE.bpfmapFile, BPFMAP_FILE, (message) => {
      return this.#maps.get(message.map_id as number) ?? message;
    });
    await this.#metaImage(output);
    await this.#btfImage(output);
    await this.#table(output);
  }

  async #metaImage(output: FolderOutput): Promise<void> {
    const left = new Map(this.#meta);
    const change = (message: JsonObject) => {
      const id = message.map_id as number;
      const changed = left.get(id) ?? message;
      left.delete(id);
      return changed;
    };
    let out = await this.rewrite(output, PLUGIN_IMAGE.meta, BPFMAP_META, change);
    if (left.size === 0) return;
    if (out === undefined) {
      out = output.file(PLUGIN_IMAGE.meta);
      writeHead(out, BPFMAP_META);
    }
    for (const message of left.values()) writeMessage(out, encodeMessage(BPFMAP_META.message, message, 'latin1'));
  }

  /** Adds the types that maps now have and the dump has not. */
  async #btfImage(output: FolderOutput): Promise<void> {
    const ids = new Set([...this.#meta.values()].map((meta) => meta.btf_id as number));
    const added = [...ids].flatMap((id) => (this.dump.btf.has(id) ? [] : (this.#blobs.get(id) ?? [])));
    if (added.length === 0) return;
    const there = output.has(PLUGIN_IMAGE.btf);
    const out = output.file(PLUGIN_IMAGE.btf);
    if (there) {
      const input = await openInput(path.join(this.folder, PLUGIN_IMAGE.btf));
      try {
        await copyInput(input, 0, input.size as number, out);
      } finally {
        input.close();
      }
    } else writeHead(out, BPFMAP_BTF);
    for (const { message, input, at, size } of added) {
      writeMessage(out, encodeMessage(BPFMAP_BTF.message, message, 'latin1'));
      await copyInput(input, at, size, out);
    }
  }

  /** Open flags; the table stays as it is where none of them changed. */
  async #table(output: FolderOutput): Promise<void> {
    const changed = new Map<number, number>();
    for (const [id, { flags }] of this.plugin.files) {
      const now = this.files.get(id)?.flags as number | undefined;
      if (now !== undefined && now !== flags) changed.set(id, now);
    }
    if (changed.size === 0) return;
    const out = output.file(PLUGIN_TABLE);
    for (const line of this.plugin.files.values()) {
      const flags = changed.get(line.id);
      out.text(flags === undefined ? line.text : tableText({ ...line, flags }));
      await out.turn();
    }
  }
}
