/** BTF: blobs and objects as types, types as C, and blobs that make no sense. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t, { type Test } from 'tap';
import { BTF_KINDS, Btf, type BtfKind, type BtfType } from '../src/btf/btf.js';
import { typeDefinition, typeDefinitions, typeName, typeNamed } from '../src/btf/c.js';
import { readBtfFile } from '../src/btf/elf.js';
import { SPECIAL_FIELDS, specialFields } from '../src/btf/special.js';
import { valueCodec } from '../src/btf/values.js';
import { viewOf } from '../src/bytes.js';
import { BpfimgError } from '../src/errors.js';
import { BtfWriter } from './helpers/btf-writer.js';
import { TOP } from './helpers/command.js';
import { fixture } from './helpers/fixtures.js';
import { mutateWords, useTypes } from './helpers/fuzz-types.js';
import { skipWithoutBpftool } from './helpers/kernel-live.js';
import { required } from './helpers/needs.js';
import { Random } from './helpers/random.js';

const VMLINUX = '/sys/kernel/btf/vmlinux';
const noVmlinux = fs.existsSync(VMLINUX) ? false : 'needs a kernel with type information';

/** Every kind, each once or more. */
function everyKind(little: boolean): BtfWriter {
  const w = new BtfWriter(little);
  const int = w.int('int', 4, { encoding: 1 });
  const u64 = w.int('unsigned long long', 8);
  const ptr = w.ptr(0);
  const array = w.array(int, 3, u64);
  const struct = w.struct('s', 16, [
    { name: 'a', type: int, at: 0 },
    { name: 'p', type: ptr, at: 64 },
  ]);
  w.union('u', 12, [{ name: 'list', type: array, at: 0 }]);
  w.enum('e', 4, { A: 1, B: 4294967295 });
  w.fwd('later', true);
  const typedef = w.typedef('t', struct);
  w.const(w.volatile(w.restrict(typedef)));
  const proto = w.proto(int, [
    ['first', struct],
    ['', 0],
  ]);
  w.func('f', proto, 1);
  const variable = w.var('v', typedef, 0);
  w.datasec('.bss', 16, [[variable, 0, 16]]);
  w.float('double', 8);
  w.declTag('note', struct, 1);
  w.typeTag('user', int);
  w.enum64('e64', 8, { LOW: -(2n ** 63n), HIGH: 2n ** 62n }, true);
  w.struct('bits', 4, [
    { name: 'x', type: int, at: 3, bits: 7 },
    { name: '', type: int, at: 10, bits: 22 },
  ]);
  return w;
}

t.test('every kind, in either byte order', async (t) => {
  for (const little of [true, false]) {
    const blob = everyKind(little).bytes(little ? 0 : 8);
    // At an odd address and inside a larger buffer: words cannot be read in place.
    const within = Buffer.concat([Buffer.from('x'), blob]).subarray(1);
    const btf = Btf.parse(within, { name: 'test' });
    t.equal(btf.littleEndian, little);
    btf.check();
    const types = Array.from({ length: btf.typeCount }, (_, i) => btf.type(i + 1));
    t.same([...new Set(types.map(({ kind }) => kind))].sort(), [...BTF_KINDS].filter((kind) => kind !== 'VOID').sort());
    const is = (name: string, want: object) => {
      const id = btf.named(name)[0] as number;
      t.match(btf.type(id), want, name);
    };
    is('int', { kind: 'INT', size: 4, bits: 32, signed: true, bool: false });
    is('s', {
      kind: 'STRUCT',
      size: 16,
      members: [
        { name: 'a', bitOffset: 0 },
        { name: 'p', bitOffset: 64, bits: 0 },
      ],
    });
    is('u', { kind: 'UNION', size: 12 });
    is('e', {
      kind: 'ENUM',
      signed: false,
      values: [
        { name: 'A', value: 1n },
        { name: 'B', value: 0xffff_ffffn },
      ],
    });
    is('later', { kind: 'FWD', union: true });
    is('f', { kind: 'FUNC', linkage: 1 });
    is('v', { kind: 'VAR', linkage: 0 });
    is('.bss', { kind: 'DATASEC', size: 16, vars: [{ offset: 0, size: 16 }] });
    is('note', { kind: 'DECL_TAG', component: 1 });
    is('e64', { kind: 'ENUM64', signed: true, values: [{ value: -(2n ** 63n) }, { value: 2n ** 62n }] });
    is('bits', {
      members: [
        { name: 'x', bitOffset: 3, bits: 7 },
        { bitOffset: 10, bits: 22 },
      ],
    });
    const qualified = types.find(({ kind }) => kind === 'CONST') as BtfType;
    t.equal(btf.nameOf(btf.resolve(qualified.id)), 's', 'resolved through const volatile restrict typedef');
    t.equal(btf.size(qualified.id), 16);
    t.equal(btf.size(btf.find('UNION', 'u') as number), 12);
    t.equal(btf.find('STRUCT', 'u'), undefined, 'kinds are told apart');
    t.equal(btf.find('STRUCT', 'nope'), undefined);
    t.same(btf.named(''), []);
  }
});

