/**
 * The CRIU of this host, as a dump would meet it: the program, how it was built, its plugin folder, and whether
 * bpfimg's plugin in it is sound. CRIU is run only for its version and its help, never for a dump.
 */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { BpfimgError, errnoOf, ioError } from '../errors.js';
import { readTrusted, UNTRUSTED } from '../io/trusted.js';
import { MARKER } from './build.js';
import { CONFIG_FILE, type CriuConfig, readConfig, USUAL } from './config.js';
import { ETC, libdirOf } from './install.js';

/** Which dumps fail because of it: all, only those of processes that hold BPF maps, or none. */
export type Stops = 'every dump' | 'maps' | 'nothing';

/** Something about this host that is worth a line. */
export interface HostFinding {
  readonly stops: Stops;
  readonly text: string;
}

/** Where CRIU looks for plugins. */
export interface PluginFolder {
  readonly path: string;
  /** Where that comes from: a configuration file, `CRIU_LIBS_DIR`, or `built in`. */
  readonly from: string;
}

/** bpfimg's plugin, as it was built. */
export interface OurPlugin {
  readonly path: string;
  readonly version: string;
  /** The bpfimg and node that it runs. */
  readonly node: string;
  readonly bpfimg: string;
  /** Its settings file. */
  readonly config: string;
}

/** The CRIU of this host. */
export interface CriuHost {
  /** Undefined if there is none. */
  readonly program: string | undefined;
  /** As CRIU prints it. */
  readonly version: string | undefined;
  /** Whether it has its own BPF support, which comes before any plugin; undefined if we cannot tell. */
  readonly libbpf: boolean | undefined;
  readonly folder: PluginFolder | undefined;
  readonly plugin: OurPlugin | undefined;
  /** Names of the other plugins in that folder. */
  readonly others: readonly string[];
  readonly config: CriuConfig;
  readonly configFile: string;
  readonly findings: readonly HostFinding[];
}

/** How to look at the host. */
export interface HostOptions {
  readonly env: Readonly<Record<string, string | undefined>>;
  /** CRIU's program; by default the one in PATH. */
  readonly program?: string | undefined;
  /** Version of this bpfimg. */
  readonly version: string;
  /** Folder of CRIU's configuration files. */
  readonly etc?: string;
}

/** Folders with programs for root, which the PATH of other users lacks. */
const SYSTEM_FOLDERS = ['/usr/local/sbin', '/usr/sbin', '/sbin'];
/** Milliseconds that CRIU may take to print its version. */
const VERSION_TIMEOUT = 10_000;
/** Every CRIU exports this symbol for its plugins. */
const EXPORTED = 'criu_get_image_dir';
/** A symbol that CRIU exports if it can dump files of BPF maps itself, and the library that it needs for that. */
const OWN_SUPPORT = ['bpfmap_dump_ops', 'libbpf.so'];
const DESCRIPTOR = 'CR_PLUGIN_DESC';

/** What is missing in CRIU before these releases, newest last. */
const RELEASES: readonly (readonly [before: string, stops: Stops, why: string])[] = [
  ['2.0', 'maps', 'its plugin interface is different; CRIU 2.0 or later is needed'],
  ['3.17', 'nothing', 'bpfimg is not tested with releases before 3.17'],
  [
    '4.1',
    'nothing',
    'its images do not say that they need the plugin, so a restore without it fails with a less helpful message',
  ],
];

/**
 * Looks at the CRIU of this host. Anything wrong with it is a finding, not an error.
 * @throws BpfimgError `notFound` if a program was named that does not exist
 */
export function inspectCriu(options: HostOptions): CriuHost {
  return new CriuInspection(options).host();
}

class CriuInspection {
  readonly #findings: HostFinding[] = [];
  /** `libdir` in each file that was read: what is wrong with one is said once. */
  readonly #libdirs = new Map<string, { readonly libdir: string | undefined }>();

  constructor(readonly options: HostOptions) {}

