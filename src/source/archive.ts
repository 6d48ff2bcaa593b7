/** An archive as a source: the dump in it, as container engines pack their checkpoints or as tar packs a folder. */
import { openArchive } from '../archive/archive.js';
import type { DumpFiles } from '../dump/files.js';
import { PLUGIN_TABLE } from '../dump/model.js';
import { BpfimgError } from '../errors.js';
import type { Input } from '../io/input.js';
import { CONFIG, checkpointName, isDump } from './checkpoint.js';
import type { DumpSource } from './source.js';

/** Where images may be in an archive. */
const FOLDERS = ['', 'checkpoint/'];

/** Whether bpfimg reads a file of a dump: not what is in the memory and in the file systems of processes. */
function isRead(name: string): boolean {
  return name === PLUGIN_TABLE || (/^[\w-]+\.img$/.test(name) && !/^pages-/.test(name));
}

/** The name of an entry without the `./` that some put before it. */
function plainName(name: string): string {
  return name.replace(/^(\.\/+)+/, '');
}

/** A name in one of {@link FOLDERS}, without the folder. */
function baseName(name: string): string {
  const plain = plainName(name);
  return plain.startsWith('checkpoint/') ? plain.slice('checkpoint/'.length) : plain;
}

/** Owns `given`. */
export async function openArchiveSource(given: Input): Promise<DumpSource> {
  const archive = await openArchive(given, (name) => isRead(baseName(name)) || plainName(name) === CONFIG);
  try {
    // Of two entries of one name the last is what tar unpacks.
    const names = new Map([...archive.entries.keys()].map((name) => [plainName(name), name]));
    const inFolder = (folder: string) =>
      new Map(
        [...names].flatMap(([plain, name]) => {
          const base = plain.slice(folder.length);
          return plain.startsWith(folder) && base !== '' && !base.includes('/') ? [[base, name] as const] : [];
        }),
      );
    const images = FOLDERS.map(inFolder).find((files) => isDump(files.keys()));
    if (images === undefined) {
      const what = 'no images of BPF maps in it, neither at its top nor in checkpoint/';
      throw new BpfimgError('notFound', what, { subject: archive.name });
    }
    const sizeOf = (name: string) => archive.entries.get(images.get(name) ?? '')?.size;
    const files: DumpFiles = {
      name: archive.name,
      names: () => new Set(images.keys()),
      size: sizeOf,
      open: (name) => archive.open(images.get(name) ?? '') ?? unread(archive.name, name, sizeOf(name)),
      atOneTime: (read) => read(),
    };
    const container = async () => {
      const config = archive.open(names.get(CONFIG) ?? '');
      return config === undefined ? undefined : checkpointName(config);
    };
    return { kind: 'dump', name: archive.name, form: 'archive', files, container, close: () => archive.close() };
  } catch (error) {
    archive.close();
    throw error;
  }
}

/** A file that is not put aside: its size is known, its bytes are not. */
function unread(archive: string, file: string, size: number | undefined): Input {
  const name = `${archive}:${file}`;
  const read = () => {
    throw new BpfimgError('io', 'it is not read out of archives', { subject: name });
  };
  if (size === undefined) throw new BpfimgError('notFound', 'no such file in the archive', { subject: name });
  return { name, size, path: undefined, read, close() {} };
}
