/** Typed values of real maps, as bpftool reads them; and what the kernel makes of special fields. */

import { spawnSync } from 'node:child_process';
import t, { type Test } from 'tap';
import { Btf, type StructType } from '../src/btf/btf.js';
import { type BtfFile, type MapDefinition, readBtfFile } from '../src/btf/elf.js';
import { declaredOrder } from '../src/btf/meaning.js';
import { SPECIAL_FIELDS, type SpecialKind, specialFields } from '../src/btf/special.js';
import { valueCodec } from '../src/btf/values.js';
import { isZero, viewOf } from '../src/bytes.js';
import { loadBtf } from '../src/kernel/btf.js';
import { BpfMap } from '../src/kernel/map.js';
import { openSys, type Sys } from '../src/kernel/sys.js';
import type { Json, JsonObject } from '../src/value.js';
import { type BtfMember, BtfWriter } from './helpers/btf-writer.js';
import { unknownTypes } from './helpers/features.js';
import { fixture } from './helpers/fixtures.js';
import { fdCount, skipWithoutMaps, u32 } from './helpers/kernel-live.js';
import { Random } from './helpers/random.js';
import { types } from './helpers/types.js';

const skip = await skipWithoutMaps();

/** Gives types to the kernel; the caller closes the result. Undefined if that does not know all of them, and says so. */
function load(t: Test, sys: Sys, btf: Btf): number | undefined {
  const unknown = unknownTypes(sys, btf);
  if (unknown.length > 0) {
    t.throws(() => loadBtf(sys, btf.bytes), { message: /BPF_BTF_LOAD: EINVAL \(.*\)/ }, `unknown here: ${unknown}`);
    return undefined;
  }
  return loadBtf(sys, btf.bytes);
}

function create(sys: Sys, fd: number, definition: MapDefinition): BpfMap {
  const { name, type = 0, keySize = 0, valueSize = 0, maxEntries = 0, keyType, valueType } = definition;
  const btf = { fd, keyType, valueType };
  return BpfMap.create(sys, {
    name: name.replace(/^\./, 'x.').slice(0, 15),
    type,
    keySize,
    valueSize,
    maxEntries,
    btf,
  });
}

