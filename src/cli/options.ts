/** Options of the commands, as yargs takes them. */

export const string = { type: 'string', requiresArg: true } as const;
export const boolean = { type: 'boolean', default: false } as const;
const several = { ...string, array: true, default: [] as string[], defaultDescription: 'all' } as const;
export const json = { ...boolean, describe: 'print JSON' } as const;
const image = { ...string, describe: 'image to read; standard input when none is named' } as const;
export const map = {
  ...string,
  array: true,
  default: [] as string[],
  defaultDescription: 'all',
  describe: 'only this map: its id, or in a dump its name',
} as const;

export const types = {
  btf: { ...string, describe: "a program's object file, or raw BTF: types by the names of its maps" },
  type: {
    ...string,
    array: true,
    default: [] as string[],
    defaultDescription: 'none',
    describe: 'NAME=KEY:VALUE, types of one map, out of --btf, the dump or the kernel',
  },
} as const;

export const selectors = {
  id: { ...several, describe: 'only the map with this id' },
  name: { ...several, describe: 'only the map with this name' },
  pinned: { ...several, describe: 'only the map pinned at this path' },
  pid: { ...several, describe: 'only the maps this process holds' },
  fd: { ...several, describe: 'of the process only this file' },
  tree: { ...boolean, describe: 'of the process and of all below it' },
  all: { ...boolean, describe: 'every map there is' },
} as const;
export const libdir = {
  ...string,
  array: true,
  alias: 'L',
  default: [] as string[],
  defaultDescription: 'none',
  describe: 'folder with plugins for map types (also BPFIMG_LIBS_DIR)',
} as const;

/** What a command takes: words without an option, and options. */
export const DECODE = {
  words: { source: { type: 'string', describe: 'image, dump folder, or - for standard input' } },
  options: {
    in: { ...image, alias: 'i' },
    out: { ...string, alias: 'o', describe: 'file to write instead of standard output' },
    format: {
      choices: ['items', 'crit', 'ndjson'],
      requiresArg: true,
      default: 'items',
      describe: 'dialect of the JSON',
    },
    pretty: { ...boolean, describe: 'indent; name flags as crit does' },
    nopl: { ...boolean, describe: 'leave out keys and values' },
    map,
    ...types,
    typed: {
      type: 'boolean',
      defaultDescription: 'of a dump folder',
      describe: 'keys and values as JSON of their types, where these are known; --no-typed as bytes',
    },
  },
} as const;

export const ENCODE = {
  words: { json: { type: 'string', describe: 'JSON file, or - for standard input' } },
  options: {
    in: { ...string, alias: 'i', describe: 'JSON to read; standard input when none is named' },
    out: { ...string, alias: 'o', describe: 'image to write instead of standard output' },
    dir: { ...string, alias: 'D', describe: 'dump folder to write a maps document into' },
    force: { ...boolean, describe: 'replace the BPF parts of a dump that stands in DIR' },
  },
  conflicts: ['out', 'dir'],
} as const;

export const INFO = {
  words: { images: { type: 'string', array: true, demandOption: true, describe: 'images' } },
  options: {},
} as const;

export const SHOW = {
  words: { source: { type: 'string', describe: 'image, dump folder, or - for standard input' } },
  options: {
    in: { ...image, alias: 'i' },
    map,
    limit: { type: 'number', requiresArg: true, default: 10, describe: 'items of each map; 0 shows all' },
    ...types,
    raw: { ...boolean, describe: 'bytes, also where types are known' },
    text: { ...boolean, describe: 'keys of tries as addresses, where they have the size of one' },
    types: { ...boolean, describe: 'the types of keys and values as C, in place of items' },
    json,
  },
} as const;

export const VERIFY = {
  words: { source: { type: 'string', describe: 'image, dump folder, or - for standard input' } },
  options: { in: { ...image, alias: 'i' }, ...types, json },
} as const;

export const LIST = { words: {}, options: { ...selectors, json } } as const;

/** Options of every command. */
export const COMMON = {
  debug: { type: 'boolean', default: false, describe: 'show where an error came from' },
  color: { type: 'boolean', describe: 'colours; --no-color or NO_COLOR turns them off' },
} as const;

/** Options of commands that show or check items. */
export interface TypeArguments {
  readonly btf?: string | undefined;
  readonly type: readonly string[];
}

/** Whether the command line names types. */
export function namesTypes({ btf, type }: TypeArguments): boolean {
  return btf !== undefined || type.length > 0;
}
