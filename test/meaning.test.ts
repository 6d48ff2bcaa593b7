/** What bytes mean to people: numbers in network order, addresses, times; shown, taken as input, and never lost. */
import * as fs from 'node:fs';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { Btf } from '../src/btf/btf.js';
import { MEANINGS, type Meaning } from '../src/btf/meaning.js';
import { type CodecOptions, memberPaths, type ValueCodec, valueCodec } from '../src/btf/values.js';
import { viewOf } from '../src/bytes.js';
import { BpfimgError } from '../src/errors.js';
import { MemoryOutput } from '../src/io/output.js';
import type { Json } from '../src/value.js';
import { BtfWriter } from './helpers/btf-writer.js';
import { bpfimg, contents } from './helpers/command.js';
import { folderOf, mapFile } from './helpers/dumps.js';
import { blob, entry, type Item, image, mapData, scalar } from './helpers/images.js';

/** A key and a value with everything that means something. */
function writeTypes(w: BtfWriter): { key: number; value: number } {
  const u8 = w.int('unsigned char', 1);
  const u16 = w.int('unsigned short', 2);
  const u32 = w.int('unsigned int', 4);
  const u64 = w.int('unsigned long long', 8);
  const s64 = w.int('long long', 8, { encoding: 1 });
  const be16 = w.typedef('__be16', w.typedef('__u16', u16));
  const be32 = w.typedef('__be32', w.typedef('__u32', u32));
  const be64 = w.typedef('__be64', u64);
  const six = w.array(u8, 6);
  const state = w.enum('state', 4, { NEW: 0, OPEN: 1 });
  const inAddr = w.struct('in_addr', 4, [{ name: 's_addr', type: be32, at: 0 }]);
  const bytes16 = w.array(u8, 16);
  const in6 = w.union('', 16, [
    { name: 'u6_addr8', type: bytes16, at: 0 },
    { name: 'u6_addr32', type: w.array(be32, 4), at: 0 },
  ]);
  const in6Addr = w.struct('in6_addr', 16, [{ name: 'in6_u', type: in6, at: 0 }]);
  const key = w.struct('key', 8, [
    { name: 'saddr', type: be32, at: 0 },
    { name: 'port', type: w.typedef('port_t', be16), at: 32 },
    // Two bytes of padding.
  ]);
  const inner = w.struct('inner', 12, [
    { name: 'addr', type: u32, at: 0 },
    { name: 'flags', type: u32, at: 32 },
    { name: 'one', type: u32, at: 64, bits: 3 },
    { name: 'rest', type: u32, at: 67, bits: 29 },
  ]);
  const value = w.struct('value', 136, [
    { name: 'bytes', type: be64, at: 0 },
    { name: 'smac', type: six, at: 64 },
    { name: 'other', type: six, at: 112 },
    { name: 'peer', type: inAddr, at: 160 },
    { name: 'host', type: in6Addr, at: 192 },
    { name: 'seen', type: w.typedef('ktime_t', s64), at: 320 },
    { name: 'stamp', type: u64, at: 384 },
    { name: 'ports', type: w.array(be16, 2), at: 448 },
    { name: 'state', type: state, at: 480 },
    { name: 'in', type: w.array(inner, 2), at: 512 },
    { name: 'addrs', type: w.array(u32, 2), at: 704 },
    { name: 'v6', type: w.array(u32, 4), at: 768 },
    { name: 'pad', type: u64, at: 896 },
    { name: 'quick', type: u64, at: 960 },
    // And eight bytes of padding.
  ]);
  return { key, value };
}

const SIZES = { key: 8, value: 136 };

function typesOf(little = true): { btf: Btf; key: number; value: number; blob: Uint8Array } {
  const w = new BtfWriter(little);
  const ids = writeTypes(w);
  const bytes = w.bytes();
  return { btf: Btf.parse(bytes, { name: 'x' }), blob: bytes, ...ids };
}

const unhex = (text: string) => Buffer.from(text.replaceAll(' ', ''), 'hex');

function encode(codec: ValueCodec, value: Json): Buffer {
  const bytes = Buffer.alloc(codec.size, 0xa5);
  codec.encode(value, viewOf(bytes));
  return bytes;
}

