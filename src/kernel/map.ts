/**
 * One live BPF map: {@link BpfMap} owns its file descriptor and every buffer whose address the kernel gets.
 *
 * In the order of a map's life: create or open, info, single items, batches, memory, freeze, pin, close.
 * Failures throw a {@link KernelError}; expected outcomes (no such key, the end) are return values.
 */
import { type CpuParts, cpuParts, cpuStride, isZero, pathBytes, pathText, roundUp8, untilNul } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import { ATTR, type BpfCommand, ELEM_FLAG, MAP_FLAG, MAP_INFO, MAP_LINK, mapSubject, type StructField } from './abi.js';
import { causeOf, KernelError } from './error.js';
import { type Access, bpffsHint, fdLink, isBpffs, type MapFdinfo, mapFdinfo } from './proc.js';
import { breaches } from './rules.js';
import { Attr, ERRNO, pinned, type Sys } from './sys.js';

const ACCESS_FLAGS: Readonly<Record<Access, number>> = { rw: 0, ro: MAP_FLAG.RDONLY, wo: MAP_FLAG.WRONLY };

/** What OBJ_GET_INFO_BY_FD says of a map. None of it changes while the map lives. */
export interface MapInfo {
  readonly type: number;
  readonly id: number;
  /** Bytes. */
  readonly keySize: number;
  /** Bytes; in per-CPU maps the size of one CPU's value, not rounded up. */
  readonly valueSize: number;
  readonly maxEntries: number;
  readonly flags: number;
  /** One character per byte: the kernel accepts Latin-1 letters. Empty before Linux 4.15. */
  readonly name: string;
  /** Device it is offloaded to; 0 if none. */
  readonly ifindex: number;
  readonly extra: bigint;
  /** Ids of a BTF object and of types in it; 0 if none. */
  readonly btfId: number;
  readonly btfKeyType: number;
  readonly btfValueType: number;
  readonly btfVmlinuxId: number;
  readonly btfVmlinuxValueType: number;
}

/** What only /proc/PID/fdinfo shows, and what may change; undefined if the kernel or procfs does not show it. */
export interface MapState {
  readonly frozen: boolean | undefined;
  /** Bytes. */
  readonly memlock: number | undefined;
  readonly access: Access | undefined;
}

/** What to create. */
export interface MapSpec {
  readonly type: number;
  /** Linux version that added the type, for messages. */
  readonly since?: string;
  readonly keySize: number;
  readonly valueSize: number;
  readonly maxEntries: number;
  readonly flags?: number;
  /** One character per byte, at most 15. */
  readonly name?: string;
  readonly extra?: bigint;
  readonly ifindex?: number;
  /** NUMA node, which the kernel reads only with BPF_F_NUMA_NODE; -1 means any. */
  readonly numaNode?: number;
  /** Template of a map of maps: borrowed, and not needed once the map exists. */
  readonly inner?: BpfMap;
  /** Types of keys and values. `fd` is borrowed. 0 is a valid file descriptor, so leave `btf` out for none. */
  readonly btf?: {
    readonly fd: number;
    readonly keyType: number;
    readonly valueType: number;
    readonly vmlinuxType?: number;
  };
}

/** Outcome of a batch. */
export interface BatchResult {
  /** Items that the call put into the batch, or took from it. */
  readonly count: number;
  /** No items follow. */
  readonly end: boolean;
  /** Why the batch stopped. The first `count` items are valid even so. */
  readonly error: KernelError | undefined;
}

/** Default size of a batch in bytes: it stays in the CPU's caches. */
const BATCH_BYTES = 512 * 1024;
const BATCH_ROOM = 4096;
/** Size from which a value counts as long: no code holds several of them in memory at a time. */
const LONG = 4 * 1024 * 1024;
/** How often in a row a batch may come back empty because the map changed (EINTR) before that is an error. */
const EMPTY_BATCHES = 100;

/** Asks the kernel about maps. One instance serves many maps. */
export class InfoReader {
  readonly #sys: Sys;
  readonly #info: Attr<keyof (typeof MAP_INFO)['fields']>;
  readonly #attr: Attr<keyof (typeof ATTR.info)['fields']>;

  constructor(sys: Sys) {
    this.#sys = sys;
    this.#info = new Attr(MAP_INFO, sys);
    this.#attr = new Attr(ATTR.info, sys).point('info', this.#info.bytes);
  }

  /** The id of the map, program, link or BTF object behind `fd`, each among its own kind; 0 if it has none. */
  id(fd: number): number {
    const info = this.#info.clear();
    this.#sys.bpf('OBJ_GET_INFO_BY_FD', this.#attr.set('bpf_fd', fd).set('info_len', info.bytes.length));
    return info.get('id');
  }

