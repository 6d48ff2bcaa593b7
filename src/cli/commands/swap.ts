import { BpfimgError } from '../../errors.js';
import { inAscii } from '../../json/print.js';
import { commitSwap, rollBackSwap } from '../../replay/swap.js';
import type { Command, Given } from '../command.js';
import type { Io } from '../io.js';
import { json } from '../options.js';
import { printLines, written } from '../written.js';

const takes = {
  words: {
    action: {
      choices: ['commit', 'rollback'],
      demandOption: true,
      describe: 'commit: no longer pin the old maps; rollback: give them their names back',
    },
    pins: {
      type: 'string',
      value: 'PIN',
      array: true,
      demandOption: true,
      describe: 'folders of pins, or pins',
    },
  },
  options: { json },
} as const;

/** What yargs makes of the command line. */
export type SwapArguments = Given<typeof takes>;

export const command: Command = {
  name: 'swap',
  summary: 'end what replay --swap has begun',
  ...takes,
  examples: [
    ['swap commit /sys/fs/bpf/app', 'the new program works: let the old maps go'],
    ['swap rollback /sys/fs/bpf/app', 'it does not: the old maps get their names back'],
    ['swap commit /sys/fs/bpf/app/flows', 'one map only'],
  ],
  run,
};

/** Ends swaps, and prints the pins. */
export async function run({ action, pins, json }: SwapArguments, io: Io): Promise<void> {
  if (pins.length === 0) throw new BpfimgError('usage', 'expected a folder of pins, or a pin');
  const [done, ended] =
    action === 'commit' ? (['committed', commitSwap(pins)] as const) : (['rolled back', rollBackSwap(pins)] as const);
  const lines = json
    ? `{"pins":[${ended.map((pin) => `\n  ${inAscii(JSON.stringify({ pin, swap: done }))}`).join(',')}]}`.split('\n')
    : ended.map((pin) => `${pin}: ${done}`);
  await written(undefined, io, async (out) => {
    printLines(out, lines);
  });
}
