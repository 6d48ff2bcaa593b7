/** Tells CRIU, in its configuration, where the plugin is; and takes everything away again. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { BpfimgError, errnoOf, ioError } from '../errors.js';
import { FileOutput, openOutput } from '../io/output.js';
import { readTrustedBytes } from '../io/trusted.js';
import { noLongerUnfinished, unfinished } from '../io/unfinished.js';
import { type BuildOptions, buildPlugin, checkPath, PLUGIN_FILE } from './build.js';

/** Folder of CRIU's configuration files. */
export const ETC = '/etc/criu';

/** Every CRIU reads this one, whoever starts it: that is enough for runc, crun and podman, too. */
const MAIN = 'default.conf';
/**
 * Files that runc, and crun since 1.26, have CRIU read after {@link MAIN} (crun takes the second if it has no first;
 * before 1.26 it names none). They need no line, but one of theirs overrides ours.
 */
const LATER = ['crun.conf', 'runc.conf'];

/** Where CRIU's configuration is. */
export interface Configuration {
  /** {@link ETC} by default. */
  readonly etc?: string | undefined;
  /** The user's home folder, which may have another configuration file. */
  readonly home?: string | undefined;
}

/** What was done. */
export interface Installed {
  /** The plugin. */
  readonly plugin: string;
  /** The configuration file that names its folder. */
  readonly file: string;
  /** The line that was added or removed; undefined if the file had one already. */
  readonly line: string | undefined;
}

