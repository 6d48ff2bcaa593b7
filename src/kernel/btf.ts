/** BTF objects of the kernel: reads their bytes and loads them again. */
import { untilNul } from '../bytes.js';
import { ATTR, BTF_INFO } from './abi.js';
import { KernelError } from './error.js';
import { Attr, ERRNO, pinned, type Sys } from './sys.js';

/** A BTF object as it was loaded. */
export interface LoadedBtf {
  readonly id: number;
  readonly name: string;
  /** Belongs to the kernel or a module; no program loaded it. */
  readonly kernel: boolean;
  readonly blob: Buffer;
}

/**
 * Reads a BTF object by its id. Needs CAP_SYS_ADMIN; since Linux 4.18.
 * @throws KernelError
 */
export function readBtf(sys: Sys, id: number): LoadedBtf {
  const subject = `BTF ${id}`;
  const fd = sys.bpf('BTF_GET_FD_BY_ID', new Attr(ATTR.btfById, sys).set('btf_id', id));
  if (fd < 0) throw new KernelError(subject, 'BPF_BTF_GET_FD_BY_ID', -fd);
  let named = true;
  try {
    const ask = (blob: Buffer, name: Buffer): Attr<keyof typeof BTF_INFO.fields> => {
      const info = new Attr(BTF_INFO, sys).point('btf', blob).set('btf_size', blob.length);
      if (named) info.point('name', name).set('name_len', name.length);
      const attr = new Attr(ATTR.info, sys)
        .set('bpf_fd', fd)
        .set('info_len', info.bytes.length)
        .point('info', info.bytes);
      const result = sys.bpf('OBJ_GET_INFO_BY_FD', attr);
      if (result === -ERRNO.E2BIG && named) {
        // Before Linux 5.11, BTF objects have no names, and the kernel requires zeros beyond the members it knows.
        named = false;
        return ask(blob, name);
      }
      if (result < 0) throw new KernelError(subject, 'BPF_OBJ_GET_INFO_BY_FD', -result);
      return info;
    };
    // A buffer that is too small is no error: the kernel returns the full size.
    const name = pinned(128);
    const blob = pinned(ask(pinned(1), name).get('btf_size'));
    const info = ask(blob, name);
    return { id, name: untilNul(name), kernel: info.get('kernel_btf') !== 0, blob };
  } finally {
    sys.close(fd);
  }
}

/** Room for the verifier's explanation when it refuses a blob. */
const LOG_SIZE = 64 * 1024;

/**
 * Loads a blob.
 * @returns a file descriptor that the caller owns; maps created with it keep the object alive
 * @throws KernelError with the verifier's reason
 */
export function loadBtf(sys: Sys, blob: Uint8Array): number {
  const bytes = pinned(blob.length);
  bytes.set(blob);
  const attr = new Attr(ATTR.btfLoad, sys).point('btf', bytes).set('btf_size', bytes.length);
  const fd = sys.bpf('BTF_LOAD', attr);
  if (fd >= 0) return fd;
  // A log only on the second try: a log buffer that is too small would make the load fail.
  const log = pinned(LOG_SIZE);
  const again = sys.bpf(
    'BTF_LOAD',
    attr.point('btf_log_buf', log).set('btf_log_size', log.length).set('btf_log_level', 1),
  );
  if (again >= 0) return again;
  const errno = again === -ERRNO.ENOSPC ? -fd : -again;
  const said = untilNul(log).trim().split('\n').at(-1) ?? '';
  // Kinds from 16 on came with Linux 5.13 and later; before that, their numbers had four bits.
  const newer = /Invalid (kind:\d+|btf_info:[19][0-9a-f]{7})$/.test(said)
    ? `${said}, which this kernel does not know`
    : said;
  throw new KernelError('BTF', 'BPF_BTF_LOAD', errno, said === '' ? undefined : newer);
}
