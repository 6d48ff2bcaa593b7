// Makes dist/: the command line as one minified file, so that starting bpfimg costs little more than
// starting Node, and its launcher. What few commands need is loaded when they ask for it.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import { createRequire, isBuiltin } from 'node:module';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const here = import.meta.dirname ?? path.dirname(fileURLToPath(import.meta.url));
const top = path.resolve(here, '../..');
const dist = path.join(top, `.dist-${process.pid}`); // becomes dist/ when it is whole
const { version } = JSON.parse(fs.readFileSync(path.join(top, 'package.json'), 'utf8'));

/** Modules that stay outside of the bundle and are loaded by a plain `require`, cheaper than `import()`. */
const APART = /^(node:.*|koffi|\.\/validators\.cjs)$/;

const parts = {
  name: 'parts',
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /\/platform-shims\/esm\.mjs$/ }, () => ({ path: path.join(here, 'yargs-platform.mjs') }));
    onResolve({ filter: /\/validators\.gen\.js$/ }, () => ({ path: './validators.cjs', namespace: 'apart' }));
    onResolve({ filter: /^\.\/import\.js$/ }, () => ({ path: 'import', namespace: 'launcher' }));
    onLoad({ filter: /^/, namespace: 'launcher' }, () => ({
      contents: 'exports.importModule = require.importModule ?? ((url) => import(url));',
    }));
    onResolve({ filter: APART }, ({ path: name, kind }) => {
      if (kind === 'dynamic-import') return { path: name, namespace: 'apart' };
      return kind === 'import-statement' && isBuiltin(name)
        ? { path: name, namespace: 'node' }
        : { path: name, external: true };
    });
    // Else each module that imports it makes a copy of it, with an accessor for every name.
    onLoad({ filter: /^/, namespace: 'node' }, ({ path: name }) => {
      const builtin = Object.getOwnPropertyDescriptors(createRequire(import.meta.url)(name));
      const names = Object.keys(builtin).filter(
        (one) => ('value' in builtin[one] || one === 'parseArgs') && /^[A-Za-z_]\w*$/.test(one) && one !== 'default',
      );
      return {
        contents: `const all = require(${JSON.stringify(name)});\nexport default all;\nexport const { ${names.join(', ')} } = all;`,
        resolveDir: top,
      };
    });
    onLoad({ filter: APART, namespace: 'apart' }, ({ path: name }) => ({
      contents: `module.exports = require(${JSON.stringify(name)});`,
    }));
  },
};

const options = {
  absWorkingDir: top,
  bundle: true,
  platform: 'node',
  target: 'node20',
  format: 'cjs',
  minify: true,
  legalComments: 'none',
  logLevel: 'warning',
  metafile: true,
};

process.on('exit', () => fs.rmSync(dist, { recursive: true, force: true }));
/** A bundle of `entry` in dist/. */
const bundle = (entry, name, more = {}) =>
  build({
    ...options,
    entryPoints: [entry],
    outfile: path.join(dist, name),
    sourcemap: 'linked', // for --debug
    sourcesContent: false,
    define: { BPFIMG_VERSION: JSON.stringify(version), ...more.define },
    banner: more.banner,
    plugins: [parts],
  });

const { metafile } = await bundle('src/cli/bin.ts', 'bpfimg.cjs', {
  banner: { js: 'const bundleUrl=require("node:url").pathToFileURL(__filename).href;' },
  define: { 'import.meta.url': 'bundleUrl' },
});
await bundle('src/cli/criu-bin.ts', 'criu.cjs');

await build({ ...options, entryPoints: ['src/json/validators.gen.ts'], outfile: path.join(dist, 'validators.cjs') });

// The bundle carries code of others: their licences go with it.
const bundled = new Set(
  Object.keys(metafile.inputs).flatMap((file) => /^node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(file)?.[1] ?? []),
);
const licences = [...bundled].sort().map((name) => {
  const folder = path.join(top, 'node_modules', name);
  const file = fs.readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  if (file === undefined) throw new Error(`${name} has no licence file`);
  return `${name}\n\n${fs.readFileSync(path.join(folder, file), 'utf8').trim()}\n`;
});
fs.writeFileSync(path.join(dist, 'THIRD-PARTY.txt'), licences.join(`\n${'-'.repeat(80)}\n`));

const hash = createHash('sha256');
for (const name of fs
  .readdirSync(dist)
  .filter((one) => one.endsWith('.cjs'))
  .sort()) {
  hash.update(fs.readFileSync(path.join(dist, name)));
}
const id = hash.digest('hex').slice(0, 8);
const launcher = path.join(dist, 'bpfimg');
const text = fs.readFileSync(path.join(here, 'launcher.cjs'), 'utf8').replace('@BUILD@', id);
fs.writeFileSync(launcher, text, { mode: 0o755 });
fs.writeFileSync(path.join(dist, 'package.json'), '{ "type": "commonjs" }\n');

// The first run of each command leaves its compiled code beside the bundle (see launcher.cjs).
const bpfimg = (args, input, cwd = path.join(top, 'fixtures/flowd')) =>
  execFileSync(process.execPath, [launcher, ...args], { cwd, input, stdio: 'pipe' });
const json = bpfimg(['decode', 'bpfmap-data.img']);
bpfimg(['encode'], json);
bpfimg(['--version']);
const empty = fs.mkdtempSync(path.join(dist, 'dump-'));
for (const [args, cwd] of [
  [['info', 'inventory.img']],
  [['show', '.']],
  [['verify', '.']],
  [['diff', '.', '.']],
  [['list']],
  [['replay', '.', '--dry-run']],
  // What the CRIU plugin runs, for a CRIU that traces nobody: the maps of no task.
  [['criu-dump', 'none.conf', String(process.pid)], empty],
  [['criu-restore', 'none.conf'], empty],
]) {
  try {
    bpfimg(args, '', cwd);
  } catch {
    // It only starts slower: a machine that cannot look at live maps, or a fault for the tests to find.
  }
}

fs.rmSync(empty, { recursive: true });

// In one step as far as that goes: somebody may be running the old one.
const [place, old] = [path.join(top, 'dist'), `${dist}.old`];
if (fs.existsSync(place)) fs.renameSync(place, old);
fs.renameSync(dist, place);
fs.rmSync(old, { recursive: true, force: true });
