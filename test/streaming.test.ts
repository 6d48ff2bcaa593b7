/** Memory does not grow with the map: gigabytes go through, decoded and encoded, and none of it is kept. */
import t from 'tap';
import { ImageReader } from '../src/image/reader.js';
import { type Input, streamInput } from '../src/io/input.js';
import { Output } from '../src/io/output.js';
import { type Dialect, decodeImage } from '../src/json/decode.js';
import { encodeImage } from '../src/json/encode.js';
import { dataMessage, image, words } from './helpers/images.js';
import { patience } from './helpers/needs.js';
import { Random } from './helpers/random.js';

t.setTimeout(patience(300_000));

const MIB = 1024 * 1024;
/** Growth of the heap and of buffers that is still called flat. */
const FLAT = 150 * MIB;

/** Bytes without end: a random block over and over, of a length that no buffer divides. */
const PERIOD = 1_000_003;
const block = new Random(6).bytes(PERIOD);
const twice = Buffer.concat([block, block]);

/** An image that is larger than memory and is nowhere: a few bytes in front, then {@link block} repeated. */
class VirtualImage {
  readonly size: number;
  constructor(
    readonly front: Uint8Array,
    extra: number,
  ) {
    this.size = front.length + extra;
  }

  /** Up to `most` of the bytes at `position`. */
  at(position: number, most: number): Uint8Array {
    if (position < this.front.length) return this.front.subarray(position, position + most);
    const start = (position - this.front.length) % PERIOD;
    return twice.subarray(start, start + Math.min(most, PERIOD, this.size - position));
  }

  input(): Input {
    const read = (into: Uint8Array, position: number) => {
      const part = this.at(position, into.length);
      into.set(part);
      return part.length;
    };
    return { name: 'x.img', size: this.size, path: undefined, read, close() {} };
  }
}

/** Bytes kept alive besides code and stacks. */
function inUse(): number {
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

const idle = inUse();

/** Checks what is written against an image, and how much memory is in use meanwhile. */
class Witness extends Output {
  peak = 0;
  #position = 0;
  readonly #image: VirtualImage;
  constructor(image: VirtualImage) {
    super('witness');
    this.#image = image;
  }

  protected override drain(bytes: Buffer, length: number): Buffer {
    for (let done = 0; done < length; ) {
      const want = this.#image.at(this.#position, length - done);
      if (want.length === 0) throw new Error(`more than ${this.#image.size} bytes`);
      if (Buffer.compare(bytes.subarray(done, done + want.length), want) !== 0) {
        throw new Error(`other bytes than in the image near ${this.#position}`);
      }
      done += want.length;
      this.#position += want.length;
    }
    this.peak = Math.max(this.peak, inUse());
    return bytes;
  }
  override async commit(): Promise<void> {
    this.flush();
    if (this.#position !== this.#image.size) throw new Error(`${this.#position} bytes of ${this.#image.size}`);
  }
  override async abort(): Promise<void> {}
}

/** A pipe within the process: what is written can be read, and who writes waits for who reads. */
class Pipe extends Output {
  readonly #chunks: Buffer[] = [];
  #ended = false;
  #wake = () => {};

  protected override drain(bytes: Buffer, length: number): Buffer {
    this.#chunks.push(bytes.subarray(0, length));
    this.#wake();
    return Buffer.from(new ArrayBuffer(512 * 1024));
  }
  override async turn(): Promise<void> {
    while (this.#chunks.length > 4) await this.#change();
  }
  #change(): Promise<void> {
    return new Promise((resolve) => {
      const others = this.#wake;
      this.#wake = () => {
        others();
        resolve();
      };
    });
  }
  async *read(): AsyncGenerator<Uint8Array> {
    while (!this.#ended || this.#chunks.length > 0) {
      const chunk = this.#chunks.shift();
      this.#wake();
      this.#wake = () => {};
      if (chunk) yield chunk;
      else await this.#change();
    }
  }
  override async commit(): Promise<void> {
    this.flush();
    this.#ended = true;
    this.#wake();
  }
  override async abort(): Promise<void> {}
}

/** `bpfimg decode | bpfimg encode | cmp - image`; returns the length of the JSON and the growth of memory. */
async function throughPipe(image: VirtualImage, dialect: Dialect): Promise<{ text: number; growth: number }> {
  const pipe = new Pipe('pipe');
  const witness = new Witness(image);
  const decoding = (async () => {
    const reader = await ImageReader.open(image.input());
    await decodeImage(reader, pipe, { dialect, pretty: false, noPayload: false });
    await pipe.commit();
  })();
  await Promise.all([decoding, encodeImage(streamInput(pipe.read(), 'pipe'), witness).then(() => witness.commit())]);
  return { text: pipe.length, growth: witness.peak - idle };
}

/** An image of one map. */
function map(count: number, keySize: number, valueSize: number): VirtualImage {
  const message = dataMessage(1, count * keySize, count * valueSize, count);
  return new VirtualImage(image('BPFMAP_DATA', words(message.length), message), count * (keySize + valueSize));
}

const CASES: readonly [what: string, dialect: Dialect, image: VirtualImage][] = [
  ['2 GiB in crit, as base64 longer than any string of V8', 'crit', map(2048, 8, MIB - 8)],
  ['3 million items of 16+64 bytes in items', 'items', map(3_000_000, 16, 64)],
  ['3 million items of 16+64 bytes in ndjson', 'ndjson', map(3_000_000, 16, 64)],
  ['an item of 300 MiB in items', 'items', map(1, 4, 300 * MIB)],
  ['an item of 100 MiB in ndjson', 'ndjson', map(1, 100 * MIB, 4)],
];

for (const [what, dialect, image] of CASES) {
  t.test(what, async (t) => {
    const { text, growth } = await throughPipe(image, dialect);
    t.ok(growth < FLAT, `${(text / MIB) | 0} MiB of JSON, ${(growth / MIB) | 0} MiB of memory`);
    if (dialect === 'crit') t.ok(text > 2 ** 29, 'more than V8 can hold in a string');
  });
}
