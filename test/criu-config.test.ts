/** Settings of the CRIU plugin, and its compilation. What CRIU makes of both is in criu*.test. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import t from 'tap';
import { run } from '../src/cli/commands/criu-build.js';
import { mapTypes } from '../src/cli/plugins.js';
import { buildPlugin, MARKER, PLUGIN_FILE } from '../src/criu/build.js';
import { readConfig } from '../src/criu/config.js';
import { libdirLine, libdirOf } from '../src/criu/install.js';
import { MemoryOutput } from '../src/io/output.js';
import { bpfimg, TOP } from './helpers/command.js';
import { compile } from './helpers/criu.js';

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
    keepPrograms: false,
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
  t.match(read('keep-programs yes'), { keepPrograms: true, reuse: true });
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
  t.throws(() => readConfig(path.join(folder, 'folder')), { message: /folder: not a regular file/ });
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

/** Lines of a settings file, and what is wrong with them; undefined for nothing. */
const LINES: readonly [text: string, wrong?: string][] = [
  [''],
  ['# nothing\n\n   \n\t#'],
  ['take-over yes\ndump-timeout 5\nrestore-timeout 99999\nrestore-hook-arguments 2\n'],
  ['take-over yes\ntake-over no\ndump-timeout 7\ndump-timeout 8'],
  ['  dump-timeout\t30 # seconds\r\n\ftake-over  yes\v\r\n'],
  ['reuse yes\ndrain no\npartial fail\nunresolved skip\npercpu spread\nlibdir /a/b\nlibdir /ü#x'],
  ['dump-timeout soon', 'line 1: dump-timeout soon: expected seconds'],
  ['dump-timeout 0', 'line 1: dump-timeout 0: expected seconds'],
  ['dump-timeout 05', 'line 1: dump-timeout 05: expected seconds'],
  ['dump-timeout -1', 'line 1: dump-timeout -1: expected seconds'],
  ['dump-timeout 100000', 'line 1: dump-timeout 100000: expected seconds'],
  ['dump-timeout 9s', 'line 1: dump-timeout 9s: expected seconds'],
  ['dump-timeout 5 6', 'line 1: dump-timeout 5 6: expected seconds'],
  ['\n\nrestore-timeout', 'line 3: restore-timeout : expected seconds'],
  ['restore-hook-arguments 3', 'line 1: restore-hook-arguments 3: expected 1, 2'],
  ['restore-hook-arguments 1,', 'line 1: restore-hook-arguments 1,: expected 1, 2'],
  ['take-over', 'line 1: take-over : expected yes, no'],
  ['take-over Yes', 'line 1: take-over Yes: expected yes, no'],
  ['take-over ye', 'line 1: take-over ye: expected yes, no'],
  ['take-over yes no', 'line 1: take-over yes no: expected yes, no'],
  ['take-over=yes', 'line 1: no setting is named take-over=yes'],
  ['take-over\u00a0yes', 'line 1: no setting is named take-over\u00a0yes'],
  ['\ufefftake-over yes', 'line 1: no setting is named \ufefftake-over'],
  ['Take-over yes', 'line 1: no setting is named Take-over'],
  ['take-over yes\0', 'line 1: a NUL byte'],
  ['# a comment\0\ntake-over yes', 'line 1: a NUL byte'],
  ['percpu last', 'line 1: percpu last: expected first, sum, spread'],
  ['libdir plugins', 'line 1: libdir plugins: expected an absolute path'],
  ['take-over yes\nreus yes\ndump-timeout soon', 'line 2: no setting is named reus'],
];

