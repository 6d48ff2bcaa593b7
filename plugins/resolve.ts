/** What plugins share that put kernel objects of this host in the place of those of an image. */
import { hex } from '../src/bytes.js';
import { BpfimgError } from '../src/errors.js';
import type { Sockets } from '../src/kernel/objects.js';
import { bootId } from '../src/kernel/proc.js';
import { FULL, type ItemSource, type Reference, type ReplayWork, type Report } from '../src/maptype.js';

/** Objects named in one line of a report. */
const NAMED_OBJECTS = 3;

/** What a report has to say beside `full`: the first few things, and how many more. */
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

/** Bytes of a reference in the image, at most. */
function sizeOf({ key, program, ifname = '', cgroup = '' }: Reference): number {
  const pins = program?.pins?.reduce((sum, pin) => sum + 3 * pin.length + 8, 0) ?? 0;
  return key.length + pins + 2 * (ifname.length + (program?.name?.length ?? 0)) + 3 * cgroup.length + 80;
}

/** References as far as there is room: all of them, or one for each thing referred to. */
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

/** What an item refers to is not here; the message says what. */
export class Unresolved extends Error {}

/** The items of a replay that refer to objects that this host does not have: the first is an error, unless they are to be skipped. */
export class UnresolvedItems {
  count = 0;
  readonly #lines = new ReportLines();

  constructor(readonly work: ReplayWork) {}

  /**
   * @param what the item refers to, and why that cannot be
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

/** Items read in one go. */
const STEP_ITEMS = 1024;

/**
 * Has every item put by `put`, which throws {@link Unresolved} for what it cannot find: an error that names the
 * item, unless such items are to be skipped.
 * @param put is lent key and value until it returns
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
 * The very socket that had this cookie when it was captured.
 * @returns a file descriptor, the caller's to close
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
