/** Paths are bytes: pins whose names are no text, from the kernel into images, to what people read, and back. */

import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { pathBytes, pathText } from '../src/bytes.js';
import { BpfMap } from '../src/kernel/map.js';
import { openSys } from '../src/kernel/sys.js';
import { bpfimg, shell } from './helpers/command.js';
import { folderOf, mapFile, mapsImage } from './helpers/dumps.js';
import { blob, entry, image, scalar } from './helpers/images.js';
import { bpffs, skipWithoutMaps } from './helpers/kernel-live.js';
import { patience } from './helpers/needs.js';
import { types } from './helpers/types.js';

t.setTimeout(patience(120_000));
const skip = await skipWithoutMaps();

/** What of the command's answers is used here. */
interface Answer {
  readonly maps: readonly {
    readonly map_id: number;
    readonly name: string;
    readonly pins: string[];
    readonly meta: { readonly pins: string[]; readonly report?: string };
  }[];
}

/** Runs the command, which must succeed; its standard output. */
function ran(...args: string[]): string {
  const { status, stdout, stderr } = bpfimg(args);
  if (status !== 0) throw new Error(`${args.join(' ')}: ${stderr}`);
  return stdout;
}

function answer(...args: string[]): Answer {
  return JSON.parse(ran(...args)) as Answer;
}

/** Names of pins, as bytes. */
const NAMES = ['a pin', 'flüsse', '\u{1f41d}', 'back\\slash', '\\x41', 'line\nend', '\u009b\u202e'].map((name) =>
  Buffer.from(name),
);
NAMES.push(Buffer.from('Stra\xdfe', 'latin1'), Buffer.from('half\xe2\x82', 'latin1'), Buffer.of(0xff));

t.test('a pin is the same one in list, capture, decode, replay and on the command line', { skip }, async (t) => {
  const sys = await openSys(types);
  const { folder, remove } = bpffs();
  t.teardown(remove);
  const dir = t.testdir();
  const at = (name: Buffer) => Buffer.concat([Buffer.from(`${folder}/`), name]);
  using map = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 4, maxEntries: 3, name: 'pinned' });
  using decoy = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 4, maxEntries: 3, name: 'decoy' });
  for (const name of NAMES) map.pin(at(name));
  const texts = NAMES.map((name) => pathText(at(name))).sort();
  t.same(new Set(texts).size, NAMES.length, 'each its own text');

  // Nothing but the pins leads to it by `--pinned`; each of them does, as it is written everywhere.
  const listed = answer('list', '--json', '--id', String(map.id)).maps[0];
  t.same(listed?.pins, texts);
  const table = ran('list', '--id', String(map.id));
  for (const text of texts) {
    t.ok(table.includes(text), `${text} is in the table`);
    t.equal(answer('list', '--json', '--pinned', text).maps[0]?.map_id, map.id, `${text} leads to it`);
  }
  t.equal(answer('list', '--json', '--pinned', `${folder}/line\nend`).maps[0]?.map_id, map.id, 'the path itself');
  // What is there by the very name that was given is what is meant.
  decoy.pin(`${folder}/A`);
  t.equal(answer('list', '--json', '--pinned', `${folder}/\\x41`).maps[0]?.map_id, map.id);
  fs.unlinkSync(`${folder}/\\x41`);
  t.equal(answer('list', '--json', '--pinned', `${folder}/\\x41`).maps[0]?.map_id, decoy.id);
  const nul = bpfimg(['list', '--pinned', `${folder}/A\\x00B`]);
  t.equal(nul.status, 1, 'not the path up to a NUL');

  const dump = path.join(dir, 'dump');
  const there = texts.filter((text) => !text.endsWith('\\x5cx41'));
  ran('capture', '--pinned', there.at(-1) as string, '-D', dump);
  const meta = path.join(dump, 'bpfmap-meta.img');
  const raw = fs.readFileSync(meta);
  for (const text of there) t.ok(raw.includes(pathBytes(text)), `the image has the bytes of ${text}`);
  const document = ran('decode', dump);
  t.same((JSON.parse(document) as Answer).maps[0]?.meta.pins, there);
  t.notOk(document.includes('$raw'), 'bytes that are not UTF-8 need nothing more');
  for (const format of ['items', 'crit', 'ndjson']) {
    const text = ran('decode', '--format', format, '-i', meta);
    const back = path.join(dir, `${format}.img`);
    t.equal(bpfimg(['encode', '-o', back], { input: text }).status, 0);
    t.same(fs.readFileSync(back), raw, format);
  }
  const again = path.join(dir, 'again');
  t.equal(bpfimg(['encode', '-D', again], { input: document }).status, 0);
  t.same(fs.readFileSync(path.join(again, 'bpfmap-meta.img')), raw, 'the document');

  // A folder of pins that is no text, made and found again.
  const place = `${folder}/f\\xfft`;
  for (const more of [[], ['--rename-taken']]) {
    t.same(answer('replay', dump, '--pin', place, '--dry-run', '--json', ...more).maps.length, 1);
    const table = ran('replay', dump, '--pin', place, ...more);
    t.ok(table.includes(`${place}/pinned${more.length === 0 ? '' : `-${map.id}`}`));
  }
  t.equal(bpfimg(['replay', dump, '--pin', place]).status, 1, 'the name is taken');
  const made = fs.readdirSync(pathBytes(place), 'latin1').sort();
  t.same(made, ['pinned', `pinned-${map.id}`]);
  t.same(answer('list', '--json', '--pinned', `${place}/pinned`).maps[0]?.pins, [`${place}/pinned`]);
  for (const name of made) fs.unlinkSync(pathBytes(`${place}/${name}`));
  fs.rmdirSync(pathBytes(place));
});

