/** JSON as a source: a maps document becomes a dump, the JSON of one image that image. */
import * as path from 'node:path';
import { encodeDocument } from '../dump/encode.js';
import { folderFiles } from '../dump/files.js';
import type { Input } from '../io/input.js';
import { Spool, setAside } from '../io/spool.js';
import { encodeImage } from '../json/encode.js';
import { JsonReader } from '../json/reader.js';
import { privateFolder } from './private.js';
import { imageSource, type Source, type SourceHost } from './source.js';

/** Owns `given`. */
export async function openDocument(given: Input, host: SourceHost): Promise<Source> {
  const input = given.size === undefined ? await setAside(given) : given;
  try {
    return (await isMapsDocument(input)) ? await mapsDocument(input, host) : await imageDocument(input);
  } finally {
    input.close();
  }
}

/** Whether JSON is a maps document, and not that of one image; what is neither is left to be explained. */
async function isMapsDocument(input: Input): Promise<boolean> {
  const reader = new JsonReader(input);
  for await (const name of reader.members()) {
    if (name === 'format' || name === 'maps') return true;
    if (name === 'magic' || name === 'entries') return false;
    await reader.skip();
  }
  return false;
}

async function mapsDocument(input: Input, host: SourceHost): Promise<Source> {
  const folder = privateFolder();
  try {
    const dump = path.join(folder.path, 'dump');
    await encodeDocument(input, dump, false, await host.types());
    const files = folderFiles(dump, input.name);
    return { kind: 'dump', name: input.name, form: 'document', files, close: () => folder.close() };
  } catch (error) {
    folder.close();
    throw error;
  }
}

async function imageDocument(input: Input): Promise<Source> {
  const spool = new Spool();
  try {
    await encodeImage(input, spool);
    return imageSource({ ...spool.input(input.name), close: () => spool.close() }, 'document');
  } catch (error) {
    spool.close();
    throw error;
  }
}
