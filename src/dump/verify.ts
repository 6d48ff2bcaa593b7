/** Says what is wrong or doubtful in a dump, each thing with a code that a script can match. */
import { hex } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import type { JsonObject } from '../image/message.js';
import { ImageReader } from '../image/reader.js';
import { unknownBytes } from '../image/wire.js';
import { Cursor, type Input } from '../io/input.js';
import { pause } from '../io/pause.js';
import { isKept, type MapTypes } from '../maptype.js';
import { duplicateKeys } from './keys.js';
import {
  type Dump,
  type DumpMap,
  dataShape,
  type FileMessage,
  IMAGE,
  type ImageNames,
  type MapData,
  type MapFile,
  sameData,
} from './model.js';
import type { TypeOptions } from './types.js';

/** Codes of findings: `error` means that a restore fails or restores something else. */
export const FINDINGS = {
  'bad-image': ['error', 'an image breaks the format'],
  'trailing-bytes': ['error', 'bytes behind the last entry that are no entry'],
  'not-divisible': ['error', 'totals of a data entry are not count equal parts'],
  'key-size': ['error', 'keys in the data are not key_size bytes'],
  'value-size': ['error', 'values in the data are not what value_size and the type say'],
  'type-key-size': ['error', 'key_size is not what the map type has'],
  'too-many-items': ['error', 'more items than max_entries'],
  'no-file': ['error', 'data of a map that no file entry describes'],
  'no-data': ['warning', 'a map without a data entry: its contents are not in the dump'],
  'copies-differ': ['error', 'several data entries of one map with different bytes'],
  'files-differ': ['error', 'two open files of one map disagree on its attributes'],
  'duplicate-file': ['error', 'two file entries have one id'],
  'lost-fd': ['error', 'an fd leads to a BPF map file that no image describes'],
  'unheld-file': ['warning', 'an open file of a map that no fd leads to'],
  'plugin-table': ['error', 'the table of the CRIU plugin is missing or breaks its form'],
  'plugin-file': [
    'error',
    'a line of that table is of no open file that a plugin has, or of one that has a line already',
  ],
  'plugin-map': ['error', 'a line of that table is of a map that bpfimg-file.img does not have, or has twice'],
  'plugin-lost': ['error', 'an open file that only our plugin can have, and no line of the table is of it'],
  'plugin-mixed': ['error', "open files of maps of CRIU's own in a dump of the plugin"],
  'plugin-stale': ['warning', 'an image or table that nothing reads: the dump is not of the kind it belongs to'],
  'duplicate-key': ['error', 'one key stands twice: the later value wins on restore'],
  'index-range': ['error', 'an array index at or above max_entries'],
  'index-order': ['warning', 'array indexes are not in ascending order'],
  'index-missing': ['warning', 'an array with fewer items than max_entries: the rest restores as zeros'],
  'btf-missing': ['warning', 'types of a map in a BTF object that the dump does not have'],
  'bad-btf': ['error', 'a BTF object that makes no sense'],
  'unknown-btf': ['warning', 'a BTF object of a kind that this bpfimg does not know'],
  'bad-type': ['error', 'the type of keys or values is none in its BTF object, or one without values'],
  'btf-key-size': ['error', 'the type of the keys has another size than key_size'],
  'btf-value-size': ['error', 'the type of the values has another size than value_size'],
  'criu-type': ['warning', 'a map type that CRIU does not dump by itself'],
  'unknown-type': ['warning', 'a map type that this bpfimg does not know'],
  'criu-splits': ['warning', 'several open files of one map: CRIU restores as many separate maps'],
  'map-extra': ['warning', 'map_extra, which CRIU does not restore'],
  'unknown-field': ['warning', 'protobuf fields that this bpfimg does not know'],
  'odd-encoding': ['warning', 'a message that is encoded in an unusual way'],
} as const satisfies Record<string, readonly ['error' | 'warning', string]>;

export type FindingCode = keyof typeof FINDINGS;

