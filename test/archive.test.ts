/** Archives of tar, GNU's and Python's, as containers' checkpoints are, and what is broken of them. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import * as zlib from 'node:zlib';
import t from 'tap';
import { type Archive, arrivingArchive, openArchive } from '../src/archive/archive.js';
import { compressing } from '../src/archive/compress.js';
import { archiveFormat, type Format, HEAD } from '../src/archive/compression.js';
import { BLOCK, makeHeader, makeRecords, padding } from '../src/archive/header.js';
import { rewriteArchive } from '../src/archive/rewrite.js';
import { ArchiveOutput, fileHeader } from '../src/archive/writer.js';
import { BpfimgError } from '../src/errors.js';
import { bufferInput, type Input, openInput, streamInput } from '../src/io/input.js';
import { MemoryOutput } from '../src/io/output.js';
import { TOP } from './helpers/command.js';
import { skipWithout } from './helpers/crit.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-archive-'));
t.teardown(() => fs.rmSync(folder, { recursive: true }));

const noZstd = skipWithout('zstd');
const noPython = skipWithout('python3');

const options = { mode: 0o600, mtime: 1_700_000_000 };
const END = Buffer.alloc(2 * BLOCK);

/** An entry by hand: its header, and its bytes with what fills up their block. */
function entry(name: string, bytes: Buffer | string = '', type = '0', size = Buffer.byteLength(bytes)): Buffer {
  const body = Buffer.from(bytes);
  return Buffer.concat([makeHeader(name, type, size, options), body, Buffer.alloc(padding(body.length))]);
}

const pax = (records: readonly (readonly [string, string])[]) => entry('pax', makeRecords(records), 'x');

/** Sums anew what was changed. */
function summed(block: Buffer): Buffer {
  block.fill(' ', 148, 156);
  const sum = block.reduce((all, byte) => all + byte, 0);
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return block;
}

/** The same bytes as from a pipe, in odd pieces. */
function piped(bytes: Buffer, name = 'pipe'): Input {
  return streamInput(
    (async function* () {
      for (let at = 0; at < bytes.length; at += 1009) yield bytes.subarray(at, at + 1009);
    })(),
    name,
  );
}

async function contents(archive: Archive, name: string): Promise<string | undefined> {
  const input = archive.open(name);
  if (input === undefined) return undefined;
  const bytes = Buffer.alloc(input.size as number);
  for (let done = 0; done < bytes.length; ) {
    const got = await input.read(bytes.subarray(done), done);
    if (got === 0) throw new Error('shorter than it says');
    done += got;
  }
  return bytes.toString('latin1');
}

/** All wanted files of an archive; what it says when it is refused. */
async function filesOf(input: Input, wanted = (_: string) => true): Promise<Record<string, string> | string> {
  let archive: Archive;
  try {
    archive = await openArchive(input, wanted);
  } catch (error) {
    if (!(error instanceof BpfimgError)) throw error;
    return error.message;
  }
  try {
    const files: Record<string, string> = {};
    for (const [name, { type }] of archive.entries) {
      if (type === 'file' && wanted(name)) files[name] = (await contents(archive, name)) as string;
    }
    return files;
  } finally {
    archive.close();
  }
}

const run = (command: string, args: readonly string[], input?: Buffer) =>
  execFileSync(command, args, { cwd: folder, input, maxBuffer: 1 << 30, stdio: ['pipe', 'pipe', 'pipe'] });

/** Every way to hand over the same archive. */
async function everyWay(bytes: Buffer): Promise<[string, Input][]> {
  fs.writeFileSync(path.join(folder, 'plain.tar'), bytes);
  const gz = run('gzip', ['-c'], bytes);
  const zst = run('zstd', ['-c'], bytes);
  const half = BLOCK * Math.floor(bytes.length / BLOCK / 2) + 100;
  const both = (compress: (part: Buffer) => Buffer) =>
    Buffer.concat([compress(bytes.subarray(0, half)), compress(bytes.subarray(half))]);
  const skippable = Buffer.from('532a4d180400000061626364', 'hex');
  return [
    ['file', await openInput(path.join(folder, 'plain.tar'))],
    ['pipe', piped(bytes)],
    ['gzip', bufferInput(gz)],
    ['gzip from a pipe', piped(gz)],
    ['gzip in two members', bufferInput(both((part) => zlib.gzipSync(part)))],
    ['zstd', bufferInput(zst)],
    ['zstd from a pipe', piped(zst)],
    ['zstd in two frames', bufferInput(both((part) => run('zstd', ['-c', '--check'], part)))],
    ['zstd with frames to be skipped', bufferInput(Buffer.concat([skippable, zst, skippable]))],
    ['zstd with a large window', bufferInput(run('zstd', ['-c', '-19', '--long=27'], bytes))],
  ];
}

