/** Values of one type as values of another: each rule, then random types and values. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { Btf } from '../src/btf/btf.js';
import { typeDefinitions } from '../src/btf/c.js';
import { readBtfFile } from '../src/btf/elf.js';
import { valueCodec } from '../src/btf/values.js';
import { viewOf } from '../src/bytes.js';
import { BpfimgError } from '../src/errors.js';
import { type Loss, type Migration, type MigrationOptions, migration, type TypeRef } from '../src/migrate/migrate.js';
import type { Json } from '../src/value.js';
import { BtfWriter } from './helpers/btf-writer.js';
import { C_HEAD, cTypes } from './helpers/c-types.js';
import { fixture } from './helpers/fixtures.js';
import { required } from './helpers/needs.js';
import { Random } from './helpers/random.js';
import { becomes, changed, INTS, randomStruct, randomValue, type Shape, shapeText, zeroOf } from './helpers/shapes.js';

interface Options {
  readonly rename?: Readonly<Record<string, string>>;
  readonly drop?: readonly string[];
  readonly set?: Readonly<Record<string, Json>>;
}

const optionsOf = ({ rename = {}, drop = [], set = {} }: Options = {}): MigrationOptions => ({
  rename: new Map(Object.entries(rename)),
  drop: new Set(drop),
  set: new Map(Object.entries(set)),
});

/** `{ u32 a; }`, or a type with the definitions it needs before it: `enum e { A }; enum e[2]`. */
function typeOf(text: string, little = true): TypeRef {
  if (text.startsWith('{')) return cTypes(`struct s ${text};`, [], little).type('struct s');
  const at = text.lastIndexOf(';') + 1;
  const name = text.slice(at).trim();
  return name === '' ? cTypes(text, [], little).type('struct s') : cTypes(text.slice(0, at), [name], little).type(name);
}

function encode({ btf, id }: TypeRef, value: Json): Buffer {
  const codec = valueCodec(btf, id);
  const bytes = Buffer.alloc(codec.size);
  codec.encode(value, viewOf(bytes));
  return bytes;
}

const decode = ({ btf, id }: TypeRef, bytes: Uint8Array): Json => valueCodec(btf, id).decode(viewOf(bytes));

/** Converts twice, between bytes that must stay as they are. */
function convert(how: Migration, bytes: Uint8Array): { bytes: Buffer; losses: readonly Loss[] } {
  const source = Buffer.concat([Buffer.alloc(3, 0xff), bytes, Buffer.alloc(2, 0xff)]);
  const target = Buffer.alloc(how.to + 7, 0xa5);
  const found = how.convert(source, 3, target, 5);
  const around = Buffer.concat([target.subarray(0, 5), target.subarray(5 + how.to)]);
  if (!around.equals(Buffer.alloc(7, 0xa5))) throw new Error('written beyond the value');
  const again = Buffer.alloc(how.to);
  const losses = how.convert(bytes, 0, again, 0);
  if (!again.equals(target.subarray(5, 5 + how.to))) throw new Error('another result the second time');
  if (JSON.stringify(losses) !== JSON.stringify(found)) throw new Error('other losses the second time');
  if (losses !== undefined && !how.mayLose) throw new Error(`not announced: ${JSON.stringify(losses)}`);
  return { bytes: again, losses: losses ?? [] };
}

const lossText = ({ member, reason, value, times }: Loss) =>
  `${member} ${reason} ${value}${times > 1 ? ` ×${times}` : ''}`;

interface Row extends Options {
  readonly old: string;
  readonly new: string;
  /** A value, what becomes of it, and what is lost. */
  readonly values: readonly (readonly [old: Json, fresh: Json, ...losses: string[]])[];
  /** What happens: `widened a`, `renamed a b`, `new b`. */
  readonly steps?: readonly string[];
  /** Only between types of one byte order, or only between little-endian ones. */
  readonly orders?: 'one' | 'little';
}

const stepText = ({ what, old, new: fresh }: Migration['steps'][number]) =>
  [what, old, ...(old === fresh ? [] : [fresh])].filter((part) => part !== undefined).join(' ');

const E1 = 'enum e { A, B = 5, C = 7, D = 9 };';
const GIANT = '9007199254740993';

