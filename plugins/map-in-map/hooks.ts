/** Reads maps of maps and fills them. */
import { hex, viewOf } from '../../src/bytes.js';
import { readBuckets, readSlots } from '../../src/capture/read.js';
import { BpfimgError } from '../../src/errors.js';
import { KernelError } from '../../src/kernel/error.js';
import { BpfMap, type MapSpec } from '../../src/kernel/map.js';
import { breaches, misfits } from '../../src/kernel/rules.js';
import { ERRNO, type Sys } from '../../src/kernel/sys.js';
import {
  type CaptureWork,
  type Foreseen,
  FULL,
  type IntoWork,
  type ItemSink,
  type ItemSource,
  type Planned,
  type ReplayWork,
  type Report,
  type Template,
} from '../../src/maptype.js';
import { backwards, fillInOrder } from '../../src/replay/fill.js';
import { DROPPED, drop } from '../../src/replay/merge.js';
import { UnresolvedItems } from '../resolve.js';

/** Inner map's id, or file descriptor: u32. */
const VALUE = 4;

/** BPF_MAP_TYPE_ARRAY_OF_MAPS */
const ARRAY_OF_MAPS = 12;

/** Reads the items, and keeps their inner maps open until they are captured. */
export async function captureOuter(map: BpfMap, sink: ItemSink, work: CaptureWork): Promise<Report> {
  const inner = new InnerMaps(map, work);
  const held: ItemSink = {
    get count() {
      return sink.count;
    },
    put: (keys, values, count) => sink.put(keys, values, inner.hold(keys, values, count)),
  };
  const report = await (work.type.key === 'index' ? readSlots : readBuckets)(map, held, work);
  work.innerMaps(inner.ids);
  work.keep({ template: inner.template });
  if (inner.ids.size > 0 || report.kind !== 'full') return report;
  return { kind: 'partial', why: 'it is empty, and the kernel does not reveal what its inner maps must be like' };
}

/** Ids of the inner maps. */
export async function innerIds(items: ItemSource): Promise<readonly number[]> {
  const inner = new Set<number>();
  await eachId(items, (id) => inner.add(id));
  return [...inner];
}

/** What the kernel will say about the inner maps. */
export async function outerForeseen({ facts, inner, types, sys }: Planned): Promise<Foreseen | undefined> {
  const maps = [...inner];
  const [first] = maps;
  const wanted = wantedOf(facts.template, [...inner.values()]);
  const template = wanted ?? first?.[1];
  if (template === undefined) return undefined;
  const kind = types.row(template.type);
  if (kind?.create?.within === 'never') return { problems: [neverInner(kind.name)], report: FULL };
  const problems: string[] = [];
  let answer: boolean | undefined;
  const stricter = () => {
    answer ??= sys !== undefined && wantsOneLength(sys, template.type);
    return answer;
  };
  if (first === undefined || misfits(first[1], template, types).length > 0) {
    // Created for a moment, without a name or types.
    const asked = { ...template, extra: 0n, ifindex: 0, name: Buffer.alloc(0), btf: false, inner: false };
    problems.push(
      ...(kind === undefined ? [] : breaches(asked, kind)).map((what) => `what its inner maps must be like: ${what}`),
    );
  }
  for (const [id, map] of problems.length > 0 ? [] : maps) {
    const odd = misfits(map, template, types, stricter);
    if (odd.length > 0) problems.push(`inner map ${id} does not fit: ${odd.join(', ')}`);
  }
  return { problems, report: FULL };
}

/** Whether this kernel wants inner maps of an array type to have the same max_entries: tried with small ones. */
function wantsOneLength(sys: Sys, type: number): boolean {
  const small = { type, keySize: 4, valueSize: 8, name: 'bpfimg_probe' };
  let placing = false;
  try {
    using template = BpfMap.create(sys, { ...small, maxEntries: 1 });
    using longer = BpfMap.create(sys, { ...small, maxEntries: 2 });
    const shape = { type: ARRAY_OF_MAPS, keySize: VALUE, valueSize: VALUE, maxEntries: 1, name: small.name };
    using outer = BpfMap.create(sys, { ...shape, inner: template });
    const value = Buffer.alloc(VALUE);
    value.writeInt32LE(longer.fd);
    placing = true;
    outer.update(Buffer.alloc(VALUE), value);
    return false;
  } catch (error) {
    // Without permission to create maps, the kernel cannot be asked.
    if (error instanceof KernelError) return placing && error.errno === ERRNO.EINVAL;
    throw error;
  }
}