/** One thing that `verify` found. */
export interface Finding {
  readonly code: FindingCode;
  readonly severity: 'error' | 'warning';
  /** Image it stands in. */
  readonly image: string;
  readonly map_id?: number;
  readonly name?: string;
  /** The whole sentence. */
  readonly message: string;
}

/** Whether a file stands for a map that the plugin captured because another one leads to it. */
function neverOpen({ plugin }: Dump, file: MapFile): boolean {
  return plugin !== undefined && file.image !== IMAGE.files && !plugin.files.has(file.message.id);
}

/** Findings of one kind that are told one by one; more are counted. */
const TOLD = 5;

/** Collects findings while a dump is read and examined. */
export class Verifier {
  readonly findings: Finding[] = [];
  #names: ImageNames = IMAGE;
  /** What is worth saying and no finding. */
  readonly notes: string[] = [];

  /** @param single name of the image, when one image is examined and not a folder */
  constructor(
    readonly types: MapTypes,
    readonly single?: string,
  ) {}

  /** For {@link openDump}: a broken image is a finding, and the others are still looked at. */
  readonly onBroken = (error: BpfimgError, image: string): void => {
    const code = error.code !== undefined && error.code in FINDINGS ? (error.code as FindingCode) : 'bad-image';
    this.#add(code, image, undefined, error.message.replace(/^[^:]*: /, ''));
  };

