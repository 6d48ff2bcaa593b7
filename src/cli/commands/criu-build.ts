import { BpfimgError } from '../../errors.js';
import type { Io } from '../io.js';

export async function run(_args: { out?: string | undefined }, _io: Io): Promise<number> {
  throw new BpfimgError('unsupported', 'criu-build: to come');
}
