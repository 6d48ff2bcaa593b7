/** What a program can tell of an error without reading its message. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import {
  BpfimgError,
  bufferInput,
  encodeDocument,
  encodeImage,
  ImageReader,
  KernelError,
  MapTypes,
  MemoryOutput,
  openInput,
  PointerError,
  parseReport,
  plugins,
  reportText,
  Verifier,
} from '../src/index.js';
import { image, item, mapData } from './helpers/images.js';

async function refusal(run: Promise<unknown>): Promise<BpfimgError> {
  try {
    await run;
  } catch (error) {
    if (error instanceof BpfimgError) return error;
    throw error;
  }
  throw new Error('it was accepted');
}

const two = image('BPFMAP_DATA', mapData(1, [item('aa', 'bbcc')]), mapData(2, []));

async function readAll(bytes: Buffer, name: string): Promise<void> {
  const reader = await ImageReader.open(bufferInput(bytes, name));
  for await (const _ of reader.entries());
}

t.test('of an image: the file and the byte', async (t) => {
  const cut = await refusal(readAll(two.subarray(0, two.length - 1), 'a: b.img'));
  const offset = two.length - mapData(2, []).length;
  t.match(cut, { kind: 'badImage', code: 'bad-image', subject: 'a: b.img', offset, pointer: undefined });
  t.equal(cut.message, `a: b.img: ${cut.text}`);
  t.match(cut.text, `entry 1 at offset ${offset}: `);

  // A tag of an impossible kind within the first message, behind magic and size.
  const broken = Buffer.from(two);
  broken[12] = 0x07;
  const tag = await refusal(readAll(broken, 'x.img'));
  t.match(tag, { kind: 'badImage', offset: 12, text: /\(byte 12\)$/ });
  t.match(await refusal(readAll(Buffer.from('nothing of the kind'), 'x.img')), { offset: 0 });
});

t.test('of JSON: pointer, line and column', async (t) => {
  const file = path.join(t.testdir(), 'a: b.json');
  const text = '{ "magic": "BPFMAP_DATA", "entries": [\n  { "map_id": -1,\n    "items": [] } ] }\n';
  fs.writeFileSync(file, text);
  const input = await openInput(file);
  t.teardown(() => input.close());
  const error = await refusal(encodeImage(input, new MemoryOutput()));
  const place = { pointer: '/entries/0/map_id', line: 2, column: 15, offset: text.indexOf('-1') };
  t.match(error, { kind: 'badJson', subject: file, ...place });
  t.equal(error.message, `${file}: ${error.pointer}: ${error.text}`);
  t.match(error.text, /^must be .* \(line 2, column 15\)$/);

  const piped = await refusal(encodeImage(bufferInput(Buffer.from(text), 'x'), new MemoryOutput()));
  t.match(piped, { pointer: '/entries/0/map_id', line: undefined, column: undefined });
});

t.test('of a maps document: the pointer leads through the document', async (t) => {
  const map = { map_id: 1, type: 'hash', key_size: 4, value_size: 4, max_entries: 9, name: 'm', map_flags: 'no' };
  const text = JSON.stringify({ format: 'bpfimg-maps/1', maps: [{ ...map, files: [{ id: 1 }] }] });
  const dir = path.join(t.testdir(), 'dump');
  const error = await refusal(encodeDocument(bufferInput(Buffer.from(text), 'x'), dir, false, new MapTypes(plugins)));
  t.match(error, { kind: 'badJson', subject: 'x', pointer: '/maps/0/map_flags' });
});

t.test('of the kernel: call, errno, and what of which map', async (t) => {
  const error = new KernelError('map 1 (a)', 'BPF_MAP_UPDATE_ELEM', 7).of('item 00');
  t.match(error, { subject: 'map 1 (a)', part: 'item 00', code: 'E2BIG', call: 'BPF_MAP_UPDATE_ELEM' });
  t.equal(error.message, `map 1 (a), item 00: BPF_MAP_UPDATE_ELEM: E2BIG (${error.reason})`);
  const named = error.about('map 9 (b)');
  t.equal(named.message, `map 9 (b), item 00: ${error.text}`);
  t.ok(named instanceof KernelError);
});

t.test('names stay what they are, messages are one line', async (t) => {
  const error = new BpfimgError('io', 'no\nfile', { subject: 'a\nb', cause: 1 });
  t.match(error, { message: 'a\\x0ab: no\\x0afile', text: 'no\\x0afile', subject: 'a\nb', cause: 1 });
  t.equal(error.textAbout('a\nb'), error.text);
  t.equal(error.textAbout('other'), error.message);
  const inner = new PointerError('/b', 'is wrong').within('/a');
  t.match(inner, { kind: 'badJson', pointer: '/a/b', text: 'is wrong', message: '/a/b: is wrong' });
});

t.test('a finding has the text, for any name of the file', async (t) => {
  const verifier = new Verifier(new MapTypes(plugins), 'x.img');
  await verifier.readThrough(bufferInput(two.subarray(0, two.length - 1), 'a: b.img'));
  t.match(verifier.findings, [{ code: 'bad-image', message: /^entry 1 at offset/ }]);
});

t.test('reports and their lines', async (t) => {
  for (const line of ['full', 'partial: a: b', 'metadata only: two\nlines', 'not supported: it is gone', 'partial']) {
    t.equal(reportText(parseReport(line)), line);
  }
  t.same(parseReport('partial: a: b'), { kind: 'partial', why: 'a: b' });
  t.same(parseReport('metadata only'), { kind: 'metadata only', why: '' });
  t.same(parseReport('fuller than full'), { kind: 'partial', why: 'fuller than full' }, 'not a line of ours');
});
