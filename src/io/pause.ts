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

/** Waits until signals that have come so far are handled. */
export async function signalsHandled(): Promise<void> {
  // The first turn may be the rest of one that looked for signals before they came.
  for (let turns = 2; turns > 0; turns--) await new Promise((resolve) => setImmediate(resolve));
}
