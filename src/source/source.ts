/**
 * Opens any source that a user names: an image, a dump, an archive, a document, standard input or live maps. The
 * content decides what it is, never the name. Every command opens its sources here; what a small image does not need
 * is loaded on demand.
 */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { archiveFormat, HEAD } from '../archive/compression.js';
import type { DumpFiles } from '../dump/files.js';
import type { Dump, OnBroken } from '../dump/model.js';
import { BpfimgError, ioError } from '../errors.js';
import type { ImageKind } from '../image/kinds.js';
import { ImageReader } from '../image/reader.js';
import { type Input, openInput, peeked, standardInput } from '../io/input.js';
import { setAside } from '../io/spool.js';
import type { Unseen } from '../kernel/live.js';
import type { Sys } from '../kernel/sys.js';
import type { Doing, MapTypes } from '../maptype.js';
import { liveSelectors } from './selectors.js';

/** Receives the progress of a capture. */
export interface Watcher {
  update(doing: Doing): void;
  end(): void;
}

/** What opening a source may need. */
export interface SourceHost {
  /** Standard input; the process's own by default. */
  stdin(): Promise<Input>;
  /** The table of map types, for documents and live maps; bpfimg's own plugins by default. */
  types(): Promise<MapTypes>;
  /** The kernel, for live maps; the running one by default. */
  sys(types: MapTypes): Promise<Sys>;
  /** Watches captures of live maps. */
  watch?(): Promise<Watcher>;
  /** Receives a line about live maps that could not be captured. */
  warn?(line: string): void;
  /** The name of a source with one map, whose attributes and types the items from `bpftool -j map dump` get. */
  like?(): string | undefined;
  /** The items of live maps are not needed. */
  readonly bare?: boolean;
  /** Receives what could not be seen when all live maps were selected. */
  unseen?(what: Unseen): Promise<void>;
}

/** A source of several images: a dump. */
export interface DumpSource {
  readonly kind: 'dump';
  /** Its name in messages. */
  readonly name: string;
  /** What it was opened from. */
  readonly form: 'folder' | 'archive' | 'document' | 'object' | 'live';
  readonly files: DumpFiles;
  /** Name of the checkpointed container, if config.dump gives it. */
  container?(): Promise<string | undefined>;
  /** The SHA-256 of a file, as recorded in an archive made by bpfimg. */
  digest?(name: string): string | undefined;
  /**
   * Checks the files against their digests.
   * @throws BpfimgError for one that differs
   */
  check?(): Promise<void>;
  /** Reads live maps once more: those of the same ids that still exist. Undefined if none does. */
  again?(): Promise<DumpSource | undefined>;
  close(): void;
}

/** A source of one image, or of the JSON of one. */
export interface ImageSource {
  readonly kind: 'image';
  readonly name: string;
  readonly form: 'image' | 'document';
  /** The image; without a size if it comes from a pipe, which can be read only once. */
  readonly input: Input;
  close(): void;
}

/** A source that is open. Whoever opened it closes it. */
export type Source = DumpSource | ImageSource;

const DEFAULTS: SourceHost = {
  stdin: standardInput,
  types: async () => (await import('../../plugins/index.js')).typeTable(),
  sys: async (types) => (await import('../kernel/sys.js')).openSys(types),
};

/** A host with the defaults for what it lacks. */
export function hostOf(given: Partial<SourceHost>): SourceHost {
  return { ...DEFAULTS, ...given };
}

/**
 * Opens what `text` names; undefined is standard input.
 * @throws BpfimgError for what is missing, cannot be opened, or is no source
 */
export async function openSource(text: string | undefined, given: Partial<SourceHost> = {}): Promise<Source> {
  const host = hostOf(given);
  if (text === undefined) return openStream(await host.stdin(), host);
  const selectors = liveSelectors(text);
  if (selectors !== undefined) {
    const { openLiveMaps } = await import('./live.js');
    return openLiveMaps(text, selectors, host);
  }
  return statOf(text)?.isDirectory() ? folderSource(text) : openStream(await openInput(text), host);
}

