/**
 * Loaded before a program (`node --import`), it has the kernel refuse calls: DENY is `ERRNO CALL...`, where a
 * call is the number of a bpf(2) command, or `s` and the number of a system call.
 */
import * as koffi from 'koffi';
import { SYSCALL } from '../../src/kernel/abi.js';

const [errno = 0, ...calls] = (process.env.DENY ?? '')
  .split(' ')
  .map((word) => (word.startsWith('s') ? word : Number(word)));

/** struct sock_filter: code, jt, jf, k. */
const filter: Buffer[] = [];
const op = (code: number, jt: number, jf: number, k: number) => {
  const bytes = Buffer.alloc(8);
  bytes.writeUInt16LE(code);
  bytes[2] = jt;
  bytes[3] = jf;
  bytes.writeUInt32LE(k, 4);
  filter.push(bytes);
};
const [LOAD, JUMP_EQUAL, RETURN] = [0x20, 0x15, 0x06];
/** Where seccomp_data has the number of the call, and the low half of its first argument. */
const [NUMBER, FIRST] = [0, 16];
const refuse = () => op(RETURN, 0, 0, 0x0005_0000 + Number(errno));
for (const call of calls) {
  op(LOAD, 0, 0, NUMBER);
  if (typeof call === 'string') op(JUMP_EQUAL, 0, 1, Number(call.slice(1)));
  else {
    op(JUMP_EQUAL, 0, 3, SYSCALL[process.arch]?.bpf as number);
    op(LOAD, 0, 0, FIRST);
    op(JUMP_EQUAL, 0, 1, call);
  }
  refuse();
}
op(RETURN, 0, 0, 0x7fff_0000);

const program = Buffer.from(new ArrayBuffer(8 * filter.length));
program.set(Buffer.concat(filter));
/** struct sock_fprog. */
const prog = Buffer.from(new ArrayBuffer(16));
prog.writeUInt16LE(filter.length);
prog.writeBigUInt64LE(koffi.address(program) as bigint, 8);
const libc = koffi.load(null);
const [NO_NEW_PRIVS, MODE_FILTER, TSYNC] = [38, 1, 1];
const NR_SECCOMP: Readonly<Record<string, number>> = { x64: 317, arm64: 277, riscv64: 277, loong64: 277, ppc64: 358 };
libc.func('int prctl(int, long, long, long, long)')(NO_NEW_PRIVS, 1, 0, 0, 0);
const result = libc.func('long syscall(long, int, int, void *)')(NR_SECCOMP[process.arch], MODE_FILTER, TSYNC, prog);
if (result !== 0) throw new Error(`seccomp: ${koffi.errno()}`);
