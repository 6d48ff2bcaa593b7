import { MapComparison } from '../../diff/diff.js';
import { pairMaps } from '../../diff/pairs.js';
import type { Dump, DumpMap } from '../../dump/model.js';
import { mapName } from '../../dump/select.js';
import { BpfimgError, EXIT } from '../../errors.js';
import type { Output } from '../../io/output.js';
import type { ItemForms } from '../../json/forms.js';
import { mapIdForm } from '../../json/map-id.js';
import type { Sys } from '../../kernel/sys.js';
import type { MapTypes } from '../../maptype.js';
import { onWholeScreen } from '../../render.js';
import { selected, selectedSources } from '../../source/selectors.js';
import { type DumpSource, mapsOf } from '../../source/source.js';
import { Changes, type MapTick, type Tick } from '../changes.js';
import type { Command, Given } from '../command.js';
import type { Io } from '../io.js';
import { json, libdir, number, selectors as selectorOptions, types as typeOptions } from '../options.js';
import { Sources } from '../source.js';
import { documentForms, typeFinder } from '../types.js';
import { tickJson, tickLines } from '../watch-view.js';
import { printLines, written } from '../written.js';

const takes = {
  words: {
    sources: {
      type: 'string',
      array: true,
      default: [] as string[],
      defaultDescription: 'none',
      describe: 'live maps (pinned:PATH, pid:PID, …); after a selector, more values for it',
    },
  },
  options: {
    ...selectorOptions,
    interval: { ...number, group: 'Output', alias: 'n', default: 1, describe: 'seconds from one look to the next' },
    count: { ...number, group: 'Output', describe: 'stop after this many looks' },
    limit: {
      ...number,
      group: 'Output',
      default: 10,
      describe: 'how many changed, added and removed items to show per map',
    },
    ...typeOptions,
    ...libdir,
    json: { ...json, describe: 'print one JSON object for each look' },
  },
} as const;

type WatchArguments = Given<typeof takes>;

export const command: Command = {
  name: 'watch',
  summary: 'show how live maps change, the largest changes first, with rates',
  ...takes,
  examples: [
    ['watch --name flows', 'what changes in one map, every second'],
    ['watch --pinned /sys/fs/bpf/app -n 5', 'the maps pinned in a folder, every five seconds'],
    ['watch pid:4711 --json --count 10 > changes.json', 'ten looks at the maps of a process, as JSON'],
  ],
  epilogue: 'Watching changes nothing: no item is removed, and least recently used items stay that. Ctrl-C ends it.',
  run,
};

/** How often in a row maps may fail to be read, because they change or go away meanwhile. */
const FAILURES = 5;
const LEAST_INTERVAL = 0.1;

/** @param sys the kernel; tests have their own */
async function run(args: WatchArguments, io: Io, sys?: Sys): Promise<number> {
  const { live, files } = selectedSources(args);
  if (files[0] !== undefined) {
    throw new BpfimgError('usage', 'expected live maps: pinned:PATH, id:N, name:NAME, pid:PID, tree:PID', {
      subject: files[0],
    });
  }
  const all = args.all || args.sources.includes('all:');
  if (!all && !selected(live)) throw new BpfimgError('usage', 'which maps? --id, --name, --pinned, --pid, or --all');
  // Later looks are timed, so a zero would be a busy loop.
  if (!(args.interval >= LEAST_INTERVAL && args.interval <= 86_400)) {
    throw new BpfimgError('usage', `--interval takes seconds, from ${LEAST_INTERVAL} to 86400`);
  }
  for (const name of ['count', 'limit'] as const) {
    const value = args[name];
    if (value !== undefined && !(Number.isInteger(value) && value >= (name === 'count' ? 1 : 0))) {
      throw new BpfimgError('usage', `--${name} takes a whole number`);
    }
  }
  const sources = new Sources(io, args, sys);
  const watch = new Watch(args, io, await sources.types());
  await written(undefined, io, async (out) => {
    await watch.run(() => sources.openLive('live maps', live), out);
  });
  return EXIT.ok;
}

/** One capture of the maps. */
interface Look {
  readonly source: DumpSource;
  readonly dump: Dump;
  /** When it began, in milliseconds. */
  readonly at: number;
}

