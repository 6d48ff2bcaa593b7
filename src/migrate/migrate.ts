/**
 * Values of one type as values of another: what a program's new version makes of its old version's maps.
 *
 * {@link migration} compares two types once and compiles what is to be done with each value into a flat program
 * (convert.ts).
 *
 * - **Members match by name**, at any depth; anonymous structures and unions are transparent, as in C.
 *   `rename` says what has another name now, and `drop` what may go.
 * - **Numbers** (integers, bool, enums, pointers, bit-fields) keep their value, whatever their width, signedness and
 *   byte order. A number that does not fit is a loss; what is written then is what an assignment in C would write: the
 *   lowest bits, or `true`. `__be16` and its like keep their bytes.
 * - **Enums** go by name. If several names have one number, the first that the new enum has decides. A number
 *   without a name is kept, unless the new enum has a name for it, or the two enums number any common name
 *   differently (so flags that moved are not mixed up); that is a loss, as is a name that the new enum lacks. Between
 *   an enum and an integer, the number is kept. An enum not marked as signed counts as signed if it has a number from
 *   -4095 to -1: compilers record signedness only since 2022.
 * - **Floats** keep their value; a `double` that is no `float` is a loss and gets rounded. A float and an integer do not
 *   convert.
 * - **Arrays** go by index, and their elements by the same rules. Further elements are zero; elements beyond the
 *   end of the new array are a loss if they are not zero. `char` arrays are text: one that has bytes other than zero
 *   beyond the end of the new one does not fit. It fits without its NUL.
 * - **A structure with one member**, fields of the kernel not counted, and that member convert into each other.
 * - **Unions** are copied if both sides are alike (the same members; enums may have got more names). Any other is a loss
 *   if it is not zero. A member of a union can be renamed from or to by hand, even to its own name.
 * - **Fields of the kernel** (locks, timers, kptrs, …) stay zero: an update does not set them anyway.
 * - **Members without an old one** are zero, or as `set` says; old members without a new one are a loss if they are not
 *   zero.
 * - **Padding** has no meaning and is never a loss. It is kept where it lies within what is copied as it is: always if
 *   both types are alike.
 */
import type { EnumType } from '../btf/btf.js';
import { valueCodec } from '../btf/values.js';
import { clearBytes, copyBytes, exactInteger, hex, viewOf } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import type { Json } from '../value.js';
import {
  type EnumTable,
  halves,
  type Loss,
  type LossReason,
  numberOp,
  OP,
  type Op,
  Program,
  roomOf,
  type Site,
} from './convert.js';
import { layoutOf, type Node, namesIn, nodesAt, pathOf, scope, type TypeRef, typeText } from './layout.js';

export type { Loss, LossReason } from './convert.js';
export type { TypeRef } from './layout.js';

/** What a user says of members. Paths are as in C, without indexes: `stats.bytes`, `flows[].bytes`, `flows.bytes`. */
export interface MigrationOptions {
  /**
   * New path by old path. A bare name also means the one member of that name further in. The empty path is the whole
   * value. Names of an enum's values can be renamed the same way.
   */
  readonly rename?: ReadonlyMap<string, string>;
  /** Old members that may go. A new member of that name begins with zero. */
  readonly drop?: ReadonlySet<string>;
  /** Values of new members, as typed JSON (src/btf/values.ts). */
  readonly set?: ReadonlyMap<string, Json>;
  /** What the types are of, for messages. */
  readonly where?: 'key' | 'value';
}

/**
 * What happens to a member. If several things do, it is the first of these that applies: `enum` (numbers of names
 * differ), `widened`, `narrowed`, `resigned` (signed or not), `longer`, `shorter`, `swapped` (byte order), `text` (between
 * text and bytes), `wrapped` (into a structure's only member), `unwrapped`, `renamed`, `moved`, `same`. Or: `new`;
 * `dropped` (no place for it); `union` (not alike); `kernel` (the kernel's own).
 */
export type MigrationChange =
  | 'enum'
  | 'widened'
  | 'narrowed'
  | 'resigned'
  | 'longer'
  | 'shorter'
  | 'swapped'
  | 'text'
  | 'wrapped'
  | 'unwrapped'
  | 'renamed'
  | 'moved'
  | 'same'
  | 'new'
  | 'dropped'
  | 'union'
  | 'kernel';

/** What happens to one member, or to a structure whose members all stay as they are. */
export interface MigrationStep {
  readonly what: MigrationChange;
  /** Path of the old member, empty for the whole value; undefined if there is none. */
  readonly old: string | undefined;
  readonly new: string | undefined;
  /** As written in C. */
  readonly oldType: string | undefined;
  readonly newType: string | undefined;
  /** What a new member is set to. */
  readonly value: Json | undefined;
  /** Some values cannot be kept; which, {@link Migration.convert} tells. */
  readonly mayLose: boolean;
}

/** An option that applies to nothing in these two types. It may apply to those of another map. */
export interface UnusedOption {
  readonly option: 'rename' | 'drop' | 'set';
  /** The (old) path. */
  readonly name: string;
  /** A clause: `the old type has no member x`. */
  readonly why: string;
}

