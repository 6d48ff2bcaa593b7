/** Dumps of BPF maps built from values. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { blob, entry, image, scalar } from './images.js';

/** The message of an open file of a map, with the values a test cares for. */
export function mapFile(values: {
  id: number;
  map_id: number;
  type?: number;
  key?: number;
  value?: number;
  max?: number;
  flags?: number;
  name?: string;
  ifindex?: number;
}): Buffer {
  const fown = Buffer.concat([1, 2, 3, 4, 5].map((no) => scalar(no, 0)));
  const { id, map_id, type = 1, key = 4, value = 8, max = 16, flags = 0, name = 'm', ifindex = 0 } = values;
  return Buffer.concat([
    scalar(1, id),
    scalar(2, 2),
    scalar(3, 0),
    blob(4, fown),
    ...[type, key, value, map_id, max, flags, 4096].map((number, i) => scalar(5 + i, number)),
    scalar(12, 0),
    blob(13, Buffer.from(name, 'latin1')),
    scalar(14, ifindex),
  ]);
}

/** A files.img of map files. */
export function filesImage(...files: Buffer[]): Buffer {
  // A map file's id is its first field, in one byte here.
  const fileEntry = (message: Buffer) =>
    Buffer.concat([scalar(1, 19), scalar(2, message[1] as number), blob(21, message)]);
  return image('FILES', ...files.map((message) => entry(fileEntry(message))));
}

/** A bpfmap-file.img, as a capture makes it. */
export function mapsImage(...files: Buffer[]): Buffer {
  return image('BPFMAP_FILE', ...files.map((message) => entry(message)));
}

/** A folder with these images in it, gone after the test. */
export function folderOf(t: { testdir(): string }, images: Readonly<Record<string, Uint8Array>>): string {
  const folder = t.testdir();
  for (const [name, bytes] of Object.entries(images)) fs.writeFileSync(path.join(folder, name), bytes);
  return folder;
}

const PLUGIN_DUMP = {
  /** Messages of {@link mapFile}. */
  maps: [] as readonly Uint8Array[],
  /** The table. */
  table: '',
  /** Ids of open files that files.img leaves to plugins. */
  external: [] as readonly number[],
  /** Plugins that inventory.img lists; null for no list. */
  plugins: ['bpfimg'] as readonly string[] | null,
  /** Other entries of files.img. */
  others: [] as readonly Uint8Array[],
};

/** Images of a dump that the CRIU plugin has made, but for data. */
export function pluginDump(what: Partial<typeof PLUGIN_DUMP>): Record<string, Uint8Array> {
  const { maps, table, external, plugins, others } = { ...PLUGIN_DUMP, ...what };
  const fown = Buffer.concat([1, 2, 3, 4, 5].map((no) => scalar(no, 0)));
  const owner = (id: number) =>
    entry(Buffer.concat([scalar(1, 16), scalar(2, id), blob(15, scalar(1, id), blob(5, fown))]));
  const list = plugins === null ? [] : [blob(12, ...plugins.map((name) => blob(12, Buffer.from(name))))];
  return {
    'files.img': image('FILES', ...external.map(owner), ...others),
    'inventory.img': image('INVENTORY', entry(Buffer.concat([scalar(1, 2), ...list]))),
    'bpfimg-file.img': image('BPFMAP_FILE', ...maps.map((message) => entry(message))),
    'bpfimg-files.txt': Buffer.from(table),
  };
}

/** Images of a process with pid 1 that holds these: fds by number, each an open file's type and id. */
export function processOf(fds: Readonly<Record<number, readonly [type: number, id: number]>>): Record<string, Buffer> {
  const ids = Array.from({ length: 4 }, (_, i) => scalar(i + 1, 1));
  const held = Object.entries(fds).map(([fd, [type, id]]) =>
    entry(Buffer.concat([scalar(1, id), scalar(2, 0), scalar(3, type), scalar(4, Number(fd))])),
  );
  return {
    'pstree.img': image('PSTREE', entry(Buffer.concat([1, 2, 3, 4].map((no) => scalar(no, no === 2 ? 0 : 1))))),
    'ids-1.img': image('IDS', entry(Buffer.concat(ids))),
    'fdinfo-1.img': image('FDINFO', ...held),
    'core-1.img': image('CORE', entry(scalar(1, 0))),
    'mm-1.img': image('MM', entry(scalar(1, 0))),
    'fs-1.img': image('FS', entry(scalar(1, 0))),
    // Of no pages.
    'pagemap-1.img': image('PAGEMAP', entry(scalar(1, 1))),
  };
}