/** Bytes to JSON text to the same bytes; returns the JSON. */
function roundTrip(codec: ValueCodec, bytes: Uint8Array): Json {
  const json = codec.decode(viewOf(bytes));
  const out = new MemoryOutput('memory', 64);
  codec.print(viewOf(bytes), 0, out);
  const text = out.take().toString();
  if (text !== JSON.stringify(json)) throw new Error(`${text} is not ${JSON.stringify(json)}`);
  const back = encode(codec, JSON.parse(text) as Json);
  if (Buffer.compare(back, bytes) !== 0) throw new Error(`${text}: ${Buffer.from(bytes).toString('hex')}`);
  return json;
}

function refusal(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (error instanceof BpfimgError) return error.message;
    throw error;
  }
  return 'no error';
}

const KEY = unhex('0a000001 0050 0000');
const VALUE = Buffer.concat([
  unhex('0000000000000100 020000000001 ffffffffffff c0a80001'),
  unhex('fe80 0000 0000 0000 0000 0000 0000 0001'),
  unhex('40e2015700000000 d4c6525400000000 00500051 01000000'),
  unhex('0a000002 ff000000 0d000000 00000000 00000000 00000000'),
  unhex('0a000003 0a000004 00000000 00000000 00000000 01000000'),
  Buffer.alloc(24),
]).subarray(0, 136);

t.test('numbers in network order are the numbers they mean, also in JSON and on either kind of machine', async (t) => {
  for (const little of [true, false]) {
    const { btf, key, value } = typesOf(little);
    t.same(roundTrip(valueCodec(btf, key), KEY), { saddr: 0x0a000001, port: 80 });
    const { bytes, ports, smac } = roundTrip(valueCodec(btf, value), VALUE) as Record<string, Json>;
    t.same({ bytes, ports }, { bytes: 256, ports: [80, 81] });
    t.same(smac, [2, 0, 0, 0, 0, 1], 'numbers for programs');
    t.same(encode(valueCodec(btf, key), { saddr: '10.0.0.1', port: '0x50' }), KEY);
  }
});

