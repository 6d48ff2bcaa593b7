/** The examples of a page of the documentation: commands, and what they print. */

export interface Example {
  readonly line: number;
  readonly command: string;
  readonly output: string;
}

/** The examples of a page: `$ command` lines in blocks of this kind, each with what it prints. */
export function examples(page: string, kind: string): Example[] {
  const found: { line: number; command: string; output: string[] }[] = [];
  let inBlock = false;
  for (const [i, text] of page.split('\n').entries()) {
    if (text.startsWith('```')) inBlock = text === `\`\`\`${kind}`;
    else if (inBlock && text.startsWith('$ ')) found.push({ line: i + 1, command: text.slice(2), output: [] });
    else if (inBlock) found.at(-1)?.output.push(text);
  }
  return found.map(({ output, ...rest }) => ({ ...rest, output: output.map((text) => `${text}\n`).join('') }));
}

/** Text without the blanks that line columns up. */
export function packed(text: string): string {
  return text.replace(/^ +| (?= )/gm, '');
}

/** The source of a regular expression that matches this text. */
export function quoted(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
}
