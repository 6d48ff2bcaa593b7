/** Loads a module whose place is known only now. Apart, because the bundle has its launcher do it. */
export const importModule = (url: string): Promise<unknown> => import(url);
