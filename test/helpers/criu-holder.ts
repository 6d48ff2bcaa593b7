/** A process that opens the BPF objects it is given, says which, and waits until its standard output is closed. */

import { spawn } from 'node:child_process';
import { ATTR } from '../../src/kernel/abi.js';
import { BpfMap, type MapSpec } from '../../src/kernel/map.js';
import { Attr, openSys } from '../../src/kernel/sys.js';
import { loadProgram, PROG_TYPE } from './objects.js';
import { types } from './types.js';

/** A map, and what is done with it. */
export interface HeldMap extends MapSpec {
  /** Opened a second time, only to read. */
  readonly again?: boolean;
  /** Parts that are mapped into memory. */
  readonly mapped?: readonly { readonly offset?: number; readonly length: number }[];
  /** Closed again. */
  readonly closed?: boolean;
  /** Index of a map before it that is put into it, at key 0, and closed. */
  readonly holds?: number;
}

/** What the process is to hold. */
export interface Wanted {
  readonly maps?: readonly HeldMap[];
  /** A program, a link of it to the loopback interface, and the BTF of the kernel. */
  readonly objects?: boolean;
  /** A child that holds the first map as its fd 3. */
  readonly child?: boolean;
}

/** What it says. */
export interface Told {
  readonly ids: readonly number[];
  readonly fds: readonly number[];
  /** Of second openings, of the program, the link and the BTF. */
  readonly more: readonly number[];
  readonly child: number;
}

const sys = await openSys(types);
const { maps = [], objects = false, child = false } = JSON.parse(process.argv[2] ?? '{}') as Wanted;
const more: number[] = [];
const made: BpfMap[] = [];
const fds: number[] = [];
for (const { again, mapped = [], closed, holds, ...spec } of maps) {
  const inner = holds === undefined ? undefined : made[holds];
  const map = BpfMap.create(sys, { ...spec, ...(inner === undefined ? {} : { inner }) });
  made.push(map);
  fds.push(map.fd);
  for (const part of mapped) map.mmap(part);
  if (again === true) more.push(BpfMap.openById(sys, map.id, 'ro').fd);
  if (inner !== undefined) {
    const value = Buffer.alloc(4);
    value.writeUInt32LE(inner.fd);
    map.update(Buffer.alloc(map.keySize), value);
    inner.close();
  }
  if (closed === true) map.close();
}
if (objects) {
  const program = loadProgram(sys, { name: 'held_prog', type: PROG_TYPE.xdp });
  const link = new Attr(ATTR.linkCreate, sys).set('prog_fd', program).set('target_fd', 1).set('attach_type', 37);
  const btf = new Attr(ATTR.btfById, sys).set('btf_id', 1);
  more.push(program, sys.bpf('LINK_CREATE', link), sys.bpf('BTF_GET_FD_BY_ID', btf));
}
const [first] = made;
const reader = child && first ? spawn('cat', { stdio: ['pipe', 'ignore', 'ignore', first.fd] }) : undefined;
if (reader !== undefined) await new Promise((resolve) => reader.once('spawn', resolve));
const told: Told = { ids: made.map(({ id }) => id), fds, more, child: reader?.pid ?? 0 };
process.stdout.write(`${JSON.stringify(told)}\n`);
process.stdin.resume();
process.stdin.on('end', () => {
  process.exit(0);
});