/** Creates a map for inner maps like those it had. */
export async function createOuter(sys: Sys, spec: MapSpec, work: ReplayWork): Promise<BpfMap> {
  const { template } = work.facts;
  const inner = work.needed.map((id) => work.fresh(id)).filter((map) => map !== undefined);
  const [given] = inner;
  if (template === undefined && given === undefined) {
    const none =
      work.needed.length === 0 ? 'it was empty when it was captured' : 'none of its inner maps is in the dump';
    const why = `${none}, so it is unknown what its inner maps must be like`;
    throw new BpfimgError('unsupported', why, { subject: work.subject });
  }
  const wanted = wantedOf(template, inner);
  const kind = sys.types.row((wanted ?? given)?.type ?? 0);
  if (kind?.create?.within === 'never')
    throw new BpfimgError('unsupported', neverInner(kind.name), { subject: work.subject });
  // If the image does not say, an inner map of this map is the template.
  if (wanted === undefined || (given !== undefined && isLikeTemplate(given, wanted))) {
    return BpfMap.create(sys, { ...spec, inner: given as BpfMap });
  }
  return withTemplate(sys, spec, wanted);
}

/** Puts the fresh inner maps into a fresh map. */
export async function fillOuter(map: BpfMap, items: ItemSource, work: ReplayWork): Promise<Report> {
  const lacking = new UnresolvedItems(work);
  const places: number[] = [];
  await eachId(items, (id, key) => {
    if (work.fresh(id) !== undefined) places.push(places.length + lacking.count);
    else lacking.add(key, `inner map ${id}, which is not in the dump`);
  });
  const here = lacking.count === 0 ? items : itemsAt(items, places);
  return lacking.report(await fillInOrder(map, translated(here, work), work));
}

/** How often an item is read again because its inner map was replaced before it could be opened. */
const REPLACED_RETRIES = 20;

/** The inner maps of one map, kept open as soon as an item names them. */
class InnerMaps {
  /** Those that are in the image. */
  readonly ids = new Set<number>();
  template: Template | undefined;
  readonly #value = Buffer.alloc(VALUE);

  constructor(
    readonly map: BpfMap,
    readonly work: CaptureWork,
  ) {}

  /**
   * Opens the inner maps of `count` items. If one is gone, it has been replaced, and the item gets the one that is
   * there now. Items without an inner map are dropped.
   * @returns how many items are left, at the beginning
   */
  hold(keys: Uint8Array, values: Uint8Array, count: number): number {
    const { keySize } = this.map;
    const view = viewOf(values);
    let kept = 0;
    for (let i = 0; i < count; i++) {
      const id = this.#held(keys.subarray(i * keySize, (i + 1) * keySize), view.getUint32(i * VALUE, true));
      if (id === undefined) continue;
      this.ids.add(id);
      view.setUint32(kept * VALUE, id, true);
      if (kept !== i) keys.copyWithin(kept * keySize, i * keySize, (i + 1) * keySize);
      kept++;
    }
    return kept;
  }

