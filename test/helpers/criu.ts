/** Real CRIU with the plugin, and the process that is dumped: what it holds, and what it sees of it from inside. */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import type { Test } from 'tap';
import { isLive } from '../../src/kernel/live.js';
import { openSys, type Sys } from '../../src/kernel/sys.js';
import { BtfWriter } from './btf-writer.js';
import { bpfimg, type Ran, TOP } from './command.js';
import { bpftool, skipWithoutMaps } from './kernel-live.js';
import { patience, required } from './needs.js';
import { types } from './types.js';

/** Milliseconds after which something that should have happened has not. */
const PATIENCE = 60_000;

const asleep = (ms: number) => new Promise((go) => setTimeout(go, ms));

/** Waits until `ready` is true, and says what did not happen when it never is. */
export async function until(what: string, ready: () => boolean): Promise<void> {
  const end = Date.now() + patience(PATIENCE);
  for (let wait = 1; !ready(); wait = Math.min(2 * wait, 20)) {
    if (Date.now() > end) throw new Error(`waited in vain: ${what}`);
    await asleep(wait);
  }
}

// ---------------------------------------------------------------------------------------------------
// What is needed

/** The command that starts Debian 13's CRIU; set by BPFIMG_CRIU, or got by `.ci/criu` now. */
let command = process.env.BPFIMG_CRIU ?? '';
let able: string | false | undefined;

/** Why a test that needs CRIU with the plugin should be skipped, or false when it should run. */
export async function skipWithoutCriu(): Promise<string | false> {
  if (able !== undefined) return able;
  able = (await skipWithoutMaps()) || skipWithoutCompiler() || fetched() || unfit();
  return able;
}

/** Gets CRIU where no other is named. @returns why there is none */
function fetched(): string | false {
  if (command !== '') return false;
  const got = spawnSync(path.join(TOP, '.ci/criu'), ['--once'], { encoding: 'utf8' });
  command = String(got.stdout).trim();
  if (got.status === 0) return false;
  const why = got.error?.message ?? String(got.stderr).trim();
  if (required('criu')) throw new Error(why);
  return why;
}

/** Why CRIU does not run on this kernel, as it says when it dumps a process without anything; `criu check` does not know. */
function unfit(): string | false {
  if (required('criu')) return false;
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-criu-'));
  const child = spawn('sleep', ['1000'], { detached: true, stdio: 'ignore' });
  try {
    const args = ['dump', '-t', `${child.pid}`, '-D', folder, '-o', 'log'];
    const { status, error } = spawnSync(command, args, { env: { ...process.env, ...NO_BREAKPOINTS } });
    if (error) return error.message;
    if (status === 0) return false;
    const log = fs.readFileSync(path.join(folder, 'log'), 'latin1');
    // What the kernel lacks; failing that, whatever the first error is.
    const said = [...log.matchAll(/Error \([^)]*\): (.*)/g)].map(([, what = '']) => what);
    const why = said.find((what) => what.includes('lacks')) ?? said[0] ?? log.trim();
    return `CRIU does not run on this kernel: ${why}`;
  } finally {
    child.kill('SIGKILL');
    fs.rmSync(folder, { recursive: true });
  }
}

function skipWithoutCompiler(): string | false {
  return spawnSync('cc', ['--version']).error === undefined || required('cc') ? false : 'needs a C compiler';
}

/** Compiles the process to be dumped. */
export function buildWitness(folder: string): string {
  const program = path.join(folder, 'witness');
  compile('-Wall', '-Wextra', '-o', program, path.join(TOP, 'test/helpers/witness.c'));
  return program;
}

