/**
 * A type as a tree of its members, each with its place: what two types are compared by.
 *
 * Members of anonymous structures are their parent's, as in C. An array has one child, its element, whose bits
 * count from the element's start: so does everything in it.
 */
import {
  type ArrayType,
  type Btf,
  type DatasecType,
  type EnumType,
  type IntType,
  MAX_TYPE_DEPTH,
  type RefType,
  type StructType,
} from '../btf/btf.js';
import { typeName } from '../btf/c.js';
import { declaredOrder } from '../btf/meaning.js';
import { SPECIAL_FIELDS, type SpecialKind, specialKind } from '../btf/special.js';
import { sectionMembers, unused } from '../btf/values.js';
import { BpfimgError } from '../errors.js';

/** A type of a BTF object. */
export interface TypeRef {
  readonly btf: Btf;
  readonly id: number;
}

/**
 * What a member is: `number` an integer, bool, enum or pointer; `text` an array of char; `kernel` a field that only
 * the kernel sets; `opaque` one of the kernel's types that an update sets like any bytes.
 */
export type NodeKind = 'number' | 'float' | 'text' | 'array' | 'struct' | 'union' | 'kernel' | 'opaque';

/** A member, an array's element, or the whole value. */
export interface Node {
  readonly btf: Btf;
  readonly id: number;
  readonly kind: NodeKind;
  /** Empty for the whole value, for elements, and for anonymous unions. */
  readonly name: string;
  readonly parent: Node | undefined;
  /** Bits from the start of the value, or of the element it is in. */
  readonly bit: number;
  readonly bits: number;
  readonly bitField: boolean;
  /** Members; of an array, its element; of others, none. */
  readonly children: readonly Node[];
  /** The element, or the whole value, from whose start {@link bit} counts. */
  readonly frame: Node;
  /** Some of it is the kernel's. */
  readonly hasKernel: boolean;
  readonly special: SpecialKind | undefined;
  /** Of numbers; an enum may only look it. */
  readonly signed: boolean;
  readonly bool: boolean;
  readonly enum: EnumType | undefined;
  /** It is `__be16`, `__be32` or `__be64`. */
  readonly network: boolean;
  /** Byte order of a number or float; a single whole byte is little-endian. */
  readonly little: boolean;
  /** Of arrays and texts: the number of elements. */
  readonly count: number;
  /** Of arrays and texts: bytes from one element to the next. */
  readonly stride: number;
}

/** Most members that a type may have, those of nested structures included. */
const MAX_NODES = 100_000;
/** Bytes of the longest value. */
const MAX_SIZE = 0x7fff_ffff;

/** Where a node of the tree is. */
interface Place extends Pick<Node, 'bit'>, Partial<Pick<Node, 'name' | 'parent' | 'frame'>> {
  /** Size of a bit-field; 0 for any other. */
  readonly bits?: number;
  readonly depth: number;
}

type Draft = { -readonly [name in keyof Node]: Node[name] };

/**
 * The tree of a type.
 * @throws BpfimgError `badImage` for types that have no values or are invalid
 */
export function layoutOf({ btf, id }: TypeRef): { readonly root: Node; readonly size: number } {
  const size = btf.size(id);
  if (size > MAX_SIZE) {
    throw new BpfimgError('unsupported', `${typeName(btf, id)} has ${size} bytes, more than ${MAX_SIZE}`, {
      subject: btf.name,
    });
  }
  return { root: new Builder(btf).build(id, { bit: 0, depth: 0 }), size };
}

class Builder {
  readonly #btf: Btf;
  /** Read once each: many members may have one type with many parts. */
  readonly #enums = new Map<number, { readonly type: EnumType; readonly signed: boolean }>();
  #nodes = 0;

  constructor(btf: Btf) {
    this.#btf = btf;
  }

  #count(id: number, parts: number): void {
    this.#nodes += parts;
    if (this.#nodes > MAX_NODES) throw this.#btf.bad(id, `has more than ${MAX_NODES} members, nested ones included`);
  }

