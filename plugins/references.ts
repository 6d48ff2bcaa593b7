import type { Plugin } from '../src/maptype.js';

/** Maps whose values are kernel objects: programs, events, devices, sockets, CPUs, cgroups. */
export const references: Plugin = {
  name: 'references',
  types: [
    { number: 3, name: 'prog_array', since: '4.2', key: 'index' },
    { number: 4, name: 'perf_event_array', since: '4.3', key: 'index' },
    { number: 8, name: 'cgroup_array', since: '4.8', key: 'index' },
    { number: 14, name: 'devmap', since: '4.14', key: 'index' },
    { number: 15, name: 'sockmap', since: '4.14', key: 'index' },
    { number: 16, name: 'cpumap', since: '4.15', key: 'index' },
    { number: 17, name: 'xskmap', since: '4.18', key: 'index' },
    { number: 18, name: 'sockhash', since: '4.18', key: 'bytes' },
    { number: 20, name: 'reuseport_sockarray', since: '4.19', key: 'index' },
    { number: 25, name: 'devmap_hash', since: '5.4', key: 'bytes' },
  ],
};
