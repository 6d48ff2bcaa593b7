// Stands in for yargs in the bundle: what bpfimg uses of it and no more. Left out are help, config files, command folders
// and translations, and with them the modules they load; checks of what the compiler has checked; and what yargs makes again
// for each call, or in case somebody asks later.  Saves 40 ms of
// start-up.
import path from 'node:path';
import { format, inspect } from 'node:util';
import Parser from 'yargs-parser';
import { getProcessArgvBin } from '../../node_modules/yargs/build/lib/utils/process-argv.js';
import { YargsFactory } from '../../node_modules/yargs/build/lib/yargs-factory.js';

const absent = () => undefined;

const platform = {
  assert: { notStrictEqual: absent, strictEqual: absent },
  cliui: absent,
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
  stringWidth: absent,
  y18n: {
    __: format,
    __n: (one, many, count, ...rest) => format(count === 1 ? one : many, ...rest),
    getLocale: () => 'en',
    setLocale: absent,
    updateLocale: absent,
  },
};

const factory = YargsFactory(platform);

export default () => {
  const yargs = factory();
  const own = yargs.getInternalMethods();
  yargs.getInternalMethods = () => own;
  own.getUsageInstance().cacheHelpMessage = absent;
  return yargs;
};
