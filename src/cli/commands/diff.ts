import { BpfimgError } from '../../errors.js';
import type { Io } from '../io.js';

export async function run(_args: { a: string; b: string; map: string[]; json: boolean }, _io: Io): Promise<number> {
  throw new BpfimgError('unsupported', 'diff: to come');
}
