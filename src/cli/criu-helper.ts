/**
 * The commands that the CRIU plugin runs: `criu-dump CONFIG CRIU_PID MAP_ID…` and `criu-restore CONFIG`.
 *
 * File 3 and the working folder are the folder of the images; standard output are answers to the plugin,
 * standard input ends when it needs nothing more. The tasks are frozen meanwhile, so this way is short.
 */
import * as fs from 'node:fs';
// Almost every run needs them: loaded with everything else, their compiled code is kept (see launcher.cjs).
import '../capture/read.js';
import '../replay/fill.js';
import { readConfig } from '../criu/config.js';
import { dumpMaps, restoreMaps } from '../criu/helper.js';
import { BpfimgError, EXIT, errorText, oneLine } from '../errors.js';
import { openSys } from '../kernel/sys.js';
import type { Io } from './io.js';
import { mapTypes } from './plugins.js';

/** Where the plugin has put us: the folder of the images. */
const FOLDER = '.';
/** Where it takes a dump's images from; it gives them their names. */
const NEW = '.bpfimg-new';

const answer = (line: string): void => {
  fs.writeSync(1, `${line}\n`);
};

/**
 * Runs one of these commands.
 * @returns the exit code; what went wrong has been said
 */
export async function helper(argv: readonly string[], io: Io): Promise<number> {
  const [command, file = '', ...rest] = argv;
  const numbers = rest.map(Number);
  const [criu, ...wanted] = numbers;
  const fits = command === 'criu-restore' ? criu === undefined : criu !== undefined;
  if (file === '' || !fits || numbers.some((number) => !(number > 0 && number <= 0xffff_ffff))) {
    io.say(`bpfimg: ${command} is for the CRIU plugin: see bpfimg criu build`);
    return EXIT.usage;
  }
  try {
    const config = readConfig(file);
    const types = await mapTypes(config.libdir, io);
    const sys = await openSys(types);
    if (criu !== undefined) {
      await dumpMaps(sys, types, { folder: NEW, criu, wanted, config, answer });
      answer('end');
      return EXIT.ok;
    }
    const maps = await restoreMaps(sys, FOLDER, types, config, answer);
    answer('end');
    // They are opened by id meanwhile.
    await endOfInput();
    for (const map of maps) map.close();
    return EXIT.ok;
  } catch (error) {
    if (!(error instanceof BpfimgError) && error instanceof Error) io.say(error.stack ?? error.message);
    answer(`error ${oneLine(errorText(error))}`);
    return EXIT.failed;
  }
}

/** Resolves when whoever writes to standard input has closed it. */
function endOfInput(): Promise<void> {
  const buffer = Buffer.alloc(64);
  return new Promise((resolve) => {
    const read = (error: Error | null, count: number): void => {
      if (error !== null || count === 0) resolve();
      else fs.read(0, buffer, 0, buffer.length, null, read);
    };
    read(null, 1);
  });
}
