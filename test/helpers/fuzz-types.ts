/** Type information with something wrong in it: blobs made of random types, and objects with sections changed. */
import { Btf } from '../../src/btf/btf.js';
import { typeDefinition } from '../../src/btf/c.js';
import { readBtfFile } from '../../src/btf/elf.js';
import { extractTypes } from '../../src/btf/extract.js';
import { specialFields } from '../../src/btf/special.js';
import { valueCodec } from '../../src/btf/values.js';
import { viewOf } from '../../src/bytes.js';
import { BtfWriter } from './btf-writer.js';
import { sameBytes } from './codec.js';
import { fixture } from './fixtures.js';
import { type FuzzCase, type Fuzzer, judge } from './fuzz-case.js';
import { mutateBytes } from './mutate.js';
import { Random } from './random.js';

/** Words to put where sizes, counts, offsets and ids are. */
const WORDS = [0, 1, 2, 3, 8, 24, 0xff, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff];

const NAMES = [
  ...['', 'a', 'b', 'flow', 'char', 'int', '__u64', '_Bool', 'bpf_spin_lock', 'bpf_timer', 'bpf_list_head', 'kptr'],
  ...['.bss', '.maps', '.data.x', 'bpf_refcount', '__be32', 'x'.repeat(70), 'a b', 'é'],
];

/** A blob of random types, of which most are ones that a compiler could have written. */
export function randomTypes(random: Random): Buffer {
  const w = new BtfWriter(random.below(5) > 0);
  const name = () => random.of(NAMES);
  const small = () => random.below(9);
  // An id of a type that is there, mostly; now and then of one that comes later, of itself, or of none.
  const id = () => (random.below(12) === 0 ? random.below(40) : random.below(w.count + 1));
  const size = () => random.of([0, 1, 2, 4, 8, 12, 16, 24, 64, 4096]);
  const members = (union: boolean) => {
    let at = 0;
    const bits = random.below(3) === 0;
    return Array.from({ length: small() }, () => {
      const member = { name: name(), type: id(), at: union ? 0 : at, ...(bits ? { bits: random.below(34) } : {}) };
      at += random.of([1, 7, 8, 16, 32, 32, 64, 64, 128]);
      return member;
    });
  };
  const add: readonly (() => number)[] = [
    () => w.int(name(), random.of([1, 2, 4, 8, 16]), { encoding: random.below(5) }),
    () => w.int(name(), random.of([1, 2, 4, 8, 3]), { offset: small(), bits: random.below(70) }),
    () => w.ptr(id()),
    () => w.array(id(), random.of([0, 1, 2, 3, 16, 100, 0xffff, 0x7fffffff]), id()),
    () => w.struct(name(), size(), members(false)),
    () => w.struct(name(), size(), members(false)),
    () => w.union(name(), size(), members(true)),
    () => w.enum(name(), random.of([1, 2, 4, 8, 3]), { A: random.below(3), B: -1, C: 7 }, random.below(2) === 1),
    () => w.enum64(name(), 8, { A: 1n, B: -(2n ** 63n) }, random.below(2) === 1),
    () => w.fwd(name(), random.below(2) === 1),
    () => w.typedef(name(), id()),
    () => w.const(w.volatile(id())),
    () => w.func(name(), id(), random.below(4)),
    () =>
      w.proto(id(), [
        [name(), id()],
        ['', random.below(2) * id()],
      ]),
    () => w.var(name(), id(), random.below(4)),
    () =>
      w.datasec(name(), size(), [
        [id(), small(), size()],
        [id(), size(), size()],
      ]),
    () => w.float(name(), random.of([2, 4, 8, 12, 16, 5])),
    () => w.declTag(name(), id(), random.below(4) - 1),
    () => w.typeTag(name(), id(), random.below(2) === 1),
  ];
  for (let left = 1 + random.below(24); left > 0; left--) random.of(add)();
  return w.bytes(random.of([0, 0, 0, 8]));
}

