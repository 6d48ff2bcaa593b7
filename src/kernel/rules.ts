/**
 * What MAP_CREATE demands, as data in the rows of map types. Nothing is checked before the call; if the kernel
 * refuses, these rules explain why. They never overrule the kernel.
 */
import { MAP_FLAG, type MapShape, NAME_SIZE } from './flags.js';

/** Smallest and largest value of a size, and what it must be a multiple of, or whether it must be a power of two. */
export interface SizeRange {
  readonly min: number;
  readonly max: number;
  readonly step?: number;
  readonly power?: true;
}

/** What a map type demands of MAP_CREATE. */
export interface CreateRule {
  readonly key: SizeRange;
  readonly value: SizeRange;
  readonly entries: SizeRange;
  /** Bits of map_flags that the type accepts. */
  readonly flags: number;
  /** Bits of map_flags that must be set. */
  readonly needs: number;
  readonly btf: 'yes' | 'no' | 'required';
  /** Required type of keys, if the map has types; any type of the right size by default. */
  readonly keyType?: 'INT' | 'STRUCT' | 'VOID';
  /** map_extra: the largest value, and what it must be a multiple of; 0 by default. */
  readonly extra?: { readonly max: bigint; readonly step: bigint };
  /** With this flag, values must have these sizes instead. */
  readonly flagged?: { readonly flag: number; readonly value: SizeRange };
  /** Largest size of key and value together. */
  readonly item?: number;
  /**
   * As an inner map: besides type, sizes and flags, max_entries must match the template of the outer map
   * (map_meta_equal of the kernel), always, unless that has BPF_F_INNER_MAP, or on some kernels. `never`: it cannot be
   * an inner map.
   */
  readonly within?: 'same entries' | 'same entries unless flagged' | 'same entries on some kernels' | 'never';
  /** Needs CAP_NET_ADMIN in addition to CAP_BPF. */
  readonly network?: true;
  /**
   * The kernel clears the map when its last file descriptor or pin goes away. Opening it by id during that time
   * and closing it again leaks it for ever: see {@link opensSafely}.
   */
  readonly cleared?: true;
  /** The type of its only value can be a program's section of variables (.bss and the like). */
  readonly sections?: true;
}

/** How the kernel counts the items of a map type. */
export type Counted =
  /** bpf_map_sum_elem_count(), since Linux 6.6. */
  | { readonly by: 'elements' }
  /** A member of the structure that the map begins. */
  | { readonly by: 'member'; readonly struct: string; readonly member: string }
  /** Positions in a ring of `slots`: where the next item is put, and where the oldest one is taken. */
  | {
      readonly by: 'positions';
      readonly struct: string;
      readonly put: string;
      readonly taken: string;
      readonly slots: string;
    };

/** What is known here of a map type: its row. */
export interface KnownType {
  readonly number: number;
  /** As bpftool spells it. */
  readonly name: string;
  /** A value is round_up(value_size, 8) bytes for each possible CPU. */
  readonly perCpu?: true;
  /** Values are ids of other maps; MAP_CREATE needs one such map as a template. */
  readonly inner?: true;
  /** Undefined if nobody has measured it. */
  readonly create?: CreateRule;
  /** Undefined if the kernel does not count its items. */
  readonly counted?: Counted;
}

/** The table of map types. */
export interface KnownTypes {
  /** The row of a type; undefined if the type is newer than bpfimg. */
  row(type: number): KnownType | undefined;
  /** The rows of all types. */
  all(): readonly KnownType[];
}

const F = MAP_FLAG;
/** What user space may do with the map (BPF_F_RDONLY, BPF_F_WRONLY). */
export const RW = F.RDONLY | F.WRONLY;
/** What programs may do with the map (BPF_F_RDONLY_PROG, BPF_F_WRONLY_PROG). */
export const PROG = F.RDONLY_PROG | F.WRONLY_PROG;
/** Largest number in a member of union bpf_attr, most of which are u32. */
export const U32 = 0xffff_ffff;

/**
 * Whether a map of this type may be opened by id even if nothing else certainly holds it. False for unknown
 * types.
 */
export function opensSafely(type: KnownType | undefined): boolean {
  return type?.create !== undefined && type.create.cleared !== true;
}

/**
 * The max_entries to use instead of `wanted`. For a ring buffer it is rounded up, as libbpf does,
 * to a power of two and whole pages; for other types it is `wanted`.
 */
export function takenEntries({ create }: KnownType, wanted: number, pageSize: number): number {
  const entries = create?.entries;
  if (entries?.power !== true) return wanted;
  const rounded = 2 ** Math.ceil(Math.log2(Math.max(wanted, pageSize)));
  return rounded > entries.max ? wanted : rounded;
}

/** The arguments of MAP_CREATE that {@link breaches} checks. */
export interface CreateRequest extends MapShape {
  readonly extra: bigint;
  readonly ifindex: number;
  readonly name: Uint8Array;
  readonly btf: boolean;
  readonly inner: boolean;
}

/**
 * Why an outer map whose template was like `template` refuses `map`. Each reason is a clause.
 * @param stricter whether the kernel wants what only some kernels want; it is asked only if that matters
 */
export function misfits(map: MapShape, template: MapShape, types: KnownTypes, stricter = () => false): string[] {
  const within = types.row(template.type)?.create?.within;
  const flagged = within === 'same entries unless flagged' && (template.flags & F.INNER_MAP) === 0;
  const some = within === 'same entries on some kernels' && map.maxEntries !== template.maxEntries;
  const same: (keyof MapShape)[] = ['type', 'keySize', 'valueSize', 'flags'];
  if (within === 'same entries' || flagged || (some && stricter())) same.push('maxEntries');
  return same
    .filter((member) => map[member] !== template[member])
    .map(
      (member) =>
        `${MEMBERS[member]} ${memberText(member, map, types)}, expected ${memberText(member, template, types)}`,
    );
}

