import type { Dump } from '../../dump/model.js';
import { BpfimgError, EXIT } from '../../errors.js';
import { COMPACT, print } from '../../json/print.js';
import { colours, nameText, plural } from '../../render.js';
import { mapsOf, openMaps, type Source } from '../../source/source.js';
import type { JsonObject } from '../../value.js';
import { Verifier } from '../../verify/verify.js';
import type { Command, Given } from '../command.js';
import { coloured, type Io } from '../io.js';
import { changes, image, json, libdir, like, source, types as typeOptions } from '../options.js';
import { Sources, sourceOf } from '../source.js';
import { printLines, written } from '../written.js';

const takes = { words: { source }, options: { in: image, ...typeOptions, ...libdir, like, ...changes, json } } as const;

type VerifyArguments = Given<typeof takes>;

export const command: Command = {
  name: 'verify',
  summary: 'check a dump for errors; exit with 1 if there are any',
  ...takes,
  examples: [
    ['verify dump', 'what a restore would refuse or lose'],
    ['verify checkpoint.tar.zst --json', 'a checkpoint of a container, for scripts'],
    ['verify pinned:/sys/fs/bpf/app --like app.bpf.o', 'which maps a new program can use as they are'],
  ],
  exits: { 0: 'sound', 1: 'it has errors, or cannot be read' },
  run,
};

/** Exit code 1 for errors; warnings alone are 0. */
async function run(args: VerifyArguments, io: Io): Promise<number> {
  const { findings, notes } = await verified(args, io);
  for (const note of notes) io.say(`bpfimg: warning: ${note}`);
  const errors = findings.filter(({ severity }) => severity === 'error').length;
  await written(undefined, io, async (out) => {
    if (args.json) {
      out.text(`${print({ sound: errors === 0, findings: findings as unknown as JsonObject[] }, COMPACT)}\n`);
      return;
    }
    const look = colours(coloured(io, args.color));
    for (const { code, severity, image, map_id, name, message } of findings) {
      const map = map_id === undefined ? '' : `map ${map_id}${name ? ` (${nameText(name)})` : ''}: `;
      const mark = severity === 'error' ? look.red('error') : look.yellow('warning');
      printLines(out, [`${mark}: ${code}: ${image}: ${map}${message}`]);
    }
    const warnings = findings.length - errors;
    const warningCount = plural(warnings, 'warning');
    const sound = `${look.green('sound')}${warnings > 0 ? `, ${warningCount}` : ''}`;
    printLines(out, [errors > 0 ? `${plural(errors, 'error')}, ${warningCount}` : sound]);
  });
  return errors > 0 ? EXIT.failed : EXIT.ok;
}

async function verified(args: VerifyArguments, io: Io): Promise<Pick<Verifier, 'findings' | 'notes'>> {
  const change = (['rename', 'drop', 'set'] as const).find((name) => args[name].length > 0);
  if (args.like === undefined && change !== undefined) {
    throw new BpfimgError('usage', 'it goes with --like', { subject: `--${change}` });
  }
  const sources = new Sources(io, args);
  const source = await sources.open(sourceOf(args.source, args.in), true);
  try {
    if (source.kind === 'dump') await source.check?.();
    const like = args.like === undefined || sources.likeUsed ? undefined : await sources.openBare(args.like);
    const verifier = new Verifier(await sources.types(), source.kind === 'image' ? source.name : undefined);
    const dump = await openMaps(source, verifier.onBroken);
    try {
      if (dump !== undefined) {
        await verifier.check(dump, args);
        if (like !== undefined) await compare(verifier, dump, like, args);
      }
      if (dump === undefined && source.kind === 'image') await verifier.readThrough(source.input);
    } finally {
      dump?.close();
      like?.close();
    }
    const { findings, notes } = verifier;
    if (hasImages(source)) return verifier;
    // The user has never seen the images that were made for it.
    return { notes, findings: findings.map((finding) => ({ ...finding, image: source.name })) };
  } finally {
    source.close();
  }
}

function hasImages(source: Source): boolean {
  return source.kind === 'image' || source.form === 'folder' || source.form === 'archive';
}

/** Compares the maps with those of `like`. */
async function compare(verifier: Verifier, dump: Dump, like: Source, args: VerifyArguments): Promise<void> {
  const { possibleCpus } = await import('../../kernel/proc.js');
  const { migrationOptions } = await import('../reshaping.js');
  const model = await mapsOf(like);
  try {
    await verifier.compare(dump, { dump: model, name: like.name }, { ...migrationOptions(args), cpus: possibleCpus() });
  } finally {
    model.close();
  }
}
