/** Live maps as a source: captures them into a temporary folder. */
import * as path from 'node:path';
import { capture } from '../capture/capture.js';
import { folderFiles } from '../dump/files.js';
import { BpfimgError } from '../errors.js';
import { mapSubject } from '../kernel/flags.js';
import { type LiveMap, LiveMaps, type Selectors } from '../kernel/live.js';
import type { Sys } from '../kernel/sys.js';
import { type MapTypes, reportText } from '../maptype.js';
import { noMapsText } from './nothing.js';
import { privateFolder } from './private.js';
import { selected } from './selectors.js';
import type { DumpSource, SourceHost } from './source.js';

/** Captures the maps that `selectors` name; messages call them `name`. */
export async function openLiveMaps(name: string, selectors: Selectors, host: SourceHost): Promise<DumpSource> {
  const types = await host.types();
  const sys = await host.sys(types);
  const live = LiveMaps.look(sys, selectors);
  const chosen = live.select(selectors);
  if (chosen.length === 0 && selected(selectors)) {
    throw new BpfimgError('notFound', noMapsText(sys, selectors, '', 'tree:PID'), { subject: name });
  }
  if (!selected(selectors)) await host.unseen?.(live.unseen);
  return captured(name, live, chosen, { sys, types, host });
}

/** What capturing needs. */
interface Means {
  readonly sys: Sys;
  readonly types: MapTypes;
  readonly host: SourceHost;
}

/** Captures `chosen`, which are among `live`. */
async function captured(
  name: string,
  live: LiveMaps,
  chosen: readonly LiveMap[],
  { sys, types, host }: Means,
): Promise<DumpSource> {
  const watcher = await host.watch?.();
  const folder = privateFolder();
  try {
    const dump = path.join(folder.path, 'dump');
    const rows = await capture(sys, chosen, dump, types, {
      lenient: true,
      bare: host.bare === true,
      find: (id) => live.find(id),
      progress: (doing) => watcher?.update(doing),
    });
    for (const row of rows) {
      if (row.report.kind !== 'full') host.warn?.(`${mapSubject(row.id, row.name)}: ${reportText(row.report)}`);
    }
    const ids = new Set(chosen.map(({ id }) => id));
    return {
      kind: 'dump',
      name,
      form: 'live',
      files: folderFiles(dump, name),
      async again() {
        // Their pins may lead to other maps by now.
        const now = LiveMaps.look(sys, { ids: [...ids], names: [], pins: [], pids: [] });
        const left = now.maps.filter(({ id }) => ids.has(id));
        if (left.length === 0) return undefined;
        const { warn: _, ...quiet } = host;
        return captured(name, now, left, { sys, types, host: quiet });
      },
      close: () => folder.close(),
    };
  } catch (error) {
    folder.close();
    throw error;
  } finally {
    watcher?.end();
  }
}
