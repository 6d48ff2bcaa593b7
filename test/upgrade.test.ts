/** docs/upgrade.md, typed from top to bottom: programs in C, libbpf as their loader, and hosts to run them on. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { BPFIMG, TOP } from './helpers/command.js';
import { examples, packed, quoted } from './helpers/examples.js';
import { skipWithoutMaps } from './helpers/kernel-live.js';
import { patience, required } from './helpers/needs.js';
import { Host } from './helpers/sandbox.js';

t.setTimeout(patience(300_000));

function without(tool: string, missing: boolean): string | false {
  return missing && !required(tool) ? `needs ${tool}` : false;
}

const skip =
  (await skipWithoutMaps()) ||
  without('clang', spawnSync('clang', ['--version'], { stdio: 'ignore' }).error !== undefined) ||
  without('libbpf', spawnSync('cc', ['-xc', '-', '-fsyntax-only'], { input: '#include <bpf/libbpf.h>' }).status !== 0);

const EXAMPLES = path.join(TOP, 'docs/examples');

/** Starts a host whose folder has what the page tells its reader to copy. */
async function host(t: Test, name: string, others: Readonly<Record<string, Host>> = {}): Promise<Host> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), `bpfimg-${name}-`));
  t.teardown(() => fs.rmSync(folder, { recursive: true }));
  fs.cpSync(EXAMPLES, folder, { recursive: true });
  const started = await Host.start(folder, others);
  t.teardown(() => started.stop());
  return started;
}

/** What the page shows; ids begin with 90 there, and what memory is needed depends on the machine. */
function shownAs(text: string): RegExp {
  const pattern = quoted(packed(text))
    .replace(/\b90\d\d\b/g, '(\\d+)')
    .replace(/\b\d+\\\.\d (KiB|MiB)\b/g, '\\d+\\.\\d (?:KiB|MiB)');
  return new RegExp(`^${pattern}$`);
}

const lines = (text: string) => text.trimEnd().split('\n').sort().join('\n');

t.test('the guide', { skip }, async (t) => {
  const page = fs.readFileSync(path.join(TOP, 'docs/upgrade.md'), 'utf8');
  const hostb = await host(t, 'hostb');
  const hosta = await host(t, 'hosta', { hostb });
  const ids = new Map<string, string>();
  for (const { line, command, output } of examples(page, 'console guide')) {
    // Two commands that print at the same time.
    const both = command.includes('| ssh');
    const ran = await hosta.run(command);
    const [printed, shown] = [ran.output, output].map((text) => (both ? lines(packed(text)) : packed(text)));
    const found = shownAs(shown as string).exec(printed as string);
    const where = `docs/upgrade.md:${line}: ${command}`;
    if (found === null) t.equal(printed, shown, where);
    else t.pass(where);
    // The same number on the page is the same map.
    for (const [i, name] of [...(shown as string).matchAll(/\b90\d\d\b/g)].entries()) {
      const id = found?.[i + 1] as string;
      t.equal(ids.get(name[0]) ?? id, id, `${where}: map ${name[0]}`);
      ids.set(name[0], id);
    }
  }
  t.equal(new Set(ids.values()).size, ids.size, 'other numbers are other maps');
  t.ok(ids.size > 3);
});

/** Runs a line that must succeed. */
async function typed(host: Host, line: string): Promise<string> {
  const { status, output } = await host.run(line);
  if (status !== 0) throw new Error(`${line}: ${output}`);
  return output;
}

const COMPILE = 'clang -O2 -g -target bpf -I/usr/include/$(uname -m)-linux-gnu';
const PINS = '/sys/fs/bpf/app';

interface Case {
  readonly what: string;
  readonly old: string;
  readonly now: string;
  /** What the loader says before the upgrade; undefined if it notices nothing. */
  readonly refusal?: RegExp;
  readonly options?: string;
  /** What the new program has counted at last, after three packets of each. */
  readonly counts: string;
}

