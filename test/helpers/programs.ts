/** The programs that a page of the documentation shows. */

/** By name: blocks of JavaScript that begin with `// NAME`. */
export function programs(page: string): Record<string, string> {
  const blocks = page.matchAll(/^```js\n(\/\/ (\S+)\n[\s\S]*?)^```$/gm);
  return Object.fromEntries([...blocks].map(([, text = '', name = '']) => [name, text]));
}
