/** Digests of the files of an archive, in an entry as `sha256sum` writes it, so that `sha256sum -c` can check them. */
import type { Hash } from 'node:crypto';
import { BpfimgError } from '../errors.js';
import { Cursor, type Input } from '../io/input.js';
import { pause } from '../io/pause.js';
import { entryText } from './reader.js';

/** Name of that entry, in the folder of the files that it covers. */
export const SUMS = 'SHA256SUMS';

/** Longest entry that may contain digests. */
export const SUMS_MOST = 1024 * 1024;

/** The digest of an empty file. */
const EMPTY = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855';

/** Digests in hex, by name. */
export type Sums = Map<string, string>;

/** The folder of an entry of digests, with its `/`; undefined for any other entry. */
export function sumsFolder(name: string): string | undefined {
  return /(?:^|\/)SHA256SUMS$/.test(name) ? name.slice(0, -SUMS.length) : undefined;
}

/** The lines of such an entry. Names must not contain line ends or backslashes. */
export function sumsText(sums: ReadonlyMap<string, string>): string {
  return [...sums].map(([name, sum]) => `${sum}  ${name}\n`).join('');
}

/** The digests in such an entry; undefined if it has another form. */
export function parseSums(text: Uint8Array): Sums | undefined {
  const sums: Sums = new Map();
  for (const line of Buffer.from(text).toString('latin1').split('\n')) {
    const [, sum, name] = /^([0-9a-f]{64}) [ *](.+)$/.exec(line) ?? [];
    if (sum !== undefined && name !== undefined) sums.set(name.replace(/^\.\//, ''), sum);
    else if (line !== '') return undefined;
  }
  return sums;
}

/** A digest in progress. */
export async function newHash(): Promise<Hash> {
  const { createHash } = await import('node:crypto');
  return createHash('sha256');
}

/** The digest of an input that has a size. */
export async function sumOf(input: Input): Promise<string> {
  const hash = await newHash();
  const cursor = new Cursor(input);
  while ((await cursor.fill()) > 0) {
    hash.update(cursor.bytes.subarray(cursor.at, cursor.end));
    cursor.at = cursor.end;
    await pause();
  }
  return hash.digest('hex');
}

/** Compares the digests of what was read with those in an entry. */
export class SumsCheck {
  readonly #read: Sums = new Map();

  constructor(readonly subject: string) {}

  /** Passes `body` through, and notes its digest once all `size` bytes have been read. */
  noting(name: string, size: number, body: Input): Input {
    this.#read.delete(name);
    if (size === 0) this.#read.set(name, EMPTY);
    let hash: Hash | undefined;
    let left = size;
    const read = async (into: Uint8Array, position: number): Promise<number> => {
      const got = await body.read(into, position);
      if (got === 0) return 0;
      hash ??= await newHash();
      hash.update(into.subarray(0, got));
      left -= got;
      if (left === 0) this.#read.set(name, hash.digest('hex'));
      return got;
    };
    return { ...body, read };
  }

  /**
   * Checks the files that were read whole.
   * @param there whether the archive has a file with that name
   * @returns names that were checked
   * @throws BpfimgError for the first that differs or is missing
   */
  check(folder: string, sums: ReadonlyMap<string, string>, there: (name: string) => boolean): string[] {
    const checked: string[] = [];
    for (const [short, said] of sums) {
      const name = folder + short;
      if (!there(name)) throw this.#error(name, `it is missing, but ${folder}${SUMS} lists it`);
      const sum = this.#read.get(name);
      if (sum === undefined) continue;
      if (sum !== said) throw differs(this.subject, name);
      checked.push(name);
    }
    return checked;
  }

  #error(name: string, text: string): BpfimgError {
    return new BpfimgError('badImage', text, { subject: this.subject, part: entryText(name) });
  }
}

/** The error for a file that has changed since it was written. */
export function differs(subject: string, name: string): BpfimgError {
  const text = `its SHA-256 is not the one in ${SUMS}: it is damaged or was changed`;
  return new BpfimgError('badImage', text, { subject, part: entryText(name) });
}
