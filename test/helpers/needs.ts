/** What a test needs of the machine, and what to say where it is not there. */

/** Whether `.ci/run` (or BPFIMG_REQUIRE) wants tests that need `what` to run or fail. */
export function required(what: string): boolean {
  return (process.env.BPFIMG_REQUIRE ?? '').split(',').includes(what);
}

/** Why a test that needs root should be skipped, or false when it should run. */
export function skipWithoutRoot(): string | false {
  return process.getuid?.() === 0 || required('root') ? false : 'needs root';
}

/**
 * A time limit for a test, in milliseconds: longer on a machine that BPFIMG_SLOW says is so many times slower than usual,
 * such as a virtual one.
 */
export function patience(ms: number): number {
  return ms * Number(process.env.BPFIMG_SLOW ?? 1);
}

/** A number of items, smaller on such a machine: for tests to which it is not important how many there are. */
export function load(count: number): number {
  return Math.ceil(count / Number(process.env.BPFIMG_SLOW ?? 1));
}