  host(): CriuHost {
    const program = this.#find();
    const said = program === undefined ? undefined : this.#ask(program);
    const binary = program === undefined ? undefined : this.#binary(program);
    const libbpf = binary && OWN_SUPPORT.some((name) => binary.includes(name));
    if (program !== undefined && libbpf === undefined) {
      this.#note(
        'nothing',
        `${program}: cannot tell whether it is built with libbpf; assuming that it is not (--criu names another program)`,
      );
    }
    const folder = said?.folder === undefined ? undefined : this.#folder(said.folder);
    const names = folder === undefined ? [] : this.#names(folder);
    const plugins = names.flatMap((name) => this.#plugin(path.join((folder as PluginFolder).path, name), binary) ?? []);
    const [plugin, second] = plugins;
    if (second !== undefined) {
      this.#note('every dump', `${second.path}: a second copy of bpfimg's plugin: remove one of them`);
    }
    const others = names.filter((name) => !plugins.some((one) => path.basename(one.path) === name));
    const { config, configFile } = this.#config(plugin);
    if (plugin !== undefined) {
      this.#checkPlugin(plugin);
      this.#checkOthers(others);
    } else if (folder !== undefined && libbpf !== true) {
      const text = `bpfimg's plugin is not in ${folder.path} (${folder.from}), where CRIU looks for plugins`;
      this.#note('maps', `${text}; "bpfimg criu build" builds it`);
    }
    this.#checkContainers(folder, said?.folder);
    return {
      program,
      version: said?.version,
      libbpf,
      folder,
      plugin,
      others,
      config,
      configFile,
      findings: this.#findings,
    };
  }