const MEMBERS: Readonly<Record<keyof MapShape, string>> = {
  type: 'map_type',
  keySize: 'key_size',
  valueSize: 'value_size',
  maxEntries: 'max_entries',
  flags: 'map_flags',
};

function memberText(member: keyof MapShape, map: MapShape, types: KnownTypes): string {
  const value = map[member];
  if (member === 'type') return types.row(value)?.name ?? String(value);
  return member === 'flags' ? flagsText(value) || '0' : String(value);
}

/**
 * Why the kernel refuses types of these kinds for a map even if their sizes are right; undefined if it may accept them.
 * The kinds are those behind typedefs; VOID for a type that is not given.
 */
export function typesRefused(
  { create: rule, name }: KnownType,
  maxEntries: number,
  key: string,
  value: string,
): string | undefined {
  if (rule === undefined || rule.btf === 'no' || (key === 'VOID' && value === 'VOID')) return undefined;
  if (value === 'VOID') return 'its keys have a type, its values have none';
  if (rule.sections === true && value === 'DATASEC' && maxEntries === 1 && key === 'VOID') return undefined;
  if (rule.keyType !== undefined && key !== rule.keyType) {
    return `the type of its keys is ${key}, expected ${rule.keyType} in a map of type ${name}`;
  }
  return key === 'VOID' && rule.keyType === undefined ? 'its values have a type, its keys have none' : undefined;
}

/** Names of the bits of map_flags; unknown bits as one number. */
function flagsText(flags: number): string {
  const names = Object.entries(F).filter(([, bit]) => (flags & bit) !== 0);
  const rest = (flags & ~names.reduce((sum, [, bit]) => sum | bit, 0)) >>> 0;
  return [...names.map(([name]) => `BPF_F_${name}`), ...(rest === 0 ? [] : [`0x${rest.toString(16)}`])].join('|');
}

function rangeText({ min, max, step, power }: SizeRange): string {
  if (min === max) return `${min}`;
  const range = max === U32 ? `${min} or more` : `${min} to ${max}`;
  if (power) return `a power of two from ${range}`;
  return step === undefined ? range : `${range} in steps of ${step}`;
}

/** Bytes that the kernel accepts in a name: ASCII letters, digits, `_`, `.`, and Latin-1 letters. */
export function nameByteAllowed(byte: number): boolean {
  return (byte >= 0xc0 && byte !== 0xd7 && byte !== 0xf7) || /[A-Za-z0-9_.]/.test(String.fromCharCode(byte));
}

/**
 * Everything in `asked` that breaks the rules of its type, as text: `key_size 3, expected 4`.
 * @param type its row; undefined for a type without a row
 */
export function breaches(asked: CreateRequest, type: KnownType | undefined): string[] {
  if (type === undefined) return [`map_type ${asked.type} is unknown to bpfimg, and maybe to this kernel`];
  const rule = type.create;
  if (rule === undefined) return [];
  const found: string[] = [];
  const size = (field: string, value: number, range: SizeRange) => {
    const { min, max, step = 1, power } = range;
    const odd = value % step !== 0 || (power === true && !Number.isInteger(Math.log2(value)));
    if (value < min || value > max || odd) found.push(`${field} ${value}, expected ${rangeText(range)}`);
  };
  size('key_size', asked.keySize, rule.key);
  const other = rule.flagged !== undefined && (asked.flags & rule.flagged.flag) !== 0 ? rule.flagged.value : undefined;
  size('value_size', asked.valueSize, other ?? rule.value);
  if (rule.item !== undefined && asked.keySize + asked.valueSize > rule.item) {
    found.push(`key_size and value_size together ${asked.keySize + asked.valueSize}, expected at most ${rule.item}`);
  }
  size('max_entries', asked.maxEntries, rule.entries);
  const strange = asked.flags & ~rule.flags;
  if (strange !== 0) found.push(`map_flags ${flagsText(strange)} not accepted`);
  const missing = rule.needs & ~asked.flags;
  if (missing !== 0) found.push(`map_flags lack ${flagsText(missing)}`);
  for (const both of [RW, PROG]) {
    if ((asked.flags & both) === both) found.push(`map_flags ${flagsText(both)} exclude each other`);
  }
  const { max, step } = rule.extra ?? { max: 0n, step: 1n };
  if (asked.extra > max || asked.extra % step !== 0n) {
    const more = step === 1n ? '' : ` in steps of ${step}`;
    found.push(
      `map_extra 0x${asked.extra.toString(16)}, expected ${max === 0n ? '0' : `0 to 0x${max.toString(16)}${more}`}`,
    );
  }
  if (asked.ifindex !== 0)
    found.push(`ifindex ${asked.ifindex}, expected 0: maps on network devices belong to the drivers`);
  if (asked.btf && rule.btf === 'no') found.push('BTF, which this type does not accept');
  if (!asked.btf && rule.btf === 'required') found.push('no BTF, which this type needs');
  if (type.inner === true && !asked.inner) found.push('no inner map as a template');
  if (asked.name.length >= NAME_SIZE)
    found.push(`a name of ${asked.name.length} bytes, expected at most ${NAME_SIZE - 1}`);
  const odd = asked.name.find((byte) => !nameByteAllowed(byte));
  if (odd !== undefined) found.push(`byte 0x${odd.toString(16).padStart(2, '0')} is not allowed in the name`);
  return found;
}