const ROWS: Readonly<Record<string, readonly Row[]>> = {
  'members by name': [
    {
      old: '{ u32 a; u32 b; }',
      new: '{ u32 b; u32 a; }',
      values: [
        [
          { a: 1, b: 2 },
          { b: 2, a: 1 },
        ],
      ],
    },
    {
      old: '{ u32 a; u8 b; u64 c; }',
      new: '{ u64 c; u32 a; u8 b; }',
      values: [
        [
          { a: 1, b: 2, c: 3 },
          { a: 1, b: 2, c: 3 },
        ],
      ],
      steps: ['moved c', 'moved a', 'moved b'],
    },
    {
      old: '{ u32 a; u32 b; }',
      new: '{ u32 a; u32 b; u64 c; }',
      values: [
        [
          { a: 1, b: 2 },
          { a: 1, b: 2, c: 0 },
        ],
      ],
      steps: ['same a', 'same b', 'new c'],
    },
    {
      old: '{ u32 a; u32 gone; u16 list[2]; char t[4]; struct { u8 x; u16 y; } in; }',
      new: '{ u32 a; }',
      values: [
        [{ a: 1 }, { a: 1 }],
        [{ a: 1, gone: 7 }, { a: 1 }, 'gone dropped 7'],
        [{ a: 1, list: [0, 3] }, { a: 1 }, 'list[1] dropped 3'],
        [{ a: 1, list: [2, 3] }, { a: 1 }, 'list[0] dropped 2 ×2'],
        [{ a: 1, t: 'x' }, { a: 1 }, 't dropped "x"'],
        [{ a: 1, in: { x: 1, y: 2 } }, { a: 1 }, 'in.x dropped 1', 'in.y dropped 2'],
        // Padding is no loss.
        [{ a: 1, in: { $raw: '00ff0000' } }, { a: 1 }],
      ],
      steps: ['same a', 'dropped gone', 'dropped list', 'dropped t', 'dropped in'],
    },
    {
      old: 'struct in { u32 a; u8 b; }; struct s { u8 z; struct in i; struct in k; };',
      new: 'struct in { u8 b; u8 n; u64 a; }; struct s { struct in k; u32 q; struct in i; };',
      values: [
        [
          { i: { a: 1, b: 2 }, k: { a: 3, b: 4 } },
          { q: 0, i: { a: 1, b: 2, n: 0 }, k: { a: 3, b: 4, n: 0 } },
        ],
        [{ z: 1 }, {}, 'z dropped 1'],
      ],
      steps: [
        ...['moved k.b', 'new k.n', 'widened k.a', 'new q'],
        ...['moved i.b', 'new i.n', 'widened i.a', 'dropped z'],
      ],
    },
    {
      // What is anonymous has the names of what is around it.
      old: '{ u32 a; struct { u32 b; struct { u8 c; u8 d; }; }; }',
      new: '{ struct { u8 d; u32 a; }; u32 b; struct { u16 c; }; }',
      values: [
        [
          { a: 1, b: 2, c: 3, d: 4 },
          { a: 1, b: 2, c: 3, d: 4 },
        ],
      ],
    },
    {
      // Structures of the same members are in one piece, however they are called.
      old: 'struct x { u8 a; u32 b; }; struct s { struct x i; };',
      new: 'struct y { u8 a; u32 b; }; struct s { u64 q; struct y i; };',
      values: [[{ i: { a: 1, b: 2 } }, { q: 0, i: { a: 1, b: 2 } }]],
    },
  ],
  integers: [
    {
      old: '{ u8 a; u16 b; u32 c; u64 d; s8 e; s16 f; s32 g; s64 h; }',
      new: '{ u16 a; u32 b; u64 c; u128 d; s64 e; s32 f; s64 g; s128 h; }',
      values: [
        [
          { a: 255, b: 65535, c: 4294967295, d: '18446744073709551615', e: 127, f: 1, g: 2, h: 3 },
          { a: 255, b: 65535, c: 4294967295, d: '18446744073709551615', e: 127, f: 1, g: 2, h: 3 },
        ],
        [
          { e: -128, f: -1, g: -2147483648, h: '-9223372036854775808' },
          { e: -128, f: -1, g: -2147483648, h: '-9223372036854775808' },
        ],
      ],
      steps: ['widened a', 'widened b', 'widened c', 'widened d', 'widened e', 'widened f', 'widened g', 'widened h'],
    },
    {
      old: '{ u64 a; u64 b; s64 c; u16 d; s32 e; }',
      new: '{ u32 a; u8 b; s32 c; u8 d; s16 e; }',
      values: [
        [
          { a: 4294967295, b: 255, c: -2147483648, d: 255, e: -32768 },
          { a: 4294967295, b: 255, c: -2147483648, d: 255, e: -32768 },
        ],
        [
          { a: 4294967296, b: 256, c: 2147483648, d: 256, e: 32768 },
          { a: 0, b: 0, c: -2147483648, d: 0, e: -32768 },
          'a does not fit 4294967296',
          'b does not fit 256',
          'c does not fit 2147483648',
          'd does not fit 256',
          'e does not fit 32768',
        ],
        [
          { c: -2147483649, e: -32769 },
          { c: 2147483647, e: 32767 },
          'c does not fit -2147483649',
          'e does not fit -32769',
        ],
        [{ a: GIANT }, { a: 1 }, `a does not fit ${GIANT}`],
      ],
      steps: ['narrowed a', 'narrowed b', 'narrowed c', 'narrowed d', 'narrowed e'],
    },
    {
      old: '{ u32 a; s32 b; s8 c; u8 d; u64 e; s64 f; }',
      new: '{ s32 a; u32 b; u64 c; s16 d; s64 e; u64 f; }',
      values: [
        [
          { a: 2147483647, b: 2147483647, c: 127, d: 255, e: '9223372036854775807', f: '9223372036854775807' },
          { a: 2147483647, b: 2147483647, c: 127, d: 255, e: '9223372036854775807', f: '9223372036854775807' },
        ],
        [
          { a: 2147483648, b: -1, c: -1, e: '9223372036854775808', f: -1 },
          {
            a: -2147483648,
            b: 4294967295,
            c: '18446744073709551615',
            e: '-9223372036854775808',
            f: '18446744073709551615',
          },
          'a does not fit 2147483648',
          'b does not fit -1',
          'c does not fit -1',
          'e does not fit 9223372036854775808',
          'f does not fit -1',
        ],
      ],
      steps: ['resigned a', 'resigned b', 'widened c', 'widened d', 'resigned e', 'resigned f'],
    },
    {
      old: '{ u128 a; s128 b; u8 c; s128 d; }',
      new: '{ u64 a; u128 b; s128 c; bool d; }',
      values: [
        [
          { a: '18446744073709551615', b: 5, c: 200, d: 1 },
          { a: '18446744073709551615', b: 5, c: 200, d: true },
        ],
        [
          { a: '18446744073709551617', b: -1, d: -4 },
          { a: 1, b: String(2n ** 128n - 1n), d: true },
          'a does not fit 18446744073709551617',
          'b does not fit -1',
          'd does not fit -4',
        ],
      ],
    },
    {
      old: '{ u32 a; bool b; char c; void *d; u64 e; bool f; s64 g; bool h; }',
      new: '{ bool a; u32 b; s32 c; u64 d; void *e; bool f; bool g; s8 h; }',
      values: [
        [
          { a: 1, b: true, c: -3, d: '0xffff888003a4c000', e: 17, f: true, g: 1, h: true },
          { a: true, b: 1, c: -3, d: String(0xffff888003a4c000n), e: '0x11', f: true, g: true, h: 1 },
        ],
        [
          { a: 2, b: 7, f: 2, g: '-9223372036854775808' },
          { a: true, b: 7, f: 2, g: true },
          'a does not fit 2',
          'g does not fit -9223372036854775808',
        ],
      ],
      steps: ['narrowed a', 'widened b', 'widened c', 'moved d', 'moved e', 'moved f', 'narrowed g', 'resigned h'],
    },
    {
      // Below zero, with nothing in its lower half.
      old: '{ s64 a; s64 b; s64 c; s64 d; }',
      new: '{ s16 a; s32 b; s64 c:33; s64 d:40; }',
      values: [
        [
          { a: -4294967296, b: -4294967296, c: -4294967296, d: -4294967296 },
          { c: -4294967296, d: -4294967296 },
          'a does not fit -4294967296',
          'b does not fit -4294967296',
        ],
        [
          { c: -4294967297, d: -549755813889 },
          { c: 4294967295, d: 549755813887 },
          'c does not fit -4294967297',
          'd does not fit -549755813889',
        ],
      ],
    },
    { old: 'u32', new: 'u64', values: [[7, 7]], steps: ['widened '] },
    {
      old: 'u32',
      new: 'u16',
      values: [
        [7, 7],
        [65536, 0, ' does not fit 65536'],
      ],
    },
  ],
  'bit-fields': [
    {
      old: '{ u8 a:3; u8 b:5; u32 c:20; s32 d:7; u64 e:40; s8 f:2; u32 g; }',
      new: '{ u32 g:9; u64 f2:1; s32 f:7; u64 e:64; s16 d:9; u32 c; u8 b:7; u8 a:1; }',
      values: [
        [
          { a: 1, b: 31, c: 1048575, d: -64, e: 1099511627775, f: -2, g: 511 },
          { a: 1, b: 31, c: 1048575, d: -64, e: 1099511627775, f: -2, g: 511 },
        ],
        [{ a: 7, g: 512 }, { a: 1, g: 0 }, 'g does not fit 512', 'a does not fit 7'],
      ],
    },
    {
      old: '{ u8 a:3; u8 b:5; u16 c:1; u16 d:15; u8 e; }',
      new: '{ u8 a:3; u8 x:5; u16 c:1; u16 d:15; u8 e; u8 b; }',
      values: [
        [
          { a: 5, b: 21, c: 1, d: 16385, e: 255 },
          { a: 5, b: 21, c: 1, d: 16385, e: 255, x: 0 },
        ],
      ],
      steps: ['same a', 'new x', 'same c', 'same d', 'same e', 'widened b'],
      orders: 'one',
    },
    {
      old: '{ u8 a:3; u8 gone:3; u8 b:2; }',
      new: '{ u8 a:3; u8 b:2; }',
      values: [
        [
          { a: 7, b: 3 },
          { a: 7, b: 3 },
        ],
        [{ a: 7, gone: 1, b: 3 }, { a: 7, b: 3 }, 'gone dropped 1'],
      ],
    },
    {
      old: '{ u32 a:31; u32 b:1; }',
      new: '{ u32 b:1; }',
      values: [
        [{ b: 1 }, { b: 1 }],
        [{ a: 1 }, {}, 'a dropped 1'],
        [{ a: 1073741824, b: 1 }, { b: 1 }, 'a dropped 1073741824'],
      ],
    },
    {
      old: '{ bool a:1; bool b; s32 c:1; }',
      new: '{ bool a; bool b:1; s32 c; }',
      values: [
        [
          { a: true, b: true, c: -1 },
          { a: true, b: true, c: -1 },
        ],
        [{ b: 2 }, { b: false }, 'b does not fit 2'],
      ],
    },
  ],
  enums: [
    {
      old: `${E1} struct s { enum e a; enum e b; enum e c; };`,
      new: 'enum e { ZERO, A, C, B = 4294967295 }; struct s { enum e a; enum e b; enum e c; };',
      values: [
        [
          { a: 'A', b: 'B', c: 'C' },
          { a: 'A', b: 'B', c: 'C' },
        ],
        // Whether it has a name now or not: others have moved.
        [{ a: 2, b: 'D', c: 77 }, { a: 2, b: 9, c: 77 }, 'a no such name 2', 'b no such name D', 'c no such name 77'],
      ],
      steps: ['enum a', 'enum b', 'enum c'],
    },
    {
      // More names only: numbers that have none are kept.
      old: `${E1} struct s { enum e a; enum e b; };`,
      new: 'enum e { A, N = 3, B = 5, C = 7, D = 9 }; struct s { u64 q; enum e a; enum e b; };',
      values: [
        [
          { a: 'B', b: 77 },
          { a: 'B', b: 77 },
        ],
        [{ a: 3 }, { a: 3 }, 'a no such name 3'],
      ],
      steps: ['new q', 'moved a', 'moved b'],
    },
    {
      old: 'enum e { A, B, C = -3 }; struct s { enum e a; enum e b:4; };',
      new: 'enum e { A, C = 5000000000, B }; struct s { enum e a; enum e b; };',
      values: [
        [
          { a: 'C', b: 'B' },
          { a: 'C', b: 'B' },
        ],
        [
          { a: 'B', b: 'C' },
          { a: 'B', b: 'C' },
        ],
      ],
    },
    {
      old: 'enum e { A, B = 5000000000 }; struct s { enum e a; enum e b; };',
      new: 'enum e { A = 3, B = 1 }; struct s { enum e a; enum e b:1; };',
      // 3 does not fit one bit: it is no name there.
      values: [
        [
          { a: 'A', b: 'B' },
          { a: 'A', b: 'B' },
        ],
        [{ b: 'A' }, { a: 'A', b: 0 }, 'b no such name A'],
        [
          { a: '18446744073709551615' },
          { a: 4294967295, b: 0 },
          'a no such name 18446744073709551615',
          'b no such name A',
        ],
      ],
    },
    {
      // Numbers that are no JavaScript numbers.
      old: 'enum e { A = -9007199254740992, B = -9007199254740991, C = 9007199254740991, D = 9007199254740992 }; struct s { enum e a[4]; };',
      new: 'enum e { A, B, C, D }; struct s { enum e a[4]; };',
      values: [[{ a: ['A', 'B', 'C', 'D'] }, { a: ['A', 'B', 'C', 'D'] }]],
    },
    {
      // By number from and to integers.
      old: `${E1} struct s { enum e a; u8 b; u32 c; };`,
      new: `${E1} struct s { u8 a; enum e b; enum e c:3; };`,
      values: [
        [
          { a: 'C', b: 5, c: 5 },
          { a: 7, b: 'B', c: 'B' },
        ],
        [{ a: 256, c: 9 }, { a: 0, c: 1 }, 'a does not fit 256', 'c does not fit 9'],
      ],
    },
    {
      // Aliases: any name that is still there.
      old: 'enum e { OLD = 1, ALSO = 1 }; struct s { enum e a; };',
      new: 'enum e { X, ALSO = 4 }; struct s { enum e a; };',
      values: [[{ a: 'OLD' }, { a: 'ALSO' }]],
    },
    {
      old: 'enum e { RUN, STOP }; struct s { enum e a; };',
      new: 'enum e { ST_STOP, ST_RUN }; struct s { enum e a; };',
      rename: { RUN: 'ST_RUN', STOP: 'ST_STOP' },
      values: [
        [{ a: 'RUN' }, { a: 'ST_RUN' }],
        [{ a: 'STOP' }, { a: 'ST_STOP' }],
      ],
    },
  ],
  'arrays and text': [
    {
      old: '{ u32 a[3]; u8 b[4]; char c[8]; char d[4]; u16 e[2][2]; }',
      new: '{ u64 a[5]; u8 b[2]; char c[4]; char d[9]; u16 e[3][3]; }',
      values: [
        [
          {
            a: [1, 2, 3],
            b: [1, 2, 0, 0],
            c: 'abcd',
            d: 'wxyz',
            e: [
              [1, 2],
              [3, 4],
            ],
          },
          {
            a: [1, 2, 3, 0, 0],
            b: [1, 2],
            c: 'abcd',
            d: 'wxyz',
            e: [
              [1, 2, 0],
              [3, 4, 0],
              [0, 0, 0],
            ],
          },
        ],
        [{ b: [0, 0, 0, 7], c: 'abcde' }, { c: 'abcd' }, 'b[3] beyond the end 7', 'c does not fit "abcde"'],
        [{ b: [0, 0, 6, 7] }, {}, 'b[2] beyond the end 6 ×2'],
        [{ c: { $raw: '6100000000000001' } }, { c: 'a' }, 'c does not fit {"$raw":"6100000000000001"}'],
        [{ c: { $raw: '6100620000000000' } }, { c: { $raw: '61006200' } }],
      ],
      steps: ['longer a', 'widened a[]', 'shorter b', 'shorter c', 'longer d', 'longer e', 'longer e[]'],
    },
    {
      old: '{ struct { u8 x; u32 y; } a[2]; u32 b[2][3]; }',
      new: '{ u32 b[1][2]; struct { u64 y; u8 x; u8 z; } a[1]; }',
      values: [
        [
          {
            a: [{ x: 1, y: 2 }, {}],
            b: [
              [1, 2, 0],
              [0, 0, 0],
            ],
          },
          { a: [{ x: 1, y: 2, z: 0 }], b: [[1, 2]] },
        ],
        [
          {
            a: [{}, { x: 1, y: 2 }],
            b: [
              [1, 2, 3],
              [4, 0, 6],
            ],
          },
          { b: [[1, 2]] },
          'b[0][2] beyond the end 3',
          'b[1][0] beyond the end 4 ×2',
          'a[1].x beyond the end 1',
          'a[1].y beyond the end 2',
        ],
        // Padding of elements that go is no loss.
        [{ a: [{}, { $raw: '00ffffff00000000' }] }, {}],
      ],
    },
    {
      old: '{ s32 a[2]; u16 b[2]; char c[4]; u8 d[4]; char e[2][4]; }',
      new: '{ s64 a[2]; u8 b[2]; u8 c[6]; char d[3]; char e[2][6]; }',
      values: [
        [
          { a: [-1, 2], b: [255, 0], c: 'abc', d: [97, 98, 0, 0], e: ['ab', 'cd'] },
          { a: [-1, 2], b: [255, 0], c: [97, 98, 99, 0, 0, 0], d: 'ab', e: ['ab', 'cd'] },
        ],
        [{ b: [1, 256], d: [0, 0, 0, 1] }, { b: [1, 0] }, 'b[1] does not fit 256', 'd does not fit [0,0,0,1]'],
      ],
      steps: ['widened a[]', 'narrowed b[]', 'longer c', 'shorter d', 'longer e[]'],
    },
    {
      old: 'u32[2]',
      new: 'u64[3]',
      values: [
        [
          [1, 2],
          [1, 2, 0],
        ],
      ],
      steps: ['longer ', 'widened []'],
    },
    { old: '{ u8 a; u32 b[0]; }', new: '{ u16 a; }', values: [[{ a: 1 }, { a: 1 }]], steps: ['widened a'] },
  ],
  'structures with one member': [
    {
      old: '{ u64 a; struct { u32 v; } b; u32 c[2]; struct { struct { u8 w; } v; } d; }',
      new: '{ struct { u64 v; } a; u64 b; struct { u32 v; } c[2]; u8 d; }',
      values: [
        [
          { a: 1, b: { v: 2 }, c: [3, 4], d: { v: { w: 5 } } },
          { a: { v: 1 }, b: 2, c: [{ v: 3 }, { v: 4 }], d: 5 },
        ],
      ],
      steps: ['wrapped a a.v', 'widened b.v b', 'wrapped c[] c[].v', 'unwrapped d.v.w d'],
    },
    { old: 'u64', new: '{ u64 v; }', values: [[5, { v: 5 }]], steps: ['wrapped  v'] },
    { old: '{ u32 v; }', new: 'u64', values: [[{ v: 5 }, 5]], steps: ['widened v '] },
    { old: 'u64', new: '{ u32 n; u64 v; }', rename: { '': 'v' }, set: { n: 9 }, values: [[5, { n: 9, v: 5 }]] },
    {
      old: '{ u32 n; u64 v; }',
      new: 'u64',
      rename: { v: '' },
      values: [
        [{ v: 5 }, 5],
        [{ n: 1, v: 5 }, 5, 'n dropped 1'],
      ],
    },
    // Fields of the kernel do not count.
    {
      old: 'u64',
      new: 'struct bpf_spin_lock { u32 val; }; struct s { struct bpf_spin_lock lock; u64 v; };',
      values: [[5, { v: 5 }]],
      steps: ['kernel lock', 'wrapped  v'],
    },
    {
      old: 'struct bpf_spin_lock { u32 val; }; struct s { u64 v; struct bpf_spin_lock lock; };',
      new: 'u64',
      values: [[{ v: 5 }, 5]],
      steps: ['unwrapped v ', 'kernel lock'],
    },
    { old: 'u32[2]', new: '{ u32 v[2]; }', values: [[[1, 2], { v: [1, 2] }]] },
    { old: '{ u32 v; }', new: 'u32', drop: ['v'], values: [[{ v: 5 }, 0]] },
  ],
  'rename, drop, set': [
    {
      old: '{ u32 a; u32 b; struct { u32 x; u32 y; } in; }',
      new: '{ u32 b; u64 a; struct { u16 z; u32 y; } out; u8 q; }',
      rename: { a: 'b', b: 'a', in: 'out', 'in.x': 'out.z' },
      set: { q: '0x10' },
      values: [
        [
          { a: 1, b: 2, in: { x: 3, y: 4 } },
          { b: 1, a: 2, out: { z: 3, y: 4 }, q: 16 },
        ],
        [{ in: { x: 65537 } }, { out: { z: 1 }, q: 16 }, 'in.x does not fit 65537'],
      ],
      steps: ['renamed a b', 'widened b a', 'narrowed in.x out.z', 'renamed in.y out.y', 'new q'],
    },
    {
      // A bare name of a member further in, and across structures.
      old: '{ struct { u32 deep; u32 other; } in; struct { u32 x; u32 y; } k; }',
      new: '{ u64 found; struct { u32 other; } in; struct { u32 y; u32 x; } k; u32 deep; }',
      rename: { deep: 'found', 'k.x': 'k.y', 'k.y': 'k.x' },
      values: [
        [
          { in: { deep: 1, other: 2 }, k: { x: 3, y: 4 } },
          { found: 1, in: { other: 2 }, k: { y: 3, x: 4 }, deep: 0 },
        ],
      ],
    },
    {
      old: '{ u32 a; u32 b[2]; struct { u32 x; u32 y; } c; char t[4]; u8 f:3; }',
      new: '{ u32 a; char t[4]; }',
      drop: ['b', 'c.x', 'a', 'f'],
      set: { a: 3 },
      values: [
        [
          { a: 1, b: [1, 2], c: { x: 3 }, t: 'ab', f: 7 },
          { a: 3, t: 'ab' },
        ],
        [{ c: { x: 3, y: 4 } }, { a: 3 }, 'c.y dropped 4'],
      ],
      steps: ['new a', 'moved t', 'dropped a', 'dropped b', 'dropped c.x', 'dropped c.y', 'dropped f'],
    },
    {
      old: '{ u32 a; }',
      new: '{ u32 a; enum { R, W = 4 } b; char t[4]; u8 f:3; s8 g:5; struct { u8 x; u8 y; } in; struct { u8 x; u8 y; } in2; u64 big; bool o; union { u32 v4; u8 v6[16]; }; }',
      set: { b: 'W', t: 'abc', f: 5, g: -2, in: { y: 4 }, 'in2.y': 6, big: '18446744073709551615', o: true, v4: 77 },
      values: [
        [
          { a: 1 },
          {
            a: 1,
            b: 'W',
            t: 'abc',
            f: 5,
            g: -2,
            in: { x: 0, y: 4 },
            in2: { x: 0, y: 6 },
            big: '18446744073709551615',
            o: true,
            v4: 77,
          },
        ],
      ],
    },
    {
      // Of an array, elements that had an old one; of a new array, all.
      old: '{ struct { u8 x; } a[2]; }',
      new: '{ struct { u8 x; u8 y; u8 z:4; } a[3]; struct { u16 x; u16 y; } b[2]; }',
      set: { 'a[].y': 1, 'a.z': 2, 'b[].y': 3 },
      values: [
        [
          { a: [{ x: 9 }, { x: 8 }] },
          {
            a: [
              { x: 9, y: 1, z: 2 },
              { x: 8, y: 1, z: 2 },
              { x: 0, y: 0, z: 0 },
            ],
            b: [
              { x: 0, y: 3 },
              { x: 0, y: 3 },
            ],
          },
        ],
      ],
    },
    {
      old: '{ struct { u8 x; u16 k; } a[2]; }',
      new: '{ struct { u32 z; u16 k; } a[2]; }',
      rename: { 'a.x': 'a.z' },
      values: [
        [
          {
            a: [
              { x: 1, k: 2 },
              { x: 3, k: 4 },
            ],
          },
          {
            a: [
              { z: 1, k: 2 },
              { z: 3, k: 4 },
            ],
          },
        ],
      ],
    },
    {
      old: '{ u32 a[2]; }',
      new: '{ u32 b[2]; u32 a; }',
      rename: { a: 'b' },
      values: [[{ a: [1, 2] }, { b: [1, 2], a: 0 }]],
      steps: ['renamed a b', 'new a'],
    },
  ],
  unions: [
    // Of single bytes, and of what is in network order, in any byte order.
    {
      old: '{ union { u8 a; s8 b; } u; }',
      new: '{ u8 q; union { u8 a; s8 b; } u; }',
      values: [[{ u: { a: 9 } }, { u: { a: 9 } }]],
    },
    {
      old: '{ union { __be32 a; u8 b[4]; } u; }',
      new: '{ u8 q; union { u32 a; u8 b[4]; } u; }',
      values: [[{ u: { b: [1, 2, 3, 4] } }, { u: { b: [1, 2, 3, 4] } }]],
    },
    {
      old: '{ u32 q; union { u32 a; u8 b[4]; }; union { u64 w; } u; }',
      new: '{ union { u64 w; } u; union { u32 a; u8 b[4]; }; }',
      values: [
        [
          { a: 5, u: { w: 6 } },
          { a: 5, u: { w: 6 } },
        ],
      ],
      steps: ['moved u', 'moved (a|b)', 'dropped q'],
      orders: 'one',
    },
    {
      old: 'enum e { A }; struct s { u8 f; union { enum e a; u32 n; } u; union { u32 x; u32 y; } v; };',
      new: 'enum e { A, B }; struct s { union { enum e a; u32 n; } u; union { u32 x; u64 y; } v; };',
      values: [
        [{ u: { n: 77 } }, { u: { n: 77 } }],
        [{ v: { x: 1 } }, {}, 'v not alike {"x":1}'],
      ],
      steps: ['moved u', 'union v', 'dropped f'],
      orders: 'one',
    },
    {
      // Of members of other unions nothing is guessed; by hand they can be named.
      old: '{ u32 ip; union { u32 k; u64 l; }; }',
      new: '{ union { u32 ip; u8 ip6[16]; }; u32 k; }',
      values: [
        [{}, {}],
        [{ ip: 1, k: 2 }, {}, 'ip dropped 1', '(k|l) dropped {"l":2}'],
      ],
      orders: 'little',
    },
    {
      old: '{ u32 ip; union { u16 k; u64 l; }; }',
      new: '{ union { u32 ip; u8 ip6[16]; }; u32 k; }',
      rename: { ip: 'ip', k: 'k' },
      values: [
        [
          { ip: 1, k: 2 },
          { ip: 1, k: 2 },
        ],
      ],
    },
    {
      old: '{ union { u16 k; u64 l; } u; }',
      new: '{ union { u32 k; u64 l; } u; }',
      rename: { 'u.k': 'u.k' },
      values: [
        [{ u: { k: 2 } }, { u: { k: 2 } }],
        [{ u: { l: 65536 } }, {}, 'u not alike {"l":65536}'],
      ],
      orders: 'little',
    },
    {
      old: '{ union { u8 k; u64 l; } u; }',
      new: '{ u32 k; union { u8 k; u64 l; } u; }',
      rename: { 'u.k': 'k' },
      values: [
        [{ u: { k: 2 } }, { k: 2 }],
        [{ u: { $raw: '0201000000000000' } }, { k: 2 }, 'u not alike {"l":258}'],
      ],
      orders: 'little',
    },
    {
      old: '{ union { u32 v; } u; }',
      new: '{ struct { union { u32 v; } in; } u; }',
      values: [[{ u: { v: 3 } }, { u: { in: { v: 3 } } }]],
      orders: 'one',
    },
  ],
  floats: [
    {
      old: '{ float a; double b; double c; float d; }',
      new: '{ double c; double a; float b; float d; }',
      values: [
        [
          { a: 1.5, b: -2.5, c: 0.1, d: 3 },
          { a: 1.5, b: -2.5, c: 0.1, d: 3 },
        ],
        [
          { a: '-0', b: '-Infinity', c: 'NaN', d: 'NaN' },
          { a: '-0', b: '-Infinity', c: 'NaN', d: 'NaN' },
        ],
        [
          { a: '0xff800001', b: '0x7ff0000020000000' },
          { a: '0xfff0000020000000', b: '0x7f800001' },
        ],
        [{ b: 0.1 }, { b: 0.10000000149011612 }, 'b not exact 0.1'],
        [{ b: 1e300 }, { b: 'Infinity' }, 'b not exact 1e+300'],
        [{ b: '0x7ff0000000000001' }, { b: 'NaN' }, 'b not exact 0x7ff0000000000001'],
      ],
      steps: ['moved c', 'widened a', 'narrowed b', 'moved d'],
    },
  ],
};

