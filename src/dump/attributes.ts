/** The attributes of a map, as a maps document and as an image's message spell them. */

import { PointerError } from '../errors.js';
import { flagText, parseFlags } from '../image/display.js';
import type { BpfmapFileEntry } from '../image/schema.gen.js';
import { COMPACT, print } from '../json/print.js';
import { type MapTypes, mapFlagNames, parseMapFlags } from '../maptype.js';
import type { Json, JsonObject } from '../value.js';
import type { DumpMap, MapFile } from './model.js';

/** One attribute: its field in the message, and its spelling in a document. */
interface Attribute {
  readonly member: string;
  readonly field: keyof BpfmapFileEntry;
  show(value: Json, types: MapTypes): Json;
  /** The value for the message; undefined if the document's value is invalid. */
  parse(value: Json, types: MapTypes): Json | undefined;
  /** What an absent field means. */
  readonly absent?: Json;
}

/** Integers beyond 2^53-1 are decimal text in a document. */
function wide(value: Json): Json {
  return typeof value === 'bigint' ? String(value) : value;
}

const same = (value: Json) => value;
/** Parses the text of an integer, so that `0x10` and 16 compare equal. */
const number = (value: Json) =>
  typeof value === 'string' && /^(0x[0-9a-fA-F]{1,16}|[0-9]{1,20})$/.test(value) ? BigInt(value) : value;
const plain = (member: string, field = member as keyof BpfmapFileEntry): Attribute => ({
  member,
  field,
  show: wide,
  parse: number,
});

/** Attributes that belong to the map, in the order a document shows them. */
const MAP_ATTRIBUTES: readonly Attribute[] = [
  { ...plain('name', 'map_name'), parse: same },
  {
    member: 'type',
    field: 'map_type',
    show: (value, types) => types.get(value as number).name,
    parse: (value, types) => types.parse(value as string | number),
  },
  plain('key_size'),
  plain('value_size'),
  plain('max_entries'),
  {
    member: 'map_flags',
    field: 'map_flags',
    show: (value) => mapFlagNames(value as number),
    parse: (value) => parseMapFlags(value as (string | number)[]),
  },
  {
    member: 'map_extra',
    field: 'map_extra',
    show: (value) => `0x${(value as number | bigint).toString(16)}`,
    parse: number,
    absent: 0,
  },
  plain('frozen'),
  plain('ifindex'),
  plain('memlock'),
];

const NOBODY: JsonObject = { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 };

/** Attributes of an open file. */
const FILE_ATTRIBUTES: readonly Attribute[] = [
  {
    member: 'flags',
    field: 'flags',
    show: (value) => flagText(value as number),
    parse: (value) => (typeof value === 'string' ? parseFlags(value) : value),
  },
  { ...plain('pos'), absent: 0 },
  { ...plain('fown'), absent: NOBODY },
  { ...plain('mnt_id'), absent: -1 },
];

/** The text of a value that may contain integers of any size. */
const text = (value: Json) => print(value, { ...COMPACT, wide: 'digits' });

/** Whether both have the same value, in whatever order their members come. */
export function equalJson(a: Json | undefined, b: Json | undefined): boolean {
  const members = (value: Json | undefined) =>
    typeof value === 'object' && value !== null ? new Map(Object.entries(value)) : undefined;
  const [left, right] = [members(a), members(b)];
  if (left === undefined || right === undefined) {
    return left === right && (a === undefined || b === undefined ? a === b : String(a) === String(b));
  }
  return left.size === right.size && [...left].every(([name, value]) => equalJson(value, right.get(name)));
}

/** The map's members, from its first file. */
function shown(message: BpfmapFileEntry, types: MapTypes): JsonObject {
  return Object.fromEntries(
    MAP_ATTRIBUTES.map(({ member, field, show, absent }) => [member, show(message[field] ?? absent ?? null, types)]),
  );
}

function fileMembers(file: MapFile, map: JsonObject, types: MapTypes): JsonObject {
  const { message } = file;
  const members: JsonObject = { id: message.id };
  for (const { member, field, show, absent } of FILE_ATTRIBUTES) {
    const value = message[field];
    if (value !== undefined && !(absent !== undefined && equalJson(value, absent)))
      members[member] = show(value, types);
  }
  if (message.map_id !== map.map_id) members.map_id = message.map_id;
  for (const [member, value] of Object.entries(shown(message, types))) {
    if (!equalJson(map[member], value)) members[member] = value;
  }
  members.fds = file.holders.map(({ pid, fd, cloexec }) => ({ pid, fd, ...(cloexec ? { cloexec } : {}) }));
  if (message.$raw !== undefined) members.$raw = message.$raw;
  return members;
}

/** Everything a document says of a map except its data. */
export function mapMembers(map: DumpMap, types: MapTypes): JsonObject {
  const members: JsonObject = { map_id: map.mapId };
  const first = map.files[0];
  if (first !== undefined) {
    Object.assign(members, shown(first.message, types));
    members.files = map.files.map((file) => fileMembers(file, members, types));
  }
  if (map.meta !== undefined) {
    const { map_id: _, holders: __, ...meta } = map.meta;
    if (Object.keys(meta).length > 0) members.meta = meta;
  }
  return members;
}

/** Text to compare what file entries say of their maps, without each open file's own fields. */
export function mapText({ id: _, flags: __, fown: ___, $raw: ____, ...message }: JsonObject): string {
  return text(message);
}

/** The message of a file entry with only default values. */
function fresh(id: number): JsonObject {
  const defaults = { map_flags: 0, memlock: 0, frozen: false, map_name: '', ifindex: 0 };
  return { id, flags: 0o2, pos: 0, fown: { ...NOBODY }, ...defaults };
}

/**
 * The message of an open file: `before` (or a fresh one), updated with what the document says of the map and
 * the file. If the document agrees with `before`, the bytes stay as they are.
 * @throws PointerError
 */
export function documentFileMessage(
  before: JsonObject | undefined,
  id: number,
  map: JsonObject,
  file: JsonObject,
  types: MapTypes,
): JsonObject {
  const message: JsonObject = { ...(before ?? fresh(id)), id };
  if (file.$raw !== undefined) message.$raw = file.$raw;
  const set = (attribute: Attribute, from: JsonObject) => {
    const value = from[attribute.member];
    if (value === undefined) return;
    const parsed = attribute.parse(value, types);
    if (parsed === undefined) throw new PointerError(`/${attribute.member}`, `${text(value)} is not one`);
    if (!equalJson(message[attribute.field] ?? attribute.absent, parsed)) message[attribute.field] = parsed;
  };
  for (const attribute of MAP_ATTRIBUTES) set(attribute, { ...map, ...file });
  for (const attribute of FILE_ATTRIBUTES) set(attribute, file);
  const mapId = file.map_id ?? map.map_id;
  if (mapId !== undefined) message.map_id = mapId;
  for (const { member, field } of MAP_ATTRIBUTES) {
    if (message[field] === undefined && field !== 'map_extra') {
      throw new PointerError('', `member "${member}" is missing`);
    }
  }
  return message;
}
