/**
 * The maps of one capture: those that were selected, and those that they refer to.
 *
 * An inner map may be replaced, and thus disappear, at any time. So it is held open once its id is seen.
 */
import * as fs from 'node:fs';
import { KernelError } from '../kernel/error.js';
import { type LiveMap, openLive } from '../kernel/live.js';
import { BpfMap } from '../kernel/map.js';
import type { Sys } from '../kernel/sys.js';
import type { Template } from '../maptype.js';

/** File descriptors that a capture needs besides those of the maps that it holds. */
const OTHERS = 64;
/** Inner maps named in one line. */
const NAMED_IDS = 5;

/** A map whose turn it is; open if it was held. */
export interface QueuedMap {
  readonly live: LiveMap;
  readonly held: BpfMap | undefined;
}

/** The maps of one capture. It owns the maps that it holds until their turn, when it passes them on. */
export class CaptureQueue {
  readonly #live: Map<number, LiveMap>;
  /** Grows during iteration. */
  readonly #ids: Set<number>;
  readonly #held = new Map<number, BpfMap>();
  readonly #templates = new Map<number, Template>();
  /** What cannot be captured, and why; undefined if it is gone. */
  readonly #lost = new Map<number, string | undefined>();
  /** Maximum number of maps to hold. */
  readonly #most: number;

  /** @param find looks up further maps */
  constructor(
    readonly sys: Sys,
    maps: readonly LiveMap[],
    readonly find: (id: number) => LiveMap | undefined,
  ) {
    this.#live = new Map(maps.map((map) => [map.id, map]));
    this.#ids = new Set(this.#live.keys());
    this.#most = Math.floor((fileLimit(sys.proc) - OTHERS) / 2);
  }

  /** Each map in turn. The caller closes a map that it gets open. */
  *turns(): Generator<QueuedMap> {
    const late = new Set<number>();
    for (const id of this.#ids) {
      if (this.#lost.has(id)) continue;
      let held = this.#held.get(id);
      this.#held.delete(id);
      const live = this.#live.get(id) ?? this.find(id);
      if (live?.type !== undefined) {
        yield { live, held };
        continue;
      }
      // Created after the machine was inspected, or held by no process and no pin on a kernel without BTF. As an inner
      // map it may be opened, and then tells about itself.
      if (this.#templates.has(id)) held ??= this.#attempt(id);
      else if (live !== undefined && !late.has(id)) {
        late.add(id);
        this.#ids.delete(id);
        this.#ids.add(id);
        continue;
      }
      const turn = held === undefined ? live : openMapFacts(held);
      if (turn !== undefined) yield { live: turn, held };
    }
  }

  /**
   * Adds map `id` to the capture and holds it until its turn.
   * @returns its facts; undefined if it is not available
   */
  follow(id: number): Template | undefined {
    const known = this.#templates.get(id);
    if (known !== undefined || this.#lost.has(id)) return known;
    const map = this.#attempt(id);
    if (map === undefined) return undefined;
    const { type, keySize, valueSize, maxEntries, flags } = map;
    const template = { type, keySize, valueSize, maxEntries, flags };
    this.#templates.set(id, template);
    this.#ids.add(id);
    if (this.#held.size < this.#most) this.#held.set(id, map);
    else map.close();
    return template;
  }

  /** Opens an inner map, or notes why that fails. */
  #attempt(id: number): BpfMap | undefined {
    try {
      return this.#open(id);
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      this.#lost.set(id, isVanished(error) ? undefined : error.message);
      return undefined;
    }
  }

  /** By id if nothing is known: maps of maps do not accept the one type that opening by id may harm. */
  #open(id: number): BpfMap {
    const live = this.#live.get(id);
    if (live?.type !== undefined) return openLive(this.sys, live);
    try {
      return BpfMap.openById(this.sys, id, 'ro');
    } catch (error) {
      const seen = this.find(id);
      if (seen?.type === undefined) throw error;
      return openLive(this.sys, seen);
    }
  }

  /** Map `id` was not captured: it is gone. */
  lose(id: number): void {
    this.#lost.set(id, undefined);
  }

  /** What the line of a map says of the maps it refers to; undefined if all of them were captured. */
  lossOf(ids: Iterable<number>): string | undefined {
    const lost = [...ids].filter((id) => this.#lost.has(id));
    if (lost.length === 0) return undefined;
    const gone = lost.filter((id) => this.#lost.get(id) === undefined);
    const refused = lost.flatMap((id) => this.#lost.get(id) ?? []);
    const parts = gone.length === 0 ? [] : [goneText(gone)];
    const [first] = refused;
    if (first !== undefined) parts.push(`${refused.length} of its inner maps cannot be opened: ${first}`);
    return parts.join('; ');
  }

  close(): void {
    for (const map of this.#held.values()) map.close();
    this.#held.clear();
  }
}

function goneText(ids: readonly number[]): string {
  const [first] = ids;
  if (ids.length === 1) return `its inner map ${first} is gone`;
  const more = ids.length > NAMED_IDS ? ` and ${ids.length - NAMED_IDS} more` : '';
  return `its inner maps ${ids.slice(0, NAMED_IDS).join(', ')}${more} are gone`;
}

/** Whether opening a map failed because the map, or the process that held it, no longer exists. */
export function isVanished(error: KernelError): boolean {
  return error.code === 'ENOENT' || error.code === 'ESRCH' || error.code === 'EBADF';
}

/** Number of files that this process may have open. */
function fileLimit(proc: string): number {
  try {
    const text = fs.readFileSync(`${proc}/self/limits`, 'latin1');
    return Number(/^Max open files\s+(\d+)/m.exec(text)?.[1] ?? 1024);
  } catch {
    return 1024;
  }
}

/** What an open map says of itself. */
function openMapFacts(map: BpfMap): LiveMap {
  const { id, name, type, keySize, valueSize, maxEntries, flags } = map;
  const { extra, btfId } = map.info;
  const { frozen, memlock } = map.state();
  const shape = { id, name, type, keySize, valueSize, maxEntries, flags, extra, frozen, memlock, btfId };
  return { ...shape, used: undefined, pins: [], holders: [], programs: [] };
}
