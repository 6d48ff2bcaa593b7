/** How full maps are: what `list` sorts by, warns about and gives to monitoring. */
import { BpfimgError, EXIT } from '../errors.js';
import type { MapTypes } from '../maptype.js';
import { nameText, plural } from '../render.js';

/** What is known of a map. A member is undefined if it is not known. */
export interface Fullness {
  readonly id: number;
  /** One character per byte. */
  readonly name: string | undefined;
  readonly type: number | undefined;
  /** The most items that it can hold; 0 if there is no such number. */
  readonly most: number | undefined;
  readonly used: number | undefined;
  /** Bytes. */
  readonly memory: number | undefined;
  readonly pins: readonly string[];
}

/** Whether "full" means nothing for a map of this type: every item is always there. */
export function alwaysFull(type: number | undefined, types: MapTypes): boolean {
  return type !== undefined && types.get(type).dense === true;
}

/** The cells of a table: the number of items, and the percentage, which is 100 only of a full map. */
export function fullnessCells(map: Fullness, types: MapTypes): [used: string, percent: string] {
  if (alwaysFull(map.type, types)) return ['-', '-'];
  const part = partOf(map);
  const percent = part === undefined ? (map.most === 0 ? '-' : '?') : String(Math.floor(100 * part));
  return [map.used === undefined ? '?' : String(map.used), percent];
}

/** Which part of a map is used, between 0 and 1. */
function partOf({ used, most }: Fullness): number | undefined {
  return used === undefined || most === undefined || most === 0 ? undefined : used / most;
}

/** What `--sort` accepts. */
export const ORDERS = ['id', 'name', 'used', 'memory'] as const;
/** One of {@link ORDERS}. */
export type Order = (typeof ORDERS)[number];

/** Sorts by id or name, or by the part that is used or by memory, the largest first; what is not known comes last. */
export function sorted<T extends Fullness>(maps: readonly T[], order: Order): T[] {
  const size = (of: (map: T) => number | undefined) => (a: T, b: T) => (of(b) ?? -1) - (of(a) ?? -1);
  const compare = {
    id: () => 0,
    name: (a: T, b: T) =>
      a.name === undefined ? 1 : b.name === undefined ? -1 : Buffer.compare(bytes(a.name), bytes(b.name)),
    used: (a: T, b: T) => size(partOf)(a, b) || size(({ used }) => used)(a, b),
    memory: size(({ memory }) => memory),
  }[order];
  return [...maps].sort((a, b) => compare(a, b) || a.id - b.id);
}

const bytes = (name: string) => Buffer.from(name, 'latin1');

/** The limit of `--fail-above`, between 0 and 1. */
export function limitOf(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const percent = /^\d+(\.\d+)?%?$/.test(text) ? Number.parseFloat(text) : 101;
  if (percent <= 100) return percent / 100;
  throw new BpfimgError('usage', 'expected a percentage from 0 to 100', { subject: `--fail-above ${text}` });
}

/** Maps whose fullness is not known that a line names. */
const NAMED = 5;

/**
 * Says which maps are fuller than `limit`, and for which that is unknown.
 * @returns the exit code
 */
export function judged(maps: readonly Fullness[], limit: number, types: MapTypes, say: (line: string) => void): number {
  const name = (map: Fullness) => `map ${map.id}${map.name ? ` (${nameText(map.name)})` : ''}`;
  let code: number = EXIT.ok;
  const unknown: string[] = [];
  for (const map of maps) {
    if (alwaysFull(map.type, types) || map.most === 0) continue;
    const part = partOf(map);
    if (part === undefined) unknown.push(name(map));
    else if (part > limit) {
      say(`${name(map)}: ${Math.floor(100 * part)} % full: ${map.used} of ${plural(map.most ?? 0, 'item')}`);
      code = EXIT.failed;
    }
  }
  if (unknown.length > 0) {
    const more = unknown.length > NAMED ? `, and ${unknown.length - NAMED} more` : '';
    say(
      `not known how full: ${unknown.slice(0, NAMED).join(', ')}${more} (--count counts by reading, where that is possible)`,
    );
  }
  return code;
}

/** A metric, and its value for a map; undefined if that is not known. */
interface Metric {
  readonly name: string;
  readonly help: string;
  readonly value: (map: Fullness, types: MapTypes) => number | undefined;
}

const METRICS: readonly Metric[] = [
  {
    name: 'bpfimg_map_used_entries',
    help: 'Items in the map. Arrays, in which every item is always there, have none.',
    value: (map, types) => (alwaysFull(map.type, types) ? undefined : map.used),
  },
  { name: 'bpfimg_map_max_entries', help: 'Most items that the map can hold.', value: ({ most }) => most },
  { name: 'bpfimg_map_memory_bytes', help: 'Memory of the map, as fdinfo says.', value: ({ memory }) => memory },
];

/**
 * Metrics of maps, as both Prometheus's text format and OpenMetrics have them.
 * @param source what the maps are in, if they are not live
 */
export function* metricLines(
  maps: readonly (Fullness & { readonly source?: string })[],
  types: MapTypes,
): Generator<string> {
  for (const { name, help, value } of METRICS) {
    yield `# HELP ${name} ${help}`;
    yield `# TYPE ${name} gauge`;
    for (const map of maps) {
      const number = value(map, types);
      if (number === undefined) continue;
      const labels = {
        ...(map.source === undefined ? {} : { source: map.source }),
        id: String(map.id),
        name: map.name ?? '',
        type: map.type === undefined ? '' : types.get(map.type).name,
        // One map, one series: further pins are left out.
        pin: map.pins[0] ?? '',
      };
      yield `${name}{${Object.entries(labels)
        .map(([label, text]) => `${label}="${labelText(text)}"`)
        .join(',')}} ${number}`;
    }
  }
  // A comment for Prometheus, the end for OpenMetrics.
  yield '# EOF';
}

function labelText(text: string): string {
  return text.replace(/[\\"\n]/g, (char) => (char === '\n' ? '\\n' : `\\${char}`));
}
