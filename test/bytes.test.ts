/** Hex and base64, with Node's Buffer as the witness, paths as text, and the buffers of outputs. */
import assert from 'node:assert/strict';
import t from 'tap';
import {
  BASE64_LINE,
  Base64Decoder,
  base64Lines,
  hex,
  isZero,
  pathBytes,
  pathText,
  putBase64Lines,
  putHex,
  takeHex,
  unbase64,
  unhex,
  viewOf,
} from '../src/bytes.js';
import { MemoryOutput } from '../src/io/output.js';
import { sameBytes } from './helpers/codec.js';
import { Random } from './helpers/random.js';

const MOST = 200;
const random = new Random(1);
const samples = Array.from({ length: MOST + 1 }, (_, size) => random.bytes(size));
/** Everything that is not a hex digit: what must be refused wherever it is. */
const notHex = [...Array(256).keys()].filter((byte) => !/[0-9a-fA-F]/.test(String.fromCharCode(byte)));

/** Text written by `put` into a buffer with canaries on both sides. */
function written(size: number, put: (to: DataView, at: number) => number): string {
  const out = Buffer.alloc(size + 8, 0xee);
  const end = put(viewOf(out), 4);
  assert.ok(out.subarray(0, 4).every((byte) => byte === 0xee) && out.subarray(end).every((byte) => byte === 0xee));
  return out.subarray(4, end).toString('latin1');
}

function hexOfEveryLength(): void {
  for (const bytes of samples) {
    const text = bytes.toString('hex');
    assert.equal(
      written(text.length, (to, at) => putHex(viewOf(bytes), 0, bytes.length, to, at)),
      text,
      `putHex of ${bytes.length} bytes`,
    );
    const digits = Buffer.from(bytes.length % 2 ? text.toUpperCase() : text);
    const back = Buffer.alloc(bytes.length + 2, 0xee);
    assert.ok(takeHex(viewOf(digits), 0, digits.length, back, 1), `takeHex of ${digits.length} digits`);
    sameBytes(back, Buffer.concat([Buffer.of(0xee), bytes, Buffer.of(0xee)]));
  }
}

function hexOfWindows(): void {
  const bytes = samples[MOST] as Buffer;
  const text = Buffer.from(bytes.toString('hex'));
  for (let from = 0; from < 5; from++) {
    for (let to = bytes.length - 4; to <= bytes.length; to++) {
      const size = to - from;
      assert.equal(
        written(size * 2, (view, at) => putHex(viewOf(bytes), from, to, view, at)),
        bytes.toString('hex', from, to),
      );
      const back = Buffer.alloc(size);
      assert.ok(takeHex(viewOf(text), from * 2, to * 2, back, 0));
      sameBytes(back, bytes.subarray(from, to));
    }
  }
}

function badDigits(): void {
  const good = Buffer.from('0123456789abcdefABCDEF');
  const out = Buffer.alloc(good.length / 2);
  const refused = (byte: number, at: number) => {
    const bad = Buffer.from(good);
    bad[at] = byte;
    return !takeHex(viewOf(bad), 0, bad.length, out, 0);
  };
  for (let at = 0; at < good.length; at++) {
    assert.ok(
      notHex.every((byte) => refused(byte, at)),
      `takeHex refuses all but hex digits at ${at}`,
    );
  }
}

// The order matters: the small tables serve until enough has been converted, then the wide ones for ever.
/** A large buffer for each of many small images is what kept the collector busiest. */
function outputsThatGrow(): void {
  const out = new MemoryOutput();
  out.text('short');
  assert.ok(out.bytes.length <= 16 * 1024, `a buffer of ${out.bytes.length} bytes for five`);
  const want: Uint8Array[] = [Buffer.from('short')];
  for (let turn = 0; turn < 400; turn++) {
    const bytes = random.bytes(random.below(turn % 40 === 0 ? 100_000 : 1000));
    want.push(bytes);
    if (turn % 2 === 0) out.write(bytes);
    else {
      out.room(bytes.length);
      out.bytes.set(bytes, out.at);
      out.at += bytes.length;
    }
  }
  sameBytes(out.take(), Buffer.concat(want));
}

t.test('hex byte by byte, as a short run does it', async (t) => {
  hexOfEveryLength();
  hexOfWindows();
  badDigits();
  t.pass(`lengths 0 to ${MOST}, windows, every byte that is no digit`);
});

t.test('hex by 16 bits, after 128 KiB', async (t) => {
  const bytes = random.bytes(300_000);
  const text = Buffer.alloc(bytes.length * 2);
  for (let at = 0; at < bytes.length; at += 1000) putHex(viewOf(bytes), at, at + 1000, viewOf(text), at * 2);
  t.equal(text.toString(), bytes.toString('hex'), 'the switch to wide tables loses nothing');
  const back = Buffer.alloc(bytes.length);
  assert.ok(takeHex(viewOf(text), 0, text.length, back, 0));
  sameBytes(back, bytes);
  hexOfEveryLength();
  hexOfWindows();
  badDigits();
  t.pass('the same again');
});

t.test('hex of small blobs', async (t) => {
  for (const bytes of samples) {
    assert.equal(hex(bytes), bytes.toString('hex'));
    sameBytes(unhex(bytes.toString('hex').toUpperCase()) as Uint8Array, bytes);
  }
  for (const text of ['0', '0g', 'zz', '00 ', ' 00', '0x00', '٠٠', '00\n']) t.equal(unhex(text), undefined, text);
});

