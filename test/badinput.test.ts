/** Bad input is the user's news: one line that says which file, what is wrong, where, and what was expected. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { gzipSync } from 'node:zlib';
import t from 'tap';
import { BpfimgError } from '../src/errors.js';
import { openInput } from '../src/io/input.js';
import { decode, encode, piped, type Source } from './helpers/codec.js';
import { TOP } from './helpers/command.js';
import { fixture } from './helpers/fixtures.js';
import { blob, COMMON, dataMessage, entry, image, item, MAGIC, mapData, scalar, words } from './helpers/images.js';
import { patience } from './helpers/needs.js';

t.setTimeout(patience(300_000));

/** The message of the failure that `run` must end in. */
async function news(run: Promise<unknown>, kind: BpfimgError['kind'], name: string): Promise<string> {
  try {
    await run;
  } catch (error) {
    if (!(error instanceof BpfimgError)) throw error;
    const { message } = error;
    if (error.kind !== kind) throw new Error(`${error.kind}, expected ${kind}: ${message}`);
    if (error.subject !== name || !message.startsWith(`${name}: `)) {
      throw new Error(`it is not about ${name}: ${message}`);
    }
    // biome-ignore lint/suspicious/noControlCharactersInRegex: what must not reach a terminal
    if (/[\x00-\x1f\x7f-\x9f\u2028\u2029]/.test(message))
      throw new Error(`more than a line: ${JSON.stringify(message)}`);
    if (message.length > 1000) throw new Error(`${message.length} characters: ${message.slice(0, 200)}`);
    return message.slice(name.length + 2);
  }
  throw new Error('it was accepted');
}

const badImage = (source: Source, name = 'x.img') => news(decode(source, 'items'), 'badImage', name);
const badJson = (source: Source, name = 'x.json') => news(encode(source), 'badJson', name);

// ---------------------------------------------------------------------------------------------------
// Images

const two = image('BPFMAP_DATA', mapData(1, [item('aa', 'bbcc')]), mapData(2, []));

t.test('an image cut off anywhere is refused or ends at an entry', async (t) => {
  for (const name of ['bpfmap-data.img', 'files.img', 'fdinfo-3.img', 'pstree.img', 'inventory.img']) {
    const whole = fixture(`flowd/${name}`);
    const ends = entryEnds(whole, name);
    // All of a small image, the ends and a sample of a large one.
    const cuts = [...whole.keys()].filter(
      (at) => whole.length < 2000 || at % 97 === 0 || ends.some((end) => Math.abs(end - at) < 6),
    );
    for (const at of cuts) {
      const part = whole.subarray(0, at);
      for (const source of [part, piped(part, [], 'x.img')]) {
        if (ends.includes(at)) await decode(source, 'items');
        else {
          const message = await badImage(source);
          if (at > 8) assert.match(message, /^entry \d+ at offset \d+: /);
        }
      }
    }
    t.pass(`${name}, ${cuts.length} places`);
  }
});

/** Where an image may end. */
function entryEnds(bytes: Buffer, name: string): number[] {
  const ends = [name === 'inventory.img' ? 4 : 8];
  for (let at = ends[0] as number; at < bytes.length; ends.push(at)) {
    at += 4 + bytes.readUInt32LE(at);
    if (name === 'bpfmap-data.img') at += extraOf(bytes.subarray(ends.at(-1) as number, at));
  }
  return ends;
}

/** The sum of the second and third field of a data message, which must be what CRIU writes. */
function extraOf(message: Buffer): number {
  const numbers: number[] = [];
  for (let at = 4; at < message.length; ) {
    let value = 0;
    for (let shift = 1; ; shift *= 128) {
      const byte = message[at++] as number;
      value += (byte & 0x7f) * shift;
      if (byte < 0x80) break;
    }
    numbers.push(value);
  }
  return (numbers[3] as number) + (numbers[5] as number);
}

