/** What is read from procfs and sysfs, on a tree made by the test. */
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import t from 'tap';
import {
  bpffsHint,
  bpffsMounts,
  commandOf,
  cpuCount,
  isBpffs,
  mapFdinfo,
  mapsOfProcess,
  openMaps,
  parseFdinfo,
  parseMapFdinfo,
  pinFiles,
  possibleCpus,
  processes,
} from '../src/kernel/proc.js';

const proc = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-proc-'));
t.teardown(() => fs.rmSync(proc, { recursive: true }));

const MAP = [
  'pos:\t0',
  'flags:\t02000002',
  'mnt_id:\t15',
  'ino:\t2062',
  'map_type:\t9',
  'key_size:\t16',
  'value_size:\t24',
  'max_entries:\t1024',
  'map_flags:\t0x2',
  'map_extra:\t0xffffffffffffffff',
  'memlock:\t107584',
  'map_id:\t377',
  'frozen:\t1',
  '',
];

/** A process of the tree: its name, and for each file descriptor where it points and its fdinfo. */
function process_(pid: number, command: string, files: Record<number, readonly [link: string, fdinfo: string]>): void {
  for (const folder of ['fd', 'fdinfo']) fs.mkdirSync(path.join(proc, `${pid}`, folder), { recursive: true });
  fs.writeFileSync(path.join(proc, `${pid}`, 'comm'), `${command}\n`);
  for (const [fd, [link, fdinfo]] of Object.entries(files)) {
    fs.symlinkSync(link, path.join(proc, `${pid}`, 'fd', fd));
    if (fdinfo !== '') fs.writeFileSync(path.join(proc, `${pid}`, 'fdinfo', fd), fdinfo);
  }
}

t.test('fdinfo is read by name', async (t) => {
  const all = {
    id: 377,
    type: 9,
    keySize: 16,
    valueSize: 24,
    maxEntries: 1024,
    flags: 2,
    extra: 0xffff_ffff_ffff_ffffn,
    memlock: 107584,
    frozen: true,
    access: 'rw',
    cloexec: true,
  };
  t.same(parseMapFdinfo(MAP.join('\n')), all);
  t.same(parseMapFdinfo([...MAP].reverse().join('\n')), all, 'in any order');
  t.same(parseMapFdinfo(['owner_prog_type:\t6', 'new thing:\tx:y', ...MAP].join('\n')), all, 'and with more in it');
  const old = MAP.filter((line) => !/^(map_extra|frozen|memlock)/.test(line)).join('\n');
  t.match(parseMapFdinfo(old), { extra: undefined, memlock: undefined, frozen: undefined }, 'old kernels say less');
  t.equal(parseMapFdinfo('pos:\t0\nflags:\t02\nprog_id:\t5\n'), undefined, 'a program');
  for (const [flags, access] of [
    ['02000000', 'ro'],
    ['02000001', 'wo'],
    ['02', 'rw'],
  ] as const) {
    t.equal(parseMapFdinfo(MAP.join('\n').replace('02000002', flags))?.access, access);
    t.equal(parseMapFdinfo(MAP.join('\n').replace('02000002', flags))?.cloexec, flags !== '02');
  }
  t.equal(parseFdinfo('a:\t1\nb:  x:y \nnothing\n').get('b'), 'x:y');
});

t.test('processes and their maps', async (t) => {
  const other = MAP.join('\n').replace('377', '378').replace('02000002', '02000000');
  process_(300, 'three', { 10: ['anon_inode:bpf-map', other], 9: ['anon_inode:bpf-map', MAP.join('\n')] });
  process_(20, 'two words\\', {
    0: ['/dev/null', 'pos:\t0\n'],
    3: ['anon_inode:bpf-map', MAP.join('\n')],
    4: ['anon_inode:bpf-prog', 'prog_id:\t1\n'],
    // Closed between readlink and reading.
    5: ['anon_inode:bpf-map', ''],
    // A file that only calls itself so.
    6: ['/tmp/anon_inode:bpf-map', MAP.join('\n')],
  });
  fs.mkdirSync(path.join(proc, '400')); // ended: its fd folder cannot be read
  fs.writeFileSync(path.join(proc, 'uptime'), '');
  t.same(processes(proc).sort(), [20, 300, 400]);
  const { open, hidden } = openMaps(proc);
  t.same(
    open.map(({ holder, map }) => [holder.pid, holder.command, holder.fd, holder.access, map.id]),
    [
      [20, 'two words\\', 3, 'rw', 377],
      [300, 'three', 9, 'rw', 377],
      [300, 'three', 10, 'ro', 378],
    ],
  );
  t.equal(hidden, 0);
  t.equal(mapsOfProcess(400, proc), 'gone');
  t.equal(mapsOfProcess(5000, proc), 'gone');
  t.equal(commandOf(5000, proc), '');
  t.equal(mapFdinfo(20, 4, proc), undefined);
  t.equal(mapFdinfo(20, 77, proc), undefined);
});

t.test('mounts of BPF file systems', async (t) => {
  t.same(bpffsMounts(proc), [], 'no mountinfo, no mounts');
  t.equal(bpffsHint(proc), 'mount one with: mount -t bpf bpf /sys/fs/bpf');
  const mounts = path.join(proc, 'mounts of bpf');
  fs.mkdirSync(path.join(mounts, 'sub'), { recursive: true });
  fs.writeFileSync(path.join(mounts, 'a pin'), '');
  fs.writeFileSync(path.join(mounts, 'sub', 'deep'), '');
  fs.symlinkSync('..', path.join(mounts, 'sub', 'loop'));
  fs.mkdirSync(path.join(proc, 'self'));
  const point = mounts.replaceAll(' ', '\\040');
  const info = [
    '22 1 0:20 / / rw shared:1 - ext4 /dev/vda rw',
    `31 22 0:30 / ${point} rw,nosuid shared:5 master:1 - bpf bpf rw,mode=700`,
    '32 22 0:30 / /a/second/look/at/it rw - bpf bpf rw',
    '33 22 0:31 / /gone rw - bpf bpf rw',
    `35 31 0:33 / ${point} rw - bpf bpf rw`,
    '34 22 0:32 / /bpf rw - tmpfs bpf rw',
    '',
  ];
  fs.writeFileSync(path.join(proc, 'self', 'mountinfo'), info.join('\n'));
  t.same(bpffsMounts(proc), [mounts, '/gone']);
  t.equal(bpffsHint(proc), `one is mounted at ${mounts}`);
  t.same(
    [...pinFiles(proc)].map(String).sort(),
    [path.join(mounts, 'a pin'), path.join(mounts, 'sub', 'deep')],
    'links are not followed',
  );
  t.equal(isBpffs(mounts), false);
  t.equal(isBpffs(path.join(mounts, 'none')), undefined);
});

t.test('possible CPUs', async (t) => {
  t.equal(cpuCount('0\n'), 1);
  t.equal(cpuCount('0-3\n'), 4);
  t.equal(cpuCount('0-1,4,8-11\n'), 7);
  const file = path.join(proc, 'possible');
  fs.writeFileSync(file, '0-63\n');
  t.equal(possibleCpus(file), 64);
  fs.writeFileSync(file, '\n');
  t.throws(() => possibleCpus(file), /expected a list of CPUs/);
});