t.test('base64 lines as crit writes them', async (t) => {
  for (const bytes of samples) {
    const mime = bytes.toString('base64').replace(/.{1,76}/g, (line) => `${line}\n`);
    assert.equal(base64Lines(bytes), mime, `${bytes.length} bytes`);
    const lines = Math.floor(bytes.length / BASE64_LINE);
    const whole = base64Lines(bytes.subarray(0, lines * BASE64_LINE)).replaceAll('\n', '\\n');
    assert.equal(
      written(whole.length, (to, at) => putBase64Lines(viewOf(bytes), 0, lines, to, at)),
      whole,
    );
  }
  t.pass(`${samples.length} lengths`);
});

/** Decodes text that comes in pieces; undefined when it is refused. */
function decoded(pieces: readonly Uint8Array[]): Buffer | undefined {
  const decoder = new Base64Decoder();
  const parts: Buffer[] = [];
  for (const piece of pieces) {
    const out = Buffer.alloc(Base64Decoder.room(piece.length));
    if (decoder.push(viewOf(piece), 0, piece.length, viewOf(out), 0) !== piece.length) return undefined;
    parts.push(out.subarray(0, decoder.written));
  }
  const out = Buffer.alloc(3);
  if (!decoder.end(viewOf(out), 0)) return undefined;
  return Buffer.concat([...parts, out.subarray(0, decoder.written)]);
}

/** Cuts `text` at up to `most` random places. */
function cut(text: string, most: number): Buffer[] {
  const whole = Buffer.from(text);
  const cuts = Array.from({ length: random.below(most + 1) }, () => random.below(whole.length + 1)).sort(
    (a, b) => a - b,
  );
  return [0, ...cuts].map((from, i) => whole.subarray(from, cuts[i] ?? whole.length));
}

t.test('base64 back to bytes, at any cut, with any line ends', async (t) => {
  for (const bytes of samples) {
    const plain = bytes.toString('base64');
    const forms = [
      plain,
      base64Lines(bytes),
      base64Lines(bytes).replaceAll('\n', '\r\n'),
      plain.replace(/./g, '$& \t'),
    ];
    for (const text of forms) {
      sameBytes(unbase64(text) as Uint8Array, bytes);
      for (let i = 0; i < 10; i++) sameBytes(decoded(cut(text, 8)) as Buffer, bytes, JSON.stringify(text));
      sameBytes(decoded(Array.from(Buffer.from(text), (byte) => Buffer.of(byte))) as Buffer, bytes);
    }
    // Within JSON text the line end is the two characters \n, which a caller must not cut apart.
    sameBytes(decoded([Buffer.from(base64Lines(bytes).replaceAll('\n', '\\n'))]) as Buffer, bytes);
  }
  t.pass(`${samples.length} lengths`);
});

t.test('what is not base64 is refused', async (t) => {
  const good = Buffer.from('the quick brown fox').toString('base64'); // ends in ==
  const allowed = new Set('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/ \t\r\n');
  for (let at = 0; at < good.length - 2; at++) {
    for (let byte = 0; byte < 256; byte++) {
      if (allowed.has(String.fromCharCode(byte))) continue;
      const bad = Buffer.from(good);
      bad[at] = byte;
      assert.equal(decoded([bad]), undefined, `byte 0x${byte.toString(16)} at ${at}`);
    }
  }
  for (const text of [
    'A',
    'AA',
    'AAA',
    'AA=',
    'AAA==',
    'AA===',
    '=',
    '====',
    'A===',
    'AA==A',
    'AA==AAAA',
    'AAAA=',
    'A=AA',
    'AA=A',
  ]) {
    t.equal(unbase64(text), undefined, text);
    for (let i = 0; i < 5; i++) assert.equal(decoded(cut(text, 3)), undefined, `${text}, cut`);
  }
  t.equal(unbase64('AA—='), undefined, 'a character beyond ASCII');
});

t.test('zeroes', async (t) => {
  t.ok(isZero(Buffer.alloc(9)));
  t.ok(isZero(Buffer.from([1, 0, 0, 1]), 1, 3));
  t.notOk(isZero(Buffer.from([0, 0, 1]), 1));
  t.ok(isZero(Buffer.alloc(0)));
});

t.test('paths as text: UTF-8 as it is, and the bytes of all else', async (t) => {
  for (const [bytes, text] of [
    ['/sys/fs/bpf/a pin', '/sys/fs/bpf/a pin'],
    ['flüsse/\u{1f41d}/\ufffd', 'flüsse/\u{1f41d}/\ufffd'],
    [Buffer.from('a\xff\xc3\xa9\xe2\x82', 'latin1'), 'a\\xffé\\xe2\\x82'],
    [Buffer.from('\xc3(\xed\xa0\x80\xf0\x9f\x90', 'latin1'), '\\xc3(\\xed\\xa0\\x80\\xf0\\x9f\\x90'],
    ['a\\b', 'a\\x5cb'],
    ['\\x41', '\\x5cx41'],
    // What the terminal would act on.
    ['a\n\x1b\u009b\u202eb', 'a\\x0a\\x1b\\xc2\\x9b\\xe2\\x80\\xaeb'],
    ['', ''],
  ] as const) {
    t.equal(pathText(Buffer.from(bytes as string)), text);
    sameBytes(pathBytes(text), Buffer.from(bytes as string));
  }
  t.equal(String(pathBytes('a\\b\\x4\\x4g\\xC3\\xa9')), 'a\\b\\x4\\x4gé', 'a backslash that begins nothing is one');
  for (let i = 0; i < 2000; i++) {
    const bytes = Buffer.from(random.bytes(random.below(12)).map((byte) => (byte % 3 === 0 ? 0x5c : byte)));
    sameBytes(pathBytes(pathText(bytes)), bytes);
  }
});

t.test('outputs grow with what goes through them', async () => outputsThatGrow());
