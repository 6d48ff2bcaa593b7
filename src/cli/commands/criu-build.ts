import * as path from 'node:path';
import { buildPlugin } from '../../criu/build.js';
import { version } from '../../version.js';
import type { Command, Given } from '../command.js';
import type { Io } from '../io.js';
import { string } from '../options.js';
import { written } from '../written.js';

const takes = {
  options: {
    out: {
      ...string,
      default: '/usr/local/lib/bpfimg',
      value: 'DIR',
      group: 'Output',
      describe: 'folder for bpfimg.so',
    },
    config: {
      ...string,
      value: 'FILE',
      group: 'Source',
      describe: 'settings file that the plugin reads instead of /etc/bpfimg/criu.conf',
    },
  },
} as const;

export const command: Command = {
  name: 'criu build',
  summary: 'compile the CRIU plugin for this machine',
  ...takes,
  examples: [
    ['criu build >> /etc/criu/default.conf', 'compile it, and have CRIU find it'],
    ['criu build --out /usr/lib/criu', 'into the folder where CRIU looks for plugins'],
    ['criu build --config /etc/app/criu.conf', 'a plugin with settings of its own'],
  ],
  run,
};

/** Prints only the line for CRIU's settings, so that it can be appended to that file. */
async function run(args: Given<typeof takes>, io: Io): Promise<void> {
  const compiler = io.env.CC === '' ? undefined : io.env.CC;
  const file = buildPlugin(args.out, { version, config: args.config, compiler });
  await written(undefined, io, async (out) => {
    out.text(`libdir ${path.dirname(file)}\n`);
  });
  if (!io.terminal) return;
  io.say(`bpfimg: ${file} is built. The line above belongs into /etc/criu/default.conf, for runc and podman into`);
  io.say(`/etc/criu/runc.conf; or give criu --libdir ${path.dirname(file)}`);
}
