/**
 * Headers of tar archives, as blocks of 512 bytes: ustar, GNU's and older ones. Names are bytes, one character
 * each, and nothing in them is trusted.
 */
import { untilNul } from '../bytes.js';
import { BpfimgError } from '../errors.js';

/** Headers and the bytes of entries come in blocks of this size. */
export const BLOCK = 512;

/** Size in bytes of the padding that fills the last block. */
export function padding(size: number): number {
  return (BLOCK - (size % BLOCK)) % BLOCK;
}

/** What a header itself says; headers before it may override it. */
export interface Header {
  readonly name: string;
  /** The character that gives the entry's type. */
  readonly type: string;
  readonly size: number;
  /** Seconds since 1970. */
  readonly mtime: number;
}

/** Position of each field: start, and end (exclusive). */
const FIELD = {
  name: [0, 100],
  mode: [100, 108],
  uid: [108, 116],
  gid: [116, 124],
  size: [124, 136],
  mtime: [136, 148],
  checksum: [148, 156],
  magic: [257, 265],
  prefix: [345, 500],
} as const;

/** Largest size in octal digits. */
const OCTAL_MOST = 0o77777777777;

function field(block: Uint8Array, [from, to]: readonly [number, number]): Buffer {
  return Buffer.from(block.buffer, block.byteOffset + from, to - from);
}

function octal(bytes: Buffer): number | undefined {
  const digits = untilNul(bytes).trim();
  return /^[0-7]*$/.test(digits) ? Number.parseInt(digits || '0', 8) : undefined;
}

/** The checksum of a block, with its own field counted as spaces. */
function sum(block: Uint8Array): number {
  const [from, to] = FIELD.checksum;
  let all = 0;
  for (let i = 0; i < BLOCK; i++) all += i >= from && i < to ? 0x20 : (block[i] as number);
  return all;
}

/** Whether the checksum of a block is right; some old programs summed signed bytes. */
export function isHeader(block: Uint8Array): boolean {
  const said = octal(field(block, FIELD.checksum));
  const unsigned = sum(block);
  if (said === unsigned) return true;
  const [from, to] = FIELD.checksum;
  const negative = block.reduce((count, byte, i) => count + (byte > 0x7f && (i < from || i >= to) ? 1 : 0), 0);
  return said === unsigned - 256 * negative;
}

/** Whether it is a block of zeros, as at the end of an archive. */
export function isZero(block: Uint8Array): boolean {
  return block.every((byte) => byte === 0);
}

/** A number in octal digits or, if it is too large for these, in base 256 as GNU and star write it. */
function numberOf(bytes: Buffer): number | undefined {
  const first = bytes[0] as number;
  if (first < 0x80) return octal(bytes);
  let value = first & 0x7f;
  for (const byte of bytes.subarray(1)) value = value * 256 + byte;
  return value;
}

/** The contents of a block. @throws BpfimgError without a subject */
export function parseHeader(block: Uint8Array): Header {
  if (!isHeader(block)) {
    throw new BpfimgError('badImage', 'no header of a tar archive: its checksum is wrong');
  }
  const size = numberOf(field(block, FIELD.size));
  if (size === undefined || !Number.isSafeInteger(size)) {
    throw new BpfimgError('badImage', `a header has no size, but ${field(block, FIELD.size).toString('hex')}`);
  }
  const magic = field(block, FIELD.magic).toString('latin1');
  const star = field(block, [508, 512]).toString('latin1') === 'tar\0';
  const [from, to] = FIELD.prefix;
  const prefix = magic.startsWith('ustar\0') ? untilNul(field(block, [from, star ? from + 131 : to])) : '';
  const name = untilNul(field(block, FIELD.name));
  return {
    name: prefix === '' ? name : `${prefix}/${name}`,
    type: String.fromCharCode(block[156] as number),
    size,
    mtime: numberOf(field(block, FIELD.mtime)) ?? 0,
  };
}

/** The same header with another size. If octal digits do not suffice, a record before it gives the size. */
export function withSize(block: Uint8Array, size: number): Buffer {
  const copy = Buffer.from(block);
  const digits = (size > OCTAL_MOST ? 0 : size).toString(8);
  copy.write(`${digits.padStart(11, '0')}\0`, FIELD.size[0], 'latin1');
  return summed(copy);
}

function summed(block: Buffer): Buffer {
  block.write(`${sum(block).toString(8).padStart(6, '0')}\0 `, FIELD.checksum[0], 'latin1');
  return block;
}

/** The contents of a new header besides name, type and size. */
export interface HeaderOptions {
  readonly mode: number;
  /** Seconds since 1970. */
  readonly mtime: number;
}

/** A ustar header of our own, for a name of at most 100 bytes and a size for which {@link needsRecord} is false. */
export function makeHeader(name: string, type: string, size: number, { mode, mtime }: HeaderOptions): Buffer {
  const block = Buffer.alloc(BLOCK);
  const put = ([from, to]: readonly [number, number], value: number) =>
    block.write(`${value.toString(8).padStart(to - from - 1, '0')}\0`, from, 'latin1');
  block.write(name, 0, FIELD.name[1], 'latin1');
  put(FIELD.mode, mode);
  put(FIELD.uid, 0);
  put(FIELD.gid, 0);
  put(FIELD.mtime, mtime);
  block.write(type, 156, 'latin1');
  block.write('ustar\x0000', FIELD.magic[0], 'latin1');
  put([329, 337], 0);
  put([337, 345], 0);
  return withSize(block, size);
}

/** Whether a size is too large for a header. */
export function needsRecord(size: number): boolean {
  return size > OCTAL_MOST;
}

/** Records of a PAX header, in order: name and value, one character per byte. @throws BpfimgError without a subject */
export function parseRecords(bytes: Uint8Array): [name: string, value: string][] {
  const records: [string, string][] = [];
  const all = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 0; at < all.length; ) {
    const space = all.indexOf(0x20, at);
    const said = space < 0 || space - at > 10 ? '' : all.toString('latin1', at, space);
    const end = at + Number(said);
    const equals = all.indexOf(0x3d, space);
    const fits = /^[1-9][0-9]*$/.test(said) && end <= all.length && end > space + 1 && all[end - 1] === 0x0a;
    if (!fits || equals < 0 || equals >= end - 1) {
      // Some programs pad a header with zeros.
      if (all.subarray(at).every((byte) => byte === 0)) break;
      throw new BpfimgError('badImage', `a PAX header breaks its form at its byte ${at}`);
    }
    records.push([all.toString('latin1', space + 1, equals), all.toString('latin1', equals + 1, end - 1)]);
    at = end;
  }
  return records;
}

/** The bytes of such records. */
export function makeRecords(records: readonly (readonly [name: string, value: string])[]): Buffer {
  const lines = records.map(([name, value]) => {
    const rest = ` ${name}=${value}\n`;
    // A record begins with its length, which includes the digits of the length.
    let length = rest.length + 1;
    while (length < rest.length + String(length).length) length++;
    return `${length}${rest}`;
  });
  return Buffer.from(lines.join(''), 'latin1');
}