const V1 = fs.readFileSync(path.join(EXAMPLES, 'app.bpf.c'), 'utf8');
/** The program with other text in some places. */
const changed = (...changes: readonly (readonly [string, string])[]) =>
  changes.reduce((text, [from, to]) => {
    if (!text.includes(from)) throw new Error(`no ${from}`);
    return text.replaceAll(from, to);
  }, V1);
const MISMATCH = /couldn't reuse pinned map at '\/sys\/fs\/bpf\/app\/flows': parameter mismatch/;
const MEMBERS = '\t__u32 packets;\n\t__u32 bytes;\n\t__u32 unused;\n';
const NESTED = changed(
  [MEMBERS, '\tstruct { __u32 id; __u32 unused; } from;\n\tstruct { __u32 packets; __u32 bytes; } total;\n'],
  ['counts->packets', 'counts->from.id = 7;\n\t\tcounts->total.packets'],
  ['counts->bytes', 'counts->total.bytes'],
);
const OUTER = `
struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct counts);
} inner SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 8);
	__uint(key_size, 4);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__array(values, struct inner);
} flows SEC(".maps") = { .values = { [1] = &inner } };

SEC("socket")
int count(struct __sk_buff *packet)
{
	__u32 one = 1, three = 3;
	struct counts *counts;
	void *in = bpf_map_lookup_elem(&flows, &one);

	counts = in ? bpf_map_lookup_elem(in, &three) : 0;
	if (counts) {
		counts->packets += 1;
		counts->bytes += packet->len;
	}
	return 0;
}

char _license[] SEC("license") = "GPL";
`;
const MAP_IN_MAP = V1.slice(0, V1.indexOf('struct {')) + OUTER;

const CASES: readonly Case[] = [
  {
    what: 'a bigger map',
    old: V1,
    now: changed(['1024', '4096']),
    refusal: MISMATCH,
    counts: '{"packets":6,"bytes":276,"unused":0}',
  },
  {
    what: 'a wider counter',
    old: V1,
    now: changed(['__u32 packets', '__u64 packets']),
    refusal: MISMATCH,
    counts: '{"packets":6,"bytes":276,"unused":0}',
  },
  {
    what: 'a renamed member, elsewhere: libbpf notices nothing',
    old: V1,
    now: changed(
      [MEMBERS, '\t__u32 octets;\n\t__u32 packets;\n\t__u32 unused;\n'],
      ['counts->bytes', 'counts->octets'],
    ),
    options: '--rename bytes=octets',
    counts: '{"octets":276,"packets":6,"unused":0}',
  },
  {
    what: 'a new member',
    old: V1,
    now: changed(
      ['\t__u32 unused;', '\t__u32 unused;\n\t__u32 seen;'],
      ['packets += 1;', 'packets += 1;\n\t\tcounts->seen += 1;'],
    ),
    refusal: MISMATCH,
    options: '--set seen=100',
    counts: '{"packets":6,"bytes":276,"unused":0,"seen":103}',
  },
  {
    what: 'a removed member',
    old: V1,
    now: changed(['\t__u32 unused;\n', '']),
    refusal: MISMATCH,
    counts: '{"packets":6,"bytes":276}',
  },
  {
    what: 'a nested structure that has moved',
    old: NESTED,
    now: NESTED.replace(/(\tstruct .*\n)(\tstruct .*\n)/, '\t__u64 first;\n$2$1'),
    refusal: MISMATCH,
    counts: '{"first":0,"total":{"packets":6,"bytes":276},"from":{"id":7,"unused":0}}',
  },
  {
    what: 'inner maps of another size: libbpf reuses the outer map, but the kernel rejects the program',
    old: MAP_IN_MAP,
    now: MAP_IN_MAP.replace(/__u32 (packets|bytes);/g, '__u64 $1;').replace('max_entries, 4', 'max_entries, 16'),
    refusal: /invalid access to map value/,
    counts: '{"packets":6,"bytes":276,"unused":0}',
  },
];

