/** Any image, in any dialect, fed in any way, comes back byte for byte; an edit changes what it names. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { IMAGE_KINDS } from '../src/image/kinds.js';
import {
  decode,
  encode,
  everyByte,
  FORMS,
  type Form,
  formName,
  piped,
  roundTrips,
  sameBytes,
} from './helpers/codec.js';
import {
  blob,
  COMMON,
  dataMessage,
  entry,
  type Item,
  image,
  MAGIC,
  mapData,
  SERVICE,
  scalar,
  words,
} from './helpers/images.js';
import { bytesOf, messageOf } from './helpers/messages.js';
import { patience } from './helpers/needs.js';
import { Random } from './helpers/random.js';

t.setTimeout(patience(120_000));
fc.configureGlobal({ seed: 4, numRuns: 120 });

/** Runs a property as one assertion of its test. */
async function holds<T extends [unknown, ...unknown[]]>(
  t: { pass: (what: string) => void },
  what: string,
  property: fc.IAsyncPropertyWithHooks<T>,
  parameters: fc.Parameters<T> = {},
): Promise<void> {
  await fc.assert(property, parameters);
  t.pass(what);
}

const sizes = fc.oneof(fc.constantFrom(0, 1, 2, 4, 8, 16, 24, 57), fc.nat(300));
const seed = fc.nat(0xffffff);
const id = fc.oneof(fc.nat(400), fc.constantFrom(0xffffffff, 0x80000000));

/** A map of `count` items of one shape. */
const plainMap = fc
  .record({ id, keys: sizes, values: sizes, count: fc.nat(12), seed })
  .map(({ id, keys, values, count, seed }) => {
    const random = new Random(seed);
    return mapData(
      id,
      Array.from({ length: count }, (): Item => [random.bytes(keys), random.bytes(values)]),
    );
  });

/** Data whose totals are what they are: not `count` equal parts, or bytes without items, or items without bytes. */
const oddMap = fc
  .record({ id, keys: sizes, values: sizes, count: fc.oneof(fc.nat(5), fc.constant(0xffffffff)), seed })
  .map(({ id, keys, values, count, seed }) =>
    entry(dataMessage(id, keys, values, count), new Random(seed).bytes(keys + values)),
  );

/** A map whose message only `$raw` can rebuild: stretched varints, unknown fields, any order. */
const rawMap = fc
  .record({
    id,
    keys: fc.nat(9),
    values: fc.nat(9),
    count: fc.nat(4),
    width: fc.nat(9),
    seed,
    what: fc.uint8Array({ maxLength: 9 }),
  })
  .map(({ id, keys, values, count, width, seed, what }) => {
    const random = new Random(seed);
    const fields = [scalar(1, id, width + 1), scalar(2, keys * count), scalar(3, values * count), scalar(4, count)];
    fields.splice(random.below(5), 0, blob(77, what));
    if (random.below(2)) fields.reverse();
    return entry(Buffer.concat(fields), random.bytes((keys + values) * count));
  });

const heads = fc.constantFrom([COMMON], [SERVICE], []);

/** Images of map data of every sort. */
const dataImage = fc
  .tuple(heads, fc.array(fc.oneof(plainMap, oddMap, rawMap), { maxLength: 5 }))
  .map(([head, maps]) => Buffer.concat([words(...head, MAGIC.BPFMAP_DATA), ...maps]));

const form = fc.constantFrom(...FORMS);
/** Places to cut what is fed, as parts of its length. */
const cuts = fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 8 });
const places = (parts: readonly number[], length: number) => parts.map((part) => Math.floor(part * length));

t.test('map data comes back from every dialect', async (t) => {
  for (const form of FORMS) {
    await holds(
      t,
      formName(form),
      fc.asyncProperty(dataImage, (bytes) => roundTrips(bytes, [form])),
    );
  }
});

t.test('what is fed in pieces decodes and encodes the same', async (t) => {
  await holds(
    t,
    'cut anywhere',
    fc.asyncProperty(dataImage, form, cuts, async (bytes, form, parts) => {
      const text = await decode(bytes, form);
      assert.equal(await decode(piped(bytes, places(parts, bytes.length)), form), text);
      sameBytes(await encode(piped(text, places(parts, text.length))), bytes);
    }),
  );
  await holds(
    t,
    'a byte at a time',
    fc.asyncProperty(dataImage, form, async (bytes, form) => {
      const text = await decode(bytes, form);
      assert.equal(await decode(piped(bytes, everyByte(bytes)), form), text);
      sameBytes(await encode(piped(text, everyByte(text))), bytes);
    }),
    { numRuns: 60 },
  );
});

