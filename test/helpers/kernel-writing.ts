/** What kernel-writer.ts writes, for those who read it back. */
import type { BpfMap } from '../../src/kernel/map.js';

export interface Task {
  readonly id: number;
  /** Keys that stay, and keys that come and go. */
  readonly stable: number;
  readonly fleeting: number;
}

/** The key of `number`: of tries a whole address, or one of the prefixes around. */
export function keyOf(map: Pick<BpfMap, 'type' | 'keySize'>, number: number): Buffer {
  const key = Buffer.alloc(map.keySize);
  key.writeUInt32BE(number, map.keySize - 4);
  if (map.type === 11) key.writeUInt32LE(32, 0);
  return key;
}

export function written(number: number, version: number): Buffer {
  const value = Buffer.alloc(16);
  value.writeUInt32LE(number, 0);
  value.writeUInt32LE(version, 4);
  value.writeUInt32LE((number ^ version) >>> 0, 8);
  return value;
}

/** The number and version in a value; undefined when it is no value that was ever written. */
export function valueIn(value: Buffer): { number: number; version: number } | undefined {
  const [number, version] = [value.readUInt32LE(0), value.readUInt32LE(4)];
  return value.readUInt32LE(8) === (number ^ version) >>> 0 ? { number, version } : undefined;
}