t.test('libbpf as loader: refused, upgraded, reused, and counted on', { skip }, async (t) => {
  const one = await host(t, 'one');
  await typed(one, 'cc -Wall -Werror -o app app.c -lbpf');
  /** The map that is pinned: its id, size, and the values of all items, those of inner maps, too. */
  const pinned = async () => {
    const { maps } = JSON.parse(await typed(one, `bpfimg decode pinned:${PINS}/flows`));
    type Item = { value: unknown };
    const values = maps.filter(({ type }: { type: string }) => type !== 'hash_of_maps');
    const texts = values.flatMap(({ items }: { items: Item[] }) => items.map(({ value }) => JSON.stringify(value)));
    const [{ map_id, max_entries }] = maps;
    return { id: map_id as number, max: max_entries as number, values: texts as string[] };
  };
  for (const { what, old, now, refusal, options = '', counts } of CASES) {
    fs.writeFileSync(path.join(one.folder, 'old.bpf.c'), old);
    fs.writeFileSync(path.join(one.folder, 'now.bpf.c'), now);
    for (const name of ['old', 'now']) await typed(one, `${COMPILE} -c ${name}.bpf.c -o ${name}.bpf.o`);
    await typed(one, './app old.bpf.o');
    const before = await pinned();
    if (refusal !== undefined) {
      const { status, output } = await one.run('./app now.bpf.o');
      t.not(status, 0, what);
      t.match(output, refusal, what);
      t.same(await pinned(), before, `${what}: nothing has changed`);
    }
    t.equal((await one.run(`bpfimg verify pinned:${PINS} --like now.bpf.o`)).status, 1, what);
    await typed(one, `bpfimg replay pinned:${PINS} --like now.bpf.o ${options} --pin ${PINS} --swap`);
    const made = await pinned();
    t.not(made.id, before.id, what);
    const printed = await typed(one, './app now.bpf.o');
    const after = await pinned();
    t.equal(after.id, made.id, `${what}: the new program counts in the map that bpfimg has made`);
    t.ok(after.values.includes(counts), `${what}: ${after.values.join(' ')}`);
    if (!what.startsWith('inner')) t.match(printed, /packets 6/, what);
    t.equal(await typed(one, `bpfimg verify pinned:${PINS}/flows --like now.bpf.o`), 'sound\n', what);
    await typed(one, `bpfimg swap rollback ${PINS}`);
    t.same(await pinned(), before, `${what}: the old map is as it was`);
    await typed(one, './app old.bpf.o');
    t.not((await pinned()).values.join(), before.values.join(), `${what}: the old program counts on`);
    await typed(one, `rm -r ${PINS}`);
  }
});

