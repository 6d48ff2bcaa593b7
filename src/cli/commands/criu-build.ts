import * as path from 'node:path';
import { buildPlugin } from '../../criu/build.js';
import type { Io } from '../io.js';
import { version } from '../version.js';
import { written } from '../written.js';

export interface BuildArguments {
  readonly out: string;
  readonly config?: string | undefined;
}

/** Prints the line for CRIU's settings, and nothing else: it may be appended to the file. */
export async function run(args: BuildArguments, io: Io): Promise<void> {
  const compiler = io.env.CC === '' ? undefined : io.env.CC;
  const file = buildPlugin(args.out, { version, config: args.config, compiler });
  await written(undefined, io, async (out) => {
    out.text(`libdir ${path.dirname(file)}\n`);
  });
  if (!io.terminal) return;
  io.say(`bpfimg: ${file} is built. The line above belongs into /etc/criu/default.conf, for runc and podman into`);
  io.say(`/etc/criu/runc.conf; or give criu --libdir ${path.dirname(file)}`);
}
