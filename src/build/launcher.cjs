#!/usr/bin/env node
'use strict';
// Runs the chunks of the command line, with what V8 compiled of them before: half of what bpfimg costs over starting
// Node is compiling it.
//
// What a command loads lies together beside the chunks, a file for each command and version of Node, much as Python's
// __pycache__. It may run as root, so nobody must be able to change it who could not change the chunks themselves: it is
// written only into this folder, and only when the folder is ours and nobody else's to write, never into a user's cache
// or a shared temporary folder. V8 checks little of what it loads: the file is synced before it gets its name, and has
// everything twice, for what a disk does to it later (comparing is several times as fast as a checksum in JavaScript).
// A file that is missing, damaged, or that V8 rejects costs milliseconds and nothing else: no failure here is an error.
const launched = { wall: process.uptime() * 1000, cpu: process.cpuUsage() };
const fs = require('node:fs');
const vm = require('node:vm');

const BUILD = '@BUILD@'; // V8 tells sources apart by length only
const COMMANDS = /^(__complete|help|decode|encode|info|show|get|set|delete|edit|verify|list|capture|replay|diff)$/;
const helper = /^criu-(dump|restore)$/.test(process.argv[2]); // what the CRIU plugin runs
const command = helper ? process.argv[2] : (process.argv.find((word) => COMMANDS.test(word)) ?? 'other');
const entry = helper ? './criu-bin.cjs' : './bin.cjs';
const cache = `${__dirname}/${command}.${BUILD}-${process.version}-${process.arch}.cache`;

/** Chunks that have run, by name. */
const chunks = new Map();
const kept = {};

/** Loads a chunk, or a module of Node's or of a package, as `require` would. */
function load(name) {
  if (!name.startsWith('./')) return require(name);
  const { module } = chunks.get(name) ?? run(name);
  return module.exports;
}
// Code from the cache cannot do it itself.
load.importModule = (url) => import(url);
load.launched = () => launched;

function run(name) {
  const filename = `${__dirname}/${name.slice(2)}`;
  const { text = wrapped(fs.readFileSync(filename, 'latin1')), code: cachedData } = kept[name] ?? {};
  const script = new vm.Script(text, { filename, cachedData, columnOffset: -HEAD.length });
  const chunk = { module: { exports: {} }, text, script };
  chunks.set(name, chunk);
  script.runInThisContext()(chunk.module.exports, load, chunk.module, filename, __dirname);
  return chunk;
}

/** As Node's own loader wraps a module. */
const HEAD = '(function (exports, require, module, __filename, __dirname) { ';
const wrapped = (text) => `${HEAD}${text}\n});`;

/** Reads what is kept: a table of names and lengths, the code of each, the texts, and all of that again. */
function readKept() {
  const file = fs.openSync(cache);
  try {
    const half = fs.fstatSync(file).size / 2;
    const again = Buffer.allocUnsafeSlow(32768);
    fs.readSync(file, again, 0, 8, 0);
    const [names, codes] = [again.readUInt32LE(0), again.readUInt32LE(4)];
    // Twice the same memory, for touching more costs most.
    const memory = Buffer.allocUnsafeSlow(Math.max(codes, half - codes));
    const read = (from, to) => {
      fs.readSync(file, memory, 0, to - from, from);
      for (let at = 0; at < to - from; at += again.length) {
        const length = Math.min(again.length, to - from - at);
        fs.readSync(file, again, 0, length, half + from + at);
        if (again.compare(memory, at, at + length, 0, length) !== 0) throw new Error('damaged');
      }
    };
    read(codes, half);
    // One long string and pieces of it: short ones V8 would copy when it collects garbage.
    const texts = memory.latin1Slice(0, half - codes);
    read(0, codes);
    let [code, text] = [names, 0];
    for (const [name, codeLength, textLength] of JSON.parse(memory.latin1Slice(8, names))) {
      kept[name] = {
        code: memory.subarray(code, code + codeLength),
        text: texts.slice(text, text + textLength),
      };
      code += padded(codeLength);
      text += textLength;
    }
  } finally {
    fs.closeSync(file);
  }
}

/** Where V8 wants its data to begin. */
const padded = (length) => Math.ceil(length / 8) * 8;

/** Keeps what is compiled by now, unless options of Node made it unlike what others will run. */
function keep() {
  const { env, execArgv } = process;
  if (execArgv.length > 0 || env.NODE_OPTIONS || env.NODE_V8_COVERAGE || env.NODE_DISABLE_COMPILE_CACHE) return;
  const aside = `${cache}.${process.pid}`;
  try {
    const { uid, mode } = fs.statSync(__dirname);
    if (uid !== process.geteuid() || mode & 0o022) return;
    const table = [];
    const parts = [];
    let texts = '';
    for (const [name, { script, text }] of chunks) {
      const code = script.createCachedData();
      table.push([name, code.length, text.length]);
      parts.push(code, Buffer.alloc(padded(code.length) - code.length));
      texts += text;
    }
    const names = JSON.stringify(table);
    const head = Buffer.alloc(8 + padded(names.length), ' ');
    head.write(names, 8);
    const codes = Buffer.concat([head, ...parts]);
    const whole = Buffer.concat([codes, Buffer.from(texts, 'latin1')]);
    whole.writeUInt32LE(head.length, 0);
    whole.writeUInt32LE(codes.length, 4);
    fs.writeFileSync(aside, Buffer.concat([whole, whole]), { flag: 'wx', flush: true });
    fs.renameSync(aside, cache);
  } catch {
    try {
      fs.unlinkSync(aside);
    } catch {}
  }
}

const maps = {};

/** A frame of a trace, with its place in the sources as far as the chunks' maps tell it: Node reads only those of its own loader. */
function inSources(frame) {
  const [file, line, column] = [frame.getFileName() ?? '', frame.getLineNumber(), frame.getColumnNumber()];
  // Code from the cache has the path that it was compiled under.
  const map = `${__dirname}/${file.slice(file.lastIndexOf('/') + 1)}.map`;
  if (!file.endsWith('.cjs') || !fs.existsSync(map)) return String(frame);
  const { SourceMap } = require('node:module');
  maps[map] ??= new SourceMap(JSON.parse(fs.readFileSync(map, 'utf8')));
  const { originalSource, originalLine, originalColumn } = maps[map].findEntry(line - 1, column - 1);
  const place = `${originalSource?.replace(/^(\.\.\/)+/, '')}:${originalLine + 1}:${originalColumn + 1}`;
  return originalSource === undefined ? String(frame) : String(frame).replace(`${file}:${line}:${column}`, place);
}

if (process.argv.includes('--debug')) {
  Error.prepareStackTrace = (error, frames) => [error, ...frames.map(inSources)].join('\n    at ');
}
try {
  readKept();
} catch {}
const whole = kept[entry] !== undefined;
process.once('exit', (code) => {
  const rejected = [...chunks.values()].some(({ script }) => script.cachedDataRejected);
  if (code === 0 && (!whole || rejected)) keep();
});
load(entry);