/** How values of one type become values of another. */
export interface Migration {
  /** Bytes of an old value. */
  readonly from: number;
  /** Bytes of a new one. */
  readonly to: number;
  /** Both types are alike: values are copied as they are, padding and the kernel's fields included. */
  readonly same: boolean;
  /** Some values may lose something; {@link convert} returns undefined for all of them otherwise. */
  readonly mayLose: boolean;
  /** What happens to each member, for people: in the order of the new type, then what only the old one has. */
  readonly steps: readonly MigrationStep[];
  readonly unused: readonly UnusedOption[];
  /**
   * Writes what becomes of the value at `at` of `source` to `target` at `to`: all bytes of the new value, also if
   * something is lost. The two must not overlap.
   * @returns what is lost, each member once; undefined for nothing
   */
  convert(source: Uint8Array, at: number, target: Uint8Array, to: number): readonly Loss[] | undefined;
}

/**
 * How values of type `from` become values of type `to`.
 * @throws BpfimgError `conflict` for members that do not convert into each other whatever their values, `usage` for options
 * that contradict each other or the types, `badImage` for invalid types
 */
export function migration(from: TypeRef, to: TypeRef, options: MigrationOptions = {}): Migration {
  const [old, fresh] = [layoutOf(from), layoutOf(to)];
  const plan = new Plan(old.root, fresh.root, options);
  const same = old.size === fresh.size && plan.isSame();
  let program: Program | undefined;
  let template: DataView | undefined;
  if (!same) {
    program = new Program(plan.compile(old.size, fresh.size));
    template = plan.template(fresh.size);
  }
  // The buffers of the last call, of which views are at hand: mostly they are this one's too.
  const none: Uint8Array = new Uint8Array(0);
  const seen = { source: none, from: viewOf(none), target: none, to: viewOf(none) };
  const [fromSize, toSize] = [old.size, fresh.size];
  return {
    from: fromSize,
    to: toSize,
    same,
    mayLose: plan.mayLose,
    steps: plan.steps(),
    unused: plan.unused(),
    convert(source, at, target, place) {
      if (at < 0 || place < 0 || at + fromSize > source.length || place + toSize > target.length) {
        throw new RangeError(
          `${fromSize} bytes at ${at} of ${source.length}, ${toSize} at ${place} of ${target.length}`,
        );
      }
      if (source !== seen.source) [seen.source, seen.from] = [source, viewOf(source)];
      if (target !== seen.target) [seen.target, seen.to] = [target, viewOf(target)];
      const { from, to } = seen;
      if (program === undefined) {
        copyBytes(from, at, to, place, fromSize);
        return undefined;
      }
      if (template !== undefined) copyBytes(template, 0, to, place, toSize);
      else clearBytes(to, place, toSize);
      return program.run(from, at, to, place);
    },
  };
}

/** Most names of enums to compare, all pairs of enums together. */
const MAX_NAMES = 1_000_000;

/** Bytes of the longest value that a new member can be set in. */
const MAX_TEMPLATE = 64 * 1024 * 1024;
/** Characters of all types' names together: they may share long ones. */
const MAX_TEXT = 4 * 1024 * 1024;

/** Bits to be copied as they are, from and to bits whose numbers have the same remainder modulo 8. */
interface Copy {
  readonly from: number;
  readonly to: number;
  readonly bits: number;
}

/** Operations on the bits of two frames: the whole values, or one element of an array each. */
interface Frame {
  /** The root, or an element; undefined where there is none on that side. */
  readonly old: Node | undefined;
  readonly fresh: Node | undefined;
  readonly copies: Copy[];
  readonly ops: Op[];
  /** Loops around it. */
  readonly depth: number;
}

type Draft = Omit<MigrationStep, 'old' | 'new' | 'oldType' | 'newType'> & {
  readonly old: Node | undefined;
  readonly fresh: Node | undefined;
};

