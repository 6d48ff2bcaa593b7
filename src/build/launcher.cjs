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

/** Modules of the chunks that have run, by name. */
const modules = new Map();
/** What is kept: one text with a function for each chunk, because V8 loads one script faster than many. */
const kept = { text: '', code: undefined, script: undefined, functions: {} };
/** Chunks that are not in it, by name. */
const others = {};

/** Loads a chunk, or a module of Node's or of a package, as `require` would. */
function load(name) {
  if (!name.startsWith('./')) return require(name);
  return (modules.get(name) ?? run(name)).exports;
}
// Code from the cache cannot do it itself.
load.importModule = (url) => import(url);
load.launched = () => launched;

function run(name) {
  const filename = `${__dirname}/${name.slice(2)}`;
  const module = { exports: {} };
  modules.set(name, module);
  const chunk = kept.functions[name] ?? compiled(name, filename);
  chunk(module.exports, load, module, filename, __dirname);
  return module;
}

/** A function of a chunk, as Node's own loader makes it. */
function compiled(name, filename) {
  const text = `(function (exports, require, module, __filename, __dirname) {\n${fs.readFileSync(filename, 'latin1')}})`;
  others[name] = new vm.Script(text, { filename, lineOffset: -1 }).runInThisContext();
  return others[name];
}

/** Reads what is kept: the length of the code, the code, the text, and all of that again. */
function readKept() {
  const file = fs.openSync(cache);
  try {
    const half = fs.fstatSync(file).size / 2;
    const again = Buffer.allocUnsafeSlow(32768);
    fs.readSync(file, again, 0, HEAD, 0);
    const end = HEAD + again.readUInt32LE(0);
    // Twice the same memory, for touching more costs most.
    const memory = Buffer.allocUnsafeSlow(Math.max(end, half - end));
    const read = (from, to) => {
      fs.readSync(file, memory, 0, to - from, from);
      for (let at = 0; at < to - from; at += again.length) {
        const length = Math.min(again.length, to - from - at);
        fs.readSync(file, again, 0, length, half + from + at);
        if (again.compare(memory, at, at + length, 0, length) !== 0) throw new Error('damaged');
      }
    };
    read(end, half);
    const text = memory.latin1Slice(0, half - end);
    read(0, end);
    const code = end > HEAD ? memory.subarray(HEAD, end) : undefined;
    const script = new vm.Script(text, { filename: cache, cachedData: code });
    Object.assign(kept, { text, code, script, functions: script.runInThisContext() });
  } finally {
    fs.closeSync(file);
  }
}

/** Bytes before the code, which V8 wants at a multiple of 8. */
const HEAD = 8;

/**
 * Keeps what is compiled by now, unless options of Node made it unlike what others will run. Of chunks that were not kept
 * before, only the text: what V8 has compiled of it belongs to another script, so the next run keeps that.
 */
function keep() {
  const { env, execArgv } = process;
  if (execArgv.length > 0 || env.NODE_OPTIONS || env.NODE_V8_COVERAGE || env.NODE_DISABLE_COMPILE_CACHE) return;
  const news = Object.keys(others).length > 0;
  if (!news && kept.code !== undefined && !kept.script.cachedDataRejected) return;
  const aside = `${cache}.${process.pid}`;
  try {
    const { uid, mode } = fs.statSync(__dirname);
    if (uid !== process.geteuid() || mode & 0o022) return;
    const functions = Object.entries({ ...kept.functions, ...others });
    const text = `({${functions.map(([name, chunk]) => `\n${JSON.stringify(name)}: ${chunk}`)}})`;
    const code = news ? Buffer.alloc(0) : kept.script.createCachedData();
    const head = Buffer.alloc(HEAD);
    head.writeUInt32LE(code.length);
    const whole = Buffer.concat([head, code, Buffer.from(news ? text : kept.text, 'latin1')]);
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
  const [file, place, column] = [frame.getFileName() ?? '', frame.getLineNumber(), frame.getColumnNumber()];
  // Code from the cache has the path that it was compiled under.
  const [name, line] = file.endsWith('.cache') ? inChunk(place) : [file.slice(file.lastIndexOf('/') + 1), place];
  const map = `${__dirname}/${name}.map`;
  if (!name.endsWith('.cjs') || !fs.existsSync(map)) return String(frame);
  const { SourceMap } = require('node:module');
  maps[map] ??= new SourceMap(JSON.parse(fs.readFileSync(map, 'utf8')));
  const { originalSource, originalLine, originalColumn } = maps[map].findEntry(line - 1, column - 1);
  const source = `${originalSource?.replace(/^(\.\.\/)+/, '')}:${originalLine + 1}:${originalColumn + 1}`;
  return originalSource === undefined ? String(frame) : String(frame).replace(`${file}:${place}:${column}`, source);
}

/** The chunk of a line of what is kept, and which of its own lines that is. */
function inChunk(line) {
  const before = kept.text.split('\n').slice(0, line);
  const start = before.findLastIndex((text) => /^"\.\/.*": function /.test(text));
  return [/^"\.\/(.*)": /.exec(before[start])?.[1] ?? '', line - start - 1];
}

if (process.argv.includes('--debug')) {
  Error.prepareStackTrace = (error, frames) => [error, ...frames.map(inSources)].join('\n    at ');
}
try {
  readKept();
} catch {}
process.once('exit', (code) => {
  if (code === 0) keep();
});
load(entry);
