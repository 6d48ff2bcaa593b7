import type { Carries, MapType, Plugin } from '../../src/maptype.js';
import { lazily } from '../../src/toolkit.js';
import { cgroupKeyed, LOCAL, NUMA_RW, PERCPU_VALUE, PROG, TYPES } from '../rules.js';

const CGROUP: Carries = {
  captured: 'items',
  replayed: 'empty',
  lost: 'values: the kernel stores them only while a program that uses the map is attached to the cgroup',
};

const local = (captured: Carries['captured'], replayed: Carries['replayed'], lost: string): Carries => {
  return { captured, replayed, lost };
};
const row = (number: number, name: string, since: string, carries: Carries, key?: number): MapType => {
  return {
    number,
    name,
    since,
    key: 'fd',
    create: LOCAL,
    carries,
    ...(key === undefined ? {} : { imageItem: { key } }),
  };
};

const hooks = () => import('./hooks.js');

/** Storage that belongs to other kernel objects: cgroups, sockets, inodes, tasks. */
export const storage: Plugin = {
  name: 'storage',
  types: [
    {
      number: 19,
      name: 'cgroup_storage',
      since: '4.19',
      key: 'bytes',
      carries: CGROUP,
      create: { ...cgroupKeyed({ min: 1, max: 65_407 }), ...TYPES, flags: NUMA_RW | PROG, within: 'never' },
    },
    {
      number: 21,
      name: 'percpu_cgroup_storage',
      since: '4.20',
      key: 'bytes',
      perCpu: true,
      carries: CGROUP,
      create: { ...cgroupKeyed(PERCPU_VALUE), ...TYPES, flags: NUMA_RW | PROG, within: 'never' },
    },
    {
      ...row(
        24,
        'sk_storage',
        '5.2',
        local('some items', 'some items', 'values of sockets that no process has open; all of them after a reboot'),
        8,
      ),
      files: true,
    },
    row(
      28,
      'inode_storage',
      '5.10',
      local(
        'metadata only',
        'empty',
        'values: they belong to files, and only a process that has a file open can read its value',
      ),
    ),
    row(29, 'task_storage', '5.11', local('items', 'empty', 'values: they belong to tasks, whose ids may be reused')),
    row(
      32,
      'cgrp_storage',
      '6.2',
      local('items', 'some items', 'values of cgroups (by path) that the host does not have'),
      8,
    ),
  ],
  capture: lazily(hooks, 'captureStorage'),
  replay: lazily(hooks, 'fillStorage'),
};