t.test('what people read', async (t) => {
  const { btf, key, value } = typesOf();
  const options: CodecOptions = { readable: true };
  t.same(roundTrip(valueCodec(btf, key, options), KEY), { saddr: '10.0.0.1', port: 80 });
  const codec = valueCodec(btf, value, options);
  const { smac, other, peer, host, seen, stamp } = roundTrip(codec, VALUE) as Record<string, Json>;
  t.same(
    { smac, other, peer, host, seen, stamp },
    {
      smac: '02:00:00:00:00:01',
      other: [255, 255, 255, 255, 255, 255],
      peer: '192.168.0.1',
      host: 'fe80::1',
      seen: '1.459741248s',
      stamp: 0x5452c6d4,
    },
  );
  const bytes = Buffer.from(VALUE);
  for (const [path, text] of [
    ['smac', '"06:00:00:00:00:FF"'],
    ['peer', '"1.2.3.4"'],
    ['peer.s_addr', '"1.2.3.5"'],
    ['host', '"::ffff:1.2.3.4"'],
    ['seen', '"1h0.5s"'],
  ] as const) {
    // Programs' codecs take the same.
    valueCodec(btf, value)
      .part(path)
      .encode(JSON.parse(text) as Json, viewOf(bytes));
  }
  const after = codec.decode(viewOf(bytes)) as Record<string, Json>;
  t.match(after, { smac: '06:00:00:00:00:ff', peer: '1.2.3.5', host: '::ffff:102:304', seen: '1h0.5s' });
  const wrong = (member: string, json: Json) => refusal(() => encode(valueCodec(btf, value), { [member]: json }));
  t.equal(
    wrong('peer', '10.0.0.256'),
    '/peer: struct in_addr: must be an IPv4 address like "10.0.0.1", got "10.0.0.256"',
  );
  t.equal(wrong('host', 'fe80:::1'), '/host: struct in6_addr: must be an IPv6 address like "fe80::1", got "fe80:::1"');
  t.match(wrong('smac', '02:00'), /^\/smac: unsigned char\[6\]: must be a hardware address like "02:00/);
  t.match(wrong('seen', '5x'), /^\/seen: ktime_t: must be a duration like .*, got "5x"/);
  t.match(wrong('peer', 5), /^\/peer: struct in_addr: must be an object, got 5/);
});

t.test('what a user says of a member', async (t) => {
  const { btf, value } = typesOf();
  const said = new Map<string, Meaning>([
    ['in.addr', 'ipv4'],
    ['in.flags', 'hex'],
    ['in.one', 'hex'],
    ['addrs', 'ipv4'],
    ['v6', 'ipv6'],
    ['stamp', 'time'],
    ['quick', 'duration'],
    ['other', 'mac'],
    ['peer', 'bytes'],
    ['state', 'be'],
    ['bytes', 'bytes'],
  ]);
  const codec = valueCodec(btf, value, { as: said });
  const json = roundTrip(codec, VALUE) as Record<string, Json>;
  t.match(json, {
    bytes: '0000000000000100',
    other: 'ff:ff:ff:ff:ff:ff',
    peer: 'c0a80001',
    stamp: '2014-10-30T23:16:36Z',
    state: 0x01000000,
    in: [
      { addr: '10.0.0.2', flags: '0xff', one: '0x5', rest: 1 },
      { addr: '0.0.0.0', flags: '0x0', one: '0x0', rest: 0 },
    ],
    addrs: ['10.0.0.3', '10.0.0.4'],
    v6: '::100:0',
    quick: '0s',
  });
  const refused = (member: string, is: Meaning) =>
    refusal(() => valueCodec(btf, value, { as: new Map([[member, is]]) }));
  t.equal(refused('ports', 'ipv6'), 'ports: __be16 cannot be shown as ipv6');
  t.equal(refused('in', 'hex'), 'in: struct inner cannot be shown as hex');
  t.equal(refused('in.one', 'ipv4'), 'in.one: unsigned int cannot be shown as ipv4');
  t.same(memberPaths(btf, value, 'addr', 5), ['in.addr']);
  t.same(memberPaths(btf, value, 'in[1].addr', 5), ['in.addr']);
  t.same(memberPaths(btf, value, 'nothing', 5), []);
});

t.test('any bytes come back, whatever a member is said to be', async () => {
  const { btf, key, value } = typesOf();
  const members = ['bytes', 'smac', 'other', 'peer', 'host', 'host.in6_u.u6_addr8', 'seen', 'stamp', 'ports', 'state'];
  const all = [...members, 'in.addr', 'in.flags', 'in.one', 'addrs', 'v6', 'pad', 'quick', ''];
  const meanings = fc.dictionary(fc.constantFrom(...all), fc.constantFrom(...MEANINGS), { maxKeys: 5 });
  // Small numbers, too: times are not spread evenly.
  const byte = fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 255 }));
  const some = (size: number) => fc.array(byte, { minLength: size, maxLength: size }).map((list) => Buffer.from(list));
  fc.assert(
    fc.property(meanings, fc.boolean(), some(SIZES.key), some(SIZES.value), (as, readable, keyBytes, valueBytes) => {
      roundTrip(valueCodec(btf, key, { readable }), keyBytes);
      let codec: ValueCodec;
      try {
        codec = valueCodec(btf, value, { readable, as: new Map(Object.entries(as) as [string, Meaning][]) });
      } catch (error) {
        if (error instanceof BpfimgError) return;
        throw error;
      }
      roundTrip(codec, valueBytes);
    }),
    { numRuns: 3000 },
  );
  const time = (is: Meaning) => valueCodec(btf, value, { as: new Map([['stamp', is]]) });
  fc.assert(
    fc.property(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), fc.integer({ min: 0, max: 63 }), (bits, shift) => {
      const bytes = Buffer.from(VALUE);
      bytes.writeBigUInt64LE(bits >> BigInt(shift), 48);
      for (const is of ['time', 'duration', 'hex', 'be', 'bytes'] as const) roundTrip(time(is), bytes);
    }),
    { numRuns: 3000 },
  );
});

/** A dump as `bpfimg capture` makes it. */
function dumpWith(t: Test, items: readonly Item[]): string {
  const { key, value, blob: btf } = typesOf();
  return folderOf(t, {
    'bpfmap-file.img': image('BPFMAP_FILE', entry(mapFile({ id: 1, map_id: 7, name: 'm', ...SIZES }))),
    'bpfmap-data.img': image('BPFMAP_DATA', mapData(7, items)),
    'bpfmap-meta.img': image(
      'BPFMAP_META',
      entry(Buffer.concat([scalar(1, 7), scalar(4, 57), scalar(5, key), scalar(6, value)])),
    ),
    'bpfmap-btf.img': image(
      'BPFMAP_BTF',
      entry(Buffer.concat([scalar(1, 57), scalar(2, btf.length), blob(3, Buffer.from('prog'))]), btf),
    ),
  });
}

function ok(...args: string[]): string {
  const { status, stdout, stderr } = bpfimg(args);
  if (status !== 0) throw new Error(`${args.join(' ')}: ${stderr}`);
  return stdout;
}

