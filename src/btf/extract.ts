/** Copies some types of a BTF object into a small object of their own. */
import { BTF_HEADER_SIZE, BTF_KINDS, BTF_MAGIC, type Btf, MAX_TYPE_DEPTH } from './btf.js';

/** Most types to copy. The kernel's largest values contain some thousands. */
const MAX_TYPES = 65_536;

/** A type to copy, or an array of it. */
export interface WantedTypes {
  readonly id: number;
  /** The dimensions, outermost first. */
  readonly counts: readonly number[];
}

/**
 * A BTF object with the given types and all types that their values contain. Targets of pointers are only
 * declared, because pointers lead from the kernel's structures to most of the others.
 * @returns the blob, and the ids in it of the `wanted` types, in the same order; 0 stays 0
 */
export function extractTypes(btf: Btf, wanted: readonly WantedTypes[]): { blob: Uint8Array; ids: number[] } {
  const taken = new Map<string, number>();
  const types: number[][] = [];
  let strings = '\0';
  const names = new Map<string, number>([['', 0]]);
  const name = (text: string): number => {
    let at = names.get(text);
    if (at === undefined) {
      at = strings.length;
      names.set(text, at);
      strings += `${text}\0`;
    }
    return at;
  };
  /** @param far reached through a pointer: structures are declared, functions become `void` */
  const take = (id: number, far: boolean, depth: number): number => {
    if (id === 0) return 0;
    const known = taken.get(`${id} ${far}`);
    if (known !== undefined) return known;
    if (depth > MAX_TYPE_DEPTH * 4)
      throw btf.bad(id, `contains itself, or nests types more than ${MAX_TYPE_DEPTH * 4} deep`);
    if (types.length === MAX_TYPES) throw btf.bad(id, `is made of more than ${MAX_TYPES} types`);
    const type = btf.type(id);
    if (type.kind === 'FUNC_PROTO' || type.kind === 'FUNC' || type.kind === 'DECL_TAG') return 0;
    const words: number[] = [];
    // It is added before its parts, because they may refer back to it.
    const fresh = types.push(words);
    taken.set(`${id} ${far}`, fresh);
    const put = (kind: number, vlen: number, flag: boolean, third: number, more: readonly number[] = []) => {
      const info = ((flag ? 0x8000_0000 : 0) | (kind << 24) | vlen) >>> 0;
      words.push(name(type.name), info, third, ...more);
    };
    const kind = BTF_KINDS.indexOf(type.kind);
    switch (type.kind) {
      case 'INT': {
        // The kernel accepts at most one of them.
        const encoding = type.signed ? 1 : type.bool ? 4 : type.char && type.name !== 'char' ? 2 : 0;
        put(kind, 0, false, type.size, [((encoding << 24) | (type.bitOffset << 16) | type.bits) >>> 0]);
        break;
      }
      case 'FLOAT':
        put(kind, 0, false, type.size);
        break;
      case 'FWD':
        put(kind, 0, type.union, 0);
        break;
      case 'ENUM':
        put(
          kind,
          type.values.length,
          type.signed,
          type.size,
          type.values.flatMap(({ name: text, value }) => [name(text), Number(BigInt.asUintN(32, value))]),
        );
        break;
      case 'ENUM64':
        put(
          kind,
          type.values.length,
          type.signed,
          type.size,
          type.values.flatMap(({ name: text, value }) => [
            name(text),
            Number(BigInt.asUintN(32, value)),
            Number(BigInt.asUintN(32, value >> 32n)),
          ]),
        );
        break;
      case 'ARRAY':
        words.push(0, kind << 24, 0, take(type.type, far, depth + 1), take(type.index, false, depth + 1), type.count);
        break;
      case 'STRUCT':
      case 'UNION': {
        if (far && type.name !== '') {
          put(BTF_KINDS.indexOf('FWD'), 0, type.kind === 'UNION', 0);
          break;
        }
        const members = far ? [] : type.members;
        const fields = members.some(({ bits }) => bits > 0);
        const more = members.flatMap((member) => [
          name(member.name),
          take(member.type, false, depth + 1),
          fields ? ((member.bits << 24) | member.bitOffset) >>> 0 : member.bitOffset,
        ]);
        put(kind, members.length, fields, far ? 0 : type.size, more);
        break;
      }
      case 'DATASEC': {
        // Functions of the kernel (.ksyms) have no bytes.
        const vars = type.vars.filter(({ type: of }) => btf.kind(of) !== 'FUNC');
        const more = vars.flatMap(({ type: of, offset, size }) => [take(of, false, depth + 1), offset, size]);
        put(kind, vars.length, false, type.size, more);
        break;
      }
      case 'VAR':
        put(kind, 0, false, take(type.type, far, depth + 1), [type.linkage]);
        break;
      case 'TYPE_TAG':
        put(kind, 0, type.attribute, take(type.type, far, depth + 1));
        break;
      case 'PTR':
        put(kind, 0, false, take(type.type, true, depth + 1));
        break;
      case 'TYPEDEF':
      case 'VOLATILE':
      case 'CONST':
      case 'RESTRICT':
        put(kind, 0, false, take(type.type, far, depth + 1));
        break;
      default:
        throw btf.bad(id, 'has no values');
    }
    return fresh;
  };
  const fresh = wanted.map(({ id, counts }) => {
    let at = take(id, false, 0);
    if (counts.length === 0) return at;
    const index = types.push([name('__ARRAY_SIZE_TYPE__'), BTF_KINDS.indexOf('INT') << 24, 4, 32]);
    for (const count of [...counts].reverse()) {
      at = types.push([0, BTF_KINDS.indexOf('ARRAY') << 24, 0, at, index, count]);
    }
    return at;
  });
  return { blob: blobOf(btf.littleEndian, types.flat(), Buffer.from(strings, 'latin1')), ids: fresh };
}

function blobOf(little: boolean, words: readonly number[], strings: Uint8Array): Uint8Array {
  const blob = new Uint8Array(BTF_HEADER_SIZE + words.length * 4 + strings.length);
  const view = new DataView(blob.buffer);
  view.setUint16(0, BTF_MAGIC, little);
  view.setUint8(2, 1);
  const header = [BTF_HEADER_SIZE, 0, words.length * 4, words.length * 4, strings.length];
  for (const [i, word] of header.entries()) view.setUint32(4 + i * 4, word, little);
  for (const [i, word] of words.entries()) view.setUint32(BTF_HEADER_SIZE + i * 4, word, little);
  blob.set(strings, BTF_HEADER_SIZE + words.length * 4);
  return blob;
}