t.test('large and odd maps come back from every dialect, from a file and from a pipe', async (t) => {
  const random = new Random(5);
  const items = (count: number, keySize: number, valueSize: number): Item[] =>
    Array.from({ length: count }, () => [random.bytes(keySize), random.bytes(valueSize)]);
  const maps: Record<string, Buffer> = {
    'one-byte keys': mapData(1, items(256, 1, 8)),
    '64-KiB values': mapData(2, items(5, 4, 65536)),
    'values of 64 KiB and one byte': mapData(3, items(3, 4, 65537)),
    '64-KiB keys': mapData(4, items(3, 65536, 1)),
    'keys of 0 bytes (queue, stack)': mapData(5, items(300, 0, 100)),
    'values of 0 bytes (a set)': mapData(6, items(300, 100, 0)),
    'more than a window of small items': mapData(7, items(20_000, 16, 8)),
    'a value of several windows': mapData(8, items(2, 8, 1_000_003)),
    'one item': mapData(9, items(1, 4, 4)),
    'no item': mapData(10, []),
    'totals that do not divide': entry(dataMessage(11, 100_001, 200_003, 7), random.bytes(300_004)),
    'a count without bytes': entry(dataMessage(12, 0, 0, 0xffffffff)),
    'bytes without a count': entry(dataMessage(13, 3, 5, 0), random.bytes(8)),
  };
  for (const [what, data] of Object.entries({ ...maps, 'all of these': Buffer.concat(Object.values(maps)) })) {
    const bytes = image('BPFMAP_DATA', data);
    for (const form of FORMS) {
      const text = await decode(bytes, form);
      sameBytes(await encode(text), bytes, `${what}, ${formName(form)}`);
      assert.equal(
        await decode(piped(bytes, [7, 40, 70_000, 300_000]), form),
        text,
        `${what}, ${formName(form)}, piped`,
      );
      const end = text.length;
      sameBytes(
        await encode(piped(text, [1, 99, 65_537, 262_145, end >> 1, end - 1])),
        bytes,
        `${what}, ${formName(form)}, piped`,
      );
    }
    t.pass(what);
  }
});

t.test('what is left out is skipped, in a file and on a pipe', async (t) => {
  const random = new Random(8);
  const map = (id: number) => mapData(id, [[random.bytes(4), random.bytes(700_000)]]);
  const [first, second] = [map(1), map(2)];
  const bytes = image('BPFMAP_DATA', first, second, mapData(3, []));
  for (const form of FORMS) {
    const one = await decode(bytes, form, { maps: new Set([2]) });
    sameBytes(await encode(one), image('BPFMAP_DATA', second), formName(form));
    assert.equal(await decode(piped(bytes, [9, 300_000]), form, { maps: new Set([2]) }), one);
    const sizes = await decode(bytes, form, { noPayload: true });
    assert.equal(await decode(piped(bytes, [9, 300_000]), form, { noPayload: true }), sizes);
    t.pass(formName(form));
  }
});

t.test('an entry of several windows comes back', async (t) => {
  const ids = Buffer.concat([1, 2, 3, 4].map((no) => scalar(no, no)));
  const random = new Random(9);
  const threads = Array.from({ length: 100_000 }, () => scalar(5, random.below(10 ** random.below(9))));
  await roundTrips(image('PSTREE', entry(Buffer.concat([ids, ...threads])), entry(ids)));
  const pins = Array.from({ length: 5000 }, (_, i) => blob(10, Buffer.from(`/sys/fs/bpf/"${i}"\n`.repeat(i % 9))));
  await roundTrips(image('BPFMAP_META', entry(Buffer.concat([scalar(1, 1), ...pins]))));
  // Megabytes in one string: nothing on the way may recurse over its characters.
  const crit = [{ dialect: 'crit', pretty: false }] as const;
  await roundTrips(image('PSTREE', entry(Buffer.concat([ids, blob(77, random.bytes(3 << 20))]))), crit);
  await roundTrips(
    image('BPFMAP_META', entry(Buffer.concat([scalar(1, 1), blob(3, Buffer.alloc(1 << 18, '\x01é'))]))),
    crit,
  );
  const opts = Buffer.concat([1, 2, 3, 4, 5, 6].map((no) => scalar(no, 0)));
  const fown = Buffer.concat([1, 2, 3, 4, 5].map((no) => scalar(no, 0)));
  const numbers = [1, 2, 3, 4, 5, 6, 7, 8].map((no) => scalar(no, 1));
  const name = Buffer.alloc(3 << 20, 'x');
  await roundTrips(
    image('UNIXSK', entry(Buffer.concat([...numbers, blob(9, fown), blob(10, opts), blob(11, name)]))),
    crit,
  );
  t.pass();
});

