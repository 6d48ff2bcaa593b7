/**
 * bpfimg's own ways to read and to fill maps, for its own plugins and for those of users. docs/plugins.md says what
 * each is for.
 */
import type { BpfMap } from './kernel/map.js';
import { FULL, type IntoWork, type ItemSink, type ItemSource, type Report, type Work } from './maptype.js';

/** The functions of a module that return promises. */
type Async<M> = { [K in keyof M]: M[K] extends (...args: never[]) => Promise<unknown> ? K : never }[keyof M];

/** The function `name` of a module that is loaded by the first call: most commands need only the data of map types. */
export function lazily<M, K extends Async<M>>(load: () => Promise<M>, name: K): M[K] {
  const call = async (...args: unknown[]) => ((await load())[name] as (...args: unknown[]) => unknown)(...args);
  return call as M[K];
}

const read = () => import('./capture/read.js');
const fill = () => import('./replay/fill.js');
const merge = () => import('./replay/merge.js');

/** Puts all items of a live map into a sink. */
export type ReadMap = (map: BpfMap, sink: ItemSink, work: Work) => Promise<Report>;

/** Fills a fresh map with items. */
export type FillMap = (map: BpfMap, items: ItemSource, work: Work) => Promise<Report>;

/** Puts items into a map that exists. */
export type MergeMap = (map: BpfMap, items: ItemSource, work: IntoWork) => Promise<void>;

/** What the function that makes a plugin receives. */
export interface Toolkit {
  readonly readBuckets: ReadMap;
  readonly readIndexes: ReadMap;
  readonly readMemory: ReadMap;
  readonly readPrefixes: ReadMap;
  readonly readKeys: ReadMap;
  readonly fillHash: FillMap;
  readonly fillIndexes: FillMap;
  readonly fillMemory: FillMap;
  readonly fillInOrder: FillMap;
  readonly mergeItems: MergeMap;
  readonly mergeIndexes: MergeMap;
  readonly appendItems: MergeMap;
  readonly FULL: Report;
}

/** bpfimg's own. */
export const toolkit: Toolkit = {
  readBuckets: lazily(read, 'readBuckets'),
  readIndexes: lazily(read, 'readIndexes'),
  readMemory: lazily(read, 'readMemory'),
  readPrefixes: lazily(read, 'readPrefixes'),
  readKeys: lazily(read, 'readKeys'),
  fillHash: lazily(fill, 'fillHash'),
  fillIndexes: lazily(fill, 'fillIndexes'),
  fillMemory: lazily(fill, 'fillMemory'),
  fillInOrder: lazily(fill, 'fillInOrder'),
  mergeItems: lazily(merge, 'mergeItems'),
  mergeIndexes: lazily(merge, 'mergeIndexes'),
  appendItems: lazily(merge, 'appendItems'),
  FULL,
};
