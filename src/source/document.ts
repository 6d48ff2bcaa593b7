/**
 * JSON as a source: a maps document becomes a dump, the JSON of one image becomes that image. The items that bpftool
 * prints become a data image, or the items of a copy of another map.
 */
import * as path from 'node:path';
import { encodeDocument } from '../dump/encode.js';
import { folderFiles } from '../dump/files.js';
import { IMAGE, PLUGIN_IMAGE, PLUGIN_TABLE } from '../dump/model.js';
import { BpfimgError } from '../errors.js';
import { type Input, sliceInput } from '../io/input.js';
import { Spool, setAside } from '../io/spool.js';
import { encodeImage } from '../json/encode.js';
import { JsonReader } from '../json/reader.js';
import { privateFolder } from './private.js';
import {
  type DumpSource,
  type ImageSource,
  imageSource,
  mapsOf,
  openSource,
  type Source,
  type SourceHost,
} from './source.js';

/** Owns `given`. */
export async function openDocument(given: Input, host: SourceHost): Promise<Source> {
  const input = given.size === undefined ? await setAside(given) : given;
  try {
    const reader = new JsonReader(input);
    // bpftool prints a list.
    if ((await reader.peek()) === 0x5b) return await bpftoolDocument(input, host);
    return (await isMapsDocument(reader)) ? await mapsDocument(input, host) : await imageDocument(input, encodeImage);
  } finally {
    input.close();
  }
}

/** Whether JSON is a maps document rather than one image. If it is neither, the image's decoder explains the error. */
async function isMapsDocument(reader: JsonReader): Promise<boolean> {
  for await (const name of reader.members()) {
    if (name === 'format' || name === 'maps') return true;
    if (name === 'magic' || name === 'entries') return false;
    await reader.skip();
  }
  return false;
}

/** @param form what the document was made from */
export async function mapsDocument(
  input: Input,
  host: SourceHost,
  form: 'document' | 'object' = 'document',
): Promise<DumpSource> {
  const folder = privateFolder();
  try {
    const dump = path.join(folder.path, 'dump');
    await encodeDocument(input, dump, false, await host.types());
    const files = folderFiles(dump, input.name);
    return { kind: 'dump', name: input.name, form, files, close: () => folder.close() };
  } catch (error) {
    folder.close();
    throw error;
  }
}

async function imageDocument(input: Input, encode: (input: Input, out: Spool) => Promise<void>): Promise<ImageSource> {
  const spool = new Spool();
  try {
    await encode(input, spool);
    return imageSource({ ...spool.input(input.name), close: () => spool.close() }, 'document');
  } catch (error) {
    spool.close();
    throw error;
  }
}

/** Items alone, or with the attributes of the map that {@link SourceHost.like} names. */
async function bpftoolDocument(input: Input, host: SourceHost): Promise<Source> {
  const { encodeBpftool } = await import('../json/bpftool.js');
  const named = host.like?.();
  if (named === undefined) return imageDocument(input, (text, out) => encodeBpftool(text, 0, out));
  const like = await openSource(named, { ...host, like: () => undefined });
  try {
    if (like.kind === 'image') throw notOneMap(like, 'an image without the others of its dump');
    const mapId = await onlyMap(like);
    const items = await imageDocument(input, (text, out) => encodeBpftool(text, mapId, out));
    return withItems(like, items);
  } catch (error) {
    like.close();
    throw error;
  }
}

/** The id of the map in a dump with one map. */
async function onlyMap(like: DumpSource): Promise<number> {
  const dump = await mapsOf(like);
  try {
    const [map] = dump.maps;
    if (map !== undefined && dump.maps.length === 1 && map.files.length > 0) return map.mapId;
    throw notOneMap(like, `${dump.maps.length} maps`);
  } finally {
    dump.close();
  }
}

function notOneMap({ name }: Source, found: string): BpfimgError {
  return new BpfimgError('usage', `found ${found}, expected one map, such as pinned:PATH or id:N`, {
    subject: `--like ${name}`,
  });
}

/** A dump of one map with other items. Owns both. */
function withItems(like: DumpSource, items: ImageSource): DumpSource {
  const { files } = like;
  const data = files.names().has(PLUGIN_TABLE) ? PLUGIN_IMAGE.data : IMAGE.data;
  const { input } = items;
  return {
    kind: 'dump',
    name: items.name,
    form: 'document',
    files: {
      name: items.name,
      nameOf: (file) => (file === data ? items.name : files.nameOf(file)),
      names: () => files.names().add(data),
      size: (file) => (file === data ? input.size : files.size(file)),
      open: (file) => (file === data ? sliceInput(input, 0, input.size as number, items.name) : files.open(file)),
      atOneTime: (read) => files.atOneTime(read),
    },
    close() {
      items.close();
      like.close();
    },
  };
}
