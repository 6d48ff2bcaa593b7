/**
 * How crit shows single fields under `--pretty`: flags by name, hex, addresses, device numbers;
 * and quoted-printable for socket names, which it always uses.
 *
 * Tables and rules follow what Python crit prints; names and values are the kernel's.
 */
import { ipv4Bytes, ipv4Text, ipv6Bytes, ipv6Text, viewOf } from '../bytes.js';
import type { Json, JsonObject } from '../value.js';
import { type MessageField, messageFields } from './message.js';

type NamedBits = readonly (readonly [name: string, bits: number])[];

/** open(2) flags as crit names them. FASYNC and O_LARGEFILE are the kernel's values on x86-64. */
const OPEN_FLAGS: NamedBits = [
  ['O_RDONLY', 0], // never shown, but accepted
  ['O_WRONLY', 0o1],
  ['O_RDWR', 0o2],
  ['O_CREAT', 0o100],
  ['O_EXCL', 0o200],
  ['O_NOCTTY', 0o400],
  ['O_TRUNC', 0o1000],
  ['O_APPEND', 0o2000],
  ['O_NONBLOCK', 0o4000],
  ['O_DSYNC', 0o10000],
  ['FASYNC', 0o20000],
  ['O_DIRECT', 0o40000],
  ['O_LARGEFILE', 0o100000],
  ['O_DIRECTORY', 0o200000],
  ['O_NOFOLLOW', 0o400000],
  ['O_NOATIME', 0o1000000],
  ['O_CLOEXEC', 0o2000000],
];

const FLAG_NAMES: Readonly<Record<string, NamedBits>> = {
  'rfile.flags': OPEN_FLAGS,
  'seals.flags': [
    ['F_SEAL_SEAL', 1],
    ['F_SEAL_SHRINK', 2],
    ['F_SEAL_GROW', 4],
    ['F_SEAL_WRITE', 8],
    ['F_SEAL_FUTURE_WRITE', 16],
  ],
};

/** Names for plain numbers, by dictionary and field. */
const DICTIONARIES: Readonly<Record<string, Readonly<Record<string, Readonly<Record<number, string>>>>>> = {
  gen: { task_state: { 1: 'Alive', 3: 'Zombie', 6: 'Stopped' } },
  sk: {
    family: { 1: 'UNIX', 2: 'INET', 10: 'INET6', 16: 'NETLINK', 17: 'PACKET' },
    type: { 1: 'STREAM', 2: 'DGRAM', 3: 'RAW', 5: 'SEQPACKET', 10: 'PACKET' },
    state: {
      1: 'ESTABLISHED',
      2: 'SYN_SENT',
      3: 'SYN_RECV',
      4: 'FIN_WAIT1',
      5: 'FIN_WAIT2',
      6: 'TIME_WAIT',
      7: 'CLOSE',
      8: 'CLOSE_WAIT',
      9: 'LAST_ACK',
      10: 'LISTEN',
    },
    proto: { 0: 'IP', 6: 'TCP', 17: 'UDP', 136: 'UDPLITE' },
  },
};

/** Bits as names joined by ` | `, unknown bits as one hex number at the end, zero as empty text. */
export function flagText(value: number | bigint, names: NamedBits = OPEN_FLAGS): string {
  let rest = BigInt(value);
  const parts: string[] = [];
  for (const [name, bits] of names) {
    if (rest & BigInt(bits)) parts.push(name);
  }
  for (const [, bits] of names) rest &= ~BigInt(bits);
  if (rest !== 0n) parts.push(`0x${rest.toString(16)}`);
  return parts.join(' | ');
}

/** The reverse of {@link flagText}; undefined when a word is neither a name nor a number. */
export function parseFlags(text: string, names: NamedBits = OPEN_FLAGS): bigint | undefined {
  let value = 0n;
  if (text.trim() === '') return value;
  for (const word of text.split('|').map((part) => part.trim())) {
    const known = names.find(([name]) => name === word);
    if (known) value |= BigInt(known[1]);
    else if (/^(0x[0-9a-fA-F]{1,16}|[0-9]{1,20})$/.test(word)) value |= BigInt(word);
    else return undefined;
  }
  return value;
}

/** A decoded message with its fields in crit's `--pretty` forms. */
export function prettyMessage(name: string, object: JsonObject, hexInside = false): JsonObject {
  const pretty: JsonObject = {};
  for (const field of messageFields(name)) {
    const value = object[field.name];
    if (value === undefined) continue;
    if (field.label === 'repeated' && Array.isArray(value)) {
      const address = field.show?.ipadd ? addressText(value) : undefined;
      pretty[field.name] = address ? [address] : value.map((element) => prettyValue(field, element, hexInside));
    } else {
      pretty[field.name] = prettyValue(field, value, hexInside);
    }
  }
  if (object.$raw !== undefined) pretty.$raw = object.$raw;
  return pretty;
}

