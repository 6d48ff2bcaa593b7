/** Files, folders and pins that a command has made and must not leave behind when it is interrupted. */
import * as fs from 'node:fs';

/** Each name, and whether it is a folder that others may put something into. */
const names = new Map<string | Buffer, boolean>();

/**
 * From now on, `name` (a file, a folder, a pin) is removed when the command is interrupted.
 * @param name a buffer is identified by the object, not by its bytes
 * @param shared a folder that is removed only if it is empty
 */
export function unfinished(name: string | Buffer, shared = false): void {
  names.set(name, shared);
}

/** `name` is to stay, or is gone; returns whether it was registered. */
export function noLongerUnfinished(name: string | Buffer): boolean {
  return names.delete(name);
}

/** Repairs something; returns a message if it could not. */
type Repair = () => string | undefined;

const repairs = new Set<Repair>();

/**
 * Registers `repair`, which is called when the command is interrupted, before anything is removed. It must not
 * wait for anything and must not throw.
 * @returns a function that unregisters it
 */
export function whenInterrupted(repair: Repair): () => void {
  repairs.add(repair);
  return () => repairs.delete(repair);
}

/**
 * Runs all repairs and removes everything unfinished. For signal handlers; safe to call at any time.
 * @returns messages about what could not be repaired
 */
export function removeUnfinished(): string[] {
  const problems = [...repairs].reverse().flatMap((repair) => repair() ?? []);
  repairs.clear();
  // Last first: pins before the folder they are in.
  for (const [name, shared] of [...names].reverse()) {
    if (!shared) fs.rmSync(name, { recursive: true, force: true });
    else if (fs.existsSync(name) && fs.readdirSync(name).length === 0) fs.rmdirSync(name);
  }
  names.clear();
  return problems;
}
