/** Real kernel objects for maps that refer to them: programs, network interfaces, sockets, perf events. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { createInterface } from 'node:readline';
import { ATTR } from '../../src/kernel/abi.js';
import { Attr, type Sys } from '../../src/kernel/sys.js';

/** BPF_PROG_TYPE_*, as far as tests load them. */
export const PROG_TYPE = { socketFilter: 1, xdp: 6 } as const;
/** BPF_XDP_*: where a program of an XDP map may run. */
export const ATTACH = { devmap: 33, cpumap: 35 } as const;

export interface ProgramSpec {
  /** One character a byte. */
  readonly name: string;
  readonly type?: number;
  readonly attach?: number;
  /** What it returns: another number is another tag. */
  readonly result?: number;
}

/** Loads a program that only returns a number; its file descriptor. */
export function loadProgram(sys: Sys, { name, type = PROG_TYPE.xdp, attach = 0, result = 2 }: ProgramSpec): number {
  const code = Buffer.from(new ArrayBuffer(16));
  code.writeUInt8(0xb7, 0); // r0 = result
  code.writeInt32LE(result, 4);
  code.writeUInt8(0x95, 8); // exit
  const attr = new Attr(ATTR.progLoad, sys)
    .set('prog_type', type)
    .set('expected_attach_type', attach)
    .point('insns', code)
    .set('insn_cnt', 2)
    .point('license', Buffer.from('GPL\0'))
    .setBytes('prog_name', Buffer.from(name, 'latin1'));
  const fd = sys.bpf('PROG_LOAD', attr);
  if (fd < 0) throw new Error(`PROG_LOAD: ${fd}`);
  return fd;
}

/** Pins the object behind `fd`. */
export function pinFd(sys: Sys, fd: number, file: string): void {
  const attr = new Attr(ATTR.obj, sys).point('pathname', Buffer.from(`${file}\0`)).set('bpf_fd', fd);
  const result = sys.bpf('OBJ_PIN', attr);
  if (result < 0) throw new Error(`OBJ_PIN: ${result}`);
}

/** Runs a command that must succeed. */
export function must(command: string, ...args: string[]): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: 'utf8' });
  if (error) throw error;
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${stderr}`);
  return stdout;
}

/** A pair of network interfaces with indexes of our choice. */
export function vethPair([a, i]: readonly [string, number], [b, j]: readonly [string, number]): void {
  must('ip', 'link', 'add', 'name', a, 'index', `${i}`, 'type', 'veth', 'peer', 'name', b, 'index', `${j}`);
}

/**
 * Opens what JavaScript cannot, says so in one line, and waits: listening TCP sockets, two that are connected
 * with each other over loopback, a reuseport pair, an AF_XDP socket (each with its fd and SO_COOKIE), and a perf
 * event of the software clock.
 */
const OPENER = `
import ctypes, json, socket, struct, sys
def cookie(s):
    return str(struct.unpack('Q', s.getsockopt(socket.SOL_SOCKET, 57, 8))[0])
def tcp():
    s = socket.socket()
    s.bind(('127.0.0.1', 0))
    s.listen()
    return s
def shared(port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind(('127.0.0.1', port))
    return s
listening = [tcp(), tcp()]
connected = [socket.create_connection(listening[0].getsockname()), listening[0].accept()[0]]
first = shared(0)
reuseport = [first, shared(first.getsockname()[1])]
xdp = [socket.socket(44, socket.SOCK_RAW, 0)]
# With a receive ring: Linux 7.2 lets no other into a map.
xdp[0].setsockopt(283, 2, struct.pack('I', 64))
attr = ctypes.create_string_buffer(struct.pack('IIQ', 1, 112, 0), 112)
perf = ctypes.CDLL(None).syscall(298, attr, -1, 0, -1, 0)
kinds = {'listening': listening, 'connected': connected, 'reuseport': reuseport, 'xdp': xdp}
out = {kind: [{'fd': s.fileno(), 'cookie': cookie(s)} for s in some] for kind, some in kinds.items()}
out['perf'] = [{'fd': perf, 'cookie': ''}]
print(json.dumps(out), flush=True)
sys.stdin.read()
`;

export interface OpenedSocket {
  readonly fd: number;
  /** As getsockopt() tells it, in decimal. */
  readonly cookie: string;
}
export type Kind = 'listening' | 'connected' | 'reuseport' | 'xdp' | 'perf';

/** A process with sockets; our duplicates of them keep them open until it is stopped. */
export class SocketHolder {
  private constructor(
    readonly child: ChildProcess,
    readonly sys: Sys,
    readonly opened: Readonly<Record<Kind, readonly OpenedSocket[]>>,
  ) {}

  static async start(sys: Sys): Promise<SocketHolder> {
    const child = spawn('python3', ['-c', OPENER], { stdio: ['pipe', 'pipe', 'inherit'] });
    for await (const line of createInterface({ input: child.stdout })) {
      const opened = JSON.parse(line) as Record<Kind, OpenedSocket[]>;
      const pidfd = sys.pidfdOpen(child.pid as number);
      const own = Object.fromEntries(
        Object.entries(opened).map(([kind, some]) => {
          return [kind, some.map(({ fd, cookie }) => ({ fd: sys.pidfdGetfd(pidfd, fd), cookie }))];
        }),
      ) as Record<Kind, OpenedSocket[]>;
      sys.close(pidfd);
      return new SocketHolder(child, sys, own);
    }
    throw new Error('the process with sockets ended');
  }

  async stop(): Promise<void> {
    for (const { fd } of Object.values(this.opened).flat()) if (fd >= 0) this.sys.close(fd);
    const ended = new Promise((resolve) => this.child.once('close', resolve));
    this.child.stdin?.end();
    await ended;
  }
}
