/** Settings of the CRIU plugin: one file, because the programs that run CRIU do not pass on their environment. */
import { BpfimgError, errnoOf } from '../errors.js';
import { readTrusted } from '../io/trusted.js';
import type { CpuFold } from '../replay/items.js';

/** The settings file, unless `criu build` was given another. */
export const CONFIG_FILE = '/etc/bpfimg/criu.conf';

/** Settings of the plugin. */
export interface CriuConfig {
  /** On restore, use a live map of the same boot, id and attributes instead of a fresh one. */
  readonly reuse: boolean;
  /** Read queues and stacks by emptying and refilling them. */
  readonly drain: boolean;
  /** What to do with a map that cannot be dumped completely. */
  readonly partial: 'warn' | 'fail';
  /** What to do with items that refer to objects this host does not have. */
  readonly unresolved: 'fail' | 'skip';
  /** Per-CPU values from a machine with another number of CPUs. */
  readonly percpu: CpuFold | undefined;
  /** Folders with plugins for map types. */
  readonly libdir: readonly string[];
  /** The plugin replaces the BPF support of a CRIU built with libbpf. Only the plugin reads this. */
  readonly takeOver: boolean;
  /** Programs, links and BTF of a dumped process stay in the kernel for its restore. Live maps are reused then. */
  readonly keepPrograms: boolean;
}

const yesNo = ['yes', 'no'] as const;
const seconds = /^[1-9]\d{0,4}$/;

/** Names of settings, and their values; plugins/criu/bpfimg.c has the same table and grammar. */
const SETTINGS: Readonly<Record<string, readonly string[] | RegExp>> = {
  reuse: yesNo,
  drain: yesNo,
  partial: ['warn', 'fail'],
  unresolved: ['fail', 'skip'],
  percpu: ['first', 'sum', 'spread'],
  libdir: /^\//,
  'take-over': yesNo,
  'keep-programs': yesNo,
  'dump-timeout': seconds,
  'restore-timeout': seconds,
  'restore-hook-arguments': ['1', '2'],
};

/**
 * Reads the settings; without the file, the defaults apply.
 * @throws BpfimgError with file and line
 */
export function readConfig(file: string = CONFIG_FILE): CriuConfig {
  let text = '';
  try {
    text = readTrusted(file);
  } catch (error) {
    if (!(error instanceof BpfimgError && errnoOf(error.cause) === 'ENOENT')) throw error;
  }
  return parseConfig(file, text);
}

function parseConfig(file: string, text: string): CriuConfig {
  const said = new Map<string, string[]>();
  for (const [i, line] of text.split('\n').entries()) {
    const bad = (what: string) => new BpfimgError('badImage', `line ${i + 1}: ${what}`, { subject: file, line: i + 1 });
    if (line.includes('\0')) throw bad('a NUL byte');
    const [name, ...values] = line
      .replace(/#.*/s, '')
      .split(/[ \t\r\v\f]+/)
      .filter((word) => word !== '');
    if (name === undefined) continue;
    const value = values.join(' ');
    const allowed = SETTINGS[name];
    if (allowed === undefined || !Object.hasOwn(SETTINGS, name)) throw bad(`no setting is named ${name}`);
    const fits = allowed instanceof RegExp ? allowed.test(value) : allowed.includes(value);
    if (!fits || values.length > 1) {
      const wanted =
        allowed instanceof RegExp ? (name === 'libdir' ? 'an absolute path' : 'seconds') : allowed.join(', ');
      throw bad(`${name} ${value}: expected ${wanted}`);
    }
    said.set(name, [...(said.get(name) ?? []), value]);
  }
  const last = (name: string) => said.get(name)?.at(-1);
  const keepPrograms = last('keep-programs') === 'yes';
  return {
    // The programs go on with the maps that they have.
    reuse: keepPrograms || last('reuse') === 'yes',
    drain: last('drain') !== 'no',
    partial: last('partial') === 'fail' ? 'fail' : 'warn',
    unresolved: last('unresolved') === 'skip' ? 'skip' : 'fail',
    percpu: last('percpu') as CpuFold | undefined,
    libdir: said.get('libdir') ?? [],
    takeOver: last('take-over') === 'yes',
    keepPrograms,
  };
}

/** The defaults. */
export const USUAL: CriuConfig = parseConfig(CONFIG_FILE, '');
