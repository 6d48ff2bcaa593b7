/** Typed values: bytes as JSON and JSON as bytes, without loss, edits and all. */
import * as fs from 'node:fs';
import t, { type Test } from 'tap';
import { Btf, type BtfType, type StructType } from '../src/btf/btf.js';
import { readBtfFile } from '../src/btf/elf.js';
import { type ValueCodec, valueCodec } from '../src/btf/values.js';
import { viewOf } from '../src/bytes.js';
import { PointerError } from '../src/errors.js';
import { MemoryOutput } from '../src/io/output.js';
import type { Json, JsonObject } from '../src/value.js';
import { BtfWriter } from './helpers/btf-writer.js';
import { fixture } from './helpers/fixtures.js';
import { Random } from './helpers/random.js';

const VMLINUX = '/sys/kernel/btf/vmlinux';
const noVmlinux = fs.existsSync(VMLINUX) ? false : 'needs a kernel with type information';

/** The codec of the type that `make` returns. */
function codecOf(make: (w: BtfWriter) => number, little = true): ValueCodec {
  const w = new BtfWriter(little);
  const id = make(w);
  return valueCodec(Btf.parse(w.bytes(), { name: 'x' }), id);
}

const unhex = (text: string) => Buffer.from(text.replaceAll(' ', ''), 'hex');
const decode = (codec: ValueCodec, bytes: Uint8Array) => codec.decode(viewOf(bytes));

function encode(codec: ValueCodec, value: Json): Buffer {
  // What was there before must not show.
  const bytes = Buffer.alloc(codec.size + 2, 0xa5);
  codec.encode(value, viewOf(bytes), 1);
  if (bytes[0] !== 0xa5 || bytes[codec.size + 1] !== 0xa5) throw new Error(`${codec.typeName}: written beyond its end`);
  return bytes.subarray(1, codec.size + 1);
}

/** Fails unless `bytes` come back, also by way of text, and the printed text is that of the decoded value. */
function roundTrips(codec: ValueCodec, bytes: Uint8Array): Json {
  const value = decode(codec, bytes);
  const text = JSON.stringify(value);
  // A small buffer, so that its end comes often.
  const out = new MemoryOutput('memory', 64);
  codec.print(viewOf(bytes), 0, out);
  const printed = out.take().toString();
  if (printed !== text) throw new Error(`${codec.typeName}: ${printed} is not ${text}`);
  const back = encode(codec, JSON.parse(text) as Json);
  if (Buffer.compare(back, bytes) !== 0) {
    const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
    throw new Error(`${codec.typeName}: ${hex(bytes)} became ${text}, and that ${hex(back)}`);
  }
  return value;
}

const U8 = (w: BtfWriter) => w.int('unsigned char', 1);
const U32 = (w: BtfWriter) => w.int('unsigned int', 4);
const char = (w: BtfWriter) => w.int('char', 1, { encoding: 1 });
const int = (size: number, encoding: number) => (w: BtfWriter) => w.int('int', size, { encoding });
const text = (size: number) => (w: BtfWriter) => w.array(char(w), size);
const float = (size: number) => (w: BtfWriter) => w.float('real', size);

type Row = readonly [make: (w: BtfWriter) => number, bytes: string, json: Json];

