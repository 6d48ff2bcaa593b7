/** Archives of tar, GNU's and Python's, as containers' checkpoints are, and what is broken of them. */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import * as zlib from 'node:zlib';
import t from 'tap';
import { type Archive, arrivingArchive, openArchive } from '../src/archive/archive.js';
import { archiveFormat, HEAD } from '../src/archive/compression.js';
import { BLOCK, makeHeader, makeRecords, padding } from '../src/archive/header.js';
import { BpfimgError } from '../src/errors.js';
import { bufferInput, type Input, openInput, streamInput } from '../src/io/input.js';
import { TOP } from './helpers/command.js';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'bpfimg-archive-'));
t.teardown(() => fs.rmSync(folder, { recursive: true }));

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

t.test('podman’s archives', async (t) => {
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

t.test('archives as they are made, handed over in every way', async (t) => {
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
  for (const format of ['gnu', 'pax', 'oldgnu', 'posix']) {
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
  const v7 = run('tar', ['-c', '--format=v7', '-f', '-', '-C', source, 'checkpoint/files.img', 'config.dump']);
  t.same(await filesOf(bufferInput(v7)), { 'checkpoint/files.img': 'files', 'config.dump': '{}' }, 'v7');
  const ustar = run(
    'tar',
    ['-c', '--format=ustar', '-f', '-', '-C', source, long.replace('m', 'm')].slice(0, -1).concat('config.dump'),
  );
  t.same(await filesOf(bufferInput(ustar)), { 'config.dump': '{}' }, 'ustar');
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

t.test('names, sizes and what is in an archive twice', async (t) => {
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

t.test('what is an archive', async (t) => {
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

t.test('an archive that is cut off says so, wherever', async (t) => {
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

t.test('hostile archives', async (t) => {
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
    Buffer.concat([...Array(20).fill(pax([['comment', 'x']])), END]),
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
  for (let round = 0; round < 1000; round++) {
    const bytes = Buffer.from(base);
    for (let flips = next(4) + 1; flips > 0; flips--) bytes[next(bytes.length)] = next(256);
    for (let at = 0; at < bytes.length; at += BLOCK)
      if (base.toString('latin1', at + 257, at + 262) === 'ustar') summed(bytes.subarray(at, at + BLOCK));
    const [file, pipe] = [await filesOf(bufferInput(bytes)), await filesOf(piped(bytes))];
    if (typeof file !== 'string' && !isDeepStrictEqual(file, pipe)) t.fail(`round ${round}`);
  }
  const noZstd = run('zstd', ['-c', '--check'], Buffer.concat([entry('a', 'b'.repeat(200_000)), END]));
  for (let round = 0; round < 200; round++) {
    const bytes = Buffer.from(noZstd);
    const at = 4 + next(bytes.length - 4);
    bytes[at] = (bytes[at] as number) ^ (1 + next(255));
    await filesOf(bufferInput(bytes, 'h'));
  }
  t.pass('broken zstd ends');
});

t.test('a wide window is refused', async (t) => {
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
