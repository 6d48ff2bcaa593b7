/** Every row of src/kernel/abi.ts against the type information of the running kernel, as bpftool reads it. */

import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import t from 'tap';
import {
  ATTR,
  BPF_COMMAND,
  BTF_INFO,
  MAP_FLAG,
  MAP_INFO,
  PROG_INFO,
  type StructLayout,
  SYSCALL,
} from '../src/kernel/abi.js';
import { mapFlagNames } from '../src/maptype.js';
import { skipWithoutBpftool } from './helpers/kernel-live.js';
import { skipWithoutRoot } from './helpers/needs.js';
import { types as mapTypes } from './helpers/types.js';

const VMLINUX = '/sys/kernel/btf/vmlinux';
const skip =
  skipWithoutBpftool() ||
  skipWithoutRoot() ||
  (fs.existsSync(VMLINUX) ? false : 'needs a kernel with type information');

interface Member {
  readonly name: string;
  readonly typeId: number;
  /** Bytes. */
  readonly offset: number;
}
interface Type {
  readonly kind: string;
  readonly name: string;
  readonly size: number;
  readonly typeId: number;
  readonly members: Member[];
  readonly values: Map<string, number>;
  readonly count: number;
}

/** The types that `bpftool btf dump … format raw` prints, by id. */
function parseTypes(text: string): Map<number, Type> {
  const types = new Map<number, Type>();
  let type: Type | undefined;
  for (const line of text.split('\n')) {
    const head = /^\[(\d+)\] (\w+) '(.*?)'(.*)$/.exec(line);
    const number = (name: string, from: string) => Number(new RegExp(`\\b${name}=(\\d+)`).exec(from)?.[1] ?? 0);
    if (head) {
      const [, id, kind = '', name = '', rest = ''] = head;
      const [size, typeId, count] = [number('size', rest), number('type_id', rest), number('nr_elems', rest)];
      type = { kind, name, size, typeId, count, members: [], values: new Map() };
      types.set(Number(id), type);
      continue;
    }
    const member = /^\t'(.*?)' (.*)$/.exec(line);
    if (!member || type === undefined) continue;
    const [, name = '', rest = ''] = member;
    if (/\bval=/.test(rest)) type.values.set(name, Number(/val=(-?\d+)/.exec(rest)?.[1]));
    else type.members.push({ name, typeId: number('type_id', rest), offset: number('bits_offset', rest) / 8 });
  }
  return types;
}

t.test('layouts, commands and flags are the running kernel’s', { skip }, async (t) => {
  const dump = spawnSync('bpftool', ['btf', 'dump', 'file', VMLINUX, 'format', 'raw'], {
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  const types = parseTypes(dump.stdout);
  const named = (kind: string, name: string) => {
    return [...types.values()].find((type) => type.kind === kind && type.name === name);
  };
  const sizeOf = (id: number): number => {
    const type = types.get(id);
    if (type === undefined) return 0;
    if (type.kind === 'ARRAY') return type.count * sizeOf(type.typeId);
    return type.size || sizeOf(type.typeId);
  };
  /** Members by name, those of nameless structures among them. */
  const flat = (type: Type | undefined, base = 0): Map<string, { offset: number; size: number }> => {
    const all = new Map<string, { offset: number; size: number }>();
    for (const { name, typeId, offset } of type?.members ?? []) {
      if (name !== '(anon)') all.set(name, { offset: base + offset, size: sizeOf(typeId) });
      else for (const [inner, where] of flat(types.get(typeId), base + offset)) all.set(inner, where);
    }
    return all;
  };
  const union = named('UNION', 'bpf_attr');
  t.ok(union, 'union bpf_attr was found');

  /** The structure that a layout describes. Of bpf_attr's nameless ones: that with most of the layout's members. */
  const structure = ({ name, fields }: StructLayout) => {
    const [outer = '', inner] = name.split('.');
    if (outer !== 'bpf_attr') return flat(named('STRUCT', outer));
    const parts = union?.members.filter((member) => member.name === (inner ?? '(anon)')) ?? [];
    const common = (members: ReadonlyMap<string, unknown>) => Object.keys(fields).filter((field) => members.has(field));
    return parts.map((member) => flat(types.get(member.typeId))).sort((a, b) => common(b).length - common(a).length)[0];
  };
  const layouts: Record<string, StructLayout> = { ...ATTR, MAP_INFO, BTF_INFO, PROG_INFO };
  for (const [what, one] of Object.entries(layouts)) {
    const members = structure(one) ?? new Map<string, { offset: number; size: number }>();
    for (const [field, { offset, size }] of Object.entries(one.fields)) {
      const its = members.get(field);
      if (its !== undefined) t.same({ offset, size }, its, `${what}.${field}`);
      // A place gets a name once, so what an older kernel lacks is where it has nothing.
      else {
        const taken = [...members.values()].some((one) => one.offset < offset + size && offset < one.offset + one.size);
        t.notOk(taken, `${what}.${field} came later than this kernel`);
      }
      t.ok(offset + size <= one.size, `${what}.${field} is within its layout`);
    }
  }

  const commands = named('ENUM', 'bpf_cmd')?.values;
  for (const [name, number] of Object.entries(BPF_COMMAND))
    t.equal(number, commands?.get(`BPF_${name}`), `BPF_${name}`);

  const numbers = new Map(
    [...types.values()].filter(({ kind }) => kind === 'ENUM').flatMap(({ values }) => [...values]),
  );
  const flags = Object.entries(MAP_FLAG).map(([name, bit]) => [bit, numbers.get(`BPF_F_${name}`), name] as const);
  const highest = Math.max(...flags.map(([, its]) => its ?? 0));
  for (const [bit, its, name] of flags) {
    if (its !== undefined) t.equal(bit, its, `BPF_F_${name}`);
    else t.ok(bit > highest, `BPF_F_${name} came later than this kernel`);
  }

  const kinds = named('ENUM', 'bpf_map_type')?.values ?? new Map<string, number>();
  const last = kinds.get('__MAX_BPF_MAP_TYPE') ?? 0;
  for (const { number, name } of mapTypes.all()) {
    if (number >= last) t.comment(`${name} came later than this kernel`);
    else t.equal(kinds.get(`BPF_MAP_TYPE_${name.toUpperCase()}`), number, `type ${name}`);
  }
  const unknown = Array.from({ length: last - 1 }, (_, i) => i + 1).filter(
    (number) => mapTypes.row(number)?.create === undefined,
  );
  t.same(unknown, [], 'every type of the running kernel has a rule');
});

t.test('flags have the names of the kernel', async (t) => {
  for (const [name, bit] of Object.entries(MAP_FLAG)) t.same(mapFlagNames(bit), [`BPF_F_${name}`]);
});

t.test('system call numbers', async (t) => {
  t.same(Object.keys(SYSCALL).sort(), ['arm64', 'loong64', 'ppc64', 'riscv64', 'x64']);
  t.same([SYSCALL.x64?.bpf, SYSCALL.arm64?.bpf, SYSCALL.ppc64?.bpf], [321, 280, 361]);
});
