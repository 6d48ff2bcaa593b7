/**
 * The only door to the kernel: every system call that Node has no function for.
 *
 * Only this file loads koffi, and only when {@link openSys} is called. All other code receives a {@link Sys},
 * so that tests can pass a scripted one.
 *
 * Results follow the kernel's convention: zero or more is success, a negative number is the negated
 * errno. Nothing here throws because a call failed.
 */
import { readdirSync } from 'node:fs';
import { endianness, constants as os } from 'node:os';
import { roundUp8, viewOf } from '../bytes.js';
import { BpfimgError, firstLine } from '../errors.js';
import { during } from '../phases.js';
import { BPF_COMMAND, type BpfCommand, type StructLayout, SYSCALL } from './abi.js';
import { PROC, possibleCpus } from './proc.js';
import type { KnownTypes } from './rules.js';

/**
 * errno numbers that code branches on. ENOTSUPP is the kernel's internal 524, which leaks out of bpf(2) and has
 * no name in libc; it is not EOPNOTSUPP, though we treat both alike.
 */
export const ERRNO = {
  EPERM: os.errno.EPERM,
  ENOENT: os.errno.ENOENT,
  ESRCH: os.errno.ESRCH,
  EINTR: os.errno.EINTR,
  EIO: os.errno.EIO,
  E2BIG: os.errno.E2BIG,
  EBADF: os.errno.EBADF,
  EAGAIN: os.errno.EAGAIN,
  ENOMEM: os.errno.ENOMEM,
  EACCES: os.errno.EACCES,
  EFAULT: os.errno.EFAULT,
  EBUSY: os.errno.EBUSY,
  EEXIST: os.errno.EEXIST,
  EINVAL: os.errno.EINVAL,
  EMFILE: os.errno.EMFILE,
  ENOSPC: os.errno.ENOSPC,
  ENOSYS: os.errno.ENOSYS,
  EOPNOTSUPP: os.errno.EOPNOTSUPP,
  ENOTSUPP: 524,
} as const;

/** Zero or more, or a negated errno. */
export type Result = number;

/** A mapping's address, or a negated errno. */
export type MapResult = bigint;

/** The system calls, with as little around them as possible. */
export interface Sys {
  /** Mount point of procfs; tests have their own. */
  readonly proc: string;
  /** The table of map types. */
  readonly types: KnownTypes;
  /** Number of possible CPUs of this machine. */
  readonly cpus: number;
  /** Size of a page of memory in bytes. */
  readonly pageSize: number;
  /**
   * bpf(2). If the result is a file descriptor, the caller owns it and passes it to {@link close}.
   * Retries EINTR and EAGAIN if the call has no effect of its own, see {@link repeatable}.
   */
  bpf(command: BpfCommand, attr: Attr): Result;
  /** The same on a thread of libuv's pool: for calls longer than half a millisecond. Never two calls with one Attr. */
  bpfAsync(command: BpfCommand, attr: Attr): Promise<Result>;
  /** Address of `bytes`, valid while something else refers to them: an address does not keep them alive. */
  address(bytes: Uint8Array): bigint;
  /** Opens a process as a file descriptor, since Linux 5.3; or one of its threads, since 6.9. */
  pidfdOpen(pid: number, thread?: boolean): Result;
  /** Duplicates file descriptor `fd` of another process: the same open file. Since Linux 5.6. */
  pidfdGetfd(pidfd: number, fd: number): Result;
  /** pread(2): bytes read. For files where errors are common: an error from Node costs far more than the call. */
  pread(fd: number, into: Uint8Array, position: bigint): Result;
  /** getsockopt(2) of level SOL_SOCKET: writes the option into `value`. */
  getsockopt(fd: number, option: number, value: Uint8Array): Result;
  /**
   * Maps memory, MAP_SHARED unless it is `private`.
   * @param offset position in the file, in bytes
   * @param how.populate read in every page at once
   * @param how.address where to map, without replacing what is there (MAP_FIXED_NOREPLACE); 0n lets the kernel choose
   */
  mmap(
    fd: number,
    offset: number,
    length: number,
    how: {
      readonly writable: boolean;
      readonly populate: boolean;
      readonly address: bigint;
      readonly private?: boolean;
    },
  ): MapResult;
  munmap(address: bigint, length: number): Result;
  /** The mapped bytes themselves. Touching them after {@link munmap} kills the process. */
  view(address: bigint, length: number): Buffer;
  /** CPUs on which the calling thread may run. */
  getAffinity(): readonly number[] | Result;
  /** Binds the calling thread to `cpus`. Calls on the pool's threads are not bound. */
  setAffinity(cpus: readonly number[]): Result;
  /**
   * Spreads the pool's threads over the CPUs, unless there are more CPUs than threads. Left alone, Linux
   * may wake all of them on one CPU, so that long calls run one after the other while another
   * CPU is idle. Done only once; it affects only speed.
   */
  spreadPool?(): void;
  /** fallocate(2): gives the file `length` bytes and reserves disk space for them. */
  allocate(fd: number, length: number): Result;
  /** Closes a file descriptor; whatever the result, it is closed. */
  close(fd: number): Result;
  /** What was opened here and not closed: one line each, with the command that opened it. */
  openFds(): string[];
}

