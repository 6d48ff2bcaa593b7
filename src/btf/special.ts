/**
 * Fields of map values that only the kernel sets: locks, timers, list heads, pointers to its objects.
 *
 * The kernel knows them by the names of their types (btf_parse_fields in kernel/bpf/btf.c), and so does bpfimg.
 */
import { BpfimgError } from '../errors.js';
import { type Btf, type BtfKind, MAX_TYPE_DEPTH, type RefType } from './btf.js';

/** Properties of one kind of such a field. */
export interface SpecialRule {
  /** Bytes; the same in every kernel that has it. */
  readonly size: number;
  /**
   * What a look-up in a map with this BTF returns: `zero`; `one`, a count that has just been set up; `addresses`
   * of the kernel, which differ at every read; or the `bytes` that were stored, as for any other member. Only
   * `bytes` can be set: the kernel skips the others in an update.
   */
  readonly reads: 'zero' | 'one' | 'addresses' | 'bytes';
  /** Linux version that introduced it. Before that it is an ordinary member. */
  readonly since: string;
}

/**
 * The kinds. test/btf-kernel.test.ts compares `size` with the kernel's own types, and `reads` with maps
 * that have such fields.
 */
export const SPECIAL_FIELDS = {
  bpf_spin_lock: { size: 4, reads: 'zero', since: '5.1' },
  bpf_res_spin_lock: { size: 4, reads: 'zero', since: '6.15' },
  bpf_timer: { size: 16, reads: 'zero', since: '5.15' },
  bpf_wq: { size: 16, reads: 'zero', since: '6.10' },
  bpf_task_work: { size: 8, reads: 'zero', since: '6.18' },
  bpf_list_head: { size: 16, reads: 'addresses', since: '6.2' },
  // Members of objects that programs allocate; in a map's value they are plain bytes.
  bpf_list_node: { size: 24, reads: 'bytes', since: '6.2' },
  bpf_rb_root: { size: 16, reads: 'zero', since: '6.3' },
  bpf_rb_node: { size: 32, reads: 'bytes', since: '6.3' },
  bpf_refcount: { size: 4, reads: 'one', since: '6.4' },
  /** Any pointer that a program stores with bpf_kptr_xchg or the like. */
  kptr: { size: 8, reads: 'zero', since: '5.19' },
} as const satisfies Readonly<Record<string, SpecialRule>>;

/** A structure's name in C, or `kptr` for pointers. */
export type SpecialKind = keyof typeof SPECIAL_FIELDS;

/** Type tags that make a pointer a kptr; up to 6.2 `kptr` was called `kptr_ref`; `kptr_untrusted` came with 6.2. */
const KPTR_TAGS: ReadonlySet<string> = new Set(['kptr', 'kptr_ref', 'kptr_untrusted', 'percpu_kptr', 'uptr']);

/** A field that only the kernel sets. */
export interface SpecialField {
  readonly kind: SpecialKind;
  /** Bytes from the value's start. */
  readonly offset: number;
  /** Bytes. */
  readonly size: number;
  /** Number of elements if it is an array. An array may have millions, so they are not listed one by one. */
  readonly count: number;
  /** Bytes from one element to the next. */
  readonly stride: number;
}

/** Whether values of type `id` have a lock that BPF_F_LOCK takes to read and write them. */
export function hasSpinLock(btf: Btf, id: number): boolean {
  return specialFields(btf, id).some(({ kind }) => kind === 'bpf_spin_lock');
}

/** Which kind of special field type `id` itself is. */
export function specialKind(btf: Btf, id: number): SpecialKind | undefined {
  const type = btf.resolve(id);
  const kind = btf.kind(type);
  if (kind === 'STRUCT') {
    const name = btf.nameOf(type);
    if (name === 'kptr' || !Object.hasOwn(SPECIAL_FIELDS, name)) return undefined;
    return SPECIAL_FIELDS[name as SpecialKind].size === btf.size(type) ? (name as SpecialKind) : undefined;
  }
  return kind === 'PTR' && isKptr(btf, type) ? 'kptr' : undefined;
}

