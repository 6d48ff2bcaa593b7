/** Loads the types of a dump into the kernel for the maps that have them. */
import { Btf } from '../btf/btf.js';
import { hasSpinLock, SPECIAL_FIELDS, specialFields } from '../btf/special.js';
import type { DumpBtf } from '../dump/model.js';
import { BpfimgError } from '../errors.js';
import { loadBtf, readBtf } from '../kernel/btf.js';
import { KernelError } from '../kernel/error.js';
import type { BpfMap } from '../kernel/map.js';
import type { Sys } from '../kernel/sys.js';
import type { Span } from '../maptype.js';

/** BTF objects that were loaded for this replay, each shared by its maps. */
export class ReplayTypes {
  readonly #loaded = new Map<DumpBtf, number | BpfimgError>();

  constructor(readonly sys: Sys) {}

  /** A file descriptor of the object, or why the kernel refuses it. */
  async load(btf: DumpBtf): Promise<number | BpfimgError> {
    let loaded = this.#loaded.get(btf);
    if (loaded === undefined) {
      try {
        loaded = loadBtf(this.sys, await btf.read());
      } catch (error) {
        if (!(error instanceof KernelError)) throw error;
        loaded = error;
      }
      this.#loaded.set(btf, loaded);
    }
    return loaded;
  }

  /** Closes the file descriptors: maps keep what they were made with. */
  close(): void {
    for (const loaded of this.#loaded.values()) if (typeof loaded === 'number') this.sys.close(loaded);
    this.#loaded.clear();
  }
}

/** The fields in values of one type that only the kernel writes. */
export interface KernelFields {
  /** Bytes that an update does not set. */
  readonly hidden: readonly Span[];
  /** Values have a lock. */
  readonly locked: boolean;
}

/** For values without types: every byte is the program's own. */
export const NO_FIELDS: KernelFields = { hidden: [], locked: false };

/** The kernel's own fields in values of type `id` of a blob that the kernel accepted. */
export function kernelFields(blob: Buffer, name: string, id: number): KernelFields {
  if (id === 0) return NO_FIELDS;
  try {
    const btf = Btf.parse(blob, { name });
    const hidden = specialFields(btf, id).filter(({ kind }) => SPECIAL_FIELDS[kind].reads !== 'bytes');
    return { hidden, locked: hasSpinLock(btf, id) };
  } catch (error) {
    // Types that only the kernel understands.
    if (error instanceof BpfimgError) return NO_FIELDS;
    throw error;
  }
}

/** The type of a live map's values. */
export interface ValueBlob {
  readonly blob: Buffer;
  readonly name: string;
  readonly id: number;
}

/** The type of the map's values; undefined if it has none, or if the kernel does not let us see it. */
export function valueType(sys: Sys, map: BpfMap): ValueBlob | undefined {
  const { btfId, btfValueType } = map.info;
  if (btfId === 0 || btfValueType === 0) return undefined;
  try {
    return { blob: readBtf(sys, btfId).blob, name: `BTF ${btfId}`, id: btfValueType };
  } catch (error) {
    if (error instanceof KernelError) return undefined;
    throw error;
  }
}

/** The kernel's own fields in values of this type; none if it is not known. */
export function fieldsOf(value: ValueBlob | undefined): KernelFields {
  return value === undefined ? NO_FIELDS : kernelFields(value.blob, value.name, value.id);
}