t.test('split BTF continues where its base ends', async (t) => {
  const base = new BtfWriter();
  const int = base.int('int', 4, { encoding: 1 });
  const split = new BtfWriter(true, base);
  const struct = split.struct('of_module', 8, [{ name: 'a', type: int, at: 0 }]);
  split.typedef('int', struct);
  const baseBtf = Btf.parse(base.bytes(), { name: 'base' });
  const btf = Btf.parse(split.bytes(), { name: 'module', base: baseBtf });
  btf.check();
  t.equal(btf.firstId, 2);
  t.equal(btf.typeCount, 3);
  t.match(btf.type(1), { kind: 'INT', name: 'int' });
  t.equal(typeDefinition(btf, struct), 'struct of_module {\n\tint a;\n};');
  t.same(btf.named('int'), [1, 3]);
  t.same(valueCodec(btf, struct).decode(viewOf(Buffer.from('0500000000000000', 'hex'))), { a: 5 });
  t.throws(() => Btf.parse(split.bytes(), { name: 'module' }), BpfimgError, 'alone its strings are not there');
});

/** The message of a failure that is the user's news. */
function refusal(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (!(error instanceof BpfimgError)) throw error;
    return `${error.kind}: ${error.message}`;
  }
  return 'no error';
}

t.test('what is wrong is said with its place', async (t) => {
  const header = (change: (blob: Buffer) => void) => {
    const w = new BtfWriter();
    w.int('int', 4);
    const blob = w.bytes();
    change(blob);
    return () => Btf.parse(blob, { name: 'x' });
  };
  const types = (make: (w: BtfWriter) => unknown) => {
    const w = new BtfWriter();
    make(w);
    return () => {
      const btf = Btf.parse(w.bytes(), { name: 'x' });
      btf.check();
      for (let id = 1; id <= btf.typeCount; id++) {
        typeDefinition(btf, id);
        if (!['FUNC', 'FUNC_PROTO', 'FWD', 'DECL_TAG'].includes(btf.kind(id))) valueCodec(btf, id);
      }
    };
  };
  const chain = (w: BtfWriter, length: number) => {
    let id = w.int('int', 4);
    for (let i = 0; i < length; i++) id = w.const(id);
    return id;
  };
  const rows: readonly (readonly [run: () => unknown, message: RegExp])[] = [
    [() => Btf.parse(Buffer.alloc(3), { name: 'x' }), /^badImage: x: BTF: a header needs 24 bytes, got 3$/],
    [header((b) => b.writeUInt16LE(0x1234)), /expected the magic number 0xeb9f at offset 0, got 0x1234/],
    [header((b) => b.writeUInt8(2, 2)), /^unsupported: .*expected version 1, got 2/],
    [header((b) => b.writeUInt8(1, 3)), /^unsupported: .*expected no flags, got 1/],
    [header((b) => b.writeUInt32LE(99, 4)), /header length 99 at offset 4, expected 24 to 45/],
    [header((b) => b.writeUInt32LE(2, 8)), /types at 2, 16 bytes: expected multiples of 4/],
    [header((b) => b.writeUInt32LE(20, 12)), /types at 0, 20 bytes, reach into the strings at 16/],
    [header((b) => b.writeUInt32LE(6, 20)), /strings at 16, 6 bytes, but 21 bytes follow/],
    [header((b) => b.writeUInt32LE(0, 20)), /no strings/],
    [header((b) => b.writeUInt8(9, 40)), /the first string is not empty/],
    [header((b) => b.writeUInt8(9, 44)), /the strings do not end with a zero byte/],
    [header((b) => b.writeUInt8(21, 31)), /^unsupported: .*type 1 is of kind 21, expected 1 to 19: made by a newer/],
    [header((b) => b.writeUInt8(0, 31)), /type 1: info is 0x0, which is not a known kind/],
    [header((b) => b.writeUInt32LE(0x0400_0001, 28)), /type 1 \(STRUCT\) needs 24 bytes, 16 left/],
    [types((w) => w.ptr(9)), /type 1 \(PTR\): refers to type 9, expected at most 1/],
    [types((w) => w.add(8, 500, 0, 0, false, [])), /type 1: a name at offset 500, expected below 1/],
    [types((w) => w.add(8, w.string('n'.repeat(1025)), 0, 0, false, [])), /a name at offset 1 of more than 1024 bytes/],
    [types((w) => w.int('big', 17)), /type 1 \(INT big\): 17 bytes, expected 1 to 16/],
    [types((w) => w.int('odd', 4, { bits: 40 })), /40 bits from bit 0, expected 1 to 32/],
    [types((w) => w.float('f', 5)), /5 bytes, expected 2, 4, 8, 12 or 16/],
    [types((w) => w.enum('e', 3, {})), /3 bytes, expected 1, 2, 4 or 8/],
    [types((w) => w.add(2, '', 0, 5, false, [])), /has 5 parts, expected none/],
    [types((w) => w.typedef('t', 1)), /type 1 \(TYPEDEF t\): refers to itself/],
    [types((w) => [w.const(2), w.volatile(1)]), /type 1 \(CONST\): refers to itself/],
    [types((w) => chain(w, 70)), /refers to itself, or passes through more than 32 types/],
    [types((w) => w.array(1, 2)), /type 1 \(ARRAY\): contains itself/],
    [types((w) => w.array(w.array(w.int('int', 4), 0xffff), 0xffff)), /expected at most 4294967295/],
    [types((w) => w.struct('s', 4, [{ name: 'me', type: 1, at: 0 }])), /type 1 \(STRUCT s\): contains itself/],
    [types((w) => w.struct('s', 4, [{ name: 'm', type: w.count + 2, at: 33 }]) && w.int('i', 4)), /member m at bit 33/],
    [
      types((w) => w.struct('s', 4, [{ name: 'm', type: 2, at: 16 }]) && w.int('i', 4)),
      /type 1 \(STRUCT s\): member m ends at byte 6, expected at most 4/,
    ],
    [
      types((w) => w.struct('s', 4, [{ name: 'm', type: 2, at: 0, bits: 33 }]) && w.int('i', 4)),
      /makes a bit-field m of 33 bits, expected at most 32/,
    ],
    [types((w) => w.struct('s', 8, [{ name: 'v', type: 0, at: 0 }])), /has no size, because it is void/],
    [
      types((w) => {
        const int = w.int('int', 4);
        w.struct('s', 8, [
          { name: 'a', type: int, at: 0 },
          { name: 'b', type: int, at: 16 },
        ]);
      }),
      /type 2 \(STRUCT s\): member b overlaps the one before it/,
    ],
    [
      types((w) => w.datasec('.d', 4, [[w.var('v', w.int('int', 4)), 2, 4]])),
      /variable 0 ends at byte 6, expected at most 4/,
    ],
  ];
  for (const [run, message] of rows) t.match(refusal(run), message);
});

