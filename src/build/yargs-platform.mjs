// Stands in for yargs's own platform module in the bundle: what bpfimg uses of it and no more. Left out are
// config files, command folders and translations, and with them the modules they load; texts are ASCII, so
// that their width is their length. Saves 30 ms of start-up.
import * as path from 'node:path';
import { format, inspect } from 'node:util';
import Parser from 'yargs-parser';
import { cliui } from '../../node_modules/cliui/build/lib/index.js';
import { getProcessArgvBin } from '../../node_modules/yargs/build/lib/utils/process-argv.js';

const absent = () => undefined;

/** Breaks text at blanks into lines of at most `width`. */
function wrap(text, width) {
  const wrapLine = (line) =>
    line.split(' ').reduce((done, word) => {
      const used = done.length - done.lastIndexOf('\n') - 1;
      return done + (used + 1 + word.length <= width ? ' ' : '\n') + word;
    });
  return text.split('\n').map(wrapLine).join('\n');
}
const stringWidth = (text) => text.length;

/** yargs lays out the help page of each command it runs, in case it is asked for afterwards: here it never is. */
const nobodyAsksForHelp =
  process.argv.length > 2 && process.argv[2] !== 'help' && !process.argv.some((word) => /^-[^=]*h/.test(word));
const noLayout = { div: absent, span: absent, resetOutput: absent, toString: () => '' };

export default {
  assert: { notStrictEqual: absent, strictEqual: absent },
  cliui: (options) => (nobodyAsksForHelp ? noLayout : cliui(options, { stringWidth, stripAnsi: (text) => text, wrap })),
  findUp: absent,
  getCallerFile: absent,
  getEnv: (name) => process.env[name],
  getProcessArgvBin,
  inspect,
  mainFilename: '',
  Parser,
  path,
  process: {
    argv: () => process.argv,
    cwd: process.cwd,
    emitWarning: process.emitWarning,
    execPath: () => process.execPath,
    exit: process.exit,
    nextTick: process.nextTick,
    stdColumns: null,
  },
  readFileSync: absent,
  readdirSync: () => [],
  require: absent,
  stringWidth,
  y18n: {
    __: format,
    __n: (one, many, count, ...rest) => format(count === 1 ? one : many, ...rest),
    getLocale: () => 'en',
    setLocale: absent,
    updateLocale: absent,
  },
};
