/** Live maps as a source: captures them into a temporary folder. */
import * as path from 'node:path';
import { capture } from '../capture/capture.js';
import { folderFiles } from '../dump/files.js';
import { BpfimgError } from '../errors.js';
import { mapSubject } from '../kernel/flags.js';
import { LiveMaps, type Selectors } from '../kernel/live.js';
import { reportText } from '../maptype.js';
import { noMapsText } from './nothing.js';
import { privateFolder } from './private.js';
import { selected } from './selectors.js';
import type { DumpSource, SourceHost } from './source.js';

/** Captures the maps that `selectors` name; messages call them `name`. */
export async function openLiveMaps(name: string, selectors: Selectors, host: SourceHost): Promise<DumpSource> {
  const types = await host.types();
  const sys = await host.sys(types);
  const live = LiveMaps.look(sys);
  const find = (maps: LiveMaps, id: number) => maps.maps.find((map) => map.id === id);
  const chosen = live.select(selectors);
  if (chosen.length === 0 && selected(selectors)) {
    throw new BpfimgError('notFound', noMapsText(sys, selectors, '', 'tree:PID'), { subject: name });
  }
  if (!selected(selectors)) await host.unseen?.(live.unseen);
  const watcher = await host.watch?.();
  const folder = privateFolder();
  try {
    const dump = path.join(folder.path, 'dump');
    const rows = await capture(sys, chosen, dump, types, {
      lenient: true,
      bare: host.bare === true,
      find: (id) => find(live, id) ?? find(LiveMaps.look(sys), id),
      progress: (doing) => watcher?.update(doing),
    });
    for (const row of rows) {
      if (row.report.kind !== 'full') host.warn?.(`${mapSubject(row.id, row.name)}: ${reportText(row.report)}`);
    }
    return { kind: 'dump', name, form: 'live', files: folderFiles(dump, name), close: () => folder.close() };
  } catch (error) {
    folder.close();
    throw error;
  } finally {
    watcher?.end();
  }
}