t.test('podman’s archives', { skip: noZstd }, async (t) => {
  for (const name of fs.readdirSync(path.join(TOP, 'fixtures/archives'))) {
    const file = path.join(TOP, 'fixtures/archives', name);
    const archive = await openArchive(await openInput(file), (one) => one.startsWith('checkpoint/'));
    t.equal(archive.format, name.endsWith('zst') ? 'zstd' : 'gzip');
    const tar = run(name.endsWith('zst') ? 'zstd' : 'gzip', ['-dc', file]);
    const names = run('tar', ['-tf', '-'], tar).toString().split('\n').filter(Boolean);
    t.same(
      [...archive.entries.keys()],
      names.map((one) => one.replace(/\/$/, '')),
    );
    for (const one of ['checkpoint/bpfimg-data.img', 'checkpoint/files.img', 'checkpoint/pstree.img']) {
      t.equal(await contents(archive, one), run('tar', ['-xOf', '-', one], tar).toString('latin1'), one);
    }
    t.equal(archive.open('config.dump'), undefined, 'what was not wanted');
    archive.close();
  }
});

t.test('archives as they are made, handed over in every way', { skip: noZstd || noPython }, async (t) => {
  const long = `checkpoint/${'l'.repeat(180)}/${'m'.repeat(180)}.img`;
  const files: Record<string, string> = {
    'checkpoint/files.img': 'files',
    'checkpoint/bpfmap-data.img': 'd'.repeat(100_000),
    'checkpoint/empty.img': '',
    'config.dump': '{}',
    [long]: 'a long name',
    'checkpoint/\u00fc\u00ff.img': 'latin',
  };
  const source = path.join(folder, 'source');
  for (const [name, text] of Object.entries(files)) {
    const file = Buffer.concat([Buffer.from(`${source}/`), Buffer.from(name, 'latin1')]);
    fs.mkdirSync(file.subarray(0, file.lastIndexOf('/')), { recursive: true });
    fs.writeFileSync(file, text, 'latin1');
  }
  fs.symlinkSync('files.img', path.join(source, 'checkpoint/link.img'));
  fs.linkSync(path.join(source, 'checkpoint/files.img'), path.join(source, 'checkpoint/zlinked.img'));
  execFileSync('mkfifo', [path.join(source, 'checkpoint/fifo.img')]);
  const flat = Object.fromEntries(
    Object.entries(files).flatMap(([name, text]) =>
      name.startsWith('checkpoint/') ? [[name.slice('checkpoint/'.length), text]] : [],
    ),
  );
  for (const format of ['gnu', 'pax']) {
    for (const [way, args, expected] of [
      ['as podman has them', ['-C', source, 'checkpoint', 'config.dump'], files],
      ['behind ./', ['-C', source, '.'], files],
      ['flat', ['-C', path.join(source, 'checkpoint'), '.'], flat],
    ] as const) {
      const bytes = run('tar', ['-c', `--format=${format}`, '--sort=name', '-f', '-', ...args]);
      for (const [name, input] of await everyWay(bytes))
        t.same(await filesOf(input), expected, `${format}, ${way}, ${name}`);
    }
  }
  const python = `import sys, tarfile
f = getattr(tarfile, sys.argv[1])
with tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=f, encoding='latin1', errors='surrogateescape') as tar:
    tar.add(sys.argv[2], arcname='.')`;
  for (const format of ['GNU_FORMAT', 'PAX_FORMAT']) {
    const bytes = run('python3', ['-c', python, format, path.join(source, 'checkpoint')]);
    const read = (await filesOf(bufferInput(bytes))) as Record<string, string>;
    t.same(Object.values(read).sort(), Object.values(flat).sort(), `Python’s ${format}`);
  }
  for (const format of ['v7', 'ustar']) {
    const old = run('tar', [
      '-c',
      `--format=${format}`,
      '-f',
      '-',
      '-C',
      source,
      'checkpoint/files.img',
      'config.dump',
    ]);
    t.same(await filesOf(bufferInput(old)), { 'checkpoint/files.img': 'files', 'config.dump': '{}' }, format);
  }
  const bytes = run('tar', ['-c', '--sort=name', '-f', '-', '-C', source, 'checkpoint']);
  for (const [name, what] of [
    ['checkpoint/link.img', 'it is a link; expected a regular file'],
    ['checkpoint/zlinked.img', 'it is a link; expected a regular file'],
    ['checkpoint/fifo.img', 'it is a device or FIFO; expected a regular file'],
  ] as const) {
    const archive = await openArchive(bufferInput(bytes, 'a.tar'), (one) => one === name);
    t.throws(() => archive.open(name), { message: `a.tar, ${name}: ${what}` });
    archive.close();
  }
});

