/**
 * Completion: what may follow a command line that is being typed. The scripts of `completion` ask for it, as
 * `bpfimg __complete WORD…`, at every Tab: it is quick, does no harm, and never fails.
 */
import * as fs from 'node:fs';
import type { Command, Option, Word } from './command.js';
import { COMMANDS, GROUPS } from './commands.js';
import type { Io } from './io.js';
import { findCommand, type Part, partsOf } from './mistakes.js';
import { COMMON } from './options.js';
import { optionsOf, valueName, wordName } from './page.js';

/** What may be typed, and what it is. A shell adds no blank behind `/`, `:` and `=`. */
type Candidate = readonly [text: string, meaning?: string | undefined];

/** The most candidates that are of use to anybody. */
const MOST = 1000;

/** The largest file that is read for the names of its maps. */
const LARGEST = 1 << 24;

/**
 * Prints what may be typed in place of the last word, a candidate a line: its text, a tab, and what it is. A single
 * line `~` leaves a path to the shell, which knows what `~` and variables are.
 */
export async function complete(words: readonly string[], io: Io): Promise<void> {
  const current = words.at(-1) ?? '';
  let found: readonly Candidate[] = [];
  try {
    if (/^[~$]/.test(current)) found = [['~']];
    else found = (await candidates(words.slice(0, -1), current, io)).filter(([text]) => text.startsWith(current));
  } catch {
    // Somebody is typing: whatever is wrong is said when the command runs.
  }
  const out = io.stdout();
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they would be more lines
  const printable = found.filter(([text]) => !/[\0-\x1f]/.test(text)).slice(0, MOST);
  for (const [text, meaning = ''] of printable) out.text(`${text}\t${meaning}\n`);
  await out.commit();
}

async function candidates(before: readonly string[], current: string, io: Io): Promise<readonly Candidate[]> {
  const end = before.indexOf('--');
  const head = end < 0 ? before : before.slice(0, end);
  const [group] = head;
  if (group !== undefined && head.length === 1 && Object.hasOwn(GROUPS, group)) return commandNames(`${group} `);
  const place = await findCommand(head);
  if (place === undefined)
    return current.startsWith('-') ? options({ ...COMMON, ...ALONE }, [], current) : commandNames();
  const { command } = await (COMMANDS[place.name] as (typeof COMMANDS)[string])();
  const behind = place.at + place.name.split(' ').length;
  const typed = [...before.slice(0, place.at), ...before.slice(behind)];
  if (end >= 0 && command.tail) return paths(current, 'files');
  const dashes = typed.indexOf('--');
  const parts = partsOf(dashes < 0 ? typed : typed.filter((_, i) => i !== dashes), command);
  const last = parts.at(-1);
  const asked: Asked = { command, parts, io };
  if (dashes < 0) {
    const wanted = last?.option?.requiresArg && last.value === undefined ? last.option : undefined;
    if (wanted !== undefined) return values(valueName(wanted), wanted, current, asked);
    const [, start = '', value = ''] = /^(--[^=]+=)(.*)$/s.exec(current) ?? [];
    const option = start === '' ? undefined : partsOf([`${start}x`], command)[0]?.option;
    if (option !== undefined) {
      return (await values(valueName(option), option, value, asked)).map(([text, what]) => [start + text, what]);
    }
    if (current.startsWith('-') && current !== '-') return options(optionsOf(command), parts, current);
    if (current === '-') return options(optionsOf(command), parts, '--');
  }
  return wordValues(current, asked);
}

/** What is being completed. */
interface Asked {
  readonly command: Command;
  /** Of the command line so far, without the last word. */
  readonly parts: readonly Part[];
  readonly io: Io;
}

/** Options without a command. */
const ALONE: Readonly<Record<string, Option>> = {
  help: { type: 'boolean', default: false, group: 'Other', describe: 'explain a command, or list all of them' },
  version: { type: 'boolean', default: false, group: 'Other', describe: 'print the version' },
};

/** The commands whose names begin with `start`; of a group, only its name. */
async function commandNames(start = ''): Promise<Candidate[]> {
  const found = new Map<string, string>();
  for (const [name, load] of Object.entries(COMMANDS)) {
    if (!name.startsWith(start)) continue;
    const [word = ''] = name.slice(start.length).split(' ');
    found.set(word, GROUPS[word] ?? (await load()).command.summary);
  }
  return [...found];
}