// ---------------------------------------------------------------------------------------------------
// Objects

t.test('objects: types, map definitions, data sections', async (t) => {
  for (const name of ['values.o', 'values.eb.o']) {
    const file = readBtfFile(fixture(`btf/${name}`), { name });
    const { btf } = file;
    btf.check();
    t.equal(btf.littleEndian, name === 'values.o');
    const found = file.find('flows');
    t.match(found, { type: 1, maxEntries: 64, keySize: 20, valueSize: 64 });
    t.equal(typeName(btf, found?.valueType as number), 'struct flow');
    t.equal(file.find('nothing'), undefined);
    const outer = file.find('outer_map_with_long_name'.slice(0, 15));
    t.match(outer, { name: 'outer_map_with_long_name', type: 13, maxEntries: 9, keySize: 6, valueSize: 4, keyType: 0 });
    t.match(outer?.inner, { type: 2, maxEntries: 5, flags: 1 << 12, keySize: 4, valueSize: 4 });
    const data = (map: string) => valueCodec(btf, file.find(map)?.valueType as number);
    t.match(file.find('flowd.bss'), { name: '.bss', type: 2, maxEntries: 1, keySize: 4, valueSize: 32, keyType: 0 });
    // Offsets come from relocations, sizes from the sections' headers.
    t.same(data('flowd.bss').decode(new DataView(new ArrayBuffer(32))), {
      hits: 0,
      misses: 0,
      peers: [
        { addr: 0, port: 0 },
        { addr: 0, port: 0 },
      ],
    });
    const bytes = Buffer.alloc(8);
    data('x.data').encode({ limit: 1, 'total.calls': 2 }, viewOf(bytes));
    t.equal(bytes.toString('hex'), name === 'values.o' ? '0100000002000000' : '0000000100000002');
    t.equal(data('flowd.rodata').typeName, '.rodata');
  }
  t.same(
    readBtfFile(everyKind(true).bytes(), { name: 'raw' }).maps.map(({ name }) => name),
    ['.bss'],
  );
});