for (const [title, rows] of Object.entries(ROWS)) {
  t.test(title, async (t) => {
    for (const row of rows) {
      for (const [from, to] of [
        [true, true],
        [false, false],
        [true, false],
        [false, true],
      ] as const) {
        if (row.orders !== undefined && (from !== to || (row.orders === 'little' && !from))) continue;
        const [old, fresh] = [typeOf(row.old, from), typeOf(row.new, to)];
        const how = migration(old, fresh, optionsOf(row));
        const about = `${row.old} → ${row.new}, ${from ? 'little' : 'big'} to ${to ? 'little' : 'big'}`;
        t.same(how.unused, [], about);
        if (from && to && row.steps !== undefined) t.same(how.steps.map(stepText), row.steps, about);
        for (const [value, gives, ...losses] of row.values) {
          const { bytes, losses: found } = convert(how, encode(old, value));
          t.equal(bytes.toString('hex'), encode(fresh, gives).toString('hex'), `${JSON.stringify(value)}: ${about}`);
          t.same(found.map(lossText), losses, `${JSON.stringify(value)}: ${about}`);
        }
      }
    }
  });
}

/** Values that JSON has no word for: bytes. */
const unhex = (text: string) => Buffer.from(text.replaceAll(' ', ''), 'hex');

t.test('what is in network order stays in it', async (t) => {
  const old = '{ __be16 a; u32 c; __be32 b; u16 d; __be16 e[2]; __be64 f; }';
  const fresh = '{ __be32 b; __be32 c; u16 e[2]; __be32 a; __be16 d; __be64 f; }';
  const values = '1234 0000 00000001 c0a80001 0050 0102 0304 000000000000 1122334455667788';
  const becomes = 'c0a80001 00000001 0102 0304 00001234 0050 000000000000 1122334455667788';
  for (const [from, to] of [
    [true, true],
    [true, false],
    [false, true],
    [false, false],
  ] as const) {
    const how = migration(typeOf(old, from), typeOf(fresh, to));
    const { bytes, losses } = convert(how, unhex(values));
    // What one side does not declare to be in network order, is taken to be in it.
    t.equal(bytes.toString('hex'), unhex(becomes).toString('hex'), `${from} ${to}`);
    t.same(losses, []);
  }
  const narrow = migration(typeOf('{ __be32 a; }'), typeOf('{ __be16 a; }'));
  t.same(convert(narrow, unhex('00001234')).bytes.toString('hex'), '1234');
  t.match(convert(narrow, unhex('00011234')).losses, [{ member: 'a', reason: 'does not fit', value: '70196' }]);
});

