import { hex } from '../src/bytes.js';
import { readBuckets, readSlots } from '../src/capture/read.js';
import { BpfimgError } from '../src/errors.js';
import { BpfMap, type MapSpec } from '../src/kernel/map.js';
import type { Sys } from '../src/kernel/sys.js';
import type { Carries, ItemSink, ItemSource, Plugin, ReplayWork, Template } from '../src/maptype.js';
import { fillInOrder } from '../src/replay/fill.js';
import { indexText } from './array.js';

/** Inner map's id, or file descriptor: u32. */
const VALUE = 4;

const CARRIES: Carries = {
  captured: 'items',
  replayed: 'items',
  lost: 'what inner maps must be like, of a map that has none',
};

/** Maps whose values are other maps: user space reads ids and writes file descriptors. */
export const mapInMap: Plugin = {
  name: 'map-in-map',
  types: [
    { number: 12, name: 'array_of_maps', since: '4.12', key: 'index', inner: true, refers: true, carries: CARRIES },
    { number: 13, name: 'hash_of_maps', since: '4.12', key: 'bytes', inner: true, refers: true, carries: CARRIES },
  ],

  async capture(map, sink, work) {
    const inner = new Set<number>();
    const watched: ItemSink = {
      get count() {
        return sink.count;
      },
      put(keys, values, count) {
        const view = new DataView(values.buffer, values.byteOffset);
        for (let i = 0; i < count; i++) inner.add(view.getUint32(i * VALUE, true));
        return sink.put(keys, values, count);
      },
    };
    const report = await (work.type.key === 'index' ? readSlots : readBuckets)(map, watched, work);
    const gone: number[] = [];
    let template: Template | undefined;
    for (const id of inner) {
      const found = work.follow(id);
      if (found === undefined) gone.push(id);
      template ??= found;
    }
    work.keep({ template });
    if (gone.length > 0) return { kind: 'partial', why: `its inner maps ${gone.join(', ')} are gone` };
    if (template === undefined) {
      return { kind: 'partial', why: 'it is empty, and the kernel does not tell what its inner maps must be' };
    }
    return report;
  },

  async needs(items) {
    const inner = new Set<number>();
    await eachId(items, (id) => inner.add(id));
    return [...inner];
  },

  create(sys, spec, work) {
    const { template } = work.facts;
    const inner = work.needed.map((id) => work.fresh(id)).filter((map) => map !== undefined);
    const [given] = inner;
    if (template === undefined && given === undefined) {
      const why = 'it was empty when it was captured, so what its inner maps must be is not known';
      throw new BpfimgError('unsupported', `${work.subject}: ${why}`);
    }
    // Inner maps that were all given another max_entries are what the map is for now.
    const wanted =
      template && allHave(inner, given?.maxEntries) ? { ...template, maxEntries: given.maxEntries } : template;
    // An inner map of this very map will do where the image does not say.
    if (wanted === undefined || (given !== undefined && fits(given, wanted))) {
      return BpfMap.create(sys, { ...spec, inner: given as BpfMap });
    }
    return withTemplate(sys, spec, wanted);
  },

  replay(map, items, work) {
    return fillInOrder(map, translated(items, work), work);
  },

  keyText: (key, type) => (type.key === 'index' ? indexText(key) : undefined),
};

function fits(map: BpfMap, { type, keySize, valueSize, maxEntries, flags }: Template): boolean {
  const same = map.type === type && map.keySize === keySize && map.valueSize === valueSize && map.flags === flags;
  return same && map.maxEntries === maxEntries;
}

function allHave(maps: readonly BpfMap[], maxEntries: number | undefined): maxEntries is number {
  return maxEntries !== undefined && maps.every((map) => map.maxEntries === maxEntries);
}

/** Creates a map by a template that goes away again: the kernel needs it for a moment. */
function withTemplate(sys: Sys, spec: MapSpec, template: Template): BpfMap {
  using inner = BpfMap.create(sys, { ...template, numaNode: -1 });
  return BpfMap.create(sys, { ...spec, inner });
}

/** Values looked at in one go. */
const STEP = 4096;

async function eachId(items: ItemSource, see: (id: number) => void): Promise<void> {
  const step = Math.max(1, Math.min(STEP, items.count));
  const [keys, values] = [Buffer.alloc(step * items.keySize), Buffer.alloc(step * items.valueSize)];
  for (let done = 0; done < items.count; done += step) {
    const count = Math.min(step, items.count - done);
    await items.read(done, count, keys, values);
    for (let i = 0; i < count; i++) see(values.readUInt32LE(i * VALUE));
  }
}

/** The items with file descriptors of fresh maps in place of ids. */
function translated(items: ItemSource, work: ReplayWork): ItemSource {
  return {
    ...items,
    async read(from, count, keys, values) {
      await items.read(from, count, keys, values);
      const view = new DataView(values.buffer, values.byteOffset);
      for (let i = 0; i < count; i++) {
        const id = view.getUint32(i * VALUE, true);
        const inner = work.fresh(id);
        if (inner === undefined) {
          const key = hex(keys.subarray(i * items.keySize, (i + 1) * items.keySize));
          throw new BpfimgError('badImage', `${work.subject}, item ${key}: its inner map ${id} is not in the dump`);
        }
        view.setUint32(i * VALUE, inner.fd, true);
      }
    },
  };
}
