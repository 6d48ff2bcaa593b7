/** Sources as a command line names them: a path or live maps; `-` or nothing is standard input. */
import * as fs from 'node:fs';
import type { DumpFiles } from '../dump/files.js';
import type { Editing, EditingOptions } from '../edit/document.js';
import type { ItemStore, ItemStoreOptions } from '../edit/items.js';
import { BpfimgError } from '../errors.js';
import type { Selectors } from '../kernel/live.js';
import type { Sys } from '../kernel/sys.js';
import type { MapTypes } from '../maptype.js';
import { type DumpSource, hostOf, openSource, type Source, type SourceHost } from '../source/source.js';
import type { Io } from './io.js';
import { DASH } from './options.js';

/** The source named by position or by `-i`; undefined for standard input. */
export function sourceOf(positional: string | undefined, option: string | undefined): string | undefined {
  if (positional !== undefined && option !== undefined) {
    const [one, other] = [positional, option].map((name) => (name === DASH ? '-' : name));
    throw new BpfimgError('usage', `two inputs, ${one} and -i ${other}: name one`);
  }
  const source = positional ?? option;
  return source === DASH ? undefined : source;
}

/** What `--like` names, which cannot be standard input. */
function modelName(text: string): string {
  if (text !== DASH) return text;
  throw new BpfimgError('usage', 'standard input is the source: name a file', { subject: '--like -' });
}

/** Options that say how sources are opened. */
export interface SourceOptions {
  readonly libdir: readonly string[];
  readonly like?: string | undefined;
}

/** Opens sources for one command. Map types are loaded when something needs them. */
export class Sources {
  #types: Promise<MapTypes> | undefined;
  readonly #host: Partial<SourceHost>;

  #likeUsed = false;

  /** @param sys the kernel; tests have their own */
  constructor(
    readonly io: Io,
    readonly options: SourceOptions,
    sys?: Sys,
  ) {
    this.#host = {
      stdin: async () => {
        if (await io.typed?.()) io.say('bpfimg: reading from the terminal; Ctrl-D ends the input');
        return io.stdin();
      },
      types: () => this.types(),
      like: () => {
        this.#likeUsed = true;
        return options.like && modelName(options.like);
      },
      sys: async (types) => sys ?? (await import('../kernel/sys.js')).openSys(types),
      unseen: async (what) => {
        const text = (await import('./unseen.js')).unseenText(what);
        if (text !== '') io.say(`bpfimg: ${text}`);
      },
      watch: async () => {
        const { Progress } = await import('./progress.js');
        return new Progress(io);
      },
    };
  }

  /** The table of map types. */
  types(): Promise<MapTypes> {
    this.#types ??= import('./plugins.js').then(({ mapTypes }) => mapTypes(this.options.libdir, this.io));
    return this.#types;
  }

  /**
   * Opens what `text` names; undefined is standard input. Warns about a dump that CRIU has not finished, or live maps
   * that could not be captured completely.
   * @param judged the command itself warns
   */
  async open(text: string | undefined, judged = false): Promise<Source> {
    const source = await openSource(
      text,
      judged ? this.#host : { ...this.#host, warn: (line) => this.io.say(`bpfimg: warning: ${line}`) },
    );
    if (source.kind === 'dump' && !judged) await this.#sayUnfinished(source.files);
    return source;
  }

  /** Captures the live maps that `selectors` name; messages call them `name`. */
  async openLive(name: string, selectors: Selectors): Promise<DumpSource> {
    const { openLiveMaps } = await import('../source/live.js');
    return openLiveMaps(name, selectors, this.#warning());
  }

  /** Whether items printed by bpftool have got the attributes of `--like`. */
  get likeUsed(): boolean {
    return this.#likeUsed;
  }

  /** Fails if no source has used `--like`. */
  expectLikeUsed(): void {
    const { like } = this.options;
    if (like === undefined || this.#likeUsed) return;
    throw new BpfimgError('usage', 'it is for sources that `bpftool -j map dump` has printed', {
      subject: `--like ${like}`,
    });
  }

  /** Opens the items of one map of what `text` names, by key. */
  async items(text: string | undefined, options: ItemStoreOptions): Promise<ItemStore> {
    const { openItems } = await import('../edit/items.js');
    return openItems(text, this.#warning(), options);
  }

  /** Opens what `text` names to edit it as a document. */
  async editing(text: string, options: EditingOptions): Promise<Editing> {
    const { openEditing } = await import('../edit/document.js');
    return openEditing(text, this.#warning(), options);
  }

  /** The host, with warnings. */
  #warning(): SourceHost {
    return hostOf({ ...this.#host, warn: (line) => this.io.say(`bpfimg: warning: ${line}`) });
  }

  /** Opens what `text` names for the attributes of its maps, without their items and without warnings. */
  openBare(text: string): Promise<Source> {
    return openSource(modelName(text), { ...this.#host, bare: true });
  }

  /** The current folder if it is a dump: for commands without a source whose standard input is not a pipe. */
  async here(): Promise<string | undefined> {
    if (!(await this.io.typed?.())) return undefined;
    const { isDump } = await import('../source/checkpoint.js');
    return isDump(fs.readdirSync('.')) ? '.' : undefined;
  }

  /** Warns about an unfinished dump, which may be incomplete or broken. */
  async #sayUnfinished(files: DumpFiles): Promise<void> {
    const { FINISHED, unfinishedDump } = await import('../dump/model.js');
    const why = unfinishedDump(files);
    if (why !== undefined) this.io.say(`bpfimg: warning: ${files.nameOf(FINISHED)}: ${why}`);
  }
}