/** Builds the plugin as a user does, with these settings; its folder. */
export function buildPlugin(folder: string, settings: readonly string[] = []): string {
  const config = path.join(folder, 'criu.conf');
  const place = path.join(folder, 'plugin');
  fs.mkdirSync(folder, { recursive: true });
  fs.writeFileSync(config, settings.map((line) => `${line}\n`).join(''));
  const { status, stdout, stderr } = bpfimg(['criu', 'build', '--out', place, '--config', config]);
  if (status !== 0 || stdout !== `libdir ${place}\n`) throw new Error(`criu build: ${status} ${stdout}${stderr}`);
  return place;
}

/** The plugin with another program instead of bpfimg: `program SCRIPT criu-dump …`. */
export function buildPluginWith(
  folder: string,
  program: string,
  script: string,
  settings: readonly string[] = [],
): string {
  const config = path.join(folder, 'criu.conf');
  const place = path.join(folder, 'plugin');
  fs.mkdirSync(place, { recursive: true });
  fs.writeFileSync(config, settings.map((line) => `${line}\n`).join(''));
  const macros = { VERSION: 'test', NODE: program, BPFIMG: script, CONFIG: config };
  const defines = Object.entries(macros).map(([name, text]) => `-D${name}=${JSON.stringify(text)}`);
  const source = path.join(TOP, 'plugins/criu/bpfimg.c');
  compile('-std=gnu11', '-fPIC', '-shared', '-fvisibility=hidden', ...defines, '-o', `${place}/bpfimg.so`, source);
  return place;
}

/**
 * How a helper of shell begins. Of a dump, one is started before CRIU freezes the tasks: `early` is ready then, and
 * gets the words of the other one, so that `$1` is criu-dump, `$3` CRIU's pid, and `$5` the id of the map that is
 * wanted; `late` is not, so that another one is started.
 */
const BEGINS = {
  early: '[ "$1 $#" = "criu-dump 3" ] && { echo ready; read -r words || exit 0; set -- "$1" "$2" $words; }',
  late: '[ "$1 $#" = "criu-dump 3" ] && exit 0',
  itself: '',
};
export type Begins = keyof typeof BEGINS;

let scripts = 0;
/** The plugin with a script of shell as its helper. */
export function buildPluginOf(
  folder: string,
  script: string,
  settings: readonly string[] = [],
  begins: Begins = 'early',
): { readonly plugin: string; readonly file: string } {
  const place = path.join(folder, `helper${scripts++}`);
  const file = path.join(place, 'helper.sh');
  fs.mkdirSync(place);
  fs.writeFileSync(file, `${BEGINS[begins]}\n${script}\n`);
  return { plugin: buildPluginWith(place, '/bin/sh', file, settings), file };
}

/** Compiles something, and says what the compiler says when it cannot. */
export function compile(...args: readonly string[]): void {
  const { status, stderr, error } = spawnSync('cc', ['-O1', ...args], { encoding: 'utf8' });
  if (error) throw error;
  if (status !== 0) throw new Error(`cc: ${stderr}`);
}

// ---------------------------------------------------------------------------------------------------
// CRIU

export interface CriuRan extends Ran {
  /** CRIU's log. */
  readonly log: string;
}

export interface CriuOptions {
  /** Folder of the plugin; without, there is none. */
  readonly plugin?: string;
  /** Further options of CRIU. */
  readonly more?: readonly string[];
  /** A command that runs CRIU, `strace …`. */
  readonly under?: readonly string[];
}

/** In some virtual machines hardware breakpoints never fire, and CRIU waits for ever for the one it has set. */
const NO_BREAKPOINTS = { CRIU_FAULT: '130' };

function start(args: readonly string[], folder: string, { plugin, more = [], under = [] }: CriuOptions): ChildProcess {
  // Of all folders of plugins, CRIU reads one: an empty one is none.
  const libs = plugin ?? path.join(folder, 'no-plugins');
  if (plugin === undefined) fs.mkdirSync(libs, { recursive: true });
  const all = [...args, '-D', folder, '-v4', '-L', libs, ...more];
  const [program = '', ...words] = [...under, command, ...all];
  const child = spawn(program, words, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...NO_BREAKPOINTS },
  });
  child.once('error', () => {}); // told by `finished`
  return child;
}

