/** What a command is: what it takes, its help and what it does, all in one file of `commands/`. */
import type { InferredOptionType, Options, PositionalOptions } from 'yargs';
import type { Io } from './io.js';

/** An option as yargs takes it. */
export interface Option extends Options {
  /** Text of no length means something. */
  readonly mayBeEmpty?: true;
}

type WordTable = Readonly<Record<string, PositionalOptions>>;
type OptionTable = Readonly<Record<string, Option>>;

/** What a command line may hold. */
export interface Takes {
  /** Words without an option, in this order. */
  readonly words?: WordTable;
  readonly options?: OptionTable;
  /** Two options that exclude each other. */
  readonly conflicts?: readonly [string, string];
  /** What follows `--` is a command of its own, which is run. */
  readonly tail?: true;
}

/** `dry-run` as code has it: `dryRun`. */
type Camel<K> = K extends `${infer Head}-${infer Tail}` ? `${Head}${Capitalize<Camel<Tail>>}` : K & string;

type Value<O> = O extends Options ? ReadonlyList<InferredOptionType<O>> : never;
/** Lists are not a command's to change. */
type ReadonlyList<V> = V extends (infer E)[] ? readonly E[] : V;

/** A value that need not be on the command line may be missing. */
type Values<T> = {
  readonly [K in keyof T as undefined extends Value<T[K]> ? never : Camel<K>]: Value<T[K]>;
} & {
  readonly [K in keyof T as undefined extends Value<T[K]> ? Camel<K> : never]?: Value<T[K]>;
};

type TakesOf<T, K extends string> = T extends Readonly<Record<K, infer P>> ? P : unknown;

/** What a command is given that takes `T`: names of options in camel case. */
export type Given<T extends Takes> = Values<TakesOf<T, 'words'>> &
  Values<TakesOf<T, 'options'>> & { readonly color?: boolean | undefined; readonly debug?: boolean };

/** A command with its help. */
export interface Command extends Takes {
  /** As one types it: `decode`, `criu check`. */
  readonly name: string;
  /** One line for the list of commands. */
  readonly summary: string;
  /** What follows the program's name, where that is more than words and options say. */
  readonly usage?: string;
  readonly examples?: readonly (readonly [line: string, meaning: string])[];
  /** What is printed below its options. */
  readonly epilogue?: string;
  /**
   * @param args what {@link Given} makes of what it takes
   * @returns the exit code, where it is not 0
   */
  run(args: never, io: Io): Promise<unknown>;
}

/** A parsed command line, ready to run. */
export type Run = (io: Io) => Promise<unknown>;
