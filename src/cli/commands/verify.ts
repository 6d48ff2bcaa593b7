import { plugins } from '../../../plugins/index.js';
import { openDump } from '../../dump/model.js';
import { openImageSource } from '../../dump/source.js';
import { Verifier } from '../../dump/verify.js';
import { EXIT } from '../../errors.js';
import { ImageReader } from '../../image/reader.js';
import { COMPACT, print } from '../../json/print.js';
import type { JsonObject } from '../../image/message.js';
import { MapTypes } from '../../maptype.js';
import { colours, nameText, plural } from '../../render.js';
import { coloured, type Io } from '../io.js';
import { isFolder, sourceOf } from '../source.js';
import { written } from '../written.js';

export interface VerifyArguments {
  readonly source?: string | undefined;
  readonly in?: string | undefined;
  readonly json: boolean;
  readonly color?: boolean | undefined;
}

/** Exit code 1 when something is wrong; doubts alone are 0. */
export async function run(args: VerifyArguments, io: Io): Promise<number> {
  const source = sourceOf(args.source, args.in);
  const verifier = new Verifier(new MapTypes(plugins));
  if (source !== undefined && isFolder(source)) {
    const dump = await openDump(source, verifier.onBroken);
    try {
      await verifier.check(dump);
    } finally {
      dump.close();
    }
  } else {
    const opened = await openImageSource(source ?? (await io.stdin()), verifier.onBroken);
    try {
      if (opened.dump) await verifier.check(opened.dump);
      else for await (const _ of (await ImageReader.open(opened.input)).entries()) continue;
    } finally {
      if (opened.dump) opened.dump.close();
      else opened.input.close();
    }
  }
  const { findings } = verifier;
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
      out.text(`${mark}: ${code}: ${image}: ${map}${message}\n`);
    }
    const warnings = findings.length - errors;
    if (errors > 0) out.text(`${plural(errors, 'error')}, ${plural(warnings, 'warning')}\n`);
    else out.text(`${look.green('sound')}${warnings > 0 ? `, ${plural(warnings, 'warning')}` : ''}\n`);
  });
  return errors > 0 ? EXIT.failed : EXIT.ok;
}
