/** Finds for each map of one dump its counterpart in another. */

import type { Dump, DumpMap } from '../dump/model.js';
import { mapName } from '../dump/select.js';
import type { BpfmapFileEntry } from '../image/schema.gen.js';
import { itemShape } from '../json/forms.js';

/** A map that is in both dumps, or in one of them. */
export type MapPair =
  | { readonly a: DumpMap; readonly b: DumpMap }
  | { readonly a: DumpMap; readonly b: undefined }
  | { readonly a: undefined; readonly b: DumpMap };

/** What two maps must have in common; undefined for a map that this rule does not pair. */
type Trait = (map: DumpMap) => string | undefined;

/** A trait made of attributes, which only maps with an open file have. */
const attributes =
  (...names: readonly (keyof BpfmapFileEntry)[]): Trait =>
  ({ files: [file] }) =>
    file && JSON.stringify(names.map((name) => String(file.message[name])));

const id: Trait = ({ mapId }) => String(mapId);
const sizes: Trait = ({ data }) => {
  const last = data.at(-1);
  const shape = last && itemShape(last.count, last.keysBytes, last.valuesBytes);
  return shape && `${shape.keySize} ${shape.valueSize}`;
};
const byName =
  (trait: Trait): Trait =>
  (map) =>
    mapName(map) === '' ? undefined : trait(map);

/** Whether only data is known of a map. */
const bare = (map: DumpMap) => map.files.length === 0;

interface PairRule {
  readonly trait: Trait;
  /** It compares ids, which mean nothing after another boot. */
  readonly byId?: true;
  /** Only for maps whose attributes are unknown on one side. */
  readonly bare?: true;
}

/**
 * The same id means the same map if name and type agree. A replay changes ids; then maps are paired by name, first those
 * with the most attributes in common. Maps with the same name, or none, are paired in order.
 */
const RULES: readonly PairRule[] = [
  { trait: attributes('map_id', 'map_name', 'map_type'), byId: true },
  { trait: id, byId: true, bare: true },
  { trait: attributes('map_name', 'map_type', 'key_size', 'value_size', 'max_entries') },
  { trait: attributes('map_name', 'map_type', 'key_size', 'value_size') },
  { trait: byName(attributes('map_name', 'map_type')) },
  { trait: byName(attributes('map_name')) },
  { trait: attributes('map_id', 'map_type', 'key_size', 'value_size'), byId: true },
  { trait: sizes, bare: true },
];

/** The boot of the kernel that a dump's ids belong to, if the dump says so. */
const bootOf = ({ maps }: Dump) => maps.find(({ meta }) => meta?.boot_id !== undefined)?.meta?.boot_id;
const areOther = (a: unknown, b: unknown) => a !== undefined && b !== undefined && a !== b;

/** The maps of both dumps: those of A in its order, then those that are only in B. */
export function pairMaps(a: Dump, b: Dump): MapPair[] {
  const found = new Map<DumpMap, DumpMap>();
  const taken = new Set<DumpMap>();
  const pair = (left: DumpMap, right: DumpMap) => {
    found.set(left, right);
    taken.add(right);
  };
  const otherBoot = areOther(bootOf(a), bootOf(b));
  for (const { trait, byId, bare: bareOnly } of RULES) {
    if (byId && otherBoot) continue;
    const waiting = new Map<string, DumpMap[]>();
    for (const map of b.maps) {
      const key = taken.has(map) ? undefined : trait(map);
      if (key === undefined) continue;
      const list = waiting.get(key);
      if (list === undefined) waiting.set(key, [map]);
      else list.push(map);
    }
    for (const list of waiting.values()) list.reverse();
    for (const map of a.maps) {
      const key = found.has(map) ? undefined : trait(map);
      const list = key === undefined ? undefined : waiting.get(key);
      const other = list?.at(-1);
      if (other === undefined || (bareOnly && !bare(map) && !bare(other))) continue;
      list?.pop();
      pair(map, other);
    }
  }
  const [only, other] = [a.maps[0], b.maps[0]];
  // If one map is selected on each side, these two are meant.
  if (only && other && a.maps.length === 1 && b.maps.length === 1 && found.size === 0) pair(only, other);
  return [
    ...a.maps.map((map): MapPair => ({ a: map, b: found.get(map) }) as MapPair),
    ...b.maps.filter((map) => !taken.has(map)).map((map) => ({ a: undefined, b: map })),
  ];
}
