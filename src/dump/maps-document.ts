/** What `decode` prints of a dump, as types; docs/schema/maps.schema.json checks documents on input. */

import type { FownEntry } from '../image/schema.gen.js';
import type { Json, JsonObject } from '../value.js';

/** A whole document. */
export type MapsDocument = {
  format: 'bpfimg-maps/1';
  /** BTF objects that the types of maps refer to. */
  btf?: DocumentBtf[];
  maps: DocumentMap[];
};

/** A BTF object. */
export type DocumentBtf = {
  btf_id: number;
  /** One character per byte, like all names here. */
  name?: string;
  kernel_btf?: boolean;
  /** Base64. */
  blob: string;
  $raw?: string;
};

/** Attributes of a map; its open files may override them. */
export type MapAttributes = {
  name?: string;
  /** `hash`, `type_N` or the number. */
  type?: string | number;
  key_size?: number;
  value_size?: number;
  max_entries?: number;
  /** `BPF_F_…`; unknown bits as one `0x…`. */
  map_flags?: (string | number)[];
  /** `0x…` text, or a number. */
  map_extra?: string | number | bigint;
  frozen?: boolean;
  ifindex?: number;
  /** Bytes; decimal text beyond 2^53-1. */
  memlock?: string | number | bigint;
};

/** One open file of a map. */
export type DocumentFile = MapAttributes & {
  id?: number;
  /** As open(2) takes them: `O_RDWR`. */
  flags?: string | number;
  pos?: string | number | bigint;
  fown?: FownEntry;
  mnt_id?: number;
  map_id?: number;
  fds?: { pid: number; fd: number; cloexec?: boolean }[];
  $raw?: string;
};

/** A map without its items. */
export type MapHeader = MapAttributes & {
  map_id: number;
  /** ndjson: the index, from 1, of a further data entry of the same map. */
  copy?: number;
  files?: DocumentFile[];
  /** ndjson: the dump has no data entry for this map. */
  data?: false;
  /** Bytes of a key and of a value, if the attributes say otherwise. */
  data_key_size?: number;
  data_value_size?: number;
  /** For data that is not a whole number of items. */
  count?: number;
  keys_bytes?: number;
  values_bytes?: number;
  /** What bpfmap-meta.img says of the map, as crit prints it. */
  meta?: JsonObject;
  types?: {
    btf_id: number;
    key?: string;
    value?: string;
    btf_key_type_id?: number;
    btf_value_type_id?: number;
  };
  $raw?: string;
};

/** An item: bytes in hex, or JSON of their types. */
export type DocumentItem = {
  key?: Json;
  value?: Json;
  /** In a per-CPU map: one per possible CPU. */
  values?: Json[];
};

/** A map. */
export type DocumentMap = MapHeader & {
  items?: DocumentItem[];
  /** Base64, instead of items. */
  extra?: string;
  /** Further data entries of the same map, if they differ. */
  copies?: JsonObject[];
};
