/**
 * An object file as a source: the maps that its program defines, as a loader (libbpf) would create them, without items.
 */
import { Buffer } from 'node:buffer';
import { type MapDefinition, readBtfFile } from '../btf/elf.js';
import { SMALLEST_PAGE } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import { bufferInput, Cursor, type Input } from '../io/input.js';
import { MAP_FLAG, NAME_MOST } from '../kernel/flags.js';
import { possibleCpus } from '../kernel/proc.js';
import { takenEntries } from '../kernel/rules.js';
import { type MapTypes, mapFlagNames } from '../maptype.js';
import type { JsonObject } from '../value.js';
import { mapsDocument } from './document.js';
import type { DumpSource, SourceHost } from './source.js';

/** Largest object file that is read into memory. */
const MOST = 256 * 1024 * 1024;

/** Where libbpf pins maps with LIBBPF_PIN_BY_NAME by default. */
const PIN_FOLDER = '/sys/fs/bpf';

/** The only BTF object. */
const BTF_ID = 1;

/** Owns `given`. */
export async function openObject(given: Input, host: SourceHost): Promise<DumpSource> {
  let bytes: Uint8Array;
  try {
    bytes = await new Cursor(given).take(MOST);
  } finally {
    given.close();
  }
  const { name } = given;
  const { btf, maps } = readBtfFile(bytes, { name });
  // Its values would be read the wrong way round, and the kernel refuses its types.
  btf.checkByteOrder();
  if (maps.length === 0) throw new BpfimgError('notFound', 'it defines no maps', { subject: name });
  const types = await host.types();
  const program = name.replace(/^.*\//, '').replace(/\..*$/s, '');
  const document: JsonObject = {
    format: 'bpfimg-maps/1',
    btf: [{ btf_id: BTF_ID, name: '', blob: Buffer.from(btf.bytes).toString('base64') }],
    maps: maps.map((map, i) => mapOf(map, i + 1, program, types)),
  };
  return mapsDocument(bufferInput(Buffer.from(JSON.stringify(document)), name), host, 'object');
}

function mapOf(map: MapDefinition, id: number, program: string, types: MapTypes): JsonObject {
  const { type: number = 0, keySize = 0, valueSize = 0, extra = 0, inner } = map;
  const type = types.get(number);
  const entries = map.maxEntries ?? 0;
  const isData = map.name.startsWith('.');
  const meta: JsonObject = { btf_id: BTF_ID, btf_key_type_id: map.keyType, btf_value_type_id: map.valueType };
  if (map.pinned === true) meta.pins = [`${PIN_FOLDER}/${map.name}`];
  if (inner !== undefined) {
    meta.inner = {
      map_type: inner.type ?? 0,
      key_size: inner.keySize ?? 0,
      value_size: inner.valueSize ?? 0,
      max_entries: inner.maxEntries ?? 0,
      map_flags: inner.flags ?? 0,
      btf_key_type_id: inner.keyType,
      btf_value_type_id: inner.valueType,
    };
  }
  // User space reads and writes global variables through memory.
  const flags = isData ? MAP_FLAG.MMAPABLE | (isReadOnly(map.name) ? MAP_FLAG.RDONLY_PROG : 0) : (map.flags ?? 0);
  return {
    map_id: id,
    name: isData ? dataName(program, map.name) : map.name,
    type: type.name,
    key_size: keySize,
    // Definitions of maps of maps, and of program arrays, need not say it.
    value_size: valueSize === 0 && (type.holdsReferences === true || inner !== undefined) ? 4 : valueSize,
    max_entries:
      entries === 0 && type.entryPerCpu === true ? possibleCpus() : takenEntries(type, entries, SMALLEST_PAGE),
    map_flags: mapFlagNames(flags),
    map_extra: `0x${extra.toString(16)}`,
    frozen: false,
    ifindex: 0,
    files: [{ id, flags: 'O_RDWR', fds: [] }],
    meta,
    items: [],
  };
}

/** Sections that the program only reads. */
function isReadOnly(section: string): boolean {
  return /^\.(rodata|kconfig)/.test(section);
}

/** What libbpf calls the map of a data section: as much of the program's name as fits before it. */
function dataName(program: string, section: string): string {
  const room = NAME_MOST - Math.max(section.length, '.rodata'.length);
  return (program.slice(0, Math.max(0, room)) + section).slice(0, NAME_MOST);
}