function prettyValue(field: MessageField, value: Json, hexInside: boolean): Json {
  const inHex = hexInside || field.show?.hex === true;
  if (field.type === 'message') return prettyMessage(field.of as string, value as JsonObject, inHex);
  if ((typeof value !== 'number' && typeof value !== 'bigint') || field.type === 'enum') return value;
  const show = field.show;
  if (inHex) return value < 0 ? `-0x${(-value).toString(16)}` : `0x${value.toString(16)}`;
  if (show?.odev) {
    const dev = BigInt(value);
    const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & 0xfffff000n);
    const minor = (dev & 0xffn) | ((dev >> 12n) & 0xffffff00n);
    return `${major}:${minor}`;
  }
  if (show?.dev) return `${BigInt(value) >> 20n}:${BigInt(value) & 0xfffffn}`;
  if (show?.flags !== undefined) {
    const names = FLAG_NAMES[show.flags];
    return names ? flagText(value, names) : `0x${value.toString(16)}`;
  }
  if (show?.dict !== undefined) return DICTIONARIES[show.dict]?.[field.name]?.[Number(value)] ?? value;
  return value;
}

/**
 * Reverses what {@link prettyMessage} did to a field: names become numbers. Anything else is returned
 * unchanged, for the caller to check.
 */
export function parseShown(field: MessageField, value: Json): Json {
  const show = field.show;
  if (show === undefined) return value;
  if (show.ipadd && Array.isArray(value)) {
    const address = value[0];
    return value.length === 1 && typeof address === 'string' ? (addressWords(address) ?? value) : value;
  }
  if (typeof value !== 'string') return value;
  if (show.dev || show.odev) {
    const match = /^(\d{1,10}):(\d{1,10})$/.exec(value);
    if (!match) return value;
    const major = BigInt(match[1] as string);
    const minor = BigInt(match[2] as string);
    if (!show.odev) return (major << 20n) | minor;
    return ((major & 0xfffn) << 8n) | ((major & ~0xfffn) << 32n) | (minor & 0xffn) | ((minor & ~0xffn) << 12n);
  }
  if (show.flags !== undefined) {
    const names = FLAG_NAMES[show.flags];
    return (names && parseFlags(value, names)) ?? value;
  }
  if (show.dict !== undefined) {
    for (const [number, name] of Object.entries(DICTIONARIES[show.dict]?.[field.name] ?? {})) {
      if (name === value) return Number(number);
    }
  }
  return value;
}

/** An address of one or four 32-bit words in network order, as text; undefined for other lists. */
function addressText(words: Json[]): string | undefined {
  const bytes = Buffer.alloc(words.length * 4);
  if (words.length !== 1 && words.length !== 4) return undefined;
  for (const [i, word] of words.entries()) bytes.writeUInt32LE(Number(word), i * 4);
  return words.length === 1 ? ipv4Text(bytes) : ipv6Text(bytes);
}

function addressWords(text: string): number[] | undefined {
  const bytes = ipv4Bytes(text) ?? ipv6Bytes(text);
  if (bytes === undefined) return undefined;
  return Array.from({ length: bytes.length / 4 }, (_, i) => viewOf(bytes).getUint32(i * 4, true));
}

const CR = 0x0d;
const LF = 0x0a;
const TAB = 0x09;
const SPACE = 0x20;

/**
 * Bytes as quoted-printable text, with the choices of Python's `quopri.encodestring`: lines of at most
 * 76 characters, blanks and tabs kept unless a line ends in them, a lone `.` at a line's start escaped.
 */
export function quotedPrintable(bytes: Uint8Array): string {
  const firstLf = bytes.indexOf(LF);
  const lineEnd = firstLf > 0 && bytes[firstLf - 1] === CR ? '\r\n' : '\n';
  const escaped = (byte: number) => `=${byte.toString(16).toUpperCase().padStart(2, '0')}`;
  const lines: string[] = [];
  let line = '';
  const breakLine = (end: string) => {
    lines.push(line + end);
    line = '';
  };
  for (let i = 0; i < bytes.length; ) {
    const byte = bytes[i] as number;
    const next = bytes[i + 1];
    const last = i + 1 === bytes.length;
    const blank = byte === SPACE || byte === TAB;
    const mustEscape =
      byte > 126 ||
      byte === 0x3d ||
      (byte === 0x2e && line === '' && (last || next === LF || next === CR || next === 0)) ||
      (blank && last) ||
      (byte < 33 && byte !== CR && byte !== LF && !blank);
    if (mustEscape) {
      if (line.length + 3 >= 76) breakLine(`=${lineEnd}`);
      line += escaped(byte);
      i++;
    } else if (byte === LF || (byte === CR && next === LF)) {
      const before = line.charCodeAt(line.length - 1);
      if (before === SPACE || before === TAB) line = line.slice(0, -1) + escaped(before);
      breakLine(lineEnd);
      i += byte === CR ? 2 : 1;
    } else {
      if (!last && next !== LF && line.length + 1 >= 76) breakLine(`=${lineEnd}`);
      line += String.fromCharCode(byte);
      i++;
    }
  }
  return lines.join('') + line;
}

/** The bytes of quoted-printable text; undefined when a character is not a byte or `=` does not start an escape. */
export function unquotePrintable(text: string): Uint8Array | undefined {
  const joined = text.replace(/=[ \t]*\r?\n/g, '');
  // biome-ignore lint/suspicious/noControlCharactersInRegex: bytes, not text
  if (/[^\x00-\xff]|=(?![0-9A-Fa-f]{2})/.test(joined)) return undefined;
  const bytes = joined.replace(/=([0-9A-Fa-f]{2})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 16)),
  );
  return Buffer.from(bytes, 'latin1');
}
