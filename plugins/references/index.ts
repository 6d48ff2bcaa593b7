import { BpfimgError } from '../../src/errors.js';
import { MAP_FLAG } from '../../src/kernel/flags.js';
import { type Carries, leftEmpty, type Plugin } from '../../src/maptype.js';
import { lazily } from '../../src/toolkit.js';
import { indexText } from '../array.js';
import { FLAG, NO_BTF, NUMA_RW, PAIR_VALUE, PROG, TYPES, WORD } from '../rules.js';
import { LAYOUTS, leavesAll } from './layout.js';

const foundOnHost = (what: string): Carries => ({
  captured: 'items',
  replayed: 'some items',
  lost: `items whose ${what} the host does not have`,
});
const unreadable = (what: string): Carries => ({
  captured: 'metadata only',
  replayed: 'empty',
  lost: `${what}: the kernel does not reveal which it holds`,
});
const PROGRAMS = 'program (by pin and tag, else by tag, name and type)';
const DEVICES = foundOnHost(`interface (by name) or ${PROGRAMS}`);
const SOCKETS: Carries = {
  captured: 'some items',
  replayed: 'some items',
  lost: 'sockets that no process has open any more; after a reboot, all of them; with value_size 4, all of them, because their cookies cannot be read',
};

/** Maps whose values are kernel objects: programs, events, devices, sockets, CPUs, cgroups. */
export const references: Plugin = {
  name: 'references',
  types: [
    {
      number: 3,
      name: 'prog_array',
      since: '4.2',
      key: 'index',
      holdsReferences: true,
      carries: foundOnHost(PROGRAMS),
      create: { ...WORD, ...TYPES, flags: NUMA_RW, cleared: true, within: 'never' },
    },
    {
      number: 4,
      name: 'perf_event_array',
      entryPerCpu: true,
      since: '4.3',
      key: 'index',
      holdsReferences: true,
      carries: unreadable('perf events'),
      create: { ...WORD, ...NO_BTF, flags: NUMA_RW | FLAG.PRESERVE_ELEMS },
    },
    {
      number: 8,
      name: 'cgroup_array',
      since: '4.8',
      key: 'index',
      holdsReferences: true,
      carries: unreadable('cgroups'),
      create: { ...WORD, ...NO_BTF, flags: NUMA_RW },
    },
    {
      number: 14,
      name: 'devmap',
      since: '4.14',
      key: 'index',
      holdsReferences: true,
      ownFlags: MAP_FLAG.RDONLY_PROG,
      carries: DEVICES,
      create: { ...PAIR_VALUE, ...NO_BTF, flags: NUMA_RW, network: true },
    },
    {
      number: 15,
      name: 'sockmap',
      since: '4.14',
      key: 'index',
      holdsReferences: true,
      files: true,
      carries: SOCKETS,
      create: { ...PAIR_VALUE, ...NO_BTF, flags: NUMA_RW, network: true },
    },
    {
      number: 16,
      name: 'cpumap',
      since: '4.15',
      key: 'index',
      holdsReferences: true,
      carries: foundOnHost(`CPU or ${PROGRAMS}`),
      create: { ...PAIR_VALUE, ...NO_BTF, flags: FLAG.NUMA_NODE },
    },
    {
      number: 17,
      name: 'xskmap',
      since: '4.18',
      key: 'index',
      holdsReferences: true,
      carries: unreadable('AF_XDP sockets'),
      create: { ...WORD, ...NO_BTF, flags: NUMA_RW, network: true, within: 'same entries' },
    },
    {
      number: 18,
      name: 'sockhash',
      since: '4.18',
      key: 'bytes',
      holdsReferences: true,
      files: true,
      carries: SOCKETS,
      counted: { by: 'member', struct: 'bpf_shtab', member: 'count' },
      create: {
        ...PAIR_VALUE,
        ...NO_BTF,
        key: { min: 1, max: 512 },
        entries: { min: 1, max: 2 ** 28 - 1 },
        flags: NUMA_RW,
        network: true,
      },
    },
    {
      number: 20,
      name: 'reuseport_sockarray',
      since: '4.19',
      key: 'index',
      holdsReferences: true,
      files: true,
      carries: SOCKETS,
      create: { ...PAIR_VALUE, ...TYPES, flags: NUMA_RW | PROG },
    },
    {
      number: 25,
      name: 'devmap_hash',
      since: '5.4',
      key: 'bytes',
      holdsReferences: true,
      ownFlags: MAP_FLAG.RDONLY_PROG,
      carries: DEVICES,
      counted: { by: 'member', struct: 'bpf_dtab', member: 'items' },
      create: { ...PAIR_VALUE, ...NO_BTF, entries: { min: 1, max: 2 ** 31 }, flags: NUMA_RW, network: true },
    },
  ],

  attributes(spec, type) {
    const { most = Infinity } = LAYOUTS[type.number] ?? {};
    if (spec.maxEntries > most) {
      const what = `${type.name} map${spec.name ? ` (${spec.name})` : ''}`;
      const why = 'the kernel is slow to clear them, and leaks a map that is opened during that time';
      throw new BpfimgError('unsupported', `${spec.maxEntries} slots, expected at most ${most}: ${why}`, {
        subject: what,
      });
    }
    return spec;
  },

  capture: lazily(() => import('./capture.js'), 'captureReferences'),

  async foresee({ type, spec, items }) {
    return leavesAll(type, spec) ? { problems: [], report: leftEmpty(type, items.count) } : undefined;
  },

  replay: lazily(() => import('./replay.js'), 'fillReferences'),
  keyText: (key, type) => (type.key === 'index' ? indexText(key) : undefined),
};
