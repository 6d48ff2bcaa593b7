/** For plugins that replace the kernel objects of an image with those of this host. */
import { hex } from '../src/bytes.js';
import { BpfimgError } from '../src/errors.js';
import type { Sockets } from '../src/kernel/objects.js';
import { bootId } from '../src/kernel/proc.js';
import { FULL, type ItemSource, type Reference, type ReplayWork, type Report } from '../src/maptype.js';

/** Objects named in one line of a report. */
const NAMED_OBJECTS = 3;

/** Reasons why a report is not `full`: the first few, and how many more there are. */
export class ReportLines {
  readonly #lines = new Set<string>();

  add(line: string): void {
    this.#lines.add(line);
  }

  /** The first few lines as one. */
  toString(): string {
    const more = this.#lines.size - NAMED_OBJECTS;
    return [...[...this.#lines].slice(0, NAMED_OBJECTS), ...(more > 0 ? [`${more} more like these`] : [])].join('; ');
  }

  /** `report` with these lines. */
  report(report: Report): Report {
    if (this.#lines.size === 0) return report;
    return { kind: 'partial', why: report.kind === 'full' ? `${this}` : `${report.why}; ${this}` };
  }
}

/** Bytes of references that a meta entry may have: bpfimg reads entries of 4 MiB. */
const REFERENCE_BYTES = 3 * 1024 * 1024;

/** Most bytes of a reference in the image. */
function sizeOf({ key, program, ifname = '', cgroup = '' }: Reference): number {
  const pins = program?.pins?.reduce((sum, pin) => sum + 3 * pin.length + 8, 0) ?? 0;
  return key.length + pins + 2 * (ifname.length + (program?.name?.length ?? 0)) + 3 * cgroup.length + 80;
}

/** As many references as there is room for: all of them, or one for each object. */
export function referencesThatFit(references: readonly Reference[]): readonly Reference[] {
  const cut = (list: readonly Reference[]) => {
    let size = 0;
    const end = list.findIndex((one) => {
      size += sizeOf(one);
      return size > REFERENCE_BYTES;
    });
    return end < 0 ? list : list.slice(0, end);
  };
  if (cut(references).length === references.length) return references;
  const things = new Map(
    references.map((one) => [`${one.program?.id} ${one.ifindex} ${one.cookie} ${one.cgroup}`, one]),
  );
  return cut([...things.values()]);
}

/** This host lacks the object that an item refers to; the message says which. */
export class Unresolved extends Error {}

/** Items that refer to objects this host lacks: the first one is an error, unless they are to be skipped. */
export class UnresolvedItems {
  count = 0;
  readonly #lines = new ReportLines();

  constructor(readonly work: ReplayWork) {}

  /**
   * @param what the object that the item refers to, and why it is not available
   * @throws BpfimgError
   */
  add(key: Buffer, what: string): void {
    const { unresolved, subject } = this.work;
    if (unresolved === 'fail') {
      const text = `it refers to ${what}; --unresolved skip leaves such items out`;
      throw new BpfimgError('notFound', text, { subject, part: `item ${hex(key)}` });
    }
    this.count++;
    this.#lines.add(`${hex(key)} to ${what}`);
  }

  /** `report` with these items. */
  report(report: Report): Report {
    if (this.count === 0) return report;
    const some = this.count === 1 ? '1 item refers' : `${this.count} items refer`;
    const why = `${some} to objects that this host does not have: ${this.#lines}`;
    return { kind: 'partial', why: report.kind === 'full' ? why : `${why}; ${report.why}` };
  }
}

/** Items read at once. */
const STEP_ITEMS = 1024;

/**
 * Calls `put` for every item. If it throws {@link Unresolved}, that is an error with the item's key, unless such items
 * are to be skipped.
 * @param put may use key and value until it returns
 */
export async function putEach(
  items: ItemSource,
  work: ReplayWork,
  put: (key: Buffer, value: Buffer) => void,
): Promise<Report> {
  const { keySize, valueSize } = items;
  const step = Math.max(1, Math.min(STEP_ITEMS, items.count));
  const [keys, values] = [Buffer.alloc(step * keySize), Buffer.alloc(step * valueSize)];
  const seen = new Set<string>();
  const lacking = new UnresolvedItems(work);
  for (let done = 0; done < items.count; done += step) {
    const count = Math.min(step, items.count - done);
    await items.read(done, count, keys, values);
    for (let i = 0; i < count; i++) {
      const key = keys.subarray(i * keySize, (i + 1) * keySize);
      seen.add(hex(key));
      try {
        put(key, values.subarray(i * valueSize, (i + 1) * valueSize));
      } catch (error) {
        if (!(error instanceof Unresolved)) throw error;
        lacking.add(key, error.message);
      }
    }
    work.progress(done + count);
  }
  const repeats = items.count - seen.size;
  if (repeats === 0) return lacking.report(FULL);
  const why = `${repeats} of its ${items.count} items have the same key as a later one, which counts`;
  return lacking.report({ kind: 'partial', why });
}

/**
 * The same socket that had this cookie when it was captured.
 * @returns a file descriptor, which the caller closes
 * @throws Unresolved
 */
export function socketOf(cookie: bigint, sockets: Sockets, { facts: { boot } }: ReplayWork): number {
  const text = `socket with cookie ${cookie}`;
  if (boot === undefined || boot !== bootId(sockets.sys.proc)) {
    throw new Unresolved(`${text} ${boot === undefined ? 'of an unknown boot' : 'of another boot'}`);
  }
  const fd = sockets.open(cookie);
  if (fd === undefined) throw new Unresolved(`${text}, which no visible process has open`);
  return fd;
}
