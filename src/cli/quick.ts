/**
 * Command lines as they mostly are, parsed with what Node has: yargs takes longer than many a command. Whatever is
 * not plain (help, errors, negated or glued options) is left to yargs.
 */
import { parseArgs } from 'node:util';
import type { EncodeArguments } from './commands/encode.js';
import type { InfoArguments } from './commands/info.js';
import type { ListArguments } from './commands/list.js';
import type { ShowArguments } from './commands/show.js';
import type { VerifyArguments } from './commands/verify.js';
import type { DecodeArguments } from './decode-dump.js';
import type { Io } from './io.js';
import { COMMON, DECODE, ENCODE, INFO, LIST, SHOW, VERIFY } from './options.js';
import { DASH } from './source.js';

/** A parsed command line, ready to run. May resolve to an exit code other than 0. */
export type Command = (io: Io) => Promise<unknown>;

/** What is used here of an option as yargs takes it. */
interface Option {
  readonly type?: 'string' | 'boolean' | 'number';
  readonly alias?: string;
  readonly array?: true;
  readonly default?: unknown;
  readonly choices?: readonly string[];
}

interface Spec {
  readonly words: Readonly<Record<string, Option>>;
  readonly options: Readonly<Record<string, Option>>;
  /** Two options that exclude each other. */
  readonly conflicts?: readonly [string, string];
}

type Values = Readonly<Record<string, unknown>>;

/** The commands that are parsed here. Their values are checked against the same options as by yargs. */
const COMMANDS: Readonly<Record<string, readonly [Spec, (values: Values, io: Io) => Promise<unknown>]>> = {
  decode: [DECODE, async (v, io) => (await import('./commands/decode.js')).run(v as unknown as DecodeArguments, io)],
  encode: [ENCODE, async (v, io) => (await import('./commands/encode.js')).run(v as unknown as EncodeArguments, io)],
  info: [INFO, async (v, io) => (await import('./commands/info.js')).run(v as unknown as InfoArguments, io)],
  show: [SHOW, async (v, io) => (await import('./commands/show.js')).run(v as unknown as ShowArguments, io)],
  verify: [VERIFY, async (v, io) => (await import('./commands/verify.js')).run(v as unknown as VerifyArguments, io)],
  list: [LIST, async (v, io) => (await import('./commands/list.js')).run(v as unknown as ListArguments, io)],
};

/** The command of a plain command line; undefined for what yargs must look at. */
export function quickly(argv: readonly string[]): Command | undefined {
  const [name = '', ...words] = dashed(argv);
  const found = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (found === undefined) return undefined;
  const [spec, run] = found;
  const values = valuesOf(spec, words);
  return values && ((io) => run(values, io));
}

/** Options run together, and words of no length. */
const NOT_PLAIN = /^(-[^-].+|)$/s;

function valuesOf(spec: Spec, words: readonly string[]): Values | undefined {
  if (words.some((word) => NOT_PLAIN.test(word))) return undefined;
  const options: Readonly<Record<string, Option>> = { ...spec.options, ...COMMON };
  const given = parsed(options, words);
  if (given === undefined) return undefined;
  const positionals = given.positionals.map(undashed);
  const values: Values = given.values;
  const result: Record<string, unknown> = {};
  for (const [name, option] of Object.entries(options)) {
    const value = valueGiven(option, values[name] as readonly unknown[] | undefined);
    if (value === REFUSED) return undefined;
    result[name] = value;
  }
  const [one, other] = spec.conflicts ?? [];
  if (one !== undefined && result[one] !== undefined && result[other as string] !== undefined) return undefined;
  for (const [name, { array }] of Object.entries(spec.words)) {
    if (array && positionals.length === 0) return undefined;
    const taken = positionals.splice(0, array ? positionals.length : 1);
    result[name] = array ? taken : taken[0];
  }
  return positionals.length > 0 ? undefined : result;
}

function parsed(options: Readonly<Record<string, Option>>, words: readonly string[]) {
  const config = Object.entries(options).map(([name, { type, alias }]) => [
    name,
    {
      type: type === 'boolean' ? 'boolean' : 'string',
      multiple: true,
      ...(alias === undefined ? {} : { short: alias }),
    },
  ]);
  try {
    return parseArgs({ args: [...words], options: Object.fromEntries(config), allowPositionals: true });
  } catch {
    return undefined;
  }
}

const REFUSED = Symbol('refused');

/** What an option means that was given so many times; {@link REFUSED} for what is wrong, or not plain. */
function valueGiven(option: Option, given: readonly unknown[] | undefined): unknown {
  if (given === undefined) return option.default;
  // Left to be refused, where it means nothing.
  if (given.includes('')) return REFUSED;
  if (option.array) return given;
  const [value] = given;
  if (given.length > 1 || (option.choices !== undefined && !option.choices.includes(value as string))) return REFUSED;
  if (option.type !== 'number') return value;
  return /^\d{1,15}$/.test(value as string) ? Number(value) : REFUSED;
}

/** Whether a command line is a replay's, whose `--` begins a command. */
export function isReplay(argv: readonly string[]): boolean {
  return argv.find((word) => !word.startsWith('-')) === 'replay';
}

/**
 * The words with a lone `-` as commands know it. Behind `--`, where nothing is an option any more, other words that
 * look like one are marked likewise, for yargs would take them for one; {@link undashed} takes the mark away.
 */
export function dashed(argv: readonly string[]): string[] {
  const found = argv.indexOf('--');
  const end = found < 0 ? argv.length : found + 1;
  const dash = (word: string) => (word === '-' ? DASH : word);
  const mark = (word: string) => (word.startsWith('-') && word !== '-' ? DASH + word : dash(word));
  const rest = argv.slice(end);
  return [...argv.slice(0, end).map(dash), ...(isReplay(argv) ? rest : rest.map(mark))];
}

/** A word as it was given, but for a lone `-`. */
export function undashed(word: string): string {
  return word.length > DASH.length && word.startsWith(DASH) ? word.slice(DASH.length) : word;
}
