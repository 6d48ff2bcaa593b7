/** Fills maps whose values are kernel objects. */
import { hex, viewOf } from '../../src/bytes.js';
import { BpfimgError } from '../../src/errors.js';
import { KernelError } from '../../src/kernel/error.js';
import type { BpfMap } from '../../src/kernel/map.js';
import { type Candidate, Interfaces, Programs, programText, Sockets } from '../../src/kernel/objects.js';
import {
  type ItemSource,
  leaveEmpty,
  type MapFacts,
  type ProgramFacts,
  type Reference,
  type ReplayWork,
  type Report,
} from '../../src/maptype.js';
import { indexText } from '../array.js';
import { putEach, ReportLines, socketOf, Unresolved } from '../resolve.js';
import { LAYOUTS, leavesAll, numbersIn, type ReferenceLayout } from './layout.js';

/**
 * Fills a map with the objects of this host that its items refer to.
 *
 * Whoever replays a PROG_ARRAY must keep it open or pinned: programs that use it do not count, and the kernel clears
 * its slots if nobody does.
 */
export async function fillReferences(map: BpfMap, items: ItemSource, work: ReplayWork): Promise<Report> {
  const layout = LAYOUTS[work.type.number];
  if (layout === undefined || leavesAll(work.type, map)) return leaveEmpty(map, items, work);
  return new ReferenceWriter(map, layout, work).fill(items);
}

/** Errors for a socket that the kernel does not accept now. */
const REFUSED: ReadonlySet<string> = new Set(['EBUSY', 'EINVAL', 'EOPNOTSUPP']);

/** What the numbers in items mean: as recorded for the item, or for another one with the same number. */
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

  /** The program that `id` means in an item. An edited number means something else than the recorded one. */
  program(key: string, id: number): ProgramFacts {
    const own = this.#byKey.get(key)?.program;
    return own !== undefined && (own.id ?? id) === id ? own : (this.#programs.get(id) ?? { id });
  }

  /** The name of the interface that `index` means in an item. */
  ifname(key: string, index: number): string | undefined {
    const own = this.#byKey.get(key);
    return own?.ifname !== undefined && (own.ifindex ?? index) === index ? own.ifname : this.#names.get(index);
  }
}

/** Fills one fresh map with the objects of this host. Numbers from the image are never written as they are. */
class ReferenceWriter {
  readonly #meanings: KeptReferences;
  readonly #programs: Programs;
  readonly #value: Buffer;
  #interfaces: Interfaces | undefined;
  #sockets: Sockets | undefined;
  readonly #lines = new ReportLines();
  /** By the recorded id and facts. */
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
      // The number was edited: a slot of this map has a program, or is empty and no item.
      if (this.layout.program === 0) throw new Unresolved('program 0, which does not exist');
      this.#update(key, parts);
      return;
    }
    this.#withProgram(key, this.#meanings.program(name, id), parts);
  }

  /** Writes the interface's index into the value. */
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

  /** Writes an item with the same socket, which a process still has open. */
  #socket(key: Buffer, cookie: bigint): void {
    const text = `socket with cookie ${cookie}`;
    this.#sockets ??= new Sockets(this.map.sys);
    const fd = socketOf(cookie, this.#sockets, this.work);
    try {
      this.#value.writeBigUInt64LE(BigInt(fd));
      this.#update(key, [text]);
    } catch (error) {
      // It has been shut down meanwhile, or is in another map that does not share it.
      if (!(error instanceof KernelError) || !REFUSED.has(error.code ?? '')) throw error;
      throw new Unresolved(`${text}, which the kernel does not accept: ${error.code} (${error.reason})`);
    } finally {
      this.map.sys.close(fd);
    }
  }

  /** Writes an item with the best candidate that the map accepts: it refuses programs loaded for another use. */
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

  /** Checks a slot: a file descriptor was written, and reading gives the kernel's id. */
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
