/** Runs commands from outside, as a user's shell would, and takes their time and peak memory. */
import { spawn, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';

export interface Measured {
  readonly ms: number;
  /** Peak resident memory in MiB. */
  readonly peak: number;
}

/** The kernel's high-water mark of a process's memory in MiB; 0 when it is gone. */
function peakOf(pid: number): number {
  try {
    return Number(/^VmHWM:\s*(\d+)/m.exec(fs.readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1] ?? 0) / 1024;
  } catch {
    return 0;
  }
}

/** Opens an empty file without a name. */
function unnamed(): number {
  const name = path.join(os.tmpdir(), `bpfimg-bench-${process.pid}`);
  const fd = fs.openSync(name, 'wx+', 0o600);
  fs.unlinkSync(name);
  return fd;
}

/** Runs a command with its standard streams connected to files. */
export async function run(command: readonly string[], input: string | undefined, output: string): Promise<Measured> {
  const [program = '', ...args] = command;
  const stdin = fs.openSync(input ?? '/dev/null', 'r');
  const stdout = fs.openSync(output, 'w');
  const stderr = unnamed();
  try {
    const start = performance.now();
    const child = spawn(program, args, { stdio: [stdin, stdout, stderr] });
    let peak = 0;
    // The mark only rises, so that no more than the last milliseconds can be missed.
    const timer = setInterval(() => {
      peak = Math.max(peak, peakOf(child.pid ?? 0));
    }, 20);
    const code = await new Promise((resolve, reject) => child.on('exit', resolve).on('error', reject));
    const ms = performance.now() - start;
    clearInterval(timer);
    if (code !== 0) {
      const talk = Buffer.alloc(4096);
      const size = fs.readSync(stderr, talk, 0, talk.length, 0);
      throw new Error(`${command.join(' ')}: exit code ${code}: ${talk.toString('utf8', 0, size)}`);
    }
    return { ms, peak };
  } finally {
    for (const fd of [stdin, stdout, stderr]) fs.closeSync(fd);
  }
}

/** Milliseconds one run of a short command takes. */
function once([program = '', ...args]: readonly string[], input?: Uint8Array): number {
  const start = performance.now();
  const { status, stderr } = spawnSync(program, args, { input });
  if (status !== 0) throw new Error(`${program} ${args.join(' ')}: exit code ${status}: ${stderr}`);
  return performance.now() - start;
}

/** Times a short command and `base` in turn; medians of both and of the ratios pair by pair. */
export function inTurn(command: readonly string[], base: readonly string[], runs: number, input?: Uint8Array) {
  once(base);
  once(command, input);
  const pairs = Array.from({ length: runs }, () => ({ base: once(base), ms: once(command, input) }));
  return {
    ms: median(pairs.map(({ ms }) => ms)),
    base: median(pairs.map(({ base }) => base)),
    ratio: median(pairs.map(({ ms, base }) => ms / base)),
  };
}

export function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] ?? Number.NaN)) / 2;
}

/** Whether two files have the same bytes. */
export function sameFiles(one: string, other: string): boolean {
  return spawnSync('cmp', ['-s', one, other]).status === 0;
}
