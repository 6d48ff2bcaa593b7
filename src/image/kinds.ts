/**
 * The kinds of image: magic numbers, names, and the message of an entry. They are listed in images/kinds.json.
 *
 * Numbers and names are CRIU's (its magic.h). BPFMAP_META and BPFMAP_BTF are ours and unknown to CRIU: on disk
 * their magics read `bpfm` and `bpfb`. The last kinds are the file lists of CRIU before 3.0, which had no files.img.
 */
import type { JsonObject } from '../value.js';
import { type KindMessages, kinds, otherKinds } from './schema.gen.js';

/** First word of most images since format v1.1; inventory.img and v1.0 images start with the kind's own. */
export const HEAD_COMMON = 0x54564319;
/** First word of images that CRIU writes about itself (statistics, caches). */
export const HEAD_SERVICE = 0x55105940;

/** What comes before the kind's magic: nothing (v1.0, inventory), or one of the two head words. */
export type Head = 'none' | 'common' | 'service';

/** A kind as images/kinds.json lists it. */
export interface KindRow {
  readonly magic: number;
  /** Message of an entry, in images/*.proto. */
  readonly message: string;
  /** The head CRIU writes for it; `common` by default. */
  readonly head?: Head;
  /** Members whose sum is the number of bytes that follow an entry's message; absent if none follow. */
  readonly extra?: readonly string[];
}

/** One kind of image that bpfimg decodes; its entries are `M`. */
export interface ImageKind<M extends JsonObject = JsonObject> {
  /** Name in JSON: the `magic` member. */
  readonly name: string;
  readonly magic: number;
  /** Message of an entry, in images/*.proto. */
  readonly message: string;
  /** The head CRIU writes for it. */
  readonly head: Head;
  /** Number of bytes that follow an entry's message, from its members; absent if none follow. */
  extra?(entry: M): number;
}

function kind<N extends keyof KindMessages>(name: N): ImageKind<KindMessages[N]> {
  const { magic, message, head = 'common', extra } = kinds[name];
  // The sum of two u32 is exact in a double.
  const sum = (entry: JsonObject) => (extra ?? []).reduce((bytes, member) => bytes + Number(entry[member]), 0);
  return { name, magic, message, head, ...(extra ? { extra: sum } : {}) };
}

type Kinds = { readonly [N in keyof KindMessages]: ImageKind<KindMessages[N]> };
const all = Object.fromEntries(
  (Object.keys(kinds) as (keyof KindMessages)[]).map((name) => [name, kind(name)]),
) as Kinds;

/** Kinds that the code refers to. Keys and values are in BPFMAP_DATA; BPFMAP_META and BPFMAP_BTF are ours. */
export const { BPFMAP_DATA, BPFMAP_FILE, FILES, FDINFO, IDS, PSTREE, INVENTORY, BPFMAP_META, BPFMAP_BTF } = all;

/** Every kind that bpfimg decodes and encodes. */
export const IMAGE_KINDS: readonly ImageKind[] = Object.values(all);

const byMagic = new Map(IMAGE_KINDS.map((one) => [one.magic, one]));
const byName = new Map(IMAGE_KINDS.map((one) => [one.name, one]));

/** The kind whose images have this magic number; undefined when bpfimg does not decode it. */
export function kindOfMagic(magic: number): ImageKind | undefined {
  return byMagic.get(magic);
}

/** The kind of this name (`magic` in JSON); undefined when bpfimg does not decode it. */
export function kindOfName(name: string): ImageKind | undefined {
  return byName.get(name);
}

/** Whether crit (4.1.1) decodes images of a kind that bpfimg does not. */
export function critDecodes(name: string): boolean {
  return otherKinds().find((one) => one.name === name)?.crit !== false;
}

/** Name of a kind that CRIU has but bpfimg does not decode; undefined for an unknown magic. */
export function foreignKind(magic: number): string | undefined {
  return otherKinds().find((one) => one.magic === magic)?.name;
}

/** Magic of a kind that bpfimg does not decode, by its name. */
export function magicOf(name: string): number | undefined {
  return otherKinds().find((one) => one.name === name)?.magic;
}

/** Sorted names of all kinds, for messages and schemas. */
export function kindNames(): string[] {
  return [...byName.keys()].sort();
}
