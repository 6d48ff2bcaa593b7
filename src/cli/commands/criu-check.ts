import { BpfimgError } from '../../errors.js';
import type { Io } from '../io.js';

export async function run(_args: { pid: number; criu?: string | undefined; json: boolean }, _io: Io): Promise<number> {
  throw new BpfimgError('unsupported', 'criu-check: to come');
}
