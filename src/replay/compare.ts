/** Whether a fresh map holds what the image says. */
import { hex, isZero } from '../bytes.js';
import { BpfimgError } from '../errors.js';
import { pause } from '../io/pause.js';
import { type BpfMap, valueParts } from '../kernel/map.js';
import { blank, type ItemSource, type MapType, type Span } from '../maptype.js';
import { backwards, countItems, itemsInCall } from './fill.js';
import { seenIndexes, seenKeys } from './seen.js';

/** Bytes of a long value to compare at a time. */
const PIECE = 1024 * 1024;

/** A test of the bytes of a value from `at` on. */
type Test = (bytes: Buffer, at: number) => boolean;

/**
 * Looks every item up again, the last one first: of several items with one key the last counts.
 * @param hidden bytes of a value that only the kernel writes
 * @throws BpfimgError for an item that is missing or has another value, and for a key that no item has
 */
export async function compareItems(
  map: BpfMap,
  items: ItemSource,
  type: MapType,
  hidden: readonly Span[],
): Promise<void> {
  const ignored = [...hidden, ...padding(map)];
  const seen = type.dense === true ? seenIndexes(map) : seenKeys(items, type);
  const last = backwards(items);
  const inPieces = map.long && last.readPart !== undefined;
  const room = inPieces ? 1 : Math.min(itemsInCall(map), Math.max(1, items.count));
  const keys = Buffer.alloc(room * map.keySize);
  const values = Buffer.alloc(inPieces ? PIECE : room * map.valueStride);
  const found = map.valueRoom;
  const isFound: Test = (bytes, at) => {
    blank(bytes, -at, ignored);
    return found.compare(bytes, 0, bytes.length, at, at + bytes.length) === 0;
  };
  const wrong = (key: Uint8Array, what: string) =>
    new BpfimgError('io', `read back, it ${what}`, { subject: map.subject, part: `item ${hex(key)}` });
  /** Items whose key perhaps came before, and those of them with another value. */
  let again = 0;
  let differing = 0;
  for (let done = 0; done < items.count; done += room) {
    const count = Math.min(room, items.count - done);
    if (inPieces) await last.readPart?.(done, keys, 0, values.subarray(0, 0));
    else await last.read(done, count, keys, values);
    for (let i = 0; i < count; i++) {
      const key = keys.subarray(i * map.keySize, (i + 1) * map.keySize);
      const holds = (test: Test) =>
        inPieces
          ? everyPiece(last, done, values, test)
          : test(values.subarray(i * map.valueStride, (i + 1) * map.valueStride), 0);
      const repeated = seen(keys, i);
      if (repeated) again++;
      if (map.lookup(key, 0, found) === undefined) {
        // An array that was made smaller has no place for it, and zero needs none.
        if (type.dense === true && (await holds((bytes) => isZero(bytes)))) continue;
        throw wrong(key, 'is missing');
      }
      blank(found, 0, ignored);
      const same = holds(isFound);
      // No await if it is known.
      if (same === true || (await same)) continue;
      if (!repeated) throw wrong(key, 'has a different value than in the image');
      differing++;
    }
    await pause();
  }
  if (type.dense === true) return;
  const held = await countItems(map);
  const repeats = items.count - held;
  if (repeats < 0 || repeats > again || differing > repeats) {
    const most = items.count - again;
    throw new BpfimgError('io', `read back, it has ${held} items, expected ${most} to ${items.count}`, {
      subject: map.subject,
    });
  }
}

/** Whether `test` is true for a value, piece by piece. */
async function everyPiece(items: ItemSource, item: number, piece: Buffer, test: Test): Promise<boolean> {
  for (let at = 0; at < items.valueSize; at += PIECE) {
    const bytes = piece.subarray(0, Math.min(PIECE, items.valueSize - at));
    await items.readPart?.(item, Buffer.alloc(0), at, bytes);
    if (!test(bytes, at)) return false;
    await pause();
  }
  return true;
}

/** The padding of each CPU's value to a multiple of 8 bytes. Linux 7.2 and newer zero it, others keep it. */
function padding(map: BpfMap): Span[] {
  const { size, stride, cpus } = valueParts(map);
  return stride === size ? [] : [{ offset: size, size: stride - size, count: cpus, stride }];
}
