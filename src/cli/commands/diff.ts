import { type DiffOptions, isDifferent, MapComparison } from '../../diff/diff.js';
import { type MapPair, pairMaps } from '../../diff/pairs.js';
import type { DocumentForms } from '../../dump/document.js';
import { itemForms } from '../../dump/items.js';
import type { Dump, DumpMap } from '../../dump/model.js';
import { mapName, mapsSelected } from '../../dump/select.js';
import { BpfimgError, ClosedPipe, EXIT, errorText, oneLine } from '../../errors.js';
import { formsThatFit, type ItemForms } from '../../json/forms.js';
import { mapIdForm } from '../../json/map-id.js';
import type { Sys } from '../../kernel/sys.js';
import type { MapTypes } from '../../maptype.js';
import { colours, nameText } from '../../render.js';
import { mapsOf } from '../../source/source.js';
import { chooses, choosing, chosenAs } from '../choosing.js';
import type { Command, Given } from '../command.js';
import { type DiffReport, JsonReport, TextReport } from '../diff-report.js';
import { coloured, type Io } from '../io.js';
import {
  boolean,
  DASH,
  json,
  libdir,
  like,
  map as mapOption,
  meaning,
  namesTypes,
  number,
  pager,
  type TypeArguments,
  types as typeOptions,
} from '../options.js';
import { Sources } from '../source.js';
import { documentForms, expectUsed, typeFinder } from '../types.js';
import { paged } from '../written.js';

const takes = {
  words: {
    a: {
      type: 'string',
      demandOption: true,
      completes: 'SOURCE',
      describe: 'a dump folder, image, JSON document or live maps',
    },
    b: { type: 'string', demandOption: true, completes: 'SOURCE', describe: 'what to compare it with' },
  },
  options: {
    map: { ...mapOption, describe: 'only this map: its id or name in A or B' },
    limit: {
      ...number,
      group: 'Output',
      defaultDescription: '10, with --json 0',
      describe: 'how many changed, removed and added items to show per map; 0 shows all',
    },
    ...choosing,
    quiet: { ...boolean, alias: 'q', group: 'Output', describe: 'print nothing; only set the exit code' },
    holders: { ...boolean, group: 'Selection', describe: 'also compare which processes hold the maps' },
    ...typeOptions,
    ...meaning,
    ...libdir,
    like,
    json,
    pager,
  },
} as const;

type DiffArguments = Given<typeof takes>;

export const command: Command = {
  name: 'diff',
  summary: 'compare two dumps, images, documents or live maps',
  ...takes,
  examples: [
    ['diff before after', 'two dumps'],
    ['diff dump pinned:/sys/fs/bpf/flows --map flows', 'a map in a dump with the live one'],
    ['diff dump maps.json -q', 'only the exit code: has the document been edited?'],
  ],
  epilogue: 'Live maps are written id:N, name:NAME, pinned:PATH, pid:PID, pid:PID:FD, tree:PID or all:.',
  exits: { 0: 'no difference', 1: 'differences', 2: 'trouble' },
  run,
};

/** As with diff(1), 1 is an answer, and 2 means that something went wrong. */
class Trouble extends BpfimgError {
  override get exitCode(): number {
    return EXIT.usage;
  }
}

/** Items of each kind that are shown per map. */
const SHOWN = 10;

/** @param sys the kernel; tests have their own */
async function run(args: DiffArguments, io: Io, sys?: Sys): Promise<number> {
  try {
    return await diff(args, io, sys);
  } catch (error) {
    if (error instanceof ClosedPipe) throw error;
    const trouble =
      error instanceof BpfimgError
        ? new Trouble(error.kind, error.text, { ...error, cause: error })
        : new Trouble(
            'unsupported',
            `internal error: ${oneLine(errorText(error))} (please report it; --debug shows where)`,
            {
              cause: error,
            },
          );
    if (error instanceof Error && error.stack !== undefined) trouble.stack = error.stack;
    throw trouble;
  }
}