  build(declared: number, { name = '', parent, frame, bit, bits = 0, depth }: Place): Node {
    const btf = this.#btf;
    this.#count(declared, 1);
    if (depth > MAX_TYPE_DEPTH)
      throw btf.bad(declared, `contains itself, or nests structures more than ${MAX_TYPE_DEPTH} deep`);
    let id = declared;
    if (btf.kind(id) === 'VAR') id = (btf.type(id) as RefType).type;
    const target = btf.resolve(id);
    const size = btf.size(id);
    const node = {
      btf,
      id,
      kind: 'opaque',
      name,
      parent,
      bit,
      bits: bits || size * 8,
      bitField: bits > 0,
      children: [],
      hasKernel: false,
      special: undefined,
      signed: false,
      bool: false,
      enum: undefined,
      network: false,
      little: btf.littleEndian,
      count: 0,
      stride: 0,
    } as unknown as Draft;
    node.frame = frame ?? node;
    const special = specialKind(btf, target);
    if (special !== undefined) {
      const kernel = SPECIAL_FIELDS[special].reads !== 'bytes';
      return Object.assign(node, { kind: kernel ? 'kernel' : 'opaque', special, hasKernel: kernel });
    }
    switch (btf.kind(target)) {
      case 'INT':
        this.#int(node, btf.type(target) as IntType);
        break;
      case 'ENUM':
      case 'ENUM64': {
        const { type, signed } = this.#enum(target);
        Object.assign(node, { kind: 'number', signed, enum: type });
        break;
      }
      case 'PTR':
        node.kind = 'number';
        break;
      case 'FLOAT':
        btf.type(target);
        node.kind = 'float';
        break;
      case 'ARRAY':
        this.#array(node, btf.type(target) as ArrayType, depth);
        break;
      case 'STRUCT':
      case 'UNION':
      case 'DATASEC':
        node.kind = btf.kind(target) === 'UNION' ? 'union' : 'struct';
        node.children = this.#members(node, target, depth);
        break;
      default:
        throw btf.bad(id, 'has no values');
    }
    if (node.bits === 8 && node.bit % 8 === 0 && node.kind === 'number') node.little = true;
    node.hasKernel ||= node.children.some(({ hasKernel }) => hasKernel);
    return node;
  }

  #int(node: Draft, type: IntType): void {
    const { signed, bool, size } = type;
    Object.assign(node, { kind: 'number', signed, bool });
    if (!node.bitField && type.bits < size * 8) {
      // Counted from the lowest bit, but on big-endian machines positions count from the highest.
      node.bit += this.#btf.littleEndian ? type.bitOffset : size * 8 - type.bitOffset - type.bits;
      node.bits = type.bits;
    }
    if (!node.bitField && declaredOrder(this.#btf, node.id) === 'big')
      Object.assign(node, { network: true, little: false });
  }

  #enum(id: number): { readonly type: EnumType; readonly signed: boolean } {
    let known = this.#enums.get(id);
    if (known === undefined) {
      const type = this.#btf.type(id) as EnumType;
      this.#count(id, type.values.length);
      known = { type, signed: type.signed || looksSigned(type) };
      this.#enums.set(id, known);
    }
    return known;
  }

