/** Protobuf messages to JSON and back: protobufjs is the witness for what is regular, `$raw` for the rest. */
import assert from 'node:assert/strict';
import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import t from 'tap';
import { PointerError } from '../src/errors.js';
import { messageFields } from '../src/image/message.js';
import { messages } from '../src/image/schema.gen.js';
import { decodeMessage, encodeMessage, WireError } from '../src/image/wire.js';
import type { Json, JsonObject } from '../src/value.js';
import { sameBytes } from './helpers/codec.js';
import { blob, dataMessage, scalar, varint } from './helpers/images.js';
import { allMessages, bytesOf, jsonOf, type Model, messageOf } from './helpers/messages.js';
import { patience } from './helpers/needs.js';

t.setTimeout(patience(120_000));

fc.configureGlobal({ seed: 2, numRuns: 60 });

t.test('every message encodes to what protobufjs encodes, and decodes to what went in', async (t) => {
  t.same(Object.keys(messages).sort(), [...allMessages].sort(), 'the table has every message of images/*.proto');
  for (const name of allMessages) {
    fc.assert(
      fc.property(messageOf(name), (model) => {
        const bytes = bytesOf(name, model);
        const json = jsonOf(name, model);
        sameBytes(encodeMessage(name, json), bytes);
        assert.deepEqual(decodeMessage(name, bytes), json);
      }),
    );
    t.pass(name);
  }
});

const fown = Buffer.concat([1, 2, 3, 4, 5].map((no) => scalar(no, 0)));
const bee = Buffer.from('bee');
const file = (name: Uint8Array, ...more: Uint8Array[]) =>
  Buffer.concat([scalar(1, 7), scalar(2, 2), scalar(3, 0), blob(5, fown), blob(6, name), ...more]);

/** Messages that are not as CRIU writes them, and that $raw must keep. */
const IRREGULAR: readonly { what: string; name: string; bytes: Buffer; shows?: JsonObject }[] = [
  {
    what: 'an unknown field in front',
    name: 'bpfmap_data_entry',
    bytes: Buffer.concat([scalar(99, 5), dataMessage(1, 2, 3, 4)]),
  },
  {
    what: 'an unknown field in the middle',
    name: 'bpfmap_data_entry',
    bytes: Buffer.concat([scalar(1, 1), blob(50, bee), scalar(2, 2), scalar(3, 3), scalar(4, 4)]),
    shows: { map_id: 1, keys_bytes: 2, values_bytes: 3, count: 4 },
  },
  {
    what: 'an unknown field at the end',
    name: 'bpfmap_data_entry',
    bytes: Buffer.concat([dataMessage(1, 2, 3, 4), scalar(5, 9)]),
  },
  {
    what: 'unknown fields of every wire type',
    name: 'pstree_entry',
    bytes: Buffer.concat([
      ...[1, 2, 3, 4].map((no) => scalar(no, no)),
      scalar(20, 1),
      blob(21, bee),
      Buffer.concat([varint(22 * 8 + 1), Buffer.alloc(8, 7)]),
      Buffer.concat([varint(23 * 8 + 5), Buffer.alloc(4, 7)]),
      scalar(0x1fffffff, 1),
    ]),
    shows: { pid: 1, ppid: 2, pgid: 3, sid: 4 },
  },
  {
    what: 'an unknown field in a nested message',
    name: 'reg_file_entry',
    bytes: Buffer.concat([scalar(1, 7), scalar(2, 2), scalar(3, 0), blob(5, fown, scalar(40, 1)), blob(6, bee)]),
  },
  {
    what: 'an over-long varint',
    name: 'bpfmap_data_entry',
    bytes: Buffer.concat([scalar(1, 1, 5), scalar(2, 2, 10), scalar(3, 3), scalar(4, 4, 2)]),
    shows: { map_id: 1, keys_bytes: 2, values_bytes: 3, count: 4 },
  },
  {
    what: 'an over-long tag and length',
    name: 'reg_file_entry',
    bytes: Buffer.concat([
      ...[varint(8, 3), varint(7), scalar(2, 2), scalar(3, 0), varint(5 * 8 + 2, 2), varint(fown.length, 4), fown],
      ...[blob(6, bee)],
    ]),
  },
  {
    what: 'fields out of order',
    name: 'bpfmap_data_entry',
    bytes: Buffer.concat([scalar(4, 4), scalar(3, 3), scalar(1, 1), scalar(2, 2)]),
    shows: { map_id: 1, keys_bytes: 2, values_bytes: 3, count: 4 },
  },
  {
    what: 'a field twice, of which the last counts',
    name: 'bpfmap_data_entry',
    bytes: Buffer.concat([scalar(1, 8), dataMessage(1, 2, 3, 4)]),
    shows: { map_id: 1, keys_bytes: 2, values_bytes: 3, count: 4 },
  },
  {
    what: 'a message in two pieces, which are one',
    name: 'ext_file_entry',
    bytes: Buffer.concat([scalar(1, 1), blob(5, fown.subarray(0, 4)), blob(5, fown.subarray(4))]),
    shows: { id: 1, fown: { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 } },
  },
  {
    what: 'a packed list where CRIU writes one field a value',
    name: 'pstree_entry',
    bytes: Buffer.concat([...[1, 2, 3, 4].map((no) => scalar(no, no)), scalar(5, 6), blob(5, varint(7), varint(300))]),
    shows: { pid: 1, ppid: 2, pgid: 3, sid: 4, threads: [6, 7, 300] },
  },
  {
    what: 'a packed list of fixed64',
    name: 'sk_opts_entry',
    bytes: Buffer.concat([
      ...[1, 2, 3, 4, 5, 6].map((no) => scalar(no, 0)),
      blob(16, Buffer.alloc(8, 1), Buffer.alloc(8, 2)),
    ]),
  },
  {
    what: 'an empty packed list',
    name: 'pstree_entry',
    bytes: Buffer.concat([...[1, 2, 3, 4].map((no) => scalar(no, 0)), blob(5)]),
  },
  { what: 'text that is not UTF-8', name: 'reg_file_entry', bytes: file(Buffer.from('b\xff\xe9', 'latin1')) },
  { what: 'a bool beyond 1', name: 'reg_file_entry', bytes: file(bee, scalar(9, 2)) },
  { what: 'an empty field unknown to us', name: 'plugins_entry', bytes: blob(3) },
];

