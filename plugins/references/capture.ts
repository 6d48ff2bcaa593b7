/** Reads maps whose values are kernel objects. */
import { hex, viewOf } from '../../src/bytes.js';
import { readKeys } from '../../src/capture/read.js';
import { KernelError } from '../../src/kernel/error.js';
import type { BpfMap } from '../../src/kernel/map.js';
import { Interfaces, Programs } from '../../src/kernel/objects.js';
import {
  type CaptureWork,
  type ItemSink,
  metadataOnly,
  type ProgramFacts,
  type Reference,
  type Report,
} from '../../src/maptype.js';
import { ReportLines, referencesThatFit } from '../resolve.js';
import { LAYOUTS, numbersIn, type ReferenceLayout } from './layout.js';

/** How such a kernel refuses a look-up. */
const UNREADABLE: ReadonlySet<string> = new Set(['EOPNOTSUPP', 'ENOTSUPP']);

/** Reads the items, and what each of them refers to. */
export async function captureReferences(map: BpfMap, sink: ItemSink, work: CaptureWork): Promise<Report> {
  const layout = LAYOUTS[work.type.number];
  if (layout === undefined) return metadataOnly(map, sink, work);
  if (layout.cookie !== undefined && map.valueSize < 8) return captureKeys(map, sink, work);
  const noted = new NotingSink(map, sink, layout);
  let report: Report;
  try {
    report = await readKeys(map, noted, work);
  } catch (error) {
    // When these types were new, user space could write them but not read them.
    if (!(error instanceof KernelError) || !UNREADABLE.has(error.code ?? '') || sink.count > 0) throw error;
    return {
      kind: 'metadata only',
      why: `lost: its items: this kernel does not let user space read them (${error.code})`,
    };
  }
  const lines = new ReportLines();
  const reader = new ReferenceReader(map, work, lines);
  const references = noted.items.map((item) => reader.referenceOf(item));
  const kept = referencesThatFit(references);
  if (kept.length < references.length && layout.cookie === undefined) {
    lines.add('too many items: bpfimg records once what each id refers to, not for each item');
  }
  work.keep({ references: kept });
  return lines.report(report);
}

/** Most sockets for which the meta image has room. */
const MOST_COOKIES = 32_768;

/** An item's key, and the numbers in its value. */
interface ReferringItem {
  readonly key: Uint8Array;
  readonly program?: number | undefined;
  readonly ifindex?: number | undefined;
  readonly cookie?: bigint | undefined;
}

/** Passes items on, and remembers those that refer to something. */
class NotingSink implements ItemSink {
  readonly items: ReferringItem[] = [];

  constructor(
    readonly map: BpfMap,
    readonly sink: ItemSink,
    readonly layout: ReferenceLayout,
  ) {}

  get count(): number {
    return this.sink.count;
  }

  put(keys: Uint8Array, values: Uint8Array, count: number): Promise<void> {
    const { keySize, valueSize } = this.map;
    const view = viewOf(values);
    for (let i = 0; i < count; i++) {
      const numbers = numbersIn(view, i * valueSize, valueSize, this.layout);
      if (Object.values(numbers).every((number) => number === undefined)) continue;
      // The value itself has the cookie, so nothing is lost if there is no room for it.
      if (numbers.cookie !== undefined && this.items.length >= MOST_COOKIES) continue;
      this.items.push({ key: Uint8Array.from(keys.subarray(i * keySize, (i + 1) * keySize)), ...numbers });
    }
    return this.sink.put(keys, values, count);
  }
}

/** The programs that one capture has seen, shared by all its maps: the walk over pins is the same for each. */
const captures = new WeakMap<CaptureWork['follow'], Programs>();

/** What we can see of the objects that one map's items refer to. */
class ReferenceReader {
  readonly #programs: Programs;
  #interfaces: Interfaces | undefined;

  constructor(
    readonly map: BpfMap,
    work: CaptureWork,
    readonly lines: ReportLines,
  ) {
    // All maps of a capture share `follow`; another capture has another.
    this.#programs = captures.get(work.follow) ?? new Programs(map.sys);
    captures.set(work.follow, this.#programs);
  }

  referenceOf({ key, program, ifindex, cookie }: ReferringItem): Reference {
    return {
      key,
      program: program === undefined ? undefined : this.#program(program),
      ifindex,
      ifname: ifindex === undefined ? undefined : this.#ifname(ifindex),
      cookie,
    };
  }

  #program(id: number): ProgramFacts {
    const facts = { id, ...this.#programs.get(id), pins: this.#programs.pins(id) };
    if (!('tag' in facts)) {
      this.lines.add(
        `program ${id} is recorded by its id only: it is gone, or there is no permission to open it (needs CAP_SYS_ADMIN)`,
      );
    }
    return facts;
  }

  #ifname(index: number): string | undefined {
    this.#interfaces ??= Interfaces.ofMap(this.map.sys, this.map.id);
    const name = this.#interfaces.nameOf(index);
    if (name === undefined) this.lines.add(`interface ${index} has no name in ${this.#interfaces.where}`);
    return name;
  }
}

/** Sockets about which the kernel says nothing: their keys, if the map has only keys that are in use. */
async function captureKeys(map: BpfMap, sink: ItemSink, work: CaptureWork): Promise<Report> {
  const report = await metadataOnly(map, sink, work);
  if (work.type.key === 'index' || report.kind === 'full') return report;
  const keys = new Map<string, Reference>();
  const key = Buffer.alloc(map.keySize);
  // A walk over a map that changes may start again and again.
  let patience = 2 * map.maxEntries + 1000;
  for (let more = map.nextKey(undefined, key); more !== undefined && patience-- > 0; more = map.nextKey(key, key)) {
    keys.set(hex(key), { key: Uint8Array.from(key) });
  }
  const references = [...keys.values()];
  const kept = referencesThatFit(references);
  work.keep({ references: kept });
  const some = kept.length === references.length ? '' : `the first ${kept.length} of `;
  return { ...report, why: `${report.why}; ${some}its ${references.length} keys are recorded` };
}
