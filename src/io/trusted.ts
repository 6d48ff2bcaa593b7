/** Files and folders that say what bpfimg does: root must not do what somebody else has written there. */
import * as fs from 'node:fs';
import { BpfimgError, ioError } from '../errors.js';

/** The code of what {@link checkTrusted} throws. */
export const UNTRUSTED = 'untrusted';

/**
 * Throws when root must not read or run what `stat` is of: somebody else may write it. The CRIU plugin has the
 * same rule.
 * @param user who we are
 * @throws BpfimgError naming `file` and why
 */
export function checkTrusted(file: string, stat: fs.Stats, user = process.geteuid?.()): void {
  if (user !== 0) return;
  const why =
    stat.uid !== 0
      ? `it belongs to user ${stat.uid}`
      : (stat.mode & 0o022) !== 0
        ? `others may write it (mode ${(stat.mode & 0o7777).toString(8)})`
        : undefined;
  if (why !== undefined) throw new BpfimgError('io', `refused as root: ${why}`, { subject: file, code: UNTRUSTED });
}

/**
 * The text of a file with settings.
 * @throws BpfimgError for one that cannot be read, is no regular file, or is not to be trusted
 */
export function readTrusted(file: string): string {
  let fd: number;
  try {
    // Not to wait for who writes, if it is a pipe.
    fd = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
  } catch (error) {
    throw ioError(file, 'read it', error);
  }
  try {
    const stat = fs.fstatSync(fd);
    if (!stat.isFile()) throw new BpfimgError('io', 'no regular file', { subject: file });
    checkTrusted(file, stat);
    return fs.readFileSync(fd, 'utf8');
  } catch (error) {
    throw ioError(file, 'read it', error);
  } finally {
    fs.closeSync(fd);
  }
}
