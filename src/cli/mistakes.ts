/** What is wrong with a command line that yargs refuses. Loaded only then. */
import { BpfimgError } from '../errors.js';
import { similarNames } from '../kernel/pattern.js';
import type { Command, Option } from './command.js';
import { COMMANDS, GROUPS } from './commands.js';
import { optionsOf, valueName, wordName } from './page.js';
import { nameAt } from './parse.js';

/** A part of a command line: a word, or an option with its value. */
export interface Part {
  /** As it was typed, without a value. */
  readonly typed: string;
  readonly isWord?: true;
  /** The option's name; undefined if the command has no such option. */
  readonly name?: string | undefined;
  readonly option?: Option | undefined;
  /** Undefined if none is given. */
  readonly value?: string | undefined;
}

/** Whether a word is an option, not a value: `-` alone is standard input. */
const isOption = (word: string) => word.startsWith('-') && word.length > 1;

/** Takes a command line apart, as yargs would for `command`. */
export function partsOf(words: readonly string[], { options: own, tail }: Command): Part[] {
  const options = optionsOf({ options: own ?? {} });
  const parts: Part[] = [];
  for (let i = 0; i < words.length; i++) {
    const word = words[i] as string;
    if (word === '--') {
      // What follows is another command, or words whatever they begin with.
      if (!tail) parts.push(...words.slice(i + 1).map((typed): Part => ({ typed, isWord: true })));
      break;
    }
    if (!isOption(word)) {
      parts.push({ typed: word, isWord: true });
      continue;
    }
    const [, typed = word, given] = /^(--[^=]*)=(.*)$/s.exec(word) ?? [];
    const found = typed.startsWith('--') ? [long(typed, options)] : short(word, options);
    const last = found.pop() as Part;
    const value = given ?? last.value;
    const next = words[i + 1];
    const takesNext = value === undefined && last.option !== undefined && valueName(last.option) !== undefined;
    if (takesNext && next !== undefined && !isOption(next)) i++;
    parts.push(...found, { ...last, value: takesNext && next !== undefined && !isOption(next) ? next : value });
  }
  return parts;
}

type Options = Readonly<Record<string, Option>>;

/** An option under one of its names. */
const named = (typed: string, name: string, options: Options): Part => ({ typed, name, option: options[name] });

/** `--name`, `--no-name`, or an alias. */
function long(typed: string, options: Options): Part {
  const name = typed.slice(2).replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
  if (Object.hasOwn(options, name)) return named(typed, name, options);
  const off = name.replace(/^no-/, '');
  if (off !== name && Object.hasOwn(options, off) && options[off]?.type === 'boolean')
    return named(typed, off, options);
  const alias = Object.keys(options).find((one) => options[one]?.alias === name);
  return alias === undefined ? { typed } : named(typed, alias, options);
}

/** `-q`, `-qi FILE`, `-iFILE`. */
function short(word: string, options: Options): Part[] {
  const parts: Part[] = [];
  for (let at = 1; at < word.length; at++) {
    const typed = `-${word[at]}`;
    const name = Object.keys(options).find((one) => options[one]?.alias === word[at]);
    if (name === undefined) return [...parts, { typed }];
    const part = named(typed, name, options);
    const rest = word.slice(at + 1);
    if (rest !== '' && valueName(part.option as Option) !== undefined) {
      return [...parts, { ...part, value: rest.replace(/^=/, '') }];
    }
    parts.push(part);
  }
  return parts;
}

const usage = (text: string, subject?: string) => new BpfimgError('usage', text, { subject });

/** What is wrong with `words`, which yargs refused with `message`. */
export function mistake(message: string, words: readonly string[], command: Command): BpfimgError {
  const parts = partsOf(words, command);
  const options = optionsOf(command);
  for (const { typed, isWord, option, value } of parts) {
    if (isWord) continue;
    if (option === undefined) {
      const known = Object.keys(options).map((name) => `--${name}`);
      return usage(`unknown option ${typed}${didYouMean(typed, known)}`, command.name);
    }
    const what = valueName(option);
    if (what !== undefined && option.requiresArg && (value ?? '') === '') {
      return usage(`it needs a value, ${what}: ${option.describe}`, typed);
    }
    const choices = option.choices?.map(String);
    if (choices !== undefined && value !== undefined && !choices.includes(value))
      return notChoice(typed, value, choices);
  }
  const given = parts.filter(({ isWord }) => isWord);
  return wrongWords(given, command) ?? wrongOptions(parts, message, command);
}

