/**
 * A process that has an arena mapped, as it is told by `{"fd"|"spec", "pages": {"3": "text"}}`: it writes a text
 * at the beginning of each of these pages, says the arena's id, and waits.
 */

import { BpfMap, type MapSpec } from '../../src/kernel/map.js';
import { openSys } from '../../src/kernel/sys.js';
import { types } from './types.js';

const { spec, id, pages } = JSON.parse(process.argv[2] ?? '{}') as {
  spec?: Omit<MapSpec, 'extra'> & { extra: string };
  id?: number;
  pages: Record<string, string>;
};
const sys = await openSys(types);
const map =
  spec === undefined ? BpfMap.openById(sys, id as number) : BpfMap.create(sys, { ...spec, extra: BigInt(spec.extra) });
const length = map.maxEntries * sys.pageSize;
const memory = map.mmap({ address: map.info.extra, length, writable: true });
for (const [page, text] of Object.entries(pages)) memory.bytes.write(text, Number(page) * sys.pageSize);
process.stdout.write(`${map.id}\n`);
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
