/** Items as JSON of their types: what is decoded encodes again, byte for byte, and an edit changes what it says. */

import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { Btf } from '../src/btf/btf.js';
import { type BtfFile, type MapDefinition, readBtfFile } from '../src/btf/elf.js';
import { extractTypes } from '../src/btf/extract.js';
import { valueCodec } from '../src/btf/values.js';
import { viewOf } from '../src/bytes.js';
import { writeDocument } from '../src/dump/document.js';
import { encodeDocument } from '../src/dump/encode.js';
import { openDump } from '../src/dump/model.js';
import { TypeFinder, type TypeOptions } from '../src/dump/types.js';
import { BpfimgError } from '../src/errors.js';
import { bufferInput } from '../src/io/input.js';
import { MemoryOutput } from '../src/io/output.js';
import { BtfWriter } from './helpers/btf-writer.js';
import { bpfimg, contents, copyDump, TOP } from './helpers/command.js';
import { skipWithout } from './helpers/crit.js';
import { filesImage, folderOf, mapFile } from './helpers/dumps.js';
import { fixture } from './helpers/fixtures.js';
import { blob, entry, type Item, image, mapData, scalar } from './helpers/images.js';
import { bpffs, bpftool, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { Random } from './helpers/random.js';
import { dumpOf } from './helpers/replay.js';
import { types } from './helpers/types.js';

const VALUES = path.join(TOP, 'fixtures/btf/values.o');
const FLOWD = path.join(TOP, 'fixtures/btf/flowd.o');
const HASH = 1;
const PERCPU_HASH = 5;

interface Form {
  readonly lines?: boolean;
  readonly pretty?: boolean;
}
const FORMS: readonly Form[] = [{}, { pretty: true }, { lines: true }];

interface TypedMap {
  map_id: number;
  name: string;
  types?: Record<string, unknown>;
  meta?: Record<string, unknown>;
  items: { key: unknown; value?: unknown; values?: unknown[] }[];
}
interface Document {
  btf?: { btf_id: number; name?: string; blob: string }[];
  maps: TypedMap[];
}

/** A dump's document, without a process of its own. */
async function decoded(folder: string, form: Form = {}, options: TypeOptions = {}): Promise<string> {
  const dump = await openDump(folder);
  try {
    const forms = await new TypeFinder(dump, types, options).forms(dump.maps);
    const out = new MemoryOutput();
    const { lines = false, pretty = false } = form;
    await writeDocument(dump, dump.maps, types, out, { lines, pretty, noPayload: false, forms });
    return out.take().toString();
  } finally {
    dump.close();
  }
}

const parsed = async (folder: string, options: TypeOptions = {}) =>
  JSON.parse(await decoded(folder, {}, options)) as Document;

function encoded(text: string | object, folder: string): Promise<void> {
  const whole = typeof text === 'string' ? text : JSON.stringify(text);
  return encodeDocument(bufferInput(Buffer.from(whole), 'doc.json'), folder, fs.existsSync(folder), types);
}

/** The message of the error that `run` ends with. */
async function refusal(run: () => Promise<unknown>): Promise<string> {
  try {
    await run();
  } catch (error) {
    if (error instanceof BpfimgError) return error.message;
    throw error;
  }
  return 'no error';
}

function jq(text: string, ...args: string[]): string {
  const { status, stdout, stderr } = spawnSync('jq', args, { input: text, encoding: 'utf8', maxBuffer: 1 << 28 });
  if (status !== 0) throw new Error(stderr);
  return stdout;
}
const noJq = skipWithout('jq');

/** Noise, text, small numbers, or nearly nothing. */
function someBytes(random: Random, size: number): Buffer {
  const bytes = random.bytes(size);
  const kind = random.below(4);
  for (let i = 0; i < size; i++) {
    if (kind === 0 && random.below(4) > 0) bytes[i] = 0;
    if (kind === 1) bytes[i] = 0x61 + random.below(26);
    if (kind === 2) bytes[i] = i % 4 === 0 ? random.below(10) : 0;
  }
  return bytes;
}

const CPUS = 3;

/** A CRIU dump of maps as `definitions` have them, full of random bytes: padding, too. */
function randomDump(t: Test, definitions: readonly MapDefinition[], random: Random, items: number): string {
  const files: Buffer[] = [];
  const data: Buffer[] = [];
  for (const [i, { name, type = HASH, keySize = 4, valueSize = 4 }] of definitions.entries()) {
    const kernelName = name.slice(0, 15);
    files.push(mapFile({ id: i + 1, map_id: i + 70, type, key: keySize, value: valueSize, name: kernelName }));
    const perCpu = type === PERCPU_HASH || type === 6;
    const stride = perCpu ? Math.ceil(valueSize / 8) * 8 * CPUS : valueSize;
    const all: Item[] = Array.from({ length: random.below(items + 1) }, () => [
      someBytes(random, keySize),
      someBytes(random, stride),
    ]);
    data.push(mapData(i + 70, all));
    // A second entry with other bytes: `copies`.
    if (i % 5 === 0) data.push(mapData(i + 70, [[someBytes(random, keySize), someBytes(random, stride)]]));
  }
  return folderOf(t, { 'files.img': filesImage(...files), 'bpfmap-data.img': image('BPFMAP_DATA', ...data) });
}

const file = (name: string): BtfFile => readBtfFile(fixture(`btf/${name}`), { name });
const typed = ({ keyType, valueType, valueSize = 0 }: MapDefinition) => keyType + valueType > 0 && valueSize < 9000;

/** A dump as `bpfimg capture` makes it: one map with types of its own. */
function capturedDump(
  t: Test,
  w: BtfWriter,
  ids: { key: number; value: number },
  sizes: { key: number; value: number; type?: number },
  items: readonly Item[],
): string {
  const bytes = w.bytes();
  return folderOf(t, {
    'bpfmap-file.img': image('BPFMAP_FILE', entry(mapFile({ id: 1, map_id: 7, name: 'm', ...sizes }))),
    'bpfmap-data.img': image('BPFMAP_DATA', mapData(7, items)),
    'bpfmap-meta.img': image(
      'BPFMAP_META',
      entry(Buffer.concat([scalar(1, 7), scalar(4, 57), scalar(5, ids.key), scalar(6, ids.value)])),
    ),
    'bpfmap-btf.img': image(
      'BPFMAP_BTF',
      entry(Buffer.concat([scalar(1, 57), scalar(2, bytes.length), blob(3, Buffer.from('prog'))]), bytes),
    ),
  });
}

t.test('random bytes in maps of every kind of type come back', async (t) => {
  for (const [name, rounds] of [
    ['values.o', 20],
    ['special.o', 8],
  ] as const) {
    const definitions = file(name).maps.filter(typed);
    const random = new Random(name.length);
    const options = { btf: path.join(TOP, 'fixtures/btf', name) };
    for (let round = 0; round < rounds; round++) {
      const dump = randomDump(t, definitions, random, 6);
      const before = contents(dump);
      for (const form of FORMS) {
        const text = await decoded(dump, form, options);
        await encoded(text, dump);
        if (JSON.stringify(contents(dump)) !== JSON.stringify(before)) t.same(contents(dump), before, text);
        if (round > 0 || noJq) continue;
        await encoded(jq(text, '-S', '.'), dump);
        t.same(contents(dump), before, `${name}: through jq -S`);
        await encoded(jq(text, '-c', '.'), dump);
        t.same(contents(dump), before, `${name}: through jq -c`);
      }
      if (round > 0) continue;
      const { maps } = await parsed(dump, options);
      t.equal(maps.filter((map) => map.types !== undefined).length, definitions.length, 'every map has types');
    }
    t.pass(`${name}: ${definitions.length} maps, ${rounds} times`);
  }
});

t.test('one image', async (t) => {
  const dump = randomDump(t, file('values.o').maps.filter(typed), new Random(3), 5);
  const data = path.join(dump, 'bpfmap-data.img');
  const bytes = fs.readFileSync(data);
  for (const form of [[], ['--pretty'], ['--format', 'ndjson']]) {
    const { stdout, stderr } = bpfimg(['decode', data, '--typed', '--btf', VALUES, ...form]);
    t.equal(stderr, '');
    t.match(stdout, /"types":\s*\{\s*"btf_id":\s*1,\s*"key":\s*"struct flow_key"/);
    const image = path.join(dump, 'again.img');
    t.equal(bpfimg(['encode', '-o', image], { input: stdout }).stderr, '');
    t.ok(fs.readFileSync(image).equals(bytes));
    if (noJq) continue;
    t.equal(bpfimg(['encode', '-o', image], { input: jq(stdout, '-S', '.') }).stderr, '');
    t.ok(fs.readFileSync(image).equals(bytes), 'through jq -S');
  }
  t.notMatch(bpfimg(['decode', data]).stdout, '"types"', 'plain unless asked for');
  t.match(bpfimg(['decode', data, '--typed']).stderr, /no types are known; --btf FILE or --type/);
  t.match(bpfimg(['decode', '--typed'], { input: bytes }), { status: 2, stderr: /types need a dump/ });
  t.match(bpfimg(['decode', data, '--typed', '--format', 'crit']), { status: 2 });
  t.match(bpfimg(['decode', path.join(dump, 'files.img'), '--typed']), { status: 2, stderr: /items in a bpfmap-data/ });
});

t.test('a CRIU dump and the object of its program', async (t) => {
  const folder = t.testdir();
  const flowd = path.join(folder, 'flowd');
  copyDump(flowd);
  const before = contents(flowd);
  const { btf = [], maps } = await parsed(flowd, { btf: FLOWD });
  t.match(btf, [{ btf_id: 1, name: 'flowd.o' }]);
  t.match(maps[0], {
    types: { btf_id: 1, key: 'struct flow_key', value: 'struct flow_value' },
    items: [
      {
        key: { saddr: 0x0a005455, daddr: 0x0a00ffab, sport: 1612, dport: 53, proto: 17 },
        value: { packets: 84001, bytes: 17631453184, last_seen: 1700000084, state: 'TCP_CLOSE' },
      },
    ],
  });
  t.same(maps[1]?.items[0], { key: 0, value: 'rule-0: allow 10.0.0.0/16' });
  t.equal(maps[2]?.types, undefined, 'a map that the program does not define stays as it is');

  t.test('a new dump has the types', async (t) => {
    const text = await decoded(flowd, {}, { btf: FLOWD });
    const fresh = path.join(folder, 'fresh');
    await encoded(text, fresh);
    t.same(fs.readdirSync(fresh), ['bpfmap-btf.img', 'bpfmap-data.img', 'bpfmap-file.img', 'bpfmap-meta.img']);
    const image = JSON.parse(bpfimg(['decode', path.join(fresh, 'bpfmap-btf.img')]).stdout) as {
      entries: { extra: string }[];
    };
    t.ok(Buffer.from(image.entries[0]?.extra ?? '', 'base64').equals(file('flowd.o').btf.bytes));
    const meta = JSON.parse(bpfimg(['decode', path.join(fresh, 'bpfmap-meta.img')]).stdout) as { entries: object[] };
    const definition = file('flowd.o').find('flows') as MapDefinition;
    t.match(meta.entries[0], {
      btf_id: 1,
      btf_key_type_id: definition.keyType,
      btf_value_type_id: definition.valueType,
    });
    t.equal(await decoded(fresh), text, 'it says the same without being told');
    t.match(bpfimg(['verify', fresh]), { status: 0 });
    for (const args of [['--no-typed'], ['--format', 'ndjson'], ['--no-typed', '--pretty'], ['--typed']]) {
      const { stdout } = bpfimg(['decode', fresh, ...args]);
      t.equal(/"types"/.test(stdout), !args.includes('--no-typed'));
      const again = path.join(folder, `again ${args.join(' ')}`);
      t.equal(bpfimg(['encode', '-D', again], { input: stdout }).stderr, '');
      t.same(contents(again), contents(fresh), args.join(' '));
    }
    const one = JSON.parse(bpfimg(['decode', fresh, '--map', 'seen.tmp']).stdout) as Document;
    t.equal(one.btf, undefined, 'types are carried with the maps that have them');
    t.notMatch(bpfimg(['decode', fresh, '--map', 'cfg', '--nopl']).stderr, /./);
  });

  t.test('an edit changes what it says', async (t) => {
    const edit = async (change: (document: Document) => void, at: readonly [number, number][]) => {
      const document = await parsed(flowd, { btf: FLOWD });
      change(document);
      const dump = path.join(folder, 'edited');
      copyDump(dump);
      await encoded(document, dump);
      const after = contents(dump);
      fs.rmSync(dump, { recursive: true });
      t.same(
        Object.keys(after).filter((name) => after[name] !== before[name]),
        ['bpfmap-data.img'],
      );
      const [old, now] = [before, after].map((all) => Buffer.from(all['bpfmap-data.img'] as string, 'hex'));
      const changed: [number, number][] = [];
      for (const [i, byte] of (now as Buffer).entries()) if (byte !== old?.[i]) changed.push([i, byte]);
      t.same(changed, at);
    };
    const data = Buffer.from(before['bpfmap-data.img'] as string, 'hex');
    const value = (text: string) => data.indexOf(Buffer.from(text, 'hex'));
    // Map 377 has two open files, and so two entries.
    const first = value('214801000000000000a0ea1a04000000');
    const second = data.indexOf(data.subarray(first, first + 16), first + 1);
    t.ok(first > 0 && second > first);
    const flow = (document: Document) => document.maps[0]?.items[0] as { key: object; value: object };
    await edit(
      (one) => Object.assign(flow(one).value, { packets: 84002 }),
      [
        [first, 0x22],
        [second, 0x22],
      ],
    );
    await edit(
      (one) => Object.assign(flow(one).value, { state: 'TCP_LISTEN' }),
      [
        [first + 20, 10],
        [second + 20, 10],
      ],
    );
    const rule = data.indexOf('rule-0');
    await edit(
      ({ maps }) => Object.assign((maps[1] as TypedMap).items[0] as object, { value: 'rule-9: allow 10.0.0.0/16' }),
      [[rule + 5, 0x39]],
    );
    await edit(
      ({ maps }) => {
        (maps[1] as TypedMap).items[3] = { key: '03000000', value: 'FF'.repeat(64) };
      },
      Array.from({ length: 64 }, (_, i) => [data.indexOf('rule-3') + i, 0xff]),
    );
  });

  t.test('what does not fit is said, with its place', async (t) => {
    const text = bpfimg(['decode', flowd, '--btf', FLOWD]).stdout;
    const file = path.join(folder, 'bad.json');
    const fresh = path.join(folder, 'nothing');
    const rows: readonly [from: string | RegExp, to: string, message: string][] = [
      [
        '"sport":1612',
        '"sport":70000',
        '/maps/0/items/0/key/sport: __u16: must be a whole number from 0 to 65535, got 70000 (line 4, column 57)',
      ],
      [
        '"sport":1759',
        '"sport":-1',
        '/maps/0/items/1/key/sport: __u16: must be a whole number from 0 to 65535, got -1 (line 5, column 57)',
      ],
      [
        '"state":"TCP_CLOSE"',
        '"state":"OPEN"',
        '/maps/0/items/0/value/state: enum tcp_state: must be one of TCP_ESTABLISHED, TCP_SYN_SENT, TCP_SYN_RECV, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_TIME_WAIT, TCP_CLOSE, TCP_CLOSE_WAIT, … (10 in all), or a whole number from 0 to 255, got "OPEN" (line 4, column 161)',
      ],
      [
        '"proto":17',
        '"protocol":17',
        '/maps/0/items/0/key/protocol: struct flow_key: unknown member, expected one of saddr, daddr, sport, dport, proto (line 4, column 84)',
      ],
      ['"proto":17}', '"proto":17,"proto":6}', '/maps/0/items/0/key: member "proto" appears twice (line 4, column 84)'],
      [
        '"value":"rule-0',
        `"value":"${'x'.repeat(64)}rule-0`,
        '/maps/1/items/0/value: char[64]: text of 89 bytes, expected at most 64 (line 205, column 22)',
      ],
      ['"proto":17}', '"proto":17]', '/maps/0/items/0/key: expected "," or "}", found "]" (line 4, column'],
      [
        '"key":0,',
        '"key":{},',
        '/maps/1/items/0/key: __u32: must be a whole number from 0 to 4294967295, got an object',
      ],
      ['"key":0,', '"key":"0x0g",', '/maps/1/items/0/key: __u32: must be'],
      ['"key":0,', '', '/maps/1/items/0: member "key" is missing (line 205, column 5)'],
      ['"struct flow_key"', '"struct flow_kay"', '/maps/0/types/key: no type struct flow_kay in BTF 1 (flowd.o) (line'],
      ['"struct flow_key"', '"struct flow_value"', '/maps/0/types/key: struct flow_value has 24 bytes, key_size is 16'],
      ['"types":{"btf_id":1', '"types":{"btf_id":2', '/maps/0/types/btf_id: no BTF object 2 in the document\'s "btf"'],
      ['"types":{"btf_id":1', '"types":{"btf":1', '/maps/0/types: member "btf_id" is missing'],
      ['"types":{"btf_id":1,', '"types":{"btf_id":1,"btf_key_type_id":1,', '/maps/0/types/btf_key_type_id: type 1 is'],
      [
        '"types":{"btf_id":1,',
        '"types":{"btf_id":1,"btf_key_type_id":999,',
        'BTF 1 (flowd.o): BTF: there is no type 999',
      ],
      ['"blob":"n+sB', '"blob":"AAAA', '/maps/0/types/btf_id: BTF 1 (flowd.o): BTF: expected the magic number'],
      ['"blob":"n+sB', '"blob":"n+s', '/btf/0/blob: must be bytes in base64'],
      [/"blob":"[^"]*"/.exec(text)?.[0] as string, '"blobs":""', '/btf/0: member "blob" is missing (line 2, column 3)'],
      ['{"btf_id":1,"name"', '{"btf_id":1,"nam"', '/btf/0: unknown member "nam" (line 2, column 3)'],
      ['{"btf_id":1,"name"', '{"btf_id":-1,"name"', '/btf/0/btf_id: must be >= 0 (line 2, column 13)'],
    ];
    for (const [from, to, message] of rows) {
      const bad = text.replace(from, to);
      t.not(bad, text, String(from));
      fs.writeFileSync(file, bad);
      const { status, stderr } = bpfimg(['encode', file, '-D', fresh]);
      t.equal(status, 1);
      t.ok(stderr.startsWith(`bpfimg: ${file}: `) && stderr.includes(message), `${to.slice(0, 40)}: ${stderr}`);
      t.notOk(fs.existsSync(fresh));
    }
    const late = JSON.stringify({ ...(JSON.parse(text) as object), btf: undefined });
    const message = '/maps/0/types: the document has no "btf" before its maps';
    t.match(await refusal(() => encoded(late, fresh)), message);
    const { btf, ...rest } = JSON.parse(text) as Document;
    t.match(await refusal(() => encoded({ ...rest, btf }, fresh)), message);
  });

  t.test('members in any order', async (t) => {
    const { btf, maps, ...rest } = await parsed(flowd, { btf: FLOWD });
    const reversed = maps.map((map) => Object.fromEntries(Object.entries(map).reverse()));
    const mixed = maps.map(({ types, ...map }) => ({ ...map, ...(types ? { types } : {}) }));
    for (const all of [reversed, mixed]) {
      await encoded({ ...rest, btf, maps: all }, flowd);
      t.same(contents(flowd), before);
    }
    const items = maps.map((map) => ({
      ...map,
      items: map.items.map((one) => Object.fromEntries(Object.entries(one).reverse())),
    }));
    await encoded({ btf, maps: items, ...rest }, flowd);
    t.same(contents(flowd), before);
  });

  t.test('plain hex, where typed JSON is expected', async (t) => {
    const { maps: plain } = JSON.parse(bpfimg(['decode', flowd]).stdout) as Document;
    const document = await parsed(flowd, { btf: FLOWD });
    for (const [i, map] of document.maps.entries()) {
      for (const [j, one] of map.items.entries()) {
        const hex = plain[i]?.items[j] as { key: string; value: string };
        if (j % 3 === 0) one.key = hex.key;
        if (j % 3 === 1) one.value = { $raw: hex.value };
        if (j % 3 === 2) Object.assign(one, hex);
        if (map.types === undefined) Object.assign(one, hex);
      }
    }
    await encoded(document, flowd);
    t.same(contents(flowd), before);
  });
});

t.test("text that is a type's own and hex as well", async (t) => {
  // The same 16 characters: a number beyond 2^53, and eight bytes.
  const w = new BtfWriter();
  const u64 = w.int('unsigned long long', 8);
  const names = w.enum('words', 4, { DEADBEEF: 1, OTHER: 2 });
  const number = Buffer.alloc(8);
  number.writeBigUInt64LE(9007199254740993n);
  const dump = capturedDump(t, w, { key: u64, value: names }, { key: 8, value: 4 }, [
    [number, u32(1)],
    [Buffer.from('9007199254740993', 'hex'), Buffer.from('deadbeef', 'hex')],
  ]);
  const before = contents(dump);
  const document = await parsed(dump);
  t.match(document.maps[0]?.items, [{ key: '9007199254740993', value: 'DEADBEEF' }, { value: 0xefbeadde }]);
  await encoded(document, dump);
  t.same(contents(dump), before);
  Object.assign(document.maps[0]?.items[0] as object, { key: '0000000000000001', value: 'deadbeef' });
  await encoded(document, dump);
  const plain = JSON.parse(bpfimg(['decode', dump, '--no-typed']).stdout) as Document;
  t.same(plain.maps[0]?.items[0], { key: '0000000000000001', value: 'deadbeef' }, 'bytes');
});

t.test('per-CPU values', async (t) => {
  const w = new BtfWriter();
  const word = w.int('unsigned int', 4);
  const members = [
    { name: 'packets', type: w.int('unsigned long long', 8), at: 0 },
    { name: 'errors', type: word, at: 64 },
  ];
  const counters = w.struct('counters', 12, members);
  const value = (packets: number, errors: number, padding: number) => {
    const bytes = Buffer.alloc(16);
    bytes.writeBigUInt64LE(BigInt(packets));
    bytes.writeUInt32LE(errors, 8);
    bytes.writeUInt32LE(padding, 12);
    return bytes;
  };
  const dump = capturedDump(t, w, { key: word, value: counters }, { key: 4, value: 12, type: PERCPU_HASH }, [
    [u32(1), Buffer.concat([value(1, 2, 0), value(3, 4, 5), value(0, 0, 0)])],
    [u32(2), Buffer.concat([value(1, 2, 0), value(3, 4, 0), value(5, 6, 0)])],
  ]);
  const before = contents(dump);
  const document = await parsed(dump);
  t.same(document.maps[0]?.items, [
    {
      key: 1,
      values: [{ packets: 1, errors: 2 }, { $raw: '03000000000000000400000005000000' }, { packets: 0, errors: 0 }],
    },
    {
      key: 2,
      values: [
        { packets: 1, errors: 2 },
        { packets: 3, errors: 4 },
        { packets: 5, errors: 6 },
      ],
    },
  ]);
  for (const form of FORMS) {
    await encoded(await decoded(dump, form), dump);
    t.same(contents(dump), before);
  }
  Object.assign(document.maps[0]?.items[1]?.values?.[2] as object, { errors: 9 });
  (document.maps[0]?.items[0]?.values as unknown[])[0] = '010000000000000002000000';
  await encoded(document, dump);
  const now = await parsed(dump);
  t.same(
    now.maps,
    document.maps.map((map) => ({
      ...map,
      items: [{ ...map.items[0], values: now.maps[0]?.items[0]?.values }, map.items[1]],
    })),
  );
  t.same(now.maps[0]?.items[0]?.values?.[0], { packets: 1, errors: 2 });
  (document.maps[0]?.items[1]?.values as unknown[])[1] = { packets: 1, errors: -1 };
  t.match(
    await refusal(() => encoded(document, dump)),
    'doc.json: /maps/0/items/1/values/1/errors: unsigned int: must be a whole number from 0 to 4294967295, got -1',
  );
  (document.maps[0]?.items[1]?.values as unknown[]).length = 1;
  t.match(await refusal(() => encoded(document, dump)), /the values of all CPUs has 16 bytes, expected 48/);
});

t.test('large values', async (t) => {
  const w = new BtfWriter();
  const word = w.int('unsigned int', 4);
  for (const [size, isTyped] of [
    [200_000, true],
    [1_200_000, false],
  ] as const) {
    const value = w.array(word, size / 4);
    const bytes = new Random(size).bytes(size);
    const dump = capturedDump(t, w, { key: word, value }, { key: 4, value: size }, [
      [u32(1), bytes],
      [u32(2), bytes],
    ]);
    const before = contents(dump);
    for (const form of FORMS) {
      const text = await decoded(dump, form);
      await encoded(text, dump);
      t.ok(JSON.stringify(contents(dump)) === JSON.stringify(before), `${size} bytes come back`);
    }
    const { maps } = await parsed(dump);
    t.equal(Array.isArray(maps[0]?.items[0]?.value), isTyped);
    t.match(
      bpfimg(['decode', dump, '-o', '/dev/null']).stderr,
      isTyped
        ? /^$/
        : /^bpfimg: warning: map 7 \(m\): unsigned int\[300000\] has 1200000 bytes, more than 1048576: shown as bytes\n$/,
    );
  }
});

t.test('types named by hand', async (t) => {
  const flowd = path.join(t.testdir(), 'flowd');
  copyDump(flowd);
  const before = contents(flowd);
  const named = (...type: string[]) => ['decode', flowd, '--btf', VALUES, ...type.flatMap((one) => ['--type', one])];
  const decode = (...type: string[]) => {
    const { stdout, stderr, status } = bpfimg(named(...type));
    // Its own map of that name is another one.
    t.match(stderr, /^(.*map 377 \(flows\): struct flow.* shown as bytes\n){2}$/);
    t.equal(status, 0);
    return JSON.parse(stdout) as Document;
  };
  const document = decode('odd_sizes=:__u8[5]', 'pages=__u64:', '382=__u8:__u16', 'cfg=__u32:char[2][32]');
  const byName = new Map(document.maps.map((map) => [map.name, map]));
  t.same(byName.get('odd_sizes')?.items[0], { key: '1b51bd', value: [27, 1, 2, 3, 255] });
  t.equal(byName.get('pages')?.items[0]?.key, 5);
  t.same(byName.get('')?.items[0], { key: 60, value: 3600 });
  t.same(byName.get('cfg')?.items[0]?.value, ['rule-0: allow 10.0.0.0/16', '']);
  await encoded(document, flowd);
  t.same(contents(flowd), before);
  const fresh = path.join(flowd, 'fresh');
  await encoded(document, fresh);
  t.same(await parsed(fresh), document, 'a new dump says the same');

  const refused = (type: string, more: object) => t.match(bpfimg(named(type)), more, type);
  refused('cfg', { status: 2, stderr: /expected NAME=KEY:VALUE/ });
  refused('cfg=:', { status: 2 });
  refused('nothing=__u32:', { status: 1, stderr: /--type nothing: no such map/ });
  refused('cfg=struct no_such:', { status: 1, stderr: /--type cfg=struct no_such:: no struct no_such in .*values\.o/ });
  t.match(bpfimg(['decode', flowd, '--no-typed', '--btf', VALUES]), { status: 2 });
  t.match(bpfimg(['decode', flowd, '--btf', 'nowhere.o']), {
    status: 1,
    stderr: /nowhere\.o: cannot open it: no such/,
  });
  t.match(bpfimg(['decode', flowd, '--btf', path.join(flowd, 'files.img')]), {
    status: 1,
    stderr: /BTF: expected the magic/,
  });
  const size = /map 378 \(cfg\): __u64 \(.*values\.o\) has 8 bytes, key_size is 4: shown as bytes/;
  t.match(bpfimg(named('cfg=__u64:char[64]')), { status: 0, stderr: size, stdout: /"key":"00000000","value":"rule-0/ });
  const none = /values\.o: none of these maps; its maps: flows, bit_fields/;
  t.match(bpfimg(['decode', flowd, '--btf', VALUES, '--map', 'cfg']), { status: 0, stderr: none });
});

t.test('types taken out of a large object say the same', async (t) => {
  const kernel = '/sys/kernel/btf/vmlinux';
  const objects = ['values.o', 'values.eb.o', 'special.o'].map((name) => file(name).btf);
  if (fs.existsSync(kernel)) objects.push(Btf.parse(fs.readFileSync(kernel), { name: kernel }));
  const random = new Random(8);
  for (const btf of objects) {
    let seen = 0;
    const step = Math.ceil(btf.typeCount / 3000);
    for (let id = 1; id <= btf.typeCount; id += step) {
      const kind = btf.kind(id);
      if (!['INT', 'STRUCT', 'UNION', 'ENUM', 'ENUM64', 'ARRAY', 'TYPEDEF', 'DATASEC'].includes(kind)) continue;
      let size: number;
      try {
        size = valueCodec(btf, id).size;
      } catch {
        continue;
      }
      if (size > 4096) continue;
      const { blob, ids } = extractTypes(btf, [{ id, counts: [] }]);
      const own = Btf.parse(blob, { name: btf.name });
      own.check();
      const codec = valueCodec(own, ids[0] as number);
      const bytes = viewOf(someBytes(random, size));
      const [ours, theirs] = [codec, valueCodec(btf, id)].map((one) => JSON.stringify(one.decode(bytes)));
      if (ours !== theirs || codec.typeName !== valueCodec(btf, id).typeName)
        t.equal(ours, theirs, `${btf.name} ${id}`);
      seen++;
    }
    t.ok(seen > 10, `${btf.name}: ${seen} types`);
  }
});

t.test('maps whose names the kernel has cut to the same one', async (t) => {
  const parent = t.testdir();
  const w = new BtfWriter();
  const int = w.int('int', 4);
  const [u64, s64] = [w.int('u64', 8), w.int('s64', 8, { encoding: 1 })];
  const place = w.struct('place', 16, [
    { name: 'x', type: u64, at: 0 },
    { name: 'y', type: u64, at: 64 },
  ]);
  const define = (name: string, value: number) => {
    const members = [w.ptr(w.array(int, 1)), w.ptr(int), w.ptr(value)];
    const names = ['type', 'key', 'value'];
    const shape = w.struct(
      '',
      24,
      members.map((type, i) => ({ name: names[i] as string, type, at: 64 * i })),
    );
    return w.var(name, shape);
  };
  const section = (...vars: number[]) =>
    w.datasec(
      '.maps',
      24 * vars.length,
      vars.map((type, i) => [type, 24 * i, 24] as const),
    );
  section(define('connections_by_cpu', u64), define('connections_by_time', s64), define('connections_by_place', place));
  const object = path.join(parent, 'types.btf');
  fs.writeFileSync(object, w.bytes());
  const one = (value: number) => [[Buffer.alloc(4), Buffer.alloc(value, 0xff)] as const];
  const dump = dumpOf(
    parent,
    { id: 1, name: 'connections_by_', value: 16, items: one(16) },
    { id: 2, name: 'connections_by_', value: 8, items: one(8) },
  );
  const { status, stdout, stderr } = bpfimg(['decode', dump, '--btf', object]);
  t.equal(status, 0);
  const [places, others] = (JSON.parse(stdout) as Document).maps;
  t.match(places, { types: { value: 'struct place' } }, 'told by its size');
  t.equal(others?.types, undefined);
  t.equal(
    stderr,
    `bpfimg: warning: map 2 (connections_by_): ${object}: it may be any of connections_by_cpu, connections_by_time ` +
      '(--type 2=KEY:VALUE tells): shown as bytes\n',
  );
  // The pin of one has the whole name, which names no other.
  const document = JSON.parse(bpfimg(['decode', dump]).stdout) as { maps: object[] };
  document.maps[1] = { ...document.maps[1], meta: { pins: ['/sys/fs/bpf/connections_by_time'] } };
  bpfimg(['encode', '-D', 'pinned'], { cwd: parent, input: JSON.stringify(document) });
  const known = (...args: string[]) =>
    (JSON.parse(bpfimg(['decode', path.join(parent, 'pinned'), ...args]).stdout) as Document).maps;
  t.match(known('--map', '2', '--btf', object), [{ types: { value: 's64' }, items: [{ value: -1 }] }]);
  const byHand = known('--type', 'connections_by_time=:u64', '--type', '1=:struct place', '--btf', object);
  t.match(byHand, [{ types: { value: 'struct place' } }, { types: { value: 'u64' } }]);
});

t.test("a dump's own types of another byte order are not used", async (t) => {
  const w = new BtfWriter(false);
  const word = w.int('unsigned int', 4);
  const dump = capturedDump(t, w, { key: word, value: word }, { key: 4, value: 4 }, [[u32(1), u32(2)]]);
  const why = 'BTF 57: its types are big-endian, the values in images are little-endian';
  const warning = `bpfimg: warning: ${why}: shown as bytes\n`;
  const { stdout, stderr } = bpfimg(['decode', dump]);
  t.equal(stderr, warning);
  t.match(JSON.parse(stdout), { maps: [{ types: undefined, items: [{ key: '01000000', value: '02000000' }] }] });
  const before = contents(dump);
  await encoded(stdout, dump);
  t.same(contents(dump), before, 'they are kept');
  t.match(bpfimg(['show', dump]), { status: 0, stderr: warning, stdout: /01000000 .* 02000000/ });
  t.match(bpfimg(['diff', dump, dump]), { status: 0, stdout: '', stderr: warning }, 'said once, of both sides');
  t.match(JSON.parse(bpfimg(['verify', dump, '--json']).stdout), {
    findings: [{ code: 'unknown-btf', severity: 'warning', message: why }],
  });
  // A document that uses them would be encoded in their order.
  const using = stdout.replace('"items":', '"types":{"btf_id":57,"key":"unsigned int"},$&').replace('"01000000"', '1');
  t.match(bpfimg(['encode', '-D', path.join(dump, 'new')], { input: using }), {
    status: 1,
    stderr: /\/maps\/0\/types\/btf_id: BTF 57 \(prog\): its types are big-endian/,
  });
  t.match(bpfimg(['decode', dump, '--type', 'm=__u32:unsigned int']), { stderr: warning }, 'nor by hand');
});

t.test('what two sides of a diff lack is said once', async (t) => {
  const flowd = path.join(TOP, 'fixtures/flowd');
  const { status, stderr } = bpfimg(['diff', flowd, flowd, '--btf', VALUES]);
  t.equal(status, 0);
  t.match(stderr, /^(.*map 377 \(flows\): struct flow.* shown as bytes\n){2}$/, 'of keys, and of values');
});

t.test('types of another byte order are refused', async (t) => {
  const object = path.join(TOP, 'fixtures/btf/values.eb.o');
  for (const command of ['show', 'decode', 'verify']) {
    t.match(bpfimg([command, path.join(TOP, 'fixtures/flowd'), '--btf', object]), {
      status: 1,
      stderr: `bpfimg: ${object}: its types are big-endian, the values in images are little-endian\n`,
    });
  }
});

t.test('show', async (t) => {
  const flowd = path.join(t.testdir(), 'flowd');
  copyDump(flowd);
  const show = (...args: string[]) => {
    const { stdout, stderr } = bpfimg(['show', flowd, '--btf', FLOWD, '--limit', '1', ...args]);
    t.equal(stderr, '');
    return stdout.split('\n').slice(3).join('\n');
  };
  t.equal(
    show('--map', 'flows'),
    `map 377 flows: 200 items
      saddr      daddr  sport  dport  proto  │  packets        bytes   last_seen  state
  167793749  167837611   1612     53     17  │    84001  17631453184  1700000084  TCP_CLOSE
  … 199 more (--limit N shows N, 0 all)
`,
  );
  const { stdout } = bpfimg(['show', flowd, '--btf', FLOWD, '--types', '--map', 'flows']);
  t.match(
    stdout,
    /^\/\* map 377 flows: key struct flow_key, value struct flow_value \*\/\nstruct flow_key \{\n\t__u32 saddr;/,
  );
  t.match(stdout, '\tenum tcp_state state;');
  t.match(bpfimg(['show', flowd, '--types']), { status: 1, stderr: /no types are known/ });
  t.match(bpfimg(['show', flowd, '--types', '--json']), { status: 2 });
  t.match(bpfimg(['show', flowd, '--raw', '--btf', FLOWD]), { status: 2 });
  const json = bpfimg(['show', flowd, '--btf', FLOWD, '--json', '--limit', '1', '--map', 'cfg']).stdout;
  t.match((JSON.parse(json) as Document).maps[0]?.items, [{ key: 0, value: 'rule-0: allow 10.0.0.0/16' }]);
  const all = bpfimg(['show', flowd, '--btf', FLOWD, '--limit', '0', '--map', 'flows']).stdout;
  t.equal(all.split('\n').length, 3 + 2 + 200 + 1);

  const random = new Random(2);
  const dump = randomDump(t, file('values.o').maps.filter(typed), random, 9);
  const everything = bpfimg(['show', dump, '--btf', VALUES]);
  // One that CRIU would have written an inventory for.
  t.match(everything, { status: 0, stderr: /^bpfimg: warning: \S+inventory.img: it is missing, [^\n]*\n$/ });
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what must not reach a terminal
  t.notMatch(everything.stdout, /[\x00-\x09\x0b-\x1f\x7f-\x9f]/);
  const fresh = path.join(dump, 'fresh');
  t.equal(bpfimg(['encode', '-D', fresh], { input: bpfimg(['decode', dump, '--btf', VALUES]).stdout }).stderr, '');
  t.equal(bpfimg(['show', fresh, '--raw']).stdout, bpfimg(['show', dump]).stdout, '--raw shows bytes');
});

/** Bytes kept alive besides code and stacks. */
function inUse(): number {
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

t.test('200,000 typed items stream', async (t) => {
  const count = 200_000;
  const { keySize = 0, valueSize = 0 } = file('values.o').find('flows') as MapDefinition;
  const random = new Random(4);
  // Values that read well: 1000 of them, over and over.
  const some = Array.from({ length: 1000 }, () => {
    const bytes = Buffer.alloc(valueSize);
    bytes.writeUInt32LE(random.below(1e9));
    bytes.writeUInt32LE(random.below(1e9), 8);
    bytes.write('eth0', 24);
    return bytes;
  });
  const keys = Buffer.alloc(count * keySize);
  for (let i = 0; i < count; i++) keys.writeUInt32LE(i, i * keySize);
  const values = Buffer.concat(Array.from({ length: count }, (_, i) => some[i % some.length] as Buffer));
  const message = Buffer.concat([scalar(1, 7), scalar(2, keys.length), scalar(3, values.length), scalar(4, count)]);
  const dump = folderOf(t, {
    'files.img': filesImage(mapFile({ id: 1, map_id: 7, key: keySize, value: valueSize, max: count, name: 'flows' })),
    'bpfmap-data.img': image('BPFMAP_DATA', entry(message, keys, values)),
  });
  const before = fs.readFileSync(path.join(dump, 'bpfmap-data.img'));
  const text = path.join(dump, 'doc.json');
  const idle = inUse();
  let peak = 0;
  const watch = setInterval(() => {
    peak = Math.max(peak, inUse());
  }, 5);
  t.teardown(() => clearInterval(watch));
  const perItem = (from: bigint) => `${(Number(process.hrtime.bigint() - from) / 1000 / count).toFixed(2)} µs an item`;
  for (const lines of [false, true]) {
    const { openOutput } = await import('../src/io/output.js');
    const { openInput } = await import('../src/io/input.js');
    let from = process.hrtime.bigint();
    const opened = await openDump(dump);
    const forms = await new TypeFinder(opened, types, { btf: VALUES }).forms(opened.maps);
    const out = await openOutput(text);
    await writeDocument(opened, opened.maps, types, out, { lines, pretty: false, noPayload: false, forms });
    await out.commit();
    opened.close();
    t.comment(`decode: ${perItem(from)}, ${(fs.statSync(text).size / 2 ** 20) | 0} MiB of JSON`);
    from = process.hrtime.bigint();
    const input = await openInput(text);
    await encodeDocument(input, dump, true, types);
    input.close();
    t.comment(`encode: ${perItem(from)}`);
    t.ok(fs.readFileSync(path.join(dump, 'bpfmap-data.img')).equals(before));
  }
  t.ok(peak - idle < 150 * 2 ** 20, `${((peak - idle) / 2 ** 20) | 0} MiB of memory`);
});

t.test('a live map: captured, edited by its members, replayed', { skip: await skipWithoutMaps() }, async (t) => {
  const pins = bpffs();
  t.teardown(() => pins.remove());
  const flowd = path.join(t.testdir(), 'flowd');
  copyDump(flowd);
  // A map with types, made of a dump and an object file.
  const { stdout } = bpfimg(['decode', flowd, '--map', 'flows', '--btf', FLOWD]);
  const typedDump = path.join(flowd, 'typed');
  t.equal(bpfimg(['encode', '-D', typedDump], { input: stdout }).stderr, '');
  t.equal(bpfimg(['replay', typedDump, '--pin', pins.folder, '--require-btf']).status, 0);

  const captured = path.join(flowd, 'captured');
  t.equal(bpfimg(['capture', '--pinned', path.join(pins.folder, 'flows'), '-D', captured]).status, 0);
  const document = JSON.parse(bpfimg(['decode', captured]).stdout) as Document;
  t.match(document.maps[0], { types: { key: 'struct flow_key', value: 'struct flow_value' } });
  const chosen = document.maps[0]?.items[3] as { key: { saddr: number }; value: { packets: number; state: string } };
  chosen.value.packets = 123_456;
  chosen.value.state = 'TCP_LISTEN';
  const edited = path.join(flowd, 'edited');
  t.equal(bpfimg(['encode', '-D', edited], { input: JSON.stringify(document) }).stderr, '');
  t.same(fs.readFileSync(path.join(edited, 'bpfmap-btf.img')), fs.readFileSync(path.join(captured, 'bpfmap-btf.img')));
  const fresh = path.join(pins.folder, 'fresh');
  t.match(bpfimg(['replay', edited, '--pin', fresh, '--verify', '--require-btf']), { status: 0, stderr: '' });
  type Dumped = readonly { formatted: { key: { saddr: number }; value: { packets: number; state: unknown } } }[];
  const seen = bpftool('map', 'dump', 'pinned', path.join(fresh, 'flows')) as Dumped;
  const one = seen.find(({ formatted }) => formatted.key.saddr === chosen.key.saddr);
  t.match(one?.formatted.value, { packets: 123_456, state: 'TCP_LISTEN' }, 'bpftool shows the edit');
  t.equal(seen.length, 200);
});