class Plan {
  readonly #old: Node;
  readonly #fresh: Node;
  readonly #options: MigrationOptions;
  readonly #where: string;
  /** Old node by new node, as renames say. */
  readonly #renames = new Map<Node, Node>();
  /** Old nodes that are not where their name would lead: renamed or dropped. */
  readonly #away = new Set<Node>();
  readonly #dropped = new Set<Node>();
  readonly #set = new Map<Node, { readonly path: string; readonly value: Json }>();
  /** Nodes with something of the above inside: their members must be looked at one by one. */
  readonly #touched = new Set<Node>();
  /** Old nodes that have a new place, or of which something has. */
  readonly #placed = new Set<Node>();
  readonly #partly = new Set<Node>();
  /** Old unions that met one which is not alike. */
  readonly #unlike = new Set<Node>();
  readonly #steps: Draft[] = [];
  readonly #unused: UnusedOption[] = [];
  /** New nodes that an option names, once they have been come by. */
  readonly #met = new Set<Node>();
  readonly #tables = new Map<string, { readonly kind: 'same' | 'more' | 'other'; readonly table: EnumTable }>();
  readonly #usedNames = new Set<string>();
  #names = 0;
  readonly #inserts: {
    readonly node: Node;
    readonly path: string;
    readonly value: Json;
    readonly counts: readonly number[];
  }[] = [];

  constructor(old: Node, fresh: Node, options: MigrationOptions) {
    this.#old = old;
    this.#fresh = fresh;
    this.#options = options;
    this.#where = options.where ?? 'value';
    this.#resolveOptions();
  }

  // -------------------------------------------------------------------------------------------------
  // Options

  #one(root: Node, path: string, option: string, which: 'old' | 'new'): Node | undefined {
    const found = nodesAt(root, path);
    if (found.length <= 1) return found[0];
    const some = found.slice(0, 5).map(pathOf).join(', ');
    throw this.#usage(
      `${path} may be any of ${some}${found.length > 5 ? ', …' : ''} of the ${which} ${this.#where}`,
      option,
    );
  }

  #usage(text: string, option: string): BpfimgError {
    return new BpfimgError('usage', text, { subject: option });
  }

  #touch(node: Node): void {
    for (let up = node.parent; up !== undefined && !this.#touched.has(up); up = up.parent) this.#touched.add(up);
  }

  #resolveOptions(): void {
    const { rename, drop, set } = this.#options;
    for (const [from, to] of rename ?? []) {
      const option = `--rename ${from}=${to}`;
      const old = this.#one(this.#old, from, option, 'old');
      const fresh = old && this.#one(this.#fresh, to, option, 'new');
      // They may still be names of an enum's values.
      if (old === undefined || fresh === undefined) continue;
      if (this.#renames.has(fresh) || this.#away.has(old)) throw this.#usage('renames a member a second time', option);
      this.#renames.set(fresh, old);
      this.#away.add(old);
      this.#touch(old);
      this.#touch(fresh);
    }
    for (const path of drop ?? []) {
      const old = this.#one(this.#old, path, `--drop ${path}`, 'old');
      if (old === undefined)
        this.#unused.push({ option: 'drop', name: path, why: `the old ${this.#where} has no member ${path}` });
      else if (this.#away.has(old) && !this.#dropped.has(old))
        throw this.#usage('it is renamed as well', `--drop ${path}`);
      else {
        this.#dropped.add(old);
        this.#away.add(old);
        this.#touch(old);
      }
    }
    for (const [path, value] of set ?? []) {
      const fresh = this.#one(this.#fresh, path, `--set ${path}`, 'new');
      if (fresh === undefined)
        this.#unused.push({ option: 'set', name: path, why: `the new ${this.#where} has no member ${path}` });
      else {
        this.#set.set(fresh, { path, value });
        this.#touch(fresh);
      }
    }
  }

  unused(): UnusedOption[] {
    const missing: UnusedOption[] = [];
    for (const [from, to] of this.#options.rename ?? []) {
      if (this.#usedNames.has(from)) continue;
      const [old] = nodesAt(this.#old, from);
      if (old !== undefined && nodesAt(this.#fresh, to).length > 0) continue;
      const why =
        old === undefined
          ? `the old ${this.#where} has no member ${from}`
          : `the new ${this.#where} has no member ${to}`;
      missing.push({ option: 'rename', name: from, why });
    }
    return [...missing, ...this.#unused];
  }

  // -------------------------------------------------------------------------------------------------
  // Results

  /** Whether values are copied as they are; notes that as the only step. */
  isSame(): boolean {
    if (this.#isTouched(this.#old) || this.#isTouched(this.#fresh)) return false;
    if (!this.#alike(this.#old, this.#fresh, true)) return false;
    this.#step('same', this.#old, this.#fresh);
    return true;
  }

  #isTouched(node: Node): boolean {
    return this.#touched.has(node) || this.#away.has(node) || this.#renames.has(node) || this.#set.has(node);
  }

  get mayLose(): boolean {
    return this.#steps.some((step) => step.mayLose);
  }

  steps(): MigrationStep[] {
    let left = MAX_TEXT;
    const typeOf = (node: Node) => {
      const text = left > 0 ? typeText(node) : '…';
      left -= text.length;
      return text;
    };
    return this.#steps.map(({ old, fresh, ...rest }) => ({
      ...rest,
      old: old && pathOf(old),
      new: fresh && pathOf(fresh),
      oldType: old && typeOf(old),
      newType: fresh && typeOf(fresh),
    }));
  }

  #step(what: MigrationChange, old: Node | undefined, fresh: Node | undefined, mayLose = false, value?: Json): void {
    this.#steps.push({ what, old, fresh, mayLose, value });
  }

  /** A new value before anything old is put into it; undefined if it is all zero. */
  template(size: number): DataView | undefined {
    if (this.#inserts.length === 0) return undefined;
    if (size > MAX_TEMPLATE) {
      throw new BpfimgError('unsupported', `a value of ${size} bytes, more than ${MAX_TEMPLATE}`, { subject: '--set' });
    }
    const bytes = new Uint8Array(size);
    for (const { node, path, value, counts } of this.#inserts) {
      try {
        this.#insert(bytes, node, value, counts);
      } catch (error) {
        if (!(error instanceof BpfimgError)) throw error;
        throw this.#usage(error.message, `--set ${path}`);
      }
    }
    return viewOf(bytes);
  }

  /** @param counts elements of the arrays around it, from outermost to innermost, that get it */
  #insert(bytes: Uint8Array, node: Node, value: Json, counts: readonly number[]): void {
    const arrays: Node[] = [];
    for (let up = node.frame.parent; up !== undefined; up = up.frame.parent) arrays.unshift(up);
    const view = viewOf(bytes);
    const each = (depth: number, from: number) => {
      const array = arrays[depth];
      if (array !== undefined) {
        for (let i = 0; i < (counts[depth] as number); i++) each(depth + 1, from + array.bit / 8 + i * array.stride);
      } else if (!node.bitField) valueCodec(node.btf, node.id).encode(value, view, from + Math.floor(node.bit / 8));
      else {
        const within = scope(node) as Node;
        const at = from + within.bit / 8;
        const codec = valueCodec(within.btf, within.id);
        codec.encode({ $raw: hex(bytes.subarray(at, at + codec.size)), [node.name]: value }, view, at);
      }
    };
    each(0, 0);
  }

  // -------------------------------------------------------------------------------------------------
  // Pairing members

  compile(oldSize: number, freshSize: number): Op[] {
    const frame: Frame = { old: this.#old, fresh: this.#fresh, copies: [], ops: [], depth: 0 };
    this.#place(this.#fresh, this.#old, frame, []);
    this.#leftOver(this.#old, frame, 'dropped');
    for (const [fresh, old] of this.#renames) {
      if (!this.#met.has(fresh)) throw this.#usage('the new member has no place of its own', renameOption(old, fresh));
    }
    for (const [fresh, { path }] of this.#set) {
      if (!this.#met.has(fresh)) throw this.#usage('it has no place of its own', `--set ${path}`);
    }
    return finish(frame, oldSize, freshSize);
  }

  #markPlaced(old: Node): void {
    this.#placed.add(old);
    for (let up = old.parent; up !== undefined && !this.#partly.has(up); up = up.parent) this.#partly.add(up);
  }

  /**
   * Decides what `fresh` is made of.
   * @param named the old node that its name leads to
   * @param counts elements of the arrays around it that have old ones
   */
  #place(fresh: Node, named: Node | undefined, frame: Frame, counts: readonly number[]): void {
    const renamed = this.#renames.get(fresh);
    this.#met.add(fresh);
    const old = renamed ?? (named !== undefined && !this.#away.has(named) ? named : undefined);
    if (renamed !== undefined && renamed.frame !== frame.old) {
      throw this.#usage('a member of an array’s elements can only be one of theirs', renameOption(renamed, fresh));
    }
    const set = this.#set.get(fresh);
    if (set !== undefined) {
      if (old !== undefined) {
        throw this.#usage(`the old ${this.#where} has it as well (--drop ${pathOf(old)})`, `--set ${set.path}`);
      }
      if (this.#touched.has(fresh)) throw this.#usage('a member of it is named as well', `--set ${set.path}`);
      this.#inserts.push({ node: fresh, ...set, counts });
      this.#step('new', undefined, fresh, false, set.value);
      return;
    }
    if (fresh.kind === 'kernel') {
      if (old?.kind === 'kernel') this.#markPlaced(old);
      this.#step('kernel', old?.kind === 'kernel' ? old : undefined, fresh);
      return;
    }
    if (old === undefined) this.#alone(fresh, frame, counts);
    else this.#pair(old, fresh, frame, counts, renamed && 'renamed');
  }

  /** A new member without an old one. */
  #alone(fresh: Node, frame: Frame, counts: readonly number[]): void {
    if (!this.#touched.has(fresh)) this.#step('new', undefined, fresh);
    else if (fresh.kind === 'union') this.#chosen(fresh, frame, counts);
    else if (fresh.kind === 'array') {
      const inside: Frame = { old: undefined, fresh: fresh.children[0], copies: [], ops: [], depth: frame.depth + 1 };
      this.#place(fresh.children[0] as Node, undefined, inside, [...counts, fresh.count]);
    } else for (const child of fresh.children) this.#place(child, undefined, frame, counts);
  }

  /** A union one of whose members is named by hand. */
  #chosen(union: Node, frame: Frame, counts: readonly number[]): void {
    const chosen = union.children.filter((child) => this.#isTouched(child));
    if (chosen.length > 1) {
      const names = namesIn({ children: chosen });
      throw this.#usage(`${names.join(' and ')} are members of one union`, '--rename or --set');
    }
    for (const child of chosen) this.#place(child, undefined, frame, counts);
  }

  /**
   * An old and a new member that belong together.
   * @param how why they do, unless by their names
   */
  #pair(old: Node, fresh: Node, frame: Frame, counts: readonly number[], how?: MigrationChange): void {
    const base: MigrationChange =
      how ?? (pathOf(old) !== pathOf(fresh) ? 'renamed' : old.bit !== fresh.bit ? 'moved' : 'same');
    if (old.kind === 'kernel') {
      this.#markPlaced(old);
      this.#step('kernel', old, fresh);
      return;
    }
    const union = old.kind === 'union' || fresh.kind === 'union';
    const only = old.kind === 'union' ? fresh : old;
    if (union && (only.kind !== 'struct' || only.children.length !== 1 || this.#isTouched(only))) {
      this.#unions(old, fresh, frame, counts, base);
      return;
    }
    if (old.kind === 'struct' || fresh.kind === 'struct') {
      this.#structs(old, fresh, frame, counts, base);
      return;
    }
    const kinds = `${old.kind} ${fresh.kind}`;
    if (kinds === 'number number') this.#numbers(old, fresh, frame, base);
    else if (kinds === 'float float') this.#floats(old, fresh, frame, base);
    else if (kinds === 'array array') this.#arrays(old, fresh, frame, counts, base);
    else if (isBytes(old) && isBytes(fresh)) {
      this.#texts(old, fresh, frame, old.kind === fresh.kind ? base : 'text');
    } else if (kinds === 'opaque opaque' && this.#alike(old, fresh, true)) this.#copy(old, fresh, frame, base);
    else throw this.#incompatible(old, fresh);
  }

  #incompatible(old: Node, fresh: Node): BpfimgError {
    const [from, to] = [pathOf(old), pathOf(fresh)];
    const member = from === '' ? `the ${this.#where}` : `member ${from} of the ${this.#where}`;
    const there = from === to || from === '' ? '' : ` ${to}`;
    const within = (path: string) => (path === '' ? 'MEMBER' : `${path}.MEMBER`);
    const help: string[] = [];
    if (fresh.kind === 'struct') help.push(`--rename ${from}=${within(to)} says which member it becomes`);
    else if (old.kind === 'struct') help.push(`--rename ${within(from)}=${to} says which member it comes from`);
    if (from !== '') help.push(`--drop ${from} leaves it out`);
    const helps = help.length === 0 ? '' : ` (${help.join(', ')})`;
    return new BpfimgError(
      'conflict',
      `${member}: ${typeText(old)} does not become ${typeText(fresh)}${there}${helps}`,
    );
  }

  /** Copies all bits of a node. */
  #copy(old: Node, fresh: Node, frame: Frame, what: MigrationChange): void {
    this.#markPlaced(old);
    frame.copies.push({ from: old.bit, to: fresh.bit, bits: old.bits });
    this.#step(what, old, fresh);
  }

  #unions(old: Node, fresh: Node, frame: Frame, counts: readonly number[], what: MigrationChange): void {
    const touched = this.#touched.has(old) || this.#touched.has(fresh);
    if (!touched && this.#alike(old, fresh, false)) {
      this.#copy(old, fresh, frame, what);
      return;
    }
    if (old.kind === fresh.kind) {
      this.#unlike.add(old);
      this.#step('union', old, fresh, true);
    } else if (!this.#touched.has(fresh)) this.#step('new', undefined, fresh);
    if (this.#touched.has(fresh)) this.#alone(fresh, frame, counts);
  }

  #structs(old: Node, fresh: Node, frame: Frame, counts: readonly number[], base: MigrationChange): void {
    if (old.kind !== 'struct') {
      const [only, ...others] = fresh.children.filter(({ kind }) => kind !== 'kernel');
      if (only === undefined || others.length > 0) throw this.#incompatible(old, fresh);
      for (const child of fresh.children) {
        if (child !== only || this.#renames.has(child) || this.#set.has(child)) {
          this.#place(child, undefined, frame, counts);
        } else this.#pair(old, child, frame, counts, 'wrapped');
      }
      return;
    }
    if (fresh.kind !== 'struct') {
      const [only, ...others] = old.children.filter(({ kind }) => kind !== 'kernel');
      if (only === undefined || others.length > 0) throw this.#incompatible(old, fresh);
      if (this.#away.has(only)) this.#alone(fresh, frame, counts);
      else this.#pair(only, fresh, frame, counts, 'unwrapped');
      return;
    }
    const untouched = !this.#touched.has(old) && !this.#touched.has(fresh);
    if (untouched && !old.hasKernel && this.#alike(old, fresh, true)) {
      this.#copy(old, fresh, frame, base);
      return;
    }
    const byName = new Map<string, Node>();
    const unions: Node[] = [];
    for (const child of old.children) {
      if (child.name === '') unions.push(child);
      else byName.set(child.name, child);
    }
    for (const child of fresh.children) {
      if (child.name !== '') this.#place(child, byName.get(child.name), frame, counts);
      else {
        const names = new Set(namesIn(child));
        const at = unions.findIndex((one) => namesIn(one).some((name) => names.has(name)));
        this.#place(child, at < 0 ? undefined : unions.splice(at, 1)[0], frame, counts);
      }
    }
  }

  // -------------------------------------------------------------------------------------------------
  // Leaves

  #numbers(old: Node, fresh: Node, frame: Frame, base: MigrationChange): void {
    const where = { frame, old, fresh };
    if (old.enum !== undefined && fresh.enum !== undefined) {
      const { kind, table } = this.#enums(old, fresh);
      if (kind !== 'same') {
        const wider = old.bits < fresh.bits ? 'widened' : old.bits > fresh.bits ? 'narrowed' : base;
        const what = kind === 'more' ? wider : 'enum';
        this.#number(where, { code: numberOp(OP.ENUM, old, fresh), names: table }, 'no such name', what, true);
        return;
      }
    }
    if (old.network !== fresh.network) {
      // The same bytes, declared with more or less care.
      if (old.bits !== fresh.bits) throw this.#incompatible(old, fresh);
      this.#copy(old, fresh, frame, base);
      return;
    }
    const sameOrder = old.little === fresh.little || (old.bits === 8 && old.bit % 8 === 0);
    // Between enums with the same names, compilers from before they told signed from unsigned make no difference.
    const enums = old.enum !== undefined && fresh.enum !== undefined;
    const sameSign = (enums || old.signed === fresh.signed) && (old.bool || !fresh.bool);
    const room = roomOf(fresh);
    const wholeBytes = [old.bits, old.bit, fresh.bit].every((bits) => bits % 8 === 0);
    if (old.bits === fresh.bits && sameSign) {
      if (sameOrder && (old.bit - fresh.bit) % 8 === 0) this.#copy(old, fresh, frame, base);
      else {
        const code = wholeBytes
          ? [OP.REVERSE, old.bit / 8, fresh.bit / 8, old.bits / 8]
          : numberOp(numeric(old, fresh), old, fresh);
        this.#number(where, { code }, 'does not fit', sameOrder ? base : 'swapped', false);
      }
      return;
    }
    const what =
      old.bits < fresh.bits && !(fresh.bool && room < old.bits)
        ? 'widened'
        : old.bits > fresh.bits || fresh.bool
          ? 'narrowed'
          : 'resigned';
    const mayLose = old.signed ? !fresh.signed || fresh.bits < old.bits : room < old.bits;
    // What is added are zero bits.
    const to = fresh.little ? fresh.bit : fresh.bit + fresh.bits - old.bits;
    if (!old.signed && !mayLose && sameOrder && (old.bit - to) % 8 === 0) {
      this.#markPlaced(old);
      frame.copies.push({ from: old.bit, to, bits: old.bits });
      this.#step(what, old, fresh);
      return;
    }
    this.#number(where, { code: numberOp(numeric(old, fresh), old, fresh) }, 'does not fit', what, mayLose);
  }

  #number(
    { frame, old, fresh }: { frame: Frame; old: Node; fresh: Node },
    code: Omit<Op, 'site'>,
    reason: LossReason,
    what: MigrationChange,
    mayLose: boolean,
  ): void {
    this.#markPlaced(old);
    frame.ops.push({ ...code, site: { node: old, reason } });
    this.#step(what, old, fresh, mayLose);
  }

  #floats(old: Node, fresh: Node, frame: Frame, base: MigrationChange): void {
    const where = { frame, old, fresh };
    const [size, to] = [old.bits / 8, fresh.bits / 8];
    if (size === to) {
      if (old.little === fresh.little) this.#copy(old, fresh, frame, base);
      else this.#number(where, { code: [OP.REVERSE, old.bit / 8, fresh.bit / 8, size] }, 'not exact', 'swapped', false);
      return;
    }
    if (![size, to].every((one) => one === 4 || one === 8)) throw this.#incompatible(old, fresh);
    const code = [OP.FLOAT, old.bit / 8, size, old.little ? 1 : 0, fresh.bit / 8, to, fresh.little ? 1 : 0];
    this.#number(where, { code }, 'not exact', size < to ? 'widened' : 'narrowed', size > to);
  }

  /** Arrays of bytes, at least one of which is text. */
  #texts(old: Node, fresh: Node, frame: Frame, base: MigrationChange): void {
    this.#markPlaced(old);
    frame.copies.push({ from: old.bit, to: fresh.bit, bits: Math.min(old.bits, fresh.bits) });
    const beyond = old.bits - fresh.bits;
    if (beyond > 0) frame.ops.push(zeroOp(old.bit + fresh.bits, beyond, { node: old, reason: 'does not fit' }));
    this.#step(beyond > 0 ? 'shorter' : beyond < 0 ? 'longer' : base, old, fresh, beyond > 0);
  }

  #arrays(old: Node, fresh: Node, frame: Frame, counts: readonly number[], base: MigrationChange): void {
    this.#markPlaced(old);
    const both = Math.min(old.count, fresh.count);
    const [from, to] = [old.children[0] as Node, fresh.children[0] as Node];
    const what = old.count > fresh.count ? 'shorter' : old.count < fresh.count ? 'longer' : base;
    const inside: Frame = { old: from, fresh: to, copies: [], ops: [], depth: frame.depth + 1 };
    const before = this.#steps.length;
    this.#step(what, old, fresh, old.count > fresh.count);
    const untouched = !this.#touched.has(old) && !this.#touched.has(fresh);
    if (untouched && !from.hasKernel && old.stride === fresh.stride && this.#alike(from, to, true)) {
      frame.copies.push({ from: old.bit, to: fresh.bit, bits: both * old.stride * 8 });
    } else {
      this.#place(to, from, inside, [...counts, both]);
      this.#leftOver(from, inside, 'dropped');
      const body = finish(inside, old.stride, fresh.stride);
      const [one, ...others] = body;
      if (
        one?.code[0] === OP.COPY &&
        others.length === 0 &&
        one.code[3] === old.stride &&
        old.stride === fresh.stride
      ) {
        frame.copies.push({ from: old.bit, to: fresh.bit, bits: both * old.stride * 8 });
      } else loop(frame, { old, fresh, first: 0, count: both }, body);
      // What happens to the elements says it all, except for their number.
      if (what === base) this.#steps.splice(before, 1);
    }
    if (old.count > fresh.count) {
      const rest: Frame = { old: from, fresh: undefined, copies: [], ops: [], depth: frame.depth + 1 };
      this.#mustBeZero(from, rest, 'beyond the end');
      loop(frame, { old, first: fresh.count, count: old.count - fresh.count }, finish(rest, old.stride, 0));
    }
  }

  // -------------------------------------------------------------------------------------------------
  // What has no new place

  /**
   * Checks what is left of an old node.
   * @param told a step says it already
   */
  #leftOver(node: Node, frame: Frame, reason: LossReason, told = false): void {
    if (this.#placed.has(node)) return;
    const whole = !told && !this.#partly.has(node) && !this.#touched.has(node);
    if (this.#dropped.has(node)) {
      if (!told) this.#step('dropped', node, undefined);
    } else if (node.kind === 'kernel') {
      if (!told) this.#step('kernel', node, undefined);
    } else if (node.kind === 'struct') {
      if (whole) this.#step('dropped', node, undefined, true);
      for (const child of node.children) this.#leftOver(child, frame, reason, told || whole);
    } else {
      if (!told && !this.#unlike.has(node)) this.#step('dropped', node, undefined, true);
      this.#mustBeZero(node, frame, this.#unlike.has(node) ? 'not alike' : reason);
    }
  }

  /** Makes it a loss if a node, or what no rename has taken of it, is not zero; except for padding. */
  #mustBeZero(node: Node, frame: Frame, reason: LossReason): void {
    if (node.kind === 'kernel' || this.#dropped.has(node)) return;
    if (node.kind === 'struct') for (const child of node.children) this.#mustBeZero(child, frame, reason);
    else if (node.kind === 'array') {
      const inside: Frame = { old: node.children[0], fresh: undefined, copies: [], ops: [], depth: frame.depth + 1 };
      this.#mustBeZero(node.children[0] as Node, inside, reason);
      loop(frame, { old: node, first: 0, count: node.count }, inside.ops);
    } else {
      const site = { node, reason };
      let from = node.bit;
      const taken = node.kind === 'union' ? this.#takenOf(node).sort((a, b) => a.bit - b.bit) : [];
      for (const { bit, bits } of taken) {
        if (bit > from) frame.ops.push(zeroOp(from, bit - from, site));
        from = Math.max(from, bit + bits);
      }
      if (node.bit + node.bits > from) frame.ops.push(zeroOp(from, node.bit + node.bits - from, site));
    }
  }

  #takenOf(node: Node): Node[] {
    return node.children.flatMap((child) =>
      this.#placed.has(child) || this.#dropped.has(child) ? [child] : this.#takenOf(child),
    );
  }

  // -------------------------------------------------------------------------------------------------
  // Comparing

  /**
   * Whether the bytes of one mean the same as bytes of the other.
   * @param exact also numbers for which an enum has no name
   */
  #alike(old: Node, fresh: Node, exact: boolean): boolean {
    if (old.kind !== fresh.kind || old.bits !== fresh.bits) return false;
    switch (old.kind) {
      case 'number': {
        if (old.network !== fresh.network) return true;
        if (old.bool !== fresh.bool || old.little !== fresh.little) return false;
        if (old.enum === undefined || fresh.enum === undefined) return old.signed === fresh.signed;
        const { kind } = this.#enums(old, fresh);
        return kind === 'same' || (kind === 'more' && !exact);
      }
      case 'float':
        return old.little === fresh.little;
      case 'kernel':
      case 'opaque':
        return old.special === fresh.special && old.little === fresh.little;
      case 'text':
        return true;
      case 'array':
        if (old.count !== fresh.count || old.stride !== fresh.stride) return false;
        break;
      default:
        if (old.children.length !== fresh.children.length) return false;
    }
    return old.children.every((child, i) => {
      const other = fresh.children[i] as Node;
      const [from, to] = old.kind === 'array' ? [0, 0] : [old.bit, fresh.bit];
      return child.name === other.name && child.bit - from === other.bit - to && this.#alike(child, other, exact);
    });
  }

  /**
   * How the numbers of one enum become those of another: `same` if nothing needs to be done, `more` if the new one only
   * has more names.
   */
  #enums(old: Node, fresh: Node): { readonly kind: 'same' | 'more' | 'other'; readonly table: EnumTable } {
    const [from, to] = [old.enum as EnumType, fresh.enum as EnumType];
    const key = `${from.id} ${old.bits} ${to.id} ${fresh.bits}`;
    const known = this.#tables.get(key);
    if (known !== undefined) return known;
    this.#names += from.values.length + to.values.length;
    if (this.#names > MAX_NAMES) throw old.btf.bad(from.id, `more than ${MAX_NAMES} names of enums to compare`);
    const [names, newNames] = [numbersOf(old), numbersOf(fresh)];
    const numbers = new Map<number | bigint, bigint | null>();
    let renumbered = false;
    for (const [name, number] of names) {
      const other = this.#options.rename?.get(name);
      const renamed = other === undefined ? undefined : newNames.get(other);
      if (renamed !== undefined) this.#usedNames.add(name);
      const target = renamed ?? newNames.get(name);
      if (target !== undefined && !sameNumber(number, old, target, fresh)) renumbered = true;
      const at = exactInteger(number);
      if ((numbers.get(at) ?? null) === null) numbers.set(at, target ?? null);
    }
    const taken = new Set([...newNames.values()].map(exactInteger));
    const kept = [...numbers].every(
      ([number, target]) => target !== null && sameNumber(BigInt(number), old, target, fresh),
    );
    const none = names.size === 0 || newNames.size === 0;
    // As bits: of an enum from before compilers told signed from unsigned, -1 is a large number.
    const bits = (number: number | bigint) =>
      old.bits === fresh.bits ? BigInt.asUintN(old.bits, BigInt(number)) : BigInt(number);
    const own = new Set([...numbers.keys()].map(bits));
    const all = [...taken].every((number) => own.has(bits(number)));
    const halved = [...numbers].map(([at, target]) => [at, target === null ? null : halves(target)] as const);
    const kind = none || (kept && all) ? 'same' : kept ? 'more' : 'other';
    const result = { kind, table: { numbers: new Map(halved), taken, renumbered } } as const;
    this.#tables.set(key, result);
    return result;
  }
}