t.test('bytes and what they read as', async (t) => {
  const states = { NEW: 0, OPEN: 1, ALIAS: 1, LAST: 0xffff_ffff };
  const rows: readonly Row[] = [
    [int(1, 1), 'ff', -1],
    [int(2, 0), 'ffff', 65535],
    [int(4, 1), '00000080', -2147483648],
    [int(8, 0), 'ffffffffffff1f00', Number.MAX_SAFE_INTEGER],
    [int(8, 0), '0000000000002000', '9007199254740992'],
    [int(8, 0), 'ffffffffffffffff', '18446744073709551615'],
    [int(8, 0), '00e1f50500000000', 100_000_000],
    [int(8, 0), '40420f0000002000', '9007199255740992'],
    [int(8, 0), '0000c16ff28623de', String(0xde2386f26fc10000n)],
    [int(8, 1), '010000000000e0ff', Number.MIN_SAFE_INTEGER],
    [int(8, 1), '000000000000e0ff', '-9007199254740992'],
    [int(8, 1), '0000000000000080', '-9223372036854775808'],
    [int(16, 0), 'ffffffffffffffffffffffffffffffff', String(2n ** 128n - 1n)],
    [int(16, 1), 'feffffffffffffffffffffffffffffff', -2],
    [int(3, 1), 'feffff', -2],
    [(w) => w.int('_Bool', 1, { encoding: 4 }), '00', false],
    [(w) => w.int('_Bool', 1, { encoding: 4 }), '01', true],
    [(w) => w.int('_Bool', 1, { encoding: 4 }), '02', 2],
    // _BitInt(7): number where the rest is zero, bytes where it is not
    [(w) => w.int('_BitInt', 1, { bits: 7 }), '7f', 127],
    [(w) => w.int('_BitInt', 1, { bits: 7 }), 'ff', { $raw: 'ff' }],
    [(w) => w.enum('e', 4, states), '01000000', 'OPEN'],
    [(w) => w.enum('e', 4, states), 'ffffffff', 'LAST'],
    [(w) => w.enum('e', 4, states), '05000000', 5],
    [(w) => w.enum('e', 1, states), 'ff', 'LAST'],
    [(w) => w.enum('e', 4, { LOW: -1 }, true), 'ffffffff', 'LOW'],
    [(w) => w.enum('e', 4, { LOW: -1 }, true), 'feffffff', -2],
    [(w) => w.enum('e', 4, { '7': 1, '': 2 }), '01000000', 1],
    [(w) => w.enum64('e', 8, { BIG: 2n ** 63n }), '0000000000000080', 'BIG'],
    [(w) => w.enum64('e', 8, { BIG: 2n ** 63n }), '0100000000000080', '9223372036854775809'],
    [(w) => w.ptr(0), '0040a003 8088ffff', '0xffff888003a04000'],
    [(w) => w.ptr(0), '0000000000000000', '0x0'],
    [float(4), '0000c03f', 1.5],
    [float(4), '00000080', '-0'],
    [float(4), '0000c07f', 'NaN'],
    [float(4), '010080ff', '0xff800001'],
    [float(4), '0000807f', 'Infinity'],
    [float(8), '000000000000f0ff', '-Infinity'],
    [float(8), '000000000000f87f', 'NaN'],
    [float(8), '010000000000f07f', '0x7ff0000000000001'],
    [float(8), '9a9999999999b93f', 0.1],
    [float(2), '003c', '0x3c00'],
    [float(16), '000102030405060708090a0b0c0d0e0f', '0x0f0e0d0c0b0a09080706050403020100'],
    [text(4), '00000000', ''],
    [text(4), '61620000', 'ab'],
    [text(4), '61626364', 'abcd'],
    [text(4), '22 5c 0a 09', '"\\\n\t'],
    [text(6), 'c3a9e282ac00', 'é€'],
    [text(4), '61006200', { $raw: '61006200' }],
    [text(4), 'c3280000', { $raw: 'c3280000' }],
    [text(4), '1b5b6d00', { $raw: '1b5b6d00' }],
    [text(4), 'c29b0000', { $raw: 'c29b0000' }],
    [text(30), Buffer.from('more than twenty-four bytes 30').toString('hex'), 'more than twenty-four bytes 30'],
    [char, '61', 97],
    [(w) => w.array(U8(w), 4), '61620000', [97, 98, 0, 0]],
    [
      (w) => w.array(w.array(w.array(char(w), 2), 2), 2),
      '6162636465006600',
      [
        ['ab', 'cd'],
        ['e', 'f'],
      ],
    ],
    [
      (w) => w.array(w.array(U8(w), 2), 3),
      '010203040506',
      [
        [1, 2],
        [3, 4],
        [5, 6],
      ],
    ],
    [(w) => w.struct('empty', 0, []), '', {}],
    [(w) => w.array(U32(w), 0), '', []],
  ];
  for (const [make, hex, json] of rows) {
    const codec = codecOf(make);
    const bytes = unhex(hex);
    t.same(roundTrips(codec, bytes), json, `${codec.typeName} ${hex}`);
    const swapped = codecOf(make, false);
    roundTrips(swapped, bytes);
    if (typeof json !== 'object') {
      t.same(
        decode(swapped, codec.typeName.startsWith('char[') ? bytes : Buffer.from(bytes).reverse()),
        json,
        'big-endian',
      );
    }
  }
});

