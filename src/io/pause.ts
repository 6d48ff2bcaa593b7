/** Lets the event loop run now and then during long synchronous work, so that Ctrl-C takes effect. */

const INTERVAL_MS = 50;
let last = 0;

/** Gives the event loop a turn when {@link INTERVAL_MS} have passed since it had one. */
export function pause(): Promise<void> | undefined {
  // Not performance.now(): using `performance` loads a module.
  const now = Date.now();
  if (now - last < INTERVAL_MS) return undefined;
  last = now;
  return new Promise((resolve) => setImmediate(resolve));
}
