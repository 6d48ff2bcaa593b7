#!/usr/bin/env node
'use strict';
// Runs a bundle with what V8 compiled of it before: half of what bpfimg costs over starting Node is
// compiling it.
//
// The compiled code lies beside the bundle, a file for each command and version of Node, much as Python's
// __pycache__. It may run as root, so nobody must be able to change it who could not change the bundle
// itself: it is written only into this folder, and only when the folder is ours and nobody else's to write,
// never into a user's cache or a shared temporary folder. V8 checks little of what it loads: the file is
// synced before it gets its name, and ends with a checksum of the rest, for what a disk does to it later. A
// cache that is missing, damaged, or that V8 rejects costs milliseconds and nothing else: no failure here is
// an error.
const fs = require('node:fs');
const vm = require('node:vm');

const BUILD = '@BUILD@'; // V8 tells sources apart by length only
const COMMANDS = /^(decode|encode|info|show|verify|list|capture|replay|diff)$/;
const helper = /^criu-(dump|restore)$/.test(process.argv[2]); // what the CRIU plugin runs
const command = helper ? process.argv[2] : (process.argv.find((word) => COMMANDS.test(word)) ?? 'other');
const bundle = helper ? 'criu.cjs' : 'bpfimg.cjs';

/** Runs a file of this folder as `require` would. */
function run(name) {
  const file = `${__dirname}/${name}`;
  const cache = `${file}.${BUILD}-${process.version}-${process.arch}-${command}.cache`;
  let cachedData;
  try {
    const kept = fs.readFileSync(cache);
    const data = kept.subarray(0, kept.length - 4);
    if (checksum(data) === kept.readUInt32LE(data.length)) cachedData = data;
  } catch {}
  // As Node's own loader wraps a module.
  const text = fs.readFileSync(file, 'latin1');
  const source = `(function (exports, require, module, __filename, __dirname) { ${text}\n});`;
  const script = new vm.Script(source, { filename: file, cachedData });
  if (cachedData === undefined || script.cachedDataRejected) {
    process.once('exit', (code) => code === 0 && keep(script, cache));
  }
  const module = { exports: {} };
  const load = (id) => (id.startsWith('./') ? run(id.slice(2)) : require(id));
  // Code from the cache cannot do it itself.
  load.importModule = (url) => import(url);
  script.runInThisContext()(module.exports, load, module, file, __dirname);
  return module.exports;
}

/** A checksum in which each bit of each word counts: against accidents, not against anybody. */
function checksum({ buffer, byteOffset, length }) {
  const words = new Int32Array(buffer, byteOffset, length >> 2);
  let sum = length;
  // Three bytes of its end at most are left out: V8 pads its data.
  for (let i = 0; i < words.length; i++) sum = Math.imul(sum ^ words[i], 0x9e3779b1);
  return sum >>> 0;
}

/** Keeps what is compiled by now, unless options of Node made it unlike what others will run. */
function keep(script, cache) {
  const { env, execArgv } = process;
  if (execArgv.length > 0 || env.NODE_OPTIONS || env.NODE_V8_COVERAGE || env.NODE_DISABLE_COMPILE_CACHE) return;
  const aside = `${cache}.${process.pid}`;
  try {
    const { uid, mode } = fs.statSync(__dirname);
    if (uid !== process.geteuid() || mode & 0o022) return;
    const data = script.createCachedData();
    const sum = Buffer.alloc(4);
    sum.writeUInt32LE(checksum(data));
    fs.writeFileSync(aside, Buffer.concat([data, sum]), { flag: 'wx', flush: true });
    fs.renameSync(aside, cache);
  } catch {
    try {
      fs.unlinkSync(aside);
    } catch {}
  }
}

if (process.argv.includes('--debug')) {
  // Traces are wanted, which shall name the sources.
  process.setSourceMapsEnabled(true);
  require('./bpfimg.cjs');
} else {
  run(bundle);
}