/** Size of the blocks that {@link pinned} divides, and up to which size it does so. */
const BLOCK = 64 * 1024;
const SMALL = 1024;
const block = { memory: new ArrayBuffer(0), used: 0 };

/**
 * Memory that the garbage collector does not move: small typed arrays may live on its heap, these never do. Small ones
 * share blocks: a block for each would cost more than the call that uses it.
 */
export function pinned(size: number): Buffer {
  if (size > SMALL) return Buffer.from(new ArrayBuffer(size));
  if (block.used + size > block.memory.byteLength) {
    block.memory = new ArrayBuffer(BLOCK);
    block.used = 0;
  }
  const bytes = Buffer.from(block.memory, block.used, size);
  block.used += roundUp8(size);
  return bytes;
}

/**
 * The bytes of one `union bpf_attr` or info structure, and the buffers its pointers point to.
 *
 * The kernel gets addresses, which do not keep a buffer from being collected. So the Attr keeps each pointer's
 * buffer, and {@link Sys} keeps the Attr while the call runs.
 */
export class Attr<F extends string = string> {
  readonly bytes: Buffer;
  readonly #view: DataView;
  readonly #kept = new Map<F, { readonly bytes: Uint8Array; readonly address: number }>();

  constructor(
    readonly layout: StructLayout<F>,
    readonly memory: Pick<Sys, 'address'>,
  ) {
    this.bytes = pinned(layout.size);
    this.#view = viewOf(this.bytes);
  }

  /** Sets a number member. Negative numbers are written as the kernel reads them (fds of -1). */
  set(field: F, value: number | bigint): this {
    const { offset, size } = this.layout.fields[field];
    if (size === 4) this.#view.setUint32(offset, Number(value), true);
    else if (typeof value === 'number' && value >= 0) {
      // As numbers: a call for each item would spend most of its time on bigints.
      this.#view.setUint32(offset, value, true);
      this.#view.setUint32(offset + 4, value / 2 ** 32, true);
    } else this.#view.setBigUint64(offset, BigInt.asUintN(64, BigInt(value)), true);
    return this;
  }

  /** Copies bytes into a member such as a name and zeroes the rest of it. */
  setBytes(field: F, bytes: Uint8Array): this {
    const { offset, size } = this.layout.fields[field];
    this.bytes.fill(0, offset, offset + size);
    this.bytes.set(bytes.subarray(0, size), offset);
    return this;
  }

