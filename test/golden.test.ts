/** The dialect `crit` is what crit prints, byte for byte: on a real dump, and on whatever crit decodes. */
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { BPFMAP_FILE, FDINFO, FILES, IDS, INVENTORY, PSTREE } from '../src/image/kinds.js';
import { decode, encode, FORMS, formName, roundTrips, sameBytes } from './helpers/codec.js';
import { crit, critKnows, skipWithout } from './helpers/crit.js';
import { dumpImages, fixture } from './helpers/fixtures.js';
import { blob, entry, image, item, mapData, scalar } from './helpers/images.js';
import { bytesOf, messageOf } from './helpers/messages.js';
import { patience } from './helpers/needs.js';
import { Random } from './helpers/random.js';

t.setTimeout(patience(120_000));

/** Kinds of a dump that bpfimg leaves to crit. */
const FOREIGN = /^(core|fs|mm|pagemap|seccomp|timens)/;

t.test('a real dump decodes to what crit prints for it', async (t) => {
  for (const name of ['bpfmap-data', 'files']) {
    const img = fixture(`flowd/${name}.img`);
    const expected = (form: string) => fixture(`expected/${name}.${form}.json`).toString();
    t.equal(await decode(img, 'crit'), expected('crit'), `${name}, plain`);
    t.equal(await decode(img, { dialect: 'crit', pretty: true }), expected('crit-pretty'), `${name}, --pretty`);
  }
});

t.test('what both crits print encodes to the real image', async (t) => {
  for (const name of ['bpfmap-data', 'files']) {
    for (const form of ['crit', 'crit-pretty', 'go-crit']) {
      sameBytes(
        await encode(fixture(`expected/${name}.${form}.json`)),
        fixture(`flowd/${name}.img`),
        `${name}.${form}`,
      );
      t.pass(`${name}.${form}.json`);
    }
  }
});

t.test('every image of the dump that bpfimg decodes comes back in every form', async (t) => {
  const mine = dumpImages.filter((name) => !FOREIGN.test(name));
  t.ok(mine.length >= 8, `${mine.length} images`);
  for (const name of mine) {
    for (const form of FORMS) {
      await roundTrips(fixture(`flowd/${name}`), [form]);
      t.pass(`${name}, ${formName(form)}`);
    }
  }
});

t.test('the other images of the dump are refused by name', async (t) => {
  for (const name of dumpImages.filter((name) => FOREIGN.test(name))) {
    const kind = name === 'mm-22137.img' ? 'MM' : '[A-Z]+';
    await t.rejects(decode(fixture(`flowd/${name}`), 'items'), {
      message: new RegExp(`^x.img: it is a ${kind} image, which bpfimg does not decode \\(crit does\\)$`),
    });
  }
});

t.test('items: one line an item, maps without items on one line', async (t) => {
  const img = image('BPFMAP_DATA', mapData(315, [item('0100', 'ff'), item('0200', '00')]), mapData(7, []));
  t.equal(
    await decode(img, 'items'),
    [
      '{"magic":"BPFMAP_DATA","entries":[',
      '  {"map_id":315,"key_size":2,"value_size":1,"items":[',
      '    {"key":"0100","value":"ff"},',
      '    {"key":"0200","value":"00"}]},',
      '  {"map_id":7,"items":[]}]}',
    ].join('\n'),
  );
  t.equal(
    await decode(img, 'ndjson'),
    [
      '{"magic":"BPFMAP_DATA"}',
      '{"map_id":315,"key_size":2,"value_size":1}',
      '{"key":"0100","value":"ff"}',
      '{"key":"0200","value":"00"}',
      '{"map_id":7}',
      '',
    ].join('\n'),
  );
  const pretty = await decode(img, { dialect: 'items', pretty: true });
  t.equal(pretty, JSON.stringify(JSON.parse(pretty), null, 4), '--pretty is JSON of indent 4');
  t.same(JSON.parse(pretty), JSON.parse(await decode(img, 'items')));
});

t.test('--nopl leaves out keys and values and says how much', async (t) => {
  const img = image('BPFMAP_DATA', mapData(1, [[Buffer.alloc(4), Buffer.alloc(7996)]]), mapData(2, []));
  t.match(await decode(img, 'crit', { noPayload: true }), '"extra": "... <7.8KB>"}, {');
  t.match(await decode(img, 'crit', { noPayload: true }), '"count": 0, "extra": "... <0B>"}]}');
  t.match(await decode(img, 'items', { noPayload: true }), '"value_size":7996,"items":"... <7.8KB>"}');
  t.match(await decode(img, 'ndjson', { noPayload: true }), '"value_size":7996,"items":"... <7.8KB>"}\n');
});

t.test('--map picks entries by id', async (t) => {
  const img = image('BPFMAP_DATA', ...[1, 2, 3].map((id) => mapData(id, [item('aa', 'bb')])));
  for (const dialect of ['items', 'crit', 'ndjson'] as const) {
    const part = await decode(img, dialect, { maps: new Set([2]) });
    sameBytes(await encode(part), image('BPFMAP_DATA', mapData(2, [item('aa', 'bb')])), dialect);
  }
  t.pass();
});

