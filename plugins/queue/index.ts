import type { Counted } from '../../src/kernel/rules.js';
import type { Plugin } from '../../src/maptype.js';
import { lazily, toolkit } from '../../src/toolkit.js';
import { NO_BTF, NUMA_RW, PROG, PUSHED } from '../rules.js';

const STACK = 23;
const BETWEEN: Counted = { by: 'positions', struct: 'bpf_queue_stack', put: 'head', taken: 'tail', slots: 'size' };
const drain = lazily(() => import('./drain.js'), 'drain');

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
      counted: BETWEEN,
      create: { ...PUSHED, ...NO_BTF, flags: NUMA_RW | PROG },
    },
    {
      number: 23,
      name: 'stack',
      since: '4.20',
      key: 'none',
      drains: true,
      counted: BETWEEN,
      create: { ...PUSHED, ...NO_BTF, flags: NUMA_RW | PROG },
    },
  ],
  capture: (map, sink, work) => drain(map, sink, work, work.type.number === STACK),
  async replay(map, items, work) {
    const { backwards, fillInOrder } = await import('../../src/replay/fill.js');
    return fillInOrder(map, work.type.number === STACK ? backwards(items) : items, work);
  },

  async into(map, items, work) {
    const { backwards } = await import('../../src/replay/fill.js');
    await toolkit.appendItems(map, work.type.number === STACK ? backwards(items) : items, work);
  },
};