t.test('what is wrong with an image, and where', async (t) => {
  const head = words(COMMON, MAGIC.BPFMAP_DATA);
  const lying = (keys: number, values: number, count: number) =>
    image('BPFMAP_DATA', entry(dataMessage(1, keys, values, count)));
  const table: readonly [what: string, bytes: Uint8Array, message: string | RegExp][] = [
    ['nothing', Buffer.alloc(0), '0 bytes, expected a 4-byte image magic'],
    ['3 bytes', Buffer.from([1, 2, 3]), '3 bytes, expected a 4-byte image magic'],
    ['a head alone', words(COMMON), 'ends after 4 bytes, expected the magic of its kind at offset 4'],
    ['a head and half a magic', head.subarray(0, 6), 'ends after 6 bytes, expected the magic of its kind at offset 4'],
    [
      'half a size',
      Buffer.concat([two, words(7).subarray(0, 3)]),
      'entry 2 at offset 35: 3 bytes left, expected a 4-byte entry size',
    ],
    [
      'a message of 4 GiB in 20 bytes',
      Buffer.concat([head, words(0xffffffff, 0, 0)]),
      'entry 0 at offset 8: message needs 4294967295 bytes, 8 left',
    ],
    [
      'a negative size',
      Buffer.concat([head, words(0xfffffff0, 1)]),
      'entry 0 at offset 8: message needs 4294967280 bytes, 4 left',
    ],
    [
      'keys of 4 GiB',
      lying(0xffffffff, 0, 1),
      'entry 0 at offset 8: expected 4294967295 bytes after its message, got 0 (is the image truncated?)',
    ],
    [
      'keys and values of 8 GiB',
      lying(0xffffffff, 0xffffffff, 1),
      'entry 0 at offset 8: expected 8589934590 bytes after its message, got 0 (is the image truncated?)',
    ],
    [
      'an empty message',
      Buffer.concat([two, words(0)]),
      'entry 2 at offset 35: required field map_id (1) is missing in bpfmap_data_entry (byte 39)',
    ],
    [
      'a wrong wire type',
      image('FILES', entry(Buffer.concat([scalar(1, 1), blob(2, two)]))),
      'entry 0 at offset 8: id: wire type 2 (bytes), expected 0 (varint) (byte 14)',
    ],
    [
      'a broken nested message',
      image('FILES', entry(Buffer.concat([scalar(1, 1), scalar(2, 1), blob(3, Buffer.of(8))]))),
      'entry 0 at offset 8: reg: a varint runs past the end of its message (byte 19)',
    ],
    [
      'a varint too long',
      image('BPFMAP_DATA', entry(scalar(1, 1, 11))),
      'entry 0 at offset 8: a varint is longer than 64 bits (byte 13)',
    ],
    [
      'a number too large',
      image('PSTREE', entry(scalar(1, 2 ** 33))),
      'entry 0 at offset 8: pid: 8589934592 does not fit uint32 (byte 12)',
    ],
    [
      'memory pages',
      Buffer.alloc(4096, 'x'),
      /^first word 0x78787878 is not an image magic; it is probably raw data such as memory pages \(pages-\*\.img\)/,
    ],
    ['zeroes', Buffer.alloc(4096), /^first word 0x00000000 is not an image magic; it is probably raw data/],
    [
      'an ELF file',
      Buffer.from('\x7fELF\x02\x01\x01\0'),
      'first word 0x464c457f is not an image magic; it is an ELF file',
    ],
    [
      'JSON',
      Buffer.from('{"magic":"FILES","entries":[]}'),
      /is not an image magic; it looks like JSON: `bpfimg encode` converts it to an image$/,
    ],
    ['JSON after a blank', Buffer.from('\n {"magic"'), /it looks like JSON/],
    ['gzip', gzipSync(two), /is not an image magic; it is compressed: unpack it first$/],
    ['xz', Buffer.from('fd377a585a0000', 'hex'), /it is compressed: unpack it first$/],
    ...['gnu', 'ustar', 'pax'].map((format): [string, Buffer, RegExp] => [
      `a tar archive (${format})`,
      execFileSync('tar', [`--format=${format}`, '-c', '-C', path.join(TOP, 'fixtures'), 'flowd/bpfmap-data.img']),
      /^it is a tar archive: unpack it first$/,
    ]),
    ['zstd', Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0, 0]), /it is compressed: unpack it first$/],
    [
      'a big-endian image',
      Buffer.from([0x54, 0x56, 0x43, 0x19, 0x64, 0x32, 0x40, 0x33]),
      /it is a big-endian image \(from s390x\?\), bpfimg reads little-endian ones$/,
    ],
    ['a big-endian v1.0 image', Buffer.from([0x64, 0x32, 0x40, 0x33]), /it is a big-endian image/],
    ['a core image', words(COMMON, 0x55053847), 'it is a CORE image, which bpfimg does not decode (crit does)'],
    ['an image that crit does not decode, either', words(COMMON, 0x54435556), /^it is a PIDFD image, which .* decode$/],
    ['an mm image of v1.0', words(0x57492820), 'it is a MM image, which bpfimg does not decode (crit does)'],
    ['a service image', words(0x55105940, 0x57093306), 'it is a STATS image, which bpfimg does not decode (crit does)'],
    [
      'a kind nobody knows',
      words(COMMON, 0x12345678),
      /^unknown image kind 0x12345678 at offset 4, expected one of BPFMAP_BTF, BPFMAP_DATA,/,
    ],
    [
      'a message of 9 MiB',
      image('PSTREE', entry(Buffer.alloc(9 << 20))),
      'entry 0 at offset 8: message of 9437184 bytes, bpfimg reads at most 4194304',
    ],
  ];
  for (const [what, bytes, message] of table) t.match(await badImage(bytes), message, what);
});