async function diff(args: DiffArguments, io: Io, sys?: Sys): Promise<number> {
  if (args.limit !== undefined && !(Number.isInteger(args.limit) && args.limit >= 0)) {
    throw new BpfimgError('usage', '--limit takes a whole number; 0 shows every item');
  }
  if (args.a === DASH && args.b === DASH) {
    throw new BpfimgError('usage', 'two inputs from standard input: name a file for one of them');
  }
  const sources = new Sources(io, args, sys);
  const open: { close(): void }[] = [];
  const maps = async (text: string) => {
    const source = await sources.open(text === DASH ? undefined : text, true);
    open.unshift(source);
    const dump = await mapsOf(source);
    open.unshift(dump);
    return dump;
  };
  try {
    const [a, b] = [await maps(args.a), await maps(args.b)];
    sources.expectLikeUsed();
    const types = await sources.types();
    if (!chooses(args)) return await new Diff(a, b, types, args, io).run();
    const some = await new Diff(a, b, types, args, io).chosen();
    open.unshift(...some);
    return await new Diff(...some, types, args, io).run();
  } finally {
    for (const one of open) one.close();
  }
}

class Diff {
  readonly #labels: readonly [string, string];
  readonly #options: DiffOptions;
  #different = false;

  constructor(
    readonly a: Dump,
    readonly b: Dump,
    readonly types: MapTypes,
    readonly args: DiffArguments,
    readonly io: Io,
  ) {
    const label = (text: string) => (text === DASH ? 'standard input' : text);
    this.#labels = [label(args.a), label(args.b)];
    const limit = args.limit ?? (args.json ? 0 : SHOWN);
    this.#options = { holders: args.holders, limit, once: args.quiet };
  }

  /** Both sides with the chosen items of the maps that are compared. */
  async chosen(): Promise<[a: Dump, b: Dump]> {
    const pairs = this.#selected(pairMaps(this.a, this.b));
    const quiet = { ...this.io, say: () => {} };
    const plain = await this.#forms(pairs, quiet, { plain: true, as: [] });
    const readable = await this.#forms(pairs, quiet, { plain: false, json: false });
    const side = (which: 'a' | 'b', i: 0 | 1) => {
      const maps = pairs.flatMap((pair) => pair[which] ?? []);
      return chosenAs(this[which], this.args, this.types, maps, async (map, { keySize, valueSize, perCpu }) => {
        // As in a comparison, types of one side are good for both.
        const other = pairs.find((one) => one[which] === map)?.[which === 'a' ? 'b' : 'a'];
        const seen = (forms: readonly (DocumentForms | undefined)[]) => {
          const typed = forms[i]?.of(map) ?? (other && forms[1 - i]?.of(other));
          return formsThatFit(itemForms(map, this.types, typed), keySize, perCpu ?? valueSize);
        };
        return { plain: seen(plain), readable: seen(readable) };
      });
    };
    const a = await side('a', 0);
    try {
      return [a, await side('b', 1)];
    } catch (error) {
      a.close();
      throw error;
    }
  }

