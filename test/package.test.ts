/** What `npm pack` makes, used as somebody does who has only that. */
import { execFileSync, spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { pathToFileURL } from 'node:url';
import t from 'tap';
import { TOP } from './helpers/command.js';
import { fixture } from './helpers/fixtures.js';
import { programs } from './helpers/programs.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-package-'));
t.teardown(() => fs.rmSync(folder, { recursive: true }));
fs.chmodSync(folder, 0o755);

const packed = execFileSync('npm', ['pack', '--ignore-scripts', '--silent', '--pack-destination', folder], {
  cwd: TOP,
});
const archive = path.join(folder, String(packed).trim());

/** Unpacks the package into a new folder of that name, as npm does on install. */
function install(name: string): string {
  const target = path.join(folder, name);
  fs.mkdirSync(target);
  execFileSync('tar', ['-xzf', archive, '-C', target, '--strip-components=1', '--no-same-owner']);
  execFileSync('chmod', ['-R', 'go-w', target]);
  return target;
}

/** Runs the installed command, from a folder that is not the repository; as `user` where that is given. */
function run(home: string, args: readonly string[], input?: Uint8Array, user?: number): Buffer {
  const command = path.join(home, 'dist/bpfimg');
  const as = user === undefined ? {} : { uid: user, gid: user };
  // Without what the test runner adds to every process: the launcher keeps no code that runs otherwise than usual.
  const bare = ['-u', 'NODE_OPTIONS', '-u', 'NODE_V8_COVERAGE', command, ...args];
  const { status, stdout, stderr, error } = spawnSync('env', bare, { cwd: '/', input, ...as });
  if (error) throw error;
  if (status !== 0) throw new Error(`bpfimg ${args.join(' ')}: exit code ${status}: ${stderr}`);
  return stdout;
}

const caches = (home: string) => fs.readdirSync(path.join(home, 'dist')).filter((name) => name.includes('.cache'));

t.test('the files of the package', async (t) => {
  const home = install('files');
  const files = fs.readdirSync(home, { recursive: true, encoding: 'utf8' });
  for (const name of [
    'dist/bpfimg',
    'dist/bin.cjs',
    'dist/THIRD-PARTY.txt',
    'dist/man/bpfimg.1',
    'build/src/index.js',
    'build/src/index.d.ts',
    'build/plugins/index.js',
    'images/bpfmap-data.proto',
    'docs/schema/crit.schema.json',
    'docs/schema/maps.schema.json',
    'LICENSE',
    'README.md',
  ]) {
    t.ok(files.includes(name), name);
  }
  t.same(
    files.filter((name) => /^(src|test|fixtures|build\/test)\b|\.cache|^\./.test(name)),
    [],
    'no sources, tests or caches',
  );
  t.equal(fs.statSync(path.join(home, 'dist/bpfimg')).mode & 0o111, 0o111, 'executable');
  const { version } = JSON.parse(fs.readFileSync(path.join(home, 'package.json'), 'utf8'));
  t.equal(String(run(home, ['--version'])), `${version}\n`);
});

t.test('the command decodes and encodes', async (t) => {
  const home = install('command');
  const image = fixture('flowd/bpfmap-data.img');
  for (const format of ['items', 'crit', 'ndjson']) {
    const json = run(home, ['decode', '--format', format], image);
    t.ok(run(home, ['encode'], json).equals(image), format);
  }
});

t.test('the library', async (t) => {
  const home = install('library');
  const library = await import(pathToFileURL(path.join(home, 'build/src/index.js')).href);
  const reader = await library.ImageReader.open(library.bufferInput(fixture('flowd/pstree.img')));
  t.equal(reader.kind.name, 'PSTREE');
});

/** A strict program of somebody's, of the types that the library's functions take and give. */
const MAIN = `
import assert from 'node:assert/strict';
import * as fs from 'node:fs';
import {
  type Dump, type DumpMap, type Item, type MapsDocument, type messages, type RawItem,
  BpfimgError, bufferInput, diff, encodeDocument, items, MemoryOutput, openDump, rawItems, TypeFinder,
  typeTable, Verifier, writeDocument,
} from 'bpfimg';
import schema from 'bpfimg/schema/maps.schema.json' with { type: 'json' };

const types = typeTable();
const [folder = ''] = process.argv.slice(2);

async function all<T>(source: AsyncIterable<T>): Promise<T[]> {
  const list: T[] = [];
  for await (const one of source) list.push(one);
  return list;
}

const dump: Dump = await openDump(folder);
const [map] = dump.maps as [DumpMap];
const file: messages.BpfmapFileEntry | undefined = map.files[0]?.message;
const raw: RawItem[] = await all(rawItems(dump, map, types));
const shown: Item[] = await all(items(dump, map, types, new TypeFinder(dump, types)));
assert.equal(file?.map_name, 'flows');
assert.equal(Buffer.from(raw[0]?.key ?? []).toString('hex'), shown[0]?.key);
const out = new MemoryOutput();
await writeDocument(dump, dump.maps, types, out, { lines: false, pretty: false, noPayload: false });
const document = JSON.parse(out.take().toString()) as MapsDocument;
document.maps[0]?.items?.pop();
await encodeDocument(bufferInput(Buffer.from(JSON.stringify(document))), 'edited', false, types);
assert.equal(fs.statSync('edited/bpfmap-data.img').mode & 0o777, 0o600);
const verifier = new Verifier(types);
const edited = await openDump('edited', verifier.onBroken);
await verifier.check(edited);
assert.deepEqual(verifier.findings.filter(({ severity }) => severity === 'error'), []);
const [changed, ...others] = await all(diff(dump, edited, types));
assert.deepEqual([changed?.counts.removed, others], [1, []]);
edited.close();
dump.close();
await assert.rejects(openDump('nowhere'), (error) => error instanceof BpfimgError && error.kind === 'notFound');
assert.equal(schema.properties.format.const, 'bpfimg-maps/1');
console.log('done', process.getuid?.());
`;

