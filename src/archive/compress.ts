/** Outputs that compress their bytes and pass them on to another output. */
import type { Duplex } from 'node:stream';
import { ioError } from '../errors.js';
import { Output } from '../io/output.js';
import type { Format } from './compression.js';

/** Bytes to compress at once; with zstd on a Node that lacks it, each such part is a frame. */
const PART = 1024 * 1024;

/** Compresses into `out`. Committing or aborting the result does the same to `out`. */
export async function compressing(out: Output, format: Format): Promise<Output> {
  if (format === 'tar') return out;
  return new CompressingOutput(out, format === 'gzip' ? (await import('node:zlib')).createGzip() : await zstd());
}

let initialised: Promise<void> | undefined;

async function zstd(): Promise<Duplex> {
  const zlib = await import('node:zlib');
  // Node has it from 22.15 on.
  const make: unknown = Reflect.get(zlib, 'createZstdCompress');
  if (typeof make === 'function') return make() as Duplex;
  const { Transform } = await import('node:stream');
  const { default: library } = await import('@bokuweb/zstd-wasm');
  // A second initialisation would reset the library while it is in use.
  initialised ??= library.init();
  await initialised;
  return new Transform({
    transform(chunk: Buffer, _encoding, done) {
      done(null, library.compress(chunk, 3));
    },
  });
}

class CompressingOutput extends Output {
  readonly #out: Output;
  readonly #stream: Duplex;
  readonly #ended: Promise<void>;
  #error: unknown;

  constructor(out: Output, stream: Duplex) {
    super(out.name, PART);
    this.#out = out;
    this.#stream = stream;
    this.#ended = new Promise((resolve) => {
      stream.once('end', resolve);
      stream.once('error', (error) => {
        this.#error = error;
        resolve();
      });
    });
    stream.on('data', (chunk: Uint8Array) => out.write(chunk));
  }

  protected override drain(bytes: Buffer, length: number): Buffer {
    this.#stream.write(bytes.subarray(0, length));
    return Buffer.from(new ArrayBuffer(PART));
  }

  override async turn(): Promise<void> {
    while (this.#stream.writableNeedDrain && this.#error === undefined) {
      await new Promise<void>((resolve) => {
        this.#stream.once('drain', resolve);
        void this.#ended.then(resolve);
      });
    }
    this.#check();
    await this.#out.turn();
  }

  #check(): void {
    if (this.#error !== undefined) throw ioError(this.name, 'compress it', this.#error);
  }

  override async commit(): Promise<void> {
    this.flush();
    this.#stream.end();
    await this.#ended;
    this.#check();
    await this.#out.commit();
  }

  override async abort(): Promise<void> {
    this.#stream.destroy();
    await this.#out.abort();
  }
}