const withCrit = { skip: skipWithout('crit') };

t.test('the installed crit prints the same: random images', withCrit, async (t) => {
  const { kinds, ...choice } = critKnows();
  // Every message of an open file is in FILES; the kinds that are lists of one of them add nothing.
  for (const kind of [FILES, FDINFO, PSTREE, IDS, INVENTORY, BPFMAP_FILE].filter(({ name }) => kinds.includes(name))) {
    const messages = fc.sample(messageOf(kind.message, choice), { seed: 3, numRuns: 50 });
    const entries = messages.map((model) => entry(bytesOf(kind.message, model)));
    const head = kind.head === 'none' ? [] : [0x54564319];
    const img = Buffer.concat([Buffer.from(Uint32Array.from([...head, kind.magic]).buffer), ...entries]);
    await sameAsCrit(t, img);
  }
});

t.test('the installed crit prints the same: data of maps', withCrit, async (t) => {
  const sizes = [0, 1, 2, 3, 18, 19, 56, 57, 58, 75, 76, 77, 113, 114, 115, 1000, 5000];
  const img = image(
    'BPFMAP_DATA',
    ...sizes.map((size, i) =>
      mapData(i, [[Buffer.alloc(1, i), Buffer.from(Uint8Array.from({ length: size }, (_, at) => at))]]),
    ),
    mapData(99, []),
  );
  await sameAsCrit(t, img);
});

/** Checks that crit prints `img` as we do, plain and pretty. `$raw` crit has not: there it loses bytes. */
async function sameAsCrit(t: Test, img: Buffer, forms = [false, true]): Promise<void> {
  for (const pretty of forms) {
    const mine = `${await decode(img, { dialect: 'crit', pretty })}\n`.replaceAll(/,\s*"\$raw": "[0-9a-f]*"/g, '');
    t.equal(mine, crit(img, pretty ? 'show' : 'decode'), pretty ? '--pretty' : 'plain');
  }
}

t.test('the installed crit prints the same: control characters and all of Latin-1', withCrit, async (t) => {
  const fown = blob(4, ...[1, 2, 3, 4, 5].map((no) => scalar(no, 0)));
  const latin1 = Array.from({ length: 0x100 }, (_, unit) => String.fromCharCode(unit)).join('');
  const message = Buffer.concat([
    ...[scalar(1, 1), scalar(2, 0o77777777), scalar(3, 2n ** 64n - 1n), fown],
    ...[5, 6, 7, 8, 9, 10, 11, 12].map((no) => scalar(no, 1)),
    ...[blob(13, Buffer.from(`${latin1}\u2028\uffff\u{10ffff}`)), scalar(14, 0), scalar(15, 1)],
  ]);
  await sameAsCrit(t, image('BPFMAP_FILE', entry(message)));
});

const fown = { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 };
const opts = {
  so_sndbuf: 0,
  so_rcvbuf: 0,
  so_snd_tmo_sec: 0n,
  so_snd_tmo_usec: 0n,
  so_rcv_tmo_sec: 0n,
  so_rcv_tmo_usec: 0n,
};
const socket = { id: 1, ino: 1, type: 1, state: 1, flags: 0, backlog: 0, fown, opts };

t.test('the installed crit prints the same: socket names in quoted-printable', withCrit, async (t) => {
  const random = new Random(7);
  const letters = Buffer.from('\t\r\n\r\n =._-/ax~\0\x7f\x80\xff', 'latin1');
  const names = [
    ...Array.from({ length: 256 }, (_, byte) => Buffer.of(byte)),
    ...Array.from({ length: 200 }, () =>
      Buffer.from(Array.from({ length: random.below(40) }, () => random.of(letters))),
    ),
    // Around the 76 characters of a line: what is escaped takes three of them.
    ...Array.from({ length: 200 }, () =>
      Buffer.concat([
        Buffer.alloc(68 + random.below(12), 'x'),
        random.bytes(random.below(12)),
        Buffer.alloc(random.below(90), ' a'),
      ]),
    ),
    ...['\n', '\r\n', 'a\nb\r\n', 'a\r\nb\n', '\r', ' \n', '\t\r\n', '.\n.', '.\r\n', '.', '..', '.\0', '\n\r\n'].map(
      (text) => Buffer.from(text),
    ),
  ];
  const entries = names.map((name) => entry(bytesOf('unix_sk_entry', { ...socket, uflags: 0, peer: 0, name })));
  await sameAsCrit(t, image('UNIXSK', ...entries), [false]);
  await roundTrips(image('UNIXSK', ...entries), [{ dialect: 'crit', pretty: false }]);
});

t.test('the installed crit prints the same: every family, type, protocol and state of sockets', withCrit, async (t) => {
  const inet = { ...socket, src_port: 0, dst_port: 0, src_addr: [0x0100007f], dst_addr: [] };
  const entries = Array.from({ length: 140 }, (_, i) =>
    entry(bytesOf('inet_sk_entry', { ...inet, family: i, type: i, proto: i, state: i })),
  );
  await sameAsCrit(t, image('INETSK', ...entries));
});