t.test('what objects can be wrong about', async (t) => {
  const good = fixture('btf/values.o');
  const changed = (change: (bytes: Buffer) => void) => {
    const bytes = Buffer.from(good);
    change(bytes);
    return () => readBtfFile(bytes, { name: 'x.o' });
  };
  const rows: readonly (readonly [run: () => unknown, message: RegExp])[] = [
    [() => readBtfFile(good.subarray(0, 40), { name: 'x.o' }), /^badImage: x.o: ELF: its header needs 64 bytes/],
    [changed((b) => b.writeUInt8(1, 4)), /^unsupported: .*expected class 2 \(64 bits\), got 1/],
    [changed((b) => b.writeUInt8(3, 5)), /expected byte order 1 or 2 at offset 5, got 3/],
    [changed((b) => b.writeBigUInt64LE(0n, 0x28)), /^notFound: x.o: ELF: no sections/],
    [changed((b) => b.writeBigUInt64LE(2n ** 63n, 0x28)), /needs 64 bytes at offset 9223372036854776000/],
    [changed((b) => b.writeUInt16LE(9, 0x3a)), /section headers of 9 bytes, expected 64/],
    [changed((b) => b.writeUInt16LE(0xfff0, 0x3c)), /65520 section headers/],
    [changed((b) => b.writeUInt16LE(77, 0x3e)), /section names in section 77/],
    [
      changed((b) => b.write('.XTF\0', b.lastIndexOf('.BTF\0'))),
      /^notFound: x.o: ELF: no .BTF section: compile with -g/,
    ],
  ];
  for (const [run, message] of rows) t.match(refusal(run), message);
});

const clang = spawnSync('clang', ['--version'], { stdio: 'ignore' }).error === undefined;
const objcopy = spawnSync('llvm-objcopy', ['--version'], { stdio: 'ignore' }).error === undefined;
const noCompiler = (clang && objcopy) || required('clang') ? false : 'needs clang and llvm-objcopy';