t.test('any bytes stay the same', async (t) => {
  const random = new Random(5);
  const types = [
    '{ u8 a; u32 b; union { u8 c; u64 d; }; char t[5]; u8 f:3; u16 g[3]; bool h; double i; }',
    `${E1} struct bpf_timer { u64 a; u64 b; }; struct s { enum e a; struct bpf_timer t; void *p; u8 z; };`,
    'u8[7]',
    'char[9]',
    'u64',
    '{ struct { u8 a; u16 b; } c[300]; }',
  ].map((text) => typeOf(text));
  for (const name of ['values.o', 'values.eb.o', 'special.o']) {
    const { btf, maps } = readBtfFile(fixture(`btf/${name}`), { name });
    for (const { keyType, valueType } of maps) {
      for (const id of [keyType, valueType]) if (id !== 0) types.push({ btf, id });
    }
  }
  t.ok(types.length > 20);
  for (const type of types) {
    const how = migration(type, { btf: Btf.parse(type.btf.bytes, { name: 'again' }), id: type.id });
    t.equal(how.same, true);
    t.equal(how.mayLose, false);
    t.same(how.steps.map(stepText), ['same ']);
    const bytes = random.bytes(how.from);
    t.equal(convert(how, bytes).bytes.toString('hex'), bytes.toString('hex'));
  }
});