t.test('the systemd unit', { skip: await skipWithoutMaps() }, async (t) => {
  const one = await host(t, 'one');
  const unit = 'bpfimg-maps@app';
  const saved = '/var/lib/bpfimg/app';
  await typed(one, 'cp bpfimg-maps@.service /etc/systemd/system/');
  await typed(one, `systemctl enable --now ${unit}`);
  await typed(one, `[ ! -e ${saved} ] && [ ! -e ${PINS} ]`);
  await one.run('systemctl reboot');
  t.not((await one.run(`ls ${saved}`)).status, 0, 'nothing is pinned: nothing is saved');

  await typed(one, `mkdir -p ${PINS}/deep`);
  const create = (pin: string, more: string) =>
    typed(one, `bpftool map create ${pin} type hash key 4 value 4 entries 8 name ${path.basename(pin)} ${more}`);
  for (const name of ['a', 'b', 'deep/c']) await create(`${PINS}/${name}`, '');
  await typed(one, `ln ${PINS}/a ${PINS}/a_too`);
  await typed(one, `bpftool map update pinned ${PINS}/a key 1 0 0 0 value 2 0 0 0`);
  await create('/sys/fs/bpf/inner', '');
  await typed(
    one,
    `bpftool map create ${PINS}/outer type hash_of_maps key 4 value 4 entries 8 name outer inner_map pinned /sys/fs/bpf/inner`,
  );
  await typed(one, `bpftool map update pinned ${PINS}/outer key 1 0 0 0 value pinned /sys/fs/bpf/inner`);
  await typed(one, `bpftool map freeze pinned ${PINS}/b`);
  await typed(one, 'rm /sys/fs/bpf/inner');
  const shape = async () => {
    const { maps } = JSON.parse(await typed(one, `bpfimg decode pinned:${PINS}`));
    return maps.map(({ name, max_entries, frozen, items, meta }: Record<string, unknown>) => {
      return {
        name,
        max_entries,
        frozen,
        items: name === 'outer' ? (items as []).length : items,
        pins: (meta as { pins?: string[] }).pins,
      };
    });
  };
  const ids = async () => JSON.parse(await typed(one, `bpfimg list pinned:${PINS} --json 2>/dev/null`));
  const [before, names] = [await shape(), await typed(one, `find ${PINS} | sort`)];
  t.equal(before.length, 4, 'two maps, a map of maps and its inner map');
  await typed(one, 'systemctl reboot');
  t.same(await shape(), before, 'after the reboot all is as before');
  t.equal(await typed(one, `find ${PINS} | sort`), names.replace(/.*deep.*\n/g, ''));
  t.equal(await typed(one, 'stat -c "%a %n" /var/lib/bpfimg'), '700 /var/lib/bpfimg\n');
  t.match(await typed(one, `stat -c %a ${saved} ${saved}/*`), /^700\n(600\n){3}$/);

  const running = await ids();
  await typed(one, `systemctl restart ${unit}`);
  t.same(await ids(), running, 'maps that are there are not touched');

  await typed(one, `systemctl stop ${unit} && cp -a ${saved} whole && truncate -s -1 ${saved}/bpfmap-data.img`);
  const sums = async () => typed(one, `cd ${saved} && find . -type f | sort | xargs sha256sum; cd - >/dev/null`);
  const damaged = await sums();
  for (let i = 0; i < 2; i++) {
    t.match(await one.run('systemctl reboot'), { status: 1, output: /failed/ }, 'a damaged dump');
    t.not((await one.run(`ls ${PINS}`)).status, 0, 'all maps or none');
    await typed(one, `mkdir ${PINS}`);
    await create(`${PINS}/a`, '');
  }
  t.equal(await sums(), damaged, 'and is not saved over');
  await typed(one, `bpftool map update pinned ${PINS}/a key 1 0 0 0 value 5 0 0 0`);
  await typed(one, `bpfimg replay whole --map a --into ${PINS} --mode sum`);
  t.match(await typed(one, `bpfimg show pinned:${PINS}/a`), /01000000.*07000000/, 'what was saved is added later');

  await typed(one, `rm -r ${saved} && systemctl start ${unit} && systemctl reload ${unit}`);
  const good = await sums();
  await typed(one, `rm -r ${PINS}`);
  t.equal((await one.run(`systemctl reload ${unit}`)).status, 1);
  t.equal(await sums(), good, 'what was saved before stays');
});

const analyze = spawnSync('systemd-analyze', ['--version'], { stdio: 'ignore' }).error === undefined;
t.test('systemd accepts the unit', { skip: analyze ? false : 'needs systemd-analyze' }, async (t) => {
  const text = fs.readFileSync(path.join(EXAMPLES, 'bpfimg-maps@.service'), 'utf8');
  // systemd looks for programs where packages are installed.
  const installed = text.replace(/^(Exec\w+=)bpfimg /gm, `$1${BPFIMG} `);
  t.not(installed, text);
  const folder = t.testdir({ 'bpfimg-maps@app.service': installed });
  const ran = spawnSync('systemd-analyze', ['verify', './bpfimg-maps@app.service'], { cwd: folder, encoding: 'utf8' });
  t.match(ran, { status: 0, stderr: '' });
  t.equal(ran.stdout, '');
});