  /** Points a member at `bytes[from..]` and keeps them alive until it points elsewhere; undefined is NULL. */
  point(field: F, bytes: Uint8Array | undefined, from = 0): this {
    if (bytes === undefined) {
      this.#kept.delete(field);
      return this.set(field, 0);
    }
    let kept = this.#kept.get(field);
    if (kept?.bytes !== bytes) {
      // No process has memory at 2^53, where numbers end.
      kept = { bytes, address: Number(this.memory.address(bytes)) };
      this.#kept.set(field, kept);
    }
    return this.set(field, kept.address + from);
  }

  /** What a member points at, to the end of the buffer that was passed to {@link point}; for a scripted kernel. */
  pointee(field: F): Uint8Array | undefined {
    const kept = this.#kept.get(field);
    const from = kept === undefined ? 0 : Number(this.get64(field)) - kept.address;
    return from === 0 ? kept?.bytes : kept?.bytes.subarray(from);
  }

  get(field: F): number {
    return this.#view.getUint32(this.layout.fields[field].offset, true);
  }

  get64(field: F): bigint {
    return this.#view.getBigUint64(this.layout.fields[field].offset, true);
  }

  /** A copy of a member's bytes. */
  getBytes(field: F): Buffer {
    const { offset, size } = this.layout.fields[field];
    return Buffer.from(this.bytes.subarray(offset, offset + size));
  }

  /** Zeroes everything and clears all pointers. */
  clear(): this {
    this.bytes.fill(0);
    this.#kept.clear();
    return this;
  }
}

/** Commands whose result is a file descriptor. */
const OPENS: ReadonlySet<BpfCommand> = new Set<BpfCommand>([
  'MAP_CREATE',
  'PROG_LOAD',
  'OBJ_GET',
  'PROG_GET_FD_BY_ID',
  'MAP_GET_FD_BY_ID',
  'BTF_LOAD',
  'BTF_GET_FD_BY_ID',
  'LINK_CREATE',
  'ITER_CREATE',
]);

/**
 * Commands that must not simply be repeated: a batch overwrites its `count` with the number done
 * (and returns EINTR if a map changed too fast, not for a signal), and a removed value is gone.
 */
const ONCE: ReadonlySet<BpfCommand> = new Set<BpfCommand>([
  'MAP_LOOKUP_BATCH',
  'MAP_LOOKUP_AND_DELETE_BATCH',
  'MAP_UPDATE_BATCH',
  'MAP_DELETE_BATCH',
  'MAP_LOOKUP_AND_DELETE_ELEM',
]);

/** How often a call is repeated; libbpf also gives up after five. */
const REPEATS = 5;

/** Whether to repeat a call that failed with `errno` for the `failures`th time. */
export function repeatable(command: BpfCommand, errno: number, failures: number): boolean {
  return (errno === ERRNO.EINTR || errno === ERRNO.EAGAIN) && failures <= REPEATS && !ONCE.has(command);
}

/** Commands whose memory counts as locked before Linux 5.11. */
const LOCKS: ReadonlySet<BpfCommand> = new Set(['MAP_CREATE', 'PROG_LOAD']);
const RLIMIT_MEMLOCK = 8;

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 1;
const MAP_PRIVATE = 2;
const MAP_POPULATE = 0x8000;
const MAP_FIXED_NOREPLACE = 0x100000;
const PIDFD_THREAD = 0x80;
const SOL_SOCKET = 1;
/** cpu_set_t of glibc: 1024 CPUs. */
const CPU_SET = 128;

type Koffi = typeof import('koffi');
type Async<A extends unknown[]> = (...args: [...A, (error: unknown, result: number) => void]) => void;
type BpfArgs = [number: number, command: number, attr: Uint8Array, size: number];
type BpfCall = ((...args: BpfArgs) => number) & { readonly async: Async<BpfArgs> };

/**
 * Keeps alive what a synchronous call uses: optimised code drops locals after the last read of a
 * member, which may be before the call that uses their memory by address.
 */