t.test('names, sizes and what is in an archive twice', { skip: noZstd }, async (t) => {
  const long = 'n'.repeat(300);
  const gnuName = Buffer.concat([entry('././@LongLink', `${long}\0`, 'L'), entry('short', 'gnu')]);
  t.same(await filesOf(bufferInput(Buffer.concat([gnuName, END]))), { [long]: 'gnu' }, 'GNU’s long name');
  const size = Buffer.concat([
    pax([
      ['size', '5'],
      ['path', 'a/b'],
      ['comment', '= x\n='],
    ]),
    entry('short', 'bytes', '0', 0),
    END,
  ]);
  t.same(await filesOf(bufferInput(size)), { 'a/b': 'bytes' }, 'PAX records of name and size');
  const base256 = entry('big', 'four');
  base256.set([0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4], 124);
  summed(base256.subarray(0, BLOCK));
  t.same(await filesOf(bufferInput(Buffer.concat([base256, END]))), { big: 'four' }, 'base 256');
  const prefixed = makeHeader('file', '0', 0, options);
  prefixed.write('some/folder', 345);
  t.same(
    await filesOf(bufferInput(Buffer.concat([summed(prefixed), END]))),
    { 'some/folder/file': '' },
    'ustar’s prefix',
  );
  const twice = Buffer.concat([entry('a', 'first'), entry('./a', 'second'), entry('b', 'b'), END]);
  for (const [name, input] of await everyWay(twice)) t.same(await filesOf(input), { a: 'second', b: 'b' }, name);
  const replaced = Buffer.concat([entry('a', 'first'), entry('a', '', '2'), END]);
  const archive = await openArchive(bufferInput(replaced, 'x'), () => true);
  t.throws(() => archive.open('a'), /x, a: it is a link/, 'a link in place of a file');
  for (const [name, input] of await everyWay(END)) t.same(await filesOf(input), {}, `empty: ${name}`);
  const trailing = Buffer.concat([entry('a', 'a'), END, Buffer.alloc(9000), Buffer.from('rubbish')]);
  for (const [name, input] of await everyWay(trailing)) t.same(await filesOf(input), { a: 'a' }, `trailing: ${name}`);
  const nested = Buffer.concat([entry('rootfs-diff.tar', twice), entry('a', 'a'), END]);
  t.same(await filesOf(bufferInput(nested), (name) => name === 'a'), { a: 'a' }, 'an archive in an archive');
  const outside = Buffer.concat([entry('../../etc/passwd', 'x'), entry('/etc/shadow', 'y'), END]);
  t.same(
    Object.keys((await filesOf(bufferInput(outside))) as object),
    ['../../etc/passwd', '/etc/shadow'],
    'only names',
  );
});

t.test('sparse files are refused by name, and others read past them', async (t) => {
  const file = path.join(folder, 'sparse.img');
  fs.writeFileSync(file, '');
  const fd = fs.openSync(file, 'r+');
  for (let i = 0; i < 40; i++) fs.writeSync(fd, 'data', i * 1024 * 1024);
  fs.closeSync(fd);
  fs.writeFileSync(path.join(folder, 'after.img'), 'after');
  for (const [format, version] of [
    ['gnu', '1.0'],
    ['pax', '0.0'],
    ['pax', '0.1'],
    ['pax', '1.0'],
  ] as const) {
    const args = ['-cS', `--format=${format}`, `--sparse-version=${version}`, '-f', '-', 'sparse.img', 'after.img'];
    const archive = await openArchive(bufferInput(run('tar', args), 's.tar'), () => true);
    t.equal(await contents(archive, 'after.img'), 'after', `${format} ${version}`);
    t.throws(() => archive.open('sparse.img'), /^s\.tar, sparse\.img: it is stored as a sparse file/);
  }
});

