// Makes dist/: the command line as minified chunks, so that a command reads the code it needs and no other, their
// launcher, and the man pages. Starting bpfimg must cost little more than starting Node.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import { createRequire, isBuiltin } from 'node:module';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';
import { build, transform } from 'esbuild';
import { writeManPages } from './man.mjs';
import { billOfMaterials } from './sbom.mjs';

const here = import.meta.dirname ?? path.dirname(fileURLToPath(import.meta.url));
const top = path.resolve(here, '../..');
const dist = path.join(top, `.dist-${process.pid}`); // becomes dist/ when it is whole
const own = JSON.parse(fs.readFileSync(path.join(top, 'package.json'), 'utf8'));
const { version } = own;

// All that koffi itself does on Linux is to find its library and to add old names, which takes 7 ms.
const koffi = `
  let library;
  try {
    library = REQUIRE('@koromix/koffi-' + process.platform + '-' + process.arch);
  } catch {}
  export default library?.version === '${own.dependencies.koffi}' ? library : REQUIRE('koffi');
`;

const parts = {
  name: 'parts',
  setup({ onResolve, onLoad }) {
    const virtual = (namespace, contents) => onLoad({ filter: /^/, namespace }, contents);
    onResolve({ filter: /^yargs$/ }, () => ({ path: path.join(here, 'yargs.mjs') }));
    onLoad({ filter: /\/yargs\/build\/lib\/(argsert|utils\/apply-extends)\.js$/ }, () => ({
      contents: 'export const argsert = () => {};\nexport const applyExtends = argsert;',
    }));
    onResolve({ filter: /^\.\/import\.js$/ }, ({ path: name }) => ({ path: name, namespace: 'launcher' }));
    virtual('launcher', () => ({
      contents:
        'export const importModule = REQUIRE.importModule ?? ((url) => import(url));\nexport const { launched } = REQUIRE;',
    }));
    onResolve({ filter: /^node:module$/ }, ({ path: name }) => ({ path: name, namespace: 'absent' }));
    virtual('absent', () => ({ contents: 'export const createRequire = undefined;' })); // yargs-parser reads no files
    onResolve({ filter: /^(koffi|@bokuweb\/zstd-wasm)$/ }, ({ path: name }) => ({ path: name, namespace: 'package' }));
    virtual('package', ({ path: name }) => ({
      contents: name === 'koffi' ? koffi : `export default REQUIRE('${name}');`,
    }));
    onResolve({ filter: /^/ }, ({ path: name, kind }) =>
      isBuiltin(name) && kind === 'import-statement' ? { path: name, namespace: 'node' } : undefined,
    );
    // Only what is used of it, for some members load more of Node when they are read.
    virtual('node', ({ path: name }) => {
      const names = Object.keys(createRequire(import.meta.url)(name)).filter((one) => /^[A-Za-z_]\w*$/.test(one));
      const used = names.map((one) => `export const ${one} = /* @__PURE__ */ (() => all.${one})();\n`);
      return { contents: `const all = /* @__PURE__ */ REQUIRE('${name}');\nexport default all;\n${used.join('')}` };
    });
  },
};

process.on('exit', () => fs.rmSync(dist, { recursive: true, force: true }));
const options = { minifySyntax: true, legalComments: 'none', logLevel: 'warning', sourcesContent: false };

// esbuild splits only what stays in ES modules.
const { metafile, outputFiles } = await build({
  ...options,
  absWorkingDir: top,
  bundle: true,
  platform: 'node',
  target: 'node18',
  splitting: true,
  format: 'esm',
  entryPoints: ['src/cli/bin.ts', 'src/cli/criu-bin.ts'],
  outdir: dist,
  outExtension: { '.js': '.cjs' },
  write: false,
  metafile: true,
  sourcemap: 'inline', // for --debug
  minifyIdentifiers: true,
  define: {
    BPFIMG_VERSION: JSON.stringify(version),
    'import.meta.url': 'URL_OF_CHUNK',
    'process.env.YARGS_MIN_NODE_VERSION': '"18"', // yargs-parser refuses older ones than it is tested with
    fetch: 'undefined', // zstddec would load its own code through Node's HTTP client
  },
  plugins: [parts],
});

// The launcher, and V8's code cache, need functions. What a chunk exports never changes, so that no accessors are needed.
fs.mkdirSync(dist);
const renamed = (names, form) => names.replace(/(\S+) as ([^\s,]+)/g, form);
for (const { path: file, text } of outputFiles) {
  const plain = text
    .replace(
      /^import \{([^}]*)\} from (".*");$/gm,
      (_, names, from) => `const {${renamed(names, '$1: $2')}} = require(${from});`,
    )
    .replace(/^import (".*");$/gm, 'require($1);')
    .replace(/^export \{([^}]*)\};$/gm, (_, names) => `module.exports = {${renamed(names, '$2: $1')}};`)
    .replace(/\bimport\(("(\.\/|node:)[\w.-]+")\)/g, 'Promise.resolve().then(() => require($1))')
    .replaceAll('URL_OF_CHUNK', 'require("node:url").pathToFileURL(__filename).href')
    .replaceAll('REQUIRE', 'require');
  const { code, map } = await transform(plain, {
    ...options,
    minifyWhitespace: true,
    sourcefile: path.basename(file),
    sourcemap: 'external',
  });
  fs.writeFileSync(file, `${code}//# sourceMappingURL=${path.basename(file)}.map\n`);
  fs.writeFileSync(`${file}.map`, map);
}

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
const bill = billOfMaterials(top, [...bundled].sort());
fs.writeFileSync(path.join(dist, 'sbom.cdx.json'), `${JSON.stringify(bill, null, 2)}\n`);

const { SOURCE_DATE_EPOCH: seconds } = process.env;
const built = seconds === undefined ? new Date() : new Date(Number(seconds) * 1000);
await writeManPages(path.join(dist, 'man'), version, built.toISOString().slice(0, 10));

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

// The first two runs of each command leave its compiled code beside the bundle (see launcher.cjs).
const bpfimg = (args, input, cwd = path.join(top, 'fixtures/flowd')) =>
  execFileSync(process.execPath, [launcher, ...args], { cwd, input, stdio: 'pipe' });
const empty = fs.mkdtempSync(path.join(dist, 'dump-'));
const saved = path.join(empty, 'capture');
// Fresh maps that are gone at the end, and a capture of them.
const capturing = ['-c', 'exec "$0" "$1" capture --pid $$ --force -D "$2"', process.execPath, launcher, saved];
const json = bpfimg(['decode', 'bpfmap-data.img']);
for (const [args, { cwd, input = '' } = {}] of [
  [['decode', 'bpfmap-data.img']],
  [['encode'], { input: json }],
  [['--version']],
  [['info', 'inventory.img']],
  [['show', '.']],
  [['verify', '.']],
  [['diff', '.', '.']],
  [['list']],
  [['replay', '.', '--', '/bin/sh', ...capturing]],
  // Where that is not possible, what goes without it.
  [['replay', '.', '--dry-run']],
  // What the CRIU plugin runs, for a CRIU that traces nobody: the maps of no task.
  [['criu-dump', 'none.conf', String(process.pid)], { cwd: empty }],
  [['criu-restore', 'none.conf'], { cwd: empty }],
]) {
  try {
    for (let run = 0; run < 2; run++) bpfimg(args, input, cwd);
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
