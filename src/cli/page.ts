/** What help says about a command: from its table, for the terminal (help.ts) and for man pages (src/build/man.mjs). */
import { type Command, OPTION_GROUPS, type Option, type Word } from './command.js';
import { COMMON } from './options.js';

/** What bpfimg is for. */
export const PURPOSE = 'inspect, edit and restore the BPF maps in CRIU dumps';

/** A term and what it means. */
export type Row = readonly [term: string, meaning: string];

/** A page of help. */
export interface Page {
  readonly name: string;
  readonly summary: string;
  /** The command line, without `bpfimg`. */
  readonly synopsis: string;
  readonly words: readonly Row[];
  /** Options by their titles. */
  readonly groups: readonly (readonly [title: string, rows: readonly Row[]])[];
  readonly notes: string | undefined;
  /** Command lines, without `bpfimg`. */
  readonly examples: readonly Row[];
  readonly exits: readonly Row[];
}

/** What the exit codes of most commands mean. */
export const EXITS: Readonly<Record<number, string>> = {
  0: 'done',
  1: 'something failed',
  2: 'wrong usage',
  130: 'interrupted',
};

/** Exit codes with their meanings. */
export function exitRows(exits: Readonly<Record<number, string>> = {}): Row[] {
  return Object.entries({ ...EXITS, ...exits });
}

/** The page about a command. */
export function pageOf(command: Command): Page {
  const { name, summary, words = {}, epilogue, examples = [], exits } = command;
  const rows = Object.entries(words).map(([word, declared]): Row => [wordName(word, declared), meaning(declared)]);
  const options = Object.entries(optionsOf(command));
  const groups = OPTION_GROUPS.map((title): [string, Row[]] => [
    title,
    options
      .filter(([, { group = 'Other' }]) => group === title)
      .map(([option, declared]) => [optionTerm(option, declared), meaning(declared)]),
  ]);
  return {
    name,
    summary,
    synopsis: synopsis(command),
    words: rows,
    groups: groups.filter(([, members]) => members.length > 0),
    notes: epilogue,
    examples,
    exits: exitRows(exits),
  };
}

/** All options of a command, with those of every command. */
export function optionsOf({ options = {} }: Pick<Command, 'options'>): Readonly<Record<string, Option>> {
  return { ...options, ...COMMON };
}

/** What help calls a word: `SOURCE`. */
export function wordName(name: string, { value = name.toUpperCase() }: Word): string {
  return value;
}

/** What help calls the value of an option; undefined if it takes none. */
export function valueName({ type, choices, value }: Option): string | undefined {
  if (type === 'boolean') return undefined;
  return value ?? choices?.join('|') ?? (type === 'number' ? 'N' : 'TEXT');
}

function synopsis(command: Command): string {
  const { name, usage, words = {}, tail } = command;
  if (usage !== undefined) return usage;
  const parts = Object.entries(words).map(([word, declared]) => {
    const { demandOption, array, choices } = declared;
    const text = (choices?.join('|') ?? wordName(word, declared)) + (array ? '…' : '');
    return demandOption ? text : `[${text}]`;
  });
  const needed = Object.entries(command.options ?? {}).filter(([, { demandOption }]) => demandOption);
  const options = needed.map(([option, declared]) => `--${option} ${valueName(declared)}`);
  return [name, ...parts, ...options, '[OPTIONS]', ...(tail ? ['[-- COMMAND…]'] : [])].join(' ');
}

/** `-i, --in FILE`, `--map MAP…`, `--[no-]color`. */
function optionTerm(name: string, option: Option): string {
  const { alias, array, requiresArg, mayBeEmpty } = option;
  const value = valueName(option);
  const short = typeof alias === 'string' ? `-${alias}, ` : '    ';
  // Options that are neither on nor off by themselves.
  if (value === undefined) return `${short}--${option.default === undefined ? '[no-]' : ''}${name}`;
  const text = mayBeEmpty && !requiresArg ? `[=${value}]` : ` ${value}`;
  return `${short}--${name}${text}${array ? '…' : ''}`;
}

/** What is said of a word or an option, with its default. */
function meaning({ describe = '', default: usual, ...more }: Option | Word): string {
  const { defaultDescription } = more as Pick<Option, 'defaultDescription'>;
  const fact = defaultDescription ?? (typeof usual === 'string' || typeof usual === 'number' ? String(usual) : 'none');
  return fact === 'none' ? describe : `${describe} [default: ${fact}]`;
}