/** struct { u8 a; u32 b; union { u16 c; u64 d; struct { u32 e; u32 f; }; }; union u { u8 x; u16 y; } g; u32 tail[]; } */
function sample(w: BtfWriter): number {
  const [u8, u16, u32, u64] = [U8(w), w.int('unsigned short', 2), U32(w), w.int('unsigned long', 8)] as const;
  const pair = w.struct('', 8, [
    { name: 'e', type: u32, at: 0 },
    { name: 'f', type: u32, at: 32 },
  ]);
  const inside = w.union('', 8, [
    { name: 'c', type: u16, at: 0 },
    { name: 'd', type: u64, at: 0 },
    { name: '', type: pair, at: 0 },
  ]);
  const named = w.union('u', 4, [
    { name: 'x', type: u8, at: 0 },
    { name: 'y', type: u16, at: 0 },
  ]);
  return w.struct('sample', 24, [
    { name: 'a', type: u8, at: 0 },
    { name: 'b', type: u32, at: 32 },
    { name: '', type: inside, at: 64 },
    { name: 'g', type: named, at: 128 },
    { name: 'tail', type: w.array(u32, 0), at: 192 },
  ]);
}

t.test('structures, unions, and what $raw is for', async (t) => {
  const codec = codecOf(sample);
  const hex = (value: Json) => encode(codec, value).toString('hex');
  const plain = '01000000 02000000 0300000000000000 04000000 00000000'.replaceAll(' ', '');
  const shown = { a: 1, b: 2, d: 3, g: { y: 4 } };
  t.same(roundTrips(codec, unhex(plain)), shown, 'widest members, no padding, nothing for what takes no bytes');
  t.equal(hex({ ...shown, tail: [] }), plain);
  t.equal(hex({ g: { y: 4 }, d: '3', b: 2n, a: '0x1' }), plain, 'any order, any form of a number');
  t.equal(hex({}), '00'.repeat(24), 'what is not there is zero');
  t.equal(hex({ a: 1, b: 2, e: 3, g: { x: 4 } }), plain, 'other members of unions');
  t.equal(hex({ a: 1, b: 2, e: 3, f: 0, c: 3, d: 3, g: { x: 4, y: 4 } }), plain, 'all of them, when they agree');
  t.throws(
    () => hex({ d: 3, c: 4 }),
    /struct sample: members of a union that share bytes must agree: give only one of d, c/,
  );
  t.throws(
    () => hex({ g: { x: 1, y: 2 } }),
    new PointerError('/g', 'union u: members of a union that share bytes must agree: give only one of x, y'),
  );

  // Padding: behind a, at the end; behind the union's member within the union itself.
  const padded = '01aabbcc 02000000 0300000000000000 0400dd00 eeeeeeee'.replaceAll(' ', '');
  const value = roundTrips(codec, unhex(padded)) as JsonObject;
  t.same(value, { ...shown, g: { y: 4, $raw: '0400dd00' }, $raw: padded });
  t.equal(hex({ ...value, b: 255 }), padded.replace('02000000', 'ff000000'), 'an edit wins');
  t.equal(hex({ ...value, f: 9 }), padded.replace('0300000000000000', '0300000009000000'), 'also of what is not shown');
  t.equal(hex({ ...value, d: 5, f: 0 }), padded.replace('0300000000000000', '0500000000000000'), 'as it was: no edit');
  t.throws(() => hex({ ...value, d: 5, f: 9 }), /must agree/);
  t.equal(hex({ ...value, g: { y: 7 } }), padded.replace('0400dd00', '07000000'), 'a member decides all of its bytes');
  t.equal(hex({ $raw: padded }), padded);
  const { a: _, ...rest } = value;
  t.equal(hex(rest), padded, 'what is taken out stays as it was');

  const names = codecOf((w) =>
    w.struct(
      's',
      5,
      ['same', 'same', '__proto__', '$raw', 'constructor'].map((name, i) => ({ name, type: U8(w), at: i * 8 })),
    ),
  );
  const bytes = unhex('0102030405');
  t.equal(
    JSON.stringify(roundTrips(names, bytes)),
    '{"same":1,"same#2":2,"__proto__#2":3,"$raw#2":4,"constructor":5}',
    'names that mean something else',
  );
  t.equal(encode(names, {}).toString('hex'), '0000000000');

  const special = codecOf((w) => {
    const u32 = U32(w);
    const lock = w.struct('bpf_spin_lock', 4, [{ name: 'val', type: u32, at: 0 }]);
    return w.struct('s', 16, [
      { name: 'lock', type: w.typedef('lock_t', lock), at: 0 },
      { name: 'task', type: w.ptr(w.typeTag('kptr', w.fwd('task_struct'))), at: 64 },
    ]);
  });
  t.same(roundTrips(special, Buffer.alloc(16)), { lock: { $kernel: 'bpf_spin_lock' }, task: { $kernel: 'kptr' } });
  t.match(roundTrips(special, unhex('00000000 00000000 0100000000000000')), {
    task: { $kernel: 'kptr', $raw: '0100000000000000' },
  });
  t.throws(
    () => encode(special, { lock: 5 }),
    /\/lock: lock_t: must be {"\$kernel": "bpf_spin_lock"}, because only the kernel/,
  );
});

