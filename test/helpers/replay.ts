/** Replays for tests: dumps built from values, the command in this process, and a kernel that can be meddled with. */

import * as fs from 'node:fs';
import * as path from 'node:path';
import type { ReplayArguments } from '../../src/cli/commands/replay.js';
import type { Io } from '../../src/cli/io.js';
import { main } from '../../src/cli/main.js';
import { bufferInput } from '../../src/io/input.js';
import { MemoryOutput, type Output } from '../../src/io/output.js';
import type { BpfCommand } from '../../src/kernel/abi.js';
import type { BpfMap } from '../../src/kernel/map.js';
import { type Attr, ERRNO, type MapResult, type Result, type Sys } from '../../src/kernel/sys.js';
import type { ItemSource, KnownTypes } from '../../src/maptype.js';
import type { Ran } from './command.js';
import { blob, dataMessage, entry, type Item, image, mapData, scalar } from './images.js';

/** An open file of a map, and the items of the map unless another file of it has them. */
export interface MapImage {
  readonly id: number;
  /** Of the open file: 0 for reading, 1 for writing, 2 for both. */
  readonly open?: number;
  readonly type?: number;
  readonly key?: number;
  readonly value?: number;
  readonly max?: number;
  readonly flags?: number;
  readonly frozen?: boolean;
  readonly name?: string;
  /** Absent: no data entry. */
  readonly items?: readonly Item[];
}

function fileMessage(file: number, map: MapImage): Buffer {
  const { id, open = 2, type = 1, key = 4, value = 8, max = 16, flags = 0, frozen = false, name = 'm' } = map;
  const fown = Buffer.concat([1, 2, 3, 4, 5].map((no) => scalar(no, 0)));
  return Buffer.concat([
    scalar(1, file),
    scalar(2, open),
    scalar(3, 0),
    blob(4, fown),
    ...[type, key, value, id, max, flags, 4096].map((number, i) => scalar(5 + i, number)),
    scalar(12, frozen ? 1 : 0),
    blob(13, Buffer.from(name, 'latin1')),
    scalar(14, 0),
  ]);
}

/** Writes a dump of these open files into a new folder below `parent`. */
export function dumpOf(parent: string, ...maps: readonly MapImage[]): string {
  const folder = fs.mkdtempSync(path.join(parent, 'dump-'));
  const files = maps.map((map, i) => entry(fileMessage(i + 1, map)));
  const data = maps.flatMap(({ id, items }) => (items === undefined ? [] : [mapData(id, items)]));
  fs.writeFileSync(path.join(folder, 'bpfmap-file.img'), image('BPFMAP_FILE', ...files));
  fs.writeFileSync(path.join(folder, 'bpfmap-data.img'), image('BPFMAP_DATA', ...data));
  return folder;
}

/** Writes a dump of one map with a million items of 16 and 64 bytes; returns it and its last key in hex. */
export function bigDump(parent: string): { folder: string; last: string } {
  const folder = dumpOf(parent, { id: 1, key: 16, value: 64, max: 2_000_000 });
  const count = 1_000_000;
  const keys = Buffer.alloc(16 * count, 0xa5);
  for (let i = 0; i < count; i++) keys.writeUInt32LE(i, 16 * i);
  const data = entry(dataMessage(1, 16 * count, 64 * count, count), keys, Buffer.alloc(64 * count, 1));
  fs.writeFileSync(path.join(folder, 'bpfmap-data.img'), image('BPFMAP_DATA', data));
  return { folder, last: hexOf(keys.subarray(-16)) };
}

/** `count` items with keys 0, 1, 2, … and values that follow from them. */
export function someItems(count: number, keySize = 4, valueSize = 8): [key: Buffer, value: Buffer][] {
  return Array.from({ length: count }, (_, i) => {
    const key = Buffer.alloc(keySize, 0xa5);
    key.writeUIntLE(i, 0, Math.min(4, keySize));
    const value = Buffer.alloc(valueSize);
    for (let at = 0; at < valueSize; at++) value[at] = (i * 7 + at * 13 + 1) & 0xff;
    return [key, value];
  });
}

/** The same as a replay takes them. */
export function sourceOf(items: readonly Item[], keySize: number, valueSize: number): ItemSource {
  return {
    count: items.length,
    keySize,
    valueSize,
    async read(from, count, keys, values) {
      for (const [i, [key, value]] of items.slice(from, from + count).entries()) {
        keys.set(key, i * keySize);
        values.set(value, i * valueSize);
      }
    },
  };
}

export const hexOf = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');

/** Items as an object from key to value, in hex. */
export function itemsObject(items: readonly Item[]): Record<string, string> {
  return Object.fromEntries(items.map(([key, value]) => [hexOf(key), hexOf(value)]));
}