function finished(child: ChildProcess, log: string): Promise<CriuRan> {
  let [stdout, stderr] = ['', ''];
  child.stdout?.on('data', (text) => {
    stdout += text;
  });
  child.stderr?.on('data', (text) => {
    stderr += text;
  });
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    // Not `close`: a restored process may have what CRIU had open.
    child.once('exit', (status, signal) => {
      const text = fs.existsSync(log) ? fs.readFileSync(log, 'latin1') : '';
      resolve({ status, signal, stdout, stderr, log: text });
    });
  });
}

/** `criu dump` of a process and its children into `folder`, which is made. */
export async function dump(pid: number, folder: string, options: CriuOptions = {}): Promise<CriuRan> {
  fs.mkdirSync(folder, { recursive: true });
  const child = start(['dump', '-t', `${pid}`, '-o', 'dump.log'], folder, options);
  return await finished(child, path.join(folder, 'dump.log'));
}

/** `criu restore --restore-detached`. */
export async function restore(folder: string, options: CriuOptions = {}): Promise<CriuRan> {
  const child = start(['restore', '-o', 'restore.log', '-d'], folder, options);
  return await finished(child, path.join(folder, 'restore.log'));
}

/** `criu restore` that stays until the restored process, which runs by now, has ended. */
export async function restoreInForeground(
  folder: string,
  options: CriuOptions = {},
): Promise<{ readonly ended: Promise<CriuRan> }> {
  const log = path.join(folder, 'restore.log');
  fs.rmSync(log, { force: true });
  const child = start(['restore', '-o', 'restore.log'], folder, options);
  const ended = finished(child, log);
  await until('it is restored', () => {
    const text = fs.existsSync(log) ? fs.readFileSync(log, 'latin1') : '';
    if (child.exitCode !== null) throw new Error(`criu restore: ${errors(text).join('; ')}`);
    return text.includes('Tasks resumed');
  });
  return { ended };
}