t.test('$raw keeps messages that their members would not rebuild', async (t) => {
  for (const { what, name, bytes, shows } of IRREGULAR) {
    const json = decodeMessage(name, bytes);
    sameBytes(encodeMessage(name, json), bytes);
    t.ok(hasRaw(json), what);
    if (shows) t.match(json, shows, `${what}: the members are there to be read`);
    t.not(Buffer.compare(encodeMessage(name, withoutRaw(json) as JsonObject), bytes), 0, `${what}: $raw is needed`);
  }
});

function withoutRaw(value: Json): Json {
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return value.map(withoutRaw);
  return Object.fromEntries(
    Object.entries(value).flatMap(([key, member]) => (key === '$raw' ? [] : [[key, withoutRaw(member)]])),
  );
}
const hasRaw = (value: Json) => !isDeepStrictEqual(value, withoutRaw(value));

t.test('unknown enum numbers need no $raw', async (t) => {
  for (const number of [21, 65533, -1]) {
    const bytes = Buffer.concat([scalar(1, BigInt.asUintN(64, BigInt(number))), scalar(2, 5)]);
    t.same(decodeMessage('file_entry', bytes), { type: number, id: 5 });
    sameBytes(encodeMessage('file_entry', { type: number, id: 5 }), bytes);
  }
  sameBytes(encodeMessage('file_entry', { type: 'BPFMAP', id: 5 }), encodeMessage('file_entry', { type: 19, id: 5 }));
});

