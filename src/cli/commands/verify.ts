import { openDump } from '../../dump/model.js';
import { openImageSource } from '../../dump/source.js';
import { EXIT } from '../../errors.js';
import { type Input, openInput } from '../../io/input.js';
import { COMPACT, print } from '../../json/print.js';
import type { MapTypes } from '../../maptype.js';
import { colours, nameText, plural } from '../../render.js';
import type { JsonObject } from '../../value.js';
import { Verifier } from '../../verify/verify.js';
import type { Command, Given } from '../command.js';
import { coloured, type Io } from '../io.js';
import { image, json, libdir, source, type TypeArguments, types as typeOptions } from '../options.js';
import { mapTypes } from '../plugins.js';
import { isFolder, sourceOf } from '../source.js';
import { printLines, written } from '../written.js';

const takes = { words: { source }, options: { in: image, ...typeOptions, ...libdir, json } } as const;

type VerifyArguments = Given<typeof takes>;

export const command: Command = {
  name: 'verify',
  summary: 'check a dump for errors; exit with 1 if there are any',
  ...takes,
  examples: [['verify dump', 'what a restore would refuse or lose']],
  run,
};

/** Exit code 1 when something is wrong; warnings alone are 0. */
async function run(args: VerifyArguments, io: Io): Promise<number> {
  const source = sourceOf(args.source, args.in);
  const types = await mapTypes(args.libdir, io);
  const verifier =
    source !== undefined && isFolder(source)
      ? await verifyFolder(source, new Verifier(types), args)
      : await verifyImage(source === undefined ? await io.stdin() : await openInput(source), types, args);
  const { findings } = verifier;
  for (const note of verifier.notes) io.say(`bpfimg: warning: ${note}`);
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

async function verifyFolder(folder: string, verifier: Verifier, args: TypeArguments): Promise<Verifier> {
  const dump = await openDump(folder, verifier.onBroken);
  try {
    await verifier.check(dump, args);
  } finally {
    dump.close();
  }
  return verifier;
}

async function verifyImage(given: Input, types: MapTypes, args: TypeArguments): Promise<Verifier> {
  const verifier = new Verifier(types, given.name);
  const opened = await openImageSource(given, verifier.onBroken);
  try {
    if (opened.dump) await verifier.check(opened.dump, args);
    else await verifier.readThrough(opened.input);
  } finally {
    if (opened.dump) opened.dump.close();
    else opened.input.close();
  }
  return verifier;
}
