// `npm run demo`: the main job on the real dump in fixtures/, in a temporary folder and without privilege; then,
// for root with a BPF file system, the same with live maps.
// Prints each command as one would type it, and what it says; fails when any of them does not do its part.
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';

const top = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-demo-'));
const pins = `/sys/fs/bpf/bpfimg-demo-${process.pid}`;
const env = { ...process.env, PATH: `${path.join(top, 'dist')}:${process.env.PATH}` };
const [bold, faint, plain] =
  process.stdout.isTTY && !process.env.NO_COLOR ? ['\x1b[1m', '\x1b[2m', '\x1b[0m'] : ['', '', ''];

/** Runs a command line of the shell; `status` is the exit code it must have. */
function run(why, command, status = 0) {
  if (why !== '') process.stdout.write(`\n${faint}# ${why}${plain}\n`);
  process.stdout.write(`${bold}$ ${command}${plain}\n`);
  const done = spawnSync('sh', ['-c', command], { cwd: folder, env, encoding: 'utf8' });
  process.stdout.write(done.stdout + done.stderr);
  if (done.status !== status) throw new Error(`exit code ${done.status}, expected ${status}: ${command}`);
  return done.stdout;
}

try {
  fs.cpSync(path.join(top, 'fixtures/flowd'), path.join(folder, 'dump'), { recursive: true });
  run('What did CRIU dump of this process?', 'bpfimg show dump --map cfg --limit 4');
  run(
    'Its map data to JSON and back: the same image, byte for byte.',
    'bpfimg decode dump/bpfmap-data.img | bpfimg encode | cmp - dump/bpfmap-data.img && echo same',
  );
  run(
    'Let rule 2 deny: 616c6c6f77 is "allow", 64656e7920 is "deny ".',
    'bpfimg decode dump/bpfmap-data.img -o data.json',
  );
  run('', `sed -i '/"key":"02000000"/ s/616c6c6f77/64656e7920/' data.json`);
  run('Back to an image, as CRIU would have written it.', 'bpfimg encode data.json -o data.img');
  run('What is different now? That item, and nothing else.', 'bpfimg show dump/bpfmap-data.img --limit 0 >before.txt');
  run('', 'bpfimg show data.img --limit 0 >after.txt');
  const found = run('', 'diff before.txt after.txt', 1);
  if (found.match(/^[<>]/gm)?.length !== 2 || !found.includes('deny'))
    throw new Error('diff: expected one changed item');
  if (process.getuid() === 0 && isBpffs('/sys/fs/bpf')) live();
  else process.stdout.write('\nThe part with live maps needs root, and a BPF file system at /sys/fs/bpf.\n');
} finally {
  fs.rmSync(folder, { recursive: true, force: true });
  fs.rmSync(pins, { recursive: true, force: true });
}

function isBpffs(place) {
  return fs.existsSync(place) && fs.statfsSync(place).type === 0xcafe4a11;
}

/** Captures, edits and replays a map of this kernel. */
function live() {
  run('Now with live maps: one of this dump, made anew in the kernel.', `bpfimg replay dump --map cfg --pin ${pins}`);
  run('Capture it, as one would any map that is in use.', `bpfimg capture --pinned ${pins}/cfg -D before`);
  run('Let rule 2 deny, and give it room for more.', 'bpfimg decode before -o maps.json');
  run('', `sed -i -e '/"key":"02000000"/ s/616c6c6f77/64656e7920/' -e 's/"max_entries":4/"max_entries":8/' maps.json`);
  run('', 'bpfimg encode maps.json -D after');
  run('Back into the kernel, read back and compared.', `bpfimg replay after --pin ${pins}/new --verify`);
  run('What is different now?', `bpfimg capture --pinned ${pins}/new/cfg -D fresh`);
  run('', 'bpfimg show before --limit 4 >before.txt; bpfimg show fresh --limit 4 >after.txt');
  if (!run('', 'diff before.txt after.txt', 1).includes('deny')) throw new Error('diff: expected a changed item');

  fs.writeFileSync(path.join(folder, 'graph.json'), JSON.stringify(graph()));
  run(
    'A document may be written by hand: a counter for each CPU, and a map whose slot 1 is another map.',
    'bpfimg encode graph.json -D graph',
  );
  run('', `bpfimg replay graph --verify --pin ${pins}/graph`);
  run(
    'Captured again: the inner map comes along by itself.',
    `bpfimg capture --pinned ${pins}/graph/hits --pinned ${pins}/graph/tenants -D again`,
  );
  const shown = run('', 'bpfimg show again');
  if (!/tenants +array_of_maps/.test(shown) || !/cpu0/.test(shown) || !shown.includes('rules')) {
    throw new Error('show: expected three maps');
  }
}

/** A maps document: a per-CPU map, an inner map, and an outer one that leads to it. */
function graph() {
  const last = fs.readFileSync('/sys/devices/system/cpu/possible', 'utf8').trim().split('-').at(-1);
  const plain = { map_flags: [], map_extra: '0x0', frozen: false, ifindex: 0, memlock: 0 };
  const values = Array.from(
    { length: Number(last) + 1 },
    (_, cpu) => `${String(cpu + 1).padStart(2, '0')}00000000000000`,
  );
  const inner = { map_type: 1, key_size: 4, value_size: 4, max_entries: 16, map_flags: 0 };
  return {
    format: 'bpfimg-maps/1',
    maps: [
      {
        ...{ map_id: 1, name: 'hits', type: 'percpu_array', key_size: 4, value_size: 8, max_entries: 1, ...plain },
        items: [{ key: '00000000', values }],
      },
      {
        ...{ map_id: 2, name: 'rules', type: 'hash', key_size: 4, value_size: 4, max_entries: 16, ...plain },
        items: [{ key: '0a000001', value: '01000000' }],
      },
      {
        ...{ map_id: 3, name: 'tenants', type: 'array_of_maps', key_size: 4, value_size: 4, max_entries: 4, ...plain },
        meta: { inner },
        items: [{ key: '01000000', value: '02000000' }],
      },
    ],
  };
}