t.test('what is an archive', { skip: noZstd }, async (t) => {
  t.equal(archiveFormat(Buffer.from('{"magic":"BPFMAP_DATA"}'.padEnd(600))), undefined);
  for (const name of fs.readdirSync(path.join(TOP, 'fixtures/flowd'))) {
    if (!name.endsWith('.img')) continue;
    t.equal(archiveFormat(fs.readFileSync(path.join(TOP, 'fixtures/flowd', name)).subarray(0, HEAD)), undefined, name);
  }
  t.equal(archiveFormat(Buffer.alloc(0)), undefined);
  t.equal(archiveFormat(Buffer.alloc(511)), undefined);
  t.equal(
    await filesOf(bufferInput(Buffer.from('{}'), 'x.tar.gz')),
    'x.tar.gz: neither a tar archive nor gzip or zstd',
  );
  t.match(await filesOf(bufferInput(zlib.gzipSync('{}'.padEnd(600)), 'x')), /^x: no header of a tar archive/);
  t.match(await filesOf(bufferInput(run('zstd', ['-c'], Buffer.from('{}')), 'x')), /^x: the archive ends at byte 2/);
});

t.test('an archive that is cut off says so, wherever', { skip: noZstd }, async (t) => {
  const long = 'n'.repeat(300);
  const body = [
    entry('one.img', 'x'.repeat(1500)),
    pax([['path', long]]),
    entry('two.img', 'y'.repeat(700)),
    entry('three', 'z'),
  ];
  const whole = Buffer.concat([...body, END]);
  for (let size = BLOCK; size < whole.length; size += 256) {
    const cut = whole.subarray(0, size);
    for (const [way, input] of [
      ['file', bufferInput(cut, 'c.tar')],
      ['pipe', piped(cut, 'c.tar')],
    ] as const) {
      const said = await filesOf(input);
      // One block of zeros is enough of an end.
      if (size >= whole.length - BLOCK) t.same(Object.keys(said), ['one.img', long, 'three'], `${way}, ${size} bytes`);
      else t.match(said, /^c\.tar(, \S+|, a header)?: the archive (ends|has no end mark)/, `${way}, ${size} bytes`);
    }
  }
  t.equal(
    await filesOf(bufferInput(whole.subarray(0, 1000), 'c.tar')),
    'c.tar, one.img: the archive ends at byte 1000, expected 1012 more (at byte 0)',
  );
  t.equal(
    await filesOf(piped(whole.subarray(0, 1000), 'c.tar')),
    'c.tar, one.img: the archive ends at byte 1000, expected 1012 more',
  );
  for (const compress of [(bytes: Buffer) => zlib.gzipSync(bytes), (bytes: Buffer) => run('zstd', ['-c'], bytes)]) {
    const packed = compress(
      Buffer.concat([
        entry('noise', Buffer.from(Array.from({ length: 3000 }, (_, i) => ((i * i * 7919) >> 5) & 255))),
        END,
      ]),
    );
    for (let size = 20; size < packed.length; size += 97) {
      t.match(
        await filesOf(bufferInput(packed.subarray(0, size), 'c')),
        /^c(, noise)?: (it is cut off|the archive)/,
        `${size} bytes`,
      );
    }
  }
});