/** Changes words of a blob or an object where such files have their numbers. */
export function mutateWords(bytes: Buffer, random: Random): Buffer {
  if (bytes.length < 48) return mutateBytes(bytes, random);
  const at = random.below(bytes.length - 4);
  const how = random.below(6);
  if (how === 0) bytes[at] = random.below(256);
  else if (how === 1) bytes.writeUInt32LE(random.of(WORDS), at & ~3);
  else if (how === 2) bytes.writeUInt32LE(random.below(80), at & ~3);
  else if (how === 3) bytes[at] = (bytes[at] as number) ^ (1 << random.below(8));
  else if (how === 4) bytes.copy(bytes, at & ~3, random.below(bytes.length) & ~3, bytes.length - random.below(40));
  else return mutateBytes(bytes, random);
  return bytes;
}

/** An object with fields of its section headers changed, which random bytes hit too seldom. */
function mutateObject(bytes: Buffer, random: Random): Buffer {
  const headers = Number(bytes.readBigUInt64LE(40));
  const count = bytes.readUInt16LE(60);
  const section = headers + random.below(count) * 64;
  if (!(section + 64 <= bytes.length)) return mutateWords(bytes, random);
  const field = random.of([0, 4, 8, 24, 32, 40, 44, 56]);
  bytes.writeUInt32LE(random.below(2) ? random.of(WORDS) : random.below(bytes.length), section + field);
  return bytes;
}

/** Everything that may be done with an unchecked file; `from` -1 means only its last type. */
export function useTypes(bytes: Buffer, random: Random, from = 0): void {
  const file = readBtfFile(bytes, { name: 'x' });
  const { btf } = file;
  const quiet = (run: () => void) => {
    try {
      run();
    } catch (error) {
      judge(error, ['badImage', 'unsupported', 'badJson'], ['x: BTF: ']);
    }
  };
  quiet(() => btf.check());
  for (const { name } of file.maps) file.find(name);
  for (let id = from < 0 ? btf.typeCount : from; id <= btf.typeCount; id++) {
    quiet(() => typeDefinition(btf, id));
    quiet(() => specialFields(btf, id));
    quiet(() => {
      const codec = valueCodec(btf, id);
      if (codec.size > 4096) return;
      const value = random.bytes(codec.size);
      const view = viewOf(new Uint8Array(codec.size));
      codec.encode(codec.decode(viewOf(value)), view);
      sameBytes(new Uint8Array(view.buffer), value, `type ${id}`);
      // What values can be of can be taken out, and then means the same.
      const { blob, ids } = extractTypes(btf, [{ id, counts: [] }]);
      const again = valueCodec(Btf.parse(blob, { name: 'taken' }), ids[0] as number);
      if (again.size !== codec.size) throw new Error(`type ${id}: ${codec.size} bytes, taken out ${again.size}`);
    });
  }
}

/** Breaks types. What is taken gives back every value. */
export function fuzzTypes(): Fuzzer {
  const objects = ['values.o', 'values.eb.o', 'special.o', 'rings.o', 'arena.o', 'flowd.o'].map((name) =>
    fixture(`btf/${name}`),
  );
  const blobs = objects.map((bytes) => Buffer.from(readBtfFile(bytes, { name: 'x' }).btf.bytes));
  return (random, seed): FuzzCase => {
    const how = random.below(16);
    // Random ones most often: they are small, and so are read faster.
    let bytes: Buffer = how > 2 ? randomTypes(random) : Buffer.from(random.of(how === 0 ? objects : blobs));
    for (let left = random.below(4); left > 0; left--) {
      bytes =
        how === 0 && bytes.length > 64 && random.below(2) ? mutateObject(bytes, random) : mutateWords(bytes, random);
      if (bytes.length < 8) break;
    }
    return {
      files: { 'types.btf': bytes },
      async run() {
        try {
          useTypes(bytes, new Random(seed));
          return true;
        } catch (error) {
          judge(error, ['badImage', 'notFound', 'unsupported'], ['x: ']);
          return false;
        }
      },
    };
  };
}