/**
 * All items of a live map: for maps that are too large for bpftool's JSON. By the kernel's own batches, or key by key where
 * it has none for the type.
 */
export function readBack(map: BpfMap): Record<string, string> {
  const [cursor, batch] = [map.cursor(), map.batch(1024)];
  const items: Record<string, string> = {};
  for (;;) {
    const { count, end, error } = map.lookupBatch(cursor, batch);
    if (error?.errno === ERRNO.ENOTSUPP) {
      for (let key = map.nextKey(undefined); key !== undefined; key = map.nextKey(key)) {
        items[hexOf(key)] = hexOf(map.lookup(key) as Uint8Array);
      }
      return items;
    }
    if (error) throw error;
    for (let i = 0; i < count; i++) {
      const key = batch.keys.toString('hex', i * map.keySize, (i + 1) * map.keySize);
      items[key] = batch.values.toString('hex', i * map.valueStride, (i + 1) * map.valueStride);
    }
    if (end) return items;
  }
}

export interface CliOptions {
  readonly env?: Readonly<Record<string, string>>;
  readonly stdout?: Output;
  readonly input?: string;
}

/** Runs `bpfimg ARGS` in this process. */
export async function cli(args: readonly string[], options: CliOptions = {}): Promise<Ran> {
  const out = new MemoryOutput();
  const said: string[] = [];
  const status = await main(args, ioOf(options.stdout ?? out, said, options));
  return { status, signal: null, stdout: out.take().toString(), stderr: said.map((line) => `${line}\n`).join('') };
}

/** What the command line of a replay says by default. */
export const usualReplay: ReplayArguments = {
  source: '',
  map: [],
  hold: false,
  command: [],
  dryRun: false,
  verify: false,
  force: false,
  pinBack: false,
  swap: false,
  renameTaken: false,
  requireBtf: false,
  skipUnsupported: false,
  rename: [],
  drop: [],
  set: [],
  lossy: false,
  onCollision: 'error',
  extendZero: false,
  libdir: [],
  json: false,
  unresolved: 'fail',
};

/** What a command in this process reads and writes. */
export function ioOf(out: Output, said: string[], { input = '', env = {} }: CliOptions = {}): Io {
  return {
    stdin: async () => bufferInput(Buffer.from(input), 'standard input'),
    stdout: () => out,
    say: (line) => said.push(line),
    show: () => {},
    terminal: false,
    columns: undefined,
    env,
  };
}

/** What a test does instead of a call, or undefined to let the kernel do it. */
export type Meddle = (command: BpfCommand, attr: Attr) => Result | undefined;

/** The real kernel, with a test between: it sees every call of bpf(2), and may answer in the kernel's place. */
export class MeddledSys implements Sys {
  readonly commands: BpfCommand[] = [];

  constructor(
    readonly real: Sys,
    readonly meddle: Meddle = () => undefined,
    readonly cpus: number = real.cpus,
  ) {}

  get proc(): string {
    return this.real.proc;
  }

  get types(): KnownTypes {
    return this.real.types;
  }

  get pageSize(): number {
    return this.real.pageSize;
  }

  bpf(command: BpfCommand, attr: Attr): Result {
    this.commands.push(command);
    return this.meddle(command, attr) ?? this.real.bpf(command, attr);
  }

  async bpfAsync(command: BpfCommand, attr: Attr): Promise<Result> {
    this.commands.push(command);
    return this.meddle(command, attr) ?? (await this.real.bpfAsync(command, attr));
  }

  address(bytes: Uint8Array): bigint {
    return this.real.address(bytes);
  }
  pidfdOpen(pid: number, thread?: boolean): Result {
    return this.real.pidfdOpen(pid, thread);
  }
  pidfdGetfd(pidfd: number, fd: number): Result {
    return this.real.pidfdGetfd(pidfd, fd);
  }
  pread(fd: number, into: Uint8Array, position: bigint): Result {
    return this.real.pread(fd, into, position);
  }
  getsockopt(fd: number, option: number, value: Uint8Array): Result {
    return this.real.getsockopt(fd, option, value);
  }
  mmap(...call: Parameters<Sys['mmap']>): MapResult {
    return this.real.mmap(...call);
  }
  munmap(address: bigint, length: number): Result {
    return this.real.munmap(address, length);
  }
  view(address: bigint, length: number): Buffer {
    return this.real.view(address, length);
  }
  getAffinity(): readonly number[] | Result {
    return this.real.getAffinity();
  }
  setAffinity(cpus: readonly number[]): Result {
    return this.real.setAffinity(cpus);
  }
  allocate(fd: number, length: number): Result {
    return this.real.allocate(fd, length);
  }
  close(fd: number): Result {
    return this.real.close(fd);
  }
  openFds(): string[] {
    return this.real.openFds();
  }
}