t.test('JSON that does not fit says where, which type, and what would', async (t) => {
  const w = new BtfWriter();
  const byte = w.typedef('__u8', U8(w));
  const state = w.enum('state', 4, { NEW: 0, OPEN: 1 });
  const point = w.struct('point', 2, [
    { name: 'x', type: w.typedef('__s8', w.int('signed char', 1, { encoding: 1 })), at: 0 },
    { name: 'y', type: byte, at: 8, bits: 3 },
  ]);
  const all = w.struct('all', 64, [
    { name: 'path', type: w.array(point, 2), at: 0 },
    { name: 'name', type: w.array(char(w), 8), at: 32 },
    { name: 'state', type: state, at: 96 },
    { name: 'big', type: w.int('unsigned long', 8), at: 128 },
    { name: 'flag', type: w.int('_Bool', 1, { encoding: 4 }), at: 192 },
    { name: 'f', type: w.float('float', 4), at: 224 },
    { name: 'p', type: w.ptr(0), at: 256 },
    { name: 'a/b', type: byte, at: 320 },
  ]);
  const codec = valueCodec(Btf.parse(w.bytes(), { name: 'x' }), all);
  const wide = ' from 0 to 18446744073709551615';
  const rows: readonly (readonly [value: Json, pointer: string, typeName: string, problem: string])[] = [
    [5, '', 'struct all', 'must be an object, got 5'],
    [null, '', 'struct all', 'must be an object, got null'],
    [[1], '', 'struct all', 'must be an object, got a list of 1'],
    [{ nme: 1 }, '/nme', 'struct all', 'unknown member, expected one of path, name, state, big, flag, f, p, a/b'],
    [{ path: [{}] }, '/path', 'struct point[2]', 'must be a list of 2, got a list of 1'],
    [{ path: [{}, { x: 128 }] }, '/path/1/x', '__s8', 'must be a whole number from -128 to 127, got 128'],
    [{ path: [{ y: 8 }, {}] }, '/path/0/y', '__u8', 'must be a whole number from 0 to 7, got 8'],
    [{ path: [{ y: 1.5 }, {}] }, '/path/0/y', '__u8', 'must be a whole number from 0 to 7, got 1.5'],
    [{ 'a/b': '256' }, '/a~1b', '__u8', 'must be a whole number from 0 to 255, got "256"'],
    [{ 'a/b': true }, '/a~1b', '__u8', 'must be a whole number from 0 to 255, got true'],
    [{ 'a/b': '' }, '/a~1b', '__u8', 'must be a whole number from 0 to 255, got ""'],
    [{ name: 'ninechars' }, '/name', 'char[8]', 'text of 9 bytes, expected at most 8'],
    [{ name: 'ééééé' }, '/name', 'char[8]', 'text of 10 bytes, expected at most 8'],
    [{ name: 'a\0b' }, '/name', 'char[8]', 'has a zero byte, which would end the text: write {"$raw": "hex"} instead'],
    [{ name: '\ud800' }, '/name', 'char[8]', 'has half a surrogate pair, which is not a character'],
    [{ name: 5 }, '/name', 'char[8]', 'must be text of at most 8 bytes, got 5'],
    [{ name: { $raw: '00' } }, '/name/$raw', 'char[8]', 'must be 16 hex digits (8 bytes), got "00"'],
    [
      { state: 'OPNE' },
      '/state',
      'enum state',
      'must be one of NEW, OPEN, or a whole number from 0 to 4294967295, got "OPNE"',
    ],
    [{ big: -1 }, '/big', 'unsigned long', `must be a whole number${wide}, got -1`],
    [
      { big: 2 ** 60 },
      '/big',
      'unsigned long',
      '1152921504606847000 must be written as text, because it is beyond 2^53 - 1',
    ],
    [
      { big: '18446744073709551616' },
      '/big',
      'unsigned long',
      `must be a whole number${wide}, got "18446744073709551616"`,
    ],
    [{ flag: 'yes' }, '/flag', '_Bool', 'must be true, false or a whole number from 0 to 255, got "yes"'],
    [{ p: 'here' }, '/p', 'void *', `must be an address like "0xffff888003a4c000": a whole number${wide}, got "here"`],
    [{ f: 1e39 }, '/f', 'float', /^must be a number from -3.4028234663852886e\+38 to .*, got 1e\+39$/] as never,
    [{ f: 'nan' }, '/f', 'float', /^must be a number from/] as never,
    [{ $raw: 'zz' }, '/$raw', 'struct all', 'must be 128 hex digits (64 bytes), got "zz"'],
  ];
  for (const [value, pointer, typeName, problem] of rows) {
    try {
      encode(codec, value);
      t.fail(JSON.stringify(value));
    } catch (error) {
      if (!(error instanceof PointerError)) throw error;
      t.match(error, { kind: 'badJson', pointer }, error.message);
      t.match(error.text.slice(0, typeName.length + 2), `${typeName}: `, error.message);
      t.match(error.text.slice(typeName.length + 2), problem, error.message);
      t.notMatch(error.message, /\n/);
    }
  }
  const error = new PointerError('/x', 'int: is wrong').within('/3').within('/value');
  t.equal(error.message, '/value/3/x: int: is wrong', 'callers put their own part before the pointer');
  t.throws(() => decode(codec, Buffer.alloc(63)), RangeError);
});

