/** Who holds a map, as tables show it. */
import type { DumpMap } from '../dump/model.js';
import { nameText } from '../render.js';

/** A file descriptor of a process, with the process's name if it is known. */
interface HeldFd {
  readonly pid: number;
  readonly fd: number;
  readonly command?: string | undefined;
}

/** `22137(flowd):3,4 22139:3`: the file descriptors of each process. */
export function fdsText(holders: readonly HeldFd[]): string[] {
  const fds = new Map<string, number[]>();
  for (const { pid, fd, command } of holders) {
    const process = command === undefined ? String(pid) : `${pid}(${nameText(command)})`;
    fds.set(process, [...(fds.get(process) ?? []), fd]);
  }
  return [...fds].map(([process, list]) => `${process}:${list.sort((a, b) => a - b).join(',')}`);
}

/** The holders of a dump's map. */
export function holdersText({ files }: DumpMap): string {
  return fdsText(files.flatMap(({ holders }) => holders)).join(' ');
}
