/** How checkpoints of containers are laid out: the dump in `checkpoint`, and what its engine says beside it. */
import { IMAGE, PLUGIN_IMAGE } from '../dump/model.js';
import { BpfimgError } from '../errors.js';
import { Cursor, type Input } from '../io/input.js';

/** The file in which podman, CRI-O and kubelet say what container it was. */
export const CONFIG = 'config.dump';

/** Bytes of the largest {@link CONFIG} that is read. */
const MAX_CONFIG = 1024 * 1024;

/** Names of images of which a dump of maps has at least one. */
const TELLING: ReadonlySet<string> = new Set([...Object.values(IMAGE), ...Object.values(PLUGIN_IMAGE)]);

/** Whether a folder with these files is a dump that may have maps. */
export function isDump(names: Iterable<string>): boolean {
  return [...names].some((name) => TELLING.has(name));
}

/** The container's name in a {@link CONFIG}; undefined where it does not say one. Owns `input`. */
export async function checkpointName(input: Input): Promise<string | undefined> {
  try {
    const bytes = await new Cursor(input).take(MAX_CONFIG);
    const { name } = (JSON.parse(Buffer.from(bytes).toString('utf8')) ?? {}) as { readonly name?: unknown };
    return typeof name === 'string' ? name : undefined;
  } catch (error) {
    // The maps can be read without it.
    if (error instanceof SyntaxError || error instanceof BpfimgError) return undefined;
    throw error;
  } finally {
    input.close();
  }
}