t.test('the plugin and its helpers read one grammar', { skip: !compiler && 'no C compiler (cc)' }, async (t) => {
  const folder = t.testdir();
  const file = path.join(folder, 'criu.conf');
  const program = path.join(folder, 'steps');
  const macros = ['VERSION', 'NODE', 'BPFIMG'].map((name) => `-D${name}="/none"`);
  const source = path.join(TOP, 'test/helpers/plugin-steps.c');
  compile('-std=gnu11', ...macros, `-DCONFIG=${JSON.stringify(file)}`, '-o', program, source);
  const inC = () => spawnSync(program, ['settings'], { encoding: 'utf8' }).stdout.trimEnd();
  const inTs = () => {
    try {
      const { takeOver } = readConfig(file);
      return `take-over ${takeOver ? 'yes' : 'no'}`;
    } catch (error) {
      return (error as Error).message;
    }
  };
  for (const [text, wrong] of LINES) {
    fs.writeFileSync(file, text);
    const [c, ts] = [inC(), inTs()];
    if (wrong === undefined) {
      const last = (name: string, otherwise: string) =>
        [...text.matchAll(new RegExp(`${name}\\s+(\\w+)`, 'g'))].at(-1)?.[1] ?? otherwise;
      const takeOver = `take-over ${last('take-over', 'no')}`;
      const timeouts = `dump-timeout ${last('dump-timeout', '60')}, restore-timeout ${last('restore-timeout', '60')}`;
      t.equal(ts, takeOver, JSON.stringify(text));
      t.equal(c, `${takeOver}, ${timeouts}, restore-hook-arguments ${last('restore-hook-arguments', '0')}`);
    } else t.same([c, ts], [`${file}: ${wrong}`, `${file}: ${wrong}`], JSON.stringify(text));
  }
  fs.rmSync(file);
  t.match([inC(), inTs()], [/^take-over no, dump-timeout 60/, 'take-over no'], 'there is none');

  const root = process.getuid?.() === 0;
  t.test('what root must not trust, neither does', { skip: !root && 'needs root' }, async (t) => {
    fs.writeFileSync(file, 'reuse yes\n');
    for (const [mode, uid, why] of [
      [0o664, 0, 'others may write to it (mode 664)'],
      [0o646, 0, 'others may write to it (mode 646)'],
      [0o600, 12345, 'it belongs to user 12345'],
      [0o644, 0, undefined],
    ] as const) {
      fs.chmodSync(file, mode);
      fs.chownSync(file, uid, 0);
      if (why === undefined) t.match([inC(), inTs()], [/^take-over no, /, 'take-over no']);
      else t.same([inC(), inTs()], Array(2).fill(`${file}: refused as root: ${why}`));
    }
    fs.rmSync(file);
    t.equal(spawnSync('mkfifo', [file]).status, 0);
    t.same([inC(), inTs()], Array(2).fill(`${file}: not a regular file`), 'and does not wait');
  });
});

t.test('plugin folders that root must not trust', { skip: process.getuid?.() !== 0 && 'needs root' }, async (t) => {
  const folder = path.join(t.testdir({ libs: { 'p.mjs': 'export default { name: "p", types: [] };' } }), 'libs');
  const file = path.join(folder, 'p.mjs');
  const said = async (env: Record<string, string> = {}) => {
    const folders = env.BPFIMG_LIBS_DIR === undefined ? [folder] : [];
    return mapTypes(folders, { env }).then(
      () => 'taken',
      (error: Error) => error.message,
    );
  };
  t.match(await said(), /no plugin: expected a list of map types/, 'a sound folder is read');
  for (const [name, mode, uid, why] of [
    [folder, 0o777, 0, 'others may write to it (mode 777)'],
    [folder, 0o1777, 0, 'others may write to it (mode 1777)'],
    [folder, 0o770, 0, 'others may write to it (mode 770)'],
    [folder, 0o755, 12345, 'it belongs to user 12345'],
    [file, 0o666, 0, 'others may write to it (mode 666)'],
    [file, 0o644, 12345, 'it belongs to user 12345'],
  ] as const) {
    fs.chmodSync(name, mode);
    fs.chownSync(name, uid, 0);
    for (const env of [{}, { BPFIMG_LIBS_DIR: folder }]) t.equal(await said(env), `${name}: refused as root: ${why}`);
    fs.chownSync(name, 0, 0);
    fs.chmodSync(name, name === folder ? 0o755 : 0o644);
  }
});

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

