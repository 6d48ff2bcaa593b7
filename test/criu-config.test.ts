/** Settings of the CRIU plugin, and its compilation. What CRIU makes of both is in criu*.test. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { buildPlugin, MARKER, PLUGIN_FILE } from '../src/criu/build.js';
import { readConfig } from '../src/criu/config.js';
import { bpfimg, TOP } from './helpers/command.js';

t.test('settings', async (t) => {
  const folder = t.testdir();
  const file = path.join(folder, 'criu.conf');
  const read = (text: string) => {
    fs.writeFileSync(file, text);
    return readConfig(file);
  };
  const usual = {
    reuse: false,
    drain: true,
    partial: 'warn',
    unresolved: 'fail',
    percpu: undefined,
    libdir: [],
    takeOver: false,
  };
  t.same(readConfig(path.join(folder, 'none')), usual, 'no file is no settings');
  t.same(read(''), usual);
  t.same(read('# all\n\n  reuse yes # really\npartial fail\n drain\tno\nunresolved skip\npercpu sum\n'), {
    ...usual,
    reuse: true,
    partial: 'fail',
    drain: false,
    unresolved: 'skip',
    percpu: 'sum',
  });
  t.same(read('take-over yes\ndump-timeout 5\nrestore-timeout 600\nrestore-hook-arguments 2').takeOver, true);
  t.same(read('libdir /a\nlibdir /b').libdir, ['/a', '/b'], 'every one counts');
  t.same(read('reuse yes\nreuse no').reuse, false, 'the last one counts');
  for (const [text, message] of [
    ['reuse', 'line 1: reuse : expected yes, no'],
    ['\nreuse maybe', 'line 2: reuse maybe: expected yes, no'],
    ['reuse yes no', 'line 1: reuse yes no: expected yes, no'],
    ['dump-timeout 0', 'line 1: dump-timeout 0: expected seconds'],
    ['dump-timeout 1s', 'line 1: dump-timeout 1s: expected seconds'],
    ['libdir plugins', 'line 1: libdir plugins: expected an absolute path'],
    ['reus yes', 'line 1: no setting is named reus'],
    ['constructor yes', 'line 1: no setting is named constructor'],
  ] as const) {
    t.throws(() => read(text), { message: `${file}: ${message}` }, text);
  }
  fs.mkdirSync(path.join(folder, 'folder'));
  t.throws(() => readConfig(path.join(folder, 'folder')), { message: /folder: cannot read it/ });
});

t.test('the document names every setting', async (t) => {
  const document = fs.readFileSync(path.join(TOP, 'docs/criu-plugin.md'), 'utf8');
  const source = fs.readFileSync(path.join(TOP, 'src/criu/config.ts'), 'utf8');
  const table = /SETTINGS[^{]*\{([^}]*)\}/.exec(source)?.[1] ?? '';
  const names = [...table.matchAll(/^ {2}'?([a-z-]+)'?:/gm)].map(([, name]) => name);
  t.ok(names.length >= 10, 'they were found');
  for (const name of names) t.ok(document.includes(`\`${name}\``), `${name}`);
});

const compiler = spawnSync('cc', ['--version']).error === undefined;

t.test('compiled where it is wanted', { skip: !compiler && 'no C compiler (cc)' }, async (t) => {
  const folder = path.join(t.testdir(), 'some "odd" place');
  const config = path.join(folder, 'settings');
  const file = buildPlugin(folder, { version: '1.2.3', config });
  t.equal(file, path.join(folder, PLUGIN_FILE));
  t.same(fs.readdirSync(folder), [PLUGIN_FILE], 'and nothing beside it: CRIU would load it');
  const bytes = fs.readFileSync(file, 'latin1');
  const at = bytes.indexOf(MARKER);
  const [version, node, script, settings] = bytes.slice(at + MARKER.length).split('\n');
  t.same([version, node, settings], ['1.2.3', process.execPath, config]);
  t.ok(fs.existsSync(script as string), 'it runs a script that is there');
  const before = fs.readFileSync(file);

  t.test('a compiler that fails leaves the old one', async (t) => {
    const wrong = { version: '2', config, compiler: 'false' };
    t.throws(() => buildPlugin(folder, wrong), { message: /bpfimg\.c: false: exit status 1$/ });
    const none = { version: '2', config, compiler: path.join(folder, 'no-cc') };
    t.throws(() => buildPlugin(folder, none), { message: /cannot be run.*gcc libc6-dev/ });
    t.same(fs.readdirSync(folder), [PLUGIN_FILE]);
    t.ok(fs.readFileSync(file).equals(before));
  });

  const done = spawnSync('nm', ['-D', file], { encoding: 'utf8' });
  t.test('no symbol that some CRIU lacks', { skip: done.error !== undefined && 'no nm' }, async (t) => {
    const lines = done.stdout.trim().split('\n');
    const undefinedOnes = lines.filter((line) => / U /.test(line) && !/@GLIBC/.test(line));
    t.same(
      undefinedOnes.map((line) => line.trim()),
      ['U criu_get_image_dir'],
      'every other one of CRIU is weak',
    );
    const defined = lines.filter((line) => / [DTBR] /.test(line));
    t.equal(defined.length, 1);
    t.match(defined[0] ?? '', /CR_PLUGIN_DESC$/);
  });
});

t.test('criu build', { skip: !compiler && 'no C compiler (cc)' }, async (t) => {
  const folder = t.testdir({ file: '' });
  const done = bpfimg(['criu', 'build', '--out', path.join(folder, 'lib')]);
  t.equal(done.status, 0);
  t.equal(done.stdout.toString(), `libdir ${path.join(folder, 'lib')}\n`, 'the line for the settings, alone');
  t.equal(done.stderr, '');
  const bad = bpfimg(['criu', 'build', '--out', path.join(folder, 'file')]);
  t.equal(bad.status, 1);
  t.match(bad.stderr, /^bpfimg: \/[^\n]*file: [^\n]*\n$/);
});

t.test('the helpers are not for people', async (t) => {
  for (const words of [
    ['criu-dump'],
    ['criu-dump', 'x'],
    ['criu-dump', 'x', '0'],
    ['criu-restore'],
    ['criu-restore', 'x', '1'],
  ]) {
    const done = bpfimg(words);
    t.equal(done.status, 2, words.join(' '));
    t.match(done.stderr, /^bpfimg: criu-(dump|restore) is for the CRIU plugin/);
  }
});