/** The numbers of an enum's names that fit into its bits; of several with one name the first. */
function numbersOf({ enum: type, bits, signed }: Node): Map<string, bigint> {
  const numbers = new Map<string, bigint>();
  for (const { name, value } of type?.values ?? []) {
    if (name === '' || numbers.has(name)) continue;
    const number = signed ? BigInt.asIntN(bits, value) : BigInt.asUintN(bits, value);
    // Too wide for a bit-field. But -1 from an old compiler without signedness fits, as its low bits.
    const old = type?.kind === 'ENUM' && !type.signed && BigInt.asIntN(bits, value) === BigInt.asIntN(32, value);
    if (number === value || old) numbers.set(name, number);
  }
  return numbers;
}

/** Whether a number of an old enum and one of a new enum are the same: for enums of one width, the same bits. */
function sameNumber(number: bigint, old: Node, other: bigint, fresh: Node): boolean {
  if (old.bits !== fresh.bits) return number === other;
  return BigInt.asUintN(old.bits, number) === BigInt.asUintN(old.bits, other);
}

const renameOption = (old: Node, fresh: Node): string => `--rename ${pathOf(old)}=${pathOf(fresh)}`;

/** Whether a node is an array of single bytes. */
function isBytes({ kind, children, stride }: Node): boolean {
  const [of] = children;
  return (
    kind === 'text' ||
    (kind === 'array' && stride === 1 && of?.kind === 'number' && of.bits === 8 && !of.bool && !of.enum)
  );
}