t.test('commands', async (t) => {
  const dump = dumpWith(t, [[KEY, VALUE]]);
  const before = contents(dump);
  const shown = ok('show', dump);
  t.match(shown, /\n {2}10\.0\.0\.1 +80 +│ +256 +02:00:00:00:00:01 .* 192\.168\.0\.1 +fe80::1 +1\.459741248s/);
  t.match(ok('show', dump, '--plain'), /\n {2}167772161 +80 +│ +256 +\[2,0,0,0,0,1\]/);
  t.match(ok('show', dump, '--as', 'in.addr=ipv4', '--as', 'bytes=hex'), /│ +0x100 .*"addr":"10\.0\.0\.2"/);
  t.match(JSON.parse(ok('show', dump, '--json')), { maps: [{ items: [{ key: { saddr: 167772161, port: 80 } }] }] });

  const document = `${dump}.json`;
  t.teardown(() => fs.rmSync(document, { force: true }));
  const as = ['--as', 'saddr=ipv4', '--as', 'stamp=time', '--as', 'value.peer=bytes', '--as', 'in[].flags=hex'];
  ok('decode', dump, '-o', document, ...as);
  const text = fs.readFileSync(document, 'utf8');
  const { maps } = JSON.parse(text) as { maps: [{ types: { as: Json }; items: [{ key: { saddr: Json } }] }] };
  t.same(maps[0].types.as, {
    'key.saddr': 'ipv4',
    'value.stamp': 'time',
    'value.peer': 'bytes',
    'value.in.flags': 'hex',
  });
  t.equal(maps[0].items[0].key.saddr, '10.0.0.1');
  ok('encode', document, '-D', dump, '--force');
  t.same(contents(dump), before, 'nothing has changed');

  fs.writeFileSync(document, text.replace('10.0.0.1', '10.0.0.300'));
  const wrong = bpfimg(['encode', document, '-D', dump, '--force']);
  t.equal(wrong.status, 1);
  t.match(
    wrong.stderr,
    /\/maps\/0\/items\/0\/key\/saddr.*must be an IPv4 address like "10\.0\.0\.1", got "10\.0\.0\.300"/,
  );
  fs.writeFileSync(document, text.replace('"key.saddr":"ipv4"', '"key.nothing":"ipv4"'));
  t.match(
    bpfimg(['encode', document, '-D', dump, '--force']).stderr,
    /types\/as\/key\.nothing.*no member key\.nothing/,
  );
  fs.writeFileSync(document, text.replace('"key.saddr":"ipv4"', '"key.saddr":"ipv5"'));
  t.match(bpfimg(['encode', document, '-D', dump, '--force']).stderr, /types\/as\/key\.saddr/);
  t.same(contents(dump), before);

  for (const [args, message] of [
    [['show', dump, '--as', 'nothing=ipv4'], /--as nothing=ipv4: no map of known types has such a member/],
    [['decode', dump, '--as', 'saddr=ipv5'], /--as saddr=ipv5: expected MEMBER=ipv4\|ipv6/],
    [['show', dump, '--as', 'port=ipv4'], /--as: map 7: port: port_t cannot be shown as ipv4/],
    [['diff', dump, dump, '--as', 'nothing=ipv4'], /--as nothing=ipv4: no map of known types has such a member/],
    [['show', dump, '--raw', '--as', 'saddr=ipv4'], /--raw has no use for types/],
  ] as const) {
    const { status, stderr } = bpfimg([...args]);
    t.equal(status, 2, stderr);
    t.match(stderr, message);
  }

  t.match(ok('get', dump, 'saddr=10.0.0.1,port=80'), /peer +192\.168\.0\.1\n[\s\S]*host +fe80::1\n/);
  t.match(ok('get', dump, 'saddr=10.0.0.1,port=80', '--plain'), /peer\.s_addr +3232235521\n/);
  const other = `${dump}-before`;
  fs.cpSync(dump, other, { recursive: true });
  t.teardown(() => fs.rmSync(other, { recursive: true }));
  ok('set', dump, 'saddr=10.0.0.1,port=80', 'smac=02:00:00:00:00:99', 'host=fe80::2', 'ports=[8080,81]');
  t.match(
    bpfimg(['diff', other, dump]).stdout,
    /\{"saddr":"10\.0\.0\.1","port":80\}\n[\s\S]*\.host: "fe80::1" → "fe80::2"/,
  );
  t.match(bpfimg(['diff', other, dump, '--plain']).stdout, /\{"saddr":167772161,"port":80\}/);
});