t.test('hostile archives', { skip: noZstd }, async (t) => {
  const refused = async (bytes: Buffer, message: RegExp, what: string) => {
    for (const input of [bufferInput(bytes, 'h.tar'), piped(bytes, 'h.tar')])
      t.match(await filesOf(input), message, what);
  };
  const sized = (field: Buffer) => {
    const block = makeHeader('huge.img', '0', 0, options);
    field.copy(block, 124);
    return Buffer.concat([summed(block), END]);
  };
  await refused(
    sized(Buffer.from('77777777777\0')),
    /^h\.tar, huge\.img: the archive ends at byte 1536, expected 8589933567 more/,
    'octal',
  );
  await refused(
    sized(Buffer.from('ffffffffffffffffffffffff', 'hex')),
    /^h\.tar: a header has no size, but ff/,
    'negative',
  );
  await refused(
    sized(Buffer.from('8000000000200000ffffffff', 'hex')),
    /^h\.tar: a header has no size, but 80/,
    'beyond 2^53',
  );
  await refused(
    sized(Buffer.from('80000000001ffffffffffffe', 'hex')),
    /^h\.tar, huge\.img: a size of|no size/,
    'at 2^53',
  );
  await refused(sized(Buffer.from('12x45678901\0')), /^h\.tar: a header has no size/, 'no number');
  await refused(
    Buffer.concat([pax([['size', '-1']]), entry('a'), END]),
    /^h\.tar: a PAX header has no size, but "-1"/,
    'PAX',
  );
  await refused(
    Buffer.concat([entry('p', '99 path=x\n', 'x'), END]),
    /^h\.tar: a PAX header breaks its form at its byte 0/,
    'a record too long',
  );
  await refused(Buffer.concat([entry('p', '0 =\n', 'x'), END]), /breaks its form/, 'a record of no length');
  await refused(
    Buffer.concat([makeHeader('p', 'x', 1024 ** 3, options), END]),
    /^h\.tar: a header of type x has 1073741824 bytes, most are 1048576/,
    '1 GiB of PAX',
  );
  await refused(
    Buffer.concat([...Array(20).fill(entry('K', 'link\0', 'K')), END]),
    /more than 16 headers of one entry/,
    'headers of headers',
  );
  await refused(
    Buffer.concat([pax([['comment', 'x']]), END]),
    /h\.tar, a header: the archive ends where a header should follow/,
    'of nothing',
  );
  await refused(
    Buffer.concat([entry('g', makeRecords([['path', 'x']]), 'g'), entry('a'), END]),
    /a header for all that follows says path/,
    'global',
  );
  await refused(
    Buffer.concat([pax([['path', 'p'.repeat(5000)]]), entry('a'), END]),
    /a name of 5000 bytes/,
    'a long name',
  );
  const many = function* () {
    const block = entry('tiny');
    const part = Buffer.concat(Array(2000).fill(block));
    for (let i = 0; i < 5000; i++) yield part;
  };
  const before = process.memoryUsage().rss;
  const input = streamInput(
    (async function* () {
      yield* many();
    })(),
    'h.tar',
  );
  t.match(await filesOf(input), /^h\.tar: more than 100000 headers/, '10 million entries');
  t.ok(process.memoryUsage().rss - before < 200 * 1024 * 1024, 'little memory');
  // Bytes turned over at random, the sum put right again.
  const base = Buffer.concat([
    pax([
      ['path', 'x/y'],
      ['size', '700'],
    ]),
    entry('two.img', 'y'.repeat(700)),
    entry('L', 'long\0', 'L'),
    entry('three', 'z'),
    END,
  ]);
  let random = 1;
  const next = (below: number) => {
    random = (random * 1103515245 + 12345) & 0x7fffffff;
    return (random >> 8) % below;
  };
  for (let round = 0; round < 400; round++) {
    const bytes = Buffer.from(base);
    for (let flips = next(4) + 1; flips > 0; flips--) bytes[next(bytes.length)] = next(256);
    for (let at = 0; at < bytes.length; at += BLOCK)
      if (base.toString('latin1', at + 257, at + 262) === 'ustar') summed(bytes.subarray(at, at + BLOCK));
    const [file, pipe] = [await filesOf(bufferInput(bytes)), await filesOf(piped(bytes))];
    if (typeof file !== 'string' && !isDeepStrictEqual(file, pipe)) t.fail(`round ${round}`);
  }
  const zstd = run('zstd', ['-c', '--check'], Buffer.concat([entry('a', 'b'.repeat(200_000)), END]));
  for (let round = 0; round < 60; round++) {
    const bytes = Buffer.from(zstd);
    const at = 4 + next(bytes.length - 4);
    bytes[at] = (bytes[at] as number) ^ (1 + next(255));
    await filesOf(bufferInput(bytes, 'h'));
  }
  t.pass('broken zstd ends');
});

t.test('what does not fit is refused before it is put aside', async (t) => {
  const block = makeHeader('bpfmap-data.img', '0', 0, options);
  Buffer.from('800000000000400000000000', 'hex').copy(block, 124);
  const bomb = zlib.gzipSync(Buffer.concat([entry('files.img', 'four'), summed(block), Buffer.alloc(1024 * 1024)]));
  const message =
    /^b, bpfmap-data\.img: too large to put aside: 70368744177668 bytes with those before it, at most \d+ in /;
  t.match(await filesOf(bufferInput(bomb, 'b')), message);
  t.match(await filesOf(bufferInput(bomb, 'b'), (name) => name === 'files.img'), /the archive ends at byte 1050112/);
});

t.test('a wide window is refused', { skip: noZstd }, async (t) => {
  const bytes = Buffer.concat([entry('a', Buffer.alloc(1024 * 1024)), END]);
  const file = path.join(folder, 'wide.tar');
  fs.writeFileSync(file, bytes);
  const wide = execFileSync('zstd', ['-c', '--ultra', '--long=30', '--no-check'], {
    input: fs.readFileSync(file),
    maxBuffer: 1 << 30,
  });
  t.match(
    await filesOf(bufferInput(wide, 'w')),
    /^w: compressed with a window of 1024 MiB or more, the largest that is supported has 128 MiB/,
  );
});

