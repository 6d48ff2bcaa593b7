/** Options that several commands take. */
import type { Option } from './command.js';

export const string = { type: 'string', requiresArg: true } as const;
export const boolean = { type: 'boolean', default: false } as const;
export const number = { type: 'number', requiresArg: true } as const;
export const several = { ...string, array: true, default: [] as string[], defaultDescription: 'all' } as const;
export const json = { ...boolean, describe: 'print JSON' } as const;
export const image = { ...string, alias: 'i', describe: 'image to read; standard input when none is named' } as const;
export const source = { type: 'string', describe: 'image, dump folder, or - for standard input' } as const;
export const map = {
  ...several,
  mayBeEmpty: true,
  describe: 'only this map: its id, or in a dump its name',
} as const;

export const types = {
  btf: { ...string, describe: "a program's object file, or raw BTF: types by the names of its maps" },
  type: {
    ...several,
    defaultDescription: 'none',
    describe: 'NAME=KEY:VALUE, types of one map, out of --btf, the dump or the kernel',
  },
} as const;

export const selectors = {
  id: { ...several, describe: 'only the map with this id' },
  name: { ...several, mayBeEmpty: true, describe: 'only the map with this name' },
  pinned: { ...several, describe: 'only the map pinned at this path' },
  pid: { ...several, describe: 'only the maps this process holds' },
  fd: { ...several, describe: 'of the process only this file' },
  tree: { ...boolean, describe: 'of the process and of all below it' },
  all: { ...boolean, describe: 'every map there is' },
} as const;

export const libdir = {
  libdir: {
    ...several,
    alias: 'L',
    defaultDescription: 'none',
    describe: 'folder with plugins for map types (also BPFIMG_LIBS_DIR)',
  },
} as const;

/** Options of every command. */
export const COMMON = {
  debug: { ...boolean, describe: 'show where an error came from' },
  color: { type: 'boolean', describe: 'colours; --no-color or NO_COLOR turns them off' },
} as const satisfies Record<string, Option>;

/** Options of commands that show or check items. */
export interface TypeArguments {
  readonly btf?: string | undefined;
  readonly type: readonly string[];
}

/** Whether the command line names types. */
export function namesTypes({ btf, type }: TypeArguments): boolean {
  return btf !== undefined || type.length > 0;
}