t.test('other kinds come back from every dialect', async (t) => {
  for (const kind of IMAGE_KINDS.filter(({ extra }) => !extra)) {
    const images = fc
      .array(messageOf(kind.message), { maxLength: 3 })
      .map((models) =>
        Buffer.concat([
          words(...(kind.head === 'none' ? [] : [COMMON]), kind.magic),
          ...models.map((model) => entry(bytesOf(kind.message, model))),
        ]),
      );
    await holds(
      t,
      kind.name,
      fc.asyncProperty(images, form, async (bytes, form) => {
        const text = await decode(bytes, form);
        const values = (form.dialect === 'ndjson' ? text.trim().split('\n') : [text]).map((one) => JSON.parse(one));
        sameBytes(await encode(text), bytes, formName(form));
        // Through a tool that keeps numbers as doubles, too.
        const again = values.map((value) => JSON.stringify(value)).join('\n');
        if (form.dialect !== 'crit') sameBytes(await encode(again), bytes, `${formName(form)}, parsed`);
      }),
      { numRuns: 25 },
    );
  }
  const blobs = [0, 1, 56, 57, 58, 70_000].map((size, i) =>
    entry(Buffer.concat([scalar(1, i), scalar(2, size), blob(3, Buffer.from('vmlinux'))]), new Random(i).bytes(size)),
  );
  await roundTrips(image('BPFMAP_BTF', ...blobs));
  t.pass('BPFMAP_BTF');
});

// ---------------------------------------------------------------------------------------------------
// Edits, made as people make them: with a JSON tool that knows nothing of images.

interface JsonItem {
  key: string;
  value: string;
}
interface JsonMap {
  map_id: number;
  key_size?: number;
  value_size?: number;
  items: JsonItem[];
}
interface JsonImage {
  magic: string;
  entries: JsonMap[];
}

/** Texts that a JSON tool may make of a value. */
const tools: Readonly<Record<string, (value: unknown) => string>> = {
  'jq -c': (value) => JSON.stringify(value),
  jq: (value) => `${JSON.stringify(value, null, 2)}\n`,
  'jq -S': (value) =>
    JSON.stringify(
      reordered(value, (names) => names.sort()),
      null,
      2,
    ),
  'members reversed': (value) => JSON.stringify(reordered(value, (names) => names.reverse())),
  'tabs and CR LF': (value) => JSON.stringify(value, null, '\t').replaceAll('\n', '\r\n'),
  'blanks between everything': (value) =>
    JSON.stringify(value).replace(/"(?:[^"\\]|\\.)*"|[-\w.]+|[^\s]/g, (token) => ` \n${token}\t `),
};

function reordered(value: unknown, order: (names: string[]) => string[]): unknown {
  if (Array.isArray(value)) return value.map((element) => reordered(element, order));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    order(Object.keys(value)).map((name) => [name, reordered((value as Record<string, unknown>)[name], order)]),
  );
}

const toBytes = (maps: readonly JsonMap[]) =>
  image(
    'BPFMAP_DATA',
    ...maps.map(({ map_id, items }) =>
      mapData(
        map_id,
        items.map(({ key, value }): Item => [Buffer.from(key, 'hex'), Buffer.from(value, 'hex')]),
      ),
    ),
  );