const numeric = (old: Node, fresh: Node): number => (Math.max(old.bits, fresh.bits) > 64 ? OP.WIDE : OP.NUMBER);

// ---------------------------------------------------------------------------------------------------
// Operations

/** Elements of an array: `count` from index `first` on. */
interface Elements {
  readonly old: Node;
  readonly fresh?: Node;
  readonly first: number;
  readonly count: number;
}

/** Runs `body` for each of these elements. */
function loop(frame: Frame, { old, fresh, first, count }: Elements, body: readonly Op[]): void {
  if (count === 0 || body.length === 0) return;
  const [from, to] = [old.bit / 8 + first * old.stride, fresh === undefined ? 0 : fresh.bit / 8];
  frame.ops.push({ code: [OP.LOOP, from, to, count, old.stride, fresh?.stride ?? 0, first, frame.depth], body });
}

/** The bits from `start` to `end` of a byte, in the order in which positions count them. */
function mask(start: number, end: number, little: boolean): number {
  let bits = 0;
  for (let bit = start; bit < end; bit++) bits |= little ? 1 << bit : 0x80 >> bit;
  return bits;
}

function zeroOp(bit: number, bits: number, site: Site): Op {
  const { littleEndian } = site.node.btf;
  const [start, count] = [bit % 8, Math.ceil(((bit % 8) + bits) / 8)];
  const first = mask(start, Math.min(8, start + bits), littleEndian);
  return {
    code: [OP.ZERO, Math.floor(bit / 8), count, first, mask(0, ((bit + bits - 1) % 8) + 1, littleEndian)],
    site,
  };
}