  #note(stops: Stops, text: string): void {
    this.#findings.push({ stops, text });
  }

  // -------------------------------------------------------------------------------------------------
  // The program

  #find(): string | undefined {
    const { program = 'criu' } = this.options;
    const places = program.includes('/') ? [path.resolve(program)] : this.#places(program);
    const found = places.find(isProgram);
    if (found !== undefined) return found;
    if (this.options.program !== undefined) {
      throw new BpfimgError('notFound', 'no such program', { subject: `--criu ${program}` });
    }
    this.#note('every dump', 'criu is not in PATH; name the program with --criu');
    return undefined;
  }

  /** Where a program may be. */
  #places(program: string): string[] {
    const folders = (this.options.env.PATH ?? '').split(':').filter((one) => one !== '');
    return [...folders, ...SYSTEM_FOLDERS].map((one) => path.join(one, program));
  }

  /** What CRIU prints about itself. */
  #ask(program: string): { version: string | undefined; folder: string | undefined } {
    const run = (...args: string[]) =>
      spawnSync(program, args, {
        env: { ...this.options.env, LC_ALL: 'C' },
        encoding: 'latin1',
        timeout: VERSION_TIMEOUT,
        stdio: ['ignore', 'pipe', 'pipe'],
      });
    const { error, stdout = '', stderr = '' } = run('--version');
    const version = /^Version:\s*(\S+)/m.exec(stdout ?? '')?.[1];
    if (version === undefined) {
      const why = error?.message ?? (stderr ?? '').split('\n').find((line) => line !== '');
      this.#note('every dump', `${program}: it does not print its version: ${why ?? 'no output'}`);
    } else this.#checkRelease(program, version);
    const folder = /plugin directory \(by default ([^)\n]+)\)/.exec(run('--help').stdout ?? '')?.[1];
    return { version, folder };
  }

  #checkRelease(program: string, version: string): void {
    const found = RELEASES.find(([before]) => isBefore(version, before));
    if (found !== undefined) this.#note(found[1], `${program}: CRIU ${version}: ${found[2]}`);
  }

  /** The program's bytes; undefined if it is not CRIU itself, but for example a script that starts it. */
  #binary(program: string): Buffer | undefined {
    try {
      const bytes = readLoadable(program);
      return bytes.includes(EXPORTED) ? bytes : undefined;
    } catch (error) {
      if (!(error instanceof BpfimgError)) throw error;
      return undefined;
    }
  }

  // -------------------------------------------------------------------------------------------------
  // Its plugins

  /** The plugin folder in use, and what determines it. */
  #folder(builtIn: string): PluginFolder {
    const { env, etc = ETC } = this.options;
    const files = [path.join(etc, 'default.conf')];
    if (env.HOME !== undefined) files.push(path.join(env.HOME, '.criu/default.conf'));
    if (env.CRIU_CONFIG_FILE !== undefined) files.push(env.CRIU_CONFIG_FILE);
    const named = files.flatMap((file): PluginFolder[] => {
      const folder = this.#libdirIn(file);
      return folder === undefined ? [] : [{ path: folder, from: file }];
    });
    const last = named.at(-1);
    if (last !== undefined) return last;
    if (env.CRIU_LIBS_DIR !== undefined) return { path: env.CRIU_LIBS_DIR, from: 'CRIU_LIBS_DIR' };
    return { path: builtIn, from: 'built in' };
  }

  /** Names of the files in a folder that CRIU loads as plugins. */
  #names(folder: PluginFolder): string[] {
    const { path: where, from } = folder;
    if (!path.isAbsolute(where)) {
      this.#note('every dump', `${from}: libdir ${where} is not absolute: CRIU looks for it in the images folder`);
      return [];
    }
    try {
      return fs
        .readdirSync(where)
        .filter((name) => name.endsWith('.so'))
        .sort();
    } catch (error) {
      const missing = errnoOf(error) === 'ENOENT' && from === 'built in';
      if (!missing) this.#note('every dump', `${where} (${from}): cannot read the plugin folder: ${errnoOf(error)}`);
      return [];
    }
  }

  /** The plugin in `file` if it is bpfimg's. A file that CRIU cannot load is a finding, because CRIU stops there. */
  #plugin(file: string, criu: Buffer | undefined): OurPlugin | undefined {
    const stop = (why: string) => {
      this.#note('every dump', `${file}: CRIU cannot load it, and stops: ${why}`);
      return undefined;
    };
    let bytes: Buffer;
    try {
      bytes = readLoadable(file);
    } catch (error) {
      if (!(error instanceof BpfimgError)) throw error;
      if (error.kind === 'notFound') return stop('it is a broken link');
      return stop(error.textAbout(file));
    }
    if (criu !== undefined && machineOf(bytes) !== machineOf(criu))
      return stop('it was built for another kind of machine');
    if (!bytes.includes(DESCRIPTOR)) {
      this.#note('nothing', `${file}: not a plugin (it has no ${DESCRIPTOR}); CRIU only warns about it`);
    }
    const marker = markerIn(bytes);
    return marker && { path: file, ...marker };
  }

  #checkPlugin({ path: file, version, node, bpfimg }: OurPlugin): void {
    const again = 'run "bpfimg criu build" again';
    if (!isProgram(node)) this.#note('maps', `${file}: it runs ${node}, which does not exist; ${again}`);
    if (!fs.existsSync(bpfimg)) this.#note('maps', `${file}: it runs ${bpfimg}, which does not exist; ${again}`);
    if (version !== this.options.version) {
      this.#note('nothing', `${file}: it was built by bpfimg ${version}, this is ${this.options.version}; ${again}`);
    }
  }

  /** Plugins that keep others from working. */
  #checkOthers(others: readonly string[]): void {
    if (!others.includes('amdgpu_plugin.so')) return;
    const why = 'it may answer for files that are not its own, and whichever plugin CRIU asks first decides';
    this.#note('nothing', `amdgpu_plugin.so is in the same folder: ${why}; a folder of its own (libdir) avoids that`);
  }

  /** Settings as the plugin's helpers read them. */
  #config(plugin: OurPlugin | undefined): { config: CriuConfig; configFile: string } {
    const configFile = plugin?.config ?? CONFIG_FILE;
    try {
      return { config: readConfig(configFile), configFile };
    } catch (error) {
      if (!(error instanceof BpfimgError)) throw error;
      if (plugin !== undefined) this.#note('maps', error.message);
      return { config: USUAL, configFile };
    }
  }

  /** `libdir` in one of CRIU's configuration files; the last one counts. */
  #libdirIn(file: string): string | undefined {
    const known = this.#libdirs.get(file);
    if (known !== undefined) return known.libdir;
    const libdir = this.#readLibdir(file);
    this.#libdirs.set(file, { libdir });
    return libdir;
  }

  #readLibdir(file: string): string | undefined {
    let text: string;
    try {
      text = readTrusted(file);
    } catch (error) {
      if (!(error instanceof BpfimgError)) throw error;
      // A file that cannot be read sets nothing, nor does a link that root must not follow.
      if (error.code === UNTRUSTED) this.#note('every dump', error.message);
      return undefined;
    }
    return libdirOf(text);
  }

  /** Container runtimes give CRIU a configuration file of their own, and may not pass on the user's settings. */
  #checkContainers(folder: PluginFolder | undefined, builtIn: string | undefined): void {
    const { etc = ETC } = this.options;
    const other = (libdir: string) => folder === undefined || path.resolve(libdir) !== path.resolve(folder.path);
    const main = path.join(etc, 'default.conf');
    const usual = this.#libdirIn(main) ?? builtIn;
    const unaware: string[] = [];
    for (const runtime of ['runc', 'crun']) {
      const file = path.join(etc, `${runtime}.conf`);
      const libdir = this.#libdirIn(file);
      if (libdir !== undefined && other(libdir)) {
        this.#note('nothing', `${file}: containers use the plugins in ${libdir}, not in the folder checked here`);
      } else if (libdir === undefined && this.#places(runtime).some(isProgram)) unaware.push(runtime);
    }
    if (unaware.length === 0 || folder === undefined || usual === undefined || !other(usual)) return;
    const text = `${unaware.join(' and ')} may not pass it on to CRIU, which then uses the plugins in ${usual}`;
    this.#note('nothing', `libdir from ${folder.from}: ${text}; all read ${main}`);
  }
}

