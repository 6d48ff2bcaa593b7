/** What the launcher knows or does for the bundle, which replaces this file (see launcher.cjs). */
import type { Moment } from '../phases.js';

/** Loads a module whose path is known only at run time. */
export const importModule = (url: string): Promise<unknown> => import(url);

/** When the launcher began. */
export const launched: () => Moment | undefined = () => undefined;