t.test('padding stays where it lies within what is copied as it is', async (t) => {
  const rows = [
    // Between members that stay together, and before the end.
    [
      '{ u8 a; u32 b; u8 c; }',
      '{ u8 a; u32 b; u8 c; u64 d; }',
      '01ffffff 02000000 03eeeeee',
      '01ffffff 02000000 03000000 00000000 0000000000000000',
    ],
    [
      '{ u8 a; u32 b; u32 c; u8 d; }',
      '{ u8 a; u32 b; u8 e; u8 d; }',
      '01ffffff 02000000 00000000 03eeeeee',
      '01ffffff 02000000 00030000',
    ],
    [
      '{ u8 a; u32 b; u8 c; u8 d; }',
      '{ u8 a; u32 b; u8 c; bool d; }',
      '01ffffff 02000000 0301eeee',
      '01ffffff 02000000 03010000',
    ],
    // Not into a member that is new there.
    ['{ u8 a; u32 b; }', '{ u8 a; u8 n; u32 b; }', '01ffffff 02000000', '01000000 02000000'],
    [
      '{ u8 a; u32 b; u8 c; }',
      '{ u8 a; u32 b; u8 c; u8 d; }',
      '01000000 02000000 03ffffff',
      '01000000 02000000 03000000',
    ],
    // A whole structure, also elsewhere.
    [
      '{ u8 q; struct { u8 a; u32 b; } in; }',
      '{ struct { u8 a; u32 b; } in; }',
      '00777777 01ffffff 02000000',
      '01ffffff 02000000',
    ],
    // Bits between bit-fields.
    ['{ u8 a:2; u8 n:3; u8 b:3; u8 c; }', '{ u8 a:2; u8 n:3; u8 b:3; u16 c; }', 'ff07', 'ff000700'],
  ] as const;
  for (const [old, fresh, bytes, becomes] of rows) {
    const found = convert(migration(typeOf(old), typeOf(fresh)), unhex(bytes));
    t.equal(found.bytes.toString('hex'), unhex(becomes).toString('hex'), `${old} → ${fresh}`);
    t.same(found.losses, []);
  }
});

