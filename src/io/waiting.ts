/**
 * Calls that wait for another process: opening a FIFO, writing to a pipe. They run on threads of the pool, so that
 * signals are heard meanwhile; but a process that exits waits for its threads, so such a call keeps it from ending.
 */
import * as fs from 'node:fs';

let calls = 0;

/** Whether some call waits for another process: only a signal ends this one then. */
export function isWaiting(): boolean {
  return calls > 0;
}

/** Makes `call`, which another process may keep waiting; `done` is what it must call in the end. */
export function waiting<A extends unknown[]>(call: (done: (...result: A) => void) => void): Promise<A> {
  calls++;
  return new Promise((resolve) => {
    call((...result) => {
      calls--;
      resolve(result);
    });
  });
}

/** Opens what may be a FIFO; the caller owns the file descriptor. Throws what open(2) says. */
export async function openWaiting(file: string, flags: string | number): Promise<number> {
  const [error, fd] = await waiting<[NodeJS.ErrnoException | null, number]>((done) => fs.open(file, flags, done));
  if (error) throw error;
  return fd;
}
