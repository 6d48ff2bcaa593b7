/** Finds what is wrong or suspicious in a dump; each finding has a code that scripts can match. */

import { cpuStride, hex } from '../bytes.js';
import { captureReport } from '../dump/facts.js';
import { duplicateKeys } from '../dump/keys.js';
import {
  type Dump,
  type DumpMap,
  dataShape,
  IMAGE,
  type ImageNames,
  isCriu,
  type MapData,
  type MapFile,
  sameData,
} from '../dump/model.js';
import type { TypeOptions } from '../dump/types.js';
import { BpfimgError } from '../errors.js';
import { ImageReader } from '../image/reader.js';
import type { BpfmapFileEntry } from '../image/schema.gen.js';
import { unknownBytes } from '../image/wire.js';
import { Cursor, type Input } from '../io/input.js';
import { pause } from '../io/pause.js';
import { isBare, isImageItem, type MapTypes, reportText } from '../maptype.js';
import type { MigrationOptions } from '../migrate/migrate.js';
import type { Model } from '../replay/reshape.js';
import type { JsonObject } from '../value.js';
import { imageProblems } from './processes.js';

/** Codes of findings. `error` means that a restore fails, or restores something different. */
export const FINDINGS = {
  unfinished: ['error', 'inventory.img, which CRIU writes last, is missing or empty'],
  'missing-image': ['error', 'CRIU cannot restore a process because an image is missing'],
  'no-pages': ['warning', 'the memory of a process is not in the folder'],
  'bad-image': ['error', 'an image is not in the right format'],
  'trailing-bytes': ['error', 'bytes after the last entry that are not an entry'],
  'not-divisible': ['error', 'the data of a map does not divide into count equal items'],
  'key-size': ['error', 'keys in the data are not key_size bytes long'],
  'value-size': ['error', 'values in the data do not have the size that value_size and the type require'],
  attributes: ['error', 'no kernel creates a map with these attributes'],
  'too-many-items': ['error', 'more items than max_entries'],
  'no-file': ['error', 'no file entry describes a map'],
  migrate: ['error', 'with --like: the new program cannot use a map as it is, but `replay --like` migrates it'],
  'cannot-migrate': [
    'error',
    'with --like: the new program cannot use a map, and `replay --like` would lose something or needs further options',
  ],
  'no-counterpart': ['warning', 'with --like: the new program has no map of that name'],
  'no-data': ['warning', 'a map has no data entry: its contents are not in the dump'],
  'lost-data': ['error', 'a map of a CRIU dump has no data entry; CRIU writes one for each map'],
  'lost-inner': ['error', 'items refer to an inner map that is not in the dump'],
  captured: ['warning', 'the capture could not save everything of a map'],
  refused: ['error', 'replay refuses a map for a reason that no other finding gives'],
  'left-out': ['warning', 'replay cannot bring back everything of a map of this type'],
  'copies-differ': ['error', 'several data entries of one map have different bytes'],
  'files-differ': ['error', 'two open files of one map have different attributes'],
  'duplicate-file': ['error', 'two file entries have the same id'],
  'lost-fd': ['error', 'no image describes the BPF map file behind an fd'],
  'unheld-file': ['error', 'no fd leads to an open file of a map'],
  'plugin-table': ['error', 'the table of the CRIU plugin is missing or malformed'],
  'plugin-file': ['error', 'a line of that table names a file that no plugin has open, or that an earlier line names'],
  'plugin-map': ['error', 'a line of that table names a map that bpfimg-file.img does not have, or has twice'],
  'plugin-lost': ['error', 'the table has no line for an open file that only the bpfimg plugin can have dumped'],
  'plugin-mixed': ['error', 'a dump made with the plugin has map files that CRIU dumped itself'],
  'plugin-stale': ['warning', 'nothing reads this image or table: it belongs to another kind of dump'],
  'duplicate-key': ['error', 'a key occurs twice: a restore uses the later value'],
  'index-range': ['error', 'an array index is not below max_entries'],
  'index-order': ['warning', 'array indexes are not in ascending order'],
  'index-missing': ['warning', 'an array has fewer items than max_entries: the rest restores as zeros'],
  'lost-btf': ['error', 'the BTF object of a map is missing, and the plugin does not restore the map without it'],
  'btf-missing': ['warning', 'the BTF object of a map is not in the dump'],
  'bad-btf': ['error', 'a BTF object is invalid'],
  'unknown-btf': ['warning', 'this bpfimg does not know this kind of BTF object, or it has the other byte order'],
  'bad-type': ['error', 'the type of keys or values is not in its BTF object, or has no values'],
  'btf-key-size': ['error', 'the size of the key type is not key_size'],
  'btf-value-size': ['error', 'the size of the value type is not value_size'],
  'criu-type': ['warning', 'CRIU itself does not dump maps of this type'],
  'unknown-type': ['warning', 'this bpfimg does not know the map type'],
  'criu-splits': ['warning', 'a map has several open files: CRIU restores each as a separate map'],
  'map-extra': ['warning', 'CRIU does not restore map_extra'],
  'unknown-field': ['warning', 'this bpfimg does not know some protobuf fields'],
  'odd-encoding': ['warning', 'a message is encoded in an unusual way'],
} as const satisfies Record<string, readonly ['error' | 'warning', string]>;