/**
 * Opens the maps of a source; undefined for an image of a kind that has none. The caller closes them, then the source.
 */
export async function openMaps(source: Source, onBroken?: OnBroken): Promise<Dump | undefined> {
  const opened = await dumpOf(source, onBroken);
  return 'maps' in opened ? opened : undefined;
}

/** The dump of a source, or the kind of an image that has no maps. */
async function dumpOf(source: Source, onBroken?: OnBroken): Promise<Dump | ImageKind> {
  const { openDump, openDumpImage } = await import('../dump/model.js');
  if (source.kind === 'dump') return openDump(source.files, onBroken);
  // Items are read at two positions alternately, which a pipe cannot do.
  const input = source.input.size === undefined ? await setAside(source.input) : { ...source.input, close() {} };
  let dump: Dump | undefined;
  try {
    const { kind } = await ImageReader.open(input);
    dump = await openDumpImage(input, kind, onBroken);
    return dump ?? kind;
  } finally {
    if (dump === undefined) input.close();
  }
}

/** As {@link openMaps}, for a source that must have maps. */
export async function mapsOf(source: Source, onBroken?: OnBroken): Promise<Dump> {
  const opened = await dumpOf(source, onBroken);
  if ('maps' in opened) return opened;
  throw new BpfimgError('unsupported', `a ${opened.name} image has no BPF maps`, { subject: source.name });
}

function statOf(file: string): fs.Stats | undefined {
  try {
    return fs.statSync(file, { throwIfNoEntry: false });
  } catch (error) {
    throw ioError(file, 'look at it', error);
  }
}

/** Owns `given`. */
async function openStream(given: Input, host: SourceHost): Promise<Source> {
  const { head, input } = await peeked(given, HEAD).catch((error: unknown) => {
    given.close();
    throw error;
  });
  if (archiveFormat(head) !== undefined) {
    const { openArchiveSource } = await import('./archive.js');
    return openArchiveSource(input);
  }
  // No image begins like a JSON object or list.
  if (Buffer.from(head).toString('latin1').startsWith('\x7fELF')) {
    const { openObject } = await import('./object.js');
    return openObject(input, host);
  }
  // No image begins as an object or a list does.
  if (!/^\s*[{[]/.test(Buffer.from(head).toString('latin1'))) return imageSource(input, 'image');
  const { openDocument } = await import('./document.js');
  return openDocument(input, host);
}

/** An image as a source, which owns `input`. */
export function imageSource(input: Input, form: ImageSource['form']): ImageSource {
  return { kind: 'image', name: input.name, form, input, close: () => input.close() };
}

/** A folder: a dump, or an unpacked checkpoint with the dump in `checkpoint`. */
async function folderSource(folder: string): Promise<DumpSource> {
  const { folderFiles } = await import('../dump/files.js');
  const { checkpointName, CONFIG, isDump } = await import('./checkpoint.js');
  const inner = path.join(folder, 'checkpoint');
  const isInner = !isDump(namesIn(folder)) && isDump(namesIn(inner));
  const files = folderFiles(isInner ? inner : folder);
  const container = async () => {
    // An engine that packs a checkpoint puts its own files beside the `checkpoint` folder.
    const whole = isInner ? folder : path.dirname(path.resolve(folder));
    if (!isInner && path.basename(path.resolve(folder)) !== 'checkpoint') return undefined;
    const beside = folderFiles(whole);
    return beside.size(CONFIG) === undefined ? undefined : checkpointName(beside.open(CONFIG));
  };
  return { kind: 'dump', name: files.name, form: 'folder', files, container, close() {} };
}

function namesIn(folder: string): string[] {
  try {
    return fs.readdirSync(folder);
  } catch {
    // Opening it explains why not.
    return [];
  }
}
