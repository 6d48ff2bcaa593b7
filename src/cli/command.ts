/** What makes a command: its arguments, its help and its code, all in one file in `commands/`. */
import type { InferredOptionType, Options, PositionalOptions } from 'yargs';
import type { Io } from './io.js';

/** Under which title an option appears in help, in this order. */
export const OPTION_GROUPS = [
  'Source',
  'Selection',
  'Types',
  'Target',
  'Migration',
  'Items',
  'Output',
  'Other',
] as const;

/** An option as yargs declares it. */
export interface Option extends Options {
  /** Empty text is allowed. */
  readonly mayBeEmpty?: true;
  /** What help calls its value: `FILE`. Completion goes by it, too (see complete.ts). */
  readonly value?: string;
  readonly group?: (typeof OPTION_GROUPS)[number];
}

/** A word without an option, as yargs declares it. */
export interface Word extends PositionalOptions {
  /** What help calls it; its name by default, in capitals. */
  readonly value?: string;
  /** What it is for completion, if that is not its name in help: `SOURCE`. */
  readonly completes?: string;
}

type WordTable = Readonly<Record<string, Word>>;
type OptionTable = Readonly<Record<string, Option>>;

/** What a command line may contain. */
export interface Takes {
  /** Words without an option, in this order. */
  readonly words?: WordTable;
  readonly options?: OptionTable;
  /** Two options that exclude each other. */
  readonly conflicts?: readonly [string, string];
  /** What follows `--` is another command, which is run. */
  readonly tail?: true;
}

/** `dry-run` as in code: `dryRun`. */
type Camel<K> = K extends `${infer Head}-${infer Tail}` ? `${Head}${Capitalize<Camel<Tail>>}` : K & string;

type Value<O> = O extends Options ? ReadonlyList<InferredOptionType<O>> : never;
/** Commands may not change lists. */
type ReadonlyList<V> = V extends (infer E)[] ? readonly E[] : V;

/** Optional values may be undefined. */
type Values<T> = {
  readonly [K in keyof T as undefined extends Value<T[K]> ? never : Camel<K>]: Value<T[K]>;
} & {
  readonly [K in keyof T as undefined extends Value<T[K]> ? Camel<K> : never]?: Value<T[K]>;
};

type TakesOf<T, K extends string> = T extends Readonly<Record<K, infer P>> ? P : unknown;

/** The arguments of a command that takes `T`; names of options are in camel case. */
export type Given<T extends Takes> = Values<TakesOf<T, 'words'>> &
  Values<TakesOf<T, 'options'>> & { readonly color?: boolean | undefined; readonly debug?: boolean };

/** A command with its help. */
export interface Command extends Takes {
  /** As people type it: `decode`, `criu check`. */
  readonly name: string;
  /** One line for the list of commands. */
  readonly summary: string;
  /** The synopsis after the program's name, if words and options do not say enough. */
  readonly usage?: string;
  readonly examples?: readonly (readonly [line: string, meaning: string])[];
  /** What is printed below its options. */
  readonly epilogue?: string;
  /** Exit codes with another meaning than those of most commands (see page.ts). */
  readonly exits?: Readonly<Record<number, string>>;
  /**
   * @param args see {@link Given}
   * @returns the exit code, if it is not 0
   */
  run(args: never, io: Io): Promise<unknown>;
}

/** A parsed command line, ready to run. */
export type Run = (io: Io) => Promise<unknown>;
