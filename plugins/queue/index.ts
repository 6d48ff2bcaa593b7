import type { Plugin } from '../../src/maptype.js';
import { backwards, fillInOrder } from '../../src/replay/fill.js';
import { NO_BTF, NUMA_RW, PROG, PUSHED } from '../rules.js';
import { drain } from './drain.js';

const STACK = 23;

/** Maps without keys: values are pushed, and reading one takes it out. An image has them in the order of pops. */
export const queue: Plugin = {
  name: 'queue',
  types: [
    {
      number: 22,
      name: 'queue',
      since: '4.20',
      key: 'none',
      drains: true,
      create: { ...PUSHED, ...NO_BTF, flags: NUMA_RW | PROG },
    },
    {
      number: 23,
      name: 'stack',
      since: '4.20',
      key: 'none',
      drains: true,
      create: { ...PUSHED, ...NO_BTF, flags: NUMA_RW | PROG },
    },
  ],
  capture: (map, sink, work) => drain(map, sink, work, work.type.number === STACK),
  replay: (map, items, work) => fillInOrder(map, work.type.number === STACK ? backwards(items) : items, work),
};
