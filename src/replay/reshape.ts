/**
 * Plans whose maps become like maps of another source: a new program's, or maps that are pinned. Type, sizes, flags
 * and BTF are theirs, the items are those of the dump, converted from the old types to the new.
 */
import { cpuStride } from '../bytes.js';
import type { Dump, DumpBtf, DumpMap } from '../dump/model.js';
import { counterpart, mapsNamed, namesOf, wholeName } from '../dump/select.js';
import { type NamedTypes, TypeFinder } from '../dump/types.js';
import { BpfimgError } from '../errors.js';
import type { MapType, MapTypes, Template } from '../maptype.js';
import { type MigrationOptions, type MigrationStep, migration, type UnusedOption } from '../migrate/migrate.js';
import { type CpuFold, foldCpus } from './items.js';
import { memoryNeed } from './memory.js';
import { type Conversion, copied, Losses, migratedItems } from './migrated.js';
import { type Collisions, mapFacts, mapSpec, type PlannedMap, withInnerSpecs } from './plan.js';

/** How maps are reshaped. */
export interface ReshapeOptions extends MigrationOptions {
  readonly types: MapTypes;
  /** Names of maps there, by what a user calls maps of the dump. */
  readonly pairs?: ReadonlyMap<string, string> | undefined;
  /** Maps that {@link pairs} does not name have no counterpart. */
  readonly onlyPairs?: boolean | undefined;
  /** Names matter even if both sides have one map: there are others. */
  readonly byName?: boolean | undefined;
  /** What is lost is only counted; otherwise it is an error. */
  readonly lossy?: boolean | undefined;
  /** What to do with two old keys that become the same; `error` by default. */
  readonly onCollision?: Collisions | undefined;
  /** Without types, longer keys and values get zeros at their end. */
  readonly extendZero?: boolean | undefined;
  readonly maxEntries?: number | undefined;
  readonly perCpu?: CpuFold | undefined;
  /** Possible CPUs here. */
  readonly cpus: number;
  /** Called with a map that has no counterpart, and why; without it that is an error. */
  readonly skip?: ((plan: PlannedMap, why: string) => void) | undefined;
}

/** What maps are made like. */
export interface Model {
  readonly dump: Dump;
  /** How messages name it. */
  readonly name: string;
}

/** Types are looked up once for each dump, whose BTF may be large. */
const finders = new WeakMap<Dump, TypeFinder>();

function finderOf(dump: Dump, types: MapTypes): TypeFinder {
  const known = finders.get(dump);
  if (known !== undefined) return known;
  const made = new TypeFinder(dump, types);
  finders.set(dump, made);
  return made;
}

/** Why a map has no types, as a clause; empty if it was made without. */
function whyUntyped({ problems }: TypeFinder, map: DumpMap): string {
  const found = problems.find(
    (one) => one.map === map || (one.object !== undefined && one.object === map.meta?.btf_id),
  );
  return found === undefined ? '' : ` that can be used (${found.message})`;
}

/**
 * Reshapes the plans of maps for which `model` has a counterpart. Inner maps follow what their outer map expects.
 * @throws BpfimgError for maps that cannot become alike
 */
export async function reshape(
  dump: Dump,
  plans: readonly PlannedMap[],
  model: Model,
  options: ReshapeOptions,
): Promise<PlannedMap[]> {
  const { types, skip } = options;
  const [oldTypes, newTypes] = [finderOf(dump, types), finderOf(model.dump, types)];
  const inner = new Set(plans.flatMap(({ needed }) => needed));
  const outermost = plans.filter(({ mapId }) => !inner.has(mapId));
  const byId = new Map(dump.maps.map((map) => [map.mapId, map]));
  const made: PlannedMap[] = [];
  const templates = new Map<number, InnerModel>();
  for (const plan of plans) {
    const map = byId.get(plan.mapId) as DumpMap;
    const byHand = paired(dump, map, model, options.pairs);
    const like = options.onlyPairs
      ? byHand
      : counterpart(map, model.dump.maps, {
          byHand,
          alone: options.byName !== true && outermost.length === 1 && outermost[0] === plan,
          names: namesOf,
          several: (found) => {
            const ids = found.slice(0, 2).map(({ mapId }) => mapId);
            return `maps ${ids.join(' and ')} both have its name: --map ${map.mapId}=ID says which it is`;
          },
        });
    if (like === undefined && inner.has(plan.mapId)) made.push(plan);
    else if (like === undefined) {
      const names = model.dump.maps.map((one) => wholeName(one) ?? String(one.mapId)).join(', ');
      const why = `no map of that name in ${model.name}, which has ${names}`;
      if (skip === undefined) {
        const ways = '--map OLD=NEW names its counterpart, --map chooses others, --skip-unsupported leaves it out';
        throw new BpfimgError('notFound', `${why}; ${ways}`, { subject: plan.subject });
      }
      skip(plan, why);
    } else {
      const pair = {
        old: await oldTypes.types(map),
        new: await newTypes.types(like),
        whyNot: { old: whyUntyped(oldTypes, map), new: whyUntyped(newTypes, like) },
      };
      // Inner maps must be as their outer map expects them.
      const maxEntries = inner.has(plan.mapId) ? undefined : options.maxEntries;
      const outer = reshaped(plan, like, model, pair, { ...options, maxEntries });
      made.push(outer);
      const { template } = outer.facts;
      if (template === undefined) continue;
      const wanted = {
        template,
        btf: template.types && model.dump.btf.get(template.types.btf),
        types: await newTypes.innerTypes(like),
      };
      for (const id of plan.needed) templates.set(id, wanted);
    }
  }
  // Maps that exist have inner maps of their own, and decide what fits.
  if (options.onlyPairs) return made;
  const typesOf = async ({ mapId }: PlannedMap) => oldTypes.types(byId.get(mapId) as DumpMap);
  return withInner(made, templates, typesOf, options);
}

