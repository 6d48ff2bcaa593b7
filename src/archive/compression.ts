/** How an archive is compressed, which its first bytes say, and its bytes uncompressed. */
import type { Duplex } from 'node:stream';
import { BpfimgError, errnoOf, firstLine } from '../errors.js';
import { Cursor, type Input, streamInput } from '../io/input.js';
import { BLOCK, isHeader, isZero } from './header.js';

/** The forms of an archive: tar, alone or in gzip or zstd. */
export type Format = 'tar' | 'gzip' | 'zstd';

/** Bytes that {@link archiveFormat} needs to recognise an archive: its first block, or all there are. */
export const HEAD = BLOCK;

/** Largest window of a zstd frame, which is held in memory: the default limit of `zstd -d`. */
const WINDOW_LOG = 27;

/**
 * The format of the archive that begins with `head`, its first {@link HEAD} bytes; undefined if it is no archive. Names
 * mean nothing: podman writes zstd into NAME.tar.gz.
 */
export function archiveFormat(head: Uint8Array): Format | undefined {
  if (head[0] === 0x1f && head[1] === 0x8b) return 'gzip';
  if (head.length >= 4) {
    const magic = Buffer.from(head.buffer, head.byteOffset, 4).readUInt32LE();
    // The latter begin frames to be skipped.
    if (magic === 0xfd2fb528 || magic >>> 4 === 0x184d2a5) return 'zstd';
  }
  if (head.length < BLOCK) return undefined;
  const block = head.subarray(0, BLOCK);
  return isZero(block) || (block[0] !== 0 && isHeader(block)) ? 'tar' : undefined;
}

/** The uncompressed bytes of an archive, to be read in order. Closing it closes `input`. */
export async function decompressed(input: Input, format: Format): Promise<Input> {
  if (format === 'tar') return input;
  let open = true;
  // Node reads ahead: do not read from a closed input.
  const read: Input['read'] = (into, position) => (open ? input.read(into, position) : 0);
  const chunks = await (format === 'gzip' ? gunzip : unzstd)({ ...input, read });
  return streamInput(chunks, input.name, () => {
    open = false;
    void chunks.return();
    input.close();
  });
}

async function* chunksOf(input: Input): AsyncGenerator<Uint8Array, void, undefined> {
  const cursor = new Cursor(input);
  while ((await cursor.fill()) > 0) yield await cursor.take(cursor.ready);
}

async function gunzip(input: Input): Promise<AsyncGenerator<Uint8Array, void, undefined>> {
  const { createGunzip } = await import('node:zlib');
  return through(input, createGunzip({ chunkSize: 256 * 1024 }), 'gzip');
}

/** The output of a Node stream that gets the bytes of `input`. */
async function* through(input: Input, stream: Duplex, format: string): AsyncGenerator<Uint8Array, void, undefined> {
  const { pipeline, Readable } = await import('node:stream');
  const done = pipeline(Readable.from(chunksOf(input), { objectMode: false }), stream, () => {});
  try {
    for await (const chunk of done) yield chunk as Uint8Array;
  } catch (error) {
    throw broken(input, format, error);
  } finally {
    stream.destroy();
  }
}

function broken({ name }: Input, format: string, error: unknown): unknown {
  if (error instanceof BpfimgError) return error;
  const cut = errnoOf(error) === 'Z_BUF_ERROR' || /incomplete|unexpected end/i.test(firstLine(error));
  const what = cut ? 'it is cut off' : `its ${format} data is broken: ${firstLine(error)}`;
  return new BpfimgError('badImage', what, { subject: name, cause: error });
}

async function unzstd(input: Input): Promise<AsyncGenerator<Uint8Array, void, undefined>> {
  const { ZSTDDecoder } = await import('zstddec/stream');
  const decoder = new ZSTDDecoder();
  await decoder.init();
  return zstdChunks(input, decoder);
}

/** The part of zstddec's decoder that is used here. */
interface ZstdDecoder {
  decodeStreaming(chunks: Iterable<Uint8Array>): Iterator<Uint8Array>;
}

/** The decoder takes chunks synchronously, so one must always be ready. */
async function* zstdChunks(input: Input, decoder: ZstdDecoder): AsyncGenerator<Uint8Array, void, undefined> {
  const cursor = new Cursor(input);
  let waiting: Uint8Array | undefined = await chunkOf(cursor);
  checkWindow(input, waiting);
  const taken = decoder.decodeStreaming({
    *[Symbol.iterator]() {
      while (waiting !== undefined) {
        const chunk = waiting;
        waiting = undefined;
        yield chunk;
      }
    },
  });
  /** Empty pieces in a row. */
  let empty = 0;
  let ended = false;
  for (;;) {
    if (waiting === undefined && !ended) {
      waiting = await chunkOf(cursor);
      ended = waiting === undefined;
    }
    let next: IteratorResult<Uint8Array>;
    const had: Uint8Array | undefined = waiting;
    try {
      next = taken.next();
    } catch (error) {
      throw broken(input, 'zstd', error);
    }
    if (next.done) return;
    if (next.value.length > 0) {
      empty = 0;
      yield next.value;
    } else if (had === waiting && ++empty > 1) {
      // The decoder reports no error, but makes no progress either.
      throw new BpfimgError(
        'badImage',
        'its zstd data is broken, or it was compressed with a window of more than 128 MiB',
        {
          subject: input.name,
        },
      );
    }
  }
}

async function chunkOf(cursor: Cursor): Promise<Uint8Array | undefined> {
  return (await cursor.fill()) > 0 ? cursor.take(cursor.ready) : undefined;
}

/** @throws BpfimgError if the first frame needs more memory than it may use */
function checkWindow(input: Input, head: Uint8Array | undefined): void {
  if (head === undefined || head.length < 6 || ((head[4] as number) & 0x20) !== 0) return;
  const magic = Buffer.from(head.buffer, head.byteOffset, 4).readUInt32LE();
  const log = 10 + ((head[5] as number) >> 3);
  if (magic !== 0xfd2fb528 || log + ((head[5] as number) & 7 ? 1 : 0) <= WINDOW_LOG) return;
  throw new BpfimgError(
    'unsupported',
    `compressed with a window of ${2 ** (log - 20)} MiB or more, the largest that is supported has ${2 ** (WINDOW_LOG - 20)} MiB`,
    { subject: input.name },
  );
}
