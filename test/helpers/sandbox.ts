/**
 * Hosts for tests that type commands: a shell in a mount namespace of its own, with an empty BPF file system at
 * /sys/fs/bpf, its own /etc, and an empty /var/lib. Maps and processes are those of this machine.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { BPFIMG, TOP } from './command.js';

/** What the shell does first; `$1` is a scratch folder. */
const SETUP = `
  mount --make-rprivate / && mount -t tmpfs tmpfs "$1" && cp -a /etc "$1" && mkdir -p "$1/etc/systemd/system" &&
  mount --bind "$1/etc" /etc && mount -t tmpfs tmpfs /var/lib && umount -l "$1" && mount -t bpf bpf /sys/fs/bpf &&
  exec bash 2>&1`;

/** Programs that tests have their own of: ssh, scp and systemctl. */
const PROGRAMS = path.join(TOP, 'test/helpers/host');

export class Host {
  readonly #shell: ChildProcess;
  #output = '';
  #count = 0;
  #heard = () => {};

  private constructor(
    readonly folder: string,
    shell: ChildProcess,
  ) {
    this.#shell = shell;
    shell.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.#output += text;
      this.#heard();
    });
    shell.on('close', () => this.#heard());
  }

  /**
   * Starts one.
   * @param folder its current folder
   * @param others hosts that ssh reaches, by name
   */
  static async start(folder: string, others: Readonly<Record<string, Host>> = {}): Promise<Host> {
    const scratch = path.join(folder, '.scratch');
    fs.mkdirSync(scratch);
    const reach = Object.entries(others).map(([name, { pid, folder }]) => [`HOST_${name}`, `${pid} ${folder}`]);
    const env = {
      ...process.env,
      PATH: [PROGRAMS, path.dirname(BPFIMG), process.env.PATH].join(path.delimiter),
      NO_COLOR: '1',
      LC_ALL: 'C.UTF-8',
      ...Object.fromEntries(reach),
    };
    const words = ['--mount', 'sh', '-c', SETUP, 'sh', scratch];
    // In its own process group, which ends with it.
    const shell = spawn('unshare', words, { cwd: folder, env, detached: true, stdio: ['pipe', 'pipe', 'inherit'] });
    const host = new Host(folder, shell);
    const { status, output } = await host.run('stat -f -c %T /sys/fs/bpf');
    if (status !== 0 || !/^bpf_fs\n$/.test(output)) throw new Error(`no host could be made: ${output}`);
    return host;
  }

  get pid(): number {
    return this.#shell.pid as number;
  }

  /** Runs a line in its shell; `output` is what it prints, errors too. */
  async run(line: string): Promise<{ readonly status: number; readonly output: string }> {
    const mark = `the end of ${++this.#count}:`;
    const end = new RegExp(`${mark} (\\d+)\n$`);
    this.#output = '';
    this.#shell.stdin?.write(`{ ${line}\n} </dev/null; echo "${mark} $?"\n`);
    for (;;) {
      const [text, status] = end.exec(this.#output) ?? [];
      if (text !== undefined) return { status: Number(status), output: this.#output.slice(0, -text.length) };
      if (this.#shell.exitCode !== null || this.#shell.signalCode !== null)
        throw new Error(`the shell ended: ${this.#output}`);
      await new Promise<void>((resolve) => {
        this.#heard = resolve;
      });
    }
  }

  /** Ends it and what it runs; its mounts, pins and maps go with it. */
  async stop(): Promise<void> {
    const ended = new Promise((resolve) => this.#shell.once('close', resolve));
    process.kill(-this.pid, 'SIGKILL');
    await ended;
  }
}