/** Captures the maps again and again, and compares each capture with the one before; only these two are kept. */
class Watch {
  /** Forms of the items of each map, which never change. */
  readonly #forms = new Map<number, ItemForms | undefined>();
  readonly #said = new Set<string>();

  constructor(
    readonly args: WatchArguments,
    readonly io: Io,
    readonly types: MapTypes,
  ) {}

  /** @param open makes the first capture */
  async run(open: () => Promise<DumpSource>, out: Output): Promise<void> {
    const { interval, count = Number.POSITIVE_INFINITY } = this.args;
    let began = performance.now();
    let before = await opened(await open(), began);
    let failures = 0;
    try {
      await this.#learn(before.dump);
      if (this.io.terminal) await this.#show(out, { seconds: 0, maps: [], gone: [] });
      for (let looks = 0; looks < count; ) {
        await new Promise((resolve) => setTimeout(resolve, Math.max(0, began + 1000 * interval - performance.now())));
        began = performance.now();
        let now: Look | undefined;
        try {
          const source = await before.source.again?.();
          now = source && (await opened(source, began));
          failures = 0;
        } catch (error) {
          // A map may go away while it is read.
          if (!(error instanceof BpfimgError) || ++failures === FAILURES) throw error;
          this.io.say(`bpfimg: ${error.message}`);
          continue;
        }
        looks++;
        if (now === undefined) {
          this.io.say('bpfimg: all maps are gone');
          return;
        }
        try {
          await this.#show(out, await this.#tick(before, now));
        } finally {
          close(before);
          before = now;
        }
      }
    } finally {
      close(before);
    }
  }

  /** Finds the types of the maps. */
  async #learn(dump: Dump): Promise<void> {
    const { btf, type } = this.args;
    const forms = await documentForms(
      await typeFinder(dump, this.types, { btf, type }),
      dump.maps,
      this.io,
      this.#said,
    );
    for (const map of dump.maps) {
      const inner = map.files[0] && this.types.get(map.files[0].message.map_type).inner;
      this.#forms.set(map.mapId, forms?.of(map) ?? (inner ? { value: mapIdForm } : undefined));
    }
  }

  async #tick(a: Look, b: Look): Promise<Tick> {
    const seconds = (b.at - a.at) / 1000;
    const pairs = pairMaps(a.dump, b.dump);
    const options = { holders: false, limit: Changes.most, once: false };
    const [left, right] = [a, b].map(({ dump }) => ({ dump, types: undefined })) as [Side, Side];
    const comparison = new MapComparison(left, right, this.types, options, pairs);
    const maps: MapTick[] = [];
    const gone: DumpMap[] = [];
    for (const pair of pairs) {
      if (pair.a === undefined) continue;
      if (pair.b === undefined) {
        gone.push(pair.a);
        continue;
      }
      const { items } = await comparison.compare(pair.a, pair.b);
      try {
        const changes = new Changes(this.#forms.get(pair.b.mapId), seconds, this.args.limit);
        maps.push(await changes.of(pair.b, items));
      } finally {
        items?.found.close();
      }
    }
    return { seconds, maps, gone: gone.map((map) => ({ id: map.mapId, name: mapName(map) ?? '' })) };
  }

  async #show(out: Output, tick: Tick): Promise<void> {
    const { io, args } = this;
    const now = new Date();
    if (args.json) {
      if (tick.seconds > 0) out.text(`${JSON.stringify(tickJson(tick, now, this.types))}\n`);
    } else if (io.terminal) {
      const [columns, rows] = [io.columns || 80, io.rows || 24];
      const lines = tickLines(tick, now, this.types, columns);
      const fit =
        lines.length < rows ? lines : [...lines.slice(0, rows - 2), `… ${lines.length - rows + 2} more lines`];
      out.text(onWholeScreen(fit));
    } else printLines(out, [...tickLines(tick, now, this.types), '']);
    await out.commit();
  }
}

type Side = { readonly dump: Dump; readonly types: undefined };

async function opened(source: DumpSource, at: number): Promise<Look> {
  try {
    return { source, dump: await mapsOf(source), at };
  } catch (error) {
    source.close();
    throw error;
  }
}

function close({ dump, source }: Look): void {
  dump.close();
  source.close();
}
