/** Builds BTF from values, type by type and without the code under test. */

export interface BtfMember {
  readonly name: string;
  readonly type: number;
  /** Bits. */
  readonly at: number;
  /** Of a bit-field; makes the structure one with the kind flag set. */
  readonly bits?: number;
}

/** A blob in the making; each method adds a type and returns its id. */
export class BtfWriter {
  readonly #words: number[] = [];
  #strings = '\0';
  readonly #places = new Map<string, number>();
  /** Ids go on from here: for split BTF, types of the base. */
  count: number;
  readonly #stringsFrom: number;

  constructor(
    readonly little = true,
    base?: BtfWriter,
  ) {
    this.count = base?.count ?? 0;
    this.#stringsFrom = base?.stringsEnd ?? 0;
    if (base !== undefined) this.#strings = '';
  }

  get stringsEnd(): number {
    return this.#stringsFrom + this.#strings.length;
  }

  /** Offset of a name, one character a byte. */
  string(name: string): number {
    if (name === '') return 0;
    let at = this.#places.get(name);
    if (at === undefined) {
      at = this.stringsEnd;
      this.#places.set(name, at);
      this.#strings += `${name}\0`;
    }
    return at;
  }

  /** Any type at all, by number of its kind. */
  add(
    kind: number,
    name: string | number,
    third: number,
    vlen: number,
    flag: boolean,
    words: readonly number[],
  ): number {
    const info = ((flag ? 0x8000_0000 : 0) | (kind << 24) | vlen) >>> 0;
    this.#words.push(typeof name === 'string' ? this.string(name) : name, info, third);
    for (const word of words) this.#words.push(word);
    return ++this.count;
  }

  int(name: string, size: number, more: { encoding?: number; offset?: number; bits?: number } = {}): number {
    const { encoding = 0, offset = 0, bits = size * 8 } = more;
    return this.add(1, name, size, 0, false, [((encoding << 24) | (offset << 16) | bits) >>> 0]);
  }
  ptr = (type: number) => this.add(2, '', type, 0, false, []);
  array = (type: number, count: number, index = type) => this.add(3, '', 0, 0, false, [type, index, count]);
  struct = (name: string, size: number, members: readonly BtfMember[], kind = 4): number => {
    const flag = members.some(({ bits }) => bits !== undefined);
    const words = members.flatMap(({ name, type, at, bits = 0 }) => [
      this.string(name),
      type,
      flag ? ((bits << 24) | at) >>> 0 : at,
    ]);
    return this.add(kind, name, size, members.length, flag, words);
  };
  union = (name: string, size: number, members: readonly BtfMember[]) => this.struct(name, size, members, 5);
  enum = (name: string, size: number, values: Readonly<Record<string, number>>, signed = false) =>
    this.add(
      6,
      name,
      size,
      Object.keys(values).length,
      signed,
      Object.entries(values).flatMap(([name, value]) => [this.string(name), value >>> 0]),
    );
  fwd = (name: string, union = false) => this.add(7, name, 0, 0, union, []);
  typedef = (name: string, type: number) => this.add(8, name, type, 0, false, []);
  volatile = (type: number) => this.add(9, '', type, 0, false, []);
  const = (type: number) => this.add(10, '', type, 0, false, []);
  restrict = (type: number) => this.add(11, '', type, 0, false, []);
  func = (name: string, proto: number, linkage = 1) => this.add(12, name, proto, linkage, false, []);
  proto = (returns: number, params: readonly (readonly [name: string, type: number])[]) =>
    this.add(
      13,
      '',
      returns,
      params.length,
      false,
      params.flatMap(([name, type]) => [this.string(name), type]),
    );
  var = (name: string, type: number, linkage = 1) => this.add(14, name, type, 0, false, [linkage]);
  datasec = (name: string, size: number, vars: readonly (readonly [type: number, offset: number, size: number])[]) =>
    this.add(15, name, size, vars.length, false, vars.flat());
  float = (name: string, size: number) => this.add(16, name, size, 0, false, []);
  declTag = (tag: string, type: number, component = -1) => this.add(17, tag, type, 0, false, [component >>> 0]);
  typeTag = (tag: string, type: number, attribute = false) => this.add(18, tag, type, 0, attribute, []);
  enum64 = (name: string, size: number, values: Readonly<Record<string, bigint>>, signed = false) =>
    this.add(
      19,
      name,
      size,
      Object.keys(values).length,
      signed,
      Object.entries(values).flatMap(([name, value]) => {
        const bits = BigInt.asUintN(64, value);
        return [this.string(name), Number(bits & 0xffff_ffffn), Number(bits >> 32n)];
      }),
    );

  /** The blob. `tail` zero bytes make the header longer, as a newer one may be. */
  bytes(tail = 0): Buffer {
    const strings = Buffer.from(this.#strings, 'latin1');
    const types = Buffer.alloc(this.#words.length * 4);
    const put32 = (to: Buffer, value: number, at: number) =>
      this.little ? to.writeUInt32LE(value, at) : to.writeUInt32BE(value, at);
    for (const [i, word] of this.#words.entries()) put32(types, word, i * 4);
    const header = Buffer.alloc(24 + tail);
    if (this.little) header.writeUInt16LE(0xeb9f);
    else header.writeUInt16BE(0xeb9f);
    header[2] = 1;
    for (const [i, word] of [header.length, 0, types.length, types.length, strings.length].entries()) {
      put32(header, word, 4 + i * 4);
    }
    return Buffer.concat([header, types, strings]);
  }
}