t.test('what only the kernel sets stays zero', async (t) => {
  const head =
    'struct bpf_spin_lock { u32 val; }; struct bpf_timer { u64 a; u64 b; }; struct bpf_rb_node { u64 a[4]; };';
  const old = typeOf(
    `${head} struct s { struct bpf_spin_lock lock; u32 a; struct bpf_timer t[2]; struct bpf_timer gone; struct bpf_rb_node n; u32 plain; struct bpf_spin_lock was; };`,
  );
  const fresh = typeOf(
    `${head} struct s { struct bpf_timer t[3]; struct bpf_rb_node n; struct bpf_spin_lock lock; u32 a; struct bpf_spin_lock plain; u32 was; };`,
  );
  const how = migration(old, fresh);
  t.same(how.steps.map(stepText), [
    'longer t',
    'kernel t[]',
    'moved n',
    'kernel lock',
    'moved a',
    'kernel plain',
    'kernel was',
    'kernel gone',
    'dropped plain',
  ]);
  const bytes = Buffer.alloc(how.from, 1);
  const { bytes: found, losses } = convert(how, bytes);
  t.equal(found.toString('hex'), `${'00'.repeat(48)}${'01'.repeat(32)}00000000010101010000000000000000`);
  t.same(losses.map(lossText), ['plain dropped 16843009']);
  // Also in a structure that stays as it is, and in each of several.
  const inner = 'struct in { u32 x; struct bpf_spin_lock lock; };';
  const within = migration(
    typeOf(`${head} ${inner} struct s { struct in i; struct in k[2]; };`),
    typeOf(`${head} ${inner} struct s { struct in k[2]; struct in i; u32 n; };`),
  );
  const all = convert(within, Buffer.alloc(within.from, 1));
  t.equal(all.bytes.toString('hex'), `${'0101010100000000'.repeat(3)}00000000`);
  t.same(all.losses, []);
});

/** Types of any layout. */
function madeType(make: (w: BtfWriter) => number, little = true): TypeRef {
  const w = new BtfWriter(little);
  const id = make(w);
  return { btf: Btf.parse(w.bytes(), { name: 'x' }), id };
}

t.test('layouts that C does not give', async (t) => {
  // Members of the same names and types, elsewhere.
  const pair = (at: number) =>
    madeType((w) => {
      const u8 = w.int('u8', 1);
      return w.struct('s', 4, [
        { name: 'a', type: u8, at },
        { name: 'b', type: u8, at: at + 8 },
      ]);
    });
  t.equal(convert(migration(pair(0), pair(16)), unhex('0102ffff')).bytes.toString('hex'), '00000102');
  for (const from of [true, false]) {
    for (const to of [true, false]) {
      // Integers that do not fill their bytes, in elements of another size.
      const seven = (size: number, little: boolean, bits = 7) =>
        madeType((w) => w.array(w.int('_BitInt', size, { bits }), 3), little);
      const [old, fresh] = [seven(1, from), seven(2, to)] as const;
      const found = convert(migration(old, fresh), encode(old, [1, 127, 64]));
      t.same(decode(fresh, found.bytes), [1, 127, 64]);
      const narrow = seven(1, to, 6);
      t.same(convert(migration(old, narrow), encode(old, [1, 127, 64])).losses.map(lossText), [
        '[1] does not fit 127 ×2',
      ]);
      // Enums from before compilers told signed from unsigned.
      for (const size of [1, 2, 4]) {
        const before = madeType((w) => w.enum('e', size, { BAD: -1, GOOD: 1, FINE: 2 }), from);
        const now = madeType((w) => w.enum('e', 4, { GOOD: 5, BAD: -1, FINE: 2 }, true), to);
        const same = madeType((w) => w.enum('e', size, { BAD: -1, GOOD: 1, FINE: 2 }, true), to);
        for (const name of ['BAD', 'GOOD', 'FINE']) {
          for (const type of [now, same]) {
            const { bytes, losses } = convert(migration(before, type), encode(before, name));
            t.equal(decode(type, bytes), name);
            t.same(losses, []);
          }
        }
      }
    }
  }
  const before = madeType((w) => w.enum('e', 4, { BAD: -1, GOOD: 1 }));
  t.same(decode(typeOf('s64'), convert(migration(before, typeOf('s64')), encode(before, 'BAD')).bytes), -1);
  t.same(decode(before, convert(migration(typeOf('s32'), before), encode(typeOf('s32'), -1)).bytes), 'BAD');
  t.match(convert(migration(before, typeOf('u64')), encode(before, 'BAD')).losses, [{ value: 'BAD' }]);
  const flags = madeType((w) => w.enum('e', 4, { LOW: 1, HIGH: 0x80000000 }));
  t.same(decode(typeOf('s64'), convert(migration(flags, typeOf('s64')), encode(flags, 'HIGH')).bytes), 2 ** 31);
  const bytes = migration(typeOf('{ u8 a; u16 b; }', false), typeOf('{ u8 a; u16 b; }'));
  t.same(bytes.steps.map(stepText), ['same a', 'swapped b']);
});

t.test('data sections', async (t) => {
  const section = (names: readonly (readonly [name: string, type: string])[]): TypeRef => {
    const w = new BtfWriter();
    const types: Readonly<Record<string, number>> = { u32: w.int('u32', 4), u64: w.int('u64', 8) };
    let at = 0;
    const vars = names.map(([name, type]) => {
      const size = Number(type.slice(1)) / 8;
      at += size;
      return [w.var(name, w.volatile(types[type] as number)), at - size, size] as const;
    });
    const id = w.datasec('.bss', at, vars);
    return { btf: Btf.parse(w.bytes(), { name: 'x' }), id };
  };
  const old = section([
    ['errors', 'u64'],
    ['main.count', 'u32'],
    ['main', 'u32'],
    ['twice', 'u32'],
    ['twice', 'u32'],
    ['gone', 'u32'],
  ]);
  const fresh = section([
    ['main', 'u64'],
    ['failures', 'u64'],
    ['main.total', 'u64'],
    ['twice', 'u64'],
    ['twice', 'u64'],
    ['limit', 'u32'],
  ]);
  const how = migration(
    old,
    fresh,
    optionsOf({ rename: { errors: 'failures', 'main.count': 'main.total' }, set: { limit: 6 } }),
  );
  const { bytes, losses } = convert(
    how,
    encode(old, { errors: 1, 'main.count': 2, main: 3, twice: 4, 'twice#2': 5, gone: 9 }),
  );
  t.same(decode(fresh, bytes), { main: 3, failures: 1, 'main.total': 2, twice: 4, 'twice#2': 5, limit: 6 });
  t.same(losses.map(lossText), ['gone dropped 9']);
});

