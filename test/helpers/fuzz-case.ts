/** What a fuzzer makes and tries; `test/fuzz.ts` runs it. */
import { BpfimgError } from '../../src/errors.js';
import type { Random } from './random.js';

/** One broken input. */
export interface FuzzCase {
  /** The input by file name, for people who look at a failure. */
  readonly files: Readonly<Record<string, Uint8Array>>;
  /**
   * Uses the input in every way there is.
   * @returns whether it was taken
   * @throws if something happens that must not
   */
  run(): Promise<boolean>;
}

/** Makes the case of a seed; `random` is already seeded with it. */
export type Fuzzer = (random: Random, seed: number) => FuzzCase;

/** Checks the form that every failure must have, and returns it. */
export function judge(
  error: unknown,
  kinds: readonly BpfimgError['kind'][],
  starts: readonly string[] = [],
): BpfimgError {
  if (!(error instanceof BpfimgError)) throw error;
  const { kind, message } = error;
  if (!kinds.includes(kind)) throw new Error(`a ${kind} error: ${message}`, { cause: error });
  const named = starts.length === 0 || starts.some((start) => message.startsWith(start));
  // biome-ignore lint/suspicious/noControlCharactersInRegex: what must not reach a terminal
  if (!named || /[\x00-\x1f\x7f-\x9f]/.test(message) || message.length > 2500) {
    throw new Error(`a bad message: ${JSON.stringify(message)}`, { cause: error });
  }
  return error;
}

/** Numbers at which sizes, counts, ids and flags change what they mean. */
export const EXTREMES: readonly bigint[] = [
  ...[0n, 1n, 2n, 3n, 4n, 7n, 8n, 15n, 16n, 127n, 128n, 255n, 256n, 4095n, 4096n, 65535n, 65536n],
  ...[2n ** 31n - 1n, 2n ** 31n, 2n ** 32n - 1n, 2n ** 32n, 2n ** 53n, 2n ** 53n + 1n, 2n ** 63n, 2n ** 64n - 1n],
];
