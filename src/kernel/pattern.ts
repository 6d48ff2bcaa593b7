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

/** The values in `text`, separated by commas; but what is known as it stands is one value. */
export function listed(text: string, isKnown: (text: string) => boolean): string[] {
  return text.includes(',') && !isKnown(text) ? text.split(',').filter((part) => part !== '') : [text];
}

/** The first few of `names` that someone who mistyped `name` may have meant, likeliest first, for a message. */
export function similarNames(name: string, names: Iterable<string>): string[] {
  const plain = (text: string) => text.toLowerCase().replace(/[^a-z0-9]/g, '');
  const wanted = plain(name);
  const start = wanted.slice(0, 3);
  if (wanted.length < 2) return [];
  const most = Math.max(1, Math.floor(wanted.length / 3));
  const ranked = [...new Set(names)].flatMap((other): [number, string][] => {
    const text = plain(other);
    const apart = Math.abs(text.length - wanted.length) > most ? most + 1 : mistypings(wanted, text);
    if (apart <= most) return [[apart, other]];
    const alike = text.length > 2 && (text.includes(start) || wanted.includes(text));
    return alike ? [[most + Math.abs(other.length - name.length), other]] : [];
  });
  return ranked
    .sort(([a], [b]) => a - b)
    .slice(0, 5)
    .map(([, other]) => other);
}

/** How many letters are missing, too many, wrong, or exchanged with the next. */
function mistypings(a: string, b: string): number {
  let [before, last]: [number[], number[]] = [[], Array.from({ length: b.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1];
      const least = Math.min(
        (last[j] as number) + 1,
        (row[j - 1] as number) + 1,
        (last[j - 1] as number) + Number(!same),
      );
      const exchanged = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      row.push(exchanged ? Math.min(least, (before[j - 2] as number) + 1) : least);
    }
    [before, last] = [last, row];
  }
  return last[b.length] as number;
}
