/** A kernel that does what a test says: for errors that a real one shows rarely, and without privilege. */

import { type BpfCommand, MAP_INFO } from '../../src/kernel/abi.js';
import { BpfMap } from '../../src/kernel/map.js';
import { type Attr, ERRNO, type MapResult, type Result, type Sys } from '../../src/kernel/sys.js';
import { types } from './types.js';

/** What a scripted call does: a result (zero or more, or a negated errno), or code that makes one. */
export type Reply = number | ((attr: Attr) => number);

/** A call as it was made: the attributes' bytes, and what its pointers pointed at. */
export interface Call {
  readonly command: BpfCommand;
  readonly attr: Attr;
  readonly bytes: Buffer;
}

export class FakeSys implements Sys {
  readonly types = types;
  readonly proc: string = '/nowhere';
  readonly cpus: number = 4;
  readonly pageSize = 4096;
  readonly calls: Call[] = [];
  /** Set to hold asynchronous calls back; call it to let one go. */
  readonly held: (() => void)[] = [];
  hold = false;
  readonly #script = new Map<BpfCommand, Reply[]>();
  readonly #addresses = new WeakMap<ArrayBufferLike, bigint>();
  readonly #open = new Map<number, string>();
  #nextAddress = 0x7000_0000_0000n;
  #nextFd = 1000;

  /** Replies to calls of `command`, one after the other; the last is repeated. */
  on(command: BpfCommand, ...replies: Reply[]): this {
    this.#script.set(command, replies);
    return this;
  }

  /** A new file descriptor. */
  fd(from: string): number {
    this.#open.set(this.#nextFd, from);
    return this.#nextFd++;
  }

  bpf(command: BpfCommand, attr: Attr): Result {
    this.calls.push({ command, attr, bytes: Buffer.from(attr.bytes) });
    const replies = this.#script.get(command);
    const reply = replies !== undefined && replies.length > 1 ? replies.shift() : replies?.[0];
    if (reply === undefined) throw new Error(`no reply for BPF_${command}`);
    return typeof reply === 'number' ? reply : reply(attr);
  }

  async bpfAsync(command: BpfCommand, attr: Attr): Promise<Result> {
    if (this.hold) await new Promise<void>((resolve) => this.held.push(resolve));
    return this.bpf(command, attr);
  }

  address(bytes: Uint8Array): bigint {
    let base = this.#addresses.get(bytes.buffer);
    if (base === undefined) {
      base = this.#nextAddress;
      this.#nextAddress += BigInt(bytes.buffer.byteLength + 4096);
      this.#addresses.set(bytes.buffer, base);
    }
    return base + BigInt(bytes.byteOffset);
  }

  pidfdOpen(): Result {
    return -ERRNO.ENOSYS;
  }
  pidfdGetfd(): Result {
    return -ERRNO.ENOSYS;
  }
  pread(): Result {
    return -ERRNO.ENOSYS;
  }
  getsockopt(): Result {
    return -ERRNO.ENOSYS;
  }
  mmap(..._call: Parameters<Sys['mmap']>): MapResult {
    return BigInt(-ERRNO.ENOTSUPP);
  }
  munmap(..._call: Parameters<Sys['munmap']>): Result {
    return 0;
  }
  view(..._call: Parameters<Sys['view']>): Buffer {
    return Buffer.alloc(0);
  }
  getAffinity(): readonly number[] {
    return [0];
  }
  setAffinity(): Result {
    return 0;
  }
  allocate(): Result {
    return -ERRNO.EOPNOTSUPP;
  }

  close(fd: number): Result {
    if (!this.#open.delete(fd)) throw new Error(`fd ${fd} is closed twice`);
    return 0;
  }

  openFds(): string[] {
    return [...this.#open].map(([fd, from]) => `fd ${fd} from ${from}`);
  }
}

/** What a scripted map is; the rest of it is 0. */
export interface FakeMap {
  readonly type?: number;
  readonly id?: number;
  readonly key_size?: number;
  readonly value_size?: number;
  readonly max_entries?: number;
  readonly map_flags?: number;
  readonly btf_id?: number;
  readonly name?: string;
}

/** Reply to OBJ_GET_INFO_BY_FD for a map. */
export function infoReply(map: FakeMap): Reply {
  return (attr) => {
    const info = attr.pointee('info') as Buffer;
    for (const [field, value] of Object.entries(map)) {
      const { offset } = MAP_INFO.fields[field as keyof typeof MAP_INFO.fields];
      if (typeof value === 'number') info.writeUInt32LE(value, offset);
      else info.write(value, offset, 'latin1');
    }
    return 0;
  };
}

/** An open map of a scripted kernel: by default a hash called `fake` with id 7, keys and values of 4 and 8 bytes. */
export function fakeMap(sys: FakeSys, map: FakeMap = {}): BpfMap {
  const usual = { type: 1, id: 7, key_size: 4, value_size: 8, max_entries: 100, name: 'fake' };
  sys.on('MAP_GET_FD_BY_ID', () => sys.fd('BPF_MAP_GET_FD_BY_ID'));
  sys.on('OBJ_GET_INFO_BY_FD', infoReply({ ...usual, ...map }));
  return BpfMap.openById(sys, map.id ?? usual.id);
}
