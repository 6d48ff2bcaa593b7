/** Maps as real software makes them: bpftool loads an object with libbpf, types, data sections, map in map and all. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { bpfimg, TOP, workFolder } from './helpers/command.js';
import { bpffs, skipWithoutMaps } from './helpers/kernel-live.js';

/** What bpftool prints, whether it is JSON or not: of floats it prints none. */
function printed(...args: readonly string[]): string {
  const { stdout, stderr, status } = spawnSync('bpftool', args, { encoding: 'utf8', maxBuffer: 1 << 26 });
  return status === 0 ? stdout : `failed: ${stderr}`;
}

/** Items in an order of their own: a hash table has another in each map. */
function sorted(dump: string): unknown {
  try {
    return (JSON.parse(dump) as unknown[]).map((item) => JSON.stringify(item)).sort();
  } catch {
    return dump.split(/[{}]/).sort().join('');
  }
}

t.test('libbpf loads an object: captured, destroyed, replayed', { skip: await skipWithoutMaps() }, async (t) => {
  const folder = workFolder();
  const pins = bpffs();
  t.teardown(() => {
    pins.remove();
    fs.rmSync(folder, { recursive: true });
  });
  const pin = (...parts: readonly string[]) => path.join(pins.folder, ...parts);
  fs.mkdirSync(pin('before'));
  const object = path.join(TOP, 'fixtures/btf/values.o');
  printed('prog', 'loadall', object, pin('programs'), 'pinmaps', pin('before'));
  const names = fs.readdirSync(pin('before'));
  t.ok(names.length > 10, `${names.length} maps`);

  // Some items, each byte of them another one.
  for (const name of names) {
    const [map] = [JSON.parse(printed('-j', 'map', 'show', 'pinned', pin('before', name)))];
    const { type, bytes_key: key, bytes_value: value, frozen } = map as Record<string, number | string>;
    if (!['hash', 'array', 'percpu_hash', 'percpu_array'].includes(String(type)) || frozen) continue;
    for (let item = 0; item < 3; item++) {
      const bytes = (size: number, first: number) =>
        Array.from({ length: size }, (_, i) =>
          String(i === 0 ? first : type === 'array' ? 0 : (item * 31 + i * 7) & 0x7f),
        );
      const keyBytes = Array.from({ length: key as number }, (_, i) => String(i === 0 ? item : 0));
      const valueBytes = bytes(value as number, item);
      spawnSync('bpftool', [
        'map',
        'update',
        'pinned',
        pin('before', name),
        'key',
        ...keyBytes,
        'value',
        ...valueBytes,
      ]);
    }
  }
  // An inner map as the object says, for the outer one would be empty.
  const inner = ['type', 'array', 'key', '4', 'value', '4', 'entries', '5', 'name', 'inner', 'flags', '0x1000'];
  t.equal(printed('map', 'create', pin('inner'), ...inner), '');
  const outer = pin('before', 'outer_map_with_long_name');
  t.equal(printed('map', 'update', 'pinned', outer, 'key', ...'123456', 'value', 'pinned', pin('inner')), '');

  const dumps = new Map(
    names.map((name) => [name, sorted(printed('-j', 'map', 'dump', 'pinned', pin('before', name)))]),
  );
  const shapes = new Map(
    names.map((name) => {
      const { id, bytes_memlock, btf_id, ...shape } = JSON.parse(
        printed('-j', 'map', 'show', 'pinned', pin('before', name)),
      );
      return [String(shape.name), { shape, types: printed('btf', 'dump', 'id', String(btf_id)), id, bytes_memlock }];
    }),
  );

  const all = names.flatMap((name) => ['--pinned', pin('before', name)]);
  const captured = bpfimg(['capture', ...all, '-D', path.join(folder, 'dump')]);
  t.equal(captured.status, 0, captured.stderr);
  fs.rmSync(pin('before'), { recursive: true });
  fs.rmSync(pin('programs'), { recursive: true, force: true });

  const replayed = bpfimg(['replay', path.join(folder, 'dump'), '--pin', pin('after'), '--verify', '--json']);
  t.equal(replayed.status, 0, replayed.stderr);
  const rows = (JSON.parse(replayed.stdout) as { maps: { name: string; pin: string; report: string }[] }).maps;
  t.ok(rows.length >= names.length, 'inner maps came along');
  for (const { name, pin: at, report } of rows) {
    if (!/^partial: it is empty/.test(report))
      t.match(report, /^(full|partial: captured partial)/, `${name}: ${report}`);
    const before = shapes.get(name);
    // Inner maps of an object have no pin of their own.
    if (before === undefined) continue;
    const shown = JSON.parse(printed('-j', 'map', 'show', 'pinned', at));
    for (const member of ['id', 'bytes_memlock', 'btf_id']) delete shown[member];
    t.same(shown, before.shape, name);
    const old = names.find((one) => one === name || one.replace(/^values_/, '.') === name.replace(/^values/, ''));
    if (old === undefined || /outer/.test(name)) continue;
    const dump = printed('-j', 'map', 'dump', 'pinned', at);
    if (!/^failed/.test(dump)) t.same(sorted(dump), dumps.get(old), `${name}, with its types`);
    const { btf_id } = JSON.parse(printed('-j', 'map', 'show', 'pinned', at)) as { btf_id?: number };
    if (btf_id !== undefined)
      t.equal(printed('btf', 'dump', 'id', String(btf_id)), before.types, `${name}: the same BTF`);
  }
});

t.test(
  'a CRIU dump, read by the types of its program, edited and replayed',
  { skip: await skipWithoutMaps() },
  async (t) => {
    const folder = workFolder();
    const pins = bpffs();
    t.teardown(() => {
      pins.remove();
      fs.rmSync(folder, { recursive: true });
    });
    const object = path.join(TOP, 'fixtures/btf/flowd.o');
    const text = bpfimg(['decode', path.join(folder, 'flowd'), '--map', 'flows', '--btf', object]).stdout;
    const edited = text.replace('"packets":84001,', '"packets":4242424242,');
    t.not(edited, text);
    t.equal(bpfimg(['encode', '-D', path.join(folder, 'edited')], { input: edited }).status, 0);
    const replayed = bpfimg([
      'replay',
      path.join(folder, 'edited'),
      '--pin',
      path.join(pins.folder, 'new'),
      '--verify',
    ]);
    t.equal(replayed.status, 0, replayed.stderr);
    const shown = printed('-j', 'map', 'dump', 'pinned', path.join(pins.folder, 'new/flows'));
    const items = JSON.parse(shown) as { formatted: { value: { packets: number } } }[];
    t.equal(items.length, 200);
    t.equal(
      items.filter(({ formatted }) => formatted.value.packets === 4242424242).length,
      1,
      'bpftool reads the same types',
    );
  },
);
