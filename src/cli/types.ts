/** The types that a command uses to show items, from its options. The code for types is loaded only if there are any. */
import type { DocumentForms } from '../dump/document.js';
import type { Dump, DumpMap } from '../dump/model.js';
import { mapName } from '../dump/select.js';
import type { TypeFinder, TypeProblem } from '../dump/types.js';
import { BpfimgError } from '../errors.js';
import type { KnownTypes } from '../maptype.js';
import { nameText } from '../render.js';
import type { Io } from './io.js';
import { namesTypes, type TypeArguments } from './options.js';

/** Finds the types of a dump's maps, for people if `args` says so; undefined if there are none. */
export async function typeFinder(dump: Dump, table: KnownTypes, args: TypeArguments): Promise<TypeFinder | undefined> {
  if (dump.btf.size === 0 && !namesTypes(args)) {
    expectUsed(args.as);
    return undefined;
  }
  const { TypeFinder } = await import('../dump/types.js');
  return new TypeFinder(dump, table, { ...args, readable: args.plain === false && args.json !== true });
}

/** Refuses what `--as` says of members that do not exist: `unused`. */
export function expectUsed(unused: readonly string[] = []): void {
  const [text] = unused;
  if (text === undefined) return;
  throw new BpfimgError('usage', 'no map of known types has such a member', { subject: `--as ${text}` });
}

/**
 * How the items of `maps` look. Problems with their types are reported on standard error.
 * @param said lines that are not repeated; the caller checks that `--as` was used
 */
export async function documentForms(
  finder: TypeFinder | undefined,
  maps: readonly DumpMap[],
  io: Io,
  said?: Set<string>,
): Promise<DocumentForms | undefined> {
  if (finder === undefined) return undefined;
  const forms = await finder.forms(maps);
  if (said === undefined) expectUsed(finder.unusedAs);
  sayProblems(finder, maps, io, said);
  return forms;
}

/** Says on standard error why maps lack types. */
export function sayProblems(finder: TypeFinder, maps: readonly DumpMap[], io: Io, said = new Set<string>()): void {
  const lines = finder.problems.map((problem) => `${problemText(problem)}: shown as bytes`);
  for (const line of [...lines, finder.unused(maps)]) {
    if (line === undefined || said.has(line)) continue;
    said.add(line);
    io.say(`bpfimg: warning: ${line}`);
  }
}

function problemText({ map, message }: TypeProblem): string {
  const name = map && mapName(map);
  return map === undefined ? message : `map ${map.mapId}${name ? ` (${nameText(name)})` : ''}: ${message}`;
}
