/**
 * Arrows point down: what a module imports is checked against the table of layers here, and so is the picture in
 * docs/design.md. With UPDATE_DOCS=1 in the environment that picture is written.
 */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import ts from 'typescript-5.4';
import { TOP } from './helpers/command.js';
import { types } from './helpers/types.js';

// Not bin/tsc, which is no module that Node can start with the options that tap gives it.
const TSC = path.join(TOP, 'node_modules/typescript/lib/tsc.js');

/** Layers from the bottom up: a module imports from its own layer and from those it names. */
const LAYERS: Readonly<Record<string, readonly string[]>> = {
  errors: [],
  phases: [],
  value: [],
  keyhash: [],
  bytes: ['errors'],
  io: ['bytes', 'errors'],
  archive: ['io', 'bytes', 'errors'],
  image: ['value', 'io', 'bytes', 'errors'],
  btf: ['value', 'bytes', 'errors'],
  migrate: ['value', 'btf', 'bytes', 'errors'],
  kernel: ['phases', 'bytes', 'errors'],
  maptype: ['kernel', 'errors', 'bytes'],
  toolkit: ['capture', 'replay', 'maptype', 'kernel'],
  plugins: ['toolkit', 'io', 'maptype', 'capture', 'replay', 'kernel', 'bytes', 'errors'],
  json: ['value', 'btf', 'image', 'io', 'bytes', 'errors'],
  dump: ['value', 'keyhash', 'json', 'btf', 'maptype', 'image', 'io', 'bytes', 'errors'],
  diff: ['value', 'keyhash', 'dump', 'json', 'btf', 'maptype', 'image', 'io', 'bytes', 'errors'],
  capture: ['value', 'keyhash', 'btf', 'dump', 'maptype', 'kernel', 'image', 'io', 'phases', 'bytes', 'errors'],
  replay: [
    'value',
    'keyhash',
    'migrate',
    'btf',
    'dump',
    'maptype',
    'kernel',
    'image',
    'io',
    'phases',
    'bytes',
    'errors',
  ],
  verify: ['value', 'migrate', 'replay', 'dump', 'maptype', 'image', 'io', 'bytes', 'errors'],
  criu: ['value', 'capture', 'replay', 'dump', 'maptype', 'kernel', 'image', 'io', 'bytes', 'errors'],
  source: [
    'btf',
    'value',
    'plugins',
    'archive',
    'capture',
    'json',
    'dump',
    'kernel',
    'maptype',
    'image',
    'io',
    'bytes',
    'errors',
  ],
  edit: ['source', 'replay', 'diff', 'kernel', 'dump', 'json', 'value', 'maptype', 'image', 'io', 'bytes', 'errors'],

  version: [],
  width: [],
  render: ['width', 'bytes', 'errors'],
  cli: [
    'migrate',
    'version',
    'value',
    'render',
    'width',
    'toolkit',
    'edit',
    'source',
    'verify',
    'criu',
    'diff',
    'plugins',
    'capture',
    'replay',
    'kernel',
    'dump',
    'json',
    'maptype',
    'image',
    'archive',
    'io',
    'phases',
    'bytes',
    'errors',
  ],
  index: [
    'migrate',
    'version',
    'value',
    'toolkit',
    'source',
    'verify',
    'criu',
    'diff',
    'plugins',
    'capture',
    'replay',
    'btf',
    'kernel',
    'dump',
    'json',
    'maptype',
    'image',
    'archive',
    'io',
    'bytes',
    'errors',
  ],
};

/** What the picture says of a layer. */
const NOTES: Readonly<Record<string, string>> = {
  errors: 'the one error class, its kinds, exit codes',
  phases: 'where the time of a command goes, for --debug',
  value: 'JSON as values',
  keyhash: 'hashes of keys, sets of keys',
  bytes: 'hex, base64, numbers in buffers',
  io: 'inputs, outputs, spools',
  archive: 'tar archives: read, written, some files replaced; compression, digests',
  image: 'framing, messages, kinds of image',
  btf: 'types: blobs, object files, C, values to JSON and back',
  migrate: 'values of one type as values of another',
  kernel: 'bpf(2) and procfs; one file (sys.ts) makes system calls',
  maptype: "the contract of map-type plugins; the kernel's flag names",
  plugins: 'each map type as data; how to read its items and fill them in',
  json: 'streaming JSON: one reader, one printer, the dialects',
  dump: 'from a folder of images to maps, and back',
  diff: 'which maps belong together, and how their items differ',
  capture: 'live maps into images: readers, the entry being written',
  replay: 'images into fresh maps: the plan, writers, pins',
  verify: 'what a restore would refuse or lose',
  criu: 'what the CRIU plugin runs; conversion between forms of dumps',
  edit: 'changes a source: items by key, or its document in an editor',
  source: 'opens anything that a user names: dumps, images, archives, documents, live maps',
  toolkit: 'the functions that plugins are built from',
  version: 'the version of bpfimg',
  width: 'how many terminal cells a text takes',
  render: 'tables, colours, escapes',
  cli: 'the commands',
  index: 'the library',
};