const inUse: { attr?: Attr } = {};

/** Ids of this process's threads. */
function threads(): number[] {
  try {
    return readdirSync('/proc/self/task').map(Number);
  } catch {
    return [];
  }
}

class KernelSys implements Sys {
  readonly proc = PROC;
  readonly types: KnownTypes;
  #cpus: number | undefined;
  #pageSize: number | undefined;
  readonly #koffi: Koffi;
  readonly #numbers: { bpf: number; pidfd_open: number; pidfd_getfd: number };
  readonly #bpf: BpfCall;
  readonly #syscall: (number: number, a: number, b: number, c: number) => number;
  readonly #mmap: (at: bigint, length: number, protection: number, flags: number, fd: number, offset: number) => bigint;
  readonly #munmap: (address: bigint, length: number) => number;
  readonly #pread: (fd: number, into: Uint8Array, size: number, position: bigint) => number;
  readonly #getsockopt: (fd: number, level: number, option: number, value: Uint8Array, size: Uint8Array) => number;
  readonly #getAffinity: (pid: number, size: number, set: Uint8Array) => number;
  readonly #setAffinity: (pid: number, size: number, set: Uint8Array) => number;
  /** A call that costs nothing, to start a thread of the pool. */
  readonly #nothing: { async(done: () => void): void };
  #spread = false;
  /** RLIMIT_MEMLOCK was raised, or cannot be. */
  #raised = false;
  readonly #fallocate: (fd: number, mode: number, offset: number, length: number) => number;
  readonly #close: (fd: number) => number;
  readonly #open = new Map<number, string>();
  /** Keeps what runs on the pool alive while it runs. */
  readonly #running = new Set<Attr>();
  /** Where the block that {@link pinned} divides starts: to ask for each of its parts takes longer. */
  #block = { memory: new ArrayBuffer(0), start: 0n };

  constructor(koffi: Koffi, numbers: { bpf: number; pidfd_open: number; pidfd_getfd: number }, types: KnownTypes) {
    this.types = types;
    this.#koffi = koffi;
    this.#numbers = numbers;
    // Node's own symbols, so any libc works. A fixed signature, because variadic functions cannot be async.
    const libc = koffi.load(null);
    this.#bpf = libc.func('long syscall(long, int, void *, uint32_t)') as unknown as BpfCall;
    this.#syscall = libc.func('long syscall(long, long, long, long)');
    this.#mmap = libc.func('void *mmap(uintptr_t, size_t, int, int, int, int64_t)');
    this.#munmap = libc.func('int munmap(uintptr_t, size_t)');
    this.#pread = libc.func('long pread(int, _Out_ void *, size_t, int64_t)');
    this.#getsockopt = libc.func('int getsockopt(int, int, int, _Out_ void *, _Inout_ void *)');
    this.#getAffinity = libc.func('int sched_getaffinity(int, size_t, _Out_ void *)');
    this.#setAffinity = libc.func('int sched_setaffinity(int, size_t, void *)');
    this.#nothing = libc.func('int getppid()') as unknown as { async(done: () => void): void };
    this.#fallocate = libc.func('int fallocate(int, int, int64_t, int64_t)');
    this.#close = libc.func('int close(int)');
  }

  get pageSize(): number {
    this.#pageSize ??= this.#koffi.load(null).func('int getpagesize()')() as number;
    return this.#pageSize;
  }

  get cpus(): number {
    this.#cpus ??= possibleCpus();
    return this.#cpus;
  }