/** One edit of a document; `position` picks the place. */
const EDITS: Readonly<Record<string, (maps: JsonMap[], position: number) => void>> = {
  'an item added': (maps, position) => {
    const map = maps[position % maps.length];
    const like = map?.items[0];
    if (like) map?.items.splice(position % (map.items.length + 1), 0, { ...like, value: like.value.toUpperCase() });
  },
  'an item removed': (maps, position) => {
    const items = maps[position % maps.length]?.items;
    items?.splice(position % Math.max(1, items.length), 1);
  },
  'a value changed': (maps, position) => {
    const items = maps[position % maps.length]?.items ?? [];
    const one = items[position % Math.max(1, items.length)];
    if (one) one.value = one.value.replaceAll('0', 'f');
  },
  'items reversed': (maps, position) => {
    maps[position % maps.length]?.items.reverse();
  },
  'a map emptied': (maps, position) => {
    const map = maps[position % maps.length];
    if (map) map.items = [];
  },
  'a map given another shape': (maps, position) => {
    const map = maps[position % maps.length];
    if (!map) return;
    delete map.key_size;
    delete map.value_size;
    map.items = map.items.map(({ key, value }) => ({ key: `${key}00`, value: value.slice(2) }));
  },
  'a map removed': (maps, position) => {
    maps.splice(position % maps.length, 1);
  },
  'a map id changed': (maps, position) => {
    const map = maps[position % maps.length];
    if (map) map.map_id = position;
  },
};

const wholeMap = fc
  .record({
    id,
    keys: fc.integer({ min: 1, max: 30 }),
    values: fc.integer({ min: 1, max: 70 }),
    count: fc.nat(9),
    seed,
  })
  .map(({ id, keys, values, count, seed }) => {
    const random = new Random(seed);
    return mapData(
      id,
      Array.from({ length: count }, (): Item => [random.bytes(keys), random.bytes(values)]),
    );
  });
const editable = fc.array(wholeMap, { minLength: 1, maxLength: 4 }).map((maps) => image('BPFMAP_DATA', ...maps));

t.test('items edited with a JSON tool become the image that was meant', async (t) => {
  for (const [what, edit] of Object.entries(EDITS)) {
    await holds(
      t,
      what,
      fc.asyncProperty(
        editable,
        fc.boolean(),
        fc.constantFrom(...Object.keys(tools)),
        fc.nat(),
        cuts,
        async (bytes, pretty, tool, position, parts) => {
          const document = JSON.parse(await decode(bytes, { dialect: 'items', pretty })) as JsonImage;
          edit(document.entries, position);
          const text = (tools[tool] as (value: unknown) => string)(document);
          const want = toBytes(document.entries);
          sameBytes(await encode(text), want, tool);
          sameBytes(await encode(piped(text, places(parts, text.length))), want, `${tool}, piped`);
        },
      ),
    );
  }
});

t.test('crit JSON rewritten by a JSON tool is the same image', async (t) => {
  for (const [name, tool] of Object.entries(tools)) {
    await holds(
      t,
      name,
      fc.asyncProperty(dataImage, form, async (bytes, { dialect, pretty }: Form) => {
        if (dialect === 'ndjson') return;
        const rewritten = tool(JSON.parse(await decode(bytes, { dialect, pretty })));
        sameBytes(await encode(rewritten), bytes);
      }),
      { numRuns: 60 },
    );
  }
});

