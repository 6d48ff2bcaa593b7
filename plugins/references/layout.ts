import type { MapType } from '../../src/maptype.js';

/** Offsets of the numbers in a type's values, by what they refer to. Values of 4 bytes end before the second. */
export interface ReferenceLayout {
  /** Read as an id, written as a file descriptor. */
  readonly program?: number;
  readonly ifindex?: number;
  readonly cookie?: number;
  /** Keys are CPUs. */
  readonly cpus?: true;
  /** Most slots that bpfimg creates. */
  readonly most?: number;
}

/**
 * Slots of a PROG_ARRAY. The kernel clears them one by one after the last file descriptor or pin is gone. If anybody
 * opens and closes the map by its id meanwhile, it leaks for good. 2^20 slots take 0.1 s.
 */
const MOST_SLOTS = 2 ** 20;

/** The layout of a type whose values do not show what they refer to. */
export const LAYOUTS: Readonly<Record<number, ReferenceLayout>> = {
  3: { program: 0, most: MOST_SLOTS },
  14: { ifindex: 0, program: 4 },
  15: { cookie: 0 },
  16: { program: 4, cpus: true },
  18: { cookie: 0 },
  20: { cookie: 0 },
  25: { ifindex: 0, program: 4 },
};

/** Whether values do not say what they refer to: cookies of sockets need 8 bytes. */
export function leavesAll({ number }: MapType, { valueSize }: { readonly valueSize: number }): boolean {
  const layout = LAYOUTS[number];
  return layout === undefined || (layout.cookie !== undefined && valueSize < 8);
}

/** The numbers in the value at `at`. */
export function numbersIn(view: DataView, at: number, size: number, { program, ifindex, cookie }: ReferenceLayout) {
  const u32 = (offset: number | undefined) =>
    offset === undefined || offset + 4 > size ? undefined : view.getUint32(at + offset, true);
  return {
    // 0 means none, if the number is optional.
    program: u32(program) || undefined,
    ifindex: u32(ifindex),
    cookie: cookie === undefined ? undefined : view.getBigUint64(at + cookie, true),
  };
}