  #array(node: Draft, { type: of, count }: ArrayType, depth: number): void {
    const btf = this.#btf;
    const element = btf.resolve(of);
    Object.assign(node, { count, stride: btf.size(of) });
    if (btf.kind(element) === 'INT' && (btf.type(element) as IntType).char) node.kind = 'text';
    else {
      node.kind = 'array';
      if (node.bits > 0) node.children = [this.build(of, { parent: node, bit: 0, depth: depth + 1 })];
    }
  }

  #checkApart(id: number, members: readonly Node[]): void {
    let end = 0;
    for (const { bit, bits, name } of [...members].sort((a, b) => a.bit - b.bit)) {
      if (bit < end) throw this.#btf.bad(id, `member ${name} overlaps the one before it`);
      end = bit + bits;
    }
  }

  /** The members of structure `id`; those without bytes, and padding that has a width, carry no information. */
  #members(node: Draft, id: number, depth: number): Node[] {
    const btf = this.#btf;
    const nodes: Node[] = [];
    const names = new Map<string, number>();
    const collect = (id: number, from: number, depth: number) => {
      if (depth > MAX_TYPE_DEPTH)
        throw btf.bad(id, `contains itself, or nests structures more than ${MAX_TYPE_DEPTH} deep`);
      const type = btf.type(id);
      const members = type.kind === 'DATASEC' ? sectionMembers(btf, type as DatasecType) : (type as StructType).members;
      this.#count(id, members.length);
      for (const member of members) {
        const bits = type.kind === 'DATASEC' ? btf.size(member.type) * 8 : btf.memberBits(type as StructType, member);
        const bit = from + member.bitOffset;
        if (member.name === '') {
          const target = btf.resolve(member.type);
          const kind = btf.kind(target);
          if (member.bits > 0 || bits === 0) continue;
          if (kind === 'STRUCT' && node.kind !== 'union') collect(target, bit, depth + 1);
          else if (kind === 'STRUCT' || kind === 'UNION')
            nodes.push(this.build(member.type, { parent: node, frame: node.frame, bit, depth: depth + 1 }));
        } else {
          const place = { parent: node, frame: node.frame, bit, bits: member.bits, depth: depth + 1 };
          const name = unused(member.name, names);
          if (bits > 0) nodes.push(this.build(member.type, { ...place, name }));
        }
      }
    };
    collect(id, node.bit, depth);
    if (node.kind === 'struct') this.#checkApart(id, nodes);
    return nodes;
  }
}

/** Compilers record signedness only since 2022. Before, a number like that of an errno tells. */
function looksSigned({ kind, values }: EnumType): boolean {
  return kind === 'ENUM' && values.some(({ value }) => value > 0xffff_f000n);
}

/** The structure among whose members a node has its name: what is anonymous in between does not count. */
export function scope(node: Node): Node | undefined {
  let up = node.parent;
  while (up !== undefined && up.name === '' && up.parent !== undefined && up.parent.kind !== 'array') up = up.parent;
  return up;
}

/** The path that leads to a node, as in C but without indexes: `flows[].bytes`; empty for the whole value. */
export function pathOf(node: Node): string {
  if (node.parent === undefined) return '';
  if (node.parent.kind === 'array') return `${pathOf(node.parent)}[]`;
  const up = scope(node);
  const before = up === undefined ? '' : pathOf(up);
  const own = node.name || `(${namesIn(node).slice(0, 3).join('|')}${namesIn(node).length > 3 ? '|…' : ''})`;
  return before === '' ? own : `${before}.${own}`;
}

/** The names by which C knows what is in an anonymous union. */
export function namesIn({ children }: Pick<Node, 'children'>): string[] {
  return children.flatMap((child) => (child.name === '' ? namesIn(child) : [child.name]));
}

/** The type of a node as C spells it. */
export function typeText(node: Node): string {
  const name = typeName(node.btf, node.id);
  return node.bitField ? `${name}:${node.bits}` : name;
}

/** The nodes that a path names; a single name also means a member further in. */
export function nodesAt(root: Node, path: string): Node[] {
  const exact = at(root, path.trim());
  if (exact !== undefined) return [exact];
  const found: Node[] = [];
  const search = (node: Node) => {
    for (const child of node.children) {
      if (child.name === path) found.push(child);
      search(child);
    }
  };
  search(root);
  return found;
}

/** The node of an exact path from `node`. Names may contain dots: static variables of functions do. */
function at(node: Node, path: string): Node | undefined {
  if (path === '') return node;
  if (node.kind === 'array')
    return node.children[0] && at(node.children[0], path.replace(/^\[\]/, '').replace(/^\.(?!\.)/, ''));
  const bare = path.replace(/^\./, '');
  for (const child of node.children) {
    if (child.name === '') {
      const found = at(child, bare);
      if (found !== undefined) return found;
    } else if (bare === child.name) return child;
    else if (bare.startsWith(child.name) && /^[.[]/.test(bare.slice(child.name.length))) {
      const found = at(child, bare.slice(child.name.length));
      if (found !== undefined) return found;
    }
  }
  return undefined;
}