t.test('entries as they arrive', async (t) => {
  const bytes = Buffer.concat([entry('./a', 'first'), entry('b', 'x'.repeat(3000)), entry('c', 'third'), END]);
  const archive = await arrivingArchive(piped(zlib.gzipSync(bytes)));
  const seen: string[] = [];
  for await (const { name, size, body } of archive.entries()) {
    const into = Buffer.alloc(4);
    const got = name === 'b' ? 0 : await body.read(into, 0);
    seen.push(`${name} ${size} ${into.toString('latin1', 0, got)}`);
  }
  archive.close();
  t.same(seen, ['a 5 firs', 'b 3000 ', 'c 5 thir']);
});

/** An archive of ours: some files, of which one has a name that a plain header cannot say. */
const OURS: Readonly<Record<string, string>> = {
  'bpfmap-file.img': 'files',
  'bpfmap-data.img': 'd'.repeat(3_000_000),
  'empty.img': '',
  [`${'l'.repeat(120)}.img`]: 'long',
  'core-1.img': 'last',
};

async function written(format: Format): Promise<Buffer> {
  const memory = new MemoryOutput();
  const out = await compressing(memory, format);
  const archive = new ArchiveOutput(out, 1_700_000_000);
  for (const [name, text] of Object.entries(OURS)) {
    if (name === 'core-1.img') await archive.spooled(name, async (to) => to.text(text));
    else await archive.input(name, bufferInput(Buffer.from(text)));
  }
  await archive.finish();
  await out.commit();
  return memory.take();
}

t.test('archives that we write', { skip: noZstd || noPython }, async (t) => {
  for (const [format, test] of [
    ['tar', undefined],
    ['gzip', 'gzip'],
    ['zstd', 'zstd'],
  ] as const) {
    const bytes = await written(format);
    t.equal(archiveFormat(bytes), format);
    t.ok((await written(format)).equals(bytes), `${format}: the same each time`);
    const tar = test === undefined ? bytes : run(test, ['-dc'], bytes);
    const into = path.join(folder, `ours-${format}`);
    fs.mkdirSync(into);
    execFileSync('tar', ['-xf', '-', '-C', into], { input: tar });
    for (const [name, text] of Object.entries(OURS))
      t.equal(fs.readFileSync(path.join(into, name), 'utf8'), text, name);
    t.match(String(execFileSync('sha256sum', ['--strict', '-c', 'SHA256SUMS'], { cwd: into })), /core-1\.img: OK/);
    const listed = String(execFileSync('tar', ['--utc', '--numeric-owner', '-tvf', '-'], { input: tar })).split(
      '\n',
    )[0];
    t.match(listed, /^-rw------- 0\/0 +5 2023-11-14 22:13 bpfmap-file\.img$/, 'owner, mode and time');
    const python = "import sys, tarfile; print(len(tarfile.open(fileobj=sys.stdin.buffer, mode='r|').getnames()))";
    t.equal(String(run('python3', ['-c', python], tar)), `${Object.keys(OURS).length + 1}\n`, 'Python reads it');
    for (const input of [bufferInput(bytes), piped(bytes)]) {
      const archive = await openArchive(input, () => true);
      t.same([...archive.sums.keys()], Object.keys(OURS));
      await archive.check();
      archive.close();
    }
    // One byte of the data changes.
    const damaged = Buffer.from(tar);
    damaged[damaged.indexOf('ddd') + 1000] = 0x65;
    const message = 'b, bpfmap-data.img: its SHA-256 is not the one in SHA256SUMS: it is damaged or was changed';
    const packed = test === undefined ? damaged : run(test, ['-c'], damaged);
    t.equal(await filesOf(piped(packed, 'b')), message, `${format}: damaged, as it comes`);
    const archive = await openArchive(bufferInput(damaged, 'b'), () => true);
    await t.rejects(archive.check(), { message }, 'damaged, in place');
    archive.close();
  }
  const gone = (await written('tar')).subarray(0);
  const at = gone.indexOf('empty.img');
  gone.write('other.img', at, 'latin1');
  summed(gone.subarray(at, at + BLOCK));
  t.equal(await filesOf(bufferInput(gone, 'b')), 'b, empty.img: it is missing, but SHA256SUMS lists it');
  const archive = new ArchiveOutput(new MemoryOutput('out'), 0);
  await t.rejects(
    archive.file('a', 3, async (out) => out.text('four')),
    {
      message: 'out, a: 4 bytes were written, expected 3',
    },
  );
});

