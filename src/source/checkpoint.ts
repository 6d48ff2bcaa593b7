/** The layout of container checkpoints: the dump in `checkpoint`, and the engine's own files beside it. */
import { IMAGE, PLUGIN_IMAGE } from '../dump/model.js';
import { BpfimgError } from '../errors.js';
import { Cursor, type Input } from '../io/input.js';

/** The file in which podman, CRI-O and kubelet name the container. */
export const CONFIG = 'config.dump';

/** Largest {@link CONFIG} in bytes that is read. */
const MAX_CONFIG = 1024 * 1024;

/** Names of images: a dump of maps has at least one of them. */
const TELLING: ReadonlySet<string> = new Set([...Object.values(IMAGE), ...Object.values(PLUGIN_IMAGE)]);

/** Whether a folder with these files is a dump that may have maps. */
export function isDump(names: Iterable<string>): boolean {
  return [...names].some((name) => TELLING.has(name));
}

/** The container's name in a {@link CONFIG}; undefined if it gives none. Owns `input`. */
export async function checkpointName(input: Input): Promise<string | undefined> {
  try {
    const bytes = await new Cursor(input).take(MAX_CONFIG);
    const { name } = (JSON.parse(Buffer.from(bytes).toString('utf8')) ?? {}) as { readonly name?: unknown };
    return typeof name === 'string' ? name : undefined;
  } catch (error) {
    // The maps can be read without the name.
    if (error instanceof SyntaxError || error instanceof BpfimgError) return undefined;
    throw error;
  } finally {
    input.close();
  }
}