/** A code as scripts match it: a promise, like the names of commands. */
export type FindingCode = keyof typeof FINDINGS;

/** One error or warning. */
export interface Finding {
  readonly code: FindingCode;
  readonly severity: 'error' | 'warning';
  /** The image it is about. */
  readonly image: string;
  readonly map_id?: number;
  readonly name?: string;
  /** The whole sentence. */
  readonly message: string;
}

/** Whether a file entry describes an inner map that nobody had open, captured by the plugin with its outer map. */
function neverOpen({ plugin }: Dump, file: MapFile): boolean {
  return plugin !== undefined && file.image !== IMAGE.files && !plugin.files.has(file.message.id);
}

/** Why a replay would refuse a map, or lose part of it. */
interface Refusals {
  /** Attributes that no kernel accepts. */
  readonly asked: readonly string[];
  readonly lost?: string | undefined;
  readonly refused?: string | undefined;
  /** What it would lose. */
  readonly left?: string | undefined;
}

async function refusals(dump: Dump, map: DumpMap, file: BpfmapFileEntry, types: MapTypes): Promise<Refusals> {
  const { mapFacts, mapSpec, needsOf, planMap, takesNoTypes } = await import('../replay/plan.js');
  const { createProblems, fillForeseen, lostInner, noReplay } = await import('../replay/foresight.js');
  const problems = (plan: Parameters<typeof createProblems>[0]) => {
    const nul = !file.map_name.includes('\0') ? [] : ['the name contains a NUL byte, which ends it'];
    return [...createProblems(plan), ...nul];
  };
  try {
    // It is no fault of the dump if this machine has another number of CPUs.
    const planned = planMap(dump, map, types, { cpus: 1, perCpu: 'first' });
    const plan = { ...planned, ...(await needsOf(dump, planned, types)) };
    const asked = problems(plan);
    if (plan.missing.length > 0) return { asked, lost: lostInner(plan.missing) };
    if (asked.length > 0) return { asked };
    if (plan.plugin.replay === undefined) return { asked, refused: noReplay(plan.type) };
    const { problems: refused, report } = await fillForeseen(plan);
    const untyped = plan.lacks.filter((what) => what === takesNoTypes(plan.type));
    const left = [...untyped, ...(report.kind === 'full' ? [] : [report.why])].join('; ');
    return { asked, left, ...(refused.length === 0 ? {} : { refused: refused.join('; ') }) };
  } catch (error) {
    if (!(error instanceof BpfimgError)) throw error;
    const facts = mapFacts(map, types);
    const btf = facts.types && dump.btf.get(facts.types.btf);
    const asked = problems({
      spec: mapSpec(file, types),
      type: types.get(file.map_type),
      facts,
      btf,
      inner: new Map(),
    });
    return { asked, refused: error.textAbout(dump.name) };
  }
}

