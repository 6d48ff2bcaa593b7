/** The real command in a child process, and a place for it to work in. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';

/** The repository. */
export const TOP = fileURLToPath(new URL('../../../', import.meta.url));

/** The executable that the package installs. */
export const BPFIMG = path.join(TOP, 'dist/bpfimg');

/** What runs it: this Node, or another version of it, to try. */
const NODE = process.env.BPFIMG_NODE ?? process.execPath;

export interface Ran {
  readonly status: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  /** Options of Node. */
  readonly node?: readonly string[];
  readonly cwd?: string;
  readonly input?: Uint8Array | string;
  readonly env?: Readonly<Record<string, string>>;
}

/** Runs `bpfimg ARGS`. */
export function bpfimg(args: readonly string[], options: RunOptions = {}): Ran {
  const words = [...(options.node ?? []), BPFIMG, ...args];
  return finished(spawnSync(NODE, words, { maxBuffer: 1 << 28, ...inFolder(options) }));
}

/** Options of {@link bpfimg} that have the kernel refuse calls: see deny.ts. */
export function denying(errno: number, ...calls: readonly (number | string)[]): RunOptions {
  const module = new URL('./deny.js', import.meta.url).href;
  return { node: ['--import', module], env: { DENY: [errno, ...calls].join(' ') } };
}

/** Runs `bpfimg ARGS`; `peak` is the memory that it took, in MiB. */
export function measured(args: readonly string[], options: RunOptions = {}): Ran & { readonly peak: number } {
  const node = ['--import', new URL('./peak.js', import.meta.url).href, ...(options.node ?? [])];
  const ran = bpfimg(args, { ...options, node });
  const [line = '', mib] = /^peak (\d+) MiB\n/m.exec(ran.stderr) ?? [];
  return { ...ran, stderr: ran.stderr.replace(line, ''), peak: Number(mib) };
}

/** Runs a line of shell in which `bpfimg` is the command under test. */
export function shell(line: string, options: RunOptions = {}): Ran {
  return finished(spawnSync('bash', ['-c', line], { maxBuffer: 1 << 28, ...inFolder(options) }));
}

function inFolder({ cwd, input, env }: RunOptions): object {
  const PATH = `${path.dirname(BPFIMG)}${path.delimiter}${process.env.PATH ?? ''}`;
  return {
    env: { ...process.env, PATH, NO_COLOR: '1', LC_ALL: 'C.UTF-8', ...env },
    ...(cwd === undefined ? {} : { cwd }),
    ...(input === undefined ? {} : { input }),
  };
}

function finished(result: ReturnType<typeof spawnSync>): Ran {
  if (result.error) throw result.error;
  const { status, signal } = result;
  return { status, signal, stdout: String(result.stdout), stderr: String(result.stderr) };
}

/** A new folder with a copy of the real dump in it, named `flowd`. */
export function workFolder(): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-test-'));
  copyDump(path.join(folder, 'flowd'));
  return folder;
}

/** Copies the real dump to `folder`. */
export function copyDump(folder: string): void {
  fs.cpSync(path.join(TOP, 'fixtures/flowd'), folder, { recursive: true });
}

/** All files below a folder with their bytes in hex, to compare folders as values. */
export function contents(folder: string): Record<string, string> {
  const files: Record<string, string> = {};
  for (const name of fs.readdirSync(folder, { recursive: true, encoding: 'utf8' })) {
    const file = path.join(folder, name);
    if (fs.statSync(file).isFile()) files[name] = fs.readFileSync(file).toString('hex');
  }
  return files;
}
