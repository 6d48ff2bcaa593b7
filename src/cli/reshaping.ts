/** `--like` of `replay` and `verify`: maps as a new program defines them, and what becomes of the items. */
import type { Dump } from '../dump/model.js';
import { BpfimgError } from '../errors.js';
import type { Sys } from '../kernel/sys.js';
import type { MapTypes } from '../maptype.js';
import type { MigrationOptions, MigrationStep } from '../migrate/migrate.js';
import { type Colours, nameText, table } from '../render.js';
import type { Collisions, PlannedMap } from '../replay/plan.js';
import { mapsOf, type Source } from '../source/source.js';
import type { Json } from '../value.js';
import type { Io } from './io.js';
import { boolean, changes, string } from './options.js';
import type { Sources } from './source.js';

/** Options that say how maps and their items become like others. */
export const reshapeOptions = {
  like: {
    ...string,
    value: 'SOURCE',
    group: 'Migration',
    describe: 'make the maps like those of this source: an object file, pinned maps, a dump; items are migrated',
  },
  ...changes,
  lossy: { ...boolean, group: 'Migration', describe: 'migrate items even if part of them is lost' },
  'on-collision': {
    group: 'Migration',
    choices: ['error', 'last', 'sum'],
    default: 'error',
    describe: 'if two old keys become the same: keep the last item, or add the values',
  },
  'extend-zero': {
    ...boolean,
    group: 'Migration',
    describe: 'put zeros behind keys and values without types, if the new ones are longer',
  },
} as const;

/** What a command line says of {@link reshapeOptions} and what goes with them. */
export interface ReshapeArguments {
  readonly map: readonly string[];
  readonly like?: string | undefined;
  readonly into?: string | undefined;
  readonly rename: readonly string[];
  readonly drop: readonly string[];
  readonly set: readonly string[];
  readonly lossy: boolean;
  readonly onCollision?: Collisions | undefined;
  readonly extendZero: boolean;
  readonly maxEntries?: number | undefined;
  readonly percpu?: 'first' | 'sum' | 'spread' | undefined;
  readonly skipUnsupported: boolean;
}

/** What every step of a replay takes. */
export interface ReplayRun<Args> {
  readonly args: Args;
  readonly io: Io;
  readonly sys: Sys;
  readonly types: MapTypes;
}

/** A map that is not supported here, and was left out. */
export interface Skipped {
  readonly plan: PlannedMap;
  readonly why: string;
}

/** The map of the dump in `--map OLD=NEW`, or in a plain `--map`: no name of a map has a `=`. */
export function oldName(text: string): string {
  return text.split('=', 1)[0] as string;
}

function pairs(option: string, texts: readonly string[]): Map<string, string> {
  return new Map(
    texts.map((text) => {
      const at = text.indexOf('=');
      if (at < 0) throw new BpfimgError('usage', 'expected OLD=NEW', { subject: `${option} ${text}` });
      return [text.slice(0, at), text.slice(at + 1)];
    }),
  );
}

/** A value as JSON; text that is no JSON is a string. */
function jsonValue(text: string): Json {
  try {
    return JSON.parse(text) as Json;
  } catch {
    return text;
  }
}

/** What is said of the members of keys and values. */
export function migrationOptions({
  rename,
  drop,
  set,
}: Pick<ReshapeArguments, 'rename' | 'drop' | 'set'>): MigrationOptions {
  const values = [...pairs('--set', set)].map(([name, text]) => [name, jsonValue(text)] as const);
  return { rename: pairs('--rename', rename), drop: new Set(drop), set: new Map(values) };
}

/** The source that `--like` names. */
export class Reshaping {
  readonly #args: ReshapeArguments;
  readonly #options: MigrationOptions;
  readonly #source: Source;
  readonly #dump: Dump;

  private constructor(args: ReshapeArguments, options: MigrationOptions, source: Source, dump: Dump) {
    this.#args = args;
    this.#options = options;
    this.#source = source;
    this.#dump = dump;
  }

