/** Types of a dump, loaded into the kernel for the maps that have them. */
import { Btf } from '../btf/btf.js';
import { SPECIAL, specialFields } from '../btf/special.js';
import type { DumpBtf } from '../dump/model.js';
import { BpfimgError } from '../errors.js';
import { loadBtf } from '../kernel/btf.js';
import { KernelError } from '../kernel/error.js';
import type { Sys } from '../kernel/sys.js';
import type { Span } from '../maptype.js';

/** BTF objects that were loaded for this replay: one for all maps that share it. */
export class Types {
  readonly #loaded = new Map<number, number | BpfimgError>();

  constructor(readonly sys: Sys) {}

  /** A file descriptor of the object, or why the kernel does not take it. */
  async load(btf: DumpBtf): Promise<number | BpfimgError> {
    let loaded = this.#loaded.get(btf.id);
    if (loaded === undefined) {
      try {
        loaded = loadBtf(this.sys, await btf.read());
      } catch (error) {
        if (!(error instanceof KernelError)) throw error;
        loaded = error;
      }
      this.#loaded.set(btf.id, loaded);
    }
    return loaded;
  }

  /** Closes the file descriptors: maps hold what they were made with. */
  close(): void {
    for (const loaded of this.#loaded.values()) if (typeof loaded === 'number') this.sys.close(loaded);
    this.#loaded.clear();
  }
}

/** The fields of a value of type `id` that an update does not set, in a blob that the kernel has taken. */
export function hiddenFields(blob: Buffer, name: string, id: number): Span[] {
  if (id === 0) return [];
  try {
    const fields = specialFields(Btf.parse(blob, { name }), id);
    return fields.filter(({ kind }) => SPECIAL[kind].reads !== 'bytes');
  } catch (error) {
    // Types that only the kernel understands.
    if (error instanceof BpfimgError) return [];
    throw error;
  }
}
