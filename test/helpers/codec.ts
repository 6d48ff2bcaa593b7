/** The codec from bytes to bytes, and ways to feed it. */
import assert from 'node:assert/strict';
import { ImageReader } from '../../src/image/reader.js';
import { bufferInput, type Input, streamInput } from '../../src/io/input.js';
import { MemoryOutput } from '../../src/io/output.js';
import { type DecodeOptions, type Dialect, decodeImage } from '../../src/json/decode.js';
import { encodeImage } from '../../src/json/encode.js';

/** A form of JSON that decode writes and encode reads. */
export interface Form {
  readonly dialect: Dialect;
  readonly pretty: boolean;
}

/** All of them. */
export const FORMS: readonly Form[] = [
  { dialect: 'items', pretty: false },
  { dialect: 'items', pretty: true },
  { dialect: 'crit', pretty: false },
  { dialect: 'crit', pretty: true },
  { dialect: 'ndjson', pretty: false },
];

/** The name a form goes by in messages. */
export const formName = ({ dialect, pretty }: Form): string => (pretty ? `${dialect} --pretty` : dialect);

/** Bytes, or an input that gives them. */
export type Source = Uint8Array | string | Input;

const inputOf = (source: Source, name: string): Input =>
  typeof source === 'string' || source instanceof Uint8Array ? bufferInput(Buffer.from(source), name) : source;

/** Buffers so small that their ends come often. */
const BUFFER = 4096;

/** An image as JSON text. */
export async function decode(source: Source, form: Form | Dialect, more: Partial<DecodeOptions> = {}): Promise<string> {
  const { dialect, pretty } = typeof form === 'string' ? { dialect: form, pretty: false } : form;
  const out = new MemoryOutput('memory', BUFFER);
  const reader = await ImageReader.open(inputOf(source, 'x.img'));
  await decodeImage(reader, out, { dialect, pretty, noPayload: false, ...more });
  return out.take().toString();
}

/** JSON text as an image. */
export async function encode(source: Source): Promise<Buffer> {
  const out = new MemoryOutput('memory', BUFFER);
  await encodeImage(inputOf(source, 'x.json'), out);
  return out.take();
}

/** Fails unless both are the same bytes; says where they part. */
export function sameBytes(got: Uint8Array, want: Uint8Array, what = 'bytes'): void {
  if (Buffer.compare(got, want) === 0) return;
  let at = 0;
  while (at < got.length && got[at] === want[at]) at++;
  const near = (bytes: Uint8Array) => Buffer.from(bytes.subarray(Math.max(0, at - 8), at + 8)).toString('hex');
  assert.fail(`${what}: ${got.length} of ${want.length} bytes, differ at ${at}: got ${near(got)}, want ${near(want)}`);
}

/** Fails unless the image comes back, byte for byte, from each of `forms`. */
export async function roundTrips(bytes: Uint8Array, forms: readonly Form[] = FORMS): Promise<void> {
  for (const form of forms) {
    sameBytes(await encode(await decode(bytes, form)), bytes, `${formName(form)} of ${bytes.length} bytes`);
  }
}

/** A pipe that gives `bytes` in pieces which end at each of `cuts`. */
export function piped(bytes: Uint8Array | string, cuts: Iterable<number> = [], name = 'standard input'): Input {
  const whole = Buffer.from(bytes);
  async function* pieces(): AsyncGenerator<Uint8Array> {
    let from = 0;
    for (const cut of [...new Set(cuts)].sort((a, b) => a - b)) {
      const to = Math.min(cut, whole.length);
      if (to <= from) continue;
      yield whole.subarray(from, to);
      from = to;
    }
    if (from < whole.length) yield whole.subarray(from);
  }
  return streamInput(pieces(), name);
}

/** Cuts after every byte. */
export const everyByte = (bytes: Uint8Array | string): number[] => Array.from(Buffer.from(bytes).keys());
