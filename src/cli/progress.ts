/** Shows progress on the terminal if something takes longer than a second. */
import type { Doing } from '../maptype.js';
import { nameText, sizeText, timeText } from '../render.js';
import type { Io } from './io.js';

/** Milliseconds before anything is shown, and between two lines. */
const DELAY = 1000;
const EVERY = 200;

/** One line that says how far the current map is. */
export class Progress {
  #map = '';
  #start = 0;
  #shown = 0;

  constructor(
    readonly io: Io,
    readonly now: () => number = Date.now,
  ) {}

  /** May be called as often as you like. */
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