/** Words that are missing, too many, or none of those that may be there. */
function wrongWords(given: readonly Part[], command: Command): BpfimgError | undefined {
  const declared = Object.entries(command.words ?? {});
  const needed = declared.filter(([, { demandOption }]) => demandOption);
  const [missing] = needed.slice(given.length);
  if (missing !== undefined) {
    const [name, word] = missing;
    const more = word.array ? '…' : '';
    return usage(`${command.name} needs ${wordName(name, word)}${more}: ${word.describe}`);
  }
  for (const [i, [, { choices }]] of declared.entries()) {
    const value = given[i]?.typed;
    const known = choices?.map(String);
    if (value !== undefined && known !== undefined && !known.includes(value)) {
      return notChoice(command.name, value, known);
    }
  }
  const extra = given[declared.length];
  const endless = declared.some(([, { array }]) => array);
  return endless || extra === undefined ? undefined : usage(`unexpected word ${extra.typed}`, command.name);
}

function wrongOptions(parts: readonly Part[], message: string, command: Command): BpfimgError {
  const [one, other] = command.conflicts ?? [];
  if (one !== undefined && [one, other].every((name) => parts.some((part) => part.name === name))) {
    return usage(`--${one} and --${other} exclude each other`);
  }
  const missing = Object.entries(command.options ?? {}).find(
    ([name, { demandOption }]) => demandOption && !parts.some((part) => part.name === name),
  );
  if (missing !== undefined) {
    const [name, option] = missing;
    return usage(`${command.name} needs --${name} ${valueName(option)}: ${option.describe}`);
  }
  return usage(message.replace(/\s*\n\s*/g, ' '), command.name);
}

function notChoice(what: string, value: string, choices: readonly string[]): BpfimgError {
  const [last = '', ...rest] = [...choices].reverse();
  const list = rest.length === 0 ? last : `${rest.reverse().join(', ')} or ${last}`;
  return usage(`expected ${list}${didYouMean(value, choices)}`, `${what} ${value}`);
}

/** A suggestion to append to a message: `: did you mean show?`. */
function didYouMean(name: string, names: Iterable<string>): string {
  return question(similarNames(name, names));
}

const question = (names: readonly string[]) =>
  names.length === 0 ? '' : `: did you mean ${names.slice(0, 3).join(' or ')}?`;

/**
 * Finds the command if it does not come first: options may come before it.
 * @param words those before `--`
 * @returns undefined if there are only options
 * @throws BpfimgError if no word is a command
 */
export async function findCommand(words: readonly string[]): Promise<{ name: string; at: number } | undefined> {
  for (let at = 0; at < words.length; at++) {
    const name = nameAt(words, at);
    if (name === undefined) continue;
    const { command } = await (COMMANDS[name] as (typeof COMMANDS)[string])();
    // It may also be the value of an option.
    const parts = partsOf(words.slice(0, at + 1), command);
    if (parts.filter(({ isWord }) => isWord).length === 1 && parts.at(-1)?.isWord) return { name, at };
  }
  const stray = words.filter((word) => !isOption(word));
  if (stray.length === 0) return undefined;
  const [one = '', two] = stray;
  throw unknownCommand(Object.hasOwn(GROUPS, one) && two !== undefined ? `${one} ${two}` : one);
}

/** The error for a command that does not exist. */
export function unknownCommand(name: string): BpfimgError {
  if (Object.hasOwn(GROUPS, name)) {
    const members = Object.keys(COMMANDS).filter((one) => one.startsWith(`${name} `));
    return usage(`${name} needs a command: ${members.map((one) => one.slice(name.length + 1)).join(', ')}`);
  }
  const [group = '', ...rest] = name.split(' ');
  if (rest.length > 0) {
    const members = Object.keys(COMMANDS).filter((one) => one.startsWith(`${group} `));
    const like = similarNames(
      rest.join(' '),
      members.map((one) => one.slice(group.length + 1)),
    );
    return usage(`unknown command ${name}${question(like.map((one) => `${group} ${one}`))}`);
  }
  return usage(`unknown command ${name}${didYouMean(name, [...Object.keys(COMMANDS), ...Object.keys(GROUPS)])}`);
}