function options(known: Readonly<Record<string, Option>>, parts: readonly Part[], current: string): Candidate[] {
  const used = new Set(parts.map(({ name }) => name));
  return Object.entries({ ...known, help: ALONE.help as Option }).flatMap(([name, option]): Candidate[] => {
    if (used.has(name) && !option.array) return [];
    const off = option.type === 'boolean' && (option.default === undefined || current.startsWith('--no-'));
    const what = option.describe ?? '';
    return [[`--${name}`, what], ...(off ? [[`--no-${name}`, `not: ${what}`] as const] : [])];
  });
}

/** What may be the next word of a command. */
function wordValues(current: string, asked: Asked): Promise<readonly Candidate[]> | readonly Candidate[] {
  const { command, parts } = asked;
  const declared = Object.entries(command.words ?? {});
  const at = parts.filter(({ isWord }) => isWord).length;
  const [name, word] = declared[at] ?? declared.at(-1) ?? [];
  if (name === undefined || word === undefined || (at >= declared.length && !word.array)) return [];
  const kind = word.completes ?? wordName(name, word);
  // The words after a map are keys and values.
  return kind === 'MAP' && at >= declared.length ? [] : values(kind, word, current, asked);
}

/** What may be a value of an option or a word that help calls `kind`. */
async function values(
  kind: string | undefined,
  { choices }: Option | Word,
  current: string,
  asked: Asked,
): Promise<readonly Candidate[]> {
  if (choices !== undefined) return choices.map((choice): Candidate => [String(choice)]);
  const load = kind !== undefined && Object.hasOwn(VALUES, kind) ? VALUES[kind] : undefined;
  return load === undefined ? [] : load(current, asked);
}

type Loader = (current: string, asked: Asked) => Promise<readonly Candidate[]> | readonly Candidate[];

/** What values there are, by what help calls them. */
const VALUES: Readonly<Record<string, Loader>> = {
  FILE: (current) => paths(current, 'files'),
  DIR: (current) => paths(current, 'folders'),
  PIN: pins,
  SOURCE: sources,
  TARGET: sources,
  MAP: mapsOfSource,
  COMMAND: (_, { parts }) => commandNames(parts.map(({ typed }) => `${typed} `).join('')),
  ID: async (_, { io }) => (await live(io)).map((map) => [String(map.id), nameAndType(map)]),
  NAME: async (_, { io }) =>
    (await live(io)).flatMap((map) => (map.name ? [[map.name, `map ${map.id}`] as const] : [])),
  PID: async (_, { io }) => holders(await live(io)),
  FD: async (_, { parts, io }) => {
    const pid = parts.filter(({ name }) => name === 'pid').at(-1)?.value;
    return fds(await live(io), pid ?? '');
  },
};

/** Files and folders whose path begins with `current`. */
function paths(current: string, what: 'files' | 'folders'): Candidate[] {
  const folder = current.slice(0, current.lastIndexOf('/') + 1);
  const start = current.slice(folder.length);
  const found = fs.readdirSync(folder === '' ? '.' : folder, { withFileTypes: true }).flatMap((entry): Candidate[] => {
    if (!entry.name.startsWith(start) || (entry.name.startsWith('.') && start === '')) return [];
    const path = folder + entry.name;
    const isFolder = entry.isDirectory() || (entry.isSymbolicLink() && leadsToFolder(path));
    return isFolder ? [[`${path}/`]] : what === 'files' ? [[path]] : [];
  });
  return found.sort(([a], [b]) => (a < b ? -1 : 1));
}

function leadsToFolder(path: string): boolean {
  try {
    return fs.statSync(path).isDirectory();
  } catch {
    return false;
  }
}

/** Where pins are, on almost every machine. */
const BPFFS = '/sys/fs/bpf/';

/** Pins and folders of pins. */
function pins(current: string): Candidate[] {
  return paths(BPFFS.startsWith(current) ? BPFFS : current, 'files');
}

