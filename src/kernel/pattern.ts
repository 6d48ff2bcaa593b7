/** Patterns that select maps by name or pin: as in glob(7), `*` and `?` do not match a slash. */

/** Whether `text` contains a character with a meaning in patterns. */
export function isPattern(text: string): boolean {
  return /[*?[]/.test(text);
}

/** Compiles `pattern`; the result says whether a text matches. */
export function matcher(pattern: string): (text: string) => boolean {
  const parts = pattern.match(/\*+|\?|\[!?\]?[^\]/]*\]|./gs) ?? [];
  const source = parts.map((part) => {
    if (part.startsWith('*')) return '[^/]*';
    if (part === '?') return '[^/]';
    if (part.length === 1) return part.replace(/[\\^$.*+?()[\]{}|/]/, '\\$&');
    const list = part
      .slice(1, -1)
      .replace(/^!/, '^')
      .replace(/[\\[\]]/g, '\\$&');
    return `(?!/)[${list}]`;
  });
  let fits: RegExp;
  try {
    fits = new RegExp(`^${source.join('')}$`, 's');
  } catch {
    // A reversed range matches only itself.
    return (text) => text === pattern;
  }
  return (text) => fits.test(text);
}

/** The first few of `names` that someone who mistyped `name` may have meant, for a message. */
export function similarNames(name: string, names: Iterable<string>): string[] {
  const plain = (text: string) => text.toLowerCase().replace(/[^a-z0-9]/g, '');
  const wanted = plain(name);
  const start = wanted.slice(0, 3);
  if (wanted.length < 2) return [];
  const like = [...new Set(names)].filter((other) => {
    const text = plain(other);
    return text.length > 1 && (text.includes(start) || wanted.includes(text));
  });
  return like.sort((a, b) => Math.abs(a.length - name.length) - Math.abs(b.length - name.length)).slice(0, 5);
}