t.test('the committed objects are what their source compiles to', { skip: noCompiler }, async (t) => {
  const folder = t.testdir();
  const { status, stderr } = spawnSync('sh', [path.join(TOP, 'fixtures/btf/rebuild.sh'), folder], { encoding: 'utf8' });
  t.equal(status, 0, stderr);
  for (const name of ['values.o', 'values.eb.o', 'special.o', 'flowd.o', 'rings.o', 'arena.o']) {
    // What maps and their values are, for compilers number types, and spell those of their own, as they like.
    const meaning = (bytes: Buffer) => {
      const { btf, maps } = readBtfFile(bytes, { name });
      return maps.map(({ keyType, valueType, inner, ...rest }) => ({
        ...rest,
        types: typeDefinitions(
          btf,
          [keyType, valueType].filter((id) => id > 0),
        ),
        special: valueType === 0 ? [] : specialFields(btf, valueType),
        inner: inner === undefined ? undefined : { ...inner, keyType: 0, valueType: typeName(btf, inner.valueType) },
      }));
    };
    t.same(meaning(fs.readFileSync(path.join(folder, name))), meaning(fixture(`btf/${name}`)), name);
  }
});

// ---------------------------------------------------------------------------------------------------
// C

t.test('types as C', async (t) => {
  const { btf, find } = readBtfFile(fixture('btf/values.o'), { name: 'values.o' });
  const flow = find('flows')?.valueType as number;
  t.equal(
    typeDefinitions(btf, [flow]).join('\n'),
    `enum state {
	NEW = 0,
	OPEN = 1,
	CLOSING = 7,
	CLOSED = 8,
};
struct flow {
	__u64 packets;
	__u64 bytes;
	_Bool seen;
	enum state state;
	char name[16];
	union {
		__be32 v4;
		__be32 v6[4];
		struct {
			__u64 high;
			__u64 low;
		};
	};
	__u16 ports[3];
};`,
  );
  t.match(
    typeDefinition(btf, find('packed_fields')?.valueType as number),
    /\t__u64 b: 47;\n[\s\S]*} __attribute__\(\(packed\)\);$/,
  );
  t.match(
    typeDefinition(btf, find('numbers')?.valueType as number),
    /const char \*const \*text;\n[\s\S]*__u32 __user \*tagged;/,
  );
  t.equal(typeName(btf, find('matrices')?.keyType as number), 'char[12]');
  t.equal(typeName(btf, find('matrices')?.keyType as number, 'key'), 'char key[12]');
  for (const [text, kind] of [
    ['struct flow', 'STRUCT'],
    ['flow', 'STRUCT'],
    [' enum  state ', 'ENUM'],
    ['__u32', 'TYPEDEF'],
    ['.bss', 'DATASEC'],
  ] as const) {
    t.equal(btf.kind(typeNamed(btf, text) as number), kind, text);
  }
  t.equal(typeNamed(btf, 'union flow'), undefined);

  const w = new BtfWriter();
  const int = w.int('int', 4);
  const proto = w.proto(w.ptr(int), [
    ['n', int],
    ['', 0],
  ]);
  const table = w.array(w.ptr(proto), 4);
  const tagged = w.ptr(w.typeTag('not a word', w.const(int)));
  const all = [
    w.func('f', proto),
    w.typedef('table_t', table),
    tagged,
    w.fwd('later'),
    w.enum64('e', 8, { A: 2n ** 63n }),
  ];
  const made = Btf.parse(w.bytes(), { name: 'x' });
  t.same(
    all.map((id) => typeDefinition(made, id)),
    [
      'int *f(int n, ...);',
      'typedef int *(*table_t[4])(int n, ...);',
      'const int __attribute__((btf_type_tag("not a word"))) *;',
      'struct later;',
      'enum e {\n\tA = 9223372036854775808ULL,\n};',
    ],
  );
});

