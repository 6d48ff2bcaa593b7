/** Types as C spells them. */
import {
  type ArrayType,
  type Btf,
  type BtfKind,
  type BtfType,
  type FwdType,
  MAX_TYPE_DEPTH,
  type StructType,
} from './btf.js';

/** Characters of the longest text. Types that share types could expand to more text than fits in memory. */
const MAX_TEXT = 1 << 20;

/** Adds the parentheses that tell a pointer to a function from a function that returns a pointer. */
const grouped = (declarator: string): string => (/^[*^]/.test(declarator) ? `(${declarator})` : declarator);
const join = (...parts: readonly string[]): string => parts.filter((part) => part !== '').join(' ');

/** Kinds that are part of a declarator; any other kind ends it. */
const DECLARATORS: ReadonlySet<BtfKind> = new Set<BtfKind>([
  'CONST',
  'VOLATILE',
  'RESTRICT',
  'TYPE_TAG',
  'PTR',
  'ARRAY',
  'FUNC_PROTO',
]);
/** Most pointers, dimensions and qualifiers in one declaration. */
const MAX_DECLARATOR = 256;

class Printer {
  #printed = 0;

  constructor(readonly btf: Btf) {}

  /** Counts text that becomes part of a longer one. */
  #count(text: string, id: number): string {
    this.#printed += text.length;
    if (this.#printed > MAX_TEXT) throw this.btf.bad(id, 'is too long to print');
    return text;
  }

  /**
   * A declaration of `name` as type `id`; with an empty name, the type as written in a cast.
   * @param bodies how anonymous structures are written: in full (at this indent), or as `struct {…}`
   */
  declare(id: number, name: string, bodies: number | undefined, depth = 0): string {
    if (depth > MAX_TYPE_DEPTH) throw this.btf.bad(id, 'refers to itself');
    let declarator = name;
    let qualifiers: string[] = [];
    let tags: string[] = [];
    let at = id;
    for (let steps = 0; steps < MAX_DECLARATOR; steps++) {
      const kind = this.btf.kind(at);
      if (!DECLARATORS.has(kind)) {
        const base = this.#base(at, kind, bodies, depth);
        const space = declarator.startsWith('[') && name === '' ? '' : ' ';
        const left = join(...qualifiers, base, ...tags);
        return this.#count(declarator === '' ? left : left + space + declarator, id);
      }
      const type = this.btf.type(at);
      switch (type.kind) {
        case 'CONST':
        case 'VOLATILE':
        case 'RESTRICT':
          // For arrays, compilers record qualifiers twice: on the array and on its elements.
          qualifiers = [...new Set([...qualifiers, type.kind.toLowerCase()])];
          at = type.type;
          continue;
        case 'TYPE_TAG':
          tags.unshift(tagText(type.name, type.attribute));
          at = type.type;
          continue;
        case 'PTR': {
          const words = [...qualifiers, ...tags].join(' ');
          declarator = words === '' ? `*${declarator}` : join(`*${words}`, declarator);
          [qualifiers, tags] = [[], []];
          at = type.type;
          break;
        }
        case 'ARRAY':
          declarator = `${grouped(declarator)}[${type.count || ''}]`;
          at = type.type;
          break;
        case 'FUNC_PROTO': {
          declarator = `${grouped(declarator)}(${this.#parameters(type, depth)})`;
          [qualifiers, tags] = [[], []];
          at = type.type;
          break;
        }
        default:
          throw this.btf.bad(at, 'cannot be part of a declaration');
      }
    }
    throw this.btf.bad(id, 'refers to itself');
  }

