import type { Command } from './command.js';

/** Every command. Its code is loaded if it is named, or for the help about all commands. */
export const COMMANDS: Readonly<Record<string, () => Promise<{ readonly command: Command }>>> = {
  decode: () => import('./commands/decode.js'),
  encode: () => import('./commands/encode.js'),
  info: () => import('./commands/info.js'),
  show: () => import('./commands/show.js'),
  get: () => import('./commands/get.js'),
  set: () => import('./commands/set.js'),
  delete: () => import('./commands/delete.js'),
  edit: () => import('./commands/edit.js'),
  verify: () => import('./commands/verify.js'),
  list: () => import('./commands/list.js'),
  watch: () => import('./commands/watch.js'),
  capture: () => import('./commands/capture.js'),
  replay: () => import('./commands/replay.js'),
  swap: () => import('./commands/swap.js'),
  diff: () => import('./commands/diff.js'),
  help: () => import('./commands/help.js'),
  completion: () => import('./commands/completion.js'),
  'criu check': () => import('./commands/criu-check.js'),
  'criu convert': () => import('./commands/criu-convert.js'),
  'criu forget': () => import('./commands/criu-forget.js'),
  'criu build': () => import('./commands/criu-build.js'),
};

/** Summaries of commands that have subcommands. */
export const GROUPS: Readonly<Record<string, string>> = { criu: 'tools for the CRIU plugin' };