t.test('types of the running kernel', { skip: noVmlinux || skipWithoutBpftool() }, async (t) => {
  const bytes = fs.readFileSync(VMLINUX);
  const took: number[] = [];
  for (let i = 0; i < 5; i++) {
    const start = performance.now();
    Btf.parse(bytes, { name: VMLINUX });
    took.push(performance.now() - start);
  }
  const best = Math.min(...took);
  t.comment(`parsed ${bytes.length} bytes in ${best.toFixed(1)} ms`);
  t.ok(best < 50, `parsed in ${best.toFixed(1)} ms`);

  const btf = Btf.parse(bytes, { name: VMLINUX });
  btf.check();
  const run = (...args: string[]) => {
    const { stdout } = spawnSync('bpftool', [...args], { encoding: 'utf8', maxBuffer: 1 << 30 });
    return stdout;
  };
  interface Theirs {
    readonly id: number;
    readonly kind: BtfKind;
    readonly name: string;
    readonly size?: number;
    readonly members?: readonly { name: string; type_id: number; bits_offset: number; bitfield_size?: number }[];
    readonly values?: readonly { name: string; val: number }[];
  }
  const { types } = JSON.parse(run('-j', 'btf', 'dump', 'file', VMLINUX)) as { types: readonly Theirs[] };
  t.equal(btf.typeCount, types.length, 'as many types as bpftool sees');
  const anonymous = (name: string) => (name === '' ? '(anon)' : name);
  // bpftool extends the sign of unsigned values; as C (below) it has them right.
  const clear = (value: number) => (Math.abs(value) < 2 ** 31 ? value : 'large');
  let wrong = 0;
  for (const { id, kind, name, size, members, values } of types) {
    const type = btf.type(id);
    const parts =
      type.kind === 'STRUCT' || type.kind === 'UNION'
        ? type.members.map((m) => [anonymous(m.name), m.type, m.bitOffset, m.bits])
        : type.kind === 'ENUM'
          ? type.values.map((v) => [v.name, clear(Number(v.value))])
          : [];
    const theirs =
      members?.map((m) => [m.name, m.type_id, m.bits_offset, m.bitfield_size ?? 0]) ??
      (kind === 'ENUM' ? (values ?? []).map((v) => [v.name, clear(v.val)]) : []);
    const same =
      type.kind === kind &&
      anonymous(type.name) === name &&
      (size === undefined || btf.size(id) === size) &&
      JSON.stringify(parts) === JSON.stringify(theirs);
    if (!same && wrong++ < 5) t.same([type.kind, type.name, parts], [kind, name, theirs], `type ${id}`);
  }
  t.equal(wrong, 0, 'kind, name, size and members of each are the same');

  // As C: but for blanks, padding that bpftool spells out, and numbers it puts behind names that come twice.
  const usual = (text: string) =>
    text
      .split('\n')
      .filter((line) => !/^\t+(long|int|short|char): \d+;$/.test(line))
      .map((line) =>
        line
          .replaceAll('[0]', '[]')
          .replace(/ ?\* ?/g, '*')
          .replace(/___\d+\b/g, ''),
      )
      .join('\n');
  const c = run('btf', 'dump', 'file', VMLINUX, 'format', 'c');
  const want = new Map<string, string>();
  for (const [text, head = ''] of c.matchAll(/^((?:struct|union|enum) \w+) \{(?:\}|\n[\s\S]*?^\})[^\n;]*;$/gm)) {
    if (!/___\d+$/.test(head)) want.set(head, usual(text));
  }
  const seen = new Set<string>();
  let compared = 0;
  for (let id = 1; id <= btf.typeCount; id++) {
    const kind = btf.kind(id);
    const word = { STRUCT: 'struct', UNION: 'union', ENUM: 'enum', ENUM64: 'enum' }[kind as string];
    const head = `${word} ${btf.nameOf(id)}`;
    if (word === undefined || seen.has(head)) continue;
    seen.add(head);
    const theirs = want.get(head);
    if (theirs === undefined) continue;
    compared++;
    const ours = usual(typeDefinition(btf, id));
    if (ours !== theirs) t.equal(ours, theirs, head);
  }
  t.ok(compared > 5000, `${compared} definitions are bpftool's`);

  for (const [name, { size }] of Object.entries(SPECIAL_FIELDS)) {
    const id = btf.find('STRUCT', name);
    if (id !== undefined) t.equal(btf.size(id), size, `${name} is as large as the kernel has it`);
  }
});

// ---------------------------------------------------------------------------------------------------
// Special fields

