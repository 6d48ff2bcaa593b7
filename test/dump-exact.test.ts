/** Law one for whole dumps: what a document does not change keeps every byte, however oddly it was written. */
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import t from 'tap';
import { ImageReader } from '../src/image/reader.js';
import { bufferInput } from '../src/io/input.js';
import { BtfWriter } from './helpers/btf-writer.js';
import { contents } from './helpers/command.js';
import { oddDump } from './helpers/odd-dumps.js';
import { Random } from './helpers/random.js';
import { cli } from './helpers/replay.js';

const RUNS = Number(process.env.BPFIMG_RUNS ?? 250);
const FORMS = [[], ['--pretty'], ['--format', 'ndjson']];

const btf = (() => {
  const writer = new BtfWriter();
  const int = writer.int('unsigned int', 4);
  writer.struct('pair', 8, [
    { name: 'a', type: int, at: 0 },
    { name: 'b', type: int, at: 32 },
  ]);
  return writer.bytes();
})();

/** A folder with the dump of that seed, while `use` runs. */
async function withDump(seed: number, use: (folder: string, kind: string, random: Random) => Promise<void>) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-odd-'));
  try {
    const random = new Random(seed);
    const { kind, files } = oddDump(random, btf);
    for (const [name, bytes] of Object.entries(files)) fs.writeFileSync(path.join(folder, name), bytes);
    await use(folder, kind, random);
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

/** Members in the order of their names, as `jq -S` has them. */
function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== 'object' || value === null) return value;
  const members = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return Object.fromEntries(members.map(([name, member]) => [name, sorted(member)]));
}

t.test('a document back into its dump changes no byte', async (t) => {
  const kinds: Record<string, number> = { criu: 0, plugin: 0, ours: 0 };
  for (let seed = 1; seed <= RUNS; seed++) {
    await withDump(seed, async (folder, kind) => {
      const before = contents(folder);
      const form = FORMS[seed % FORMS.length] as string[];
      const decoded = await cli(['decode', folder, ...form]);
      if (decoded.status !== 0) throw new Error(`seed ${seed} (${kind}): ${decoded.stderr}`);
      const sort = seed % 2 === 0 && !form.includes('ndjson');
      const input = sort ? JSON.stringify(sorted(JSON.parse(decoded.stdout))) : decoded.stdout;
      const { status, stderr } = await cli(['encode', '-D', folder, '--force'], { input });
      if (status !== 0) throw new Error(`seed ${seed} (${kind}): ${stderr}`);
      const after = contents(folder);
      for (const name of new Set([...Object.keys(before), ...Object.keys(after)])) {
        if (before[name] === after[name]) continue;
        t.equal(after[name], before[name], `seed ${seed} (${kind}, ${form.join(' ')}): ${name}`);
      }
      kinds[kind] = (kinds[kind] ?? 0) + 1;
    });
  }
  for (const [kind, count] of Object.entries(kinds)) t.ok(count > RUNS / 5, `${count} of ${kind}`);
});

/** Bytes of each entry, with its map's id. */
async function entriesOf(file: string): Promise<{ mapId: number; text: string }[]> {
  const bytes = fs.readFileSync(file);
  const entries: { mapId: number; text: string }[] = [];
  for await (const { message, offset, extraAt, extraSize } of (await ImageReader.open(bufferInput(bytes))).entries()) {
    const { map_id = 0 } = (message.bpf ?? message) as { map_id?: number };
    entries.push({ mapId: map_id, text: bytes.toString('hex', offset, extraAt + extraSize) });
  }
  return entries;
}

t.test('an edit changes the entries of its map alone', async (t) => {
  let edited = 0;
  for (let seed = 10_001; seed <= 10_000 + RUNS; seed++) {
    await withDump(seed, async (folder, kind, random) => {
      const before = contents(folder);
      const document = JSON.parse((await cli(['decode', folder])).stdout) as { maps: Record<string, unknown>[] };
      const { maps } = document;
      const map = random.of(maps);
      const items = map?.items as { value?: string }[] | undefined;
      if (map === undefined || items?.[0]?.value === undefined || items[0].value === '') return;
      const { value } = items[0];
      if (typeof value !== 'string') return;
      items[0].value = value.replace(/^./, (digit) => (digit === '0' ? '1' : '0'));
      if (kind !== 'ours' && map.max_entries !== undefined) map.max_entries = 5;
      const old = new Map<string, { mapId: number; text: string }[]>();
      const images = Object.keys(before).filter((name) => /-data|files\.img|-file\.img/.test(name));
      for (const name of images) old.set(name, await entriesOf(path.join(folder, name)));
      const { status, stderr } = await cli(['encode', '-D', folder, '--force'], {
        input: JSON.stringify({ ...document, maps: [map] }),
      });
      if (status !== 0) throw new Error(`seed ${seed} (${kind}): ${stderr}`);
      const after = contents(folder);
      for (const [name, text] of Object.entries(before)) {
        if (after[name] === text) continue;
        if (!images.includes(name)) t.equal(after[name], text, `seed ${seed} (${kind}): ${name}`);
        const now = await entriesOf(path.join(folder, name));
        const others = ({ mapId }: { mapId: number }) => mapId !== map.map_id;
        const same = JSON.stringify(now.filter(others)) === JSON.stringify(old.get(name)?.filter(others));
        if (!same || now.length !== old.get(name)?.length) t.fail(`seed ${seed} (${kind}): ${name}`);
      }
      const shown = JSON.parse((await cli(['decode', folder])).stdout) as typeof document;
      t.same(shown.maps.find(({ map_id }) => map_id === map.map_id)?.items, items, `seed ${seed} (${kind})`);
      edited++;
    });
  }
  t.ok(edited > RUNS / 5, `${edited} edits`);
});
