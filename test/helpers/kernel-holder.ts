/** A process that creates the maps it is given, says their ids and waits until its standard output is closed. */

import { BpfMap, type MapSpec } from '../../src/kernel/map.js';
import { openSys } from '../../src/kernel/sys.js';
import { types } from './types.js';

const sys = await openSys(types);
const specs = JSON.parse(process.argv[2] ?? '[]') as MapSpec[];
const maps = specs.map((spec) => BpfMap.create(sys, spec));
process.stdout.write(`${JSON.stringify({ ids: maps.map((map) => map.id), fds: maps.map((map) => map.fd) })}\n`);
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
