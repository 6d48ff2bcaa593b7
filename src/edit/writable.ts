/** Which sources can be changed, and whether somebody else has changed one in the meantime. */
import * as fs from 'node:fs';
import { BpfimgError } from '../errors.js';
import { state } from '../io/journal.js';
import { fileState } from '../source/pack.js';
import type { Source } from '../source/source.js';

/** The code of the error for a source that has changed: another edit of it cannot help. */
export const CHANGED = 'changed-meanwhile';

/** A source that can be changed. */
export class Writable {
  readonly #source: Source;
  readonly #before: string;

  /**
   * @param source just opened: what is read of it afterwards is what may be changed
   * @throws BpfimgError `unsupported`
   */
  constructor(source: Source) {
    this.#source = source;
    const refuse = (what: string) => new BpfimgError('unsupported', what, { subject: source.name });
    if (source.form === 'object') throw refuse('it is an object file, expected a dump, an image or live maps');
    if (source.form === 'document') {
      throw refuse('it is a JSON document, which any editor or jq can change; encode makes a dump of it');
    }
    if ((source.form === 'image' || source.form === 'archive') && !fs.statSync(source.name).isFile()) {
      throw refuse('it is a pipe or a device, which cannot be changed: name a file');
    }
    this.#before = this.#state();
  }

  #state(): string {
    const source = this.#source;
    if (source.form === 'live') return '';
    return source.kind === 'dump' && source.form === 'folder' ? state(source.files.name) : fileState(source.name);
  }

  /**
   * Refuses to replace what somebody else has changed since it was opened.
   * @throws BpfimgError `conflict`
   */
  refuseChanged(): void {
    if (this.#before === this.#state()) return;
    throw new BpfimgError('conflict', 'somebody else has changed it in the meantime; nothing is written', {
      subject: this.#source.name,
      code: CHANGED,
    });
  }
}
