/** Whether the loader of a program would reuse maps, and if not, what `replay --like` would do with them. */
import type { Dump, DumpMap } from '../dump/model.js';
import { BpfimgError } from '../errors.js';
import { type MapTypes, mapFlagNames } from '../maptype.js';
import type { MigrationOptions, MigrationStep } from '../migrate/migrate.js';
import { countLosses } from '../replay/migrated.js';
import { mapSpec, type PlannedMap, planMaps } from '../replay/plan.js';
import { type Model, reshape } from '../replay/reshape.js';

/** What there is to say of one map. */
export interface ReuseFinding {
  readonly map: DumpMap;
  readonly code: 'migrate' | 'cannot-migrate' | 'no-counterpart';
  readonly message: string;
}

/** Members that a finding lists. */
const LISTED = 5;

/**
 * Compares the maps of a dump with their counterparts, as libbpf does before it reuses pins, and by the members of keys
 * and values. Inner maps are compared with what their outer maps expect.
 * @returns nothing about maps that can be used as they are
 */
export async function reuseFindings(
  dump: Dump,
  model: Model,
  types: MapTypes,
  asked: MigrationOptions & { readonly cpus: number },
): Promise<ReuseFinding[]> {
  const found: ReuseFinding[] = [];
  const failed = (map: DumpMap, error: unknown): void => {
    if (!(error instanceof BpfimgError)) throw error;
    found.push({ map, code: 'cannot-migrate', message: error.text });
  };
  const planned: { readonly map: DumpMap; readonly plans: readonly PlannedMap[] }[] = [];
  for (const map of dump.maps.filter(({ files }) => files.length > 0)) {
    try {
      planned.push({ map, plans: await planMaps(dump, [map], types, { cpus: asked.cpus }) });
    } catch (error) {
      failed(map, error);
    }
  }
  const inner = new Set(planned.flatMap(({ plans }) => plans.flatMap(({ needed }) => needed)));
  const outermost = planned.filter(({ map }) => !inner.has(map.mapId));
  const byId = new Map(dump.maps.map((map) => [map.mapId, map]));
  const judgedMaps = new Set<number>();
  for (const { map, plans } of outermost) {
    try {
      const skip = (_: PlannedMap, message: string) => found.push({ map, code: 'no-counterpart', message });
      const options = { ...asked, types, lossy: true, byName: outermost.length > 1, skip };
      const made = await reshape(dump, plans, model, options);
      for (const plan of made) {
        const one = byId.get(plan.mapId) as DumpMap;
        if (judgedMaps.has(plan.mapId)) continue;
        judgedMaps.add(plan.mapId);
        const file = one.files[0]?.message;
        const finding = file && (await judged(mapSpec(file, types), plan, types));
        if (finding !== undefined) found.push({ map: one, ...finding });
      }
    } catch (error) {
      failed(map, error);
    }
  }
  return found;
}

async function judged(
  old: PlannedMap['spec'],
  plan: PlannedMap,
  types: MapTypes,
): Promise<Omit<ReuseFinding, 'map'> | undefined> {
  const { reshaped, spec, items } = plan;
  const attributes = differences(old, spec, types);
  const { key = [], value = [] } = reshaped?.steps ?? {};
  const members = [...changes('key', key), ...changes('value', value)];
  if (attributes.length + members.length === 0) return undefined;
  const listed = [...attributes, ...members.slice(0, LISTED), ...(members.length > LISTED ? ['…'] : [])].join(', ');
  const loader =
    attributes.length > 0 ? 'libbpf does not reuse it' : 'libbpf reuses it, but its items are read wrongly';
  await countLosses(items);
  const lost = reshaped?.losses.text();
  if (lost !== undefined) return { code: 'cannot-migrate', message: `${listed}: ${loader}; ${lost}` };
  return { code: 'migrate', message: `${listed}: ${loader}; replay --like migrates it` };
}

/** What libbpf compares (map_is_reuse_compat). */
function differences(old: PlannedMap['spec'], spec: PlannedMap['spec'], types: MapTypes): string[] {
  const flags = (bits: number) => mapFlagNames(bits).join('|') || '0';
  const pairs: readonly (readonly [name: string, old: string, now: string])[] = [
    ['type', types.get(old.type).name, types.get(spec.type).name],
    ['key_size', String(old.keySize), String(spec.keySize)],
    ['value_size', String(old.valueSize), String(spec.valueSize)],
    ['max_entries', String(old.maxEntries), String(spec.maxEntries)],
    ['map_flags', flags(old.flags), flags(spec.flags)],
    ['map_extra', `0x${(old.extra ?? 0n).toString(16)}`, `0x${(spec.extra ?? 0n).toString(16)}`],
  ];
  return pairs.filter(([, was, is]) => was !== is).map(([name, was, is]) => `${name} ${was} → ${is}`);
}

function changes(where: 'key' | 'value', steps: readonly MigrationStep[]): string[] {
  return steps
    .filter(({ what }) => what !== 'same' && what !== 'kernel')
    .map(({ what, old, new: fresh, oldType, newType }) => {
      const [path = '', other = path] = [old, fresh].filter((one) => one !== undefined);
      const name = path === '' ? where : `${where}.${path}`;
      const types = what === 'renamed' ? other : [oldType, newType].filter((one) => one !== undefined).join(' → ');
      return `${name} ${what}${types === '' ? '' : ` (${types})`}`;
    });
}