  /** Opens it; undefined if there is none, or if it has given attributes to items from bpftool. */
  static async open(args: ReshapeArguments, sources: Sources): Promise<Reshaping | undefined> {
    const { like } = args;
    const options = migrationOptions(args);
    const said = (['rename', 'drop', 'set'] as const).find((name) => args[name].length > 0);
    const alone = said ?? (args.lossy ? 'lossy' : args.extendZero ? 'extend-zero' : undefined);
    if (like === undefined && args.into === undefined && alone !== undefined) {
      throw new BpfimgError('usage', 'it is about maps that become like others: give --like or --into with it', {
        subject: `--${alone}`,
      });
    }
    if (like === undefined || sources.likeUsed) return undefined;
    const source = await sources.openBare(like);
    try {
      return new Reshaping(args, options, source, await mapsOf(source));
    } catch (error) {
      source.close();
      throw error;
    }
  }

  /**
   * Plans of maps like those of the source.
   * @param counting what is lost is to be counted, whether it is allowed or not
   */
  async plans(
    dump: Dump,
    plans: readonly PlannedMap[],
    { sys, types }: Pick<ReplayRun<unknown>, 'sys' | 'types'>,
    skipped: Skipped[],
    counting: boolean,
  ): Promise<PlannedMap[]> {
    const args = this.#args;
    const { reshape } = await import('../replay/reshape.js');
    const reshaped = await reshape(
      dump,
      plans,
      { dump: this.#dump, name: this.#source.name },
      {
        ...this.#options,
        types,
        pairs: pairs(
          '--map',
          args.map.filter((text) => text.includes('=')),
        ),
        lossy: args.lossy || counting,
        onCollision: args.onCollision,
        extendZero: args.extendZero,
        maxEntries: args.maxEntries,
        perCpu: args.percpu,
        cpus: sys.cpus,
        skip: args.skipUnsupported ? (plan, why) => skipped.push({ plan, why }) : undefined,
      },
    );
    expectUsed(reshaped);
    return reshaped;
  }

  close(): void {
    this.#dump.close();
    this.#source.close();
  }
}

/** Fails for a member that none of the maps has. */
function expectUsed(plans: readonly PlannedMap[]): void {
  const [first = [], ...others] = plans.flatMap(({ reshaped }) => (reshaped?.unused ? [reshaped.unused] : []));
  for (const { option, name, why } of first) {
    const nowhere = others.every((list) => list.some((one) => one.option === option && one.name === name));
    if (nowhere) throw new BpfimgError('usage', why, { subject: `--${option} ${name}` });
  }
}

/** What happens to the members of a map's keys and values, as `--json` prints it. */
export function stepRows({ reshaped }: PlannedMap) {
  const rows = ({ what, old, new: fresh, oldType, newType, value, mayLose }: MigrationStep) => ({
    old: old ?? null,
    new: fresh ?? null,
    old_type: oldType ?? null,
    new_type: newType ?? null,
    what,
    ...(value === undefined ? {} : { value }),
    may_lose: mayLose,
  });
  const { key = [], value = [] } = reshaped?.steps ?? {};
  return { key: key.map(rows), value: value.map(rows), lost: Object.fromEntries(reshaped?.losses.times ?? []) };
}

const STEP_COLUMNS = [
  { title: 'MAP' },
  { title: 'OLD MEMBER' },
  { title: 'OLD TYPE' },
  { title: 'NEW MEMBER' },
  { title: 'NEW TYPE' },
  { title: 'WHAT' },
];

/** A table of what happens to members; nothing if all stay as they are. */
export function stepLines(plans: readonly PlannedMap[], look: Colours): string[] {
  const cells = plans.flatMap((plan) => {
    const { key = [], value = [] } = plan.reshaped?.steps ?? {};
    const changes = (steps: readonly MigrationStep[]) => steps.some(({ what }) => what !== 'same' && what !== 'kernel');
    const rows = [key, value].filter(changes).flat();
    return rows.map((step, i) => [
      i === 0 ? nameText(plan.name) : '',
      memberText(step.old),
      nameText(step.oldType ?? ''),
      memberText(step.new),
      nameText(step.newType ?? ''),
      stepText(step),
    ]);
  });
  return cells.length === 0 ? [] : ['', ...table(STEP_COLUMNS, cells, look)];
}

function memberText(path: string | undefined): string {
  return path === '' ? '(all)' : nameText(path ?? '');
}

function stepText({ what, value, mayLose }: MigrationStep): string {
  const text = value === undefined ? what : `${what}: ${nameText(JSON.stringify(value))}`;
  return mayLose ? `${text}, may lose` : text;
}