/** The operations of a frame, whose old and new bytes are so many. */
function finish({ old, fresh, copies, ops }: Frame, oldSize: number, freshSize: number): Op[] {
  if (old === undefined || copies.length === 0) return [...ops];
  const [before, after] = [membersIn(old), fresh === undefined ? [] : membersIn(fresh)];
  // Where both begin and end, for the padding there.
  const sorted = [...copies, { from: 0, to: 0, bits: 0 }];
  if (oldSize === freshSize) sorted.push({ from: oldSize * 8, to: oldSize * 8, bits: 0 });
  sorted.sort((a, b) => a.from - b.from || a.bits - b.bits);
  const merged: { from: number; to: number; bits: number }[] = [];
  for (const { from, to, bits } of sorted) {
    const last = merged.at(-1);
    const [end, there] = last === undefined ? [0, 0] : [last.from + last.bits, last.to + last.bits];
    const near = last !== undefined && from >= end && to - there === from - end;
    // Across padding too: in one piece it is faster.
    if (near && isFree(before, end, from) && isFree(after, there, to)) last.bits = from + bits - last.from;
    else merged.push({ from, to, bits });
  }
  return [...merged.flatMap((copy) => copyOps(copy, old.btf.littleEndian)), ...ops];
}

function copyOps({ from, to, bits }: Copy, little: boolean): Op[] {
  const ops: Op[] = [];
  let [at, there] = [from, to];
  const end = from + bits;
  const part = (until: number) => {
    if (until <= at) return;
    const start = at % 8;
    ops.push({ code: [OP.MASK, Math.floor(at / 8), Math.floor(there / 8), mask(start, start + until - at, little)] });
    there += until - at;
    at = until;
  };
  if (from % 8 > 0) part(Math.min(end, Math.ceil(from / 8) * 8));
  const whole = Math.floor((end - at) / 8);
  if (whole > 0) {
    ops.push({ code: [OP.COPY, at / 8, there / 8, whole] });
    at += whole * 8;
    there += whole * 8;
  }
  part(end);
  return ops;
}

/** Where the members of a frame begin and end, in bits, in ascending order. */
function membersIn(root: Node): { readonly from: number; readonly to: number }[] {
  const all: { from: number; to: number }[] = [];
  const collect = (node: Node) => {
    if (node.kind === 'struct') for (const child of node.children) collect(child);
    else all.push({ from: node.bit, to: node.bit + node.bits });
  };
  collect(root);
  return all.sort((a, b) => a.from - b.from);
}

/** Whether no member is between two bits. */
function isFree(members: readonly { readonly from: number; readonly to: number }[], from: number, to: number): boolean {
  if (from === to) return true;
  let [low, high] = [0, members.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((members[middle] as { to: number }).to > from) high = middle;
    else low = middle + 1;
  }
  return (members[low]?.from ?? Infinity) >= to;
}
