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
  readonly code: 'migrate' | 'cannot-migrate' | 'no-counterpart';
  readonly message: string;
}

/** Members that a finding lists. */
const LISTED = 5;

/**
 * Compares a map with its counterpart, as libbpf does before it reuses a pin, and by the members of keys and values.
 * @returns undefined if it can be used as it is
 */
export async function reuseFinding(
  dump: Dump,
  map: DumpMap,
  model: Model,
  types: MapTypes,
  asked: MigrationOptions & { readonly cpus: number },
): Promise<ReuseFinding | undefined> {
  const file = map.files[0]?.message;
  if (file === undefined) return undefined;
  let missing: string | undefined;
  try {
    const plans = await planMaps(dump, [map], types, { cpus: asked.cpus });
    const options = { ...asked, lossy: true };
    const made = await reshape(dump, plans, model, types, options, (_, why) => {
      missing = why;
    });
    if (missing !== undefined) return { code: 'no-counterpart', message: missing };
    const plan = made.find(({ mapId }) => mapId === map.mapId);
    return plan && (await judged(mapSpec(file, types), plan, types));
  } catch (error) {
    if (error instanceof BpfimgError) return { code: 'cannot-migrate', message: error.text };
    throw error;
  }
}

async function judged(old: PlannedMap['spec'], plan: PlannedMap, types: MapTypes): Promise<ReuseFinding | undefined> {
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
