/**
 * The kinds of image: magic numbers, names, and which message an entry is.
 *
 * Numbers and names are CRIU's (its magic.h); the two kinds that CRIU does not know are ours.
 */
import type { JsonObject } from './message.js';

/** First word of most images since format v1.1; inventory.img and v1.0 images start with the kind's own. */
export const HEAD_COMMON = 0x54564319;
/** First word of images that CRIU writes about itself (statistics, caches). */
export const HEAD_SERVICE = 0x55105940;

/** What stands before the kind's magic: nothing (v1.0, inventory), or one of the two head words. */
export type Head = 'none' | 'common' | 'service';

/** One kind of image that bpfimg decodes. */
export interface Kind {
  /** Name in JSON: the `magic` member. */
  readonly name: string;
  readonly magic: number;
  /** Message of an entry, in images/*.proto. */
  readonly message: string;
  /** The head CRIU writes for it. */
  readonly head: Head;
  /** Bytes that follow an entry's message, from its members; absent for kinds without. */
  readonly extra?: (entry: JsonObject) => number;
}

function kind(name: string, magic: number, message: string, extra?: (entry: JsonObject) => number): Kind {
  const head: Head = name === 'INVENTORY' ? 'none' : 'common';
  return extra ? { name, magic, message, head, extra } : { name, magic, message, head };
}

/** The image of keys and values. */
export const BPFMAP_DATA = kind(
  'BPFMAP_DATA',
  0x64324033,
  'bpfmap_data_entry',
  // Two u32: their sum is exact in a double.
  (entry) => (entry.keys_bytes as number) + (entry.values_bytes as number),
);
export const BPFMAP_FILE = kind('BPFMAP_FILE', 0x57506142, 'bpfmap_file_entry');
export const FILES = kind('FILES', 0x56303138, 'file_entry');
export const FDINFO = kind('FDINFO', 0x56213732, 'fdinfo_entry');
export const IDS = kind('IDS', 0x54432030, 'task_kobj_ids_entry');
export const PSTREE = kind('PSTREE', 0x50273030, 'pstree_entry');
export const INVENTORY = kind('INVENTORY', 0x58313116, 'inventory_entry');
/** Ours: what CRIU's two images cannot say of a map. On disk the magic reads `bpfm`. */
export const BPFMAP_META = kind('BPFMAP_META', 0x6d667062, 'bpfmap_meta_entry');
/** Ours: BTF blobs. On disk the magic reads `bpfb`. */
export const BPFMAP_BTF = kind('BPFMAP_BTF', 0x62667062, 'bpfmap_btf_entry', (entry) => entry.size as number);

/** Every kind that decodes and encodes. The last ones are file lists of CRIU before 3.0 had files.img. */
export const KINDS: readonly Kind[] = [
  BPFMAP_DATA,
  BPFMAP_FILE,
  FILES,
  FDINFO,
  IDS,
  PSTREE,
  INVENTORY,
  BPFMAP_META,
  BPFMAP_BTF,
  kind('EXT_FILES', 0x59255641, 'ext_file_entry'),
  kind('REG_FILES', 0x50363636, 'reg_file_entry'),
  kind('NS_FILES', 0x61394011, 'ns_file_entry'),
  kind('EVENTFD_FILE', 0x44523722, 'eventfd_file_entry'),
  kind('EVENTPOLL_FILE', 0x45023858, 'eventpoll_file_entry'),
  kind('EVENTPOLL_TFD', 0x44433746, 'eventpoll_tfd_entry'),
  kind('SIGNALFD', 0x57323820, 'signalfd_entry'),
  kind('TIMERFD', 0x50493712, 'timerfd_entry'),
  kind('INOTIFY_FILE', 0x48424431, 'inotify_file_entry'),
  kind('INOTIFY_WD', 0x54562009, 'inotify_wd_entry'),
  kind('FANOTIFY_FILE', 0x55096122, 'fanotify_file_entry'),
  kind('FANOTIFY_MARK', 0x56506035, 'fanotify_mark_entry'),
  kind('PIPES', 0x56513555, 'pipe_entry'),
  kind('FIFO', 0x58364939, 'fifo_entry'),
  kind('UNIXSK', 0x54373943, 'unix_sk_entry'),
  kind('INETSK', 0x56443851, 'inet_sk_entry'),
  kind('PACKETSK', 0x60454618, 'packet_sock_entry'),
  kind('NETLINK_SK', 0x58005614, 'netlink_sk_entry'),
  kind('TTY_FILES', 0x59433025, 'tty_file_entry'),
  kind('TUNFILE', 0x57143751, 'tunfile_entry'),
];