/** The map that a user has named as the counterpart. */
function paired(dump: Dump, map: DumpMap, model: Model, pairs: ReshapeOptions['pairs']): DumpMap | undefined {
  for (const [old, name] of pairs ?? []) {
    if (!mapsNamed(dump.maps, old).includes(map)) continue;
    const pinned = model.dump.maps.filter((one) => namesOf(one).pins.includes(name));
    const [found, another] = pinned.length > 0 ? pinned : mapsNamed(model.dump.maps, name);
    if (found !== undefined && another === undefined) return found;
    const what = another === undefined ? `no map ${name} in it` : `several maps are called ${name}`;
    throw new BpfimgError('usage', what, { subject: model.name });
  }
  return undefined;
}

interface TypePair {
  readonly old: NamedTypes | undefined;
  readonly new: NamedTypes | undefined;
  /** See {@link whyUntyped}. */
  readonly whyNot?: { readonly old: string; readonly new: string };
}

function reshaped(plan: PlannedMap, like: DumpMap, model: Model, pair: TypePair, options: ReshapeOptions): PlannedMap {
  const { types } = options;
  const [file] = like.files;
  if (file === undefined) {
    throw new BpfimgError('unsupported', `map ${like.mapId}: no image describes it`, { subject: model.name });
  }
  const fail = (why: string): never => {
    throw new BpfimgError('conflict', `it cannot become like ${wholeName(like)} in ${model.name}: ${why}`, {
      subject: plan.subject,
    });
  };
  const spec = mapSpec(file.message, types, options.maxEntries ?? file.message.max_entries);
  const type = types.get(spec.type);
  const old = plan.type;
  if (!isAlike(old, type)) fail(`the items of a map of type ${old.name} mean nothing in one of type ${type.name}`);
  const converted = type.imageItem !== undefined ? undefined : itemsOf(plan, spec, pair, options, fail);
  const facts = mapFacts(like, types);
  const items = converted?.items ?? plan.items;
  return {
    ...plan,
    name: (wholeName(like) ?? '').split('\0', 1)[0] as string,
    type,
    plugin: types.plugin(spec.type),
    spec: { ...spec, numaNode: spec.numaNode ?? -1 },
    items,
    // Everything that was missing is known from there.
    lacks:
      plan.items.count === 0 && plan.facts.template === undefined && facts.template !== undefined ? [] : plan.lacks,
    facts: {
      ...plan.facts,
      types: facts.types,
      kernelType: facts.kernelType,
      template: facts.template ?? plan.facts.template,
    },
    btf: facts.types && model.dump.btf.get(facts.types.btf),
    memory: memoryNeed(spec, type, items.count, options.cpus),
    reshaped: converted?.reshaped ?? {
      steps: {},
      losses: new Losses(plan.subject, false),
      mayLose: false,
      source: plan.items,
      collisions: undefined,
      unused: undefined,
    },
  };
}

/** Whether items of a map of one type mean the same in one of another; per CPU or not. */
export function isAlike(a: MapType, b: MapType): boolean {
  if (a.number === b.number) return true;
  return isPlain(a) && isPlain(b) && (a.key === b.key || (a.key === 'index' && b.key === 'bytes'));
}

/** Whether items are keys and values that mean the same wherever they are. */
export function isPlain({ key, inner, holdsReferences, imageItem, carries }: MapType): boolean {
  return (
    key !== 'none' && key !== 'fd' && !inner && !holdsReferences && imageItem === undefined && carries === undefined
  );
}

