/** Takes what a capture reads, and reads what it wrote, without the code under test. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import type { BpfMap } from '../../src/kernel/map.js';
import type { ItemSink, MapType, Work } from '../../src/maptype.js';

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');

/**
 * A sink that remembers all items in order. It takes its time: what it is given must stay as it is until it
 * says so, and it says so out of order.
 */
export class Recorder implements ItemSink {
  count = 0;
  /** Keys in hex, in the order they came. */
  readonly keys: string[] = [];
  readonly values: string[] = [];
  #calls = 0;

  constructor(
    readonly map: Pick<BpfMap, 'keySize' | 'valueStride'>,
    readonly slow = false,
  ) {}

  async put(keys: Uint8Array, values: Uint8Array, count: number): Promise<void> {
    const at = this.count;
    this.count += count;
    if (this.slow) {
      for (let turns = (this.#calls++ * 7) % 5; turns > 0; turns--) await new Promise((go) => setImmediate(go));
    }
    const { keySize, valueStride } = this.map;
    for (let i = 0; i < count; i++) {
      this.keys[at + i] = hex(keys.subarray(i * keySize, (i + 1) * keySize));
      this.values[at + i] = hex(values.subarray(i * valueStride, (i + 1) * valueStride));
    }
  }

  /** Values by key. @throws when a key came twice */
  items(): Map<string, string> {
    const items = new Map(this.keys.map((key, i) => [key, this.values[i] as string]));
    if (items.size !== this.keys.length) {
      const twice = this.keys.find((key, i) => this.keys.indexOf(key) !== i);
      throw new Error(`${this.keys.length} items, ${items.size} keys: ${twice} came twice`);
    }
    return items;
  }
}

/** What a hook gets besides its map. */
export function work(type: Partial<MapType> = {}): Work {
  return {
    type: { number: 1, name: 'hash', since: '3.19', key: 'bytes', ...type },
    subject: 'map',
    progress: () => {},
  };
}

// ---------------------------------------------------------------------------------------------------
// Images

/** One field of a protobuf message: a number, or bytes. */
export interface WireField {
  readonly no: number;
  readonly wire: number;
  readonly value: number | Buffer;
}

/** The fields of a message in their order. */
export function wireFields(bytes: Buffer): WireField[] {
  const fields: WireField[] = [];
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes.readUInt8(at++);
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const [no, wire] = [tag >>> 3, tag & 7];
    const value = varint();
    if (wire === 0) fields.push({ no, wire, value });
    else if (wire === 2) {
      fields.push({ no, wire, value: bytes.subarray(at, at + value) });
      at += value;
    } else throw new Error(`wire type ${wire}`);
  }
  return fields;
}

/** The number in field `no`. */
export function numberIn(fields: readonly WireField[], no: number): number {
  return fields.find((field) => field.no === no)?.value as number;
}

/** The bytes in field `no`. */
export function bytesIn(fields: readonly WireField[], no: number): Buffer {
  return fields.find((field) => field.no === no)?.value as Buffer;
}

/** The messages of an image, whose extra is `extra` bytes long. */
export function entriesOf(
  image: Buffer,
  extra: (fields: WireField[]) => number = () => 0,
): { message: Buffer; fields: WireField[]; extra: Buffer }[] {
  const entries = [];
  for (let at = 8; at < image.length; ) {
    const message = image.subarray(at + 4, at + 4 + image.readUInt32LE(at));
    if (message.length === 0) throw new Error(`no message at ${at}`);
    at += 4 + message.length;
    const fields = wireFields(message);
    const size = extra(fields);
    entries.push({ message, fields, extra: image.subarray(at, at + size) });
    at += size;
    if (at > image.length) throw new Error('the image is cut off');
  }
  return entries;
}

/** One map's data in an image. */
export interface CapturedData {
  readonly mapId: number;
  readonly count: number;
  /** In hex, in image order. */
  readonly keys: string[];
  readonly values: string[];
}

/** The data entries of a dump. */
export function dataOf(folder: string): CapturedData[] {
  const image = fs.readFileSync(path.join(folder, 'bpfmap-data.img'));
  return entriesOf(image, (fields) => numberIn(fields, 2) + numberIn(fields, 3)).map(({ fields, extra }) => {
    const [mapId = 0, keysBytes = 0, valuesBytes = 0, count = 0] = [1, 2, 3, 4].map((no) => numberIn(fields, no));
    const cut = (bytes: Buffer, size: number) =>
      Array.from({ length: count }, (_, i) => hex(bytes.subarray(i * size, (i + 1) * size)));
    return {
      mapId,
      count,
      keys: cut(extra.subarray(0, keysBytes), keysBytes / count),
      values: cut(extra.subarray(keysBytes), valuesBytes / count),
    };
  });
}

/** Values by key of the one map in a dump. @throws if a key occurs twice */
export function itemsOf(folder: string): Map<string, string> {
  const [data] = dataOf(folder);
  if (data === undefined) throw new Error('no data');
  const items = new Map(data.keys.map((key, i) => [key, data.values[i] as string]));
  if (items.size !== data.count) throw new Error(`${data.count} items, ${items.size} keys`);
  return items;
}
