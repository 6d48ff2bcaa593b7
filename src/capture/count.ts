/** Counts the items of live maps by reading them, where the kernel does not count them. */
import * as os from 'node:os';
import { BpfimgError } from '../errors.js';
import { type LiveMap, openLive } from '../kernel/live.js';
import type { Sys } from '../kernel/sys.js';
import type { CaptureWork, ItemSink, MapTypes } from '../maptype.js';

/** Receives items and keeps none. */
class Counter implements ItemSink {
  count = 0;

  async put(_keys: Uint8Array, _values: Uint8Array, count: number): Promise<void> {
    this.count += count;
  }
}

/**
 * The number of items in `live`; undefined if reading would remove them, or does not show all of them, or if the map
 * cannot be opened without harm.
 */
export async function countItems(sys: Sys, live: LiveMap, types: MapTypes): Promise<number | undefined> {
  if (live.type === undefined) return undefined;
  const type = types.get(live.type);
  const { capture } = types.plugin(live.type);
  // What a map without keys holds is no number of items.
  if (capture === undefined || type.drains === true || type.key === 'none') return undefined;
  const ends: ((whole: boolean) => void)[] = [];
  const work: CaptureWork = {
    type,
    subject: `map ${live.id}`,
    drain: 'no',
    folder: os.tmpdir(),
    follow: () => undefined,
    innerMaps: () => {},
    atEnd: (end) => ends.push(end),
    keep: () => {},
    progress: () => {},
  };
  try {
    using map = openLive(sys, live);
    const items = new Counter();
    const { kind } = await capture(map, items, work);
    return kind === 'full' ? items.count : undefined;
  } catch (error) {
    if (!(error instanceof BpfimgError)) throw error;
    return undefined;
  } finally {
    for (const end of ends) end(true);
  }
}