/** The items of `plan` as those of a map with this spec. */
function itemsOf(
  plan: PlannedMap,
  spec: PlannedMap['spec'],
  pair: TypePair,
  options: ReshapeOptions,
  fail: (why: string) => never,
): Pick<PlannedMap, 'items' | 'reshaped'> {
  const { spec: was, subject } = plan;
  const type = options.types.get(spec.type);
  const steps: { key?: readonly MigrationStep[]; value?: readonly MigrationStep[] } = {};
  const unused: (readonly UnusedOption[])[] = [];
  const conversion = (where: 'key' | 'value', from: number, to: number): Conversion => {
    const [a, b] = [pair.old?.[where] ?? 0, pair.new?.[where] ?? 0];
    if (pair.old !== undefined && pair.new !== undefined && a !== 0 && b !== 0) {
      try {
        const made = migration({ btf: pair.old.btf, id: a }, { btf: pair.new.btf, id: b }, { ...options, where });
        steps[where] = made.steps;
        unused.push(made.unused);
        return made;
      } catch (error) {
        throw error instanceof BpfimgError && error.kind !== 'usage' ? error.about(subject) : error;
      }
    }
    if (from === to || (from < to && options.extendZero === true)) return copied(from, to);
    const lacking =
      a === 0
        ? `the old map has no types${pair.whyNot?.old ?? ''}`
        : `the new one has no types${pair.whyNot?.new ?? ''}`;
    const way = from < to ? '; --extend-zero puts zeros at the end' : '';
    return fail(`its ${where}s have ${from} bytes, those there ${to}, and ${lacking}${way}`);
  };
  const key = conversion('key', was.keySize, spec.keySize);
  const value = conversion('value', was.valueSize, spec.valueSize);
  const { cpus } = options;
  const [wasPerCpu, perCpu] = [plan.type.perCpu === true, type.perCpu === true];
  let { items } = plan;
  if (wasPerCpu && !perCpu) {
    if (options.perCpu !== 'sum' && options.perCpu !== 'first') {
      fail('it has a value for each CPU, a map there has one; --percpu first or sum says which');
    }
    items = foldCpus(items, was.valueSize, cpus, 1, options.perCpu as CpuFold);
  }
  const collide = key.mayLose || (steps.key ?? []).some(({ what }) => what === 'dropped');
  const collisions = collide ? (options.onCollision ?? 'error') : undefined;
  if (collisions === 'sum' && (type.evicts === true || type.key === 'prefix')) {
    fail(`--on-collision sum does not work in maps of type ${type.name}; last keeps the last item of each key`);
  }
  const made = migratedItems({
    items,
    key,
    value,
    cpus: { from: wasPerCpu && perCpu ? cpus : 1, to: perCpu ? cpus : 1 },
    stride: {
      from: wasPerCpu ? cpuStride(was.valueSize) : was.valueSize,
      to: perCpu ? cpuStride(spec.valueSize) : spec.valueSize,
    },
    subject,
    lossy: options.lossy === true,
  });
  return {
    items: made.items,
    reshaped: {
      steps,
      losses: made.losses,
      mayLose: key.mayLose || value.mayLose,
      source: items,
      collisions,
      unused: inAll(unused),
    },
  };
}

/** Options that neither the key nor the value has a use for, and why; undefined without types. */
function inAll(lists: readonly (readonly UnusedOption[])[]): readonly UnusedOption[] | undefined {
  const same = (a: UnusedOption, b: UnusedOption) => a.option === b.option && a.name === b.name;
  return lists[0]?.flatMap((one) => {
    const all = lists.map((list) => list.find((other) => same(one, other)));
    if (all.includes(undefined)) return [];
    return [{ ...one, why: all.map((other) => other?.why).join(', and ') }];
  });
}

/** What the inner maps of a reshaped map become like. */
interface InnerModel {
  readonly template: Template;
  readonly btf: DumpBtf | undefined;
  readonly types: NamedTypes | undefined;
}

/** Makes the inner maps of reshaped maps as those expect them. */
async function withInner(
  plans: readonly PlannedMap[],
  models: ReadonlyMap<number, InnerModel>,
  typesOf: (plan: PlannedMap) => Promise<NamedTypes | undefined>,
  options: ReshapeOptions,
): Promise<PlannedMap[]> {
  const made: PlannedMap[] = [];
  for (const plan of plans) {
    const model = models.get(plan.mapId);
    if (model === undefined || plan.reshaped !== undefined) {
      made.push(plan);
      continue;
    }
    const { template, btf } = model;
    const type = options.types.get(template.type);
    const fail = (why: string): never => {
      throw new BpfimgError('conflict', `as an inner map: ${why}`, { subject: plan.subject });
    };
    if (type.number !== plan.type.number) fail(`it is a ${plan.type.name}, expected a ${type.name}`);
    const { types: fresh, ...shape } = template;
    const spec = { ...plan.spec, ...shape, name: plan.spec.name };
    const pair = { old: fresh && (await typesOf(plan)), new: model.types };
    const converted = itemsOf(plan, spec, pair, options, fail);
    const memory = memoryNeed(spec, type, plan.items.count, options.cpus);
    const typed = fresh === undefined ? {} : { btf, facts: { ...plan.facts, types: fresh } };
    made.push({ ...plan, spec, ...converted, memory, ...typed });
  }
  return withInnerSpecs(made);
}