t.test('types that do not convert, and options that make no sense', async (t) => {
  const rows: readonly (readonly [old: string, fresh: string, options: Options, message: RegExp])[] = [
    [
      '{ u32 a; }',
      '{ u32 a[2]; }',
      {},
      /^member a of the value: u32 does not become u32\[2\] \(--drop a leaves it out\)$/,
    ],
    ['{ u32 a; }', '{ float a; }', {}, /u32 does not become float/],
    ['{ float a; }', '{ u32 a; }', {}, /float does not become u32/],
    ['{ char a[4]; }', '{ u32 a; }', {}, /char\[4\] does not become u32/],
    ['{ char a[4]; }', '{ u16 a[4]; }', {}, /char\[4\] does not become u16\[4\]/],
    ['{ bool a[4]; }', '{ char a[4]; }', {}, /does not become/],
    ['{ struct { u32 x; } a; }', '{ char a[4]; }', {}, /member a.x of the value: u32 does not become char\[4\] a/],
    ['{ __be32 a; }', '{ u16 a; }', {}, /__be32 does not become u16/],
    [
      '{ u32 a; }',
      '{ struct { u32 x; u32 y; } a; }',
      {},
      /\(--rename a=a.MEMBER says which member it becomes, --drop a leaves it out\)$/,
    ],
    [
      '{ struct { u32 x; u32 y; } a; }',
      '{ u32 a; }',
      {},
      /\(--rename a.MEMBER=a says which member it comes from, --drop a leaves it out\)$/,
    ],
    [
      'u64',
      '{ u64 a; u64 b; }',
      {},
      /^the value: u64 does not become struct s \(--rename =MEMBER says which member it becomes\)$/,
    ],
    [
      '{ u64 a; u64 b; }',
      'u64',
      {},
      /^the value: struct s does not become u64 \(--rename MEMBER= says which member it comes from\)$/,
    ],
    ['u64', 'float', {}, /^the value: u64 does not become float$/],
    [
      '{ u32 a; }',
      '{ struct { u32 x; } b; struct { u32 x; } c; }',
      { rename: { a: 'x' } },
      /--rename a=x: x may be any of b.x, c.x of the new value/,
    ],
    [
      '{ struct { u32 x; } b; struct { u32 x; } c; }',
      '{ u32 a; }',
      { rename: { x: 'a' } },
      /x may be any of b.x, c.x of the old/,
    ],
    ['{ u32 a; u32 b; }', '{ u32 c; }', { rename: { a: 'c', b: 'c' } }, /--rename b=c: renames a member a second time/],
    ['{ u32 a; }', '{ u32 b; }', { rename: { a: 'b' }, drop: ['a'] }, /--drop a: it is renamed as well/],
    ['{ u32 a; }', '{ u32 a; }', { set: { a: 1 } }, /--set a: the old value has it as well \(--drop a\)/],
    ['{ u8 q; }', '{ u32 a; }', { set: { a: 'x' } }, /--set a: .*must be a whole number from 0 to 4294967295, got "x"/],
    ['{ u8 q; }', '{ struct { u8 b; } a; }', { set: { a: {}, 'a.b': 1 } }, /--set a: a member of it is named as well/],
    ['{ u8 q; }', '{ union { u8 a; u16 b; }; }', { set: { a: 1, b: 1 } }, /a and b are members of one union/],
    [
      '{ u8 q; }',
      '{ struct { u8 x; } a[2]; }',
      { rename: { q: 'a.x' } },
      /--rename q=a\[\].x: a member of an array’s elements/,
    ],
    ['{ struct { u8 x; } a[2]; }', '{ u8 q; }', { rename: { 'a.x': 'q' } }, /a member of an array’s elements/],
  ];
  for (const [old, fresh, options, message] of rows) {
    try {
      migration(typeOf(old), typeOf(fresh), optionsOf(options));
      t.fail(`${old} → ${fresh}`);
    } catch (error) {
      if (!(error instanceof BpfimgError)) throw error;
      t.match(error.message, message, `${old} → ${fresh}`);
      t.match(error.kind, /^(usage|conflict)$/);
    }
  }
  // What helps, helps.
  const dropped = migration(
    typeOf('{ u32 a; }'),
    typeOf('{ u32 a[2]; }'),
    optionsOf({ drop: ['a'], set: { a: [1, 2] } }),
  );
  t.equal(convert(dropped, unhex('05000000')).bytes.toString('hex'), '0100000002000000');
  t.throws(() => dropped.convert(Buffer.alloc(4), 1, Buffer.alloc(8), 0), RangeError);
  t.throws(() => dropped.convert(Buffer.alloc(4), 0, Buffer.alloc(8), 1), RangeError);
  t.throws(() => dropped.convert(Buffer.alloc(4), -1, Buffer.alloc(8), 0), RangeError);
});

t.test('options that apply to nothing are told', async (t) => {
  const old = typeOf(`${E1} struct s { enum e a; u32 b; };`);
  const fresh = typeOf('enum e { A, BB = 5 }; struct s { enum e a; u32 b; };');
  const how = migration(old, fresh, {
    ...optionsOf({ rename: { B: 'BB', b: 'c', C: 'CC', x: 'b' }, drop: ['y', 'b'], set: { z: 1, b: 2 } }),
    where: 'key',
  });
  t.same(how.unused, [
    { option: 'rename', name: 'b', why: 'the new key has no member c' },
    { option: 'rename', name: 'C', why: 'the old key has no member C' },
    { option: 'rename', name: 'x', why: 'the old key has no member x' },
    { option: 'drop', name: 'y', why: 'the old key has no member y' },
    { option: 'set', name: 'z', why: 'the new key has no member z' },
  ]);
});

// ---------------------------------------------------------------------------------------------------
// Random types, and what their values become by another way: as JSON

/** Rounds; set to try more. */
const ROUNDS = Number(process.env.MIGRATE_ROUNDS ?? 300);

t.test('random types and values, by way of JSON', async (t) => {
  const tally = { pairs: 0, values: 0, losses: 0, back: 0, refused: 0 };
  for (let round = 0; round < ROUNDS; round++) {
    const random = new Random(Number(process.env.MIGRATE_SEED ?? 7) * 100_000 + round);
    const old = randomStruct(random, 3, false);
    const renames = new Map<string, string>();
    const fresh = changed(random, old, renames);
    const [a, b] = [old, fresh].map((shape) =>
      typeOf(`${shapeText(shape, 'top').replace('struct', 'struct s').replace(/ top$/, '')};`, random.below(3) > 0),
    ) as [TypeRef, TypeRef];
    const about = `round ${round}: ${shapeText(old, 'x')} → ${shapeText(fresh, 'x')}`;
    let how: Migration;
    try {
      how = migration(a, b, { rename: renames });
    } catch (error) {
      if (!(error instanceof BpfimgError) || becomes(old, fresh, zeroOf(old)) !== undefined)
        throw new Error(about, { cause: error });
      tally.refused++;
      continue;
    }
    tally.pairs++;
    let back: Migration | undefined;
    if (becomes(fresh, old, zeroOf(fresh)) !== undefined)
      back = migration(b, a, { rename: new Map([...renames].map(([name, other]) => [other, name])) });
    for (let i = 0; i < 8; i++) {
      const value = randomValue(random, old);
      const source = encode(a, value);
      const { bytes, losses } = convert(how, source);
      const want = becomes(old, fresh, value);
      if (want === undefined) throw new Error(`should not convert: ${about}`);
      const lost = losses.reduce((sum, { times }) => sum + times, 0);
      const expected = encode(b, want.value);
      if (!bytes.equals(expected) || lost !== want.lost) {
        t.equal(bytes.toString('hex'), expected.toString('hex'), `${JSON.stringify(value)}, ${about}`);
        t.same(lost, want.lost, `${JSON.stringify(losses)} of ${JSON.stringify(value)}, ${about}`);
        return;
      }
      tally.values++;
      tally.losses += lost;
      if (lost > 0 || back === undefined) continue;
      const again = convert(back, bytes);
      if (again.losses.length > 0) continue;
      if (!again.bytes.equals(source)) {
        t.same(decode(a, again.bytes), decode(a, source), `back: ${about}`);
        return;
      }
      tally.back++;
    }
  }
  t.ok(tally.values > ROUNDS && tally.losses > ROUNDS && tally.back > ROUNDS / 3, JSON.stringify(tally));
  t.comment(JSON.stringify(tally));
});

// ---------------------------------------------------------------------------------------------------
// Real objects, and types that nobody meant well

const clang = spawnSync('clang', ['--version'], { stdio: 'ignore' }).error === undefined;
const noCompiler = clang || required('clang') ? false : 'needs clang';

