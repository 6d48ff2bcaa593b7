/**
 * The commands that the CRIU plugin runs: `criu-dump CONFIG CRIU_PID MAP_ID…` and `criu-restore CONFIG`.
 *
 * File descriptor 3 and the working folder are the folder of the images. Answers to the plugin go to standard output;
 * standard input ends when it needs nothing more. The tasks are frozen meanwhile, so this takes a shortcut.
 */
import * as fs from 'node:fs';
// Almost every run needs these: if they are loaded at the start, their compiled code is cached (see launcher.cjs).
import '../capture/read.js';
import '../replay/fill.js';
import { readConfig } from '../criu/config.js';
import { dumpMaps, restoreMaps } from '../criu/helper.js';
import { BpfimgError, EXIT, errorText, oneLine } from '../errors.js';
import { openSys } from '../kernel/sys.js';
import type { Io } from './io.js';
import { mapTypes } from './plugins.js';

/** The folder of the images, in which the plugin starts us. */
const FOLDER = '.';
/** Where the plugin finds a dump's images; it gives them their names. */
const NEW = '.bpfimg-new';

const answer = (line: string): void => {
  fs.writeSync(1, `${line}\n`);
};

/**
 * Runs one of these commands.
 * @returns the exit code; errors have been reported
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
    // The plugin opens them by id meanwhile.
    await endOfInput();
    for (const map of maps) map.close();
    return EXIT.ok;
  } catch (error) {
    if (!(error instanceof BpfimgError) && error instanceof Error) io.say(error.stack ?? error.message);
    answer(`error ${oneLine(errorText(error))}`);
    return EXIT.failed;
  }
}

/** Resolves when the other end of standard input is closed. */
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
