/**
 * Calls that wait for another process: opening a FIFO, writing to a pipe. They run on threads of the pool, so that
 * signal handlers still run. But a process that exits waits for its threads, so such a call keeps it from exiting.
 */
import * as fs from 'node:fs';

let calls = 0;

/** Whether a call is waiting for another process: then only a signal ends this process. */
export function isWaiting(): boolean {
  return calls > 0;
}

/** Runs `call`, which may wait for another process; it must call `done` at the end. */
export function waiting<A extends unknown[]>(call: (done: (...result: A) => void) => void): Promise<A> {
  calls++;
  return new Promise((resolve) => {
    call((...result) => {
      calls--;
      resolve(result);
    });
  });
}

/** Opens what may be a FIFO; the caller owns the file descriptor. Throws the error of open(2). */
export async function openWaiting(file: string, flags: string | number): Promise<number> {
  const [error, fd] = await waiting<[NodeJS.ErrnoException | null, number]>((done) => fs.open(file, flags, done));
  if (error) throw error;
  return fd;
}