  /**
   * What the kernel says of the map behind `fd`; members that an old kernel does not know are 0.
   * @throws KernelError
   */
  read(fd: number, subject: string): MapInfo {
    // Zeroed each time, because old kernels fill in less; and no longer than the members we know: see MAP_INFO.
    const info = this.#info.clear();
    const attr = this.#attr.set('bpf_fd', fd).set('info_len', info.bytes.length);
    const result = this.#sys.bpf('OBJ_GET_INFO_BY_FD', attr);
    if (result < 0) throw new KernelError(subject, 'BPF_OBJ_GET_INFO_BY_FD', -result);
    return {
      type: info.get('type'),
      id: info.get('id'),
      keySize: info.get('key_size'),
      valueSize: info.get('value_size'),
      maxEntries: info.get('max_entries'),
      flags: info.get('map_flags'),
      name: untilNul(info.getBytes('name')),
      ifindex: info.get('ifindex'),
      extra: info.get64('map_extra'),
      btfId: info.get('btf_id'),
      btfKeyType: info.get('btf_key_type_id'),
      btfValueType: info.get('btf_value_type_id'),
      btfVmlinuxId: info.get('btf_vmlinux_id'),
      btfVmlinuxValueType: info.get('btf_vmlinux_value_type_id'),
    };
  }
}

const readers = new WeakMap<Sys, InfoReader>();

/** The reader for maps of this kernel. */
function infoReader(sys: Sys): InfoReader {
  let reader = readers.get(sys);
  if (reader === undefined) {
    reader = new InfoReader(sys);
    readers.set(sys, reader);
  }
  return reader;
}

/** Opens the BPF object pinned at `path`; the caller owns the result. The path may be bytes that are not text. */
export function openPin(sys: Sys, path: string | Buffer, access: Access = 'rw'): number {
  const bytes = Buffer.from(path);
  // The kernel would stop at the NUL and open another path.
  if (bytes.includes(0)) return -ERRNO.ENOENT;
  const text = Buffer.concat([bytes, Buffer.of(0)]);
  const attr = new Attr(ATTR.obj, sys).point('pathname', text).set('file_flags', ACCESS_FLAGS[access]);
  return sys.bpf('OBJ_GET', attr);
}

/**
 * The position of a reader in a map's items. Belongs to one map, because the kernel reads and writes as many
 * bytes as that map's cursors have: 4 in the hash family, whatever the key size; elsewhere the key size.
 */
export class BatchCursor {
  #from: Buffer;
  #to: Buffer;
  #started = false;
  /** In use by a call on another thread. */
  busy = false;

  /** Made by {@link BpfMap.cursor}. */
  constructor(
    readonly map: BpfMap,
    start: number | Uint8Array | undefined,
  ) {
    const size = Math.max(4, map.keySize);
    this.#from = pinned(size);
    this.#to = pinned(size);
    if (start === undefined) return;
    this.#started = true;
    if (typeof start === 'number') this.#from.writeUInt32LE(start);
    else this.#from.set(start.subarray(0, size));
  }

  /** The target of in_batch; undefined before the first batch. */
  get from(): Buffer | undefined {
    return this.#started ? this.#from : undefined;
  }

  /** The target of out_batch. */
  get to(): Buffer {
    return this.#to;
  }

  /** The next bucket (hash family) or the last index read (arrays); undefined before the first batch. */
  get position(): number | undefined {
    return this.#started ? this.#from.readUInt32LE() : undefined;
  }

