/** The tasks and cgroups of this machine, opened one by one: the owners of local storage. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { pathBytes, pathText } from '../bytes.js';
import { errnoOf } from '../errors.js';
import { mountPoint, PROC, processes } from './proc.js';
import type { Sys } from './sys.js';

/** Inode numbers of the initial namespaces (PROC_PID_INIT_INO, PROC_CGROUP_INIT_INO). */
const OWN = { pid: 0xeffffffc, cgroup: 0xeffffffb } as const;

/** Whether we can see all tasks, or all cgroups, of the machine: no namespace hides any. */
export function seesAll(what: keyof typeof OWN, proc = PROC): boolean {
  try {
    return fs.readlinkSync(`${proc}/self/ns/${what}`) === `${what}:[${OWN[what]}]`;
  } catch {
    return false;
  }
}

/**
 * All threads by id, each with a file descriptor that is closed when the next one is requested; negative
 * if the thread exists but could not be opened.
 */
export function* tasks(sys: Sys): Generator<{ readonly id: number; readonly fd: number }> {
  for (const pid of processes(sys.proc)) {
    for (const id of threadsOf(pid, sys.proc)) {
      const fd = sys.pidfdOpen(id, id !== pid);
      try {
        // It has ended meanwhile, which is no failure.
        if (fd >= 0 || fs.existsSync(`${sys.proc}/${pid}/task/${id}`)) yield { id, fd };
      } finally {
        if (fd >= 0) sys.close(fd);
      }
    }
  }
}

function threadsOf(pid: number, proc: string): number[] {
  try {
    return fs.readdirSync(`${proc}/${pid}/task`).map(Number);
  } catch {
    return [];
  }
}

/** The cgroups of version 2. */
export class Cgroups {
  /** Mount point, as {@link pathText} writes it; undefined if it is not mounted. */
  readonly mount: string | undefined;

  constructor(proc = PROC) {
    let text = '';
    try {
      text = fs.readFileSync(`${proc}/self/mounts`, 'latin1');
    } catch {}
    const point = /^\S+ (\S+) cgroup2 /m.exec(text)?.[1];
    this.mount = point === undefined ? undefined : pathText(mountPoint(point));
  }

  /**
   * All cgroups: id, path below the mount point as {@link pathText} writes it, and a file descriptor that is
   * open until the next one is requested.
   */
  *all(): Generator<{ readonly id: bigint; readonly path: string; readonly fd: number }> {
    const folders = this.mount === undefined ? [] : ['/'];
    for (let folder = folders.pop(); folder !== undefined; folder = folders.pop()) {
      const fd = this.open(folder);
      if (fd === undefined) continue;
      try {
        yield { id: fs.fstatSync(fd, { bigint: true }).ino, path: folder, fd };
      } finally {
        fs.closeSync(fd);
      }
      for (const name of foldersIn(this.#at(folder))) folders.push(path.posix.join(folder, name));
    }
  }

  close(fd: number): void {
    fs.closeSync(fd);
  }

  /** Opens a cgroup by its path. Returns a file descriptor for {@link close}, or undefined if there is none. */
  open(folder: string): number | undefined {
    // A path from an image must not lead out of the mount, however its dots are written.
    const parts = pathBytes(folder).toString('latin1').split('/');
    if (this.mount === undefined || parts.includes('..')) return undefined;
    try {
      return fs.openSync(this.#at(folder), fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
    } catch (error) {
      if (errnoOf(error) === 'EMFILE' || errnoOf(error) === 'ENFILE') throw error;
      return undefined;
    }
  }

  #at(folder: string): Buffer {
    return pathBytes(path.posix.join(this.mount ?? '', folder));
  }
}

function foldersIn(folder: Buffer): string[] {
  try {
    return fs
      .readdirSync(folder, { withFileTypes: true, encoding: 'buffer' })
      .flatMap((one) => (one.isDirectory() ? [pathText(one.name)] : []));
  } catch {
    return [];
  }
}
