/** Options that several commands take. */
import type { Option } from './command.js';

/**
 * Replaces a lone `-` before yargs sees it, which would turn that into empty text. No argument of a process can
 * contain it.
 */
export const DASH = '\0';

/** One word, which must follow; given twice, it is wrong usage. */
export const string = { type: 'string', requiresArg: true } as const;
/** On if it is given; `--no-NAME` turns it off again. */
export const boolean = { type: 'boolean', default: false } as const;
/** A decimal number; whoever uses it checks its range. */
export const number = { type: 'number', requiresArg: true } as const;
/** May be given many times, one word each. */
export const several = { ...string, array: true, default: [] as string[], defaultDescription: 'all' } as const;
/** `--json`: the same results for programs. The members are a promise. */
export const json = { ...boolean, group: 'Output', describe: 'print JSON' } as const;
/** `-i`, as in crit; the same as naming the source as a word. */
export const image = {
  ...string,
  alias: 'i',
  value: 'FILE',
  group: 'Source',
  describe: 'image to read (default: standard input)',
} as const;
/** The word that names a source; see src/source/source.ts. */
export const source = {
  type: 'string',
  describe: 'a dump folder, image, archive, JSON document or live maps; - is standard input',
} as const;
/** `--map`, which selects maps within a source; src/dump/select.ts decides what matches. */
export const map = {
  ...several,
  mayBeEmpty: true,
  value: 'MAP',
  group: 'Selection',
  describe: 'only this map: its id or, in a dump, its name',
} as const;

/** Whether output on a terminal goes through a pager. */
export const pager = {
  type: 'boolean',
  defaultDescription: 'on a terminal',
  group: 'Output',
  describe: 'show output page by page (PAGER, or less); --no-pager prints it',
} as const;

/** Where the types of keys and values come from; src/dump/types.ts says which comes first. */
export const types = {
  btf: {
    ...string,
    value: 'FILE',
    group: 'Types',
    describe: "take types from a program's object file or raw BTF, by map name",
  },
  type: {
    ...several,
    value: 'NAME=KEY:VALUE',
    group: 'Types',
    defaultDescription: 'none',
    describe: 'the types of one map, looked up in --btf, the dump or the kernel',
  },
} as const;

/** What members are to people; src/btf/meaning.ts says what they are by themselves. */
export const as = {
  as: {
    ...several,
    defaultDescription: 'none',
    value: 'MEMBER=FORM',
    group: 'Types',
    describe: 'how a member is written: ipv4, ipv6, mac, be, hex, time, duration or bytes',
  },
} as const;

/** {@link as}, where people read. */
export const meaning = {
  ...as,
  plain: { ...boolean, group: 'Types', describe: 'print numbers, not the addresses and times that they mean' },
} as const;

/** `--like`, for sources that have items only; `verify` also compares with it. */
export const like = {
  ...string,
  value: 'SOURCE',
  group: 'Types',
  describe: 'a source with one map, whose attributes and types the items from `bpftool -j map dump` get',
} as const;

const members = { ...several, defaultDescription: 'none', group: 'Migration' } as const;
/** What has become of the members of keys and values. */
export const changes = {
  rename: { ...members, value: 'OLD=NEW', describe: 'the member (or enum value) OLD is called NEW in the new types' },
  drop: { ...members, value: 'MEMBER', describe: 'leave out this member of the old types' },
  set: { ...members, value: 'MEMBER=VALUE', describe: 'the value of a new member, in JSON; zero by default' },
} as const;

const chosen = { ...several, defaultDescription: 'none', group: 'Selection' } as const;
/** Which live maps; src/source/selectors.ts has the same as sources. */
export const selectors = {
  id: { ...chosen, value: 'ID', describe: 'the map with this id' },
  name: {
    ...chosen,
    mayBeEmpty: true,
    value: 'NAME',
    describe: 'the map with this name; or the maps that a pattern such as app_* matches',
  },
  pinned: { ...chosen, value: 'PIN', describe: 'the map pinned at this path, or the maps pinned in this folder' },
  pid: { ...chosen, value: 'PID', describe: 'the maps that this process holds' },
  fd: { ...chosen, value: 'FD', describe: 'with --pid: only this file descriptor' },
  tree: { ...boolean, group: 'Selection', describe: 'with --pid: also the maps of all its descendants' },
  all: { ...boolean, group: 'Selection', describe: 'every map' },
} as const;

/** Folders of plugins; their types replace bpfimg's own. */
export const libdir = {
  libdir: {
    ...several,
    alias: 'L',
    value: 'DIR',
    group: 'Other',
    defaultDescription: 'none',
    describe: 'load map-type plugins from this folder (also BPFIMG_LIBS_DIR)',
  },
} as const;

/** Options of every command. */
export const COMMON = {
  debug: { ...boolean, group: 'Other', describe: 'show where an error came from, and where the time went' },
  color: { type: 'boolean', group: 'Other', describe: 'use colours; --no-color or NO_COLOR turns them off' },
} as const satisfies Record<string, Option>;

/** Options of commands that show or check items. */
export interface TypeArguments {
  readonly btf?: string | undefined;
  readonly type: readonly string[];
  readonly as?: readonly string[] | undefined;
  /** Of commands that print for people, whether they want numbers. */
  readonly plain?: boolean;
  /** Programs get numbers, too. */
  readonly json?: boolean;
}

/** Whether the command line names types. */
export function namesTypes({ btf, type }: TypeArguments): boolean {
  return btf !== undefined || type.length > 0;
}
