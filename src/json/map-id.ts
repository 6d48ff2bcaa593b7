/** Values of maps of maps: the id of an inner map. */
import { PointerError } from '../errors.js';
import { isObject, type Json } from '../value.js';
import type { JsonForm } from './forms.js';
import { itemBytes } from './items.js';

const SIZE = 4;

/** `{"map_id":57}` for a four-byte map id; editing the number selects another map. */
export const mapIdForm: JsonForm = {
  size: SIZE,
  show: (view, at) => ({ map_id: view.getUint32(at, true) }),
  print: (view, at, out) => out.text(`{"map_id":${view.getUint32(at, true)}}`),
  parse(value, view, at) {
    const bytes = itemBytes(value, SIZE);
    const id = bytes === undefined ? idOf(value) : new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
    view.setUint32(at, id, true);
  },
};

function idOf(value: Json): number {
  const { map_id: id, ...more } = isObject(value) ? value : { map_id: undefined };
  if (
    Object.keys(more).length === 0 &&
    typeof id === 'number' &&
    Number.isInteger(id) &&
    id >= 0 &&
    id <= 0xffff_ffff
  ) {
    return id;
  }
  throw new PointerError('', 'must be {"map_id":N} with the id of a map, or 8 hex digits');
}