t.test('an edit next to $raw changes its own field and leaves every other byte alone', async (t) => {
  const parts = [
    scalar(9, 1),
    scalar(4, 4, 3),
    scalar(1, 1),
    blob(60, bee),
    scalar(3, 3, 10),
    scalar(2, 2),
    scalar(60, 1),
  ];
  const json = decodeMessage('bpfmap_data_entry', Buffer.concat(parts));
  const expected = [...parts];
  expected[4] = scalar(3, 300);
  sameBytes(encodeMessage('bpfmap_data_entry', { ...json, values_bytes: 300 }), Buffer.concat(expected));

  const old = Buffer.concat([scalar(1, 1), scalar(2, 2), scalar(1, 9), scalar(3, 3), scalar(4, 4)]);
  const twice = decodeMessage('bpfmap_data_entry', old);
  sameBytes(
    encodeMessage('bpfmap_data_entry', { ...twice, map_id: 5 }),
    Buffer.concat([scalar(1, 5), scalar(2, 2), scalar(3, 3), scalar(4, 4)]),
    'a field that was there twice is there once',
  );

  const listed = Buffer.concat([
    scalar(30, 1),
    ...[1, 2, 3, 4].map((no) => scalar(no, 0)),
    blob(5, varint(6), varint(7)),
  ]);
  const tree = decodeMessage('pstree_entry', listed);
  sameBytes(
    encodeMessage('pstree_entry', { ...tree, threads: [6, 7, 8] }),
    Buffer.concat([listed.subarray(0, listed.length - 4), scalar(5, 6), scalar(5, 7), scalar(5, 8)]),
    'an edited list is written as CRIU writes lists',
  );
  const { threads: _, ...alone } = tree;
  sameBytes(encodeMessage('pstree_entry', alone), listed.subarray(0, listed.length - 4), 'a member taken out is gone');
  sameBytes(
    encodeMessage('reg_file_entry', { ...decodeMessage('reg_file_entry', file(bee, scalar(40, 1))), mode: 3 }),
    file(bee, scalar(40, 1), scalar(10, 3)),
    'a member put in comes last',
  );
  const nested = file(bee).subarray(0, 6);
  const odd = Buffer.concat([nested, blob(5, fown, scalar(40, 1)), blob(6, bee)]);
  const { fown: owner, ...rest } = decodeMessage('reg_file_entry', odd);
  sameBytes(
    encodeMessage('reg_file_entry', { ...rest, fown: { ...(owner as JsonObject), pid: 9 } }),
    Buffer.concat([nested, blob(5, fown.subarray(0, 8), scalar(5, 9), scalar(40, 1)), blob(6, bee)]),
    'an edit of a nested message keeps what is unknown in it',
  );
  t.pass();
});

t.test('any edit next to $raw reads back as made, with unknown fields untouched', async (t) => {
  const name = 'bpfmap_meta_entry';
  fc.assert(
    fc.property(messageOf(name), messageOf(name), fc.nat(), fc.nat(), (one, other, position, chosen) => {
      const fields = messageFields(name).map((field) => field.name);
      const { map_id, ...others } = one as Model & { map_id: number };
      const start = bytesOf(name, { map_id });
      const pieces = [
        start,
        ...Object.keys(others).map((key) => bytesOf(name, { map_id, ...pick(others, key) }).subarray(start.length)),
      ];
      pieces.splice(position % (pieces.length + 1), 0, scalar(1000, 42, 4));
      const json = decodeMessage(name, Buffer.concat(pieces));
      const edited = fields[1 + (chosen % (fields.length - 1))] as string;
      const want = jsonOf(name, other)[edited];
      const { [edited]: _, ...changed } = json;
      const after = encodeMessage(name, want === undefined ? changed : { ...changed, [edited]: want });
      const { $raw, ...members } = decodeMessage(name, after);
      assert.deepEqual(members, jsonOf(name, { ...omit(one, edited), ...pick(other, edited) }));
      assert.ok(String($raw).includes(scalar(1000, 42, 4).toString('hex')));
    }),
  );
  t.pass();
});

function omit<T>(object: Readonly<Record<string, T>>, name: string): Record<string, T> {
  return Object.fromEntries(Object.entries(object).filter(([key]) => key !== name));
}
function pick<T>(object: Readonly<Record<string, T>>, name: string): Record<string, T> {
  return Object.fromEntries(Object.entries(object).filter(([key]) => key === name));
}

