/** Checkpoints and restores of containers; ../containers.test.ts runs it by `enter`. With `all` it is every case. */
import * as fs from 'node:fs';
import t, { type Test } from 'tap';
import { BpfMap } from '../../src/kernel/map.js';
import { openSys } from '../../src/kernel/sys.js';
import { bpfimg, type Ran } from '../helpers/command.js';
import { until } from '../helpers/criu.js';
import { bpffs } from '../helpers/kernel-live.js';
import { types } from '../helpers/types.js';
import { buildRoot, Container, Podman, RUNTIMES, same } from './containers.js';

const all = process.argv[2] === 'all';
const root = buildRoot('/tmp/root');
const MiB = 1024 * 1024;

/** Maps of many kinds, and one with a value that is easy to find. */
const MAPS = [
  'map flows type=1 max=50 name=flows',
  'fill flows 30',
  'open reading flows ro',
  'map cpus type=6 value=8 max=4',
  'fill cpus 4',
  'map inner type=2 max=3',
  'fill inner 3',
  'map outer type=13 value=4 max=5 inner=inner',
  'put outer 07000000 inner',
  'close inner',
  'map cfg type=2 value=8 max=2 name=cfg',
  'set cfg 01000000 0900000000000000',
] as const;

function must(...args: readonly string[]): Ran {
  const done = bpfimg(args);
  if (done.status !== 0) throw new Error(`bpfimg ${args.join(' ')}: ${done.stderr}`);
  return done;
}

const criuBuild = (option: string) => must('criu', 'build', option).stdout;

t.test('a Debian that has just been installed, and the lines of the documentation', async (t) => {
  t.notOk(fs.existsSync('/etc/criu'));
  t.equal(
    criuBuild('--install'),
    '/usr/local/lib/bpfimg/bpfimg.so: built\n/etc/criu/default.conf: libdir /usr/local/lib/bpfimg: added\n',
  );
});

/** Checkpoint and restore of a container of runc or crun. */
async function roundTrip(t: Test, container: Container, maps: readonly string[] = MAPS): Promise<void> {
  const before = await container.witness.see();
  if (before.length === 0) await container.witness.tell(...maps);
  const held = await container.witness.see();
  container.checkpoint();
  container.delete();
  container.restore();
  same(t, await container.witness.see(), held);
}

for (const runtime of all ? RUNTIMES : (['runc'] as const)) {
  t.test(`${runtime}: checkpoint and restore`, async (t) => {
    await roundTrip(t, Container.start(t, runtime, root));
  });
}

/** A map that is wiped and comes back from an archive of this kind. */
async function exported(t: Test, podman: Podman, archive: string, ...options: readonly string[]): Promise<void> {
  podman.start('box');
  await podman.witness('box').tell(...MAPS);
  const before = await podman.witness('box').see();
  podman.checkpoint('box', archive, ...options);
  await podman.wipe();
  t.match(must('show', archive, '--map', 'cfg').stdout, /09 ?00/, 'bpfimg reads the archive');
  podman.restore(archive);
  same(t, await podman.witness('box').see(), before);
}

for (const runtime of all ? RUNTIMES : (['runc'] as const)) {
  for (const compress of all ? ['zstd', 'gzip', 'none'] : ['zstd']) {
    t.test(`podman with ${runtime}: export (${compress}), storage wiped, import`, async (t) => {
      const archive = `/tmp/${runtime}-${compress}.tar`;
      await exported(t, new Podman(runtime, t), archive, '--compress', compress);
      fs.rmSync(archive);
    });
  }
}