const sources = ['src', 'plugins'].flatMap((folder) =>
  fs
    .readdirSync(path.join(TOP, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts'))
    .map((name) => path.join(folder, name)),
);

/** `src/json/reader.ts` is of layer json, `src/bytes.ts` of bytes, `plugins/hash.ts` of plugins. */
function layerOf(file: string): string {
  const [first = '', second = ''] = file.split(path.sep);
  return first === 'plugins' ? 'plugins' : second.replace(/\.[jt]s$/, '');
}

/** What each module imports, types as well: the compiler says it. */
function imports(): (readonly [file: string, from: string])[] {
  const { stdout } = spawnSync(process.execPath, [TSC, '-p', '.', '--noEmit', '--explainFiles'], {
    cwd: TOP,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  const found: (readonly [string, string])[] = [];
  let file = '';
  for (const line of stdout.split('\n')) {
    if (/^\S+\.ts$/.test(line)) file = line;
    const [, from] = /^\s+Imported via .* from file '([^']+)'/.exec(line) ?? [];
    if (from !== undefined) found.push([from, file]);
  }
  return found.filter((pair) => pair.every((name) => /^(src|plugins)\//.test(name)));
}

t.test('no import points up', async (t) => {
  t.ok(sources.length > 20, 'the sources were found');
  const all = imports();
  t.ok(all.length > 500, `${all.length} imports were found`);
  for (const [file, target] of all) {
    const [from, to] = [layerOf(file), layerOf(target)];
    t.ok(from === to || LAYERS[from]?.includes(to), `${file} imports ${target}`);
  }
});

t.test('only plugins know map types', async (t) => {
  // Names that are words of other things as well are left out.
  const names = types
    .all()
    .map(({ name }) => name)
    .filter((name) => !['hash', 'array', 'queue', 'stack', 'struct_ops'].includes(name));
  const named = new RegExp(`'(${names.join('|')})'|\\b(map_)?type\\s*[!=]==\\s*[1-9]`);
  for (const file of sources.filter((name) => name.startsWith('src/') && !name.endsWith('.gen.ts'))) {
    const lines = fs.readFileSync(path.join(TOP, file), 'utf8').split('\n');
    t.same(
      lines.filter((line) => named.test(line)),
      [],
      file,
    );
  }
});

t.test('parts of errors are taken from their fields', async (t) => {
  // A few lines may lie between: `error.message\n  .replace(`, and `const { message } = error` before `message.slice(`.
  const cuts = '(replace|replaceAll|slice|split|startsWith|endsWith|match|matchAll|substring|indexOf|includes|at)\\(';
  const cut = new RegExp(
    `\\b(error|worse|problem|cause)\\)?\\??\\.message\\s*\\??\\.${cuts}|exec\\(\\w*\\.message\\)`,
    'g',
  );
  const taken = /\{[^{}]*\bmessage\b[^{}]*\} = (error|worse)\b/g;
  for (const file of sources.filter((name) => name !== 'src/errors.ts')) {
    const text = fs.readFileSync(path.join(TOP, file), 'utf8');
    t.same(text.match(cut) ?? [], [], `${file} cuts no message`);
    if (taken.test(text)) t.notMatch(text, new RegExp(`\\bmessage\\.${cuts}`), `${file} cuts no message`);
  }
});

/** A line a layer, from the top down. What an arrow leads to by way of another one is left out. */
function picture(): string {
  const lines = Object.entries(LAYERS).map(([layer, below]) => {
    const direct = below.filter((one) => !below.some((other) => LAYERS[other]?.includes(one)));
    const arrows = direct.length === 0 ? layer : `${layer} ─→ ${direct.join(', ')}`;
    return [arrows, NOTES[layer] ?? ''] as const;
  });
  const width = Math.max(...lines.map(([arrows]) => arrows.length));
  return lines
    .reverse()
    .map(([arrows, note]) => `${arrows.padEnd(width)}  ${note}\n`)
    .join('');
}

t.test('the picture in docs/design.md is of these layers', async (t) => {
  const file = path.join(TOP, 'docs/design.md');
  const text = fs.readFileSync(file, 'utf8');
  const wanted = text.replace(/^```\n.*?^```\n/ms, () => `\`\`\`\n${picture()}\`\`\`\n`);
  if (process.env.UPDATE_DOCS === '1') fs.writeFileSync(file, wanted);
  else t.equal(text, wanted, 'UPDATE_DOCS=1 node build/test/architecture.test.js writes it');
  t.same(Object.keys(NOTES).sort(), Object.keys(LAYERS).sort(), 'each layer has a note');
});

t.test('what docs/design.md says is decided in a file is there', async (t) => {
  const text = fs.readFileSync(path.join(TOP, 'docs/design.md'), 'utf8');
  const rows = /^## Where is it decided\?\n\n.*\n.*\n((?:\|.*\n)+)/m.exec(text)?.[1]?.trimEnd().split('\n') ?? [];
  t.ok(rows.length > 9, 'the table was found');
  for (const row of rows) {
    const where = row.split(' | ')[1] ?? '';
    const words = [...where.matchAll(/`([^`]+)`/g)].map(([, word = '']) => word);
    const files = words.filter((word) => word.includes('/'));
    t.ok(files.length > 0 && files.every((file) => fs.existsSync(path.join(TOP, file))), row);
    const code = files
      .filter((file) => file.endsWith('.ts'))
      .map((file) => fs.readFileSync(path.join(TOP, file), 'utf8'));
    for (const name of words.filter((word) => !word.includes('/')))
      t.ok(
        code.some((one) => new RegExp(`^export .*\\b${name}\\b`, 'm').test(one)),
        `${name}: ${row}`,
      );
  }
});

t.test('what a module exports says what it is', async (t) => {
  const words = '(?:default |async |abstract |declare )*(?:function\\*?|class|interface|type|enum|const|let)';
  const exported = new RegExp(`^export ${words} [\\w[{]+`);
  for (const file of sources.filter((name) => !name.endsWith('.gen.ts'))) {
    const lines = fs.readFileSync(path.join(TOP, file), 'utf8').split('\n');
    for (const [i, line] of lines.entries()) {
      const [found] = exported.exec(line) ?? [];
      // `export type { A }` passes on what is documented elsewhere; a command's summary says what it is.
      if (found === undefined || /^export type \{|^export const command: Command\b/.test(line)) continue;
      if (!lines[i - 1]?.endsWith('*/')) t.fail(`${file}:${i + 1}: "${found}" without TSDoc`);
    }
  }
});

t.test('no function has more than five parameters', async (t) => {
  for (const file of sources.filter((name) => !name.endsWith('.gen.ts'))) {
    const text = fs.readFileSync(path.join(TOP, file), 'utf8');
    const source = ts.createSourceFile(file, text, ts.ScriptTarget.Latest);
    const look = (node: ts.Node): void => {
      // Only those with a body: bindings of C functions take what C takes.
      if ('body' in node && ts.isFunctionLike(node) && node.parameters.length > 5) {
        const { line } = source.getLineAndCharacterOfPosition(node.pos);
        t.fail(`${file}:${line + 1}: ${node.parameters.length} parameters: give it an object`);
      }
      ts.forEachChild(node, look);
    };
    look(source);
  }
});

t.test('one place knows each outside thing', async (t) => {
  const only = (pattern: RegExp, allowed: readonly string[], what: string) => {
    const found = sources.filter((file) => pattern.test(fs.readFileSync(path.join(TOP, file), 'utf8')));
    t.same(
      found.filter((file) => !allowed.includes(file)),
      [],
      what,
    );
  };
  only(/\bprocess\.(stdout|stderr|stdin|exit|argv)\b/, ['src/cli/start.ts', 'src/cli/io.ts'], 'the process');
  only(/\bconsole\./, ['src/index.ts'], 'the console (in an example)');
  only(/\\x1b\[/, ['src/render.ts'], 'colours');
  only(/['"]koffi['"]/, ['src/kernel/sys.ts'], 'koffi');
  only(/from 'get-east-asian-width'/, ['src/width.ts'], 'the width of characters');
  only(/from 'yargs/, ['src/cli/command.ts', 'src/cli/parse.ts'], 'yargs');
});