/** How many findings of one kind are reported one by one; the rest are counted. */
const LISTED_FINDINGS = 5;

/** Collects findings while a dump is read and examined. */
export class Verifier {
  readonly findings: Finding[] = [];
  /** Maps with an error. */
  readonly #faulty = new Set<number>();
  #names: ImageNames = IMAGE;
  /** Worth a note, but not a finding. */
  readonly notes: string[] = [];

  /** @param single name of the image, if a single image is examined instead of a folder */
  constructor(
    readonly types: MapTypes,
    readonly single?: string,
  ) {}

  /** For {@link openDump}: a broken image becomes a finding, and the others are still checked. */
  readonly onBroken = (error: BpfimgError, image: string): void => {
    const code = error.code !== undefined && error.code in FINDINGS ? (error.code as FindingCode) : 'bad-image';
    this.#add(code, image, undefined, error.text);
  };

  #add(code: FindingCode, image: string, map: DumpMap | undefined, message: string): void {
    const name = map?.files[0]?.message.map_name;
    if (map !== undefined && FINDINGS[code][0] === 'error') this.#faulty.add(map.mapId);
    this.findings.push({
      code,
      severity: FINDINGS[code][0],
      image: this.single ?? image,
      ...(map === undefined ? {} : { map_id: map.mapId }),
      ...(name === undefined ? {} : { name }),
      message,
    });
  }

  /** Examines whether maps that are like those of `model` could take the place of the dump's. */
  async compare(dump: Dump, model: Model, asked: MigrationOptions & { readonly cpus: number }): Promise<void> {
    const { reuseFindings } = await import('./reuse.js');
    const found = await reuseFindings(dump, model, this.types, asked);
    const others = new Set(found.filter(({ code }) => code === 'no-counterpart').map(({ map }) => map));
    for (const map of dump.maps) if (!others.has(map)) this.#forget(map.mapId);
    for (const { map, code, message } of found) {
      this.#add(code, map.files[0]?.image ?? dump.names.bpfmapFile, map, message);
    }
  }

  /** Removes what is only about making a map as the dump has it. */
  #forget(id: number): void {
    const own = ({ code, map_id }: Finding) => map_id === id && (code === 'attributes' || code === 'captured');
    for (let i = this.findings.length - 1; i >= 0; i--)
      if (own(this.findings[i] as Finding)) this.findings.splice(i, 1);
  }

  /** Reads an image without maps to its end; there is nothing else to check in it. */
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
   * @param types the types that its maps should have, besides those in the dump
   */
  async check(dump: Dump, types: TypeOptions = {}): Promise<void> {
    this.#names = dump.names;
    for (const file of dump.lost.files) {
      this.#add(
        'duplicate-file',
        file.image,
        undefined,
        `entry ${file.entry}: file id ${file.message.id} occurs twice`,
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
    for (const { code, image, message } of await imageProblems(dump)) this.#add(code, image, undefined, message);
    for (const map of dump.maps) {
      if (map.files.length === 0 && this.single === undefined) {
        const image = map.data.length > 0 ? this.#names.data : this.#names.meta;
        this.#add('no-file', image, map, 'no file entry describes this map');
      }
      this.#files(dump, map);
      if (map.data.length === 0 && map.files.length > 0 && this.single === undefined) this.#noData(dump, map);
      if (dump.data !== undefined) await this.#data(dump.data, map);
      await this.#plan(dump, map);
    }
    const typed = dump.btf.size > 0 || dump.maps.some(({ meta }) => meta?.btf_id !== undefined);
    if (typed || types.btf !== undefined || (types.type?.length ?? 0) > 0) await this.#types(dump, types);
  }

  /** Compares types with the sizes of their maps. */
  async #types(dump: Dump, options: TypeOptions): Promise<void> {
    const { TypeFinder } = await import('../dump/types.js');
    const finder = new TypeFinder(dump, this.types, options);
    await finder.checkObjects();
    for (const map of dump.maps) await finder.types(map);
    for (const { code, map, message } of finder.problems) {
      if (code === undefined) continue;
      // A size is an attribute of the map, wherever its types come from.
      const image = code.endsWith('-size') ? (map?.files[0]?.image ?? this.#names.data) : this.#names.meta;
      const lost = code === 'btf-missing' && dump.plugin !== undefined;
      this.#add(lost ? 'lost-btf' : code, map === undefined ? this.#names.btf : image, map, message);
    }
    const unused = finder.unused(dump.maps);
    if (unused !== undefined) this.notes.push(unused);
  }

  #noData(dump: Dump, map: DumpMap): void {
    // If the map could not be captured, it has no data, and another finding says so.
    if (isBare(captureReport(map.meta))) return;
    this.#add(isCriu(dump.present) ? 'lost-data' : 'no-data', this.#names.data, map, 'no data entry');
  }

  /** Adds what the plan of a replay would refuse or lose. */
  async #plan(dump: Dump, map: DumpMap): Promise<void> {
    const [file] = map.files;
    if (file === undefined) return;
    const captured = captureReport(map.meta);
    if (captured.kind !== 'full') this.#add('captured', this.#names.meta, map, reportText(captured));
    const { asked, lost, refused, left } = await refusals(dump, map, file.message, this.types);
    if (asked.length > 0) this.#add('attributes', file.image, map, asked.join('; '));
    if (lost !== undefined) this.#add('lost-inner', this.#names.data, map, lost);
    // Wrong items have findings of their own.
    if (this.#faulty.has(map.mapId)) return;
    if (refused !== undefined) this.#add('refused', file.image, map, refused);
    // If its items were not captured, nothing else can be left out.
    else if (left !== undefined && left !== '' && !isBare(captured)) {
      this.#add('left-out', this.#names.data, map, left);
    }
  }

  #files(dump: Dump, map: DumpMap): void {
    const [first, ...others] = map.files;
    if (first === undefined) return;
    const { message, image } = first;
    const type = this.types.get(message.map_type);
    // Only CRIU's own restore has these limits.
    const native = isCriu(dump.present) && dump.plugin === undefined;
    if (this.types.row(message.map_type) === undefined) {
      this.#add('unknown-type', image, map, `map type ${message.map_type}`);
    } else if (!type.criu && native) {
      this.#add('criu-type', image, map, `type ${type.name}; CRIU dumps only hash and array`);
    }
    if (native && message.map_extra !== undefined && BigInt(message.map_extra) !== 0n) {
      this.#add('map-extra', image, map, `map_extra 0x${(message.map_extra).toString(16)}`);
    }
    if (native && others.length > 0) {
      const ids = map.files.map((file) => file.message.id).join(', ');
      this.#add('criu-splits', image, map, `open files ${ids}: CRIU restores ${map.files.length} separate maps`);
    }
    for (const other of others) this.#sameAttributes(map, first, other);
    for (const file of map.files) {
      this.#encoding(file.image, map, 'bpfmap_file_entry', file.message, `file ${file.message.id}`);
      // Only images of processes can show that nobody holds a file. The file of an inner map was never open, and a
      // file in flight in a socket is in no process's table.
      const held = file.holders.length > 0 || neverOpen(dump, file) || dump.present.has('sk-queues.img');
      if (!held && dump.images.has('pstree.img')) {
        this.#add('unheld-file', file.image, map, `no fd leads to file ${file.message.id}`);
      }
    }
  }

  #sameAttributes(map: DumpMap, first: MapFile, other: MapFile): void {
    // Each open file has its own of these, or they are measured anew each time.
    const own = new Set(['id', 'flags', 'pos', 'fown', 'mnt_id', 'memlock', '$raw']);
    const [one, another]: readonly [JsonObject, JsonObject] = [first.message, other.message];
    const differing = Object.keys({ ...one, ...another }).filter(
      (name) => !own.has(name) && String(one[name] ?? 0) !== String(another[name] ?? 0),
    );
    if (differing.length === 0) return;
    const { message } = other;
    this.#add('files-differ', other.image, map, `file ${message.id} has a different ${differing.join(', ')}`);
  }

  /** Reports what a message has in `$raw`: unknown fields, or known ones in an unusual encoding. */
  #encoding(image: string, map: DumpMap, name: string, message: JsonObject, where: string): void {
    if (typeof message.$raw !== 'string') return;
    const unknown = unknownBytes(name, Buffer.from(message.$raw, 'hex'));
    if (unknown > 0) this.#add('unknown-field', image, map, `${where} has ${unknown} bytes of unknown fields`);
    else this.#add('odd-encoding', image, map, `${where} is not encoded the way CRIU does it`);
  }

  async #data(input: Input, map: DumpMap): Promise<void> {
    const file = map.files[0]?.message;
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
          `entries ${data.entry.index} and ${index} differ; CRIU restores ${index}`,
        );
      }
      // Equal copies are checked once.
      if (i === 0 || differs) await this.#items(input, map, data, file);
    }
  }

  async #items(input: Input, map: DumpMap, data: MapData, file: BpfmapFileEntry | undefined): Promise<void> {
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
    const { imageItem: kept } = type;
    // Without items there are no sizes to compare.
    if (count > 0 && (kept === undefined ? oddKey : shape.keySize !== kept.key)) {
      const expected =
        kept === undefined ? `key_size is ${file.key_size}` : `${type.name} items have keys of ${kept.key}`;
      add('key-size', `keys have ${shape.keySize} bytes, but ${expected}`);
    }
    if (count > 0 && (kept === undefined ? oddValue : !isImageItem(type, kept.key, shape.valueSize, oddValue))) {
      const expected = type.perCpu
        ? `a multiple of ${cpuStride(file.value_size)} (value_size ${file.value_size} for each CPU)`
        : kept?.value === 'page'
          ? 'whole pages'
          : (kept?.value ?? `value_size ${file.value_size}`);
      add('value-size', `values have ${shape.valueSize} bytes, expected ${expected}`);
    }
    // In an array, extra items are duplicates or out of range: see below.
    const indexed = type.key === 'index' && shape.keySize === 4;
    if (file.max_entries > 0 && count > file.max_entries && !indexed) {
      add('too-many-items', `${count} items, but max_entries is ${file.max_entries}`);
    }
    const ordered = indexed && (await this.#indexes(input, data, file, add));
    if (type.dense && count < file.max_entries) add('index-missing', `only ${count} of ${file.max_entries} indexes`);
    if (!ordered) await this.#duplicates(input, data, shape.keySize, add);
  }

  /** Checks the indexes of an array; returns whether they ascend. */
  async #indexes(
    input: Input,
    data: MapData,
    file: BpfmapFileEntry,
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
        if (index >= file.max_entries && outside++ < LISTED_FINDINGS) {
          add('index-range', `item ${i} has index ${index}, but max_entries is ${file.max_entries}`);
        }
        before = index;
      }
      await pause();
    }
    if (outside > LISTED_FINDINGS) add('index-range', `${outside - LISTED_FINDINGS} more indexes out of range`);
    return unordered === 0;
  }

  async #duplicates(
    input: Input,
    data: MapData,
    keySize: number,
    add: (code: FindingCode, message: string) => void,
  ): Promise<void> {
    const { extraAt } = data.entry;
    const found = await duplicateKeys(input, extraAt, data.count, keySize, LISTED_FINDINGS + 1);
    for (const { first, index } of found.slice(0, LISTED_FINDINGS)) {
      const at = extraAt + index * keySize;
      const key = await new Cursor(input, at, at + Math.min(keySize, 32)).take(Math.min(keySize, 32));
      add('duplicate-key', `items ${first} and ${index} have the key ${hex(key)}${keySize > 32 ? '…' : ''}`);
    }
    if (found.length > LISTED_FINDINGS) add('duplicate-key', 'more keys occur twice');
  }
}