t.test('a project in strict TypeScript that has only the package', async (t) => {
  const project = path.join(folder, 'project');
  const own = (name: string) => path.join(project, name);
  fs.mkdirSync(own('node_modules/@types'), { recursive: true });
  fs.renameSync(install('package'), own('node_modules/bpfimg'));
  for (const name of ['koffi', '@types/node']) {
    fs.symlinkSync(path.join(TOP, 'node_modules', name), own(`node_modules/${name}`));
  }
  fs.writeFileSync(own('package.json'), '{"type":"module"}');
  fs.writeFileSync(own('main.ts'), MAIN);
  // What the page shows, checked as an editor does.
  const shown = programs(fs.readFileSync(path.join(TOP, 'docs/library.md'), 'utf8'));
  for (const [name, text] of Object.entries(shown)) fs.writeFileSync(own(name), text);
  const options = {
    module: 'nodenext',
    target: 'es2022',
    lib: ['es2022'],
    types: ['node'],
    strict: true,
    exactOptionalPropertyTypes: true,
    noUncheckedIndexedAccess: true,
    verbatimModuleSyntax: true,
    skipLibCheck: false,
    resolveJsonModule: true,
    allowJs: true,
    checkJs: true,
    outDir: 'out',
    rootDir: '.',
  };
  const files = ['main.ts', ...Object.keys(shown)];
  fs.writeFileSync(own('tsconfig.json'), JSON.stringify({ compilerOptions: options, files }));
  for (const typescript of ['typescript-5.4', 'typescript']) {
    const compiler = path.join(TOP, 'node_modules', typescript, 'lib/tsc.js');
    const { status, stdout } = spawnSync(process.execPath, [compiler, '-p', project], { encoding: 'utf8' });
    t.same({ status, stdout }, { status: 0, stdout: '' }, typescript);
  }
  // Images need no rights.
  const dump = path.join(folder, 'flowd');
  fs.cpSync(path.join(TOP, 'fixtures/flowd'), dump, { recursive: true });
  const cwd = path.join(folder, 'user');
  fs.mkdirSync(cwd);
  const nobody = process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : {};
  if (nobody.uid !== undefined) fs.chownSync(cwd, nobody.uid, nobody.gid);
  const main = [own('out/main.js'), dump];
  // What tap has Node load is of this repository, which others need not be able to read.
  const { NODE_OPTIONS: _, ...env } = process.env;
  const ran = spawnSync(process.execPath, main, { cwd, env, encoding: 'utf8', ...nobody });
  t.equal(ran.stdout, `done ${nobody.uid ?? process.getuid?.()}\n`, ran.stderr);
});

t.test('compiled code is kept in a folder that is ours alone', async (t) => {
  const home = install('cached');
  const text = run(home, ['decode', '--format', 'crit'], fixture('flowd/pstree.img'));
  const [name = ''] = caches(home);
  t.equal(caches(home).length, 1, 'one run keeps one file');
  const cache = path.join(home, 'dist', name);
  const { ino, size } = fs.statSync(cache);
  t.ok(run(home, ['decode', '--format', 'crit'], fixture('flowd/pstree.img')).equals(text));
  const whole = fs.statSync(cache);
  t.ok(whole.ino !== ino && whole.size > size, 'the next run adds what V8 has compiled');
  t.ok(run(home, ['decode', '--format', 'crit'], fixture('flowd/pstree.img')).equals(text));
  t.equal(fs.statSync(cache).ino, whole.ino, 'which serves all others');
  // What only some runs load comes to the rest.
  t.match(run(home, ['decode', '--format', 'items'], fixture('flowd/pstree.img')).toString(), /"magic"/);
  t.match(caches(home), [name], 'in the same file');
  run(home, ['decode', '--format', 'crit'], fixture('flowd/pstree.img'));

  const good = fs.readFileSync(cache);
  const flipped = Buffer.from(good);
  // What is there is code: V8 would run whatever it has become.
  for (let at = 4000; at < flipped.length; at += 997) flipped[at] = (flipped[at] as number) ^ 1;
  const bit = Buffer.from(good);
  bit[good.length >> 1] = (bit[good.length >> 1] as number) ^ 0x10;
  for (const [what, bytes] of [
    ['empty', Buffer.alloc(0)],
    ['of another V8', Buffer.alloc(4096, 7)],
    ['cut off', good.subarray(0, good.length >> 1)],
    ['damaged', flipped],
    ['damaged in one bit', bit],
  ] as const) {
    fs.writeFileSync(cache, bytes);
    t.ok(
      run(home, ['decode', '--format', 'crit'], fixture('flowd/pstree.img')).equals(text),
      `works when it is ${what}`,
    );
    t.notOk(fs.readFileSync(cache).equals(bytes), 'and makes it anew');
  }
});

t.test('no compiled code is kept elsewhere', async (t) => {
  const image = fixture('flowd/pstree.img');
  const shared = install('shared');
  fs.chmodSync(path.join(shared, 'dist'), 0o777);
  run(shared, ['decode'], image);
  t.same(caches(shared), [], 'a folder that others can write to');

  const readOnly = install('read-only');
  const root = process.getuid?.() === 0;
  if (!root) fs.chmodSync(path.join(readOnly, 'dist'), 0o555);
  run(readOnly, ['decode'], image, root ? 65534 : undefined);
  t.same(caches(readOnly), [], root ? "somebody else's folder" : 'a read-only folder');
  fs.chmodSync(path.join(readOnly, 'dist'), 0o755);
});
