/** Passes on only the items that are chosen. */
import type { Btf } from '../btf/btf.js';
import { type ItemShape, type RawItem, rawItem } from '../dump/items.js';
import type { ItemSink, MapType } from '../maptype.js';

/** Whether an item is captured. The item's bytes must not be kept. */
export type ItemChoice = (item: RawItem) => boolean;

/** What is known of a map when its items are chosen. */
export interface ChosenFrom {
  /** The map's name in messages. */
  readonly subject: string;
  readonly type: MapType;
  readonly shape: ItemShape;
  /** Its types, if it has any; 0 for none. */
  readonly types: { readonly btf: Btf; readonly key: number; readonly value: number } | undefined;
}

/** A sink in front of another. */
export class ChosenSink implements ItemSink {
  /** Items that were not chosen. */
  left = 0;

  constructor(
    readonly sink: ItemSink,
    readonly shape: ItemShape,
    readonly choice: ItemChoice,
  ) {}

  get count(): number {
    return this.sink.count;
  }

  async put(keys: Uint8Array, values: Uint8Array, count: number): Promise<void> {
    const { keySize, valueSize, perCpu } = this.shape;
    const chosen: number[] = [];
    for (let i = 0; i < count; i++) {
      const key = keys.subarray(i * keySize, (i + 1) * keySize);
      const value = values.subarray(i * valueSize, (i + 1) * valueSize);
      if (this.choice(rawItem(key, value, perCpu))) chosen.push(i);
    }
    this.left += count - chosen.length;
    if (chosen.length === count) return this.sink.put(keys, values, count);
    if (chosen.length === 0) return;
    const some = (bytes: Uint8Array, size: number) =>
      Buffer.concat(chosen.map((i) => bytes.subarray(i * size, (i + 1) * size)));
    return this.sink.put(some(keys, keySize), some(values, valueSize), chosen.length);
  }
}
