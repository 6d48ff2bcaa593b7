/** Progress on the terminal, for what takes longer than a second. */
import type { Doing } from '../maptype.js';
import { nameText, sizeText, timeText } from '../render.js';
import type { Io } from './io.js';

/** Milliseconds before anything is shown, and between two lines. */
const DELAY = 1000;
const EVERY = 200;

/** One line that tells how far the map is that is being done. */
export class Progress {
  #map = '';
  #start = 0;
  #shown = 0;

  constructor(
    readonly io: Io,
    readonly now: () => number = Date.now,
  ) {}

  /** To be called as often as one likes. */
  update({ map, items, most, itemSize }: Doing): void {
    const now = this.now();
    if (map !== this.#map) {
      this.#map = map;
      this.#start = now;
    }
    if (now - this.#start < DELAY || now - this.#shown < EVERY) return;
    this.#shown = now;
    const rate = items / ((now - this.#start) / 1000);
    const count = (number: number) => Math.round(number).toLocaleString('en');
    const left = items < most && rate > 0 ? `, at most ${timeText((most - items) / rate)} left` : '';
    this.io.show(
      `${nameText(map)}: ${count(items)} items, ${sizeText(items * itemSize)}, ${count(rate)} items/s${left}`,
    );
  }

  /** Clears the line. */
  end(): void {
    if (this.#shown > 0) this.io.show('');
  }
}
