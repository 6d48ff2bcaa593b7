/** Predicts the outcome of a replay without creating its maps. */
import { isZero } from '../bytes.js';
import type { Dump } from '../dump/model.js';
import type { TypeFinder } from '../dump/types.js';
import { breaches } from '../kernel/rules.js';
import type { Sys } from '../kernel/sys.js';
import { type Foreseen, FULL, leftEmpty, type MapType, type Planned, type Report } from '../maptype.js';
import { findKey } from './items.js';
import type { PlannedMap } from './plan.js';

/** Why MAP_CREATE would refuse the map. Each reason is a clause. */
export function createProblems(plan: Pick<PlannedMap, 'spec' | 'type' | 'btf' | 'facts' | 'inner'>): string[] {
  const { spec, type, btf, facts, inner } = plan;
  // The kernel may know a type that is newer than bpfimg.
  if (type.create === undefined && spec.type !== 0) return [];
  const asked = {
    ...spec,
    extra: spec.extra ?? 0n,
    ifindex: spec.ifindex ?? 0,
    name: Buffer.from(spec.name, 'latin1'),
    // Replay sets these when it creates the map.
    btf: btf !== undefined && type.create?.btf !== 'no',
    inner: facts.template !== undefined || inner.size > 0,
  };
  return breaches(asked, spec.type === 0 ? undefined : type);
}

/** Why no such map can be created here. Each reason is a clause. */
export function unsupported(plan: PlannedMap): string[] {
  const problems = createProblems(plan);
  if (plan.plugin.replay === undefined) problems.push(noReplay(plan.type));
  return problems;
}

/** The outcome of filling the map once it is created. */
export async function fillForeseen(
  plan: Pick<PlannedMap, 'spec' | 'type' | 'types' | 'plugin' | 'items' | 'facts' | 'inner'> & Pick<Planned, 'sys'>,
): Promise<Foreseen> {
  const { spec, type, items, plugin } = plan;
  const { maxEntries } = spec;
  const problem = (what: string): Foreseen => ({ problems: [what], report: FULL });
  const many = `${items.count} items do not fit, max_entries is ${maxEntries}`;
  // Items that depend on other objects are not counted, nor is what bpf(2) does not see as items.
  const full = maxEntries > 0 && items.count > maxEntries && type.imageItem === undefined;
  if (full && type.evicts !== true && type.dense !== true) return problem(many);
  if (type.key === 'index' && items.keySize === 4) {
    // Zeros are already in a fresh array.
    const beyond = await findKey(
      items,
      (key) => key.readUInt32LE() >= maxEntries,
      type.dense === true ? (part) => !isZero(part, 0, part.length) : undefined,
    );
    if (beyond !== undefined)
      return problem(full ? many : `index ${beyond.readUInt32LE()}, max_entries is ${maxEntries}`);
  }
  const own = await plugin.foresee?.(plan);
  if (own !== undefined) return own;
  if (type.carries?.replayed === 'empty') return { problems: [], report: leftEmpty(type, items.count) };
  return { problems: [], report: full && type.evicts === true ? { kind: 'partial', why: many } : FULL };
}

/** The prediction for the maps of one dump. */
export class Foresight {
  #finder: TypeFinder | undefined;

  /** @param sys the kernel that is to make the maps; without one, what kernels differ in is not foreseen */
  constructor(
    readonly dump: Dump,
    readonly unresolved: 'fail' | 'skip' = 'fail',
    readonly sys?: Sys,
  ) {}

  /** The outcome of a replay. */
  async of(plan: PlannedMap): Promise<Foreseen> {
    const { missing } = plan;
    const faults = await this.#typeFaults(plan);
    const problems = unsupported(plan);
    if (missing.length > 0 && this.unresolved === 'fail') problems.push(lostInner(missing));
    if (plan.type.create?.btf === 'required') problems.push(...faults);
    if (problems.length > 0) return { problems, report: FULL };
    const filled = await fillForeseen({ ...plan, sys: this.sys });
    if (filled.problems.length > 0 || filled.report.kind === 'metadata only') return filled;
    const lacks = [
      ...plan.lacks,
      ...(faults.length === 0 ? [] : [`without its types: ${faults.join('; ')}`]),
      ...(missing.length === 0 ? [] : [lostInner(missing)]),
      ...(filled.report.kind === 'full' ? [] : [filled.report.why]),
    ];
    const report: Report = lacks.length === 0 ? FULL : { kind: 'partial', why: lacks.join('; ') };
    return { problems: [], report };
  }

  /** What is wrong with a map's types, so that the kernel refuses them. */
  async #typeFaults({ mapId, btf, type, types }: PlannedMap): Promise<string[]> {
    const given = btf !== undefined && type.create?.btf !== 'no';
    const map = given && this.dump.maps.find((one) => one.mapId === mapId);
    if (map === false || map === undefined) return [];
    if (this.#finder === undefined) {
      const { TypeFinder } = await import('../dump/types.js');
      this.#finder = new TypeFinder(this.dump, types);
    }
    return this.#finder.faults(map);
  }
}

/** The text about inner maps that the dump does not have. */
export function lostInner(missing: readonly number[]): string {
  const ids = missing.slice(0, NAMED_IDS).join(', ');
  return `inner maps that are not in the dump: ${ids}${missing.length > NAMED_IDS ? `, and ${missing.length - NAMED_IDS} more` : ''}`;
}

/** Number of ids in one line. */
const NAMED_IDS = 5;

/** The text about a map type that no plugin fills. */
export function noReplay(type: MapType): string {
  return `bpfimg cannot replay ${type.name} maps yet`;
}
