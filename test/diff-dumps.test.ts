/** diff() for programs: what it yields is what the command prints. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { type DumpDiffOptions, diffDumps } from '../src/diff/dumps.js';
import { openDump } from '../src/dump/model.js';
import { mapName } from '../src/dump/select.js';
import { TypeFinder } from '../src/dump/types.js';
import { bpfimg, TOP, workFolder } from './helpers/command.js';
import { filesImage, folderOf, mapFile } from './helpers/dumps.js';
import { image, item, mapData } from './helpers/images.js';
import { types } from './helpers/types.js';

const OBJECT = path.join(TOP, 'fixtures/btf/flowd.o');

/** What differs, as values. */
async function differences(left: string, right: string, options: DumpDiffOptions = {}, object?: string) {
  const [a, b] = [await openDump(left), await openDump(right)];
  try {
    const all = [];
    const finders = object === undefined ? {} : { a: finder(a, object), b: finder(b, object) };
    for await (const map of diffDumps(a, b, types, { ...options, finders })) {
      const changes = [];
      for await (const change of map.changes()) changes.push(change);
      const { attributes, counts, unknown } = map;
      const names = [map.a && mapName(map.a), map.b && mapName(map.b)];
      all.push({ names, attributes, counts, unknown, changes });
    }
    return all;
  } finally {
    a.close();
    b.close();
  }
}
const finder = (dump: Awaited<ReturnType<typeof openDump>>, btf: string) => new TypeFinder(dump, types, { btf });

t.test('an edited dump', async (t) => {
  const cwd = workFolder();
  t.teardown(() => fs.rmSync(cwd, { recursive: true }));
  const [before, after] = [path.join(cwd, 'flowd'), path.join(cwd, 'after')];
  t.same(await differences(before, before), [], 'equal maps are not told');
  const document = JSON.parse(bpfimg(['decode', before, '--btf', OBJECT]).stdout) as {
    maps: { name: string; frozen: boolean; items: { key: unknown; value: Record<string, unknown> | string }[] }[];
  };
  const [flows, cfg, , odd] = document.maps;
  if (!flows || !cfg || !odd) throw new Error('maps are missing');
  (flows.items[3]?.value as Record<string, unknown>).packets = 7;
  const [gone] = flows.items.splice(10, 1);
  odd.items.push({ key: 'ffffff', value: '0102030405' });
  cfg.frozen = false;
  document.maps.splice(4, 1);
  t.equal(bpfimg(['encode', '-D', after], { input: JSON.stringify(document) }).stderr, '');

  const all = await differences(before, after, {}, OBJECT);
  t.match(all, [
    { names: ['flows', 'flows'], counts: { changed: 1, removed: 1, added: 0 } },
    { names: ['cfg', 'cfg'], attributes: [{ name: 'frozen', a: true, b: false }] },
    { names: ['odd_sizes', 'odd_sizes'], changes: [{ kind: 'added', b: { key: 'ffffff', value: '0102030405' } }] },
    { names: ['pages', undefined], counts: { changed: 0, removed: 0, added: 0 }, changes: [] },
  ]);
  t.equal(all.length, 4);
  t.match(all[0]?.changes, [
    { kind: 'changed', a: { value: { state: String } }, b: { key: flows.items[3]?.key, value: { packets: 7 } } },
    { kind: 'removed', a: gone as object },
  ]);
  const [{ changes: plain = [] } = {}] = await differences(before, after);
  t.match(plain, [{ kind: 'changed', a: { key: /^[0-9a-f]{32}$/, value: /^[0-9a-f]{48}$/ } }, { kind: 'removed' }]);
});

t.test('of every kind as many as are wanted, all of them counted', async (t) => {
  const folder = t.testdir();
  const dump = (values: readonly string[]) =>
    folderOf(
      { testdir: () => fs.mkdtempSync(path.join(folder, 'd')) },
      {
        'files.img': filesImage(mapFile({ id: 1, map_id: 7, value: 1 })),
        'bpfmap-data.img': image(
          'BPFMAP_DATA',
          mapData(
            7,
            values.map((value, i) => item(`0${i}000000`, value)),
          ),
        ),
      },
    );
  const [left, right] = [dump(['01', '02', '03', '04']), dump(['11', '12', '13'])];
  const [map] = await differences(left, right, { limit: 2 });
  t.match(map, { counts: { changed: 3, removed: 1, added: 0 }, changes: { length: 3 } });
});