t.test('negative numbers of enums from before compilers told signed from unsigned', async (t) => {
  for (const size of [1, 2, 4]) {
    const old = codecOf((w) => w.enum('e', size, { ERROR: -1, OK: 0 }));
    for (const [value, hex] of [
      ['ERROR', 'ff'.repeat(size)],
      [-1, 'ff'.repeat(size)],
      [-5, `fb${'ff'.repeat(size - 1)}`],
    ] as const) {
      t.equal(Buffer.from(encode(old, value)).toString('hex'), hex);
    }
    t.ok(refused(old, -(2 ** (size * 8 - 1)) - 1));
    t.ok(
      refused(
        codecOf((w) => w.enum('e', size, { A: 1 })),
        -1,
      ),
      'of one that has none',
    );
  }
});

/** Whether JSON is refused as not fitting its type. */
function refused(codec: ValueCodec, value: Json): boolean {
  try {
    encode(codec, value);
    return false;
  } catch (error) {
    if (error instanceof PointerError) return true;
    throw error;
  }
}

t.test('bit-fields of any place and width, by another way to count bits', async (t) => {
  const random = new Random(3);
  for (const little of [true, false]) {
    for (let round = 0; round < 400; round++) {
      const size = 1 + random.below(16);
      const signed = random.below(2) === 1;
      const bits = 1 + random.below(size * 8);
      const at = random.below(12);
      const total = Math.ceil((at + bits) / 8) + 1;
      const old = random.below(2) === 1 && bits < size * 8;
      const codec = codecOf((w) => {
        const encoding = signed ? 1 : 0;
        // Now the width is the member's; it was the type's before.
        const type = old ? w.int('i', size, { encoding, bits }) : w.int('i', size, { encoding });
        return w.struct('s', total, [{ name: 'x', type, at, ...(old ? {} : { bits }) }]);
      }, little);
      const bytes = random.bytes(total);
      const value = roundTrips(codec, bytes) as JsonObject;
      const ordered = little ? Buffer.from(bytes).reverse() : bytes;
      const whole = BigInt(`0x${ordered.toString('hex')}`);
      const field = whole >> BigInt(little ? at : total * 8 - at - bits);
      const want = signed ? BigInt.asIntN(bits, field) : BigInt.asUintN(bits, field);
      if (BigInt(value.x as number | string) !== want) t.equal(value.x, want, `${bits} bits at ${at}, ${little}`);
      // Another number there changes these bits and no others.
      const [low, high] = signed
        ? [-(2n ** BigInt(bits - 1)), 2n ** BigInt(bits - 1) - 1n]
        : [0n, 2n ** BigInt(bits) - 1n];
      for (const edit of [low, high, 0n]) {
        const edited = encode(codec, { ...value, $raw: bytes.toString('hex'), x: String(edit) });
        const got = BigInt(`0x${(little ? Buffer.from(edited).reverse() : edited).toString('hex')}`);
        const shift = BigInt(little ? at : total * 8 - at - bits);
        const mask = (2n ** BigInt(bits) - 1n) << shift;
        const expected = (whole & ~mask) | ((edit << shift) & mask);
        if (got !== expected) t.equal(got, expected, `${edit} into ${bits} bits at ${at}`);
      }
      for (const beyond of [high + 1n, low - 1n]) {
        if (!refused(codec, { x: beyond })) t.fail(`${beyond} into ${bits} bits, signed ${signed}`);
      }
    }
  }
});