  async run(): Promise<number> {
    const { a, b, args, io } = this;
    const all = pairMaps(a, b);
    const pairs = this.#selected(all);
    const [aForms, bForms] = args.quiet ? [] : await this.#forms(pairs);
    const own = { type: [] };
    const comparison = new MapComparison(
      { dump: a, types: await typeFinder(a, this.types, own) },
      { dump: b, types: await typeFinder(b, this.types, own) },
      this.types,
      this.#options,
      all,
    );
    if (args.quiet) {
      for (const pair of pairs) if (await this.#compare(pair, comparison)) return EXIT.failed;
      return EXIT.ok;
    }
    this.#sayUnknown(pairs);
    try {
      await paged(io, args.pager, async (out) => {
        const report = args.json
          ? new JsonReport(out, this.types, this.#labels)
          : new TextReport(out, colours(coloured(io, args.color)), this.types, this.#labels, this.#options.limit);
        report.begin();
        for (const pair of pairs) await this.#compare(pair, comparison, report, aForms, bForms);
        report.end(this.#different);
      });
    } catch (error) {
      // Whoever closed the pipe has read enough.
      if (!(error instanceof ClosedPipe) || !this.#different) throw error;
    }
    return this.#different ? EXIT.failed : EXIT.ok;
  }

  /** Compares one pair; returns whether it differs. */
  async #compare(
    pair: MapPair,
    comparison: MapComparison,
    report?: DiffReport,
    aForms?: DocumentForms,
    bForms?: DocumentForms,
  ): Promise<boolean> {
    const { a, b } = pair;
    if (a === undefined || b === undefined) {
      this.#different = true;
      await report?.only(pair);
      return true;
    }
    const difference = await comparison.compare(a, b);
    try {
      const { unknown } = difference;
      if (unknown !== undefined && report !== undefined) {
        this.io.say(`bpfimg: note: ${subject(a, b)}: items not compared: ${oneLine(unknown)}`);
      }
      if (!isDifferent(difference)) return false;
      this.#different = true;
      const [left, right] = [aForms?.of(a), bForms?.of(b)];
      const forms = (map: DumpMap, own: ItemForms | undefined, other: ItemForms | undefined) => ({
        map,
        forms: own ?? other ?? this.#inner(a, b),
      });
      await report?.both(forms(a, left, right), forms(b, right, left), difference);
      return true;
    } finally {
      difference.items?.found.close();
    }
  }

  /** The form of values that are ids of maps. */
  #inner(a: DumpMap, b: DumpMap): ItemForms | undefined {
    const file = a.files[0] ?? b.files[0];
    return file !== undefined && this.types.get(file.message.map_type).inner ? { value: mapIdForm } : undefined;
  }

  /** The pairs that `--map` selects: one map of a pair, by id or name, is enough. */
  #selected(pairs: readonly MapPair[]): readonly MapPair[] {
    const { map: selectors } = this.args;
    if (selectors.length === 0) return pairs;
    const chosen = new Set<MapPair>();
    for (const { selector, found } of mapsSelected([...this.a.maps, ...this.b.maps], selectors)) {
      if (found.length === 0) {
        throw new BpfimgError('notFound', `no such map in ${this.#labels.join(' or ')}`, {
          subject: `--map ${selector}`,
        });
      }
      const is = new Set<DumpMap | undefined>(found);
      for (const pair of pairs) if (is.has(pair.a) || is.has(pair.b)) chosen.add(pair);
    }
    return pairs.filter((pair) => chosen.has(pair));
  }

  /** How items look on either side. */
  async #forms(
    pairs: readonly MapPair[],
    io = this.io,
    how: Partial<TypeArguments> = {},
  ): Promise<(DocumentForms | undefined)[]> {
    const args = { ...this.args, ...how };
    const named = (text: string) => text.slice(0, Math.max(0, text.indexOf('=')));
    const has = ({ maps }: Dump, text: string) =>
      maps.some((map) => mapName(map) === named(text) || String(map.mapId) === named(text));
    const lost = args.type.find((text) => named(text) !== '' && ![this.a, this.b].some((dump) => has(dump, text)));
    if (lost !== undefined) {
      throw new BpfimgError('notFound', `no such map in ${this.#labels.join(' or ')}`, { subject: `--type ${lost}` });
    }
    const forms = [];
    // If both sides lack the same thing, it is said once.
    const said = new Set<string>();
    let unused = new Set(args.as);
    for (const [side, dump] of [this.a, this.b].entries()) {
      const type = args.type.filter((text) => named(text) === '' || has(dump, text));
      const maps = pairs.flatMap(({ a, b }) => [side === 0 ? a : b].filter((map) => map !== undefined));
      const own = { btf: args.btf, type, plain: args.plain, json: args.json };
      const finder = await typeFinder(
        dump,
        this.types,
        namesTypes(own) || dump.btf.size > 0 ? { ...own, as: args.as } : own,
      );
      forms.push(await documentForms(finder, maps, io, said));
      if (finder !== undefined) unused = new Set(finder.unusedAs.filter((text) => unused.has(text)));
    }
    expectUsed([...unused]);
    return forms;
  }

  /** Says for which maps attributes are known on one side only. */
  #sayUnknown(pairs: readonly MapPair[]): void {
    for (const [side, other] of [
      ['a', 'b'],
      ['b', 'a'],
    ] as const) {
      const bare = pairs.filter((pair) => pair[side]?.files.length === 0 && (pair[other]?.files.length ?? 0) > 0);
      const label = this.#labels[side === 'a' ? 0 : 1];
      if (this[side].data === undefined && this[other].data !== undefined) {
        this.io.say(`bpfimg: note: ${oneLine(label)}: there are no items in it: only attributes are compared`);
      }
      if (bare.length === 0) continue;
      const whole = bare.length === pairs.filter((pair) => pair[side] !== undefined).length;
      const which = whole ? 'its maps' : `map ${bare.map((pair) => pair[side]?.mapId).join(', ')}`;
      this.io.say(`bpfimg: note: ${oneLine(label)}: attributes of ${which} are unknown: only items are compared`);
    }
  }
}

function subject(a: DumpMap, b: DumpMap): string {
  const name = mapName(a) || mapName(b);
  return `map ${a.mapId}${name ? ` (${nameText(name)})` : ''}`;
}