t.test('fields that the kernel keeps for itself', async (t) => {
  const file = readBtfFile(fixture('btf/special.o'), { name: 'special.o' });
  const fields = (map: string) =>
    specialFields(file.btf, file.find(map)?.valueType as number).map((f) => `${f.kind}@${f.offset}+${f.size}`);
  t.same(fields('lists'), ['bpf_spin_lock@4+4', 'bpf_list_head@8+16']);
  t.same(fields('trees'), ['bpf_spin_lock@0+4', 'bpf_rb_root@8+16']);
  t.same(fields('works'), ['bpf_timer@8+16', 'bpf_wq@24+16']);

  const w = new BtfWriter();
  const u32 = w.int('unsigned int', 4);
  const task = w.struct('task_struct', 4, [{ name: 'pid', type: u32, at: 0 }]);
  const lock = w.struct('bpf_spin_lock', 4, [{ name: 'val', type: u32, at: 0 }]);
  const other = w.struct('bpf_timer', 8, [{ name: 'not', type: u32, at: 0 }]);
  const tag = (name: string, attribute = false) => w.ptr(w.typeTag(name, w.const(task), attribute));
  const pair = w.struct('pair', 16, [
    { name: 'n', type: u32, at: 0 },
    { name: 'p', type: w.const(tag('kptr')), at: 64 },
  ]);
  const value = w.struct('value', 96, [
    { name: 'lock', type: w.typedef('lock_t', lock), at: 0 },
    { name: 'pairs', type: w.array(w.array(pair, 2), 2), at: 64 },
    { name: 'other', type: other, at: 576 },
    { name: 'user', type: tag('user'), at: 640 },
    { name: 'attribute', type: tag('kptr', true), at: 704 },
  ]);
  const unions = w.union('either', 4, [{ name: 'lock', type: lock, at: 0 }]);
  const btf = Btf.parse(w.bytes(), { name: 'x' });
  t.same(
    specialFields(btf, value).map((f) => `${f.kind}@${f.offset}, ${f.count} each ${f.stride}`),
    ['bpf_spin_lock@0, 1 each 4', 'kptr@16, 4 each 16'],
    'through typedefs, arrays of arrays and nested structures; by name and size',
  );
  t.same(specialFields(btf, unions), [], 'the kernel looks for none in unions');
  const [count] = [w.struct('bpf_refcount', 4, [{ name: '', type: u32, at: 0 }])];
  const many = w.array(w.struct('two', 24, [{ name: 'list', type: w.array(count, 3), at: 32 }]), 2 ** 25);
  const whole = w.array(w.array(count, 2 ** 10), 2 ** 19);
  const large = Btf.parse(w.bytes(), { name: 'x' });
  t.same(specialFields(large, whole), [{ kind: 'bpf_refcount', offset: 0, size: 4, count: 2 ** 29, stride: 4 }]);
  t.throws(() => specialFields(large, many), /more than 65536 arrays of kernel-owned fields/);
  t.same(specialFields(btf, u32), []);
});

// ---------------------------------------------------------------------------------------------------
// Hostile

const ROUNDS = Number(process.env.BPFIMG_BTF_ROUNDS ?? 20_000);

t.test('blobs that make no sense are refused, quickly', async (t: Test) => {
  const values = fixture('btf/values.o');
  const blobs = [
    everyKind(true).bytes(),
    everyKind(false).bytes(4),
    Buffer.from(readBtfFile(fixture('btf/special.o'), { name: 'x' }).btf.bytes),
    Buffer.from(readBtfFile(values, { name: 'x' }).btf.bytes),
    fixture('btf/special.o'),
    values,
  ];
  const random = new Random(5);
  const tally = { read: 0, refused: 0 };
  let slowest = 0;
  for (let round = 0; round < ROUNDS; round++) {
    // Small ones most often: they are read faster.
    const start = random.of(blobs.slice(0, round % 16 === 0 ? 6 : 3));
    let bytes: Buffer = Buffer.from(start);
    for (let left = 1 + random.below(4); left > 0 && bytes.length > 64; left--) bytes = mutateWords(bytes, random);
    const cut = random.below(20) === 0 ? bytes.subarray(0, random.below(bytes.length)) : bytes;
    const from = performance.now();
    try {
      useTypes(cut, random);
      tally.read++;
    } catch (error) {
      if (!(error instanceof BpfimgError)) throw new Error(`round ${round}`, { cause: error });
      tally.refused++;
    }
    slowest = Math.max(slowest, performance.now() - from);
  }
  t.comment(`${tally.read} read, ${tally.refused} refused, slowest ${slowest.toFixed(0)} ms`);
  t.ok(tally.read > ROUNDS / 10 && tally.refused > ROUNDS / 10, 'both happen');
  t.ok(slowest < 2000, 'none takes long');
});