t.test('a pipe that ends too soon says the same as a file', async (t) => {
  const data = mapData(1, [item('0001', 'aabbcc'), item('0002', 'ddeeff')]);
  const whole = image('BPFMAP_DATA', mapData(9, []), data);
  for (let at = 9; at < whole.length; at++) {
    const part = whole.subarray(0, at);
    if (at === whole.length - data.length) continue;
    for (const dialect of ['items', 'crit', 'ndjson'] as const) {
      const file = await news(decode(part, dialect), 'badImage', 'x.img');
      const pipe = await news(decode(piped(part, [], 'x.img'), dialect), 'badImage', 'x.img');
      assert.equal(pipe, file, `${dialect}, cut at ${at}`);
    }
  }
  const lying = Buffer.concat([words(COMMON, MAGIC.BPFMAP_DATA, 0xffffffff), Buffer.alloc(100)]);
  t.match(await badImage(piped(lying, [], 'x.img')), 'message of 4294967295 bytes, bpfimg reads at most 4194304');
});

// ---------------------------------------------------------------------------------------------------
// JSON

const magic = '"magic":"BPFMAP_DATA"';
const doc = (entries: string) => `{${magic},"entries":[${entries}]}`;
const items = (list: string, more = '') => doc(`{"map_id":1${more},"items":[${list}]}`);
const crit = (members: string) => doc(`{"map_id":1,"keys_bytes":2,"values_bytes":3,"count":1,${members}}`);
const regular = '{"id":1,"flags":0,"pos":0,"fown":{"uid":0,"euid":0,"signum":0,"pid_type":0,"pid":0},"name":"x"}';
const files = (entry: string) => `{"magic":"FILES","entries":[${entry}]}`;