t.test('digests of files that occur twice or are empty, and no digests', async (t) => {
  const [first, second, empty] = ['first', 'second', ''].map((text) => createHash('sha256').update(text).digest('hex'));
  const sums = (sum?: string) => entry('SHA256SUMS', `${sum}  a\n`);
  const wrong = 'x, a: its SHA-256 is not the one in SHA256SUMS: it is damaged or was changed';
  for (const [bodies, sum, message] of [
    [['first', 'second'], second],
    [['first', 'second'], first, wrong],
    [['first', ''], empty],
    [['first', ''], first, wrong],
    [[''], first, wrong],
  ] as const) {
    const bytes = Buffer.concat([...bodies.map((text) => entry('a', text)), sums(sum), END]);
    const files = { a: bodies.at(-1), SHA256SUMS: `${sum}  a\n` };
    t.same(await filesOf(piped(bytes, 'x')), message ?? files, `${bodies} as they come`);
    const checked = async () => {
      const archive = await openArchive(bufferInput(bytes, 'x'), () => true);
      await archive.check().finally(archive.close);
    };
    if (message === undefined) await checked();
    else await t.rejects(checked(), { message }, `${bodies} in place`);
  }
  // Of two with one name only the first is read: nothing is known of the one that counts.
  const arriving = await arrivingArchive(
    bufferInput(Buffer.concat([entry('a', 'first'), entry('a', 'second'), sums(second), END])),
  );
  let read = 0;
  for await (const { body } of arriving.entries()) {
    if (read++ === 0) t.equal(await body.read(Buffer.alloc(5), 0), 5);
  }
  t.equal(read, 3);
  arriving.close();
  // A file that is longer than any list of digests is none.
  const long = Buffer.concat([entry('a', 'first'), entry('SHA256SUMS', `${second}  a\n`.repeat(16_000)), END]);
  t.match(await filesOf(piped(long)), { a: 'first' });
});

t.test('a file of more than octal digits can say', async (t) => {
  const size = 9 * 1024 ** 3 + 5;
  const file = path.join(folder, 'large.tar');
  const fd = fs.openSync(file, 'w');
  const head = fileHeader('pages-1.img', size, options);
  fs.writeSync(fd, head);
  const after = Buffer.concat([entry('files.img', 'behind it'), END]);
  fs.writeSync(fd, after, 0, after.length, head.length + size + padding(size));
  fs.closeSync(fd);
  t.match(String(run('tar', ['-tvf', file])), new RegExp(` ${size} .*pages-1\\.img\n.* 9 .*files\\.img`));
  const before = performance.now();
  const archive = await openArchive(await openInput(file), (name) => name === 'files.img');
  t.ok(performance.now() - before < 1000, 'only headers are read');
  t.equal(archive.entries.get('pages-1.img')?.size, size);
  t.equal(await contents(archive, 'files.img'), 'behind it');
  archive.close();
  fs.rmSync(file);
});

/** What Python says of each entry: everything in its header, and a digest. */
const DETAILS = `import hashlib, json, sys, tarfile
with tarfile.open(fileobj=sys.stdin.buffer, mode='r|*') as tar:
    print(json.dumps([[m.name, m.mode, m.uid, m.gid, m.mtime, m.type.decode('latin1'), m.linkname, m.uname, m.size,
        hashlib.md5(tar.extractfile(m).read()).hexdigest() if m.isreg() else ''] for m in tar]))`;

async function rewritten(
  bytes: Buffer,
  changes: Parameters<typeof rewriteArchive>[2],
  piping = false,
): Promise<Buffer> {
  const out = new MemoryOutput();
  await rewriteArchive(piping ? piped(bytes, 'r') : bufferInput(bytes, 'r'), out, changes);
  return out.take();
}

