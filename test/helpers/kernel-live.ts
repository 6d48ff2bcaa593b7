/** Real maps for tests, the processes that hold them, and bpftool as the witness. */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { type Batch, BpfMap } from '../../src/kernel/map.js';
import { ERRNO, openSys } from '../../src/kernel/sys.js';
import { required, skipWithoutRoot } from './needs.js';
import { types } from './types.js';

/** Why a test that needs bpftool should be skipped, or false when it should run. */
export function skipWithoutBpftool(): string | false {
  const there = spawnSync('bpftool', ['version'], { stdio: 'ignore' }).error === undefined;
  return there || required('bpftool') ? false : 'needs bpftool';
}

let able: string | false | undefined;
/** Why a test that needs real maps should be skipped, or false when it should run. */
export async function skipWithoutMaps(): Promise<string | false> {
  if (able !== undefined) return able;
  able = skipWithoutRoot() || skipWithoutBpftool();
  if (able !== false || required('root')) return able;
  try {
    const sys = await openSys(types);
    BpfMap.create(sys, { type: 2, keySize: 4, valueSize: 4, maxEntries: 1 }).close();
    if (fs.statfsSync('/proc').type !== 0x9fa0) able = 'needs procfs at /proc';
  } catch (error) {
    able = `needs bpf(2): ${(error as Error).message}`;
  }
  return able;
}

/** What bpftool says, as JSON; its error text when it fails. */
export function bpftool(...args: string[]): unknown {
  const { status, stdout, stderr } = spawnSync('bpftool', ['-j', ...args], { encoding: 'utf8', maxBuffer: 1 << 28 });
  if (status !== 0) throw new Error(`bpftool ${args.join(' ')}: ${stdout}${stderr}`);
  return stdout === '' ? undefined : JSON.parse(stdout);
}

/** The items of a map as bpftool sees them: key in hex to value in hex (per-CPU values one after another). */
export function witness(map: BpfMap): Record<string, string> {
  type Hex = readonly string[];
  type Item = { key: Hex; value?: Hex; values?: readonly { cpu: number; value: Hex }[] };
  const text = (bytes: Hex) => bytes.map((byte) => byte.slice(2)).join('');
  const items = bpftool('map', 'dump', 'id', String(map.id)) as readonly Item[];
  return Object.fromEntries(
    items.map(({ key, value, values }) => {
      return [text(key), value ? text(value) : (values ?? []).map((one) => text(one.value)).join(' ')];
    }),
  );
}

/** Open file descriptors of this process, but for /dev/null, which libuv opens for itself with the first child. */
export function fdCount(): number {
  const target = (fd: string) => {
    try {
      return fs.readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return '/dev/null'; // the folder's own, closed by now
    }
  };
  return fs.readdirSync('/proc/self/fd').filter((fd) => target(fd) !== '/dev/null').length;
}

/** A new BPF file system and its folder; `remove` removes both, with all pins. */
export function bpffs(): { folder: string; remove(): void } {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg bpffs-'));
  const { status, stderr } = spawnSync('mount', ['-t', 'bpf', 'bpf', folder], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`mount: ${stderr}`);
  return {
    folder,
    remove() {
      spawnSync('umount', [folder]);
      fs.rmdirSync(folder);
    },
  };
}

const HOLDER = fileURLToPath(new URL('./kernel-holder.js', import.meta.url));

/** Another process with maps. */
export class HolderProcess {
  private constructor(
    readonly child: ChildProcess,
    readonly pid: number,
    /** Ids of its maps, as asked for. */
    readonly ids: readonly number[],
    /** Their file descriptors. */
    readonly fds: readonly number[],
  ) {}

  /** Starts one; `specs` are those of {@link BpfMap.create}. It ends when we end. */
  static async start(specs: readonly object[]): Promise<HolderProcess> {
    const child = spawn(process.execPath, [HOLDER, JSON.stringify(specs)], { stdio: ['pipe', 'pipe', 'inherit'] });
    for await (const line of createInterface({ input: child.stdout })) {
      const { ids, fds } = JSON.parse(line) as { ids: number[]; fds: number[] };
      return new HolderProcess(child, child.pid as number, ids, fds);
    }
    throw new Error('the process with maps ended');
  }

  async stop(): Promise<void> {
    if (this.child.exitCode !== null) return;
    // Not `exit`: then its pipes are still open.
    const ended = new Promise((resolve) => this.child.once('close', resolve));
    this.child.stdin?.end();
    await ended;
  }
}

/**
 * Runs `code`, the body of an async function with the kernel layer's modules, without capabilities but `caps`.
 * @param by command that starts Node
 */
export function withoutCapabilities(
  code: string,
  caps: readonly string[] = [],
  by: readonly string[] = [],
): { stdout: string; stderr: string } {
  const set = ['-all', ...caps.map((cap) => `+${cap}`)].join(',');
  const kernel = new URL('../../src/kernel/', import.meta.url);
  const text = `
    const { types } = await import('${new URL('types.js', import.meta.url)}');
    const { openSys } = await import('${kernel}sys.js');
    const { BpfMap } = await import('${kernel}map.js');
    const { LiveMaps } = await import('${kernel}live.js');
    const sys = await openSys(types);
    ${code}`;
  const args = ['--bounding-set', set, ...by, process.execPath, '--input-type=module', '-e', text];
  const { stdout, stderr, error } = spawnSync('setpriv', args, { encoding: 'utf8' });
  if (error) throw error;
  return { stdout, stderr };
}

/** Little-endian u32s as bytes. */
export function u32(...values: number[]): Buffer {
  const bytes = Buffer.alloc(4 * values.length);
  for (const [i, value] of values.entries()) bytes.writeUInt32LE(value, 4 * i);
  return bytes;
}

/** Updates the items of a batch; one by one where the kernel has no batches for the type, as older ones. */
export function updateAll(map: BpfMap, batch: Batch, count: number): void {
  const { error } = map.updateBatch(batch, count);
  if (error !== undefined && error.errno !== ERRNO.ENOTSUPP) throw error;
  if (error === undefined) return;
  for (let i = 0; i < count; i++) {
    const value = batch.values.subarray(i * map.valueStride, (i + 1) * map.valueStride);
    map.update(batch.keys.subarray(i * map.keySize, (i + 1) * map.keySize), value);
  }
}

/**
 * Sets keys `from` to `to - 1`, numbers in the first 4 bytes (or fewer) of the key, each with a value that
 * begins with the same number, and continues with its lowest byte.
 */
export function fillNumbers(map: BpfMap, to: number, from = 0): void {
  const size = Math.min(4, map.keySize);
  const batch = map.batch(Math.min(16_384, Math.max(1, to - from)));
  for (let at = from; at < to; at += batch.room) {
    const count = Math.min(batch.room, to - at);
    for (let i = 0; i < count; i++) {
      batch.keys.writeUIntLE(at + i, i * map.keySize, size);
      const value = batch.values.subarray(i * map.valueStride, (i + 1) * map.valueStride).fill(at + i);
      if (value.length >= 4) value.writeUInt32LE(at + i);
    }
    updateAll(map, batch, count);
  }
}
