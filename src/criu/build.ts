/** Compiles the CRIU plugin on the machine whose CRIU will load it. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import { BpfimgError, ioError } from '../errors.js';
import { noLongerUnfinished, unfinished } from '../io/unfinished.js';
import { CONFIG_FILE } from './config.js';

/** Name of the plugin's file: CRIU loads every file whose name ends like this. */
export const PLUGIN_FILE = 'bpfimg.so';

/** First line of what a plugin says about itself; the next lines are version, node, bpfimg and settings. */
export const MARKER = 'bpfimg-plugin\n';

const ownPath = fileURLToPath(import.meta.url);
/** If it is bundled, this module is in dist/; otherwise it is build/src/criu/build.js. */
const bundled = path.extname(ownPath) === '.cjs';
const top = path.resolve(path.dirname(ownPath), bundled ? '..' : '../../..');

/** The script that node runs as the plugin's helper, and the plugin's source. */
const PROGRAM = path.join(top, bundled ? 'dist/bpfimg' : 'build/src/cli/criu-bin.js');
const SOURCE = path.join(top, 'plugins/criu/bpfimg.c');

/** What the plugin is built with. */
export interface BuildOptions {
  readonly version: string;
  /** File with settings; {@link CONFIG_FILE} by default. */
  readonly config?: string | undefined;
  /** Compiler; `cc` by default. */
  readonly compiler?: string | undefined;
}

/**
 * Compiles the plugin into `folder`, which is created if it does not exist. The plugin calls this bpfimg and this node by
 * their absolute paths. The old plugin is replaced only if the new one compiles: a broken plugin breaks every dump.
 * @returns the plugin's path
 * @throws BpfimgError with what the compiler says
 */
export function buildPlugin(folder: string, { version, config, compiler = 'cc' }: BuildOptions): string {
  const place = path.resolve(folder);
  const macros = {
    VERSION: version,
    NODE: process.execPath,
    BPFIMG: PROGRAM,
    CONFIG: path.resolve(config ?? CONFIG_FILE),
  };
  const defines = Object.entries(macros).map(([name, text]) => {
    checkPath(text);
    return `-D${name}=${JSON.stringify(text)}`;
  });
  // Its name does not end in .so, because CRIU would load it.
  const aside = path.join(place, `.${PLUGIN_FILE}.${process.pid}`);
  try {
    fs.mkdirSync(place, { recursive: true });
  } catch (error) {
    throw ioError(place, 'make the folder', error);
  }
  unfinished(aside);
  try {
    const options = ['-std=gnu11', '-O2', '-Wall', '-fPIC', '-shared', '-fvisibility=hidden'];
    const done = spawnSync(compiler, [...options, ...defines, '-o', aside, SOURCE], { encoding: 'utf8' });
    if (done.error !== undefined) {
      const hint = 'a C compiler and the headers of libc are needed (Debian: gcc libc6-dev)';
      throw new BpfimgError('unsupported', `cannot be run: ${done.error.message}; ${hint}`, { subject: compiler });
    }
    if (done.status !== 0) {
      const first = done.stderr.split('\n').find((line) => /error|cannot/i.test(line)) ?? `exit status ${done.status}`;
      throw new BpfimgError('unsupported', `${compiler}: ${first.trim()}`, { subject: SOURCE });
    }
    putInPlace(aside, path.join(place, PLUGIN_FILE));
  } finally {
    fs.rmSync(aside, { force: true });
    noLongerUnfinished(aside);
  }
  return path.join(place, PLUGIN_FILE);
}

/** Throws if a path has control characters, which neither the plugin nor CRIU's configuration can contain. */
export function checkPath(name: string): void {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: it is about them
  if (/[\x00-\x1f]/.test(name))
    throw new BpfimgError('unsupported', 'a path with control characters', { subject: name });
}

/** Syncs it before it gets its name: after a crash, half a library would break every dump. */
function putInPlace(aside: string, file: string): void {
  try {
    const fd = fs.openSync(aside, 'r');
    fs.fchmodSync(fd, 0o755);
    fs.fsyncSync(fd);
    fs.closeSync(fd);
    fs.renameSync(aside, file);
  } catch (error) {
    throw ioError(file, 'rename it into place', error);
  }
}
