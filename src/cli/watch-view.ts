/** What `watch` prints of one look: lines for people, or an object. */
import { mapName } from '../dump/select.js';
import type { MapTypes } from '../maptype.js';
import { nameText, plural } from '../render.js';
import type { Json, JsonObject } from '../value.js';
import { cut, padEnd, width } from '../width.js';
import type { ChangedItem, ChangedPart, MapTick, Tick } from './changes.js';
import { jsonText } from './diff-report.js';

/** Most cells of a key, and most parts of a value that are shown. */
const KEY_CELLS = 48;
const MOST_PARTS = 8;
/** Characters of hex that are shown of a value without types. */
const MOST_HEX = 64;

/** Lines about `tick`, cut at `columns`. */
export function tickLines(tick: Tick, now: Date, types: MapTypes, columns = Number.POSITIVE_INFINITY): string[] {
  const time = now.toISOString().replace(/\.\d+/, '');
  const since = tick.seconds === 0 ? 'waiting for changes' : `the last ${tick.seconds.toFixed(1)} s`;
  const lines = [`${time}  ${since}`];
  for (const { id, name } of tick.gone) lines.push(`map ${id}${name === '' ? '' : ` ${nameText(name)}`}: gone`);
  for (const map of tick.maps) lines.push(...mapLines(map, tick.seconds, types));
  return lines.map((line) => (columns === Number.POSITIVE_INFINITY ? line : cut(line, columns)));
}

function mapLines(tick: MapTick, seconds: number, types: MapTypes): string[] {
  const { map, items, shown, skipped } = tick;
  const file = map.files[0]?.message;
  const name = mapName(map);
  const counts = (['changed', 'added', 'removed'] as const).filter((kind) => tick[kind] > 0);
  const what =
    items === undefined
      ? 'its items are not read'
      : counts.length === 0
        ? 'no change'
        : counts.map((kind) => `${tick[kind]} ${kind}`).join(', ');
  const about = [
    ...(file === undefined ? [] : [types.get(file.map_type).name]),
    ...(items === undefined ? [] : [plural(items, 'item')]),
  ];
  const lines = [`map ${map.mapId}${name ? ` ${nameText(name)}` : ''} (${about.join(', ')}): ${what}`];
  const keys = shown.map(({ key }) => cut(keyText(key), KEY_CELLS));
  const cells = Math.max(0, ...keys.map(width));
  for (const [i, item] of shown.entries()) {
    lines.push(`  ${SIGNS[item.change]} ${padEnd(keys[i] as string, cells)}  ${itemText(item, seconds)}`.trimEnd());
  }
  for (const kind of counts) {
    const more = tick[kind] - shown.filter(({ change }) => change === kind).length;
    if (more > 0) lines.push(`  … ${more} more ${kind}`);
  }
  if (skipped > 0) lines.push(`  … ${skipped} of them were not looked at, so larger changes may be missing`);
  return lines;
}

const SIGNS = { changed: '~', added: '+', removed: '-' } as const;

function keyText(key: Json): string {
  return typeof key === 'string' ? nameText(key) : jsonText(key);
}

function itemText({ change, a, b, parts }: ChangedItem, seconds: number): string {
  if (change !== 'changed') return valueText((change === 'added' ? b : a) ?? null);
  const more = parts.length > MOST_PARTS ? [`… ${parts.length - MOST_PARTS} more`] : [];
  return [...parts.slice(0, MOST_PARTS).map((part) => partText(part, seconds)), ...more].join('  ');
}

function partText({ path, a, b, growth }: ChangedPart, seconds: number): string {
  const before = path === '' ? '' : `${nameText(path)}: `;
  const rate = growth === undefined ? '' : growth > 0 ? ` (+${rateText(growth / seconds)}/s)` : ` (${growth})`;
  if (isLongHex(a) && isLongHex(b)) {
    // Where they differ, from the start of a row of 16 bytes.
    let at = 0;
    while (at < a.length && a.slice(at, at + MOST_HEX / 2) === b.slice(at, at + MOST_HEX / 2)) at += MOST_HEX / 2;
    const [one, two] = [a, b].map((text) => text.slice(at, at + MOST_HEX / 2));
    return `${before}0x${(at / 2).toString(16)}: ${one} → ${two}`;
  }
  const [one, two] = [a, b].map((value) => (value === undefined ? 'none' : valueText(value)));
  return `${before}${one} → ${two}${rate}`;
}

function isLongHex(value: Json | undefined): value is string {
  return typeof value === 'string' && value.length > MOST_HEX && /^[0-9a-f]+$/.test(value);
}

function valueText(value: Json): string {
  if (typeof value !== 'string' || !/^[0-9a-f]*$/.test(value)) return jsonText(value);
  return value.length > MOST_HEX ? `${value.slice(0, MOST_HEX)}…` : value;
}

/** A rate in three digits, or all that it has before the point. */
function rateText(rate: number): string {
  return rate >= 100 ? rate.toFixed(0) : String(Number(rate.toPrecision(3)));
}

/** The same for programs. */
export function tickJson({ seconds, maps, gone }: Tick, now: Date, types: MapTypes): JsonObject {
  return {
    time: now.toISOString(),
    seconds: Number(seconds.toFixed(3)),
    maps: maps.map(({ map, items = null, changed, added, removed, shown, skipped }) => ({
      map_id: map.mapId,
      name: mapName(map) ?? '',
      type: map.files[0] === undefined ? null : types.get(map.files[0].message.map_type).name,
      items,
      changed,
      added,
      removed,
      ...(skipped > 0 ? { skipped } : {}),
      shown: shown.map(({ change, key, a, b, parts }) => ({
        change,
        key,
        ...(a === undefined ? {} : { a }),
        ...(b === undefined ? {} : { b }),
        ...ratesOf(parts, seconds),
      })),
    })),
    gone: gone.map(({ id, name }) => ({ map_id: id, name })),
  };
}

/** The rates per second of the numbers that have grown, by their paths. */
function ratesOf(parts: readonly ChangedPart[], seconds: number): { rates?: JsonObject } {
  const grown = parts.filter(({ growth = 0 }) => growth > 0);
  if (grown.length === 0) return {};
  return {
    rates: Object.fromEntries(grown.map(({ path, growth = 0 }) => [path, Number((growth / seconds).toPrecision(6))])),
  };
}