t.test('blobs made to take for ever', async (t) => {
  const bombs: Record<string, (w: BtfWriter) => void> = {
    'structures that double, of no size': (w) => {
      let id = w.struct('s', 0, []);
      for (let i = 0; i < 60; i++) {
        id = w.struct(
          's',
          0,
          ['a', 'b'].map((name) => ({ name, type: id, at: 0 })),
        );
      }
    },
    'unions without names that double': (w) => {
      let id = w.int('int', 4);
      for (let i = 0; i < 50; i++) {
        id = w.union(
          '',
          4,
          [1, 2].map((n) => ({ name: i === 0 ? `m${n}` : '', type: id, at: 0 })),
        );
      }
    },
    'members that share their bytes': (w) => {
      let id = w.int('int', 4);
      for (let i = 0; i < 40; i++)
        id = w.struct(
          's',
          4,
          ['a', 'b', 'c'].map((name) => ({ name, type: id, at: 0 })),
        );
    },
    'functions that take functions': (w) => {
      let id = w.int('int', 4);
      for (let i = 0; i < 60; i++)
        id = w.ptr(
          w.proto(id, [
            ['a', id],
            ['b', id],
          ]),
        );
    },
    'a function that takes itself': (w) => {
      w.ptr(2);
      w.proto(0, [
        ['a', 1],
        ['b', 1],
      ]);
    },
    'nothing, four billion times': (w) => {
      w.array(w.struct('s', 0, []), 0xffff_ffff);
    },
    'a name for all': (w) => {
      const int = w.int('int', 1);
      w.struct(
        's',
        60_000,
        Array.from({ length: 60_000 }, (_, i) => ({ name: 'same', type: int, at: i * 8 })),
      );
    },
    deep: (w) => {
      let id = w.int('int', 4);
      for (let i = 0; i < 20_000; i++) id = w.struct('s', 4, [{ name: 'a', type: id, at: 0 }]);
    },
    'thousands that refer to one of thousands': (w) => {
      const large = w.enum('e', 4, Object.fromEntries(Array.from({ length: 60_000 }, (_, i) => [`n${i}`, i])));
      const pointer = w.ptr(
        w.struct(
          'many',
          0,
          Array.from({ length: 60_000 }, () => ({ name: 'z', type: 0, at: 0 })),
        ),
      );
      const bits = Array.from({ length: 30_000 }, (_, i) => ({ name: `m${i}`, type: large, at: i * 65, bits: 1 }));
      const pointers = Array.from({ length: 20_000 }, (_, i) => ({ name: 'p', type: pointer, at: 2_000_000 + i * 64 }));
      w.struct('s', 1_000_000, [...pointers, ...bits]);
    },
    'kptrs in one place': (w) => {
      let id = w.ptr(w.typeTag('kptr', w.int('int', 4)));
      for (let i = 0; i < 40; i++)
        id = w.struct(
          's',
          8,
          ['a', 'b'].map((name) => ({ name, type: id, at: 0 })),
        );
    },
  };
  for (const [name, make] of Object.entries(bombs)) {
    const w = new BtfWriter();
    make(w);
    const start = process.cpuUsage();
    useTypes(w.bytes(), new Random(6), -1);
    const { user, system } = process.cpuUsage(start);
    const took = (user + system) / 1000;
    t.ok(took < 2000, `${name}: ${took.toFixed(0)} ms`);
  }
});
