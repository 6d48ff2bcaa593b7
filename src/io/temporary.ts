/**
 * Temporary files: their folder, and their names, which identify their process, so that leftovers of a killed run can
 * be removed when their target is written again.
 */
import * as fs from 'node:fs';
import { errnoOf } from '../errors.js';
import type { Folder } from './place.js';

/** Folder of large temporary files: TMPDIR if set; else /var/tmp, because /tmp is often in memory. */
export function temporaryFolder(): string {
  return process.env.TMPDIR ?? (fs.existsSync('/var/tmp') ? '/var/tmp' : '/tmp');
}

/** Bytes of the target's name that are kept: the system allows 255 in total. */
const NAME_BYTES = 150;

const before = (target: string): string => `.${Buffer.from(target).subarray(0, NAME_BYTES).toString()}.bpfimg-`;

let place: string | undefined;

/** Where our pid is valid: the boot and the pid namespace. Other machines (NFS) and containers have their own pids. */
function pidSpace(): string {
  if (place !== undefined) return place;
  try {
    const boot = fs.readFileSync('/proc/sys/kernel/random/boot_id', 'latin1');
    place = `${boot}${fs.readlinkSync('/proc/self/ns/pid')}`.replaceAll(/pid|[^0-9a-f]/g, '');
  } catch {
    place = '';
  }
  return place;
}

/** A unique name for a file that will become `target` in the same folder. */
export function temporaryName(target: string): string {
  return `${before(target)}${process.pid}-${pidSpace()}-${Math.floor(Math.random() * 0x100000000).toString(36)}`;
}

/** Removes temporary files for `target` left by runs that have certainly ended. */
export function removeLeft(folder: Folder, target: string): void {
  const prefix = before(target);
  for (const name of folder.names()) {
    if (!name.startsWith(prefix)) continue;
    const [, pid, where] = /^(\d+)-([0-9a-f]+)-/.exec(name.slice(prefix.length)) ?? [];
    if (where !== pidSpace() || isAlive(Number(pid))) continue;
    try {
      remove(folder, name);
    } catch (error) {
      // Another process was faster, or we may not remove it: nothing depends on it.
      if (errnoOf(error) === undefined) throw error;
    }
  }
}

/** Folders whose files are of no use after this run. */
const scratch = new Set<string>();

/** What is written in `folder` need not reach the disk, until {@link noLongerScratch}. */
export function scratchFolder(folder: string): void {
  scratch.add(`${folder}/`);
}

/** The folder is gone. */
export function noLongerScratch(folder: string): void {
  scratch.delete(`${folder}/`);
}

/** Whether `file` is in a {@link scratchFolder}. */
export function isScratch(file: string): boolean {
  return [...scratch].some((folder) => file.startsWith(folder));
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return errnoOf(error) !== 'ESRCH';
  }
}

function remove(folder: Folder, name: string): void {
  const stat = folder.look(name);
  if (stat === undefined || stat.uid !== process.geteuid?.()) return;
  fs.rmSync(folder.at(name), { recursive: true });
}