/** bpftool's items. Integers that JavaScript would round are text, those of both are compared as such. */
function typedDump(map: BpfMap): { key: string[]; formatted: JsonObject }[] {
  const { stdout } = spawnSync('bpftool', ['-j', 'map', 'dump', 'id', String(map.id)], { encoding: 'utf8' });
  return JSON.parse(stdout.replace(/([:[,])(-?\d{16,})/g, '$1"$2"')) as { key: string[]; formatted: JsonObject }[];
}

/** Where ours and bpftool's forms of a value of type `id` differ in more than spelling. */
function differences(btf: Btf, id: number, ours: Json | undefined, theirs: Json | undefined, path: string): string[] {
  const type = btf.type(btf.resolve(id));
  const differs = () => [`${path}: ${JSON.stringify(ours)}, bpftool ${JSON.stringify(theirs)}`];
  switch (type.kind) {
    case 'STRUCT':
    case 'UNION': {
      const own = ours as JsonObject;
      // Opaque to us; bpftool shows what it is made of.
      if (Object.hasOwn(own, '$kernel')) return [];
      return type.members.flatMap((member) => {
        const their = (theirs as JsonObject)[member.name];
        // Ours are among the members of what they are in, and unions show the widest member alone.
        if (member.name === '') return differences(btf, member.type, own, their, path);
        if (!Object.hasOwn(own, member.name)) return [];
        const here = `${path}.${member.name}`;
        if (member.bits > 0) return bitField(btf, member, own[member.name] as Json, their as Json, here);
        return differences(btf, member.type, own[member.name], their, here);
      });
    }
    case 'DATASEC': {
      // A list of objects with a member each, in an object with the section's name.
      const list = (theirs as JsonObject)[type.name] as JsonObject[];
      return type.vars.flatMap((variable, i) => {
        const name = btf.nameOf(variable.type);
        return differences(btf, variable.type, (ours as JsonObject)[name], list[i]?.[name], `${path}.${name}`);
      });
    }
    case 'VAR':
      return differences(btf, type.type, ours, theirs, path);
    case 'ARRAY': {
      const element = btf.type(btf.resolve(type.type));
      if (element.kind !== 'INT' || !element.char) {
        const [own, their] = [ours as Json[], theirs as Json[]];
        if (own.length !== their.length) return differs();
        return own.flatMap((one, i) => differences(btf, type.type, one, their[i], `${path}[${i}]`));
      }
      // Quirk: text that begins with a zero byte is empty, whatever follows.
      if (theirs === '' && (ours as JsonObject).$raw?.toString().startsWith('00')) return [];
      // Text, or a list of numbers; each form says the same bytes.
      const bytes = Buffer.alloc(type.count);
      valueCodec(btf, type.id).encode(ours as Json, viewOf(bytes));
      const their = Buffer.alloc(type.count);
      if (typeof theirs === 'string') their.write(theirs);
      else their.set((theirs as number[]).map((char) => char & 0xff));
      return bytes.equals(their) ? [] : differs();
    }
    case 'ENUM':
      // Quirk: enums of one byte are numbers with a sign to bpftool, whatever BTF says.
      if (type.size === 1 && typeof theirs === 'number') return ours === (theirs & 0xff) ? [] : differs();
      return ours === theirs ? [] : differs();
    case 'PTR':
      // Quirk: pointers are decimal.
      return BigInt(ours as string) === BigInt(theirs as string) ? [] : differs();
    case 'INT': {
      if (type.bool) return ours === theirs || (typeof ours === 'number' && theirs === true) ? [] : differs();
      // Quirk: integers of 128 bits are hex and never negative.
      const own = BigInt(ours as string);
      const same = type.size === 16 ? BigInt.asUintN(128, own) : own;
      // Quirk: bpftool shows numbers in network order as if they were in this machine's.
      const swapped = Buffer.alloc(type.size);
      if (declaredOrder(btf, id) === 'big') valueCodec(btf, id).encode(ours as Json, viewOf(swapped));
      const is = declaredOrder(btf, id) === 'big' ? BigInt(`0x${swapped.reverse().toString('hex')}`) : same;
      return is === BigInt(theirs as string) ? [] : differs();
    }
    default:
      return differs();
  }
}

/** Quirk: bpftool shows bit-fields as hex, without sign, and without names of enums and bools. */
function bitField(btf: Btf, member: StructType['members'][number], ours: Json, theirs: Json, path: string): string[] {
  const type = btf.type(btf.resolve(member.type));
  const named = type.kind === 'ENUM' ? type.values.find(({ name }) => name === ours)?.value : undefined;
  const number = BigInt.asUintN(member.bits, named ?? BigInt(ours as string));
  return typeof theirs === 'string' && number === BigInt(theirs) ? [] : [`${path}: ${ours}, bpftool ${theirs}`];
}

/** Noise, or values that read well. */
function someBytes(random: Random, size: number, round: number): Buffer {
  const bytes = random.bytes(size);
  if (round % 3 === 0) for (let i = 0; i < size; i++) if (random.below(4) > 0) bytes[i] = 0;
  if (round % 3 === 1) for (let i = 0; i < size; i++) bytes[i] = 0x61 + random.below(26);
  return bytes;
}

/** Fills a map and compares every item. */
function compare(t: Test, file: BtfFile, map: BpfMap, definition: MapDefinition, random: Random): void {
  const { btf } = file;
  const { keyType, valueType } = definition;
  const perCpu = map.valueStride !== map.valueSize;
  const stride = perCpu ? Math.ceil(map.valueSize / 8) * 8 : map.valueSize;
  const array = definition.type === 2 || definition.type === 6;
  for (let i = 0; i < Math.min(map.maxEntries, 6); i++) {
    map.update(array ? u32(i) : someBytes(random, map.keySize, i), someBytes(random, map.valueStride, i));
  }
  const items = typedDump(map);
  t.ok(items.length > 0, `${definition.name}: ${items.length} items`);
  const wrong: string[] = [];
  for (const { key, formatted } of items) {
    const keyBytes = Buffer.from(key.map((byte) => Number(byte)));
    if (keyType !== 0) {
      wrong.push(...differences(btf, keyType, valueCodec(btf, keyType).decode(viewOf(keyBytes)), formatted.key, 'key'));
    }
    const bytes = map.lookup(keyBytes) as Uint8Array;
    const codec = valueCodec(btf, valueType);
    const theirs = perCpu
      ? (formatted.values as JsonObject[]).map(({ value }) => value as Json)
      : [formatted.value as Json];
    for (const [cpu, their] of theirs.entries()) {
      const ours = codec.decode(viewOf(bytes), cpu * stride);
      wrong.push(...differences(btf, valueType, ours, their, `value ${cpu}`));
      const back = Buffer.alloc(codec.size);
      codec.encode(ours, viewOf(back));
      if (!back.equals(bytes.subarray(cpu * stride, cpu * stride + codec.size)))
        wrong.push(`value ${cpu} does not come back`);
    }
  }
  t.same(wrong, [], definition.name);
}

t.test('maps of every kind of value read as bpftool reads them', { skip }, async (t) => {
  const sys = await openSys(types);
  const before = fdCount();
  const random = new Random(11);
  const seen: string[] = [];
  let files = 0;
  for (const name of ['values.o', 'special.o']) {
    const file = readBtfFile(fixture(`btf/${name}`), { name });
    const fd = load(t, sys, file.btf);
    if (fd === undefined) continue;
    files++;
    try {
      for (const definition of file.maps) {
        // bpftool prints no floating point: `"f64":(unsupported-kind`, which is not even JSON.
        if (definition.valueType === 0 || definition.name === 'reals') continue;
        using map = create(sys, fd, definition);
        compare(t, file, map, definition, random);
        seen.push(definition.name);
      }
    } finally {
      sys.close(fd);
    }
  }
  t.ok(files < 2 || seen.length >= 11, seen.join(' '));
  t.equal(fdCount(), before, 'nothing is left open');
});

t.test('where bpftool and we differ, the bytes show who is right', { skip }, async (t) => {
  const sys = await openSys(types);
  const file = readBtfFile(fixture('btf/values.o'), { name: 'values.o' });
  const fd = load(t, sys, file.btf);
  if (fd === undefined) return;
  /** One value of a map: what we make of these bytes, and what bpftool does. */
  const both = (name: string, hex: string) => {
    const definition = file.find(name) as MapDefinition;
    using map = create(sys, fd, definition);
    const bytes = Buffer.alloc(map.valueSize);
    bytes.write(hex.replaceAll(' ', ''), 'hex');
    const key = Buffer.alloc(map.keySize);
    map.update(key, bytes);
    const theirs = typedDump(map)[0]?.formatted.value as JsonObject;
    const codec = valueCodec(file.btf, definition.valueType);
    return { ours: codec.decode(viewOf(bytes)) as JsonObject, theirs };
  };
  try {
    // .low is -1: five bits, all set. .flag is one bit, .state four.
    const bits = both('bit_fields', '00000000 1f000006');
    t.match(bits, { ours: { low: -1, flag: true, state: 'OPEN' }, theirs: { low: '0x1f', flag: '0x1', state: '0x1' } });
    // An empty beginning hides what follows from bpftool: 00 62.
    const name = (hex: string) => both('flows', `${'00'.repeat(24)}${hex}`);
    t.match(name('6162'), { ours: { name: 'ab' }, theirs: { name: 'ab' } });
    t.match(name(''), { ours: { name: '' }, theirs: { name: '' } });
    t.match(name('0062'), { ours: { name: { $raw: `0062${'00'.repeat(14)}` } }, theirs: { name: '' } });
    // Not UTF-8 (c3 28), which bpftool would put into JSON as it is, or as numbers.
    t.same(name('c328').ours.name, { $raw: `c328${'00'.repeat(14)}` });
    // A bool that is neither: byte 16 is 5.
    t.match(both('flows', `${'00'.repeat(16)}05`), { ours: { seen: 5 }, theirs: { seen: true } });
    // enum tiny { ALL = 200 } is unsigned: 201 is no name, and not -55.
    t.match(both('matrices', `${'00'.repeat(52)}c8c9`), {
      ours: { kinds: ['ALL', 201, 'NONE', 'NONE'] },
      theirs: { kinds: [/./, -55, 'NONE', 'NONE'] },
    });
    // 2^64 - 1 as a pointer; -1 in 128 bits.
    const file2 = both('numbers', `${'00'.repeat(32)}${'ff'.repeat(24)}`);
    t.match(file2.ours, { s128: -1, pointer: '0xffffffffffffffff' });
    t.match(file2.theirs, { s128: `0x${'f'.repeat(32)}`, pointer: '18446744073709551615' });
  } finally {
    sys.close(fd);
  }
});

t.test('a kind of type that the kernel does not know', { skip }, async (t) => {
  const sys = await openSys(types);
  const writer = new BtfWriter();
  writer.add(31, 'newer', 4, 0, false, []);
  t.throws(() => loadBtf(sys, writer.bytes()), {
    message:
      /^BTF: BPF_BTF_LOAD: EINVAL \(\[1\] Invalid (kind:31|btf_info:1f000000), which this kernel does not know\)$/,
  });
});

// ---------------------------------------------------------------------------------------------------
// Special fields

/** Types with a value that has one special field at byte 8, and what the kernel wants beside it. */
function withField(kind: SpecialKind): { btf: Btf; value: number; key: number } {
  const w = new BtfWriter();
  const word = w.int('unsigned int', 4);
  const struct = (name: string, size: number) =>
    w.struct(name, size, [{ name: 'x', type: w.array(word, size / 4), at: 0 }]);
  const { size } = SPECIAL_FIELDS[kind];
  const task = kind === 'kptr' ? w.struct('task_struct', 4, [{ name: 'pid', type: word, at: 0 }]) : 0;
  const field = kind === 'kptr' ? w.ptr(w.typeTag('kptr_untrusted', task)) : struct(kind, size);
  const members: BtfMember[] = [
    { name: 'before', type: word, at: 0 },
    { name: 'field', type: field, at: 64 },
    { name: 'after', type: word, at: 64 + size * 8 },
  ];
  const rooted = kind === 'bpf_list_head' || kind === 'bpf_rb_root';
  if (rooted) {
    const [node, nodeSize] =
      kind === 'bpf_list_head' ? (['bpf_list_node', 24] as const) : (['bpf_rb_node', 32] as const);
    w.struct('element', nodeSize, [{ name: 'node', type: struct(node, nodeSize), at: 0 }]);
    members.splice(1, 0, { name: 'lock', type: struct('bpf_spin_lock', 4), at: 32 });
  }
  const value = w.struct('value', 16 + size, members);
  if (rooted) w.declTag('contains:element:node', value, 2);
  return { btf: Btf.parse(w.bytes(), { name: kind }), value, key: word };
}

t.test('special fields read as the table says', { skip }, async (t) => {
  const sys = await openSys(types);
  for (const kind of Object.keys(SPECIAL_FIELDS) as SpecialKind[]) {
    const { size, reads, since } = SPECIAL_FIELDS[kind];
    const { btf, value, key } = withField(kind);
    t.match(
      specialFields(btf, value).find((field) => field.kind === kind),
      { offset: 8, size },
    );
    const fd = load(t, sys, btf);
    if (fd === undefined) continue;
    try {
      const valueSize = 16 + size;
      const names = { keyType: key, valueType: value };
      using map = create(sys, fd, { name: 'special', type: 2, keySize: 4, valueSize, maxEntries: 1, ...names });
      map.update(u32(0), Buffer.alloc(valueSize, 0xff));
      const read = Buffer.from(map.lookup(u32(0)) as Uint8Array);
      const bytes = read.subarray(8, 8 + size);
      const got = isZero(bytes)
        ? 'zero'
        : bytes.every((byte) => byte === 0xff)
          ? 'bytes'
          : bytes[0] === 1 && isZero(bytes, 1)
            ? 'one'
            : 'addresses';
      // A kernel from before the kind was brought has plain bytes there.
      t.ok(got === reads || got === 'bytes', `${kind} (since ${since}) reads as ${got}, expected ${reads}`);
      if (got === 'bytes' && reads !== 'bytes') t.comment(`${kind}: not special to this kernel`);
      t.equal(read.readUInt32LE(0), 0xffff_ffff, 'what is beside it is kept');
      t.equal(read.readUInt32LE(8 + size), 0xffff_ffff);
    } catch (error) {
      t.fail(`${kind}: ${(error as Error).message}`);
    } finally {
      sys.close(fd);
    }
  }
});
