/** Blanks bytes of values on their way into an image. */
import { blank, type ItemSink, type Span } from '../maptype.js';

/** A sink in front of another, for values with bytes that mean nothing once they are read. */
export class MaskedSink implements ItemSink {
  constructor(
    readonly sink: ItemSink,
    /** Distance in bytes from one value to the next. */
    readonly stride: number,
    readonly spans: readonly Span[],
  ) {}

  get count(): number {
    return this.sink.count;
  }

  put(keys: Uint8Array, values: Uint8Array, count: number): Promise<void> {
    for (let at = 0; at < count * this.stride; at += this.stride) blank(values, at, this.spans);
    return this.sink.put(keys, values, count);
  }
}