t.test('JSON that does not fit its message: which member, and what it must be', async (t) => {
  const U32 = 'must be a whole number from 0 to 4294967295';
  const U64 = 'must be a whole number from 0 to 18446744073709551615';
  const I32 = 'must be a whole number from -2147483648 to 2147483647';
  const reg = { id: 1, flags: 0, pos: 0, fown: { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 }, name: 'x' };
  const meta = { map_id: 1 };
  const sk = { id: 1, ino: 1, type: 1, state: 1, flags: 0, uflags: 0, backlog: 0, peer: 0, fown: reg.fown, name: '' };
  const opts = {
    so_sndbuf: 1,
    so_rcvbuf: 1,
    so_snd_tmo_sec: 0,
    so_snd_tmo_usec: 0,
    so_rcv_tmo_sec: 0,
    so_rcv_tmo_usec: 0,
  };
  const table: readonly [message: string, object: JsonObject, pointer: string, text: string][] = [
    ['reg_file_entry', { ...reg, id: -1 }, '/id', `${U32}, got -1`],
    ['reg_file_entry', { ...reg, id: 2 ** 32 }, '/id', `${U32}, got 4294967296`],
    ['reg_file_entry', { ...reg, id: 1.5 }, '/id', `${U32}, got 1.5`],
    ['reg_file_entry', { ...reg, id: Number.NaN }, '/id', `${U32}, got NaN`],
    ['reg_file_entry', { ...reg, id: '0x100000000' }, '/id', `${U32}, got "0x100000000"`],
    ['reg_file_entry', { ...reg, id: '' }, '/id', `${U32}, got ""`],
    ['reg_file_entry', { ...reg, id: '1e3' }, '/id', `${U32}, got "1e3"`],
    ['reg_file_entry', { ...reg, id: null }, '/id', `${U32}, got null`],
    ['reg_file_entry', { ...reg, id: [1] }, '/id', `${U32}, got a list`],
    ['reg_file_entry', { ...reg, id: {} }, '/id', `${U32}, got an object`],
    ['reg_file_entry', { ...reg, pos: -1n }, '/pos', `${U64}, got -1`],
    ['reg_file_entry', { ...reg, pos: 2n ** 64n }, '/pos', `${U64}, got 18446744073709551616`],
    ['reg_file_entry', { ...reg, pos: '99999999999999999999' }, '/pos', `${U64}, got "99999999999999999999"`],
    ['reg_file_entry', { ...reg, mnt_id: -(2 ** 31) - 1 }, '/mnt_id', `${I32}, got -2147483649`],
    ['reg_file_entry', { ...reg, mnt_id: 2 ** 31 }, '/mnt_id', `${I32}, got 2147483648`],
    ['reg_file_entry', { ...reg, ext: 1 }, '/ext', 'must be true or false, got 1'],
    ['reg_file_entry', { ...reg, name: 7 }, '/name', 'must be text, got 7'],
    ['reg_file_entry', { ...reg, fown: 'root' }, '/fown', 'must be an object, got "root"'],
    ['reg_file_entry', { ...reg, fown: { ...reg.fown, pid: 'x' } }, '/fown/pid', `${U32}, got "x"`],
    [
      'reg_file_entry',
      { ...reg, fown: { ...reg.fown, gid: 1 } },
      '/fown/gid',
      'unknown member, fown_entry has no such field',
    ],
    ['reg_file_entry', { ...reg, build_id: 3 }, '/build_id', 'must be a list, got 3'],
    ['reg_file_entry', { ...reg, build_id: [1, 'y'] }, '/build_id/1', `${U32}, got "y"`],
    ['reg_file_entry', { ...reg, flags: 'O_RDWR | O_NONSENSE' }, '/flags', `${U32}, got "O_RDWR | O_NONSENSE"`],
    ['reg_file_entry', { ...reg, 'a/b~': 1 }, '/a~1b~0', 'unknown member, reg_file_entry has no such field'],
    ['reg_file_entry', { id: 1 }, '', 'required member "flags" is missing'],
    ['reg_file_entry', { ...reg, $raw: 'zz' }, '/$raw', 'must be pairs of hex digits'],
    ['reg_file_entry', { ...reg, $raw: '0' }, '/$raw', 'must be pairs of hex digits'],
    ['reg_file_entry', { ...reg, $raw: 5 }, '/$raw', 'must be pairs of hex digits'],
    ['reg_file_entry', { ...reg, $raw: '' }, '/$raw', 'is not a reg_file_entry: required field id (1) is missing'],
    [
      'reg_file_entry',
      { ...reg, $raw: '08' },
      '/$raw',
      'is not a reg_file_entry: a varint runs past the end of its message',
    ],
    [
      'bpfmap_meta_entry',
      { ...meta, holders: [{ file_id: 1, pid: 1 }] },
      '/holders/0',
      'required member "fd" is missing',
    ],
    ['file_entry', { type: 'SOCKET', id: 1 }, '/type', 'must be a number or one of UND, REG, PIPE'],
    ['file_entry', { type: 'constructor', id: 1 }, '/type', 'must be a number or one of UND, REG, PIPE'],
    ['file_entry', { type: 2 ** 40, id: 1 }, '/type', `${I32}, got 1099511627776`],
    ['unix_sk_entry', { ...sk, opts, name: '=G0' }, '/name', 'must be quoted-printable text, got "=G0"'],
    ['unix_sk_entry', { ...sk, opts, name: '\u0100' }, '/name', 'must be quoted-printable text, got "\u0100"'],
    ['packet_mclist', { index: 1, type: 1, addr: 'A' }, '/addr', 'must be base64 text, got "A"'],
    ['packet_mclist', { index: 1, type: 1, addr: 'x'.repeat(99) }, '/addr', `got "${'x'.repeat(40)}…"`],
    ['inotify_wd_entry', { id: 1, i_ino: 1, mask: 1, ignored_mask: 0, s_dev: '8:x' }, '/s_dev', `${U32}, got "8:x"`],
  ];
  for (const [message, object, pointer, text] of table) {
    const error = thrown(() => encodeMessage(message, object));
    const what = `${pointer === '' ? 'the entry' : pointer} ${text}`;
    if (error instanceof PointerError) t.match({ at: error.pointer, text: error.text }, { at: pointer, text }, what);
    else t.fail(what, { error });
  }
  t.match(
    thrown(() => encodeMessage('reg_file_entry', { ...reg, name: 'ł' }, 'latin1')),
    { pointer: '/name' },
  );
});