  /** Moves to the end of the last batch. */
  advance(): void {
    [this.#from, this.#to] = [this.#to, this.#from];
    this.#started = true;
  }

  /** An independent cursor at the same position. */
  copy(): BatchCursor {
    return new BatchCursor(this.map, this.#started ? Buffer.from(this.#from) : undefined);
  }
}

/**
 * Room for items of one map in the layout of the batch commands: all keys packed together, and all values
 * packed together. Owns its memory; only one call uses it at a time.
 */
export class Batch {
  #keys: Buffer;
  #values: Buffer;
  #room: number;
  /** In use by a call on another thread. */
  busy = false;
  readonly attr: Attr<keyof (typeof ATTR.batch)['fields']>;

  /** Made by {@link BpfMap.batch}. */
  constructor(
    readonly map: BpfMap,
    room: number,
    sys: Sys,
  ) {
    this.#room = room;
    this.#keys = pinned(room * map.keySize);
    this.#values = pinned(room * map.valueStride);
    this.attr = new Attr(ATTR.batch, sys);
  }

  /** Items that fit. */
  get room(): number {
    return this.#room;
  }

  /** Keys, {@link BpfMap.keySize} bytes each. A different buffer after the batch has grown. */
  get keys(): Buffer {
    return this.#keys;
  }

  /** Values, {@link BpfMap.valueStride} bytes each. A different buffer after the batch has grown. */
  get values(): Buffer {
    return this.#values;
  }

  /** Makes room for `room` items. The contents are lost. */
  grow(room: number): void {
    if (this.busy) throw new Error('a batch that is in use cannot grow');
    this.#room = room;
    this.#keys = pinned(room * this.map.keySize);
    this.#values = pinned(room * this.map.valueStride);
  }
}

/** A map's memory, mapped. `bytes` must not be used after it is closed. */
export class Mapping implements Disposable {
  #bytes: Buffer | undefined;

  /** Made by {@link BpfMap.mmap}. */
  constructor(
    readonly sys: Sys,
    readonly address: bigint,
    readonly length: number,
    /** Bytes of its first page before the requested range. */
    skip = 0,
  ) {
    this.#bytes = sys.view(address, length).subarray(skip);
  }

  /** The live bytes. Do not keep them or views of them: touching them after {@link close} kills the process. */
  get bytes(): Buffer {
    if (this.#bytes === undefined) throw new Error('this mapping is closed');
    return this.#bytes;
  }

  close(): void {
    if (this.#bytes === undefined) return;
    this.#bytes = undefined;
    this.sys.munmap(this.address, this.length);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** How a value that bpf(2) reads or writes is divided. */
export function valueParts({ valueSize, valueStride }: BpfMap): CpuParts {
  return cpuParts(valueStride, valueStride === valueSize ? undefined : valueSize);
}

/** An open live map. Close it (or use `using`): closing waits for calls in progress. */
export class BpfMap implements Disposable {
  readonly id: number;
  /** One character per byte. */
  readonly name: string;
  readonly type: number;
  readonly flags: number;
  readonly maxEntries: number;
  /** Bytes. */
  readonly keySize: number;
  /** Bytes; in per-CPU maps the size of one CPU's value, not rounded up. */
  readonly valueSize: number;
  /** Size in bytes of a value as bpf(2) reads and writes it: in per-CPU maps, the values of all possible CPUs. */
  readonly valueStride: number;

  /** The kernel it belongs to. */
  readonly sys: Sys;
  readonly #fd: number;
  /** Number of calls running on other threads. */
  #running = 0;
  #closing = false;
  #closed = false;
  /** Flags of every call that reads or writes values. */
  #flags = 0;
  /** Buffers for calls on single items, made by the first such call. */
  #one: OneItem | undefined;

  private constructor(
    sys: Sys,
    fd: number,
    /** What the kernel says of it, which never changes. */
    readonly info: MapInfo,
  ) {
    this.sys = sys;
    this.#fd = fd;
    this.id = info.id;
    this.name = info.name;
    this.type = info.type;
    this.flags = info.flags;
    this.maxEntries = info.maxEntries;
    this.keySize = info.keySize;
    this.valueSize = info.valueSize;
    const perCpu = sys.types.row(info.type)?.perCpu === true;
    this.valueStride = perCpu ? cpuStride(info.valueSize) * sys.cpus : info.valueSize;
  }

  // -------------------------------------------------------------------------------------------------
  // Opening

  /**
   * Makes a map from `fd` and takes ownership of it, even on failure.
   * @throws KernelError; BpfimgError `unsupported` if it is not a map
   */
  static adopt(sys: Sys, fd: number, subject = `fd ${fd}`): BpfMap {
    return BpfMap.#adopt(sys, fd, subject, () => fdLink(fd, sys.proc));
  }

  /** @param linkOf asks what readlink shows for `fd`; nobody needs to ask if it can only be a map */
  static #adopt(sys: Sys, fd: number, subject: string, linkOf?: () => string | undefined): BpfMap {
    try {
      const link = linkOf?.();
      if (link !== undefined && link !== MAP_LINK) {
        const what = link.startsWith('anon_inode:bpf-') ? `a BPF ${link.slice('anon_inode:bpf-'.length)}` : link;
        throw new BpfimgError('unsupported', `expected a BPF map, got ${what}`, { subject });
      }
      return new BpfMap(sys, fd, infoReader(sys).read(fd, subject));
    } catch (error) {
      sys.close(fd);
      throw error;
    }
  }

  /**
   * Creates a map. Checks nothing beforehand: the kernel decides, and {@link breaches} explains a refusal.
   * Needs CAP_BPF; maps of devices and sockets also need CAP_NET_ADMIN.
   */
  static create(sys: Sys, spec: MapSpec): BpfMap {
    const name = Buffer.from(spec.name ?? '', 'latin1');
    const attr = new Attr(ATTR.create, sys)
      .set('map_type', spec.type)
      .set('key_size', spec.keySize)
      .set('value_size', spec.valueSize)
      .set('max_entries', spec.maxEntries)
      .set('map_flags', spec.flags ?? 0)
      .setBytes('map_name', name)
      .set('map_ifindex', spec.ifindex ?? 0)
      .set('map_extra', spec.extra ?? 0n)
      .set('numa_node', spec.numaNode ?? 0);
    if (spec.inner !== undefined) attr.set('inner_map_fd', spec.inner.#fd);
    if (spec.btf !== undefined) {
      attr
        .set('btf_fd', spec.btf.fd)
        .set('btf_key_type_id', spec.btf.keyType)
        .set('btf_value_type_id', spec.btf.valueType)
        .set('btf_vmlinux_value_type_id', spec.btf.vmlinuxType ?? 0);
    }
    const fd = sys.bpf('MAP_CREATE', attr);
    const type = sys.types.row(spec.type)?.name ?? `type_${spec.type}`;
    const subject = spec.name ? `new ${type} map (${spec.name})` : `new ${type} map`;
    if (fd < 0) throw new KernelError(subject, 'BPF_MAP_CREATE', -fd, createCause(sys, spec, name, attr, -fd));
    return BpfMap.#adopt(sys, fd, subject);
  }

  /**
   * Opens a map by its id. Needs CAP_SYS_ADMIN.
   *
   * Use it only for ids that are certainly not a PROG_ARRAY, or that another process or a pin certainly holds
   * ({@link opensSafely}): opening and closing a PROG_ARRAY that is being cleared leaks it for ever.
   */
  static openById(sys: Sys, id: number, access: Access = 'rw'): BpfMap {
    const attr = new Attr(ATTR.mapById, sys).set('map_id', id).set('open_flags', ACCESS_FLAGS[access]);
    const fd = sys.bpf('MAP_GET_FD_BY_ID', attr);
    if (fd < 0) throw new KernelError(`map ${id}`, 'BPF_MAP_GET_FD_BY_ID', -fd);
    return BpfMap.#adopt(sys, fd, `map ${id}`);
  }

  /** Opens a pinned map. Needs permission for the file but no capability. */
  static openPinned(sys: Sys, path: string | Buffer, access: Access = 'rw'): BpfMap {
    const fd = openPin(sys, path, access);
    const subject = typeof path === 'string' ? path : pathText(path);
    if (fd < 0) {
      const odd = -fd === ERRNO.EINVAL || -fd === ERRNO.EACCES;
      const cause = odd && isBpffs(path) === false ? `not on a BPF file system; ${bpffsHint(sys.proc)}` : undefined;
      throw new KernelError(subject, 'BPF_OBJ_GET', -fd, cause);
    }
    return BpfMap.adopt(sys, fd, subject);
  }

  /**
   * Opens what process `pid` has open as `fd`: the same open file, thus with the same access. Closing it
   * has no side effects while the process keeps its own. Needs permission to trace the process.
   * Since Linux 5.6.
   */
  static fromProcess(sys: Sys, pid: number, fd: number): BpfMap {
    const subject = `process ${pid}, fd ${fd}`;
    const pidfd = sys.pidfdOpen(pid);
    if (pidfd < 0) throw new KernelError(subject, 'pidfd_open', -pidfd);
    try {
      const own = sys.pidfdGetfd(pidfd, fd);
      if (own < 0) throw new KernelError(subject, 'pidfd_getfd', -own);
      return BpfMap.adopt(sys, own, subject);
    } finally {
      sys.close(pidfd);
    }
  }

  // -------------------------------------------------------------------------------------------------
  // What it is

  /** How messages name it. */
  get subject(): string {
    return mapSubject(this.id, this.name);
  }

  /** The file descriptor: borrowed, good until {@link close}. */
  get fd(): number {
    if (this.#closing) throw new Error(`${this.subject} is closed`);
    return this.#fd;
  }

  /** The current values of what only fdinfo shows. */
  state(): MapState {
    return stateOf(mapFdinfo('self', this.fd, this.sys.proc));
  }

  /**
   * From now on, reads and writes every value under its spin lock (BPF_F_LOCK), so that no value is half old and
   * half new. Only for maps whose values have a spin lock: the kernel refuses all others.
   */
  lockValues(): void {
    this.#flags = ELEM_FLAG.LOCK;
  }

  // -------------------------------------------------------------------------------------------------
  // One item

  #item(): OneItem {
    this.#one ??= new OneItem(this, this.sys);
    return this.#one;
  }

  /** Whether values are so long that {@link valueRoom} should hold the only copy of one. */
  get long(): boolean {
    return this.valueStride > LONG;
  }

  /** Bytes from one value to the next in the memory of an array. */
  get memoryStride(): number {
    return roundUp8(this.valueSize);
  }

  /**
   * Room for one value, always the same buffer: {@link lookup} and {@link update} do not copy it. The next call on
   * a single item overwrites it.
   */
  get valueRoom(): Buffer {
    return this.#item().room;
  }

  #call(command: BpfCommand, attr: Attr): number {
    if (this.#closing) throw new Error(`${this.subject} is closed`);
    return this.sys.bpf(command, attr);
  }

  /** The error of a call on this map, with causes that follow from its state. */
  #failed(command: BpfCommand, errno: number): KernelError {
    let cause = causeOf(`BPF_${command}`, errno);
    if (errno === ERRNO.EPERM && !this.#closing) {
      const { frozen, access } = this.state();
      const writes = command !== 'MAP_LOOKUP_ELEM' && command !== 'MAP_LOOKUP_BATCH' && command !== 'MAP_GET_NEXT_KEY';
      if (writes && frozen === true) cause = command === 'MAP_FREEZE' ? 'it is frozen already' : 'it is frozen';
      else if (writes && access === 'ro') cause = 'its file descriptor is read-only';
      else if (!writes && access === 'wo') cause = 'its file descriptor is write-only';
    }
    if (errno === ERRNO.E2BIG || errno === ERRNO.ENOSPC) cause += `; max_entries ${this.maxEntries}`;
    return new KernelError(this.subject, `BPF_${command}`, errno, cause);
  }

  #checkKey(key: Uint8Array | undefined): void {
    const size = key?.length ?? 0;
    if (size !== this.keySize) throw new Error(`${this.subject}: a key of ${size} bytes, expected ${this.keySize}`);
  }

  #checkValue(value: Uint8Array): void {
    if (value.length === this.valueStride) return;
    throw new Error(`${this.subject}: a value of ${value.length} bytes, expected ${this.valueStride}`);
  }

  /**
   * The value of `key` ({@link valueStride} bytes); undefined if there is none.
   * @param key undefined for maps without keys
   * @param into where to put it; a new buffer if not given
   */
  lookup(key: Uint8Array | undefined, flags = 0, into?: Uint8Array): Uint8Array | undefined {
    return this.#take('MAP_LOOKUP_ELEM', key, flags | this.#flags, into);
  }

  /** Removes `key` and returns its value: this is how queues and stacks are popped. Since 4.20, hashes 5.14. */
  lookupAndDelete(key: Uint8Array | undefined, flags = 0, into?: Uint8Array): Uint8Array | undefined {
    return this.#take('MAP_LOOKUP_AND_DELETE_ELEM', key, flags, into);
  }

  #take(command: BpfCommand, key: Uint8Array | undefined, flags: number, into?: Uint8Array): Uint8Array | undefined {
    this.#checkKey(key);
    const one = this.#item();
    const result = this.#call(command, one.with(key, flags));
    if (result === -ERRNO.ENOENT) return undefined;
    if (result < 0) throw this.#failed(command, -result);
    const value = into ?? new Uint8Array(this.valueStride);
    if (value !== one.room) value.set(one.room);
    return value;
  }

  /** Sets the value of `key`. `flags` are those of {@link ELEM_FLAG}. */
  update(key: Uint8Array | undefined, value: Uint8Array, flags = 0): void {
    this.#checkKey(key);
    this.#checkValue(value);
    const one = this.#item();
    if (value !== one.room) one.room.set(value);
    const result = this.#call('MAP_UPDATE_ELEM', one.with(key, flags | this.#flags));
    if (result < 0) throw this.#failed('MAP_UPDATE_ELEM', -result);
  }

  /**
   * Sets the value of a key, both where they are in longer buffers, and copies neither.
   * @param keys memory from {@link pinned}; undefined for maps without keys
   * @param values the same
   */
  updateAt(keys: Buffer | undefined, keyAt: number, values: Buffer, valueAt: number, flags = 0): void {
    const attr = this.#item()
      .at(keys, keyAt, values, valueAt)
      .set('flags', flags | this.#flags);
    const result = this.#call('MAP_UPDATE_ELEM', attr);
    if (result < 0) throw this.#failed('MAP_UPDATE_ELEM', -result);
  }

  /** Removes the next value of a map without keys into `values` (from {@link pinned}) at `at`; false if there is none. */
  popAt(values: Buffer, at: number): boolean {
    const result = this.#call('MAP_LOOKUP_AND_DELETE_ELEM', this.#item().at(undefined, 0, values, at).set('flags', 0));
    if (result < 0 && result !== -ERRNO.ENOENT) throw this.#failed('MAP_LOOKUP_AND_DELETE_ELEM', -result);
    return result >= 0;
  }

  /** Removes `key`; false if it is not there. */
  delete(key: Uint8Array): boolean {
    this.#checkKey(key);
    const result = this.#call('MAP_DELETE_ELEM', this.#item().only(key));
    if (result === -ERRNO.ENOENT) return false;
    if (result < 0) throw this.#failed('MAP_DELETE_ELEM', -result);
    return true;
  }

  /**
   * The key after `key`, or the first one; undefined at the end.
   *
   * If `key` is not in the map (any more), this returns the first key again. If the map changes meanwhile, keys
   * may come twice or not at all: see batches.
   * @param into where to put it; a new buffer if not given; may be `key`
   */
  nextKey(key: Uint8Array | undefined, into?: Uint8Array): Uint8Array | undefined {
    if (key !== undefined) this.#checkKey(key);
    const one = this.#item();
    const result = this.#call('MAP_GET_NEXT_KEY', one.after(key));
    if (result === -ERRNO.ENOENT) return undefined;
    if (result < 0) throw this.#failed('MAP_GET_NEXT_KEY', -result);
    const next = into ?? new Uint8Array(this.keySize);
    next.set(one.next);
    return next;
  }

  // -------------------------------------------------------------------------------------------------
  // Batches, since Linux 5.6 for some types; `error.errno` is ENOTSUPP or EINVAL elsewhere

  /** Room for `room` items; by default some thousands, or fewer if they are long. */
  batch(room?: number): Batch {
    const usual = Math.floor(BATCH_BYTES / Math.max(1, this.keySize + this.valueStride));
    return new Batch(this, Math.max(1, room ?? Math.min(BATCH_ROOM, usual, this.maxEntries)), this.sys);
  }

  /**
   * Start position: the beginning; a bucket of the hash family; after an index of an array (it must be below
   * max_entries, else reading starts again at the beginning); or after a key of a trie.
   */
  cursor(start?: number | Uint8Array): BatchCursor {
    return new BatchCursor(this, start);
  }

  /**
   * Reads the items after `cursor` into `batch` and moves the cursor. A batch that is too small for a bucket
   * grows: no item is left out.
   * @param count maximum number of items to read; a bucket of the hash family is never split
   * @param from place of the first of them in the batch. Behind others it does not grow: the error is ENOSPC
   */
  lookupBatch(cursor: BatchCursor, batch: Batch, count = batch.room, from = 0): BatchResult {
    if (this.#strange) return this.#noBatches('MAP_LOOKUP_BATCH');
    const walk = new BatchWalk(this, cursor, batch, { from, count }, this.#flags);
    for (;;) {
      const result = this.#call('MAP_LOOKUP_BATCH', walk.attr(this.fd));
      const done = walk.done(result, (errno) => this.#failed('MAP_LOOKUP_BATCH', errno));
      if (done !== undefined) return done;
    }
  }

  /** {@link lookupBatch} on another thread. The batch and the cursor are in use until it resolves. */
  async lookupBatchAsync(cursor: BatchCursor, batch: Batch, count = batch.room, from = 0): Promise<BatchResult> {
    if (this.#strange) return this.#noBatches('MAP_LOOKUP_BATCH');
    const walk = new BatchWalk(this, cursor, batch, { from, count }, this.#flags);
    for (;;) {
      const result = await this.#onPool([batch, cursor], 'MAP_LOOKUP_BATCH', walk.attr(this.fd));
      const done = walk.done(result, (errno) => this.#failed('MAP_LOOKUP_BATCH', errno));
      if (done !== undefined) return done;
    }
  }

  /**
   * Writes items `from` to `from + count - 1` of `batch`. After an error, `from` plus the result's `count`
   * is the item that was refused: continue or stop there.
   * @param flags 0, or ELEM_FLAG.LOCK
   */
  updateBatch(batch: Batch, count: number, from = 0, flags = 0): BatchResult {
    if (this.#strange) return this.#noBatches('MAP_UPDATE_BATCH');
    const result = this.#call('MAP_UPDATE_BATCH', this.#updateAttr(batch, count, from, flags));
    return this.#updated(result, batch, count);
  }

  /** {@link updateBatch} on another thread. The batch is in use until it resolves. */
  async updateBatchAsync(batch: Batch, count: number, from = 0, flags = 0): Promise<BatchResult> {
    if (this.#strange) return this.#noBatches('MAP_UPDATE_BATCH');
    const result = await this.#onPool([batch], 'MAP_UPDATE_BATCH', this.#updateAttr(batch, count, from, flags));
    return this.#updated(result, batch, count);
  }

  /**
   * For a type newer than bpfimg, the spacing of values in a batch is unknown, and a wrong guess lets
   * the kernel write past the end of a buffer.
   */
  get #strange(): boolean {
    return this.sys.types.row(this.type) === undefined;
  }

  #noBatches(command: BpfCommand): BatchResult {
    return { count: 0, end: false, error: this.#failed(command, ERRNO.ENOTSUPP) };
  }

  #updateAttr(batch: Batch, count: number, from: number, flags: number): Attr {
    if (batch.map !== this) throw new Error(`${this.subject}: the batch belongs to another map`);
    if (batch.busy) throw new Error(`${this.subject}: the batch is in use`);
    if (from < 0 || count < 0 || from + count > batch.room) {
      throw new Error(`${this.subject}: items ${from} to ${from + count} of a batch of ${batch.room}`);
    }
    return batch.attr
      .point('in_batch', undefined)
      .point('out_batch', undefined)
      .point('keys', batch.keys, from * this.keySize)
      .point('values', batch.values, from * this.valueStride)
      .set('count', count)
      .set('map_fd', this.fd)
      .set('elem_flags', flags | this.#flags);
  }

  #updated(result: number, batch: Batch, count: number): BatchResult {
    if (result >= 0) return { count, end: true, error: undefined };
    return { count: partOf(batch, count), end: false, error: this.#failed('MAP_UPDATE_BATCH', -result) };
  }

  /** Runs a call on another thread: marks what it uses, and keeps the file descriptor open until it ends. */
  async #onPool(used: readonly { busy: boolean }[], command: BpfCommand, attr: Attr): Promise<number> {
    if (this.#closing) throw new Error(`${this.subject} is closed`);
    for (const one of used) one.busy = true;
    this.#running++;
    try {
      return await this.sys.bpfAsync(command, attr);
    } finally {
      for (const one of used) one.busy = false;
      this.#running--;
      if (this.#closing && this.#running === 0) this.#closeNow();
    }
  }

  // -------------------------------------------------------------------------------------------------
  // Memory, freezing, pinning

  /**
   * Maps the map's memory: BPF_F_MMAPABLE arrays (values {@link memoryStride} bytes apart), ring buffers, arenas.
   * @param offset need not be at a page boundary
   * @param length bytes; a whole array by default. At most 4 GiB: the limit of a Buffer in Node 20
   * @param populate read in every page at once: for reading all of it
   * @param address required address, for arenas
   */
  mmap(options: {
    readonly writable?: boolean;
    readonly offset?: number;
    readonly length?: number;
    readonly populate?: boolean;
    readonly address?: bigint;
  }): Mapping {
    const { writable = false, offset = 0, populate = false, address = 0n } = options;
    const length = options.length ?? this.maxEntries * this.memoryStride - offset;
    const skip = offset % this.sys.pageSize;
    const size = skip + length;
    const at = this.sys.mmap(this.fd, offset - skip, size, { writable, populate, address });
    if (at < 0n) throw new KernelError(this.subject, 'mmap', Number(-at));
    try {
      return new Mapping(this.sys, at, size, skip);
    } catch (error) {
      this.sys.munmap(at, size);
      throw error;
    }
  }

  /**
   * Makes the map read-only to user space, for good. Do this last: it fails (EBUSY) while a writable mapping
   * exists. Since Linux 5.2.
   */
  freeze(): void {
    const result = this.#call('MAP_FREEZE', new Attr(ATTR.freeze, this.sys).set('map_fd', this.fd));
    if (result < 0) throw this.#failed('MAP_FREEZE', -result);
  }

  /** Pins the map at `path`, which must not exist, on a BPF file system. The pin holds the map until it is removed. */
  pin(path: string | Buffer): void {
    const bytes = Buffer.concat([Buffer.from(path), Buffer.of(0)]);
    const attr = new Attr(ATTR.obj, this.sys).point('pathname', bytes).set('bpf_fd', this.fd);
    const result = this.#call('OBJ_PIN', attr);
    if (result >= 0) return;
    const text = typeof path === 'string' ? path : pathText(path);
    throw new KernelError(this.subject, 'BPF_OBJ_PIN', -result, pinCause(text, -result, this.sys), `pin ${text}`);
  }

  /** Closes the file descriptor, once calls on other threads have ended. Safe to call again. */
  close(): void {
    this.#closing = true;
    if (this.#running === 0) this.#closeNow();
  }

  #closeNow(): void {
    // Not earlier: if the number is closed during a call, another file may get it before the call uses it.
    if (this.#closed) return;
    this.#closed = true;
    this.sys.close(this.#fd);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** What fdinfo shows of a map's state. */
export function stateOf(fdinfo: MapFdinfo | undefined): MapState {
  return { frozen: fdinfo?.frozen, memlock: fdinfo?.memlock, access: fdinfo?.access };
}

/** The attributes that MAP_CREATE refused, or the usual meaning of its errno. */
function createCause(sys: Sys, spec: MapSpec, name: Buffer, attr: Attr, errno: number): string | undefined {
  const type = sys.types.row(spec.type);
  if (errno === ERRNO.EPERM) {
    const needed = type?.create?.network === true ? 'capabilities CAP_BPF and CAP_NET_ADMIN' : 'capability CAP_BPF';
    return `needs the ${needed}, before Linux 5.11 also room under RLIMIT_MEMLOCK (ulimit -l)`;
  }
  if (errno !== ERRNO.EINVAL && errno !== ERRNO.E2BIG && errno !== ERRNO.ENOTSUPP) return undefined;
  const asked = {
    flags: 0,
    extra: 0n,
    ifindex: 0,
    ...spec,
    name,
    btf: spec.btf !== undefined,
    inner: spec.inner !== undefined,
  };
  const found = breaches(asked, type);
  if (found.length > 0) return found.join('; ');
  if (errno === ERRNO.E2BIG && spec.keySize > 0) return 'key_size, value_size or max_entries is too large';
  const kind = type?.name ?? `map type ${spec.type}`;
  const lacks = `this kernel lacks ${kind}${spec.since === undefined ? '' : `, which came with Linux ${spec.since}`}`;
  if (spec.btf !== undefined) {
    const wrong = 'its BTF is not a BTF object, or does not fit its sizes';
    return spec.since === undefined ? wrong : `${wrong}; or ${lacks}`;
  }
  if ((asked.flags & MAP_FLAG.NUMA_NODE) !== 0) return `NUMA node ${spec.numaNode ?? 0} may not exist`;
  const newest = Object.entries<StructField>(attr.layout.fields)
    .filter(([, { offset, size, since }]) => since !== undefined && !isZero(attr.bytes, offset, offset + size))
    .at(-1);
  // A kernel that has no such member has no such type either, if that came later.
  const parts =
    newest === undefined || isOlder(newest[1].since, spec.since)
      ? ''
      : `, or ${newest[0]}, which came with Linux ${newest[1].since}`;
  return `perhaps ${lacks}${parts}`;
}

/** Whether one version of Linux comes before the other. */
function isOlder(version = '', other = ''): boolean {
  const [[a = 0, b = 0], [c = 0, d = 0]] = [version.split('.').map(Number), other.split('.').map(Number)] as const;
  return a < c || (a === c && b < d);
}

/** Why a pin was refused: the kernel returns EPERM both for a wrong place and for a wrong name. */
function pinCause(path: string, errno: number, sys: Sys): string | undefined {
  if (errno !== ERRNO.EPERM && errno !== ERRNO.EINVAL) return undefined;
  const folder = path.replace(/[^/]*\/*$/, '') || '.';
  if (isBpffs(pathBytes(folder)) === false) return `${folder} is not on a BPF file system; ${bpffsHint(sys.proc)}`;
  const name = path.slice(folder === '.' ? 0 : folder.length);
  return name.includes('.') ? 'a pin name cannot contain a dot' : undefined;
}

/**
 * What a batch command did before it failed. The kernel sets `count` to zero when it begins and to the number
 * done when it ends. If it refuses the whole call, `count` is still the requested number.
 */
function partOf(batch: Batch, asked: number): number {
  const count = batch.attr.get('count');
  return count < asked ? count : 0;
}

/** One read of a batch, with growth and retries. */
class BatchWalk {
  #left = EMPTY_BATCHES;
  readonly #from: number;
  #asked: number;

  constructor(
    readonly map: BpfMap,
    readonly cursor: BatchCursor,
    readonly batch: Batch,
    { from, count }: { readonly from: number; readonly count: number },
    readonly flags: number,
  ) {
    if (batch.map !== map || cursor.map !== map) throw new Error(`${map.subject}: batch or cursor of another map`);
    if (from < 0 || count < 1 || from + count > batch.room) {
      throw new Error(`${map.subject}: ${count} items at ${from} of a batch of ${batch.room}`);
    }
    this.#from = from;
    this.#asked = count;
  }

  attr(fd: number): Attr {
    const { cursor, batch } = this;
    if (batch.busy || cursor.busy) throw new Error(`${this.map.subject}: batch or cursor is in use`);
    return batch.attr
      .point('in_batch', cursor.from)
      .point('out_batch', cursor.to)
      .point('keys', batch.keys, this.#from * this.map.keySize)
      .point('values', batch.values, this.#from * this.map.valueStride)
      .set('count', this.#asked)
      .set('map_fd', fd)
      .set('elem_flags', this.flags);
  }

  /** The outcome of a call that returned `result`; undefined to call again. */
  done(result: number, failed: (errno: number) => KernelError): BatchResult | undefined {
    const { cursor, batch } = this;
    if (result >= 0) {
      cursor.advance();
      return { count: batch.attr.get('count'), end: false, error: undefined };
    }
    // The end may come with items, even with as many as requested.
    if (result === -ERRNO.ENOENT) return { count: batch.attr.get('count'), end: true, error: undefined };
    const count = partOf(batch, this.#asked);
    if (result === -ERRNO.EINTR) {
      // Keys were removed during the call. What it has so far is valid, and it returned its position.
      if (count > 0) {
        cursor.advance();
        return { count, end: false, error: undefined };
      }
      if (this.#left-- > 0) return undefined;
    }
    if (result === -ERRNO.ENOSPC && this.#grow()) return undefined;
    return { count, end: false, error: failed(-result) };
  }

  /** Asks for more items; false if there is already room for the whole map, or if the batch has items. */
  #grow(): boolean {
    const { batch, map } = this;
    const room = batch.room - this.#from;
    if (this.#asked < room) {
      this.#asked = Math.min(room, this.#asked * 2);
      return true;
    }
    if (this.#from > 0) return false;
    // Preallocated hashes have a spare element for each CPU.
    const most = map.maxEntries + 2 * map.sys.cpus + 64;
    if (batch.room >= most) return false;
    batch.grow(Math.min(most, batch.room * 2));
    this.#asked = batch.room;
    return true;
  }
}

/** Buffers and attributes for calls on single items. */
class OneItem {
  /** Size of one value. */
  readonly room: Buffer;
  readonly next: Buffer;
  readonly #key: Buffer;
  readonly #elem: Attr<keyof (typeof ATTR.elem)['fields']>;
  /** For items in buffers of others. */
  readonly #far: Attr<keyof (typeof ATTR.elem)['fields']>;
  readonly #nextKey: Attr<keyof (typeof ATTR.nextKey)['fields']>;
  readonly #noKey: Attr<keyof (typeof ATTR.nextKey)['fields']>;
  /** What a command does not read must be zero. */
  readonly #onlyKey: Attr<keyof (typeof ATTR.nextKey)['fields']>;

  constructor(
    readonly map: BpfMap,
    sys: Sys,
  ) {
    this.#key = pinned(map.keySize);
    this.next = pinned(map.keySize);
    // The value size of a type newer than bpfimg is unknown: the kernel must not write past the end.
    const most = sys.types.row(map.type) === undefined ? cpuStride(map.valueSize) * sys.cpus : map.valueStride;
    const value = pinned(most);
    this.room = value.subarray(0, map.valueStride);
    const key = map.keySize === 0 ? undefined : this.#key;
    this.#elem = new Attr(ATTR.elem, sys).set('map_fd', map.fd).point('key', key).point('value', value);
    this.#far = new Attr(ATTR.elem, sys).set('map_fd', map.fd);
    this.#nextKey = new Attr(ATTR.nextKey, sys).set('map_fd', map.fd).point('key', key).point('next_key', this.next);
    this.#onlyKey = new Attr(ATTR.nextKey, sys).set('map_fd', map.fd).point('key', key);
    this.#noKey = new Attr(ATTR.nextKey, sys).set('map_fd', map.fd).point('next_key', this.next);
  }

  with(key: Uint8Array | undefined, flags: number): Attr {
    if (key !== undefined) this.#key.set(key);
    return this.#elem.set('flags', flags);
  }

  at(keys: Buffer | undefined, keyAt: number, values: Buffer, valueAt: number) {
    const { keySize, valueStride, subject } = this.map;
    const fits = keys === undefined ? keySize === 0 : keyAt >= 0 && keyAt + keySize <= keys.length;
    if (!fits || valueAt < 0 || valueAt + valueStride > values.length) {
      throw new Error(`${subject}: an item at ${keyAt} and ${valueAt} of ${keys?.length} and ${values.length} bytes`);
    }
    return this.#far.point('key', keys, keyAt).point('value', values, valueAt);
  }

  only(key: Uint8Array): Attr {
    this.#key.set(key);
    return this.#onlyKey;
  }

  after(key: Uint8Array | undefined): Attr {
    if (key === undefined) return this.#noKey;
    this.#key.set(key);
    return this.#nextKey;
  }
}