t.test('what is wrong with JSON, and where', async (t) => {
  const table: readonly [what: string, text: string | Uint8Array, message: string | RegExp][] = [
    // No JSON
    ['nothing', '', 'the text ends here, expected a JSON object (byte 0)'],
    ['blanks', ' \n\t', 'the text ends here, expected a JSON object (byte 3)'],
    ['a list', '[]', 'expected a JSON object, found "[" (byte 0)'],
    ['prose', 'hello', 'expected a JSON object, found "h" (byte 0)'],
    ['a byte order mark', '\ufeff{}', /^expected a JSON object, found byte 0xef/],
    ['an image', two, 'expected JSON, found an image: `bpfimg decode` converts it to JSON (byte 0)'],
    ['text that ends', `{${magic},"entries":[`, '/entries/0: the text ends here, expected an object (byte 34)'],
    ['text that ends in a string', `{${magic},"entries":[{"map`, '/entries/0: the text ends inside a string (byte 39)'],
    [
      'text that ends behind an item',
      items('{"key":"00","value":"00"}').slice(0, -3),
      '/entries/0: the text ends here, expected "," or "}"',
    ],
    ['a comma too many', items('{"key":"00","value":"00"},'), '/entries/0/items/1: expected an object, found "]"'],
    [
      'a comma too few',
      items('{"key":"00","value":"00"}{"key":"00","value":"00"}'),
      '/entries/0/items/0: expected "," or "]", found "{"',
    ],
    ['single quotes', "{'magic':'FILES'}", `expected a member name, found "'" (byte 1)`],
    ['a bare name', '{magic:"FILES"}', 'expected a member name, found "m" (byte 1)'],
    [
      'a form feed between items',
      items('\f{"key":"00","value":"00"}'),
      '/entries/0/items/0: expected an object, found byte 0xc',
    ],
    ['text behind the end', `${doc('')} x`, 'expected the end of the document, found "x" (byte 37)'],
    ['two documents', `${doc('')}${doc('')}`, 'expected the end of the document, found "{"'],
    ['NaN', files(`{"type":NaN,"id":1}`), '/entries/0/type: expected a JSON value, found "NaN"'],
    ['a number like 01', files(`{"type":1,"id":01}`), '/entries/0/id: expected a JSON value, found "01"'],
    [
      'a raw line end in a string',
      files('{"type":"RE\nG","id":1}'),
      '/entries/0/type: control character 0xa in a string',
    ],
    ['an unknown escape', files('{"type":"\\x41","id":1}'), '/entries/0/type: "\\x" is not an escape'],
    ['half an escape', files('{"type":"\\u12G4","id":1}'), '/entries/0/type: "\\u" needs four hex digits'],
    [
      'half a surrogate pair',
      files('{"type":"\\ud800","id":1}'),
      '/entries/0/type: half of a surrogate pair in a string',
    ],
    ['the other half', files('{"type":"\\udc00","id":1}'), '/entries/0/type: half of a surrogate pair in a string'],
    [
      'text that is not UTF-8',
      Buffer.from(files('{"type":"\xff","id":1}'), 'latin1'),
      '/entries/0/type: text is not UTF-8',
    ],
    ['deep nesting', files(`{"type":1,"id":${'['.repeat(100_000)}`), /nested deeper than 64 levels/],
    ['deep nesting in what is put aside', `{"entries":${'['.repeat(300_000)}`, 'the text ends within a value'],
    [
      'a text of 33 MiB',
      files(`{"type":"${'x'.repeat(33 << 20)}"}`),
      /^\/entries\/0\/type: text of more than 33554432 bytes/,
    ],
    [
      'texts of 33 MiB in all',
      files(`{"type":[${Array.from({ length: 33 }, () => `"${'x'.repeat(1 << 20)}"`).join(',')}]}`),
      /^\/entries\/0\/type\/3[0-9]: text of more than 33554432 bytes in one value/,
    ],
    [
      'texts of 33 MiB in all, in small objects',
      files(`{"type":[${Array.from({ length: 17_000 }, () => `{"a":"${'x'.repeat(2000)}"}`).join(',')}]}`),
      /^\/entries\/0\/type\/1[67]\d{3}: text of more than 33554432 bytes in one value/,
    ],
    ['a name of 1 MiB', `{"${'x'.repeat(1 << 20)}":1}`, 'text of more than 1024 bytes (byte 1)'],
    // No image
    ['no magic', '{}', 'member "magic" is missing (byte 0)'],
    ['no magic but entries', '{"entries":[]}', 'member "magic" is missing (byte 0)'],
    [
      'an unknown kind',
      '{"magic":"PAGES","entries":[]}',
      /^\/magic: unknown image kind "PAGES", expected one of BPFMAP_BTF, /,
    ],
    ['a kind that only crit has', '{"magic":"CORE","entries":[]}', /^\/magic: unknown image kind "CORE"/],
    ['a number for magic', '{"magic":5,"entries":[]}', /^\/magic: unknown image kind, expected one of/],
    ['an unknown head', `{${magic},"head":"v2","entries":[]}`, '/head: must be none, common or service (byte 30)'],
    ['a head behind the entries', `{${magic},"entries":[],"head":"none"}`, '/head: must come before "entries"'],
    [
      'an unknown member',
      `{${magic},"entris":[]}`,
      '/entris: unknown member, an image has "magic", "head" and "entries"',
    ],
    ['an unknown member with a line end in its name', '{"a\\nb":1}', '/a\\x0ab: unknown member'],
    ['magic twice', `{${magic},${magic},"entries":[]}`, 'member "magic" appears twice (byte 23)'],
    ['entries twice', `{${magic},"entries":[],"entries":[]}`, 'member "entries" appears twice'],
    ['no list of entries', `{${magic},"entries":{}}`, '/entries: expected a list, found "{"'],
    ['no object for an entry', doc('5'), '/entries/0: expected an object, found "5"'],
    // Items
    [
      'the fourth item',
      items(`${'{"key":"00","value":"00"},'.repeat(3)}{"key":"0","value":"00"}`),
      '/entries/0/items/3/key: must be bytes in hex, two digits each, got an odd number of digits',
    ],
    [
      'an odd number of digits',
      items('{"key":"0","value":"00"}'),
      '/entries/0/items/0/key: must be bytes in hex, two digits each, got an odd number of digits',
    ],
    [
      'what is not hex',
      items('{"key":"0g","value":"00"}'),
      '/entries/0/items/0/key: must be bytes in hex, two digits each',
    ],
    [
      '0x in front',
      items('{"key":"0x12","value":"00"}'),
      '/entries/0/items/0/key: must be bytes in hex, two digits each',
    ],
    [
      'blanks between bytes',
      items('{"key":"00 11","value":"00"}'),
      '/entries/0/items/0/key: must be bytes in hex, two digits each',
    ],
    [
      'a number for a key',
      items('{"key":12,"value":"00"}'),
      '/entries/0/items/0/key: expected bytes in hex, two digits each, found "1"',
    ],
    [
      'a key too short',
      items('{"key":"0011","value":"00"},{"key":"00","value":"00"}'),
      '/entries/0/items/1/key: the key has 1 bytes, expected 2 as in the rest of the map',
    ],
    [
      'a key too long',
      items('{"key":"00","value":"00"},{"key":"0011","value":"00"}'),
      '/entries/0/items/1/key: the key has 2 bytes, expected 1 as in the rest of the map',
    ],
    [
      'a value of another size',
      items('{"key":"00","value":"00"},{"key":"01","value":""}'),
      '/entries/0/items/1/value: the value has 0 bytes, expected 1 as in the rest of the map',
    ],
    [
      'a key unlike key_size',
      items('{"key":"0011","value":"00"}', ',"key_size":4'),
      '/entries/0/items/0/key: the key has 2 bytes, expected 4',
    ],
    [
      'a value_size behind the items',
      doc('{"map_id":1,"items":[{"key":"00","value":"00"}],"value_size":2}'),
      '/entries/0/value_size: says 2, but the items have 1',
    ],
    ['no key', items('{"value":"00"}'), '/entries/0/items/0: member "key" is missing'],
    ['no value', items('{"key":"00"}'), '/entries/0/items/0: member "value" is missing'],
    ['a key twice', items('{"key":"00","key":"01","value":"00"}'), '/entries/0/items/0: member "key" appears twice'],
    [
      'an unknown member of an item',
      items('{"key":"00","value":"00","ttl":3}'),
      '/entries/0/items/0/ttl: unknown member, an item has "key" and "value"',
    ],
    [
      'per-CPU values',
      items('{"key":"00","values":["00"]}'),
      '/entries/0/items/0/values: only the items of a per-CPU map have "values"',
    ],
    ['items without a byte', items('{"key":"","value":""}'), '/entries/0: its items have neither key nor value bytes'],
    [
      'items and extra',
      doc('{"map_id":1,"items":[],"extra":""}'),
      '/entries/0: an entry has either "items" or "extra"',
    ],
    ['neither', doc('{"map_id":1}'), '/entries/0: member "items" (in crit, "extra") is missing'],
    ['no map_id', doc('{"items":[]}'), '/entries/0: member "map_id" is missing'],
    ['a negative map_id', doc('{"map_id":-1,"items":[]}'), '/entries/0/map_id: must be >= 0'],
    ['a map_id of 2^32', doc('{"map_id":4294967296,"items":[]}'), '/entries/0/map_id: must be <= 4294967295'],
    ['a map_id of 2^64', doc('{"map_id":18446744073709551616,"items":[]}'), '/entries/0/map_id: must be <= 4294967295'],
    ['text for map_id', doc('{"map_id":"one","items":[]}'), '/entries/0/map_id: must be a whole number'],
    ['a count beside items', doc('{"map_id":1,"count":0,"items":[]}'), /\/entries\/0(\/count)?: unknown member/],
    ['the name of the map', doc('{"map_id":1,"name":"flows","items":[]}'), /\/entries\/0\/name: unknown member, /],
    ['__proto__', doc('{"map_id":1,"__proto__":{},"items":[]}'), /\/entries\/0\/__proto__: unknown member/],
    // crit
    ['too few bytes', crit('"extra":"AAAA"'), '/entries/0: "extra" has 3 bytes, keys_bytes + values_bytes says 5'],
    ['too many bytes', crit('"extra":"AAAAAAAA"'), '/entries/0: "extra" has 6 bytes, keys_bytes + values_bytes says 5'],
    [
      'no bytes',
      doc('{"map_id":1,"keys_bytes":2,"values_bytes":3,"count":1}'),
      '/entries/0: "extra" has 0 bytes, keys_bytes + values_bytes says 5',
    ],
    ['what is not base64', crit('"extra":"AAA*AAA="'), '/entries/0/extra: must be bytes in base64'],
    [
      'base64 without its end',
      crit('"extra":"AAAAAAA"'),
      '/entries/0/extra: must be bytes in base64, the last digits are missing',
    ],
    ['base64 behind its end', crit('"extra":"AAAAAAA=A"'), '/entries/0/extra: must be bytes in base64'],
    ['a member behind extra', crit('"extra":"AAAAAAA=","$raw":""'), '/entries/0/$raw: must come before "extra"'],
    [
      'a count of 2^32',
      doc('{"map_id":1,"keys_bytes":0,"values_bytes":0,"count":4294967296,"extra":""}'),
      '/entries/0/count: must be <= 4294967295',
    ],
    [
      'a $raw of another message',
      crit('"$raw":"0801","extra":""'),
      '/entries/0/$raw: is not a bpfmap_data_entry: required field keys_bytes (2) is missing',
    ],
    ['a $raw that is not hex', crit('"$raw":"0","extra":""'), '/entries/0/$raw: must be bytes in hex, two digits each'],
    [
      'left out (crit --nopl)',
      crit('"extra":"... <7.8KB>"'),
      '/entries/0/extra: keys and values were left out (--nopl), there is nothing to encode',
    ],
    [
      'left out (items --nopl)',
      doc('{"map_id":1,"key_size":4,"value_size":4,"items":"... <7.8KB>"}'),
      '/entries/0/items: keys and values were left out (--nopl), there is nothing to encode',
    ],
    [
      'left out (ndjson --nopl)',
      `{${magic}}\n{"map_id":1,"key_size":4,"value_size":4,"items":"... <7.8KB>"}\n`,
      '/items: keys and values were left out (--nopl), there is nothing to encode',
    ],
    [
      'a list of items in ndjson',
      `{${magic}}\n{"map_id":1,"items":[{"key":"00","value":"00"}]}\n`,
      '/items: in ndjson, items have their own lines',
    ],
    ['an item before its map', `{${magic}}\n{"key":"00","value":"00"}\n`, /\/key: unknown member/],
    // Messages
    [
      'a member twice, further in',
      files('{"type":1,"id":1,"reg":{"id":1,"id":2}}'),
      '/entries/0/reg: member "id" appears twice',
    ],
    [
      'half a surrogate pair, further in',
      files('{"type":1,"id":1,"reg":{"name":"\\udfff"}}'),
      '/entries/0/reg/name: half of a surrogate pair in a string',
    ],
    [
      'a long name, further in',
      files(`{"type":1,"id":1,"reg":{"${'x'.repeat(1025)}":1}}`),
      '/entries/0/reg: text of more than 1024 bytes',
    ],
    [
      'deep nesting that ends',
      files(`{"type":1,"id":1,"reg":${'['.repeat(65)}1${']'.repeat(65)}}`),
      /nested deeper than 64 levels/,
    ],
    [
      'a number beyond 64 bits, further in',
      files(`{"type":"REG","id":1,"reg":${regular.replace('"pos":0', '"pos":18446744073709551616')}}`),
      /^\/entries\/0\/reg\/pos: .*18446744073709551616/,
    ],
    [
      'a comma too many in an object',
      files('{"type":1,"id":1,"reg":{"id":1,}}'),
      '/entries/0/reg: expected a member name, found "}"',
    ],
    [
      'a comma too many in a list',
      files('{"type":1,"id":1,"reg":{"build_id":[1,]}}'),
      '/entries/0/reg/build_id/1: expected a JSON value',
    ],
    [
      'no comma in a list',
      files('{"type":1,"id":1,"reg":{"build_id":[1 2]}}'),
      '/entries/0/reg/build_id/0: expected "," or "]", found "2"',
    ],
    [
      'a bad number in a list',
      files('{"type":1,"id":1,"reg":{"build_id":[1,01,3]}}'),
      '/entries/0/reg/build_id/1: expected a JSON value, found "01"',
    ],
    ['a missing field', files('{"type":"REG"}'), '/entries/0: member "id" is missing'],
    ['a field that is not there', files('{"type":"REG","id":1,"size":5}'), /\/entries\/0\/size: unknown member/],
    [
      'a field that is not there, further in',
      files(`{"type":"REG","id":1,"reg":{"owner":1,${regular.slice(1)}}`),
      /\/entries\/0\/reg: unknown member "owner"/,
    ],
    ['a fraction', files('{"type":"REG","id":1.5}'), '/entries/0/id: must be a whole number or text'],
    [
      'a number beyond uint64',
      files(`{"type":"REG","id":1,"reg":${regular.replace('"pos":0', '"pos":18446744073709551616')}}`),
      '/entries/0/reg/pos: must be a whole number from 0 to 18446744073709551615, got 18446744073709551616',
    ],
    ['null', files('{"type":"REG","id":null}'), '/entries/0/id: must be a whole number or text'],
    [
      'an enum nobody knows',
      files('{"type":"SOCKET","id":1}'),
      '/entries/0/type: must be a number or one of UND, REG, ',
    ],
    ['a maps document', '{"format":"bpfimg-maps/1","maps":[]}', ''],
  ];
  for (const [what, text, message] of table) {
    if (what === 'a maps document') continue;
    const found = await badJson(text);
    t.match(found, message, what);
    t.match(found, / \(byte \d+\)$/, `${what}: says where`);
  }
  t.match(
    await news(encode('{"format":"bpfimg-maps/1","maps":[]}'), 'usage', 'x.json'),
    'it is a maps document, which describes a whole dump: encode it with -D DIR',
  );
});

