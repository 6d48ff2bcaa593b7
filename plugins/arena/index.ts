import type { Plugin } from '../../src/maptype.js';
import { lazily } from '../../src/toolkit.js';
import { indexText } from '../array.js';
import { exactly, FLAG, TYPES } from '../rules.js';

const replay = () => import('./replay.js');

/** Memory that programs and processes share at one address. */
export const arena: Plugin = {
  name: 'arena',
  types: [
    {
      number: 33,
      name: 'arena',
      since: '6.9',
      key: 'none',
      imageItem: { key: 4, value: 'page' },
      mapped: ({ maxEntries }, page) => ({ size: maxEntries * page }),
      carries: {
        captured: 'some items',
        replayed: 'some items',
        lost: 'pages that only programs have touched; all pages of an arena without map_extra, or (on replay) with BPF_F_SEGV_ON_FAULT',
      },
      create: {
        ...TYPES,
        key: exactly(0),
        value: exactly(0),
        entries: { min: 1, max: 2 ** 20 },
        flags: FLAG.MMAPABLE | FLAG.SEGV_ON_FAULT | FLAG.NO_USER_CONV,
        needs: FLAG.MMAPABLE,
        extra: { max: 2n ** 64n - 1n, step: 4096n },
      },
    },
  ],
  capture: lazily(() => import('./capture.js'), 'readArena'),
  foresee: lazily(replay, 'arenaForeseen'),
  replay: lazily(replay, 'fillArena'),
  keyText: indexText,
};