/** Bytes that are not only noise: text, zeros, names of enums and clean padding should come up too. */
function someBytes(random: Random, size: number): Buffer {
  const bytes = random.bytes(size);
  const how = random.below(4);
  for (let i = 0; i < size; i++) {
    if (how === 0) bytes[i] = 0x20 + random.below(0x5f);
    else if (how === 1 && random.below(3) > 0) bytes[i] = 0;
    else if (how === 2) bytes[i] = random.below(3);
  }
  return bytes;
}

t.test('values of the committed objects come back, with any bytes', async () => {
  const random = new Random(1);
  for (const name of ['values.o', 'values.eb.o', 'special.o']) {
    const { btf, maps } = readBtfFile(fixture(`btf/${name}`), { name });
    for (const { keyType, valueType } of maps) {
      for (const id of [keyType, valueType]) {
        if (id === 0) continue;
        const codec = valueCodec(btf, id);
        for (let round = 0; round < 300; round++) roundTrips(codec, someBytes(random, codec.size));
      }
    }
  }
});

// ---------------------------------------------------------------------------------------------------
// Every structure of the kernel

/** A leaf of a decoded value that an edit can change, and what it may become. */
interface Edit {
  readonly path: readonly (string | number)[];
  readonly value: Json;
}

/** Picks a member of a value of type `id` at random, and another value for it, by what the type allows. */
function randomEdit(btf: Btf, id: number, value: Json, random: Random, path: (string | number)[]): Edit | undefined {
  const type = btf.type(btf.resolve(id));
  if (Array.isArray(value) && type.kind === 'ARRAY') {
    const i = random.below(value.length);
    return randomEdit(btf, type.type, value[i] as Json, random, [...path, i]);
  }
  if (type.kind === 'STRUCT' || type.kind === 'UNION') {
    const object = value as JsonObject;
    const members = type.members.filter(({ name }) => Object.hasOwn(object, name));
    if (members.length === 0) return undefined;
    const member = random.of(members);
    const inner = object[member.name] as Json;
    const to = [...path, member.name];
    return member.bits > 0
      ? number(btf.type(btf.resolve(member.type)), member.bits, random, to)
      : randomEdit(btf, member.type, inner, random, to);
  }
  if (type.kind === 'PTR' && typeof value === 'string')
    return {
      path,
      value: `0x${random
        .bytes(7)
        .toString('hex')
        .replace(/^0+(?=.)/, '')}`,
    };
  if (type.kind === 'ARRAY' && !Array.isArray(value)) return { path, value: 'x'.repeat(random.below(type.count + 1)) };
  if (type.kind === 'INT' || type.kind === 'ENUM' || type.kind === 'ENUM64') {
    return number(type, type.size * 8, random, path);
  }
  return undefined;
}

