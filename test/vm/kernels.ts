/**
 * Runs tests of live maps on other kernels, in virtual machines: `npm run test:kernels [-- [KERNEL…] [SHAPE…] [TEST…]]`.
 *
 * Kernels are Debian's, named by its releases; a shape is what else can differ between machines; a test is a file of
 * this folder's parent. Without words, all kernels run all tests, and one kernel all shapes. The table at the end is
 * what docs/reliability.md shows. The environment's IO names a folder for what the tests print; what is there of earlier
 * runs counts, too, so that tests can be run again one by one.
 */
import { spawn, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { Parser } from 'tap-parser';

const PROJECT = path.resolve(import.meta.dirname, '../../..');
const BOOT = path.join(PROJECT, 'test/vm/boot');

const say = (line: string) => process.stdout.write(`${line}\n`);

/** Releases of Debian, with the kernels that they have: oldest first. */
const KERNELS = { bullseye: '5.10', bookworm: '6.1', trixie: '6.12', sid: 'newest' } as const;
type Kernel = keyof typeof KERNELS;

/** How a machine differs from the usual one: two CPUs, one NUMA node, 3 GiB, cgroup v2, BTF, root. */
interface Shape {
  /** For `boot`. */
  readonly env?: Readonly<Record<string, string>>;
  /** Run in the guest before the tests, by a shell. */
  readonly first?: string;
  /** Where it makes a difference. */
  readonly kernel?: Kernel;
  /** {@link SHAPE_TESTS} if not given. */
  readonly tests?: readonly string[];
  /** Another processor than this machine's, as npm calls it: koffi has a package for each. */
  readonly cpu?: string;
}

const SHAPES: Readonly<Record<string, Shape>> = {
  'one-cpu': { env: { CPUS: '1' } },
  'four-cpus': { env: { CPUS: '4' } },
  'absent-cpus': { env: { CPUS: '2,maxcpus=6' } },
  'two-nodes': {
    env: {
      CPUS: '2',
      QEMU:
        '-object memory-backend-ram,id=m0,size=1536M -object memory-backend-ram,id=m1,size=1536M ' +
        '-numa node,nodeid=0,cpus=0,memdev=m0 -numa node,nodeid=1,cpus=1,memdev=m1',
    },
  },
  'small-memory': { env: { MEMORY: '512' } },
  lockdown: { env: { APPEND: 'lockdown=confidentiality' } },
  'cgroup-v1': { env: { CGROUP: '1' } },
  'no-kernel-btf': { first: 'mount -t tmpfs none /sys/kernel/btf' },
  'unprivileged-bpf': { first: 'echo 0 >/proc/sys/kernel/unprivileged_bpf_disabled' },
  // Until 5.11 maps counted against it.
  'small-memlock': { first: 'ulimit -l 64', kernel: 'bullseye' },
  arm64: {
    env: { ARCHITECTURE: 'arm64' },
    cpu: 'arm64',
    first: 'modprobe tun; cp -r /io/node_modules/@koromix node_modules/; export BPFIMG_CRIU=/usr/sbin/criu',
    tests: ['criu', 'replay', 'capture', 'kernel-map', 'list', 'kernel-abi'],
  },
};

/** The kernel that all shapes run on, as far as they do not name another. */
const SHAPED: Kernel = 'trixie';

/**
 * Tests of live maps that depend on the kernel. Others can be named, but take long and show nothing new: what bpfimg does
 * with pins, commands, sources, keys, queues that are interrupted, and later changes. The longest first, so that all CPUs end at about the same time.
 */
const TESTS = [
  'criu',
  'into',
  'replay',
  'inner',
  'families',
  'capture',
  'capture-read',
  'criu-check',
  'replay-fill',
  'references',
  'lock',
  'kernel-map',
  'verify-replay',
  'list',
  'storage',
  'kernel-abi',
  'owners',
  'btf-kernel',
  'kernel-sys',
  'kernel-proc',
];

/** What every shape runs: numbers of CPUs, nodes, memory, cgroups, what may be asked of maps. */
const SHAPE_TESTS = ['replay-fill', 'kernel-map', 'list', 'storage'];

/** The quick look that `.ci/run` takes: two minutes on two CPUs without KVM. */
const SMOKE = { kernel: 'bookworm' as Kernel, tests: ['kernel-map', 'kernel-abi', 'list'] };

/** One start of a virtual machine. */
interface Run {
  readonly kernel: Kernel;
  readonly shape: string | undefined;
  readonly tests: readonly string[];
}

/** What came of one test file. */
interface Outcome {
  readonly passed: number;
  readonly failures: readonly string[];
  /** Reasons with the number of tests. */
  readonly skipped: ReadonlyMap<string, number>;
}

function runs(words: readonly string[]): Run[] {
  if (words.length === 1 && words[0] === '--smoke') return [{ ...SMOKE, shape: undefined }];
  const known = (word: string) => word in KERNELS || word in SHAPES || fs.existsSync(testFile(word));
  const unknown = words.find((word) => !known(word));
  if (unknown !== undefined) {
    const names = [...Object.keys(KERNELS), ...Object.keys(SHAPES)].join(', ');
    throw new Error(`${unknown} is neither a test nor one of ${names}`);
  }
  const kernels = (Object.keys(KERNELS) as Kernel[]).filter((name) => words.includes(name));
  const shapes = Object.keys(SHAPES).filter((name) => words.includes(name));
  const tests = words.filter((word) => !(word in KERNELS) && !(word in SHAPES));
  const all = kernels.length + shapes.length === 0;
  const plain = (all ? (Object.keys(KERNELS) as Kernel[]) : shapes.length === 0 ? kernels : []).map((kernel) => ({
    kernel,
    shape: undefined,
    tests: tests.length > 0 ? tests : TESTS,
  }));
  const shaped = (all ? Object.keys(SHAPES) : shapes).flatMap((shape) =>
    (kernels.length > 0 ? kernels : [SHAPES[shape]?.kernel ?? SHAPED]).map((kernel) => ({
      kernel,
      shape,
      tests: tests.length > 0 ? tests : (SHAPES[shape]?.tests ?? SHAPE_TESTS),
    })),
  );
  return [...plain, ...shaped];
}

function testFile(name: string): string {
  return path.join(PROJECT, 'build/test', `${name}.test.js`);
}

/** Seconds that a test may take in a guest, which is ten times slower than this machine. */
const EACH = 1800;

/** What exit codes mean that are not the test's own. */
const ENDED: ReadonlyMap<string, string> = new Map([
  ['', 'the guest ended before it'],
  ['124', `it took more than ${EACH} s`],
  ['137', 'it was killed'],
]);

/** Boots a guest that runs the tests, a CPU each. @returns the outcome of every test; undefined if the guest did not boot */
async function boot({ kernel, shape, tests }: Run, io: string): Promise<Map<string, Outcome> | undefined> {
  const { env = {}, first = ':', cpu } = shape === undefined ? {} : (SHAPES[shape] ?? {});
  if (cpu !== undefined) fetchKoffi(cpu, io);
  const one =
    `timeout -k 10 ${EACH} node build/test/$1.test.js >/io/$1.tap 2>/io/$1.errors </dev/null; ` +
    'echo $? >/io/$1.exit; echo "$1: exit $(cat /io/$1.exit) after $(cut -d. -f1 /proc/uptime) s"';
  const all = `${first}\nuname -r >/io/version\nexport TAP_TIMEOUT=${EACH} BPFIMG_SLOW=8\nprintf '%s\\n' "$@" | xargs -P "$(nproc)" -I{} bash -c '${one}' - {}`;
  const child = spawn(BOOT, [kernel, 'bash', '-c', all, '-', ...tests], {
    env: { ...process.env, LIMIT: String(EACH * 4), ...env, IO: io },
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  await new Promise((resolve, reject) => child.on('error', reject).on('close', resolve));
  if (!fs.existsSync(path.join(io, 'version'))) return undefined;
  // With those of earlier runs in this folder.
  const earlier = fs.readdirSync(io).flatMap((name) => /^(.*)\.tap$/.exec(name)?.[1] ?? []);
  return new Map([...new Set([...tests, ...earlier])].map((test) => [test, outcome(path.join(io, test))]));
}

/** Gets koffi's library for a processor, of the version that is installed here. */
function fetchKoffi(cpu: string, folder: string): void {
  const own = fs.readFileSync(path.join(PROJECT, 'node_modules/koffi/package.json'), 'utf8');
  const { version } = JSON.parse(own) as { version: string };
  const options = ['--silent', '--no-save', '--no-package-lock', '--force', `--cpu=${cpu}`, '--prefix', folder];
  const done = spawnSync('npm', ['install', ...options, `@koromix/koffi-linux-${cpu}@${version}`], {
    stdio: 'inherit',
  });
  if (done.status !== 0) throw new Error(`npm could not install koffi for ${cpu}`);
}

/** What a test file said, and how its process ended: the plan may be complete before something goes wrong. */
function outcome(file: string): Outcome {
  const read = (name: string) => (fs.existsSync(name) ? fs.readFileSync(name, 'utf8') : '');
  const text = read(`${file}.tap`);
  const code = read(`${file}.exit`).trim();
  const parser = new Parser();
  parser.end(text);
  const { results } = parser;
  if (results === null || text === '') {
    return { passed: 0, failures: [code === '' ? 'it was not run' : 'it printed nothing'], skipped: new Map() };
  }
  const skipped = new Map<string, number>();
  const leaves = { passed: 0, failures: [] as string[] };
  for (const result of Parser.parse(text, { flat: true })) {
    if (result[0] !== 'assert') continue;
    const { ok, skip, fullname } = result[1];
    if (skip !== false) skipped.set(String(skip), (skipped.get(String(skip)) ?? 0) + 1);
    else if (ok) leaves.passed++;
    else leaves.failures.push(fullname);
  }
  if (code !== '0' && leaves.failures.length === 0)
    leaves.failures.push(ENDED.get(code) ?? `it ended with exit code ${code}`);
  if (!results.ok && leaves.failures.length === 0) leaves.failures.push('it was cut off');
  return { ...leaves, skipped };
}

async function main(words: readonly string[]): Promise<number> {
  const place = process.env.IO ?? fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-kernels-'));
  const columns = new Map<string, Map<string, Outcome>>();
  const missing: string[] = [];
  for (const run of runs(words)) {
    const name = run.shape === undefined ? run.kernel : `${run.kernel} ${run.shape}`;
    const io = path.join(place, name.replace(' ', '-'));
    fs.mkdirSync(io, { recursive: true });
    for (const test of run.tests)
      for (const end of ['tap', 'exit', 'errors']) fs.rmSync(path.join(io, `${test}.${end}`), { force: true });
    fs.rmSync(path.join(io, 'version'), { force: true });
    say(`== ${name}`);
    const started = Date.now();
    const outcomes = await boot(run, io);
    if (outcomes === undefined) {
      missing.push(name);
      continue;
    }
    const version = fs.readFileSync(path.join(io, 'version'), 'utf8').trim();
    say(`${name}: ${version}, ${Math.round((Date.now() - started) / 1000)} s`);
    columns.set(`${/^\d+\.\d+/.exec(version)?.[0]}${run.shape === undefined ? '' : ` ${run.shape}`}`, outcomes);
  }
  const failed = report(columns) + missing.length;
  for (const name of missing) say(`FAILED: ${name} could not be fetched or did not boot`);
  if (failed === 0 && process.env.IO === undefined) fs.rmSync(place, { recursive: true });
  else say(`what the tests printed is in ${place}`);
  return failed === 0 ? 0 : 1;
}

/** Prints the table: passed tests, with failed (✗) and skipped ones (–). @returns how many failed */
function report(columns: ReadonlyMap<string, ReadonlyMap<string, Outcome>>): number {
  const names = [...new Set([...columns.values()].flatMap((outcomes) => [...outcomes.keys()]))];
  const cell = (one: Outcome | undefined): string => {
    if (one === undefined) return '';
    const skips = [...one.skipped.values()].reduce((sum, n) => sum + n, 0);
    return `${one.passed}${one.failures.length > 0 ? ` ✗${one.failures.length}` : ''}${skips > 0 ? ` –${skips}` : ''}`;
  };
  say(`\n| test | ${[...columns.keys()].join(' | ')} |\n| --- |${' ---: |'.repeat(columns.size)}`);
  for (const name of names) {
    say(`| ${name} | ${[...columns.values()].map((outcomes) => cell(outcomes.get(name))).join(' | ')} |`);
  }
  let [passed, failed, skips] = [0, 0, 0];
  for (const [column, outcomes] of columns) {
    for (const [name, one] of outcomes) {
      passed += one.passed;
      failed += one.failures.length;
      for (const failure of one.failures) say(`FAILED on ${column}: ${name}: ${failure}`);
      for (const [why, count] of one.skipped) {
        skips += count;
        say(`skipped on ${column}: ${name}: ${count} × ${why}`);
      }
    }
  }
  say(`\non other kernels ${passed} tests passed, ${failed} failed, ${skips} were skipped`);
  return failed;
}

process.exitCode = await main(process.argv.slice(2)).catch((error: Error) => {
  process.stderr.write(`test:kernels: ${error.message}\n`);
  return 1;
});
