/**
 * Dump folders with something wrong in them: fields of messages, entries, whole images, the CRIU plugin's table. The
 * mutations know how an image is built, so most of them reach what joins the images and not only the framing.
 */

import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { writeDocument } from '../../src/dump/document.js';
import { encodeDocument } from '../../src/dump/encode.js';
import { type Dump, openDump } from '../../src/dump/model.js';
import { bufferInput } from '../../src/io/input.js';
import { MemoryOutput } from '../../src/io/output.js';
import { Foresight } from '../../src/replay/foresight.js';
import { planMaps } from '../../src/replay/plan.js';
import { type Finding, Verifier } from '../../src/verify/verify.js';
import { sameBytes } from './codec.js';
import { mapFile, pluginDump, processOf } from './dumps.js';
import { fixture } from './fixtures.js';
import { EXTREMES, type FuzzCase, type Fuzzer, judge } from './fuzz-case.js';
import { entry, image, item, mapData, varint } from './images.js';
import { mutateBytes } from './mutate.js';
import type { Random } from './random.js';
import { types } from './types.js';

export type Files = Readonly<Record<string, Uint8Array>>;

export { types } from './types.js';

/** A folder of ours in memory where the machine has one: what is tried here need not outlive a crash. */
export function scratchFolder(): string {
  const folder = fs.mkdtempSync(path.join(fs.existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir(), 'bpfimg-fuzz-'));
  process.once('exit', () => fs.rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Removes a folder that has only files in it, if it is there: rmSync takes much longer. */
export function removeFolder(folder: string): void {
  if (!fs.existsSync(folder)) return;
  for (const name of fs.readdirSync(folder)) fs.unlinkSync(path.join(folder, name));
  fs.rmdirSync(folder);
}

export function readFolder(folder: string): Record<string, Buffer> {
  const names = fs.readdirSync(folder).sort();
  return Object.fromEntries(names.map((name) => [name, fs.readFileSync(path.join(folder, name))]));
}

// ---------------------------------------------------------------------------------------------------
// Messages

type Field = readonly [no: number, value: bigint | Buffer | { readonly fixed: Buffer }];

/** The fields of a protobuf message; undefined for bytes that are none. */
function fieldsOf(bytes: Buffer): Field[] | undefined {
  const fields: Field[] = [];
  let at = 0;
  const number = (): bigint | undefined => {
    let value = 0n;
    for (let shift = 0n; at < bytes.length && shift < 70n; shift += 7n) {
      const byte = bytes[at++] as number;
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    return undefined;
  };
  while (at < bytes.length) {
    const tag = number();
    if (tag === undefined || tag >> 3n === 0n || tag > 0xffff_ffffn) return undefined;
    const no = Number(tag >> 3n);
    const wire = Number(tag & 7n);
    if (wire === 0) {
      const value = number();
      if (value === undefined) return undefined;
      fields.push([no, value]);
      continue;
    }
    const size = wire === 2 ? number() : wire === 1 ? 8n : wire === 5 ? 4n : undefined;
    if (size === undefined || size > BigInt(bytes.length - at)) return undefined;
    const value = bytes.subarray(at, at + Number(size));
    at += Number(size);
    fields.push([no, wire === 2 ? value : { fixed: value }]);
  }
  return fields;
}

function messageOf(fields: readonly Field[], random?: Random): Buffer {
  return Buffer.concat(
    fields.flatMap(([no, value]) => {
      // Now and then in more bytes than it needs.
      const wide = random?.below(12) === 0 ? 3 : 1;
      if (typeof value === 'bigint') return [varint(no * 8, wide), varint(value, wide)];
      if (Buffer.isBuffer(value)) return [varint(no * 8 + 2), varint(value.length, wide), value];
      return [varint(no * 8 + (value.fixed.length === 8 ? 1 : 5)), value.fixed];
    }),
  );
}

/** A message with one thing changed in it, or in a message within it. */
function mutateMessage(bytes: Buffer, random: Random, depth = 0): Buffer {
  const fields = fieldsOf(bytes);
  if (fields === undefined || fields.length === 0 || random.below(16) === 0) return mutateBytes(bytes, random);
  const at = random.below(fields.length);
  const [no, value] = fields[at] as Field;
  const how = random.below(10);
  if (Buffer.isBuffer(value) && value.length > 0 && depth < 4 && how < 6) {
    fields[at] = [no, mutateMessage(value, random, depth + 1)];
  } else if (how < 5) {
    const small = BigInt(random.below(12));
    if (typeof value === 'bigint') fields[at] = [no, random.below(2) ? small : random.of(EXTREMES)];
    else if (Buffer.isBuffer(value)) fields[at] = [no, mutateBytes(value, random)];
    else fields[at] = [no, { fixed: random.bytes(value.fixed.length) }];
  } else if (how === 5) fields.splice(at, 1);
  else if (how === 6) fields.splice(random.below(fields.length), 0, fields[at] as Field);
  else if (how === 7) fields.splice(random.below(fields.length), 0, ...fields.splice(at, 1));
  else if (how === 8) fields[at] = [1 + random.below(40), value];
  else
    fields.splice(at, 0, [1 + random.below(60), random.below(2) ? random.of(EXTREMES) : random.bytes(random.below(9))]);
  return messageOf(fields, random.below(4) === 0 ? random : undefined);
}

// ---------------------------------------------------------------------------------------------------
// Images

interface Split {
  readonly head: Buffer;
  readonly entries: { message: Buffer; extra: Buffer }[];
}

/** An image's entries, without looking at its format more than needed; undefined for bytes that are no image. */
function split(name: string, bytes: Buffer): Split | undefined {
  const headSize = name === 'inventory.img' ? 4 : 8;
  const entries: Split['entries'] = [];
  for (let at = headSize; at < bytes.length; ) {
    if (at + 4 > bytes.length) return undefined;
    const size = bytes.readUInt32LE(at);
    const message = bytes.subarray(at + 4, at + 4 + size);
    at += 4 + size;
    const number = (no: number) => {
      const field = fieldsOf(message)?.find((one) => one[0] === no);
      return typeof field?.[1] === 'bigint' ? Number(field[1]) : 0;
    };
    const more = name.endsWith('-data.img') ? number(2) + number(3) : name.endsWith('-btf.img') ? number(2) : 0;
    entries.push({ message, extra: bytes.subarray(at, at + more) });
    at += more;
  }
  return { head: bytes.subarray(0, headSize), entries };
}

const joined = ({ head, entries }: Split): Buffer =>
  Buffer.concat([head, ...entries.map(({ message, extra }) => entry(message, extra))]);

/** An image with an entry changed, taken out, said twice, moved, or with another extra. */
function mutateEntries(name: string, bytes: Buffer, random: Random): Buffer {
  const parts = split(name, bytes);
  if (parts === undefined || parts.entries.length === 0) return mutateBytes(bytes, random);
  const { entries } = parts;
  const at = random.below(entries.length);
  const one = entries[at] as Split['entries'][number];
  const how = random.below(10);
  if (how < 6) entries[at] = { ...one, message: mutateMessage(one.message, random) };
  else if (how === 6) entries.splice(at, 1);
  else if (how === 7) entries.splice(random.below(entries.length + 1), 0, one);
  else if (how === 8) entries.splice(random.below(entries.length), 0, ...entries.splice(at, 1));
  else if (one.extra.length > 0 && random.below(2)) {
    // Bytes of the same length are other items of a good image.
    const extra = Buffer.from(one.extra);
    for (let left = 1 + random.below(4); left > 0; left--) extra[random.below(extra.length)] = random.below(256);
    entries[at] = { ...one, extra };
  } else entries[at] = { ...one, extra: mutateBytes(one.extra, random) };
  return joined(parts);
}

const TABLE_WORDS = [
  '1',
  '2',
  '3',
  '7',
  'ff',
  '4294967295',
  '4294967296',
  '-1',
  '02',
  '02000002',
  '',
  ' ',
  'x',
  '\n',
  '\0',
];

function mutateTable(text: string, random: Random): string {
  const lines = text.split('\n');
  const at = random.below(lines.length);
  const cells = (lines[at] as string).split(' ');
  const how = random.below(5);
  if (how === 0) lines.splice(at, 1);
  else if (how === 1) lines.splice(random.below(lines.length), 0, lines[at] as string);
  else if (how === 2) cells.splice(random.below(cells.length + 1), random.below(2), random.of(TABLE_WORDS));
  else cells[random.below(cells.length)] = random.of(TABLE_WORDS);
  if (how > 1) lines[at] = cells.join(' ');
  return lines.join('\n');
}

/** A dump with one to three things wrong. */
export function mutateDump(files: Files, random: Random): Files {
  const broken: Record<string, Uint8Array> = { ...files };
  for (let left = 1 + random.below(3); left > 0; left--) {
    const names = Object.keys(broken);
    if (names.length === 0) break;
    const name = random.of(names);
    const bytes = Buffer.from(broken[name] as Uint8Array);
    const how = random.below(20);
    if (how === 0) delete broken[name];
    else if (how === 1) broken[name] = Buffer.alloc(0);
    else if (how === 2) broken[name] = mutateBytes(bytes, random);
    else if (how === 3) broken[name] = broken[random.of(names)] as Uint8Array;
    else if (how === 4) broken[random.of(ALL_NAMES)] = bytes;
    else if (name.endsWith('.txt')) broken[name] = Buffer.from(mutateTable(bytes.toString('latin1'), random), 'latin1');
    else broken[name] = mutateEntries(name, bytes, random);
  }
  return broken;
}

// ---------------------------------------------------------------------------------------------------
// Dumps to start from

/** CRIU's own: the dump of `flowd`, with the small ones of its maps' data. */
function criuDump(): Files {
  const names = ['files', 'inventory', 'pstree', 'fdinfo-2', 'fdinfo-3', 'ids-22137', 'ids-22139'];
  const data = split('bpfmap-data.img', fixture('flowd/bpfmap-data.img')) as Split;
  const small = data.entries.filter(({ extra }) => extra.length < 1000);
  return {
    ...Object.fromEntries(names.map((name) => [`${name}.img`, fixture(`flowd/${name}.img`)])),
    'bpfmap-data.img': joined({ head: data.head, entries: small }),
  };
}

/** The CRIU plugin's: two maps, one of them open twice. */
function pluginSeed(): Files {
  const maps = [mapFile({ id: 0, map_id: 7, name: 'flows' }), mapFile({ id: 0, map_id: 9, type: 2, max: 2 })];
  return {
    ...pluginDump({ maps, table: '1 7 2\n2 9 0\n3 7 1\n', external: [1, 2, 3] }),
    ...processOf({ 3: [16, 1], 4: [16, 2], 5: [16, 3] }),
    'bpfimg-data.img': image(
      'BPFMAP_DATA',
      mapData(7, [item('01000000', '0011223344556677'), item('02000000', '8899aabbccddeeff')]),
      mapData(9, [item('00000000', '0000000000000001'), item('01000000', '0000000000000002')]),
    ),
  };
}

const hex = (size: number, byte = 0x5a) => Buffer.alloc(size, byte).toString('hex');
const base64 = (size: number) => Buffer.alloc(size, 0x41).toString('base64');

/** A document of maps of most families, with types, side facts and every form of items. */
export function seedDocument(): Record<string, unknown> {
  const btf = fixture('btf/flowd.o');
  const attributes = (map_id: number, type: string, key_size: number, value_size: number, max_entries: number) => {
    return { map_id, name: `m_${type}`.slice(0, 15), type, key_size, value_size, max_entries };
  };
  return {
    format: 'bpfimg-maps/1',
    btf: [{ btf_id: 5, name: 'flowd.o', blob: rawBtf(btf).toString('base64') }],
    maps: [
      {
        ...attributes(1, 'hash', 4, 8, 8),
        map_flags: ['BPF_F_NO_PREALLOC'],
        files: [{ id: 4, flags: 'O_RDWR', fds: [{ pid: 10, fd: 3 }] }],
        items: [0, 1, 2].map((i) => ({ key: hex(4, i), value: hex(8, i) })),
      },
      {
        ...attributes(2, 'percpu_array', 4, 5, 2),
        items: [0, 1].map((i) => ({ key: `0${i}000000`, values: [hex(5), hex(5, i)] })),
      },
      {
        ...attributes(3, 'queue', 0, 4, 8),
        items: [
          { key: '', value: hex(4) },
          { key: '', value: hex(4, 1) },
        ],
      },
      { ...attributes(4, 'array_of_maps', 4, 4, 2), items: [{ key: '00000000', value: { map_id: 1 } }] },
      {
        ...attributes(5, 'lpm_trie', 8, 4, 8),
        map_flags: ['BPF_F_NO_PREALLOC'],
        items: [{ key: '180000000a000000', value: hex(4) }],
      },
      { ...attributes(6, 'ringbuf', 0, 0, 4096), items: [] },
      {
        ...attributes(7, 'array', 4, 8, 2),
        frozen: true,
        items: [0, 1].map((i) => ({ key: `0${i}000000`, value: hex(8, i) })),
      },
      { ...attributes(8, 'lru_hash', 3, 5, 4), meta: { report: 'partial: 2 items' } },
      { ...attributes(9, 'hash', 4, 4, 4), count: 2, keys_bytes: 7, values_bytes: 8, extra: base64(15) },
      {
        ...attributes(10, 'hash', 16, 24, 4),
        types: { btf_id: 5, key: 'struct flow_key', value: 'struct flow_value' },
        items: [
          { key: { saddr: 1, dport: 53 }, value: { packets: 3, bytes: '18446744073709551615', state: 'TCP_CLOSE' } },
        ],
      },
    ],
  };
}

/** The `.BTF` section of an object of ours: magic 0xeb9f, version 1. */
function rawBtf(object: Buffer): Buffer {
  const at = object.indexOf(Buffer.from([0x9f, 0xeb, 1, 0]));
  const size = (offset: number) => object.readUInt32LE(at + offset);
  // Header, then the further of types and strings.
  return object.subarray(at, at + size(4) + Math.max(size(8) + size(12), size(16) + size(20)));
}

const NEW = 'new';
const ALL_NAMES = [
  ...['files.img', 'bpfmap-file.img', 'bpfmap-data.img', 'bpfmap-meta.img', 'bpfmap-btf.img', 'inventory.img'],
  ...['bpfimg-file.img', 'bpfimg-data.img', 'bpfimg-meta.img', 'bpfimg-btf.img', 'bpfimg-files.txt', 'pstree.img'],
];

/** Ours: {@link seedDocument}, encoded. */
export async function ownDump(scratch: string): Promise<Files> {
  const folder = path.join(scratch, NEW);
  await encodeDocument(bufferInput(Buffer.from(JSON.stringify(seedDocument())), 'seed'), folder, false, types);
  const files = readFolder(folder);
  fs.rmSync(folder, { recursive: true });
  return files;
}

// ---------------------------------------------------------------------------------------------------
// What is done with them

/** The dump as a maps document. */
export async function documentOf(dump: Dump, lines: boolean): Promise<Buffer> {
  const out = new MemoryOutput('memory', 4096);
  await writeDocument(dump, dump.maps, types, out, { lines, pretty: false, noPayload: false });
  return out.take();
}

/** Everything that a replay works out before it creates a map. */
export async function tryPlan(dump: Dump): Promise<void> {
  const options = { cpus: 2, perCpu: 'first' } as const;
  try {
    const foresight = new Foresight(dump);
    for (const plan of await planMaps(dump, dump.maps, types, options)) await foresight.of(plan);
  } catch (error) {
    judge(error, ['badImage', 'unsupported', 'conflict']);
  }
}

/** What `verify` finds in a dump; undefined for what is none. */
export async function verified(folder: string): Promise<readonly Finding[] | undefined> {
  const verifier = new Verifier(types);
  try {
    const dump = await openDump(folder, verifier.onBroken);
    try {
      await verifier.check(dump);
    } finally {
      dump.close();
    }
  } catch (error) {
    judge(error, ['notFound', 'badImage'], [folder]);
    return undefined;
  }
  return verifier.findings;
}

/** @returns whether `verify` has no error */
export async function tryVerify(folder: string): Promise<boolean> {
  return (await verified(folder))?.every(({ severity }) => severity !== 'error') === true;
}

/** Makes the files of a folder `files`; `there` is what they are known to be, so that few are written. */
function putFiles(folder: string, files: Files, there: Files | undefined): void {
  if (there === undefined) {
    removeFolder(folder);
    fs.mkdirSync(folder);
  }
  for (const name of Object.keys(there ?? {})) if (files[name] === undefined) fs.unlinkSync(path.join(folder, name));
  for (const [name, bytes] of Object.entries(files)) {
    if (there?.[name] !== bytes) fs.writeFileSync(path.join(folder, name), bytes);
  }
}

/** Files by name, byte for byte; hidden leftovers count. */
export function sameFiles(got: Files, want: Files, what: string): void {
  const names = (files: Files) => Object.keys(files).sort().join(' ');
  if (names(got) !== names(want)) throw new Error(`${what}: files ${names(got)}, expected ${names(want)}`);
  for (const [name, bytes] of Object.entries(want)) sameBytes(got[name] as Uint8Array, bytes, `${what}: ${name}`);
}

/**
 * Breaks dumps. What still opens as a dump must come back from its document byte for byte, and whatever `verify`
 * calls sound must open.
 */
export async function fuzzDumps(): Promise<Fuzzer> {
  const scratch = scratchFolder();
  const seeds = [criuDump(), pluginSeed(), await ownDump(scratch)].map((good, index) => {
    return { good, folder: path.join(scratch, `dump${index}`), there: undefined as Files | undefined };
  });
  return (random, seed): FuzzCase => {
    const start = random.of(seeds);
    const { good, folder } = start;
    const files = mutateDump(good, random);
    return {
      files,
      async run() {
        putFiles(folder, files, start.there);
        start.there = undefined;
        const sound = await tryVerify(folder);
        let document: Buffer;
        try {
          const dump = await openDump(folder);
          try {
            document = await documentOf(dump, seed % 2 === 0);
            await tryPlan(dump);
          } finally {
            dump.close();
          }
        } catch (error) {
          const { message } = judge(error, ['badImage', 'notFound', 'unsupported'], [folder]);
          if (sound) throw new Error(`verify calls it sound, but ${message}`, { cause: error });
          sameFiles(readFolder(folder), files, 'read');
          start.there = files;
          return false;
        }
        let taken = true;
        try {
          await encodeDocument(bufferInput(document, 'x.json'), folder, true, types);
        } catch (error) {
          const { message } = judge(error, ['badJson', 'conflict', 'unsupported', 'badImage'], ['x.json: ', folder]);
          if (sound) throw new Error(`verify calls it sound, but encode says ${message}`, { cause: error });
          taken = false;
        }
        sameFiles(readFolder(folder), files, taken ? 'encoded again' : 'refused');
        start.there = files;
        return taken;
      },
    };
  };
}
