/** Maps documents with something wrong in them: members moved, left out, said twice, or of another kind or size. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { encodeDocument } from '../../src/dump/encode.js';
import { openDump } from '../../src/dump/model.js';
import { bufferInput } from '../../src/io/input.js';
import { sameBytes } from './codec.js';
import { EXTREMES, type FuzzCase, type Fuzzer, judge } from './fuzz-case.js';
import {
  documentOf,
  readFolder,
  removeFolder,
  sameFiles,
  scratchFolder,
  seedDocument,
  tryPlan,
  tryVerify,
  types,
} from './fuzz-dumps.js';
import { mutateBytes } from './mutate.js';
import type { Random } from './random.js';

type Node = Record<string, unknown> | unknown[];

const isNode = (value: unknown): value is Node => typeof value === 'object' && value !== null;

/** Values that one may find anywhere in a document. */
const VALUES: readonly unknown[] = [
  ...[null, true, false, '', '00', '0', 'zz', 'é', '\u0000', 'x'.repeat(300), [], {}, [[]], -1, 0.5, 1e300],
  ...['hash', 'array', 'percpu_hash', 'array_of_maps', 'type_77', 'BPF_F_RDONLY_PROG', ['BPF_F_LOCK'], ['0x40']],
  ...[{ $raw: '00' }, { $raw: 'g' }, { map_id: 1 }, { map_id: 99 }, { key: '', value: '' }, 'struct flow_value', 'int'],
];

/** Members that change what the others mean. */
const MEMBERS = [
  ...['map_id', 'type', 'key_size', 'value_size', 'max_entries', 'map_flags', 'map_extra', 'items', 'extra', 'count'],
  ...['keys_bytes', 'values_bytes', 'data_key_size', 'data_value_size', 'types', 'meta', 'copies', 'files', 'data'],
  ...['key', 'value', 'values', 'copy', '$raw', 'btf', 'maps', 'format', 'btf_id', 'blob', 'frozen', 'name', 'inner'],
];

function randomValue(random: Random): unknown {
  const how = random.below(4);
  if (how === 0) return Number(random.of(EXTREMES));
  if (how === 1) return String(random.of(EXTREMES));
  if (how === 2) return random.bytes(random.below(20)).toString('hex');
  // Later changes are those of this case alone.
  return structuredClone(random.of(VALUES));
}

/** Every object and list of the document. */
function nodesOf(node: Node, found: Node[] = []): Node[] {
  found.push(node);
  for (const value of Object.values(node)) if (isNode(value)) nodesOf(value, found);
  return found;
}

function mutateTree(root: Node, random: Random): void {
  const nodes = nodesOf(root);
  const node = random.of(nodes);
  const names = Object.keys(node);
  const how = random.below(8);
  if (Array.isArray(node)) {
    const at = random.below(node.length + 1);
    if (how < 2) node.splice(at, 1);
    else if (how < 4 && at < node.length) node.splice(random.below(node.length + 1), 0, structuredClone(node[at]));
    else if (how === 4) node.splice(at, 1, randomValue(random));
    else if (how === 5) node.splice(at, 0, structuredClone(random.of(nodes)));
    else node.reverse();
    return;
  }
  const name = names.length > 0 ? random.of(names) : random.of(MEMBERS);
  if (how === 0) delete node[name];
  else if (how < 4) node[name] = randomValue(random);
  else if (how === 4) node[random.of(MEMBERS)] = structuredClone(node[name]);
  else if (how === 5) node[random.of(MEMBERS)] = randomValue(random);
  else if (how === 6) node[name] = structuredClone(random.of(nodes));
  else {
    // The same members in another order: `jq -S` sorts them.
    const all = Object.entries(node);
    for (const one of names) delete node[one];
    all.splice(random.below(all.length), 0, ...all.splice(random.below(all.length), 1));
    for (const [one, value] of all) node[one] = value;
  }
}

/** The document a map a line, as `--format ndjson` has it. */
function linesOf({ maps, ...head }: Record<string, unknown>): string {
  const lines: unknown[] = [head];
  for (const map of Array.isArray(maps) ? maps : []) {
    const { items, ...header } = isNode(map) ? (map as Record<string, unknown>) : { items: map };
    lines.push(items === undefined ? { ...header, data: false } : header, ...(Array.isArray(items) ? items : []));
  }
  return `${lines.map((line) => JSON.stringify(line)).join('\n')}\n`;
}

/** Breaks documents. What encodes is a dump whose document encodes to the same bytes. */
export function fuzzDocuments(): Fuzzer {
  const scratch = scratchFolder();
  const good = JSON.stringify(seedDocument());
  return (random, seed): FuzzCase => {
    const tree = JSON.parse(good) as Record<string, unknown> & { maps: unknown[] };
    // A few of the maps at a time, so that what is wrong with one does not hide the others.
    const from = random.below(tree.maps.length);
    if (random.below(4) > 0) tree.maps = tree.maps.slice(from, from + 1 + random.below(3));
    for (let left = 1 + random.below(3); left > 0; left--) mutateTree(tree, random);
    const lines = random.below(4) === 0;
    let text: Buffer = Buffer.from(lines ? linesOf(tree) : JSON.stringify(tree));
    if (random.below(16) === 0) text = mutateBytes(text, random);
    return { files: { 'x.json': text }, run: () => tryDocument(text, scratch, seed) };
  };
}

async function tryDocument(text: Buffer, scratch: string, seed: number): Promise<boolean> {
  const folders = ['first', 'second'].map((name) => path.join(scratch, name)) as [string, string];
  for (const folder of folders) removeFolder(folder);
  const [first, second] = folders;
  try {
    await encodeDocument(bufferInput(text, 'x.json'), first, false, types);
  } catch (error) {
    judge(error, ['badJson', 'usage', 'conflict', 'unsupported', 'badImage'], ['x.json: ']);
    const left = fs.readdirSync(scratch);
    if (left.length > 0) throw new Error(`refused, but it left ${left.join(' ')}`, { cause: error });
    return false;
  }
  await tryVerify(first);
  const lines = seed % 2 === 0;
  const again = await looked(first, lines);
  await encodeDocument(bufferInput(again.document, 'x.json'), second, false, types);
  // A map of which the dump has only items comes after the others; once it exists, it stays.
  if (again.ordered) sameFiles(readFolder(second), readFolder(first), 'encoded again');
  else sameBytes((await looked(second, lines)).document, again.document, 'the document of what was encoded again');
  return true;
}

/** The document of a dump that was just encoded, and whether its maps are in the order of the document before. */
async function looked(folder: string, lines: boolean): Promise<{ document: Buffer; ordered: boolean }> {
  const dump = await openDump(folder);
  try {
    await tryPlan(dump);
    const ordered = dump.maps.every(({ files }) => files.length > 0);
    return { document: await documentOf(dump, lines), ordered };
  } finally {
    dump.close();
  }
}