function isKptr(btf: Btf, pointer: number): boolean {
  let id = pointer;
  for (let steps = 0; steps <= MAX_TYPE_DEPTH; steps++) {
    const kind = btf.kind(id);
    if (!THROUGH.has(kind)) return false;
    const type = btf.type(id) as RefType;
    switch (kind) {
      case 'TYPE_TAG':
        if (!type.attribute && KPTR_TAGS.has(type.name)) return true;
        id = type.type;
        break;
      case 'PTR':
        if (steps > 0) return false;
        id = type.type;
        break;
      default:
        id = type.type;
    }
  }
  return false;
}

/** Kinds that may come between a pointer and its tag. */
const THROUGH: ReadonlySet<BtfKind> = new Set<BtfKind>(['PTR', 'TYPE_TAG', 'CONST', 'VOLATILE', 'RESTRICT']);

/** Fields of a value are at least this long and do not overlap. */
const SHORTEST = 4;
/** Most arrays within structures within an array: each is listed separately. */
const MOST_APART = 65_536;
/** Most members to look at in total. The kernel itself accepts at most eleven fields. */
const MAX_LOOKS = 1_000_000;

/**
 * Every such field of a value of type `id`, including nested structures and arrays, by ascending (first) offset. Not in
 * unions, where the kernel does not look for any.
 * @throws BpfimgError `badImage` for invalid types
 */
export function specialFields(btf: Btf, id: number): SpecialField[] {
  const fields: SpecialField[] = [];
  const most = btf.size(id) / SHORTEST;
  const plain = new Set<number>();
  let looks = 0;

  /** Adds the fields of type `id` at `offset`; returns whether there were any. */
  const walk = (id: number, offset: number, depth: number): boolean => {
    const target = btf.resolve(id);
    if (plain.has(target)) return false;
    if (depth > MAX_TYPE_DEPTH)
      throw btf.bad(id, `contains itself, or nests structures more than ${MAX_TYPE_DEPTH} deep`);
    const kind = specialKind(btf, target);
    const before = fields.length;
    if (kind !== undefined) {
      const { size } = SPECIAL_FIELDS[kind];
      fields.push({ kind, offset, size, count: 1, stride: size });
      if (fields.length > most)
        throw new BpfimgError('badImage', `BTF: type ${id}: members overlap`, { subject: btf.name });
      return true;
    }
    const type = btf.type(target);
    if (type.kind === 'STRUCT') {
      looks += type.members.length;
      if (looks > MAX_LOOKS) throw btf.bad(id, `has more than ${MAX_LOOKS} members, nested ones included`);
      for (const member of type.members) {
        if (member.bits > 0) continue;
        btf.memberBits(type, member);
        walk(member.type, offset + member.bitOffset / 8, depth + 1);
      }
    } else if (type.kind === 'DATASEC') {
      for (const { type: variable, offset: at } of type.vars) walk(variable, offset + at, depth + 1);
    } else if (type.kind === 'VAR') {
      walk(type.type, offset, depth + 1);
    } else if (type.kind === 'ARRAY') {
      const size = btf.size(type.type);
      // All elements have the same fields as the first.
      if (type.count > 0 && size > 0 && walk(type.type, offset, depth + 1)) {
        for (const field of fields.splice(before)) fields.push(...repeated(field, type.count, size));
      }
    }
    if (fields.length === before) plain.add(target);
    return fields.length > before;
  };

  /** Repeats `field` of an array's first element for all elements. */
  const repeated = (field: SpecialField, count: number, stride: number): SpecialField[] => {
    if (field.count === 1) return [{ ...field, count, stride }];
    if (field.count * field.stride === stride) return [{ ...field, count: field.count * count }];
    if (fields.length + count > MOST_APART)
      throw btf.bad(id, `has more than ${MOST_APART} arrays of kernel-owned fields`);
    return Array.from({ length: count }, (_, i) => ({ ...field, offset: field.offset + i * stride }));
  };

  walk(id, 0, 0);
  return fields.sort((a, b) => a.offset - b.offset);
}