t.test('ndjson through grep and jq: lines are items', async (t) => {
  const items = Array.from({ length: 500 }, (_, i): Item => [words(i), words(i * 7, i)]);
  const bytes = image('BPFMAP_DATA', mapData(1, items), mapData(2, []), mapData(3, items.slice(0, 9)));
  const lines = (await decode(bytes, 'ndjson')).split('\n').filter((line) => line !== '');
  t.equal(lines.length, 1 + 3 + 509);

  const grep = lines.filter((line) => !/^\{"key":"[0-9a-f]{2}01/.test(line));
  const odd = (list: Item[]) => list.filter(([key]) => key[1] !== 1);
  sameBytes(
    await encode(grep.join('\n')),
    image('BPFMAP_DATA', mapData(1, odd(items)), mapData(2, []), mapData(3, items.slice(0, 9))),
  );

  const jq = lines.map((line) =>
    JSON.stringify(
      reordered(JSON.parse(line), (names) => names.reverse()),
      null,
      1,
    ),
  );
  sameBytes(await encode(jq.join('\n')), bytes, 'members in another order, values over several lines');
  sameBytes(await encode(lines.join('\r\n')), bytes, 'CR LF');
  sameBytes(await encode(lines.join('')), bytes, 'no line ends at all');
  sameBytes(await encode(`\n\n${lines.join('\n\n')}\n\n`), bytes, 'blank lines');
  t.pass();
});

t.test('integers that a tool with doubles would change are text, but to crit', async (t) => {
  const fown = [1, 2, 3, 4, 5].map((no) => scalar(no, 0));
  const numbers = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => scalar(from + i, 1));
  const file = (memlock: bigint) => {
    const last = [scalar(11, memlock), scalar(12, 0), blob(13), scalar(14, 0)];
    return entry(Buffer.concat([...numbers(1, 3), blob(4, ...fown), ...numbers(5, 10), ...last]));
  };
  const wide = image('BPFMAP_FILE', ...[2n ** 53n - 1n, 2n ** 53n, 2n ** 64n - 1n].map(file));
  for (const form of FORMS) {
    const text = await decode(wide, form);
    const quote = form.dialect === 'crit' ? '' : '"';
    for (const number of [
      '9007199254740991',
      `${quote}9007199254740992${quote}`,
      `${quote}18446744073709551615${quote}`,
    ]) {
      t.match(text, new RegExp(`"memlock": ?${number},`), `${formName(form)}: ${number}`);
    }
  }
});

t.test('strings may be escaped as JSON allows', async (t) => {
  const bytes = image('BPFMAP_DATA', mapData(1, [[Buffer.from('abc'), Buffer.from([0xff, 0xfe, 0xfd, 0xbf])]]));
  for (const dialect of ['items', 'crit', 'ndjson'] as const) {
    const text = await decode(bytes, dialect);
    const escaped = text.replace(
      /"((?:[^"\\]|\\.)*)"/g,
      (_, inner: string) =>
        `"${(JSON.parse(`"${inner}"`) as string).replace(/[\s\S]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`)}"`,
    );
    if (dialect !== 'ndjson') sameBytes(await encode(escaped), bytes, dialect);
    sameBytes(await encode(text.replaceAll('/', '\\/')), bytes, `${dialect}, slashes`);
  }
  const capitals = (await decode(bytes, 'items')).replace(/"[0-9a-f]{6,}"/g, (hex) => hex.toUpperCase());
  sameBytes(await encode(capitals), bytes, 'capital hex digits');
  t.pass();
});

t.test('go-criu leaves out an extra without bytes', async (t) => {
  const text = '{"magic":"BPFMAP_DATA","entries":[{"map_id":3,"keys_bytes":0,"values_bytes":0,"count":0}]}';
  sameBytes(await encode(text), image('BPFMAP_DATA', mapData(3, [])));
  sameBytes(await encode(text.replaceAll(/\d/g, '"$&"')), image('BPFMAP_DATA', mapData(3, [])), 'numbers as text');
  t.pass();
});

t.test("old go-criu's names of members", async (t) => {
  const camel = (text: string) =>
    text.replace(
      /"([a-z0-9_]+)":/g,
      (_, name: string) => `"${name.replace(/_(.)/g, (_, c: string) => c.toUpperCase())}":`,
    );
  const data = image('BPFMAP_DATA', mapData(315, [[Buffer.from('ab'), Buffer.from('cde')]]));
  const text = camel((await decode(data, 'crit')).replaceAll(': ', ':'));
  t.match(text, /"mapId":315,/);
  sameBytes(await encode(text), data);
  for (const name of ['FILES', 'INVENTORY', 'PSTREE', 'INETSK']) {
    const kind = IMAGE_KINDS.find((one) => one.name === name) as (typeof IMAGE_KINDS)[number];
    for (const model of fc.sample(messageOf(kind.message), { numRuns: 10, seed: 7 })) {
      const head = kind.head === 'none' ? [] : [COMMON];
      const bytes = Buffer.concat([words(...head, kind.magic), entry(bytesOf(kind.message, model))]);
      sameBytes(await encode(camel(await decode(bytes, 'ndjson'))), bytes, name);
    }
  }
  await t.rejects(encode('{"magic":"IDS","entries":[{"vmId":1,"vm_id":1}]}'), {
    message: /member "vm_id" appears twice/,
  });
  await t.rejects(encode('{"magic":"IDS","entries":[{"vmIdea":1}]}'), { message: /unknown member/ });
});
