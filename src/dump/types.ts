/**
 * Finds the types of a map's items: given by the user, in a program's object file, or in
 * the dump itself, in this order.
 */
import * as fs from 'node:fs';
import { Btf } from '../btf/btf.js';
import { typeDefinitions, typeName, typeNamed } from '../btf/c.js';
import { type BtfFile, type MapDefinition, readBtfFile } from '../btf/elf.js';
import { extractTypes, type WantedTypes } from '../btf/extract.js';
import { MEANINGS, type Meaning } from '../btf/meaning.js';
import { valueCodec } from '../btf/values.js';
import { BpfimgError, PointerError } from '../errors.js';
import { openFile } from '../io/input.js';
import type { DocumentBtfObject, FormSource } from '../json/decode.js';
import { FORM_MOST, itemShape, type MapForms } from '../json/forms.js';
import { membersNamed, type NamedTypes, namedForms } from '../json/types.js';
import { type KnownTypes, type TypeFacts, typesRefused } from '../maptype.js';
import type { DocumentForms } from './document.js';
import { factsOf } from './facts.js';
import type { Dump, DumpMap } from './model.js';
import { mapName, mapsNamed, wholeName } from './select.js';

export type { NamedTypes } from '../json/types.js';

/** What the user says about types. */
export interface TypeOptions {
  /** An object file, or raw BTF. */
  readonly btf?: string | undefined;
  /** `NAME=KEY:VALUE`: types of one map, by its name or id; KEY or VALUE may be empty. */
  readonly type?: readonly string[] | undefined;
  /** `MEMBER=MEANING`: what a member is, in every map that has one of this name. */
  readonly as?: readonly string[] | undefined;
  /** Whether forms are for people: with addresses and times as text. */
  readonly readable?: boolean | undefined;
}

/** What the user says that a member is. */
interface AsOption {
  readonly text: string;
  readonly member: string;
  readonly is: Meaning;
}

/** Why a map, or all maps that use a BTF object, lack (some of) their types. */
export interface TypeProblem {
  /** As in verify's FINDINGS; undefined if it is no defect of the dump. */
  readonly code?: 'btf-missing' | 'bad-btf' | 'unknown-btf' | 'bad-type' | 'btf-key-size' | 'btf-value-size';
  readonly map?: DumpMap;
  /** The dump's BTF object in question. */
  readonly object?: number;
  readonly message: string;
}

/** The types of a map as C. */
export interface Definitions {
  readonly map: DumpMap;
  /** Names of the types, if any. */
  readonly key: string | undefined;
  readonly value: string | undefined;
  /** Definitions that no earlier map has. */
  readonly texts: readonly string[];
}

/** The BTF of the running kernel. */
const KERNEL = '/sys/kernel/btf/vmlinux';

/** Types given by the user. */
interface TypeOption {
  readonly text: string;
  readonly map: string;
  readonly key: string;
  readonly value: string;
}

/** Finds the types of a dump's maps. */
export class TypeFinder {
  /** Problems found so far. */
  readonly problems: TypeProblem[] = [];
  readonly #dump: Dump;
  readonly #path: string | undefined;
  readonly #file: BtfFile | undefined;
  readonly #fileName: string;
  readonly #byHand: readonly (TypeOption & { readonly maps: readonly DumpMap[] })[];
  readonly #parsed = new Map<number, Btf | undefined>();
  readonly #checkedObjects = new Set<number>();
  readonly #found = new Map<DumpMap, NamedTypes | undefined>();
  /** BTF objects that are not in the dump, by the id they get in a document. */
  readonly #added = new Map<number, DocumentBtfObject>();
  #fileId: number | undefined;
  /** Maps for which the ambiguity of the file has been reported. */
  readonly #unclear = new Set<DumpMap>();
  readonly #as: readonly AsOption[];
  readonly #usedAs = new Set<AsOption>();
  readonly #readable: boolean;
  #kernel: Btf | undefined;

