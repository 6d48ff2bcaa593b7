/** Containers of runc, crun and podman with the witness in them. Everything here runs in the root folder of `enter`. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import type { Test } from 'tap';
import { TOP } from '../helpers/command.js';
import { compile, errors, idsOf, lasting, processesOf, type Seen, until } from '../helpers/criu.js';

/** Milliseconds that a runtime may take. */
const PATIENCE = 60_000;
/** The witness in its container, and its folder there. */
const COMMAND = ['/witness', '/data'] as const;
/** The same folder for podman: the same file is the same image, wherever it is imported. */
const IMAGE = '/tmp/image.tar';
/** What a container needs that makes maps. */
const CAPABILITIES = ['CAP_SYS_ADMIN', 'CAP_BPF', 'CAP_PERFMON'];
/** All cgroups made here are below this one, which `enter` removes. */
const CGROUP = process.env.BPFIMG_CGROUP ?? '';

export const RUNTIMES = ['runc', 'crun'] as const;
export type Runtime = (typeof RUNTIMES)[number];

/** A command that ran: what it printed, or why it failed. */
export interface Outcome {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * @param fds what it inherits after standard error. Its standard files are /dev/null: the container gets them, and CRIU
 *   finds no file of the host.
 */
function attempt(command: string, args: readonly string[], cwd: string, fds?: readonly number[]): Outcome {
  const stdio =
    fds === undefined ? (['ignore', 'pipe', 'pipe'] as const) : (['ignore', 'ignore', 'ignore', ...fds] as const);
  const done = spawnSync(command, args, { cwd, stdio: [...stdio], encoding: 'utf8', timeout: PATIENCE });
  if (done.error) throw new Error(`${command} ${args.join(' ')}: ${done.error.message}`);
  return { status: done.status, stdout: done.stdout ?? '', stderr: done.stderr ?? '' };
}

/** A container's witness, as the host sees it. */
export class Boxed {
  /** @param pid of its process here; in its container it is process 1 */
  constructor(readonly pid: number) {}

  get #data(): string {
    return `/proc/${this.pid}/root${COMMAND[1]}`;
  }