  #result(value: number): Result {
    return value >= 0 ? value : -this.#koffi.errno();
  }

  /** Records a new file descriptor. */
  #opened(fd: Result, from: string): Result {
    if (fd >= 0) this.#open.set(fd, from);
    return fd;
  }

  bpf(command: BpfCommand, attr: Attr): Result {
    inUse.attr = attr;
    for (let failures = 1; ; failures++) {
      const result = this.#result(this.#bpf(this.#numbers.bpf, BPF_COMMAND[command], attr.bytes, attr.bytes.length));
      if (result < 0 && repeatable(command, -result, failures)) continue;
      if (result === -ERRNO.EPERM && LOCKS.has(command) && this.#raiseMemlock()) continue;
      return OPENS.has(command) ? this.#opened(result, `BPF_${command}`) : result;
    }
  }

  /**
   * Raises RLIMIT_MEMLOCK as far as permitted: Linux before 5.11 counts the memory of maps and programs against it,
   * and fails with EPERM. Called only after that, and only once.
   * @returns whether the limit is higher now
   */
  #raiseMemlock(): boolean {
    if (this.#raised) return false;
    this.#raised = true;
    const prlimit = this.#koffi.load(null).func('int prlimit(int, int, void *, _Out_ void *)');
    const limit = Buffer.alloc(16, 0xff);
    if (prlimit(0, RLIMIT_MEMLOCK, limit, null) === 0) return true;
    // Without CAP_SYS_RESOURCE, only the soft limit, which comes first, and only up to the hard limit.
    if (prlimit(0, RLIMIT_MEMLOCK, null, limit) !== 0) return false;
    limit.copy(limit, 0, 8);
    return prlimit(0, RLIMIT_MEMLOCK, limit, null) === 0;
  }

  async bpfAsync(command: BpfCommand, attr: Attr): Promise<Result> {
    if (this.#running.has(attr)) throw new Error(`BPF_${command}: its attributes are in use by another call`);
    this.#running.add(attr);
    try {
      for (let failures = 1; ; failures++) {
        const result = await this.#onPool(command, attr);
        if (result < 0 && repeatable(command, -result, failures)) continue;
        return OPENS.has(command) ? this.#opened(result, `BPF_${command}`) : result;
      }
    } finally {
      this.#running.delete(attr);
    }
  }

  #onPool(command: BpfCommand, attr: Attr): Promise<Result> {
    return new Promise((resolve, reject) => {
      this.#bpf.async(this.#numbers.bpf, BPF_COMMAND[command], attr.bytes, attr.bytes.length, (error, result) => {
        // Read errno inside the callback: by the time a promise resolves, another call may have overwritten it.
        if (error) reject(error);
        else resolve(this.#result(result));
      });
    });
  }

  address(bytes: Uint8Array): bigint {
    if (bytes.buffer !== block.memory) return this.#koffi.address(bytes);
    if (this.#block.memory !== block.memory) {
      this.#block = { memory: block.memory, start: this.#koffi.address(new Uint8Array(block.memory)) };
    }
    return this.#block.start + BigInt(bytes.byteOffset);
  }

  pidfdOpen(pid: number, thread = false): Result {
    const flags = thread ? PIDFD_THREAD : 0;
    return this.#opened(this.#result(this.#syscall(this.#numbers.pidfd_open, pid, flags, 0)), 'pidfd_open');
  }

  pidfdGetfd(pidfd: number, fd: number): Result {
    return this.#opened(this.#result(this.#syscall(this.#numbers.pidfd_getfd, pidfd, fd, 0)), 'pidfd_getfd');
  }

  pread(fd: number, into: Uint8Array, position: bigint): Result {
    return this.#result(this.#pread(fd, into, into.length, position));
  }

  getsockopt(fd: number, option: number, value: Uint8Array): Result {
    const bytes = pinned(value.length);
    const size = pinned(4);
    size.writeUInt32LE(value.length);
    const result = this.#result(this.#getsockopt(fd, SOL_SOCKET, option, bytes, size));
    if (result >= 0) value.set(bytes);
    return result;
  }

  mmap(...[fd, offset, length, how]: Parameters<Sys['mmap']>): MapResult {
    const { writable, populate, address } = how;
    const protection = PROT_READ | (writable ? PROT_WRITE : 0);
    const sharing = how.private === true ? MAP_PRIVATE : MAP_SHARED;
    const flags = sharing | (populate ? MAP_POPULATE : 0) | (address !== 0n ? MAP_FIXED_NOREPLACE : 0);
    const result = this.#mmap(address, length, protection, flags, fd, offset);
    return result === 0xffff_ffff_ffff_ffffn ? -BigInt(this.#koffi.errno()) : result;
  }

  munmap(address: bigint, length: number): Result {
    return this.#result(this.#munmap(address, length));
  }

  view(address: bigint, length: number): Buffer {
    return Buffer.from(this.#koffi.view(address, length));
  }

  getAffinity(): readonly number[] | Result {
    const set = pinned(CPU_SET);
    const result = this.#result(this.#getAffinity(0, CPU_SET, set));
    if (result < 0) return result;
    return [...Array(CPU_SET * 8).keys()].filter((cpu) => ((set[cpu >> 3] as number) & (1 << (cpu & 7))) !== 0);
  }

  setAffinity(cpus: readonly number[]): Result {
    return this.#keepThread(0, cpus);
  }

  #keepThread(thread: number, cpus: readonly number[]): Result {
    const set = pinned(CPU_SET);
    for (const cpu of cpus) set[cpu >> 3] = (set[cpu >> 3] ?? 0) | (1 << (cpu & 7));
    return this.#result(this.#setAffinity(thread, CPU_SET, set));
  }

  spreadPool(): void {
    if (this.#spread) return;
    this.#spread = true;
    const cpus = this.getAffinity();
    if (typeof cpus === 'number' || cpus.length < 2) return;
    // All threads of the pool start with the first call that is queued.
    const before = new Set(threads());
    this.#nothing.async(() => {});
    const pool = threads().filter((thread) => !before.has(thread));
    if (pool.length < cpus.length) return;
    for (const [i, thread] of pool.entries()) this.#keepThread(thread, [cpus[i % cpus.length] as number]);
  }

  allocate(fd: number, length: number): Result {
    return this.#result(this.#fallocate(fd, 0, 0, length));
  }

  close(fd: number): Result {
    this.#open.delete(fd);
    // Never retried after EINTR: Linux has freed the number, and another thread may have it already.
    return this.#result(this.#close(fd));
  }

  openFds(): string[] {
    return [...this.#open].map(([fd, from]) => `fd ${fd} from ${from}`);
  }
}

/**
 * Opens access to this machine's kernel.
 * @param machine its architecture; tests pass others
 * @param types the table of map types
 * @param load loads koffi
 * @throws BpfimgError `unsupported` if the machine's layouts are not known
 */
export async function openSys(
  types: KnownTypes,
  machine: { readonly platform: string; readonly arch: string } = process,
  load: () => Promise<{ default: unknown }> = () => import('koffi'),
): Promise<Sys> {
  const { platform, arch } = machine;
  if (platform !== 'linux') throw new BpfimgError('unsupported', `live BPF maps need Linux, this is ${platform}`);
  if (endianness() !== 'LE' || arch === 's390x' || arch === 's390') {
    throw new BpfimgError('unsupported', `live BPF maps need a little-endian machine, this is ${arch}`);
  }
  const numbers = SYSCALL[arch];
  if (numbers === undefined) {
    const known = Object.keys(SYSCALL).join(', ');
    throw new BpfimgError('unsupported', `live BPF maps: expected one of the machines ${known}, this is ${arch}`);
  }
  let koffi: Koffi;
  try {
    koffi = (await during('loading koffi', load)).default as Koffi;
  } catch (error) {
    throw new BpfimgError(
      'unsupported',
      `live BPF maps need the package koffi, which failed to load: ${firstLine(error)}`,
      {
        cause: error,
      },
    );
  }
  return new KernelSys(koffi, numbers, types);
}