t.test('what a failed replay has made in a folder that is no text goes away', { skip }, async (t) => {
  const sys = await openSys(types);
  const { folder, remove } = bpffs();
  t.teardown(remove);
  using map = BpfMap.create(sys, { type: 1, keySize: 4, valueSize: 4, maxEntries: 3, name: 'one' });
  map.pin(`${folder}/one`);
  const dump = path.join(t.testdir(), 'dump');
  ran('capture', '--id', String(map.id), '-D', dump);
  const before = fs.readdirSync(folder);
  const { status, stderr } = shell(`bpfimg replay '${dump}' --pin '${folder}/\\xff' >/dev/full`);
  t.equal(status, 1);
  t.match(stderr, 'no space left on the device', 'it could not tell of its pins');
  t.same(fs.readdirSync(folder), before);
});

t.test('images as others have made them', async (t) => {
  const pins = ['/p/flüsse_und_seen', Buffer.from('/p/\xe9t\xe9', 'latin1')].map((pin) => blob(10, Buffer.from(pin)));
  const cut = Buffer.from('flüsse_und_seen').toString('latin1').slice(0, 15);
  const report = blob(12, Buffer.from('partial: lost…'));
  const dump = folderOf(t, {
    'bpfmap-file.img': mapsImage(mapFile({ id: 1, map_id: 7, name: cut })),
    'bpfmap-meta.img': image('BPFMAP_META', entry(Buffer.concat([scalar(1, 7), ...pins, report]))),
  });
  const [map] = answer('decode', dump).maps;
  t.same(map?.meta, { pins: ['/p/flüsse_und_seen', '/p/\\xe9t\\xe9'], report: 'partial: lost…' });
  const whole = Buffer.from('flüsse_und_seen').toString('latin1');
  t.equal(answer('decode', dump, '--map', whole).maps.length, 1, 'a name that was cut within a character');
  const out = path.join(dump, 'out');
  t.equal(bpfimg(['encode', '-D', out], { input: ran('decode', dump) }).status, 0);
  t.same(fs.readFileSync(path.join(out, 'bpfmap-meta.img')), fs.readFileSync(path.join(dump, 'bpfmap-meta.img')));
});