/** Lines of a log that tell of errors, without times and without what this machine lets CRIU not do. */
export function errors(log: string): string[] {
  return log
    .split('\n')
    .filter((line) => /Error|bpfimg: /.test(line) && !/RLIMIT_NOFILE|plugin: `/.test(line))
    .map((line) => line.replace(/^\(\d+\.\d+\) /, ''));
}

// ---------------------------------------------------------------------------------------------------
// Processes

/** Whether this process runs; one that has ended but was not waited for does not. */
export function alive(pid: number): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(fs.readFileSync(`/proc/${pid}/status`, 'latin1'));
  } catch {
    return false;
  }
}

/** Processes that run, or have ended and were not waited for, with `text` in their command line or as their parent. */
export function processesOf(text: string): number[] {
  return fs
    .readdirSync('/proc')
    .map(Number)
    .filter((pid) => {
      if (!pid || pid === process.pid) return false;
      try {
        return fs.readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes(text);
      } catch {
        return false;
      }
    });
}

/** Children of this process that have ended and were not waited for. */
export function zombies(): string[] {
  return fs.readdirSync('/proc').filter((pid) => {
    try {
      const [, state, parent] = /\) (\w) (\d+)/.exec(fs.readFileSync(`/proc/${pid}/stat`, 'latin1')) ?? [];
      return state === 'Z' && Number(parent) === process.pid;
    } catch {
      return false;
    }
  });
}

// ---------------------------------------------------------------------------------------------------
// The witness

const btf = new BtfWriter();
const number = btf.int('unsigned int', 4);
const pair = btf.struct('pair', 8, [
  { name: 'a', type: number, at: 0 },
  { name: 'b', type: number, at: 32 },
]);
/** A command of the witness: loads BTF, an object named `types`. */
export const TYPES = `btf types ${btf.bytes().toString('hex')}`;
/** Options of its command `map`: the key is a number, the value a structure of two, `a` and `b`. */
export const TYPED = `btf=types btf_key=${number} btf_value=${pair}`;

/** An open file as the process sees it. */
export interface Seen {
  readonly fd: number;
  /** Of /proc/self/fd. */
  readonly link: string;
  /** fcntl(F_GETFL). */
  readonly flags: number;
  readonly cloexec: number;
  /** Lowest fd of the same struct file. */
  readonly same: number;
  readonly id?: number;
  readonly type?: number;
  readonly map_name?: string;
  readonly frozen?: number;
  readonly btf?: string;
  /** errno of looking up and of updating; 1 is what is forbidden. */
  readonly lookup?: number;
  readonly update?: number;
  readonly count?: number;
  /** Of all items, in any order. */
  readonly sum?: string;
  /** Of maps with up to 64 items: KEY=VALUE in hex. */
  readonly items?: readonly string[];
  readonly inner?: Readonly<Record<string, Seen>>;
}

/** What is the same before a dump and after its restore: everything but ids of maps, of which only who has the same. */
export function lasting(seen: readonly Seen[]): unknown {
  const ids: number[] = [];
  const stable = ({ id, inner, ...rest }: Seen): unknown => {
    if (id !== undefined && !ids.includes(id)) ids.push(id);
    // Of a hash of maps, in any order.
    const maps = Object.entries(inner ?? {}).sort(([a], [b]) => (a < b ? -1 : 1));
    return { ...rest, map: id && ids.indexOf(id), inner: maps.map(([key, map]) => [key, stable(map)]) };
  };
  return seen.map(stable);
}

/** Ids of all maps that were seen, each once. */
export function idsOf(seen: readonly Seen[]): number[] {
  return [...new Set(seen.flatMap(({ id }) => id ?? []))];
}

/** A process with BPF objects that does as it is told; see witness.c. */
export class Witness {
  constructor(
    readonly folder: string,
    readonly pid: number,
  ) {}

  /** Starts one that is ended with the test at the latest. Its pid stays when it is dumped and restored. */
  static async start(t: { teardown(end: () => unknown): void }, program: string, folder: string): Promise<Witness> {
    fs.mkdirSync(folder, { recursive: true });
    const child = spawn(program, [folder], { cwd: folder, detached: true, stdio: 'ignore' });
    const witness = new Witness(folder, child.pid as number);
    t.teardown(() => witness.end());
    await until('the witness starts', () => fs.existsSync(witness.#out));
    return witness;
  }

  get #out(): string {
    return path.join(this.folder, `${this.pid}.out`);
  }

  /** Gives it commands; their answers, none of which may be an error. */
  async tell(...commands: readonly string[]): Promise<readonly unknown[]> {
    const answers = await this.ask(...commands);
    for (const [i, answer] of answers.entries()) {
      const { error } = answer as { error?: string };
      if (error !== undefined) throw new Error(`${commands[i]}: ${error}`);
    }
    return answers;
  }

  /** Gives it commands; their answers. */
  async ask(...commands: readonly string[]): Promise<readonly unknown[]> {
    fs.writeFileSync(path.join(this.folder, `${this.pid}.in`), commands.map((line) => `${line}\n`).join(''));
    fs.rmSync(this.#out, { force: true });
    process.kill(this.pid, 'SIGUSR1');
    await until(`${this.pid} answers`, () => {
      if (!alive(this.pid)) throw new Error(`process ${this.pid} is gone`);
      return fs.existsSync(this.#out);
    });
    return JSON.parse(fs.readFileSync(this.#out, 'latin1')) as unknown[];
  }

  /** What it sees through its file descriptors. */
  async see(): Promise<readonly Seen[]> {
    return (await this.tell('see'))[0] as Seen[];
  }

  /** Its new child, which holds the same and ends with it. */
  async fork(): Promise<Witness> {
    const [{ pid }] = (await this.tell('fork')) as [{ pid: number }];
    const child = new Witness(this.folder, pid);
    await until('the child starts', () => fs.existsSync(child.#out));
    return child;
  }

  /** Waits until it has ended, as a dump has it end. */
  async gone(): Promise<void> {
    await until(`${this.pid} ends`, () => !fs.existsSync(`/proc/${this.pid}`));
  }

  /** Ends it, and its children. */
  async end(): Promise<void> {
    for (const pid of [-this.pid, this.pid]) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // It has ended, or leads no group.
      }
    }
    await until(`${this.pid} ends`, () => !alive(this.pid));
  }
}

// ---------------------------------------------------------------------------------------------------
// All of it together

/** A map as bpftool sees it: its attributes and its items, but for what is another after a restore. */
export function fromOutside(id: number): unknown {
  const { id: _, btf_id, pids: __, ...shown } = bpftool('map', 'show', 'id', `${id}`) as Record<string, unknown>;
  const type = String(shown.type);
  // Of queues and stacks it reads nothing.
  const items = ['queue', 'stack'].includes(type) ? [] : (bpftool('map', 'dump', 'id', `${id}`) as unknown[]);
  return {
    ...shown,
    typed: btf_id !== undefined,
    items: type.endsWith('_of_maps') ? items.length : items.map((item) => JSON.stringify(item)).sort(),
  };
}

/** The programs under test, and a folder for processes and their dumps. */
export class Bench {
  #count = 0;

  private constructor(
    readonly folder: string,
    readonly program: string,
    readonly plugin: string,
    readonly sys: Sys,
  ) {}

  /** Builds them; not where CRIU cannot run. */
  static async set(folder: string, skip: string | false): Promise<Bench> {
    const [program, plugin] = skip === false ? [buildWitness(folder), buildPlugin(folder)] : ['', ''];
    return new Bench(folder, program, plugin, await openSys(types));
  }

  /** A process that has done these commands, and a folder for its dump. */
  async witness(t: Test, ...commands: readonly string[]): Promise<Held> {
    const folder = path.join(this.folder, `w${this.#count++}`);
    const witness = await Witness.start(t, this.program, folder);
    await witness.tell(...commands);
    return { witness, folder: path.join(folder, 'dump') };
  }

  /** Waits until these maps are gone: they are freed a moment after their last file is closed. */
  async freed(ids: readonly number[]): Promise<void> {
    await until(`maps ${ids} are freed`, () => ids.every((id) => !isLive(this.sys, id)));
  }

  /** Dumps it, which must work; CRIU's log. */
  async dumped(t: Test, { witness, folder }: Held): Promise<string> {
    const { status, log } = await dump(witness.pid, folder, this);
    t.equal(status, 0, `dumped: ${errors(log).join('; ')}`);
    await witness.gone();
    return log;
  }

  /** Restores it, which must work; CRIU's log. */
  async restored(t: Test, folder: string): Promise<string> {
    const { status, log } = await restore(folder, this);
    t.equal(status, 0, `restored: ${errors(log).join('; ')}`);
    return log;
  }

  /** Dumps a process, has its maps freed, restores it: from inside and from outside, all is as before. */
  async roundTrip(t: Test, held: Held): Promise<readonly Seen[]> {
    const before = await held.witness.see();
    const ids = idsOf(before);
    const outside = ids.map(fromOutside);
    await this.dumped(t, held);
    await this.freed(ids);
    await this.restored(t, held.folder);
    const after = await held.witness.see();
    t.same(lasting(after), lasting(before), 'from inside');
    const fresh = idsOf(after);
    t.notOk(
      fresh.some((id) => ids.includes(id)),
      'they are new maps',
    );
    t.same(fresh.map(fromOutside), outside, 'as bpftool sees it');
    return after;
  }
}

export interface Held {
  readonly witness: Witness;
  readonly folder: string;
}