  /** The inner map of an item, which had `id` when it was read; undefined if the item is gone. */
  #held(key: Uint8Array, id: number): number | undefined {
    for (let left = REPLACED_RETRIES; ; left--) {
      const found = this.work.follow(id);
      this.template ??= found;
      if (found !== undefined || left === 0) return id;
      if (this.map.lookup(key, 0, this.#value) === undefined) return undefined;
      id = this.#value.readUInt32LE();
    }
  }
}

function isLikeTemplate(map: BpfMap, { type, keySize, valueSize, maxEntries, flags }: Template): boolean {
  const same = map.type === type && map.keySize === keySize && map.valueSize === valueSize && map.flags === flags;
  return same && map.maxEntries === maxEntries;
}

/** The template of the map; if all inner maps got another max_entries, with that. */
function wantedOf(
  template: Template | undefined,
  inner: readonly { readonly maxEntries: number }[],
): Template | undefined {
  const [first] = inner;
  const same = first !== undefined && inner.every(({ maxEntries }) => maxEntries === first.maxEntries);
  return template && same ? { ...template, maxEntries: first.maxEntries } : template;
}

function neverInner(name: string): string {
  return `the kernel accepts no ${name} as an inner map`;
}

/** Creates a map with a temporary template, which the kernel needs only for a moment. */
function withTemplate(sys: Sys, spec: MapSpec, template: Template): BpfMap {
  using inner = BpfMap.create(sys, { ...template, numaNode: -1 });
  return BpfMap.create(sys, { ...spec, inner });
}

/** Values that are read at once. */
const STEP_VALUES = 4096;

/** @param see is lent the key until it returns */
async function eachId(items: ItemSource, see: (id: number, key: Buffer) => void): Promise<void> {
  const step = Math.max(1, Math.min(STEP_VALUES, items.count));
  const [keys, values] = [Buffer.alloc(step * items.keySize), Buffer.alloc(step * items.valueSize)];
  for (let done = 0; done < items.count; done += step) {
    const count = Math.min(step, items.count - done);
    await items.read(done, count, keys, values);
    for (let i = 0; i < count; i++) {
      see(values.readUInt32LE(i * VALUE), keys.subarray(i * items.keySize, (i + 1) * items.keySize));
    }
  }
}

/** The items at these positions, which ascend. */
function itemsAt(items: ItemSource, places: readonly number[]): ItemSource {
  const { keySize, valueSize } = items;
  return {
    keySize,
    valueSize,
    count: places.length,
    async read(from, count, keys, values) {
      for (let done = 0; done < count; ) {
        const first = places[from + done] as number;
        let run = 1;
        while (done + run < count && places[from + done + run] === first + run) run++;
        await items.read(first, run, keys.subarray(done * keySize), values.subarray(done * valueSize));
        done += run;
      }
    },
  };
}

/** The items with file descriptors of fresh maps instead of ids. */
function translated(items: ItemSource, work: ReplayWork): ItemSource {
  return {
    ...items,
    async read(from, count, keys, values) {
      await items.read(from, count, keys, values);
      const view = viewOf(values);
      for (let i = 0; i < count; i++) {
        view.setUint32(i * VALUE, work.fresh(view.getUint32(i * VALUE, true))?.fd as number, true);
      }
    },
  };
}

/**
 * Puts inner maps into an existing map. An inner map that has the attributes of the new one stays and gets its items;
 * any other is replaced with a fresh one, which has all its items by then.
 */
export async function mergeOuter(map: BpfMap, items: ItemSource, work: IntoWork): Promise<void> {
  const { counts, mode } = work;
  const last = backwards(items);
  const done = new Set<string>();
  const batch = map.batch(Math.max(1, Math.min(STEP_VALUES, items.count)));
  for (let at = 0; at < items.count; at += batch.room) {
    const count = Math.min(batch.room, items.count - at);
    await last.read(at, count, batch.keys, batch.values);
    for (let i = 0; i < count; i++) {
      work.check();
      const key = Buffer.from(batch.keys.subarray(i * map.keySize, (i + 1) * map.keySize));
      if (done.has(hex(key))) continue;
      done.add(hex(key));
      if (work.type.key === 'index' && key.readUInt32LE() >= map.maxEntries) drop(counts, DROPPED.range);
      else await mergeInner(map, key, batch.values.readUInt32LE(i * VALUE), work);
    }
    work.progress(at + count);
  }
  if (mode !== 'sync') return;
  for (const key of keysOf(map)) {
    if (done.has(hex(key)) || map.lookup(key) === undefined) continue;
    if (work.dry || map.delete(key)) counts.deleted++;
  }
}

/** Puts inner map `id` of the source at `key`. */
async function mergeInner(map: BpfMap, key: Buffer, id: number, work: IntoWork): Promise<void> {
  const { counts, mode } = work;
  const was = map.lookup(key);
  if (was !== undefined && mode === 'insert') counts.unchanged++;
  else if (was === undefined && mode === 'update') drop(counts, DROPPED.absent);
  else if (was !== undefined && (await reused(map, viewOf(was).getUint32(0, true), id, work))) counts.unchanged++;
  else {
    const inner = await work.fresh(id);
    if (inner === undefined) return drop(counts, 'its inner map is not in the source');
    if (!work.dry) {
      const value = Buffer.alloc(VALUE);
      value.writeInt32LE(inner.fd);
      try {
        map.update(key, value);
      } catch (error) {
        if (!(error instanceof KernelError)) throw error;
        if (error.errno !== ERRNO.E2BIG && error.errno !== ERRNO.ENOSPC) throw error.of(`item ${hex(key)}`);
        return drop(counts, DROPPED.full);
      }
    }
    if (was === undefined) counts.inserted++;
    else counts.updated++;
  }
}

/** Puts the items of inner map `id` of the source into the one that has `oldId`, if they are alike. */
async function reused({ sys }: BpfMap, oldId: number, id: number, work: IntoWork): Promise<boolean> {
  let inner: BpfMap;
  try {
    inner = BpfMap.openById(sys, oldId);
  } catch (error) {
    // Somebody has replaced it meanwhile.
    if (error instanceof KernelError && error.errno === ERRNO.ENOENT) return false;
    throw error;
  }
  try {
    return await work.reuse(id, inner);
  } finally {
    inner.close();
  }
}

function keysOf(map: BpfMap): Buffer[] {
  const keys: Buffer[] = [];
  for (let key = map.nextKey(undefined); key !== undefined; key = map.nextKey(key)) {
    keys.push(Buffer.from(key));
    // If others change the map, the walk may start again.
    if (keys.length > 2 * map.maxEntries) break;
  }
  return keys;
}
