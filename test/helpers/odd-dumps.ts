/** Dumps that say valid things in unusual ways: what encode must give back byte for byte. */
import { blob, COMMON, MAGIC, SERVICE, scalar, varint, words } from './images.js';
import type { Random } from './random.js';

/** A field: a number, bytes, or a message. */
type Field = readonly [no: number, value: number | bigint | Uint8Array | Fields];
type Fields = readonly Field[];

const chance = (random: Random, percent: number) => random.below(100) < percent;

/** A field that no message of CRIU's has. */
function unknown(random: Random): Buffer {
  const no = 200 + random.below(3000);
  switch (random.below(4)) {
    case 0:
      return scalar(no, random.below(2 ** 31), 1 + random.below(9));
    case 1:
      return blob(no, random.bytes(random.below(20)));
    case 2:
      return Buffer.concat([varint(no * 8 + 1), random.bytes(8)]);
    default:
      return Buffer.concat([varint(no * 8 + 5), random.bytes(4)]);
  }
}

/** Fields of messages here that may occur several times: `holders` and `references`. */
const LISTS = new Set([11, 13]);

/** A message's bytes: `odd` percent of what can be unusual is. */
export function message(fields: Fields, random: Random, odd: number): Buffer {
  const parts: Buffer[] = [];
  for (const [no, value] of fields) {
    if (typeof value === 'number' || typeof value === 'bigint') {
      // If a field occurs twice, the last one counts.
      if (chance(random, odd)) parts.push(scalar(no, random.below(3)));
      parts.push(scalar(no, value, chance(random, odd) ? 1 + random.below(10) : 1));
    } else if (value instanceof Uint8Array) parts.push(blob(no, value));
    else if (!LISTS.has(no) && value.length > 1 && chance(random, odd)) {
      // A message in two pieces is one.
      const cut = 1 + random.below(value.length - 1);
      for (const piece of [value.slice(0, cut), value.slice(cut)]) parts.push(blob(no, message(piece, random, odd)));
    } else parts.push(blob(no, message(value, random, odd)));
    if (chance(random, odd)) parts.push(unknown(random));
  }
  // Lists keep their order, and of pieces the last one counts: only whole fields move.
  if (chance(random, odd)) {
    const moved = random.below(parts.length);
    const [part] = parts.splice(moved, 1) as [Buffer];
    if (parts.every((other) => other[0] !== part[0])) parts.splice(random.below(parts.length + 1), 0, part);
    else parts.splice(moved, 0, part);
  }
  return Buffer.concat(parts);
}

/** The images of a dump by name; the plugin's table is bytes. */
export interface OddDump {
  readonly kind: 'criu' | 'plugin' | 'ours';
  readonly files: Readonly<Record<string, Uint8Array>>;
}

/** Types whose items are divided in a special way, and an unknown one. */
const TYPES = [1, 1, 2, 5, 6, 9, 11, 12, 13, 22, 27, 99];

interface OddMap {
  readonly id: number;
  readonly type: number;
  readonly key: number;
  readonly value: number;
  readonly attributes: Fields;
}

function randomMap(id: number, random: Random): OddMap {
  const type = random.of(TYPES);
  const key = random.of([0, 1, 4, 4, 8]);
  const value = random.of([0, 1, 4, 4, 8, 12]);
  const wide = random.of([0, 4096, 2n ** 53n, 2n ** 64n - 1n]);
  const attributes: Field[] = [
    [5, type],
    [6, key],
    [7, value],
    [8, id],
    [9, random.of([0, 1, 16, 0xffffffff])],
    [10, random.of([0, 1, 0x80, 0xffffffff])],
    [11, wide],
    [12, random.below(2)],
    [13, random.of([Buffer.from('flows'), Buffer.alloc(0), random.bytes(6), Buffer.from('f\xf6w', 'latin1')])],
    [14, random.below(3)],
  ];
  if (chance(random, 30)) attributes.push([15, random.of([0, 1, 2, 14])]);
  if (chance(random, 30)) attributes.push([16, random.of([0, 5, 2n ** 60n + 1n])]);
  return { id, type, key, value, attributes };
}

