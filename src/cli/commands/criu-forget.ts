import { forgetKept } from '../../criu/kept.js';
import type { Command, Given } from '../command.js';
import type { Io } from '../io.js';
import { printLines, written } from '../written.js';

const takes = {
  words: { dir: { type: 'string', demandOption: true, describe: 'dump folder' } },
  options: {},
} as const;

export const command: Command = {
  name: 'criu forget',
  summary: 'let go of what keep-programs kept for a restore',
  ...takes,
  examples: [
    ['criu forget dump', 'after the restore, or if there will be none'],
    ['criu forget /var/lib/dumps/web', 'by its path'],
    ['criu forget ../web/checkpoint', 'in the bundle of a container'],
  ],
  run,
};

/** If nothing was kept, says so on standard error; that is not a failure. */
async function run({ dir }: Given<typeof takes>, io: Io): Promise<void> {
  const kept = await forgetKept(dir);
  if (kept.length === 0) io.say(`bpfimg: ${dir}: nothing was kept for it`);
  await written(undefined, io, async (out) => {
    printLines(
      out,
      kept.map(({ kind, object, wasThere }) => `${kind} ${object}: ${wasThere ? 'let go' : 'was not there'}`),
    );
  });
}