function number(type: BtfType, bits: number, random: Random, path: (string | number)[]): Edit | undefined {
  if (type.kind === 'INT' && type.bool) return { path, value: random.below(2) === 1 };
  if (type.kind !== 'INT' && type.kind !== 'ENUM' && type.kind !== 'ENUM64') return undefined;
  const named = type.kind === 'INT' ? [] : type.values.map(({ name }) => name);
  const noise = BigInt(`0x${random.bytes(16).toString('hex')}`);
  const value = type.signed ? BigInt.asIntN(bits, noise) : BigInt.asUintN(bits, noise);
  const plain =
    value > BigInt(Number.MAX_SAFE_INTEGER) || value < -BigInt(Number.MAX_SAFE_INTEGER) ? String(value) : Number(value);
  // A number that has a name reads as that.
  const known = type.kind === 'INT' ? undefined : type.values.find((one) => one.value === value)?.name;
  return { path, value: known ?? (bits === 32 && named.length > 0 && random.below(2) ? random.of(named) : plain) };
}

function at(value: Json, path: readonly (string | number)[]): Json {
  let here = value;
  for (const part of path) here = (here as JsonObject)[part as string] as Json;
  return here;
}

t.test('every structure of the running kernel', { skip: noVmlinux }, async (t: Test) => {
  const btf = Btf.parse(fs.readFileSync(VMLINUX), { name: VMLINUX });
  const random = new Random(2);
  const tally = { types: 0, edits: 0 };
  for (let id = 1; id <= btf.typeCount; id++) {
    const kind = btf.kind(id);
    if (kind !== 'STRUCT' && kind !== 'UNION') continue;
    const codec = valueCodec(btf, id);
    tally.types++;
    roundTrips(codec, Buffer.alloc(codec.size));
    // The few that are large take most of the time, and have nothing that others have not.
    if (codec.size > 16384) continue;
    const bytes = someBytes(random, codec.size);
    const value = roundTrips(codec, bytes);
    const names = (btf.type(id) as StructType).members.map(({ name }) => name);
    const edit = randomEdit(btf, id, value, random, []);
    if (edit === undefined || new Set(names).size < names.length) continue;
    const edited = structuredClone(value);
    (at(edited, edit.path.slice(0, -1)) as JsonObject)[edit.path.at(-1) as string] = edit.value;
    const again = decode(codec, encode(codec, edited));
    const [got, want] = [JSON.stringify(at(again, edit.path)), JSON.stringify(edit.value)];
    if (got !== want && !isAlias(btf, id, edit, got)) t.equal(got, want, `${codec.typeName} ${edit.path.join('.')}`);
    tally.edits++;
  }
  t.ok(tally.types > 3000 && tally.edits > 2000, JSON.stringify(tally));
});

/** Two names of an enum may be one number: it reads as the first. */
function isAlias(btf: Btf, id: number, { path, value }: Edit, got: string): boolean {
  let here = id;
  for (const part of path) {
    const type = btf.type(btf.resolve(here));
    if (type.kind === 'ARRAY') here = type.type;
    else here = (type as StructType).members.find(({ name }) => name === part)?.type as number;
  }
  const type = btf.type(btf.resolve(here));
  if (type.kind !== 'ENUM' && type.kind !== 'ENUM64') return false;
  const numberOf = (name: string) => type.values.find((one) => one.name === name)?.value;
  return typeof value === 'string' && numberOf(value) === numberOf(JSON.parse(got) as string);
}
