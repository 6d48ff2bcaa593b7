/** Breaks images and JSON in ways that a seed repeats, and judges what the codec does with them. */
import { BpfimgError } from '../../src/errors.js';
import { decode, encode, FORMS, formName, piped, sameBytes } from './codec.js';
import { fixture } from './fixtures.js';
import { blob, dataMessage, entry, image, item, MAGIC, mapData, scalar, words } from './images.js';
import type { Random } from './random.js';

const fown = Buffer.concat([1, 2, 3, 4, 5].map((no) => scalar(no, 0)));

const mapFile = Buffer.concat([
  ...[
    scalar(1, 4),
    scalar(2, 2),
    scalar(3, 0),
    blob(4, fown),
    ...[5, 6, 7, 8, 9, 10, 11, 12].map((no) => scalar(no, 1)),
  ],
  ...[blob(13, Buffer.from('flows')), scalar(14, 0), scalar(15, 1), scalar(16, 2n ** 60n)],
]);

/** Small images to start from: every kind of framing, extra, nesting and list, and some irregular ones. */
export const SEEDS: readonly Buffer[] = [
  image('BPFMAP_DATA', mapData(315, [item('0100', 'ffee00'), item('0200', '000001')]), mapData(7, [])),
  image(
    'BPFMAP_DATA',
    entry(dataMessage(1, 3, 4, 2), Buffer.from('abcdefg')),
    mapData(2, [item('', 'aa'), item('', 'bb')]),
  ),
  image(
    'BPFMAP_DATA',
    entry(Buffer.concat([scalar(4, 1, 3), scalar(9, 5), dataMessage(300, 2, 2, 1)]), Buffer.from('wxyz')),
  ),
  words(MAGIC.BPFMAP_DATA).subarray(0, 4),
  image('BPFMAP_FILE', entry(mapFile)),
  image('PSTREE', entry(Buffer.concat([1, 2, 3, 4, 5, 5].map((no) => scalar(no, 300 + no))))),
  image('FILES', entry(Buffer.concat([scalar(1, 16), scalar(2, 1), blob(15, scalar(1, 1), blob(5, fown))]))),
  image(
    'BPFMAP_BTF',
    entry(Buffer.concat([scalar(1, 1), scalar(2, 5), blob(3, Buffer.from('flüsse'))]), Buffer.from('btf..')),
  ),
  image('INVENTORY', fixture('flowd/inventory.img').subarray(4)),
  fixture('flowd/fdinfo-2.img'),
  fixture('flowd/files.img'),
  fixture('flowd/ids-22137.img'),
];

/** Words that sizes are set to. */
const SIZES = [0, 1, 2, 7, 8, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff];
/** Bytes that varints, tags and strings end or go on with. */
const BYTES = [0x00, 0x01, 0x08, 0x0a, 0x12, 0x7f, 0x80, 0x81, 0xff];

type Mutation = (bytes: Buffer, random: Random) => Buffer;

const at = (bytes: Buffer, random: Random) => random.below(bytes.length + 1);
const splice = (bytes: Buffer, from: number, to: number, put: Uint8Array) =>
  Buffer.concat([bytes.subarray(0, from), put, bytes.subarray(Math.max(from, to))]);

const MUTATIONS: readonly Mutation[] = [
  // a bit flipped, a byte set
  (bytes, random) => {
    const place = at(bytes, random);
    return splice(bytes, place, place + 1, Buffer.of((bytes[place] ?? 0) ^ (1 << random.below(8))));
  },
  (bytes, random) => {
    const place = at(bytes, random);
    return splice(bytes, place, place + 1, Buffer.of(random.of(BYTES)));
  },
  // cut off, cut out, put in, said twice
  (bytes, random) => bytes.subarray(0, at(bytes, random)),
  (bytes, random) => {
    const from = at(bytes, random);
    return splice(bytes, from, from + random.below(9), Buffer.alloc(0));
  },
  (bytes, random) => {
    const place = at(bytes, random);
    return splice(bytes, place, place, random.bytes(random.below(9)));
  },
  (bytes, random) => {
    const from = at(bytes, random);
    const place = at(bytes, random);
    return splice(bytes, place, place, bytes.subarray(from, from + random.below(40)));
  },
  // a word set to an extreme, most often where a size can be
  (bytes, random) => {
    const place = random.below(2) ? 8 : at(bytes, random);
    return splice(bytes, place, place + 4, words(random.of(SIZES)));
  },
  // the beginning of one image and the end of another
  (bytes, random) => {
    const other = random.of(SEEDS);
    return Buffer.concat([bytes.subarray(0, at(bytes, random)), other.subarray(random.below(other.length))]);
  },
];