t.test('criu build --install and --uninstall', { skip: !compiler && 'no C compiler (cc)' }, async (t) => {
  /** Names, modes and texts of all that is in `top`. */
  const tree = (top: string) =>
    fs
      .readdirSync(top, { recursive: true, encoding: 'utf8' })
      .sort()
      .map((name) => {
        const file = path.join(top, name);
        const { mode, uid } = fs.statSync(file);
        const isFile = fs.statSync(file).isFile();
        return [name, mode.toString(8), uid, isFile && fs.readFileSync(file, 'latin1')];
      });
  /** A place with the files of `etc/criu`; `etc` and `opt` are there, nothing else. */
  const host = (t: { testdir(): string }, files?: Readonly<Record<string, string>>) => {
    const top = t.testdir();
    const [etc, home] = [path.join(top, 'etc/criu'), path.join(top, 'home')];
    for (const name of ['etc', 'opt', 'home']) fs.mkdirSync(path.join(top, name));
    for (const [name, text] of Object.entries(files ?? {})) {
      fs.mkdirSync(etc, { recursive: true });
      fs.writeFileSync(path.join(etc, name), text);
    }
    const conf = path.join(etc, 'default.conf');
    const criuBuild = async (args: { out?: string; install?: boolean; uninstall?: boolean }) => {
      const out = new MemoryOutput();
      const all = { out: path.join(top, 'opt/lib/bpfimg'), install: false, uninstall: false, ...args };
      const io = { stdout: () => out, say: () => {}, terminal: false, env: { HOME: home } };
      await run(all, io as unknown as Parameters<typeof run>[1], etc);
      return out.take().toString().replaceAll(top, 'TOP');
    };
    const text = () => fs.readFileSync(conf, 'utf8');
    return { top, etc, home, conf, criuBuild, text, libdirs: () => text().match(/^libdir .*$/gm) };
  };

  for (const [name, files] of [
    ['nothing is there', undefined],
    ['an empty file', { 'default.conf': '' }],
    ['a file', { 'default.conf': 'tcp-established\n# end\n' }],
    ['a file without a last line end', { 'default.conf': 'tcp-established\nlog-level 4' }],
    ['files of runtimes', { 'runc.conf': 'log-level 4\n', 'crun.conf': '#libdir /other' }],
    ['bytes that are not text', { 'default.conf': '# caf\xe9\n' }],
  ] as const) {
    t.test(name, async (t) => {
      const { top, conf, criuBuild, text, libdirs } = host(t, files);
      if (files !== undefined && 'default.conf' in files) {
        if (name.startsWith('bytes')) fs.writeFileSync(conf, files['default.conf'], 'latin1');
        fs.chmodSync(conf, 0o640);
        if (process.getuid?.() === 0) fs.chownSync(conf, 0, 12);
      }
      const before = tree(top);
      const plugin = path.join(top, 'opt/lib/bpfimg');
      t.equal(
        await criuBuild({ install: true }),
        'TOP/opt/lib/bpfimg/bpfimg.so: built\nTOP/etc/criu/default.conf: libdir TOP/opt/lib/bpfimg: added\n',
      );
      t.same(libdirs(), [`libdir ${plugin}`]);
      t.ok(
        text().endsWith(name.startsWith('bytes') ? '\n' : (files?.['default.conf' as never] ?? '')),
        'the rest is as it was',
      );
      const mode = fs.statSync(conf).mode & 0o777;
      t.equal(mode, files !== undefined && 'default.conf' in files ? 0o640 : 0o644, 'others may read it');
      t.same(fs.readdirSync(plugin), [PLUGIN_FILE]);
      const once = tree(top);
      t.match(await criuBuild({ install: true }), /default\.conf: names its folder already\n$/);
      t.same(tree(top), once, 'again, it changes nothing');
      t.equal(
        await criuBuild({ uninstall: true }),
        'TOP/opt/lib/bpfimg/bpfimg.so: removed\nTOP/etc/criu/default.conf: libdir TOP/opt/lib/bpfimg: removed\n',
      );
      t.same(tree(top), before, 'all is as it was');
      await t.rejects(criuBuild({ uninstall: true }), { message: /default\.conf: (has no lines|.*)/ });
      t.same(tree(top), before);
    });
  }

  t.test('what others put there stays', async (t) => {
    const { top, conf, criuBuild, text } = host(t);
    await criuBuild({ install: true });
    fs.writeFileSync(conf, `shell-job\n${text()}log-level 2\n`);
    fs.writeFileSync(path.join(top, 'opt/lib/bpfimg/cuda_plugin.so'), '');
    await criuBuild({ uninstall: true });
    t.equal(text(), 'shell-job\nlog-level 2\n');
    t.same(fs.readdirSync(path.join(top, 'opt/lib/bpfimg')), ['cuda_plugin.so']);
  });

  t.test('another folder takes the place of the first', async (t) => {
    const { top, criuBuild, libdirs } = host(t);
    const before = tree(top);
    const other = path.join(top, 'opt/"a b" #/c');
    await criuBuild({ install: true });
    await criuBuild({ install: true, out: other });
    t.same(libdirs(), [`libdir "${other.replaceAll('"', '\\"')}"`]);
    t.same(fs.readdirSync(path.join(top, 'opt')), ['"a b" #'], 'the first is gone');
    await criuBuild({ uninstall: true });
    t.same(tree(top), before);
  });

  t.test('a line of the user is enough, and stays', async (t) => {
    const { top, criuBuild, text } = host(t, { 'default.conf': '' });
    const line = `libdir ${path.join(top, 'opt/lib/bpfimg')}\n`;
    fs.writeFileSync(path.join(top, 'etc/criu/default.conf'), line);
    t.match(await criuBuild({ install: true }), /default\.conf: names its folder already\n$/);
    t.equal(text(), line);
    await t.rejects(criuBuild({ uninstall: true }), { message: /default\.conf: has no lines of "bpfimg criu build/ });
    t.equal(text(), line);
  });

  t.test('another plugin folder is in the way, wherever CRIU finds its name', async (t) => {
    for (const name of [
      'etc/criu/default.conf',
      'etc/criu/runc.conf',
      'etc/criu/crun.conf',
      'home/.criu/default.conf',
    ]) {
      const { top, criuBuild } = host(t);
      const file = path.join(top, name);
      fs.mkdirSync(path.dirname(file), { recursive: true });
      fs.writeFileSync(file, 'libdir "/usr/lib/criu"\n');
      const before = tree(top);
      const message = `${file}: its libdir is /usr/lib/criu, and CRIU reads only one plugin folder: use --out /usr/lib/criu`;
      await t.rejects(criuBuild({ install: true }), { message });
      t.same(tree(top), before);
      fs.writeFileSync(file, `libdir ${path.join(top, 'opt/lib/bpfimg/')}\n`);
      await t.resolves(criuBuild({ install: true }), 'the same folder is not');
    }
  });

  t.test('what fails leaves nothing', async (t) => {
    const { top, etc, criuBuild } = host(t);
    fs.writeFileSync(etc, 'not a folder');
    const before = tree(top);
    await t.rejects(criuBuild({ install: true }), { message: /etc\/criu/ });
    t.same(tree(top), before);
    fs.rmSync(etc);
    await t.rejects(criuBuild({ install: true, out: path.join(top, 'opt/a\nb') }), { message: /control characters/ });
    t.same(
      tree(top),
      before.filter(([name]) => name !== 'etc/criu'),
    );
  });

  t.test('links stay links', async (t) => {
    const { top, conf, criuBuild, libdirs } = host(t, { 'default.conf': '' });
    const real = path.join(top, 'opt/real.conf');
    fs.writeFileSync(real, 'shell-job\n');
    fs.rmSync(conf);
    fs.symlinkSync(real, conf);
    await criuBuild({ install: true });
    t.equal(libdirs()?.length, 1);
    await criuBuild({ uninstall: true });
    t.equal(fs.readFileSync(real, 'utf8'), 'shell-job\n');
    t.ok(fs.lstatSync(conf).isSymbolicLink());
  });

  t.equal(bpfimg(['criu', 'build', '--install', '--uninstall']).status, 2, 'one or the other');
  for (const folder of ['/a/b', '/a b', '/a#b', '/a"b"', '/a\\b']) {
    t.equal(libdirOf(libdirLine(folder)), folder);
  }
});

t.test('the helpers are not for people', async (t) => {
  for (const words of [
    ['criu-dump'],
    ['criu-dump', 'x'],
    ['criu-dump', 'x', 'y'],
    ['criu-restore'],
    ['criu-restore', 'x', '1'],
  ]) {
    const done = bpfimg(words);
    t.equal(done.status, 2, words.join(' '));
    t.match(done.stderr, /^bpfimg: criu-(dump|restore) is for the CRIU plugin/);
  }
});
