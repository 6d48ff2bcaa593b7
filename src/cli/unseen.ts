import type { Unseen } from '../kernel/live.js';
import { plural } from '../render.js';

/** One line about what is not shown; empty if everything is. */
export function unseenText({ ids, processes, types }: Unseen): string {
  const parts: string[] = [];
  if (ids) parts.push('without CAP_SYS_ADMIN, maps that no visible process or pin holds are not shown');
  if (processes > 0) {
    const which = processes === 1 ? '1 process' : `${processes} processes`;
    parts.push(`${which} may not be looked at (no right to trace), so maps and holders may be missing`);
  }
  if (types > 0) {
    parts.push(
      `of ${plural(types, 'map')} only the id is shown: opening could harm, and a look without needs Linux 5.8 with BTF`,
    );
  }
  return parts.join('; ');
}
