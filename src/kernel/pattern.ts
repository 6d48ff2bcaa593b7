/** Patterns that select maps by name or pin: those of glob(7), where `*` and `?` stop at a slash. */

/** Whether `text` has anything that a pattern gives a meaning. */
export function isPattern(text: string): boolean {
  return /[*?[]/.test(text);
}

/** What tells whether a text fits `pattern`. */
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
    // A range that runs backwards fits nothing but itself.
    return (text) => text === pattern;
  }
  return (text) => fits.test(text);
}

/** Those of `names` that one who mistyped `name` may have meant: the first few, for a message. */
export function near(name: string, names: Iterable<string>): string[] {
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
