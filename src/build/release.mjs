// Makes what people install, the same bytes from the same sources: the npm package, and Debian packages of the command.
// `npm run release -- FOLDER`; its files get the time of the last commit, or SOURCE_DATE_EPOCH.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { fileURLToPath } from 'node:url';

const top = fileURLToPath(new URL('../../', import.meta.url));
const own = JSON.parse(fs.readFileSync(path.join(top, 'package.json'), 'utf8'));

const [out] = process.argv.slice(2);
if (out === undefined) throw new Error('usage: npm run release -- FOLDER');

const run = (command, args, options) =>
  execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], ...options });

/** Of all files, in seconds. */
const time = Number(process.env.SOURCE_DATE_EPOCH ?? run('git', ['log', '-1', '--format=%ct'], { cwd: top }));

/** Debian's version: the first package of this version. */
const VERSION = `${own.version}-1`;
const MAINTAINER = `${own.author} <bpfimg@example.org>`;

/** Debian's names of processors, with Node's. */
const ARCHITECTURES = { amd64: 'x64', arm64: 'arm64' };

/** What the command loads of packages that are not in its bundle. */
const LOADED = {
  koffi: /^(package\.json|LICENSE\.txt|index\.cjs|src\/koffi\/(index|src\/static)\.cjs)$/,
  '@koromix/koffi-linux-CPU': /^(package\.json|index\.js|linux_\w+\/koffi\.node)$/,
  '@bokuweb/zstd-wasm': /^(package\.json|dist\/common\/.*\.(js|wasm))$/,
};

/** Where shells look for completions. */
const COMPLETIONS = {
  bash: 'usr/share/bash-completion/completions/bpfimg',
  zsh: 'usr/share/zsh/vendor-completions/_bpfimg',
  fish: 'usr/share/fish/vendor_completions.d/bpfimg.fish',
};

const CONTROL = (architecture, kib) => `Package: bpfimg
Version: ${VERSION}
Architecture: ${architecture}
Maintainer: ${MAINTAINER}
Installed-Size: ${kib}
Depends: libc6 (>= 2.25), nodejs (${own.engines.node.replace('>=', '>= ')})
Suggests: bpftool, criu, gcc, libc6-dev
Section: admin
Priority: optional
Homepage: ${own.repository.url.replace(/\.git$/, '')}
Description: inspect, edit and restore the BPF maps in CRIU dumps
 CRIU checkpoints processes into a folder of images. bpfimg turns the BPF maps
 in those images into JSON and back, byte for byte. It also captures maps of
 the running kernel and creates them again, so that their contents survive a
 reboot, an upgrade, a move to another host or a change of their size.
 .
 "bpfimg criu build" compiles a plugin with which CRIU itself dumps and
 restores the BPF maps of processes.
`;

// The first run of each command leaves what V8 compiled beside the code, as Python does in __pycache__.
const PRERM = `#!/bin/sh
set -e
rm -f /usr/lib/bpfimg/dist/*.cache*
`;

const CHANGELOG = `bpfimg (${VERSION}) unstable; urgency=medium

  * Version ${own.version}: see changelog.gz.

 -- ${MAINTAINER}  ${new Date(time * 1000).toUTCString().replace('GMT', '+0000')}
`;

const COPYRIGHT = `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: bpfimg
Source: ${own.repository.url}

Files: *
Copyright: 2026 ${own.author}
License: Expat

Files: usr/lib/bpfimg/plugins/criu/*
Copyright: 2026 ${own.author}
License: GPL-2
 On Debian systems, the full text of the GNU General Public License version 2
 is in /usr/share/common-licenses/GPL-2.
`;

const filesOf = (folder) =>
  fs
    .readdirSync(folder, { recursive: true })
    .filter((name) => !fs.statSync(path.join(folder, name)).isDirectory())
    .sort();

/** Copies the files of a folder whose names match. */
function copy(from, to, matching = /^/) {
  for (const name of filesOf(from).filter((one) => matching.test(one))) {
    fs.mkdirSync(path.dirname(path.join(to, name)), { recursive: true });
    fs.copyFileSync(path.join(from, name), path.join(to, name));
  }
}

/** Writes a file and the folders above it. */
function write(file, text) {
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.writeFileSync(file, text);
}

/** Compresses a text as Debian wants it. */
const gzipped = (input) => execFileSync('gzip', ['-9n'], { input });