function mapFile(id: number, { attributes }: OddMap, random: Random): Fields {
  const fown = [1, 2, 3, 4, 5].map((no): Field => [no, chance(random, 10) ? 7 : 0]);
  const differs = chance(random, 20);
  const own = attributes.map(([no, value]): Field => (differs && no === 9 ? [no, 3] : [no, value]));
  return [[1, id], [2, random.of([0, 2, 0o2000002, 0x80000000])], [3, random.of([0, 9, 2n ** 63n])], [4, fown], ...own];
}

/** The data entries of a map: none, one, or several with the same bytes or others. */
function dataEntries({ id, type, key, value }: OddMap, random: Random, odd: number): Buffer[] {
  const perCpu = [5, 6].includes(type);
  const make = () => {
    const count = random.below(4);
    const keySize = chance(random, 15) ? random.below(6) : key;
    const valueSize = chance(random, 15) ? random.below(6) : perCpu ? Math.ceil(value / 8) * 16 : value;
    const bytes = [random.bytes(count * keySize), random.bytes(count * valueSize)] as const;
    // Totals that are no equal parts.
    return chance(random, 15) ? ([count, random.bytes(5), random.bytes(3)] as const) : ([count, ...bytes] as const);
  };
  const first = make();
  const all = [first];
  while (all.length < 3 && chance(random, 35)) all.push(chance(random, 50) ? first : make());
  if (chance(random, 15)) return [];
  return all.map(([count, keys, values]) => {
    const fields: Fields = [
      [1, id],
      [2, keys.length],
      [3, values.length],
      [4, count],
    ];
    const head = message(fields, random, odd);
    return Buffer.concat([words(head.length), head, keys, values]);
  });
}

/** A bpfmap_meta_entry. */
function facts({ id }: OddMap, random: Random): Fields {
  const fields: Field[] = [[1, id]];
  if (chance(random, 50)) fields.push([2, 2], [3, Buffer.from('6.1.0')]);
  if (chance(random, 30)) fields.push([4, random.of([1, 7])], [5, random.below(3)], [6, random.below(3)]);
  if (chance(random, 20)) fields.push([9, [1, 2, 3, 4, 5].map((no): Field => [no, no])]);
  if (chance(random, 30)) fields.push([10, random.bytes(5)], [10, Buffer.from('/sys/fs/bpf/x')]);
  while (chance(random, 30)) fields.push([11, [1, 2, 3, 4].map((no): Field => [no, random.below(3)])]);
  if (chance(random, 20)) fields.push([12, Buffer.from('partial')]);
  if (chance(random, 20))
    fields.push([
      13,
      [
        [1, random.bytes(4)],
        [5, 2n ** 60n + 1n],
      ] as Fields,
    ]);
  return fields;
}

/** The bytes of an entry with nothing after its message. */
function plain(bytes: Buffer): Buffer {
  return Buffer.concat([words(bytes.length), bytes]);
}

/** Puts what is in `lists` in one row, the order within each list kept. */
function mixed(lists: readonly Buffer[][], random: Random): Buffer[] {
  const left = lists.map((list) => [...list]);
  const all: Buffer[] = [];
  for (let some = left.filter((list) => list.length > 0); some.length > 0; some = some.filter((l) => l.length > 0)) {
    all.push(random.of(some).shift() as Buffer);
  }
  return all;
}

/**
 * A random dump.
 * @param btf blob of a BTF object to have in it
 */