  /** Gives it commands; their answers, none of which may be an error. */
  async tell(...commands: readonly string[]): Promise<readonly unknown[]> {
    const out = path.join(this.#data, '1.out');
    await until('the witness starts', () => fs.existsSync(out));
    fs.writeFileSync(path.join(this.#data, '1.in'), commands.map((line) => `${line}\n`).join(''));
    fs.rmSync(out);
    process.kill(this.pid, 'SIGUSR1');
    await until(`process ${this.pid} answers`, () => fs.existsSync(out));
    const answers = JSON.parse(fs.readFileSync(out, 'latin1')) as { error?: string }[];
    for (const [i, { error }] of answers.entries()) if (error) throw new Error(`${commands[i]}: ${error}`);
    return answers;
  }

  /** What it sees through its file descriptors. */
  async see(): Promise<readonly Seen[]> {
    return (await this.tell('see'))[0] as Seen[];
  }
}

/** Compiles the witness so that it runs in an empty folder, and makes that folder, and {@link IMAGE} of it. */
export function buildRoot(folder: string): string {
  for (const name of ['data', 'proc', 'sys', 'dev']) fs.mkdirSync(path.join(folder, name), { recursive: true });
  compile('-static', '-o', path.join(folder, COMMAND[0]), path.join(TOP, 'test/helpers/witness.c'));
  const { status, stderr } = attempt('tar', ['-C', folder, '-cf', IMAGE, '.'], '/');
  if (status !== 0) throw new Error(`tar: ${stderr}`);
  return folder;
}

/** What a container is made of, where it is not as usual. */
export interface Wishes {
  /** Members of `linux` in config.json. */
  readonly linux?: Readonly<Record<string, unknown>>;
  readonly mounts?: readonly Readonly<Record<string, unknown>>[];
  /** Inherited as fd 3 and so on. */
  readonly fds?: readonly number[];
  /** Owner of its files. */
  readonly owner?: number;
}

/** A container of runc or crun, in a folder of its own. */
export class Container {
  static #count = 0;
  readonly #id: string;
  readonly images: string;
  readonly #work: string;

  /** @param folder does not exist yet */
  private constructor(
    readonly runtime: Runtime,
    readonly folder: string,
    readonly fds: readonly number[],
  ) {
    this.#id = `box${process.pid}-${Container.#count++}`;
    this.images = path.join(folder, 'images');
    this.#work = path.join(folder, 'work');
  }

  /** Starts one; it ends with the test at the latest. */
  static start(t: Test, runtime: Runtime, root: string, wishes: Wishes = {}): Container {
    const folder = fs.mkdtempSync(`/tmp/${runtime}-`);
    const { linux = {}, mounts = [], fds = [], owner = 0 } = wishes;
    const container = new Container(runtime, folder, fds);
    for (const name of [container.images, container.#work]) fs.mkdirSync(name);
    fs.chmodSync(folder, 0o755);
    fs.cpSync(root, path.join(folder, 'rootfs'), { recursive: true });
    for (const name of ['', ...fs.readdirSync(path.join(folder, 'rootfs'))])
      fs.chownSync(path.join(folder, 'rootfs', name), owner, owner);
    container.#must('spec');
    const file = path.join(folder, 'config.json');
    const config = JSON.parse(fs.readFileSync(file, 'utf8'));
    Object.assign(config.process, { terminal: false, args: COMMAND });
    for (const set of ['bounding', 'effective', 'permitted']) config.process.capabilities[set].push(...CAPABILITIES);
    config.root.readonly = false;
    config.mounts.push(...mounts);
    const cgroupsPath = path.join(CGROUP, container.#id);
    Object.assign(config.linux, { seccomp: undefined, cgroupsPath }, linux);
    if (linux.uidMappings !== undefined) config.linux.namespaces.push({ type: 'user' });
    fs.writeFileSync(file, JSON.stringify(config));
    t.teardown(() => container.delete());
    container.#must('run', '-d', ...(fds.length > 0 ? ['--preserve-fds', `${fds.length}`] : []));
    return container;
  }

  #run(...words: readonly string[]): Outcome {
    const id = words[0] === 'spec' ? [] : [this.#id];
    const starts = ['run', 'restore'].includes(words[0] as string);
    return attempt(this.runtime, [...words, ...id], this.folder, starts ? this.fds : undefined);
  }

  #must(...words: readonly string[]): Outcome {
    const done = this.#run(...words);
    if (done.status === 0) return done;
    throw new Error(`${this.runtime} ${words.join(' ')}: ${done.status} ${done.stderr} ${this.log()}`);
  }

  get witness(): Boxed {
    return new Boxed(JSON.parse(this.#must('state').stdout).pid);
  }

  checkpoint(...options: readonly string[]): void {
    this.#must('checkpoint', '--image-path', this.images, '--work-path', this.#work, ...options);
  }

  /** Restores it, which may fail. */
  tryRestore(): Outcome {
    return this.#run('restore', '-d', '--image-path', this.images, '--work-path', this.#work);
  }

  restore(): void {
    this.#must('restore', '-d', '--image-path', this.images, '--work-path', this.#work);
  }

  /** Errors in CRIU's logs. */
  log(): string {
    const logs = ['dump.log', 'restore.log'].map((name) => path.join(this.#work, name));
    const texts = logs.filter((name) => fs.existsSync(name)).map((name) => fs.readFileSync(name, 'latin1'));
    return texts.flatMap(errors).join('\n');
  }

  /** Ends it. */
  delete(): void {
    this.#run('delete', '--force');
  }
}

/** Podman with a storage of its own. */
export class Podman {
  static #count = 0;
  readonly #folder: string;

  constructor(
    readonly runtime: Runtime,
    t: Test,
  ) {
    this.#folder = `/var/lib/bpfimg-podman${Podman.#count++}`;
    t.teardown(async () => {
      this.#run('rm', '--force', '--all', '--time', '0');
      await this.#forget();
    });
    this.#importImage();
  }

  #run(...words: readonly string[]): Outcome {
    const options = {
      root: path.join(this.#folder, 'storage'),
      runroot: path.join(this.#folder, 'run'),
      'storage-driver': 'vfs',
      'cgroup-manager': 'cgroupfs',
      'events-backend': 'none',
      runtime: this.runtime,
    };
    const all = Object.entries(options).flatMap(([name, value]) => [`--${name}`, value]);
    return attempt('podman', [...all, ...words], '/');
  }

  #must(...words: readonly string[]): string {
    const done = this.#run(...words);
    if (done.status === 0) return done.stdout;
    throw new Error(`podman ${words.join(' ')}: ${done.status} ${done.stderr} ${this.#log()}`);
  }

  #log(): string {
    const storage = path.join(this.#folder, 'storage');
    const names = fs.existsSync(storage) ? fs.readdirSync(storage, { recursive: true, encoding: 'utf8' }) : [];
    const logs = names.filter((name) => /(dump|restore)\.log$/.test(name));
    return logs.flatMap((name) => errors(fs.readFileSync(path.join(storage, name), 'latin1'))).join('\n');
  }

  #importImage(): void {
    fs.mkdirSync(this.#folder, { recursive: true });
    this.#must('import', '--quiet', IMAGE, 'witness');
  }

  async #forget(): Promise<void> {
    // What conmon starts when its container ends still writes here.
    await until('podman cleans up', () => processesOf(`${this.#folder}/`).length === 0);
    fs.rmSync(this.#folder, { recursive: true });
  }

  /** All containers end, and the whole storage is as on another host, but for the image. */
  async wipe(): Promise<void> {
    this.#must('rm', '--force', '--all', '--time', '0');
    await this.#forget();
    this.#importImage();
  }

  start(name: string, ...options: readonly string[]): void {
    const capabilities = CAPABILITIES.flatMap((one) => ['--cap-add', one]);
    const usual = ['--network', 'none', '--log-driver', 'none', '--cgroup-parent', CGROUP];
    const all = ['--name', name, ...usual, '--security-opt', 'seccomp=unconfined', ...capabilities, ...options];
    this.#must('run', '--detach', ...all, 'witness', ...COMMAND);
  }

  witness(name: string): Boxed {
    return new Boxed(Number(this.#must('inspect', '--format', '{{.State.Pid}}', name)));
  }

  checkpoint(name: string, archive: string, ...options: readonly string[]): void {
    this.#must('container', 'checkpoint', '--export', archive, ...options, name);
  }

  restore(archive: string, ...options: readonly string[]): void {
    this.#must('container', 'restore', '--import', archive, ...options);
  }
}

/** Checks that a restored process sees what it saw, in new maps. */
export function same(t: Test, after: readonly Seen[], before: readonly Seen[]): void {
  t.same(lasting(after), lasting(before), 'the process sees what it saw');
  const [old, fresh] = [idsOf(before), idsOf(after)];
  t.ok(old.length > 0 && !fresh.some((id) => old.includes(id)), 'in new maps');
}
