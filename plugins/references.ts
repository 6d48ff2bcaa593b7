import { hex, viewOf } from '../src/bytes.js';
import { metadataOnly, readKeys } from '../src/capture/read.js';
import { BpfimgError } from '../src/errors.js';
import { MAP_FLAG } from '../src/kernel/abi.js';
import { KernelError } from '../src/kernel/error.js';
import type { BpfMap } from '../src/kernel/map.js';
import { type Candidate, Interfaces, Programs, programText, Sockets } from '../src/kernel/objects.js';
import type {
  CaptureWork,
  Carries,
  ItemSink,
  ItemSource,
  MapFacts,
  MapType,
  Plugin,
  ProgramFacts,
  Reference,
  ReplayWork,
  Report,
} from '../src/maptype.js';
import { leaveEmpty, leftEmpty } from '../src/replay/fill.js';
import { indexText } from './array.js';
import { putEach, ReportLines, referencesThatFit, socketOf, Unresolved } from './resolve.js';
import { FLAG, NO_BTF, NUMA_RW, PAIR_VALUE, PROG, TYPES, WORD } from './rules.js';

/** What the numbers in a type's values refer to: bytes from the value's start. Values of 4 bytes end before the second. */
interface ReferenceLayout {
  /** Read as an id, written as a file descriptor. */
  readonly program?: number;
  readonly ifindex?: number;
  readonly cookie?: number;
  /** Keys are CPUs. */
  readonly cpus?: true;
  /** Slots that bpfimg creates at most. */
  readonly most?: number;
}

/**
 * Slots of a PROG_ARRAY. The kernel clears them one by one when the last file descriptor or pin goes, and
 * whoever opens and closes the map by its id meanwhile makes it leak for ever. 2^20 of them take 0.1 s.
 */
const MOST_SLOTS = 2 ** 20;

/** A type without a layout shows nothing of what it holds. */
const LAYOUTS: Readonly<Record<number, ReferenceLayout>> = {
  3: { program: 0, most: MOST_SLOTS },
  14: { ifindex: 0, program: 4 },
  15: { cookie: 0 },
  16: { program: 4, cpus: true },
  18: { cookie: 0 },
  20: { cookie: 0 },
  25: { ifindex: 0, program: 4 },
};

/** Whether values say nothing of what they hold: cookies of sockets need 8 bytes. */
function leavesAll({ number }: MapType, { valueSize }: { readonly valueSize: number }): boolean {
  const layout = LAYOUTS[number];
  return layout === undefined || (layout.cookie !== undefined && valueSize < 8);
}

const foundOnHost = (what: string): Carries => ({
  captured: 'items',
  replayed: 'some items',
  lost: `items whose ${what} the host does not have`,
});
const unreadable = (what: string): Carries => ({
  captured: 'metadata only',
  replayed: 'empty',
  lost: `${what}: the kernel does not reveal which it holds`,
});
const PROGRAMS = 'program (by pin and tag, else by tag, name and type)';
const DEVICES = foundOnHost(`interface (by name) or ${PROGRAMS}`);
const SOCKETS: Carries = {
  captured: 'some items',
  replayed: 'some items',
  lost: 'sockets that no process has open any more; after a reboot, all of them; with value_size 4, all of them, because their cookies cannot be read',
};

/** What the kernel says of a socket that it does not take now. */
const REFUSED: ReadonlySet<string> = new Set(['EBUSY', 'EINVAL', 'EOPNOTSUPP']);

/** What such a kernel says of a look-up. */
const UNREADABLE: ReadonlySet<string> = new Set(['EOPNOTSUPP', 'ENOTSUPP']);