  #parameters(type: BtfType & { kind: 'FUNC_PROTO' }, depth: number): string {
    if (type.params.length === 0) return 'void';
    const params = type.params.map(({ type: id, name }) =>
      id === 0 && name === '' ? '...' : this.declare(id, name, undefined, depth + 1),
    );
    return this.#count(params.join(', '), type.id);
  }

  /** The left part of a declaration. */
  #base(id: number, kind: BtfKind, bodies: number | undefined, depth: number): string {
    const name = this.btf.nameOf(id);
    switch (kind) {
      case 'VOID':
        return 'void';
      case 'STRUCT':
      case 'UNION':
      case 'ENUM':
      case 'ENUM64': {
        const word = kind === 'ENUM64' ? 'enum' : kind.toLowerCase();
        if (name !== '') return `${word} ${name}`;
        return `${word} ${bodies === undefined ? '{…}' : this.body(this.btf.type(id), bodies, depth + 1)}`;
      }
      case 'FWD':
        return `${(this.btf.type(id) as FwdType).union ? 'union' : 'struct'} ${name}`;
      default:
        return name;
    }
  }

  /** The body of a definition, with its braces. */
  body(type: BtfType, indent: number, depth: number): string {
    const tabs = '\t'.repeat(indent + 1);
    let lines: readonly string[] = [];
    if (type.kind === 'STRUCT' || type.kind === 'UNION') {
      lines = type.members.map(({ type: id, name, bits }) => {
        const width = bits === 0 ? '' : `: ${bits}`;
        return `${this.declare(id, name, indent + 1, depth)}${width};`;
      });
      if (this.#packed(type)) {
        return this.#count(`${block(tabs, lines, indent)} __attribute__((packed))`, type.id);
      }
    } else if (type.kind === 'ENUM' || type.kind === 'ENUM64') {
      lines = type.values.map(({ name, value }) => `${name} = ${literal(value, type.kind === 'ENUM64')},`);
    }
    return this.#count(block(tabs, lines, indent), type.id);
  }

  /** Whether the layout of the members requires `packed`. */
  #packed(type: StructType): boolean {
    const aligns = type.members.map((member) => ({ member, align: this.#align(member.type, 0) }));
    const whole = aligns.reduce((most, { align }) => Math.max(most, align), 1);
    return (
      type.size % whole !== 0 ||
      aligns.some(({ member, align }) => member.bits === 0 && (member.bitOffset / 8) % align !== 0)
    );
  }

  /** Default alignment of type `id`, in bytes. */
  #align(id: number, depth: number): number {
    if (++this.#aligned > MAX_TEXT) throw this.btf.bad(id, 'is too long to print');
    const target = this.btf.resolve(id);
    const known = this.#alignOf.get(target);
    if (known !== undefined) return known;
    const kind = this.btf.kind(target);
    switch (kind) {
      case 'PTR':
        return this.btf.pointerSize;
      case 'INT':
      case 'FLOAT':
      case 'ENUM':
      case 'ENUM64':
        return Math.min(16, 2 ** Math.ceil(Math.log2(this.btf.size(target))));
      case 'ARRAY':
        return depth > MAX_TYPE_DEPTH ? 1 : this.#align((this.btf.type(target) as ArrayType).type, depth + 1);
      case 'STRUCT':
      case 'UNION': {
        if (depth > MAX_TYPE_DEPTH) return 1;
        const type = this.btf.type(target) as StructType;
        let most = 1;
        this.#alignOf.set(type.id, most);
        let packed = false;
        for (const { type: id, bits, bitOffset } of type.members) {
          const align = this.#align(id, depth + 1);
          packed ||= bits === 0 && bitOffset % (align * 8) !== 0;
          most = Math.max(most, align);
        }
        if (packed || type.size % most !== 0) most = 1;
        this.#alignOf.set(type.id, most);
        return most;
      }
      default:
        return 1;
    }
  }
  #aligned = 0;
  readonly #alignOf = new Map<number, number>();

  /** The definition of type `id`, or its declaration when it has no definition. */
  define(id: number): string {
    const type = this.btf.type(id);
    switch (type.kind) {
      case 'STRUCT':
      case 'UNION':
      case 'ENUM':
      case 'ENUM64': {
        const word = type.kind === 'ENUM64' ? 'enum' : type.kind.toLowerCase();
        return `${join(word, type.name)} ${this.body(type, 0, 0)};`;
      }
      case 'TYPEDEF':
        return `typedef ${this.declare(type.type, type.name, 0)};`;
      case 'FUNC':
      case 'VAR': {
        const word = ['static', '', 'extern'][type.linkage] ?? '';
        return `${join(word, this.declare(type.type, type.name, 0))};`;
      }
      case 'DATASEC':
        return [`/* ${type.name}: ${type.size} bytes */`, ...type.vars.map((one) => this.define(one.type))].join('\n');
      default:
        return `${this.declare(id, '', 0)};`;
    }
  }
}

const block = (tabs: string, lines: readonly string[], indent: number): string =>
  lines.length === 0 ? '{}' : `{\n${lines.map((line) => `${tabs}${line}\n`).join('')}${'\t'.repeat(indent)}}`;

/** The kernel's own spelling of a tag: `__kptr`, `__user`. */
const tagText = (tag: string, attribute: boolean): string =>
  attribute ? `__attribute__((${tag}))` : /^\w+$/.test(tag) ? `__${tag}` : `__attribute__((btf_type_tag("${tag}")))`;

const literal = (value: bigint, wide: boolean): string =>
  wide ? `${value}${value < 0n ? 'LL' : 'ULL'}` : String(value);

/**
 * A type's name as written in a cast: `struct flow`, `__u32`, `char[16]`, `void *`; `struct {…}` for an
 * anonymous one.
 * @param variable if given, the result is a declaration of this name: `char text[16]`
 * @throws BpfimgError `badImage` for types that make no sense
 */
export function typeName(btf: Btf, id: number, variable = ''): string {
  return new Printer(btf).declare(id, variable, undefined);
}

/**
 * The definition of one type, over several lines. Anonymous structures are written out where they are used;
 * others are only named.
 * @throws BpfimgError `badImage` for types that make no sense
 */
export function typeDefinition(btf: Btf, id: number): string {
  return new Printer(btf).define(id);
}

/**
 * The definitions of types and of all types that their values contain, each once, in the order C needs them.
 * Typedefs of plain numbers (`__u32`) are left out: readers of BPF code know them.
 * @throws BpfimgError `badImage` for types that make no sense
 */
export function typeDefinitions(btf: Btf, ids: readonly number[]): string[] {
  const seen = new Set<number>();
  const texts: string[] = [];
  const printer = new Printer(btf);
  const visit = (id: number, depth: number): void => {
    if (seen.has(id)) return;
    if (depth > MAX_TYPE_DEPTH * 2) throw btf.bad(id, 'contains itself, or too many other types');
    seen.add(id);
    const type = btf.type(id);
    switch (type.kind) {
      case 'STRUCT':
      case 'UNION':
        for (const member of type.members) visit(member.type, depth + 1);
        if (type.name !== '') texts.push(printer.define(id));
        break;
      case 'ENUM':
      case 'ENUM64':
        if (type.name !== '') texts.push(printer.define(id));
        break;
      case 'DATASEC':
        for (const variable of type.vars) visit(variable.type, depth + 1);
        texts.push(printer.define(id));
        break;
      case 'TYPEDEF': {
        visit(type.type, depth + 1);
        const kind = btf.kind(btf.resolve(id));
        if (kind !== 'INT' && kind !== 'FLOAT') texts.push(printer.define(id));
        break;
      }
      case 'ARRAY':
      case 'CONST':
      case 'VOLATILE':
      case 'RESTRICT':
      case 'TYPE_TAG':
      case 'VAR':
        visit(type.type, depth + 1);
        break;
      default:
        break;
    }
  };
  for (const id of ids) visit(id, 0);
  return texts;
}

/** Keywords before a name, by kind. */
const WORDS: Readonly<Record<string, readonly string[]>> = {
  struct: ['STRUCT'],
  union: ['UNION'],
  enum: ['ENUM', 'ENUM64'],
  '': ['TYPEDEF', 'INT', 'FLOAT', 'DATASEC', 'STRUCT', 'UNION', 'ENUM', 'ENUM64'],
};

/**
 * The type that a user names: `struct flow`, `enum state`, `__u32`, `.bss`. A bare name can also mean a structure,
 * if nothing else has that name.
 */
export function typeNamed(btf: Btf, text: string): number | undefined {
  const [, word = '', name = ''] = /^\s*(?:(struct|union|enum)\s+)?(.*?)\s*$/s.exec(text) ?? [];
  const ids = btf.named(name);
  for (const kind of WORDS[word] ?? []) {
    const id = ids.find((one) => btf.kind(one) === kind);
    if (id !== undefined) return id;
  }
  return undefined;
}
