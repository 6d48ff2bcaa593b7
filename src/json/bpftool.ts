/** Items as `bpftool -j map dump` prints them: bytes as lists of `"0x.."`, without the attributes of the map. */
import { cpuStride } from '../bytes.js';
import { PointerError } from '../errors.js';
import type { Input } from '../io/input.js';
import type { Output } from '../io/output.js';
import { pause } from '../io/pause.js';
import { Spool } from '../io/spool.js';
import type { Json } from '../value.js';
import { encodeImage } from './encode.js';
import { JsonReader } from './reader.js';

/** What strerror(3) says of a key that was deleted before bpftool could read its value. */
const GONE = 'No such file or directory';

/**
 * Writes these items as an image with one data entry. Values of per-CPU maps are padded to a multiple of 8 bytes, as
 * in the kernel. Keys that were gone before bpftool could read their values are left out.
 * @param mapId id of the map in the image
 * @throws BpfimgError for JSON in any other form, and for values that bpftool could not read
 */
export async function encodeBpftool(input: Input, mapId: number, out: Output): Promise<void> {
  const items = new Spool();
  try {
    await writeItems(new JsonReader(input), mapId, items);
    await encodeImage(items.input(input.name), out);
  } finally {
    items.close();
  }
}

/** The same items in bpfimg's own dialect. */
async function writeItems(reader: JsonReader, mapId: number, out: Output): Promise<void> {
  let first: Item | undefined;
  const begin = ({ key, value }: Item) => {
    const sizes = `"key_size":${key.length / 2},"value_size":${value.length / 2}`;
    out.text(`{"magic":"BPFMAP_DATA","entries":[{"map_id":${mapId},${sizes},"items":[`);
  };
  for await (const _ of reader.elements()) {
    await reader.peek();
    const { offset, pointer } = reader;
    const json = await reader.value();
    try {
      const item = itemOf(json);
      if (item === undefined) continue;
      if (first === undefined) begin(item);
      else out.text(',');
      first ??= item;
      for (const part of ['key', 'value'] as const) {
        const [size, expected] = [item[part].length / 2, first[part].length / 2];
        if (size !== expected) throw new PointerError('', `a ${part} of ${size} bytes, the first has ${expected}`);
      }
      out.text(`{"key":"${item.key}","value":"${item.value}"}`);
    } catch (error) {
      throw error instanceof PointerError ? await reader.badAt(error, offset, pointer) : error;
    }
    await pause();
  }
  if ((await reader.peek()) !== -1) throw await reader.expected('the end of the document');
  if (first === undefined) begin({ key: '', value: '' });
  out.text(']}]}');
}

/** Hex of one item's bytes; the value has those of all CPUs. */
interface Item {
  readonly key: string;
  readonly value: string;
}

/** undefined if the key was gone. */
function itemOf(json: Json): Item | undefined {
  const key = bytesOf(json, 'key');
  const values = member(json, 'values');
  if (values === undefined) {
    const value = bytesOf(json, 'value');
    return value === undefined ? undefined : { key: key as string, value };
  }
  if (!Array.isArray(values)) throw new PointerError('/values', 'expected a list with an object for each CPU');
  let all = '';
  for (const [cpu, one] of values.entries()) {
    const at = `/values/${cpu}`;
    if (member(one, 'cpu') !== cpu) throw new PointerError(at, `expected "cpu":${cpu}: one for each CPU, in order`);
    const value = bytesOf(one, 'value', at) ?? '';
    all += value.padEnd(2 * cpuStride(value.length / 2), '0');
  }
  return { key: key as string, value: all };
}

function member(json: Json, name: string): Json | undefined {
  if (typeof json !== 'object' || json === null || Array.isArray(json)) {
    throw new PointerError('', 'expected an object with "key" and "value", as `bpftool -j map dump` prints it');
  }
  return json[name];
}

/** Hex of the bytes in this member; undefined if bpftool found its key gone. */
function bytesOf(json: Json, name: string, at = ''): string | undefined {
  const value = member(json, name);
  const error = name === 'value' && value instanceof Object && !Array.isArray(value) ? value.error : undefined;
  if (error === GONE) return undefined;
  if (error !== undefined) throw new PointerError(`${at}/${name}`, `bpftool could not read it: ${error}`);
  const text = Array.isArray(value) && value.every((byte) => typeof byte === 'string' && /^0x[0-9a-f]{2}$/.test(byte));
  if (text) return value.map((byte) => (byte as string).slice(2)).join('');
  throw new PointerError(
    `${at}/${name}`,
    'expected a list of bytes such as "0x0a", as `bpftool -j map dump` prints it',
  );
}