function isProgram(file: string): boolean {
  try {
    fs.accessSync(file, fs.constants.X_OK);
    return fs.statSync(file).isFile();
  } catch {
    return false;
  }
}

/** Whether release `version` is older than `other`; false if it is not a number. */
function isBefore(version: string, other: string): boolean {
  const numbers = (text: string) => text.split('.').map((part) => Number.parseInt(part, 10));
  const [mine, theirs] = [numbers(version), numbers(other)];
  for (const [i, number] of theirs.entries()) {
    const own = mine[i] ?? 0;
    if (Number.isNaN(own)) return false;
    if (own !== number) return own < number;
  }
  return false;
}

/** Larger files are not taken for programs. */
const MAX_PROGRAM = 256 * 1024 * 1024;
const ELF64 = '7f454c4602';
const ELF_HEADER = 64;
const SECTION_HEADER = 64;

/**
 * A 64-bit program or shared library. The symbols it needs are not looked up.
 * @throws BpfimgError `badImage` for any other file, `unsupported` for one that is too large, `notFound`, `io`
 */
function readLoadable(file: string): Buffer {
  const bad = (what: string) => new BpfimgError('badImage', what, { subject: file });
  let bytes: Buffer;
  try {
    const { size } = fs.statSync(file);
    if (size > MAX_PROGRAM)
      throw new BpfimgError('unsupported', `too large for a program: ${size} bytes`, { subject: file });
    bytes = fs.readFileSync(file);
  } catch (error) {
    throw ioError(file, 'read it', error);
  }
  const start = bytes.toString('hex', 0, 5);
  if (!start.startsWith(ELF64.slice(0, 8))) throw bad('it is not an ELF file');
  if (start !== ELF64) throw bad('it is not a 64-bit file');
  if (bytes.length < ELF_HEADER) throw bad('it is cut off');
  // Linkers write the section headers last: e_shnum of them at e_shoff.
  const little = bytes[5] === 1;
  const table = Number(little ? bytes.readBigUInt64LE(0x28) : bytes.readBigUInt64BE(0x28));
  const count = little ? bytes.readUInt16LE(0x3c) : bytes.readUInt16BE(0x3c);
  if (table + count * SECTION_HEADER > bytes.length) throw bad('it is cut off');
  return bytes;
}

/** Byte order and machine, as in the file. */
function machineOf(elf: Buffer): string {
  return `${elf[5]} ${elf.readUInt16LE(18)}`;
}

const MARKER_BYTES = Buffer.from(MARKER);
/** Lines of the marker after the first, and the most bytes that they have. */
const MARKER_LINES = 4;
const MARKER_SIZE = 4 * 4096 + 64;

/**
 * What bpfimg's plugin says about itself in its data: five lines, the first of which is `bpfimg-plugin`; undefined
 * for other plugins.
 */
function markerIn(bytes: Buffer): Omit<OurPlugin, 'path'> | undefined {
  for (let at = bytes.indexOf(MARKER_BYTES); at >= 0; at = bytes.indexOf(MARKER_BYTES, at + 1)) {
    const start = at + MARKER_BYTES.length;
    const lines = bytes.toString('utf8', start, start + MARKER_SIZE).split('\n', MARKER_LINES + 1);
    const [version, node, bpfimg, config] = lines;
    const whole = lines.length > MARKER_LINES && lines.every((line, i) => i === MARKER_LINES || !line.includes('\0'));
    if (whole && version && node && bpfimg && config) return { version, node, bpfimg, config };
  }
  return undefined;
}
