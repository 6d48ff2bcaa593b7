/** The types that a command shows items by, as its options say; their code is loaded when there are any. */
import type { DocumentForms } from '../dump/document.js';
import type { Dump, DumpMap } from '../dump/model.js';
import { mapName } from '../dump/select.js';
import type { TypeFinder, TypeProblem } from '../dump/types.js';
import { nameText } from '../render.js';
import type { Io } from './io.js';
import { namesTypes, type TypeArguments } from './options.js';

/** What finds the types of a dump's maps; undefined where nothing knows any. */
export async function typeFinder(dump: Dump, args: TypeArguments): Promise<TypeFinder | undefined> {
  if (dump.btf.size === 0 && !namesTypes(args)) return undefined;
  const { TypeFinder } = await import('../dump/types.js');
  return new TypeFinder(dump, args);
}

/** How the items of `maps` look; on standard error what their types lack. */
export async function itemForms(
  finder: TypeFinder | undefined,
  maps: readonly DumpMap[],
  io: Io,
): Promise<DocumentForms | undefined> {
  if (finder === undefined) return undefined;
  const forms = await finder.forms(maps);
  sayProblems(finder, maps, io);
  return forms;
}

/** Says on standard error what keeps maps from having types. */
export function sayProblems(finder: TypeFinder, maps: readonly DumpMap[], io: Io): void {
  for (const problem of finder.problems) io.say(`bpfimg: warning: ${problemText(problem)}: shown as bytes`);
  const unused = finder.unused(maps);
  if (unused !== undefined) io.say(`bpfimg: warning: ${unused}`);
}

function problemText({ map, message }: TypeProblem): string {
  const name = map && mapName(map);
  return map === undefined ? message : `map ${map.mapId}${name ? ` (${nameText(name)})` : ''}: ${message}`;
}