  #add(code: FindingCode, image: string, map: DumpMap | undefined, message: string): void {
    const name = map?.files[0]?.message.map_name;
    this.findings.push({
      code,
      severity: FINDINGS[code][0],
      image: this.single ?? image,
      ...(map === undefined ? {} : { map_id: map.mapId }),
      ...(name === undefined ? {} : { name }),
      message,
    });
  }

  /** Reads an image that has no maps in it to its end, which is all there is to check. */
  async readThrough(input: Input): Promise<void> {
    try {
      const entries = (await ImageReader.open(input)).entries();
      while (!(await entries.next()).done);
    } catch (error) {
      if (!(error instanceof BpfimgError)) throw error;
      this.onBroken(error, input.name);
    }
  }

  /**
   * Examines everything in `dump`.
   * @param types those that its maps should have, besides what the dump says itself
   */
  async check(dump: Dump, types: TypeOptions = {}): Promise<void> {
    this.#names = dump.names;
    const whole = dump.images.has(dump.names.files) || dump.images.has(dump.names.bpfmapFile);
    for (const file of dump.lost.files) {
      this.#add(
        'duplicate-file',
        file.image,
        undefined,
        `entry ${file.entry}: file id ${file.message.id} stands twice`,
      );
    }
    for (const { pid, fd, id } of dump.lost.fds) {
      this.#add(
        'lost-fd',
        dump.names.files,
        undefined,
        `fd ${fd} of process ${pid} is file ${id}, which no image describes`,
      );
    }
    for (const { code, image, message } of dump.lost.plugin) this.#add(code, image, undefined, message);
    for (const map of dump.maps) {
      this.#files(dump, map);
      if (dump.data !== undefined) await this.#data(dump.data, map, whole);
      else if (map.data.length === 0 && map.files.length > 0 && this.single === undefined) this.#noData(map);
    }
    const typed = dump.btf.size > 0 || dump.maps.some(({ meta }) => meta?.btf_id !== undefined);
    if (typed || types.btf !== undefined || (types.type?.length ?? 0) > 0) await this.#types(dump, types);
  }

  /** Compares types with the sizes of their maps. */
  async #types(dump: Dump, options: TypeOptions): Promise<void> {
    const { TypeFinder } = await import('./types.js');
    const finder = new TypeFinder(dump, options);
    await finder.checkObjects();
    for (const map of dump.maps) await finder.types(map);
    for (const { code, map, message } of finder.problems) {
      if (code === undefined) continue;
      // Sizes are the map's, wherever its types come from.
      const image = code.endsWith('-size') ? (map?.files[0]?.image ?? this.#names.data) : this.#names.meta;
      this.#add(code, map === undefined ? this.#names.btf : image, map, message);
    }
    const unused = finder.unused(dump.maps);
    if (unused !== undefined) this.notes.push(unused);
  }

  #noData(map: DumpMap): void {
    this.#add('no-data', this.#names.data, map, 'no data entry');
  }

  #files(dump: Dump, map: DumpMap): void {
    const [first, ...others] = map.files;
    if (first === undefined) return;
    const { message, image } = first;
    const type = this.types.get(message.map_type);
    if (!this.types.has(message.map_type)) {
      this.#add('unknown-type', image, map, `map type ${message.map_type}`);
    } else if (!type.criu && dump.plugin === undefined) {
      this.#add('criu-type', image, map, `type ${type.name}, CRIU dumps hash and array`);
    }
    const keySize = { index: 4, fd: 4, none: 0, bytes: undefined, prefix: undefined }[type.key];
    if (keySize !== undefined && message.key_size !== keySize) {
      this.#add('type-key-size', image, map, `key_size ${message.key_size}, ${type.name} has ${keySize}`);
    }
    const native = dump.plugin === undefined;
    if (native && message.map_extra !== undefined && BigInt(message.map_extra as number | bigint) !== 0n) {
      this.#add('map-extra', image, map, `map_extra 0x${(message.map_extra as number | bigint).toString(16)}`);
    }
    if (native && others.length > 0) {
      const ids = map.files.map((file) => file.message.id).join(', ');
      this.#add('criu-splits', image, map, `open files ${ids}: CRIU restores ${map.files.length} maps in its place`);
    }
    for (const other of others) this.#sameAttributes(map, first, other);
    for (const file of map.files) {
      this.#encoding(file.image, map, 'bpfmap_file_entry', file.message, `file ${file.message.id}`);
      // Only images of processes can say that nobody holds a file; that of an inner map was never open.
      if (!neverOpen(dump, file) && file.holders.length === 0 && dump.images.has('pstree.img')) {
        this.#add('unheld-file', file.image, map, `no fd leads to file ${file.message.id}`);
      }
    }
  }

  #sameAttributes(map: DumpMap, first: MapFile, other: MapFile): void {
    const own = new Set(['id', 'flags', 'pos', 'fown', 'mnt_id', '$raw']);
    const differing = Object.keys({ ...first.message, ...other.message }).filter(
      (name) => !own.has(name) && String(first.message[name] ?? 0) !== String(other.message[name] ?? 0),
    );
    if (differing.length === 0) return;
    const { message } = other;
    this.#add('files-differ', other.image, map, `file ${message.id} has another ${differing.join(', ')}`);
  }

  /** Says what a message has in `$raw`: fields without a name, or known ones in an unusual form. */
  #encoding(image: string, map: DumpMap, name: string, message: JsonObject, where: string): void {
    if (typeof message.$raw !== 'string') return;
    const unknown = unknownBytes(name, Buffer.from(message.$raw, 'hex'));
    if (unknown > 0) this.#add('unknown-field', image, map, `${where} has ${unknown} bytes of unknown fields`);
    else this.#add('odd-encoding', image, map, `${where} is encoded in another way than CRIU does`);
  }

  async #data(input: Input, map: DumpMap, whole: boolean): Promise<void> {
    const file = map.files[0]?.message;
    if (map.data.length === 0) this.#noData(map);
    else if (file === undefined && whole)
      this.#add('no-file', this.#names.data, map, 'no file entry describes this map');
    for (const [i, data] of map.data.entries()) {
      this.#encoding(this.#names.data, map, 'bpfmap_data_entry', data.entry.message, `entry ${data.entry.index}`);
      const last = map.data.at(-1) as MapData;
      const differs = data !== last && !(await sameData(input, data, last));
      if (differs) {
        const { index } = last.entry;
        this.#add(
          'copies-differ',
          this.#names.data,
          map,
          `entries ${data.entry.index} and ${index} differ, CRIU restores ${index}`,
        );
      }
      // What stands twice is told once.
      if (i === 0 || differs) await this.#items(input, map, data, file);
    }
  }

  async #items(input: Input, map: DumpMap, data: MapData, file: FileMessage | undefined): Promise<void> {
    const add = (code: FindingCode, message: string) =>
      this.#add(code, this.#names.data, map, `entry ${data.entry.index}: ${message}`);
    const { count, keysBytes, valuesBytes } = data;
    const { shape, oddKey, oddValue } = dataShape(data, file, this.types);
    if (shape === undefined) {
      add('not-divisible', `${keysBytes} bytes of keys and ${valuesBytes} of values for ${count} items`);
      return;
    }
    if (file === undefined) {
      await this.#duplicates(input, data, shape.keySize, add);
      return;
    }
    const type = this.types.get(file.map_type);
    const { kept } = type;
    if (kept === undefined ? oddKey : shape.keySize !== kept.key) {
      const expected = kept === undefined ? `key_size is ${file.key_size}` : `items of ${type.name} have ${kept.key}`;
      add('key-size', `keys of ${shape.keySize} bytes, ${expected}`);
    }
    if (kept === undefined ? oddValue : !isKept(type, kept.key, shape.valueSize, oddValue)) {
      const expected = type.perCpu
        ? `a multiple of ${Math.ceil(file.value_size / 8) * 8} (value_size ${file.value_size} for each CPU)`
        : kept?.value === 'page'
          ? 'pages'
          : (kept?.value ?? `value_size ${file.value_size}`);
      add('value-size', `values of ${shape.valueSize} bytes, expected ${expected}`);
    }
    if (file.max_entries > 0 && count > file.max_entries) {
      add('too-many-items', `${count} items, max_entries is ${file.max_entries}`);
    }
    const ordered = type.key === 'index' && shape.keySize === 4 && (await this.#indexes(input, data, file, add));
    if (type.dense && count < file.max_entries) add('index-missing', `${count} of ${file.max_entries} indexes`);
    if (!ordered) await this.#duplicates(input, data, shape.keySize, add);
  }

  /** Checks the indexes of an array; returns whether each is above the one before. */
  async #indexes(
    input: Input,
    data: MapData,
    file: FileMessage,
    add: (code: FindingCode, message: string) => void,
  ): Promise<boolean> {
    const { extraAt } = data.entry;
    const cursor = new Cursor(input, extraAt, extraAt + data.keysBytes);
    let before = -1;
    let unordered = 0;
    let outside = 0;
    for (let i = 0; i < data.count; ) {
      const ready = Math.floor((await cursor.fill(4)) / 4);
      if (ready === 0) break;
      for (const end = i + ready; i < end; i++, cursor.at += 4) {
        const index = cursor.view.getUint32(cursor.at, true);
        if (index <= before && unordered++ === 0) add('index-order', `item ${i} has index ${index}, after ${before}`);
        if (index >= file.max_entries && outside++ < TOLD) {
          add('index-range', `item ${i} has index ${index}, max_entries is ${file.max_entries}`);
        }
        before = index;
      }
      await pause();
    }
    if (outside > TOLD) add('index-range', `${outside - TOLD} more indexes outside`);
    return unordered === 0;
  }

  async #duplicates(
    input: Input,
    data: MapData,
    keySize: number,
    add: (code: FindingCode, message: string) => void,
  ): Promise<void> {
    const { extraAt } = data.entry;
    const found = await duplicateKeys(input, extraAt, data.count, keySize, TOLD + 1);
    for (const { first, index } of found.slice(0, TOLD)) {
      const at = extraAt + index * keySize;
      const key = await new Cursor(input, at, at + Math.min(keySize, 32)).take(Math.min(keySize, 32));
      add('duplicate-key', `items ${first} and ${index} have the key ${hex(key)}${keySize > 32 ? '…' : ''}`);
    }
    if (found.length > TOLD) add('duplicate-key', 'further keys stand twice');
  }
}
