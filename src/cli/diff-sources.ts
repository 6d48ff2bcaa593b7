/** What `diff` compares: whatever a person names, as a dump. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { capture } from '../capture/capture.js';
import { encodeDocument } from '../dump/encode.js';
import { type Dump, openDump } from '../dump/model.js';
import { aside, openImageSource } from '../dump/source.js';
import { BpfimgError, ioError } from '../errors.js';
import { type Input, openInput } from '../io/input.js';
import { openOutput } from '../io/output.js';
import { spoolFolder } from '../io/spool.js';
import { noLongerUnfinished, unfinished } from '../io/unfinished.js';
import { encodeImage } from '../json/encode.js';
import { JsonReader } from '../json/reader.js';
import { LiveMaps, type Selectors } from '../kernel/live.js';
import { openSys, type Sys } from '../kernel/sys.js';
import type { MapTypes } from '../maptype.js';
import type { Io } from './io.js';
import { Progress } from './progress.js';
import { NO_SELECTORS, type SelectorArguments, selectorsOf } from './selectors.js';
import { DASH } from './source.js';

/** Opens what `text` names: standard input, a file or folder, or live maps. The caller closes the dump. */
export async function openSource(text: string, types: MapTypes, io: Io, sys?: Sys): Promise<Dump> {
  if (text === DASH) return openFile(await io.stdin(), types);
  const stat = statOf(text);
  if (stat?.isDirectory()) return openDump(text);
  const selectors = stat === undefined ? liveOf(text) : undefined;
  if (selectors !== undefined) return openLiveMaps(selectors, types, io, sys);
  return openFile(await openInput(text), types);
}

/** How messages name it. */
export function sourceName(text: string): string {
  return text === DASH ? 'standard input' : text;
}

function statOf(file: string): fs.Stats | undefined {
  try {
    return fs.statSync(file, { throwIfNoEntry: false });
  } catch (error) {
    throw ioError(file, 'look at it', error);
  }
}

/** What the text behind each word selects. */
const LIVE: Readonly<Record<string, (text: string) => Partial<SelectorArguments>>> = {
  id: (text) => ({ id: [text] }),
  name: (text) => ({ name: [text] }),
  pinned: (text) => ({ pinned: [text] }),
  pid: (text) => {
    const [pid = '', ...fds] = text.split(':');
    return { pid: [pid], fd: fds };
  },
  tree: (text) => ({ pid: [text], tree: true }),
  all: () => ({ all: true }),
};

/** The live maps that a text such as `id:315` names; undefined for any other. */
function liveOf(text: string): Selectors | undefined {
  const [, word = '', rest = ''] = /^([a-z]+):(.*)$/s.exec(text) ?? [];
  const select = Object.hasOwn(LIVE, word) ? LIVE[word] : undefined;
  if (select === undefined) return undefined;
  if ((rest === '') !== (word === 'all')) {
    throw new BpfimgError('usage', 'expected id:N, name:NAME, pinned:PATH, pid:PID, pid:PID:FD, tree:PID or all:', {
      subject: text,
    });
  }
  return selectorsOf({ ...NO_SELECTORS, ...select(rest) });
}

/** Runs `use` with a folder that is nobody else's, and is gone afterwards. */
async function inPrivateFolder<T>(use: (folder: string) => Promise<T>): Promise<T> {
  const parent = spoolFolder();
  let folder: string;
  try {
    folder = fs.mkdtempSync(path.join(parent, '.bpfimg-'));
  } catch (error) {
    throw ioError(parent, 'make a folder in it', error);
  }
  unfinished(folder);
  try {
    return await use(folder);
  } finally {
    // Images that are still open can be read all the same.
    fs.rmSync(folder, { recursive: true, force: true });
    noLongerUnfinished(folder);
  }
}

async function openLiveMaps(selectors: Selectors, types: MapTypes, io: Io, sys?: Sys): Promise<Dump> {
  const kernel = sys ?? (await openSys(types));
  const live = LiveMaps.look(kernel);
  const find = (id: number) => live.maps.find((map) => map.id === id);
  const progress = new Progress(io);
  return inPrivateFolder(async (folder) => {
    const dump = path.join(folder, 'live');
    try {
      await capture(kernel, live.select(selectors), dump, types, {
        lenient: true,
        find: (id) => find(id) ?? LiveMaps.look(kernel).maps.find((map) => map.id === id),
        progress: (doing) => progress.update(doing),
      });
    } finally {
      progress.end();
    }
    return openDump(dump);
  });
}

/** Owns `given`. */
async function openFile(given: Input, types: MapTypes): Promise<Dump> {
  const input = given.size === undefined ? await aside(given) : given;
  if (!(await isJson(input))) return openImage(input);
  try {
    return await inPrivateFolder(async (folder) => {
      if (await isDocument(input)) {
        const dump = path.join(folder, 'document');
        await encodeDocument(input, dump, false, types);
        return openDump(dump);
      }
      const image = path.join(folder, 'image');
      const out = await openOutput(image);
      try {
        await encodeImage(input, out);
        await out.commit();
      } catch (error) {
        await out.abort();
        throw error;
      }
      return openImage({ ...(await openInput(image)), name: input.name });
    });
  } finally {
    input.close();
  }
}

async function openImage(input: Input): Promise<Dump> {
  const opened = await openImageSource(input);
  if (opened.dump !== undefined) return opened.dump;
  opened.input.close();
  const message = `a ${opened.kind.name} image has no BPF maps to compare`;
  throw new BpfimgError('unsupported', message, { subject: opened.input.name });
}

/** Whether an input is JSON: no image begins as an object does. */
async function isJson(input: Input): Promise<boolean> {
  const bytes = Buffer.alloc(256);
  const got = await input.read(bytes, 0);
  return /^\s*\{/.test(bytes.toString('latin1', 0, got));
}

/** Whether JSON is a maps document, and not that of one image; what is neither is left to be explained. */
async function isDocument(input: Input): Promise<boolean> {
  const reader = new JsonReader(input);
  for await (const name of reader.members()) {
    if (name === 'format' || name === 'maps') return true;
    if (name === 'magic' || name === 'entries') return false;
    await reader.skip();
  }
  return false;
}
