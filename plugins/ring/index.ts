import { leaveEmpty, type MapType, type Plugin } from '../../src/maptype.js';
import { lazily } from '../../src/toolkit.js';
import { FLAG, RING, TYPES } from '../rules.js';

const replay = () => import('./replay.js');
const fillRing = lazily(replay, 'fillRing');
const ringForeseen = lazily(replay, 'ringForeseen');

/** Records begin and end at multiples of this. */
export const RING_WORD = 8;
/** Words of the unread records, with headers, in memory order. */
const kept = { key: 0, value: RING_WORD };

/** What can be mapped: the consumer's page alone; the producer's page, followed by the records twice. */
const mapped: NonNullable<MapType['mapped']> = ({ maxEntries }, page) => ({
  size: 2 * page + 2 * maxEntries,
  first: page,
});

/** Ring buffers between programs and processes. Unread records are captured without taking them out. */
export const ring: Plugin = {
  name: 'ring',
  types: [
    {
      number: 27,
      name: 'ringbuf',
      since: '5.8',
      key: 'none',
      imageItem: kept,
      mapped,
      carries: { captured: 'items', replayed: 'empty', lost: 'unread records: only programs can write them' },
      create: { ...RING, ...TYPES, flags: FLAG.NUMA_NODE },
    },
    {
      number: 31,
      name: 'user_ringbuf',
      since: '6.1',
      key: 'none',
      imageItem: kept,
      mapped,
      create: { ...RING, ...TYPES, flags: FLAG.NUMA_NODE },
    },
  ],
  capture: lazily(() => import('./capture.js'), 'readRing'),
  foresee: async (plan) => (plan.type.carries === undefined ? ringForeseen(plan) : undefined),
  replay: (map, items, work) => (work.type.carries === undefined ? fillRing : leaveEmpty)(map, items, work),
};
