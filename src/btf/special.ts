/**
 * What the kernel keeps for itself inside map values: locks, timers, list heads, pointers to its objects.
 *
 * The kernel knows them by the names of their types (btf_parse_fields in kernel/bpf/btf.c), and so do we.
 */
import { BpfimgError } from '../errors.js';
import { type Btf, type BtfKind, MAX_TYPE_DEPTH, type RefType } from './btf.js';

/** How such a field is, by what it is. */
export interface SpecialRule {
  /** Bytes, in every kernel that knows it. */
  readonly size: number;
  /**
   * What a look-up in a map with this BTF shows: `zero`; `one`, a count that has just been set up; `addresses`
   * of the kernel, other ones at every read; or the `bytes` that were stored, as of any other member. All but
   * `bytes` are not settable: the kernel skips them in an update.
   */
  readonly reads: 'zero' | 'one' | 'addresses' | 'bytes';
  /** Linux version that brought it. Before, it is a member like others. */
  readonly since: string;
}

/**
 * The kinds. test/btf-kernel.test.ts holds `size` against the kernel's own types, and `reads` against maps
 * that have such fields.
 */
export const SPECIAL_FIELDS = {
  bpf_spin_lock: { size: 4, reads: 'zero', since: '5.1' },
  bpf_res_spin_lock: { size: 4, reads: 'zero', since: '6.15' },
  bpf_timer: { size: 16, reads: 'zero', since: '5.15' },
  bpf_wq: { size: 16, reads: 'zero', since: '6.10' },
  bpf_task_work: { size: 8, reads: 'zero', since: '6.18' },
  bpf_list_head: { size: 16, reads: 'addresses', since: '6.2' },
  // Of objects that programs allocate; in a map's value these are plain bytes.
  bpf_list_node: { size: 24, reads: 'bytes', since: '6.2' },
  bpf_rb_root: { size: 16, reads: 'zero', since: '6.3' },
  bpf_rb_node: { size: 32, reads: 'bytes', since: '6.3' },
  bpf_refcount: { size: 4, reads: 'one', since: '6.4' },
  /** Any pointer that a program stores with bpf_kptr_xchg or the like. */
  kptr: { size: 8, reads: 'zero', since: '5.19' },
} as const satisfies Readonly<Record<string, SpecialRule>>;

export type SpecialKind = keyof typeof SPECIAL_FIELDS;

/** Type tags that make a pointer a kptr; `kptr_ref` was the name of `kptr` up to 6.2, `kptr_untrusted` came then. */
const KPTR_TAGS: ReadonlySet<string> = new Set(['kptr', 'kptr_ref', 'kptr_untrusted', 'percpu_kptr', 'uptr']);

/** A field that the kernel keeps for itself. */
export interface SpecialField {
  readonly kind: SpecialKind;
  /** Bytes from the value's start. */
  readonly offset: number;
  /** Bytes. */
  readonly size: number;
  /** How many of them an array has. An array may have millions, so they are not told one by one. */
  readonly count: number;
  /** Bytes from one of them to the next. */
  readonly stride: number;
}

/** Whether values of type `id` have a lock under which BPF_F_LOCK reads and writes them. */
export function hasSpinLock(btf: Btf, id: number): boolean {
  return specialFields(btf, id).some(({ kind }) => kind === 'bpf_spin_lock');
}

/** Which of them type `id` itself is. */
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

/** What may stand between a pointer and its tag. */
const THROUGH: ReadonlySet<BtfKind> = new Set<BtfKind>(['PTR', 'TYPE_TAG', 'CONST', 'VOLATILE', 'RESTRICT']);

/** Fields of one value are at least this long, and do not overlap. */
const SHORTEST = 4;
/** Arrays in structures in an array, which are told one by one. */
const MOST_APART = 65_536;
/** Members that are looked at, all in all. The kernel itself takes no more than eleven fields. */
const MAX_LOOKS = 1_000_000;

/**
 * Every such field of a value of type `id`, in nested structures and arrays too, by ascending (first) offset. Not in
 * unions: there the kernel looks for none.
 * @throws BpfimgError `badImage` for types that make no sense
 */
export function specialFields(btf: Btf, id: number): SpecialField[] {
  const fields: SpecialField[] = [];
  const most = btf.size(id) / SHORTEST;
  const plain = new Set<number>();
  let looks = 0;

  /** Adds what is in type `id` at `offset`; whether that was anything. */
  const walk = (id: number, offset: number, depth: number): boolean => {
    const target = btf.resolve(id);
    if (plain.has(target)) return false;
    if (depth > MAX_TYPE_DEPTH) throw btf.bad(id, `contains itself, or structures ${MAX_TYPE_DEPTH} deep`);
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
      if (looks > MAX_LOOKS) throw btf.bad(id, `has, with all it is made of, more than ${MAX_LOOKS} members`);
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
      // The first element tells what is in the others.
      if (type.count > 0 && size > 0 && walk(type.type, offset, depth + 1)) {
        for (const field of fields.splice(before)) fields.push(...repeated(field, type.count, size));
      }
    }
    if (fields.length === before) plain.add(target);
    return fields.length > before;
  };

  /** What is in every element of an array, whose first has `field`. */
  const repeated = (field: SpecialField, count: number, stride: number): SpecialField[] => {
    if (field.count === 1) return [{ ...field, count, stride }];
    if (field.count * field.stride === stride) return [{ ...field, count: field.count * count }];
    if (fields.length + count > MOST_APART) throw btf.bad(id, `has more than ${MOST_APART} arrays of the kernel's own`);
    return Array.from({ length: count }, (_, i) => ({ ...field, offset: field.offset + i * stride }));
  };

  walk(id, 0, 0);
  return fields.sort((a, b) => a.offset - b.offset);
}