/** Bytes with one thing wrong with them. */
export function mutateBytes(bytes: Buffer, random: Random): Buffer {
  return random.of(MUTATIONS)(bytes, random);
}

/** An image with one to three things wrong with it. */
export function mutateImage(random: Random): Buffer {
  let bytes = random.of(SEEDS);
  for (let left = 1 + random.below(3); left > 0; left--) bytes = random.of(MUTATIONS)(bytes, random);
  return bytes;
}

/** JSON tokens, whole and broken. */
const TOKENS = [
  ...[
    '{',
    '}',
    '[',
    ']',
    ',',
    ':',
    '"',
    '\\',
    '\n',
    ' ',
    '\0',
    '0',
    '-1',
    '1e9',
    '1.5',
    '4294967296',
    '18446744073709551616',
  ],
  ...[
    'null',
    'true',
    '""',
    '"0"',
    '"0g"',
    '"AA=="',
    '"\\ud800"',
    '"\\u0030"',
    '"... <1B>"',
    '{}',
    '[]',
    '[[]]',
    '\xff',
    'é',
  ],
  ...[
    '"key":"00",',
    '"items":[],',
    '"extra":"AAAA",',
    '"$raw":"0801",',
    '"count":3,',
    '"head":"none",',
    '"magic":"FILES",',
  ],
].map((token) => Buffer.from(token, token === '\xff' ? 'latin1' : 'utf8'));

/** JSON text with one to three things wrong with it. `texts` are good ones to start from. */
export function mutateJson(texts: readonly Buffer[], random: Random): Buffer {
  let text = random.of(texts);
  for (let left = 1 + random.below(3); left > 0; left--) {
    if (random.below(2)) text = random.of(MUTATIONS.slice(0, 6))(text, random);
    else {
      const place = at(text, random);
      text = splice(text, place, place + random.below(4), random.of(TOKENS));
    }
  }
  return text;
}

/** Good JSON to break: every seed image in every form. */
export async function goodTexts(): Promise<Buffer[]> {
  const texts: Buffer[] = [];
  for (const bytes of SEEDS.slice(0, 9)) for (const form of FORMS) texts.push(Buffer.from(await decode(bytes, form)));
  return texts;
}

/** Checks the form that every failure must have. */
function judge(error: unknown, kinds: readonly BpfimgError['kind'][], name: string): void {
  if (!(error instanceof BpfimgError)) throw error;
  const { kind, message } = error;
  if (!kinds.includes(kind)) throw new Error(`a ${kind} error: ${message}`, { cause: error });
  // biome-ignore lint/suspicious/noControlCharactersInRegex: what must not reach a terminal
  if (!message.startsWith(`${name}: `) || /[\x00-\x1f\x7f]/.test(message) || message.length > 2000) {
    throw new Error(`a bad message: ${JSON.stringify(message)}`, { cause: error });
  }
}

/**
 * Decodes a mutated image in the `turn`th form, each third one from a pipe; what decodes must encode to the same bytes.
 * @returns whether it decoded
 */
export async function tryImage(bytes: Buffer, turn: number): Promise<boolean> {
  const form = FORMS[turn % FORMS.length] as (typeof FORMS)[number];
  let text: string;
  try {
    text = await decode(turn % 3 === 0 ? piped(bytes, [turn % 40, turn % 70], 'x.img') : bytes, form);
  } catch (error) {
    judge(error, ['badImage'], 'x.img');
    return false;
  }
  sameBytes(await encode(text), bytes, formName(form));
  return true;
}

/**
 * Encodes a mutated text; what encodes must decode.
 * @returns whether it encoded
 */
export async function tryJson(text: Buffer): Promise<boolean> {
  let bytes: Buffer;
  try {
    bytes = await encode(text);
  } catch (error) {
    judge(error, ['badJson', 'usage'], 'x.json');
    return false;
  }
  sameBytes(await encode(await decode(bytes, 'items')), bytes, 'what was encoded');
  return true;
}
