/** Reads and fills storage of kernel objects. */
import { hex, viewOf } from '../../src/bytes.js';
import { readKeys } from '../../src/capture/read.js';
import { KernelError } from '../../src/kernel/error.js';
import type { BpfMap } from '../../src/kernel/map.js';
import { Sockets } from '../../src/kernel/objects.js';
import { Cgroups, seesAll, tasks } from '../../src/kernel/owners.js';
import {
  type CaptureWork,
  FULL,
  type ItemSink,
  type ItemSource,
  leaveEmpty,
  metadataOnly,
  type Reference,
  type ReplayWork,
  type Report,
} from '../../src/maptype.js';
import { putEach, ReportLines, referencesThatFit, socketOf, Unresolved } from '../resolve.js';

/** An object that may have a value. */
interface Owner {
  /** The number that an image has for it. */
  readonly key: Buffer;
  /** Borrowed until the next object is requested; negative if it could not be opened. */
  readonly fd: number;
  readonly cgroup?: string;
}

/** Opens the object that such a number means. @throws Unresolved */
type OpenOwner = (key: Uint8Array, known: Reference | undefined) => { readonly fd: number; close(): void };

/** How the values of one type are found: the kernel has no list of them, only the value of an open object. */
interface Owners {
  /** What messages call them. */
  readonly name: string;
  all(map: BpfMap): Iterable<Owner>;
  /** Which of them are not searched; undefined if all are. */
  unseen(map: BpfMap): string | undefined;
  opener?(map: BpfMap, work: ReplayWork): OpenOwner;
}

const OWNERS: Readonly<Record<number, Owners>> = {
  24: {
    name: 'socket',
    *all({ sys }) {
      const sockets = new Sockets(sys);
      for (const cookie of sockets.cookies()) {
        const fd = sockets.open(cookie);
        if (fd === undefined) continue;
        try {
          yield { key: ownerKey(cookie, 8), fd };
        } finally {
          sys.close(fd);
        }
      }
    },
    unseen: () => 'sockets that no visible process has open',
    opener({ sys }, work) {
      const sockets = new Sockets(sys);
      return (key) => {
        const fd = socketOf(viewOf(key).getBigUint64(0, true), sockets, work);
        return { fd, close: () => sys.close(fd) };
      };
    },
  },
  29: {
    name: 'task',
    *all({ sys }) {
      for (const { id, fd } of tasks(sys)) yield { key: ownerKey(BigInt(id), 4), fd };
    },
    unseen: ({ sys }) => (seesAll('pid', sys.proc) ? undefined : 'tasks of other PID namespaces'),
  },
  32: {
    name: 'cgroup',
    *all({ sys }) {
      for (const { id, path, fd } of new Cgroups(sys.proc).all()) yield { key: ownerKey(id, 8), fd, cgroup: path };
    },
    unseen({ sys }) {
      if (new Cgroups(sys.proc).mount === undefined) return 'cgroups, because no cgroup2 file system is mounted';
      return seesAll('cgroup', sys.proc) ? undefined : 'cgroups outside of our namespace';
    },
    opener({ sys }) {
      const cgroups = new Cgroups(sys.proc);
      return (key, known) => {
        if (known?.cgroup === undefined)
          throw new Unresolved(`cgroup ${viewOf(key).getBigUint64(0, true)}, whose path is unknown`);
        const fd = cgroups.open(known.cgroup);
        if (fd === undefined) throw new Unresolved(`cgroup ${known.cgroup}, which does not exist here`);
        return { fd, close: () => cgroups.close(fd) };
      };
    },
  },
};

function ownerKey(number: bigint, size: number): Buffer {
  const key = Buffer.alloc(8);
  key.writeBigUInt64LE(number);
  return key.subarray(0, size);
}

/** Reads the values of all objects that can be found. */
export async function captureStorage(map: BpfMap, sink: ItemSink, work: CaptureWork): Promise<Report> {
  const owners = OWNERS[work.type.number];
  if (owners !== undefined) return captureOwned(map, sink, work, owners);
  return work.type.carries?.captured === 'items' ? readKeys(map, sink, work) : metadataOnly(map, sink, work);
}

/** Gives the values to this host's objects, if the image says which ones. */
export async function fillStorage(map: BpfMap, items: ItemSource, work: ReplayWork): Promise<Report> {
  const open = OWNERS[work.type.number]?.opener?.(map, work);
  if (open === undefined) return leaveEmpty(map, items, work);
  const known = new Map(work.facts.references?.map((one) => [hex(one.key), one]));
  const key = Buffer.alloc(4);
  return putEach(items, work, (name, value) => {
    const owner = open(name, known.get(hex(name)));
    try {
      key.writeInt32LE(owner.fd);
      map.update(key, value);
    } catch (error) {
      throw error instanceof KernelError ? error.of(`item ${hex(name)}`) : error;
    } finally {
      owner.close();
    }
  });
}

/** Values that are passed on at once. */
const STEP_VALUES = 256;

/** Looks up the value of every object. */
async function captureOwned(map: BpfMap, sink: ItemSink, work: CaptureWork, owners: Owners): Promise<Report> {
  const references: Reference[] = [];
  const key = Buffer.alloc(4);
  let [keys, values]: [Buffer[], Uint8Array[]] = [[], []];
  let unopened = 0;
  const put = async () => {
    await sink.put(Buffer.concat(keys), Buffer.concat(values), keys.length);
    [keys, values] = [[], []];
    work.progress(sink.count);
  };
  for (const owner of owners.all(map)) {
    if (owner.fd < 0) {
      unopened++;
      continue;
    }
    key.writeInt32LE(owner.fd);
    const value = map.lookup(key);
    if (value === undefined) continue;
    keys.push(owner.key);
    values.push(value);
    if (owner.cgroup !== undefined) references.push({ key: owner.key, cgroup: owner.cgroup });
    if (keys.length === STEP_VALUES) await put();
  }
  await put();
  const kept = referencesThatFit(references);
  work.keep({ references: kept });
  const lines = new ReportLines();
  const unseen = owners.unseen(map);
  if (unseen !== undefined) lines.add(`lost: values of ${unseen}`);
  if (unopened > 0) lines.add(`${unopened} ${owners.name}s could not be opened to read their values`);
  if (kept.length < references.length)
    lines.add(`the paths of ${references.length - kept.length} ${owners.name}s are not recorded`);
  return lines.report(FULL);
}
