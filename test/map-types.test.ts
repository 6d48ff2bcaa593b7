/** The table of docs/map-types.md is the plugins' own data, and there is a row for every type the kernel has. */

import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { MAP_FLAG } from '../src/kernel/abi.js';
import { BpfMap, type MapSpec } from '../src/kernel/map.js';
import { openSys } from '../src/kernel/sys.js';
import { mapSpec } from '../src/replay/plan.js';
import { TOP } from './helpers/command.js';
import { skipWithoutMaps } from './helpers/kernel-live.js';
import { types } from './helpers/types.js';

const PAGE = path.join(TOP, 'docs/map-types.md');

/** The table's rows. With UPDATE_DOCS=1 in the environment this test writes them. */
function rows(): string[] {
  return types.all().map(({ number, name, since, carries }) => {
    const { captured = 'items', replayed = 'items', lost = '' } = carries ?? {};
    return `| ${number} | \`${name}\` | ${types.plugin(number).name} | ${since} | ${captured} | ${replayed} | ${lost} |`;
  });
}

t.test('docs/map-types.md says what each plugin does with its types', async (t) => {
  const page = fs.readFileSync(PAGE, 'utf8');
  const lines = page.split('\n');
  const shown = lines.filter((line) => /^\| \d/.test(line));
  if (process.env.UPDATE_DOCS === '1') {
    const at = lines.findIndex((line) => /^\| \d/.test(line));
    lines.splice(at, shown.length, ...rows());
    fs.writeFileSync(PAGE, lines.join('\n'));
    return;
  }
  t.same(shown, rows());
});

t.test('every type has a row, and every row what MAP_CREATE demands', async (t) => {
  t.same(
    types.all().map(({ number, create }) => create && number),
    Array.from({ length: 35 }, (_, i) => i + 1),
    'none is left out',
  );
});

t.test('flags that the kernel sets by itself are not asked for', async (t) => {
  // Devmaps are read-only to programs since they are there; insn_array is younger than many a kernel.
  const own = types.all().filter(({ ownFlags = 0 }) => ownFlags !== 0);
  t.same(
    own.map(({ name }) => name),
    ['devmap', 'devmap_hash', 'insn_array'],
  );
  for (const { number, name } of own) {
    const fown = { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 };
    const message = {
      id: 1,
      map_id: 7,
      flags: 2,
      pos: 0,
      fown,
      map_type: number,
      key_size: 4,
      value_size: 16,
      max_entries: 1,
    };
    const file = { ...message, map_flags: MAP_FLAG.RDONLY_PROG, memlock: 0, frozen: false, map_name: name, ifindex: 0 };
    t.equal(mapSpec(file, types).flags, 0, name);
  }
});

/** Attributes with which each type can be created, as far as that goes without further objects. */
function sample(type: number): MapSpec {
  const rule = types.row(type)?.create;
  const size = (range: { min: number; step?: number } | undefined) => Math.max(range?.min ?? 4, range?.step ?? 0);
  return {
    type,
    keySize: type === 11 ? 8 : size(rule?.key),
    valueSize: size(rule?.value),
    maxEntries: size(rule?.entries),
    flags: rule?.needs ?? MAP_FLAG.NO_PREALLOC,
  };
}

t.test('the kernel has no type without a row', { skip: await skipWithoutMaps() }, async (t) => {
  const sys = await openSys(types);
  // Types are numbered in a row: what lies behind the last one we know, the kernel must refuse.
  const last = Math.max(...types.all().map(({ number }) => number));
  for (let type = 1; type <= last + 8; type++) {
    let made = false;
    try {
      BpfMap.create(sys, sample(type)).close();
      made = true;
    } catch {
      // Not there, or it wants more than sizes.
    }
    if (made) t.ok(types.row(type), `type ${type} has a row`);
  }
  t.notOk(types.row(last + 1));
  t.equal(types.get(last + 1).name, `type_${last + 1}`);
});
