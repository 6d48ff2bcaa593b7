/**
 * Builds images from values, byte by byte and without the code under test, so that a test shows its whole
 * input, broken or not.
 */

/** Words as in an image: little-endian, 32 bits each. */
export function words(...values: number[]): Buffer {
  const bytes = Buffer.alloc(values.length * 4);
  for (const [i, value] of values.entries()) bytes.writeUInt32LE(value, i * 4);
  return bytes;
}

/** The two head words. */
export const COMMON = 0x54564319;
export const SERVICE = 0x55105940;

/** Magic numbers of the kinds that tests build by hand. */
export const MAGIC = {
  BPFMAP_DATA: 0x64324033,
  BPFMAP_FILE: 0x57506142,
  BPFMAP_BTF: 0x62667062,
  BPFMAP_META: 0x6d667062,
  FILES: 0x56303138,
  FDINFO: 0x56213732,
  PSTREE: 0x50273030,
  IDS: 0x54432030,
  INVENTORY: 0x58313116,
  CORE: 0x55053847,
  MM: 0x57492820,
  FS: 0x51403912,
  PAGEMAP: 0x56084025,
  SECCOMP: 0x64413049,
  TIMENS: 0x43114433,
  UNIXSK: 0x54373943,
  INETSK: 0x56443851,
} as const;

/** An unsigned varint; stretched to `width` bytes with needless zero groups where that is longer. */
export function varint(value: number | bigint, width = 1): Buffer {
  const bytes: number[] = [];
  for (let rest = BigInt(value); rest > 0n || bytes.length < width; rest >>= 7n)
    bytes.push(Number(rest & 0x7fn) | 0x80);
  bytes[bytes.length - 1] = (bytes[bytes.length - 1] as number) & 0x7f;
  return Buffer.from(bytes);
}

/** A field of an integer type. */
export function scalar(no: number, value: number | bigint, width = 1): Buffer {
  return Buffer.concat([varint(no * 8), varint(value, width)]);
}

/** A field of a message, bytes or string type, or a packed list. */
export function blob(no: number, ...bytes: Uint8Array[]): Buffer {
  const whole = Buffer.concat(bytes);
  return Buffer.concat([varint(no * 8 + 2), varint(whole.length), whole]);
}

/** An entry: its message's size, the message, and what follows it. */
export function entry(message: Uint8Array, ...extra: Uint8Array[]): Buffer {
  return Buffer.concat([words(message.length), message, ...extra]);
}

/** An image of a kind: head (v1.1), magic, entries. */
export function image(kind: keyof typeof MAGIC, ...entries: Uint8Array[]): Buffer {
  return Buffer.concat([words(...(kind === 'INVENTORY' ? [] : [COMMON]), MAGIC[kind]), ...entries]);
}

/** The message of a map's data. */
export function dataMessage(map_id: number, keys_bytes: number, values_bytes: number, count: number): Buffer {
  return Buffer.concat([scalar(1, map_id), scalar(2, keys_bytes), scalar(3, values_bytes), scalar(4, count)]);
}

export type Item = readonly [key: Uint8Array, value: Uint8Array];

/** A map's data. */
export function mapData(id: number, items: readonly Item[]): Buffer {
  const keys = Buffer.concat(items.map(([key]) => key));
  const values = Buffer.concat(items.map(([, value]) => value));
  return entry(dataMessage(id, keys.length, values.length, items.length), keys, values);
}

/** An item from hex, as JSON has it. */
export function item(key: string, value: string): Item {
  return [Buffer.from(key, 'hex'), Buffer.from(value, 'hex')];
}
