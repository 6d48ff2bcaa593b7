/** An archive as a source: finds the dump in it, as container engines pack checkpoints or as tar packs a folder. */
import { type Archive, openArchive } from '../archive/archive.js';
import type { DumpFiles } from '../dump/files.js';
import { PLUGIN_TABLE } from '../dump/model.js';
import { BpfimgError } from '../errors.js';
import type { Input } from '../io/input.js';
import { CONFIG, checkpointName, isDump } from './checkpoint.js';
import type { DumpSource } from './source.js';

/** Where images may be in an archive. */
const FOLDERS = ['', 'checkpoint/'];

/** Whether bpfimg reads a file of a dump: not the memory and file systems of processes. */
export function isRead(name: string): boolean {
  return name === PLUGIN_TABLE || (/^[\w-]+\.img$/.test(name) && !/^pages-/.test(name));
}

/** The name of an entry without the `./` that some programs put before it. */
function plainName(name: string): string {
  return name.replace(/^(\.\/+)+/, '');
}

/** A name in one of {@link FOLDERS}, without the folder. */
function baseName(name: string): string {
  const plain = plainName(name);
  return plain.startsWith('checkpoint/') ? plain.slice('checkpoint/'.length) : plain;
}

/** A dump in an archive. */
export interface ArchivedDump {
  readonly archive: Archive;
  /** Names of the archive's entries by the names of the dump's files. */
  readonly images: ReadonlyMap<string, string>;
  /** The prefix of the file's names in the archive. */
  readonly folder: string;
  /** Name of the entry that names the container. */
  readonly config: string | undefined;
}

/** Finds the dump in an archive. Owns `given`. */
export async function openArchivedDump(given: Input): Promise<ArchivedDump> {
  const archive = await openArchive(given, (name) => isRead(baseName(name)) || plainName(name) === CONFIG);
  // Of two entries with one name, tar keeps the last when it unpacks.
  const names = new Map([...archive.entries.keys()].map((name) => [plainName(name), name]));
  for (const folder of FOLDERS) {
    const images = new Map<string, string>();
    for (const [plain, name] of names) {
      const base = plain.slice(folder.length);
      if (plain.startsWith(folder) && base !== '' && !base.includes('/')) images.set(base, name);
    }
    if (!isDump(images.keys())) continue;
    const [[base = '', name = ''] = []] = images;
    return { archive, images, folder: name.slice(0, name.length - base.length), config: names.get(CONFIG) };
  }
  archive.close();
  const what = 'no images of BPF maps in it, neither at its top nor in checkpoint/';
  throw new BpfimgError('notFound', what, { subject: archive.name });
}

/** Owns `given`. */
export async function openArchiveSource(given: Input): Promise<DumpSource> {
  const { archive, images, config } = await openArchivedDump(given);
  try {
    const sizeOf = (name: string) => archive.entries.get(images.get(name) ?? '')?.size;
    const nameOf = (file: string) => `${archive.name}:${file}`;
    const files: DumpFiles = {
      name: archive.name,
      nameOf,
      names: () => new Set(images.keys()),
      size: sizeOf,
      open: (name) => archive.open(images.get(name) ?? '') ?? unread(nameOf(name), sizeOf(name)),
      atOneTime: (read) => read(),
    };
    const container = async () => {
      const input = archive.open(config ?? '');
      return input === undefined ? undefined : checkpointName(input);
    };
    return {
      kind: 'dump',
      name: archive.name,
      form: 'archive',
      files,
      container,
      digest: (name) => archive.sums.get(images.get(name) ?? ''),
      check: () => archive.check(),
      close: () => archive.close(),
    };
  } catch (error) {
    archive.close();
    throw error;
  }
}

/** A file that is not put aside: its size is known but not its bytes. */
function unread(name: string, size: number | undefined): Input {
  const read = () => {
    throw new BpfimgError('io', 'it is not read out of archives', { subject: name });
  };
  if (size === undefined) throw new BpfimgError('notFound', 'no such file in the archive', { subject: name });
  return { name, size, path: undefined, read, close() {} };
}
