import * as path from 'node:path';
import { buildPlugin } from '../../criu/build.js';
import { type Installed, installPlugin, libdirLine, uninstallPlugin } from '../../criu/install.js';
import { BpfimgError } from '../../errors.js';
import { version } from '../../version.js';
import type { Command, Given } from '../command.js';
import type { Io } from '../io.js';
import { boolean, string } from '../options.js';
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
    install: {
      ...boolean,
      group: 'Target',
      describe: 'also have CRIU, runc, crun and podman find it: add its folder to /etc/criu/default.conf',
    },
    uninstall: {
      ...boolean,
      group: 'Target',
      describe: 'instead, remove what --install added',
    },
  },
} as const;

export const command: Command = {
  name: 'criu build',
  summary: 'compile the CRIU plugin for this machine',
  ...takes,
  examples: [
    ['criu build --install', 'compile it, and have CRIU find it'],
    ['criu build --uninstall', 'take both away'],
    ['criu build --install --out /usr/lib/criu', 'into the folder of other plugins: CRIU reads only one folder'],
    ['criu build --config /etc/app/criu.conf', 'a plugin with settings of its own'],
  ],
  run,
};

/** @param etc folder of CRIU's configuration files; tests have their own */
export async function run(args: Given<typeof takes>, io: Io, etc?: string): Promise<void> {
  const compiler = io.env.CC === '' ? undefined : io.env.CC;
  if (args.install && args.uninstall) throw new BpfimgError('usage', '--install and --uninstall: one or the other');
  const options = { version, config: args.config, compiler };
  if (args.install) return done('added', await installPlugin(args.out, { ...options, etc, home: io.env.HOME }), io);
  if (args.uninstall) return done('removed', await uninstallPlugin({ etc }), io);
  // Only the line for CRIU's configuration, so that it can be appended to a file.
  const folder = path.resolve(args.out);
  const line = libdirLine(folder);
  buildPlugin(folder, options);
  await written(undefined, io, async (out) => {
    out.text(line);
  });
  if (!io.terminal) return;
  io.say('bpfimg: the plugin is built. The line above belongs into /etc/criu/default.conf, where --install puts it;');
  io.say(`bpfimg: or give criu --libdir ${folder}`);
}

/** One line for the plugin, one for the configuration. */
function done(what: 'added' | 'removed', { plugin, file, line }: Installed, io: Io): Promise<void> {
  return written(undefined, io, async (out) => {
    out.text(`${plugin}: ${what === 'added' ? 'built' : what}\n`);
    out.text(`${file}: ${line === undefined ? 'names its folder already' : `${line.trimEnd()}: ${what}`}\n`);
  });
}