/** Kinds that bpfimg does not decode, so that a message can name what was found. */
const OTHER_KINDS: Readonly<Record<number, string>> = {
  0x56084025: 'PAGEMAP',
  0x55053847: 'CORE',
  0x54123737: 'VMAS',
  0x56453709: 'PIPES_DATA',
  0x59333054: 'FIFO_DATA',
  0x55344201: 'SIGACT',
  0x57464056: 'ITIMERS',
  0x52603957: 'POSIX_TIMERS',
  0x56264026: 'SK_QUEUES',
  0x54473203: 'UTSNS',
  0x54023547: 'CREDS',
  0x53115007: 'IPC_VAR',
  0x46283044: 'IPCNS_SHM',
  0x55453737: 'IPCNS_MSG',
  0x59573019: 'IPCNS_SEM',
  0x51403912: 'FS',
  0x57492820: 'MM',
  0x59133954: 'REMAP_FPATH',
  0x52583605: 'GHOST_FILE',
  0x51465506: 'TCP_STREAM',
  0x55563928: 'MNTS',
  0x57373951: 'NETDEV',
  0x55933752: 'NETNS',
  0x59453036: 'TTY_INFO',
  0x59413026: 'TTY_DATA',
  0x54323616: 'FILE_LOCKS',
  0x57113925: 'RLIMIT',
  0x59255647: 'SIGNAL',
  0x59383330: 'CGROUP',
  0x61404013: 'CPUINFO',
  0x55474906: 'USERNS',
  0x64413049: 'SECCOMP',
  0x67343323: 'BINFMT_MISC',
  0x49353943: 'AUTOFS',
  0x43114433: 'TIMENS',
  0x61157326: 'PIDNS',
  0x59423047: 'APPARMOR',
  0x54435556: 'PIDFD',
  0x57093306: 'STATS',
  0x57004059: 'IRMAP_CACHE',
  0x48453499: 'MEMFD_INODE',
};

const byMagic = new Map(KINDS.map((one) => [one.magic, one]));
const byName = new Map(KINDS.map((one) => [one.name, one]));

export function kindOfMagic(magic: number): Kind | undefined {
  return byMagic.get(magic);
}

export function kindOfName(name: string): Kind | undefined {
  return byName.get(name);
}

/** Kinds whose images crit has no handler for (CRIU 4.1.1). */
const NOT_CRITS: ReadonlySet<string> = new Set(['SIGNAL', 'BINFMT_MISC', 'PIDFD']);

/** Whether crit decodes images of a kind that bpfimg does not. */
export function critDecodes(name: string): boolean {
  return !NOT_CRITS.has(name);
}

/** Name of a kind bpfimg does not decode, when CRIU has such a magic. */
export function foreignKind(magic: number): string | undefined {
  return OTHER_KINDS[magic];
}

/** Magic of a kind that bpfimg does not decode, by its name. */
export function magicOf(name: string): number | undefined {
  const found = Object.entries(OTHER_KINDS).find(([, other]) => other === name);
  return found && Number(found[0]);
}

/** Sorted names of all kinds, for messages and schemas. */
export function kindNames(): string[] {
  return [...byName.keys()].sort();
}
