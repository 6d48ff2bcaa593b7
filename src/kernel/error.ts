/** What the kernel's errno means here: one line with the command, the map and the likely cause. */
import { constants as os } from 'node:os';
import { BpfimgError, type ErrorKind } from '../errors.js';
import { ERRNO } from './sys.js';

const NAMES = new Map<number, string>([
  ...Object.entries(os.errno)
    // Some numbers have two names; the usual one comes last.
    .filter(([name]) => name !== 'EWOULDBLOCK' && name !== 'ENOTSUP')
    .map(([name, number]): [number, string] => [number, name]),
  [ERRNO.ENOTSUPP, 'ENOTSUPP'],
]);

/** `EPERM` for 1; `errno 999` for a number that has no name. */
export function errnoName(errno: number): string {
  return NAMES.get(errno) ?? `errno ${errno}`;
}

const ERROR_KINDS = new Map<number, ErrorKind>([
  [ERRNO.ENOENT, 'notFound'],
  [ERRNO.ESRCH, 'notFound'],
  [ERRNO.EEXIST, 'conflict'],
  [ERRNO.EBUSY, 'conflict'],
  [ERRNO.ENOSYS, 'unsupported'],
  [ERRNO.EOPNOTSUPP, 'unsupported'],
  [ERRNO.ENOTSUPP, 'unsupported'],
]);

/** A system call that failed. Its `code` is the errno's name. */
export class KernelError extends BpfimgError {
  /** What the call was made on: `map 57 (flows)`. */
  declare readonly subject: string;

  constructor(
    subject: string,
    /** The call, spelled as in its manual: `BPF_MAP_FREEZE`, `pidfd_getfd`. */
    readonly call: string,
    /** A positive errno. */
    readonly errno: number,
    /** The likely reason; {@link causeOf} if the caller knows no better one. */
    readonly reason: string = causeOf(call, errno),
    part?: string,
  ) {
    const code = errnoName(errno);
    super(ERROR_KINDS.get(errno) ?? 'io', `${call}: ${code} (${reason})`, { subject, part, code });
  }

  /** The same failure for a part of its subject: `item 0a000001`. */
  of(part: string): KernelError {
    const whole = this.part === undefined ? part : `${this.part}, ${part}`;
    return new KernelError(this.subject, this.call, this.errno, this.reason, whole);
  }

  override about(subject: string): KernelError {
    return new KernelError(subject, this.call, this.errno, this.reason, this.part);
  }
}

