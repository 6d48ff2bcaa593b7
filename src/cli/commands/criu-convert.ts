import { BpfimgError } from '../../errors.js';
import type { Io } from '../io.js';

export async function run(_args: { dir: string; to: 'native' | 'plugin' }, _io: Io): Promise<number> {
  throw new BpfimgError('unsupported', 'criu-convert: to come');
}
