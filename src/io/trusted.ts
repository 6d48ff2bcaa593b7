/** Files and folders that control what bpfimg does: root must not obey what another user wrote there. */
import * as fs from 'node:fs';
import { BpfimgError, ioError } from '../errors.js';

/** The code of the error that {@link checkTrusted} throws. */
export const UNTRUSTED = 'untrusted';

/**
 * Throws if root must not read or run the file of `stat`, because another user may write to it. The CRIU plugin has
 * the same rule.
 * @param user our user id
 * @throws BpfimgError naming `file` and why
 */
export function checkTrusted(file: string, stat: fs.Stats, user = process.geteuid?.()): void {
  if (user !== 0) return;
  const why =
    stat.uid !== 0
      ? `it belongs to user ${stat.uid}`
      : (stat.mode & 0o022) !== 0
        ? `others may write to it (mode ${(stat.mode & 0o7777).toString(8)})`
        : undefined;
  if (why !== undefined) throw new BpfimgError('io', `refused as root: ${why}`, { subject: file, code: UNTRUSTED });
}

/**
 * The text of a settings file.
 * @throws BpfimgError for one that cannot be read, is not a regular file, or must not be trusted
 */
export function readTrusted(file: string): string {
  return readTrustedBytes(file).toString();
}

/** The same, as it is. */
export function readTrustedBytes(file: string): Buffer {
  let fd: number;
  try {
    // O_NONBLOCK: do not wait for a writer if it is a pipe.
    fd = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
  } catch (error) {
    throw ioError(file, 'read it', error);
  }
  try {
    const stat = fs.fstatSync(fd);
    if (!stat.isFile()) throw new BpfimgError('io', 'not a regular file', { subject: file });
    checkTrusted(file, stat);
    return fs.readFileSync(fd);
  } catch (error) {
    throw ioError(file, 'read it', error);
  } finally {
    fs.closeSync(fd);
  }
}
