import type { Carries, Plugin } from '../../src/maptype.js';
import { lazily } from '../../src/toolkit.js';
import { indexText } from '../array.js';
import { ELEMENTS, exactly, FLAG, HASH, NO_BTF, NUMA_RW, PROG, WORD } from '../rules.js';

const CARRIES: Carries = {
  captured: 'items',
  replayed: 'items',
  lost: 'for an empty map, what its inner maps must be like',
};

const hooks = () => import('./hooks.js');

/** Maps whose values are other maps: user space reads ids and writes file descriptors. */
export const mapInMap: Plugin = {
  name: 'map-in-map',
  types: [
    {
      number: 12,
      name: 'array_of_maps',
      since: '4.12',
      key: 'index',
      inner: true,
      holdsReferences: true,
      carries: CARRIES,
      create: { ...WORD, ...NO_BTF, flags: NUMA_RW, within: 'never' },
    },
    {
      number: 13,
      name: 'hash_of_maps',
      since: '4.12',
      key: 'bytes',
      inner: true,
      holdsReferences: true,
      carries: CARRIES,
      counted: ELEMENTS,
      create: {
        ...HASH,
        ...NO_BTF,
        value: exactly(4),
        flags: FLAG.NO_PREALLOC | NUMA_RW | FLAG.ZERO_SEED | PROG,
        within: 'never',
      },
    },
  ],
  capture: lazily(hooks, 'captureOuter'),
  needs: lazily(hooks, 'innerIds'),
  foresee: lazily(hooks, 'outerForeseen'),
  create: lazily(hooks, 'createOuter'),
  replay: lazily(hooks, 'fillOuter'),
  into: lazily(hooks, 'mergeOuter'),
  keyText: (key, type) => (type.key === 'index' ? indexText(key) : undefined),
};