  /** @throws BpfimgError for a file that cannot be read, and for maps that the user named but that do not exist */
  constructor(
    dump: Dump,
    readonly table: KnownTypes,
    { btf, type = [], as = [], readable = false }: TypeOptions = {},
  ) {
    this.#dump = dump;
    this.#as = as.map(parseAsOption);
    this.#readable = readable;
    this.#path = btf;
    this.#fileName = btf?.replace(/^.*\/(?=.)/, '') ?? '';
    this.#file = btf === undefined ? undefined : readBtfFile(readFile(btf), { name: btf });
    this.#file?.btf.checkByteOrder();
    this.#byHand = type.map(parseTypeOption).map((hand) => {
      const maps = mapsNamed(dump.maps, hand.map);
      if (maps.length > 0) return { ...hand, maps };
      throw new BpfimgError('notFound', `--type ${hand.map}: no such map in it`, { subject: dump.name });
    });
  }

  /**
   * The types of a map's keys and values that fit its sizes; undefined if there are none. Notes problems.
   * @throws BpfimgError `notFound` for types that the user named and that do not exist
   */
  async types(map: DumpMap): Promise<NamedTypes | undefined> {
    if (this.#found.has(map)) return this.#found.get(map);
    const named = (await this.#handTypes(map)) ?? this.#fileTypes(map) ?? (await this.#dumpTypes(map));
    const fit = named && this.#checked(map, named);
    const types = fit && { ...fit, as: this.#said(map, fit) };
    this.#found.set(map, types);
    return types;
  }

  /** What the user says of the members of a map's items, by their whole names. */
  #said(map: DumpMap, types: NamedTypes): Map<string, Meaning> {
    const said = new Map<string, Meaning>();
    for (const option of this.#as) {
      const { member, is, text } = option;
      const names = membersNamed(types, member, MOST_NAMED);
      // One of each side may have a name that both sides have.
      const sides = names.map((name) => name.split('.', 1)[0]);
      if (new Set(sides).size < names.length) {
        const some = `${names.join(', ')}${names.length >= MOST_NAMED ? ', …' : ''}`;
        throw new BpfimgError('usage', `in map ${map.mapId} it may be any of ${some}`, { subject: `--as ${text}` });
      }
      for (const name of names) said.set(name, is);
      if (names.length > 0) this.#usedAs.add(option);
    }
    try {
      namedForms({ ...types, as: said });
    } catch (error) {
      if (!(error instanceof PointerError)) throw error;
      throw new BpfimgError('usage', `map ${map.mapId}: ${error.text}`, { subject: '--as' });
    }
    return said;
  }

  /** What the user has said of members that no map has whose types were asked for. */
  get unusedAs(): string[] {
    return this.#as.filter((option) => !this.#usedAs.has(option)).map(({ text }) => text);
  }

  /** The types that the dump has of the inner maps of `map`: those that a program defines. */
  async innerTypes(map: DumpMap): Promise<NamedTypes | undefined> {
    const types = factsOf(map.meta).template?.types;
    const btf = types && (await this.#object(types.btf));
    return types && btf && { btfId: types.btf, btf, key: types.key, value: types.value };
  }

  /** How to show the items of `maps` in a document. */
  async forms(maps: readonly DumpMap[]): Promise<DocumentForms> {
    const found = new Map<DumpMap, MapForms & { readonly facts: TypeFacts }>();
    const used = new Set<number>();
    for (const map of maps) {
      const types = await this.types(map);
      if (types === undefined) continue;
      const { btfId, key, value } = types;
      used.add(btfId);
      found.set(map, { ...namedForms(types, this.#readable), facts: { btf: btfId, key, value } });
    }
    const objects = [...this.#added].filter(([id]) => used.has(id)).map(([, object]) => object);
    return { objects, of: (map) => found.get(map) };
  }

  /** How to show the items of one image; for each map, only types that fit its item sizes. */
  async imageForms(maps: readonly DumpMap[]): Promise<FormSource> {
    const all = await this.forms(maps);
    const used = new Set(maps.map((map) => all.of(map)?.facts.btf));
    const objects: DocumentBtfObject[] = [];
    for (const { message, read } of [...this.#dump.btf.values(), ...all.objects]) {
      if (!used.has(message.btf_id as number)) continue;
      // Read now: the dump may be closed before the image is.
      const blob = await read();
      objects.push({ message, read: async () => blob });
    }
    const types = new Map(maps.flatMap((map) => [[map.mapId, this.#found.get(map)] as const]));
    const readable = this.#readable;
    return {
      objects,
      of(mapId, keySize, valueSize) {
        const named = types.get(mapId);
        if (named === undefined) return undefined;
        const { btf } = named;
        const key = named.key !== 0 && btf.size(named.key) === keySize ? named.key : 0;
        const value = named.value !== 0 && btf.size(named.value) === valueSize ? named.value : 0;
        return key === 0 && value === 0 ? undefined : namedForms({ ...named, key, value }, readable);
      },
    };
  }

  /** The C definitions of the types of `maps`, each once. */
  async definitions(maps: readonly DumpMap[]): Promise<Definitions[]> {
    const seen = new Map<Btf, Set<string>>();
    const all: Definitions[] = [];
    for (const map of maps) {
      const types = await this.types(map);
      if (types === undefined) continue;
      const { btf, key, value } = types;
      const before = seen.get(btf) ?? new Set();
      seen.set(btf, before);
      const ids = [key, value].filter((id) => id !== 0);
      const texts = typeDefinitions(btf, ids).filter((text) => !before.has(text));
      for (const text of texts) before.add(text);
      const [keyName, valueName] = [key, value].map((id) => (id === 0 ? undefined : typeName(btf, id)));
      all.push({ map, key: keyName, value: valueName, texts });
    }
    return all;
  }

  /** Whether the given file has a type for any of `maps`, for a message if it has none. */
  unused(maps: readonly DumpMap[]): string | undefined {
    const file = this.#file;
    if (file === undefined || this.#byHand.length > 0 || maps.length === 0) return undefined;
    if (maps.some((map) => candidates(file, map).length > 0)) return undefined;
    const names = file.maps.map(({ name }) => name);
    const some = names.length === 0 ? 'none' : names.slice(0, 20).join(', ') + (names.length > 20 ? ', …' : '');
    return `${this.#path}: none of these maps; its maps: ${some}`;
  }

  #freeId(): number {
    const taken = (id: number) =>
      this.#dump.btf.has(id) || this.#added.has(id) || this.#dump.maps.some(({ meta }) => meta?.btf_id === id);
    let id = 1;
    while (taken(id)) id++;
    return id;
  }

  /** Keeps a BTF object for the document. */
  #add(name: string, blob: Uint8Array): number {
    const id = this.#freeId();
    this.#added.set(id, { message: { btf_id: id, ...(name === '' ? {} : { name }) }, read: async () => blob });
    return id;
  }

  /**
   * How the file defines the map. If the kernel truncated several names to the same one, type and sizes
   * decide; if they do not suffice, that is a problem.
   */
  #definition(map: DumpMap): MapDefinition | undefined {
    if (this.#file === undefined) return undefined;
    const all = candidates(this.#file, map);
    const [one, ...others] = all.length < 2 ? all : all.filter((definition) => definitionFits(definition, map));
    const same = ({ keyType, valueType }: MapDefinition) => keyType === one?.keyType && valueType === one.valueType;
    if (others.every(same)) return one;
    if (!this.#unclear.has(map)) {
      this.#unclear.add(map);
      const names = [one, ...others].map((definition) => definition?.name).join(', ');
      const message = `${this.#path}: it may be any of ${names} (--type ${map.mapId}=KEY:VALUE tells)`;
      this.problems.push({ map, message });
    }
    return undefined;
  }

  #fileTypes(map: DumpMap): NamedTypes | undefined {
    const definition = this.#definition(map);
    if (this.#file === undefined || definition === undefined) return undefined;
    const { keyType, valueType } = definition;
    if (keyType === 0 && valueType === 0) return undefined;
    const { btf } = this.#file;
    this.#fileId ??= this.#add(this.#fileName, btf.bytes);
    return { btfId: this.#fileId, btf, key: keyType, value: valueType };
  }

  async #dumpTypes(map: DumpMap): Promise<NamedTypes | undefined> {
    const { types } = factsOf(map.meta);
    if (types === undefined) return undefined;
    if (!this.#dump.btf.has(types.btf)) {
      if (types.key !== 0 || types.value !== 0) {
        const message = `types in BTF object ${types.btf}, which ${this.#dump.names.btf} does not have`;
        this.problems.push({ code: 'btf-missing', map, message });
      }
      return undefined;
    }
    const btf = await this.#object(types.btf);
    if (btf !== undefined) this.#kernelTakes(map, btf, types);
    return btf && { btfId: types.btf, btf, key: types.key, value: types.value };
  }

  /** Notes if the kernel would refuse the types that a dump has of a map. */
  #kernelTakes(map: DumpMap, btf: Btf, types: TypeFacts): void {
    const file = map.files[0]?.message;
    if (file === undefined) return;
    const row = this.table.row(file.map_type);
    if (row === undefined) return;
    let kinds: [key: string, value: string];
    try {
      kinds = [btf.kind(btf.resolve(types.key)), btf.kind(btf.resolve(types.value))];
    } catch (error) {
      if (!(error instanceof BpfimgError)) throw error;
      // Invalid types are noted when their sizes are checked.
      return;
    }
    const message = typesRefused(row, file.max_entries, ...kinds);
    if (message !== undefined) this.problems.push({ code: 'bad-type', map, message });
  }

  /** A BTF object of the dump; if it cannot be read, that is noted once. */
  async #object(id: number): Promise<Btf | undefined> {
    if (!this.#parsed.has(id)) {
      let btf: Btf | undefined;
      try {
        const object = this.#dump.btf.get(id);
        if (object !== undefined) {
          const parsed = Btf.parse(await object.read(), { name: `BTF ${id}` });
          parsed.checkByteOrder();
          btf = parsed;
        }
      } catch (error) {
        if (!(error instanceof BpfimgError)) throw error;
        const code = error.kind === 'unsupported' ? 'unknown-btf' : 'bad-btf';
        this.problems.push({ code, object: id, message: error.message });
      }
      this.#parsed.set(id, btf);
    }
    return this.#parsed.get(id);
  }

  /** Checks the BTF objects of the dump that maps use: nothing loads any other. */
  async checkObjects(): Promise<void> {
    const used = new Set(this.#dump.maps.map(({ meta }) => meta?.btf_id));
    for (const id of this.#dump.btf.keys()) if (used.has(id)) await this.#checkObject(id);
  }

  /** Checks all of a BTF object of the dump, once. */
  async #checkObject(id: number): Promise<void> {
    if (this.#checkedObjects.has(id)) return;
    this.#checkedObjects.add(id);
    const btf = await this.#object(id);
    try {
      btf?.check();
    } catch (error) {
      if (!(error instanceof BpfimgError)) throw error;
      this.problems.push({ code: 'bad-btf', object: id, message: error.message });
    }
  }

  /** What is wrong with the types that the dump has of a map, each a clause. */
  async faults(map: DumpMap): Promise<string[]> {
    const { types } = factsOf(map.meta);
    if (types === undefined) return [];
    await this.#checkObject(types.btf);
    await this.types(map);
    const faults = this.problems.filter(({ code, ...of }) => {
      // The kernel may accept types that only it understands.
      if (code === undefined || code === 'unknown-btf' || code === 'btf-missing') return false;
      return of.map === map || of.object === types.btf;
    });
    return faults.map(({ message }) => message);
  }

  /** Drops and notes the types that do not fit their map. */
  #checked(map: DumpMap, types: NamedTypes): NamedTypes | undefined {
    const sizes = sizesOf(map);
    const fits = (what: 'key' | 'value'): number => {
      const id = types[what];
      if (id === 0) return 0;
      let name = `type ${id}`;
      let size: number;
      try {
        name = typeName(types.btf, id);
        size = valueCodec(types.btf, id).size;
      } catch (error) {
        if (!(error instanceof BpfimgError)) throw error;
        this.problems.push({ code: 'bad-type', map, message: `type of the ${what}s: ${error.message}` });
        return 0;
      }
      const expected = sizes[what];
      if (expected !== undefined && expected !== size) {
        const message = `${name} (${types.btf.name}) has ${size} bytes, ${what}_size is ${expected}`;
        this.problems.push({ code: `btf-${what}-size`, map, message });
        return 0;
      }
      if (size > FORM_MOST) {
        this.problems.push({ map, message: `${name} has ${size} bytes, more than ${FORM_MOST}` });
        return 0;
      }
      // There is nothing to show.
      return size === 0 ? 0 : id;
    };
    const [key, value] = [fits('key'), fits('value')];
    return key === 0 && value === 0 ? undefined : { ...types, key, value };
  }

  /** Types given by the user go into an object of their own: they may come from one as large as the kernel's. */
  async #handTypes(map: DumpMap): Promise<NamedTypes | undefined> {
    const hand = this.#byHand.filter(({ maps }) => maps.includes(map)).at(-1);
    if (hand === undefined) return undefined;
    const texts = [hand.key, hand.value];
    const places: string[] = [];
    for await (const btf of this.#candidates()) {
      places.push(btf.name);
      const wanted = texts.map((text) => wantedType(btf, text));
      if (!wanted.every((one) => one !== undefined)) continue;
      // If the file defines the map, it supplies what the user did not give.
      const definition = btf === this.#file?.btf ? this.#definition(map) : undefined;
      const defined = [definition?.keyType ?? 0, definition?.valueType ?? 0];
      const { blob, ids } = extractTypes(
        btf,
        wanted.map((one, i) => (texts[i] === '' ? { id: defined[i] as number, counts: [] } : one)),
      );
      const [key = 0, value = 0] = ids;
      const name = btf === this.#file?.btf ? this.#fileName : '';
      const own = Btf.parse(blob, { name: btf.name });
      return { btfId: this.#add(name, blob), btf: own, key, value };
    }
    const named = texts.filter((text) => text !== '').join(' and ');
    const looked = places.length === 0 ? `any file: there is no ${KERNEL}, name one with --btf` : places.join(', ');
    throw new BpfimgError('notFound', `no ${named} in ${looked}`, { subject: `--type ${hand.text}` });
  }

  /** The places to look for types given by the user, in order. */
  async *#candidates(): AsyncGenerator<Btf> {
    if (this.#file !== undefined) yield this.#file.btf;
    for (const id of this.#dump.btf.keys()) {
      const btf = await this.#object(id);
      if (btf !== undefined) yield btf;
    }
    if (this.#kernel === undefined && fs.existsSync(KERNEL)) {
      this.#kernel = Btf.parse(readFile(KERNEL), { name: KERNEL });
    }
    if (this.#kernel !== undefined) yield this.#kernel;
  }
}

/** What `file` says of the map, by its whole name if that is known. */
function candidates(file: BtfFile, map: DumpMap): readonly MapDefinition[] {
  const whole = file.candidates(wholeName(map) ?? '');
  return whole.length > 0 ? whole : file.candidates(mapName(map) ?? '');
}

/** Whether a definition matches the map's type and sizes, as far as both give them. */
function definitionFits({ type, keySize, valueSize }: MapDefinition, { files }: DumpMap): boolean {
  const message = files[0]?.message;
  const is = (said: number | undefined, number: number) => said === undefined || said === number;
  if (message === undefined) return true;
  return is(type, message.map_type) && is(keySize, message.key_size) && is(valueSize, message.value_size);
}

/** Reads a whole regular file: others might block. */
function readFile(path: string): Buffer {
  const file = openFile(path);
  try {
    const bytes = Buffer.alloc(file.size ?? 0);
    let length = 0;
    for (let got = -1; got !== 0; length += got) got = file.read(bytes.subarray(length), length) as number;
    return bytes.subarray(0, length);
  } finally {
    file.close();
  }
}

/** Members of one name that are counted. */
const MOST_NAMED = 6;

function parseAsOption(text: string): AsOption {
  const [, member = '', is = ''] = /^(.+)=(.*)$/s.exec(text) ?? [];
  const meaning = MEANINGS.find((one) => one === is);
  if (meaning !== undefined) return { text, member, is: meaning };
  throw new BpfimgError('usage', `expected MEMBER=${MEANINGS.join('|')}`, { subject: `--as ${text}` });
}

function parseTypeOption(text: string): TypeOption {
  const match = /^(.+?)=([^:]*):([^:]*)$/s.exec(text);
  const [map = '', key = '', value = ''] = (match ?? []).slice(1).map((part) => part.trim());
  if (match === null || (key === '' && value === '')) {
    throw new BpfimgError('usage', 'expected NAME=KEY:VALUE, as flows=struct flow_key:struct flow', {
      subject: `--type ${text}`,
    });
  }
  return { text, map, key, value };
}

/** The type that the user names, or an array of it: `struct flow`, `char[64]`; undefined if it does not exist. */
function wantedType(btf: Btf, text: string): WantedTypes | undefined {
  if (text === '') return { id: 0, counts: [] };
  const [, name = '', dimensions = ''] = /^(.*?)((?:\s*\[\s*\d{1,9}\s*\])*)$/s.exec(text) ?? [];
  const id = typeNamed(btf, name);
  return id === undefined ? undefined : { id, counts: (dimensions.match(/\d+/g) ?? []).map(Number) };
}

/** Bytes of a map's keys and values, from its attributes or, if no image has these, from its data. */
function sizesOf(map: DumpMap): { key?: number | undefined; value?: number | undefined } {
  const file = map.files[0]?.message;
  if (file !== undefined) return { key: file.key_size, value: file.value_size };
  const data = map.data.at(-1);
  if (data === undefined || data.count === 0) return {};
  const shape = itemShape(data.count, data.keysBytes, data.valuesBytes);
  return { key: shape?.keySize, value: shape?.valueSize };
}
