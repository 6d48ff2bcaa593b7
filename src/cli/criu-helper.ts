/**
 * The commands that the CRIU plugin runs: `criu-dump CONFIG CRIU_PID ROOT_PID MAP_ID…` and `criu-restore CONFIG`.
 *
 * `criu-dump CONFIG ROOT_PID` gets ready before CRIU freezes the tasks, says so, and reads the other command's words
 * from standard input, on a line; without such a line there is nothing to do.
 *
 * File descriptor 3 and the working folder are the folder of the images. Answers to the plugin go to standard output;
 * standard input ends when it needs nothing more. The tasks are frozen meanwhile, so this takes a shortcut.
 */
import * as fs from 'node:fs';
import { promisify } from 'node:util';
// Almost every run needs these: if they are loaded at the start, their compiled code is cached (see launcher.cjs).
import '../capture/read.js';
import '../replay/fill.js';
import { readConfig } from '../criu/config.js';
import { dumpMaps, restoreMaps, warmUp } from '../criu/helper.js';
import { BpfimgError, EXIT, errorText, oneLine } from '../errors.js';
import { openSys } from '../kernel/sys.js';
import type { Io } from './io.js';
import { mapTypes } from './plugins.js';

/** The folder of the images, in which the plugin starts us. */
const FOLDER = '.';
/** Where the plugin finds a dump's images; it gives them their names. */
const NEW = '.bpfimg-new';
/** Where nothing stays; the plugin removes what has such a name. */
const WARM = '..bpfimg-new.bpfimg-warm';

const answer = (line: string): void => {
  fs.writeSync(1, `${line}\n`);
};

/**
 * Runs one of these commands.
 * @returns the exit code; errors have been reported
 */
export async function helper(argv: readonly string[], io: Io): Promise<number> {
  const [command, file = '', ...words] = argv;
  const dumps = command === 'criu-dump';
  if (file === '' || !(dumps ? areIds(words) : words.length === 0)) {
    io.say(`bpfimg: ${command} is for the CRIU plugin: see bpfimg criu build`);
    return EXIT.usage;
  }
  try {
    const config = readConfig(file);
    const types = await mapTypes(config.libdir, io);
    const sys = await openSys(types);
    if (dumps) {
      let request = words;
      if (words.length === 1) {
        await warmUp(sys, types, Number(words[0]), WARM);
        answer('ready');
        request = await readWords();
        if (request.length === 0) return EXIT.ok;
        if (!areIds(request)) throw new BpfimgError('usage', `expected pids and ids, got ${request.join(' ')}`);
      }
      const [criu = 0, root = 0, ...wanted] = request.map(Number);
      await dumpMaps(sys, types, { folder: NEW, criu, root, wanted, config, answer });
      answer('end');
      return EXIT.ok;
    }
    const maps = await restoreMaps(sys, FOLDER, types, config, answer);
    answer('end');
    // The plugin opens them by id meanwhile.
    await readWords();
    for (const map of maps) map.close();
    return EXIT.ok;
  } catch (error) {
    if (!(error instanceof BpfimgError) && error instanceof Error) io.say(error.stack ?? error.message);
    answer(`error ${oneLine(errorText(error))}`);
    return EXIT.failed;
  }
}

/** Whether these can be the pids and ids that the plugin passes; 0 is a pid that it does not know. */
function areIds(words: readonly string[]): boolean {
  return words.length > 0 && words.every((word) => /^\d{1,10}$/.test(word) && Number(word) <= 0xffff_ffff);
}

/** The words of the next line of standard input; none when it ends. It does not block the process, which can be signalled. */
async function readWords(): Promise<string[]> {
  const read = promisify(fs.read);
  const buffer = Buffer.alloc(65_536);
  let text = '';
  while (!text.includes('\n')) {
    const { bytesRead } = await read(0, buffer, 0, buffer.length, null).catch(() => ({ bytesRead: 0 }));
    if (bytesRead === 0) return [];
    text += buffer.toString('latin1', 0, bytesRead);
  }
  return text.trim().split(' ');
}