/** Likely causes by `BPF_MAP_CREATE` and `EPERM`, or by `*` and `EPERM`; the more specific ones come first. */
const CAUSES: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  BPF_MAP_CREATE: {
    ENOMEM: 'not enough memory, or a memory cgroup reached its limit',
    EBADF: 'a file descriptor among its attributes is not open',
    EINVAL: 'one of its attributes is not accepted',
    E2BIG: 'one of its attributes is too large, or newer than this kernel',
    EOPNOTSUPP: 'its ifindex asks for offload, which no device offers',
  },
  BPF_MAP_GET_NEXT_ID: { EPERM: 'needs the capability CAP_SYS_ADMIN', EINVAL: 'needs Linux 4.13' },
  BPF_PROG_GET_NEXT_ID: { EPERM: 'needs the capability CAP_SYS_ADMIN', EINVAL: 'needs Linux 4.13' },
  BPF_MAP_GET_FD_BY_ID: { EPERM: 'needs the capability CAP_SYS_ADMIN', ENOENT: 'no map has this id' },
  BPF_PROG_GET_FD_BY_ID: { EPERM: 'needs the capability CAP_SYS_ADMIN', ENOENT: 'no program has this id' },
  BPF_BTF_GET_FD_BY_ID: { EPERM: 'needs the capability CAP_SYS_ADMIN', ENOENT: 'no BTF object has this id' },
  BPF_BTF_LOAD: { EPERM: 'needs the capability CAP_BPF', EINVAL: 'this is not valid BTF, or newer than this kernel' },
  BPF_PROG_LOAD: {
    EPERM:
      'needs the capabilities CAP_BPF and CAP_PERFMON, before Linux 5.11 also room under RLIMIT_MEMLOCK (ulimit -l)',
  },
  BPF_OBJ_GET: {
    ENOENT: 'no such file',
    EACCES: 'no permission for the file',
    EPERM: 'no permission for the file',
    EINVAL: 'not a pinned BPF object',
    ENOTDIR: 'no such folder',
  },
  BPF_OBJ_PIN: {
    EEXIST: 'a file exists there already',
    ENOENT: 'no such folder',
    EACCES: 'no permission to write there',
    EPERM: 'not on a BPF file system, or a dot in the name',
    EINVAL: 'not a place for pins',
  },
  BPF_MAP_LOOKUP_ELEM: {
    ENOENT: 'no such key',
    EPERM: 'its file descriptor is write-only',
    EINVAL: 'these flags are not accepted',
  },
  BPF_MAP_GET_NEXT_KEY: { EPERM: 'its file descriptor is write-only', EINVAL: 'it has no keys' },
  BPF_MAP_LOOKUP_BATCH: {
    EPERM: 'its file descriptor is write-only',
    ENOSPC: 'one of its buckets does not fit into the batch',
    EINTR: 'it changes faster than it can be read',
  },
  BPF_MAP_UPDATE_ELEM: {
    EPERM: 'frozen, or its file descriptor is read-only',
    E2BIG: 'it is full, or the index is not below max_entries',
    ENOSPC: 'it is full',
    EEXIST: 'the key exists already',
    ENOENT: 'the key does not exist',
    EINVAL: 'the key, the value or a flag is not accepted',
    ENOMEM: 'not enough memory',
  },
  BPF_MAP_UPDATE_BATCH: {
    EPERM: 'frozen, or its file descriptor is read-only',
    E2BIG: 'it is full, or an index is not below max_entries',
    ENOSPC: 'it is full',
    EINVAL: 'a key, a value or a flag is not accepted',
    ENOMEM: 'not enough memory',
  },
  BPF_MAP_DELETE_ELEM: {
    EPERM: 'frozen, or its file descriptor is read-only',
    ENOENT: 'no such key',
    EINVAL: 'items of this type cannot be deleted',
  },
  BPF_MAP_LOOKUP_AND_DELETE_ELEM: {
    EPERM: 'frozen, or its file descriptor is not for both reading and writing',
    ENOENT: 'empty, or no such key',
  },
  BPF_MAP_FREEZE: {
    EPERM: 'frozen already, or its file descriptor is read-only',
    EBUSY: 'it is mapped for writing, or frozen already',
    ENOTSUPP: 'maps with locks, timers or kernel pointers in their values cannot be frozen',
  },
  pidfd_open: { ESRCH: 'no such process', EINVAL: 'no such process', ENOSYS: 'needs Linux 5.3' },
  pidfd_getfd: {
    EPERM: 'needs the right to trace the process: CAP_SYS_PTRACE, and no fewer capabilities than it has',
    EBADF: 'not open in that process',
    ESRCH: 'the process has ended',
    ENOSYS: 'needs Linux 5.6',
  },
  mmap: {
    EPERM: 'frozen, or not mappable for writing',
    EACCES: 'read-only to programs, or its file descriptor does not allow it',
    EINVAL: 'the map lacks BPF_F_MMAPABLE, or the range is beyond its end',
    ENOTSUPP: 'maps of this type cannot be mapped',
    ENODEV: 'maps of this type cannot be mapped',
    ENOMEM: 'not enough memory or address space',
    EEXIST: 'something is mapped at its address',
  },
  '*': {
    EPERM: 'not permitted',
    EACCES: 'permission denied',
    EBADF: 'its file descriptor is not open',
    EFAULT: 'bad address',
    EINVAL: 'not accepted for maps of this type',
    E2BIG: 'attributes newer than this kernel',
    ENOMEM: 'not enough memory',
    EMFILE: 'too many open files in this process, see ulimit -n',
    ENFILE: 'too many open files on this machine',
    ENOSYS: 'this kernel lacks the call',
    EOPNOTSUPP: 'not supported for maps of this type',
    ENOTSUPP: 'not supported for maps of this type',
    EINTR: 'interrupted repeatedly',
    EAGAIN: 'not possible at the moment',
    EBUSY: 'in use at the moment',
  },
};

/** The likely cause of a failure, from the call and the errno alone. */
export function causeOf(call: string, errno: number): string {
  const name = errnoName(errno);
  return CAUSES[call]?.[name] ?? CAUSES['*']?.[name] ?? 'the kernel gives no reason';
}
