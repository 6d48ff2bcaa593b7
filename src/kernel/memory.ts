/**
 * The memory that the machine has left. A map that does not fit does not fail: the kernel takes the memory, and then kills
 * other processes to get some.
 */
import * as fs from 'node:fs';
import { PROC } from './proc.js';

/** Places with a memory limit, with their names in messages. */
export interface Available {
  readonly bytes: number;
  readonly limit: string;
}

function numberIn(file: string): number | undefined {
  try {
    const text = fs.readFileSync(file, 'latin1').trim();
    return /^\d+$/.test(text) ? Number(text) : undefined;
  } catch {
    return undefined;
  }
}

/** Files of a memory cgroup, of version 2 and of version 1. */
interface CgroupFiles {
  readonly folder: string;
  readonly max: string;
  readonly used: string;
}
const UNIFIED: CgroupFiles = { folder: '', max: 'memory.max', used: 'memory.current' };
const LEGACY: CgroupFiles = { folder: '/memory', max: 'memory.limit_in_bytes', used: 'memory.usage_in_bytes' };

/** Bytes of cached files not used for long: the kernel drops them when the cgroup needs room. */
function reclaimable(folder: string): number {
  try {
    const text = fs.readFileSync(`${folder}/memory.stat`, 'latin1');
    return Number(/^(?:total_)?inactive_file (\d+)$/m.exec(text)?.[1] ?? 0);
  } catch {
    return 0;
  }
}

/** The least free memory among the machine and the memory cgroups of this process. */
export function memoryAvailable(proc = PROC, cgroups = '/sys/fs/cgroup'): Available {
  let least: Available = { bytes: Infinity, limit: 'unknown' };
  const offer = (bytes: number, limit: string) => {
    if (bytes < least.bytes) least = { bytes, limit };
  };
  try {
    const text = fs.readFileSync(`${proc}/meminfo`, 'latin1');
    const match = /^MemAvailable:\s*(\d+) kB/m.exec(text);
    if (match) offer(Number(match[1]) * 1024, 'available memory');
  } catch {
    // Without procfs nothing is known, and nothing is refused.
  }
  let own = '';
  try {
    own = fs.readFileSync(`${proc}/self/cgroup`, 'latin1');
  } catch {}
  for (const [, controllers = '', path = '/'] of own.matchAll(/^\d+:([^:]*):(\/.*)$/gm)) {
    if (controllers !== '' && !controllers.split(',').includes('memory')) continue;
    const { folder, max, used } = controllers === '' ? UNIFIED : LEGACY;
    // Up to the root, which in a container is the container's own cgroup.
    for (let at = path.replace(/\/$/, ''); ; at = at.slice(0, at.lastIndexOf('/'))) {
      const group = `${cgroups}${folder}${at}`;
      const limit = numberIn(`${group}/${max}`);
      const usage = numberIn(`${group}/${used}`);
      if (limit !== undefined && usage !== undefined) {
        const left = Math.max(0, limit - usage + reclaimable(group));
        offer(left, `memory left in cgroup ${at === '' ? '/' : at}`);
      }
      if (at === '') break;
    }
  }
  return least;
}
