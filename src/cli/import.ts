/** Loads a module whose path is known only at run time; the bundle replaces this file (see launcher.cjs). */
export const importModule = (url: string): Promise<unknown> => import(url);