t.test('some files of an archive are replaced', { skip: noPython }, async (t) => {
  const source = path.join(folder, 'edited');
  fs.mkdirSync(path.join(source, 'checkpoint', 'p'.repeat(150)), { recursive: true });
  for (const [name, text] of [
    ['config.dump', '{}'],
    ['checkpoint/a.img', 'a'.repeat(1000)],
    [`checkpoint/${'p'.repeat(150)}/b.img`, 'b'],
    ['checkpoint/z.img', 'z'],
  ] as const) {
    fs.writeFileSync(path.join(source, name), text);
  }
  fs.symlinkSync('a.img', path.join(source, 'checkpoint/link.img'));
  const long = `checkpoint/${'p'.repeat(150)}/b.img`;
  type Details = [string, ...unknown[]][];
  const details = (bytes: Buffer): Details => JSON.parse(String(run('python3', ['-c', DETAILS], bytes)));
  for (const [format, prefix] of [
    ['gnu', ''],
    ['pax', './'],
  ] as const) {
    const names = [`${prefix}checkpoint`, `${prefix}config.dump`];
    const args = ['-c', `--format=${format}`, '--owner=someone:1234', '--sort=name', '-f', '-', '-C', source, ...names];
    const bytes = run('tar', args);
    t.ok((await rewritten(bytes, new Map())).equals(bytes), `${format}: nothing changes`);
    for (const [name, text] of [
      ['checkpoint/a.img', 'A'.repeat(1000)],
      ['checkpoint/a.img', ''],
      ['checkpoint/a.img', 'A'.repeat(700_000)],
      [long, 'B'.repeat(513)],
    ] as const) {
      const made = await rewritten(bytes, new Map([[name, bufferInput(Buffer.from(text))]]));
      const [old, now] = [details(bytes), details(made)];
      t.same(
        now.map((one) => (one[0].endsWith(name) ? one.slice(0, 8) : one)),
        old.map((one) => (one[0].endsWith(name) ? one.slice(0, 8) : one)),
        `${format}, ${name.slice(-5)}: all else is as it was`,
      );
      t.equal(((await filesOf(bufferInput(made))) as Record<string, string>)[name], text);
    }
    const changes = new Map<string, Input | 'removed'>([
      ['checkpoint/z.img', 'removed'],
      ['checkpoint/new.img', bufferInput(Buffer.from('new'))],
    ]);
    const made = await rewritten(bytes, changes, true);
    t.same(Object.keys((await filesOf(bufferInput(made))) as object), [
      'checkpoint/a.img',
      long,
      'config.dump',
      'checkpoint/new.img',
    ]);
    run('tar', ['-tf', '-'], made);
    await t.rejects(rewritten(bytes, new Map([['checkpoint/link.img', bufferInput(Buffer.from(''))]])), {
      message: 'r, checkpoint/link.img: it is no regular file, so it cannot be changed',
    });
  }
  const sized = Buffer.concat([
    pax([
      ['size', '5'],
      ['comment', 'kept'],
    ]),
    entry('a', 'bytes', '0', 0),
    END,
  ]);
  const made = await rewritten(sized, new Map([['a', bufferInput(Buffer.from('other bytes'))]]));
  t.same(await filesOf(bufferInput(made)), { a: 'other bytes' }, 'a PAX record of the size');
  t.match(made.toString('latin1'), /16 comment=kept\n/);
  t.notMatch(made.toString('latin1'), / size=/);
});

t.test('replaced in what is compressed, and in what we have written', { skip: noZstd }, async (t) => {
  for (const name of fs.readdirSync(path.join(TOP, 'fixtures/archives'))) {
    const bytes = fs.readFileSync(path.join(TOP, 'fixtures/archives', name));
    const made = await rewritten(bytes, new Map([['checkpoint/bpfimg-data.img', bufferInput(Buffer.from('changed'))]]));
    t.equal(archiveFormat(made), archiveFormat(bytes), name);
    const unpack = (what: Buffer) => run(name.endsWith('zst') ? 'zstd' : 'gzip', ['-dc'], what);
    const [old, now] = [unpack(bytes), unpack(made)];
    const at = old.indexOf('checkpoint/bpfimg-data.img');
    t.ok(now.subarray(0, at).equals(old.subarray(0, at)), 'what is before it');
    t.ok(now.subarray(at + 2 * BLOCK).equals(old.subarray(at + 2 * BLOCK)), 'what is behind it');
    t.equal(run('tar', ['-xOf', '-', 'checkpoint/bpfimg-data.img'], now).toString(), 'changed');
  }
  for (const format of ['tar', 'gzip', 'zstd'] as const) {
    const changes = new Map<string, Input | 'removed'>([
      ['bpfmap-data.img', bufferInput(Buffer.from('less'))],
      ['empty.img', 'removed'],
      ['new.img', bufferInput(Buffer.from('more'))],
    ]);
    const made = await rewritten(await written(format), changes);
    const archive = await openArchive(bufferInput(made), () => true);
    await archive.check();
    t.equal(await contents(archive, 'new.img'), 'more');
    t.same([...archive.sums.keys()].sort(), [...archive.entries.keys()].filter((one) => one !== 'SHA256SUMS').sort());
    archive.close();
  }
  const cut = (await written('tar')).subarray(0, 5000);
  const out = new MemoryOutput();
  await t.rejects(rewriteArchive(piped(cut, 'c'), out, new Map()), /^c, bpfmap-data\.img: the archive ends/);
  t.equal(out.take().length, 0, 'nothing is left of it');
});