/** Files, or live maps. */
async function sources(current: string, { parts, io, command }: Asked): Promise<readonly Candidate[]> {
  const [, word = '', rest = ''] = /^([a-z]+):(.*)$/s.exec(current) ?? [];
  const all = async () => live(io);
  const after = (found: readonly Candidate[]) => found.map(([text, what]): Candidate => [`${word}:${text}`, what]);
  switch (word) {
    case 'pinned':
      return after(pins(rest));
    case 'id':
      return after((await all()).map((map) => [String(map.id), nameAndType(map)]));
    case 'name':
      return after((await all()).flatMap((map) => (map.name ? [[map.name, `map ${map.id}`] as const] : [])));
    case 'pid':
    case 'tree': {
      const pid = /^(\d+):/.exec(rest)?.[1];
      if (pid === undefined) return after(holders(await all()));
      return after(fds(await all(), pid).map(([fd, what]) => [`${pid}:${fd}`, what]));
    }
    default: {
      // Words after the value of a selector are more values of it.
      const selector = parts.filter(({ name }) => ['id', 'name', 'pinned', 'pid'].includes(name ?? '')).at(-1);
      const kind = selector === undefined ? undefined : valueName(selector.option as Option);
      if (kind !== undefined && command.words?.sources !== undefined) {
        return (VALUES[kind] as Loader)(current, { parts, io, command });
      }
      return [...paths(current, 'files'), ...LIVE];
    }
  }
}

/** The beginnings of live sources. */
const LIVE: readonly Candidate[] = [
  ['pinned:', 'live maps by a pin or a folder of pins'],
  ['id:', 'a live map by id'],
  ['name:', 'live maps by name'],
  ['pid:', 'the live maps of a process'],
  ['tree:', 'the live maps of a process and its descendants'],
  ['all:', 'all live maps'],
];

/** The maps of the source that has been typed. */
async function mapsOfSource(_: string, { parts, io, command }: Asked): Promise<readonly Candidate[]> {
  const at = Object.entries(command.words ?? {}).findIndex(
    ([name, word]) => (word.completes ?? wordName(name, word)) === 'SOURCE',
  );
  const word = parts.filter(({ isWord }) => isWord)[at]?.typed;
  const source = word ?? parts.find(({ name }) => name === 'in')?.value ?? (io.terminal ? '.' : undefined);
  if (source === undefined || source === '-') return [];
  const stat = fs.statSync(source, { throwIfNoEntry: false });
  if (stat !== undefined && !stat.isDirectory() && (!stat.isFile() || stat.size > LARGEST)) return [];
  if (stat === undefined) {
    const { liveSelectors } = await import('../source/selectors.js');
    const selectors = liveSelectors(source);
    return selectors === undefined ? [] : (await look(io)).select(selectors).map(nameOrId);
  }
  const { Sources } = await import('./source.js');
  const { mapsOf } = await import('../source/source.js');
  const { wholeName } = await import('../dump/select.js');
  const opened = await new Sources({ ...io, say: () => {} }, { libdir: [] }).openBare(source);
  try {
    const dump = await mapsOf(opened);
    const names = dump.maps.map((map) => ({ id: map.mapId, name: wholeName(map) }));
    dump.close();
    return names.map(nameOrId);
  } finally {
    opened.close();
  }
}

/** What `--map` takes: the name; for a map that has none, the id. */
function nameOrId({ id, name }: { readonly id: number; readonly name?: string | undefined }): Candidate {
  return name ? [name, `map ${id}`] : [String(id), 'no name'];
}

/** The live maps, none of which is opened that could be harmed. */
async function look(io: Io) {
  const { LiveMaps } = await import('../kernel/live.js');
  const { openSys } = await import('../kernel/sys.js');
  const { mapTypes } = await import('./plugins.js');
  return LiveMaps.look(await openSys(await mapTypes([], io)));
}

type Live = Awaited<ReturnType<typeof look>>['maps'][number];

async function live(io: Io): Promise<readonly Live[]> {
  return (await look(io)).maps;
}

function nameAndType({ name, holders: [holder] }: Live): string {
  return [name || 'no name', holder === undefined ? '' : `of ${holder.command}`].join(' ').trim();
}

/** The processes that hold maps. */
function holders(maps: readonly Live[]): Candidate[] {
  const found = new Map(maps.flatMap((map) => map.holders.map(({ pid, command }) => [String(pid), command])));
  return [...found];
}

/** The file descriptors by which a process holds maps. */
function fds(maps: readonly Live[], pid: string): Candidate[] {
  return maps.flatMap((map) =>
    map.holders
      .filter((holder) => String(holder.pid) === pid)
      .map(({ fd }): Candidate => [String(fd), map.name || `map ${map.id}`]),
  );
}
