import { metadataOnly, readKeys } from '../src/capture/read.js';
import type { Carries, Plugin } from '../src/maptype.js';
import { leaveEmpty } from '../src/replay/fill.js';

const CGROUP: Carries = {
  captured: 'items',
  replayed: 'empty',
  lost: 'values: the kernel has room for them only when a program that uses the map is attached to the cgroup',
};

const local = (owner: string): Carries => ({
  captured: 'metadata only',
  replayed: 'empty',
  lost: `values: they hang on ${owner}, and only who has one open can ask for its value`,
});

/** Storage that hangs on another kernel object: cgroup, socket, inode, task. */
export const storage: Plugin = {
  name: 'storage',
  types: [
    { number: 19, name: 'cgroup_storage', since: '4.19', key: 'bytes', carries: CGROUP },
    { number: 21, name: 'percpu_cgroup_storage', since: '4.20', key: 'bytes', perCpu: true, carries: CGROUP },
    { number: 24, name: 'sk_storage', since: '5.2', key: 'fd', carries: local('sockets') },
    { number: 28, name: 'inode_storage', since: '5.10', key: 'fd', carries: local('files') },
    { number: 29, name: 'task_storage', since: '5.11', key: 'fd', carries: local('tasks') },
    { number: 32, name: 'cgrp_storage', since: '6.2', key: 'fd', carries: local('cgroups') },
  ],
  capture: (map, sink, work) =>
    work.type.carries?.captured === 'items' ? readKeys(map, sink, work) : metadataOnly(map, sink, work),
  replay: leaveEmpty,
};