/** Maps whose values are kernel objects: programs, events, devices, sockets, CPUs, cgroups. */
export const references: Plugin = {
  name: 'references',
  types: [
    {
      number: 3,
      name: 'prog_array',
      since: '4.2',
      key: 'index',
      holdsReferences: true,
      carries: foundOnHost(PROGRAMS),
      create: { ...WORD, ...TYPES, flags: NUMA_RW, cleared: true, within: 'never' },
    },
    {
      number: 4,
      name: 'perf_event_array',
      since: '4.3',
      key: 'index',
      holdsReferences: true,
      carries: unreadable('perf events'),
      create: { ...WORD, ...NO_BTF, flags: NUMA_RW | FLAG.PRESERVE_ELEMS },
    },
    {
      number: 8,
      name: 'cgroup_array',
      since: '4.8',
      key: 'index',
      holdsReferences: true,
      carries: unreadable('cgroups'),
      create: { ...WORD, ...NO_BTF, flags: NUMA_RW },
    },
    {
      number: 14,
      name: 'devmap',
      since: '4.14',
      key: 'index',
      holdsReferences: true,
      ownFlags: MAP_FLAG.RDONLY_PROG,
      carries: DEVICES,
      create: { ...PAIR_VALUE, ...NO_BTF, flags: NUMA_RW, network: true },
    },
    {
      number: 15,
      name: 'sockmap',
      since: '4.14',
      key: 'index',
      holdsReferences: true,
      files: true,
      carries: SOCKETS,
      create: { ...PAIR_VALUE, ...NO_BTF, flags: NUMA_RW, network: true },
    },
    {
      number: 16,
      name: 'cpumap',
      since: '4.15',
      key: 'index',
      holdsReferences: true,
      carries: foundOnHost(`CPU or ${PROGRAMS}`),
      create: { ...PAIR_VALUE, ...NO_BTF, flags: FLAG.NUMA_NODE },
    },
    {
      number: 17,
      name: 'xskmap',
      since: '4.18',
      key: 'index',
      holdsReferences: true,
      carries: unreadable('AF_XDP sockets'),
      create: { ...WORD, ...NO_BTF, flags: NUMA_RW, network: true, within: 'same entries' },
    },
    {
      number: 18,
      name: 'sockhash',
      since: '4.18',
      key: 'bytes',
      holdsReferences: true,
      files: true,
      carries: SOCKETS,
      create: {
        ...PAIR_VALUE,
        ...NO_BTF,
        key: { min: 1, max: 512 },
        entries: { min: 1, max: 2 ** 28 - 1 },
        flags: NUMA_RW,
        network: true,
      },
    },
    {
      number: 20,
      name: 'reuseport_sockarray',
      since: '4.19',
      key: 'index',
      holdsReferences: true,
      files: true,
      carries: SOCKETS,
      create: { ...PAIR_VALUE, ...TYPES, flags: NUMA_RW | PROG },
    },
    {
      number: 25,
      name: 'devmap_hash',
      since: '5.4',
      key: 'bytes',
      holdsReferences: true,
      ownFlags: MAP_FLAG.RDONLY_PROG,
      carries: DEVICES,
      create: { ...PAIR_VALUE, ...NO_BTF, entries: { min: 1, max: 2 ** 31 }, flags: NUMA_RW, network: true },
    },
  ],

  attributes(spec, type) {
    const { most = Infinity } = LAYOUTS[type.number] ?? {};
    if (spec.maxEntries > most) {
      const what = `${type.name} map${spec.name ? ` (${spec.name})` : ''}`;
      const why = 'the kernel is slow to clear them, and leaks a map that is opened during that time';
      throw new BpfimgError('unsupported', `${spec.maxEntries} slots, expected at most ${most}: ${why}`, {
        subject: what,
      });
    }
    return spec;
  },

  async capture(map, sink, work) {
    const layout = LAYOUTS[work.type.number];
    if (layout === undefined) return metadataOnly(map, sink, work);
    if (layout.cookie !== undefined && map.valueSize < 8) return captureKeys(map, sink, work);
    const noted = new NotingSink(map, sink, layout);
    let report: Report;
    try {
      report = await readKeys(map, noted, work);
    } catch (error) {
      // Kernels of the first years of these types let user space write them, and not read.
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
  },

  async foresee({ type, spec, items }) {
    return leavesAll(type, spec) ? { problems: [], report: leftEmpty(type, items.count) } : undefined;
  },

  /**
   * Whoever replays a PROG_ARRAY must go on holding it, by a file descriptor or pin: programs that use it do
   * not, and the kernel clears its slots when nobody does.
   */
  async replay(map, items, work) {
    const layout = LAYOUTS[work.type.number];
    if (layout === undefined || leavesAll(work.type, map)) return leaveEmpty(map, items, work);
    return new ReferenceWriter(map, layout, work).fill(items);
  },

  keyText: (key, type) => (type.key === 'index' ? indexText(key) : undefined),
};

// ---------------------------------------------------------------------------------------------------
// Capture

/** Sockets that there is room for in the meta image. */
const MOST_COOKIES = 32_768;

/** An item's key, and the numbers in its value. */
interface ReferringItem {
  readonly key: Uint8Array;
  readonly program?: number | undefined;
  readonly ifindex?: number | undefined;
  readonly cookie?: bigint | undefined;
}

/** The numbers in the value at `at`. */
function numbersIn(view: DataView, at: number, size: number, { program, ifindex, cookie }: ReferenceLayout) {
  const u32 = (offset: number | undefined) =>
    offset === undefined || offset + 4 > size ? undefined : view.getUint32(at + offset, true);
  return {
    // 0 is none, where there may be none.
    program: u32(program) || undefined,
    ifindex: u32(ifindex),
    cookie: cookie === undefined ? undefined : view.getBigUint64(at + cookie, true),
  };
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
      // A cookie says no more than the value: what there is no room for need not be remembered.
      if (numbers.cookie !== undefined && this.items.length >= MOST_COOKIES) continue;
      this.items.push({ key: Uint8Array.from(keys.subarray(i * keySize, (i + 1) * keySize)), ...numbers });
    }
    return this.sink.put(keys, values, count);
  }
}