/** The types of a C text as clang makes them. */
function compiled(folder: string, text: string, little: boolean): Btf {
  const [source, object] = [path.join(folder, 'x.c'), path.join(folder, 'x.o')];
  fs.writeFileSync(source, C_HEAD + text);
  const options = ['-target', little ? 'bpfel' : 'bpfeb', '-g', '-O2', '-c', source, '-o', object];
  const { status, stderr } = spawnSync('clang', options, { encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
  return readBtfFile(fs.readFileSync(object), { name: 'x.o' }).btf;
}

/** The same without enums, whose names must differ in C. */
function plain(shape: Shape): Shape {
  if (shape.is === 'enum') return INTS[2] as Shape;
  if (shape.is === 'array') return { ...shape, of: plain(shape.of) };
  if (shape.is !== 'struct') return shape;
  return { ...shape, members: shape.members.map(({ name, shape }) => ({ name, shape: plain(shape) })) };
}

t.test('types that a compiler made', { skip: noCompiler }, async (t) => {
  const folder = t.testdir();
  const random = new Random(11);
  for (const little of [true, false]) {
    const texts = Array.from(
      { length: 60 },
      (_, i) =>
        `${shapeText(plain(randomStruct(random, 3, false)), 'top')
          .replace('struct', `struct s${i}`)
          .replace(/ top$/, '')};`,
    );
    const btf = compiled(folder, texts.map((text, i) => `${text} struct s${i} v${i};`).join('\n'), little);
    for (const [i, text] of texts.entries()) {
      const ours = cTypes(text, [], little).type(`struct s${i}`);
      const theirs = { btf, id: btf.find('STRUCT', `s${i}`) as number };
      const how = migration(ours, theirs);
      if (how.same) continue;
      t.fail(`${text}: ${typeDefinitions(btf, [theirs.id]).join(' ')}`);
    }
  }
  // A version and the next one.
  const sources = [
    'enum state { NEW, OPEN, CLOSED }; struct times { u64 first; u32 last; }; struct s { u64 packets; u32 bytes; enum state state; struct times times; char name[16]; u8 tcp:1; u8 seen:7; u16 ports[2]; };',
    'enum state { UNKNOWN, NEW, OPEN, HALF, CLOSED }; struct times { u64 last; u64 first; }; struct s { u32 version; u64 octets; u64 packets; struct times times; enum state state; u16 seen:9; u16 tcp:1; char name[24]; u32 ports[4]; };',
  ];
  for (const [from, to] of [
    [true, true],
    [false, true],
  ] as const) {
    const [old, fresh] = [
      compiled(folder, `${sources[0]} struct s v;`, from),
      compiled(folder, `${sources[1]} struct s v;`, to),
    ].map((btf) => ({ btf, id: btf.find('STRUCT', 's') as number })) as [TypeRef, TypeRef];
    const how = migration(old, fresh, optionsOf({ rename: { bytes: 'octets' }, set: { version: 2 } }));
    const value = {
      packets: 7,
      bytes: 800,
      state: 'CLOSED',
      times: { first: '18446744073709551615', last: 5 },
      name: 'eth0',
      tcp: 1,
      seen: 100,
      ports: [80, 443],
    };
    const { bytes, losses } = convert(how, encode(old, value));
    t.same(losses, []);
    const { bytes: octets, ...rest } = value;
    t.same(decode(fresh, bytes), { version: 2, octets, ...rest, ports: [80, 443, 0, 0] });
  }
});

const VMLINUX = '/sys/kernel/btf/vmlinux';
const noVmlinux = fs.existsSync(VMLINUX) ? false : 'needs a kernel with type information';

t.test('structures of the running kernel', { skip: noVmlinux }, async (t) => {
  const [one, other] = ['one', 'other'].map((name) => Btf.parse(fs.readFileSync(VMLINUX), { name })) as [Btf, Btf];
  const random = new Random(17);
  const ids = Array.from({ length: one.typeCount }, (_, i) => i + 1).filter((id) => one.kind(id) === 'STRUCT');
  for (let i = 0; i < ids.length; i += 20) {
    const id = ids[i] as number;
    if (!migration({ btf: one, id }, { btf: other, id }).same) t.fail(one.nameOf(id));
  }
  const tally = { converted: 0, refused: 0 };
  for (let i = 0; i < 500; i++) {
    try {
      const how = migration({ btf: one, id: random.of(ids) }, { btf: other, id: random.of(ids) });
      if (how.from < 65536 && how.to < 65536) convert(how, random.bytes(how.from));
      tally.converted++;
    } catch (error) {
      if (!(error instanceof BpfimgError)) throw error;
      tally.refused++;
    }
  }
  t.ok(tally.converted > 450, JSON.stringify(tally));
});

t.test('long arrays need few operations', async (t) => {
  const big = (of: string) => typeOf(`{ u8 a; ${of} b[20000000]; u16 c; }`);
  const started = process.cpuUsage();
  const pairs = [
    [big('u8'), big('u16')],
    [big('struct { u8 x; u16 y; }'), big('struct { u8 x; u32 y; }')],
    [typeOf('{ u8 a[3][20000000]; }'), typeOf('{ u16 a[2][10000000]; }')],
  ] as const;
  for (const [old, fresh] of pairs) t.ok(migration(old, fresh).steps.length < 8);
  t.ok(process.cpuUsage(started).user < 2_000_000);
  const how = migration(typeOf('u16[300000]'), typeOf('u8[200000]'));
  const bytes = Buffer.alloc(how.from);
  for (const index of [5, 199999, 200000, 299999]) bytes.writeUInt16LE(300, index * 2);
  t.same(convert(how, bytes).losses.map(lossText), ['[5] does not fit 300 ×2', '[200000] beyond the end 300 ×2']);
});

t.test('types that make no sense are errors', async (t) => {
  const byte = madeType((w) => w.int('u8', 1));
  const rows: readonly (readonly [make: (w: BtfWriter) => number, message: RegExp])[] = [
    [
      (w) => w.struct('s', 8, [{ name: 'a', type: 1, at: 0 }]),
      /contains itself, or nests structures more than 32 deep/,
    ],
    [(w) => w.struct('s', 8, [{ name: '', type: 1, at: 0 }]), /contains itself/],
    [
      (w) => {
        const u32 = w.int('u32', 4);
        return w.struct('s', 8, [
          { name: 'a', type: u32, at: 0 },
          { name: 'b', type: u32, at: 8 },
        ]);
      },
      /member b overlaps the one before it/,
    ],
    [
      (w) => {
        let id = w.int('u8', 1);
        for (let size = 2; size < 2 ** 24; size *= 2) {
          const half = (size / 2) * 8;
          id = w.struct(`s${size}`, size, [
            { name: 'a', type: id, at: 0 },
            { name: 'b', type: id, at: half },
          ]);
        }
        return id;
      },
      /has more than 100000 members/,
    ],
    [(w) => w.array(w.int('u8', 1), 0xffff_ffff), /has 4294967295 bytes, more than 2147483647/],
    [(w) => w.fwd('x'), /has no size/],
    [() => 0, /has no size/],
  ];
  for (const [make, message] of rows) {
    const type = madeType(make);
    for (const [from, to] of [
      [type, type],
      [type, byte],
      [byte, type],
      [type, madeType((w) => w.struct('t', 1, [{ name: 'a', type: w.int('u8', 1), at: 0 }]))],
    ] as const) {
      try {
        migration(from, to);
        t.fail(String(message));
      } catch (error) {
        t.ok(error instanceof BpfimgError);
        if (from === to || !/does not become/.test((error as Error).message))
          t.match((error as Error).message, message);
      }
    }
  }
});

t.test('objects that were damaged', async (t) => {
  const random = new Random(13);
  const tally = { converted: 0, refused: 0 };
  for (const name of ['values.o', 'special.o', 'flowd.o']) {
    const { btf, maps } = readBtfFile(fixture(`btf/${name}`), { name });
    const ids = maps.flatMap(({ keyType, valueType }) => [keyType, valueType]).filter((id) => id > 0);
    for (let round = 0; round < 300; round++) {
      const blob = Buffer.from(btf.bytes);
      const end = 24 + blob.readUInt32LE(12);
      for (let i = random.below(12); i >= 0; i--) blob[24 + random.below(end - 24)] = random.below(256);
      try {
        const worse = Btf.parse(blob, { name: 'x' });
        for (const id of ids) {
          for (const pair of [[btf, worse] as const, [worse, btf] as const]) {
            const how = migration({ btf: pair[0], id }, { btf: pair[1], id });
            if (how.from > 1 << 20 || how.to > 1 << 20) continue;
            convert(how, random.bytes(how.from));
            tally.converted++;
          }
        }
      } catch (error) {
        if (!(error instanceof BpfimgError)) throw error;
        tally.refused++;
      }
    }
  }
  t.ok(tally.converted > 1000 && tally.refused > 100, JSON.stringify(tally));
});