t.test('broken protobuf: at which byte, in which field, and why', async (t) => {
  const first = scalar(1, 1);
  const table: readonly [what: string, name: string, bytes: Buffer, at: number, field: string, text: string][] = [
    [
      'nothing',
      'bpfmap_data_entry',
      Buffer.alloc(0),
      0,
      '',
      'required field map_id (1) is missing in bpfmap_data_entry',
    ],
    ['a tag alone', 'bpfmap_data_entry', Buffer.of(8), 1, '', 'a varint runs past the end of its message'],
    [
      'a varint without end',
      'bpfmap_data_entry',
      Buffer.of(8, 0x80, 0x80),
      1,
      '',
      'a varint runs past the end of its message',
    ],
    ['11 bytes of varint', 'bpfmap_data_entry', scalar(1, 1, 11), 1, '', 'a varint is longer than 64 bits'],
    ['65 bits of varint', 'bpfmap_data_entry', scalar(1, 2n ** 64n), 1, '', 'a varint is longer than 64 bits'],
    [
      'field 0',
      'bpfmap_data_entry',
      Buffer.concat([first, Buffer.of(0, 1)]),
      2,
      '',
      'field tag 0 is not valid in protobuf',
    ],
    [
      'a tag beyond 32 bits',
      'bpfmap_data_entry',
      varint(2n ** 32n),
      0,
      '',
      'field tag 4294967296 is not valid in protobuf',
    ],
    [
      'a group',
      'bpfmap_data_entry',
      Buffer.concat([first, Buffer.of(0x0b)]),
      2,
      '',
      'field 1 has wire type 3 (group), which CRIU never writes',
    ],
    [
      'wire type 7',
      'bpfmap_data_entry',
      Buffer.of(0x0f),
      0,
      '',
      'field 1 has wire type 7 (unknown), which CRIU never writes',
    ],
    ['bytes for a number', 'bpfmap_data_entry', blob(1, bee), 0, 'map_id', 'wire type 2 (bytes), expected 0 (varint)'],
    [
      '32 bits for a number',
      'bpfmap_data_entry',
      Buffer.of(0x0d, 1, 0, 0, 0),
      0,
      'map_id',
      'wire type 5 (32-bit), expected 0 (varint)',
    ],
    [
      'a number for text',
      'tunfile_entry',
      Buffer.concat([first, scalar(2, 1)]),
      2,
      'netdev',
      'wire type 0 (varint), expected 2 (bytes)',
    ],
    [
      '64 bits cut off',
      'pstree_entry',
      Buffer.of(0x09, 1, 2, 3),
      0,
      '',
      'field 1 needs 8 bytes, 3 left in its message',
    ],
    [
      '32 bits cut off',
      'pstree_entry',
      Buffer.of(0x0d, 1, 2, 3),
      0,
      '',
      'field 1 needs 4 bytes, 3 left in its message',
    ],
    [
      'text cut off',
      'tunfile_entry',
      Buffer.concat([first, Buffer.of(0x12, 9, 1)]),
      2,
      '',
      'field 2 needs 9 bytes, 1 left in its message',
    ],
    [
      'a length of 4 GiB',
      'tunfile_entry',
      Buffer.concat([first, Buffer.of(0x12), varint(0xffffffff)]),
      2,
      '',
      'field 2 needs 4294967295 bytes, 0 left in its message',
    ],
    [
      'a length of 2^64-1',
      'tunfile_entry',
      Buffer.concat([Buffer.of(0x12), varint(2n ** 64n - 1n)]),
      0,
      '',
      'field 2 needs 18446744073709551615 bytes, 0 left in its message',
    ],
    ['33 bits for uint32', 'bpfmap_data_entry', dataMessage(1, 2, 3, 4).fill(0), 0, '', 'field tag 0'],
    [
      '2^32 for uint32',
      'bpfmap_data_entry',
      Buffer.concat([scalar(1, 2 ** 32), scalar(2, 0), scalar(3, 0), scalar(4, 0)]),
      0,
      'map_id',
      '4294967296 does not fit uint32',
    ],
    [
      '2^64-1 for uint32',
      'bpfmap_data_entry',
      Buffer.concat([scalar(1, 1), scalar(2, 2n ** 64n - 1n), scalar(3, 0), scalar(4, 0)]),
      2,
      'keys_bytes',
      '18446744073709551615 does not fit uint32',
    ],
    [
      '2^31 for sint32',
      'reg_file_entry',
      file(bee, scalar(7, 2 ** 32)),
      file(bee).length,
      'mnt_id',
      '2147483648 does not fit sint32',
    ],
    [
      '2^32 for int32',
      'pidfd_entry',
      Buffer.concat([...[1, 2, 3].map((no) => scalar(no, 1)), scalar(4, 2 ** 32), blob(5, fown)]),
      6,
      'nspid',
      '4294967296 does not fit int32',
    ],
    [
      'a packed list cut off',
      'pstree_entry',
      Buffer.concat([...[1, 2, 3, 4].map((no) => scalar(no, 0)), blob(5, Buffer.of(1, 0x80))]),
      11,
      'threads',
      'a varint runs past the end of its message',
    ],
    [
      'a packed fixed64 cut off',
      'sk_opts_entry',
      Buffer.concat([...[1, 2, 3, 4, 5, 6].map((no) => scalar(no, 0)), blob(16, Buffer.alloc(9))]),
      23,
      'so_filter',
      'a packed list ends within a value',
    ],
    [
      'a broken message in a message',
      'ext_file_entry',
      Buffer.concat([first, blob(5, Buffer.of(8))]),
      5,
      'fown',
      'a varint runs past the end of its message',
    ],
    [
      'a message in a message without all its fields',
      'ext_file_entry',
      Buffer.concat([first, blob(5)]),
      4,
      'fown',
      'required field uid (1) is missing in fown_entry',
    ],
    [
      'deep',
      'file_entry',
      Buffer.concat([scalar(1, 16), scalar(2, 1), blob(15, first, blob(5, blob(1, bee)))]),
      10,
      'ext.fown.uid',
      'wire type 2 (bytes), expected 0 (varint)',
    ],
  ];
  for (const [what, name, bytes, at, field, text] of table) {
    const error = thrown(() => decodeMessage(name, bytes));
    if (!(error instanceof WireError)) t.fail(what, { error });
    else t.match({ at: error.offset, field: error.field, text: error.message }, { at, field, text }, what);
  }
});

function thrown(run: () => unknown): unknown {
  try {
    return run();
  } catch (error) {
    return error;
  }
}