/** `libdir` in the text of a configuration file of CRIU; the last one counts. */
export function libdirOf(text: string): string | undefined {
  const last = [...text.matchAll(/^[ \t]*libdir[ \t]+(?:"((?:\\"|[^"\n])*)"|([^\s#]+))/gm)].at(-1);
  return last?.[1]?.replaceAll('\\"', '"') ?? last?.[2];
}

/** The line of CRIU's configuration that names a plugin folder. */
export function libdirLine(folder: string): string {
  checkPath(folder);
  return `libdir ${/[\s#"]/.test(folder) ? `"${folder.replaceAll('"', '\\"')}"` : folder}\n`;
}

// What is added comes first in the file, so that the rest stays as it is, with or without a last line end. The lines
// say what did not exist before.
const TITLE =
  '# Added by "bpfimg criu build --install". --uninstall removes these lines, and what was made for them:\n';
const ADDED = new RegExp(`^${TITLE}(?<made>(?:# /.*\n)*)(?<line>libdir .*\n)`, 'm');

/** A configuration file: what was added to it, and the rest. */
interface Split {
  readonly line?: string;
  /** Files and folders that were made. */
  readonly made: readonly string[];
  readonly rest: Buffer;
  /** Undefined if there is no file. */
  readonly stat?: fs.Stats;
}

function split(file: string): Split {
  const bytes = bytesOf(file);
  if (bytes === undefined) return { made: [], rest: Buffer.alloc(0) };
  const stat = fs.statSync(file);
  // One character a byte: the rest may be in any encoding.
  const text = bytes.toString('latin1');
  const { made = '', line = '' } = ADDED.exec(text)?.groups ?? {};
  if (line === '') return { made: [], rest: bytes, stat };
  const names = utf8(made)
    .split('\n')
    .map((name) => name.slice(2));
  const rest = Buffer.from(text.replace(ADDED, ''), 'latin1');
  return { line: utf8(line), made: names.filter((name) => name !== ''), rest, stat };
}

function utf8(latin1: string): string {
  return Buffer.from(latin1, 'latin1').toString();
}

/** A configuration file; undefined if there is none. */
function bytesOf(file: string): Buffer | undefined {
  try {
    return readTrustedBytes(file);
  } catch (error) {
    if (error instanceof BpfimgError && errnoOf(error.cause) === 'ENOENT') return undefined;
    throw error;
  }
}

/**
 * Compiles the plugin into `folder` and adds the line that names it to CRIU's configuration, unless it is there. Makes
 * folders and files that are missing.
 * @throws BpfimgError `conflict` if the configuration names another plugin folder: CRIU reads only one
 */
export async function installPlugin(folder: string, options: BuildOptions & Configuration): Promise<Installed> {
  const { etc = ETC, home } = options;
  const place = path.resolve(folder);
  const file = path.join(path.resolve(etc), MAIN);
  const before = split(file);
  const others = LATER.map((name) => path.join(etc, name));
  if (home !== undefined) others.push(path.join(home, '.criu', MAIN));
  checkLibdir(file, before.rest, place);
  for (const other of others) checkLibdir(other, bytesOf(other), place);

  const line = libdirLine(place);
  const plugin = path.join(place, PLUGIN_FILE);
  const fresh: string[] = [];
  const make = (name: string) => {
    for (const one of makeFolder(name)) {
      unfinished(one, true);
      fresh.push(one);
    }
  };
  const old = fs.existsSync(plugin);
  try {
    make(place);
    buildPlugin(place, options);
    if (!old) unfinished(plugin);
    const has = libdirOf(before.rest.toString()) !== undefined;
    if (has || before.line === line) return { plugin, file, line: undefined };
    make(path.dirname(file));
    const made = new Set([...before.made.filter((name) => isFor(name, plugin, file)), ...fresh]);
    if (before.stat === undefined) made.add(file);
    const names = [...made].map((name) => `# ${name}\n`).join('');
    await replace(file, `${TITLE}${names}${line}`, before);
  } catch (error) {
    if (!old) fs.rmSync(plugin, { force: true });
    removeEmpty(fresh);
    throw error;
  } finally {
    noLongerUnfinished(plugin);
    for (const name of fresh) noLongerUnfinished(name);
  }
  if (before.line !== undefined) removePlugin(before.line, before.made, file);
  return { plugin, file, line };
}

/**
 * Takes away what {@link installPlugin} added: the line, the plugin, and the files and folders it made if nothing else
 * is in them.
 * @throws BpfimgError `notFound` if it added nothing
 */
export async function uninstallPlugin({ etc = ETC }: Configuration = {}): Promise<Installed> {
  const file = path.join(path.resolve(etc), MAIN);
  const before = split(file);
  const { line, made } = before;
  if (line === undefined) {
    throw new BpfimgError('notFound', 'has no lines of "bpfimg criu build --install"', { subject: file });
  }
  if (before.rest.length > 0 || !made.includes(file)) await replace(file, '', before);
  else fs.rmSync(file);
  return { plugin: removePlugin(line, made, file), file, line };
}

/** Removes the plugin that `line` names, then what was made for it and for `file`, as far as it is empty now. */
function removePlugin(line: string, made: readonly string[], file: string): string {
  const folder = libdirOf(line) ?? '';
  const plugin = path.join(folder, PLUGIN_FILE);
  try {
    fs.rmSync(plugin, { force: true });
  } catch (error) {
    throw ioError(plugin, 'remove it', error);
  }
  removeEmpty(made.filter((name) => name !== file && isFor(name, plugin, file)));
  return plugin;
}

/** Whether `name` is one of the two files or a folder that leads to them: nothing else is ever made. */
function isFor(name: string, ...files: readonly string[]): boolean {
  return files.some((file) => `${file}/`.startsWith(`${name}/`));
}

/** Removes folders, each after those in it, unless something is in them. */
function removeEmpty(folders: readonly string[]): void {
  for (const folder of [...folders].sort().reverse()) {
    try {
      fs.rmdirSync(folder);
    } catch (error) {
      if (!['ENOTEMPTY', 'EEXIST', 'ENOENT'].includes(errnoOf(error) ?? '')) throw ioError(folder, 'remove it', error);
    }
  }
}

function checkLibdir(file: string, bytes: Buffer | undefined, place: string): void {
  const named = libdirOf(bytes?.toString() ?? '');
  if (named === undefined || path.resolve(named) === place) return;
  const why = `its libdir is ${named}, and CRIU reads only one plugin folder: use --out ${named}`;
  throw new BpfimgError('conflict', why, { subject: file });
}

/** Makes a folder and those above it; the ones that were made. */
function makeFolder(folder: string): string[] {
  const made: string[] = [];
  try {
    const first = fs.mkdirSync(folder, { recursive: true });
    if (first === undefined) return made;
    for (let name = folder; name.length >= first.length; name = path.dirname(name)) made.unshift(name);
    return made;
  } catch (error) {
    throw ioError(folder, 'make the folder', error);
  }
}

/** Replaces a configuration file, which keeps its mode and owner. */
async function replace(file: string, added: string, { rest, stat }: Split): Promise<void> {
  const out = await openOutput(file);
  try {
    if (out instanceof FileOutput) out.permit(stat ?? { mode: 0o644 });
    out.text(added);
    out.write(rest);
    await out.commit();
  } catch (error) {
    await out.abort();
    throw error;
  }
}