t.test('in a file, the line and column of what is wrong', async (t) => {
  const folder = t.testdir();
  const at = async (text: string) => {
    const file = path.join(folder, 'x.json');
    fs.writeFileSync(file, text);
    const input = await openInput(file);
    try {
      return await badJson(input, file);
    } finally {
      input.close();
    }
  };
  const lines = (...list: string[]) => list.join('\n');
  t.equal(
    await at(lines('{', '  "magic": "FILES",', '  "entrees": []', '}')),
    '/entrees: unknown member, an image has "magic", "head" and "entries" (line 3, column 14)',
  );
  t.match(
    await at(lines('{"magic":"FILES","entries":[', '  {"type":"REG",', '   "id":1,', '   "reg":{', '     "id":-1}}]}')),
    /^\/entries\/0\/reg.*\(line [45], column /,
  );
  t.equal(
    await at(
      lines(
        `{${magic},"entries":[`,
        '  {"map_id":315,"key_size":2,"value_size":1,"items":[',
        '    {"key":"0100","value":"ff"},',
        '    {"key":"0200","value":"fz"}]}]}',
      ),
    ),
    '/entries/0/items/1/value: must be bytes in hex, two digits each (line 4, column 29)',
  );
  t.equal(
    await at(lines('{"entries":[', '{"items":[],', '"map_id":-1}],', `${magic}}`)),
    '/entries/0/map_id: must be >= 0 (line 3, column 10)',
    'also where "magic" comes last, as jq -S has it',
  );
  t.equal(
    await at(lines(`{${magic}}`, '{"map_id":1}', '{"key":"00","value":"00"}', '{"key":"0","value":"00"}')),
    '/key: must be bytes in hex, two digits each, got an odd number of digits (line 4, column 8)',
  );
});

t.test('however large a bad input is, its message is not', async (t) => {
  const long = 'x'.repeat(3 << 20);
  t.match(await badJson(files(`{"type":"${long}","id":1}`)), /got "x{40}…" \(byte/);
  t.match(await badJson(`{"magic":"${long}"}`), /unknown image kind "x{40}", expected/);
  t.match(await badJson(files(`{"type":1,"id":${'9'.repeat(300)}}`)), /\/entries\/0\/id: must be/);
  t.match(await badJson(files(`{"type":1,"id":${'9'.repeat(100_000)}}`)), /expected a JSON value/);
  t.match(
    await badJson(files(`{"type":1,"id":1,${Array.from({ length: 80_000 }, (_, i) => `"m${i}":1`).join()}}`)),
    /unknown member/,
  );
  t.match(
    await badJson(files(`{"type":1,"id":[${'{},'.repeat(3 << 20)}{}]}`)),
    /more values than any entry can have|must be a whole number/,
  );
});
