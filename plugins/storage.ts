import type { Plugin } from '../src/maptype.js';

/** Storage that hangs on another kernel object: cgroup, socket, inode, task. */
export const storage: Plugin = {
  name: 'storage',
  types: [
    { number: 19, name: 'cgroup_storage', since: '4.19', key: 'bytes' },
    { number: 21, name: 'percpu_cgroup_storage', since: '4.20', key: 'bytes', perCpu: true },
    { number: 24, name: 'sk_storage', since: '5.2', key: 'fd' },
    { number: 28, name: 'inode_storage', since: '5.10', key: 'fd' },
    { number: 29, name: 'task_storage', since: '5.11', key: 'fd' },
    { number: 32, name: 'cgrp_storage', since: '6.2', key: 'fd' },
  ],
};