export function oddDump(random: Random, btf: Uint8Array): OddDump {
  const kind = random.of(['criu', 'plugin', 'ours'] as const);
  const odd = random.of([0, 5, 20, 50]);
  const image = (name: keyof typeof MAGIC, entries: readonly Buffer[]) => {
    const head = chance(random, odd) ? random.of([[], [SERVICE]]) : [COMMON];
    return Buffer.concat([words(...head, MAGIC[name]), ...entries]);
  };
  const ids = [7, 8, 300, 0xffffffff].slice(0, 1 + random.below(4));
  const maps = ids.map((id) => randomMap(id, random));
  const files: Record<string, Uint8Array> = {};
  const own = kind === 'plugin' ? 'bpfimg' : 'bpfmap';
  let fileId = 0;
  const open: [number, OddMap][] = maps.flatMap((map) =>
    Array.from({ length: random.below(3) }, (): [number, OddMap] => [++fileId, map]),
  );
  // If an id occurs twice, the first one counts.
  if (kind !== 'plugin' && open.length > 0 && chance(random, 15)) open.push(random.of(open));
  const fown = [1, 2, 3, 4, 5].map((no): Field => [no, 0]);
  if (kind === 'criu') {
    const entries = open.map(
      ([id, map]): Fields => [
        [1, 19],
        [2, id],
        [21, mapFile(id, map, random)],
      ],
    );
    const other: Fields = [
      [1, 16],
      [2, 90],
      [
        15,
        [
          [1, 90],
          [5, fown],
        ] as Fields,
      ],
    ];
    files['files.img'] = image(
      'FILES',
      [...entries, other].map((fields) => plain(message(fields, random, odd))),
    );
  } else if (kind === 'plugin') {
    const owners = open.map(
      ([id]): Fields => [
        [1, 16],
        [2, id],
        [
          15,
          [
            [1, id],
            [5, fown],
          ] as Fields,
        ],
      ],
    );
    files['files.img'] = image(
      'FILES',
      owners.map((fields) => plain(message(fields, random, odd))),
    );
    files['bpfimg-files.txt'] = Buffer.from(
      open.map(([id, map]) => `${id.toString(16)} ${map.id} ${random.of(['0', '02', '02000002'])}\n`).join(''),
    );
    files['inventory.img'] = Buffer.concat([
      words(MAGIC.INVENTORY),
      plain(Buffer.concat([scalar(1, 2), blob(12, blob(12, Buffer.from('bpfimg')))])),
    ]);
    files['bpfimg-file.img'] = image(
      'BPFMAP_FILE',
      maps.map((map, i) => plain(message(mapFile(i + 1, map, random), random, odd))),
    );
  }
  if (kind === 'ours' || (kind === 'criu' && chance(random, 20))) {
    const entries = open.map(([id, map]) => plain(message(mapFile(id, map, random), random, odd)));
    if (chance(random, 90)) files['bpfmap-file.img'] = image('BPFMAP_FILE', entries);
  }
  const data = maps.map((map) => dataEntries(map, random, odd));
  if (chance(random, 90) || Object.keys(files).length === 0)
    files[`${own}-data.img`] = image('BPFMAP_DATA', mixed(data, random));
  if (kind !== 'criu' || chance(random, 30)) {
    const entries = maps.flatMap((map) => {
      const times = random.of([0, 1, 1, 1, 2]);
      return Array.from({ length: times }, () => plain(message(facts(map, random), random, odd)));
    });
    if (chance(random, 90)) files[`${own}-meta.img`] = image('BPFMAP_META', entries);
    const object = (id: number, bytes: Uint8Array) => {
      const head = message(
        [
          [1, id],
          [2, bytes.length],
          [3, random.of([Buffer.from('x.o'), random.bytes(3)])],
        ],
        random,
        odd,
      );
      return Buffer.concat([words(head.length), head, bytes]);
    };
    const objects = [object(1, btf), object(7, random.bytes(40)), object(1, btf), object(9, btf)];
    if (chance(random, 60)) files[`${own}-btf.img`] = image('BPFMAP_BTF', objects.slice(0, random.below(5)));
  }
  return { kind, files };
}
