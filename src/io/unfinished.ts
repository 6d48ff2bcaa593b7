/** What a command has made and must not leave behind when it is interrupted. */
import * as fs from 'node:fs';

/** Each with whether it is a folder that others may put something into. */
const names = new Map<string | Buffer, boolean>();

/**
 * From now on `name` (a file, a folder, a pin) goes away when the command is interrupted.
 * @param name a buffer is told by itself, not by its bytes
 * @param shared a folder that is removed only when nothing is in it any more
 */
export function unfinished(name: string | Buffer, shared = false): void {
  names.set(name, shared);
}

/** `name` is meant to stay, or is gone; returns whether it was noted. */
export function noLongerUnfinished(name: string | Buffer): boolean {
  return names.delete(name);
}

/** Puts something right; what it could not, it returns as a line for people. */
type Repair = () => string | undefined;

const repairs = new Set<Repair>();

/**
 * Has `repair` called when the command is interrupted, before anything is removed. It must not wait for
 * anything, and must not throw.
 * @returns what makes it no longer wanted
 */
export function whenInterrupted(repair: Repair): () => void {
  repairs.add(repair);
  return () => repairs.delete(repair);
}

/**
 * Repairs and removes everything half-made. For signal handlers; safe to call at any time.
 * @returns what could not be repaired
 */
export function removeUnfinished(): string[] {
  const problems = [...repairs].reverse().flatMap((repair) => repair() ?? []);
  repairs.clear();
  // The last first: pins before the folder they are in.
  for (const [name, shared] of [...names].reverse()) {
    if (!shared) fs.rmSync(name, { recursive: true, force: true });
    else if (fs.existsSync(name) && fs.readdirSync(name).length === 0) fs.rmdirSync(name);
  }
  names.clear();
  return problems;
}