/** What the package for a processor has in it, in `root`. @param unpacked the npm package */
function stage(root, unpacked, cpu) {
  const [lib, doc] = [path.join(root, 'usr/lib/bpfimg'), path.join(root, 'usr/share/doc/bpfimg')];
  const launcher = path.join(lib, 'dist/bpfimg');
  copy(path.join(unpacked, 'dist'), path.join(lib, 'dist'), /^(?!man\/|THIRD-PARTY|sbom)/);
  copy(path.join(unpacked, 'plugins/criu'), path.join(lib, 'plugins/criu'), /\.c$/);
  write(launcher, fs.readFileSync(launcher, 'utf8').replace(/^#!.*/, '#!/usr/bin/node'));
  fs.mkdirSync(path.join(root, 'usr/bin'));
  fs.symlinkSync('../lib/bpfimg/dist/bpfimg', path.join(root, 'usr/bin/bpfimg'));

  // As the lock file has them, for that processor.
  const packages = path.join(root, '..', `packages-${cpu}`);
  fs.mkdirSync(packages);
  for (const name of ['package.json', 'package-lock.json'])
    fs.copyFileSync(path.join(top, name), path.join(packages, name));
  run('npm', ['ci', '--silent', '--omit=dev', '--ignore-scripts', '--os=linux', `--cpu=${cpu}`], { cwd: packages });
  for (const [name, matching] of Object.entries(LOADED)) {
    const folder = path.join('node_modules', name.replace('CPU', cpu));
    copy(path.join(packages, folder), path.join(lib, folder), matching);
  }

  for (const name of fs.readdirSync(path.join(unpacked, 'dist/man'))) {
    const page = fs.readFileSync(path.join(unpacked, 'dist/man', name));
    write(path.join(root, 'usr/share/man/man1', `${name}.gz`), gzipped(page));
  }
  // Or it would leave what V8 compiled in the folder that the next package is made of.
  const env = { ...process.env, NODE_DISABLE_COMPILE_CACHE: '1' };
  for (const [shell, file] of Object.entries(COMPLETIONS)) {
    const script = run(process.execPath, [path.join(unpacked, 'dist/bpfimg'), 'completion', shell], { env });
    write(path.join(root, file), script);
  }
  for (const folder of ['docs', 'images']) copy(path.join(unpacked, folder), path.join(doc, folder), /^(?!changelog)/);
  copy(unpacked, doc, /^(README\.md|dist\/sbom\.cdx\.json)$/);
  fs.renameSync(path.join(doc, 'dist/sbom.cdx.json'), path.join(doc, 'sbom.cdx.json'));
  fs.rmdirSync(path.join(doc, 'dist'));
  write(path.join(doc, 'changelog.gz'), gzipped(fs.readFileSync(path.join(unpacked, 'docs/changelog.md'))));
  write(path.join(doc, 'changelog.Debian.gz'), gzipped(CHANGELOG));
  const licence = (name) => fs.readFileSync(path.join(packages, 'node_modules', name, 'LICENSE.txt'), 'utf8').trim();
  const others = fs.readFileSync(path.join(unpacked, 'dist/THIRD-PARTY.txt'), 'utf8');
  const line = '-'.repeat(80);
  const mit = fs.readFileSync(path.join(unpacked, 'LICENSE'), 'utf8');
  write(path.join(doc, 'copyright'), [COPYRIGHT, mit, `koffi\n\n${licence('koffi')}\n`, others].join(`\n${line}\n\n`));
}

/** Gives everything the same owner, modes and time, whatever made it, and packs it. */
function pack(root, architecture, file) {
  const names = filesOf(root);
  const sums = names
    .filter((name) => !fs.lstatSync(path.join(root, name)).isSymbolicLink())
    .map(
      (name) =>
        `${createHash('md5')
          .update(fs.readFileSync(path.join(root, name)))
          .digest('hex')}  ${name}\n`,
    );
  const bytes = names.reduce((sum, name) => sum + fs.lstatSync(path.join(root, name)).size, 0);
  write(path.join(root, 'DEBIAN/control'), CONTROL(architecture, Math.ceil(bytes / 1024)));
  write(path.join(root, 'DEBIAN/md5sums'), sums.join(''));
  write(path.join(root, 'DEBIAN/prerm'), PRERM);
  for (const name of ['.', ...fs.readdirSync(root, { recursive: true })]) {
    const place = path.join(root, name);
    const link = fs.lstatSync(place);
    if (!link.isSymbolicLink()) {
      const executable = link.isDirectory() || /^(DEBIAN\/prerm|usr\/lib\/bpfimg\/dist\/bpfimg)$/.test(name);
      fs.chmodSync(place, executable ? 0o755 : 0o644);
    }
    fs.lutimesSync(place, time, time);
  }
  // With several threads xz cuts its input into other pieces.
  const env = { ...process.env, SOURCE_DATE_EPOCH: String(time), DPKG_DEB_THREADS_MAX: '1' };
  run('dpkg-deb', ['--root-owner-group', '-Zxz', '--build', root, file], { env });
}

process.umask(0o022);
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-release-'));
try {
  const env = { ...process.env, SOURCE_DATE_EPOCH: String(time) };
  const packed = run('npm', ['pack', '--silent', '--pack-destination', scratch], { cwd: top, env }).trim();
  const tarball = packed.split('\n').at(-1);
  run('tar', ['-xzf', tarball], { cwd: scratch });
  // npm keeps the modes that files have here, which depend on who checked them out.
  const alike = ['--sort=name', '--owner=0', '--group=0', '--numeric-owner', '--mode=u=rwX,go=rX', `--mtime=@${time}`];
  run('tar', [...alike, '--format=ustar', '--use-compress-program=gzip -9n', '-cf', tarball, 'package'], {
    cwd: scratch,
  });
  const files = [tarball];
  for (const [architecture, cpu] of Object.entries(ARCHITECTURES)) {
    const root = path.join(scratch, architecture);
    fs.mkdirSync(root);
    stage(root, path.join(scratch, 'package'), cpu);
    files.push(`bpfimg_${VERSION}_${architecture}.deb`);
    pack(root, architecture, path.join(scratch, files.at(-1)));
  }
  fs.mkdirSync(out, { recursive: true });
  for (const name of files) {
    fs.copyFileSync(path.join(scratch, name), path.join(out, name));
    process.stdout.write(`${path.join(out, name)}\n`);
  }
} finally {
  fs.rmSync(scratch, { recursive: true });
}
