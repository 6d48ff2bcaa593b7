/** Arrows point down: what a module imports is checked against the layers in docs/design.md. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { TOP } from './helpers/command.js';

/** Layers from the bottom up: a module imports from its own layer and from those it names. */
const LAYERS: Readonly<Record<string, readonly string[]>> = {
  errors: [],
  bytes: ['errors'],
  io: ['bytes', 'errors'],
  image: ['io', 'bytes', 'errors'],
  btf: ['bytes', 'errors'],
  kernel: ['bytes', 'errors'],
  maptype: ['kernel', 'errors', 'bytes'],
  plugins: ['maptype', 'capture', 'replay', 'kernel', 'bytes', 'errors'],
  json: ['btf', 'image', 'io', 'bytes', 'errors'],
  dump: ['json', 'btf', 'maptype', 'image', 'io', 'bytes', 'errors'],
  diff: ['dump', 'json', 'btf', 'maptype', 'image', 'io', 'bytes', 'errors'],
  capture: ['btf', 'dump', 'maptype', 'kernel', 'image', 'io', 'bytes', 'errors'],
  replay: ['btf', 'dump', 'maptype', 'kernel', 'io', 'bytes', 'errors'],
  verify: ['replay', 'dump', 'maptype', 'image', 'io', 'bytes', 'errors'],
  criu: ['capture', 'replay', 'dump', 'maptype', 'kernel', 'image', 'io', 'bytes', 'errors'],
  toolkit: ['capture', 'replay', 'maptype'],
  width: [],
  render: ['width', 'bytes', 'errors'],
  cli: [
    'render',
    'width',
    'toolkit',
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
    'io',
    'bytes',
    'errors',
  ],
  index: [
    'toolkit',
    'verify',
    'plugins',
    'capture',
    'replay',
    'btf',
    'kernel',
    'dump',
    'json',
    'maptype',
    'image',
    'io',
    'bytes',
    'errors',
  ],
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

t.test('no import points up', async (t) => {
  t.ok(sources.length > 20, 'the sources were found');
  for (const file of sources) {
    const text = fs.readFileSync(path.join(TOP, file), 'utf8');
    for (const [, target = ''] of text.matchAll(/from '(\.[^']+)'|import\('(\.[^']+)'\)/g)) {
      if (target === '') continue;
      const from = layerOf(file);
      const to = layerOf(path.join(path.dirname(file), target));
      t.ok(from === to || LAYERS[from]?.includes(to), `${file} imports ${target}`);
    }
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