if (all) {
  for (const runtime of RUNTIMES) {
    t.test(`${runtime}: the container keeps running`, async (t) => {
      const container = Container.start(t, runtime, root);
      const { witness } = container;
      await witness.tell(...MAPS);
      const before = await witness.see();
      container.checkpoint('--leave-running');
      t.same(await witness.see(), before, 'it has noticed nothing');
      await witness.tell('set cfg 01000000 ffffffffffffffff');
      container.delete();
      container.restore();
      same(t, await container.witness.see(), before);
    });

    t.test(`${runtime}: limits of memory and processes`, async (t) => {
      const resources = { memory: { limit: 64 * MiB }, pids: { limit: 32 } };
      await roundTrip(t, Container.start(t, runtime, root, { linux: { resources } }));
    });

    t.test(`${runtime}: a bind mount of the BPF file system`, async (t) => {
      const { folder, remove } = bpffs();
      t.teardown(remove);
      const bind = { destination: '/data/bpf', type: 'bind', source: folder, options: ['rbind', 'rw'] };
      const container = Container.start(t, runtime, root, { mounts: [bind] });
      await container.witness.tell(...MAPS, 'pin flows /data/bpf/flows');
      await roundTrip(t, container);
      t.ok(fs.existsSync(`${folder}/flows`), 'the pin is still there');
      const [fd] = (await container.witness.tell('pin cfg /data/bpf/cfg')) as [object];
      t.ok(fd && fs.existsSync(`${folder}/cfg`), 'and it can pin more');
    });

    t.test(`podman with ${runtime}: the container keeps running; limits; a BPF file system`, async (t) => {
      const { folder, remove } = bpffs();
      t.teardown(remove);
      const podman = new Podman(runtime, t);
      podman.start('box', '--memory', '64m', '--pids-limit', '32', '--volume', `${folder}:/data/bpf`);
      const witness = podman.witness('box');
      await witness.tell(...MAPS, 'pin flows /data/bpf/flows');
      const before = await witness.see();
      podman.checkpoint('box', '/tmp/running.tar', '--leave-running');
      t.same(await witness.see(), before);
      await podman.wipe();
      podman.restore('/tmp/running.tar');
      same(t, await podman.witness('box').see(), before);
      t.ok(fs.existsSync(`${folder}/flows`));
      fs.rmSync('/tmp/running.tar');
    });
  }

  t.test('runc: a limit that is too low for bpfimg is said at once', async (t) => {
    const linux = { resources: { pids: { limit: 4 } } };
    const container = Container.start(t, 'runc', root, { linux });
    await container.witness.tell(...MAPS);
    container.checkpoint();
    container.delete();
    const before = Date.now();
    t.not(container.tryRestore().status, 0);
    t.ok(Date.now() - before < 20_000, 'without a minute of silence');
    t.match(container.log(), /Error \(bpfimg\): .*(threads|processes)/);
  });

  // Not crun: of 1.21, CRIU refuses the device files in a user namespace, with maps or without.
  t.test('runc: a user namespace, with maps that it inherits', async (t) => {
    const sys = await openSys(types);
    const map = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 8, maxEntries: 9, name: 'inherited' });
    map.update(Buffer.from('01000000', 'hex'), Buffer.from('1122334455667788', 'hex'));
    const ids = [{ containerID: 0, hostID: 100_000, size: 1000 }];
    const linux = { uidMappings: ids, gidMappings: ids };
    const container = Container.start(t, 'runc', root, { linux, owner: 100_000, fds: [map.fd] });
    map.close();
    await roundTrip(t, container);
    const [flows] = await container.witness.see();
    t.match(flows, { map_name: 'inherited', items: ['01000000=1122334455667788'] });
  });

  t.test('runc: a BPF file system of its own is external, or the checkpoint fails', async (t) => {
    const own = { destination: '/data/bpf', type: 'bpf', source: 'bpf' };
    const container = Container.start(t, 'runc', root, { mounts: [own] });
    await container.witness.tell(...MAPS, 'pin flows /data/bpf/flows');
    const before = await container.witness.see();
    t.throws(() => container.checkpoint(), { message: /FS mnt \.\/data\/bpf .* unsupported id \d+/ });
    t.same(await container.witness.see(), before, 'it goes on');
    fs.writeFileSync('/etc/criu/runc.conf', 'external mnt[/data/bpf]:bpffs\nexternal mnt[bpffs]:/sys/fs/bpf\n');
    t.teardown(() => fs.rmSync('/etc/criu/runc.conf'));
    await roundTrip(t, container);
  });

  t.test('an archive that bpfimg has changed', async (t) => {
    const podman = new Podman('runc', t);
    const archive = '/tmp/edited.tar.zst';
    await exported(t, podman, archive);
    const value = async () => {
      const [answer] = (await podman.witness('box').tell('get cfg 01000000')) as [{ value: string }];
      return answer.value;
    };
    t.equal(await value(), '0900000000000000');

    await podman.wipe();
    must('set', archive, 'cfg', '01000000', '0500000000000000');
    podman.restore(archive);
    t.equal(await value(), '0500000000000000', 'by set');

    await podman.wipe();
    const document = must('decode', archive).stdout;
    t.match(document, '0500000000000000');
    fs.writeFileSync('/tmp/maps.json', document.replaceAll('0500000000000000', '0700000000000000'));
    must('encode', '/tmp/maps.json', '-D', archive, '--force');
    podman.restore(archive);
    t.equal(await value(), '0700000000000000', 'by encode');
    fs.rmSync(archive);
  });
}

t.test('nothing is left', async (t) => {
  const names = () => fs.readdirSync('/proc').filter((pid) => /^\d+$/.test(pid) && isWitness(pid));
  await until(`these end: ${names()}`, () => names().length === 0);
  criuBuild('--uninstall');
  for (const name of ['/etc/criu', '/usr/local/lib/bpfimg']) t.notOk(fs.existsSync(name), name);
});

function isWitness(pid: string): boolean {
  try {
    return fs.readFileSync(`/proc/${pid}/cmdline`, 'latin1').startsWith('/witness');
  } catch {
    return false;
  }
}