/** The programs that one capture has seen, for all of its maps: the walk over pins is the same for each. */
const captures = new WeakMap<CaptureWork['follow'], Programs>();

/** What can be seen of the things that one map's items refer to. */
class ReferenceReader {
  readonly #programs: Programs;
  #interfaces: Interfaces | undefined;

  constructor(
    readonly map: BpfMap,
    work: CaptureWork,
    readonly lines: ReportLines,
  ) {
    // `follow` is what all maps of a capture share, and no two captures.
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

/** Sockets of which the kernel tells nothing: their keys, where the map has only keys that are in it. */
async function captureKeys(map: BpfMap, sink: ItemSink, work: CaptureWork): Promise<Report> {
  const report = await metadataOnly(map, sink, work);
  if (work.type.key === 'index' || report.kind === 'full') return report;
  const keys = new Map<string, Reference>();
  const key = Buffer.alloc(map.keySize);
  // A walk over a map that changes may begin again and again.
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

// ---------------------------------------------------------------------------------------------------
// Replay

/** The meaning of the numbers in items: what was kept for an item, or for another one with the same number. */
class KeptReferences {
  readonly #byKey = new Map<string, Reference>();
  readonly #programs = new Map<number, ProgramFacts>();
  readonly #names = new Map<number, string>();

  constructor({ references = [] }: MapFacts) {
    for (const reference of references) {
      const { key, program, ifindex, ifname } = reference;
      this.#byKey.set(hex(key), reference);
      if (program?.id !== undefined) this.#programs.set(program.id, program);
      if (ifindex !== undefined && ifname !== undefined) this.#names.set(ifindex, ifname);
    }
  }

  /** The program that an item means by `id`. An edited number means another thing than the item's did. */
  program(key: string, id: number): ProgramFacts {
    const own = this.#byKey.get(key)?.program;
    return own !== undefined && (own.id ?? id) === id ? own : (this.#programs.get(id) ?? { id });
  }

  /** The name of the interface that an item means by `index`. */
  ifname(key: string, index: number): string | undefined {
    const own = this.#byKey.get(key);
    return own?.ifname !== undefined && (own.ifindex ?? index) === index ? own.ifname : this.#names.get(index);
  }
}

/** Fills one fresh map with what its items refer to on this host. Numbers that were read are never written back. */
class ReferenceWriter {
  readonly #meanings: KeptReferences;
  readonly #programs: Programs;
  readonly #value: Buffer;
  #interfaces: Interfaces | undefined;
  #sockets: Sockets | undefined;
  readonly #lines = new ReportLines();
  /** By the recorded id and what is known of it. */
  readonly #found = new Map<ProgramFacts, Candidate[]>();

  constructor(
    readonly map: BpfMap,
    readonly layout: ReferenceLayout,
    readonly work: ReplayWork,
  ) {
    this.#meanings = new KeptReferences(work.facts);
    this.#programs = new Programs(map.sys);
    this.#value = Buffer.alloc(map.valueSize);
  }

  async fill(items: ItemSource): Promise<Report> {
    return this.#lines.report(await putEach(items, this.work, (key, value) => this.#item(key, value)));
  }

  #item(key: Buffer, value: Buffer): void {
    const { program: id, ifindex, cookie } = numbersIn(viewOf(value), 0, value.length, this.layout);
    const name = hex(key);
    if (cookie !== undefined) {
      this.#socket(key, cookie);
      return;
    }
    value.copy(this.#value);
    const parts: string[] = [];
    if (ifindex !== undefined) parts.push(this.#interface(name, ifindex));
    if (id === undefined) {
      // A number that was edited: every slot of this map is a program, or empty and no item.
      if (this.layout.program === 0) throw new Unresolved('program 0, which does not exist');
      this.#update(key, parts);
      return;
    }
    this.#withProgram(key, this.#meanings.program(name, id), parts);
  }

  /** Puts the interface's index into the value. */
  #interface(key: string, recorded: number): string {
    this.#interfaces ??= Interfaces.own(this.map.sys);
    const { where } = this.#interfaces;
    const ifname = this.#meanings.ifname(key, recorded);
    if (ifname === undefined) {
      if (this.#interfaces.nameOf(recorded) === undefined) {
        throw new Unresolved(`interface ${recorded}, which ${where} does not have`);
      }
      this.#lines.add(`item ${key}: interface ${recorded} is identified by its index, because its name is unknown`);
      return `interface ${recorded}`;
    }
    const index = this.#interfaces.indexOf(ifname);
    if (index === undefined) throw new Unresolved(`interface ${ifname}, which ${where} does not have`);
    this.#value.writeUInt32LE(index, this.layout.ifindex as number);
    return `interface ${ifname}`;
  }

  /** Writes an item with the very socket that it held: a process has it open still. */
  #socket(key: Buffer, cookie: bigint): void {
    const text = `socket with cookie ${cookie}`;
    this.#sockets ??= new Sockets(this.map.sys);
    const fd = socketOf(cookie, this.#sockets, this.work);
    try {
      this.#value.writeBigUInt64LE(BigInt(fd));
      this.#update(key, [text]);
    } catch (error) {
      // Of one that has been shut down meanwhile, or is in another map that does not share.
      if (!(error instanceof KernelError) || !REFUSED.has(error.code ?? '')) throw error;
      throw new Unresolved(`${text}, which the kernel does not accept: ${error.code} (${error.reason})`);
    } finally {
      this.map.sys.close(fd);
    }
  }

  /** Writes an item with the likeliest program that the map takes: another use of the same instructions it does not. */
  #withProgram(key: Buffer, wanted: ProgramFacts, parts: readonly string[]): void {
    const candidates = this.#candidates(wanted);
    let failure: unknown;
    for (const [i, { program, open }] of candidates.entries()) {
      const fd = open();
      if (fd < 0) continue;
      const text = programText(program);
      try {
        this.#value.writeUInt32LE(fd, this.layout.program as number);
        this.#update(key, [...parts, text]);
      } catch (error) {
        if (!(error instanceof KernelError) || error.code !== 'EINVAL') throw error;
        failure ??= error;
        continue;
      } finally {
        this.map.sys.close(fd);
      }
      this.#check(key, program.id);
      if (i === 0 && candidates.length > 1 && program.id !== wanted.id && !this.#isPinned(wanted, program.id)) {
        const many = `${candidates.length} programs match ${programText({ ...wanted, id: undefined })}`;
        this.#lines.add(`item ${hex(key)}: ${many}; the item refers to the newest, ${text}`);
      }
      return;
    }
    if (failure !== undefined) throw failure;
    throw new Unresolved(this.#notFound(wanted));
  }

  #candidates(wanted: ProgramFacts): Candidate[] {
    const found = this.#found.get(wanted) ?? this.#programs.find(wanted);
    this.#found.set(wanted, found);
    return found;
  }

  #isPinned({ pins = [] }: ProgramFacts, id: number): boolean {
    return this.#programs.pins(id).some((path) => pins.includes(path));
  }

  #notFound(wanted: ProgramFacts): string {
    const { tag, pins = [] } = wanted;
    const text = programText(wanted);
    if (tag === undefined) return `${text}, of which only the id is known; another program may have that id now`;
    const pin = pins.length === 0 ? '' : `, and not pinned at ${pins.join(' or ')}`;
    if (this.#programs.all() === undefined)
      return `${text}${pin}; loaded programs cannot be seen without CAP_SYS_ADMIN`;
    return `${text}, which is not loaded${pin}`;
  }

  /** @param parts what the value refers to, for messages */
  #update(key: Buffer, parts: readonly string[]): void {
    try {
      this.map.update(key, this.#value);
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      if (this.layout.cpus === true && error.code === 'ENODEV') {
        throw new Unresolved(`CPU ${indexText(key)}, which this machine does not have`);
      }
      throw error.of([`item ${hex(key)}`, ...parts].join(', '));
    }
  }

  /** The slot holds what it should: what was written is a number of ours, what is read is the kernel's. */
  #check(key: Buffer, id: number): void {
    const value = this.map.lookup(key);
    const got = value && numbersIn(viewOf(value), 0, value.length, this.layout).program;
    if (got === id) return;
    const what = got === undefined ? 'no program' : `program ${got}`;
    throw new BpfimgError('io', `read back, it has ${what}, expected ${id}`, {
      subject: this.work.subject,
      part: `item ${hex(key)}`,
    });
  }
}
